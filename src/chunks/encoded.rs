//! Chunks of another store, in their stored form.
//!
//! They keep their stored bytes. A plain chunk is checked against its digest before it is stored, an
//! encrypted one against its checksum, the only check possible without the key (H101). The order is that of all
//! chunks: pinned first, then looked up and stored under the digest lock.

use bytes::Bytes;

use crate::chunks::pins::WriterPins;
use crate::chunks::put::{Lookup, Upload};
use crate::chunks::{ChunkStore, Provenance, Stored, checked_length, lost};
use crate::error::{ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::{BlobKind, MAX_ENCODED_CHUNK_BYTES};
use crate::format::larder::pack::PackClass;
use crate::format::layout::Key;

/// A checked chunk in its stored form.
#[derive(Clone, Debug)]
pub(crate) struct StoredChunk {
    blob: Bytes,
    digest: Digest,
    kind: BlobKind,
    /// Plaintext length.
    length: usize,
}

impl StoredChunk {
    /// Stored length in bytes.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.blob.len() as u64
    }

    /// Returns `true` if reading it needs a key.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.kind.is_encrypted()
    }
}

/// Check of a stored chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExistingCheck {
    /// Its length (D8).
    ByLength,
    /// Its contents, because a snapshot that names it is damaged.
    Read,
}

impl ChunkStore {
    /// Reads the stored form of a chunk of a known plaintext length, and checks it. Uses a local copy if there is one.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or missing; any failure of the backend.
    pub(crate) async fn get_stored(&self, digest: Digest, length: u64) -> Result<StoredChunk> {
        let length = checked_length(digest, length)?;
        if let Some(chunk) = self.stored_locally(digest, length).await? {
            return Ok(chunk);
        }
        let fetched = self.fetch_stored(digest, length).await;
        if let Err(error) = &fetched
            && matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound)
        {
            self.fetcher.mark_suspect(digest).await;
        }
        fetched.map_err(|error| lost(error, digest))
    }

    async fn fetch_stored(&self, digest: Digest, length: usize) -> Result<StoredChunk> {
        let object = self.backend.get(&Key::Chunk(digest), MAX_ENCODED_CHUNK_BYTES as u64).await?;
        let (codecs, blob) = (self.codecs().clone(), object.bytes.clone());
        let inspect = move || codecs.inspect(blob, digest, length);
        let kind = self.backend.runtime().run_blocking("check chunk", inspect).await?;
        Ok(StoredChunk { blob: object.bytes, digest, kind, length })
    }

    /// Reads a plain chunk from the local disk. An encrypted copy cannot be checked without the key, so the chunk is read from the store.
    async fn stored_locally(&self, digest: Digest, length: usize) -> Result<Option<StoredChunk>> {
        let Some(local) = self.fetcher.local.clone().filter(|local| local.chunks.is_some()) else {
            return Ok(None);
        };
        let codecs = self.codecs().clone();
        let read = move || {
            let Some(cache) = &local.chunks else { return Ok(None) };
            let Some(blob) = cache.get(&digest) else { return Ok(None) };
            match codecs.inspect(blob.clone(), digest, length) {
                Ok(kind) if kind.is_encrypted() => Ok(None),
                Ok(kind) => Ok(Some(StoredChunk { blob, digest, kind, length })),
                Err(_) => {
                    cache.remove_damaged(&digest);
                    Ok(None)
                }
            }
        };
        self.backend.runtime().run_blocking("read chunk", read).await
    }

    /// Makes sure that a chunk of another store is in this one, and pins it for the writer. In a packed store, a new chunk goes to a pack of this
    /// class.
    ///
    /// # Errors
    /// `Conflict` if a plain chunk has the digest of an encrypted one, or two different encrypted chunks have the same digest.
    ///
    /// # Cancel safety
    /// A dropped future leaves the chunk stored or not, and pinned.
    pub(crate) async fn put_stored(
        &self,
        writer: &WriterPins,
        (chunk, class): (StoredChunk, PackClass),
        check: ExistingCheck,
    ) -> Result<Stored> {
        let digest = chunk.digest;
        if writer.is_confirmed(&digest) {
            return Ok(Stored::Known);
        }
        // As in `put`: locked and pinned before the lookup (I2, I3).
        let _digest_lock = self.shared().digest_locks.lock(digest).await;
        if writer.pin(digest) {
            return Ok(Stored::Known);
        }
        self.note_pending_delete(writer, digest);
        let is_suspect = check == ExistingCheck::Read || self.fetcher.suspects().contains(&digest);
        let is_encrypted = chunk.is_encrypted();
        let present = match self.look_up(writer, digest, Provenance::Unknown).await? {
            // The records do not have the kind of the chunk.
            Lookup::Recorded(size) if !is_encrypted && !is_suspect => {
                writer.confirm(digest);
                return Ok(Stored::Duplicate(size));
            }
            Lookup::Present(size) | Lookup::Recorded(size) => Some(size),
            Lookup::Absent | Lookup::Known => None,
        };
        let StoredChunk { blob, length, .. } = chunk;
        let upload = Upload {
            blob,
            class,
            digest,
            is_opaque: is_encrypted,
            cache_policy: writer.cache_policy,
            length,
        };
        let stored = self.store_unless_present(writer, upload, present, is_suspect).await?;
        writer.confirm(digest);
        Ok(stored)
    }

    /// Returns `true` if a writer uses the chunk.
    #[cfg(all(test, feature = "testing"))]
    pub(crate) fn is_pinned(&self, digest: &Digest) -> bool {
        self.pins().is_pinned(digest)
    }
}
