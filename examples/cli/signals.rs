//! SIGINT and SIGTERM: the first one asks the command to end, the second one ends the process at once.
//!
//! A command that was asked to end gives up what it was doing, takes away what it left unfinished, and gives locks and leases
//! back. Its exit status is 130 or 143. A command that ends well all the same, since the signal came too late, exits with 0. Before
//! a store is opened there is nothing to give back, and the first signal ends the process.

#![allow(clippy::disallowed_methods, reason = "the rule against threads is for the library")]

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Duration;

use futures::future::{Either, select};
use larder::rt::Runtime;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level;

use super::{Failure, Outcome};

/// Time in which a command may complete its step.
const STEP: Duration = Duration::from_secs(10);

/// The first signal that came, or 0.
static CAUGHT: AtomicI32 = AtomicI32::new(0);
/// `true` once there may be something to remove or release.
static HOLDS: AtomicBool = AtomicBool::new(false);
/// True from the first signal on.
static ABORT: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
static WAITING: Mutex<Vec<Waker>> = Mutex::new(Vec::new());

/// Begins to wait for signals. One that the process was started to ignore is ignored, as in the background of a script.
pub(crate) fn watch() -> io::Result<()> {
    let wanted: Vec<_> = [SIGINT, SIGTERM].into_iter().filter(|signal| !is_ignored(*signal)).collect();
    let mut signals = Signals::new(wanted)?;
    let wait = move || {
        for signal in signals.forever() {
            if CAUGHT.swap(signal, Ordering::SeqCst) != 0 || !HOLDS.load(Ordering::SeqCst) {
                low_level::exit(status(signal).into());
            }
            ABORT.store(true, Ordering::SeqCst);
            for waker in WAITING.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
                waker.wake();
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(wait).map(drop)
}

/// From here on a signal does not end the process before the command has ended.
pub(crate) fn hold() -> Outcome<()> {
    HOLDS.store(true, Ordering::SeqCst);
    check()
}

fn is_ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or_default();
    mask >> (signal - 1) & 1 == 1
}

/// The exit status of a command that a signal ended.
pub(crate) fn status(signal: i32) -> u8 {
    u8::try_from(128 + signal).unwrap_or(u8::MAX)
}

/// The signal that came, if one did.
pub(crate) fn caught() -> Option<i32> {
    Some(CAUGHT.load(Ordering::SeqCst)).filter(|signal| *signal != 0)
}

/// True from the first signal on: for operations that look between two steps.
pub(crate) fn flag() -> Arc<AtomicBool> {
    Arc::clone(&ABORT)
}

/// Fails if a signal came.
pub(crate) fn check() -> Outcome<()> {
    match caught() {
        None => Ok(()),
        Some(SIGINT) => Err(Failure::Work("ended by SIGINT".to_owned())),
        Some(_) => Err(Failure::Work("ended by SIGTERM".to_owned())),
    }
}

/// Returns when a signal came.
pub(crate) async fn arrived() {
    poll_fn(|context| {
        let mut waiting = WAITING.lock().unwrap_or_else(PoisonError::into_inner);
        if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
            waiting.push(context.waker().clone());
        }
        if caught().is_some() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Works until a signal comes. The work is dropped then.
pub(crate) async fn interruptible<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
    match select(pin!(arrived()), pin!(work)).await {
        Either::Left(_) => check().and(Err(Failure::Work("ended".to_owned()))),
        Either::Right((done, _)) => done,
    }
}

/// Works until a signal comes, and then to the end of the step, if that comes soon: the work looks at the [`flag`].
pub(crate) async fn stepwise<T>(
    runtime: &Arc<dyn Runtime>,
    work: impl Future<Output = Outcome<T>>,
) -> Outcome<T> {
    let late = async {
        arrived().await;
        runtime.sleep(STEP).await;
    };
    match select(pin!(work), pin!(late)).await {
        Either::Left((done, _)) => done,
        Either::Right(_) => check().and(Err(Failure::Work("ended".to_owned()))),
    }
}
