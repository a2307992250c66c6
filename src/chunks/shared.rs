//! State that all handles of one store in a process share: pins, digest locks, moves in progress, recent indexes, pending deletes and
//! suspects.
//!
//! The collector has to know every writer of the process (H4), through any handle,
//! so the state is found by the identity of the store.
//!
//! # Pending deletes
//! A delete request without an answer may be executed later (H17). Until that is impossible, the chunk counts as
//! missing: a writer that needs it stores it, and before it publishes an index it waits for the end of that time and checks
//! that the chunk exists. The same holds for chunks that an earlier holder of the store may have been deleting.
//!
//! So state with pending deletes outlives the last handle of the store, for the next one.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::backend::in_doubt::MAX_REQUEST_TIME;
use crate::chunks::digest_locks::DigestLocks;
use crate::chunks::moves::MovesInProgress;
use crate::chunks::pending::{PendingDeletes, Ticket};
use crate::chunks::pins::Pins;
use crate::chunks::presence::Presence;
use crate::chunks::recent_indexes::RecentIndexes;
use crate::chunks::reuse::KnownCandidates;
use crate::format::Digest;
use crate::rt::Runtime;

/// States with recent deletes, kept alive.
static DOUBTFUL: Mutex<Vec<Arc<SharedState>>> = Mutex::new(Vec::new());

#[derive(Debug, Default)]
pub(crate) struct SharedState {
    deletes: PendingDeletes<Digest>,
    inherited: Mutex<Vec<Inherited>>,
    pub(crate) pins: Arc<Pins>,
    pub(crate) published: RecentIndexes,
    /// The presence records of each handle.
    presences: Mutex<Vec<Weak<Presence>>>,
    pub(crate) moves_in_progress: Arc<MovesInProgress>,
    pub(crate) digest_locks: DigestLocks,
    pub(super) sightings: KnownCandidates,
    /// Suspects: chunks found missing or corrupt, and not good since.
    pub(super) suspects: Mutex<HashSet<Digest>>,
}

/// Chunks that an earlier holder of the store may have been deleting.
#[derive(Debug)]
struct Inherited {
    /// First twelve bytes of their digests, sorted.
    prefixes: Vec<[u8; 12]>,
    /// First epoch of the terms in which they were read.
    since: u64,
    until: Duration,
}

impl SharedState {
    /// The state of the store with this identity.
    pub(crate) fn of(uuid: &str) -> Arc<Self> {
        static OPEN: Mutex<BTreeMap<String, Weak<SharedState>>> = Mutex::new(BTreeMap::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let settled = |shared: &mut Arc<Self>| shared.deletes.is_empty();
        drop(
            DOUBTFUL
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extract_if(.., settled)
                .collect::<Vec<_>>(),
        );
        open.retain(|_, shared| shared.strong_count() > 0);
        let entry = open.entry(uuid.to_owned()).or_default();
        entry.upgrade().unwrap_or_else(|| {
            let shared = Arc::<Self>::default();
            *entry = Arc::downgrade(&shared);
            shared
        })
    }

    /// Registers the presence records of a handle.
    pub(super) fn register(&self, presence: &Arc<Presence>) {
        let mut presences = self.presences.lock().unwrap_or_else(PoisonError::into_inner);
        presences.retain(|presence| presence.strong_count() > 0);
        presences.push(Arc::downgrade(presence));
    }

    /// The presence records of all handles.
    pub(super) fn presences(&self) -> Vec<Arc<Presence>> {
        let presences = self.presences.lock().unwrap_or_else(PoisonError::into_inner);
        presences.iter().filter_map(Weak::upgrade).collect()
    }

    /// Marks chunks as pending deletes, before the request that deletes them is sent.
    pub(super) fn begin_deletes(
        self: &Arc<Self>,
        digests: &[Digest],
        runtime: &Arc<dyn Runtime>,
    ) -> Ticket<'_, Digest> {
        let mut doubtful = DOUBTFUL.lock().unwrap_or_else(PoisonError::into_inner);
        if !doubtful.iter().any(|shared| Arc::ptr_eq(shared, self)) {
            doubtful.push(Arc::clone(self));
        }
        // Under the lock of the list: it must not drop this state between the two.
        self.deletes.begin(digests, runtime)
    }

    /// All chunks that a request of this process may still delete.
    pub(super) fn pending_deletes(&self, now: Duration) -> Vec<Digest> {
        self.deletes.keys(now)
    }

    /// Records the chunks that an earlier holder of the store may have been deleting, by their first twelve bytes. `since` is the first
    /// epoch of the terms in which they were read.
    pub(crate) fn inherit(&self, mut prefixes: Vec<[u8; 12]>, since: u64, now: Duration) {
        prefixes.sort_unstable();
        let mut inherited = self.inherited();
        inherited.retain(|earlier| earlier.until > now);
        // Beside the earlier ones: each holder has requests of its own.
        inherited.push(Inherited { prefixes, since, until: now + MAX_REQUEST_TIME });
    }

    /// Returns `true` if the deletes of the holder before these terms are recorded.
    pub(super) fn has_inherited(&self, since: u64, now: Duration) -> bool {
        self.inherited().iter().any(|inherited| inherited.since == since && inherited.until > now)
    }

    /// Time until no earlier request can delete the chunk; `None` if none can.
    pub(super) fn unsettled_for(&self, digest: &Digest, now: Duration) -> Option<Duration> {
        let own = self.deletes.remaining(digest, now);
        let prefix: [u8; 12] = std::array::from_fn(|at| digest.as_bytes()[at]);
        let inherited = self.inherited();
        let named = inherited.iter().filter(|earlier| earlier.prefixes.binary_search(&prefix).is_ok());
        let left = named.filter_map(|earlier| earlier.until.checked_sub(now)).max();
        own.max(left.filter(|left| !left.is_zero()))
    }

    fn inherited(&self) -> MutexGuard<'_, Vec<Inherited>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves H17.
    #[test]
    fn the_deletes_of_one_earlier_holder_do_not_hide_those_of_another() {
        let (shared, now) = (SharedState::default(), Duration::from_secs(100));
        let later = now + Duration::from_mins(1);
        let digests = [b"a", b"b"].map(|text| Digest::of(text));
        let prefix = |digest: &Digest| std::array::from_fn::<_, 12, _>(|at| digest.as_bytes()[at]);
        shared.inherit(vec![prefix(&digests[0])], 1, now);
        assert!(shared.has_inherited(1, later));
        assert!(!shared.has_inherited(2, later), "another process held the store in between");
        shared.inherit(vec![prefix(&digests[1])], 2, later);
        let left = MAX_REQUEST_TIME.saturating_sub(Duration::from_mins(1));
        assert_eq!(shared.unsettled_for(&digests[0], later), Some(left));
        assert_eq!(shared.unsettled_for(&digests[1], later), Some(MAX_REQUEST_TIME));
        assert_eq!(shared.unsettled_for(&digests[0], now + MAX_REQUEST_TIME), None);
        assert!(shared.unsettled_for(&digests[1], now + MAX_REQUEST_TIME).is_some());
    }
}
