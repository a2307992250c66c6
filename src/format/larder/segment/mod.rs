//! Index segments: where chunks are in packs, `.larder/index/<session>-<n>`.
//!
//! A segment is a head, records and a checksum. Integers are little-endian; a checksum of four bytes is a CRC-32 (ISO-HDLC).
//! p, r, d, e and n are the counts of the header, and b is the least number with n ≤ 64 · 2ᵇ.
//!
//! **Head**
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | 0 | 8 | magic | [`MAGIC`] |
//! | 8 | 4 | version | 1 |
//! | 12 | 20 | name | session (16 bytes) and number (4 bytes) of the segment |
//! | 32 | 4 | packs | p, at most [`MAX_PACKS`] |
//! | 36 | 4 | replaced | r, at most [`MAX_REPLACED`] |
//! | 40 | 4 | records | n, at most [`MAX_RECORDS`] |
//! | 44 | 4 | dropped | d, at most [`MAX_PACKS`] |
//! | 48 | 4 | exclusions | e, at most [`MAX_EXCLUSIONS`] |
//! | 52 | 4 | checksum | of everything before |
//! | 56 + 28·i | 20 | pack | session (16 bytes) and number (4 bytes) of a pack; ascending |
//! | 76 + 28·i | 4 | size | of the pack in bytes |
//! | 80 + 28·i | 4 | class | of the pack: 0 data, 1 metadata |
//! | f = 56 + 28·p; f + 20·i | 20 | replaced | session (16 bytes) and number (4 bytes) of a segment that this one replaces; ascending, not itself |
//! | g = f + 20·r; g + 20·i | 20 | dropped | session (16 bytes) and number (4 bytes) of a pack that the collector dropped; ascending |
//! | h = g + 20·d; h + 64·i | 32 | digest | of a chunk with a copy that does not count |
//! | h + 64·i + 32 | 20 | pack | session (16 bytes) and number (4 bytes) of the pack with the copy |
//! | h + 64·i + 52 | 4 | offset | of the blob in the pack |
//! | h + 64·i + 56 | 4 | length | of the blob |
//! | h + 64·i + 60 | 4 | reason | 1 the copy was found bad, 2 it was deleted |
//! | s = h + 64·e; s + 8·i | 4 | end | number of records in the slots 0 to i |
//! | s + 8·i + 4 | 4 | checksum | of the records in slot i, 0 ≤ i < 2ᵇ |
//! | s + 8·2ᵇ | 32 | checksum | SHA-256 of everything before |
//!
//! **Records**, at offset t = s + 8·2ᵇ + 32
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | t + 44·i | 32 | digest | of the chunk; its first b bits are the number of its slot |
//! | t + 44·i + 32 | 4 | pack | its number in the table of packs |
//! | t + 44·i + 36 | 4 | offset | of the blob in the pack |
//! | t + 44·i + 40 | 4 | length | of the blob |
//! | t + 44·n | 32 | checksum | SHA-256 of everything before |
//!
//! A record says where a copy of a chunk is. Exclusions and the names of dropped packs hold for the records of all segments: facts have no
//! order. They are in the head, so the head of a segment and a slot of each are all that a look-up needs.
//!
//! Exclusions ascend by digest, pack, offset and reason. Records ascend by digest, then by pack; a chunk has one record for a pack at most.
//! Each blob lies inside its pack, behind the header of an entry and before the directory. A pack is in the table if all of its chunks were
//! recorded, in this segment or in one that it replaces; records that no longer count are left out, so a pack may have none.
//!
//! # Validation by readers
//! [`Segment::parse`] reads a whole segment and checks everything above.
//!
//! [`SegmentHead::parse`] reads the head alone and checks its own checksum, the counts against the size of the object, and all tables.
//! [`SegmentHead::records`] then reads any run of slots and checks their checksums, and of each record its order, its slot, its pack and its place
//! in the pack. So an answer by ranges, be it a record or the absence of one, rests on bytes whose checksums fit (H199). Damage in other slots
//! and in the last checksum stays unseen. A damaged slot passes for intact once in 2³²; a whole read detects it.
//! Neither way detects a forgery, since no checksum has a key: the digest of a chunk is compared wherever the chunk is decoded.

use bytes::Bytes;
use thiserror::Error;

use crate::format::Digest;
use crate::format::blob::DecodeError;
use crate::format::larder::fields::Fields;
use crate::format::larder::pack::name::{PackName, SessionId};
use crate::format::larder::pack::{MAX_PACK_BYTES, MIN_PACK_BYTES, PackClass, PackEntry};
use crate::format::larder::segment::head::{HeadPart, SegmentHead};
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::records::SlotRecords;

pub(crate) mod builder;
pub(crate) mod head;
pub(crate) mod name;
pub(crate) mod records;
pub(crate) mod slots;

/// The first eight bytes of a segment: those of the SHA-256 of `larder index segment v1.0`.
pub(crate) const MAGIC: [u8; 8] = [0x64, 0xb6, 0x42, 0x94, 0xe9, 0xf4, 0x7b, 0xf3];
/// Maximum number of packs of a segment: 1,048,576.
pub(crate) const MAX_PACKS: u32 = 1 << 20;
/// Maximum number of exclusions of a segment: 1,048,576.
pub(crate) const MAX_EXCLUSIONS: u32 = 1 << 20;
/// Maximum bytes of a segment: about 877 MB.
pub(crate) const MAX_SEGMENT_BYTES: u64 = Layout {
    dropped: MAX_PACKS,
    exclusions: MAX_EXCLUSIONS,
    packs: MAX_PACKS,
    records: MAX_RECORDS,
    replaced: MAX_REPLACED,
}
.segment_bytes();
/// Maximum number of segments that a segment replaces: 65,536.
pub(crate) const MAX_REPLACED: u32 = 1 << 16;
/// Maximum number of records of a segment: 16,777,216.
pub(crate) const MAX_RECORDS: u32 = 1 << 24;

const VERSION: u32 = 1;
const HEADER_BYTES: usize = 56;
const PACK_BYTES: usize = 28;
const NAME_BYTES: usize = 20;
const EXCLUSION_BYTES: usize = 64;
const SLOT_BYTES: usize = 8;
pub(crate) const RECORD_BYTES: usize = 44;
const CHECKSUM_BYTES: usize = 32;
/// Number of records for which a slot is made.
const SLOT_RECORDS: u32 = 64;

/// Bytes of a record.
type RawRecord = [u8; RECORD_BYTES];

/// A pack in the table of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct SegmentPack {
    /// Size of the pack in bytes.
    pub(crate) bytes: u32,
    /// The class of the pack.
    pub(crate) class: PackClass,
    /// The name of the pack.
    pub(crate) name: PackName,
}

impl SegmentPack {
    /// Returns `true` if a pack can have this size.
    fn is_valid(&self) -> bool {
        (MIN_PACK_BYTES..=MAX_PACK_BYTES).contains(&self.bytes)
    }

    fn encode(&self, to: &mut Vec<u8>) {
        to.extend(self.name.session.as_bytes());
        to.extend(self.name.n.to_le_bytes());
        to.extend(self.bytes.to_le_bytes());
        to.extend(u32::from(self.class.code()).to_le_bytes());
    }

    fn parse(row: &[u8; PACK_BYTES]) -> Option<Self> {
        let mut fields = Fields::of(row);
        let name = PackName { session: SessionId::from_bytes(fields.array()?), n: fields.u32()? };
        let (bytes, class) = (fields.u32()?, u16::try_from(fields.u32()?).ok()?);
        let pack = Self { bytes, class: PackClass::of_code(class)?, name };
        pack.is_valid().then_some(pack)
    }
}

/// Reason why a copy of a chunk does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ExclusionReason {
    /// It was found bad.
    Bad,
    /// It was deleted.
    Deleted,
}

impl ExclusionReason {
    const fn code(self) -> u32 {
        match self {
            Self::Bad => 1,
            Self::Deleted => 2,
        }
    }

    const fn of_code(code: u32) -> Option<Self> {
        match code {
            1 => Some(Self::Bad),
            2 => Some(Self::Deleted),
            _ => None,
        }
    }
}

/// A copy of a chunk that does not count, whatever records say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exclusion {
    /// The chunk and its place in the pack.
    pub(crate) entry: PackEntry,
    /// The pack with the copy.
    pub(crate) pack: PackName,
    /// The reason.
    pub(crate) reason: ExclusionReason,
}

impl Exclusion {
    /// The order of exclusions.
    fn order(&self) -> (Digest, PackName, u32, ExclusionReason) {
        (self.entry.digest, self.pack, self.entry.offset, self.reason)
    }

    fn encode(&self, to: &mut Vec<u8>) {
        to.extend(self.entry.digest.as_bytes());
        to.extend(self.pack.session.as_bytes());
        to.extend(self.pack.n.to_le_bytes());
        to.extend(self.entry.offset.to_le_bytes());
        to.extend(self.entry.len.to_le_bytes());
        to.extend(self.reason.code().to_le_bytes());
    }

    fn parse(row: &[u8; EXCLUSION_BYTES]) -> Option<Self> {
        let mut fields = Fields::of(row);
        let digest = fields.digest()?;
        let pack = PackName { session: SessionId::from_bytes(fields.array()?), n: fields.u32()? };
        let entry = PackEntry { digest, offset: fields.u32()?, len: fields.u32()? };
        let reason = ExclusionReason::of_code(fields.u32()?)?;
        entry.fits(MAX_PACK_BYTES).then_some(Self { entry, pack, reason })
    }
}

/// A record of one copy of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentRecord {
    /// The chunk and its place in the pack.
    pub(crate) entry: PackEntry,
    /// Number of the pack in the table of the segment.
    pub(crate) pack: u32,
}

impl SegmentRecord {
    fn encode(&self) -> RawRecord {
        let mut record = [0; RECORD_BYTES];
        record[..32].copy_from_slice(self.entry.digest.as_bytes());
        record[32..36].copy_from_slice(&self.pack.to_le_bytes());
        record[36..40].copy_from_slice(&self.entry.offset.to_le_bytes());
        record[40..].copy_from_slice(&self.entry.len.to_le_bytes());
        record
    }

    fn parse(record: &RawRecord) -> Option<Self> {
        let mut fields = Fields::of(record);
        let (digest, pack) = (fields.digest()?, fields.u32()?);
        let entry = PackEntry { digest, offset: fields.u32()?, len: fields.u32()? };
        Some(Self { entry, pack })
    }
}

/// Sizes of the parts of a segment, which follow from its counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layout {
    dropped: u32,
    exclusions: u32,
    packs: u32,
    records: u32,
    replaced: u32,
}

impl Layout {
    /// Number of leading bits of a digest that are the number of its slot: at most 18.
    const fn slot_bits(self) -> u32 {
        self.records.div_ceil(SLOT_RECORDS).next_power_of_two().trailing_zeros()
    }

    const fn slots(self) -> usize {
        1 << self.slot_bits()
    }

    /// Offset of the names of replaced segments.
    const fn replaced_offset(self) -> usize {
        HEADER_BYTES + PACK_BYTES * self.packs as usize
    }

    /// Offset of the names of dropped packs.
    const fn dropped_offset(self) -> usize {
        self.replaced_offset() + NAME_BYTES * self.replaced as usize
    }

    /// Offset of the exclusions.
    const fn exclusions_offset(self) -> usize {
        self.dropped_offset() + NAME_BYTES * self.dropped as usize
    }

    /// Offset of the slots.
    const fn slots_offset(self) -> usize {
        self.exclusions_offset() + EXCLUSION_BYTES * self.exclusions as usize
    }

    /// Offset of the checksum of the head.
    const fn head_checksum_offset(self) -> usize {
        self.slots_offset() + SLOT_BYTES * self.slots()
    }

    /// Offset of the first record.
    const fn records_offset(self) -> usize {
        self.head_checksum_offset() + CHECKSUM_BYTES
    }

    const fn segment_bytes(self) -> u64 {
        (self.records_offset() + CHECKSUM_BYTES) as u64 + self.records as u64 * RECORD_BYTES as u64
    }

    /// The slot of the chunks with this [`mark`](Digest::mark).
    fn slot_of_mark(self, mark: u64) -> usize {
        let leading = mark.checked_shr(u64::BITS - self.slot_bits()).unwrap_or(0);
        usize::try_from(leading).unwrap_or(0)
    }
}

/// A whole segment that was read and found valid. It takes 44 bytes a record.
#[derive(Clone, Debug)]
pub(crate) struct Segment {
    head: SegmentHead,
    records: SlotRecords,
}

impl Segment {
    /// Reads a segment. Everything is checked here; nothing is copied.
    ///
    /// # Errors
    /// `Checksum`, `Field`, `Magic`, `Truncated`.
    pub(crate) fn parse(name: &SegmentName, segment: &Bytes) -> Result<Self, DecodeError> {
        let have = segment.len() as u64;
        let head = match SegmentHead::parse(name, have, segment)? {
            HeadPart::Head(head) => head,
            HeadPart::Needs { prefix_bytes } => {
                return Err(DecodeError::Truncated { want: prefix_bytes, have });
            }
        };
        let (body, checksum) = segment
            .split_last_chunk::<CHECKSUM_BYTES>()
            .ok_or(DecodeError::Truncated { want: CHECKSUM_BYTES as u64, have })?;
        if Digest::of(body) != Digest::from_bytes(*checksum) {
            return Err(DecodeError::Checksum);
        }
        let records = head.records(0..head.slots(), segment.slice(head.bytes()..body.len()))?;
        Ok(Self { head, records })
    }

    /// The head of the segment.
    pub(crate) fn head(&self) -> &SegmentHead {
        &self.head
    }

    /// All records, in order.
    pub(crate) fn records(&self) -> &SlotRecords {
        &self.records
    }
}

/// Reason why records cannot become a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(crate) enum SegmentWriteError {
    /// A pack, or a chunk in a pack, was added before with other properties.
    #[error("a pack or a chunk is there already, with other properties")]
    Conflict,
    /// A blob does not lie in its pack, or no pack can have this size.
    #[error("a chunk does not lie in its pack")]
    Misplaced,
    /// There are too many packs, records, exclusions or replaced segments.
    #[error("the segment is too large")]
    TooLarge,
}

#[cfg(test)]
mod tests;
