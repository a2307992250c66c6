#!/usr/bin/env bash
# Every test that can use a server that is named by variables, in the bucket of that server.
set -euo pipefail
cargo test --quiet --all-features --test s3_backend named -- --nocapture
cargo test --quiet --all-features --test backup --test s3_compat --test gc --test prune --test relocate --test verify
