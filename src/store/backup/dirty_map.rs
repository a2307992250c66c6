//! Sets of extents: the dirty parts of an image, or the parts of a file that have data.

use std::ops::Range;

/// Dirty extents: the parts of an image that may differ from the base.
///
/// Collected from the ranges that were written since the base, in bytes; they may overlap and come in any order. A range whose end is not after its
/// start is empty.
///
/// **A map that lacks a written range stores a wrong image, and nothing can notice that later.** The cookbook in the manual shows how a
/// bitmap is bound to its base.
///
/// ```
/// use larder::store::DirtyMap;
///
/// let sectors = [2_u64, 3, 2048];
/// let dirty: DirtyMap = sectors.into_iter().map(|sector| sector * 512..(sector + 1) * 512).collect();
/// ```
#[doc(alias = "bitmap")]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtyMap {
    /// In order, separate, none empty.
    ranges: Vec<Range<u64>>,
}

impl DirtyMap {
    /// Nothing differs.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns `true` if any part of the range may differ.
    pub(super) fn overlaps(&self, range: &Range<u64>) -> bool {
        let first = self.ranges.partition_point(|dirty| dirty.end <= range.start);
        !range.is_empty() && self.ranges.get(first).is_some_and(|dirty| dirty.start < range.end)
    }
}

impl DirtyMap {
    /// End of the extent that contains the offset; `None` if none does.
    pub(super) fn end_of_extent(&self, offset: u64) -> Option<u64> {
        let found = self.ranges.get(self.ranges.partition_point(|range| range.end <= offset))?;
        found.contains(&offset).then_some(found.end)
    }

    /// Start of the first extent at or after the offset.
    pub(super) fn next_start(&self, offset: u64) -> Option<u64> {
        let first = self.ranges.partition_point(|range| range.start < offset);
        self.ranges.get(first).map(|range| range.start)
    }
}

impl FromIterator<Range<u64>> for DirtyMap {
    fn from_iter<I: IntoIterator<Item = Range<u64>>>(ranges: I) -> Self {
        let mut sorted: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        sorted.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<u64>> = Vec::new();
        for range in sorted {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        Self { ranges: merged }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dirty_map_finds_overlapping_extents() {
        let map: DirtyMap = [10..20, 15..30, 30..31, 50..50, 40..45].into_iter().collect();
        assert_eq!(map.ranges, [10..31, 40..45]);
        for (range, dirty) in [
            (0..10, false),
            (0..11, true),
            (30..40, true),
            (31..40, false),
            (44..90, true),
            (45..90, false),
            (12..12, false),
        ] {
            assert_eq!(map.overlaps(&range), dirty, "{range:?}");
        }
        for (offset, end, next) in [
            (0, None, Some(10)),
            (10, Some(31), Some(10)),
            (30, Some(31), Some(40)),
            (31, None, Some(40)),
            (44, Some(45), None),
            (45, None, None),
        ] {
            assert_eq!((map.end_of_extent(offset), map.next_start(offset)), (end, next), "{offset}");
        }
        assert!(!DirtyMap::new().overlaps(&(0..u64::MAX)));
    }
}
