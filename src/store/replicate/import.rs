//! Snapshots of another store, received with their stored bytes.
//!
//! [`publish`](crate::store::publish) has the order of steps, which is that of a backup. The group and the store stay locked from one
//! snapshot to the next. After the manifest come
//! ```text
//! client log → files outside the manifest removed → locks released
//! ```
//! A snapshot that exists already, and that the caller found damaged or equal, is replaced.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::backend::{LockReach, Object, Version};
use crate::chunks::pins::WriterPins;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::format::name::{ArchiveName, AuthId, GroupName, SnapshotName};
use crate::store::StoreInner;
use crate::store::backup::group::{claim, remove_leftovers};
use crate::store::catalog::list::{SnapshotInfo, SnapshotState};
use crate::store::locks::Held;
use crate::store::manifests::{StoredManifest, has_failed_verification, is_of_the_object};
use crate::store::publish::{Base, Present, Publication, PublicationLocks, Target, Written, remove_written};
use crate::store::snapshot_files::BLOB_BYTES;

/// A locked group, into which snapshots are transferred.
#[derive(Debug)]
pub(crate) struct GroupImport {
    group: Held,
    /// Snapshots at the time of locking, without leftovers of dead writers.
    snapshots: Vec<SnapshotInfo>,
    store: Arc<StoreInner>,
    /// Lock of the store.
    store_lock: Held,
    /// The owner of a new group.
    written: Vec<Written>,
}

impl GroupImport {
    /// Locks a group, and creates it if it does not exist, as a backup does.
    ///
    /// # Errors
    /// `Busy` if another operation uses the group; `Denied` if it has another owner.
    pub(crate) async fn begin(store: &Arc<StoreInner>, group: &GroupName, owner: &AuthId) -> Result<Self> {
        store.check_writable("store snapshots").await?;
        let lock = Held::from(store.locks().group_waiting(group).await?);
        store.catalog().look_again(Prefix::Group(group.clone())).await?;
        let snapshots = remove_leftovers(store, group).await?;
        let store_lock = Held::from(store.locks().store_to_write().await?);
        if let Some(other) = store.metadata().owner(group).await?
            && other != *owner
        {
            let error = Error::new(ErrorKind::Denied, "store snapshots of").on(group);
            return Err(error.because(format!("the group belongs to {other}, not to {owner}")));
        }
        let written = claim(store, group, owner, &snapshots).await?;
        Ok(Self { group: lock, snapshots, store: Arc::clone(store), store_lock, written })
    }

    /// Snapshots at the time of locking, oldest first.
    pub(crate) fn snapshots(&self) -> &[SnapshotInfo] {
        &self.snapshots
    }

    /// Locks a snapshot exclusively, whether it exists or not. Removes the leftovers of an interrupted transfer.
    ///
    /// # Errors
    /// `Busy` while it is read, written or deleted, or may be.
    pub(crate) async fn snapshot(&self, name: &SnapshotName) -> Result<SnapshotImport> {
        let store = &self.store;
        let busy =
            |why: &'static str| Err(Error::new(ErrorKind::Busy, "store snapshot").on(name).because(why));
        store.check_no_pending_delete_of(name)?;
        let guard = store.locks().snapshot(name).await?;
        let info = match store.catalog().snapshot_info(name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            info => Some(info?),
        };
        let present = match info {
            Some(info) if info.state == SnapshotState::Finished => Some(self.present(name, info).await?),
            Some(info) => {
                info.check_readable("replace")?;
                // A live writer would hold its lock, if that lock reaches all processes that could write it.
                let may_be_alive = store.backend.capabilities().lock_reach == LockReach::Process;
                let pending_for = store.manifest_pending_for(name);
                if may_be_alive || pending_for.is_some() || store.manifests().exists(name).await? {
                    let busy = busy("an unfinished one of that name may still be written");
                    return match pending_for {
                        Some(left) => busy.map_err(|error| error.retry_in(left)),
                        None => busy,
                    };
                }
                if info.protected {
                    return busy("an unfinished one of that name is protected");
                }
                self.store_lock.check().await?;
                store.deletions().remove_files(&info).await?;
                // One of these deletions may be executed once more.
                store.check_no_pending_delete_of(name)?;
                None
            }
            None if store.manifests().is_taken(name).await? => {
                return busy("it is there, and listings do not show it yet");
            }
            None => None,
        };
        let publication = Publication {
            bases: Vec::new(),
            indexes: Vec::new(),
            locks: PublicationLocks {
                group: Arc::clone(&self.group),
                others: Vec::new(),
                snapshot: guard,
                store: Arc::clone(&self.store_lock),
            },
            name: name.clone(),
            pins: Vec::new(),
            target: present.map_or(Target::New, |present| Target::Replace(Box::new(present))),
            written: Vec::new(),
        };
        let state = ImportState { files: Vec::new(), publication };
        Ok(SnapshotImport { state: Some(state), store: store.clone() })
    }

    async fn present(&self, name: &SnapshotName, info: SnapshotInfo) -> Result<Present> {
        let store = &self.store;
        let object = match store.manifests().object(name).await {
            // Longer than any manifest may be.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let found = store.backend.head(&Key::Manifest(name.clone())).await?;
                Object::new(Bytes::new(), found)
            }
            object => object?,
        };
        let (bytes, version) = (object.bytes.clone(), object.info.version.clone());
        let manifest = match store.manifests().parse(name, object.bytes).await {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::KeyRequired) => None,
            manifest => Some(manifest?),
        };
        Ok(Present { bytes, info, manifest, version })
    }

    /// The newest finished snapshot other than this one, locked, if it can vouch for chunks (D9, H180).
    pub(crate) async fn base(
        &self,
        but: &SnapshotName,
    ) -> Result<Option<(StoredManifest, SnapshotName, Held)>> {
        let newest = self.snapshots.iter().rfind(|info| info.state == SnapshotState::Finished);
        let Some(name) = newest.map(|info| &info.name).filter(|name| *name != but) else { return Ok(None) };
        let held = match self.store.locks().snapshot_to_read(name).await {
            Err(error) if error.kind() == ErrorKind::Busy => return Ok(None),
            held => Held::from(held?),
        };
        match self.store.manifests().stored(name).await {
            Ok(stored) if has_failed_verification(&stored.manifest) => Ok(None),
            Ok(stored) => Ok(Some((stored, name.clone(), held))),
            Err(error) if is_of_the_object(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Releases the group. A new group without snapshots is removed.
    pub(crate) async fn end(mut self) -> Result<()> {
        let written = std::mem::take(&mut self.written);
        if written.is_empty() { Ok(()) } else { remove_written(&self.store, &written).await }
    }
}

impl Drop for GroupImport {
    fn drop(&mut self) {
        // A group without snapshots whose release was dropped.
        if !self.written.is_empty() {
            let written = std::mem::take(&mut self.written);
            let store = self.store.clone();
            let locks = (Arc::clone(&self.group), Arc::clone(&self.store_lock));
            self.store.runtime().spawn(Box::pin(async move {
                // No caller is left to report to; the next transfer finds the group as its own.
                let _ = remove_written(&store, &written).await;
                drop(locks);
            }));
        }
    }
}

/// A locked snapshot, to be published or replaced. Dropping it aborts the transfer.
pub(crate) struct SnapshotImport {
    /// `None` when it is complete.
    state: Option<ImportState>,
    store: Arc<StoreInner>,
}

struct ImportState {
    /// Files in the manifest.
    files: Vec<ArchiveName>,
    publication: Publication,
}

/// Origin of the client log that a replaced snapshot had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Log {
    /// Another snapshot.
    Foreign,
    /// The same snapshot.
    Own,
}

/// Objects published beside the files.
pub(crate) struct ImportedManifest {
    /// Stored bytes of the manifest.
    pub(crate) bytes: Bytes,
    /// The client log, if any.
    pub(crate) log: Option<Bytes>,
}

impl SnapshotImport {
    fn state(&mut self) -> Result<&mut ImportState> {
        self.state.as_mut().ok_or_else(|| Error::new(ErrorKind::Internal, "store snapshot"))
    }

    /// The existing snapshot of that name.
    pub(crate) fn present(&self) -> Option<&Present> {
        self.state.as_ref()?.publication.present()
    }

    /// Keeps a lock until the snapshot is visible or the transfer is aborted.
    pub(crate) fn keep(&mut self, lock: Held) -> Result<()> {
        self.state()?.publication.locks.others.push(lock);
        Ok(())
    }

    /// Its chunks are pinned by these.
    pub(crate) fn pin_with(&mut self, pins: Arc<WriterPins>) -> Result<()> {
        self.state()?.publication.pins.push(pins);
        Ok(())
    }

    /// The snapshot reuses chunks of another one of its group, which is locked.
    pub(crate) fn build_on(&mut self, name: SnapshotName, version: Version, held: Held) -> Result<()> {
        let bases = &mut self.state()?.publication.bases;
        if !bases.iter().any(|base| base.name == name) {
            bases.push(Base { lock: held, name, version });
        }
        Ok(())
    }

    /// The index of an archive, all of whose chunks are confirmed before it is published.
    pub(crate) fn add_index(&mut self, name: &ArchiveName, bytes: Bytes) -> Result<()> {
        let state = self.state()?;
        state.files.push(name.clone());
        state.publication.indexes.push((name.clone(), bytes));
        Ok(())
    }

    /// Stores a checked blob.
    ///
    /// # Cancel safety
    /// A dropped future may leave the blob; the next transfer of the snapshot removes it.
    pub(crate) async fn put_blob(&mut self, name: &ArchiveName, bytes: Bytes) -> Result<()> {
        let store = self.store.clone();
        let state = self.state()?;
        state.files.push(name.clone());
        state.publication.put(&store, name.clone(), bytes, BLOB_BYTES).await
    }

    /// Publishes the snapshot with the given files, which are all that the manifest lists. When this returns, it is
    /// complete, visible and durable.
    ///
    /// # Errors
    /// `Conflict` if a base or the replaced manifest changed meanwhile; any failure of the backend.
    ///
    /// # Cancel safety
    /// Publication continues in the background if the future is dropped.
    pub(crate) async fn publish(mut self, manifest: ImportedManifest) -> Result<()> {
        self.run(move |store, state| Box::pin(commit(store, state, manifest))).await
    }

    /// Replaces only the manifest of a snapshot whose signed content is unchanged, and stores the client log.
    ///
    /// # Errors
    /// As for [`publish`](Self::publish).
    pub(crate) async fn update(mut self, manifest: ImportedManifest) -> Result<()> {
        self.run(move |store, state| Box::pin(update(store, state, manifest))).await
    }

    async fn run<F>(&mut self, work: F) -> Result<()>
    where
        F: FnOnce(Arc<StoreInner>, ImportState) -> futures::future::BoxFuture<'static, Result<()>>
            + Send
            + 'static,
    {
        let state = self.state.take().ok_or_else(|| Error::new(ErrorKind::Internal, "store snapshot"))?;
        let work = work(self.store.clone(), state);
        self.store.runtime().run_detached("store snapshot", work).await
    }

    /// Aborts the transfer, and removes the files of a new snapshot, but no chunks.
    ///
    /// # Errors
    /// Any failure to remove them; the next transfer tries again.
    pub(crate) async fn give_up(mut self) -> Result<()> {
        match self.state.take() {
            Some(state) => remove_written(&self.store, &state.publication.written).await,
            None => Ok(()),
        }
    }
}

impl Drop for SnapshotImport {
    fn drop(&mut self) {
        let Some(state) = self.state.take().filter(|state| !state.publication.written.is_empty()) else {
            return;
        };
        let store = self.store.clone();
        self.store.runtime().spawn(Box::pin(async move {
            // No caller is left to report to; leftovers are invisible. The locks are released at the end.
            let _ = remove_written(&store, &state.publication.written).await;
            drop(state);
        }));
    }
}

impl fmt::Debug for SnapshotImport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.state.as_ref().map(|state| &state.publication.name);
        f.debug_struct("SnapshotImport").field("name", &name).finish_non_exhaustive()
    }
}

impl ImportState {
    /// Stores the client log, after the snapshot is visible.
    async fn put_log(&self, store: &Arc<StoreInner>, log: Bytes) -> Result<()> {
        let (key, backend) = (Key::ClientLog(self.publication.name.clone()), &store.backend);
        let has_one = self.publication.present().is_some_and(|present| present.info.has_client_log);
        let create = backend.capabilities().create_mode();
        let found = if has_one { Some(backend.get(&key, BLOB_BYTES).await) } else { None };
        let mode = match found {
            None => create,
            Some(Ok(found)) if found.bytes == log => return Ok(()),
            Some(Ok(found)) => store.instead_of(Some(found.info.version)),
            Some(Err(error)) if error.kind() == ErrorKind::NotFound => create,
            Some(Err(error)) => return Err(error),
        };
        match backend.put(&key, log, mode).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            put => drop(put?),
        }
        backend.barrier().await
    }

    /// Removes files outside the manifest, by keys and not by names.
    async fn remove_unlisted(&self, store: &Arc<StoreInner>, listed: &[ArchiveName], log: Log) -> Result<()> {
        let Some(present) = self.publication.present() else { return Ok(()) };
        let names = present.info.files.iter().map(|file| &file.name).filter(|name| !listed.contains(name));
        let keys = names.map(|name| Key::Archive(self.publication.name.clone(), name.clone()));
        let old_log = (log == Log::Foreign && present.info.has_client_log)
            .then(|| Key::ClientLog(self.publication.name.clone()));
        let keys: Vec<_> = keys.chain(old_log).collect();
        if keys.is_empty() {
            return Ok(());
        }
        store.deletions().delete_all(&keys).await?;
        store.backend.barrier().await
    }
}

async fn commit(store: Arc<StoreInner>, mut state: ImportState, manifest: ImportedManifest) -> Result<()> {
    state.publication.commit(&store, manifest.bytes).await?;
    let log = if manifest.log.is_none() { Log::Foreign } else { Log::Own };
    if let Some(log) = manifest.log {
        state.put_log(&store, log).await?;
    }
    state.remove_unlisted(&store, &state.files, log).await
}

async fn update(store: Arc<StoreInner>, state: ImportState, manifest: ImportedManifest) -> Result<()> {
    let changed = || Error::new(ErrorKind::Conflict, "replace").on(&state.publication.name);
    let publication = &state.publication;
    let present = publication.present().ok_or_else(changed)?;
    let Some(old) = &present.manifest else { return Err(changed()) };
    let listed: Vec<_> = old.files().iter().map(|file| file.name.clone()).collect();
    publication.locks.check().await?;
    publication.replace_manifest(&store, present, &manifest.bytes).await?;
    if let Some(log) = manifest.log {
        state.put_log(&store, log).await?;
    }
    state.remove_unlisted(&store, &listed, Log::Own).await
}
