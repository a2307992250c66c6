//! Waiting for locks whose holders are done in a moment.

use std::time::Duration;

use crate::backend::{Backend, LockGuard, LockMode, LockScope};
use crate::error::{ErrorKind, Result};

/// How long the lock of a manifest is waited for, as in PBS.
pub(in crate::store) const MANIFEST_WAIT: Duration = Duration::from_secs(5);

/// How long a new backup waits for its group: a writer that was dropped may still be cleaning up behind itself.
pub(in crate::store) const GROUP_WAIT: Duration = Duration::from_millis(500);

/// The first pause between two tries; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);

const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Takes a lock, and tries again for a while if somebody is in the way.
///
/// # Errors
/// `Busy` if it is not free by then.
pub(crate) async fn lock_patiently(
    backend: &dyn Backend,
    scope: &LockScope,
    mode: LockMode,
    wait: Duration,
) -> Result<Box<dyn LockGuard>> {
    let runtime = backend.runtime();
    let end = runtime.monotonic() + wait;
    let mut pause = FIRST_PAUSE;
    loop {
        match backend.lock(scope, mode).await {
            Err(error) if error.kind() == ErrorKind::Busy && runtime.monotonic() < end => {
                runtime.sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            taken => return taken,
        }
    }
}
