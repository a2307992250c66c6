//! The same for local state: whatever happens to a copy or a record, no caller gets a wrong byte or an error. Only requests are repeated.
//!
//! A damage hits every file of a kind at once.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use larder::backend::Ownership;
use larder::error::{Error, ErrorKind, Result};
use larder::internal::packs;
use larder::local::{LocalOptions, LocalState};
use larder::rt::{Runtime, SimRuntime};
use larder::store::{Datastore, Options, Scope};
use larder::verify::{self, VerifyOptions};
use larder_testing::gc_scene::{OnFailure, digest};

use crate::matrix::cell::restore;
use crate::matrix::damages::Damage;
use crate::matrix::image::{Entry, Image};
use crate::matrix::kinds::{Labels, Target};
use crate::matrix::scene::{Form, LONG, Place, SNAPSHOTS, Scene, collect, collection, new_uuid, time};
use crate::matrix::{is_chosen, prints};

/// Kinds of files, by the beginning of their path. A directory ends in `/`, and `/*` means the files in it.
const KINDS: [&str; 11] = [
    "chunks/",
    "chunks/*",
    "instance",
    "lock",
    "mirror/",
    "mirror/*",
    "presence/",
    "presence/*",
    "segments/",
    "segments/*",
    "store",
];

/// Damage with which the directory is refused, and the error. Without the directory, everything works.
const REFUSED: [(&str, Damage, ErrorKind); 10] = [
    // It has the identity of another store.
    ("instance", Damage::Swapped, ErrorKind::Conflict),
    ("store", Damage::LinkToOther, ErrorKind::Conflict),
    ("store", Damage::Swapped, ErrorKind::Conflict),
    ("instance", Damage::WrongType, ErrorKind::Unavailable),
    ("lock", Damage::Fifo, ErrorKind::Unavailable),
    ("lock", Damage::WrongType, ErrorKind::Unavailable),
    ("mirror/", Damage::Fifo, ErrorKind::Unavailable),
    ("mirror/", Damage::LinkToNothing, ErrorKind::Unavailable),
    ("mirror/", Damage::WrongType, ErrorKind::Unavailable),
    ("store", Damage::WrongType, ErrorKind::Unavailable),
];

/// Records of a segment that is so large that it is not kept in memory.
const RECORDS: u64 = 7000;

struct LocalScene {
    bucket: Image,
    form: Form,
    local: Image,
    older: Image,
    uuid: String,
}

async fn open(sim: &SimRuntime, place: &Place, directory: &Path, uuid: &str) -> Result<Datastore> {
    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
    let local = LocalState::open(&runtime, directory, LocalOptions::default().cache_bytes(1 << 20)).await?;
    let backend = place.backend(sim, uuid, Ownership::default().instance(local.instance())).await?;
    Datastore::open(backend, Options::default().index_bytes(0).local_state(local)).await
}

impl LocalScene {
    async fn make(sim: &SimRuntime, form: Form) -> Self {
        let scene = Scene::make(sim, form).await;
        let mut bucket = scene.image;
        if form.is_packed {
            let records = (0..RECORDS).map(|at| (0, at, digest(1000 + at)));
            let mut sorted: Vec<_> = records.collect();
            sorted.sort_by_key(|(_, _, digest)| *digest);
            let sorted = sorted.into_iter().zip(0..).map(|((pack, _, digest), at)| (pack, at, digest));
            let (key, segment) = packs::segment(0, 100 << 20, 100, sorted).unwrap();
            bucket.put(&key.to_string(), Entry::File(segment));
        }
        let place = Place::with(sim, form, &bucket);
        let (directory, uuid) = (larder_testing::scratch(), new_uuid());
        let mut older = None;
        for seconds in [500, 600_u64] {
            let store = open(sim, &place, directory.path(), &uuid).await.unwrap();
            store.refresh().await.unwrap();
            for (contents, more) in SNAPSHOTS.iter().zip(0..) {
                let made = contents.back_up(&store, time(seconds + more)).await.unwrap();
                restore(contents, &made).await.unwrap();
                restore(contents, &store.snapshot(&contents.name()).await.unwrap()).await.unwrap();
            }
            store.close().await.unwrap();
            older = older.or_else(|| Some(Image::of_directory(directory.path())));
        }
        let local = Image::of_directory(directory.path());
        Self { bucket: place.image(), form, local, older: older.unwrap(), uuid }
    }

    /// What is damaged together.
    fn targets(&self, kind: &str) -> Vec<Target> {
        let target = |path: &str, partner: Option<&str>| Target {
            path: path.to_owned(),
            partner: partner.map(str::to_owned),
            spare: Some(format!(
                "{}7{}",
                path.trim_end_matches('/'),
                if path.ends_with('/') { "/" } else { "" }
            )),
            users: Labels::new(),
            partner_users: Labels::new(),
        };
        match kind.strip_suffix('*') {
            Some(parent) => {
                let files = self.local.0.iter().filter(|(_, entry)| matches!(entry, Entry::File(_)));
                let files: Vec<_> =
                    files.map(|(path, _)| path).filter(|path| path.starts_with(parent)).collect();
                let next = files.iter().cycle().skip(1);
                files.iter().zip(next).map(|(path, next)| target(path, Some(next))).collect()
            }
            None if kind.ends_with('/') => {
                vec![target(kind, Some(if kind == "chunks/" { "mirror/" } else { "chunks/" }))]
            }
            None => vec![target(kind, Some(if kind == "store" { "instance" } else { "store" }))],
        }
    }

    /// Damages all files of the kind. Returns `None` if there is no such damage, or what went wrong.
    async fn run(&self, sim: &SimRuntime, kind: &str, damage: Damage) -> Option<String> {
        let mut local = self.local.clone();
        let mut is_damaged = false;
        for target in self.targets(kind) {
            is_damaged |= damage.apply(&mut local, &self.older, &target);
        }
        if !is_damaged {
            return None;
        }
        let place = Place::with(sim, self.form, &self.bucket);
        let directory = larder_testing::scratch();
        local.make(directory.path());
        let mut outcome = self.live(sim, &place, directory.path()).await;
        let refused = REFUSED.iter().find(|(refused, by, _)| *refused == kind && *by == damage);
        if let Some((_, _, refused)) = refused {
            let error = outcome.expect_err("it is refused");
            assert_eq!((error.0, error.1.kind()), ("open", *refused), "{error:?}");
            fs::remove_dir_all(directory.path()).unwrap();
            outcome = self.live(sim, &place, directory.path()).await;
        }
        self.expect_whole(sim, &place).await;
        Some(outcome.map_or_else(|(step, error)| format!("{step}: {error:?}"), |()| String::new()))
    }

    async fn live(
        &self,
        sim: &SimRuntime,
        place: &Place,
        directory: &Path,
    ) -> std::result::Result<(), (&'static str, Error)> {
        let at = |step: &'static str| move |error: Error| (step, error);
        for round in 0..2 {
            let store = open(sim, place, directory, &self.uuid).await.map_err(at("open"))?;
            for contents in &SNAPSHOTS {
                let snapshot = store.snapshot(&contents.name()).await.map_err(at("snapshot"))?;
                restore(contents, &snapshot).await.map_err(at("restore"))?;
            }
            if round == 0 {
                for (contents, seconds) in SNAPSHOTS.iter().zip((1000..).step_by(100)) {
                    let made = contents.back_up(&store, time(seconds)).await.map_err(at("back up"))?;
                    restore(contents, &made).await.map_err(at("restore the new one"))?;
                }
                store.refresh().await.map_err(at("refresh"))?;
            }
            store.close().await.map_err(at("close"))?;
        }
        Ok(())
    }

    /// As another process without local state finds the store.
    async fn expect_whole(&self, sim: &SimRuntime, place: &Place) {
        let store = place.open(sim, &new_uuid()).await.unwrap();
        if !self.form.is_packed {
            sim.sleep(LONG).await;
            collect(&store, collection(self.form)).await.unwrap();
        }
        let plan = verify::plan(&store, &Scope::Store, VerifyOptions::default()).await;
        let report = plan.unwrap().execute().await.unwrap();
        assert!(report.is_clean() && report.sound >= 12, "{report:?}");
        store.close().await.unwrap();
    }
}

fn run(form: Form) {
    let scene = {
        let sim = SimRuntime::new(0);
        sim.block_on(LocalScene::make(&sim, form))
    };
    let (mut cells, mut wrong) = (0, Vec::new());
    for (at, kind) in KINDS.into_iter().enumerate() {
        for (number, damage) in (at..).zip(Damage::ALL) {
            let name = format!("local state, {} | {kind} | {damage}", form.name());
            // Copies of the segments are what is special about packs.
            let is_covered = form.is_packed && !kind.starts_with("segments");
            if is_covered || !is_chosen(&name, number, 3) {
                continue;
            }
            let _on_failure = OnFailure(name.clone());
            let sim = SimRuntime::new(cells);
            let Some(outcome) = sim.block_on(scene.run(&sim, kind, damage)) else { continue };
            cells += 1;
            if prints() {
                println!("{name} | {outcome}");
            }
            if !outcome.is_empty() {
                wrong.push(format!("{name}\n  {outcome}"));
            }
        }
    }
    println!("local state, {}: {cells} cells", form.name());
    assert!(wrong.is_empty(), "{} of {cells} cells:\n{}", wrong.len(), wrong.join("\n"));
}

/// Proves H66, H74.
#[test]
fn damage_of_local_state_costs_requests_alone() {
    run(Form::ALL[2]);
}

/// Proves H207.
#[test]
fn damage_of_local_copies_of_segments_costs_requests_alone() {
    run(Form::ALL[3]);
}

#[test]
fn every_file_of_local_state_is_in_the_matrix() {
    for form in [Form::ALL[2], Form::ALL[3]] {
        let sim = SimRuntime::new(0);
        let scene = sim.block_on(LocalScene::make(&sim, form));
        let absent = if form.is_packed { "presence" } else { "segments" };
        for kind in KINDS.iter().filter(|kind| !kind.starts_with(absent)) {
            let path = kind.trim_end_matches('*');
            assert!(
                scene.local.0.keys().any(|found| found.starts_with(path)),
                "no {kind} in {:?}",
                scene.local.0.keys()
            );
        }
        for path in scene.local.0.keys() {
            let is_of = |kind: &str| {
                kind == path || (kind.ends_with('/') && path.starts_with(kind.trim_end_matches('/')))
            };
            assert!(KINDS.iter().any(|kind| is_of(kind)), "{path} has no row");
        }
    }
}
