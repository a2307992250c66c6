//! Data blobs: the stored form of chunks, small files and manifests.
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | 0 | 8 | magic | one of [`BlobKind::magic`] |
//! | 8 | 4 | checksum | CRC-32 (ISO-HDLC) of the payload, little-endian |
//! | 12 | 16 | initialisation vector | encrypted kinds only |
//! | 28 | 16 | authentication tag | encrypted kinds only |
//! | 12 or 44 | rest | payload | as the kind says |
//!
//! A payload is compressed first, and then encrypted with AES-256-GCM. The checksum covers the encrypted payload alone, so it can be verified
//! without the key. It covers neither the initialisation vector nor the tag.
//!
//! Source: PBS datastore format, data blob.

mod parts;
mod sealed;

use std::fmt;
use std::io::{Cursor, Read as _};
use std::ops::Range;

use bytes::Bytes;
use thiserror::Error;

use self::parts::PartDecoder;
use self::sealed::open_into;
use crate::crypt::{EncryptionKey, NONCE_BYTES};

/// Maximum plaintext of a blob: 128 MiB.
pub const MAX_BLOB_PLAINTEXT_BYTES: usize = 128 << 20;

/// Maximum plaintext of a chunk: 16 MiB.
pub const MAX_CHUNK_BYTES: usize = 16 << 20;

/// Maximum stored bytes of a chunk.
pub const MAX_ENCODED_CHUNK_BYTES: usize = MAX_CHUNK_BYTES + ENCRYPTED_HEADER_BYTES;

/// Minimum bytes of a blob: a header without a payload.
pub const MIN_BLOB_BYTES: usize = PLAIN_HEADER_BYTES;

/// The zstd level that PBS uses.
pub const DEFAULT_ZSTD_LEVEL: i32 = 1;

const PLAIN_HEADER_BYTES: usize = 12;
const ENCRYPTED_HEADER_BYTES: usize = 44;
/// Place of the initialisation vector in the header.
const IV: Range<usize> = 12..28;
/// Place of the authentication tag in the header.
const TAG: Range<usize> = 28..44;

/// Spare bytes that zstd wants beyond the frame; a frame that leaves fewer is discarded, as in PBS.
const SPARE_BYTES: usize = 8;

/// Log2 of the largest window that a frame may request, if its content can be that long: 128 MiB.
const WINDOW_LOG_MAX: u32 = 27;
/// Log2 of the window that a frame may request for any content, since encoders of streams do not know its length: 8 MiB.
const WINDOW_LOG_MIN: u32 = 23;

/// Kind of a blob's payload. The format defines exactly these four, so the enum is exhaustive.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlobKind {
    /// Encrypted plaintext.
    Encrypted,
    /// Compressed, then encrypted.
    EncryptedZstd,
    /// The plaintext itself.
    Plain,
    /// Compressed with zstd.
    Zstd,
}

impl BlobKind {
    /// The magic number of such a blob.
    pub const fn magic(self) -> [u8; 8] {
        match self {
            Self::Encrypted => [0x7b, 0x67, 0x85, 0xbe, 0x22, 0x2d, 0x4c, 0xf0],
            Self::EncryptedZstd => [0xe6, 0x59, 0x1b, 0xbf, 0x0b, 0xbf, 0xd8, 0x0b],
            Self::Plain => [0x42, 0xab, 0x38, 0x07, 0xbe, 0x83, 0x70, 0xa1],
            Self::Zstd => [0x31, 0xb9, 0x58, 0x42, 0x6f, 0xb6, 0xa3, 0x7f],
        }
    }

    /// The length of the header in bytes.
    pub const fn header_bytes(self) -> usize {
        if self.is_encrypted() { ENCRYPTED_HEADER_BYTES } else { PLAIN_HEADER_BYTES }
    }

    /// Returns `true` if a key is needed to read it.
    pub const fn is_encrypted(self) -> bool {
        matches!(self, Self::Encrypted | Self::EncryptedZstd)
    }

    /// Returns `true` if it is compressed.
    pub const fn is_compressed(self) -> bool {
        matches!(self, Self::EncryptedZstd | Self::Zstd)
    }

    fn of(magic: [u8; 8]) -> Option<Self> {
        [Self::Encrypted, Self::EncryptedZstd, Self::Plain, Self::Zstd]
            .into_iter()
            .find(|kind| kind.magic() == magic)
    }
}

/// Reason why bytes are not a blob, or not the expected one.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The checksum does not match the payload.
    #[error("the checksum does not fit")]
    Checksum,
    /// The payload is not a zstd frame, or decompresses to more than expected.
    #[error("the payload cannot be decompressed to the expected size")]
    Compression,
    /// Reading needs a key.
    #[error("it is encrypted")]
    Encrypted,
    /// It is plain where an encrypted one is expected.
    #[error("it is not encrypted")]
    NotEncrypted,
    /// A field has an invalid value.
    #[error("the field {name} at offset {offset} is not valid")]
    Field {
        /// Its offset in bytes.
        offset: u64,
        /// The kind.
        name: &'static str,
    },
    /// The magic number is unknown.
    #[error("the magic number is not known")]
    Magic,
    /// The plaintext does not have the expected length.
    #[error("the plaintext has {have} bytes instead of {want}")]
    Size {
        /// The expected length in bytes.
        want: usize,
        /// The actual length in bytes.
        have: usize,
    },
    /// The authentication tag does not match: the blob was changed, or has another key.
    #[error("the authentication tag does not fit: it was changed, or has another key")]
    Tag,
    /// The plaintext is longer than allowed.
    #[error("the plaintext has more than {limit} bytes")]
    TooLong {
        /// The maximum in bytes.
        limit: usize,
    },
    /// The blob is too short or too long.
    #[error("it has {have} bytes instead of {want}")]
    Truncated {
        /// Required number of bytes.
        want: u64,
        /// Available number of bytes.
        have: u64,
    },
}

/// Reason why bytes cannot become a blob.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// zstd has no such compression level.
    #[error("the compression level is not valid")]
    Level,
    /// The plaintext exceeds [`MAX_BLOB_PLAINTEXT_BYTES`].
    #[error("more than 128 MiB do not fit into a blob")]
    TooLong,
}

/// Expected length of a plaintext, in bytes.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaintextSize {
    /// At most this many bytes.
    AtMost(usize),
    /// Exactly this many bytes.
    Exactly(usize),
}

/// A blob with a valid header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blob {
    bytes: Bytes,
    kind: BlobKind,
}

impl Blob {
    /// Parses the header. Does not verify the checksum; see [`check_crc`](Blob::check_crc).
    ///
    /// # Errors
    /// `Magic`, `Truncated`.
    pub fn parse(bytes: Bytes) -> Result<Self, DecodeError> {
        let truncated = |want: usize| DecodeError::Truncated { want: want as u64, have: bytes.len() as u64 };
        let magic = bytes.first_chunk().ok_or_else(|| truncated(PLAIN_HEADER_BYTES))?;
        let kind = BlobKind::of(*magic).ok_or(DecodeError::Magic)?;
        if bytes.len() < kind.header_bytes() {
            return Err(truncated(kind.header_bytes()));
        }
        Ok(Self { bytes, kind })
    }

    /// Kind of the payload.
    pub const fn kind(&self) -> BlobKind {
        self.kind
    }

    /// The bytes after the header, without a copy.
    pub fn payload(&self) -> Bytes {
        self.bytes.slice(self.kind.header_bytes()..)
    }

    /// Initialisation vector and authentication tag of an encrypted blob.
    pub fn seal(&self) -> Option<([u8; 16], [u8; 16])> {
        let header = Some(&self.bytes).filter(|_| self.kind.is_encrypted())?;
        Some((header.get(IV)?.try_into().ok()?, header.get(TAG)?.try_into().ok()?))
    }

    /// Verifies the checksum of the payload.
    ///
    /// # Errors
    /// `Checksum`.
    pub fn check_crc(&self) -> Result<(), DecodeError> {
        let stored = self.bytes.get(8..).and_then(|rest| rest.first_chunk()).copied();
        let computed = crc32fast::hash(self.bytes.get(self.kind.header_bytes()..).unwrap_or_default());
        if stored.map(u32::from_le_bytes) == Some(computed) { Ok(()) } else { Err(DecodeError::Checksum) }
    }

    /// The whole blob.
    pub fn into_bytes(self) -> Bytes {
        self.bytes
    }
}

/// Encoder of blobs. It reuses its zstd context.
pub struct BlobEncoder {
    compressor: zstd::bulk::Compressor<'static>,
}

impl BlobEncoder {
    /// An encoder with this zstd level, such as [`DEFAULT_ZSTD_LEVEL`].
    ///
    /// # Errors
    /// `Level`.
    pub fn new(level: i32) -> Result<Self, EncodeError> {
        if !zstd::compression_level_range().contains(&level) {
            return Err(EncodeError::Level);
        }
        let compressor = zstd::bulk::Compressor::new(level).map_err(|_| EncodeError::Level)?;
        Ok(Self { compressor })
    }

    /// Encodes a blob into `out`, replacing its contents. The payload is compressed if that makes it smaller.
    ///
    /// # Errors
    /// `TooLong`; `out` is then empty.
    pub fn encode(&mut self, plaintext: &[u8], out: &mut Vec<u8>) -> Result<BlobKind, EncodeError> {
        let compressed = self.compress(plaintext, PLAIN_HEADER_BYTES, out)?;
        let kind = if compressed { BlobKind::Zstd } else { BlobKind::Plain };
        finish(kind, out);
        Ok(kind)
    }

    /// Encodes an encrypted blob into `out`, replacing its contents. The payload is compressed first if that makes it smaller.
    ///
    /// The nonce must be random, and is used for this blob alone.
    ///
    /// # Errors
    /// `TooLong`; `out` is then empty.
    pub fn encode_encrypted(
        &mut self,
        plaintext: &[u8],
        key: &EncryptionKey,
        nonce: &[u8; NONCE_BYTES],
        out: &mut Vec<u8>,
    ) -> Result<BlobKind, EncodeError> {
        let compressed = self.compress(plaintext, ENCRYPTED_HEADER_BYTES, out)?;
        if let Some((header, payload)) = out.split_at_mut_checked(ENCRYPTED_HEADER_BYTES) {
            let tag = key.seal(nonce, payload);
            header[IV].copy_from_slice(nonce);
            header[TAG].copy_from_slice(&tag);
        }
        let kind = if compressed { BlobKind::EncryptedZstd } else { BlobKind::Encrypted };
        finish(kind, out);
        Ok(kind)
    }

    /// Writes an empty header and the payload into `out`. Returns `true` if the payload is compressed.
    fn compress(&mut self, plaintext: &[u8], header: usize, out: &mut Vec<u8>) -> Result<bool, EncodeError> {
        start(plaintext, header, out)?;
        let mut payload = Cursor::new(&mut *out);
        payload.set_position(header as u64);
        let compressed = self.compressor.compress_to_buffer(plaintext, &mut payload);
        let kept = compressed.is_ok_and(|length| length + SPARE_BYTES <= plaintext.len());
        if !kept {
            out.truncate(header);
            out.extend_from_slice(plaintext);
        }
        Ok(kept)
    }
}

impl fmt::Debug for BlobEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobEncoder").finish_non_exhaustive()
    }
}

/// Encodes a blob into `out` without compression, replacing its contents.
///
/// # Errors
/// `TooLong`; `out` is then empty.
pub fn encode_plain(plaintext: &[u8], out: &mut Vec<u8>) -> Result<(), EncodeError> {
    start(plaintext, PLAIN_HEADER_BYTES, out)?;
    out.extend_from_slice(plaintext);
    finish(BlobKind::Plain, out);
    Ok(())
}

/// Reserves a header and a payload that is no longer than the plaintext.
fn start(plaintext: &[u8], header: usize, out: &mut Vec<u8>) -> Result<(), EncodeError> {
    out.clear();
    if plaintext.len() > MAX_BLOB_PLAINTEXT_BYTES {
        return Err(EncodeError::TooLong);
    }
    out.reserve(header + plaintext.len());
    out.resize(header, 0);
    Ok(())
}

fn finish(kind: BlobKind, out: &mut [u8]) {
    if let Some((header, payload)) = out.split_at_mut_checked(kind.header_bytes()) {
        header[..8].copy_from_slice(&kind.magic());
        header[8..PLAIN_HEADER_BYTES].copy_from_slice(&crc32fast::hash(payload).to_le_bytes());
    }
}

/// Decoder of blobs. It reuses its zstd context.
pub struct BlobDecoder {
    /// A decrypted payload that is still compressed.
    compressed: Vec<u8>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    parts: Option<PartDecoder>,
}

impl BlobDecoder {
    /// Creates a decoder.
    #[must_use]
    pub const fn new() -> Self {
        Self { compressed: Vec::new(), decompressor: None, parts: None }
    }

    /// Decodes the plaintext into `out`, replacing its contents. Verifies the checksum first.
    ///
    /// No more memory is used than the expected size asks for (H175).
    ///
    /// # Errors
    /// `Checksum`, `Compression`, `Encrypted`, `Size`, `TooLong`; `out` is then empty.
    pub fn decode(
        &mut self,
        blob: &Blob,
        out: &mut Vec<u8>,
        expected: PlaintextSize,
    ) -> Result<(), DecodeError> {
        out.clear();
        blob.check_crc()?;
        let payload = blob.payload();
        let decoded = match blob.kind {
            BlobKind::Encrypted | BlobKind::EncryptedZstd => return Err(DecodeError::Encrypted),
            BlobKind::Plain => {
                expected.check(payload.len())?;
                out.extend_from_slice(&payload);
                return Ok(());
            }
            BlobKind::Zstd => self.decompress(&payload, out, expected),
        };
        refused_is_empty(decoded.and_then(|()| expected.check(out.len())), out)
    }

    /// Decrypts and decodes the plaintext into `out`, replacing its contents. Verifies the checksum, then the authentication tag, and decrypts
    /// nothing before.
    ///
    /// # Errors
    /// `NotEncrypted`, `Tag`; as [`decode`](BlobDecoder::decode). `out` is then empty.
    pub fn decrypt(
        &mut self,
        blob: &Blob,
        key: &EncryptionKey,
        out: &mut Vec<u8>,
        expected: PlaintextSize,
    ) -> Result<(), DecodeError> {
        out.clear();
        let decrypted = if blob.kind.is_compressed() {
            let compressed = self.open(blob, key)?;
            let decrypted = self.decompress(&compressed, out, expected);
            self.keep(compressed);
            decrypted
        } else {
            open_into(blob, key, out, expected)
        };
        refused_is_empty(decrypted.and_then(|()| expected.check(out.len())), out)
    }

    /// The plaintext of a blob: a part of the blob itself if it is not compressed. The checksum is checked first.
    ///
    /// # Errors
    /// As [`decode`](BlobDecoder::decode).
    pub fn decode_bytes(&mut self, blob: &Blob, expected: PlaintextSize) -> Result<Bytes, DecodeError> {
        if blob.kind == BlobKind::Plain {
            blob.check_crc()?;
            let payload = blob.payload();
            expected.check(payload.len())?;
            return Ok(payload);
        }
        let mut out = Vec::new();
        self.decode(blob, &mut out, expected)?;
        Ok(out.into())
    }

    fn decompress(
        &mut self,
        payload: &[u8],
        out: &mut Vec<u8>,
        expected: PlaintextSize,
    ) -> Result<(), DecodeError> {
        let capacity = match expected {
            PlaintextSize::Exactly(length) => Some(length),
            PlaintextSize::AtMost(limit) => {
                zstd::bulk::Decompressor::upper_bound(payload).filter(|bound| *bound <= limit)
            }
        };
        let Some(capacity) = capacity else { return decompress_unknown(payload, out, expected) };
        if self.decompressor.is_none() {
            self.decompressor = zstd::bulk::Decompressor::new().ok();
        }
        let decompressor = self.decompressor.as_mut().ok_or(DecodeError::Compression)?;
        out.reserve_exact(capacity);
        decompressor.decompress_to_buffer(payload, out).map_err(|_| DecodeError::Compression)?;
        Ok(())
    }
}

/// Empties `out` if the plaintext is refused.
fn refused_is_empty(decoded: Result<(), DecodeError>, out: &mut Vec<u8>) -> Result<(), DecodeError> {
    decoded.inspect_err(|_| out.clear())
}

/// Log2 of the largest window of a frame with at most `limit` bytes.
fn window_log_of(limit: usize) -> u32 {
    let window_log = limit.checked_next_power_of_two().map_or(u32::MAX, usize::trailing_zeros);
    window_log.clamp(WINDOW_LOG_MIN, WINDOW_LOG_MAX)
}

/// Decompresses what does not say how long it will be, and stops beyond the limit.
fn decompress_unknown(payload: &[u8], out: &mut Vec<u8>, expected: PlaintextSize) -> Result<(), DecodeError> {
    let (PlaintextSize::AtMost(limit) | PlaintextSize::Exactly(limit)) = expected;
    let mut decoder = zstd::Decoder::with_buffer(payload).map_err(|_| DecodeError::Compression)?;
    decoder.window_log_max(window_log_of(limit)).map_err(|_| DecodeError::Compression)?;
    decoder.take(limit as u64 + 1).read_to_end(out).map_err(|_| DecodeError::Compression)?;
    Ok(())
}

impl Default for BlobDecoder {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for BlobDecoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobDecoder").finish_non_exhaustive()
    }
}

impl PlaintextSize {
    fn check(self, have: usize) -> Result<(), DecodeError> {
        match self {
            Self::AtMost(limit) if have > limit => Err(DecodeError::TooLong { limit }),
            Self::Exactly(want) if have != want => Err(DecodeError::Size { want, have }),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
