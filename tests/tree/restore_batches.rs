//! Small files of a restore, which a target gets in batches.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::Poll;

use async_trait::async_trait;
use bytes::Bytes;
use futures::executor::block_on;
use larder::backend::MemoryBackend;
use larder::pxar::{FileKind, Metadata};
use larder::rt::{Runtime, SimRuntime, ThreadRuntime};
use larder::store::{Datastore, Options};
use larder::tree::{Problem, SmallFile, TargetError, TargetFile, Tree, TreeFinding, TreeTarget};
use larder_testing::tree::MemoryTree;

use crate::write::back_up;

type Outcome = Result<Vec<TreeFinding>, TargetError>;

/// A target that notes which batches run at once, and loses the result of the last file of each.
#[derive(Debug, Default)]
struct BatchTarget {
    calls: Mutex<Calls>,
    loses_results: bool,
}

#[derive(Debug, Default)]
struct Calls {
    /// Number of files of each batch.
    batches: Vec<usize>,
    /// Running batches by directory, and the most of them.
    running: BTreeMap<Vec<u8>, usize>,
    most: usize,
    most_in_one: usize,
}

#[async_trait]
impl TreeTarget for BatchTarget {
    async fn directory(&self, _: &[u8], _: &Metadata) -> Outcome {
        Ok(Vec::new())
    }

    async fn small_file(&self, _: &[u8], _: Bytes, _: &Metadata) -> Outcome {
        unreachable!("files come in batches")
    }

    async fn small_files(&self, files: Vec<SmallFile>) -> Vec<Outcome> {
        let directories: Vec<_> = files.iter().map(|file| above(&file.path)).collect();
        assert!(directories.iter().all(|directory| *directory == directories[0]), "{directories:?}");
        {
            let mut calls = self.calls.lock().unwrap();
            calls.batches.push(files.len());
            *calls.running.entry(directories[0].clone()).or_default() += 1;
            calls.most = calls.most.max(calls.running.values().sum());
            calls.most_in_one = calls.most_in_one.max(calls.running[&directories[0]]);
        }
        for _ in 0..5 {
            pause().await;
        }
        *self.calls.lock().unwrap().running.get_mut(&directories[0]).unwrap() -= 1;
        let results = files.len() - usize::from(self.loses_results);
        (0..results).map(|_| Ok(Vec::new())).collect()
    }

    async fn file(&self, _: &[u8], _: u64, _: &Metadata) -> Result<Box<dyn TargetFile>, TargetError> {
        Err(io::Error::from(io::ErrorKind::Unsupported).into())
    }

    async fn special(&self, _: &[u8], _: &FileKind, _: &Metadata) -> Outcome {
        Ok(Vec::new())
    }

    async fn hard_link(&self, _: &[u8], _: &[u8]) -> Result<(), TargetError> {
        Ok(())
    }

    async fn finish_directory(&self, path: &[u8], _: &Metadata) -> Outcome {
        let running = self.calls.lock().unwrap().running.get(path).copied();
        assert_eq!(running.unwrap_or(0), 0, "{}", path.escape_ascii());
        Ok(Vec::new())
    }

    async fn finish(&self) -> io::Result<Vec<TreeFinding>> {
        Ok(Vec::new())
    }
}

fn above(path: &[u8]) -> Vec<u8> {
    let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
    path[..end].to_vec()
}

/// Lets other tasks run.
async fn pause() {
    let mut is_first = true;
    poll_fn(|context| {
        context.waker().wake_by_ref();
        if std::mem::take(&mut is_first) { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

/// A tree of small files in a store of this runtime.
async fn tree_in(runtime: Arc<dyn Runtime>, directories: usize, files: usize) -> Tree {
    let source = MemoryTree::default();
    for directory in 0..directories {
        source.directory(&format!("d{directory}"));
        for file in 0..files {
            source.file(&format!("d{directory}/f{file}"), format!("{directory} {file}"), 5);
        }
    }
    let store = Datastore::create(Arc::new(MemoryBackend::new(runtime)), Options::default()).await.unwrap();
    back_up(&store, &source, None).await.0.tree("root").await.unwrap()
}

/// A tree of small files.
async fn tree(directories: usize, files: usize) -> Tree {
    tree_in(Arc::new(ThreadRuntime::new()), directories, files).await
}

#[test]
fn batches_of_a_directory_follow_one_another_while_there_are_others() {
    // On threads, a slow read of the archive can leave a directory without others.
    let sim = SimRuntime::new(1);
    sim.clone().block_on(async {
        let tree = tree_in(Arc::new(sim.clone()), 6, 40).await;
        let target = BatchTarget::default();
        assert_eq!(tree.restore(&target).await.unwrap().files, 240);
        let calls = target.calls.into_inner().unwrap();
        assert_eq!(calls.batches.iter().sum::<usize>(), 240);
        // Eighteen full ones, and few that did not wait for the rest of the archive.
        assert!(calls.batches.len() <= 20, "{calls:?}");
        assert!(calls.most >= 4 && calls.most_in_one == 1, "{calls:?}");
    });
}

#[test]
fn no_more_than_two_batches_of_a_single_directory_run_at_once() {
    block_on(async {
        let tree = tree(1, 2000).await;
        let target = BatchTarget::default();
        assert_eq!(tree.restore(&target).await.unwrap().files, 2000);
        let calls = target.calls.into_inner().unwrap();
        assert_eq!((calls.most, calls.most_in_one), (2, 2), "{calls:?}");
    });
}

#[test]
fn a_file_without_a_result_is_reported() {
    block_on(async {
        let tree = tree(2, 3).await;
        let target = BatchTarget { loses_results: true, ..BatchTarget::default() };
        let summary = tree.restore(&target).await.unwrap();
        let found = summary.report.findings.iter().map(|found| (found.shown_path(), found.problem));
        let lost = ["d0/f2", "d1/f2"].map(|path| (path.to_owned(), Problem::NotCreated));
        assert_eq!((summary.files, found.collect::<Vec<_>>()), (4, lost.to_vec()));
    });
}
