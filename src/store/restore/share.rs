//! Readers that share an archive and its cache, for files and walks of trees.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future;

use crate::error::Result;
use crate::rt::semaphore::Semaphore;
use crate::store::ArchiveReader;
use crate::store::events::Events;
use crate::store::restore::chunk_cache::ChunkCache;

impl ArchiveReader {
    /// Caches chunks up to this number of bytes, for streams and for reads by range of all readers that share it.
    #[must_use]
    pub(crate) fn share_cache(mut self, bytes: usize) -> Self {
        if let Some(archive) = Arc::get_mut(&mut self.archive) {
            archive.cache = Mutex::new(ChunkCache::of_bytes(bytes));
            self.fills_cache = true;
        }
        self
    }

    /// Keeps no chunk that this stream has passed: nothing reads it again.
    #[must_use]
    pub(crate) fn bypass_cache(mut self) -> Self {
        self.fills_cache = false;
        self
    }

    /// Another reader of the same archive, at this position. It fetches nothing ahead that lies behind `end`.
    pub(crate) fn another(&self, position: u64, end: u64) -> Self {
        let ahead_end = end.checked_sub(1).and_then(|last| self.archive.index.chunk_at(last));
        Self {
            ahead: Mutex::default(),
            ahead_end: ahead_end.map_or(self.archive.index.len(), |last| last + 1),
            archive: Arc::clone(&self.archive),
            current: None,
            cache_policy: self.cache_policy,
            events: Events::default(),
            fills_cache: self.fills_cache,
            lock: Arc::clone(&self.lock),
            position,
            slots: Semaphore::new(self.archive.store.in_flight()),
            started: false,
            window: 1,
        }
    }

    /// As [`read_at`](Self::read_at), without a copy: also fewer bytes at the end of a buffer.
    pub(crate) async fn read_some_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let Some(number) = self.archive.index.chunk_at(offset) else { return Ok(Bytes::new()) };
        let chunk = self.archive.cached(number).await?;
        let mut bytes = chunk.shared_at(self.archive.place_within(number, offset));
        bytes.truncate(length);
        Ok(bytes)
    }

    /// Reads bytes of the chunk at this position, as a part of a stream: the next chunks are fetched ahead. Returns nothing at the end.
    pub(crate) async fn read_part_at(&mut self, position: u64) -> Result<Bytes> {
        let Some(number) = self.archive.index.chunk_at(position) else { return Ok(Bytes::new()) };
        self.position = position;
        future::poll_fn(|context| self.poll_current(context, number)).await?;
        let within = self.archive.place_within(number, position);
        Ok(self.current.as_ref().map_or_else(Bytes::new, |(_, chunk)| chunk.shared_at(within)))
    }

    /// Returns `true` if the byte at this position lies in the chunk that the stream is in.
    pub(crate) fn is_at_hand(&self, position: u64) -> bool {
        let number = self.archive.index.chunk_at(position);
        number.is_some() && self.current.as_ref().map(|(at, _)| *at) == number
    }

    /// Moves the stream to a position.
    pub(crate) fn set_position(&mut self, position: u64) {
        self.position = position;
    }
}
