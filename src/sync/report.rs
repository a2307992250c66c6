//! What a sync did.

use crate::error::Error;
use crate::format::name::{AuthId, GroupName, Namespace, SnapshotName};
use crate::sync::kinds::{Conflict, Skip};

/// What a sync did.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct SyncReport {
    /// What became of each group that was planned.
    pub groups: Vec<GroupReport>,
    /// Whether it was ended before it was done.
    pub is_aborted: bool,
    /// Namespaces that were made at the target.
    pub new_namespaces: Vec<Namespace>,
    /// Snapshots of the target that the source does not have any more and that stay, because they are protected.
    pub protected: Vec<SnapshotName>,
    /// Snapshots that were removed from the target.
    pub removed: Vec<SnapshotName>,
    /// Namespaces that were removed from the target.
    pub removed_namespaces: Vec<Namespace>,
    /// What was to be removed from the target, by its name, and why it was not.
    pub unremoved: Vec<(String, Error)>,
}

impl SyncReport {
    /// All snapshots with what became of them.
    pub fn snapshots(&self) -> impl Iterator<Item = &SnapshotReport> {
        self.groups.iter().flat_map(|group| &group.snapshots)
    }

    /// Everything that was transferred, together.
    pub fn stats(&self) -> SyncStats {
        self.snapshots().fold(SyncStats::default(), |sum, snapshot| match &snapshot.outcome {
            Outcome::Done(stats) => sum.plus(*stats),
            _ => sum,
        })
    }

    /// Whether everything that was planned was done: nothing failed, was refused or not come to.
    pub fn is_complete(&self) -> bool {
        let is_well = |outcome: &Outcome| {
            !matches!(outcome, Outcome::Conflict(_) | Outcome::Failed(_) | Outcome::NotReached)
        };
        !self.is_aborted
            && self.unremoved.is_empty()
            && self.groups.iter().all(|group| matches!(group.outcome, GroupOutcome::Done))
            && self.snapshots().all(|snapshot| is_well(&snapshot.outcome))
    }
}

/// What became of a group.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct GroupReport {
    /// What became of it as a whole.
    pub outcome: GroupOutcome,
    /// Its snapshots.
    pub snapshots: Vec<SnapshotReport>,
    /// Its name at the source.
    pub source: GroupName,
    /// Its name at the target.
    pub target: GroupName,
}

/// What became of a group as a whole.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum GroupOutcome {
    /// Its snapshots say the rest.
    Done,
    /// It could not be begun, as when somebody else uses it.
    Failed(Error),
    /// At the target it belongs to somebody else, and was left alone.
    Foreign(AuthId),
    /// The sync was ended before.
    NotReached,
}

/// What became of a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct SnapshotReport {
    /// What became of it.
    pub outcome: Outcome,
    /// Its name at the source.
    pub source: SnapshotName,
    /// Its name at the target.
    pub target: SnapshotName,
}

/// What became of a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum Outcome {
    /// The target has another one of that name, which stays.
    Conflict(Conflict),
    /// It is at the target now as it is at the source.
    Done(SyncStats),
    /// It could not be brought over. The target is as it was, or has what it takes for the next run to go on.
    Failed(Error),
    /// An older one of its group failed, or the sync was ended before.
    NotReached,
    /// There was nothing to do.
    Skipped(Skip),
    /// It was deleted at the source meanwhile. The target does not have it, if it did not before.
    SourceGone,
}

/// What was transferred.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncStats {
    /// Chunks that were taken over without being transferred. What the same run transferred before does not count.
    pub chunks_reused: u64,
    /// Chunks that were transferred.
    pub chunks_sent: u64,
    /// Bytes of them as they are stored.
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
