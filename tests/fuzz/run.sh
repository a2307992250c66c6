#!/usr/bin/env bash
# Runs fuzz targets under libFuzzer, one after the other, with the stable toolchain and a C++ compiler: bash tests/fuzz/run.sh [TARGET]...
# LARDER_FUZZ_SECONDS: for each target; default: 60. LARDER_FUZZ_DIRECTORY: for the build, the corpora and the findings; default: target/fuzz.
set -euo pipefail
cd "$(dirname "$0")"
directory=${LARDER_FUZZ_DIRECTORY:-$PWD/../../target/fuzz}
host=$(rustc -vV | sed -n 's/^host: //p')
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters"
coverage="$coverage -Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
# With a target, the flags are not those of build scripts.
RUSTFLAGS="$coverage --cfg fuzzing" cargo build --release --target "$host" --target-dir "$directory/build"
program=$directory/larder
cp "$directory/build/$host/release/larder" "$program"
mkdir -p "$directory/found" "$directory/logs"
[ $# -gt 0 ] || set -- $(ls seeds)
failed=0
for target in "$@"; do
  mkdir -p "$directory/corpus/$target"
  found=$directory/found/$target-
  log=$directory/logs/$target
  if LARDER_FUZZ_TARGET=$target "$program" "$directory/corpus/$target" "seeds/$target" -max_total_time="${LARDER_FUZZ_SECONDS:-60}" \
    -artifact_prefix="$found" -max_len=20000 -print_final_stats=1 -rss_limit_mb=1024 -timeout=20 >"$log" 2>&1; then
    echo "$target: $(sed -n 's/^stat::number_of_executed_units: *//p' "$log") inputs"
  else
    failed=1
    # The part of the input that fails.
    input=$(sed -n 's/^artifact_prefix=.*Test unit written to //p' "$log" | tail -1)
    [ -z "$input" ] || LARDER_FUZZ_TARGET=$target "$program" "$input" -minimize_crash=1 -max_total_time=60 \
      -artifact_prefix="$found" -exact_artifact_path="$found-short" >>"$log" 2>&1 || true
    echo "$target failed: $log, $found*"
  fi
done
exit $failed
