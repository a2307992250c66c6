//! Packs as the collector sees them: what they hold, and how they vanish.
//!
//! # Order
//! ```text
//! orphans adopted → chunks listed and judged → for each pack: dead copies retired, under their digest locks
//!   → live copies appended to new packs → new packs stored and recorded → drop recorded → barrier → pack deleted
//! ```
//! | interruption after | leaves |
//! |---|---|
//! | retired | nothing: retired copies are hidden in this process only |
//! | new packs recorded | two copies, both right |
//! | drop recorded | a dropped pack, which the next collection deletes |
//!
//! A put of a segment without an answer may be executed after the lock was released, when another process relies on the pack again. So a dropped
//! pack is judged once more, by its directory, before a later collection deletes it, and until then reads find its copies.
//!
//! A pack is dropped only after each of its copies is dead or has another copy that is durable and recorded. Where listings lag, a dropped
//! pack is deleted by a later collection: another process may have a view without the drop, and reads of its restores must find the pack.
//!
//! An *orphan* is a pack that no segment names, of a writer that ended without recording it. It is adopted: its directory is read, and
//! its chunks are judged like all others. Without a valid directory, the whole pack is read for them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::backend::{Cursor, Deleted, Removal};
use crate::error::Result;
use crate::format::Digest;
use crate::format::larder::pack::directory::{PackDirectory, PackTail};
use crate::format::larder::pack::name::PackName;
use crate::format::larder::pack::{PackClass, PackEntry};
use crate::format::layout::Key;
use crate::packs::known::Known;
use crate::packs::list::PackListing;
use crate::packs::place::Place;
use crate::packs::salvage::{Salvaged, is_damage};
use crate::packs::send::Share;
use crate::packs::view::{PackInfo, View};
use crate::packs::{PackedBackend, Packs, State};

/// Bytes of a pack that contain the directories of most packs.
pub(crate) const TAIL_BYTES: u64 = 64 << 10;
/// Number of directories read at the same time.
const READS_IN_FLIGHT: usize = 16;

/// A copy of a chunk in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackCopy {
    pub(crate) digest: Digest,
    place: Place,
}

impl PackCopy {
    /// Stored length in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.place.length.into()
    }
}

/// A pack in a listing.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ListedPack {
    pub(crate) bytes: u64,
    pub(crate) class: PackClass,
    pub(crate) last_used: SystemTime,
    pub(crate) name: PackName,
    pub(crate) state: PackState,
}

/// The relation of a pack to the segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PackState {
    /// Dropped, in a segment of this time if that is known.
    Dropped(Option<SystemTime>),
    /// No segment names it, and its directory is unreadable or it is young.
    Orphan,
    /// Segments name it.
    Recorded,
    /// A writer of this process has yet to record it.
    Unrecorded,
}

impl PackedBackend {
    /// Refuses if a segment is damaged: packs that only it names would pass for orphans, and copies that it excludes for good ones.
    ///
    /// # Errors
    /// `Corrupt` then.
    pub(crate) fn check_segments(&self) -> Result<()> {
        self.packs.check_segments()
    }

    /// Number of segments that the view has.
    pub(crate) fn segments(&self) -> u64 {
        self.packs.state().view.segments().len() as u64
    }

    /// Makes the chunks of orphans known that are old enough.
    ///
    /// # Errors
    /// Any failure to read them, other than damage.
    pub(crate) async fn adopt_orphans(
        &self,
        begin: &Cursor,
        is_old: impl Fn(SystemTime) -> bool,
    ) -> Result<u64> {
        let orphans: Vec<_> = self
            .list_states(begin)
            .await?
            .into_iter()
            .filter(|pack| {
                pack.state == PackState::Orphan
                    && (is_old(pack.last_used) || mutated!("pack-orphan-is-adopted-young"))
            })
            .collect();
        let packs = &self.packs;
        let reads = stream::iter(orphans).map(|pack| async move {
            packs.read_directory(pack.name, pack.bytes).await.map(|directory| (pack, directory))
        });
        let mut reads = reads.buffer_unordered(READS_IN_FLIGHT);
        let (mut adopted, mut torn) = (0, Vec::new());
        while let Some((pack, directory)) = reads.try_next().await? {
            match directory {
                Some(directory) => packs.state().adopt(Salvaged::from(directory)),
                None => torn.push(pack),
            }
            adopted += 1;
        }
        for pack in torn {
            match packs.salvage(pack.name, pack.bytes).await? {
                Some(salvaged) => packs.state().adopt(salvaged),
                None => adopted -= 1,
            }
        }
        Ok(adopted)
    }

    /// The packs of a listing that began with this cursor.
    pub(crate) async fn list_states(&self, begin: &Cursor) -> Result<Vec<ListedPack>> {
        let listing = self.packs.listing_of(begin).await?;
        listing.check_readable("collect packs behind")?;
        Ok(self.packs.states(&listing))
    }

    /// The copies in these packs that records name, bad and deleted ones apart.
    ///
    /// # Errors
    /// Any failure to read the records.
    pub(crate) async fn copies_in(
        &self,
        names: &BTreeSet<PackName>,
    ) -> Result<BTreeMap<PackName, Vec<PackCopy>>> {
        self.packs.copies_in(names).await
    }

    /// The copies of a chunk in packs other than these, which are about to vanish.
    ///
    /// # Errors
    /// Any failure to read the records.
    pub(crate) async fn copies_outside(
        &self,
        digest: &Digest,
        names: &BTreeSet<PackName>,
    ) -> Result<Vec<PackCopy>> {
        self.copies_among(digest, View::reliable_places, |name| !names.contains(name)).await
    }

    /// The copies of a chunk in these packs, also retired ones.
    ///
    /// # Errors
    /// Any failure to read the records.
    pub(crate) async fn copies_within(
        &self,
        digest: &Digest,
        names: &BTreeSet<PackName>,
    ) -> Result<Vec<PackCopy>> {
        self.copies_among(digest, View::readable_places, |name| names.contains(name)).await
    }

    /// The copies in packs of these sizes by their contents, whatever segments say: by their directories, or by all of a pack with a damaged one.
    /// Packs that are gone, or of another writer, are left out.
    ///
    /// # Errors
    /// Any failure to read the packs.
    pub(crate) async fn copies_by_contents(
        &self,
        packs: Vec<(PackName, u64)>,
    ) -> Result<BTreeMap<PackName, Vec<PackCopy>>> {
        let mut unread: BTreeMap<_, _> = packs.iter().copied().collect();
        let mut copies = BTreeMap::new();
        for directory in self.packs.directories(packs).await? {
            unread.remove(&directory.name());
            copies.insert(directory.name(), self.packs.copies_of(&directory.into()));
        }
        mutated!("pack-without-directory-stays" => return Ok(copies));
        for (name, bytes) in unread {
            if let Some(salvaged) = self.packs.salvage(name, bytes).await? {
                copies.insert(name, self.packs.copies_of(&salvaged));
            }
        }
        Ok(copies)
    }

    /// The copies of a chunk that can be read.
    ///
    /// # Errors
    /// Any failure to read the records.
    pub(crate) async fn readable_copies(&self, digest: &Digest) -> Result<Vec<PackCopy>> {
        self.copies_among(digest, View::readable_places, |_| true).await
    }

    /// The packs with a copy of a chunk, whatever its state.
    ///
    /// # Errors
    /// Any failure to read the records.
    pub(crate) async fn packs_of(&self, digest: &Digest) -> Result<Vec<PackName>> {
        let state = self.packs.state_of(digest).await?;
        let places = state.view.all_places(digest);
        Ok(places.iter().filter_map(|place| Some(state.view.pack(place.pack)?.name)).collect())
    }

    async fn copies_among(
        &self,
        digest: &Digest,
        places: impl Fn(&View, &Digest) -> Vec<Place>,
        is_wanted: impl Fn(&PackName) -> bool,
    ) -> Result<Vec<PackCopy>> {
        let state = self.packs.state_of(digest).await?;
        let mut places = places(&state.view, digest);
        places.retain(|place| state.view.pack(place.pack).is_some_and(|pack| is_wanted(&pack.name)));
        Ok(places.into_iter().map(|place| PackCopy { digest: *digest, place }).collect())
    }

    /// The packs among these with a quarantined copy of a chunk, and the chunk.
    pub(crate) fn quarantined_in(&self, names: &BTreeSet<PackName>) -> Vec<(PackName, Digest)> {
        let state = self.packs.state();
        let numbers = names.iter().filter_map(|name| state.view.known(*name)).collect();
        let found = state.view.bad_in(&numbers).into_iter();
        found.filter_map(|(number, digest)| Some((state.view.pack(number)?.name, digest))).collect()
    }

    /// Hides a copy from all writers of this process. The caller holds the digest lock of its chunk.
    pub(crate) fn retire(&self, copy: &PackCopy) {
        let name = self.packs.state().view.pack(copy.place.pack).map(|pack| pack.name);
        if let Some(name) = name {
            self.packs.handles.retirement().retire(name, copy.place.offset);
        }
    }

    /// Shows copies to writers again that a collection retired without dropping their pack. The caller plans the next collection, alone.
    pub(crate) fn end_retirement(&self) {
        let handles = self.packs.handles.all();
        // A view that is being read may learn of a pack without its drop. The next one learns of both.
        let reading: Vec<_> = handles.iter().map(|handle| handle.refreshing.try_lock()).collect();
        let is_read = reading.iter().any(Option::is_none);
        let needs = |handle: &Packs, name: &PackName| {
            let state = handle.state();
            let known = state.view.known(*name).and_then(|number| state.view.pack(number));
            // Or its drop may be stored, since a put of it failed.
            known.is_some_and(|pack| !pack.is_dropped) || state.writer.drops.contains(name)
        };
        let retirement = self.packs.handles.retirement();
        let is_needed = |name: &PackName| is_read || handles.iter().any(|handle| needs(handle, name));
        retirement.keep_packs(|name| is_needed(name) && !mutated!("pack-retirement-ends-early"));
    }

    /// Reads a copy.
    pub(crate) async fn read_copy(&self, copy: &PackCopy) -> Result<Bytes> {
        self.packs.read_with_others(&copy.place).await
    }

    /// Appends the blob of a copy once more, to a pack of the same class.
    pub(crate) async fn append(&self, copy: &PackCopy, blob: &Bytes) -> Result<()> {
        let class = self.packs.state().view.pack(copy.place.pack).map_or(PackClass::Data, |pack| pack.class);
        self.packs.append_copy((copy.digest, class), blob).await
    }

    /// Drops packs, after everything that was appended is durable and recorded.
    pub(crate) async fn drop_packs(&self, names: &BTreeSet<PackName>) -> Result<()> {
        let packs = &self.packs;
        packs.flush().await?;
        // Other handles read about the drop when they need to. Until then they rely on no copy in the packs, not even on those in use, since
        // a later collection may drop the other copies of them.
        packs.handles.retirement().retire_packs(names);
        // Only while the caller holds the lock: recorded by a later barrier, the drop could meet a process that relies on the packs.
        let _pending = PendingDrops::new(packs, names);
        if !mutated!("pack-is-deleted-before-its-drop-is-recorded") {
            packs.record(Share::All).await?;
        }
        mutated!("pack-is-deleted-before-its-drop-is-durable" => return Ok(()));
        packs.inner.barrier().await
    }

    /// Deletes dropped packs, with a result for each.
    pub(crate) async fn delete_packs(&self, names: &[PackName]) -> Result<Vec<Result<Deleted>>> {
        let removals: Vec<_> = names.iter().map(|name| Removal::any(Key::Pack(*name))).collect();
        self.packs.inner.delete(&removals).await
    }
}

/// Drops that the next segment records, unless this is dropped before.
struct PendingDrops<'a> {
    names: &'a BTreeSet<PackName>,
    packs: &'a Packs,
}

impl<'a> PendingDrops<'a> {
    fn new(packs: &'a Packs, names: &'a BTreeSet<PackName>) -> Self {
        packs.state().writer.drops.extend(names);
        Self { names, packs }
    }
}

impl Drop for PendingDrops<'_> {
    fn drop(&mut self) {
        mutated!("pack-drop-outlives-the-lock" => return);
        self.packs.state().writer.drops.retain(|name| !self.names.contains(name));
    }
}

impl Packs {
    pub(super) fn check_segments(&self) -> Result<()> {
        mutated!("pack-collection-with-a-damaged-index" => return Ok(()));
        self.state().view.damage().map_or(Ok(()), |damage| Err(damage.clone()))
    }

    async fn copies_in(
        self: &Arc<Self>,
        names: &BTreeSet<PackName>,
    ) -> Result<BTreeMap<PackName, Vec<PackCopy>>> {
        let mut found = CopiesFound::default();
        let segments: Vec<_> = {
            let state = self.state();
            found.wanted = names.iter().filter_map(|name| Some((state.view.known(*name)?, *name))).collect();
            for (digest, places) in state.view.recent() {
                for place in places {
                    found.add(&state.view, *digest, *place);
                }
            }
            let segments = state.view.segments().values();
            let is_wanted = |known: &&Known| known.numbers.iter().any(|pack| found.wanted.contains_key(pack));
            segments.filter(is_wanted).cloned().collect()
        };
        // A pack has few chunks, and a segment that is read by range many. The directory of the pack names them too.
        let by_range = segments.iter().filter(|known| known.records().is_none());
        let unread: HashSet<_> = by_range.flat_map(|known| known.numbers.iter().copied()).collect();
        let unread = self.add_by_directory(&mut found, &unread).await?;
        for known in segments {
            if known.records().is_none() && !known.numbers.iter().any(|pack| unread.contains(pack)) {
                continue;
            }
            let mut next = Some(0);
            while let Some(slot) = next {
                let (records, behind) = self.records_from(&known, slot).await?;
                let state = self.state();
                for record in records.iter() {
                    if let Some(place) = known.place(&record) {
                        found.add(&state.view, record.entry.digest, place);
                    }
                }
                next = behind;
            }
        }
        Ok(found.sorted())
    }

    /// The copies in a pack that was read.
    fn copies_of(&self, pack: &Salvaged) -> Vec<PackCopy> {
        let number = self.state().view.number_of(pack.name, pack.class, pack.bytes.into());
        let copy = |entry: &PackEntry| PackCopy { digest: entry.digest, place: Place::of(number, entry) };
        pack.entries.iter().map(copy).collect()
    }

    /// Adds the copies that the directories of these packs name. Returns the packs with a damaged directory.
    async fn add_by_directory(&self, found: &mut CopiesFound, packs: &HashSet<u32>) -> Result<HashSet<u32>> {
        let mut unread: HashMap<_, _> = found
            .wanted
            .iter()
            .filter(|(number, _)| packs.contains(number))
            .map(|(n, name)| (*name, *n))
            .collect();
        let sized: Vec<_> = {
            let state = self.state();
            let size = |number: &u32| {
                let pack = state.view.pack(*number)?;
                Some((pack.name, pack.stored_bytes.unwrap_or(pack.bytes)))
            };
            unread.values().filter_map(size).collect()
        };
        for directory in self.directories(sized).await? {
            let Some(number) = unread.remove(&directory.name()) else { continue };
            let state = self.state();
            for entry in directory.entries() {
                found.add(&state.view, entry.digest, Place::of(number, entry));
            }
        }
        Ok(unread.into_values().collect())
    }

    /// The directories of packs of these sizes, damaged ones apart.
    async fn directories(&self, packs: Vec<(PackName, u64)>) -> Result<Vec<PackDirectory>> {
        let reads = packs.into_iter().map(|(name, bytes)| self.read_directory(name, bytes));
        let read: Vec<_> = stream::iter(reads).buffer_unordered(READS_IN_FLIGHT).try_collect().await?;
        Ok(read.into_iter().flatten().collect())
    }

    /// Packs that a writer of this process has yet to store or record.
    pub(super) fn unrecorded(&self) -> HashSet<PackName> {
        self.handles.all().iter().flat_map(|handle| handle.state().unrecorded()).collect()
    }

    fn states(&self, listing: &PackListing) -> Vec<ListedPack> {
        let unrecorded = self.unrecorded();
        let state = self.state();
        let recorded = state.view.recorded();
        let state_of = |name: &PackName| {
            let known = state.view.known(*name).and_then(|number| Some((number, state.view.pack(number)?)));
            match known {
                _ if unrecorded.contains(name) && !mutated!("pack-of-a-writer-is-an-orphan") => {
                    PackState::Unrecorded
                }
                Some((_, pack)) if pack.is_dropped => PackState::Dropped(pack.dropped_at),
                Some((number, pack)) if pack.is_adopted || recorded.contains(&number) => PackState::Recorded,
                _ => PackState::Orphan,
            }
        };
        let class_of = |name: &PackName| state.view.pack(state.view.known(*name)?).map(|pack| pack.class);
        let listed = listing.packs.iter().map(|(name, (bytes, last_used))| ListedPack {
            bytes: *bytes,
            class: class_of(name).unwrap_or(PackClass::Data),
            last_used: *last_used,
            name: *name,
            state: state_of(name),
        });
        let mut listed: Vec<_> = listed.collect();
        listed.sort_unstable_by_key(|pack| pack.name);
        listed
    }

    /// Reads the directory of a pack; `None` if it is damaged or gone.
    pub(super) async fn read_directory(&self, name: PackName, bytes: u64) -> Result<Option<PackDirectory>> {
        let mut wanted = bytes.min(TAIL_BYTES);
        loop {
            let read = self.inner.get_range(&Key::Pack(name), bytes - wanted..bytes).await;
            let tail = match read {
                Err(error) if is_damage(&error) => return Ok(None),
                tail => tail?.bytes,
            };
            match PackDirectory::parse(&name, bytes, &tail) {
                Ok(PackTail::Directory(directory)) => return Ok(Some(directory)),
                Ok(PackTail::Needs { suffix_bytes }) if u64::from(suffix_bytes) > wanted => {
                    wanted = suffix_bytes.into();
                }
                Ok(PackTail::Needs { .. }) | Err(_) => return Ok(None),
            }
        }
    }
}

impl From<PackDirectory> for Salvaged {
    fn from(directory: PackDirectory) -> Self {
        let (bytes, class, name) = (directory.pack_bytes(), directory.class(), directory.name());
        Self { bytes, class, entries: directory.into_entries(), name }
    }
}

impl State {
    /// Makes the chunks of a pack known, and records them with the next segment.
    pub(super) fn adopt(&mut self, orphan: Salvaged) {
        let Salvaged { bytes, class, mut entries, name } = orphan;
        if entries.is_empty() {
            self.view.drop_pack(name);
            self.writer.drops.insert(name);
            return;
        }
        // Damage may show one twice, and a segment has one place of a chunk in a pack.
        let mut seen = HashSet::new();
        entries.retain(|entry| seen.insert(entry.digest));
        let number = self.view.number_of(name, class, bytes.into());
        if let Some(pack) = self.view.pack_mut(number) {
            (pack.bytes, pack.is_adopted, pack.is_listed) = (bytes.into(), true, true);
        }
        for entry in &entries {
            self.view.add_recent(entry.digest, Place::of(number, entry));
        }
        self.writer.unrecorded.insert(number, entries);
    }

    /// Packs that this handle has yet to store or record, adopted ones apart.
    fn unrecorded(&self) -> Vec<PackName> {
        let numbers = self.view.numbers();
        let packs = numbers.filter_map(|number| Some((number, self.view.pack(number)?)));
        let is_ours = |(number, pack): &(u32, &PackInfo)| {
            pack.contents.is_some() || (self.writer.unrecorded.contains_key(number) && !pack.is_adopted)
        };
        packs.filter(is_ours).map(|(_, pack)| pack.name).collect()
    }
}

/// The copies of some packs.
#[derive(Debug, Default)]
struct CopiesFound {
    found: BTreeMap<PackName, Vec<PackCopy>>,
    wanted: HashMap<u32, PackName>,
}

impl CopiesFound {
    /// Adds a copy if it counts, and is in one of the packs.
    fn add(&mut self, view: &View, digest: Digest, place: Place) {
        if let Some(name) = self.wanted.get(&place.pack)
            && view.counts(&place)
        {
            self.found.entry(*name).or_default().push(PackCopy { digest, place });
        }
    }

    /// The copies of each pack in order, each once.
    fn sorted(mut self) -> BTreeMap<PackName, Vec<PackCopy>> {
        for copies in self.found.values_mut() {
            copies.sort_unstable_by_key(|copy| (copy.place.offset, copy.digest));
            copies.dedup();
        }
        self.found
    }
}
