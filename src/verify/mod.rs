//! Verification: checks that all data of snapshots is present and correct.
//!
//! [`plan`] gives the cost; [`VerifyPlan::execute`] runs the verification and returns a [`VerifyReport`]. The guide to
//! [verification](super::manual::verify) describes the checks, and how far the result of each mode can be trusted.
//!
//! ```
//! use std::sync::Arc;
//!
//! use larder::backend::MemoryBackend;
//! use larder::rt::ThreadRuntime;
//! use larder::store::{Datastore, Options, Scope};
//! use larder::verify::{self, VerifyOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # futures::executor::block_on(async {
//! let backend = Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())));
//! let store = Datastore::create(backend, Options::default()).await?;
//! let mut plan = verify::plan(&store, &Scope::Store, VerifyOptions::default()).await?;
//! println!("at most {} bytes in {} requests", plan.estimate().bytes, plan.estimate().requests);
//! let report = plan.execute().await?;
//! assert!(report.is_clean());
//! # Ok(()) })
//! # }
//! ```
//!
//! # Order
//! ```text
//! snapshots, newest first → manifest → blobs, indexes → chunks, each once → quarantined or reinstated → state of the snapshot recorded
//! ```
//!
//! # States
//! A plan keeps its run between executions. An execution ends by completion, an abort, an unreachable store or a dropped future; the
//! next one continues from these states:
//!
//! | subject | state at the end of an execution | next execution |
//! |---|---|---|
//! | chunk | good, corrupt or missing | known; a series of missing chunks continues |
//! | chunk | unreachable, or missing without a record when so many were missing that it must have another cause (H95) | forgotten, subtracted from the counts and checked again |
//! | chunk | its check was dropped | checked again; if the quarantine completed in the background, the missing chunk counts as quarantined |
//! | snapshot in a pass | concluded: its results are complete and recorded | left out |
//! | snapshot in a pass | open: a result is unknown, the snapshot was busy, or the pass did not reach it | checked again, its known chunks without a request; its provisional findings are then replaced, so nothing counts twice |
//! | snapshot in a pass | conclusion waits for evidence (missing chunks) | recorded by an execution that ends; a dropped future releases its lock and leaves the snapshot open |
//! | snapshot | verified before the run or not | decided when its manifest is first read: the states that this run records do not count |
//! | pass | over, or with open snapshots | open snapshots first, passes in order; the last listed part stays in memory, earlier ones are listed again |
//! | sample | candidates, position, reserve of the budget | kept; a budget spans all executions |
//!
//! A snapshot is concluded in this order: suspects stored → state in the manifest → findings in the report → concluded. A dropped future
//! repeats the steps, which have the same effect.

mod chunk;
mod collector;
mod conclusion;
mod context;
mod control;
mod findings;
mod ledger;
mod listing;
mod options;
mod passes;
mod plan;
mod progress;
mod record;
mod report;
mod run;
mod sample;
mod snapshot;
mod wording;

pub use options::{Recording, Repair, Sample, VerifyMode, VerifyOptions};
pub use plan::{VerifyEstimate, VerifyPlan, plan};
pub use report::{
    ArchiveDamage, CheckStrength, ChunkCounts, ChunkFinding, Incomplete, ObjectFault, SkipReason,
    SkippedSnapshot, SnapshotDamage, VerifyEvent, VerifyReport,
};
