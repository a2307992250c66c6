//! One direction of a link of limited speed, shared by all connections.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::PIECE;

pub(super) struct Link {
    /// When the link has sent all that it was given.
    free: Mutex<Instant>,
    /// Bytes a second, or 0.
    rate: u64,
}

impl Link {
    pub(super) fn new(rate: u64) -> Self {
        Self { free: Mutex::new(Instant::now()), rate }
    }

    /// How much of so many bytes goes through at once.
    pub(super) fn piece(&self, length: usize) -> usize {
        if self.rate == 0 { length.max(1) } else { PIECE }
    }

    /// Returns when so many bytes have passed.
    pub(super) fn pass(&self, length: usize) {
        if self.rate == 0 || length == 0 {
            return;
        }
        let time = Duration::from_nanos((length as u64).saturating_mul(1_000_000_000) / self.rate);
        let now = Instant::now();
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        *free = (*free).max(now) + time;
        let wait = free.duration_since(now);
        drop(free);
        std::thread::sleep(wait);
    }
}
