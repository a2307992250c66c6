//! Garbage collection: chunks that no snapshot needs any more are found and removed.
//!
//! [`plan`] looks and changes nothing; what it returns says what would go and why the rest stays. [`GcPlan::execute`] removes it. While the
//! plan exists, the store is locked against other processes; backups and restores of this process go on.
//!
//! # The order
//! | | step | what it protects |
//! |---|---|---|
//! | 1 | the store is locked alone; who cannot be accounted for is refused | writers of other processes (H4, H33) |
//! | 2 | pins stay from here on, also those of writers that end meanwhile | writers of this process (H1, H2, H5) |
//! | 3 | the time is asked for, of the store | chunks younger than the grace time (H14) |
//! | 4 | mark: every index that a listing of the store itself shows, the newest snapshot of a group first, until a listing shows none that is new; then what was stored a moment ago, index files in odd places, and what is being moved | everything that any snapshot needs, finished or not (H7–H10) |
//! | 5 | chunks are listed, in parallel; what is neither marked nor pinned is unused | |
//! | 6 | of what is unused, what is older than the grace time goes, where listings or times cannot be trusted only if a run at least that time ago found it unused too | what a listing showed late (H11, H13) |
//! | 7 | `execute`: a new term of the lease; what may be deleted is written down; then batch by batch, each chunk in its critical section, and the lock looked at before each | crashes, late requests, lost leases (H6, H16, H17, H89) |
//!
//! An index that is there and cannot be read ends the run (H9). A chunk that is named and not there does not: the plan says which snapshots it
//! hurts, and the next backup that has it stores it again (H22). Chunks that were put aside as corrupt stay while they are named and there
//! is no good one; otherwise they go as chunks do.
//!
//! # When it is cut off
//! Every state that it can leave is a whole store with less garbage. Another run begins anew and removes the rest. A plan whose
//! [`execute`](GcPlan::execute) was aborted or failed goes on where it stopped if it is executed once more.
//!
//! # Memory
//! Eight bytes a marked chunk (nine while marking), sixteen an index, and what [`GcOptions::memory_bytes`] allows for the names of unused chunks;
//! where there are more of them, they are listed again. Beside it, one group's listing and the indexes in flight, which share the
//! memory of the store's restores.
//!
//! Beside a PBS that uses the same directory: the lock, the times and `.gc-status` are those of PBS, and its move journal is read. No
//! access time is set, since none is needed: what PBS would mark, it marks itself when it collects.

mod mark;
mod options;
mod plan;
mod progress;
mod report;
mod sweep;
mod walk;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::backend::lock_wait::lock_store;
use crate::backend::{LockGuard, LockMode, LockReach};
use crate::error::{Error, ErrorKind, Result};
use crate::store::Datastore;

pub use options::{GcEvent, GcObserver, GcOptions, Sizes};
pub use plan::{GcPlan, SafetyLimit};
pub use report::{ChunkTally, DamagedSnapshot, GcEnd, GcFailure, GcReport};

/// How far the clocks of this host and of the store may be apart.
const CLOCKS_APART: Duration = Duration::from_hours(1);
/// By how much less than a running writer may need, as in PBS.
const WRITER_MARGIN: Duration = Duration::from_mins(5);

/// Finds out what is garbage. Nothing is changed but locks.
///
/// # Errors
/// `Busy` if another process uses the store or garbage is being collected already; `Corrupt` if an index cannot be read; `Unavailable` if
/// the clocks of this host and of the store are an hour apart, or the store cannot be read; `Unsupported` if locks do not
/// reach other processes and [`only_process`](GcOptions::only_process) was not said; `InvalidInput` if the grace time is too short for
/// [listings that lag](GcOptions::listing_lag); `Conflict` if it was aborted.
///
/// # Cancel safety
/// A dropped future gives all locks back.
pub async fn plan(store: &Datastore, options: GcOptions) -> Result<GcPlan> {
    store.check_writable("collect garbage").await?;
    let backend = store.uncached_backend();
    if backend.capabilities().lock_reach == LockReach::Process && !options.only_process {
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
    let guard: Arc<dyn LockGuard> = Arc::from(lock_store(backend.as_ref(), LockMode::Exclusive).await?);
    store.check_identity("collect garbage").await?;
    let collection = Arc::new(store.chunks().pins().collect());
    let (now, here) = (backend.clock().await?, store.runtime().now());
    let apart = now.duration_since(here).or_else(|_| here.duration_since(now)).unwrap_or_default();
    // A filesystem has the clock of its host, or one of its own that nobody else goes by.
    if apart > CLOCKS_APART && !backend.capabilities().tracks_last_use {
        let why = format!("the clocks of this host and of the store are {} s apart", apart.as_secs());
        return Err(Error::new(ErrorKind::Unavailable, "collect garbage").because(why));
    }
    let age = guard.oldest_shared().map(|since| here.duration_since(since).unwrap_or_default());
    let oldest_writer = age.map(|age| now.checked_sub(age + WRITER_MARGIN).unwrap_or(SystemTime::UNIX_EPOCH));
    let before = |cutoff: SystemTime| oldest_writer.map_or(cutoff, |since| cutoff.min(since));
    // Without a grace time nothing is too young.
    let cutoff = (!options.grace.is_zero())
        .then(|| before(now.checked_sub(options.grace).unwrap_or(SystemTime::UNIX_EPOCH)));
    let held = plan::Held { collection, guard };
    plan::make(store, options, held, plan::Times { cutoff, now }).await
}
