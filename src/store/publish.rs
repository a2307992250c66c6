//! Publication of a snapshot: the steps that a [backup](crate::store::SnapshotWriter::finish) and a transfer share.
//!
//! # Order
//! ```text
//! no pending delete can hit a chunk any more → GC candidates among the chunks reset → barrier → indexes → barrier
//!   → bases, stored objects and locks checked → manifest → barrier
//! ```
//! A crash before the manifest leaves files without one: an unfinished snapshot, which readers ignore and the next backup of the group
//! removes. A crash after it leaves a complete snapshot, because everything that it names was durable before (H37, H75).
//!
//! # Failures
//! | step that failed | files of a new snapshot |
//! |---|---|
//! | any before the manifest | removed |
//! | the put of the manifest, certainly | removed |
//! | the put of the manifest, in doubt | stay, for as long as the manifest could still arrive (I6) |
//! | the put of the manifest, because another one exists | stay: its snapshot may use files of these names |
//!
//! A snapshot that is *replaced* keeps its old manifest until the new one takes its place, only if it is still the compared version
//! (H46, H52). Its other files are replaced where they differ.
//!
//! The caller runs the publication as a task of its own, which owns the locks: dropping the future that waits for it changes nothing
//! (H161).

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _};

use crate::backend::put_verified::{FoundInstead, PutError};
use crate::backend::{LockGuard, Removal, Version};
use crate::chunks::pins::WriterPins;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::manifest::Manifest;
use crate::format::name::{ArchiveName, SnapshotName};
use crate::store::StoreInner;
use crate::store::catalog::list::SnapshotInfo;
use crate::store::locks::Held;
use crate::store::manifests::has_failed_verification;
use crate::store::snapshot_files::INDEX_BYTES;

/// Number of indexes stored concurrently.
const INDEXES_IN_FLIGHT: usize = 4;

/// An object that an operation stored, with the version that it got.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) key: Key,
    pub(super) version: Version,
}

/// A snapshot whose chunks the new one reuses, locked against deletion.
#[derive(Debug)]
pub(super) struct Base {
    pub(super) lock: Held,
    pub(super) name: SnapshotName,
    pub(super) version: Version,
}

/// Locks of a publication, held until it is complete.
#[derive(Debug)]
pub(super) struct PublicationLocks {
    #[expect(dead_code, reason = "held, not asked")]
    pub(super) group: Held,
    /// Locks of other snapshots, such as the source of a transfer.
    pub(super) others: Vec<Held>,
    pub(super) snapshot: Box<dyn LockGuard>,
    pub(super) store: Held,
}

impl PublicationLocks {
    /// Fails unless the store and the snapshot are still locked.
    pub(super) async fn check(&self) -> Result<()> {
        mutated!("publish-before-the-lock-check" => return Ok(()));
        self.store.check().await?;
        self.snapshot.check().await
    }
}

/// The existing snapshot that a publication replaces.
#[derive(Clone, Debug)]
pub(crate) struct Present {
    pub(crate) bytes: Bytes,
    pub(crate) info: SnapshotInfo,
    /// `None` if it cannot be read.
    pub(crate) manifest: Option<Manifest>,
    pub(super) version: Version,
}

/// Place of a publication.
#[derive(Debug)]
pub(super) enum Target {
    /// A free name.
    New,
    /// An existing snapshot, which the caller found damaged or equal.
    Replace(Box<Present>),
}

/// A snapshot that is about to be published.
#[derive(Debug)]
pub(super) struct Publication {
    pub(super) bases: Vec<Base>,
    /// Indexes to store.
    pub(super) indexes: Vec<(ArchiveName, Bytes)>,
    pub(super) locks: PublicationLocks,
    pub(super) name: SnapshotName,
    /// Pins of its chunks.
    pub(super) pins: Vec<Arc<WriterPins>>,
    pub(super) target: Target,
    /// Objects stored so far for a new snapshot.
    pub(super) written: Vec<Written>,
}

impl Publication {
    /// The existing snapshot of that name.
    pub(super) fn present(&self) -> Option<&Present> {
        match &self.target {
            Target::New => None,
            Target::Replace(present) => Some(present),
        }
    }

    /// Stores a file: under a free name for a new snapshot; for a replaced one, in place of a different file.
    pub(super) async fn put(
        &mut self,
        store: &Arc<StoreInner>,
        name: ArchiveName,
        bytes: Bytes,
        limit: u64,
    ) -> Result<()> {
        let key = Key::Archive(self.name.clone(), name);
        self.written.extend(self.put_object(store, key, bytes, limit).await?);
        Ok(())
    }

    /// Publishes the snapshot with this stored manifest. On success it is complete, visible and durable.
    ///
    /// # Errors
    /// `Conflict` if a base, a stored object or the replaced manifest changed meanwhile; any failure of the backend.
    pub(super) async fn commit(&mut self, store: &Arc<StoreInner>, manifest: Bytes) -> Result<()> {
        mutated!("publish-before-indexes" => put_manifest(store, &self.name, &[], manifest.clone()).await?);
        if let Err(error) = self.prepare(store).await {
            // Reports the first failure; leftovers are unfinished, and removed later.
            let _ = remove_written(store, &self.written).await;
            return Err(error);
        }
        match &self.target {
            Target::New => put_manifest(store, &self.name, &self.written, manifest).await,
            Target::Replace(present) => self.replace_manifest(store, present, &manifest).await,
        }
    }

    /// Executes the steps before the manifest.
    async fn prepare(&mut self, store: &Arc<StoreInner>) -> Result<()> {
        for pins in &self.pins {
            store.chunks.await_pending_deletes(pins).await?;
        }
        store.chunks.reset_gc_candidates(&self.pins).await?;
        // Chunks and blobs are durable before an index names them.
        if !mutated!("publish-indexes-before-chunks-are-durable") {
            store.backend.barrier().await?;
        }
        self.put_indexes(store).await?;
        // Indexes are durable before the manifest makes them visible.
        if !mutated!("publish-before-indexes-are-durable") {
            store.backend.barrier().await?;
        }
        check_bases(store, &self.bases).await?;
        check_written(store, &self.written).await?;
        // Last: the steps before may have taken long (H90).
        self.locks.check().await
    }

    async fn put_indexes(&mut self, store: &Arc<StoreInner>) -> Result<()> {
        let indexes = std::mem::take(&mut self.indexes);
        let publication = &*self;
        let mut puts = stream::iter(indexes)
            .map(|(name, bytes)| async move {
                let key = Key::Archive(publication.name.clone(), name);
                let written = publication.put_object(store, key.clone(), bytes, INDEX_BYTES).await?;
                store.note_published(&key);
                Ok::<_, Error>(written)
            })
            .buffer_unordered(INDEXES_IN_FLIGHT);
        let (mut written, mut failed) = (Vec::new(), None);
        while let Some(put) = puts.next().await {
            match put {
                Ok(put) => written.extend(put),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        drop(puts);
        self.written.append(&mut written);
        failed.map_or(Ok(()), Err)
    }

    /// Stores an object of the snapshot. Returns it if it is new.
    async fn put_object(
        &self,
        store: &Arc<StoreInner>,
        key: Key,
        bytes: Bytes,
        limit: u64,
    ) -> Result<Option<Written>> {
        let backend = &store.backend;
        let create = backend.capabilities().create_mode();
        if self.present().is_none() {
            let version = backend.put(&key, bytes, create).await?;
            return Ok(Some(Written { key, version }));
        }
        let mode = match backend.get(&key, limit).await {
            Ok(found) if found.bytes == bytes => return Ok(None),
            Ok(found) => store.instead_of(Some(found.info.version)),
            Err(error) if error.kind() == ErrorKind::NotFound => create,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                store.instead_of(Some(backend.head(&key).await?.version))
            }
            Err(error) => return Err(error),
        };
        backend.put(&key, bytes, mode).await?;
        Ok(None)
    }

    /// Replaces the manifest, if it is still the compared version.
    pub(super) async fn replace_manifest(
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
            return Err(changed().because("another process changed it"));
        }
        let mode = store.instead_of(Some(present.version.clone()));
        store.replace_manifest(&self.name, bytes.clone(), mode).await.map_err(PutError::into_error)?;
        backend.barrier().await
    }
}

/// Fails unless all bases still exist.
async fn check_bases(store: &Arc<StoreInner>, bases: &[Base]) -> Result<()> {
    mutated!("publish-without-a-look-at-the-base" => return Ok(()));
    for Base { name, version, .. } in bases {
        let still = store.backend.head(&Key::Manifest(name.clone())).await;
        if still.is_ok_and(|found| found.version == *version) {
            continue;
        }
        // Notes and verify states change a manifest too. The base only has to exist and not to be known as damaged.
        check_base(store, name).await?;
    }
    Ok(())
}

/// Fails unless the base is still a snapshot to build on (H54).
async fn check_base(store: &Arc<StoreInner>, base: &SnapshotName) -> Result<()> {
    let changed =
        |why: &'static str| Err(Error::new(ErrorKind::Conflict, "build on base").on(base).because(why));
    match store.manifests().read(base).await {
        Ok((manifest, _)) if has_failed_verification(&manifest) => {
            changed("it failed verification meanwhile")
        }
        Ok(_) => Ok(()),
        Err(error) if error.kind() == ErrorKind::NotFound => changed("it was deleted meanwhile"),
        Err(error) => Err(error),
    }
}

/// Fails unless all stored objects still exist: a process that took the snapshot for a leftover may have removed some of them
/// (H37, H39).
async fn check_written(store: &Arc<StoreInner>, written: &[Written]) -> Result<()> {
    mutated!("publish-without-a-look-at-the-files" => return Ok(()));
    for Written { key, version } in written {
        let gone =
            |why: &'static str| Error::new(ErrorKind::Conflict, "finish snapshot").on(key).because(why);
        match store.backend.head(key).await {
            Ok(found) if found.version == *version => {}
            Ok(_) => return Err(gone("another process replaced it")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(gone("another process removed it"));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Stores the manifest of a new snapshot, whose files are complete and durable. Removes them if that certainly failed.
async fn put_manifest(
    store: &Arc<StoreInner>,
    name: &SnapshotName,
    written: &[Written],
    blob: Bytes,
) -> Result<()> {
    let cleared = store.chunks.cleared_suspects();
    if let Err(PutError { error, found, is_certain }) = store.put_manifest(name, blob).await {
        // A manifest that exists or may still appear must find its files, and so must that of another writer. Otherwise they go.
        if is_certain && found == FoundInstead::Absent || mutated!("publish-in-doubt-removes-files") {
            // The first failure is the one to report; files that stay are an unfinished snapshot.
            let _ = remove_written(store, written).await;
        }
        return Err(error);
    }
    if !mutated!("publish-reported-before-durable") {
        store.backend.barrier().await?;
    }
    // The snapshot exists even if this fails: a chunk left on the list is only checked once more than needed.
    let _ = store.chunks.unlist_suspects(&cleared).await;
    Ok(())
}

/// Removes the objects that an operation stored, each only in the version that it got.
pub(super) async fn remove_written(store: &Arc<StoreInner>, written: &[Written]) -> Result<()> {
    let backend = &store.backend;
    let conditional = backend.capabilities().conditional_delete;
    // The owner goes last, and only if nothing else is left of the group.
    let (owners, files): (Vec<_>, Vec<_>) =
        written.iter().partition(|written| matches!(written.key, Key::Owner(_)));
    let removal = |written: &&Written| Removal {
        key: written.key.clone(),
        version: conditional.then(|| written.version.clone()),
    };
    let removals: Vec<_> = files.iter().map(removal).collect();
    if !removals.is_empty() {
        for removed in store.delete(&removals).await? {
            ignore_conflict(removed)?;
        }
    }
    for owner in owners {
        let Key::Owner(group) = &owner.key else { continue };
        if store.deletions().is_bare(group).await? {
            for removed in store.delete(&[removal(&owner)]).await? {
                ignore_conflict(removed)?;
            }
        }
    }
    Ok(())
}

/// An object of another version belongs to another writer.
fn ignore_conflict<T>(removed: Result<T>) -> Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        removed => removed.map(drop),
    }
}
