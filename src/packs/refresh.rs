//! Reading the segments.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::backend::{ListEntry, ListQuery, ObjectInfo, list_all};
use crate::error::{Error, ErrorKind, Result};
use crate::format::blob::DecodeError;
use crate::format::larder::segment::head::{HeadPart, SegmentHead};
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::records::SlotRecords;
use crate::format::larder::segment::{MAX_SEGMENT_BYTES, Segment};
use crate::format::layout::{Key, Prefix};
use crate::packs::view::View;
use crate::packs::{PackedBackend, Packs};

/// A segment in a listing.
#[derive(Clone, Copy, Debug)]
pub(super) struct ListedSegment {
    pub(super) bytes: u64,
    /// The time of its put.
    pub(super) stored: SystemTime,
}

/// A listing of all segments.
#[derive(Default)]
pub(super) struct SegmentListing {
    pub(super) segments: BTreeMap<SegmentName, ListedSegment>,
    /// Entries in the place of a segment that are no objects, by path.
    unreadable: BTreeMap<String, Error>,
}

/// The result of reading a segment.
enum ReadSegment {
    Damaged(String, Error),
    /// It was deleted since it was listed.
    Gone(SegmentName),
    /// Without records if they are read by range.
    Good(SegmentHead, Option<SlotRecords>),
    /// Another segment replaced it.
    Replaced,
}

/// Segments that were read.
#[derive(Default)]
struct Refreshed {
    /// Segments that were deleted since they were listed.
    gone: Vec<SegmentName>,
    read: Vec<(SegmentHead, Option<SlotRecords>)>,
    /// Damaged ones, by path.
    unreadable: BTreeMap<String, Error>,
}

/// The segments after the last of several listings.
struct Settled {
    is_there: BTreeSet<SegmentName>,
    listed: BTreeMap<SegmentName, ListedSegment>,
    /// Damaged ones, by path.
    unreadable: BTreeMap<String, Error>,
}

/// A segment to read.
struct Wanted {
    is_by_range: bool,
    name: SegmentName,
    /// Bytes of the object, if a listing shows it.
    size: Option<u64>,
}

/// Number of segments read at the same time.
const READS_IN_FLIGHT: usize = 8;
/// Time after which a listing that lags is made again.
const LAG_TIME: Duration = Duration::from_mins(1);
/// Time after which the view is read again for another copy of a damaged chunk. A verification may find many.
const COPY_TIME: Duration = Duration::from_mins(1);
/// Maximum number of listings for a view, in a store whose segments are merged meanwhile.
const MOST_LISTINGS: usize = 5;
/// Bytes at the start of a segment that contain the heads of most.
const HEAD_BYTES: u64 = 256 << 10;

impl PackedBackend {
    /// Reads the view again, once a minute at most, if another process may have stored a second copy of a chunk since.
    ///
    /// # Errors
    /// As for a listing of segments.
    pub(crate) async fn look_for_copies(&self) -> Result<()> {
        if self.packs.since_refreshed() < COPY_TIME {
            return self.packs.catch_up().await;
        }
        self.look_for_chunks().await
    }

    /// Reads the view again, if another process may have stored chunks since.
    ///
    /// # Errors
    /// As for a listing of segments.
    pub(crate) async fn look_for_chunks(&self) -> Result<()> {
        self.packs.refresh_if_stale().await.map(drop)
    }
}

impl Packs {
    /// Reads the view again, unless this process alone may have changed the store since it was read. Returns `true` if it was read.
    ///
    /// Where listings lag, the last one may have left out what another process stored before. So the view is read again also then, once a
    /// minute at most (H13).
    pub(super) async fn refresh_if_stale(self: &Arc<Self>) -> Result<bool> {
        if self.is_exclusive() && !self.may_lack_segments() {
            return Ok(false);
        }
        self.refresh().await?;
        Ok(true)
    }

    /// Returns `true` if the listing that the view was read by may have lagged, and it is time for another one.
    pub(super) fn may_lack_segments(&self) -> bool {
        !self.inner.capabilities().consistent_listing && self.since_refreshed() >= LAG_TIME
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

    /// Forgets unrecorded packs that are gone, once for each holding of the lock of the store. A fresh view is no proof that they were looked for: a
    /// failed or dropped attempt to lock, or a read, may have read it. Every holder waits for the first one, which has not forgotten them yet.
    ///
    /// # Errors
    /// Any failure to look for them. The next holder does it then.
    pub(super) async fn check_unrecorded(&self) -> Result<()> {
        let mut checked = self.checked.lock().await;
        let holding = self.holding();
        if *checked != holding {
            self.look_for_unrecorded().await?;
            *checked = holding;
        }
        Ok(())
    }

    /// Forgets packs that are not recorded and do not exist any more: another process adopted them as orphans, dropped and deleted them, and
    /// later also forgot the drop.
    ///
    /// # Errors
    /// Any failure to look for them.
    async fn look_for_unrecorded(&self) -> Result<()> {
        mutated!("pack-is-recorded-after-it-was-deleted" => return Ok(()));
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
        let Settled { is_there, listed, unreadable } = self.read_until_settled(&before).await?;
        // A damaged one may be what said that packs were dropped. Writers rely on none that is gone.
        let before_listing = self.stored_packs();
        let packs = if unreadable.is_empty() { None } else { Some(self.list_packs().await?) };
        {
            let mut state = self.state();
            let gone = before.iter().filter(|name| !is_there.contains(*name)).copied();
            let gone: Vec<_> = gone.chain(state.view.replaced()).collect();
            for name in gone {
                state.view.remove_segment(&name);
            }
            state.view.shrink(self.index);
            state.view.set_unreadable(unreadable);
        }
        if let Some(packs) = packs {
            self.note_listing(&before_listing, &packs);
        }
        self.keep_local(&listed).await;
        self.note_refreshed(begun);
        Ok(())
    }

    /// Adds the segments that the view does not have to it. `before` are those that it had.
    ///
    /// A segment vanishes after a merged one that replaced it was stored. A listing that lacks the first may also lack the second, which got a
    /// name behind its position. So it is made again, until each segment that vanished without a known replacement did so before it began.
    async fn read_until_settled(&self, before: &[SegmentName]) -> Result<Settled> {
        let lags = !self.inner.capabilities().consistent_listing;
        // A listing may lag behind the segments that this process stored, and no other process replaces those meanwhile.
        let keeps_own = lags && self.was_exclusive();
        let (mut confirmed, mut listings) = (BTreeSet::new(), 0);
        loop {
            let listing = self.list_segments().await?;
            let stored = if lags { self.handles.stored(self.runtime().monotonic()) } else { BTreeSet::new() };
            let Refreshed { gone, read, mut unreadable } = self.read_unknown(&listing, &stored).await?;
            let own = stored.into_iter().filter(|_| keeps_own);
            let is_there: BTreeSet<_> = listing.segments.keys().copied().chain(own).collect();
            let vanished: Vec<_> = {
                let mut state = self.state();
                for (head, records) in read {
                    let stored = listing.segments.get(&head.name()).map(|listed| listed.stored);
                    state.view.add_segment(&head, records, stored);
                }
                let replaced: HashSet<_> = state.view.replaced().collect();
                let absent = before.iter().copied().filter(|name| !is_there.contains(name)).chain(gone);
                absent.filter(|name| !replaced.contains(name)).collect()
            };
            listings += 1;
            let is_settled = vanished.iter().all(|name| confirmed.contains(name));
            if is_settled || listings == MOST_LISTINGS || mutated!("segments-are-listed-once") {
                unreadable.extend(listing.unreadable);
                return Ok(Settled { is_there, listed: listing.segments, unreadable });
            }
            confirmed.extend(vanished);
        }
    }

    /// Reads the segments that the view does not have.
    async fn read_unknown(
        &self,
        listing: &SegmentListing,
        stored: &BTreeSet<SegmentName>,
    ) -> Result<Refreshed> {
        let (wanted, replaced) = {
            let state = self.state();
            let (known, replaced) = (state.view.segments(), state.view.replaced().collect::<HashSet<_>>());
            let listed = listing.segments.keys();
            let all = listed.chain(stored.iter().filter(|name| !listing.segments.contains_key(name)));
            let unknown = all.filter(|name| !known.contains_key(name) && !replaced.contains(name));
            let size = |name| listing.segments.get(name).map(|listed| listed.bytes);
            let wanted = unknown.map(|name| Wanted { is_by_range: false, name: *name, size: size(name) });
            (self.choose(&state.view, wanted.collect()), Mutex::new(replaced))
        };
        let reads = stream::iter(wanted).map(|wanted| self.read_segment(wanted, &replaced));
        let mut reads = reads.buffer_unordered(READS_IN_FLIGHT);
        let mut refreshed = Refreshed::default();
        while let Some(segment) = reads.try_next().await? {
            match segment {
                ReadSegment::Damaged(path, error) => drop(refreshed.unreadable.insert(path, error)),
                ReadSegment::Gone(name) => refreshed.gone.push(name),
                ReadSegment::Replaced => {}
                ReadSegment::Good(head, records) => refreshed.read.push((head, records)),
            }
        }
        Ok(refreshed)
    }

    /// All segments in the store.
    ///
    /// # Errors
    /// Any failure to list them.
    pub(super) async fn list_segments(&self) -> Result<SegmentListing> {
        let entries = list_all(self.inner.as_ref(), &ListQuery::all(Prefix::Segments)).await?.into_entries();
        let mut listing = SegmentListing::default();
        let mut foreign = Vec::new();
        for entry in entries {
            match entry {
                ListEntry::Object(ObjectInfo { key: Key::Segment(name), last_used, size, .. }) => {
                    listing.segments.insert(name, ListedSegment { bytes: size, stored: last_used });
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

    /// Decides which segments are read by range, the largest ones, and puts those first that replace others.
    fn choose(&self, view: &View, mut wanted: Vec<Wanted>) -> Vec<Wanted> {
        let bytes = |wanted: &Wanted| usize::try_from(wanted.size.unwrap_or(0)).unwrap_or(usize::MAX);
        // Merged segments are large, and those that they replace need not be read.
        wanted.sort_by_key(|wanted| Reverse(bytes(wanted)));
        let mut total = wanted.iter().map(bytes).fold(view.bytes_in_memory(), usize::saturating_add);
        for segment in &mut wanted {
            let bytes = bytes(segment);
            segment.is_by_range = total > self.index.bytes && bytes >= self.index.smallest();
            if segment.is_by_range {
                total = total.saturating_sub(bytes);
            }
        }
        wanted
    }

    async fn read_segment(
        &self,
        wanted: Wanted,
        replaced: &Mutex<HashSet<SegmentName>>,
    ) -> Result<ReadSegment> {
        let Wanted { is_by_range, name, size } = wanted;
        if replaced.lock().unwrap_or_else(PoisonError::into_inner).contains(&name) {
            return Ok(ReadSegment::Replaced);
        }
        let of_whole = |segment: Segment| (segment.head().clone(), Some(segment.records().clone()));
        let read = match size.filter(|_| is_by_range) {
            Some(size) => self.read_head(name, size).await.map(|head| (head, None)),
            None => self.read_whole(name).await.map(of_whole),
        };
        let (head, records) = match read {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(ReadSegment::Gone(name)),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                return Ok(ReadSegment::Damaged(Key::Segment(name).to_string(), error));
            }
            read => read?,
        };
        replaced.lock().unwrap_or_else(PoisonError::into_inner).extend(head.replaced());
        Ok(ReadSegment::Good(head, records))
    }

    /// Segments of the view that the store does not have any more, or that are damaged there by now.
    ///
    /// # Errors
    /// Any failure to read them, other than damage.
    pub(super) async fn lost_segments(&self) -> Result<BTreeMap<SegmentName, Error>> {
        let names: Vec<_> = self.state().view.segments().keys().copied().collect();
        let reads = stream::iter(names).map(|name| async move {
            match self.read_whole(name).await {
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
                    Ok(Some((name, error)))
                }
                read => read.map(|_| None),
            }
        });
        let lost: Vec<_> = reads.buffer_unordered(READS_IN_FLIGHT).try_collect().await?;
        Ok(lost.into_iter().flatten().collect())
    }

    async fn read_whole(&self, name: SegmentName) -> Result<Segment> {
        let key = Key::Segment(name);
        let object = self.inner.get(&key, MAX_SEGMENT_BYTES).await?;
        let parse = move || {
            let damaged = |error| Error::new(ErrorKind::Corrupt, "read").on(&key).because(error);
            Segment::parse(&name, &object.bytes).map_err(damaged)
        };
        self.runtime().run_blocking("read an index segment", parse).await
    }

    /// Reads the head of a segment of this size, from its local copy if that is good.
    async fn read_head(&self, name: SegmentName, size: u64) -> Result<SegmentHead> {
        if self.has_local(&name, size).await {
            if let Ok(head) = self.read_head_by(name, size, true).await {
                return Ok(head);
            }
            self.forget_local(&name).await;
        }
        self.read_head_by(name, size, false).await
    }

    async fn read_head_by(&self, name: SegmentName, size: u64, is_local: bool) -> Result<SegmentHead> {
        let damaged = |error| Error::new(ErrorKind::Corrupt, "read").on(Key::Segment(name)).because(error);
        let mut want = HEAD_BYTES.min(size);
        loop {
            let prefix = if is_local {
                let read = self.local_range(&name, 0..want).await;
                read.ok_or_else(|| Error::new(ErrorKind::NotFound, "read").on(Key::Segment(name)))?
            } else {
                self.stored_range(&name, 0..want).await?
            };
            let parse = move || Ok(SegmentHead::parse(&name, size, &prefix));
            match self.runtime().run_blocking("read the head of a segment", parse).await?.map_err(damaged)? {
                HeadPart::Head(head) => return Ok(head),
                HeadPart::Needs { prefix_bytes } if prefix_bytes > want && prefix_bytes <= size => {
                    want = prefix_bytes;
                }
                HeadPart::Needs { .. } => return Err(damaged(DecodeError::Truncated { want, have: size })),
            }
        }
    }
}
