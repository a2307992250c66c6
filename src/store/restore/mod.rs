//! Reading of snapshots: a finished snapshot, its archives, and the targets of a restore.

pub(super) mod archive;
mod chunk_cache;
mod share;
pub(super) mod snapshot;
mod stream;
pub(super) mod target;
