//! A planned garbage collection.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use crate::backend::{Cursor, LockGuard};
use crate::chunks::PinHold;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::gc_candidates::GcCandidates;
use crate::format::layout::{PackName, Prefix};
use crate::format::status::GcStatus;
use crate::gc::census::{Census, Times};
use crate::gc::damage::{Damage, DamageSearch};
use crate::gc::mark::{Marked, mark};
use crate::gc::options::GcOptions;
use crate::gc::pack_plan::{self, Actions};
use crate::gc::progress::Progress;
use crate::gc::report::{GcSummary, PackPlan};
use crate::gc::scan::Counting;
use crate::gc::walk::NAMED;
use crate::packs::reclaim::ListedPack;
use crate::store::Datastore;

/// Locks and pins held while the plan exists.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) collection: Arc<PinHold>,
    pub(super) guard: Arc<dyn LockGuard>,
}

/// A planned garbage collection, to inspect and then to [execute](GcPlan::execute).
///
/// No other process can write to the store while it exists.
#[derive(Debug)]
#[must_use = "nothing is removed before `execute`"]
pub struct GcPlan {
    /// The treatment of the packs of a packed store.
    pub(super) actions: Actions,
    /// The cursor of all listings of chunks.
    pub(super) begin: Option<Cursor>,
    pub(super) census: Census,
    confirmed: bool,
    had_indexes: bool,
    pub(super) held: Held,
    /// Chunks that are certainly missing, as far as their names are known.
    pub(super) lost: Vec<Digest>,
    pub(super) marked: Marked,
    pub(super) options: GcOptions,
    /// The packs of a packed store.
    pub(super) packs: HashMap<PackName, ListedPack>,
    pub(super) progress: Progress,
    pub(super) candidates: Arc<GcCandidates>,
    pub(super) store: Datastore,
    summary: GcSummary,
    pub(super) times: Times,
}

/// Reason why a plan needs confirmation.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum SafetyLimit {
    /// The store has chunks and no snapshot.
    NoSnapshots,
    /// It would remove more than this percentage of the chunks.
    Share(u8),
}

pub(super) async fn make(store: &Datastore, options: GcOptions, held: Held, times: Times) -> Result<GcPlan> {
    let had_indexes = store.gc_status().await?.is_some_and(|status: GcStatus| status.index_file_count > 0);
    let candidates = store.inner().chunks().gc_candidates().await?;
    let marked = mark(store, &options).await?;
    let begin = store.inner().uncached_backend().begin_listing(&Prefix::Chunks).await?;
    let counting = Counting {
        begin: begin.clone(),
        kept: AtomicUsize::new(0),
        marks: &marked.set,
        options: &options,
        candidates: &candidates,
        store,
        times,
    };
    let listed = match store.inner().packs() {
        Some(packs) => pack_plan::prepare(packs, begin.as_ref(), times).await?,
        None => Vec::new(),
    };
    let (census, missing) = counting.all().await?;
    let actions = match store.inner().packs() {
        Some(_) => pack_plan::decide(store, &listed, &census.live, &options, times),
        None => Actions::default(),
    };
    let damage = DamageSearch { options: &options, store }.find(&missing).await?;
    let mut summary = summary(&marked, &census, &damage);
    summary.packs =
        store.inner().packs().map(|packs| PackPlan { segments: packs.segments(), ..actions.plan });
    Ok(GcPlan {
        actions,
        begin,
        census,
        confirmed: false,
        had_indexes,
        held,
        lost: damage.lost,
        marked,
        options,
        packs: listed.into_iter().map(|pack| (pack.name, pack)).collect(),
        progress: Progress::default(),
        candidates,
        store: store.clone(),
        summary,
        times,
    })
}

fn summary(marked: &Marked, census: &Census, damage: &Damage) -> GcSummary {
    GcSummary {
        archive_bytes: marked.data_bytes,
        damaged: damage.damaged.clone(),
        damaged_count: damage.damaged_count,
        foreign: marked.foreign.iter().chain(&census.foreign).take(NAMED).cloned().collect(),
        foreign_count: marked.foreign_count + census.foreign_count,
        garbage: census.garbage,
        in_use: census.in_use,
        indexes: marked.indexes,
        missing: damage.lost.len() as u64,
        packs: None,
        quarantined: census.quarantined,
        quarantined_garbage: census.quarantined_garbage,
        waiting: census.waiting,
    }
}

impl GcPlan {
    /// The findings.
    pub fn summary(&self) -> &GcSummary {
        &self.summary
    }

    /// Reason why the plan needs [confirmation](GcPlan::confirm) before it is executed; `None` if it does not.
    pub fn safety_limit(&self) -> Option<SafetyLimit> {
        let garbage = u128::from(self.census.garbage.chunks);
        let all = garbage + u128::from(self.census.in_use.chunks) + u128::from(self.census.waiting.chunks);
        let most = self.options.max_garbage;
        if self.marked.indexes == 0 && garbage > 0 && (self.had_indexes || most < 100) {
            return Some(SafetyLimit::NoSnapshots);
        }
        (garbage * 100 > all * u128::from(most)).then_some(SafetyLimit::Share(most))
    }

    /// Confirms the plan, however much it would remove.
    pub fn confirm(mut self) -> Self {
        self.confirmed = true;
        self
    }

    pub(super) fn check_safety_limit(&self) -> Result<()> {
        mutated!("gc-has-no-safety-limit" => return Ok(()));
        let Some(safety_limit) = self.safety_limit().filter(|_| !self.confirmed) else { return Ok(()) };
        let garbage = self.census.garbage.chunks;
        let why = match safety_limit {
            SafetyLimit::NoSnapshots => format!("there is no snapshot, and all {garbage} chunks would go"),
            SafetyLimit::Share(most) => {
                format!("{garbage} chunks would go, which is more than {most} percent")
            }
        };
        Err(Error::new(ErrorKind::Unconfirmed, "collect garbage").because(why))
    }
}
