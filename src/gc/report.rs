//! What a garbage collection found and did.

use crate::error::Error;
use crate::format::layout::Key;
use crate::format::name::SnapshotName;

/// A number of chunks, and how many bytes they take in the store.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkTally {
    /// Bytes as they are stored; 0 where sizes were not looked up.
    pub bytes: u64,
    /// How many.
    pub chunks: u64,
}

impl ChunkTally {
    pub(super) fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        self.chunks += 1;
    }

    pub(super) fn join(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.chunks += other.chunks;
    }
}

/// A snapshot that names chunks which are not in the store.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedSnapshot {
    /// How many times its indexes name a chunk that is missing.
    pub missing: u64,
    /// Which snapshot.
    pub name: SnapshotName,
}

/// How an execution ended.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum GcEnd {
    /// It was aborted; executed again, it goes on.
    Aborted,
    /// All that was to go was seen to.
    Complete,
    /// It could not go on; executed again, it does where it stopped, if the store is still this process's.
    Stopped(Error),
}

/// An object that could not be removed, or of which that is not known.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct GcFailure {
    /// Why.
    pub error: Error,
    /// Which.
    pub key: Key,
}

/// What an execution did, over all the times that it was begun. Only what was confirmed is counted as removed (H36).
#[non_exhaustive]
#[derive(Clone, Debug)]
pub struct GcReport {
    /// Chunks that were gone already.
    pub absent: u64,
    /// Chunks that somebody was working on, and that stay.
    pub busy: u64,
    /// How it ended.
    pub end: GcEnd,
    /// How many objects could not be removed, or nobody knows.
    pub failed: u64,
    /// The first thousand of them.
    pub failures: Vec<GcFailure>,
    /// Parts of puts that never ended and were removed.
    pub leftovers: u64,
    /// Why parts of puts that never ended were not looked for, or not removed, if they were not: the credentials lack that right, or the
    /// server lacks that call. Everything else was done; a rule of the bucket that aborts old uploads does the same.
    pub leftovers_refused: Option<Error>,
    /// Chunks that a backup began to use since the plan was made, and that stay.
    pub pinned: u64,
    /// Chunks that were removed.
    pub removed: ChunkTally,
    /// Errors with which the report, a part of the list of candidates, or the reserve of a bucket could not be written, mostly since the store
    /// is full. Nothing that was to be removed stays because of it.
    pub remarks: Vec<Error>,
    /// Chunks removed that had been put aside as corrupt.
    pub removed_quarantined: ChunkTally,
    /// Whether the state was written that the next run and PBS look at.
    pub status_written: bool,
    /// Chunks that are unused and stay for now: too young, or seen for the first time.
    pub waiting: ChunkTally,
}
