//! The parts of a plan: groups, snapshots, and the reasons for each step.

use crate::format::name::{AuthId, GroupName, Namespace, SnapshotName};
use crate::store::{SnapshotInfo, SnapshotState};

/// Whether both stores are one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Same {
    /// They are two.
    No,
    /// They are one, opened once.
    Opening,
    /// By their identity they are one. A copy of a store says the same.
    Twin,
}

/// What would be done with a group.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupPlan {
    /// Who owns the group at the target, if that is somebody else: then it is left alone.
    pub foreign_owner: Option<AuthId>,
    /// Its snapshots at the source, in the order in which they would be brought over.
    pub snapshots: Vec<SnapshotPlan>,
    /// Its name at the source.
    pub source: GroupName,
    /// Its name at the target.
    pub target: GroupName,
}

/// What would be done with a snapshot.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPlan {
    pub(super) has_client_log: bool,
    /// Its name at the source.
    pub source: SnapshotName,
    /// What would be done.
    pub step: Step,
    /// Its name at the target.
    pub target: SnapshotName,
}

/// What would be done with a snapshot.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: the target has another one of that name.
    Conflict(Conflict),
    /// The target has it, and something about it would be brought over.
    Resync(Resync),
    /// Nothing.
    Skip(Skip),
    /// The target does not have it, and all of it would be brought over.
    Transfer,
}

/// In what two snapshots of one name differ that cannot be brought over.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    /// In what was backed up.
    Content,
    /// In what is encrypted or signed.
    Encryption,
    /// In the key, or in the signature.
    Key,
}

/// What would be brought over of a snapshot that the target has.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resync {
    /// All of it, since that of the target is bad.
    Everything,
    /// The client log.
    Log,
    /// Notes, the state of verification and what else is not protected; the client log too, if it is missing.
    Manifest,
}

/// Why nothing is done with a snapshot.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Skip {
    /// That of the target failed its verification or cannot be read, and is not to be replaced.
    Damaged,
    /// It is not among the last ones.
    NotAmongLast,
    /// Not all of it is encrypted.
    NotEncrypted,
    /// It did not pass a verification.
    NotVerified,
    /// The target does not have it, but has a newer one.
    Older,
    /// The target has it, and a newer one; so they are not compared.
    Present,
    /// It is not finished at the source.
    Unfinished,
    /// The target has it as it is.
    UpToDate,
}

/// What the target has and the source has not any more.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vanished {
    /// Namespaces that would be removed if nothing is left in them, the inner ones first.
    pub namespaces: Vec<Namespace>,
    /// Snapshots that stay because they are protected.
    pub protected: Vec<SnapshotName>,
    /// Snapshots that would be removed, and with the last one of a group the group. Unfinished ones are left alone.
    pub snapshots: Vec<SnapshotName>,
}

impl Vanished {
    pub(super) fn note<'a>(&mut self, infos: impl Iterator<Item = &'a SnapshotInfo>) {
        for info in infos.filter(|info| info.state == SnapshotState::Finished) {
            let names = if info.protected { &mut self.protected } else { &mut self.snapshots };
            names.push(info.name.clone());
        }
    }
}
