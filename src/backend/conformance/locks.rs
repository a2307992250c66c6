//! Locking.

use std::sync::Arc;

use crate::backend::conformance::{begin, must, name, refused};
use crate::backend::{Backend, LockGuard, LockMode, LockScope};
use crate::error::{ErrorKind, Result};

/// **Locks exclude**: groups, manifests and snapshots have any number of shared holders or one exclusive one; shared and exclusive holders of
/// the store do not exclude each other within this process. Dropping a guard releases the lock at once.
pub(super) async fn locks_exclude(backend: &Arc<dyn Backend>) {
    begin(backend).await;
    let (one, ten) = ("ns/a/vm/1", "ns/a/vm/10");
    let day = "2025-07-14T14:20:02Z";
    let (snapshot, other) = (name(&format!("{one}/{day}")), name(&format!("{ten}/{day}")));
    let scopes = [
        LockScope::Group(name(one)),
        LockScope::Group(name(ten)),
        LockScope::Group(name("vm/1")),
        LockScope::Group(name("ns/b/vm/1")),
        LockScope::Snapshot(snapshot),
        LockScope::Snapshot(other),
        LockScope::Snapshot(name("ns/a/vm/1/2025-07-14T14:20:03Z")),
        LockScope::Manifest(name(&format!("{one}/{day}"))),
        LockScope::Manifest(name(&format!("{ten}/{day}"))),
    ];
    for scope in &scopes {
        excludes(backend, scope).await;
    }
    let mut held = Vec::new();
    for scope in &scopes {
        // Each scope has its own lock: the locks that are held already do not exclude it.
        held.push(must(lock(backend, scope, LockMode::Exclusive).await, "locks exclude: another object"));
    }
    for scope in &scopes {
        let again = lock(backend, scope, LockMode::Shared).await;
        refused(again, ErrorKind::Busy, "locks exclude: while all are held");
    }
    drop(held);
    for scope in &scopes {
        must(lock(backend, scope, LockMode::Exclusive).await, "locks exclude: after all were given back");
    }
    of_the_store(backend).await;
    begin(backend).await;
}

async fn excludes(backend: &Arc<dyn Backend>, scope: &LockScope) {
    let what = format!("locks exclude: {scope}");
    let first = must(lock(backend, scope, LockMode::Shared).await, &what);
    let second = must(lock(backend, scope, LockMode::Shared).await, &what);
    for guard in [first, second] {
        refused(lock(backend, scope, LockMode::Exclusive).await, ErrorKind::Busy, &what);
        must(guard.check().await, &what);
        drop(guard);
    }
    let alone = must(lock(backend, scope, LockMode::Exclusive).await, &what);
    for mode in [LockMode::Exclusive, LockMode::Shared] {
        refused(lock(backend, scope, mode).await, ErrorKind::Busy, &what);
    }
    must(alone.check().await, &what);
    alone.release_deleted().await;
    let again = must(lock(backend, scope, LockMode::Exclusive).await, &what);
    refused(lock(backend, scope, LockMode::Shared).await, ErrorKind::Busy, &what);
    drop(again);
    must(lock(backend, scope, LockMode::Shared).await, &what);
}

async fn of_the_store(backend: &Arc<dyn Backend>) {
    let what = "locks exclude: the store, within one process";
    let scope = LockScope::Store;
    let alone = must(lock(backend, &scope, LockMode::Exclusive).await, what);
    assert_eq!(alone.oldest_shared(), None, "{what}: no shared holder");
    let first = must(lock(backend, &scope, LockMode::Shared).await, what);
    let oldest = first.oldest_shared();
    assert!(oldest.is_some(), "{what}: a shared holder");
    let second = must(lock(backend, &scope, LockMode::Shared).await, what);
    for guard in [&alone, &first, &second] {
        must(guard.check().await, what);
        assert_eq!(guard.oldest_shared(), oldest, "{what}: the oldest shared holder");
    }
    drop(first);
    assert!(alone.oldest_shared().is_some(), "{what}: a second shared holder");
    drop(second);
    assert_eq!(alone.oldest_shared(), None, "{what}: no shared holder any more");
    drop(alone);
    must(lock(backend, &scope, LockMode::Exclusive).await, what);
}

async fn lock(backend: &Arc<dyn Backend>, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
    backend.lock(scope, mode).await
}
