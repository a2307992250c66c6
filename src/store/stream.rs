//! Archives from streams, cut where their contents say so.

use std::fmt;
use std::future::IntoFuture;
use std::sync::Arc;

use futures::future::BoxFuture;
use futures::io::{AsyncRead, AsyncReadExt as _};
use futures::stream::{self, Stream, StreamExt as _, TryStreamExt as _};

use crate::chunker::{Chunker, RollingChunker};
use crate::error::{Error, ErrorKind, Result};
use crate::format::blob::MAX_CHUNK_BYTES;
use crate::format::dynamic_index::DynamicIndexWriter;
use crate::format::name::ArchiveKind;
use crate::store::buffers::Buffer;
use crate::store::events::Event;
use crate::store::pipeline::{ArchiveTask, Cut};
use crate::store::{ArchiveSummary, SnapshotReader, SnapshotWriter};

/// How many bytes are read before the chunker looks at them. What it finds behind the end of a chunk is copied once.
const BATCH_BYTES: usize = 512 << 10;

/// A stream that is about to be written; awaiting it writes it.
#[must_use = "nothing is written before it is awaited"]
pub struct StreamBuilder<'a, R> {
    base: Option<&'a SnapshotReader>,
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
    /// `Stream` if the reader fails or yields nothing at all, which the format cannot express; `InvalidInput` for a name that
    /// is not valid or taken; whatever the backend answers.
    ///
    /// # Cancel safety
    /// A dropped future leaves the archive out of the snapshot; bytes were taken from the reader.
    pub fn stream<R>(&self, name: impl Into<String>, reader: R) -> StreamBuilder<'_, R>
    where
        R: AsyncRead + Send + Unpin,
    {
        StreamBuilder { base: None, chunker: None, name: name.into(), reader, writer: self }
    }
}

impl<'a, R> StreamBuilder<'a, R> {
    /// An earlier snapshot with an archive of the same name: chunks that it names are known and neither compressed nor
    /// stored again. It stays locked until the backup ends.
    ///
    /// Awaiting then fails with `NotFound` if it has no such archive, with `Conflict` if it failed verification, and with
    /// `Unsupported` if it is encrypted.
    pub fn base(mut self, base: &'a SnapshotReader) -> Self {
        self.base = Some(base);
        self
    }

    /// How the stream is cut; default: a [`RollingChunker`] with chunks of 1 to 16 MiB, 4 MiB on average.
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
        Box::pin(write(self))
    }
}

async fn write<R>(builder: StreamBuilder<'_, R>) -> Result<ArchiveSummary>
where
    R: AsyncRead + Send + Unpin,
{
    let StreamBuilder { base, chunker, name, reader, writer } = builder;
    let chunker = chunker.unwrap_or_else(|| Box::new(RollingChunker::default()));
    if !(1..=MAX_CHUNK_BYTES).contains(&chunker.max_bytes()) {
        let error = Error::new(ErrorKind::InvalidInput, "write archive").on(&name);
        return Err(error.because("the chunker makes chunks of more than 16 MiB"));
    }
    let reserved = writer.shared().reserve(&name, ArchiveKind::Dynamic)?;
    reserved.shared.event(&Event::ArchiveStarted { archive: &reserved.name, size: None });
    let task = ArchiveTask::begin(reserved, base).await?;
    let mut index = DynamicIndexWriter::new();
    {
        let in_flight = task.reserved.shared.store.inner.in_flight();
        let cuts = Cutter::new(&task, chunker, reader).into_stream();
        let entries = cuts.map(|cut| async { task.process(cut?).await }).buffered(in_flight);
        let mut entries = std::pin::pin!(entries);
        while let Some(entry) = entries.try_next().await? {
            index.push(entry.length, entry.digest).map_err(|error| {
                Error::new(ErrorKind::Internal, "write index").on(&task.reserved.name).because(error)
            })?;
        }
    }
    let (uuid, created) = task.stamp();
    let finished = index.finish(uuid, created).map_err(|error| {
        Error::new(ErrorKind::Stream, "write archive").on(&task.reserved.name).because(error)
    })?;
    task.reserved.complete_index(finished)
}

/// Reads a stream and cuts it.
struct Cutter<'a, R> {
    assembly: Option<Assembly>,
    ended: bool,
    reader: R,
    ready: std::vec::IntoIter<Buffer>,
    task: &'a ArchiveTask,
}

/// The chunk in the making. It moves to the blocking pool to be looked at, and back.
struct Assembly {
    buffer: Buffer,
    chunker: Box<dyn Chunker>,
    /// How many bytes of the buffer are of the stream.
    filled: usize,
    /// How many of them the chunker has seen.
    scanned: usize,
}

impl<'a, R: AsyncRead + Send + Unpin> Cutter<'a, R> {
    fn new(task: &'a ArchiveTask, chunker: Box<dyn Chunker>, reader: R) -> Self {
        let buffer = task.reserved.shared.store.inner.chunks.buffer(0);
        let assembly = Some(Assembly { buffer, chunker, filled: 0, scanned: 0 });
        Self { assembly, ended: false, reader, ready: Vec::new().into_iter(), task }
    }

    fn into_stream(self) -> impl Stream<Item = Result<Cut>> {
        stream::try_unfold(
            self,
            |mut cutter| async move { Ok(cutter.next().await?.map(|cut| (cut, cutter))) },
        )
    }

    async fn next(&mut self) -> Result<Option<Cut>> {
        loop {
            if let Some(chunk) = self.ready.next() {
                let permit = self.task.permit(chunk.len()).await;
                return Ok(Some(Cut { bytes: chunk.freeze(), permit }));
            }
            if self.ended {
                return Ok(None);
            }
            let Some(mut assembly) = self.assembly.take() else { return Ok(None) };
            self.ended = self.fill(&mut assembly).await?;
            let (assembly, chunks) = self.scan(assembly).await?;
            self.assembly = Some(assembly);
            self.ready = chunks.into_iter();
        }
    }

    /// Reads a batch behind what is there. Whether the stream has ended.
    async fn fill(&mut self, assembly: &mut Assembly) -> Result<bool> {
        let goal = assembly.filled + BATCH_BYTES;
        if assembly.buffer.len() < goal {
            grow(&mut assembly.buffer, goal, assembly.chunker.typical_bytes() * 2 + BATCH_BYTES);
        }
        while assembly.filled < goal {
            let read = self.reader.read(&mut assembly.buffer[assembly.filled..goal]).await;
            match read.map_err(|error| self.task.stream_error(error))? {
                0 => return Ok(true),
                read => assembly.filled += read,
            }
        }
        Ok(false)
    }

    /// Lets the chunker look at what was read. At the end of the stream the rest is a chunk.
    fn scan(&self, mut assembly: Assembly) -> impl Future<Output = Result<(Assembly, Vec<Buffer>)>> + use<R> {
        let inner = Arc::clone(&self.task.reserved.shared.store.inner);
        let (store, ended) = (Arc::clone(&inner), self.ended);
        let scan = move || {
            let mut chunks = Vec::new();
            while assembly.scanned < assembly.filled {
                match assembly.chunker.scan(&assembly.buffer[assembly.scanned..assembly.filled]) {
                    Some(cut) if cut > 0 && assembly.scanned + cut <= assembly.filled => {
                        chunks.push(assembly.cut_at(assembly.scanned + cut, &store.chunks));
                    }
                    Some(_) => {
                        let error = Error::new(ErrorKind::InvalidInput, "cut stream");
                        return Err(error.because("the chunker cuts outside of what it was given"));
                    }
                    None => assembly.scanned = assembly.filled,
                }
                if assembly.filled > MAX_CHUNK_BYTES + BATCH_BYTES {
                    let error = Error::new(ErrorKind::InvalidInput, "cut stream");
                    return Err(error.because("the chunker makes chunks of more than 16 MiB"));
                }
            }
            if ended && assembly.filled > 0 {
                chunks.push(assembly.cut_at(assembly.filled, &store.chunks));
            }
            Ok((assembly, chunks))
        };
        async move { inner.runtime().run_blocking("cut stream", scan).await }
    }
}

impl Assembly {
    /// Takes the first `length` bytes away as a chunk; what follows them begins the next one.
    fn cut_at(&mut self, length: usize, chunks: &crate::store::chunks::ChunkStore) -> Buffer {
        let rest = length..self.filled;
        let mut next = chunks.buffer(self.chunker.typical_bytes() * 2 + BATCH_BYTES);
        if next.len() < rest.len() {
            let capacity = self.chunker.typical_bytes() * 2 + BATCH_BYTES;
            grow(&mut next, rest.len(), capacity);
        }
        next[..rest.len()].copy_from_slice(&self.buffer[rest.clone()]);
        let mut chunk = std::mem::replace(&mut self.buffer, next);
        chunk.truncate(length);
        self.filled = rest.len();
        self.scanned = 0;
        chunk
    }
}

/// Makes a buffer at least `length` bytes long, and gives a new one the capacity that most chunks stay below.
fn grow(buffer: &mut Buffer, length: usize, capacity: usize) {
    if buffer.capacity() < length {
        let wanted = if length <= capacity { capacity } else { MAX_CHUNK_BYTES + BATCH_BYTES }.max(length);
        let more = wanted - buffer.len();
        buffer.reserve_exact(more);
    }
    if buffer.len() < length {
        buffer.resize(length, 0);
    }
}
