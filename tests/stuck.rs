//! Stores that something is left in, or that are full: the work goes on.

#[path = "support/gc_scene.rs"]
mod gc_scene;
#[path = "support/watched.rs"]
mod watched;

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::executor::block_on;
use larder::backend::fault::{Action, FaultBackend, Rule};
use larder::backend::record::Method;
use larder::backend::{Backend, FsBackend, FsOptions, LockMode, LockScope, PrefixDirectories, SyncLevel};
use larder::error::ErrorKind;
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, Options};

use gc_scene::{back_up, check_all, group};
use watched::Watched;

fn options() -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None)
}

async fn created(root: &Path) -> Datastore {
    let backend = FsBackend::create(Arc::new(ThreadRuntime::new()), root, options()).await.unwrap();
    Datastore::create(Arc::new(backend), Options::default()).await.unwrap()
}

async fn backend(root: &Path, options: FsOptions) -> Arc<dyn Backend> {
    Arc::new(FsBackend::open(Arc::new(ThreadRuntime::new()), root, options).await.unwrap())
}

async fn opened(root: &Path) -> Datastore {
    Datastore::open(backend(root, options()).await, Options::default()).await.unwrap()
}

/// Leaves an unfinished snapshot of a group, as a crash does.
fn leave_unfinished(root: &Path, group: &str, second: usize) {
    let snapshot = root.join(group).join(format!("2020-01-01T00:00:{second:02}Z"));
    fs::create_dir_all(&snapshot).unwrap();
    fs::write(snapshot.join("left.conf.blob"), "torn").unwrap();
}

/// The names in the directory of a group that are those of snapshots.
fn snapshots(root: &Path, group: &str) -> Vec<String> {
    let names = fs::read_dir(root.join(group)).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter_map(|name| name.into_string().ok()).filter(|name| name.ends_with('Z')).collect()
}

/// Runs a test of this file in another process, which finds these words in the variable `LARDER_CHILD`.
fn child(test: &str, words: &[&str]) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env("LARDER_CHILD", words.join("\n"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

/// The words for this process, if it is such a child.
fn words() -> Option<Vec<String>> {
    let words = std::env::var("LARDER_CHILD").ok()?;
    Some(words.split('\n').map(str::to_owned).collect())
}

/// Waits until the child says that it is there.
fn wait_for(child: &mut Child) {
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().ends_with("HERE")), "the other process ended");
}

/// Holds the lock of the store until it may end, in a process of its own.
fn hold_the_store(root: &str, mode: &str) {
    let mode = match mode {
        "brief" => LockMode::Brief,
        "exclusive" => LockMode::Exclusive,
        _ => LockMode::Shared,
    };
    let locks = Path::new(root).join("other-locks");
    let held = block_on(async {
        let backend = backend(Path::new(root), options().lock_directory(locks)).await;
        backend.lock(&LockScope::Store, mode).await.unwrap()
    });
    println!("HERE");
    std::io::stdout().flush().unwrap();
    let _ = std::io::stdin().read(&mut [0]);
    drop(held);
}

#[test]
fn backups_of_many_processes_that_find_leftovers_all_succeed() {
    const NAME: &str = "backups_of_many_processes_that_find_leftovers_all_succeed";
    const ROUNDS: usize = 20;
    if let Some(words) = words() {
        let (root, group) = (Path::new(&words[0]), &words[1]);
        return block_on(async {
            for round in 0..ROUNDS {
                leave_unfinished(root, group, round);
                let store = opened(root).await;
                back_up(&store, group, &[1, 2]).await.unwrap();
            }
            println!("\nALL {} LEFT", snapshots(root, group).len() - ROUNDS);
        });
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    block_on(created(root));
    let groups: Vec<_> = (0..6).map(|number| format!("host/g{number}")).collect();
    let children: Vec<_> = groups.iter().map(|group| child(NAME, &[root.to_str().unwrap(), group])).collect();
    for child in children {
        let ended = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains("\nALL "), "a backup failed: {said}");
    }
    block_on(async {
        let store = opened(root).await;
        for group in &groups {
            back_up(&store, group, &[1, 2]).await.unwrap();
            assert_eq!(
                snapshots(root, group).len(),
                ROUNDS + 1,
                "what was skipped goes when nobody else writes"
            );
        }
        assert_eq!(check_all(&store).await, groups.len() * (ROUNDS + 1));
    });
}

#[test]
fn a_backup_waits_for_a_process_that_removes_leftovers_and_not_for_a_collection() {
    const NAME: &str = "a_backup_waits_for_a_process_that_removes_leftovers_and_not_for_a_collection";
    if let Some(words) = words() {
        return hold_the_store(&words[0], &words[1]);
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    block_on(created(root));
    for mode in ["brief", "exclusive"] {
        let mut other = child(NAME, &[root.to_str().unwrap(), mode]);
        wait_for(&mut other);
        block_on(async {
            let watched = Watched::new(backend(root, options()).await);
            let store = Datastore::open(Arc::<Watched>::clone(&watched), Options::default()).await.unwrap();
            let (tries, gate) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(other.stdin.take())));
            let counted = Arc::clone(&tries);
            watched.watch(move |step| {
                // The group, the store, and the store again: it may go.
                if step.method == Method::Lock && !step.is_over && counted.fetch_add(1, Ordering::SeqCst) == 4
                {
                    drop(gate.lock().unwrap().take());
                }
                Box::pin(async {})
            });
            let begun = store.backup(&group("host/a")).begin().await;
            match mode {
                "brief" => begun.unwrap().abort().await.unwrap(),
                _ => {
                    assert_eq!(begun.unwrap_err().kind(), ErrorKind::Busy);
                    assert_eq!(tries.load(Ordering::SeqCst), 2, "the group and the store, each once");
                    watched.unwatch();
                }
            }
        });
        let ended = other.wait_with_output().unwrap();
        assert!(ended.status.success());
    }
}

#[test]
fn a_collection_waits_for_a_process_that_removes_leftovers() {
    const NAME: &str = "a_collection_waits_for_a_process_that_removes_leftovers";
    if let Some(words) = words() {
        return hold_the_store(&words[0], &words[1]);
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    block_on(created(root));
    let mut other = child(NAME, &[root.to_str().unwrap(), "brief"]);
    wait_for(&mut other);
    block_on(async {
        let watched = Watched::new(backend(root, options()).await);
        let store = Datastore::open(Arc::<Watched>::clone(&watched), Options::default()).await.unwrap();
        let (tries, gate) = (Arc::new(AtomicUsize::new(0)), Mutex::new(other.stdin.take()));
        watched.watch(move |step| {
            if step.method == Method::Lock && !step.is_over && tries.fetch_add(1, Ordering::SeqCst) == 2 {
                drop(gate.lock().unwrap().take());
            }
            Box::pin(async {})
        });
        let _ = larder::gc::plan(&store, gc_scene::at_once()).await.unwrap();
        // In one process too.
        let brief = store_lock(&watched, LockMode::Brief).await;
        let waiting = larder::gc::plan(&store, gc_scene::at_once());
        let (tries, held) = (AtomicUsize::new(0), Mutex::new(Some(brief)));
        watched.watch(move |step| {
            if step.method == Method::Lock && !step.is_over && tries.fetch_add(1, Ordering::SeqCst) == 2 {
                drop(held.lock().unwrap().take());
            }
            Box::pin(async {})
        });
        let _ = waiting.await.unwrap();
    });
    assert!(other.wait().unwrap().success());
}

async fn store_lock(backend: &Arc<Watched>, mode: LockMode) -> Box<dyn larder::backend::LockGuard> {
    backend.lock(&LockScope::Store, mode).await.unwrap()
}

#[test]
fn i1_leftovers_stay_while_another_process_writes_and_go_afterwards() {
    const NAME: &str = "i1_leftovers_stay_while_another_process_writes_and_go_afterwards";
    if let Some(words) = words() {
        return hold_the_store(&words[0], &words[1]);
    }
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    let store = block_on(created(root));
    leave_unfinished(root, "host/a", 1);
    // It uses other lock files, as a PBS does beside the default ones: the lock of the store alone says that it writes.
    let mut other = child(NAME, &[root.to_str().unwrap(), "shared"]);
    wait_for(&mut other);
    block_on(async {
        back_up(&store, "host/a", &[1]).await.unwrap();
        assert_eq!(snapshots(root, "host/a").len(), 2, "it may be what the other process writes");
        drop(other.stdin.take());
        assert!(other.wait().unwrap().success());
        back_up(&store, "host/a", &[1]).await.unwrap();
        assert_eq!(snapshots(root, "host/a").len(), 2, "two backups, and nothing left over");
    });
}

#[test]
fn leftovers_that_cannot_be_deleted_keep_nobody_from_a_backup() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    block_on(async {
        drop(created(root).await);
        let faulty = Arc::new(FaultBackend::new(backend(root, options()).await));
        let store = Datastore::open(Arc::<FaultBackend>::clone(&faulty), Options::default()).await.unwrap();
        leave_unfinished(root, "host/a", 1);
        faulty.add(Rule::on(Method::Delete, Action::FailBefore(ErrorKind::Denied)));
        back_up(&store, "host/a", &[1]).await.unwrap();
        assert!(faulty.fired() > 0);
        assert_eq!(snapshots(root, "host/a").len(), 2);
    });
}
