//! A limit of concurrent blocking jobs: for runtimes whose own pools have none or a high one, and for jobs that take much memory.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::channel::oneshot;

use crate::error::{Error, ErrorKind, Result};
use crate::rt::{BlockingJob, Runtime, run_job};

/// Runs a bounded number of jobs at a time, in order of arrival.
#[derive(Debug)]
pub(crate) struct Limit {
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: VecDeque<BlockingJob>,
}

impl Limit {
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, state: Mutex::default() })
    }

    /// Returns the work to run on the pool now, if a slot is free: this job, and then the waiting ones.
    pub(super) fn admit(self: &Arc<Self>, job: BlockingJob) -> Option<impl FnOnce() + Send + use<>> {
        let mut state = self.state();
        if state.running == self.most {
            state.waiting.push_back(job);
            return None;
        }
        state.running += 1;
        drop(state);
        let mut place = Place { given_back: false, limit: Arc::clone(self) };
        Some(move || {
            let mut next = Some(job);
            while let Some(job) = next {
                run_job(job);
                next = place.next();
            }
        })
    }

    /// As `run_blocking` of a runtime, for a job that waits while the others run. Once polled, the future need not be polled for any of them to go on: a
    /// caller that stands still holds no slot.
    pub(crate) async fn run<T, F>(
        self: &Arc<Self>,
        runtime: &dyn Runtime,
        action: &'static str,
        job: F,
    ) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        let job = move || {
            // A dropped receiver means that the caller no longer wants the answer.
            let _ = sender.send(job());
        };
        if let Some(jobs) = self.admit(Box::new(job)) {
            runtime.spawn_blocking(Box::new(jobs));
        }
        receiver.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, action)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot of the pool, released when dropped, also when the pool has shut down.
struct Place {
    given_back: bool,
    limit: Arc<Limit>,
}

impl Place {
    /// Takes the next job, or releases the slot in the same step, so that a later job finds it free.
    fn next(&mut self) -> Option<BlockingJob> {
        let mut state = self.limit.state();
        let next = state.waiting.pop_front();
        if next.is_none() {
            state.running -= 1;
            self.given_back = true;
        }
        next
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.given_back {
            let mut state = self.limit.state();
            state.running -= 1;
            // The pool has shut down and no slot will take these jobs: dropping them notifies their callers.
            let lost = if state.running == 0 { std::mem::take(&mut state.waiting) } else { VecDeque::new() };
            drop(state);
            drop(lost);
        }
    }
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} running, {} waiting", self.running, self.waiting.len())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use futures::FutureExt as _;
    use futures::executor::block_on;

    use super::*;
    use crate::rt::ThreadRuntime;

    #[test]
    fn callers_that_are_not_polled_hold_no_slot() {
        let (limit, runtime) = (Limit::new(1), ThreadRuntime::new());
        let run = |answer: u32| limit.run(&runtime, "test", move || Ok(answer));
        let mut unpolled: Vec<_> = (0..5).map(|answer| Box::pin(run(answer))).collect();
        for future in &mut unpolled {
            let _ = future.now_or_never();
        }
        assert_eq!(block_on(run(7)).unwrap(), 7, "behind those that nobody polls");
        drop(unpolled.split_off(2));
        assert_eq!(block_on(run(8)).unwrap(), 8);
    }

    #[test]
    fn closing_a_pool_drops_its_waiting_jobs() {
        let limit = Limit::new(2);
        let (sender, receiver) = mpsc::channel::<()>();
        let job = || -> BlockingJob {
            let sender = sender.clone();
            Box::new(move || drop(sender))
        };
        let first = limit.admit(job());
        let second = limit.admit(job());
        assert!(limit.admit(job()).is_none() && limit.admit(job()).is_none());
        drop(sender);
        drop(first);
        assert_eq!(limit.state().waiting.len(), 2, "one is still there that may run");
        drop(second);
        assert!(receiver.recv().is_err(), "every job has ended");
        assert!(limit.admit(Box::new(|| ())).is_some());
    }
}
