//! Links, pipes, sockets, devices and directories in the place of an index, a snapshot, a group, a type or a namespace (H78).

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use futures::executor::block_on;
use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::error::{Error, ErrorKind};
use larder::format::name::{Namespace, SnapshotName};
use larder::prune::{self, PruneOptions};
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, Scope, SnapshotState};
use larder::sync::{self, SyncOptions};
use larder::verify::{self, VerifyOptions};
use larder_testing::gc_scene::{
    at_once, back_up, check, chunks, collect, collected, created, digests, leave,
};
use rustix::fs::{CWD, FileType, Mode, mknodat};

const GROUP: &str = "ns/a/host/x";

/// A store with a snapshot in a namespace and another one in the root.
struct Scene {
    /// Entries that were moved out of the store.
    moved_away: tempfile::TempDir,
    backend: Arc<dyn Backend>,
    directory: tempfile::TempDir,
    snapshot: SnapshotName,
    store: Datastore,
}

impl Scene {
    async fn new() -> Self {
        let (directory, backend, store) = empty().await;
        store.create_namespace(&namespace()).await.unwrap();
        leave(&store, &[8, 9]).await;
        let snapshot = back_up(&store, GROUP, &[1, 2]).await.unwrap().name().clone();
        drop(back_up(&store, "vm/100", &[3]).await.unwrap());
        Self { moved_away: larder_testing::scratch(), backend, directory, snapshot, store }
    }

    fn root(&self) -> &Path {
        self.directory.path()
    }

    /// The places of content, from the index to the directory of all namespaces.
    fn places(&self) -> [String; 7] {
        let snapshot = &self.snapshot;
        let fixed = ["ns/a/host/x", "ns/a/host", "ns/a", "ns"].map(str::to_owned);
        let [group, kind, namespace, namespaces] = fixed;
        let (index, manifest) = (format!("{snapshot}/d.img.fidx"), format!("{snapshot}/index.json.blob"));
        [index, manifest, snapshot.to_string(), group, kind, namespace, namespaces]
    }

    /// Puts something else in the place of an entry, which is kept.
    fn replace(&self, place: &str, kind: Odd) -> bool {
        let (here, there) = (self.root().join(place), self.moved_away.path().join("kept"));
        fs::rename(&here, &there).unwrap();
        let made = kind.make(&here, &there);
        if !made {
            fs::rename(&there, &here).unwrap();
        }
        made
    }

    /// Puts the entry back.
    fn restore(&self, place: &str) {
        let here = self.root().join(place);
        if here.is_dir() && !here.is_symlink() { fs::remove_dir_all(&here) } else { fs::remove_file(&here) }
            .unwrap();
        fs::rename(self.moved_away.path().join("kept"), here).unwrap();
    }

    /// Returns `true` if listings show the snapshot as whole.
    async fn is_listed_as_finished(&self) -> bool {
        // An error says that it cannot be listed.
        let Ok(namespaces) = self.store.namespaces(&Namespace::root()).await else { return false };
        for namespace in namespaces {
            let Ok(groups) = self.store.groups(&namespace).await else { continue };
            for group in groups {
                let Ok(found) = self.store.snapshots(&group).await else { continue };
                let is_it = |name: &SnapshotName| *name == self.snapshot;
                if found.iter().any(|info| is_it(&info.name) && info.state == SnapshotState::Finished) {
                    return true;
                }
            }
        }
        false
    }
}

async fn empty() -> (tempfile::TempDir, Arc<dyn Backend>, Datastore) {
    let directory = larder_testing::scratch();
    let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
    let options = options.sync_level(SyncLevel::None);
    let backend = FsBackend::create(Arc::new(ThreadRuntime::new()), directory.path(), options).await.unwrap();
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let store = created(&backend).await;
    (directory, backend, store)
}

fn namespace() -> Namespace {
    "a".parse().unwrap()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Odd {
    Device,
    Directory,
    Fifo,
    /// A link to the entry that was moved away.
    Link,
    /// A link to nothing: the disk behind it is not mounted.
    LinkToNothing,
    Socket,
}

impl Odd {
    const ALL: [Self; 6] =
        [Self::Device, Self::Directory, Self::Fifo, Self::Link, Self::LinkToNothing, Self::Socket];

    /// Returns `false` if it cannot be created: only root makes devices.
    fn make(self, here: &Path, there: &Path) -> bool {
        let node = |kind, device| mknodat(CWD, here, kind, Mode::from_raw_mode(0o644), device);
        match self {
            Self::Device => {
                let made = node(FileType::CharacterDevice, rustix::fs::makedev(1, 3));
                if made.is_err() {
                    println!("skipped: a device could not be made");
                }
                return made.is_ok();
            }
            Self::Directory => {
                fs::create_dir(here).unwrap();
                fs::rename(there, here.join("kept")).unwrap();
                fs::copy(here.join("kept"), there).unwrap();
            }
            Self::Fifo => node(FileType::Fifo, 0).unwrap(),
            Self::Link => symlink(there, here).unwrap(),
            Self::LinkToNothing => symlink(there.join("nothing"), here).unwrap(),
            Self::Socket => drop(UnixListener::bind(short(here)).unwrap()),
        }
        true
    }
}

/// The path by way of a descriptor: addresses of sockets are at most 107 bytes long.
fn short(path: &Path) -> PathBuf {
    use std::os::fd::IntoRawFd as _;
    // It stays open for as long as the test runs.
    let parent = fs::File::open(path.parent().unwrap()).unwrap().into_raw_fd();
    Path::new("/proc/self/fd").join(parent.to_string()).join(path.file_name().unwrap())
}

fn names(error: &Error, place: &str) -> bool {
    error.subject().is_some_and(|subject| subject.trim_end_matches('/') == place)
}

/// Proves H78.
#[test]
fn no_chunk_is_removed_while_an_index_could_be_behind_an_unreadable_entry() {
    block_on(async {
        let scene = Scene::new().await;
        let all = digests([1, 2, 3, 8, 9]);
        for place in scene.places() {
            let is_file = place.ends_with(".fidx") || place.ends_with(".blob");
            for kind in Odd::ALL {
                let what = format!("{kind:?} at {place}");
                if (kind == Odd::Directory && !is_file) || !scene.replace(&place, kind) {
                    continue;
                }
                let stopped = collect(&scene.store, at_once()).await.expect_err(&what);
                assert_eq!(stopped.kind(), ErrorKind::Corrupt, "{what}: {stopped:?}");
                assert!(names(&stopped, &place), "{what}: {stopped:?}");
                assert_eq!(chunks(scene.backend.as_ref()).await, all, "{what}");
                assert!(!scene.is_listed_as_finished().await, "{what}");
                scene.restore(&place);
                assert!(scene.is_listed_as_finished().await, "{what}");
            }
        }
        collected(&scene.store, at_once()).await;
        assert_eq!(chunks(scene.backend.as_ref()).await, digests([1, 2, 3]));
        check(&scene.store.snapshot(&scene.snapshot).await.unwrap()).await.unwrap();
    });
}

/// Proves H78.
#[test]
fn verification_reports_unreadable_entries() {
    block_on(async {
        let scene = Scene::new().await;
        for place in scene.places() {
            for kind in [Odd::Link, Odd::Fifo] {
                scene.replace(&place, kind);
                let mut plan =
                    verify::plan(&scene.store, &Scope::Store, VerifyOptions::default()).await.unwrap();
                let report = plan.execute().await.unwrap();
                let what = format!("{kind:?} at {place}: {report:?}");
                assert!(!report.is_clean(), "{what}");
                assert_eq!(report.sound, 1, "{what}");
                assert_eq!(report.unreadable.len(), 1, "{what}");
                assert_eq!(report.unreadable[0].path, place, "{what}");
                let is_below = place.starts_with(&scene.snapshot.to_string());
                assert_eq!(report.damaged.len(), usize::from(is_below), "{what}");
                scene.restore(&place);
            }
        }
    });
}

/// Proves H78.
#[test]
fn an_unreadable_snapshot_is_neither_deleted_nor_moved_nor_treated_as_a_leftover() {
    block_on(async {
        let scene = Scene::new().await;
        let store = &scene.store;
        let other: Namespace = "b".parse().unwrap();
        store.create_namespace(&other).await.unwrap();
        for place in &scene.places()[..4] {
            for kind in [Odd::Link, Odd::Fifo] {
                scene.replace(place, kind);
                let what = format!("{kind:?} at {place}");
                let unreadable = |error: &Error| error.kind() == ErrorKind::Corrupt;
                let deleted = store.delete_snapshot(&scene.snapshot).await.expect_err(&what);
                assert!(unreadable(&deleted), "{what}: {deleted:?}");
                let deleted = store.delete_group(scene.snapshot.group()).await.expect_err(&what);
                assert!(unreadable(&deleted), "{what}: {deleted:?}");
                let scope = Scope::Snapshots(vec![scene.snapshot.clone()]);
                if let Ok(mut plan) = prune::plan_deletion(store, &scope, PruneOptions::default()).await {
                    let report = plan.execute().await.unwrap();
                    assert!(!format!("{report:?}").contains("Removed"), "{what}: {report:?}");
                }
                match store.move_group(scene.snapshot.group(), &other).await {
                    Ok(moved) => assert!(!moved.is_complete(), "{what}: {moved:?}"),
                    Err(error) => assert!(unreadable(&error), "{what}: {error:?}"),
                }
                // The next backup of the group removes what dead writers left, and not this.
                let next = back_up(store, GROUP, &[1]).await;
                scene.restore(place);
                check(&store.snapshot(&scene.snapshot).await.expect(&what)).await.expect(&what);
                if let Ok(next) = next {
                    store.delete_snapshot(next.name()).await.unwrap();
                }
            }
        }
    });
}

/// Proves H78.
#[test]
fn a_sync_deletes_no_snapshot_that_a_link_hides_at_the_source() {
    block_on(async {
        let scene = Scene::new().await;
        let (_directory, _, target) = empty().await;
        let options = || SyncOptions::default().remove_vanished();
        let copied = sync::plan(&scene.store, &target, options()).await.unwrap().execute().await.unwrap();
        assert!(copied.is_complete(), "{copied:?}");
        for place in scene.places() {
            scene.replace(&place, Odd::Link);
            if let Ok(mut plan) = sync::plan(&scene.store, &target, options()).await {
                assert_eq!(plan.vanished().snapshots, [], "{place}");
                let report = plan.execute().await.unwrap();
                assert_eq!(report.removed, [], "{place}");
            }
            check(&target.snapshot(&scene.snapshot).await.unwrap()).await.unwrap();
            scene.restore(&place);
        }
    });
}

/// Proves H78.
#[test]
fn an_index_under_a_name_of_another_case_keeps_its_chunks() {
    block_on(async {
        let scene = Scene::new().await;
        let index = format!("{}/d.img.fidx", scene.snapshot);
        let renamed = [
            ("ns".to_owned(), "Ns".to_owned()),
            ("ns/a/host".to_owned(), "ns/a/HOST".to_owned()),
            (scene.snapshot.to_string(), scene.snapshot.to_string().to_lowercase()),
            (index.clone(), index.replace("d.img.fidx", "D.IMG.FIDX")),
        ];
        for (from, to) in &renamed {
            let (here, there) = (scene.root().join(from), scene.root().join(to));
            fs::rename(&here, &there).unwrap();
            collected(&scene.store, at_once()).await;
            assert_eq!(chunks(scene.backend.as_ref()).await, digests([1, 2, 3]), "{to}");
            let kept = scene.moved_away.path().join("kept");
            fs::rename(&there, &kept).unwrap();
            symlink(&kept, &there).unwrap();
            let stopped = collect(&scene.store, at_once()).await.expect_err(to);
            assert!(names(&stopped, to), "{stopped:?}");
            fs::remove_file(&there).unwrap();
            fs::rename(&kept, &here).unwrap();
        }
    });
}

/// Proves H78.
#[test]
fn unreadable_entries_where_no_index_can_be_do_not_stop_a_collection() {
    block_on(async {
        let scene = Scene::new().await;
        for place in ["current", "readme", "ns/a/host/x/latest", "moved_away/link"] {
            let path = scene.root().join(place);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            symlink(scene.root().join(GROUP), path).unwrap();
        }
        mknodat(CWD, scene.root().join("pipe"), FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
        collected(&scene.store, at_once()).await;
        assert_eq!(chunks(scene.backend.as_ref()).await, digests([1, 2, 3]));
        assert!(scene.is_listed_as_finished().await);
        // Where a stray index could lie, a link ends the run.
        symlink(scene.root().join("nothing"), scene.root().join("moved_away/old.didx")).unwrap();
        let stopped = collect(&scene.store, at_once()).await.unwrap_err();
        assert!(names(&stopped, "moved_away/old.didx"), "{stopped:?}");
    });
}

/// Proves H78.
#[test]
fn an_unreadable_directory_ends_a_collection_with_an_error_that_names_it() {
    const NAME: &str = "unreadable::an_unreadable_directory_ends_a_collection_with_an_error_that_names_it";
    if rustix::process::geteuid().is_root() {
        // Root may read everything, so another user runs this, from a directory that it may read.
        let directory = larder_testing::scratch();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let (test, this) = (directory.path().join("test"), std::env::current_exe().unwrap());
        fs::hard_link(&this, &test).or_else(|_| fs::copy(&this, &test).map(drop)).unwrap();
        let mut command = Command::new(&test);
        command.args(["--exact", NAME]).env("TMPDIR", directory.path()).uid(65_534).gid(65_534);
        assert!(command.status().unwrap().success());
        return;
    }
    block_on(async {
        let scene = Scene::new().await;
        for place in &scene.places()[2..] {
            for mode in [0o000, 0o600] {
                let path = scene.root().join(place);
                fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
                let stopped = collect(&scene.store, at_once()).await.expect_err(place);
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
                let subject = stopped.subject().unwrap_or_default();
                assert!(stopped.kind() == ErrorKind::Denied && subject.starts_with(place), "{stopped:?}");
                assert_eq!(chunks(scene.backend.as_ref()).await, digests([1, 2, 3, 8, 9]));
            }
        }
    });
}
