//! Waiting for locks whose holders are done in a moment.

use std::time::Duration;

use crate::backend::{Backend, HeldBriefly, LockGuard, LockMode, LockScope};
use crate::error::{Error, ErrorKind, Result};

/// How long the lock of a manifest is waited for, as in PBS.
pub(crate) const MANIFEST_WAIT: Duration = Duration::from_secs(5);

/// How long a new backup waits for its group: a writer that was dropped may still be cleaning up behind itself.
pub(crate) const GROUP_WAIT: Duration = Duration::from_millis(500);

/// How long the lock of the store is waited for while its holder removes what a dead writer left. It takes some deletions on a disk.
const STORE_WAIT: Duration = Duration::from_secs(10);

/// The first pause between two tries; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);

const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Takes a lock, and tries again for a while if somebody is in the way.
///
/// # Errors
/// `Busy` if it is not free by then.
pub(crate) async fn lock_with_timeout(
    backend: &dyn Backend,
    scope: &LockScope,
    mode: LockMode,
    wait: Duration,
) -> Result<Box<dyn LockGuard>> {
    lock_while(backend, scope, mode, wait, |error| error.kind() == ErrorKind::Busy).await
}

/// Takes the lock of the store. A holder that has it [for a moment](LockMode::Brief) is waited for.
///
/// # Errors
/// `Busy` at once if another holder has it for longer.
pub(crate) async fn lock_store(backend: &dyn Backend, mode: LockMode) -> Result<Box<dyn LockGuard>> {
    lock_while(backend, &LockScope::Store, mode, STORE_WAIT, HeldBriefly::caused).await
}

async fn lock_while(
    backend: &dyn Backend,
    scope: &LockScope,
    mode: LockMode,
    wait: Duration,
    is_worth_it: impl Fn(&Error) -> bool,
) -> Result<Box<dyn LockGuard>> {
    let runtime = backend.runtime();
    let end = runtime.monotonic() + wait;
    let mut pause = FIRST_PAUSE;
    loop {
        match backend.lock(scope, mode).await {
            Err(error) if is_worth_it(&error) && runtime.monotonic() < end => {
                runtime.sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            taken => return taken,
        }
    }
}
