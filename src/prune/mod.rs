//! Pruning and deletion of snapshots, as a plan and its execution.
//!
//! [`plan`] applies retention rules to the groups of a store; [`plan_deletion`] deletes the snapshots, groups or namespaces that you name. Both make
//! a [`PrunePlan`] and change nothing. [`PrunePlan::execute`] executes it.
//!
//! # Decisions at execution
//! A plan decides from the complete listing of a group (H55). Things may change before it is executed, so the execution checks each
//! snapshot again under its own lock, just before it removes it (H56):
//!
//! | found then | outcome |
//! |---|---|
//! | it is locked: being read, written or moved, or the base of a running backup | stays, [`Outcome::Busy`] |
//! | it is protected now | stays, [`Outcome::Protected`] |
//! | it was unfinished, and is finished or has grown now | stays, [`Outcome::Changed`] |
//! | it is unfinished, and its writer is not certainly dead | stays, [`Outcome::Busy`] |
//! | with rules: they would keep it now, because other snapshots changed | stays, [`Outcome::Changed`] |
//! | without rules: its manifest changed | stays, [`Outcome::Changed`] |
//! | it is gone | [`Outcome::Gone`] |
//! | anything else | [`Outcome::Removed`] |
//!
//! Snapshots are removed one by one, the oldest first, each manifest first (H42). An interruption leaves an unfinished
//! snapshot: the same plan, or a new one, continues from there. Chunks stay until garbage collection.
//!
//! # Example
//! ```
//! # use std::sync::Arc;
//! # use larder::backend::MemoryBackend;
//! # use larder::rt::ThreadRuntime;
//! # use larder::store::Options;
//! use larder::prune::{self, PruneOptions};
//! use larder::retention::RetentionRules;
//! use larder::store::{Datastore, Scope};
//!
//! # futures::executor::block_on(async {
//! # let backend = MemoryBackend::new(Arc::new(ThreadRuntime::new()));
//! # let store = Datastore::create(Arc::new(backend), Options::default()).await?;
//! # let group = "vm/100".parse()?;
//! # for _ in 0..3 {
//! #     store.backup(&group).begin().await?.finish().await?;
//! # }
//! let options = PruneOptions::default().rules(RetentionRules::new().keep_last(2));
//! let plan = prune::plan(&store, &Scope::Group(group), options).await?;
//! assert_eq!((plan.counts().keep, plan.counts().remove), (2, 1));
//! let report = plan.execute().await?;
//! assert_eq!(report.removed(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

mod execute;
mod plan;
mod report;

pub use plan::{GroupPlan, PruneCounts, PruneOptions, PrunePlan, SnapshotPlan, plan, plan_deletion};
pub use report::{
    GroupOutcome, GroupReport, NamespaceReport, Outcome, PruneObserver, PruneReport, SnapshotReport, Stop,
};
