//! The contract of [`Backend`], word by word, as tests that any backend can be put through.
//!
//! Each function checks one promise and panics with a message that names it. They need a store that is **empty** and used by
//! nobody else; each says so if it is not, and leaves it empty again. What a backend
//! [cannot do](crate::backend::Capabilities) is checked too: it has to refuse, and to write nothing.
//!
//! ```
//! # use std::sync::Arc;
//! use larder::backend::{Backend, MemoryBackend, conformance};
//! # use larder::rt::ThreadRuntime;
//!
//! # let runtime = Arc::new(ThreadRuntime::new());
//! # futures::executor::block_on(async {
//! let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new(runtime));
//! conformance::check_all(&backend).await;
//! # })
//! ```
//!
//! # Panics
//! All of them, if the promise is broken.

#![expect(clippy::missing_panics_doc, reason = "said above, for all of them")]
#![expect(clippy::panic, reason = "it is equipment for tests, which a broken promise has to end")]

mod changes;
mod listings;
mod locks;
mod objects;
mod races;
mod upkeep;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use futures::channel::oneshot;

use crate::backend::{
    Backend, Deleted, ListEntry, ListQuery, Object, ObjectInfo, PutMode, Removal, Version, list_all,
};
use crate::error::{ErrorKind, Result};
use crate::format::Digest;
use crate::format::layout::{Key, Prefix};
use crate::format::name::Namespace;

pub use changes::{copies, create_never_replaces, deletes, durable, namespaces, touches, versions};
pub use listings::{children, complete, foreign_is_reported, ordered, paging};
pub use locks::locks_exclude;
pub use objects::{absent_is_certain, limited, ranges, read_your_writes};
pub use races::{
    atomic, conditions_see_every_change, directories_come_and_go, one_creator_wins, one_version_wins,
};
pub use upkeep::{many_heads, names, terms, the_clock};

/// Checks everything except [`foreign_is_reported`], which needs a way around the backend, and [`paging`], which needs to
/// know how many objects fill a page.
pub async fn check_all(backend: &Arc<dyn Backend>) {
    read_your_writes(backend).await;
    absent_is_certain(backend).await;
    limited(backend).await;
    ranges(backend).await;

    create_never_replaces(backend).await;
    versions(backend).await;
    deletes(backend).await;
    copies(backend).await;
    touches(backend).await;
    namespaces(backend).await;
    durable(backend).await;

    ordered(backend).await;
    complete(backend).await;
    children(backend).await;
    names(backend).await;

    many_heads(backend).await;
    the_clock(backend).await;
    terms(backend).await;

    locks_exclude(backend).await;

    atomic(backend).await;
    one_creator_wins(backend).await;
    one_version_wins(backend).await;
    directories_come_and_go(backend).await;
    begin(backend).await;
}

/// Refuses a store in which there is something.
async fn begin(backend: &Arc<dyn Backend>) {
    for prefix in [Prefix::Chunks, Prefix::Namespace(Namespace::root())] {
        let found = entries(backend, &ListQuery::all(prefix)).await;
        assert!(found.is_empty(), "the suite needs an empty store, and there is {:?}", found[0]);
    }
    for key in [Key::GcStatus, Key::Store] {
        refused(backend.head(&key).await, ErrorKind::NotFound, "the suite needs an empty store");
    }
}

/// Deletes what is in namespaces and groups, and the other objects named.
async fn end(backend: &Arc<dyn Backend>, others: &[Key]) {
    let all = ListQuery::all(Prefix::Namespace(Namespace::root()));
    let mut left: Vec<Key> = others.to_vec();
    let mut markers = Vec::new();
    for entry in entries(backend, &all).await {
        match entry {
            ListEntry::Object(ObjectInfo { key: key @ Key::Namespace(_), .. }) => markers.push(key),
            ListEntry::Object(info) => left.push(info.key),
            other => panic!("complete: the listing shows {other:?}, which nobody stored"),
        }
    }
    remove(backend, &left).await;
    // The deepest first: a namespace in which there is another cannot be deleted.
    for marker in markers.into_iter().rev() {
        remove(backend, &[marker]).await;
    }
}

async fn remove(backend: &Arc<dyn Backend>, keys: &[Key]) {
    let removals: Vec<_> = keys.iter().cloned().map(Removal::any).collect();
    let results = must(backend.delete(&removals).await, "delete: the whole call failed");
    assert_eq!(results.len(), keys.len(), "delete: a result for each object");
    for (key, result) in keys.iter().zip(results) {
        let deleted = must(result, "delete: what is there");
        let gone = matches!(deleted, Deleted::Removed | Deleted::Unknown | Deleted::Unsettled);
        assert!(gone, "delete: {key} was {deleted:?}");
    }
}

async fn store(backend: &Arc<dyn Backend>, key: &Key, bytes: impl Into<Bytes>) -> Version {
    let stored = backend.put(key, bytes.into(), PutMode::Replace).await;
    must(stored, "put: always possible under `Replace`")
}

async fn load(backend: &Arc<dyn Backend>, key: &Key) -> Object {
    must(backend.get(key, u64::MAX).await, "read your writes: what was stored is there")
}

/// Checks that the object has this content, and that every way to look at it says the same.
async fn holds(backend: &Arc<dyn Backend>, key: &Key, bytes: &[u8], version: &Version, what: &str) {
    let object = load(backend, key).await;
    assert_eq!(object.bytes.len(), bytes.len(), "{what}: length of {key}");
    assert!(object.bytes == bytes, "{what}: bytes of {key}");
    let head = must(backend.head(key).await, what);
    for info in [&object.info, &head] {
        assert_eq!(info.key, *key, "{what}: key");
        assert_eq!(info.size, bytes.len() as u64, "{what}: size of {key}");
        assert_eq!(info.version, *version, "{what}: version of {key}");
    }
}

async fn is_absent(backend: &Arc<dyn Backend>, key: &Key, what: &str) {
    refused(backend.get(key, u64::MAX).await, ErrorKind::NotFound, what);
    refused(backend.head(key).await, ErrorKind::NotFound, what);
}

async fn entries(backend: &Arc<dyn Backend>, query: &ListQuery) -> Vec<ListEntry> {
    must(list_all(&**backend, query).await, "list: a page, in order").into_entries()
}

/// The keys in a listing in which there may be nothing else.
async fn keys(backend: &Arc<dyn Backend>, query: &ListQuery) -> Vec<Key> {
    let only_objects = |entry| match entry {
        ListEntry::Object(info) => info.key,
        other => panic!("complete: the listing of {query:?} shows {other:?}"),
    };
    entries(backend, query).await.into_iter().map(only_objects).collect()
}

/// Runs a task beside this one. It returns what is to be checked, so that only the task that waits for it panics.
fn spawned<T: Send + 'static>(
    backend: &Arc<dyn Backend>,
    task: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> + Send {
    let (sender, receiver) = oneshot::channel();
    backend.runtime().spawn(Box::pin(async move {
        // If nobody waits any more, another check has failed.
        let _ = sender.send(task.await);
    }));
    async move { receiver.await.unwrap_or_else(|_| panic!("the runtime dropped a task, or it panicked")) }
}

#[track_caller]
fn must<T>(result: Result<T>, what: &str) -> T {
    result.unwrap_or_else(|error| panic!("{what}: {error:?}"))
}

#[track_caller]
fn refused<T: fmt::Debug>(result: Result<T>, kind: ErrorKind, what: &str) {
    match result {
        Ok(value) => panic!("{what}: wanted {kind:?}, and it succeeded with {value:?}"),
        Err(error) => assert_eq!(error.kind(), kind, "{what}: {error:?}"),
    }
}

fn chunk(number: u32) -> Key {
    Key::Chunk(Digest::of(&number.to_le_bytes()))
}

fn notes(group: &str) -> Key {
    Key::GroupNotes(name(group))
}

fn owner(group: &str) -> Key {
    Key::Owner(name(group))
}

fn archive(snapshot: &str, archive: &str) -> Key {
    Key::Archive(name(snapshot), name(archive))
}

/// The namespace below the root, or below another, that is called so.
fn namespace(parent: &Namespace, child: &str) -> Namespace {
    parent.child(child).unwrap_or_else(|error| panic!("{child}: {error}"))
}

/// A name that is known to be valid.
fn name<T: FromStr<Err: fmt::Display>>(text: &str) -> T {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}
