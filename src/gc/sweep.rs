//! Execution of a plan.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::backend::{Backend, Deleted, PutMode, Removal};
use crate::chunks::{Swept, Unused};
use crate::digest_set::Shard;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::gc_candidates::MOST as MOST_SIGHTINGS;
use crate::format::layout::Key;
use crate::format::status::{GcCacheStats, GcStatus};
use crate::gc::options::{GcEvent, Sizes};
use crate::gc::plan::GcPlan;
use crate::gc::progress::{BATCH, Candidate, REQUEST};
use crate::gc::report::{GcEnd, GcReport};
use crate::gc::scan::Counting;
use crate::trace;
use crate::trace::{Facts, Operation, Subject};

/// Maximum number of consecutive batches without a removal.
const FRUITLESS: usize = 3;
/// Minimum age of leftovers of puts: no live put is that old.
const LEFTOVER_AGE: Duration = Duration::from_hours(24);

impl GcPlan {
    /// Removes the garbage. Failures are in the report.
    ///
    /// A plan that was aborted or stopped can be executed again: it continues where it ended, and the report covers all executions.
    /// Chunks that could not be deleted stay for the next collection.
    ///
    /// # Errors
    /// `Unconfirmed` if it needs [confirmation](GcPlan::confirm) first; `Busy` if another process owns the store now; any other
    /// failure to begin. Nothing was removed then.
    ///
    /// # Cancel safety
    /// A dropped future may have removed a part. The plan can be executed again.
    pub async fn execute(&mut self) -> Result<GcReport> {
        let watch = self.store.inner().watch(Operation::Gc, Subject::Store);
        let facts = |report: &GcReport| Facts::of(report).bytes(report.removed.bytes);
        trace::watch(watch, self.sweep(), facts).await
    }

    async fn sweep(&mut self) -> Result<GcReport> {
        self.check_safety_limit()?;
        self.held.guard.check().await?;
        let end = match self.begin().await {
            // Storing the candidates may take long.
            Err(_) if self.options.control.is_aborted() => GcEnd::Aborted,
            Err(error) => return Err(error),
            Ok(()) => match self.run().await {
                Ok(()) => GcEnd::Complete,
                Err(_) if self.options.control.is_aborted() => GcEnd::Aborted,
                Err(error) => GcEnd::Stopped(error),
            },
        };
        Ok(self.report(end))
    }

    /// Makes earlier deletions durable and records the candidates for the next lease holder.
    async fn begin(&mut self) -> Result<()> {
        if self.progress.begun {
            return Ok(());
        }
        // From now on no base vouches for them, in any process (H22).
        self.store.inner().repairs().suspect_missing(&self.lost).await?;
        // A deleted snapshot must not reappear after a crash, without its chunks.
        if !mutated!("gc-before-deletions-are-durable") {
            self.store.inner().backend().barrier().await?;
        }
        let capabilities = self.store.inner().uncached_backend().capabilities();
        // Presence records of other processes must not outlive the chunks that are about to be deleted.
        if !capabilities.cheap_presence
            && !mutated!("gc-begins-no-term")
            && let Some(identity) = self.store.uuid()
        {
            self.store.inner().chunks().begin_term(identity).await?;
        }
        if capabilities.needs_gc_candidates() && !mutated!("gc-deletes-before-it-lists") {
            self.write_candidates().await?;
        }
        self.progress.begun = true;
        Ok(())
    }

    /// Stores the candidates: all of them before anything is removed, and afterwards those that stay or may still vanish.
    async fn write_candidates(&mut self) -> Result<()> {
        // In a packed store most chunks stay until their pack vanishes.
        let is_over = self.progress.begun && self.store.inner().packs().is_none();
        let failed = &self.progress.failed_names;
        let (mut seen, mut waiting): (Vec<(Digest, SystemTime)>, Vec<_>) = Default::default();
        let mut add = |candidates: &[Candidate]| {
            let stays = |candidate: &Candidate| {
                !is_over || !candidate.ready || failed.contains(&candidate.unused.digest)
            };
            let chunks = candidates.iter().filter(|candidate| candidate.unused.quarantined.is_none());
            for candidate in chunks.filter(|candidate| stays(candidate)) {
                // Chunks that may be deleted come first, since room is limited.
                let list = if candidate.ready { &mut seen } else { &mut waiting };
                if list.len() < MOST_SIGHTINGS {
                    list.push((candidate.unused.digest, candidate.since));
                }
            }
        };
        for census in &self.census.shards {
            if let Some(candidates) = &census.candidates {
                add(candidates);
                continue;
            }
            let counting = self.counting();
            let mut scan = counting.scan(census.shard);
            while let Some(candidates) = scan.next().await? {
                add(&candidates);
            }
        }
        waiting.truncate(MOST_SIGHTINGS.saturating_sub(seen.len()));
        // Including those of an earlier run whose deletion was confirmed.
        let chunks = self.store.inner().chunks();
        let pending: Vec<_> =
            chunks.pending_deletes().into_iter().map(|digest| (digest, self.times.now)).collect();
        let mut shortened = None;
        loop {
            let all = seen.iter().chain(&waiting).copied().collect();
            match chunks.write_gc_candidates(all, pending.clone()).await {
                // Waiting ones that do not fit become new candidates again. All that may be removed now must be listed.
                Err(error) if error.kind() == ErrorKind::Full && !waiting.is_empty() => {
                    waiting.truncate(waiting.len() / 2);
                    shortened.get_or_insert(error);
                }
                written => {
                    self.progress.remarks.extend(shortened);
                    return written;
                }
            }
        }
    }

    pub(super) fn counting(&self) -> Counting<'_> {
        Counting {
            begin: self.begin.clone(),
            kept: AtomicUsize::new(0),
            marks: &self.marked.set,
            options: &self.options,
            candidates: &self.candidates,
            store: &self.store,
            times: self.times,
        }
    }

    async fn run(&mut self) -> Result<()> {
        match self.store.clone().inner().packs() {
            Some(packs) => self.run_packs(packs).await?,
            None => self.run_chunks().await?,
        }
        self.end().await
    }

    /// Removes unreferenced chunks, each of which is an object.
    async fn run_chunks(&mut self) -> Result<()> {
        loop {
            self.options.check_abort()?;
            let candidates = self.kept_after(self.progress.done, self.progress.batch());
            if candidates.is_empty() {
                break;
            }
            self.batch(&candidates).await?;
        }
        while self.progress.shards < self.census.shards.len() {
            let census = &self.census.shards[self.progress.shards];
            if census.candidates.is_none() && census.ready > 0 {
                self.shard_again(census.shard).await?;
            }
            self.progress.after = None;
            self.progress.shards += 1;
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<()> {
        self.compact().await?;
        let outside = self.marked.foreign.iter().chain(&self.census.foreign).cloned().collect::<Vec<_>>();
        let age = self.options.grace.max(LEFTOVER_AGE);
        match self.store.inner().uncached_backend().remove_leftovers(&outside, age).await {
            // The garbage is gone; these credentials, or this server, cannot list more.
            Err(error) if matches!(error.kind(), ErrorKind::Denied | ErrorKind::Unsupported) => {
                self.progress.leftovers_refused = Some(error);
            }
            // An earlier execution may have removed some.
            removed => {
                self.progress.leftovers += removed?;
                self.progress.leftovers_refused = None;
            }
        }
        if self.store.inner().uncached_backend().capabilities().needs_gc_candidates() {
            self.write_candidates().await?;
        }
        // Before `.gc-status`: the next deletion needs the reserve more than people need the status.
        if let Err(error) = self.store.inner().uncached_backend().keep_reserve().await {
            self.progress.remarks.push(error);
        }
        self.write_status().await
    }

    /// The next named candidates that may be removed, after this number of them.
    fn kept_after(&self, mut done: usize, most: usize) -> Vec<Candidate> {
        let mut found = Vec::new();
        for census in &self.census.shards {
            let Some(kept) = census.candidates.as_ref().filter(|_| census.ready > 0) else { continue };
            let ready = usize::try_from(census.ready).unwrap_or(usize::MAX);
            if ready <= done {
                done -= ready;
                continue;
            }
            let candidates = kept.iter().filter(|candidate| candidate.ready).skip(done);
            found.extend(candidates.take(most - found.len()));
            done = 0;
            if found.len() == most {
                break;
            }
        }
        found
    }

    /// Removes the garbage of a shard with too many names, listing it again.
    async fn shard_again(&mut self, shard: Shard) -> Result<()> {
        loop {
            let counting = self.counting();
            let mut scan = counting.scan_after(shard, self.progress.after);
            let (mut candidates, mut ended) = (Vec::new(), false);
            while candidates.len() < BATCH && !ended {
                match scan.next().await? {
                    Some(page) => candidates.extend(page.into_iter().filter(|candidate| candidate.ready)),
                    None => ended = true,
                }
            }
            let mut rest = &candidates[..];
            while !rest.is_empty() {
                let (batch, more) = rest.split_at(rest.len().min(self.progress.batch()));
                self.batch(batch).await?;
                rest = more;
            }
            if ended {
                return Ok(());
            }
        }
    }

    async fn batch(&mut self, candidates: &[Candidate]) -> Result<()> {
        self.progress.begun_with += candidates.len();
        let is_listed = self.store.inner().uncached_backend().capabilities().needs_gc_candidates();
        if is_listed && self.progress.begun_with > MOST_SIGHTINGS {
            let error = Error::new(ErrorKind::Full, "collect garbage");
            return Err(
                error.because("there is more than can be written down at once: another run removes the rest")
            );
        }
        let unused: Vec<Unused> = candidates.iter().map(|candidate| candidate.unused).collect();
        let times = self.times;
        let is_old = Arc::new(move |last_used| times.is_old(last_used));
        let (guard, kept) = (Arc::clone(&self.held.guard), Arc::clone(&self.held.collection));
        let swept = self.store.inner().chunks().sweep(unused, guard, is_old, kept).await?;
        let before = self.progress.removed;
        let mut refused = None;
        let mut last_error = None;
        for (candidates, swept) in candidates.chunks(REQUEST).zip(swept.chunks(REQUEST)) {
            let errors = swept.iter().filter_map(|swept| match swept {
                Swept::Failed(error) => Some(error),
                _ => None,
            });
            let denied = errors.clone().filter(|error| error.kind() == ErrorKind::Denied).count();
            last_error = errors.clone().next_back().cloned().or(last_error);
            if denied == candidates.len() {
                refused.clone_from(&last_error);
            }
        }
        for (candidate, swept) in candidates.iter().zip(swept) {
            self.progress.note(candidate, swept);
        }
        self.progress.after = candidates.last().map(|candidate| candidate.unused);
        self.progress.done += candidates.len();
        let removed = self.progress.removed;
        let (chunks, bytes) = (removed.chunks - before.chunks, removed.bytes - before.bytes);
        trace::collected(bytes, chunks);
        self.options.control.notify(&GcEvent::Removed { bytes, chunks });
        self.progress.goes_well = last_error.is_none();
        let is_fruitless = last_error.is_some() && chunks == 0;
        self.progress.fruitless = if is_fruitless { self.progress.fruitless + 1 } else { 0 };
        // Stop if every delete is denied, which one batch shows (H19), or after several batches without progress.
        match (refused, last_error) {
            (Some(error), _) => Err(error),
            (None, Some(error)) if self.progress.fruitless >= FRUITLESS => Err(error),
            _ => Ok(()),
        }
    }

    async fn write_status(&mut self) -> Result<()> {
        if self.options.sizes != Sizes::All {
            return Ok(());
        }
        let (census, done) = (&self.census, &self.progress);
        let bad = census.quarantined.bytes.saturating_sub(done.removed_quarantined.bytes);
        let waiting = self.census.waiting;
        let status = GcStatus {
            upid: self.options.task.as_ref().map(ToString::to_string),
            index_file_count: self.marked.indexes,
            index_data_bytes: self.marked.data_bytes,
            disk_bytes: census.in_use.bytes + done.in_use.bytes + bad,
            disk_chunks: census.in_use.chunks + done.in_use.chunks,
            removed_bytes: done.removed.bytes + done.removed_quarantined.bytes,
            removed_chunks: done.removed.chunks,
            pending_bytes: waiting.bytes + done.stuck.bytes,
            pending_chunks: waiting.chunks + done.stuck.chunks,
            removed_bad: done.removed_quarantined.chunks,
            still_bad: census.quarantined.chunks.saturating_sub(done.removed_quarantined.chunks),
            packs: self.pack_status(),
            cache_stats: Some(GcCacheStats { hits: self.marked.hits, misses: self.marked.misses }),
        };
        let backend = self.store.inner().backend();
        match put_state(backend.as_ref(), Key::GcStatus, status.to_json().into()).await {
            // The garbage is gone in any case.
            Err(error) if error.kind() == ErrorKind::Full => self.progress.remarks.push(error),
            written => {
                written?;
                self.progress.status_written = true;
            }
        }
        backend.barrier().await
    }

    fn report(&self, end: GcEnd) -> GcReport {
        let done = &self.progress;
        GcReport {
            absent: done.absent,
            busy: done.busy,
            end,
            failed: done.failed,
            failures: done.failures.clone(),
            leftovers: done.leftovers,
            leftovers_refused: done.leftovers_refused.clone(),
            packs: done.packs,
            pinned: done.pinned,
            remarks: done.remarks.clone(),
            removed: done.removed,
            removed_quarantined: done.removed_quarantined,
            status_written: done.status_written,
            waiting: self.census.waiting,
        }
    }
}

/// Writes a state that can be made again. On a full store the old one is removed first to make room.
///
/// # Errors
/// `Full` if there is no room for it then, either.
async fn put_state(backend: &dyn Backend, key: Key, bytes: Bytes) -> Result<()> {
    let full = match backend.put(&key, bytes.clone(), PutMode::Replace).await {
        Err(error) if error.kind() == ErrorKind::Full => error,
        put => return put.map(drop),
    };
    match backend.delete(&[Removal::any(key.clone())]).await?.pop() {
        // A second request may delete the new one too.
        Some(Ok(Deleted::InDoubt)) | None => Err(full),
        Some(deleted) => {
            deleted?;
            backend.put(&key, bytes, PutMode::Replace).await.map(drop)
        }
    }
}
