#!/usr/bin/env bash
# Garage on loopback, if it is installed: it ignores the conditions of puts and says nothing of it.
# garage.sh install | up DIR | down DIR. `install` succeeds only if it is there already (building it takes ten minutes and more).
set -euo pipefail
. "$(dirname "$0")/lib.sh"
# Garage takes names of keys of this form only.
GARAGE_KEY_ID=GK$(printf '%024d' 1)
GARAGE_SECRET=$(printf '%064d' 1)

up() {
  local rpc api admin node
  rm -rf "$DIR"
  mkdir -p "$DIR/run"
  read -r rpc api admin < <(free_ports 3)
  cat >"$DIR/garage.toml" <<TOML
metadata_dir = "$DIR/meta"
data_dir = "$DIR/data"
db_engine = "sqlite"
metadata_fsync = false
data_fsync = false
replication_factor = 1
compression_level = "none"
rpc_bind_addr = "127.0.0.1:$rpc"
rpc_public_addr = "127.0.0.1:$rpc"
rpc_secret = "$(printf '%064d' 2)"
[s3_api]
s3_region = "garage"
api_bind_addr = "127.0.0.1:$api"
root_domain = ".s3.localhost"
[admin]
api_bind_addr = "127.0.0.1:$admin"
TOML
  export GARAGE_CONFIG_FILE=$DIR/garage.toml RUST_LOG=warn
  garage server >"$DIR/log" 2>&1 </dev/null &
  echo $! >"$DIR/run/garage.pid"
  wait_for 60 "Garage" "$DIR/log" garage status
  node=$(garage node id -q 2>/dev/null)
  {
    garage layout assign -z dc1 -c 10G "${node%@*}"
    garage layout apply --version 1
    garage key import --yes "$GARAGE_KEY_ID" "$GARAGE_SECRET" -n test
    garage bucket create "$BUCKET"
    garage bucket allow --read --write --owner "$BUCKET" --key "$GARAGE_KEY_ID"
  } >>"$DIR/log" 2>&1
  printf 'LARDER_S3_ENDPOINT=http://127.0.0.1:%s\nLARDER_S3_REGION=garage\nLARDER_S3_BUCKET=%s\n' "$api" "$BUCKET"
  printf 'AWS_ACCESS_KEY_ID=%s\nAWS_SECRET_ACCESS_KEY=%s\n' "$GARAGE_KEY_ID" "$GARAGE_SECRET"
}

DIR=${2:-}
case ${1:-} in
install) command -v garage >/dev/null ;;
up) up ;;
down) stop "$DIR" garage ;;
*) echo "usage: garage.sh install | up DIR | down DIR" >&2; exit 2 ;;
esac
