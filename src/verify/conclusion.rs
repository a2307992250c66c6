//! Findings about one snapshot and its archives.

use std::collections::HashSet;

use crate::backend::LockGuard;
use crate::format::Digest;
use crate::format::manifest::ManifestFile;
use crate::format::name::SnapshotName;
use crate::verify::ledger::{ChunkId, Verdict};
use crate::verify::report::{DamagedArchive, DamagedSnapshot, Fault, LISTED, Merge};

/// Findings about a snapshot, to be recorded. The snapshot stays locked until then.
#[derive(Debug)]
pub(super) struct Conclusion {
    pub(super) damaged: DamagedSnapshot,
    /// `true` if the whole snapshot was read.
    pub(super) is_read: bool,
    pub(super) lock: Option<Box<dyn LockGuard>>,
    pub(super) merge: Merge,
    pub(super) missing: Vec<Digest>,
    /// `true` if some result is unknown.
    pub(super) open: bool,
}

/// Results for the chunks of an archive.
pub(super) struct Tally {
    pub(super) corrupt: HashSet<ChunkId>,
    pub(super) is_encrypted: bool,
    pub(super) misfits: HashSet<ChunkId>,
    pub(super) missing: HashSet<ChunkId>,
    pub(super) open: bool,
}

impl Conclusion {
    pub(super) fn new(name: SnapshotName, merge: Merge) -> Self {
        Self {
            damaged: DamagedSnapshot { archives: Vec::new(), manifest: None, name },
            is_read: false,
            lock: None,
            merge,
            missing: Vec::new(),
            open: false,
        }
    }

    /// Returns `true` if a part of the snapshot is missing.
    pub(super) fn lacks_something(&self) -> bool {
        !self.missing.is_empty()
    }

    pub(super) fn fault(&mut self, file: &ManifestFile, fault: Fault) {
        self.damaged.archives.push(DamagedArchive {
            corrupt: 0,
            digests: Vec::new(),
            fault: Some(fault),
            misfits: 0,
            missing: 0,
            name: file.name().clone(),
        });
    }

    pub(super) fn tally(&mut self, file: &ManifestFile, tally: Tally) {
        self.open |= tally.open;
        let Tally { corrupt, misfits, missing, .. } = tally;
        if corrupt.is_empty() && misfits.is_empty() && missing.is_empty() {
            return;
        }
        self.missing.extend(missing.iter().map(|id| id.digest));
        let listed = corrupt.iter().chain(&missing).map(|id| id.digest).take(LISTED);
        let mut digests: Vec<_> = listed.collect();
        digests.sort_unstable();
        self.damaged.archives.push(DamagedArchive {
            corrupt: corrupt.len() as u64,
            digests,
            fault: None,
            misfits: misfits.len() as u64,
            missing: missing.len() as u64,
            name: file.name().clone(),
        });
    }
}

impl Tally {
    pub(super) fn add(&mut self, id: ChunkId, verdict: Verdict) {
        match verdict {
            Verdict::Corrupt => drop(self.corrupt.insert(id)),
            Verdict::Checksum if !self.is_encrypted => drop(self.misfits.insert(id)),
            Verdict::Digest if self.is_encrypted => drop(self.misfits.insert(id)),
            Verdict::Checksum | Verdict::Digest | Verdict::Elsewhere | Verdict::Presence => {}
            Verdict::Missing => drop(self.missing.insert(id)),
            Verdict::OtherLength => drop(self.misfits.insert(id)),
            Verdict::Unchecked | Verdict::Unreachable(_) => self.open = true,
        }
    }
}
