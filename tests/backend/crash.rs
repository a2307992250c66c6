//! Crashes: after every single change to the disk, with what was not flushed lost in different ways (D23).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories, PutMode, SyncLevel, Touched};
use larder::chunker::FixedChunker;
use larder::error::{Error, ErrorKind};
use larder::format::Digest;
use larder::format::layout::Key;
use larder::format::name::SnapshotName;
use larder::gc::{self, GcEnd, GcOptions};
use larder::internal::replay::{DiskOp, DiskRecord, DiskUnderTest as _, Loss};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options, PackOptions, SnapshotReader, SnapshotState, WriterTarget};
use larder_testing::noise;

const GROUP: &str = "host/a";

fn options(level: SyncLevel) -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(level)
}

fn data(version: u64) -> Vec<u8> {
    let mut data = noise(1, 40_000);
    data[10_000..10_100].copy_from_slice(&noise(version, 100));
    data
}

async fn back_up(
    store: &Datastore,
    version: u64,
    base: Option<&SnapshotReader>,
) -> Result<SnapshotReader, Error> {
    let backup = store.backup(&GROUP.parse().unwrap()).begin().await?;
    backup.set_notes(version.to_string());
    let data = data(version);
    backup.blob("c.conf", version.to_string()).await?;
    let image = backup.image("d.img", Cursor::new(&data), 40_000).chunk_bytes(8192);
    let stream =
        backup.stream("s.bin", Cursor::new(&data)).chunker(Box::new(FixedChunker::new(16384).unwrap()));
    if let Some(base) = base {
        image.base(base).await?;
        stream.base(base).await?;
    } else {
        image.await?;
        stream.await?;
    }
    backup.finish().await.map(|finished| finished.snapshot)
}

/// Returns `true` if everything in the snapshot exists and matches its notes.
async fn check(store: &Datastore, name: &SnapshotName) -> Result<(), Error> {
    let snapshot = store.snapshot(name).await?;
    let version: u64 = snapshot.manifest().notes().unwrap().parse().unwrap();
    assert_eq!(snapshot.blob("c.conf.blob").await?, version.to_string());
    for archive in ["d.img.fidx", "s.bin.didx"] {
        let mut target = WriterTarget::new(Cursor::new(Vec::new()));
        snapshot.archive(archive).await?.copy_to(&mut target).await?;
        assert!(target.into_inner().into_inner() == data(version), "{archive} of {name}");
    }
    Ok(())
}

/// The number of changes before each acknowledgement.
struct Recorded {
    created: usize,
    finished: Vec<(usize, SnapshotName)>,
    is_packed: bool,
    record: Arc<DiskRecord>,
}

async fn record(runtime: &Arc<dyn Runtime>, level: SyncLevel, mounts: &[&str], is_packed: bool) -> Recorded {
    let directory = larder_testing::scratch();
    let record = Arc::new(DiskRecord::with_mounts(mounts.iter().copied()));
    let options = options(level).record(Arc::clone(&record));
    let backend = FsBackend::create(Arc::clone(runtime), directory.path(), options).await.unwrap();
    let options = Options::default();
    let options = if is_packed { options.packed(PackOptions::default()) } else { options };
    let store = Datastore::create(Arc::new(backend), options).await.unwrap();
    let created = record.len();
    let mut finished = Vec::new();
    let first = back_up(&store, 2, None).await.unwrap();
    finished.push((record.len(), first.name().clone()));
    let second = back_up(&store, 3, Some(&first)).await.unwrap();
    finished.push((record.len(), second.name().clone()));
    store.backup(&GROUP.parse().unwrap()).begin().await.unwrap().abort().await.unwrap();
    store.set_notes(second.name(), "3").await.unwrap();
    Recorded { created, finished, is_packed, record }
}

async fn after_crash(
    runtime: &Arc<dyn Runtime>,
    recorded: &Recorded,
    steps: usize,
    loss: Loss,
    level: SyncLevel,
) {
    let directory = larder_testing::scratch();
    recorded.record.replay(steps, loss, directory.path()).unwrap();
    let what = format!("{loss:?} after {steps} steps at {level:?}");
    let Some(store) = reopen(runtime, directory.path(), level).await else {
        assert!(steps < recorded.created, "the store is gone: {what}");
        return;
    };
    let found = store.snapshots(&GROUP.parse().unwrap()).await.unwrap();
    let finished: Vec<_> = found.iter().filter(|info| info.state == SnapshotState::Finished).collect();
    for info in &finished {
        check(&store, &info.name).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    }
    for (acknowledged, name) in &recorded.finished {
        let there = finished.iter().any(|info| info.name == *name);
        assert!(there || steps < *acknowledged, "{name} was finished and is gone: {what}");
    }
    let base = match finished.last() {
        Some(info) => Some(store.snapshot(&info.name).await.unwrap()),
        None => None,
    };
    let next = back_up(&store, 9, base.as_ref()).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    check(&store, next.name()).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let left = store.snapshots(&GROUP.parse().unwrap()).await.unwrap();
    assert!(left.iter().all(|info| info.state == SnapshotState::Finished), "{what}: leftovers stay");
    if recorded.is_packed {
        collect(&store, steps < recorded.created, &what).await;
    }
}

/// Collections leave no pack but those with chunks of snapshots, which stay whole.
async fn collect(store: &Datastore, may_be_loose: bool, what: &str) {
    let mut packs = 0;
    for _ in 0..2 {
        let options = GcOptions::default().grace(Duration::ZERO).max_garbage(100).max_unused(0);
        let plan = gc::plan(store, options).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        let Some(seen) = plan.summary().packs else {
            assert!(may_be_loose, "{what}: it does not know any more that it is packed");
            return;
        };
        packs = seen.packs.packs - seen.delete.packs;
        assert_eq!(seen.leave.unsettled.packs, 0, "{what}");
        let report = plan.confirm().execute().await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
        assert!(matches!(report.end, GcEnd::Complete), "{what}: {report:?}");
    }
    let snapshots = store.snapshots(&GROUP.parse().unwrap()).await.unwrap();
    for info in &snapshots {
        check(store, &info.name).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    }
    // Each backup stored one, and one more may be of a backup that was not finished, with chunks of the others.
    assert!(packs <= snapshots.len() as u64 + 1, "{what}: {packs} packs");
}

async fn reopen(runtime: &Arc<dyn Runtime>, path: &Path, level: SyncLevel) -> Option<Datastore> {
    let backend = match FsBackend::open(Arc::clone(runtime), path, options(level)).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        backend => backend.unwrap(),
    };
    let backend: Arc<dyn Backend> = Arc::new(backend);
    Some(Datastore::open(backend, Options::default()).await.unwrap())
}

/// The number of seeds of partial loss: large by hand, small in CI.
fn seeds() -> u64 {
    std::env::var("LARDER_CRASH_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(2)
}

fn every_crash(level: SyncLevel, losses: &[Loss]) {
    every_crash_of(level, losses, &[], false);
}

fn every_crash_of(level: SyncLevel, losses: &[Loss], mounts: &[&str], is_packed: bool) {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    block_on(async {
        let recorded = record(&runtime, level, mounts, is_packed).await;
        let steps = recorded.record.len();
        assert!(steps > 40 && recorded.finished[1].0 < steps);
        for step in 0..=steps {
            for loss in losses {
                after_crash(&runtime, &recorded, step, *loss, level).await;
            }
        }
    });
}

fn losses() -> Vec<Loss> {
    let some = (0..seeds()).map(Loss::Some);
    [Loss::Everything, Loss::Nothing, Loss::OnlyBytes].into_iter().chain(some).collect()
}

/// Proves H37, H75.
#[test]
fn every_acknowledged_snapshot_survives_a_crash_at_any_write_with_level_file() {
    every_crash(SyncLevel::File, &losses());
}

/// Proves H37, H75.
#[test]
fn every_acknowledged_snapshot_survives_a_crash_at_any_write_with_level_filesystem() {
    every_crash(SyncLevel::Filesystem, &losses());
}

/// Proves H37, H75.
#[test]
fn every_acknowledged_snapshot_in_packs_survives_a_crash_at_any_write() {
    every_crash_of(SyncLevel::File, &[Loss::Everything, Loss::Some(0)], &[], true);
    every_crash_of(SyncLevel::Filesystem, &[Loss::Everything, Loss::OnlyBytes], &[], true);
    every_crash_of(SyncLevel::None, &[Loss::Nothing], &[], true);
}

#[test]
fn a_killed_process_loses_nothing_at_any_level() {
    every_crash(SyncLevel::None, &[Loss::Nothing]);
}

/// The equipment can find something: without flushing, a power cut does lose what was acknowledged.
#[test]
#[should_panic(expected = "steps at None")]
fn at_level_none_a_power_cut_can_lose_acknowledged_backups() {
    every_crash(SyncLevel::None, &[Loss::Everything]);
}

/// Proves H75.
///
/// Chunks and a group, each on a disk of its own.
#[test]
fn every_acknowledged_snapshot_survives_a_crash_of_a_store_on_several_filesystems() {
    let mounts = &[".chunks", GROUP];
    every_crash_of(SyncLevel::Filesystem, &[Loss::Everything, Loss::OnlyBytes], mounts, false);
    every_crash_of(SyncLevel::File, &[Loss::Everything], mounts, false);
}

/// Proves H75.
///
/// A barrier does not rely on what another one has only begun.
#[test]
fn concurrent_barriers_each_flush_everything_before_them() {
    let directory = larder_testing::scratch();
    let record = Arc::new(DiskRecord::default());
    let options = options(SyncLevel::File).record(Arc::clone(&record));
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let backend = block_on(FsBackend::create(runtime, directory.path().join("store"), options)).unwrap();
    let keys: Vec<_> = (0..100_u8).map(|number| Key::Chunk(Digest::of(&[number]))).collect();
    for key in &keys {
        block_on(backend.put(key, Bytes::new(), PutMode::Create)).unwrap();
    }
    let flushed = || {
        block_on(backend.barrier()).unwrap();
        let ops = record.ops();
        let is_flushed = |key: &Key| {
            let path = key.to_string();
            let (path, _) = path.rsplit_once('/').unwrap();
            ops.contains(&DiskOp::SyncDirectory { path: path.to_owned() })
        };
        keys.iter().filter(|key| is_flushed(key)).count()
    };
    std::thread::scope(|threads| {
        let barriers = [(); 3].map(|()| threads.spawn(flushed));
        for barrier in barriers {
            assert_eq!(barrier.join().unwrap(), 100, "directories were flushed when a barrier returned");
        }
    });
    let before = record.len();
    block_on(backend.barrier()).unwrap();
    assert_eq!(record.len(), before, "what was flushed is not flushed again");
}

/// Proves H37: another process stored the chunk, and died before it was flushed.
#[test]
fn a_reused_chunk_of_another_process_survives_a_crash_after_a_barrier() {
    for is_touched in [false, true] {
        let (directory, after) = (larder_testing::scratch(), larder_testing::scratch());
        let record = Arc::new(DiskRecord::default());
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let path = directory.path().join("store");
        let recorded = |level| options(level).record(Arc::clone(&record));
        let (key, bytes) = (Key::Chunk(Digest::of(b"reused")), Bytes::from_static(b"reused"));
        block_on(async {
            let other = FsBackend::create(Arc::clone(&runtime), &path, recorded(SyncLevel::None));
            other.await.unwrap().put(&key, bytes.clone(), PutMode::Create).await.unwrap();
            let backend =
                FsBackend::open(Arc::clone(&runtime), &path, recorded(SyncLevel::File)).await.unwrap();
            if is_touched {
                let touched = backend.touch(std::slice::from_ref(&key)).await.unwrap();
                assert!(matches!(touched[..], [Touched::Present(_)]));
            } else {
                let stored = backend.put(&key, bytes.clone(), PutMode::Create).await;
                assert_eq!(stored.unwrap_err().kind(), ErrorKind::AlreadyExists);
            }
            backend.barrier().await.unwrap();
            let steps = record.len();
            backend.barrier().await.unwrap();
            assert_eq!(record.len(), steps, "what was flushed is not flushed again");
            record.replay(steps, Loss::Everything, after.path()).unwrap();
            let backend = FsBackend::open(runtime, after.path(), options(SyncLevel::File)).await.unwrap();
            assert_eq!(backend.get(&key, 100).await.unwrap().bytes, bytes, "touched: {is_touched}");
        });
    }
}

/// Proves H37: the directory of an unmounted disk has nothing to flush.
#[test]
fn a_barrier_of_an_unmounted_store_fails() {
    let directory = larder_testing::scratch();
    let (path, elsewhere) = (directory.path().join("store"), directory.path().join("elsewhere"));
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    block_on(async {
        let backend = FsBackend::create(runtime, &path, options(SyncLevel::File)).await.unwrap();
        let key = Key::Chunk(Digest::of(b"stored"));
        backend.put(&key, Bytes::new(), PutMode::Create).await.unwrap();
        std::fs::rename(&path, &elsewhere).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert_eq!(backend.barrier().await.unwrap_err().kind(), ErrorKind::Unavailable);
    });
}
