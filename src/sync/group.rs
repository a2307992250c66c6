//! Sync of one group.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::format::Digest;
use crate::format::index::IndexReader;
use crate::format::name::{ArchiveKind, BackupTime, SnapshotName};
use crate::store::{GroupImport, SnapshotState, StoredManifest, is_of_the_object};
use crate::sync::context::{Base, GroupRun, Run, Transfer};
use crate::sync::events::SyncEvent;
use crate::sync::kinds::{SyncGroup, SyncStep};
use crate::sync::options::{SyncCandidates, SyncOrder};
use crate::sync::progress::{GroupProgress, SnapshotProgress};
use crate::sync::report::{SyncGroupOutcome, SyncOutcome};
use crate::sync::snapshot;

/// Syncs the snapshots of a group that no earlier execution has finished.
pub(super) async fn sync(run: &Run, plan: &SyncGroup, progress: &mut GroupProgress) {
    if let Some(owner) = &plan.foreign_owner {
        progress.outcome = SyncGroupOutcome::Foreign(owner.clone());
        return;
    }
    if progress.is_over() {
        return;
    }
    if run.options.control.is_aborted() {
        progress.outcome = SyncGroupOutcome::NotReached;
        return;
    }
    let are_settled = |progress: &mut GroupProgress| {
        let mut snapshots = plan.snapshots.iter().zip(&mut progress.snapshots);
        snapshots.all(|(plan, progress)| progress.conclude(plan))
    };
    if !matches!(progress.outcome, SyncGroupOutcome::Failed(_)) && are_settled(progress) {
        progress.outcome = SyncGroupOutcome::Done;
        return;
    }
    progress.outcome = match GroupImport::begin(run.target.inner(), &plan.target, &run.options.owner).await {
        Ok(import) => {
            let newest = newest(&import, plan, progress);
            let mut group = GroupRun { base: None, import, newest, rekeyed: None, run };
            group.snapshots(plan, &mut progress.snapshots).await;
            match group.import.end().await {
                Ok(()) => SyncGroupOutcome::Done,
                Err(error) => SyncGroupOutcome::Failed(error),
            }
        }
        Err(error) => SyncGroupOutcome::Failed(error),
    };
}

/// Time of the newest snapshot at the target, without those that this plan transferred: an interrupted execution that began with the
/// newest one must not hide the older ones from the next execution.
fn newest(import: &GroupImport, plan: &SyncGroup, progress: &GroupProgress) -> Option<BackupTime> {
    let started = plan
        .snapshots
        .iter()
        .zip(&progress.snapshots)
        .filter(|(plan, progress)| progress.is_started && plan.step == SyncStep::Transfer);
    let own: BTreeSet<_> = started.map(|(plan, _)| plan.target.time()).collect();
    let finished = import.snapshots().iter().filter(|info| info.state == SnapshotState::Finished);
    finished.map(|info| info.name.time()).filter(|time| !own.contains(time)).max()
}

impl GroupRun<'_> {
    async fn snapshots(&mut self, plan: &SyncGroup, progress: &mut [SnapshotProgress]) {
        let run = self.run;
        // A newer one at the target would keep the failed one from ever being transferred.
        let keeps_waiting =
            run.options.candidates == SyncCandidates::Newer && run.options.order == SyncOrder::OldestFirst;
        let mut is_stopped = false;
        for (plan, progress) in plan.snapshots.iter().zip(progress) {
            if progress.is_over() || progress.conclude(plan) {
                continue;
            }
            if is_stopped || run.options.control.is_aborted() {
                progress.outcome = SyncOutcome::NotReached;
                continue;
            }
            let name = Arc::new(plan.target.clone());
            run.notify(&SyncEvent::SnapshotStarted { snapshot: Arc::clone(&name) });
            let was_started = std::mem::replace(&mut progress.is_started, true);
            let transfer = Transfer { name: &name, plan, progress, was_started };
            let outcome = snapshot::sync(run, self, transfer).await;
            run.notify(&SyncEvent::SnapshotFinished { outcome: outcome.clone(), snapshot: name });
            run.forget();
            self.rekeyed.take_if(|rekeyed| rekeyed.pins.confirmed() > run.options.remember_chunks);
            let has_failed = matches!(outcome, SyncOutcome::Failed(_)) && plan.step == SyncStep::Transfer;
            is_stopped |= has_failed && keeps_waiting;
            progress.outcome = outcome;
        }
    }

    /// The base for reuse by a snapshot other than `but`.
    pub(super) async fn base(&mut self, but: &SnapshotName) -> Result<Option<Arc<Base>>> {
        if self.base.is_none()
            && let Some((stored, name, held)) = self.import.base(but).await?
            && let Some(digests) = self.digests(&name, &stored).await?
        {
            let version = stored.version;
            self.base = Some(Arc::new(Base { digests, held, name, version }));
        }
        Ok(self.base.clone().filter(|base| base.name != *but))
    }

    async fn digests(&self, name: &SnapshotName, stored: &StoredManifest) -> Result<Option<Vec<Digest>>> {
        let target = &self.run.target;
        let mut indexes = Vec::new();
        for file in stored.manifest.files().iter().filter(|file| file.name.kind() != ArchiveKind::Blob) {
            match target.inner().snapshot_files().stored_index(name, file).await {
                Ok((_, index)) => indexes.push(index),
                // Its chunks are not reused then.
                Err(error) if is_of_the_object(&error) && error.kind() != ErrorKind::KeyRequired => {
                    return Ok(None);
                }
                Err(error) => return Err(error),
            }
        }
        let collect = move || {
            let mut digests: Vec<_> = indexes.iter().flat_map(IndexReader::digests).collect();
            digests.sort_unstable();
            digests.dedup();
            Ok(digests)
        };
        target.inner().runtime().run_blocking("read indexes", collect).await.map(Some)
    }
}
