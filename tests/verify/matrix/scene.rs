//! A store with everything that a store can have, and places where copies of it are damaged.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::io::Cursor;
use larder::backend::{
    Backend, FsBackend, FsOptions, Ownership, PrefixDirectories, PutMode, S3Backend, SyncLevel,
};
use larder::error::Result;
use larder::format::Digest;
use larder::format::layout::Key;
use larder::format::name::SnapshotName;
use larder::gc::{self, GcEnd, GcOptions};
use larder::internal::packs::packed;
use larder::internal::sim_bucket::{SimBucket, Wire};
use larder::internal::suspects;
use larder::rt::{Runtime, SimRuntime};
use larder::s3::{Credentials, S3Capabilities, S3Client, S3Options, StaticCredentials, Support};
use larder::store::{Datastore, Options, PackOptions, Protection, Scope, SnapshotReader};
use larder::verify::{self, VerifyOptions};
use larder_testing::gc_scene::{CHUNK, at_once, data, digest, group};
use larder_testing::noise;

use crate::matrix::image::{Entry, Image};

/// The grace time of collections in a bucket.
const GRACE: Duration = Duration::from_hours(1);
/// Longer than everything that is waited for.
pub(crate) const LONG: Duration = Duration::from_mins(90);
/// 2025-07-14T14:00:00Z.
const EPOCH: u64 = 1_752_501_600;
const STORE: &str = ".larder/store.json";

/// The form of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) is_bucket: bool,
    pub(crate) is_packed: bool,
}

impl Form {
    pub(crate) const ALL: [Self; 4] = [
        Self { is_bucket: false, is_packed: false },
        Self { is_bucket: false, is_packed: true },
        Self { is_bucket: true, is_packed: false },
        Self { is_bucket: true, is_packed: true },
    ];

    pub(crate) fn name(self) -> &'static str {
        match (self.is_bucket, self.is_packed) {
            (false, false) => "loose directory",
            (false, true) => "packed directory",
            (true, false) => "loose bucket",
            (true, true) => "packed bucket",
        }
    }

    /// The path of something of a namespace, group or snapshot.
    pub(crate) fn content(self, path: &str) -> String {
        let parent = match (self.is_bucket, self.is_packed) {
            (_, true) => ".larder/cnt/",
            (true, false) => ".cnt/",
            (false, false) => "",
        };
        format!("{parent}{path}")
    }
}

/// What a snapshot has.
#[derive(Debug)]
pub(crate) struct Contents {
    pub(crate) label: &'static str,
    pub(crate) group: &'static str,
    pub(crate) image: &'static [u64],
    /// The seed of a stream. A snapshot with a stream has a blob and a log too.
    pub(crate) stream: Option<u64>,
    seconds: u64,
}

/// All snapshots. The chunks 20 and 21 are garbage.
pub(crate) const SNAPSHOTS: [Contents; 4] = [
    Contents { label: "a1", group: "host/a", image: &[1, 2, 3], stream: Some(100), seconds: 100 },
    Contents { label: "a2", group: "host/a", image: &[1, 2, 4], stream: Some(101), seconds: 200 },
    Contents { label: "b1", group: "host/b", image: &[8, 9], stream: None, seconds: 300 },
    Contents { label: "n1", group: "ns/n/vm/7", image: &[4, 5], stream: None, seconds: 400 },
];
/// Seconds of a snapshot that does not exist.
pub(crate) const NO_SNAPSHOT: u64 = 150;

pub(crate) fn time(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH + seconds)
}

/// The name of a snapshot of a group.
pub(crate) fn snapshot_of(group: &str, seconds: u64) -> SnapshotName {
    format!("{group}/2025-07-14T14:{:02}:{:02}Z", seconds / 60, seconds % 60).parse().unwrap()
}

pub(crate) fn stream(seed: u64) -> Vec<u8> {
    noise(seed, 3000)
}

impl Contents {
    pub(crate) fn of(label: &str) -> &'static Self {
        SNAPSHOTS.iter().find(|contents| contents.label == label).unwrap()
    }

    pub(crate) fn name(&self) -> SnapshotName {
        snapshot_of(self.group, self.seconds)
    }

    pub(crate) fn blob(&self) -> Vec<u8> {
        format!("configuration of {}", self.label).into_bytes()
    }

    pub(crate) fn log(&self) -> Vec<u8> {
        format!("log of {}", self.label).into_bytes()
    }

    /// The digests of all chunks.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        let of_stream = self.stream.map(|seed| Digest::of(&stream(seed)));
        self.image.iter().map(|number| digest(*number)).chain(of_stream).collect()
    }

    /// Backs it up, on the newest snapshot of the group if that may be built on.
    pub(crate) async fn back_up(&self, store: &Datastore, time: SystemTime) -> Result<SnapshotReader> {
        let group = group(self.group);
        if !store.has_namespace(group.namespace()).await? {
            store.create_namespace(group.namespace()).await?;
        }
        let base = match store.latest(&group).await? {
            Some(latest) => store.snapshot(&latest).await.ok(),
            None => None,
        };
        let owner = "two@pam".parse().unwrap();
        let backup = store.backup(&group).time(time).owner(owner).begin().await?;
        let bytes = data(self.image);
        let image =
            || backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64).chunk_bytes(CHUNK as u64);
        let on_base = match &base {
            Some(base) => image().base(base).await.is_ok(),
            None => false,
        };
        if !on_base {
            image().await?;
        }
        if let Some(seed) = self.stream {
            backup.stream("s.bin", Cursor::new(stream(seed))).await?;
            backup.blob("c.conf", self.blob()).await?;
            backup.client_log(self.log()).await?;
        }
        backup.finish().await.map(|finished| finished.snapshot)
    }
}

/// A place with a store.
pub(crate) enum Place {
    Bucket(Arc<SimBucket>),
    Directory(tempfile::TempDir),
}

impl Place {
    fn empty(sim: &SimRuntime, form: Form) -> Self {
        if form.is_bucket {
            Self::Bucket(SimBucket::new(sim))
        } else {
            Self::Directory(larder_testing::scratch())
        }
    }

    /// A place with this in it, which was stored long ago.
    pub(crate) fn with(sim: &SimRuntime, form: Form, image: &Image) -> Self {
        let place = Self::empty(sim, form);
        match &place {
            Self::Directory(directory) => image.make(&directory.path().join("store")),
            Self::Bucket(bucket) => {
                for (path, entry) in &image.0 {
                    let Entry::File(bytes) = entry else { panic!("{entry:?} in a bucket") };
                    bucket.set(&format!("store/{path}"), Some(bytes.clone()));
                }
            }
        }
        place
    }

    pub(crate) fn image(&self) -> Image {
        match self {
            Self::Bucket(bucket) => Image::of_bucket(bucket.contents()),
            Self::Directory(directory) => Image::of_directory(&directory.path().join("store")),
        }
    }

    fn path(&self) -> Option<PathBuf> {
        match self {
            Self::Bucket(_) => None,
            Self::Directory(directory) => Some(directory.path().join("store")),
        }
    }

    /// Puts an object to its path, or removes what is there, past all rules.
    pub(crate) fn set(&self, path: &str, bytes: Option<Bytes>) {
        match self {
            Self::Bucket(bucket) => bucket.set(&format!("store/{path}"), bytes),
            Self::Directory(directory) => {
                let here = directory.path().join("store").join(path.trim_end_matches('/'));
                match here.symlink_metadata() {
                    Ok(found) if found.is_dir() => std::fs::remove_dir_all(&here).unwrap(),
                    Ok(_) => std::fs::remove_file(&here).unwrap(),
                    Err(_) => {}
                }
                if let Some(bytes) = bytes {
                    std::fs::write(&here, bytes).unwrap();
                }
            }
        }
    }

    /// Puts an object back as it was.
    pub(crate) fn put_back(&self, image: &Image, path: &str) {
        self.set(path, None);
        for (found, entry) in image.0.iter().filter(|(found, _)| found.starts_with(path)) {
            let Entry::File(bytes) = entry else { continue };
            if let Some(store) = self.path() {
                std::fs::create_dir_all(store.join(found).parent().unwrap()).unwrap();
            }
            self.set(found, Some(bytes.clone()));
        }
    }

    /// The backend of a process of its own.
    pub(crate) async fn backend(
        &self,
        sim: &SimRuntime,
        uuid: &str,
        ownership: Ownership,
    ) -> Result<Arc<dyn Backend>> {
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        let Some(path) = self.path() else { return self.in_bucket(runtime, uuid, ownership) };
        let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
        let options = options.sync_level(SyncLevel::None);
        Ok(Arc::new(if path.exists() {
            FsBackend::open(runtime, path, options).await?
        } else {
            FsBackend::create(runtime, path, options).await?
        }))
    }

    fn in_bucket(
        &self,
        runtime: Arc<dyn Runtime>,
        uuid: &str,
        ownership: Ownership,
    ) -> Result<Arc<dyn Backend>> {
        let Self::Bucket(bucket) = self else { panic!("it is in a directory") };
        let wire = Wire { bucket: Arc::clone(bucket), uuid: uuid.to_owned() };
        let credentials = StaticCredentials::new(Credentials::new("id", "secret"));
        let options = S3Options::new("https://s3.test", "bucket").credentials(Arc::new(credentials));
        let client = S3Client::new(Arc::clone(&runtime), Arc::new(wire), options)?;
        let backend = S3Backend::new(runtime, client, "store", capabilities(), &[])?;
        Ok(Arc::new(backend.ownership(ownership)))
    }

    /// Opens the store as a process does that has nothing in memory.
    pub(crate) async fn open(&self, sim: &SimRuntime, uuid: &str) -> Result<Datastore> {
        self.open_as(sim, uuid, Ownership::default()).await
    }

    pub(crate) async fn open_as(
        &self,
        sim: &SimRuntime,
        uuid: &str,
        ownership: Ownership,
    ) -> Result<Datastore> {
        let backend = self.backend(sim, uuid, ownership).await?;
        let options = Options::default();
        // In a bucket, records of where chunks are in packs are read by range.
        let options = if self.path().is_none() { options.index_bytes(0) } else { options };
        Datastore::open(backend, options).await
    }
}

/// What the bucket does, as a probe finds it.
fn capabilities() -> S3Capabilities {
    let mut able = S3Capabilities::default();
    for support in [
        &mut able.checks_bodies,
        &mut able.conditional_put,
        &mut able.copy,
        &mut able.create_only_put,
        &mut able.listing,
        &mut able.multi_delete,
        &mut able.ranges,
    ] {
        *support = Support::Yes;
    }
    for setting in [&mut able.expires_objects, &mut able.keeps_versions, &mut able.locks_objects] {
        *setting = Some(false);
    }
    able.conditional_delete = Support::Refused;
    able
}

/// An identity that no store of this process has: stores of one identity share what their writers use.
pub(crate) fn new_uuid() -> String {
    static MADE: AtomicU64 = AtomicU64::new(0);
    format!("da{:030x}", MADE.fetch_add(1, Ordering::Relaxed))
}

/// A store, as it is now and as it was before.
#[derive(Debug)]
pub(crate) struct Scene {
    pub(crate) form: Form,
    pub(crate) image: Image,
    pub(crate) older: Image,
    /// The pack of each chunk.
    pub(crate) packs: BTreeMap<Digest, String>,
    uuid: String,
}

impl Scene {
    pub(crate) fn new(form: Form) -> Self {
        let sim = SimRuntime::new(0);
        sim.block_on(Self::make(&sim, form))
    }

    pub(crate) async fn make(sim: &SimRuntime, form: Form) -> Self {
        let place = Place::empty(sim, form);
        let uuid = new_uuid();
        let backend = place.backend(sim, &uuid, Ownership::default()).await.unwrap();
        let options = Options::default();
        let options = if form.is_packed { options.packed(PackOptions::default()) } else { options };
        let store = Datastore::create(Arc::clone(&backend), options).await.unwrap();
        store.create_namespace(&"n".parse().unwrap()).await.unwrap();
        let garbage =
            Contents { label: "old", group: "host/old", image: &[20, 21], stream: None, seconds: 0 };
        drop(garbage.back_up(&store, time(0)).await.unwrap());
        store.delete_group(&group(garbage.group)).await.unwrap();
        for contents in &SNAPSHOTS {
            drop(contents.back_up(&store, time(contents.seconds)).await.unwrap());
        }
        let n1 = Contents::of("n1").name();
        store.set_protection(&n1, Protection::On).await.unwrap();
        let suspects =
            |numbers: &[u64]| suspects::encode(&numbers.iter().map(|number| digest(*number)).collect());
        let mut older = None;
        for (notes, suspicion, owner) in [("first", &[77][..], "one@pam"), ("second", &[77, 78], "two@pam")] {
            store.set_group_notes(n1.group(), notes).await.unwrap();
            store.set_owner(n1.group(), &owner.parse().unwrap()).await.unwrap();
            store.set_notes(&Contents::of("a1").name(), notes).await.unwrap();
            backend.put(&Key::Suspects, suspects(suspicion), PutMode::Replace).await.unwrap();
            collect(&store, GcOptions::default().grace(GRACE)).await.unwrap();
            older = older.or_else(|| Some(place.image()));
            let plan = verify::plan(&store, &Scope::Store, VerifyOptions::default()).await;
            let report = plan.unwrap().execute().await.unwrap();
            assert!(report.is_clean() && report.sound == 4, "{report:?}");
            sim.sleep(Duration::from_mins(10)).await;
        }
        if !form.is_packed {
            // It was quarantined, and stored again.
            let bad: Bytes = b"what it was found to be"[..].into();
            backend.put(&Key::Quarantined(digest(5), 0), bad.clone(), PutMode::Create).await.unwrap();
            backend.put(&Key::Quarantined(digest(8), 0), bad, PutMode::Create).await.unwrap();
        }
        let mut packs = BTreeMap::new();
        if form.is_packed {
            let chunks = packed(Arc::clone(&backend)).await;
            for digest in SNAPSHOTS.iter().flat_map(Contents::digests) {
                let info = chunks.head(&Key::Chunk(digest)).await.unwrap();
                let (pack, _) = info.version.as_str().split_once(':').unwrap();
                packs.insert(digest, Key::Pack(pack.parse().unwrap()).to_string());
            }
        }
        let drawn = store.uuid().unwrap().to_owned();
        store.close().await.unwrap();
        drop(backend);
        Self { form, image: place.image(), older: older.unwrap(), packs, uuid: drawn }
    }

    /// Both images, for a store with another identity.
    pub(crate) fn images(&self, uuid: &str) -> [Image; 2] {
        [&self.image, &self.older].map(|image| {
            let mut image = image.clone();
            if !self.form.is_bucket {
                let text = String::from_utf8(image.file(STORE).unwrap().to_vec()).unwrap();
                image.put(STORE, Entry::File(text.replace(&self.uuid, uuid).into()));
            }
            image
        })
    }
}

/// Collects to the end, however much goes.
pub(crate) async fn collect(store: &Datastore, options: GcOptions) -> Result<()> {
    match gc::plan(store, options).await?.confirm().execute().await?.end {
        GcEnd::Stopped(error) => Err(error),
        end => {
            assert!(matches!(end, GcEnd::Complete), "{end:?}");
            Ok(())
        }
    }
}

/// Options of a collection in this form of a store: in a bucket, it is believed only after the grace time.
pub(crate) fn collection(form: Form) -> GcOptions {
    if form.is_bucket { GcOptions::default().max_garbage(100).grace(GRACE) } else { at_once() }
}
