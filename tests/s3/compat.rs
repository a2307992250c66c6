//! A bucket that PBS wrote: it is listed, restored, extended and refreshed, and what we write from the same inputs is the same.
//! On a server in this process, or on one that is named (see `tests/support/bucket.rs`).

use bytes::Bytes;
use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{Backend, Ownership};
use larder::chunker::Chunker;
use larder::error::{ErrorKind, Result};
use larder::format::Digest;
use larder::format::name::{AuthId, GroupName, Namespace};
use larder::internal::blob::BlobKind;
use larder::internal::index;
use larder::local::{LocalOptions, LocalState};
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::S3Capabilities;
use larder::store::{Datastore, Options, Protection, SnapshotReader, SnapshotState, SnapshotWriter};
use larder_testing::bucket::Bucket;
use larder_testing::fixture;
use larder_testing::fixture::{files, name_of, snapshots};
use larder_testing::read_to_end;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::Arc;

/// The name of the store that PBS wrote.
const THEIRS: &str = "pbs-s3";

/// A bucket in which tests make stores.
struct Place {
    bucket: Bucket,
    found: S3Capabilities,
}

impl Place {
    async fn new() -> Self {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let bucket =
            Bucket::named(Arc::clone(&runtime)).unwrap_or_else(|| Bucket::in_process(Arc::clone(&runtime)));
        let found = bucket.probe().await;
        Self { bucket, found }
    }

    /// The objects that PBS wrote, and the name of the store that has them now. They are as they were listed.
    async fn with_theirs() -> (Self, String) {
        let (place, directory) = (Self::new().await, larder_testing::scratch());
        fixture::unpack("s3-bucket", directory.path());
        let name = place.bucket.new_name();
        let objects = fixture::expected_of_bucket()["objects"].as_array().unwrap().clone();
        for object in &objects {
            let key = object["key"].as_str().unwrap();
            let body = fs::read(directory.path().join("bucket").join(key)).unwrap();
            assert_eq!(object["size"], body.len());
            place.bucket.put(&format!("{name}{}", key.strip_prefix(THEIRS).unwrap()), body).await;
        }
        assert_eq!(place.bucket.keys(&format!("{name}/")).await.len(), objects.len());
        (place, name)
    }

    fn backend(&self, name: &str, ownership: Ownership) -> Arc<dyn Backend> {
        self.bucket.backend(name, &self.found, ownership)
    }

    async fn open(&self, name: &str, ownership: Ownership) -> Datastore {
        Datastore::open(self.backend(name, ownership), Options::default()).await.unwrap()
    }

    /// The objects of a store, by path below its prefix.
    async fn objects(&self, name: &str) -> BTreeMap<String, Bytes> {
        let objects = self.bucket.objects(&format!("{name}/")).await;
        let below = |key: String| key.strip_prefix(name).unwrap().trim_start_matches('/').to_owned();
        objects.into_iter().map(|(key, body)| (below(key), body)).collect()
    }

    async fn end(&self, name: &str) {
        self.bucket.clear(&format!("{name}/")).await;
    }
}

async fn contents(snapshot: &SnapshotReader, name: &str) -> Result<Vec<u8>> {
    if name == "client.log.blob" {
        return snapshot.client_log().await.map(|log| log.unwrap().to_vec());
    }
    if name.ends_with(".blob") {
        return snapshot.blob(name).await.map(|blob| blob.to_vec());
    }
    Ok(read_to_end(&mut snapshot.archive(name).await?).await.unwrap())
}

/// Lists and restores everything that PBS wrote; how many archives, and how many are encrypted and refused.
async fn check(store: &Datastore) -> (usize, usize) {
    let (expected, mut counts) = (fixture::expected_of_bucket(), (0, 0));
    let found = store.namespaces(&Namespace::root()).await.unwrap();
    let found: BTreeSet<_> = found.iter().map(ToString::to_string).collect();
    let names = expected["namespaces"].as_array().unwrap().iter();
    assert_eq!(found, names.map(|name| name.as_str().unwrap().to_owned()).collect());
    for expected in snapshots(&expected) {
        let name = name_of(expected);
        let info = store.snapshot_info(&name).await.unwrap();
        assert_eq!(info.state, SnapshotState::Finished);
        assert_eq!(Some(info.protected), expected["protected"].as_bool());
        let group = name.group();
        assert!(store.groups(group.namespace()).await.unwrap().contains(group));
        assert_eq!(store.owner(group).await.unwrap().unwrap().to_string(), expected["owner"]);
        assert_eq!(store.group_notes(group).await.unwrap().as_deref(), expected["group-notes"].as_str());
        let snapshot = store.snapshot(&name).await.unwrap();
        assert_eq!(snapshot.manifest().notes(), expected["notes"].as_str());
        assert_eq!(snapshot.manifest().verify_state().unwrap().is_some(), expected["verify"].is_object());
        for (file, expected) in files(expected) {
            let result = contents(&snapshot, file).await;
            if expected["decrypt-key"].is_string() {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::KeyRequired, "{file}");
                counts.1 += 1;
            } else {
                let bytes = result.unwrap();
                assert_eq!(expected["plaintext-size"], bytes.len());
                assert_eq!(expected["plaintext-sha256"], Digest::of(&bytes).to_string(), "{file} of {name}");
                counts.0 += 1;
            }
        }
    }
    counts
}

#[test]
fn a_pbs_bucket_is_listed_and_restored_without_a_change() {
    block_on(async {
        let (place, name) = Place::with_theirs().await;
        let before = place.objects(&name).await;
        let store = place.open(&name, Ownership::default()).await;
        assert_eq!(check(&store).await, (9, 3));
        assert_eq!(store.uuid(), None);
        store.close().await.unwrap();
        assert!(place.objects(&name).await == before);
        place.end(&name).await;
    });
}

#[test]
fn a_backup_adds_a_snapshot_to_a_pbs_bucket_after_a_take_over() {
    block_on(async {
        let (place, name) = Place::with_theirs().await;
        let before = place.objects(&name).await;
        let group: GroupName = "host/web".parse().unwrap();
        let store = place.open(&name, Ownership::default()).await;
        let refused = store.backup(&group).begin().await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied, "{refused}");
        assert!(place.objects(&name).await == before);
        drop(store);

        let store = place.open(&name, Ownership::default().host("here").take_over()).await;
        let base = store.snapshot(&store.latest(&group).await.unwrap().unwrap()).await.unwrap();
        let mut data = contents(&base, "stream.raw.didx").await.unwrap();
        data.extend(b"more");
        let backup = store.backup(&group).begin().await.unwrap();
        let cuts = Box::new(Cuts::of(&base, "stream.raw.didx").await);
        backup.stream("stream.raw", Cursor::new(&data)).base(&base).chunker(cuts).await.unwrap();
        assert_eq!((backup.stats().chunks_new, backup.stats().chunks_known), (1, 4));
        let added = backup.finish().await.unwrap().snapshot;
        assert!(contents(&added, "stream.raw.didx").await.unwrap() == data);
        assert_eq!(check(&store).await, (9, 3));
        store.close().await.unwrap();

        let after = place.objects(&name).await;
        for (path, body) in &before {
            assert!(after[path] == body || path == ".in-use", "{path} was changed");
        }
        let archive = added.archive("stream.raw.didx").await.unwrap();
        let digest = index::of_archive(&archive).digest(4).unwrap().to_string();
        let folder = format!(".cnt/{}", added.name());
        let mut new: BTreeSet<_> =
            ["stream.raw.didx", "index.json.blob"].map(|file| format!("{folder}/{file}")).into();
        new.insert(format!(".chunks/{}/{digest}", &digest[..4]));
        let ours = |path: &&String| !before.contains_key(*path) && !path.starts_with(".larder/");
        assert_eq!(after.keys().filter(ours).cloned().collect::<BTreeSet<_>>(), new);
        // The objects that PBS reads.
        let mark: Value = serde_json::from_slice(&after[".in-use"]).unwrap();
        assert_eq!(mark["hostname"], "here");
        place.end(&name).await;
    });
}

#[test]
fn a_refreshed_pbs_bucket_is_listed_without_requests() {
    block_on(async {
        let (place, name) = Place::with_theirs().await;
        let directory = larder_testing::scratch();
        let options = LocalOptions::default();
        let local = LocalState::open(&place.bucket.runtime, directory.path(), options).await.unwrap();
        let ownership = Ownership::default().instance(local.instance()).take_over();
        let backend = place.backend(&name, ownership);
        let store = Datastore::attach(backend, Options::default().local_state(local)).await.unwrap();
        let done = store.refresh().await.unwrap();
        // Every object of metadata is known; manifests, owners and notes are kept.
        assert_eq!((done.objects, done.fetched), (24, 9));
        let asked = || place.bucket.client.stats().attempts;
        let before = asked();
        let root = Namespace::root();
        for namespace in store.namespaces(&root).await.unwrap() {
            for group in store.groups(&namespace).await.unwrap() {
                for info in store.snapshots(&group).await.unwrap() {
                    let _ = store.snapshot(&info.name).await.unwrap();
                }
            }
        }
        assert_eq!(asked(), before);
        assert_eq!(check(&store).await, (9, 3));
        let again = store.refresh().await.unwrap();
        assert_eq!((again.objects, again.fetched), (done.objects, 0));
        store.close().await.unwrap();
        place.end(&name).await;
    });
}

/// Cuts at the positions of another chunker.
#[derive(Debug)]
struct Cuts {
    at: u64,
    ends: Vec<u64>,
}

impl Cuts {
    async fn of(snapshot: &SnapshotReader, archive: &str) -> Self {
        let archive = snapshot.archive(archive).await.unwrap();
        let mut ends: Vec<_> =
            index::of_archive(&archive).iter().map(|chunk| chunk.offset + chunk.len).collect();
        // The last ended where the stream did.
        ends.pop();
        Self { at: 0, ends }
    }
}

impl Chunker for Cuts {
    fn scan(&mut self, data: &[u8]) -> Option<usize> {
        let end = self.ends.iter().find(|end| **end > self.at).copied();
        let length = end.map_or(data.len() as u64, |end| (end - self.at).min(data.len() as u64));
        self.at += length;
        (Some(self.at) == end).then(|| usize::try_from(length).unwrap())
    }

    fn max_bytes(&self) -> usize {
        16 << 20
    }
}

/// Everything of a bucket of PBS that is not encrypted, made again by us.
async fn make_again(ours: &Datastore, theirs: &Datastore, inputs: &Path) {
    for namespace in ["team", "team/x"] {
        ours.create_namespace(&namespace.parse().unwrap()).await.unwrap();
    }
    let expected = fixture::expected_of_bucket();
    for expected in snapshots(&expected).iter().filter(|snapshot| snapshot["ns"] != "team") {
        let name = name_of(expected);
        let theirs = theirs.snapshot(&name).await.unwrap();
        let owner: AuthId = expected["owner"].as_str().unwrap().parse().unwrap();
        let backup = ours.backup(name.group()).time(name.time().into()).owner(owner).begin().await.unwrap();
        for (file, expected) in files(expected) {
            let data = fs::read(inputs.join(expected["input"].as_str().unwrap())).unwrap();
            add(&backup, &theirs, file, data).await;
        }
        if let Some(notes) = expected["notes"].as_str() {
            backup.set_notes(notes);
        }
        backup.finish().await.unwrap();
        if let Some(notes) = expected["group-notes"].as_str() {
            ours.set_group_notes(name.group(), notes).await.unwrap();
        }
        if expected["protected"] == true {
            ours.set_protection(&name, Protection::On).await.unwrap();
        }
    }
}

async fn add(backup: &SnapshotWriter, theirs: &SnapshotReader, file: &str, data: Vec<u8>) {
    if file == "client.log.blob" {
        backup.client_log(data).await.unwrap();
    } else if file.ends_with(".blob") {
        backup.blob(file, data).await.unwrap();
    } else if file.ends_with(".fidx") {
        let size = data.len() as u64;
        backup.image(file, Cursor::new(data), size).await.unwrap();
    } else {
        let cuts = Box::new(Cuts::of(theirs, file).await);
        backup.stream(file, Cursor::new(data)).chunker(cuts).await.unwrap();
    }
}

/// The parts of an object that must be equal: not the time and UUID of an index, nor the unsigned part of a manifest.
fn comparable(path: &str, body: &Bytes) -> Vec<u8> {
    let mut body = body.to_vec();
    if path.ends_with("idx") {
        body[8..32].fill(0);
    }
    if path.ends_with("/index.json.blob") {
        let mut manifest: Value = serde_json::from_reader(zstd::Decoder::new(&body[12..]).unwrap()).unwrap();
        let unsigned = manifest["unprotected"].as_object_mut().unwrap();
        unsigned.remove("verify_state");
        unsigned.remove("chunk_upload_stats");
        return manifest.to_string().into_bytes();
    }
    body
}

#[test]
fn the_same_inputs_produce_the_same_bucket_as_pbs() {
    block_on(async {
        let (place, theirs) = Place::with_theirs().await;
        let inputs = larder_testing::scratch();
        fixture::unpack("inputs", inputs.path());
        let ours = place.bucket.new_name();
        let store = Datastore::create(place.backend(&ours, Ownership::default()), Options::default());
        let store = store.await.unwrap();
        let read = place.open(&theirs, Ownership::default()).await;
        make_again(&store, &read, &inputs.path().join("inputs")).await;
        store.detach().await.unwrap();

        let (made, mut wanted) = (place.objects(&ours).await, place.objects(&theirs).await);
        let zeros = Digest::of(&vec![0; 4 << 20]).to_string();
        wanted.retain(|path, body| {
            // Neither what PBS encrypted, nor the chunk of zeros that it puts into every store, nor its mark.
            let kinds = [BlobKind::Encrypted, BlobKind::EncryptedZstd];
            let is_encrypted = path.starts_with(".cnt/ns/team/host/")
                || kinds.iter().any(|kind| body.starts_with(&kind.magic()));
            !is_encrypted && !path.ends_with(&zeros) && path != ".in-use"
        });
        let ours_alone = |path: &&String| path.starts_with(".larder/");
        assert_eq!(
            made.keys().filter(|path| !ours_alone(path)).collect::<Vec<_>>(),
            wanted.keys().collect::<Vec<_>>()
        );
        for (path, body) in &wanted {
            assert!(comparable(path, &made[path]) == comparable(path, body), "{path}");
        }
        assert_eq!(wanted.len(), 30);
        place.end(&theirs).await;
        place.end(&ours).await;
    });
}
