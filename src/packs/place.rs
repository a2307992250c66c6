//! The place of a copy.

use crate::format::Digest;
use crate::format::larder::pack::PackEntry;

/// Pack and offset of a copy.
pub(super) type PlaceKey = (u32, u32);

/// One copy of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Place {
    /// Number of the pack in this view.
    pub(super) pack: u32,
    /// Offset of the blob in the pack.
    pub(super) offset: u32,
    /// Length of the blob.
    pub(super) length: u32,
}

impl Place {
    /// The place of an entry of a pack.
    pub(super) fn of(pack: u32, entry: &PackEntry) -> Self {
        Self { pack, offset: entry.offset, length: entry.len }
    }

    /// The entry of the pack.
    pub(super) fn entry(&self, digest: Digest) -> PackEntry {
        PackEntry { digest, len: self.length, offset: self.offset }
    }

    /// Offset of the first byte behind the blob.
    pub(super) fn end(&self) -> u64 {
        u64::from(self.offset) + u64::from(self.length)
    }

    /// Tells it from all other copies.
    pub(super) fn key(&self) -> PlaceKey {
        (self.pack, self.offset)
    }
}
