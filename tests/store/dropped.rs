//! Readers and writers that are dropped: what they held is free, and nothing of them gets into later work.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::io::{AsyncReadExt as _, Cursor};
use larder::backend::{Backend, MemoryBackend};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::format::name::{GroupName, Namespace};
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::record::{Method, RecordingBackend};
use larder::rt::{Runtime as _, SimRuntime};
use larder::store::{Datastore, Options, SnapshotReader};
use larder_testing::noise;

const CHUNK: usize = 64 << 10;

fn group() -> GroupName {
    "vm/1".parse().unwrap()
}

struct Scene {
    faults: Arc<FaultBackend>,
    recorder: Arc<RecordingBackend>,
    store: Datastore,
}

async fn scene(sim: &SimRuntime) -> Scene {
    let faults = Arc::new(FaultBackend::new(Arc::new(MemoryBackend::new(Arc::new(sim.clone())))));
    let recorder = Arc::new(RecordingBackend::new(Arc::<FaultBackend>::clone(&faults)));
    let backend: Arc<dyn Backend> = Arc::<RecordingBackend>::clone(&recorder);
    let store = Datastore::create(backend, Options::default()).await.unwrap();
    Scene { faults, recorder, store }
}

impl Scene {
    /// An image in the group `vm/1`.
    async fn back_up(&self, data: &[u8]) -> SnapshotReader {
        let backup = self.store.backup(&group()).begin().await.unwrap();
        let image = backup.image("d.img", Cursor::new(data.to_vec()), data.len() as u64);
        image.chunk_bytes(CHUNK as u64).await.unwrap();
        backup.finish().await.unwrap().snapshot
    }
}

/// Tasks that store chunks may outlive the writer.
#[test]
fn the_base_of_an_aborted_backup_can_be_deleted_while_chunks_are_in_flight() {
    for seed in 0..10 {
        let sim = SimRuntime::new(seed);
        sim.block_on(async {
            let scene = scene(&sim).await;
            let data = noise(1, 4 * CHUNK);
            let base = scene.back_up(&data).await;
            let backup = scene.store.backup(&group()).begin().await.unwrap();
            let slow = Action::Delay(Duration::from_hours(1));
            scene.faults.add(Rule::on(Method::Put, slow).keys(|key| matches!(key, Key::Chunk(_))));
            let image = backup.image_writer("d.img", data.len() as u64).base(&base);
            let mut image = image.chunk_bytes(CHUNK as u64).begin().await.unwrap();
            image.write_at(0, Bytes::from(noise(2, CHUNK))).await.unwrap();
            // The chunk is with the backend.
            sim.sleep(Duration::from_secs(1)).await;
            assert!(scene.recorder.calls().iter().any(|call| call.method == Method::Put
                && matches!(call.keys[..], [Key::Chunk(_)])
                && call.outcome == larder::internal::record::Outcome::Open));
            drop(image);
            let name = base.name().clone();
            assert_eq!(scene.store.delete_snapshot(&name).await.unwrap_err().kind(), ErrorKind::Busy);
            backup.abort().await.unwrap();
            drop(base);
            scene.store.delete_snapshot(&name).await.unwrap();
        });
    }
}

/// The files of a dropped writer are removed in the background, under the lock of its group.
#[test]
fn deletions_wait_until_the_files_of_a_dropped_writer_are_removed() {
    for (seed, is_group) in (0..20).map(|seed| (seed, seed % 2 == 0)) {
        let sim = SimRuntime::new(seed);
        sim.block_on(async {
            let scene = scene(&sim).await;
            let name = scene.back_up(&noise(1, CHUNK)).await.name().clone();
            let backup = scene.store.backup(&group()).begin().await.unwrap();
            backup.blob("x.conf", "text").await.unwrap();
            let is_blob = |key: &Key| matches!(key, Key::Archive(_, name) if name.as_str() == "x.conf.blob");
            let slow = Action::Delay(Duration::from_millis(100));
            scene.faults.add(Rule::on(Method::Delete, slow).keys(is_blob));
            drop(backup);
            sim.sleep(Duration::from_millis(10)).await;
            if is_group {
                let done = scene.store.delete_group(&group()).await.unwrap();
                assert_eq!(done.deleted, [name]);
            } else {
                scene.store.delete_snapshot(&name).await.unwrap();
            }
            assert_eq!(scene.store.groups(&Namespace::root()).await.unwrap(), []);
        });
    }
}

#[test]
fn a_chunk_that_could_not_be_read_costs_a_stream_no_other_chunk() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let scene = scene(&sim).await;
        let data = noise(1, 40 * CHUNK);
        let snapshot = scene.back_up(&data).await;
        let failing = Key::Chunk(larder::format::Digest::of(&data[20 * CHUNK..21 * CHUNK]));
        let fails = Rule::on(Method::Get, Action::FailBefore(ErrorKind::Unavailable));
        scene.faults.add(fails.keys(move |key| *key == failing).first(3));
        scene.recorder.reset();
        let mut archive = snapshot.archive("d.img.fidx").await.unwrap();
        let (mut read, mut failed) = (Vec::new(), 0);
        let mut buffer = vec![0; 10_000];
        while read.len() < data.len() {
            match archive.read(&mut buffer).await {
                Ok(length) => read.extend_from_slice(&buffer[..length]),
                Err(_) => failed += 1,
            }
        }
        assert!(read == data);
        let calls = scene.recorder.calls();
        let gets = calls
            .iter()
            .filter(|call| call.method == Method::Get && matches!(call.keys[..], [Key::Chunk(_)]));
        assert_eq!((failed, gets.count()), (3, 43));
    });
}

#[test]
fn a_dropped_stream_leaves_nothing_that_is_still_read() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let scene = scene(&sim).await;
        let data = noise(1, 40 * CHUNK);
        let snapshot = scene.back_up(&data).await;
        scene.faults.add(Rule::on(Method::Get, Action::Delay(Duration::from_secs(1))));
        let mut archive = snapshot.archive("d.img.fidx").await.unwrap();
        let mut read = vec![0; 10 * CHUNK];
        archive.read_exact(&mut read).await.unwrap();
        assert!(read == data[..10 * CHUNK]);
        drop(archive);
        sim.sleep(Duration::from_millis(1)).await;
        scene.recorder.reset();
        sim.sleep(Duration::from_mins(1)).await;
        assert_eq!(scene.recorder.calls(), [], "the tasks that fetched ahead have ended");
    });
}
