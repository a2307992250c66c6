//! Listings of chunks, made of the view and of a listing of the packs.
//!
//! A chunk is listed if the view has a copy of it in a pack that exists. So a listing of chunks begins with a listing of packs, which its
//! cursors name. [`Housekeeping::begin_listing`](crate::backend::Housekeeping::begin_listing) makes one for several listings of parts.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ops::Bound;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::backend::{Cursor, ListEntry, ListPage, ListQuery, Pager, Unreadable};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::pack::name::PackName;
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::records::SlotRecords;
use crate::format::layout::{Key, Prefix};
use crate::packs::known::{Known, SlotRun};
use crate::packs::lookup::Copy;
use crate::packs::place::Place;
use crate::packs::view::View;
use crate::packs::{Packs, State};

/// Number of chunks on a page.
const PAGE_ENTRIES: usize = 10_000;
/// Minimum number of chunks that a page takes from a segment.
const LEAST_ENTRIES: usize = 100;
/// Number of the last quarantined copy of a chunk that has a key.
pub(super) const LAST_COPY: u8 = 9;
/// Number of listings of packs that are remembered.
const REMEMBERED: usize = 8;

/// A listing of all packs.
#[derive(Debug, Default)]
pub(super) struct PackListing {
    foreign: Vec<String>,
    pub(super) packs: HashMap<PackName, (u64, SystemTime)>,
    /// Links and other entries in the place of packs.
    unreadable: Vec<Unreadable>,
}

impl PackListing {
    /// Fails if there is anything in the place of a pack that cannot be read: what deletes must not take the pack for absent.
    pub(super) fn check_readable(&self, action: &'static str) -> Result<()> {
        self.unreadable.first().map_or(Ok(()), |unreadable| Err(unreadable.error(action)))
    }
}

/// Recent listings of packs, by the numbers in the cursors.
#[derive(Debug, Default)]
pub(super) struct Listings {
    /// Files among the segments that are none, such as those of writers that died.
    among_segments: Vec<String>,
    last: u64,
    recent: VecDeque<(u64, Arc<PackListing>)>,
}

impl Packs {
    /// Lists all packs, and returns the cursor from which listings of chunks begin.
    pub(super) async fn begin_listing(self: &Arc<Self>) -> Result<Cursor> {
        self.refresh_if_stale().await?;
        let stored = self.stored_packs();
        let listing = Arc::new(self.list_packs().await?);
        self.note_listing(&stored, &listing);
        self.note_listed();
        let mut listings = self.listings();
        listings.last += 1;
        let number = listings.last;
        listings.recent.push_back((number, listing));
        if listings.recent.len() > REMEMBERED {
            listings.recent.pop_front();
        }
        Ok(Cursor::new(format!("{number}:")))
    }

    /// Packs that are stored now. One that is stored later may be missing in a listing that begins now.
    pub(super) fn stored_packs(&self) -> HashSet<u32> {
        let state = self.state();
        state.view.numbers().filter(|number| !state.view.is_in_memory(*number)).collect()
    }

    /// Notes which packs exist.
    pub(super) fn note_listing(&self, stored: &HashSet<u32>, listing: &PackListing) {
        let mut state = self.state();
        for number in state.view.numbers() {
            let is_own = state.writer.unrecorded.contains_key(&number);
            let Some(info) = state.view.pack_mut(number) else { continue };
            let found = listing.packs.get(&info.name);
            let is_later = info.name.session == self.session && !stored.contains(&number);
            if found.is_none() && is_later {
                continue;
            }
            info.last_used = found.map(|(_, last_used)| *last_used).or(info.last_used);
            info.is_listed = found.is_some() || is_own;
            info.stored_bytes = found.map(|(bytes, _)| *bytes);
        }
    }

    /// Notes the foreign files that a listing of segments shows.
    pub(super) fn note_foreign(&self, among_segments: Vec<String>) {
        self.listings().among_segments = among_segments;
    }

    /// The files among packs and segments that are neither, which follow the chunks of a listing.
    pub(super) fn foreign(&self, listing: &PackListing) -> Vec<String> {
        let mut foreign = self.listings().among_segments.clone();
        foreign.extend(listing.foreign.iter().cloned());
        foreign
    }

    /// Lists all packs. One that cannot be read is not among them, so that no writer relies on it.
    pub(super) async fn list_packs(&self) -> Result<PackListing> {
        let mut listing = PackListing::default();
        let mut pager = Pager::new(ListQuery::all(Prefix::Packs));
        while let Some(page) = pager.next(self.inner.as_ref()).await? {
            for entry in page {
                match entry {
                    ListEntry::Object(info) => {
                        if let Key::Pack(name) = info.key {
                            listing.packs.insert(name, (info.size, info.last_used));
                        }
                    }
                    ListEntry::Foreign(path) => listing.foreign.push(path),
                    ListEntry::Unreadable(unreadable) => listing.unreadable.push(unreadable),
                    ListEntry::Name(_) | ListEntry::Prefix(_) => {}
                }
            }
        }
        Ok(listing)
    }

    /// One page of a listing of chunks.
    pub(super) async fn list_chunks(
        self: &Arc<Self>,
        query: &ListQuery,
        cursor: Option<&Cursor>,
    ) -> Result<ListPage> {
        if let Some(page) = self.page_of_one(query).await? {
            return Ok(page);
        }
        let begun = match cursor {
            None => Some(self.begin_listing().await?),
            Some(_) => None,
        };
        let cursor = cursor.or(begun.as_ref()).ok_or_else(|| Error::new(ErrorKind::Internal, "list"))?;
        let listing = self.listing_of(cursor).await?;
        let (number, after) = split(cursor)?;
        let after = (!after.is_empty()).then(|| after.parse().map_err(|_| unknown(cursor))).transpose()?;
        let (copies, limit) = self.page(query, after.as_ref(), &listing).await?;
        // Behind all copies of the last digest that was looked at, whether the page shows one or not.
        let next = limit.map(|limit| Cursor::new(format!("{number}:{}", Key::Quarantined(limit, LAST_COPY))));
        let is_last = next.is_none();
        let state = self.state();
        let mut entries: Vec<_> = copies
            .iter()
            .map(|(copy, place)| ListEntry::Object(self.info_of(&state.view, *copy, place)))
            .collect();
        drop(state);
        if is_last && query.until.is_none() {
            entries.extend(self.foreign(&listing).into_iter().map(ListEntry::Foreign));
        }
        Ok(ListPage::new(entries, next))
    }

    /// The copies of one chunk, for a query that covers no other. It needs no listing.
    async fn page_of_one(self: &Arc<Self>, query: &ListQuery) -> Result<Option<ListPage>> {
        let bound = |key: &Option<Key>| key.as_ref().and_then(Copy::of);
        let bounds = bound(&query.after).zip(bound(&query.until));
        let Some((after, _)) = bounds.filter(|(after, until)| after.digest == until.digest) else {
            return Ok(None);
        };
        let copies = (0..=LAST_COPY).map(|number| Copy { digest: after.digest, quarantined: Some(number) });
        let copies = [Copy { digest: after.digest, quarantined: None }].into_iter().chain(copies);
        let mut entries = Vec::new();
        for copy in copies.filter(|copy| query.covers(&copy.key().path())) {
            entries.extend(self.known_copy(copy).await?.map(ListEntry::Object));
        }
        Ok(Some(ListPage::new(entries, None)))
    }

    /// The listing of packs that a cursor names.
    pub(super) async fn listing_of(&self, cursor: &Cursor) -> Result<Arc<PackListing>> {
        let (number, _) = split(cursor)?;
        let remembered = self.listings().find(number);
        match remembered {
            Some(listing) => Ok(listing),
            // Forgotten: many listings began since.
            None => Ok(Arc::new(self.list_packs().await?)),
        }
    }

    /// The copies of a page in order, and the last digest that was looked at if it is not the last page.
    pub(super) async fn page(
        self: &Arc<Self>,
        query: &ListQuery,
        after: Option<&Key>,
        listing: &PackListing,
    ) -> Result<(Vec<(Copy, Place)>, Option<Digest>)> {
        let after = after.into_iter().chain(&query.after).max();
        let first = after.and_then(Copy::of).map(|copy| copy.digest);
        let until = query.until.as_ref().and_then(Copy::of).map(|copy| copy.digest);
        let (state, found) = self.candidates(first, until).await?;
        let Candidates { mut found, limit, .. } = found;
        found.sort_by_key(|(digest, _)| *digest);
        let mut page = Vec::with_capacity(found.len());
        let is_inside = |digest: &Digest| {
            (after.is_none() || first.is_some_and(|first| *digest > first))
                && (query.until.is_none() || until.is_some_and(|until| *digest < until))
        };
        let covers = |copy: &Copy| {
            if is_inside(&copy.digest) {
                return true;
            }
            let key = copy.key();
            after.is_none_or(|after| key > *after) && query.until.as_ref().is_none_or(|until| key <= *until)
        };
        let is_there = |place: &&Place| {
            state.view.pack(place.pack).is_some_and(|pack| {
                listing.packs.get(&pack.name).is_some_and(|(bytes, _)| place.end() <= *bytes)
                    || pack.contents.is_some()
                    || state.writer.unrecorded.contains_key(&place.pack)
            })
        };
        for of_chunk in found.chunk_by(|(one, _), (other, _)| one == other) {
            let Some((digest, _)) = of_chunk.first() else { continue };
            if limit.is_some_and(|limit| *digest > limit) {
                break;
            }
            let chunk = Copy { digest: *digest, quarantined: None };
            let places = of_chunk.iter().filter_map(|(_, place)| place.as_ref());
            let counting = places.filter(|place| state.view.counts(place));
            if let Some(place) = counting.filter(is_there).min_by_key(|place| preference(place)) {
                page.extend(covers(&chunk).then_some((chunk, *place)));
            }
            for (number, place) in (0..=LAST_COPY).zip(state.view.bad(digest)) {
                let copy = Copy { digest: *digest, quarantined: Some(number) };
                page.extend(covers(&copy).then_some((copy, place)));
            }
        }
        Ok((page, limit))
    }

    /// The copies of the next chunks, and the state in which they are so.
    async fn candidates(
        self: &Arc<Self>,
        first: Option<Digest>,
        until: Option<Digest>,
    ) -> Result<(MutexGuard<'_, State>, Candidates)> {
        loop {
            let reads: Vec<_> = {
                let state = self.state();
                let all = state.view.records();
                let segments = state.view.segments().values();
                segments.filter_map(|known| known.run_from(first.as_ref(), share(known.len(), all))).collect()
            };
            let Some(runs) = self.read_runs(reads).await? else {
                // A listing without the chunks that a damaged segment names would not be one.
                self.check_segments()?;
                continue;
            };
            let runs: HashMap<_, _> = runs.into_iter().map(|run| (run.read.name, run)).collect();
            let mut found = Candidates { first, found: Vec::new(), limit: None, until };
            let state = self.state();
            found.add_recent(&state.view);
            let all = state.view.records();
            // A segment may be new since.
            let mut segments = state.view.segments().values();
            if segments.all(|known| found.add_segment(known, share(known.len(), all), &runs)) {
                return Ok((state, found));
            }
        }
    }

    fn listings(&self) -> MutexGuard<'_, Listings> {
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listings {
    fn find(&self, number: u64) -> Option<Arc<PackListing>> {
        self.recent.iter().find(|(of, _)| *of == number).map(|(_, listing)| Arc::clone(listing))
    }
}

/// All copies of the next digests.
struct Candidates {
    /// The first digest that is wanted.
    first: Option<Digest>,
    /// Each copy; without a place if there may be quarantined ones.
    found: Vec<(Digest, Option<Place>)>,
    /// The last digest of which all copies are known; `None` if there are no more.
    limit: Option<Digest>,
    /// The last digest that is wanted.
    until: Option<Digest>,
}

impl Candidates {
    fn add_recent(&mut self, view: &View) {
        let (first, until) = (self.first, self.until);
        let is_wanted = |digest: &Digest| {
            first.is_none_or(|first| *digest >= first) && until.is_none_or(|until| *digest <= until)
        };
        for (digest, places) in view.recent().iter().filter(|(digest, _)| is_wanted(digest)) {
            self.found.extend(places.iter().map(|place| (*digest, Some(*place))));
        }
        let from = first.map_or(Bound::Unbounded, Bound::Included);
        let bad = view.bad_digests((from, Bound::Unbounded)).into_iter().filter(is_wanted);
        self.found.extend(bad.map(|digest| (digest, None)));
    }

    /// Adds the copies of up to `most` next chunks in a segment. Returns `false` if its records were not read.
    fn add_segment(&mut self, known: &Known, most: usize, runs: &HashMap<SegmentName, SlotRun>) -> bool {
        let run = runs.get(&known.name());
        let Some(records) = known.records().or(run.map(|run| &run.records)) else { return false };
        let last = self.add_records(known, most, records);
        if known.records().is_none() && run.is_some_and(|run| run.read.next_slot().is_some()) {
            self.limit = self.limit.into_iter().chain(last).min();
        }
        true
    }

    /// Adds the copies of up to `most` chunks. Returns the last digest.
    fn add_records(&mut self, known: &Known, most: usize, records: &SlotRecords) -> Option<Digest> {
        let begin = self.first.map_or(0, |first| records.position(&first));
        let mut digests = 0;
        let mut last = None;
        for record in (begin..records.len()).filter_map(|at| records.get(at)) {
            let digest = record.entry.digest;
            if self.until.is_some_and(|until| digest > until) {
                return None;
            }
            if last != Some(digest) {
                if digests == most {
                    self.limit = self.limit.into_iter().chain(last).min();
                    return last;
                }
                digests += 1;
                last = Some(digest);
            }
            self.found.extend(known.place(&record).map(|place| (digest, Some(place))));
        }
        last
    }
}

/// Number of the chunks of a page that a segment contributes, in proportion to its records. So the parts end near each other, and few records
/// are read in vain.
fn share(records: usize, all: usize) -> usize {
    let share = PAGE_ENTRIES as u64 * records as u64 / (all as u64).max(1);
    usize::try_from(share).unwrap_or(PAGE_ENTRIES).max(LEAST_ENTRIES)
}

/// The number of the listing of packs in a cursor, and the last path before the page.
fn split(cursor: &Cursor) -> Result<(u64, &str)> {
    let split = cursor.as_str().split_once(':');
    let parsed = split.and_then(|(number, after)| Some((number.parse().ok()?, after)));
    parsed.ok_or_else(|| unknown(cursor))
}

fn unknown(cursor: &Cursor) -> Error {
    Error::new(ErrorKind::InvalidInput, "list").because(format!("unknown cursor {:?}", cursor.as_str()))
}

/// Order in which a chunk with several copies shows them: always the same one, so that the others can be removed.
fn preference(place: &Place) -> (u32, u32) {
    (place.pack, place.offset)
}
