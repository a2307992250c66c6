//! Hazards between writers, late answers and targets.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::Either;
use futures::io::{AsyncRead, AsyncSeekExt as _, Cursor};
use larder::backend::{
    Backend, FsBackend, FsOptions, MemoryBackend, PrefixDirectories, PutMode, Removal, SyncLevel,
};
use larder::chunker::{Chunker, FixedChunker};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::format::name::{BackupTime, GroupName, SnapshotName};
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::record::{Method, RecordingBackend};
use larder::internal::replay::{DiskRecord, DiskUnderTest as _};
use larder::rt::{Runtime, SimRuntime, ThreadRuntime};
use larder::store::{Datastore, DirtyMap, FileTarget, Options, RestoreTarget, SnapshotReader, WriterTarget};
use larder_testing::noise;

const MIB: usize = 1 << 20;

fn group() -> GroupName {
    "vm/1".parse().unwrap()
}

async fn store_on(backend: Arc<dyn Backend>, options: Options) -> Datastore {
    Datastore::create(backend, options).await.unwrap()
}

fn memory() -> (Arc<dyn Runtime>, Arc<dyn Backend>) {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    (Arc::clone(&runtime), Arc::new(MemoryBackend::new(runtime)))
}

async fn back_up(store: &Datastore, data: &[u8]) -> SnapshotReader {
    let backup = store.backup(&group()).begin().await.unwrap();
    backup.stream("data.bin", Cursor::new(data.to_vec())).await.unwrap();
    backup.image("disk.img", Cursor::new(data.to_vec()), data.len() as u64).await.unwrap();
    backup.finish().await.unwrap().snapshot
}

async fn restored(snapshot: &SnapshotReader, name: &str) -> Vec<u8> {
    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
    snapshot.archive(name).await.unwrap().copy_to(&mut target).await.unwrap();
    target.into_inner().into_inner()
}

/// Proves H42.
///
/// After a power cut between the two, no manifest of a snapshot without files may exist.
#[test]
fn a_deleted_manifest_is_durable_before_its_files_are_deleted() {
    let (_, backend) = memory();
    let record = Arc::new(RecordingBackend::new(backend));
    block_on(async {
        let store = store_on(Arc::<RecordingBackend>::clone(&record), Options::default()).await;
        let name = back_up(&store, &noise(1, 100_000)).await.name().clone();
        record.reset();
        store.delete_snapshot(&name).await.unwrap();
        let calls = record.calls();
        let removal = |of: fn(&Key) -> bool| {
            calls.iter().position(|call| call.method == Method::Delete && call.keys.iter().any(of)).unwrap()
        };
        let manifest = removal(|key| matches!(key, Key::Manifest(_)));
        let rest = removal(|key| matches!(key, Key::Archive(..)));
        let between = calls.get(manifest..rest).unwrap_or_default();
        assert!(between.iter().any(|call| call.method == Method::Barrier), "{calls:#?}");
    });
}

/// Proves I6.
#[test]
fn the_files_of_a_pending_manifest_are_kept() {
    let sim = SimRuntime::new(1);
    let faulty = Arc::new(FaultBackend::new(Arc::new(MemoryBackend::new(Arc::new(sim.clone())))));
    sim.block_on(async {
        let store = store_on(faulty.clone(), Options::default()).await;
        let late = Action::Late(Duration::from_millis(300), ErrorKind::Unavailable);
        faulty.add(Rule::on(Method::Put, late).keys(|key| matches!(key, Key::Manifest(_))).nth(1));
        let backup = store.backup(&group()).begin().await.unwrap();
        backup.stream("data.bin", Cursor::new(noise(1, 100_000))).await.unwrap();
        let name: SnapshotName = backup.name().clone();
        assert_eq!(backup.finish().await.unwrap_err().kind(), ErrorKind::Unavailable);
        // The next backup begins before the manifest arrives, and deletes nothing.
        let next = store.backup(&group()).begin().await.unwrap();
        sim.sleep(Duration::from_secs(1)).await;
        next.finish().await.unwrap();
        let snapshot = store.snapshot(&name).await.unwrap();
        assert_eq!(restored(&snapshot, "data.bin.didx").await, noise(1, 100_000));
    });
}

/// Proves I6.
#[test]
fn a_manifest_whose_put_was_in_doubt_can_turn_out_as_a_finished_snapshot() {
    for kind in [ErrorKind::Unavailable, ErrorKind::Denied, ErrorKind::AlreadyExists] {
        let (_, backend) = memory();
        let faulty = Arc::new(FaultBackend::new(backend));
        block_on(async {
            let store = store_on(faulty.clone(), Options::default()).await;
            let stored = Rule::on(Method::Put, Action::FailAfter(kind));
            faulty.add(stored.keys(|key| matches!(key, Key::Manifest(_))).nth(1));
            let snapshot = back_up(&store, &noise(2, 100_000)).await;
            assert_eq!(restored(&snapshot, "disk.img.fidx").await, noise(2, 100_000), "{kind:?}");
        });
    }
}

/// Proves H37.
#[test]
fn a_backup_that_lost_a_file_is_not_published() {
    let (_, backend) = memory();
    block_on(async {
        let store = store_on(Arc::clone(&backend), Options::default()).await;
        let backup = store.backup(&group()).begin().await.unwrap();
        backup.blob("app.conf", &b"precious"[..]).await.unwrap();
        let key = Key::Archive(backup.name().clone(), "app.conf.blob".parse().unwrap());
        backend.delete(&[Removal::any(key)]).await.unwrap().remove(0).unwrap();
        assert_eq!(backup.finish().await.unwrap_err().kind(), ErrorKind::Conflict);
        assert!(store.latest(&group()).await.unwrap().is_none());
    });
}

/// Proves H157.
#[test]
fn a_restore_that_feeds_a_backup_of_the_same_store_does_not_deadlock() {
    let (_, backend) = memory();
    block_on(async {
        let store = store_on(backend, Options::default().memory_bytes(32 * MIB)).await;
        let data = noise(3, 80 * MIB);
        let snapshot = back_up(&store, &data).await;
        let backup = store.backup(&"vm/2".parse().unwrap()).begin().await.unwrap();
        let mut image = backup.image_writer("disk.img", data.len() as u64).begin().await.unwrap();
        {
            let mut target = Into(&mut image);
            snapshot.archive("data.bin.didx").await.unwrap().copy_to(&mut target).await.unwrap();
        }
        image.finish().await.unwrap();
        let copy = backup.finish().await.unwrap().snapshot;
        assert!(restored(&copy, "disk.img.fidx").await == data);
    });
}

/// Writes what is restored into an image.
struct Into<'a>(&'a mut larder::store::ImageWriter);

#[async_trait::async_trait]
impl RestoreTarget for Into<'_> {
    async fn begin(&mut self, _: u64) -> std::io::Result<()> {
        Ok(())
    }

    async fn write_at(&mut self, offset: u64, data: Bytes) -> std::io::Result<()> {
        self.0.write_at(offset, data).await.map_err(std::io::Error::other)
    }

    async fn write_zeros(&mut self, offset: u64, length: u64) -> std::io::Result<()> {
        self.0.write_zeros(offset, length).await.map_err(std::io::Error::other)
    }

    async fn finish(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_idle_image_writer_blocks_no_other_archive() {
    let (_, backend) = memory();
    block_on(async {
        let store = store_on(backend, Options::default().memory_bytes(32 * MIB)).await;
        let backup = store.backup(&group()).begin().await.unwrap();
        let mut idle = backup.image_writer("idle.img", 400 * MIB as u64).begin().await.unwrap();
        let shared = Bytes::from(noise(4, 4 * MIB));
        for number in 0..12 {
            idle.write_at(number * 4 * MIB as u64, shared.clone()).await.unwrap();
        }
        let data = [shared.to_vec(), noise(5, 20 * MIB)].concat();
        backup.image("b.img", Cursor::new(data.clone()), data.len() as u64).await.unwrap();
        drop(idle);
        let snapshot = backup.finish().await.unwrap().snapshot;
        assert!(restored(&snapshot, "b.img.fidx").await == data);
    });
}

#[test]
fn oversized_notes_are_refused_and_change_nothing() {
    let (_, backend) = memory();
    block_on(async {
        let store = store_on(backend, Options::default()).await;
        let snapshot = back_up(&store, b"data").await;
        let long = "x".repeat(17 * MIB);
        let refused = store.set_notes(snapshot.name(), &long).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        store.snapshot(snapshot.name()).await.unwrap();
        let backup = store.backup(&group()).begin().await.unwrap();
        backup.set_notes(long);
        assert_eq!(backup.finish().await.unwrap_err().kind(), ErrorKind::InvalidInput);
    });
}

/// Proves H174.
#[test]
fn a_reused_target_shows_nothing_of_the_previous_restore() {
    let (runtime, backend) = memory();
    let directory = larder_testing::scratch();
    block_on(async {
        let store = store_on(backend, Options::default()).await;
        let full = back_up(&store, &noise(6, 9 * MIB)).await;
        let empty = back_up(&store, &vec![0; 9 * MIB]).await;
        let path = directory.path().join("image");
        let mut target = FileTarget::create(runtime, &path).await.unwrap();
        // An attempt that ends behind the last byte and before the end.
        target.begin(9 << 20).await.unwrap();
        let full = full.archive("disk.img.fidx").await.unwrap();
        for offset in [0, 4 << 20, 8 << 20] {
            let bytes = full.read_at(offset, 4 << 20).await.unwrap();
            target.write_at(offset, bytes).await.unwrap();
        }
        let empty = empty.archive("disk.img.fidx").await.unwrap();
        empty.copy_to(&mut target).await.unwrap();
        let restored = std::fs::read(&path).unwrap();
        assert!(restored.len() == 9 << 20 && restored.iter().all(|byte| *byte == 0));
        // A target that is finished is not changed any more.
        assert_eq!(empty.copy_to(&mut target).await.unwrap_err().kind(), ErrorKind::Stream);
    });
}

#[test]
fn a_reader_with_a_dirty_map_can_start_at_any_position() {
    let (_, backend) = memory();
    block_on(async {
        let store = store_on(backend, Options::default()).await;
        let mut data = noise(7, 12 * MIB);
        let base = back_up(&store, &data).await;
        data[10] ^= 1;
        let mut reader = Cursor::new(data.clone());
        reader.seek(std::io::SeekFrom::Start(4096)).await.unwrap();
        let map: DirtyMap = std::iter::once(0..4096).collect();
        let backup = store.backup(&group()).begin().await.unwrap();
        backup.image("disk.img", reader, data.len() as u64).base(&base).dirty(map).await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        assert!(restored(&snapshot, "disk.img.fidx").await == data);
    });
}

#[derive(Debug)]
struct TooLarge {
    seen: usize,
}

impl Chunker for TooLarge {
    fn scan(&mut self, data: &[u8]) -> Option<usize> {
        self.seen += data.len();
        let over = self.seen.checked_sub(16 * MIB + 7)?;
        Some(data.len() - over)
    }

    fn max_bytes(&self) -> usize {
        16 * MIB
    }
}

#[test]
fn a_chunker_with_too_large_chunks_is_refused() {
    let (_, backend) = memory();
    block_on(async {
        let store = store_on(backend, Options::default()).await;
        let backup = store.backup(&group()).begin().await.unwrap();
        let stream = backup.stream("data.bin", Cursor::new(noise(8, 20 * MIB)));
        let refused = stream.chunker(Box::new(TooLarge { seen: 0 })).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    });
}

/// Of four chunks at a time, eleven take a tenth of a second each and one takes one second: so does all of them.
#[test]
fn a_slow_chunk_delays_no_other_chunk() {
    const CHUNK: usize = 64 << 10;
    let sim = SimRuntime::new(1);
    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
    let faulty = Arc::new(FaultBackend::new(Arc::new(MemoryBackend::new(Arc::clone(&runtime)))));
    let slowly = |method| {
        faulty.clear();
        let rule = |time| {
            Rule::on(method, Action::Delay(Duration::from_millis(time)))
                .keys(|key| matches!(key, Key::Chunk(_)))
        };
        faulty.add(rule(1000).nth(1));
        faulty.add(rule(100));
        runtime.monotonic()
    };
    let in_time = |start| assert!(runtime.monotonic().saturating_sub(start) < Duration::from_millis(1050));
    sim.block_on(async {
        let store = store_on(faulty.clone(), Options::default()).await;
        let backup = store.backup(&group()).begin().await.unwrap();
        let start = slowly(Method::Put);
        let image = Cursor::new(noise(9, 12 * CHUNK));
        backup.image("disk.img", image, None).chunk_bytes(CHUNK as u64).await.unwrap();
        in_time(start);
        let start = slowly(Method::Put);
        let chunker = Box::new(FixedChunker::new(CHUNK).unwrap());
        backup.stream("data.bin", Cursor::new(noise(10, 12 * CHUNK))).chunker(chunker).await.unwrap();
        in_time(start);
        faulty.clear();
        let snapshot = backup.finish().await.unwrap().snapshot;
        for (name, seed) in [("disk.img.fidx", 9), ("data.bin.didx", 10)] {
            let start = slowly(Method::Get);
            assert!(restored(&snapshot, name).await == noise(seed, 12 * CHUNK));
            in_time(start);
        }
    });
}

#[test]
fn the_cost_of_a_backup_does_not_grow_with_the_snapshots_of_its_group() {
    let cost = |many: u32| {
        block_on(async {
            let scratch = larder_testing::scratch();
            let disk = Arc::new(DiskRecord::default());
            let options = FsOptions::default()
                .prefix_directories(PrefixDirectories::OnDemand)
                .sync_level(SyncLevel::None)
                .record(Arc::clone(&disk));
            let backend = FsBackend::create(Arc::new(ThreadRuntime::new()), scratch.path(), options).await;
            let record = Arc::new(RecordingBackend::new(Arc::new(backend.unwrap())));
            let backend: Arc<dyn Backend> = Arc::<RecordingBackend>::clone(&record);
            let store = Datastore::create(Arc::clone(&backend), Options::default()).await.unwrap();
            let group: GroupName = "host/x".parse().unwrap();
            let first = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
            backend.put(&Key::Owner(group.clone()), "root@pam\n".into(), PutMode::Create).await.unwrap();
            for number in 0..many {
                let time = BackupTime::try_from(first + Duration::from_hours(1) * number).unwrap();
                let name = group.snapshot(time);
                for key in [Key::Manifest(name.clone()), Key::ClientLog(name)] {
                    backend.put(&key, "x".into(), PutMode::Create).await.unwrap();
                }
            }
            let looks = disk.looks();
            record.reset();
            let latest = store.latest(&group).await.unwrap().unwrap();
            let backup = store.backup(&group).begin().await.unwrap();
            assert!(latest.time() < backup.name().time());
            backup.blob("app.conf", "x").await.unwrap();
            backup.finish().await.unwrap();
            (disk.looks() - looks, record.calls().len())
        })
    };
    let (few, many) = (cost(10), cost(300));
    assert_eq!(few, many, "lookups of paths, and calls of the backend");
    assert!(few.0 < 120, "{few:?}");
}

/// Proves H166.
///
/// A backup reads no more of its sources than it may hold while the store answers nothing.
#[test]
fn a_backup_to_a_silent_store_reads_no_more_than_its_memory_budget() {
    const BUDGET: usize = 32 * MIB;
    const CHUNK: usize = 8 * MIB;
    let sim = SimRuntime::new(1);
    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
    let faulty = Arc::new(FaultBackend::new(Arc::new(MemoryBackend::new(Arc::clone(&runtime)))));
    let read = Arc::new(AtomicUsize::new(0));
    sim.block_on(async {
        let store = store_on(faulty.clone(), Options::default().memory_bytes(BUDGET)).await;
        let backup = store.backup(&group()).begin().await.unwrap();
        let delay = Action::Delay(Duration::from_hours(1));
        faulty.add(Rule::on(Method::Put, delay).keys(|key| matches!(key, Key::Chunk(_))));
        let archives = ["a.bin", "b.bin"].map(|name| {
            let source = Endless { number: u64::from(name.as_bytes()[0]) << 32, read: Arc::clone(&read) };
            let chunker = Box::new(FixedChunker::new(CHUNK).unwrap());
            let stream = backup.stream(name, source).chunker(chunker);
            async move { stream.await }
        });
        let backups = Box::pin(futures::future::join_all(archives));
        let soon = runtime.sleep(Duration::from_mins(30));
        assert!(matches!(futures::future::select(backups, soon).await, Either::Right(_)));
        let read = read.load(Ordering::Relaxed);
        // Each archive has one chunk in the making beside those in flight.
        assert!((BUDGET..=BUDGET + 2 * CHUNK).contains(&read), "{read}");
    });
}

/// Bytes without end that are never the same.
struct Endless {
    number: u64,
    read: Arc<AtomicUsize>,
}

impl AsyncRead for Endless {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<std::io::Result<usize>> {
        for word in buffer.chunks_mut(8) {
            self.number += 1;
            word.copy_from_slice(&self.number.to_le_bytes()[..word.len()]);
        }
        self.read.fetch_add(buffer.len(), Ordering::Relaxed);
        Poll::Ready(Ok(buffer.len()))
    }
}
