//! The slots of an index segment.

use std::ops::Range;

use bytes::Bytes;

use crate::format::Digest;
use crate::format::blob::DecodeError;
use crate::format::larder::segment::records::SlotRecords;
use crate::format::larder::segment::{Layout, RECORD_BYTES, RawRecord, SLOT_BYTES, SegmentRecord};

/// Places and checksums of the records of each slot: 8 bytes for 32 to 64 records.
#[derive(Clone, Debug)]
pub(crate) struct Slots {
    layout: Layout,
    rows: Bytes,
}

impl Slots {
    pub(super) fn new(layout: Layout, rows: Bytes) -> Self {
        Self { layout, rows }
    }

    /// The same slots in memory of their own.
    pub(crate) fn compact(&self) -> Self {
        Self { layout: self.layout, rows: Bytes::copy_from_slice(&self.rows) }
    }

    /// Returns `true` if no slot ends before the one before it, and the last one ends with the last record.
    pub(super) fn is_valid(&self) -> bool {
        let ends = (0..=self.len()).map(|slots| self.records_in(slots));
        self.records_in(self.len()) == self.records() && ends.is_sorted()
    }

    /// Number of slots.
    pub(crate) fn len(&self) -> usize {
        self.layout.slots()
    }

    /// Number of records in all slots.
    pub(crate) fn records(&self) -> usize {
        self.layout.records as usize
    }

    /// The slot of a chunk.
    pub(crate) fn slot_of(&self, digest: &Digest) -> usize {
        self.layout.slot_of_mark(digest.mark())
    }

    /// Numbers of the records of a slot.
    pub(crate) fn numbers_of(&self, slot: usize) -> Range<usize> {
        self.records_in(slot)..self.records_in(slot.saturating_add(1))
    }

    /// Place of the records of these slots in the segment. It is empty if they have none.
    pub(crate) fn range_of(&self, slots: &Range<usize>) -> Range<u64> {
        let first = self.layout.records_offset() as u64;
        let at = |slots| first + self.records_in(slots) as u64 * RECORD_BYTES as u64;
        at(slots.start)..at(slots.end.max(slots.start))
    }

    /// Reads the records of these slots. `pack_bytes` has the size of each pack of the segment.
    ///
    /// # Errors
    /// `Checksum`, `Field`, `Truncated`.
    pub(crate) fn read(
        &self,
        slots: Range<usize>,
        bytes: Bytes,
        pack_bytes: impl Fn(u32) -> Option<u32>,
    ) -> Result<SlotRecords, DecodeError> {
        let range = self.range_of(&slots);
        if range.end - range.start != bytes.len() as u64 {
            return Err(DecodeError::Truncated { want: range.end - range.start, have: bytes.len() as u64 });
        }
        let mut rest = bytes.as_chunks().0;
        let (mut offset, mut before) = (range.start, None);
        for slot in slots.start..slots.end.min(self.len()) {
            let count = self.numbers_of(slot).len();
            let (records, behind) = rest.split_at_checked(count).unwrap_or((rest, &[]));
            if crc32fast::hash(records.as_flattened()) != self.checksum(slot) {
                return Err(DecodeError::Checksum);
            }
            for record in records {
                let checked = self.check(slot, record, before, &pack_bytes);
                checked.map_err(|name| DecodeError::Field { offset, name })?;
                (offset, before) = (offset + RECORD_BYTES as u64, Some(record));
            }
            rest = behind;
        }
        Ok(SlotRecords::new(bytes))
    }

    /// Checks a record behind another one. An error names the field.
    fn check(
        &self,
        slot: usize,
        record: &RawRecord,
        before: Option<&RawRecord>,
        pack_bytes: impl Fn(u32) -> Option<u32>,
    ) -> Result<(), &'static str> {
        let parsed = SegmentRecord::parse(record).ok_or("record")?;
        if self.slot_of(&parsed.entry.digest) != slot {
            return Err("slot of a record");
        }
        let order = |record: &SegmentRecord| (record.entry.digest, record.pack);
        if before.and_then(SegmentRecord::parse).is_some_and(|before| order(&before) >= order(&parsed)) {
            return Err("order of the records");
        }
        let pack_bytes = pack_bytes(parsed.pack).ok_or("pack of a record")?;
        if parsed.entry.fits(pack_bytes) { Ok(()) } else { Err("place of a chunk") }
    }

    /// Number of records in the first slots.
    pub(crate) fn records_in(&self, slots: usize) -> usize {
        let last = slots.min(self.len()).checked_sub(1);
        let row = last.and_then(|last| self.row(last));
        row.and_then(|row| row.first_chunk()).map_or(0, |end| u32::from_le_bytes(*end) as usize)
    }

    fn checksum(&self, slot: usize) -> u32 {
        let checksum = self.row(slot).and_then(|row| row.last_chunk());
        checksum.map_or(0, |checksum| u32::from_le_bytes(*checksum))
    }

    fn row(&self, slot: usize) -> Option<&[u8; SLOT_BYTES]> {
        self.rows.as_chunks().0.get(slot)
    }
}
