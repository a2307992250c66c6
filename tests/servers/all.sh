#!/usr/bin/env bash
# Runs a command once for each server, with the variables that name it: all.sh COMMAND…
# Ceph (HTTP and HTTPS) and Swift are installed from Debian's packages; Garage and moto are used where they are installed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
server=
finish() {
  [ -z "$server" ] || bash "$here/$server.sh" down "$work/$server" || true
  rm -rf "$work"
}
trap finish EXIT
failed=0

# run NAME VARIABLES… -- COMMAND…
run() {
  local name=$1 start=$SECONDS status=0 variables=()
  shift
  while [ "$1" != -- ]; do variables+=("$1"); shift; done
  shift
  env SERVER="$name" "${variables[@]}" "$@" || status=$?
  if [ "$status" = 0 ]; then echo "$name: ok in $((SECONDS - start)) s"; else
    echo "$name: failed ($status) in $((SECONDS - start)) s"
    failed=1
  fi
}

for name in ceph swift garage moto; do
  if ! bash "$here/$name.sh" install; then
    case $name in
    garage | moto) echo "$name: not installed, skipped"; continue ;;
    esac
    exit 1
  fi
  server=$name
  bash "$here/$name.sh" up "$work/$name" >"$work/variables"
  mapfile -t variables < <(grep -v '^LARDER_S3_TLS_ENDPOINT=\|^LARDER_S3_CA=' "$work/variables")
  run "$name" "${variables[@]}" -- "$@"
  if tls=$(grep '^LARDER_S3_TLS_ENDPOINT=' "$work/variables"); then
    ca=$(grep '^LARDER_S3_CA=' "$work/variables")
    run "$name over TLS" "${variables[@]}" "LARDER_S3_ENDPOINT=${tls#*=}" "$ca" -- "$@"
  fi
  bash "$here/$name.sh" down "$work/$name"
  server=
done
exit "$failed"
