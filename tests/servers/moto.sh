#!/usr/bin/env bash
# moto on loopback, if it is installed: it closes each connection and checks neither hashes nor signatures.
# moto.sh install | up DIR | down DIR. `install` succeeds only if it is there already.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
KEY_ID_USED=$KEY_ID SECRET_USED=$SECRET

up() {
  local port
  rm -rf "$DIR"
  mkdir -p "$DIR/run"
  port=$(free_ports 1)
  moto_server -H 127.0.0.1 -p "$port" >"$DIR/log" 2>&1 </dev/null &
  echo $! >"$DIR/run/moto.pid"
  wait_for 60 "moto" "$DIR/log" make_bucket "http://127.0.0.1:$port" "$BUCKET" us-east-1
  printf 'LARDER_S3_ENDPOINT=http://127.0.0.1:%s\nLARDER_S3_BUCKET=%s\nAWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' \
    "$port" "$BUCKET" "$KEY_ID" "$SECRET"
}

DIR=${2:-}
case ${1:-} in
install) command -v moto_server >/dev/null ;;
up) up ;;
down) stop "$DIR" moto ;;
*) echo "usage: moto.sh install | up DIR | down DIR" >&2; exit 2 ;;
esac
