//! Chunks that stay, by the packs of a packed store.

use std::collections::HashMap;

use crate::format::larder::pack::{DIRECTORY_ENTRY_BYTES, ENTRY_HEADER_BYTES, HEADER_BYTES, TRAILER_BYTES};
use crate::format::layout::PackName;

/// Chunks of a pack that stay.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Live {
    pub(super) bytes: u64,
    pub(super) chunks: u64,
    /// The last quarantined copy of a chunk in use is here.
    pub(super) is_kept: bool,
    /// Bytes of those that nothing uses, and that may not be removed yet.
    pub(super) waiting_bytes: u64,
}

impl Live {
    /// Bytes of a pack with these chunks alone.
    pub(super) fn packed_bytes(&self) -> u64 {
        if self.chunks == 0 {
            return 0;
        }
        let each = u64::from(ENTRY_HEADER_BYTES + DIRECTORY_ENTRY_BYTES);
        self.bytes + self.chunks * each + u64::from(HEADER_BYTES + TRAILER_BYTES)
    }
}

/// Chunks that stay, by pack.
pub(super) type LivePacks = HashMap<PackName, Live>;
