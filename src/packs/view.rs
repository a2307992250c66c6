//! Knowledge of one handle about packs and the copies of chunks in them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::RangeBounds;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

use crate::error::Error;
use crate::format::Digest;
use crate::format::larder::pack::PackClass;
use crate::format::larder::pack::builder::PackBuilder;
use crate::format::larder::pack::name::PackName;
use crate::format::larder::segment::head::SegmentHead;
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::records::SlotRecords;
use crate::format::larder::segment::{Exclusion, ExclusionReason, SegmentPack};
use crate::format::layout::Key;
use crate::packs::known::{IndexMemory, Known, SlotCache, SlotRead, SlotRun};
use crate::packs::place::Place;
use crate::packs::retirement::Retirement;

/// The knowledge about a pack.
#[derive(Debug)]
pub(super) struct PackInfo {
    pub(super) bytes: u64,
    pub(super) class: PackClass,
    /// The pack in memory, while it is not stored.
    pub(super) contents: Option<Box<Contents>>,
    /// The time of the first segment that says so.
    pub(super) dropped_at: Option<SystemTime>,
    /// The collector dropped it: its copies do not count.
    pub(super) is_dropped: bool,
    /// The last listing of packs shows it, or this handle stored it since.
    pub(super) is_listed: bool,
    /// Its directory was read, since no segment names it.
    pub(super) is_adopted: bool,
    /// The time of its put, as this process knows it or a listing shows it.
    pub(super) last_used: Option<SystemTime>,
    pub(super) name: PackName,
    /// Length of the object, as it was seen last.
    pub(super) stored_bytes: Option<u64>,
}

impl PackInfo {
    /// Returns `false` if the pack was cut before the end of a copy.
    pub(super) fn reaches(&self, place: &Place) -> bool {
        self.stored_bytes.is_none_or(|bytes| place.end() <= bytes)
    }
}

/// A pack in memory.
#[derive(Debug)]
pub(super) enum Contents {
    /// It may grow.
    Open(PackBuilder),
    /// It is being stored, or waits to be stored again.
    Closed(Bytes),
}

#[derive(Debug, Default)]
pub(super) struct View {
    /// Copies that were found bad, in the order in which this handle learned of them.
    bad: BTreeMap<Digest, Vec<Place>>,
    /// Copies that do not count: bad and deleted ones.
    excluded: HashSet<(u32, u32)>,
    numbers: HashMap<PackName, u32>,
    packs: Vec<PackInfo>,
    /// Copies in packs of this process that no known segment names.
    recent: HashMap<Digest, Vec<Place>>,
    /// Copies that the collector of this process retires: they do not count for writers.
    retirement: Arc<Retirement>,
    segments: BTreeMap<SegmentName, Known>,
    /// Records that were read by range.
    slots: SlotCache,
    /// Segments that are damaged, by path. Their facts are unknown.
    unreadable: BTreeMap<String, Error>,
}

impl View {
    /// An empty view.
    pub(super) fn new(retirement: &Arc<Retirement>) -> Self {
        Self { retirement: Arc::clone(retirement), ..Self::default() }
    }

    /// Number of a pack, which becomes known if it is not.
    pub(super) fn number_of(&mut self, name: PackName, class: PackClass, bytes: u64) -> u32 {
        if let Some(number) = self.numbers.get(&name).copied() {
            if let Some(info) = self.pack_mut(number).filter(|info| info.bytes == 0) {
                (info.bytes, info.class) = (bytes, class);
            }
            return number;
        }
        // A view cannot know 2³² packs: each takes more than a hundred bytes.
        let number = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
        let info = PackInfo {
            bytes,
            class,
            contents: None,
            dropped_at: None,
            is_dropped: false,
            is_listed: true,
            is_adopted: false,
            last_used: None,
            name,
            stored_bytes: None,
        };
        self.packs.push(info);
        self.numbers.insert(name, number);
        number
    }

    /// Number of a known pack.
    pub(super) fn known(&self, name: PackName) -> Option<u32> {
        self.numbers.get(&name).copied()
    }

    pub(super) fn pack(&self, number: u32) -> Option<&PackInfo> {
        self.packs.get(number as usize)
    }

    pub(super) fn pack_mut(&mut self, number: u32) -> Option<&mut PackInfo> {
        self.packs.get_mut(number as usize)
    }

    /// A pack as segments describe it.
    pub(super) fn segment_pack(&self, number: u32) -> Option<SegmentPack> {
        let info = self.pack(number)?;
        Some(SegmentPack { bytes: u32::try_from(info.bytes).ok()?, class: info.class, name: info.name })
    }

    /// Returns `true` if a pack is not stored yet.
    pub(super) fn is_in_memory(&self, number: u32) -> bool {
        self.pack(number).is_some_and(|pack| pack.contents.is_some())
    }

    /// Numbers of the packs that are not stored yet.
    pub(super) fn in_memory(&self) -> Vec<u32> {
        self.numbers().filter(|number| self.is_in_memory(*number)).collect()
    }

    /// Numbers of all known packs.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> + use<> {
        0..u32::try_from(self.packs.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn segments(&self) -> &BTreeMap<SegmentName, Known> {
        &self.segments
    }

    /// The damage of a segment; `None` if all were read.
    pub(super) fn damage(&self) -> Option<&Error> {
        self.unreadable.values().next()
    }

    /// The paths of damaged segments.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = &str> {
        self.unreadable.keys().map(String::as_str)
    }

    /// Forgets a segment that is damaged, and remembers that it is.
    pub(super) fn set_damaged(&mut self, name: &SegmentName, damage: Error) {
        self.segments.remove(name);
        self.unreadable.insert(Key::Segment(*name).to_string(), damage);
    }

    pub(super) fn set_unreadable(&mut self, unreadable: BTreeMap<String, Error>) {
        self.unreadable = unreadable;
    }

    /// The copies that count, those in memory first.
    pub(super) fn places(&self, digest: &Digest) -> Vec<Place> {
        let mut places = self.all_places(digest);
        places.retain(|place| self.counts(place));
        places
    }

    /// The copies that can be read: those that count, and then those in dropped packs. The drop of a pack whose put got no answer may take
    /// effect after another process began to rely on the pack again.
    pub(super) fn readable_places(&self, digest: &Digest) -> Vec<Place> {
        let mut places = self.all_places(digest);
        places.retain(|place| !self.is_excluded(place));
        places.sort_by_key(|place| !self.counts(place));
        places
    }

    /// The copies that a writer may rely on if their packs exist, which a listing or a read did not find.
    pub(super) fn unlisted_places(&self, digest: &Digest) -> Vec<(Place, PackName)> {
        let places = self.places(digest).into_iter();
        let named = places.filter_map(|place| Some((place, self.pack(place.pack)?)));
        let is_unlisted = |(place, pack): &(Place, &PackInfo)| {
            !pack.is_listed && !self.retirement.has(&pack.name, place.offset)
        };
        named.filter(is_unlisted).map(|(place, pack)| (place, pack.name)).collect()
    }

    /// The copies that a writer may rely on.
    pub(super) fn reliable_places(&self, digest: &Digest) -> Vec<Place> {
        let mut places = self.places(digest);
        let is_reliable = |pack: &PackInfo, place: &Place| {
            (pack.is_listed || mutated!("pack-is-relied-on-unseen"))
                && pack.reaches(place)
                && !self.retirement.has(&pack.name, place.offset)
        };
        places.retain(|place| self.pack(place.pack).is_some_and(|pack| is_reliable(pack, place)));
        places
    }

    /// Returns `true` if a collector of this process dropped a pack with the chunk, and this view does not know.
    pub(super) fn is_dropped_elsewhere(&self, digest: &Digest) -> bool {
        let mut packs = self.places(digest).into_iter().filter_map(|place| self.pack(place.pack));
        packs.any(|pack| self.retirement.has_pack(&pack.name))
    }

    /// Returns `true` if a pack was dropped, as far as this view or a collector of this process knows.
    pub(super) fn is_dropped_anywhere(&self, number: u32) -> bool {
        self.pack(number).is_some_and(|pack| pack.is_dropped || self.retirement.has_pack(&pack.name))
    }

    /// Returns `true` if a copy is bad or deleted.
    pub(super) fn is_excluded(&self, place: &Place) -> bool {
        self.excluded.contains(&place.key())
    }

    /// Every copy, once. [`unread`](Self::unread) was empty since the segments changed last.
    pub(super) fn all_places(&self, digest: &Digest) -> Vec<Place> {
        let mut places = self.recent.get(digest).cloned().unwrap_or_default();
        for known in self.segments.values() {
            places.extend(known.copies(&self.slots, digest));
        }
        let mut seen = HashSet::new();
        places.retain(|place| seen.insert(place.key()));
        places
    }

    /// Returns `true` if a copy is neither bad nor deleted, and its pack not dropped.
    pub(super) fn counts(&self, place: &Place) -> bool {
        !self.is_excluded(place) && self.pack(place.pack).is_some_and(|pack| !pack.is_dropped)
    }

    /// The quarantined copies of a chunk.
    pub(super) fn bad(&self, digest: &Digest) -> Vec<Place> {
        let bad = self.bad.get(digest).into_iter().flatten();
        let is_there = |place: &&Place| self.pack(place.pack).is_some_and(|pack| !pack.is_dropped);
        bad.filter(is_there).copied().collect()
    }

    /// The packs among these with a quarantined copy of a chunk, and the chunk.
    pub(super) fn bad_in(&self, packs: &HashSet<u32>) -> Vec<(u32, Digest)> {
        let all =
            self.bad.iter().flat_map(|(digest, places)| places.iter().map(|place| (place.pack, *digest)));
        all.filter(|(pack, _)| packs.contains(pack)).collect()
    }

    /// Digests with quarantined copies within bounds.
    pub(super) fn bad_digests(&self, range: impl RangeBounds<Digest>) -> Vec<Digest> {
        self.bad.range(range).map(|(digest, _)| *digest).collect()
    }

    /// Copies of this process that no known segment names.
    pub(super) fn recent(&self) -> &HashMap<Digest, Vec<Place>> {
        &self.recent
    }

    /// Adds a copy in a pack of this process.
    pub(super) fn add_recent(&mut self, digest: Digest, place: Place) {
        self.recent.entry(digest).or_default().push(place);
    }

    /// Excludes a copy; it is shown as a quarantined copy if it is bad.
    pub(super) fn exclude(&mut self, digest: Digest, place: Place, reason: ExclusionReason) {
        if self.excluded.insert(place.key()) && reason == ExclusionReason::Bad {
            self.bad.entry(digest).or_default().push(place);
        }
    }

    /// Stops showing a quarantined copy.
    pub(super) fn hide_bad(&mut self, digest: &Digest, at: usize) -> Option<Place> {
        let bad = self.bad.get_mut(digest)?;
        let place = (at < bad.len()).then(|| bad.remove(at));
        if bad.is_empty() {
            self.bad.remove(digest);
        }
        place
    }

    /// The slots that a look-up of a chunk needs.
    pub(super) fn unread(&mut self, digest: &Digest) -> Vec<SlotRead> {
        let slots = &mut self.slots;
        self.segments.values().filter_map(|known| known.read_of(slots, digest)).collect()
    }

    /// Number of the records of all segments.
    pub(super) fn records(&self) -> usize {
        self.segments.values().map(Known::len).sum()
    }

    /// Keeps slots that were read, for look-ups.
    pub(super) fn keep_slots(&mut self, runs: Vec<SlotRun>) {
        self.slots.keep(runs, self.segments.len());
    }

    /// Segments that another one replaces.
    pub(super) fn replaced(&self) -> impl Iterator<Item = SegmentName> {
        self.segments.values().flat_map(|known| known.facts.replaced.iter().copied())
    }

    /// Segments whose records are read by range.
    pub(super) fn read_by_range(&self) -> Vec<SegmentName> {
        let by_range = self.segments.iter().filter(|(_, known)| known.records().is_none());
        by_range.map(|(name, _)| *name).collect()
    }

    /// Bytes of all records in memory.
    pub(super) fn bytes_in_memory(&self) -> usize {
        self.segments.values().map(Known::bytes_in_memory).sum()
    }

    /// Forgets the records of the largest segments until the others fit into memory.
    pub(super) fn shrink(&mut self, memory: IndexMemory) {
        let mut total = self.bytes_in_memory();
        while total > memory.bytes {
            let largest = self.segments.values_mut().max_by_key(|known| known.bytes_in_memory());
            let Some(known) = largest.filter(|known| known.bytes_in_memory() >= memory.smallest()) else {
                return;
            };
            total -= known.bytes_in_memory();
            known.release();
        }
    }

    /// Adds a segment that was read or stored. Records that are not given are read by range.
    pub(super) fn add_segment(
        &mut self,
        head: &SegmentHead,
        records: Option<SlotRecords>,
        stored: Option<SystemTime>,
    ) {
        let numbers: Arc<[u32]> =
            head.packs().map(|pack| self.number_of(pack.name, pack.class, pack.bytes.into())).collect();
        for name in head.dropped() {
            let number = self.drop_pack(name);
            if let Some(pack) = self.pack_mut(number) {
                pack.dropped_at = pack.dropped_at.into_iter().chain(stored).min();
            }
        }
        for Exclusion { entry, pack, reason } in head.exclusions() {
            let number = self.number_of(pack, PackClass::Data, 0);
            self.exclude(entry.digest, Place::of(number, &entry), reason);
        }
        self.segments.insert(head.name(), Known::new(head, numbers, records));
    }

    /// Forgets a segment that was replaced, or that the store does not have any more.
    pub(super) fn remove_segment(&mut self, name: &SegmentName) {
        self.segments.remove(name);
    }

    /// Numbers of the packs whose copies segments name. The others are orphans, unless a writer has yet to record them.
    pub(super) fn recorded(&self) -> HashSet<u32> {
        self.segments.values().flat_map(|known| known.numbers.iter().copied()).collect()
    }

    /// Ignores all copies in a pack from now on.
    pub(super) fn drop_pack(&mut self, name: PackName) -> u32 {
        let number = self.number_of(name, PackClass::Data, 0);
        if let Some(info) = self.pack_mut(number) {
            info.is_dropped = true;
        }
        number
    }

    /// Forgets the recent copies in packs that a known segment names now.
    pub(super) fn settle(&mut self, packs: &HashSet<u32>) {
        self.recent.retain(|_, places| {
            places.retain(|place| !packs.contains(&place.pack));
            !places.is_empty()
        });
    }
}
