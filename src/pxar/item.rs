//! Items, of which an archive consists.
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | 0 | 8 | type | u64, see below |
//! | 8 | 8 | size | u64, the whole item with these 16 bytes |
//! | 16 | size − 16 | content | by type |
//!
//! | item | type | content in bytes | content |
//! |---|---|---|---|
//! | `FORMAT_VERSION` | `730f6c75df16a40d` | 8 | version; 2 for the split form, absent in the unified one |
//! | PRELUDE | `e309d79d9f7b771b` | any | JSON with the exclude patterns, after `FORMAT_VERSION` only |
//! | ENTRY | `d5956474e588acef` | 40 | mode u64, flags u64, uid u32, gid u32, mtime i64, nanoseconds u32, zero u32 |
//! | `ENTRY_V1` | `11da850a1c1cceff` | 32 | mode u64, flags u64, uid u32, gid u32, mtime in nanoseconds u64 |
//! | FILENAME | `16701121063917b3` | 2 … 4097 | name, NUL |
//! | SYMLINK | `27f971e7dbf5dc5f` | 2 … 4097 | target, NUL |
//! | HARDLINK | `51269c8422bd7275` | 10 … 4105 | distance back to the FILENAME of the target u64, its path, NUL |
//! | DEVICE | `9fc9e906586d5ce9` | 16 | major u64, minor u64 |
//! | XATTR | `0dab0229b57dcd03` | ≤ 65791 | name, NUL, value |
//! | `ACL_USER` | `2ce8540a457d55b8` | 16 | id u64, permissions u64 |
//! | `ACL_GROUP` | `136e3eceb04c03ab` | 16 | id u64, permissions u64 |
//! | `ACL_GROUP_OBJ` | `10868031e9582876` | 8 | permissions u64 |
//! | `ACL_DEFAULT` | `bbbb13415a6896f5` | 32 | permissions of owner, group, others, mask, each u64; all ones if absent |
//! | `ACL_DEFAULT_USER` | `c89357b40532cd1f` | 16 | id u64, permissions u64 |
//! | `ACL_DEFAULT_GROUP` | `f90a8a5816038ffe` | 16 | id u64, permissions u64 |
//! | FCAPS | `2da9dd9db5f7fb67` | ≤ 65791 | value of `security.capability` |
//! | `QUOTA_PROJID` | `e07540e82f7d1cbb` | 8 | project u64 |
//! | PAYLOAD | `28147a1b0b7c1a25` | size of the file | contents of the file |
//! | `PAYLOAD_REF` | `419d3d6bc4ba977e` | 16 | position of the PAYLOAD in the payload stream u64, size of the file u64 |
//! | GOODBYE | `2fec4fa642d5731d` | 24·(n+1) | lookup table of a directory, see `goodbye` |
//!
//! Three values are no types of items: a payload stream starts with a header of type `834c68c2194a4ed2` and ends with one of type
//! `6c72b78b984c81b5`, both without content; `ef5eed5b753e1555` marks the last row of a table. Integers are little-endian.
//!
//! Source: specification of the format, made from observed archives. Each type is the hash of a label, see `hash`.

/// Bytes of the header of an item.
pub(super) const HEADER_BYTES: usize = 16;

/// Maximum length of a name, of a path in a hard link, and of the target of a symbolic link, in bytes.
pub(super) const MAX_NAME_BYTES: usize = 4096;

/// Maximum length of a head. Only an entry with thousands of large attributes would exceed it.
pub(super) const MAX_HEAD_BYTES: usize = 16 << 20;

/// Maximum number of extended attributes of an entry. Linux lists at most half as many of a file.
pub(super) const MAX_XATTRS: usize = 1 << 16;

/// Bytes of memory that an extended attribute takes beside its name and its value, which may be tiny.
pub(super) const XATTR_BYTES: usize = 256;

/// Maximum number of directories on the way to an entry, the root included.
pub(crate) const MAX_DEPTH: usize = 1024;

/// Maximum length of a path. Each entry has its own, so that it limits the memory and time of hostile archives.
pub(crate) const MAX_PATH_BYTES: usize = 64 << 10;

/// Maximum content of an item with an attribute: a name of 255 bytes and a value of 64 KiB.
pub(super) const MAX_ATTRIBUTE_BYTES: usize = 255 + 65_536;

pub(super) const ACL_DEFAULT: u64 = 0xbbbb_1341_5a68_96f5;
pub(super) const ACL_DEFAULT_GROUP: u64 = 0xf90a_8a58_1603_8ffe;
pub(super) const ACL_DEFAULT_USER: u64 = 0xc893_57b4_0532_cd1f;
pub(super) const ACL_GROUP: u64 = 0x136e_3ece_b04c_03ab;
pub(super) const ACL_GROUP_OBJ: u64 = 0x1086_8031_e958_2876;
pub(super) const ACL_USER: u64 = 0x2ce8_540a_457d_55b8;
pub(super) const DEVICE: u64 = 0x9fc9_e906_586d_5ce9;
pub(super) const ENTRY: u64 = 0xd595_6474_e588_acef;
pub(super) const ENTRY_V1: u64 = 0x11da_850a_1c1c_ceff;
pub(super) const FCAPS: u64 = 0x2da9_dd9d_b5f7_fb67;
pub(super) const FILENAME: u64 = 0x1670_1121_0639_17b3;
pub(super) const FORMAT_VERSION: u64 = 0x730f_6c75_df16_a40d;
pub(super) const GOODBYE: u64 = 0x2fec_4fa6_42d5_731d;
pub(super) const HARDLINK: u64 = 0x5126_9c84_22bd_7275;
pub(super) const PAYLOAD: u64 = 0x2814_7a1b_0b7c_1a25;
pub(super) const PAYLOAD_REF: u64 = 0x419d_3d6b_c4ba_977e;
pub(super) const PRELUDE: u64 = 0xe309_d79d_9f7b_771b;
pub(super) const QUOTA_PROJID: u64 = 0xe075_40e8_2f7d_1cbb;
pub(super) const SYMLINK: u64 = 0x27f9_71e7_dbf5_dc5f;
pub(super) const XATTR: u64 = 0x0dab_0229_b57d_cd03;

/// Type of the first header of a payload stream.
pub(super) const PAYLOAD_START: u64 = 0x834c_68c2_194a_4ed2;
/// Type of the last header of a payload stream.
pub(super) const PAYLOAD_TAIL: u64 = 0x6c72_b78b_984c_81b5;
/// Hash field of the last row of a table.
pub(super) const GOODBYE_TAIL: u64 = 0xef5e_ed5b_753e_1555;

/// In an `ACL_DEFAULT`: the list has no such entry.
pub(super) const NO_PERMISSIONS: u64 = u64::MAX;

/// Type bits of a mode.
pub(super) const TYPE_MASK: u32 = 0o170_000;
pub(super) const SOCKET: u32 = 0o140_000;
pub(super) const SYMBOLIC_LINK: u32 = 0o120_000;
pub(super) const REGULAR: u32 = 0o100_000;
pub(super) const BLOCK_DEVICE: u32 = 0o060_000;
pub(super) const DIRECTORY: u32 = 0o040_000;
pub(super) const CHAR_DEVICE: u32 = 0o020_000;
pub(super) const FIFO: u32 = 0o010_000;

/// Version of the split form.
pub(super) const SPLIT_VERSION: u64 = 2;

/// The header of an item.
pub(super) const fn header(item: u64, size: u64) -> [u8; HEADER_BYTES] {
    (item as u128 | (size as u128) << 64).to_le_bytes()
}

/// Returns `true` if an entry may have this name: not empty, neither `.` nor `..`, without `/` and NUL, and at most 4096 bytes.
pub(super) fn is_name(name: &[u8]) -> bool {
    !matches!(name, b"" | b"." | b"..")
        && name.len() <= MAX_NAME_BYTES
        && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// Returns `true` if a hard link may have this target: names with a slash between them, and at most 4096 bytes.
pub(super) fn is_link_path(path: &[u8]) -> bool {
    path.len() <= MAX_NAME_BYTES && path.split(|byte| *byte == b'/').all(is_name)
}

/// Returns `true` if a symbolic link may have this target: not empty, without NUL, and at most 4096 bytes.
pub(super) fn is_symlink_target(target: &[u8]) -> bool {
    !target.is_empty() && target.len() <= MAX_NAME_BYTES && !target.contains(&0)
}
