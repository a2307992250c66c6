//! The state that a writer shares with its archives: locks, pins, counters, names and finished archives.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::backend::{LockGuard, Version};
use crate::chunks::pins::WriterPins;
use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::index::FinishedIndex;
use crate::format::layout::Key;
use crate::format::manifest::{ManifestFile, UploadStats};
use crate::format::name::{ArchiveKind, ArchiveName, SnapshotName};
use crate::pxar::CatalogWriter;
use crate::store::events::{ArchiveEvent, Events};
use crate::store::publish::{Base, Publication, PublicationLocks, Target, Written};
use crate::store::{KeyUse, SnapshotReader, StoreInner};
use crate::trace::{self, Facts, Part, Watch};

/// Maximum plaintext bytes of a new blob.
const MAX_NEW_BLOB_BYTES: usize = 16 << 20;

/// State that a writer shares with its archives.
#[derive(Debug)]
pub(in crate::store) struct WriterShared {
    pub(in crate::store) counters: Counters,
    pub(super) guards: Mutex<Option<Guards>>,
    pub(in crate::store) key_use: KeyUse,
    pub(in crate::store) name: SnapshotName,
    pub(in crate::store) events: Events,
    pub(in crate::store) pins: Arc<WriterPins>,
    pub(super) state: Mutex<WriterState>,
    pub(in crate::store) store: Arc<StoreInner>,
    /// `None` after the end of the backup.
    pub(super) watch: Mutex<Option<Watch>>,
}

/// Locks and bases of a backup.
#[derive(Debug)]
pub(in crate::store) struct Guards {
    pub(in crate::store) bases: Vec<Base>,
    pub(in crate::store) locks: PublicationLocks,
}

#[derive(Debug, Default)]
pub(super) struct WriterState {
    pub(super) archives: Vec<ArchiveSummary>,
    pub(super) files: Vec<ManifestFile>,
    pub(super) indexes: Vec<(ArchiveName, FinishedIndex)>,
    pub(super) notes: Option<String>,
    /// Names that are taken, by finished archives and by those still being written.
    pub(super) taken: BTreeSet<ArchiveName>,
    /// Catalog of the trees in unified form.
    pub(super) tree_catalog: Option<CatalogWriter>,
    pub(super) written: Vec<Written>,
}

/// A backup whose writer has ended.
#[derive(Debug)]
pub(in crate::store) struct WrittenSnapshot {
    pub(in crate::store) archives: Vec<ArchiveSummary>,
    pub(in crate::store) files: Vec<ManifestFile>,
    pub(in crate::store) notes: Option<String>,
    pub(in crate::store) publication: Publication,
}

/// Use of the base by an archive.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum BaseUse {
    /// The index of the archive in the base is damaged or missing: a full backup.
    Damaged,
    /// The archive in the base is encrypted, and the backup has no key: a full backup.
    Encrypted,
    /// The base failed verification: a full backup.
    FailedVerification,
    /// The base has no archive of this name, or was deleted: a full backup.
    Missing,
    /// No base was given: a full backup.
    #[default]
    None,
    /// The archive in the base has chunks of another size, so dirty extents say nothing: a full backup.
    OtherChunkSize,
    /// The archive in the base has another key, or uses it in another mode: a full backup.
    OtherKey,
    /// The archive was built on the base.
    Used,
}

impl fmt::Display for BaseUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Damaged => "the index in the base is damaged",
            Self::Encrypted => "the base is encrypted",
            Self::FailedVerification => "the base failed verification",
            Self::Missing => "the base has no such archive",
            Self::None => "no base",
            Self::OtherChunkSize => "the base has chunks of another size",
            Self::OtherKey => "the base has another key, or uses it in another mode",
            Self::Used => "built on the base",
        })
    }
}

/// An archive that was written.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ArchiveSummary {
    /// The use of the base.
    pub base: BaseUse,
    /// Checksum in the manifest: of the index, or of the stored blob.
    pub checksum: Digest,
    /// Number of chunks; 0 for a blob.
    pub chunks: u64,
    /// Its name.
    pub name: ArchiveName,
    /// Its size in bytes; for a blob, that of its contents.
    pub size: u64,
}

/// Statistics of a backup so far. Sizes are in bytes.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct BackupStats {
    /// Read from the caller.
    pub bytes_read: u64,
    /// Stored: new chunks and blobs as they are in the store.
    pub bytes_written: u64,
    /// Chunks that were in the store already, whether the base named them or not. A chunk that comes twice counts twice.
    pub chunks_known: u64,
    /// Chunks that are new in the store.
    pub chunks_new: u64,
    /// Chunks reused from the base without reading the source.
    pub chunks_reused: u64,
}

/// Summary of a finished backup.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct BackupSummary {
    /// The archives, in the order in which they were completed.
    pub archives: Vec<ArchiveSummary>,
    /// Name of the snapshot.
    pub name: SnapshotName,
    /// Statistics.
    pub stats: BackupStats,
}

/// A published snapshot, and the summary of its backup.
#[non_exhaustive]
#[derive(Debug)]
pub struct FinishedBackup {
    /// The snapshot, opened for reading.
    pub snapshot: SnapshotReader,
    /// Summary of the backup.
    pub summary: BackupSummary,
}

/// The counters behind [`BackupStats`] and the statistics that PBS keeps in a manifest.
#[derive(Debug, Default)]
pub(in crate::store) struct Counters {
    pub(in crate::store) blob_bytes: AtomicU64,
    pub(in crate::store) duplicates: AtomicU64,
    pub(in crate::store) known: AtomicU64,
    pub(in crate::store) new: AtomicU64,
    pub(in crate::store) read: AtomicU64,
    pub(in crate::store) reused: AtomicU64,
    pub(in crate::store) sent_bytes: AtomicU64,
    pub(in crate::store) sent_stored_bytes: AtomicU64,
    pub(in crate::store) written: AtomicU64,
}

impl Counters {
    pub(in crate::store) fn add(counter: &AtomicU64, value: u64) {
        counter.fetch_add(value, Ordering::Relaxed);
    }

    fn get(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }

    pub(super) fn stats(&self) -> BackupStats {
        BackupStats {
            bytes_read: Self::get(&self.read),
            bytes_written: Self::get(&self.written),
            chunks_known: Self::get(&self.known) + Self::get(&self.duplicates),
            chunks_new: Self::get(&self.new),
            chunks_reused: Self::get(&self.reused),
        }
    }

    /// Statistics as PBS counts them: chunks that a client would send to a server.
    pub(in crate::store) fn upload_stats(&self) -> UploadStats {
        let duplicates = Self::get(&self.duplicates);
        UploadStats {
            count: Self::get(&self.new) + duplicates,
            size: Self::get(&self.sent_bytes) + Self::get(&self.blob_bytes),
            compressed_size: Self::get(&self.sent_stored_bytes),
            duplicates,
        }
    }
}

impl WriterShared {
    /// Runs a part of the backup under its span.
    pub(super) fn run<F: Future>(&self, part: F) -> impl Future<Output = F::Output> + use<F> {
        self.watch().as_ref().unwrap_or(&Watch::none()).run(part)
    }

    /// Begins the part of the backup that writes an archive.
    pub(super) fn archive(&self, name: &str) -> Part {
        self.watch().as_ref().unwrap_or(&Watch::none()).archive(name)
    }

    /// Ends the watch, once. Without a result, the backup was given up.
    pub(super) fn end(&self, result: Option<std::result::Result<(), &Error>>) {
        let Some(watch) = self.watch().take() else { return };
        let stats = self.counters.stats();
        trace::backed_up(
            stats.bytes_read,
            stats.bytes_written,
            stats.chunks_new,
            stats.chunks_known,
            stats.chunks_reused,
        );
        match result {
            Some(result) => watch.end(result.map(|()| Facts::of(&stats).bytes(stats.bytes_read))),
            None => drop(watch),
        }
    }

    pub(super) fn watch(&self) -> MutexGuard<'_, Option<Watch>> {
        self.watch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the writer and returns everything that it wrote; `None` if it has ended already.
    pub(in crate::store) fn take(&self) -> Option<WrittenSnapshot> {
        let Guards { bases, locks } = self.guards.lock().unwrap_or_else(PoisonError::into_inner).take()?;
        let state = std::mem::take(&mut *self.state());
        let WriterState { archives, files, indexes, notes, written, .. } = state;
        let publication = Publication {
            bases,
            indexes: indexes.into_iter().map(|(name, index)| (name, index.bytes)).collect(),
            locks,
            name: self.name.clone(),
            pins: vec![Arc::clone(&self.pins)],
            target: Target::New,
            written,
        };
        Some(WrittenSnapshot { archives, files, notes, publication })
    }

    /// Number of archives that were begun and neither finished nor dropped.
    pub(in crate::store) fn open_archives(&self) -> usize {
        let state = self.state();
        state.taken.len() - state.files.len()
    }

    /// Keeps a base locked until the backup ends.
    pub(in crate::store) fn hold_base(
        &self,
        name: SnapshotName,
        version: Version,
        guard: Arc<dyn LockGuard>,
    ) -> Result<()> {
        let mut guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        let guards = guards.as_mut().ok_or_else(|| Error::new(ErrorKind::InvalidInput, "use a base"))?;
        if !guards.bases.iter().any(|base| base.name == name) {
            guards.bases.push(Base { lock: guard, name, version });
        }
        Ok(())
    }

    /// The lock of a base.
    pub(in crate::store) fn base_lock(&self, name: &SnapshotName) -> Result<Arc<dyn LockGuard>> {
        let guards = self.guards.lock().unwrap_or_else(PoisonError::into_inner);
        let base = guards.as_ref().and_then(|guards| guards.bases.iter().find(|base| base.name == *name));
        let lock = base.map(|base| Arc::clone(&base.lock));
        lock.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "use a base").because("the backup has ended"))
    }

    /// Takes a name for an archive that is about to be written.
    pub(in crate::store) fn reserve(self: &Arc<Self>, name: &str, kind: ArchiveKind) -> Result<Reserved> {
        let invalid =
            |error: String| Error::new(ErrorKind::InvalidInput, "write archive").on(name).because(error);
        let parsed = ArchiveName::with_kind(name, kind).map_err(|error| invalid(error.to_string()))?;
        parsed.check_new().map_err(|error| invalid(error.to_string()))?;
        if !self.state().taken.insert(parsed.clone()) {
            return Err(invalid("the snapshot has an archive of that name".to_owned()));
        }
        Ok(Reserved { is_over: AtomicBool::new(false), name: parsed, shared: Arc::clone(self) })
    }

    /// Stores a blob, encrypted if there is a key.
    pub(super) async fn put_blob(
        &self,
        place: Key,
        data: Bytes,
        key: Option<&EncryptionKey>,
    ) -> Result<Bytes> {
        if data.len() > MAX_NEW_BLOB_BYTES {
            let error = Error::new(ErrorKind::InvalidInput, "write").on(place);
            return Err(error.because("it is longer than 16 MiB"));
        }
        Counters::add(&self.counters.read, data.len() as u64);
        let blob = self.store.chunks.encode(&data, key).await?;
        let backend = &self.store.backend;
        let version = backend.put(&place, blob.clone(), backend.capabilities().create_mode()).await?;
        Counters::add(&self.counters.written, blob.len() as u64);
        Counters::add(&self.counters.blob_bytes, blob.len() as u64);
        self.state().written.push(Written { key: place, version });
        Ok(blob)
    }

    pub(super) fn state(&self) -> MutexGuard<'_, WriterState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name of an archive that is being written; free again if it is dropped before it is complete.
#[derive(Debug)]
pub(in crate::store) struct Reserved {
    /// `true` if the archive is complete or given up.
    pub(super) is_over: AtomicBool,
    pub(in crate::store) name: ArchiveName,
    pub(in crate::store) shared: Arc<WriterShared>,
}

impl Reserved {
    /// The archive is whole. `size` is that in the manifest.
    pub(super) fn complete(
        self,
        size: u64,
        summary: ArchiveSummary,
        index: Option<FinishedIndex>,
    ) -> Result<ArchiveSummary> {
        let file = ManifestFile::new(self.name.clone(), self.shared.key_use.mode(), size, summary.checksum);
        let file = file.map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "write archive").on(&self.name).because(error)
        })?;
        self.is_over.store(true, Ordering::SeqCst);
        let mut state = self.shared.state();
        state.archives.push(summary.clone());
        state.files.push(file);
        state.indexes.extend(index.map(|index| (self.name.clone(), index)));
        Ok(summary)
    }

    /// Frees the name, unless the archive is complete.
    pub(in crate::store) fn give_up(&self) {
        if !self.is_over.swap(true, Ordering::SeqCst) {
            self.shared.state().taken.remove(&self.name);
        }
    }

    /// The archive is whole: its index is kept until the snapshot is published.
    pub(in crate::store) fn complete_index(
        self,
        index: FinishedIndex,
        base: BaseUse,
    ) -> Result<ArchiveSummary> {
        let summary = ArchiveSummary {
            base,
            checksum: index.checksum,
            chunks: index.chunks as u64,
            name: self.name.clone(),
            size: index.size,
        };
        self.shared
            .events
            .emit(|| ArchiveEvent::ArchiveFinished { archive: self.name.clone(), size: index.size });
        self.complete(index.size, summary, Some(index))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.give_up();
    }
}
