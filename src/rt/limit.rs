//! A limit of concurrent blocking jobs, for runtimes whose own pools have none or a high one.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::rt::{BlockingJob, run_job};

/// Runs a bounded number of jobs at a time, in order of arrival.
#[derive(Debug)]
pub(super) struct Limit {
    most: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: usize,
    waiting: VecDeque<BlockingJob>,
}

impl Limit {
    pub(super) fn new(most: usize) -> Arc<Self> {
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

    use super::*;

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
