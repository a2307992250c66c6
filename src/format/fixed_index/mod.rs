//! Indexes of images that are cut into chunks of one size: `.fidx`.
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | 0 | 64 | common | see [`IndexHeader`] |
//! | 64 | 8 | size | bytes of the image, little-endian |
//! | 72 | 8 | chunk size | bytes of a chunk, little-endian, a power of two |
//! | 80 | 4016 | unused | zero |
//! | 4096 + 32·i | 32 | digest | of chunk i |
//!
//! There is at least one chunk; only the last may be shorter than the others. The length of the file follows from the size
//! of the image; anything else is refused. Unused bytes of the header are ignored.
//!
//! Source: PBS datastore format, fixed index.

use bytes::Bytes;

use crate::format::Digest;
use crate::format::blob::DecodeError;
use crate::format::index_parts::{
    ChunkEntry, FinishedIndex, HEADER_BYTES, IndexHeader, IndexWriteError, digest_at, u64_at,
};

/// Magic number of a fixed index.
pub const MAGIC: [u8; 8] = [0x2f, 0x7f, 0x41, 0xed, 0x91, 0xfd, 0x0f, 0xcd];

/// Bytes of an entry.
pub(crate) const ENTRY_BYTES: usize = 32;
const SIZE_OFFSET: usize = 64;
const CHUNK_SIZE_OFFSET: usize = 72;

/// A valid fixed index. Entries are decoded on access.
#[derive(Clone, Debug)]
pub struct FixedIndexReader {
    checksum: Digest,
    chunk_size: u64,
    entries: Bytes,
    header: IndexHeader,
    size: u64,
}

impl FixedIndexReader {
    /// Parses an index. Checks everything and computes the checksum of the entries, once.
    ///
    /// # Errors
    /// `Magic`; `Field` for a size of zero or a chunk size that is no power of two; `Truncated` if the number of entries
    /// does not match them.
    pub fn parse(bytes: impl Into<Bytes>) -> Result<Self, DecodeError> {
        let bytes = bytes.into();
        let header = IndexHeader::parse(&bytes, MAGIC)?;
        let field = |offset: usize, name| DecodeError::Field { offset: offset as u64, name };
        let size = u64_at(&bytes, SIZE_OFFSET).filter(|size| *size > 0);
        let size = size.ok_or(field(SIZE_OFFSET, "size"))?;
        let chunk_size = u64_at(&bytes, CHUNK_SIZE_OFFSET).filter(|size| size.is_power_of_two());
        let chunk_size = chunk_size.ok_or(field(CHUNK_SIZE_OFFSET, "chunk size"))?;
        let count = size.div_ceil(chunk_size);
        let want =
            count.checked_mul(ENTRY_BYTES as u64).and_then(|bytes| bytes.checked_add(HEADER_BYTES as u64));
        let want = want.ok_or(field(SIZE_OFFSET, "size"))?;
        if bytes.len() as u64 != want {
            return Err(DecodeError::Truncated { want, have: bytes.len() as u64 });
        }
        let entries = bytes.slice(HEADER_BYTES..);
        Ok(Self { checksum: Digest::of(&entries), chunk_size, entries, header, size })
    }

    /// The common fields of the header.
    pub const fn header(&self) -> &IndexHeader {
        &self.header
    }

    /// The computed checksum of the entries.
    pub const fn checksum(&self) -> Digest {
        self.checksum
    }

    /// The size of the image in bytes.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The size of a chunk in bytes.
    pub const fn chunk_size(&self) -> u64 {
        self.chunk_size
    }

    /// Number of chunks. At least one.
    #[expect(clippy::len_without_is_empty, reason = "an index is never empty")]
    pub fn len(&self) -> usize {
        self.entries.len() / ENTRY_BYTES
    }

    /// The digest of a chunk by its number.
    pub fn digest(&self, number: usize) -> Option<Digest> {
        digest_at(&self.entries, number.checked_mul(ENTRY_BYTES)?)
    }

    /// A chunk by its number.
    pub fn chunk(&self, number: usize) -> Option<ChunkEntry> {
        let digest = self.digest(number)?;
        let start = number as u64 * self.chunk_size;
        Some(ChunkEntry::new(start..self.size.min(start.saturating_add(self.chunk_size)), digest))
    }

    /// Number of the chunk that contains the byte at an offset; `None` beyond the end.
    pub fn chunk_at(&self, offset: u64) -> Option<usize> {
        if offset >= self.size {
            return None;
        }
        usize::try_from(offset / self.chunk_size).ok()
    }

    /// All chunks in order.
    pub fn iter(&self) -> impl Iterator<Item = ChunkEntry> {
        (0..self.len()).filter_map(|number| self.chunk(number))
    }
}

/// Builder of a fixed index, from chunks in any order.
///
/// Entries are kept in their stored form: 32 bytes a chunk, and one bit that marks it as set.
#[derive(Clone, Debug)]
pub struct FixedIndexWriter {
    bytes: Vec<u8>,
    chunk_size: u64,
    /// One bit for each chunk.
    present: Vec<u64>,
    /// As given, or as implied by the last chunk.
    size: Option<u64>,
}

impl FixedIndexWriter {
    /// An index of an image of `size` bytes, or of an image whose size is known only with its last chunk.
    ///
    /// # Errors
    /// `ChunkSize`; `Empty` for a size of zero; `TooLarge` if its entries do not fit into memory.
    pub fn new(size: impl Into<Option<u64>>, chunk_size: u64) -> Result<Self, IndexWriteError> {
        let size = size.into();
        if !chunk_size.is_power_of_two() {
            return Err(IndexWriteError::ChunkSize);
        }
        let mut index = Self { bytes: vec![0; HEADER_BYTES], chunk_size, present: Vec::new(), size };
        match size {
            Some(0) => return Err(IndexWriteError::Empty),
            Some(size) => index.make_room(size.div_ceil(chunk_size))?,
            None => {}
        }
        Ok(index)
    }

    /// An index with all entries of another one, to be updated where the image changed.
    ///
    /// # Errors
    /// `OtherShape` unless the image has the same number of chunks; `Empty` for a size of zero.
    pub fn from_base(base: &FixedIndexReader, size: u64) -> Result<Self, IndexWriteError> {
        let mut index = Self::new(size, base.chunk_size)?;
        if size.div_ceil(base.chunk_size) != base.len() as u64 {
            return Err(IndexWriteError::OtherShape);
        }
        index.bytes.truncate(HEADER_BYTES);
        index.bytes.extend_from_slice(&base.entries);
        // A last chunk of another length is another chunk.
        let kept = if size == base.size { base.len() } else { base.len() - 1 };
        (0..kept).for_each(|number| index.mark(number));
        Ok(index)
    }

    /// Sets the chunk at an offset, and replaces an earlier one.
    ///
    /// # Errors
    /// `Misplaced` unless it starts at a chunk boundary and has the full length or ends with the image; `TooLarge`.
    pub fn set(&mut self, offset: u64, len: u64, digest: Digest) -> Result<(), IndexWriteError> {
        let misplaced = IndexWriteError::Misplaced { offset };
        let end = offset.checked_add(len).ok_or(misplaced)?;
        if !offset.is_multiple_of(self.chunk_size) || len == 0 || len > self.chunk_size {
            return Err(misplaced);
        }
        match self.size {
            Some(size) if end > size || (len < self.chunk_size && end != size) => return Err(misplaced),
            Some(_) => {}
            None => {
                let beyond = self.bytes.len() > HEADER_BYTES + self.place(offset)? + ENTRY_BYTES;
                if len < self.chunk_size && beyond {
                    return Err(misplaced);
                }
                self.make_room(offset / self.chunk_size + 1)?;
                if len < self.chunk_size {
                    self.size = Some(end);
                }
            }
        }
        let place = HEADER_BYTES + self.place(offset)?;
        let entry = self.bytes.get_mut(place..place + ENTRY_BYTES).ok_or(misplaced)?;
        entry.copy_from_slice(digest.as_bytes());
        self.mark(place / ENTRY_BYTES - HEADER_BYTES / ENTRY_BYTES);
        Ok(())
    }

    /// Completes the index. `created` is in seconds since 1970.
    ///
    /// # Errors
    /// `Empty`; `Missing` if a chunk was not set.
    pub fn finish(mut self, uuid: [u8; 16], created: i64) -> Result<FinishedIndex, IndexWriteError> {
        let chunks = (self.bytes.len() - HEADER_BYTES) / ENTRY_BYTES;
        if chunks == 0 {
            return Err(IndexWriteError::Empty);
        }
        if let Some(missing) = (0..chunks).find(|number| !self.is_marked(*number)) {
            return Err(IndexWriteError::Missing { offset: missing as u64 * self.chunk_size });
        }
        let size = self.size.unwrap_or(chunks as u64 * self.chunk_size);
        self.bytes[SIZE_OFFSET..SIZE_OFFSET + 8].copy_from_slice(&size.to_le_bytes());
        self.bytes[CHUNK_SIZE_OFFSET..CHUNK_SIZE_OFFSET + 8].copy_from_slice(&self.chunk_size.to_le_bytes());
        Ok(FinishedIndex::new(self.bytes, MAGIC, (uuid, created), chunks, size))
    }

    /// Position of the entry of the chunk at an offset, after the header.
    fn place(&self, offset: u64) -> Result<usize, IndexWriteError> {
        let number = usize::try_from(offset / self.chunk_size).map_err(|_| IndexWriteError::TooLarge)?;
        number.checked_mul(ENTRY_BYTES).ok_or(IndexWriteError::TooLarge)
    }

    fn make_room(&mut self, count: u64) -> Result<(), IndexWriteError> {
        let count = usize::try_from(count).map_err(|_| IndexWriteError::TooLarge)?;
        let length = count.checked_mul(ENTRY_BYTES).and_then(|entries| entries.checked_add(HEADER_BYTES));
        let length = length.ok_or(IndexWriteError::TooLarge)?;
        if length > self.bytes.len() {
            self.bytes.try_reserve(length - self.bytes.len()).map_err(|_| IndexWriteError::TooLarge)?;
            self.bytes.resize(length, 0);
            self.present.resize(count.div_ceil(64), 0);
        }
        Ok(())
    }

    fn mark(&mut self, number: usize) {
        if let Some(word) = self.present.get_mut(number / 64) {
            *word |= 1 << (number % 64);
        }
    }

    fn is_marked(&self, number: usize) -> bool {
        self.present.get(number / 64).is_some_and(|word| word & (1 << (number % 64)) != 0)
    }
}

#[cfg(test)]
mod tests;
