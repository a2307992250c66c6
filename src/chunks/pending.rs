//! Requests without an answer that may still be executed: deletes of objects, and puts of manifests (I6).
//!
//! # States of a request
//! | state | event | next state |
//! |---|---|---|
//! | | it [begins](PendingDeletes::begin), before it is sent | in flight |
//! | in flight | its result proves that it is not executed later | over |
//! | in flight | its result proves nothing, or its [ticket](Ticket) is dropped | in doubt since then |
//! | in doubt | more time has passed than any request takes ([`MAX_REQUEST_TIME`]) | over |
//!
//! A key is pending while any request for it is in flight or in doubt. Each request counts by itself: the answer to one says nothing about
//! another one for the same key, whichever of them began first (H17). A request in flight has no end: its last attempt is yet to be sent. A
//! dropped future drops its ticket, so its requests stay in doubt.
//!
//! Times are those of the monotonic clock, which counts suspension of the host.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::backend::Deleted;
use crate::backend::in_doubt::{MAX_REQUEST_TIME, is_over};
use crate::error::Result;
use crate::rt::Runtime;

/// Deletes that may still be executed, by key.
#[derive(Debug)]
pub(crate) struct PendingDeletes<K>(Pending<K>);

/// Puts that may still be executed, by key.
#[derive(Debug)]
pub(crate) struct PendingPuts<K>(Pending<K>);

#[derive(Debug)]
struct Pending<K>(Mutex<Requests<K>>);

#[derive(Debug)]
struct Requests<K> {
    by_key: HashMap<K, Vec<Request>>,
    /// Number of the last ticket.
    last: u64,
}

#[derive(Clone, Copy, Debug)]
struct Request {
    /// `None` while it is in flight.
    in_doubt_since: Option<Duration>,
    /// Number of its ticket.
    ticket: u64,
}

/// The requests for some keys, one for each mention of a key. Those without a result are in doubt when it is dropped.
#[derive(Debug)]
#[must_use = "without a result, the keys stay pending for half an hour"]
pub(crate) struct Ticket<'a, K: Eq + Hash> {
    keys: Vec<K>,
    number: u64,
    pending: &'a Pending<K>,
    runtime: Arc<dyn Runtime>,
}

impl<K> Default for Pending<K> {
    fn default() -> Self {
        Self(Mutex::new(Requests { by_key: HashMap::new(), last: 0 }))
    }
}

impl<K> Default for PendingDeletes<K> {
    fn default() -> Self {
        Self(Pending::default())
    }
}

impl<K> Default for PendingPuts<K> {
    fn default() -> Self {
        Self(Pending::default())
    }
}

impl<K: Clone + Eq + Hash> PendingDeletes<K> {
    /// Marks keys as pending, before the request that deletes them is sent.
    pub(crate) fn begin<'a>(
        &self,
        keys: impl IntoIterator<Item = &'a K>,
        runtime: &Arc<dyn Runtime>,
    ) -> Ticket<'_, K>
    where
        K: 'a,
    {
        self.0.begin(keys, runtime)
    }

    /// Time for which a request may still delete the object of this key; `None` if none is pending.
    pub(crate) fn remaining(&self, key: &K, now: Duration) -> Option<Duration> {
        self.0.remaining(key, now)
    }

    /// The longest time for which a request may still delete the object of a key that `is_wanted`.
    pub(crate) fn longest_of(&self, is_wanted: impl Fn(&K) -> bool, now: Duration) -> Option<Duration> {
        let pending = self.0.at(now);
        let wanted = pending.by_key.iter().filter(|(key, _)| is_wanted(key));
        wanted.filter_map(|(_, requests)| longest(requests, now)).max()
    }

    /// All pending keys.
    pub(crate) fn keys(&self, now: Duration) -> Vec<K> {
        self.0.at(now).by_key.keys().cloned().collect()
    }

    /// Returns `true` if no key is pending, or was when last asked about.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().by_key.is_empty()
    }
}

impl<K: Clone + Eq + Hash> PendingPuts<K> {
    /// Marks a key as pending, before the put is sent.
    pub(crate) fn begin(&self, key: &K, runtime: &Arc<dyn Runtime>) -> Ticket<'_, K> {
        self.0.begin([key], runtime)
    }

    /// Time for which an object may still appear under this key; `None` if none does.
    pub(crate) fn remaining(&self, key: &K, now: Duration) -> Option<Duration> {
        self.0.remaining(key, now)
    }
}

impl<K: Eq + Hash> Ticket<'_, K> {
    /// Takes the result of the delete of one key. A key that was named twice has two results.
    pub(crate) fn finish(&self, key: &K, result: &Result<Deleted>) {
        self.end(key, is_over(result) || mutated!("delete-in-doubt-is-done"));
    }

    /// Takes the outcome of the request for one key: over, or in doubt from now on.
    pub(crate) fn end(&self, key: &K, is_over: bool) {
        let now = self.runtime.monotonic();
        let mut pending = self.pending.lock();
        let Some(requests) = pending.by_key.get_mut(key) else { return };
        let is_open = |request: &Request| request.ticket == self.number && request.in_doubt_since.is_none();
        let Some(at) = requests.iter().position(is_open) else { return };
        if !is_over {
            requests[at].in_doubt_since = Some(now);
            return;
        }
        // Only this request: another one for the key may still be executed.
        requests.swap_remove(at);
        mutated!("one-answer-ends-every-delete" => requests.clear());
        if requests.is_empty() {
            pending.by_key.remove(key);
        }
    }
}

impl<K: Eq + Hash> Drop for Ticket<'_, K> {
    fn drop(&mut self) {
        for key in &self.keys {
            self.end(key, false);
        }
    }
}

impl<K: Clone + Eq + Hash> Pending<K> {
    fn begin<'a>(&self, keys: impl IntoIterator<Item = &'a K>, runtime: &Arc<dyn Runtime>) -> Ticket<'_, K>
    where
        K: 'a,
    {
        let keys: Vec<K> = keys.into_iter().cloned().collect();
        let mut pending = self.at(runtime.monotonic());
        pending.last += 1;
        let number = pending.last;
        for key in &keys {
            let request = Request { in_doubt_since: None, ticket: number };
            pending.by_key.entry(key.clone()).or_default().push(request);
        }
        Ticket { keys, number, pending: self, runtime: Arc::clone(runtime) }
    }

    fn remaining(&self, key: &K, now: Duration) -> Option<Duration> {
        self.at(now).by_key.get(key).and_then(|requests| longest(requests, now))
    }

    /// The requests that are not over at this time.
    fn at(&self, now: Duration) -> MutexGuard<'_, Requests<K>> {
        let mut pending = self.lock();
        pending.by_key.retain(|_, requests| {
            requests.retain(|request| !request.remaining(now).is_zero());
            !requests.is_empty()
        });
        pending
    }
}

impl<K> Pending<K> {
    fn lock(&self) -> MutexGuard<'_, Requests<K>> {
        // A panic elsewhere leaves the map whole: each change under the lock is complete or makes a key pending for longer.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Request {
    /// Time for which it may still be executed: at least that of a request that is given up now while it is in flight.
    fn remaining(self, now: Duration) -> Duration {
        let since = self.in_doubt_since.unwrap_or(now);
        (since + MAX_REQUEST_TIME).saturating_sub(now)
    }
}

/// The longest time for which one of the requests may still be executed.
fn longest(requests: &[Request], now: Duration) -> Option<Duration> {
    requests.iter().map(|request| request.remaining(now)).max()
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};
    use crate::rt::SimRuntime;

    const MINUTE: Duration = Duration::from_mins(1);

    /// A clock that moves when it is suspended.
    fn clock() -> (Arc<SimRuntime>, Arc<dyn Runtime>) {
        let clock = Arc::new(SimRuntime::new(1));
        let runtime: Arc<dyn Runtime> = Arc::<SimRuntime>::clone(&clock);
        (clock, runtime)
    }

    fn failed(kind: ErrorKind) -> Result<Deleted> {
        Err(Error::new(kind, "delete"))
    }

    /// Proves H17.
    #[test]
    fn a_later_answer_does_not_free_a_key_of_an_earlier_request() {
        let ((_, runtime), pending) = (clock(), PendingDeletes::default());
        let now = runtime.monotonic();
        let first = pending.begin(&["a"], &runtime);
        let second = pending.begin(&["a", "b"], &runtime);
        for key in ["a", "b"] {
            second.finish(&key, &Ok(Deleted::Removed));
        }
        assert!(pending.remaining(&"a", now).is_some(), "the first request has no answer");
        assert_eq!(pending.remaining(&"b", now), None);
        first.finish(&"a", &Ok(Deleted::Removed));
        assert!(pending.is_empty());
    }

    /// Proves H17.
    #[test]
    fn an_answer_to_the_first_request_does_not_free_a_key_of_a_later_one() {
        let ((clock, runtime), pending) = (clock(), PendingDeletes::default());
        let first = pending.begin(&["a"], &runtime);
        clock.suspend(MINUTE);
        let second = pending.begin(&["a"], &runtime);
        first.finish(&"a", &Ok(Deleted::Removed));
        let now = runtime.monotonic();
        assert!(pending.remaining(&"a", now).is_some(), "the second request is in flight");
        drop(second);
        assert_eq!(pending.remaining(&"a", now), Some(MAX_REQUEST_TIME), "and then in doubt");
        assert_eq!(pending.remaining(&"a", now + MAX_REQUEST_TIME), None);
    }

    /// Proves H17.
    #[test]
    fn a_key_is_free_when_every_request_for_it_was_answered() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let ((_, runtime), pending) = (clock(), PendingDeletes::default());
            let mut tickets = [(); 3].map(|()| Some(pending.begin(&["a"], &runtime)));
            for (answered, at) in order.into_iter().enumerate() {
                assert!(!pending.is_empty(), "{answered} of three are answered");
                tickets[at].take().unwrap().finish(&"a", &Ok(Deleted::Removed));
            }
            assert!(pending.is_empty(), "{order:?}");
        }
    }

    /// Proves H17.
    #[test]
    fn a_key_that_a_request_names_twice_is_free_after_two_certain_results() {
        for (results, is_free) in [([true, true], true), ([true, false], false), ([false, true], false)] {
            let ((_, runtime), pending) = (clock(), PendingDeletes::default());
            let ticket = pending.begin(&["a", "a"], &runtime);
            for is_over in results {
                assert!(!pending.is_empty());
                ticket.end(&"a", is_over);
            }
            drop(ticket);
            assert_eq!(pending.is_empty(), is_free, "{results:?}");
        }
    }

    #[test]
    fn only_a_certain_result_frees_a_key() {
        let results = [
            (Ok(Deleted::Removed), true),
            (Ok(Deleted::Absent), true),
            (failed(ErrorKind::Denied), true),
            (Ok(Deleted::InDoubt), false),
            (failed(ErrorKind::Unavailable), false),
            (failed(ErrorKind::Internal), false),
        ];
        for (result, is_free) in results {
            let ((_, runtime), pending) = (clock(), PendingDeletes::default());
            pending.begin(&[1], &runtime).finish(&1, &result);
            assert_eq!(pending.is_empty(), is_free, "{result:?}");
        }
    }

    /// Proves H17: the last attempt of a request may be signed long after the first.
    #[test]
    fn the_time_of_a_request_in_doubt_counts_from_the_moment_it_was_given_up() {
        let ((clock, runtime), pending) = (clock(), PendingDeletes::default());
        let answered = pending.begin(&[1], &runtime);
        let dropped = pending.begin(&[2], &runtime);
        clock.suspend(MAX_REQUEST_TIME + MINUTE);
        let now = runtime.monotonic();
        assert_eq!(pending.keys(now).len(), 2, "requests in flight have no end");
        answered.finish(&1, &failed(ErrorKind::Unavailable));
        drop((answered, dropped));
        let late = (now + MAX_REQUEST_TIME).saturating_sub(Duration::from_secs(1));
        for key in [1, 2] {
            assert_eq!(pending.remaining(&key, late), Some(Duration::from_secs(1)));
        }
        assert_eq!(pending.keys(late + Duration::from_secs(1)), Vec::<i32>::new());
    }

    #[test]
    fn a_dropped_ticket_leaves_its_keys_pending_until_no_request_takes_that_long() {
        let ((_, runtime), pending) = (clock(), PendingDeletes::default());
        let start = runtime.monotonic();
        drop(pending.begin(&[1, 2], &runtime));
        assert_eq!(pending.remaining(&1, start), Some(MAX_REQUEST_TIME));
        let late = (start + MAX_REQUEST_TIME).saturating_sub(Duration::from_secs(1));
        assert_eq!(pending.longest_of(|key| *key == 2, late), Some(Duration::from_secs(1)));
        assert_eq!(pending.keys(late).len(), 2);
        assert_eq!(pending.keys(start + MAX_REQUEST_TIME), Vec::<i32>::new());
        let puts = PendingPuts::default();
        drop(puts.begin(&"a", &runtime));
        assert_eq!(puts.remaining(&"a", late), Some(Duration::from_secs(1)));
        assert_eq!(puts.remaining(&"a", start + MAX_REQUEST_TIME), None);
    }
}
