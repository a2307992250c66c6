//! The store: namespaces, groups and snapshots, backups and restores.
//!
//! A [`Datastore`] is opened on a [`Backend`] and is cheap to clone. [`Datastore::backup`] begins a snapshot, which stays
//! invisible until [`SnapshotWriter::finish`]; [`Datastore::snapshot`] opens a finished one.
//!
//! # Locks
//! | holder | lock of the store | group | snapshot |
//! |---|---|---|---|
//! | [`SnapshotWriter`] | shared | exclusive | exclusive, and shared on each base |
//! | a sync into the store | shared | exclusive | exclusive, and shared on the newest |
//! | [`SnapshotReader`], a sync from the store | | | shared |
//! | notes, protection of a snapshot | | | manifest lock; exclusive for protection |
//! | owner, notes of a group | | exclusive | |
//! | deletion of a snapshot | | exclusive, if it is the last | exclusive |
//! | deletion of a group | | exclusive | exclusive |
//! | copy of a group | | exclusive at the destination | shared; exclusive at the destination |
//! | move of a group | | exclusive at both places | exclusive at both places |
//! | verification | shared, while a chunk is quarantined or reinstated | | shared; manifest lock for its state |
//!
//! Operations take locks without waiting, or with a bounded wait (a manifest, a group at the begin of a backup). So the order of locks does not affect
//! progress: an operation that cannot get a lock releases the others and fails with `Busy`.

mod backup;
mod catalog;
mod control;
mod events;
mod gc_support;
mod identity;
mod in_doubt;
mod lifecycle;
mod relocate;
mod replicate;
mod restore;
mod verify_support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use futures::future;

use crate::backend::cached::MetadataCache;
use crate::backend::lock_wait::lock_store;
use crate::backend::{Backend, LockMode};
use crate::chunks::moves::MovesInProgress;
use crate::chunks::witnesses::Witnesses;
use crate::chunks::{ChunkStore, SuspectList};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::{DEFAULT_ZSTD_LEVEL, MAX_CHUNK_BYTES};
use crate::format::layout::{Key, Prefix};
use crate::format::manifest::{MANIFEST_BYTES, Manifest};
use crate::format::name::GroupName;
use crate::local::LocalState;
use crate::rt::Runtime;
use crate::rt::semaphore::Semaphore;
use crate::store::identity::Identity;
use crate::store::in_doubt::InDoubt;

pub(crate) use backup::pipeline::yield_now;
pub(crate) use catalog::delete::{DeleteError, DeleteOutcome, Expected};
pub(crate) use catalog::list::Listed;
pub(crate) use control::ExecutionControl;
pub(crate) use replicate::source::{Held, StoredManifest, is_of_the_object};
pub(crate) use replicate::target::{GroupImport, ImportedManifest, SnapshotImport};
pub(crate) use restore::snapshot::{has_failed_verification, in_archive};
pub(crate) use verify_support::Copies;

pub use crate::backend::cached::Refresh;
pub use backup::builder::BackupBuilder;
pub use backup::image::{DirtyMap, ImageBuilder};
pub use backup::random_image::{ImageWriter, ImageWriterBuilder};
pub use backup::session::{ArchiveSummary, BackupStats};
pub use backup::stream::StreamBuilder;
pub use backup::writer::SnapshotWriter;
pub use catalog::delete::Deletion;
pub use catalog::list::{FileInfo, SnapshotInfo, SnapshotState};
pub use catalog::metadata::Protection;
pub use catalog::scope::Scope;
pub use events::{Event, Observer};
pub use lifecycle::Destruction;
pub use relocate::{Relocated, RelocatedGroup, RelocatedSnapshot, Relocation};
pub use restore::archive::ArchiveReader;
pub use restore::snapshot::SnapshotReader;
pub use restore::target::{FileTarget, RestoreTarget, WriterTarget};

/// Options of a store.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    compression_level: i32,
    local: Option<Arc<LocalState>>,
    memory_bytes: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { compression_level: DEFAULT_ZSTD_LEVEL, local: None, memory_bytes: 64 << 20 }
    }
}

impl Options {
    /// Compression level of zstd, 1 to 22; default: 1, as in PBS.
    pub fn compression_level(mut self, level: i32) -> Self {
        self.compression_level = level;
        self
    }

    /// Keeps local copies of the store in a directory; default: none. Without local state everything works, with
    /// more requests. The directory belongs to this store from then on.
    pub fn local_state(mut self, local: Arc<LocalState>) -> Self {
        self.local = Some(local);
        self
    }

    /// Maximum bytes of chunks in flight, for all backups of this store together, and again for all restores; default:
    /// 64 MiB, minimum 32 MiB. Chunks in flight also exist in compressed form. In addition, each archive that is
    /// written or read in order holds one chunk; one that is written in any order, up to 16; a reader
    /// caches up to four chunks, and reads up to 32 MiB ahead. The index of an archive takes 40 bytes a chunk, and
    /// about 100 bytes for each distinct chunk of a backup.
    pub fn memory_bytes(mut self, bytes: usize) -> Self {
        self.memory_bytes = bytes;
        self
    }

    fn check(&self) -> Result<()> {
        let invalid =
            |why: &'static str| Err(Error::new(ErrorKind::InvalidInput, "open a store").because(why));
        if !(1..=22).contains(&self.compression_level) {
            return invalid("the compression level is not within 1 and 22");
        }
        if self.memory_bytes < 2 * MAX_CHUNK_BYTES {
            return invalid("memory_bytes is less than 32 MiB");
        }
        Ok(())
    }
}

/// An open store. Clones share everything.
#[derive(Clone, Debug)]
pub struct Datastore {
    inner: Arc<StoreInner>,
}

#[derive(Debug)]
struct StoreInner {
    backend: Arc<dyn Backend>,
    budget: Arc<Semaphore>,
    chunks: ChunkStore,
    /// A budget of its own: a restore whose target is a backup must not wait for that backup.
    restore_budget: Arc<Semaphore>,
    /// `true` if this handle gave the store a new identity.
    is_renamed: AtomicBool,
    local: Option<Local>,
    doubts: InDoubt,
    /// Unset in a store of PBS that was never changed.
    identity: OnceLock<Identity>,
    /// Digests of chunks of zeros, by length.
    zeros: Mutex<HashMap<u64, Digest>>,
}

impl Datastore {
    /// Opens a store that larder or PBS made. Takes two concurrent requests and writes nothing: the first change gives a
    /// store of PBS its identity, and takes a store in a bucket for this process. Without an identity, a third request looks for
    /// the owner mark of PBS, and without that, listings look for snapshots and chunks.
    ///
    /// # Errors
    /// `NotFound` if there is no store; [`create`](Datastore::create) makes one. `InvalidInput` for options out of range; `Corrupt` if the identity cannot be read; `Conflict` if the store is
    /// partly destroyed.
    pub async fn open(backend: Arc<dyn Backend>, options: Options) -> Result<Self> {
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
            None if backend.has_store().await? => OnceLock::new(),
            None => {
                return Err(Error::new(ErrorKind::NotFound, "open the store").because("there is no store"));
            }
        };
        let local = match options.local {
            None => None,
            Some(state) => {
                let metadata_cache = Arc::new(MetadataCache::new(Arc::clone(&backend), Arc::clone(&state)));
                let local = Local { metadata_cache, state };
                if let Some(identity) = identity.get() {
                    local.bind(identity, backend.as_ref()).await?;
                }
                Some(local)
            }
        };
        let uncached = Arc::clone(&backend);
        let backend = match &local {
            Some(local) => Arc::<MetadataCache>::clone(&local.metadata_cache),
            None => backend,
        };
        let state = local.as_ref().map(|local| Arc::clone(&local.state));
        let (level, kept) = (options.compression_level, options.memory_bytes / 2);
        let chunks = ChunkStore::new((Arc::clone(&backend), uncached), state, level, kept);
        if let Some(identity) = identity.get() {
            chunks.bind(&identity.uuid);
        }
        chunks.learn_suspects(suspects, since);
        let inner = StoreInner {
            backend,
            budget: Semaphore::new(options.memory_bytes),
            chunks,
            doubts: InDoubt::default(),
            identity,
            is_renamed: AtomicBool::new(false),
            local,
            restore_budget: Semaphore::new(options.memory_bytes),
            zeros: Mutex::default(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Identity of the store, drawn at its creation: 32 hexadecimal digits. A store made by PBS has none until its
    /// first change.
    pub fn uuid(&self) -> Option<&str> {
        self.inner.identity.get().map(|identity| identity.uuid.as_str())
    }
}

/// The local state and the metadata cache on it.
#[derive(Debug)]
struct Local {
    metadata_cache: Arc<MetadataCache>,
    state: Arc<LocalState>,
}

impl Local {
    /// Makes sure that the local state belongs to this store (H91).
    async fn bind(&self, identity: &Identity, backend: &dyn Backend) -> Result<()> {
        let (state, uuid) = (Arc::clone(&self.state), identity.uuid.clone());
        backend.runtime().run_blocking("use local state", move || state.bind(&uuid)).await
    }
}

impl Datastore {
    /// Witnesses for a writer, of this group if it writes to one alone.
    fn witnesses(&self, group: Option<&GroupName>) -> Arc<Witnesses> {
        let metadata_cache = self.inner.local.as_ref().map(|local| Arc::clone(&local.metadata_cache));
        Witnesses::new(metadata_cache, group)
    }

    /// Makes sure that no stale copy answers for metadata below a prefix.
    ///
    /// # Errors
    /// Any failure to list.
    pub(crate) async fn look_again(&self, prefix: Prefix) -> Result<()> {
        match &self.inner.local {
            Some(local) => local.metadata_cache.look_again(prefix).await,
            None => Ok(()),
        }
    }

    /// Moves in progress within the store.
    pub(crate) fn moves_in_progress(&self) -> &Arc<MovesInProgress> {
        self.inner.chunks.moves_in_progress()
    }
}

impl StoreInner {
    /// Records that an index was stored.
    fn note_published(&self, key: &Key) {
        // Consistent listings show it at once.
        if !self.backend.capabilities().consistent_listing {
            self.chunks.published().note(key, self.runtime().monotonic());
        }
    }

    /// Indexes stored recently.
    fn published(&self) -> Vec<Key> {
        self.chunks.published().keys()
    }

    fn runtime(&self) -> &Arc<dyn Runtime> {
        self.backend.runtime()
    }

    /// Number of chunks of one archive processed concurrently.
    fn in_flight(&self) -> usize {
        self.runtime().parallelism().get() + self.backend.capabilities().in_flight
    }

    /// The stored form of a manifest, if it is within the limit for reading.
    async fn encode_manifest(&self, manifest: &Manifest) -> Result<Bytes> {
        let json = Bytes::from(manifest.to_json());
        let fits = |bytes: &Bytes| bytes.len() as u64 <= MANIFEST_BYTES;
        let blob = if fits(&json) { Some(self.chunks.encode(&json).await?) } else { None };
        blob.filter(fits).ok_or_else(|| {
            let error = Error::new(ErrorKind::InvalidInput, "store the manifest");
            error.because("it is longer than 16 MiB")
        })
    }

    /// Digest of this number of zeros, at most those of a chunk.
    async fn zero_digest(&self, length: u64) -> Result<Digest> {
        if let Some(digest) = self.zeros.lock().unwrap_or_else(PoisonError::into_inner).get(&length) {
            return Ok(*digest);
        }
        let count = usize::try_from(length).unwrap_or(MAX_CHUNK_BYTES).min(MAX_CHUNK_BYTES);
        let digest = move || Ok(Digest::of(&vec![0; count]));
        let digest = self.runtime().run_blocking("digest zeros", digest).await?;
        self.zeros.lock().unwrap_or_else(PoisonError::into_inner).insert(length, digest);
        Ok(digest)
    }

    /// Refuses to change a store with features that this version does not know (H92), and gives it an identity if it has none.
    async fn check_writable(&self, action: &'static str) -> Result<()> {
        if self.is_renamed.load(Ordering::SeqCst) {
            return Err(lifecycle::renamed(action));
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

    /// Gives the store an identity, unless another process did.
    async fn identify(&self) -> Result<&Identity> {
        let identity = self.find_identity().await?;
        self.chunks.bind(&identity.uuid);
        if let Some(local) = &self.local {
            local.bind(identity, self.backend.as_ref()).await?;
        }
        Ok(identity)
    }

    async fn find_identity(&self) -> Result<&Identity> {
        let backend = self.backend.as_ref();
        let _held = match lock_store(backend, LockMode::Shared).await {
            // The process that collects garbage gave it one.
            Err(error) if error.kind() == ErrorKind::Busy => {
                let found = Identity::read(backend).await?.ok_or(error)?;
                return Ok(self.identity.get_or_init(|| found));
            }
            held => held?,
        };
        if let Some(found) = Identity::read(backend).await? {
            return Ok(self.identity.get_or_init(|| found));
        }
        let drawn = Identity::draw(self.runtime().as_ref());
        let identity = match drawn.create(backend).await {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Identity::read(backend).await?.ok_or(error)?
            }
            created => created.map(|()| drawn)?,
        };
        Ok(self.identity.get_or_init(|| identity))
    }
}
