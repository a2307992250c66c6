//! Conclusions about one snapshot and its archives.

use std::collections::HashSet;

use crate::backend::LockGuard;
use crate::format::manifest::{ManifestFile, VerifyResult};
use crate::format::name::SnapshotName;
use crate::verify::findings::{Merge, Visit, VisitFindings};
use crate::verify::ledger::{ChunkId, Verdict};
use crate::verify::report::{ArchiveDamage, LISTED, ObjectFault};

/// Conclusion about a snapshot, to be recorded. The snapshot stays locked until then.
#[derive(Debug)]
pub(super) struct Conclusion {
    pub(super) found: VisitFindings,
    /// `true` if the client log was not checked. The state of the snapshot does not depend on it.
    pub(super) is_log_open: bool,
    /// `true` if the whole snapshot was read.
    pub(super) is_read: bool,
    pub(super) lock: Option<Box<dyn LockGuard>>,
    pub(super) missing: Vec<ChunkId>,
    /// `true` if some result is unknown.
    pub(super) open: bool,
    pub(super) visit: Visit,
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
    pub(super) fn new(visit: Visit, name: SnapshotName, merge: Merge) -> Self {
        Self {
            found: VisitFindings::new(name, merge),
            is_log_open: false,
            is_read: false,
            lock: None,
            missing: Vec::new(),
            open: false,
            visit,
        }
    }

    /// Returns `true` if a part of the snapshot is missing.
    pub(super) fn lacks_something(&self) -> bool {
        !self.missing.is_empty()
    }

    /// The verify state for the manifest, if any: `ok` only if all of it was read and is good (H102).
    pub(super) fn state(&self) -> Option<VerifyResult> {
        if !self.found.damage.archives.is_empty() {
            Some(VerifyResult::Failed)
        } else if self.is_read && (!self.open || mutated!("verify-open-is-verified")) {
            Some(VerifyResult::Ok)
        } else {
            None
        }
    }

    pub(super) fn fault(&mut self, file: &ManifestFile, fault: ObjectFault) {
        self.found.damage.archives.push(ArchiveDamage {
            corrupt: 0,
            digests: Vec::new(),
            fault: Some(fault),
            misfits: 0,
            missing: 0,
            name: file.name.clone(),
        });
    }

    pub(super) fn tally(&mut self, file: &ManifestFile, tally: Tally) {
        self.open |= tally.open;
        let Tally { corrupt, misfits, missing, .. } = tally;
        if corrupt.is_empty() && misfits.is_empty() && missing.is_empty() {
            return;
        }
        self.missing.extend(&missing);
        let listed = corrupt.iter().chain(&missing).map(|id| id.digest).take(LISTED);
        let mut digests: Vec<_> = listed.collect();
        digests.sort_unstable();
        self.found.damage.archives.push(ArchiveDamage {
            corrupt: corrupt.len() as u64,
            digests,
            fault: None,
            misfits: misfits.len() as u64,
            missing: missing.len() as u64,
            name: file.name.clone(),
        });
    }
}

impl Tally {
    pub(super) fn new(is_encrypted: bool) -> Self {
        Self {
            corrupt: HashSet::new(),
            is_encrypted,
            misfits: HashSet::new(),
            missing: HashSet::new(),
            open: false,
        }
    }

    pub(super) fn add(&mut self, id: ChunkId, verdict: Verdict) {
        match verdict {
            Verdict::Corrupt => drop(self.corrupt.insert(id)),
            Verdict::Authentic | Verdict::Checksum if !self.is_encrypted => drop(self.misfits.insert(id)),
            Verdict::Digest if self.is_encrypted => drop(self.misfits.insert(id)),
            Verdict::Authentic
            | Verdict::Checksum
            | Verdict::Digest
            | Verdict::Elsewhere
            | Verdict::Presence => {}
            Verdict::Missing => drop(self.missing.insert(id)),
            Verdict::OtherLength => drop(self.misfits.insert(id)),
            Verdict::Unchecked | Verdict::Unreachable(_) => self.open = true,
        }
    }
}
