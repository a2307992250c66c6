//! Results of a plan.

use std::fmt;

use crate::error::Error;
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::retention::Decision;

/// Observer of the execution of a plan.
///
/// Called between two snapshots: it must return soon and must not block.
pub trait PruneObserver: fmt::Debug + Send + Sync + 'static {
    /// Called with the outcome of a snapshot, the `done`-th of `total` in the plan.
    fn on_outcome(&self, snapshot: &SnapshotName, outcome: &Outcome, done: u64, total: u64);
}

/// Result of a plan. A failure to remove a snapshot is reported here, not as an error.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct PruneReport {
    /// Results by group.
    pub groups: Vec<GroupReport>,
    /// Results for the namespaces to remove.
    pub namespaces: Vec<NamespaceReport>,
    /// Reason why the execution ended early; `None` if it did not.
    pub stopped: Option<Stop>,
}

/// Result for a group.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct GroupReport {
    /// The group.
    pub group: GroupName,
    /// Outcome for the group itself.
    pub outcome: GroupOutcome,
    /// Outcome of each snapshot in the plan, oldest first.
    pub snapshots: Vec<SnapshotReport>,
}

/// Result for a namespace to remove.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct NamespaceReport {
    /// The namespace.
    pub namespace: Namespace,
    /// The outcome.
    pub outcome: GroupOutcome,
}

/// Result for a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct SnapshotReport {
    /// Name of the snapshot.
    pub name: SnapshotName,
    /// The outcome.
    pub outcome: Outcome,
}

/// Outcome for a group or a namespace as a whole.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum GroupOutcome {
    /// Not removed because of an error. The same plan tries again.
    Failed(Error),
    /// Kept: it is not empty, or in use.
    Kept,
    /// Removed, with all that belongs to it.
    Removed,
}

/// Outcome for a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum Outcome {
    /// Kept because it is, or may be, in use: it is being read, written or moved, is the base of a running backup, or is unfinished
    /// and its writer is not certainly dead. The error says which.
    Busy(Error),
    /// Kept because it changed since the plan, or the rules would keep it now.
    Changed,
    /// Not removed because of an error. It may be unfinished now; the same plan continues from there.
    Failed(Error),
    /// Already gone.
    Gone,
    /// Kept, as planned.
    Kept(Decision),
    /// Not reached before the execution ended.
    NotReached,
    /// Kept because it is protected.
    Protected,
    /// Removed.
    Removed,
}

/// Reason why an execution ended early.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum Stop {
    /// The [flag](crate::prune::PrunePlan::abort) was set.
    Aborted,
    /// Another process may own the store, or a lock, now.
    Lost(Error),
}

impl PruneReport {
    /// Number of removed snapshots.
    pub fn removed(&self) -> u64 {
        self.count(|outcome| matches!(outcome, Outcome::Removed))
    }

    /// Number of snapshots that were to be removed and still exist, or may, except protected ones.
    pub fn left(&self) -> u64 {
        self.count(|outcome| {
            matches!(outcome, Outcome::Busy(_) | Outcome::Changed | Outcome::Failed(_) | Outcome::NotReached)
        })
    }

    fn count(&self, counts: impl Fn(&Outcome) -> bool) -> u64 {
        let snapshots = self.groups.iter().flat_map(|group| &group.snapshots);
        snapshots.filter(|snapshot| counts(&snapshot.outcome)).count() as u64
    }
}
