//! Progress events of a sync.

use std::sync::Arc;

use crate::format::Digest;
use crate::format::name::SnapshotName;
use crate::sync::report::SyncOutcome;

/// A progress event of a sync. Snapshots have their names at the target.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(tag = "event", rename_all = "snake_case"))]
pub enum SyncEvent {
    /// A chunk that the target has was reused.
    ChunkReused {
        /// Digest of the chunk.
        digest: Digest,
        /// Name of the snapshot.
        snapshot: Arc<SnapshotName>,
    },
    /// A chunk is about to be stored at the target, within the limit of bandwidth.
    ChunkSent {
        /// Digest of the chunk.
        digest: Digest,
        /// Name of the snapshot.
        snapshot: Arc<SnapshotName>,
        /// Its stored size, in bytes.
        stored: u64,
    },
    /// An attempt to sync a snapshot ended.
    SnapshotFinished {
        /// The outcome.
        outcome: SyncOutcome,
        /// Name of the snapshot.
        snapshot: Arc<SnapshotName>,
    },
    /// An attempt to sync a snapshot started.
    SnapshotStarted {
        /// Name of the snapshot.
        snapshot: Arc<SnapshotName>,
    },
}
