//! The parts of a plan: groups, snapshots, and the reasons for each step.

use crate::format::name::{AuthId, GroupName, Namespace, SnapshotName};
use crate::store::{SnapshotInfo, SnapshotState};

/// Relation of the two stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Same {
    /// Two different stores.
    No,
    /// One store, by one handle.
    Opening,
    /// One store, by its identity. A copy of a store has the same.
    Copy,
}

/// The plan for a group.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SyncGroup {
    /// Owner of the group at the target, if it differs: the sync leaves the group alone.
    pub foreign_owner: Option<AuthId>,
    /// Its snapshots at the source, in the order of transfer.
    pub snapshots: Vec<SyncSnapshot>,
    /// Its name at the source.
    pub source: GroupName,
    /// Its name at the target.
    pub target: GroupName,
}

/// The plan for a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SyncSnapshot {
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(super) has_client_log: bool,
    /// Its name at the source.
    pub source: SnapshotName,
    /// The planned step.
    pub step: SyncStep,
    /// Its name at the target.
    pub target: SnapshotName,
}

/// A planned step for a snapshot.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum SyncStep {
    /// None: the target has a different snapshot of that name.
    Conflict(SyncConflict),
    /// The target has the snapshot, and a part of it is transferred.
    Resync(Resync),
    /// None, for this reason.
    Skip(SyncSkip),
    /// The target lacks the snapshot, and all of it is transferred.
    Transfer,
}

/// Difference between two snapshots of one name.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum SyncConflict {
    /// The backed-up data.
    Content,
    /// Encryption or signing.
    Encryption,
    /// The key, or the signature.
    Key,
}

/// Part of a snapshot that is transferred although the target has the snapshot.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Resync {
    /// All of it, because the one at the target is damaged.
    Everything,
    /// The client log.
    Log,
    /// Notes, verify state and the rest of the unprotected part; the client log too, if it is missing.
    Manifest,
}

/// Reason why a snapshot is skipped.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum SyncSkip {
    /// The one at the target failed verification or cannot be read, and is not to be replaced.
    Damaged,
    /// It is not among the newest ones wanted.
    NotAmongLast,
    /// It is not completely encrypted.
    NotEncrypted,
    /// It has not passed a verification.
    NotVerified,
    /// The target lacks it, but has a newer one.
    Older,
    /// The target has it, and a newer one, so they are not compared.
    Present,
    /// It is unfinished at the source.
    Unfinished,
    /// The target has the same.
    UpToDate,
}

/// Objects of the target that the source no longer has.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct Vanished {
    /// Namespaces to remove if they are empty, inner ones first.
    pub namespaces: Vec<Namespace>,
    /// Snapshots that stay because they are protected.
    pub protected: Vec<SnapshotName>,
    /// Snapshots to remove, and each group with its last one. Unfinished snapshots stay.
    pub snapshots: Vec<SnapshotName>,
}

impl Vanished {
    pub(super) fn add<'a>(&mut self, infos: impl Iterator<Item = &'a SnapshotInfo>) {
        for info in infos.filter(|info| info.state == SnapshotState::Finished) {
            let names = if info.protected { &mut self.protected } else { &mut self.snapshots };
            names.push(info.name.clone());
        }
    }
}

/// Action for a snapshot that both stores have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// They are different ones.
    Conflict(SyncConflict),
    /// That of the target is bad, and stays.
    Damaged,
    /// The one at the target is damaged: transfer all of it again.
    Everything,
    /// The unprotected parts differ.
    Manifest,
    /// Nothing.
    Same,
}
