//! Copies and moves within a store.

use std::collections::BTreeMap;

use crate::error::{ErrorKind, Result};
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::simulation::model::{DeleteOutcome, Intent, Token, Tri};
use crate::simulation::unless::Unless;
use crate::simulation::world::World;
use crate::store::{Datastore, Relocated, RelocatedSnapshot, Relocation};

impl World {
    pub(crate) async fn relocate(&self) {
        let ((number, store), moves) = (self.a_store(), self.one_in(2));
        let group = self.a_snapshot(number).map_or_else(|| self.a_group(), |name| name.group().clone());
        let target = self.a_namespace();
        if self.one_in(4) {
            return self.relocate_namespace(number, &store, moves).await;
        }
        self.log(format_args!("{number}: move {moves}: {group} into {target:?}"));
        let destination = |name: &SnapshotName| {
            (name.group() == &group).then(|| group.clone().in_namespace(target.clone()))
        };
        let pairs = self.begin_relocation(number, moves, destination);
        let reported = Unless::done(|| self.doubt_unknown(number, &pairs, destination));
        let done = self.perhaps(async {
            if moves {
                store.move_group(&group, &target).await
            } else {
                store.copy_group(&group, &target).await
            }
        });
        let done = done.await;
        self.end_relocation(number, moves, &pairs, done.as_ref());
        if matches!(done, Some(Ok(_))) {
            reported.settle();
        }
    }

    async fn relocate_namespace(&self, number: usize, store: &Datastore, moves: bool) {
        let from: Namespace = self.pick(&["a", "a/b", "c", "d"]).unwrap().parse().unwrap();
        let to: Namespace = self.pick(&["d", "c", "a/b", "c/d"]).unwrap().parse().unwrap();
        self.log(format_args!("{number}: move {moves}: namespace {from:?} to {to:?}"));
        let destination = |name: &SnapshotName| {
            let namespace = name.group().namespace();
            if !from.contains(namespace) {
                return None;
            }
            let below = namespace.components().skip(from.components().count());
            let target = below.fold(to.clone(), |parent, name| parent.child(name).unwrap());
            Some(name.group().clone().in_namespace(target))
        };
        let pairs = self.begin_relocation(number, moves, destination);
        let reported = Unless::done(|| self.doubt_unknown(number, &pairs, destination));
        let done = self.perhaps(async {
            if moves {
                store.move_namespace(&from, &to).await
            } else {
                store.copy_namespace(&from, &to).await
            }
        });
        let done = done.await;
        self.end_relocation(number, moves, &pairs, done.as_ref());
        if matches!(done, Some(Ok(_))) {
            reported.settle();
        }
    }

    /// Tokens of sources and destinations.
    fn begin_relocation(
        &self,
        number: usize,
        moves: bool,
        target: impl Fn(&SnapshotName) -> Option<GroupName>,
    ) -> Vec<Pair> {
        let mut model = self.model();
        let mut pairs = Vec::new();
        // Also those that are gone: one of the same name may come meanwhile.
        let names: Vec<_> = model.locations.keys().filter(|spot| spot.0 == number).cloned().collect();
        for (_, name) in names {
            let Some(to) = target(&name).filter(|to| to != name.group()) else { continue };
            let destination = (number, to.snapshot(name.time()));
            let intent = if moves { Intent::Move } else { Intent::Create };
            let guarded = model.locations[&(number, name.clone())].guarded;
            let source = model.begin((number, name), intent);
            let destination = model.begin(destination, Intent::Create);
            pairs.push(Pair { destination, guarded, source });
        }
        pairs
    }

    fn end_relocation(&self, number: usize, moves: bool, pairs: &[Pair], done: Option<&Result<Relocation>>) {
        let mut of = BTreeMap::new();
        let nothing = match done {
            None => (DeleteOutcome::Unknown, DeleteOutcome::Unknown),
            Some(Err(error)) => {
                self.log(format_args!("{number}: relocation: {error}"));
                let fate = match error.kind() {
                    ErrorKind::NotFound => DeleteOutcome::Same,
                    kind => self.after_failure(kind),
                };
                (fate, fate)
            }
            Some(Ok(done)) => {
                self.log(format_args!("{number}: relocated: {done:?}"));
                self.count("relocation");
                for snapshot in done.groups.iter().flat_map(|group| &group.snapshots) {
                    self.expect_relocated(&snapshot.outcome);
                    of.insert(snapshot.name.clone(), snapshot.outcome.clone());
                }
                (DeleteOutcome::Unknown, DeleteOutcome::Unknown)
            }
        };
        let (mut model, is_late) = (self.model(), self.may_be_busy_late());
        for Pair { destination, guarded, source } in pairs {
            let (from, to) =
                of.get(&source.spot.1).map_or(nothing, |outcome| fates_of(outcome, moves, is_late));
            let was_certain = source.was == Tri::Yes && model.version(&source.spot) == source.version;
            let is_alone = model.version(&destination.spot) == destination.version;
            let (is_steady, stays_as_it_was) = (model.is_steady(source), model.is_steady(destination));
            model.end(source, from);
            model.end(destination, to);
            let marked = match destination.was {
                // It stays marked, whatever the source was.
                _ if !is_alone || !stays_as_it_was => Tri::Maybe,
                Tri::Yes if destination.was_guarded => Tri::Yes,
                Tri::No if from == DeleteOutcome::Gone && is_steady => *guarded,
                _ => Tri::Maybe,
            };
            model.guard(&destination.spot, marked);
            if from == DeleteOutcome::Unknown {
                model.guard(&source.spot, Tri::Maybe);
            }
            if was_certain && is_alone {
                model.link(&source.spot, &destination.spot);
            }
        }
        drop(model);
        if let Some(Ok(done)) = done {
            self.doubt_new(number, pairs, done);
        }
    }

    /// Snapshots that came meanwhile, and that a relocation without a report may have reached.
    fn doubt_unknown(
        &self,
        number: usize,
        pairs: &[Pair],
        target: impl Fn(&SnapshotName) -> Option<GroupName>,
    ) {
        let mut model = self.model();
        let names: Vec<_> = model.locations.keys().filter(|spot| spot.0 == number).cloned().collect();
        for (_, name) in names.iter().filter(|spot| pairs.iter().all(|pair| pair.source.spot != **spot)) {
            let Some(to) = target(name).filter(|to| to != name.group()) else { continue };
            let spots = [(number, name.clone()), (number, to.snapshot(name.time()))];
            let was_certain = model.certain(&spots[0]).is_some();
            for spot in &spots {
                model.doubt(spot);
                model.guard(spot, Tri::Maybe);
            }
            if was_certain {
                let [source, destination] = &spots;
                model.link(source, destination);
            }
        }
    }

    /// Changes of the source meanwhile.
    fn doubt_new(&self, number: usize, pairs: &[Pair], done: &Relocation) {
        let mut model = self.model();
        for group in &done.groups {
            for RelocatedSnapshot { name, .. } in &group.snapshots {
                if pairs.iter().any(|pair| pair.source.spot.1 == *name) {
                    continue;
                }
                for spot in [(number, name.clone()), (number, group.to.snapshot(name.time()))] {
                    model.doubt(&spot);
                    model.guard(&spot, Tri::Maybe);
                }
            }
        }
    }

    fn expect_relocated(&self, outcome: &Relocated) {
        if let Relocated::Busy(error) | Relocated::Failed(error) = outcome {
            self.expect_kind(error.kind());
        }
    }
}

/// The two places of a snapshot that is copied or moved.
struct Pair {
    destination: Token,
    guarded: Tri,
    source: Token,
}

/// The effects of an outcome on the source and the destination. A busy one may be late.
fn fates_of(outcome: &Relocated, moves: bool, is_late: bool) -> (DeleteOutcome, DeleteOutcome) {
    match outcome {
        Relocated::AlreadyThere if moves => (DeleteOutcome::Unknown, DeleteOutcome::There),
        // The source existed. An earlier deletion of it without an answer may still be executed.
        Relocated::AlreadyThere | Relocated::Copied if is_late => (DeleteOutcome::Same, DeleteOutcome::There),
        Relocated::AlreadyThere | Relocated::Copied => (DeleteOutcome::There, DeleteOutcome::There),
        Relocated::Moved => (DeleteOutcome::Gone, DeleteOutcome::There),
        Relocated::NotReached | Relocated::Unfinished => (DeleteOutcome::Same, DeleteOutcome::Same),
        // Unless another process took the store over in the middle.
        Relocated::Busy(_) if !is_late => (DeleteOutcome::Same, DeleteOutcome::Unknown),
        _ => (DeleteOutcome::Unknown, DeleteOutcome::Unknown),
    }
}
