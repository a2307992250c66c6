//! What became of a plan.

use std::fmt;

use crate::error::Error;
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::retention::Decision;

/// Is told what becomes of each snapshot of a plan, while it is carried out.
///
/// Called between two snapshots: it has to return soon and must not block.
pub trait PruneObserver: fmt::Debug + Send + Sync + 'static {
    /// It is known what became of a snapshot, the `done`-th of `total` that the plan is about.
    fn on_outcome(&self, snapshot: &SnapshotName, outcome: &Outcome, done: u64, total: u64);
}

/// What became of a plan. That something could not be removed is told here, and is no error.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct PruneReport {
    /// What became of each group.
    pub groups: Vec<GroupReport>,
    /// What became of the namespaces that were to go.
    pub namespaces: Vec<NamespaceReport>,
    /// Why it ended early, if it did.
    pub stopped: Option<Stop>,
}

/// What became of a group.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct GroupReport {
    /// The group.
    pub group: GroupName,
    /// What became of the group itself.
    pub outcome: GroupOutcome,
    /// What became of each snapshot that the plan was about, oldest first.
    pub snapshots: Vec<SnapshotReport>,
}

/// What became of a namespace that was to go.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct NamespaceReport {
    /// The namespace.
    pub namespace: Namespace,
    /// What became of it.
    pub outcome: GroupOutcome,
}

/// What became of a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct SnapshotReport {
    /// Its name.
    pub name: SnapshotName,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a group or a namespace as a whole.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum GroupOutcome {
    /// What belongs to it could not be removed. The same plan tries again.
    Failed(Error),
    /// It stays: something is left in it, or somebody uses it.
    Kept,
    /// It is gone, with all that belongs to it.
    Removed,
}

/// What became of a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It stays, since somebody uses it, or may: it is being read, written or moved, is the base of a running backup, or is unfinished
    /// without its writer being certainly dead. The error says which.
    Busy(Error),
    /// It stays, since it is no longer what the plan saw, or the rules would keep it by now.
    Changed,
    /// It could not be removed. It may be unfinished now; the same plan goes on from there.
    Failed(Error),
    /// It was gone already.
    Gone,
    /// It stays, as planned.
    Kept(Decision),
    /// The execution ended before it.
    NotReached,
    /// It stays, since it is protected.
    Protected,
    /// It is gone.
    Removed,
}

/// Why an execution ended early.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum Stop {
    /// The [flag](crate::prune::PrunePlan::abort) was set.
    Aborted,
    /// The store, or what was locked, may be somebody else's by now.
    Lost(Error),
}

impl PruneReport {
    /// How many snapshots were removed.
    pub fn removed(&self) -> u64 {
        self.count(|outcome| matches!(outcome, Outcome::Removed))
    }

    /// How many snapshots were to be removed and are still there, or may be, beside those that are protected.
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
