//! Reading of snapshots: a finished snapshot, its archives, and the targets of a restore.

pub(super) mod archive;
pub(super) mod snapshot;
pub(super) mod target;
