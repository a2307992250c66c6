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
use crate::packs::view::Place;

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
            let start = (name, place.offset);
            queue.arrived.push_back(start);
            queue.waiting.entry(start).or_default().push(Waiter { answer, length: place.length });
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
        let packs = Arc::clone(self);
        self.runtime().spawn(Box::pin(async move {
            if !gathers.is_zero() {
                packs.runtime().sleep(gathers).await;
                packs.queue().is_gathering = false;
            }
            packs.read_spans().await;
        }));
    }

    async fn read_spans(self: &Arc<Self>) {
        while let Some((span, more)) = self.next_span() {
            if more {
                self.begin_task(Duration::ZERO);
            }
            let bytes = span.end - span.start;
            let read = self.inner.get_range(&Key::Pack(span.name), span.start..span.end).await;
            match read {
                // A part of the span may be beyond the end of a truncated pack.
                Err(error) if error.kind() == ErrorKind::InvalidInput && span.chunks.len() > 1 => {
                    self.read_one_by_one(span).await;
                }
                read => span.answer(read.map(|object| object.bytes)),
            }
            self.queue().bytes -= bytes;
        }
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

    fn next_span(&self) -> Option<(Span, bool)> {
        self.queue().next_span()
    }

    fn queue(&self) -> MutexGuard<'_, ReadQueue> {
        self.reads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadQueue {
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
