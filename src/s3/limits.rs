//! The concurrency limit of a client, shared by all of its operations.
//!
//! It adapts: a throttling server halves it, at most once a second, and it grows by one after as many
//! consecutive answers as its current value (H134, H150). Slots are granted in order of arrival.

use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::rt::semaphore::{Permit, Semaphore};

/// The limit of concurrent requests.
#[derive(Debug)]
pub(super) struct Concurrency {
    max: u32,
    slots: Arc<Semaphore>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Answers since the limit last changed.
    answers: u32,
    limit: u32,
    /// Time of the last reduction.
    lowered: Option<Duration>,
}

/// The right to send one request.
pub(super) type Slot = Permit;

impl Concurrency {
    pub(super) fn new(max: NonZeroU32) -> Self {
        let max = max.get();
        let state = State { answers: 0, limit: max, lowered: None };
        Self { max, slots: Semaphore::new(max as usize), state: Mutex::new(state) }
    }

    /// Waits for a slot.
    pub(super) async fn enter(&self) -> Slot {
        self.slots.acquire(1).await
    }

    /// The server throttled a request.
    pub(super) fn throttled(&self, now: Duration) {
        let mut state = self.state();
        let recently = state.lowered.is_some_and(|last| now.saturating_sub(last) < Duration::from_secs(1));
        if !recently {
            state.limit = (state.limit / 2).max(1);
            (state.answers, state.lowered) = (0, Some(now));
            self.slots.resize(state.limit as usize);
        }
    }

    /// The server answered a request.
    pub(super) fn answered(&self) {
        let mut state = self.state();
        state.answers += 1;
        if state.answers >= state.limit && state.limit < self.max {
            (state.answers, state.limit) = (0, state.limit + 1);
            self.slots.resize(state.limit as usize);
        }
    }

    /// Current limit.
    pub(super) fn limit(&self) -> u32 {
        self.state().limit
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// Proves H150.
    #[test]
    fn request_slots_are_granted_in_order_and_returned() {
        let concurrency = Concurrency::new(NonZeroU32::new(2).unwrap());
        let first = concurrency.enter().now_or_never().unwrap();
        let _second = concurrency.enter().now_or_never().unwrap();
        let mut dropped = Box::pin(concurrency.enter());
        let mut third = Box::pin(concurrency.enter());
        assert!((&mut dropped).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        // The slot was granted to a future that is dropped before it looks.
        drop(dropped);
        assert!(third.now_or_never().is_some());
    }

    /// Proves H161.
    #[test]
    fn a_slot_granted_to_a_dropped_future_is_not_lost() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let concurrency = Concurrency::new(NonZeroU32::new(1).unwrap());
        // Both sides spin, so that they meet within nanoseconds. One whose partner has no processor leaves its own to others.
        let wait = |counter: &AtomicU32, round| {
            let mut spins = 0;
            while counter.load(Ordering::SeqCst) < round {
                spins += 1;
                if spins % 1000 == 0 { std::thread::yield_now() } else { std::hint::spin_loop() }
            }
        };
        let (go, done, rounds) = (AtomicU32::new(0), AtomicU32::new(0), 400_000);
        let passed = Mutex::new(None);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=rounds {
                    wait(&go, round);
                    let slot = passed.lock().unwrap().take();
                    (0..round % 50).for_each(|_| std::hint::spin_loop());
                    drop(slot);
                    done.store(round, Ordering::SeqCst);
                }
            });
            let mut lost = 0;
            for round in 1..=rounds {
                let first = concurrency.enter().now_or_never().unwrap();
                let mut second = Box::pin(concurrency.enter());
                assert!((&mut second).now_or_never().is_none());
                *passed.lock().unwrap() = Some(first);
                go.store(round, Ordering::SeqCst);
                (0..round / 50 % 50).for_each(|_| std::hint::spin_loop());
                drop(second);
                wait(&done, round);
                lost += concurrency.slots.held();
                if lost > 0 {
                    break;
                }
            }
            assert_eq!(lost, 0, "turns lost in {rounds} rounds");
        });
    }

    /// Proves H134, H188.
    #[test]
    fn concurrency_shrinks_when_throttled_and_grows_again() {
        let concurrency = Concurrency::new(NonZeroU32::new(8).unwrap());
        concurrency.throttled(Duration::ZERO);
        concurrency.throttled(Duration::from_millis(999));
        assert_eq!(concurrency.limit(), 4);
        concurrency.throttled(Duration::from_secs(1));
        assert_eq!(concurrency.limit(), 2);
        for (answers, limit) in [(2, 3), (3, 4), (4, 5), (100, 8)] {
            (0..answers).for_each(|_| concurrency.answered());
            assert_eq!(concurrency.limit(), limit);
        }
        (0..10).for_each(|second| concurrency.throttled(Duration::from_secs(10 + second)));
        assert_eq!(concurrency.limit(), 1);
    }
}
