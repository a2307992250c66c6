//! Random histories of a store, side by side and simulated, against a model in plain memory.
//!
//! `LARDER_SEED=n` replays one history, `LARDER_SEEDS=n` tries n of them from `LARDER_FIRST_SEED` on.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use larder::backend::{Backend, FsBackend, FsOptions, MemoryBackend, PrefixDirectories, SyncLevel};
use larder::error::Result;
use larder::internal::listing::ShortPages as _;
use larder::rt::{Runtime, SimRuntime, ThreadRuntime};
use larder::simulation::{Place, Simulation};
use larder::store::{Datastore, Options, PackOptions};
use larder_testing::side;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

/// Runs as many histories as wanted, and tells the shortest form of the first one that fails.
fn run(simulation: &Simulation, seeds: u64) -> BTreeMap<String, u64> {
    let (first, seeds) = match number("LARDER_SEED") {
        Some(seed) => (seed, 1),
        None => (number("LARDER_FIRST_SEED").unwrap_or(0), number("LARDER_SEEDS").unwrap_or(seeds)),
    };
    let mut counts = BTreeMap::new();
    for seed in first..first + seeds {
        let history = simulation.run(seed).unwrap_or_else(|failure| {
            let failure = simulation.shrink(failure);
            panic!("LARDER_SEED={seed}\n{}\n{failure}", failure.log.join("\n"));
        });
        for (what, count) in history.counts {
            *counts.entry(what).or_default() += count;
        }
    }
    eprintln!("{counts:#?}");
    counts
}

#[test]
fn random_histories_with_faults_lose_no_acknowledged_snapshot() {
    let counts = run(&Simulation::default(), 60);
    if number("LARDER_SEED").is_none() {
        for what in ["crash", "collected some", "prune", "relocation", "sync"] {
            assert!(counts.contains_key(what), "no {what}: {counts:#?}");
        }
    }
}

/// Segments that a process lacked while listings lagged, a good copy that another process stored of a chunk that this one knew as damaged, a
/// good copy that only a key tells from a bad one, chunks for a base that another process stored, the beginning of a term that was given up
/// and executed late, a move to a place with a pending deletion, a sync to a place with a snapshot that listings did not show, and a move
/// of a snapshot that they showed as protected.
#[test]
fn histories_that_failed_once_lose_no_acknowledged_snapshot() {
    for seed in [
        2_022_758, 2_029_147, 2_033_527, 2_046_969, 2_342_774, 2_415_359, 2_426_418, 3_001_949, 3_005_313,
        4_140_074, 5_040_132,
    ] {
        let failed = Simulation::default().run(seed).err();
        assert!(failed.is_none(), "{}", failed.unwrap());
    }
}

#[test]
fn random_histories_with_local_state_lose_no_acknowledged_snapshot() {
    let directory = larder_testing::scratch();
    run(&Simulation::default().local_state(directory.path().join("state")), 12);
}

/// A directory, as a program with a backend of its own has its place.
#[derive(Debug)]
struct Directory {
    runtime: Arc<dyn Runtime>,
    scratch: tempfile::TempDir,
    was_opened: Mutex<bool>,
}

impl Directory {
    fn new(sim: &SimRuntime) -> Self {
        let runtime = Arc::new(sim.clone());
        Self { runtime, scratch: larder_testing::scratch(), was_opened: Mutex::new(false) }
    }
}

#[async_trait]
impl Place for Directory {
    async fn open(&self, _: u64) -> Result<Arc<dyn Backend>> {
        let path = self.scratch.path().join("store");
        let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
        let options = options.sync_level(SyncLevel::None);
        let is_first = !std::mem::replace(&mut *self.was_opened.lock().unwrap(), true);
        let runtime = Arc::clone(&self.runtime);
        Ok(Arc::new(if is_first {
            FsBackend::create(runtime, &path, options).await?
        } else {
            FsBackend::open(runtime, &path, options).await?
        }))
    }

    fn crash(&self, _: u64) {}
}

#[test]
fn random_histories_in_a_directory_lose_no_acknowledged_snapshot() {
    run(&Simulation::new(|sim, _| Arc::new(Directory::new(sim))), 8);
}

#[test]
fn a_seed_reproduces_its_history() {
    let simulation = Simulation::default();
    for seed in [1000, 1001, 1002] {
        assert_eq!(simulation.run(seed).unwrap(), simulation.run(seed).unwrap(), "seed {seed}");
    }
}

/// A place whose crashes lose an object that was flushed.
#[derive(Debug)]
struct Forgetful(Arc<MemoryBackend>);

#[async_trait]
impl Place for Forgetful {
    async fn open(&self, _: u64) -> Result<Arc<dyn Backend>> {
        Ok(Arc::clone(&self.0) as _)
    }

    fn crash(&self, _: u64) {
        futures::executor::block_on(async {
            let chunks = larder::backend::ListQuery::all(larder::format::layout::Prefix::Chunks);
            for entry in self.0.list(&chunks, None).await.unwrap().entries {
                let key = entry.path().parse().unwrap();
                self.0.delete(&[larder::backend::Removal::any(key)]).await.unwrap().remove(0).unwrap();
            }
        });
    }
}

#[test]
fn a_place_that_loses_chunks_is_found_and_its_history_is_shrunk() {
    let simulation = Simulation::new(|sim, _| {
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        Arc::new(Forgetful(Arc::new(MemoryBackend::new(runtime))))
    });
    let failure = (0..40).find_map(|seed| simulation.run(seed).err()).unwrap();
    let steps = failure.steps.len();
    let shrunk = simulation.shrink(failure);
    assert!(shrunk.steps.len() < steps && shrunk.steps.len() <= 4, "{shrunk}");
    assert!(!shrunk.log.is_empty() && shrunk.to_string().contains("crash"), "{shrunk}");
}

fn on_threads(directory: Option<&std::path::Path>, options: &Options) {
    let seconds = number("LARDER_SIDE_BY_SIDE_SECONDS").unwrap_or(3);
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    futures::executor::block_on(async {
        let backend: Arc<dyn Backend> = match directory {
            Some(directory) => {
                let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
                let options = options.sync_level(SyncLevel::None);
                Arc::new(FsBackend::create(Arc::clone(&runtime), directory, options).await.unwrap())
            }
            None => Arc::new(MemoryBackend::new(Arc::clone(&runtime)).page_entries(3)),
        };
        let store = Datastore::create(Arc::clone(&backend), options.clone()).await.unwrap();
        let collector = Datastore::open(backend, Options::default()).await.unwrap();
        side::side_by_side(runtime, store, collector, Duration::from_secs(seconds)).await;
    });
}

#[test]
fn concurrent_operations_on_a_directory_lose_nothing() {
    let directory = larder_testing::scratch();
    on_threads(Some(&directory.path().join("store")), &Options::default());
}

#[test]
fn concurrent_operations_on_packs_in_a_directory_lose_nothing() {
    let directory = larder_testing::scratch();
    on_threads(Some(&directory.path().join("store")), &Options::default().packed(PackOptions::default()));
}

#[test]
fn concurrent_operations_in_memory_lose_nothing() {
    on_threads(None, &Options::default());
}

#[test]
fn concurrent_operations_on_packs_in_memory_lose_nothing() {
    on_threads(None, &Options::default().packed(PackOptions::default()));
}
