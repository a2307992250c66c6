//! The chunk store. Only this module makes a chunk key to put, touch or delete (H3).
//!
//! # Storing
//! A writer pins the chunk, and then does all of this under the digest lock:
//!
//! | answer of the backend | action |
//! |---|---|
//! | (this writer confirmed the chunk before) | none |
//! | anything but absent, and the chunk is a suspect | read and validate the stored chunk, whatever names it |
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
//! | suspect, missing | a read found the chunk corrupt or missing: the record is forgotten | as unknown, and neither a base nor a length makes the chunk known in this process (D9, H23) until it is stored again or read and found good; the suspect list extends that to later processes |
//!
//! Records are valid only in the lease term in which they were made, and in the next one of the same instance: another owner in
//! between may have removed chunks. So may a program without a lease, at any time; hence the witnesses. **Before it removes chunks, the collector begins a new lease term and forgets their records** (H16,
//! H22), so neither a crash nor an old copy of the directory revives a false record.

pub(crate) mod codecs;
pub(crate) mod digest_locks;
pub(crate) mod encoded;
pub(crate) mod fetch;
pub(crate) mod gc_candidates;
mod in_doubt;
mod listing;
pub(crate) mod moves;
pub(crate) mod pending;
pub(crate) mod pins;
mod presence;
mod put;
pub(crate) mod quarantine;
pub(crate) mod recent_indexes;
mod retire;
mod reuse;
pub(crate) mod shared;
mod suspects;
pub(crate) mod sweep;
pub(crate) mod witnesses;

use std::sync::Arc;

use bytes::Bytes;
use futures::lock::Mutex as AsyncMutex;

use crate::backend::Backend;
use crate::buffers::{Buffer, Buffers, BytesList};
use crate::chunks::codecs::{Codecs, Seal};
use crate::chunks::fetch::{Fetcher, Wanted};
use crate::chunks::gc_candidates::KnownCandidates;
use crate::chunks::moves::MovesInProgress;
use crate::chunks::pins::Pins;
use crate::chunks::recent_indexes::RecentIndexes;
use crate::chunks::shared::SharedState;
use crate::chunks::suspects::KnownSuspectList;
use crate::crypt::{EncryptionKey, NONCE_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::MAX_CHUNK_BYTES;
use crate::local::LocalState;
use crate::packs::PackedBackend;

pub(crate) use encoded::ExistingCheck;
pub(crate) use listing::{listed_chunk, query_of};
pub(crate) use pins::{PinHold, WriterPins};
pub(crate) use quarantine::{Examined, Inspected, QuarantineOutcome, Reinstatement};
pub(crate) use reuse::ReuseSource;
pub(crate) use suspects::SuspectList;
pub(crate) use sweep::{Swept, Unused};

/// The chunks of a store.
#[derive(Debug)]
pub(crate) struct ChunkStore {
    backend: Arc<dyn Backend>,
    fetcher: Arc<Fetcher>,
    /// The packs of a packed store. They have the same chunks as the backend, and know classes.
    packs: Option<PackedBackend>,
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

impl ChunkStore {
    /// The chunks of the store with this identity; `None` for a store that has none yet.
    pub(crate) fn new(
        (backend, uncached): (Arc<dyn Backend>, Arc<dyn Backend>),
        packs: Option<PackedBackend>,
        local: Option<Arc<LocalState>>,
        level: i32,
        kept_bytes: usize,
        identity: Option<&str>,
    ) -> Self {
        let codecs = Codecs::new(level, kept_bytes);
        let fetcher = Fetcher::new(Arc::clone(&backend), codecs, local, packs.clone(), identity);
        Self {
            backend,
            fetcher: Arc::new(fetcher),
            packs,
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
        self.fetcher.binding.bind(identity)
    }

    fn shared(&self) -> &Arc<SharedState> {
        self.fetcher.binding.current()
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
    pub(crate) fn known_candidates(&self) -> &KnownCandidates {
        &self.shared().candidates
    }

    /// The backend without the metadata cache.
    pub(crate) fn uncached_backend(&self) -> &Arc<dyn Backend> {
        &self.uncached
    }

    fn codecs(&self) -> &Arc<Codecs> {
        &self.fetcher.codecs
    }

    /// Reads a chunk of a known plaintext length and checks its digest. Concurrent readers of a chunk share one
    /// fetch (H70). With a key it must be encrypted, without one it must be plain.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or missing; `KeyRequired` if it is encrypted and there is no key; any failure of the backend.
    pub(crate) async fn get(
        &self,
        digest: Digest,
        length: u64,
        cache_policy: CachePolicy,
        key: Option<&EncryptionKey>,
    ) -> Result<BytesList> {
        let length = checked_length(digest, length)?;
        let wanted = Wanted { cache_policy, digest, key: key.cloned(), length };
        Arc::clone(&self.fetcher).join(wanted).await.map_err(|error| lost(error, digest))
    }

    /// Reads a blob that is stored as a file. With a key it must be encrypted, without one it must be plain.
    ///
    /// # Errors
    /// `Corrupt`; `KeyRequired` if it is encrypted and there is no key.
    pub(crate) async fn decode_blob(
        &self,
        blob: Bytes,
        limit: usize,
        key: Option<&EncryptionKey>,
    ) -> Result<Bytes> {
        let (codecs, key) = (Arc::clone(self.codecs()), key.cloned());
        let decode = move || codecs.decode_blob(blob, limit, key.as_ref());
        self.backend.runtime().run_blocking("decode blob", decode).await
    }

    /// Encodes bytes as a blob, encrypted if there is a key.
    pub(crate) async fn encode(&self, plaintext: &Bytes, key: Option<&EncryptionKey>) -> Result<Bytes> {
        self.encode_list(plaintext.clone().into(), key).await
    }

    /// As [`encode`](Self::encode), of plaintext in several buffers.
    async fn encode_list(&self, plaintext: BytesList, key: Option<&EncryptionKey>) -> Result<Bytes> {
        let codecs = Arc::clone(self.codecs());
        let seal = key.map(|key| {
            let mut nonce = [0; NONCE_BYTES];
            self.backend.runtime().fill_random(&mut nonce);
            Seal { key: key.clone(), nonce }
        });
        let encode = move || codecs.encode(plaintext, seal.as_ref());
        self.fetcher.coding.run(self.backend.runtime().as_ref(), "encode blob", encode).await
    }

    /// Buffers for plaintext and encoded chunks.
    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        self.codecs().buffers()
    }

    /// A buffer for plaintext.
    pub(crate) fn buffer(&self, capacity: usize) -> Buffer {
        self.codecs().buffer(capacity)
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
