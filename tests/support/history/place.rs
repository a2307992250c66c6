//! Where the first store is, what may go wrong there, and how it is opened once more after a crash.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use larder::backend::{
    Backend, Capabilities, Coordination, Cursor, Deleted, FsBackend, FsOptions, Housekeeping, LeaseTerm,
    ListPage, ListQuery, LockGuard, LockMode, LockScope, MemoryBackend, Object, ObjectInfo, Orphan,
    PendingMoves, PrefixDirectories, PutMode, Removal, SyncLevel, Touched, Version,
};
use larder::error::{Error, ErrorKind, Result};
use larder::format::layout::{Key, Prefix};
use larder::internal::fault::FaultBackend;
use larder::internal::listing::ShortPages as _;
use larder::internal::packs::packed;
use larder::local::{LocalOptions, LocalState};
use larder::rt::{Runtime, SimRuntime};
use larder::store::{Datastore, Options, PackOptions};

/// After how long a request that got no answer is certain not to be executed any more.
const LONGEST_REQUEST: Duration = Duration::from_mins(30);

/// Where a store is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    Memory,
    /// As in a bucket: nothing is known without a request, there are terms, and requests may be executed late.
    Remote,
}

impl Kind {
    pub(crate) fn of(seed: u64) -> Self {
        match seed % 5 {
            0 | 3 => Self::Remote,
            1 => Self::Directory,
            _ => Self::Memory,
        }
    }
}

/// A store that, like a bucket, answers nothing without a request, and that only this process may change during its lease term.
#[derive(Debug)]
struct Remote {
    capabilities: Capabilities,
    inner: Arc<dyn Backend>,
    lease_term: Mutex<LeaseTerm>,
    unsettled_until: Duration,
}

impl Remote {
    fn new(inner: Arc<dyn Backend>, epoch: u64, unsettled: Duration, conditional_delete: bool) -> Self {
        let mut capabilities = Capabilities::local();
        capabilities.tracks_last_use = false;
        capabilities.consistent_listing = false;
        capabilities.cheap_presence = false;
        capabilities.conditional_delete = conditional_delete;
        let lease_term = Mutex::new(LeaseTerm { continues: None, epoch, since: epoch, in_doubt: false });
        let unsettled_until = inner.runtime().monotonic() + unsettled;
        Self { capabilities, inner, lease_term, unsettled_until }
    }

    fn has_pending_delete(&self) -> bool {
        self.runtime().monotonic() < self.unsettled_until
    }

    fn epoch(&self) -> u64 {
        self.lease_term.lock().unwrap().epoch
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Backend for Remote {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn coordination(&self) -> &dyn Coordination {
        self
    }

    fn housekeeping(&self) -> Option<&dyn Housekeeping> {
        Some(self)
    }

    async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
        self.inner.get(key, limit).await
    }

    async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
        self.inner.get_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<ObjectInfo> {
        self.inner.head(key).await
    }

    async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
        self.inner.put(key, object, mode).await
    }

    async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
        let refused = || Error::new(ErrorKind::Unsupported, "delete on a condition");
        if !self.capabilities.conditional_delete && removals.iter().any(|removal| removal.version.is_some()) {
            return Err(refused());
        }
        self.inner.delete(removals).await
    }

    async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
        self.inner.list(query, cursor).await
    }

    async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
        Ok(vec![Touched::Unknown; keys.len()])
    }

    async fn barrier(&self) -> Result<()> {
        self.inner.barrier().await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Coordination for Remote {
    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.inner.runtime()
    }

    async fn clock(&self) -> Result<SystemTime> {
        self.inner.clock().await
    }

    async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
        if *scope == LockScope::Store && mode == LockMode::Exclusive && self.has_pending_delete() {
            return Err(Error::new(ErrorKind::Busy, "lock the store alone"));
        }
        self.inner.lock(scope, mode).await
    }

    async fn check_owned(&self) -> Result<()> {
        self.inner.check_owned().await
    }

    fn lease_term(&self) -> Option<LeaseTerm> {
        Some(LeaseTerm { in_doubt: self.has_pending_delete(), ..*self.lease_term.lock().unwrap() })
    }

    async fn begin_term(&self) -> Result<()> {
        let mut lease_term = self.lease_term.lock().unwrap();
        lease_term.continues = None;
        lease_term.epoch += 1;
        Ok(())
    }

    fn in_doubt(&self, key: &Key) -> Option<Duration> {
        self.inner.in_doubt(key)
    }

    async fn record_moves(&self, keys: &[Key]) -> Result<()> {
        self.inner.record_moves(keys).await
    }

    async fn pending_moves(&self) -> Result<Option<Box<dyn PendingMoves>>> {
        self.inner.pending_moves().await
    }

    async fn release(&self) -> Result<()> {
        self.inner.release().await
    }

    async fn close(&self) -> Result<()> {
        self.inner.close().await
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Housekeeping for Remote {
    async fn begin_listing(&self, prefix: &Prefix) -> Result<Option<Cursor>> {
        self.inner.begin_listing(prefix).await
    }

    async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
        self.inner.copy(from, to, mode).await
    }

    async fn head_many(&self, keys: &[Key]) -> Result<Vec<Result<ObjectInfo>>> {
        self.inner.head_many(keys).await
    }

    async fn has_store(&self) -> Result<bool> {
        self.inner.has_store().await
    }

    async fn orphans(&self, foreign: &[String]) -> Result<Vec<Orphan>> {
        self.inner.orphans(foreign).await
    }

    async fn get_orphan(&self, orphan: &Orphan, limit: u64) -> Result<Bytes> {
        self.inner.get_orphan(orphan, limit).await
    }

    async fn remove_leftovers(&self, foreign: &[String], age: Duration) -> Result<u64> {
        self.inner.remove_leftovers(foreign, age).await
    }

    async fn keep_reserve(&self) -> Result<()> {
        self.inner.keep_reserve().await
    }
}

/// The place of the first store.
#[derive(Debug)]
pub(crate) struct Place {
    conditional_delete: bool,
    /// The part that dies with a crash.
    crashes: Mutex<Arc<FaultBackend>>,
    directory: tempfile::TempDir,
    pub is_packed: bool,
    /// Faults of single requests, also after the process that sent them died.
    pub faults: Arc<FaultBackend>,
    pub kind: Kind,
    /// The real contents.
    pub raw: Arc<dyn Backend>,
    remote: Mutex<Option<Arc<Remote>>>,
    runtime: Arc<dyn Runtime>,
}

impl Place {
    pub(crate) async fn new(sim: &SimRuntime, seed: u64) -> Self {
        let kind = Kind::of(seed);
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        let directory = crate::scratch();
        let raw: Arc<dyn Backend> = if kind == Kind::Directory {
            let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
            let options = options.sync_level(SyncLevel::None);
            let path = directory.path().join("store");
            Arc::new(FsBackend::create(Arc::clone(&runtime), &path, options).await.unwrap())
        } else {
            Arc::new(MemoryBackend::new(Arc::clone(&runtime)).page_entries(3))
        };
        let faults = Arc::new(FaultBackend::new(Arc::clone(&raw)));
        let crashes = Mutex::new(Arc::new(FaultBackend::new(Arc::clone(&faults) as _)));
        let conditional_delete = !seed.is_multiple_of(2);
        let remote = Mutex::default();
        let is_packed = (seed / 5) % 2 == 1;
        Self { conditional_delete, crashes, directory, is_packed, faults, kind, raw, remote, runtime }
    }

    /// The real chunks.
    pub(crate) async fn chunks(&self) -> Arc<dyn Backend> {
        if self.is_packed { packed(Arc::clone(&self.raw)).await } else { Arc::clone(&self.raw) }
    }

    /// Replaces the bytes of a chunk past the rules of the store, or removes it. In packs they take the place of the old ones, as far as they
    /// fit, and a removed one becomes zeros.
    pub(crate) async fn spoil(&self, key: &Key, bytes: Option<Vec<u8>>) {
        if !self.is_packed {
            match bytes {
                None => drop(self.raw.delete(&[Removal::any(key.clone())]).await.unwrap()),
                Some(bytes) => drop(self.raw.put(key, bytes.into(), PutMode::Replace).await.unwrap()),
            }
            return;
        }
        // A chunk with several copies shows an intact one.
        for _ in 0..20 {
            let Ok(found) = self.chunks().await.get(key, u64::MAX).await else { return };
            let mut wanted = bytes.clone().unwrap_or_default();
            wanted.resize(found.bytes.len(), 0);
            if found.bytes == wanted {
                return;
            }
            let (pack, offset) = found.info.version.as_str().split_once(':').unwrap();
            let (pack, offset) = (Key::Pack(pack.parse().unwrap()), offset.parse::<usize>().unwrap());
            let Ok(whole) = self.raw.get(&pack, u64::MAX).await else { continue };
            let mut whole = whole.bytes.to_vec();
            whole[offset..offset + wanted.len()].copy_from_slice(&wanted);
            self.raw.put(&pack, whole.into(), PutMode::Replace).await.unwrap();
        }
        panic!("there is always another intact copy of {key}");
    }

    /// The backend of this process, which may crash.
    pub(crate) fn crashes(&self) -> Arc<FaultBackend> {
        Arc::clone(&self.crashes.lock().unwrap())
    }

    fn local(&self) -> PathBuf {
        self.directory.path().join("local")
    }

    /// A new process: its backend and its choices.
    async fn process(&self, unsettled: Duration) -> (Arc<FaultBackend>, Options) {
        let mut below = Arc::clone(&self.faults) as Arc<dyn Backend>;
        let mut options = Options::default();
        if self.kind == Kind::Remote {
            let last = self.remote.lock().unwrap().as_ref().map_or(0, |remote| remote.epoch());
            let remote = Arc::new(Remote::new(below, last + 1, unsettled, self.conditional_delete));
            *self.remote.lock().unwrap() = Some(Arc::clone(&remote));
            below = remote;
            options = options.local_state(self.local_state().await);
        }
        let crashes = Arc::new(FaultBackend::new(below));
        *self.crashes.lock().unwrap() = Arc::clone(&crashes);
        (crashes, options)
    }

    async fn local_state(&self) -> Arc<LocalState> {
        // A snapshot that is being finished waits for pending deletes, also if its process is dead here.
        for attempt in 0..4000 {
            let options = LocalOptions::default().cache_bytes(100_000);
            match LocalState::open(&self.runtime, self.local(), options).await {
                Err(error) if error.kind() == ErrorKind::Busy => {
                    let pause =
                        if attempt < 1000 { Duration::from_millis(10) } else { Duration::from_secs(1) };
                    self.runtime.sleep(pause).await;
                }
                local => return local.unwrap(),
            }
        }
        panic!("what was dropped keeps the local state");
    }

    pub(crate) async fn create(&self) -> Datastore {
        let (backend, options) = self.process(Duration::ZERO).await;
        let options = if self.is_packed { options.packed(PackOptions::default()) } else { options };
        Datastore::create(backend, options).await.unwrap()
    }

    /// Opens it in another process after the last one died.
    pub(crate) async fn reopen(&self) -> Datastore {
        let (backend, options) = self.process(LONGEST_REQUEST).await;
        for _ in 0..100 {
            match Datastore::open(Arc::clone(&backend) as _, options.clone()).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => {}
                store => return store.unwrap(),
            }
        }
        panic!("the store cannot be opened");
    }

    /// Keeps a copy of the local state for later.
    pub(crate) fn copy_local(&self) {
        let copy = self.directory.path().join("copy");
        let _ = std::fs::remove_dir_all(&copy);
        copy_directory(&self.local(), &copy);
    }

    /// Puts the copy in the place of the local state.
    pub(crate) fn put_copy_back(&self) {
        let copy = self.directory.path().join("copy");
        if copy.exists() {
            let _ = std::fs::remove_dir_all(self.local());
            copy_directory(&copy, &self.local());
        }
    }

    pub(crate) fn forget_local(&self) {
        let _ = std::fs::remove_dir_all(self.local());
    }
}

fn copy_directory(from: &Path, to: &Path) {
    let Ok(entries) = std::fs::read_dir(from) else { return };
    std::fs::create_dir_all(to).unwrap();
    for entry in entries {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_directory(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}
