//! Archives from streams, cut by content.

use std::collections::BTreeMap;
use std::fmt;
use std::future::IntoFuture;

use futures::future::BoxFuture;
use futures::io::{AsyncRead, AsyncReadExt as _};
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};

use crate::chunker::{Chunker, default_of};
use crate::error::{Error, ErrorKind, Result};
use crate::format::blob::MAX_CHUNK_BYTES;
use crate::format::dynamic_index::DynamicIndexWriter;
use crate::format::name::ArchiveKind;
use crate::store::backup::chunk_buffer::{BATCH_BYTES, ChunkBuffer};
use crate::store::backup::image::index_error;
use crate::store::backup::pipeline::{ArchiveTask, BaseChoice, Cut, checked_read, yield_now};
use crate::store::events::ArchiveEvent;
use crate::store::{ArchiveSummary, SnapshotReader, SnapshotWriter};

/// A stream that is about to be written; awaiting it writes it.
#[must_use = "nothing is written before it is awaited"]
pub struct StreamBuilder<'a, R> {
    base: BaseChoice<'a>,
    chunker: Option<Box<dyn Chunker>>,
    name: String,
    reader: R,
    writer: &'a SnapshotWriter,
}

impl SnapshotWriter {
    /// Writes everything that `reader` yields as an archive of chunks that are cut by content. `name` is `root.tar` or
    /// `root.tar.didx`.
    ///
    /// The reader is polled by the task that awaits; one that blocks belongs on a thread of its own.
    ///
    /// # Errors
    /// `Stream` if the reader fails; `InvalidInput` for a name that is not valid or taken, and if the reader yields nothing at all, which the
    /// format cannot express: nothing is stored then, and the name is free, for example for an empty blob; any failure of the backend.
    ///
    /// # Cancel safety
    /// A dropped future leaves the archive out of the snapshot; bytes were taken from the reader.
    pub fn stream<R>(&self, name: impl Into<String>, reader: R) -> StreamBuilder<'_, R>
    where
        R: AsyncRead + Send + Unpin,
    {
        StreamBuilder { base: BaseChoice::None, chunker: None, name: name.into(), reader, writer: self }
    }
}

impl<'a, R> StreamBuilder<'a, R> {
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
    /// reason. `None` means a full backup too.
    ///
    /// Awaiting still fails if the base belongs to another store, or the backend fails.
    #[doc(alias = "incremental")]
    #[doc(alias = "parent")]
    pub fn base_if_usable(mut self, base: Option<&'a SnapshotReader>) -> Self {
        self.base = BaseChoice::IfUsable(base);
        self
    }

    /// How the stream is cut; default: a [`RollingChunker`](crate::chunker::RollingChunker) with chunks of 1 to 16 MiB, 4 MiB on average. Archives that
    /// clients of PBS write too, whose names end in `pxar`, `mpxar`, `ppxar` or `pcat1`, are cut where these clients cut them, by
    /// a [`BuzhashChunker`](crate::chunker::BuzhashChunker): they then share chunks. The latter is also the choice for a copy of such an archive under another name.
    pub fn chunker(mut self, chunker: Box<dyn Chunker>) -> Self {
        self.chunker = Some(chunker);
        self
    }
}

impl<R> fmt::Debug for StreamBuilder<'_, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamBuilder").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<'a, R> IntoFuture for StreamBuilder<'a, R>
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

async fn write<R>(builder: StreamBuilder<'_, R>) -> Result<ArchiveSummary>
where
    R: AsyncRead + Send + Unpin,
{
    let StreamBuilder { base, chunker, name, reader, writer } = builder;
    let chunker = chunker.unwrap_or_else(|| default_of(&name));
    if !(1..=MAX_CHUNK_BYTES).contains(&chunker.max_bytes()) {
        let error = Error::new(ErrorKind::InvalidInput, "write archive").on(&name);
        return Err(error.because("the chunker makes chunks of more than 16 MiB"));
    }
    let reserved = writer.shared().reserve(&name, ArchiveKind::Dynamic)?;
    reserved
        .shared
        .events
        .emit(|| ArchiveEvent::ArchiveStarted { archive: reserved.name.clone(), size: None });
    let task = ArchiveTask::begin(reserved, base).await?;
    let base_use = task.base_use;
    let mut index = DynamicIndexWriter::new();
    {
        let in_flight = task.store().in_flight();
        let cuts = Cutter::new(&task, chunker, reader).into_stream();
        let task = &task;
        let entries = cuts.enumerate().map(|(number, cut)| async move {
            let entry = task.process(cut?).await?;
            Ok::<_, Error>((number, entry))
        });
        let mut entries = std::pin::pin!(entries.buffer_unordered(in_flight));
        // Early results wait here without blocking later chunks.
        let (mut waiting, mut next) = (BTreeMap::new(), 0);
        while let Some((number, entry)) = entries.try_next().await? {
            waiting.insert(number, entry);
            while let Some(entry) = waiting.remove(&next) {
                next += 1;
                index.push(entry.length, entry.digest).map_err(|error| {
                    Error::new(ErrorKind::Internal, "write index").on(task.name()).because(error)
                })?;
            }
        }
    }
    let (uuid, created) = task.stamp();
    let finished = index.finish(uuid, created).map_err(|error| index_error(&task, error))?;
    task.reserved.complete_index(finished, base_use)
}

/// Reads a stream and cuts it.
///
/// The chunker runs on the reading task, a batch at a time. A batch takes a tenth of a millisecond, which is less than the wait for
/// the blocking pool.
struct Cutter<'a, R> {
    buffer: ChunkBuffer,
    chunker: Box<dyn Chunker>,
    ended: bool,
    reader: R,
    task: &'a ArchiveTask,
}

impl<'a, R: AsyncRead + Send + Unpin> Cutter<'a, R> {
    fn new(task: &'a ArchiveTask, chunker: Box<dyn Chunker>, reader: R) -> Self {
        let buffer = ChunkBuffer::new(task);
        Self { buffer, chunker, ended: false, reader, task }
    }

    fn into_stream(self) -> impl Stream<Item = Result<Cut>> {
        stream::try_unfold(
            self,
            |mut cutter| async move { Ok(cutter.next().await?.map(|cut| (cut, cutter))) },
        )
    }

    async fn next(&mut self) -> Result<Option<Cut>> {
        loop {
            let length = match self.scan()? {
                Some(length) => length,
                None if !self.ended => {
                    self.fill().await?;
                    yield_now().await;
                    continue;
                }
                // The end of the stream ends the last chunk.
                None if self.buffer.filled() > 0 => self.buffer.filled(),
                None => return Ok(None),
            };
            let (bytes, digest) = self.buffer.cut(length);
            let permit = self.task.permit(length).await;
            return Ok(Some(Cut { bytes, digest: Some(digest), permit }));
        }
    }

    /// Reads a batch after the buffered bytes.
    async fn fill(&mut self) -> Result<()> {
        let goal = self.buffer.filled() + BATCH_BYTES;
        while self.buffer.filled() < goal {
            let space = self.buffer.space();
            let room = space.len();
            let read = self.reader.read(space).await.and_then(|read| checked_read(read, room));
            match read.map_err(|error| self.task.stream_error(error))? {
                0 => {
                    self.ended = true;
                    break;
                }
                read => self.buffer.add(read),
            }
        }
        Ok(())
    }

    /// Scans new bytes with the chunker. Returns the end of the chunk, if it was found.
    fn scan(&mut self) -> Result<Option<usize>> {
        let broken = |why: &'static str| Err(Error::new(ErrorKind::InvalidInput, "cut stream").because(why));
        while self.buffer.scanned() < self.buffer.filled() {
            let unscanned = self.buffer.unscanned(self.buffer.filled());
            let scanned = unscanned.len();
            match self.chunker.scan(unscanned) {
                Some(cut) if self.buffer.scanned() + cut > MAX_CHUNK_BYTES => {
                    return broken("the chunker makes chunks of more than 16 MiB");
                }
                Some(cut) if (1..=scanned).contains(&cut) => {
                    return Ok(Some(self.buffer.scanned() + cut));
                }
                Some(_) => return broken("the chunker cuts outside of what it was given"),
                None => self.buffer.advance(scanned),
            }
            if self.buffer.scanned() > MAX_CHUNK_BYTES {
                return broken("the chunker makes chunks of more than 16 MiB");
            }
        }
        Ok(None)
    }
}
