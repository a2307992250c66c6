# Shared by the scripts beside it; sourced, not run.

# The environment of the caller must not reach servers or checks.
unset http_proxy https_proxy HTTP_PROXY HTTPS_PROXY AWS_CA_BUNDLE AWS_PROFILE AWS_SESSION_TOKEN CEPH_CONF

BUCKET=larder-test
KEY_ID=LARDERTESTKEY0
SECRET=LarderTestSecretLarderTest

# Installs Debian packages that are not there, and starts nothing.
install_packages() {
  local missing=() package
  for package in "$@"; do
    dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing+=("$package")
  done
  [ "${#missing[@]}" -eq 0 ] && return
  apt-get update -qq
  # No service of a package may start by itself: its ports could be those of somebody else.
  local policy=/usr/sbin/policy-rc.d made=
  [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 755 "$policy"; made=yes; }
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
  [ -z "$made" ] || rm -f "$policy"
}

# Prints as many free ports as asked for. Somebody may take one before it is used; then the start fails and says so.
free_ports() {
  python3 - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*(s.getsockname()[1] for s in sockets))
PY
}

# wait_for SECONDS WHAT LOG COMMAND…: until the command succeeds.
wait_for() {
  local seconds=$1 what=$2 log=$3 end
  shift 3
  end=$((SECONDS + seconds))
  until "$@" >/dev/null 2>&1; do
    if [ "$SECONDS" -ge "$end" ]; then
      echo "$what is not there after $seconds s; the end of $log:" >&2
      tail -n 20 "$log" >&2 || true
      return 1
    fi
    sleep 0.2
  done
}

# Makes the bucket by a signed request, with nothing but Python's library; the server must answer it.
make_bucket() {
  python3 - "$1" "$2" "$3" "$KEY_ID_USED" "$SECRET_USED" <<'PY'
import datetime, hashlib, hmac, sys, urllib.error, urllib.parse, urllib.request
endpoint, bucket, region, key_id, secret = sys.argv[1:]
now = datetime.datetime.now(datetime.timezone.utc)
long, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
host, empty = urllib.parse.urlparse(endpoint).netloc, hashlib.sha256(b"").hexdigest()
names = "host;x-amz-content-sha256;x-amz-date"
canonical = f"PUT\n/{bucket}\n\nhost:{host}\nx-amz-content-sha256:{empty}\nx-amz-date:{long}\n\n{names}\n{empty}"
scope = f"{day}/{region}/s3/aws4_request"
text = f"AWS4-HMAC-SHA256\n{long}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
key = ("AWS4" + secret).encode()
for part in (day, region, "s3", "aws4_request"):
    key = hmac.new(key, part.encode(), hashlib.sha256).digest()
signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
headers = {
    "x-amz-content-sha256": empty,
    "x-amz-date": long,
    "authorization": f"AWS4-HMAC-SHA256 Credential={key_id}/{scope},SignedHeaders={names},Signature={signature}",
}
request = urllib.request.Request(f"{endpoint}/{bucket}", method="PUT", headers=headers)
try:
    urllib.request.urlopen(request, timeout=30).read()
except urllib.error.HTTPError as error:
    sys.exit(0 if error.code == 409 else f"{error.code} {error.read()[:300]}")
PY
}

# stop DIR NAME…: ends the processes whose numbers are in DIR/run/NAME.pid, in this order.
stop() {
  local directory=$1 name file pid
  shift
  for name in "$@"; do
    file=$directory/run/$name.pid
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || true
    for _ in $(seq 50); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
    kill -9 "$pid" 2>/dev/null || true
  done
  rm -rf "$directory"
}
