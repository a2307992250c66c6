//! Executions of a run: its passes over the snapshots.
//!
//! | mode | passes |
//! |---|---|
//! | full | one; more over the snapshots that are not read again, if more chunks are listed than memory holds, or one of their chunks was found bad later |
//! | presence | one for each part of the listing |
//! | sample | one that collects chunks; if some of these are bad, one that finds the snapshots that use them |

use std::collections::BTreeSet;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};

use crate::error::{Error, ErrorKind, Result};
use crate::format::name::SnapshotName;
use crate::store::SnapshotInfo;
use crate::verify::context::{Run, Work};
use crate::verify::control::Stop;
use crate::verify::findings::{Findings, Visit};
use crate::verify::options::{Repair, VerifyMode};
use crate::verify::passes::Which;
use crate::verify::progress::{KnownPass, Part, Progress};
use crate::verify::record::ReleaseHeld;
use crate::verify::report::{Incomplete, SkipReason, VerifyReport};

/// Fraction of the concurrent chunks that is the number of concurrent snapshots, and its bounds.
const SNAPSHOT_SHARE: usize = 8;
const MIN_SNAPSHOTS: usize = 2;
const MAX_SNAPSHOTS: usize = 8;

impl Run {
    /// Starts the run, or continues it after an earlier execution.
    pub(super) async fn execute(&self, progress: &mut Progress) -> Result<VerifyReport> {
        let _release = ReleaseHeld(self);
        self.resume();
        match self.options.mode {
            VerifyMode::Full if self.options.skip_verified_within.is_none() => {
                let pass = progress.single(self);
                self.pass(pass, Work::Full(None)).await;
            }
            VerifyMode::Full => {
                self.parts(progress).await?;
                // Chunks found bad after their snapshot was checked (H103).
                if self.control.stopped() != Some(Stop::Missing) {
                    self.known(progress, Which::VerifiedBefore).await;
                }
            }
            VerifyMode::Presence => self.parts(progress).await?,
            VerifyMode::Sample(sample) => self.sample(progress, sample).await,
        }
        self.record_held().await;
        if self.control.stopped() == Some(Stop::Missing) {
            let error = Error::new(ErrorKind::Unavailable, "verify");
            return Err(error.because("so many chunks in a row are missing that it must have another cause"));
        }
        if self.options.repair == Repair::Quarantine {
            // A chunk left on the list is only checked once more than needed.
            let _ = self.store.inner().repairs().clear_suspects().await;
        }
        Ok(self.report(progress))
    }

    /// Forgets the results that an earlier execution could not confirm.
    fn resume(&self) {
        let trusts_missing = self.control.resume() != Some(Stop::Missing);
        self.passes().resume();
        let missing = self.ledger.resume(trusts_missing);
        let counts = &mut self.findings().report.chunks;
        counts.missing = counts.missing.saturating_sub(missing);
        counts.unreachable = 0;
    }

    /// A pass for each part of the listing. First come the parts that earlier executions left.
    async fn parts(&self, progress: &mut Progress) -> Result<()> {
        let mut number = 0;
        while self.control.stopped().is_none() {
            if number == progress.parts.len() {
                // One part at a time is in memory.
                progress.listed = None;
                let Some((shards, listed)) = progress.listing.next(&self.store, &self.control).await? else {
                    break;
                };
                // The first pass of a full run reads; the others list what it skipped.
                let is_later = self.options.mode == VerifyMode::Full && number > 0;
                let pass = self.start(if is_later { Which::VerifiedBefore } else { Which::All });
                progress.parts.push(Part { pass, shards });
                progress.listed = Some((number, listed));
            }
            let Some(Part { pass, shards }) = progress.parts.get(number).cloned() else { break };
            if !self.passes().is_over(pass) {
                if progress.listed.as_ref().is_none_or(|(listed, _)| *listed != number) {
                    progress.listed = None;
                    let listed = progress.listing.again(shards, &self.store, &self.control).await?;
                    progress.listed = listed.map(|listed| (number, listed));
                }
                let Some((_, listed)) = &progress.listed else { break };
                let reads = self.options.mode == VerifyMode::Full && number == 0;
                let work = if reads { Work::Full(Some(listed)) } else { Work::Presence(listed) };
                self.pass(pass, work).await;
            }
            number += 1;
        }
        Ok(())
    }

    /// Finds the snapshots that use bad chunks, if any were found since the last such pass.
    pub(super) async fn known(&self, progress: &mut Progress, which: Which) {
        let faults = self.ledger.faults();
        let is_new = faults > progress.known.map_or(0, |known| known.faults);
        if is_new && self.control.stopped().is_none() {
            if let Some(KnownPass { pass, .. }) = progress.known {
                self.passes().abandon(pass);
            }
            progress.known = Some(KnownPass { faults, pass: self.start(which) });
        }
        if let Some(KnownPass { pass, .. }) = progress.known {
            self.pass(pass, Work::Known).await;
        }
    }

    pub(super) fn start(&self, which: Which) -> usize {
        self.passes().start(self.targets.len(), which)
    }

    /// Checks the snapshots that a pass has not concluded, several concurrently, started in order.
    pub(super) async fn pass(&self, pass: usize, work: Work<'_>) {
        let concurrent = (self.concurrency / SNAPSHOT_SHARE).clamp(MIN_SNAPSHOTS, MAX_SNAPSHOTS);
        let left = self.passes().left(pass);
        let mut checks = stream::iter(left)
            .map(|snapshot| self.snapshot(Visit { snapshot, pass }, work).boxed())
            .buffered(concurrent);
        while checks.next().await.is_some() {}
    }

    fn report(&self, progress: &Progress) -> VerifyReport {
        let Findings { damaged, mut report, .. } = self.findings().so_far();
        let vanished = report.skipped.iter().filter(|skipped| skipped.reason == SkipReason::Vanished);
        let vanished: BTreeSet<_> = vanished.map(|skipped| skipped.name.clone()).collect();
        let is_well = |name: &SnapshotName| !vanished.contains(name) && !damaged.contains_key(name);
        report.sound = self.sound(progress, is_well);
        report.incomplete = match self.control.stopped() {
            Some(Stop::Aborted) => Some(Incomplete::Aborted),
            Some(Stop::Budget) => Some(Incomplete::Budget),
            Some(Stop::Missing | Stop::Unreachable) => Some(Incomplete::Unreachable),
            None => self.control.was_unreachable().then_some(Incomplete::Unreachable),
        };
        report.damaged = damaged.into_values().collect();
        report.is_memory_full = self.ledger.is_full();
        report.is_suspicion_damaged = self.store.inner().chunks().is_suspect_list_damaged();
        (report.bytes, report.requests) = self.control.used();
        report.damaged_logs.sort();
        report.skipped.sort_by(|one, other| one.name.cmp(&other.name));
        report
    }

    /// Number of complete and good snapshots.
    fn sound(&self, progress: &Progress, is_well: impl Fn(&SnapshotName) -> bool) -> u64 {
        let (passes, verified) = (self.passes(), self.verified());
        let is_sound = |(number, target): &(usize, &SnapshotInfo)| {
            let is_verified = verified.get(*number).copied().flatten() == Some(true);
            let are_chunks_checked = match self.options.mode {
                VerifyMode::Full => !is_verified || progress.listing.is_over(),
                VerifyMode::Presence => progress.listing.is_over(),
                VerifyMode::Sample(_) => false,
            };
            are_chunks_checked
                && passes.have_concluded(*number, is_verified)
                && target.unreadable.is_empty()
                && is_well(&target.name)
        };
        self.targets.iter().enumerate().filter(is_sound).count() as u64
    }
}
