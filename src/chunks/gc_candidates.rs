//! Resets GC candidates when a snapshot that names them is published.
//!
//! In a bucket, a collection removes chunks that two runs at least the grace time apart found unreferenced. Between the two, a writer may
//! publish a snapshot with chunks that existed already. It stores nothing, so nothing about the chunks shows the
//! reuse. If another process collects a moment later and listings lag, it does not see the index, and the first
//! of the two runs is old enough. So a writer first records the reuse where nothing lags: in the list of candidates itself.
//!
//! ```text
//! every chunk confirmed → its candidates reset to the time of the store → indexes → manifest
//! ```
//!
//! | actor | resets |
//! |---|---|
//! | a backup, a sync into the store | the candidates among its chunks |
//! | a copy or a move within the store | all, at most every [`ALL_EVERY`], because it does not read the indexes |
//! | a collection | none; it leaves out chunks that a writer of the process has pinned |
//!
//! So no snapshot whose publication began within the grace time names a chunk that is removed; listings show all older snapshots,
//! as long as the grace time is not shorter than
//! the lag that the collection allows for (`listing_lag`). A reset candidate stays on the list, because the list is also the
//! record of intent that tells the next holder of the store what late requests may delete.
//!
//! # Writers of the list
//! Several tasks of the process that holds the store may write the list. Each write is conditional on the version that was
//! read; after a conflict the task reads the list again and repeats the reset. A collection checks the pins again after it has written:
//!
//! ```text
//! writer:      pin → … → list, as known → used chunks on it? → conditional write → known → indexes
//! collection:  list of unpinned chunks → conditional write → known → something on it pinned? again
//! ```
//! So a chunk pinned before the collection checks is taken off the list, and a writer that pins it later knows
//! the list. Without conditional puts, one task of this process writes at a time.
//!
//! The list is read once in a lease term, and each time while late requests of an earlier holder may replace it. An
//! interrupted writer leaves the old list, or one with younger candidates, which only keeps chunks for longer.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::lock::Mutex as AsyncMutex;

use crate::backend::{Backend, PutMode, Version};
use crate::chunks::ChunkStore;
use crate::chunks::pins::WriterPins;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::gc_candidates::{GcCandidates, LIMIT_BYTES, Prefix};
use crate::format::layout::Key;

/// Minimum time between two resets of all candidates.
const ALL_EVERY: Duration = Duration::from_mins(10);
/// Maximum number of attempts to write a list that others write too.
const TRIES: usize = 100;

/// The list of candidates, as the handles of a store in this process know it.
#[derive(Debug, Default)]
pub(crate) struct KnownCandidates {
    state: Mutex<State>,
    /// Held during an unconditional write of the list.
    writing: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Backend of the list: a copy of a store has the same identity, and a list of its own.
    backend: Option<Weak<dyn Backend>>,
    /// Time of the last reset of all candidates, by the monotonic clock, in the terms below.
    all_since: Option<Duration>,
    list: List,
    /// First epoch of the terms in which the list was read or written; `None` if it must be read.
    read_in: Option<u64>,
}

/// The list as it was read.
#[derive(Clone, Debug, Default)]
struct List {
    candidates: Arc<GcCandidates>,
    version: Option<Version>,
}

impl KnownCandidates {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn all_since(&self, backend: &Arc<dyn Backend>) -> Option<Duration> {
        let state = self.state();
        state.all_since.filter(|_| state.is_of(backend))
    }

    /// The list replaced another one. If that is not the known one, another task wrote it too.
    fn replaced(&self, backend: &Arc<dyn Backend>, before: &List, after: &List) {
        let mut state = self.state();
        if state.is_of(backend) && state.list.version == before.version {
            state.list = after.clone();
        } else {
            state.read_in = None;
        }
    }
}

impl State {
    fn is_of(&self, backend: &Arc<dyn Backend>) -> bool {
        self.backend.as_ref().is_some_and(|known| std::ptr::addr_eq(known.as_ptr(), Arc::as_ptr(backend)))
    }
}

impl ChunkStore {
    /// The current list.
    ///
    /// # Errors
    /// Any failure to read it. A damaged list counts as empty.
    pub(crate) async fn gc_candidates(&self) -> Result<Arc<GcCandidates>> {
        if !self.uncached_backend().capabilities().needs_gc_candidates() {
            return Ok(Arc::default());
        }
        Ok(self.read_candidate_list().await?.candidates)
    }

    /// Reads the list, unless it is known. Called after the store was locked, so that publication usually needs no further request.
    ///
    /// # Errors
    /// Any failure to read it.
    pub(crate) async fn refresh_gc_candidates(&self) -> Result<()> {
        if !self.uncached_backend().capabilities().needs_gc_candidates() {
            return Ok(());
        }
        self.candidate_list().await.map(drop)
    }

    /// Resets the candidates among the chunks of these writers, before an index names them.
    ///
    /// # Errors
    /// Any failure to read or write the list: the caller must not publish.
    ///
    /// # Cancel safety
    /// A dropped future leaves the old list, or one with younger candidates.
    pub(crate) async fn reset_gc_candidates(&self, writers: &[Arc<WriterPins>]) -> Result<()> {
        mutated!("publish-keeps-candidates" => return Ok(()));
        if !self.uncached_backend().capabilities().needs_gc_candidates() {
            return Ok(());
        }
        let used = |candidates: Arc<GcCandidates>| {
            let writers = writers.to_vec();
            let find = move || Ok(writers.iter().flat_map(|writer| writer.among(&candidates)).collect());
            self.uncached_backend().runtime().run_blocking("look for GC candidates", find)
        };
        for _ in 0..TRIES {
            let list = self.candidate_list().await?;
            if list.candidates.is_empty() {
                return Ok(());
            }
            let used: HashSet<Prefix> = used(Arc::clone(&list.candidates)).await?;
            if used.is_empty() {
                return Ok(());
            }
            let mut candidates = GcCandidates::clone(&list.candidates);
            candidates.reset(&used, self.uncached_backend().clock().await?);
            if self.replace_candidate_list(&list, candidates).await?.is_some() {
                return Ok(());
            }
        }
        Err(contended())
    }

    /// Resets all candidates, before indexes with unknown chunks appear.
    ///
    /// # Errors
    /// As [`reset_gc_candidates`](Self::reset_gc_candidates).
    pub(crate) async fn reset_all_gc_candidates(&self) -> Result<()> {
        if !self.uncached_backend().capabilities().needs_gc_candidates() {
            return Ok(());
        }
        for _ in 0..TRIES {
            let list = self.candidate_list().await?;
            let now = self.uncached_backend().runtime().monotonic();
            let all_since = self.known_candidates().all_since(self.uncached_backend());
            let is_done = all_since.is_some_and(|since| now.saturating_sub(since) < ALL_EVERY);
            if list.candidates.is_empty() || is_done {
                return Ok(());
            }
            let mut candidates = GcCandidates::clone(&list.candidates);
            candidates.reset_all(self.uncached_backend().clock().await?);
            if self.replace_candidate_list(&list, candidates).await?.is_some() {
                self.known_candidates().state().all_since = Some(now);
                return Ok(());
            }
        }
        Err(contended())
    }

    /// Stores the candidates of a collection, except pinned ones; includes all that late requests may delete.
    ///
    /// # Errors
    /// `Conflict` if others keep changing the list; any failure to write it.
    pub(crate) async fn write_gc_candidates(
        &self,
        seen: Vec<(Digest, SystemTime)>,
        pending_deletes: Vec<(Digest, SystemTime)>,
    ) -> Result<()> {
        let (mut seen, mut list) = (seen, self.candidate_list().await?);
        for _ in 0..TRIES {
            let (pins, pending_deletes) = (Arc::clone(self.pins()), pending_deletes.clone());
            let sort = move || {
                seen.retain(|(digest, _)| !pins.is_pinned(digest));
                let candidates = GcCandidates::of(seen.iter().copied().chain(pending_deletes).collect());
                Ok((seen, candidates))
            };
            let (left, candidates) =
                self.uncached_backend().runtime().run_blocking("write GC candidates", sort).await?;
            seen = left;
            let written = self.replace_candidate_list(&list, candidates).await?;
            let Some(written) = written else {
                list = self.read_candidate_list().await?;
                continue;
            };
            // A writer that pinned a chunk meanwhile may not have known that it is on the list.
            let pins = Arc::clone(self.pins());
            let look = move || Ok((seen.iter().any(|(digest, _)| pins.is_pinned(digest)), seen));
            let (is_pinned, left) =
                self.uncached_backend().runtime().run_blocking("write GC candidates", look).await?;
            if !is_pinned || mutated!("candidates-are-checked-once") {
                return Ok(());
            }
            (seen, list) = (left, written);
        }
        Err(contended())
    }

    /// The known list, if no other process can have changed it since.
    async fn candidate_list(&self) -> Result<List> {
        let since = self.sole_holder_since();
        {
            let state = self.known_candidates().state();
            if since.is_some() && state.read_in == since && state.is_of(self.uncached_backend()) {
                return Ok(state.list.clone());
            }
        }
        self.read_candidate_list().await
    }

    async fn read_candidate_list(&self) -> Result<List> {
        let since = self.sole_holder_since();
        let version_of =
            |state: &State| state.is_of(self.uncached_backend()).then(|| state.list.version.clone());
        let before = version_of(&self.known_candidates().state());
        let (bytes, version) = match self.uncached_backend().get(&Key::GcCandidates, LIMIT_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => (Bytes::new(), None),
            // Longer than any valid list: it counts as empty, and is replaced.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                (Bytes::new(), Some(self.uncached_backend().head(&Key::GcCandidates).await?.version))
            }
            object => object.map(|object| (object.bytes, Some(object.info.version)))?,
        };
        let parse = move || Ok(GcCandidates::parse(&bytes));
        let candidates = self.uncached_backend().runtime().run_blocking("read GC candidates", parse).await?;
        let list = List { candidates: Arc::new(candidates), version };
        let mut state = self.known_candidates().state();
        // Unless it was written during the read.
        let is_newest = version_of(&state) == before;
        let all_since =
            state.all_since.filter(|_| state.is_of(self.uncached_backend()) && state.read_in == since);
        let backend = Some(Arc::downgrade(self.uncached_backend()));
        *state = State { all_since, backend, list: list.clone(), read_in: since.filter(|_| is_newest) };
        drop(state);
        Ok(list)
    }

    /// Epoch since which this process alone has changed the store, with no pending request of another.
    fn sole_holder_since(&self) -> Option<u64> {
        self.uncached_backend()
            .lease_term()
            .filter(|lease_term| !lease_term.in_doubt)
            .map(|lease_term| lease_term.since)
    }

    /// Writes the list if it is still this version; returns `None` if it changed, and must be read again.
    async fn replace_candidate_list(&self, before: &List, candidates: GcCandidates) -> Result<Option<List>> {
        let (backend, known) = (self.uncached_backend(), self.known_candidates());
        let is_conditional = backend.capabilities().conditional_put;
        let _alone = if is_conditional { None } else { Some(known.writing.lock().await) };
        if !is_conditional && self.candidate_list().await?.version != before.version {
            return Ok(None);
        }
        let mode = match &before.version {
            _ if !is_conditional || mutated!("candidates-overwrite-a-newer-list") => PutMode::Replace,
            Some(version) => PutMode::IfMatch(version.clone()),
            None => PutMode::Create,
        };
        let epoch = backend.lease_term().map_or(0, |lease_term| lease_term.epoch);
        let encode = move || Ok((candidates.encode(epoch), candidates));
        let (bytes, candidates) = backend.runtime().run_blocking("write GC candidates", encode).await?;
        let version = match backend.put(&Key::GcCandidates, bytes.clone(), mode).await {
            Ok(version) => version,
            Err(error) => {
                known.state().read_in = None;
                // The stored list counts, not the answer.
                match backend.get(&Key::GcCandidates, LIMIT_BYTES).await {
                    Ok(found) if found.bytes == bytes => found.info.version,
                    _ if matches!(
                        error.kind(),
                        ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::NotFound
                    ) =>
                    {
                        return Ok(None);
                    }
                    _ => return Err(error),
                }
            }
        };
        let after = List { candidates: Arc::new(candidates), version: Some(version) };
        known.replaced(backend, before, &after);
        Ok(Some(after))
    }
}

fn contended() -> Error {
    Error::new(ErrorKind::Conflict, "write").on(Key::GcCandidates).because("others keep changing it")
}
