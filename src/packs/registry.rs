//! State that all handles of one packed store in this process share.
//!
//! Handles of one store lock each other out by pins and digest locks only. A copy that one of them retires must therefore vanish for the
//! writers of all at once, while the digest lock of its chunk is held ([`retirement`](crate::packs::retirement)). A copy of a store has the
//! identity of the original: its handles may be among them. So a handle learns facts only by reading segments of its own store.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use crate::format::larder::segment::name::SegmentName;
use crate::packs::Packs;
use crate::packs::retirement::Retirement;

/// Time for which a listing may lack a segment that was stored. Listings lag by seconds; the collector allows for an hour.
const LONGEST_LAG: Duration = Duration::from_hours(24);

/// The handles of one store.
#[derive(Debug, Default)]
pub(super) struct Handles {
    all: Mutex<Vec<Weak<Packs>>>,
    retirement: Arc<Retirement>,
    /// Segments that they stored, or tried to, and when: a listing may not show them yet.
    stored: Mutex<BTreeMap<SegmentName, Duration>>,
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

    /// Notes a segment before it is stored where listings lag.
    pub(super) fn note_segment(&self, name: SegmentName, now: Duration) {
        self.noted().insert(name, now);
    }

    /// Forgets segments that were deleted.
    pub(super) fn forget_segments<'a>(&self, names: impl IntoIterator<Item = &'a SegmentName>) {
        let mut noted = self.noted();
        for name in names {
            noted.remove(name);
        }
    }

    /// Segments that the handles stored, or tried to, and that a listing may lack.
    pub(super) fn stored(&self, now: Duration) -> BTreeSet<SegmentName> {
        let mut noted = self.noted();
        noted.retain(|_, stored| now.saturating_sub(*stored) < LONGEST_LAG);
        noted.keys().copied().collect()
    }

    fn noted(&self) -> MutexGuard<'_, BTreeMap<SegmentName, Duration>> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use crate::format::larder::pack::name::SessionId;

    use super::*;

    fn segment(n: u32) -> SegmentName {
        SegmentName { session: SessionId::from_bytes([1; 16]), n }
    }

    #[test]
    fn segments_are_expected_in_listings_for_a_day_unless_they_are_deleted() {
        let (handles, hour) = (Handles::default(), Duration::from_hours(1));
        for n in 0..10_000 {
            handles.note_segment(segment(n), hour * n);
            assert!(handles.stored(hour * n).len() <= 24);
        }
        let now = hour * 9_999;
        assert_eq!(handles.stored(now), (9_976..10_000).map(segment).collect());
        handles.forget_segments(&[segment(9_980), segment(1)]);
        assert_eq!(handles.stored(now).len(), 23);
        // The clock of another runtime may be behind.
        assert_eq!(handles.stored(Duration::ZERO).len(), 23);
        assert_eq!(handles.stored(now + hour * 24).len(), 0);
    }
}
