//! Snapshots, groups and namespaces of a plan with their outcomes.

use crate::error::Error;
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::retention::Decision;
use crate::store::{Expected, SnapshotState};

/// Progress of the execution of a plan.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(tag = "event", rename_all = "snake_case"))]
pub enum PruneEvent {
    /// The execution is done with a snapshot.
    SnapshotFinished {
        /// Number of snapshots done, this one included, over all executions of the plan.
        done: u64,
        /// The outcome.
        outcome: PruneOutcome,
        /// Name of the snapshot.
        snapshot: SnapshotName,
        /// Number of snapshots in the plan.
        total: u64,
    },
}

/// Result of all executions of a plan. A failure to remove a snapshot is reported here, not as an error.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PruneReport {
    /// The groups of the plan.
    pub groups: Vec<PruneGroup>,
    /// The namespaces that the plan removes if they are empty, inner ones first.
    pub namespaces: Vec<PruneNamespace>,
    /// Reason why the last execution ended early; `None` if it did not.
    pub stopped: Option<PruneStop>,
}

/// A group of a plan or a report.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PruneGroup {
    /// The group.
    pub group: GroupName,
    /// Outcome for the group itself.
    pub outcome: PruneGroupOutcome,
    /// Its snapshots in the plan, oldest first.
    pub snapshots: Vec<PruneSnapshot>,
}

/// A namespace to remove, of a plan or a report.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PruneNamespace {
    /// The namespace.
    pub namespace: Namespace,
    /// The outcome.
    pub outcome: PruneGroupOutcome,
}

/// A snapshot of a plan or a report.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PruneSnapshot {
    /// The decision of the plan.
    pub decision: Decision,
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) expected: Expected,
    /// Name of the snapshot.
    pub name: SnapshotName,
    /// The outcome so far.
    pub outcome: PruneOutcome,
    /// Its state when the plan was made.
    pub state: SnapshotState,
}

/// Outcome for a group or a namespace as a whole.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum PruneGroupOutcome {
    /// Not removed because of an error. Another execution tries again.
    Failed(Error),
    /// Kept: it is not empty, or in use.
    Kept,
    /// Not reached by an execution yet.
    NotReached,
    /// Removed, with all that belongs to it.
    Removed,
}

/// Outcome for a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum PruneOutcome {
    /// Kept because it is, or may be, in use: it is being read, written or moved, is the base of a running backup, or is unfinished
    /// and its writer is not certainly dead. The error says which.
    Busy(Error),
    /// Kept because it changed since the plan, or the rules would keep it now.
    Changed,
    /// Not removed because of an error. It may be unfinished now; another execution continues from there.
    Failed(Error),
    /// Already gone.
    Gone,
    /// Kept, as planned.
    Kept,
    /// Not reached by an execution yet.
    NotReached,
    /// Kept because it is protected.
    Protected,
    /// Removed.
    Removed,
}

impl PruneOutcome {
    /// Returns `true` if another execution of the plan tries to remove the snapshot.
    pub(super) fn is_left(&self) -> bool {
        match self {
            Self::Busy(_) | Self::Changed | Self::Failed(_) | Self::NotReached => true,
            Self::Gone | Self::Kept | Self::Protected | Self::Removed => false,
        }
    }
}

/// Reason why an execution ended early.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum PruneStop {
    /// The [flag](crate::prune::PruneOptions::abort) was set.
    Aborted,
    /// Another process may own the store, or a lock, now.
    Lost(Error),
}

impl PruneReport {
    /// Number of removed snapshots.
    pub fn removed(&self) -> u64 {
        self.count(|outcome| matches!(outcome, PruneOutcome::Removed))
    }

    /// Number of snapshots that were to be removed and still exist, or may, except protected ones. Another execution of the plan
    /// tries exactly these again.
    pub fn left(&self) -> u64 {
        self.count(PruneOutcome::is_left)
    }

    fn count(&self, counts: impl Fn(&PruneOutcome) -> bool) -> u64 {
        let snapshots = self.groups.iter().flat_map(|group| &group.snapshots);
        snapshots.filter(|snapshot| counts(&snapshot.outcome)).count() as u64
    }
}
