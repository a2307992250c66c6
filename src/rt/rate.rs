//! Rate limits in units a second.
//!
//! The generic cell rate algorithm: each use moves a virtual clock ahead of time, and a caller that would move it
//! further than the burst allows waits. All values are integers in nanoseconds. A dropped waiter returns
//! its units (H151).

use std::num::NonZeroU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::rt::Runtime;

const SECOND: u64 = 1_000_000_000;

/// A rate limit.
#[derive(Debug)]
pub(crate) struct Rate {
    /// Maximum lead of the virtual clock, in nanoseconds.
    burst: u64,
    /// The virtual clock: the time by which all use is paid off, by the monotonic clock.
    paid_until: Mutex<u64>,
    /// Units a second.
    per_second: u64,
}

impl Rate {
    /// Allows this many units a second, in bursts of up to one second's worth.
    pub(crate) fn new(rate: NonZeroU64) -> Self {
        Self { burst: SECOND, paid_until: Mutex::new(0), per_second: rate.get() }
    }

    /// Waits until `units` may be used. Later callers wait longer, so none is overtaken.
    pub(crate) async fn take(&self, units: u64, runtime: &dyn Runtime) {
        let wait = self.charge(units, nanoseconds(runtime.monotonic()));
        if wait > 0 {
            let mut taken = Taken { cost: self.cost(units), kept: false, rate: self };
            runtime.sleep(Duration::from_nanos(wait)).await;
            taken.kept = true;
        }
    }

    #[cfg(feature = "s3")]
    /// Accounts for `units` already used: the next caller waits for them.
    pub(crate) fn owe(&self, units: u64, runtime: &dyn Runtime) {
        self.charge(units, nanoseconds(runtime.monotonic()));
    }

    fn cost(&self, units: u64) -> u64 {
        u64::try_from(u128::from(units) * u128::from(SECOND) / u128::from(self.per_second))
            .unwrap_or(u64::MAX / 4)
    }

    /// Advances the virtual clock; returns the time to wait.
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

#[cfg(test)]
mod tests {
    #[cfg(feature = "testing")]
    use futures::FutureExt as _;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Proves H151.
        #[test]
        fn no_window_exceeds_rate_and_burst(
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
                    // Units allowed in this window, plus one whole request.
                    let allowed = rate + (at - from) * rate / SECOND + 20 + 1;
                    sum += units;
                    prop_assert!(sum <= allowed, "{sum} units within {} ns at {rate}/s", at - from);
                }
            }
        }
    }

    /// Proves H151.
    #[cfg(feature = "testing")]
    #[test]
    fn a_dropped_waiter_returns_its_share_of_the_rate() {
        let runtime = crate::rt::SimRuntime::new(1);
        let rate = Rate::new(NonZeroU64::new(10).unwrap());
        assert!(rate.take(10, &runtime).now_or_never().is_some(), "a burst passes");
        assert!(rate.take(5, &runtime).now_or_never().is_none(), "and no more; the future is dropped here");
        assert_eq!(rate.charge(1, 0), SECOND / 10, "one unit is owed, not six");
    }
}
