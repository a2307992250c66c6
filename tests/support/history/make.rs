//! Backups, restores, copies, moves and syncs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::io::Cursor;
use larder::chunker::FixedChunker;
use larder::error::{ErrorKind, Result};
use larder::format::name::{BackupTime, GroupName, Namespace, SnapshotName};
use larder::internal::sim::Simulation as _;
use larder::store::{
    Datastore, DirtyMap, Relocated, RelocatedSnapshot, Relocation, SnapshotReader, SnapshotState,
    SnapshotWriter, WriterTarget,
};

use super::keyed::Mode;
use super::model::{BLOCK, Contents, DeleteOutcome, Intent, Tri};
use super::world::World;

const IMAGE: &str = "d.img";
const STREAM: &str = "s.bin";

/// The part of a snapshot that differs from its model.
pub(crate) async fn wrong_with(snapshot: &SnapshotReader, contents: &Contents) -> Result<Option<String>> {
    for (name, blocks) in [("d.img.fidx", &contents.image), ("s.bin.didx", &contents.stream)] {
        if blocks.is_empty() {
            continue;
        }
        let mut target = WriterTarget::new(Cursor::new(Vec::new()));
        snapshot.archive(name).await?.copy_to(&mut target).await?;
        if target.into_inner().into_inner() != Contents::bytes(blocks) {
            return Ok(Some(format!("{}: {name} differs", snapshot.name())));
        }
    }
    if let Some(tree) = contents.tree
        && let Some(wrong) = tree.wrong_with(snapshot).await?
    {
        return Ok(Some(wrong));
    }
    let blob = snapshot.blob("c.conf.blob").await?;
    let is_right = blob == snapshot.name().time().epoch().to_string();
    Ok((!is_right).then(|| format!("{}: the blob differs", snapshot.name())))
}

/// The parts in which two images of the same length differ.
fn changed(old: &[u8], new: &[u8]) -> DirtyMap {
    let differing = (0..new.len()).filter(|at| old[*at] != new[*at]);
    differing.map(|at| (at * BLOCK) as u64..((at + 1) * BLOCK) as u64).collect()
}

impl World {
    pub(crate) async fn back_up(self: &Arc<Self>) {
        let ((number, store), group) = (self.a_store(), self.a_group());
        let time = self.a_time(number, &group);
        let (contents, mode) = {
            let model = self.model();
            (model.contents(time), model.mode(time))
        };
        let name = group.snapshot(time);
        self.log(format_args!(
            "{number}: back up {name}: {:?} {:?} {:?} {mode:?}",
            contents.image, contents.stream, contents.tree
        ));
        let token = self.model().begin((number, name.clone()), Intent::Create);
        let backed_up = self.perhaps(self.back_up_as(&store, &group, time, &contents)).await;
        let fate = match backed_up {
            Some(Ok(true)) => DeleteOutcome::There,
            Some(Ok(false)) => DeleteOutcome::Same,
            Some(Err(error)) => {
                self.log(format_args!("{number}: back up {name}: {error}"));
                match error.kind() {
                    // Nobody but this backup can have made it; that it is busy is said before anything is written.
                    ErrorKind::Busy if !self.may_be_late() => DeleteOutcome::Same,
                    kind => self.after_failure(kind),
                }
            }
            None => DeleteOutcome::Unknown,
        };
        self.log(format_args!("{number}: back up {name}: {fate:?}"));
        self.count(format!("backup {fate:?}"));
        if fate == DeleteOutcome::There {
            self.count(format!("backup {mode:?}"));
        }
        self.end(&[token], |_| fate);
    }

    /// A new time, or that of a snapshot that is gone.
    fn a_time(&self, store: usize, group: &GroupName) -> BackupTime {
        let mut model = self.model();
        let mut of_group: Vec<_> =
            model.locations.iter().filter(|(spot, _)| spot.0 == store && spot.1.group() == group).collect();
        of_group.sort_by_key(|(spot, _)| spot.1.time());
        if let Some((spot, location)) = of_group.last()
            && location.state == Tri::No
        {
            let time = spot.1.time();
            drop(of_group);
            if self.one_in(3) {
                return time;
            }
        }
        model.new_time()
    }

    async fn back_up_as(
        &self,
        store: &Datastore,
        group: &GroupName,
        time: BackupTime,
        contents: &Contents,
    ) -> Result<bool> {
        let base = self.base(store, group).await;
        let mode = self.model().mode(time);
        let backup = mode.of(store.backup(group).time(SystemTime::from(time)));
        let backup = match backup.begin().await {
            // No namespace, or another one is running.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Busy | ErrorKind::InvalidInput | ErrorKind::NotFound
                ) =>
            {
                self.log(format_args!("  {error}"));
                return Ok(false);
            }
            backup => backup?,
        };
        let (image, stream, tree, blob) = futures::join!(
            self.image(&backup, mode, base.as_ref(), &contents.image),
            self.stream(&backup, mode, base.as_ref(), &contents.stream),
            self.tree(&backup, mode, base.as_ref(), contents.tree),
            backup.blob("c.conf", time.epoch().to_string()),
        );
        if self.one_in(12) {
            self.log(format_args!("  abort {}", group.snapshot(time)));
            backup.abort().await?;
            return Ok(false);
        }
        image?;
        stream?;
        tree?;
        blob?;
        if self.one_in(6) {
            backup.client_log("log").await?;
        }
        self.pause().await;
        let snapshot = backup.finish().await?.snapshot;
        if let Ok(Some(wrong)) = wrong_with(&snapshot, contents).await {
            self.violation(format_args!("{wrong}"));
        }
        Ok(true)
    }

    /// The newest snapshot of the group, sometimes.
    async fn base(&self, store: &Datastore, group: &GroupName) -> Option<SnapshotReader> {
        if self.one_in(3) {
            return None;
        }
        let newest = store.latest(group).await.ok()??;
        store.snapshot(&newest).await.ok()
    }

    async fn image(
        &self,
        backup: &SnapshotWriter,
        mode: Mode,
        base: Option<&SnapshotReader>,
        blocks: &[u8],
    ) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        let data = Contents::bytes(blocks);
        let size = data.len() as u64;
        let base = base.filter(|base| {
            base.manifest().files().iter().any(|file| file.name.to_string().starts_with(IMAGE))
        });
        if self.one_in(4) {
            let mut image = backup.image_writer(IMAGE, size).chunk_bytes(BLOCK as u64);
            if let Some(base) = base.filter(|base| self.mode_of(base) == mode) {
                image = image.base(base);
            }
            let mut image = image.begin().await?;
            for (at, part) in data.chunks(3000).enumerate().rev() {
                image.write_at((at * 3000) as u64, Bytes::copy_from_slice(part)).await?;
            }
            return image.finish().await.map(drop);
        }
        let image = backup.image(IMAGE, Cursor::new(&data), size).chunk_bytes(BLOCK as u64);
        let Some(base) = base else { return image.await.map(drop) };
        let of_base = self.mode_of(base);
        let old = self.model().contents(base.name().time()).image;
        let is_alike = Contents::bytes(&old).len() == data.len() && !self.one_in(4);
        let image = if of_base == mode { image.base(base) } else { image.base_if_usable(Some(base)) };
        let image = if is_alike { image.dirty(changed(&old, blocks)) } else { image };
        self.expect_base(mode, of_base, image.await?.base);
        Ok(())
    }

    async fn stream(
        &self,
        backup: &SnapshotWriter,
        mode: Mode,
        base: Option<&SnapshotReader>,
        blocks: &[u8],
    ) -> Result<()> {
        if blocks.is_empty() {
            return Ok(());
        }
        let data = Contents::bytes(blocks);
        let stream = backup.stream(STREAM, Cursor::new(&data));
        let stream = stream.chunker(Box::new(FixedChunker::new(BLOCK).unwrap()));
        match base.filter(|base| {
            base.manifest().files().iter().any(|file| file.name.to_string().starts_with(STREAM))
        }) {
            Some(base) if self.mode_of(base) == mode => stream.base(base).await.map(drop),
            Some(base) => {
                let used = stream.base_if_usable(Some(base)).await?.base;
                self.expect_base(mode, self.mode_of(base), used);
                Ok(())
            }
            None => stream.await.map(drop),
        }
    }

    fn mode_of(&self, snapshot: &SnapshotReader) -> Mode {
        self.model().mode(snapshot.name().time())
    }

    pub(crate) async fn restore(self: &Arc<Self>) {
        let (number, store) = self.a_store();
        let Some(name) = self.a_snapshot(number) else { return };
        let spot = (number, name.clone());
        let (contents, mode, before, was_bad) = {
            let mut model = self.model();
            let (contents, mode) = (model.contents(name.time()), model.mode(name.time()));
            (contents, mode, model.certain(&spot), model.is_hurt(number, name.time()))
        };
        self.log(format_args!("{number}: restore {name}, certain: {before:?}"));
        let work = async {
            let snapshot = self.open(&store, &name, mode).await?;
            self.pause().await;
            wrong_with(&snapshot, &contents).await
        };
        let Some(restored) = self.perhaps(work).await else { return };
        let mut model = self.model();
        let is_certain = before.is_some() && model.certain(&spot) == before;
        let is_bad = model.is_hurt(number, name.time());
        drop(model);
        let is_harmless = |kind| match kind {
            ErrorKind::Busy => true,
            ErrorKind::Unavailable => self.plan.faults,
            _ => false,
        };
        match restored {
            Ok(None) => self.count("restore"),
            Ok(Some(wrong)) => self.violation(format_args!("{wrong}")),
            Err(error) if is_certain && !is_bad && !was_bad && !is_harmless(error.kind()) => {
                self.violation(format_args!("{number}: {name} is there, and cannot be restored: {error}"));
            }
            Err(error) => {
                self.log(format_args!("{number}: restore {name}: {error}"));
                self.expect_kind(error.kind());
            }
        }
    }

    pub(crate) async fn relocate(self: &Arc<Self>) {
        let ((number, store), moves) = (self.a_store(), self.one_in(2));
        let group = self.a_snapshot(number).map_or_else(|| self.a_group(), |name| name.group().clone());
        let target = self.a_namespace();
        if self.one_in(4) {
            return self.relocate_namespace(number, &store, moves).await;
        }
        self.log(format_args!("{number}: move {moves}: {group} into {target:?}"));
        let pairs = self.begin_relocation(number, moves, |name| {
            (name.group() == &group).then(|| group.clone().in_namespace(target.clone()))
        });
        let done = self.perhaps(async {
            if moves {
                store.move_group(&group, &target).await
            } else {
                store.copy_group(&group, &target).await
            }
        });
        let done = done.await;
        self.end_relocation(number, moves, &pairs, done.as_ref());
    }

    async fn relocate_namespace(self: &Arc<Self>, number: usize, store: &Datastore, moves: bool) {
        let from: Namespace = self.pick(&["a", "a/b", "c", "d"]).unwrap().parse().unwrap();
        let to: Namespace = self.pick(&["d", "c", "a/b", "c/d"]).unwrap().parse().unwrap();
        self.log(format_args!("{number}: move {moves}: namespace {from:?} to {to:?}"));
        let pairs = self.begin_relocation(number, moves, |name| {
            let namespace = name.group().namespace();
            if !from.contains(namespace) {
                return None;
            }
            let below = namespace.components().skip(from.components().count());
            let target = below.fold(to.clone(), |parent, name| parent.child(name).unwrap());
            Some(name.group().clone().in_namespace(target))
        });
        let done = self.perhaps(async {
            if moves {
                store.move_namespace(&from, &to).await
            } else {
                store.copy_namespace(&from, &to).await
            }
        });
        let done = done.await;
        self.end_relocation(number, moves, &pairs, done.as_ref());
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
        let mut model = self.model();
        for Pair { destination, guarded, source } in pairs {
            let (from, to) = match of.get(&source.spot.1) {
                None => nothing,
                Some(Relocated::AlreadyThere) if moves => (DeleteOutcome::Unknown, DeleteOutcome::There),
                Some(Relocated::AlreadyThere | Relocated::Copied) => {
                    (DeleteOutcome::There, DeleteOutcome::There)
                }
                Some(Relocated::Moved) => (DeleteOutcome::Gone, DeleteOutcome::There),
                Some(Relocated::NotReached | Relocated::Unfinished) => {
                    (DeleteOutcome::Same, DeleteOutcome::Same)
                }
                Some(Relocated::Busy(_)) => (DeleteOutcome::Same, DeleteOutcome::Unknown),
                Some(_) => (DeleteOutcome::Unknown, DeleteOutcome::Unknown),
            };
            let was_certain = source.was == Tri::Yes && model.version(&source.spot) == source.version;
            let is_alone = model.version(&destination.spot) == destination.version;
            model.end(source, from);
            model.end(destination, to);
            let marked = match destination.was {
                // It stays marked, whatever the source was.
                Tri::Yes if destination.was_guarded && is_alone => Tri::Yes,
                Tri::No if from == DeleteOutcome::Gone && is_alone => *guarded,
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

    /// The finished snapshots of a store, and whether they are protected; and those that are not finished.
    pub(crate) async fn listed(&self, number: usize) -> (BTreeMap<SnapshotName, bool>, Vec<SnapshotName>) {
        let store = self.store(number);
        let (mut finished, mut others) = (BTreeMap::new(), Vec::new());
        for namespace in store.namespaces(&Namespace::root()).await.unwrap() {
            for group in store.groups(&namespace).await.unwrap() {
                for snapshot in store.snapshots(&group).await.unwrap() {
                    if snapshot.state == SnapshotState::Finished {
                        finished.insert(snapshot.name, snapshot.protected);
                    } else {
                        others.push(snapshot.name);
                    }
                }
            }
        }
        (finished, others)
    }

    pub(crate) async fn create_namespace(self: &Arc<Self>) {
        let (number, store) = self.a_store();
        let namespace: Namespace = self.pick(&["a", "a/b", "c"]).unwrap().parse().unwrap();
        self.log(format_args!("{number}: create {namespace:?}"));
        if let Some(Err(error)) = self.perhaps(store.create_namespace(&namespace)).await {
            self.expect_kind(error.kind());
        }
    }

    pub(crate) async fn change_clock(self: &Arc<Self>) {
        let by = Duration::from_secs(self.below(200_000));
        let forward = self.one_in(2);
        self.log(format_args!("clock: {by:?}, forward: {forward}"));
        if forward {
            self.sim.set_clock_forward(by);
        } else {
            self.sim.set_clock_back(by / 3);
        }
        self.pause().await;
    }
}

/// The two places of a snapshot that is copied or moved.
struct Pair {
    destination: super::model::Token,
    guarded: Tri,
    source: super::model::Token,
}
