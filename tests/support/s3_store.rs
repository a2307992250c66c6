//! Processes that have a store in a bucket of the fault server open.

use std::fs;
use std::io;
use std::num::{NonZeroU32, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::BoxFuture;
use futures::io::Cursor;
use larder::backend::{Backend, Ownership, S3Backend};
use larder::error::{Error, ErrorKind, Result};
use larder::format::name::{AuthId, GroupName, Namespace, SnapshotName};
use larder::http::HttpClient;
use larder::internal::fault::FaultBackend;
use larder::local::{LocalOptions, LocalState};
use larder::rt::{BlockingJob, Connection, Runtime, ThreadRuntime};
use larder::s3::{Credentials, RetryOptions, S3Client, S3Options, StaticCredentials};
use larder::store::{Datastore, Options, PackOptions, SnapshotReader, SnapshotState};
use larder::sync::{self, SyncCandidates, SyncOptions};

use crate::fault_server::{FaultServer, Logged};
use crate::{noise, read_to_end};

/// The length of a chunk.
pub const CHUNK: u64 = 64 << 10;
/// The number of chunks of [`data`].
pub const CHUNKS: usize = 4;
pub const LEASE: &str = "store/.larder/lease";

/// Threads, with clocks that can be put forward and back. Sleeping tasks are unaffected.
#[derive(Debug, Default)]
pub struct Clock {
    inner: ThreadRuntime,
    monotonic: AtomicI64,
    wall: AtomicI64,
}

impl Clock {
    /// Puts the monotonic clock forward by this number of seconds.
    pub fn leap(&self, seconds: i64) {
        self.monotonic.fetch_add(seconds, Ordering::SeqCst);
    }

    /// Sets the offset of the wall clock in seconds.
    pub fn set_off(&self, seconds: i64) {
        self.wall.store(seconds, Ordering::SeqCst);
    }
}

#[async_trait]
impl Runtime for Clock {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.inner.spawn(task);
    }
    fn spawn_blocking(&self, job: BlockingJob) {
        self.inner.spawn_blocking(job);
    }
    async fn sleep(&self, duration: Duration) {
        self.inner.sleep(duration).await;
    }
    fn now(&self) -> SystemTime {
        let off = self.wall.load(Ordering::SeqCst);
        let by = Duration::from_secs(off.unsigned_abs());
        if off < 0 { self.inner.now() - by } else { self.inner.now() + by }
    }
    fn monotonic(&self) -> Duration {
        self.inner.monotonic() + Duration::from_secs(self.monotonic.load(Ordering::SeqCst).unsigned_abs())
    }
    fn fill_random(&self, buffer: &mut [u8]) {
        self.inner.fill_random(buffer);
    }
    fn parallelism(&self) -> NonZeroUsize {
        self.inner.parallelism()
    }
    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>> {
        self.inner.connect(host, port).await
    }
}

/// How a process opens the store.
#[derive(Clone, Debug)]
pub struct Opening {
    cache_bytes: u64,
    instance: Option<String>,
    is_packed: bool,
    local: Option<PathBuf>,
    name: String,
}

/// A process that has the store open. Its calls can be made to fail, and it can be made to die.
#[derive(Debug)]
pub struct Process {
    pub backend: Arc<FaultBackend>,
    pub clock: Arc<Clock>,
    pub local: Option<Arc<LocalState>>,
    pub store: Datastore,
}

impl Opening {
    /// The store of that name, without local state, by a process like no other.
    pub fn of(name: &str) -> Self {
        Self { cache_bytes: 1 << 28, instance: None, is_packed: false, local: None, name: name.to_owned() }
    }

    pub fn cache_bytes(mut self, bytes: u64) -> Self {
        self.cache_bytes = bytes;
        self
    }

    /// By the process that had it open before, or one that takes its place.
    pub fn instance(mut self, instance: &str) -> Self {
        self.instance = Some(instance.to_owned());
        self
    }

    pub fn local(mut self, directory: &Path) -> Self {
        self.local = Some(directory.to_owned());
        self
    }

    /// With packs, if it makes the store.
    pub fn packed(mut self, is_packed: bool) -> Self {
        self.is_packed = is_packed;
        self
    }

    /// Opens the store, or makes it if there is none.
    pub async fn open(self, server: &FaultServer) -> Result<Process> {
        let clock = Arc::new(Clock::default());
        let runtime: Arc<dyn Runtime> = Arc::<Clock>::clone(&clock);
        let (mut options, mut ownership) = (Options::default(), Ownership::default());
        let mut local = None;
        if let Some(directory) = &self.local {
            let choices = LocalOptions::default().cache_bytes(self.cache_bytes);
            let state = LocalState::open(&runtime, directory, choices).await?;
            ownership = ownership.instance(state.instance());
            options = options.local_state(Arc::clone(&state));
            local = Some(state);
        }
        if let Some(instance) = self.instance {
            ownership = ownership.instance(instance);
        }
        let client = client(server, &runtime);
        let found = client.probe(&format!("{}/", self.name)).await?;
        let in_bucket = S3Backend::new(runtime, client, &self.name, found, &[])?.ownership(ownership);
        let backend = Arc::new(FaultBackend::new(Arc::new(in_bucket)));
        let passed: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&backend);
        let prefix = format!("{}/", self.name);
        // A lease alone is what a store leaves that was destroyed while a request was under way.
        let is_there = |key: &String| key.starts_with(&prefix) && !key.ends_with("/.larder/lease");
        let store = if server.objects().keys().any(is_there) {
            Datastore::open(passed, options).await?
        } else {
            let options = if self.is_packed { options.packed(PackOptions::default()) } else { options };
            Datastore::create(passed, options).await?
        };
        Ok(Process { backend, clock, local, store })
    }
}

/// A client that does not give up at once, and does not wait for long either.
pub fn client(server: &FaultServer, runtime: &Arc<dyn Runtime>) -> S3Client {
    let http = Arc::new(HttpClient::new(Arc::clone(runtime), crate::plaintext()).unwrap());
    let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
    let mut retry = RetryOptions::default();
    (retry.max_backoff, retry.attempts) = (Duration::from_millis(10), NonZeroU32::new(3).unwrap());
    let options = S3Options::new(server.url(), "bucket").credentials(credentials).retry(retry);
    S3Client::new(Arc::clone(runtime), http, options).unwrap()
}

impl Process {
    pub async fn close(self) {
        let Self { backend, clock: _, local, store } = self;
        store.close().await.unwrap();
        let left = local.as_ref().map(Arc::downgrade);
        drop((backend, local));
        // Background work holds the local state for a moment, and excludes other openings.
        let runtime = ThreadRuntime::new();
        for _ in 0..500 {
            if left.as_ref().is_none_or(|left| left.strong_count() == 0) {
                return;
            }
            runtime.sleep(Duration::from_millis(1)).await;
        }
    }

    /// Waits until a condition holds.
    pub async fn clock_sleep(&self, time: Duration) {
        self.clock.sleep(time).await;
    }
}

/// A store that nothing is in, and a process that has it open.
pub async fn fresh(server: &FaultServer) -> Process {
    Opening::of("store").open(server).await.unwrap()
}

/// Opens the store with the local state of a dead process. Background work of that process ends in a moment.
pub async fn opened_again(server: &FaultServer, opening: &Opening) -> Process {
    let runtime = ThreadRuntime::new();
    for _ in 0..5_000 {
        match opening.clone().open(server).await {
            Err(error) if error.kind() == ErrorKind::Busy => runtime.sleep(Duration::from_millis(1)).await,
            opened => return opened.unwrap(),
        }
    }
    panic!("somebody still uses it: {opening:?}");
}

pub fn group() -> GroupName {
    "vm/1".parse().unwrap()
}

/// Some chunks that do not compress, none of which any other seed has.
pub fn data(seed: u64) -> Vec<u8> {
    noise(seed.wrapping_add(1), usize::try_from(CHUNK).unwrap() * CHUNKS)
}

/// Why it failed.
pub fn kind<T>(result: Result<T>) -> ErrorKind {
    result.map(drop).unwrap_err().kind()
}

pub fn user(name: &str) -> AuthId {
    name.parse().unwrap()
}

/// A snapshot without chunks.
pub async fn small(store: &Datastore, group: &GroupName) -> SnapshotName {
    let backup = store.backup(group).begin().await.unwrap();
    backup.blob("app.conf", "text").await.unwrap();
    backup.finish().await.unwrap().snapshot.name().clone()
}

/// A snapshot with an image and a blob, of which the notes tell the seed.
pub async fn back_up(store: &Datastore, group: &GroupName, seed: u64) -> Result<SnapshotReader> {
    back_up_on(store, group, seed, None).await
}

/// The same, with a base.
pub async fn back_up_on(
    store: &Datastore,
    group: &GroupName,
    seed: u64,
    base: Option<&SnapshotReader>,
) -> Result<SnapshotReader> {
    let backup = store.backup(group).begin().await?;
    backup.set_notes(seed.to_string());
    let bytes = data(seed);
    let size = bytes.len() as u64;
    let image = backup.image("disk.img", Cursor::new(bytes), size).chunk_bytes(CHUNK);
    match base {
        None => image.await?,
        Some(base) => image.base(base).await?,
    };
    backup.blob("app.conf", seed.to_string()).await?;
    backup.finish().await.map(|finished| finished.snapshot)
}

pub async fn restored(snapshot: &SnapshotReader) -> Result<Vec<u8>> {
    let read = read_to_end(&mut snapshot.archive("disk.img.fidx").await?).await;
    read.map_err(|error| error.into_inner().unwrap().downcast_ref::<Error>().unwrap().clone())
}

/// Makes sure that everything in a snapshot is what its notes say.
pub async fn check(snapshot: &SnapshotReader) -> Result<()> {
    let notes = snapshot.manifest().notes().unwrap_or_default().to_owned();
    assert!(restored(snapshot).await? == data(notes.parse().unwrap()), "{}", snapshot.name());
    assert_eq!(snapshot.blob("app.conf.blob").await?, notes);
    Ok(())
}

/// Makes sure that every finished snapshot is whole, and returns their number.
pub async fn check_all(store: &Datastore, group: &GroupName) -> Result<usize> {
    let mut whole = 0;
    for info in store.snapshots(group).await? {
        if info.state == SnapshotState::Finished {
            check(&store.snapshot(&info.name).await?).await?;
            whole += 1;
        }
    }
    Ok(whole)
}

/// Brings what is missing from another store. Returns `true` if all of it came.
pub async fn brought(source: &Datastore, target: &Datastore) -> bool {
    let options = SyncOptions::default().candidates(SyncCandidates::AllMissing);
    sync::plan(source, target, options).await.unwrap().execute().await.unwrap().is_complete()
}

/// All that can be seen of a store without its data.
pub async fn view(store: &Datastore) -> Vec<String> {
    let mut found = Vec::new();
    for namespace in store.namespaces(&Namespace::root()).await.unwrap() {
        found.push(namespace.to_string());
        for group in store.groups(&namespace).await.unwrap() {
            let (owner, notes) = (store.owner(&group).await, store.group_notes(&group).await);
            found.push(format!("{group} of {:?}: {:?}", owner.unwrap(), notes.unwrap()));
            for info in store.snapshots(&group).await.unwrap() {
                let manifest = match store.snapshot(&info.name).await {
                    Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
                    snapshot => String::from_utf8(snapshot.unwrap().manifest().to_json()).unwrap(),
                };
                found.push(format!("{info:?} {manifest}"));
            }
        }
    }
    found
}

/// The keys of all objects of the bucket that contain this.
pub fn keys(server: &FaultServer, part: &str) -> Vec<String> {
    server.objects().into_keys().filter(|key| key.contains(part)).collect()
}

/// The requests since some moment with this method, for keys that contain this.
pub fn requests(server: &FaultServer, since: usize, method: &str, part: &str) -> Vec<Logged> {
    let log = server.log();
    let wanted = |line: &&Logged| line.method == method && line.path.contains(part);
    log[since..].iter().filter(wanted).cloned().collect()
}

pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// The server, for rules that look into the bucket: they are part of it.
pub fn inside(server: &Arc<FaultServer>) -> impl Fn() -> Arc<FaultServer> + Send + Sync + 'static {
    let server: Weak<FaultServer> = Arc::downgrade(server);
    move || server.upgrade().unwrap()
}
