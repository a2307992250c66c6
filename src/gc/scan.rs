//! Comparison of all chunks with the marks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use futures::stream::{self, StreamExt as _};

use crate::backend::{Cursor, Details, ListEntry, ListQuery, ObjectInfo, Pager};
use crate::chunks::{Unused, query_of};
use crate::digest_set::{MarkSet, MarkSetBuilder, Shard, mark_of};
use crate::error::{ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::gc_candidates::GcCandidates;
use crate::format::layout::{Key, PackName};
use crate::gc::census::{Census, ShardCensus, Times};
use crate::gc::options::{GcEvent, GcOptions, Sizes};
use crate::gc::progress::Candidate;
use crate::gc::walk::NAMED;
use crate::packs::survey::{Survey, SurveyPage};
use crate::store::Datastore;

/// Inputs for finding unreferenced objects.
#[derive(Debug)]
pub(super) struct Counting<'a> {
    /// The cursor of all listings of chunks.
    pub(super) begin: Option<Cursor>,
    /// Maximum number of candidates kept by name.
    pub(super) kept: AtomicUsize,
    pub(super) marks: &'a MarkSet,
    pub(super) options: &'a GcOptions,
    pub(super) candidates: &'a GcCandidates,
    pub(super) store: &'a Datastore,
    pub(super) times: Times,
}

/// A shard being listed.
#[derive(Debug)]
pub(super) struct Scan<'a> {
    census: Census,
    counting: &'a Counting<'a>,
    last_chunk: Option<Digest>,
    /// The mark seen last.
    last_mark: Option<u64>,
    /// Marks not seen yet.
    left: &'a [u64],
    missing: Vec<u64>,
    source: Source,
}

/// The objects of a shard.
#[derive(Debug)]
enum Source {
    Listing(Pager),
    /// In a packed store.
    Packs(Survey),
}

/// Some of the objects of a shard.
enum Page {
    Listed(Vec<ListEntry>),
    Packed(SurveyPage),
}

/// A chunk, or a quarantined copy of one.
#[derive(Clone, Copy, Debug)]
struct Seen {
    last_used: SystemTime,
    pack: Option<PackName>,
    size: u64,
    unused: Unused,
}

impl Counting<'_> {
    /// Scans everything; returns the marks without a chunk too.
    pub(super) async fn all(&self) -> Result<(Census, MarkSet)> {
        let inner = self.store.inner();
        // Each part of a packed store begins with a read of each large segment.
        let in_flight = match inner.packs() {
            Some(packs) => packs.requests_in_flight(),
            None => inner.uncached_backend().capabilities().in_flight,
        };
        let concurrency = self.options.control.concurrency.unwrap_or(in_flight).max(1);
        let shards = Shard::all(concurrency as u64);
        let of = shards.len() as u64;
        let mut counts = stream::iter(shards).map(|shard| self.shard(shard)).buffer_unordered(concurrency);
        let (mut all, mut missing, mut done) = (Census::default(), MarkSetBuilder::default(), 0);
        while let Some(counted) = counts.next().await {
            let (census, lost) = counted?;
            all.join(census);
            for mark in lost {
                missing.insert(mark);
            }
            done += 1;
            self.options.control.notify(&GcEvent::ShardListed { done, of });
        }
        all.shards.sort_unstable_by_key(|census| census.shard.first);
        Ok((all, missing.finish()))
    }

    async fn shard(&self, shard: Shard) -> Result<(Census, Vec<u64>)> {
        let mut scan = self.scan(shard);
        let mut kept = Some(Vec::new());
        let mut ready = 0;
        while let Some(candidates) = scan.next().await? {
            ready += candidates.iter().filter(|candidate| candidate.ready).count() as u64;
            // Waiting candidates are needed only if they are stored.
            let wanted =
                candidates.into_iter().filter(|candidate| candidate.ready || self.keeps_candidates());
            if let Some(names) = &mut kept {
                let before = names.len();
                names.extend(wanted);
                let more = names.len() - before;
                let total = self.kept.fetch_add(more, Ordering::Relaxed) + more;
                if total > self.options.memory_bytes / size_of::<Candidate>() {
                    self.kept.fetch_sub(names.len(), Ordering::Relaxed);
                    kept = None;
                }
            }
        }
        let (mut census, missing) = scan.finish();
        if let Some(names) = &mut kept {
            names.shrink_to_fit();
        }
        census.shards.push(ShardCensus { candidates: kept, ready, shard });
        Ok((census, missing))
    }

    pub(super) fn scan(&self, shard: Shard) -> Scan<'_> {
        Scan {
            census: Census::default(),
            counting: self,
            last_chunk: None,
            last_mark: None,
            left: self.marks.within(&shard),
            missing: Vec::new(),
            source: self.source(query_of(&shard, self.details())),
        }
    }

    fn source(&self, query: ListQuery) -> Source {
        match (self.store.inner().packs(), &self.begin) {
            (Some(packs), Some(begin)) => Source::Packs(Survey::new(packs.clone(), query, begin.clone())),
            (_, begin) => Source::Listing(Pager::starting_at(query, begin.clone())),
        }
    }

    /// As [`scan`](Counting::scan), starting after an object already processed.
    pub(super) fn scan_after(&self, shard: Shard, after: Option<Unused>) -> Scan<'_> {
        let mut scan = self.scan(shard);
        if let Some(after) = after {
            let mut query = query_of(&shard, self.details());
            query.after = Some(after.key());
            scan.source = self.source(query);
            let mark = mark_of(&after.digest);
            scan.left = &scan.left[scan.left.partition_point(|left| *left < mark)..];
        }
        scan
    }

    fn details(&self) -> Details {
        if self.options.sizes == Sizes::All { Details::All } else { Details::Names }
    }

    fn keeps_candidates(&self) -> bool {
        self.store.inner().uncached_backend().capabilities().needs_gc_candidates()
    }

    /// Returns `true` if a chunk may be used, or may not be removed yet. In a packed store, where its pack has the time.
    pub(super) fn is_needed_since(&self, digest: &Digest, last_used: SystemTime) -> bool {
        let unused = Unused { digest: *digest, quarantined: None };
        self.marks.contains(mark_of(digest)) || !self.judge(&unused, last_used).0
    }

    /// Returns if the object may be removed, and since when it is known to be unreferenced. A quarantined copy needs no second sighting: the
    /// candidates do not distinguish it from its chunk, and no writer could want to use it.
    fn judge(&self, unused: &Unused, last_used: SystemTime) -> (bool, SystemTime) {
        let is_old = self.times.is_old(last_used);
        let trusts_listings = self.options.consistent_listings || mutated!("gc-removes-at-first-sight");
        if !self.keeps_candidates() || trusts_listings || unused.quarantined.is_some() {
            return (is_old, self.times.now);
        }
        // A chunk stored after it became a candidate is another one. One of before the clock was set back became a candidate after it was
        // stored, unless that time is ahead too.
        let times = &self.times;
        let is_after = |since: &SystemTime| {
            if times.is_of_before(last_used) { *since <= times.now } else { *since >= last_used }
        };
        match self.candidates.since(&unused.digest).filter(is_after) {
            Some(since) => (is_old && self.times.is_old(since), since),
            None => (false, self.times.now),
        }
    }
}

impl Scan<'_> {
    /// The candidates of the next page; `None` at the end of the shard.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Candidate>>> {
        self.counting.options.check_abort()?;
        let found = match self.source.next(self.counting.store).await? {
            None => {
                self.skip_to(None);
                return Ok(None);
            }
            Some(Page::Listed(page)) => self.unused_of_listing(page).await?,
            Some(Page::Packed(page)) => self.unused_of_packs(page),
        };
        Ok(Some(found.iter().map(|seen| self.candidate(seen)).collect()))
    }

    fn count_listed(&self, objects: usize) {
        self.counting.options.control.notify(&GcEvent::ChunksListed { chunks: objects as u64 });
    }

    /// The objects of a page that nothing uses. Counts all others.
    async fn unused_of_listing(&mut self, page: Vec<ListEntry>) -> Result<Vec<Seen>> {
        self.count_listed(page.len());
        let (mut found, mut named) = (Vec::new(), Vec::new());
        for entry in page {
            match entry {
                ListEntry::Foreign(path) => self.foreign(path),
                // A foreign object stays.
                ListEntry::Unreadable(unreadable) => self.foreign(unreadable.path),
                ListEntry::Name(key) => {
                    if unused_of(&key).is_some_and(|unused| self.is_unused(&unused, 0)) {
                        named.push(key);
                    }
                }
                ListEntry::Object(info) => {
                    found.extend(Seen::of(&info).filter(|seen| self.is_unused(&seen.unused, seen.size)));
                }
                ListEntry::Prefix(_) => {}
            }
        }
        if !named.is_empty() {
            for looked in self.counting.store.inner().uncached_backend().head_many(&named).await? {
                match looked {
                    // Deleted since it was listed.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    looked => found.extend(Seen::of(&looked?)),
                }
            }
        }
        Ok(found)
    }

    /// The chunks of a page that nothing uses. Counts all others.
    fn unused_of_packs(&mut self, page: SurveyPage) -> Vec<Seen> {
        self.count_listed(page.chunks.len() + page.foreign.len());
        let mut found = Vec::new();
        for chunk in page.chunks {
            let seen = Seen {
                last_used: chunk.last_used,
                pack: chunk.pack,
                size: chunk.bytes,
                unused: Unused { digest: chunk.digest, quarantined: chunk.quarantined },
            };
            if self.is_unused(&seen.unused, seen.size) {
                found.push(seen);
            } else {
                self.note_live(&seen, false);
            }
        }
        page.foreign.into_iter().for_each(|path| self.foreign(path));
        found
    }

    /// Counts a chunk, or a quarantined copy, that stays in its pack.
    fn note_live(&mut self, seen: &Seen, is_waiting: bool) {
        let Some(pack) = seen.pack else { return };
        match seen.unused.quarantined {
            None => self.census.note_live(pack, seen.size, is_waiting),
            Some(_) => self.census.live.entry(pack).or_default().is_kept = true,
        }
    }

    fn foreign(&mut self, path: String) {
        self.census.foreign_count += 1;
        if self.census.foreign.len() < NAMED {
            self.census.foreign.push(path);
        }
    }

    /// Returns `true` if nothing uses the object; otherwise counts it. Objects arrive in order.
    fn is_unused(&mut self, object: &Unused, size: u64) -> bool {
        let digest = object.digest;
        let mark = mark_of(&digest);
        if object.quarantined.is_some() {
            // The missing ones before it have not been counted yet.
            let is_marked = self.last_mark == Some(mark) || self.left.binary_search(&mark).is_ok();
            // Without a good copy it may be all that is left.
            let is_needed = is_marked
                && self.last_chunk != Some(digest)
                && !mutated!("gc-removes-the-last-quarantined-copy");
            if is_needed {
                self.census.quarantined.add(size);
            }
            return !is_needed;
        }
        self.skip_to(Some(mark));
        self.last_chunk = Some(digest);
        let pins = self.counting.store.inner().chunks().pins();
        let is_needed = self.last_mark == Some(mark) || pins.is_pinned(&digest);
        if is_needed {
            self.census.in_use.add(size);
        }
        !is_needed
    }

    /// Counts the marks before this one that no chunk matched as missing.
    fn skip_to(&mut self, mark: Option<u64>) {
        while let Some((next, rest)) = self.left.split_first() {
            match mark {
                Some(mark) if *next > mark => return,
                Some(mark) if *next == mark => self.last_mark = Some(mark),
                _ => self.missing.push(*next),
            }
            self.left = rest;
        }
    }

    fn candidate(&mut self, seen: &Seen) -> Candidate {
        let Seen { last_used, size, unused, .. } = *seen;
        let (ready, since) = self.counting.judge(&unused, last_used);
        if !ready && unused.quarantined.is_none() {
            self.note_live(seen, true);
        }
        let census = &mut self.census;
        match (unused.quarantined, ready) {
            (None, true) => census.garbage.add(size),
            (None, false) => census.waiting.add(size),
            (Some(_), true) => {
                census.quarantined.add(size);
                census.quarantined_garbage.add(size);
            }
            (Some(_), false) => census.quarantined.add(size),
        }
        Candidate { ready, since, size, unused }
    }

    fn finish(self) -> (Census, Vec<u64>) {
        (self.census, self.missing)
    }
}

impl Source {
    async fn next(&mut self, store: &Datastore) -> Result<Option<Page>> {
        Ok(match self {
            Self::Listing(pager) => {
                pager.next(store.inner().uncached_backend().as_ref()).await?.map(Page::Listed)
            }
            Self::Packs(survey) => survey.next().await?.map(Page::Packed),
        })
    }
}

impl Seen {
    /// `None` for any other object.
    fn of(info: &ObjectInfo) -> Option<Self> {
        let unused = unused_of(&info.key)?;
        Some(Self { last_used: info.last_used, pack: None, size: info.size, unused })
    }
}

fn unused_of(key: &Key) -> Option<Unused> {
    match key {
        Key::Chunk(digest) => Some(Unused { digest: *digest, quarantined: None }),
        Key::Quarantined(digest, number) => Some(Unused { digest: *digest, quarantined: Some(*number) }),
        _ => None,
    }
}
