//! Stores in a directory: the layout that PBS expects, and the surprises of filesystems.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::str::FromStr as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::executor::block_on;
use larder::backend::{
    Backend, Coordination, Deleted, FsBackend, FsOptions, Housekeeping, ListEntry, ListQuery, LockMode,
    LockReach, LockScope, PrefixDirectories, PutMode, Removal, SyncLevel, Touched,
};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::{Key, Prefix};
use larder::internal::listing::list_all;
use larder::rt::{Runtime, ThreadRuntime};

fn runtime() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

fn on_demand() -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None)
}

fn create(path: &Path) -> FsBackend {
    block_on(FsBackend::create(runtime(), path, on_demand())).unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn chunk(number: u8) -> (Key, Digest) {
    let digest = Digest::of(&[number]);
    (Key::Chunk(digest), digest)
}

fn file_of(root: &Path, key: &Key) -> std::path::PathBuf {
    root.join(key.to_string())
}

#[test]
fn a_new_store_has_the_layout_that_pbs_expects() {
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    fs::create_dir(&root).unwrap();
    fs::create_dir(root.join("lost+found")).unwrap();
    fs::write(root.join(".hidden"), "").unwrap();
    let options =
        FsOptions::default().owner(fs::metadata(&root).unwrap().uid(), fs::metadata(&root).unwrap().gid());
    block_on(FsBackend::create(runtime(), &root, options)).unwrap();
    assert_eq!((mode(&root), mode(&root.join(".chunks")), mode(&root.join(".lock"))), (0o755, 0o750, 0o644));
    assert_eq!(fs::read(root.join(".lock")).unwrap(), b"");
    let mut names: Vec<_> = fs::read_dir(root.join(".chunks"))
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            assert_eq!(mode(&entry.path()), 0o750);
            entry.file_name().into_string().unwrap()
        })
        .collect();
    names.sort_unstable();
    assert!(names.into_iter().eq((0..=0xffff).map(|number| format!("{number:04x}"))));
    let again = block_on(FsBackend::create(runtime(), &root, on_demand())).unwrap_err();
    assert_eq!(again.kind(), ErrorKind::AlreadyExists);
}

#[test]
fn a_store_is_created_only_in_an_empty_directory() {
    let directory = larder_testing::scratch();
    fs::write(directory.path().join("file"), "").unwrap();
    let error = block_on(FsBackend::create(runtime(), directory.path(), on_demand())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(!directory.path().join(".chunks").exists());
    let nowhere = directory.path().join("a/b");
    assert!(block_on(FsBackend::create(runtime(), &nowhere, on_demand())).is_err());
    let error = block_on(FsBackend::open(runtime(), directory.path(), on_demand())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    for path in ["file", "file/below"] {
        let path = directory.path().join(path);
        let opened = block_on(FsBackend::open(runtime(), &path, on_demand())).unwrap_err();
        let created = block_on(FsBackend::create(runtime(), &path, on_demand())).unwrap_err();
        assert_eq!(
            [opened.kind(), created.kind()],
            [ErrorKind::InvalidInput; 2],
            "{path:?}: {opened} {created}"
        );
    }
}

/// Proves H76, H182.
#[test]
fn file_modes_do_not_depend_on_the_umask() {
    // The umask belongs to the process, so another one runs this.
    if std::env::var_os("LARDER_UMASK").is_none() {
        let test = std::env::current_exe().unwrap();
        let run = format!(
            "umask 077; exec {} --exact filesystem::file_modes_do_not_depend_on_the_umask",
            test.display()
        );
        let status = Command::new("sh").args(["-c", &run]).env("LARDER_UMASK", "1").status().unwrap();
        assert!(status.success());
        return;
    }
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    let backend = create(&root);
    let keys = [chunk(1).0, Key::Owner("vm/1".parse().unwrap()), Key::GcStatus];
    for key in &keys {
        block_on(backend.put(key, Bytes::from_static(b"x"), PutMode::Create)).unwrap();
        assert_eq!(mode(&file_of(&root, key)), 0o644, "{key}");
    }
    assert_eq!((mode(&root), mode(&root.join("vm/1")), mode(&root.join(".chunks"))), (0o755, 0o755, 0o750));
    assert_eq!(mode(file_of(&root, &keys[0]).parent().unwrap()), 0o750);
}

/// Proves H76.
#[test]
fn a_failed_put_leaves_no_temporary_file() {
    let directory = larder_testing::scratch();
    let backend = create(directory.path());
    let (key, _) = chunk(1);
    block_on(backend.put(&key, Bytes::from_static(b"x"), PutMode::Create)).unwrap();
    let taken = block_on(backend.put(&key, Bytes::from_static(b"y"), PutMode::Create)).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
    let folder = file_of(directory.path(), &key).parent().unwrap().to_owned();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    // A directory stands where the object should be.
    fs::remove_file(file_of(directory.path(), &key)).unwrap();
    fs::create_dir_all(file_of(directory.path(), &key).join("x")).unwrap();
    block_on(backend.put(&key, Bytes::from_static(b"y"), PutMode::Replace)).unwrap_err();
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
}

/// Proves H76.
#[test]
fn concurrent_puts_of_one_file_leave_one_whole_content() {
    let directory = larder_testing::scratch();
    let backends = [
        create(directory.path()),
        block_on(FsBackend::open(runtime(), directory.path(), on_demand())).unwrap(),
    ];
    let key = Key::GroupNotes("vm/1".parse().unwrap());
    std::thread::scope(|scope| {
        for (backend, byte) in backends.iter().zip([b'a', b'b']) {
            let key = &key;
            scope.spawn(move || {
                for length in 1..200 {
                    let notes = Bytes::from(vec![byte; length]);
                    block_on(backend.put(key, notes, PutMode::Replace)).unwrap();
                    let read = block_on(backend.get(key, 1000)).unwrap().bytes;
                    assert!(!read.is_empty() && read.iter().all(|other| *other == read[0]), "torn");
                }
            });
        }
    });
    assert_eq!(fs::read_dir(directory.path().join("vm/1")).unwrap().count(), 1);
}

/// Proves H76.
#[test]
fn a_write_without_permission_is_denied_and_changes_nothing() {
    const NAME: &str = "filesystem::a_write_without_permission_is_denied_and_changes_nothing";
    if let Some(root) = std::env::var_os("LARDER_READ_ONLY") {
        return denied(Path::new(&root));
    }
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    let backend = create(&root);
    let owner = Key::Owner("vm/1".parse().unwrap());
    block_on(backend.put(&owner, Bytes::from_static(b"old"), PutMode::Create)).unwrap();
    fs::set_permissions(root.join("vm/1"), fs::Permissions::from_mode(0o555)).unwrap();
    if !rustix::process::geteuid().is_root() {
        return denied(&root);
    }
    // Root may write everywhere, so another user runs this, from a directory that it may read.
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let test = directory.path().join("test");
    let this = std::env::current_exe().unwrap();
    fs::hard_link(&this, &test).or_else(|_| fs::copy(&this, &test).map(drop)).unwrap();
    let mut command = Command::new(&test);
    command.args(["--exact", NAME]).env("LARDER_READ_ONLY", &root).uid(65_534).gid(65_534);
    assert!(command.status().unwrap().success());
    assert_eq!(fs::read(file_of(&root, &owner)).unwrap(), b"old");
    assert_eq!(fs::read_dir(root.join("vm/1")).unwrap().count(), 1);
}

fn denied(root: &Path) {
    let backend = block_on(FsBackend::open(runtime(), root, on_demand())).unwrap();
    let owner = Key::Owner("vm/1".parse().unwrap());
    for key in [&owner, &Key::GroupNotes("vm/1".parse().unwrap())] {
        let refused = block_on(backend.put(key, Bytes::from_static(b"new"), PutMode::Replace)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied, "{key}");
    }
    let refused = block_on(backend.delete(&[Removal::any(owner.clone())])).unwrap().remove(0).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Denied);
    assert_eq!(block_on(backend.get(&owner, 10)).unwrap().bytes, "old");
}

/// Proves H78.
#[test]
fn unreadable_entries_are_reported_and_left_alone() {
    let directory = larder_testing::scratch();
    let root = directory.path();
    let backend = create(root);
    let (good, _) = chunk(1);
    block_on(backend.put(&good, Bytes::from_static(b"good"), PutMode::Create)).unwrap();
    let (linked, folder) = (chunk(2).0, chunk(3).0);
    for key in [&linked, &folder] {
        fs::create_dir_all(file_of(root, key).parent().unwrap()).unwrap();
    }
    symlink(file_of(root, &good), file_of(root, &linked)).unwrap();
    fs::create_dir(file_of(root, &folder)).unwrap();
    fs::write(file_of(root, &good).with_extension("tmp_AbCdEf"), "").unwrap();
    for key in [&linked, &folder] {
        assert_eq!(block_on(backend.get(key, 100)).unwrap_err().kind(), ErrorKind::Corrupt, "{key}");
        assert_eq!(block_on(backend.head(key)).unwrap_err().kind(), ErrorKind::Corrupt, "{key}");
        assert!(block_on(backend.touch(std::slice::from_ref(key))).is_err(), "{key}");
    }
    let listing = block_on(list_all(&backend, &ListQuery::all(Prefix::Chunks))).unwrap();
    let foreign = listing.entries().iter().filter(|entry| matches!(entry, ListEntry::Foreign(_))).count();
    let objects = listing.entries().iter().filter_map(|entry| match entry {
        ListEntry::Object(info) => Some(&info.key),
        _ => None,
    });
    let objects: Vec<_> = objects.collect();
    assert_eq!((objects, foreign), (vec![&good], 3));

    fs::create_dir_all(root.join("lost+found/x")).unwrap();
    fs::create_dir_all(root.join(".zfs/snapshot")).unwrap();
    fs::create_dir_all(root.join("vm/100/not-a-time")).unwrap();
    fs::write(root.join("vm/100/stray"), "").unwrap();
    fs::write(root.join("vm/file"), "").unwrap();
    fs::create_dir_all(root.join("ns/ÄÖ")).unwrap();
    let whole = Prefix::Namespace(larder::format::name::Namespace::root());
    let listing = block_on(list_all(&backend, &ListQuery::all(whole))).unwrap();
    let foreign: Vec<_> = listing
        .entries()
        .iter()
        .map(|entry| match entry {
            ListEntry::Foreign(path) => path.as_str(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(foreign, ["ns/ÄÖ/", "vm/100/not-a-time/", "vm/100/stray", "vm/file"]);
}

/// Proves H78.
#[test]
fn a_link_to_a_directory_is_not_followed() {
    let (directory, outside) = (larder_testing::scratch(), larder_testing::scratch());
    let root = directory.path();
    let backend = create(root);
    let (key, _) = chunk(1);
    let owner = Key::Owner("vm/1".parse().unwrap());
    for key in [&key, &owner] {
        block_on(backend.put(key, Bytes::from_static(b"mine"), PutMode::Create)).unwrap();
    }
    let prefix = file_of(root, &key).parent().unwrap().to_owned();
    for (name, folder) in [("chunks", prefix), ("group", root.join("vm/1"))] {
        fs::rename(&folder, outside.path().join(name)).unwrap();
        symlink(outside.path().join(name), folder).unwrap();
    }
    for key in [&key, &owner] {
        let refused = [
            block_on(backend.get(key, 100)).unwrap_err(),
            block_on(backend.head(key)).unwrap_err(),
            block_on(backend.touch(std::slice::from_ref(key))).unwrap_err(),
            block_on(backend.put(key, Bytes::from_static(b"new"), PutMode::Replace)).unwrap_err(),
            block_on(backend.delete(&[Removal::any(key.clone())])).unwrap().remove(0).unwrap_err(),
        ];
        assert!(refused.iter().all(|error| error.kind() == ErrorKind::Corrupt), "{key}: {refused:?}");
    }
    let listed = |prefix| block_on(list_all(&backend, &ListQuery::all(prefix))).unwrap().entries().to_vec();
    let in_chunks = listed(Prefix::Chunks);
    assert!(matches!(in_chunks[..], [ListEntry::Foreign(_)]), "{in_chunks:?}");
    let in_root = listed(Prefix::Namespace(larder::format::name::Namespace::root()));
    assert!(matches!(&in_root[..], [ListEntry::Unreadable(entry)] if entry.path == "vm/1"), "{in_root:?}");
    let group = Prefix::Group("vm/1".parse().unwrap());
    let refused = block_on(list_all(&backend, &ListQuery::all(group))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert_eq!(fs::read(outside.path().join("group/owner")).unwrap(), b"mine");
}

#[test]
fn an_interrupted_creation_of_a_store_can_be_repeated() {
    let directory = larder_testing::scratch();
    fs::create_dir(directory.path().join(format!(".chunks.tmp_{}_0", std::process::id()))).unwrap();
    create(directory.path());
}

/// Proves H78.
#[test]
fn an_empty_mount_point_is_not_opened_as_a_store() {
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    let backend = create(&root);
    fs::rename(&root, directory.path().join("elsewhere")).unwrap();
    let (key, _) = chunk(1);
    let missing = block_on(backend.put(&key, Bytes::from_static(b"x"), PutMode::Create)).unwrap_err();
    assert_eq!(missing.kind(), ErrorKind::Unavailable, "a put does not say that its object is absent");
    assert!(!root.exists());
    // The mount point alone is no empty store, and the contents of the store on the unmounted disk are unknown.
    fs::create_dir(&root).unwrap();
    let owner = Key::Owner("vm/1".parse().unwrap());
    let whole = Prefix::Namespace(larder::format::name::Namespace::root());
    let unknown = [
        block_on(backend.get(&owner, 10)).map(drop),
        block_on(backend.head(&owner)).map(drop),
        block_on(backend.touch(std::slice::from_ref(&owner))).map(drop),
        block_on(backend.delete(&[Removal::any(owner.clone())])).unwrap().remove(0).map(drop),
        block_on(list_all(&backend, &ListQuery::all(whole))).map(drop),
        block_on(list_all(&backend, &ListQuery::all(Prefix::Chunks))).map(drop),
        block_on(backend.put(&owner, Bytes::new(), PutMode::Replace)).map(drop),
    ];
    for (number, result) in unknown.into_iter().enumerate() {
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Unavailable, "{number}");
    }
    assert_eq!(fs::read_dir(&root).unwrap().count(), 0);
}

/// Proves H78.
#[test]
fn a_missing_prefix_directory_is_created_by_a_put() {
    let directory = larder_testing::scratch();
    let backend = block_on(FsBackend::create(runtime(), directory.path(), FsOptions::default())).unwrap();
    let (key, _) = chunk(1);
    let folder = file_of(directory.path(), &key).parent().unwrap().to_owned();
    fs::remove_dir(&folder).unwrap();
    assert_eq!(block_on(backend.get(&key, 10)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(block_on(backend.touch(std::slice::from_ref(&key))).unwrap(), [Touched::Absent]);
    block_on(backend.put(&key, Bytes::from_static(b"x"), PutMode::Create)).unwrap();
    assert_eq!(mode(&folder), 0o750);
}

/// Proves H79.
#[test]
fn locks_reach_other_processes_on_local_filesystems_only() {
    let directory = larder_testing::scratch();
    let backend = create(directory.path());
    let kind = rustix::fs::statfs(directory.path()).unwrap().f_type;
    // ext4, XFS, Btrfs, tmpfs, overlayfs, ZFS.
    let local = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x794c_7630, 0x2fc1_2fc1];
    let reach = if local.contains(&kind) { LockReach::Host } else { backend.capabilities().lock_reach };
    assert_eq!(backend.capabilities().lock_reach, reach, "of filesystem {kind:#x}");
}

/// Proves H78.
#[test]
fn opening_a_store_reads_no_chunk_directory() {
    let directory = larder_testing::scratch();
    create(directory.path());
    // Root may read everything, so a name that no directory can have shows that nothing looks there.
    fs::write(directory.path().join(".chunks/0000"), "not a directory").unwrap();
    let backend = block_on(FsBackend::open(runtime(), directory.path(), on_demand())).unwrap();
    let (key, _) = chunk(1);
    block_on(backend.put(&key, Bytes::from_static(b"x"), PutMode::Create)).unwrap();
}

#[test]
fn a_touch_changes_the_access_time_and_not_the_version() {
    let directory = larder_testing::scratch();
    let backend = create(directory.path());
    let (key, _) = chunk(1);
    let version = block_on(backend.put(&key, Bytes::from_static(b"x"), PutMode::Create)).unwrap();
    let path = file_of(directory.path(), &key);
    let past = filetime::FileTime::from_unix_time(1_000_000_000, 0);
    filetime::set_file_atime(&path, past).unwrap();
    let modified = fs::metadata(&path).unwrap().mtime_nsec();
    let touched = block_on(backend.touch(&[key.clone(), chunk(2).0])).unwrap();
    let Touched::Present(info) = &touched[0] else { panic!("{touched:?}") };
    assert_eq!((&info.version, info.size), (&version, 1));
    assert_eq!(touched[1], Touched::Absent);
    let after = fs::metadata(&path).unwrap();
    assert!(after.atime() > 1_000_000_000);
    assert_eq!(after.mtime_nsec(), modified);
}

#[test]
fn a_directory_is_removed_with_its_last_object() {
    let directory = larder_testing::scratch();
    let backend = create(directory.path());
    let snapshot: larder::format::name::SnapshotName = "vm/1/2025-01-01T00:00:00Z".parse().unwrap();
    let keys = [
        Key::Manifest(snapshot.clone()),
        Key::Protected(snapshot.clone()),
        Key::Owner(snapshot.group().clone()),
    ];
    for key in &keys {
        block_on(backend.put(key, Bytes::new(), PutMode::Create)).unwrap();
    }
    let folder = directory.path().join(snapshot.to_string());
    for (key, left) in keys.iter().zip([true, false, false]) {
        block_on(backend.delete(&[Removal::any(key.clone())])).unwrap().remove(0).unwrap();
        assert_eq!(folder.exists(), left, "{key}");
    }
    assert!(!directory.path().join("vm/1").exists());
    assert!(directory.path().join("vm").exists(), "the directory of a type stays, as in PBS");
}

/// Takes a record lock on the whole of `.lock`, as PBS does, in a process of its own; whether it got it.
fn record_lock(root: &Path, kind: &str) -> bool {
    let script = "import fcntl,sys\n\
        f=open(sys.argv[1],'r+')\n\
        try: fcntl.lockf(f, (fcntl.LOCK_SH if sys.argv[2]=='shared' else fcntl.LOCK_EX)|fcntl.LOCK_NB)\n\
        except OSError: sys.exit(3)\n";
    let status =
        Command::new("python3").args(["-c", script]).arg(root.join(".lock")).arg(kind).status().unwrap();
    assert!(matches!(status.code(), Some(0 | 3)), "{status}");
    status.success()
}

/// Proves H159.
#[test]
fn the_lock_of_the_store_excludes_the_record_locks_of_pbs() {
    let directory = larder_testing::scratch();
    let root = directory.path();
    let (one, other) = (create(root), block_on(FsBackend::open(runtime(), root, on_demand())).unwrap());
    let lock = |backend: &FsBackend, mode| block_on(backend.lock(&LockScope::Store, mode));
    assert!(record_lock(root, "exclusive"));
    let shared = lock(&one, LockMode::Shared).unwrap();
    assert!(record_lock(root, "shared") && !record_lock(root, "exclusive"));
    // Opening and closing the file elsewhere in this process takes nothing away.
    drop(fs::File::open(root.join(".lock")).unwrap());
    assert!(!record_lock(root, "exclusive"));
    let exclusive = lock(&other, LockMode::Exclusive).unwrap();
    assert!(exclusive.oldest_shared().is_some(), "one process shares its descriptor");
    assert!(!record_lock(root, "shared"));
    drop(exclusive);
    assert!(record_lock(root, "shared") && !record_lock(root, "exclusive"));
    let second = lock(&other, LockMode::Shared).unwrap();
    drop(shared);
    assert!(!record_lock(root, "exclusive"), "the second holder keeps it");
    drop(second);
    assert!(record_lock(root, "exclusive"));
}

/// Holds a lock in a process of its own until it is asked to end.
fn held_by_another(root: &Path, kind: &str) -> std::process::Child {
    let script = "import fcntl,sys\n\
        f=open(sys.argv[1],'r+')\n\
        fcntl.lockf(f, fcntl.LOCK_SH if sys.argv[2]=='shared' else fcntl.LOCK_EX)\n\
        print('held', flush=True)\n\
        sys.stdin.read()\n";
    let mut child = Command::new("python3")
        .args(["-c", script])
        .arg(root.join(".lock"))
        .arg(kind)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut held = [0; 5];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut held).unwrap();
    child
}

/// Proves H93.
#[test]
fn a_lock_excludes_other_processes_until_its_holder_dies() {
    let directory = larder_testing::scratch();
    let backend = create(directory.path());
    let lock = |mode| block_on(backend.lock(&LockScope::Store, mode)).map(drop).map_err(|error| error.kind());
    for (theirs, shared) in [("shared", Ok(())), ("exclusive", Err(ErrorKind::Busy))] {
        let mut child = held_by_another(directory.path(), theirs);
        assert_eq!(lock(LockMode::Shared), shared);
        assert_eq!(lock(LockMode::Exclusive), Err(ErrorKind::Busy));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(lock(LockMode::Exclusive), Ok(()));
    }
}

/// Proves H160.
#[test]
fn a_lock_is_not_granted_on_a_replaced_lock_file() {
    let directory = larder_testing::scratch();
    create(directory.path());
    let locks = directory.path().join("pbs-locks");
    let backend =
        block_on(FsBackend::open(runtime(), directory.path(), on_demand().lock_directory(&locks))).unwrap();
    let scope = LockScope::Group("vm/1".parse().unwrap());
    let lock = || block_on(backend.lock(&scope, LockMode::Exclusive));
    let first = lock().unwrap();
    let file = locks.join("vm-1");
    assert_eq!(mode(&file) & 0o660, 0o660 & mode(&file));
    assert_eq!(lock().unwrap_err().kind(), ErrorKind::Busy);
    // Somebody removes the file of a lock that is held, and makes another: both cannot hold "the" lock.
    fs::remove_file(&file).unwrap();
    let second = lock().unwrap();
    block_on(first.release_deleted());
    assert!(file.exists(), "only the file that is locked is removed, not its successor");
    block_on(second.release_deleted());
    assert!(!file.exists(), "the file goes with its object");
    let own = create(&directory.path().join("own"));
    let held = block_on(own.lock(&scope, LockMode::Exclusive)).unwrap();
    block_on(held.release_deleted());
    assert!(!directory.path().join("own/.larder-locks/vm-1").exists(), "and in our own directory too");
}

/// Proves H160.
#[test]
fn locks_exclude_although_their_files_are_removed_concurrently() {
    let directory = larder_testing::scratch();
    let options = on_demand().lock_directory(directory.path().join("locks"));
    let backend = block_on(FsBackend::create(runtime(), directory.path().join("store"), options)).unwrap();
    let scope = LockScope::Group("vm/1".parse().unwrap());
    let holders = AtomicUsize::new(0);
    let work = || {
        let mut taken = 0;
        while taken < 100 {
            match block_on(backend.lock(&scope, LockMode::Exclusive)) {
                Ok(guard) => {
                    assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0, "somebody else holds it");
                    std::thread::yield_now();
                    holders.fetch_sub(1, Ordering::SeqCst);
                    block_on(guard.release_deleted());
                    taken += 1;
                }
                Err(error) => assert_eq!(error.kind(), ErrorKind::Busy),
            }
        }
    };
    std::thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(work);
        }
    });
    assert_eq!(holders.into_inner(), 0);
}

#[test]
fn conditional_puts_of_two_backends_on_one_directory_exclude_each_other() {
    let directory = larder_testing::scratch();
    let first = create(directory.path());
    let second = block_on(FsBackend::open(runtime(), directory.path(), on_demand())).unwrap();
    let key: Key = Key::from_str("vm/100/notes").unwrap();
    block_on(first.put(&key, Bytes::from_static(b"0"), PutMode::Create)).unwrap();
    std::thread::scope(|threads| {
        for backend in [&first, &second, &first, &second] {
            let key = &key;
            threads.spawn(move || {
                for _ in 0..100 {
                    loop {
                        let read = block_on(backend.get(key, 100)).unwrap();
                        let count: u32 = std::str::from_utf8(&read.bytes).unwrap().parse().unwrap();
                        let next = Bytes::from((count + 1).to_string());
                        match block_on(backend.put(key, next, PutMode::IfMatch(read.info.version))) {
                            Ok(_) => break,
                            Err(error) => assert_eq!(error.kind(), ErrorKind::Conflict, "{error:?}"),
                        }
                    }
                }
            });
        }
    });
    assert_eq!(block_on(first.get(&key, 100)).unwrap().bytes, "400");
}

#[test]
fn files_that_replace_each_other_quickly_have_different_versions() {
    let directory = larder_testing::scratch();
    let backend = create(directory.path());
    let key = Key::from_str("vm/100/notes").unwrap();
    let mut versions = std::collections::HashSet::new();
    for _ in 0..500 {
        let version = block_on(backend.put(&key, Bytes::from_static(b"same"), PutMode::Replace)).unwrap();
        assert!(versions.insert(version), "after {} puts", versions.len());
    }
}

#[test]
fn files_larger_than_any_blob_are_copied_whole() {
    let directory = larder_testing::scratch();
    let backend = create(directory.path());
    let from = Key::from_str("vm/100/2025-07-14T14:20:02Z/a.img.fidx").unwrap();
    let to = Key::from_str("vm/100/2025-07-15T14:20:02Z/a.img.fidx").unwrap();
    let bytes = Bytes::from(larder_testing::counting(20_000_000));
    block_on(backend.put(&from, bytes.clone(), PutMode::Create)).unwrap();
    let version = block_on(backend.copy(&from, &to, PutMode::Create)).unwrap();
    let copied = block_on(backend.get(&to, u64::MAX)).unwrap();
    assert!(copied.bytes == bytes);
    assert_eq!(copied.info.version, version);
    let taken = block_on(backend.copy(&from, &to, PutMode::Create)).unwrap_err();
    assert_eq!(taken.kind(), ErrorKind::AlreadyExists);
}

/// Proves H160.
#[test]
fn a_held_lock_is_lost_when_its_file_is_replaced() {
    let directory = larder_testing::scratch();
    let backend = create(directory.path());
    let group = LockScope::Group("vm/100".parse().unwrap());
    let paths = [".larder-locks/vm-100", ".lock"].map(|name| directory.path().join(name));
    for (scope, path) in [group, LockScope::Store].iter().zip(paths) {
        let held = block_on(backend.lock(scope, LockMode::Exclusive)).unwrap();
        block_on(held.check()).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(block_on(held.check()).unwrap_err().kind(), ErrorKind::Busy, "{scope}: removed");
        let other = block_on(backend.lock(scope, LockMode::Exclusive)).unwrap();
        block_on(other.check()).unwrap();
        assert_eq!(block_on(held.check()).unwrap_err().kind(), ErrorKind::Busy, "{scope}: replaced");
        // It does not take away the lock of the other.
        block_on(held.release_deleted());
        block_on(other.check()).unwrap();
    }
}

#[test]
fn a_link_to_nothing_in_the_place_of_lock_files_is_no_held_lock() {
    let directory = larder_testing::scratch();
    let backend = create(directory.path());
    let locks = directory.path().join(".larder-locks");
    let _ = fs::remove_dir_all(&locks);
    std::os::unix::fs::symlink(directory.path().join("nothing"), &locks).unwrap();
    let group = LockScope::Group("vm/100".parse().unwrap());
    for mode in [LockMode::Exclusive, LockMode::Shared] {
        let failed = block_on(backend.lock(&group, mode)).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Unavailable);
        assert!(std::error::Error::source(&failed).is_some(), "{failed:#}");
    }
    fs::remove_file(&locks).unwrap();
    block_on(backend.lock(&group, LockMode::Exclusive)).unwrap();
}

#[test]
fn the_longest_namespace_can_be_locked() {
    let directory = larder_testing::scratch();
    let backend = create(directory.path());
    let (name, last) = ("a".repeat(36), "b".repeat(34));
    let group = format!("{}ns/{last}/vm/100", format!("ns/{name}/").repeat(6));
    block_on(backend.lock(&LockScope::Group(group.parse().unwrap()), LockMode::Exclusive)).unwrap();
}

/// Proves H57.
///
/// No listing shows the directories that a crash left after it removed what was in them.
#[test]
fn a_namespace_with_nothing_but_empty_directories_is_deleted() {
    let directory = larder_testing::scratch();
    let root = directory.path().join("store");
    let backend = create(&root);
    let namespace = Key::Namespace("a".parse().unwrap());
    let delete = || block_on(backend.delete(&[Removal::any(namespace.clone())])).unwrap().remove(0);
    block_on(backend.put(&namespace, Bytes::new(), PutMode::Create)).unwrap();
    for path in ["vm/1/2025-07-14T14:20:02Z", "vm/1/2025-07-15T14:20:02Z", "ct/2", "host/x"] {
        fs::create_dir_all(root.join("ns/a").join(path)).unwrap();
    }
    fs::write(root.join("ns/a/vm/1/2025-07-14T14:20:02Z/index.json.blob.tmp_AbCdEf"), "torn").unwrap();
    let owner = root.join("ns/a/host/x/owner");
    fs::write(&owner, "me@pam").unwrap();
    assert_eq!(delete().unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(fs::read(&owner).unwrap(), b"me@pam");
    fs::remove_file(owner).unwrap();
    assert_eq!(delete().unwrap(), Deleted::Removed);
    assert!(!root.join("ns/a").exists());
}
