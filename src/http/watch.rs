//! Deadlines of an exchange: one timer for all of them, re-armed only when it fires.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;

use crate::http::{Progress, TransportError, TransportErrorKind};
use crate::rt::Runtime;

/// Watches the progress of an exchange.
pub(super) struct Watch<'a> {
    /// End of the exchange, by the monotonic clock.
    deadline: Duration,
    /// Maximum time without progress.
    limit: Duration,
    /// Time of the last progress.
    moved: Duration,
    runtime: &'a dyn Runtime,
    /// Timer that fires no later than the next deadline.
    timer: Option<BoxFuture<'a, ()>>,
    what: &'static str,
}

impl<'a> Watch<'a> {
    /// Limits the whole exchange to `overall`.
    pub(super) fn new(runtime: &'a dyn Runtime, overall: Duration) -> Self {
        let now = runtime.monotonic();
        let deadline = now.saturating_add(overall);
        Self { deadline, limit: overall, moved: now, runtime, timer: None, what: "connect" }
    }

    /// From now on, limits each time without progress to `limit`.
    pub(super) fn enter(&mut self, what: &'static str, limit: Duration) {
        if limit < self.limit {
            self.timer = None;
        }
        (self.what, self.limit) = (what, limit);
        self.moved();
    }

    /// Records progress.
    pub(super) fn moved(&mut self) {
        self.moved = self.runtime.monotonic();
    }

    /// Returns `true` if this deadline exists and has passed.
    pub(super) fn is_past(&self, moment: Option<Duration>) -> bool {
        moment.is_some_and(|moment| self.runtime.monotonic() >= moment)
    }

    /// Fails if the total timeout has expired, for steps that may continue without ever waiting.
    pub(super) fn check(&self, progress: Progress) -> Result<(), TransportError> {
        if self.runtime.monotonic() < self.deadline {
            return Ok(());
        }
        let late = TransportError::new(TransportErrorKind::Timeout, progress, self.what);
        Err(late.because("the total timeout of the request expired"))
    }

    /// Ready with an error when a timeout has expired.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, progress: Progress) -> Poll<TransportError> {
        loop {
            if let Some(timer) = &mut self.timer {
                if timer.as_mut().poll(cx).is_pending() {
                    return Poll::Pending;
                }
                self.timer = None;
            }
            let (now, end) =
                (self.runtime.monotonic(), self.moved.saturating_add(self.limit).min(self.deadline));
            let Some(left) = end.checked_sub(now).filter(|left| !left.is_zero()) else {
                let late = TransportError::new(TransportErrorKind::Timeout, progress, self.what);
                let since = now.saturating_sub(self.moved);
                return Poll::Ready(late.because(format!("no progress for {since:?}")));
            };
            self.timer = Some(self.runtime.sleep(left));
        }
    }

    /// Runs a step without visible progress, before any byte was sent.
    pub(super) async fn run<T>(&mut self, step: impl Future<Output = T>) -> Result<T, TransportError> {
        let mut step = std::pin::pin!(step);
        std::future::poll_fn(|cx| match step.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending => self.poll(cx, Progress::NotSent).map(Err),
        })
        .await
    }
}
