#!/usr/bin/env python3
"""Reads a PBS datastore by the description of its format alone: an independent pair of eyes on what larder writes.

    read_store.py STORE [--restore DIR] [--json] [--pbs-accepts]

Checks every manifest, index, blob and chunk; with --restore also writes the plaintext of each archive to
DIR/<snapshot path>/<archive without its extension>. Exit status 1 if anything is wrong. Python 3.8 and the zstd program.
"""

import hashlib
import json
import os
import re
import stat
import struct
import subprocess
import sys
import zlib

PLAIN = bytes.fromhex("42ab3807be8370a1")
ZSTD = bytes.fromhex("31b958426fb6a37f")
ENCRYPTED = (bytes.fromhex("7b6785be222d4cf0"), bytes.fromhex("e6591bbf0bbfd80b"))
FIXED = bytes.fromhex("2f7f41ed91fd0fcd")
DYNAMIC = bytes.fromhex("1c914ea519bab3cd")
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")


class Wrong(Exception):
    pass


def read(path):
    with open(path, "rb") as file:
        return file.read()


def decode(blob):
    """The plaintext of a blob; None if it is encrypted."""
    if len(blob) < 12:
        raise Wrong("blob is too short")
    magic, crc = blob[:8], struct.unpack("<I", blob[8:12])[0]
    header = 44 if magic in ENCRYPTED else 12
    payload = blob[header:]
    if len(blob) < header or zlib.crc32(payload) != crc:
        raise Wrong("blob has a wrong checksum")
    if magic == PLAIN:
        return payload
    if magic in ENCRYPTED:
        return None
    if magic != ZSTD:
        raise Wrong("blob has an unknown magic number")
    done = subprocess.run(["zstd", "-dcq", "--long=27"], input=payload, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise Wrong("blob does not decompress")
    return done.stdout


def index(data, fixed):
    """(size, [(length, digest)]) of an index."""
    if len(data) < 4096 or data[:8] != (FIXED if fixed else DYNAMIC):
        raise Wrong("index has no valid header")
    entries = data[4096:]
    if hashlib.sha256(entries).digest() != data[32:64]:
        raise Wrong("index has a wrong checksum in its header")
    chunks = []
    if fixed:
        size, chunk_size = struct.unpack("<QQ", data[64:80])
        if chunk_size == 0 or chunk_size & (chunk_size - 1) or any(data[80:4096]):
            raise Wrong("index has a wrong chunk size or bytes after its header")
        count = -(-size // chunk_size)
        if count == 0 or len(entries) != 32 * count:
            raise Wrong("index has another length than its size says")
        for number in range(count):
            length = min(chunk_size, size - number * chunk_size)
            chunks.append((length, entries[32 * number : 32 * number + 32].hex()))
        return size, chunks
    if not entries or len(entries) % 40 or any(data[64:4096]):
        raise Wrong("index has a wrong length or bytes after its header")
    last = 0
    for at in range(0, len(entries), 40):
        end = struct.unpack("<Q", entries[at : at + 8])[0]
        if end <= last:
            raise Wrong("index has ends that do not grow")
        chunks.append((end - last, entries[at + 8 : at + 40].hex()))
        last = end
    return last, chunks


class Store:
    def __init__(self, root, restore):
        self.root, self.restore = root, restore
        self.errors, self.snapshots, self.unfinished, self.good = [], [], [], {}

    def walk(self, namespace=()):
        base = os.path.join(self.root, *(part for name in namespace for part in ("ns", name)))
        for kind in ("ct", "host", "vm"):
            for name in self.children(os.path.join(base, kind)):
                group = os.path.join(base, kind, name)
                for time in self.children(group, TIME):
                    self.snapshot(namespace, group, f"{kind}/{name}/{time}")
        for name in self.children(os.path.join(base, "ns")):
            self.walk((*namespace, name))

    def children(self, path, pattern=SAFE_ID):
        if not os.path.isdir(path):
            return []
        names = [name for name in sorted(os.listdir(path)) if os.path.isdir(os.path.join(path, name))]
        return [name for name in names if pattern.match(name)]

    def snapshot(self, namespace, group, name):
        path = os.path.join(group, name.rsplit("/", 1)[1])
        if not os.path.exists(os.path.join(path, "index.json.blob")):
            return self.unfinished.append(name)
        try:
            manifest = json.loads(decode(read(os.path.join(path, "index.json.blob"))))
            kind, ident, time = name.split("/")
            if (manifest["backup-type"], manifest["backup-id"]) != (kind, ident):
                raise Wrong("manifest is of another group")
            owner = read(os.path.join(group, "owner")).decode().strip()
            files = [self.file(path, name, namespace, entry) for entry in manifest["files"]]
        except (Wrong, OSError, KeyError, ValueError) as error:
            return self.errors.append(f"{name}: {error!r}")
        present = set(os.listdir(path)) - {"index.json.blob", "client.log.blob", ".protected"}
        for extra in present - {entry["filename"] for entry in manifest["files"]}:
            self.errors.append(f"{name}: {extra} is not in the manifest")
        self.snapshots.append(
            {
                "ns": "/".join(namespace),
                "snapshot": name,
                "owner": owner,
                "notes": manifest.get("unprotected", {}).get("notes"),
                "protected": os.path.exists(os.path.join(path, ".protected")),
                "files": files,
            }
        )

    def file(self, path, snapshot, namespace, entry):
        name, found = entry["filename"], dict(entry)
        try:
            data = read(os.path.join(path, name))
            if name.endswith(".blob"):
                if (len(data), hashlib.sha256(data).hexdigest()) != (entry["size"], entry["csum"]):
                    raise Wrong("blob is not the one in the manifest")
                parts = [decode(data)]
            else:
                size, chunks = index(data, name.endswith(".fidx"))
                if (size, hashlib.sha256(data[4096:]).hexdigest()) != (entry["size"], entry["csum"]):
                    raise Wrong("index is not the one in the manifest")
                found["chunks"] = len(chunks)
                parts = (self.chunk(length, digest, entry) for length, digest in chunks)
            self.write(parts, snapshot, namespace, found)
        except (Wrong, OSError) as error:
            self.errors.append(f"{snapshot}/{name}: {error!r}")
        return found

    def chunk(self, length, digest, entry):
        blob = read(os.path.join(self.root, ".chunks", digest[:4], digest))
        plain = decode(blob)
        if (plain is None) != (entry.get("crypt-mode", "none") == "encrypt"):
            raise Wrong(f"chunk {digest} is of another crypt mode")
        if plain is not None and (len(plain), hashlib.sha256(plain).hexdigest()) != (length, digest):
            raise Wrong(f"chunk {digest} has other contents")
        return plain

    def write(self, parts, snapshot, namespace, found):
        digest, target, size = hashlib.sha256(), None, 0
        if self.restore:
            path = os.path.join(self.restore, *namespace, snapshot)
            os.makedirs(path, exist_ok=True)
            target = open(os.path.join(path, found["filename"].rsplit(".", 1)[0]), "wb")
        for part in parts:
            if part is None:
                found["encrypted"] = True
                continue
            digest.update(part)
            size += len(part)
            if target:
                target.write(part)
        if target:
            target.close()
        if "encrypted" not in found:
            found["plaintext-size"], found["plaintext-sha256"] = size, digest.hexdigest()


def pbs_accepts(root):
    """What PBS looks at before it adopts a directory as a datastore."""
    found = []
    owner = os.stat(root)

    def check(path, mode, is_kind):
        try:
            info = os.lstat(path)
        except OSError as error:
            return found.append(str(error))
        if stat.S_IMODE(info.st_mode) != mode or not is_kind(info.st_mode):
            found.append(f"{path}: mode {stat.S_IMODE(info.st_mode):o} instead of {mode:o}, or of another kind")
        if (info.st_uid, info.st_gid) != (owner.st_uid, owner.st_gid):
            found.append(f"{path}: another owner")

    check(root, 0o755, stat.S_ISDIR)
    check(os.path.join(root, ".lock"), 0o644, stat.S_ISREG)
    check(os.path.join(root, ".chunks"), 0o750, stat.S_ISDIR)
    for prefix in range(0x10000):
        check(os.path.join(root, ".chunks", f"{prefix:04x}"), 0o750, stat.S_ISDIR)
    return found


def main(arguments):
    options, restore = set(), None
    while arguments and arguments[-1].startswith("--") or "--restore" in arguments:
        if "--restore" in arguments:
            at = arguments.index("--restore")
            restore = arguments[at + 1]
            del arguments[at : at + 2]
        else:
            options.add(arguments.pop())
    if len(arguments) != 1 or options - {"--json", "--pbs-accepts"}:
        sys.exit(__doc__)
    store = Store(arguments[0], restore)
    store.walk()
    if "--pbs-accepts" in options:
        store.errors += pbs_accepts(arguments[0])
    if "--json" in options:
        report = {"snapshots": store.snapshots, "unfinished": store.unfinished, "errors": store.errors}
        print(json.dumps(report, indent=1))
    else:
        print(f"{len(store.snapshots)} snapshots, {len(store.unfinished)} unfinished, {len(store.errors)} errors")
    for error in store.errors[:20]:
        print(error, file=sys.stderr)
    sys.exit(1 if store.errors else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
