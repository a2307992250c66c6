//! The one gate for chunks: nothing else makes a chunk key to put, to touch or to delete (H3).
//!
//! # Storing
//! All of it happens inside the critical section of the digest, after the chunk was pinned for its writer:
//!
//! | the store says | what is done |
//! |---|---|
//! | the writer confirmed it before | nothing |
//! | anything but absent, and it was found bad or gone since | as if nothing were known; read and validate what is there |
//! | absent | encode, create |
//! | present, named by an explicit base, not empty | touched: known (D9) |
//! | present, as long as what would be stored | touched: a duplicate (D8) |
//! | present, of another length | read and validate: good → a duplicate, bad → replace (D8, H77) |
//! | cannot say, named by an explicit base | known (D9) |
//! | cannot say, the records say that it is present | a duplicate |
//! | cannot say | encode, create; if it exists, as above |
//!
//! # Presence
//! A store in a bucket cannot say without a request. What it is known to have is recorded on the local disk, if there is local state:
//!
//! | state | how it comes about | what it is worth |
//! |---|---|---|
//! | present | stored by this process and acknowledged, or found and compared | the chunk is not sent |
//! | expected | an index names it | nothing, unless it is an explicit base that stays locked (D9) |
//! | unknown | no record | it is sent; if it is there, it is compared |
//! | suspect, missing | a read found the chunk bad or gone: the record is forgotten | as unknown, and this process believes neither a base nor a length (D9, H23) until the chunk was stored or read again |
//!
//! Records count only for the term in which they were made, and for the next one of the same instance: whoever had the store
//! between may have removed chunks. **Whoever removes chunks begins a new term first, and forgets each one before it is removed** (H16,
//! H22): so neither a crash nor an old copy of the directory brings a record back that is no longer true.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt as _, Shared, WeakShared};

use crate::backend::{Backend, PutMode, Touched};
use crate::buffers::Buffer;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::{MAX_CHUNK_BYTES, MAX_ENCODED_CHUNK_BYTES, MIN_BLOB_BYTES};
use crate::format::layout::Key;
use crate::local::LocalState;
use crate::local::presence::PresenceStore;
use crate::store::codecs::Codecs;
use crate::store::pins::{Pins, Sections, WriterPins};

/// The chunks of a store.
#[derive(Debug)]
pub(in crate::store) struct ChunkStore {
    backend: Arc<dyn Backend>,
    pub(in crate::store) pins: Pins,
    reader: Arc<ChunkReader>,
    sections: Sections,
}

/// What reads chunks.
#[derive(Debug)]
struct ChunkReader {
    backend: Arc<dyn Backend>,
    codecs: Arc<Codecs>,
    flights: Mutex<HashMap<Wanted, WeakShared<Flight>>>,
    local: Option<Arc<LocalState>>,
    /// Chunks that were found bad or gone, and not good since.
    suspects: Mutex<HashSet<Digest>>,
    /// The records of the term with this epoch.
    presence: Mutex<Option<(u64, Arc<PresenceStore>)>>,
}

/// A chunk, its plaintext length, and whether it is kept on the local disk when it was fetched.
type Wanted = (Digest, usize, Keeping);

type Flight = BoxFuture<'static, Result<Bytes>>;

/// Whether chunks that were fetched or stored are kept on the local disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::store) enum Keeping {
    Kept,
    NotKept,
}

/// What makes a writer believe that a chunk is in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Evidence {
    /// The base of the backup names it.
    Base,
    /// Nothing.
    Nothing,
}

/// What became of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::store) enum Stored {
    /// The store had it, in an object of this many bytes.
    Duplicate(u64),
    /// The base named it, or this writer stored it before.
    Known,
    /// It is new, in an object of this many bytes.
    New(u64),
}

impl ChunkStore {
    pub(in crate::store) fn new(
        backend: Arc<dyn Backend>,
        local: Option<Arc<LocalState>>,
        level: i32,
        kept_bytes: usize,
    ) -> Self {
        let codecs = Codecs::new(level, kept_bytes);
        let reader = ChunkReader {
            backend: Arc::clone(&backend),
            codecs,
            flights: Mutex::default(),
            local,
            suspects: Mutex::default(),
            presence: Mutex::default(),
        };
        Self { backend, pins: Pins::default(), reader: Arc::new(reader), sections: Sections::default() }
    }

    fn codecs(&self) -> &Arc<Codecs> {
        &self.reader.codecs
    }

    /// Makes sure that the chunk is in the store, and pins it for the writer.
    ///
    /// # Cancel safety
    /// A dropped future leaves the chunk in the store or not, and pinned.
    pub(in crate::store) async fn put(
        &self,
        writer: &WriterPins,
        digest: Digest,
        plaintext: &Bytes,
        evidence: Evidence,
    ) -> Result<Stored> {
        if writer.is_confirmed(&digest) {
            return Ok(Stored::Known);
        }
        let _section = self.sections.enter(digest).await;
        if writer.pin(digest) {
            return Ok(Stored::Known);
        }
        let stored = self.put_pinned(digest, plaintext, evidence, writer.keeping).await?;
        writer.confirm(digest);
        Ok(stored)
    }

    async fn put_pinned(
        &self,
        digest: Digest,
        plaintext: &Bytes,
        evidence: Evidence,
        keeping: Keeping,
    ) -> Result<Stored> {
        let key = Key::Chunk(digest);
        let is_suspect = self.reader.suspects().contains(&digest);
        let evidence = if is_suspect { Evidence::Nothing } else { evidence };
        let touched = self.touch_one(&key).await?;
        let present = match touched {
            Touched::Present(info) if evidence == Evidence::Base && info.size >= MIN_BLOB_BYTES as u64 => {
                return Ok(Stored::Known);
            }
            Touched::Unknown if evidence == Evidence::Base => return Ok(Stored::Known),
            Touched::Unknown => match self.recorded(digest).await? {
                Some(size) => return Ok(Stored::Duplicate(size)),
                None => None,
            },
            Touched::Present(info) => Some(info.size),
            _ => None,
        };
        let blob = self.encode(plaintext).await?;
        let (size, create) = (blob.len() as u64, self.backend.capabilities().create_mode());
        let present = match present {
            Some(present) => present,
            None => match self.backend.put(&key, blob.clone(), create).await {
                Ok(_) => {
                    self.reader.suspects().remove(&digest);
                    self.record(digest, size).await;
                    if keeping == Keeping::Kept {
                        self.reader.keep(digest, blob).await;
                    }
                    return Ok(Stored::New(size));
                }
                // Somebody else was faster, or the backend could not say: 412 is compared, not believed (H24).
                Err(error) if error.kind() == ErrorKind::AlreadyExists => self.backend.head(&key).await?.size,
                Err(error) => return Err(error),
            },
        };
        if present == size && !is_suspect || self.is_good(digest, plaintext.len()).await? {
            self.record(digest, present).await;
            return Ok(Stored::Duplicate(present));
        }
        self.backend.put(&key, blob, PutMode::Replace).await?;
        self.reader.suspects().remove(&digest);
        self.record(digest, size).await;
        Ok(Stored::New(size))
    }

    /// Opens the records of which chunks the store with this identity has, if there is local state and this process alone may change
    /// the store.
    pub(in crate::store) async fn open_presence(&self, identity: &str) -> Result<()> {
        let (Some(local), Some(tenure)) = (self.reader.local.clone(), self.backend.tenure()) else {
            return Ok(());
        };
        let identity = identity.to_owned();
        let open = move || Ok(local.presence(&identity, tenure.epoch, tenure.continues));
        let opened = self.backend.runtime().run_blocking("open records", open).await?;
        let opened = opened.map(|records| (tenure.epoch, records));
        *self.reader.presence.lock().unwrap_or_else(PoisonError::into_inner) = opened;
        Ok(())
    }

    async fn recorded(&self, digest: Digest) -> Result<Option<u64>> {
        let Some(presence) = self.reader.presence() else { return Ok(None) };
        let look = move || Ok(presence.get(&digest).map(u64::from));
        self.backend.runtime().run_blocking("look up chunk", look).await
    }

    /// Records that the store has the chunk. Without the record, it is sent again some time.
    async fn record(&self, digest: Digest, size: u64) {
        let (Some(presence), Ok(size)) = (self.reader.presence(), u32::try_from(size)) else { return };
        let record = move || Ok(presence.set(digest, size));
        let _ = self.backend.runtime().run_blocking("record chunk", record).await;
    }

    /// Pins chunks that are not at hand, because a base names them, and makes sure that they are in the store.
    ///
    /// # Errors
    /// `Corrupt` if one of them is missing, or was found bad: the base is damaged.
    pub(in crate::store) async fn reuse(&self, writer: &WriterPins, digests: &[Digest]) -> Result<()> {
        let mut wanted = digests.to_vec();
        // In order, so that two who want the same do not wait for each other.
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|digest| !writer.is_confirmed(digest));
        let mut sections = Vec::with_capacity(wanted.len());
        for digest in &wanted {
            sections.push(self.sections.enter(*digest).await);
        }
        wanted.retain(|digest| !writer.pin(*digest));
        let keys: Vec<Key> = wanted.iter().copied().map(Key::Chunk).collect();
        for (digest, touched) in wanted.into_iter().zip(self.backend.touch(&keys).await?) {
            let is_suspect = self.reader.suspects().contains(&digest);
            match touched {
                _ if is_suspect => {
                    let error = Error::new(ErrorKind::Corrupt, "reuse chunk").on(digest);
                    return Err(error.because("the base names it, but it was found bad or gone"));
                }
                Touched::Present(info) if info.size >= MIN_BLOB_BYTES as u64 => {}
                Touched::Unknown => {}
                _ => {
                    return Err(Error::new(ErrorKind::Corrupt, "reuse chunk")
                        .on(digest)
                        .because("the base names it, but it is missing or empty"));
                }
            }
            writer.confirm(digest);
        }
        Ok(())
    }

    /// Reads a chunk of a known plaintext length, checked against its digest. Those who want the same at the same time share one
    /// read (H70).
    pub(in crate::store) async fn get(&self, digest: Digest, length: u64, keeping: Keeping) -> Result<Bytes> {
        let length = usize::try_from(length).ok().filter(|length| *length <= MAX_CHUNK_BYTES);
        let length = length.ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, "read chunk")
                .on(digest)
                .because("it is longer than a chunk may be")
        })?;
        Arc::clone(&self.reader).join((digest, length, keeping)).await
    }

    /// Reads a blob that is stored as a file of its own.
    pub(in crate::store) async fn decode_blob(&self, blob: Bytes, limit: usize) -> Result<Bytes> {
        let codecs = Arc::clone(self.codecs());
        let decode = move || codecs.decode_blob(blob, limit);
        self.backend.runtime().run_blocking("decode blob", decode).await
    }

    /// Encodes bytes as a blob.
    pub(in crate::store) async fn encode(&self, plaintext: &Bytes) -> Result<Bytes> {
        let (codecs, plaintext) = (Arc::clone(self.codecs()), plaintext.clone());
        let encode = move || codecs.encode(&plaintext);
        self.backend.runtime().run_blocking("encode blob", encode).await
    }

    /// A buffer to read plaintext into.
    pub(in crate::store) fn buffer(&self, capacity: usize) -> Buffer {
        self.codecs().buffer(capacity)
    }

    async fn touch_one(&self, key: &Key) -> Result<Touched> {
        let touched = self.backend.touch(std::slice::from_ref(key)).await?;
        touched.into_iter().next().ok_or_else(|| Error::new(ErrorKind::Internal, "touch").on(key))
    }

    /// Whether what the store has under the digest is what belongs there.
    async fn is_good(&self, digest: Digest, length: usize) -> Result<bool> {
        match self.reader.fetch(digest, length).await {
            Ok(_) => Ok(true),
            // A plain chunk is offered: an encrypted one under its digest is a wrong one.
            Err(error) => match error.kind() {
                ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unsupported => Ok(false),
                _ => Err(error),
            },
        }
    }
}

impl ChunkReader {
    /// Takes part in the read of a chunk that is under way, or begins one. It goes on as long as anybody wants it.
    fn join(self: Arc<Self>, wanted: Wanted) -> Shared<Flight> {
        let mut flights = self.flights.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = flights.get(&wanted).and_then(WeakShared::upgrade) {
            return flight;
        }
        let reader = Arc::clone(&self);
        let flight = async move {
            let _landing = Landing { reader: Arc::clone(&reader), wanted };
            reader.read(wanted).await
        };
        let flight = flight.boxed().shared();
        flights.extend(flight.downgrade().map(|weak| (wanted, weak)));
        flight
    }

    async fn read(&self, (digest, length, keeping): Wanted) -> Result<Bytes> {
        if let Some(plaintext) = self.read_locally(digest, length).await? {
            return Ok(plaintext);
        }
        let fetched = self.fetch(digest, length).await;
        if let Err(error) = &fetched
            && matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound)
        {
            self.forget(digest).await;
        }
        let (stored, plaintext) = fetched?;
        if keeping == Keeping::Kept {
            self.keep(digest, stored).await;
        }
        Ok(plaintext)
    }

    /// The records, while the term goes on that they are of.
    fn presence(&self) -> Option<Arc<PresenceStore>> {
        let epoch = self.backend.tenure()?.epoch;
        let presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        presence.as_ref().filter(|(of, _)| *of == epoch).map(|(_, records)| Arc::clone(records))
    }

    fn suspects(&self) -> MutexGuard<'_, HashSet<Digest>> {
        self.suspects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A chunk was found bad or gone: the next backup that has it stores it again (H22, H23).
    async fn forget(&self, digest: Digest) {
        self.suspects().insert(digest);
        let Some(presence) = self.presence() else { return };
        // If the disk fails, the record is not believed any more all the same, by this process.
        let forget = move || Ok(presence.forget(digest));
        let _ = self.backend.runtime().run_blocking("forget chunk", forget).await;
    }

    /// Reads a chunk from the local disk. What is damaged there is removed, and fetched like one that is not there (H66).
    async fn read_locally(&self, digest: Digest, length: usize) -> Result<Option<Bytes>> {
        let Some(local) = self.local.clone().filter(|local| local.chunks.is_some()) else { return Ok(None) };
        let codecs = Arc::clone(&self.codecs);
        let read = move || {
            let Some(cache) = &local.chunks else { return Ok(None) };
            let Some(stored) = cache.get(&digest) else { return Ok(None) };
            let plaintext = codecs.decode(stored, digest, length).ok();
            if plaintext.is_none() {
                cache.remove_damaged(&digest);
            }
            Ok(plaintext)
        };
        self.backend.runtime().run_blocking("read chunk", read).await
    }

    /// Reads a chunk from the store: its stored form and its contents, which were checked (H68).
    async fn fetch(&self, digest: Digest, length: usize) -> Result<(Bytes, Bytes)> {
        let object = self.backend.get(&Key::Chunk(digest), MAX_ENCODED_CHUNK_BYTES as u64).await?;
        let codecs = Arc::clone(&self.codecs);
        let decode = move || {
            let plaintext = codecs.decode(object.bytes.clone(), digest, length)?;
            Ok((object.bytes, plaintext))
        };
        let fetched = self.backend.runtime().run_blocking("decode chunk", decode).await?;
        self.suspects().remove(&digest);
        Ok(fetched)
    }

    /// Keeps the stored form of a chunk on the local disk, if there is one. That it cannot be kept is no failure (H63).
    async fn keep(&self, digest: Digest, stored: Bytes) {
        let Some(local) = self.local.clone().filter(|local| local.chunks.is_some()) else { return };
        let keep = move || {
            if let Some(cache) = &local.chunks {
                cache.insert(&digest, &stored);
            }
            Ok(())
        };
        let _ = self.backend.runtime().run_blocking("keep chunk", keep).await;
    }
}

/// Ends a flight: whoever comes now begins another.
struct Landing {
    reader: Arc<ChunkReader>,
    wanted: Wanted,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.reader.flights.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.wanted);
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::future::Future;
    use std::ops::Range;
    use std::pin::pin;

    use async_trait::async_trait;
    use futures::executor::block_on;
    use futures::future::poll_fn;

    use super::*;
    use crate::backend::fault::{Action, FaultBackend, Rule};
    use crate::backend::record::Method;
    use crate::backend::{
        Capabilities, Cursor, Deleted, ListPage, ListQuery, LockGuard, LockMode, LockScope, MemoryBackend,
        Object, ObjectInfo, Removal, Tenure, Version,
    };
    use crate::local::LocalOptions;
    use crate::rt::{Runtime, ThreadRuntime};

    /// Memory that says as little without a request as a bucket, and that only this process may change.
    #[derive(Debug)]
    struct Remote(MemoryBackend);

    #[async_trait]
    impl Backend for Remote {
        fn runtime(&self) -> &Arc<dyn Runtime> {
            self.0.runtime()
        }
        fn capabilities(&self) -> &Capabilities {
            self.0.capabilities()
        }
        async fn get(&self, key: &Key, limit: u64) -> Result<Object> {
            self.0.get(key, limit).await
        }
        async fn get_range(&self, key: &Key, range: Range<u64>) -> Result<Object> {
            self.0.get_range(key, range).await
        }
        async fn head(&self, key: &Key) -> Result<ObjectInfo> {
            self.0.head(key).await
        }
        async fn put(&self, key: &Key, object: Bytes, mode: PutMode) -> Result<Version> {
            self.0.put(key, object, mode).await
        }
        async fn copy(&self, from: &Key, to: &Key, mode: PutMode) -> Result<Version> {
            self.0.copy(from, to, mode).await
        }
        async fn delete(&self, removals: &[Removal]) -> Result<Vec<Result<Deleted>>> {
            self.0.delete(removals).await
        }
        async fn list(&self, query: &ListQuery, cursor: Option<&Cursor>) -> Result<ListPage> {
            self.0.list(query, cursor).await
        }
        async fn touch(&self, keys: &[Key]) -> Result<Vec<Touched>> {
            Ok(vec![Touched::Unknown; keys.len()])
        }
        async fn barrier(&self) -> Result<()> {
            self.0.barrier().await
        }
        async fn lock(&self, scope: &LockScope, mode: LockMode) -> Result<Box<dyn LockGuard>> {
            self.0.lock(scope, mode).await
        }
        fn tenure(&self) -> Option<Tenure> {
            Some(Tenure { continues: None, epoch: 1 })
        }
        async fn close(&self) -> Result<()> {
            self.0.close().await
        }
    }

    const PLAINTEXT: &[u8] = b"plaintext";

    struct Place {
        backend: Arc<FaultBackend>,
        chunks: ChunkStore,
        digest: Digest,
        directory: tempfile::TempDir,
    }

    impl Place {
        async fn new() -> Self {
            let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
            let remote = Remote(MemoryBackend::new(Arc::clone(&runtime)));
            let backend = Arc::new(FaultBackend::new(Arc::new(remote)));
            let directory = tempfile::tempdir().unwrap();
            let local = LocalState::open(&runtime, directory.path(), LocalOptions::default()).await.unwrap();
            let passed: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&backend);
            let chunks = ChunkStore::new(passed, Some(local), 1, 0);
            Self { backend, chunks, digest: Digest::of(PLAINTEXT), directory }
        }

        fn writer(&self) -> Arc<WriterPins> {
            self.chunks.pins.writer(Keeping::Kept)
        }

        /// Stores the chunk, and makes sure that it is pinned wherever that waits for something, and when it is over.
        async fn put(&self, writer: &WriterPins, evidence: Evidence) -> Result<Stored> {
            let plaintext = Bytes::from_static(PLAINTEXT);
            self.pinned(self.chunks.put(writer, self.digest, &plaintext, evidence)).await
        }

        async fn pinned<T>(&self, work: impl Future<Output = T>) -> T {
            let (mut work, mut waits) = (pin!(work), 0);
            let done = poll_fn(|context| {
                let polled = work.as_mut().poll(context);
                assert!(self.chunks.pins.is_pinned(&self.digest), "after {waits} waits");
                waits += u32::from(polled.is_pending());
                polled
            });
            done.await
        }

        fn forget_records(&self) {
            *self.chunks.reader.presence.lock().unwrap() = None;
            assert!(self.directory.path().exists());
        }
    }

    #[test]
    fn h1_h2_whoever_is_told_that_a_chunk_is_there_holds_a_pin_on_it() {
        block_on(async {
            let place = Place::new().await;
            // So that each step waits.
            for method in [Method::Touch, Method::Put, Method::Head, Method::Get] {
                place.backend.add(Rule::on(method, Action::Delay(std::time::Duration::from_millis(5))));
            }
            place.chunks.open_presence(&"a".repeat(32)).await.unwrap();
            let size = |stored| match stored {
                Stored::Duplicate(size) | Stored::New(size) => size,
                Stored::Known => 0,
            };
            // Stored, then known to the same writer, then by its record, by a base, and by the answer to a put.
            let first = place.writer();
            let new = place.put(&first, Evidence::Nothing).await.unwrap();
            assert_eq!(new, Stored::New(size(new)));
            assert_eq!(place.put(&first, Evidence::Nothing).await.unwrap(), Stored::Known);
            drop(first);
            let mut ways = Vec::new();
            for way in 0..4 {
                assert!(!place.chunks.pins.is_pinned(&place.digest), "way {way}: a pin goes with its writer");
                let writer = place.writer();
                ways.push(match way {
                    0 => place.put(&writer, Evidence::Nothing).await.unwrap(),
                    1 => place.put(&writer, Evidence::Base).await.unwrap(),
                    2 => {
                        place.pinned(place.chunks.reuse(&writer, &[place.digest])).await.unwrap();
                        Stored::Known
                    }
                    _ => {
                        place.forget_records();
                        place.put(&writer, Evidence::Nothing).await.unwrap()
                    }
                });
                assert!(writer.is_confirmed(&place.digest), "way {way}");
            }
            let duplicate = Stored::Duplicate(size(new));
            assert_eq!(ways, [duplicate, Stored::Known, Stored::Known, duplicate]);
            assert!(!place.chunks.pins.is_pinned(&place.digest));
        });
    }

    #[test]
    fn h1_a_chunk_whose_put_failed_stays_pinned_and_is_not_confirmed() {
        block_on(async {
            let place = Place::new().await;
            for failure in [ErrorKind::Denied, ErrorKind::Unavailable] {
                place.backend.clear();
                place.backend.add(Rule::on(Method::Put, Action::FailAfter(failure)).first(1));
                let writer = place.writer();
                assert!(place.put(&writer, Evidence::Nothing).await.is_err());
                assert!(!writer.is_confirmed(&place.digest));
                assert!(place.chunks.pins.is_pinned(&place.digest), "it may be there, or come yet");
                // A second try compares what the first one left.
                assert!(matches!(place.put(&writer, Evidence::Nothing).await.unwrap(), Stored::Duplicate(_)));
                place
                    .backend
                    .delete(&[Removal::any(Key::Chunk(place.digest))])
                    .await
                    .unwrap()
                    .remove(0)
                    .unwrap();
            }
        });
    }

    #[test]
    fn h162_writers_of_one_chunk_store_it_once() {
        block_on(async {
            let place = Place::new().await;
            place.backend.add(Rule::on(Method::Put, Action::Delay(std::time::Duration::from_millis(20))));
            let writers: Vec<_> = (0..20).map(|_| place.writer()).collect();
            let plaintext = Bytes::from_static(PLAINTEXT);
            place.chunks.open_presence(&"a".repeat(32)).await.unwrap();
            let put = writers
                .iter()
                .map(|writer| place.chunks.put(writer, place.digest, &plaintext, Evidence::Nothing));
            let stored = futures::future::try_join_all(put).await.unwrap();
            let new = stored.iter().filter(|stored| matches!(stored, Stored::New(_))).count();
            let known = stored.iter().filter(|stored| matches!(stored, Stored::Duplicate(_))).count();
            assert_eq!((new, known, place.backend.fired()), (1, 19, 1));
        });
    }
}
