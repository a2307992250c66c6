//! The view of a packed store: all its index segments, and the packs that a listing found.
//!
//! A chunk is present if a segment has a record of it and a listing has its pack, with the size that the segment has. Records of other packs
//! are ignored: the pack is lost, truncated, or not visible yet. A record that a copy is bad or deleted, and the name of a dropped pack, hold for all
//! segments, in any order.
//!
//! A chunk may have several places, and every copy is right. The best one is in the largest pack, and by name among packs of equal size. The collector
//! merges small packs and then deletes them, so a place in a large pack stays valid for longer. The order does not depend on the order in which segments
//! were added.
//!
//! A segment is superseded if another one that was added replaces it, directly or by a chain of segments that may be gone. Superseded segments are not
//! asked. Segments that replace each other in a circle, which no writer makes, are all asked.
//!
//! # Memory
//! A segment is held whole, at 44 bytes a record, or by its head, whose slots the caller then reads by ranges. A head takes 8 bytes for 32 to 64 records.
//! In addition, a pack takes 8 bytes and 4 for each segment with records in it. With packs of eight chunks a million chunks take
//! about 1.6 MiB by heads.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Range, RangeInclusive};

use bytes::Bytes;

use crate::format::Digest;
use crate::format::blob::DecodeError;
use crate::format::larder::pack::name::PackName;
use crate::format::larder::pack::{MAX_PACK_BYTES, PackEntry};
use crate::format::larder::segment::head::SegmentHead;
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::records::SlotRecords;
use crate::format::larder::segment::set::chunks::Chunks;
use crate::format::larder::segment::set::packs::{PackTable, TablePack};
use crate::format::larder::segment::set::usage::Usage;
use crate::format::larder::segment::slots::Slots;
use crate::format::larder::segment::{RecordKind, Segment, SegmentPack, SegmentRecord};

pub(crate) mod chunks;
mod packs;
pub(crate) mod usage;

/// The segments of a store and its listed packs.
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentSet {
    /// Packs that a segment names as dropped.
    dropped: BTreeSet<PackName>,
    packs: PackTable,
    /// For each segment that was added and not removed, superseded ones too, the segments that it replaces.
    replaced: BTreeMap<SegmentName, Vec<SegmentName>>,
    segments: BTreeMap<SegmentName, Held>,
    /// Listed packs that no held segment names, with their sizes.
    unnamed: BTreeMap<PackName, u64>,
}

/// A segment to add.
#[derive(Clone, Debug)]
pub(crate) enum SegmentSource {
    /// Its records are read by ranges.
    Head(SegmentHead),
    /// Its records are held in memory.
    Whole(Segment),
}

/// A pack in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListedPack {
    pub(crate) bytes: u64,
    pub(crate) name: PackName,
}

/// Place of a chunk in a listed pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ChunkPlace {
    pub(crate) entry: PackEntry,
    /// Number of the pack in the view, until the view changes.
    number: u32,
    pub(crate) pack: SegmentPack,
}

/// Records to read from a segment that is held by its head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SlotRead {
    /// Place of the records in the segment; never empty.
    pub(crate) range: Range<u64>,
    pub(crate) segment: SegmentName,
    slots: Range<usize>,
}

/// Records that were read from a segment.
#[derive(Clone, Debug)]
pub(crate) struct LoadedSlots {
    records: SlotRecords,
    segment: SegmentName,
}

/// A record about a place in a listed pack.
#[derive(Clone, Copy, Debug)]
struct Statement {
    kind: RecordKind,
    place: ChunkPlace,
}

/// A segment that is asked.
#[derive(Clone, Debug)]
struct Held {
    dropped: Vec<PackName>,
    /// For each pack of the segment its number in the table, or [`OTHER_PACK`].
    numbers: Vec<u32>,
    records: Option<SlotRecords>,
    slots: Slots,
}

/// Number of a pack for which the table has another size or class.
const OTHER_PACK: u32 = u32::MAX;

impl SegmentSource {
    /// The head of the segment.
    pub(crate) fn head(&self) -> &SegmentHead {
        match self {
            Self::Head(head) => head,
            Self::Whole(segment) => segment.head(),
        }
    }
}

impl SegmentSet {
    /// Adds segments, unless they were added before. Adding many at once takes less time than adding each.
    pub(crate) fn add(&mut self, added: Vec<SegmentSource>) {
        for source in &added {
            self.replaced.insert(source.head().name(), source.head().replaced().collect());
        }
        let superseded = self.superseded_names();
        self.segments.retain(|name, _| !superseded.contains(name));
        let is_new = |name| !superseded.contains(&name) && !self.segments.contains_key(&name);
        let added: Vec<_> = added.into_iter().filter(|source| is_new(source.head().name())).collect();
        self.rebuild(added);
    }

    /// Removes a segment that the store no longer has.
    pub(crate) fn remove(&mut self, name: &SegmentName) {
        self.replaced.remove(name);
        if self.segments.remove(name).is_some() {
            self.rebuild(Vec::new());
        }
    }

    /// Replaces the listed packs by those of a complete listing.
    pub(crate) fn list(&mut self, listed: impl IntoIterator<Item = ListedPack>) {
        self.packs.list_none();
        self.unnamed.clear();
        listed.into_iter().for_each(|pack| self.add_listed(pack));
    }

    /// Adds a pack that is there now.
    pub(crate) fn add_listed(&mut self, pack: ListedPack) {
        match self.packs.number_of(&pack.name) {
            Some(number) => self.packs.list(number, Some(pack.bytes)),
            None => drop(self.unnamed.insert(pack.name, pack.bytes)),
        }
    }

    /// Removes a pack that is gone.
    pub(crate) fn remove_listed(&mut self, name: &PackName) {
        self.unnamed.remove(name);
        if let Some(number) = self.packs.number_of(name) {
            self.packs.list(number, None);
        }
    }

    /// The segments that are asked, by name, with the number of their records.
    pub(crate) fn segments(&self) -> impl Iterator<Item = (SegmentName, usize)> {
        self.segments.iter().map(|(name, held)| (*name, held.slots.records()))
    }

    /// Segments that were added and are superseded, by name.
    pub(crate) fn superseded(&self) -> Vec<SegmentName> {
        let names = self.superseded_names();
        names.into_iter().filter(|name| self.replaced.contains_key(name)).collect()
    }

    /// Returns `true` if a segment was added and not removed.
    pub(crate) fn contains(&self, name: &SegmentName) -> bool {
        self.replaced.contains_key(name)
    }

    /// Packs that a segment names, and that are not listed with this size.
    pub(crate) fn missing_packs(&self) -> impl Iterator<Item = SegmentPack> {
        let missing = self.packs.iter().filter(|pack| !pack.is_listed).map(|pack| pack.pack);
        missing.filter(|pack| !self.dropped.contains(&pack.name))
    }

    /// Listed packs that no segment names, not even as dropped.
    pub(crate) fn unnamed_packs(&self) -> impl Iterator<Item = ListedPack> {
        let unnamed = self.unnamed.iter().filter(|(name, _)| !self.dropped.contains(name));
        unnamed.map(|(name, bytes)| ListedPack { bytes: *bytes, name: *name })
    }

    /// The reads that find a chunk; none if all segments are held whole.
    pub(crate) fn reads_of(&self, digest: &Digest) -> Vec<SlotRead> {
        self.reads_in(&(digest.mark()..=digest.mark()))
    }

    /// The reads that find all chunks with these [marks](Digest::mark).
    pub(crate) fn reads_in(&self, marks: &RangeInclusive<u64>) -> Vec<SlotRead> {
        let by_ranges = self.segments.iter().filter(|(_, held)| held.records.is_none());
        let reads = by_ranges.map(|(segment, held)| {
            let slots = held.slots.slots_of(marks);
            SlotRead { range: held.slots.range_of(&slots), segment: *segment, slots }
        });
        reads.filter(|read| !read.range.is_empty()).collect()
    }

    /// Checks the bytes of a read. `None` if the segment is no longer asked.
    ///
    /// # Errors
    /// `Checksum`, `Field`, `Truncated`.
    pub(crate) fn load(&self, read: &SlotRead, bytes: Bytes) -> Result<Option<LoadedSlots>, DecodeError> {
        let Some(held) = self.segments.get(&read.segment) else { return Ok(None) };
        let pack_bytes = |pack: u32| match held.numbers.get(pack as usize)? {
            &OTHER_PACK => Some(MAX_PACK_BYTES),
            number => Some(self.packs.get(*number)?.pack.bytes),
        };
        let records = held.slots.read(read.slots.clone(), bytes, pack_bytes)?;
        Ok(Some(LoadedSlots { records, segment: read.segment }))
    }

    /// The places of a chunk, the best one first, by the segments that are held whole and by what was loaded.
    pub(crate) fn find(&self, digest: &Digest, loaded: &[LoadedSlots]) -> Vec<ChunkPlace> {
        let mut statements = Vec::new();
        for held in self.segments.values() {
            let Some(records) = &held.records else { continue };
            let numbers = held.slots.numbers_of(held.slots.slot_of(digest));
            statements
                .extend(records.find_in(numbers, digest).filter_map(|record| self.place(held, &record)));
        }
        for LoadedSlots { records, segment } in loaded {
            let Some(held) = self.segments.get(segment) else { continue };
            statements.extend(records.find(digest).filter_map(|record| self.place(held, &record)));
        }
        let mut places = Vec::new();
        settle(&statements, &mut places);
        places
    }

    /// All chunks with these [marks](Digest::mark), by the segments that are held whole and by what was loaded for the same marks.
    pub(crate) fn chunks<'a>(&'a self, marks: &RangeInclusive<u64>, loaded: &'a [LoadedSlots]) -> Chunks<'a> {
        Chunks::new(self, marks, loaded)
    }

    /// Sums of nothing, to which all chunks are added.
    pub(crate) fn usage(&self) -> Usage {
        Usage::new(self)
    }

    /// The place that a record is about, if its pack is listed and not dropped.
    fn place(&self, held: &Held, record: &SegmentRecord) -> Option<Statement> {
        let number = *held.numbers.get(record.pack as usize)?;
        let TablePack { is_listed, pack } = self.packs.get(number)?;
        let place = ChunkPlace { entry: record.entry, number, pack };
        (is_listed && !self.dropped.contains(&pack.name)).then_some(Statement { kind: record.kind, place })
    }

    /// The segments that a segment replaces which is not replaced itself, and the segments that these replace in turn.
    fn superseded_names(&self) -> BTreeSet<SegmentName> {
        let named: BTreeSet<_> = self.replaced.values().flatten().copied().collect();
        let mut open: Vec<_> = self.replaced.keys().filter(|name| !named.contains(name)).copied().collect();
        let mut superseded = BTreeSet::new();
        while let Some(name) = open.pop() {
            for replaced in self.replaced.get(&name).into_iter().flatten() {
                if superseded.insert(*replaced) {
                    open.push(*replaced);
                }
            }
        }
        superseded
    }

    /// Makes the table of packs anew, with the packs of all held segments and of these.
    fn rebuild(&mut self, added: Vec<SegmentSource>) {
        let before = std::mem::take(&mut self.packs);
        let mut named = vec![false; before.len()];
        for number in self.segments.values().flat_map(|held| &held.numbers) {
            if let Some(named) = named.get_mut(*number as usize) {
                *named = true;
            }
        }
        let mut packs = Vec::new();
        for (pack, is_named) in before.iter().zip(named) {
            if is_named {
                packs.push(pack);
            } else if pack.is_listed {
                self.unnamed.insert(pack.pack.name, pack.pack.bytes.into());
            }
        }
        for pack in added.iter().flat_map(|source| source.head().packs()) {
            let is_listed = self.unnamed.get(&pack.name) == Some(&pack.bytes.into());
            packs.push(TablePack { is_listed, pack });
        }
        // Of two that have one name and not one size, the listed one counts.
        packs.sort_by_key(|pack| (pack.pack.name, !pack.is_listed));
        self.packs = PackTable::of(packs);
        let renumbered: Vec<_> = before.numbers_in(&self.packs).collect();
        for number in self.segments.values_mut().flat_map(|held| &mut held.numbers) {
            *number = renumbered.get(*number as usize).copied().flatten().unwrap_or(OTHER_PACK);
        }
        for source in added {
            self.hold(source);
        }
        self.dropped = self.segments.values().flat_map(|held| &held.dropped).copied().collect();
        let packs = &self.packs;
        self.unnamed.retain(|name, _| packs.number_of(name).is_none());
    }

    fn hold(&mut self, source: SegmentSource) {
        let head = source.head();
        let name = head.name();
        let mut numbers: Vec<_> = head.packs().map(|pack| number_in(&self.packs, &pack)).collect();
        numbers.shrink_to_fit();
        let dropped = head.dropped().collect();
        let held = match source {
            SegmentSource::Head(head) => {
                Held { dropped, numbers, records: None, slots: head.slot_table().compact() }
            }
            SegmentSource::Whole(segment) => {
                let slots = segment.head().slot_table().clone();
                Held { dropped, numbers, records: Some(segment.records().clone()), slots }
            }
        };
        self.segments.insert(name, held);
    }
}

/// The number of a pack of which a segment states the size and the class.
fn number_in(packs: &PackTable, pack: &SegmentPack) -> u32 {
    let number = packs.number_of(&pack.name);
    let number = number.filter(|number| packs.get(*number).is_some_and(|found| found.pack == *pack));
    number.unwrap_or(OTHER_PACK)
}

/// The places of the copies of a chunk that count, the best one first, each once.
fn settle(statements: &[Statement], places: &mut Vec<ChunkPlace>) {
    let at = |place: &ChunkPlace| (place.number, place.entry.offset);
    let is_gone = |place: &ChunkPlace| {
        let mut others = statements.iter().filter(|statement| statement.kind != RecordKind::Copy);
        others.any(|statement| at(&statement.place) == at(place))
    };
    places.clear();
    let copies = statements.iter().filter(|statement| statement.kind == RecordKind::Copy);
    places.extend(copies.map(|copy| copy.place).filter(|place| !is_gone(place)));
    if places.len() > 1 {
        let order = |place: &ChunkPlace| (Reverse(place.pack.bytes), place.pack.name, place.entry.offset);
        places.sort_unstable_by_key(order);
        places.dedup_by_key(|place| order(place));
    }
}

#[cfg(test)]
mod tests;
