//! Waiting for locks.

use std::time::Duration;

use crate::backend::{Backend, LockGuard, LockMode, LockScope};
use crate::error::{ErrorKind, Result};

/// How long the lock of a manifest is waited for.
const MANIFEST_WAIT: Duration = Duration::from_secs(5);

/// The first pause between two tries; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(2);

const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Takes the lock of a manifest, whose holders are done in a moment.
///
/// # Errors
/// `Busy` if it is not free within five seconds.
pub(in crate::store) async fn lock_manifest(
    backend: &dyn Backend,
    scope: &LockScope,
) -> Result<Box<dyn LockGuard>> {
    let runtime = backend.runtime();
    let end = runtime.monotonic() + MANIFEST_WAIT;
    let mut pause = FIRST_PAUSE;
    loop {
        match backend.lock(scope, LockMode::Exclusive).await {
            Err(error) if error.kind() == ErrorKind::Busy && runtime.monotonic() < end => {
                runtime.sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
            taken => return taken,
        }
    }
}
