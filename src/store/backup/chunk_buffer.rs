//! The buffer in which the bytes of a chunk gather before it is cut.

use bytes::Bytes;

use crate::buffers::Buffer;
use crate::chunks::ChunkStore;
use crate::format::blob::MAX_CHUNK_BYTES;

/// Bytes that gather before the chunker scans them. Bytes after the end of a chunk are copied once.
pub(super) const BATCH_BYTES: usize = 512 << 10;

/// The bytes of the current chunk, and some of the next.
#[derive(Debug)]
pub(super) struct ChunkBuffer {
    bytes: Buffer,
    /// The capacity that most chunks stay below.
    capacity: usize,
    /// Number of bytes of the archive in it.
    pub(super) filled: usize,
    /// Number of them that the chunker has scanned.
    pub(super) scanned: usize,
}

impl ChunkBuffer {
    /// An empty buffer for chunks of typically this many bytes.
    pub(super) fn new(chunks: &ChunkStore, typical_bytes: usize) -> Self {
        let capacity = (typical_bytes * 2).min(MAX_CHUNK_BYTES) + BATCH_BYTES;
        Self { bytes: chunks.buffer(capacity), capacity, filled: 0, scanned: 0 }
    }

    /// Room for bytes after those that are in it, up to a position.
    pub(super) fn space(&mut self, end: usize) -> &mut [u8] {
        grow(&mut self.bytes, end);
        &mut self.bytes[self.filled..end]
    }

    /// The bytes up to a position that the chunker has not scanned.
    pub(super) fn unscanned(&self, end: usize) -> &[u8] {
        &self.bytes[self.scanned..end]
    }

    /// Removes the first `length` bytes as a chunk. The bytes after them begin the next one.
    pub(super) fn cut(&mut self, chunks: &ChunkStore, length: usize) -> Bytes {
        let rest = length..self.filled;
        let mut next = chunks.buffer(self.capacity);
        grow(&mut next, rest.len());
        next[..rest.len()].copy_from_slice(&self.bytes[rest.clone()]);
        let chunk = std::mem::replace(&mut self.bytes, next);
        self.filled = rest.len();
        self.scanned = 0;
        chunk.freeze_to(length)
    }
}

/// Makes a buffer at least `length` bytes long. One that is too small gets what the largest chunk needs.
fn grow(buffer: &mut Buffer, length: usize) {
    if buffer.capacity() < length {
        let more = length.max(MAX_CHUNK_BYTES + BATCH_BYTES) - buffer.len();
        buffer.reserve_exact(more);
    }
    buffer.lengthen(length);
}
