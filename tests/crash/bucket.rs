//! A process dies after each request that changes a bucket, which was executed or not. The next one, on the same host with the same local state
//! or on another host, takes the store over.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::channel::oneshot;
use futures::future::{self, Either};
use larder::backend::{Backend, Ownership};
use larder::error::Result;
use larder::http::{HttpTransport, Request, Response, TransportError};
use larder::internal::sim_bucket::{SimBucket, Wire};
use larder::local::{LocalOptions, LocalState};
use larder::rt::{Runtime, SimRuntime};
use larder_testing::gc_scene::OnFailure;
use larder_testing::life::{self, Life};

use crate::operations::{OPERATIONS, Operation};
use crate::scene::{World, copy_directory, new_sim};
use crate::steps::{Course, Steps, goes_on};

/// Until then requests of a dead process may be executed, and its lease is respected.
const TAKEN_OVER: Duration = Duration::from_mins(40);

/// The way of a process to the bucket, which ends with a request that changes something.
#[derive(Debug)]
struct Mortal {
    changes: AtomicU64,
    /// The last request that is sent, and whether it is executed.
    end: Option<(u64, bool)>,
    is_dead: AtomicBool,
    told: Mutex<Option<oneshot::Sender<()>>>,
    wire: Wire,
}

#[async_trait]
impl HttpTransport for Mortal {
    async fn exchange(&self, request: &Request) -> Result<Response, TransportError> {
        if self.is_dead.load(Ordering::SeqCst) {
            return future::pending().await;
        }
        let is_change = matches!(request.method, "PUT" | "POST" | "DELETE");
        let number = if is_change { self.changes.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
        match self.end {
            Some((last, is_executed)) if number == last => {
                if is_executed {
                    drop(self.wire.exchange(request).await);
                }
                self.is_dead.store(true, Ordering::SeqCst);
                if let Some(told) = self.told.lock().unwrap().take() {
                    // Nobody waits for it any more.
                    let _ = told.send(());
                }
                future::pending().await
            }
            _ => self.wire.exchange(request).await,
        }
    }
}

/// A process that has the store.
struct Process {
    death: oneshot::Receiver<()>,
    life: Arc<Life>,
    wire: Arc<Mortal>,
    world: World,
}

async fn process(
    sim: &SimRuntime,
    bucket: &Arc<SimBucket>,
    directory: &Path,
    has_local_state: bool,
    end: Option<(u64, bool)>,
    host: Option<&str>,
    is_other_host: bool,
) -> Process {
    static MADE: AtomicU64 = AtomicU64::new(1);
    let (told, death) = oneshot::channel();
    let life = Arc::new(Life::new(sim));
    // No process shares memory with another one, unless it is on the same host.
    let uuid = match host {
        Some(uuid) => uuid.to_owned(),
        None => format!("{:032x}", MADE.fetch_add(1, Ordering::Relaxed)),
    };
    let wire = Arc::new(Mortal {
        changes: AtomicU64::new(0),
        end,
        is_dead: AtomicBool::new(false),
        told: Mutex::new(Some(told)),
        wire: Wire { bucket: Arc::clone(bucket), uuid },
    });
    let runtime: Arc<dyn Runtime> = Arc::<Life>::clone(&life);
    let backend = life::backend(Arc::clone(&runtime), Arc::<Mortal>::clone(&wire)).unwrap();
    let mut ownership = Ownership::default();
    if has_local_state {
        let local =
            LocalState::open(&runtime, directory.join("local"), LocalOptions::default()).await.unwrap();
        ownership = ownership.instance(local.instance());
    }
    let backend: Arc<dyn Backend> = Arc::new(backend.ownership(ownership));
    let directory = directory.to_owned();
    let world = World { backend, directory, has_local_state, is_other_host, is_packed: false, runtime };
    Process { death, life, wire, world }
}

impl Process {
    fn packed(mut self, is_packed: bool) -> Self {
        self.world.is_packed = is_packed;
        self
    }
}

/// What an operation begins with, and what it does without a crash.
struct Scene {
    bucket: Arc<SimBucket>,
    changes: u64,
    course: Course,
    outside: tempfile::TempDir,
}

async fn make_scene(sim: &SimRuntime, is_packed: bool) -> Arc<SimBucket> {
    let (bucket, scratch) = (SimBucket::new(sim), larder_testing::scratch());
    let made = process(sim, &bucket, scratch.path(), false, None, None, false).await.packed(is_packed);
    made.world.make().await;
    made.life.kill();
    bucket
}

async fn scene(
    sim: &SimRuntime,
    made: &SimBucket,
    operation: &Operation,
    is_packed: bool,
    time: Duration,
) -> Scene {
    let (bucket, outside, scratch) = (made.copy(sim), larder_testing::scratch(), larder_testing::scratch());
    sim.sleep(time).await;
    if let Some(prepare) = operation.prepare {
        let first = process(sim, &bucket, outside.path(), false, None, None, false).await.packed(is_packed);
        prepare(&first.world).await.unwrap();
        first.life.kill();
        sim.sleep(TAKEN_OVER).await;
    }
    copy_directory(outside.path(), scratch.path());
    let kept = bucket.copy(sim);
    let reader = process(sim, &bucket, scratch.path(), false, None, None, false).await.packed(is_packed);
    let before = reader.world.state().await;
    reader.life.kill();
    let worker = process(sim, &bucket, scratch.path(), operation.has_local_state, None, None, false)
        .await
        .packed(is_packed);
    (operation.run)(&worker.world).await.unwrap();
    let changes = worker.wire.changes.load(Ordering::SeqCst);
    (operation.outside)(scratch.path(), true);
    worker.life.kill();
    sim.sleep(TAKEN_OVER).await;
    let next = process(sim, &bucket, scratch.path(), false, None, None, false).await.packed(is_packed);
    let course = Course::new(before, &next.world, operation).await;
    next.life.kill();
    Scene { bucket: kept, changes, course, outside }
}

async fn dies_at(
    sim: &SimRuntime,
    scene: &Scene,
    operation: &Operation,
    is_packed: bool,
    end: (u64, bool),
    time: Duration,
) {
    let (bucket, scratch) = (scene.bucket.copy(sim), larder_testing::scratch());
    copy_directory(scene.outside.path(), scratch.path());
    sim.sleep(time).await;
    let has_local_state = operation.has_local_state;
    let dying = process(sim, &bucket, scratch.path(), has_local_state, Some(end), None, false)
        .await
        .packed(is_packed);
    let Process { death, life, wire, world } = dying;
    let run = operation.run;
    let (sender, receiver) = oneshot::channel();
    life.spawn(Box::pin(async move {
        let done = run(&world).await;
        drop(sender.send(done));
    }));
    let is_over = match future::select(receiver, death).await {
        Either::Left((done, _)) => {
            done.unwrap().unwrap();
            true
        }
        Either::Right(_) => false,
    };
    life.kill();
    sim.sleep(TAKEN_OVER).await;
    let is_same_host = has_local_state && end.0.is_multiple_of(2);
    let is_other_host = has_local_state && !is_same_host;
    let host = is_same_host.then_some(wire.wire.uuid.as_str());
    let next = process(sim, &bucket, scratch.path(), has_local_state, None, host, is_other_host).await;
    let next = next.packed(is_packed);
    goes_on(Some(next.world.clone()), operation, &scene.course, is_over).await;
    next.life.kill();
}

fn every_request(place: u64, is_packed: bool) {
    let time = Duration::from_hours(24);
    let sim = new_sim();
    let made = sim.block_on(make_scene(&sim, is_packed));
    let mut steps = Steps::new(place);
    for (number, operation) in OPERATIONS.iter().enumerate() {
        if !operation.fits(true, is_packed) || !steps.has(number) {
            continue;
        }
        let _on_failure = OnFailure(format!("{} in a bucket, packed: {is_packed}", operation.name));
        let sim = new_sim();
        let scene = sim.block_on(scene(&sim, &made, operation, is_packed, time));
        for step in 1..=scene.changes {
            for is_executed in [false, true] {
                if !steps.is_chosen() {
                    continue;
                }
                let _on_failure = OnFailure(format!("request {step}, executed: {is_executed}"));
                let sim = new_sim();
                sim.block_on(dies_at(&sim, &scene, operation, is_packed, (step, is_executed), time * 2));
                steps.tried += 1;
            }
        }
    }
    eprintln!("in a bucket, packed: {is_packed}: {} deaths", steps.tried);
    assert!(steps.tried > 0, "nothing was tried");
}

/// Proves H37.
#[test]
fn after_the_death_of_a_process_at_any_request_of_any_operation_the_next_one_goes_on() {
    every_request(4, false);
}

/// Proves H37.
#[test]
fn after_the_death_of_a_process_at_any_request_of_any_operation_on_packs_the_next_one_goes_on() {
    every_request(5, true);
}
