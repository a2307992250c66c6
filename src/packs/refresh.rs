//! Reading the segments.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::backend::{ListEntry, ListQuery, ObjectInfo, list_all};
use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::{MAX_SEGMENT_BYTES, Segment};
use crate::format::layout::{Key, Prefix};
use crate::packs::Packs;

/// A listing of all segments.
pub(super) struct SegmentListing {
    /// With the times of their puts.
    pub(super) times: BTreeMap<SegmentName, SystemTime>,
    /// Entries in the place of a segment that are no objects, by path.
    unreadable: BTreeMap<String, Error>,
}

/// The result of reading a segment.
enum ReadSegment {
    Damaged(String, Error),
    /// It was deleted since it was listed.
    Gone,
    Good(Segment),
}

/// Number of segments read at the same time.
const READS_IN_FLIGHT: usize = 8;

impl Packs {
    /// Reads the view again, unless this process alone may have changed the store since it was read. Returns `true` if it was read.
    pub(super) async fn refresh_if_stale(self: &Arc<Self>) -> Result<bool> {
        if self.is_exclusive() {
            return Ok(false);
        }
        self.refresh().await?;
        Ok(true)
    }

    /// Reads the segments that this handle does not know, and forgets those that the store does not have any more. The view is without
    /// damaged ones, and knows that.
    ///
    /// # Errors
    /// Any failure to read them all, other than damage.
    pub(super) async fn refresh(self: &Arc<Self>) -> Result<()> {
        let _alone = self.refreshing.lock().await;
        self.read_segments().await
    }

    /// As [`refresh`](Self::refresh), if another handle of this process stored a segment since.
    ///
    /// # Errors
    /// As [`refresh`](Self::refresh).
    pub(super) async fn catch_up(self: &Arc<Self>) -> Result<()> {
        if !self.is_behind() {
            return Ok(());
        }
        let _alone = self.refreshing.lock().await;
        if self.is_behind() { self.read_segments().await } else { Ok(()) }
    }

    /// Forgets packs that are not recorded and do not exist any more: another process adopted them as orphans, dropped and deleted them, and
    /// later also forgot the drop.
    ///
    /// # Errors
    /// Any failure to look for them.
    pub(super) async fn look_for_unrecorded(&self) -> Result<()> {
        let unrecorded: Vec<_> = {
            let state = self.state();
            let numbers = state.stored_unrecorded().into_iter();
            numbers.filter_map(|number| Some((number, state.view.pack(number)?.name))).collect()
        };
        for (number, name) in unrecorded {
            if !self.inner.has(&Key::Pack(name)).await? {
                self.state().forget(number);
            }
        }
        Ok(())
    }

    async fn read_segments(self: &Arc<Self>) -> Result<()> {
        let begun = self.tenure_now();
        // One that is stored from now on may be missing in the listing.
        let before: Vec<_> = self.state().view.segments().keys().copied().collect();
        let SegmentListing { times, mut unreadable } = self.list_segments().await?;
        let lags = !self.inner.capabilities().consistent_listing;
        let stored = if lags { self.handles.stored(self.runtime().monotonic()) } else { BTreeSet::new() };
        let unknown: Vec<_> = {
            let state = self.state();
            let known = state.view.segments();
            let all = times.keys().chain(stored.iter().filter(|name| !times.contains_key(name)));
            all.filter(|name| !known.contains_key(name)).copied().collect()
        };
        let reads =
            stream::iter(unknown).map(|name| self.read_segment(name)).buffer_unordered(READS_IN_FLIGHT);
        let mut read = Vec::new();
        for segment in reads.try_collect::<Vec<_>>().await? {
            match segment {
                ReadSegment::Damaged(path, error) => drop(unreadable.insert(path, error)),
                ReadSegment::Gone => {}
                ReadSegment::Good(segment) => read.push(segment),
            }
        }
        // A damaged one may be what said that packs were dropped. Writers rely on none that is gone.
        let before_listing = self.stored_packs();
        let packs = if unreadable.is_empty() { None } else { Some(self.list_packs().await?) };
        let mut state = self.state();
        // A listing may lag behind the segments that this process stored, and no other process replaces those meanwhile.
        let keeps_own = lags && self.was_exclusive();
        let gone: Vec<_> = before
            .iter()
            .filter(|name| !(times.contains_key(name) || keeps_own && stored.contains(name)))
            .copied()
            .collect();
        for segment in read {
            let stored = times.get(&segment.head().name()).copied();
            state.view.add_segment(segment, stored);
        }
        let replaced: Vec<_> =
            state.view.segments().values().flat_map(|known| known.segment.head().replaced()).collect();
        for name in gone.iter().chain(&replaced) {
            state.view.remove_segment(name);
        }
        state.view.set_unreadable(unreadable);
        drop(state);
        if let Some(packs) = packs {
            self.note_listing(&before_listing, &packs);
        }
        self.note_refreshed(begun);
        Ok(())
    }

    /// All segments in the store.
    ///
    /// # Errors
    /// Any failure to list them.
    pub(super) async fn list_segments(&self) -> Result<SegmentListing> {
        let entries = list_all(self.inner.as_ref(), &ListQuery::all(Prefix::Segments)).await?.into_entries();
        let mut listing = SegmentListing { times: BTreeMap::new(), unreadable: BTreeMap::new() };
        let mut foreign = Vec::new();
        for entry in entries {
            match entry {
                ListEntry::Object(ObjectInfo { key: Key::Segment(name), last_used, .. }) => {
                    listing.times.insert(name, last_used);
                }
                ListEntry::Foreign(path) => foreign.push(path),
                ListEntry::Unreadable(unreadable) => {
                    listing.unreadable.insert(unreadable.path.clone(), unreadable.error("read"));
                }
                _ => {}
            }
        }
        self.note_foreign(foreign);
        Ok(listing)
    }

    async fn read_segment(&self, name: SegmentName) -> Result<ReadSegment> {
        let key = Key::Segment(name);
        let object = match self.inner.get(&key, MAX_SEGMENT_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ReadSegment::Gone),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                return Ok(ReadSegment::Damaged(key.to_string(), error));
            }
            object => object?,
        };
        let parse = move || {
            Ok(match Segment::parse(&name, &object.bytes) {
                Ok(segment) => ReadSegment::Good(segment),
                Err(error) => {
                    let error = Error::new(ErrorKind::Corrupt, "read").on(&key).because(error);
                    ReadSegment::Damaged(key.to_string(), error)
                }
            })
        };
        self.runtime().run_blocking("read an index segment", parse).await
    }
}
