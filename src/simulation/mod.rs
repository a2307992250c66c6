//! Histories of a store, in which a seed decides everything: a proof that others can run.
//!
//! A [`Simulation`] makes a store in a [`Place`], and lets actors work there side by side: backups (new, incremental, encrypted, of trees,
//! aborted), restores, deletions, prunings, collections of garbage, verifications, syncs, copies and moves, on loose and on packed stores.
//! Futures are dropped in the middle. Calls fail, take long, lose their answers or are executed late or twice; deletions of many objects
//! succeed in part; chunks and parts of the index are damaged; the clock jumps and the host sleeps; the host crashes and loses what was not
//! flushed; a second instance takes the store over, or works beside the first. The code of this crate above
//! [`Backend`](crate::backend::Backend) and [`Runtime`](crate::rt::Runtime) is the real one.
//!
//! After each history:
//!
//! * every acknowledged snapshot that was not deleted is listed, and restores bit for bit;
//! * nothing is listed that is not whole, unless a chunk of it was damaged; then a verification names it, and a backup of the same
//!   contents heals it;
//! * no protected snapshot was deleted, and no deleted one has come back;
//! * two collections of garbage leave exactly the chunks that the snapshots need, or less than a whole pack more. It takes two more if a chunk
//!   has copies in several packs, and a new process if a collection was interrupted;
//! * every call came to an end, and no error was of a kind that the faults do not explain;
//! * a backup and a restore made few calls of the backend, and the whole history stayed below a bound.
//!
//! ```
//! use larder::simulation::Simulation;
//!
//! let history = Simulation::default().run(7).unwrap();
//! assert!(history.steps > 0);
//! ```
//!
//! `cargo run --release --example simulate --features testing -- --seeds 10000` runs many of them. For a backend of your own, implement
//! [`Place`]; the guide `manual::proof` shows how.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "it is equipment for tests, which a broken promise ends"
)]
#![expect(clippy::cast_possible_truncation, clippy::cast_possible_wrap, reason = "small numbers")]

mod backup;
mod blocks;
#[cfg(feature = "s3")]
pub(crate) mod bucket;
mod check;
mod cost;
mod damage;
mod device;
mod dice;
mod host;
mod index;
mod keys;
mod life;
mod model;
mod odd;
mod opened;
mod place;
mod relocate;
mod remove;
mod script;
#[cfg(feature = "s3")]
mod server;
mod sharing;
mod source;
mod transfer;
mod tree;
mod trees;
mod unless;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};

use crate::rt::{Runtime as _, SimRuntime};
use crate::simulation::device::{Device, Kind};
use crate::simulation::host::Host;
use crate::simulation::life::history;
use crate::simulation::script::Script;
#[cfg(feature = "s3")]
use crate::simulation::server::Server;
use crate::simulation::world::{Nature, World};

pub use place::Place;

/// No history has as much to do: it goes round in circles.
const MAX_TIME: Duration = Duration::from_hours(10 * 365 * 24);
/// The most calls of the backend in a history, for each of its steps.
const MAX_CALLS: u64 = 2000;

/// One of so many histories has a server: its requests take most of the time.
#[cfg(feature = "s3")]
const SERVERS: u64 = 16;

type Factory = dyn Fn(&SimRuntime, u64) -> Arc<dyn Place> + Send + Sync;

/// Runs histories of stores in places of one kind.
#[must_use]
pub struct Simulation {
    local: Option<PathBuf>,
    places: Box<Factory>,
}

/// The course of a history that kept all promises.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct History {
    /// Number of calls of the backend by the last process.
    pub calls: u64,
    /// Number of operations of each kind and outcome.
    pub counts: BTreeMap<String, u64>,
    /// Number of steps.
    pub steps: usize,
    /// A number that differs between any two courses.
    pub trace: u64,
}

/// A history that went wrong.
#[derive(Clone, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Failure {
    /// The log of the history, if it was replayed.
    pub log: Vec<String>,
    /// The seed.
    pub seed: u64,
    /// The steps, each with its number.
    pub steps: BTreeMap<usize, String>,
    /// The promises that were broken.
    pub violations: Vec<String>,
}

/// Steps of a history that are left out, and whether its course is wanted.
struct Choice<'a> {
    is_logged: bool,
    only: Option<&'a [usize]>,
}

impl Default for Simulation {
    /// Histories in simulated places, as the seed decides: a disk, a bucket, or, with the feature `s3`, a server behind the S3 client.
    fn default() -> Self {
        Self::new(|sim, seed| {
            #[cfg(feature = "s3")]
            if seed % SERVERS == 6 {
                return Arc::new(Server::new(sim, seed)) as Arc<dyn Place>;
            }
            let kind = if seed.is_multiple_of(2) { Kind::Bucket } else { Kind::Disk };
            Arc::new(Device::new(sim, seed, kind))
        })
    }
}

impl fmt::Debug for Simulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Simulation").field("local", &self.local).finish_non_exhaustive()
    }
}

impl Simulation {
    /// Histories in places that `places` makes, each empty and for one history. It gets the runtime, on which everything must run, and the
    /// seed.
    pub fn new(places: impl Fn(&SimRuntime, u64) -> Arc<dyn Place> + Send + Sync + 'static) -> Self {
        Self { local: None, places: Box::new(places) }
    }

    /// Gives the processes local state in this directory, which the histories empty. Default: none.
    pub fn local_state(mut self, directory: impl Into<PathBuf>) -> Self {
        self.local = Some(directory.into());
        self
    }

    /// Runs the history of a seed. The same seed always gives the same history, unless the place differs.
    ///
    /// # Errors
    /// If a promise was broken.
    pub fn run(&self, seed: u64) -> Result<History, Box<Failure>> {
        self.run_with(seed, &Choice { is_logged: false, only: None })
    }

    /// Runs only these steps of the history of a seed, and tells its course in a failure.
    ///
    /// # Errors
    /// If a promise was broken.
    pub fn replay(&self, seed: u64, steps: Option<&[usize]>) -> Result<History, Box<Failure>> {
        self.run_with(seed, &Choice { is_logged: true, only: steps })
    }

    /// Leaves out steps of a history that failed, as long as it still fails, and returns the shortest one with its course.
    #[must_use]
    pub fn shrink(&self, failure: Box<Failure>) -> Box<Failure> {
        let mut best: Vec<usize> = failure.steps.keys().copied().collect();
        let mut part = best.len().div_ceil(2);
        while part > 0 {
            let mut at = 0;
            let mut is_shorter = false;
            while at < best.len() {
                let end = (at + part).min(best.len());
                let fewer = [&best[..at], &best[end..]].concat();
                if self.run_with(failure.seed, &Choice { is_logged: false, only: Some(&fewer) }).is_err() {
                    (best, is_shorter) = (fewer, true);
                } else {
                    at = end;
                }
            }
            // A step that was needed may not be without the others.
            part = if part > 1 { part / 2 } else { usize::from(is_shorter) };
        }
        self.replay(failure.seed, Some(&best)).err().unwrap_or(failure)
    }

    fn run_with(&self, seed: u64, choice: &Choice<'_>) -> Result<History, Box<Failure>> {
        let sim = SimRuntime::new(seed);
        let place = (self.places)(&sim, seed);
        let has_own_faults = place.own_faults(false);
        let mut script = Script::of(seed, if has_own_faults { Duration::ZERO } else { place.max_late() });
        script.faults |= has_own_faults;
        let mut steps = BTreeMap::new();
        let numbered = std::mem::take(&mut script.steps).into_iter().enumerate();
        for (number, step) in
            numbered.filter(|(number, _)| choice.only.is_none_or(|only| only.contains(number)))
        {
            steps.insert(number, step.to_string());
            script.steps.push(step);
        }
        if let Some(directory) = &self.local {
            // Nothing may be left of an earlier history.
            let _ = std::fs::remove_dir_all(directory);
        }
        let host = Host::new(&sim, place, script.packs, self.local.clone());
        let (damages, faults, is_logged) = (script.damages, script.faults, choice.is_logged);
        let nature = Nature { damages, faults, is_logged, seed };
        let world = sim.block_on(World::new(&sim, host, nature));
        let own = world.of_step(seed);
        let lived = catch_unwind(AssertUnwindSafe(|| {
            sim.block_on(async {
                let end = sim.sleep(MAX_TIME);
                match select(Box::pin(history(own, &script, seed)), end).await {
                    Either::Left(_) => true,
                    Either::Right(_) => false,
                }
            })
        }));
        let calls = world.host.faults().calls();
        match lived {
            Ok(true) if calls <= MAX_CALLS * (10 + steps.len() as u64) => {}
            Ok(true) => world.violation(format_args!("{calls} calls of the backend are too many")),
            Ok(false) => world.violation(format_args!("it does not end")),
            Err(panic) => world.violation(format_args!("panic: {}", text_of(&*panic))),
        }
        let violations = world.model().violations.clone();
        if violations.is_empty() {
            return Ok(History { calls, counts: world.counts(), steps: steps.len(), trace: sim.trace() });
        }
        Err(Box::new(Failure { log: world.history(), seed, steps, violations }))
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of an unknown kind")
}

impl fmt::Display for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} steps, {} calls of the backend, nothing lost", self.steps, self.calls)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for violation in &self.violations {
            writeln!(f, "{violation}")?;
        }
        for (number, step) in &self.steps {
            writeln!(f, "  {number}: {step}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}
