//! A fair semaphore of counted permits: bytes of a memory budget, slots of a client.
//!
//! Permits are granted in the order of the requests for them. A pipeline asks in the order of its stream and releases each
//! permit when the bytes have arrived, so the oldest part of every pipeline always has its permit and no cycle of waiters can form.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::channel::oneshot;
use futures::future::Either;

#[derive(Debug)]
pub(crate) struct Semaphore {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    held: usize,
    total: usize,
    waiting: VecDeque<(usize, oneshot::Sender<()>)>,
}

/// A number of units, released on drop.
#[derive(Debug)]
pub(crate) struct Permit {
    semaphore: Arc<Semaphore>,
    units: usize,
}

impl Semaphore {
    pub(crate) fn new(total: usize) -> Arc<Self> {
        Arc::new(Self { state: Mutex::new(State { held: 0, total, waiting: VecDeque::new() }) })
    }

    /// Waits until this number of units is free. A request beyond the total gets the total.
    ///
    /// A dropped future returns its units.
    pub(crate) async fn acquire(self: &Arc<Self>, units: usize) -> Permit {
        self.enqueue(units).await
    }

    /// As [`acquire`](Self::acquire), but its turn is that of this call and not of the first poll.
    pub(crate) fn enqueue(self: &Arc<Self>, units: usize) -> impl Future<Output = Permit> + Send + use<> {
        let semaphore = Arc::clone(self);
        let entered = {
            let mut state = self.state();
            let units = units.min(state.total);
            if state.waiting.is_empty() && state.fits(units) {
                state.held += units;
                Either::Left(Permit { semaphore, units })
            } else {
                let (sender, granted) = oneshot::channel();
                state.waiting.push_back((units, sender));
                Either::Right(Waiting { semaphore, units, granted, is_taken: false })
            }
        };
        async move {
            match entered {
                Either::Left(permit) => permit,
                Either::Right(mut waiting) => {
                    // The sender is kept until it is used.
                    let _ = (&mut waiting.granted).await;
                    waiting.is_taken = true;
                    Permit { semaphore: Arc::clone(&waiting.semaphore), units: waiting.units }
                }
            }
        }
    }

    /// Changes the total. Permits beyond a smaller one stay valid; new ones are granted once enough of them were released.
    #[cfg(any(feature = "s3", test))]
    pub(crate) fn resize(&self, total: usize) {
        let mut state = self.state();
        state.total = total;
        state.grant();
    }

    /// Number of units that are held or granted.
    #[cfg(test)]
    pub(crate) fn held(&self) -> usize {
        self.state().held
    }

    fn release(&self, units: usize) {
        let mut state = self.state();
        state.held -= units;
        state.grant();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// While nothing is held, any request fits: the total may have shrunk below it.
    fn fits(&self, units: usize) -> bool {
        self.held == 0 || self.held.saturating_add(units) <= self.total
    }

    fn grant(&mut self) {
        while let Some((wanted, sender)) = self.waiting.front() {
            let wanted = *wanted;
            // A dropped waiter blocks no later one.
            if !self.fits(wanted) && !sender.is_canceled() {
                return;
            }
            let Some((_, sender)) = self.waiting.pop_front() else { return };
            // A dropped waiter takes nothing.
            if sender.send(()).is_ok() {
                self.held += wanted;
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.semaphore.release(self.units);
    }
}

/// Releases the units granted to a future that was dropped before it noticed.
struct Waiting {
    semaphore: Arc<Semaphore>,
    units: usize,
    granted: oneshot::Receiver<()>,
    is_taken: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.is_taken {
            return;
        }
        // Closed first: nothing can be granted after the check.
        self.granted.close();
        let granted = matches!(self.granted.try_recv(), Ok(Some(())));
        self.semaphore.release(if granted { self.units } else { 0 });
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[test]
    fn permits_are_granted_in_order_and_returned() {
        let semaphore = Semaphore::new(10);
        let first = semaphore.acquire(6).now_or_never().unwrap();
        let mut large = Box::pin(semaphore.acquire(8));
        let mut small = Box::pin(semaphore.acquire(1));
        assert!((&mut large).now_or_never().is_none());
        assert!((&mut small).now_or_never().is_none(), "the small one would fit, but it came later");
        drop(first);
        let large = large.now_or_never().unwrap();
        let small = small.now_or_never().unwrap();
        drop((large, small));
        assert!(semaphore.acquire(usize::MAX).now_or_never().is_some(), "more than all is all");
    }

    #[test]
    fn the_turn_of_an_enqueued_waiter_is_that_of_the_call() {
        let semaphore = Semaphore::new(1);
        let held = semaphore.enqueue(1).now_or_never().unwrap();
        let (mut first, mut second) = (Box::pin(semaphore.enqueue(1)), Box::pin(semaphore.enqueue(1)));
        assert!((&mut second).now_or_never().is_none() && (&mut first).now_or_never().is_none());
        drop(held);
        assert!((&mut second).now_or_never().is_none(), "it came later, although it was polled first");
        drop(first);
        drop(second.now_or_never().unwrap());
        drop(semaphore.enqueue(1));
        assert_eq!(semaphore.held(), 0, "never polled");
    }

    #[test]
    fn a_dropped_waiter_does_not_block_the_next_one() {
        let semaphore = Semaphore::new(64);
        let (first, _second) =
            (semaphore.acquire(4).now_or_never().unwrap(), semaphore.acquire(36).now_or_never().unwrap());
        let mut large = Box::pin(semaphore.acquire(32));
        let mut small = Box::pin(semaphore.acquire(25));
        assert!((&mut large).now_or_never().is_none());
        assert!((&mut small).now_or_never().is_none());
        drop(first);
        assert!((&mut small).now_or_never().is_none());
        drop(large);
        assert!(small.now_or_never().is_some());
    }

    #[test]
    fn a_dropped_waiter_leaves_no_queue_entry() {
        let semaphore = Semaphore::new(10);
        let first = semaphore.acquire(10).now_or_never().unwrap();
        let mut unnoticed = Box::pin(semaphore.acquire(10));
        assert!((&mut unnoticed).now_or_never().is_none());
        drop(first);
        drop(unnoticed);
        let mut waiting = {
            let _held = semaphore.acquire(10).now_or_never().unwrap();
            let mut waiting = Box::pin(semaphore.acquire(10));
            assert!((&mut waiting).now_or_never().is_none());
            waiting
        };
        assert!((&mut waiting).now_or_never().is_some());
    }

    #[test]
    fn a_smaller_total_applies_to_new_permits() {
        let semaphore = Semaphore::new(4);
        let held: Vec<_> = (0..4).map(|_| semaphore.acquire(1).now_or_never().unwrap()).collect();
        let mut next = Box::pin(semaphore.acquire(3));
        assert!((&mut next).now_or_never().is_none());
        semaphore.resize(2);
        let mut held = held.into_iter();
        held.next();
        held.next();
        assert!((&mut next).now_or_never().is_none(), "two of two are held");
        drop(held);
        let next = next.now_or_never().expect("more than the new total, but nothing else is held");
        let mut last = Box::pin(semaphore.acquire(1));
        assert!((&mut last).now_or_never().is_none());
        semaphore.resize(4);
        assert!(last.now_or_never().is_some(), "a larger total grants at once");
        drop(next);
        assert_eq!(semaphore.held(), 0);
    }
}
