//! An archive as a stream, with chunks fetched ahead.

use std::io::{self, SeekFrom};
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};

use futures::channel::oneshot;
use futures::future::{self, BoxFuture, Either, FutureExt as _, TryFutureExt as _};
use futures::io::{AsyncRead, AsyncSeek};

use crate::buffers::BytesList;
use crate::chunks::CachePolicy;
use crate::error::{Error, ErrorKind, Result};
use crate::rt::semaphore::Semaphore;
use crate::store::ArchiveReader;
use crate::store::events::ArchiveEvent;
use crate::store::position::after_seek;
use crate::store::restore::archive::{Archive, Fetch, WINDOWS};

/// Maximum bytes of chunks held by a sequential reader.
const READ_AHEAD_BYTES: u64 = 32 << 20;

impl ArchiveReader {
    /// Advances to the chunk at the position, which is the current one then.
    pub(super) fn poll_current(&mut self, context: &mut Context<'_>, number: usize) -> Poll<Result<()>> {
        if self.current.as_ref().is_some_and(|(at, _)| *at == number) {
            return Poll::Ready(Ok(()));
        }
        let most = self.max_ahead();
        let in_order = self.current.as_ref().is_some_and(|(at, _)| at + 1 == number);
        let ahead = self.ahead.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(passed) = ahead.iter().position(|fetch| fetch.number == number) {
            drop(ahead.drain(..passed));
        } else {
            ahead.clear();
            self.window = if in_order { self.window } else { 1 };
        }
        let length = |number| {
            let range = self.archive.range(number);
            range.end - range.start
        };
        let mut ahead_bytes: u64 = ahead.iter().map(|fetch| length(fetch.number)).sum();
        while ahead.len() < self.window.min(most) {
            let next = ahead.back().map_or(number, |back| back.number + 1);
            ahead_bytes += length(next);
            // Chunks may be longer than the average.
            if (next >= self.ahead_end || ahead_bytes > READ_AHEAD_BYTES) && next != number {
                break;
            }
            let (archive, fills_cache) = (Arc::clone(&self.archive), self.fills_cache);
            let fetch: BoxFuture<'static, _> = if next == number {
                Box::pin(async move { archive.for_stream(next, fills_cache).await })
            } else {
                Box::pin(archive.fetch_ahead(next, Arc::clone(&self.slots), fills_cache))
            };
            ahead.push_back(Fetch { future: fetch.fuse(), number: next, outcome: None });
        }
        for fetch in ahead.iter_mut().filter(|fetch| fetch.outcome.is_none()) {
            if let Poll::Ready(outcome) = fetch.future.poll_unpin(context) {
                fetch.outcome = Some(outcome);
            }
        }
        let Some(fetched) = ahead.front_mut().and_then(|front| front.outcome.take()) else {
            return Poll::Pending;
        };
        ahead.pop_front();
        let chunk = fetched?;
        if !std::mem::replace(&mut self.started, true) {
            let size = Some(self.archive.index.size());
            self.events.emit(|| ArchiveEvent::ArchiveStarted { archive: self.archive.name.clone(), size });
        }
        let size = chunk.len() as u64;
        self.events.emit(|| ArchiveEvent::ChunkRestored { archive: self.archive.name.clone(), size });
        self.current = Some((number, chunk));
        self.window = (self.window * 2).min(most);
        Poll::Ready(Ok(()))
    }

    fn max_ahead(&self) -> usize {
        let fitting = usize::try_from(READ_AHEAD_BYTES / self.archive.average()).unwrap_or(usize::MAX);
        fitting.clamp(1, WINDOWS * self.archive.store.in_flight())
    }
}

impl Archive {
    /// As [`fetch`](Self::fetch) when a slot is free, but it progresses without being polled, for instance while earlier data is processed.
    /// It ends when the future is dropped.
    fn fetch_ahead(
        self: Arc<Self>,
        number: usize,
        slots: Arc<Semaphore>,
        fills_cache: bool,
    ) -> impl Future<Output = Result<BytesList>> + Send + 'static {
        let (mut sender, receiver) = oneshot::channel();
        let runtime = Arc::clone(self.store.backend.runtime());
        runtime.spawn(Box::pin(async move {
            let fetch = pin!(async {
                let _slot = slots.acquire(1).await;
                self.for_stream(number, fills_cache).await
            });
            let fetched = match future::select(fetch, sender.cancellation()).await {
                Either::Left((fetched, _)) => fetched,
                Either::Right(_) => return,
            };
            // The caller may have gone.
            let _ = sender.send(fetched);
        }));
        let vanished = move |_| Err(Error::new(ErrorKind::Internal, "read chunk").on(number));
        receiver.unwrap_or_else(vanished)
    }

    async fn for_stream(&self, number: usize, fills_cache: bool) -> Result<BytesList> {
        if fills_cache {
            return self.cached(number).await;
        }
        match self.find_cached(number) {
            Some(chunk) => Ok(chunk),
            None => self.fetch(number, CachePolicy::Populate).await,
        }
    }
}

impl AsyncRead for ArchiveReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let position = self.position;
        let Some(number) = self.archive.index.chunk_at(position) else { return Poll::Ready(Ok(0)) };
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.poll_current(context, number)).map_err(io::Error::other)?;
        let within = self.archive.place_within(number, position);
        let rest = self.current.as_ref().map_or(&[][..], |(_, chunk)| chunk.part_at(within));
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.position += length as u64;
        Poll::Ready(Ok(length))
    }
}

impl AsyncSeek for ArchiveReader {
    fn poll_seek(mut self: Pin<&mut Self>, _: &mut Context<'_>, to: SeekFrom) -> Poll<io::Result<u64>> {
        self.position = after_seek(to, self.position, self.size())?;
        Poll::Ready(Ok(self.position))
    }
}
