//! A segment in a view: its facts in memory, and its records there or in the store.
//!
//! A segment takes 44 bytes a record, or 8 bytes for 32 to 64 records if they are read by range. A look-up of a chunk needs one slot of each
//! segment of the second kind. [`Packs::state_of`](crate::packs::Packs::state_of) reads the slots that the view lacks, and returns the state
//! once it has them all, so that whatever follows under the lock of the state sees every copy.

use std::num::NonZero;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use lru::LruCache;

use crate::format::Digest;
use crate::format::blob::DecodeError;
use crate::format::larder::pack::MAX_PACK_BYTES;
use crate::format::larder::pack::name::PackName;
use crate::format::larder::segment::head::SegmentHead;
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::records::SlotRecords;
use crate::format::larder::segment::slots::Slots;
use crate::format::larder::segment::{Exclusion, RECORD_BYTES, SegmentRecord};
use crate::packs::place::Place;

/// Number of slots that are kept, each of about two kilobytes.
const KEPT_SLOTS: usize = 2048;
/// Bytes of records below which a segment stays in memory.
const SMALLEST_BYTES: usize = 256 << 10;

/// Memory for records.
#[derive(Clone, Copy, Debug)]
pub(super) struct IndexMemory {
    /// Bytes above which the records of large segments are read by range.
    pub(super) bytes: usize,
}

impl IndexMemory {
    /// Bytes of the records of the smallest segment that is read by range: to read many small ones for each look-up takes longer than they
    /// are worth.
    pub(super) fn smallest(self) -> usize {
        SMALLEST_BYTES.min(self.bytes / 16).max(1)
    }
}

/// A segment, with the numbers that its packs have in this view.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) facts: Arc<Facts>,
    name: SegmentName,
    pub(super) numbers: Arc<[u32]>,
    /// All records; `None` if they are read by range.
    records: Option<SlotRecords>,
    slots: Slots,
}

/// The facts of a segment, without its records.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) dropped: Vec<PackName>,
    pub(super) exclusions: Vec<Exclusion>,
    pub(super) replaced: Vec<SegmentName>,
}

/// A run of slots to read.
#[derive(Clone, Debug)]
pub(super) struct SlotRead {
    pub(super) name: SegmentName,
    packs: usize,
    slots: Range<usize>,
    table: Slots,
}

/// Records of a run of slots.
#[derive(Clone, Debug)]
pub(super) struct SlotRun {
    pub(super) read: SlotRead,
    pub(super) records: SlotRecords,
}

/// Slots that were read.
#[derive(Debug)]
pub(super) struct SlotCache(LruCache<(SegmentName, usize), SlotRecords>);

impl Known {
    /// A segment with this head. Records that are not given are read by range.
    pub(super) fn new(head: &SegmentHead, numbers: Arc<[u32]>, records: Option<SlotRecords>) -> Self {
        let facts = Facts {
            dropped: head.dropped().collect(),
            exclusions: head.exclusions().collect(),
            replaced: head.replaced().collect(),
        };
        let slots = head.slot_table();
        // Records in memory are a part of the whole segment, like these.
        let slots = if records.is_some() { slots.clone() } else { slots.compact() };
        Self { facts: Arc::new(facts), name: head.name(), numbers, records, slots }
    }

    pub(super) fn name(&self) -> SegmentName {
        self.name
    }

    /// Number of all records.
    pub(super) fn len(&self) -> usize {
        self.slots.records()
    }

    /// Bytes of the records in memory.
    pub(super) fn bytes_in_memory(&self) -> usize {
        self.records.as_ref().map_or(0, |records| records.len() * RECORD_BYTES)
    }

    /// Forgets the records, which are read by range from now on.
    pub(super) fn release(&mut self) {
        self.records = None;
        self.slots = self.slots.compact();
    }

    /// The copy of a record.
    pub(super) fn place(&self, record: &SegmentRecord) -> Option<Place> {
        self.numbers.get(record.pack as usize).map(|pack| Place::of(*pack, &record.entry))
    }

    /// All records, if they are in memory.
    pub(super) fn records(&self) -> Option<&SlotRecords> {
        self.records.as_ref()
    }

    /// The copies of a chunk, from memory or from the slot that was read before.
    pub(super) fn copies(&self, cache: &SlotCache, digest: &Digest) -> Vec<Place> {
        let slot = self.slots.slot_of(digest);
        let places = |records: &SlotRecords, numbers| {
            records.find_in(numbers, digest).filter_map(|record| self.place(&record)).collect()
        };
        match &self.records {
            Some(records) => places(records, self.slots.numbers_of(slot)),
            None if self.slots.numbers_of(slot).is_empty() => Vec::new(),
            None => {
                let records = cache.0.peek(&(self.name, slot));
                debug_assert!(records.is_some(), "a look-up begins with the slots of its chunk");
                records.map_or_else(Vec::new, |records| places(records, 0..records.len()))
            }
        }
    }

    /// The slot of a chunk, unless it is empty or in memory.
    pub(super) fn read_of(&self, cache: &mut SlotCache, digest: &Digest) -> Option<SlotRead> {
        let slot = self.slots.slot_of(digest);
        let is_known = self.records.is_some()
            || self.slots.numbers_of(slot).is_empty()
            || cache.0.get(&(self.name, slot)).is_some();
        (!is_known).then(|| self.read(slot..slot + 1))
    }

    /// The next slots from this chunk on with at least this number of records behind the first one; `None` if the records are in memory.
    pub(super) fn run_from(&self, first: Option<&Digest>, records: usize) -> Option<SlotRead> {
        if self.records.is_some() {
            return None;
        }
        Some(self.run_from_slot(first.map_or(0, |first| self.slots.slot_of(first)), records))
    }

    /// The next slots from this one on with at least this number of records behind the first one.
    pub(super) fn run_from_slot(&self, start: usize, records: usize) -> SlotRead {
        let enough = self.slots.records_in(start + 1).saturating_add(records);
        let (mut low, mut high) = (start + 1, self.slots.len());
        while low < high {
            let middle = low.midpoint(high);
            if self.slots.records_in(middle) >= enough { high = middle } else { low = middle + 1 }
        }
        self.read(start..low.min(self.slots.len()))
    }

    fn read(&self, slots: Range<usize>) -> SlotRead {
        SlotRead { name: self.name, packs: self.numbers.len(), slots, table: self.slots.clone() }
    }
}

impl SlotRead {
    /// Place of the records in the segment.
    pub(super) fn range(&self) -> Range<u64> {
        self.table.range_of(&self.slots)
    }

    /// The slot behind the run; `None` if it is the last one.
    pub(super) fn next_slot(&self) -> Option<usize> {
        (self.slots.end < self.table.len()).then_some(self.slots.end)
    }

    /// Reads the records.
    ///
    /// # Errors
    /// `Checksum`, `Field`, `Truncated`.
    pub(super) fn parse(&self, bytes: Bytes) -> Result<SlotRun, DecodeError> {
        let pack_bytes = |pack| ((pack as usize) < self.packs).then_some(MAX_PACK_BYTES);
        let records = self.table.read(self.slots.clone(), bytes, pack_bytes)?;
        Ok(SlotRun { read: self.clone(), records })
    }
}

impl Default for SlotCache {
    fn default() -> Self {
        Self(LruCache::new(NonZero::new(KEPT_SLOTS).unwrap_or(NonZero::<usize>::MIN)))
    }
}

impl SlotCache {
    /// Keeps slots that were read. A look-up needs one of each segment at the same time.
    pub(super) fn keep(&mut self, runs: Vec<SlotRun>, segments: usize) {
        if let Some(needed) = NonZero::new(segments).filter(|needed| *needed > self.0.cap()) {
            self.0.resize(needed);
        }
        for SlotRun { read, records } in runs {
            self.0.put((read.name, read.slots.start), records);
        }
    }
}
