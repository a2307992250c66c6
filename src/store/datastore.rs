//! The handle of an open store.

use std::sync::Arc;
use std::time::SystemTime;

use crate::backend::Backend;
use crate::error::Result;
use crate::format::name::{AuthId, GroupName, Namespace, SnapshotName};
use crate::format::status::GcStatus;
use crate::packs::{PackRequests, PackUsage, PackedBackend};
use crate::store::backup::builder::BackupBuilder;
use crate::store::catalog::delete::Deletion;
use crate::store::catalog::list::SnapshotInfo;
use crate::store::catalog::metadata::Protection;
use crate::store::index_rebuild::IndexRebuildPlan;
use crate::store::lifecycle::Destruction;
use crate::store::options::Options;
use crate::store::relocate::Relocation;
use crate::store::restore::snapshot::SnapshotReader;
use crate::store::{Refresh, StoreInner, lifecycle};
use crate::trace;
use crate::trace::{Facts, Operation, Subject, Watch};

/// An open store. Clones share everything.
#[doc(alias = "repository")]
#[derive(Clone, Debug)]
pub struct Datastore {
    inner: Arc<StoreInner>,
}

impl Datastore {
    /// Opens a store that larder or PBS made. Takes two concurrent requests and writes nothing: the first change gives a
    /// store of PBS its identity, and takes a store in a bucket for this process. Without an identity, two listings look
    /// for parts of a packed store, a third request for the owner mark of PBS, and without that, listings look for snapshots and chunks.
    ///
    /// # Errors
    /// `NotFound` if there is no store; [`create`](Datastore::create) makes one. `InvalidInput` for options out of range; `Corrupt` if the identity cannot be read, or a packed store has
    /// lost it: [`attach`](Datastore::attach) makes a new one. `Conflict` if the store is partly destroyed.
    pub async fn open(backend: Arc<dyn Backend>, options: Options) -> Result<Self> {
        let watch = opening(Operation::Open, &backend);
        trace::watch(watch, StoreInner::open(backend, options), opened).await.map(Self::of)
    }

    /// Creates a store on an empty backend: gives it an identity, and opens it. No other method makes a store.
    ///
    /// # Errors
    /// `AlreadyExists` if the place has any part of a store: [`attach`](Datastore::attach) opens an existing one. `Busy` or `Denied` if
    /// another process or host owns the place; `InvalidInput` for options out of range.
    pub async fn create(backend: Arc<dyn Backend>, options: Options) -> Result<Self> {
        let watch = opening(Operation::Create, &backend);
        trace::watch(watch, lifecycle::create(backend, options), opened).await.map(Self::of)
    }

    /// Opens an existing store in order to change it: one of PBS, or one that was detached. A store in a bucket then belongs to
    /// this host, and to this process until it is closed; a store without an identity gets one. That includes a packed store that has lost it,
    /// whose local state belongs to the old identity and can be deleted.
    ///
    /// # Errors
    /// As for [`open`](Datastore::open), including `NotFound`, after which nothing is written; `Busy` if another process uses the store; `Denied` if it belongs to another host;
    /// `Unsupported` if this version cannot change it.
    pub async fn attach(backend: Arc<dyn Backend>, options: Options) -> Result<Self> {
        let watch = opening(Operation::Attach, &backend);
        trace::watch(watch, lifecycle::attach(backend, options), opened).await.map(Self::of)
    }

    /// Gives the store a new identity and returns it. Use it for a copy of a store, made from its files or a snapshot of its
    /// disk: the copy has the identity of the original, and both count as one store until the copy is adopted. Adopt only
    /// the copy, because the records under the old identity belong to the original: the copy refuses the local state of the original from
    /// then on, and its GC candidates are reset. The list of suspects stays.
    ///
    /// This handle can change nothing afterwards, and neither can other handles of a store in a directory; open it again. Close all other handles of a
    /// store in a bucket before.
    ///
    /// # Errors
    /// `Busy` while a backup or another process uses the store; `Conflict` if its identity changed since it was opened;
    /// `Unsupported` if the store has features that this version does not know.
    ///
    /// # Cancel safety
    /// A dropped future leaves the old identity or the new one.
    pub async fn adopt_as_new(&self) -> Result<String> {
        lifecycle::adopt_as_new(&self.inner).await
    }

    /// Identity of the store, drawn at its creation: 32 hexadecimal digits. A store made by PBS has none until its
    /// first change.
    pub fn uuid(&self) -> Option<&str> {
        self.inner.uuid()
    }

    /// Brings the local state up to date: one listing of all metadata, and the objects without a copy of the listed
    /// version, many at a time. Backups and restores continue meanwhile. Until the store is closed, listings, manifests, owners and
    /// notes are then read without requests, if this process alone may change the store; otherwise copies are used for
    /// unchanged objects.
    ///
    /// # Errors
    /// `InvalidInput` for a store without local state; any failure of the backend. The previous state stays.
    ///
    /// # Cancel safety
    /// A dropped future leaves the previous state.
    pub async fn refresh(&self) -> Result<Refresh> {
        let watch = self.inner.watch(Operation::Refresh, Subject::Store);
        let facts = |refresh: &Refresh| Facts::of(refresh).bytes(refresh.bytes);
        trace::watch(watch, lifecycle::refresh(&self.inner), facts).await
    }

    /// Releases what the backend holds for the store. Call it after all writers and readers are dropped.
    ///
    /// # Errors
    /// As for [`Coordination::close`](crate::backend::Coordination::close).
    pub async fn close(self) -> Result<()> {
        self.inner.backend().close().await
    }

    /// Closes the store and gives up its ownership: in a bucket, removes the owner mark. All data stays. Call it after all
    /// writers are dropped: any other fails to finish.
    ///
    /// # Errors
    /// `Busy` if another process owns the store now.
    pub async fn detach(self) -> Result<()> {
        self.inner.backend().release().await
    }

    /// Deletes the whole store with its data. Foreign objects are left alone and reported. Repeat an interrupted
    /// destruction; until it completes, the store cannot be opened. A put of a dropped future may arrive
    /// later; another destruction removes the object. If a delete request got no answer, the lease in a
    /// bucket stays, and keeps a new store from being created there for half an hour.
    ///
    /// # Errors
    /// `NotFound` if there is no store, after which nothing is written; `Busy` while the store is in use, or requests of an earlier owner may still arrive; `Unsupported` if the store has
    /// features that this version does not know; any failure of the backend. Objects deleted until then are gone.
    pub async fn destroy(backend: Arc<dyn Backend>) -> Result<Destruction> {
        let watch = opening(Operation::Destroy, &backend);
        trace::watch(watch, lifecycle::destroy(backend), |destruction| Facts::of(destruction)).await
    }

    /// Prepares a backup: a new snapshot of a group, which is made if there is none yet.
    pub fn backup(&self, group: &GroupName) -> BackupBuilder {
        BackupBuilder::new(&self.inner, group)
    }

    /// Opens a finished snapshot.
    ///
    /// # Errors
    /// `NotFound` if it does not exist or is unfinished; `Busy` while it is being deleted; `Corrupt` if its manifest cannot be
    /// read, or belongs to another snapshot.
    pub async fn snapshot(&self, name: &SnapshotName) -> Result<SnapshotReader> {
        SnapshotReader::open(&self.inner, name).await
    }

    /// The namespaces directly below one, in order.
    ///
    /// # Errors
    /// Any failure to list; one that does not exist has none.
    pub async fn child_namespaces(&self, parent: &Namespace) -> Result<Vec<Namespace>> {
        self.inner.catalog().child_namespaces(parent).await
    }

    /// A namespace and all below it, each before those that it contains.
    ///
    /// # Errors
    /// Any failure to list.
    pub async fn namespaces(&self, top: &Namespace) -> Result<Vec<Namespace>> {
        self.inner.catalog().namespaces(top).await
    }

    /// Returns `true` if a namespace exists. The root always does.
    ///
    /// # Errors
    /// Any failure to find out.
    pub async fn has_namespace(&self, namespace: &Namespace) -> Result<bool> {
        self.inner.catalog().has_namespace(namespace).await
    }

    /// The groups of a namespace, without those of the namespaces below it, in the order of PBS: by type, then by id,
    /// numbers by their value.
    ///
    /// # Errors
    /// Any failure to list.
    pub async fn groups(&self, namespace: &Namespace) -> Result<Vec<GroupName>> {
        self.inner.catalog().groups(namespace).await
    }

    /// The snapshots of a group, oldest first, unfinished ones among them.
    ///
    /// # Errors
    /// Any failure to list.
    pub async fn snapshots(&self, group: &GroupName) -> Result<Vec<SnapshotInfo>> {
        self.inner.catalog().snapshots(group).await
    }

    /// The newest finished snapshot of a group.
    ///
    /// # Errors
    /// Any failure to list.
    pub async fn latest(&self, group: &GroupName) -> Result<Option<SnapshotName>> {
        self.inner.catalog().latest(group).await
    }

    /// Opens the newest finished snapshot of a group; `None` if there is none.
    ///
    /// # Errors
    /// As for [`latest`](Datastore::latest) and [`snapshot`](Datastore::snapshot).
    pub async fn latest_snapshot(&self, group: &GroupName) -> Result<Option<SnapshotReader>> {
        SnapshotReader::open_latest(&self.inner, group, None).await
    }

    /// Opens the newest finished snapshot of a group that is not later than `time`; `None` if there is none.
    ///
    /// # Errors
    /// As for [`snapshots`](Datastore::snapshots) and [`snapshot`](Datastore::snapshot).
    pub async fn snapshot_at(&self, group: &GroupName, time: SystemTime) -> Result<Option<SnapshotReader>> {
        SnapshotReader::open_latest(&self.inner, group, Some(time)).await
    }

    /// The files of one snapshot.
    ///
    /// # Errors
    /// `NotFound` if there is no such snapshot.
    pub async fn snapshot_info(&self, name: &SnapshotName) -> Result<SnapshotInfo> {
        self.inner.catalog().snapshot_info(name).await
    }

    /// Creates a namespace, whose parent must exist.
    ///
    /// # Errors
    /// `AlreadyExists`; `NotFound` if the parent does not exist; `Busy` if a pending delete may still remove a namespace of
    /// that name.
    pub async fn create_namespace(&self, namespace: &Namespace) -> Result<()> {
        self.inner.metadata().create_namespace(namespace).await
    }

    /// Owner of a group; `None` without one, as after an interrupted deletion.
    ///
    /// # Errors
    /// `Corrupt` if the owner cannot be read.
    pub async fn owner(&self, group: &GroupName) -> Result<Option<AuthId>> {
        self.inner.metadata().owner(group).await
    }

    /// Changes the owner of a group.
    ///
    /// # Errors
    /// `NotFound` if the group has no owner yet; `Busy` while a backup of the group is running, or a pending delete may still
    /// remove the owner.
    pub async fn set_owner(&self, group: &GroupName, owner: &AuthId) -> Result<()> {
        self.inner.metadata().set_owner(group, owner).await
    }

    /// Notes of a group.
    ///
    /// # Errors
    /// `Corrupt` if they are not UTF-8.
    pub async fn group_notes(&self, group: &GroupName) -> Result<Option<String>> {
        self.inner.metadata().group_notes(group).await
    }

    /// Changes the notes of a group; an empty text removes them.
    ///
    /// # Errors
    /// `NotFound` if the group does not exist; `Busy` while a backup of it is running, or a pending delete may still remove
    /// the notes; `InvalidInput` beyond 1 MiB.
    pub async fn set_group_notes(&self, group: &GroupName, notes: &str) -> Result<()> {
        self.inner.metadata().set_group_notes(group, notes).await
    }

    /// Changes the notes of a snapshot, which are part of its manifest; an empty text removes them.
    ///
    /// # Errors
    /// `NotFound` if the snapshot does not exist or is unfinished; `Busy` if others keep changing the manifest; `InvalidInput`
    /// if the manifest would be longer than 16 MiB with them.
    pub async fn set_notes(&self, snapshot: &SnapshotName, notes: &str) -> Result<()> {
        self.inner.metadata().set_notes(snapshot, notes).await
    }

    /// Changes the protection of a snapshot.
    ///
    /// # Errors
    /// `NotFound` if the snapshot does not exist, or is unfinished and unprotected; `Busy` while it is read or written, or
    /// a pending delete may still remove the protection.
    pub async fn set_protection(&self, snapshot: &SnapshotName, protection: Protection) -> Result<()> {
        self.inner.metadata().set_protection(snapshot, protection).await
    }

    /// Result of the last garbage collection; `None` if there was none or it cannot be parsed.
    ///
    /// # Errors
    /// Any failure to read the object.
    pub async fn gc_status(&self) -> Result<Option<GcStatus>> {
        self.inner.metadata().gc_status().await
    }

    /// Packs and segments of the store, as far as this handle knows, without a request; `None` if each chunk is an object of its own.
    /// [`gc_status`](Datastore::gc_status) has how much of them was unused after the last collection.
    pub fn pack_usage(&self) -> Option<PackUsage> {
        self.inner.packs().map(PackedBackend::usage)
    }

    /// Numbers of requests of this handle for packs and segments; `None` if each chunk is an object of its own.
    pub fn pack_requests(&self) -> Option<PackRequests> {
        self.inner.packs().map(PackedBackend::requests)
    }

    /// Plans to make the index of a packed store anew: it finds packs that the index does not name, packs that do not exist, and damaged
    /// segments. Changes nothing but locks.
    ///
    /// # Errors
    /// `Unsupported` if the store has no packs; `Busy` if another process uses the store; any failure to read the index and to list packs.
    ///
    /// # Cancel safety
    /// A dropped future releases all locks.
    pub async fn plan_index_rebuild(&self) -> Result<IndexRebuildPlan> {
        IndexRebuildPlan::make(self).await
    }

    /// Deletes a snapshot. With the last snapshot of a group its owner and its notes go too, unless the group is in use.
    ///
    /// # Errors
    /// `NotFound` if there is none; `Denied` if it is protected; `Busy` while it is being read, written or built on, or while an earlier request
    /// may still store it in a bucket; `Corrupt` if it is [unreadable](crate::store::SnapshotState::Unreadable).
    ///
    /// # Cancel safety
    /// A dropped future leaves the snapshot, or an unfinished one, or none.
    pub async fn delete_snapshot(&self, name: &SnapshotName) -> Result<()> {
        self.inner.deletions().snapshot(name).await
    }

    /// Deletes all snapshots of a group that are not protected, unfinished ones among them, and with the last one the group.
    ///
    /// # Errors
    /// `Busy` while a backup of the group is running, or one of its snapshots is being read, or may still be stored by an earlier request in a
    /// bucket: those before it are deleted then; `Corrupt` if the group, or one of its snapshots, is unreadable.
    pub async fn delete_group(&self, group: &GroupName) -> Result<Deletion> {
        self.inner.deletions().group(group).await
    }

    /// Deletes a namespace with all groups in it and all namespaces below it, except protected snapshots. The root itself stays.
    ///
    /// # Errors
    /// As [`delete_group`](Datastore::delete_group).
    pub async fn delete_namespace(&self, top: &Namespace) -> Result<Deletion> {
        self.inner.deletions().namespace(top).await
    }

    /// Copies a group into another namespace, which must exist. Type and id stay. An existing group there must have the same owner
    /// and only snapshots older than the copied ones; its notes stay. Snapshots that exist there are not copied again.
    ///
    /// # Errors
    /// `NotFound` if the group or namespace does not exist; `InvalidInput` if source and destination are the same, or the snapshots are not newer; `Denied` if the group
    /// there has another owner; `Busy` while a backup of it is running. Nothing was copied then. Other failures are in the
    /// result.
    ///
    /// # Cancel safety
    /// A dropped future leaves complete snapshots, and possibly an unfinished one, at the destination. The same call continues.
    pub async fn copy_group(&self, group: &GroupName, target: &Namespace) -> Result<Relocation> {
        let watch = self.inner.watch(Operation::Relocate, Subject::Scope(group));
        let relocator = self.inner.relocator();
        trace::watch(watch, relocator.copy_group(group, target), |relocation| Facts::of(relocation)).await
    }

    /// Moves a group into another namespace, with the rules of [`copy_group`](Datastore::copy_group). Protected snapshots are moved
    /// too, and stay protected. The source group is removed with its last snapshot.
    ///
    /// # Errors
    /// As for [`copy_group`](Datastore::copy_group); `Busy` also while a backup of the source group is running.
    ///
    /// # Cancel safety
    /// A dropped future leaves each snapshot complete at the source, at the destination, or at both. The same call continues.
    pub async fn move_group(&self, group: &GroupName, target: &Namespace) -> Result<Relocation> {
        let watch = self.inner.watch(Operation::Relocate, Subject::Scope(group));
        let relocator = self.inner.relocator();
        trace::watch(watch, relocator.move_group(group, target), |relocation| Facts::of(relocation)).await
    }

    /// Copies a namespace, with all groups in it and all namespaces below it, to another name. The parent of that name must exist; if
    /// the namespace itself exists, groups are merged as by [`copy_group`](Datastore::copy_group).
    ///
    /// # Errors
    /// `NotFound` if the namespace, or the parent of the new name, does not exist; `InvalidInput` for the root, if one of the two contains the
    /// other, or if it would become too deep. Nothing was copied then. Other failures are in the result.
    ///
    /// # Cancel safety
    /// As for [`copy_group`](Datastore::copy_group).
    pub async fn copy_namespace(&self, namespace: &Namespace, new_name: &Namespace) -> Result<Relocation> {
        let watch = self.inner.watch(Operation::Relocate, Subject::Scope(namespace));
        let relocator = self.inner.relocator();
        trace::watch(watch, relocator.copy_namespace(namespace, new_name), |relocation| Facts::of(relocation))
            .await
    }

    /// Moves a namespace to another name, with the rules of [`copy_namespace`](Datastore::copy_namespace). Objects that cannot be moved stay,
    /// with their namespaces.
    ///
    /// # Errors
    /// As for [`copy_namespace`](Datastore::copy_namespace).
    ///
    /// # Cancel safety
    /// As for [`move_group`](Datastore::move_group).
    pub async fn move_namespace(&self, namespace: &Namespace, new_name: &Namespace) -> Result<Relocation> {
        let watch = self.inner.watch(Operation::Relocate, Subject::Scope(namespace));
        let relocator = self.inner.relocator();
        trace::watch(watch, relocator.move_namespace(namespace, new_name), |relocation| Facts::of(relocation))
            .await
    }

    fn of(inner: Arc<StoreInner>) -> Self {
        Self { inner }
    }

    /// The state behind the handle, for the rooms above.
    pub(crate) fn inner(&self) -> &Arc<StoreInner> {
        &self.inner
    }
}

/// The opening of a store whose identity is not known yet.
fn opening(operation: Operation, backend: &Arc<dyn Backend>) -> Watch {
    Watch::begin(operation, backend.runtime(), None, Subject::Store)
}

fn opened(store: &Arc<StoreInner>) -> Facts {
    match store.uuid() {
        Some(uuid) => Facts::of(&format_args!("store {uuid}")),
        None => Facts::of(&"a store without identity"),
    }
}
