//! Choices for a garbage collection, and who is told of its progress.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::format::upid::Upid;

/// Choices for a garbage collection.
#[derive(Clone, Debug)]
#[must_use]
pub struct GcOptions {
    pub(super) abort: Arc<AtomicBool>,
    pub(super) grace: Duration,
    pub(super) listing_lag: Duration,
    pub(super) memory_bytes: usize,
    pub(super) max_garbage: u8,
    pub(super) observer: Option<Arc<dyn GcObserver>>,
    pub(super) consistent_listings: bool,
    pub(super) only_process: bool,
    pub(super) parallel: Option<usize>,
    pub(super) sizes: Sizes,
    pub(super) task: Option<Upid>,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            abort: Arc::default(),
            grace: Duration::from_mins(24 * 60 + 5),
            listing_lag: Duration::from_hours(1),
            memory_bytes: 16 << 20,
            max_garbage: 30,
            observer: None,
            consistent_listings: false,
            only_process: false,
            parallel: None,
            sizes: Sizes::All,
            task: None,
        }
    }
}

/// Whose sizes are added up.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// Those of all chunks.
    All,
    /// Those of unused chunks only. In a directory the others need not even be looked at, which is faster; no state is written then
    /// that PBS could show.
    Unused,
}

impl GcOptions {
    /// Ends the run as soon as this is true: it is looked at for each index and each page of chunks. Default: never.
    pub fn abort(mut self, abort: Arc<AtomicBool>) -> Self {
        self.abort = abort;
        self
    }

    /// How long a chunk stays after it was last used, and where garbage has to be seen twice, how long the two times are apart at
    /// least; default: 24 hours and 5 minutes, as in PBS. It is what protects those who read a bucket from another host, so in a
    /// bucket it should be longer than any restore takes.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// In a bucket: how long it takes at most until every listing shows an index, from the moment at which somebody begins to store
    /// it; default: one hour, of which requests that arrive late may take half. A grace time that is shorter is refused,
    /// unless [`consistent_listings`](GcOptions::consistent_listings) says that listings are consistent. If it takes longer, snapshots that
    /// another process published a moment before the run lose chunks that were unused before.
    pub fn listing_lag(mut self, lag: Duration) -> Self {
        self.listing_lag = lag;
        self
    }

    /// How many bytes the names of unused chunks may take; default: 16 MiB, which is room for 300,000. If there are more, chunks are
    /// listed again to remove them.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// How many percent of the chunks may be garbage before it has to be [confirmed](crate::gc::GcPlan::confirm) (H27); default: 30.
    /// 100 or more turns this off; if there are chunks and no snapshots at all, it has to be confirmed all the same.
    pub fn max_garbage(mut self, percent: u8) -> Self {
        self.max_garbage = percent;
        self
    }

    /// Who is told about progress; default: nobody.
    pub fn observer(mut self, observer: Arc<dyn GcObserver>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Removes garbage when it is seen for the first time, also where a listing may lag behind (H11): for stores that this program alone
    /// has been using, and on servers whose listings are known to be consistent.
    pub fn consistent_listings(mut self) -> Self {
        self.consistent_listings = true;
        self
    }

    /// Says that no other process uses the store, where locks do not reach other processes: see
    /// [`Capabilities::lock_reach`](crate::backend::Capabilities). If it is not true, data is lost.
    pub fn only_process(mut self) -> Self {
        self.only_process = true;
        self
    }

    /// How many parts of the store are listed at the same time; default: as many chunks as the backend would transfer at once.
    pub fn parallel(mut self, parts: usize) -> Self {
        self.parallel = Some(parts);
        self
    }

    /// Whose sizes are added up; default: those of all chunks.
    pub fn sizes(mut self, sizes: Sizes) -> Self {
        self.sizes = sizes;
        self
    }

    /// The task that collects, for the state that is left for PBS; default: none.
    pub fn task(mut self, task: Upid) -> Self {
        self.task = Some(task);
        self
    }

    /// # Errors
    /// `Conflict` once it is to be aborted.
    pub(super) fn check_abort(&self) -> Result<()> {
        if self.is_aborted() {
            return Err(Error::new(ErrorKind::Conflict, "collect garbage").because("it was aborted"));
        }
        Ok(())
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.abort.load(Ordering::Relaxed)
    }

    pub(super) fn tell(&self, event: &GcEvent) {
        if let Some(observer) = &self.observer {
            observer.on_event(event);
        }
    }
}

/// Who is told how far a garbage collection is.
///
/// It is called from whatever task does the work: it has to return at once and must not block.
pub trait GcObserver: fmt::Debug + Send + Sync + 'static {
    /// Something happened.
    fn on_event(&self, event: &GcEvent);
}

/// Something that happened in a garbage collection.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GcEvent {
    /// A page of chunks was looked at.
    ChunksListed {
        /// How many were on it.
        chunks: u64,
    },
    /// An index was marked.
    IndexMarked {
        /// How many chunks it names.
        chunks: u64,
    },
    /// Chunks were removed.
    Removed {
        /// How many bytes they took.
        bytes: u64,
        /// How many.
        chunks: u64,
    },
    /// A part of the chunks was listed to its end.
    ShardListed {
        /// Which one in time, from 1.
        done: u64,
        /// How many there are.
        of: u64,
    },
}
