//! Removal of chunks. Only this file makes a chunk key to delete (H3).
//!
//! # Order of a batch
//! ```text
//! digest locks, without waiting → pinned? used since? → records forgotten, durably → lock still held? → delete → locks released
//! ```
//! A held digest lock means that the chunk stays (I3, H6). The locks are held while one batch is deleted, not while it is
//! collected, so a writer waits for at most one request (H20). An interruption leaves chunks without records: they
//! exist or not, and writers that need them store them again (H16).
//!
//! A batch is a task that owns the digest locks and the lock of the store: its caller may be dropped, and no task can use a chunk
//! while it is being removed (H161).

use std::sync::Arc;
use std::time::SystemTime;

use futures::future;

use crate::backend::{Backend, Deleted, LockGuard, Removal};
use crate::chunks::ChunkStore;
use crate::chunks::digest_locks::DigestLock;
use crate::chunks::fetch::Fetcher;
use crate::chunks::pending::Ticket;
use crate::chunks::pins::PinHold;
use crate::chunks::shared::SharedState;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::layout::Key;

/// Maximum number of objects of a request.
const AT_ONCE: usize = 1000;

/// An unreferenced object among the chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unused {
    pub(crate) digest: Digest,
    /// Number of a quarantined copy.
    pub(crate) quarantined: Option<u8>,
}

/// Outcome for an object.
#[derive(Debug)]
pub(crate) enum Swept {
    /// Already gone.
    Absent,
    /// Another task holds the digest lock.
    Busy,
    /// Not removed, or unknown, because of this error.
    Failed(Error),
    /// A writer uses it.
    Pinned,
    /// Removed.
    Removed,
    /// Used after it was found unreferenced.
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

/// Returns `true` if an object last used at this time may be removed, where the backend tracks use.
pub(crate) type IsOld = dyn Fn(SystemTime) -> bool + Send + Sync;

/// A batch in progress.
struct Sweeping {
    backend: Arc<dyn Backend>,
    shared: Arc<SharedState>,
    guard: Arc<dyn LockGuard>,
    is_old: Arc<IsOld>,
    /// Keeps pins until the batch is complete.
    #[expect(dead_code, reason = "held, not asked")]
    pin_hold: Arc<PinHold>,
    fetcher: Arc<Fetcher>,
}

impl ChunkStore {
    /// Removes unreferenced objects and returns the outcome for each. `guard` is the exclusive lock of the store.
    ///
    /// # Errors
    /// `Busy` if another process owns the store now; any failure to forget presence records. Nothing was removed then.
    ///
    /// # Cancel safety
    /// The batch continues in the background and keeps its locks until it is complete.
    pub(crate) async fn sweep(
        &self,
        unused: Vec<Unused>,
        guard: Arc<dyn LockGuard>,
        is_old: Arc<IsOld>,
        pin_hold: Arc<PinHold>,
    ) -> Result<Vec<Swept>> {
        let sweeping = Sweeping {
            backend: Arc::clone(&self.backend),
            shared: Arc::clone(self.shared()),
            guard,
            is_old,
            pin_hold,
            fetcher: Arc::clone(&self.fetcher),
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
            // Without waiting: a task with the lock is about to use the chunk or to change it, so the chunk stays (I3, H6). Quarantined copies
            // follow their chunk, and need no second lock.
            let is_held = digest_locks.last().is_some_and(|digest_lock| digest_lock.digest() == item.digest);
            let locked = if is_held { None } else { self.shared.digest_locks.try_lock(item.digest) };
            swept.push(match locked {
                None if !is_held => Some(Swept::Busy),
                // Asked under the digest lock: a writer pins under it too, so none can pin between this check and the delete (H1).
                _ if mutated!("sweep-ignores-pins") => None,
                _ if item.quarantined.is_none() && self.shared.pins.is_pinned(&item.digest) => {
                    Some(Swept::Pinned)
                }
                _ => None,
            });
            digest_locks.extend(locked);
        }
        // Another process shows its use only by the time of the object. A writer touched the object since the listing if it uses it now (H6).
        self.recheck_use(unused, &mut swept).await?;
        let chosen: Vec<_> =
            unused.iter().zip(&swept).filter(|(_, swept)| swept.is_none()).map(|(item, _)| *item).collect();
        let chunks: Vec<_> =
            chosen.iter().filter(|item| item.quarantined.is_none()).map(|item| item.digest).collect();
        // Before the delete, durably: after a crash in between, a writer stores the chunk again, instead of relying on a record of a chunk
        // that is gone (H16).
        if !mutated!("sweep-leaves-records") {
            self.fetcher.forget_records(&chunks).await?;
        }
        // Last, as near to the requests as possible: another process that owns the store now may be storing these chunks.
        if !mutated!("sweep-before-the-lock-check") {
            self.guard.check().await?;
        }
        // Before the requests are sent: one without an answer may be executed later (H17). The digest locks are released after the ticket.
        let ticket = self.shared.begin_deletes(&chunks, self.backend.runtime());
        let removals: Vec<_> = chosen.iter().map(|item| Removal::any(item.key())).collect();
        let requests = removals.chunks(AT_ONCE).map(|removals| self.delete(removals));
        let results = future::join_all(requests).await.into_iter().flatten();
        let mut outcomes = chosen.iter().zip(results).map(|(item, result)| outcome_of(item, result, &ticket));
        Ok(swept.into_iter().filter_map(|swept| swept.or_else(|| outcomes.next())).collect())
    }

    /// Where the backend tracks use, objects used meanwhile stay.
    async fn recheck_use(&self, unused: &[Unused], swept: &mut [Option<Swept>]) -> Result<()> {
        mutated!("sweep-without-a-second-look" => return Ok(()));
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

    /// Deletes with one request, if the backend can; returns a result for each.
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
fn outcome_of(item: &Unused, result: Result<Deleted>, ticket: &Ticket<'_, Digest>) -> Swept {
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
