//! Coordination of a packed store: that of the backend below, and a view that is read again under the lock of the store.

use std::fmt;
use std::sync::{Arc, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;

use crate::backend::{
    Coordination, LeaseTerm, LockGuard, LockMode, LockReach, LockScope, Orphan, PendingMoves,
};
use crate::error::{ErrorKind, Result};
use crate::format::layout::Key;
use crate::packs::enclosed::{enclose, expose, expose_orphan};
use crate::packs::{PackedBackend, Packs};
use crate::rt::Runtime;

/// The knowledge about changes by others since the view was read.
#[derive(Debug, Default)]
pub(super) struct Tenure {
    /// Number of exclusive holders.
    alone: usize,
    /// Number of the time during which this handle holds the lock exclusively without a gap.
    holding_alone: u64,
    /// When the view was read.
    fresh: Moment,
    /// The packs were listed once.
    has_listed: bool,
    /// The locks behind the holders.
    held: Vec<Weak<Held>>,
    holders: usize,
    /// Number of the time during which this handle holds the lock of the store without a gap.
    holding: u64,
    /// When the view was read, since the runtime began.
    refreshed: Duration,
    /// Number of segments of this process that this handle knows.
    segments: u64,
}

/// A time at which no other process could change the store, or delete from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Moment {
    /// Number of the exclusive holding; `None` if there was none.
    alone: Option<u64>,
    /// Number of the holding; `None` if the lock was not held.
    holding: Option<u64>,
    /// The lease term, by its first epoch.
    lease: Option<u64>,
    segments: u64,
}

impl Packs {
    /// The present, before the view is read.
    pub(super) fn tenure_now(&self) -> Moment {
        let lease = self.inner.lease_term().map(|term| term.since);
        let tenure = self.tenure();
        let holding = (tenure.holders > 0).then_some(tenure.holding);
        let alone = (tenure.alone > 0).then_some(tenure.holding_alone);
        Moment { alone, holding, lease, segments: self.handles.segments() }
    }

    /// The view shows the store as it was at this time.
    pub(super) fn note_refreshed(&self, at: Moment) {
        let now = self.runtime().monotonic();
        let mut tenure = self.tenure();
        tenure.fresh = at;
        tenure.refreshed = now;
        tenure.segments = at.segments;
    }

    /// Time since the view was read.
    pub(super) fn since_refreshed(&self) -> Duration {
        self.runtime().monotonic().saturating_sub(self.tenure().refreshed)
    }

    /// This handle listed the packs.
    pub(super) fn note_listed(&self) {
        self.tenure().has_listed = true;
    }

    /// Returns `true` if segments may name packs that do not exist: no listing has shown which do, or a segment that names dropped packs may
    /// be among the damaged ones.
    fn trusts_no_pack(&self) -> bool {
        mutated!("pack-is-trusted-without-a-listing" => return false);
        !self.tenure().has_listed || self.state().view.damage().is_some()
    }

    /// Gives up what could not be stored because the store is full, if no writer can rely on it: each holds the lock of the store.
    fn make_room(&self) {
        if self.tenure().holders == 1 {
            self.state().give_up();
        }
    }

    /// This handle stored a segment, which its view has.
    pub(super) fn note_recorded(&self) {
        let before = self.handles.count_segment();
        let mut tenure = self.tenure();
        if tenure.segments == before {
            tenure.segments += 1;
        }
    }

    /// Number of the present holding of the lock of the store, or of the last one; 0 before the first.
    pub(super) fn holding(&self) -> u64 {
        self.tenure().holding
    }

    /// The lock of the store, if this handle holds it. It stays held until the result is dropped.
    pub(super) fn held(&self) -> Option<Arc<Held>> {
        self.tenure().held.iter().find_map(Weak::upgrade)
    }

    /// Returns `true` if no other process can have changed the store since the view was read, and no other handle has.
    pub(super) fn is_exclusive(&self) -> bool {
        self.has_lease() || {
            let tenure = self.tenure();
            tenure.alone > 0
                && tenure.fresh.alone == Some(tenure.holding_alone)
                && tenure.segments == self.handles.segments()
        }
    }

    /// Returns `true` if no other process can have changed the store since the view was read.
    pub(super) fn was_exclusive(&self) -> bool {
        self.inner.capabilities().lock_reach == LockReach::Process || self.is_same_lease()
    }

    /// Returns `true` if another handle of this process stored a segment that this one does not know.
    pub(super) fn is_behind(&self) -> bool {
        self.tenure().segments != self.handles.segments()
    }

    fn has_lease(&self) -> bool {
        self.is_same_lease() && !self.is_behind()
    }

    fn is_same_lease(&self) -> bool {
        let lease = self.inner.lease_term().map(|term| term.since);
        lease.is_some() && lease == self.tenure().fresh.lease
    }

    /// Returns `true` if no other process can have dropped a pack since the view was read.
    fn is_current(&self) -> bool {
        self.is_same_lease() || {
            let tenure = self.tenure();
            tenure.holders > 1 && tenure.fresh.holding == Some(tenure.holding)
        }
    }

    fn tenure(&self) -> MutexGuard<'_, Tenure> {
        self.tenure.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns `true` if packs and drops may be recorded. Without the lock of the store, another process may have deleted the packs meanwhile, and nothing
/// that was acknowledged depends on them. The next holder looks for them first.
pub(super) fn may_record_packs(held: Option<&Arc<Held>>) -> bool {
    held.is_some() || mutated!("pack-is-recorded-without-the-lock")
}

/// The lock of the store, held by this handle: by a caller, and by the requests that must end before another process may take it.
#[derive(Debug)]
pub(super) struct Held {
    // Dropped first: another process may take the lock once the guard is dropped, and this one must read the view again then.
    _holder: Holder,
    guard: Box<dyn LockGuard>,
}

impl Held {
    fn new(packs: &Arc<Packs>, guard: Box<dyn LockGuard>, is_alone: bool) -> Arc<Self> {
        let held = Arc::new(Self { _holder: Holder::new(packs, is_alone), guard });
        let mut tenure = packs.tenure();
        tenure.held.retain(|held| held.strong_count() > 0);
        tenure.held.push(Arc::downgrade(&held));
        drop(tenure);
        held
    }
}

/// The lock of the store, held by a caller.
#[derive(Debug)]
struct PackedGuard {
    held: Arc<Held>,
}

/// A holder of the lock of the store.
struct Holder {
    is_alone: bool,
    packs: Arc<Packs>,
}

impl Holder {
    fn new(packs: &Arc<Packs>, is_alone: bool) -> Self {
        let mut tenure = packs.tenure();
        tenure.holding += u64::from(tenure.holders == 0);
        tenure.holding_alone += u64::from(is_alone && tenure.alone == 0);
        tenure.holders += 1;
        tenure.alone += usize::from(is_alone);
        drop(tenure);
        Self { is_alone, packs: Arc::clone(packs) }
    }
}

impl fmt::Debug for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Holder").field("is_alone", &self.is_alone).finish_non_exhaustive()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let mut tenure = self.packs.tenure();
        tenure.holders -= 1;
        tenure.alone -= usize::from(self.is_alone);
    }
}

#[async_trait]
impl LockGuard for PackedGuard {
    async fn check(&self) -> Result<()> {
        self.held.guard.check().await
    }

    fn keeps_processes_out(&self) -> bool {
        self.held.guard.keeps_processes_out()
    }

    fn oldest_shared(&self) -> Option<SystemTime> {
        self.held.guard.oldest_shared()
    }

    // The store is no object that could be deleted.
    async fn release_deleted(self: Box<Self>) {}
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Coordination for PackedBackend {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.packs.runtime()
    }

    async fn clock(&self) -> Result<SystemTime> {
        self.packs.inner.clock().await
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        let guard = self.packs.inner.lock(scope, mode).await?;
        if *scope != LockScope::Store {
            return Ok(guard);
        }
        let held = Held::new(&self.packs, guard, mode.is_alone());
        // Until now another process could drop packs, and no chunk in them may be relied on. Beside shared holders of this process, other
        // processes could still add some.
        let is_stale = !self.packs.is_current() || (mode.is_alone() && !self.packs.is_exclusive());
        if is_stale && !mutated!("pack-index-is-not-read-under-the-lock") {
            self.packs.refresh().await?;
        }
        self.packs.check_unrecorded().await?;
        if self.packs.has_failed() {
            // Chunks that an earlier writer could not store would fail each put. If they fail again, so do the puts.
            match self.packs.flush().await {
                Err(error) if error.kind() == ErrorKind::Full => self.packs.make_room(),
                _ => {}
            }
        }
        if self.packs.trusts_no_pack() {
            self.packs.begin_listing().await?;
        }
        Ok(Box::new(PackedGuard { held }))
    }

    async fn check_owned(&self) -> Result<()> {
        self.packs.inner.check_owned().await
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        self.packs.inner.lease_term()
    }

    async fn begin_term(&self) -> Result<()> {
        self.packs.inner.begin_term().await
    }

    fn in_doubt(&self, key: &Key) -> Option<Duration> {
        self.packs.inner.in_doubt(&enclose(key))
    }

    async fn record_moves(&self, keys: &[Key]) -> Result<()> {
        let keys: Vec<_> = keys.iter().map(enclose).collect();
        self.packs.inner.record_moves(&keys).await
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        let moves = self.packs.inner.pending_moves().await?;
        Ok(moves.map(|moves| Box::new(Exposed::new(moves)) as Box<dyn PendingMoves>))
    }

    async fn release(&self) -> Result<()> {
        self.packs.inner.release().await
    }

    async fn close(&self) -> Result<()> {
        self.packs.inner.close().await
    }
}

/// Recorded moves, by the keys above.
#[derive(Debug)]
struct Exposed {
    keys: Vec<Key>,
    moves: Box<dyn PendingMoves>,
    orphans: Vec<Orphan>,
}

impl Exposed {
    fn new(moves: Box<dyn PendingMoves>) -> Self {
        let keys = moves.keys().iter().cloned().map(expose).collect();
        let orphans = moves.orphans().iter().cloned().map(expose_orphan).collect();
        Self { keys, moves, orphans }
    }
}

#[async_trait]
impl PendingMoves for Exposed {
    fn keys(&self) -> &[Key] {
        &self.keys
    }

    fn orphans(&self) -> &[Orphan] {
        &self.orphans
    }

    async fn clear(self: Box<Self>) -> Result<()> {
        self.moves.clear().await
    }
}
