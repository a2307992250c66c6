//! Bringing the snapshots of one store into another, as they are.
//!
//! [`plan`] looks at both stores and says what would be done, [`SyncPlan::execute`] does it. Any two open stores will do, on
//! whatever backends, and two namespaces of one store.
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
//! let plan = sync::plan(&source, &target, SyncOptions::default()).await?;
//! let report = plan.execute().await?;
//! assert!(report.is_complete());
//! # Ok(())
//! # })
//! # }
//! ```
//!
//! Chunks, indexes and blobs are neither decoded to be kept nor encoded again; manifests arrive to the byte, with their
//! signatures, notes and states of verification. The guide `manual::sync` has the order of it all, and what happens to snapshots
//! that differ.

mod chunks;
mod compare;
mod context;
mod events;
mod group;
mod kinds;
mod options;
mod plan;
mod planned;
mod report;
mod run;
mod snapshot;
mod vanished;

use futures::future::BoxFuture;

use crate::error::Result;
use crate::store::Datastore;

pub use events::{SyncEvent, SyncObserver};
pub use kinds::{Conflict, GroupPlan, Resync, Skip, SnapshotPlan, Step, Vanished};
pub use options::{Candidates, GroupRule, Order, SyncOptions};
pub use planned::SyncPlan;
pub use report::{GroupOutcome, GroupReport, Outcome, SnapshotReport, SyncReport, SyncStats};

/// Looks at what a sync from `source` to `target` would do. Nothing is changed.
///
/// # Errors
/// `NotFound` if the source has no such namespace; `InvalidInput` if a namespace would become too deep or too long, or
/// snapshots would be brought to where they are; any failure to look. A manifest of the target that cannot be read is none.
///
/// # Cancel safety
/// Nothing is changed.
pub async fn plan(source: &Datastore, target: &Datastore, options: SyncOptions) -> Result<SyncPlan> {
    // Boxed here, where the compiler can see that it is `Send`.
    let made: BoxFuture<'_, _> = Box::pin(plan::make(source, target, options));
    made.await
}
