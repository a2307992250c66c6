//! Findings while a run collects them.
//!
//! Findings about a snapshot are *provisional* until a pass has concluded it: the next execution checks the snapshot again, and its
//! findings then replace the provisional ones. So nothing counts twice, and the report of an interrupted execution still has them.

use std::collections::BTreeMap;

use crate::error::{Error, ErrorKind};
use crate::format::Digest;
use crate::format::name::SnapshotName;
use crate::verify::report::{LISTED, SkipReason, SkippedSnapshot, SnapshotDamage, VerifyReport};

/// One check of a snapshot: at most one at a time in each pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Visit {
    /// Number of the snapshot in the plan.
    pub(super) snapshot: usize,
    /// Number of the pass.
    pub(super) pass: usize,
}

/// Relation of a pass to earlier findings about a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Merge {
    /// Each pass looks at other chunks.
    Add,
    /// The pass looks at all chunks, those with earlier findings among them.
    Max,
}

/// Findings about a snapshot in one pass.
#[derive(Clone, Debug)]
pub(super) struct VisitFindings {
    pub(super) damage: SnapshotDamage,
    pub(super) has_damaged_log: bool,
    pub(super) merge: Merge,
    pub(super) objects: u64,
    pub(super) skipped: Option<SkipReason>,
    pub(super) unrepaired: Vec<(Digest, Error)>,
    pub(super) unsteady: u64,
}

impl VisitFindings {
    pub(super) fn new(name: SnapshotName, merge: Merge) -> Self {
        Self {
            damage: SnapshotDamage { archives: Vec::new(), manifest: None, name },
            has_damaged_log: false,
            merge,
            objects: 0,
            skipped: None,
            unrepaired: Vec::new(),
            unsteady: 0,
        }
    }
}

/// All findings of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Findings {
    pub(super) damaged: BTreeMap<SnapshotName, SnapshotDamage>,
    digests: usize,
    provisional: BTreeMap<Visit, VisitFindings>,
    pub(super) report: VerifyReport,
}

impl Findings {
    /// Keeps findings until the next visit of the snapshot in the same pass replaces them.
    pub(super) fn keep(&mut self, visit: Visit, found: VisitFindings) {
        self.provisional.insert(visit, found);
    }

    /// Adds the findings of a pass that has concluded the snapshot.
    pub(super) fn conclude(&mut self, visit: Visit, found: VisitFindings) {
        self.provisional.remove(&visit);
        self.add(found);
    }

    /// All findings so far, provisional ones included.
    pub(super) fn so_far(&self) -> Self {
        let mut all = self.clone();
        for found in std::mem::take(&mut all.provisional).into_values() {
            all.add(found);
        }
        all
    }

    fn add(&mut self, found: VisitFindings) {
        let VisitFindings { damage, has_damaged_log, merge, objects, skipped, unrepaired, unsteady } = found;
        let report = &mut self.report;
        report.objects += objects;
        report.unsteady += unsteady;
        if has_damaged_log && !report.damaged_logs.contains(&damage.name) {
            report.damaged_logs.push(damage.name.clone());
        }
        if let Some(reason) = skipped {
            let skipped = SkippedSnapshot { name: damage.name.clone(), reason };
            if !report.skipped.contains(&skipped) {
                report.skipped.push(skipped);
            }
        }
        for (digest, error) in unrepaired {
            self.unrepaired(digest, error);
        }
        if damage.manifest.is_some() || !damage.archives.is_empty() {
            self.damage(damage, merge);
        }
    }

    fn damage(&mut self, found: SnapshotDamage, merge: Merge) {
        let name = found.name.clone();
        let known = self.damaged.entry(name.clone()).or_insert_with(|| SnapshotDamage {
            archives: Vec::new(),
            manifest: None,
            name,
        });
        known.manifest = known.manifest.or(found.manifest);
        for mut archive in found.archives {
            let at = known.archives.iter().position(|known| known.name == archive.name);
            if let Some(at) = at {
                archive.digests.retain(|digest| !known.archives[at].digests.contains(digest));
            }
            archive.digests.truncate(LISTED - self.digests.min(LISTED));
            self.digests += archive.digests.len();
            let Some(known) = at.and_then(|at| known.archives.get_mut(at)) else {
                known.archives.push(archive);
                continue;
            };
            let merged = |known: u64, found: u64| match merge {
                Merge::Add => known + found,
                Merge::Max => known.max(found),
            };
            known.corrupt = merged(known.corrupt, archive.corrupt);
            known.missing = merged(known.missing, archive.missing);
            known.misfits = merged(known.misfits, archive.misfits);
            known.fault = known.fault.or(archive.fault);
            known.digests.extend(archive.digests);
        }
    }

    /// Counts a chunk that could not be repaired.
    pub(super) fn unrepaired(&mut self, digest: Digest, error: Error) {
        self.report.unrepaired += 1;
        if self.report.unrepaired_because.len() < LISTED {
            self.report.unrepaired_because.entry(digest).or_insert(error);
        }
    }

    /// Enters the result of an update of a manifest.
    pub(super) fn recorded(&mut self, name: &SnapshotName, result: Result<(), ErrorKind>) {
        let unrecorded = &mut self.report.unrecorded;
        match result {
            Ok(()) => drop(unrecorded.remove(name)),
            Err(kind) if unrecorded.len() < LISTED => drop(unrecorded.insert(name.clone(), kind)),
            Err(_) => {}
        }
    }
}
