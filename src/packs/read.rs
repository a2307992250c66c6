//! Reads of chunks that lie side by side, as one request.
//!
//! A chunk that is wanted joins a queue. A task begins with the chunk that has waited longest, and reads the waiting chunks around it in the same
//! pack with one request, up to [`SPAN_BYTES`], also across gaps of up to [`GAP_BYTES`]. Another task begins beside it while requests for no more
//! than [`SPAN_BYTES`] are on their way. So two large requests fill the link, and small ones at many places do not wait for each other. Meanwhile
//! chunks gather in the queue, and requests become larger the slower they are.
//!
//! A chunk whose reader was dropped is skipped.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::pack::name::PackName;
use crate::format::layout::Key;
use crate::packs::Packs;
use crate::packs::lookup::beyond_end;
use crate::packs::place::Place;

/// Maximum bytes of a request: half a pack of the default size, also if headers make it a little longer.
pub(crate) const SPAN_BYTES: u64 = (16 << 20) + (64 << 10);
/// Maximum bytes between two chunks that one request reads.
pub(crate) const GAP_BYTES: u64 = 1 << 20;
/// Maximum number of requests at the same time.
const SPANS_IN_FLIGHT: usize = 32;
/// Time for which the first task lets chunks gather. It is short beside the delay of a request.
const GATHER_TIME: Duration = Duration::from_millis(1);

/// A pack and an offset in it.
type Start = (PackName, u32);

/// The chunks that are wanted.
#[derive(Debug, Default)]
pub(super) struct ReadQueue {
    /// Starts in the order of their arrival. Some were read since.
    arrived: VecDeque<Start>,
    /// Bytes of the requests on their way.
    bytes: u64,
    /// A task has begun that lets chunks gather.
    is_gathering: bool,
    tasks: usize,
    waiting: BTreeMap<Start, Vec<Waiter>>,
}

#[derive(Debug)]
struct Waiter {
    answer: oneshot::Sender<Result<Bytes>>,
    length: u32,
}

/// Chunks that one request reads.
#[derive(Debug)]
struct Span {
    chunks: Vec<(u32, Vec<Waiter>)>,
    end: u64,
    name: PackName,
    start: u64,
}

impl Packs {
    pub(super) async fn read_coalesced(self: &Arc<Self>, name: PackName, place: &Place) -> Result<Bytes> {
        let (answer, read) = oneshot::channel();
        let begins = {
            let mut queue = self.queue();
            queue.add((name, place.offset), Waiter { answer, length: place.length });
            let begins = queue.may_begin() && !queue.is_gathering;
            if begins {
                queue.is_gathering = true;
                queue.tasks += 1;
            }
            begins
        };
        if begins {
            self.begin_task(GATHER_TIME);
        }
        // Without an answer the runtime ended.
        read.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, "read").on(Key::Pack(name))))
    }

    /// Begins to read after this time.
    fn begin_task(self: &Arc<Self>, gathers: Duration) {
        // Before the task: a runtime may drop it unpolled.
        let task = ReadTask { bytes: 0, gathers, is_over: false, packs: Arc::clone(self) };
        self.runtime().spawn(Box::pin(task.read()));
    }

    async fn read_one_by_one(&self, span: Span) {
        for (offset, waiters) in span.chunks {
            let start = u64::from(offset);
            let end = start + longest(&waiters);
            let read = self.inner.get_range(&Key::Pack(span.name), start..end).await;
            let one = Span { chunks: vec![(offset, waiters)], end, name: span.name, start };
            one.answer(read.map(|object| object.bytes));
        }
    }

    fn queue(&self) -> MutexGuard<'_, ReadQueue> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A task that reads. If its runtime drops it, no reader waits for ever.
struct ReadTask {
    /// Bytes of the request that is on its way.
    bytes: u64,
    /// Time for which it lets chunks gather.
    gathers: Duration,
    is_over: bool,
    packs: Arc<Packs>,
}

impl ReadTask {
    async fn read(mut self) {
        let packs = Arc::clone(&self.packs);
        if !self.gathers.is_zero() {
            packs.runtime().sleep(self.gathers).await;
            self.gathers = Duration::ZERO;
            packs.queue().is_gathering = false;
        }
        while let Some((span, more)) = self.next_span() {
            if more {
                packs.begin_task(Duration::ZERO);
            }
            let read = packs.inner.get_range(&Key::Pack(span.name), span.start..span.end).await;
            match read {
                // A part of the span may be beyond the end of a truncated pack.
                Err(error) if error.kind() == ErrorKind::InvalidInput && span.chunks.len() > 1 => {
                    packs.read_one_by_one(span).await;
                }
                read => span.answer(read.map(|object| object.bytes)),
            }
            packs.queue().bytes -= std::mem::take(&mut self.bytes);
        }
    }

    fn next_span(&mut self) -> Option<(Span, bool)> {
        let next = self.packs.queue().next_span();
        match &next {
            Some((span, _)) => self.bytes = span.end - span.start,
            None => self.is_over = true,
        }
        next
    }
}

impl Drop for ReadTask {
    fn drop(&mut self) {
        if !self.is_over {
            self.packs.queue().abandon(self.bytes, !self.gathers.is_zero());
        }
    }
}

impl ReadQueue {
    fn add(&mut self, start: Start, waiter: Waiter) {
        self.arrived.push_back(start);
        self.waiting.entry(start).or_default().push(waiter);
    }

    /// A task ends without reading what is left. The last one leaves no reader behind.
    fn abandon(&mut self, bytes: u64, gathers: bool) {
        self.bytes -= bytes;
        self.tasks -= 1;
        self.is_gathering &= !gathers;
        if self.tasks == 0 {
            self.arrived.clear();
            self.waiting.clear();
        }
    }

    /// Returns `true` if another request may be on its way.
    fn may_begin(&self) -> bool {
        self.tasks < SPANS_IN_FLIGHT && self.bytes <= SPAN_BYTES
    }

    /// The chunks of the next request of a task, and whether another task has to begin. `None` ends the task: no chunk is wanted, or others
    /// read enough and take the rest.
    fn next_span(&mut self) -> Option<(Span, bool)> {
        let span = if self.bytes <= SPAN_BYTES { self.take() } else { None };
        let Some(span) = span else {
            self.tasks -= 1;
            return None;
        };
        self.bytes += span.end - span.start;
        let more = !self.waiting.is_empty() && self.may_begin() && !self.is_gathering;
        self.tasks += usize::from(more);
        Some((span, more))
    }

    fn take(&mut self) -> Option<Span> {
        loop {
            let start = self.arrived.pop_front()?;
            let Some(waiters) = self.take_waiters(&start) else { continue };
            let (name, offset) = start;
            let length = longest(&waiters);
            let mut span = Span {
                chunks: vec![(offset, waiters)],
                end: u64::from(offset) + length,
                name,
                start: u64::from(offset),
            };
            self.extend(&mut span);
            return Some(span);
        }
    }

    /// Adds waiting chunks behind and before those of the span.
    fn extend(&mut self, span: &mut Span) {
        loop {
            let behind = self.waiting.range((span.name, offset_of(span.end))..=(span.name, u32::MAX));
            let next = behind.map(|(start, waiters)| (*start, longest(waiters))).next();
            let Some((start, length)) = next else { break };
            let (from, end) = (u64::from(start.1), u64::from(start.1) + length);
            if from - span.end > GAP_BYTES || end - span.start > SPAN_BYTES {
                break;
            }
            if let Some(waiters) = self.take_waiters(&start) {
                span.end = end;
                span.chunks.push((start.1, waiters));
            }
        }
        loop {
            let before = self.waiting.range((span.name, 0)..(span.name, offset_of(span.start)));
            let next = before.map(|(start, waiters)| (*start, longest(waiters))).next_back();
            let Some((start, length)) = next else { break };
            let (from, end) = (u64::from(start.1), u64::from(start.1) + length);
            if end > span.start || span.start - end > GAP_BYTES || span.end - from > SPAN_BYTES {
                break;
            }
            if let Some(waiters) = self.take_waiters(&start) {
                span.start = from;
                span.chunks.push((start.1, waiters));
            }
        }
    }

    /// The readers of a chunk that still want it.
    fn take_waiters(&mut self, start: &Start) -> Option<Vec<Waiter>> {
        let mut waiters = self.waiting.remove(start)?;
        waiters.retain(|waiter| !waiter.answer.is_canceled());
        (!waiters.is_empty()).then_some(waiters)
    }
}

impl Span {
    /// Gives each reader its bytes.
    fn answer(self, read: Result<Bytes>) {
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                let error = beyond_end(error, self.name);
                for waiter in self.chunks.into_iter().flat_map(|(_, waiters)| waiters) {
                    // A reader that was dropped wants no answer.
                    let _ = waiter.answer.send(Err(error.clone()));
                }
                return;
            }
        };
        let is_shared = self.chunks.len() > 1;
        for (offset, waiters) in self.chunks {
            let at = usize::try_from(u64::from(offset) - self.start).unwrap_or(usize::MAX);
            for waiter in waiters {
                let end = at.saturating_add(waiter.length as usize);
                let part = bytes.get(at..end).map(|part| {
                    // A copy, since a reader that keeps one chunk must not keep the whole span in memory.
                    if is_shared { Bytes::copy_from_slice(part) } else { bytes.slice(at..end) }
                });
                let missing = || Error::new(ErrorKind::Internal, "read").on(Key::Pack(self.name));
                let _ = waiter.answer.send(part.ok_or_else(missing));
            }
        }
    }
}

fn longest(waiters: &[Waiter]) -> u64 {
    waiters.iter().map(|waiter| u64::from(waiter.length)).max().unwrap_or(0)
}

fn offset_of(offset: u64) -> u32 {
    u32::try_from(offset).unwrap_or(u32::MAX)
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::io;
    use std::num::NonZeroUsize;
    use std::time::SystemTime;

    use async_trait::async_trait;
    use futures::executor::block_on;
    use futures::future::{BoxFuture, join_all};

    use super::*;
    use crate::backend::record::{Method, RecordingBackend};
    use crate::backend::{Backend, MemoryBackend, PutMode};
    use crate::format::Digest;
    use crate::format::larder::pack::name::SessionId;
    use crate::packs::Limits;
    use crate::packs::PackedBackend;
    use crate::rt::{BlockingJob, Connection, Runtime, SimRuntime, ThreadRuntime};

    /// A reader, which wants its chunk until it is dropped.
    type Reader = oneshot::Receiver<Result<Bytes>>;

    const MIB: u64 = 1 << 20;

    fn pack(n: u32) -> PackName {
        PackName { session: SessionId::from_bytes([1; 16]), n }
    }

    /// A queue as a task finds it.
    fn queue() -> ReadQueue {
        ReadQueue { tasks: 1, ..ReadQueue::default() }
    }

    fn want(queue: &mut ReadQueue, n: u32, offset: u64, length: u64) -> Reader {
        let (answer, reader) = oneshot::channel();
        let length = u32::try_from(length).unwrap();
        queue.add((pack(n), u32::try_from(offset).unwrap()), Waiter { answer, length });
        reader
    }

    /// Pack, start and end of the next request, which ends at once.
    fn next(queue: &mut ReadQueue) -> Option<(u32, u64, u64)> {
        let (span, more) = queue.next_span()?;
        queue.bytes -= span.end - span.start;
        // No other task begins.
        queue.tasks -= usize::from(more);
        Some((span.name.n, span.start, span.end))
    }

    #[test]
    fn chunks_side_by_side_are_one_request_and_a_gap_is_read_over_up_to_its_limit() {
        let mut queue = queue();
        // The first one that is wanted is neither the first nor the last one in the pack.
        let places = [(5000, 100), (5100, 50), (4900, 100), (5150 + GAP_BYTES, 10), (4900 - 1000, 1000)];
        let mut readers: Vec<_> =
            places.iter().map(|(at, length)| want(&mut queue, 1, *at, *length)).collect();
        readers.push(want(&mut queue, 2, 5000, 100));
        readers.push(want(&mut queue, 1, 5161 + 2 * GAP_BYTES, 10));
        assert_eq!(next(&mut queue), Some((1, 3900, 5160 + GAP_BYTES)));
        assert_eq!(next(&mut queue), Some((2, 5000, 5100)), "another pack");
        assert_eq!(
            next(&mut queue),
            Some((1, 5161 + 2 * GAP_BYTES, 5171 + 2 * GAP_BYTES)),
            "the gap is too wide"
        );
        assert_eq!(next(&mut queue), None);
        assert_eq!((queue.tasks, queue.bytes, queue.waiting.len()), (0, 0, 0));
    }

    /// A request may be longer for one chunk only.
    #[test]
    fn a_request_for_several_chunks_never_exceeds_its_limit() {
        let mut queue = queue();
        let mut readers: Vec<_> = (0..40).map(|n| want(&mut queue, 1, n * MIB, MIB)).collect();
        // In the middle of a pack, so that it grows in both directions.
        readers.push(want(&mut queue, 2, 30 * MIB, MIB));
        readers.extend((0..60).map(|n| want(&mut queue, 2, n * MIB, MIB)));
        readers.push(want(&mut queue, 3, 0, 2 * SPAN_BYTES));
        readers.push(want(&mut queue, 3, 2 * SPAN_BYTES, 10));
        let mut seen = [0; 4];
        while let Some((n, start, end)) = next(&mut queue) {
            assert!(
                end - start <= SPAN_BYTES || (n, start, end) == (3, 0, 2 * SPAN_BYTES),
                "{n}: {start} to {end}"
            );
            seen[n as usize] += end - start;
        }
        assert_eq!(seen, [0, 40 * MIB, 60 * MIB, 2 * SPAN_BYTES + 10]);
    }

    #[test]
    fn a_chunk_is_not_read_for_readers_that_were_dropped() {
        let mut queue = queue();
        let first = want(&mut queue, 1, 0, 100);
        let last = want(&mut queue, 1, 200, 100);
        let twice = [want(&mut queue, 1, 300, 100), want(&mut queue, 1, 300, 100)];
        drop(want(&mut queue, 1, 400, 100));
        drop((first, twice));
        assert_eq!(next(&mut queue), Some((1, 200, 300)));
        assert_eq!(next(&mut queue), None);
        assert_eq!(queue.waiting.len(), 0);
        drop(last);
        // One of two readers is enough.
        queue.tasks = 1;
        let kept = want(&mut queue, 1, 300, 100);
        drop(want(&mut queue, 1, 300, 200));
        assert_eq!(next(&mut queue), Some((1, 300, 400)), "no more than is still wanted");
        drop(kept);
    }

    /// Chunks that are wanted again and again beside each other do not keep one at another place waiting.
    #[test]
    fn the_chunk_that_waits_longest_is_in_the_next_request() {
        let mut queue = queue();
        let mut readers = vec![want(&mut queue, 1, 0, 100), want(&mut queue, 2, 0, 100)];
        for n in 1..5 {
            readers.push(want(&mut queue, 1, n * 100, 100));
        }
        assert_eq!(next(&mut queue), Some((1, 0, 500)));
        for n in 5..10 {
            readers.push(want(&mut queue, 1, n * 100, 100));
        }
        readers.push(want(&mut queue, 3, 0, 100));
        assert_eq!(next(&mut queue), Some((2, 0, 100)));
        assert_eq!(next(&mut queue), Some((1, 500, 1000)));
        assert_eq!(next(&mut queue), Some((3, 0, 100)));
    }

    #[test]
    fn another_request_begins_while_those_on_their_way_are_small() {
        let mut queue = queue();
        let mut readers: Vec<_> = (0..100).map(|n| want(&mut queue, n, 0, MIB)).collect();
        let (mut tasks, mut more) = (0, true);
        while more {
            more = queue.next_span().unwrap().1;
            tasks += 1;
        }
        // The last one exceeds the limit.
        assert_eq!((tasks, queue.tasks), (17, 17));
        assert!(queue.bytes > SPAN_BYTES && queue.bytes <= SPAN_BYTES + MIB);
        // A task that ends its request leaves the rest to the others.
        assert!(queue.next_span().is_none());
        assert_eq!((queue.tasks, queue.waiting.len()), (16, 83));
        readers.clear();
        let mut small = self::queue();
        readers.extend((0..100).map(|n| want(&mut small, n, 0, 10)));
        while small.next_span().unwrap().1 {}
        assert_eq!(small.tasks, SPANS_IN_FLIGHT);
    }

    /// A pack of ten chunks of a thousand bytes each, and their places.
    async fn ten_chunks(below: &Arc<dyn Backend>) -> (PackedBackend, PackName, Vec<Place>) {
        let limits =
            Limits { index_bytes: 1 << 20, local: None, memory_bytes: 32 << 20, target_bytes: 8 << 20 };
        let packed = PackedBackend::open(Arc::clone(below), "read queue", limits).await.unwrap();
        let digest = |n: u8| Digest::of(&[n]);
        for n in 0..10 {
            let blob = Bytes::from(vec![n; 1000]);
            packed.put(&Key::Chunk(digest(n)), blob, PutMode::Create).await.unwrap();
        }
        packed.barrier_of_holder().await.unwrap();
        let state = packed.packs.state();
        let places: Vec<_> = (0..10).map(|n| state.view.places(&digest(n))[0]).collect();
        let name = state.view.pack(places[0].pack).unwrap().name;
        drop(state);
        (packed, name, places)
    }

    #[test]
    fn each_reader_gets_the_bytes_of_its_chunk_by_one_request_for_all() {
        let sim = SimRuntime::new(1);
        sim.block_on(async {
            let recording =
                Arc::new(RecordingBackend::new(Arc::new(MemoryBackend::new(Arc::new(sim.clone())))));
            let below: Arc<dyn Backend> = Arc::<RecordingBackend>::clone(&recording);
            let (packed, name, places) = ten_chunks(&below).await;
            recording.reset();
            // In another order than in the pack, and one twice.
            let order = [7, 3, 9, 0, 1, 2, 3, 8, 6, 5, 4];
            let reads = join_all(order.iter().map(|n| packed.packs.read_coalesced(name, &places[*n]))).await;
            for (n, read) in order.iter().zip(reads) {
                assert_eq!(read.unwrap(), vec![u8::try_from(*n).unwrap(); 1000]);
            }
            assert_eq!(recording.count(Method::GetRange), 1);
            let queue = packed.packs.queue();
            assert_eq!((queue.tasks, queue.bytes, queue.waiting.len(), queue.is_gathering), (0, 0, 0, false));
        });
    }

    /// Of a pack that was cut, the chunks before the end are read.
    #[test]
    fn readers_of_a_short_pack_are_answered_one_by_one() {
        let sim = SimRuntime::new(1);
        sim.block_on(async {
            let below: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
            let (packed, name, places) = ten_chunks(&below).await;
            let whole = below.get(&Key::Pack(name), u64::MAX).await.unwrap().bytes;
            let end = usize::try_from(places[6].end()).unwrap();
            below.put(&Key::Pack(name), whole.slice(..end - 1), PutMode::Replace).await.unwrap();
            let reads = join_all(places.iter().map(|place| packed.packs.read_coalesced(name, place))).await;
            for (n, read) in reads.into_iter().enumerate() {
                match read {
                    Ok(bytes) => assert!(n < 6 && bytes == vec![u8::try_from(n).unwrap(); 1000]),
                    Err(error) => assert!(n >= 6 && error.kind() == ErrorKind::Corrupt, "{n}: {error}"),
                }
            }
            below.delete(&[crate::backend::Removal::any(Key::Pack(name))]).await.unwrap();
            let reads = join_all(places.iter().map(|place| packed.packs.read_coalesced(name, place))).await;
            assert!(reads.iter().all(|read| read.as_ref().unwrap_err().kind() == ErrorKind::NotFound));
        });
    }

    /// A runtime that has ended: it drops the tasks that it is given.
    #[derive(Debug, Default)]
    struct Ended(ThreadRuntime, std::sync::atomic::AtomicBool);

    #[async_trait]
    impl Runtime for Ended {
        fn spawn(&self, task: BoxFuture<'static, ()>) {
            if self.1.load(std::sync::atomic::Ordering::SeqCst) {
                drop(task);
            } else {
                self.0.spawn(task);
            }
        }
        fn spawn_blocking(&self, job: BlockingJob) {
            self.0.spawn_blocking(job);
        }
        async fn sleep(&self, duration: Duration) {
            self.0.sleep(duration).await;
        }
        fn now(&self) -> SystemTime {
            self.0.now()
        }
        fn monotonic(&self) -> Duration {
            self.0.monotonic()
        }
        fn fill_random(&self, buffer: &mut [u8]) {
            self.0.fill_random(buffer);
        }
        fn parallelism(&self) -> NonZeroUsize {
            self.0.parallelism()
        }
        async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>> {
            self.0.connect(host, port).await
        }
    }

    #[test]
    fn readers_fail_and_do_not_wait_for_ever_once_the_runtime_has_ended() {
        block_on(async {
            let runtime = Arc::new(Ended::default());
            let below: Arc<dyn Backend> =
                Arc::new(MemoryBackend::new(Arc::<Ended>::clone(&runtime) as Arc<dyn Runtime>));
            let (packed, name, places) = ten_chunks(&below).await;
            runtime.1.store(true, std::sync::atomic::Ordering::SeqCst);
            let reads = join_all(places.iter().map(|place| packed.packs.read_coalesced(name, place))).await;
            assert!(reads.iter().all(|read| read.as_ref().unwrap_err().kind() == ErrorKind::Internal));
            // As if it had only been busy.
            runtime.1.store(false, std::sync::atomic::Ordering::SeqCst);
            assert_eq!(packed.packs.read_coalesced(name, &places[2]).await.unwrap(), vec![2; 1000]);
        });
    }
}
