//! The end of a backup: [publication](crate::store::publish) of the snapshot, or removal of the files of a dropped writer.

use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::format::manifest::{Manifest, ManifestFile};
use crate::store::SnapshotReader;
use crate::store::backup::session::{BackupSummary, FinishedBackup, WriterShared, WrittenSnapshot};
use crate::store::catalog::list::SnapshotState;
use crate::store::publish::{Written, remove_written};

pub(in crate::store) async fn finish(shared: &Arc<WriterShared>) -> Result<FinishedBackup> {
    if shared.open_archives() > 0 {
        let error = Error::new(ErrorKind::InvalidInput, "finish snapshot").on(&shared.name);
        return Err(error.because("an archive is still being written"));
    }
    let ended = || Error::new(ErrorKind::Internal, "finish snapshot").on(&shared.name);
    let mut written = shared.take().ok_or_else(ended)?;
    let archives = std::mem::take(&mut written.archives);
    let committing = Arc::clone(shared);
    let work = shared.run(async move {
        let committed = commit(&committing, written).await;
        // Here, and not where the caller waits: the outcome is that of the publication, also if the caller goes away.
        committing.end(Some(committed.as_ref().map(drop)));
        committed
    });
    let manifest = shared.store.runtime().run_detached("finish snapshot", work).await?;
    let summary = BackupSummary { archives, name: shared.name.clone(), stats: shared.counters.stats() };
    let key = shared.key_use.signing_key().cloned();
    let snapshot = SnapshotReader::published(shared.store.clone(), shared.name.clone(), manifest, key);
    Ok(FinishedBackup { snapshot, summary })
}

async fn commit(shared: &WriterShared, written: WrittenSnapshot) -> Result<Manifest> {
    let WrittenSnapshot { files, notes, mut publication, .. } = written;
    match encode_manifest(shared, files, notes.as_deref()).await {
        Ok((manifest, blob)) => publication.commit(&shared.store, blob).await.map(|()| manifest),
        Err(error) => {
            // Reports the first failure; leftovers are unfinished, and removed later.
            let _ = remove_written(&shared.store, &publication.written).await;
            Err(error)
        }
    }
}

async fn encode_manifest(
    shared: &WriterShared,
    files: Vec<ManifestFile>,
    notes: Option<&str>,
) -> Result<(Manifest, Bytes)> {
    let group = shared.name.group();
    let mut manifest = Manifest::new(group.backup_type(), group.id().clone(), shared.name.time());
    for file in files {
        manifest.add_file(file).map_err(|error| {
            Error::new(ErrorKind::Internal, "finish snapshot").on(&shared.name).because(error)
        })?;
    }
    manifest.set_notes(notes);
    manifest.set_chunk_upload_stats(Some(shared.counters.upload_stats()));
    // Last: the signature covers every file.
    if let Some(key) = shared.key_use.signing_key() {
        manifest.sign(key);
    }
    let blob = shared.store.manifests().encode(&manifest).await.map_err(|error| error.on(&shared.name))?;
    Ok((manifest, blob))
}

/// Removes the files of a dropped writer. Its locks are released by now, so the group is locked again.
pub(in crate::store) fn remove_in_background(shared: &WriterShared, written: Vec<Written>) {
    let (store, name) = (shared.store.clone(), shared.name.clone());
    shared.store.runtime().spawn(Box::pin(async move {
        // A busy group belongs to the next writer, which removes the leftovers.
        let Ok(_held) = store.locks().group(name.group()).await else { return };
        let Ok(found) = store.catalog().listed_snapshot(&name).await else { return };
        if !found.is_some_and(|listed| listed.info.state == SnapshotState::Finished) {
            // No caller is left to report to; leftovers are invisible.
            let _ = remove_written(&store, &written).await;
        }
    }));
}
