//! The monotonic clock of the runtimes of this crate.
//!
//! | system | clock | counts suspension of the host |
//! |---|---|---|
//! | Linux, Android | `CLOCK_BOOTTIME` | yes |
//! | macOS, iOS | `CLOCK_MONOTONIC` | yes |
//! | others | `CLOCK_MONOTONIC` | depends on the system |
//! | if that clock cannot be read | [`Instant`] | no, on most systems |
//!
//! No clock of a virtual machine advances while the machine is paused.

#![expect(clippy::disallowed_methods, reason = "this is where time comes from")]

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

#[cfg(any(target_os = "android", target_os = "linux"))]
const CLOCK: ClockId = ClockId::CLOCK_BOOTTIME;
#[cfg(not(any(target_os = "android", target_os = "linux")))]
const CLOCK: ClockId = ClockId::CLOCK_MONOTONIC;

/// The time since a fixed moment that all runtimes of this process share. It counts suspension of the host.
pub(super) fn monotonic() -> Duration {
    /// `None` if the clock can be read.
    static FALLBACK: OnceLock<Option<Instant>> = OnceLock::new();
    // Decided once, because the two clocks begin at different moments.
    match FALLBACK.get_or_init(|| if read().is_some() { None } else { Some(Instant::now()) }) {
        None => read().unwrap_or_default(),
        Some(start) => start.elapsed(),
    }
}

fn read() -> Option<Duration> {
    clock_gettime(CLOCK).ok().map(Duration::from)
}
