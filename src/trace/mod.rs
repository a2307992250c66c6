//! Logs and metrics. Only this module knows the crates `tracing` and `metrics`; the others report what happens to it, each at one place.
//!
//! Without feature `tracing` its file `log` is replaced by one with empty functions, and without `metrics` its file `measure`. Without both,
//! nothing is computed for them.
//!
//! | event | level | place |
//! |---|---|---|
//! | an operation starts, ends, fails, or is dropped | INFO; WARN if it fails, ERROR if data is damaged | [`Watch`] |
//! | an archive, or a snapshot of a sync or a prune, is done | DEBUG | [`step`] |
//! | data is damaged or missing | ERROR | [`damage`], [`Facts::damage`] |
//! | a request is repeated | WARN, every ten seconds at most for each client; the others DEBUG | [`retry`] |
//! | a request has its answer | DEBUG | [`call`] |
//! | an attempt of a request ends | TRACE | [`attempt`] |
//! | a lease is taken or released | INFO | [`lease`] |
//! | a lease is renewed | TRACE | [`lease`] |
//! | a lease is overdue, lost, or not renewed | WARN | [`lease`] |
//!
//! # Secrets
//! Fields are names, numbers and words of this crate. Headers, queries and bodies of requests reach no function here. The texts of errors may quote
//! a server, so those that look like parts of a signed request are withheld.

#[cfg_attr(not(feature = "tracing"), path = "no_log.rs")]
mod log;
#[cfg_attr(not(feature = "metrics"), path = "no_measure.rs")]
mod measure;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;
use crate::wording::Causes;

pub(crate) use measure::{backed_up, cache_hit, cache_miss, collected, restored, sent, synced};

/// `true` if anything listens to the events.
pub(crate) const IS_ON: bool = cfg!(any(feature = "tracing", feature = "metrics"));

/// Interval between two warnings about repeated requests of one client.
const WARNING_INTERVAL: Duration = Duration::from_secs(10);

/// Maximum number of damaged objects of a report that are logged one by one.
const MAX_DAMAGE_LINES: usize = 20;

/// An operation that a program calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Attach,
    Backup,
    Create,
    Destroy,
    Gc,
    GcPlan,
    Open,
    Prune,
    PrunePlan,
    Refresh,
    Relocate,
    Restore,
    Sync,
    SyncPlan,
    Verify,
    VerifyPlan,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Backup => "backup",
            Self::Create => "create",
            Self::Destroy => "destroy",
            Self::Gc => "gc",
            Self::GcPlan => "gc_plan",
            Self::Open => "open",
            Self::Prune => "prune",
            Self::PrunePlan => "prune_plan",
            Self::Refresh => "refresh",
            Self::Relocate => "relocate",
            Self::Restore => "restore",
            Self::Sync => "sync",
            Self::SyncPlan => "sync_plan",
            Self::Verify => "verify",
            Self::VerifyPlan => "verify_plan",
        }
    }
}

/// The object of an operation.
#[derive(Clone, Copy)]
pub(crate) enum Subject<'a> {
    Archive(&'a dyn fmt::Display, &'a dyn fmt::Display),
    Scope(&'a dyn fmt::Display),
    Store,
}

/// Facts about the result of an operation.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Bytes that the operation moved.
    pub(crate) bytes: Option<u64>,
    /// The first damaged objects.
    pub(crate) damage: Vec<String>,
    /// The result in one line.
    pub(crate) summary: String,
}

impl Facts {
    /// The first line of a report.
    pub(crate) fn of(report: &dyn fmt::Display) -> Self {
        let text = report.to_string();
        let summary = text.lines().next().unwrap_or_default().to_owned();
        Self { bytes: None, damage: Vec::new(), summary: withheld_if_secret(summary) }
    }

    pub(crate) fn bytes(mut self, bytes: u64) -> Self {
        self.bytes = Some(bytes);
        self
    }

    /// Adds damaged objects, of which the first are logged one by one.
    pub(crate) fn damage<T: fmt::Display>(mut self, damaged: impl Iterator<Item = T>) -> Self {
        self.damage = damaged.take(MAX_DAMAGE_LINES).map(|one| withheld_if_secret(one.to_string())).collect();
        self
    }
}

/// An operation in progress. One that is dropped before its end is logged as dropped.
#[derive(Debug)]
pub(crate) struct Watch(Option<Box<Watched>>);

#[derive(Debug)]
struct Watched {
    operation: Operation,
    runtime: Arc<dyn Runtime>,
    span: log::Span,
    started: Duration,
}

impl Watch {
    /// Begins an operation on the store with this identity.
    pub(crate) fn begin(
        operation: Operation,
        runtime: &Arc<dyn Runtime>,
        store: Option<&str>,
        subject: Subject<'_>,
    ) -> Self {
        if !IS_ON {
            return Self(None);
        }
        let span = log::Span::begin(operation, store, subject);
        let runtime = Arc::clone(runtime);
        let started = runtime.monotonic();
        Self(Some(Box::new(Watched { operation, runtime, span, started })))
    }

    /// A watch of nothing.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Names the snapshot of the operation, once it is known.
    pub(crate) fn name_snapshot(&self, name: &dyn fmt::Display) {
        if let Some(watched) = &self.0 {
            watched.span.name_snapshot(name);
        }
    }

    /// Begins the part of the operation that handles an archive.
    pub(crate) fn archive(&self, name: &str) -> Part {
        Part(log::archive(self.0.as_ref().map(|watched| &watched.span), name))
    }

    /// Runs a part of the operation.
    pub(crate) fn run<F: Future>(&self, part: F) -> impl Future<Output = F::Output> + use<F> {
        log::run(self.0.as_ref().map(|watched| watched.span.clone()), part)
    }

    /// Ends the operation.
    pub(crate) fn end(mut self, result: std::result::Result<Facts, &Error>) {
        let Some(watched) = self.0.take() else { return };
        let elapsed = watched.elapsed();
        let outcome = match &result {
            Ok(_) => "ok",
            Err(error) => error.kind().as_str(),
        };
        measure::operation(watched.operation.name(), outcome, elapsed);
        match result {
            Ok(facts) => watched.span.end(watched.operation, elapsed, &facts),
            Err(error) => {
                let is_damage = error.kind() == ErrorKind::Corrupt;
                watched.span.fail(watched.operation, elapsed, outcome, is_damage, &safe(error));
            }
        }
    }
}

/// A part of an operation, which handles one archive by one or several calls.
#[derive(Clone, Debug)]
pub(crate) struct Part(log::Span);

impl Part {
    /// Runs work of this part.
    pub(crate) fn run<F: Future>(&self, work: F) -> impl Future<Output = F::Output> + use<F> {
        log::run(Some(self.0.clone()), work)
    }
}

impl Watched {
    fn elapsed(&self) -> Duration {
        self.runtime.monotonic().saturating_sub(self.started)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(watched) = self.0.take() else { return };
        let elapsed = watched.elapsed();
        measure::operation(watched.operation.name(), "dropped", elapsed);
        watched.span.dropped(watched.operation, elapsed);
    }
}

/// Runs a whole operation.
pub(crate) fn watch<T, F: Future<Output = Result<T>>>(
    watch: Watch,
    operation: F,
    facts: impl FnOnce(&T) -> Facts,
) -> impl Future<Output = Result<T>> {
    // Boxed, because the futures of callers contain it.
    let operation = Box::pin(operation);
    async move {
        let result = watch.run(operation).await;
        if IS_ON {
            watch.end(result.as_ref().map(facts));
        }
        result
    }
}

/// A step of an operation is done.
pub(crate) fn step(what: &dyn fmt::Display) {
    if cfg!(feature = "tracing") {
        log::step(&withheld_if_secret(what.to_string()));
    }
}

/// Data is damaged or missing.
pub(crate) fn damage(what: &dyn fmt::Display, error: &Error) {
    if IS_ON {
        log::damage(what, &safe(error));
    }
}

/// An event of a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lease {
    Lost,
    NotRenewed,
    Overdue,
    Released,
    Renewed,
    Taken,
}

/// Reports an event of the lease of the store at this place.
pub(crate) fn lease(place: &str, epoch: u64, event: Lease) {
    log::lease(place, epoch, event);
    measure::lease(place, event);
}

/// An attempt of a request.
#[cfg_attr(not(any(feature = "tracing", feature = "metrics")), expect(dead_code, reason = "read by both"))]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) bytes_in: u64,
    pub(crate) bytes_out: u64,
    pub(crate) elapsed: Duration,
    pub(crate) operation: &'static str,
    pub(crate) outcome: &'static str,
    /// 0 without an answer.
    pub(crate) status: u16,
}

/// Reports the end of an attempt.
pub(crate) fn attempt(attempt: &Attempt) {
    log::attempt(attempt);
    measure::attempt(attempt);
}

/// Runs a request with all its attempts, for an object of a bucket. `attempts` counts them.
pub(crate) fn call<F: Future>(
    operation: &'static str,
    bucket: &str,
    key: Option<&str>,
    request: F,
) -> impl Future<Output = F::Output> + use<F> {
    log::call(operation, bucket, key, request)
}

/// The current request begins this attempt.
pub(crate) fn begin_attempt(number: u32) {
    log::begin_attempt(number);
}

/// The warnings of one client about repeated requests.
#[derive(Debug, Default)]
pub(crate) struct RetryWarnings {
    /// Monotonic milliseconds, and 1, of the last warning.
    last: AtomicU64,
    withheld: AtomicU64,
}

/// Reports that a request is about to be repeated.
pub(crate) fn retry(
    warnings: &RetryWarnings,
    now: Duration,
    operation: &'static str,
    attempts: u32,
    pause: Duration,
    cause: &dyn fmt::Display,
) {
    if !IS_ON {
        return;
    }
    measure::retry(operation);
    let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
    let last = warnings.last.load(Ordering::Relaxed);
    let interval = u64::try_from(WARNING_INTERVAL.as_millis()).unwrap_or(u64::MAX);
    let is_due = last == 0 || now.saturating_sub(last) >= interval;
    let warns =
        is_due && warnings.last.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    if warns {
        let withheld = warnings.withheld.swap(0, Ordering::Relaxed);
        log::warn_of_retry(operation, attempts, pause, withheld, cause);
    } else {
        warnings.withheld.fetch_add(1, Ordering::Relaxed);
        log::retry(operation, attempts, pause, cause);
    }
}

/// The text of an error with its causes, for the log.
fn safe(error: &Error) -> String {
    withheld_if_secret(Causes(error).to_string())
}

/// The text, unless it may quote a signed request: a server can put anything into its answer.
fn withheld_if_secret(text: String) -> String {
    let lower = text.to_ascii_lowercase();
    let signs = ["authorization", "signature=", "x-amz-security-token", "credential="];
    if signs.iter().any(|sign| lower.contains(sign)) {
        return "(withheld: the text may quote a signed request)".to_owned();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_quotes_a_signed_request_is_withheld() {
        let error = |cause: &'static str| Error::new(ErrorKind::Denied, "send a request").because(cause);
        let plain = error("the server answered 403 AccessDenied");
        assert!(safe(&plain).ends_with("403 AccessDenied"));
        for cause in
            ["Authorization: AWS4", "x-amz-security-token:abc", "?X-Amz-Credential=abc", "Signature=abc"]
        {
            assert!(!safe(&error(cause)).contains("abc") && !safe(&error(cause)).contains("AWS4"), "{cause}");
        }
    }
}
