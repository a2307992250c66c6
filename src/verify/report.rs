//! Results of a verification.

use std::collections::BTreeMap;

use crate::backend::Unreadable;
use crate::error::{Error, ErrorKind};
use crate::format::Digest;
use crate::format::manifest::VerifyResult;
use crate::format::name::{ArchiveName, SnapshotName};

/// Maximum number of digests and failures listed in a report. Counts are exact.
pub(super) const LISTED: usize = 1000;

/// Result of all executions of a plan so far. Damage is data in it, not an error.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct VerifyReport {
    /// Stored bytes read, without the reads of quarantine and reinstatement.
    pub bytes: u64,
    /// Number of chunks by result, each counted once.
    pub chunks: ChunkCounts,
    /// Damaged client logs. No manifest covers them, so they do not affect the state of a snapshot.
    pub damaged_logs: Vec<SnapshotName>,
    /// Snapshots with corrupt or missing parts, in order.
    pub damaged: Vec<SnapshotDamage>,
    /// Reason why the last execution ended early; `None` if everything was checked.
    pub incomplete: Option<Incomplete>,
    /// `true` if there were more chunks than results fit in memory: some may have been checked, and counted, repeatedly.
    pub is_memory_full: bool,
    /// `true` if the list of suspects is damaged. Nothing is quarantined then; delete the list when nothing uses the store.
    pub is_suspicion_damaged: bool,
    /// After a sample: start of the next one.
    pub next_rotation: Option<u64>,
    /// Number of manifests, indexes and blobs checked.
    pub objects: u64,
    /// Number of quarantined chunks.
    pub quarantined: u64,
    /// Number of reinstated chunks. They count as good.
    pub reinstated: u64,
    /// Number of read requests. A page of a listing is one.
    pub requests: u64,
    /// Snapshots that were not checked, or not completely, and why.
    pub skipped: Vec<SkippedSnapshot>,
    /// Number of complete and good snapshots, as far as this mode can tell; 0 after a sample, which reads no snapshot completely. See
    /// [`ChunkCounts`] for the strength of the checks.
    pub sound: u64,
    /// Links, pipes and other entries in the place of an index, a snapshot, a group or a namespace. The run did not look behind them.
    pub unreadable: Vec<Unreadable>,
    /// Number of chunks whose quarantine or reinstatement failed. They stay suspect.
    pub unrepaired: u64,
    /// The first thousand of these failures, by chunk.
    pub unrepaired_because: BTreeMap<Digest, Error>,
    /// The first thousand snapshots whose manifest could not be updated, and why.
    pub unrecorded: BTreeMap<SnapshotName, ErrorKind>,
    /// Number of objects that failed a check once and passed it when fetched again: a part of the path to the store is unreliable.
    pub unsteady: u64,
}

impl VerifyReport {
    /// Returns `true` if everything was checked and nothing is damaged.
    pub fn is_clean(&self) -> bool {
        let is_harmless = |skipped: &SkippedSnapshot| {
            matches!(
                skipped.reason,
                SkipReason::Unfinished | SkipReason::VerifiedBefore | SkipReason::Vanished
            )
        };
        self.incomplete.is_none()
            && self.damaged.is_empty()
            && self.damaged_logs.is_empty()
            && self.unreadable.is_empty()
            && self.skipped.iter().all(is_harmless)
    }
}

/// Number of chunks by result. The first three are good, by strength of the check.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ChunkCounts {
    /// Complete, and fails a check.
    pub corrupt: u64,
    /// Good: the contents have the digest, and if the chunk is encrypted it is authentic under its key.
    pub digest: u64,
    /// Certainly missing.
    pub missing: u64,
    /// Good by its checksum: the chunk is encrypted, and nothing more can be checked without the [key](crate::verify::VerifyOptions::key). This neither excludes
    /// intentional changes nor covers all data that decryption needs: these chunks are not verified.
    pub checksum: u64,
    /// Good by a listing: an object exists.
    pub presence: u64,
    /// Unknown.
    pub unreachable: u64,
}

/// Strength of a check.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum CheckStrength {
    /// The checksum of the stored, encrypted bytes.
    Checksum,
    /// The digest of the contents.
    Digest,
    /// Existence.
    Presence,
}

/// Result for a chunk.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum ChunkFinding {
    /// Complete, and fails a check.
    Corrupt,
    /// Good, by a check of this strength.
    Good(CheckStrength),
    /// Certainly missing.
    Missing,
    /// Unknown: it could not be read, for this kind of reason.
    Unreachable(ErrorKind),
}

/// A snapshot with corrupt or missing parts.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SnapshotDamage {
    /// The damaged archives.
    pub archives: Vec<ArchiveDamage>,
    /// Defect of the manifest, if any: nothing else of the snapshot was checked then, and no state was recorded.
    pub manifest: Option<ObjectFault>,
    /// Its name.
    pub name: SnapshotName,
}

/// An archive with corrupt or missing parts.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct ArchiveDamage {
    /// Chunks that are corrupt. Each is counted once.
    pub corrupt: u64,
    /// Some of the chunks that are corrupt or missing: at most 1000 in a report.
    pub digests: Vec<Digest>,
    /// Defect of the index or the blob itself, if any. The chunks of such an index were not checked.
    pub fault: Option<ObjectFault>,
    /// Chunks that are good, and not what the index says: of another length, or encrypted where it should not be, or the reverse.
    pub misfits: u64,
    /// Chunks that are missing. Each is counted once.
    pub missing: u64,
    /// Its name.
    pub name: ArchiveName,
}

/// Defect of an object.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum ObjectFault {
    /// It fails a check, or is not the one in the manifest.
    Corrupt,
    /// Missing.
    Missing,
    /// A manifest that names a key of the verification, and is not the one that the key signed.
    Signature,
}

/// Reason why an execution ended before everything was checked.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Incomplete {
    /// The caller set the abort flag. The next execution continues.
    Aborted,
    /// The budget of a sample was used up before all manifests and indexes were read, and no chunk was. It spans all executions of
    /// the plan.
    Budget,
    /// Something could not be reached. The next execution checks it again.
    Unreachable,
}

/// A snapshot of which nothing or not everything was looked at.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct SkippedSnapshot {
    /// Its name.
    pub name: SnapshotName,
    /// The reason.
    pub reason: SkipReason,
}

/// Reason why a snapshot was skipped.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum SkipReason {
    /// It is being written or deleted.
    Busy,
    /// It has no manifest.
    Unfinished,
    /// Its manifest could not be read, for this kind of reason.
    Unreachable(ErrorKind),
    /// It was deleted meanwhile.
    Vanished,
    /// Verified recently. The existence of its chunks was still checked.
    VerifiedBefore,
}

/// A progress event of a verification.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(tag = "event", rename_all = "snake_case"))]
pub enum VerifyEvent {
    /// A chunk was checked. Emitted once for each, unless a later execution has to check it again.
    ChunkChecked {
        /// Its digest.
        digest: Digest,
        /// The result.
        finding: ChunkFinding,
    },
    /// The check of a snapshot ended.
    SnapshotFinished {
        /// Its name.
        snapshot: SnapshotName,
        /// The new verify state, if any.
        state: Option<VerifyResult>,
    },
    /// The check of a snapshot started.
    SnapshotStarted {
        /// Its name.
        snapshot: SnapshotName,
    },
}
