//! Backups of trees that reuse chunks of their base: what they need survives whatever happens to the base.

#![allow(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "small numbers")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::executor::block_on;
use larder::ThreadRuntime;
use larder::backend::{FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::format::Digest;
use larder::format::name::ArchiveKind;
use larder::internal::index::IndexReader;
use larder::store::{BaseUse, Datastore, Options, Scope, SnapshotReader};
use larder::sync::{self, SyncOptions};
use larder::tree::Problem;
use larder::verify::{self, VerifyOptions};
use larder_testing::gc_scene::{at_once, collected};
use larder_testing::noise;
use larder_testing::tree::MemoryTree;

use crate::archives::{contents_of, restored, same_tree};
use crate::write::{back_up, mixed_tree, store};

async fn on_disk(directory: &Path) -> Datastore {
    let options =
        FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None);
    let backend = FsBackend::create(Arc::new(ThreadRuntime::new()), directory, options).await.unwrap();
    Datastore::create(Arc::new(backend), Options::default()).await.unwrap()
}

/// The chunks of an archive, as its index file names them.
fn chunks(directory: &Path, snapshot: &SnapshotReader, archive: &str) -> Vec<Digest> {
    let index = fs::read(directory.join(snapshot.name().to_string()).join(archive)).unwrap();
    let index = IndexReader::parse(ArchiveKind::Dynamic, index.into()).unwrap();
    (0..index.len()).map(|number| index.chunk(number).unwrap().digest).collect()
}

fn path_of(directory: &Path, chunk: &Digest) -> std::path::PathBuf {
    let name = chunk.to_string();
    directory.join(".chunks").join(&name[..4]).join(&name)
}

/// Proves H192.
#[test]
fn reused_chunks_survive_the_base_a_collection_and_a_sync() {
    block_on(async {
        let (store, other, tree) = (store().await, store().await, mixed_tree());
        let (first, _) = back_up(&store, &tree, None).await;
        tree.file("a/b/c/medium010", noise(78, 20_000), 1_600_000_002);
        let (second, summary) = back_up(&store, &tree, Some(&first)).await;
        assert!(summary.counts.files_reused > 40, "{summary}");
        let name = first.name().clone();
        drop(first);
        store.delete_snapshot(&name).await.unwrap();
        collected(&store, at_once()).await;
        let expected = contents_of(&tree).await;
        same_tree(&restored(&second, "root").await, &expected);
        let report =
            verify::plan(&store, &Scope::Store, VerifyOptions::default()).await.unwrap().execute().await;
        assert!(report.unwrap().is_clean());
        sync::plan(&store, &other, SyncOptions::default()).await.unwrap().execute().await.unwrap();
        let copy = other.snapshot(second.name()).await.unwrap();
        same_tree(&restored(&copy, "root").await, &expected);
    });
}

/// Proves H192.
#[test]
fn files_in_a_missing_or_empty_chunk_of_the_base_are_read_again() {
    block_on(async {
        let tree = mixed_tree();
        let expected = contents_of(&tree).await;
        for (number, is_empty) in [(0, true), (3, false), (9, false)] {
            let directory = larder_testing::scratch();
            let store = on_disk(directory.path()).await;
            let (first, _) = back_up(&store, &tree, None).await;
            tree.opened();
            let chunk =
                path_of(directory.path(), &chunks(directory.path(), &first, "root.ppxar.didx")[number]);
            if is_empty {
                fs::write(chunk, "").unwrap();
            } else {
                fs::remove_file(chunk).unwrap();
            }
            let (second, summary) = back_up(&store, &tree, Some(&first)).await;
            assert_eq!((summary.base, summary.counts.files_reused), (BaseUse::Used, 0), "{number}");
            same_tree(&restored(&second, "root").await, &expected);
        }
    });
}

#[test]
fn a_base_whose_entries_are_damaged_costs_the_detection_of_changes() {
    block_on(async {
        let (tree, directory) = (mixed_tree(), larder_testing::scratch());
        let store = on_disk(directory.path()).await;
        let (first, _) = back_up(&store, &tree, None).await;
        let chunk = path_of(directory.path(), &chunks(directory.path(), &first, "root.mpxar.didx")[0]);
        let mut bytes = fs::read(&chunk).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        fs::write(&chunk, bytes).unwrap();
        let (second, summary) = back_up(&store, &tree, Some(&first)).await;
        assert_eq!((summary.base, summary.counts.files_reused), (BaseUse::Damaged, 0));
        assert_eq!(summary.report.findings, []);
        drop((first, second));
    });
}

#[test]
fn a_tree_that_changes_all_the_time_gives_readable_snapshots() {
    let (tree, stop) = (MemoryTree::default(), AtomicBool::new(false));
    for directory in 0..5 {
        tree.directory(&format!("d{directory}"));
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut step = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                step += 1;
                let random = u64::from_le_bytes(noise(step, 8).try_into().unwrap());
                let path = format!("d{}/f{:02}", random % 5, random / 8 % 30);
                match random / 256 % 4 {
                    0 => tree.remove(&path),
                    _ => tree.file(
                        &path,
                        noise(random % 7, (random / 1024 % 5000) as usize),
                        (step / 50) as i64,
                    ),
                }
            }
        });
        block_on(async {
            let store = store().await;
            let mut base = None;
            for _ in 0..12 {
                let (snapshot, summary) = back_up(&store, &tree, base.as_ref()).await;
                let entries = restored(&snapshot, "root").await;
                assert_eq!(entries.len() as u64, summary.counts.entries());
                for finding in &summary.report.findings {
                    let is_stored = entries.contains_key(&finding.path);
                    match finding.problem {
                        Problem::Vanished => assert!(!is_stored),
                        Problem::Grown | Problem::Shrunk(_) => assert!(is_stored),
                        other => panic!("{other:?}"),
                    }
                }
                base = Some(snapshot);
            }
        });
        stop.store(true, Ordering::Relaxed);
    });
}

/// A process has a thousand descriptors. Files that wait for a decision keep none, and are read all the same if it is against them.
#[test]
fn directories_of_waiting_files_are_closed_and_opened_again() {
    block_on(async {
        let (tree, directory) = (MemoryTree::default(), larder_testing::scratch());
        for number in 0..1500_u64 {
            tree.directory(&format!("d{number:04}"));
            tree.directory(&format!("d{number:04}/e"));
            tree.file(&format!("d{number:04}/e/f"), noise(number, 700), 1);
        }
        let store = on_disk(directory.path()).await;
        let (first, _) = back_up(&store, &tree, None).await;
        let (second, summary) = back_up(&store, &tree, Some(&first)).await;
        assert_eq!(summary.counts.files_reused, 1500);
        let chunk = path_of(directory.path(), &chunks(directory.path(), &second, "root.ppxar.didx")[2]);
        fs::remove_file(chunk).unwrap();
        let (third, summary) = back_up(&store, &tree, Some(&second)).await;
        assert_eq!(summary.counts.files_reused, 0);
        assert!(tree.max_open_directories() < 500, "{}", tree.max_open_directories());
        same_tree(&restored(&third, "root").await, &contents_of(&tree).await);
    });
}
