//! Images in order, cut into chunks of one size.

use std::fmt;
use std::future::IntoFuture;
use std::io::{self, SeekFrom};
use std::ops::Range;

use futures::future::BoxFuture;
use futures::io::{AsyncRead, AsyncReadExt as _, AsyncSeek, AsyncSeekExt as _};
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};

use crate::error::{Error, ErrorKind, Result};
use crate::format::blob::MAX_CHUNK_BYTES;
use crate::format::fixed_index::FixedIndexWriter;
use crate::format::index::{IndexReader, IndexWriteError};
use crate::format::name::ArchiveKind;
use crate::store::backup::pipeline::{ArchiveTask, BaseArchive, Cut, Entry};
use crate::store::events::ArchiveEvent;
use crate::store::{ArchiveSummary, SnapshotReader, SnapshotWriter};

/// Default chunk size of an image, as in PBS.
pub(in crate::store) const CHUNK_BYTES: u64 = 4 << 20;

/// Number of chunks reused from a base at once.
const REUSE_BATCH: usize = 256;

/// Dirty extents: the parts of an image that may differ from the base.
///
/// Built from the ranges that were written since the base; they may overlap and come in any order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtyMap {
    /// In order, separate, none empty.
    ranges: Vec<Range<u64>>,
}

impl DirtyMap {
    /// Nothing differs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns `true` if any part of the range may differ.
    pub(crate) fn overlaps(&self, range: &Range<u64>) -> bool {
        let first = self.ranges.partition_point(|dirty| dirty.end <= range.start);
        !range.is_empty() && self.ranges.get(first).is_some_and(|dirty| dirty.start < range.end)
    }
}

impl FromIterator<Range<u64>> for DirtyMap {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        sorted.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in sorted {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self { ranges: merged }
    }
}

/// Moves a reader to an offset.
type Seek<R> = for<'r> fn(&'r mut R, u64) -> BoxFuture<'r, io::Result<u64>>;

/// An image that is about to be written; awaiting it writes it.
#[must_use = "nothing is written before it is awaited"]
pub struct ImageBuilder<'a, R> {
    base: Option<&'a SnapshotReader>,
    chunk_bytes: u64,
    dirty: Option<(DirtyMap, Seek<R>)>,
    name: String,
    reader: R,
    size: Option<u64>,
    writer: &'a SnapshotWriter,
}

impl SnapshotWriter {
    /// Writes an image of `size` bytes, or of as many as `reader` yields if that is `None`, in chunks of one size. `name` is
    /// `disk.img` or `disk.img.fidx`.
    ///
    /// The reader is polled by the task that awaits; one that blocks belongs on a thread of its own.
    ///
    /// # Errors
    /// `Stream` if the reader fails, ends early, yields more than `size` bytes or nothing at all, which the format cannot
    /// express; `InvalidInput` for a name that is not valid or taken; any failure of the backend.
    ///
    /// # Cancel safety
    /// A dropped future leaves the archive out of the snapshot; bytes were taken from the reader.
    pub fn image<R>(
        &self,
        name: impl Into<String>,
        reader: R,
        size: impl Into<Option<u64>>,
    ) -> ImageBuilder<'_, R>
    where
        R: AsyncRead + Send + Unpin,
    {
        let (name, size) = (name.into(), size.into());
        ImageBuilder { base: None, chunk_bytes: CHUNK_BYTES, dirty: None, name, reader, size, writer: self }
    }
}

impl<'a, R> ImageBuilder<'a, R> {
    /// An earlier snapshot with an archive of the same name: chunks that it names are known and neither compressed nor
    /// stored again. It stays locked until the backup ends.
    ///
    /// Awaiting then fails with `NotFound` if it has no such archive, with `Conflict` if it failed verification, and with
    /// `Unsupported` if it is encrypted.
    pub fn base(mut self, base: &'a SnapshotReader) -> Self {
        self.base = Some(base);
        self
    }

    /// The size of a chunk in bytes, a power of two from 4 KiB to 16 MiB; default: 4 MiB, the only size that PBS writes
    /// itself.
    pub fn chunk_bytes(mut self, bytes: u64) -> Self {
        self.chunk_bytes = bytes;
        self
    }

    /// Dirty extents. Chunks without any are reused from the base without reading the image.
    ///
    /// Awaiting then fails with `InvalidInput` without a base or size, or if the base has chunks of another size. An image
    /// that is larger or smaller than the base is read where the two do not overlap.
    pub fn dirty(mut self, map: DirtyMap) -> Self
    where
        R: AsyncSeek + Send + Unpin,
    {
        self.dirty = Some((map, |reader, offset| Box::pin(reader.seek(SeekFrom::Start(offset)))));
        self
    }
}

impl<R> fmt::Debug for ImageBuilder<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImageBuilder")
            .field("name", &self.name)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl<'a, R> IntoFuture for ImageBuilder<'a, R>
where
    R: AsyncRead + Send + Unpin + 'a,
{
    type Output = Result<ArchiveSummary>;
    type IntoFuture = BoxFuture<'a, Self::Output>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(write(self))
    }
}

async fn write<R>(builder: ImageBuilder<'_, R>) -> Result<ArchiveSummary>
where
    R: AsyncRead + Send + Unpin,
{
    let ImageBuilder { base, chunk_bytes, dirty, name, reader, size, writer } = builder;
    check_chunk_bytes(&name, chunk_bytes)?;
    let reserved = writer.shared().reserve(&name, ArchiveKind::Fixed)?;
    reserved.shared.events.emit(|| ArchiveEvent::ArchiveStarted { archive: reserved.name.clone(), size });
    let mut task = ArchiveTask::begin(reserved, base).await?;
    task.recognise_zeros(usize::try_from(chunk_bytes).unwrap_or(MAX_CHUNK_BYTES)).await?;
    let mut index = FixedIndexWriter::new(size, chunk_bytes).map_err(|error| index_error(&task, error))?;
    let seek = match dirty {
        None => None,
        Some((map, seek)) => {
            check_dirty(&task, size, chunk_bytes)?;
            Some((map, seek))
        }
    };
    {
        let in_flight = task.store().in_flight();
        // A seekable reader may start at any position.
        let moved = seek.is_some();
        let source = Source { at: 0, chunk_bytes, dirty: seek, moved, reader, size, task: &task };
        let entries = source.into_stream().map(|part| process(&task, part)).buffer_unordered(in_flight);
        let mut entries = std::pin::pin!(entries);
        while let Some((mut offset, batch)) = entries.try_next().await? {
            for entry in batch {
                index.set(offset, entry.length, entry.digest).map_err(|error| index_error(&task, error))?;
                offset += entry.length;
            }
        }
    }
    let (uuid, created) = task.stamp();
    let finished = index.finish(uuid, created).map_err(|error| index_error(&task, error))?;
    task.reserved.complete_index(finished)
}

pub(in crate::store) fn check_chunk_bytes(name: &str, chunk_bytes: u64) -> Result<()> {
    if chunk_bytes.is_power_of_two() && (4 << 10..=MAX_CHUNK_BYTES as u64).contains(&chunk_bytes) {
        return Ok(());
    }
    let error = Error::new(ErrorKind::InvalidInput, "write image").on(name);
    Err(error.because("the chunk size is not a power of two from 4 KiB to 16 MiB"))
}

pub(in crate::store) fn index_error(task: &ArchiveTask, error: IndexWriteError) -> Error {
    Error::new(ErrorKind::Stream, "write image").on(task.name()).because(error)
}

fn check_dirty(task: &ArchiveTask, size: Option<u64>, chunk_bytes: u64) -> Result<()> {
    let invalid = |why: &'static str| {
        Err(Error::new(ErrorKind::InvalidInput, "write image").on(task.name()).because(why))
    };
    let Some(base) = &task.base else { return invalid("a dirty map says nothing without a base") };
    if size.is_none() {
        return invalid("with a dirty map the size has to be known");
    }
    match &base.index {
        IndexReader::Fixed(index) if index.chunk_size() == chunk_bytes => Ok(()),
        _ => invalid("the base has chunks of another size"),
    }
}

/// Chunks to reuse, or one that was read, with its offset.
enum Part {
    Read(u64, Cut),
    Reused(u64, Vec<Entry>),
}

async fn process(task: &ArchiveTask, part: Result<Part>) -> Result<(u64, Vec<Entry>)> {
    match part? {
        Part::Read(at, cut) => Ok((at, vec![task.process(cut).await?])),
        Part::Reused(at, entries) => {
            task.reuse(&entries).await?;
            Ok((at, entries))
        }
    }
}

/// An image that is read in order.
struct Source<'a, R> {
    at: u64,
    chunk_bytes: u64,
    dirty: Option<(DirtyMap, Seek<R>)>,
    /// Returns `true` if the reader is not at `at`.
    moved: bool,
    reader: R,
    size: Option<u64>,
    task: &'a ArchiveTask,
}

impl<R: AsyncRead + Send + Unpin> Source<'_, R> {
    fn into_stream(self) -> impl Stream<Item = Result<Part>> {
        stream::try_unfold(
            self,
            |mut source| async move { Ok(source.next().await?.map(|part| (part, source))) },
        )
    }

    async fn next(&mut self) -> Result<Option<Part>> {
        let clean = self.clean_entries();
        if !clean.is_empty() {
            let at = self.at;
            self.at += clean.iter().map(|entry| entry.length).sum::<u64>();
            self.moved = true;
            return Ok(Some(Part::Reused(at, clean)));
        }
        let wanted = self.size.map_or(self.chunk_bytes, |size| self.chunk_bytes.min(size - self.at));
        if wanted == 0 {
            self.check_end().await?;
            return Ok(None);
        }
        let length = usize::try_from(wanted).unwrap_or(MAX_CHUNK_BYTES);
        let permit = self.task.permit(length).await;
        if std::mem::take(&mut self.moved)
            && let Some((_, seek)) = &self.dirty
        {
            seek(&mut self.reader, self.at).await.map_err(|error| self.task.stream_error(error))?;
        }
        let mut buffer = self.task.store().chunks.buffer(length);
        buffer.lengthen(length);
        let read = read_full(&mut self.reader, &mut buffer[..length]).await;
        let read = read.map_err(|error| self.task.stream_error(error))?;
        if read < length && self.size.is_some() {
            return Err(self.task.stream_error(io::ErrorKind::UnexpectedEof.into()));
        }
        if read == 0 {
            return Ok(None);
        }
        if read < length {
            self.size = Some(self.at + read as u64);
        }
        let at = self.at;
        self.at += read as u64;
        Ok(Some(Part::Read(at, Cut { bytes: buffer.freeze_to(read), permit })))
    }

    /// The next chunks that are the same as in the base, if they are known to be.
    fn clean_entries(&self) -> Vec<Entry> {
        let (Some((map, _)), Some(base), Some(size)) = (&self.dirty, &self.task.base, self.size) else {
            return Vec::new();
        };
        let mut entries = Vec::new();
        let mut at = self.at;
        while entries.len() < REUSE_BATCH {
            let range = at..size.min(at + self.chunk_bytes);
            let Some(entry) = base.at(&range).filter(|_| !map.overlaps(&range)) else { break };
            entries.push(entry);
            at = range.end;
        }
        entries
    }

    /// Fails if the reader yields more than the given size.
    async fn check_end(&mut self) -> Result<()> {
        if self.size.is_none() || self.dirty.is_some() {
            return Ok(());
        }
        let read = self.reader.read(&mut [0; 1]).await.map_err(|error| self.task.stream_error(error))?;
        if read == 0 {
            return Ok(());
        }
        Err(self.task.stream_error(io::Error::other("it yields more than the size that was given")))
    }
}

impl BaseArchive {
    /// The entry that covers exactly this range.
    pub(in crate::store) fn at(&self, range: &Range<u64>) -> Option<Entry> {
        if range.is_empty() {
            return None;
        }
        let chunk = self.index.chunk(self.index.chunk_at(range.start)?)?;
        let same = chunk.offset == range.start && chunk.len == range.end - range.start;
        same.then_some(Entry { digest: chunk.digest, length: chunk.len })
    }
}

/// Reads until the buffer is full or the stream ends.
async fn read_full<R: AsyncRead + Unpin>(reader: &mut R, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match reader.read(&mut buffer[filled..]).await? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dirty_map_finds_overlapping_extents() {
        let map: DirtyMap = [10..20, 15..30, 30..31, 50..50, 40..45].into_iter().collect();
        assert_eq!(map.ranges, [10..31, 40..45]);
        for (range, dirty) in [
            (0..10, false),
            (0..11, true),
            (30..40, true),
            (31..40, false),
            (44..90, true),
            (45..90, false),
            (12..12, false),
        ] {
            assert_eq!(map.overlaps(&range), dirty, "{range:?}");
        }
        assert!(!DirtyMap::new().overlaps(&(0..u64::MAX)));
    }
}
