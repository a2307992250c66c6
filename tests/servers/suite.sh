#!/usr/bin/env bash
# Every test that can use a server that is named by variables, in the bucket of that server.
set -euo pipefail
cargo test --quiet --all-features --test backend s3::named -- --nocapture
# Swift has no conditional puts, and the client of object_store waits for each of them: two to three minutes, by hand.
[ "${SERVER:-}" = swift ] || cargo test --quiet -p larder-object-store-tests named -- --nocapture
cargo test --quiet --all-features --test store --test s3 --test gc --test verify -- \
  backup:: compat:: basic:: prune:: relocate::
