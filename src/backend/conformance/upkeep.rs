//! Methods for maintenance: listings of names, batches of lookups, the clock, terms.

use std::sync::Arc;
use std::time::Duration;

use crate::backend::conformance::{blob, chunk, entries, keys, must, quarantine, remove, store};
use crate::backend::{Backend, Details, ListEntry, ListQuery};
use crate::error::ErrorKind;
use crate::format::layout::{Key, Prefix};

/// Tolerance between the clock of the store and the times of objects: servers send whole seconds.
const COARSE: Duration = Duration::from_secs(2);

/// **Names are those of the objects**: a listing of names shows the same keys in the same order as one with details.
pub(super) async fn names(backend: &Arc<dyn Backend>) {
    let mut stored: Vec<Key> = (0..40).map(chunk).collect();
    let Key::Chunk(digest) = stored[7] else { return };
    quarantine(backend, digest, 0, &blob("x")).await;
    for key in &stored {
        store(backend, key, blob("x")).await;
    }
    stored.push(Key::Quarantined(digest, 0));
    stored.sort();
    let query = ListQuery::all(Prefix::Chunks);
    assert_eq!(keys(backend, &query).await, stored, "names: what is there");
    let bounded = query.clone().between(Some(stored[5].clone()), Some(stored[30].clone()));
    for (query, wanted) in [(query, &stored[..]), (bounded, &stored[6..=30])] {
        let query = query.names();
        assert_eq!(query.details, Details::Names);
        let named = entries(backend, &query).await.into_iter().map(|entry| match entry {
            ListEntry::Name(key) => key,
            ListEntry::Object(info) => info.key,
            other => panic!("names: the listing shows {other:?}"),
        });
        assert_eq!(named.collect::<Vec<_>>(), wanted, "names: those of the objects");
    }
    remove(backend, &stored).await;
}

/// **Many heads are each a head**: `head_many` describes each object as `head` does.
pub(super) async fn many_heads(backend: &Arc<dyn Backend>) {
    let looked_for: Vec<Key> = (0..5).map(chunk).collect();
    for key in looked_for.iter().step_by(2) {
        store(backend, key, blob("abc")).await;
    }
    let found = must(backend.head_many(&looked_for).await, "many heads: the whole call failed");
    assert_eq!(found.len(), looked_for.len(), "many heads: one for each");
    for (at, (key, found)) in looked_for.iter().zip(found).enumerate() {
        match found {
            Ok(info) => {
                assert!(at % 2 == 0, "many heads: {key} is not there");
                assert_eq!(info, must(backend.head(key).await, "many heads: what is there"));
            }
            Err(error) => {
                assert_eq!((at % 2, error.kind()), (1, ErrorKind::NotFound), "many heads: {key}: {error:?}");
            }
        }
    }
    assert!(must(backend.head_many(&[]).await, "many heads: of nothing").is_empty());
    let there: Vec<_> = looked_for.into_iter().step_by(2).collect();
    remove(backend, &there).await;
}

/// **The clock is that of the objects**: an object that is stored between two readings of the clock has a time between them.
pub(super) async fn the_clock(backend: &Arc<dyn Backend>) {
    let key = chunk(1);
    let before = must(backend.clock().await, "clock: it tells the time");
    store(backend, &key, blob("x")).await;
    let info = must(backend.head(&key).await, "clock: what was stored");
    let after = must(backend.clock().await, "clock: it tells the time");
    assert!(info.last_used + COARSE >= before, "clock: {:?} is before {before:?}", info.last_used);
    assert!(info.last_used <= after + COARSE, "clock: {:?} is after {after:?}", info.last_used);
    remove(backend, &[key]).await;
}

/// **A term follows another**: in a backend with terms, a new one has a larger epoch and does not continue the old one, and locks stay held.
pub(super) async fn terms(backend: &Arc<dyn Backend>) {
    use crate::backend::{LockMode, LockScope};
    let guard = must(backend.lock(&LockScope::Store, LockMode::Shared).await, "terms: a lock");
    let before = backend.lease_term();
    must(backend.begin_term().await, "terms: the next one begins");
    must(guard.check().await, "terms: the lock goes on");
    let after = backend.lease_term();
    assert_eq!(before.is_some(), after.is_some(), "terms: there are some or none");
    if let (Some(before), Some(after)) = (before, after) {
        assert!(after.epoch > before.epoch, "terms: {after:?} follows {before:?}");
        assert_eq!((after.continues, after.since), (None, before.since), "terms: of the same holder");
    }
}
