#!/usr/bin/env python3
"""Reads a PBS datastore by the description of its format alone: an independent pair of eyes on what larder writes.

    read_store.py STORE [--restore DIR] [--key FILE ...] [--json] [--pbs-accepts]

Checks every manifest, index, blob and chunk; with --restore also writes the plaintext of each archive to
DIR/<snapshot path>/<archive without its extension>. With key files, it also checks every signature and decrypts what is encrypted; a
snapshot that needs another key is then an error. READ_STORE_PASSPHRASES has the passphrases of the key files, one a line. Exit status 1 if
anything is wrong. Python 3.8 and the zstd program; for keys also the package `cryptography`.
"""

import base64
import hashlib
import hmac
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
FINGERPRINT = hashlib.sha256(b"Proxmox Backup Encryption Key Fingerprint").digest()
# It is encrypted for the master key, and stored like something plain.
ESCROW = "rsa-encrypted.key.blob"
SAFE_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*\Z")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")


class Wrong(Exception):
    pass


def read(path):
    with open(path, "rb") as file:
        return file.read()


def open_sealed(key, iv, tag, ciphertext):
    """The plaintext that AES-256-GCM sealed with a nonce of 16 bytes."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        return AESGCM(key).decrypt(iv, ciphertext + tag, None)
    except InvalidTag:
        raise Wrong("the authentication tag does not fit") from None


class Key:
    """An encryption key, and what is derived from it."""

    def __init__(self, key):
        if len(key) != 32:
            raise Wrong("key has another length")
        self.key = key
        self.id_key = hashlib.pbkdf2_hmac("sha256", key, b"_id_key", 10, 32)
        self.fingerprint = hashlib.sha256(FINGERPRINT + self.id_key).hexdigest()
        self.seen = {}

    @classmethod
    def of_file(cls, path, passphrases):
        file = json.loads(read(path))
        data = base64.b64decode(file["data"], validate=True)
        if file["kdf"] is None:
            return cls.checked(cls(data), file)
        if len(data) != 64:
            raise Wrong("key file has a key of another length")
        (kdf, options), = file["kdf"].items()
        salt = base64.b64decode(options["salt"], validate=True)
        for passphrase in passphrases:
            if kdf == "Scrypt":
                cost = {name: options[name] for name in "nrp"}
                derived = hashlib.scrypt(passphrase, salt=salt, maxmem=1 << 30, dklen=32, **cost)
            elif kdf == "PBKDF2":
                derived = hashlib.pbkdf2_hmac("sha256", passphrase, salt, options["iter"], 32)
            else:
                raise Wrong("key file has an unknown key derivation")
            try:
                key = open_sealed(derived, data[:16], data[16:32], data[32:])
            except Wrong:
                continue
            return cls.checked(cls(key), file)
        raise Wrong("key file has another passphrase")

    @staticmethod
    def checked(key, file):
        if "fingerprint" in file and colons(key.fingerprint) != file["fingerprint"]:
            raise Wrong("key file has another fingerprint than its key")
        return key

    def open(self, blob):
        """The decrypted payload of an encrypted blob. Two blobs with one nonce would give the key away."""
        iv, known = blob[12:28], self.seen.get(blob[12:28])
        content = hashlib.sha256(blob).digest()
        if known not in (None, content):
            raise Wrong("two blobs have the same nonce")
        self.seen[iv] = content
        return open_sealed(self.key, iv, blob[28:44], blob[44:])

    def digest(self, plain):
        return hashlib.sha256(plain + self.id_key).hexdigest()

    def signature(self, manifest):
        return hmac.new(self.id_key, canonical(manifest), "sha256").hexdigest()


def colons(digits):
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))


def canonical(manifest):
    """The bytes of a manifest that are signed."""
    known = {name: manifest[name] for name in ("backup-id", "backup-time", "backup-type")}
    names = ("crypt-mode", "csum", "filename", "size")
    known["files"] = [{"crypt-mode": "none", **{n: f[n] for n in names if n in f}} for f in manifest["files"]]
    return json.dumps(known, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def is_sealed(blob):
    return blob[:8] in ENCRYPTED


def decode(blob, key=None):
    """The plaintext of a blob; None if it is encrypted and there is no key."""
    if len(blob) < 12:
        raise Wrong("blob is too short")
    magic, crc = blob[:8], struct.unpack("<I", blob[8:12])[0]
    header = 44 if magic in ENCRYPTED else 12
    payload = blob[header:]
    if len(blob) < header or zlib.crc32(payload) != crc:
        raise Wrong("blob has a wrong checksum")
    if magic in ENCRYPTED:
        if key is None:
            return None
        payload = key.open(blob)
    elif magic not in (PLAIN, ZSTD):
        raise Wrong("blob has an unknown magic number")
    if magic in (PLAIN, ENCRYPTED[0]):
        return payload
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
    def __init__(self, root, restore, keys):
        self.root, self.restore = root, restore
        self.keys = {key.fingerprint: key for key in keys}
        self.signatures = self.decrypted = self.sealed = 0
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
            key = self.authenticated(manifest)
            files = [self.file(path, name, namespace, entry, key) for entry in manifest["files"]]
            self.log(path, name, namespace, manifest, key)
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

    def authenticated(self, manifest):
        """The key of a snapshot, if it is known, after its signature was checked."""
        modes = {entry.get("crypt-mode", "none") for entry in manifest["files"]}
        if len(modes) > 1:
            raise Wrong(f"manifest mixes {sorted(modes)}")
        fingerprint = manifest.get("unprotected", {}).get("key-fingerprint")
        if fingerprint is None:
            if modes - {"none"} or manifest.get("signature"):
                raise Wrong("manifest does not name its key")
            return None
        if not manifest.get("signature"):
            raise Wrong("manifest names a key, and is not signed")
        key = self.keys.get(fingerprint.replace(":", ""))
        if key is None:
            if self.keys:
                raise Wrong(f"there is no key {fingerprint}")
            return None
        if not hmac.compare_digest(key.signature(manifest), manifest["signature"]):
            raise Wrong("manifest has another signature")
        self.signatures += 1
        return key

    def opened(self, blob, key, sealed):
        """The plaintext of a blob that must be encrypted, or must not."""
        if is_sealed(blob) != sealed:
            raise Wrong("is of another crypt mode")
        plain = decode(blob, key)
        if sealed:
            self.sealed += plain is None
            self.decrypted += plain is not None
        return plain

    def log(self, path, snapshot, namespace, manifest, key):
        path = os.path.join(path, "client.log.blob")
        if os.path.exists(path):
            sealed = any(entry.get("crypt-mode") == "encrypt" for entry in manifest["files"])
            plain = self.opened(read(path), key, sealed)
            self.write([plain], snapshot, namespace, {"filename": "client.log.blob"})

    def file(self, path, snapshot, namespace, entry, key):
        name, found = entry["filename"], dict(entry)
        try:
            data = read(os.path.join(path, name))
            if name.endswith(".blob"):
                if (len(data), hashlib.sha256(data).hexdigest()) != (entry["size"], entry["csum"]):
                    raise Wrong("blob is not the one in the manifest")
                sealed = entry.get("crypt-mode") == "encrypt" and name != ESCROW
                parts = [self.opened(data, key, sealed)]
            else:
                size, chunks = index(data, name.endswith(".fidx"))
                if (size, hashlib.sha256(data[4096:]).hexdigest()) != (entry["size"], entry["csum"]):
                    raise Wrong("index is not the one in the manifest")
                found["chunks"] = len(chunks)
                parts = (self.chunk(length, digest, entry, key) for length, digest in chunks)
            self.write(parts, snapshot, namespace, found)
        except (Wrong, OSError) as error:
            self.errors.append(f"{snapshot}/{name}: {error!r}")
        return found

    def chunk(self, length, digest, entry, key):
        blob, sealed = read(os.path.join(self.root, ".chunks", digest[:4], digest)), entry.get("crypt-mode") == "encrypt"
        try:
            plain = self.opened(blob, key, sealed)
        except Wrong as error:
            raise Wrong(f"chunk {digest}: {error}") from None
        if plain is not None:
            have = key.digest(plain) if sealed else hashlib.sha256(plain).hexdigest()
            if (len(plain), have) != (length, digest):
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
    options, values = set(), {"--restore": [], "--key": []}
    while arguments and arguments[-1].startswith("--") or values.keys() & set(arguments):
        option = next((option for option in values if option in arguments), None)
        if option is None:
            options.add(arguments.pop())
            continue
        at = arguments.index(option)
        values[option] += arguments[at + 1 : at + 2]
        del arguments[at : at + 2]
    if len(arguments) != 1 or options - {"--json", "--pbs-accepts"} or len(values["--restore"]) > 1:
        sys.exit(__doc__)
    passphrases = os.environb.get(b"READ_STORE_PASSPHRASES", b"").splitlines()
    try:
        keys = [Key.of_file(path, passphrases) for path in values["--key"]]
    except (Wrong, OSError, KeyError, ValueError) as error:
        sys.exit(f"{error!r}")
    store = Store(arguments[0], (values["--restore"] or [None])[0], keys)
    store.walk()
    if "--pbs-accepts" in options:
        store.errors += pbs_accepts(arguments[0])
    if "--json" in options:
        report = {"snapshots": store.snapshots, "unfinished": store.unfinished, "errors": store.errors}
        report.update(signatures=store.signatures, decrypted=store.decrypted, encrypted=store.sealed)
        print(json.dumps(report, indent=1))
    else:
        print(f"{len(store.snapshots)} snapshots, {len(store.unfinished)} unfinished, {len(store.errors)} errors")
        print(f"{store.signatures} signatures match; blobs: {store.decrypted} decrypted, {store.sealed} still encrypted")
    for error in store.errors[:20]:
        print(error, file=sys.stderr)
    sys.exit(1 if store.errors else 0)


if __name__ == "__main__":
    main(sys.argv[1:])
