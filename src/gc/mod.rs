//! Garbage collection: finds and removes chunks that no snapshot needs.
//!
//! [`plan`] changes nothing; its result says what would be removed and why the rest stays. [`GcPlan::execute`] removes it. While the
//! plan exists, the store is locked against other processes; backups and restores of this process continue.
//!
//! # Order
//! | | step | protects |
//! |---|---|---|
//! | 1 | take the exclusive lock of the store; refuse if some process cannot be excluded | writers of other processes (H4, H33) |
//! | 2 | keep all pins from here on, also those of writers that end | writers of this process (H1, H2, H5) |
//! | 3 | read the clock of the store | chunks younger than the grace time (H14) |
//! | 4 | mark: every index of an uncached listing, newest snapshot of a group first, until a listing shows no new one or ten were made; then recently stored indexes, orphans and pending moves | everything that any snapshot needs, finished or not (H7–H10) |
//! | 5 | list chunks in parallel; chunks neither marked nor pinned are unreferenced | |
//! | 6 | select unreferenced chunks older than the grace time; where listings or times cannot be trusted, only those that were already candidates at least that long ago | objects that a listing showed late (H11, H13) |
//! | 7 | `execute`: begin a new lease term; store the candidates; delete in batches, each chunk under its digest lock, with a check of the lock before each batch | crashes, late requests, lost leases (H6, H16, H17, H89) |
//!
//! An unreadable index ends the run (H9). A missing chunk does not: the plan names the snapshots that lack it,
//! and the next backup that contains it stores it again (H22). Quarantined chunks stay while an index names them and no good copy
//! exists; otherwise they are removed like chunks.
//!
//! # Interruptions
//! Each state that an interruption leaves is a sound store with less garbage. Another run removes the rest. A plan whose
//! [`execute`](GcPlan::execute) was aborted or failed continues when it is executed again, and reports all executions.
//!
//! # Memory
//! Eight bytes for each marked chunk (nine while marking), sixteen for each index, and [`GcOptions::memory_bytes`] for the names of unreferenced chunks;
//! if those do not fit, chunks are listed again. In addition the listing of one group and the indexes in flight, which share the
//! memory budget of restores.
//!
//! Beside a PBS on the same directory: the lock, the times and `.gc-status` are those of PBS, and its move journal is read. larder sets no
//! access times, because its collector does not use them; PBS marks for itself.

mod census;
mod damage;
mod estimate;
mod live;
mod mark;
mod options;
mod pack_plan;
mod pack_sweep;
mod plan;
mod prices;
mod progress;
mod report;
mod scan;
mod sweep;
mod walk;
mod wording;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::backend::lock_wait::lock_store;
use crate::backend::{LockGuard, LockMode, LockReach};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Datastore;
use crate::trace;
use crate::trace::{Facts, Operation, Subject};

pub use options::{GcEvent, GcOptions, Sizes};
pub use plan::{GcPlan, SafetyLimit};
pub use prices::{Amount, PackCost, Prices};
pub use report::{
    ChunkTally, GcDamagedSnapshot, GcEnd, GcFailure, GcReport, GcSummary, LeftPacks, PackAction, PackPlan,
    PackTally,
};

/// Maximum difference between the clocks of this host and of the store.
const CLOCKS_APART: Duration = Duration::from_hours(1);
/// Safety margin for running writers, as in PBS.
const WRITER_MARGIN: Duration = Duration::from_mins(5);

/// Plans a garbage collection. Changes nothing but locks.
///
/// It takes no [`Scope`](crate::store::Scope): chunks belong to no namespace, so a collection always covers the whole store.
///
/// # Errors
/// `Busy` if another process uses the store or collects garbage; `Corrupt` if an index cannot be read; `Unavailable` if
/// the clocks of this host and of the store differ by an hour, or the store cannot be read; `Unsupported` if locks do not
/// reach other processes and [`only_process`](GcOptions::only_process) is not set; `InvalidInput` if the [concurrency](GcOptions::concurrency) is 0, or the grace time is
/// too short for [lagging listings](GcOptions::listing_lag); `Conflict` if it was aborted.
///
/// # Cancel safety
/// A dropped future releases all locks.
pub async fn plan(store: &Datastore, options: GcOptions) -> Result<GcPlan> {
    let watch = store.inner().watch(Operation::GcPlan, Subject::Store);
    trace::watch(watch, make_plan(store, options), facts).await
}

fn facts(plan: &GcPlan) -> Facts {
    let summary = plan.summary();
    let line = format_args!("garbage: {}; in use: {}", summary.garbage, summary.in_use);
    Facts::of(&line).damage(summary.damaged.iter())
}

async fn make_plan(store: &Datastore, options: GcOptions) -> Result<GcPlan> {
    options.control.check("collect garbage")?;
    store.inner().check_writable("collect garbage").await?;
    let backend = store.inner().uncached_backend();
    if backend.capabilities().lock_reach == LockReach::Process
        && !options.only_process
        && !mutated!("gc-beside-other-hosts")
    {
        let error = Error::new(ErrorKind::Unsupported, "collect garbage");
        return Err(error.because("other processes may be writing: its locks do not reach them"));
    }
    if !backend.capabilities().consistent_listing
        && !options.consistent_listings
        && options.grace < options.listing_lag
    {
        let (grace, lag) = (options.grace.as_secs(), options.listing_lag.as_secs());
        let why = format!("a grace time of {grace} s is shorter than listings may lag behind, {lag} s");
        return Err(Error::new(ErrorKind::InvalidInput, "collect garbage").because(why));
    }
    let mode = if mutated!("gc-beside-other-processes") { LockMode::Shared } else { LockMode::Exclusive };
    let guard: Arc<dyn LockGuard> = Arc::from(lock_store(backend.as_ref(), mode).await?);
    store.inner().check_identity("collect garbage").await?;
    let collection = Arc::new(store.inner().chunks().pins().collect());
    let (now, here) = (backend.clock().await?, store.inner().runtime().now());
    let apart = now.duration_since(here).or_else(|_| here.duration_since(now)).unwrap_or_default();
    // A filesystem uses the clock of its host, or one that no other process relies on.
    if apart > CLOCKS_APART && !mutated!("gc-believes-any-clock") && !backend.capabilities().tracks_last_use {
        let why = format!("the clocks of this host and of the store are {} s apart", apart.as_secs());
        return Err(Error::new(ErrorKind::Unavailable, "collect garbage").because(why));
    }
    let age = guard.oldest_shared().map(|since| here.duration_since(since).unwrap_or_default());
    let oldest_writer = age.map(|age| now.checked_sub(age + WRITER_MARGIN).unwrap_or(SystemTime::UNIX_EPOCH));
    let before = |cutoff: SystemTime| match oldest_writer {
        Some(since) if !mutated!("gc-ignores-old-writers") => cutoff.min(since),
        _ => cutoff,
    };
    // Without a grace time nothing is too young.
    let cutoff = (!options.grace.is_zero() && !mutated!("gc-ignores-grace"))
        .then(|| before(now.checked_sub(options.grace).unwrap_or(SystemTime::UNIX_EPOCH)));
    let held = plan::Held { collection, guard };
    let times = census::Times { clock_was_set_back: options.clock_was_set_back, cutoff, now };
    plan::make(store, options, held, times).await
}
