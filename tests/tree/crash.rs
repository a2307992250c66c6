//! Crashes during backups of trees that reuse chunks.

#![allow(clippy::cast_possible_wrap, reason = "small numbers")]

use std::path::Path;
use std::sync::Arc;

use futures::executor::block_on;
use larder::ThreadRuntime;
use larder::backend::{FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::error::ErrorKind;
use larder::internal::replay::{DiskRecord, DiskUnderTest as _, Loss};
use larder::store::{Datastore, Options, SnapshotReader, SnapshotState};
use larder_testing::noise;
use larder_testing::tree::MemoryTree;

use crate::archives::{contents_of, restored, same_tree};
use crate::write::group;

fn options() -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::File)
}

/// The tree of a version: most of it is the same in all.
fn tree(version: u64) -> MemoryTree {
    let tree = MemoryTree::default();
    tree.directory("d");
    for number in 0..30 {
        tree.file(&format!("d/same{number:02}"), noise(number, 9000), 1);
    }
    tree.file("z", noise(100 + version, 3000), version as i64);
    tree
}

async fn back_up(store: &Datastore, version: u64, base: Option<&SnapshotReader>) -> SnapshotReader {
    let backup = store.backup(&group()).begin().await.unwrap();
    backup.set_notes(version.to_string());
    let tree = tree(version);
    let summary = backup.tree("root", &tree).base_if_usable(base).chunk_bytes(64 << 10).await.unwrap();
    assert_eq!(summary.counts.files_reused > 0, base.is_some(), "{summary}");
    backup.finish().await.unwrap().snapshot
}

async fn check(store: &Datastore) -> Vec<SnapshotReader> {
    let mut finished = Vec::new();
    for info in store.snapshots(&group()).await.unwrap() {
        if info.state == SnapshotState::Finished {
            let snapshot = store.snapshot(&info.name).await.unwrap();
            let version = snapshot.manifest().notes().unwrap().parse().unwrap();
            same_tree(&restored(&snapshot, "root").await, &contents_of(&tree(version)).await);
            finished.push(snapshot);
        }
    }
    finished.sort_by_key(|snapshot| snapshot.name().time());
    finished
}

async fn reopen(directory: &Path) -> Option<Datastore> {
    match FsBackend::open(Arc::new(ThreadRuntime::new()), directory, options()).await {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        backend => Some(Datastore::open(Arc::new(backend.unwrap()), Options::default()).await.unwrap()),
    }
}

/// Proves H37, H192.
#[test]
fn every_acknowledged_tree_survives_a_crash_at_any_write_of_a_backup_that_reuses_chunks() {
    block_on(async {
        let directory = larder_testing::scratch();
        let record = Arc::new(DiskRecord::default());
        let backend = FsBackend::create(
            Arc::new(ThreadRuntime::new()),
            directory.path(),
            options().record(Arc::clone(&record)),
        );
        let store = Datastore::create(Arc::new(backend.await.unwrap()), Options::default()).await.unwrap();
        let first = back_up(&store, 1, None).await;
        let after_first = record.len();
        back_up(&store, 2, Some(&first)).await;
        let after_second = record.len();
        for step in after_first..=after_second {
            for loss in [Loss::Everything, Loss::OnlyBytes, Loss::Some(step as u64)] {
                let directory = larder_testing::scratch();
                record.replay(step, loss, directory.path()).unwrap();
                let store = reopen(directory.path()).await.unwrap();
                let finished = check(&store).await;
                let least = if step == after_second { 2 } else { 1 };
                assert!(finished.len() >= least, "{} after {step} steps, {loss:?}", finished.len());
                back_up(&store, 3, finished.last()).await;
                assert_eq!(check(&store).await.len(), finished.len() + 1);
            }
        }
    });
}
