//! The common parts of fixed and dynamic indexes.

use std::ops::Range;

use bytes::Bytes;
use thiserror::Error;

use crate::format::Digest;
use crate::format::blob::DecodeError;

/// The length of the header of an index in bytes, on every platform.
pub const HEADER_BYTES: usize = 4096;

/// One chunk of an archive.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Its digest.
    pub digest: Digest,
    /// Length in bytes of its part of the archive.
    pub len: u64,
    /// Offset of its first byte in the archive.
    pub offset: u64,
}

impl ChunkEntry {
    pub(super) fn new(range: Range<u64>, digest: Digest) -> Self {
        Self { digest, len: range.end - range.start, offset: range.start }
    }
}

/// Header fields of both kinds of index.
///
/// | offset | bytes | field | encoding |
/// |---|---|---|---|
/// | 0 | 8 | magic | says which kind |
/// | 8 | 16 | uuid | random bytes |
/// | 24 | 8 | created | seconds since 1970, signed, little-endian |
/// | 32 | 32 | checksum | SHA-256 of all entries |
/// | 64 | 4032 | of the kind | zero where nothing is defined |
///
/// Source: PBS datastore format, fixed and dynamic index.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexHeader {
    /// The checksum as stored. Readers do not trust it: they compute it and compare with the manifest.
    pub checksum: Digest,
    /// Creation time in seconds since 1970.
    pub created: i64,
    /// Random bytes.
    pub uuid: [u8; 16],
}

impl IndexHeader {
    pub(super) fn parse(bytes: &[u8], magic: [u8; 8]) -> Result<Self, DecodeError> {
        let truncated = DecodeError::Truncated { want: HEADER_BYTES as u64, have: bytes.len() as u64 };
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(truncated)?;
        if header[..8] != magic {
            return Err(DecodeError::Magic);
        }
        let mut created = [0; 8];
        created.copy_from_slice(&header[24..32]);
        let (mut uuid, mut checksum) = ([0; 16], [0; 32]);
        uuid.copy_from_slice(&header[8..24]);
        checksum.copy_from_slice(&header[32..64]);
        Ok(Self { checksum: Digest::from_bytes(checksum), created: i64::from_le_bytes(created), uuid })
    }
}

/// A complete index.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FinishedIndex {
    /// The encoded index.
    pub bytes: Bytes,
    /// Checksum of its entries, for the manifest.
    pub checksum: Digest,
    /// Number of chunks.
    pub chunks: usize,
    /// The size of the archive in bytes.
    pub size: u64,
}

impl FinishedIndex {
    /// Fills in the common part of the header. `bytes` starts with room for it, followed by the entries.
    pub(super) fn new(
        mut bytes: Vec<u8>,
        magic: [u8; 8],
        stamp: ([u8; 16], i64),
        chunks: usize,
        size: u64,
    ) -> Self {
        let checksum = Digest::of(bytes.get(HEADER_BYTES..).unwrap_or_default());
        if let Some(header) = bytes.first_chunk_mut::<HEADER_BYTES>() {
            header[..8].copy_from_slice(&magic);
            header[8..24].copy_from_slice(&stamp.0);
            header[24..32].copy_from_slice(&stamp.1.to_le_bytes());
            header[32..64].copy_from_slice(checksum.as_bytes());
        }
        Self { bytes: bytes.into(), checksum, chunks, size }
    }
}

/// Reason why entries cannot become an index.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum IndexWriteError {
    /// The chunk size is not a power of two.
    #[error("the chunk size is not a power of two")]
    ChunkSize,
    /// There are no entries; the format has no empty archives.
    #[error("an archive without contents cannot be expressed")]
    Empty,
    /// A chunk starts between two chunk boundaries, ends beyond the image, or is empty.
    #[error("the chunk at offset {offset} is out of place")]
    Misplaced {
        /// Its offset in bytes.
        offset: u64,
    },
    /// A chunk is missing.
    #[error("the chunk at offset {offset} is missing")]
    Missing {
        /// Its offset in bytes.
        offset: u64,
    },
    /// The base has another number of chunks, or chunks of another size.
    #[error("the base has another shape")]
    OtherShape,
    /// The archive is too large to represent or to hold in memory.
    #[error("the archive is too large")]
    TooLarge,
}

/// The digest in the first 32 bytes of a slice.
pub(super) fn digest_at(bytes: &[u8], offset: usize) -> Option<Digest> {
    bytes.get(offset..)?.first_chunk().map(|digest| Digest::from_bytes(*digest))
}

/// The little-endian integer at an offset.
pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes.get(offset..)?.first_chunk().map(|number| u64::from_le_bytes(*number))
}
