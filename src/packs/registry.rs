//! What all handles of one packed store in this process share.
//!
//! Handles of one store lock each other out by pins and digest locks only. A copy that one of them retires must therefore vanish for the
//! writers of all at once, while the digest lock of its chunk is held ([`retirement`](crate::packs::retirement)). A copy of a store has the
//! identity of the original: its handles may be among them. So a handle learns facts only by reading segments of its own store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::format::larder::segment::name::SegmentName;
use crate::packs::Packs;
use crate::packs::retirement::Retirement;

/// The handles of one store.
#[derive(Debug, Default)]
pub(super) struct Handles {
    all: Mutex<Vec<Weak<Packs>>>,
    retirement: Arc<Retirement>,
    /// Segments that they stored, or tried to: a listing may not show them yet.
    stored: Mutex<BTreeSet<SegmentName>>,
    /// Number of segments that they stored.
    segments: AtomicU64,
}

impl Handles {
    /// The handles of the store with this identity.
    pub(super) fn of(uuid: &str) -> Arc<Self> {
        static OPEN: Mutex<BTreeMap<String, Weak<Handles>>> = Mutex::new(BTreeMap::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, handles| handles.strong_count() > 0);
        if let Some(handles) = open.get(uuid).and_then(Weak::upgrade) {
            return handles;
        }
        let handles = Arc::<Self>::default();
        open.insert(uuid.to_owned(), Arc::downgrade(&handles));
        handles
    }

    /// Adds a handle.
    pub(super) fn add(&self, packs: &Arc<Packs>) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|packs| packs.strong_count() > 0);
        all.push(Arc::downgrade(packs));
    }

    /// The handles that exist.
    pub(super) fn all(&self) -> Vec<Arc<Packs>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).iter().filter_map(Weak::upgrade).collect()
    }

    /// Number of segments that the handles stored.
    pub(super) fn segments(&self) -> u64 {
        self.segments.load(Ordering::SeqCst)
    }

    /// Counts a segment, and returns the number before.
    pub(super) fn count_segment(&self) -> u64 {
        self.segments.fetch_add(1, Ordering::SeqCst)
    }

    /// The copies that no writer may rely on.
    pub(super) fn retirement(&self) -> &Arc<Retirement> {
        &self.retirement
    }

    /// Notes a segment before it is stored.
    pub(super) fn note_segment(&self, name: SegmentName) {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).insert(name);
    }

    /// Segments that the handles stored, or tried to.
    pub(super) fn stored(&self) -> BTreeSet<SegmentName> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
