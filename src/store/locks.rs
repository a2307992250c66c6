//! Locks of the store, of groups, snapshots and manifests.

use std::sync::Arc;

use futures::future;

use crate::backend::lock_wait::{GROUP_WAIT, MANIFEST_WAIT, lock_store, lock_with_timeout};
use crate::backend::{LockGuard, LockMode, LockScope};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::name::{GroupName, SnapshotName};
use crate::store::StoreInner;

/// A lock that several holders share.
pub(crate) type Held = Arc<dyn LockGuard>;

/// Locks of a store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoreLocks<'a> {
    inner: &'a Arc<StoreInner>,
}

impl StoreInner {
    /// Locks of the store.
    pub(crate) fn locks(self: &Arc<Self>) -> StoreLocks<'_> {
        StoreLocks { inner: self }
    }
}

impl StoreLocks<'_> {
    /// Locks a group exclusively, if it is free.
    pub(crate) async fn group(&self, group: &GroupName) -> Result<Box<dyn LockGuard>> {
        self.inner.backend.lock(&LockScope::Group(group.clone()), LockMode::Exclusive).await
    }

    /// Locks a group exclusively; waits for half a second if it is in use.
    pub(crate) async fn group_waiting(&self, group: &GroupName) -> Result<Box<dyn LockGuard>> {
        let scope = LockScope::Group(group.clone());
        lock_with_timeout(self.inner.backend.as_ref(), &scope, LockMode::Exclusive, GROUP_WAIT).await
    }

    /// Locks a snapshot exclusively, if it is free.
    pub(crate) async fn snapshot(&self, snapshot: &SnapshotName) -> Result<Box<dyn LockGuard>> {
        self.inner.backend.lock(&LockScope::Snapshot(snapshot.clone()), LockMode::Exclusive).await
    }

    /// Locks a snapshot; waits for half a second if it is in use.
    pub(crate) async fn snapshot_waiting(
        &self,
        snapshot: &SnapshotName,
        mode: LockMode,
    ) -> Result<Box<dyn LockGuard>> {
        let scope = LockScope::Snapshot(snapshot.clone());
        lock_with_timeout(self.inner.backend.as_ref(), &scope, mode, GROUP_WAIT).await
    }

    /// Locks a snapshot against deletion.
    pub(crate) async fn snapshot_to_read(&self, snapshot: &SnapshotName) -> Result<Box<dyn LockGuard>> {
        self.inner.backend.lock(&LockScope::Snapshot(snapshot.clone()), LockMode::Shared).await
    }

    /// Locks the manifest of a snapshot against other updates; waits for a few seconds if it is in use.
    pub(crate) async fn manifest(&self, snapshot: &SnapshotName) -> Result<Box<dyn LockGuard>> {
        let scope = LockScope::Manifest(snapshot.clone());
        lock_with_timeout(self.inner.backend.as_ref(), &scope, LockMode::Exclusive, MANIFEST_WAIT).await
    }

    /// Locks the store as one of several users.
    pub(crate) async fn store(&self) -> Result<Box<dyn LockGuard>> {
        lock_store(self.inner.backend.as_ref(), LockMode::Shared).await
    }

    /// Locks the store for a moment in which no other process writes to it.
    pub(crate) async fn store_alone(&self) -> Result<Box<dyn LockGuard>> {
        lock_store(self.inner.backend.as_ref(), LockMode::Brief).await
    }

    /// Locks the store for a writer: keeps other processes from collecting garbage, and opens the presence records.
    pub(crate) async fn store_to_write(&self) -> Result<Box<dyn LockGuard>> {
        let guard = self.store().await?;
        self.inner.check_identity("change the store").await?;
        if let Some(uuid) = self.inner.uuid() {
            self.inner.chunks.open_presence(uuid).await?;
        }
        self.inner.chunks.inherit_pending_deletes(&Key::GcCandidates).await?;
        future::try_join(self.inner.chunks.refresh_suspect_list(), self.inner.chunks.refresh_gc_candidates())
            .await?;
        Ok(guard)
    }

    /// Locks the store for quarantine and reinstatement, and begins a lease term with open presence records (H16).
    pub(crate) async fn store_to_repair(&self) -> Result<Box<dyn LockGuard>> {
        let guard = self.store().await?;
        let uuid = self.inner.uuid().ok_or_else(|| Error::new(ErrorKind::Internal, "repair chunks"))?;
        self.inner.chunks.begin_repairs(uuid).await?;
        Ok(guard)
    }
}
