//! State shared by the actors of a history.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Deref;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::Poll;
use std::time::Duration;

use futures::future::{AbortHandle, poll_fn};

use crate::backend::MemoryBackend;
use crate::error::ErrorKind;
use crate::format::name::{GroupName, Namespace, SnapshotName};
use crate::rt::{Runtime as _, SimRuntime};
use crate::simulation::dice::Dice;
use crate::simulation::host::Host;
use crate::simulation::model::{DeleteOutcome, Model, Token};
use crate::simulation::script::Damages;
use crate::store::{Datastore, Options};

/// Everything that a history is about, in the hands of one step: its own dice decide what it does, so that a history without another
/// step does not change it.
#[derive(Debug)]
pub(crate) struct World {
    dice: Mutex<Dice>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub aborts: Mutex<Vec<AbortHandle>>,
    /// The first store in a second process, which runs beside the other one.
    beside: Mutex<Option<Datastore>>,
    counts: Mutex<BTreeMap<String, u64>>,
    pub damages: Damages,
    /// Requests may fail.
    pub faults: bool,
    handed_over: AtomicBool,
    /// A collection ended early.
    has_stopped: AtomicBool,
    pub host: Host,
    /// `None` unless the history is replayed: a log takes most of its time.
    log: Option<Mutex<Vec<String>>>,
    model: Mutex<Model>,
    pub sim: SimRuntime,
    stores: Mutex<Vec<Datastore>>,
}

impl Deref for World {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

/// Facts that hold for a whole history.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Nature {
    pub damages: Damages,
    pub faults: bool,
    pub is_logged: bool,
    pub seed: u64,
}

impl World {
    pub(crate) async fn new(sim: &SimRuntime, host: Host, nature: Nature) -> Self {
        let first = host.create().await;
        let other = MemoryBackend::new(Arc::new(sim.clone())).pages_of(5);
        let second = Datastore::create(Arc::new(other), Options::default()).await.unwrap();
        for store in [&first, &second] {
            for namespace in ["a", "a/b", "c"] {
                store.create_namespace(&namespace.parse().unwrap()).await.unwrap();
                // A listing finds the namespace above.
                sim.sleep(host.place.max_lag()).await;
            }
        }
        let shared = Shared {
            aborts: Mutex::default(),
            beside: Mutex::default(),
            counts: Mutex::default(),
            damages: nature.damages,
            faults: nature.faults,
            handed_over: AtomicBool::new(false),
            has_stopped: AtomicBool::new(false),
            host,
            log: nature.is_logged.then(Mutex::default),
            model: Mutex::new(Model::new(nature.seed)),
            sim: sim.clone(),
            stores: Mutex::new(vec![first, second]),
        };
        Self { dice: Mutex::new(Dice::new(nature.seed)), shared: Arc::new(shared) }
    }

    /// The world in the hands of a step with this seed.
    pub(crate) fn of_step(&self, seed: u64) -> Self {
        Self { dice: Mutex::new(Dice::new(seed)), shared: Arc::clone(&self.shared) }
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    pub(crate) fn below(&self, sides: u64) -> u64 {
        self.dice.lock().unwrap().below(sides)
    }

    pub(crate) fn one_in(&self, sides: u64) -> bool {
        self.below(sides) == 0
    }

    pub(crate) fn pick<T: Clone>(&self, from: &[T]) -> Option<T> {
        self.dice.lock().unwrap().pick(from)
    }

    /// Mostly the first store.
    pub(crate) fn a_store(&self) -> (usize, Datastore) {
        let number = usize::from(self.one_in(8));
        (number, self.store_of_any(number))
    }

    /// A store in the hands of one of the processes that have it open.
    pub(crate) fn store_of_any(&self, number: usize) -> Datastore {
        let beside = self.beside.lock().unwrap().clone();
        match beside {
            Some(beside) if number == 0 && self.one_in(2) => beside,
            _ => self.store(number),
        }
    }

    /// Opens the first store in a second process, if the place can be shared.
    pub(crate) async fn open_beside(&self) {
        if self.host.place.is_shared() && !self.host.has_local_state() {
            let beside = self.host.open_beside().await;
            *self.beside.lock().unwrap() = Some(beside);
        }
    }

    pub(crate) fn store(&self, number: usize) -> Datastore {
        self.stores.lock().unwrap()[number].clone()
    }

    /// Forgets the first store, as a process does that dies.
    pub(crate) fn take_first(&self) {
        let mut stores = self.stores.lock().unwrap();
        // A placeholder: the second store, for a moment in which no operation looks.
        let other = stores[1].clone();
        stores[0] = other;
        *self.beside.lock().unwrap() = None;
    }

    pub(crate) fn put_first(&self, store: Datastore) {
        self.stores.lock().unwrap()[0] = store;
    }

    pub(crate) fn a_namespace(&self) -> Namespace {
        let name = self.pick(&["", "", "", "a", "a", "a/b", "c"]).unwrap();
        name.parse().unwrap()
    }

    pub(crate) fn a_group(&self) -> GroupName {
        let group: GroupName = self.pick(&["host/x", "host/y", "vm/1"]).unwrap().parse().unwrap();
        group.in_namespace(self.a_namespace())
    }

    /// A snapshot that may exist.
    pub(crate) fn a_snapshot(&self, store: usize) -> Option<SnapshotName> {
        let possible = self.model().possible(store);
        self.pick(&possible)
    }

    pub(crate) fn log(&self, line: fmt::Arguments<'_>) {
        if let Some(log) = &self.log {
            log.lock().unwrap().push(format!("{:>12.3?} {line}", self.sim.monotonic()));
        }
    }

    pub(crate) fn history(&self) -> Vec<String> {
        self.log.as_ref().map(|log| log.lock().unwrap().clone()).unwrap_or_default()
    }

    /// Something happened that a test may want to know of.
    pub(crate) fn count(&self, what: impl Into<String>) {
        *self.counts.lock().unwrap().entry(what.into()).or_default() += 1;
    }

    pub(crate) fn counts(&self) -> BTreeMap<String, u64> {
        self.counts.lock().unwrap().clone()
    }

    pub(crate) fn violation(&self, what: fmt::Arguments<'_>) {
        self.log(format_args!("VIOLATION: {what}"));
        self.model().violations.push(what.to_string());
    }

    /// Another process took the store over from a living one.
    pub(crate) fn set_handed_over(&self) {
        self.handed_over.store(true, Ordering::Relaxed);
    }

    fn has_handed_over(&self) -> bool {
        self.handed_over.load(Ordering::Relaxed)
    }

    /// A collection ended early, by an error or because its future was dropped.
    pub(crate) fn set_stopped(&self) {
        self.has_stopped.store(true, Ordering::Relaxed);
    }

    pub(crate) fn has_stopped(&self) -> bool {
        self.has_stopped.load(Ordering::Relaxed)
    }

    /// Returns `true` if requests may be executed after they failed.
    pub(crate) fn may_be_late(&self) -> bool {
        (self.faults || self.has_handed_over()) && self.host.may_be_late()
    }

    /// Returns `true` if an operation may have had effects before it found something busy.
    pub(crate) fn may_be_busy_late(&self) -> bool {
        self.may_be_late() || self.host.place.is_shared()
    }

    pub(crate) fn has_crashed(&self) -> bool {
        self.host.crashes().has_crashed()
    }

    /// Runs it to its end, or drops it in the middle.
    pub(crate) async fn perhaps<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut polls = if self.one_in(9) { self.below(60) } else { u64::MAX };
        let mut work = pin!(work);
        let done = poll_fn(|context| {
            if polls == 0 {
                return Poll::Ready(None);
            }
            polls -= 1;
            work.as_mut().poll(context).map(Some)
        });
        let done = done.await;
        if done.is_none() {
            self.log(format_args!("  dropped"));
        }
        done
    }

    /// Lets others work for a while.
    pub(crate) async fn pause(&self) {
        let pause = match self.below(4) {
            0 => Duration::from_millis(self.below(30)),
            1 => Duration::from_secs(self.below(20)),
            2 => Duration::from_secs(self.below(2000)),
            _ => Duration::ZERO,
        };
        self.sim.sleep(pause).await;
    }

    /// Waits until listings show everything.
    pub(crate) async fn settle(&self) {
        self.sim.sleep(self.host.place.max_lag()).await;
    }

    pub(crate) fn end(&self, tokens: &[Token], fate: impl Fn(&SnapshotName) -> DeleteOutcome) {
        let mut model = self.model();
        for token in tokens {
            model.end(token, fate(&token.spot.1));
        }
    }

    /// The effect of an operation that failed this way on its snapshots.
    pub(crate) fn after_failure(&self, kind: ErrorKind) -> DeleteOutcome {
        self.expect_kind(kind);
        match kind {
            ErrorKind::Busy if self.may_be_busy_late() => DeleteOutcome::Unknown,
            // A server refuses requests whose time is wrong.
            ErrorKind::Denied if self.host.has_own_faults() => DeleteOutcome::Unknown,
            ErrorKind::AlreadyExists
            | ErrorKind::Busy
            | ErrorKind::Conflict
            | ErrorKind::Denied
            | ErrorKind::InvalidInput => DeleteOutcome::Same,
            _ => DeleteOutcome::Unknown,
        }
    }

    /// Returns `true` if an operation may fail this way.
    pub(crate) fn expect_kind(&self, kind: ErrorKind) {
        let is_expected = match kind {
            ErrorKind::Unavailable => self.faults,
            ErrorKind::Corrupt => self.damages != Damages::Nothing,
            ErrorKind::Internal
            | ErrorKind::Full
            | ErrorKind::KeyRequired
            | ErrorKind::Stream
            | ErrorKind::Unsupported
            | ErrorKind::WrongKey => false,
            _ => true,
        };
        if !is_expected {
            self.violation(format_args!("unexpectedly, it failed as {kind:?}"));
        }
    }
}
