//! Storing a chunk, and the check of one that exists already. [`crate::chunks`] has the tables.

use bytes::Bytes;

use crate::backend::{PutMode, Touched, Version};
use crate::buffers::BytesList;
use crate::chunks::pins::WriterPins;
use crate::chunks::{CachePolicy, ChunkStore, Provenance, Stored};
use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::{Blob, MAX_ENCODED_CHUNK_BYTES, MIN_BLOB_BYTES};
use crate::format::larder::pack::PackClass;
use crate::format::layout::Key;

/// Bytes that identify the kind of any blob.
const HEADER_BYTES: u64 = 44;

/// Result of the search for an existing chunk.
pub(super) enum Lookup {
    /// No evidence that it exists.
    Absent,
    /// The base names it.
    Known,
    /// It exists, in an object of this many bytes.
    Present(u64),
    /// A presence record and a witness say that it exists.
    Recorded(u64),
}

/// A checked chunk in its stored form, to be stored.
pub(super) struct Upload {
    pub(super) blob: Bytes,
    pub(super) class: PackClass,
    pub(super) digest: Digest,
    /// Encrypted with a key that the writer does not have.
    pub(super) is_opaque: bool,
    pub(super) cache_policy: CachePolicy,
    /// Plaintext length.
    pub(super) length: usize,
}

impl ChunkStore {
    /// Makes sure that the chunk is in the store, and pins it for the writer. In a packed store, a new chunk goes to a pack of this class.
    ///
    /// # Cancel safety
    /// A dropped future leaves the chunk stored or not, and pinned.
    pub(crate) async fn put(
        &self,
        writer: &WriterPins,
        digest: Digest,
        (plaintext, class): (BytesList, PackClass),
        provenance: Provenance,
    ) -> Result<Stored> {
        if writer.is_confirmed(&digest) {
            return Ok(Stored::Known);
        }
        // Held until the answer is confirmed: a sweep skips a locked digest, so the chunk cannot go between the lookup and the pin (I3).
        let _digest_lock = self.shared().digest_locks.lock(digest).await;
        // Before the lookup: from here on no sweep of this process removes the chunk, whatever the lookup finds (I2, H1, H2).
        if !mutated!("put-pins-nothing") && writer.pin(digest) {
            return Ok(Stored::Known);
        }
        // A late delete may still remove an existing chunk, so a base proves nothing, and the writer looks the chunk up before it publishes (H17).
        let provenance =
            if self.note_pending_delete(writer, digest) { Provenance::Unknown } else { provenance };
        mutated!("put-confirms-before-the-answer" => writer.confirm(digest));
        let stored = self.put_pinned(writer, digest, (plaintext, class), provenance).await?;
        // Only after the backend answered: a chunk whose put failed stays pinned, because it may be stored yet, but it is not known.
        writer.confirm(digest);
        Ok(stored)
    }

    async fn put_pinned(
        &self,
        writer: &WriterPins,
        digest: Digest,
        (plaintext, class): (BytesList, PackClass),
        provenance: Provenance,
    ) -> Result<Stored> {
        // Under the digest lock, so quarantine cannot make it a suspect between this check and the answer. A suspect is known from nothing
        // but its contents (H99).
        let is_suspect = self.fetcher.suspects().contains(&digest) && !mutated!("put-believes-suspects");
        let provenance = if is_suspect { Provenance::Unknown } else { provenance };
        let present = match self.look_up(writer, digest, provenance).await? {
            Lookup::Known => return Ok(Stored::Known),
            Lookup::Recorded(size) if !is_suspect => return Ok(Stored::Duplicate(size)),
            Lookup::Absent => None,
            Lookup::Present(size) | Lookup::Recorded(size) => Some(size),
        };
        let (cache_policy, length) = (writer.cache_policy, plaintext.len());
        let blob = self.encode_list(plaintext, writer.key.as_ref()).await?;
        let upload = Upload { blob, class, digest, is_opaque: false, cache_policy, length };
        self.store_unless_present(writer, upload, present, is_suspect).await
    }

    /// Looks for an existing chunk, without a request unless a presence record is the only evidence.
    pub(super) async fn look_up(
        &self,
        writer: &WriterPins,
        digest: Digest,
        provenance: Provenance,
    ) -> Result<Lookup> {
        Ok(match self.touch_one(&Key::Chunk(digest)).await? {
            Touched::Present(info)
                if provenance == Provenance::Base && info.size >= MIN_BLOB_BYTES as u64 =>
            {
                Lookup::Known
            }
            Touched::Present(info) => Lookup::Present(info.size),
            // The base stays locked until the snapshot is published, so every collector marks its chunks (D9).
            Touched::Unknown if provenance == Provenance::Base => Lookup::Known,
            Touched::Unknown => match self.recorded(digest).await? {
                // A program without a lease may have removed a recorded chunk; one that a current snapshot or writer names was not removed.
                Some(size) if self.is_witnessed(writer, &digest).await? => Lookup::Recorded(size),
                Some(_) => self.request_presence(digest).await?,
                None => Lookup::Absent,
            },
            Touched::Absent => Lookup::Absent,
        })
    }

    /// Returns `true` if a writer or a current snapshot names the chunk of a presence record.
    async fn is_witnessed(&self, writer: &WriterPins, digest: &Digest) -> Result<bool> {
        mutated!("put-record-needs-no-witness" => return Ok(true));
        Ok(self.pins().is_confirmed(digest) || writer.witnesses.name(digest).await?)
    }

    /// Looks up a chunk with a presence record. The record of a missing chunk stays, because the chunk is about to be stored.
    async fn request_presence(&self, digest: Digest) -> Result<Lookup> {
        match self.backend.head(&Key::Chunk(digest)).await {
            Ok(info) => Ok(Lookup::Present(info.size)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Lookup::Absent),
            Err(error) => Err(error),
        }
    }

    /// Stores a chunk unless an existing one passes the check. `present` is the length of the existing object, if it is known to exist.
    pub(super) async fn store_unless_present(
        &self,
        writer: &WriterPins,
        upload: Upload,
        present: Option<u64>,
        is_suspect: bool,
    ) -> Result<Stored> {
        let (key, size) = (Key::Chunk(upload.digest), upload.blob.len() as u64);
        let present = match present {
            Some(present) => present,
            None => match self.put_object(&upload, self.backend.capabilities().create_mode()).await {
                Ok(_) => {
                    // After the put: until then the stored object, if any, is the suspect one.
                    self.fetcher.suspects().remove(&upload.digest);
                    self.record(upload.digest, size).await;
                    if upload.cache_policy == CachePolicy::Populate {
                        self.fetcher.keep(upload.digest, upload.blob).await;
                    }
                    return Ok(Stored::New(size));
                }
                // Another writer was faster, or the backend did not know: 412 is verified, not trusted (H24).
                Err(error) if error.kind() == ErrorKind::AlreadyExists => self.backend.head(&key).await?.size,
                Err(error) => return Err(error),
            },
        };
        // An interrupted upload is shorter, and equal length is the check that PBS makes too (D8). It does not clear a suspect.
        let matches_by_length =
            present == size && !is_suspect || mutated!("put-existing-chunk-is-not-compared");
        let stays = if upload.is_opaque {
            self.stays_before_opaque(&upload, matches_by_length).await?
        } else {
            matches_by_length || self.is_good(upload.digest, upload.length, writer.key.as_ref()).await?
        };
        if stays {
            self.record(upload.digest, present).await;
            return Ok(Stored::Duplicate(present));
        }
        // The stored object was read and is bad, so no snapshot loses anything. The digest lock keeps other writers of this process away;
        // those of others would store the same contents.
        self.put_object(&upload, PutMode::Replace).await?;
        self.fetcher.suspects().remove(&upload.digest);
        self.record(upload.digest, size).await;
        Ok(Stored::New(size))
    }

    /// Stores the chunk as an object of its own, or in a pack of its class.
    async fn put_object(&self, upload: &Upload, mode: PutMode) -> Result<Version> {
        let Upload { blob, class, digest, .. } = upload;
        match &self.packs {
            Some(packs) => packs.put_chunk(*digest, *class, blob, &mode).await,
            None => self.backend.put(&Key::Chunk(*digest), blob.clone(), mode).await,
        }
    }

    pub(super) async fn touch_one(&self, key: &Key) -> Result<Touched> {
        let touched = self.backend.touch(std::slice::from_ref(key)).await?;
        touched.into_iter().next().ok_or_else(|| Error::new(ErrorKind::Internal, "touch").on(key))
    }

    /// Returns `true` if the stored object under the digest is correct: with a key encrypted by it, and plain without one.
    async fn is_good(&self, digest: Digest, length: usize, key: Option<&EncryptionKey>) -> Result<bool> {
        let Err(error) = self.fetcher.fetch(digest, length, key).await else { return Ok(true) };
        match error.kind() {
            // Without a key, an encrypted chunk under the digest of a plain one is wrong. The reverse: no digest with a key is that of a plain chunk,
            // so a plain one is wrong too, unless SHA-256 is broken.
            ErrorKind::Corrupt | ErrorKind::KeyRequired | ErrorKind::NotFound => Ok(false),
            _ => Err(error),
        }
    }

    /// Returns `true` if the stored chunk may stay instead of an encrypted one, whose contents cannot be read here.
    async fn stays_before_opaque(&self, upload: &Upload, matches_by_length: bool) -> Result<bool> {
        let (key, digest, length) = (Key::Chunk(upload.digest), upload.digest, upload.length);
        let refused = |why: &'static str| Err(Error::new(ErrorKind::Conflict, "store").on(&key).because(why));
        let read = if matches_by_length {
            self.backend.get_range(&key, 0..HEADER_BYTES).await
        } else {
            self.backend.get(&key, MAX_ENCODED_CHUNK_BYTES as u64).await
        };
        let found = match read {
            // Longer than any chunk may be, missing, or truncated.
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
        if !blob.kind().is_encrypted() && !mutated!("put-encrypted-chunk-over-a-plain-one") {
            // A plain chunk is readable without a key. Replacing it would make it unreadable for the snapshots that name it (H101).
            return refused("a plain chunk has this digest, and an encrypted one must not take its place");
        }
        if matches_by_length {
            return Ok(true);
        }
        let codecs = self.codecs().clone();
        let check = move || Ok((blob.check_crc().is_ok(), codecs.inspect(found, digest, length)));
        let (is_whole, inspected) = self.backend.runtime().run_blocking("check chunk", check).await?;
        if is_whole && inspected.is_err() {
            return refused("the existing chunk is encrypted too, and has another length");
        }
        // A suspect stays one: the checksum does not show that it is authentic.
        Ok(is_whole)
    }
}
