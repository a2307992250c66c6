//! What was sent, attempt by attempt: counted where it happens, so that nothing is missed (H152).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What was asked of a server.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// Asking whether the bucket is there.
    BucketHead,
    /// Making the bucket.
    BucketPut,
    /// Reading the settings of the bucket.
    BucketSettings,
    /// Copying an object within the server.
    Copy,
    /// Deleting one object.
    Delete,
    /// Deleting up to 1000 objects.
    DeleteMany,
    /// Reading an object or a part of one.
    Get,
    /// Asking for what is known of an object.
    Head,
    /// Reading a page of a listing, of objects, uploads or buckets.
    List,
    /// Beginning, completing or aborting an upload in parts.
    Multipart,
    /// Storing an object or a part of one.
    Put,
}

impl Operation {
    /// Returns `true` if it changes something.
    pub fn writes(self) -> bool {
        !matches!(self, Self::BucketHead | Self::BucketSettings | Self::Get | Self::Head | Self::List)
    }
}

/// How an attempt ended.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Answered with 2xx, or that it is not there, or that a condition does not hold.
    Answered,
    /// Not answered, or the future was dropped before. It may have been executed, and may be paid for.
    Broken,
    /// Not a byte of it reached a server. It is in no total and counts for no threshold.
    NotSent,
    /// Refused for another reason.
    Refused,
    /// The server asked for patience.
    Throttled,
}

/// How often something happened, with the bytes of bodies both ways.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperationCount {
    /// Attempts.
    pub attempts: u64,
    /// Bytes of bodies that came in.
    pub bytes_in: u64,
    /// Bytes of bodies that were to go out.
    pub bytes_out: u64,
}

/// Called once when a threshold is reached.
type Callback = Box<dyn FnOnce(&Counters) + Send>;

/// Everything that a client sent.
#[derive(Default)]
pub struct Counters {
    counts: Mutex<BTreeMap<(Operation, Outcome), OperationCount>>,
    thresholds: Mutex<Vec<(u64, Callback)>>,
}

impl Counters {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The counts by operation and outcome.
    pub fn counts(&self) -> BTreeMap<(Operation, Outcome), OperationCount> {
        self.locked().clone()
    }

    /// All that were sent, together.
    pub fn total(&self) -> OperationCount {
        let counts = self.locked();
        let sent = counts.iter().filter(|((_, outcome), _)| *outcome != Outcome::NotSent);
        sent.fold(OperationCount::default(), |sum, (_, count)| OperationCount {
            attempts: sum.attempts + count.attempts,
            bytes_in: sum.bytes_in + count.bytes_in,
            bytes_out: sum.bytes_out + count.bytes_out,
        })
    }

    /// Has `callback` called once, when this many attempts were sent in all; from within the attempt, so it must be quick.
    pub fn when_attempts_reach(&self, attempts: u64, callback: impl FnOnce(&Self) + Send + 'static) {
        self.thresholds.lock().unwrap_or_else(PoisonError::into_inner).push((attempts, Box::new(callback)));
        self.check_thresholds();
    }

    pub(super) fn add(&self, operation: Operation, outcome: Outcome, bytes_in: u64, bytes_out: u64) {
        {
            let mut counts = self.locked();
            let count = counts.entry((operation, outcome)).or_default();
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
        // No lock is held: a callback may look at the counters.
        for (_, callback) in due {
            callback(self);
        }
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<(Operation, Outcome), OperationCount>> {
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
    fn every_attempt_counts_and_a_threshold_calls_once() {
        let counters = Counters::new();
        let called = Arc::new(AtomicU64::new(0));
        let seen = Arc::clone(&called);
        counters.when_attempts_reach(2, move |counters| {
            seen.fetch_add(counters.total().attempts, Ordering::Relaxed);
        });
        for outcome in [Outcome::NotSent, Outcome::Broken, Outcome::Throttled, Outcome::Answered] {
            counters.add(Operation::Put, outcome, 1, 10);
        }
        assert_eq!(called.load(Ordering::Relaxed), 2);
        assert_eq!(counters.total(), OperationCount { attempts: 3, bytes_in: 3, bytes_out: 30 });
        assert_eq!(counters.counts().len(), 4);
        assert!(Operation::Put.writes() && !Operation::Get.writes());
    }
}
