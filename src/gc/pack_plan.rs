//! Packs of a packed store: which of them vanish, and how.
//!
//! | pack | action |
//! |---|---|
//! | dropped by an earlier collection | deleted, unless a listing may lag and the drop is younger than the grace time |
//! | not recorded yet by a writer of this process, young and unnamed, or unreadable | left |
//! | younger than [`GcOptions::keep_packs`] | left |
//! | with the last quarantined copy of a chunk in use | left |
//! | without a live chunk | deleted |
//! | a quarter of it unused, while more than [`GcOptions::max_unused`] of the store is | rewritten, the worst first, up to [`GcOptions::max_repack_bytes`] |
//! | less than a quarter of a full pack, if all such make a full pack together | merged |
//!
//! [`crate::packs::reclaim`] has the order of the steps.

use std::time::SystemTime;

use crate::backend::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::PackName;
use crate::gc::census::Times;
use crate::gc::live::{Live, LivePacks};
use crate::gc::options::GcOptions;
use crate::gc::report::PackPlan;
use crate::packs::PackedBackend;
use crate::packs::reclaim::{ListedPack, PackState};
use crate::store::Datastore;

/// Bytes of a request that reads chunks.
const SPAN_BYTES: u64 = 16 << 20;
/// Share of a pack, in percent, above which its unused bytes are worth rewriting it.
const WORTH_PERCENT: u64 = 25;
/// Packs below this share of a full one are merged.
const SMALL_SHARE: u64 = 4;

/// The treatment of the packs.
#[derive(Clone, Debug, Default)]
pub(super) struct Actions {
    /// Packs that an earlier collection dropped.
    pub(super) dropped: Vec<PackName>,
    /// Packs to drop, with the bytes to copy first.
    pub(super) vanish: Vec<(PackName, u64)>,
    pub(super) plan: PackPlan,
}

/// Makes the chunks of orphans known. Returns all packs.
///
/// # Errors
/// `Corrupt` for a damaged segment; any failure to read the orphans.
pub(super) async fn prepare(
    packs: &PackedBackend,
    begin: Option<&Cursor>,
    times: Times,
) -> Result<Vec<ListedPack>> {
    let begin = begin.ok_or_else(|| Error::new(ErrorKind::Internal, "collect garbage"))?;
    packs.end_retirement();
    packs.check_segments()?;
    packs.adopt_orphans(begin, |last_used| times.is_old(last_used)).await?;
    packs.list_states(begin).await
}

/// Decides which packs vanish, and how.
pub(super) fn decide(
    store: &Datastore,
    listed: &[ListedPack],
    live: &LivePacks,
    options: &GcOptions,
    times: Times,
) -> Actions {
    let mut decision = Decision {
        actions: Actions::default(),
        candidates: Vec::new(),
        deletes_at_once: deletes_at_once(store, options),
        options,
        target: store.inner().pack_bytes().max(1),
        times,
        total: 0,
        unused: 0,
    };
    for pack in listed {
        decision.consider(pack, live.get(&pack.name).copied().unwrap_or_default());
    }
    decision.rewrite();
    decision.actions
}

/// Returns `true` if every view has what was stored at this time.
pub(super) fn is_settled(at: Option<SystemTime>, deletes_at_once: bool, times: Times) -> bool {
    deletes_at_once || at.is_some_and(|at| times.is_old(at))
}

/// Returns `true` if a dropped pack may be deleted at once: no other process has a view without the drop.
pub(super) fn deletes_at_once(store: &Datastore, options: &GcOptions) -> bool {
    store.inner().uncached_backend().capabilities().consistent_listing || options.consistent_listings
}

/// A decision in the making.
struct Decision<'a> {
    actions: Actions,
    /// Packs that may be rewritten or merged, and their live bytes.
    candidates: Vec<(ListedPack, u64)>,
    deletes_at_once: bool,
    options: &'a GcOptions,
    target: u64,
    times: Times,
    /// Bytes of the packs that stay.
    total: u64,
    /// Unused bytes in them.
    unused: u64,
}

impl Decision<'_> {
    fn consider(&mut self, pack: &ListedPack, live: Live) {
        let plan = &mut self.actions.plan;
        plan.packs.add(pack.bytes);
        match pack.state {
            PackState::Dropped(at) if is_settled(at, self.deletes_at_once, self.times) => {
                plan.delete.add(pack.bytes);
                self.actions.dropped.push(pack.name);
                return;
            }
            PackState::Dropped(_) | PackState::Orphan | PackState::Unrecorded => {
                plan.waiting.add(pack.bytes);
                return;
            }
            PackState::Recorded => {}
        }
        let unused = pack.bytes.saturating_sub(live.bytes);
        plan.unused_bytes += unused;
        let age = self.times.now.duration_since(pack.last_used).unwrap_or_default();
        let is_kept = live.is_kept || age < self.options.keep_packs;
        if live.chunks == 0 && !is_kept {
            plan.delete.add(pack.bytes);
            self.actions.vanish.push((pack.name, 0));
            return;
        }
        self.total += pack.bytes;
        self.unused += unused;
        if is_kept {
            plan.waiting.add(pack.bytes);
        } else {
            self.candidates.push((*pack, live.bytes));
        }
    }

    /// Chooses the packs to rewrite and to merge.
    fn rewrite(&mut self) {
        let unused = |(pack, live): &(ListedPack, u64)| pack.bytes.saturating_sub(*live);
        // The worst first.
        let share =
            |of: &(ListedPack, u64)| u128::from(unused(of)) * 1_000_000 / u128::from(of.0.bytes.max(1));
        let mut candidates = std::mem::take(&mut self.candidates);
        candidates.sort_by(|one, other| share(other).cmp(&share(one)).then(one.0.name.cmp(&other.0.name)));
        let mut small = Vec::new();
        for candidate in candidates {
            let (pack, live) = candidate;
            let is_worth = unused(&candidate) * 100 >= pack.bytes * WORTH_PERCENT;
            let is_much = self.unused * 100 > self.total * u64::from(self.options.max_unused);
            if is_worth && is_much && self.copies(pack.name, live) {
                self.total -= unused(&candidate);
                self.unused -= unused(&candidate);
                self.actions.plan.repack.add(pack.bytes);
            } else if pack.bytes < self.target / SMALL_SHARE {
                small.push(candidate);
            }
        }
        let of_small: u64 = small.iter().map(|(_, live)| live).sum();
        if small.len() > 1 && of_small >= self.target {
            for (pack, live) in small {
                if self.copies(pack.name, live) {
                    self.actions.plan.merge.add(pack.bytes);
                }
            }
        }
        let copied = self.actions.plan.copied_bytes;
        self.actions.plan.gets = copied.div_ceil(SPAN_BYTES);
        self.actions.plan.puts = copied.div_ceil(self.target);
    }

    /// Adds a pack whose live bytes are copied, if the limit permits.
    fn copies(&mut self, pack: PackName, live: u64) -> bool {
        let copied = self.actions.plan.copied_bytes.saturating_add(live);
        if copied > self.options.max_repack_bytes {
            return false;
        }
        self.actions.plan.copied_bytes = copied;
        self.actions.vanish.push((pack, live));
        true
    }
}
