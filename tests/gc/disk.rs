//! Garbage collection in a directory: processes that are killed, few descriptors, file times, and a store that PBS wrote (H15, H20,
//! H30, H93).

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use filetime::FileTime;
use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{
    Backend, FsBackend, FsOptions, LockMode, LockScope, PrefixDirectories, PutMode, SyncLevel,
};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::Key;
use larder::gc::{self, GcOptions};
use larder::internal::record::Method;
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, Options, PackOptions};
use larder_testing::fixture;
use larder_testing::gc_scene::{
    CHUNK, at_once, back_up, check, check_all, chunks, collect, collected, data, digests, group, leave,
    reason,
};
use larder_testing::s3_store::files_below;
use larder_testing::watched::Watched;

fn options() -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None)
}

async fn created(root: &Path) -> (Arc<dyn Backend>, Datastore) {
    let backend = FsBackend::create(Arc::new(ThreadRuntime::new()), root, options()).await.unwrap();
    let backend: Arc<dyn Backend> = Arc::new(backend);
    (Arc::clone(&backend), Datastore::create(backend, Options::default()).await.unwrap())
}

async fn opened(root: &Path) -> (Arc<dyn Backend>, Datastore) {
    let backend = FsBackend::open(Arc::new(ThreadRuntime::new()), root, options()).await.unwrap();
    let backend: Arc<dyn Backend> = Arc::new(backend);
    (Arc::clone(&backend), Datastore::open(backend, Options::default()).await.unwrap())
}

/// Runs a test of this file in another process, with this path in the variable.
fn child(test: &str, variable: &str, path: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(variable, path);
    command
}

/// Collects until the step with this number, says so, and waits to be killed.
async fn collects_until(root: &Path, method: Method, is_over: bool) {
    let (inner, _) = opened(root).await;
    let backend = Watched::new(inner);
    backend.watch(move |step| {
        let is_it = step.method == method
            && step.is_over == is_over
            && step.keys.iter().all(|key| matches!(key, Key::Chunk(_)));
        Box::pin(async move {
            if is_it {
                println!("HERE");
                // This process does nothing else.
                loop {
                    std::thread::park();
                }
            }
        })
    });
    let store = Datastore::open(backend, Options::default()).await.unwrap();
    let _ = collect(&store, at_once()).await;
    println!("DONE");
}

/// Proves H93.
#[test]
fn a_killed_collection_releases_the_store() {
    const NAME: &str = "disk::a_killed_collection_releases_the_store";
    let steps = [
        (Method::List, true),
        (Method::HeadMany, false),
        (Method::Check, false),
        (Method::Delete, false),
        (Method::Delete, true),
        (Method::RemoveLeftovers, false),
    ];
    if let Some(told) = std::env::var_os("LARDER_KILLED") {
        let told = PathBuf::from(told);
        let number: usize = told.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let (method, is_over) = steps[number];
        return block_on(collects_until(told.parent().unwrap(), method, is_over));
    }
    for (number, step) in steps.iter().enumerate() {
        let directory = larder_testing::scratch();
        let root = directory.path().join("store");
        block_on(async {
            let (_, store) = created(&root).await;
            leave(&store, &[1, 2, 3]).await;
            drop(back_up(&store, "host/a", &[4]).await.unwrap());
        });
        let mut child = child(NAME, "LARDER_KILLED", &root.join(number.to_string()));
        let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
        let (mut told, mut byte) = (Vec::new(), [0]);
        while !told.ends_with(b"HERE") {
            child.stdout.as_mut().unwrap().read_exact(&mut byte).unwrap();
            told.push(byte[0]);
            assert!(!told.ends_with(b"DONE"), "{step:?} never came");
        }
        block_on(async {
            let (backend, store) = opened(&root).await;
            // It has the store until it is dead, and no longer.
            let refused = reason(collect(&store, at_once()).await);
            assert_eq!(refused.map(|error| error.kind()), Some(ErrorKind::Busy), "{step:?}");
            let begun = store.backup(&group("host/b")).begin().await;
            assert_eq!(begun.map(drop).unwrap_err().kind(), ErrorKind::Busy);
            child.kill().unwrap();
            child.wait().unwrap();
            drop(back_up(&store, "host/b", &[1, 5]).await.unwrap());
            collected(&store, at_once()).await;
            assert_eq!(check_all(&store).await, 2);
            assert_eq!(chunks(backend.as_ref()).await, digests([1, 4, 5]), "{step:?}");
        });
    }
}

/// The number of open descriptors of this process.
fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Proves H20, H170.
#[test]
fn a_collection_of_much_garbage_opens_few_files() {
    const NAME: &str = "disk::a_collection_of_much_garbage_opens_few_files";
    const GARBAGE: u64 = 3000;
    if let Some(root) = std::env::var_os("LARDER_FEW_FILES") {
        let limit = rustix::process::Rlimit { current: Some(48), maximum: Some(48) };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
        return block_on(async {
            let (_, store) = opened(Path::new(&root)).await;
            let before = descriptors();
            assert_eq!(collected(&store, at_once()).await.removed.chunks, GARBAGE);
            assert_eq!(descriptors(), before);
        });
    }
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    block_on(async {
        let (backend, store) = created(&root).await;
        for number in 0..GARBAGE {
            let key = Key::Chunk(Digest::of(&number.to_le_bytes()));
            backend.put(&key, "garbage".into(), PutMode::Create).await.unwrap();
        }
        drop(back_up(&store, "host/a", &[1, 2]).await.unwrap());
    });
    assert!(child(NAME, "LARDER_FEW_FILES", &root).status().unwrap().success());
    block_on(async {
        let (backend, store) = opened(&root).await;
        assert_eq!((chunks(backend.as_ref()).await, check_all(&store).await), (digests([1, 2]), 1));
    });
}

/// The file of a chunk.
fn file(root: &Path, number: u64) -> PathBuf {
    root.join(Key::Chunk(*digests([number]).first().unwrap()).to_string())
}

/// Proves H15.
#[test]
fn file_times_decide_only_about_unreferenced_chunks() {
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    block_on(async {
        let (backend, store) = created(&root).await;
        leave(&store, &[1, 2, 3, 6, 7]).await;
        drop(back_up(&store, "host/a", &[4]).await.unwrap());
        let (old, new) = (FileTime::from_unix_time(1000, 0), FileTime::now());
        let set = |number, atime, mtime| filetime::set_file_times(file(&root, number), atime, mtime).unwrap();
        let backup = store.backup(&group("host/b")).begin().await.unwrap();
        backup.set_notes("[1,5]");
        let bytes = data(&[1, 5]);
        let image = backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64);
        image.chunk_bytes(CHUNK as u64).await.unwrap();
        for number in [1, 2, 3, 4, 5, 6] {
            set(number, old, old);
        }
        // The younger of both times counts, and only to keep.
        set(3, new, old);
        set(6, old, new);
        let (_, other) = opened(&root).await;
        let report = collected(&other, GcOptions::default().max_garbage(100)).await;
        assert_eq!((report.removed.chunks, report.waiting.chunks), (1, 3));
        check(&backup.finish().await.unwrap().snapshot).await.unwrap();
        assert_eq!(check_all(&store).await, 2);
        assert_eq!(chunks(backend.as_ref()).await, digests([1, 3, 4, 5, 6, 7]));
        let future = FileTime::from_unix_time(new.unix_seconds() + 1_000_000, 0);
        for number in [3, 6, 7] {
            set(number, future, future);
        }
        assert_eq!(collected(&store, GcOptions::default()).await.removed.chunks, 0);
    });
}

/// Proves H6.
///
/// A chunk that is used again between plan and execution stays though no writer of this process says so.
#[test]
fn file_times_are_read_again_before_a_chunk_is_removed() {
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    block_on(async {
        let (backend, store) = created(&root).await;
        leave(&store, &[1, 2]).await;
        drop(back_up(&store, "host/a", &[4]).await.unwrap());
        let old = FileTime::from_unix_time(1000, 0);
        for number in [1, 2] {
            filetime::set_file_times(file(&root, number), old, old).unwrap();
        }
        let mut plan = gc::plan(&store, GcOptions::default().max_garbage(100)).await.unwrap();
        assert_eq!(plan.summary().garbage.chunks, 2);
        filetime::set_file_times(file(&root, 1), FileTime::now(), old).unwrap();
        let report = plan.execute().await.unwrap();
        assert_eq!((report.removed.chunks, report.pinned), (1, 1));
        drop(plan);
        assert_eq!(chunks(backend.as_ref()).await, digests([1, 4]));
    });
}

/// Proves H8.
///
/// A move by another process, of which the listings of a collection show neither end.
#[test]
fn an_index_in_the_move_journal_of_another_process_is_marked() {
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    block_on(async {
        let (backend, _) = created(&root).await;
        let watched = Watched::new(Arc::clone(&backend));
        let store = Datastore::open(Arc::<Watched>::clone(&watched) as _, Options::default()).await.unwrap();
        // The chunks are shown, and the index is not.
        leave(&store, &[1, 2, 3]).await;
        watched.hide_what_is_new();
        let moved = back_up(&store, "host/a", &[2, 3]).await.unwrap();
        let key = Key::Archive(moved.name().clone(), "d.img.fidx".parse().unwrap());
        drop(moved);
        let (other, _) = opened(&root).await;
        other.record_moves(std::slice::from_ref(&key)).await.unwrap();
        assert_eq!(collected(&store, at_once()).await.removed.chunks, 1);
        assert_eq!(chunks(backend.as_ref()).await, digests([2, 3]));
        watched.show_all();
        assert_eq!(check_all(&store).await, 1);
    });
}

/// Proves H8.
#[test]
fn a_blob_in_the_move_journal_does_not_stop_a_collection() {
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    block_on(async {
        let (_, store) = created(&root).await;
        leave(&store, &[1]).await;
        let backup = store.backup(&"host/a".parse().unwrap()).begin().await.unwrap();
        backup.blob("a.conf", "text").await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        let blob = Key::Archive(snapshot.name().clone(), "a.conf.blob".parse().unwrap());
        drop(snapshot);
        let (other, _) = opened(&root).await;
        other.record_moves(&[blob]).await.unwrap();
        assert_eq!(collected(&store, at_once()).await.removed.chunks, 1);
    });
}

/// Proves H25, H30.
#[test]
fn foreign_files_stay_and_do_not_stop_a_collection() {
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    block_on(async {
        let (backend, store) = created(&root).await;
        leave(&store, &[1, 2]).await;
        drop(back_up(&store, "host/a", &[4]).await.unwrap());
        let name = digests([4]).first().unwrap().to_string();
        let below = root.join(".chunks").join(&name[..4]);
        let odd = [
            below.join("readme.txt"),
            below.join(format!("{name}.10.bad")),
            below.join(format!("{name}.bad")),
            below.join(name.to_uppercase()),
            below.join("directory/file"),
            root.join(".chunks/readme.txt"),
            root.join("host/a/readme.txt"),
            root.join("host/readme.txt"),
            root.join("readme.txt"),
            root.join(".hidden"),
            root.join("lost+found/file"),
            root.join("vm"),
        ];
        for path in &odd {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "odd").unwrap();
        }
        std::os::unix::fs::symlink(&odd[0], below.join("link")).unwrap();
        let plan = gc::plan(&store, at_once()).await.unwrap();
        assert!(plan.summary().foreign_count >= 8, "{:?}", plan.summary().foreign);
        drop(plan);
        assert_eq!(collected(&store, at_once()).await.removed.chunks, 2);
        assert!(odd.iter().all(|path| fs::read(path).unwrap() == b"odd"));
        assert!(below.join("link").is_symlink());
        assert_eq!((chunks(backend.as_ref()).await, check_all(&store).await), (digests([4]), 1));
    });
}

/// Proves H34.
#[test]
fn temporary_files_of_dead_writers_beside_packs_and_segments_are_removed() {
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    block_on(async {
        let runtime = Arc::new(ThreadRuntime::new());
        let backend: Arc<dyn Backend> = Arc::new(FsBackend::create(runtime, &root, options()).await.unwrap());
        let packed = Options::default().packed(PackOptions::default());
        let store = Datastore::create(backend, packed).await.unwrap();
        drop(back_up(&store, "host/a", &[1, 2]).await.unwrap());
        let mut left = Vec::new();
        for file in ["packs", "index"].iter().flat_map(|part| files_below(&root.join(".larder").join(part))) {
            for suffix in [".tmp_OldOld", ".tmp_NewNew", ".txt"] {
                let mut path = file.clone().into_os_string();
                path.push(suffix);
                fs::write(&path, "torn").unwrap();
                left.push(PathBuf::from(path));
            }
        }
        let is_old = |path: &PathBuf| path.extension().unwrap() != "tmp_NewNew";
        for path in left.iter().filter(|path| is_old(path)) {
            filetime::set_file_times(
                path,
                FileTime::from_unix_time(1000, 0),
                FileTime::from_unix_time(1000, 0),
            )
            .unwrap();
        }
        assert_eq!(left.len(), 6);
        assert_eq!(gc::plan(&store, at_once()).await.unwrap().summary().foreign_count, 6);
        assert_eq!(collected(&store, at_once()).await.leftovers, 2);
        left.retain(|path| path.exists());
        let mut kept: Vec<_> = left.iter().map(|path| path.extension().unwrap().to_str().unwrap()).collect();
        kept.sort_unstable();
        assert_eq!(kept, ["tmp_NewNew", "tmp_NewNew", "txt", "txt"]);
        assert_eq!(check_all(&store).await, 1);
    });
}

#[test]
fn a_collection_of_a_pbs_store_matches_the_counts_of_pbs() {
    let directory = larder_testing::scratch();
    fixture::unpack("store", directory.path());
    let is_root = |path: &PathBuf| path.join(".chunks").is_dir();
    let found = fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).find(is_root);
    let root = found.unwrap_or_else(|| directory.path().to_owned());
    block_on(async {
        let (backend, store) = opened(&root).await;
        let theirs = store.gc_status().await.unwrap().unwrap();
        let before = chunks(backend.as_ref()).await;
        let plan = gc::plan(&store, at_once()).await.unwrap();
        assert_eq!((plan.summary().missing, plan.summary().damaged_count), (0, 0));
        drop(plan);
        // One chunk is the one by which PBS tested file times; it was young.
        for chunk in &before {
            let path = root.join(Key::Chunk(*chunk).to_string());
            filetime::set_file_times(path, FileTime::now(), FileTime::now()).unwrap();
        }
        collected(&store, GcOptions::default()).await;
        let ours = store.gc_status().await.unwrap().unwrap();
        assert_eq!(ours.index_file_count, theirs.index_file_count);
        assert_eq!(ours.index_data_bytes, theirs.index_data_bytes);
        assert_eq!((ours.removed_chunks, ours.removed_bytes), (0, 0));
        let there = |status: &larder::format::status::GcStatus| {
            (status.disk_chunks + status.pending_chunks, status.disk_bytes + status.pending_bytes)
        };
        assert_eq!(there(&ours), there(&theirs));
        assert_eq!((ours.removed_bad, ours.still_bad), (0, 0));
        assert_eq!(chunks(backend.as_ref()).await, before);
        // A backup of PBS in another process would be kept out meanwhile.
        let plan = gc::plan(&store, at_once()).await.unwrap();
        assert!(backend.lock(&LockScope::Store, LockMode::Shared).await.is_ok(), "not in this one");
        drop(plan);
    });
}

/// Proves H34.
///
/// No listing shows the directories of single objects.
#[test]
fn temporary_files_of_single_objects_are_removed_when_they_are_old() {
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    block_on(async {
        let (_, store) = created(&root).await;
        drop(back_up(&store, "host/a", &[1, 2]).await.unwrap());
        let objects = [".gc-status", ".larder-clock", ".larder/store.json", ".larder/suspects"];
        for object in objects {
            for suffix in ["tmp_OldOld", "tmp_NewNew", "txt"] {
                let path = root.join(format!("{object}.{suffix}"));
                fs::write(&path, "torn").unwrap();
                if suffix == "tmp_OldOld" {
                    filetime::set_file_mtime(&path, FileTime::from_unix_time(1000, 0)).unwrap();
                }
            }
        }
        assert_eq!(collected(&store, at_once()).await.leftovers, objects.len() as u64);
        for object in objects {
            let is_there = |suffix| root.join(format!("{object}.{suffix}")).exists();
            assert_eq!(["tmp_OldOld", "tmp_NewNew", "txt"].map(is_there), [false, true, true], "{object}");
        }
        assert_eq!(check_all(&store).await, 1);
    });
}
