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
use crate::format::name::{ArchiveKind, ArchiveName};
use crate::store::backup::dirty_map::DirtyMap;
use crate::store::backup::file_source::FileSource;
use crate::store::backup::pipeline::{ArchiveTask, BaseArchive, BaseChoice, Cut, Entry, checked_read};
use crate::store::backup::session::BaseUse;
use crate::store::events::ArchiveEvent;
use crate::store::{ArchiveSummary, SnapshotReader, SnapshotWriter};

/// Default chunk size of an image, as in PBS.
pub(in crate::store) const CHUNK_BYTES: u64 = 4 << 20;

/// Number of chunks reused from a base at once.
const REUSE_BATCH: usize = 256;

/// Moves a reader to an offset.
type Seek<R> = for<'r> fn(&'r mut R, u64) -> BoxFuture<'r, io::Result<u64>>;

/// An image that is about to be written; awaiting it writes it.
#[must_use = "nothing is written before it is awaited"]
pub struct ImageBuilder<'a, R> {
    base: BaseChoice<'a>,
    chunk_bytes: u64,
    /// The extents that have data; `None` if holes are not known.
    data: Option<DirtyMap>,
    dirty: Option<DirtyMap>,
    name: String,
    reader: R,
    /// Set if parts may be skipped.
    seek: Option<Seek<R>>,
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
    /// `Stream` if the reader fails, ends early or yields more than `size` bytes; `InvalidInput` for a name that is not valid or
    /// taken, and for an empty image, which the format cannot express: a `size` of 0 before anything is read; any failure of the backend.
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
        ImageBuilder {
            base: BaseChoice::None,
            chunk_bytes: CHUNK_BYTES,
            data: None,
            dirty: None,
            name,
            reader,
            seek: None,
            size,
            writer: self,
        }
    }

    /// Writes an image from a file or a block device. Whole chunks of holes are stored as zeros without reading them, on
    /// the filesystems whose holes a [`FileSource`] does not read.
    ///
    /// # Errors
    /// As for [`image`](Self::image).
    ///
    /// # Cancel safety
    /// As for [`image`](Self::image).
    pub fn image_file(&self, name: impl Into<String>, source: FileSource) -> ImageBuilder<'_, FileSource> {
        let (data, size) = (source.data().clone(), source.size());
        let mut builder = self.image(name, source, size);
        builder.data = Some(data);
        builder.seek = Some(seek);
        builder
    }
}

impl<'a, R> ImageBuilder<'a, R> {
    /// An earlier snapshot with an archive of the same name: chunks that it names are known and neither compressed nor
    /// stored again. It stays locked until the backup ends.
    ///
    /// Awaiting then fails with `NotFound` if it has no such archive, with `Conflict` if it failed verification, with
    /// `KeyRequired` if it is encrypted and the backup is not, and with `WrongKey` if its key or the use of the key differs.
    pub fn base(mut self, base: &'a SnapshotReader) -> Self {
        self.base = BaseChoice::Required(base);
        self
    }

    /// As [`base`](Self::base), but a base that cannot be used means a full backup, and [`ArchiveSummary::base`] gives the
    /// reason. `None` means a full backup too. [Dirty extents](Self::dirty) count only for a
    /// base that is used: otherwise the whole image is read.
    ///
    /// Awaiting still fails if the base belongs to another store, or the backend fails.
    #[doc(alias = "incremental")]
    #[doc(alias = "parent")]
    pub fn base_if_usable(mut self, base: Option<&'a SnapshotReader>) -> Self {
        self.base = BaseChoice::IfUsable(base);
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
        self.dirty = Some(map);
        self.seek = Some(seek);
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
        let (writer, name) = (self.writer, self.name.clone());
        Box::pin(writer.shared().archive(&name).run(write(self)))
    }
}

async fn write<R>(builder: ImageBuilder<'_, R>) -> Result<ArchiveSummary>
where
    R: AsyncRead + Send + Unpin,
{
    let ImageBuilder { base, chunk_bytes, data, dirty, name, reader, seek, size, writer } = builder;
    check_chunk_bytes(&name, chunk_bytes)?;
    let reserved = writer.shared().reserve(&name, ArchiveKind::Fixed)?;
    if size == Some(0) {
        return Err(empty(&reserved.name));
    }
    reserved.shared.events.emit(|| ArchiveEvent::ArchiveStarted { archive: reserved.name.clone(), size });
    let mut task = ArchiveTask::begin(reserved, base).await?;
    task.recognise_zeros(usize::try_from(chunk_bytes).unwrap_or(MAX_CHUNK_BYTES)).await?;
    let mut index = FixedIndexWriter::new(size, chunk_bytes).map_err(|error| index_error(&task, error))?;
    let dirty = match dirty {
        Some(map) if has_clean_parts(&mut task, base, size, chunk_bytes)? => Some(map),
        _ => None,
    };
    {
        let in_flight = task.store().in_flight();
        // A seekable reader may start at any position.
        let moved = seek.is_some();
        let source = Source { at: 0, chunk_bytes, data, dirty, moved, reader, seek, size, task: &task };
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
    task.reserved.complete_index(finished, task.base_use)
}

pub(in crate::store) fn check_chunk_bytes(name: &str, chunk_bytes: u64) -> Result<()> {
    if chunk_bytes.is_power_of_two() && (4 << 10..=MAX_CHUNK_BYTES as u64).contains(&chunk_bytes) {
        return Ok(());
    }
    let error = Error::new(ErrorKind::InvalidInput, "write image").on(name);
    Err(error.because("the chunk size is not a power of two from 4 KiB to 16 MiB"))
}

/// An archive without a byte. An index without a chunk would end every garbage collection of PBS.
pub(in crate::store) fn empty(name: &ArchiveName) -> Error {
    let error = Error::new(ErrorKind::InvalidInput, "write archive").on(name);
    error.because("it is empty, which an index cannot express; store an empty blob instead")
}

pub(in crate::store) fn index_error(task: &ArchiveTask, error: IndexWriteError) -> Error {
    if matches!(error, IndexWriteError::Empty) {
        return empty(task.name());
    }
    Error::new(ErrorKind::Stream, "write image").on(task.name()).because(error)
}

/// Returns `true` if dirty extents say which parts are the same as in the base.
fn has_clean_parts(
    task: &mut ArchiveTask,
    choice: BaseChoice<'_>,
    size: Option<u64>,
    chunk_bytes: u64,
) -> Result<bool> {
    let invalid = |why: &'static str| {
        Err(Error::new(ErrorKind::InvalidInput, "write image").on(task.name()).because(why))
    };
    if size.is_none() {
        return invalid("with a dirty map the size has to be known");
    }
    let is_required = !matches!(choice, BaseChoice::IfUsable(_));
    match task.base.as_ref().map(|base| &base.index) {
        Some(IndexReader::Fixed(index)) if index.chunk_size() == chunk_bytes => Ok(true),
        Some(_) if is_required => invalid("the base has chunks of another size"),
        Some(_) => {
            task.give_up_base(BaseUse::OtherChunkSize);
            Ok(false)
        }
        None if is_required => invalid("a dirty map says nothing without a base"),
        None => Ok(false),
    }
}

/// Chunks to reuse, or one that was read, with its offset.
enum Part {
    Read(u64, Cut),
    Reused(u64, Vec<Entry>),
    Zeros(u64, Vec<Entry>),
}

async fn process(task: &ArchiveTask, part: Result<Part>) -> Result<(u64, Vec<Entry>)> {
    match part? {
        Part::Read(at, cut) => Ok((at, vec![task.process(cut).await?])),
        Part::Zeros(at, entries) => {
            task.store_zeros(&entries).await?;
            Ok((at, entries))
        }
        Part::Reused(at, entries) => {
            task.reuse(&entries).await?;
            Ok((at, entries))
        }
    }
}

fn seek<R: AsyncSeek + Send + Unpin>(reader: &mut R, offset: u64) -> BoxFuture<'_, io::Result<u64>> {
    Box::pin(reader.seek(SeekFrom::Start(offset)))
}

/// An image that is read in order.
struct Source<'a, R> {
    at: u64,
    chunk_bytes: u64,
    data: Option<DirtyMap>,
    dirty: Option<DirtyMap>,
    /// Returns `true` if the reader is not at `at`.
    moved: bool,
    reader: R,
    seek: Option<Seek<R>>,
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
        let zeros = self.zero_entries();
        if !zeros.is_empty() {
            let at = self.at;
            self.at += zeros.iter().map(|entry| entry.length).sum::<u64>();
            self.moved = true;
            return Ok(Some(Part::Zeros(at, zeros)));
        }
        let wanted = self.size.map_or(self.chunk_bytes, |size| self.chunk_bytes.min(size - self.at));
        if wanted == 0 {
            self.check_end().await?;
            return Ok(None);
        }
        let length = usize::try_from(wanted).unwrap_or(MAX_CHUNK_BYTES);
        let permit = self.task.permit(length).await;
        if std::mem::take(&mut self.moved)
            && let Some(seek) = &self.seek
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
        Ok(Some(Part::Read(at, Cut { bytes: buffer.freeze_to(read).into(), digest: None, permit })))
    }

    /// The next chunks that are the same as in the base, if they are known to be.
    fn clean_entries(&self) -> Vec<Entry> {
        let (Some(map), Some(base), Some(size)) = (&self.dirty, &self.task.base, self.size) else {
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

    /// The next whole chunks that lie in a hole.
    fn zero_entries(&self) -> Vec<Entry> {
        let (Some(data), Some(size)) = (&self.data, self.size) else { return Vec::new() };
        let Some(digest) = self.task.zero_digest(self.chunk_bytes) else { return Vec::new() };
        let mut entries = Vec::new();
        let mut at = self.at;
        while entries.len() < REUSE_BATCH {
            let end = at + self.chunk_bytes;
            if end > size || data.overlaps(&(at..end)) {
                break;
            }
            entries.push(Entry { digest, length: self.chunk_bytes });
            at = end;
        }
        entries
    }

    /// Fails if the reader yields more than the given size.
    async fn check_end(&mut self) -> Result<()> {
        if self.size.is_none() || self.seek.is_some() {
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
        let read = reader.read(&mut buffer[filled..]).await?;
        match checked_read(read, buffer.len() - filled)? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}
