//! The state of a run that its passes share.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use crate::crypt::EncryptionKey;
use crate::format::upid::Upid;
use crate::rt::semaphore::Semaphore;
use crate::store::{Datastore, SnapshotInfo};
use crate::trace;
use crate::verify::collector::Collector;
use crate::verify::conclusion::Conclusion;
use crate::verify::control::Control;
use crate::verify::findings::{Findings, Merge};
use crate::verify::ledger::{ChunkId, Ledger};
use crate::verify::listing::Listed;
use crate::verify::options::VerifyOptions;
use crate::verify::passes::Passes;
use crate::verify::report::VerifyEvent;

/// One run, with everything that its passes share. It lasts for all executions of a plan.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) concurrency: usize,
    pub(super) control: Control,
    findings: Mutex<Findings>,
    /// Snapshots with missing parts, waiting for evidence that the store can be trusted. Empty between executions.
    held: Mutex<Vec<Conclusion>>,
    pub(super) ledger: Ledger,
    pub(super) now: SystemTime,
    pub(super) options: VerifyOptions,
    passes: Mutex<Passes>,
    pub(super) references: u64,
    /// Corrupt chunks whose quarantine has started and whose result is not known.
    repairs: Mutex<HashSet<ChunkId>>,
    /// One slot for each chunk in flight.
    pub(super) slots: Arc<Semaphore>,
    pub(super) store: Datastore,
    pub(super) targets: Vec<SnapshotInfo>,
    pub(super) upid: Upid,
    /// By snapshot, `true` if it was verified recently, before this run; `None` before its manifest was read.
    verified: Mutex<Vec<Option<bool>>>,
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

impl Work<'_> {
    /// How the findings of a pass are merged with those of others.
    pub(super) fn merge(self) -> Merge {
        if matches!(self, Self::Known) { Merge::Max } else { Merge::Add }
    }
}

impl Run {
    pub(super) fn new(
        store: Datastore,
        options: VerifyOptions,
        targets: Vec<SnapshotInfo>,
        (upid, now): (Upid, SystemTime),
        references: u64,
    ) -> Self {
        let concurrency = options.control.concurrency.unwrap_or_else(|| store.inner().in_flight());
        Self {
            concurrency,
            control: Control::new(&options),
            findings: Mutex::default(),
            held: Mutex::default(),
            ledger: Ledger::new(options.memory_bytes / 2),
            now,
            options,
            passes: Mutex::default(),
            references,
            repairs: Mutex::default(),
            slots: Semaphore::new(concurrency),
            store,
            verified: Mutex::new(vec![None; targets.len()]),
            targets,
            upid,
        }
    }

    pub(super) fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn held(&self) -> MutexGuard<'_, Vec<Conclusion>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn passes(&self) -> MutexGuard<'_, Passes> {
        self.passes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn repairs(&self) -> MutexGuard<'_, HashSet<ChunkId>> {
        self.repairs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn verified(&self) -> MutexGuard<'_, Vec<Option<bool>>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn notify(&self, event: &VerifyEvent) {
        if let VerifyEvent::SnapshotFinished { .. } = event {
            trace::step(event);
        }
        self.options.control.notify(event);
    }

    /// The key of this number, from 1.
    pub(super) fn key_of(&self, number: u8) -> Option<&EncryptionKey> {
        usize::from(number).checked_sub(1).and_then(|number| self.options.keys.get(number))
    }

    /// Half of the memory: the share of listings and samples.
    pub(super) fn half(&self) -> usize {
        self.options.memory_bytes / 2
    }
}
