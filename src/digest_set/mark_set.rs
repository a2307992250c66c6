//! Sets of chunks at eight bytes each, for marking.
//!
//! The first eight bytes of its digest stand for a chunk. So a set may contain a chunk that was never inserted, one of 2^40 if it
//! has 16 million chunks, but it never lacks one that was. A collector that keeps the chunks in the set errs towards keeping, and a chunk
//! that is missing from a set of listed chunks is certainly not listed.
//!
//! New chunks are collected, at most an eighth of the set or [`MIN_RECENT`], before they are merged. A set of n chunks takes 9 n bytes
//! while it is built, and 8 n after that.

use std::sync::Arc;

use crate::digest_set::sorted_set::SortedSet;
use crate::format::Digest;

/// Minimum number of new chunks in a merge.
const MIN_RECENT: usize = 64 << 10;

/// A set that is being built.
#[derive(Debug, Default)]
pub(crate) struct MarkSetBuilder {
    recent: Vec<u64>,
    sorted: SortedSet<u64>,
}

/// A complete set.
#[derive(Clone, Debug, Default)]
pub(crate) struct MarkSet {
    sorted: Arc<SortedSet<u64>>,
}

/// First eight bytes of a digest, in the order of digests.
pub(crate) fn mark_of(digest: &Digest) -> u64 {
    digest.mark()
}

impl MarkSetBuilder {
    pub(crate) fn insert(&mut self, mark: u64) {
        self.recent.push(mark);
        if self.recent.len() >= MIN_RECENT.max(self.sorted.len() / 8) {
            self.merge();
        }
    }

    pub(crate) fn finish(mut self) -> MarkSet {
        self.merge();
        self.sorted.shrink_to_fit();
        MarkSet { sorted: Arc::new(self.sorted) }
    }

    fn merge(&mut self) {
        self.sorted.merge(&mut self.recent);
    }
}

impl MarkSet {
    pub(crate) fn len(&self) -> usize {
        self.sorted.len()
    }

    pub(crate) fn contains(&self, mark: u64) -> bool {
        self.sorted.contains(&mark)
    }

    /// Marks of a shard, in order.
    pub(crate) fn within(&self, shard: &Shard) -> &[u64] {
        let marks = self.sorted.as_slice();
        let start = marks.partition_point(|mark| *mark < shard.first);
        let end = marks.partition_point(|mark| *mark <= shard.last);
        &marks[start..end]
    }
}

/// A part of the space of digests, by their first eight bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shard {
    pub(crate) first: u64,
    pub(crate) last: u64,
}

impl Shard {
    /// Divides the space of digests into shards of the same size, at most 65,536, in order.
    pub(crate) fn all(count: u64) -> Vec<Self> {
        let count = count.clamp(1, 1 << 16);
        // A shard has whole directories.
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
        fn a_set_contains_exactly_its_inserted_digests(marks in prop::collection::vec(0_u64..5000, 0..5000), every in 1_usize..500) {
            let mut builder = MarkSetBuilder::default();
            for (number, mark) in marks.iter().enumerate() {
                builder.insert(*mark);
                if number % every == 0 {
                    builder.merge();
                }
            }
            let set = builder.finish();
            let model: BTreeSet<_> = marks.into_iter().collect();
            prop_assert_eq!(set.sorted.as_slice(), &model.iter().copied().collect::<Vec<_>>());
            prop_assert!((0..5000).all(|mark| set.contains(mark) == model.contains(&mark)));
            let shard = Shard { first: 100, last: 2000 };
            prop_assert_eq!(set.within(&shard), &model.range(100..=2000).copied().collect::<Vec<_>>());
        }
    }
}
