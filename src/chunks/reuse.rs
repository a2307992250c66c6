//! How the sighting of a chunk begins anew when a snapshot is published that names it.
//!
//! In a bucket, a collection removes what two runs saw unused that are at least the grace time apart. Between the two, somebody may
//! have published a snapshot with chunks that were there already: nothing was stored, so nothing about the chunks shows that they
//! are used again. If another process collects a moment later, and listings lag, it does not see the index, and the first
//! sighting is old enough. So whoever publishes says first what is used, where nothing lags: in the list of sightings itself.
//!
//! ```text
//! every chunk confirmed → sightings that are concerned begin anew, at the time of the store → indexes → manifest
//! ```
//!
//! | who | what begins anew |
//! |---|---|
//! | a backup, a sync into the store | what its chunks are concerned by, of the list as it is |
//! | a copy or a move within the store | all, at most every [`ALL_EVERY`]: what the indexes name is not at hand |
//! | a collection | nothing; what a writer of the process has pinned is left out when the list is written |
//!
//! Then a chunk that is removed was not named by anything whose publication began within the grace time; everything older is shown by
//! listings, as long as the grace time is not shorter than
//! the lag that a collection allows for (`listing_lag`). A sighting stays on the list when it begins anew, since the list is also the
//! intent that tells the next holder of the store what late requests may delete.
//!
//! # Who writes the list
//! Whoever holds the store, and several in it at the same time: each write is on the condition that the list is still the one that was
//! read, and who finds another one reads it and begins anew. A collection looks once more at what is pinned when it has written:
//!
//! ```text
//! writer:      pin → … → list, as known → used chunks are on it? → written on condition → known → indexes
//! collection:  list of what is not pinned → written on condition → known → something on it is pinned? once more
//! ```
//! So a writer that pinned a chunk before the collection looked has it taken from the list, and one that pinned it after that knows
//! the list. Where the server has no conditional puts, one writes at a time in this process.
//!
//! The list is read once in a term, and each time while requests of an earlier holder may still arrive, which may replace it. A writer
//! that is cut off leaves the list as it was or with younger sightings, which only keep chunks for longer.

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

/// How often all sightings begin anew at most.
const ALL_EVERY: Duration = Duration::from_mins(10);
/// How often it is tried to write a list that others write too.
const TRIES: usize = 100;

/// What the openings of a store in this process know of the list.
#[derive(Debug, Default)]
pub(crate) struct KnownCandidates {
    state: Mutex<State>,
    /// Held while the list is written without a condition.
    writing: AsyncMutex<()>,
}

#[derive(Debug, Default)]
struct State {
    /// Of which backend the list is: a copy of a store has its identity, and a list of its own.
    backend: Option<Weak<dyn Backend>>,
    /// By the monotonic clock: when all began anew last, in the terms below.
    all_since: Option<Duration>,
    list: List,
    /// The first epoch of the terms in which it was read or written; none if it has to be read.
    read_in: Option<u64>,
}

/// The list as it was read.
#[derive(Clone, Debug, Default)]
struct List {
    sightings: Arc<GcCandidates>,
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

    /// The list was written in the place of another one. If that is not the one that was known, somebody else wrote it as well.
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
    /// The list as it is now.
    ///
    /// # Errors
    /// Any failure to read it. One that is damaged has nothing on it.
    pub(crate) async fn sightings(&self) -> Result<Arc<GcCandidates>> {
        if !self.uncached_backend().capabilities().needs_gc_candidates() {
            return Ok(Arc::default());
        }
        Ok(self.read_sightings().await?.sightings)
    }

    /// Reads the list, unless it is known. To be called when the store was locked, so that publishing takes no request more as a rule.
    ///
    /// # Errors
    /// Any failure to read it.
    pub(crate) async fn refresh_sightings(&self) -> Result<()> {
        if !self.uncached_backend().capabilities().needs_gc_candidates() {
            return Ok(());
        }
        self.list_of_sightings().await.map(drop)
    }

    /// The chunks of these writers are about to be named by an index.
    ///
    /// # Errors
    /// Whatever keeps the list from being read or written: nothing may then be published.
    ///
    /// # Cancel safety
    /// The list is as it was, or has younger sightings.
    pub(crate) async fn restart_sightings(&self, writers: &[Arc<WriterPins>]) -> Result<()> {
        if !self.uncached_backend().capabilities().needs_gc_candidates() {
            return Ok(());
        }
        let used = |sightings: Arc<GcCandidates>| {
            let writers = writers.to_vec();
            let find = move || Ok(writers.iter().flat_map(|writer| writer.among(&sightings)).collect());
            self.uncached_backend().runtime().run_blocking("look for sightings", find)
        };
        for _ in 0..TRIES {
            let list = self.list_of_sightings().await?;
            if list.sightings.is_empty() {
                return Ok(());
            }
            let used: HashSet<Prefix> = used(Arc::clone(&list.sightings)).await?;
            if used.is_empty() {
                return Ok(());
            }
            let mut sightings = GcCandidates::clone(&list.sightings);
            sightings.restart(&used, self.uncached_backend().clock().await?);
            if self.replace_sightings(&list, sightings).await?.is_some() {
                return Ok(());
            }
        }
        Err(contended())
    }

    /// Some indexes are about to appear whose chunks are not known.
    ///
    /// # Errors
    /// As [`restart_sightings`](Self::restart_sightings).
    pub(crate) async fn restart_all_sightings(&self) -> Result<()> {
        if !self.uncached_backend().capabilities().needs_gc_candidates() {
            return Ok(());
        }
        for _ in 0..TRIES {
            let list = self.list_of_sightings().await?;
            let now = self.uncached_backend().runtime().monotonic();
            let all_since = self.known_sightings().all_since(self.uncached_backend());
            let is_done = all_since.is_some_and(|since| now.saturating_sub(since) < ALL_EVERY);
            if list.sightings.is_empty() || is_done {
                return Ok(());
            }
            let mut sightings = GcCandidates::clone(&list.sightings);
            sightings.restart_all(self.uncached_backend().clock().await?);
            if self.replace_sightings(&list, sightings).await?.is_some() {
                self.known_sightings().state().all_since = Some(now);
                return Ok(());
            }
        }
        Err(contended())
    }

    /// Writes down what a collection saw unused, but for what is pinned by now; and what late requests may delete, in any case.
    ///
    /// # Errors
    /// `Conflict` if others keep changing the list; whatever keeps it from being written.
    pub(crate) async fn write_sightings(
        &self,
        seen: Vec<(Digest, SystemTime)>,
        leaving: Vec<(Digest, SystemTime)>,
    ) -> Result<()> {
        let (mut seen, mut list) = (seen, self.list_of_sightings().await?);
        for _ in 0..TRIES {
            let (pins, leaving) = (Arc::clone(self.pins()), leaving.clone());
            let sort = move || {
                seen.retain(|(digest, _)| !pins.is_pinned(digest));
                let sightings = GcCandidates::of(seen.iter().copied().chain(leaving).collect());
                Ok((seen, sightings))
            };
            let (left, sightings) =
                self.uncached_backend().runtime().run_blocking("write sightings", sort).await?;
            seen = left;
            let written = self.replace_sightings(&list, sightings).await?;
            let Some(written) = written else {
                list = self.read_sightings().await?;
                continue;
            };
            // Who pinned a chunk meanwhile may not have known that it is on the list.
            let pins = Arc::clone(self.pins());
            let look = move || Ok((seen.iter().any(|(digest, _)| pins.is_pinned(digest)), seen));
            let (is_pinned, left) =
                self.uncached_backend().runtime().run_blocking("write sightings", look).await?;
            if !is_pinned {
                return Ok(());
            }
            (seen, list) = (left, written);
        }
        Err(contended())
    }

    /// The list as it is known, if nobody can have changed it since.
    async fn list_of_sightings(&self) -> Result<List> {
        let since = self.settled_since();
        {
            let state = self.known_sightings().state();
            if since.is_some() && state.read_in == since && state.is_of(self.uncached_backend()) {
                return Ok(state.list.clone());
            }
        }
        self.read_sightings().await
    }

    async fn read_sightings(&self) -> Result<List> {
        let since = self.settled_since();
        let version_of =
            |state: &State| state.is_of(self.uncached_backend()).then(|| state.list.version.clone());
        let before = version_of(&self.known_sightings().state());
        let (bytes, version) = match self.uncached_backend().get(&Key::GcCandidates, LIMIT_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => (Bytes::new(), None),
            // Longer than any can be: it says nothing, and is replaced.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                (Bytes::new(), Some(self.uncached_backend().head(&Key::GcCandidates).await?.version))
            }
            object => object.map(|object| (object.bytes, Some(object.info.version)))?,
        };
        let parse = move || Ok(GcCandidates::parse(&bytes));
        let sightings = self.uncached_backend().runtime().run_blocking("read sightings", parse).await?;
        let list = List { sightings: Arc::new(sightings), version };
        let mut state = self.known_sightings().state();
        // Unless it was written while it was read.
        let is_newest = version_of(&state) == before;
        let all_since =
            state.all_since.filter(|_| state.is_of(self.uncached_backend()) && state.read_in == since);
        let backend = Some(Arc::downgrade(self.uncached_backend()));
        *state = State { all_since, backend, list: list.clone(), read_in: since.filter(|_| is_newest) };
        drop(state);
        Ok(list)
    }

    /// Since when this process alone has been changing the store, with no request of anybody else under way.
    fn settled_since(&self) -> Option<u64> {
        self.uncached_backend()
            .lease_term()
            .filter(|lease_term| !lease_term.in_doubt)
            .map(|lease_term| lease_term.since)
    }

    /// Writes the list if it is still this one; nothing if it is another one by now, which then has to be read.
    async fn replace_sightings(&self, before: &List, sightings: GcCandidates) -> Result<Option<List>> {
        let (backend, known) = (self.uncached_backend(), self.known_sightings());
        let is_conditional = backend.capabilities().conditional_put;
        let _alone = if is_conditional { None } else { Some(known.writing.lock().await) };
        if !is_conditional && self.list_of_sightings().await?.version != before.version {
            return Ok(None);
        }
        let mode = match &before.version {
            _ if !is_conditional => PutMode::Replace,
            Some(version) => PutMode::IfMatch(version.clone()),
            None => PutMode::Create,
        };
        let epoch = backend.lease_term().map_or(0, |lease_term| lease_term.epoch);
        let encode = move || Ok((sightings.encode(epoch), sightings));
        let (bytes, sightings) = backend.runtime().run_blocking("write sightings", encode).await?;
        let version = match backend.put(&Key::GcCandidates, bytes.clone(), mode).await {
            Ok(version) => version,
            Err(error) => {
                known.state().read_in = None;
                // Whatever was answered, what is there counts.
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
        let after = List { sightings: Arc::new(sightings), version: Some(version) };
        known.replaced(backend, before, &after);
        Ok(Some(after))
    }
}

fn contended() -> Error {
    Error::new(ErrorKind::Conflict, "write").on(Key::GcCandidates).because("others keep changing it")
}
