//! Spans and events of the crate `tracing`.
//!
//! Spans are entered by wrapped futures, while they are polled, and never over an await.

use std::fmt;
use std::time::Duration;

use tracing::field::{Empty, display};
use tracing::{Instrument as _, debug, debug_span, error, info, info_span, trace, warn};

use crate::trace::{Attempt, Facts, Lease, Operation, Subject};

/// The span of an operation.
#[derive(Clone, Debug)]
pub(super) struct Span(tracing::Span);

macro_rules! span_of {
    ($operation:expr, $store:expr, $($variant:ident $name:literal),+ $(,)?) => {
        match $operation {
            $(Operation::$variant => info_span!(
                target: "larder", $name, store = $store, snapshot = Empty, archive = Empty, scope = Empty,
                bytes = Empty, outcome = Empty
            ),)+
        }
    };
}

impl Span {
    pub(super) fn begin(operation: Operation, store: Option<&str>, subject: Subject<'_>) -> Self {
        let span = span_of!(
            operation, store, Attach "attach", Backup "backup", Create "create", Destroy "destroy", Gc "gc",
            GcPlan "gc_plan", Open "open", Prune "prune", PrunePlan "prune_plan", Refresh "refresh",
            Relocate "relocate", Restore "restore", Sync "sync", SyncPlan "sync_plan", Verify "verify",
            VerifyPlan "verify_plan",
        );
        match subject {
            Subject::Archive(snapshot, archive) => {
                span.record("snapshot", display(snapshot));
                span.record("archive", display(archive));
            }
            Subject::Scope(scope) => _ = span.record("scope", display(scope)),
            Subject::Store => {}
        }
        info!(target: "larder", parent: &span, operation = operation.name(), "started");
        Self(span)
    }

    pub(super) fn name_snapshot(&self, name: &dyn fmt::Display) {
        self.0.record("snapshot", display(name));
    }

    pub(super) fn end(&self, operation: Operation, elapsed: Duration, facts: &Facts) {
        let Facts { bytes, damage, summary } = facts;
        self.0.record("outcome", "ok");
        self.0.record("bytes", *bytes);
        for damaged in damage {
            error!(target: "larder", parent: &self.0, operation = operation.name(), "damaged: {damaged}");
        }
        info!(
            target: "larder", parent: &self.0, operation = operation.name(), outcome = "ok", bytes,
            seconds = elapsed.as_secs_f64(), "ended: {summary}"
        );
    }

    pub(super) fn fail(
        &self,
        operation: Operation,
        elapsed: Duration,
        outcome: &str,
        is_damage: bool,
        error: &str,
    ) {
        self.0.record("outcome", outcome);
        let seconds = elapsed.as_secs_f64();
        if is_damage {
            error!(target: "larder", parent: &self.0, operation = operation.name(), outcome, seconds, "failed: {error}");
        } else {
            warn!(target: "larder", parent: &self.0, operation = operation.name(), outcome, seconds, "failed: {error}");
        }
    }

    pub(super) fn dropped(&self, operation: Operation, elapsed: Duration) {
        self.0.record("outcome", "dropped");
        let seconds = elapsed.as_secs_f64();
        info!(target: "larder", parent: &self.0, operation = operation.name(), outcome = "dropped", seconds, "dropped");
    }
}

pub(super) fn run<F: Future>(span: Option<Span>, part: F) -> impl Future<Output = F::Output> + use<F> {
    part.instrument(span.map_or_else(tracing::Span::none, |span| span.0))
}

pub(super) fn archive(span: Option<&Span>, name: &str) -> Span {
    let parent = span.and_then(|span| span.0.id());
    Span(debug_span!(target: "larder", parent: parent, "archive", archive = name))
}

pub(super) fn step(what: &str) {
    debug!(target: "larder", "{what}");
}

pub(super) fn damage(what: &dyn fmt::Display, error: &str) {
    error!(target: "larder", "damaged: {what}: {error}");
}

pub(super) fn lease(place: &str, epoch: u64, event: Lease) {
    match event {
        Lease::Lost => {
            warn!(target: "larder::lease", place, epoch, state = "lost", "the lease was lost to another process");
        }
        Lease::NotRenewed => {
            warn!(target: "larder::lease", place, epoch, state = "not_renewed", "the lease could not be renewed");
        }
        Lease::Overdue => {
            warn!(target: "larder::lease", place, epoch, state = "overdue", "the lease is overdue, and is renewed first");
        }
        Lease::Released => {
            info!(target: "larder::lease", place, epoch, state = "released", "the lease was released");
        }
        Lease::Renewed => {
            trace!(target: "larder::lease", place, epoch, state = "renewed", "the lease was renewed");
        }
        Lease::Taken => info!(target: "larder::lease", place, epoch, state = "taken", "the lease was taken"),
    }
}

pub(super) fn attempt(attempt: &Attempt) {
    let Attempt { bytes_in, bytes_out, elapsed, operation, outcome, status } = *attempt;
    let span = tracing::Span::current();
    span.record("outcome", outcome);
    span.record("status", status);
    let seconds = elapsed.as_secs_f64();
    trace!(target: "larder::s3", operation, outcome, status, bytes_in, bytes_out, seconds, "attempt ended");
}

pub(super) fn call<F: Future>(
    operation: &'static str,
    bucket: &str,
    key: Option<&str>,
    request: F,
) -> impl Future<Output = F::Output> + use<F> {
    let span = debug_span!(
        target: "larder::s3", "s3_request", operation, bucket, key, attempts = Empty, outcome = Empty, status = Empty
    );
    let ended = span.clone();
    let request = async move {
        let output = request.await;
        debug!(target: "larder::s3", parent: &ended, "request ended");
        output
    };
    request.instrument(span)
}

pub(super) fn begin_attempt(number: u32) {
    tracing::Span::current().record("attempts", number);
}

pub(super) fn warn_of_retry(
    operation: &'static str,
    attempts: u32,
    pause: Duration,
    withheld: u64,
    cause: &dyn fmt::Display,
) {
    let pause_seconds = pause.as_secs_f64();
    warn!(target: "larder::s3", operation, attempts, pause_seconds, withheld, "a request is repeated: {cause}");
}

pub(super) fn retry(operation: &'static str, attempts: u32, pause: Duration, cause: &dyn fmt::Display) {
    let pause_seconds = pause.as_secs_f64();
    debug!(target: "larder::s3", operation, attempts, pause_seconds, "a request is repeated: {cause}");
}
