//! Progress events of a sync.

use std::fmt;

use crate::format::Digest;
use crate::format::name::SnapshotName;
use crate::sync::report::Outcome;

/// Is told what a sync does.
///
/// Called from the task that does the work, often several times a second: it has to return at once and must not block.
pub trait SyncObserver: fmt::Debug + Send + Sync + 'static {
    /// Something happened.
    fn on_event(&self, event: &SyncEvent<'_>);
}

/// Something that happened in a sync. Snapshots are named as at the target.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub enum SyncEvent<'a> {
    /// A chunk that the target has was taken over.
    ChunkReused {
        /// Digest of the chunk.
        digest: Digest,
        /// The snapshot.
        snapshot: &'a SnapshotName,
    },
    /// A chunk is about to be stored at the target, and the bandwidth that it takes was waited for.
    ChunkSent {
        /// Digest of the chunk.
        digest: Digest,
        /// The snapshot.
        snapshot: &'a SnapshotName,
        /// Its size as it is stored, in bytes.
        stored: u64,
    },
    /// A snapshot is over, in whatever way.
    SnapshotFinished {
        /// The outcome.
        outcome: &'a Outcome,
        /// Name of the snapshot.
        snapshot: &'a SnapshotName,
    },
    /// A snapshot is begun.
    SnapshotStarted {
        /// Name of the snapshot.
        snapshot: &'a SnapshotName,
    },
}

/// An observer that ignores all events.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Silent;

impl SyncObserver for Silent {
    fn on_event(&self, _: &SyncEvent<'_>) {}
}
