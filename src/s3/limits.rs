//! How much at once and how much a second, for all operations of a client together.
//!
//! **Rates** are kept by the generic cell rate algorithm: a clock runs ahead of time by what was used, and whoever would push it
//! further than the burst allows waits until it does not. Everything is in nanoseconds, in integers. A waiter that is dropped
//! gives back what it took (H151).
//!
//! **Concurrency** adapts: it is halved when a server asks for patience, at most once a second, and grows by one after as many
//! answers in a row as it allows requests (H134, H150).

use std::collections::VecDeque;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::channel::oneshot;

use crate::rt::Runtime;

const SECOND: u64 = 1_000_000_000;

/// A rate that is kept.
#[derive(Debug)]
pub(in crate::s3) struct Rate {
    /// How far the clock may run ahead, in nanoseconds.
    burst: u64,
    /// When everything that was used is used up, by the monotonic clock.
    paid_until: Mutex<u64>,
    /// Units a second.
    per_second: u64,
}

impl Rate {
    /// So many units a second, and up to a second's worth at once.
    pub(in crate::s3) fn new(rate: NonZeroU64) -> Self {
        Self { burst: SECOND, paid_until: Mutex::new(0), per_second: rate.get() }
    }

    /// Waits until `units` may be used. Others who come later wait longer, so nobody is passed by.
    pub(in crate::s3) async fn take(&self, units: u64, runtime: &dyn Runtime) {
        let wait = self.charge(units, nanoseconds(runtime.monotonic()));
        if wait > 0 {
            let mut taken = Taken { cost: self.cost(units), kept: false, rate: self };
            runtime.sleep(Duration::from_nanos(wait)).await;
            taken.kept = true;
        }
    }

    /// Uses `units` that were used already: whoever comes next waits for them.
    pub(in crate::s3) fn owe(&self, units: u64, runtime: &dyn Runtime) {
        self.charge(units, nanoseconds(runtime.monotonic()));
    }

    fn cost(&self, units: u64) -> u64 {
        u64::try_from(u128::from(units) * u128::from(SECOND) / u128::from(self.per_second))
            .unwrap_or(u64::MAX / 4)
    }

    /// Moves the clock on; returns how long to wait for it.
    fn charge(&self, units: u64, now: u64) -> u64 {
        let mut paid_until = self.paid_until();
        let before = (*paid_until).max(now);
        *paid_until = before.saturating_add(self.cost(units));
        paid_until.saturating_sub(now.saturating_add(self.burst))
    }

    fn paid_until(&self) -> MutexGuard<'_, u64> {
        self.paid_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Taken<'a> {
    cost: u64,
    kept: bool,
    rate: &'a Rate,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if !self.kept {
            let mut paid_until = self.rate.paid_until();
            *paid_until = paid_until.saturating_sub(self.cost);
        }
    }
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// How many requests are under way at once.
#[derive(Debug)]
pub(in crate::s3) struct Concurrency {
    most: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Answers since the limit last changed.
    answers: u32,
    limit: u32,
    /// When the limit was last lowered.
    lowered: Option<Duration>,
    running: u32,
    waiting: VecDeque<oneshot::Sender<()>>,
}

/// The right to send one request.
#[derive(Debug)]
pub(in crate::s3) struct Slot {
    concurrency: Arc<Concurrency>,
}

impl Concurrency {
    pub(in crate::s3) fn new(most: NonZeroU32) -> Arc<Self> {
        let most = most.get();
        let state = State { answers: 0, limit: most, lowered: None, running: 0, waiting: VecDeque::new() };
        Arc::new(Self { most, state: Mutex::new(state) })
    }

    /// Waits for a turn. Turns are given in the order in which they were asked for.
    pub(in crate::s3) async fn enter(self: &Arc<Self>) -> Slot {
        let waiting = {
            let mut state = self.state();
            if state.running < state.limit {
                state.running += 1;
                None
            } else {
                let (sender, receiver) = oneshot::channel();
                state.waiting.push_back(sender);
                Some(receiver)
            }
        };
        if let Some(receiver) = waiting {
            let mut turn = Turn { concurrency: self, receiver, taken: false };
            // The sender is used before it is dropped.
            let _ = (&mut turn.receiver).await;
            turn.taken = true;
        }
        Slot { concurrency: Arc::clone(self) }
    }

    /// The server asked for patience.
    pub(in crate::s3) fn throttled(&self, now: Duration) {
        let mut state = self.state();
        let recently = state.lowered.is_some_and(|last| now.saturating_sub(last) < Duration::from_secs(1));
        if !recently {
            state.limit = (state.limit / 2).max(1);
            (state.answers, state.lowered) = (0, Some(now));
        }
    }

    /// The server answered.
    pub(in crate::s3) fn answered(&self) {
        let mut state = self.state();
        state.answers += 1;
        if state.answers >= state.limit && state.limit < self.most {
            (state.answers, state.limit) = (0, state.limit + 1);
            state.wake();
        }
    }

    /// How many requests may be under way now.
    pub(in crate::s3) fn limit(&self) -> u32 {
        self.state().limit
    }

    fn leave(&self) {
        let mut state = self.state();
        state.running -= 1;
        state.wake();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn wake(&mut self) {
        while self.running < self.limit {
            let Some(next) = self.waiting.pop_front() else { return };
            // A waiter that is gone takes no turn.
            if next.send(()).is_ok() {
                self.running += 1;
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.concurrency.leave();
    }
}

/// Gives a turn back that came to a future which was dropped before it noticed.
struct Turn<'a> {
    concurrency: &'a Concurrency,
    receiver: oneshot::Receiver<()>,
    taken: bool,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        // From here on no turn is given to this waiter: what was given is seen below.
        self.receiver.close();
        if !self.taken && matches!(self.receiver.try_recv(), Ok(Some(()))) {
            self.concurrency.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn h150_turns_are_taken_in_order_and_given_back() {
        let concurrency = Concurrency::new(NonZeroU32::new(2).unwrap());
        let first = concurrency.enter().now_or_never().unwrap();
        let _second = concurrency.enter().now_or_never().unwrap();
        let mut dropped = Box::pin(concurrency.enter());
        let mut third = Box::pin(concurrency.enter());
        assert!((&mut dropped).now_or_never().is_none());
        assert!((&mut third).now_or_never().is_none());
        drop(first);
        // The turn went to a future that is dropped before it looks.
        drop(dropped);
        assert!(third.now_or_never().is_some());
    }

    #[test]
    fn h161_a_turn_that_meets_the_end_of_its_future_is_not_lost() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let concurrency = Concurrency::new(NonZeroU32::new(1).unwrap());
        // Both sides spin, so that they meet within nanoseconds.
        let (go, done, rounds) = (AtomicU32::new(0), AtomicU32::new(0), 400_000);
        let passed = Mutex::new(None);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=rounds {
                    while go.load(Ordering::SeqCst) < round {
                        std::hint::spin_loop();
                    }
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
                while done.load(Ordering::SeqCst) < round {
                    std::hint::spin_loop();
                }
                let mut state = concurrency.state();
                lost += state.running;
                state.running = 0;
            }
            assert_eq!(lost, 0, "turns lost in {rounds} rounds");
        });
    }

    #[test]
    fn h134_fewer_at_once_when_throttled_and_more_again() {
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

    proptest! {
        #[test]
        fn h151_no_window_sees_more_than_rate_and_burst(
            rate in 1..1000_u64,
            steps in proptest::collection::vec((1..20_u64, 0..SECOND), 1..60),
        ) {
            let limiter = Rate::new(NonZeroU64::new(rate).unwrap());
            let (mut now, mut used) = (0, Vec::new());
            for (units, later) in steps {
                now += later;
                let begins = now + limiter.charge(units, now);
                used.push((begins, units));
            }
            for (start, (from, _)) in used.iter().enumerate() {
                let mut sum = 0;
                for (at, units) in &used[start..] {
                    // What is allowed in this window, and the last request whole.
                    let allowed = rate + (at - from) * rate / SECOND + 20 + 1;
                    sum += units;
                    prop_assert!(sum <= allowed, "{sum} units within {} ns at {rate}/s", at - from);
                }
            }
        }
    }

    #[cfg(feature = "testing")]
    #[test]
    fn h151_who_is_dropped_gives_back_what_it_took() {
        let runtime = crate::rt::SimRuntime::new(1);
        let rate = Rate::new(NonZeroU64::new(10).unwrap());
        assert!(rate.take(10, &runtime).now_or_never().is_some(), "a burst passes");
        assert!(rate.take(5, &runtime).now_or_never().is_none(), "and no more; the future is dropped here");
        assert_eq!(rate.charge(1, 0), SECOND / 10, "one unit is owed, not six");
    }
}
