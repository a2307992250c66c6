//! The state that all groups of a sync share, and that of the group being synced.

use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::{self, Either};

use crate::backend::{LockGuard, Version};
use crate::chunks::WriterPins;
use crate::error::Error;
use crate::format::Digest;
use crate::format::name::{BackupTime, SnapshotName};
use crate::rt::Rate;
use crate::rt::semaphore::Semaphore;
use crate::store::{Datastore, GroupImport, Held};
use crate::sync::events::SyncEvent;
use crate::sync::key_change::Rekeyed;
use crate::sync::kinds::{Same, SyncSnapshot};
use crate::sync::options::SyncOptions;
use crate::sync::progress::SnapshotProgress;
use crate::trace;

/// Interval of checks of the abort flag during a wait for bandwidth.
const ABORT_CHECK: Duration = Duration::from_millis(500);

/// State shared by all groups of a sync. It stays from one execution of a plan to the next while the lock is held, so that no chunk is
/// transferred twice.
#[derive(Debug)]
pub(super) struct Run {
    /// Keeps other processes from collecting transferred chunks of snapshots that are not visible yet (H4, H5).
    pub(super) guard: Box<dyn LockGuard>,
    pub(super) options: SyncOptions,
    /// Transferred chunks, pinned and not transferred again.
    pub(super) pins: Mutex<Arc<WriterPins>>,
    pub(super) rate: Option<Rate>,
    /// One for each chunk that may be read.
    pub(super) reads: Slots,
    pub(super) same: Same,
    pub(super) source: Datastore,
    pub(super) target: Datastore,
    /// One for each chunk that may be stored.
    pub(super) writes: Slots,
}

/// Limit of concurrent transfers.
#[derive(Debug)]
pub(super) struct Slots {
    pub(super) budget: Arc<Semaphore>,
    pub(super) count: usize,
}

/// Reason why a snapshot was not transferred.
#[derive(Debug)]
pub(super) enum Failure {
    /// The caller set the abort flag.
    Aborted,
    Failed(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Slots {
    pub(super) fn new(store: &Datastore, options: &SyncOptions) -> Self {
        let most = options.control.concurrency.unwrap_or(usize::MAX);
        let count = store.inner().in_flight().min(most);
        Self { budget: Semaphore::new(count), count }
    }
}

impl Run {
    pub(super) fn notify(&self, event: &SyncEvent) {
        match event {
            SyncEvent::ChunkReused { .. } => trace::synced(),
            SyncEvent::ChunkSent { stored, .. } => trace::sent(*stored),
            SyncEvent::SnapshotFinished { .. } => trace::step(event),
            SyncEvent::SnapshotStarted { .. } => {}
        }
        self.options.control.notify(event);
    }

    pub(super) fn check_abort(&self) -> Result<(), Failure> {
        if self.options.control.is_aborted() { Err(Failure::Aborted) } else { Ok(()) }
    }

    pub(super) fn pins(&self) -> Arc<WriterPins> {
        Arc::clone(&self.pins.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Forgets transferred chunks if they are too many. Their snapshots are visible or aborted.
    pub(super) fn forget(&self) {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if pins.confirmed() > self.options.remember_chunks {
            *pins = self.target.inner().pins_beside(&pins, None);
        }
    }

    /// Waits until this number of bytes may be sent, or the sync is aborted.
    pub(super) async fn throttle(&self, bytes: u64) -> Result<(), Failure> {
        let Some(rate) = &self.rate else { return Ok(()) };
        let runtime = self.target.inner().runtime().as_ref();
        let mut taken = pin!(rate.take(bytes, runtime));
        loop {
            match future::select(taken.as_mut(), runtime.sleep(ABORT_CHECK)).await {
                Either::Left(_) => return Ok(()),
                Either::Right(_) => self.check_abort()?,
            }
        }
    }
}

/// A snapshot to transfer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transfer<'a> {
    /// Its name at the target.
    pub(super) name: &'a Arc<SnapshotName>,
    pub(super) plan: &'a SyncSnapshot,
    pub(super) progress: &'a SnapshotProgress,
    /// `true` if this plan has tried before, and may have published the snapshot.
    pub(super) was_started: bool,
}

/// A group of the target that is locked.
#[derive(Debug)]
pub(super) struct GroupRun<'a> {
    pub(super) base: Option<Arc<Base>>,
    pub(super) import: GroupImport,
    pub(super) newest: Option<BackupTime>,
    /// Chunks whose key was changed; `None` before the first.
    pub(super) rekeyed: Option<Rekeyed>,
    pub(super) run: &'a Run,
}

/// The newest snapshot of the group at the target: its chunks may be reused (H180).
#[derive(Debug)]
pub(super) struct Base {
    /// Sorted.
    pub(super) digests: Vec<Digest>,
    pub(super) held: Held,
    pub(super) name: SnapshotName,
    pub(super) version: Version,
}

impl Base {
    pub(super) fn names(&self, digest: &Digest) -> bool {
        self.digests.binary_search(digest).is_ok()
    }
}
