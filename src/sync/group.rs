//! One group.

use std::sync::Arc;

use crate::error::{ErrorKind, Result};
use crate::format::Digest;
use crate::format::index::IndexReader;
use crate::format::name::{ArchiveKind, SnapshotName};
use crate::store::{GroupImport, SnapshotState, StoredManifest, is_of_the_object};
use crate::sync::context::{Base, GroupRun, Run};
use crate::sync::events::SyncEvent;
use crate::sync::kinds::{GroupPlan, SnapshotPlan, Step};
use crate::sync::options::{Candidates, Order};
use crate::sync::report::{GroupOutcome, GroupReport, Outcome, SnapshotReport};
use crate::sync::snapshot;

pub(super) async fn sync(run: &Run, plan: &GroupPlan) -> GroupReport {
    let report = |outcome, snapshots| GroupReport {
        outcome,
        snapshots,
        source: plan.source.clone(),
        target: plan.target.clone(),
    };
    let unreached = || plan.snapshots.iter().map(|snapshot| planned(snapshot, Outcome::NotReached)).collect();
    if let Some(owner) = &plan.foreign_owner {
        return report(GroupOutcome::Foreign(owner.clone()), unreached());
    }
    if run.options.is_aborted() {
        return report(GroupOutcome::NotReached, unreached());
    }
    let all_settled = plan.snapshots.iter().map(|snapshot| Some(planned(snapshot, settled(snapshot)?)));
    if let Some(snapshots) = all_settled.collect() {
        return report(GroupOutcome::Done, snapshots);
    }
    let import = match GroupImport::begin(run.target.inner(), &plan.target, &run.options.owner).await {
        Ok(import) => import,
        Err(error) => return report(GroupOutcome::Failed(error), unreached()),
    };
    let finished = import.snapshots().iter().filter(|info| info.state == SnapshotState::Finished);
    let newest = finished.map(|info| info.name.time()).max();
    let mut group = GroupRun { base: None, import, newest, run };
    let snapshots = group.snapshots(plan).await;
    match group.import.end().await {
        Ok(()) => report(GroupOutcome::Done, snapshots),
        Err(error) => report(GroupOutcome::Failed(error), snapshots),
    }
}

fn planned(snapshot: &SnapshotPlan, outcome: Outcome) -> SnapshotReport {
    SnapshotReport { outcome, source: snapshot.source.clone(), target: snapshot.target.clone() }
}

/// Outcome for a snapshot without a planned step.
fn settled(snapshot: &SnapshotPlan) -> Option<Outcome> {
    match snapshot.step {
        Step::Conflict(conflict) => Some(Outcome::Conflict(conflict)),
        Step::Skip(skip) => Some(Outcome::Skipped(skip)),
        Step::Resync(_) | Step::Transfer => None,
    }
}

impl GroupRun<'_> {
    async fn snapshots(&mut self, plan: &GroupPlan) -> Vec<SnapshotReport> {
        let run = self.run;
        // A newer one at the target would keep the failed one from ever being transferred.
        let keeps_waiting =
            run.options.candidates == Candidates::Newer && run.options.order == Order::OldestFirst;
        let mut is_stopped = false;
        let mut reports = Vec::with_capacity(plan.snapshots.len());
        for snapshot in &plan.snapshots {
            let outcome = match settled(snapshot) {
                Some(outcome) => outcome,
                None if is_stopped || run.options.is_aborted() => Outcome::NotReached,
                None => {
                    let name = &snapshot.target;
                    run.event(&SyncEvent::SnapshotStarted { snapshot: name });
                    let outcome = snapshot::sync(run, self, snapshot).await;
                    run.event(&SyncEvent::SnapshotFinished { outcome: &outcome, snapshot: name });
                    run.forget();
                    outcome
                }
            };
            let has_failed = matches!(outcome, Outcome::Failed(_)) && snapshot.step == Step::Transfer;
            is_stopped |= has_failed && keeps_waiting;
            reports.push(planned(snapshot, outcome));
        }
        reports
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
        for file in stored.manifest.files().iter().filter(|file| file.name().kind() != ArchiveKind::Blob) {
            match target.inner().snapshot_files().stored_index(name, file).await {
                Ok((_, index)) => indexes.push(index),
                // It vouches for nothing then.
                Err(error) if is_of_the_object(&error) && error.kind() != ErrorKind::Unsupported => {
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
