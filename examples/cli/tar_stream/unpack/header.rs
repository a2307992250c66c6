//! The headers of tar entries: v7, ustar, GNU and pax.
//!
//! | offset | bytes | field |
//! |---|---|---|
//! | 0 | 100 | name |
//! | 100 | 8 | mode |
//! | 108 | 8 | uid |
//! | 116 | 8 | gid |
//! | 124 | 12 | size of the data |
//! | 136 | 12 | mtime |
//! | 148 | 8 | sum of all bytes, with blanks in this field |
//! | 156 | 1 | kind |
//! | 157 | 100 | target of a link |
//! | 257 | 8 | `ustar\0` and `00`; GNU: `ustar  \0` |
//! | 329 | 8 + 8 | major and minor number of a device |
//! | 345 | 155 | prefix of the name (ustar) |
//! | 386 | 4 × 24 | offset and length of the first parts of a sparse file (GNU) |
//! | 482 | 1 | blocks with more parts follow (GNU) |
//! | 483 | 12 | size of a sparse file (GNU) |
//!
//! Numbers are octal text or, with the highest bit set, big-endian two's complement.
//! Source: POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".

use std::ops::Range;

use super::source::BLOCK_BYTES;

const CHECKSUM: Range<usize> = 148..156;

/// The kinds of entries that stand for something: all others are about other entries, or are not known.
const KINDS: &[u8] = b"\x0001234567DKLMNSVXgxAEI";

/// Offsets and lengths of the parts of a sparse file that are in the archive.
pub(crate) type Parts = Vec<(u64, u64)>;

/// A header whose checksum fits.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    block: [u8; BLOCK_BYTES],
}

impl Header {
    /// A block as a header; `None` if its checksum does not fit.
    pub(crate) fn parse(block: &[u8; BLOCK_BYTES]) -> Option<Self> {
        let wanted = number(&block[CHECKSUM])?;
        let with_blanks = |at: usize| if CHECKSUM.contains(&at) { b' ' } else { block[at] };
        let unsigned: i64 = (0..BLOCK_BYTES).map(|at| i64::from(with_blanks(at))).sum();
        // As some old programs counted.
        let signed: i64 = (0..BLOCK_BYTES).map(|at| i64::from(with_blanks(at).cast_signed())).sum();
        (wanted == unsigned || wanted == signed).then_some(Self { block: *block })
    }

    /// Returns `true` if it would be taken for a header in the middle of something unknown.
    pub(crate) fn is_plausible(&self) -> bool {
        self.block[257..].starts_with(b"ustar") && KINDS.contains(&self.kind()) && self.size().is_some()
    }

    pub(crate) fn kind(&self) -> u8 {
        self.block[156]
    }

    pub(crate) fn is_gnu(&self) -> bool {
        self.block[257..].starts_with(b"ustar  \0")
    }

    /// The name, as far as the header has it.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(&self.block[..100]);
        let prefix = text(&self.block[345..500]);
        if self.block[257..].starts_with(b"ustar\0") && !prefix.is_empty() {
            [prefix, b"/", name].concat()
        } else {
            name.to_vec()
        }
    }

    /// Returns `true` if the name fills its field, so that there may have been more of it in records before the header.
    pub(crate) fn may_be_cut(&self) -> bool {
        !self.block[..100].contains(&0)
    }

    pub(crate) fn link(&self) -> &[u8] {
        text(&self.block[157..257])
    }

    /// The bytes of data behind the header.
    pub(crate) fn size(&self) -> Option<u64> {
        number(&self.block[124..136]).and_then(|size| size.try_into().ok())
    }

    pub(crate) fn mode(&self) -> Option<u32> {
        number(&self.block[100..108]).and_then(|mode| mode.try_into().ok())
    }

    pub(crate) fn uid(&self) -> Option<i64> {
        number(&self.block[108..116])
    }

    pub(crate) fn gid(&self) -> Option<i64> {
        number(&self.block[116..124])
    }

    pub(crate) fn mtime(&self) -> Option<i64> {
        number(&self.block[136..148])
    }

    pub(crate) fn device(&self) -> Option<(u32, u32)> {
        let part = |range: Range<usize>| number(&self.block[range]).and_then(|part| part.try_into().ok());
        Some((part(329..337)?, part(337..345)?))
    }

    /// The parts of a sparse file in the header, whether more follow, and the size of the file (GNU).
    pub(crate) fn sparse(&self) -> Option<(Parts, bool, u64)> {
        let size = number(&self.block[483..495])?.try_into().ok()?;
        Some((parts(&self.block[386..482])?, self.block[482] != 0, size))
    }
}

/// The parts of a sparse file in a block that follows its header, and whether another one follows (GNU).
pub(crate) fn more_parts(block: &[u8; BLOCK_BYTES]) -> Option<(Parts, bool)> {
    Some((parts(&block[..504])?, block[504] != 0))
}

fn parts(fields: &[u8]) -> Option<Parts> {
    let used = fields.chunks_exact(24).take_while(|part| part[0] != 0);
    let part =
        |part: &[u8]| Some((number(&part[..12])?.try_into().ok()?, number(&part[12..])?.try_into().ok()?));
    used.map(part).collect()
}

fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn number(field: &[u8]) -> Option<i64> {
    if field[0] & 0x80 != 0 {
        // The sign is the bit behind the mark.
        let first = i128::from(field[0] & 0x7f) - if field[0] & 0x40 == 0 { 0 } else { 0x80 };
        // More than fits overflows by steps of a byte.
        let value = field[1..]
            .iter()
            .try_fold(first, |value, byte| value.checked_mul(256)?.checked_add((*byte).into()));
        return value.and_then(|value| value.try_into().ok());
    }
    let digits = std::str::from_utf8(text(field)).ok()?.trim_matches(' ');
    if digits.is_empty() { Some(0) } else { i64::from_str_radix(digits, 8).ok() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_big_endian() {
        for (field, wanted) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"000x644\0", None),
            (b"\x80\0\0\0\0\0\x01\x02", Some(258)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), wanted, "{field:?}");
        }
    }
}
