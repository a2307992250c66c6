//! The chunk store. Only this module makes a chunk key to put, touch or delete (H3).
//!
//! # Storing
//! A writer pins the chunk, and then does all of this under the digest lock:
//!
//! | the backend says | action |
//! |---|---|
//! | (this writer confirmed the chunk before) | none |
//! | anything but absent, and the chunk is a suspect | read and validate the stored chunk, whatever vouches for it |
//! | absent | encode, create |
//! | present, named by an explicit base, not empty | touched: known (D9) |
//! | present, with the length of the new chunk | touched: a duplicate (D8) |
//! | present, with another length | read and validate: good → a duplicate, bad → replace (D8, H77) |
//! | unknown, named by an explicit base | known (D9) |
//! | unknown, with a presence record and a [witness](crate::chunks::witnesses) | a duplicate |
//! | unknown, with a presence record only | looked up by name, and as above |
//! | unknown | encode, create; if it exists, as above |
//!
//! A chunk from another store keeps its stored bytes ([`encoded`] has the rest). If it is encrypted, its
//! contents cannot be checked, and the stored object is compared differently:
//!
//! | stored object | action |
//! |---|---|
//! | a plain chunk, of any length | refused: an encrypted one must not replace it (H101) |
//! | an encrypted one of the same length, not suspect | touched: a duplicate |
//! | an encrypted one with a correct checksum | a duplicate; refused if both are uncompressed and differ in length |
//! | anything else | replaced |
//!
//! # Presence
//! In a bucket, presence costs a request. Local state therefore keeps presence records:
//!
//! | state | origin | value |
//! |---|---|---|
//! | present | stored by this process and acknowledged, or found and compared | the chunk is not sent if a [witness](crate::chunks::witnesses) names it or a request finds it |
//! | expected | an index names it | nothing, unless it is an explicit base that stays locked (D9) |
//! | unknown | no record | the chunk is sent; if it exists, it is compared |
//! | suspect, missing | a read found the chunk bad or gone: the record is forgotten | as unknown, and this process believes neither a base nor a length (D9, H23) until the chunk was stored or read again; what a verification found, later processes do not believe either |
//!
//! Records are valid only in the lease term in which they were made, and in the next one of the same instance: another owner in
//! between may have removed chunks. So may a program without a lease, at any time; hence the witnesses. **Before it removes chunks, the collector begins a new lease term and forgets their records** (H16,
//! H22), so neither a crash nor an old copy of the directory revives a false record.

pub(crate) mod codecs;
pub(crate) mod digest_locks;
pub(crate) mod encoded;
pub(crate) mod fetch;
mod listing;
pub(crate) mod moves;
pub(crate) mod pending;
pub(crate) mod pins;
mod presence;
pub(crate) mod quarantine;
pub(crate) mod recent_indexes;
pub(crate) mod reuse;
pub(crate) mod shared;
mod suspects;
pub(crate) mod sweep;
pub(crate) mod witnesses;

use std::sync::Arc;

use bytes::Bytes;
use futures::lock::Mutex as AsyncMutex;

use crate::backend::{Backend, PutMode, Touched};
use crate::buffers::Buffer;
use crate::chunks::codecs::Codecs;
use crate::chunks::fetch::ChunkReader;
use crate::chunks::moves::MovesInProgress;
use crate::chunks::pins::Pins;
use crate::chunks::recent_indexes::RecentIndexes;
use crate::chunks::reuse::KnownCandidates;
use crate::chunks::shared::SharedState;
use crate::chunks::suspects::KnownSuspectList;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::{MAX_CHUNK_BYTES, MIN_BLOB_BYTES};
use crate::format::layout::Key;
use crate::local::LocalState;

pub(crate) use encoded::{ExistingCheck, ReuseSource};
pub(crate) use listing::{listed_chunk, query_of};
pub(crate) use pins::{PinHold, WriterPins};
pub(crate) use quarantine::{Examined, Inspected, QuarantineOutcome};
pub(crate) use suspects::SuspectList;
pub(crate) use sweep::{Swept, Unused};

/// The chunks of a store.
#[derive(Debug)]
pub(crate) struct ChunkStore {
    backend: Arc<dyn Backend>,
    reader: Arc<ChunkReader>,
    /// Epoch of the lease term in which chunks may be quarantined.
    repairs: AsyncMutex<Option<u64>>,
    suspect_list: KnownSuspectList,
    uncached: Arc<dyn Backend>,
}

/// Local caching of chunks that are fetched or stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CachePolicy {
    Populate,
    Bypass,
}

/// Provenance of a chunk that a writer needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Provenance {
    /// The base of the backup names it.
    Base,
    /// No provenance.
    Unknown,
}

/// Outcome of storing a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// The store had it, in an object of this many bytes.
    Duplicate(u64),
    /// The base named it, or this writer stored it before.
    Known,
    /// New, in an object of this many bytes.
    New(u64),
}

/// Presence of a chunk, as far as known.
enum Look {
    /// No evidence that it exists.
    Absent,
    /// The base vouches for it.
    Known,
    /// It exists, in an object of this many bytes.
    Present(u64),
    /// A presence record says that it exists.
    Recorded(u64),
}

/// A checked chunk in its stored form, to be stored.
struct Offered {
    blob: Bytes,
    digest: Digest,
    is_encrypted: bool,
    cache_policy: CachePolicy,
    /// Plaintext length.
    length: usize,
}

impl ChunkStore {
    /// The chunks of the store with this identity; `None` for a store that has none yet.
    pub(crate) fn new(
        (backend, uncached): (Arc<dyn Backend>, Arc<dyn Backend>),
        local: Option<Arc<LocalState>>,
        level: i32,
        kept_bytes: usize,
        identity: Option<&str>,
    ) -> Self {
        let codecs = Codecs::new(level, kept_bytes);
        let reader = ChunkReader::new(Arc::clone(&backend), codecs, local, identity);
        Self {
            backend,
            reader: Arc::new(reader),
            repairs: AsyncMutex::default(),
            suspect_list: KnownSuspectList::default(),
            uncached,
        }
    }

    /// Shares the chunk state with all handles of the store with this identity. Called when an open store gets its identity, before the
    /// identity is visible to other tasks.
    ///
    /// # Errors
    /// `Internal` if chunks were in use before.
    pub(crate) fn bind(&self, identity: &str) -> Result<()> {
        self.reader.binding.bind(identity)
    }

    fn shared(&self) -> &Arc<SharedState> {
        self.reader.binding.current()
    }

    /// The pins of all writers of the store.
    pub(crate) fn pins(&self) -> &Arc<Pins> {
        &self.shared().pins
    }

    /// Moves in progress within the store.
    pub(crate) fn moves_in_progress(&self) -> &Arc<MovesInProgress> {
        &self.shared().moves_in_progress
    }

    /// Recently stored indexes, of all handles of the store.
    pub(crate) fn published(&self) -> &RecentIndexes {
        &self.shared().published
    }

    /// The list of GC candidates, as far as this process knows it.
    pub(crate) fn known_sightings(&self) -> &KnownCandidates {
        &self.shared().sightings
    }

    /// The backend without the metadata cache.
    pub(crate) fn uncached_backend(&self) -> &Arc<dyn Backend> {
        &self.uncached
    }

    fn codecs(&self) -> &Arc<Codecs> {
        &self.reader.codecs
    }

    /// Makes sure that the chunk is in the store, and pins it for the writer.
    ///
    /// # Cancel safety
    /// A dropped future leaves the chunk stored or not, and pinned.
    pub(crate) async fn put(
        &self,
        writer: &WriterPins,
        digest: Digest,
        plaintext: &Bytes,
        provenance: Provenance,
    ) -> Result<Stored> {
        if writer.is_confirmed(&digest) {
            return Ok(Stored::Known);
        }
        let _section = self.shared().digest_locks.enter(digest).await;
        if writer.pin(digest) {
            return Ok(Stored::Known);
        }
        let provenance = if self.is_leaving(writer, digest) { Provenance::Unknown } else { provenance };
        let stored = self.put_pinned(writer, digest, plaintext, provenance).await?;
        writer.confirm(digest);
        Ok(stored)
    }

    async fn put_pinned(
        &self,
        writer: &WriterPins,
        digest: Digest,
        plaintext: &Bytes,
        provenance: Provenance,
    ) -> Result<Stored> {
        let is_suspect = self.reader.suspects().contains(&digest);
        let provenance = if is_suspect { Provenance::Unknown } else { provenance };
        let present = match self.look(writer, digest, provenance).await? {
            Look::Known => return Ok(Stored::Known),
            Look::Recorded(size) if !is_suspect => return Ok(Stored::Duplicate(size)),
            Look::Absent => None,
            Look::Present(size) | Look::Recorded(size) => Some(size),
        };
        let blob = self.encode(plaintext).await?;
        let (cache_policy, length) = (writer.cache_policy, plaintext.len());
        let offered = Offered { blob, digest, is_encrypted: false, cache_policy, length };
        self.settle(offered, present, is_suspect).await
    }

    /// Presence of a chunk: without a request, unless only a presence record speaks for it.
    async fn look(&self, writer: &WriterPins, digest: Digest, provenance: Provenance) -> Result<Look> {
        Ok(match self.touch_one(&Key::Chunk(digest)).await? {
            Touched::Present(info)
                if provenance == Provenance::Base && info.size >= MIN_BLOB_BYTES as u64 =>
            {
                Look::Known
            }
            Touched::Present(info) => Look::Present(info.size),
            Touched::Unknown if provenance == Provenance::Base => Look::Known,
            Touched::Unknown => match self.recorded(digest).await? {
                Some(size) if self.is_witnessed(writer, &digest).await? => Look::Recorded(size),
                Some(_) => self.look_for(digest).await?,
                None => Look::Absent,
            },
            Touched::Absent => Look::Absent,
        })
    }

    /// Returns `true` if evidence beside a presence record says that the chunk exists.
    async fn is_witnessed(&self, writer: &WriterPins, digest: &Digest) -> Result<bool> {
        Ok(self.pins().is_confirmed(digest) || writer.witnesses.name(digest).await?)
    }

    /// Looks up a chunk with a presence record. The record of a missing chunk stays, because the chunk is about to be stored.
    async fn look_for(&self, digest: Digest) -> Result<Look> {
        match self.backend.head(&Key::Chunk(digest)).await {
            Ok(info) => Ok(Look::Present(info.size)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Look::Absent),
            Err(error) => Err(error),
        }
    }

    /// Stores a chunk, unless the stored one may stay. `present` is the length of the stored one, as far as known.
    async fn settle(&self, offered: Offered, present: Option<u64>, is_suspect: bool) -> Result<Stored> {
        let (key, size) = (Key::Chunk(offered.digest), offered.blob.len() as u64);
        let present = match present {
            Some(present) => present,
            None => match self
                .backend
                .put(&key, offered.blob.clone(), self.backend.capabilities().create_mode())
                .await
            {
                Ok(_) => {
                    self.reader.suspects().remove(&offered.digest);
                    self.record(offered.digest, size).await;
                    if offered.cache_policy == CachePolicy::Populate {
                        self.reader.keep(offered.digest, offered.blob).await;
                    }
                    return Ok(Stored::New(size));
                }
                // Another writer was faster, or the backend did not know: 412 is verified, not trusted (H24).
                Err(error) if error.kind() == ErrorKind::AlreadyExists => self.backend.head(&key).await?.size,
                Err(error) => return Err(error),
            },
        };
        let is_alike = present == size && !is_suspect;
        let stays = if offered.is_encrypted {
            self.stays_before_encrypted(&offered, is_alike).await?
        } else {
            is_alike || self.is_good(offered.digest, offered.length).await?
        };
        if stays {
            self.record(offered.digest, present).await;
            return Ok(Stored::Duplicate(present));
        }
        self.backend.put(&key, offered.blob, PutMode::Replace).await?;
        self.reader.suspects().remove(&offered.digest);
        self.record(offered.digest, size).await;
        Ok(Stored::New(size))
    }

    /// Returns `true` if a pending delete may remove the chunk; its writer then checks it before it publishes.
    fn is_leaving(&self, writer: &WriterPins, digest: Digest) -> bool {
        let leaving = self.shared().unsettled_for(&digest, self.backend.runtime().monotonic()).is_some();
        if leaving {
            writer.note_unsettled(digest);
        }
        leaving
    }

    /// Waits until no pending delete can remove a chunk of this writer, and makes sure that all exist (H17). Usually
    /// there is nothing to wait for; otherwise it may take half an hour.
    ///
    /// # Errors
    /// `Conflict` if a chunk was deleted: the backup has to be repeated.
    pub(crate) async fn await_settled(&self, writer: &WriterPins) -> Result<()> {
        let (runtime, unsettled) = (self.backend.runtime(), writer.unsettled());
        if unsettled.is_empty() {
            return Ok(());
        }
        let left = |digest| self.shared().unsettled_for(digest, runtime.monotonic());
        while let Some(left) = unsettled.iter().filter_map(left).max() {
            runtime.sleep(left).await;
        }
        let keys: Vec<_> = unsettled.iter().copied().map(Key::Chunk).collect();
        let mut lost = None;
        for (digest, found) in unsettled.iter().zip(self.backend.head_many(&keys).await?) {
            match found {
                Ok(_) => writer.settle(digest),
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    // Other users of the pins have to store it again.
                    writer.distrust(*digest);
                    self.reader.forget(*digest).await;
                    lost = Some(*digest);
                }
                Err(error) => return Err(error),
            }
        }
        match lost {
            None => Ok(()),
            Some(digest) => {
                let error = Error::new(ErrorKind::Conflict, "store chunk").on(digest);
                Err(error.because("it was removed after it was stored"))
            }
        }
    }

    /// Opens the presence records of the store with this identity, if there is local state and this process alone may change
    /// the store.
    pub(crate) async fn open_presence(&self, identity: &str) -> Result<()> {
        let Some(lease_term) = self.backend.lease_term() else { return Ok(()) };
        self.reader.presence.open(identity, lease_term.epoch, lease_term.continues).await
    }

    async fn recorded(&self, digest: Digest) -> Result<Option<u64>> {
        let Some(presence) = self.reader.presence.records() else { return Ok(None) };
        let look = move || Ok(presence.get(&digest).map(u64::from));
        self.backend.runtime().run_blocking("look up chunk", look).await
    }

    /// Records that the store has the chunk. Without the record, a later backup sends it again.
    async fn record(&self, digest: Digest, size: u64) {
        let (Some(presence), Ok(size)) = (self.reader.presence.records(), u32::try_from(size)) else {
            return;
        };
        let record = move || Ok(presence.set(digest, size));
        let _ = self.backend.runtime().run_blocking("record chunk", record).await;
    }

    /// Pins chunks that a base names and the writer has not read, and makes sure that they are in the store.
    ///
    /// # Errors
    /// `Corrupt` if one of them is missing or corrupt: the base is damaged.
    pub(crate) async fn reuse(&self, writer: &WriterPins, digests: &[Digest]) -> Result<()> {
        let mut wanted = digests.to_vec();
        // In order, so that two writers that need the same chunks do not deadlock.
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|digest| !writer.is_confirmed(digest));
        let mut digest_locks = Vec::with_capacity(wanted.len());
        for digest in &wanted {
            digest_locks.push(self.shared().digest_locks.enter(*digest).await);
        }
        wanted.retain(|digest| !writer.pin(*digest));
        let keys: Vec<Key> = wanted.iter().copied().map(Key::Chunk).collect();
        for digest in &wanted {
            self.is_leaving(writer, *digest);
        }
        for (digest, touched) in wanted.into_iter().zip(self.backend.touch(&keys).await?) {
            let is_suspect = self.reader.suspects().contains(&digest);
            match touched {
                _ if is_suspect => {
                    let error = Error::new(ErrorKind::Corrupt, "reuse chunk").on(digest);
                    return Err(error.because("the base names it, but it was found bad or gone"));
                }
                Touched::Present(info) if info.size >= MIN_BLOB_BYTES as u64 => {}
                Touched::Unknown => {}
                _ => {
                    return Err(Error::new(ErrorKind::Corrupt, "reuse chunk")
                        .on(digest)
                        .because("the base names it, but it is missing or empty"));
                }
            }
            writer.confirm(digest);
        }
        Ok(())
    }

    /// Reads a chunk of a known plaintext length and checks its digest. Concurrent readers of a chunk share one
    /// fetch (H70).
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or missing; any failure of the backend.
    pub(crate) async fn get(&self, digest: Digest, length: u64, cache_policy: CachePolicy) -> Result<Bytes> {
        let length = checked_length(digest, length)?;
        Arc::clone(&self.reader)
            .join((digest, length, cache_policy))
            .await
            .map_err(|error| lost(error, digest))
    }

    /// Reads a blob that is stored as a file.
    pub(crate) async fn decode_blob(&self, blob: Bytes, limit: usize) -> Result<Bytes> {
        let codecs = Arc::clone(self.codecs());
        let decode = move || codecs.decode_blob(blob, limit);
        self.backend.runtime().run_blocking("decode blob", decode).await
    }

    /// Encodes bytes as a blob.
    pub(crate) async fn encode(&self, plaintext: &Bytes) -> Result<Bytes> {
        let (codecs, plaintext) = (Arc::clone(self.codecs()), plaintext.clone());
        let encode = move || codecs.encode(&plaintext);
        self.backend.runtime().run_blocking("encode blob", encode).await
    }

    /// A buffer for plaintext.
    pub(crate) fn buffer(&self, capacity: usize) -> Buffer {
        self.codecs().buffer(capacity)
    }

    async fn touch_one(&self, key: &Key) -> Result<Touched> {
        let touched = self.backend.touch(std::slice::from_ref(key)).await?;
        touched.into_iter().next().ok_or_else(|| Error::new(ErrorKind::Internal, "touch").on(key))
    }

    /// Returns `true` if the stored object under the digest is correct.
    async fn is_good(&self, digest: Digest, length: usize) -> Result<bool> {
        match self.reader.fetch(digest, length).await {
            Ok(_) => Ok(true),
            // The new chunk is plain, so an encrypted one under its digest is wrong.
            Err(error) => match error.kind() {
                ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported => Ok(false),
                _ => Err(error),
            },
        }
    }
}

/// The length of a chunk, if it is within the limit.
fn checked_length(digest: Digest, length: u64) -> Result<usize> {
    let length = usize::try_from(length).ok().filter(|length| *length <= MAX_CHUNK_BYTES);
    length.ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, "read chunk").on(digest).because("it is longer than a chunk may be")
    })
}

/// Turns `NotFound` for a chunk in an index into `Corrupt`: `NotFound` is for names that callers give.
fn lost(error: Error, digest: Digest) -> Error {
    match error.kind() {
        ErrorKind::NotFound => Error::new(ErrorKind::Corrupt, "read chunk").on(digest).because(error),
        _ => error,
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests;
