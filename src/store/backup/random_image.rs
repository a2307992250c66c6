//! Images whose parts come in any order.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt as _};

use crate::buffers::Buffer;
use crate::chunks::CachePolicy;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::MAX_CHUNK_BYTES;
use crate::format::fixed_index::FixedIndexWriter;
use crate::format::name::ArchiveKind;
use crate::rt::detached::Detached;
use crate::store::backup::image::{CHUNK_BYTES, check_chunk_bytes, empty, index_error};
use crate::store::backup::pipeline::{ArchiveTask, BaseChoice, Cut, Entry, GiveUp, yield_now};
use crate::store::events::ArchiveEvent;
use crate::store::{ArchiveSummary, SnapshotReader, SnapshotWriter, in_archive};
use crate::trace::Part;

/// Maximum number of partly written chunks.
const PARTIAL_CHUNKS: usize = 16;

/// An image that is about to be written in any order.
#[derive(Debug)]
#[must_use = "nothing is written before `begin`"]
pub struct ImageWriterBuilder<'a> {
    base: BaseChoice<'a>,
    chunk_bytes: u64,
    name: String,
    size: u64,
    writer: &'a SnapshotWriter,
}

/// An image whose parts come in any order.
///
/// Dropping it leaves the archive out of the snapshot.
#[derive(Debug)]
pub struct ImageWriter {
    chunk_bytes: u64,
    index: FixedIndexWriter,
    /// `true` during a change, and after one whose future was dropped.
    is_interrupted: bool,
    partial: BTreeMap<u64, Partial>,
    given_up: GiveUp,
    part: Part,
    /// Chunks in flight, each in a task of its own, which releases its resources without further calls.
    processing: FuturesUnordered<Detached<(u64, Entry)>>,
    size: u64,
    task: Arc<ArchiveTask>,
    /// Chunks in the index or on their way to it, one bit each.
    taken: Vec<u64>,
}

/// A chunk of which some bytes are missing.
#[derive(Debug)]
struct Partial {
    buffer: Buffer,
    /// Written ranges, in order and separate.
    filled: Vec<Range<usize>>,
}

impl SnapshotWriter {
    /// Prepares an image of `size` bytes whose parts come in any order. `name` is `disk.img` or `disk.img.fidx`.
    pub fn image_writer(&self, name: impl Into<String>, size: u64) -> ImageWriterBuilder<'_> {
        ImageWriterBuilder {
            base: BaseChoice::None,
            chunk_bytes: CHUNK_BYTES,
            name: name.into(),
            size,
            writer: self,
        }
    }
}

impl<'a> ImageWriterBuilder<'a> {
    /// An earlier snapshot with an image of the same name, which supplies the parts that are not written. It stays locked until
    /// the backup ends.
    pub fn base(mut self, base: &'a SnapshotReader) -> Self {
        self.base = BaseChoice::Required(base);
        self
    }

    /// The size of a chunk in bytes, a power of two from 4 KiB to 16 MiB; default: 4 MiB, the only size that PBS writes
    /// itself.
    pub fn chunk_bytes(mut self, bytes: u64) -> Self {
        self.chunk_bytes = bytes;
        self
    }

    /// Begins the image.
    ///
    /// # Errors
    /// `InvalidInput` for a name that is not valid or taken, or a size of zero, which the format cannot express; with a base,
    /// `NotFound` if it has no such image, `Conflict` if it failed verification, `KeyRequired` if it is encrypted and the backup is not,
    /// `WrongKey` if its key or the use of the key differs.
    pub async fn begin(self) -> Result<ImageWriter> {
        let part = self.writer.shared().archive(&self.name);
        part.run(self.begin_part(part.clone())).await
    }

    async fn begin_part(self, part: Part) -> Result<ImageWriter> {
        let Self { base, chunk_bytes, name, size, writer } = self;
        check_chunk_bytes(&name, chunk_bytes)?;
        let reserved = writer.shared().reserve(&name, ArchiveKind::Fixed)?;
        reserved
            .shared
            .events
            .emit(|| ArchiveEvent::ArchiveStarted { archive: reserved.name.clone(), size: Some(size) });
        if size == 0 {
            return Err(empty(&reserved.name));
        }
        let mut task = ArchiveTask::begin(reserved, base).await?;
        task.recognise_zeros(usize::try_from(chunk_bytes).unwrap_or(MAX_CHUNK_BYTES)).await?;
        let index = FixedIndexWriter::new(Some(size), chunk_bytes).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "write image").on(task.name()).because(error)
        })?;
        let chunks = usize::try_from(size.div_ceil(chunk_bytes)).unwrap_or(usize::MAX);
        let task = Arc::new(task);
        Ok(ImageWriter {
            chunk_bytes,
            given_up: GiveUp::of(&task),
            index,
            is_interrupted: false,
            part,
            partial: BTreeMap::new(),
            processing: FuturesUnordered::new(),
            size,
            task,
            taken: vec![0; chunks.div_ceil(64)],
        })
    }
}

impl ImageWriter {
    /// Writes bytes at an offset. A chunk is stored as soon as all of it was written, and cannot be changed after that.
    ///
    /// # Errors
    /// `InvalidInput` beyond the end of the image, for bytes of a complete chunk, if more than 16 chunks
    /// are incomplete, or after a write whose future was dropped; any failure of the backend, also of an earlier write.
    ///
    /// # Cancel safety
    /// A dropped future leaves some of the bytes written. The image can then only be dropped.
    pub async fn write_at(&mut self, offset: u64, data: Bytes) -> Result<()> {
        self.begin_change()?;
        let written = self.part.clone().run(self.write(offset, data)).await;
        self.is_interrupted = false;
        written
    }

    /// Fails after a change whose future was dropped. [`finish`](ImageWriter::finish) would take the rest of it from the base.
    fn begin_change(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_interrupted, true) {
            return Err(self.invalid("the future of an earlier write was dropped"));
        }
        Ok(())
    }

    async fn write(&mut self, offset: u64, data: Bytes) -> Result<()> {
        let end = offset.checked_add(data.len() as u64).filter(|end| *end <= self.size);
        if end.is_none() {
            return Err(self.invalid("the bytes lie beyond the end of the image"));
        }
        let mut rest = data;
        let mut at = offset;
        while !rest.is_empty() {
            let chunk = self.chunk_range(at / self.chunk_bytes);
            let length = usize::try_from(chunk.end - at).unwrap_or(usize::MAX).min(rest.len());
            let part = rest.split_to(length);
            if at == chunk.start && part.len() as u64 == chunk.end - chunk.start && !self.has_partial(at) {
                self.take(at)?;
                self.store(at, part).await?;
            } else {
                self.fill(at, &part).await?;
            }
            at += length as u64;
        }
        Ok(())
    }

    /// Writes zeros. Whole chunks of them are neither hashed nor held in memory.
    ///
    /// # Errors
    /// As for [`write_at`](ImageWriter::write_at).
    ///
    /// # Cancel safety
    /// That of [`write_at`](ImageWriter::write_at).
    pub async fn write_zeros(&mut self, offset: u64, length: u64) -> Result<()> {
        self.begin_change()?;
        let written = self.part.clone().run(self.zeros(offset, length)).await;
        self.is_interrupted = false;
        written
    }

    async fn zeros(&mut self, offset: u64, length: u64) -> Result<()> {
        let end = offset.checked_add(length).filter(|end| *end <= self.size);
        let end = end.ok_or_else(|| self.invalid("the zeros lie beyond the end of the image"))?;
        let mut zeros = Bytes::new();
        let mut at = offset;
        while at < end {
            let chunk = self.chunk_range(at / self.chunk_bytes);
            let part = chunk.end.min(end) - at;
            if at == chunk.start
                && part == chunk.end - chunk.start
                && !self.has_partial(at)
                && self.enter_zeros(&chunk)?
            {
                at += part;
                if at.is_multiple_of((chunk.end - chunk.start).saturating_mul(1024)) {
                    yield_now().await;
                }
                continue;
            }
            let wanted = usize::try_from(part).unwrap_or(MAX_CHUNK_BYTES);
            if zeros.len() < wanted {
                zeros = Bytes::from(vec![0; wanted]);
            }
            self.write(at, zeros.slice(..wanted)).await?;
            at += part;
        }
        Ok(())
    }

    /// Ends the image. With a base, the parts that were not written come from it.
    ///
    /// # Errors
    /// `InvalidInput` if a part was not written and the base lacks it too, or if the future of a write was dropped; any failure of the backend.
    ///
    /// # Cancel safety
    /// A dropped future leaves the archive out of the snapshot.
    pub async fn finish(self) -> Result<ArchiveSummary> {
        self.part.clone().run(self.complete()).await
    }

    async fn complete(mut self) -> Result<ArchiveSummary> {
        self.begin_change()?;
        while let Some((&offset, _)) = self.partial.first_key_value() {
            self.complete_from_base(offset).await?;
        }
        self.reuse_the_rest().await?;
        while let Some(processed) = self.processing.next().await {
            self.enter(processed?)?;
        }
        let Self { index, task, given_up, .. } = self;
        given_up.disarm();
        let (uuid, created) = task.stamp();
        let finished = index.finish(uuid, created).map_err(|error| {
            Error::new(ErrorKind::InvalidInput, "write image").on(task.name()).because(error)
        })?;
        let task = Arc::try_unwrap(task).map_err(|task| {
            Error::new(ErrorKind::Internal, "write image").on(task.name()).because("a chunk is in flight")
        })?;
        task.reserved.complete_index(finished, task.base_use)
    }

    /// Adds bytes to a partly written chunk, and stores the chunk when it is complete.
    async fn fill(&mut self, at: u64, part: &[u8]) -> Result<()> {
        let chunk = self.chunk_range(at / self.chunk_bytes);
        if !self.has_partial(at) {
            if self.partial.len() >= PARTIAL_CHUNKS {
                return Err(self.invalid("more than 16 chunks were written in part"));
            }
            self.take(chunk.start)?;
            let length = usize::try_from(chunk.end - chunk.start).unwrap_or(MAX_CHUNK_BYTES);
            let mut buffer = self.task.store().chunks.buffer(length);
            buffer.truncate(length);
            buffer.lengthen(length);
            self.partial.insert(chunk.start, Partial { buffer, filled: Vec::new() });
        }
        let start = usize::try_from(at - chunk.start).unwrap_or(MAX_CHUNK_BYTES);
        let Some(partial) = self.partial.get_mut(&chunk.start) else { return Ok(()) };
        partial.write(start, part);
        if partial.is_whole()
            && let Some(partial) = self.partial.remove(&chunk.start)
        {
            self.store(chunk.start, partial.buffer.freeze()).await?;
        }
        Ok(())
    }

    /// Fills the missing parts of a chunk from the base.
    async fn complete_from_base(&mut self, offset: u64) -> Result<()> {
        let chunk = self.chunk_range(offset / self.chunk_bytes);
        let entry = self.task.base.as_ref().and_then(|base| base.at(&chunk));
        let entry = entry.ok_or_else(|| self.invalid("a chunk was written in part only"))?;
        let (chunks, key) = (&self.task.store().chunks, self.task.pins().key.as_ref());
        let old = chunks.get(entry.digest, entry.length, CachePolicy::Bypass, key).await;
        let old = old.map_err(|error| match &self.task.base {
            Some(base) => in_archive(error, entry.digest, self.task.name(), &base.snapshot),
            None => error,
        })?;
        let Some(mut partial) = self.partial.remove(&offset) else { return Ok(()) };
        for hole in partial.holes() {
            old.copy_to(hole.start, &mut partial.buffer[hole]);
        }
        self.store(offset, partial.buffer.freeze()).await
    }

    async fn reuse_the_rest(&mut self) -> Result<()> {
        let Some(base) = &self.task.base else { return Ok(()) };
        let mut missing = Vec::new();
        let mut offset = 0;
        while offset < self.size {
            let chunk = self.chunk_range(offset / self.chunk_bytes);
            if !self.is_taken(offset)
                && let Some(entry) = base.at(&chunk)
            {
                missing.push((offset, entry));
            }
            offset = chunk.end;
        }
        for batch in missing.chunks(256) {
            let entries: Vec<_> = batch.iter().map(|(_, entry)| *entry).collect();
            self.task.reuse(&entries).await?;
        }
        for part in missing {
            self.enter(part)?;
        }
        Ok(())
    }

    /// Starts to store a complete chunk. Waits while too many are in flight.
    async fn store(&mut self, offset: u64, bytes: Bytes) -> Result<()> {
        if let Some(digest) = self.task.zero_digest(bytes.len() as u64)
            && self.task.pins().is_confirmed(&digest)
            && crate::chunker::is_zero(&bytes)
        {
            return self.enter((offset, Entry { digest, length: bytes.len() as u64 }));
        }
        let in_flight = self.task.store().in_flight();
        while self.processing.len() >= in_flight {
            if let Some(processed) = self.processing.next().await {
                self.enter(processed?)?;
            }
        }
        let permit = self.task.permit(bytes.len()).await;
        // `finish` needs the only reference to the archive task: this one is dropped before the result is visible.
        let task = Arc::clone(&self.task);
        let work = async move {
            let entry = task.process(Cut { bytes: bytes.into(), digest: None, permit }).await?;
            Ok((offset, entry))
        };
        let runtime = self.task.store().runtime();
        self.processing.push(runtime.run_detached("write image", self.part.run(work)));
        Ok(())
    }

    /// Enters a chunk of zeros without storing it, if this backup has stored one before.
    fn enter_zeros(&mut self, chunk: &Range<u64>) -> Result<bool> {
        let length = chunk.end - chunk.start;
        let confirmed = |digest: &Digest| self.task.pins().is_confirmed(digest);
        let Some(digest) = self.task.zero_digest(length).filter(confirmed) else { return Ok(false) };
        self.take(chunk.start)?;
        self.enter((chunk.start, Entry { digest, length }))?;
        Ok(true)
    }

    fn enter(&mut self, (offset, entry): (u64, Entry)) -> Result<()> {
        self.index.set(offset, entry.length, entry.digest).map_err(|error| index_error(&self.task, error))
    }

    fn chunk_range(&self, number: u64) -> Range<u64> {
        let start = number * self.chunk_bytes;
        start..self.size.min(start + self.chunk_bytes)
    }

    fn has_partial(&self, at: u64) -> bool {
        self.partial.contains_key(&(at / self.chunk_bytes * self.chunk_bytes))
    }

    fn bit(&self, offset: u64) -> (usize, u64) {
        let number = offset / self.chunk_bytes;
        (usize::try_from(number / 64).unwrap_or(usize::MAX), 1 << (number % 64))
    }

    fn is_taken(&self, offset: u64) -> bool {
        let (word, bit) = self.bit(offset);
        self.taken.get(word).is_some_and(|taken| taken & bit != 0)
    }

    /// Marks a chunk as begun. Fails if it was begun before.
    fn take(&mut self, offset: u64) -> Result<()> {
        if self.is_taken(offset) {
            return Err(self.invalid("the chunk is complete already"));
        }
        let (word, bit) = self.bit(offset);
        if let Some(taken) = self.taken.get_mut(word) {
            *taken |= bit;
        }
        Ok(())
    }

    fn invalid(&self, why: &'static str) -> Error {
        Error::new(ErrorKind::InvalidInput, "write image").on(self.task.name()).because(why)
    }
}

impl Partial {
    fn write(&mut self, start: usize, part: &[u8]) {
        let mut range = start..start + part.len();
        self.buffer[range.clone()].copy_from_slice(part);
        let touches = |filled: &Range<usize>| filled.start <= range.end && filled.end >= range.start;
        let joined: Vec<_> = self.filled.iter().filter(|filled| touches(filled)).cloned().collect();
        self.filled.retain(|filled| !joined.contains(filled));
        for filled in joined {
            range = range.start.min(filled.start)..range.end.max(filled.end);
        }
        let at = self.filled.partition_point(|filled| filled.start < range.start);
        self.filled.insert(at, range);
    }

    fn is_whole(&self) -> bool {
        self.filled.first() == Some(&(0..self.buffer.len()))
    }

    fn holes(&self) -> Vec<Range<usize>> {
        let mut holes = Vec::new();
        let mut at = 0;
        for filled in &self.filled {
            holes.push(at..filled.start);
            at = filled.end;
        }
        holes.push(at..self.buffer.len());
        holes
    }
}
