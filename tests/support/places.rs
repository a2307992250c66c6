//! Where stores can be: the same test runs in memory, in a directory and in a bucket, on every runtime.

use std::path::PathBuf;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, join_all};
use larder::backend::{
    Backend, Capabilities, FsBackend, FsOptions, MemoryBackend, PrefixDirectories, PutMode, Removal,
    SyncLevel,
};
use larder::error::ErrorKind;
use larder::format::layout::{Key, Prefix};
use larder::format::name::{Namespace, SnapshotName};
use larder::internal::blob::{Blob, BlobDecoder, PlaintextSize, encode_plain};
use larder::internal::listing::ShortPages as _;
use larder::internal::packs::packed;
use larder::rt::Runtime;
#[cfg(feature = "s3")]
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, Options, PackOptions};

#[cfg(feature = "s3")]
use crate::bucket;
use crate::on_every_network;

/// A place for stores.
pub struct Place {
    is_packed: bool,
    kind: Kind,
    made: Mutex<Vec<Arc<dyn Backend>>>,
    pub runtime: Arc<dyn Runtime>,
}

#[expect(clippy::large_enum_variant, reason = "a test has one")]
enum Kind {
    #[cfg(feature = "s3")]
    Bucket(bucket::Bucket, larder::s3::S3Capabilities),
    Directory(tempfile::TempDir),
    Memory,
}

/// Changes the JSON text of a manifest, past the rules of the store.
pub async fn change_manifest(
    backend: &dyn Backend,
    name: &SnapshotName,
    change: impl FnOnce(&str) -> String,
) {
    let key = Key::Manifest(name.clone());
    let stored = Blob::parse(backend.get(&key, 1 << 20).await.unwrap().bytes).unwrap();
    let json = BlobDecoder::new().decode_bytes(&stored, PlaintextSize::AtMost(1 << 20)).unwrap();
    let changed = change(std::str::from_utf8(&json).unwrap());
    assert!(changed.as_bytes() != json, "nothing changed");
    let mut blob = Vec::new();
    encode_plain(changed.as_bytes(), &mut blob).unwrap();
    backend.put(&key, blob.into(), PutMode::Replace).await.unwrap();
}

impl Place {
    fn new(kind: Kind, is_packed: bool, runtime: Arc<dyn Runtime>) -> Arc<Self> {
        Arc::new(Self { is_packed, kind, made: Mutex::default(), runtime })
    }

    /// Options of a new store here.
    fn options(&self) -> Options {
        let options = self.opening();
        if self.is_packed { options.packed(PackOptions::default()) } else { options }
    }

    /// Options to open a store here. In a directory and in a bucket, all records of where chunks are in packs are read by range.
    pub fn opening(&self) -> Options {
        let options = Options::default();
        if matches!(self.kind, Kind::Memory) { options } else { options.index_bytes(0) }
    }

    /// Returns `true` if the stores here are packed.
    pub fn is_packed(&self) -> bool {
        self.is_packed
    }

    /// A new store here.
    pub async fn store(&self) -> Datastore {
        let backend: Arc<dyn Backend> = match &self.kind {
            #[cfg(feature = "s3")]
            // Objects that arrive after the end are destroyed too.
            Kind::Bucket(bucket, found) => {
                bucket.backend(&bucket.new_name(), found, larder::backend::Ownership::default().reuse())
            }
            Kind::Directory(directory) => {
                let number = self.made.lock().unwrap().len();
                let path = directory.path().join(number.to_string());
                let options = FsOptions::default();
                let options =
                    options.prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None);
                Arc::new(FsBackend::create(Arc::clone(&self.runtime), &path, options).await.unwrap())
            }
            Kind::Memory => Arc::new(MemoryBackend::new(Arc::clone(&self.runtime)).page_entries(3)),
        };
        self.made.lock().unwrap().push(Arc::clone(&backend));
        let store = Datastore::create(Arc::clone(&backend), self.options()).await.unwrap();
        match &self.kind {
            Kind::Directory(_) | Kind::Memory => self.renamed(backend, store).await,
            #[cfg(feature = "s3")]
            Kind::Bucket(..) => store,
        }
    }

    /// The store with an identity that no other has: a simulated runtime draws the same ones for each test, and stores of one
    /// identity share what their writers use.
    async fn renamed(&self, backend: Arc<dyn Backend>, store: Datastore) -> Datastore {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let drawn = store.uuid().unwrap().to_owned();
        drop(store);
        let identity = backend.get(&Key::Store, 1 << 20).await.unwrap().bytes;
        let uuid = format!("{:032x}", MADE.fetch_add(1, Ordering::Relaxed));
        let identity = String::from_utf8(identity.to_vec()).unwrap().replace(&drawn, &uuid);
        backend.put(&Key::Store, identity.into(), PutMode::Replace).await.unwrap();
        Datastore::open(backend, self.opening()).await.unwrap()
    }

    /// Another opening of the last store.
    pub async fn opened(&self) -> Datastore {
        Datastore::open(self.last(), self.opening()).await.unwrap()
    }

    /// The last store as it is after a removal of a chunk, past the rules of the store: a handle of a packed one does not see that.
    pub async fn opened_after(&self, store: Datastore) -> Datastore {
        if self.is_packed { self.opened().await } else { store }
    }

    /// The backend of the last store.
    fn last(&self) -> Arc<dyn Backend> {
        Arc::clone(self.made.lock().unwrap().last().unwrap())
    }

    /// Puts an object into the last store, past its rules. In a packed store the bytes of a chunk take the place of the old ones, as far
    /// as they fit.
    pub async fn write(&self, path: &str, bytes: impl Into<Bytes>) {
        let (key, bytes) = (Key::from_str(path).unwrap(), bytes.into());
        if self.is_packed && matches!(key, Key::Chunk(_)) {
            return self.write_into_pack(&key, &bytes).await;
        }
        self.last().put(&self.placed(key), bytes, PutMode::Replace).await.unwrap();
    }

    async fn write_into_pack(&self, key: &Key, bytes: &[u8]) {
        let info = packed(self.last()).await.head(key).await.unwrap();
        let (pack, offset) = info.version.as_str().split_once(':').unwrap();
        let (pack, offset) = (Key::Pack(pack.parse().unwrap()), offset.parse::<usize>().unwrap());
        let mut whole = self.last().get(&pack, u64::MAX).await.unwrap().bytes.to_vec();
        let place = &mut whole[offset..offset + usize::try_from(info.size).unwrap()];
        let length = bytes.len().min(place.len());
        place[..length].copy_from_slice(&bytes[..length]);
        // Each other byte changes, also a zero.
        place[length..].iter_mut().for_each(|byte| *byte ^= 0xff);
        self.last().put(&pack, whole.into(), PutMode::Replace).await.unwrap();
    }

    /// The key of an object of the last store on its backend.
    fn placed(&self, key: Key) -> Key {
        let is_content = Prefix::Namespace(Namespace::root()).contains(&key);
        if self.is_packed && is_content { Key::Enclosed(Box::new(key)) } else { key }
    }

    /// The object at a path of the last store, if it exists.
    pub async fn read(&self, path: &str) -> Option<Bytes> {
        let key = Key::from_str(path).unwrap();
        let backend = if self.is_packed { packed(self.last()).await } else { self.last() };
        match backend.get(&key, u64::MAX).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            object => Some(object.unwrap().bytes),
        }
    }

    /// Changes the JSON text of a manifest in the last store, past its rules.
    pub async fn change_manifest(&self, name: &SnapshotName, change: impl FnOnce(&str) -> String) {
        let backend = if self.is_packed { packed(self.last()).await } else { self.last() };
        change_manifest(backend.as_ref(), name, change).await;
    }

    /// Removes an object of the last store, past its rules.
    pub async fn remove(&self, path: &str) {
        let removals = [Removal::any(Key::from_str(path).unwrap())];
        let backend = if self.is_packed { packed(self.last()).await } else { self.last() };
        assert!(backend.delete(&removals).await.unwrap().iter().all(Result::is_ok));
        backend.barrier().await.unwrap();
    }

    /// Where the last store is, if it is on a disk.
    pub fn directory(&self) -> Option<PathBuf> {
        let number = self.made.lock().unwrap().len() - 1;
        match &self.kind {
            Kind::Directory(directory) => Some(directory.path().join(number.to_string())),
            _ => None,
        }
    }

    /// Where the snapshots of the last store are, if it is on a disk.
    pub fn content(&self) -> Option<PathBuf> {
        self.directory().map(|path| if self.is_packed { path.join(".larder/cnt") } else { path })
    }

    /// Adds a feature that no version knows to the last store.
    pub async fn add_feature(&self) {
        let text = self.read(".larder/store.json").await.unwrap();
        let text = String::from_utf8(text.to_vec()).unwrap();
        let known = if self.is_packed { "[\"packs-1\"" } else { "[" };
        let separator = if self.is_packed { "," } else { "" };
        let more = text.replace(known, &format!("{known}{separator}\"unknown\""));
        assert_ne!(more, text);
        self.write(".larder/store.json", more).await;
    }

    /// The capabilities of the backend.
    pub fn capabilities(&self) -> Capabilities {
        self.last().capabilities().clone()
    }

    /// Returns `true` if a look at a chunk costs no request, so that backups look at the chunks of their base.
    pub fn looks_at_chunks(&self) -> bool {
        self.is_packed || matches!(self.kind, Kind::Directory(_) | Kind::Memory)
    }

    /// Destroys the stores, of which nothing is left then.
    async fn end(&self) {
        let made = std::mem::take(&mut *self.made.lock().unwrap());
        let deadline = self.runtime.monotonic() + Duration::from_mins(1);
        while !self.destroyed(&made).await {
            assert!(self.runtime.monotonic() < deadline, "there is always something left");
            self.runtime.sleep(Duration::from_millis(5)).await;
        }
        for backend in made {
            backend.close().await.unwrap();
        }
    }

    /// Destroys stores; whether nothing is left of them. Writers that were dropped may still be giving their locks back, and what
    /// they were storing may still arrive.
    async fn destroyed(&self, made: &[Arc<dyn Backend>]) -> bool {
        for backend in made {
            match Datastore::destroy(Arc::clone(backend)).await {
                Err(error) if error.kind() == ErrorKind::Busy => return false,
                // It was destroyed before, and nothing arrived since.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                // The file that a chunk is written to before it has its name.
                done if !done.as_ref().unwrap().foreign.is_empty() => return false,
                _ => {}
            }
        }
        match &self.kind {
            #[cfg(feature = "s3")]
            Kind::Bucket(bucket, _) => bucket.test_keys().await.is_empty(),
            _ => true,
        }
    }
}

/// Runs a test in memory, in a directory and in a bucket, in loose stores and in packed ones; or in the bucket of the server that is named,
/// if one is.
///
/// | store | runtimes |
/// |---|---|
/// | in memory | loose: all with a network; simulated, with half of the seeds |
/// | in a directory | all with a network; simulated, with the other half |
/// | in a bucket | all with a network |
///
/// The stores of a runtime are used at the same time, so that tests that wait for real time wait once.
pub fn everywhere(body: fn(Arc<Place>) -> BoxFuture<'static, ()>) {
    everywhere_in(&[false, true], body);
}

/// As [`everywhere`], for tests that change the object of a chunk: in loose stores only.
pub fn everywhere_loose(body: fn(Arc<Place>) -> BoxFuture<'static, ()>) {
    everywhere_in(&[false], body);
}

fn everywhere_in(forms: &'static [bool], body: fn(Arc<Place>) -> BoxFuture<'static, ()>) {
    #[cfg(feature = "s3")]
    if bucket::Bucket::is_named() {
        let runtime = Arc::new(ThreadRuntime::new());
        let bucket = bucket::Bucket::named(runtime).unwrap();
        return futures::executor::block_on(in_bucket(bucket, forms, body));
    }
    on_every_network(|runtime| {
        Box::pin(async move {
            let kinds = forms.iter().flat_map(|is_packed| {
                let memory = (!is_packed).then_some((false, Kind::Memory));
                memory.into_iter().chain([(*is_packed, Kind::Directory(crate::scratch()))])
            });
            let all = kinds.map(|(is_packed, kind)| Place::new(kind, is_packed, Arc::clone(&runtime)));
            join_all(all.map(|place| in_place(place, body))).await;
        })
    });
    #[cfg(feature = "testing")]
    for (seed, is_packed) in (0..4).flat_map(|seed| forms.iter().map(move |form| (seed, *form))) {
        let sim = larder::rt::SimRuntime::new(seed);
        let is_directory = (seed % 2 == 0) == is_packed;
        let kind = if is_directory { Kind::Directory(crate::scratch()) } else { Kind::Memory };
        sim.block_on(in_place(Place::new(kind, is_packed, Arc::new(sim.clone())), body));
    }
    #[cfg(feature = "s3")]
    on_every_network(|runtime| {
        Box::pin(async move {
            let in_each = forms.iter().map(|form| {
                let bucket = bucket::Bucket::in_process(Arc::clone(&runtime));
                in_bucket(bucket, std::slice::from_ref(form), body)
            });
            join_all(in_each).await;
        })
    });
}

#[cfg(feature = "s3")]
async fn in_bucket(bucket: bucket::Bucket, forms: &[bool], body: fn(Arc<Place>) -> BoxFuture<'static, ()>) {
    let (found, runtime) = (bucket.probe().await, Arc::clone(&bucket.runtime));
    let mut kind = Some(Kind::Bucket(bucket, found));
    for is_packed in forms {
        let place = Place::new(kind.take().unwrap(), *is_packed, Arc::clone(&runtime));
        in_place(Arc::clone(&place), body).await;
        kind = Some(Arc::into_inner(place).expect("the test keeps its place").kind);
    }
}

async fn in_place(place: Arc<Place>, body: fn(Arc<Place>) -> BoxFuture<'static, ()>) {
    body(Arc::clone(&place)).await;
    place.end().await;
}
