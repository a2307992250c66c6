//! Statistics of requests, counted for each attempt where it happens, so that none is missed (H152).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Kind of a request.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Checks that the bucket exists.
    BucketHead,
    /// Creates the bucket.
    BucketPut,
    /// Reads the settings of the bucket.
    BucketSettings,
    /// Copies an object on the server.
    Copy,
    /// Deletes one object.
    Delete,
    /// Deletes up to 1000 objects.
    DeleteMany,
    /// Reads an object or a range of it.
    Get,
    /// Reads the headers of an object.
    Head,
    /// Reads a page of a listing, of objects, uploads or buckets.
    List,
    /// Begins, completes or aborts a multipart upload.
    Multipart,
    /// Stores an object or a part of one.
    Put,
}

impl Operation {
    /// Returns `true` if such a request changes the bucket.
    pub(crate) fn writes(self) -> bool {
        !matches!(self, Self::BucketHead | Self::BucketSettings | Self::Get | Self::Head | Self::List)
    }
}

/// Outcome of an attempt.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RequestOutcome {
    /// Answered with 2xx, or that the object is missing, or that a condition fails.
    Answered,
    /// No answer, or the future was dropped before it. The request may have been executed, and may be paid for.
    Broken,
    /// No byte reached a server. Not part of any total or threshold.
    NotSent,
    /// Refused for another reason.
    Refused,
    /// Throttled by the server.
    Throttled,
}

/// Attempts that are counted together.
#[expect(clippy::exhaustive_structs, reason = "a key to look up")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptKind {
    /// The operation.
    pub operation: Operation,
    /// The outcome.
    pub outcome: RequestOutcome,
}

/// Number of attempts, with the body bytes in both directions.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationCount {
    /// Attempts.
    pub attempts: u64,
    /// Received body bytes.
    pub bytes_in: u64,
    /// Sent body bytes, including those of failed attempts.
    pub bytes_out: u64,
}

/// Called once when a threshold is reached.
type Callback = Box<dyn FnOnce(&Counters) + Send>;

/// Statistics of all requests of a client.
#[derive(Default)]
pub struct Counters {
    counts: Mutex<BTreeMap<AttemptKind, OperationCount>>,
    thresholds: Mutex<Vec<(u64, Callback)>>,
}

impl Counters {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Counts by operation and outcome.
    pub fn counts(&self) -> BTreeMap<AttemptKind, OperationCount> {
        self.locked().clone()
    }

    /// Total of all sent attempts.
    pub fn total(&self) -> OperationCount {
        let counts = self.locked();
        let sent = counts.iter().filter(|(kind, _)| kind.outcome != RequestOutcome::NotSent);
        sent.fold(OperationCount::default(), |sum, (_, count)| OperationCount {
            attempts: sum.attempts + count.attempts,
            bytes_in: sum.bytes_in + count.bytes_in,
            bytes_out: sum.bytes_out + count.bytes_out,
        })
    }

    /// Calls `callback` once, after this many attempts in total. It runs inside the attempt, so it must be quick.
    pub fn when_attempts_reach(&self, attempts: u64, callback: impl FnOnce(&Self) + Send + 'static) {
        self.thresholds.lock().unwrap_or_else(PoisonError::into_inner).push((attempts, Box::new(callback)));
        self.check_thresholds();
    }

    pub(super) fn add(&self, operation: Operation, outcome: RequestOutcome, bytes_in: u64, bytes_out: u64) {
        {
            let mut counts = self.locked();
            let count = counts.entry(AttemptKind { operation, outcome }).or_default();
            count.attempts += 1;
            count.bytes_in += bytes_in;
            count.bytes_out += bytes_out;
        }
        self.check_thresholds();
    }

    fn check_thresholds(&self) {
        let due: Vec<_> = {
            let mut thresholds = self.thresholds.lock().unwrap_or_else(PoisonError::into_inner);
            if thresholds.is_empty() {
                return;
            }
            let attempts = self.total().attempts;
            thresholds.extract_if(.., |(threshold, _)| *threshold <= attempts).collect()
        };
        // No lock is held, so a callback may read the counters.
        for (_, callback) in due {
            callback(self);
        }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<AttemptKind, OperationCount>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.locked().iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Proves H152.
    #[test]
    fn every_attempt_is_counted_and_a_threshold_fires_once() {
        let counters = Counters::new();
        let called = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&called);
        counters.when_attempts_reach(2, move |counters| {
            seen.fetch_add(counters.total().attempts, Ordering::Relaxed);
        });
        for outcome in [
            RequestOutcome::NotSent,
            RequestOutcome::Broken,
            RequestOutcome::Throttled,
            RequestOutcome::Answered,
        ] {
            counters.add(Operation::Put, outcome, 1, 10);
        }
        assert_eq!(called.load(Ordering::Relaxed), 2);
        assert_eq!(counters.total(), OperationCount { attempts: 3, bytes_in: 3, bytes_out: 30 });
        assert_eq!(counters.counts().len(), 4);
        assert!(Operation::Put.writes() && !Operation::Get.writes());
    }
}
