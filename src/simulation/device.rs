//! A simulated disk and a simulated bucket.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::backend::memory::Stored;
use crate::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, Housekeeping, LeaseTerm, ListPage, ListQuery,
    LockGuard, LockMode, LockScope, MemoryBackend, Object, ObjectInfo, PendingMoves, PutMode, Removal,
    SingleProcess, Touched, Version,
};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::rt::{Runtime, SimRuntime};
use crate::simulation::dice::Dice;
use crate::simulation::place::Place;
use crate::simulation::sharing::Sharing;

/// After this time, a request that got no answer is not executed any more.
const MAX_LATE: Duration = Duration::from_mins(30);

/// The behaviour of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// As in a bucket: only requests show its objects, one process has the lease, and requests may be executed late.
    Bucket,
    /// As on a disk: a crash loses what was not flushed.
    Disk,
}

/// A place in memory, which a seed decides.
pub(crate) struct Device(Arc<Shared>);

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { capabilities, kind, lag, latency, .. } = &*self.0;
        let conditional = capabilities.conditional_delete;
        let puts = capabilities.conditional_put;
        let shared = self.0.sharing.is_some();
        write!(
            f,
            "{kind:?}: lag {lag:?}, latency {latency:?}, conditional deletes {conditional}, puts {puts}, shared: {shared}"
        )
    }
}

#[derive(Debug)]
struct Shared {
    capabilities: Capabilities,
    identity: u64,
    kind: Kind,
    lag: Duration,
    latency: Duration,
    objects: MemoryBackend,
    /// Several processes may have the disk open.
    sharing: Option<Arc<Sharing>>,
    sim: SimRuntime,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    dice: Dice,
    /// Number of changes that were flushed.
    flushed: usize,
    /// Number of processes that opened it. The last one has it, or all of them since the last crash.
    processes: u64,
    /// Number of processes that crashed.
    crashed: u64,
    /// The times at which manifests were stored, by path.
    manifests: BTreeMap<String, Duration>,
    /// States that listings show instead of the current ones, and until when.
    outdated: BTreeMap<String, Outdated>,
    /// Earlier states of paths that were changed since the last barrier, in the order of the changes.
    unflushed: Vec<Unflushed>,
}

/// A change that no barrier flushed.
#[derive(Debug)]
struct Unflushed {
    before: Option<Stored>,
    /// It stored an object that is flushed only by a barrier: a crash may cut it.
    may_be_cut: bool,
    path: String,
}

type Outdated = (Option<Stored>, Duration);

impl Device {
    pub(crate) fn new(sim: &SimRuntime, seed: u64, kind: Kind) -> Self {
        let mut dice = Dice::new(seed ^ 0x00de_71ce);
        let mut capabilities = Capabilities::local();
        let is_bucket = kind == Kind::Bucket;
        if is_bucket {
            capabilities.tracks_last_use = false;
            capabilities.consistent_listing = false;
            capabilities.cheap_presence = false;
            capabilities.conditional_delete = dice.one_in(2);
            capabilities.conditional_put = !dice.one_in(3);
        }
        let lag = if is_bucket && dice.one_in(3) { dice.below(900) } else { 0 };
        let latency = if dice.one_in(2) { dice.below(40) } else { 0 };
        let objects = MemoryBackend::new(Arc::new(sim.clone())).pages_of(3 + dice.below(20) as usize);
        let sharing = (!is_bucket && dice.one_in(3)).then(Arc::default);
        let identity = dice.number();
        let state = State {
            dice,
            crashed: 0,
            flushed: 0,
            manifests: BTreeMap::new(),
            processes: 0,
            outdated: BTreeMap::new(),
            unflushed: Vec::new(),
        };
        Self(Arc::new(Shared {
            capabilities,
            identity,
            kind,
            lag: Duration::from_secs(lag),
            latency: Duration::from_millis(latency),
            objects,
            sharing,
            sim: sim.clone(),
            state: Mutex::new(state),
        }))
    }
}

#[async_trait]
impl Place for Device {
    async fn open(&self, instance: u64) -> Result<Arc<dyn Backend>> {
        let device = Arc::clone(&self.0);
        let number = {
            let mut state = device.state();
            state.processes += 1;
            state.processes
        };
        let inherits = number > 1 && device.kind == Kind::Bucket;
        let in_doubt_until = device.sim.monotonic() + if inherits { MAX_LATE } else { Duration::ZERO };
        let term = LeaseTerm { continues: None, epoch: number << 32, since: number << 32, in_doubt: false };
        let local = SingleProcess::new(Arc::new(device.sim.clone()));
        let uuid = format!("{:016x}{instance:016x}", device.identity);
        Ok(Arc::new(Process { device, in_doubt_until, local, number, term: Mutex::new(term), uuid }))
    }

    fn crash(&self, seed: u64) {
        let mut state = self.0.state();
        // No process has it.
        state.processes += 1;
        state.crashed = state.processes;
        if let Some(sharing) = &self.0.sharing {
            sharing.crash();
        }
        let unflushed = std::mem::take(&mut state.unflushed);
        drop(state);
        self.0.lose(unflushed, &mut Dice::new(seed));
    }

    fn hand_over(&self) -> bool {
        self.0.kind == Kind::Bucket
    }

    fn is_shared(&self) -> bool {
        self.0.sharing.is_some()
    }

    fn max_lag(&self) -> Duration {
        self.0.lag
    }

    fn max_late(&self) -> Duration {
        if self.0.kind == Kind::Bucket { MAX_LATE } else { Duration::ZERO }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Loses changes that were not flushed: all, none, those after one of them, or some for each path. Of chunks and packs that were not
    /// flushed and stay, some are cut.
    fn lose(&self, unflushed: Vec<Unflushed>, dice: &mut Dice) {
        let kept = match dice.below(4) {
            0 => 0,
            1 => unflushed.len() as u64,
            _ => dice.below(unflushed.len() as u64 + 1),
        };
        let each_differs = dice.one_in(3);
        let (mut kept_of, mut uncertain) = (BTreeMap::new(), BTreeSet::new());
        for (at, Unflushed { before, may_be_cut, path }) in unflushed.into_iter().enumerate().rev() {
            let drawn = dice.below(u64::MAX) % (at as u64 + 2);
            let kept = if each_differs { *kept_of.entry(path.clone()).or_insert(drawn) } else { kept };
            if at as u64 >= kept {
                self.objects.restore_state(&path, before);
            } else if may_be_cut {
                uncertain.insert(path);
            }
        }
        for path in uncertain {
            let length = self.objects.state_of(&path).map_or(0, |stored| stored.len());
            if dice.one_in(4) {
                self.objects.cut(&path, dice.below(length as u64 + 1) as usize);
            }
        }
    }

    /// A call begins: it takes a while.
    async fn admit(&self) {
        if !self.latency.is_zero() {
            let most = self.latency.as_millis() as u64;
            let pause = self.state().dice.below(most + 1);
            self.sim.sleep(Duration::from_millis(pause)).await;
        }
    }

    /// Keeps what a change replaces, as far as it may be seen again.
    fn change(&self, key: &Key, is_put: bool) {
        let path = key.path();
        if is_put && matches!(key.exposed(), Key::Manifest(_)) {
            self.state().manifests.insert(path.clone(), self.sim.monotonic());
        }
        if self.kind == Kind::Disk {
            let before = self.objects.state_of(&path);
            // Other files are flushed before they are renamed, and the contents of a chunk are not replaced by others. A pack is stored
            // once: over an existing one, a history only stores damage, and damage of one chunk must not become that of others.
            let may_be_cut = match key {
                Key::Chunk(_) | Key::Quarantined(..) => is_put,
                Key::Pack(_) => is_put && before.is_none(),
                _ => false,
            };
            self.state().unflushed.push(Unflushed { before, may_be_cut, path });
        } else if !self.lag.is_zero() {
            let before = self.objects.state_of(&path);
            let now = self.sim.monotonic();
            let mut state = self.state();
            let until = now + Duration::from_secs(state.dice.below(self.lag.as_secs() + 1));
            if state.outdated.get(&path).is_none_or(|(_, until)| *until < now) {
                state.outdated.insert(path, (before, until));
            }
        }
    }
}

/// A process that has the place open.
#[derive(Debug)]
struct Process {
    device: Arc<Shared>,
    /// Requests of earlier processes may be executed until then.
    in_doubt_until: Duration,
    local: SingleProcess,
    number: u64,
    term: Mutex<LeaseTerm>,
    /// The identity of the store for this process. So nothing that it has in memory is shared with others.
    uuid: String,
}

impl Process {
    fn is_in_doubt(&self) -> bool {
        self.device.sim.monotonic() < self.in_doubt_until
    }

    /// The earlier process may have been storing this manifest when it lost the place: it is absent, or was stored shortly before. Without
    /// conditional puts, its change of any manifest may be executed too.
    fn check_stays_deleted(&self, key: &Key) -> Result<()> {
        if !matches!(key.exposed(), Key::Manifest(_)) || !self.is_in_doubt() {
            return Ok(());
        }
        let since = self.device.sim.monotonic().saturating_sub(2 * MAX_LATE);
        let is_there = self.device.objects.state_of(&key.path()).is_some();
        let stored = self.device.state().manifests.get(&key.path()).copied().filter(|_| is_there);
        let has_ended = stored.is_some_and(|stored| stored < since);
        if has_ended && self.device.capabilities.conditional_put {
            return Ok(());
        }
        Err(Error::new(ErrorKind::Busy, "delete").on(key))
    }

    fn has_lease(&self) -> bool {
        let state = self.device.state();
        match self.device.sharing {
            Some(_) => self.number > state.crashed,
            None => self.number == state.processes,
        }
    }

    /// A disk is gone with its host. A bucket executes what was sent before.
    async fn admit(&self) -> Result<&MemoryBackend> {
        self.device.admit().await;
        if self.device.kind == Kind::Disk && !self.has_lease() {
            return Err(Error::new(ErrorKind::Unavailable, "use the disk").because("the host has crashed"));
        }
        Ok(&self.device.objects)
    }

    fn identified(&self, object: Object) -> Object {
        let marker = b"\"uuid\":\"";
        let at = object.bytes.windows(marker.len()).position(|part| part == marker);
        match at.map(|at| at + marker.len()) {
            Some(at) if object.bytes.len() >= at + 32 => {
                let parts = [&object.bytes[..at], self.uuid.as_bytes(), &object.bytes[at + 32..]];
                Object::new(parts.concat().into(), object.info)
            }
            _ => object,
        }
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for Process {
    fn capabilities(&self) -> &Capabilities {
        &self.device.capabilities
    }

    fn coordination(&self) -> &dyn Coordination {
        self
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        None
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        let object = self.admit().await?.get(key, limit).await?;
        Ok(if *key == Key::Store { self.identified(object) } else { object })
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        self.admit().await?.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.admit().await?.head(key).await
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        let objects = self.admit().await?;
        if mode != PutMode::Replace && !self.capabilities().conditional_put {
            return Err(Error::new(ErrorKind::Unsupported, "store on a condition").on(key));
        }
        let is_refused = mode == PutMode::Create && objects.state_of(&key.path()).is_some();
        if !is_refused {
            self.device.change(key, true);
        }
        objects.put(key, object, mode).await
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let objects = self.admit().await?;
        let is_conditional = removals.iter().any(|removal| removal.version.is_some());
        if is_conditional && !self.capabilities().conditional_delete {
            return Err(Error::new(ErrorKind::Unsupported, "delete on a condition"));
        }
        let refused: Vec<_> = removals.iter().map(|removal| self.check_stays_deleted(&removal.key)).collect();
        let settled = removals.iter().zip(&refused).filter(|(_, refused)| refused.is_ok());
        let settled: Vec<_> = settled.map(|(removal, _)| removal.clone()).collect();
        for removal in &settled {
            self.device.change(&removal.key, false);
        }
        let mut deleted = objects.delete(&settled).await?.into_iter();
        let result = |refused: Result<()>| refused.map_or_else(|error| Some(Err(error)), |()| deleted.next());
        Ok(refused.into_iter().filter_map(result).collect())
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        let objects = self.admit().await?;
        if self.device.lag.is_zero() {
            return objects.list(query, cursor).await;
        }
        let now = self.device.sim.monotonic();
        let mut state = self.device.state();
        state.outdated.retain(|_, (_, until)| *until > now);
        let outdated = state.outdated.iter().map(|(path, (before, _))| (path, before));
        Ok(objects.list_outdated(outdated, query, cursor))
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        if self.device.kind == Kind::Bucket {
            return Ok(vec![Touched::Unknown; keys.len()]);
        }
        let objects = self.admit().await?;
        for key in keys {
            self.device.change(key, false);
        }
        objects.touch(keys).await
    }

    async fn barrier(&self) -> Result<()> {
        let until = {
            let state = self.device.state();
            state.flushed + state.unflushed.len()
        };
        self.admit().await?;
        let mut state = self.device.state();
        let flushed = until.saturating_sub(state.flushed);
        state.flushed += flushed;
        state.unflushed.drain(..flushed);
        Ok(())
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Coordination for Process {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.local.runtime()
    }

    async fn clock(&self) -> Result<SystemTime> {
        self.check_owned().await?;
        self.local.clock().await
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        if *scope == LockScope::Store && mode != LockMode::Shared && self.is_in_doubt() {
            return Err(Error::new(ErrorKind::Busy, "lock the store alone"));
        }
        match &self.device.sharing {
            Some(sharing) => sharing.lock((self.number, &self.local), scope, mode).await,
            None => self.local.lock(scope, mode).await,
        }
    }

    async fn check_owned(&self) -> Result<()> {
        if self.has_lease() { Ok(()) } else { Err(Error::new(ErrorKind::Busy, "check the lease")) }
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        let term = *self.term.lock().unwrap_or_else(PoisonError::into_inner);
        let has_terms = self.device.kind == Kind::Bucket && self.has_lease();
        has_terms.then(|| LeaseTerm { in_doubt: self.is_in_doubt(), ..term })
    }

    async fn begin_term(&self) -> Result<()> {
        let mut term = self.term.lock().unwrap_or_else(PoisonError::into_inner);
        term.continues = None;
        term.epoch += 1;
        Ok(())
    }

    fn in_doubt(&self, _: &Key) -> Option<Duration> {
        None
    }

    async fn record_moves(&self, keys: &[Key]) -> Result<()> {
        match &self.device.sharing {
            Some(sharing) => sharing.record_moves(&self.device.sim, keys).await,
            None => Ok(()),
        }
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        self.device.sharing.as_ref().map(Sharing::pending_moves).transpose()
    }

    async fn release(&self) -> Result<()> {
        Ok(())
    }

    async fn close(&self) -> Result<()> {
        Ok(())
    }
}
