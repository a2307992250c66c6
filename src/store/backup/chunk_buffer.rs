//! The buffers in which the bytes of a chunk gather before it is cut.

use std::sync::Arc;

use bytes::Bytes;

use crate::buffers::{Buffer, BytesList};
use crate::crypt::EncryptionKey;
use crate::store::StoreInner;
use crate::store::backup::digester::{Digester, PendingDigest};
use crate::store::backup::pipeline::ArchiveTask;

/// Bytes that gather before the chunker scans them, and the length of a buffer.
pub(super) const BATCH_BYTES: usize = 512 << 10;

/// Shorter bytes of a caller are copied. Each part of a chunk costs a little.
const KEPT_BYTES: usize = 32 << 10;

/// Bytes that are hashed before the chunk is cut, at a time. Each time may cost a job.
const HASHED_BYTES: usize = 1 << 20;

/// The bytes of the current chunk, and some of the next.
#[derive(Debug)]
pub(super) struct ChunkBuffer {
    digester: Digester,
    /// Number of bytes of the archive in all buffers.
    filled: usize,
    /// The bytes before those in `open`.
    full: BytesList,
    /// Number of bytes that the digester has.
    hashed: usize,
    key: Option<EncryptionKey>,
    /// A buffer of [`BATCH_BYTES`] that is being filled.
    open: Buffer,
    /// Number of bytes in `open`.
    opened: usize,
    /// Number of bytes that the chunker has scanned. They belong to the current chunk.
    scanned: usize,
    store: Arc<StoreInner>,
}

impl ChunkBuffer {
    /// An empty buffer for chunks of an archive.
    pub(super) fn new(task: &ArchiveTask) -> Self {
        let store = Arc::clone(task.store());
        Self {
            digester: Digester::new(Arc::clone(store.runtime())),
            filled: 0,
            full: BytesList::default(),
            hashed: 0,
            key: task.pins().key.clone(),
            open: new_buffer(&store),
            opened: 0,
            scanned: 0,
            store,
        }
    }

    /// Number of bytes in it.
    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// Number of bytes that were scanned without an end of the chunk.
    pub(super) fn scanned(&self) -> usize {
        self.scanned
    }

    /// Room for bytes after those that are in it, never empty.
    pub(super) fn space(&mut self) -> &mut [u8] {
        &mut self.open[self.opened..BATCH_BYTES]
    }

    /// Adds the first bytes of the [`space`](Self::space).
    pub(super) fn add(&mut self, length: usize) {
        self.opened += length;
        self.filled += length;
        if self.opened >= BATCH_BYTES {
            self.close();
        }
    }

    /// Adds bytes, which are kept and not copied if there are many.
    pub(super) fn push(&mut self, mut bytes: Bytes) {
        if bytes.len() >= KEPT_BYTES {
            self.close();
            self.filled += bytes.len();
            return self.full.push(bytes);
        }
        while !bytes.is_empty() {
            let space = self.space();
            let length = space.len().min(bytes.len());
            space[..length].copy_from_slice(&bytes.split_to(length));
            self.add(length);
        }
    }

    /// Bytes before a position that the chunker has not scanned: those of one buffer.
    pub(super) fn unscanned(&self, end: usize) -> &[u8] {
        let bytes = match self.scanned.checked_sub(self.full.len()) {
            Some(at) => &self.open[at..self.opened],
            None => self.full.part_at(self.scanned),
        };
        &bytes[..bytes.len().min(end.saturating_sub(self.scanned))]
    }

    /// The chunker has scanned so many more bytes, and found no end.
    pub(super) fn advance(&mut self, length: usize) {
        self.scanned += length;
        // Not those of the open buffer, which is still written to.
        let end = self.scanned.min(self.full.len());
        if end >= self.hashed + HASHED_BYTES {
            self.digester.push(self.full.slice(self.hashed..end));
            self.hashed = end;
        }
    }

    /// Removes the first `length` bytes as a chunk, which has the scanned ones at least. The bytes after them begin the next one.
    pub(super) fn cut(&mut self, length: usize) -> (BytesList, PendingDigest) {
        if length > self.full.len() {
            self.close();
        }
        let chunk = self.full.split_to(length);
        let next = Digester::new(Arc::clone(self.store.runtime()));
        let digester = std::mem::replace(&mut self.digester, next);
        let digest = digester.finish(chunk.slice(self.hashed..length), self.key.clone());
        self.filled -= length;
        (self.hashed, self.scanned) = (0, 0);
        (chunk, digest)
    }

    /// Ends the open buffer. A few bytes move, so that they do not hold a whole buffer.
    fn close(&mut self) {
        let opened = std::mem::take(&mut self.opened);
        self.full.push(if opened < KEPT_BYTES {
            Bytes::copy_from_slice(&self.open[..opened])
        } else {
            std::mem::replace(&mut self.open, new_buffer(&self.store)).freeze_to(opened)
        });
    }
}

/// A buffer of [`BATCH_BYTES`], or a longer one.
fn new_buffer(store: &StoreInner) -> Buffer {
    let mut buffer = store.chunks.buffer(BATCH_BYTES);
    buffer.lengthen(BATCH_BYTES);
    buffer
}
