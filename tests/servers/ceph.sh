#!/usr/bin/env bash
# A RADOS Gateway of Ceph on loopback, with everything in memory: HTTP and HTTPS.
# ceph.sh install | up DIR | down DIR. `up` prints the variables that name the server.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
KEY_ID_USED=$KEY_ID SECRET_USED=$SECRET

make_certificates() {
  openssl req -x509 -newkey rsa:2048 -nodes -days 2 -keyout ca.key -out ca.pem -subj "/CN=larder test CA" \
    -addext basicConstraints=critical,CA:TRUE
  openssl req -newkey rsa:2048 -nodes -keyout server.key -out server.csr -subj "/CN=localhost"
  printf 'basicConstraints=CA:FALSE\nsubjectAltName=DNS:localhost,DNS:*.localhost,IP:127.0.0.1,IP:::1\n' >leaf.ext
  openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -out server.pem -extfile leaf.ext
}

configure() {
  local mode
  echo "[global]"
  echo "fsid = $1"
  echo "mon_host = v2:127.0.0.1:$2"
  echo "ms_bind_msgr1 = false"
  echo "public_network = 127.0.0.0/8"
  # Without authentication every connection has to be told so, or the gateway waits for five minutes.
  for mode in auth_cluster_required auth_service_required auth_client_required; do echo "$mode = none"; done
  for mode in ms_mon_client ms_mon_service ms_mon_cluster ms_client ms_service ms_cluster; do echo "${mode}_mode = crc"; done
  cat <<C
auth_allow_insecure_global_id_reclaim = false
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_osd_min_in_ratio = 0
mon_data_avail_crit = 1
mon_data_avail_warn = 2
run_dir = $DIR/run
admin_socket = $DIR/run/\$name.asok
log_file = $DIR/log/\$name.log
pid_file = $DIR/run/\$name.pid
crash_dir = $DIR/crash
[mon]
mon_data = $DIR/mon
mon_cluster_log_file = $DIR/log/cluster.log
[osd]
osd_data = $DIR/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
[client.rgw]
rgw_data = $DIR/rgw
rgw_frontends = beast tcp_nodelay=1 endpoint=127.0.0.1:$3 ssl_endpoint=127.0.0.1:$4 ssl_certificate=$DIR/tls/server.pem ssl_private_key=$DIR/tls/server.key
rgw_dns_name = localhost
C
}

up() {
  local fsid mon http https osd
  rm -rf "$DIR"
  mkdir -p "$DIR"/{mon,osd,log,run,rgw,tls,crash/posted}
  (cd "$DIR/tls" && make_certificates) >"$DIR/log/openssl.log" 2>&1
  read -r mon http https <<<"$(free_ports 3)"
  fsid=$(cat /proc/sys/kernel/random/uuid)
  osd=$(cat /proc/sys/kernel/random/uuid)
  configure "$fsid" "$mon" "$http" "$https" >"$DIR/ceph.conf"
  export CEPH_CONF=$DIR/ceph.conf
  {
    monmaptool --create --addv a "[v2:127.0.0.1:$mon]" --fsid "$fsid" "$DIR/monmap"
    ceph-mon --mkfs -i a --monmap "$DIR/monmap"
    ceph-mon -i a
    timeout 60 ceph osd new "$osd"
    ceph-osd -i 0 --mkfs --osd-uuid "$osd"
    ceph-osd -i 0
  } >"$DIR/log/start.log" 2>&1
  wait_for 60 "the disk of Ceph" "$DIR/log/start.log" sh -c 'timeout 10 ceph osd stat | grep -q "1 up"'
  timeout 120 radosgw -n client.rgw >"$DIR/log/start.log" 2>&1
  wait_for 60 "the gateway of Ceph" "$DIR/log/client.rgw.log" python3 -c \
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:$http/', timeout=2)"
  timeout 60 radosgw-admin -n client.rgw user create --uid=test --display-name=test --access-key="$KEY_ID" \
    --secret="$SECRET" >"$DIR/log/start.log" 2>&1
  wait_for 60 "the bucket" "$DIR/log/client.rgw.log" make_bucket "http://127.0.0.1:$http" "$BUCKET" us-east-1
  cat <<V
LARDER_S3_ENDPOINT=http://127.0.0.1:$http
LARDER_S3_TLS_ENDPOINT=https://127.0.0.1:$https
LARDER_S3_CA=$DIR/tls/ca.pem
LARDER_S3_BUCKET=$BUCKET
LARDER_S3_REGION=us-east-1
AWS_ACCESS_KEY_ID=$KEY_ID
AWS_SECRET_ACCESS_KEY=$SECRET
V
}

DIR=${2:-}
case ${1:-} in
install) install_packages radosgw ceph-mon ceph-osd ceph-common openssl python3 ;;
up) up ;;
down) stop "$DIR" client.rgw osd.0 mon.a ;;
*) echo "usage: ceph.sh install | up DIR | down DIR" >&2; exit 2 ;;
esac
