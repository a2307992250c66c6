//! Bounded waits for locks whose holders release them soon.

use std::time::Duration;

use crate::backend::{Backend, HeldBriefly, LockGuard, LockMode, LockScope};
use crate::error::{Error, ErrorKind, Result};

/// Maximum wait for the lock of a manifest, as in PBS.
pub(crate) const MANIFEST_WAIT: Duration = Duration::from_secs(5);

/// Maximum wait of a new backup for its group: a writer that was dropped may still be cleaning up.
pub(crate) const GROUP_WAIT: Duration = Duration::from_millis(500);

/// Maximum wait for the lock of the store while its holder removes the leftovers of a dead writer, which takes some deletions on a disk.
const STORE_WAIT: Duration = Duration::from_secs(10);

/// Takes a lock, and tries again until `wait` is over while another holder has it.
///
/// # Errors
/// `Busy` if it is not free by then; as for [`Coordination::lock`](crate::backend::Coordination::lock).
pub(crate) async fn lock_with_timeout(
    backend: &dyn Backend,
    scope: &LockScope,
    mode: LockMode,
    wait: Duration,
) -> Result<Box<dyn LockGuard>> {
    lock_while(backend, scope, mode, wait, |error| error.kind() == ErrorKind::Busy).await
}

/// Takes the lock of the store, after waiting for a holder that has it [briefly](LockMode::Brief).
///
/// # Errors
/// `Busy` at once if another holder has it in a longer mode.
pub(crate) async fn lock_store(backend: &dyn Backend, mode: LockMode) -> Result<Box<dyn LockGuard>> {
    lock_while(backend, &LockScope::Store, mode, STORE_WAIT, HeldBriefly::caused).await
}

async fn lock_while(
    backend: &dyn Backend,
    scope: &LockScope,
    mode: LockMode,
    wait: Duration,
    should_wait: impl Fn(&Error) -> bool,
) -> Result<Box<dyn LockGuard>> {
    backend.runtime().retry_for(wait, should_wait, || backend.lock(scope, mode)).await
}
