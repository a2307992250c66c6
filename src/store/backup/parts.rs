//! Archives that are written by parts, some of which are chunks of a base.
//!
//! A caller pushes bytes, suggests and forces ends of chunks, and injects chunks that the archive of the same name in the base has, without
//! their data. The writer of trees is the caller.
//!
//! # States
//! | state | left by |
//! |---|---|
//! | bytes wait in the buffer | a cut of the chunker, a forced end, an injection, the end |
//! | a chunk is in flight, in a task of its own: digest, which was begun before → pin → known? → encode → store | its result |
//! | an entry waits for the chunks before it | the last of those |
//! | the entry is in the index | |
//!
//! Pushing waits while too many chunks are in flight or the memory budget is used up, so the buffer and the chunks in flight bound the memory.
//!
//! # Injected chunks
//! 1. [`ArchiveParts::can_inject`] pins each chunk, and only then looks for it: no sweep of this process removes it from here on (I2, I3). A suspect (H99), a chunk with
//!    a pending delete (H17) and a missing one are not injectable. The archive is as it was, and the caller reads the data again.
//! 2. [`ArchiveParts::inject`] ends the chunk in the buffer, also below the minimum, and enters the chunks as a whole. It refuses one that this
//!    writer has not confirmed.
//! 3. The base is locked until the backup ends, and has the same key in the same mode (`check_base`), so no plain chunk enters an encrypted archive or the reverse (H179).
//! 4. Publication checks the base and all pins again, as for any archive.
//!
//! A crash or a drop at any point leaves chunks without an index, which the collector removes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{self, FuturesUnordered, StreamExt as _, TryStreamExt as _};

use crate::chunker::{BuzhashChunker, Chunker as _};
use crate::chunks::ReuseSource;
use crate::error::{Error, ErrorKind, Result};
use crate::format::dynamic_index::{DynamicIndexReader, DynamicIndexWriter};
use crate::format::index::{FinishedIndex, IndexReader};
use crate::format::name::ArchiveKind;
use crate::rt::detached::Detached;
use crate::store::backup::chunk_buffer::{BATCH_BYTES, ChunkBuffer};
use crate::store::backup::image::index_error;
use crate::store::backup::pipeline::{ArchiveTask, BaseChoice, Cut, Entry, GiveUp, yield_now};
use crate::store::events::ArchiveEvent;
use crate::store::{ArchiveReader, ArchiveSummary, BaseUse, SnapshotWriter};
use crate::trace::Part;

/// Number of chunks that are looked for concurrently.
const LOOK_UPS: usize = 16;

/// An archive that is written by parts. Dropping it leaves the archive out of the snapshot.
#[derive(Debug)]
pub(crate) struct ArchiveParts {
    buffer: ChunkBuffer,
    chunker: BuzhashChunker,
    given_up: GiveUp,
    index: DynamicIndexWriter,
    /// Number of the next chunk.
    next: usize,
    /// Number of the next entry of the index.
    next_entry: usize,
    part: Part,
    /// Bytes of the archive so far.
    position: u64,
    /// Chunks in flight, each in a task of its own, which releases its resources without further calls.
    processing: FuturesUnordered<Detached<(usize, Entry)>>,
    /// Taken when the archive began: the source had every earlier modification by then.
    stamp: ([u8; 16], i64),
    task: Arc<ArchiveTask>,
    /// Entries that came before their turn.
    waiting: BTreeMap<usize, Entry>,
}

/// An archive whose index is ready, and which is not in the snapshot yet. Dropping it leaves the archive out.
#[derive(Debug)]
pub(crate) struct SealedParts {
    index: FinishedIndex,
    task: ArchiveTask,
}

impl SealedParts {
    /// Adds the archive to the snapshot.
    pub(crate) fn complete(self) -> Result<ArchiveSummary> {
        self.task.reserved.complete_index(self.index, self.task.base_use)
    }
}

impl SnapshotWriter {
    /// Begins an archive that is written by parts.
    pub(crate) async fn parts(
        &self,
        name: &str,
        chunker: BuzhashChunker,
        base: BaseChoice<'_>,
    ) -> Result<ArchiveParts> {
        let part = self.shared().archive(name);
        let begun = async {
            let reserved = self.shared().reserve(name, ArchiveKind::Dynamic)?;
            reserved
                .shared
                .events
                .emit(|| ArchiveEvent::ArchiveStarted { archive: reserved.name.clone(), size: None });
            ArchiveTask::begin(reserved, base).await
        };
        let task = Arc::new(part.run(begun).await?);
        Ok(ArchiveParts {
            buffer: ChunkBuffer::new(&task),
            chunker,
            given_up: GiveUp::of(&task),
            index: DynamicIndexWriter::new(),
            next: 0,
            next_entry: 0,
            part,
            position: 0,
            processing: FuturesUnordered::new(),
            stamp: task.stamp(),
            task,
            waiting: BTreeMap::new(),
        })
    }
}

impl ArchiveParts {
    /// Number of bytes of the archive so far, with those of injected chunks.
    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    /// The use of the base.
    pub(crate) fn base_use(&self) -> BaseUse {
        self.task.base_use
    }

    /// The index of the archive in the base.
    pub(crate) fn base_index(&self) -> Option<&DynamicIndexReader> {
        match self.task.base.as_ref().map(|base| &base.index) {
            Some(IndexReader::Dynamic(index)) => Some(index),
            _ => None,
        }
    }

    /// The archive in the base, opened for reading with the key of the backup.
    pub(crate) async fn base_reader(&self) -> Result<Option<ArchiveReader>> {
        let Some(base) = &self.task.base else { return Ok(None) };
        let lock = self.task.reserved.shared.base_lock(&base.snapshot)?;
        let store = Arc::clone(self.task.store());
        let name = (self.task.name().clone(), self.task.pins().key.as_ref());
        ArchiveReader::new(store, base.snapshot.clone(), name, base.index.clone(), lock).await.map(Some)
    }

    /// Adds bytes.
    pub(crate) async fn push(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let space = self.space();
            let length = space.len().min(bytes.len());
            space[..length].copy_from_slice(&bytes[..length]);
            bytes = &bytes[length..];
            self.filled(length).await?;
        }
        Ok(())
    }

    /// As [`push`](Self::push), without a copy where there are many bytes.
    pub(crate) async fn push_bytes(&mut self, bytes: Bytes) -> Result<()> {
        let length = bytes.len();
        self.buffer.push(bytes);
        self.added(length).await
    }

    /// Adds zeros.
    pub(crate) async fn push_zeros(&mut self, mut length: u64) -> Result<()> {
        while length > 0 {
            let space = self.space();
            let part = usize::try_from(length).unwrap_or(usize::MAX).min(space.len());
            space[..part].fill(0);
            length -= part as u64;
            self.filled(part).await?;
        }
        Ok(())
    }

    /// Room for further bytes, never empty; [`filled`](Self::filled) adds those that the caller has put there.
    pub(crate) fn space(&mut self) -> &mut [u8] {
        self.buffer.space()
    }

    /// Adds the first bytes of the [`space`](Self::space).
    pub(crate) async fn filled(&mut self, length: usize) -> Result<()> {
        self.buffer.add(length);
        self.added(length).await
    }

    /// Cuts chunks when many bytes have gathered.
    async fn added(&mut self, length: usize) -> Result<()> {
        self.position += length as u64;
        if self.buffer.filled() - self.buffer.scanned() >= BATCH_BYTES {
            // The last byte stays unscanned: a boundary may be suggested right after it.
            self.cut(self.buffer.filled() - 1).await?;
        }
        Ok(())
    }

    /// Suggests that a chunk ends here.
    pub(crate) fn suggest_end(&mut self) {
        self.chunker.suggest((self.buffer.filled() - self.buffer.scanned()) as u64);
    }

    /// Ends the current chunk here, also below the minimum. Without bytes since the last chunk it does nothing.
    pub(crate) async fn end_chunk(&mut self) -> Result<()> {
        self.cut(self.buffer.filled()).await?;
        if self.buffer.filled() > 0 {
            self.store(self.buffer.filled()).await?;
        }
        self.chunker.restart();
        Ok(())
    }

    /// Pins chunks that the base names, and returns `true` if all of them are certainly in the store.
    pub(crate) async fn can_inject(&self, entries: &[Entry]) -> Result<bool> {
        mutated!("tree-reuses-lost-chunks" => return Ok(true));
        let (chunks, pins) = (&self.task.store().chunks, self.task.pins());
        let digests: Vec<_> = entries.iter().map(|entry| entry.digest).collect();
        let look_ups = stream::iter(digests)
            .map(|digest| chunks.reuse_if_present(pins, digest, ReuseSource::Base))
            .buffer_unordered(LOOK_UPS);
        look_ups.try_fold(true, |all, is_there| async move { Ok(all && is_there) }).await
    }

    /// Enters whole chunks of the base that [`can_inject`](Self::can_inject) found.
    pub(crate) async fn inject(&mut self, entries: &[Entry]) -> Result<()> {
        self.end_chunk().await?;
        for entry in entries {
            if entry.length == 0 || !self.task.pins().is_confirmed(&entry.digest) {
                let error = Error::new(ErrorKind::Conflict, "reuse chunk").on(entry.digest);
                return Err(error.because("it was found bad or gone after it was looked up"));
            }
            self.waiting.insert(self.next, *entry);
            self.next += 1;
            self.position += entry.length;
        }
        self.task.count_reused(entries);
        self.enter()
    }

    /// Ends the last chunk, and waits until all are in the store.
    pub(crate) async fn drain(&mut self) -> Result<()> {
        self.end_chunk().await?;
        while let Some(processed) = self.processing.next().await {
            self.accept(processed?)?;
        }
        Ok(())
    }

    /// Ends the archive, whose chunks [`drain`](Self::drain) has brought to the store.
    pub(crate) fn seal(self) -> Result<SealedParts> {
        let Self { index, task, given_up, stamp: (uuid, created), .. } = self;
        let index = index.finish(uuid, created).map_err(|error| index_error(&task, error))?;
        let task = Arc::try_unwrap(task).map_err(|task| {
            Error::new(ErrorKind::Internal, "write archive").on(task.name()).because("a chunk is in flight")
        })?;
        // From here on the task itself frees the name if it is dropped.
        given_up.disarm();
        Ok(SealedParts { index, task })
    }

    /// Scans the buffer up to this length, and stores the chunks that end there.
    async fn cut(&mut self, up_to: usize) -> Result<()> {
        let mut up_to = up_to;
        while self.buffer.scanned() < up_to {
            // A batch takes a tenth of a millisecond.
            let batch = self.buffer.unscanned(up_to);
            let scanned = batch.len();
            if let Some(cut) = self.chunker.scan(batch) {
                let length = self.buffer.scanned() + cut;
                self.store(length).await?;
                up_to -= length;
            } else {
                self.buffer.advance(scanned);
                yield_now().await;
            }
        }
        Ok(())
    }

    /// Removes the first `length` bytes as a chunk, and starts to store it. The bytes after them begin the next one. Waits while
    /// too many chunks are in flight.
    async fn store(&mut self, length: usize) -> Result<()> {
        let (bytes, digest) = self.buffer.cut(length);
        let in_flight = self.task.store().in_flight();
        while self.processing.len() >= in_flight {
            if let Some(processed) = self.processing.next().await {
                self.accept(processed?)?;
            }
        }
        let permit = self.task.permit(length).await;
        // `finish` needs the only reference to the archive task: this one is dropped before the result is visible.
        let (task, number) = (Arc::clone(&self.task), self.next);
        self.next += 1;
        let work = async move {
            let entry = task.process(Cut { bytes, digest: Some(digest), permit }).await?;
            Ok((number, entry))
        };
        let runtime = self.task.store().runtime();
        self.processing.push(runtime.run_detached("write archive", self.part.run(work)));
        Ok(())
    }

    fn accept(&mut self, (number, entry): (usize, Entry)) -> Result<()> {
        self.waiting.insert(number, entry);
        self.enter()
    }

    /// Enters the entries whose turn has come.
    fn enter(&mut self) -> Result<()> {
        while let Some(entry) = self.waiting.remove(&self.next_entry) {
            self.next_entry += 1;
            self.index.push(entry.length, entry.digest).map_err(|error| {
                Error::new(ErrorKind::Internal, "write index").on(self.task.name()).because(error)
            })?;
        }
        Ok(())
    }
}
