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
//! use larder::store::{Datastore, Options};
//! use larder::verify::{self, Scope, VerifyOptions};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # futures::executor::block_on(async {
//! let backend = Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())));
//! let store = Datastore::create(backend, Options::default()).await?;
//! let plan = verify::plan(&store, Scope::Store, VerifyOptions::default()).await?;
//! println!("at most {} bytes in {} requests", plan.estimate().bytes, plan.estimate().requests);
//! let report = plan.execute().await?;
//! assert!(report.is_clean());
//! # Ok(()) })
//! # }
//! ```
//!
//! # What is done
//! ```text
//! snapshots, newest first → manifest → blobs, indexes → chunks, each once → put aside or back → state of the snapshot
//! ```

mod chunk;
mod collector;
mod conclusion;
mod context;
mod control;
mod ledger;
mod listing;
mod options;
mod plan;
mod report;
mod run;
mod sample;
mod snapshot;

pub use options::{Mode, Observer, Recording, Repair, Sample, Scope, VerifyOptions};
pub use plan::{Estimate, VerifyPlan, plan};
pub use report::{
    ChunkCounts, DamagedArchive, DamagedSnapshot, Event, Fault, Finding, Incomplete, SkipReason,
    SkippedSnapshot, Strength, VerifyReport,
};
