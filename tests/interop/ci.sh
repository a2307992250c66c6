#!/usr/bin/env bash
# Writes a store with the examples and lets an independent reader check and restore it.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The cipher of the independent reader. A python3 that is not that of the system may lack what the system has.
python=python3
has_cipher() { "$python" -c 'from cryptography.hazmat.primitives.ciphers.aead import AESGCM' 2>/dev/null; }
if ! has_cipher; then
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends python3-cryptography
  has_cipher || python=/usr/bin/python3
fi

command -v setfacl >/dev/null && command -v setcap >/dev/null || {
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends acl libcap2-bin
}

# With these features the tests have built them already.
cargo build --quiet --all-features --example backup --example restore --example list --example key --example keyed_store
bin=${CARGO_TARGET_DIR:-target}/debug/examples
tree=$work/tree
mkdir -p "$tree/sub/deep" "$tree/empty"
head -c 3000000 /dev/urandom >"$tree/random"
for number in $(seq 1 300); do echo "file $number of three hundred" >"$tree/sub/$number.txt"; done
seq 1 200000 >"$tree/sub/deep/numbers"
ln "$tree/random" "$tree/hard"
ln -s sub/deep "$tree/soft"
chmod 640 "$tree/sub/1.txt"
touch -d 2001-02-03T04:05:06.789Z "$tree/sub/2.txt"
touch -d 1969-12-31T23:59:57.25Z "$tree/sub/4.txt"
mkfifo "$tree/fifo"
echo odd >"$tree/sub/"$'a name\nof two lines \xc3\xbc'
ln -s $'target\nof two lines \xc3\xbc' "$tree/sub/odd link"
python3 -c 'import os, sys; os.setxattr(sys.argv[1], "user.lines", b"one\ntwo\n")' "$tree/sub/2.txt" || echo "no extended attributes here"
{ head -c 9000000 /dev/urandom; head -c 9000000 /dev/zero; seq 1 300000; } >"$work/disk"
seq 1 500000 >"$work/data"
echo "key = value" >"$work/conf"

back_up() {
  "$bin/backup" --store "$work/store" --group host/ci "$@" \
    "root.tar:$tree" "disk.img:$work/disk" "data.bin:$work/data" "app.conf:$work/conf"
}
back_up --create
printf 'changed' | dd of="$work/disk" bs=1 seek=5000000 conv=notrunc status=none
echo "one more" >>"$tree/sub/3.txt"
back_up

echo "the independent reader:"
"$python" tests/interop/read_store.py --restore "$work/out" "$work/store" --pbs-accepts
latest=$(find "$work/out/host/ci" -mindepth 1 -maxdepth 1 | sort | tail -n 1)
for pair in disk.img:disk data.bin:data app.conf:conf; do
  cmp "$latest/${pair%%:*}" "$work/${pair##*:}"
done
mkdir "$work/untarred"
tar -xpf "$latest/root.tar" -C "$work/untarred"

echo "the independent reader, with the keys of PBS and its store:"
mkdir "$work/pbs"
zstd -dcq tests/data/pbs-4.2.3/store.tar.zst | tar -x -C "$work/pbs"
pbs_keys=tests/data/pbs-4.2.3/keys
READ_STORE_PASSPHRASES=$'correct horse 42\nanother-passphrase' "$python" tests/interop/read_store.py "$work/pbs/store" \
  --key "$pbs_keys/key1.json" --key "$pbs_keys/key2-pbkdf2.json" --key "$pbs_keys/key2-scrypt.json"

echo "the independent reader, with our keys:"
keyed=$work/keyed keys=$work/keys
mkdir "$keys"
{ head -c 5000000 /dev/urandom; head -c 5000000 /dev/zero; seq 1 100000; } >"$work/small-disk"
"$bin/keyed_store" "$keyed" "$keys" "$work/small-disk" "$work/data" "$work/conf"
with_keys() {
  READ_STORE_PASSPHRASES=$'pbkdf2\nscrypt' "$python" tests/interop/read_store.py "$keyed" \
    --key "$keys/none.json" --key "$keys/pbkdf2.json" --key "$keys/scrypt.json" "$@"
}
with_keys --restore "$work/decrypted" --pbs-accepts | tee "$work/report"
grep -q '^9 snapshots, 0 unfinished, 0 errors$' "$work/report"
grep -Eq '^9 signatures match; blobs: [1-9][0-9]* decrypted, 0 still encrypted$' "$work/report"
for snapshot in "$work"/decrypted/host/*/*; do
  for pair in disk.img:small-disk data.bin:data app.conf:conf client.log:conf; do
    cmp "$snapshot/${pair%%:*}" "$work/${pair##*:}"
  done
done
[ "$(stat -c %a "$keys"/*.json | sort -u)" = 600 ]
# Nothing of what was encrypted is there in plain.
if grep -qrF 'key = value' "$keyed"/host/none/; then echo "plaintext in an encrypted snapshot"; exit 1; fi

echo "the independent reader refuses what was changed:"
expect_refusal() {
  if with_keys >/dev/null 2>"$work/refusal" || ! grep -q "$1" "$work/refusal"; then echo "not refused: $1"; cat "$work/refusal"; exit 1; fi
}
sealed=$(find "$keyed/.chunks" -type f -size +1000k -exec sh -c 'head -c 8 "$1" | od -An -tx1 | grep -q "7b 67 85 be 22 2d 4c f0"' _ {} \; -print -quit)
cp "$sealed" "$work/sealed"
for at in 12 28; do
  # In the nonce and in the tag, which no checksum covers.
  "$python" - "$sealed" "$at" <<'FLIP'
import sys
with open(sys.argv[1], "r+b") as file:
    file.seek(int(sys.argv[2]))
    byte = file.read(1)[0]
    file.seek(int(sys.argv[2]))
    file.write(bytes([byte ^ 1]))
FLIP
  "$python" tests/interop/read_store.py "$keyed" >/dev/null
  expect_refusal 'authentication tag does not fit'
  cp "$work/sealed" "$sealed"
done
manifest=$(find "$keyed/host/none-signed" -name index.json.blob)
cp "$manifest" "$work/manifest"
"$python" - "$manifest" <<'RENUMBER'
import sys, zlib
sys.path.insert(0, "tests/interop")
import read_store
plain = read_store.decode(read_store.read(sys.argv[1])).replace(b'"backup-time": 1', b'"backup-time": 2')
with open(sys.argv[1], "wb") as file:
    file.write(read_store.PLAIN + zlib.crc32(plain).to_bytes(4, "little") + plain)
RENUMBER
"$python" tests/interop/read_store.py "$keyed" >/dev/null
expect_refusal 'another signature'
cp "$work/manifest" "$manifest"
with_keys >/dev/null

echo "the independent reader of file archives, with those of PBS:"
mkdir "$work/pxar"
zstd -dcq tests/data/pxar-4.2.3/store.tar.zst | tar -x -C "$work/pxar"
"$python" tests/interop/read_store.py --restore "$work/pxar/out" "$work/pxar/store"
read_trees() {
  for archive in $(find "$1" -name '*.pxar'); do
    "$python" tests/interop/read_tree.py "$archive" --catalog "$(dirname "$archive")/catalog.pcat1" "$(basename "$archive").didx" "${@:2}"
  done
  for archive in $(find "$1" -name '*.mpxar'); do
    "$python" tests/interop/read_tree.py "$archive" --payload "${archive%.mpxar}.ppxar" "${@:2}"
  done
}
read_trees "$work/pxar/out"

echo "the independent reader of file archives, with ours:"
# The archives have what tar has not: ACLs, flags, directories of many entries, names of any bytes.
source=$work/source
cp -a "$tree" "$source"
mkdir -p "$source/many" "$source/files"
for number in $(seq 1 2000); do echo "$number" >"$source/many/$number"; done
: >"$source/files/empty"
: >"$source/files/"$'not UTF-8 \xff\xfe'
: >"$source/files/$(printf 'n%.0s' $(seq 1 255))"
setfacl -m u:1234:rw,g:4321:r "$source/sub/5.txt" || echo "no access control lists here"
setfacl -d -m u:1234:rwx "$source/empty" || echo "no access control lists here"
if [ "$(id -u)" = 0 ]; then
  mknod "$source/files/null" c 1 3 || echo "no devices here"
  chown 1234:4321 "$source/sub/6.txt"
  setcap cap_net_raw=ep "$source/sub/7.txt" || echo "no capabilities here"
  chattr +d "$source/sub/8.txt" || echo "no flags here"
fi
trees=$work/trees
"$bin/key" create "$work/tree.key" --kdf none
mkdir -p "$trees/.chunks"
back_up_tree() { "$bin/backup" --store "$trees" --sync-level none --group "host/$1" "${@:2}" "root.pxar:$source"; }
back_up_tree unified --change-detection legacy
back_up_tree split --change-detection data
back_up_tree split
back_up_tree sealed --keyfile "$work/tree.key"
back_up_tree sealed-unified --keyfile "$work/tree.key" --change-detection legacy
"$python" tests/interop/read_store.py --restore "$work/trees-out" --key "$work/tree.key" "$trees"
read_trees "$work/trees-out" --same-as "$source" | tee "$work/compared"
[ "$(grep -c 'the same as the directory' "$work/compared")" = 5 ]
# Files that changed, came and went since the base.
echo "one more" >>"$source/sub/9.txt"
rm "$source/many/77" && mv "$source/many/78" "$source/many/new"
back_up_tree split --exclude '*.none'
rm -r "$work/trees-out"
"$python" tests/interop/read_store.py --restore "$work/trees-out" --key "$work/tree.key" "$trees"
newest=$(find "$work/trees-out/host/split" -mindepth 1 -maxdepth 1 | sort | tail -n 1)
read_trees "$newest" --same-as "$source"
"$bin/restore" --store "$trees" --privileged host/split/latest root.pxar "$work/tree-again/"
read_trees "$newest" --same-as "$work/tree-again"

echo "our own restore:"
"$bin/restore" --store "$work/store" "host/ci/$(basename "$latest")" root.tar.didx "$work/restored/"
describe() { (cd "$1" && find . -printf '%y %m %n %U:%G %T@ %s %p -> %l\n' | sed 's/^\(d [^ ]* \)[^ ]* \(.*\) [0-9]* \./\1\2 ./' | sort); }
diff <(describe "$tree") <(describe "$work/restored")
[ -p "$work/restored/fifo" ] && [ -p "$work/untarred/fifo" ]
rm "$tree/fifo" "$work/restored/fifo" "$work/untarred/fifo"
diff -r --no-dereference "$tree" "$work/restored"
diff -r --no-dereference "$tree" "$work/untarred"
[ "$(stat -c %.9Y "$work/untarred/sub/4.txt")" = "$(stat -c %.9Y "$tree/sub/4.txt")" ]
attribute() { python3 -c 'import os, sys; print(os.listxattr(sys.argv[1]), [os.getxattr(sys.argv[1], n) for n in os.listxattr(sys.argv[1])])' "$1"; }
[ "$(attribute "$tree/sub/2.txt")" = "$(attribute "$work/restored/sub/2.txt")" ]
ln -s "$tree/sub" "$work/link"
"$bin/backup" --store "$work/store" --group host/link "root.tar:$work/link"
linked=$("$bin/list" --store "$work/store" --json | python3 -c 'import json, sys; print([s["snapshot"] for s in json.load(sys.stdin)["snapshots"] if "host/link" in s["snapshot"]][-1])')
"$bin/restore" --store "$work/store" "$linked" root.tar.didx "$work/through-link/"
diff -r --no-dereference "$tree/sub" "$work/through-link"

echo "bad input ends with status 2 and changes nothing:"
before=$(find "$work/store" | sort | cksum)
expect_2() {
  local status=0
  "$@" >/dev/null 2>"$work/stderr" || status=$?
  [ "$status" = 2 ] && [ "$(wc -l <"$work/stderr")" = 1 ] || { echo "status $status: $*"; cat "$work/stderr"; exit 1; }
}
expect_2 "$bin/backup" --store "$work/store"
expect_2 "$bin/backup" --store "$work/nowhere" "app.conf:$work/conf"
expect_2 "$bin/backup" --store "$work/store" "app.conf:$work/missing"
expect_2 "$bin/backup" --store "$work/store" "root.tar:$work/conf"
expect_2 "$bin/backup" --store "$work/store" "what.ever:$work/conf"
expect_2 "$bin/backup" --store "$work/store" --group nonsense "app.conf:$work/conf"
expect_2 "$bin/backup" --store "$work/store" --time yesterday "app.conf:$work/conf"
expect_2 "$bin/backup" --store "$work/store" --group host/ci --time 2001-01-01T00:00:00Z "app.conf:$work/conf"
expect_2 "$bin/backup" --store "$work/store" --ns no/where "app.conf:$work/conf"
expect_2 "$bin/backup" --store "$work/store" --unknown "app.conf:$work/conf"
expect_2 "$bin/backup" --store s3://bucket/store "app.conf:$work/conf"
expect_2 "$bin/restore" --store "$work/store" host/ci/2001-01-01T00:00:00Z disk.img.fidx "$work/x"
expect_2 "$bin/restore" --store "$work/store" nonsense disk.img.fidx "$work/x"
expect_2 "$bin/restore" --store "$work/store" "host/ci/$(basename "$latest")" missing.img.fidx "$work/x"
expect_2 "$bin/restore" --store "$work/store" "host/ci/$(basename "$latest")" disk.img.fidx "$work/x/"
expect_2 "$bin/list" --store "$work/nowhere"
expect_2 "$bin/list" --store "$work/nowhere" --create
[ "$before" = "$(find "$work/store" | sort | cksum)" ]
echo "1 passed, 0 failed"
