//! Conditions that end an execution early: an abort, a budget, or an unreachable store.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::format::Digest;
use crate::verify::ledger::Verdict;
use crate::verify::options::{VerifyMode, VerifyOptions};
use crate::verify::report::ChunkFinding;

/// Reason why an execution ends early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    Aborted,
    Budget,
    /// So many chunks are missing that the results cannot be trusted (H95).
    Missing,
    Unreachable,
}

#[derive(Debug)]
pub(super) struct Control {
    abort: Arc<AtomicBool>,
    bytes: AtomicU64,
    byte_limit: AtomicU64,
    /// The chunk that was found good last.
    last_good: Mutex<Option<Digest>>,
    /// Number of consecutive missing chunks.
    missing: AtomicU64,
    max_in_a_row: u64,
    requests: AtomicU64,
    request_limit: AtomicU64,
    stop: Mutex<Option<Stop>>,
    /// Number of consecutive unreachable chunks.
    unreachable: AtomicU64,
    was_unreachable: AtomicBool,
}

impl Control {
    pub(super) fn new(options: &VerifyOptions) -> Self {
        let (bytes, requests) = match options.mode {
            VerifyMode::Sample(sample) => (sample.bytes, sample.requests),
            VerifyMode::Full | VerifyMode::Presence => (None, None),
        };
        Self {
            abort: Arc::clone(&options.control.abort),
            bytes: AtomicU64::new(0),
            byte_limit: AtomicU64::new(bytes.unwrap_or(u64::MAX)),
            last_good: Mutex::default(),
            missing: AtomicU64::new(0),
            max_in_a_row: options.missing_limit,
            requests: AtomicU64::new(0),
            request_limit: AtomicU64::new(requests.unwrap_or(u64::MAX)),
            stop: Mutex::new(None),
            unreachable: AtomicU64::new(0),
            was_unreachable: AtomicBool::new(false),
        }
    }

    /// The reason why the execution ends; `None` if it continues.
    pub(super) fn stopped(&self) -> Option<Stop> {
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        if stop.is_none() && self.abort.load(Ordering::Relaxed) {
            *stop = Some(Stop::Aborted);
        }
        *stop
    }

    /// Prepares the next execution, and returns the reason why the last one ended early. A budget spans all executions, and so does a
    /// row of missing chunks, unless it ended the last one.
    pub(super) fn resume(&self) -> Option<Stop> {
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        let last = *stop;
        *stop = stop.filter(|stop| *stop == Stop::Budget);
        if last == Some(Stop::Missing) {
            self.missing.store(0, Ordering::Relaxed);
        }
        self.unreachable.store(0, Ordering::Relaxed);
        self.was_unreachable.store(false, Ordering::Relaxed);
        last
    }

    pub(super) fn stop(&self, why: Stop) {
        self.stop.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(why);
    }

    /// Counts one more read request, if the budget allows it.
    pub(super) fn admit(&self) -> bool {
        if self.stopped().is_some() {
            return false;
        }
        let fits = self.bytes.load(Ordering::Relaxed) < self.byte_limit.load(Ordering::Relaxed)
            && self.requests.fetch_add(1, Ordering::Relaxed) < self.request_limit.load(Ordering::Relaxed);
        if !fits {
            // A request that is not sent does not count.
            let most = self.request_limit.load(Ordering::Relaxed);
            let _ = self.requests.fetch_min(most, Ordering::Relaxed);
            self.stop(Stop::Budget);
        }
        fits
    }

    /// Counts a request that is sent in any case.
    pub(super) fn count_request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn count_bytes(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Bytes and requests so far.
    pub(super) fn used(&self) -> (u64, u64) {
        (self.bytes.load(Ordering::Relaxed), self.requests.load(Ordering::Relaxed))
    }

    /// Number of requests left.
    pub(super) fn requests_left(&self) -> u64 {
        let most = self.request_limit.load(Ordering::Relaxed);
        most.saturating_sub(self.requests.load(Ordering::Relaxed))
    }

    /// Reserves a part of the budget, or releases it.
    pub(super) fn reserve(&self, (bytes, requests): (u64, u64)) {
        for (limit, reserved) in [(&self.byte_limit, bytes), (&self.request_limit, requests)] {
            let most = limit.load(Ordering::Relaxed);
            if most != u64::MAX {
                limit.store(most.saturating_sub(reserved), Ordering::Relaxed);
            }
        }
    }

    /// Allows use of the reserve, even though the run ends, and even if the requests in flight exceeded the rest.
    pub(super) fn release(&self, (bytes, requests): (u64, u64)) {
        let limits =
            [(&self.byte_limit, &self.bytes, bytes), (&self.request_limit, &self.requests, requests)];
        for (limit, used, reserved) in limits {
            let most = limit.load(Ordering::Relaxed).max(used.load(Ordering::Relaxed));
            limit.store(most.saturating_add(reserved), Ordering::Relaxed);
        }
        let mut stop = self.stop.lock().unwrap_or_else(PoisonError::into_inner);
        if *stop == Some(Stop::Budget) {
            *stop = None;
        }
    }

    /// Counts a result for a chunk: the trust in the store depends on it.
    pub(super) fn count_verdict(&self, digest: Digest, verdict: Verdict) {
        if matches!(verdict.finding(), Some(ChunkFinding::Good(_))) {
            *self.last_good.lock().unwrap_or_else(PoisonError::into_inner) = Some(digest);
        }
        match verdict {
            Verdict::Elsewhere | Verdict::Unchecked => {}
            Verdict::Missing => {
                if self.missing.fetch_add(1, Ordering::Relaxed) + 1 >= self.max_in_a_row {
                    self.stop(Stop::Missing);
                }
            }
            Verdict::Unreachable(_) => self.count_unreachable(),
            Verdict::Authentic
            | Verdict::Checksum
            | Verdict::Corrupt
            | Verdict::Digest
            | Verdict::OtherLength
            | Verdict::Presence => {
                self.missing.store(0, Ordering::Relaxed);
                self.unreachable.store(0, Ordering::Relaxed);
            }
        }
    }

    pub(super) fn count_unreachable(&self) {
        self.was_unreachable.store(true, Ordering::Relaxed);
        if self.unreachable.fetch_add(1, Ordering::Relaxed) + 1 >= self.max_in_a_row {
            self.stop(Stop::Unreachable);
        }
    }

    /// The chunk that was found good last.
    pub(super) fn last_good(&self) -> Option<Digest> {
        *self.last_good.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns `true` if no good chunk was seen since the last missing one.
    pub(super) fn last_was_missing(&self) -> bool {
        self.missing.load(Ordering::Relaxed) > 0
    }

    /// Returns `true` if anything was unreachable.
    pub(super) fn was_unreachable(&self) -> bool {
        self.was_unreachable.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verify::options::Sample;

    /// Proves H104.
    #[test]
    fn a_reserve_stays_although_the_chunks_in_flight_exceed_the_budget() {
        let sample = Sample::default().bytes(100).requests(10);
        let control = Control::new(&VerifyOptions::default().mode(VerifyMode::Sample(sample)));
        control.count_bytes(10);
        control.reserve((10, 1));
        assert!(control.admit());
        control.count_bytes(500);
        assert!(!control.admit());
        control.release((10, 1));
        assert!(control.admit() && control.stopped().is_none());
        control.count_bytes(10);
        assert!(!control.admit());
    }
}
