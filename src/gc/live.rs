//! Chunks in use, by the packs of a packed store.

use std::collections::HashMap;

use crate::backend::Version;
use crate::format::layout::PackName;

/// Live chunks of a pack.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Live {
    pub(super) bytes: u64,
    pub(super) chunks: u64,
    /// The last quarantined copy of a chunk in use is here.
    pub(super) is_kept: bool,
}

/// Live chunks by pack.
pub(super) type LivePacks = HashMap<PackName, Live>;

/// The pack in the version of a chunk.
pub(super) fn pack_of(version: &Version) -> Option<PackName> {
    version.as_str().split_once(':')?.0.parse().ok()
}
