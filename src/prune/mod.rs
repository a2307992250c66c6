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
//! | it is locked: being read, written or moved, or the base of a running backup | stays, [`PruneOutcome::Busy`] |
//! | it is protected now | stays, [`PruneOutcome::Protected`] |
//! | it was unfinished, and is finished or has grown now | stays, [`PruneOutcome::Changed`] |
//! | it is unfinished, and its writer is not certainly dead | stays, [`PruneOutcome::Busy`] |
//! | with rules: they would keep it now, because other snapshots changed | stays, [`PruneOutcome::Changed`] |
//! | without rules: its manifest changed | stays, [`PruneOutcome::Changed`] |
//! | it is gone | [`PruneOutcome::Gone`] |
//! | anything else | [`PruneOutcome::Removed`] |
//!
//! Snapshots are removed one by one, the oldest first, each manifest first (H42). An interruption leaves an unfinished
//! snapshot: the same plan, or a new one, continues from there. Chunks stay until garbage collection.
//!
//! # Repeated executions
//! The plan keeps the outcome of each snapshot, group and namespace. An execution that was aborted, failed or dropped can be repeated:
//!
//! ```text
//! snapshot   NotReached ──▶ Removed, Gone, Kept, Protected          final
//!                 └───────▶ Busy, Changed, Failed ──▶ tried again, with the same checks
//! group, namespace   anything but Removed ──▶ tried again after its snapshots
//! ```
//! A group that this plan removed is not looked at again: a group of that name is a new one (H56).
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
//! let options = PruneOptions::default().rules(RetentionRules::default().keep_last(2));
//! let mut plan = prune::plan(&store, &Scope::Group(group), options).await?;
//! assert_eq!((plan.counts().keep, plan.counts().remove), (2, 1));
//! let report = plan.execute().await?;
//! assert_eq!(report.removed(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

mod execute;
mod options;
mod plan;
mod report;
mod wording;

pub use options::PruneOptions;
pub use plan::{PruneCounts, PrunePlan, plan, plan_deletion};
pub use report::{
    PruneEvent, PruneGroup, PruneGroupOutcome, PruneNamespace, PruneOutcome, PruneReport, PruneSnapshot,
    PruneStop,
};
