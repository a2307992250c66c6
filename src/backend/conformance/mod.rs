//! The contract of [`Backend`], as a test suite for any backend.
//!
//! Each case checks one promise, and panics with a message that names it. A [`Suite`] runs them on a store that is **empty** and used by
//! nothing else, and leaves it empty again. A case for a [capability](crate::backend::Capabilities) that the backend lacks checks that
//! the backend refuses and writes nothing.
//!
//! Objects at keys of chunks are at least as long as the shortest blob, and quarantined copies are made by copying a chunk, as the callers
//! of a backend do it.
//!
//! ```
//! # use std::sync::Arc;
//! use larder::backend::conformance::Suite;
//! use larder::backend::{Backend, MemoryBackend};
//! # use larder::rt::ThreadRuntime;
//!
//! # let runtime = Arc::new(ThreadRuntime::new());
//! # futures::executor::block_on(async {
//! let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new(runtime));
//! let passed = Suite::default().paging(1001).run(&backend).await;
//! assert!(passed.contains(&"read_your_writes"));
//! # })
//! ```

#![expect(clippy::panic, reason = "a broken promise ends the test")]

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
use futures::FutureExt as _;
use futures::channel::oneshot;
use futures::future::BoxFuture;

use crate::backend::{
    Backend, Deleted, ListEntry, ListQuery, Object, ObjectInfo, PutMode, Removal, Version, list_all,
};
use crate::error::{ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::MIN_BLOB_BYTES;
use crate::format::layout::{Key, Prefix};
use crate::format::name::Namespace;

use changes::{copies, create_never_replaces, deletes, durable, namespaces, touches, versions};
use listings::{children, complete, foreign_is_reported, ordered, paging};
use locks::locks_exclude;
use objects::{absent_is_certain, limited, ranges, read_your_writes};
use races::{
    atomic, conditions_see_every_change, directories_come_and_go, one_creator_wins, one_version_wins,
};
use upkeep::{many_heads, names, terms, the_clock};

type Case = for<'a> fn(&'a Arc<dyn Backend>) -> BoxFuture<'a, ()>;
type Plant<'a> = dyn Fn(String) -> BoxFuture<'a, ()> + Send + Sync + 'a;

macro_rules! cases {
    ($($case:ident),+ $(,)?) => {
        &[$((stringify!($case), |backend| Box::pin($case(backend)))),+]
    };
}

/// The cases that every backend passes.
const CASES: &[(&str, Case)] = cases![
    read_your_writes,
    absent_is_certain,
    limited,
    ranges,
    create_never_replaces,
    versions,
    deletes,
    copies,
    touches,
    namespaces,
    durable,
    ordered,
    complete,
    children,
    names,
    many_heads,
    the_clock,
    terms,
    locks_exclude,
    atomic,
    one_creator_wins,
    one_version_wins,
    directories_come_and_go,
];
/// The cases that run by name only: some servers cannot promise them.
const BY_NAME: &[(&str, Case)] = cases![conditions_see_every_change];
const PAGING: &str = "paging";
const FOREIGN: &str = "foreign_is_reported";

/// The conformance suite, or some cases of it.
///
/// By default it has all cases that need no preparation. `conditions_see_every_change` is not among them, since not every server can promise
/// it: run it [by name](Suite::only) on backends in which puts with and without a condition never lose one another.
#[derive(Default)]
#[must_use]
pub struct Suite<'a> {
    objects: Option<u32>,
    only: Option<Vec<&'a str>>,
    plant: Option<Box<Plant<'a>>>,
}

impl fmt::Debug for Suite<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { objects, only, plant } = self;
        let can_plant = plant.is_some();
        f.debug_struct("Suite")
            .field("objects", objects)
            .field("only", only)
            .field("can_plant", &can_plant)
            .finish()
    }
}

impl<'a> Suite<'a> {
    /// Runs only the cases with these names.
    pub fn only(mut self, cases: &[&'a str]) -> Self {
        self.only = Some(cases.to_vec());
        self
    }

    /// Adds the case `paging`, which lists this number of chunks and of groups page by page. It fails if they fit on one page.
    pub fn paging(mut self, objects: u32) -> Self {
        self.objects = Some(objects);
        self
    }

    /// Adds the case `foreign_is_reported`. `plant` stores a few bytes at the path that it is given, in a way around the backend. These
    /// files stay in the store, so this is the last run on it.
    pub fn foreign<P, F>(mut self, plant: P) -> Self
    where
        P: Fn(String) -> F + Send + Sync + 'a,
        F: Future<Output = ()> + Send + 'a,
    {
        self.plant = Some(Box::new(move |path| plant(path).boxed()));
        self
    }

    /// Runs the cases on an empty store, and returns their names in the order in which they ran.
    ///
    /// # Panics
    /// If the backend breaks a promise, the store is not empty, or a case that was asked for by name does not exist or lacks its
    /// preparation.
    pub async fn run(&self, backend: &Arc<dyn Backend>) -> Vec<&'static str> {
        let mut passed: Vec<&'static str> = Vec::new();
        let is_wanted = |case: &str| self.only.as_ref().is_none_or(|only| only.contains(&case));
        let by_name = BY_NAME.iter().filter(|_| self.only.is_some());
        no_chunks(backend).await;
        for (name, case) in CASES.iter().chain(by_name).filter(|(name, _)| is_wanted(name)) {
            case(backend).await;
            passed.push(*name);
        }
        if let Some(objects) = self.objects.filter(|_| is_wanted(PAGING)) {
            paging(backend, objects).await;
            passed.push(PAGING);
        }
        begin(backend).await;
        no_chunks(backend).await;
        if let Some(plant) = self.plant.as_ref().filter(|_| is_wanted(FOREIGN)) {
            foreign_is_reported(backend, plant).await;
            passed.push(FOREIGN);
        }
        for case in self.only.iter().flatten() {
            assert!(passed.contains(case), "the case {case} does not exist, or is not prepared");
        }
        passed
    }
}

/// Fails for a store with chunks. Looking for them can take as long as all the rest of a case, so each run looks before and after.
async fn no_chunks(backend: &Arc<dyn Backend>) {
    nothing_below(backend, Prefix::Chunks).await;
}

async fn nothing_below(backend: &Arc<dyn Backend>, prefix: Prefix) {
    let found = entries(backend, &ListQuery::all(prefix)).await;
    assert!(found.is_empty(), "the suite needs an empty store, and there is {:?}", found[0]);
}

/// Fails for a store with objects other than chunks.
async fn begin(backend: &Arc<dyn Backend>) {
    nothing_below(backend, Prefix::Namespace(Namespace::root())).await;
    for key in [Key::GcStatus, Key::Store] {
        refused(backend.head(&key).await, ErrorKind::NotFound, "the suite needs an empty store");
    }
}

/// Deletes all objects in namespaces and groups, and the given other ones.
async fn end(backend: &Arc<dyn Backend>, others: &[Key]) {
    let all = ListQuery::all(Prefix::Namespace(Namespace::root()));
    let mut left: Vec<Key> = others.to_vec();
    let mut markers = Vec::new();
    for entry in entries(backend, &all).await {
        match entry {
            ListEntry::Object(ObjectInfo { key: key @ Key::Namespace(_), .. }) => markers.push(key),
            ListEntry::Object(info) => left.push(info.key),
            other => panic!("complete: the listing shows {other:?}, which the suite did not store"),
        }
    }
    remove(backend, &left).await;
    // The deepest first: a namespace that contains another one cannot be deleted.
    for marker in markers.into_iter().rev() {
        remove(backend, &[marker]).await;
    }
}

/// Removes the quarantined copies that a backend made of a replaced chunk.
async fn remove_replaced(backend: &Arc<dyn Backend>, key: &Key) {
    if let Key::Chunk(digest) = key {
        let replaced = Key::Quarantined(*digest, 0);
        while backend.head(&replaced).await.is_ok() {
            remove(backend, std::slice::from_ref(&replaced)).await;
        }
    }
}

async fn remove(backend: &Arc<dyn Backend>, keys: &[Key]) {
    let removals: Vec<_> = keys.iter().cloned().map(Removal::any).collect();
    let results = must(backend.delete(&removals).await, "delete: the whole call failed");
    assert_eq!(results.len(), keys.len(), "delete: a result for each object");
    for (key, result) in keys.iter().zip(results) {
        let deleted = must(result, "delete: what is there");
        let gone = matches!(deleted, Deleted::Removed | Deleted::Unknown | Deleted::InDoubt);
        assert!(gone, "delete: {key} was {deleted:?}");
    }
}

async fn store(backend: &Arc<dyn Backend>, key: &Key, bytes: impl Into<Bytes>) -> Version {
    let stored = backend.put(key, bytes.into(), PutMode::Replace).await;
    must(stored, "put: always possible under `Replace`")
}

/// Stores a quarantined copy. The ones with smaller numbers exist, and afterwards there is a chunk with this digest or none.
async fn quarantine(backend: &Arc<dyn Backend>, digest: Digest, number: u8, bytes: &[u8]) -> Version {
    let (chunk, copy) = (Key::Chunk(digest), Key::Quarantined(digest, number));
    store(backend, &chunk, bytes.to_vec()).await;
    let copied = must(backend.copy(&chunk, &copy, PutMode::Replace).await, "copy: a chunk to quarantine it");
    // A backend may have moved the chunk.
    must(must(backend.delete(&[Removal::any(chunk)]).await, "delete").remove(0), "delete: what was copied");
    copied
}

/// As many bytes as the shortest blob has, or more, which begin with this text.
fn blob(text: &str) -> Bytes {
    let mut bytes = text.as_bytes().to_vec();
    bytes.resize(bytes.len().max(MIN_BLOB_BYTES), b'.');
    bytes.into()
}

async fn load(backend: &Arc<dyn Backend>, key: &Key) -> Object {
    must(backend.get(key, u64::MAX).await, "read your writes: what was stored is there")
}

/// Checks that the object has this content and version, in all results.
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

/// The keys in a listing, which must have no other entries.
async fn keys(backend: &Arc<dyn Backend>, query: &ListQuery) -> Vec<Key> {
    let only_objects = |entry| match entry {
        ListEntry::Object(info) => info.key,
        other => panic!("complete: the listing of {query:?} shows {other:?}"),
    };
    entries(backend, query).await.into_iter().map(only_objects).collect()
}

/// Runs a task beside this one. It returns its result for the checks, so that only the waiting task panics.
fn spawned<T: Send + 'static>(
    backend: &Arc<dyn Backend>,
    task: impl Future<Output = T> + Send + 'static,
) -> impl Future<Output = T> + Send {
    let (sender, receiver) = oneshot::channel();
    backend.runtime().spawn(Box::pin(async move {
        // Without a waiting task, another check has failed.
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

/// The namespace with this name below the root or another one.
fn namespace(parent: &Namespace, child: &str) -> Namespace {
    parent.child(child).unwrap_or_else(|error| panic!("{child}: {error}"))
}

/// Parses a valid name.
fn name<T: FromStr<Err: fmt::Display>>(text: &str) -> T {
    text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
}
