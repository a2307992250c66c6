//! Publication of a snapshot of another store, with its stored bytes.
//!
//! # Order
//! ```text
//! every chunk confirmed, blobs stored → GC candidates among the chunks reset → barrier → indexes → barrier → bases and locks checked → manifest → barrier
//!   → client log → files outside the manifest removed → locks released
//! ```
//! As for a [backup](crate::store::backup::publish), with the same locks; the group and the store stay locked from one
//! snapshot to the next. The publication is a task of its own: dropping its caller's future changes nothing (H161).
//!
//! An existing snapshot that the caller found damaged or equal is *replaced*: its files where they differ, its
//! manifest under its lock and only if it is still the compared version (H46, H52). A failure before the manifest removes
//! the files of a new snapshot, and leaves a replaced one with its old manifest.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::backend::put_verified::{PutError, put_verified};
use crate::backend::{LockGuard, LockReach, Object, Version};
use crate::chunks::pins::WriterPins;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::format::manifest::Manifest;
use crate::format::name::{ArchiveName, AuthId, GroupName, SnapshotName};
use crate::store::StoreInner;
use crate::store::backup::group::{claim, remove_leftovers};
use crate::store::backup::publish::{check_bases, check_written, publish, remove_written};
use crate::store::backup::session::Written;
use crate::store::catalog::list::{SnapshotInfo, SnapshotState};
use crate::store::locks::Held;
use crate::store::manifests::{StoredManifest, has_failed_verification, is_of_the_object};
use crate::store::snapshot_files::{BLOB_BYTES, INDEX_BYTES};

/// A locked group, into which snapshots are transferred.
#[derive(Debug)]
pub(crate) struct GroupImport {
    held: Arc<GroupHeld>,
    /// Snapshots at the time of locking, without leftovers of dead writers.
    snapshots: Vec<SnapshotInfo>,
    store: Arc<StoreInner>,
    /// The owner of a new group.
    written: Vec<Written>,
}

#[derive(Debug)]
struct GroupHeld {
    #[expect(dead_code, reason = "held, not asked")]
    group: Box<dyn LockGuard>,
    store: Box<dyn LockGuard>,
}

impl GroupImport {
    /// Locks a group, and creates it if it does not exist, as a backup does.
    ///
    /// # Errors
    /// `Busy` if another operation uses the group; `Denied` if it has another owner.
    pub(crate) async fn begin(store: &Arc<StoreInner>, group: &GroupName, owner: &AuthId) -> Result<Self> {
        store.check_writable("store snapshots").await?;
        let guard = store.locks().group_waiting(group).await?;
        store.catalog().look_again(Prefix::Group(group.clone())).await?;
        let snapshots = remove_leftovers(store, group).await?;
        let held = Arc::new(GroupHeld { group: guard, store: store.locks().store_to_write().await? });
        if let Some(other) = store.metadata().owner(group).await?
            && other != *owner
        {
            let error = Error::new(ErrorKind::Denied, "store snapshots of").on(group);
            return Err(error.because(format!("the group belongs to {other}, not to {owner}")));
        }
        let written = claim(store, group, owner, &snapshots).await?;
        Ok(Self { held, snapshots, store: Arc::clone(store), written })
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
        let (store, inner) = (&self.store, &self.store);
        let busy =
            |why: &'static str| Err(Error::new(ErrorKind::Busy, "store snapshot").on(name).because(why));
        inner.check_name_settled(name)?;
        let guard = inner.locks().snapshot(name).await?;
        let info = match store.catalog().snapshot_info(name).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            info => Some(info?),
        };
        let present = match info {
            Some(info) if info.state == SnapshotState::Finished => Some(self.present(name, info).await?),
            Some(info) => {
                info.check_readable("replace")?;
                // A live writer would hold its lock, if that lock reaches all processes that could write it.
                let may_be_alive = inner.backend.capabilities().lock_reach == LockReach::Process;
                if may_be_alive || inner.is_doubtful(name) || store.manifests().exists(name).await? {
                    return busy("an unfinished one of that name may still be written");
                }
                if info.protected {
                    return busy("an unfinished one of that name is protected");
                }
                self.held.store.check().await?;
                store.deletions().remove_files(&info).await?;
                None
            }
            None => None,
        };
        let state = ImportState {
            bases: Vec::new(),
            files: Vec::new(),
            held: Arc::clone(&self.held),
            indexes: Vec::new(),
            kept: Vec::new(),
            name: name.clone(),
            pins: Vec::new(),
            present,
            snapshot: guard,
            written: Vec::new(),
        };
        Ok(SnapshotImport { state: Some(state), store: store.clone() })
    }

    async fn present(&self, name: &SnapshotName, info: SnapshotInfo) -> Result<Present> {
        let inner = &self.store;
        let object = match inner.manifests().object(name).await {
            // Longer than any manifest may be.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                let found = inner.backend.head(&Key::Manifest(name.clone())).await?;
                Object::new(Bytes::new(), found)
            }
            object => object?,
        };
        let (bytes, version) = (object.bytes.clone(), object.info.version.clone());
        let manifest = match inner.manifests().parse(name, object.bytes).await {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Unsupported) => None,
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
            let (store, held) = (self.store.clone(), Arc::clone(&self.held));
            self.store.runtime().spawn(Box::pin(async move {
                // No caller is left to report to; the next transfer finds the group as its own.
                let _ = remove_written(&store, &written).await;
                drop(held);
            }));
        }
    }
}

/// An existing snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    pub(crate) bytes: Bytes,
    pub(crate) info: SnapshotInfo,
    /// `None` if it cannot be read.
    pub(crate) manifest: Option<Manifest>,
    version: Version,
}

/// A locked snapshot, to be published or replaced. Dropping it aborts the transfer.
pub(crate) struct SnapshotImport {
    /// `None` when it is complete.
    state: Option<ImportState>,
    store: Arc<StoreInner>,
}

struct ImportState {
    bases: Vec<(SnapshotName, Version, Held)>,
    /// Files in the manifest.
    files: Vec<ArchiveName>,
    held: Arc<GroupHeld>,
    indexes: Vec<(ArchiveName, Bytes)>,
    /// Locks at the source, held until it is complete.
    kept: Vec<Arc<dyn fmt::Debug + Send + Sync>>,
    name: SnapshotName,
    /// Of its chunks.
    pins: Vec<Arc<WriterPins>>,
    present: Option<Present>,
    snapshot: Box<dyn LockGuard>,
    written: Vec<Written>,
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
        self.state.as_ref()?.present.as_ref()
    }

    /// Keeps a lock until the snapshot is visible or the transfer is aborted.
    pub(crate) fn keep(&mut self, kept: Arc<dyn fmt::Debug + Send + Sync>) -> Result<()> {
        self.state()?.kept.push(kept);
        Ok(())
    }

    /// Its chunks are pinned by these.
    pub(crate) fn pin_with(&mut self, pins: Arc<WriterPins>) -> Result<()> {
        self.state()?.pins.push(pins);
        Ok(())
    }

    /// The snapshot reuses chunks of another one of its group, which is locked.
    pub(crate) fn build_on(&mut self, name: SnapshotName, version: Version, held: Held) -> Result<()> {
        let state = self.state()?;
        if !state.bases.iter().any(|(other, ..)| *other == name) {
            state.bases.push((name, version, held));
        }
        Ok(())
    }

    /// The index of an archive, all of whose chunks are confirmed before it is published.
    pub(crate) fn add_index(&mut self, name: &ArchiveName, bytes: Bytes) -> Result<()> {
        let state = self.state()?;
        state.files.push(name.clone());
        state.indexes.push((name.clone(), bytes));
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
        state.put(&store, name, bytes, BLOB_BYTES).await
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
            Some(state) => remove_written(&self.store, &state.written).await,
            None => Ok(()),
        }
    }
}

impl Drop for SnapshotImport {
    fn drop(&mut self) {
        let Some(state) = self.state.take().filter(|state| !state.written.is_empty()) else { return };
        let store = self.store.clone();
        self.store.runtime().spawn(Box::pin(async move {
            // No caller is left to report to; leftovers are invisible. The locks are released at the end.
            let _ = remove_written(&store, &state.written).await;
            drop(state);
        }));
    }
}

impl fmt::Debug for SnapshotImport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.state.as_ref().map(|state| &state.name);
        f.debug_struct("SnapshotImport").field("name", &name).finish_non_exhaustive()
    }
}

impl ImportState {
    /// Stores a file: the name must be free for a new snapshot; for a replaced one, the file replaces a different one.
    async fn put(
        &mut self,
        store: &Arc<StoreInner>,
        name: &ArchiveName,
        bytes: Bytes,
        limit: u64,
    ) -> Result<()> {
        let key = Key::Archive(self.name.clone(), name.clone());
        let backend = &store.backend;
        let create = backend.capabilities().create_mode();
        if self.present.is_none() {
            let version = backend.put(&key, bytes, create).await?;
            self.written.push(Written { key, version });
            return Ok(());
        }
        let mode = match backend.get(&key, limit).await {
            Ok(found) if found.bytes == bytes => return Ok(()),
            Ok(found) => store.instead_of(Some(found.info.version)),
            Err(error) if error.kind() == ErrorKind::NotFound => create,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                store.instead_of(Some(backend.head(&key).await?.version))
            }
            Err(error) => return Err(error),
        };
        backend.put(&key, bytes, mode).await.map(drop)
    }

    /// Everything before the manifest.
    async fn prepare(&mut self, store: &Arc<StoreInner>) -> Result<()> {
        let backend = &store.backend;
        for pins in &self.pins {
            store.chunks.await_settled(pins).await?;
        }
        store.chunks.restart_sightings(&self.pins).await?;
        backend.barrier().await?;
        for (name, bytes) in std::mem::take(&mut self.indexes) {
            self.put(store, &name, bytes, INDEX_BYTES).await?;
            store.note_published(&Key::Archive(self.name.clone(), name));
        }
        backend.barrier().await?;
        check_bases(store, &self.bases).await?;
        check_written(store, &self.written).await?;
        self.check_locks().await
    }

    async fn check_locks(&self) -> Result<()> {
        self.held.store.check().await?;
        self.snapshot.check().await
    }

    /// Replaces the manifest, if it is still the compared version.
    async fn replace_manifest(
        &self,
        store: &Arc<StoreInner>,
        present: &Present,
        bytes: &Bytes,
    ) -> Result<()> {
        if present.bytes == *bytes {
            return Ok(());
        }
        let backend = &store.backend;
        let _held = store.locks().manifest(&self.name).await?;
        let key = Key::Manifest(self.name.clone());
        let changed = || Error::new(ErrorKind::Conflict, "replace").on(&key);
        if backend.head(&key).await?.version != present.version {
            return Err(changed().because("somebody else changed it"));
        }
        let mode = store.instead_of(Some(present.version.clone()));
        put_verified(backend.as_ref(), &key, bytes.clone(), mode).await.map_err(PutError::into_error)?;
        backend.barrier().await
    }

    /// Stores the client log, after the snapshot is visible.
    async fn put_log(&self, store: &Arc<StoreInner>, log: Bytes) -> Result<()> {
        let (key, backend) = (Key::ClientLog(self.name.clone()), &store.backend);
        let has_one = self.present.as_ref().is_some_and(|present| present.info.has_client_log);
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
        let Some(present) = &self.present else { return Ok(()) };
        let names = present.info.files.iter().map(|file| &file.name).filter(|name| !listed.contains(name));
        let keys = names.map(|name| Key::Archive(self.name.clone(), name.clone()));
        let old_log =
            (log == Log::Foreign && present.info.has_client_log).then(|| Key::ClientLog(self.name.clone()));
        let keys: Vec<_> = keys.chain(old_log).collect();
        if keys.is_empty() {
            return Ok(());
        }
        store.deletions().delete_all(&keys).await?;
        store.backend.barrier().await
    }
}

async fn commit(store: Arc<StoreInner>, mut state: ImportState, manifest: ImportedManifest) -> Result<()> {
    if let Err(error) = state.prepare(&store).await {
        // Reports the first failure; leftovers are unfinished, and removed later.
        let _ = remove_written(&store, &state.written).await;
        return Err(error);
    }
    match &state.present {
        None => publish(&store, &state.name, &state.written, manifest.bytes).await?,
        Some(present) => state.replace_manifest(&store, present, &manifest.bytes).await?,
    }
    let log = if manifest.log.is_none() { Log::Foreign } else { Log::Own };
    if let Some(log) = manifest.log {
        state.put_log(&store, log).await?;
    }
    state.remove_unlisted(&store, &state.files, log).await
}

async fn update(store: Arc<StoreInner>, state: ImportState, manifest: ImportedManifest) -> Result<()> {
    let changed = || Error::new(ErrorKind::Conflict, "replace").on(&state.name);
    let present = state.present.as_ref().ok_or_else(changed)?;
    let Some(old) = &present.manifest else { return Err(changed()) };
    let listed: Vec<_> = old.files().iter().map(|file| file.name().clone()).collect();
    state.check_locks().await?;
    state.replace_manifest(&store, present, &manifest.bytes).await?;
    if let Some(log) = manifest.log {
        state.put_log(&store, log).await?;
    }
    state.remove_unlisted(&store, &listed, Log::Own).await
}
