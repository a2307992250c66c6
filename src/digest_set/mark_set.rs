//! Sets of chunks, at eight bytes each.
//!
//! A chunk is known by the first eight bytes of its digest. So a set may hold a chunk that nobody put into it, one of 2^40 times where it
//! has 16 million; it never lacks one that somebody did. Whoever keeps what is in the set errs towards keeping, and what the set
//! says that nobody listed is certainly not there.
//!
//! ```text
//! insert → recent, unsorted ── full ──▶ sorted, what is new of it merged into the set from behind, in place
//! ```
//! What is recent is at most an eighth of the set, or [`LEAST_RECENT`]; so a set of n chunks takes 9 n bytes while it is made, and 8 n then.

use std::sync::Arc;

use crate::format::Digest;

/// How many are collected before they are sorted, at least.
const LEAST_RECENT: usize = 64 << 10;

/// A set that is being made.
#[derive(Debug, Default)]
pub(crate) struct MarkSetBuilder {
    recent: Vec<u64>,
    sorted: Vec<u64>,
}

/// A set that is complete.
#[derive(Clone, Debug, Default)]
pub(crate) struct MarkSet {
    sorted: Arc<Vec<u64>>,
}

/// What a set knows of a digest.
pub(crate) fn mark_of(digest: &Digest) -> u64 {
    // In the order of digests: the first byte counts most.
    digest.as_bytes()[..8].iter().fold(0, |mark, byte| mark << 8 | u64::from(*byte))
}

impl MarkSetBuilder {
    pub(crate) fn insert(&mut self, mark: u64) {
        self.recent.push(mark);
        if self.recent.len() >= LEAST_RECENT.max(self.sorted.len() / 8) {
            self.merge();
        }
    }

    pub(crate) fn finish(mut self) -> MarkSet {
        self.merge();
        self.sorted.shrink_to_fit();
        MarkSet { sorted: Arc::new(self.sorted) }
    }

    fn merge(&mut self) {
        self.recent.sort_unstable();
        self.recent.dedup();
        let mut at = 0;
        let sorted = &self.sorted;
        self.recent.retain(|mark| {
            at += sorted[at..].partition_point(|known| known < mark);
            sorted.get(at) != Some(mark)
        });
        // From behind, so that nothing is overwritten that is still to be moved.
        let mut left = self.sorted.len();
        self.sorted.reserve_exact(self.recent.len());
        self.sorted.resize(left + self.recent.len(), 0);
        let mut to = self.sorted.len();
        while let Some(mark) = self.recent.pop() {
            while left > 0 && self.sorted[left - 1] > mark {
                to -= 1;
                left -= 1;
                self.sorted[to] = self.sorted[left];
            }
            to -= 1;
            self.sorted[to] = mark;
        }
    }
}

impl MarkSet {
    pub(crate) fn len(&self) -> usize {
        self.sorted.len()
    }

    pub(crate) fn contains(&self, mark: u64) -> bool {
        self.sorted.binary_search(&mark).is_ok()
    }

    /// Those of a shard, in order.
    pub(crate) fn within(&self, shard: &Shard) -> &[u64] {
        let start = self.sorted.partition_point(|mark| *mark < shard.first);
        let end = self.sorted.partition_point(|mark| *mark <= shard.last);
        &self.sorted[start..end]
    }
}

/// A part of the space of digests, by their first eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Shard {
    /// So many shards of the same size, at most 65,536, that are the whole space, in order.
    pub(crate) fn all(count: u64) -> Vec<Self> {
        let count = count.clamp(1, 1 << 16);
        // Whole directories, each to one shard.
        let bound = |number: u64| ((number << 16) / count) << 48;
        let last = |number| if number == count { u64::MAX } else { bound(number) - 1 };
        (0..count).map(|number| Self { first: bound(number), last: last(number + 1) }).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn shards_cover_the_whole_space_without_gaps() {
        for count in [0, 1, 2, 3, 16, 17, 1000, 1 << 20] {
            let shards = Shard::all(count);
            assert_eq!(shards.len() as u64, count.clamp(1, 65_536));
            assert_eq!((shards[0].first, shards[shards.len() - 1].last), (0, u64::MAX));
            for pair in shards.windows(2) {
                assert_eq!(pair[0].last + 1, pair[1].first);
            }
        }
    }

    proptest! {
        #[test]
        fn a_set_has_what_was_put_into_it(marks in prop::collection::vec(0_u64..5000, 0..5000), every in 1_usize..500) {
            let mut builder = MarkSetBuilder::default();
            for (number, mark) in marks.iter().enumerate() {
                builder.insert(*mark);
                if number % every == 0 {
                    builder.merge();
                }
            }
            let set = builder.finish();
            let model: BTreeSet<_> = marks.into_iter().collect();
            prop_assert_eq!(&*set.sorted, &model.iter().copied().collect::<Vec<_>>());
            prop_assert!((0..5000).all(|mark| set.contains(mark) == model.contains(&mark)));
            let shard = Shard { first: 100, last: 2000 };
            prop_assert_eq!(set.within(&shard), &model.range(100..=2000).copied().collect::<Vec<_>>());
        }
    }
}
