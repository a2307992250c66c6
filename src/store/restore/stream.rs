//! An archive as a stream, with chunks fetched ahead.

use std::io::{self, SeekFrom};
use std::pin::{Pin, pin};
use std::sync::{Arc, PoisonError};
use std::task::{Context, Poll, ready};

use futures::channel::oneshot;
use futures::future::{self, Either, FutureExt as _, TryFutureExt as _};
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
/// As [`READ_AHEAD_BYTES`], of encrypted chunks: each is decrypted as a whole, in memory of its own.
const ENCRYPTED_AHEAD_BYTES: u64 = 24 << 20;

impl ArchiveReader {
    /// Advances to the chunk at the position, which is the current one then.
    pub(super) fn poll_current(&mut self, context: &mut Context<'_>, number: usize) -> Poll<Result<()>> {
        if self.current.as_ref().is_some_and(|(at, _)| *at == number) {
            return Poll::Ready(Ok(()));
        }
        let (most, most_bytes) = (self.max_ahead(), self.archive.max_ahead_bytes());
        let in_order = self.current.as_ref().is_some_and(|(at, _)| at + 1 == number);
        let ahead = self.ahead.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(passed) = ahead.iter().position(|fetch| fetch.number == number) {
            drop(ahead.drain(..passed));
        } else if ahead.front().is_some_and(|next| next.number == number + 1) {
            // A chunk that failed is read again, and those behind it stay.
            ahead.push_front(self.archive.fetch_now(number, self.fills_cache));
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
            if (next >= self.ahead_end || ahead_bytes > most_bytes) && next != number {
                break;
            }
            let (archive, fills_cache) = (&self.archive, self.fills_cache);
            ahead.push_back(if next == number {
                archive.fetch_now(next, fills_cache)
            } else {
                archive.fetch_ahead(next, &self.slots, fills_cache)
            });
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
        let fitting = self.archive.max_ahead_bytes() / self.archive.average();
        let fitting = usize::try_from(fitting).unwrap_or(usize::MAX);
        fitting.clamp(1, WINDOWS * self.archive.store.in_flight())
    }
}

impl Archive {
    fn max_ahead_bytes(&self) -> u64 {
        if self.key.is_some() { ENCRYPTED_AHEAD_BYTES } else { READ_AHEAD_BYTES }
    }

    /// A fetch that progresses while it is polled.
    fn fetch_now(self: &Arc<Self>, number: usize, fills_cache: bool) -> Fetch {
        let archive = Arc::clone(self);
        let future = async move { archive.for_stream(number, fills_cache).await };
        Fetch { future: future.boxed().fuse(), number, outcome: None }
    }

    /// A fetch that begins when a slot is free, in the order of the calls, and progresses without being polled, for instance while earlier data is
    /// processed. It ends when it is dropped.
    fn fetch_ahead(self: &Arc<Self>, number: usize, slots: &Arc<Semaphore>, fills_cache: bool) -> Fetch {
        let (mut sender, receiver) = oneshot::channel();
        let runtime = Arc::clone(self.store.backend.runtime());
        // Before the task: a runtime may run tasks in any order.
        let (archive, slot) = (Arc::clone(self), slots.enqueue(1));
        runtime.spawn(Box::pin(async move {
            // All that the fetch owns is dropped before its result is visible.
            let fetched = {
                let fetch = pin!(async move {
                    let _slot = slot.await;
                    archive.for_stream(number, fills_cache).await
                });
                match future::select(fetch, sender.cancellation()).await {
                    Either::Left((fetched, _)) => fetched,
                    Either::Right(_) => return,
                }
            };
            // The caller may have gone.
            let _ = sender.send(fetched);
        }));
        let vanished = move |_| Err(Error::new(ErrorKind::Internal, "read chunk").on(number));
        Fetch { future: receiver.unwrap_or_else(vanished).boxed().fuse(), number, outcome: None }
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
