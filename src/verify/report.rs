//! What a verification found.

use std::collections::BTreeMap;

use crate::backend::Unreadable;
use crate::error::{Error, ErrorKind};
use crate::format::Digest;
use crate::format::manifest::VerifyResult;
use crate::format::name::{ArchiveName, SnapshotName};

/// How many digests, and how many failures, a report lists at most. What it counts is exact.
pub(super) const LISTED: usize = 1000;

/// What a verification found. That something is damaged is no error: it is here.
#[non_exhaustive]
#[derive(Clone, Debug, Default)]
pub struct VerifyReport {
    /// Bytes that were read, as they are stored. What is read once more to put a chunk aside or back is not among them.
    pub bytes: u64,
    /// What the chunks are like, each counted once.
    pub chunks: ChunkCounts,
    /// Client logs that are damaged. No manifest vouches for them, so that they are no part of the state of a snapshot.
    pub damaged_logs: Vec<SnapshotName>,
    /// Snapshots in which something is corrupt or missing, in order.
    pub damaged: Vec<DamagedSnapshot>,
    /// What ended it before everything was checked, if anything did.
    pub incomplete: Option<Incomplete>,
    /// Whether more chunks were checked than could be remembered: some may have been checked, and counted, several times.
    pub is_memory_full: bool,
    /// Whether the list of suspect chunks is damaged. Nothing is put aside while it is; it can be deleted when nothing uses the store.
    pub is_suspicion_damaged: bool,
    /// After a sample: where the next one begins.
    pub next_rotation: Option<u64>,
    /// Manifests and indexes that were read, and blobs that were checked.
    pub objects: u64,
    /// Corrupt chunks that were put aside.
    pub quarantined: u64,
    /// Missing chunks that were put back, since what was put aside of them is good. They count as good.
    pub reinstated: u64,
    /// Requests that were made to read something. A page of a listing is one.
    pub requests: u64,
    /// Snapshots of which nothing or not everything was looked at, and why.
    pub skipped: Vec<SkippedSnapshot>,
    /// Snapshots of which everything is there and good, as far as this kind of run can tell. See [`ChunkCounts`] for how far that is.
    pub sound: u64,
    /// Links, pipes and other entries in the place of an index, a snapshot, a group or a namespace. The run did not look behind them.
    pub unreadable: Vec<Unreadable>,
    /// Corrupt chunks that could not be put aside, or missing ones that could not be put back: they stay suspect. How many.
    pub unrepaired: u64,
    /// Why, for the first thousand of them.
    pub unrepaired_because: Vec<(Digest, Error)>,
    /// Snapshots whose manifest could not be changed, and why. The first thousand.
    pub unrecorded: Vec<(SnapshotName, ErrorKind)>,
    /// Objects that failed a check once and passed it when they were fetched again: something on the way is not to be trusted.
    pub unsteady: u64,
}

impl VerifyReport {
    /// Whether everything was looked at that was to be, and nothing is damaged.
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

/// How many chunks are what. The first three are good, by how much was looked at (H100).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChunkCounts {
    /// Those that are complete and fail a check.
    pub corrupt: u64,
    /// Good: their contents have the digest.
    pub digest: u64,
    /// Certainly not there.
    pub missing: u64,
    /// Good as far as the checksum tells: they are encrypted, and without the key that is all that can be checked. It is not proof
    /// against intent, and does not cover everything that is needed to decrypt them: they are not verified.
    pub checksum: u64,
    /// Good as far as a listing tells: there is an object.
    pub presence: u64,
    /// Nothing is known of them.
    pub unreachable: u64,
}

/// How much of a chunk was looked at.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strength {
    /// The checksum of what is stored, which is encrypted.
    Checksum,
    /// The digest of the contents.
    Digest,
    /// Whether it is there.
    Presence,
}

/// What is known of a chunk.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It is complete and fails a check.
    Corrupt,
    /// It is good, as far as was looked.
    Good(Strength),
    /// It is certainly not there.
    Missing,
    /// Nothing is known: it could not be read, for this kind of reason.
    Unreachable(ErrorKind),
}

/// A snapshot in which something is corrupt or missing.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedSnapshot {
    /// The damaged archives.
    pub archives: Vec<DamagedArchive>,
    /// What is the matter with the manifest, if anything is: nothing else of the snapshot was looked at then, and no state was written.
    pub manifest: Option<Fault>,
    /// Its name.
    pub name: SnapshotName,
}

/// An archive in which something is corrupt or missing.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedArchive {
    /// Chunks that are corrupt. Each is counted once.
    pub corrupt: u64,
    /// Some of the chunks that are corrupt or missing: at most 1000 in a report.
    pub digests: Vec<Digest>,
    /// What is the matter with the index or the blob itself, if anything is. The chunks of such an index were not looked at.
    pub fault: Option<Fault>,
    /// Chunks that are good, and not what the index says: of another length, or encrypted where it should not be, or the reverse.
    pub misfits: u64,
    /// Chunks that are missing. Each is counted once.
    pub missing: u64,
    /// Its name.
    pub name: ArchiveName,
}

/// What is the matter with an object.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It fails a check, or is not the one in the manifest.
    Corrupt,
    /// It is not there.
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
    /// It was verified not long ago. Whether its chunks are there was looked at all the same.
    VerifiedBefore,
}

/// Something that happened in a verification.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// A chunk was looked at. Each is told of once.
    ChunkChecked {
        /// Its digest.
        digest: &'a Digest,
        /// What is known of it.
        finding: Finding,
    },
    /// A snapshot was looked at.
    SnapshotFinished {
        /// Its name.
        snapshot: &'a SnapshotName,
        /// What is to be written into its manifest, if anything is.
        state: Option<VerifyResult>,
    },
    /// A look at a snapshot is begun.
    SnapshotStarted {
        /// Its name.
        snapshot: &'a SnapshotName,
    },
}

/// What is found, while it is being found.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) damaged: BTreeMap<SnapshotName, DamagedSnapshot>,
    digests: usize,
    pub(super) report: VerifyReport,
}

/// Whether what was found of a snapshot before still counts.
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
