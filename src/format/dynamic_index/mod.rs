//! Indexes of archives that are cut by content: `.didx`.
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | 0 | 64 | common | see [`IndexHeader`] |
//! | 64 | 4032 | unused | zero |
//! | 4096 + 40·i | 8 | end | where chunk i ends in the archive, little-endian |
//! | 4104 + 40·i | 32 | digest | of chunk i |
//!
//! There is at least one chunk, and the ends grow from each to the next; anything else is refused. Bytes of the header that
//! mean nothing are not looked at. How long a chunk may be is not checked here but where it is read.
//!
//! Source: PBS datastore format, dynamic index.

use bytes::Bytes;

use crate::format::Digest;
use crate::format::blob::DecodeError;
use crate::format::index_parts::{
    ChunkEntry, FinishedIndex, HEADER_BYTES, IndexHeader, IndexWriteError, digest_at, u64_at,
};

/// The first eight bytes of a dynamic index.
pub const MAGIC: [u8; 8] = [0x1c, 0x91, 0x4e, 0xa5, 0x19, 0xba, 0xb3, 0xcd];

/// Bytes of an entry.
pub(crate) const ENTRY_BYTES: usize = 40;

/// A dynamic index that was read and found valid. Nothing is copied out of it until it is asked for.
#[derive(Clone, Debug)]
pub struct DynamicIndexReader {
    checksum: Digest,
    entries: Bytes,
    header: IndexHeader,
    size: u64,
}

impl DynamicIndexReader {
    /// Reads an index. Everything is checked here, and the checksum of the entries computed, once.
    ///
    /// # Errors
    /// `Magic`; `Truncated` if there is no entry or part of one; `Field` if the ends do not grow.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, DecodeError> {
        let bytes = bytes.into();
        let header = IndexHeader::parse(&bytes, MAGIC)?;
        let entries = bytes.slice(HEADER_BYTES..);
        if entries.is_empty() || !entries.len().is_multiple_of(ENTRY_BYTES) {
            let want = HEADER_BYTES + entries.len().div_ceil(ENTRY_BYTES).max(1) * ENTRY_BYTES;
            return Err(DecodeError::Truncated { want: want as u64, have: bytes.len() as u64 });
        }
        let mut size = 0;
        for (number, entry) in entries.chunks_exact(ENTRY_BYTES).enumerate() {
            let end = u64_at(entry, 0).filter(|end| *end > size);
            let offset = (HEADER_BYTES + number * ENTRY_BYTES) as u64;
            size = end.ok_or(DecodeError::Field { offset, name: "end" })?;
        }
        Ok(Self { checksum: Digest::of(&entries), entries, header, size })
    }

    /// The common fields of the header.
    pub const fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// The checksum of the entries, as computed.
    pub const fn checksum(&self) -> Digest {
        self.checksum
    }

    /// The size of the archive in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Number of chunks. At least one.
    #[expect(clippy::len_without_is_empty, reason = "an index is never empty")]
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY_BYTES
    }

    /// The digest of a chunk by its number.
    pub fn digest(&self, number: usize) -> Option<Digest> {
        digest_at(&self.entries, number.checked_mul(ENTRY_BYTES)?.checked_add(8)?)
    }

    /// A chunk by its number.
    pub fn chunk(&self, number: usize) -> Option<ChunkEntry> {
        let digest = self.digest(number)?;
        let start = number.checked_sub(1).and_then(|before| self.end(before)).unwrap_or(0);
        Some(ChunkEntry::new(start..self.end(number)?, digest))
    }

    /// The number of the chunk that holds the byte at an offset; `None` behind the end.
    pub fn chunk_at(&self, offset: u64) -> Option<usize> {
        if offset >= self.size {
            return None;
        }
        let (mut low, mut high) = (0, self.len());
        // The chunk is the first one that ends beyond the offset.
        while low < high {
            let middle = low + (high - low) / 2;
            if self.end(middle)? <= offset { low = middle + 1 } else { high = middle }
        }
        Some(low)
    }

    /// All chunks in order.
    pub fn iter(&self) -> impl Iterator<Item = ChunkEntry> {
        (0..self.len()).filter_map(|number| self.chunk(number))
    }

    fn end(&self, number: usize) -> Option<u64> {
        u64_at(&self.entries, number.checked_mul(ENTRY_BYTES)?)
    }
}

/// Makes a dynamic index from chunks in order. Entries are kept in the form in which they are stored: 40 bytes a chunk.
#[derive(Clone, Debug)]
pub struct DynamicIndexWriter {
    bytes: Vec<u8>,
    end: u64,
}

impl DynamicIndexWriter {
    /// An index without entries.
    #[must_use]
    pub fn new() -> Self {
        Self { bytes: vec![0; HEADER_BYTES], end: 0 }
    }

    /// Enters the next chunk, of `len` bytes.
    ///
    /// # Errors
    /// `Misplaced` for a length of zero; `TooLarge` beyond 2⁶⁴ bytes.
    pub fn push(&mut self, len: u64, digest: Digest) -> Result<(), IndexWriteError> {
        if len == 0 {
            return Err(IndexWriteError::Misplaced { offset: self.end });
        }
        self.end = self.end.checked_add(len).ok_or(IndexWriteError::TooLarge)?;
        self.bytes.extend_from_slice(&self.end.to_le_bytes());
        self.bytes.extend_from_slice(digest.as_bytes());
        Ok(())
    }

    /// Ends the index. `created` is in seconds since 1970.
    ///
    /// # Errors
    /// `Empty`.
    pub fn finish(self, uuid: [u8; 16], created: i64) -> Result<FinishedIndex, IndexWriteError> {
        let chunks = (self.bytes.len() - HEADER_BYTES) / ENTRY_BYTES;
        if chunks == 0 {
            return Err(IndexWriteError::Empty);
        }
        Ok(FinishedIndex::new(self.bytes, MAGIC, (uuid, created), chunks, self.end))
    }
}

impl Default for DynamicIndexWriter {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
