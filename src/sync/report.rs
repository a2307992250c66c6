//! Results of a sync.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::format::name::{AuthId, GroupName, Namespace, SnapshotName};
use crate::sync::kinds::{SyncConflict, SyncSkip};

/// Result of all executions of a plan so far.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SyncReport {
    /// Results by group.
    pub groups: Vec<SyncGroupReport>,
    /// `true` if the last execution was aborted. The next one continues.
    pub is_aborted: bool,
    /// Namespaces created at the target.
    pub new_namespaces: Vec<Namespace>,
    /// Snapshots that the source no longer has and that stay because they are protected.
    pub protected: Vec<SnapshotName>,
    /// Snapshots removed from the target.
    pub removed: Vec<SnapshotName>,
    /// Namespaces removed from the target.
    pub removed_namespaces: Vec<Namespace>,
    /// Failed removals, by name. The next execution tries them again.
    pub unremoved: BTreeMap<String, Error>,
}

impl SyncReport {
    /// All snapshots with their outcomes.
    pub fn snapshots(&self) -> impl Iterator<Item = &SyncSnapshotReport> {
        self.groups.iter().flat_map(|group| &group.snapshots)
    }

    /// Total of all transfers.
    pub fn stats(&self) -> SyncStats {
        self.snapshots().fold(SyncStats::default(), |sum, snapshot| match &snapshot.outcome {
            SyncOutcome::Done(stats) => sum.plus(*stats),
            _ => sum,
        })
    }

    /// Returns `true` if everything in the plan was done: nothing failed, was refused, or was not reached.
    pub fn is_complete(&self) -> bool {
        let is_well = |outcome: &SyncOutcome| {
            !matches!(outcome, SyncOutcome::Conflict(_) | SyncOutcome::Failed(_) | SyncOutcome::NotReached)
        };
        !self.is_aborted
            && self.unremoved.is_empty()
            && self.groups.iter().all(|group| matches!(group.outcome, SyncGroupOutcome::Done))
            && self.snapshots().all(|snapshot| is_well(&snapshot.outcome))
    }
}

/// Result for a group.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SyncGroupReport {
    /// Outcome for the group as a whole.
    pub outcome: SyncGroupOutcome,
    /// Its snapshots.
    pub snapshots: Vec<SyncSnapshotReport>,
    /// Its name at the source.
    pub source: GroupName,
    /// Its name at the target.
    pub target: GroupName,
}

/// Outcome for a group as a whole.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum SyncGroupOutcome {
    /// Done; see the outcomes of its snapshots.
    Done,
    /// Not started, for instance because another operation uses it.
    Failed(Error),
    /// Left alone, because it has another owner at the target.
    Foreign(AuthId),
    /// Not reached before the sync was aborted.
    NotReached,
}

/// Result for a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SyncSnapshotReport {
    /// The outcome.
    pub outcome: SyncOutcome,
    /// Its name at the source.
    pub source: SnapshotName,
    /// Its name at the target.
    pub target: SnapshotName,
}

/// Outcome for a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum SyncOutcome {
    /// The target has a different snapshot of that name, which stays.
    Conflict(SyncConflict),
    /// The target has the same snapshot as the source now.
    Done(SyncStats),
    /// Failed. The target is unchanged, or has an unfinished snapshot. The next execution tries again.
    Failed(Error),
    /// Not reached: an older one of its group failed, or the sync was aborted.
    NotReached,
    /// Nothing to do.
    Skipped(SyncSkip),
    /// The source deleted it meanwhile. The target lacks it, unless it had it before.
    SourceGone,
}

/// Statistics of a transfer.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SyncStats {
    /// Chunks reused at the target without a transfer, except those that the same run transferred before.
    pub chunks_reused: u64,
    /// Transferred chunks.
    pub chunks_sent: u64,
    /// Their stored bytes.
    pub bytes_sent: u64,
}

impl SyncStats {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            chunks_reused: self.chunks_reused + other.chunks_reused,
            chunks_sent: self.chunks_sent + other.chunks_sent,
            bytes_sent: self.bytes_sent + other.bytes_sent,
        }
    }
}
