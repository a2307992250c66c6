//! Digest locks: one task at a time works on a chunk.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::lock::{Mutex as AsyncMutex, OwnedMutexGuard};

use crate::format::Digest;

/// The locks of all digests. A lock exists only while a task holds it or waits for it (H158).
#[derive(Debug, Default)]
pub(crate) struct DigestLocks {
    open: Mutex<HashMap<Digest, Arc<AsyncMutex<()>>>>,
}

/// The lock of a digest, released when dropped.
#[derive(Debug)]
pub(crate) struct DigestLock<'a> {
    digest: Digest,
    guard: Option<OwnedMutexGuard<()>>,
    digest_locks: &'a DigestLocks,
}

impl DigestLocks {
    /// Waits for the lock of a digest. If its holder failed or was dropped, the next task gets it.
    pub(crate) async fn lock(&self, digest: Digest) -> DigestLock<'_> {
        let mut digest_lock = DigestLock { digest, guard: None, digest_locks: self };
        mutated!("digest-locks-exclude-no-task" => return digest_lock);
        let mutex = Arc::clone(self.open().entry(digest).or_default());
        digest_lock.guard = Some(mutex.lock_owned().await);
        digest_lock
    }

    /// Takes the lock of a digest, if no task holds it or waits for it.
    pub(crate) fn try_lock(&self, digest: Digest) -> Option<DigestLock<'_>> {
        let mut open = self.open();
        if open.contains_key(&digest) {
            return None;
        }
        let mutex = Arc::<AsyncMutex<()>>::default();
        let guard = Some(Arc::clone(&mutex).try_lock_owned()?);
        open.insert(digest, mutex);
        Some(DigestLock { digest, guard, digest_locks: self })
    }

    /// Returns `true` if no task holds a lock or waits for one.
    pub(super) fn is_idle(&self) -> bool {
        self.open().is_empty()
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Digest, Arc<AsyncMutex<()>>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl DigestLock<'_> {
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }
}

impl Drop for DigestLock<'_> {
    fn drop(&mut self) {
        self.guard = None;
        let mut open = self.digest_locks.open();
        // Only the table refers to it: no task holds it or waits, and none can come while the table is locked.
        if open.get(&self.digest).is_some_and(|mutex| Arc::strong_count(mutex) == 1) {
            open.remove(&self.digest);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    /// Proves H158, H162.
    #[test]
    fn a_waiter_takes_over_when_the_one_inside_is_dropped() {
        let (digest_locks, digest) = (DigestLocks::default(), Digest::of(b"a"));
        let inside = digest_locks.lock(digest).now_or_never().unwrap();
        let mut waiting = Box::pin(digest_locks.lock(digest));
        assert!((&mut waiting).now_or_never().is_none());
        assert!(digest_locks.lock(Digest::of(b"b")).now_or_never().is_some());
        drop(inside);
        let second = waiting.now_or_never().unwrap();
        drop(second);
        let swept = digest_locks.try_lock(digest).unwrap();
        assert!(digest_locks.try_lock(digest).is_none());
        assert!(digest_locks.lock(digest).now_or_never().is_none(), "a later task waits");
        drop(swept);
        assert!(digest_locks.open().is_empty(), "h158: nothing is kept for a digest that nobody works on");
    }
}
