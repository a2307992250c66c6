//! Contents of an archive.
//!
//! An archive can be read in three ways: as a seekable stream ([`AsyncRead`], [`AsyncSeek`]) with read-ahead for sequential
//! reads; by range ([`ArchiveReader::read_at`]), with a cache of the last few chunks; and as a whole into a
//! [`RestoreTarget`] ([`ArchiveReader::copy_to`]), with as many chunks in flight as the memory budget allows. All
//! bytes are checked against the digests in the index.
//!
//! [`AsyncRead`]: futures::io::AsyncRead
//! [`AsyncSeek`]: futures::io::AsyncSeek
//!
//! # Damage
//! A missing or corrupt chunk costs the bytes in it and no others. Each way of reading fails with `Corrupt`,
//! and the error names the chunk, the archive and the snapshot. A stream stays at the position of the failure:
//! [`ArchiveReader::chunk_range`] returns the range to seek past, and reading continues after it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures::channel::mpsc;
use futures::future::{self, BoxFuture};
use futures::sink::SinkExt as _;
use futures::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};

use crate::backend::LockGuard;
use crate::buffers::BytesList;
use crate::chunker::is_zero;
use crate::chunks::CachePolicy;
use crate::crypt::EncryptionKey;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::index::IndexReader;
use crate::format::name::{ArchiveName, SnapshotName};
use crate::observer::Observer;
use crate::rt::semaphore::{Permit, Semaphore};
use crate::store::events::{ArchiveEvent, Events};
use crate::store::restore::chunk_cache::ChunkCache;
use crate::store::{RestoreTarget, StoreInner, in_archive};
use crate::trace;
use crate::trace::{Facts, Operation, Subject};

/// Maximum bytes of chunks that wait for a late one in a restore.
const FINISHED_BYTES: u64 = 8 << 20;
/// Maximum ratio of chunks begun and not written, or fetched ahead for a stream, to chunks in flight.
pub(super) const WINDOWS: usize = 4;

/// An archive of chunks, opened for reading.
///
/// # Cancel safety
/// Futures of its methods can be dropped at any time; the reader stays usable.
pub struct ArchiveReader {
    /// Never locked: the mutex makes a shared reader, and so the futures of its methods, `Send`.
    pub(super) ahead: Mutex<VecDeque<Fetch>>,
    /// Number of the first chunk that is not fetched ahead.
    pub(super) ahead_end: usize,
    pub(super) archive: Arc<Archive>,
    /// The chunk that a stream is in.
    pub(super) current: Option<(usize, BytesList)>,
    pub(super) cache_policy: CachePolicy,
    pub(super) events: Events,
    /// `true` if chunks of the stream go into the cache of the archive.
    pub(super) fills_cache: bool,
    pub(super) lock: Arc<dyn LockGuard>,
    pub(super) position: u64,
    /// Slots of the chunks that are in flight ahead of a stream. A chunk that has arrived holds none.
    pub(super) slots: Arc<Semaphore>,
    /// `true` if it was read as a stream.
    pub(super) started: bool,
    /// Number of chunks to fetch ahead; grows with sequential reads.
    pub(super) window: usize,
}

/// State shared by all fetches of an archive. It holds no lock: a fetch ahead is a task of its own, which may end later than its reader.
#[derive(Debug)]
pub(super) struct Archive {
    pub(super) cache: Mutex<ChunkCache>,
    pub(super) index: IndexReader,
    /// The key of the chunks; `None` if they are plain.
    pub(super) key: Option<EncryptionKey>,
    pub(super) name: ArchiveName,
    snapshot: SnapshotName,
    pub(super) store: Arc<StoreInner>,
    zeros: Option<(u64, Digest)>,
}

/// A chunk being fetched.
pub(super) struct Fetch {
    pub(super) future: future::Fuse<BoxFuture<'static, Result<BytesList>>>,
    pub(super) number: usize,
    pub(super) outcome: Option<Result<BytesList>>,
}

/// A piece for a target.
enum Piece {
    Data(BytesList),
    Hole,
}

impl ArchiveReader {
    pub(in crate::store) async fn new(
        store: Arc<StoreInner>,
        snapshot: SnapshotName,
        (name, key): (ArchiveName, Option<&EncryptionKey>),
        index: IndexReader,
        lock: Arc<dyn LockGuard>,
    ) -> Result<Self> {
        let zeros = match &index {
            IndexReader::Fixed(index) if index.size() >= index.chunk_size() => {
                Some((index.chunk_size(), store.zero_digest(index.chunk_size(), key).await?))
            }
            _ => None,
        };
        let slots = Semaphore::new(store.in_flight());
        let (cache, key, ahead_end) = (Mutex::default(), key.cloned(), index.len());
        let archive = Archive { cache, index, key, name, snapshot, store, zeros };
        Ok(Self {
            ahead: Mutex::default(),
            ahead_end,
            archive: Arc::new(archive),
            current: None,
            cache_policy: CachePolicy::Bypass,
            events: Events::default(),
            fills_cache: false,
            lock,
            position: 0,
            slots,
            started: false,
            window: 1,
        })
    }

    /// Observer of the progress; default: none. [`copy_to`](ArchiveReader::copy_to) emits start, chunk and
    /// finish events, a stream start and chunk events, [`read_at`](ArchiveReader::read_at) none.
    #[must_use]
    pub fn observer(mut self, observer: Arc<dyn Observer<ArchiveEvent>>) -> Self {
        self.events = Events::to(observer);
        self
    }

    /// Keeps local copies of the chunks that [`copy_to`](ArchiveReader::copy_to) fetches, if the store has local state.
    /// By default it keeps none, because a complete restore would evict frequently used chunks. Streams and
    /// [`read_at`](ArchiveReader::read_at) always keep copies.
    #[must_use]
    pub fn keep_local(mut self) -> Self {
        self.cache_policy = CachePolicy::Populate;
        self
    }

    /// Full name of the archive.
    pub fn name(&self) -> &ArchiveName {
        &self.archive.name
    }

    /// Size of its contents in bytes.
    pub fn size(&self) -> u64 {
        self.archive.index.size()
    }

    /// Its index.
    pub(crate) fn index(&self) -> &IndexReader {
        &self.archive.index
    }

    /// Range of the archive in the same chunk as this offset; `None` beyond the end. If the chunk is damaged, these
    /// bytes are lost.
    pub fn chunk_range(&self, offset: u64) -> Option<Range<u64>> {
        self.archive.index.chunk_at(offset).map(|number| self.archive.range(number))
    }

    /// Reads up to `length` bytes at an offset: fewer at the end of the archive and at the end of a chunk, none beyond the
    /// end. The last few chunks are cached, so small adjacent reads fetch a chunk once.
    ///
    /// # Errors
    /// `Corrupt` for a missing or damaged chunk; any failure of the backend.
    pub async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let Some(number) = self.archive.index.chunk_at(offset) else { return Ok(Bytes::new()) };
        let chunk = self.archive.cached(number).await?;
        let start = self.archive.place_within(number, offset).min(chunk.len());
        let part = chunk.slice(start..chunk.len().min(start.saturating_add(length)));
        Ok(part.into_bytes(self.archive.store.chunks.buffers(), 0))
    }

    /// Reads exactly `length` bytes at an offset, from as many chunks as it takes. They are all in memory at once.
    ///
    /// # Errors
    /// `InvalidInput` if the range reaches beyond the end of the archive; as for [`read_at`](ArchiveReader::read_at).
    pub async fn read_exact_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let end = offset.checked_add(length as u64).filter(|end| *end <= self.size());
        if end.is_none() {
            let error = Error::new(ErrorKind::InvalidInput, "read a range of").on(self.name());
            return Err(error.because(format!("the range reaches beyond its {} bytes", self.size())));
        }
        let (mut parts, mut position, end) = (Vec::new(), offset, offset + length as u64);
        while let Some(range) = self.chunk_range(position).filter(|_| position < end) {
            parts.push(position..range.end.min(end));
            position = range.end;
        }
        let read = |part: Range<u64>| {
            self.read_at(part.start, usize::try_from(part.end - part.start).unwrap_or(usize::MAX))
        };
        if let [part] = &parts[..] {
            return read(part.clone()).await;
        }
        let mut bytes = BytesMut::with_capacity(length);
        let mut parts = stream::iter(parts).map(read).buffered(self.archive.store.in_flight());
        while let Some(part) = parts.try_next().await? {
            bytes.extend_from_slice(&part);
        }
        Ok(bytes.freeze())
    }

    /// Writes the whole archive to a target, in order, and returns its size. Passes chunks of zeros to the target as zeros.
    ///
    /// # Errors
    /// `Stream` if the target fails; `Corrupt` for a missing or damaged chunk; any failure of the backend. The
    /// target keeps the part written so far, unless it discards it as [`FileTarget`](crate::store::FileTarget) does.
    pub fn copy_to<'a, T: RestoreTarget + ?Sized>(&'a self, target: &'a mut T) -> BoxFuture<'a, Result<u64>> {
        // Boxed here, where the compiler can prove that it is `Send`.
        let archive = &self.archive;
        let watch =
            archive.store.watch(Operation::Restore, Subject::Archive(&archive.snapshot, &archive.name));
        Box::pin(trace::watch(watch, self.copy(target), |bytes| Facts::default().bytes(*bytes)))
    }

    async fn copy<T: RestoreTarget + ?Sized>(&self, target: &mut T) -> Result<u64> {
        let archive = &self.archive;
        let in_flight = archive.store.in_flight();
        let window = archive.window(in_flight);
        // While a piece waits for room, the chunks behind it stand still: the channel takes those that arrive during a write.
        let (mut sender, mut receiver) = mpsc::channel(window / 2);
        let mut pieces = pieces(Arc::clone(archive), (in_flight, window), self.cache_policy);
        let produce = async move {
            // A failure takes its turn behind the pieces before it, which are written.
            while let Some(piece) = pieces.next().await {
                let is_last = piece.is_err();
                if sender.send(piece).await.is_err() || is_last {
                    break;
                }
            }
            Ok::<_, Error>(())
        };
        let name = &archive.name;
        let consume = async {
            self.events
                .emit(|| ArchiveEvent::ArchiveStarted { archive: name.clone(), size: Some(self.size()) });
            self.to_target(target.begin(self.size()).await)?;
            while let Some(piece) = receiver.next().await {
                let (number, piece, permit) = piece?;
                let range = archive.range(number);
                let size = range.end - range.start;
                let written = match piece {
                    Piece::Data(data) => target.write_vectored_at(range.start, data.into_parts()).await,
                    Piece::Hole => target.write_zeros(range.start, size).await,
                };
                self.to_target(written)?;
                drop(permit);
                self.events.emit(|| ArchiveEvent::ChunkRestored { archive: name.clone(), size });
            }
            Ok(())
        };
        future::try_join(produce, consume).await?;
        self.to_target(target.finish().await)?;
        self.events.emit(|| ArchiveEvent::ArchiveFinished { archive: name.clone(), size: self.size() });
        Ok(self.size())
    }

    fn to_target(&self, written: io::Result<()>) -> Result<()> {
        written
            .map_err(|error| Error::new(ErrorKind::Stream, "restore").on(&self.archive.name).because(error))
    }
}

impl Archive {
    /// Average length of a chunk.
    pub(super) fn average(&self) -> u64 {
        (self.index.size() / self.index.len().max(1) as u64).max(1)
    }

    /// Number of chunks that are begun and not finished.
    fn window(&self, in_flight: usize) -> usize {
        let fitting = usize::try_from(FINISHED_BYTES / self.average()).unwrap_or(usize::MAX);
        fitting.clamp(in_flight, WINDOWS * in_flight)
    }

    /// Place of a position of the archive within the chunk that contains it.
    pub(super) fn place_within(&self, number: usize, position: u64) -> usize {
        usize::try_from(position - self.range(number).start).unwrap_or(usize::MAX)
    }

    pub(super) fn range(&self, number: usize) -> Range<u64> {
        self.index.chunk(number).map_or(0..0, |chunk| chunk.offset..chunk.offset + chunk.len)
    }

    fn is_hole(&self, number: usize) -> bool {
        let chunk = self.index.chunk(number);
        chunk.is_some_and(|chunk| self.zeros == Some((chunk.len, chunk.digest)))
    }

    async fn permit(&self, number: usize) -> Permit {
        let range = self.range(number);
        let bytes = if self.is_hole(number) { 0 } else { range.end - range.start };
        let budget = &self.store.restore_budget;
        budget.acquire(usize::try_from(bytes).unwrap_or(usize::MAX)).await
    }

    async fn piece(
        &self,
        number: usize,
        permit: Permit,
        cache_policy: CachePolicy,
    ) -> Result<(usize, Piece, Permit)> {
        if self.is_hole(number) {
            return Ok((number, Piece::Hole, permit));
        }
        let chunk = self.fetch(number, cache_policy).await?;
        // Checking one word of each cache line is cheap, and ends at once for anything but zeros.
        let piece = if chunk.iter().all(is_zero) { Piece::Hole } else { Piece::Data(chunk) };
        Ok((number, piece, permit))
    }

    pub(super) async fn fetch(&self, number: usize, cache_policy: CachePolicy) -> Result<BytesList> {
        let missing = || Error::new(ErrorKind::Internal, "read chunk").on(number);
        let chunk = self.index.chunk(number).ok_or_else(missing)?;
        if self.is_hole(number) {
            let zeros = vec![0; usize::try_from(chunk.len).map_err(|_| missing())?];
            return Ok(Bytes::from(zeros).into());
        }
        let fetched = self.store.chunks.get(chunk.digest, chunk.len, cache_policy, self.key.as_ref()).await;
        fetched.map_err(|error| in_archive(error, chunk.digest, &self.name, &self.snapshot))
    }

    pub(super) async fn cached(&self, number: usize) -> Result<BytesList> {
        if let Some(chunk) = self.find_cached(number) {
            return Ok(chunk);
        }
        let chunk = self.fetch(number, CachePolicy::Populate).await?;
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(number, chunk.clone());
        Ok(chunk)
    }

    pub(super) fn find_cached(&self, number: usize) -> Option<BytesList> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).find(number)
    }
}

/// All chunks of an archive in order, several fetched concurrently. Permits are taken in order too. Small chunks that
/// arrive early give their slot to the next.
fn pieces(
    archive: Arc<Archive>,
    (in_flight, window): (usize, usize),
    cache_policy: CachePolicy,
) -> BoxStream<'static, Result<(usize, Piece, Permit)>> {
    let permits = stream::unfold((archive, 0), |(archive, number)| async move {
        if number >= archive.index.len() {
            return None;
        }
        let permit = archive.permit(number).await;
        let fetch = (Arc::clone(&archive), number, permit);
        Some((fetch, (archive, number + 1)))
    });
    let slots = Semaphore::new(in_flight);
    let fetches = permits.map(move |(archive, number, permit)| {
        let slots = Arc::clone(&slots);
        async move {
            let _slot = slots.acquire(1).await;
            archive.piece(number, permit, cache_policy).await
        }
    });
    fetches.buffered(window).boxed()
}

impl fmt::Debug for ArchiveReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArchiveReader")
            .field("snapshot", &self.archive.snapshot)
            .field("name", &self.archive.name)
            .field("position", &self.position)
            .finish_non_exhaustive()
    }
}
