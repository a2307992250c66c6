//! Execution of a plan.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use crate::error::Result;
use crate::format::name::SnapshotName;
use crate::prune::plan::{GroupPlan, PrunePlan, SnapshotPlan};
use crate::prune::report::{
    GroupOutcome, GroupReport, NamespaceReport, Outcome, PruneReport, SnapshotReport, Stop,
};
use crate::retention::Decision;
use crate::store::{DeleteError, DeleteOutcome, Listed};

impl PrunePlan {
    /// Executes the plan: group by group, in each the oldest snapshot first. Failures are in the report, and the
    /// rest continues, unless another process may own the store now.
    ///
    /// # Errors
    /// `Unsupported` if this version cannot change the store; `Busy` or `Denied` if another process owns it.
    ///
    /// # Cancel safety
    /// A dropped future leaves each snapshot complete, unfinished or removed. A copy of the plan continues from there.
    pub async fn execute(self) -> Result<PruneReport> {
        self.store.inner().check_deletable("prune").await?;
        let total = self.groups.iter().map(|group| group.snapshots.len() as u64).sum();
        let mut run = Run { done: 0, plan: &self, report: PruneReport::default(), total };
        for group in &self.groups {
            run.group(group).await;
        }
        for namespace in &self.namespaces {
            run.check_abort();
            if run.report.stopped.is_some() {
                break;
            }
            let outcome = match self.store.inner().deletions().remove_namespace(namespace).await {
                Ok(true) => GroupOutcome::Removed,
                Ok(false) => GroupOutcome::Kept,
                Err(trouble) => run.group_trouble(trouble),
            };
            run.report.namespaces.push(NamespaceReport { namespace: namespace.clone(), outcome });
        }
        let report = run.report;
        // Makes the removals durable, or reports that they may not be.
        self.store.inner().backend().barrier().await?;
        Ok(report)
    }
}

struct Run<'a> {
    done: u64,
    plan: &'a PrunePlan,
    report: PruneReport,
    total: u64,
}

impl Run<'_> {
    async fn group(&mut self, group: &GroupPlan) {
        let mut snapshots = Vec::with_capacity(group.snapshots.len());
        let fresh = self.fresh_look(group).await;
        for planned in &group.snapshots {
            let outcome = match (&fresh, planned.decision) {
                (_, Decision::Protected) => Outcome::Protected,
                (_, decision) if decision.keeps() => Outcome::Kept(decision),
                (Ok(fresh), _) => self.snapshot(planned, fresh).await,
                (Err(failed), _) => failed.clone(),
            };
            self.done += 1;
            if let Some(observer) = &self.plan.observer {
                observer.on_outcome(&planned.name, &outcome, self.done, self.total);
            }
            snapshots.push(SnapshotReport { name: planned.name.clone(), outcome });
        }
        let is_deletion = self.plan.options.is_none();
        let removed = snapshots.iter().any(|snapshot| matches!(snapshot.outcome, Outcome::Removed));
        let outcome = if self.report.stopped.is_some() || !(removed || is_deletion) {
            GroupOutcome::Kept
        } else {
            match self.plan.store.inner().deletions().remove_group_if_empty(&group.group).await {
                Ok(true) => GroupOutcome::Removed,
                Ok(false) => GroupOutcome::Kept,
                Err(trouble) => self.group_trouble(trouble),
            }
        };
        self.report.groups.push(GroupReport { group: group.group.clone(), outcome, snapshots });
    }

    /// The current snapshots of a group and the decisions of the rules: kept snapshots may be gone or damaged by now.
    async fn fresh_look(
        &mut self,
        group: &GroupPlan,
    ) -> std::result::Result<HashMap<SnapshotName, Decision>, Outcome> {
        if group.snapshots.iter().all(|planned| planned.decision.keeps()) {
            return Ok(HashMap::new());
        }
        self.check_abort();
        if self.report.stopped.is_some() {
            return Err(Outcome::NotReached);
        }
        let listed = self
            .plan
            .store
            .inner()
            .catalog()
            .listed_snapshots(&group.group)
            .await
            .map_err(Outcome::Failed)?;
        let decisions = match &self.plan.options {
            Some(options) => options.decide(&listed),
            None => listed.iter().map(|_| Decision::Remove).collect(),
        };
        let name = |listed: Listed| listed.info.name;
        Ok(listed.into_iter().map(name).zip(decisions).collect())
    }

    async fn snapshot(&mut self, planned: &SnapshotPlan, fresh: &HashMap<SnapshotName, Decision>) -> Outcome {
        self.check_abort();
        if self.report.stopped.is_some() {
            return Outcome::NotReached;
        }
        match fresh.get(&planned.name) {
            None => return Outcome::Gone,
            Some(Decision::Protected) => return Outcome::Protected,
            Some(decision) if decision.keeps() => return Outcome::Changed,
            Some(_) => {}
        }
        match self.plan.store.inner().deletions().remove_planned(&planned.name, &planned.expected).await {
            Ok(DeleteOutcome::Busy(error)) => Outcome::Busy(error),
            Ok(DeleteOutcome::Changed) => Outcome::Changed,
            Ok(DeleteOutcome::Gone) => Outcome::Gone,
            Ok(DeleteOutcome::Protected) => Outcome::Protected,
            Ok(DeleteOutcome::Removed) => Outcome::Removed,
            Err(DeleteError::Failed(error)) => Outcome::Failed(error),
            Err(DeleteError::Lost(error)) => {
                self.report.stopped = Some(Stop::Lost(error.clone()));
                Outcome::Failed(error)
            }
        }
    }

    fn group_trouble(&mut self, trouble: DeleteError) -> GroupOutcome {
        match trouble {
            DeleteError::Failed(error) => GroupOutcome::Failed(error),
            DeleteError::Lost(error) => {
                self.report.stopped = Some(Stop::Lost(error.clone()));
                GroupOutcome::Failed(error)
            }
        }
    }

    fn check_abort(&mut self) {
        let is_set = self.plan.abort.as_ref().is_some_and(|flag| flag.load(Ordering::Relaxed));
        if is_set && self.report.stopped.is_none() {
            self.report.stopped = Some(Stop::Aborted);
        }
    }
}
