//! A backend that records all calls, for tests of the cost of an operation and of the order of its steps.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Housekeeping, LeaseTerm, ListPage, ListQuery,
    LockGuard, LockMode, LockScope, Object, ObjectInfo, Orphan, PendingMoves, PutMode, Removal, Touched,
    Version,
};
use crate::error::{ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::rt::Runtime;

/// A method of [`Backend`], [`Coordination`], [`Housekeeping`] or [`LockGuard`] that can fail.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Method {
    /// [`Coordination::record_moves`].
    RecordMoves,
    /// [`Coordination::pending_moves`].
    PendingMoves,
    /// [`Backend::barrier`].
    Barrier,
    /// [`Coordination::begin_term`].
    BeginTerm,
    /// [`LockGuard::check`].
    Check,
    /// [`Coordination::check_owned`].
    CheckOwned,
    /// [`Coordination::clock`].
    Clock,
    /// [`Coordination::close`].
    Close,
    /// [`Housekeeping::copy`].
    Copy,
    /// [`Backend::delete`].
    Delete,
    /// [`Backend::get`].
    Get,
    /// [`Backend::get_range`].
    GetRange,
    /// [`Housekeeping::get_orphan`].
    GetOrphan,
    /// [`Housekeeping::has_store`].
    HasStore,
    /// [`Backend::head`].
    Head,
    /// [`Housekeeping::head_many`].
    HeadMany,
    /// [`Backend::list`].
    List,
    /// [`Coordination::lock`].
    Lock,
    /// [`Backend::put`].
    Put,
    /// [`Coordination::release`].
    Release,
    /// [`Housekeeping::remove_leftovers`].
    RemoveLeftovers,
    /// [`Housekeeping::orphans`].
    Orphans,
    /// [`Backend::touch`].
    Touch,
}

/// The outcome of a call.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The call failed with an error of this kind. For `delete`, it is the kind of the first object that could not be deleted.
    Failed(ErrorKind),
    /// The call is still running, or its future was dropped.
    Open,
    /// The call succeeded.
    Succeeded,
}

/// A call of a method.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Bytes read from the backend.
    pub bytes_read: u64,
    /// Bytes written to the backend.
    pub bytes_written: u64,
    /// The keys in the arguments, in their order; for `copy`: from, to.
    pub keys: Vec<Key>,
    /// For `lock` and `check`: the scope and the mode of the lock.
    pub lock: Option<(LockScope, LockMode)>,
    /// The method.
    pub method: Method,
    /// The outcome.
    pub outcome: Outcome,
    /// For `list`: the prefix of the query.
    pub prefix: Option<Prefix>,
}

impl Call {
    fn new(method: Method, keys: &[&Key]) -> Self {
        Self {
            bytes_read: 0,
            bytes_written: 0,
            keys: keys.iter().copied().cloned().collect(),
            lock: None,
            method,
            outcome: Outcome::Open,
            prefix: None,
        }
    }
}

/// Number of calls, including those that failed.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Calls of `barrier`.
    pub barriers: u64,
    /// Bytes read from the backend.
    pub bytes_read: u64,
    /// Bytes written to the backend.
    pub bytes_written: u64,
    /// Calls of `copy`.
    pub copies: u64,
    /// Calls of `delete`.
    pub deletes: u64,
    /// Keys in calls of `delete`.
    pub deleted_keys: u64,
    /// Calls of `get` and `get_range`.
    pub gets: u64,
    /// Objects described by `head` and `head_many`.
    pub heads: u64,
    /// Calls of `list`: pages.
    pub lists: u64,
    /// Calls of `lock`.
    pub locks: u64,
    /// Calls of `put`.
    pub puts: u64,
    /// Calls of `touch`.
    pub touches: u64,
    /// Keys in calls of `touch`.
    pub touched_keys: u64,
}

impl Counts {
    fn add(&mut self, call: &Call) {
        let keys = call.keys.len() as u64;
        self.bytes_read += call.bytes_read;
        self.bytes_written += call.bytes_written;
        match call.method {
            Method::Barrier => self.barriers += 1,
            Method::Copy => self.copies += 1,
            Method::Delete => {
                self.deletes += 1;
                self.deleted_keys += keys;
            }
            Method::Get | Method::GetRange => self.gets += 1,
            Method::Head => self.heads += 1,
            Method::HeadMany => self.heads += keys,
            Method::List => self.lists += 1,
            Method::Lock => self.locks += 1,
            Method::Put => self.puts += 1,
            Method::Touch => {
                self.touches += 1;
                self.touched_keys += keys;
            }
            Method::RecordMoves
            | Method::PendingMoves
            | Method::BeginTerm
            | Method::Check
            | Method::CheckOwned
            | Method::Clock
            | Method::Close
            | Method::GetOrphan
            | Method::HasStore
            | Method::Release
            | Method::RemoveLeftovers
            | Method::Orphans => {}
        }
    }
}

/// A [`Backend`] that forwards every call to another one and records it.
#[derive(Debug)]
pub struct RecordingBackend {
    inner: Arc<dyn Backend>,
    record: Arc<Record>,
}

#[derive(Debug, Default)]
struct Record {
    pages: Mutex<Pages>,
}

#[derive(Debug, Default)]
struct Pages {
    calls: Vec<Call>,
    /// Number of calls that were removed by `reset`.
    forgotten: usize,
}

impl RecordingBackend {
    /// Records what is asked of `inner`.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, record: Arc::default() }
    }

    /// The calls so far, in the order in which they began.
    pub fn calls(&self) -> Vec<Call> {
        self.record.pages().calls.clone()
    }

    /// The number of calls so far, by method.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        self.record.pages().calls.iter().for_each(|call| counts.add(call));
        counts
    }

    /// The number of calls of a method so far.
    pub fn count(&self, method: Method) -> usize {
        self.record.pages().calls.iter().filter(|call| call.method == method).count()
    }

    /// Removes all calls so far from the record, also those that are still running.
    pub fn reset(&self) {
        let mut pages = self.record.pages();
        pages.forgotten += pages.calls.len();
        pages.calls.clear();
    }
}

impl Record {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the call, makes it, and records its outcome.
    async fn of<T>(
        &self,
        call: Call,
        made: impl Future<Output = Result<T>> + Send,
        read: impl FnOnce(&T, &mut Call) + Send,
    ) -> Result<T> {
        let number = {
            let mut pages = self.pages();
            pages.calls.push(call);
            pages.forgotten + pages.calls.len() - 1
        };
        let result = made.await;
        let mut pages = self.pages();
        let Some(at) = number.checked_sub(pages.forgotten) else { return result };
        if let Some(call) = pages.calls.get_mut(at) {
            match &result {
                Ok(value) => {
                    call.outcome = Outcome::Succeeded;
                    read(value, call);
                }
                Err(error) => call.outcome = Outcome::Failed(error.kind()),
            }
        }
        drop(pages);
        result
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for RecordingBackend {
    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    fn coordination(&self) -> &dyn Coordination {
        self
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        Some(self)
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        self.record.of(Call::new(Method::Get, &[key]), self.inner.get(key, limit), bytes_read).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        let call = Call::new(Method::GetRange, &[key]);
        self.record.of(call, self.inner.get_range(key, range), bytes_read).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.record.of(Call::new(Method::Head, &[key]), self.inner.head(key), nothing).await
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        let bytes_written = object.len() as u64;
        let call = Call { bytes_written, ..Call::new(Method::Put, &[key]) };
        self.record.of(call, self.inner.put(key, object, mode), nothing).await
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let keys: Vec<_> = removals.iter().map(|removal| &removal.key).collect();
        let call = Call::new(Method::Delete, &keys);
        let first_failure = |results: &Vec<Result<Deleted>>, call: &mut Call| {
            if let Some(error) = results.iter().find_map(|result| result.as_ref().err()) {
                call.outcome = Outcome::Failed(error.kind());
            }
        };
        self.record.of(call, self.inner.delete(removals), first_failure).await
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        let call = Call { prefix: Some(query.prefix.clone()), ..Call::new(Method::List, &[]) };
        self.record.of(call, self.inner.list(query, cursor), nothing).await
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        let call = Call::new(Method::Touch, &keys.iter().collect::<Vec<_>>());
        self.record.of(call, self.inner.touch(keys), nothing).await
    }

    async fn barrier(&self) -> Result<()> {
        self.record.of(Call::new(Method::Barrier, &[]), self.inner.barrier(), nothing).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Coordination for RecordingBackend {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.inner.runtime()
    }

    async fn clock(&self) -> Result<SystemTime> {
        self.record.of(Call::new(Method::Clock, &[]), self.inner.clock(), nothing).await
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        let lock = Some((scope.clone(), mode));
        let call = Call { lock: lock.clone(), ..Call::new(Method::Lock, &[]) };
        let inner = self.record.of(call, self.inner.lock(scope, mode), nothing).await?;
        Ok(Box::new(RecordingGuard { inner, lock, record: Arc::clone(&self.record) }))
    }

    async fn check_owned(&self) -> Result<()> {
        self.record.of(Call::new(Method::CheckOwned, &[]), self.inner.check_owned(), nothing).await
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        self.inner.lease_term()
    }

    async fn begin_term(&self) -> Result<()> {
        self.record.of(Call::new(Method::BeginTerm, &[]), self.inner.begin_term(), nothing).await
    }

    fn in_doubt(&self, key: &Key) -> Option<Duration> {
        self.inner.in_doubt(key)
    }

    async fn record_moves(&self, keys: &[Key]) -> Result<()> {
        let call = Call::new(Method::RecordMoves, &keys.iter().collect::<Vec<_>>());
        self.record.of(call, self.inner.record_moves(keys), nothing).await
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        self.record.of(Call::new(Method::PendingMoves, &[]), self.inner.pending_moves(), nothing).await
    }

    async fn release(&self) -> Result<()> {
        self.record.of(Call::new(Method::Release, &[]), self.inner.release(), nothing).await
    }

    async fn close(&self) -> Result<()> {
        self.record.of(Call::new(Method::Close, &[]), self.inner.close(), nothing).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Housekeeping for RecordingBackend {
    async fn begin_listing(&self, prefix: &Prefix) -> Result<Option<Cursor>> {
        self.inner.begin_listing(prefix).await
    }

    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        let call = Call::new(Method::Copy, &[from, to]);
        self.record.of(call, self.inner.copy(from, to, mode), nothing).await
    }

    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        let call = Call::new(Method::HeadMany, &keys.iter().collect::<Vec<_>>());
        self.record.of(call, self.inner.head_many(keys), nothing).await
    }

    async fn has_store(&self) -> Result<bool> {
        self.record.of(Call::new(Method::HasStore, &[]), self.inner.has_store(), nothing).await
    }

    fn is_new(&self) -> bool {
        self.inner.is_new()
    }

    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        self.record.of(Call::new(Method::Orphans, &[]), self.inner.orphans(foreign), nothing).await
    }

    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        let call = Call::new(Method::GetOrphan, &[]);
        self.record.of(call, self.inner.get_orphan(orphan, limit), nothing).await
    }

    async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64> {
        let call = Call::new(Method::RemoveLeftovers, &[]);
        self.record.of(call, self.inner.remove_leftovers(foreign, age), nothing).await
    }

    async fn keep_reserve(&self) -> Result<()> {
        self.inner.keep_reserve().await
    }
}

#[derive(Debug)]
struct RecordingGuard {
    inner: Box<dyn LockGuard>,
    lock: Option<(LockScope, LockMode)>,
    record: Arc<Record>,
}

#[async_trait]
impl LockGuard for RecordingGuard {
    async fn check(&self) -> Result<()> {
        let call = Call { lock: self.lock.clone(), ..Call::new(Method::Check, &[]) };
        self.record.of(call, self.inner.check(), nothing).await
    }

    fn keeps_processes_out(&self) -> bool {
        self.inner.keeps_processes_out()
    }

    fn oldest_shared(&self) -> Option<SystemTime> {
        self.inner.oldest_shared()
    }

    async fn release_deleted(self: Box<Self>) {
        self.inner.release_deleted().await;
    }
}

fn bytes_read(object: &Object, call: &mut Call) {
    call.bytes_read = object.bytes.len() as u64;
}

fn nothing<T>(_: &T, _: &mut Call) {}
