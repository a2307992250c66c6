//! Numbers and bytes of the packs and segments that a handle knows.

use crate::format::larder::pack::PackClass;
use crate::format::layout::PackName;
use crate::packs::PackedBackend;

/// Packs and segments of a packed store, as far as a handle knows: since its view was read last, another process may have stored others.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PackUsage {
    /// Bytes of the packs. Packs that a collection dropped and has yet to delete are left out.
    pub bytes: u64,
    /// Bytes of those packs that have metadata archives and catalogs.
    pub metadata_bytes: u64,
    /// Number of these.
    pub metadata_packs: u64,
    /// Number of packs.
    pub packs: u64,
    /// Number of segments of the index.
    pub segments: u64,
}

impl PackedBackend {
    /// The packs that segments name, and those of this handle that are stored.
    pub(crate) fn usage(&self) -> PackUsage {
        let state = self.packs.state();
        let recorded = state.view.recorded();
        let mut usage = PackUsage { segments: state.view.segments().len() as u64, ..PackUsage::default() };
        for number in state.view.numbers() {
            let Some(pack) = state.view.pack(number) else { continue };
            let is_known = recorded.contains(&number) || state.writer.unrecorded.contains_key(&number);
            if !is_known || pack.is_dropped || !pack.is_listed || pack.contents.is_some() {
                continue;
            }
            usage.packs += 1;
            usage.bytes += pack.bytes;
            if pack.class == PackClass::Metadata {
                usage.metadata_packs += 1;
                usage.metadata_bytes += pack.bytes;
            }
        }
        usage
    }

    /// Returns `true` if a collection dropped the pack, as far as this handle knows.
    pub(crate) fn is_dropped(&self, name: &PackName) -> bool {
        let state = self.packs.state();
        let pack = state.view.known(*name).and_then(|number| state.view.pack(number));
        pack.is_some_and(|pack| pack.is_dropped)
    }
}
