//! One damage of one object: what is found, what still works, and what heals.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use larder::backend::Ownership;
use larder::error::{Error, ErrorKind, Result};
use larder::format::name::{Namespace, SnapshotName};
use larder::rt::{Runtime as _, SimRuntime};
use larder::store::{Datastore, Options, Protection, Scope, SnapshotReader, SnapshotState};
use larder::verify::{self, SkipReason, VerifyOptions};
use larder_testing::gc_scene::data;
use larder_testing::read_to_end;

use crate::matrix::damages::Damage;
use crate::matrix::kinds::{Labels, Target};
use crate::matrix::scene::{
    Contents, Form, LONG, Place, SNAPSHOTS, Scene, collect, collection, new_uuid, stream, time,
};

/// What the operator does so that everything works again, where a backup alone does not do that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Remedy {
    /// Attaches the store, without the object.
    Attach,
    /// Deletes the snapshots that are hurt.
    Forget,
    /// Opens the store as its owner again.
    Own,
    /// Sets the owner of the group.
    SetOwner,
    /// Puts the object back, from a copy.
    PutBack,
    /// Rebuilds the index of the packs.
    Rebuild,
    /// Removes the object.
    Remove,
}

impl Remedy {
    pub(crate) fn parse(text: &str) -> Self {
        match text {
            "attach" => Self::Attach,
            "forget" => Self::Forget,
            "own" => Self::Own,
            "owner" => Self::SetOwner,
            "put-back" => Self::PutBack,
            "rebuild" => Self::Rebuild,
            "remove" => Self::Remove,
            _ => panic!("no remedy: {text}"),
        }
    }
}

/// Observations, by their names. What is as in a sound store has none.
#[derive(Debug, Default)]
struct Observed {
    text: String,
}

impl Observed {
    fn note(&mut self, name: &str, what: impl std::fmt::Display) {
        let separator = if self.text.is_empty() { "" } else { " " };
        write!(self.text, "{separator}{name}:{what}").unwrap();
    }

    fn labels(&mut self, name: &str, found: &Labels) {
        if !found.is_empty() {
            self.note(name, joined(found));
        }
    }

    fn result<T>(&mut self, name: &str, result: &Result<T>) {
        if let Err(error) = result {
            self.note(name, kind(error));
        }
    }
}

pub(crate) fn joined(labels: &Labels) -> String {
    labels.iter().copied().collect::<Vec<_>>().join(",")
}

fn kind(error: &Error) -> String {
    if std::env::var_os("LARDER_DAMAGE_ERRORS").is_some() {
        return format!("{error:?}");
    }
    format!("{:?}", error.kind())
}

/// A store with damage.
struct Cell<'a> {
    form: Form,
    place: Place,
    scene: &'a Scene,
    sim: &'a SimRuntime,
    target: &'a Target,
    observed: Observed,
    /// Owner marks of others are replaced.
    takes_over: bool,
    /// The order of the first verification and the first collection.
    collects_first: bool,
}

/// Damages a copy of the scene; what was observed, or `None` if there is no such damage.
pub(crate) async fn run(
    sim: &SimRuntime,
    scene: &Scene,
    target: &Target,
    damage: Damage,
    remedy: Option<Remedy>,
    collects_first: bool,
) -> Option<String> {
    let [mut image, older] = scene.images(&new_uuid());
    if !damage.apply(&mut image, &older, target) {
        return None;
    }
    let place = Place::with(sim, scene.form, &image);
    let (form, observed, takes_over) = (scene.form, Observed::default(), false);
    let mut cell = Cell { form, place, scene, sim, target, observed, takes_over, collects_first };
    cell.live(remedy).await;
    Some(cell.observed.text)
}

impl Cell<'_> {
    async fn open(&self) -> Result<Datastore> {
        // Now, since an open store renews its lease all the time.
        if self.form.is_bucket {
            self.sim.sleep(LONG).await;
        }
        let ownership = Ownership::default();
        let ownership = if self.takes_over { ownership.reuse().take_over() } else { ownership };
        self.place.open_as(self.sim, &new_uuid(), ownership).await
    }

    async fn live(&mut self, mut remedy: Option<Remedy>) {
        let mut opened = self.open().await;
        if let Err(error) = &opened {
            self.observed.note("open", kind(error));
            let Some(first) = remedy.take() else { return };
            self.apply(None, first, &Labels::new()).await;
            opened = self.open().await;
            self.observed.result("reopen", &opened);
        }
        let Ok(mut store) = opened else { return };
        self.look_at_listing(&store).await;
        let hurt = self.look(&store, "hurt").await;
        if !self.collects_first {
            self.verify(&store, "verify", &BTreeMap::new()).await;
        }
        let collected = self.collect(&store).await;
        self.observed.result("gc", &collected);
        self.expect_sound(&store, &hurt, "after the first collection").await;
        if self.collects_first {
            self.verify(&store, "verify", &BTreeMap::new()).await;
        }
        if let Some(remedy) = remedy {
            self.apply(Some(store), remedy, &hurt).await;
            let opened = self.open().await;
            self.observed.result("reopen", &opened);
            let Ok(again) = opened else { return };
            store = again;
            let collected = self.collect(&store).await;
            self.observed.result("gc2", &collected);
        }
        let made = self.back_up(&store).await;
        let closed = store.close().await;
        self.observed.result("close", &closed);
        let opened = self.open().await;
        self.observed.result("reopen2", &opened);
        let Ok(store) = opened else { return };
        let collected = self.collect(&store).await;
        self.observed.result("gc3", &collected);
        self.expect_sound(&store, &hurt, "in the end").await;
        self.expect_new(&store, &made).await;
        self.verify(&store, "still", &made).await;
        let closed = store.close().await;
        self.observed.result("close2", &closed);
    }

    async fn collect(&self, store: &Datastore) -> Result<()> {
        collect(store, collection(self.form)).await
    }

    /// Labels of known snapshots, and `new` for others.
    fn label_of(name: &SnapshotName, made: &BTreeMap<&'static str, SnapshotName>) -> &'static str {
        let known = SNAPSHOTS.iter().find(|contents| contents.name() == *name);
        match known {
            Some(contents) => contents.label,
            None if made.values().any(|new| new == name) => "NEW",
            None => "copy",
        }
    }

    async fn look_at_listing(&mut self, store: &Datastore) {
        let (mut finished, mut failed) = (Labels::new(), None);
        let namespaces = store.namespaces(&Namespace::root()).await;
        self.observed.result("namespaces", &namespaces);
        for namespace in namespaces.unwrap_or_else(|_| vec![Namespace::root()]) {
            let groups = store.groups(&namespace).await;
            failed = failed.or(groups.as_ref().err().map(Error::kind));
            for group in groups.unwrap_or_default() {
                let snapshots = store.snapshots(&group).await;
                failed = failed.or(snapshots.as_ref().err().map(Error::kind));
                let snapshots = snapshots.unwrap_or_default();
                let snapshots = snapshots.iter().filter(|info| info.state == SnapshotState::Finished);
                finished.extend(snapshots.map(|info| Self::label_of(&info.name, &BTreeMap::new())));
            }
        }
        if let Some(failed) = failed {
            self.observed.note("list", format!("{failed:?}"));
        }
        let all: Labels = SNAPSHOTS.iter().map(|contents| contents.label).collect();
        self.observed.labels("unlisted", &all.difference(&finished).copied().collect());
        self.observed.labels("listed", &finished.difference(&all).copied().collect());
    }

    /// The snapshots that cannot be restored.
    async fn look(&mut self, store: &Datastore, name: &str) -> Labels {
        let (mut hurt, mut logs) = (Labels::new(), Labels::new());
        for contents in &SNAPSHOTS {
            let restored = match store.snapshot(&contents.name()).await {
                Ok(snapshot) => {
                    if contents.stream.is_some() {
                        let log = snapshot.client_log().await;
                        let is_same = log.is_ok_and(|log| log.as_deref() == Some(contents.log().as_slice()));
                        logs.extend((!is_same).then_some(contents.label));
                    }
                    restore(contents, &snapshot).await
                }
                Err(error) => Err(error),
            };
            if restored.is_err() {
                hurt.insert(contents.label);
            }
        }
        self.observed.labels(name, &hurt);
        self.observed.labels("log", &logs);
        hurt
    }

    /// Whatever happened, what was sound is sound.
    async fn expect_sound(&self, store: &Datastore, hurt: &Labels, when: &str) {
        for contents in SNAPSHOTS.iter().filter(|contents| !hurt.contains(contents.label)) {
            let snapshot = match store.snapshot(&contents.name()).await {
                Ok(snapshot) => snapshot,
                Err(error) => panic!("{when}, {} is lost: {error:?}", contents.label),
            };
            if let Err(error) = restore(contents, &snapshot).await {
                panic!("{when}, {} is hurt: {error:?}", contents.label);
            }
        }
    }

    async fn expect_new(&self, store: &Datastore, made: &BTreeMap<&'static str, SnapshotName>) {
        for (label, name) in made {
            let snapshot = store.snapshot(name).await.unwrap();
            if let Err(error) = restore(Contents::of(label), &snapshot).await {
                panic!("the new backup of {label} is hurt: {error:?}");
            }
        }
    }

    async fn verify(&mut self, store: &Datastore, name: &str, made: &BTreeMap<&'static str, SnapshotName>) {
        let report = match verify::plan(store, &Scope::Store, VerifyOptions::default()).await {
            Ok(mut plan) => plan.execute().await,
            Err(error) => Err(error),
        };
        let report = match report {
            Ok(report) => report,
            Err(error) => return self.observed.note(name, kind(&error)),
        };
        let label = |name: &SnapshotName| Self::label_of(name, made);
        let damaged: Labels = report.damaged.iter().map(|damaged| label(&damaged.name)).collect();
        self.observed.labels(name, &damaged);
        self.observed.labels(&format!("{name}-log"), &report.damaged_logs.iter().map(label).collect());
        let unfinished = report.skipped.iter().filter(|skipped| skipped.reason == SkipReason::Unfinished);
        let unfinished = unfinished.map(|skipped| label(&skipped.name));
        self.observed.labels(&format!("{name}-unfinished"), &unfinished.collect());
        let others = report.skipped.iter().filter(|skipped| skipped.reason != SkipReason::Unfinished);
        self.observed
            .labels(&format!("{name}-skipped"), &others.map(|skipped| label(&skipped.name)).collect());
        if !report.unreadable.is_empty() {
            self.observed.note(&format!("{name}-unreadable"), report.unreadable.len());
        }
        if report.is_suspicion_damaged {
            self.observed.note(name, "suspects");
        }
        if let Some(incomplete) = report.incomplete {
            self.observed.note(name, format!("{incomplete:?}"));
        }
        if !report.unrecorded.is_empty() {
            self.observed
                .labels(&format!("{name}-unrecorded"), &report.unrecorded.keys().map(label).collect());
        }
        if report.unrepaired > 0 {
            self.observed.note(&format!("{name}-unrepaired"), report.unrepaired);
        }
    }

    /// Applies a remedy, and closes the store.
    async fn apply(&mut self, store: Option<Datastore>, remedy: Remedy, hurt: &Labels) {
        let done = match (&store, remedy) {
            (Some(store), Remedy::Forget) => self.forget(store, hurt).await,
            (Some(store), Remedy::Rebuild) => match store.plan_index_rebuild().await {
                Ok(mut plan) => plan.execute().await.map(drop),
                Err(error) => Err(error),
            },
            (Some(store), Remedy::SetOwner) => {
                let group = Contents::of("n1").name().group().clone();
                store.set_owner(&group, &"two@pam".parse().unwrap()).await
            }
            (None, Remedy::Forget | Remedy::Rebuild | Remedy::SetOwner) => panic!("it is not open"),
            (_, Remedy::Attach) => {
                self.place.set(&self.target.path, None);
                self.attach().await
            }
            (_, Remedy::Own) => {
                self.takes_over = true;
                Ok(())
            }
            (_, Remedy::Remove) => {
                self.place.set(&self.target.path, None);
                Ok(())
            }
            (_, Remedy::PutBack) => {
                self.place.put_back(&self.scene.image, &self.target.path);
                Ok(())
            }
        };
        self.observed.result("remedy", &done);
        if let Some(store) = store {
            let closed = store.close().await;
            self.observed.result("close0", &closed);
        }
    }

    async fn attach(&self) -> Result<()> {
        let backend = self.place.backend(self.sim, &new_uuid(), Ownership::default()).await?;
        Datastore::attach(backend, Options::default()).await?.close().await
    }

    async fn forget(&self, store: &Datastore, hurt: &Labels) -> Result<()> {
        for contents in SNAPSHOTS.iter().filter(|contents| hurt.contains(contents.label)) {
            let name = contents.name();
            match store.set_protection(&name, Protection::Off).await {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                done => done?,
            }
            store.delete_snapshot(&name).await?;
        }
        Ok(())
    }

    /// The same data again, in all groups.
    async fn back_up(&mut self, store: &Datastore) -> BTreeMap<&'static str, SnapshotName> {
        let (mut made, mut failed) = (BTreeMap::new(), Labels::new());
        for (contents, seconds) in SNAPSHOTS.iter().zip((1000..).step_by(100)) {
            match contents.back_up(store, time(seconds)).await {
                Ok(snapshot) => {
                    let restored = restore(contents, &snapshot).await;
                    if let Err(error) = restored {
                        panic!("the new backup of {} is hurt from the beginning: {error:?}", contents.label);
                    }
                    made.insert(contents.label, snapshot.name().clone());
                }
                Err(error) => {
                    if std::env::var_os("LARDER_DAMAGE_ERRORS").is_some() {
                        eprintln!("backup of {}: {error:?}", contents.label);
                    }
                    failed.insert(contents.label);
                }
            }
        }
        self.observed.labels("backup", &failed);
        made
    }
}

/// Restores everything. An error is damage that was found; other bytes than those of the backup are the end of this test.
pub(crate) async fn restore(contents: &Contents, snapshot: &SnapshotReader) -> Result<()> {
    let label = contents.label;
    let mut archive = snapshot.archive("d.img.fidx").await?;
    let bytes = read_to_end(&mut archive).await.map_err(cause)?;
    assert!(bytes == data(contents.image), "{label}: wrong bytes of the image");
    if let Some(seed) = contents.stream {
        let mut archive = snapshot.archive("s.bin.didx").await?;
        let bytes = read_to_end(&mut archive).await.map_err(cause)?;
        assert!(bytes == stream(seed), "{label}: wrong bytes of the stream");
        let blob = snapshot.blob("c.conf.blob").await?;
        assert!(blob == contents.blob(), "{label}: wrong bytes of the blob");
    }
    Ok(())
}

fn cause(error: std::io::Error) -> Error {
    error.into_inner().unwrap().downcast_ref::<Error>().unwrap().clone()
}
