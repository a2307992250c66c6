//! Statistics of requests, counted for each attempt where it happens, so that none is missed (H152).

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::wording::{Count, Parts, Size};

/// Kind of a request.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
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

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl Operation {
    /// Its name in snake case.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::BucketHead => "bucket_head",
            Self::BucketPut => "bucket_put",
            Self::BucketSettings => "bucket_settings",
            Self::Copy => "copy",
            Self::Delete => "delete",
            Self::DeleteMany => "delete_many",
            Self::Get => "get",
            Self::Head => "head",
            Self::List => "list",
            Self::Multipart => "multipart",
            Self::Put => "put",
        }
    }

    /// Returns `true` if such a request changes the bucket.
    pub(crate) fn writes(self) -> bool {
        !matches!(self, Self::BucketHead | Self::BucketSettings | Self::Get | Self::Head | Self::List)
    }
}

/// Outcome of an attempt.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
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

impl fmt::Display for RequestOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

impl RequestOutcome {
    /// Its name in snake case.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Broken => "broken",
            Self::NotSent => "not_sent",
            Self::Refused => "refused",
            Self::Throttled => "throttled",
        }
    }
}

/// Requests of one operation with one outcome.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RequestCount {
    /// Number of attempts.
    pub attempts: u64,
    /// Bytes of received bodies.
    pub bytes_in: u64,
    /// Bytes of sent bodies.
    pub bytes_out: u64,
    /// The operation.
    pub operation: Operation,
    /// The outcome.
    pub outcome: RequestOutcome,
}

impl fmt::Display for RequestCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, received) = (Size(self.bytes_out), Size(self.bytes_in));
        write!(f, "{} {}: {}, {sent} sent, {received} received", self.operation, self.outcome, self.attempts)
    }
}

/// Statistics of the requests of a client, since it was made. Each attempt counts, repeated ones too.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct RequestStats {
    /// Number of attempts that were sent.
    pub attempts: u64,
    /// Bytes of received bodies.
    pub bytes_in: u64,
    /// Bytes of sent bodies.
    pub bytes_out: u64,
    /// The attempts by operation and outcome, in the order of both. Only [`RequestOutcome::NotSent`] is not part of the totals.
    pub counts: Vec<RequestCount>,
}

/// The total, and a line for each kind of attempt.
impl fmt::Display for RequestStats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sent, received) = (Size(self.bytes_out), Size(self.bytes_in));
        let mut lines = Parts::default();
        lines.add(format_args!("{}, {sent} sent, {received} received", Count(self.attempts, "request")));
        self.counts.iter().for_each(|count| lines.add(count));
        f.write_str(&lines.lines())
    }
}

/// Counts attempts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    counts: Mutex<BTreeMap<(Operation, RequestOutcome), RequestCount>>,
}

impl Counters {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn stats(&self) -> RequestStats {
        let counts: Vec<_> = self.locked().values().copied().collect();
        let sent = counts.iter().filter(|count| count.outcome != RequestOutcome::NotSent);
        let mut stats = sent.fold(RequestStats::default(), |sum, count| RequestStats {
            attempts: sum.attempts + count.attempts,
            bytes_in: sum.bytes_in + count.bytes_in,
            bytes_out: sum.bytes_out + count.bytes_out,
            counts: Vec::new(),
        });
        stats.counts = counts;
        stats
    }

    pub(super) fn add(&self, operation: Operation, outcome: RequestOutcome, bytes_in: u64, bytes_out: u64) {
        let new = RequestCount { attempts: 0, bytes_in: 0, bytes_out: 0, operation, outcome };
        let mut counts = self.locked();
        let count = counts.entry((operation, outcome)).or_insert(new);
        count.attempts += 1;
        count.bytes_in += bytes_in;
        count.bytes_out += bytes_out;
    }

    fn locked(&self) -> MutexGuard<'_, BTreeMap<(Operation, RequestOutcome), RequestCount>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_is_counted() {
        let counters = Counters::new();
        for outcome in [
            RequestOutcome::NotSent,
            RequestOutcome::Broken,
            RequestOutcome::Throttled,
            RequestOutcome::Answered,
        ] {
            counters.add(Operation::Put, outcome, 1, 10);
        }
        let stats = counters.stats();
        assert_eq!((stats.attempts, stats.bytes_in, stats.bytes_out), (3, 3, 30));
        assert_eq!(stats.counts.len(), 4);
        assert!(Operation::Put.writes() && !Operation::Get.writes());
    }
}
