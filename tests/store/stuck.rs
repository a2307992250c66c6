//! Operations continue in stores with leftovers and in full ones.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::executor::block_on;
use larder::backend::{
    Backend, Coordination, FsBackend, FsOptions, LockMode, LockScope, PrefixDirectories, SyncLevel,
};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::format::name::{BackupTime, SnapshotName};
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::record::Method;
use larder::internal::replay::DiskUnderTest as _;
use larder::prune::{self, PruneOptions};
use larder::rt::{Runtime as _, ThreadRuntime};
use larder::store::{Datastore, Options, Scope};
use larder::verify::{self, Recording, Repair, VerifyOptions};
use larder_testing::gc_scene::{at_once, back_up, check_all, chunks, collected, digests, group};
use larder_testing::watched::Watched;

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

/// Leaves an unfinished snapshot of a group, the newest, as a crash does.
fn leave_unfinished(root: &Path, path: &str) {
    let name = |text: String| format!("{path}/{text}").parse::<SnapshotName>().unwrap().time();
    let there = fs::read_dir(root.join(path)).into_iter().flatten();
    let names = there.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    let newest = names.filter(|text| text.ends_with('Z')).map(name).max();
    let now = BackupTime::try_from(ThreadRuntime::new().now()).unwrap();
    let time = BackupTime::try_from(newest.map_or(now.epoch(), |newest| newest.epoch() + 1)).unwrap();
    let snapshot = root.join(group(path).snapshot(time).to_string());
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

/// Waits until the child reports that it is ready.
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
fn backups_of_many_processes_succeed_although_each_finds_leftovers() {
    const NAME: &str = "stuck::backups_of_many_processes_succeed_although_each_finds_leftovers";
    const ROUNDS: usize = 20;
    if let Some(words) = words() {
        let (root, group) = (Path::new(&words[0]), &words[1]);
        return block_on(async {
            for _ in 0..ROUNDS {
                leave_unfinished(root, group);
                let store = opened(root).await;
                back_up(&store, group, &[1, 2]).await.unwrap();
            }
            println!("\nALL {} LEFT", snapshots(root, group).len() - ROUNDS);
        });
    }
    let scratch = larder_testing::scratch();
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
            assert!(snapshots(root, group).len() > ROUNDS);
        }
        assert_eq!(check_all(&store).await, groups.len() * (ROUNDS + 1));
    });
}

#[test]
fn a_backup_waits_for_the_removal_of_leftovers_and_not_for_a_collection() {
    const NAME: &str = "stuck::a_backup_waits_for_the_removal_of_leftovers_and_not_for_a_collection";
    if let Some(words) = words() {
        return hold_the_store(&words[0], &words[1]);
    }
    let scratch = larder_testing::scratch();
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
            if mode == "brief" {
                begun.unwrap().abort().await.unwrap();
            } else {
                assert_eq!(begun.unwrap_err().kind(), ErrorKind::Busy);
                assert_eq!(tries.load(Ordering::SeqCst), 2, "the group and the store, each once");
                watched.unwatch();
            }
        });
        let ended = other.wait_with_output().unwrap();
        assert!(ended.status.success());
    }
}

#[test]
fn a_collection_waits_for_the_removal_of_leftovers() {
    const NAME: &str = "stuck::a_collection_waits_for_the_removal_of_leftovers";
    if let Some(words) = words() {
        return hold_the_store(&words[0], &words[1]);
    }
    let scratch = larder_testing::scratch();
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
        let _ = larder::gc::plan(&store, at_once()).await.unwrap();
        // In one process too.
        let brief = store_lock(&watched, LockMode::Brief).await;
        let waiting = larder::gc::plan(&store, at_once());
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

/// Proves I1.
#[test]
fn leftovers_are_removed_only_when_no_other_process_writes() {
    const NAME: &str = "stuck::leftovers_are_removed_only_when_no_other_process_writes";
    if let Some(words) = words() {
        return hold_the_store(&words[0], &words[1]);
    }
    let scratch = larder_testing::scratch();
    let root = scratch.path();
    let store = block_on(created(root));
    leave_unfinished(root, "host/a");
    // It uses other lock files, as a PBS does beside the default ones: the lock of the store alone says that it writes.
    let mut other = child(NAME, &[root.to_str().unwrap(), "shared"]);
    wait_for(&mut other);
    block_on(async {
        store.backup(&group("host/a")).begin().await.unwrap().abort().await.unwrap();
        assert_eq!(snapshots(root, "host/a").len(), 1, "it may be what the other process writes");
        drop(other.stdin.take());
        assert!(other.wait().unwrap().success());
        back_up(&store, "host/a", &[1]).await.unwrap();
        assert_eq!(snapshots(root, "host/a").len(), 1, "the backup, and nothing left over");
    });
}

#[test]
fn a_backup_succeeds_although_leftovers_cannot_be_deleted() {
    let scratch = larder_testing::scratch();
    let root = scratch.path();
    block_on(async {
        drop(created(root).await);
        let faulty = Arc::new(FaultBackend::new(backend(root, options()).await));
        let store = Datastore::open(Arc::<FaultBackend>::clone(&faulty), Options::default()).await.unwrap();
        leave_unfinished(root, "host/a");
        faulty.add(Rule::on(Method::Delete, Action::FailBefore(ErrorKind::Denied)));
        back_up(&store, "host/a", &[1]).await.unwrap();
        assert!(faulty.fired() > 0);
        assert_eq!(snapshots(root, "host/a").len(), 2);
    });
}

/// All files in the lock directory except the move journal.
fn lock_files(root: &Path) -> Vec<String> {
    let (mut found, mut left) = (Vec::new(), vec![root.join(".larder-locks")]);
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                left.push(path);
            } else if !path.ends_with("move-journal") {
                let name = path.strip_prefix(root.join(".larder-locks")).unwrap();
                found.push(name.to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// A store in which no file can be made while this is so.
async fn with_room(root: &Path) -> (Arc<AtomicBool>, Arc<dyn Backend>, Datastore) {
    let is_full = Arc::new(AtomicBool::new(false));
    let backend = backend(root, options().full(Arc::clone(&is_full))).await;
    let store = Datastore::open(Arc::clone(&backend), Options::default()).await.unwrap();
    (is_full, backend, store)
}

#[test]
fn a_store_on_a_full_disk_can_be_emptied() {
    for knows_locks in [false, true] {
        let scratch = larder_testing::scratch();
        let root = scratch.path();
        block_on(async {
            drop(created(root).await);
            let (is_full, backend, store) = with_room(root).await;
            for (name, numbers) in
                [("host/a", [1, 2]), ("host/a", [2, 3]), ("host/b", [4, 5]), ("host/c", [5, 6])]
            {
                back_up(&store, name, &numbers).await.unwrap();
            }
            if !knows_locks {
                fs::remove_dir_all(root.join(".larder-locks")).unwrap();
            }
            is_full.store(true, Ordering::SeqCst);
            assert_eq!(back_up(&store, "host/a", &[9]).await.unwrap_err().kind(), ErrorKind::Full);
            let oldest = store.snapshots(&group("host/a")).await.unwrap().remove(0).name;
            store.delete_snapshot(&oldest).await.unwrap();
            store.delete_group(&group("host/b")).await.unwrap();
            let scope = Scope::Group(group("host/c"));
            let report = prune::plan_deletion(&store, &scope, PruneOptions::default())
                .await
                .unwrap()
                .execute()
                .await
                .unwrap();
            assert_eq!(report.removed(), 1, "{report:?}");
            let report = collected(&store, at_once()).await;
            assert!(report.removed.chunks >= 4, "{report:?}");
            assert!(!report.status_written);
            assert_eq!(
                report.remarks.iter().map(larder::error::Error::kind).collect::<Vec<_>>(),
                [ErrorKind::Full]
            );
            assert_eq!(chunks(backend.as_ref()).await, digests([2, 3]));
            is_full.store(false, Ordering::SeqCst);
            back_up(&store, "host/b", &[7]).await.unwrap();
            assert_eq!(check_all(&store).await, 2);
        });
    }
}

#[test]
fn on_a_full_disk_a_lock_without_a_file_excludes_other_processes_and_tasks() {
    const NAME: &str = "stuck::on_a_full_disk_a_lock_without_a_file_excludes_other_processes_and_tasks";
    let scope = || LockScope::Group(group("host/a"));
    if let Some(words) = words() {
        let held = block_on(async {
            let (is_full, backend, _) = with_room(Path::new(&words[0])).await;
            is_full.store(true, Ordering::SeqCst);
            let held = backend.lock(&scope(), LockMode::Exclusive).await.unwrap();
            held.check().await.unwrap();
            assert!(held.keeps_processes_out());
            for mode in [LockMode::Exclusive, LockMode::Shared] {
                let second = backend.lock(&scope(), mode).await;
                assert_eq!(second.unwrap_err().kind(), ErrorKind::Busy, "another task, {mode:?}");
            }
            is_full.store(false, Ordering::SeqCst);
            let second = backend.lock(&scope(), LockMode::Exclusive).await;
            assert_eq!(second.unwrap_err().kind(), ErrorKind::Busy, "also when there is room again");
            let other = LockScope::Group(group("host/other"));
            backend.lock(&other, LockMode::Exclusive).await.unwrap();
            held
        });
        println!("HERE");
        std::io::stdout().flush().unwrap();
        let _ = std::io::stdin().read(&mut [0]);
        return drop(held);
    }
    let scratch = larder_testing::scratch();
    let root = scratch.path();
    block_on(created(root));
    let mut other = child(NAME, &[root.to_str().unwrap()]);
    wait_for(&mut other);
    block_on(async {
        let (is_full, backend, _) = with_room(root).await;
        for full in [true, false] {
            is_full.store(full, Ordering::SeqCst);
            let refused = backend.lock(&scope(), LockMode::Exclusive).await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Busy, "full: {full}");
        }
        drop(other.stdin.take());
        assert!(other.wait().unwrap().success());
        let held = backend.lock(&scope(), LockMode::Exclusive).await.unwrap();
        assert!(held.keeps_processes_out());
        // The file exists again, and a process on a full disk locks it.
        is_full.store(true, Ordering::SeqCst);
        assert_eq!(backend.lock(&scope(), LockMode::Exclusive).await.unwrap_err().kind(), ErrorKind::Busy);
        drop(held);
        // A reader that cannot create a file continues, reports it, and excludes tasks of its own process.
        let snapshot = LockScope::Snapshot("host/a/2020-01-01T00:00:00Z".parse().unwrap());
        let read = backend.lock(&snapshot, LockMode::Shared).await.unwrap();
        assert!(!read.keeps_processes_out());
        assert_eq!(backend.lock(&snapshot, LockMode::Exclusive).await.unwrap_err().kind(), ErrorKind::Busy);
        is_full.store(false, Ordering::SeqCst);
        assert_eq!(backend.lock(&snapshot, LockMode::Exclusive).await.unwrap_err().kind(), ErrorKind::Busy);
        drop(read);
        backend.lock(&snapshot, LockMode::Exclusive).await.unwrap();
    });
}

#[test]
fn lock_files_are_removed_with_the_object_that_they_lock() {
    let scratch = larder_testing::scratch();
    let root = scratch.path();
    block_on(async {
        let store = created(root).await;
        for _ in 0..5 {
            back_up(&store, "host/a", &[1]).await.unwrap();
        }
        back_up(&store, "host/b", &[1]).await.unwrap();
        let snapshots = store.snapshots(&group("host/a")).await.unwrap();
        for snapshot in &snapshots[..3] {
            store.delete_snapshot(&snapshot.name).await.unwrap();
        }
        assert_eq!(lock_files(root).len(), 5, "two groups and three snapshots: {:?}", lock_files(root));
        store.delete_group(&group("host/a")).await.unwrap();
        let scope = Scope::Group(group("host/b"));
        prune::plan_deletion(&store, &scope, PruneOptions::default()).await.unwrap().execute().await.unwrap();
        assert_eq!(lock_files(root), Vec::<String>::new());
        // Nor does one holder of a shared lock take it from the others.
        let (backend, scope) = (backend(root, options()).await, LockScope::Group(group("host/a")));
        let [one, other] =
            [backend.lock(&scope, LockMode::Shared).await, backend.lock(&scope, LockMode::Shared).await]
                .map(Result::unwrap);
        one.release_deleted().await;
        other.check().await.unwrap();
        other.release_deleted().await;
        assert_eq!(lock_files(root), Vec::<String>::new());
    });
}

#[test]
fn a_collection_removes_unheld_lock_files_of_deleted_objects() {
    let scratch = larder_testing::scratch();
    let root = scratch.path();
    block_on(async {
        let store = created(root).await;
        let kept = back_up(&store, "host/a", &[1]).await.unwrap();
        let backend = backend(root, options()).await;
        let long = format!("host/{}", "a-".repeat(100));
        for path in ["host/gone", "ns/gone/host/x", &long] {
            let snapshot = group(path).snapshot(kept.name().time());
            for scope in [
                LockScope::Group(group(path)),
                LockScope::Snapshot(snapshot.clone()),
                LockScope::Manifest(snapshot),
            ] {
                drop(backend.lock(&scope, LockMode::Exclusive).await.unwrap());
            }
        }
        backend.record_moves(&[Key::Archive(kept.name().clone(), "x.fidx".parse().unwrap())]).await.unwrap();
        let held = backend.lock(&LockScope::Group(group("host/held")), LockMode::Shared).await.unwrap();
        fs::write(root.join(".larder-locks/of somebody else"), "").unwrap();
        assert_eq!(lock_files(root).len(), 9 + 2 + 2);
        collected(&store, at_once()).await;
        assert_eq!(lock_files(root).len(), 2 + 2, "{:?}", lock_files(root));
        held.check().await.unwrap();
        assert!(!root.join(".larder-locks/gone").exists());
        assert!(root.join(".larder-locks/move-journal").exists());
        drop(held);
        collected(&store, at_once()).await;
        assert_eq!(lock_files(root).len(), 2 + 1, "{:?}", lock_files(root));
    });
}

#[test]
fn a_reader_needs_no_write_permission() {
    const NAME: &str = "stuck::a_reader_needs_no_write_permission";
    if let Some(words) = words() {
        return reads(Path::new(&words[0]), &words[1]);
    }
    let scratch = larder_testing::scratch();
    let root = scratch.path().join("store");
    block_on(async {
        let store = created(&root).await;
        back_up(&store, "host/a", &[1, 2]).await.unwrap();
    });
    let is_root = rustix::process::geteuid().is_root();
    let mut directories = vec![root.clone()];
    let mut files = Vec::new();
    for number in 0.. {
        let Some(directory) = directories.get(number).cloned() else { break };
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { directories.push(path) } else { files.push(path) }
        }
    }
    let set = |path: &PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let locks: Vec<_> =
        files.iter().filter(|path| path.starts_with(root.join(".larder-locks"))).cloned().collect();
    files.retain(|path| !locks.contains(path));
    for path in &files {
        set(path, 0o444);
    }
    for directory in &directories {
        set(directory, 0o555);
    }
    set(&scratch.path().to_owned(), 0o755);
    let (this, test) = (std::env::current_exe().unwrap(), scratch.path().join("test"));
    fs::hard_link(&this, &test).or_else(|_| fs::copy(&this, &test).map(drop)).unwrap();
    for (mode, expected) in [(0o444, "locked"), (0o000, "unlocked")] {
        for path in &locks {
            set(path, mode);
        }
        if expected == "unlocked" {
            set(&root.join(".larder-locks"), 0o000);
        }
        let words = [root.to_str().unwrap(), expected].join("\n");
        let mut command = Command::new(&test);
        command.args(["--exact", NAME, "--nocapture"]).env("LARDER_CHILD", words);
        if is_root {
            command.uid(65_534).gid(65_534);
        }
        assert!(command.status().unwrap().success(), "{expected}");
    }
    for directory in &directories {
        set(directory, 0o755);
    }
}

/// Lists, restores and verifies.
fn reads(root: &Path, expected: &str) {
    block_on(async {
        let backend = backend(root, options()).await;
        let store = Datastore::open(Arc::clone(&backend), Options::default()).await.unwrap();
        assert_eq!(check_all(&store).await, 1);
        let options = VerifyOptions::default().repair(Repair::Report).recording(Recording::Off);
        let report = verify::plan(&store, &Scope::Store, options).await.unwrap().execute().await.unwrap();
        assert!(report.is_clean() && report.sound == 1, "{report:?}");
        let name = store.latest(&group("host/a")).await.unwrap().unwrap();
        let snapshot = store.snapshot(&name).await.unwrap();
        assert_eq!(snapshot.is_locked().await.unwrap(), expected == "locked");
        let refused = backend.lock(&LockScope::Snapshot(name), LockMode::Exclusive).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied);
        assert_eq!(back_up(&store, "host/a", &[3]).await.unwrap_err().kind(), ErrorKind::Denied);
    });
}
