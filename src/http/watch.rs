//! Deadlines of an exchange: one timer for all of them, re-armed only when it fires.

use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;

use crate::http::{Progress, TransportError, TransportErrorKind};
use crate::rt::Runtime;

/// Watches that something moves.
pub(super) struct Watch<'a> {
    /// When everything must have ended, by the monotonic clock.
    deadline: Duration,
    /// Maximum time without progress.
    limit: Duration,
    /// When something last moved.
    moved: Duration,
    runtime: &'a dyn Runtime,
    /// Sleeps until some moment that is not after the next one that matters.
    timer: Option<BoxFuture<'a, ()>>,
    what: &'static str,
}

impl<'a> Watch<'a> {
    /// Everything must have ended when `overall` has passed.
    pub(super) fn new(runtime: &'a dyn Runtime, overall: Duration) -> Self {
        let now = runtime.monotonic();
        let deadline = now.saturating_add(overall);
        Self { deadline, limit: overall, moved: now, runtime, timer: None, what: "connect" }
    }

    /// From now on nothing may stand still for longer than `limit`.
    pub(super) fn enter(&mut self, what: &'static str, limit: Duration) {
        if limit < self.limit {
            self.timer = None;
        }
        (self.what, self.limit) = (what, limit);
        self.moved();
    }

    /// Something moved.
    pub(super) fn moved(&mut self) {
        self.moved = self.runtime.monotonic();
    }

    /// Returns `true` if this moment is over, if there is one.
    pub(super) fn is_past(&self, moment: Option<Duration>) -> bool {
        moment.is_some_and(|moment| self.runtime.monotonic() >= moment)
    }

    /// An error when the time for everything is up, for what may go on and on without ever waiting.
    pub(super) fn check(&self, progress: Progress) -> Result<(), TransportError> {
        if self.runtime.monotonic() < self.deadline {
            return Ok(());
        }
        let late = TransportError::new(TransportErrorKind::Timeout, progress, self.what);
        Err(late.because("the total timeout of the request expired"))
    }

    /// Ready with an error when the time is up.
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

    /// Runs a step in which nothing can be seen moving, and before which nothing was sent.
    pub(super) async fn run<T>(&mut self, step: impl Future<Output = T>) -> Result<T, TransportError> {
        let mut step = std::pin::pin!(step);
        std::future::poll_fn(|cx| match step.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Ok(value)),
            Poll::Pending => self.poll(cx, Progress::NotSent).map(Err),
        })
        .await
    }
}
