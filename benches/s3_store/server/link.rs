//! One direction of a link of limited speed, shared by all connections.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far the link may lag behind without losing time: a thread wakes up a little late.
const SLACK: Duration = Duration::from_millis(2);

#[derive(Debug)]
pub(super) struct Link {
    /// When the link has sent all that it was given.
    free: Mutex<Instant>,
    /// Bytes a second, or 0: as fast as it goes.
    rate: AtomicU64,
}

impl Link {
    pub(super) fn new() -> Self {
        Self { free: Mutex::new(Instant::now()), rate: AtomicU64::new(0) }
    }

    pub(super) fn set_rate(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// Returns when so many bytes have passed.
    pub(super) fn pass(&self, length: usize) {
        let rate = self.rate.load(Ordering::Relaxed);
        if rate == 0 || length == 0 {
            return;
        }
        let time = Duration::from_nanos((length as u64).saturating_mul(1_000_000_000) / rate);
        let now = Instant::now();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = now.checked_sub(SLACK).map_or(*free, |start| start.max(*free)) + time;
        let wait = free.saturating_duration_since(now);
        drop(free);
        std::thread::sleep(wait);
    }
}
