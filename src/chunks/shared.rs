//! State that all handles of one store in a process share: pins, digest locks, moves in progress, recent indexes, pending deletes and
//! suspects.
//!
//! The collector has to know every writer of the process (H4), through any handle, so the state is registered under the identity of the
//! store.
//!
//! # States of a handle
//! The state of a handle is resolved when the store is opened:
//!
//! | state of the handle | begins | its shared state |
//! |---|---|---|
//! | unidentified | a store of PBS is opened that no process of this crate has changed | its own, which has no more than suspects that reads found |
//! | identified | a store with an identity is opened | the one registered under the identity |
//! | identified | an unidentified handle learns the identity that its first change, or another process, gave the store | its own, registered now, or the one that another handle registered first; its suspects move there |
//!
//! A handle never becomes unidentified again. Every operation that pins, locks, moves or deletes chunks
//! [binds](crate::chunks::ChunkStore::bind) the handle before it begins, and the identity becomes visible to the tasks of the handle after
//! it is bound. So the state of an unidentified handle has nothing that another handle must know. Should it be in use when it would have to
//! move, binding fails, and with it the change.
//!
//! # Lifetime
//! A state exists while a handle uses it, and while it has [pending deletes](crate::chunks::in_doubt), for the next handle.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use crate::backend::in_doubt::MAX_REQUEST_TIME;
use crate::chunks::digest_locks::DigestLocks;
use crate::chunks::gc_candidates::KnownCandidates;
use crate::chunks::moves::MovesInProgress;
use crate::chunks::pending::{PendingDeletes, Ticket};
use crate::chunks::pins::Pins;
use crate::chunks::presence::Presence;
use crate::chunks::recent_indexes::RecentIndexes;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::rt::Runtime;

/// States with recent deletes, kept alive.
static WITH_PENDING_DELETES: Mutex<Vec<Arc<SharedState>>> = Mutex::new(Vec::new());

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
    pub(super) candidates: KnownCandidates,
    /// Suspects: chunks found missing or corrupt, and neither stored again nor read and found good since. Handles reach them through
    /// [`Binding::suspects`].
    suspects: Mutex<HashSet<Digest>>,
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

/// The shared state that one handle uses.
#[derive(Debug)]
pub(super) struct Binding {
    /// Set if the identity became known later, and another handle had registered a state under it.
    moved_to: OnceLock<Arc<SharedState>>,
    opened_with: Arc<SharedState>,
    presence: Arc<Presence>,
}

impl Binding {
    /// The state of a handle with these presence records, of the store with this identity or without one.
    pub(super) fn new(identity: Option<&str>, presence: &Arc<Presence>) -> Self {
        let own = Arc::<SharedState>::default();
        let opened_with =
            identity.map_or_else(|| Arc::clone(&own), |uuid| SharedState::registered(uuid, &own));
        opened_with.register(presence);
        Self { moved_to: OnceLock::new(), opened_with, presence: Arc::clone(presence) }
    }

    /// Makes the handle use the state registered under an identity, which may be its own. A later call with the same identity does nothing.
    ///
    /// # Errors
    /// `Internal` if the handle would have to leave a state that is in use.
    pub(super) fn bind(&self, identity: &str) -> Result<()> {
        let registered = SharedState::registered(identity, self.current());
        if Arc::ptr_eq(&registered, self.current()) {
            return Ok(());
        }
        // Under the locks of both sets, so that no task finds a suspect in neither of them.
        let (mut before, mut after) = (self.opened_with.locked_suspects(), registered.locked_suspects());
        if !self.current().is_idle() {
            let error = Error::new(ErrorKind::Internal, "use chunks");
            return Err(error.because("they were in use before the store had an identity"));
        }
        if self.moved_to.set(Arc::clone(&registered)).is_ok() {
            after.extend(before.drain());
            registered.register(&self.presence);
        }
        Ok(())
    }

    pub(super) fn current(&self) -> &Arc<SharedState> {
        self.moved_to.get().unwrap_or(&self.opened_with)
    }

    /// The suspects. They are in no other place.
    pub(super) fn suspects(&self) -> MutexGuard<'_, HashSet<Digest>> {
        loop {
            let current = self.current();
            let suspects = current.locked_suspects();
            // They may have moved before they were locked.
            if Arc::ptr_eq(current, self.current()) {
                return suspects;
            }
        }
    }
}

impl SharedState {
    /// The state registered under an identity: the one of another handle, or else `own`, from now on.
    fn registered(uuid: &str, own: &Arc<Self>) -> Arc<Self> {
        static OPEN: Mutex<BTreeMap<String, Weak<SharedState>>> = Mutex::new(BTreeMap::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        let has_no_pending_delete = |shared: &mut Arc<Self>| shared.deletes.is_empty();
        drop(
            WITH_PENDING_DELETES
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extract_if(.., has_no_pending_delete)
                .collect::<Vec<_>>(),
        );
        open.retain(|_, shared| shared.strong_count() > 0);
        let entry = open.entry(uuid.to_owned()).or_default();
        entry.upgrade().unwrap_or_else(|| {
            *entry = Arc::downgrade(own);
            Arc::clone(own)
        })
    }

    /// Returns `true` if it has nothing that another task must know, beside suspects.
    fn is_idle(&self) -> bool {
        self.deletes.is_empty()
            && self.inherited().is_empty()
            && self.pins.is_idle()
            && self.published.keys().is_empty()
            && self.moves_in_progress.is_idle()
            && self.digest_locks.is_idle()
    }

    fn locked_suspects(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers the presence records of a handle.
    fn register(&self, presence: &Arc<Presence>) {
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
        let mut kept = WITH_PENDING_DELETES.lock().unwrap_or_else(PoisonError::into_inner);
        if !kept.iter().any(|shared| Arc::ptr_eq(shared, self)) {
            kept.push(Arc::clone(self));
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
        mutated!("deletes-of-the-dead-are-forgotten" => return);
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
    pub(super) fn delete_pending_for(&self, digest: &Digest, now: Duration) -> Option<Duration> {
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

#[cfg(all(test, feature = "testing"))]
mod tests {
    use super::*;
    use crate::backend::{Backend, MemoryBackend};
    use crate::chunks::CachePolicy;
    use crate::rt::ThreadRuntime;

    /// The binding of a new handle.
    fn opened(identity: Option<&str>) -> Binding {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new(runtime));
        Binding::new(identity, &Arc::new(Presence::new(backend, None)))
    }

    /// Proves H4.
    #[test]
    fn handles_of_one_store_share_one_state_however_they_learned_its_identity() {
        let uuid = "shared-by-identity";
        let (early, late) = (opened(None), opened(None));
        assert!(!Arc::ptr_eq(early.current(), late.current()));
        early.bind(uuid).unwrap();
        let with_identity = opened(Some(uuid));
        late.bind(uuid).unwrap();
        for handle in [&late, &with_identity] {
            assert!(Arc::ptr_eq(early.current(), handle.current()));
        }
        assert_eq!(early.current().presences().len(), 3);
        late.bind(uuid).unwrap();
        assert!(!Arc::ptr_eq(early.current(), opened(Some("another")).current()));
    }

    /// Proves H99.
    #[test]
    fn a_suspect_that_was_found_before_the_identity_was_known_stays_one() {
        let uuid = "suspects-move";
        let digests = [b"a", b"b"].map(|text| Digest::of(text));
        let (first, second) = (opened(None), opened(None));
        first.suspects().insert(digests[0]);
        second.suspects().insert(digests[1]);
        first.bind(uuid).unwrap();
        second.bind(uuid).unwrap();
        for handle in [&first, &second] {
            assert_eq!(*handle.suspects(), digests.into());
        }
        second.suspects().remove(&digests[0]);
        assert!(!first.suspects().contains(&digests[0]));
    }

    /// Proves H4.
    #[test]
    fn a_handle_does_not_leave_a_state_that_is_in_use() {
        let uuid = "in-use";
        let (first, second, third) = (opened(None), opened(None), opened(None));
        first.bind(uuid).unwrap();
        let pin = second.current().pins.writer(CachePolicy::Populate, None, Arc::default());
        assert_eq!(second.bind(uuid).unwrap_err().kind(), ErrorKind::Internal);
        drop(pin);
        let watch = third.current().moves_in_progress.watch();
        assert_eq!(third.bind(uuid).unwrap_err().kind(), ErrorKind::Internal);
        drop(watch);
        for handle in [&second, &third] {
            handle.bind(uuid).unwrap();
            assert!(Arc::ptr_eq(first.current(), handle.current()));
        }
    }

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
        assert_eq!(shared.delete_pending_for(&digests[0], later), Some(left));
        assert_eq!(shared.delete_pending_for(&digests[1], later), Some(MAX_REQUEST_TIME));
        assert_eq!(shared.delete_pending_for(&digests[0], now + MAX_REQUEST_TIME), None);
        assert!(shared.delete_pending_for(&digests[1], now + MAX_REQUEST_TIME).is_some());
    }
}
