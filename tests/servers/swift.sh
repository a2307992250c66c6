#!/usr/bin/env bash
# OpenStack Swift on loopback, with its S3 interface.
# swift.sh install | up DIR | down DIR. `up` prints the variables that name the server.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
KEY_ID_USED=test:tester SECRET_USED=testing

storage_server() {
  local name=$1 port=$2
  swift-ring-builder "$DIR/conf/$name.builder" create 4 1 1
  swift-ring-builder "$DIR/conf/$name.builder" add "r1z1-127.0.0.1:$port/d1" 1
  swift-ring-builder "$DIR/conf/$name.builder" rebalance || true
  cat >"$DIR/conf/$name.conf" <<C
[DEFAULT]
devices = $DIR/srv
mount_check = false
bind_ip = 127.0.0.1
bind_port = $port
workers = 1
user = root
swift_dir = $DIR/conf
log_level = WARNING
log_name = $name
disable_fallocate = true
[pipeline:main]
pipeline = $name-server
[app:$name-server]
use = egg:swift#$name
C
}

proxy_server() {
  cat >"$DIR/conf/proxy.conf" <<C
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = $1
workers = 1
user = root
swift_dir = $DIR/conf
log_level = WARNING
[pipeline:main]
pipeline = catch_errors cache bulk s3api tempauth slo dlo copy proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
[filter:cache]
use = egg:swift#memcache
memcache_servers = 127.0.0.1:$2
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
s3_acl = false
dns_compliant_bucket_names = true
storage_domain = s3.localhost
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
C
  local name
  for name in catch_errors bulk slo dlo copy; do printf '[filter:%s]\nuse = egg:swift#%s\n' "$name" "$name"; done \
    >>"$DIR/conf/proxy.conf"
}

up() {
  local account container object proxy cache name
  rm -rf "$DIR"
  mkdir -p "$DIR"/{conf,srv/d1,run,log}
  read -r account container object proxy cache <<<"$(free_ports 5)"
  printf '[swift-hash]\nswift_hash_path_suffix = a\nswift_hash_path_prefix = b\n[storage-policy:0]\nname = p0\ndefault = yes\n[swift-constraints]\nmax_header_size = 16384\n' \
    >"$DIR/conf/swift.conf"
  export SWIFT_CONF_FILE=$DIR/conf/swift.conf
  {
    storage_server account "$account"
    storage_server container "$container"
    storage_server object "$object"
    proxy_server "$proxy" "$cache"
  } >"$DIR/log/rings.log" 2>&1
  # Nothing may keep the standard output of this script open: its reader waits for the end of it.
  memcached -u root -l 127.0.0.1 -p "$cache" -U 0 >"$DIR/log/memcached.log" 2>&1 </dev/null &
  echo $! >"$DIR/run/memcached.pid"
  for name in account container object proxy; do
    "swift-$name-server" "$DIR/conf/$name.conf" >"$DIR/log/$name.log" 2>&1 </dev/null &
    echo $! >"$DIR/run/$name.pid"
  done
  wait_for 60 "the bucket of Swift" "$DIR/log/proxy.log" make_bucket "http://127.0.0.1:$proxy" "$BUCKET" us-east-1
  cat <<V
LARDER_S3_ENDPOINT=http://127.0.0.1:$proxy
LARDER_S3_BUCKET=$BUCKET
LARDER_S3_REGION=us-east-1
AWS_ACCESS_KEY_ID=test:tester
AWS_SECRET_ACCESS_KEY=testing
V
}

DIR=${2:-}
case ${1:-} in
install) install_packages swift-proxy swift-account swift-container swift-object memcached python3 ;;
up) up ;;
down) stop "$DIR" proxy object container account memcached ;;
*) echo "usage: swift.sh install | up DIR | down DIR" >&2; exit 2 ;;
esac
