//! Merging of segments at the end of a collection.
//!
//! A collection merges segments if there are more than [`MOST_SEGMENTS`], or those with a table of packs of which more
//! than a quarter was dropped. The merged segment has the other facts, and names those that it replaces.
//!
//! # States of a segment
//! | state | listed | read by views | event | next state |
//! |---|---|---|---|---|
//! | in use | yes | yes | a merged one is stored | replaced |
//! | replaced | yes | only until they read the merged one | listings do not lag, or a later collection finds the merged one older than the grace time | deleted |
//! | deleted | no | until they are read again | | |
//!
//! # Order
//! ```text
//! merged segment stored → barrier → replaced segments deleted
//! ```
//! | interruption after | leaves |
//! |---|---|
//! | merged segment stored | the same view; the next collection deletes the replaced ones |
//! | some of the replaced ones deleted | the same |
//!
//! # Facts that a merged segment keeps
//! | fact of a segment that it replaces | kept |
//! |---|---|
//! | a pack, its copies, the bad and deleted ones | unless the pack was dropped |
//! | a copy that is bad or deleted | only as an exclusion, if a segment has it: one that only memory has may never be stored |
//! | the drop of a pack | while the pack is listed, or a segment outside of the group names it: without the drop, writers would rely on a pack that is gone |
//! | the name of a segment that was replaced earlier | while that one is listed: without the name, its facts would hold again |
//!
//! Where listings lag, segments and drops younger than the grace time stay as they are: a view may lack those that go with them.
//!
//! Other handles of this process keep the replaced segments in memory, whose facts are true, until they read the merged one.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use crate::backend::{Cursor, Deleted, Removal};
use crate::error::{Error, Result};
use crate::format::larder::pack::name::PackName;
use crate::format::larder::segment::builder::{PackNumber, SegmentBuilder};
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::{RECORD_BYTES, SegmentWriteError};
use crate::format::layout::Key;
use crate::packs::known::Known;
use crate::packs::refresh::ListedSegment;
use crate::packs::send::unencodable;
use crate::packs::view::View;
use crate::packs::{PackedBackend, Packs};

/// Number of segments above which they are merged.
const MOST_SEGMENTS: usize = 32;
/// Maximum bytes of the records of a group that is merged.
const GROUP_BYTES: usize = 64 << 20;
/// Share of dropped packs, in percent, above which a segment is written again.
const DEAD_PERCENT: usize = 25;

/// The segments that a compaction wrote and removed.
#[derive(Debug, Default)]
pub(crate) struct Compacted {
    /// Deletions of segments that failed.
    pub(crate) failures: Vec<(SegmentName, Error)>,
    /// Number of merged segments that were stored.
    pub(crate) merged: u64,
    /// Number of segments that were deleted.
    pub(crate) removed: u64,
}

/// Segments that are merged.
type Group = BTreeSet<SegmentName>;

/// The inputs of a compaction.
struct Compaction<'a> {
    /// Returns `true` if every view has what was stored then.
    is_settled: &'a (dyn Fn(Option<SystemTime>) -> bool + Sync),
    /// The packs of a listing.
    listed: HashSet<PackName>,
    /// The segments of a listing.
    segments: BTreeMap<SegmentName, ListedSegment>,
}

impl PackedBackend {
    /// Deletes replaced segments, and merges segments if it is worth it. `is_settled` returns `true` if every view has what was stored at
    /// this time. The caller holds the lock of the store alone.
    ///
    /// # Errors
    /// Any failure to list and to store segments. All views stay as they were.
    pub(crate) async fn compact(
        &self,
        begin: &Cursor,
        is_settled: &(dyn Fn(Option<SystemTime>) -> bool + Sync),
    ) -> Result<Compacted> {
        let packs = &self.packs;
        let listing = packs.listing_of(begin).await?;
        listing.check_readable("merge segments behind")?;
        let listed = listing.packs.keys().copied().collect();
        let segments = packs.list_segments().await?.segments;
        let compaction = Compaction { is_settled, listed, segments };
        let mut compacted = Compacted::default();
        let groups = compaction.groups(&packs.state().view);
        for group in groups {
            compacted.merged += u64::from(packs.merge(&compaction, &group).await?);
        }
        packs.inner.barrier().await?;
        let replaced: Vec<_> = compaction.replaced(&packs.state().view);
        let removals: Vec<_> = replaced.iter().map(|name| Removal::any(Key::Segment(*name))).collect();
        if !removals.is_empty() {
            for (name, deleted) in replaced.iter().zip(packs.inner.delete(&removals).await?) {
                match deleted {
                    Ok(deleted) => {
                        packs.handles.forget_segments([name]);
                        compacted.removed += u64::from(deleted == Deleted::Removed);
                    }
                    Err(error) => compacted.failures.push((*name, error)),
                }
            }
        }
        Ok(compacted)
    }
}

impl Packs {
    /// Stores the merged segment of a group. Returns `false` if the group cannot be merged.
    async fn merge(self: &Arc<Self>, compaction: &Compaction<'_>, group: &Group) -> Result<bool> {
        let _alone = self.recording.lock().await;
        let Ok(builder) = self.merged(compaction, group).await? else { return Ok(false) };
        let segment = match self.put_segment(builder).await? {
            // Two segments differ about a pack, or there is too much to say. All stay.
            Err(SegmentWriteError::Conflict | SegmentWriteError::TooLarge) => return Ok(false),
            stored => stored.map_err(unencodable)?,
        };
        let mut state = self.state();
        self.add_segment(&mut state, &segment, None);
        for name in group {
            state.view.remove_segment(name);
        }
        drop(state);
        self.note_recorded();
        Ok(true)
    }

    async fn merged(
        &self,
        compaction: &Compaction<'_>,
        group: &Group,
    ) -> Result<Result<SegmentBuilder, SegmentWriteError>> {
        let mut builder = {
            let mut state = self.state();
            state.writer.next_segment += 1;
            SegmentBuilder::new(SegmentName { session: self.session, n: state.writer.next_segment - 1 })
        };
        for name in group {
            let known = self.state().view.segments().get(name).cloned();
            let Some(known) = known else { continue };
            let numbers = match compaction.add_facts(&self.state().view, &known, &mut builder) {
                Err(error) => return Ok(Err(error)),
                Ok(numbers) => numbers,
            };
            let mut next = Some(0);
            while let Some(slot) = next {
                let (records, behind) = self.records_from(&known, slot).await?;
                let state = self.state();
                let in_memory = state.excluded_in_memory();
                for record in records.iter() {
                    let Some(number) = numbers.get(&record.pack) else { continue };
                    let is_excluded = known.place(&record).is_some_and(|place| {
                        state.view.is_excluded(&place) && !in_memory.contains(&place.key())
                    });
                    if !is_excluded && let Err(error) = builder.push(*number, record.entry) {
                        return Ok(Err(error));
                    }
                }
                next = behind;
            }
        }
        let drops = compaction.drops(&self.state().view, group);
        for pack in drops {
            builder.drop_pack(pack);
        }
        Ok(Ok(builder))
    }
}

impl Compaction<'_> {
    /// The groups to merge, the smallest segments first.
    fn groups(&self, view: &View) -> Vec<Group> {
        let segments = view.segments();
        let mut settled: Vec<_> = segments
            .iter()
            .filter(|(name, _)| self.is_known_everywhere(name))
            .map(|(name, known)| (known.len(), *name, self.is_wasteful(view, known)))
            .collect();
        if segments.len() <= MOST_SEGMENTS {
            settled.retain(|(_, _, is_wasteful)| *is_wasteful);
        }
        settled.sort_unstable();
        let (mut groups, mut group) = (Vec::new(), (Group::new(), 0, false));
        for (records, name, is_wasteful) in settled {
            let bytes = records * RECORD_BYTES;
            if group.1 + bytes > GROUP_BYTES {
                groups.push(std::mem::take(&mut group));
            }
            group.0.insert(name);
            group = (group.0, group.1 + bytes, group.2 || is_wasteful);
        }
        groups.push(group);
        let is_worth = |(group, _, is_wasteful): &(Group, usize, bool)| group.len() > 1 || *is_wasteful;
        groups.into_iter().filter(is_worth).map(|(group, ..)| group).collect()
    }

    /// Returns `true` if every view has a segment.
    fn is_known_everywhere(&self, name: &SegmentName) -> bool {
        (self.is_settled)(self.segments.get(name).map(|listed| listed.stored))
    }

    /// Returns `true` if much of a segment is of no use. Its records are not read for that: packs have about as many each.
    fn is_wasteful(&self, view: &View, known: &Known) -> bool {
        let gone = known.numbers.iter().filter(|number| self.is_gone(view, **number)).count();
        gone * 100 > known.numbers.len() * DEAD_PERCENT
    }

    /// Returns `true` if every view knows that a pack was dropped.
    fn is_gone(&self, view: &View, number: u32) -> bool {
        view.pack(number).is_some_and(|pack| pack.is_dropped && (self.is_settled)(pack.dropped_at))
    }

    /// Adds what a segment says apart from its records. Returns the numbers of its packs, by those in its table.
    fn add_facts(
        &self,
        view: &View,
        known: &Known,
        builder: &mut SegmentBuilder,
    ) -> Result<HashMap<u32, PackNumber>, SegmentWriteError> {
        builder.replace(known.name());
        let mut numbers = HashMap::new();
        for (in_table, number) in (0..).zip(known.numbers.iter()) {
            let pack = view.segment_pack(*number).filter(|_| !self.is_gone(view, *number));
            if let Some(pack) = pack {
                numbers.insert(in_table, builder.add_pack(pack)?);
            }
        }
        for exclusion in &known.facts.exclusions {
            let is_gone = view.known(exclusion.pack).is_some_and(|number| self.is_gone(view, number));
            if !is_gone {
                builder.exclude(*exclusion)?;
            }
        }
        let replaced = known.facts.replaced.iter().filter(|name| self.segments.contains_key(name));
        replaced.for_each(|earlier| builder.replace(*earlier));
        Ok(numbers)
    }

    /// The drops in a group that are still of use.
    fn drops(&self, view: &View, group: &Group) -> BTreeSet<PackName> {
        mutated!("pack-merge-forgets-drops" => return BTreeSet::new());
        let named: HashSet<_> = view
            .segments()
            .iter()
            .filter(|(name, _)| !group.contains(name))
            .flat_map(|(_, known)| known.numbers.iter().filter_map(|number| Some(view.pack(*number)?.name)))
            .collect();
        let is_of_use = |name: &PackName| {
            let is_gone = view.known(*name).is_some_and(|number| self.is_gone(view, number));
            !is_gone || self.listed.contains(name) || named.contains(name)
        };
        let segments = group.iter().filter_map(|name| view.segments().get(name));
        segments.flat_map(|known| known.facts.dropped.iter().copied()).filter(is_of_use).collect()
    }

    /// Replaced segments that may be deleted.
    fn replaced(&self, view: &View) -> Vec<SegmentName> {
        let merged = view.segments().iter().filter(|(name, _)| self.is_known_everywhere(name));
        let replaced = merged.flat_map(|(_, known)| known.facts.replaced.iter().copied());
        replaced.filter(|name| self.segments.contains_key(name)).collect()
    }
}
