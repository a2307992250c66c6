//! How chunks are removed: the only place that makes a chunk key to delete (H3).
//!
//! # The order, for a batch
//! ```text
//! critical sections, without waiting → pinned? used since? → records forgotten, on the disk → lock still held → delete → sections left
//! ```
//! A section that somebody is in is busy, and its chunk stays (I3, H6). Sections are held while one batch is deleted and not while it is
//! collected, so that a writer waits for one request at most (H20). Whatever is cut off leaves chunks whose records are forgotten: they
//! are there or not, and are stored again by whoever needs them (H16).
//!
//! A batch is a task of its own, which has the sections and the lock of the store: who waits for it may go away, and nobody can use a chunk
//! that is just being removed (H161).

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::future;

use crate::backend::{Backend, Deleted, LockGuard, Removal};
use crate::chunks::ChunkStore;
use crate::chunks::digest_locks::DigestLock;
use crate::chunks::fetch::ChunkReader;
use crate::chunks::pending::Ticket;
use crate::chunks::pins::PinHold;
use crate::chunks::shared::SharedState;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::gc_candidates::{LIMIT_BYTES, prefixes};
use crate::format::layout::Key;

/// How many objects one request names.
const AT_ONCE: usize = 1000;

/// An object among the chunks that nothing uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unused {
    pub(crate) digest: Digest,
    /// Its number, if it was put aside.
    pub(crate) quarantined: Option<u8>,
}

/// What became of it.
#[derive(Debug)]
pub(crate) enum Swept {
    /// It was not there any more.
    Absent,
    /// Somebody is working on the chunk.
    Busy,
    /// It is there or not: why that is not known, or why it could not be removed.
    Failed(Error),
    /// A writer uses it.
    Pinned,
    /// It is gone.
    Removed,
    /// It was used after it was found unused.
    Used,
}

impl Unused {
    pub(crate) fn key(&self) -> Key {
        match self.quarantined {
            None => Key::Chunk(self.digest),
            Some(number) => Key::Quarantined(self.digest, number),
        }
    }
}

/// Whether an object that was last used at this time may go, where a backend keeps such times.
pub(crate) type IsOld = dyn Fn(SystemTime) -> bool + Send + Sync;

/// One batch, on its way.
struct Sweeping {
    backend: Arc<dyn Backend>,
    shared: Arc<SharedState>,
    guard: Arc<dyn LockGuard>,
    is_old: Arc<IsOld>,
    /// Pins stay until it is over.
    #[expect(dead_code, reason = "held, not asked")]
    kept: Arc<PinHold>,
    reader: Arc<ChunkReader>,
}

impl ChunkStore {
    /// Removes what nothing uses, and says of each what became of it. `guard` is the lock of the store, held alone.
    ///
    /// # Errors
    /// `Busy` if the store is somebody else's by now; whatever keeps the records from being forgotten. Nothing was removed then.
    ///
    /// # Cancel safety
    /// What was begun goes on in the background, and nobody gets at the chunks or at the lock before it is over.
    pub(crate) async fn sweep(
        &self,
        unused: Vec<Unused>,
        guard: Arc<dyn LockGuard>,
        is_old: Arc<IsOld>,
        kept: Arc<PinHold>,
    ) -> Result<Vec<Swept>> {
        let sweeping = Sweeping {
            backend: Arc::clone(&self.backend),
            shared: Arc::clone(self.shared()),
            guard,
            is_old,
            kept,
            reader: Arc::clone(&self.reader),
        };
        let work = async move { sweeping.run(&unused).await };
        self.backend.runtime().run_detached("remove chunks", work).await
    }
}

impl Sweeping {
    async fn run(self, unused: &[Unused]) -> Result<Vec<Swept>> {
        let mut swept: Vec<Option<Swept>> = Vec::with_capacity(unused.len());
        let mut digest_locks: Vec<DigestLock<'_>> = Vec::new();
        for item in unused {
            // What was put aside of a chunk comes right after it.
            let held = digest_locks.last().is_some_and(|digest_lock| digest_lock.digest() == item.digest);
            let entered = if held { None } else { self.shared.digest_locks.try_enter(item.digest) };
            swept.push(match entered {
                None if !held => Some(Swept::Busy),
                _ if item.quarantined.is_none() && self.shared.pins.is_pinned(&item.digest) => {
                    Some(Swept::Pinned)
                }
                _ => None,
            });
            digest_locks.extend(entered);
        }
        self.look_again(unused, &mut swept).await?;
        let chosen: Vec<_> =
            unused.iter().zip(&swept).filter(|(_, swept)| swept.is_none()).map(|(item, _)| *item).collect();
        let chunks: Vec<_> =
            chosen.iter().filter(|item| item.quarantined.is_none()).map(|item| item.digest).collect();
        self.reader.forget_all(&chunks).await?;
        self.guard.check().await?;
        // Before the requests are sent: one without an answer may be executed later (H17).
        let mut ticket = self.shared.begin_deletes(&chunks, self.backend.runtime().monotonic());
        let removals: Vec<_> = chosen.iter().map(|item| Removal::any(item.key())).collect();
        let requests = removals.chunks(AT_ONCE).map(|removals| self.delete(removals));
        let results = future::join_all(requests).await.into_iter().flatten();
        let mut outcomes =
            chosen.iter().zip(results).map(|(item, result)| settled(item, result, &mut ticket));
        Ok(swept.into_iter().filter_map(|swept| swept.or_else(|| outcomes.next())).collect())
    }

    /// Where a backend keeps times of use, what was used since stays.
    async fn look_again(&self, unused: &[Unused], swept: &mut [Option<Swept>]) -> Result<()> {
        if !self.backend.capabilities().tracks_last_use {
            return Ok(());
        }
        let wanted: Vec<_> = (0..swept.len()).filter(|at| swept[*at].is_none()).collect();
        let keys: Vec<_> = wanted.iter().filter_map(|at| unused.get(*at)).map(Unused::key).collect();
        for (at, found) in wanted.into_iter().zip(self.backend.head_many(&keys).await?) {
            let outcome = match found {
                Ok(info) if (self.is_old)(info.last_used) => None,
                Ok(_) => Some(Swept::Used),
                Err(error) if error.kind() == ErrorKind::NotFound => Some(Swept::Absent),
                Err(error) => Some(Swept::Failed(error)),
            };
            swept[at] = outcome;
        }
        Ok(())
    }

    /// Deletes with one request, if the backend can; an answer for each.
    async fn delete(&self, removals: &[Removal]) -> Vec<Result<Deleted>> {
        match self.backend.delete(removals).await {
            Ok(results) if results.len() == removals.len() => results,
            Ok(_) => {
                let error = |removal: &Removal| Error::new(ErrorKind::Internal, "delete").on(&removal.key);
                removals.iter().map(|removal| Err(error(removal))).collect()
            }
            Err(error) => removals.iter().map(|_| Err(error.clone())).collect(),
        }
    }
}

/// The outcome of the request for one chunk or quarantined copy.
fn settled(item: &Unused, result: Result<Deleted>, ticket: &mut Ticket<'_, Digest>) -> Swept {
    // A quarantined copy has a key of its own: its request says nothing about the chunk.
    if item.quarantined.is_none() {
        ticket.finish(&item.digest, &result);
    }
    match result {
        Ok(Deleted::Absent) => Swept::Absent,
        Ok(_) => Swept::Removed,
        Err(error) => Swept::Failed(error),
    }
}

impl ChunkStore {
    /// Chunks that a request which got no answer may still delete.
    pub(crate) fn leaving(&self) -> Vec<Digest> {
        self.shared().pending_deletes(self.backend.runtime().monotonic())
    }

    /// Chunks that an index names and that are not there: the next backup that has them stores them again (H22).
    pub(crate) async fn note_missing(&self, digests: &[Digest]) -> Result<()> {
        self.reader.suspects().extend(digests);
        self.reader.forget_all(digests).await
    }

    /// Begins a new term, so that records of the one before count no longer for anybody who is not told (H16).
    pub(crate) async fn begin_term(&self, identity: &str) -> Result<()> {
        let Some(before) = self.backend.lease_term() else { return self.backend.begin_term().await };
        let presences = self.shared().presences();
        // Those who have records must have them open before the term ends that they are of.
        for presence in &presences {
            presence.open(identity, before.epoch, before.continues).await?;
        }
        self.backend.begin_term().await?;
        let Some(after) = self.backend.lease_term() else { return Ok(()) };
        for presence in &presences {
            presence.open(identity, after.epoch, Some(before.epoch)).await?;
        }
        Ok(())
    }

    /// What somebody who had the store before may have been deleting when it was taken from them. `sightings` lists all of it.
    pub(crate) async fn inherit_leaving(&self, sightings: &Key) -> Result<()> {
        let now = self.backend.runtime().monotonic();
        let unsettled = self.backend.lease_term().is_some_and(|lease_term| lease_term.in_doubt);
        if !unsettled || self.shared().has_inherited(now) {
            return Ok(());
        }
        let found = match self.backend.get(sightings, LIMIT_BYTES).await {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => Bytes::new(),
            object => object?.bytes,
        };
        let prefixes = move || Ok(prefixes(&found));
        let mut prefixes = self.backend.runtime().run_blocking("read sightings", prefixes).await?;
        // Those that were being put aside, too.
        let suspects = self.reader.suspects();
        prefixes.extend(
            suspects.iter().map(|digest| std::array::from_fn::<_, 12, _>(|at| digest.as_bytes()[at])),
        );
        drop(suspects);
        self.shared().inherit(prefixes, now);
        Ok(())
    }
}
