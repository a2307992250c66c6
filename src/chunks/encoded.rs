//! Chunks that come from another store, in the form in which they are stored there.
//!
//! They are neither decoded to be kept nor encoded again. A plain one is checked against its digest before it is stored, an
//! encrypted one against its checksum, which is all that can be said of it without the key (H101). They enter by the gate that all
//! chunks enter by: pinned first, then looked at and stored inside the critical section of the digest.

use bytes::Bytes;

use crate::backend::Touched;
use crate::chunks::pins::WriterPins;
use crate::chunks::{ChunkStore, Look, Offered, Provenance, Stored, checked_length, lost};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::{Blob, BlobKind, MAX_ENCODED_CHUNK_BYTES, MIN_BLOB_BYTES};
use crate::format::layout::Key;

/// How many bytes tell the kind of a blob, whichever it is.
const HEADER_BYTES: u64 = 44;

/// A chunk in its stored form, which was checked.
#[derive(Clone, Debug)]
pub(crate) struct StoredChunk {
    blob: Bytes,
    digest: Digest,
    kind: BlobKind,
    /// Of the plaintext.
    length: usize,
}

impl StoredChunk {
    /// Its length as it is stored, in bytes.
    pub(crate) fn stored_bytes(&self) -> u64 {
        self.blob.len() as u64
    }

    /// Whether a key is needed to read it.
    pub(crate) fn is_encrypted(&self) -> bool {
        self.kind.is_encrypted()
    }
}

/// What says that a chunk is in the store already, beside its being there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReuseSource {
    /// A snapshot of this store names it, and stays locked: where the backend cannot say, that is believed (D9).
    Base,
    /// A snapshot names it of what is the same store by its identity only, which a copy of the whole store shares. It has to be seen.
    Twin,
}

/// How much what is there already is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ExistingCheck {
    /// By its length (D8).
    ByLength,
    /// Not at all: something is wrong with a snapshot that it belongs to. It is read.
    Read,
}

impl ChunkStore {
    /// Reads a chunk of a known plaintext length as it is stored, and checks it. What the local disk has is not fetched.
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or missing; whatever the backend answers.
    pub(crate) async fn get_stored(&self, digest: Digest, length: u64) -> Result<StoredChunk> {
        let length = checked_length(digest, length)?;
        if let Some(chunk) = self.stored_locally(digest, length).await? {
            return Ok(chunk);
        }
        let fetched = self.fetch_stored(digest, length).await;
        if let Err(error) = &fetched
            && matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound)
        {
            self.reader.forget(digest).await;
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

    /// Reads a chunk from the local disk, where only plain ones are kept.
    async fn stored_locally(&self, digest: Digest, length: usize) -> Result<Option<StoredChunk>> {
        let Some(local) = self.reader.local.clone().filter(|local| local.chunks.is_some()) else {
            return Ok(None);
        };
        let codecs = self.codecs().clone();
        let read = move || {
            let Some(cache) = &local.chunks else { return Ok(None) };
            let Some(blob) = cache.get(&digest) else { return Ok(None) };
            let kind = codecs.inspect(blob.clone(), digest, length).ok().filter(|kind| !kind.is_encrypted());
            if kind.is_none() {
                cache.remove_damaged(&digest);
            }
            Ok(kind.map(|kind| StoredChunk { blob, digest, kind, length }))
        };
        self.backend.runtime().run_blocking("read chunk", read).await
    }

    /// Makes sure that a chunk of another store is in this one, and pins it for the writer.
    ///
    /// # Errors
    /// `Conflict` if a plain chunk has the digest of an encrypted one, or both are encrypted and only one of them can be right.
    ///
    /// # Cancel safety
    /// A dropped future leaves the chunk in the store or not, and pinned.
    pub(crate) async fn put_stored(
        &self,
        writer: &WriterPins,
        chunk: StoredChunk,
        belief: ExistingCheck,
    ) -> Result<Stored> {
        let digest = chunk.digest;
        if writer.is_confirmed(&digest) {
            return Ok(Stored::Known);
        }
        let _section = self.shared().digest_locks.enter(digest).await;
        if writer.pin(digest) {
            return Ok(Stored::Known);
        }
        self.is_leaving(writer, digest);
        let is_suspect = belief == ExistingCheck::Read || self.reader.suspects().contains(&digest);
        let is_encrypted = chunk.is_encrypted();
        let present = match self.look(writer, digest, Provenance::Unknown).await? {
            // The records do not say of which kind it is.
            Look::Recorded(size) if !is_encrypted && !is_suspect => {
                writer.confirm(digest);
                return Ok(Stored::Duplicate(size));
            }
            Look::Present(size) | Look::Recorded(size) => Some(size),
            Look::Absent | Look::Known => None,
        };
        let StoredChunk { blob, length, .. } = chunk;
        let offered = Offered { blob, digest, is_encrypted, cache_policy: writer.cache_policy, length };
        let stored = self.settle(offered, present, is_suspect).await?;
        writer.confirm(digest);
        Ok(stored)
    }

    /// Pins a chunk that something says is in the store; whether it certainly is.
    ///
    /// # Errors
    /// Whatever the backend answers.
    ///
    /// # Cancel safety
    /// As [`put_stored`](Self::put_stored).
    pub(crate) async fn take_over(
        &self,
        writer: &WriterPins,
        digest: Digest,
        reference: ReuseSource,
    ) -> Result<bool> {
        if writer.is_confirmed(&digest) {
            return Ok(true);
        }
        let _section = self.shared().digest_locks.enter(digest).await;
        if writer.pin(digest) {
            return Ok(true);
        }
        if self.reader.suspects().contains(&digest) || self.is_leaving(writer, digest) {
            return Ok(false);
        }
        let key = Key::Chunk(digest);
        let least = MIN_BLOB_BYTES as u64;
        let is_there = match self.touch_one(&key).await? {
            Touched::Absent => false,
            Touched::Present(info) => info.size >= least,
            Touched::Unknown if reference == ReuseSource::Base => true,
            Touched::Unknown => match self.backend.head(&key).await {
                Err(error) if error.kind() == ErrorKind::NotFound => false,
                found => found?.size >= least,
            },
        };
        if is_there {
            writer.confirm(digest);
        }
        Ok(is_there)
    }

    /// Whether somebody uses the chunk.
    #[cfg(test)]
    pub(crate) fn is_pinned(&self, digest: &Digest) -> bool {
        self.pins().is_pinned(digest)
    }

    /// Whether what is there may stay when an encrypted chunk is offered, whose contents nobody here can read.
    pub(super) async fn stays_before_encrypted(&self, offered: &Offered, is_alike: bool) -> Result<bool> {
        let (key, digest, length) = (Key::Chunk(offered.digest), offered.digest, offered.length);
        let refused = |why: &'static str| Err(Error::new(ErrorKind::Conflict, "store").on(&key).because(why));
        let read = if is_alike {
            self.backend.get_range(&key, 0..HEADER_BYTES).await
        } else {
            self.backend.get(&key, MAX_ENCODED_CHUNK_BYTES as u64).await
        };
        let found = match read {
            // As long as nobody can be, gone, or shorter than it should be.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Corrupt | ErrorKind::InvalidInput | ErrorKind::NotFound
                ) =>
            {
                return Ok(false);
            }
            found => found?.bytes,
        };
        let Ok(blob) = Blob::parse(found.clone()) else { return Ok(false) };
        if !blob.kind().is_encrypted() {
            return refused("a plain chunk has this digest, and an encrypted one must not take its place");
        }
        if is_alike {
            return Ok(true);
        }
        let codecs = self.codecs().clone();
        let check = move || Ok((blob.check_crc().is_ok(), codecs.inspect(found, digest, length)));
        let (is_whole, inspected) = self.backend.runtime().run_blocking("check chunk", check).await?;
        if is_whole && inspected.is_err() {
            return refused("what is there is encrypted too, and of another length");
        }
        if is_whole {
            self.reader.suspects().remove(&digest);
        }
        Ok(is_whole)
    }
}
