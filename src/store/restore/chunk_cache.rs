//! Cache of decoded chunks of an archive.

use std::collections::VecDeque;

use crate::buffers::BytesList;

/// Minimum number of chunks that a cache keeps.
const MIN_CHUNKS: usize = 4;

/// Maximum number of chunks that a cache keeps: it looks at all of them.
const MAX_CHUNKS: usize = 1024;

/// The last few chunks of an archive, by their numbers.
#[derive(Debug, Default)]
pub(super) struct ChunkCache {
    bytes: usize,
    /// The least recently used first.
    chunks: VecDeque<(usize, BytesList)>,
    limit_bytes: usize,
}

impl ChunkCache {
    /// A cache that keeps more than the minimum number of chunks, up to this number of bytes.
    pub(super) fn of_bytes(limit_bytes: usize) -> Self {
        Self { limit_bytes, ..Self::default() }
    }

    pub(super) fn find(&mut self, number: usize) -> Option<BytesList> {
        let at = self.chunks.iter().rposition(|(cached, _)| *cached == number)?;
        let found = self.chunks.remove(at)?;
        self.chunks.push_back(found.clone());
        Some(found.1)
    }

    pub(super) fn insert(&mut self, number: usize, bytes: BytesList) {
        // Concurrent readers may insert the same chunk.
        if self.find(number).is_some() {
            return;
        }
        self.bytes += bytes.len();
        self.chunks.push_back((number, bytes));
        while self.chunks.len() > MAX_CHUNKS
            || self.chunks.len() > MIN_CHUNKS && self.bytes > self.limit_bytes
        {
            self.bytes -= self.chunks.pop_front().map_or(0, |(_, bytes)| bytes.len());
        }
    }
}
