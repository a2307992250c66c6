//! Backups of trees that are dropped at any point.

use std::future::{Future, IntoFuture as _};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures::future::BoxFuture;
use larder::backend::{Backend, MemoryBackend};
use larder::format::layout::Key;
use larder::internal::record::Method;
use larder::internal::sim::Simulation as _;
use larder::rt::SimRuntime;
use larder::store::{Datastore, Options, PackOptions};
use larder::tree::TreeSummary;
use larder_testing::noise;
use larder_testing::tree::MemoryTree;
use larder_testing::watched::Watched;

use crate::archives::{contents_of, restored, same_tree};
use crate::genuine::walked;
use crate::write::group;

/// A backup that is dropped when it was polled a number of times.
struct Polled<'a> {
    backup: Option<BoxFuture<'a, larder::Result<TreeSummary>>>,
    rest: usize,
}

impl Future for Polled<'_> {
    /// `None` if it was dropped.
    type Output = Option<TreeSummary>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if self.rest > 0
            && let Some(backup) = &mut self.backup
            && let Poll::Ready(summary) = backup.as_mut().poll(context)
        {
            return Poll::Ready(Some(summary.unwrap()));
        }
        self.rest = self.rest.saturating_sub(1);
        if self.rest == 0 {
            self.backup = None;
            return Poll::Ready(None);
        }
        Poll::Pending
    }
}

/// Backs a tree up, drops that after so many polls, and finishes the snapshot. Returns `true` if the backup had ended.
async fn dropped_after(polls: usize, runtime: SimRuntime, tree: &MemoryTree) -> bool {
    let store = Datastore::create(Arc::new(MemoryBackend::new(Arc::new(runtime))), Options::default());
    let store = store.await.unwrap();
    let backup = store.backup(&group()).begin().await.unwrap();
    backup.blob("app.conf", "text").await.unwrap();
    let of_tree = backup.tree("root", tree).chunk_bytes(64 << 10).into_future();
    let summary = Polled { backup: Some(of_tree), rest: polls }.await;
    let snapshot = backup.finish().await.unwrap().snapshot;
    let names: Vec<_> = snapshot.manifest().files().iter().map(|file| file.name.as_str()).collect();
    if summary.is_some() {
        assert_eq!(names, ["app.conf.blob", "root.ppxar.didx", "root.mpxar.didx"]);
        same_tree(&restored(&snapshot, "root").await, &contents_of(tree).await);
    } else {
        assert_eq!(names, ["app.conf.blob"], "after {polls} polls");
    }
    summary.is_some()
}

#[test]
fn browsing_a_split_tree_of_a_packed_store_reads_packs_of_metadata_alone() {
    let sim = SimRuntime::new(7);
    sim.block_on(async {
        let memory = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
        let watched = Watched::of_kind(memory, true);
        let backend: Arc<dyn Backend> = Arc::<Watched>::clone(&watched);
        let options = Options::default().packed(PackOptions::default());
        let store = Datastore::create(Arc::clone(&backend), options).await.unwrap();
        let tree = MemoryTree::default();
        tree.directory("d");
        for number in 0..300 {
            tree.file(&format!("d/{number:03}"), noise(number, 1_000), 1);
        }
        let backup = store.backup(&group()).begin().await.unwrap();
        backup.tree("root", &tree).await.unwrap();
        let name = backup.finish().await.unwrap().snapshot.name().clone();
        let usage = store.pack_usage().unwrap();
        assert_eq!((usage.packs, usage.metadata_packs), (2, 1));
        drop(store);
        let store = Datastore::open(backend, Options::default()).await.unwrap();
        let read: Arc<Mutex<Vec<Key>>> = Arc::default();
        let reading = Arc::clone(&read);
        watched.watch(move |step| {
            if !step.is_over && matches!(step.method, Method::Get | Method::GetRange) {
                reading
                    .lock()
                    .unwrap()
                    .extend(step.keys.into_iter().filter(|key| matches!(key, Key::Pack(_))));
            }
            Box::pin(async {})
        });
        let snapshot = store.snapshot(&name).await.unwrap();
        let all = snapshot.tree("root").await.unwrap();
        assert!(walked(&all).await.len() > 300);
        let packs: Vec<_> = read.lock().unwrap().drain(..).collect();
        assert_eq!(packs.len(), 1, "one request, of the pack of metadata");
        let file = all.open("d/007").await.unwrap();
        assert_eq!(file.read_all().await.unwrap(), noise(7, 1_000));
        assert_ne!(read.lock().unwrap()[0], packs[0]);
    });
}

#[test]
fn a_split_tree_that_is_dropped_at_any_point_has_both_archives_or_none() {
    let tree = MemoryTree::default();
    tree.directory("d");
    for number in 0..12 {
        tree.file(&format!("d/{number:02}"), noise(number, 30_000), 1);
    }
    for seed in 0..3 {
        let mut polls = 1;
        loop {
            let sim = SimRuntime::new(seed);
            let is_done = sim.block_on(dropped_after(polls, sim.clone(), &tree));
            // Otherwise its chunks would be in use in the store of the next round, which has the same identity.
            sim.run_until_idle();
            if is_done {
                break;
            }
            polls += 1;
        }
        assert!(polls > 10, "the backup never waited: {polls}");
    }
}
