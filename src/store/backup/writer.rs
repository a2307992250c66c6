//! A backup while it is being written.

use std::sync::{Arc, Mutex};

use bytes::Bytes;

use crate::chunks::CachePolicy;
use crate::chunks::witnesses::Witnesses;
use crate::error::Result;
use crate::format::Digest;
use crate::format::layout::Key;
use crate::format::name::{ArchiveKind, SnapshotName};
use crate::store::backup::session::{
    ArchiveSummary, BackupStats, Counters, Guards, WriterShared, WriterState, Written,
};
use crate::store::events::Observer;
use crate::store::{Datastore, SnapshotReader};

/// A new snapshot that nobody sees yet.
///
/// Archives are written with [`stream`](SnapshotWriter::stream), [`image`](SnapshotWriter::image),
/// [`image_writer`](SnapshotWriter::image_writer) and [`blob`](SnapshotWriter::blob), several at the same time if wanted.
/// [`finish`](SnapshotWriter::finish) publishes them together and is the only way to do so.
///
/// # Dropping it
/// Nothing becomes visible. Locks and pins are given back at once; blobs that were stored already are removed in the
/// background, and if the process ends before that, by the next backup of the group. Chunks stay until garbage is collected.
/// [`abort`](SnapshotWriter::abort) does the same and returns when it is done.
#[derive(Debug)]
pub struct SnapshotWriter {
    shared: Arc<WriterShared>,
}

impl SnapshotWriter {
    pub(in crate::store) fn new(
        store: Datastore,
        name: SnapshotName,
        guards: Guards,
        written: Vec<Written>,
        observer: Arc<dyn Observer>,
        (cache_policy, witnesses): (CachePolicy, Arc<Witnesses>),
    ) -> Self {
        let pins = store.inner.chunks.pins().writer(cache_policy, witnesses);
        let state = WriterState { written, ..WriterState::default() };
        let shared = WriterShared {
            counters: Counters::default(),
            guards: Mutex::new(Some(guards)),
            name,
            observer,
            pins,
            state: Mutex::new(state),
            store,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The name that the snapshot will have.
    pub fn name(&self) -> &SnapshotName {
        &self.shared.name
    }

    /// What was done so far.
    pub fn stats(&self) -> BackupStats {
        let counters = &self.shared.counters;
        BackupStats {
            bytes_read: Counters::get(&counters.read),
            bytes_written: Counters::get(&counters.written),
            chunks_known: Counters::get(&counters.known) + Counters::get(&counters.duplicates),
            chunks_new: Counters::get(&counters.new),
            chunks_reused: Counters::get(&counters.reused),
        }
    }

    /// The notes of the snapshot; the first line is what lists show.
    pub fn set_notes(&self, notes: impl Into<String>) {
        self.shared.state().notes = Some(notes.into());
    }

    /// Stores a small file whole, at most 16 MiB. `name` is `app.conf` or `app.conf.blob`.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is not valid, taken, or data that is too long.
    ///
    /// # Cancel safety
    /// A dropped future leaves the archive out of the snapshot; it may be written again under another name.
    pub async fn blob(&self, name: &str, data: impl Into<Bytes> + Send) -> Result<ArchiveSummary> {
        let (shared, data) = (&self.shared, data.into());
        let reserved = shared.reserve(name, ArchiveKind::Blob)?;
        let key = Key::Archive(shared.name.clone(), reserved.name.clone());
        let size = data.len() as u64;
        let stored = shared.put_blob(key, data).await?;
        let checksum = Digest::of(&stored);
        let summary = ArchiveSummary { checksum, chunks: 0, name: reserved.name.clone(), size };
        reserved.complete(stored.len() as u64, checksum, None)?;
        Ok(summary)
    }

    /// Stores the log of the client, at most 16 MiB. The manifest does not list it.
    ///
    /// # Errors
    /// `AlreadyExists` if there is one already; `InvalidInput` if it is too long.
    pub async fn client_log(&self, log: impl Into<Bytes> + Send) -> Result<()> {
        let key = Key::ClientLog(self.shared.name.clone());
        self.shared.put_blob(key, log.into()).await.map(drop)
    }

    /// Publishes the snapshot: when this returns, it is complete, visible, and as durable as the backend was opened to make
    /// things.
    ///
    /// In a bucket it waits for up to half an hour if the backup needs a chunk that a collection was deleting, by requests that got no
    /// answer and may still arrive: nobody can tell earlier whether the chunk stays. Beside that, it takes as long as the
    /// patience of its requests.
    ///
    /// # Errors
    /// `Conflict` if a base changed meanwhile, or such a chunk is gone; `InvalidInput` if an archive is still being written. Otherwise whatever kept
    /// the backend from storing. The snapshot is then not visible, except when it was storing its manifest that failed in a
    /// way that leaves open whether it happened, or making it durable.
    ///
    /// # Cancel safety
    /// Publishing goes on in the background if the future is dropped; the snapshot appears whole or not at all.
    pub async fn finish(self) -> Result<SnapshotReader> {
        crate::store::backup::publish::finish(&self.shared).await
    }

    /// Gives the backup up and removes what it stored besides chunks.
    ///
    /// # Errors
    /// Whatever kept the backend from removing it; the next backup of the group tries again.
    pub async fn abort(self) -> Result<()> {
        match self.shared.take_publication() {
            Some(given_up) => {
                let removed =
                    crate::store::backup::publish::remove_written(&self.shared.store, &given_up.written)
                        .await;
                drop(given_up);
                removed
            }
            None => Ok(()),
        }
    }

    pub(in crate::store) fn shared(&self) -> &Arc<WriterShared> {
        &self.shared
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        let Some(given_up) = self.shared.take_publication() else { return };
        drop(given_up.guards);
        if !given_up.written.is_empty() {
            crate::store::backup::publish::remove_in_background(&self.shared, given_up.written);
        }
    }
}
