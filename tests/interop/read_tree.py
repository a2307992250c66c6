#!/usr/bin/env python3
"""Reads a file archive of PBS by the description of its format alone, and compares it with the directory it was made from.

    read_tree.py ARCHIVE [--payload FILE] [--catalog FILE NAME] [--same-as DIR] [--without NAME ...] [--list]

ARCHIVE is the plaintext of a .pxar or, with --payload, of a .mpxar and its .ppxar, as `read_store.py --restore` writes them. Every item is read, from
the first to the last byte, and each row of the lookup tables must be that of what was read. --catalog also checks the catalog, in which
the archive has NAME. --same-as compares names, kinds, modes, owners, times, extended attributes, ACLs, capabilities, inode flags, links and
contents with DIR; --without leaves out paths of DIR that the archive must not have. Exit status 1 if anything is wrong. Only the standard
library is needed.
"""

import fcntl
import mmap
import os
import stat
import struct
import sys

VERSION = 0x730F6C75DF16A40D
PRELUDE = 0xE309D79D9F7B771B
ENTRY = 0xD5956474E588ACEF
FILENAME = 0x16701121063917B3
SYMLINK = 0x27F971E7DBF5DC5F
HARDLINK = 0x51269C8422BD7275
DEVICE = 0x9FC9E906586D5CE9
XATTR = 0x0DAB0229B57DCD03
FCAPS = 0x2DA9DD9DB5F7FB67
PROJECT = 0xE07540E82F7D1CBB
PAYLOAD = 0x28147A1B0B7C1A25
REFERENCE = 0x419D3D6BC4BA977E
GOODBYE = 0x2FEC4FA642D5731D
TAIL = 0xEF5EED5B753E1555
PAYLOAD_BEGIN = 0x834C68C2194A4ED2
PAYLOAD_END = 0x6C72B78B984C81B5
ACL = {
    0x2CE8540A457D55B8: ("user", 2),
    0x136E3ECEB04C03AB: ("group", 2),
    0x10868031E9582876: ("group_obj", 1),
    0xBBBB13415A6896F5: ("default", 4),
    0xC89357B40532CD1F: ("default_user", 2),
    0xF90A8A5816038FFE: ("default_group", 2),
}
ABSENT = (1 << 64) - 1
CATALOG_MAGIC = bytes.fromhex("91fd60f9c46758d5")
KINDS = {
    stat.S_IFDIR: "d",
    stat.S_IFREG: "f",
    stat.S_IFLNK: "l",
    stat.S_IFBLK: "b",
    stat.S_IFCHR: "c",
    stat.S_IFIFO: "p",
    stat.S_IFSOCK: "s",
}
# Bits of the archive, and of Linux.
FLAGS = [
    (1 << 16, 0x20), (1 << 17, 0x80), (1 << 18, 0x04), (1 << 19, 0x800000), (1 << 20, 0x40), (1 << 21, 0x10000),
    (1 << 22, 0x10), (1 << 23, 0x08), (1 << 24, 0x400), (1 << 25, 0x20000000),
]  # fmt: skip
PATTERNS = b".pxarexclude-cli"


class Wrong(Exception):
    pass


def require(condition, what):
    if not condition:
        raise Wrong(what)


def rotated(value, bits):
    return (value << bits | value >> (64 - bits)) & ABSENT


def name_hash(data):
    """SipHash-2-4 with the key of the format."""
    k0, k1 = 0x83AC3F1CFBB450DB, 0xAA4F1B6879369FBD
    v = [k0 ^ 0x736F6D6570736575, k1 ^ 0x646F72616E646F6D, k0 ^ 0x6C7967656E657261, k1 ^ 0x7465646279746573]

    def rounds(count):
        for _ in range(count):
            v[0] = (v[0] + v[1]) & ABSENT
            v[2] = (v[2] + v[3]) & ABSENT
            v[1] = rotated(v[1], 13) ^ v[0]
            v[3] = rotated(v[3], 16) ^ v[2]
            v[0] = rotated(v[0], 32)
            v[2] = (v[2] + v[1]) & ABSENT
            v[0] = (v[0] + v[3]) & ABSENT
            v[1] = rotated(v[1], 17) ^ v[2]
            v[3] = rotated(v[3], 21) ^ v[0]
            v[2] = rotated(v[2], 32)

    padded = data + bytes(-(len(data) + 1) % 8) + bytes([len(data) & 0xFF])
    for (word,) in struct.iter_unpack("<Q", padded):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    v[2] ^= 0xFF
    rounds(4)
    return v[0] ^ v[1] ^ v[2] ^ v[3]


def search_order(count):
    """The rank of each row in the order of hashes, as the rows stand: a complete search tree without pointers."""
    ranks, above, row = [0] * count, [], 0
    for rank in range(count):
        while row < count:
            above.append(row)
            row = 2 * row + 1
        row = above.pop()
        ranks[row] = rank
        row = 2 * row + 2
    return ranks


class Node:
    """A file-system object in an archive."""

    def __init__(self, name, start):
        self.name, self.start = name, start
        self.mode = self.flags = self.uid = self.gid = self.seconds = self.nanos = None
        self.xattrs, self.acl, self.fcaps, self.project = {}, [], None, 0
        self.kind = self.target = self.device = self.contents = self.link = None
        self.children, self.end, self.goodbye, self.first = [], None, None, None


class Archive:
    def __init__(self, data, payload):
        self.data, self.payload = data, payload
        self.patterns = None
        self.references = []

    def header(self, at, end):
        require(at + 16 <= end, f"at {at}: an item ends after its directory")
        kind, size = struct.unpack_from("<QQ", self.data, at)
        require(16 <= size and at + size <= end, f"at {at}: an item of {size} bytes")
        return kind, at + 16, at + size

    def checked_payload(self):
        data = self.payload
        require(len(data) >= 32, "payload is too short")
        require(struct.unpack_from("<QQ", data) == (PAYLOAD_BEGIN, 16), "payload has another beginning")
        require(struct.unpack_from("<QQ", data, len(data) - 16) == (PAYLOAD_END, 16), "payload has another end")

    def read(self):
        """The root, read from the first byte to the last."""
        at, end = 0, len(self.data)
        if self.payload is not None:
            self.checked_payload()
            kind, begin, at = self.header(0, end)
            require(kind == VERSION and self.data[begin:at] == struct.pack("<Q", 2), "the version is not 2")
            kind, begin, after = self.header(at, end)
            if kind == PRELUDE:
                self.patterns, at = self.data[begin:after], after
        root = Node(b"", 0)
        root.first = at
        at = self.entry(root, at, end)
        require(root.kind == "d", "the root is no directory")
        stack = [root]
        while stack:
            kind, begin, after = self.header(at, end)
            directory = stack[-1]
            if kind == GOODBYE:
                directory.goodbye, directory.end = at, after
                at = after
                stack.pop()
                self.goodbye(directory)
                continue
            require(kind == FILENAME, f"at {at}: neither a name nor the end of a directory")
            name = self.data[begin:after]
            require(name[-1:] == b"\0" and b"\0" not in name[:-1], f"at {at}: a name without an end, or with one within")
            name = name[:-1]
            require(name not in (b"", b".", b"..") and b"/" not in name, f"at {at}: the name {name!r}")
            node = Node(name, at)
            node.first = after
            directory.children.append(node)
            kind, begin, link_end = self.header(after, end)
            if kind == HARDLINK:
                distance = struct.unpack_from("<Q", self.data, begin)[0]
                path = self.data[begin + 8 : link_end]
                require(path[-1:] == b"\0" and b"\0" not in path[:-1], f"at {after}: a path without an end")
                node.kind, node.link, at = "h", (path[:-1], node.start - distance), link_end
            else:
                at = self.entry(node, after, end)
                if node.kind == "d":
                    stack.append(node)
            node.end = at
        require(at == end, f"{end - at} bytes after the end of the root")
        require(self.references == sorted(set(self.references)), "the references to contents do not grow")
        return root

    def entry(self, node, at, end):
        kind, begin, after = self.header(at, end)
        require(kind == ENTRY and after - begin == 40, f"at {at}: no entry")
        fields = struct.unpack_from("<QQIIqII", self.data, begin)
        node.mode, node.flags, node.uid, node.gid, node.seconds, node.nanos, zero = fields
        require(zero == 0 and node.nanos < 10**9, f"at {at}: nanoseconds, or padding")
        node.kind = KINDS.get(stat.S_IFMT(node.mode))
        require(node.kind and node.mode >> 16 == 0, f"at {at}: the mode {node.mode:o}")
        last = 0
        while True:
            at = after
            kind, begin, after = self.header(at, end)
            content = self.data[begin : min(after, begin + 70000)]
            order = self.attribute(node, kind, content, begin, after)
            if order is None:
                break
            require(order >= last, f"at {at}: attributes out of order")
            last = order
        return self.closing(node, kind, content, at, begin, after)

    def attribute(self, node, kind, content, begin, after):
        """Takes an attribute, and returns its place in the order; None for anything else."""
        if kind == XATTR:
            name, separator, value = content.partition(b"\0")
            require(separator and after - begin <= 65791 and name not in node.xattrs, f"at {begin}: an extended attribute")
            node.xattrs[name] = value
            return 1
        if kind in ACL:
            what, numbers = ACL[kind]
            require(len(content) == 8 * numbers, f"at {begin}: an ACL item")
            node.acl.append((what, *struct.unpack(f"<{numbers}Q", content)))
            return 2 + list(ACL).index(kind)
        if kind == FCAPS:
            require(node.fcaps is None, f"at {begin}: capabilities twice")
            node.fcaps = content
            return 10
        if kind == PROJECT:
            require(len(content) == 8 and node.project == 0, f"at {begin}: a project")
            node.project = struct.unpack("<Q", content)[0]
            require(node.project != 0, f"at {begin}: project 0 is not stored")
            return 11
        return None

    def closing(self, node, kind, content, at, begin, after):
        """Takes the item that closes an entry, and returns where the next one is."""
        if node.kind == "f":
            if self.payload is None:
                require(kind == PAYLOAD, f"at {at}: no contents")
                node.contents = (self.data, after - begin, begin)
            else:
                require(kind == REFERENCE and len(content) == 16, f"at {at}: no reference to contents")
                node.contents = self.referenced(*struct.unpack("<QQ", content))
        elif node.kind == "l":
            require(kind == SYMLINK and content[-1:] == b"\0", f"at {at}: no target")
            node.target = content[:-1]
            require(node.target and b"\0" not in node.target and len(node.target) <= 4096, f"at {at}: the target")
        elif node.kind in "bc":
            require(kind == DEVICE and len(content) == 16, f"at {at}: no device numbers")
            node.device = struct.unpack("<QQ", content)
        else:
            # A directory, fifo or socket: the next item is of the next entry.
            require(kind in (FILENAME, GOODBYE), f"at {at}: a {kind:x} in an entry of kind {node.kind}")
            return at
        return after

    def referenced(self, offset, size):
        require(16 <= offset and offset + 16 + size <= len(self.payload) - 16, "a reference leads out of the payload")
        require(struct.unpack_from("<QQ", self.payload, offset) == (PAYLOAD, 16 + size), f"the payload has no file at {offset}")
        self.references.append(offset)
        return (self.payload, size, offset + 16)

    def goodbye(self, directory):
        """Checks the lookup table of a directory against what was read."""
        at = directory.goodbye
        content = self.data[at + 16 : directory.end]
        require(len(content) == 24 * (len(directory.children) + 1), f"at {at}: a table of another length")
        rows = list(struct.iter_unpack("<QQQ", content))
        require(rows.pop() == (TAIL, at - (directory.first if directory.name else 0), 16 + len(content)), f"at {at}: the last row")
        sizes = {at - offset: size for _, offset, size in rows}
        wanted = []
        for child in directory.children:
            size, end = sizes.get(child.start), child.end - child.start
            # A file with contents elsewhere counts with or without them.
            if self.payload is None or child.kind != "f" or size != end + child.contents[1]:
                size = end
            wanted.append((name_hash(child.name), at - child.start, size))
        wanted.sort()
        require(rows == [wanted[rank] for rank in search_order(len(wanted))], f"at {at}: other rows than children")
        names = [child.name for child in directory.children if directory.name or child.name != PATTERNS]
        require(all(a < b for a, b in zip(names, names[1:])), f"at {at}: names out of order, or twice")

    def links(self, root):
        """Checks that each hard link leads to an earlier file, by its path and by its distance."""
        by_path, files = {}, {}
        for path, node in walk(root):
            by_path[path] = node
            if node.kind == "f":
                files[node.start] = node
            if node.link:
                target, start = node.link
                require(by_path.get(target) is files.get(start) is not None, f"{path!r} is a link to {target!r}")


def walk(root):
    stack = [(b"", root)]
    while stack:
        path, node = stack.pop()
        yield path, node
        stack += [(path + b"/" + child.name if path else child.name, child) for child in reversed(node.children)]


class Catalog:
    def __init__(self, data):
        self.data = data
        require(data[:8] == CATALOG_MAGIC and len(data) >= 18, "catalog has another beginning")

    def number(self, at, signed=False):
        value = shift = 0
        while True:
            byte = self.data[at]
            at += 1
            if signed and byte == 0 and shift:
                return at, -value
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return at, value

    def block(self, start):
        at, length = self.number(start)
        end = at + length
        at, count = self.number(at)
        for _ in range(count):
            kind = chr(self.data[at])
            at, length = self.number(at + 1)
            name = self.data[at : at + length]
            at += length
            more = None
            if kind == "d":
                at, distance = self.number(at)
                require(0 < distance <= start - 8, f"a directory of the catalog leads from {start} back by {distance}")
                more = start - distance
            elif kind == "f":
                at, size = self.number(at)
                at, seconds = self.number(at, signed=True)
                more = (size, seconds)
            yield kind, name, more
        require(at == end, f"a block of the catalog at {start} has another length")

    def check(self, archive_name, root):
        archives = list(self.block(struct.unpack("<Q", self.data[-8:])[0]))
        found = [more for kind, name, more in archives if (kind, name) == ("d", archive_name)]
        require(len(found) == 1, f"the catalog has {[name for _, name, _ in archives]}")
        pending = [(root, found[0])]
        while pending:
            directory, start = pending.pop()
            wanted = []
            for child in directory.children:
                more = (child.contents[1], child.seconds) if child.kind == "f" else None
                wanted.append((child.kind, child.name, more))
            blocks = []
            rows = []
            for kind, name, more in self.block(start):
                blocks += [more] if kind == "d" else []
                rows.append((kind, name, None if kind == "d" else more))
            require(rows == wanted, f"the catalog has other entries than the directory {directory.name!r}")
            pending += zip((child for child in directory.children if child.kind == "d"), blocks)


class Source:
    """What a directory has, in the terms of an archive."""

    def __init__(self, top, without):
        self.top, self.without = top, without
        self.inodes = {}

    def compare(self, root):
        pending = [(b"", root)]
        count = 0
        while pending:
            path, node = pending.pop()
            place = os.path.join(self.top, path) if path else self.top
            self.same(path, place, node)
            count += 1
            if node.kind != "d":
                continue
            below = lambda name: os.path.join(path, name)  # noqa: E731
            have = sorted(name for name in os.listdir(place) if below(name) not in self.without)
            names = [child.name for child in node.children if path or child.name != PATTERNS]
            require(names == have, f"{path!r} has {sorted(set(have) ^ set(names))} in one place only")
            pending += [(below(child.name), child) for child in node.children if path or child.name != PATTERNS]
        return count

    def same(self, path, place, node):
        info = os.lstat(place)
        inode = (info.st_dev, info.st_ino)
        if node.kind == "h":
            target = os.lstat(os.path.join(self.top, node.link[0]))
            return require((target.st_dev, target.st_ino) == inode, f"{path!r} is a link to another file")
        kind = KINDS[stat.S_IFMT(info.st_mode)]
        device = (os.major(info.st_rdev), os.minor(info.st_rdev)) if kind in "bc" else None
        target = os.readlink(place) if kind == "l" else None
        have = (kind, info.st_mode, info.st_uid, info.st_gid, *divmod(info.st_mtime_ns, 10**9), target, device)
        want = (node.kind, node.mode, node.uid, node.gid, node.seconds, node.nanos, node.target, node.device)
        require(have == want, f"{path!r} is {have}, and in the archive {want}")
        if kind in "df":
            self.same_attributes(path, place, node)
        if kind == "f":
            data, size, at = node.contents
            require(info.st_size == size, f"{path!r} has {info.st_size} bytes, and in the archive {size}")
            with open(place, "rb") as file:
                for begin in range(at, at + size, 1 << 20):
                    piece = data[begin : min(begin + (1 << 20), at + size)]
                    require(file.read(len(piece)) == piece, f"{path!r} has other contents")
            require(inode not in self.inodes, f"{path!r} is stored twice, and is {self.inodes.get(inode)!r}")
            self.inodes[inode] = path

    def same_attributes(self, path, place, node):
        flags = 0
        handle = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            linux = struct.unpack_from("<I", fcntl.ioctl(handle, 0x80086601, bytes(8)))[0]
            flags = sum(ours for ours, theirs in FLAGS if linux & theirs)
        except OSError:
            pass
        finally:
            os.close(handle)
        require(flags == node.flags, f"{path!r} has the flags {flags:x}, and in the archive {node.flags:x}")
        values, acl, fcaps = {}, [], None
        for name in map(os.fsencode, os.listxattr(place)):
            value = os.getxattr(place, name)
            if name == b"security.capability":
                fcaps = value
            elif name == b"system.posix_acl_access":
                acl += access_items(value)
            elif name == b"system.posix_acl_default":
                acl += default_items(value)
            elif name.startswith((b"user.", b"trusted.")) or name == b"security.NTACL":
                values[name] = value
        order = [what for what, _ in ACL.values()]
        acl.sort(key=lambda item: order.index(item[0]))
        have, want = (values, acl, fcaps), (node.xattrs, node.acl, node.fcaps)
        require(have == want, f"{path!r} has the attributes {have}, and in the archive {want}")


def rows_of(value):
    require(struct.unpack_from("<I", value)[0] == 2, "an ACL of another version")
    return [(tag, number, rights) for tag, rights, number in struct.iter_unpack("<HHI", value[4:])]


def named(rows, tag, what):
    return [(what, number, rights) for number, rights in sorted((n, r) for t, n, r in rows if t == tag)]


def access_items(value):
    rows = rows_of(value)
    items = named(rows, 2, "user") + named(rows, 8, "group")
    if any(tag == 0x10 for tag, _, _ in rows):
        items += [("group_obj", rights) for tag, _, rights in rows if tag == 4]
    return items


def default_items(value):
    rows = rows_of(value)
    base = {tag: rights for tag, _, rights in rows}
    whole = ("default", *(base.get(tag, ABSENT) for tag in (1, 4, 0x20, 0x10)))
    return [whole] + named(rows, 2, "default_user") + named(rows, 8, "default_group")


def mapped(path):
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            raise Wrong(f"{path} is empty")
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def main(arguments):
    archive, payload, catalog, same_as, without, shown = None, None, None, None, set(), False
    arguments = list(arguments)
    while arguments:
        word = arguments.pop(0)
        if word == "--payload":
            payload = arguments.pop(0)
        elif word == "--catalog":
            catalog = arguments.pop(0), os.fsencode(arguments.pop(0))
        elif word == "--same-as":
            same_as = os.fsencode(arguments.pop(0))
        elif word == "--without":
            without.add(os.fsencode(arguments.pop(0)))
        elif word == "--list":
            shown = True
        elif archive is None and not word.startswith("--"):
            archive = word
        else:
            sys.exit(__doc__)
    if archive is None:
        sys.exit(__doc__)
    try:
        reader = Archive(mapped(archive), mapped(payload) if payload else None)
        root = reader.read()
        reader.links(root)
        if catalog:
            Catalog(mapped(catalog[0])).check(catalog[1], root)
        count = Source(same_as, without).compare(root) if same_as else sum(1 for _ in walk(root))
    except (Wrong, OSError, IndexError, struct.error) as error:
        sys.exit(f"{archive}: {error}")
    if shown:
        for path, node in walk(root):
            size = node.contents[1] if node.contents else "-"
            print(node.kind, f"{node.mode or 0:o}", size, os.fsdecode(path) or "/")
    print(f"{count} entries" + (", the same as the directory" if same_as else ""))


if __name__ == "__main__":
    main(sys.argv[1:])
