//! Deletion of snapshots, groups and namespaces.
//!
//! # Order
//! ```text
//! locks → existence and protection checked → locks checked → manifest → barrier → the rest → barrier
//! ```
//! The reverse of publication (H42): a crash after the manifest leaves an unfinished snapshot, which is invisible, and which the
//! next backup of the group removes. Chunks stay for garbage collection. Decisions about a group are made from its complete
//! listing, before anything of it is deleted (H55). The manifest is locked too, so that an update cannot bring it back.
//!
//! The owner is removed when the group contains nothing else: no snapshot, no empty directory of one, and
//! no foreign object. A PBS takes any directory in a group for a snapshot, and fails in a group without an owner.
//!
//! No lock of the store is taken, so another process may collect garbage meanwhile: a collector that misses an index waits for the
//! lock of its snapshot and looks again. Unfinished snapshots and empty directories are the exception, see below.
//!
//! # Unfinished snapshots
//! A plan removes one only on evidence that its writer is dead (I1): no other process holds the lock of the store,
//! the snapshot itself is not locked, those locks reach all possible writers, and its manifest neither exists nor may
//! still appear.

use std::sync::Arc;

use crate::backend::{ListEntry, ListQuery, LockGuard, LockReach, ObjectInfo, Removal, Version, list_all};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::store::catalog::list::FileInfo;
use crate::store::{SnapshotInfo, SnapshotState, StoreInner};

/// Result of the deletion of a group or a namespace.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Deletion {
    /// Deleted snapshots.
    pub deleted: Vec<SnapshotName>,
    /// Protected snapshots. They stay, with the metadata of their groups and namespaces.
    pub protected: Vec<SnapshotName>,
}

/// State of a snapshot in the plan that removes it.
#[derive(Clone, Debug)]
pub(crate) enum Expected {
    /// It is finished.
    Finished,
    /// It is finished, and its manifest is of this version.
    Manifest(Version),
    /// It has no manifest, and no other files than these.
    Unfinished(Vec<FileInfo>),
}

/// Outcome of the removal of a snapshot.
#[derive(Clone, Debug)]
pub(crate) enum DeleteOutcome {
    /// In use, or possibly in use.
    Busy(Error),
    /// It differs from the expected state.
    Changed,
    /// It did not exist.
    Gone,
    /// It is protected.
    Protected,
    /// It is gone now.
    Removed,
}

/// Reason why a deletion failed.
#[derive(Clone, Debug)]
pub(crate) enum DeleteError {
    /// Other deletions may still succeed.
    Failed(Error),
    /// Another process may own the store or a lock now.
    Lost(Error),
}

impl From<Error> for DeleteError {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl DeleteError {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Self::Failed(error) | Self::Lost(error) => error,
        }
    }
}

/// Deletion of snapshots, groups and namespaces.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deletions<'a> {
    inner: &'a Arc<StoreInner>,
}

impl StoreInner {
    /// Deletions in the store.
    pub(crate) fn deletions(self: &Arc<Self>) -> Deletions<'_> {
        Deletions { inner: self }
    }
}

impl Deletions<'_> {
    /// See [`Datastore::delete_snapshot`](crate::store::Datastore::delete_snapshot).
    pub(crate) async fn snapshot(&self, name: &SnapshotName) -> Result<()> {
        self.inner.check_deletable("delete a snapshot").await?;
        self.inner.catalog().look_again(Prefix::Group(name.group().clone())).await?;
        self.inner.catalog().snapshot_info(name).await?;
        let guard = self.inner.locks().snapshot(name).await?;
        let info = self.inner.catalog().snapshot_info(name).await?;
        info.check_readable("delete")?;
        if self.is_protected(&info).await? {
            return Err(Error::new(ErrorKind::Denied, "delete").on(name).because("it is protected"));
        }
        let deleted = self.delete_files(&info, guard).await;
        deleted.map_err(DeleteError::into_error)?;
        self.remove_group_if_empty(name.group()).await.map(drop).map_err(DeleteError::into_error)
    }

    /// See [`Datastore::delete_group`](crate::store::Datastore::delete_group).
    pub(crate) async fn group(&self, group: &GroupName) -> Result<Deletion> {
        self.inner.check_deletable("delete a group").await?;
        // A dropped writer may be removing its files in the background.
        let guard = self.inner.locks().group_waiting(group).await?;
        self.inner.catalog().look_again(Prefix::Group(group.clone())).await?;
        let mut done = Deletion::default();
        let snapshots = self.inner.catalog().snapshots(group).await?;
        for snapshot in &snapshots {
            snapshot.check_readable("delete")?;
        }
        for snapshot in snapshots {
            let guard = self.inner.locks().snapshot(&snapshot.name).await?;
            // Again, under the lock (H56).
            let info = match self.inner.catalog().snapshot_info(&snapshot.name).await {
                Err(error) if error.kind() == ErrorKind::NotFound => continue,
                info => info?,
            };
            info.check_readable("delete")?;
            if self.is_protected(&info).await? {
                done.protected.push(info.name);
                continue;
            }
            self.delete_files(&info, guard).await.map_err(DeleteError::into_error)?;
            done.deleted.push(info.name);
        }
        self.delete_group_if_empty(group, guard).await.map_err(DeleteError::into_error)?;
        Ok(done)
    }

    /// See [`Datastore::delete_namespace`](crate::store::Datastore::delete_namespace).
    pub(crate) async fn namespace(&self, top: &Namespace) -> Result<Deletion> {
        self.inner.check_deletable("delete a namespace").await?;
        self.inner.catalog().look_again(Prefix::Namespace(top.clone())).await?;
        let mut done = Deletion::default();
        let mut namespaces = self.inner.catalog().namespaces(top).await?;
        namespaces.reverse();
        for namespace in namespaces {
            for group in self.inner.catalog().groups(&namespace).await? {
                let of_group = self.group(&group).await?;
                done.deleted.extend(of_group.deleted);
                done.protected.extend(of_group.protected);
            }
            // A namespace with protected or new objects stays.
            self.remove_namespace(&namespace).await.map_err(DeleteError::into_error)?;
        }
        self.inner.backend.barrier().await?;
        Ok(done)
    }

    /// Deletes the files of a snapshot without a manifest. The caller holds its exclusive lock.
    ///
    /// # Errors
    /// `Busy` while its manifest may still arrive.
    pub(in crate::store) async fn remove_files(&self, info: &SnapshotInfo) -> Result<()> {
        self.delete_absent_manifest(&info.name).await?;
        self.delete_all(&rest_of(info)).await
    }

    /// Deletes a manifest that was not found, before the files of its snapshot. The backend refuses that while a process that died may have been
    /// storing it: it would be listed without its files.
    ///
    /// # Errors
    /// `Busy`; any failure of the backend.
    pub(in crate::store) async fn delete_absent_manifest(&self, name: &SnapshotName) -> Result<()> {
        mutated!("delete-files-whose-manifest-may-arrive" => return Ok(()));
        self.delete_all(&[Key::Manifest(name.clone())]).await
    }

    /// Returns `true` if a locked snapshot is protected. A listing may lag, so a missing mark is looked up (H47).
    pub(crate) async fn is_protected(&self, info: &SnapshotInfo) -> Result<bool> {
        mutated!("delete-by-listed-protection" => return Ok(info.protected));
        Ok(info.protected || self.inner.backend.has(&Key::Protected(info.name.clone())).await?)
    }

    /// Removes a snapshot if it is the expected one, unused, and not protected (H56).
    pub(crate) async fn remove_planned(
        &self,
        name: &SnapshotName,
        expected: &Expected,
    ) -> Result<DeleteOutcome, DeleteError> {
        let guard = match self.inner.locks().snapshot(name).await {
            Err(error) if error.kind() == ErrorKind::Busy => return Ok(DeleteOutcome::Busy(error)),
            guard => guard?,
        };
        let Some(found) = self.inner.catalog().listed_snapshot(name).await? else {
            return Ok(DeleteOutcome::Gone);
        };
        found.info.check_readable("delete")?;
        if self.is_protected(&found.info).await? {
            return Ok(DeleteOutcome::Protected);
        }
        let removed = match (expected, &found.manifest) {
            (Expected::Unfinished(_), Some(_)) => return Ok(DeleteOutcome::Changed),
            (Expected::Manifest(version), Some(found))
                if found != version && !mutated!("delete-changed-snapshot") =>
            {
                return Ok(DeleteOutcome::Changed);
            }
            // A writer has stored more files.
            (Expected::Unfinished(files), None)
                if !found.info.files.iter().all(|file| files.contains(file)) =>
            {
                return Ok(DeleteOutcome::Changed);
            }
            (_, Some(_)) => self.delete_files(&found.info, guard).await.map(|()| DeleteOutcome::Removed),
            (_, None) => {
                let alone = match self.inner.locks().store_alone().await {
                    Err(error) if error.kind() == ErrorKind::Busy => return Ok(DeleteOutcome::Busy(error)),
                    alone => alone?,
                };
                return self.remove_unfinished(&found.info, alone, guard).await;
            }
        };
        match removed {
            Err(DeleteError::Failed(error)) if error.kind() == ErrorKind::Busy => {
                Ok(DeleteOutcome::Busy(error))
            }
            removed => removed,
        }
    }

    /// Removes an unfinished snapshot if its writer is certainly dead. The caller holds its exclusive lock.
    pub(in crate::store) async fn remove_unfinished(
        &self,
        info: &SnapshotInfo,
        alone: Box<dyn LockGuard>,
        guard: Box<dyn LockGuard>,
    ) -> Result<DeleteOutcome, DeleteError> {
        let backend = &self.inner.backend;
        let busy = |why: &'static str| {
            let error = Error::new(ErrorKind::Busy, "remove the unfinished").on(&info.name);
            Ok(DeleteOutcome::Busy(error.because(why)))
        };
        // A lock that does not reach all processes is no evidence that none of them writes.
        if backend.capabilities().lock_reach == LockReach::Process
            && !mutated!("delete-unfinished-of-other-hosts")
        {
            return busy("another host may be writing it");
        }
        // A lagging listing shows a finished snapshot without its manifest (H13).
        if self.inner.manifests().exists(&info.name).await? && !mutated!("delete-unlisted-manifest-is-absent")
        {
            return Ok(DeleteOutcome::Changed);
        }
        if let Some(left) = self.inner.manifest_pending_for(&info.name) {
            let error = Error::new(ErrorKind::Busy, "remove the unfinished").on(&info.name).retry_in(left);
            return Ok(DeleteOutcome::Busy(error.because("its manifest may still arrive")));
        }
        if info.protected {
            return Ok(DeleteOutcome::Protected);
        }
        still_held(alone.as_ref()).await?;
        match self.delete_absent_manifest(&info.name).await {
            Err(error) if error.kind() == ErrorKind::Busy => return Ok(DeleteOutcome::Busy(error)),
            deleted => deleted?,
        }
        let mut rest = rest_of(info);
        if rest.is_empty() {
            // The name is free, and an empty directory is removed too.
            rest.push(Key::ClientLog(info.name.clone()));
        }
        self.delete_all(&rest).await?;
        // Flushing may take long. Files that reappear after a crash are still an unfinished snapshot.
        drop(alone);
        backend.barrier().await?;
        guard.release_deleted().await;
        Ok(DeleteOutcome::Removed)
    }

    /// Removes the metadata of a group without snapshots. Returns `true` if it was removed, and `false` while the group is in use.
    pub(crate) async fn remove_group_if_empty(&self, group: &GroupName) -> Result<bool, DeleteError> {
        let guard = match self.inner.locks().group(group).await {
            Err(error) if error.kind() == ErrorKind::Busy => {
                let snapshots = self.inner.catalog().snapshots(group).await?;
                if snapshots.iter().any(|info| info.state != SnapshotState::Unfinished) {
                    return Ok(false);
                }
                // A dropped writer may be removing its files in the background.
                self.inner.locks().group_waiting(group).await
            }
            guard => guard,
        };
        match guard {
            Ok(guard) => self.delete_group_if_empty(group, guard).await,
            // A user of the group may be about to write to it.
            Err(error) if error.kind() == ErrorKind::Busy => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the marker of an empty namespace. Returns `true` if it was removed. The root stays.
    pub(crate) async fn remove_namespace(&self, namespace: &Namespace) -> Result<bool, DeleteError> {
        if namespace.is_root() {
            return Ok(false);
        }
        self.still_owned().await?;
        match self.delete_all(&[Key::Namespace(namespace.clone())]).await {
            Err(error) if error.kind() == ErrorKind::Conflict => Ok(false),
            removed => Ok(removed.map(|()| true)?),
        }
    }

    /// Deletes all files of a snapshot, the manifest first. The caller holds its exclusive lock.
    async fn delete_files(&self, info: &SnapshotInfo, guard: Box<dyn LockGuard>) -> Result<(), DeleteError> {
        let backend = self.inner.backend.as_ref();
        if let Some(left) = self.inner.manifest_pending_for(&info.name) {
            let error = Error::new(ErrorKind::Busy, "delete").on(&info.name).retry_in(left);
            return Err(error.because("its manifest may still arrive").into());
        }
        let manifest_guard = self.inner.locks().manifest(&info.name).await?;
        self.still_owned().await?;
        still_held(guard.as_ref()).await?;
        mutated!("delete-files-first" => self.delete_all(&rest_of(info)).await?);
        // Of an unfinished snapshot too, because a listing may lag: a snapshot with a manifest must not lose its files (H13, H42).
        self.delete_all(&[Key::Manifest(info.name.clone())]).await?;
        if !mutated!("delete-files-before-manifest-is-durably-gone") {
            backend.barrier().await?;
        }
        self.delete_all(&rest_of(info)).await?;
        backend.barrier().await?;
        manifest_guard.release_deleted().await;
        guard.release_deleted().await;
        Ok(())
    }

    /// Deletes objects. Fails with the first failure among them.
    pub(in crate::store) async fn delete_all(&self, keys: &[Key]) -> Result<()> {
        if keys.is_empty() {
            return Ok(());
        }
        let removals: Vec<_> = keys.iter().cloned().map(Removal::any).collect();
        for deleted in self.inner.delete(&removals).await? {
            deleted?;
        }
        Ok(())
    }

    /// Fails as lost if another process owns the store now. No lock of the store is taken, so another process may collect garbage
    /// meanwhile.
    pub(in crate::store) async fn still_owned(&self) -> Result<(), DeleteError> {
        mutated!("delete-without-ownership" => return Ok(()));
        self.inner.backend.check_owned().await.map_err(DeleteError::Lost)
    }

    /// Deletes the metadata of a group without snapshots: the owner last, because a directory with an owner counts as a group.
    /// Returns `true` if the group is gone.
    pub(in crate::store) async fn delete_group_if_empty(
        &self,
        group: &GroupName,
        guard: Box<dyn LockGuard>,
    ) -> Result<bool, DeleteError> {
        if !self.inner.catalog().snapshots(group).await?.is_empty() {
            return Ok(false);
        }
        let is_gone = match self.rest(group).await? {
            Rest::Directories(names) if names.is_empty() => true,
            // Listed again: a directory that is not empty stays.
            Rest::Directories(names) => self.remove_directories(names).await? && self.is_bare(group).await?,
            Rest::Foreign => false,
        };
        if !is_gone {
            return Ok(false);
        }
        still_held(guard.as_ref()).await?;
        for key in [Key::GroupNotes(group.clone()), Key::Owner(group.clone())] {
            self.delete_all(&[key]).await?;
        }
        self.inner.backend.barrier().await?;
        guard.release_deleted().await;
        Ok(true)
    }
}

/// Entries of a group beside its owner, its notes and its snapshots.
enum Rest {
    /// Directories of snapshots.
    Directories(Vec<SnapshotName>),
    /// A foreign object.
    Foreign,
}

impl Deletions<'_> {
    /// Returns `true` if a group has only its owner and its notes. An empty directory of a snapshot counts as an entry: a PBS takes it
    /// for a snapshot, and refuses to use a group without an owner.
    pub(in crate::store) async fn is_bare(&self, group: &GroupName) -> Result<bool> {
        let is_empty = |rest| matches!(rest, Rest::Directories(names) if names.is_empty());
        Ok(self.inner.catalog().snapshots(group).await?.is_empty() && is_empty(self.rest(group).await?))
    }

    /// Entries of a group without listed snapshots.
    async fn rest(&self, group: &GroupName) -> Result<Rest> {
        let inside = ListQuery::children(Prefix::Group(group.clone()));
        let mut directories = Vec::new();
        // The metadata cache has no foreign objects.
        for entry in list_all(self.inner.uncached_backend().as_ref(), &inside).await?.into_entries() {
            match entry {
                ListEntry::Name(Key::GroupNotes(_) | Key::Owner(_))
                | ListEntry::Object(ObjectInfo { key: Key::GroupNotes(_) | Key::Owner(_), .. }) => {}
                ListEntry::Prefix(Prefix::Snapshot(name)) => directories.push(name),
                _ if mutated!("delete-group-with-foreign-files") => {}
                _ => return Ok(Rest::Foreign),
            }
        }
        Ok(Rest::Directories(directories))
    }

    /// Removes empty directories of snapshots, which refused backups leave. It needs the same evidence as for an unfinished snapshot.
    /// The caller holds the exclusive lock of the group. Returns `true` if all of them are gone.
    async fn remove_directories(&self, names: Vec<SnapshotName>) -> Result<bool, DeleteError> {
        if names.is_empty() {
            return Ok(true);
        }
        let mut all = true;
        for name in names {
            let guard = match self.inner.locks().snapshot(&name).await {
                Err(error) if error.kind() == ErrorKind::Busy => return Ok(false),
                guard => guard?,
            };
            let alone = match self.inner.locks().store_alone().await {
                Err(error) if error.kind() == ErrorKind::Busy => return Ok(false),
                alone => alone?,
            };
            let fate = match self.inner.catalog().listed_snapshot(&name).await? {
                Some(_) => DeleteOutcome::Changed,
                None => self.remove_unfinished(&SnapshotInfo::empty(&name), alone, guard).await?,
            };
            all &= matches!(fate, DeleteOutcome::Removed);
        }
        Ok(all)
    }
}

/// Fails as lost if the lock is no longer held.
pub(in crate::store) async fn still_held(guard: &dyn LockGuard) -> Result<(), DeleteError> {
    guard.check().await.map_err(DeleteError::Lost)
}

/// Keys of the files of a snapshot, without its manifest and its protection mark.
pub(in crate::store) fn rest_of(info: &SnapshotInfo) -> Vec<Key> {
    let files = info.files.iter().map(|file| Key::Archive(info.name.clone(), file.name.clone()));
    files.chain(info.has_client_log.then(|| Key::ClientLog(info.name.clone()))).collect()
}
