//! Which snapshots go, as a plan to look at, and its execution.
//!
//! [`plan`] applies retention rules to the groups of a store; [`plan_deletion`] is for what somebody wants to be rid of. Either makes
//! a [`PrunePlan`], and nothing was changed by then. [`PrunePlan::execute`] carries it out.
//!
//! # What is decided when
//! A plan decides from the complete listing of a group (H55). That was a while ago when it is carried out, so each snapshot is looked
//! at once more under its own lock, just before it is removed (H56):
//!
//! | found then | what becomes of it |
//! |---|---|
//! | it is locked: being read, written, moved, or the base of a running backup | stays, [`Outcome::Busy`] |
//! | it is protected by now | stays, [`Outcome::Protected`] |
//! | it was unfinished, and is finished or has grown by now | stays, [`Outcome::Changed`] |
//! | it is unfinished, and its writer is not certainly dead | stays, [`Outcome::Busy`] |
//! | with rules: what they keep changed, and by now they would keep it | stays, [`Outcome::Changed`] |
//! | without rules: its manifest changed | stays, [`Outcome::Changed`] |
//! | it is gone | [`Outcome::Gone`] |
//! | anything else | [`Outcome::Removed`] |
//!
//! Snapshots go one after the other, the oldest first, each manifest first (H42). What is cut off in between leaves an unfinished
//! snapshot: the same plan, or a new one, goes on from there. Chunks are never removed here; garbage collection does that.
//!
//! # Example
//! ```
//! # use std::sync::Arc;
//! # use larder::backend::MemoryBackend;
//! # use larder::rt::ThreadRuntime;
//! # use larder::store::{Datastore, Options};
//! use larder::prune::{self, PruneOptions, PruneScope};
//! use larder::retention::RetentionRules;
//!
//! # futures::executor::block_on(async {
//! # let backend = MemoryBackend::new(Arc::new(ThreadRuntime::new()));
//! # let store = Datastore::create(Arc::new(backend), Options::default()).await?;
//! # let group = "vm/100".parse()?;
//! # for _ in 0..3 {
//! #     store.backup(&group).begin().await?.finish().await?;
//! # }
//! let options = PruneOptions::default().rules(RetentionRules::new().keep_last(2));
//! let plan = prune::plan(&store, &PruneScope::Group(group), options).await?;
//! assert_eq!((plan.counts().keep, plan.counts().remove), (2, 1));
//! let report = plan.execute().await?;
//! assert_eq!(report.removed(), 1);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # }).unwrap();
//! ```

mod execute;
mod plan;
mod report;

pub use plan::{
    DeletionScope, GroupPlan, PruneCounts, PruneOptions, PrunePlan, PruneScope, SnapshotPlan, plan,
    plan_deletion,
};
pub use report::{
    GroupOutcome, GroupReport, NamespaceReport, Outcome, PruneObserver, PruneReport, SnapshotReport, Stop,
};
