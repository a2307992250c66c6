//! Coordination of the users of one store: locks, the lease, the move journal.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::backend::housekeeping::Orphan;
use crate::backend::lock::{LockGuard, LockMode, LockScope};
use crate::backend::lock_table::LockTable;
use crate::error::Result;
use crate::format::layout::Key;
use crate::rt::Runtime;

/// Coordination of the tasks and processes that use one store.
///
/// [`SingleProcess`] is the implementation for a backend that one process uses alone; only a backend that several processes may open
/// has one of its own, with a [`LockTable`] for the tasks of this process. `manual::backend` says which of them a
/// backend needs.
///
/// # Cancel safety
/// Any future may be dropped. A change that it had begun happens entirely or not at all, possibly after the drop.
#[async_trait]
pub trait Coordination: fmt::Debug + Send + Sync {
    /// The runtime that the backend was made with. The store uses it too.
    fn runtime(&self) -> &Arc<dyn Runtime>;

    /// Reads the clock that sets [`ObjectInfo::last_used`](crate::backend::ObjectInfo::last_used). Only a process that may change the
    /// store asks.
    ///
    /// # Errors
    /// `Busy` if another process may change the store; `Unavailable` if the clock cannot be read.
    async fn clock(&self) -> Result<SystemTime>;

    /// Takes a lock without waiting. It is held until the guard is dropped.
    ///
    /// * [`LockScope::Group`], [`LockScope::Manifest`], [`LockScope::Snapshot`]: any number of shared holders or one exclusive
    ///   holder, within this process and, if [`Capabilities::lock_reach`](crate::backend::Capabilities::lock_reach) says so, among
    ///   processes.
    /// * [`LockScope::Store`] excludes other *processes* only: within one process, shared and exclusive holders do not exclude each
    ///   other, and the store has finer locks of its own for its tasks. Two exclusive holders do exclude each other.
    ///
    /// # Errors
    /// `Busy` while another holder has it in a mode that excludes this one.
    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>>;

    /// Checks that no other process has taken the store over from this one, where that is possible and takes a request to find out. The
    /// store calls it before it deletes without the lock of the store: the locks that this process holds are then known to exclude
    /// others. It never fails because another process of the same host collects garbage.
    ///
    /// # Errors
    /// `Busy` if another process owns the store by now; `Unavailable` if that could not be found out.
    async fn check_owned(&self) -> Result<()>;

    /// The lease term in which this process alone may change the store; `None` for a backend without terms, and while it is not certain
    /// that the term continues. Within a term, everything that was read stays true except for the changes of this process. Makes no
    /// request.
    fn lease_term(&self) -> Option<LeaseTerm>;

    /// Begins a new [lease term](Coordination::lease_term) without releasing the lease. Records that were made elsewhere under the old
    /// term become invalid, unless their owner learns of the new term. The collector calls it before it deletes chunks. Does nothing in
    /// a backend without terms.
    ///
    /// # Errors
    /// `Busy` if another process owns the store by now.
    async fn begin_term(&self) -> Result<()>;

    /// For how much longer a request without an answer, of this process or of an earlier owner of the store, may still delete the object
    /// under this key: the store puts nothing there until then. `None` if no such request exists. Makes no request.
    fn in_doubt(&self, key: &Key) -> Option<Duration>;

    /// Records that indexes are about to appear under these keys and to vanish from others. A mark that runs in another process may miss
    /// an index at both places, and reads the record with [`pending_moves`](Coordination::pending_moves). Does nothing in a backend
    /// that only one process at a time may change.
    ///
    /// # Errors
    /// Any failure to record them. The caller must then move nothing.
    async fn record_moves(&self, keys: &[Key]) -> Result<()>;

    /// The moves that were recorded and not yet cleared; `None` for a backend that needs no record. No process records more moves while
    /// the answer is held.
    ///
    /// # Errors
    /// `Busy` if other processes keep recording moves; any failure to read them.
    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>>;

    /// As [`close`](Coordination::close), and also removes the mark of this host on the store, where the backend has one.
    ///
    /// # Errors
    /// `Busy` if another process owns the store by now; any other failure.
    async fn release(&self) -> Result<()>;

    /// Releases the claims of this process on the store as a whole. It is the last call; the claims of a backend that is dropped
    /// instead expire.
    ///
    /// # Errors
    /// Any failure. The backend is closed even then.
    async fn close(&self) -> Result<()>;
}

/// Coordination in a store that one process uses alone: locks among its tasks, and nothing else.
///
/// If another process can reach the place, the backend must report [`LockReach::Process`](crate::backend::LockReach::Process): the store
/// then collects garbage only after the caller asserted by `GcOptions::only_process` that no other process uses it.
#[derive(Debug)]
pub struct SingleProcess {
    /// The clock of the objects; `None` for that of the runtime.
    clock: Option<Box<dyn ObjectClock>>,
    locks: LockTable,
    runtime: Arc<dyn Runtime>,
}

/// The clock of objects whose times do not come from the runtime.
#[async_trait]
pub(super) trait ObjectClock: fmt::Debug + Send + Sync {
    /// As [`Coordination::clock`].
    async fn now(&self) -> Result<SystemTime>;
}

impl SingleProcess {
    /// Coordination on this runtime, whose clock is that of the objects.
    pub fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self { clock: None, locks: LockTable::default(), runtime }
    }

    /// Coordination for objects with a clock of their own.
    #[cfg(feature = "object_store")]
    pub(super) fn with_clock(runtime: Arc<dyn Runtime>, clock: Box<dyn ObjectClock>) -> Self {
        Self { clock: Some(clock), ..Self::new(runtime) }
    }
}

#[async_trait]
impl Coordination for SingleProcess {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        &self.runtime
    }

    async fn clock(&self) -> Result<SystemTime> {
        match &self.clock {
            Some(clock) => clock.now().await,
            None => Ok(self.runtime.now()),
        }
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        self.locks.lock(scope, mode, self.runtime.now())
    }

    async fn check_owned(&self) -> Result<()> {
        Ok(())
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        None
    }

    async fn begin_term(&self) -> Result<()> {
        Ok(())
    }

    fn in_doubt(&self, _: &Key) -> Option<Duration> {
        None
    }

    async fn record_moves(&self, _: &[Key]) -> Result<()> {
        Ok(())
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        Ok(None)
    }

    async fn release(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

/// A lease term: the time in which one process alone may change a store, under one epoch.
#[expect(clippy::exhaustive_structs, reason = "made by those who implement the trait")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LeaseTerm {
    /// The epoch of the previous term, if the same instance held it: then no other process changed the store in between. `None` after
    /// [`Coordination::begin_term`].
    pub continues: Option<u64>,
    /// The epoch. It grows from term to term.
    pub epoch: u64,
    /// The epoch with which this process took the lease: the first of the terms that lead to this one without a gap.
    pub since: u64,
    /// Requests of an earlier holder may still be executed.
    pub in_doubt: bool,
}

impl fmt::Display for LeaseTerm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let doubt = if self.in_doubt { ", requests of an earlier holder in doubt" } else { "" };
        write!(f, "epoch {}, held since {}{doubt}", self.epoch, self.since)
    }
}

/// Moves of indexes that were [recorded](Coordination::record_moves).
#[async_trait]
pub trait PendingMoves: fmt::Debug + Send + Sync {
    /// The keys to which indexes were moved or may still be moved, in the order in which they were recorded. The collector reads them in
    /// this order: an index that is moved again meanwhile has its next key later in the list.
    fn keys(&self) -> &[Key];

    /// The index files among the recorded paths that no key names.
    fn orphans(&self) -> &[Orphan];

    /// Removes the record of these moves, after the collector marked all of the indexes. A value that is dropped instead leaves the record.
    ///
    /// # Errors
    /// Any failure to remove it; the next collector then reads the same moves again.
    async fn clear(self: Box<Self>) -> Result<()>;
}
