//! A backend that fails by rules, for tests of the state after a failure.
//!
//! The rules and the order of the calls decide which call fails, and how. Nothing is random.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;

use crate::backend::late::LateChanges;
use crate::backend::record::Method;
use crate::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Housekeeping, LeaseTerm, ListPage, ListQuery,
    LockGuard, LockMode, LockScope, Object, ObjectInfo, Orphan, PendingMoves, PutMode, Removal, Touched,
    Version,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::{Key, Prefix};
use crate::rt::Runtime;

/// The fault of a call.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The call is executed and an error is returned. If the call is a change, it is executed once more after this time.
    Again(Duration, ErrorKind),
    /// The connection is cut: `Unavailable`. A read was executed and its answer is lost; a put or copy had no effect; of several objects to
    /// delete or touch, the first half was deleted or touched.
    Cut,
    /// The call is delayed, and then succeeds.
    Delay(Duration),
    /// Every other object of a deletion is deleted, and the others have an error. Other calls are not executed, and have the error.
    EveryOther(ErrorKind),
    /// The call is executed, and an error is returned.
    FailAfter(ErrorKind),
    /// The call is not executed, and an error is returned.
    FailBefore(ErrorKind),
    /// An error is returned at once. If the call is a change, it is executed after this time.
    Late(Duration, ErrorKind),
}

/// Returns `true` for the selected keys.
type Selection = dyn Fn(&Key) -> bool + Send + Sync;

/// A fault, and the calls that have it: at first all calls of the method.
#[must_use]
pub struct Rule {
    action: Action,
    first: u64,
    keys: Option<Box<Selection>>,
    last: u64,
    /// Empty for all methods.
    methods: Vec<Method>,
    seen: u64,
}

impl Rule {
    /// A fault of the calls of one method.
    pub fn on(method: Method, action: Action) -> Self {
        Self::on_any(action).or(method)
    }

    /// A fault of the calls of every method, or of several methods with [`or`](Rule::or).
    pub fn on_any(action: Action) -> Self {
        Self { action, first: 1, keys: None, last: u64::MAX, methods: Vec::new(), seen: 0 }
    }

    /// Adds the calls of another method.
    pub fn or(mut self, method: Method) -> Self {
        self.methods.push(method);
        self
    }

    /// Restricts the rule to calls with at least one selected key. Listings, barriers and locks have no keys.
    pub fn keys(mut self, keys: impl Fn(&Key) -> bool + Send + Sync + 'static) -> Self {
        self.keys = Some(Box::new(keys));
        self
    }

    /// Restricts the rule to the `n`-th of the remaining calls; the first is 1.
    pub fn nth(mut self, n: u64) -> Self {
        (self.first, self.last) = (n, n);
        self
    }

    /// Restricts the rule to `count` of the remaining calls, beginning with the `n`-th.
    pub fn from_nth(mut self, n: u64, count: u64) -> Self {
        (self.first, self.last) = (n, n.saturating_add(count.saturating_sub(1)));
        self
    }

    /// Restricts the rule to the first `n` of the remaining calls.
    pub fn first(mut self, n: u64) -> Self {
        (self.first, self.last) = (1, n);
        self
    }

    /// Counts the call if the rule selects it, and returns `true` if the call has the fault.
    fn matches(&mut self, method: Method, keys: &[&Key]) -> bool {
        let meant = (self.methods.is_empty() || self.methods.contains(&method))
            && self.keys.as_ref().is_none_or(|wanted| keys.iter().any(|key| wanted(key)));
        self.seen += u64::from(meant);
        meant && (self.first..=self.last).contains(&self.seen)
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { action, first, keys, last, methods, seen } = self;
        let some_keys = if keys.is_some() { "some keys" } else { "all keys" };
        write!(f, "Rule({methods:?} of {some_keys}, {first}..={last}, {seen} seen: {action:?})")
    }
}

/// A [`Backend`] that forwards calls to another one, except those that have a fault by a rule.
#[derive(Debug)]
pub struct FaultBackend {
    inner: Arc<dyn Backend>,
    late: Arc<LateChanges>,
    script: Arc<Script>,
}

#[derive(Debug, Default)]
struct Script {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    calls: BTreeMap<Method, u64>,
    crash_at: Option<u64>,
    crashed: bool,
    fired: u64,
    /// Set by [`FaultBackend::revoke`].
    revoked: bool,
    rules: Vec<Rule>,
    steps: u64,
}

/// The course of a call that begins.
enum Course {
    Again(Duration, ErrorKind),
    Cut,
    EveryOther(ErrorKind),
    Go,
    GoAndFail(ErrorKind),
    Later(Duration, ErrorKind),
}

impl FaultBackend {
    /// A backend in front of `inner`, without rules.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, late: Arc::default(), script: Arc::default() }
    }

    /// The same faults, calls and crash for another process in front of `inner`.
    pub(crate) fn beside(&self, inner: Arc<dyn Backend>) -> Self {
        Self { inner, late: Arc::clone(&self.late), script: Arc::clone(&self.script) }
    }

    /// Lets a server with other late changes execute those of this backend.
    pub(crate) fn late_changes(mut self, late: &Arc<LateChanges>) -> Self {
        self.late = Arc::clone(late);
        self
    }

    /// Adds a rule. Each rule counts calls by itself; of several rules that select a call, the one that was added first decides.
    pub fn add(&self, rule: Rule) {
        self.script.state().rules.push(rule);
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.script.state().rules.clear();
    }

    /// Crashes at the `n`-th step: that call and all later ones are not executed, and fail as `Unavailable`. The first step is 1. If
    /// the step is over already, the crash is now.
    pub fn crash_at(&self, n: u64) {
        self.script.state().crash_at = Some(n);
    }

    /// Refuses every later call as `Busy`: another process has the store.
    pub fn revoke(&self) {
        self.script.state().revoked = true;
    }

    /// The number of calls so far.
    pub fn calls(&self) -> u64 {
        self.script.state().calls.values().sum()
    }

    /// The number of calls of a method so far.
    pub(crate) fn calls_of(&self, method: Method) -> u64 {
        self.script.state().calls.get(&method).copied().unwrap_or(0)
    }

    /// The number of steps that began: calls of `put`, `copy`, `delete` and `touch`.
    pub fn steps(&self) -> u64 {
        self.script.state().steps
    }

    /// Returns `true` after the crash.
    pub fn has_crashed(&self) -> bool {
        self.script.state().crashed
    }

    /// The number of faults so far. A test that expects faults asserts that it is not 0.
    pub fn fired(&self) -> u64 {
        self.script.state().fired
    }

    async fn admit(&self, method: Method, keys: &[&Key]) -> Result<Course> {
        match self.script.decide(method, keys)? {
            None => Ok(Course::Go),
            Some(Action::Again(after, kind)) => Ok(Course::Again(after, kind)),
            Some(Action::EveryOther(kind)) => Ok(Course::EveryOther(kind)),
            Some(Action::Cut) => Ok(Course::Cut),
            Some(Action::Delay(duration)) => {
                self.inner.runtime().sleep(duration).await;
                self.script.alive()?;
                Ok(Course::Go)
            }
            Some(Action::FailAfter(kind)) => Ok(Course::GoAndFail(kind)),
            Some(Action::FailBefore(kind)) => Err(injected(kind)),
            Some(Action::Late(after, kind)) => Ok(Course::Later(after, kind)),
        }
    }

    /// Makes a call without a lasting effect.
    async fn read<T: Send>(
        &self,
        method: Method,
        keys: &[&Key],
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        match self.admit(method, keys).await? {
            Course::Go => call.await,
            Course::Again(_, kind) | Course::GoAndFail(kind) => {
                call.await?;
                Err(injected(kind))
            }
            Course::Cut => {
                call.await?;
                Err(injected(ErrorKind::Unavailable))
            }
            Course::EveryOther(kind) | Course::Later(_, kind) => Err(injected(kind)),
        }
    }

    /// Makes a call that changes the store. `change` is the whole call, `part` the effect of a call whose connection is cut.
    async fn change<T: Send + 'static>(
        &self,
        method: Method,
        keys: &[&Key],
        change: impl Fn(Arc<dyn Backend>) -> BoxFuture<'static, Result<T>> + Send + 'static,
        part: impl Future<Output = Result<()>> + Send,
    ) -> Result<T> {
        let course = self.admit(method, keys).await?;
        self.follow(course, change, part).await
    }

    /// Makes a change that begins with this course.
    async fn follow<T: Send + 'static>(
        &self,
        course: Course,
        change: impl Fn(Arc<dyn Backend>) -> BoxFuture<'static, Result<T>> + Send + 'static,
        part: impl Future<Output = Result<()>> + Send,
    ) -> Result<T> {
        let inner = Arc::clone(&self.inner);
        if let Course::Again(..) = course {
            change(Arc::clone(&inner)).await?;
        }
        match course {
            Course::Go => change(inner).await,
            Course::GoAndFail(kind) => {
                change(inner).await?;
                Err(injected(kind))
            }
            Course::Cut => {
                part.await?;
                Err(injected(ErrorKind::Unavailable))
            }
            Course::EveryOther(kind) => Err(injected(kind)),
            Course::Again(after, kind) | Course::Later(after, kind) => {
                let (script, runtime) = (Arc::clone(&self.script), Arc::clone(inner.runtime()));
                let late = self.late.add(runtime.monotonic() + after);
                self.inner.runtime().spawn(Box::pin(async move {
                    late.wait(runtime.as_ref()).await;
                    if script.alive().is_ok() {
                        // The caller has its error already.
                        let _ = change(inner).await;
                    }
                    drop(late);
                }));
                Err(injected(kind))
            }
        }
    }
}

impl Script {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alive(&self) -> Result<()> {
        if self.state().crashed { Err(injected(ErrorKind::Unavailable)) } else { Ok(()) }
    }

    fn decide(&self, method: Method, keys: &[&Key]) -> Result<Option<Action>> {
        let mut state = self.state();
        *state.calls.entry(method).or_default() += 1;
        let is_step = matches!(method, Method::Copy | Method::Delete | Method::Put | Method::Touch);
        if !state.crashed && is_step {
            state.steps += 1;
        }
        let steps = state.steps;
        state.crashed |= state.crash_at.is_some_and(|at| at <= steps);
        if state.crashed {
            return Err(injected(ErrorKind::Unavailable));
        }
        if state.revoked {
            return Err(injected(ErrorKind::Busy));
        }
        let mut decided = None;
        for rule in &mut state.rules {
            // Every rule counts the call, also after another one decided.
            if rule.matches(method, keys) && decided.is_none() {
                decided = Some(rule.action);
            }
        }
        state.fired += u64::from(decided.is_some());
        Ok(decided)
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for FaultBackend {
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
        self.read(Method::Get, &[key], self.inner.get(key, limit)).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        self.read(Method::GetRange, &[key], self.inner.get_range(key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.read(Method::Head, &[key], self.inner.head(key)).await
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        let named = key.clone();
        let put = move |inner: Arc<dyn Backend>| -> BoxFuture<'static, _> {
            let (named, object, mode) = (named.clone(), object.clone(), mode.clone());
            Box::pin(async move { inner.put(&named, object, mode).await })
        };
        self.change(Method::Put, &[key], put, async { Ok(()) }).await
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let keys: Vec<_> = removals.iter().map(|removal| &removal.key).collect();
        let (half, _) = removals.split_at(removals.len() / 2);
        let owned = removals.to_vec();
        let delete = move |inner: Arc<dyn Backend>| -> BoxFuture<'static, _> {
            let removals = owned.clone();
            Box::pin(async move { inner.delete(&removals).await })
        };
        let part = async { self.inner.delete(half).await.map(drop) };
        let course = self.admit(Method::Delete, &keys).await?;
        let Course::EveryOther(kind) = course else { return self.follow(course, delete, part).await };
        let mut results = Vec::new();
        for (at, removal) in removals.iter().enumerate() {
            results.push(match at % 2 {
                0 => Err(injected(kind)),
                _ => self.inner.delete(std::slice::from_ref(removal)).await?.remove(0),
            });
        }
        Ok(results)
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        self.read(Method::List, &[], self.inner.list(query, cursor)).await
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        let (half, _) = keys.split_at(keys.len() / 2);
        let named = keys.to_vec();
        let touch = move |inner: Arc<dyn Backend>| -> BoxFuture<'static, _> {
            let named = named.clone();
            Box::pin(async move { inner.touch(&named).await })
        };
        let part = async { self.inner.touch(half).await.map(drop) };
        self.change(Method::Touch, &keys.iter().collect::<Vec<_>>(), touch, part).await
    }

    async fn barrier(&self) -> Result<()> {
        self.read(Method::Barrier, &[], self.inner.barrier()).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Coordination for FaultBackend {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.inner.runtime()
    }

    async fn clock(&self) -> Result<SystemTime> {
        self.read(Method::Clock, &[], self.inner.clock()).await
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        let inner = self.read(Method::Lock, &[], self.inner.lock(scope, mode)).await?;
        let (inner_backend, late) = (Arc::clone(&self.inner), Arc::clone(&self.late));
        let backend = Self { inner: inner_backend, late, script: Arc::clone(&self.script) };
        Ok(Box::new(FaultGuard { backend, inner }))
    }

    async fn check_owned(&self) -> Result<()> {
        self.read(Method::CheckOwned, &[], self.inner.check_owned()).await
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        self.inner.lease_term()
    }

    async fn begin_term(&self) -> Result<()> {
        self.read(Method::BeginTerm, &[], self.inner.begin_term()).await
    }

    fn in_doubt(&self, key: &Key) -> Option<Duration> {
        self.inner.in_doubt(key)
    }

    async fn record_moves(&self, keys: &[Key]) -> Result<()> {
        self.read(Method::RecordMoves, &keys.iter().collect::<Vec<_>>(), self.inner.record_moves(keys)).await
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        self.read(Method::PendingMoves, &[], self.inner.pending_moves()).await
    }

    async fn release(&self) -> Result<()> {
        self.read(Method::Release, &[], self.inner.release()).await
    }

    async fn close(&self) -> Result<()> {
        self.read(Method::Close, &[], self.inner.close()).await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Housekeeping for FaultBackend {
    async fn begin_listing(&self, prefix: &Prefix) -> Result<Option<Cursor>> {
        self.inner.begin_listing(prefix).await
    }

    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        let (source, target) = (from.clone(), to.clone());
        let copy = move |inner: Arc<dyn Backend>| -> BoxFuture<'static, _> {
            let (source, target, mode) = (source.clone(), target.clone(), mode.clone());
            Box::pin(async move { inner.copy(&source, &target, mode).await })
        };
        self.change(Method::Copy, &[from, to], copy, async { Ok(()) }).await
    }

    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        self.read(Method::HeadMany, &keys.iter().collect::<Vec<_>>(), self.inner.head_many(keys)).await
    }

    async fn has_store(&self) -> Result<bool> {
        self.read(Method::HasStore, &[], self.inner.has_store()).await
    }

    fn is_new(&self) -> bool {
        self.inner.is_new()
    }

    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        self.read(Method::Orphans, &[], self.inner.orphans(foreign)).await
    }

    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        self.read(Method::GetOrphan, &[], self.inner.get_orphan(orphan, limit)).await
    }

    async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64> {
        self.read(Method::RemoveLeftovers, &[], self.inner.remove_leftovers(foreign, age)).await
    }

    async fn keep_reserve(&self) -> Result<()> {
        self.inner.keep_reserve().await
    }
}

#[derive(Debug)]
struct FaultGuard {
    backend: FaultBackend,
    inner: Box<dyn LockGuard>,
}

#[async_trait]
impl LockGuard for FaultGuard {
    async fn check(&self) -> Result<()> {
        self.backend.read(Method::Check, &[], self.inner.check()).await
    }

    fn keeps_processes_out(&self) -> bool {
        self.inner.keeps_processes_out()
    }

    fn oldest_shared(&self) -> Option<SystemTime> {
        self.inner.oldest_shared()
    }

    async fn release_deleted(self: Box<Self>) {
        // A crash releases the lock and removes no file.
        if self.backend.script.alive().is_ok() {
            self.inner.release_deleted().await;
        }
    }
}

fn injected(kind: ErrorKind) -> Error {
    Error::new(kind, "use the store").because("a fault injected by a test")
}
