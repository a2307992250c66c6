//! Requests without an answer that may still be executed: deletes of objects, and puts of manifests (I6).
//!
//! # States of a key
//! | state | event | next state |
//! |---|---|---|
//! | free | a delete [begins](PendingDeletes::begin) | pending, and the [ticket](Ticket) is the first |
//! | pending | another delete begins | pending for longer; its ticket is not the first |
//! | pending | the first ticket [finishes](Ticket::finish) with a certain result | free |
//! | pending | any other ticket finishes, or a result is not certain, or a ticket is dropped | pending |
//! | pending | more time has passed than any request takes ([`MAX_REQUEST_TIME`]) | free |
//!
//! Only the first ticket may free a key: when a later request is answered, an earlier one without an answer may still be executed
//! (H17). A dropped future drops its ticket, so its deletes stay pending.
//!
//! Times are those of the monotonic clock, which counts suspension of the host.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::backend::Deleted;
use crate::backend::in_doubt::{MAX_REQUEST_TIME, is_over};
use crate::error::Result;

/// Deletes that may still be executed, by key.
#[derive(Debug)]
pub(crate) struct PendingDeletes<K>(Pending<K>);

/// Puts that may still be executed, by key.
#[derive(Debug)]
pub(crate) struct PendingPuts<K>(Pending<K>);

/// Keys, and the time of the latest request for each.
#[derive(Debug)]
struct Pending<K>(Mutex<HashMap<K, Duration>>);

/// One delete request for some keys. Dropping it without [`finish`](Self::finish) leaves them pending.
#[derive(Debug)]
#[must_use = "without `finish`, the keys stay pending for half an hour"]
pub(crate) struct Ticket<'a, K> {
    /// Keys of which no earlier request is pending.
    first_for: HashSet<K>,
    pending: &'a Pending<K>,
}

impl<K> Default for Pending<K> {
    fn default() -> Self {
        Self(Mutex::default())
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
    pub(crate) fn begin<'a>(&self, keys: impl IntoIterator<Item = &'a K>, now: Duration) -> Ticket<'_, K>
    where
        K: 'a,
    {
        let mut pending = self.0.at(now);
        let is_first = |key: &&K| pending.insert((*key).clone(), now).is_none();
        let first_for = keys.into_iter().filter(is_first).cloned().collect();
        Ticket { first_for, pending: &self.0 }
    }

    /// Time for which a request may still delete the object of this key; `None` if none is pending.
    pub(crate) fn remaining(&self, key: &K, now: Duration) -> Option<Duration> {
        self.0.at(now).get(key).map(|since| left(*since, now))
    }

    /// The longest time for which a request may still delete the object of a key that `is_wanted`.
    pub(crate) fn longest_of(&self, is_wanted: impl Fn(&K) -> bool, now: Duration) -> Option<Duration> {
        let pending = self.0.at(now);
        pending.iter().filter(|(key, _)| is_wanted(key)).map(|(_, since)| left(*since, now)).max()
    }

    /// All pending keys.
    pub(crate) fn keys(&self, now: Duration) -> Vec<K> {
        self.0.at(now).keys().cloned().collect()
    }

    /// Returns `true` if no key is pending, or was when last asked about.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }
}

impl<K: Eq + Hash> PendingPuts<K> {
    /// Marks a key as pending: its put got no answer.
    pub(crate) fn insert(&self, key: K, now: Duration) {
        self.0.at(now).insert(key, now);
    }

    /// Returns `true` if an object may still appear under this key.
    pub(crate) fn contains(&self, key: &K, now: Duration) -> bool {
        self.0.at(now).contains_key(key)
    }
}

impl<K: Eq + Hash> Ticket<'_, K> {
    /// Takes the result of the request for one key. If a request names a key twice, only the first result counts.
    pub(crate) fn finish(&mut self, key: &K, result: &Result<Deleted>) {
        let is_first = self.first_for.remove(key);
        if is_first && is_over(result) {
            self.pending.lock().remove(key);
        }
    }
}

impl<K: Eq + Hash> Pending<K> {
    /// The keys that are pending at this time.
    fn at(&self, now: Duration) -> MutexGuard<'_, HashMap<K, Duration>> {
        let mut pending = self.lock();
        pending.retain(|_, since| !left(*since, now).is_zero());
        pending
    }
}

impl<K> Pending<K> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Duration>> {
        // Each change is one insertion or removal, so a panic elsewhere leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Time for which a request that began at `since` may still be executed.
fn left(since: Duration, now: Duration) -> Duration {
    (since + MAX_REQUEST_TIME).saturating_sub(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, ErrorKind};

    const START: Duration = Duration::from_secs(100);

    fn failed(kind: ErrorKind) -> Result<Deleted> {
        Err(Error::new(kind, "delete"))
    }

    /// Proves H17.
    #[test]
    fn a_later_answer_does_not_free_a_key_of_an_earlier_request() {
        let pending = PendingDeletes::default();
        let mut first = pending.begin(&["a"], START);
        let mut second = pending.begin(&["a", "b"], START);
        for key in ["a", "b"] {
            second.finish(&key, &Ok(Deleted::Removed));
        }
        assert!(pending.remaining(&"a", START).is_some(), "the first request has no answer");
        assert_eq!(pending.remaining(&"b", START), None);
        first.finish(&"a", &Ok(Deleted::Removed));
        assert!(pending.is_empty());
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
            let pending = PendingDeletes::default();
            pending.begin(&[1], START).finish(&1, &result);
            assert_eq!(pending.is_empty(), is_free, "{result:?}");
        }
    }

    #[test]
    fn a_dropped_ticket_leaves_its_keys_pending_until_no_request_takes_that_long() {
        let pending = PendingDeletes::default();
        drop(pending.begin(&[1, 2], START));
        assert_eq!(pending.remaining(&1, START), Some(MAX_REQUEST_TIME));
        let late = (START + MAX_REQUEST_TIME).saturating_sub(Duration::from_secs(1));
        assert_eq!(pending.longest_of(|key| *key == 2, late), Some(Duration::from_secs(1)));
        assert_eq!(pending.keys(late).len(), 2);
        assert_eq!(pending.keys(START + MAX_REQUEST_TIME), Vec::<i32>::new());
        let puts = PendingPuts::default();
        puts.insert("a", START);
        assert!(puts.contains(&"a", late));
        assert!(!puts.contains(&"a", START + MAX_REQUEST_TIME));
    }
}
