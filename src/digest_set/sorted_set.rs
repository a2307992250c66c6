//! A sorted set in one vector, which grows by merges.
//!
//! ```text
//! additions, unsorted ──▶ sorted, without known values ──▶ merged into the set from behind, in place
//! ```
//! Callers collect additions and merge many at a time, because a merge moves all values behind the first addition. During a merge the
//! additions are the only second copy, so memory stays close to that of the set.

/// A sorted set of small values.
#[derive(Debug, Default)]
pub(crate) struct SortedSet<T> {
    values: Vec<T>,
}

impl<T: Copy + Default + Ord> SortedSet<T> {
    /// Moves the additions into the set. Values that it has already are dropped.
    pub(crate) fn merge(&mut self, additions: &mut Vec<T>) {
        additions.sort_unstable();
        additions.dedup();
        let mut at = 0;
        let values = &self.values;
        additions.retain(|addition| {
            at += values[at..].partition_point(|value| value < addition);
            values.get(at) != Some(addition)
        });
        let mut left = self.values.len();
        self.values.reserve_exact(additions.len());
        self.values.resize(left + additions.len(), T::default());
        let mut to = self.values.len();
        // From behind, so that no value is overwritten before it is moved.
        while let Some(addition) = additions.pop() {
            while left > 0 && self.values[left - 1] > addition {
                to -= 1;
                left -= 1;
                self.values[to] = self.values[left];
            }
            to -= 1;
            self.values[to] = addition;
        }
    }

    pub(crate) fn contains(&self, value: &T) -> bool {
        self.values.binary_search(value).is_ok()
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// All values, in order.
    pub(crate) fn as_slice(&self) -> &[T] {
        &self.values
    }

    /// Number of values that the allocated memory holds.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.values.capacity()
    }

    pub(crate) fn shrink_to_fit(&mut self) {
        self.values.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_has_the_values_of_all_merges(merges in prop::collection::vec(prop::collection::vec(0_u16..500, 0..200), 0..20)) {
            let (mut set, mut model) = (SortedSet::default(), BTreeSet::new());
            for mut additions in merges {
                model.extend(additions.iter().copied());
                set.merge(&mut additions);
                prop_assert!(additions.is_empty());
                prop_assert_eq!(set.as_slice(), &model.iter().copied().collect::<Vec<_>>());
            }
            prop_assert!((0..500).all(|value| set.contains(&value) == model.contains(&value)));
        }
    }
}
