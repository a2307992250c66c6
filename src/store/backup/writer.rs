//! A backup in progress.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::io::Cursor;

use crate::chunks::CachePolicy;
use crate::chunks::witnesses::Witnesses;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::layout::Key;
use crate::format::name::{ArchiveKind, ArchiveName, SnapshotName};
use crate::pxar::CatalogWriter;
use crate::rt::Runtime;
use crate::store::backup::finish::{finish, remove_in_background};
use crate::store::backup::session::{
    ArchiveSummary, BackupStats, BaseUse, Counters, FinishedBackup, Guards, WriterShared, WriterState,
};
use crate::store::events::Events;
use crate::store::key_use::is_encrypted_key;
use crate::store::publish::{Publication, Written, remove_written};
use crate::store::{KeyUse, StoreInner};
use crate::trace::Watch;

/// Name of the catalog of trees.
const TREE_CATALOG: &str = "catalog.pcat1";

/// A new snapshot that is not visible yet.
///
/// Archives are written with [`stream`](SnapshotWriter::stream), [`image`](SnapshotWriter::image),
/// [`image_writer`](SnapshotWriter::image_writer), [`tree`](SnapshotWriter::tree) and [`blob`](SnapshotWriter::blob), several at the same time if you like.
/// [`finish`](SnapshotWriter::finish) publishes them together and is the only way to do so.
///
/// # Dropping it
/// Nothing becomes visible. Locks are released at once, pins when the chunks in flight are stored. Stored blobs are removed in the
/// background, which locks the group for that time, or if the process ends before that, by the next backup of the group. Chunks stay until
/// garbage collection.
/// [`abort`](SnapshotWriter::abort) does the same and returns when it is complete.
#[derive(Debug)]
pub struct SnapshotWriter {
    shared: Arc<WriterShared>,
}

impl SnapshotWriter {
    pub(in crate::store) fn new(
        store: Arc<StoreInner>,
        name: SnapshotName,
        guards: Guards,
        written: Vec<Written>,
        events: Events,
        (cache_policy, key_use, witnesses): (CachePolicy, KeyUse, Arc<Witnesses>),
    ) -> Self {
        let key = key_use.encryption_key().cloned();
        let pins = store.chunks.pins().writer(cache_policy, key, witnesses);
        let state = WriterState { written, ..WriterState::default() };
        let shared = WriterShared {
            counters: Counters::default(),
            guards: Mutex::new(Some(guards)),
            key_use,
            name,
            events,
            pins,
            state: Mutex::new(state),
            store,
            watch: Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Takes the watch of the backup until it ends.
    pub(in crate::store) fn watched(self, watch: Watch) -> Self {
        watch.name_snapshot(&self.shared.name);
        *self.shared.watch() = Some(watch);
        self
    }

    /// Name of the new snapshot.
    pub fn name(&self) -> &SnapshotName {
        &self.shared.name
    }

    /// Statistics so far.
    pub fn stats(&self) -> BackupStats {
        self.shared.counters.stats()
    }

    /// Notes of the snapshot; lists show their first line.
    pub fn set_notes(&self, notes: impl Into<String>) {
        self.shared.state().notes = Some(notes.into());
    }

    /// Stores a small file in one piece, at most 16 MiB. `name` is `app.conf` or `app.conf.blob`.
    ///
    /// In an encrypted backup the file is encrypted, except `rsa-encrypted.key`: the key of the backup, encrypted for a master key.
    ///
    /// # Errors
    /// `InvalidInput` for an invalid or taken name, or data that is too long.
    ///
    /// # Cancel safety
    /// A dropped future leaves the archive out of the snapshot; it may be written again under another name.
    pub async fn blob(&self, name: &str, data: impl Into<Bytes> + Send) -> Result<ArchiveSummary> {
        self.shared.archive(name).run(self.write_blob(name, data.into())).await
    }

    async fn write_blob(&self, name: &str, data: Bytes) -> Result<ArchiveSummary> {
        let shared = &self.shared;
        let reserved = shared.reserve(name, ArchiveKind::Blob)?;
        let key = Key::Archive(shared.name.clone(), reserved.name.clone());
        let size = data.len() as u64;
        let encrypting = shared.key_use.encryption_key().filter(|_| !is_encrypted_key(&reserved.name));
        let stored = shared.put_blob(key, data, encrypting).await?;
        let checksum = Digest::of(&stored);
        let base = BaseUse::None;
        let summary = ArchiveSummary { base, checksum, chunks: 0, name: reserved.name.clone(), size };
        reserved.complete(stored.len() as u64, summary, None)
    }

    /// Stores the log of the client, at most 16 MiB. The manifest does not list it, so no signature covers it.
    ///
    /// # Errors
    /// `AlreadyExists` if the snapshot has a log already; `InvalidInput` if it is too long.
    pub async fn client_log(&self, log: impl Into<Bytes> + Send) -> Result<()> {
        let key = Key::ClientLog(self.shared.name.clone());
        self.shared.put_blob(key, log.into(), self.shared.key_use.encryption_key()).await.map(drop)
    }

    /// Publishes the snapshot, and returns it with a summary of the backup. When this returns, the snapshot is complete, visible, and durable at the level that the backend was opened
    /// with.
    ///
    /// In a bucket it waits up to half an hour if the backup needs a chunk with a pending delete: only then is it certain
    /// that the chunk stays. Otherwise it ends within the
    /// deadlines of its requests.
    ///
    /// # Errors
    /// `Conflict` if a base changed meanwhile, or such a chunk is gone; `InvalidInput` if an archive is still being written; any failure of
    /// the backend. The snapshot is then not visible, unless storing its manifest failed with an unknown
    /// outcome, or making it durable failed.
    ///
    /// # Cancel safety
    /// Publication continues in the background if the future is dropped; the snapshot appears as a whole or not at all.
    pub async fn finish(self) -> Result<FinishedBackup> {
        let finished = match self.write_tree_catalog().await {
            Ok(()) => self.shared.run(finish(&self.shared)).await,
            Err(error) => Err(error),
        };
        self.shared.end(Some(finished.as_ref().map(drop)));
        finished
    }

    /// Aborts the backup and removes everything it stored except chunks.
    ///
    /// # Errors
    /// Any failure to remove it; the next backup of the group tries again.
    pub async fn abort(self) -> Result<()> {
        self.shared.end(None);
        match self.shared.take() {
            Some(given_up) => {
                let removed = remove_written(&self.shared.store, &given_up.publication.written).await;
                drop(given_up);
                removed
            }
            None => Ok(()),
        }
    }

    /// Adds the entries of a tree to the catalog, which is stored when the backup finishes.
    pub(crate) fn add_to_tree_catalog(&self, tree: CatalogWriter) {
        let mut state = self.shared.state();
        match &mut state.tree_catalog {
            Some(catalog) => catalog.append(tree),
            None => state.tree_catalog = Some(tree),
        }
    }

    /// Runtime of the store.
    pub(crate) fn runtime(&self) -> &Arc<dyn Runtime> {
        self.shared.store.runtime()
    }

    /// Stores the catalog of the trees, unless the caller stored one.
    async fn write_tree_catalog(&self) -> Result<()> {
        let Some(catalog) = self.shared.state().tree_catalog.take() else { return Ok(()) };
        let name = ArchiveName::with_kind(TREE_CATALOG, ArchiveKind::Dynamic);
        if name.is_ok_and(|name| self.shared.state().taken.contains(&name)) {
            return Ok(());
        }
        let bytes = catalog.finish().map_err(|error| {
            Error::new(ErrorKind::Internal, "write catalog").on(TREE_CATALOG).because(error)
        })?;
        self.stream(TREE_CATALOG, Cursor::new(bytes)).await.map(drop)
    }

    pub(in crate::store) fn shared(&self) -> &Arc<WriterShared> {
        &self.shared
    }
}

impl Drop for SnapshotWriter {
    fn drop(&mut self) {
        // Without anything to give up, the publication continues, and ends the watch.
        let Some(given_up) = self.shared.take() else { return };
        self.shared.end(None);
        let Publication { bases, locks, written, .. } = given_up.publication;
        drop((bases, locks));
        if !written.is_empty() {
            remove_in_background(&self.shared, written);
        }
    }
}
