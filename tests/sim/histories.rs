//! Random histories of a store, side by side and simulated, against a model in plain memory.
//!
//! `LARDER_SEED=n` replays one history, `LARDER_SEEDS=n` tries n of them from `LARDER_FIRST_SEED` on, `LARDER_TELL=1` prints each step.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use larder::backend::{Backend, FsBackend, FsOptions, MemoryBackend, PrefixDirectories, SyncLevel};
use larder::internal::listing::ShortPages as _;
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options, PackOptions};
use larder_testing::history;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn random_histories_with_faults_lose_no_acknowledged_snapshot() {
    if let Some(seed) = number("LARDER_SEED") {
        let life = history::live(seed);
        eprintln!("{life:#?}");
        return;
    }
    let mut counts = BTreeMap::<String, u64>::new();
    let first = number("LARDER_FIRST_SEED").unwrap_or(0);
    for seed in first..first + number("LARDER_SEEDS").unwrap_or(12) {
        for (what, count) in history::live(seed).counts {
            *counts.entry(what).or_default() += count;
        }
    }
    eprintln!("{counts:#?}");
}

#[test]
fn a_seed_reproduces_its_history() {
    for seed in [1000, 1001, 1002] {
        assert_eq!(history::live(seed), history::live(seed), "seed {seed}");
    }
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
        history::side_by_side(runtime, store, collector, Duration::from_secs(seconds)).await;
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
