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

/// States with recent deletes, kept alive.
static DOUBTFUL: Mutex<Vec<Arc<SharedState>>> = Mutex::new(Vec::new());

#[derive(Debug, Default)]
pub(crate) struct SharedState {
    deletes: PendingDeletes<Digest>,
    inherited: Mutex<Option<Inherited>>,
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

/// First twelve bytes of digests, sorted, that an earlier holder of the store may have been deleting, and until when.
type Inherited = (Vec<[u8; 12]>, Duration);

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
    pub(super) fn begin_deletes(self: &Arc<Self>, digests: &[Digest], now: Duration) -> Ticket<'_, Digest> {
        let mut doubtful = DOUBTFUL.lock().unwrap_or_else(PoisonError::into_inner);
        if !doubtful.iter().any(|shared| Arc::ptr_eq(shared, self)) {
            doubtful.push(Arc::clone(self));
        }
        // Under the lock of the list: it must not drop this state between the two.
        self.deletes.begin(digests, now)
    }

    /// All chunks that a request of this process may still delete.
    pub(super) fn pending_deletes(&self, now: Duration) -> Vec<Digest> {
        self.deletes.keys(now)
    }

    /// Records the chunks that an earlier holder of the store may have been deleting, by their first twelve bytes.
    pub(crate) fn inherit(&self, mut prefixes: Vec<[u8; 12]>, now: Duration) {
        prefixes.sort_unstable();
        *self.inherited() = Some((prefixes, now + MAX_REQUEST_TIME));
    }

    /// Returns `true` if the deletes of an earlier holder are recorded.
    pub(super) fn has_inherited(&self, now: Duration) -> bool {
        self.inherited().as_ref().is_some_and(|(_, until)| *until > now)
    }

    /// Time until no earlier request can delete the chunk; `None` if none can.
    pub(super) fn unsettled_for(&self, digest: &Digest, now: Duration) -> Option<Duration> {
        let own = self.deletes.remaining(digest, now);
        let inherited = self.inherited();
        let inherited = inherited.as_ref().filter(|(prefixes, _)| {
            let prefix: [u8; 12] = std::array::from_fn(|at| digest.as_bytes()[at]);
            prefixes.binary_search(&prefix).is_ok()
        });
        let inherited =
            inherited.and_then(|(_, until)| until.checked_sub(now)).filter(|left| !left.is_zero());
        own.max(inherited)
    }

    fn inherited(&self) -> MutexGuard<'_, Option<Inherited>> {
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
