//! The state of a run that its passes share.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use crate::format::upid::Upid;
use crate::rt::semaphore::Semaphore;
use crate::store::{Datastore, SnapshotInfo};
use crate::verify::collector::Collector;
use crate::verify::conclusion::Conclusion;
use crate::verify::control::Control;
use crate::verify::ledger::Ledger;
use crate::verify::listing::Listed;
use crate::verify::options::VerifyOptions;
use crate::verify::report::{Findings, Merge};

/// One run, with everything that its passes share.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) control: Control,
    pub(super) findings: Mutex<Findings>,
    /// Snapshots with missing parts, waiting for evidence that the store can be trusted.
    pub(super) held: Mutex<Vec<Conclusion>>,
    pub(super) in_flight: usize,
    pub(super) ledger: Ledger,
    pub(super) now: SystemTime,
    pub(super) options: VerifyOptions,
    pub(super) passes: AtomicU64,
    pub(super) references: u64,
    /// One slot for each chunk in flight.
    pub(super) slots: Arc<Semaphore>,
    pub(super) store: Datastore,
    pub(super) targets: Vec<SnapshotInfo>,
    pub(super) upid: Upid,
    /// By snapshot, the number of passes with complete results.
    pub(super) whole: Mutex<Vec<u64>>,
}

/// Action of a pass on each chunk.
#[derive(Clone, Copy, Debug)]
pub(super) enum Work<'a> {
    /// Collect it for a sample.
    Collect(&'a Collector),
    /// Read it; chunks of skipped snapshots are looked up in the listing instead.
    Full(Option<&'a Listed>),
    /// Look up its known result.
    Known,
    /// Look it up in the listing.
    Presence(&'a Listed),
}

/// Snapshots of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    All,
    /// Snapshots that are not read again.
    VerifiedBefore,
}

impl Work<'_> {
    /// How the findings of a pass are merged with earlier ones.
    pub(super) fn merge(self, which: Which) -> Merge {
        if matches!(self, Self::Known) && which == Which::VerifiedBefore {
            Merge::Replace
        } else {
            Merge::Add
        }
    }
}
