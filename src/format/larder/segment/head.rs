//! The head of an index segment.

use std::ops::Range;

use bytes::Bytes;

use crate::format::Digest;
use crate::format::blob::DecodeError;
use crate::format::larder::fields::Fields;
use crate::format::larder::pack::name::{PackName, SessionId};
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::records::SlotRecords;
use crate::format::larder::segment::slots::Slots;
use crate::format::larder::segment::{
    EXCLUSION_BYTES, Exclusion, HEADER_BYTES, Layout, MAGIC, MAX_EXCLUSIONS, MAX_PACKS, MAX_RECORDS,
    MAX_REPLACED, NAME_BYTES, PACK_BYTES, SegmentPack, VERSION,
};

/// Contents of the first bytes of a segment.
#[derive(Clone, Debug)]
pub(crate) enum HeadPart {
    /// The whole head.
    Head(SegmentHead),
    /// Only a part of the head.
    Needs {
        /// Number of bytes at the start of the segment that contain it.
        prefix_bytes: u64,
    },
}

/// The head of a segment: everything but the records. It keeps the bytes that it was read from.
#[derive(Clone, Debug)]
pub(crate) struct SegmentHead {
    bytes: Bytes,
    layout: Layout,
    name: SegmentName,
    slots: Slots,
}

impl SegmentHead {
    /// Reads the first bytes of a segment of this size. Nothing is allocated.
    ///
    /// # Errors
    /// `Checksum`, `Field`, `Magic`, `Truncated`.
    pub(crate) fn parse(
        name: &SegmentName,
        segment_bytes: u64,
        prefix: &Bytes,
    ) -> Result<HeadPart, DecodeError> {
        let layout = match prefix.first_chunk() {
            Some(header) => parse_header(name, header)?,
            None if segment_bytes > prefix.len() as u64 => {
                return Ok(HeadPart::Needs { prefix_bytes: segment_bytes.min(HEADER_BYTES as u64) });
            }
            None => return Err(DecodeError::Truncated { want: HEADER_BYTES as u64, have: segment_bytes }),
        };
        let want = layout.segment_bytes();
        if want != segment_bytes {
            return Err(DecodeError::Truncated { want, have: segment_bytes });
        }
        let Some(head) = prefix.get(..layout.records_offset()) else {
            return Ok(HeadPart::Needs { prefix_bytes: layout.records_offset() as u64 });
        };
        let (checked, checksum) = head.split_at(layout.head_checksum_offset());
        if Digest::of(checked).as_bytes() != checksum {
            return Err(DecodeError::Checksum);
        }
        let rows = prefix.slice(layout.slots_offset()..layout.head_checksum_offset());
        let bytes = prefix.slice(..head.len());
        let head = Self { bytes, layout, name: *name, slots: Slots::new(layout, rows) };
        head.check_tables()?;
        Ok(HeadPart::Head(head))
    }

    /// The name of the segment.
    pub(crate) fn name(&self) -> SegmentName {
        self.name
    }

    /// Bytes of the head.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All packs, in the order of their numbers.
    pub(crate) fn packs(&self) -> impl Iterator<Item = SegmentPack> {
        self.pack_rows().iter().filter_map(SegmentPack::parse)
    }

    /// A pack by its number.
    pub(crate) fn pack(&self, number: u32) -> Option<SegmentPack> {
        self.pack_rows().get(number as usize).and_then(SegmentPack::parse)
    }

    /// The segments that this one replaces.
    pub(crate) fn replaced(&self) -> impl Iterator<Item = SegmentName> {
        self.replaced_rows().iter().filter_map(parse_name)
    }

    /// The packs that the collector dropped.
    pub(crate) fn dropped(&self) -> impl Iterator<Item = PackName> {
        let names = self.dropped_rows().iter().filter_map(parse_name);
        names.map(|SegmentName { session, n }| PackName { session, n })
    }

    /// The copies that do not count.
    pub(crate) fn exclusions(&self) -> impl Iterator<Item = Exclusion> {
        self.exclusion_rows().iter().filter_map(Exclusion::parse)
    }

    /// Number of slots.
    pub(crate) fn slots(&self) -> usize {
        self.slots.len()
    }

    /// The slots, which have no records of their own.
    pub(crate) fn slot_table(&self) -> &Slots {
        &self.slots
    }

    /// Place of the records of these slots in the segment. It is empty if they have none.
    pub(crate) fn range_of(&self, slots: &Range<usize>) -> Range<u64> {
        self.slots.range_of(slots)
    }

    /// Reads the records of these slots; the bytes are those of [`range_of`](Self::range_of).
    ///
    /// # Errors
    /// `Checksum`, `Field`, `Truncated`.
    pub(crate) fn records(&self, slots: Range<usize>, bytes: Bytes) -> Result<SlotRecords, DecodeError> {
        self.slots.read(slots, bytes, |pack| self.pack(pack).map(|pack| pack.bytes))
    }

    fn check_tables(&self) -> Result<(), DecodeError> {
        let invalid = |offset: usize, name| DecodeError::Field { offset: offset as u64, name };
        let mut before = None;
        for (number, row) in self.pack_rows().iter().enumerate() {
            let offset = HEADER_BYTES + number * PACK_BYTES;
            let name = SegmentPack::parse(row).ok_or(invalid(offset, "pack"))?.name;
            if before.is_some_and(|before| before >= name) {
                return Err(invalid(offset, "order of the packs"));
            }
            before = Some(name);
        }
        let offset = self.layout.replaced_offset();
        let is_ascending = self.replaced().is_sorted_by(|one, next| one < next);
        if !is_ascending || self.replaced().any(|replaced| replaced == self.name) {
            return Err(invalid(offset, "replaced segments"));
        }
        let mut before = None;
        for (number, row) in self.exclusion_rows().iter().enumerate() {
            let offset = self.layout.exclusions_offset() + number * EXCLUSION_BYTES;
            let order = Exclusion::parse(row).ok_or(invalid(offset, "exclusion"))?.order();
            if before.is_some_and(|before| before >= order) {
                return Err(invalid(offset, "order of the exclusions"));
            }
            before = Some(order);
        }
        let is_valid = self.slots.is_valid();
        is_valid.then_some(()).ok_or(invalid(self.layout.slots_offset(), "ends of the slots"))
    }

    fn pack_rows(&self) -> &[[u8; PACK_BYTES]] {
        self.rows(HEADER_BYTES..self.layout.replaced_offset())
    }

    fn replaced_rows(&self) -> &[[u8; NAME_BYTES]] {
        self.rows(self.layout.replaced_offset()..self.layout.dropped_offset())
    }

    fn dropped_rows(&self) -> &[[u8; NAME_BYTES]] {
        self.rows(self.layout.dropped_offset()..self.layout.exclusions_offset())
    }

    fn exclusion_rows(&self) -> &[[u8; EXCLUSION_BYTES]] {
        self.rows(self.layout.exclusions_offset()..self.layout.slots_offset())
    }

    fn rows<const N: usize>(&self, place: Range<usize>) -> &[[u8; N]] {
        self.bytes.get(place).unwrap_or_default().as_chunks().0
    }
}

fn parse_header(name: &SegmentName, header: &[u8; HEADER_BYTES]) -> Result<Layout, DecodeError> {
    let invalid = |offset, name| move || DecodeError::Field { offset, name };
    let mut fields = Fields::of(header);
    fields.array().filter(|magic| *magic == MAGIC).ok_or(DecodeError::Magic)?;
    if header.last_chunk().copied().map(u32::from_le_bytes)
        != Some(crc32fast::hash(&header[..HEADER_BYTES - 4]))
    {
        return Err(DecodeError::Checksum);
    }
    fields.u32().filter(|version| *version == VERSION).ok_or_else(invalid(8, "version"))?;
    let own = fields.array().as_ref().and_then(parse_name);
    own.filter(|own| own == name).ok_or_else(invalid(12, "name of the segment"))?;
    let mut count = |most: u32| fields.u32().filter(|count| *count <= most);
    let packs = count(MAX_PACKS).ok_or_else(invalid(32, "number of packs"))?;
    let replaced = count(MAX_REPLACED).ok_or_else(invalid(36, "number of replaced segments"))?;
    let records = count(MAX_RECORDS).ok_or_else(invalid(40, "number of records"))?;
    let dropped = count(MAX_PACKS).ok_or_else(invalid(44, "number of dropped packs"))?;
    let exclusions = count(MAX_EXCLUSIONS).ok_or_else(invalid(48, "number of exclusions"))?;
    Ok(Layout { dropped, exclusions, packs, records, replaced })
}

fn parse_name(row: &[u8; NAME_BYTES]) -> Option<SegmentName> {
    let mut fields = Fields::of(row);
    Some(SegmentName { session: SessionId::from_bytes(fields.array()?), n: fields.u32()? })
}
