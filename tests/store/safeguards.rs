//! Safety rules that matter only when two rare things happen together. Each test was observed to fail without its rule.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::io::Cursor;
use larder::backend::{
    Backend, Capabilities, FsBackend, FsOptions, LockReach, MemoryBackend, PrefixDirectories, PutMode,
    Removal, SyncLevel,
};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::format::name::{Namespace, SnapshotName};
use larder::gc;
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::record::Method;
use larder::prune::{self, PruneOptions};
use larder::rt::{Runtime as _, SimRuntime, ThreadRuntime};
use larder::store::{Datastore, DirtyMap, Protection, Relocated, Scope};
use larder::sync::{self, SyncOptions, SyncOutcome};
use larder::verify::{self, VerifyMode, VerifyOptions, VerifyReport};
use larder_testing::broken::LackingBackend;
use larder_testing::gc_scene;
use larder_testing::gc_scene::{CHUNK, at_once, back_up, created, data, digest, group, restored};
use larder_testing::watched::Watched;

const MINUTE: Duration = Duration::from_mins(1);

/// A store in memory that fails by rules.
async fn faulty(sim: &SimRuntime) -> (Arc<FaultBackend>, Datastore) {
    let faults = Arc::new(FaultBackend::new(memory(sim)));
    let store = created(&as_backend(&faults)).await;
    (faults, store)
}

/// A store in memory, at each call of which a test can do something.
async fn watched(sim: &SimRuntime) -> (Arc<Watched>, Datastore) {
    let watched = Watched::new(memory(sim));
    let store = created(&as_backend(&watched)).await;
    (watched, store)
}

fn memory(sim: &SimRuntime) -> Arc<dyn Backend> {
    Arc::new(MemoryBackend::new(Arc::new(sim.clone())))
}

fn as_backend<B: Backend>(backend: &Arc<B>) -> Arc<dyn Backend> {
    Arc::<B>::clone(backend)
}

async fn get(backend: &dyn Backend, key: &Key) -> Bytes {
    backend.get(key, 1 << 20).await.unwrap().bytes
}

async fn replace(backend: &dyn Backend, key: &Key, bytes: impl Into<Bytes>) {
    backend.put(key, bytes.into(), PutMode::Replace).await.unwrap();
}

async fn remove(backend: &dyn Backend, key: &Key) {
    backend.delete(&[Removal::any(key.clone())]).await.unwrap().remove(0).unwrap();
}

/// Flips a bit of a chunk, and returns the chunk as it was.
async fn damage(backend: &dyn Backend, number: u64) -> Bytes {
    let key = Key::Chunk(digest(number));
    let good = get(backend, &key).await;
    let mut bad = good.to_vec();
    bad[20] ^= 1;
    replace(backend, &key, bad).await;
    good
}

async fn verified(store: &Datastore) -> VerifyReport {
    verify::plan(store, &Scope::Store, VerifyOptions::default()).await.unwrap().execute().await.unwrap()
}

fn kind<T: std::fmt::Debug>(result: Result<T, larder::error::Error>) -> ErrorKind {
    result.unwrap_err().kind()
}

/// The clean-up of a backup removes what that backup stored, by version, and nothing that replaced it (H39).
#[test]
fn an_aborted_backup_keeps_objects_that_another_writer_replaced() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let (faults, store) = faulty(&sim).await;
        let backup = store.backup(&group("host/a")).begin().await.unwrap();
        backup.blob("app.conf", "ours").await.unwrap();
        let key = Key::Archive(backup.name().clone(), "app.conf.blob".parse().unwrap());
        replace(faults.as_ref(), &key, "theirs").await;
        backup.abort().await.unwrap();
        assert_eq!(get(faults.as_ref(), &key).await, "theirs");
    });
}

/// Files of a snapshot whose manifest may still arrive stay: it must find them (I6).
#[test]
fn a_snapshot_with_a_pending_manifest_put_is_not_deleted() {
    let sim = SimRuntime::new(2);
    sim.block_on(async {
        let (faults, store) = faulty(&sim).await;
        let late = Action::Late(5 * MINUTE, ErrorKind::Unavailable);
        faults.add(Rule::on(Method::Put, late).keys(|key| matches!(key, Key::Manifest(_))).nth(1));
        let backup = store.backup(&group("host/a")).begin().await.unwrap();
        let bytes = data(&[1, 2]);
        backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64).await.unwrap();
        let name = backup.name().clone();
        assert_eq!(kind(backup.finish().await), ErrorKind::Unavailable);
        assert_eq!(kind(store.delete_snapshot(&name).await), ErrorKind::Busy);
        sim.sleep(10 * MINUTE).await;
        assert_eq!(restored(&store.snapshot(&name).await.unwrap()).await.unwrap(), data(&[1, 2]));
    });
}

/// Both kinds of requests without an answer name the time after which they are over.
#[test]
fn a_refusal_for_a_pending_request_says_when_to_try_again() {
    let sim = SimRuntime::new(5);
    sim.block_on(async {
        let (faults, store) = faulty(&sim).await;
        let late = |method| Rule::on(method, Action::Late(5 * MINUTE, ErrorKind::Unavailable));
        faults.add(late(Method::Put).keys(|key| matches!(key, Key::Manifest(_))).nth(1));
        let backup = store.backup(&group("host/a")).begin().await.unwrap();
        backup.blob("a.conf", "a").await.unwrap();
        let name = backup.name().clone();
        assert_eq!(kind(backup.finish().await), ErrorKind::Unavailable);
        let wait = store.delete_snapshot(&name).await.unwrap_err().retry_after().unwrap();
        assert!(wait > 25 * MINUTE && wait <= 31 * MINUTE, "{wait:?}");
        sim.sleep(wait).await;
        faults.add(late(Method::Delete).keys(|key| matches!(key, Key::Protected(_))).nth(1));
        store.set_protection(&name, Protection::On).await.unwrap();
        assert_eq!(kind(store.set_protection(&name, Protection::Off).await), ErrorKind::Unavailable);
        let wait = store.set_protection(&name, Protection::On).await.unwrap_err().retry_after().unwrap();
        sim.sleep(wait).await;
        store.set_protection(&name, Protection::On).await.unwrap();
        store.set_protection(&name, Protection::Off).await.unwrap();
        store.delete_snapshot(&name).await.unwrap();
    });
}

/// An answered deletion says nothing about an earlier one without an answer (H17).
#[test]
fn protection_is_not_acknowledged_while_a_delete_of_its_mark_is_pending() {
    let sim = SimRuntime::new(3);
    sim.block_on(async {
        let (faults, store) = faulty(&sim).await;
        let name = back_up(&store, "host/a", &[1]).await.unwrap().name().clone();
        store.set_protection(&name, Protection::On).await.unwrap();
        let late = Action::Late(5 * MINUTE, ErrorKind::Unavailable);
        faults.add(Rule::on(Method::Delete, late).keys(|key| matches!(key, Key::Protected(_))).nth(1));
        assert_eq!(kind(store.set_protection(&name, Protection::Off).await), ErrorKind::Unavailable);
        store.set_protection(&name, Protection::Off).await.unwrap();
        assert_eq!(kind(store.set_protection(&name, Protection::On).await), ErrorKind::Busy);
        sim.sleep(31 * MINUTE).await;
        store.set_protection(&name, Protection::On).await.unwrap();
        sim.sleep(31 * MINUTE).await;
        assert_eq!(kind(store.delete_snapshot(&name).await), ErrorKind::Denied);
    });
}

/// No base vouches for a chunk that a read found corrupt (H99, D9).
#[test]
fn a_clean_extent_with_a_corrupt_chunk_fails_the_backup() {
    let sim = SimRuntime::new(4);
    sim.block_on(async {
        let (faults, store) = faulty(&sim).await;
        let base = back_up(&store, "host/a", &[1, 2]).await.unwrap();
        damage(faults.as_ref(), 1).await;
        assert_eq!(kind(restored(&base).await), ErrorKind::Corrupt);
        let backup = store.backup(&group("host/a")).begin().await.unwrap();
        let bytes = data(&[1, 2]);
        let image = backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64).chunk_bytes(CHUNK as u64);
        assert_eq!(kind(image.base(&base).dirty(DirtyMap::new()).await), ErrorKind::Corrupt);
    });
}

/// A chunk that a listing does not show yet is looked for by name before it counts as missing (H13).
#[test]
fn a_chunk_absent_only_from_the_listing_is_not_missing() {
    let sim = SimRuntime::new(5);
    sim.block_on(async {
        let watched = Watched::bucket(memory(&sim));
        let store = created(&as_backend(&watched)).await;
        drop(back_up(&store, "host/a", &[1, 2]).await.unwrap());
        let key = Key::Chunk(digest(1));
        let bytes = get(watched.as_ref(), &key).await;
        remove(watched.as_ref(), &key).await;
        watched.hide_what_is_new();
        replace(watched.as_ref(), &key, bytes).await;
        let plan = gc::plan(&store, at_once()).await.unwrap();
        assert_eq!((plan.summary().missing, plan.summary().damaged_count), (0, 0));
        drop(plan);
        let options = VerifyOptions::default().mode(VerifyMode::Presence);
        let mut plan = verify::plan(&store, &Scope::Store, options).await.unwrap();
        assert!(plan.execute().await.unwrap().is_clean());
    });
}

/// A manifest says whose it is, so that one in another place vouches for nothing (H39).
#[test]
fn a_manifest_in_the_place_of_another_snapshot_is_corrupt() {
    let sim = SimRuntime::new(5);
    sim.block_on(async {
        let (watched, store) = watched(&sim).await;
        let mut names = Vec::new();
        for group in ["host/a", "host/b"] {
            names.push(back_up(&store, group, &[1, 2]).await.unwrap().name().clone());
        }
        let manifest = |at: usize| Key::Manifest(names[at].clone());
        let other = get(watched.as_ref(), &manifest(1)).await;
        replace(watched.as_ref(), &manifest(0), other).await;
        assert_eq!(kind(store.snapshot(&names[0]).await), ErrorKind::Corrupt);
        store.snapshot(&names[1]).await.unwrap();
    });
}

/// Two reads of a chunk must find it corrupt before it is quarantined: another writer may have healed it in between (H26).
#[test]
fn a_chunk_healed_between_two_reads_is_not_quarantined() {
    let sim = SimRuntime::new(6);
    sim.block_on(async {
        let (watched, store) = watched(&sim).await;
        drop(back_up(&store, "host/a", &[1, 2]).await.unwrap());
        let good = damage(watched.as_ref(), 1).await;
        let backend = as_backend(&watched);
        watched.watch(move |step| {
            let (backend, good) = (Arc::clone(&backend), good.clone());
            Box::pin(async move {
                // The first thing that follows the read that failed.
                if step.method == Method::Put && !step.is_over && step.keys == [Key::Suspects] {
                    replace(backend.as_ref(), &Key::Chunk(digest(1)), good).await;
                }
            })
        });
        let report = verified(&store).await;
        watched.unwatch();
        assert_eq!(report.quarantined, 0, "{report:?}");
        let name = store.latest(&group("host/a")).await.unwrap().unwrap();
        assert_eq!(restored(&store.snapshot(&name).await.unwrap()).await.unwrap(), data(&[1, 2]));
    });
}

/// A writer looks once more for a chunk that was quarantined after it had counted on it (H26).
#[test]
fn a_backup_fails_if_a_chunk_that_it_reuses_was_quarantined() {
    let sim = SimRuntime::new(7);
    sim.block_on(async {
        let (faults, store) = faulty(&sim).await;
        drop(back_up(&store, "host/a", &[1, 2]).await.unwrap());
        let backup = store.backup(&group("host/b")).begin().await.unwrap();
        let bytes = data(&[1]);
        let image = backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64);
        image.chunk_bytes(CHUNK as u64).await.unwrap();
        damage(faults.as_ref(), 1).await;
        assert_eq!(verified(&store).await.quarantined, 1);
        assert_eq!(kind(backup.finish().await), ErrorKind::Conflict);
    });
}

/// A good copy is not reinstated while an earlier deletion of the chunk may still be executed (H17).
#[test]
fn a_chunk_is_not_reinstated_while_its_delete_is_pending() {
    let sim = SimRuntime::new(8);
    sim.block_on(async {
        let faults = Arc::new(FaultBackend::new(Arc::new(LackingBackend::new(memory(&sim)))));
        let store = created(&as_backend(&faults)).await;
        drop(back_up(&store, "host/a", &[1, 2]).await.unwrap());
        let good = damage(faults.as_ref(), 1).await;
        let late = Action::Late(5 * MINUTE, ErrorKind::Unavailable);
        faults.add(Rule::on(Method::Delete, late).keys(|key| matches!(key, Key::Chunk(_))).nth(1));
        assert_eq!(verified(&store).await.quarantined, 0);
        assert_eq!(verified(&store).await.quarantined, 1, "the second deletion is answered");
        replace(faults.as_ref(), &Key::Quarantined(digest(1), 7), good).await;
        assert_eq!(verified(&store).await.reinstated, 0);
        sim.sleep(31 * MINUTE).await;
        assert_eq!(verified(&store).await.reinstated, 1);
    });
}

/// A sync takes no chunk over that was found corrupt in the target (H99).
#[test]
fn a_sync_stores_a_corrupt_chunk_again() {
    let sim = SimRuntime::new(9);
    sim.block_on(async {
        let (_, source) = faulty(&sim).await;
        let (faults, target) = faulty(&sim).await;
        drop(back_up(&source, "host/a", &[1, 2]).await.unwrap());
        let run = async || {
            sync::plan(&source, &target, SyncOptions::default()).await.unwrap().execute().await.unwrap();
        };
        run().await;
        damage(faults.as_ref(), 1).await;
        let name = target.latest(&group("host/a")).await.unwrap().unwrap();
        assert_eq!(kind(restored(&target.snapshot(&name).await.unwrap()).await), ErrorKind::Corrupt);
        sim.sleep(MINUTE).await;
        drop(back_up(&source, "host/a", &[1, 3]).await.unwrap());
        run().await;
        let name = target.latest(&group("host/a")).await.unwrap().unwrap();
        assert_eq!(restored(&target.snapshot(&name).await.unwrap()).await.unwrap(), data(&[1, 3]));
    });
}

/// A copy is compared with its source before it is published (H52).
#[test]
fn a_copy_that_differs_from_its_source_is_not_published() {
    let sim = SimRuntime::new(10);
    sim.block_on(async {
        let (watched, store) = watched(&sim).await;
        drop(back_up(&store, "host/a", &[1, 2]).await.unwrap());
        let space: Namespace = "n".parse().unwrap();
        store.create_namespace(&space).await.unwrap();
        let backend = as_backend(&watched);
        watched.watch(move |step| {
            let backend = Arc::clone(&backend);
            Box::pin(async move {
                if step.method == Method::Copy && step.is_over {
                    replace(backend.as_ref(), &step.keys[1], "something else").await;
                }
            })
        });
        let done = store.copy_group(&group("host/a"), &space).await.unwrap();
        watched.unwatch();
        assert!(matches!(done.groups[0].snapshots[0].outcome, Relocated::Failed(_)), "{done:?}");
        assert!(store.latest(&group("ns/n/host/a")).await.unwrap().is_none());
    });
}

/// A sync leaves an unfinished snapshot alone whose manifest may still arrive (I6).
#[test]
fn a_sync_does_not_replace_a_snapshot_with_a_pending_manifest_put() {
    let sim = SimRuntime::new(11);
    sim.block_on(async {
        let (_, source) = faulty(&sim).await;
        let (faults, target) = faulty(&sim).await;
        let name: SnapshotName = back_up(&source, "host/a", &[1, 2]).await.unwrap().name().clone();
        let late = Action::Late(5 * MINUTE, ErrorKind::Unavailable);
        faults.add(Rule::on(Method::Put, late).keys(|key| matches!(key, Key::Manifest(_))).nth(1));
        let backup = target.backup(name.group()).time(name.time().into()).begin().await.unwrap();
        backup.blob("own.conf", "own").await.unwrap();
        assert_eq!(kind(backup.finish().await), ErrorKind::Unavailable);
        // It says what it could not do.
        let _ = sync::plan(&source, &target, SyncOptions::default()).await.unwrap().execute().await;
        sim.sleep(10 * MINUTE).await;
        let snapshot = target.snapshot(&name).await.unwrap();
        assert_eq!(snapshot.blob("own.conf.blob").await.unwrap(), "own");
    });
}

/// A sync publishes nothing of which a part was removed, and nothing on a base that is gone (H37, H54).
#[test]
fn a_sync_does_not_publish_a_snapshot_that_lost_a_file_or_its_base() {
    for takes_base in [false, true] {
        let sim = SimRuntime::new(12);
        sim.block_on(async {
            let (_, source) = faulty(&sim).await;
            let (watched, target) = watched(&sim).await;
            let first = back_up(&source, "host/a", &[1, 2]).await.unwrap().name().clone();
            sync::plan(&source, &target, SyncOptions::default()).await.unwrap().execute().await.unwrap();
            sim.sleep(MINUTE).await;
            let second = back_up(&source, "host/a", &[1, 3]).await.unwrap().name().clone();
            let (backend, taken) = (as_backend(&watched), first.clone());
            watched.watch(move |step| {
                let (backend, taken) = (Arc::clone(&backend), taken.clone());
                Box::pin(async move {
                    let is_index = step.keys.iter().any(|key| matches!(key, Key::Archive(..)));
                    if step.method == Method::Put && step.is_over && is_index {
                        let key = if takes_base { Key::Manifest(taken) } else { step.keys[0].clone() };
                        remove(backend.as_ref(), &key).await;
                    }
                })
            });
            let _ = sync::plan(&source, &target, SyncOptions::default()).await.unwrap().execute().await;
            watched.unwatch();
            assert_eq!(kind(target.snapshot(&second).await), ErrorKind::NotFound, "{takes_base}");
        });
    }
}

/// A sync replaces no manifest that was changed since it was compared, even if the backend cannot put on a condition (H46, H52).
#[test]
fn a_sync_replaces_no_manifest_that_changed_since_the_comparison() {
    for is_conditional in [false, true] {
        let sim = SimRuntime::new(14);
        sim.block_on(async {
            let (_, source) = faulty(&sim).await;
            let with = |capabilities: &mut Capabilities| capabilities.conditional_put = is_conditional;
            let watched = Watched::with(memory(&sim), with);
            let target = created(&as_backend(&watched)).await;
            let name = back_up(&source, "host/a", &[1, 2]).await.unwrap().name().clone();
            sync::plan(&source, &target, SyncOptions::default()).await.unwrap().execute().await.unwrap();
            source.set_notes(&name, "of the source").await.unwrap();
            let mut plan = sync::plan(&source, &target, SyncOptions::default()).await.unwrap();
            let (other, changed) = (target.clone(), name.clone());
            watched.watch(move |step| {
                let (other, changed) = (other.clone(), changed.clone());
                Box::pin(async move {
                    let is_manifest = step.keys.iter().any(|key| matches!(key, Key::Manifest(_)));
                    if step.method == Method::Get && step.is_over && is_manifest {
                        other.set_notes(&changed, "meanwhile").await.unwrap();
                    }
                })
            });
            let report = plan.execute().await.unwrap();
            watched.unwatch();
            let outcome = &report.snapshots().next().unwrap().outcome;
            assert!(
                matches!(outcome, SyncOutcome::Failed(error) if error.kind() == ErrorKind::Conflict),
                "{is_conditional}: {outcome:?}"
            );
            let manifest = target.snapshot(&name).await.unwrap();
            assert_eq!(manifest.manifest().notes(), Some("meanwhile"), "{is_conditional}");
        });
    }
}

/// Where a lock reaches one process only, holding it does not prove that an unfinished snapshot has no writer (I1).
#[test]
fn an_unfinished_snapshot_is_kept_where_locks_do_not_reach_its_writer() {
    for reach in [LockReach::Everybody, LockReach::Process] {
        let sim = SimRuntime::new(13);
        sim.block_on(async {
            let watched = Watched::with(memory(&sim), |capabilities| capabilities.lock_reach = reach);
            let store = created(&as_backend(&watched)).await;
            let name: SnapshotName = "host/a/2025-01-01T00:00:00Z".parse().unwrap();
            let key = Key::Archive(name, "app.conf.blob".parse().unwrap());
            replace(watched.as_ref(), &key, "half").await;
            let mut plan =
                prune::plan_deletion(&store, &Scope::Group(group("host/a")), PruneOptions::default())
                    .await
                    .unwrap();
            plan.execute().await.unwrap();
            let stays = watched.head(&key).await.is_ok();
            assert_eq!(stays, reach == LockReach::Process);
        });
    }
}

/// An index at a place that no snapshot has keeps its chunks, as in a PBS (H9).
#[test]
fn an_orphan_index_keeps_its_chunks() {
    let directory = larder_testing::scratch();
    futures::executor::block_on(async {
        let runtime = Arc::new(ThreadRuntime::new());
        let options =
            FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None);
        let backend = Arc::new(FsBackend::create(runtime, directory.path(), options).await.unwrap());
        let store = created(&as_backend(&backend)).await;
        let name = back_up(&store, "host/a", &[1, 2]).await.unwrap().name().clone();
        std::fs::create_dir(directory.path().join("attic")).unwrap();
        let index = directory.path().join(name.to_string()).join("d.img.fidx");
        std::fs::copy(index, directory.path().join("attic/kept.fidx")).unwrap();
        store.delete_group(&group("host/a")).await.unwrap();
        for number in [1, 2] {
            let path = directory.path().join(Key::Chunk(digest(number)).to_string());
            let long_ago = filetime::FileTime::from_unix_time(1_000_000_000, 0);
            filetime::set_file_times(path, long_ago, long_ago).unwrap();
        }
        let report = gc_scene::collected(&store, at_once()).await;
        assert_eq!(report.removed.chunks, 0, "{report:?}");
        std::fs::remove_dir_all(directory.path().join("attic")).unwrap();
        assert_eq!(gc_scene::collected(&store, at_once()).await.removed.chunks, 2);
    });
}
