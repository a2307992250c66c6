//! The conformance suite, on every backend and through every wrapper; and the wrappers themselves.

use std::any::Any;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::conformance::Suite;
use larder::backend::{
    Backend, Coordination, FsBackend, FsOptions, LockMode, LockScope, MemoryBackend, PrefixDirectories,
    PutMode, Removal, SyncLevel,
};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::Key;
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::listing::ShortPages as _;
use larder::internal::record::{Counts, Method, Outcome, RecordingBackend};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options};
use larder_testing::broken::{BrokenBackend, Flaw, LackingBackend};
use larder_testing::on_every_runtime;

fn threads() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

async fn check_all(backend: &Arc<dyn Backend>) {
    assert!(Suite::default().run(backend).await.len() > 20);
}

async fn paging(backend: &Arc<dyn Backend>, objects: u32) {
    Suite::default().only(&["paging"]).paging(objects).run(backend).await;
}

/// The backend as it is, and through the wrappers.
async fn conforms(backend: Arc<dyn Backend>) {
    check_all(&backend).await;
    Suite::default().only(&["conditions_see_every_change"]).run(&backend).await;
    let recorder = Arc::new(RecordingBackend::new(Arc::clone(&backend)));
    let recorded: Arc<dyn Backend> = recorder.clone();
    check_all(&recorded).await;
    assert!(recorder.count(Method::Put) > 100, "the calls were not those of the suite");
    let faulty: Arc<dyn Backend> = Arc::new(FaultBackend::new(backend));
    check_all(&faulty).await;
}

async fn create(runtime: Arc<dyn Runtime>, root: &Path, options: FsOptions) -> Arc<dyn Backend> {
    Arc::new(FsBackend::create(runtime, root, options).await.unwrap())
}

fn on_demand(level: SyncLevel) -> FsOptions {
    FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(level)
}

#[test]
fn directories_conform_on_every_runtime() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let root = larder_testing::scratch();
            check_all(&create(runtime, root.path(), on_demand(SyncLevel::None)).await).await;
        })
    });
}

#[test]
fn directories_conform_at_every_durability_level_and_through_wrappers() {
    for level in [SyncLevel::None, SyncLevel::File, SyncLevel::Filesystem] {
        let root = larder_testing::scratch();
        let backend = block_on(create(threads(), root.path(), on_demand(level)));
        if level == SyncLevel::None { block_on(conforms(backend)) } else { check_blocking(&backend) }
    }
}

#[test]
fn directories_conform_with_all_prefix_directories_created() {
    // In memory, where such a filesystem exists: disks are slow with 65,536 directories.
    let root = larder_testing::scratch();
    let options = FsOptions::default().sync_level(SyncLevel::None);
    check_blocking(&block_on(create(threads(), root.path(), options)));
    for level in [SyncLevel::File, SyncLevel::Filesystem] {
        // The suite leaves the store empty; what does not flush is the same at every level.
        let options = FsOptions::default().sync_level(level);
        let backend: Arc<dyn Backend> =
            Arc::new(block_on(FsBackend::open(threads(), root.path(), options)).unwrap());
        block_on(async {
            let cases = ["read_your_writes", "durable", "directories_come_and_go"];
            Suite::default().only(&cases).run(&backend).await;
        });
    }
    assert_eq!(fs::read_dir(root.path().join(".chunks")).unwrap().count(), 0x10000);
}

fn check_blocking(backend: &Arc<dyn Backend>) {
    block_on(check_all(backend));
}

#[test]
fn directories_list_page_by_page() {
    let root = larder_testing::scratch();
    block_on(async { paging(&create(threads(), root.path(), on_demand(SyncLevel::None)).await, 5000).await });
}

/// Proves H30.
#[test]
fn directories_report_foreign_files() {
    let root = larder_testing::scratch();
    let backend = block_on(create(threads(), root.path(), on_demand(SyncLevel::None)));
    let suite = Suite::default().only(&["foreign_is_reported"]).foreign(|path| {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "foreign").unwrap();
        std::future::ready(())
    });
    block_on(suite.run(&backend));
}

#[test]
fn memory_conforms_with_pages_of_any_length() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            for page in [1, 3, 1000] {
                conforms(Arc::new(MemoryBackend::new(Arc::clone(&runtime)).page_entries(page))).await;
            }
            for (page, objects) in [(1, 10), (3, 10), (1000, 1001)] {
                let backend: Arc<dyn Backend> =
                    Arc::new(MemoryBackend::new(Arc::clone(&runtime)).page_entries(page));
                paging(&backend, objects).await;
            }
        })
    });
}

#[test]
fn a_backend_without_conditions_conforms_by_refusing() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let lacking = Arc::new(LackingBackend::new(Arc::new(MemoryBackend::new(runtime))));
            let backend: Arc<dyn Backend> = lacking.clone();
            check_all(&backend).await;
            assert!(lacking.refused() > 5, "it was never asked");
        })
    });
}

#[test]
fn the_conformance_suite_detects_every_flaw() {
    for &(flaw, case, says) in Flaw::ALL {
        let broken = || -> Arc<dyn Backend> { Arc::new(BrokenBackend::new(threads(), flaw)) };
        let noticed =
            catch_unwind(AssertUnwindSafe(|| block_on(Suite::default().only(&[case]).run(&broken()))));
        let message = text(&*noticed.err().unwrap_or_else(|| panic!("{flaw:?} was not noticed")));
        assert!(message.contains(says), "{flaw:?} was noticed as {message:?}, not as {says:?}");
        assert!(catch_unwind(AssertUnwindSafe(|| check_blocking(&broken()))).is_err(), "{flaw:?}");
    }
}

#[test]
fn the_conformance_suite_requires_an_empty_store() {
    for key in [Key::Store, Key::GcStatus, Key::Chunk(Digest::of(b"x")), Key::Owner("vm/1".parse().unwrap())]
    {
        let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new(threads()));
        block_on(backend.put(&key, Bytes::new(), PutMode::Create)).unwrap();
        let panic = catch_unwind(AssertUnwindSafe(|| check_blocking(&backend))).unwrap_err();
        assert!(text(&*panic).contains("empty store"));
    }
}

#[test]
fn the_paging_case_requires_more_than_one_page() {
    let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new(threads()));
    let panic = catch_unwind(AssertUnwindSafe(|| block_on(paging(&backend, 10)))).unwrap_err();
    assert!(text(&*panic).contains("not enough"));
}

fn text(panic: &(dyn Any + Send)) -> String {
    let literal = panic.downcast_ref::<&str>().map(ToString::to_string);
    literal.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap()
}

#[test]
fn the_recording_backend_records_every_call() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let recorder = Arc::new(RecordingBackend::new(Arc::new(MemoryBackend::new(runtime))));
            let backend: Arc<dyn Backend> = recorder.clone();
            let store = Datastore::create(backend, Options::default()).await.unwrap();
            let backup = store.backup(&"host/a".parse().unwrap()).begin().await.unwrap();
            recorder.reset();
            let data = larder_testing::noise(1, 5 << 16);
            let image = backup.image("d.img", Cursor::new(&data), 5 << 16).chunk_bytes(1 << 16);
            assert_eq!(image.await.unwrap().chunks, 5);
            // New chunks cost one touch and one put each, and nothing else.
            assert_eq!((recorder.count(Method::Touch), recorder.count(Method::Put)), (5, 5));
            assert_eq!(recorder.calls().len(), 10);
            let written: u64 = recorder.calls().iter().map(|call| call.bytes_written).sum();
            assert_eq!(written, 5 * ((1 << 16) + 12));
            recorder.reset();
            let snapshot = backup.finish().await.unwrap().snapshot;
            assert_eq!(
                (recorder.count(Method::Put), recorder.count(Method::Barrier)),
                (2, 3),
                "index and manifest"
            );
            recorder.reset();
            let archive = snapshot.archive("d.img.fidx").await.unwrap();
            archive.copy_to(&mut larder::store::WriterTarget::new(futures::io::sink())).await.unwrap();
            assert_eq!(recorder.count(Method::Get), 6, "the index and five chunks");
            assert!(recorder.calls().iter().all(|call| call.outcome == Outcome::Succeeded));
        })
    });
}

#[test]
fn the_recording_backend_counts_calls_by_result() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let memory = Arc::new(MemoryBackend::new(Arc::clone(&runtime)));
            let faulty = Arc::new(FaultBackend::new(memory));
            faulty.add(Rule::on(Method::Barrier, Action::Delay(Duration::from_hours(1))));
            let recorder = RecordingBackend::new(faulty);
            let key = Key::Chunk(Digest::of(b"x"));
            // Dropped before it ended.
            assert!(futures::FutureExt::now_or_never(recorder.barrier()).is_none());
            recorder.put(&key, Bytes::from_static(b"12345"), PutMode::Create).await.unwrap();
            recorder.put(&key, Bytes::from_static(b"1234"), PutMode::Create).await.unwrap_err();
            recorder.get_range(&key, 1..3).await.unwrap();
            recorder.touch(&[key.clone(), key.clone()]).await.unwrap();
            let guard = recorder.lock(&LockScope::Store, LockMode::Shared).await.unwrap();
            guard.check().await.unwrap();
            let calls = recorder.calls();
            let outcomes: Vec<_> = calls.iter().map(|call| (call.method, call.outcome)).collect();
            let ended = |method| (method, Outcome::Succeeded);
            let wanted = [
                (Method::Barrier, Outcome::Open),
                ended(Method::Put),
                (Method::Put, Outcome::Failed(ErrorKind::AlreadyExists)),
                ended(Method::GetRange),
                ended(Method::Touch),
                ended(Method::Lock),
                ended(Method::Check),
            ];
            assert_eq!(outcomes, wanted);
            assert_eq!(calls[4].keys, [key.clone(), key]);
            assert_eq!(calls[6].lock, Some((LockScope::Store, LockMode::Shared)));
            let counts = recorder.counts();
            assert_eq!((counts.puts, counts.gets, counts.touches, counts.touched_keys), (2, 1, 1, 2));
            assert_eq!((counts.bytes_written, counts.bytes_read, counts.locks), (9, 2, 1));
            recorder.reset();
            assert_eq!((recorder.calls().len(), recorder.counts()), (0, Counts::default()));
        })
    });
}

#[test]
fn a_reset_drops_calls_in_flight_from_the_record() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let faulty = Arc::new(FaultBackend::new(Arc::new(MemoryBackend::new(runtime))));
            faulty.add(Rule::on(Method::Put, Action::Delay(Duration::from_millis(1))));
            let recorder = RecordingBackend::new(faulty);
            let key = Key::Chunk(Digest::of(b"x"));
            let put = recorder.put(&key, Bytes::new(), PutMode::Replace);
            let other = async {
                recorder.reset();
                recorder.head(&key).await.unwrap_err();
            };
            futures::join!(put, other).0.unwrap();
            let calls = recorder.calls();
            assert_eq!((calls.len(), calls[0].outcome), (1, Outcome::Failed(ErrorKind::NotFound)));
        })
    });
}

#[test]
fn the_fault_backend_fails_the_calls_that_its_rules_select() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let faulty = FaultBackend::new(Arc::new(MemoryBackend::new(Arc::clone(&runtime))));
            let (key, other) = (Key::Chunk(Digest::of(b"x")), Key::Chunk(Digest::of(b"y")));
            let put = |text: &'static str| faulty.put(&key, Bytes::from(text), PutMode::Replace);
            let kind = |result: larder::error::Result<_>| result.map(drop).map_err(|error| error.kind());
            let meant = key.clone();
            let full = Rule::on(Method::Put, Action::FailBefore(ErrorKind::Full));
            faulty.add(full.keys(move |key| *key == meant).nth(2));
            put("one").await.unwrap();
            faulty.put(&other, Bytes::new(), PutMode::Replace).await.unwrap();
            assert_eq!(kind(put("two").await), Err(ErrorKind::Full));
            assert_eq!(faulty.get(&key, 10).await.unwrap().bytes, "one");
            put("two").await.unwrap();
            assert_eq!(faulty.fired(), 1);

            faulty.add(Rule::on(Method::Put, Action::FailAfter(ErrorKind::Unavailable)).first(1));
            assert_eq!(kind(put("three").await), Err(ErrorKind::Unavailable));
            assert_eq!(faulty.get(&key, 10).await.unwrap().bytes, "three");

            faulty.clear();
            faulty.add(Rule::on_any(Action::Cut).first(2));
            assert_eq!(kind(put("four").await), Err(ErrorKind::Unavailable));
            assert_eq!(faulty.get(&key, 10).await.unwrap_err().kind(), ErrorKind::Unavailable);
            assert_eq!(faulty.get(&key, 10).await.unwrap().bytes, "three");
            faulty.add(Rule::on(Method::Delete, Action::Cut).first(1));
            faulty.delete(&[Removal::any(other.clone()), Removal::any(key.clone())]).await.unwrap_err();
            assert_eq!(faulty.head(&other).await.unwrap_err().kind(), ErrorKind::NotFound, "the first half");
            faulty.head(&key).await.unwrap();
            assert_eq!(faulty.fired(), 5);
        })
    });
}

#[test]
fn delayed_and_late_calls_use_the_clock_of_the_runtime() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let faulty = FaultBackend::new(Arc::new(MemoryBackend::new(Arc::clone(&runtime))));
            let key = Key::Chunk(Digest::of(b"x"));
            let put = |text: &'static str| faulty.put(&key, Bytes::from(text), PutMode::Replace);
            put("one").await.unwrap();
            let (soon, unavailable) = (Duration::from_millis(5), ErrorKind::Unavailable);
            for method in [Method::Delete, Method::Put] {
                faulty.add(Rule::on(method, Action::Late(soon, unavailable)).first(1));
            }
            faulty.delete(&[Removal::any(key.clone())]).await.unwrap_err();
            while faulty.head(&key).await.is_ok() {
                runtime.sleep(Duration::from_millis(1)).await;
            }
            put("late").await.unwrap_err();
            while faulty.head(&key).await.is_err() {
                runtime.sleep(Duration::from_millis(1)).await;
            }
            assert_eq!(faulty.get(&key, 10).await.unwrap().bytes, "late");
            faulty.add(Rule::on(Method::Put, Action::Delay(soon)).nth(1));
            let start = runtime.monotonic();
            put("slow").await.unwrap();
            assert!(runtime.monotonic() >= start + soon);
        })
    });
}

#[test]
fn after_an_injected_crash_no_call_has_an_effect() {
    on_every_runtime(|runtime| {
        Box::pin(async move {
            let memory = Arc::new(MemoryBackend::new(Arc::clone(&runtime)));
            let faulty = FaultBackend::new(memory.clone());
            let key = Key::Chunk(Digest::of(b"x"));
            let put = |text: &'static str| faulty.put(&key, Bytes::from(text), PutMode::Replace);
            let guard = faulty.lock(&LockScope::Store, LockMode::Shared).await.unwrap();
            faulty.crash_at(2);
            faulty.add(
                Rule::on(Method::Put, Action::Late(Duration::from_millis(1), ErrorKind::Unavailable)).nth(2),
            );
            put("one").await.unwrap();
            faulty.barrier().await.unwrap();
            assert_eq!((faulty.steps(), faulty.has_crashed()), (1, false));
            put("two").await.unwrap_err();
            assert!(faulty.has_crashed());
            let dead = Err(ErrorKind::Unavailable);
            assert_eq!(faulty.get(&key, 10).await.map(drop).map_err(|error| error.kind()), dead);
            assert_eq!(faulty.barrier().await.map_err(|error| error.kind()), dead);
            assert_eq!(guard.check().await.map_err(|error| error.kind()), dead);
            assert_eq!(put("three").await.map(drop).map_err(|error| error.kind()), dead);
            assert_eq!(faulty.steps(), 2, "what comes after is no step");
            runtime.sleep(Duration::from_millis(10)).await;
            assert_eq!(memory.get(&key, 10).await.unwrap().bytes, "one");
            // A change that is on its way when the crash comes never arrives. On a slow machine it may arrive before the crash: then once more.
            for delay in [10, 100, 1000, 10_000].map(Duration::from_millis) {
                let faulty = FaultBackend::new(memory.clone());
                faulty.add(Rule::on(Method::Put, Action::Late(delay, ErrorKind::Unavailable)));
                let start = runtime.monotonic();
                faulty.put(&key, Bytes::from_static(b"late"), PutMode::Replace).await.unwrap_err();
                faulty.crash_at(1);
                faulty.head(&key).await.unwrap_err();
                let is_in_time = runtime.monotonic() < start + delay;
                runtime.sleep(delay * 2).await;
                if is_in_time {
                    assert_eq!(memory.get(&key, 10).await.unwrap().bytes, "one");
                    return;
                }
                memory.put(&key, Bytes::from_static(b"one"), PutMode::Replace).await.unwrap();
            }
            panic!("the machine is too slow for any delay");
        })
    });
}

/// Proves H37.
///
/// Fails each change in turn: whatever the backend answers, a snapshot is whole or not there.
#[test]
fn a_backup_with_any_failed_change_leaves_a_whole_snapshot_or_none() {
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
            let changes = recorder.counts().puts + recorder.counts().barriers;
            assert_eq!(changes, 10, "owner, blob, three chunks, index, manifest, three barriers");
            for fault in [
                Action::FailBefore(ErrorKind::Full),
                Action::FailBefore(ErrorKind::Unavailable),
                Action::FailAfter(ErrorKind::Unavailable),
                Action::Cut,
            ] {
                for nth in 1..=changes {
                    one_change_fails(&runtime, fault, nth).await;
                }
            }
        })
    });
}

async fn one_change_fails(runtime: &Arc<dyn Runtime>, fault: Action, nth: u64) {
    let faulty = Arc::new(FaultBackend::new(Arc::new(MemoryBackend::new(Arc::clone(runtime)))));
    let backend: Arc<dyn Backend> = faulty.clone();
    let store = Datastore::create(backend, Options::default()).await.unwrap();
    faulty.add(Rule::on(Method::Put, fault).or(Method::Barrier).nth(nth));
    let made = back_up(&store).await;
    // The first change stores the owner, the ninth the manifest. An object that exists although its put failed is recognised.
    let is_there_all_the_same = matches!(nth, 1 | 9) && matches!(fault, Action::FailAfter(_));
    assert_eq!(made.is_ok(), is_there_all_the_same, "change {nth}, {fault:?}: {made:?}");
    assert_eq!(faulty.fired(), 1);
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
    let data = larder_testing::noise(2, 3 << 16);
    backup.blob("c.conf", "text").await?;
    backup.image("d.img", Cursor::new(&data), 3 << 16).chunk_bytes(1 << 16).await?;
    backup.finish().await.map(drop)
}
