//! Options and progress events of a garbage collection.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::format::upid::Upid;
use crate::gc::prices::Prices;
use crate::observer::Observer;
use crate::store::ExecutionControl;

/// Options of a garbage collection.
#[derive(Clone, Debug)]
#[must_use]
pub struct GcOptions {
    pub(super) clock_was_set_back: bool,
    pub(super) control: ExecutionControl<GcEvent>,
    pub(super) grace: Duration,
    pub(super) keep_packs: Duration,
    pub(super) listing_lag: Duration,
    pub(super) memory_bytes: usize,
    pub(super) max_garbage: u8,
    pub(super) max_repack_bytes: u64,
    pub(super) max_unused: u8,
    pub(super) consistent_listings: bool,
    pub(super) only_process: bool,
    pub(super) prices: Option<Prices>,
    pub(super) sizes: Sizes,
    pub(super) task: Option<Upid>,
}

impl Default for GcOptions {
    fn default() -> Self {
        Self {
            clock_was_set_back: false,
            control: ExecutionControl::default(),
            grace: Duration::from_mins(24 * 60 + 5),
            keep_packs: Duration::ZERO,
            listing_lag: Duration::from_hours(1),
            memory_bytes: 16 << 20,
            max_garbage: 30,
            max_repack_bytes: u64::MAX,
            max_unused: 5,
            consistent_listings: false,
            only_process: false,
            prices: None,
            sizes: Sizes::All,
            task: None,
        }
    }
}

/// Chunks whose sizes are added up.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// All chunks.
    All,
    /// Unreferenced chunks only. In a directory the others are then not looked at, which is faster; but no `.gc-status`
    /// for PBS is written.
    Unused,
}

impl GcOptions {
    /// Aborts the run while this flag is `true`; checked for each index and each page of chunks. Default: none.
    pub fn abort(mut self, flag: Arc<AtomicBool>) -> Self {
        self.control.abort = flag;
        self
    }

    /// Number of parts of the store listed concurrently, at least 1; default: the number of objects that the backend transfers at once.
    pub fn concurrency(mut self, parts: usize) -> Self {
        self.control.concurrency = Some(parts);
        self
    }

    /// Time for which a chunk stays after its last use, and, where two sightings are needed, the minimum time between
    /// them; default: 24 hours and 5 minutes, as in PBS. It is the only protection of restores from a bucket on another host, so in a
    /// bucket it should exceed the longest restore.
    pub fn grace(mut self, grace: Duration) -> Self {
        self.grace = grace;
        self
    }

    /// In a bucket: the maximum time until every listing shows an index, from the start of its
    /// put; default: one hour, of which late requests may take half. A shorter grace time is refused,
    /// unless [`consistent_listings`](GcOptions::consistent_listings) is set. If listings lag longer, a snapshot that
    /// another process published just before the run loses chunks that were unreferenced before.
    pub fn listing_lag(mut self, lag: Duration) -> Self {
        self.listing_lag = lag;
        self
    }

    /// Maximum bytes for the names of unreferenced chunks, and of missing ones; default: 16 MiB, enough for 300,000. If there are
    /// more, chunks are listed again to remove them, or indexes are read again for each 262,144 missing ones.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    /// The safety limit: the percentage of chunks that may be garbage without [confirmation](crate::gc::GcPlan::confirm); default: 30.
    /// 100 or more turns it off; a store with chunks and without snapshots needs confirmation in any case.
    pub fn max_garbage(mut self, percent: u8) -> Self {
        self.max_garbage = percent;
        self
    }

    /// In a packed store: packs younger than this stay, whatever they contain; default: 0. Providers that bill an object for 30 or 90
    /// days, however early it is deleted, make younger packs free to keep.
    pub fn keep_packs(mut self, age: Duration) -> Self {
        self.keep_packs = age;
        self
    }

    /// In a packed store: maximum bytes of chunks in use that are copied in order to rewrite and merge packs; default: no limit. 0 only deletes
    /// packs without a chunk in use.
    pub fn max_repack_bytes(mut self, bytes: u64) -> Self {
        self.max_repack_bytes = bytes;
        self
    }

    /// In a packed store: the percentage of unused bytes that packs may have in total before some of them are rewritten; default: 5.
    pub fn max_unused(mut self, percent: u8) -> Self {
        self.max_unused = percent;
        self
    }

    /// Observer of the progress; default: none.
    pub fn observer(mut self, observer: Arc<dyn Observer<GcEvent>>) -> Self {
        self.control.observer = Some(observer);
        self
    }

    /// Asserts that the clock of the store was ahead and was set back, at least a grace time and a listing lag ago. Garbage that is dated more
    /// than a week ahead of it then counts as old, and so do packs for [`keep_packs`](Self::keep_packs); otherwise it stays until the clock has caught up. Where listings may lag, it still has to be found twice. If
    /// the assertion is false, chunks of snapshots that listings do not show yet may be lost.
    pub fn clock_was_set_back(mut self) -> Self {
        self.clock_was_set_back = true;
        self
    }

    /// Removes garbage at first sight, even where a listing may lag: for stores that only this program
    /// uses, on servers with consistent listings.
    pub fn consistent_listings(mut self) -> Self {
        self.consistent_listings = true;
        self
    }

    /// Asserts that no other process uses the store, where locks do not reach other processes: see
    /// [`Capabilities::lock_reach`](crate::backend::Capabilities). If the assertion is false, data is lost.
    pub fn only_process(mut self) -> Self {
        self.only_process = true;
        self
    }

    /// In a packed store: prices by which the plan says what each action costs and saves; default: none. They change no decision.
    pub fn prices(mut self, prices: Prices) -> Self {
        self.prices = Some(prices);
        self
    }

    /// Chunks whose sizes are added up; default: all.
    pub fn sizes(mut self, sizes: Sizes) -> Self {
        self.sizes = sizes;
        self
    }

    /// Task id for `.gc-status`; default: none.
    pub fn task(mut self, task: Upid) -> Self {
        self.task = Some(task);
        self
    }

    /// # Errors
    /// `Conflict` if the run is to be aborted.
    pub(super) fn check_abort(&self) -> Result<()> {
        if self.control.is_aborted() {
            return Err(Error::new(ErrorKind::Conflict, "collect garbage").because("it was aborted"));
        }
        Ok(())
    }
}

/// A progress event of a garbage collection.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(tag = "event", rename_all = "snake_case"))]
pub enum GcEvent {
    /// A page of chunks was listed.
    ChunksListed {
        /// Number of chunks of the page.
        chunks: u64,
    },
    /// An index was marked.
    IndexMarked {
        /// Number of its chunks.
        chunks: u64,
    },
    /// Chunks were removed.
    Removed {
        /// Stored bytes.
        bytes: u64,
        /// Number of chunks.
        chunks: u64,
    },
    /// A part of the chunks was listed completely.
    ShardListed {
        /// Its number in order of completion, from 1.
        done: u64,
        /// Number of parts.
        of: u64,
    },
}
