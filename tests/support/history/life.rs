//! The course of a history: rounds in which actors work side by side, crashes, and looks at what is left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{AbortHandle, Abortable};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::internal::fault::{Action, Rule};
use larder::internal::record::Method;
use larder::internal::sim::Simulation as _;
use larder::rt::{Runtime as _, SimRuntime};
use larder::store::{Datastore, Options};

use super::place::Kind;
use super::world::World;

/// Longer than any request takes.
const SETTLED: Duration = Duration::from_mins(31);

/// The result of a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The number of operations of each kind.
    pub counts: BTreeMap<String, u64>,
    /// A number that differs between any two courses.
    pub trace: u64,
}

/// Lets the history of a seed happen.
///
/// # Panics
/// If something is not as the model says, with the history.
pub fn live(seed: u64) -> Life {
    let sim = SimRuntime::new(seed);
    let world = sim.block_on(World::new(&sim, seed));
    let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        sim.block_on(history(Arc::clone(&world), seed));
    }));
    let violations = world.model().violations.clone();
    assert!(
        lived.is_ok() && violations.is_empty(),
        "LARDER_SEED={seed} {:?}, packed {} {:?}\n{}\n{violations:#?}",
        world.place.kind,
        world.place.is_packed,
        world.plan,
        world.history(),
    );
    Life { counts: world.counts(), trace: sim.trace() }
}

async fn history(world: Arc<World>, seed: u64) {
    world.log(format_args!("seed {seed}: {:?}, {:?}", world.place.kind, world.plan));
    let rounds = 2 + world.below(3);
    for round in 0..rounds {
        world.log(format_args!("round {round}"));
        go_wrong(&world);
        let crashed = work(&world).await;
        world.place.faults.clear();
        world.place.crashes().crash_at(u64::MAX);
        if crashed {
            begin_anew(&world).await;
        }
        if !crashed || world.one_in(2) {
            look(&world).await;
        }
        if !world.model().violations.is_empty() {
            return;
        }
    }
    end(&world).await;
}

/// Lets single requests go wrong, and perhaps everything crash.
fn go_wrong(world: &World) {
    if !world.plan.faults {
        return;
    }
    let methods = [Method::Put, Method::Delete, Method::Copy, Method::Get, Method::Head, Method::List];
    for _ in 0..world.below(12) {
        let method = world.pick(&methods).unwrap();
        let action = match world.below(5) {
            0 => Action::Cut,
            1 => Action::FailAfter(ErrorKind::Unavailable),
            2 if world.place.kind == Kind::Remote => {
                Action::Late(Duration::from_secs(1 + world.below(1500)), ErrorKind::Unavailable)
            }
            3 => Action::Delay(Duration::from_secs(world.below(100))),
            _ => Action::FailBefore(ErrorKind::Unavailable),
        };
        let nth = 1 + world.below(if method == Method::Put { 150 } else { 40 });
        world.log(format_args!("  {method:?} {nth}: {action:?}"));
        world.place.faults.add(Rule::on(method, action).nth(nth));
    }
    if world.place.kind == Kind::Remote && world.one_in(2) {
        // Deletions of garbage: they may still be executed when a writer needs the chunks again (H16, H17).
        let late = Action::Late(Duration::from_secs(1 + world.below(1500)), ErrorKind::Unavailable);
        let nth = 1 + world.below(3);
        world.log(format_args!("  Delete of chunks {nth}: {late:?}"));
        let rule = Rule::on(Method::Delete, late).keys(|key| matches!(key, Key::Chunk(_) | Key::Pack(_)));
        world.place.faults.add(rule.nth(nth));
    }
    if world.one_in(2) {
        let crashes = world.place.crashes();
        let at = crashes.steps() + 1 + world.below(200);
        world.log(format_args!("  crash at {at}"));
        crashes.crash_at(at);
    }
}

/// Several actors work side by side; whether there was a crash.
async fn work(world: &Arc<World>) -> bool {
    let mut ends = Vec::new();
    for _ in 0..2 + world.below(4) {
        let (done, end) = oneshot::channel();
        let (abort, registration) = AbortHandle::new_pair();
        world.aborts.lock().unwrap().push(abort);
        let actor = act(Arc::clone(world), 4 + world.below(12));
        world.sim.spawn(Box::pin(async move {
            let _ = Abortable::new(actor, registration).await;
            let _ = done.send(());
        }));
        ends.push(end);
    }
    for end in ends {
        if end.await.is_err() {
            world.violation(format_args!("an actor panicked"));
        }
    }
    world.aborts.lock().unwrap().clear();
    world.has_crashed()
}

async fn act(world: Arc<World>, operations: u64) {
    for _ in 0..operations {
        if world.one_in(2) {
            world.pause().await;
        }
        operate(&world).await;
        if world.has_crashed() {
            // Everybody dies at the same moment.
            for abort in world.aborts.lock().unwrap().iter() {
                abort.abort();
            }
            return;
        }
    }
}

async fn operate(world: &Arc<World>) {
    match world.below(100) {
        0..31 => world.back_up().await,
        31..43 => world.restore().await,
        43..55 => world.collect().await,
        55..63 => world.verify().await,
        63..68 => world.prune().await,
        68..73 => world.delete_snapshot().await,
        73..75 => world.delete_many().await,
        75..84 => world.relocate().await,
        84..89 => world.sync().await,
        89..93 => world.protect().await,
        93 => world.annotate().await,
        94 => world.change_clock().await,
        95 | 96 => world.create_namespace().await,
        _ if world.plan.damages => world.damage().await,
        _ => world.back_up().await,
    }
}

/// Another process takes over after a crash.
async fn begin_anew(world: &Arc<World>) {
    world.log(format_args!("crashed"));
    world.count("crash");
    world.take_first();
    world.model().cut_off();
    // Dropped operations clean up, in vain.
    world.sim.sleep(Duration::from_secs(10)).await;
    if world.place.kind == Kind::Remote {
        match world.below(6) {
            0 => world.place.forget_local(),
            1 => world.place.put_copy_back(),
            2 | 3 => world.place.copy_local(),
            _ => {}
        }
    }
    world.put_first(world.place.reopen().await);
}

async fn look(world: &Arc<World>) {
    world.sim.sleep(SETTLED).await;
    for store in [0, 1] {
        world.look(store).await;
    }
}

/// Nothing goes wrong any more: everything heals, and all garbage goes.
async fn end(world: &Arc<World>) {
    world.log(format_args!("end"));
    // However far the clock was set back, what was stored before is older than that.
    world.sim.sleep(Duration::from_hours(30 * 24)).await;
    look(world).await;
    world.heal().await;
    for store in [0, 1] {
        world.tidy(store).await;
        world.collect_everything(store).await;
        world.look(store).await;
        world.expect_no_garbage(store).await;
    }
    if world.one_in(2) {
        let other = larder::backend::MemoryBackend::new(Arc::new(world.sim.clone()));
        let new = Datastore::create(Arc::new(other), Options::default()).await.unwrap();
        world.reencrypt(&new).await;
    }
    if world.one_in(2) {
        world.delete_everything(0).await;
        world.collect_everything(0).await;
        world.look(0).await;
        world.expect_no_garbage(0).await;
    }
}
