//! The memory budget of the operations of a store, in bytes.
//!
//! Permits are given in the order in which they were asked for. A pipeline asks in the order of its stream and gives each
//! permit back when the bytes have arrived, so the oldest part of every pipeline always has its permit and nothing can wait
//! in a circle.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::channel::oneshot;

#[derive(Debug)]
pub(crate) struct Budget {
    state: Mutex<State>,
    total: usize,
}

#[derive(Debug)]
struct State {
    available: usize,
    waiting: VecDeque<(usize, oneshot::Sender<()>)>,
}

/// Bytes that may be held; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Budget {
    pub(crate) fn new(total: usize) -> Arc<Self> {
        let state = State { available: total, waiting: VecDeque::new() };
        Arc::new(Self { state: Mutex::new(state), total })
    }

    /// Waits until `bytes` are free. A request beyond the total gets the total.
    ///
    /// A dropped future returns its bytes.
    pub(crate) async fn acquire(self: &Arc<Self>, bytes: usize) -> Permit {
        let bytes = bytes.min(self.total);
        let granted = {
            let mut state = self.state();
            if state.waiting.is_empty() && state.available >= bytes {
                state.available -= bytes;
                None
            } else {
                let (sender, receiver) = oneshot::channel();
                state.waiting.push_back((bytes, sender));
                Some(receiver)
            }
        };
        if let Some(granted) = granted {
            let mut waiting = Waiting { budget: self, bytes, granted, settled: false };
            // The sender is kept until it is used.
            let _ = (&mut waiting.granted).await;
            waiting.settled = true;
        }
        Permit { budget: Arc::clone(self), bytes }
    }

    fn give_back(&self, bytes: usize) {
        let mut state = self.state();
        state.available += bytes;
        while let Some((wanted, sender)) = state.waiting.front() {
            let wanted = *wanted;
            // A dropped waiter blocks no later one.
            if wanted > state.available && !sender.is_canceled() {
                break;
            }
            let Some((_, sender)) = state.waiting.pop_front() else { break };
            // A waiter that is gone takes nothing.
            if sender.send(()).is_ok() {
                state.available -= wanted;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.give_back(self.bytes);
    }
}

/// Gives back what was granted to a future that was dropped before it noticed.
struct Waiting<'a> {
    budget: &'a Budget,
    bytes: usize,
    granted: oneshot::Receiver<()>,
    settled: bool,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        // Closed first, so that nothing can be granted after the look.
        self.granted.close();
        let granted = matches!(self.granted.try_recv(), Ok(Some(())));
        self.budget.give_back(if granted { self.bytes } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn permits_are_given_in_order_and_given_back() {
        let budget = Budget::new(10);
        let first = budget.acquire(6).now_or_never().unwrap();
        let mut large = Box::pin(budget.acquire(8));
        let mut small = Box::pin(budget.acquire(1));
        assert!((&mut large).now_or_never().is_none());
        assert!((&mut small).now_or_never().is_none(), "the small one would fit, but it came later");
        drop(first);
        let large = large.now_or_never().unwrap();
        let small = small.now_or_never().unwrap();
        drop((large, small));
        assert!(budget.acquire(usize::MAX).now_or_never().is_some(), "more than all is all");
    }

    #[test]
    fn a_dropped_waiter_keeps_nobody_waiting() {
        let budget = Budget::new(64);
        let (first, _second) =
            (budget.acquire(4).now_or_never().unwrap(), budget.acquire(36).now_or_never().unwrap());
        let mut large = Box::pin(budget.acquire(32));
        let mut small = Box::pin(budget.acquire(25));
        assert!((&mut large).now_or_never().is_none());
        assert!((&mut small).now_or_never().is_none());
        drop(first);
        assert!((&mut small).now_or_never().is_none());
        drop(large);
        assert!(small.now_or_never().is_some());
    }

    #[test]
    fn a_dropped_waiter_leaves_nothing_behind() {
        let budget = Budget::new(10);
        let first = budget.acquire(10).now_or_never().unwrap();
        let mut unnoticed = Box::pin(budget.acquire(10));
        assert!((&mut unnoticed).now_or_never().is_none());
        drop(first);
        drop(unnoticed);
        let mut waiting = {
            let _held = budget.acquire(10).now_or_never().unwrap();
            let mut waiting = Box::pin(budget.acquire(10));
            assert!((&mut waiting).now_or_never().is_none());
            waiting
        };
        assert!((&mut waiting).now_or_never().is_some());
    }
}
