//! Clocks, file times, old writers and late requests do not make a garbage collection lose data (H4, H14, H15, H17, H20).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use futures::future;
use futures::io::Cursor;
use larder::backend::{Backend, MemoryBackend, PutMode};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::gc::{self, GcEnd, GcOptions};
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::record::Method;
use larder::internal::sim::Simulation as _;
use larder::rt::{Runtime, SimRuntime};
use larder::store::{Datastore, Options, SnapshotReader, SnapshotWriter};
use larder_testing::gc_scene::{
    CHUNK, OnFailure, at_once, back_up, back_up_on, check, check_all, chunks, collect, collected, created,
    data, digest, digests, group, leave, reason, seeds,
};
use larder_testing::watched::Watched;

const DAY: Duration = Duration::from_hours(24);

/// A store in memory, opened twice, as a directory is or as a bucket is.
struct Scene {
    faults: Arc<FaultBackend>,
    memory: Arc<MemoryBackend>,
    other: Datastore,
    sim: SimRuntime,
    store: Datastore,
    watched: Arc<Watched>,
}

const KINDS: [bool; 2] = [false, true];

async fn scene(sim: &SimRuntime, is_bucket: bool) -> Scene {
    let memory = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
    let faults = Arc::new(FaultBackend::new(Arc::<MemoryBackend>::clone(&memory)));
    let inner: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
    let watched = Watched::of_kind(inner, is_bucket);
    let backend: Arc<dyn Backend> = Arc::<Watched>::clone(&watched);
    let store = created(&backend).await;
    let other = Datastore::open(backend, Options::default()).await.unwrap();
    Scene { faults, memory, other, sim: sim.clone(), store, watched }
}

/// The time since some moment.
fn since(sim: &SimRuntime, begun: Duration) -> Duration {
    sim.monotonic().saturating_sub(begun)
}

/// As by default, whatever the share.
fn patient() -> GcOptions {
    GcOptions::default().max_garbage(100).concurrency(3)
}

/// Begins a backup and writes its image.
async fn half(store: &Datastore, name: &str, numbers: &[u64]) -> SnapshotWriter {
    let backup = store.backup(&group(name)).begin().await.unwrap();
    backup.set_notes(serde_json::to_string(numbers).unwrap());
    let bytes = data(numbers);
    let image = backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64);
    image.chunk_bytes(CHUNK as u64).await.unwrap();
    backup
}

async fn finished(backup: SnapshotWriter) -> SnapshotReader {
    let made = backup.finish().await.unwrap().snapshot;
    check(&made).await.unwrap();
    made
}

/// Proves H4.
#[test]
fn a_writer_older_than_the_grace_time_keeps_its_chunks() {
    for is_bucket in KINDS {
        for ends_meanwhile in [false, true] {
            let sim = SimRuntime::new(1);
            sim.block_on(async {
                let scene = scene(&sim, is_bucket).await;
                leave(&scene.store, &[1, 2]).await;
                collected(&scene.other, patient()).await;
                let backup = half(&scene.store, "host/a", &[1, 5]).await;
                sim.sleep(DAY * 3).await;
                let mut plan = gc::plan(&scene.other, patient()).await.unwrap();
                let made = if ends_meanwhile { Ok(finished(backup).await) } else { Err(backup) };
                plan.execute().await.unwrap();
                drop(plan);
                if let Err(backup) = made {
                    collected(&scene.other, patient()).await;
                    finished(backup).await;
                }
                collected(&scene.other, at_once()).await;
                assert_eq!(check_all(&scene.store).await, 1);
                assert_eq!(chunks(scene.memory.as_ref()).await, digests([1, 5]));
            });
        }
    }
}

/// Proves H4.
///
/// A chunk used since the oldest writer began is young, however long ago that is.
#[test]
fn chunks_used_since_the_oldest_writer_began_are_kept() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let scene = scene(&sim, false).await;
        leave(&scene.store, &[1]).await;
        sim.sleep(Duration::from_mins(10)).await;
        let backup = half(&scene.store, "host/a", &[5]).await;
        leave(&scene.store, &[2]).await;
        sim.sleep(DAY * 3).await;
        let report = collected(&scene.other, patient()).await;
        assert_eq!((report.removed.chunks, report.waiting.chunks), (1, 1));
        finished(backup).await;
        let report = collected(&scene.other, patient()).await;
        assert_eq!((report.removed.chunks, report.waiting.chunks), (1, 0));
        assert_eq!(chunks(scene.memory.as_ref()).await, digests([5]));
    });
}

#[derive(Clone, Copy, Debug)]
enum Jump {
    Back(Duration),
    Forward(Duration),
}

/// Proves H11.
///
/// By a program that knows nothing of sightings, and has no index of it yet.
#[test]
fn a_candidate_that_was_stored_again_counts_as_first_seen() {
    let sim = SimRuntime::new(1);
    sim.clone().block_on(async move {
        let scene = scene(&sim, true).await;
        leave(&scene.store, &[1]).await;
        drop(back_up(&scene.store, "host/a", &[3]).await.unwrap());
        sim.sleep(2 * DAY).await;
        assert_eq!(collected(&scene.store, patient()).await.waiting.chunks, 1);
        sim.sleep(DAY).await;
        let key = Key::Chunk(digest(1));
        let bytes = scene.memory.get(&key, 1 << 20).await.unwrap().bytes;
        scene.memory.put(&key, bytes, PutMode::Replace).await.unwrap();
        sim.sleep(2 * DAY).await;
        let report = collected(&scene.store, patient()).await;
        assert_eq!((report.removed.chunks, report.waiting.chunks), (0, 1));
        sim.sleep(2 * DAY).await;
        assert_eq!(collected(&scene.store, patient()).await.removed.chunks, 1);
    });
}

/// Collects during a backup, and lets the clock jump at one step. Returns the number of steps.
async fn with_a_jump(scene: &Scene, at: usize, jump: Jump) -> usize {
    leave(&scene.store, &[1, 2, 3]).await;
    drop(back_up(&scene.store, "host/b", &[4, 5]).await.unwrap());
    collected(&scene.store, patient()).await;
    scene.sim.sleep(DAY * 2).await;
    leave(&scene.store, &[7]).await;
    let backup = half(&scene.store, "host/a", &[1, 6]).await;
    let (steps, sim) = (Arc::new(AtomicUsize::new(0)), scene.sim.clone());
    let counted = Arc::clone(&steps);
    scene.watched.watch(move |_| {
        if counted.fetch_add(1, Ordering::SeqCst) == at {
            match jump {
                Jump::Back(by) => sim.set_clock_back(by),
                Jump::Forward(by) => sim.set_clock_forward(by),
            }
        }
        Box::pin(async {})
    });
    let first = collect(&scene.other, patient()).await;
    scene.watched.unwatch();
    // Right between a look at either clock.
    assert!(reason(first).is_none_or(|error| error.kind() == ErrorKind::Unavailable));
    collected(&scene.other, patient()).await;
    finished(backup).await;
    collected(&scene.other, patient()).await;
    assert_eq!(check_all(&scene.store).await, 2);
    steps.load(Ordering::SeqCst)
}

/// Proves H14.
#[test]
fn a_clock_jump_at_any_step_removes_no_chunk_in_use() {
    let spans = [Duration::from_hours(1), DAY * 2, DAY * 3652];
    let jumps = spans.iter().flat_map(|span| [Jump::Back(*span), Jump::Forward(*span)]);
    let run = |is_bucket, jump, at| {
        let _on_failure = OnFailure(format!("bucket {is_bucket}, {jump:?} at {at}"));
        let sim = SimRuntime::new(5);
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            with_a_jump(&scene, at, jump).await
        })
    };
    for jump in jumps {
        for is_bucket in KINDS {
            let steps = run(is_bucket, jump, usize::MAX);
            assert!(steps > 20, "{steps}");
            for at in 0..steps {
                run(is_bucket, jump, at);
            }
        }
    }
}

/// Proves H14.
///
/// Backwards, garbage waits for as long as the clock needs to come back; forward, it goes sooner. Neither is for ever.
#[test]
fn garbage_is_removed_eventually_after_any_clock_jump() {
    for is_bucket in KINDS {
        let sim = SimRuntime::new(5);
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            leave(&scene.store, &[1]).await;
            drop(back_up(&scene.store, "host/b", &[4]).await.unwrap());
            collected(&scene.store, patient()).await;
            sim.set_clock_back(DAY * 3);
            assert_eq!(collected(&scene.store, patient()).await.removed.chunks, 0);
            sim.sleep(DAY * 5).await;
            assert_eq!(collected(&scene.store, patient()).await.removed.chunks, 1);
            assert_eq!(chunks(scene.memory.as_ref()).await, digests([4]));
        });
    }
}

/// Proves H14.
///
/// A year behind, garbage need not wait for a year, if the caller says so. In a bucket it is found twice all the same, and a chunk that is
/// stored meanwhile is young.
#[test]
fn garbage_dated_ahead_goes_if_the_clock_was_set_back() {
    for is_bucket in KINDS {
        let sim = SimRuntime::new(5);
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            leave(&scene.store, &[1, 2]).await;
            drop(back_up(&scene.store, "host/b", &[4]).await.unwrap());
            // A candidate of before.
            collected(&scene.store, patient()).await;
            sim.set_clock_back(DAY * 365);
            sim.sleep(DAY * 2).await;
            leave(&scene.store, &[3]).await;
            let set_back = || patient().clock_was_set_back();
            assert_eq!(collected(&scene.store, patient()).await.removed.chunks, 0);
            let first = collected(&scene.store, set_back()).await.removed.chunks;
            assert_eq!(first, if is_bucket { 0 } else { 2 }, "its time as a candidate is ahead too");
            sim.sleep(DAY * 2).await;
            collected(&scene.store, set_back()).await;
            assert_eq!(chunks(scene.memory.as_ref()).await, digests([4]));
            assert_eq!(check_all(&scene.store).await, 1);
        });
    }
}

/// Proves H15.
#[test]
fn wrong_file_times_remove_no_chunk_in_use() {
    for is_bucket in KINDS {
        let sim = SimRuntime::new(1);
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            scene.watched.freeze(Some(SystemTime::UNIX_EPOCH));
            leave(&scene.store, &[1, 2]).await;
            let base = back_up(&scene.store, "host/a", &[3, 4]).await.unwrap();
            let backup = half(&scene.store, "host/b", &[1, 5]).await;
            let report = collected(&scene.other, at_once().grace(DAY)).await;
            assert_eq!(report.removed.chunks, 1, "what nobody uses");
            let next = back_up_on(&scene.store, "host/a", &[3, 1, 6], Some(&base)).await.unwrap();
            drop((base, next));
            finished(backup).await;
            collected(&scene.other, at_once().grace(DAY)).await;
            assert_eq!(check_all(&scene.store).await, 3);
            assert_eq!(chunks(scene.memory.as_ref()).await, digests([1, 3, 4, 5, 6]));
            // In the future everything is young.
            scene.watched.freeze(Some(sim.now() + DAY * 365));
            leave(&scene.store, &[8]).await;
            assert_eq!(collected(&scene.other, at_once().grace(DAY)).await.removed.chunks, 0);
        });
    }
}

/// Deletes garbage by a request that is executed a minute after it was given up, while a backup that needs a part of it begins
/// this time after it. Returns `true` if the backup had to be repeated.
async fn beside_a_late_request(scene: &Scene, begins_after: Duration) -> bool {
    leave(&scene.store, &[1, 2, 3]).await;
    drop(back_up(&scene.store, "host/b", &[4]).await.unwrap());
    let late = Action::Late(Duration::from_mins(1), ErrorKind::Unavailable);
    scene.faults.add(Rule::on(Method::Delete, late).keys(|key| matches!(key, Key::Chunk(_))).first(1));
    let report = collect(&scene.other, at_once().concurrency(1)).await.unwrap();
    assert_eq!((report.removed.chunks, report.failed), (0, 3));
    scene.sim.sleep(begins_after).await;
    let begun = scene.sim.monotonic();
    let made = back_up(&scene.store, "host/a", &[1, 9, 2]).await;
    let took = since(&scene.sim, begun);
    let again = made.is_err();
    match made {
        Ok(made) => check(&made).await.unwrap(),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Conflict);
            let made = back_up(&scene.store, "host/a", &[1, 9, 2]).await.unwrap();
            check(&made).await.unwrap();
        }
    }
    let limit = Duration::from_mins(30).saturating_sub(begins_after);
    assert!(took <= limit, "it waits no longer than a request lives: {took:?}");
    scene.sim.sleep(Duration::from_hours(1)).await;
    assert_eq!(check_all(&scene.store).await, 2);
    again
}

/// Proves H17.
#[test]
fn a_late_delete_breaks_no_snapshot() {
    let mut again = 0;
    for is_bucket in KINDS {
        for seed in 0..seeds(3) {
            for seconds in [0, 1, 59, 60, 61, 600, 1799, 1801] {
                let _on_failure = OnFailure(format!("seed {seed}, bucket {is_bucket}, {seconds} s"));
                let sim = SimRuntime::new(seed);
                let missed = sim.block_on(async {
                    let scene = scene(&sim, is_bucket).await;
                    beside_a_late_request(&scene, Duration::from_secs(seconds)).await
                });
                again += u64::from(missed);
            }
        }
    }
    assert!(again > 0, "none was caught");
}

/// Proves H17.
///
/// That a later request for the same chunks is answered says nothing about the one before.
#[test]
fn an_answered_delete_does_not_end_an_earlier_pending_one() {
    for is_bucket in KINDS {
        let sim = SimRuntime::new(5);
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            leave(&scene.store, &[1, 2, 3]).await;
            drop(back_up(&scene.store, "host/b", &[4]).await.unwrap());
            let late = Action::Late(Duration::from_mins(10), ErrorKind::Unavailable);
            scene
                .faults
                .add(Rule::on(Method::Delete, late).keys(|key| matches!(key, Key::Chunk(_))).first(1));
            let report = collect(&scene.other, at_once().concurrency(1)).await.unwrap();
            assert_eq!((report.removed.chunks, report.failed), (0, 3));
            assert_eq!(collected(&scene.other, at_once().concurrency(1)).await.removed.chunks, 3);
            let made = back_up(&scene.store, "host/a", &[1, 9, 2]).await;
            assert_eq!(made.map(drop).unwrap_err().kind(), ErrorKind::Conflict, "it lost two chunks");
            drop(back_up(&scene.store, "host/a", &[1, 9, 2]).await.unwrap());
            sim.sleep(Duration::from_hours(1)).await;
            assert_eq!(check_all(&scene.store).await, 2);
        });
    }
}

/// Proves H17.
///
/// A writer that had the chunk before it was to be deleted is not the one who loses it; one that took it from its base neither.
#[test]
fn a_writer_stores_a_chunk_with_a_pending_delete_again_and_waits() {
    for is_bucket in KINDS {
        let sim = SimRuntime::new(2);
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            leave(&scene.store, &[1, 2, 3]).await;
            drop(back_up(&scene.store, "host/b", &[4]).await.unwrap());
            let rule = Rule::on(Method::Delete, Action::FailAfter(ErrorKind::Unavailable)).first(1);
            scene.faults.add(rule.keys(|key| matches!(key, Key::Chunk(_))));
            collect(&scene.other, at_once().concurrency(1)).await.unwrap();
            assert_eq!(chunks(scene.memory.as_ref()).await, digests([4]));
            let begun = sim.monotonic();
            let one = back_up(&scene.store, "host/a", &[1, 9]).await.unwrap();
            let waited = since(&sim, begun);
            assert!(waited > Duration::from_mins(29) && waited <= Duration::from_mins(30), "{waited:?}");
            check(&one).await.unwrap();
            drop(one);
            // Afterwards there is nothing to wait for.
            let begun = sim.monotonic();
            drop(back_up(&scene.store, "host/c", &[1, 2, 3]).await.unwrap());
            assert!(since(&sim, begun) < Duration::from_secs(1));
            assert_eq!(check_all(&scene.store).await, 3);
        });
    }
}

/// Proves H161.
///
/// An execution that is dropped in the middle of a request does not know what that did.
#[test]
fn a_dropped_sweep_keeps_its_digest_locks_until_its_request_ends() {
    let sim = SimRuntime::new(2);
    sim.block_on(async {
        let scene = scene(&sim, true).await;
        leave(&scene.store, &[1, 2]).await;
        drop(back_up(&scene.store, "host/b", &[4]).await.unwrap());
        let mut plan = gc::plan(&scene.other, at_once().concurrency(1)).await.unwrap();
        let slow = sim.clone();
        scene.watched.watch(move |step| {
            let (slow, is_delete) = (slow.clone(), step.method == Method::Delete && !step.is_over);
            Box::pin(async move {
                if is_delete {
                    slow.sleep(Duration::from_hours(1)).await;
                }
            })
        });
        future::select(Box::pin(plan.execute()), Box::pin(sim.sleep(Duration::from_secs(5)))).await;
        scene.watched.unwatch();
        drop(plan);
        // It continues, and a writer that needs the chunk waits for its end.
        let begun = sim.monotonic();
        drop(back_up(&scene.store, "host/a", &[1, 9]).await.unwrap());
        assert!(since(&sim, begun) > Duration::from_mins(55));
        assert_eq!(check_all(&scene.store).await, 2);
    });
}

/// Proves H20.
#[test]
fn a_writer_of_a_chunk_being_deleted_waits_for_one_request_at_most() {
    const SLOW: Duration = Duration::from_secs(10);
    for is_bucket in KINDS {
        let sim = SimRuntime::new(4);
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            let garbage: Vec<_> = (100..3500).collect();
            leave(&scene.store, &garbage).await;
            drop(back_up(&scene.store, "host/b", &[4]).await.unwrap());
            let is_chunk = |key: &Key| matches!(key, Key::Chunk(_));
            scene.faults.add(Rule::on(Method::Delete, Action::Delay(SLOW)).keys(is_chunk));
            let begun = sim.monotonic();
            let run = async {
                let report = collect(&scene.other, at_once().concurrency(1)).await.unwrap();
                assert!(matches!(report.end, GcEnd::Complete));
                (report, since(&sim, begun))
            };
            let write = async {
                // In the middle of the first request, and the second.
                let mut longest = Duration::ZERO;
                for (number, name) in [(1_u64, "host/c"), (2, "host/d")] {
                    sim.sleep(SLOW / 2).await;
                    let begun = sim.monotonic();
                    let wanted: Vec<_> = (0..8).map(|part| 100 * number + 400 * part).collect();
                    drop(back_up(&scene.store, name, &wanted).await.unwrap());
                    longest = longest.max(since(&sim, begun));
                }
                longest
            };
            let ((report, took), longest) = future::join(run, write).await;
            assert!(took >= SLOW * 2, "there were several requests, the first by itself: {took:?}");
            assert!(longest <= SLOW + Duration::from_secs(1), "{longest:?}");
            assert!(report.pinned + report.busy > 0, "{report:?}");
            assert_eq!(check_all(&scene.store).await, 3);
        });
    }
}
