//! The conformance suite, on every backend and through every wrapper; and the wrappers themselves.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::io::Cursor;
use larder::backend::conformance::check_all;
use larder::backend::fault::{Fault, FaultBackend};
use larder::backend::record::{Method, RecordingBackend};
use larder::backend::{
    Backend, FsBackend, FsOptions, MemoryBackend, PrefixDirectories, PutMode, Removal, SyncLevel,
};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::Key;
use larder::rt::Runtime;
use larder::store::{Datastore, Options};

use support::on_every_runtime;

async fn in_directories(runtime: &Arc<dyn Runtime>, level: SyncLevel) {
    let root = tempfile::tempdir().unwrap();
    let number = std::sync::atomic::AtomicUsize::new(0);
    check_all(&|| {
        let path = root.path().join(number.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_string());
        let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(level);
        let runtime = Arc::clone(runtime);
        Box::pin(async move {
            Arc::new(FsBackend::create(runtime, path, options).await.unwrap()) as Arc<dyn Backend>
        })
    })
    .await;
}

fn ready(backend: Arc<dyn Backend>) -> BoxFuture<'static, Arc<dyn Backend>> {
    Box::pin(futures::future::ready(backend))
}

#[test]
fn directories_conform_at_level_none() {
    on_every_runtime(|runtime| Box::pin(async move { in_directories(&runtime, SyncLevel::None).await }));
}

#[test]
fn directories_conform_when_everything_is_flushed() {
    let runtime: Arc<dyn Runtime> = Arc::new(larder::rt::ThreadRuntime::new());
    for level in [SyncLevel::File, SyncLevel::Filesystem] {
        futures::executor::block_on(in_directories(&runtime, level));
    }
}

#[test]
fn memory_conforms_with_pages_of_any_length() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            for page in [1, 3, 1000] {
                check_all(&|| ready(Arc::new(MemoryBackend::new(Arc::clone(&runtime)).page_entries(page))))
                    .await;
            }
        })
    });
}

#[test]
fn wrappers_conform() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let memory = || -> Arc<dyn Backend> { Arc::new(MemoryBackend::new(Arc::clone(&runtime))) };
            check_all(&|| ready(Arc::new(RecordingBackend::new(memory())))).await;
            check_all(&|| ready(Arc::new(FaultBackend::new(memory())))).await;
        })
    });
}

#[test]
fn a_record_has_every_call() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let recorder = Arc::new(RecordingBackend::new(Arc::new(MemoryBackend::new(runtime))));
            let backend: Arc<dyn Backend> = recorder.clone();
            let store = Datastore::create(backend, Options::default()).await.unwrap();
            let backup = store.backup(&"host/a".parse().unwrap()).begin().await.unwrap();
            recorder.reset();
            let data = support::noise(1, 5 << 16);
            let image = backup.image("d.img", Cursor::new(&data), 5 << 16).chunk_bytes(1 << 16);
            assert_eq!(image.await.unwrap().chunks, 5);
            // New chunks cost one touch and one put each, and nothing else.
            assert_eq!((recorder.count(Method::Touch), recorder.count(Method::Put)), (5, 5));
            assert_eq!(recorder.calls().len(), 10);
            let written: u64 = recorder.calls().iter().map(|call| call.bytes).sum();
            assert_eq!(written, 5 * ((1 << 16) + 12));
            recorder.reset();
            let snapshot = backup.finish().await.unwrap();
            assert_eq!(
                (recorder.count(Method::Put), recorder.count(Method::Barrier)),
                (2, 3),
                "index and manifest"
            );
            recorder.reset();
            let archive = snapshot.archive("d.img.fidx").await.unwrap();
            archive.copy_to(&mut larder::store::WriterTarget::new(futures::io::sink())).await.unwrap();
            assert_eq!(recorder.count(Method::Get), 6, "the index and five chunks");
            assert!(recorder.calls().iter().all(|call| call.error.is_none()));
        })
    });
}

#[test]
fn faults_come_when_they_are_told() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let faulty = FaultBackend::new(Arc::new(MemoryBackend::new(Arc::clone(&runtime))));
            let key = Key::Chunk(Digest::of(b"x"));
            let put = |text: &'static str| faulty.put(&key, Bytes::from(text), PutMode::Replace);
            faulty.rule(1, 1, Fault::Fail(ErrorKind::Full), |method, _| method == Method::Put);
            put("one").await.unwrap();
            assert_eq!(put("two").await.unwrap_err().kind(), ErrorKind::Full);
            assert_eq!(faulty.get(&key, 10).await.unwrap().bytes, "one");
            faulty.rule(0, 1, Fault::FailAfter(ErrorKind::Unavailable), |method, _| method == Method::Put);
            assert_eq!(put("three").await.unwrap_err().kind(), ErrorKind::Unavailable);
            assert_eq!(faulty.get(&key, 10).await.unwrap().bytes, "three");
            faulty.rule(0, 1, Fault::Late(Duration::from_millis(5)), |method, _| method == Method::Delete);
            assert!(faulty.delete(&[Removal::any(key.clone())]).await.is_err());
            assert_eq!(faulty.get(&key, 10).await.unwrap().bytes, "three");
            while faulty.head(&key).await.is_ok() {
                runtime.sleep(Duration::from_millis(1)).await;
            }
            faulty.rule(0, 1, Fault::Delay(Duration::from_millis(5)), |method, _| method == Method::Put);
            let start = runtime.monotonic();
            put("four").await.unwrap();
            assert!(runtime.monotonic() >= start + Duration::from_millis(5));
            faulty.crash_at(faulty.steps() + 1);
            put("five").await.unwrap();
            assert_eq!(put("six").await.unwrap_err().kind(), ErrorKind::Unavailable);
            assert!(faulty.get(&key, 10).await.is_err(), "nothing works after a crash");
        })
    });
}

/// Fails each change in turn: whatever the backend answers, a snapshot is whole or not there.
#[test]
fn h37_whichever_change_fails_no_snapshot_is_torn() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let (store, recorder) = {
                let recorder =
                    Arc::new(RecordingBackend::new(Arc::new(MemoryBackend::new(Arc::clone(&runtime)))));
                let backend: Arc<dyn Backend> = recorder.clone();
                (Datastore::create(backend, Options::default()).await.unwrap(), recorder)
            };
            recorder.reset();
            back_up(&store).await.unwrap();
            let changes = recorder.count(Method::Put) + recorder.count(Method::Barrier);
            assert_eq!(changes, 10, "owner, blob, three chunks, index, manifest, three barriers");
            for fault in [
                Fault::Fail(ErrorKind::Full),
                Fault::Fail(ErrorKind::Unavailable),
                Fault::FailAfter(ErrorKind::Unavailable),
            ] {
                for skip in 0..changes {
                    one_change_fails(&runtime, fault, skip).await;
                }
            }
        })
    });
}

async fn one_change_fails(runtime: &Arc<dyn Runtime>, fault: Fault, skip: usize) {
    let faulty = Arc::new(FaultBackend::new(Arc::new(MemoryBackend::new(Arc::clone(runtime)))));
    let backend: Arc<dyn Backend> = faulty.clone();
    let store = Datastore::create(backend, Options::default()).await.unwrap();
    faulty.rule(skip, 1, fault, |method, _| matches!(method, Method::Barrier | Method::Put));
    back_up(&store).await.unwrap_err();
    if let Some(latest) = &store.latest(&"host/a".parse().unwrap()).await.unwrap() {
        let snapshot = store.snapshot(latest).await.unwrap();
        let archive = snapshot.archive("d.img.fidx").await.unwrap();
        archive.copy_to(&mut larder::store::WriterTarget::new(futures::io::sink())).await.unwrap();
        assert_eq!(snapshot.blob("c.conf.blob").await.unwrap(), "text");
    }
    back_up(&store).await.unwrap();
}

async fn back_up(store: &Datastore) -> Result<(), larder::error::Error> {
    let backup = store.backup(&"host/a".parse().unwrap()).begin().await?;
    let data = support::noise(2, 3 << 16);
    backup.blob("c.conf", "text").await?;
    backup.image("d.img", Cursor::new(&data), 3 << 16).chunk_bytes(1 << 16).await?;
    backup.finish().await.map(drop)
}
