//! Writers, readers and handles of the same process beside a collection of packs lose nothing, whatever the order of their steps.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use futures::future::BoxFuture;
use larder::backend::Backend;
use larder::gc::{self, GcPlan};
use larder::internal::record::Method;
use larder::rt::SimRuntime;
use larder::store::{Datastore, Options};
use larder_testing::gc_scene::{
    OnFailure, at_each_step, at_once, back_up, check, check_all, collected, digests, group, leave,
};

use crate::packs::{KINDS, Scene, back_up_as, scene};
use crate::races::at_pairs_of_steps;

/// Runs an action at one step of something.
fn act_at(
    scene: &Scene,
    at: usize,
    action: impl FnOnce() -> BoxFuture<'static, ()> + Send + 'static,
) -> Arc<AtomicUsize> {
    let steps = Arc::new(AtomicUsize::new(0));
    let (counted, action) = (Arc::clone(&steps), Mutex::new(Some(action)));
    scene.watched.watch(move |_| {
        let step = counted.fetch_add(1, Ordering::SeqCst);
        match action.lock().unwrap().take_if(|_| step == at) {
            Some(action) => action(),
            None => Box::pin(async {}),
        }
    });
    steps
}

/// A pack with chunks in use and dead ones, two dead packs, and small packs.
async fn littered(scene: &Scene) {
    back_up_as(&scene.store, "host/old", &[1, 2, 3, 4, 5, 6, 7]).await;
    back_up_as(&scene.store, "host/a", &[1, 2]).await;
    back_up_as(&scene.store, "host/old", &[8, 9]).await;
    scene.store.delete_group(&group("host/old")).await.unwrap();
    leave(&scene.store, &[10]).await;
}

async fn collect_and_check(scene: &Scene, snapshots: usize, numbers: impl IntoIterator<Item = u64>) {
    scene.watched.unwatch();
    let wanted: BTreeSet<_> = digests(numbers);
    assert_eq!(check_all(&scene.store).await, snapshots);
    assert_eq!(check_all(&scene.other).await, snapshots);
    collected(&scene.store, at_once()).await;
    assert!(wanted.is_subset(&scene.chunks().await));
    assert_eq!(check_all(&scene.other).await, snapshots);
    // Another process knows only what the segments say.
    let store = scene.opened_as_new().await;
    assert_eq!(check_all(&store).await, snapshots);
    collected(&store, at_once()).await;
    assert_eq!(check_all(&scene.opened_as_new().await).await, snapshots);
}

type Beside = fn(Scene, Datastore) -> BoxFuture<'static, ()>;

/// A backup that uses dead chunks, one in use and a new one.
fn backs_up(_: Scene, store: Datastore) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let made = back_up(&store, "host/b", &[3, 8, 10, 1, 20]).await.unwrap();
        check(&made).await.unwrap();
    })
}

/// A restore of the snapshot in use.
fn restores(_: Scene, store: Datastore) -> BoxFuture<'static, ()> {
    Box::pin(async move { assert_eq!(check_all(&store).await, 1) })
}

/// Lets an operation of a handle run at each step of an execution.
fn beside_executions(beside: Beside, is_new_handle: bool, snapshots: usize) {
    let run = |is_bucket, at| {
        let _on_failure = OnFailure(format!("bucket {is_bucket}, step {at}"));
        let sim = SimRuntime::new(at as u64);
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            littered(&scene).await;
            let mut plan = gc::plan(&scene.store, at_once()).await.unwrap().confirm();
            let (inner, other) = (scene.clone(), scene.other.clone());
            let steps = act_at(&scene, at, move || {
                Box::pin(async move {
                    let store = if is_new_handle { opened(&inner).await } else { other };
                    beside(inner.clone(), store).await;
                })
            });
            plan.execute().await.unwrap();
            scene.watched.unwatch();
            drop(plan);
            let numbers = if snapshots == 2 { vec![1, 2, 3, 8, 10, 20] } else { vec![1, 2] };
            if steps.load(Ordering::SeqCst) > at {
                collect_and_check(&scene, snapshots, numbers).await;
            }
            steps.load(Ordering::SeqCst)
        })
    };
    for is_bucket in KINDS {
        let steps = run(is_bucket, usize::MAX);
        assert!(steps > 20, "{steps}");
        for at in 0..steps {
            run(is_bucket, at);
        }
    }
}

/// Another handle of the same process.
async fn opened(scene: &Scene) -> Datastore {
    let backend: Arc<dyn Backend> = Arc::<larder_testing::watched::Watched>::clone(&scene.watched);
    Datastore::open(backend, Options::default()).await.unwrap()
}

/// Proves H200.
#[test]
fn a_backup_of_another_handle_at_any_step_of_an_execution_keeps_its_chunks() {
    beside_executions(backs_up, false, 2);
}

/// Proves H200.
#[test]
fn a_backup_of_a_handle_that_is_opened_at_any_step_of_an_execution_keeps_its_chunks() {
    beside_executions(backs_up, true, 2);
}

/// Proves H201.
#[test]
fn a_restore_at_any_step_of_an_execution_reads_everything() {
    beside_executions(restores, false, 1);
}

/// Plans at one step of a backup, and executes at another.
async fn beside_a_backup(scene: &Scene, plan_at: usize, execute_at: usize) -> usize {
    littered(scene).await;
    let (steps, plan) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(None::<GcPlan>)));
    let (counted, planned, other) = (Arc::clone(&steps), Arc::clone(&plan), scene.other.clone());
    scene.watched.watch(move |_| {
        let (step, planned, other) =
            (counted.fetch_add(1, Ordering::SeqCst), Arc::clone(&planned), other.clone());
        Box::pin(async move {
            if step == plan_at {
                let made = gc::plan(&other, at_once()).await.unwrap().confirm();
                *planned.lock().unwrap() = Some(made);
            }
            if step == execute_at {
                let made = planned.lock().unwrap().take();
                if let Some(mut made) = made {
                    made.execute().await.unwrap();
                }
            }
        })
    });
    let made = back_up(&scene.store, "host/b", &[3, 8, 10, 1, 20]).await.unwrap();
    scene.watched.unwatch();
    let left = plan.lock().unwrap().take();
    if let Some(mut left) = left {
        left.execute().await.unwrap();
    }
    check(&made).await.unwrap();
    drop(made);
    steps.load(Ordering::SeqCst)
}

/// Proves H200.
#[test]
fn a_collection_of_packs_at_any_step_of_a_backup_removes_none_of_its_chunks() {
    let run = |is_bucket, plan_at, execute_at, seed| {
        let _on_failure = OnFailure(format!("seed {seed}, bucket {is_bucket}, {plan_at} to {execute_at}"));
        let sim = SimRuntime::new(seed);
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            let steps = beside_a_backup(&scene, plan_at, execute_at).await;
            collect_and_check(&scene, 2, [1, 2, 3, 8, 10, 20]).await;
            steps
        })
    };
    at_pairs_of_steps(20, 23, run);
}

/// A handle that is not used between two collections.
///
/// Proves H200.
#[test]
fn a_handle_that_slept_through_two_collections_relies_on_no_pack_that_they_dropped() {
    for is_bucket in KINDS {
        let sim = SimRuntime::new(1);
        sim.block_on(async {
            let scene = scene(&sim, is_bucket).await;
            littered(&scene).await;
            let backup = scene.other.backup(&group("host/b")).begin().await.unwrap();
            backup.set_notes("[1,2]");
            // The chunks in use move to another pack, and vanish with it.
            collected(&scene.store, at_once()).await;
            scene.store.delete_group(&group("host/a")).await.unwrap();
            collected(&scene.store, at_once()).await;
            let data = larder_testing::gc_scene::data(&[1, 2]);
            let image = backup.image("d.img", futures::io::Cursor::new(&data), data.len() as u64);
            image.chunk_bytes(larder_testing::gc_scene::CHUNK as u64).await.unwrap();
            check(&backup.finish().await.unwrap().snapshot).await.unwrap();
            collect_and_check(&scene, 1, [1, 2]).await;
        });
    }
}

/// Dies at a step of an execution.
async fn dies_at(sim: &SimRuntime, step: u64, is_bucket: bool) -> bool {
    let scene = scene(sim, is_bucket).await;
    littered(&scene).await;
    for number in 30..39 {
        back_up_as(&scene.store, &format!("host/{number}"), &[number]).await;
    }
    let mut plan = gc::plan(&scene.store, at_once()).await.unwrap().confirm();
    scene.faults.crash_at(scene.faults.steps() + step);
    let _ = plan.execute().await;
    let died = scene.faults.has_crashed();
    drop(plan);
    let memory: Arc<dyn Backend> = Arc::<larder::backend::MemoryBackend>::clone(&scene.memory);
    let scene = Scene { watched: larder_testing::watched::Watched::of_kind(memory, is_bucket), ..scene };
    let store = scene.opened_as_new().await;
    assert_eq!(check_all(&store).await, 10);
    let made = back_up(&store, "host/b", &[1, 3, 8, 10]).await.unwrap();
    check(&made).await.unwrap();
    drop(made);
    collected(&store, at_once()).await;
    assert_eq!(check_all(&store).await, 11);
    let scene = Scene { store: scene.opened_as_new().await, ..scene };
    assert_eq!(check_all(&scene.store).await, 11);
    // Garbage converges.
    collected(&scene.store, at_once().max_unused(0)).await;
    let all = digests([1, 2, 3, 8, 10].into_iter().chain(30..39));
    assert!(all.is_subset(&scene.chunks().await));
    let bytes: u64 = scene.packs().await.values().sum();
    assert!(bytes < 16 * 4400, "{:?}", scene.packs().await);
    died
}

/// Proves H201.
#[test]
fn after_a_crash_at_any_step_of_an_execution_everything_is_whole_and_the_rest_is_collected() {
    at_each_step(5, &dies_at);
}

/// Between the drop and the first deletion, another program would see the packs.
///
/// Proves H201.
#[test]
fn packs_are_deleted_only_after_their_drop_is_recorded() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let scene = scene(&sim, false).await;
        littered(&scene).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&order);
        scene.watched.watch(move |step| {
            let of_pack = step.keys.iter().any(|key| matches!(key, larder::format::layout::Key::Pack(_)));
            let of_segment =
                step.keys.iter().any(|key| matches!(key, larder::format::layout::Key::Segment(_)));
            match (step.method, step.is_over) {
                (Method::Put, true) if of_segment => seen.lock().unwrap().push("segment"),
                (Method::Barrier, true) => seen.lock().unwrap().push("barrier"),
                (Method::Delete, false) if of_pack => seen.lock().unwrap().push("delete"),
                _ => {}
            }
            Box::pin(async {})
        });
        collected(&scene.store, at_once()).await;
        let order = order.lock().unwrap().clone();
        let delete = order.iter().position(|step| *step == "delete").unwrap();
        // First the copies of chunks in use, and then the drop.
        let steps = ["segment", "barrier", "segment", "barrier"];
        assert_eq!(&order[delete - 4..delete], &steps, "{order:?}");
    });
}
