//! Packs of a packed store: which of them vanish, and how.
//!
//! | pack | action |
//! |---|---|
//! | dropped by an earlier collection | deleted, unless a listing may lag and the drop is younger than the grace time |
//! | not recorded yet by a writer of this process, young and unnamed, or unreadable | left |
//! | with the last quarantined copy of a chunk in use | left |
//! | younger than [`GcOptions::keep_packs`] | left |
//! | without a chunk that stays | deleted |
//! | a quarter of it unused, while more than [`GcOptions::max_unused`] of the store is | rewritten, the worst first, up to [`GcOptions::max_repack_bytes`] |
//! | less than a quarter of a full pack, if all such of its class make a full pack together | merged, up to the same limit |
//!
//! # Packs that would soon be rewritten again
//! Chunks that nothing uses stay during the grace time, and a rewritten pack contains them again. Another collection would then find the same waste
//! in the new pack, and copy the rest once more. Therefore two kinds of packs are left:
//!
//! * a pack that is worth rewriting, of which such chunks are a quarter of what would be copied or more. It is rewritten once, when they may go;
//!   each delay needs as much new garbage, so it ends.
//! * a small pack that has such chunks, or is younger than the grace time. The rest of a merge is a small pack, so chunks are merged at most
//!   once in the grace time, however often garbage is collected.
//!
//! [`crate::packs::reclaim`] has the order of the steps.

use std::cmp::Reverse;
use std::time::{Duration, SystemTime};

use crate::backend::Cursor;
use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::pack::PackClass;
use crate::format::layout::PackName;
use crate::gc::census::Times;
use crate::gc::estimate::Estimate;
use crate::gc::live::{Live, LivePacks};
use crate::gc::options::GcOptions;
use crate::gc::report::PackPlan;
use crate::packs::PackedBackend;
use crate::packs::reclaim::{ListedPack, PackState};
use crate::store::Datastore;

/// Share of a pack, in percent, above which its unused bytes are worth rewriting it.
const WORTH_PERCENT: u64 = 25;
/// Packs below this share of a full one are merged.
const SMALL_SHARE: u64 = 4;
/// Chunks in their grace time that are at least this share of what would be copied make a pack wait.
const WAITING_SHARE: u64 = 4;

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
    let target = store.inner().pack_bytes().max(1);
    let mut decision = Decision {
        actions: Actions::default(),
        candidates: Vec::new(),
        delete: Estimate::new(options, target),
        deletes_at_once: deletes_at_once(store, options),
        merge: Estimate::new(options, target),
        options,
        repack: Estimate::new(options, target),
        target,
        times,
        total: 0,
        unused: 0,
    };
    for pack in listed {
        decision.consider(pack, live.get(&pack.name).copied().unwrap_or_default());
    }
    decision.choose();
    decision.finish()
}

/// Returns `true` if every view has what was stored at this time.
pub(super) fn is_settled(at: Option<SystemTime>, deletes_at_once: bool, times: Times) -> bool {
    deletes_at_once || mutated!("pack-drop-is-known-at-once") || at.is_some_and(|at| times.is_old(at))
}

/// Returns `true` if a dropped pack may be deleted at once: no other process has a view without the drop.
pub(super) fn deletes_at_once(store: &Datastore, options: &GcOptions) -> bool {
    store.inner().uncached_backend().capabilities().consistent_listing || options.consistent_listings
}

/// A pack that may be rewritten or merged.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    live: Live,
    pack: ListedPack,
    unused: u64,
}

impl Candidate {
    /// Millionths of the pack that are unused.
    fn share(&self) -> u128 {
        u128::from(self.unused) * 1_000_000 / u128::from(self.pack.bytes.max(1))
    }

    fn is_worth_rewriting(&self) -> bool {
        self.unused * 100 >= self.pack.bytes * WORTH_PERCENT
    }
}

/// A decision in the making.
struct Decision<'a> {
    actions: Actions,
    candidates: Vec<Candidate>,
    delete: Estimate<'a>,
    deletes_at_once: bool,
    merge: Estimate<'a>,
    options: &'a GcOptions,
    repack: Estimate<'a>,
    target: u64,
    times: Times,
    /// Bytes of the packs that stay.
    total: u64,
    /// Unused bytes in them.
    unused: u64,
}

impl Decision<'_> {
    fn consider(&mut self, pack: &ListedPack, live: Live) {
        let age = self.age(pack);
        let plan = &mut self.actions.plan;
        plan.packs.add(pack.bytes);
        match pack.state {
            PackState::Dropped(at) if is_settled(at, self.deletes_at_once, self.times) => {
                self.delete.add_dropped(pack, age);
                self.actions.dropped.push(pack.name);
                return;
            }
            PackState::Dropped(_) | PackState::Orphan | PackState::Unrecorded => {
                plan.leave.unsettled.add(pack.bytes);
                return;
            }
            PackState::Recorded => {}
        }
        let unused = pack.bytes.saturating_sub(live.packed_bytes());
        plan.unused_bytes += unused;
        let left = if live.is_kept {
            Some(&mut plan.leave.quarantined)
        } else if age < self.options.keep_packs && !self.times.is_of_before(pack.last_used) {
            Some(&mut plan.leave.kept)
        } else {
            None
        };
        if live.chunks == 0 && left.is_none() {
            self.delete.add(pack, live, age);
            self.actions.vanish.push((pack.name, 0));
            return;
        }
        self.total += pack.bytes;
        self.unused += unused;
        match left {
            Some(left) => left.add(pack.bytes),
            None => self.candidates.push(Candidate { live, pack: *pack, unused }),
        }
    }

    /// Chooses the packs to rewrite and to merge.
    fn choose(&mut self) {
        let mut candidates = std::mem::take(&mut self.candidates);
        // The worst first.
        candidates.sort_by_key(|candidate| (Reverse(candidate.share()), candidate.pack.name));
        let mut small = Vec::new();
        for candidate in candidates {
            let Candidate { live, pack, unused } = candidate;
            let is_worth = candidate.is_worth_rewriting();
            let is_much = self.unused * 100 > self.total * u64::from(self.options.max_unused);
            let left = if is_worth && is_much {
                if live.waiting_bytes * WAITING_SHARE >= live.bytes.max(1) {
                    &mut self.actions.plan.leave.soon_again
                } else if self.copies(&candidate) {
                    self.total -= unused;
                    self.unused -= unused;
                    self.repack.add(&pack, live, self.age(&pack));
                    continue;
                } else {
                    &mut self.actions.plan.leave.limited
                }
            } else if pack.bytes < self.target / SMALL_SHARE {
                small.push(candidate);
                continue;
            } else if is_worth {
                &mut self.actions.plan.leave.tolerated
            } else {
                &mut self.actions.plan.leave.in_use
            };
            left.add(pack.bytes);
        }
        // Metadata and data stay apart.
        let (metadata, data): (Vec<_>, Vec<_>) =
            small.into_iter().partition(|candidate: &Candidate| candidate.pack.class == PackClass::Metadata);
        self.merge_small(metadata);
        self.merge_small(data);
    }

    /// Merges small packs of one class.
    fn merge_small(&mut self, mut small: Vec<Candidate>) {
        let times = self.times;
        small.retain(|candidate| {
            let is_ripe = candidate.live.waiting_bytes == 0 && times.is_old(candidate.pack.last_used);
            if !is_ripe {
                self.actions.plan.leave.soon_again.add(candidate.pack.bytes);
            }
            is_ripe
        });
        let live: u64 = small.iter().map(|candidate| candidate.live.bytes).sum();
        let fills_a_pack = small.len() > 1 && live >= self.target;
        for candidate in small {
            if !fills_a_pack {
                self.actions.plan.leave.small.add(candidate.pack.bytes);
            } else if self.copies(&candidate) {
                self.merge.add(&candidate.pack, candidate.live, self.age(&candidate.pack));
            } else {
                self.actions.plan.leave.limited.add(candidate.pack.bytes);
            }
        }
    }

    fn age(&self, pack: &ListedPack) -> Duration {
        self.times.now.duration_since(pack.last_used).unwrap_or_default()
    }

    /// Adds a pack whose chunks are copied, if the limit permits.
    fn copies(&mut self, candidate: &Candidate) -> bool {
        let live = candidate.live.bytes;
        let copied = self.actions.plan.copied_bytes.saturating_add(live);
        if copied > self.options.max_repack_bytes {
            return false;
        }
        self.actions.plan.copied_bytes = copied;
        self.actions.vanish.push((candidate.pack.name, live));
        true
    }

    fn finish(self) -> Actions {
        let mut actions = self.actions;
        actions.plan.delete = self.delete.finish();
        actions.plan.repack = self.repack.finish();
        actions.plan.merge = self.merge.finish();
        actions
    }
}
