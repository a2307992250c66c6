//! Encoding and decoding of chunks and blobs.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::buffers::{Buffer, Buffers, BytesList};
use crate::crypt::{EncryptionKey, NONCE_BYTES};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::{
    Blob, BlobDecoder, BlobEncoder, BlobKind, DecodeError, MAX_CHUNK_BYTES, MAX_ENCODED_CHUNK_BYTES,
    PlaintextSize,
};
use crate::format::digest::ChunkHasher;

/// Maximum number of bytes that encoding adds to a chunk.
const ROOM_BYTES: usize = MAX_ENCODED_CHUNK_BYTES - MAX_CHUNK_BYTES;

/// Bytes of a buffer for a part of a decoded chunk.
pub(super) const PART_BYTES: usize = 1 << 20;

/// Key and nonce of a blob that is about to be encrypted.
#[derive(Debug)]
pub(crate) struct Seal {
    pub(crate) key: EncryptionKey,
    pub(crate) nonce: [u8; NONCE_BYTES],
}

/// Result of a check of a stored chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Examined {
    /// Encrypted, and authentic: tag, digest and length match under the key.
    Authentic,
    /// Encrypted, with a correct checksum. Without the key nothing more can be checked (H100).
    Checksum,
    /// Plain, and the contents have the digest and the length.
    Digest,
    /// The contents have the digest, and another length than expected.
    OtherLength,
}

impl Examined {
    /// Returns `true` if the check is strong enough to trust a suspect again. The checksum of an encrypted chunk is not.
    pub(crate) fn clears_suspicion(self) -> bool {
        self != Self::Checksum || mutated!("checksum-clears-suspicion")
    }
}

/// Codec contexts and buffers, which are reused.
#[derive(Debug)]
pub(crate) struct Codecs {
    buffers: Arc<Buffers>,
    decoders: Mutex<Vec<BlobDecoder>>,
    encoders: Mutex<Vec<BlobEncoder>>,
    level: i32,
}

impl Codecs {
    pub(crate) fn new(level: i32, buffer_bytes: usize) -> Arc<Self> {
        let buffers = Buffers::within(buffer_bytes);
        Arc::new(Self { buffers, decoders: Mutex::default(), encoders: Mutex::default(), level })
    }

    pub(crate) fn buffers(&self) -> &Arc<Buffers> {
        &self.buffers
    }

    /// A buffer for plaintext.
    pub(crate) fn buffer(&self, capacity: usize) -> Buffer {
        self.buffers.take(capacity + ROOM_BYTES)
    }

    /// Decodes a blob of at most this many bytes. With a key it must be encrypted, without one it must be plain.
    pub(crate) fn decode_blob(
        &self,
        blob: Bytes,
        limit: usize,
        key: Option<&EncryptionKey>,
    ) -> Result<Bytes> {
        let mut decoder = self.decoder();
        let decoded = Blob::parse(blob).and_then(|blob| decode_any(&mut decoder, &blob, limit, key));
        self.keep_decoder(decoder);
        decoded.map_err(|error| decode_error(error, "decode blob"))
    }

    /// Encodes bytes as a blob.
    pub(crate) fn encode(&self, plaintext: BytesList, seal: Option<&Seal>) -> Result<Bytes> {
        // zstd compresses what lies in one buffer, and a copy costs much less than its streams.
        let plaintext = plaintext.into_bytes(&self.buffers, ROOM_BYTES);
        let kept = self.encoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut encoder = match kept {
            Some(encoder) => encoder,
            None => BlobEncoder::new(self.level)
                .map_err(|error| Error::new(ErrorKind::InvalidInput, "encode blob").because(error))?,
        };
        let mut encoded = self.buffers.take(plaintext.len() + ROOM_BYTES);
        let result = match seal {
            Some(Seal { key, nonce }) => encoder.encode_encrypted(&plaintext, key, nonce, &mut encoded),
            None => encoder.encode(&plaintext, &mut encoded),
        };
        self.encoders.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
        result.map_err(|error| Error::new(ErrorKind::InvalidInput, "encode blob").because(error))?;
        Ok(encoded.freeze())
    }

    /// Decodes a chunk of a known length, and checks it against its digest. With a key it must be encrypted, without one it must be plain (H101).
    pub(crate) fn decode(
        &self,
        encoded: Bytes,
        digest: Digest,
        length: usize,
        key: Option<&EncryptionKey>,
    ) -> Result<Bytes> {
        let mut decoder = self.decoder();
        let decoded =
            Blob::parse(encoded).and_then(|blob| self.decode_parsed(&mut decoder, &blob, length, key));
        self.keep_decoder(decoder);
        let plaintext = decoded.map_err(|error| decode_error(error, "decode chunk").on(digest))?;
        if is_wanted(Digest::of_chunk(&plaintext, key), digest) {
            return Ok(plaintext);
        }
        Err(other_digest(digest, "decode chunk"))
    }

    /// As [`decode`](Self::decode), in buffers of [`PART_BYTES`] if it is longer: they fit all chunks, so the pool has few of them.
    pub(crate) fn decode_list(
        &self,
        encoded: &Bytes,
        digest: Digest,
        length: usize,
        key: Option<&EncryptionKey>,
    ) -> Result<BytesList> {
        if length > PART_BYTES
            && let Some(list) = self.list_if_good(encoded.clone(), digest, length, key)
        {
            return Ok(list);
        }
        // A short one, or bad, or from an encoder with larger windows.
        self.decode(encoded.clone(), digest, length, key).map(BytesList::from)
    }

    /// The contents of a chunk if they have the digest and the length.
    fn list_if_good(
        &self,
        encoded: Bytes,
        digest: Digest,
        length: usize,
        key: Option<&EncryptionKey>,
    ) -> Option<BytesList> {
        let blob = Blob::parse(encoded).ok()?;
        let (mut decoder, mut hasher) = (self.decoder(), ChunkHasher::default());
        let mut list = BytesList::default();
        let mut open = self.part();
        let decoded = decoder.decode_parts(&blob, key, length, |mut part| {
            hasher.update(part);
            while !part.is_empty() {
                let (now, later) = part.split_at(part.len().min(PART_BYTES - open.len()));
                open.extend_from_slice(now);
                part = later;
                if open.len() == PART_BYTES {
                    list.push(std::mem::replace(&mut open, self.part()).freeze());
                }
            }
        });
        self.keep_decoder(decoder);
        list.push(open.freeze());
        (decoded == Ok(length) && is_wanted(hasher.finish(key), digest)).then_some(list)
    }

    /// An empty buffer for a part of a chunk.
    fn part(&self) -> Buffer {
        let mut part = self.buffers.take(PART_BYTES);
        part.clear();
        part
    }

    /// Checks the stored form of a chunk, as far as possible without a key: a plain one against its digest, an encrypted one
    /// against its checksum.
    pub(crate) fn inspect(&self, encoded: Bytes, digest: Digest, length: usize) -> Result<BlobKind> {
        let failed = |error| decode_error(error, "check chunk").on(digest);
        let blob = Blob::parse(encoded.clone()).map_err(failed)?;
        let kind = blob.kind();
        if !kind.is_encrypted() {
            if self.length_if_good(&blob, digest, None, length) == Some(length) {
                return Ok(kind);
            }
            return self.decode(encoded, digest, length, None).map(|_| kind);
        }
        blob.check_crc().map_err(failed)?;
        let have = blob.payload().len();
        if kind == BlobKind::Encrypted && have != length {
            return Err(failed(DecodeError::Size { want: length, have }));
        }
        Ok(kind)
    }

    /// As [`inspect`](Self::inspect), for a chunk of unknown length.
    pub(crate) fn inspect_any(&self, encoded: Bytes, digest: Digest) -> Result<()> {
        let failed = |error| decode_error(error, "check chunk").on(digest);
        let blob = Blob::parse(encoded).map_err(failed)?;
        if blob.kind().is_encrypted() {
            return blob.check_crc().map_err(failed);
        }
        if self.length_if_good(&blob, digest, None, MAX_CHUNK_BYTES).is_some() {
            return Ok(());
        }
        let mut decoder = self.decoder();
        let decoded = decode_any(&mut decoder, &blob, MAX_CHUNK_BYTES, None);
        self.keep_decoder(decoder);
        if Digest::of(&decoded.map_err(failed)?) == digest {
            return Ok(());
        }
        Err(other_digest(digest, "check chunk"))
    }

    /// Checks a stored chunk without keeping its contents. The key is for an encrypted one; without it only the checksum is verified.
    pub(crate) fn examine(
        &self,
        encoded: Bytes,
        digest: Digest,
        length: u64,
        key: Option<&EncryptionKey>,
    ) -> Result<Examined> {
        let corrupt = |error| Error::new(ErrorKind::Corrupt, "check chunk").on(digest).because(error);
        let blob = Blob::parse(encoded).map_err(corrupt)?;
        let key = key.filter(|_| blob.kind().is_encrypted());
        if blob.kind().is_encrypted() && key.is_none() {
            return blob.check_crc().map(|()| Examined::Checksum).map_err(corrupt);
        }
        let good = if key.is_some() { Examined::Authentic } else { Examined::Digest };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if let Some(actual) = self.length_if_good(&blob, digest, key, MAX_CHUNK_BYTES) {
            return Ok(if actual == length { good } else { Examined::OtherLength });
        }
        // Bad: decoded as for a reader, whose judgement counts.
        let mut decoder = self.decoder();
        let fitting = if length > MAX_CHUNK_BYTES { None } else { Some(length) };
        let examined = match fitting.map(|length| self.decode_parsed(&mut decoder, &blob, length, key)) {
            Some(Ok(plaintext)) if Digest::of_chunk(&plaintext, key) == digest => Ok(good),
            Some(Ok(_)) => Err(other_digest(digest, "check chunk")),
            failed => {
                // The index may be wrong about the length.
                let any = decode_any(&mut decoder, &blob, MAX_CHUNK_BYTES, key);
                let error =
                    failed.and_then(Result::err).unwrap_or(DecodeError::TooLong { limit: MAX_CHUNK_BYTES });
                match any {
                    Ok(plaintext) if Digest::of_chunk(&plaintext, key) == digest => Ok(Examined::OtherLength),
                    _ => Err(corrupt(error)),
                }
            }
        };
        self.keep_decoder(decoder);
        examined
    }

    fn decode_parsed(
        &self,
        decoder: &mut BlobDecoder,
        blob: &Blob,
        length: usize,
        key: Option<&EncryptionKey>,
    ) -> Result<Bytes, DecodeError> {
        let expected = PlaintextSize::Exactly(length);
        if key.is_none() && !blob.kind().is_compressed() {
            return decoder.decode_bytes(blob, expected);
        }
        let mut plaintext = self.buffers.take(length + ROOM_BYTES);
        match key {
            Some(key) => decoder.decrypt(blob, key, &mut plaintext, expected)?,
            None => decoder.decode(blob, &mut plaintext, expected)?,
        }
        Ok(plaintext.freeze())
    }

    /// The length of the contents of a chunk, at most `limit`, if they have the digest, without keeping them.
    fn length_if_good(
        &self,
        blob: &Blob,
        digest: Digest,
        key: Option<&EncryptionKey>,
        limit: usize,
    ) -> Option<usize> {
        let (mut decoder, mut hasher) = (self.decoder(), ChunkHasher::default());
        let length = decoder.decode_parts(blob, key, limit, |part| hasher.update(part));
        self.keep_decoder(decoder);
        let is_good = hasher.finish(key) == digest || mutated!("checks-in-parts-compare-no-digest");
        length.ok().filter(|_| is_good)
    }

    fn decoder(&self) -> BlobDecoder {
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn keep_decoder(&self, decoder: BlobDecoder) {
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
    }
}

/// Decodes a blob of any length up to a limit.
fn decode_any(
    decoder: &mut BlobDecoder,
    blob: &Blob,
    limit: usize,
    key: Option<&EncryptionKey>,
) -> Result<Bytes, DecodeError> {
    let limit = PlaintextSize::AtMost(limit);
    let Some(key) = key else { return decoder.decode_bytes(blob, limit) };
    let mut plaintext = Vec::new();
    decoder.decrypt(blob, key, &mut plaintext, limit)?;
    Ok(plaintext.into())
}

/// Compares the digest of the contents of a chunk that is read.
fn is_wanted(found: Digest, wanted: Digest) -> bool {
    found == wanted || mutated!("chunk-contents-are-not-compared")
}

fn other_digest(digest: Digest, action: &'static str) -> Error {
    Error::new(ErrorKind::Corrupt, action).on(digest).because("the contents have another digest")
}

fn decode_error(error: DecodeError, action: &'static str) -> Error {
    let kind = if error == DecodeError::Encrypted { ErrorKind::KeyRequired } else { ErrorKind::Corrupt };
    Error::new(kind, action).because(error)
}
