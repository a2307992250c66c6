//! Rebuilding the index from the packs, when segments are lost or damaged.
//!
//! # Order
//! ```text
//! for a number of packs: directory read, or the pack scanned → segment stored
//!     → drops of packs that segments name and that do not exist → segment stored → barrier → damaged segments deleted
//! ```
//! Each interruption leaves a store with more of its index, and another run continues.
//!
//! Two facts are lost with the only segment that says them: that a copy is bad, which the next read or verification finds again; and that a
//! pack was dropped, so its chunks count again until the next collection. Both are true copies. A pack that was dropped and deleted must not count
//! again, so packs that are named and do not exist are dropped.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::backend::Removal;
use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::pack::name::PackName;
use crate::format::layout::Key;
use crate::packs::PackedBackend;
use crate::packs::salvage::Salvaged;
use crate::packs::send::Share;

/// Number of packs that one segment is stored for.
const PACKS_AT_ONCE: usize = 128;

/// Damage of the index.
#[derive(Clone, Debug, Default)]
pub(crate) struct IndexDamage {
    /// Paths of damaged segments.
    pub(crate) damaged: Vec<String>,
    /// Packs that segments name and that do not exist.
    pub(crate) missing: BTreeSet<PackName>,
    /// Number of all packs.
    pub(crate) packs: u64,
    /// Packs that no segment names, with their bytes.
    pub(crate) unnamed: BTreeMap<PackName, u64>,
}

/// A pack as it was read.
#[derive(Debug)]
pub(crate) struct PackContents {
    /// The directory is damaged.
    pub(crate) is_scanned: bool,
    salvaged: Salvaged,
}

impl PackContents {
    /// Number of chunks.
    pub(crate) fn chunks(&self) -> u64 {
        self.salvaged.entries.len() as u64
    }
}

impl PackedBackend {
    /// Looks for packs and segments that do not go together. The caller holds the lock of the store alone.
    ///
    /// # Errors
    /// Any failure to list them.
    pub(crate) async fn find_index_damage(&self) -> Result<IndexDamage> {
        let packs = &self.packs;
        packs.refresh().await?;
        packs.read_all_records().await?;
        // This process knows what they said, and the next one does not.
        let lost = packs.lost_segments().await?;
        let listing = packs.list_packs().await?;
        listing.check_readable("rebuild the index behind")?;
        let mut damage = IndexDamage::default();
        let mut absent = Vec::new();
        {
            let running = packs.unrecorded();
            let state = packs.state();
            let segments = state.view.segments().values();
            let dropped: HashSet<_> =
                segments.flat_map(|known| known.facts.dropped.iter().copied()).collect();
            let segments = state.view.segments().iter().filter(|(name, _)| !lost.contains_key(name));
            let named = segments.flat_map(|(_, known)| known.numbers.iter());
            let named: HashSet<_> = named.filter_map(|number| Some(state.view.pack(*number)?.name)).collect();
            let damaged = lost.iter().filter(|(_, error)| error.kind() == ErrorKind::Corrupt);
            let damaged = damaged.map(|(name, _)| Key::Segment(*name).path());
            damage.damaged = state.view.unreadable().map(str::to_owned).chain(damaged).collect();
            for (name, (bytes, _)) in &listing.packs {
                damage.packs += 1;
                if !(running.contains(name) || dropped.contains(name) || named.contains(name)) {
                    damage.unnamed.insert(*name, *bytes);
                }
            }
            let is_absent = |name: &&PackName| !listing.packs.contains_key(name) && !dropped.contains(name);
            absent.extend(named.iter().filter(is_absent).copied());
        }
        for name in absent {
            // A listing may lag.
            if !packs.inner.has(&Key::Pack(name)).await? && !mutated!("pack-rebuild-keeps-missing-packs") {
                damage.missing.insert(name);
            }
        }
        Ok(damage)
    }

    /// Reads which chunks a pack has.
    ///
    /// # Errors
    /// `Corrupt` if it has none, or is the pack of another name, or is gone; any other failure to read it.
    pub(crate) async fn read_contents(&self, name: PackName, bytes: u64) -> Result<PackContents> {
        if let Some(directory) = self.packs.read_directory(name, bytes).await? {
            return Ok(PackContents { is_scanned: false, salvaged: directory.into() });
        }
        let salvaged = self.packs.salvage(name, bytes).await?.filter(|pack| !pack.entries.is_empty());
        let unreadable = || Error::new(ErrorKind::Corrupt, "read").on(Key::Pack(name));
        Ok(PackContents { is_scanned: true, salvaged: salvaged.ok_or_else(unreadable)? })
    }

    /// Adds a pack to the next segment.
    pub(crate) fn add_to_index(&self, contents: PackContents) {
        self.packs.state().adopt(contents.salvaged);
    }

    /// Returns `true` if it is time to store a segment.
    pub(crate) fn is_segment_due(&self) -> bool {
        self.packs.state().writer.unrecorded.len() >= PACKS_AT_ONCE
    }

    /// Stores a segment with the packs that were added.
    ///
    /// # Errors
    /// Any failure to store it.
    pub(crate) async fn store_segment(&self) -> Result<()> {
        self.packs.record(Share::All).await
    }

    /// Removes damaged segments, after the last step of the rebuild.
    ///
    /// # Errors
    /// Any failure to remove one of them.
    pub(crate) async fn remove_segments(&self, paths: &[String]) -> Result<()> {
        self.packs.inner.barrier().await?;
        for path in paths {
            let key: Key = path.parse().map_err(|_| Error::new(ErrorKind::Corrupt, "delete").on(path))?;
            for deleted in self.packs.inner.delete(&[Removal::any(key)]).await? {
                deleted?;
            }
        }
        self.packs.refresh().await
    }
}
