//! A run: which passes over the snapshots it takes.
//!
//! | mode | passes |
//! |---|---|
//! | full | one; more over those that are not read again, if more chunks are listed than memory holds, or one of theirs was found bad later |
//! | presence | one for each part of the listing |
//! | sample | one that collects chunks; if some of these are bad, one that finds out whose they are |

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use futures::FutureExt as _;
use futures::stream::{self, StreamExt as _};

use crate::error::{Error, ErrorKind, Result};
use crate::format::upid::Upid;
use crate::rt::semaphore::Semaphore;
use crate::store::{Datastore, SnapshotInfo};
use crate::verify::conclusion::Conclusion;
use crate::verify::context::{Run, Which, Work};
use crate::verify::control::{Control, Stop};
use crate::verify::ledger::Ledger;
use crate::verify::listing::ChunkListing;
use crate::verify::options::{Mode, Repair, VerifyOptions};
use crate::verify::report::{Event, Findings, Incomplete, SkippedSnapshot, VerifyReport};

/// Fraction of the concurrent chunks that is the number of concurrent snapshots, and its bounds.
const SNAPSHOT_SHARE: usize = 8;
const SNAPSHOTS_LEAST: usize = 2;
const SNAPSHOTS_MOST: usize = 8;
/// Maximum number of snapshots with missing parts that wait for evidence.
const HELD_MOST: usize = 32;

impl Run {
    pub(super) fn new(
        store: Datastore,
        options: VerifyOptions,
        targets: Vec<SnapshotInfo>,
        upid: Upid,
        now: SystemTime,
        references: u64,
    ) -> Self {
        let in_flight = options.in_flight.unwrap_or_else(|| store.inner().in_flight());
        Self {
            control: Control::new(&options),
            findings: Mutex::default(),
            held: Mutex::default(),
            in_flight,
            ledger: Ledger::new(options.memory_bytes / 2),
            now,
            options,
            passes: AtomicU64::new(0),
            references,
            slots: Semaphore::new(in_flight),
            store,
            whole: Mutex::new(vec![0; targets.len()]),
            targets,
            upid,
        }
    }

    pub(super) async fn execute(self, skipped: Vec<SkippedSnapshot>) -> Result<VerifyReport> {
        self.findings().report.skipped = skipped;
        match self.options.mode {
            Mode::Full => self.full().await?,
            Mode::Presence => {
                self.presence(Which::All, ChunkListing::new(self.references, self.half())).await?;
            }
            Mode::Sample(sample) => self.sample(sample).await?,
        }
        self.flush().await;
        if self.control.stopped() == Some(Stop::Missing) {
            let error = Error::new(ErrorKind::Unavailable, "verify");
            return Err(error.because("so many chunks in a row are missing that it must have another cause"));
        }
        if self.options.repair == Repair::Quarantine {
            // A chunk left on the list is only checked once more than needed.
            let _ = self.store.inner().repairs().clear_suspects().await;
        }
        Ok(self.report())
    }

    async fn full(&self) -> Result<()> {
        if self.options.skip_verified_within.is_none() {
            self.pass(Work::Full(None), Which::All).await;
            return Ok(());
        }
        let mut listing = ChunkListing::new(self.references, self.half());
        let Some(listed) = listing.next(&self.store, &self.control).await? else { return Ok(()) };
        self.pass(Work::Full(Some(&listed)), Which::All).await;
        drop(listed);
        self.presence(Which::VerifiedBefore, listing).await?;
        // Chunks found bad after their snapshot was checked (H103).
        if self.ledger.has_faults() && self.control.stopped() != Some(Stop::Missing) {
            self.pass(Work::Known, Which::VerifiedBefore).await;
        }
        Ok(())
    }

    /// A pass for each part of the listing.
    async fn presence(&self, which: Which, mut listing: ChunkListing) -> Result<()> {
        while self.control.stopped().is_none()
            && let Some(listed) = listing.next(&self.store, &self.control).await?
        {
            self.pass(Work::Presence(&listed), which).await;
        }
        if which == Which::All && !listing.is_over() {
            // One that did not take place: nothing is sound.
            self.passes.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Looks at snapshots, several at the same time, begun in order.
    pub(super) async fn pass(&self, work: Work<'_>, which: Which) {
        if which == Which::All {
            self.passes.fetch_add(1, Ordering::Relaxed);
        }
        let side_by_side = (self.in_flight / SNAPSHOT_SHARE).clamp(SNAPSHOTS_LEAST, SNAPSHOTS_MOST);
        let mut looks = stream::iter(0..self.targets.len())
            .map(|number| self.snapshot(number, work, which).boxed())
            .buffered(side_by_side);
        while looks.next().await.is_some() {}
    }

    /// Everything of a snapshot was looked at in a pass.
    pub(super) fn note_whole(&self, number: usize) {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(whole) = whole.get_mut(number) {
            *whole += 1;
        }
    }

    /// Writes down what was found of a snapshot, at once or, if it lacks something and nothing good was seen since, a little later.
    pub(super) async fn conclude(&self, conclusion: Conclusion) {
        let waits = conclusion.lacks_something() && self.control.doubts_absence();
        self.held().push(conclusion);
        if !waits || self.held().len() > HELD_MOST {
            self.flush().await;
        }
    }

    async fn flush(&self) {
        loop {
            if self.control.stopped() == Some(Stop::Missing) {
                // Nothing of it is believed.
                self.held().clear();
                return;
            }
            let Some(conclusion) = self.held().pop() else { return };
            self.write_down(conclusion).await;
        }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Conclusion>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn findings(&self) -> MutexGuard<'_, Findings> {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tell(&self, event: &Event<'_>) {
        if let Some(observer) = &self.options.observer {
            observer.on_event(event);
        }
    }

    /// Half of the memory: what listings and samples may take.
    pub(super) fn half(&self) -> usize {
        self.options.memory_bytes / 2
    }

    fn report(self) -> VerifyReport {
        let passes = self.passes.load(Ordering::Relaxed);
        let whole = self.whole.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Findings { damaged, mut report, .. } =
            self.findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        let is_sound = |(target, whole): &(&SnapshotInfo, &u64)| {
            **whole == passes && target.unreadable.is_empty() && !damaged.contains_key(&target.name)
        };
        report.sound = self.targets.iter().zip(&whole).filter(is_sound).count() as u64;
        if matches!(self.options.mode, Mode::Sample(_)) {
            report.sound = 0;
        }
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
        report.skipped.sort_by(|one, other| one.name.cmp(&other.name));
        report
    }
}
