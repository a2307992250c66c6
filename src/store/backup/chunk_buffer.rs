//! The buffers in which the bytes of a chunk gather before it is cut.

use std::sync::Arc;

use bytes::Bytes;

use crate::buffers::{Buffer, Buffers, BytesList};
use crate::crypt::EncryptionKey;
use crate::rt::Runtime;
use crate::store::backup::digester::{Digester, PendingDigest};
use crate::store::backup::pipeline::ArchiveTask;

/// Bytes that gather before the chunker scans them, and the length of a buffer.
pub(super) const BATCH_BYTES: usize = 512 << 10;

/// Shorter bytes of a caller are copied, also into a buffer of their own. Each part of a chunk costs a little.
const KEPT_BYTES: usize = 32 << 10;

/// Bytes that are hashed before the chunk is cut, at a time. Each time may cost a job.
const HASHED_BYTES: usize = 1 << 20;

/// The bytes of the current chunk, and some of the next.
#[derive(Debug)]
pub(super) struct ChunkBuffer {
    digester: Digester,
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
    pool: Arc<Buffers>,
    runtime: Arc<dyn Runtime>,
}

impl ChunkBuffer {
    /// An empty buffer for chunks of an archive.
    pub(super) fn new(task: &ArchiveTask) -> Self {
        let store = task.store();
        Self::of(Arc::clone(store.runtime()), Arc::clone(store.chunks.buffers()), task.pins().key.clone())
    }

    fn of(runtime: Arc<dyn Runtime>, pool: Arc<Buffers>, key: Option<EncryptionKey>) -> Self {
        Self {
            digester: Digester::new(Arc::clone(&runtime)),
            full: BytesList::default(),
            hashed: 0,
            key,
            open: new_buffer(&pool),
            opened: 0,
            scanned: 0,
            pool,
            runtime,
        }
    }

    /// Number of bytes in it.
    pub(super) fn filled(&self) -> usize {
        self.full.len() + self.opened
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
        if self.opened >= BATCH_BYTES {
            self.close();
        }
    }

    /// Adds bytes. It copies what fits into the open buffer, so that most of each buffer is used, and keeps longer bytes.
    pub(super) fn push(&mut self, mut bytes: Bytes) {
        if bytes.len() >= KEPT_BYTES.max(self.space().len()) {
            self.close();
            return self.full.push(bytes);
        }
        while !bytes.is_empty() {
            let space = self.space();
            let length = space.len().min(bytes.len());
            space[..length].copy_from_slice(&bytes.split_to(length));
            self.add(length);
        }
    }

    /// Bytes before a position that the chunker has not scanned: those of one buffer, at most [`BATCH_BYTES`].
    pub(super) fn unscanned(&self, end: usize) -> &[u8] {
        let bytes = match self.scanned.checked_sub(self.full.len()) {
            Some(at) => &self.open[at..self.opened],
            None => self.full.part_at(self.scanned),
        };
        &bytes[..bytes.len().min(end.saturating_sub(self.scanned)).min(BATCH_BYTES)]
    }

    /// Notes that the chunker has scanned `length` more bytes and found no end.
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
        let next = Digester::new(Arc::clone(&self.runtime));
        let digester = std::mem::replace(&mut self.digester, next);
        let digest = digester.finish(chunk.slice(self.hashed..length), self.key.clone());
        (self.hashed, self.scanned) = (0, 0);
        (chunk, digest)
    }

    /// Ends the open buffer. A few bytes move, so that they do not hold a whole buffer.
    fn close(&mut self) {
        let opened = std::mem::take(&mut self.opened);
        self.full.push(if opened < KEPT_BYTES {
            Bytes::copy_from_slice(&self.open[..opened])
        } else {
            std::mem::replace(&mut self.open, new_buffer(&self.pool)).freeze_to(opened)
        });
    }
}

/// A buffer of at least [`BATCH_BYTES`].
fn new_buffer(pool: &Arc<Buffers>) -> Buffer {
    let mut buffer = pool.take(BATCH_BYTES);
    buffer.lengthen(BATCH_BYTES);
    buffer
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::format::Digest;
    use crate::rt::ThreadRuntime;

    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            usize::try_from(self.0 >> 33).unwrap() % limit
        }

        /// A length around one of those at which something changes.
        fn length(&mut self) -> usize {
            let around = [0, KEPT_BYTES, BATCH_BYTES, HASHED_BYTES, 2 * BATCH_BYTES + 1000];
            (around[self.below(around.len())] + self.below(3)).saturating_sub(1)
        }
    }

    fn bytes(random: &mut Random, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        bytes.chunks_mut(97).for_each(|part| part.fill(random.below(256).to_le_bytes()[0]));
        bytes
    }

    /// Bytes that are added by copy or kept, scanned in any parts, and cut anywhere.
    #[test]
    fn chunks_are_the_bytes_that_were_added_and_have_their_digests() {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let pool = Buffers::new(4 << 20);
        for seed in 0..12 {
            let mut random = Random(seed);
            let key = (seed % 3 == 0).then(|| EncryptionKey::from_bytes(&[3; 32]));
            let mut buffer = ChunkBuffer::of(Arc::clone(&runtime), Arc::clone(&pool), key.clone());
            let (mut added, mut chunks) = (Vec::new(), Vec::new());
            for _ in 0..40 {
                let length = random.length();
                let more = bytes(&mut random, length);
                added.extend_from_slice(&more);
                if random.below(2) == 0 {
                    buffer.push(more.into());
                } else {
                    let mut rest = &more[..];
                    while !rest.is_empty() {
                        let length = buffer.space().len().min(rest.len()).min(70_001);
                        buffer.space()[..length].copy_from_slice(&rest[..length]);
                        buffer.add(length);
                        rest = &rest[length..];
                    }
                }
                let end = buffer.filled() - random.below(2).min(buffer.filled());
                while buffer.scanned() < end && random.below(20) > 0 {
                    let unscanned = buffer.unscanned(end);
                    let start = added.len() - buffer.filled() + buffer.scanned();
                    assert_eq!(unscanned, &added[start..start + unscanned.len()]);
                    let scanned = unscanned.len();
                    if random.below(3) == 0 {
                        chunks.push(buffer.cut(buffer.scanned() + 1 + random.below(scanned)));
                        break;
                    }
                    buffer.advance(scanned);
                }
            }
            chunks.push(buffer.cut(buffer.filled()));
            let mut found = Vec::new();
            for (chunk, digest) in chunks {
                let start = found.len();
                chunk.iter().for_each(|part| found.extend_from_slice(part));
                let expected = Digest::of_chunk(&found[start..], key.as_ref());
                assert_eq!(block_on(digest.wait()).unwrap(), expected, "{seed}");
            }
            assert!(found == added, "{seed}");
        }
    }
}
