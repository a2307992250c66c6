//! Files in a directory beside the objects of a store: the move journal, orphan indexes, temporary files.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use larder::backend::{
    Backend, Coordination, FsBackend, FsOptions, Housekeeping, ListEntry, ListQuery, Orphan,
    PrefixDirectories, PutMode, SyncLevel,
};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::{Key, Prefix};
use larder::format::name::Namespace;
use larder::internal::listing::list_all;
use larder::rt::{Runtime, SimRuntime, ThreadRuntime};

const SNAPSHOT: &str = "vm/1/2025-07-14T14:20:02Z";

fn runtime() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

fn on_demand() -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None)
}

async fn create(path: &Path) -> FsBackend {
    FsBackend::create(runtime(), path, on_demand()).await.unwrap()
}

fn key(name: &str) -> Key {
    Key::from_str(&format!("{SNAPSHOT}/{name}")).unwrap()
}

async fn pending_moves(backend: &dyn Backend) -> (Vec<Key>, Vec<String>) {
    let pending_moves = backend.pending_moves().await.unwrap().unwrap();
    let orphans = pending_moves.orphans().iter().map(|orphan| orphan.path.clone()).collect();
    (pending_moves.keys().to_vec(), orphans)
}

async fn foreign(backend: &dyn Backend) -> Vec<String> {
    let mut found = Vec::new();
    for prefix in [Prefix::Namespace(Namespace::root()), Prefix::Chunks] {
        for entry in list_all(backend, &ListQuery::all(prefix)).await.unwrap().into_entries() {
            if let ListEntry::Foreign(path) = entry {
                found.push(path);
            }
        }
    }
    found
}

fn write(root: &Path, path: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, path_bytes(&root.join("x"))).unwrap();
}

fn path_bytes(path: &Path) -> &[u8] {
    path.as_os_str().as_bytes()
}

/// Proves H8.
#[test]
fn the_move_journal_keeps_recorded_moves_until_it_is_cleared() {
    block_on(async {
        let scratch = larder_testing::scratch();
        let (root, locks) = (scratch.path().join("store"), scratch.path().join("locks/here"));
        for shared in [false, true] {
            let root = root.join(shared.to_string());
            fs::create_dir_all(&root).unwrap();
            let options = if shared { on_demand().lock_directory(&locks) } else { on_demand() };
            let one = FsBackend::create(runtime(), &root, options.clone()).await.unwrap();
            let other = FsBackend::open(runtime(), &root, options).await.unwrap();
            let journal =
                if shared { locks.clone() } else { root.join(".larder-locks") }.join("move-journal");
            assert_eq!(pending_moves(&other).await, (vec![], vec![]));
            let keys = [key("b.fidx"), key("a.didx")];
            one.record_moves(&keys).await.unwrap();
            one.record_moves(&[]).await.unwrap();
            assert_eq!(fs::metadata(&journal).unwrap().permissions().mode() & 0o7777, 0o660 & !umask());
            let lines = keys.each_ref().map(|key| format!("{}/{key}\n", root.display())).concat();
            assert_eq!(fs::read_to_string(&journal).unwrap(), lines, "absolute paths, as PBS writes them");
            // It was not cleared: it stays.
            assert_eq!(pending_moves(&other).await.0, keys, "in their order");
            other.pending_moves().await.unwrap().unwrap().clear().await.unwrap();
            assert_eq!(fs::read(&journal).unwrap(), b"");
            assert_eq!(pending_moves(&one).await, (vec![], vec![]));
        }
    });
}

fn umask() -> u32 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Umask:")).unwrap();
    u32::from_str_radix(line.trim(), 8).unwrap()
}

/// Proves H8.
#[test]
fn foreign_and_torn_journal_lines_are_parsed_or_ignored() {
    block_on(async {
        let scratch = larder_testing::scratch();
        let root = scratch.path().join("store");
        let backend = create(&root).await;
        let journal = root.join(".larder-locks/move-journal");
        fs::create_dir_all(journal.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(&root, scratch.path().join("link")).unwrap();
        write(&root, &format!("{SNAPSHOT}/there.fidx"));
        let mut lines = Vec::new();
        for line in [
            format!("{}/{SNAPSHOT}/a.fidx", root.display()),
            String::new(),
            "/elsewhere/x.fidx".to_owned(),
            format!("{}/../store/{SNAPSHOT}/there.fidx", root.display()),
            format!("{}/link/{SNAPSHOT}/there.fidx", scratch.path().display()),
            format!("{}/odd/place.didx", root.display()),
            format!("{}/{SNAPSHOT}/index.json.blob", root.display()),
            format!("{}/{SNAPSHOT}/\0\0.fidx", root.display()),
            format!("{}/{SNAPSHOT}/torn.fi", root.display()),
        ] {
            lines.extend_from_slice(line.as_bytes());
            lines.push(b'\n');
        }
        lines.pop();
        fs::write(&journal, &lines).unwrap();
        backend.record_moves(&[key("b.didx")]).await.unwrap();
        let (keys, orphans) = pending_moves(&backend).await;
        assert_eq!(keys, [key("a.fidx"), key("there.fidx"), key("b.didx")], "the torn line was ended first");
        assert_eq!(orphans, ["odd/place.didx"]);
    });
}

/// Proves H8.
#[test]
fn a_move_waits_for_a_locked_journal_until_its_deadline() {
    let scratch = larder_testing::scratch();
    let sim = SimRuntime::new(0);
    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
    sim.block_on(async {
        let backend = FsBackend::create(Arc::clone(&runtime), scratch.path(), on_demand()).await.unwrap();
        let held = backend.pending_moves().await.unwrap().unwrap();
        let before = runtime.monotonic();
        let refused = backend.record_moves(&[key("a.fidx")]).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        assert_eq!(backend.pending_moves().await.unwrap_err().kind(), ErrorKind::Busy);
        let waited = runtime.monotonic().saturating_sub(before);
        assert!(waited >= Duration::from_secs(20) && waited < Duration::from_secs(22), "{waited:?}");
        let give_back = async {
            runtime.sleep(Duration::from_secs(3)).await;
            drop(held);
        };
        let keys = [key("a.fidx")];
        let (pending_moves, ()) = futures::join!(backend.record_moves(&keys), give_back);
        pending_moves.unwrap();
    });
}

/// Proves H160.
#[test]
fn a_lock_on_a_replaced_journal_file_does_not_count() {
    block_on(async {
        let scratch = larder_testing::scratch();
        let backend = create(scratch.path()).await;
        let journal = scratch.path().join(".larder-locks/move-journal");
        backend.record_moves(&[key("a.fidx")]).await.unwrap();
        let held = backend.pending_moves().await.unwrap().unwrap();
        fs::remove_file(&journal).unwrap();
        // The others lock the file that has its name now.
        backend.record_moves(&[key("b.fidx")]).await.unwrap();
        held.clear().await.unwrap();
        assert_eq!(pending_moves(&backend).await.0, [key("b.fidx")]);
    });
}

/// Proves H93.
#[test]
fn a_killed_process_releases_the_move_journal() {
    let scratch = larder_testing::scratch();
    let root = scratch.path().join("store");
    let backend = block_on(create(&root));
    block_on(backend.record_moves(&[key("a.fidx")])).unwrap();
    let journal = root.join(".larder-locks/move-journal");
    let ready = scratch.path().join("ready");
    let script = "import fcntl, sys, time\n\
        f = open(sys.argv[1], 'r+')\n\
        fcntl.flock(f, fcntl.LOCK_EX)\n\
        open(sys.argv[2], 'w').close()\n\
        time.sleep(600)";
    let mut child = Command::new("python3").args(["-c", script]).arg(&journal).arg(&ready).spawn().unwrap();
    while !ready.exists() {
        assert!(child.try_wait().unwrap().is_none());
        std::thread::yield_now();
    }
    let waiting = async {
        let keys = [key("b.fidx")];
        let mut announcing = Box::pin(backend.record_moves(&keys));
        let pause = backend.runtime().sleep(Duration::from_millis(100));
        let is_kept_out = futures::future::select(&mut announcing, pause).await;
        assert!(matches!(is_kept_out, futures::future::Either::Right(_)));
        child.kill().unwrap();
        child.wait().unwrap();
        announcing.await.unwrap();
    };
    block_on(waiting);
    assert_eq!(block_on(pending_moves(&backend)).0.len(), 2);
}

/// Proves H9.
#[test]
fn orphan_indexes_are_found() {
    block_on(async {
        let scratch = larder_testing::scratch();
        let root = scratch.path();
        let backend = create(root).await;
        for path in [
            "odd/a.fidx",
            "odd/deep/er/b.didx",
            "odd/.hidden/c.fidx",
            "odd/.d.fidx",
            "odd/other.txt",
            "vm/1/e.fidx",
            "vm/1/not a time/f.didx",
            "vm/1/g.blob",
            "lost+found/h.fidx",
            &format!("{SNAPSHOT}/i.fidx"),
        ] {
            write(root, path);
        }
        std::os::unix::fs::symlink(root.join("odd"), root.join("odd/loop")).unwrap();
        let foreign = foreign(&backend).await;
        let mut found = backend.orphans(&foreign).await.unwrap();
        found.sort_by(|one, other| one.path.cmp(&other.path));
        let wanted =
            ["odd/a.fidx", "odd/deep/er/b.didx", "vm/1/e.fidx", "vm/1/not a time/f.didx"].map(Orphan::new);
        assert_eq!(found, wanted);
        for orphan in &found {
            let bytes = backend.get_orphan(orphan, 1000).await.unwrap();
            assert_eq!(bytes, path_bytes(&root.join("x")));
            assert_eq!(backend.get_orphan(orphan, 3).await.unwrap_err().kind(), ErrorKind::Corrupt);
        }
        // A link may be all that leads to an index.
        std::os::unix::fs::symlink(root.join("odd/a.fidx"), root.join("odd/link.fidx")).unwrap();
        let behind = backend.orphans(&foreign).await.unwrap_err();
        assert_eq!((behind.kind(), behind.subject()), (ErrorKind::Corrupt, Some("odd/link.fidx")));
        for (path, kind) in [
            ("odd/none.fidx", ErrorKind::NotFound),
            ("odd/link.fidx", ErrorKind::Corrupt),
            ("odd/loop/a.fidx", ErrorKind::Corrupt),
            ("odd/../odd/a.fidx", ErrorKind::InvalidInput),
            ("/etc/hostname", ErrorKind::InvalidInput),
            ("", ErrorKind::InvalidInput),
            ("odd/a\0.fidx", ErrorKind::InvalidInput),
        ] {
            assert_eq!(
                backend.get_orphan(&Orphan::new(path), 1000).await.unwrap_err().kind(),
                kind,
                "{path}"
            );
        }
        // A vanished file is not a failure.
        fs::remove_dir_all(root.join("odd")).unwrap();
        assert_eq!(backend.orphans(&foreign).await.unwrap().len(), 2);
        // A failed lookup is one.
        let odd = root.join("vm/1/not a time").join(std::ffi::OsStr::from_bytes(b"\xff.fidx"));
        fs::write(&odd, b"x").unwrap();
        assert_eq!(backend.orphans(&foreign).await.unwrap_err().kind(), ErrorKind::Corrupt);
        fs::rename(&odd, root.join("vm/1").join(std::ffi::OsStr::from_bytes(b"\xff.fidx"))).unwrap();
        let foreign = self::foreign(&backend).await;
        assert!(backend.orphans(&foreign).await.is_err());
    });
}

/// Proves H9.
///
/// Runs again as another user, because root may read everything.
#[test]
fn an_unreadable_directory_is_an_error_unless_it_is_lost_and_found() {
    const NAME: &str = "leftovers::an_unreadable_directory_is_an_error_unless_it_is_lost_and_found";
    if let Some(root) = std::env::var_os("LARDER_DENIED") {
        return denied(Path::new(&root));
    }
    let scratch = larder_testing::scratch();
    fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let root = scratch.path().join("store");
    block_on(create(&root));
    for path in ["odd/lost+found/a.fidx", "odd/deep/lost+found/a.fidx", "closed/a.fidx"] {
        write(&root, path);
        let parent = root.join(path).parent().unwrap().to_owned();
        fs::set_permissions(parent, fs::Permissions::from_mode(0o000)).unwrap();
    }
    if fs::metadata(&root).unwrap().uid() != 0 {
        return denied(&root);
    }
    let (this, test) = (std::env::current_exe().unwrap(), scratch.path().join("test"));
    fs::hard_link(&this, &test).or_else(|_| fs::copy(&this, &test).map(drop)).unwrap();
    fs::set_permissions(root.join(".chunks"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new(&test);
    command.args(["--exact", NAME]).env("LARDER_DENIED", &root).uid(65_534).gid(65_534);
    assert!(command.status().unwrap().success());
}

fn denied(root: &Path) {
    let backend = block_on(FsBackend::open(runtime(), root, on_demand())).unwrap();
    let orphans = |path: &str| block_on(backend.orphans(&[path.to_owned()]));
    assert_eq!(orphans("odd/lost+found/").unwrap(), []);
    assert_eq!(orphans("closed/").unwrap_err().kind(), ErrorKind::Denied);
    assert_eq!(orphans("odd/deep/").unwrap_err().kind(), ErrorKind::Denied);
}

/// Proves H34.
#[test]
fn only_old_temporary_files_of_this_crate_are_removed() {
    block_on(async {
        let scratch = larder_testing::scratch();
        let root = scratch.path();
        let backend = create(root).await;
        let digest = Digest::of(b"x").to_string();
        let chunk = format!(".chunks/{}/{digest}", &digest[..4]);
        let other = "vm/2/2025-07-14T14:20:02Z";
        let leftovers = [
            format!("{chunk}.tmp_AbCdE1"),
            format!("{chunk}.0.bad.tmp_AbCdE1"),
            format!("{SNAPSHOT}/index.json.blob.tmp_AbCdE1"),
            format!("{SNAPSHOT}/disk.img.fidx.tmp_AbCdE1"),
            format!("{SNAPSHOT}/.protected.tmp_AbCdE1"),
            format!("{other}/client.log.blob.tmp_AbCdE1"),
            "vm/1/owner.tmp_AbCdE1".to_owned(),
            "ns/a/vm/1/notes.tmp_AbCdE1".to_owned(),
        ];
        let left_alone = [
            format!("{chunk}.tmp_AbCdE"),
            format!("{chunk}.tmp_AbCdE-"),
            format!("{chunk}.using"),
            format!(".chunks/{}/x.tmp_AbCdE1", &digest[..4]),
            format!("{SNAPSHOT}/index.json.tmp_AbCdE1"),
            format!("{SNAPSHOT}/disk.img.tmp_fidx"),
            format!("{SNAPSHOT}/notes.txt.tmp_AbCdE1"),
            "vm/1/mine.tmp_AbCdE1".to_owned(),
            "odd/owner.tmp_AbCdE1".to_owned(),
        ];
        for path in leftovers.iter().chain(&left_alone) {
            write(root, path);
        }
        let directory = format!("{SNAPSHOT}/dir.blob.tmp_AbCdE1");
        fs::create_dir_all(root.join(&directory)).unwrap();
        let link = format!("{SNAPSHOT}/link.blob.tmp_AbCdE1");
        std::os::unix::fs::symlink(root.join("vm"), root.join(&link)).unwrap();
        backend.put(&key("kept.blob"), "x".into(), PutMode::Create).await.unwrap();
        let mut all = foreign(&backend).await;
        all.extend([directory.clone(), link.clone(), key("kept.blob").to_string()]);
        assert_eq!(backend.remove_leftovers(&all, Duration::from_mins(10)).await.unwrap(), 0, "all are new");
        let old = backend.runtime().now() - Duration::from_mins(20);
        for path in leftovers.iter().chain(&left_alone) {
            fs::File::options().write(true).open(root.join(path)).unwrap().set_modified(old).unwrap();
        }
        let one = &leftovers[..1];
        assert_eq!(backend.remove_leftovers(one, Duration::from_mins(30)).await.unwrap(), 0);
        assert_eq!(backend.remove_leftovers(one, Duration::from_mins(10)).await.unwrap(), 1);
        let rest = leftovers.len() as u64 - 1;
        assert_eq!(backend.remove_leftovers(&all, Duration::from_mins(10)).await.unwrap(), rest);
        assert!(leftovers.iter().all(|path| !root.join(path).exists()));
        assert!(left_alone.iter().chain([&directory]).all(|path| root.join(path).exists()));
        assert!(fs::symlink_metadata(root.join(link)).is_ok());
        assert!(backend.head(&key("kept.blob")).await.is_ok());
        assert!(!root.join("vm/2").exists(), "nothing was left in it");
        assert_eq!(backend.remove_leftovers(&all, Duration::from_mins(10)).await.unwrap(), 0);
    });
}
