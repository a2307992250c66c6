//! Headers of tar archives: ustar, with pax records for what its fields cannot hold.
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | 0 | 100 | name | bytes |
//! | 100, 108, 116 | 8 | mode, user, group | 7 octal digits, NUL |
//! | 124, 136 | 12 | size, time | 11 octal digits, NUL |
//! | 148 | 8 | sum of all bytes, with spaces here | 6 octal digits, NUL, space |
//! | 156 | 1 | kind | digit or letter |
//! | 157 | 100 | target of a link | bytes |
//! | 257 | 8 | magic | `ustar`, NUL, `00` |
//! | 329, 337 | 8 | major and minor number | 7 octal digits, NUL |
//!
//! A pax record is `LENGTH KEY=VALUE` and a line feed, where the decimal length counts itself. Source: POSIX.1-2024, utility `pax`; the keys
//! `SCHILY.*` are those of star, which GNU tar and libarchive read.

use std::fmt::Write as _;

use crate::pxar::{Acl, AclEntry, DefaultAcl, Device, FileKind, Metadata, Mtime};

/// Length of a block, to which everything is padded.
pub(super) const BLOCK_BYTES: usize = 512;

/// Maximum length of a name in the header.
const NAME_BYTES: usize = 100;

/// An entry to write.
pub(super) struct TarEntry<'a> {
    pub(super) kind: &'a FileKind,
    pub(super) metadata: &'a Metadata,
    /// As it stands in the archive: `./a/b`, with a slash behind a directory.
    pub(super) name: Vec<u8>,
    /// Target of a link.
    pub(super) target: Vec<u8>,
}

impl TarEntry<'_> {
    /// The blocks in front of the contents. `None` if the kind has no form in a tar archive.
    pub(super) fn encode(&self) -> Option<Vec<u8>> {
        let mut records = Records::default();
        let header = self.header(&mut records)?;
        let mut blocks = Vec::new();
        if !records.0.is_empty() {
            blocks.extend(records.header());
            blocks.extend(&records.0);
            pad(&mut blocks);
        }
        blocks.extend(header);
        Some(blocks)
    }

    fn header(&self, records: &mut Records) -> Option<[u8; BLOCK_BYTES]> {
        let none = Device { major: 0, minor: 0 };
        let (letter, size, device) = match self.kind {
            FileKind::File { size } => (b'0', *size, none),
            FileKind::HardLink { .. } => (b'1', 0, none),
            FileKind::Symlink { .. } => (b'2', 0, none),
            FileKind::CharDevice(device) => (b'3', 0, *device),
            FileKind::BlockDevice(device) => (b'4', 0, *device),
            FileKind::Directory => (b'5', 0, none),
            FileKind::Fifo => (b'6', 0, none),
            FileKind::Socket => return None,
        };
        let stat = &self.metadata.stat;
        let mut block = [0; BLOCK_BYTES];
        put_text(&mut block[..NAME_BYTES], &self.name, ("path", records));
        put_number(&mut block[100..108], stat.permissions().into(), None);
        put_number(&mut block[108..116], stat.uid.into(), Some(("uid", records)));
        put_number(&mut block[116..124], stat.gid.into(), Some(("gid", records)));
        put_number(&mut block[124..136], size, Some(("size", records)));
        put_time(&mut block[136..148], stat.mtime, records);
        block[156] = letter;
        put_text(&mut block[157..157 + NAME_BYTES], &self.target, ("linkpath", records));
        block[257..265].copy_from_slice(b"ustar\x0000");
        put_number(&mut block[329..337], device.major, None);
        put_number(&mut block[337..345], device.minor, None);
        if letter != b'1' {
            self.attributes(records);
        }
        seal(&mut block);
        Some(block)
    }

    fn attributes(&self, records: &mut Records) {
        let Metadata { acl, capabilities, xattrs, stat, .. } = self.metadata;
        for xattr in xattrs {
            records.add(&[b"SCHILY.xattr.", &escaped(&xattr.name)[..]].concat(), &xattr.value);
        }
        if let Some(capabilities) = capabilities {
            records.add(b"SCHILY.xattr.security.capability", capabilities);
        }
        if let Some(list) = access_list(acl, stat.mode) {
            records.add(b"SCHILY.acl.access", list.as_bytes());
        }
        if let Some(inherited) = &acl.inherited {
            records.add(b"SCHILY.acl.default", default_list(inherited).as_bytes());
        }
    }
}

/// The name of an attribute as a part of a key, which ends at the first `=`. GNU tar writes and reads this form.
fn escaped(name: &[u8]) -> Vec<u8> {
    let mut escaped = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'%' => escaped.extend_from_slice(b"%25"),
            b'=' => escaped.extend_from_slice(b"%3D"),
            _ => escaped.push(*byte),
        }
    }
    escaped
}

/// Records of a pax header.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    fn add(&mut self, key: &[u8], value: &[u8]) {
        // A space, `=` and the line feed.
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        self.0.extend_from_slice(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend_from_slice(key);
        self.0.push(b'=');
        self.0.extend_from_slice(value);
        self.0.push(b'\n');
    }

    fn header(&self) -> [u8; BLOCK_BYTES] {
        let mut block = [0; BLOCK_BYTES];
        block[..12].copy_from_slice(b"./PaxHeaders");
        put_number(&mut block[100..108], 0o644, None);
        for range in [108..116, 116..124, 329..337, 337..345, 136..148] {
            put_number(&mut block[range], 0, None);
        }
        put_number(&mut block[124..136], self.0.len() as u64, None);
        block[156] = b'x';
        block[257..265].copy_from_slice(b"ustar\x0000");
        seal(&mut block);
        block
    }
}

/// Pads to whole blocks.
pub(super) fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(BLOCK_BYTES), 0);
}

fn put_text(field: &mut [u8], text: &[u8], (key, records): (&str, &mut Records)) {
    if text.len() > field.len() {
        records.add(key.as_bytes(), text);
    }
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// Writes a number in octal digits and a NUL; as a record if it has too many.
fn put_number(field: &mut [u8], number: u64, record: Option<(&str, &mut Records)>) {
    let digits = field.len() - 1;
    let mut text = format!("{number:0digits$o}");
    if text.len() > digits {
        if let Some((key, records)) = record {
            records.add(key.as_bytes(), number.to_string().as_bytes());
        }
        text = "0".repeat(digits);
    }
    field[..digits].copy_from_slice(text.as_bytes());
}

fn put_time(field: &mut [u8], mtime: Mtime, records: &mut Records) {
    let Mtime { seconds, nanoseconds } = mtime;
    let fits = u64::try_from(seconds).ok().filter(|seconds| *seconds < 1 << 33);
    if nanoseconds != 0 || fits.is_none() {
        records.add(b"mtime", decimal_time(mtime).as_bytes());
    }
    put_number(field, fits.unwrap_or(0), None);
}

/// A time as a decimal number. Before 1970 the format counts the nanoseconds from the second before, a number from the one behind.
fn decimal_time(Mtime { seconds, nanoseconds }: Mtime) -> String {
    if seconds < 0 && nanoseconds > 0 {
        format!("-{}.{:09}", (seconds + 1).unsigned_abs(), 1_000_000_000 - nanoseconds)
    } else {
        format!("{seconds}.{nanoseconds:09}")
    }
}

/// Puts the sum into a header.
fn seal(block: &mut [u8; BLOCK_BYTES]) {
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// An access list as text; `None` if the mode says everything.
fn access_list(acl: &Acl, mode: u32) -> Option<String> {
    if acl.users.is_empty() && acl.groups.is_empty() && acl.group_object.is_none() {
        return None;
    }
    let bits = |shift: u32| u64::from(mode >> shift & 7);
    let mut list = DefaultAcl::default();
    (list.user_object, list.other, list.mask) = (Some(bits(6)), Some(bits(0)), Some(bits(3)));
    list.group_object = acl.group_object.or(list.mask);
    (list.users, list.groups) = (acl.users.clone(), acl.groups.clone());
    Some(default_list(&list))
}

fn default_list(list: &DefaultAcl) -> String {
    let mut text = String::new();
    let mut add = |tag: &str, id: Option<u64>, permissions: u64| {
        let letter = |bit: u64, letter: char| if permissions & bit != 0 { letter } else { '-' };
        let (read, write, execute) = (letter(4, 'r'), letter(2, 'w'), letter(1, 'x'));
        let id = id.map(|id| id.to_string()).unwrap_or_default();
        let comma = if text.is_empty() { "" } else { "," };
        let _ = write!(text, "{comma}{tag}:{id}:{read}{write}{execute}");
    };
    let mut one = |tag, permissions: Option<u64>, named: &[AclEntry]| {
        if let Some(permissions) = permissions {
            add(tag, None, permissions);
        }
        for entry in named {
            add(tag, Some(entry.id), entry.permissions);
        }
    };
    one("user", list.user_object, &list.users);
    one("group", list.group_object, &list.groups);
    one("mask", list.mask, &[]);
    one("other", list.other, &[]);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pxar::Stat;

    #[test]
    fn a_record_counts_its_own_length() {
        for length in 0..200 {
            let mut records = Records::default();
            records.add(b"key", &vec![b'x'; length]);
            let text = String::from_utf8(records.0.clone()).unwrap();
            assert_eq!(text.split(' ').next().unwrap().parse(), Ok(records.0.len()), "{text}");
        }
    }

    #[test]
    fn a_header_has_its_fields_and_the_sum_of_its_bytes() {
        let stat =
            Stat { mode: 0o104_755, uid: 1, gid: 8, mtime: Mtime { seconds: 8, nanoseconds: 0 }, flags: 0 };
        let metadata = Metadata::new(stat);
        let (kind, target) = (FileKind::File { size: 9 }, Vec::new());
        let entry = TarEntry { kind: &kind, metadata: &metadata, name: b"./a".to_vec(), target };
        let block = entry.encode().unwrap();
        assert_eq!(block.len(), 512);
        assert_eq!(&block[100..124], b"0004755\x000000001\x000000010\0");
        assert_eq!(&block[124..148], b"00000000011\x0000000000010\0");
        let sum: u32 = block
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { (*byte).into() })
            .sum();
        assert_eq!(&block[148..156], format!("{sum:06o}\0 ").as_bytes());
    }

    #[test]
    fn times_are_decimal_numbers() {
        for (seconds, nanoseconds, text) in [
            (5, 1, "5.000000001"),
            (-1, 750_000_000, "-0.250000000"),
            (-2, 0, "-2.000000000"),
            (-2, 1, "-1.999999999"),
        ] {
            assert_eq!(decimal_time(Mtime { seconds, nanoseconds }), text);
        }
    }
}
