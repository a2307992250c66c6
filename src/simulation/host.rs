//! The processes of a history: their backends, what may go wrong there, and how the next one begins.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::lock::Mutex as AsyncMutex;

use crate::backend::fault::FaultBackend;
use crate::backend::late::LateChanges;
use crate::backend::{Backend, PutMode, Removal};
use crate::error::ErrorKind;
use crate::format::Digest;
use crate::format::layout::Key;
use crate::local::{LocalOptions, LocalState};
use crate::packs::{Limits, PackedBackend};
use crate::rt::{Runtime, SimRuntime};
use crate::simulation::place::Place;
use crate::store::{Datastore, Options, PackOptions};

/// The present process.
#[derive(Clone, Debug)]
struct Process {
    /// The part that dies with it.
    crashes: Arc<FaultBackend>,
    /// Faults of single requests, also after the process that sent them died.
    faults: Arc<FaultBackend>,
    raw: Arc<dyn Backend>,
}

/// The place of the first store, and its processes.
#[derive(Debug)]
pub(crate) struct Host {
    has_own_faults: bool,
    instances: Mutex<u64>,
    pub is_packed: bool,
    /// Changes that the place executes late, of all processes.
    pub late: Arc<LateChanges>,
    /// Directory of the local state; `None` for processes without one.
    local: Option<PathBuf>,
    packs: Option<PackOptions>,
    pub place: Arc<dyn Place>,
    process: Mutex<Option<Process>>,
    runtime: Arc<dyn Runtime>,
    /// Held while a chunk is damaged: two actors would undo the damage of each other for ever.
    spoiling: AsyncMutex<()>,
}

impl Host {
    pub(crate) fn new(
        sim: &SimRuntime,
        place: Arc<dyn Place>,
        packs: Option<PackOptions>,
        local: Option<PathBuf>,
    ) -> Self {
        Self {
            has_own_faults: place.own_faults(false),
            instances: Mutex::default(),
            is_packed: packs.is_some(),
            late: Arc::default(),
            local,
            packs,
            place,
            process: Mutex::default(),
            runtime: Arc::new(sim.clone()),
            spoiling: AsyncMutex::default(),
        }
    }

    /// Returns `true` if the place executes changes late by itself, and keeps processes apart.
    pub(crate) fn has_own_faults(&self) -> bool {
        self.has_own_faults
    }

    fn process(&self) -> Process {
        self.process.lock().unwrap().clone().unwrap()
    }

    /// The real contents.
    pub(crate) fn raw(&self) -> Arc<dyn Backend> {
        self.process().raw
    }

    pub(crate) fn faults(&self) -> Arc<FaultBackend> {
        self.process().faults
    }

    /// The backend of this process, which may crash.
    pub(crate) fn crashes(&self) -> Arc<FaultBackend> {
        self.process().crashes
    }

    /// Returns `true` if requests may be executed after they failed.
    pub(crate) fn may_be_late(&self) -> bool {
        !self.place.max_late().is_zero()
    }

    /// The real chunks.
    pub(crate) async fn chunks(&self) -> Arc<dyn Backend> {
        if self.is_packed { Arc::new(self.packs().await) } else { self.raw() }
    }

    async fn packs(&self) -> PackedBackend {
        let limits =
            Limits { index_bytes: 8 << 20, local: None, memory_bytes: 32 << 20, target_bytes: 8 << 20 };
        PackedBackend::open(self.raw(), "", limits).await.unwrap()
    }

    /// The real copies of a chunk.
    pub(crate) async fn copies(&self, digest: &Digest) -> Vec<Bytes> {
        let mut copies = Vec::new();
        if self.is_packed {
            let packs = self.packs().await;
            for copy in packs.readable_copies(digest).await.unwrap() {
                copies.extend(packs.read_copy(&copy).await);
            }
        }
        copies
    }

    /// The names of all packs with a copy of one of these chunks.
    pub(crate) async fn packs_with(
        &self,
        paths: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> BTreeSet<String> {
        let (packs, mut names) = (self.packs().await, BTreeSet::new());
        for path in paths {
            if let Ok(Key::Chunk(digest)) = path.as_ref().parse() {
                names.extend(packs.packs_of(&digest).await.unwrap().iter().map(ToString::to_string));
            }
        }
        names
    }

    /// Replaces the bytes of a chunk past the rules of the store, or removes it. In packs they take the place of the old ones, as far as they
    /// fit, and a removed one becomes zeros.
    pub(crate) async fn spoil(&self, key: &Key, bytes: Option<Vec<u8>>) {
        let _alone = self.spoiling.lock().await;
        let raw = self.raw();
        if !self.is_packed {
            match bytes {
                // Not even for a moment: a crash would tear it.
                Some(bytes) if raw.get(key, u64::MAX).await.is_ok_and(|found| found.bytes == bytes) => {}
                None => drop(raw.delete(&[Removal::any(key.clone())]).await.unwrap()),
                Some(bytes) => drop(raw.put(key, bytes.into(), PutMode::Replace).await.unwrap()),
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
            let Ok(whole) = raw.get(&pack, u64::MAX).await else { continue };
            let mut whole = whole.bytes.to_vec();
            whole[offset..offset + wanted.len()].copy_from_slice(&wanted);
            raw.put(&pack, whole.into(), PutMode::Replace).await.unwrap();
        }
        panic!("there is always another intact copy of {key}");
    }

    /// A new process: its backend and its choices.
    async fn start(&self) -> (Arc<FaultBackend>, Options) {
        let mut options = Options::default();
        let instance = {
            let mut instances = self.instances.lock().unwrap();
            // A process with local state is the same instance as the last one.
            *instances += u64::from(self.local.is_none());
            *instances
        };
        let mut attempts = 0..100;
        let raw = loop {
            match self.place.open(instance).await {
                Err(error) if error.kind() == ErrorKind::Unavailable && attempts.next().is_some() => {}
                raw => break raw.unwrap(),
            }
        };
        if let Some(directory) = &self.local {
            options = options.local_state(self.local_state(directory).await);
        }
        let faults = Arc::new(FaultBackend::new(Arc::clone(&raw)).late_changes(&self.late));
        let crashes = Arc::new(FaultBackend::new(Arc::clone(&faults) as _));
        *self.process.lock().unwrap() = Some(Process { crashes: Arc::clone(&crashes), faults, raw });
        (crashes, options)
    }

    async fn local_state(&self, directory: &Path) -> Arc<LocalState> {
        // A snapshot that is being finished waits for pending deletes, also if its process is dead here.
        for attempt in 0..4000 {
            let options = LocalOptions::default().cache_bytes(100_000);
            match LocalState::open(&self.runtime, directory.join("local"), options).await {
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
        let (backend, options) = self.start().await;
        let options = self.packs.map_or_else(|| options.clone(), |packs| options.clone().packed(packs));
        Datastore::create(backend, options).await.unwrap()
    }

    /// Opens it in another process. `None` if yet another one has it meanwhile.
    pub(crate) async fn reopen(&self) -> Option<Datastore> {
        let (backend, options) = self.start().await;
        for _ in 0..100 {
            match Datastore::open(Arc::clone(&backend) as _, options.clone()).await {
                Err(error) if error.kind() == ErrorKind::Unavailable => {}
                Err(error) if error.kind() == ErrorKind::Busy && self.has_own_faults => {
                    // Until the lease of the last process expires.
                    self.runtime.sleep(Duration::from_secs(10)).await;
                }
                Err(error) if error.kind() == ErrorKind::Busy && !Arc::ptr_eq(&backend, &self.crashes()) => {
                    return None;
                }
                store => {
                    let store = store.unwrap();
                    let lag = self.place.max_lag();
                    // A packed store that is opened while listings lag may lack what was stored last, until they show it and a look-up
                    // reads the view again.
                    if self.is_packed && !lag.is_zero() {
                        self.runtime.sleep(lag + Duration::from_mins(1)).await;
                    }
                    return Arc::ptr_eq(&backend, &self.crashes()).then_some(store);
                }
            }
        }
        panic!("the store cannot be opened");
    }

    /// Opens it in a second process beside the present one.
    pub(crate) async fn open_beside(&self) -> Datastore {
        let instance = {
            let mut instances = self.instances.lock().unwrap();
            *instances += 1;
            *instances
        };
        let Process { crashes, faults, .. } = self.process();
        let raw = self.place.open(instance).await.unwrap();
        let faults = Arc::new(faults.beside(raw));
        let crashes = Arc::new(crashes.beside(faults));
        Datastore::open(crashes, Options::default()).await.unwrap()
    }

    pub(crate) fn has_local_state(&self) -> bool {
        self.local.is_some()
    }

    /// Keeps a copy of the local state for later.
    pub(crate) fn copy_local(&self) {
        let Some(directory) = &self.local else { return };
        let copy = directory.join("copy");
        let _ = std::fs::remove_dir_all(&copy);
        copy_directory(&directory.join("local"), &copy);
    }

    /// Puts the copy in the place of the local state.
    pub(crate) fn put_copy_back(&self) {
        let Some(directory) = &self.local else { return };
        let copy = directory.join("copy");
        if copy.exists() {
            self.forget_local();
            copy_directory(&copy, &directory.join("local"));
        }
    }

    pub(crate) fn forget_local(&self) {
        if let Some(directory) = &self.local {
            let _ = std::fs::remove_dir_all(directory.join("local"));
        }
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
