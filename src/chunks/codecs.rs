//! Encoding and decoding of chunks and blobs.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;

use crate::buffers::{Buffer, Buffers};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::{
    Blob, BlobDecoder, BlobEncoder, BlobKind, DecodeError, MAX_CHUNK_BYTES, MAX_ENCODED_CHUNK_BYTES,
    PlaintextSize,
};

/// Maximum number of bytes that encoding adds to a chunk.
const ROOM_BYTES: usize = MAX_ENCODED_CHUNK_BYTES - MAX_CHUNK_BYTES;

/// Result of a check of a stored chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Examined {
    /// Encrypted, with a correct checksum. Without the key nothing more can be checked (H100).
    Checksum,
    /// The contents have the digest and the length.
    Digest,
    /// The contents have the digest, and another length than expected.
    OtherLength,
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
    pub(crate) fn new(level: i32, kept_bytes: usize) -> Arc<Self> {
        let buffers = Buffers::new(kept_bytes);
        Arc::new(Self { buffers, decoders: Mutex::default(), encoders: Mutex::default(), level })
    }

    /// A buffer for plaintext.
    pub(crate) fn buffer(&self, capacity: usize) -> Buffer {
        self.buffers.take(capacity + ROOM_BYTES)
    }

    /// Decodes a blob of at most this many bytes.
    pub(crate) fn decode_blob(&self, blob: Bytes, limit: usize) -> Result<Bytes> {
        let mut decoder = self.decoder();
        let decoded =
            Blob::parse(blob).and_then(|blob| decoder.decode_bytes(&blob, PlaintextSize::AtMost(limit)));
        self.keep_decoder(decoder);
        decoded.map_err(|error| decode_error(error, "decode blob"))
    }

    /// Encodes bytes as a blob.
    pub(crate) fn encode(&self, plaintext: &Bytes) -> Result<Bytes> {
        let kept = self.encoders.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut encoder = match kept {
            Some(encoder) => encoder,
            None => BlobEncoder::new(self.level)
                .map_err(|error| Error::new(ErrorKind::InvalidInput, "encode blob").because(error))?,
        };
        let mut encoded = self.buffers.take(plaintext.len() + ROOM_BYTES);
        let result = encoder.encode(plaintext, &mut encoded);
        self.encoders.lock().unwrap_or_else(PoisonError::into_inner).push(encoder);
        result.map_err(|error| Error::new(ErrorKind::InvalidInput, "encode blob").because(error))?;
        Ok(encoded.freeze())
    }

    /// Decodes a chunk of a known length, and checks it against its digest.
    pub(crate) fn decode(&self, encoded: Bytes, digest: Digest, length: usize) -> Result<Bytes> {
        let mut decoder = self.decoder();
        let decoded = self.decode_chunk(&mut decoder, encoded, length);
        self.keep_decoder(decoder);
        let plaintext = decoded.map_err(|error| decode_error(error, "decode chunk").on(digest))?;
        if Digest::of(&plaintext) == digest {
            return Ok(plaintext);
        }
        let error = Error::new(ErrorKind::Corrupt, "decode chunk").on(digest);
        Err(error.because("the contents have another digest"))
    }

    /// Checks the stored form of a chunk, as far as possible without a key: a plain one against its digest, an encrypted one
    /// against its checksum.
    pub(crate) fn inspect(&self, encoded: Bytes, digest: Digest, length: usize) -> Result<BlobKind> {
        let failed = |error| decode_error(error, "check chunk").on(digest);
        let blob = Blob::parse(encoded.clone()).map_err(failed)?;
        let kind = blob.kind();
        if !kind.is_encrypted() {
            return self.decode(encoded, digest, length).map(|_| kind);
        }
        blob.check_crc().map_err(failed)?;
        let have = blob.payload().len();
        if kind == BlobKind::Encrypted && have != length {
            return Err(failed(DecodeError::Size { want: length, have }));
        }
        Ok(kind)
    }

    /// Checks a stored chunk without keeping its contents.
    pub(crate) fn examine(&self, encoded: Bytes, digest: Digest, length: u64) -> Result<Examined> {
        let corrupt = |error| Error::new(ErrorKind::Corrupt, "check chunk").on(digest).because(error);
        let blob = Blob::parse(encoded).map_err(corrupt)?;
        if blob.kind().is_encrypted() {
            return blob.check_crc().map(|()| Examined::Checksum).map_err(corrupt);
        }
        let mut decoder = self.decoder();
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let fitting = if length > MAX_CHUNK_BYTES { None } else { Some(length) };
        let examined = match fitting.map(|length| self.decode_parsed(&mut decoder, &blob, length)) {
            Some(Ok(plaintext)) if Digest::of(&plaintext) == digest => Ok(Examined::Digest),
            Some(Ok(_)) => Err(Error::new(ErrorKind::Corrupt, "check chunk")
                .on(digest)
                .because("the contents have another digest")),
            failed => {
                // The index may be wrong about the length.
                let any = decoder.decode_bytes(&blob, PlaintextSize::AtMost(MAX_CHUNK_BYTES));
                let error =
                    failed.and_then(Result::err).unwrap_or(DecodeError::TooLong { limit: MAX_CHUNK_BYTES });
                match any {
                    Ok(plaintext) if Digest::of(&plaintext) == digest => Ok(Examined::OtherLength),
                    _ => Err(corrupt(error)),
                }
            }
        };
        self.keep_decoder(decoder);
        examined
    }

    fn decode_chunk(
        &self,
        decoder: &mut BlobDecoder,
        encoded: Bytes,
        length: usize,
    ) -> Result<Bytes, DecodeError> {
        self.decode_parsed(decoder, &Blob::parse(encoded)?, length)
    }

    fn decode_parsed(
        &self,
        decoder: &mut BlobDecoder,
        blob: &Blob,
        length: usize,
    ) -> Result<Bytes, DecodeError> {
        if !blob.kind().is_compressed() {
            return decoder.decode_bytes(blob, PlaintextSize::Exactly(length));
        }
        let mut plaintext = self.buffers.take(length + ROOM_BYTES);
        decoder.decode(blob, &mut plaintext, PlaintextSize::Exactly(length))?;
        Ok(plaintext.freeze())
    }

    fn decoder(&self) -> BlobDecoder {
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn keep_decoder(&self, decoder: BlobDecoder) {
        self.decoders.lock().unwrap_or_else(PoisonError::into_inner).push(decoder);
    }
}

fn decode_error(error: DecodeError, action: &'static str) -> Error {
    let kind = if error == DecodeError::Encrypted { ErrorKind::Unsupported } else { ErrorKind::Corrupt };
    Error::new(kind, action).because(error)
}
