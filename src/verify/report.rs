//! Results of a verification.

use std::collections::BTreeMap;

use crate::backend::Unreadable;
use crate::error::{Error, ErrorKind};
use crate::format::Digest;
use crate::format::manifest::VerifyResult;
use crate::format::name::{ArchiveName, SnapshotName};

/// Maximum number of digests and failures listed in a report. Counts are exact.
pub(super) const LISTED: usize = 1000;

/// Result of a verification. Damage is data in it, not an error.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Stored bytes read, without the reads of quarantine and reinstatement.
    pub bytes: u64,
    /// Number of chunks by result, each counted once.
    pub chunks: ChunkCounts,
    /// Damaged client logs. No manifest covers them, so they do not affect the state of a snapshot.
    pub damaged_logs: Vec<SnapshotName>,
    /// Snapshots with corrupt or missing parts, in order.
    pub damaged: Vec<DamagedSnapshot>,
    /// Reason why the run ended early; `None` if it checked everything.
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
    /// Number of complete and good snapshots, as far as this mode can tell. See [`ChunkCounts`] for the strength of the checks.
    pub sound: u64,
    /// Links, pipes and other entries in the place of an index, a snapshot, a group or a namespace. The run did not look behind them.
    pub unreadable: Vec<Unreadable>,
    /// Number of chunks whose quarantine or reinstatement failed. They stay suspect.
    pub unrepaired: u64,
    /// The first thousand of these failures.
    pub unrepaired_because: Vec<(Digest, Error)>,
    /// The first thousand snapshots whose manifest could not be updated, and why.
    pub unrecorded: Vec<(SnapshotName, ErrorKind)>,
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
pub struct ChunkCounts {
    /// Complete, and fails a check.
    pub corrupt: u64,
    /// Good: the contents have the digest.
    pub digest: u64,
    /// Certainly missing.
    pub missing: u64,
    /// Good by its checksum: the chunk is encrypted, and nothing more can be checked without the key. This neither excludes
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
pub enum Strength {
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
pub enum Finding {
    /// Complete, and fails a check.
    Corrupt,
    /// Good, by a check of this strength.
    Good(Strength),
    /// Certainly missing.
    Missing,
    /// Unknown: it could not be read, for this kind of reason.
    Unreachable(ErrorKind),
}

/// A snapshot with corrupt or missing parts.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedSnapshot {
    /// The damaged archives.
    pub archives: Vec<DamagedArchive>,
    /// Defect of the manifest, if any: nothing else of the snapshot was checked then, and no state was recorded.
    pub manifest: Option<Fault>,
    /// Its name.
    pub name: SnapshotName,
}

/// An archive with corrupt or missing parts.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedArchive {
    /// Chunks that are corrupt. Each is counted once.
    pub corrupt: u64,
    /// Some of the chunks that are corrupt or missing: at most 1000 in a report.
    pub digests: Vec<Digest>,
    /// Defect of the index or the blob itself, if any. The chunks of such an index were not checked.
    pub fault: Option<Fault>,
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
pub enum Fault {
    /// It fails a check, or is not the one in the manifest.
    Corrupt,
    /// Missing.
    Missing,
}

/// Why a run ended before everything was checked.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incomplete {
    /// The flag was set.
    Aborted,
    /// The budget of a sample was used up before all manifests and indexes were read, and no chunk was. That it ends the reading of chunks
    /// is what it is for.
    Budget,
    /// Something could not be reached.
    Unreachable,
}

/// A snapshot of which nothing or not everything was looked at.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedSnapshot {
    /// Its name.
    pub name: SnapshotName,
    /// Why.
    pub reason: SkipReason,
}

/// Why a snapshot was skipped.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// Something that happened in a verification.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A chunk was checked. Emitted once for each.
    ChunkChecked {
        /// Its digest.
        digest: &'a Digest,
        /// The result.
        finding: Finding,
    },
    /// A snapshot was looked at.
    SnapshotFinished {
        /// Its name.
        snapshot: &'a SnapshotName,
        /// The new verify state, if any.
        state: Option<VerifyResult>,
    },
    /// A look at a snapshot is begun.
    SnapshotStarted {
        /// Its name.
        snapshot: &'a SnapshotName,
    },
}

/// Findings while a run collects them.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) damaged: BTreeMap<SnapshotName, DamagedSnapshot>,
    digests: usize,
    pub(super) report: VerifyReport,
}

/// Effect on earlier findings about a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    Add,
    Replace,
}

impl Findings {
    /// Adds what was found of a snapshot.
    pub(super) fn damage(&mut self, mut found: DamagedSnapshot, merge: Merge) {
        if merge == Merge::Replace
            && let Some(old) = self.damaged.remove(&found.name)
        {
            self.digests -= old.archives.iter().map(|archive| archive.digests.len()).sum::<usize>();
        }
        for archive in &mut found.archives {
            archive.digests.truncate(LISTED - self.digests.min(LISTED));
            self.digests += archive.digests.len();
        }
        let Some(known) = self.damaged.get_mut(&found.name) else {
            self.damaged.insert(found.name.clone(), found);
            return;
        };
        known.manifest = known.manifest.or(found.manifest);
        for archive in found.archives {
            match known.archives.iter_mut().find(|known| known.name == archive.name) {
                None => known.archives.push(archive),
                Some(known) => {
                    known.corrupt += archive.corrupt;
                    known.missing += archive.missing;
                    known.misfits += archive.misfits;
                    known.fault = known.fault.or(archive.fault);
                    known.digests.extend(archive.digests);
                }
            }
        }
    }

    /// Notes that a chunk could not be repaired.
    pub(super) fn unrepaired(&mut self, digest: Digest, error: Error) {
        self.report.unrepaired += 1;
        if self.report.unrepaired_because.len() < LISTED {
            self.report.unrepaired_because.push((digest, error));
        }
    }

    pub(super) fn skip(&mut self, name: &SnapshotName, reason: SkipReason) {
        let skipped = SkippedSnapshot { name: name.clone(), reason };
        if !self.report.skipped.contains(&skipped) {
            self.report.skipped.push(skipped);
        }
    }
}
