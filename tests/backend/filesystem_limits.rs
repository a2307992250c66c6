//! Filesystems and users with fewer abilities: no atomic creation, files of other users, parts of a store on other disks.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use filetime::FileTime;
use futures::executor::block_on;
use larder::backend::{
    Backend, Coordination, FsBackend, FsOptions, PrefixDirectories, PutMode, Removal, SyncLevel, Touched,
};
use larder::error::{Error, ErrorKind, Result};
use larder::format::Digest;
use larder::format::layout::Key;
use larder::internal::replay::{DiskOp, DiskRecord, DiskUnderTest as _, FailingCall};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options};

const EACCES: i32 = 13;
const EEXIST: i32 = 17;
const EINVAL: i32 = 22;
const EIO: i32 = 5;
const EMLINK: i32 = 31;
const ENOSYS: i32 = 38;
const EOPNOTSUPP: i32 = 95;
const EPERM: i32 = 1;
const EROFS: i32 = 30;

fn runtime() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

fn options() -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand)
}

fn create(root: &Path, record: &Arc<DiskRecord>) -> FsBackend {
    block_on(FsBackend::create(runtime(), root, options().record(Arc::clone(record)))).unwrap()
}

fn open(root: &Path) -> FsBackend {
    block_on(FsBackend::open(runtime(), root, options())).unwrap()
}

fn chunk(number: u8) -> Key {
    Key::Chunk(Digest::of(&[number]))
}

fn put(backend: &FsBackend, key: &Key, mode: PutMode) -> Result<()> {
    block_on(backend.put(key, Bytes::from_static(b"x"), mode)).map(drop)
}

fn touch(backend: &FsBackend, key: &Key) -> Result<Touched> {
    block_on(backend.touch(std::slice::from_ref(key))).map(|mut touched| touched.remove(0))
}

/// The whole chain of an error.
fn story(error: &Error) -> String {
    let mut story = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        story = format!("{story}: {error}");
        source = error.source();
    }
    story
}

#[test]
fn a_store_works_without_hard_links_and_without_rename_noreplace() {
    for errno in [EINVAL, ENOSYS, EPERM, EIO, EOPNOTSUPP] {
        let directory = larder_testing::scratch();
        let record = Arc::new(DiskRecord::default());
        let backend = create(directory.path(), &record);
        record.fail(FailingCall::RenameWithoutReplacing, errno);
        record.fail(FailingCall::Link, if errno == EINVAL { EOPNOTSUPP } else { errno });
        let key = Key::GroupNotes("vm/1".parse().unwrap());
        put(&backend, &key, PutMode::Create).unwrap();
        let taken = block_on(backend.put(&key, Bytes::from_static(b"y"), PutMode::Create)).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists, "{errno}");
        assert_eq!(block_on(backend.get(&key, 10)).unwrap().bytes, "x", "{errno}");
        assert_eq!(
            fs::read_dir(directory.path().join("vm/1")).unwrap().count(),
            1,
            "no temporary file stays"
        );
        block_on(backend.delete(&[Removal::any(key)])).unwrap().remove(0).unwrap();
        block_on(async {
            let store = Datastore::create(Arc::new(backend), Options::default()).await.unwrap();
            let backup = store.backup(&"host/a".parse().unwrap()).begin().await.unwrap();
            backup.blob("a.conf", "text").await.unwrap();
            let snapshot = backup.finish().await.unwrap().snapshot;
            assert_eq!(snapshot.blob("a.conf.blob").await.unwrap(), "text", "{errno}");
        });
    }
}

/// Returns `true` if a process waits for the lock of this file.
fn is_waited_for(path: &Path) -> bool {
    let inode = format!(":{} ", fs::metadata(path).unwrap().ino());
    let locks = fs::read_to_string("/proc/locks").unwrap();
    locks.lines().any(|line| line.contains("-> FLOCK") && line.contains(&inode))
}

#[test]
fn a_create_in_two_steps_does_not_replace_a_file_of_another_process() {
    let directory = larder_testing::scratch();
    let record = Arc::new(DiskRecord::default());
    let backend = create(directory.path(), &record);
    record.fail(FailingCall::RenameWithoutReplacing, EINVAL);
    record.fail(FailingCall::Link, EPERM);
    let notes = |id: u8| Key::GroupNotes(format!("vm/{id}").parse().unwrap());
    put(&backend, &notes(1), PutMode::Create).unwrap();
    let lock = directory.path().join(".larder-locks/create");
    let held = fs::File::open(&lock).unwrap();
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
    std::thread::scope(|threads| {
        let creating = threads.spawn(|| put(&backend, &notes(2), PutMode::Create));
        while !creating.is_finished() && !is_waited_for(&lock) {
            std::thread::yield_now();
        }
        let other = directory.path().join(notes(2).to_string());
        fs::write(&other, "of another process").unwrap();
        drop(held);
        let taken = creating.join().unwrap().expect_err("it waited for the lock and then looked");
        assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&other).unwrap(), "of another process");
    });
}

#[test]
fn an_error_names_the_failed_system_call() {
    for (renaming, linking, told, kind) in [
        (EROFS, EIO, "rename without replacing: Read-only file system", ErrorKind::Denied),
        (EINVAL, EMLINK, "link: Too many links", ErrorKind::Unavailable),
        (EEXIST, EIO, "rename without replacing: File exists", ErrorKind::AlreadyExists),
    ] {
        let directory = larder_testing::scratch();
        let record = Arc::new(DiskRecord::default());
        let backend = create(directory.path(), &record);
        record.fail(FailingCall::RenameWithoutReplacing, renaming);
        record.fail(FailingCall::Link, linking);
        let error = put(&backend, &chunk(1), PutMode::Create).unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        assert!(story(&error).contains(told), "{}", story(&error));
    }
}

#[test]
fn a_touch_sets_both_times_where_the_access_time_cannot_be_set_alone() {
    let directory = larder_testing::scratch();
    let record = Arc::new(DiskRecord::default());
    let backend = create(directory.path(), &record);
    put(&backend, &chunk(1), PutMode::Create).unwrap();
    let path = directory.path().join(chunk(1).to_string());
    let (past, inode) = (FileTime::from_unix_time(1000, 0), fs::metadata(&path).unwrap().ino());
    filetime::set_file_times(&path, past, past).unwrap();
    record.fail(FailingCall::SetAccessTime, EPERM);
    assert!(matches!(touch(&backend, &chunk(1)).unwrap(), Touched::Present(_)));
    let found = fs::metadata(&path).unwrap();
    assert!(found.atime() > 1000 && found.ino() == inode);
    assert_eq!(touch(&backend, &chunk(2)).unwrap(), Touched::Absent);
}

#[test]
fn a_chunk_whose_times_cannot_be_set_is_flushed_and_replaced() {
    for level in [SyncLevel::Filesystem, SyncLevel::File, SyncLevel::None] {
        let directory = larder_testing::scratch();
        let record = Arc::new(DiskRecord::default());
        let options = options().sync_level(level).record(Arc::clone(&record));
        let backend = block_on(FsBackend::create(runtime(), directory.path(), options)).unwrap();
        put(&backend, &chunk(1), PutMode::Create).unwrap();
        let path = directory.path().join(chunk(1).to_string());
        let past = FileTime::from_unix_time(1000, 0);
        filetime::set_file_times(&path, past, past).unwrap();
        record.fail(FailingCall::SetAccessTime, EPERM);
        record.fail(FailingCall::SetTimes, EACCES);
        let before = record.len();
        let Touched::Present(info) = touch(&backend, &chunk(1)).unwrap() else { panic!("it is there") };
        assert_eq!((info.key, info.size), (chunk(1), 1));
        assert!(fs::metadata(&path).unwrap().atime() > 1000);
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
        let ops = record.ops().split_off(before);
        let [
            DiskOp::Write { path: written, .. },
            DiskOp::SyncFile { path: flushed },
            DiskOp::Rename { from, to },
        ] = &ops[..]
        else {
            panic!("{level:?}: {ops:?}")
        };
        assert!(written == flushed && flushed == from && *to == chunk(1).to_string(), "{ops:?}");
        assert_eq!(touch(&backend, &chunk(2)).unwrap(), Touched::Absent);
    }
}

/// A copy of this test where every user can execute it, in a directory of its own.
fn test_for_everybody() -> (tempfile::TempDir, PathBuf) {
    let directory = larder_testing::scratch();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (test, this) = (directory.path().join("test"), std::env::current_exe().unwrap());
    fs::hard_link(&this, &test).or_else(|_| fs::copy(&this, &test).map(drop)).unwrap();
    (directory, test)
}

/// Two users of one group share a store. The second one needs chunks of the first.
#[test]
fn chunks_of_another_user_are_touched_stored_again_or_named_in_the_error() {
    const NAME: &str =
        "filesystem_limits::chunks_of_another_user_are_touched_stored_again_or_named_in_the_error";
    if let Some(root) = std::env::var_os("LARDER_SHARED") {
        return as_the_second_user(Path::new(&root));
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: only root can act for two users");
        return;
    }
    let (directory, test) = test_for_everybody();
    let root = directory.path().join("store");
    let backend = create(&root, &Arc::new(DiskRecord::default()));
    let past = FileTime::from_unix_time(1000, 0);
    // The mode of the file, and that of its directory.
    for (number, file_mode, mode) in [(1, 0o664, 0o755), (2, 0o644, 0o775), (3, 0o644, 0o755)] {
        put(&backend, &chunk(number), PutMode::Create).unwrap();
        let path = root.join(chunk(number).to_string());
        filetime::set_file_times(&path, past, past).unwrap();
        for (path, mode) in [(path.as_path(), file_mode), (path.parent().unwrap(), mode)] {
            std::os::unix::fs::chown(path, Some(1000), Some(1000)).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
    }
    fs::set_permissions(root.join(".chunks"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&test);
    command.args(["--exact", NAME, "--nocapture"]).env("LARDER_SHARED", &root).uid(1001).gid(1000);
    assert!(command.status().unwrap().success());
    let found = |number| fs::metadata(root.join(chunk(number).to_string())).unwrap();
    assert!(found(1).atime() > 1000 && found(1).uid() == 1000);
    assert!(found(2).atime() > 1000 && found(2).uid() == 1001);
    assert_eq!((found(3).atime(), found(3).uid()), (1000, 1000));
    for number in 1..=3 {
        let path = root.join(chunk(number).to_string());
        assert_eq!(fs::read(&path).unwrap(), b"x");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }
}

fn as_the_second_user(root: &Path) {
    let backend = open(root);
    for number in [1, 2] {
        assert!(matches!(touch(&backend, &chunk(number)).unwrap(), Touched::Present(_)), "{number}");
    }
    let refused = touch(&backend, &chunk(3)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied);
    assert_eq!(refused.subject(), Some(chunk(3).to_string().as_str()));
    assert!(story(&refused).contains("the file belongs to user 1000"), "{}", story(&refused));
}

/// Proves H75.
///
/// The system reports a failed flush once. What was stored before may be lost, so a later flush proves nothing about it.
#[test]
fn after_a_failed_flush_no_barrier_succeeds_until_the_store_is_opened_again() {
    let directory = larder_testing::scratch();
    let (root, record) = (directory.path().join("store"), Arc::new(DiskRecord::default()));
    let backend = create(&root, &record);
    put(&backend, &chunk(1), PutMode::Create).unwrap();
    record.fail(FailingCall::Flush, EIO);
    assert!(block_on(backend.barrier()).is_err());
    record.mend(FailingCall::Flush);
    for _ in 0..2 {
        assert_eq!(block_on(backend.barrier()).unwrap_err().kind(), ErrorKind::Unavailable);
    }
    block_on(open(&root).barrier()).unwrap();
}

/// Proves H75.
///
/// Runs in a mount namespace of its own, which goes with its processes.
#[test]
fn a_barrier_flushes_every_mounted_filesystem_of_a_store() {
    const NAME: &str = "filesystem_limits::a_barrier_flushes_every_mounted_filesystem_of_a_store";
    if let Some(root) = std::env::var_os("LARDER_MOUNTED") {
        return on_mounts(Path::new(&root));
    }
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    create(&root, &Arc::new(DiskRecord::default()));
    fs::create_dir_all(root.join("host/a")).unwrap();
    let mount = "mount -t tmpfs none \"$0/.chunks\" && mount -t tmpfs none \"$0/host/a\" || exit 77; \
                 exec \"$1\" --exact \"$2\" --nocapture";
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-c", mount]).arg(&root).arg(std::env::current_exe().unwrap()).arg(NAME);
    match command.env("LARDER_MOUNTED", &root).output() {
        Ok(output) if output.status.success() => {}
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains("running") => {
            panic!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        }
        skipped => println!("skipped: nothing can be mounted here: {skipped:?}"),
    }
}

fn on_mounts(root: &Path) {
    let record = Arc::new(DiskRecord::default());
    let options = options().record(Arc::clone(&record));
    let backend = block_on(FsBackend::open(runtime(), root, options)).unwrap();
    let flushed = || {
        let before = record.len();
        block_on(backend.barrier()).unwrap();
        let ops = record.ops().split_off(before);
        let path =
            |op: DiskOp| if let DiskOp::SyncFilesystem { path } = op { path } else { panic!("{op:?}") };
        ops.into_iter().map(path).collect::<Vec<_>>()
    };
    assert_eq!(flushed(), ["", ".chunks"], "what the opening met");
    put(&backend, &chunk(1), PutMode::Create).unwrap();
    put(&backend, &Key::Owner("host/a".parse().unwrap()), PutMode::Create).unwrap();
    put(&backend, &Key::Owner("host/b".parse().unwrap()), PutMode::Create).unwrap();
    assert_eq!(flushed(), ["", ".chunks", "host/a"]);
    // The time of the store is that of the filesystem on which the chunks lie.
    block_on(backend.clock()).unwrap();
    let ops = record.ops();
    let clock = ops.iter().rev().find_map(|op| match op {
        DiskOp::Write { path, .. } => Some(path.clone()),
        _ => None,
    });
    assert!(clock.unwrap().starts_with(".chunks/.larder-clock"), "{ops:?}");
}
