//! How a snapshot is published, and how one is given up.
//!
//! # The order
//! ```text
//! every chunk confirmed, and none that a late request may delete → sightings of them begin anew → barrier → indexes → barrier → bases still there, locks still held → manifest → barrier → locks
//! ```
//! A crash before the manifest leaves files without one: an unfinished snapshot, which nobody sees and the next backup of the
//! group removes. A crash after it leaves a complete snapshot, since everything it names was durable before (H37, H75).
//!
//! The commit runs as a task of its own, which owns the locks: dropping the future that waits for it changes nothing (H161).
//! If a step before the manifest fails, what was written is removed. If storing the manifest itself fails, what is there is
//! looked at. Where that leaves open whether it happened, nothing is removed, neither now nor by the next backups of the group
//! in this process while the manifest could still arrive: it must find its files (I6).

use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::backend::put_verified::{FoundInstead, PutError, put_verified};
use crate::backend::{LockGuard, Removal, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::manifest::Manifest;
use crate::format::name::{ArchiveName, SnapshotName};
use crate::store::backup::session::{Publication, WriterShared, Written};
use crate::store::catalog::list::SnapshotState;
use crate::store::manifests::has_failed_verification;
use crate::store::{SnapshotReader, StoreInner};

/// Number of indexes stored concurrently.
const INDEXES_IN_FLIGHT: usize = 4;

pub(in crate::store) async fn finish(shared: &Arc<WriterShared>) -> Result<SnapshotReader> {
    if shared.open_archives() > 0 {
        let error = Error::new(ErrorKind::InvalidInput, "finish snapshot").on(&shared.name);
        return Err(error.because("an archive is still being written"));
    }
    let ended = || Error::new(ErrorKind::Internal, "finish snapshot").on(&shared.name);
    let publication = shared.take_publication().ok_or_else(ended)?;
    let committing = Arc::clone(shared);
    let work = async move { commit(&committing, publication).await };
    let manifest = shared.store.runtime().run_detached("finish snapshot", work).await?;
    Ok(SnapshotReader::published(shared.store.clone(), shared.name.clone(), manifest))
}

async fn commit(shared: &WriterShared, mut publication: Publication) -> Result<Manifest> {
    match prepare(shared, &mut publication).await {
        Ok((manifest, blob)) => {
            publish(&shared.store, &shared.name, &publication.written, blob).await?;
            drop(publication.guards);
            Ok(manifest)
        }
        Err(error) => {
            // The first failure is the one to report; what stays behind is unfinished and removed later.
            let _ = remove_written(&shared.store, &publication.written).await;
            Err(error)
        }
    }
}

/// Everything up to the manifest.
async fn prepare(shared: &WriterShared, publication: &mut Publication) -> Result<(Manifest, Bytes)> {
    let backend = &shared.store.backend;
    shared.store.chunks.await_settled(&shared.pins).await?;
    shared.store.chunks.restart_sightings(std::slice::from_ref(&shared.pins)).await?;
    backend.barrier().await?;
    let indexes = publication.indexes.iter().map(|(name, index)| (name.clone(), index.bytes.clone()));
    let indexes: Vec<_> = indexes.collect();
    let mut puts = stream::iter(indexes)
        .map(|(name, bytes)| put_index(shared, name, bytes))
        .buffer_unordered(INDEXES_IN_FLIGHT);
    while let Some(written) = puts.try_next().await? {
        publication.written.push(written);
    }
    drop(puts);
    backend.barrier().await?;
    let manifest = manifest(shared, publication)?;
    let blob = shared.store.manifests().encode(&manifest).await.map_err(|error| error.on(&shared.name))?;
    check_bases(&shared.store, &publication.guards.bases).await?;
    check_written(&shared.store, &publication.written).await?;
    publication.guards.store.check().await?;
    publication.guards.snapshot.check().await?;
    Ok((manifest, blob))
}

async fn put_index(shared: &WriterShared, name: ArchiveName, bytes: Bytes) -> Result<Written> {
    let key = Key::Archive(shared.name.clone(), name);
    let backend = &shared.store.backend;
    let version = backend.put(&key, bytes, backend.capabilities().create_mode()).await?;
    shared.store.note_published(&key);
    Ok(Written { key, version })
}

fn manifest(shared: &WriterShared, publication: &mut Publication) -> Result<Manifest> {
    let group = shared.name.group();
    let mut manifest = Manifest::new(group.backup_type(), group.id().clone(), shared.name.time());
    for file in publication.files.drain(..) {
        manifest.add_file(file).map_err(|error| {
            Error::new(ErrorKind::Internal, "finish snapshot").on(&shared.name).because(error)
        })?;
    }
    manifest.set_notes(publication.notes.as_deref());
    manifest.set_chunk_upload_stats(Some(shared.counters.upload_stats()));
    Ok(manifest)
}

/// Fails unless all bases are still there.
pub(in crate::store) async fn check_bases(
    store: &Arc<StoreInner>,
    bases: &[(SnapshotName, Version, Arc<dyn LockGuard>)],
) -> Result<()> {
    for (base, version, _) in bases {
        let still = store.backend.head(&Key::Manifest(base.clone())).await;
        if still.is_ok_and(|found| found.version == *version) {
            continue;
        }
        // Notes and verify states change a manifest too; the snapshot only has to exist and not be known as bad.
        check_base(store, base).await?;
    }
    Ok(())
}

/// Fails unless everything that was stored is still there: whoever took the snapshot for a leftover may have removed parts of it
/// (H37, H39).
pub(in crate::store) async fn check_written(store: &Arc<StoreInner>, written: &[Written]) -> Result<()> {
    for Written { key, version } in written {
        let gone =
            |why: &'static str| Error::new(ErrorKind::Conflict, "finish snapshot").on(key).because(why);
        match store.backend.head(key).await {
            Ok(found) if found.version == *version => {}
            Ok(_) => return Err(gone("somebody else replaced it")),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(gone("somebody else removed it"));
            }
            Err(error) => return Err(error),
        }
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

/// Stores the manifest of a new snapshot, whose files are all there and durable. If that failed for certain, they are removed.
pub(in crate::store) async fn publish(
    store: &Arc<StoreInner>,
    name: &SnapshotName,
    written: &[Written],
    blob: Bytes,
) -> Result<()> {
    let backend = &store.backend;
    let key = Key::Manifest(name.clone());
    let mode = backend.capabilities().create_mode();
    let cleared = store.chunks.cleared_suspects();
    match put_verified(backend.as_ref(), &key, blob, mode).await {
        Ok(_) => {}
        Err(PutError { error, is_certain: true, .. }) => {
            // The first failure is the one to report; files that stay are an unfinished snapshot.
            let _ = remove_written(store, written).await;
            return Err(error);
        }
        // Another writer's manifest: its snapshot may use files of these names, so nothing is removed.
        Err(PutError { error, found: FoundInstead::Other, .. }) => return Err(error),
        // The manifest may exist or still appear, and must find its files then: they stay.
        Err(PutError { error, .. }) => {
            store.doubt(name);
            return Err(error);
        }
    }
    backend.barrier().await?;
    // The snapshot exists whatever happens to the list: a chunk left on it is only checked once more than needed.
    let _ = store.chunks.unlist_suspects(&cleared).await;
    Ok(())
}

/// Removes what a backup stored, and only that: each object by the version that it got.
pub(in crate::store) async fn remove_written(store: &Arc<StoreInner>, written: &[Written]) -> Result<()> {
    let backend = &store.backend;
    let conditional = backend.capabilities().conditional_delete;
    // The owner last: it goes only if nothing else is left of the group.
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

/// Cleans up after a dropped writer. Its locks are free by now, so the group is locked again.
pub(in crate::store) fn remove_in_background(shared: &WriterShared, written: Vec<Written>) {
    let (store, name) = (shared.store.clone(), shared.name.clone());
    shared.store.runtime().spawn(Box::pin(async move {
        // A group that is busy belongs to the next writer, who removes what is left.
        let Ok(_held) = store.locks().group(name.group()).await else { return };
        let Ok(found) = store.catalog().listed_snapshot(&name).await else { return };
        if !found.is_some_and(|listed| listed.info.state == SnapshotState::Finished) {
            // No caller is left to report to; leftovers are invisible.
            let _ = remove_written(&store, &written).await;
        }
    }));
}

/// An object of another version belongs to another writer.
fn ignore_conflict<T>(removed: Result<T>) -> Result<()> {
    match removed {
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        removed => removed.map(drop),
    }
}
