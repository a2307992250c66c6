//! Readers that share an archive and its cache, for files and walks of trees.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures::future;

use crate::error::Result;
use crate::store::ArchiveReader;
use crate::store::events::Events;
use crate::store::restore::chunk_cache::ChunkCache;

impl ArchiveReader {
    /// Caches chunks up to this number of bytes, for streams and for reads by range of all readers that share it.
    #[must_use]
    pub(crate) fn share_cache(mut self, bytes: usize) -> Self {
        if let Some(archive) = Arc::get_mut(&mut self.archive) {
            archive.cache = Mutex::new(ChunkCache::of_bytes(bytes));
            archive.caches_streams = true;
        }
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
            position,
            started: false,
            window: 1,
        }
    }

    /// Reads what is left of the chunk at this position, as a part of a stream: the next chunks are fetched ahead. Returns nothing at the end.
    pub(crate) async fn read_chunk_at(&mut self, position: u64) -> Result<Bytes> {
        let Some(number) = self.archive.index.chunk_at(position) else { return Ok(Bytes::new()) };
        self.position = position;
        let bytes = future::poll_fn(|context| self.poll_current(context, number)).await?;
        let within = usize::try_from(position - self.archive.range(number).start).unwrap_or(usize::MAX);
        Ok(bytes.slice(within.min(bytes.len())..))
    }

    /// Moves the stream to a position.
    pub(crate) fn set_position(&mut self, position: u64) {
        self.position = position;
    }
}
