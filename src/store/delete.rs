//! How snapshots, groups and namespaces are deleted.
//!
//! # The order
//! ```text
//! locks → what is there, and whether it is protected → lock still held → manifest → barrier → the rest → barrier
//! ```
//! The reverse of how they are published (H42): a crash behind the manifest leaves an unfinished snapshot, which nobody sees and the
//! next backup of the group removes. Chunks stay for the garbage collection. What is decided for a group is decided from its whole
//! listing, before anything of it is deleted (H55).

use crate::backend::{LockGuard, LockMode, LockScope, Removal};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::store::{Datastore, SnapshotInfo};

/// What was deleted.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Deletion {
    /// Snapshots that are gone.
    pub deleted: Vec<SnapshotName>,
    /// Snapshots that are protected and stay, and with them what belongs to their groups and namespaces.
    pub protected: Vec<SnapshotName>,
}

impl Datastore {
    /// Deletes a snapshot. With the last snapshot of a group its owner and its notes go too, unless the group is in use.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Denied` if it is protected; `Busy` while it is being read, written or built on.
    ///
    /// # Cancel safety
    /// A dropped future leaves the snapshot, or an unfinished one, or none.
    pub async fn delete_snapshot(&self, name: &SnapshotName) -> Result<()> {
        self.inner.check_writable("delete a snapshot").await?;
        self.snapshot_info(name).await?;
        let guard = self.lock_for_deletion(LockScope::Snapshot(name.clone())).await?;
        let info = self.snapshot_info(name).await?;
        if self.is_protected(&info).await? {
            return Err(Error::new(ErrorKind::Denied, "delete").on(name).because("it is protected"));
        }
        self.delete_files(&info, guard).await?;
        let group = name.group();
        match self.inner.backend.lock(&LockScope::Group(group.clone()), LockMode::Exclusive).await {
            Ok(guard) => self.delete_group_if_empty(group, guard).await,
            // Whoever uses the group may be about to write to it.
            Err(error) if error.kind() == ErrorKind::Busy => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Deletes all snapshots of a group that are not protected, unfinished ones among them, and with the last one the group.
    ///
    /// # Errors
    /// `Busy` while a backup of the group is running, or one of its snapshots is being read: those before it are deleted then.
    pub async fn delete_group(&self, group: &GroupName) -> Result<Deletion> {
        self.inner.check_writable("delete a group").await?;
        let guard = self.lock_for_deletion(LockScope::Group(group.clone())).await?;
        let mut done = Deletion::default();
        for snapshot in self.snapshots(group).await? {
            let scope = LockScope::Snapshot(snapshot.name.clone());
            let guard = self.lock_for_deletion(scope).await?;
            // Once more, now that nobody can change it (H56).
            let info = match self.snapshot_info(&snapshot.name).await {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                info => info?,
            };
            if self.is_protected(&info).await? {
                done.protected.push(info.name);
                continue;
            }
            self.delete_files(&info, guard).await?;
            done.deleted.push(info.name);
        }
        self.delete_group_if_empty(group, guard).await?;
        Ok(done)
    }

    /// Deletes a namespace with all groups in it and all namespaces below it, but for what is protected. The root itself stays.
    ///
    /// # Errors
    /// As [`delete_group`](Datastore::delete_group).
    pub async fn delete_namespace(&self, top: &Namespace) -> Result<Deletion> {
        self.inner.check_writable("delete a namespace").await?;
        let mut done = Deletion::default();
        let mut namespaces = self.namespaces(top).await?;
        namespaces.reverse();
        for namespace in namespaces {
            for group in self.groups(&namespace).await? {
                let of_group = self.delete_group(&group).await?;
                done.deleted.extend(of_group.deleted);
                done.protected.extend(of_group.protected);
            }
            if namespace.is_root() {
                continue;
            }
            self.delete_empty_namespace(&namespace).await?;
        }
        self.inner.backend.barrier().await?;
        Ok(done)
    }

    /// Deletes a namespace, never the root, if nothing is in it; whether it was so.
    pub(crate) async fn delete_empty_namespace(&self, namespace: &Namespace) -> Result<bool> {
        let guard = self.lock_for_deletion(LockScope::Store).await?;
        guard.check().await?;
        let mut is_gone = true;
        for deleted in self.inner.delete(&[Removal::any(Key::Namespace(namespace.clone()))]).await? {
            match deleted {
                // Something protected is in it, or somebody made something meanwhile.
                Err(error) if error.kind() == ErrorKind::Conflict => is_gone = false,
                deleted => drop(deleted?),
            }
        }
        Ok(is_gone)
    }

    /// Whether a snapshot that is locked is protected. A listing may be behind, so that what it does not show is looked for (H47).
    async fn is_protected(&self, info: &SnapshotInfo) -> Result<bool> {
        if info.protected {
            return Ok(true);
        }
        match self.inner.backend.head(&Key::Protected(info.name.clone())).await {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            found => found.map(|_| true),
        }
    }

    async fn lock_for_deletion(&self, scope: LockScope) -> Result<Box<dyn LockGuard>> {
        let mode = if scope == LockScope::Store { LockMode::Shared } else { LockMode::Exclusive };
        self.inner.backend.lock(&scope, mode).await
    }

    /// Deletes the files of a snapshot that is locked alone.
    async fn delete_files(&self, info: &SnapshotInfo, guard: Box<dyn LockGuard>) -> Result<()> {
        let backend = self.inner.backend.as_ref();
        if self.inner.is_doubtful(&info.name) {
            let error = Error::new(ErrorKind::Busy, "delete").on(&info.name);
            return Err(error.because("its manifest may still arrive"));
        }
        self.check_lease().await?;
        guard.check().await?;
        // Also of an unfinished one, since a listing may be behind: what has a manifest must not lose the rest (H13, H42).
        for deleted in self.inner.delete(&[Removal::any(Key::Manifest(info.name.clone()))]).await? {
            deleted?;
        }
        backend.barrier().await?;
        let files = info.files.iter().map(|file| Key::Archive(info.name.clone(), file.name.clone()));
        let log = info.has_client_log.then(|| Key::ClientLog(info.name.clone()));
        let removals: Vec<_> = files.chain(log).map(Removal::any).collect();
        if !removals.is_empty() {
            for deleted in self.inner.delete(&removals).await? {
                deleted?;
            }
        }
        backend.barrier().await?;
        guard.release_deleted().await;
        Ok(())
    }

    /// Looks whether the store is still this process's, where that takes a look.
    async fn check_lease(&self) -> Result<()> {
        let held = self.inner.backend.lock(&LockScope::Store, LockMode::Shared).await?;
        held.check().await
    }

    /// Deletes what belongs to a group without snapshots: the owner last, since whoever finds one takes it for a group.
    async fn delete_group_if_empty(&self, group: &GroupName, guard: Box<dyn LockGuard>) -> Result<()> {
        if !self.snapshots(group).await?.is_empty() {
            return Ok(());
        }
        let backend = self.inner.backend.as_ref();
        for key in [Key::GroupNotes(group.clone()), Key::Owner(group.clone())] {
            for deleted in self.inner.delete(&[Removal::any(key)]).await? {
                deleted?;
            }
        }
        backend.barrier().await?;
        guard.release_deleted().await;
        Ok(())
    }
}
