//! Bytes in several buffers.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::buffers::Buffers;

/// Bytes that lie in several buffers, in order. A clone shares them.
#[derive(Clone, Debug, Default)]
pub(crate) struct BytesList {
    length: usize,
    /// None is empty.
    parts: VecDeque<Bytes>,
}

impl BytesList {
    /// Number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds bytes at the end.
    pub(crate) fn push(&mut self, part: Bytes) {
        if !part.is_empty() {
            self.length += part.len();
            self.parts.push_back(part);
        }
    }

    /// Adds the bytes of another list.
    pub(crate) fn append(&mut self, other: Self) {
        self.length += other.length;
        self.parts.extend(other.parts);
    }

    /// The bytes of a range within the list; the parts are shared.
    pub(crate) fn slice(&self, range: Range<usize>) -> Self {
        let (mut slice, mut start) = (Self::default(), 0);
        for part in &self.parts {
            let (from, to) = (range.start.max(start), range.end.min(start + part.len()));
            if from < to {
                slice.push(part.slice(from - start..to - start));
            }
            start += part.len();
        }
        slice
    }

    /// The parts in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.parts.iter().map(|part| &part[..])
    }

    /// The parts in order, none of them empty.
    pub(crate) fn into_parts(self) -> Vec<Bytes> {
        self.parts.into()
    }

    /// Copies the bytes from a position into a slice of at most as many.
    pub(crate) fn copy_to(&self, position: usize, target: &mut [u8]) {
        let mut filled = 0;
        while filled < target.len() {
            let part = self.part_at(position + filled);
            let length = part.len().min(target.len() - filled);
            if length == 0 {
                break;
            }
            target[filled..filled + length].copy_from_slice(&part[..length]);
            filled += length;
        }
    }

    /// The bytes from a position to the end of their buffer. Empty at the end.
    pub(crate) fn part_at(&self, position: usize) -> &[u8] {
        self.locate(position).map_or(&[], |(part, start)| &part[start..])
    }

    /// As [`part_at`](Self::part_at); the bytes are shared.
    pub(crate) fn shared_at(&self, position: usize) -> Bytes {
        self.locate(position).map_or_else(Bytes::new, |(part, start)| part.slice(start..))
    }

    /// The part with the byte at this position, and its place there.
    fn locate(&self, position: usize) -> Option<(&Bytes, usize)> {
        let mut left = position;
        for part in &self.parts {
            if left < part.len() {
                return Some((part, left));
            }
            left -= part.len();
        }
        None
    }

    /// Removes the first `length` bytes, or all if there are fewer, and returns them. A part that contains the end is shared.
    pub(crate) fn split_to(&mut self, length: usize) -> Self {
        let mut front = Self::default();
        while let Some(mut part) = self.parts.pop_front() {
            let wanted = length - front.length;
            if wanted < part.len() {
                front.push(part.split_to(wanted));
                self.parts.push_front(part);
                break;
            }
            front.push(part);
        }
        self.length -= front.length;
        front
    }

    /// All bytes in one buffer: that of the only part, or one of the pool, with room for `room` more.
    pub(crate) fn into_bytes(mut self, pool: &Arc<Buffers>, room: usize) -> Bytes {
        if self.parts.len() <= 1 {
            return self.parts.pop_front().unwrap_or_default();
        }
        let mut whole = pool.take(self.length + room);
        whole.clear();
        for part in self.parts {
            whole.extend_from_slice(&part);
        }
        whole.freeze()
    }
}

impl From<Bytes> for BytesList {
    fn from(bytes: Bytes) -> Self {
        let mut list = Self::default();
        list.push(bytes);
        list
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(parts: &[&'static [u8]]) -> BytesList {
        let mut list = BytesList::default();
        for part in parts {
            list.push(Bytes::from_static(part));
        }
        list
    }

    fn whole(list: BytesList) -> Bytes {
        list.into_bytes(&Buffers::new(0), 0)
    }

    #[test]
    fn a_list_is_split_at_any_position_and_read_from_any() {
        let all = b"abcdefgh";
        for at in 0..=all.len() + 1 {
            let mut rest = list(&[b"abc", b"", b"d", b"efgh"]);
            assert_eq!((rest.len(), rest.iter().count()), (all.len(), 3));
            let from = rest.part_at(at.min(all.len())).to_vec();
            assert!(all[at.min(all.len())..].starts_with(&from) && from.is_empty() == (at >= all.len()));
            assert_eq!(rest.shared_at(at), from);
            let front = rest.split_to(at);
            let end = at.min(all.len());
            assert_eq!((front.len(), rest.len()), (end, all.len() - end));
            assert_eq!((&whole(front)[..], &whole(rest)[..]), all.split_at(end));
        }
    }

    #[test]
    fn a_slice_has_the_bytes_of_its_range() {
        let (all, list) = (b"abcdefgh", list(&[b"abc", b"d", b"efgh"]));
        for start in 0..=all.len() {
            for end in start..=all.len() {
                let slice = list.slice(start..end);
                assert_eq!((slice.len(), &whole(slice)[..]), (end - start, &all[start..end]));
                let mut both = list.slice(0..start);
                both.append(list.slice(start..end));
                assert_eq!((both.len(), &whole(both)[..]), (end, &all[..end]));
            }
        }
    }

    #[test]
    fn a_single_part_becomes_bytes_without_a_copy() {
        let part = Bytes::from(vec![1; 100]);
        assert_eq!(whole(BytesList::from(part.clone())).as_ptr(), part.as_ptr());
    }
}
