//! What requests that were given up may still do (I6).
//!
//! | what | until it is certain |
//! |---|---|
//! | the manifest of a snapshot may still arrive | its files stay, and it is not deleted |
//! | an object may still be deleted, once more or at last | nothing is stored under its name that somebody relies on (H17): its snapshot has no successor of the same time, its mark of protection, notes or owner are not set |
//!
//! Both end when more time has passed than any request takes.
//!
//! What is here are the requests of this opening of the store. Of other processes, and of those that are gone, the backend
//! [knows](crate::backend::Coordination::in_doubt) names that may not be reused yet: both are asked by the same question.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::backend::in_doubt::{MAX_REQUEST_TIME, is_certain, is_over};
use crate::backend::{Deleted, Removal};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::format::name::{GroupName, SnapshotName};
use crate::store::StoreInner;

/// What is in doubt, and since when, by the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct InDoubt {
    arriving: Mutex<HashMap<SnapshotName, Duration>>,
    leaving: Mutex<HashMap<Key, Duration>>,
}

fn snapshot_of(key: &Key) -> Option<&SnapshotName> {
    match key {
        Key::Archive(name, _) | Key::ClientLog(name) | Key::Manifest(name) | Key::Protected(name) => {
            Some(name)
        }
        _ => None,
    }
}

fn in_doubt(left: Duration) -> Error {
    let seconds = left.as_secs() + 1;
    let why =
        format!("an earlier request to delete it got no answer, and may still be executed for {seconds} s");
    Error::new(ErrorKind::Busy, "store").because(why)
}

impl StoreInner {
    /// The manifest of this snapshot may still arrive.
    pub(super) fn doubt(&self, name: &SnapshotName) {
        self.arriving().insert(name.clone(), self.runtime().monotonic());
    }

    /// Whether the manifest of this snapshot may still arrive: less time has passed than any request takes.
    pub(super) fn is_doubtful(&self, name: &SnapshotName) -> bool {
        self.arriving().contains_key(name)
    }

    /// Deletes objects, and remembers of which ones that is not over.
    ///
    /// # Errors
    /// Those of [`Backend::delete`](crate::backend::Backend::delete).
    pub(super) async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        // All of them, in case that this future is dropped.
        let mut new = Vec::with_capacity(removals.len());
        {
            let (mut leaving, now) = (self.leaving(), self.runtime().monotonic());
            for Removal { key, .. } in removals {
                new.push(leaving.insert(key.clone(), now).is_none());
            }
        }
        let results = self.backend.delete(removals).await;
        let mut leaving = self.leaving();
        for (at, (Removal { key, .. }, is_new)) in removals.iter().zip(new).enumerate() {
            let is_over = match &results {
                Ok(results) => results.get(at).is_some_and(is_over),
                Err(error) => is_certain(error),
            };
            // An earlier request may outlast this one.
            if is_over && is_new {
                leaving.remove(key);
            }
        }
        drop(leaving);
        results
    }

    /// Refuses to store what a request that was given up may delete.
    ///
    /// # Errors
    /// `Busy` for as long as such a request may be executed.
    pub(super) fn check_settled(&self, key: &Key) -> Result<()> {
        let own = self.leaving().get(key).map(|since| self.left(*since));
        own.max(self.backend.in_doubt(key)).map_or(Ok(()), |left| Err(in_doubt(left).on(key)))
    }

    /// Refuses a snapshot of which a request that was given up may delete something.
    ///
    /// # Errors
    /// `Busy` for as long as such a request may be executed.
    pub(super) fn check_name_settled(&self, name: &SnapshotName) -> Result<()> {
        let own = self
            .leaving()
            .iter()
            .filter(|(key, _)| snapshot_of(key) == Some(name))
            .map(|(_, since)| *since)
            .max();
        let own = own.map(|since| self.left(since));
        let left = own.max(self.backend.in_doubt(&Key::Manifest(name.clone())));
        left.map_or(Ok(()), |left| Err(in_doubt(left).on(name)))
    }

    /// How long a request may still be executed that was given up then.
    fn left(&self, since: Duration) -> Duration {
        (since + MAX_REQUEST_TIME).saturating_sub(self.runtime().monotonic())
    }

    /// The snapshots of a group of which something may still be deleted.
    pub(super) fn leaving_snapshots(&self, group: &GroupName) -> Vec<SnapshotName> {
        let leaving = self.leaving();
        let names = leaving.keys().filter_map(snapshot_of);
        names.filter(|name| name.group() == group).cloned().collect()
    }

    fn arriving(&self) -> MutexGuard<'_, HashMap<SnapshotName, Duration>> {
        self.of_late(&self.doubts.arriving)
    }

    fn leaving(&self) -> MutexGuard<'_, HashMap<Key, Duration>> {
        self.of_late(&self.doubts.leaving)
    }

    /// Those that are not over by now.
    fn of_late<'a, K>(
        &self,
        doubts: &'a Mutex<HashMap<K, Duration>>,
    ) -> MutexGuard<'a, HashMap<K, Duration>> {
        let mut doubts = doubts.lock().unwrap_or_else(PoisonError::into_inner);
        let now = self.runtime().monotonic();
        doubts.retain(|_, since| now.saturating_sub(*since) < MAX_REQUEST_TIME);
        doubts
    }
}
