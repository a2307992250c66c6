//! Operations beside a garbage collection lose nothing, whatever the order of their steps (H1, H2, H5 to H8, H13, H33).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{self, BoxFuture};
use larder::backend::{Backend, LockReach, MemoryBackend};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::format::name::Namespace;
use larder::gc::{self, GcPlan};
use larder::internal::listing::ShortPages as _;
use larder::internal::record::Method;
use larder::rt::{Runtime, SimRuntime};
use larder::store::{Datastore, Options, SnapshotReader, SnapshotState};
use larder_testing::gc_scene::{
    OnFailure, at_once, back_up, back_up_on, check, check_all, chunks, collect, collected, created, digests,
    group, leave, seeds,
};
use larder_testing::watched::Watched;

/// A store in memory, opened twice, as a directory is or as a bucket is.
#[derive(Clone)]
struct Scene {
    memory: Arc<MemoryBackend>,
    other: Datastore,
    sim: SimRuntime,
    store: Datastore,
    watched: Arc<Watched>,
}

const KINDS: [bool; 2] = [false, true];

async fn scene(sim: &SimRuntime, is_bucket: bool) -> Scene {
    let memory = Arc::new(MemoryBackend::new(Arc::new(sim.clone())).page_entries(3));
    let inner: Arc<dyn Backend> = Arc::<MemoryBackend>::clone(&memory);
    let watched = Watched::of_kind(inner, is_bucket);
    let backend: Arc<dyn Backend> = Arc::<Watched>::clone(&watched);
    let store = created(&backend).await;
    let other = Datastore::open(backend, Options::default()).await.unwrap();
    Scene { memory, other, sim: sim.clone(), store, watched }
}

/// Makes sure that all snapshots are whole, and that what a last collection leaves is what they need.
async fn collect_and_check(scene: &Scene, snapshots: usize, numbers: impl IntoIterator<Item = u64>) {
    scene.watched.unwatch();
    scene.watched.show_all();
    assert_eq!(check_all(&scene.store).await, snapshots);
    collected(&scene.store, at_once()).await;
    assert_eq!(chunks(scene.memory.as_ref()).await, digests(numbers));
    assert_eq!(check_all(&scene.store).await, snapshots);
}

/// Totals of several runs.
#[derive(Default)]
struct Met {
    busy: AtomicU64,
    pinned: AtomicU64,
    removed: AtomicU64,
}

/// Runs a backup that uses a chunk of its own twice, two that nothing used any more, one of its base and a new one; plans a collection
/// at one step of it and executes the plan at another. Returns the number of steps.
async fn beside_a_backup(scene: &Scene, plan_at: usize, execute_at: usize, met: &Arc<Met>) -> usize {
    leave(&scene.store, &[1, 2, 3]).await;
    let base = back_up(&scene.store, "host/a", &[4, 5]).await.unwrap();
    let (steps, plan) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None::<GcPlan>)));
    let execute = {
        let (plan, met) = (Arc::clone(&plan), Arc::clone(met));
        move || -> BoxFuture<'static, ()> {
            let Some(mut made) = plan.lock().unwrap().take() else { return Box::pin(async {}) };
            let met = Arc::clone(&met);
            Box::pin(async move {
                let report = made.execute().await.unwrap();
                met.busy.fetch_add(report.busy, Ordering::Relaxed);
                met.pinned.fetch_add(report.pinned, Ordering::Relaxed);
                met.removed.fetch_add(report.removed.chunks, Ordering::Relaxed);
            })
        }
    };
    let (counted, planned, other, executes) =
        (Arc::clone(&steps), Arc::clone(&plan), scene.other.clone(), execute.clone());
    scene.watched.watch(move |_| {
        let (step, planned) = (counted.fetch_add(1, Ordering::SeqCst), Arc::clone(&planned));
        let (other, executes) = (other.clone(), executes.clone());
        Box::pin(async move {
            if step == plan_at {
                let made = gc::plan(&other, at_once()).await.unwrap();
                *planned.lock().unwrap() = Some(made);
            }
            if step == execute_at {
                executes().await;
            }
        })
    });
    let made = back_up_on(&scene.store, "host/a", &[1, 2, 6, 4, 1], Some(&base)).await.unwrap();
    scene.watched.unwatch();
    execute().await;
    check(&made).await.unwrap();
    drop((base, made));
    collect_and_check(scene, 2, [1, 2, 4, 5, 6]).await;
    steps.load(Ordering::SeqCst)
}

/// Plans at each step of something that has more than `least` of them, and executes at once, in the end, and at every `stride`th step in
/// between. `run` gets the kind of store, the two steps and a seed, and returns the number of steps.
pub(crate) fn at_pairs_of_steps(least: usize, stride: usize, run: impl Fn(bool, usize, usize, u64) -> usize) {
    for seed in 0..seeds(1) {
        for is_bucket in KINDS {
            let steps = run(is_bucket, usize::MAX, usize::MAX, seed);
            assert!(steps > least, "{steps}");
            for plan_at in 0..steps {
                run(is_bucket, plan_at, plan_at, seed);
                run(is_bucket, plan_at, usize::MAX, seed);
                let between = plan_at + 1 + usize::try_from(seed).unwrap() % stride;
                for execute_at in (between..steps).step_by(stride) {
                    run(is_bucket, plan_at, execute_at, seed);
                }
            }
        }
    }
}

/// Proves H1, H2, H5.
#[test]
fn a_collection_at_any_step_of_a_backup_removes_none_of_its_chunks() {
    let met = Arc::new(Met::default());
    let run = |is_bucket, plan_at, execute_at, seed| {
        let _on_failure = OnFailure(format!("seed {seed}, bucket {is_bucket}, {plan_at} to {execute_at}"));
        let sim = SimRuntime::new(seed);
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            beside_a_backup(&scene, plan_at, execute_at, &met).await
        })
    };
    at_pairs_of_steps(40, 13, run);
    let met = [&met.busy, &met.pinned, &met.removed].map(|count| count.load(Ordering::Relaxed));
    assert!(met.iter().all(|count| *count > 0), "busy, pinned and removed: {met:?}");
}

type Action = fn(Scene) -> BoxFuture<'static, ()>;

/// Does something at a step of a collection, and continues the collection afterwards, or waits for it.
async fn beside_a_collection(scene: &Scene, at: usize, action: Action) -> usize {
    let steps = Arc::new(AtomicUsize::new(0));
    let (counted, at_scene) = (Arc::clone(&steps), scene.clone());
    let (ended, mut end) = oneshot::channel();
    let ended = Mutex::new(Some(ended));
    scene.watched.watch(move |_| {
        let step = counted.fetch_add(1, Ordering::SeqCst);
        let Some(ended) = (step == at).then(|| ended.lock().unwrap().take()).flatten() else {
            return Box::pin(async {});
        };
        let scene = at_scene.clone();
        Box::pin(async move {
            let (told, done) = oneshot::channel();
            let beside = scene.clone();
            scene.sim.spawn(Box::pin(async move {
                action(beside).await;
                let _ = told.send(());
                let _ = ended.send(());
            }));
            let deadline = scene.sim.sleep(Duration::from_secs(5));
            future::select(done, Box::pin(deadline)).await;
        })
    });
    collected(&scene.other, at_once()).await;
    scene.watched.unwatch();
    if steps.load(Ordering::SeqCst) > at {
        (&mut end).await.unwrap();
    }
    steps.load(Ordering::SeqCst)
}

fn at_each_step_of_a_collection(action: Action, kept: &[u64]) {
    for seed in 0..seeds(2) {
        for is_bucket in KINDS {
            let mut at = 0;
            loop {
                let _on_failure = OnFailure(format!("seed {seed}, bucket {is_bucket}, step {at}"));
                let sim = SimRuntime::new(seed);
                let steps = sim.block_on(async {
                    let scene = scene(&sim, is_bucket).await;
                    leave(&scene.store, &[1, 2, 3]).await;
                    drop(back_up(&scene.store, "host/a", &[4, 5]).await.unwrap());
                    drop(back_up(&scene.store, "host/z", &[6]).await.unwrap());
                    let steps = beside_a_collection(&scene, at, action).await;
                    if at < steps {
                        collect_and_check(&scene, 2, kept.iter().copied()).await;
                    }
                    steps
                });
                at += 1;
                if at > steps {
                    assert!(steps > 20, "{steps}");
                    break;
                }
            }
        }
    }
}

/// Proves H6.
#[test]
fn a_backup_at_any_step_of_a_collection_keeps_its_chunks() {
    let action: Action = |scene| {
        Box::pin(async move {
            drop(back_up(&scene.store, "host/z", &[1, 2, 6, 7]).await.unwrap());
            let a = scene.store.snapshots(&group("host/a")).await.unwrap().remove(0).name;
            scene.store.delete_snapshot(&a).await.unwrap();
        })
    };
    at_each_step_of_a_collection(action, &[1, 2, 6, 7]);
}

/// The newest finished snapshot of a group, unless it has none.
async fn newest(store: &Datastore, name: &str) -> Option<SnapshotReader> {
    let mut found = store.snapshots(&group(name)).await.unwrap();
    found.retain(|info| info.state == SnapshotState::Finished);
    let newest = found.into_iter().map(|info| info.name).max_by_key(|name| name.time().epoch());
    Some(store.snapshot(&newest?).await.unwrap())
}

/// Proves H7.
#[test]
fn a_base_deleted_during_the_next_backup_leaves_its_reused_chunks() {
    let action: Action = |scene| {
        Box::pin(async move {
            let base = newest(&scene.store, "host/a").await.unwrap();
            // A writer that begins after the collection and reuses everything, which the mark does not see.
            if !scene.watched.capabilities().tracks_last_use {
                scene.watched.hide_what_is_new();
            }
            drop(back_up_on(&scene.store, "host/a", &[4, 5, 2], Some(&base)).await.unwrap());
            let name = base.name().clone();
            drop(base);
            scene.store.delete_snapshot(&name).await.unwrap();
        })
    };
    at_each_step_of_a_collection(action, &[2, 4, 5, 6]);
}

/// Proves H7.
#[test]
fn a_chain_of_backups_and_deleted_bases_beside_collections_keeps_every_chunk() {
    for seed in 0..seeds(30) {
        let _on_failure = OnFailure(format!("seed {seed}"));
        let sim = SimRuntime::new(seed);
        let is_bucket = seed % 2 == 1;
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            drop(back_up(&scene.store, "host/a", &[1, 2, 3]).await.unwrap());
            scene.watched.slow_down();
            let replace = async {
                for round in 0..6 {
                    let base = newest(&scene.store, "host/a").await.unwrap();
                    let numbers = [1, 2, 10 + round];
                    drop(back_up_on(&scene.store, "host/a", &numbers, Some(&base)).await.unwrap());
                    let name = base.name().clone();
                    drop(base);
                    scene.store.delete_snapshot(&name).await.unwrap();
                }
            };
            let collect = async {
                for _ in 0..6 {
                    collected(&scene.other, at_once()).await;
                }
            };
            future::join(replace, collect).await;
            collect_and_check(&scene, 1, [1, 2, 15]).await;
        });
    }
}

/// Draws a number below this.
fn draw(sim: &SimRuntime, below: u64) -> u64 {
    let mut drawn = [0; 8];
    sim.fill_random(&mut drawn);
    u64::from_le_bytes(drawn) % below
}

/// Makes and deletes snapshots of a few chunks that all share.
async fn churn(scene: &Scene, name: &str, store: &Datastore) {
    for _ in 0..5 {
        let numbers: Vec<_> = (0..=draw(&scene.sim, 4)).map(|_| draw(&scene.sim, 6)).collect();
        let base = if draw(&scene.sim, 2) == 0 { newest(store, name).await } else { None };
        match draw(&scene.sim, 5) {
            // A writer that gives up, at the end or in the middle.
            0 => {
                let deadline = Duration::from_micros(draw(&scene.sim, 20_000));
                let made = back_up_on(store, name, &numbers, base.as_ref());
                future::select(Box::pin(made), Box::pin(scene.sim.sleep(deadline))).await;
            }
            _ => drop(back_up_on(store, name, &numbers, base.as_ref()).await.unwrap()),
        }
        drop(base);
        let found = store.snapshots(&group(name)).await.unwrap();
        if found.len() > 1 && draw(&scene.sim, 2) == 0 {
            match store.delete_snapshot(&found[0].name).await {
                Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::NotFound) => {}
                deleted => deleted.map(drop).unwrap(),
            }
        }
    }
}

/// Proves H6.
#[test]
fn random_writers_and_collections_leave_exactly_the_needed_chunks() {
    for seed in 0..seeds(60) {
        let _on_failure = OnFailure(format!("seed {seed}"));
        let sim = SimRuntime::new(seed);
        sim.block_on(async {
            let scene = scene(&sim, seed % 2 == 1).await;
            scene.watched.slow_down();
            let collections = async {
                for _ in 0..8 {
                    match collect(&scene.other, at_once()).await {
                        // An operation that removes leftovers of a dead writer holds the lock for a moment.
                        Err(error) if error.kind() == ErrorKind::Busy => {}
                        done => drop(done.unwrap()),
                    }
                    sim.sleep(Duration::from_millis(draw(&sim, 5))).await;
                }
            };
            let churns = future::join3(
                churn(&scene, "host/a", &scene.store),
                churn(&scene, "host/b", &scene.store),
                churn(&scene, "host/c", &scene.other),
            );
            future::join(churns, collections).await;
            // Aborted backups are cleaned up in the background.
            sim.sleep(Duration::from_secs(10)).await;
            let mut needed = BTreeSet::new();
            for name in scene.store.groups(&Namespace::root()).await.unwrap() {
                for info in scene.store.snapshots(&name).await.unwrap() {
                    let snapshot = scene.store.snapshot(&info.name).await.unwrap();
                    let notes = snapshot.manifest().notes().unwrap();
                    needed.extend(serde_json::from_str::<Vec<u64>>(notes).unwrap());
                }
            }
            let whole = check_all(&scene.store).await;
            collect_and_check(&scene, whole, needed).await;
        });
    }
}

/// Proves H13.
#[test]
fn an_index_that_listings_do_not_show_yet_keeps_its_chunks() {
    for by_other in [false, true] {
        let sim = SimRuntime::new(1);
        sim.block_on(async {
            let scene = scene(&sim, true).await;
            leave(&scene.store, &[1, 2]).await;
            // Long unused, and seen so.
            collected(&scene.store, twice()).await;
            sim.sleep(Duration::from_hours(48)).await;
            scene.watched.hide_what_is_new();
            drop(back_up(&scene.store, "host/a", &[1, 9]).await.unwrap());
            let store = if by_other { &scene.other } else { &scene.store };
            let mut plan = gc::plan(store, twice()).await.unwrap();
            assert_eq!(plan.summary().indexes, 1);
            assert_eq!(plan.execute().await.unwrap().removed.chunks, 1, "only what is not used");
            drop(plan);
            collect_and_check(&scene, 1, [1, 9]).await;
        });
    }
}

/// Proves H13.
///
/// A listing that is behind when a mark begins is not the last one.
#[test]
fn an_index_shown_only_by_a_later_listing_is_marked() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let mut scene = scene(&sim, true).await;
        leave(&scene.store, &[1, 2]).await;
        drop(back_up(&scene.store, "host/b", &[3]).await.unwrap());
        collected(&scene.store, twice()).await;
        sim.sleep(Duration::from_hours(48)).await;
        scene.watched.hide_what_is_new();
        drop(back_up(&scene.store, "host/a", &[1]).await.unwrap());
        // By a process that is no more.
        let backend: Arc<dyn Backend> = Arc::<Watched>::clone(&scene.watched);
        (scene.store, scene.other) = opened_as_new(scene.store, scene.other, &backend).await;
        let watched = Arc::downgrade(&scene.watched);
        scene.watched.watch(move |step| {
            // The listing is past the hidden one by then.
            if step.method == Method::Get && step.keys.iter().any(|key| key.to_string().contains("host/b/")) {
                watched.upgrade().unwrap().show_all();
            }
            Box::pin(async {})
        });
        let mut plan = gc::plan(&scene.store, twice()).await.unwrap();
        assert_eq!((plan.summary().indexes, plan.summary().in_use.chunks), (2, 2));
        assert_eq!(plan.execute().await.unwrap().removed.chunks, 1);
        drop(plan);
        collect_and_check(&scene, 2, [1, 3]).await;
    });
}

/// Opens a store as another process would.
async fn opened_as_new(
    store: Datastore,
    other: Datastore,
    backend: &Arc<dyn Backend>,
) -> (Datastore, Datastore) {
    drop((store, other));
    let open = || Datastore::open(Arc::clone(backend), Options::default());
    (open().await.unwrap(), open().await.unwrap())
}

/// Options that remove candidates that are unreferenced for a day.
fn twice() -> gc::GcOptions {
    gc::GcOptions::default().max_garbage(100)
}

/// Proves H79.
#[test]
fn a_collection_is_refused_where_locks_do_not_reach_all_writers() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let memory = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
        let watched = Watched::with(memory, |capabilities| capabilities.lock_reach = LockReach::Process);
        let backend: Arc<dyn Backend> = watched;
        let store = created(&backend).await;
        assert_eq!(gc::plan(&store, at_once()).await.map(drop).unwrap_err().kind(), ErrorKind::Unsupported);
        gc::plan(&store, at_once().only_process()).await.map(drop).unwrap();
    });
}

/// Proves H33.
#[test]
fn the_second_of_two_concurrent_collections_is_refused() {
    for seed in 0..seeds(10) {
        let _on_failure = OnFailure(format!("seed {seed}"));
        let sim = SimRuntime::new(seed);
        sim.block_on(async {
            let scene = scene(&sim, false).await;
            leave(&scene.store, &[1, 2, 3]).await;
            drop(back_up(&scene.store, "host/a", &[4]).await.unwrap());
            let plan = gc::plan(&scene.store, at_once()).await.unwrap();
            for store in [&scene.store, &scene.other] {
                let second = gc::plan(store, at_once()).await;
                assert_eq!(second.map(drop).unwrap_err().kind(), ErrorKind::Busy);
            }
            drop(plan);
            scene.watched.slow_down();
            let runs = future::join(collect(&scene.store, at_once()), collect(&scene.other, at_once())).await;
            let runs = [runs.0, runs.1].map(|run| run.map(|report| report.removed.chunks));
            let removed: u64 = runs.iter().flatten().sum();
            assert_eq!(removed, 3, "{runs:?}");
            assert!(runs.iter().any(|run| run.as_ref().is_err_and(|error| error.kind() == ErrorKind::Busy)));
            collect_and_check(&scene, 1, [4]).await;
        });
    }
}

/// Proves H7.
///
/// A mark that two writers hold up over and over comes to its end.
#[test]
fn a_mark_ends_although_writers_keep_publishing() {
    let sim = SimRuntime::new(3);
    sim.block_on(async {
        let scene = scene(&sim, true).await;
        leave(&scene.store, &[1]).await;
        drop(back_up(&scene.store, "host/a", &[4]).await.unwrap());
        let (beside, made) = (scene.clone(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&made);
        scene.watched.watch(move |step| {
            let is_index = |key: &Key| key.to_string().ends_with("fidx");
            if step.is_over || !step.keys.iter().any(is_index) || count.load(Ordering::SeqCst) > 40 {
                return Box::pin(async {});
            }
            let (beside, number) = (beside.clone(), count.fetch_add(1, Ordering::SeqCst) as u64);
            Box::pin(async move {
                drop(back_up(&beside.store, "host/a", &[1, 20 + number]).await.unwrap());
            })
        });
        collected(&scene.other, at_once()).await;
        let made = made.load(Ordering::SeqCst);
        assert!((5..40).contains(&made), "it ended while they came: {made}");
        let numbers = [1, 4].into_iter().chain((20..).take(made));
        collect_and_check(&scene, 1 + made, numbers).await;
    });
}
