//! A backend that keeps a record of every call: costs become something that a test can assert.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::{
    Backend, Capabilities, Cursor, Deleted, ListPage, ListQuery, LockGuard, LockMode, LockScope, Object,
    ObjectInfo, PutMode, Removal, Touched, Version,
};
use crate::error::{ErrorKind, Result};
use crate::format::layout::Key;
use crate::rt::Runtime;

/// Which method was called.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// [`Backend::barrier`].
    Barrier,
    /// [`Backend::copy`].
    Copy,
    /// [`Backend::delete`].
    Delete,
    /// [`Backend::get`].
    Get,
    /// [`Backend::get_range`].
    GetRange,
    /// [`Backend::head`].
    Head,
    /// [`Backend::list`]: one page.
    List,
    /// [`Backend::lock`].
    Lock,
    /// [`Backend::put`].
    Put,
    /// [`Backend::touch`].
    Touch,
}

/// A call that was made.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// Bytes of objects that went in or came out.
    pub bytes: u64,
    /// How it failed, if it did.
    pub error: Option<ErrorKind>,
    /// The objects that it named.
    pub keys: Vec<Key>,
    /// Which method.
    pub method: Method,
}

/// A [`Backend`] that passes every call on and keeps a record of it.
#[derive(Debug)]
pub struct RecordingBackend {
    calls: Mutex<Vec<Call>>,
    inner: Arc<dyn Backend>,
}

impl RecordingBackend {
    /// Records the calls to `inner`.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { calls: Mutex::default(), inner }
    }

    /// The calls so far, in the order in which they ended.
    pub fn calls(&self) -> Vec<Call> {
        self.lock_calls().clone()
    }

    /// How many calls of a method there were so far.
    pub fn count(&self, method: Method) -> usize {
        self.lock_calls().iter().filter(|call| call.method == method).count()
    }

    /// Forgets the calls so far.
    pub fn reset(&self) {
        self.lock_calls().clear();
    }

    fn note<T>(&self, method: Method, keys: &[&Key], bytes: u64, result: Result<T>) -> Result<T> {
        let error = result.as_ref().err().map(crate::error::Error::kind);
        let keys = keys.iter().copied().cloned().collect();
        self.lock_calls().push(Call { bytes, error, keys, method });
        result
    }

    fn lock_calls(&self) -> MutexGuard<'_, Vec<Call>> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn length(read: &Result<Object>) -> u64 {
    read.as_ref().map_or(0, |object| object.bytes.len() as u64)
}

#[async_trait]
impl Backend for RecordingBackend {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.inner.runtime()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        let read = self.inner.get(key, limit).await;
        self.note(Method::Get, &[key], length(&read), read)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        let read = self.inner.get_range(key, range).await;
        self.note(Method::GetRange, &[key], length(&read), read)
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let found = self.inner.head(key).await;
        self.note(Method::Head, &[key], 0, found)
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        let bytes = object.len() as u64;
        let stored = self.inner.put(key, object, mode).await;
        self.note(Method::Put, &[key], bytes, stored)
    }

    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        let copied = self.inner.copy(from, to, mode).await;
        self.note(Method::Copy, &[from, to], 0, copied)
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let keys: Vec<_> = removals.iter().map(|removal| &removal.key).collect();
        let deleted = self.inner.delete(removals).await;
        self.note(Method::Delete, &keys, 0, deleted)
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        let page = self.inner.list(query, cursor).await;
        self.note(Method::List, &[], 0, page)
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        let touched = self.inner.touch(keys).await;
        self.note(Method::Touch, &keys.iter().collect::<Vec<_>>(), 0, touched)
    }

    async fn barrier(&self) -> Result<()> {
        let passed = self.inner.barrier().await;
        self.note(Method::Barrier, &[], 0, passed)
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        let taken = self.inner.lock(scope, mode).await;
        self.note(Method::Lock, &[], 0, taken)
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
