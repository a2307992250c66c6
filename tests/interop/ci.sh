#!/usr/bin/env bash
# Writes a store with the examples and lets an independent reader check and restore it.
set -euo pipefail
cd "$(dirname "$0")/../.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# With these features the tests have built them already.
cargo build --quiet --all-features --example backup --example restore --example list
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
python3 tests/interop/read_store.py --restore "$work/out" "$work/store" --pbs-accepts
latest=$(find "$work/out/host/ci" -mindepth 1 -maxdepth 1 | sort | tail -n 1)
for pair in disk.img:disk data.bin:data app.conf:conf; do
  cmp "$latest/${pair%%:*}" "$work/${pair##*:}"
done
mkdir "$work/untarred"
tar -xpf "$latest/root.tar" -C "$work/untarred"

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
