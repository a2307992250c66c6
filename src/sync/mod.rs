//! Sync: copies snapshots from one store into another, byte for byte.
//!
//! [`plan`] reads both stores and plans the transfer, [`SyncPlan::execute`] executes it. It works between any two open stores, on
//! any backends, and between two namespaces of one store.
//!
//! ```
//! # use std::sync::Arc;
//! # use larder::backend::MemoryBackend;
//! # use larder::rt::ThreadRuntime;
//! # use larder::store::{Datastore, Options};
//! use larder::sync::{self, SyncOptions};
//!
//! # fn main() -> larder::error::Result<()> {
//! # futures::executor::block_on(async {
//! # let memory = || Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())));
//! # let source = Datastore::create(memory(), Options::default()).await?;
//! # let target = Datastore::create(memory(), Options::default()).await?;
//! # let backup = source.backup(&"vm/100".parse().unwrap()).begin().await?;
//! # backup.blob("vm.conf", "cores: 4").await?;
//! # backup.finish().await?;
//! let mut plan = sync::plan(&source, &target, SyncOptions::default()).await?;
//! let report = plan.execute().await?;
//! assert!(report.is_complete());
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! Chunks, indexes and blobs keep their stored bytes; manifests arrive byte for byte, with their
//! signatures, notes and verify states. The guide `manual::sync` describes the order of steps, and the treatment of
//! conflicts.

mod chunks;
mod compare;
mod context;
mod events;
mod group;
mod key_change;
mod kinds;
mod options;
mod plan;
mod planned;
mod progress;
mod reencrypt;
mod report;
mod run;
mod snapshot;
mod vanished;
mod wording;

use futures::future::BoxFuture;

use crate::error::Result;
use crate::store::Datastore;
use crate::trace;
use crate::trace::{Facts, Operation, Subject};

pub use events::SyncEvent;
pub use kinds::{Resync, SyncConflict, SyncGroup, SyncSkip, SyncSnapshot, SyncStep, Vanished};
pub use options::{GroupRule, SyncCandidates, SyncOptions, SyncOrder};
pub use planned::SyncPlan;
pub use report::{SyncGroupOutcome, SyncGroupReport, SyncOutcome, SyncReport, SyncSnapshotReport, SyncStats};

/// Plans a sync from `source` to `target`. Changes nothing.
///
/// # Errors
/// `NotFound` if the source lacks the namespace; `InvalidInput` if a namespace would become too deep or too long, or
/// source and target overlap; any failure to read. An unreadable manifest at the target is no error.
///
/// # Cancel safety
/// Nothing is changed.
pub async fn plan(source: &Datastore, target: &Datastore, options: SyncOptions) -> Result<SyncPlan> {
    // Boxed here, where the compiler can prove that it is `Send`.
    let made: BoxFuture<'_, _> = Box::pin(plan::make(source, target, options));
    let watch = target.inner().watch(Operation::SyncPlan, Subject::Store);
    trace::watch(watch, made, |plan| Facts::of(plan)).await
}
