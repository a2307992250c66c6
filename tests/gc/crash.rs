//! A garbage collection that dies, is aborted or is refused something leaves a whole store, resumes, and counts what was done and no
//! more (H16, H19, H21, H36).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use futures::executor::block_on;
use larder::Observer;
use larder::backend::{Backend, MemoryBackend, PutMode, Removal};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::Key;
use larder::gc::{self, ChunkTally, GcEnd, GcEvent, GcOptions, GcReport};
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::listing::ShortPages as _;
use larder::internal::record::{Method, RecordingBackend};
use larder::rt::ThreadRuntime;
use larder::store::Datastore;
use larder_testing::gc_scene::{
    OnFailure, at_once, back_up, check, check_all, chunks, collected, created, digest, digests, leave,
    opened_as_new, reason,
};
use larder_testing::watched::Watched;

const KINDS: [bool; 2] = [false, true];

/// A store in memory that outlives its processes.
struct Scene {
    faults: Arc<FaultBackend>,
    is_bucket: bool,
    memory: Arc<MemoryBackend>,
    record: Arc<RecordingBackend>,
    store: Datastore,
}

async fn scene(is_bucket: bool) -> Scene {
    let runtime = Arc::new(ThreadRuntime::new());
    let memory = Arc::new(MemoryBackend::new(runtime).page_entries(200));
    let faults = Arc::new(FaultBackend::new(Arc::<MemoryBackend>::clone(&memory)));
    let record = Arc::new(RecordingBackend::new(Arc::<FaultBackend>::clone(&faults)));
    let backend: Arc<dyn Backend> = Watched::of_kind(Arc::<RecordingBackend>::clone(&record), is_bucket);
    let store = created(&backend).await;
    Scene { faults, is_bucket, memory, record, store }
}

impl Scene {
    /// Puts `count` unreferenced chunks into the store.
    async fn litter(&self, count: u64) {
        for number in 0..count {
            let key = Key::Chunk(Digest::of(&number.to_le_bytes()));
            self.memory.put(&key, "garbage".into(), PutMode::Create).await.unwrap();
        }
    }

    async fn chunks(&self) -> BTreeSet<Digest> {
        chunks(self.memory.as_ref()).await
    }

    /// As another process opens it, when this one is dead.
    async fn opened_as_new(self) -> (Arc<MemoryBackend>, Datastore) {
        let Self { is_bucket, memory, store, .. } = self;
        let backend: Arc<dyn Backend> = Watched::of_kind(Arc::<MemoryBackend>::clone(&memory), is_bucket);
        let store = opened_as_new(&backend, store).await;
        (memory, store)
    }
}

/// Dies at a step of an execution, where the request in flight is cut or not begun. Returns `true` if it got that far.
async fn dies_at(step: u64, is_bucket: bool, is_cut: bool) -> bool {
    let scene = scene(is_bucket).await;
    leave(&scene.store, &[1, 2, 3, 4, 5, 6]).await;
    drop(back_up(&scene.store, "host/a", &[4, 7]).await.unwrap());
    let mut plan = gc::plan(&scene.store, at_once().concurrency(2)).await.unwrap();
    let before = scene.faults.steps();
    if is_cut {
        scene.faults.add(Rule::on(Method::Delete, Action::Cut).nth(step));
    }
    scene.faults.crash_at(before + step + u64::from(is_cut));
    let report = plan.execute().await;
    let died = scene.faults.has_crashed();
    assert!(died || is_cut || reason(report).is_none());
    drop(plan);
    let (memory, store) = scene.opened_as_new().await;
    assert_eq!(check_all(&store).await, 1);
    let made = back_up(&store, "host/b", &[1, 2, 5, 7]).await.unwrap();
    check(&made).await.unwrap();
    drop(made);
    collected(&store, at_once()).await;
    assert_eq!(check_all(&store).await, 2);
    assert_eq!(chunks(memory.as_ref()).await, digests([1, 2, 4, 5, 7]));
    died
}

/// Proves H16.
#[test]
fn after_a_crash_at_any_step_of_a_sweep_the_next_backup_is_whole() {
    for is_bucket in KINDS {
        for is_cut in [false, true] {
            let mut step = 1;
            loop {
                let _on_failure = OnFailure(format!("bucket {is_bucket}, cut {is_cut}, step {step}"));
                if !block_on(dies_at(step, is_bucket, is_cut)) {
                    break;
                }
                step += 1;
            }
            assert!(step > 1, "{step} steps");
        }
    }
}

/// Aborts at the event with this number, and no other.
#[derive(Debug)]
struct Aborter {
    abort: Arc<AtomicBool>,
    at: u64,
    events: AtomicU64,
}

impl Aborter {
    fn new(at: u64) -> Arc<Self> {
        Arc::new(Self { abort: Arc::default(), at, events: AtomicU64::new(0) })
    }

    /// Returns `true` if it did.
    fn has_aborted(&self) -> bool {
        self.abort.swap(false, Ordering::SeqCst)
    }
}

impl Observer<GcEvent> for Aborter {
    fn on_event(&self, _: &GcEvent) {
        if self.events.fetch_add(1, Ordering::SeqCst) == self.at {
            self.abort.store(true, Ordering::SeqCst);
        }
    }
}

fn numbers(report: &GcReport) -> (u64, ChunkTally, ChunkTally, u64, u64) {
    (report.failed, report.removed, report.removed_quarantined, report.absent + report.busy, report.pinned)
}

/// Collects much, aborted at the event with this number, and again to its end. Returns the number of events.
async fn aborted_at(at: u64, is_bucket: bool, memory_bytes: usize) -> u64 {
    let scene = scene(is_bucket).await;
    scene.litter(2500).await;
    drop(back_up(&scene.store, "host/a", &[4, 7]).await.unwrap());
    let aborter = Aborter::new(at);
    let options = || {
        let observer: Arc<dyn Observer<GcEvent>> = Arc::<Aborter>::clone(&aborter);
        let options = at_once().concurrency(2).memory_bytes(memory_bytes).observer(observer);
        options.abort(Arc::clone(&aborter.abort))
    };
    let mut aborts = 0;
    let mut plan = match gc::plan(&scene.store, options()).await {
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Conflict);
            assert!(aborter.has_aborted());
            aborts += 1;
            gc::plan(&scene.store, options()).await.unwrap()
        }
        // The last event of a plan comes when there is nothing left to abort.
        planned => {
            aborts += u64::from(aborter.has_aborted());
            planned.unwrap()
        }
    };
    let mut report = plan.execute().await.unwrap();
    if matches!(report.end, GcEnd::Aborted) {
        assert!(!report.status_written);
        assert!(aborter.has_aborted());
        aborts += 1;
        report = plan.execute().await.unwrap();
    }
    assert!(matches!(report.end, GcEnd::Complete), "{:?}", report.end);
    let events = aborter.events.load(Ordering::SeqCst);
    assert_eq!(aborts + u64::from(aborter.has_aborted()), u64::from(at < events));
    let all = ChunkTally::default();
    let (bytes, count) = (2500 * 7, 2500);
    assert_eq!((report.removed.bytes, report.removed.chunks), (bytes, count), "at {at}");
    assert_eq!(numbers(&report), (0, report.removed, all, 0, 0));
    assert_eq!(scene.chunks().await, digests([4, 7]));
    // Once more there is nothing to do.
    let again = plan.execute().await.unwrap();
    assert_eq!(numbers(&again), numbers(&report));
    events
}

/// Proves H21, H187.
#[test]
fn a_sweep_aborted_at_any_step_resumes_to_the_same_result() {
    for (is_bucket, memory_bytes) in [(false, 16 << 20), (true, 1)] {
        let events = block_on(aborted_at(u64::MAX, is_bucket, memory_bytes));
        assert!(events > 15, "{events}");
        for at in 0..events {
            let _on_failure = OnFailure(format!("bucket {is_bucket}, {memory_bytes} bytes, event {at}"));
            block_on(aborted_at(at, is_bucket, memory_bytes));
        }
    }
}

#[test]
fn a_plan_over_its_memory_limit_lists_again_and_removes_the_same_chunks() {
    for is_bucket in KINDS {
        let mut listings = Vec::new();
        for memory_bytes in [16 << 20, 60_000, 1] {
            block_on(async {
                let scene = scene(is_bucket).await;
                scene.litter(2500).await;
                drop(back_up(&scene.store, "host/a", &[4, 7]).await.unwrap());
                let options = at_once().concurrency(4).memory_bytes(memory_bytes);
                let mut plan = gc::plan(&scene.store, options).await.unwrap();
                assert_eq!((plan.summary().garbage.chunks, plan.summary().in_use.chunks), (2500, 2));
                scene.record.reset();
                let report = plan.execute().await.unwrap();
                assert_eq!((report.removed.chunks, report.failed), (2500, 0), "{memory_bytes}");
                assert_eq!(scene.chunks().await, digests([4, 7]));
                listings.push(scene.record.count(Method::List));
            });
        }
        assert!(listings[0] == 0 && listings[2] >= 13, "{listings:?}");
        assert!(listings[1] <= listings[2], "{listings:?}");
    }
}

#[derive(Clone, Copy, Debug)]
struct Outcome {
    gone: u64,
    report_failed: u64,
    removed: u64,
}

/// Removes 2500 objects of which the request with this number, or each one, goes wrong.
async fn with_a_fault(is_bucket: bool, action: Action, nth: Option<u64>) -> (Outcome, bool, usize) {
    let scene = scene(is_bucket).await;
    scene.litter(2500).await;
    drop(back_up(&scene.store, "host/a", &[4, 7]).await.unwrap());
    let rule = Rule::on(Method::Delete, action).keys(|key| matches!(key, Key::Chunk(_)));
    scene.faults.add(if let Some(nth) = nth { rule.nth(nth) } else { rule });
    let mut plan = gc::plan(&scene.store, at_once().concurrency(1)).await.unwrap();
    scene.record.reset();
    let report = plan.execute().await.unwrap();
    let requests = scene.record.count(Method::Delete);
    drop(plan);
    let left = scene.chunks().await.len() as u64;
    let ended = matches!(report.end, GcEnd::Complete);
    assert_eq!(report.failures.len() as u64, report.failed.min(1000));
    if ended {
        assert_eq!(report.removed.chunks + report.failed, 2500);
        // Each existing chunk is somewhere in the state.
        let status = scene.store.gc_status().await.unwrap().unwrap();
        assert_eq!(
            (status.removed_chunks, status.removed_bytes),
            (report.removed.chunks, report.removed.bytes)
        );
        assert_eq!(status.disk_chunks, 2);
        assert_eq!(status.pending_chunks, report.failed, "what could not be removed waits");
        assert_eq!(status.pending_bytes, 7 * report.failed);
    }
    assert_eq!(report.status_written, ended);
    scene.faults.clear();
    collected(&scene.store, at_once()).await;
    assert_eq!(scene.chunks().await, digests([4, 7]));
    let outcome = Outcome { gone: 2502 - left, report_failed: report.failed, removed: report.removed.chunks };
    (outcome, ended, requests)
}

/// Proves H36.
#[test]
fn only_confirmed_deletions_count_as_removed() {
    let kinds = [ErrorKind::Unavailable, ErrorKind::Internal, ErrorKind::Denied];
    let before = kinds.map(Action::FailBefore);
    let actions = before.into_iter().chain([Action::FailAfter(ErrorKind::Unavailable), Action::Cut]);
    for action in actions {
        for is_bucket in KINDS {
            for nth in 1..=3 {
                let _on_failure = OnFailure(format!("bucket {is_bucket}, {action:?}, request {nth}"));
                let (found, ended, _) = block_on(with_a_fault(is_bucket, action, Some(nth)));
                let size = if nth == 3 { 500 } else { 1000 };
                assert_eq!(found.report_failed, size);
                match action {
                    Action::FailBefore(_) => assert_eq!(found.gone, found.removed),
                    Action::Cut => assert_eq!(found.gone, found.removed + size / 2),
                    _ => assert_eq!(found.gone, found.removed + size),
                }
                assert_eq!(ended, !matches!(action, Action::FailBefore(ErrorKind::Denied)));
            }
        }
    }
}

/// Proves H19.
#[test]
fn denied_deletes_are_reported_once_and_unanswered_ones_stop_the_sweep() {
    for is_bucket in KINDS {
        for (failure, most) in [(ErrorKind::Denied, 1), (ErrorKind::Unavailable, 3)] {
            let (found, ended, requests) =
                block_on(with_a_fault(is_bucket, Action::FailBefore(failure), None));
            assert_eq!((found.gone, found.removed, requests), (0, 0, most), "{failure:?}");
            // Three requests were all that there were to make.
            assert!(!ended);
        }
    }
}

/// Proves H19.
///
/// One plan does not repeat refused deletions; it removes the rest, and the next plan tries again.
#[test]
fn a_plan_does_not_repeat_refused_deletions() {
    for is_bucket in KINDS {
        block_on(async {
            let scene = scene(is_bucket).await;
            scene.litter(2500).await;
            drop(back_up(&scene.store, "host/a", &[4]).await.unwrap());
            scene.faults.add(Rule::on(Method::Delete, Action::FailBefore(ErrorKind::Denied)).first(1));
            let mut plan = gc::plan(&scene.store, at_once().concurrency(1)).await.unwrap();
            let report = plan.execute().await.unwrap();
            let GcEnd::Stopped(error) = &report.end else { panic!("{:?}", report.end) };
            assert_eq!((error.kind(), report.removed.chunks), (ErrorKind::Denied, 0));
            let report = plan.execute().await.unwrap();
            assert!(matches!(report.end, GcEnd::Complete));
            assert_eq!((report.removed.chunks, report.failed), (1500, 1000));
            drop(plan);
            assert_eq!(collected(&scene.store, at_once()).await.removed.chunks, 1000);
        });
    }
}

/// Proves H36.
#[test]
fn chunks_removed_or_reused_by_another_process_are_counted_separately() {
    for is_bucket in KINDS {
        block_on(async {
            let scene = scene(is_bucket).await;
            leave(&scene.store, &[1, 2, 3, 5]).await;
            drop(back_up(&scene.store, "host/a", &[4]).await.unwrap());
            let mut plan = gc::plan(&scene.store, at_once()).await.unwrap();
            scene.memory.delete(&[Removal::any(Key::Chunk(digest(1)))]).await.unwrap();
            drop(back_up(&scene.store, "host/b", &[2]).await.unwrap());
            let report = plan.execute().await.unwrap();
            assert_eq!((report.absent, report.pinned, report.removed.chunks), (1, 1, 2));
            let status = scene.store.gc_status().await.unwrap().unwrap();
            assert_eq!((status.disk_chunks, status.pending_chunks, status.removed_chunks), (2, 0, 2));
            let mut bytes = 0;
            for number in [2, 4] {
                bytes += scene.memory.head(&Key::Chunk(digest(number))).await.unwrap().size;
            }
            assert_eq!(status.disk_bytes, bytes);
            drop(plan);
            assert_eq!(scene.chunks().await, digests([2, 4]));
        });
    }
}

/// Proves H16.
///
/// A process whose writes all fail removes nothing either: what may be deleted is written down first.
#[test]
fn the_sweep_removes_no_chunk_before_it_stores_the_candidates() {
    block_on(async {
        let scene = scene(true).await;
        leave(&scene.store, &[1, 2]).await;
        drop(back_up(&scene.store, "host/a", &[4]).await.unwrap());
        let full = Action::FailBefore(ErrorKind::Full);
        scene.faults.add(Rule::on(Method::Put, full).keys(|key| *key == Key::GcCandidates));
        let options = GcOptions::clone(&at_once());
        let error = gc::plan(&scene.store, options).await.unwrap().execute().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Full);
        assert_eq!(scene.chunks().await, digests([1, 2, 4]));
        scene.faults.clear();
        assert_eq!(collected(&scene.store, at_once()).await.removed.chunks, 2);
    });
}
