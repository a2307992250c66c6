//! The plan: all chunks compared with the marks.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use futures::stream::{self, StreamExt as _};

use crate::backend::{Details, ListEntry, LockGuard, ObjectInfo, Pager};
use crate::chunks::{PinHold, Unused, query_of};
use crate::digest_set::{MarkSet, MarkSetBuilder, Shard, mark_of};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::gc_candidates::GcCandidates;
use crate::format::layout::Key;
use crate::format::name::SnapshotName;
use crate::format::status::GcStatus;
use crate::gc::mark::{Marked, mark};
use crate::gc::options::{GcEvent, GcOptions, Sizes};
use crate::gc::progress::{Candidate, Progress};
use crate::gc::report::{ChunkTally, DamagedSnapshot};
use crate::gc::walk::{NAMED, Walk};
use crate::store::Datastore;

/// Maximum number of missing chunks looked up by name.
const LOOKED_FOR: usize = 100_000;

/// Locks and pins held while the plan exists.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) collection: Arc<PinHold>,
    pub(super) guard: Arc<dyn LockGuard>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// Chunks used after this time stay; `None` if nothing is too young.
    pub(super) cutoff: Option<SystemTime>,
    /// Time of the store before marking.
    pub(super) now: SystemTime,
}

impl Times {
    /// Returns `true` if an object last used at this time may be removed.
    pub(super) fn is_old(&self, last_used: SystemTime) -> bool {
        self.cutoff.is_none_or(|cutoff| last_used < cutoff)
    }
}

/// A planned garbage collection, to inspect and then to [execute](GcPlan::execute).
///
/// No other process can write to the store while it exists.
#[derive(Debug)]
#[must_use = "nothing is removed before `execute`"]
pub struct GcPlan {
    pub(super) census: Census,
    confirmed: bool,
    damaged: Vec<DamagedSnapshot>,
    damaged_count: u64,
    pub(super) held: Held,
    had_indexes: bool,
    /// Chunks that are certainly missing, as far as their names are known.
    pub(super) lost: Vec<Digest>,
    pub(super) marked: Marked,
    missing: u64,
    pub(super) options: GcOptions,
    pub(super) progress: Progress,
    pub(super) sightings: Arc<GcCandidates>,
    pub(super) store: Datastore,
    pub(super) times: Times,
}

/// Reason why a plan needs confirmation.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SafetyLimit {
    /// The store has chunks and no snapshot.
    NoSnapshots,
    /// It would remove more than this percentage of the chunks.
    Share(u8),
}

/// Findings in the chunks, or in a shard of them.
#[derive(Debug, Default)]
pub(super) struct Census {
    pub(super) foreign: Vec<String>,
    pub(super) foreign_count: u64,
    pub(super) garbage: ChunkTally,
    pub(super) in_use: ChunkTally,
    pub(super) quarantined: ChunkTally,
    pub(super) quarantined_garbage: ChunkTally,
    pub(super) shards: Vec<ShardCensus>,
    pub(super) waiting: ChunkTally,
}

/// Unreferenced objects of a shard.
#[derive(Debug)]
pub(super) struct ShardCensus {
    /// Their names, unless there are too many.
    pub(super) candidates: Option<Vec<Candidate>>,
    /// Number of those that may be removed now.
    pub(super) ready: u64,
    pub(super) shard: Shard,
}

pub(super) async fn make(store: &Datastore, options: GcOptions, held: Held, times: Times) -> Result<GcPlan> {
    let had_indexes = store.gc_status().await?.is_some_and(|status: GcStatus| status.index_file_count > 0);
    let sightings = store.inner().chunks().sightings().await?;
    let marked = mark(store, &options).await?;
    let mut plan = GcPlan {
        census: Census::default(),
        confirmed: false,
        damaged: Vec::new(),
        damaged_count: 0,
        held,
        had_indexes,
        lost: Vec::new(),
        marked,
        missing: 0,
        options,
        progress: Progress::default(),
        sightings,
        store: store.clone(),
        times,
    };
    let (census, missing) = plan.counting().all().await?;
    plan.census = census;
    if missing.len() > 0 {
        plan.find_damaged(&missing).await?;
    }
    Ok(plan)
}

impl GcPlan {
    /// Chunks that the execution would remove.
    pub fn garbage(&self) -> ChunkTally {
        self.census.garbage
    }

    /// Unreferenced chunks that stay for now: used too recently, or new candidates.
    pub fn waiting(&self) -> ChunkTally {
        self.census.waiting
    }

    /// Referenced chunks.
    pub fn in_use(&self) -> ChunkTally {
        self.census.in_use
    }

    /// Quarantined chunks, and those of them that the execution would remove.
    pub fn quarantined(&self) -> (ChunkTally, ChunkTally) {
        (self.census.quarantined, self.census.quarantined_garbage)
    }

    /// Number of chunks that an index names and the store lacks. Beyond 100,000, the rest is taken from the listing
    /// alone; the next backup treats the first 100,000 as suspects, and later collections add the others.
    pub fn missing(&self) -> u64 {
        self.missing
    }

    /// The snapshots that lack chunks, at most a thousand of them, and their number.
    pub fn damaged(&self) -> (&[DamagedSnapshot], u64) {
        (&self.damaged, self.damaged_count)
    }

    /// Foreign paths, at most a thousand of them, and their number. They stay.
    pub fn foreign(&self) -> (Vec<String>, u64) {
        let (outside, inside) = (&self.marked.foreign, &self.census.foreign);
        let named = outside.iter().chain(inside).take(NAMED).cloned().collect();
        (named, self.marked.foreign_count + self.census.foreign_count)
    }

    /// Number of indexes read, and the total bytes of their archives.
    pub fn indexes(&self) -> (u64, u64) {
        (self.marked.indexes, self.marked.data_bytes)
    }

    /// Reason why the plan needs [confirmation](GcPlan::confirm) before it is executed; `None` if it does not.
    pub fn safety_limit(&self) -> Option<SafetyLimit> {
        let garbage = u128::from(self.census.garbage.chunks);
        let all = garbage + u128::from(self.census.in_use.chunks) + u128::from(self.census.waiting.chunks);
        let most = self.options.max_garbage;
        if self.marked.indexes == 0 && garbage > 0 && (self.had_indexes || most < 100) {
            return Some(SafetyLimit::NoSnapshots);
        }
        (garbage * 100 > all * u128::from(most)).then_some(SafetyLimit::Share(most))
    }

    /// Confirms the plan, however much it would remove.
    pub fn confirm(mut self) -> Self {
        self.confirmed = true;
        self
    }

    pub(super) fn check_safety_limit(&self) -> Result<()> {
        let Some(safety_limit) = self.safety_limit().filter(|_| !self.confirmed) else { return Ok(()) };
        let garbage = self.census.garbage.chunks;
        let why = match safety_limit {
            SafetyLimit::NoSnapshots => format!("there is no snapshot, and all {garbage} chunks would go"),
            SafetyLimit::Share(most) => {
                format!("{garbage} chunks would go, which is more than {most} percent")
            }
        };
        Err(Error::new(ErrorKind::Unconfirmed, "collect garbage").because(why))
    }

    /// Finds the missing chunks, and the snapshots that name them.
    async fn find_damaged(&mut self, missing: &MarkSet) -> Result<()> {
        let mut named: HashSet<Digest> = HashSet::new();
        let mut walk = Walk::new();
        while let Some(indexes) = walk.next(self.store.inner().uncached_backend().as_ref()).await? {
            for info in indexes {
                let found = self.missing_of(&info, missing).await?;
                let room = LOOKED_FOR.saturating_sub(named.len());
                named.extend(found.into_keys().take(room));
            }
        }
        let gone = self.certainly_gone(&named).await?;
        // Some of those that were not looked up may exist although the listing did not show them.
        let are_all = named.len() < LOOKED_FOR;
        let here = (named.len() - gone.len()) as u64;
        self.missing = if are_all { gone.len() as u64 } else { (missing.len() as u64).saturating_sub(here) };
        self.lost = gone.iter().copied().collect();
        self.store.inner().chunks().note_missing(&self.lost).await?;
        if self.missing == 0 {
            return Ok(());
        }
        let mut walk = Walk::new();
        while let Some(indexes) = walk.next(self.store.inner().uncached_backend().as_ref()).await? {
            let mut counts: BTreeMap<SnapshotName, u64> = BTreeMap::new();
            for info in indexes {
                let Key::Archive(snapshot, _) = &info.key else { continue };
                let found = self.missing_of(&info, missing).await?;
                let certain = |digest| gone.contains(digest) || !(are_all || named.contains(digest));
                let count: u64 =
                    found.iter().filter(|(digest, _)| certain(digest)).map(|(_, count)| count).sum();
                if count > 0 {
                    *counts.entry(snapshot.clone()).or_default() += count;
                }
            }
            self.damaged_count += counts.len() as u64;
            let room = NAMED.saturating_sub(self.damaged.len());
            let damaged = counts.into_iter().map(|(name, missing)| DamagedSnapshot { missing, name });
            self.damaged.extend(damaged.take(room));
        }
        Ok(())
    }

    /// The missing chunks that an index names, and the number of references.
    async fn missing_of(&self, info: &ObjectInfo, missing: &MarkSet) -> Result<BTreeMap<Digest, u64>> {
        self.options.check_abort()?;
        let index = match self.store.inner().snapshot_files().checked_index(info).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
            checked => checked?.index,
        };
        let missing = missing.clone();
        let find = move || {
            let mut found = BTreeMap::new();
            for digest in index.digests() {
                if missing.contains(mark_of(&digest)) {
                    *found.entry(digest).or_insert(0) += 1;
                }
            }
            Ok(found)
        };
        self.store.inner().runtime().run_blocking("look for missing chunks", find).await
    }

    /// Filters out chunks that a lookup by name finds: a listing may lag (H13).
    async fn certainly_gone(&self, named: &HashSet<Digest>) -> Result<HashSet<Digest>> {
        let named: Vec<_> = named.iter().copied().collect();
        let mut gone = HashSet::new();
        for part in named.chunks(NAMED) {
            let keys: Vec<_> = part.iter().copied().map(Key::Chunk).collect();
            for (digest, found) in
                part.iter().zip(self.store.inner().uncached_backend().head_many(&keys).await?)
            {
                match found {
                    Err(error) if error.kind() == ErrorKind::NotFound => _ = gone.insert(*digest),
                    found => drop(found?),
                }
            }
        }
        Ok(gone)
    }
}

/// Inputs for finding unreferenced objects.
#[derive(Debug)]
pub(super) struct Counting<'a> {
    /// Maximum number of candidates kept by name.
    pub(super) kept: AtomicUsize,
    pub(super) marks: &'a MarkSet,
    pub(super) options: &'a GcOptions,
    pub(super) sightings: &'a GcCandidates,
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
    pager: Pager,
}

impl Counting<'_> {
    /// Scans everything; returns the marks without a chunk too.
    async fn all(&self) -> Result<(Census, MarkSet)> {
        let in_flight = self.store.inner().uncached_backend().capabilities().in_flight;
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
            pager: Pager::new(query_of(&shard, self.details())),
        }
    }

    /// As [`scan`](Counting::scan), starting after an object already processed.
    pub(super) fn scan_after(&self, shard: Shard, after: Option<Unused>) -> Scan<'_> {
        let mut scan = self.scan(shard);
        if let Some(after) = after {
            let mut query = query_of(&shard, self.details());
            query.after = Some(after.key());
            scan.pager = Pager::new(query);
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

    /// Returns if the object may be removed, and since when it is known to be unreferenced. A quarantined copy needs no second sighting: the
    /// candidates do not distinguish it from its chunk, and no writer could want to use it.
    fn judge(&self, unused: &Unused, last_used: SystemTime) -> (bool, SystemTime) {
        let is_old = self.times.is_old(last_used);
        if !self.keeps_candidates() || self.options.consistent_listings || unused.quarantined.is_some() {
            return (is_old, self.times.now);
        }
        // A chunk stored after it became a candidate is another one.
        match self.sightings.since(&unused.digest).filter(|since| *since >= last_used) {
            Some(since) => (is_old && self.times.is_old(since), since),
            None => (false, self.times.now),
        }
    }
}

impl Scan<'_> {
    /// The candidates of the next page; `None` at the end of the shard.
    pub(super) async fn next(&mut self) -> Result<Option<Vec<Candidate>>> {
        self.counting.options.check_abort()?;
        let backend = self.counting.store.inner().uncached_backend();
        let Some(page) = self.pager.next(backend.as_ref()).await? else {
            self.skip_to(None);
            return Ok(None);
        };
        self.counting.options.control.notify(&GcEvent::ChunksListed { chunks: page.len() as u64 });
        let (mut found, mut named) = (Vec::new(), Vec::new());
        for entry in page {
            match entry {
                ListEntry::Foreign(path) => self.foreign(path),
                // A foreign object stays.
                ListEntry::Unreadable(unreadable) => self.foreign(unreadable.path),
                ListEntry::Name(key) if self.is_unused(&key, 0) => named.push(key),
                ListEntry::Object(info) if self.is_unused(&info.key, info.size) => found.push(info),
                ListEntry::Name(_) | ListEntry::Object(_) | ListEntry::Prefix(_) => {}
            }
        }
        if !named.is_empty() {
            for looked in backend.head_many(&named).await? {
                match looked {
                    // Deleted since it was listed.
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    looked => found.push(looked?),
                }
            }
        }
        Ok(Some(found.iter().filter_map(|info| self.candidate(info)).collect()))
    }

    fn foreign(&mut self, path: String) {
        self.census.foreign_count += 1;
        if self.census.foreign.len() < NAMED {
            self.census.foreign.push(path);
        }
    }

    /// Returns `true` if nothing uses the object; otherwise counts it. Objects arrive in order.
    fn is_unused(&mut self, key: &Key, size: u64) -> bool {
        match key {
            Key::Chunk(digest) => {
                let mark = mark_of(digest);
                self.skip_to(Some(mark));
                self.last_chunk = Some(*digest);
                let pins = self.counting.store.inner().chunks().pins();
                if self.last_mark == Some(mark) || pins.is_pinned(digest) {
                    self.census.in_use.add(size);
                    return false;
                }
                true
            }
            Key::Quarantined(digest, _) => {
                let mark = mark_of(digest);
                // The missing ones before it have not been counted yet.
                let is_marked = self.last_mark == Some(mark) || self.left.binary_search(&mark).is_ok();
                // Without a good copy it may be all that is left.
                if is_marked && self.last_chunk != Some(*digest) {
                    self.census.quarantined.add(size);
                    return false;
                }
                true
            }
            _ => false,
        }
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

    fn candidate(&mut self, info: &ObjectInfo) -> Option<Candidate> {
        let unused = match info.key {
            Key::Chunk(digest) => Unused { digest, quarantined: None },
            Key::Quarantined(digest, number) => Unused { digest, quarantined: Some(number) },
            _ => return None,
        };
        let (ready, since) = self.counting.judge(&unused, info.last_used);
        let census = &mut self.census;
        match (unused.quarantined, ready) {
            (None, true) => census.garbage.add(info.size),
            (None, false) => census.waiting.add(info.size),
            (Some(_), true) => {
                census.quarantined.add(info.size);
                census.quarantined_garbage.add(info.size);
            }
            (Some(_), false) => census.quarantined.add(info.size),
        }
        Some(Candidate { ready, since, size: info.size, unused })
    }

    fn finish(self) -> (Census, Vec<u64>) {
        (self.census, self.missing)
    }
}

impl Census {
    fn join(&mut self, other: Self) {
        self.foreign_count += other.foreign_count;
        let room = NAMED.saturating_sub(self.foreign.len());
        self.foreign.extend(other.foreign.into_iter().take(room));
        self.garbage.join(other.garbage);
        self.in_use.join(other.in_use);
        self.quarantined.join(other.quarantined);
        self.quarantined_garbage.join(other.quarantined_garbage);
        self.shards.extend(other.shards);
        self.waiting.join(other.waiting);
    }
}
