//! One request of a client with its answer, and the state that all requests of a client share.

use std::borrow::Cow;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicI64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Error, ErrorKind};
use crate::http::{HttpTransport, Response};
use crate::rt::{Rate, Runtime};
use crate::s3::Refusal;
use crate::s3::counters::{Counters, Operation};
use crate::s3::credentials::Keeper;
use crate::s3::limits::Concurrency;
use crate::s3::options::S3Options;
use crate::s3::place::Place;
use crate::s3::retry::{Budget, refusal};
use crate::trace::RetryWarnings;

/// Maximum bytes of a single request.
pub(super) const MOST_BYTES: u64 = 5 << 30;

/// The state that all clones of a client share.
pub(super) struct Shared {
    pub(super) budget: Budget,
    /// `true` if bodies carry an MD5, because the server does not check them against their signed hash (D12).
    pub(super) md5: AtomicBool,
    pub(super) bytes_in: Option<Rate>,
    pub(super) bytes_out: Option<Rate>,
    pub(super) concurrency: Concurrency,
    pub(super) counters: Arc<Counters>,
    pub(super) keeper: Keeper,
    /// Seconds by which the last answer was ahead of the local wall clock.
    pub(super) ahead: AtomicI64,
    /// Seconds by which the clock of the server is ahead.
    pub(super) offset: AtomicI64,
    pub(super) options: S3Options,
    pub(super) place: Mutex<Place>,
    pub(super) reads: Option<Rate>,
    pub(super) runtime: Arc<dyn Runtime>,
    pub(super) transport: Arc<dyn HttpTransport>,
    /// Warnings about repeated requests.
    pub(super) warnings: RetryWarnings,
    pub(super) writes: Option<Rate>,
}

/// A request before it is signed.
pub(super) struct Call<'a> {
    pub(super) body: Bytes,
    pub(super) body_limit: u64,
    /// Headers beside the common ones; names in lower case.
    pub(super) headers: Vec<(Cow<'static, str>, String)>,
    /// `None` for the bucket itself.
    pub(super) key: Option<&'a str>,
    pub(super) method: &'static str,
    pub(super) operation: Operation,
    pub(super) query: &'a [(&'a str, &'a str)],
}

impl<'a> Call<'a> {
    pub(super) fn new(operation: Operation, method: &'static str, key: Option<&'a str>) -> Self {
        let (body, headers) = (Bytes::new(), Vec::new());
        Self { body, body_limit: 8 << 20, headers, key, method, operation, query: &[] }
    }

    /// Additional time for bodies: one second for each 64 KiB.
    pub(super) fn allowance(&self) -> Duration {
        let comes_in = matches!(self.operation, Operation::Get | Operation::List);
        let incoming = if comes_in { self.body_limit.min(MOST_BYTES) } else { 0 };
        Duration::from_secs((self.body.len() as u64).saturating_add(incoming) >> 16)
    }

    pub(super) fn header(&mut self, name: &'static str, value: impl Into<String>) {
        self.headers.push((Cow::Borrowed(name), value.into()));
    }
}

/// A response, and the attempts before it.
#[derive(Debug)]
pub(super) struct Answer {
    /// Read from the response when it was judged.
    pub(super) refusal: Option<Refusal>,
    pub(super) response: Response,
    /// Number of earlier attempts that may have been executed.
    pub(super) unanswered: u32,
}

impl Answer {
    /// Returns `true` if an earlier attempt may have been executed too.
    pub(super) fn is_ambiguous(&self) -> bool {
        self.unanswered > 0
    }

    pub(super) fn status(&self) -> u16 {
        self.response.status
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.response.header(name)
    }

    pub(super) fn is_success(&self) -> bool {
        self.response.is_success()
    }

    /// The error for an unsuccessful answer. If an earlier attempt may have been executed, the error claims nothing else (I6).
    pub(super) fn into_error(self, kind: ErrorKind, action: &'static str, subject: &str) -> Error {
        let kind = if self.is_ambiguous() { ErrorKind::Unavailable } else { kind };
        let refusal = self.refusal.unwrap_or_else(|| refusal(&self.response).0);
        Error::new(kind, action).on(subject).because(refusal)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketClient")
            .field("bucket", &self.options.bucket)
            .field("place", &*self.place())
            .field("transport", &self.transport)
            .finish_non_exhaustive()
    }
}
