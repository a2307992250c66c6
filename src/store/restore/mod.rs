//! How snapshots are read: a finished snapshot, its archives, and the targets of a restore.

pub(in crate::store) mod archive;
pub(in crate::store) mod snapshot;
pub(in crate::store) mod target;
