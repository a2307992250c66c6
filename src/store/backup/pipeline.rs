//! The part that all archives share: from the bytes of a chunk to its entry in an index.
//!
//! ```text
//! read → cut → [digest → known? → encode → store] → index
//! ```
//! The part in brackets runs for several chunks concurrently, its computation on the blocking pool. The digest of a chunk of a stream or a
//! tree is begun while its end is looked for. A slow chunk does not delay the chunks behind it: a finished entry waits for its turn, and its
//! slot is free. Two limits bound the chunks in flight: their number, and the memory budget of the store, from which a chunk takes a permit
//! before it enters.

use std::io;
use std::sync::{Arc, Weak};

use bytes::Bytes;

use crate::buffers::BytesList;
use crate::chunker::is_zero;
use crate::chunks::{Provenance, Stored, WriterPins};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::index::IndexReader;
use crate::format::larder::pack::PackClass;
use crate::format::name::{ArchiveName, SnapshotName};
use crate::rt::semaphore::Permit;
use crate::store::backup::digester::PendingDigest;
use crate::store::backup::session::{BaseUse, Counters, Reserved, WriterShared};
use crate::store::events::ArchiveEvent;
use crate::store::manifests::has_failed_verification;
use crate::store::{SnapshotReader, StoreInner};

/// An archive while it is being written.
#[derive(Debug)]
pub(in crate::store) struct ArchiveTask {
    pub(in crate::store) base: Option<BaseArchive>,
    pub(in crate::store) base_use: BaseUse,
    pub(in crate::store) reserved: Reserved,
    /// The digest of a chunk of zeros of the usual length.
    zeros: Option<(usize, Digest)>,
}

/// Frees the name of a dropped archive, although tasks may still process its chunks.
#[derive(Debug)]
pub(in crate::store) struct GiveUp(Option<Weak<ArchiveTask>>);

impl GiveUp {
    pub(in crate::store) fn of(task: &Arc<ArchiveTask>) -> Self {
        Self(Some(Arc::downgrade(task)))
    }

    /// The archive is about to be completed.
    pub(in crate::store) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for GiveUp {
    fn drop(&mut self) {
        if let Some(task) = self.0.as_ref().and_then(Weak::upgrade) {
            task.reserved.give_up();
        }
    }
}

/// The base that the caller gave an archive.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum BaseChoice<'a> {
    /// A base that is not usable means a full backup. `None` does too.
    IfUsable(Option<&'a SnapshotReader>),
    #[default]
    None,
    /// A base that is not usable is an error.
    Required(&'a SnapshotReader),
}

/// The same archive in the base snapshot, which the guards of the writer keep locked: tasks that store chunks may outlive the writer.
#[derive(Debug)]
pub(in crate::store) struct BaseArchive {
    /// Numbers of entries, in the order of their digests.
    by_digest: Vec<u32>,
    pub(in crate::store) index: IndexReader,
    pub(in crate::store) snapshot: SnapshotName,
}

/// A chunk that was read, with its permit.
#[derive(Debug)]
pub(in crate::store) struct Cut {
    pub(in crate::store) bytes: BytesList,
    /// Its digest, if it was begun while the chunk was read.
    pub(in crate::store) digest: Option<PendingDigest>,
    pub(in crate::store) permit: Permit,
}

/// Data of an index entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) digest: Digest,
    pub(crate) length: u64,
}

impl ArchiveTask {
    /// Full name of the archive.
    pub(in crate::store) fn name(&self) -> &ArchiveName {
        &self.reserved.name
    }

    /// Class of the packs of its chunks.
    fn class(&self) -> PackClass {
        PackClass::of_archive(self.name())
    }

    /// Pins of the backup.
    pub(in crate::store) fn pins(&self) -> &WriterPins {
        &self.reserved.shared.pins
    }

    /// The store that the backup goes to.
    pub(in crate::store) fn store(&self) -> &Arc<StoreInner> {
        &self.reserved.shared.store
    }

    pub(in crate::store) async fn begin(reserved: Reserved, base: BaseChoice<'_>) -> Result<Self> {
        let (base, base_use) = match base {
            BaseChoice::IfUsable(None) | BaseChoice::None => (None, BaseUse::None),
            BaseChoice::IfUsable(Some(base)) => match BaseArchive::open(&reserved, base).await {
                Ok(base) => (Some(base), BaseUse::Used),
                Err(error) => (None, why_unusable(error)?),
            },
            BaseChoice::Required(base) => (Some(BaseArchive::open(&reserved, base).await?), BaseUse::Used),
        };
        Ok(Self { base, base_use, reserved, zeros: None })
    }

    /// Goes on without the base.
    pub(in crate::store) fn give_up_base(&mut self, why: BaseUse) {
        self.base = None;
        self.base_use = why;
    }

    /// Prepares for an image of chunks of this length: chunks of zeros are then recognised without hashing.
    pub(in crate::store) async fn recognise_zeros(&mut self, length: usize) -> Result<()> {
        let digest = self.store().zero_digest(length as u64, self.pins().key.as_ref()).await?;
        self.zeros = Some((length, digest));
        Ok(())
    }

    /// The digest of zeros of the usual length.
    pub(in crate::store) fn zero_digest(&self, length: u64) -> Option<Digest> {
        self.zeros.filter(|(usual, _)| *usual as u64 == length).map(|(_, digest)| digest)
    }

    /// Digests a chunk and makes sure that it is in the store.
    pub(in crate::store) async fn process(&self, cut: Cut) -> Result<Entry> {
        let Cut { bytes, digest, permit } = cut;
        let shared = &self.reserved.shared;
        let length = bytes.len() as u64;
        Counters::add(&shared.counters.read, length);
        let digest = match digest {
            Some(digest) => digest.wait().await?,
            None => self.digest_of(bytes.clone()).await?,
        };
        let known = self.base.as_ref().is_some_and(|base| base.names(&digest));
        let provenance = if known { Provenance::Base } else { Provenance::Unknown };
        let chunks = &shared.store.chunks;
        let stored = chunks.put(&shared.pins, digest, (bytes, self.class()), provenance).await?;
        drop(permit);
        self.count(length, stored);
        Ok(Entry { digest, length })
    }

    async fn digest_of(&self, bytes: BytesList) -> Result<Digest> {
        let (key, zeros) = (self.pins().key.clone(), self.zeros);
        let digest = move || match zeros {
            Some((length, digest)) if length == bytes.len() && bytes.iter().all(is_zero) => Ok(digest),
            _ => Ok(Digest::of_parts(bytes.iter(), key.as_ref())),
        };
        self.store().runtime().run_blocking("digest chunk", digest).await
    }

    fn count(&self, length: u64, stored: Stored) {
        let shared = &self.reserved.shared;
        let (archive, counters) = (&self.reserved.name, &shared.counters);
        if let Stored::Duplicate(size) | Stored::New(size) = stored {
            Counters::add(&counters.sent_bytes, length);
            Counters::add(&counters.sent_stored_bytes, size);
        }
        match stored {
            Stored::Duplicate(_) => Counters::add(&counters.duplicates, 1),
            Stored::Known => Counters::add(&counters.known, 1),
            Stored::New(size) => {
                Counters::add(&counters.new, 1);
                Counters::add(&counters.written, size);
                return shared.events.emit(|| ArchiveEvent::ChunkStored {
                    archive: archive.clone(),
                    size: length,
                    stored: size,
                });
            }
        }
        shared.events.emit(|| ArchiveEvent::ChunkKnown { archive: archive.clone(), size: length });
    }

    /// Reuses chunks of the base without reading them.
    pub(in crate::store) async fn reuse(&self, entries: &[Entry]) -> Result<()> {
        let shared = &self.reserved.shared;
        let digests: Vec<_> = entries.iter().map(|entry| entry.digest).collect();
        shared.store.chunks.reuse(&shared.pins, &digests).await?;
        self.count_reused(entries);
        Ok(())
    }

    pub(in crate::store) fn count_reused(&self, entries: &[Entry]) {
        let shared = &self.reserved.shared;
        for entry in entries {
            Counters::add(&shared.counters.reused, 1);
            shared.events.emit(|| ArchiveEvent::ChunkReused {
                archive: self.reserved.name.clone(),
                size: entry.length,
            });
        }
    }

    /// Makes sure that the store has the chunk of zeros that these entries name. The source was not read for them.
    pub(in crate::store) async fn store_zeros(&self, entries: &[Entry]) -> Result<()> {
        let shared = &self.reserved.shared;
        let Some((first, others)) = entries.split_first() else { return Ok(()) };
        let stored = if shared.pins.is_confirmed(&first.digest) {
            Stored::Known
        } else {
            let length = usize::try_from(first.length).unwrap_or(usize::MAX);
            let _permit = self.permit(length).await;
            let zeros = Bytes::from(vec![0; length]).into();
            shared
                .store
                .chunks
                .put(&shared.pins, first.digest, (zeros, self.class()), Provenance::Unknown)
                .await?
        };
        self.count(first.length, stored);
        for entry in others {
            self.count(entry.length, Stored::Known);
        }
        Ok(())
    }

    /// A permit to work on a chunk of this many bytes. It bounds the plaintext; its encoded form is at most as large.
    pub(in crate::store) async fn permit(&self, bytes: usize) -> Permit {
        self.store().budget.acquire(bytes).await
    }

    /// Random bytes and the time, for the header of an index.
    pub(in crate::store) fn stamp(&self) -> ([u8; 16], i64) {
        let runtime = Arc::clone(self.store().runtime());
        let mut uuid = [0; 16];
        runtime.fill_random(&mut uuid);
        let since = runtime.now().duration_since(std::time::SystemTime::UNIX_EPOCH).unwrap_or_default();
        (uuid, i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
    }

    pub(in crate::store) fn stream_error(&self, error: std::io::Error) -> Error {
        Error::new(ErrorKind::Stream, "read").on(&self.reserved.name).because(error)
    }
}

impl BaseArchive {
    async fn open(reserved: &Reserved, base: &SnapshotReader) -> Result<Self> {
        let index = base_index(base, &reserved.shared, &reserved.name).await?;
        let snapshot = base.name().clone();
        let sort = move || {
            let count = u32::try_from(index.len()).map_err(|_| {
                Error::new(ErrorKind::Unsupported, "use a base").because("it has more than 4 billion chunks")
            })?;
            let mut by_digest: Vec<u32> = (0..count).collect();
            by_digest.sort_unstable_by_key(|number| index.digest(*number as usize));
            Ok(Self { by_digest, index, snapshot })
        };
        reserved.shared.store.runtime().run_blocking("sort a base", sort).await
    }

    /// Returns `true` if the base names the chunk.
    fn names(&self, digest: &Digest) -> bool {
        let found =
            self.by_digest.binary_search_by_key(&Some(*digest), |number| self.index.digest(*number as usize));
        found.is_ok()
    }
}

/// The reason why a base is not usable, from the error of [`base_index`]. Other errors say nothing about the base.
fn why_unusable(error: Error) -> Result<BaseUse> {
    match error.kind() {
        ErrorKind::Conflict => Ok(BaseUse::FailedVerification),
        ErrorKind::Corrupt => Ok(BaseUse::Damaged),
        // A snapshot that is being deleted is locked.
        ErrorKind::Busy | ErrorKind::NotFound => Ok(BaseUse::Missing),
        ErrorKind::KeyRequired => Ok(BaseUse::Encrypted),
        ErrorKind::WrongKey => Ok(BaseUse::OtherKey),
        _ => Err(error),
    }
}

/// Number of bytes that a reader has put into a buffer of `room` bytes. A reader that claims more would add what was in memory before.
pub(crate) fn checked_read(read: usize, room: usize) -> io::Result<usize> {
    let lie =
        || io::Error::new(io::ErrorKind::InvalidData, "the reader claims more bytes than it was asked for");
    if read > room { Err(lie()) } else { Ok(read) }
}

/// Yields to other tasks of the executor.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut yielded, true) {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// Reads the index of the archive that a backup builds on. The base stays locked until the backup ends.
async fn base_index(base: &SnapshotReader, writer: &WriterShared, name: &ArchiveName) -> Result<IndexReader> {
    let lock = base.hold().await?;
    let failed = |kind| Error::new(kind, "build on base").on(base.name());
    if !Arc::ptr_eq(base.store(), &writer.store) {
        return Err(failed(ErrorKind::InvalidInput).because("it belongs to another store"));
    }
    // Read again, because the snapshot may have been found corrupt since it was opened.
    let (manifest, version) = base.store().manifests().read(base.name()).await?;
    if has_failed_verification(&manifest) {
        return Err(failed(ErrorKind::Conflict).because("it failed verification"));
    }
    let file = manifest.file(name);
    let file = file.ok_or_else(|| failed(ErrorKind::NotFound).because(format!("it has no {name}")))?;
    writer.key_use.check_base(&manifest, file).map_err(|error| failed(error.kind()).because(error))?;
    let index = base.store().snapshot_files().index(base.name(), file).await?;
    writer.hold_base(base.name().clone(), version, lock)?;
    Ok(index)
}
