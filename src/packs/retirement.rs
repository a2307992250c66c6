//! Copies that the collector of this process is about to drop, or has dropped.
//!
//! They are shared by all handles, also by those that are opened, or learn of a pack, only afterwards. No writer relies on such a copy;
//! readers still find it.
//!
//! | event | retired |
//! |---|---|
//! | the collector decides that nothing needs a copy, under the digest lock of its chunk | the copy |
//! | all copies in use have another place that is durable, and the drop is about to be recorded | the pack |
//! | the next plan is made | no copies, and only those packs of which a handle does not know that they were dropped |
//!
//! Plans exclude each other by the lock of the store, so a new plan finds no collector at work.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::format::larder::pack::name::PackName;

/// The retired parts of each pack.
#[derive(Debug, Default)]
pub(super) struct Retirement {
    /// Look-ups ask often, and mostly nothing is retired.
    is_used: AtomicBool,
    packs: Mutex<BTreeMap<PackName, Retired>>,
}

#[derive(Debug)]
enum Retired {
    /// The copies at these offsets.
    Copies(BTreeSet<u32>),
    /// Everything.
    Pack,
}

impl Retirement {
    /// Retires a copy. The caller holds the digest lock of its chunk.
    pub(super) fn retire(&self, name: PackName, offset: u32) {
        let mut packs = self.packs();
        match packs.entry(name).or_insert_with(|| Retired::Copies(BTreeSet::new())) {
            Retired::Copies(offsets) => {
                offsets.insert(offset);
            }
            Retired::Pack => {}
        }
        self.is_used.store(true, Ordering::SeqCst);
    }

    /// Retires packs.
    pub(super) fn retire_packs(&self, names: &BTreeSet<PackName>) {
        self.packs().extend(names.iter().map(|name| (*name, Retired::Pack)));
        self.is_used.store(true, Ordering::SeqCst);
    }

    /// Returns `true` if no writer may rely on a copy.
    pub(super) fn has(&self, name: &PackName, offset: u32) -> bool {
        self.is_used.load(Ordering::SeqCst)
            && match self.packs().get(name) {
                Some(Retired::Copies(offsets)) => offsets.contains(&offset),
                Some(Retired::Pack) => true,
                None => false,
            }
    }

    /// Returns `true` if a pack is retired as a whole.
    pub(super) fn has_pack(&self, name: &PackName) -> bool {
        self.is_used.load(Ordering::SeqCst) && matches!(self.packs().get(name), Some(Retired::Pack))
    }

    /// Forgets single copies, and all packs but these.
    pub(super) fn keep_packs(&self, stays: impl Fn(&PackName) -> bool) {
        // Decided without the lock: `stays` locks views, and writers take these locks in the other order.
        let whole =
            |(name, retired): (&PackName, &Retired)| matches!(retired, Retired::Pack).then_some(*name);
        let mut kept: BTreeSet<_> = self.packs().iter().filter_map(whole).collect();
        kept.retain(stays);
        let mut packs = self.packs();
        packs.retain(|name, retired| matches!(retired, Retired::Pack) && kept.contains(name));
        self.is_used.store(!packs.is_empty(), Ordering::SeqCst);
    }

    fn packs(&self) -> MutexGuard<'_, BTreeMap<PackName, Retired>> {
        self.packs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
