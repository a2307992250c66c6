//! Execution of a plan.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::format::layout::Prefix;
use crate::format::name::SnapshotName;
use crate::prune::options::PruneOptions;
use crate::prune::plan::{Basis, PrunePlan};
use crate::prune::report::{
    PruneEvent, PruneGroup, PruneGroupOutcome, PruneOutcome, PruneReport, PruneSnapshot, PruneStop,
};
use crate::retention::Decision;
use crate::store::{Datastore, DeleteError, DeleteOutcome, Listed};
use crate::trace;
use crate::trace::{Facts, Operation, Subject};

impl PrunePlan {
    /// Executes the plan: group by group, in each the oldest snapshot first. Failures are in the report, and the
    /// rest continues, unless another process may own the store now.
    ///
    /// A plan that was aborted, or that could not remove everything, can be executed again. It then tries what
    /// [`PruneReport::left`] counts, and the groups and namespaces that it did not remove; it does not look at the rest. The report has the
    /// outcomes of all executions.
    ///
    /// # Errors
    /// `Unsupported` if this version cannot change the store; `Busy` or `Denied` if another process owns it; any failure to make the
    /// removals durable.
    ///
    /// # Cancel safety
    /// A dropped future leaves each snapshot complete, unfinished or removed. Another execution of the plan continues from there.
    pub async fn execute(&mut self) -> Result<PruneReport> {
        let watch = self.store.inner().watch(Operation::Prune, Subject::Store);
        trace::watch(watch, self.remove_all(), |report| Facts::of(report)).await
    }

    async fn remove_all(&mut self) -> Result<PruneReport> {
        self.store.inner().check_deletable("prune").await?;
        let total = self.groups.iter().map(|group| group.snapshots.len() as u64).sum();
        let Self { basis, groups, namespaces, options, store } = self;
        let mut run = Run { basis: *basis, done: 0, options, stopped: None, store, total };
        for group in &mut *groups {
            run.group(group).await;
        }
        for namespace in &mut *namespaces {
            run.check_abort();
            if run.stopped.is_none() && !matches!(namespace.outcome, PruneGroupOutcome::Removed) {
                let removed = store.inner().deletions().remove_namespace(&namespace.namespace).await;
                namespace.outcome = run.group_outcome(removed);
            }
        }
        let stopped = run.stopped;
        // Makes the removals durable, or reports that they may not be.
        store.inner().backend().barrier().await?;
        Ok(PruneReport { groups: groups.clone(), namespaces: namespaces.clone(), stopped })
    }
}

struct Run<'a> {
    basis: Basis,
    done: u64,
    options: &'a PruneOptions,
    stopped: Option<PruneStop>,
    store: &'a Datastore,
    total: u64,
}

impl Run<'_> {
    async fn group(&mut self, group: &mut PruneGroup) {
        // A group of this name is another one by now (H56).
        if matches!(group.outcome, PruneGroupOutcome::Removed) {
            self.removed_group(group);
            return;
        }
        let fresh = self.fresh_look(group).await;
        for planned in &mut group.snapshots {
            self.done += 1;
            if !planned.outcome.is_left() {
                continue;
            }
            let outcome = match (&fresh, planned.decision) {
                (_, Decision::Protected) => PruneOutcome::Protected,
                (_, decision) if decision.keeps() => PruneOutcome::Kept,
                (Ok(fresh), _) => self.snapshot(planned, fresh).await,
                (Err(failed), _) => failed.clone(),
            };
            // The outcome of an earlier execution says more.
            if !matches!(outcome, PruneOutcome::NotReached) {
                planned.outcome = outcome;
            }
            self.notify(planned);
        }
        let mut outcomes = group.snapshots.iter().map(|snapshot| &snapshot.outcome);
        let removes =
            self.basis == Basis::Deletion || outcomes.any(|outcome| matches!(outcome, PruneOutcome::Removed));
        if !removes {
            group.outcome = PruneGroupOutcome::Kept;
        } else if self.stopped.is_none() {
            let removed = self.store.inner().deletions().remove_group_if_empty(&group.group).await;
            group.outcome = self.group_outcome(removed);
        }
    }

    /// Concludes a group that an earlier execution removed: no snapshot was in it then, not even one whose removal failed at its last step.
    fn removed_group(&mut self, group: &mut PruneGroup) {
        for planned in &mut group.snapshots {
            self.done += 1;
            if planned.outcome.is_left() {
                planned.outcome = PruneOutcome::Gone;
                self.notify(planned);
            }
        }
    }

    fn notify(&self, planned: &PruneSnapshot) {
        let event = PruneEvent::SnapshotFinished {
            done: self.done,
            outcome: planned.outcome.clone(),
            snapshot: planned.name.clone(),
            total: self.total,
        };
        trace::step(&event);
        self.options.control.notify(&event);
    }

    /// The current snapshots of a group and the decisions of the rules: kept snapshots may be gone or damaged by now, also by a program without a
    /// lease.
    async fn fresh_look(
        &mut self,
        group: &PruneGroup,
    ) -> std::result::Result<HashMap<SnapshotName, Decision>, PruneOutcome> {
        let goes = |planned: &PruneSnapshot| !planned.decision.keeps() && planned.outcome.is_left();
        if !group.snapshots.iter().any(goes) {
            return Ok(HashMap::new());
        }
        self.check_abort();
        if self.stopped.is_some() {
            return Err(PruneOutcome::NotReached);
        }
        let catalog = self.store.inner().catalog();
        catalog.look_again(Prefix::Group(group.group.clone())).await.map_err(PruneOutcome::Failed)?;
        let listed = catalog.listed_snapshots(&group.group).await.map_err(PruneOutcome::Failed)?;
        let decisions = match self.basis {
            Basis::Deletion => listed.iter().map(|_| Decision::Remove).collect(),
            Basis::Rules => self.options.decide(&listed),
        };
        let name = |listed: Listed| listed.info.name;
        Ok(listed.into_iter().map(name).zip(decisions).collect())
    }

    async fn snapshot(
        &mut self,
        planned: &PruneSnapshot,
        fresh: &HashMap<SnapshotName, Decision>,
    ) -> PruneOutcome {
        self.check_abort();
        if self.stopped.is_some() {
            return PruneOutcome::NotReached;
        }
        match fresh.get(&planned.name) {
            None => return PruneOutcome::Gone,
            Some(Decision::Protected) => return PruneOutcome::Protected,
            Some(_) if mutated!("prune-by-the-old-decision") => {}
            Some(decision) if decision.keeps() => return PruneOutcome::Changed,
            Some(_) => {}
        }
        match self.store.inner().deletions().remove_planned(&planned.name, &planned.expected).await {
            Ok(DeleteOutcome::Busy(error)) => PruneOutcome::Busy(error),
            Ok(DeleteOutcome::Changed) => PruneOutcome::Changed,
            Ok(DeleteOutcome::Gone) => PruneOutcome::Gone,
            Ok(DeleteOutcome::Protected) => PruneOutcome::Protected,
            Ok(DeleteOutcome::Removed) => PruneOutcome::Removed,
            Err(error) => PruneOutcome::Failed(self.note(error)),
        }
    }

    fn group_outcome(&mut self, removed: std::result::Result<bool, DeleteError>) -> PruneGroupOutcome {
        match removed {
            Ok(true) => PruneGroupOutcome::Removed,
            Ok(false) => PruneGroupOutcome::Kept,
            Err(error) => PruneGroupOutcome::Failed(self.note(error)),
        }
    }

    /// Stops the execution after an error that may mean that another process owns the store.
    fn note(&mut self, error: DeleteError) -> Error {
        if let DeleteError::Lost(error) = &error {
            self.stopped = Some(PruneStop::Lost(error.clone()));
        }
        error.into_error()
    }

    fn check_abort(&mut self) {
        if self.stopped.is_none() && self.options.control.is_aborted() {
            self.stopped = Some(PruneStop::Aborted);
        }
    }
}
