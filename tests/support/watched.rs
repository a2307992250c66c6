//! A backend at each step of which a test can do something, and which can be as a bucket is.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use larder::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Housekeeping, LeaseTerm, ListEntry, ListPage,
    ListQuery, LockGuard, LockMode, LockScope, Object, ObjectInfo, Orphan, PendingMoves, PutMode, Removal,
    Touched, Version,
};
use larder::error::Result;
use larder::format::layout::{Key, Prefix};
use larder::internal::record::Method;
use larder::rt::Runtime;

/// Before or after a call.
#[derive(Clone, Debug)]
pub struct Step {
    pub is_over: bool,
    pub keys: Vec<Key>,
    pub method: Method,
}

/// The action of a test at a step. Its own steps, and those of others meanwhile, do not count.
type Hook = Arc<dyn Fn(Step) -> BoxFuture<'static, ()> + Send + Sync>;

/// Passes all calls on.
pub struct Watched {
    capabilities: Capabilities,
    /// Keys that listings do not show.
    hidden: Mutex<HashSet<Key>>,
    hides_what_is_new: AtomicBool,
    hook: Mutex<Option<Hook>>,
    inner: Arc<dyn Backend>,
    is_in_hook: AtomicBool,
    /// Each call takes another while.
    is_slow: AtomicBool,
    me: Weak<Self>,
    /// The time of last use that is reported for all objects.
    times: Mutex<Option<SystemTime>>,
}

impl std::fmt::Debug for Watched {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watched({:?})", self.inner)
    }
}

impl Watched {
    pub fn new(inner: Arc<dyn Backend>) -> Arc<Self> {
        Self::with(inner, |_| {})
    }

    /// As a bucket: it keeps no times of use, and its listings may be behind.
    pub fn bucket(inner: Arc<dyn Backend>) -> Arc<Self> {
        Self::with(inner, |capabilities| {
            capabilities.tracks_last_use = false;
            capabilities.consistent_listing = false;
            capabilities.cheap_presence = false;
        })
    }

    /// As a bucket, or as a directory.
    pub fn of_kind(inner: Arc<dyn Backend>, is_bucket: bool) -> Arc<Self> {
        if is_bucket { Self::bucket(inner) } else { Self::new(inner) }
    }

    /// With other capabilities than those of `inner`.
    pub fn with(inner: Arc<dyn Backend>, change: impl FnOnce(&mut Capabilities)) -> Arc<Self> {
        let mut capabilities = inner.capabilities().clone();
        change(&mut capabilities);
        Arc::new_cyclic(|me| Self {
            capabilities,
            hidden: Mutex::default(),
            hides_what_is_new: AtomicBool::new(false),
            hook: Mutex::default(),
            inner,
            is_in_hook: AtomicBool::new(false),
            is_slow: AtomicBool::new(false),
            me: Weak::clone(me),
            times: Mutex::default(),
        })
    }

    pub fn watch(&self, hook: impl Fn(Step) -> BoxFuture<'static, ()> + Send + Sync + 'static) {
        *self.hook.lock().unwrap() = Some(Arc::new(hook));
    }

    pub fn unwatch(&self) {
        *self.hook.lock().unwrap() = None;
    }

    /// From here on, each call takes a while that the runtime draws.
    pub fn slow_down(&self) {
        self.is_slow.store(true, Ordering::SeqCst);
    }

    /// From here on, listings do not show what is stored.
    pub fn hide_what_is_new(&self) {
        self.hides_what_is_new.store(true, Ordering::SeqCst);
    }

    /// Listings show everything again.
    pub fn show_all(&self) {
        self.hides_what_is_new.store(false, Ordering::SeqCst);
        self.hidden.lock().unwrap().clear();
    }

    /// All objects are said to have been used last at this time.
    pub fn freeze(&self, times: Option<SystemTime>) {
        *self.times.lock().unwrap() = times;
    }

    fn seen(&self, mut info: ObjectInfo) -> ObjectInfo {
        if let Some(time) = *self.times.lock().unwrap() {
            info.last_used = time;
        }
        info
    }

    async fn at(&self, method: Method, keys: &[Key], is_over: bool) {
        let hook = self.hook.lock().unwrap().clone();
        let Some(hook) = hook else { return };
        if self.is_in_hook.swap(true, Ordering::SeqCst) {
            return;
        }
        hook(Step { is_over, keys: keys.to_vec(), method }).await;
        self.is_in_hook.store(false, Ordering::SeqCst);
    }

    async fn step<T>(
        &self,
        method: Method,
        keys: &[Key],
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        self.at(method, keys, false).await;
        if self.is_slow.load(Ordering::SeqCst) {
            let mut drawn = [0];
            self.runtime().fill_random(&mut drawn);
            self.runtime().sleep(Duration::from_micros(drawn[0].into())).await;
        }
        let result = call.await;
        self.at(method, keys, true).await;
        result
    }

    /// A call that stores something, which listings may not show.
    async fn change(
        &self,
        method: Method,
        keys: &[Key],
        call: impl Future<Output = Result<Version>> + Send,
    ) -> Result<Version> {
        let new = keys.last().filter(|_| self.hides_what_is_new.load(Ordering::SeqCst));
        let is_hidden = new.is_some_and(|key| self.hidden.lock().unwrap().insert(key.clone()));
        let stored = self.step(method, keys, call).await;
        if let (Some(key), true, Err(_)) = (new, is_hidden, &stored) {
            self.hidden.lock().unwrap().remove(key);
        }
        stored
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for Watched {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn coordination(&self) -> &dyn Coordination {
        self
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        Some(self)
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        self.step(Method::Get, std::slice::from_ref(key), self.inner.get(key, limit)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        self.step(Method::GetRange, std::slice::from_ref(key), self.inner.get_range(key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let info = self.step(Method::Head, std::slice::from_ref(key), self.inner.head(key)).await?;
        Ok(self.seen(info))
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        self.change(Method::Put, std::slice::from_ref(key), self.inner.put(key, object, mode)).await
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let keys: Vec<_> = removals.iter().map(|removal| removal.key.clone()).collect();
        self.step(Method::Delete, &keys, self.inner.delete(removals)).await
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        let mut page = self.step(Method::List, &[], self.inner.list(query, cursor)).await?;
        let hidden = self.hidden.lock().unwrap().clone();
        let is_hidden = |entry: &ListEntry| match entry {
            ListEntry::Name(key) => hidden.contains(key),
            ListEntry::Object(info) => hidden.contains(&info.key),
            _ => false,
        };
        page.entries.retain(|entry| !is_hidden(entry));
        for entry in &mut page.entries {
            if let ListEntry::Object(info) = entry {
                *info = self.seen(info.clone());
            }
        }
        Ok(page)
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        if !self.capabilities.tracks_last_use {
            return Ok(vec![Touched::Unknown; keys.len()]);
        }
        let touched = self.step(Method::Touch, keys, self.inner.touch(keys)).await?;
        let seen = |touched| match touched {
            Touched::Present(info) => Touched::Present(self.seen(info)),
            touched => touched,
        };
        Ok(touched.into_iter().map(seen).collect())
    }

    async fn barrier(&self) -> Result<()> {
        self.step(Method::Barrier, &[], self.inner.barrier()).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Coordination for Watched {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.inner.runtime()
    }

    async fn clock(&self) -> Result<SystemTime> {
        self.step(Method::Clock, &[], self.inner.clock()).await
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        let guard = self.step(Method::Lock, &[], self.inner.lock(scope, mode)).await?;
        Ok(Box::new(Guard { backend: self.me.upgrade(), guard }))
    }

    async fn check_owned(&self) -> Result<()> {
        self.step(Method::CheckOwned, &[], self.inner.check_owned()).await
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        self.inner.lease_term()
    }

    async fn begin_term(&self) -> Result<()> {
        self.step(Method::BeginTerm, &[], self.inner.begin_term()).await
    }

    fn in_doubt(&self, key: &Key) -> Option<Duration> {
        self.inner.in_doubt(key)
    }

    async fn record_moves(&self, keys: &[Key]) -> Result<()> {
        self.step(Method::RecordMoves, keys, self.inner.record_moves(keys)).await
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        self.step(Method::PendingMoves, &[], self.inner.pending_moves()).await
    }

    async fn release(&self) -> Result<()> {
        self.inner.release().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Housekeeping for Watched {
    async fn begin_listing(&self, prefix: &Prefix) -> Result<Option<Cursor>> {
        self.inner.begin_listing(prefix).await
    }

    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        self.change(Method::Copy, &[from.clone(), to.clone()], self.inner.copy(from, to, mode)).await
    }

    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        let found = self.step(Method::HeadMany, keys, self.inner.head_many(keys)).await?;
        Ok(found.into_iter().map(|found| found.map(|info| self.seen(info))).collect())
    }

    async fn has_store(&self) -> Result<bool> {
        self.step(Method::HasStore, &[], self.inner.has_store()).await
    }

    fn is_new(&self) -> bool {
        self.inner.is_new()
    }

    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        self.step(Method::Orphans, &[], self.inner.orphans(foreign)).await
    }

    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        self.step(Method::GetOrphan, &[], self.inner.get_orphan(orphan, limit)).await
    }

    async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64> {
        self.step(Method::RemoveLeftovers, &[], self.inner.remove_leftovers(foreign, age)).await
    }

    async fn keep_reserve(&self) -> Result<()> {
        self.inner.keep_reserve().await
    }
}

/// A guard whose checks are steps too.
#[derive(Debug)]
struct Guard {
    backend: Option<Arc<Watched>>,
    guard: Box<dyn LockGuard>,
}

#[async_trait]
impl LockGuard for Guard {
    async fn check(&self) -> Result<()> {
        match &self.backend {
            Some(backend) => backend.step(Method::Check, &[], self.guard.check()).await,
            None => self.guard.check().await,
        }
    }

    fn keeps_processes_out(&self) -> bool {
        self.guard.keeps_processes_out()
    }

    fn oldest_shared(&self) -> Option<SystemTime> {
        self.guard.oldest_shared()
    }

    async fn release_deleted(self: Box<Self>) {
        self.guard.release_deleted().await;
    }
}
