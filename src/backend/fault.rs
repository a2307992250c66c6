//! A backend that goes wrong when told to.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::record::Method;
use crate::backend::{
    Backend, Capabilities, Cursor, Deleted, ListPage, ListQuery, LockGuard, LockMode, LockScope, Object,
    ObjectInfo, PutMode, Removal, Touched, Version,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::rt::Runtime;

/// What goes wrong.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call takes longer.
    Delay(Duration),
    /// The call fails, and nothing is done.
    Fail(ErrorKind),
    /// The call is carried out, and then fails.
    FailAfter(ErrorKind),
    /// A put or delete fails as `Unavailable` now and is carried out after a while (I6). Other calls fail.
    Late(Duration),
}

/// Picks calls by their method and the objects that they name.
type Matches = Box<dyn Fn(Method, &[&Key]) -> bool + Send>;

/// When something goes wrong.
struct Rule {
    fault: Fault,
    matches: Matches,
    /// How many calls that match are let through before.
    skip: usize,
    /// How many are hit then.
    times: usize,
}

#[derive(Default)]
struct State {
    crash_at: Option<u64>,
    rules: Vec<Rule>,
    steps: u64,
}

/// A [`Backend`] that passes calls on, unless a rule says otherwise. Without rules it changes nothing.
pub struct FaultBackend {
    inner: Arc<dyn Backend>,
    state: Mutex<State>,
}

impl FaultBackend {
    /// Passes calls on to `inner`.
    pub fn new(inner: Arc<dyn Backend>) -> Self {
        Self { inner, state: Mutex::default() }
    }

    /// Adds a rule: of the calls that match, the first `skip` go through and the next `times` are hit.
    pub fn rule(
        &self,
        skip: usize,
        times: usize,
        fault: Fault,
        matches: impl Fn(Method, &[&Key]) -> bool + Send + 'static,
    ) {
        self.lock_state().rules.push(Rule { fault, matches: Box::new(matches), skip, times });
    }

    /// From that change on (put, copy or delete, counted from 0) nothing is done any more, and every call fails.
    pub fn crash_at(&self, step: u64) {
        self.lock_state().crash_at = Some(step);
    }

    /// How many changes (puts, copies and deletes) were asked for so far.
    pub fn steps(&self) -> u64 {
        self.lock_state().steps
    }

    /// Lets the call happen, delays it, or says how it goes wrong.
    async fn meet(&self, method: Method, keys: &[&Key]) -> Result<Option<Fault>> {
        let fault = self.decide(method, keys)?;
        match fault {
            Some(Fault::Delay(duration)) => {
                self.inner.runtime().sleep(duration).await;
                Ok(None)
            }
            Some(Fault::Fail(kind)) => Err(Error::new(kind, "do as told by a fault")),
            fault => Ok(fault),
        }
    }

    fn decide(&self, method: Method, keys: &[&Key]) -> Result<Option<Fault>> {
        let mut state = self.lock_state();
        let step = state.steps;
        state.steps += u64::from(matches!(method, Method::Copy | Method::Delete | Method::Put));
        if state.crash_at.is_some_and(|crash| state.steps > crash) {
            state.crash_at = Some(step.min(state.crash_at.unwrap_or(step)));
            return Err(Error::new(ErrorKind::Unavailable, "go on after a crash"));
        }
        for rule in &mut state.rules {
            if rule.times == 0 || !(rule.matches)(method, keys) {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times -= 1;
            return Ok(Some(rule.fault));
        }
        Ok(None)
    }

    fn lock_state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries a change out after a while, with nobody waiting for it.
    fn later(&self, after: Duration, change: impl Future<Output = ()> + Send + 'static) -> Error {
        let runtime = Arc::clone(self.inner.runtime());
        let sleeping = Arc::clone(&runtime);
        runtime.spawn(Box::pin(async move {
            sleeping.sleep(after).await;
            change.await;
        }));
        Error::new(ErrorKind::Unavailable, "do in time")
    }
}

impl fmt::Debug for FaultBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock_state();
        write!(f, "FaultBackend({} rules, {} steps, {:?})", state.rules.len(), state.steps, self.inner)
    }
}

/// What a call answers after it was carried out.
fn answer<T>(fault: Option<Fault>, result: Result<T>) -> Result<T> {
    match fault {
        Some(Fault::FailAfter(kind)) => Err(Error::new(kind, "hear that it was done")),
        Some(Fault::Late(_)) => Err(Error::new(ErrorKind::Unavailable, "do in time")),
        _ => result,
    }
}

#[async_trait]
impl Backend for FaultBackend {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.inner.runtime()
    }

    fn capabilities(&self) -> &Capabilities {
        self.inner.capabilities()
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        let fault = self.meet(Method::Get, &[key]).await?;
        answer(fault, self.inner.get(key, limit).await)
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        let fault = self.meet(Method::GetRange, &[key]).await?;
        answer(fault, self.inner.get_range(key, range).await)
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        let fault = self.meet(Method::Head, &[key]).await?;
        answer(fault, self.inner.head(key).await)
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        let fault = self.meet(Method::Put, &[key]).await?;
        if let Some(Fault::Late(after)) = fault {
            let (inner, key) = (Arc::clone(&self.inner), key.clone());
            return Err(self.later(after, async move {
                // Nobody is left to hear how it went.
                let _ = inner.put(&key, object, mode).await;
            }));
        }
        answer(fault, self.inner.put(key, object, mode).await)
    }

    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        let fault = self.meet(Method::Copy, &[from, to]).await?;
        answer(fault, self.inner.copy(from, to, mode).await)
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let keys: Vec<_> = removals.iter().map(|removal| &removal.key).collect();
        let fault = self.meet(Method::Delete, &keys).await?;
        if let Some(Fault::Late(after)) = fault {
            let (inner, removals) = (Arc::clone(&self.inner), removals.to_vec());
            return Err(self.later(after, async move {
                // As above.
                let _ = inner.delete(&removals).await;
            }));
        }
        answer(fault, self.inner.delete(removals).await)
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        let fault = self.meet(Method::List, &[]).await?;
        answer(fault, self.inner.list(query, cursor).await)
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        let fault = self.meet(Method::Touch, &keys.iter().collect::<Vec<_>>()).await?;
        answer(fault, self.inner.touch(keys).await)
    }

    async fn barrier(&self) -> Result<()> {
        let fault = self.meet(Method::Barrier, &[]).await?;
        answer(fault, self.inner.barrier().await)
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        let fault = self.meet(Method::Lock, &[]).await?;
        answer(fault, self.inner.lock(scope, mode).await)
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}
