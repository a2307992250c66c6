//! Progress of a plan over all its executions.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Error;
use crate::format::name::{Namespace, SnapshotName};
use crate::sync::kinds::{SyncGroup, SyncSnapshot, SyncStep, Vanished};
use crate::sync::report::{
    SyncGroupOutcome, SyncGroupReport, SyncOutcome, SyncReport, SyncSnapshotReport, SyncStats,
};

#[derive(Debug, Default)]
pub(super) struct Progress {
    /// Number of new namespaces that exist now.
    pub(super) created_namespaces: usize,
    pub(super) groups: Vec<GroupProgress>,
    /// `true` if the creation of the next namespace has started.
    pub(super) is_creating: bool,
    /// `true` if nothing is left to do.
    pub(super) is_over: bool,
    pub(super) new_namespaces: Vec<Namespace>,
    pub(super) protected: Vec<SnapshotName>,
    /// Removals of namespaces that have started, and their outcomes.
    pub(super) removed_namespaces: BTreeMap<Namespace, Removal>,
    /// Removals of snapshots that have started, and their outcomes.
    pub(super) removed_snapshots: BTreeMap<SnapshotName, Removal>,
    pub(super) unremoved: BTreeMap<String, Error>,
}

/// Removal of an object that has started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Removal {
    Done,
    /// A dropped future or a lost answer may have removed the object.
    Started,
}

#[derive(Debug)]
pub(super) struct GroupProgress {
    pub(super) outcome: SyncGroupOutcome,
    pub(super) snapshots: Vec<SnapshotProgress>,
}

#[derive(Debug)]
pub(super) struct SnapshotProgress {
    pub(super) counts: TransferCounts,
    /// `true` if a transfer has started, so that the target may have the snapshot from this plan.
    pub(super) is_started: bool,
    pub(super) outcome: SyncOutcome,
}

/// Counts of a transfer over all attempts.
#[derive(Debug, Default)]
pub(super) struct TransferCounts {
    bytes_sent: AtomicU64,
    chunks_known: AtomicU64,
    chunks_sent: AtomicU64,
}

impl TransferCounts {
    pub(super) fn add_known(&self) {
        self.chunks_known.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn add_sent(&self, bytes: u64) {
        self.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
        self.chunks_sent.fetch_add(1, Ordering::Relaxed);
    }

    /// The statistics of all attempts, of which the last one reused this number of chunks.
    pub(super) fn stats(&self, chunks_reused: u64) -> SyncStats {
        SyncStats {
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed),
            chunks_reused: chunks_reused + self.chunks_known.load(Ordering::Relaxed),
            chunks_sent: self.chunks_sent.load(Ordering::Relaxed),
        }
    }
}

impl Progress {
    pub(super) fn new(groups: &[SyncGroup]) -> Self {
        let snapshot = |_: &SyncSnapshot| SnapshotProgress {
            counts: TransferCounts::default(),
            is_started: false,
            outcome: SyncOutcome::NotReached,
        };
        let group = |group: &SyncGroup| GroupProgress {
            outcome: SyncGroupOutcome::NotReached,
            snapshots: group.snapshots.iter().map(snapshot).collect(),
        };
        Self { groups: groups.iter().map(group).collect(), ..Self::default() }
    }

    pub(super) fn report(&self, groups: &[SyncGroup], vanished: &Vanished, is_aborted: bool) -> SyncReport {
        let is_removed = |name: &&SnapshotName| self.removed_snapshots.get(name) == Some(&Removal::Done);
        let is_gone = |name: &&Namespace| self.removed_namespaces.get(name) == Some(&Removal::Done);
        SyncReport {
            groups: groups.iter().zip(&self.groups).map(|(plan, progress)| progress.report(plan)).collect(),
            is_aborted,
            new_namespaces: self.new_namespaces.clone(),
            protected: self.protected.clone(),
            removed: vanished.snapshots.iter().filter(is_removed).cloned().collect(),
            removed_namespaces: vanished.namespaces.iter().filter(is_gone).cloned().collect(),
            unremoved: self.unremoved.clone(),
        }
    }

    /// Returns `true` if the groups need no other execution.
    pub(super) fn are_groups_over(&self) -> bool {
        self.groups.iter().all(GroupProgress::is_over)
    }
}

impl GroupProgress {
    /// Returns `true` if the group needs no other execution.
    pub(super) fn is_over(&self) -> bool {
        match self.outcome {
            SyncGroupOutcome::Done => self.snapshots.iter().all(SnapshotProgress::is_over),
            SyncGroupOutcome::Foreign(_) => true,
            SyncGroupOutcome::Failed(_) | SyncGroupOutcome::NotReached => false,
        }
    }

    fn report(&self, plan: &SyncGroup) -> SyncGroupReport {
        let report = |(plan, progress): (&SyncSnapshot, &SnapshotProgress)| SyncSnapshotReport {
            outcome: progress.outcome.clone(),
            source: plan.source.clone(),
            target: plan.target.clone(),
        };
        SyncGroupReport {
            outcome: self.outcome.clone(),
            snapshots: plan.snapshots.iter().zip(&self.snapshots).map(report).collect(),
            source: plan.source.clone(),
            target: plan.target.clone(),
        }
    }
}

impl SnapshotProgress {
    /// Returns `true` if the snapshot needs no other execution.
    pub(super) fn is_over(&self) -> bool {
        !matches!(self.outcome, SyncOutcome::Failed(_) | SyncOutcome::NotReached)
    }

    /// Enters the outcome of a snapshot without a planned step. Returns `true` if it is over.
    pub(super) fn conclude(&mut self, plan: &SyncSnapshot) -> bool {
        match plan.step {
            SyncStep::Conflict(conflict) => self.outcome = SyncOutcome::Conflict(conflict),
            SyncStep::Skip(skip) => self.outcome = SyncOutcome::Skipped(skip),
            SyncStep::Resync(_) | SyncStep::Transfer => {}
        }
        self.is_over()
    }
}
