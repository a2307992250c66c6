//! Snapshots that go from one store to another.

use std::str::FromStr as _;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::executor::block_on;
use futures::io::Cursor;
use larder::Observer;
use larder::backend::{
    Backend, FsBackend, FsOptions, ListEntry, ListQuery, LockMode, LockScope, MemoryBackend,
    PrefixDirectories, PutMode, Removal,
};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::{Key, Prefix};
use larder::format::manifest::{Manifest, VerifyResult};
use larder::format::name::{BackupType, GroupName, Namespace, SnapshotName};
use larder::internal::blob::{Blob, BlobDecoder, PlaintextSize, encode_plain};
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::listing::{ShortPages as _, list_all};
use larder::internal::manifest;
use larder::internal::record::{Call, Method, RecordingBackend};
use larder::rt::{Runtime, SimRuntime, ThreadRuntime};
use larder::store::{Datastore, Options, PackOptions, Protection, SnapshotState};
use larder::sync::{
    self, GroupRule, Resync, SyncCandidates, SyncConflict, SyncEvent, SyncGroupOutcome, SyncOptions,
    SyncOrder, SyncOutcome, SyncReport, SyncSkip, SyncStep,
};
use larder_testing::bucket::Bucket;
use larder_testing::places;
use larder_testing::{fixture, noise, read_to_end};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

const CHUNK: usize = 4096;
const EVERYTHING: u64 = 1 << 40;

pub(crate) fn threads() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

pub(crate) fn memory(runtime: &Arc<dyn Runtime>) -> Arc<dyn Backend> {
    Arc::new(MemoryBackend::new(Arc::clone(runtime)).page_entries(3))
}

async fn store(backend: &Arc<dyn Backend>) -> Datastore {
    let created = Datastore::create(Arc::clone(backend), Options::default()).await;
    match created {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {
            Datastore::open(Arc::clone(backend), Options::default()).await.unwrap()
        }
        created => created.unwrap(),
    }
}

/// Two new stores in memory.
pub(crate) struct Pair {
    pub(crate) from: Arc<dyn Backend>,
    pub(crate) source: Datastore,
    pub(crate) target: Datastore,
    pub(crate) to: Arc<dyn Backend>,
}

impl Pair {
    async fn new() -> Self {
        let runtime = threads();
        Self::on(memory(&runtime), memory(&runtime)).await
    }

    pub(crate) async fn on(from: Arc<dyn Backend>, to: Arc<dyn Backend>) -> Self {
        let (source, target) = (store(&from).await, store(&to).await);
        Self { from, source, target, to }
    }

    async fn sync(&self) -> SyncReport {
        self.sync_with(SyncOptions::default()).await
    }

    async fn sync_with(&self, options: SyncOptions) -> SyncReport {
        sync::plan(&self.source, &self.target, options).await.unwrap().execute().await.unwrap()
    }

    /// Steps of a plan, by the time of the snapshot.
    async fn steps(&self, options: SyncOptions) -> Vec<(i64, SyncStep)> {
        let plan = sync::plan(&self.source, &self.target, options).await.unwrap();
        plan.snapshots().map(|it| (it.source.time().epoch(), it.step)).collect()
    }
}

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

/// A snapshot of an image, a stream and a blob. The image repeats a chunk, the stream shares one with the image.
pub(crate) async fn back_up(store: &Datastore, group: &str, time: u64, data: &[u8]) -> SnapshotName {
    let group: GroupName = group.parse().unwrap();
    let backup = store.backup(&group).time(at(time)).begin().await.unwrap();
    let image = [data, &data[..CHUNK]].concat();
    backup
        .image("disk.img", Cursor::new(&image), image.len() as u64)
        .chunk_bytes(CHUNK as u64)
        .await
        .unwrap();
    backup.stream("data.bin", Cursor::new(data[..CHUNK].to_vec())).await.unwrap();
    backup.blob("app.conf", data[..100].to_vec()).await.unwrap();
    backup.client_log("log").await.unwrap();
    backup.finish().await.unwrap().snapshot.name().clone()
}

pub(crate) fn data(seed: u64, chunks: usize) -> Vec<u8> {
    noise(seed, chunks * CHUNK)
}

/// All objects below a prefix.
async fn objects(backend: &dyn Backend, prefix: Prefix) -> BTreeMap<String, Bytes> {
    let listing = list_all(backend, &ListQuery::all(prefix)).await.unwrap();
    let mut found = BTreeMap::new();
    for entry in listing.into_entries() {
        if let ListEntry::Object(info) = entry {
            found.insert(info.key.to_string(), backend.get(&info.key, EVERYTHING).await.unwrap().bytes);
        }
    }
    found
}

/// All that belongs to namespaces, groups and snapshots.
pub(crate) async fn content(backend: &dyn Backend) -> BTreeMap<String, Bytes> {
    objects(backend, Prefix::Namespace(Namespace::root())).await
}

async fn chunks(backend: &dyn Backend) -> BTreeMap<String, Bytes> {
    objects(backend, Prefix::Chunks).await
}

/// Reads everything of a snapshot, and returns the image.
async fn restore(store: &Datastore, name: &SnapshotName) -> Vec<u8> {
    let snapshot = store.snapshot(name).await.unwrap();
    let mut parts = Vec::new();
    for archive in ["data.bin.didx", "disk.img.fidx"] {
        parts.push(read_to_end(&mut snapshot.archive(archive).await.unwrap()).await.unwrap());
    }
    snapshot.blob("app.conf.blob").await.unwrap();
    parts.pop().unwrap()
}

fn image_of(data: &[u8]) -> Vec<u8> {
    [data, &data[..CHUNK]].concat()
}

fn only_outcome(report: &SyncReport) -> &SyncOutcome {
    let mut all = report.snapshots();
    let first = all.next().unwrap();
    assert!(all.next().is_none(), "{report:?}");
    &first.outcome
}

/// Changes a manifest as another program would, and stores it.
async fn edit(backend: &dyn Backend, name: &SnapshotName, change: impl FnOnce(&mut Manifest)) {
    let key = Key::Manifest(name.clone());
    let object = backend.get(&key, EVERYTHING).await.unwrap();
    let blob = Blob::parse(object.bytes).unwrap();
    let json = BlobDecoder::new().decode_bytes(&blob, PlaintextSize::AtMost(1 << 24)).unwrap();
    let mut manifest = larder::internal::manifest::parse(&json).unwrap();
    change(&mut manifest);
    let mut blob = Vec::new();
    encode_plain(&manifest.to_json(), &mut blob).unwrap();
    backend.put(&key, blob.into(), PutMode::Replace).await.unwrap();
}

fn failed(manifest: &mut Manifest) {
    let upid = "UPID:vm:000073D8:00057516:00000000:6B043380:verify:a:root@pam:".parse().unwrap();
    manifest::set_verify_state(manifest, upid, VerifyResult::Failed);
}

#[test]
fn a_chain_of_syncs_reproduces_the_first_store() {
    places::everywhere(|place| {
        async move {
            let first = Pair::on(memory(&place.runtime), memory(&place.runtime)).await;
            let source = &first.source;
            source.create_namespace(&"a".parse().unwrap()).await.unwrap();
            for (group, time) in [("vm/1", 1000), ("vm/1", 2000), ("ns/a/host/x", 1000)] {
                back_up(source, group, time, &data(time, 5)).await;
            }
            let mut before = source.clone();
            for _ in 0..2 {
                let next = place.store().await;
                let mut plan = sync::plan(&before, &next, SyncOptions::default()).await.unwrap();
                let report = plan.execute().await.unwrap();
                assert!(report.is_complete(), "{report:?}");
                // 5 chunks of each of two times; those of the namespace are those of the first.
                assert_eq!((report.stats().chunks_sent, report.stats().chunks_reused), (10, 0));
                before = next;
            }
            let report =
                sync::plan(&before, &first.target, SyncOptions::default()).await.unwrap().execute().await;
            assert!(report.unwrap().is_complete());
            assert_eq!(content(first.to.as_ref()).await, content(first.from.as_ref()).await);
            assert_eq!(chunks(first.to.as_ref()).await, chunks(first.from.as_ref()).await);
        }
        .boxed()
    });
}

#[test]
fn stores_of_every_form_carry_the_same_objects_to_stores_of_every_form() {
    block_on(async {
        let runtime = threads();
        let first = memory(&runtime);
        let source = store(&first).await;
        for (group, time) in [("vm/1", 1000), ("vm/1", 2000), ("host/x", 1000)] {
            back_up(&source, group, time, &data(time, 5)).await;
        }
        let backup = source.backup(&"host/tree".parse().unwrap()).begin().await.unwrap();
        backup.stream("root.mpxar", &b"metadata"[..]).await.unwrap();
        drop(backup.finish().await.unwrap());
        let made = async |is_packed: bool| {
            let options = Options::default();
            let options = if is_packed { options.packed(PackOptions::default()) } else { options };
            let backend = memory(&runtime);
            (Datastore::create(Arc::clone(&backend), options).await.unwrap(), backend)
        };
        let bring = async |from: &Datastore, to: &Datastore| {
            let mut plan = sync::plan(from, to, SyncOptions::default()).await.unwrap();
            let report = plan.execute().await.unwrap();
            assert!(report.is_complete(), "{report:?}");
        };
        for (from, to) in [(false, false), (false, true), (true, false), (true, true)] {
            let ((second, _), (third, in_third), (last, in_last)) =
                (made(from).await, made(to).await, made(false).await);
            bring(&source, &second).await;
            bring(&second, &third).await;
            bring(&third, &last).await;
            let objects_of_chunks = chunks(in_third.as_ref()).await.len();
            assert_eq!(objects_of_chunks == 0, to, "a packed store has no objects of chunks");
            let packs_of_metadata = third.pack_usage().map(|usage| usage.metadata_packs);
            assert_eq!(packs_of_metadata, to.then_some(1), "packs keep their class");
            assert_eq!(chunks(in_last.as_ref()).await, chunks(first.as_ref()).await, "{from} {to}");
            assert_eq!(content(in_last.as_ref()).await, content(first.as_ref()).await, "{from} {to}");
        }
    });
}

#[cfg(feature = "s3")]
#[test]
fn a_chain_of_syncs_from_memory_to_directory_to_bucket_to_memory_keeps_everything() {
    block_on(async {
        let runtime = threads();
        let directory = larder_testing::scratch();
        let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
        let on_disk = FsBackend::create(Arc::clone(&runtime), directory.path().join("store"), options);
        let bucket = Bucket::in_process(Arc::clone(&runtime));
        let found = bucket.probe().await;
        let in_bucket =
            bucket.backend(&bucket.new_name(), &found, larder::backend::Ownership::default().reuse());
        let backends: [Arc<dyn Backend>; 4] =
            [memory(&runtime), Arc::new(on_disk.await.unwrap()), in_bucket, memory(&runtime)];
        let name = back_up(&store(&backends[0]).await, "vm/1", 1000, &data(1, 20)).await;
        for pair in backends.windows(2) {
            let pair = Pair::on(Arc::clone(&pair[0]), Arc::clone(&pair[1])).await;
            assert!(pair.sync().await.is_complete());
            assert!(matches!(only_outcome(&pair.sync().await), SyncOutcome::Skipped(SyncSkip::UpToDate)));
        }
        let (first, last) = (&backends[0], &backends[3]);
        assert_eq!(content(last.as_ref()).await, content(first.as_ref()).await);
        assert_eq!(chunks(last.as_ref()).await, chunks(first.as_ref()).await);
        assert!(restore(&store(last).await, &name).await == image_of(&data(1, 20)));
        backends[2].close().await.unwrap();
    });
}

async fn pbs(directory: &Path) -> Arc<dyn Backend> {
    fixture::unpack("store", directory);
    let root = [directory.join("store"), directory.to_owned()];
    let root = root.iter().find(|path| path.join(".chunks").is_dir()).unwrap();
    Arc::new(FsBackend::open(threads(), root, FsOptions::default()).await.unwrap())
}

#[test]
fn a_sync_of_a_pbs_store_copies_it_byte_for_byte() {
    block_on(async {
        let directory = larder_testing::scratch();
        let from = pbs(directory.path()).await;
        let recorded = Arc::new(RecordingBackend::new(memory(&threads())));
        let pair = Pair::on(from, Arc::<RecordingBackend>::clone(&recorded) as _).await;
        // All of them: a snapshot of each group is older than none at the target.
        let report = pair.sync().await;
        assert!(report.is_complete(), "{report:?}");
        let expected = fixture::expected();
        let all = fixture::snapshots(&expected);
        assert_eq!(report.snapshots().count(), all.len());
        let (theirs, ours) = (content(pair.from.as_ref()).await, content(pair.to.as_ref()).await);
        let of_snapshots = |path: &str| {
            let key = Key::from_str(path).unwrap();
            matches!(key, Key::Archive(..) | Key::ClientLog(_) | Key::Manifest(_))
        };
        let wanted: BTreeMap<_, _> = theirs.iter().filter(|(path, _)| of_snapshots(path)).collect();
        let found: BTreeMap<_, _> = ours.iter().filter(|(path, _)| of_snapshots(path)).collect();
        assert!(wanted.len() > 50 && wanted == found);
        let their_chunks = chunks(pair.from.as_ref()).await;
        let our_chunks = chunks(pair.to.as_ref()).await;
        assert!(our_chunks.iter().all(|(path, bytes)| their_chunks.get(path) == Some(bytes)));
        let mut encrypted = 0;
        for snapshot in all {
            let name = fixture::name_of(snapshot);
            let reader = pair.target.snapshot(&name).await.unwrap();
            for file in reader.manifest().files().iter().filter(|file| !file.name.as_str().ends_with(".blob"))
            {
                let key = Key::Archive(name.clone(), file.name.clone());
                let bytes = ours[&key.to_string()].clone();
                let index = larder::internal::index::IndexReader::parse(file.name.kind(), bytes).unwrap();
                for chunk in index.iter() {
                    let path = Key::Chunk(chunk.digest).to_string();
                    let blob = Blob::parse(our_chunks[&path].clone()).unwrap();
                    encrypted += usize::from(blob.kind().is_encrypted());
                }
            }
        }
        assert!(encrypted > 0);
        recorded.reset();
        let again = pair.sync().await;
        assert!(again.snapshots().all(|it| matches!(it.outcome, SyncOutcome::Skipped(_))), "{again:?}");
        let puts = recorded.counts();
        assert_eq!((puts.puts, puts.touches, puts.deletes), (0, 0, 0));
    });
}

fn about_chunks(calls: &[Call], method: Method) -> usize {
    let is_chunk = |key: &Key| matches!(key, Key::Chunk(_));
    calls.iter().filter(|call| call.method == method && call.keys.iter().any(is_chunk)).count()
}

/// Proves H184.
#[test]
fn a_sync_of_n_new_chunks_costs_n_gets_and_n_puts() {
    block_on(async {
        let runtime = threads();
        let record = |backend| Arc::new(RecordingBackend::new(backend));
        let (from, to) = (record(memory(&runtime)), record(memory(&runtime)));
        let pair =
            Pair::on(Arc::<RecordingBackend>::clone(&from) as _, Arc::<RecordingBackend>::clone(&to) as _)
                .await;
        back_up(&pair.source, "vm/1", 1000, &data(1, 30)).await;
        back_up(&pair.source, "vm/1", 2000, &[data(1, 30), data(2, 5)].concat()).await;
        back_up(&pair.source, "vm/2", 2000, &data(1, 30)).await;
        for next in [35, 7] {
            from.reset();
            to.reset();
            let report = pair.sync().await;
            assert!(report.is_complete());
            assert_eq!(report.stats().chunks_sent, next as u64);
            assert_eq!(about_chunks(&from.calls(), Method::Get), next);
            assert_eq!(about_chunks(&to.calls(), Method::Put), next);
            for method in [Method::Head, Method::Get, Method::GetRange] {
                assert_eq!(about_chunks(&to.calls(), method), 0, "{method:?}");
            }
            assert_eq!(about_chunks(&from.calls(), Method::Head), 0);
            // Chunks of the newest snapshot of the group are touched, and not sent again.
            assert_eq!(report.stats().chunks_reused, if next == 7 { 30 } else { 0 });
            if next != 7 {
                back_up(&pair.source, "vm/1", 3000, &[data(1, 30), data(3, 7)].concat()).await;
            }
        }
        assert_eq!(chunks(to.as_ref()).await.len(), 42);
    });
}

/// Proves H37, H42.
#[test]
fn a_sync_makes_chunks_indexes_and_manifest_durable_in_this_order() {
    block_on(async {
        let runtime = threads();
        let recorded = Arc::new(RecordingBackend::new(memory(&runtime)));
        let pair = Pair::on(memory(&runtime), Arc::<RecordingBackend>::clone(&recorded) as _).await;
        let name = back_up(&pair.source, "vm/1", 1000, &data(1, 5)).await;
        recorded.reset();
        assert!(pair.sync().await.is_complete());
        let mut order: Vec<_> = recorded
            .calls()
            .iter()
            .filter_map(|call| match (call.method, call.keys.first()) {
                (Method::Barrier, _) => Some("barrier"),
                (Method::Put, Some(Key::Chunk(_))) => Some("chunk"),
                (Method::Put, Some(Key::Archive(_, file))) if file.as_str().ends_with("idx") => Some("index"),
                (Method::Put, Some(Key::Manifest(_))) => Some("manifest"),
                (Method::Put, Some(Key::ClientLog(_))) => Some("log"),
                _ => None,
            })
            .collect();
        order.dedup();
        let wanted = ["chunk", "barrier", "index", "barrier", "manifest", "barrier", "log", "barrier"];
        assert_eq!(order, wanted);
        let locks: Vec<_> = recorded.calls().into_iter().filter_map(|call| call.lock).collect();
        let wanted = [
            (LockScope::Group(name.group().clone()), LockMode::Exclusive),
            (LockScope::Store, LockMode::Shared),
            (LockScope::Snapshot(name), LockMode::Exclusive),
        ];
        assert!(wanted.iter().all(|lock| locks.contains(lock)), "{locks:?}");
        assert!(recorded.count(Method::Check) >= 2, "h33: locks are asked before the manifest");
    });
}

/// A source that is gone from the `n`-th look at an object on.
fn vanishing(inner: Arc<dyn Backend>, n: u64) -> Arc<FaultBackend> {
    let seen = AtomicU64::new(0);
    let faulty = FaultBackend::new(inner);
    let is_gone = move |_: &Key| seen.fetch_add(1, Ordering::SeqCst) >= n;
    faulty.add(Rule::on(Method::Get, Action::FailBefore(ErrorKind::NotFound)).or(Method::Head).keys(is_gone));
    Arc::new(faulty)
}

/// Proves H51.
#[test]
fn a_source_that_fails_at_any_step_leaves_no_snapshot_at_the_target() {
    block_on(async {
        let runtime = threads();
        let from = memory(&runtime);
        let name = back_up(&store(&from).await, "vm/1", 1000, &data(1, 5)).await;
        let mut gone = 0;
        for step in 0.. {
            // The identity and everything else that opening and planning read exist.
            let source = store(&from).await;
            let to = memory(&runtime);
            let target = store(&to).await;
            let plan = sync::plan(&source, &target, SyncOptions::default()).await.unwrap();
            assert_eq!(plan.snapshots().count(), 1);
            let faulty: Arc<dyn Backend> = vanishing(Arc::clone(&from), step + 1);
            let vanishing = Datastore::open(faulty, Options::default()).await.unwrap();
            let mut plan = sync::plan(&vanishing, &target, SyncOptions::default()).await.unwrap();
            let report = plan.execute().await.unwrap();
            match only_outcome(&report) {
                SyncOutcome::SourceGone => {
                    gone += 1;
                    assert_eq!(content(to.as_ref()).await, BTreeMap::new(), "step {step}");
                }
                SyncOutcome::Done(_) => {
                    assert!(gone >= 10, "{gone}");
                    assert!(restore(&target, &name).await == image_of(&data(1, 5)));
                    return;
                }
                other => panic!("step {step}: {other:?}"),
            }
        }
    });
}

/// Proves H51.
#[test]
fn a_snapshot_deleted_since_the_plan_is_reported_as_vanished() {
    block_on(async {
        let pair = Pair::new().await;
        let first = back_up(&pair.source, "vm/1", 1000, &data(1, 3)).await;
        let second = back_up(&pair.source, "vm/1", 2000, &data(2, 3)).await;
        let mut plan = sync::plan(&pair.source, &pair.target, SyncOptions::default()).await.unwrap();
        pair.source.delete_snapshot(&first).await.unwrap();
        let report = plan.execute().await.unwrap();
        let outcomes: Vec<_> = report.snapshots().map(|it| &it.outcome).collect();
        assert!(matches!(outcomes[..], [SyncOutcome::SourceGone, SyncOutcome::Done(_)]), "{outcomes:?}");
        assert!(restore(&pair.target, &second).await == image_of(&data(2, 3)));
    });
}

#[test]
fn a_snapshot_with_lost_files_fails_and_defers_the_newer_ones() {
    block_on(async {
        let pair = Pair::new().await;
        let good = back_up(&pair.source, "vm/1", 1000, &data(1, 3)).await;
        back_up(&pair.source, "vm/1", 2000, &data(2, 3)).await;
        back_up(&pair.source, "vm/1", 3000, &data(3, 3)).await;
        let chunk = Key::Chunk(Digest::of(&data(2, 3)[CHUNK..2 * CHUNK]));
        let stored = pair.from.get(&chunk, EVERYTHING).await.unwrap().bytes;
        let mut flipped = stored.to_vec();
        *flipped.last_mut().unwrap() ^= 1;
        let mut other = Vec::new();
        encode_plain(&data(9, 1), &mut other).unwrap();
        for damage in [Some(Bytes::from(flipped)), Some(other.into()), Some(stored.slice(..20)), None] {
            match damage {
                Some(bytes) => drop(pair.from.put(&chunk, bytes, PutMode::Replace).await.unwrap()),
                None => drop(pair.from.delete(&[Removal::any(chunk.clone())]).await.unwrap()),
            }
            let report = pair.sync().await;
            let outcomes: Vec<_> = report.snapshots().map(|it| &it.outcome).collect();
            assert!(
                matches!(outcomes[1..], [SyncOutcome::Failed(_), SyncOutcome::NotReached]),
                "{outcomes:?}"
            );
            let there = pair.target.snapshots(good.group()).await.unwrap();
            assert_eq!(there.iter().map(|info| &info.name).collect::<Vec<_>>(), [&good]);
            assert!(
                !chunks(pair.to.as_ref()).await.contains_key(&chunk.to_string()),
                "h101: nothing bad is stored"
            );
        }
        let all = SyncOptions::default().candidates(SyncCandidates::AllMissing);
        let report = pair.sync_with(all.clone()).await;
        let outcomes: Vec<_> = report.snapshots().map(|it| &it.outcome).collect();
        assert!(matches!(outcomes[1..], [SyncOutcome::Failed(_), SyncOutcome::Done(_)]), "{outcomes:?}");
        pair.from.put(&chunk, stored, PutMode::Replace).await.unwrap();
        let again = store(&pair.from).await;
        let mut plan = sync::plan(&again, &pair.target, all).await.unwrap();
        assert!(plan.execute().await.unwrap().is_complete());
        assert_eq!(content(pair.to.as_ref()).await, content(pair.from.as_ref()).await);
    });
}

/// Proves H39.
#[test]
fn files_that_differ_from_the_manifest_are_not_copied() {
    block_on(async {
        for path in ["disk.img.fidx", "app.conf.blob", "index.json.blob"] {
            let pair = Pair::new().await;
            let name = back_up(&pair.source, "vm/1", 1000, &data(1, 3)).await;
            let other = back_up(&pair.source, "vm/2", 1000, &data(2, 3)).await;
            let key = |name: &SnapshotName| Key::from_str(&format!("{name}/{path}")).unwrap();
            let bytes = pair.from.get(&key(&other), EVERYTHING).await.unwrap().bytes;
            pair.from.put(&key(&name), bytes, PutMode::Replace).await.unwrap();
            let report = pair.sync().await;
            let mut outcomes = report.snapshots().map(|it| &it.outcome);
            let Some(SyncOutcome::Failed(error)) = outcomes.next() else { panic!("{path}: {report:?}") };
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{path}");
            assert!(matches!(outcomes.next(), Some(SyncOutcome::Done(_))));
            assert!(content(pair.to.as_ref()).await.keys().all(|path| path.starts_with("vm/2/")), "{path}");
        }
    });
}

/// Stores with one snapshot each of the same name, of which the fixture has a plain and two encrypted ones.
async fn same_name(directory: &Path) -> Vec<(Arc<dyn Backend>, SnapshotName)> {
    let from = pbs(directory).await;
    let source = store(&from).await;
    let mut made = Vec::new();
    for (namespace, key) in [("", None), ("tenant", None), ("tenant", Some([7; 32]))] {
        let to = memory(&threads());
        let target = store(&to).await;
        let options = SyncOptions::default()
            .source_namespace(namespace.parse().unwrap())
            .max_depth(0)
            .include(GroupRule::Group("host/alpha".parse().unwrap()));
        assert!(sync::plan(&source, &target, options).await.unwrap().execute().await.unwrap().is_complete());
        let group: GroupName = "host/alpha".parse().unwrap();
        for info in target.snapshots(&group).await.unwrap().iter().skip(1) {
            target.delete_snapshot(&info.name).await.unwrap();
        }
        let name = target.latest(&group).await.unwrap().unwrap();
        if let Some(key) = key {
            let text = key.map(|byte: u8| format!("{byte:02x}")).join(":");
            edit(to.as_ref(), &name, |it| manifest::set_key_fingerprint(it, text.parse().unwrap())).await;
        }
        made.push((to, name));
    }
    let mut other = None;
    for name in made.iter().map(|(_, name)| name.clone()) {
        let to = memory(&threads());
        let time = name.time().epoch().cast_unsigned();
        back_up(&store(&to).await, "host/alpha", time, &data(1, 3)).await;
        other = Some((to, name));
    }
    made.extend(other);
    made
}

/// Proves H52.
#[test]
fn a_different_snapshot_of_the_same_name_is_never_overwritten() {
    block_on(async {
        let directory = larder_testing::scratch();
        let made = same_name(directory.path()).await;
        // Plain, encrypted, encrypted with another key, plain with other contents.
        let conflict = |from: usize, to: usize| match (from, to) {
            (1, 2) | (2, 1) => SyncConflict::Key,
            (0, 3) | (3, 0) => SyncConflict::Content,
            _ => SyncConflict::Encryption,
        };
        for (a, (from, name)) in made.iter().enumerate() {
            for (b, (to, _)) in made.iter().enumerate().filter(|(b, _)| *b != a) {
                let before = content(to.as_ref()).await;
                let pair = Pair::on(Arc::clone(from), Arc::clone(to)).await;
                for options in [SyncOptions::default(), SyncOptions::default().resync_corrupt()] {
                    let all = options.candidates(SyncCandidates::AllMissing);
                    assert_eq!(
                        pair.steps(all.clone()).await[0].1,
                        SyncStep::Conflict(conflict(a, b)),
                        "{a} to {b}"
                    );
                    let report = pair.sync_with(all).await;
                    assert!(
                        matches!(only_outcome(&report), SyncOutcome::Conflict(it) if *it == conflict(a, b))
                    );
                }
                // One that is known to be bad may be replaced, but by no plain one if it is encrypted.
                edit(to.as_ref(), name, failed).await;
                let is_refused = matches!((a, b), (0 | 3, 1 | 2));
                let report = pair.sync_with(SyncOptions::default().resync_corrupt()).await;
                match only_outcome(&report) {
                    SyncOutcome::Conflict(SyncConflict::Encryption) if is_refused => {}
                    SyncOutcome::Done(_) if !is_refused => {
                        let (ours, theirs) = (content(to.as_ref()).await, content(from.as_ref()).await);
                        assert!(ours == theirs, "{a} to {b}: {:?}, {:?}", ours.keys(), theirs.keys());
                    }
                    other => panic!("{a} to {b}: {other:?}"),
                }
                for (path, bytes) in content(to.as_ref()).await {
                    let key = Key::from_str(&path).unwrap();
                    if !before.contains_key(&path) {
                        to.delete(&[Removal::any(key)]).await.unwrap();
                    } else if before[&path] != bytes {
                        to.put(&key, before[&path].clone(), PutMode::Replace).await.unwrap();
                    }
                }
                for (path, bytes) in &before {
                    to.put(&Key::from_str(path).unwrap(), bytes.clone(), PutMode::Replace).await.unwrap();
                }
                assert_eq!(content(to.as_ref()).await, before);
            }
        }
    });
}

#[test]
fn notes_and_verify_states_of_the_newest_snapshot_are_synced_and_failed_stays_failed() {
    block_on(async {
        let pair = Pair::new().await;
        let name = back_up(&pair.source, "vm/1", 1000, &data(1, 3)).await;
        pair.sync().await;
        pair.source.set_notes(&name, "new").await.unwrap();
        let unlisted = Key::from_str(&format!("{name}/old.conf.blob")).unwrap();
        pair.to.put(&unlisted, "x".into(), PutMode::Create).await.unwrap();
        assert_eq!(pair.steps(SyncOptions::default()).await[0].1, SyncStep::Resync(Resync::Manifest));
        let report = pair.sync().await;
        assert!(matches!(only_outcome(&report), SyncOutcome::Done(_)));
        assert_eq!(pair.target.snapshot(&name).await.unwrap().manifest().notes(), Some("new"));
        assert_eq!(
            content(pair.to.as_ref()).await,
            content(pair.from.as_ref()).await,
            "what is not listed goes"
        );
        let log = Key::ClientLog(name.clone());
        pair.to.delete(&[Removal::any(log)]).await.unwrap();
        assert_eq!(pair.steps(SyncOptions::default()).await[0].1, SyncStep::Resync(Resync::Log));
        pair.sync().await;
        assert_eq!(content(pair.to.as_ref()).await, content(pair.from.as_ref()).await);
        edit(pair.to.as_ref(), &name, failed).await;
        let before = content(pair.to.as_ref()).await;
        assert!(matches!(only_outcome(&pair.sync().await), SyncOutcome::Skipped(SyncSkip::Damaged)));
        assert_eq!(content(pair.to.as_ref()).await, before);
    });
}

#[test]
fn corrupt_snapshots_of_the_target_are_copied_again_on_request() {
    block_on(async {
        let pair = Pair::new().await;
        let first = back_up(&pair.source, "vm/1", 1000, &data(1, 5)).await;
        back_up(&pair.source, "vm/1", 2000, &data(2, 5)).await;
        pair.sync().await;
        let good = content(pair.to.as_ref()).await;
        let all = chunks(pair.to.as_ref()).await;
        let chunk = |number: usize| Key::Chunk(Digest::of(&data(1, 5)[number * CHUNK..(number + 1) * CHUNK]));
        for round in 0..3 {
            // Damaged at the same length, which only a verification of the snapshot has detected.
            let mut damaged = all[&chunk(1).to_string()].to_vec();
            damaged[100] ^= 1;
            pair.to.put(&chunk(1), damaged.into(), PutMode::Replace).await.unwrap();
            pair.to.delete(&[Removal::any(chunk(2))]).await.unwrap();
            let manifest = Key::Manifest(first.clone());
            match round {
                0 => edit(pair.to.as_ref(), &first, failed).await,
                1 => drop(pair.to.put(&manifest, "no manifest".into(), PutMode::Replace).await.unwrap()),
                _ => {
                    edit(pair.to.as_ref(), &first, failed).await;
                    let index = Key::from_str(&format!("{first}/disk.img.fidx")).unwrap();
                    pair.to.put(&index, "no index".into(), PutMode::Replace).await.unwrap();
                    let blob = Key::from_str(&format!("{first}/app.conf.blob")).unwrap();
                    pair.to.delete(&[Removal::any(blob)]).await.unwrap();
                }
            }
            let target = store(&pair.to).await;
            let plain = sync::plan(&pair.source, &target, SyncOptions::default()).await.unwrap();
            assert!(plain.snapshots().all(|it| matches!(it.step, SyncStep::Skip(_))), "only when asked");
            let options = SyncOptions::default().resync_corrupt();
            let mut plan = sync::plan(&pair.source, &target, options).await.unwrap();
            let steps: Vec<_> = plan.snapshots().map(|it| it.step).collect();
            assert_eq!(steps, [SyncStep::Resync(Resync::Everything), SyncStep::Skip(SyncSkip::UpToDate)]);
            assert!(plan.execute().await.unwrap().is_complete());
            assert_eq!(content(pair.to.as_ref()).await, good, "round {round}");
            assert_eq!(chunks(pair.to.as_ref()).await, all, "round {round}");
        }
    });
}

/// Proves H37.
#[test]
fn a_crash_of_the_sync_target_at_any_step_leaves_a_whole_snapshot_or_none() {
    block_on(async {
        let runtime = threads();
        let from = memory(&runtime);
        let source = store(&from).await;
        let names = [
            back_up(&source, "vm/1", 1000, &data(1, 3)).await,
            back_up(&source, "vm/1", 2000, &data(2, 3)).await,
        ];
        let mut some = 0;
        for step in 1.. {
            let to = memory(&runtime);
            store(&to).await;
            let faulty = Arc::new(FaultBackend::new(Arc::clone(&to)));
            let dying =
                Datastore::open(Arc::<FaultBackend>::clone(&faulty), Options::default()).await.unwrap();
            faulty.crash_at(step);
            let mut plan = sync::plan(&source, &dying, SyncOptions::default()).await.unwrap();
            let ended = plan.execute().await.is_ok_and(|report| report.is_complete());
            drop(dying);
            let target = store(&to).await;
            for (name, seed) in names.iter().zip([1, 2]) {
                let infos = target.snapshots(name.group()).await.unwrap();
                let info = infos.iter().find(|info| info.name == *name);
                if info.is_some_and(|info| info.state == SnapshotState::Finished) {
                    some += 1;
                    assert!(restore(&target, name).await == image_of(&data(seed, 3)), "step {step}");
                }
            }
            let mut again = sync::plan(&source, &target, SyncOptions::default()).await.unwrap();
            assert!(again.execute().await.unwrap().is_complete(), "step {step}");
            assert_eq!(content(to.as_ref()).await, content(from.as_ref()).await, "step {step}");
            if ended {
                assert!(step > 20 && some > 10, "{step} steps, {some}");
                return;
            }
        }
    });
}

/// Proves H161.
#[test]
fn a_sync_dropped_at_any_step_leaves_whole_snapshots_and_resumes() {
    let mut whole = 0;
    for polls in 0.. {
        let sim = SimRuntime::new(1 << 20);
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        let is_over = sim.block_on(async {
            let pair = Pair::on(memory(&runtime), memory(&runtime)).await;
            let name = back_up(&pair.source, "vm/1", 1000, &data(1, 3)).await;
            let mut plan = sync::plan(&pair.source, &pair.target, SyncOptions::default()).await.unwrap();
            let mut execution = Box::pin(plan.execute());
            let mut left = polls;
            let ended = std::future::poll_fn(|context| {
                if left == 0 {
                    return std::task::Poll::Ready(false);
                }
                left -= 1;
                execution.as_mut().poll(context).map(|_| true)
            })
            .await;
            drop(execution);
            runtime.sleep(Duration::from_secs(1)).await;
            let there = pair.target.snapshots(name.group()).await.unwrap();
            whole += usize::from(!ended && !there.is_empty());
            assert!(there.iter().all(|info| info.state == SnapshotState::Finished), "{polls}: {there:?}");
            assert!(pair.sync().await.is_complete(), "{polls}");
            assert_eq!(content(pair.to.as_ref()).await, content(pair.from.as_ref()).await, "{polls}");
            ended
        });
        if is_over {
            assert!(polls > 10 && whole > 0, "{polls}, {whole} in the background");
            return;
        }
    }
}

/// Records the times at which bytes were transferred.
#[derive(Debug)]
struct Watch {
    runtime: SimRuntime,
    sent: Mutex<Vec<(Duration, u64)>>,
}

impl Observer<SyncEvent> for Watch {
    fn on_event(&self, event: &SyncEvent) {
        if let SyncEvent::ChunkSent { stored, .. } = event {
            self.sent.lock().unwrap().push((self.runtime.monotonic(), *stored));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    /// Proves H151.
    #[test]
    fn a_sync_never_exceeds_its_bandwidth_in_any_window(
        rate in 3000_u64..60_000,
        chunks in 1_usize..40,
        seed in 0_u64..1000,
    ) {
        let sim = SimRuntime::new(seed + (2 << 20));
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        let watch = Arc::new(Watch { runtime: sim.clone(), sent: Mutex::default() });
        sim.block_on(async {
            let pair = Pair::on(memory(&runtime), memory(&runtime)).await;
            back_up(&pair.source, "vm/1", 1000, &data(seed, chunks)).await;
            let options = SyncOptions::default()
                .bytes_per_second(NonZeroU64::new(rate).unwrap())
                .observer(Arc::<Watch>::clone(&watch) as _);
            assert!(pair.sync_with(options).await.is_complete());
        });
        let sent = watch.sent.lock().unwrap().clone();
        prop_assert_eq!(sent.len(), chunks);
        let total: u64 = sent.iter().map(|(_, bytes)| bytes).sum();
        let longest = Duration::from_millis(total * 1200 / rate) + Duration::from_secs(5);
        prop_assert!(sim.monotonic() < longest, "it is not slower than it may be");
        for (start, (from, _)) in sent.iter().enumerate() {
            let mut sum = 0;
            for (at, bytes) in &sent[start..] {
                sum += bytes;
                let time = at.saturating_sub(*from);
                let flown = u64::try_from(time.as_nanos() * u128::from(rate) / 1_000_000_000).unwrap();
                // A second's worth at once, and the last chunk whole.
                prop_assert!(sum <= rate + flown + CHUNK as u64 + 13, "{} bytes within {:?}", sum, time);
            }
        }
    }
}

/// Proves H151.
#[test]
fn a_sync_that_waits_for_bandwidth_can_be_aborted() {
    let sim = SimRuntime::new(3 << 20);
    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
    sim.block_on(async {
        let pair = Pair::on(memory(&runtime), memory(&runtime)).await;
        back_up(&pair.source, "vm/1", 1000, &data(1, 20)).await;
        let options = SyncOptions::default().bytes_per_second(NonZeroU64::MIN);
        let mut plan = sync::plan(&pair.source, &pair.target, options).await.unwrap();
        let timer = runtime.sleep(Duration::from_secs(5));
        let ended = futures::future::select(Box::pin(plan.execute()), timer).await;
        assert!(matches!(ended, futures::future::Either::Right(_)));
        drop(ended);
        assert!(runtime.monotonic() < Duration::from_secs(10));
        let flag = Arc::new(AtomicBool::new(false));
        let options = SyncOptions::default().bytes_per_second(NonZeroU64::MIN).abort(Arc::clone(&flag));
        let mut plan = sync::plan(&pair.source, &pair.target, options).await.unwrap();
        let set = async {
            runtime.sleep(Duration::from_secs(5)).await;
            flag.store(true, Ordering::SeqCst);
        };
        let (report, ()) = futures::future::join(plan.execute(), set).await;
        assert!(report.unwrap().is_aborted);
        assert!(runtime.monotonic() < Duration::from_secs(20));
        assert!(pair.sync().await.is_complete());
    });
}

#[test]
fn a_sync_copies_only_the_selected_snapshots() {
    block_on(async {
        let pair = Pair::new().await;
        for time in [1000, 2000, 3000, 4000] {
            back_up(&pair.source, "vm/1", time, &data(time, 2)).await;
        }
        let options = SyncOptions::default;
        let last = options().transfer_last(NonZeroUsize::new(2).unwrap());
        let skip = SyncStep::Skip;
        let wanted = [
            (1000, skip(SyncSkip::NotAmongLast)),
            (2000, skip(SyncSkip::NotAmongLast)),
            (3000, SyncStep::Transfer),
            (4000, SyncStep::Transfer),
        ];
        assert_eq!(pair.steps(last.clone()).await, wanted);
        assert!(pair.sync_with(last).await.is_complete());
        back_up(&pair.source, "vm/1", 5000, &data(5, 2)).await;
        let wanted = [
            (1000, skip(SyncSkip::Older)),
            (2000, skip(SyncSkip::Older)),
            (3000, skip(SyncSkip::Present)),
            (4000, skip(SyncSkip::UpToDate)),
            (5000, SyncStep::Transfer),
        ];
        assert_eq!(pair.steps(options()).await, wanted);
        let newest_first = options().candidates(SyncCandidates::AllMissing).order(SyncOrder::NewestFirst);
        let steps = pair.steps(newest_first.clone()).await;
        assert_eq!(steps.iter().filter(|(_, step)| *step == SyncStep::Transfer).count(), 3);
        assert_eq!(steps[0].0, 5000);
        assert!(pair.sync_with(newest_first).await.is_complete());
        assert_eq!(content(pair.to.as_ref()).await, content(pair.from.as_ref()).await);
        let steps = pair.steps(options().verified_only().candidates(SyncCandidates::AllMissing)).await;
        assert_eq!(steps[4], (5000, skip(SyncSkip::NotVerified)));
        let steps = pair.steps(options().encrypted_only()).await;
        assert_eq!(steps[4], (5000, skip(SyncSkip::NotEncrypted)));
    });
}

#[test]
fn unfinished_snapshots_of_the_source_are_skipped() {
    block_on(async {
        let pair = Pair::new().await;
        back_up(&pair.source, "vm/1", 1000, &data(1, 2)).await;
        let blob = Key::from_str("vm/1/1970-01-01T01:00:00Z/a.blob").unwrap();
        pair.from.put(&blob, "x".into(), PutMode::Create).await.unwrap();
        let wanted = [(1000, SyncStep::Transfer), (3600, SyncStep::Skip(SyncSkip::Unfinished))];
        assert_eq!(pair.steps(SyncOptions::default()).await, wanted);
        assert!(pair.sync().await.is_complete());
        assert_eq!(content(pair.to.as_ref()).await.len(), 6);
    });
}

#[test]
fn a_sync_selects_groups_and_creates_namespaces() {
    block_on(async {
        let pair = Pair::new().await;
        for namespace in ["a", "a/b", "c"] {
            pair.source.create_namespace(&namespace.parse().unwrap()).await.unwrap();
        }
        for group in ["vm/1", "ct/1", "host/x", "ns/a/vm/1", "ns/a/ns/b/vm/2", "ns/c/vm/1"] {
            back_up(&pair.source, group, 1000, &data(1, 1)).await;
        }
        let groups = |options: SyncOptions| {
            let pair = &pair;
            async move {
                let plan = sync::plan(&pair.source, &pair.target, options).await.unwrap();
                plan.groups().iter().map(|group| group.target.to_string()).collect::<Vec<_>>()
            }
        };
        let options = SyncOptions::default;
        let vms = options().include(GroupRule::Type(BackupType::Vm)).max_depth(0);
        assert_eq!(groups(vms.clone()).await, ["vm/1"]);
        assert_eq!(
            groups(options().max_depth(1).exclude(GroupRule::Type(BackupType::Vm))).await,
            ["ct/1", "host/x"]
        );
        let rule = GroupRule::Matching(Arc::new(|group| group.namespace().components().count() == 2));
        assert_eq!(groups(options().include(rule)).await, ["ns/a/ns/b/vm/2"]);
        let both = options()
            .include(GroupRule::Group("host/x".parse().unwrap()))
            .include(GroupRule::Type(BackupType::Vm))
            .exclude(GroupRule::Group("vm/2".parse().unwrap()));
        assert_eq!(groups(both).await, ["host/x", "vm/1", "ns/a/vm/1", "ns/c/vm/1"]);
        let moved = options().source_namespace("a".parse().unwrap()).target_namespace("x/y".parse().unwrap());
        let report = pair.sync_with(moved).await;
        assert!(report.is_complete());
        let made: Vec<_> = report.new_namespaces.iter().map(ToString::to_string).collect();
        assert_eq!(made, ["x", "x/y", "x/y/b"]);
        let name = "ns/x/ns/y/ns/b/vm/2/1970-01-01T00:16:40Z".parse().unwrap();
        assert!(restore(&pair.target, &name).await == image_of(&data(1, 1)));
        let missing = options().source_namespace("none".parse().unwrap());
        let error = sync::plan(&pair.source, &pair.target, missing).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        let deep = options().target_namespace("1/2/3/4/5/6/7".parse().unwrap());
        let error = sync::plan(&pair.source, &pair.target, deep).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
    });
}

#[test]
fn unprotected_snapshots_that_vanished_at_the_source_are_removed() {
    block_on(async {
        let pair = Pair::new().await;
        for namespace in ["a", "b"] {
            pair.source.create_namespace(&namespace.parse().unwrap()).await.unwrap();
        }
        let mut names = Vec::new();
        for (group, time) in [
            ("vm/1", 1000),
            ("vm/1", 2000),
            ("vm/1", 3000),
            ("ct/1", 1000),
            ("ns/a/vm/1", 1000),
            ("ns/b/vm/1", 1000),
        ] {
            names.push(back_up(&pair.source, group, time, &data(time, 1)).await);
        }
        assert!(pair.sync().await.is_complete());
        let own = back_up(&pair.target, "host/own", 1000, &data(9, 1)).await;
        pair.target.set_owner(own.group(), &"other@pbs".parse().unwrap()).await.unwrap();
        pair.target.set_protection(&names[1], Protection::On).await.unwrap();
        for name in [&names[0], &names[1], &names[3], &names[4], &names[5]] {
            pair.source.delete_snapshot(name).await.unwrap();
        }
        for namespace in ["a", "b"] {
            pair.source.delete_namespace(&namespace.parse().unwrap()).await.unwrap();
        }
        let before = content(pair.to.as_ref()).await;
        assert!(pair.sync().await.is_complete());
        assert_eq!(content(pair.to.as_ref()).await, before, "only when asked");
        let options = SyncOptions::default().remove_vanished();
        let some = options.clone().exclude(GroupRule::Type(BackupType::Ct)).max_depth(0);
        let plan = sync::plan(&pair.source, &pair.target, some).await.unwrap();
        assert_eq!(plan.vanished().snapshots, [names[0].clone()]);
        assert_eq!(plan.vanished().protected, [names[1].clone()]);
        let mut plan = sync::plan(&pair.source, &pair.target, options).await.unwrap();
        // Back again since the plan: it stays.
        back_up(&pair.source, "ct/1", 1000, &data(1000, 1)).await;
        let report = plan.execute().await.unwrap();
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(report.removed, [names[0].clone(), names[4].clone(), names[5].clone()]);
        assert_eq!(report.protected, [names[1].clone()]);
        assert_eq!(report.removed_namespaces, ["a", "b"].map(|name| name.parse().unwrap()));
        let left = content(pair.to.as_ref()).await;
        let groups: BTreeSet<_> =
            left.keys().map(|path| path.split('/').take(2).collect::<Vec<_>>().join("/")).collect();
        assert_eq!(groups.into_iter().collect::<Vec<_>>(), ["ct/1", "host/own", "vm/1"]);
        assert!(restore(&pair.target, &names[1]).await == image_of(&data(2000, 1)));
    });
}

/// A server that denies a removal does not make a snapshot protected.
#[test]
fn a_denied_removal_of_a_vanished_snapshot_is_reported_and_repeated() {
    block_on(async {
        let runtime = threads();
        let faults = Arc::new(FaultBackend::new(memory(&runtime)));
        let pair = Pair::on(memory(&runtime), Arc::<FaultBackend>::clone(&faults)).await;
        let gone = back_up(&pair.source, "vm/1", 1000, &data(1, 1)).await;
        back_up(&pair.source, "vm/1", 2000, &data(2, 1)).await;
        assert!(pair.sync().await.is_complete());
        pair.source.delete_snapshot(&gone).await.unwrap();
        let options = SyncOptions::default().remove_vanished();
        let mut plan = sync::plan(&pair.source, &pair.target, options).await.unwrap();
        faults.add(Rule::on(Method::Delete, Action::FailBefore(ErrorKind::Denied)));
        let report = plan.execute().await.unwrap();
        assert!(!report.is_complete() && report.protected.is_empty(), "{report:?}");
        assert_eq!(report.unremoved.len(), 1);
        faults.clear();
        let report = plan.execute().await.unwrap();
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(report.removed, [gone]);
    });
}

/// The base of an earlier transfer is locked by the sync itself.
#[test]
fn the_newest_snapshot_of_the_target_is_updated_after_newer_ones_were_added() {
    block_on(async {
        let pair = Pair::new().await;
        let first = back_up(&pair.source, "vm/1", 1000, &data(1, 2)).await;
        assert!(pair.sync().await.is_complete());
        pair.source.set_notes(&first, "new notes").await.unwrap();
        back_up(&pair.source, "vm/1", 2000, &data(2, 2)).await;
        let report = pair.sync_with(SyncOptions::default().order(SyncOrder::NewestFirst)).await;
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(content(pair.to.as_ref()).await, content(pair.from.as_ref()).await);
    });
}

#[test]
fn a_group_of_another_owner_is_left_alone_and_reported() {
    block_on(async {
        let pair = Pair::new().await;
        back_up(&pair.source, "vm/1", 2000, &data(1, 1)).await;
        back_up(&pair.source, "vm/2", 2000, &data(1, 1)).await;
        let other = "other@pbs".parse().unwrap();
        let owned = back_up(&pair.target, "vm/1", 1000, &data(2, 1)).await;
        pair.target.set_owner(owned.group(), &other).await.unwrap();
        let before = objects(pair.to.as_ref(), Prefix::Group(owned.group().clone())).await;
        let report = pair.sync_with(SyncOptions::default().remove_vanished()).await;
        assert!(!report.is_complete());
        assert!(matches!(&report.groups[0].outcome, SyncGroupOutcome::Foreign(it) if *it == other));
        assert!(matches!(report.groups[1].outcome, SyncGroupOutcome::Done));
        assert_eq!(objects(pair.to.as_ref(), Prefix::Group(owned.group().clone())).await, before);
        let report = pair.sync_with(SyncOptions::default().owner(other.clone())).await;
        assert!(matches!(report.groups[0].outcome, SyncGroupOutcome::Done), "{report:?}");
        assert!(matches!(report.groups[1].outcome, SyncGroupOutcome::Foreign(_)));
    });
}

#[test]
fn a_vanished_snapshot_stays_if_its_group_has_another_owner_since_the_plan() {
    block_on(async {
        let pair = Pair::new().await;
        let name = back_up(&pair.source, "vm/1", 1000, &data(1, 1)).await;
        back_up(&pair.source, "vm/1", 2000, &data(2, 1)).await;
        assert!(pair.sync().await.is_complete());
        pair.source.delete_snapshot(&name).await.unwrap();
        let options = SyncOptions::default().remove_vanished();
        let mut plan = sync::plan(&pair.source, &pair.target, options).await.unwrap();
        assert_eq!(plan.vanished().snapshots, std::slice::from_ref(&name));
        pair.target.set_owner(name.group(), &"other@pbs".parse().unwrap()).await.unwrap();
        assert_eq!(plan.execute().await.unwrap().removed, []);
        assert_eq!(pair.target.snapshots(name.group()).await.unwrap().len(), 2);
    });
}

/// Proves H180.
#[test]
fn a_source_cannot_read_chunks_of_the_target_by_naming_them() {
    block_on(async {
        let pair = Pair::new().await;
        let secret = data(42, 2);
        back_up(&pair.target, "host/victim", 1000, &secret).await;
        let name = back_up(&pair.source, "vm/1", 2000, &secret).await;
        for chunk in secret.chunks(CHUNK) {
            let key = Key::Chunk(Digest::of(chunk));
            assert!(pair.to.head(&key).await.is_ok());
            pair.from.delete(&[Removal::any(key)]).await.unwrap();
        }
        let report = pair.sync().await;
        assert!(
            matches!(only_outcome(&report), SyncOutcome::Failed(error) if error.kind() == ErrorKind::Corrupt)
        );
        assert!(pair.target.snapshots(name.group()).await.unwrap().is_empty());
        // Nor by an encrypted chunk of that name, whose contents are unknown.
        let mut blob = [0_u8; 44 + CHUNK];
        blob[..8].copy_from_slice(&larder::internal::blob::BlobKind::Encrypted.magic());
        let checksum = crc(&blob[44..]);
        blob[8..12].copy_from_slice(&checksum.to_le_bytes());
        for chunk in secret.chunks(CHUNK) {
            let key = Key::Chunk(Digest::of(chunk));
            pair.from.put(&key, Bytes::copy_from_slice(&blob), PutMode::Create).await.unwrap();
        }
        let before = chunks(pair.to.as_ref()).await;
        for is_marked in [false, true] {
            if is_marked {
                let key = Key::Manifest(name.clone());
                let object = pair.from.get(&key, EVERYTHING).await.unwrap();
                let blob = Blob::parse(object.bytes).unwrap();
                let json = BlobDecoder::new().decode_bytes(&blob, PlaintextSize::AtMost(1 << 24)).unwrap();
                let json = String::from_utf8(json.to_vec()).unwrap().replace("\"none\"", "\"encrypt\"");
                let mut blob = Vec::new();
                encode_plain(json.as_bytes(), &mut blob).unwrap();
                pair.from.put(&key, blob.into(), PutMode::Replace).await.unwrap();
            }
            let source = store(&pair.from).await;
            let mut plan = sync::plan(&source, &pair.target, SyncOptions::default()).await.unwrap();
            let report = plan.execute().await.unwrap();
            let kind = if is_marked { ErrorKind::Conflict } else { ErrorKind::Corrupt };
            assert!(
                matches!(only_outcome(&report), SyncOutcome::Failed(error) if error.kind() == kind),
                "{report:?}"
            );
            assert_eq!(chunks(pair.to.as_ref()).await, before, "h101");
        }
    });
}

/// CRC-32, bit by bit.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg()))
    })
}

#[test]
fn a_sync_within_one_store_transfers_no_chunk() {
    block_on(async {
        let inner = memory(&threads());
        let recorded = Arc::new(RecordingBackend::new(inner));
        let backend: Arc<dyn Backend> = Arc::<RecordingBackend>::clone(&recorded);
        let source = store(&backend).await;
        back_up(&source, "vm/1", 1000, &data(1, 5)).await;
        for (target, name) in [(source.clone(), "x"), (store(&backend).await, "y")] {
            recorded.reset();
            let namespace: Namespace = name.parse().unwrap();
            let options = SyncOptions::default().target_namespace(namespace.clone()).max_depth(0);
            let report = sync::plan(&source, &target, options).await.unwrap().execute().await.unwrap();
            assert!(report.is_complete(), "{report:?}");
            assert_eq!((report.stats().chunks_sent, report.stats().chunks_reused), (0, 5));
            for method in [Method::Get, Method::Put] {
                assert_eq!(about_chunks(&recorded.calls(), method), 0);
            }
            let group: GroupName = format!("ns/{name}/vm/1").parse().unwrap();
            let copy = target.latest(&group).await.unwrap().unwrap();
            assert!(restore(&target, &copy).await == image_of(&data(1, 5)));
        }
        let error = sync::plan(&source, &source, SyncOptions::default()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput, "a snapshot is not brought to where it is");
    });
}

#[test]
fn a_copied_store_is_not_taken_for_its_original() {
    block_on(async {
        let runtime = threads();
        let (from, to) = (memory(&runtime), memory(&runtime));
        let source = store(&from).await;
        back_up(&source, "vm/1", 1000, &data(1, 5)).await;
        let identity = from.get(&Key::Store, EVERYTHING).await.unwrap().bytes;
        to.put(&Key::Store, identity, PutMode::Create).await.unwrap();
        let target = Datastore::open(Arc::clone(&to), Options::default()).await.unwrap();
        assert_eq!(source.uuid(), target.uuid());
        let options = SyncOptions::default().target_namespace("copy".parse().unwrap()).max_depth(0);
        let report = sync::plan(&source, &target, options).await.unwrap().execute().await.unwrap();
        assert!(report.is_complete(), "{report:?}");
        assert_eq!(report.stats().chunks_sent, 5);
        assert_eq!(chunks(to.as_ref()).await, chunks(from.as_ref()).await);
    });
}

/// Sets the flag after `after` chunks.
#[derive(Debug)]
struct Stop {
    flag: Arc<AtomicBool>,
    left: AtomicU64,
}

impl Observer<SyncEvent> for Stop {
    fn on_event(&self, event: &SyncEvent) {
        if matches!(event, SyncEvent::ChunkSent { .. }) && self.left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.flag.store(true, Ordering::SeqCst);
        }
    }
}

/// Proves H21.
#[test]
fn an_aborted_sync_can_be_resumed() {
    block_on(async {
        for after in [1, 4, 7] {
            let pair = Pair::new().await;
            let first = back_up(&pair.source, "vm/1", 1000, &data(1, 5)).await;
            back_up(&pair.source, "vm/1", 2000, &data(2, 5)).await;
            back_up(&pair.source, "vm/2", 2000, &data(3, 5)).await;
            let flag = Arc::new(AtomicBool::new(false));
            let stop = Stop { flag: Arc::clone(&flag), left: AtomicU64::new(after) };
            let options = SyncOptions::default().abort(flag).observer(Arc::new(stop)).concurrency(1);
            let report = pair.sync_with(options.remove_vanished()).await;
            assert!(report.is_aborted && !report.is_complete());
            let there = pair.target.snapshots(first.group()).await.unwrap();
            assert_eq!(there.len(), usize::from(after > 5), "{after}: {report:?}");
            assert!(there.iter().all(|info| info.state == SnapshotState::Finished));
            assert!(pair.sync().await.is_complete());
            assert_eq!(content(pair.to.as_ref()).await, content(pair.from.as_ref()).await);
        }
    });
}

#[test]
fn a_sync_skips_groups_and_snapshots_in_use() {
    block_on(async {
        let pair = Pair::new().await;
        let name = back_up(&pair.source, "vm/1", 1000, &data(1, 2)).await;
        let backup = pair.target.backup(name.group()).time(at(500)).begin().await.unwrap();
        let report = pair.sync().await;
        assert!(
            matches!(&report.groups[0].outcome, SyncGroupOutcome::Failed(it) if it.kind() == ErrorKind::Busy)
        );
        backup.abort().await.unwrap();
        assert!(pair.sync().await.is_complete());
        let reader = pair.target.snapshot(&name).await.unwrap();
        pair.source.set_notes(&name, "new").await.unwrap();
        assert!(
            matches!(only_outcome(&pair.sync().await), SyncOutcome::Failed(it) if it.kind() == ErrorKind::Busy)
        );
        drop(reader);
        assert!(pair.sync().await.is_complete());
    });
}
