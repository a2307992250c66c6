//! The credentials of a client, kept while they work and replaced before they expire (H153).
//!
//! # States
//! | the kept credentials | a caller |
//! |---|---|
//! | are fresh: they have no expiry, or their refresh time lies ahead | uses them |
//! | are due, with more than a minute left | fetches others, unless another caller does so already: then it uses them |
//! | are urgent, with less than a minute left | fetches others, or waits for the caller that does |
//! | are absent: never fetched, expired, or rejected by a server | as for urgent ones |
//!
//! | a fetch | after it, callers |
//! |---|---|
//! | succeeds | use the new credentials, for ten seconds even if they look expired: the clock of this host may be wrong |
//! | fails, and the kept ones are valid | use those, and fetch again after the backoff |
//! | fails, and there are no valid ones | get the same error, and fetch again after the backoff |
//! | is dropped with its caller | fetch as if it had not begun |
//!
//! The refresh time lies a fifth of the remaining lifetime before the expiry, at most ten minutes, less up to a quarter at random: many hosts
//! that started together do not ask together. The backoff after a failure is random between half of a limit and all of it; the limit is a
//! second, and doubles with each failure up to a minute.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::lock;

use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;
use crate::s3::credentials::{CredentialProvider, Credentials};
use crate::s3::options::RetryOptions;
use crate::s3::retry::{fraction, pause};

/// Number of calls of the provider in one fetch, if it is not available.
const ATTEMPTS: u32 = 3;
/// Maximum time before expiry at which credentials are replaced.
const EARLY: Duration = Duration::from_mins(10);
/// Maximum limit of the backoff after failed fetches.
const MAX_BACKOFF: Duration = Duration::from_mins(1);
/// Time for which new credentials are used whatever their expiry.
const NEW: Duration = Duration::from_secs(10);
/// Time before expiry from which on callers wait for a fetch.
const URGENT: Duration = Duration::from_mins(1);
/// Names of the parts of credentials, for errors.
pub(super) const PARTS: [&str; 3] = ["the access key id", "the secret access key", "the session token"];

/// The cache of credentials. The module docs have its states.
#[derive(Debug)]
pub(in crate::s3) struct Keeper {
    /// Held while a caller fetches.
    fetching: lock::Mutex<()>,
    provider: Arc<dyn CredentialProvider>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failure: Option<Failure>,
    kept: Option<Kept>,
}

/// The failed fetches since the last one that succeeded.
#[derive(Debug)]
struct Failure {
    count: u32,
    error: Error,
    /// End of the backoff, by the monotonic clock.
    until: Duration,
}

#[derive(Clone, Debug)]
struct Kept {
    credentials: Credentials,
    /// Time before expiry at which they are replaced.
    early: Duration,
    /// End of the time in which they are new, by the monotonic clock.
    new_until: Duration,
}

/// A caller's next step.
enum Next {
    /// Fetches. If another caller does so already, uses the given credentials, or waits if there are none.
    Fetch(Option<Credentials>),
    Use(Result<Credentials>),
}

impl Kept {
    fn new(credentials: Credentials, runtime: &dyn Runtime) -> Self {
        let left =
            credentials.expires.map(|expires| expires.duration_since(runtime.now()).unwrap_or_default());
        let early =
            left.map_or(Duration::ZERO, |left| (left / 5).min(EARLY).mul_f64(1.0 - fraction(runtime) / 4.0));
        Self { credentials, early, new_until: runtime.monotonic().saturating_add(NEW) }
    }

    /// Returns `true` if they are valid for more than this time.
    fn lasts(&self, now: SystemTime, time: Duration) -> bool {
        self.credentials.expires.is_none_or(|expires| now + time < expires)
    }
}

impl Keeper {
    pub(in crate::s3) fn new(provider: Arc<dyn CredentialProvider>) -> Self {
        Self { fetching: lock::Mutex::new(()), provider, state: Mutex::default() }
    }

    /// Credentials that worked so far.
    pub(in crate::s3) async fn current(&self, runtime: &dyn Runtime) -> Result<Credentials> {
        let spare = match self.next(runtime) {
            Next::Use(result) => return result,
            Next::Fetch(spare) => spare,
        };
        let _fetching = match (self.fetching.try_lock(), spare) {
            (Some(fetching), _) => fetching,
            (None, Some(spare)) => return Ok(spare),
            (None, None) => self.fetching.lock().await,
        };
        // Another caller may have fetched in between.
        if let Next::Use(result) = self.next(runtime) {
            return result;
        }
        let fetched = self.fetch(runtime).await;
        self.record(fetched, runtime)
    }

    /// A server rejected these as expired. If they are still in use, the next caller fetches others.
    pub(in crate::s3) fn expired(&self, credentials: &Credentials) {
        let mut state = self.state();
        let same =
            |kept: &Kept| Arc::ptr_eq(&kept.credentials.secret_access_key, &credentials.secret_access_key);
        if state.kept.as_ref().is_some_and(same) {
            state.kept = None;
            // The backoff was for a time in which these still worked.
            if let Some(failure) = &mut state.failure {
                failure.until = Duration::ZERO;
            }
        }
    }

    fn next(&self, runtime: &dyn Runtime) -> Next {
        let (now, moment) = (runtime.now(), runtime.monotonic());
        let state = self.state();
        let usable =
            state.kept.as_ref().filter(|kept| moment < kept.new_until || kept.lasts(now, Duration::ZERO));
        let is_fresh = |kept: &&Kept| moment < kept.new_until || kept.lasts(now, kept.early);
        if let Some(kept) = usable.filter(is_fresh) {
            return Next::Use(Ok(kept.credentials.clone()));
        }
        let failure = state.failure.as_ref().filter(|failure| moment < failure.until);
        match (usable, failure) {
            (Some(kept), Some(_)) => Next::Use(Ok(kept.credentials.clone())),
            (None, Some(failure)) => Next::Use(Err(failure.error.clone())),
            (kept, None) => {
                let spare = kept.filter(|kept| kept.lasts(now, URGENT));
                Next::Fetch(spare.map(|kept| kept.credentials.clone()))
            }
        }
    }

    /// Asks the provider, again if it is not available.
    async fn fetch(&self, runtime: &dyn Runtime) -> Result<Credentials> {
        let mut failures = 0;
        loop {
            let provided = self.provider.credentials(runtime).await;
            match provided.and_then(|provided| provided.check(PARTS).map(|()| provided)) {
                Err(error) if error.kind() == ErrorKind::Unavailable && failures + 1 < ATTEMPTS => {
                    failures += 1;
                    let wait = pause(failures, false, None, &RetryOptions::default(), runtime);
                    runtime.sleep(wait.unwrap_or_default()).await;
                }
                Err(error) => return Err(about_credentials(error)),
                Ok(credentials) => return Ok(credentials),
            }
        }
    }

    /// Records the result of a fetch, and returns the result for its caller.
    fn record(&self, fetched: Result<Credentials>, runtime: &dyn Runtime) -> Result<Credentials> {
        let fetched = fetched.map(|credentials| Kept::new(credentials, runtime));
        let mut state = self.state();
        match fetched {
            Ok(kept) => {
                let credentials = kept.credentials.clone();
                *state = State { failure: None, kept: Some(kept) };
                Ok(credentials)
            }
            Err(error) => {
                let count = state.failure.as_ref().map_or(0, |failure| failure.count).saturating_add(1);
                let limit = Duration::from_secs(1 << (count - 1).min(6)).min(MAX_BACKOFF);
                let backoff = limit.mul_f64(0.5 + fraction(runtime) / 2.0);
                let until = runtime.monotonic().saturating_add(backoff);
                state.failure = Some(Failure { count, error: error.clone(), until });
                let valid = state.kept.as_ref().filter(|kept| kept.lasts(runtime.now(), Duration::ZERO));
                valid.map(|kept| kept.credentials.clone()).ok_or(error)
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is one assignment, so a panic elsewhere leaves the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error that says nothing about objects. A client that reported a missing file with credentials as `NotFound` would claim that the object
/// it was asked for does not exist.
fn about_credentials(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Denied | ErrorKind::Internal | ErrorKind::InvalidInput | ErrorKind::Unavailable => error,
        _ => Error::new(ErrorKind::Denied, "get credentials").because(error),
    }
}
