//! The state behind all handles of an open store.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use futures::future;
use futures::lock::Mutex as AsyncMutex;

use crate::backend::cached::MetadataCache;
use crate::backend::lock_wait::lock_store;
use crate::backend::{Backend, LockMode, PutMode, Version};
use crate::chunks::pins::WriterPins;
use crate::chunks::witnesses::Witnesses;
use crate::chunks::{CachePolicy, ChunkStore, SuspectList};
use crate::crypt::{EncryptionKey, KeyFingerprint};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::MAX_CHUNK_BYTES;
use crate::format::layout::Key;
use crate::format::name::GroupName;
use crate::local::LocalState;
use crate::packs::{Limits, PackedBackend};
use crate::rt::Runtime;
use crate::rt::semaphore::{Permit, Semaphore};
use crate::store::identity::Identity;
use crate::store::in_doubt::InDoubt;
use crate::store::lifecycle::renamed;
use crate::store::options::Options;
use crate::trace::{Operation, Subject, Watch};

/// State of an open store, shared by its handles.
#[derive(Debug)]
pub(crate) struct StoreInner {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) budget: Arc<Semaphore>,
    pub(super) chunks: ChunkStore,
    /// The packs of a packed store.
    packs: Option<PackedBackend>,
    /// A budget of its own: a restore whose target is a backup must not wait for that backup.
    pub(super) restore_budget: Arc<Semaphore>,
    /// `true` if this handle gave the store a new identity.
    pub(super) is_renamed: AtomicBool,
    pub(super) local: Option<Local>,
    pub(super) in_doubt: InDoubt,
    /// Unset in a store of PBS that was never changed.
    pub(super) identity: OnceLock<Identity>,
    /// Held while the store gets its identity.
    identifying: AsyncMutex<()>,
    /// Digests of chunks of zeros, by length and key.
    pub(super) zeros: Mutex<HashMap<(u64, Option<KeyFingerprint>), Digest>>,
}

impl StoreInner {
    /// See [`Datastore::open`](crate::store::Datastore::open).
    pub(crate) async fn open(backend: Arc<dyn Backend>, options: Options) -> Result<Arc<Self>> {
        options.check()?;
        // Sampled before the read: a new lease term may begin while we read.
        let since = backend.lease_term().map(|lease_term| lease_term.since);
        let suspects = SuspectList::read(backend.as_ref());
        let (identity, suspects) = future::try_join(Identity::read(backend.as_ref()), suspects).await?;
        let identity = match identity {
            Some(identity) if identity.is_being_destroyed() => {
                let error = Error::new(ErrorKind::Conflict, "open the store");
                return Err(error.because("its destruction was begun and not finished"));
            }
            Some(identity) => OnceLock::from(identity),
            None if Identity::is_lost(backend.as_ref()).await? => {
                let error = Error::new(ErrorKind::Corrupt, "open the store").on(Key::Store);
                return Err(error.because("a packed store has lost it; `Datastore::attach` makes a new one"));
            }
            None if backend.has_store().await? => OnceLock::new(),
            None => {
                return Err(Error::new(ErrorKind::NotFound, "open the store").because("there is no store"));
            }
        };
        let memory = options.memory(identity.get().is_some_and(|identity| identity.pack_bytes().is_some()));
        if let (Some(state), Some(identity)) = (&options.local, identity.get()) {
            bind(state, identity, backend.as_ref()).await?;
        }
        let packs = open_packs(&backend, identity.get(), memory.packs, &options).await?;
        let backend = packs.clone().map_or(backend, |packs| Arc::new(packs));
        let local = match options.local {
            None => None,
            Some(state) => {
                let metadata_cache = Arc::new(MetadataCache::new(Arc::clone(&backend), Arc::clone(&state)));
                Some(Local { metadata_cache, state })
            }
        };
        let uncached = Arc::clone(&backend);
        let backend = match &local {
            Some(local) => Arc::<MetadataCache>::clone(&local.metadata_cache),
            None => backend,
        };
        let state = local.as_ref().map(|local| Arc::clone(&local.state));
        // Buffers in use and free ones together. With fewer bytes, more chunks would touch fresh memory, which costs up to a tenth of a backup; with
        // more, a backup of large files takes more than 100 MB.
        let (level, kept) = (options.compression_level, memory.writers / 8 * 5);
        let uuid = identity.get().map(|identity| identity.uuid.as_str());
        let chunks =
            ChunkStore::new((Arc::clone(&backend), uncached), packs.clone(), state, level, kept, uuid);
        chunks.set_suspect_list(suspects, since);
        let inner = StoreInner {
            backend,
            budget: Semaphore::new(memory.writers),
            chunks,
            in_doubt: InDoubt::default(),
            identity,
            identifying: AsyncMutex::default(),
            is_renamed: AtomicBool::new(false),
            local,
            packs,
            restore_budget: Semaphore::new(memory.readers),
            zeros: Mutex::new(HashMap::from([((4 << 20, None), Digest::OF_ZEROS)])),
        };
        Ok(Arc::new(inner))
    }

    /// Begins an operation in the log and the metrics.
    pub(crate) fn watch(&self, operation: Operation, subject: Subject<'_>) -> Watch {
        Watch::begin(operation, self.runtime(), self.uuid(), subject)
    }

    /// Identity of the store; `None` for a store of PBS that was never changed.
    pub(crate) fn uuid(&self) -> Option<&str> {
        self.identity.get().map(|identity| identity.uuid.as_str())
    }

    /// Backend of the store, behind the metadata cache if there is local state.
    pub(crate) fn backend(&self) -> &Arc<dyn Backend> {
        &self.backend
    }

    /// Backend of the store without the metadata cache (H10).
    pub(crate) fn uncached_backend(&self) -> &Arc<dyn Backend> {
        match &self.local {
            Some(local) => local.metadata_cache.uncached_backend(),
            None => &self.backend,
        }
    }

    /// Bytes at which a pack is stored; 0 if each chunk is an object of its own.
    pub(crate) fn pack_bytes(&self) -> u64 {
        self.identity.get().and_then(|identity| identity.pack_bytes()).unwrap_or(0)
    }

    /// Packs of the store; `None` if each chunk is an object of its own.
    pub(crate) fn packs(&self) -> Option<&PackedBackend> {
        self.packs.as_ref()
    }

    /// Chunks of the store.
    pub(crate) fn chunks(&self) -> &ChunkStore {
        &self.chunks
    }

    /// Runtime of the backend.
    pub(crate) fn runtime(&self) -> &Arc<dyn Runtime> {
        self.backend.runtime()
    }

    /// Number of chunks of one archive processed concurrently.
    pub(crate) fn in_flight(&self) -> usize {
        self.runtime().parallelism().get() + self.backend.capabilities().in_flight
    }

    /// Refuses to change a store with features that this version does not know (H92), and gives it an identity if it has none.
    pub(crate) async fn check_writable(&self, action: &'static str) -> Result<()> {
        if self.is_renamed.load(Ordering::SeqCst) {
            return Err(renamed(action));
        }
        let identity = match self.identity.get() {
            Some(identity) => identity,
            None => self.identify().await?,
        };
        match identity.write_blocker() {
            None => Ok(()),
            Some(write_blocker) => Err(Error::new(ErrorKind::Unsupported, action).because(write_blocker)),
        }
    }

    /// As [`check_writable`](StoreInner::check_writable), for an operation that only deletes: a full store then needs no identity.
    pub(crate) async fn check_deletable(&self, action: &'static str) -> Result<()> {
        match self.check_writable(action).await {
            // A store without an identity needs no feature.
            Err(error) if error.kind() == ErrorKind::Full => Ok(()),
            checked => checked,
        }
    }

    /// Fails with `Conflict` if the store was adopted as a new one since it was opened. In a bucket no other process can do that
    /// while this one holds the lease.
    pub(crate) async fn check_identity(&self, action: &'static str) -> Result<()> {
        let Some(known) = self.uuid() else { return Ok(()) };
        let backend = self.uncached_backend().as_ref();
        if backend.lease_term().is_some() {
            return Ok(());
        }
        match Identity::read(backend).await? {
            Some(found) if found.uuid != known => Err(renamed(action)),
            _ => Ok(()),
        }
    }

    /// Current identity of the store, which another process may have given to it.
    pub(crate) async fn current_uuid(&self) -> Result<Option<String>> {
        if let Some(uuid) = self.uuid() {
            return Ok(Some(uuid.to_owned()));
        }
        let identity = Identity::read(self.backend.as_ref()).await?;
        Ok(identity.map(|identity| identity.uuid.clone()))
    }

    /// Waits for a share of the memory budget of readers.
    pub(crate) async fn read_permit(&self, bytes: u64) -> Permit {
        self.restore_budget.acquire(usize::try_from(bytes).unwrap_or(usize::MAX)).await
    }

    /// Waits for a share of the memory budget of writers. The caller may hold a share of the readers; the opposite order
    /// could deadlock.
    pub(crate) async fn write_permit(&self, bytes: u64) -> Permit {
        self.budget.acquire(usize::try_from(bytes).unwrap_or(usize::MAX)).await
    }

    /// Witnesses for a writer; with a group if it writes to that one alone.
    pub(crate) fn witnesses(&self, group: Option<&GroupName>) -> Arc<Witnesses> {
        let metadata_cache = self.local.as_ref().map(|local| Arc::clone(&local.metadata_cache));
        Witnesses::new(metadata_cache, group)
    }

    /// New pins, which last until they are dropped.
    pub(crate) fn pins(&self) -> Arc<WriterPins> {
        self.chunks.pins().writer(CachePolicy::Bypass, None, self.witnesses(None))
    }

    /// More pins for the writer of the given ones, whose chunks are encrypted with the key, or plain without one.
    pub(crate) fn pins_beside(&self, pins: &WriterPins, key: Option<EncryptionKey>) -> Arc<WriterPins> {
        self.chunks.pins().writer(CachePolicy::Bypass, key, Arc::clone(&pins.witnesses))
    }

    /// Mode of a put that replaces only the version that was read: a late put must not undo a newer one (H18).
    pub(crate) fn instead_of(&self, found: Option<Version>) -> PutMode {
        match found {
            _ if !self.backend.capabilities().conditional_put => PutMode::Replace,
            Some(version) => PutMode::IfMatch(version),
            None => PutMode::Create,
        }
    }

    /// Records an index that was just stored, which a listing may not show yet.
    pub(crate) fn note_published(&self, key: &Key) {
        // Consistent listings show it at once.
        if !self.backend.capabilities().consistent_listing {
            self.chunks.published().note(key, self.runtime().monotonic());
        }
    }

    /// Indexes that this process stored recently.
    pub(crate) fn published(&self) -> Vec<Key> {
        self.chunks.published().keys()
    }

    /// Digest of this number of zeros, at most those of a chunk: plain ones, or encrypted with a key.
    pub(crate) async fn zero_digest(&self, length: u64, key: Option<&EncryptionKey>) -> Result<Digest> {
        let chunk = (length, key.map(EncryptionKey::fingerprint));
        if let Some(digest) = self.zeros.lock().unwrap_or_else(PoisonError::into_inner).get(&chunk) {
            return Ok(*digest);
        }
        let count = usize::try_from(length).unwrap_or(MAX_CHUNK_BYTES).min(MAX_CHUNK_BYTES);
        let key = key.cloned();
        let digest = move || Ok(Digest::of_chunk(&vec![0; count], key.as_ref()));
        let digest = self.runtime().run_blocking("digest zeros", digest).await?;
        self.zeros.lock().unwrap_or_else(PoisonError::into_inner).insert(chunk, digest);
        Ok(digest)
    }

    /// Gives the store an identity, unless another process did.
    async fn identify(&self) -> Result<&Identity> {
        let _alone = self.identifying.lock().await;
        if let Some(identity) = self.identity.get() {
            return Ok(identity);
        }
        let found = self.find_identity().await?;
        // Before other tasks see the identity and use chunks or copies: they do not bind them again.
        self.chunks.bind(&found.uuid)?;
        if let Some(local) = &self.local {
            bind(&local.state, &found, self.backend.as_ref()).await?;
        }
        Ok(self.identity.get_or_init(|| found))
    }

    /// Reads the identity, or stores a new one.
    async fn find_identity(&self) -> Result<Identity> {
        let backend = self.backend.as_ref();
        let _held = match lock_store(backend, LockMode::Shared).await {
            // The process that collects garbage gave it one.
            Err(error) if error.kind() == ErrorKind::Busy => {
                return Identity::read(backend).await?.ok_or(error);
            }
            held => held?,
        };
        if let Some(found) = Identity::read(backend).await? {
            return Ok(found);
        }
        let drawn = Identity::draw(self.runtime().as_ref());
        match drawn.create(backend).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Identity::read(backend).await?.ok_or(error)
            }
            created => created.map(|()| drawn),
        }
    }
}

/// The packs of a store, if its chunks are in packs.
async fn open_packs(
    backend: &Arc<dyn Backend>,
    identity: Option<&Identity>,
    memory_bytes: usize,
    options: &Options,
) -> Result<Option<PackedBackend>> {
    let Some((identity, target)) = identity.and_then(|identity| Some((identity, identity.pack_bytes()?)))
    else {
        return Ok(None);
    };
    let local = options.local.as_ref().and_then(|local| local.segments.clone());
    let index_bytes = options.index_bytes.unwrap_or(64 << 20);
    let target_bytes = usize::try_from(target).unwrap_or(usize::MAX);
    let limits = Limits { index_bytes, local, memory_bytes, target_bytes };
    PackedBackend::open(Arc::clone(backend), &identity.uuid, limits).await.map(Some)
}

/// Makes sure that local state belongs to this store (H91).
async fn bind(state: &Arc<LocalState>, identity: &Identity, backend: &dyn Backend) -> Result<()> {
    let (state, uuid) = (Arc::clone(state), identity.uuid.clone());
    backend.runtime().run_blocking("use local state", move || state.bind(&uuid)).await
}

/// Local state with its metadata cache.
#[derive(Debug)]
pub(super) struct Local {
    pub(super) metadata_cache: Arc<MetadataCache>,
    state: Arc<LocalState>,
}
