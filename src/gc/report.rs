//! Results of a garbage collection.

use crate::error::Error;
use crate::format::layout::Key;
use crate::format::name::SnapshotName;
use crate::gc::prices::PackCost;

/// A number of chunks and their stored bytes.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ChunkTally {
    /// Stored bytes; 0 if sizes were not looked up.
    pub bytes: u64,
    /// Number of chunks.
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

/// A number of packs and their bytes.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PackTally {
    /// Bytes of the packs.
    pub bytes: u64,
    /// Number of packs.
    pub packs: u64,
}

impl PackTally {
    pub(super) fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// An action on packs. Numbers of requests and of bytes read and written are estimates: they depend on where the chunks are
/// in their packs, and on what else is read at the same time.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PackAction {
    /// Bytes of the packs.
    pub bytes: u64,
    /// Cost and saving, if [prices](crate::gc::GcOptions::prices) were given.
    pub cost: Option<PackCost>,
    /// Number of requests that delete packs.
    pub deletes: u64,
    /// Bytes that the store is smaller by when the packs are deleted. Where listings may lag, that is up to a later collection.
    pub freed_bytes: u64,
    /// Number of requests that read chunks.
    pub gets: u64,
    /// Number of packs.
    pub packs: u64,
    /// Number of requests that store new packs and segments of the index.
    pub puts: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes of new packs.
    pub written_bytes: u64,
}

/// Packs that stay, by the first reason that applies, in this order.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct LeftPacks {
    /// A writer has yet to record them, no segment names them and they are young or unreadable, or an earlier collection dropped them and
    /// other processes may not know yet.
    pub unsettled: PackTally,
    /// They have the last quarantined copy of a chunk in use.
    pub quarantined: PackTally,
    /// They are younger than [`GcOptions::keep_packs`](crate::gc::GcOptions::keep_packs).
    pub kept: PackTally,
    /// They would soon be rewritten again: garbage in them is still in its grace time, or they are small and that young themselves.
    pub soon_again: PackTally,
    /// [`GcOptions::max_repack_bytes`](crate::gc::GcOptions::max_repack_bytes) is reached.
    pub limited: PackTally,
    /// They are small, and all such packs of data, or of metadata, make no full one together.
    pub small: PackTally,
    /// A quarter or more is unused, but no more of the store than [`GcOptions::max_unused`](crate::gc::GcOptions::max_unused).
    pub tolerated: PackTally,
    /// Less than a quarter is unused.
    pub in_use: PackTally,
}

/// The packs of a packed store, by their treatment.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PackPlan {
    /// Bytes of chunks that would be copied from packs that are rewritten or merged.
    pub copied_bytes: u64,
    /// Packs without a chunk in use, and those that an earlier collection dropped, that would be deleted.
    pub delete: PackAction,
    /// Packs that stay.
    pub leave: LeftPacks,
    /// Small packs that would be merged, since they make a full pack together.
    pub merge: PackAction,
    /// All packs.
    pub packs: PackTally,
    /// Packs that would be rewritten without their unused chunks, since a quarter or more of each is unused.
    pub repack: PackAction,
    /// Number of segments of the index.
    pub segments: u64,
    /// Bytes of packs that nothing in use takes up.
    pub unused_bytes: u64,
}

/// A snapshot that lacks chunks.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GcDamagedSnapshot {
    /// Number of references to missing chunks in its indexes.
    pub missing: u64,
    /// Name of the snapshot.
    pub name: SnapshotName,
}

/// Findings of a plan.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GcSummary {
    /// Total size in bytes of the archives of all indexes.
    pub archive_bytes: u64,
    /// The snapshots that lack chunks, at most a thousand of them.
    pub damaged: Vec<GcDamagedSnapshot>,
    /// Number of all snapshots that lack chunks.
    pub damaged_count: u64,
    /// Foreign paths, at most a thousand of them. They stay.
    pub foreign: Vec<String>,
    /// Number of all foreign paths.
    pub foreign_count: u64,
    /// Chunks that the execution would remove.
    pub garbage: ChunkTally,
    /// Referenced chunks.
    pub in_use: ChunkTally,
    /// Number of indexes read.
    pub indexes: u64,
    /// Number of chunks that an index names and the store lacks, by a look-up of each by name.
    pub missing: u64,
    /// The packs of a packed store.
    pub packs: Option<PackPlan>,
    /// Quarantined chunks.
    pub quarantined: ChunkTally,
    /// Quarantined chunks that the execution would remove.
    pub quarantined_garbage: ChunkTally,
    /// Unreferenced chunks that stay for now: used too recently, or new candidates.
    pub waiting: ChunkTally,
}

/// The way an execution ended.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum GcEnd {
    /// Aborted; another execution continues.
    Aborted,
    /// Everything was processed.
    Complete,
    /// Stopped by an error; another execution continues, if this process still owns the store.
    Stopped(Error),
}

/// An object that was not removed, or may not have been.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GcFailure {
    /// The cause.
    pub error: Error,
    /// Key of the object.
    pub key: Key,
}

/// Result of all executions of a plan. Only confirmed deletions count as removed.
#[non_exhaustive]
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GcReport {
    /// Chunks that were already gone.
    pub absent: u64,
    /// Chunks that stay because another operation held their digest lock.
    pub busy: u64,
    /// The way it ended.
    pub end: GcEnd,
    /// Number of objects that were not removed, or may not have been.
    pub failed: u64,
    /// The first thousand of them.
    pub failures: Vec<GcFailure>,
    /// Number of removed leftovers of puts that never ended.
    pub leftovers: u64,
    /// Reason why leftovers of puts were not looked for or removed: the credentials lack that right, or the
    /// server lacks that call. Everything else was done; a bucket rule that aborts old uploads does the same.
    pub leftovers_refused: Option<Error>,
    /// Deleted packs of a packed store. Chunks count as removed once their pack is dropped.
    pub packs: PackTally,
    /// Chunks that stay because a backup began to use them after the plan was made.
    pub pinned: u64,
    /// Removed chunks.
    pub removed: ChunkTally,
    /// Errors in storing the report, a part of the list of candidates, or the reserve of a bucket, mostly because the store
    /// is full. They keep no garbage from being removed.
    pub remarks: Vec<Error>,
    /// Removed quarantined chunks.
    pub removed_quarantined: ChunkTally,
    /// `true` if `.gc-status` was written.
    pub status_written: bool,
    /// Unreferenced chunks that stay for now: too young, or new candidates.
    pub waiting: ChunkTally,
}
