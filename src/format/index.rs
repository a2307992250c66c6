//! An index of either kind.

use bytes::Bytes;

use crate::format::Digest;
use crate::format::blob::DecodeError;
use crate::format::dynamic_index::DynamicIndexReader;
use crate::format::fixed_index::FixedIndexReader;
use crate::format::name::ArchiveKind;

pub use crate::format::index_parts::{ChunkEntry, FinishedIndex, HEADER_BYTES, IndexHeader, IndexWriteError};

/// An index of either kind. The format defines exactly these two, so the enum is exhaustive.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Debug)]
pub enum IndexReader {
    /// Of chunks that were cut by content.
    Dynamic(DynamicIndexReader),
    /// Of chunks of one size.
    Fixed(FixedIndexReader),
}

impl IndexReader {
    /// Parses and validates the index of an archive of that kind.
    ///
    /// # Errors
    /// Any flaw of the index; `Magic` for a blob, which has no index.
    pub fn parse(kind: ArchiveKind, bytes: Bytes) -> Result<Self, DecodeError> {
        match kind {
            ArchiveKind::Blob => Err(DecodeError::Magic),
            ArchiveKind::Dynamic => DynamicIndexReader::parse(bytes).map(Self::Dynamic),
            ArchiveKind::Fixed => FixedIndexReader::parse(bytes).map(Self::Fixed),
        }
    }

    /// Number of chunks. At least one.
    #[expect(clippy::len_without_is_empty, reason = "an index is never empty")]
    pub fn len(&self) -> usize {
        match self {
            Self::Dynamic(index) => index.len(),
            Self::Fixed(index) => index.len(),
        }
    }

    /// The size of the archive in bytes.
    pub fn size(&self) -> u64 {
        match self {
            Self::Dynamic(index) => index.size(),
            Self::Fixed(index) => index.size(),
        }
    }

    /// Checksum of the entries, computed when the index was parsed. Compare it with the manifest.
    pub fn checksum(&self) -> Digest {
        match self {
            Self::Dynamic(index) => index.checksum(),
            Self::Fixed(index) => index.checksum(),
        }
    }

    /// The fields of the header.
    pub fn header(&self) -> &IndexHeader {
        match self {
            Self::Dynamic(index) => index.header(),
            Self::Fixed(index) => index.header(),
        }
    }

    /// The digest of a chunk by its number.
    pub fn digest(&self, number: usize) -> Option<Digest> {
        match self {
            Self::Dynamic(index) => index.digest(number),
            Self::Fixed(index) => index.digest(number),
        }
    }

    /// A chunk by its number.
    pub fn chunk(&self, number: usize) -> Option<ChunkEntry> {
        match self {
            Self::Dynamic(index) => index.chunk(number),
            Self::Fixed(index) => index.chunk(number),
        }
    }

    /// Number of the chunk that contains the byte at an offset; `None` beyond the end.
    pub fn chunk_at(&self, offset: u64) -> Option<usize> {
        match self {
            Self::Dynamic(index) => index.chunk_at(offset),
            Self::Fixed(index) => index.chunk_at(offset),
        }
    }

    /// All chunks in order.
    pub fn iter(&self) -> impl Iterator<Item = ChunkEntry> {
        (0..self.len()).filter_map(|number| self.chunk(number))
    }

    /// The digests of all chunks in order.
    pub(crate) fn digests(&self) -> impl Iterator<Item = Digest> {
        (0..self.len()).filter_map(|number| self.digest(number))
    }
}
