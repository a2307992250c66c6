//! Deletions, pruning, protection, and collections of garbage.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::backend::LockReach;
use crate::error::{ErrorKind, Result};
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::gc::{self, GcEnd, GcOptions, Sizes};
use crate::prune::{self, PruneOptions, PruneOutcome};
use crate::retention::{Decision, RetentionRules};
use crate::rt::Runtime as _;
use crate::simulation::model::{DeleteOutcome, Intent, Tri, Wide};
use crate::simulation::world::World;
use crate::store::{Datastore, Deletion, Protection, Scope};

impl World {
    pub(crate) async fn delete_snapshot(&self) {
        let (number, store) = self.a_store();
        let Some(name) = self.a_snapshot(number) else { return };
        self.log(format_args!("{number}: delete {name}"));
        let token = self.model().begin((number, name.clone()), Intent::Delete);
        let fate = match self.perhaps(store.delete_snapshot(&name)).await {
            Some(Ok(())) => DeleteOutcome::Gone,
            Some(Err(error)) => {
                self.log(format_args!("{number}: delete {name}: {error}"));
                self.after_failure(error.kind())
            }
            None => DeleteOutcome::Unknown,
        };
        self.log(format_args!("{number}: delete {name}: {fate:?}"));
        self.count(format!("delete {fate:?}"));
        self.end(&[token], |_| fate);
    }

    pub(crate) async fn delete_many(&self) {
        let ((number, store), group) = (self.a_store(), self.a_group());
        let namespace: Namespace = self.pick(&["a/b", "c", "d"]).unwrap().parse().unwrap();
        if self.below(3) > 0 {
            self.log(format_args!("{number}: delete group {group}"));
            let wide =
                Wide { group: Some(group.clone()), namespace: group.namespace().clone(), store: number };
            self.delete_wide(wide, store.delete_group(&group)).await;
        } else {
            self.log(format_args!("{number}: delete namespace {namespace:?}"));
            let wide = Wide { group: None, namespace: namespace.clone(), store: number };
            self.delete_wide(wide, store.delete_namespace(&namespace)).await;
        }
    }

    async fn delete_wide(&self, wide: Wide, work: impl Future<Output = Result<Deletion>>) {
        let (number, tokens) = self.model().begin_wide(wide);
        match self.perhaps(work).await {
            Some(Ok(done)) => {
                self.log(format_args!("deleted: {:?}", done.deleted));
                self.count("delete many");
                let fate = |name: &SnapshotName| {
                    if done.deleted.contains(name) { DeleteOutcome::Gone } else { DeleteOutcome::Same }
                };
                self.end(&tokens, fate);
            }
            failed => {
                if let Some(Err(error)) = failed {
                    self.log(format_args!("delete many: {error}"));
                    self.expect_kind(error.kind());
                }
                self.end(&tokens, |_| DeleteOutcome::Unknown);
            }
        }
        self.model().end_wide(number, &tokens);
    }

    pub(crate) async fn prune(&self) {
        let ((number, store), group) = (self.a_store(), self.a_group());
        let scope = match self.below(3) {
            0 => Scope::Tree(Namespace::root()),
            1 => Scope::Namespace(group.namespace().clone()),
            _ => Scope::Group(group),
        };
        let rules = RetentionRules::default().keep_last(1 + self.below(3)).keep_hourly(self.below(3));
        self.log(format_args!("{number}: prune {scope:?}"));
        let mut plan = match prune::plan(&store, &scope, PruneOptions::default().rules(rules)).await {
            Ok(plan) => plan,
            Err(error) => return self.expect_kind(error.kind()),
        };
        self.pause().await;
        let going = plan.groups().iter().flat_map(|group| &group.snapshots);
        let going = going.filter(|snapshot| snapshot.decision == Decision::Remove);
        let tokens: Vec<_> = going
            .map(|snapshot| self.model().begin((number, snapshot.name.clone()), Intent::Delete))
            .collect();
        let mut fates = BTreeMap::new();
        let other = match self.perhaps(plan.execute()).await {
            Some(Ok(report)) => {
                self.count("prune");
                for snapshot in report.groups.iter().flat_map(|group| &group.snapshots) {
                    let fate = match &snapshot.outcome {
                        PruneOutcome::Removed | PruneOutcome::Gone => DeleteOutcome::Gone,
                        PruneOutcome::Failed(error) => {
                            self.expect_kind(error.kind());
                            DeleteOutcome::Unknown
                        }
                        PruneOutcome::Busy(_) if self.may_be_busy_late() => DeleteOutcome::Unknown,
                        _ => DeleteOutcome::Same,
                    };
                    self.log(format_args!("{number}: prune {}: {:?}", snapshot.name, snapshot.outcome));
                    fates.insert(snapshot.name.clone(), fate);
                }
                DeleteOutcome::Same
            }
            Some(Err(error)) => {
                self.expect_kind(error.kind());
                DeleteOutcome::Unknown
            }
            None => DeleteOutcome::Unknown,
        };
        self.end(&tokens, |name| *fates.get(name).unwrap_or(&other));
    }

    pub(crate) async fn protect(&self) {
        let (number, store) = self.a_store();
        let Some(name) = self.a_snapshot(number) else { return };
        let on = !self.one_in(3);
        let spot = (number, name.clone());
        self.log(format_args!("{number}: protect {name}: {on}"));
        let before = self.model().locations[&spot].guarded;
        let guards = self.model().guard(&spot, Tri::Maybe);
        let protection = if on { Protection::On } else { Protection::Off };
        let done = self.perhaps(store.set_protection(&name, protection)).await;
        let guarded = match done {
            Some(Ok(())) if on => Tri::Yes,
            Some(Ok(())) => Tri::No,
            Some(Err(error)) => {
                self.log(format_args!("{number}: protect {name}: {error}"));
                match error.kind() {
                    ErrorKind::NotFound => before,
                    kind if self.after_failure(kind) == DeleteOutcome::Same => before,
                    _ => Tri::Maybe,
                }
            }
            None => Tri::Maybe,
        };
        self.log(format_args!("{number}: protect {name}: {guarded:?}"));
        self.count(format!("protect {guarded:?}"));
        self.model().guarded(&spot, guards, guarded);
    }

    pub(crate) async fn annotate(&self) {
        let (number, store) = self.a_store();
        let Some(name) = self.a_snapshot(number) else { return };
        self.log(format_args!("{number}: notes of {name}"));
        if let Some(Err(error)) = self.perhaps(store.set_notes(&name, "note")).await {
            self.log(format_args!("{number}: notes of {name}: {error}"));
            self.expect_kind(error.kind());
        }
    }

    pub(crate) async fn collect(&self) {
        let (number, store) = self.a_store();
        let abort = Arc::new(AtomicBool::new(false));
        let lag = self.host.place.max_lag();
        let mut options = GcOptions::default().max_garbage(100).abort(Arc::clone(&abort)).listing_lag(lag);
        options = options.grace(lag + Duration::from_secs(if self.one_in(2) { 0 } else { self.below(1000) }));
        if lag.is_zero() && self.one_in(2) {
            options = options.consistent_listings();
        }
        if self.one_in(3) {
            options = options.memory_bytes(1);
        }
        if self.one_in(3) {
            options = options.sizes(Sizes::Unused);
        }
        if self.host.raw().capabilities().lock_reach == LockReach::Process {
            options = options.only_process();
        }
        if self.host.is_packed && self.one_in(2) {
            options = options.max_unused(0);
        }
        self.log(format_args!("{number}: collect {options:?}"));
        let collected = self.perhaps(self.collect_with(number, &store, options, &abort)).await;
        match collected {
            Some(Ok(())) => self.count("collection"),
            Some(Err(error)) => {
                self.log(format_args!("{number}: collect: {error}"));
                self.expect_kind(error.kind());
            }
            None => {}
        }
    }

    async fn collect_with(
        &self,
        number: usize,
        store: &Datastore,
        options: GcOptions,
        abort: &AtomicBool,
    ) -> Result<()> {
        let plan = gc::plan(store, options).await?;
        self.log(format_args!(
            "{number}: {} garbage, {} waiting, {} missing",
            plan.summary().garbage.chunks,
            plan.summary().waiting.chunks,
            plan.summary().missing
        ));
        // The index of a dead writer may arrive after its chunks were collected.
        let is_listed = |name: &SnapshotName| self.model().certain(&(number, name.clone())).is_some();
        let is_hurt = |name: &SnapshotName| self.model().is_hurt(number, name.time());
        let mut damaged = plan.summary().damaged.iter().map(|damaged| &damaged.name);
        if damaged.any(|name| is_listed(name) && !is_hurt(name)) {
            self.violation(format_args!("{number}: missing: {:?}", plan.summary().damaged));
        }
        let mut plan = plan.confirm();
        self.pause().await;
        if self.one_in(8) {
            return Ok(());
        }
        if self.one_in(8) {
            abort.store(true, Ordering::Relaxed);
        }
        for _ in 0..2 {
            let executed = self.perhaps(plan.execute()).await;
            if !matches!(&executed, Some(Ok(report)) if matches!(report.end, GcEnd::Complete)) {
                self.set_stopped();
            }
            let Some(report) = executed else { continue };
            let report = report?;
            self.log(format_args!("{number}: collected: {report:?}"));
            if matches!(report.end, GcEnd::Complete) {
                self.count(if report.removed.chunks > 0 { "collected some" } else { "collected none" });
                return Ok(());
            }
            if let GcEnd::Stopped(error) = report.end {
                self.expect_kind(error.kind());
            }
            abort.store(false, Ordering::Relaxed);
            self.pause().await;
        }
        Ok(())
    }

    /// Collects garbage when nothing goes wrong, as often as it takes.
    pub(crate) async fn collect_everything(&self, number: usize) {
        let (store, lag) = (self.store(number), self.host.place.max_lag());
        for _ in 0..2 {
            let mut options = GcOptions::default().max_garbage(100).grace(lag).listing_lag(lag);
            if self.host.is_packed {
                options = options.max_unused(0);
            }
            if self.host.raw().capabilities().lock_reach == LockReach::Process {
                options = options.only_process();
            }
            let plan = gc::plan(&store, options).await.unwrap();
            self.log(format_args!("{number}: collect everything: {:?}", plan.summary()));
            let mut plan = plan.confirm();
            let report = plan.execute().await.unwrap();
            self.log(format_args!("{number}: collected everything: {report:?}"));
            if !matches!(report.end, GcEnd::Complete) || report.failed > 0 {
                self.violation(format_args!(
                    "{number}: nothing went wrong, and the collection failed: {report:?}"
                ));
            }
            self.sim.sleep(Duration::from_hours(1)).await;
        }
    }

    /// A group that no other operation uses.
    pub(crate) fn own_group() -> GroupName {
        "host/own".parse().unwrap()
    }
}
