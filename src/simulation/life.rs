//! The course of a history: rounds in which actors work side by side, crashes, and looks at what is left.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{AbortHandle, Abortable};

use crate::backend::MemoryBackend;
use crate::backend::fault::Rule;
use crate::format::layout::Key;
use crate::rt::Runtime as _;
use crate::simulation::dice::Dice;
use crate::simulation::script::{Damages, Event, Objects, Operation, Script};
use crate::simulation::world::World;
use crate::store::{Datastore, Options};

/// Time for other work after the last request may have been executed.
pub(crate) const MARGIN: Duration = Duration::from_mins(5);

/// Lets everything happen, and looks at what is left.
pub(crate) async fn history(world: World, script: &Script, seed: u64) {
    let mut seeds = Dice::new(seed ^ 0x0a_11f3);
    world.log(format_args!("seed {seed}, {:?}, {:?}", script.packs, world.host.place));
    world.open_beside().await;
    for round in 0..script.rounds {
        world.log(format_args!("round {round}"));
        let world = world.of_step(seeds.number());
        go_wrong(&world, script.round(round));
        world.host.place.own_faults(true);
        let crashed = work(&world, script.round(round)).await;
        world.host.faults().clear();
        world.host.place.own_faults(false);
        world.host.crashes().crash_at(u64::MAX);
        if crashed {
            begin_anew(&world).await;
        }
        if round + 1 < script.rounds && world.one_in(3) {
            look(&world, true).await;
        }
        if !world.model().violations.is_empty() {
            return;
        }
    }
    end(&world.of_step(seeds.number())).await;
}

/// Lets single requests go wrong, and perhaps everything crash.
fn go_wrong(world: &World, events: impl Iterator<Item = Event>) {
    for event in events {
        match event {
            Event::Crash { at } => {
                let crashes = world.host.crashes();
                crashes.crash_at(crashes.steps() + at);
            }
            Event::Fault { action, count, method, nth, of } => {
                let rule = Rule::on(method, action).from_nth(nth, count);
                world.host.faults().add(match of {
                    Objects::All => rule,
                    Objects::Chunks => rule.keys(|key| matches!(key, Key::Chunk(_) | Key::Pack(_))),
                    Objects::ChunksAndManifests => {
                        rule.keys(|key| matches!(key, Key::Chunk(_) | Key::Manifest(_) | Key::Pack(_)))
                    }
                });
            }
            Event::Operation { .. } => {}
        }
    }
}

/// Several actors work side by side; whether there was a crash.
async fn work(world: &World, events: impl Iterator<Item = Event>) -> bool {
    let mut tasks = BTreeMap::<u64, Vec<(Operation, u64)>>::new();
    for event in events {
        if let Event::Operation { actor, operation, seed } = event {
            tasks.entry(actor).or_default().push((operation, seed));
        }
    }
    let mut ends = Vec::new();
    for operations in tasks.into_values() {
        let (done, end) = oneshot::channel();
        let (abort, registration) = AbortHandle::new_pair();
        world.aborts.lock().unwrap().push(abort);
        let actor = act(world.of_step(0), operations);
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

async fn act(world: World, operations: Vec<(Operation, u64)>) {
    for (operation, seed) in operations {
        let step = world.of_step(seed);
        if step.one_in(2) {
            step.pause().await;
        }
        operate(&step, operation).await;
        if world.has_crashed() {
            // Everybody dies at the same moment.
            for abort in world.aborts.lock().unwrap().iter() {
                abort.abort();
            }
            return;
        }
    }
}

async fn operate(world: &World, operation: Operation) {
    match operation {
        Operation::Annotate => world.annotate().await,
        Operation::BackUp => world.back_up().await,
        Operation::ChangeClock => world.change_clock().await,
        Operation::Collect => world.collect().await,
        Operation::CreateNamespace => world.create_namespace().await,
        Operation::Damage => match world.damages {
            Damages::Index => world.damage_index().await,
            _ => world.damage().await,
        },
        Operation::Delete => world.delete_snapshot().await,
        Operation::DeleteMany => world.delete_many().await,
        Operation::HandOver => world.hand_over().await,
        Operation::Protect => world.protect().await,
        Operation::Prune => world.prune().await,
        Operation::Refresh => world.refresh().await,
        Operation::Relocate => world.relocate().await,
        Operation::Restore => world.restore().await,
        Operation::Suspend => world.suspend().await,
        Operation::Sync => world.sync().await,
        Operation::Verify => world.verify().await,
    }
}

/// Another process takes over after a crash.
async fn begin_anew(world: &World) {
    world.log(format_args!("crashed"));
    world.count("crash");
    world.take_first();
    world.model().cut_off();
    world.host.place.crash(world.below(u64::MAX));
    // Dropped operations clean up, in vain.
    world.sim.sleep(Duration::from_secs(10)).await;
    match world.below(6) {
        0 => world.host.forget_local(),
        1 => world.host.put_copy_back(),
        2 | 3 => world.host.copy_local(),
        _ => {}
    }
    world.put_first(world.host.reopen().await.unwrap());
    world.open_beside().await;
}

async fn look(world: &World, restores: bool) {
    world.sim.sleep(world.host.place.max_late() + world.host.place.max_lag() + MARGIN).await;
    for store in [0, 1] {
        world.look(store, restores).await;
    }
}

/// Nothing goes wrong any more: everything heals, and all garbage goes.
async fn end(world: &World) {
    world.log(format_args!("end"));
    // However far the clock was set back, what was stored before is older than that. Nobody sets the clock of a server.
    if world.host.has_own_faults() {
        world.sim.set_clock_right();
        // Whoever had the lease, nothing is deleted before its requests cannot arrive any more.
        world.take_over().await;
        world.sim.sleep(world.host.place.max_late() + 2 * MARGIN).await;
    } else {
        world.sim.sleep(Duration::from_hours(30 * 24)).await;
    }
    // What is not damaged is verified as a whole next, and restored after the collection.
    look(world, world.damages != Damages::Nothing).await;
    world.heal().await;
    if world.one_in(4) {
        world.expect_costs().await;
    }
    // The second store has no faults of its own. Once in a while is enough.
    for store in if world.one_in(4) { 0..2 } else { 0..1 } {
        world.tidy(store).await;
        world.collect_everything(store).await;
        world.look(store, true).await;
        world.expect_no_garbage(store).await;
    }
    if world.one_in(4) {
        let other = MemoryBackend::new(Arc::new(world.sim.clone()));
        let new = Datastore::create(Arc::new(other), Options::default()).await.unwrap();
        world.reencrypt(&new).await;
    }
    if world.one_in(4) {
        world.delete_everything(0).await;
        world.collect_everything(0).await;
        world.look(0, true).await;
        world.expect_no_garbage(0).await;
    }
}
