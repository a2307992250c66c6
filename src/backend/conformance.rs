//! What every backend has to do, as a suite that anybody can run on theirs.
//!
//! [`check_all`] runs all of it; each check can be run by itself, on a store that is empty. What a backend says it cannot do
//! (its [`Capabilities`](crate::backend::Capabilities)) has to be refused, and nothing may have been written then.
//!
//! # Panics
//! All checks panic with the first thing that is wrong.

#![expect(clippy::missing_panics_doc, reason = "said above, for all of them")]
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "it is equipment for tests, and this is how tests fail"
)]

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};

use crate::backend::{
    Backend, Deleted, ListEntry, ListPage, ListQuery, LockMode, LockScope, PutMode, Removal, Touched,
    Version, list_all,
};
use crate::error::{ErrorKind, Result};
use crate::format::Digest;
use crate::format::layout::{Key, Prefix};
use crate::format::name::{GroupName, Namespace, SnapshotName};

/// Makes a store that is new and empty.
pub type Make<'a> = dyn Fn() -> BoxFuture<'a, Arc<dyn Backend>> + Send + Sync + 'a;

/// Runs every check, each on a new and empty store that `make` gives.
pub async fn check_all(make: &Make<'_>) {
    atomic(make().await.as_ref()).await;
    read_your_writes(make().await.as_ref()).await;
    create_never_replaces(make().await.as_ref()).await;
    durable(make().await.as_ref()).await;
    ordered_and_complete(make().await.as_ref()).await;
    namespaces(make().await.as_ref()).await;
    absent_is_certain(make().await.as_ref()).await;
    limited(make().await.as_ref()).await;
    deletes(make().await.as_ref()).await;
    touches(make().await.as_ref()).await;
    locks_exclude(make().await.as_ref()).await;
}

fn chunk(number: u32) -> Key {
    Key::Chunk(Digest::of(&number.to_le_bytes()))
}

fn snapshot(text: &str) -> SnapshotName {
    text.parse().unwrap()
}

fn group(text: &str) -> GroupName {
    text.parse().unwrap()
}

fn namespace(text: &str) -> Namespace {
    text.parse().unwrap()
}

fn kind<T>(result: Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

async fn put(backend: &dyn Backend, key: &Key, text: &'static str) -> Version {
    backend.put(key, Bytes::from_static(text.as_bytes()), PutMode::Replace).await.unwrap()
}

async fn text(backend: &dyn Backend, key: &Key) -> Bytes {
    backend.get(key, 1 << 30).await.unwrap().bytes
}

async fn keys(backend: &dyn Backend, query: &ListQuery) -> Vec<String> {
    let entries = list_all(backend, query).await.unwrap().into_entries();
    let path = |entry| match entry {
        ListEntry::Foreign(path) => panic!("{path} is foreign, and nobody put it there"),
        ListEntry::Object(info) => info.key.path(),
        ListEntry::Prefix(prefix) => prefix.path(),
    };
    entries.into_iter().map(path).collect()
}

/// **Atomic**: while an object is replaced again and again, readers see one of its contents and never a mixture; of many who
/// create one object, one does.
pub async fn atomic(backend: &dyn Backend) {
    let key = chunk(0);
    put(backend, &key, "").await;
    let write = |byte: u8| {
        let key = &key;
        async move {
            for length in [1, 100_000, 7, 50_000] {
                backend.put(key, Bytes::from(vec![byte; length]), PutMode::Replace).await.unwrap();
            }
        }
    };
    let read = async {
        for _ in 0..30 {
            let object = backend.get(&key, 1 << 20).await.unwrap();
            assert!(
                object.bytes.iter().all(|byte| *byte == object.bytes[0]),
                "a mixture of two contents was read"
            );
            assert_eq!(object.info.size, object.bytes.len() as u64, "the size is not that of the bytes");
        }
    };
    futures::join!(join_all((b'a'..b'e').map(write)), read);
    if backend.capabilities().conditional_put {
        let key = chunk(1);
        let creations = (0..10_u8).map(|byte| backend.put(&key, Bytes::from(vec![byte]), PutMode::Create));
        let created = join_all(creations).await;
        let winners: Vec<_> = (0..10_u8).filter(|byte| created[usize::from(*byte)].is_ok()).collect();
        assert_eq!(winners.len(), 1, "several created one object");
        assert_eq!(text(backend, &key).await, winners, "what is there is not what was created");
    }
}

/// **Read your writes**: what was put is read, headed and listed, whole, by range, and after a copy; versions differ.
pub async fn read_your_writes(backend: &dyn Backend) {
    let (key, other) = (chunk(0), chunk(1));
    let first = put(backend, &key, "0123456789").await;
    let object = backend.get(&key, 10).await.unwrap();
    assert_eq!((&object.bytes[..], &object.info.version), (&b"0123456789"[..], &first));
    let head = backend.head(&key).await.unwrap();
    assert_eq!((&head.key, head.size, &head.version), (&key, 10, &first));
    assert_eq!((&object.info.key, object.info.size), (&key, 10));
    let part = backend.get_range(&key, 3..7).await.unwrap();
    assert_eq!((&part.bytes[..], part.info.size, &part.info.version), (&b"3456"[..], 10, &first));
    assert_eq!(backend.get_range(&key, 0..10).await.unwrap().bytes, object.bytes);
    for range in [3..3, 3..11, 10..11, 11..12] {
        let refused = kind(backend.get_range(&key, range.clone()).await);
        assert_eq!(refused, Some(ErrorKind::InvalidInput), "{range:?}");
    }
    backend.copy(&key, &other, PutMode::Replace).await.unwrap();
    assert_eq!(text(backend, &other).await, object.bytes);
    let second = put(backend, &key, "abcdefghij").await;
    assert_ne!(first, second, "another content has the version of the one before");
    assert_eq!(text(backend, &key).await, "abcdefghij");
    assert_eq!(text(backend, &other).await, object.bytes, "a copy changed with its original");
    for key in [
        Key::Store,
        Key::GcStatus,
        Key::Owner(group("vm/1")),
        Key::ClientLog(snapshot("ns/a/ct/1/2025-01-01T00:00:00Z")),
    ] {
        put(backend, &key, "x").await;
        assert_eq!(text(backend, &key).await, "x", "{key}");
    }
}

/// **Create never replaces**, and neither does a put that names another version.
pub async fn create_never_replaces(backend: &dyn Backend) {
    let (key, other) = (chunk(0), chunk(1));
    let put_as = |key: &Key, text: &'static str, mode| {
        let (key, object) = (key.clone(), Bytes::from_static(text.as_bytes()));
        async move { backend.put(&key, object, mode).await }
    };
    let version = put(backend, &key, "first").await;
    if !backend.capabilities().conditional_put {
        for mode in [PutMode::Create, PutMode::IfMatch(version)] {
            assert_eq!(kind(put_as(&key, "second", mode.clone()).await), Some(ErrorKind::Unsupported));
            assert_eq!(kind(put_as(&other, "second", mode).await), Some(ErrorKind::Unsupported));
        }
        assert_eq!(
            kind(backend.head(&other).await),
            Some(ErrorKind::NotFound),
            "something was written all the same"
        );
        assert_eq!(text(backend, &key).await, "first");
        return;
    }
    assert_eq!(kind(put_as(&key, "second", PutMode::Create).await), Some(ErrorKind::AlreadyExists));
    assert_eq!(kind(backend.copy(&key, &key, PutMode::Create).await), Some(ErrorKind::AlreadyExists));
    let missing = PutMode::IfMatch(version.clone());
    assert_eq!(
        kind(put_as(&other, "second", missing).await),
        Some(ErrorKind::Conflict),
        "matched what is absent"
    );
    assert_eq!(kind(backend.head(&other).await), Some(ErrorKind::NotFound));
    assert_eq!(text(backend, &key).await, "first");
    let next = put_as(&key, "second", PutMode::IfMatch(version.clone())).await.unwrap();
    assert_eq!(kind(put_as(&key, "third", PutMode::IfMatch(version)).await), Some(ErrorKind::Conflict));
    assert_eq!(text(backend, &key).await, "second");
    put_as(&other, "made", PutMode::Create).await.unwrap();
    let updates =
        (0..8_u8).map(|byte| backend.put(&key, Bytes::from(vec![byte]), PutMode::IfMatch(next.clone())));
    let updated = join_all(updates).await;
    assert_eq!(
        updated.iter().filter(|result| result.is_ok()).count(),
        1,
        "several replaced the same version"
    );
}

/// **Durable**, as far as it shows without a crash: a barrier succeeds, alone, twice and beside puts, and loses nothing.
pub async fn durable(backend: &dyn Backend) {
    backend.barrier().await.unwrap();
    let puts = (0..20).map(|number| async move { put(backend, &chunk(number), "kept").await });
    let (_, barrier) = futures::join!(join_all(puts), backend.barrier());
    barrier.unwrap();
    backend.delete(&[Removal::any(chunk(0))]).await.unwrap();
    backend.barrier().await.unwrap();
    backend.barrier().await.unwrap();
    for number in 1..20 {
        assert_eq!(text(backend, &chunk(number)).await, "kept");
    }
}

/// **Ordered** and **Complete**: all pages together have every key once, in byte order; shards together have everything.
pub async fn ordered_and_complete(backend: &dyn Backend) {
    let all: BTreeSet<_> = (0..300).map(|number| chunk(number).path()).collect();
    join_all((0..300).map(|number| async move { put(backend, &chunk(number), "x").await })).await;
    let quarantined = Key::Quarantined(Digest::of(b"bad"), 3);
    put(backend, &quarantined, "x").await;
    let everything: Vec<_> =
        all.iter().cloned().chain([quarantined.path()]).collect::<BTreeSet<_>>().into_iter().collect();
    for query in [ListQuery::all(Prefix::Chunks), ListQuery::children(Prefix::Chunks)] {
        assert_eq!(keys(backend, &query).await, everything);
    }
    let mut sharded = Vec::new();
    let edge = |first: u8| {
        let mut digest = [0xff; 32];
        digest[0] = first;
        Some(Key::Chunk(Digest::from_bytes(digest)))
    };
    let shards = [(None, edge(0x3f)), (edge(0x3f), edge(0x40)), (edge(0x40), edge(0xdf)), (edge(0xdf), None)];
    for (after, until) in shards {
        let query = ListQuery::all(Prefix::Chunks).between(after.clone(), until.clone());
        let shard = keys(backend, &query).await;
        let inside = |path: &String| after.as_ref().is_none_or(|after| *path > after.path());
        assert!(shard.iter().all(inside), "a shard has what comes before it");
        sharded.extend(shard);
    }
    assert_eq!(sharded, everything);
    let between =
        ListQuery::all(Prefix::Chunks).between(Key::parse(&everything[10]), Key::parse(&everything[20]));
    assert_eq!(
        keys(backend, &between).await,
        everything[11..=20],
        "the end is part of a range, its beginning is not"
    );
    in_groups(backend).await;
}

async fn in_groups(backend: &dyn Backend) {
    let snapshot = |id: &str| Key::Manifest(snapshot(&format!("vm/{id}/2025-01-01T00:00:00Z")));
    for id in ["10", "1", "100", "10.", "10-a", "a", "A"] {
        put(backend, &Key::Owner(group(&format!("vm/{id}"))), "o").await;
        put(backend, &snapshot(id), "m").await;
    }
    put(backend, &Key::Owner(group("ns/vm/vm/1")), "o").await;
    let root = Namespace::root();
    let of_ten = keys(backend, &ListQuery::all(Prefix::Group(group("vm/10")))).await;
    assert_eq!(of_ten, ["vm/10/2025-01-01T00:00:00Z/index.json.blob", "vm/10/owner"], "h28");
    let children = ListQuery::children(Prefix::Group(group("vm/10")));
    assert_eq!(keys(backend, &children).await, ["vm/10/2025-01-01T00:00:00Z/", "vm/10/owner"]);
    let groups = ListQuery::children(Prefix::Groups(root.clone(), crate::format::name::BackupType::Vm));
    let sorted = ["vm/1/", "vm/10-a/", "vm/10./", "vm/10/", "vm/100/", "vm/A/", "vm/a/"];
    assert_eq!(keys(backend, &groups).await, sorted);
    let whole = keys(backend, &ListQuery::all(Prefix::Namespace(root.clone()))).await;
    assert!(whole.is_sorted() && whole.iter().all(|path| !path.starts_with(".chunks")), "{whole:?}");
    assert!(whole.contains(&"ns/vm/vm/1/owner".to_owned()));
    let top = keys(backend, &ListQuery::children(Prefix::Namespace(root))).await;
    assert_eq!(top, ["ns/", "vm/"]);
    let nothing = backend.list(&ListQuery::all(Prefix::Group(group("ct/1"))), None).await;
    assert!(matches!(nothing, Ok(ListPage { entries, next: None }) if entries.is_empty()));
}

/// Namespaces exist by their marker or by what is in them, and go when they are empty.
pub async fn namespaces(backend: &dyn Backend) {
    let (outer, inner) = (namespace("a"), namespace("a/b"));
    for each in [&outer, &inner] {
        let key = Key::Namespace(each.clone());
        let mode = if backend.capabilities().conditional_put { PutMode::Create } else { PutMode::Replace };
        backend.put(&key, Bytes::new(), mode).await.unwrap();
        assert_eq!(text(backend, &key).await, "");
        assert_eq!(backend.head(&key).await.unwrap().size, 0);
    }
    put(backend, &Key::Owner(group("ns/c/host/x")), "o").await;
    let children =
        |of: Namespace| async move { keys(backend, &ListQuery::children(Prefix::Namespaces(of))).await };
    assert_eq!(children(Namespace::root()).await, ["ns/a/", "ns/c/"]);
    assert_eq!(children(outer.clone()).await, ["ns/a/ns/b/"]);
    assert_eq!(children(inner.clone()).await, Vec::<String>::new());
    let below = keys(backend, &ListQuery::all(Prefix::Namespace(outer.clone()))).await;
    assert_eq!(below, ["ns/a/.namespace", "ns/a/ns/b/.namespace"]);
    let remove = |of: &Namespace| {
        let removal = [Removal::any(Key::Namespace(of.clone()))];
        async move { backend.delete(&removal).await.unwrap().remove(0) }
    };
    assert_eq!(kind(remove(&outer).await), Some(ErrorKind::Conflict), "a namespace went with what was in it");
    assert_eq!(remove(&inner).await.unwrap(), Deleted::Removed);
    assert_eq!(remove(&outer).await.unwrap(), Deleted::Removed);
    assert_eq!(remove(&outer).await.unwrap(), Deleted::Absent);
    assert_eq!(children(Namespace::root()).await, ["ns/c/"]);
}

/// **Absent is certain**: what is not there is `NotFound` by every method that wants it.
pub async fn absent_is_certain(backend: &dyn Backend) {
    for key in [
        chunk(0),
        Key::Store,
        Key::Owner(group("vm/1")),
        Key::Namespace(namespace("a")),
        Key::Manifest(snapshot("vm/1/2025-01-01T00:00:00Z")),
    ] {
        assert_eq!(kind(backend.get(&key, 10).await), Some(ErrorKind::NotFound), "{key}");
        assert_eq!(kind(backend.head(&key).await), Some(ErrorKind::NotFound), "{key}");
        assert_eq!(kind(backend.get_range(&key, 0..1).await), Some(ErrorKind::NotFound), "{key}");
    }
    assert_eq!(kind(backend.copy(&chunk(0), &chunk(1), PutMode::Replace).await), Some(ErrorKind::NotFound));
    let touched = backend.touch(&[chunk(0)]).await.unwrap();
    assert!(matches!(touched[..], [Touched::Absent | Touched::Unknown]), "{touched:?}");
}

/// **Limited**: an object is read up to its limit and refused beyond.
pub async fn limited(backend: &dyn Backend) {
    put(backend, &chunk(0), "12345").await;
    assert_eq!(backend.get(&chunk(0), 5).await.unwrap().bytes, "12345");
    assert_eq!(kind(backend.get(&chunk(0), 4).await), Some(ErrorKind::Corrupt));
    put(backend, &chunk(1), "").await;
    assert_eq!(backend.get(&chunk(1), 0).await.unwrap().bytes, "");
}

/// Deleting: any number, results in order, absent is no failure, only the version that was named.
pub async fn deletes(backend: &dyn Backend) {
    assert!(backend.delete(&[]).await.unwrap().is_empty(), "h50: nothing to delete is nothing to do");
    let versions =
        join_all((0..5).map(|number| async move { put(backend, &chunk(number), "x").await })).await;
    let removals = [chunk(3), chunk(9), chunk(1)].map(Removal::any);
    let results = backend.delete(&removals).await.unwrap().into_iter().map(Result::unwrap);
    assert_eq!(results.collect::<Vec<_>>(), [Deleted::Removed, Deleted::Absent, Deleted::Removed]);
    assert_eq!(kind(backend.head(&chunk(3)).await), Some(ErrorKind::NotFound));
    put(backend, &chunk(0), "changed").await;
    let named = |number: usize| Removal {
        key: chunk(u32::try_from(number).unwrap_or_default()),
        version: Some(versions[number].clone()),
    };
    let results = backend.delete(&[named(0), named(2), named(3)]).await.unwrap();
    if backend.capabilities().conditional_delete {
        let kinds: Vec<_> = results.into_iter().map(|result| result.map_err(|error| error.kind())).collect();
        assert_eq!(kinds, [Err(ErrorKind::Conflict), Ok(Deleted::Removed), Ok(Deleted::Absent)]);
    } else {
        assert!(results.into_iter().all(|result| kind(result) == Some(ErrorKind::Unsupported)));
        assert_eq!(text(backend, &chunk(2)).await, "x");
    }
    assert_eq!(text(backend, &chunk(0)).await, "changed");
}

/// Touching tells in order what is known without a request, and changes no version.
pub async fn touches(backend: &dyn Backend) {
    let version = put(backend, &chunk(1), "12345").await;
    let touched = backend.touch(&[chunk(0), chunk(1), chunk(0)]).await.unwrap();
    assert_eq!(touched.len(), 3);
    match &touched[1] {
        Touched::Present(info) => assert_eq!((&info.key, info.size, &info.version), (&chunk(1), 5, &version)),
        Touched::Unknown => {}
        Touched::Absent => panic!("what is there is said to be absent"),
    }
    assert!(matches!(touched[0], Touched::Absent | Touched::Unknown));
    assert_eq!(touched[0], touched[2]);
    assert_eq!(backend.head(&chunk(1)).await.unwrap().version, version);
    assert!(backend.touch(&[]).await.unwrap().is_empty());
}

/// **Locks exclude**: shared holders tolerate one another, exclusive ones nobody; what is locked is that object and no other;
/// the store excludes other processes, and no shared holder within this one.
pub async fn locks_exclude(backend: &dyn Backend) {
    let one = snapshot("vm/1/2025-01-01T00:00:00Z");
    let other = snapshot("ns/a/vm/1/2025-01-01T00:00:00Z");
    let scopes = [
        LockScope::Group(one.group().clone()),
        LockScope::Group(other.group().clone()),
        LockScope::Snapshot(one.clone()),
        LockScope::Snapshot(other),
        LockScope::Manifest(one),
    ];
    let mut held = Vec::new();
    for scope in &scopes {
        let lock = |mode| backend.lock(scope, mode);
        let (first, second) = (lock(LockMode::Shared).await.unwrap(), lock(LockMode::Shared).await.unwrap());
        assert_eq!(kind(lock(LockMode::Exclusive).await), Some(ErrorKind::Busy), "{scope}");
        drop(first);
        assert_eq!(kind(lock(LockMode::Exclusive).await), Some(ErrorKind::Busy), "{scope}");
        second.check().await.unwrap();
        drop(second);
        let exclusive = lock(LockMode::Exclusive).await.unwrap();
        for mode in [LockMode::Shared, LockMode::Exclusive] {
            assert_eq!(kind(lock(mode).await), Some(ErrorKind::Busy), "{scope}");
        }
        exclusive.check().await.unwrap();
        held.push(exclusive);
    }
    for guard in held {
        guard.release_deleted().await;
    }
    for scope in &scopes {
        backend.lock(scope, LockMode::Exclusive).await.unwrap();
    }
    let before = backend.runtime().now();
    let shared = backend.lock(&LockScope::Store, LockMode::Shared).await.unwrap();
    let later = backend.lock(&LockScope::Store, LockMode::Shared).await.unwrap();
    let exclusive = backend.lock(&LockScope::Store, LockMode::Exclusive).await.unwrap();
    let oldest = exclusive.oldest_shared().unwrap();
    assert!(oldest >= before, "a holder from before there was one");
    assert_eq!(kind(backend.lock(&LockScope::Store, LockMode::Exclusive).await), Some(ErrorKind::Busy));
    drop((shared, later));
    assert_eq!(exclusive.oldest_shared(), None);
    exclusive.check().await.unwrap();
}
