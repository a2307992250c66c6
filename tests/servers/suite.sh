#!/usr/bin/env bash
# Every test that can use a server that is named by variables, in the bucket of that server.
set -euo pipefail
cargo test --quiet --all-features --test backend s3::named -- --nocapture
# Builds an HTTP client of its own, and waits minutes for each conditional put on Swift, which has none: on request.
[ -z "${LARDER_OBJECT_STORE:-}" ] || cargo test --quiet -p larder-object-store-tests named -- --nocapture
cargo test --quiet --all-features --test store --test s3 --test gc --test verify -- \
  backup:: compat:: basic:: prune:: relocate::
