//! Entries of the cache, in the order of eviction.

use lru::LruCache;

use crate::format::Digest;

/// The entries of a cache with their bytes of disk, as a segmented LRU: what was read again is given up after what came in
/// once, so that one pass over everything does not wash out what is in use (H73).
#[derive(Debug)]
pub(super) struct Index {
    probation: Segment,
    protected: Segment,
    /// Maximum disk bytes of `protected`.
    protected_most: u64,
}

#[derive(Debug)]
struct Segment {
    entries: LruCache<Digest, u64>,
    bytes: u64,
}

impl Index {
    /// An index for a cache with this budget in bytes.
    pub(super) fn new(budget: u64) -> Self {
        Self { probation: Segment::new(), protected: Segment::new(), protected_most: budget / 5 * 4 }
    }

    /// The bytes of disk of all entries.
    pub(super) fn bytes(&self) -> u64 {
        self.probation.bytes + self.protected.bytes
    }

    /// The number of entries.
    pub(super) fn entries(&self) -> usize {
        self.probation.entries.len() + self.protected.entries.len()
    }

    /// The bytes of disk of an entry.
    pub(super) fn size(&self, digest: &Digest) -> Option<u64> {
        self.probation.entries.peek(digest).or_else(|| self.protected.entries.peek(digest)).copied()
    }

    /// A new entry. One of the same digest is replaced.
    pub(super) fn insert(&mut self, digest: Digest, size: u64) {
        self.remove(&digest);
        self.probation.push(digest, size);
    }

    /// Forgets an entry and tells its bytes of disk.
    pub(super) fn remove(&mut self, digest: &Digest) -> Option<u64> {
        self.probation.remove(digest).or_else(|| self.protected.remove(digest))
    }

    /// An entry was read.
    pub(super) fn promote(&mut self, digest: Digest) {
        let Some(size) = self.remove(&digest) else { return };
        self.protected.push(digest, size);
        while self.protected.bytes > self.protected_most {
            let Some((digest, size)) = self.protected.pop_oldest() else { return };
            self.probation.push(digest, size);
        }
    }

    /// An entry that cannot be given up at present goes to the end of the queue, so that others get their turn.
    pub(super) fn put_off(&mut self, digest: &Digest) {
        if let Some(size) = self.remove(digest) {
            self.protected.push(*digest, size);
        }
    }

    /// The entry to be given up next.
    pub(super) fn oldest(&self) -> Option<Digest> {
        self.probation.oldest().or_else(|| self.protected.oldest())
    }
}

impl Segment {
    fn new() -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0 }
    }

    fn push(&mut self, digest: Digest, size: u64) {
        self.entries.put(digest, size);
        self.bytes += size;
    }

    fn remove(&mut self, digest: &Digest) -> Option<u64> {
        let size = self.entries.pop(digest)?;
        self.bytes -= size;
        Some(size)
    }

    fn pop_oldest(&mut self) -> Option<(Digest, u64)> {
        let (digest, size) = self.entries.pop_lru()?;
        self.bytes -= size;
        Some((digest, size))
    }

    fn oldest(&self) -> Option<Digest> {
        self.entries.peek_lru().map(|(digest, _)| *digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(number: u8) -> Digest {
        Digest::from_bytes([number; 32])
    }

    fn order(mut index: Index) -> Vec<u8> {
        let mut order = Vec::new();
        while let Some(oldest) = index.oldest() {
            index.remove(&oldest);
            order.push(oldest.as_bytes()[0]);
        }
        assert_eq!((index.bytes(), index.entries()), (0, 0));
        order
    }

    #[test]
    fn entries_that_were_read_are_evicted_last() {
        let mut index = Index::new(1000);
        (1..=5).for_each(|number| index.insert(digest(number), 100));
        index.promote(digest(2));
        index.promote(digest(1));
        index.promote(digest(2));
        index.promote(digest(9));
        assert_eq!((index.bytes(), index.entries()), (500, 5));
        assert_eq!(order(index), [3, 4, 5, 1, 2]);
    }

    #[test]
    fn at_most_four_fifths_are_protected_and_the_oldest_is_demoted() {
        let mut index = Index::new(500);
        (1..=5).for_each(|number| index.insert(digest(number), 100));
        (1..=5).for_each(|number| index.promote(digest(number)));
        assert_eq!((index.protected.bytes, index.probation.bytes), (400, 100));
        index.insert(digest(6), 100);
        assert_eq!(order(index), [1, 6, 2, 3, 4, 5]);
    }

    #[test]
    fn an_entry_that_is_replaced_is_counted_once() {
        let mut index = Index::new(1000);
        index.insert(digest(1), 100);
        index.promote(digest(1));
        index.insert(digest(1), 200);
        assert_eq!((index.bytes(), index.entries(), index.size(&digest(1))), (200, 1, Some(200)));
    }

    #[test]
    fn a_deferred_entry_is_evicted_last() {
        let mut index = Index::new(1000);
        (1..=3).for_each(|number| index.insert(digest(number), 100));
        index.put_off(&digest(1));
        assert_eq!(order(index), [2, 3, 1]);
    }
}
