//! Verification on every backend: what it finds, what it leaves alone, what it costs.

use std::collections::BTreeSet;
use std::str::FromStr as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use futures::executor::block_on;
use futures::io::Cursor;
use larder::Observer;
use larder::backend::{Backend, ListEntry, ListQuery, LockMode, LockScope, MemoryBackend, PutMode, Removal};
use larder::error::{ErrorKind, Result};
use larder::format::Digest;
use larder::format::layout::{Key, Prefix};
use larder::format::manifest::VerifyResult;
use larder::format::name::{GroupName, Namespace, SnapshotName};
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::listing::list_all;
use larder::internal::record::{Method, RecordingBackend};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options, Scope, SnapshotReader};
use larder::verify::{
    self, Incomplete, ObjectFault, Recording, Repair, Sample, SkipReason, VerifyEvent, VerifyMode,
    VerifyOptions, VerifyReport,
};
use larder_testing::places;
use larder_testing::places::{everywhere, everywhere_loose};
use larder_testing::{noise, read_to_end};

const CHUNK: u64 = 4096;

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

/// A snapshot with an image of these chunks, a stream, a blob and a log. Each chunk is noise of its seed.
pub(crate) async fn back_up(store: &Datastore, name: &str, seeds: &[u64]) -> SnapshotReader {
    try_back_up(store, name, seeds).await.unwrap()
}

async fn try_back_up(store: &Datastore, name: &str, seeds: &[u64]) -> Result<SnapshotReader> {
    let backup = store.backup(&group(name)).begin().await?;
    let bytes = contents(seeds);
    let size = bytes.len() as u64;
    backup.image("disk.img", Cursor::new(bytes), size).chunk_bytes(CHUNK).await?;
    backup.stream("text.bin", Cursor::new(format!("text of {seeds:?} ").repeat(50).into_bytes())).await?;
    backup.blob("app.conf", format!("{seeds:?}")).await?;
    backup.client_log("log").await?;
    backup.finish().await.map(|finished| finished.snapshot)
}

fn contents(seeds: &[u64]) -> Vec<u8> {
    seeds.iter().map(|seed| noise(*seed, 4096)).collect::<Vec<_>>().concat()
}

/// The path of a chunk that [`back_up`] makes of this seed.
fn chunk(seed: u64) -> String {
    Key::Chunk(digest(seed)).to_string()
}

pub(crate) fn digest(seed: u64) -> Digest {
    Digest::of(&noise(seed, 4096))
}

async fn run(store: &Datastore, options: VerifyOptions) -> VerifyReport {
    try_run(store, options).await.unwrap()
}

async fn try_run(store: &Datastore, options: VerifyOptions) -> Result<VerifyReport> {
    verify::plan(store, &Scope::Store, options).await?.execute().await
}

pub(crate) async fn state(store: &Datastore, name: &SnapshotName) -> Option<VerifyResult> {
    let snapshot = store.snapshot(name).await.unwrap();
    snapshot.manifest().verify_state().unwrap().map(|state| state.state)
}

async fn restored(snapshot: &SnapshotReader) -> Vec<u8> {
    read_to_end(&mut snapshot.archive("disk.img.fidx").await.unwrap()).await.unwrap()
}

pub(crate) fn flipped(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    bytes
}

/// A store in memory, with something around it.
pub(crate) struct Around {
    pub(crate) faults: Arc<FaultBackend>,
    pub(crate) memory: Arc<dyn Backend>,
    pub(crate) record: Arc<RecordingBackend>,
    pub(crate) store: Datastore,
}

impl Around {
    async fn new() -> Self {
        Self::on(Arc::new(ThreadRuntime::new())).await
    }

    pub(crate) async fn on(runtime: Arc<dyn Runtime>) -> Self {
        let memory: Arc<dyn Backend> = Arc::new(MemoryBackend::new(runtime));
        let faults = Arc::new(FaultBackend::new(Arc::clone(&memory)));
        let record = Arc::new(RecordingBackend::new(Arc::<FaultBackend>::clone(&faults)));
        let store =
            Datastore::create(Arc::<RecordingBackend>::clone(&record), Options::default()).await.unwrap();
        Self { faults, memory, record, store }
    }

    pub(crate) async fn spoil(&self, key: &Key, change: impl Fn(&[u8]) -> Vec<u8>) {
        let bytes = change(&self.memory.get(key, u64::MAX).await.unwrap().bytes);
        self.memory.put(key, bytes.into(), PutMode::Replace).await.unwrap();
    }

    pub(crate) async fn remove(&self, key: Key) {
        self.memory.delete(&[Removal::any(key)]).await.unwrap().remove(0).unwrap();
    }

    /// All objects, with their contents.
    pub(crate) async fn objects(&self) -> Vec<(String, Bytes)> {
        let mut found = Vec::new();
        for prefix in [Prefix::Chunks, Prefix::Namespace(larder::format::name::Namespace::root())] {
            for entry in list_all(self.memory.as_ref(), &ListQuery::all(prefix)).await.unwrap().into_entries()
            {
                let ListEntry::Object(info) = entry else { continue };
                let bytes = self.memory.get(&info.key, u64::MAX).await.unwrap().bytes;
                found.push((info.key.to_string(), bytes));
            }
        }
        found
    }

    /// Keys that were read since the last look, chunks only.
    pub(crate) fn chunks_read(&self) -> Vec<Digest> {
        let calls = self.record.calls();
        self.record.reset();
        let gets = calls.iter().filter(|call| call.method == Method::Get);
        let keys = gets.flat_map(|call| &call.keys);
        keys.filter_map(|key| if let Key::Chunk(digest) = key { Some(*digest) } else { None }).collect()
    }
}

#[test]
fn every_mode_finds_a_sound_store_sound() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let one = back_up(&store, "vm/1", &[1, 2, 3]).await.name().clone();
            let two = back_up(&store, "vm/1", &[1, 2, 4, 4]).await.name().clone();
            store.create_namespace(&"a".parse().unwrap()).await.unwrap();
            let three = back_up(&store, "ns/a/host/x", &[1, 5]).await.name().clone();
            let chunks = 5 + 3;
            for mode in
                [VerifyMode::Presence, VerifyMode::Sample(Sample::default().requests(1000)), VerifyMode::Full]
            {
                let options = VerifyOptions::default().mode(mode);
                let mut plan = verify::plan(&store, &Scope::Store, options).await.unwrap();
                let estimate = *plan.estimate();
                assert_eq!(plan.snapshots().collect::<Vec<_>>(), [&two, &one, &three]);
                assert_eq!((estimate.snapshots, estimate.references), (3, 9 + 3));
                let report = plan.execute().await.unwrap();
                assert!(report.is_clean(), "{mode:?}: {report:?}");
                let counts = report.chunks;
                assert_eq!((counts.digest + counts.presence, counts.checksum), (chunks, 0), "{mode:?}");
                assert!(report.bytes <= estimate.bytes, "{mode:?}: {report:?} {estimate:?}");
                assert!(estimate.chunks >= chunks);
                if mode == VerifyMode::Full {
                    assert!(report.requests <= estimate.requests, "{report:?} {estimate:?}");
                    assert_eq!((counts.presence, report.sound), (0, 3));
                    // Three manifests, six indexes, three blobs and three logs.
                    assert_eq!(report.objects, 15);
                }
                for name in [&one, &two, &three] {
                    let wanted = (mode == VerifyMode::Full).then_some(VerifyResult::Ok);
                    assert_eq!(state(&store, name).await, wanted, "only a full run says so: {mode:?}");
                }
            }
            for (scope, snapshots) in [
                (Scope::Group(group("vm/1")), 2),
                (Scope::Namespace("a".parse().unwrap()), 1),
                (Scope::Namespace(Namespace::root()), 2),
                (Scope::Tree(Namespace::root()), 3),
                (Scope::Snapshots(vec![three.clone(), two.clone(), three.clone()]), 2),
                (Scope::Snapshots(vec![one.clone()]), 1),
            ] {
                let mut plan = verify::plan(&store, &scope, VerifyOptions::default()).await.unwrap();
                assert_eq!(plan.snapshots().count(), snapshots);
                assert!(plan.execute().await.unwrap().is_clean());
            }
            let upid = store.snapshot(&one).await.unwrap().manifest().verify_state().unwrap().unwrap().upid;
            assert!(upid.to_string().contains(":verify_snapshot:store\\x3avm-1-"), "{upid}");
        })
    });
}

#[test]
fn a_full_run_of_a_small_store_lists_no_chunks_and_knows_its_cost() {
    block_on(async {
        let around = Around::new().await;
        back_up(&around.store, "vm/1", &[1, 2, 3]).await;
        back_up(&around.store, "vm/1", &[1, 2, 4, 4]).await;
        around.record.reset();
        let mut plan = verify::plan(&around.store, &Scope::Store, VerifyOptions::default()).await.unwrap();
        let estimate = *plan.estimate();
        // Four of the images and one of each stream.
        assert_eq!((estimate.chunks, estimate.references), (6, 9));
        let report = plan.execute().await.unwrap();
        let lists = around.record.calls().into_iter().filter(|call| call.method == Method::List);
        assert_eq!(lists.filter(|call| call.prefix == Some(Prefix::Chunks)).count(), 0);
        assert_eq!((report.chunks.digest, report.bytes), (6, estimate.bytes), "{estimate:?}");
        // An index that cannot be read says nothing about its chunks: they are listed.
        let snapshot = around.store.latest_snapshot(&group("vm/1")).await.unwrap().unwrap().name().clone();
        around.spoil(&Key::Archive(snapshot, "disk.img.fidx".parse().unwrap()), flipped).await;
        around.record.reset();
        let plan = verify::plan(&around.store, &Scope::Store, VerifyOptions::default()).await.unwrap();
        assert_eq!(plan.estimate().chunks, 6);
        let lists = around.record.calls().into_iter().filter(|call| call.method == Method::List);
        assert!(lists.filter(|call| call.prefix == Some(Prefix::Chunks)).count() > 0);
    });
}

#[test]
fn any_damage_is_found_reported_and_healed_by_the_next_backup() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let one = back_up(&store, "vm/1", &[1, 2, 3]).await.name().clone();
            let two = back_up(&store, "vm/1", &[1, 2, 4]).await.name().clone();
            let well = back_up(&store, "vm/2", &[5]).await.name().clone();
            let bad = place.read(&chunk(2)).await.unwrap();
            place.write(&chunk(2), flipped(&bad)).await;
            place.remove(&chunk(3)).await;
            place.write(&chunk(4), Bytes::new()).await;
            let emptied = place.read(&chunk(4)).await.unwrap();
            let store = place.opened_after(store).await;
            let report = run(&store, VerifyOptions::default()).await;
            assert!(!report.is_clean());
            assert_eq!(report.incomplete, None);
            let found: Vec<_> = report
                .damaged
                .iter()
                .map(|damaged| (&damaged.name, damaged.archives[0].corrupt, damaged.archives[0].missing))
                .collect();
            assert_eq!(found, [(&one, 1, 1), (&two, 2, 0)]);
            assert!(report.damaged.iter().all(|damaged| damaged.archives.len() == 1));
            assert_eq!((report.chunks.corrupt, report.chunks.missing, report.quarantined), (2, 1, 2));
            assert_eq!((report.sound, report.unrepaired), (1, 0));
            assert_eq!(report.damaged[1].archives[0].digests.len(), 2);
            for (name, wanted) in
                [(&one, VerifyResult::Failed), (&two, VerifyResult::Failed), (&well, VerifyResult::Ok)]
            {
                assert_eq!(state(&store, name).await, Some(wanted));
            }
            // The quarantined copies have the bytes of the damaged objects.
            assert_eq!(place.read(&format!("{}.0.bad", chunk(2))).await.unwrap(), flipped(&bad));
            assert_eq!(place.read(&format!("{}.0.bad", chunk(4))).await.unwrap(), emptied);
            assert_eq!(place.read(&chunk(2)).await, None);
            // H22, H23: the next backup of the same data stores it, by this opening or another.
            back_up(&store, "vm/1", &[1, 2, 3]).await;
            back_up(&place.opened().await, "vm/3", &[4]).await;
            let report = run(&store, VerifyOptions::default()).await;
            assert!(report.is_clean(), "{report:?}");
            assert_eq!(state(&store, &one).await, Some(VerifyResult::Ok));
            assert_eq!(restored(&store.snapshot(&two).await.unwrap()).await, contents(&[1, 2, 4]));
            drop(store);
        })
    });
}

/// Proves H25.
#[test]
fn quarantined_copies_are_numbered_and_not_taken_for_chunks() {
    everywhere_loose(|place| {
        Box::pin(async move {
            let store = place.store().await;
            back_up(&store, "vm/1", &[1]).await;
            let good = place.read(&chunk(1)).await.unwrap();
            for round in 0..12_usize {
                let mut bad = good.to_vec();
                bad[100] ^= u8::try_from(round + 1).unwrap();
                place.write(&chunk(1), bad.clone()).await;
                let report = run(&store, VerifyOptions::default()).await;
                assert_eq!(report.quarantined, 1, "{report:?}");
                let number = round.min(9);
                assert_eq!(place.read(&format!("{}.{number}.bad", chunk(1))).await.unwrap(), bad);
                let report = run(&store, VerifyOptions::default().mode(VerifyMode::Presence)).await;
                assert_eq!((report.chunks.missing, report.chunks.presence), (1, 1), "it is not there");
                back_up(&store, "vm/1", &[1]).await;
                assert_eq!(place.read(&chunk(1)).await.unwrap(), good);
            }
        })
    });
}

/// Proves H98.
#[test]
fn a_good_quarantined_chunk_is_reinstated() {
    everywhere_loose(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let name = back_up(&store, "vm/1", &[1, 2]).await.name().clone();
            let good = place.read(&chunk(1)).await.unwrap();
            place.write(&format!("{}.0.bad", chunk(1)), flipped(&good)).await;
            place.write(&format!("{}.3.bad", chunk(1)), good.clone()).await;
            place.remove(&chunk(1)).await;
            let report = run(&store, VerifyOptions::default().repair(Repair::Report)).await;
            assert_eq!((report.chunks.missing, report.reinstated), (1, 0));
            assert_eq!(state(&store, &name).await, Some(VerifyResult::Failed));
            for mode in [VerifyMode::Presence, VerifyMode::Full] {
                let report = run(&store, VerifyOptions::default().mode(mode)).await;
                assert_eq!((report.reinstated, report.is_clean()), (1, true), "{report:?}");
                assert_eq!(place.read(&chunk(1)).await.unwrap(), good);
                if mode == VerifyMode::Presence {
                    place.remove(&chunk(1)).await;
                }
            }
            assert_eq!(state(&store, &name).await, Some(VerifyResult::Ok));
        })
    });
}

#[test]
fn a_quarantined_copy_that_cannot_be_read_counts_as_not_repaired() {
    block_on(async {
        let memory: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())));
        let faults = Arc::new(FaultBackend::new(Arc::clone(&memory)));
        let store = Datastore::create(Arc::<FaultBackend>::clone(&faults), Options::default()).await.unwrap();
        back_up(&store, "vm/1", &[1, 2]).await;
        let key = Key::from_str(&chunk(1)).unwrap();
        let Key::Chunk(digest) = key else { panic!("{key}") };
        let good = memory.get(&key, u64::MAX).await.unwrap().bytes;
        memory.put(&Key::Quarantined(digest, 0), good, PutMode::Create).await.unwrap();
        memory.delete(&[Removal::any(key)]).await.unwrap().remove(0).unwrap();
        let fails = Rule::on(Method::Get, Action::FailBefore(ErrorKind::Unavailable));
        faults.add(fails.keys(|key| matches!(key, Key::Quarantined(..))));
        let report = run(&store, VerifyOptions::default()).await;
        assert_eq!((report.chunks.missing, report.reinstated, report.unrepaired), (1, 0, 1), "{report:?}");
        faults.clear();
        let report = run(&store, VerifyOptions::default()).await;
        assert_eq!((report.reinstated, report.unrepaired, report.is_clean()), (1, 0, true), "{report:?}");
    });
}

#[test]
fn blobs_indexes_manifests_and_logs_are_verified() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let mut names = Vec::new();
            for seed in 0..8 {
                names.push(back_up(&store, "vm/1", &[seed]).await.name().clone());
            }
            let spoiled = |place: Arc<places::Place>, number: usize, file: &'static str| {
                let path = format!("{}/{file}", names[number]);
                async move {
                    let bytes = place.read(&path).await.unwrap();
                    place.write(&path, flipped(&bytes)).await;
                }
            };
            spoiled(Arc::clone(&place), 0, "app.conf.blob").await;
            place.remove(&format!("{}/app.conf.blob", names[1])).await;
            spoiled(Arc::clone(&place), 2, "disk.img.fidx").await;
            place.remove(&format!("{}/text.bin.didx", names[3])).await;
            spoiled(Arc::clone(&place), 4, "index.json.blob").await;
            spoiled(Arc::clone(&place), 5, "client.log.blob").await;
            // A good blob that is another one.
            let other = place.read(&format!("{}/app.conf.blob", names[7])).await.unwrap();
            place.write(&format!("{}/app.conf.blob", names[6]), other).await;
            let before = place.read(&format!("{}/index.json.blob", names[4])).await;
            let report = run(&store, VerifyOptions::default()).await;
            let faults = |number: usize| {
                let damaged = report.damaged.iter().find(|damaged| damaged.name == names[number])?;
                let archive = damaged.archives.first();
                Some((damaged.manifest, archive.map(|archive| (archive.name.as_str(), archive.fault))))
            };
            let (corrupt, missing) = (Some(ObjectFault::Corrupt), Some(ObjectFault::Missing));
            assert_eq!(faults(0), Some((None, Some(("app.conf.blob", corrupt)))));
            assert_eq!(faults(1), Some((None, Some(("app.conf.blob", missing)))));
            assert_eq!(faults(2), Some((None, Some(("disk.img.fidx", corrupt)))));
            assert_eq!(faults(3), Some((None, Some(("text.bin.didx", missing)))));
            assert_eq!(faults(4), Some((corrupt, None)));
            assert_eq!(faults(5), None);
            assert_eq!(faults(6), Some((None, Some(("app.conf.blob", corrupt)))));
            assert_eq!(faults(7), None);
            assert_eq!(report.damaged_logs, names[5..6]);
            assert_eq!((report.damaged.len(), report.chunks.corrupt), (6, 0));
            assert_eq!(place.read(&format!("{}/index.json.blob", names[4])).await, before, "left as it is");
            for number in [0, 1, 2, 3, 6] {
                assert_eq!(state(&store, &names[number]).await, Some(VerifyResult::Failed), "{number}");
            }
            assert_eq!(state(&store, &names[5]).await, Some(VerifyResult::Ok), "a log is no part of it");
        })
    });
}

#[test]
fn a_snapshot_being_written_or_deleted_is_skipped() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let one = back_up(&store, "vm/1", &[1]).await.name().clone();
            let benchmark = back_up(&store, "host/benchmark", &[2]).await.name().clone();
            let writer = store.backup(&group("vm/2")).begin().await.unwrap();
            writer.blob("app.conf", "text").await.unwrap();
            // As a deletion does. In a bucket it excludes other tasks of this process.
            let held = store.snapshot(&one).await.unwrap();
            let report = run(&store, VerifyOptions::default()).await;
            assert!(report.is_clean(), "readers do not mind: {report:?}");
            drop(held);
            assert_eq!(state(&store, &benchmark).await, None, "left out, as PBS does");
            let scope = Scope::Group(group("host/benchmark"));
            let mut plan = verify::plan(&store, &scope, VerifyOptions::default()).await.unwrap();
            assert!(plan.execute().await.unwrap().is_clean());
            assert_eq!(state(&store, &benchmark).await, Some(VerifyResult::Ok), "unless it is meant");
            writer.abort().await.unwrap();
            let missing = Scope::Snapshots(vec!["vm/9/2025-07-14T14:20:02Z".parse().unwrap()]);
            let refused = verify::plan(&store, &missing, VerifyOptions::default()).await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::NotFound);
        })
    });
}

#[test]
fn a_locked_snapshot_is_skipped_and_reported() {
    block_on(async {
        let around = Around::new().await;
        let one = back_up(&around.store, "vm/1", &[1]).await.name().clone();
        let two = back_up(&around.store, "vm/1", &[2]).await.name().clone();
        let scope = LockScope::Snapshot(one.clone());
        let held = around.memory.lock(&scope, LockMode::Exclusive).await.unwrap();
        let report = run(&around.store, VerifyOptions::default()).await;
        assert_eq!(report.skipped.len(), 1);
        assert_eq!((&report.skipped[0].name, report.skipped[0].reason), (&one, SkipReason::Busy));
        assert!(!report.is_clean());
        assert_eq!(report.sound, 1);
        drop(held);
        assert_eq!(state(&around.store, &two).await, Some(VerifyResult::Ok));
        assert_eq!(state(&around.store, &one).await, None);
    });
}

/// Proves H80.
#[test]
fn each_chunk_is_read_once_regardless_of_its_references() {
    block_on(async {
        let around = Around::new().await;
        for _ in 0..5 {
            back_up(&around.store, "vm/1", &[1, 2, 1, 3, 1, 1]).await;
        }
        around.record.reset();
        let report = run(&around.store, VerifyOptions::default()).await;
        let mut read = around.chunks_read();
        read.sort_unstable();
        let distinct: BTreeSet<_> = read.iter().copied().collect();
        assert_eq!(read.len(), distinct.len());
        assert_eq!(report.chunks.digest, distinct.len() as u64);
        assert_eq!(distinct.len(), 4);
        // A corrupt one is reported for each of them, and read no more often.
        around.spoil(&Key::Chunk(digest(3)), flipped).await;
        around.record.reset();
        let options = VerifyOptions::default().repair(Repair::Report).refetches(2);
        let report = run(&around.store, options).await;
        assert_eq!(around.chunks_read().iter().filter(|read| **read == digest(3)).count(), 3);
        assert_eq!((report.damaged.len(), report.chunks.corrupt), (5, 1));
    });
}

/// Proves H69, H103.
#[test]
fn presence_mode_reads_no_chunk_and_finds_missing_ones() {
    block_on(async {
        let around = Around::new().await;
        let one = back_up(&around.store, "vm/1", &[1, 2]).await.name().clone();
        let two = back_up(&around.store, "vm/1", &[2, 3]).await.name().clone();
        run(&around.store, VerifyOptions::default()).await;
        around.remove(Key::Chunk(digest(1))).await;
        around.record.reset();
        let report = run(&around.store, VerifyOptions::default().mode(VerifyMode::Presence)).await;
        assert_eq!(around.chunks_read(), []);
        assert_eq!((report.chunks.missing, report.damaged.len()), (1, 1));
        assert_eq!(report.damaged[0].archives[0].digests, [digest(1)]);
        assert_eq!(state(&around.store, &one).await, Some(VerifyResult::Failed));
        assert_eq!(state(&around.store, &two).await, Some(VerifyResult::Ok));
        assert_eq!(report.sound, 1);
    });
}

/// Proves H103.
#[test]
fn chunks_of_recently_verified_snapshots_are_still_checked_for_presence() {
    block_on(async {
        let around = Around::new().await;
        let recently = || VerifyOptions::default().skip_verified_within(Duration::from_hours(1));
        let old = back_up(&around.store, "vm/1", &[1, 2]).await.name().clone();
        run(&around.store, VerifyOptions::default()).await;
        around.record.reset();
        let report = run(&around.store, recently()).await;
        assert_eq!((around.chunks_read().len(), report.chunks.presence), (0, 3));
        assert_eq!(report.skipped[0].reason, SkipReason::VerifiedBefore);
        assert!(report.is_clean());
        // It is gone right after it was verified.
        around.remove(Key::Chunk(digest(1))).await;
        let report = run(&around.store, recently()).await;
        assert_eq!((report.chunks.missing, report.damaged.len()), (1, 1));
        assert_eq!(state(&around.store, &old).await, Some(VerifyResult::Failed));
        // A finding in another snapshot counts for those that were not read again, in any order.
        back_up(&around.store, "vm/1", &[1, 2]).await;
        run(&around.store, VerifyOptions::default()).await;
        let newest = back_up(&around.store, "ct/1", &[2, 7]).await.name().clone();
        let last = back_up(&around.store, "vm/2", &[2, 8]).await.name().clone();
        around.spoil(&Key::Chunk(digest(2)), flipped).await;
        let report = run(&around.store, recently()).await;
        assert_eq!((report.chunks.corrupt, report.quarantined), (1, 1));
        let damaged: Vec<_> = report.damaged.iter().map(|damaged| damaged.name.group().to_string()).collect();
        assert_eq!(damaged, ["ct/1", "vm/1", "vm/1", "vm/2"]);
        for name in [&newest, &last, &old] {
            assert_eq!(state(&around.store, name).await, Some(VerifyResult::Failed), "{name}");
        }
    });
}

/// Proves H94, H96.
#[test]
fn unreachable_chunks_change_no_verify_state() {
    block_on(async {
        let around = Around::new().await;
        let name = back_up(&around.store, "vm/1", &[1, 2, 3]).await.name().clone();
        let before = around.objects().await;
        let kinds = [ErrorKind::Unavailable, ErrorKind::Denied, ErrorKind::Internal, ErrorKind::Busy];
        let actions = kinds
            .iter()
            .map(|kind| Action::FailBefore(*kind))
            .chain([Action::Cut, Action::FailAfter(ErrorKind::Unavailable)]);
        for action in actions {
            for nth in 1..=4 {
                around.faults.clear();
                around
                    .faults
                    .add(Rule::on(Method::Get, action).keys(|key| matches!(key, Key::Chunk(_))).nth(nth));
                let fired = around.faults.fired();
                let report = run(&around.store, VerifyOptions::default()).await;
                assert_eq!(around.faults.fired(), fired + 1);
                assert_eq!(
                    (report.chunks.unreachable, report.incomplete),
                    (1, Some(Incomplete::Unreachable))
                );
                assert_eq!((report.damaged.len(), report.quarantined, report.sound), (0, 0, 0));
                assert!(!report.is_clean());
            }
        }
        for key in [Key::Manifest(name.clone()), Key::Archive(name.clone(), "disk.img.fidx".parse().unwrap())]
        {
            around.faults.clear();
            let failing = Action::FailBefore(ErrorKind::Unavailable);
            around.faults.add(Rule::on(Method::Get, failing).keys(move |found| *found == key));
            let report = run(&around.store, VerifyOptions::default()).await;
            assert_eq!((report.incomplete, report.damaged.len()), (Some(Incomplete::Unreachable), 0));
        }
        assert!(around.objects().await == before, "not even a state is written");
        around.faults.clear();
        assert!(run(&around.store, VerifyOptions::default()).await.is_clean());
        assert_eq!(state(&around.store, &name).await, Some(VerifyResult::Ok));
    });
}

/// Proves H94.
#[test]
fn a_verification_of_a_silent_store_ends() {
    block_on(async {
        let around = Around::new().await;
        back_up(&around.store, "vm/1", &(0..100).collect::<Vec<_>>()).await;
        let failing = Action::FailBefore(ErrorKind::Unavailable);
        around.faults.add(Rule::on(Method::Get, failing).keys(|key| matches!(key, Key::Chunk(_))));
        let fired = around.faults.fired();
        let report = run(&around.store, VerifyOptions::default().missing_limit(10)).await;
        assert_eq!(report.incomplete, Some(Incomplete::Unreachable));
        assert!(around.faults.fired() - fired < 30);
    });
}

/// Proves H95.
#[test]
fn too_many_missing_chunks_stop_the_verification_without_a_verdict() {
    block_on(async {
        let around = Around::new().await;
        for first in 0..40 {
            back_up(&around.store, "vm/1", &[10 * first, 10 * first + 1]).await;
        }
        for entry in
            list_all(around.memory.as_ref(), &ListQuery::all(Prefix::Chunks)).await.unwrap().into_entries()
        {
            let ListEntry::Object(info) = entry else { continue };
            around.remove(info.key).await;
        }
        let before = around.objects().await;
        for mode in [VerifyMode::Full, VerifyMode::Presence] {
            // Each snapshot lacks fewer than the limit.
            let options = VerifyOptions::default().missing_limit(20).mode(mode);
            let error = try_run(&around.store, options).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unavailable);
            assert!(around.objects().await == before, "nothing was written: {mode:?}");
        }
        let report = run(&around.store, VerifyOptions::default().missing_limit(1000)).await;
        assert_eq!((report.damaged.len(), report.chunks.missing), (40, 120));
    });
}

/// Proves H95: a snapshot of blobs alone does not show that the store has chunks.
#[test]
fn a_snapshot_without_chunks_is_no_evidence_for_missing_ones() {
    block_on(async {
        let around = Around::new().await;
        back_up(&around.store, "vm/1", &[1]).await;
        for number in 2..6 {
            let backup = around.store.backup(&group(&format!("vm/{number}"))).begin().await.unwrap();
            backup.blob("app.conf", "blob").await.unwrap();
            drop(backup.finish().await.unwrap());
        }
        back_up(&around.store, "vm/6", &(10..200).collect::<Vec<_>>()).await;
        remove_chunks_but(&around, &[]).await;
        let options = || VerifyOptions::default().recording(Recording::On);
        assert_eq!(try_run(&around.store, options()).await.unwrap_err().kind(), ErrorKind::Unavailable);
        let latest = around.store.latest(&group("vm/1")).await.unwrap().unwrap();
        assert_eq!(state(&around.store, &latest).await, None);
    });
}

async fn remove_chunks_but(around: &Around, kept: &[String]) {
    let listed = list_all(around.memory.as_ref(), &ListQuery::all(Prefix::Chunks)).await.unwrap();
    for entry in listed.into_entries() {
        let ListEntry::Object(info) = entry else { continue };
        if !kept.contains(&info.key.to_string()) {
            around.remove(info.key).await;
        }
    }
}

/// Proves H95: before many snapshots count as damaged, the store has to show a chunk that it had.
#[test]
fn many_missing_chunks_are_recorded_only_while_a_good_chunk_is_there() {
    #[derive(Debug)]
    struct Unmount(Arc<dyn Backend>, SnapshotName, bool);
    impl Observer<VerifyEvent> for Unmount {
        fn on_event(&self, event: &VerifyEvent) {
            let VerifyEvent::SnapshotFinished { snapshot, .. } = event else { return };
            if *snapshot != self.1 || !self.2 {
                return;
            }
            let query = ListQuery::all(Prefix::Chunks);
            let listed = list_all(self.0.as_ref(), &query).now_or_never().unwrap().unwrap();
            for entry in listed.into_entries() {
                let ListEntry::Object(info) = entry else { continue };
                let _ = self.0.delete(&[Removal::any(info.key)]).now_or_never().unwrap().unwrap();
            }
        }
    }
    for is_unmounted in [false, true] {
        block_on(async {
            let around = Around::new().await;
            let good = back_up(&around.store, "vm/0", &[0]).await.name().clone();
            let listed = list_all(around.memory.as_ref(), &ListQuery::all(Prefix::Chunks)).await.unwrap();
            let kept: Vec<_> = listed.entries().iter().map(ListEntry::path).collect();
            for seed in 1..41 {
                back_up(&around.store, "vm/1", &[seed]).await;
            }
            remove_chunks_but(&around, &kept).await;
            let observer = Arc::new(Unmount(Arc::clone(&around.memory), good, is_unmounted));
            let options = VerifyOptions::default().missing_limit(1000).observer(observer);
            let report = try_run(&around.store, options).await;
            let damaged = if is_unmounted { Err(ErrorKind::Unavailable) } else { Ok(40) };
            assert_eq!(report.map(|report| report.damaged.len()).map_err(|error| error.kind()), damaged);
            let states = around.store.snapshots(&group("vm/1")).await.unwrap();
            assert_eq!(state(&around.store, &states[0].name).await.is_some(), !is_unmounted);
        });
    }
}

/// Proves H102.
#[test]
fn an_aborted_verification_marks_no_snapshot_as_verified() {
    #[derive(Debug)]
    struct After(AtomicU64, Arc<AtomicBool>);
    impl Observer<VerifyEvent> for After {
        fn on_event(&self, event: &VerifyEvent) {
            if matches!(event, VerifyEvent::ChunkChecked { .. }) && self.0.fetch_sub(1, Ordering::SeqCst) == 1
            {
                self.1.store(true, Ordering::SeqCst);
            }
        }
    }
    block_on(async {
        let around = Around::new().await;
        let one = back_up(&around.store, "vm/1", &(0..10).collect::<Vec<_>>()).await.name().clone();
        let two = back_up(&around.store, "vm/1", &(10..20).collect::<Vec<_>>()).await.name().clone();
        let clean = around.objects().await;
        for after in 0..=22 {
            let abort = Arc::new(AtomicBool::new(after == 0));
            let observer = Arc::new(After(AtomicU64::new(after), Arc::clone(&abort)));
            let options = VerifyOptions::default().abort(abort).observer(observer).concurrency(1);
            let report = run(&around.store, options).await;
            let states = [state(&around.store, &two).await, state(&around.store, &one).await];
            if report.incomplete.is_none() {
                assert_eq!(report.sound, 2, "after {after}");
                continue;
            }
            assert_eq!(report.incomplete, Some(Incomplete::Aborted));
            let well = states.iter().filter(|state| **state == Some(VerifyResult::Ok)).count() as u64;
            assert_eq!(well, report.sound, "after {after}: {states:?}");
            assert!(report.sound < 2 && report.chunks.digest <= 22, "after {after}: {report:?}");
            assert!(report.chunks.digest >= after);
            for (path, bytes) in &clean {
                around
                    .memory
                    .put(&Key::from_str(path).unwrap(), bytes.clone(), PutMode::Replace)
                    .await
                    .unwrap();
            }
        }
    });
}

/// Proves H104, H187.
#[test]
fn samples_stay_within_their_budget_and_cover_all_chunks_in_turn() {
    block_on(async {
        let around = Around::new().await;
        for first in 0..4 {
            back_up(&around.store, "vm/1", &(first * 50..first * 50 + 60).collect::<Vec<_>>()).await;
        }
        let everything: BTreeSet<_> = {
            around.record.reset();
            run(&around.store, VerifyOptions::default()).await;
            around.chunks_read().into_iter().collect()
        };
        let metadata = 4 * 3;
        for (requests, bytes) in
            [(Some(2 * metadata + 30), None), (None, Some(200_000_u64)), (Some(60), Some(150_000))]
        {
            let (mut rotation, mut seen, mut runs) = (0, BTreeSet::new(), 0);
            loop {
                let mut sample = Sample::default().rotation(rotation);
                sample = requests.map_or(sample, |requests| sample.requests(requests));
                sample = bytes.map_or(sample, |bytes| sample.bytes(bytes));
                around.record.reset();
                let options = VerifyOptions::default().mode(VerifyMode::Sample(sample)).concurrency(4);
                let before = around.record.counts();
                let mut plan = verify::plan(&around.store, &Scope::Store, options).await.unwrap();
                assert!(requests.is_none_or(|most| plan.estimate().requests <= most));
                let report = plan.execute().await.unwrap();
                let used = around.record.counts();
                let gets = used.gets - before.gets;
                assert!(requests.is_none_or(|most| gets <= most && report.requests <= most), "{report:?}");
                assert!(bytes.is_none_or(|most| used.bytes_read - before.bytes_read < most + 4 * 5000));
                assert!(gets > metadata, "something was checked");
                let read = around.chunks_read();
                assert!(read.iter().all(|digest| seen.insert(*digest)) || runs > 0);
                runs += 1;
                let next = report.next_rotation.unwrap();
                let around_once = next <= rotation;
                rotation = next;
                assert_eq!(report.sound, 0);
                if around_once || seen.len() == everything.len() {
                    break;
                }
                assert!(runs < 100);
            }
            assert_eq!(seen, everything);
            assert!(runs > 3, "{runs} runs");
        }
    });
}

/// Proves H104.
#[test]
fn a_sample_reports_the_snapshots_of_a_corrupt_chunk() {
    block_on(async {
        let around = Around::new().await;
        let one = back_up(&around.store, "vm/1", &[1, 2]).await.name().clone();
        let two = back_up(&around.store, "vm/1", &[1, 3]).await.name().clone();
        let well = back_up(&around.store, "vm/2", &[4]).await.name().clone();
        around.spoil(&Key::Chunk(digest(1)), flipped).await;
        let sample = |requests: u64| VerifyMode::Sample(Sample::default().requests(requests));
        let report = run(&around.store, VerifyOptions::default().mode(sample(100))).await;
        let damaged: Vec<_> = report.damaged.iter().map(|damaged| damaged.name.clone()).collect();
        assert_eq!(damaged, [one.clone(), two]);
        assert_eq!((report.chunks.corrupt, report.quarantined), (1, 1));
        assert_eq!(state(&around.store, &one).await, Some(VerifyResult::Failed));
        assert_eq!(state(&around.store, &well).await, None, "a sample never says that all is well");
        // Less than the metadata alone.
        let report = run(&around.store, VerifyOptions::default().mode(sample(5))).await;
        assert_eq!((report.incomplete, report.requests), (Some(Incomplete::Budget), 5));
        // However far reads in flight exceed the budget, each finding is reported with its snapshots.
        around.spoil(&Key::Chunk(digest(3)), flipped).await;
        let sample = |bytes: u64| {
            let mode = VerifyMode::Sample(Sample::default().bytes(bytes));
            VerifyOptions::default().repair(Repair::Report).recording(Recording::Off).mode(mode)
        };
        let all = run(&around.store, sample(u64::MAX - 1)).await.bytes;
        let mut found = 0;
        for part in 0..60 {
            let report = run(&around.store, sample(all * part / 40)).await;
            let is_reported = report.damaged.iter().any(|damaged| !damaged.archives.is_empty());
            assert!(report.chunks.corrupt == 0 || is_reported, "{part}: {report:?}");
            found += report.chunks.corrupt;
        }
        assert!(found > 0);
    });
}

/// Proves H105.
#[test]
fn a_verification_with_little_memory_finds_the_same_damage() {
    block_on(async {
        let around = Around::new().await;
        let seeds: Vec<_> = (0..300).collect();
        for _ in 0..2 {
            back_up(&around.store, "vm/1", &seeds).await;
        }
        around.remove(Key::Chunk(digest(7))).await;
        // A megabyte is room for more than these; the bounds themselves are tested where they are.
        for mode in [VerifyMode::Full, VerifyMode::Presence] {
            let options = VerifyOptions::default().mode(mode).memory_bytes(1 << 20).repair(Repair::Report);
            let report = run(&around.store, options).await;
            assert_eq!((report.chunks.missing, report.damaged.len()), (1, 2));
            assert!(!report.is_memory_full);
        }
    });
}

#[test]
fn a_read_only_verification_writes_nothing() {
    block_on(async {
        let around = Around::new().await;
        let one = back_up(&around.store, "vm/1", &[1, 2, 3]).await.name().clone();
        around.spoil(&Key::Chunk(digest(1)), flipped).await;
        around.remove(Key::Chunk(digest(2))).await;
        let before = around.objects().await;
        let options = VerifyOptions::default().repair(Repair::Report).recording(Recording::Off);
        around.record.reset();
        let report = run(&around.store, options.clone()).await;
        let changes = around.record.counts();
        assert_eq!((changes.puts, changes.copies, changes.deletes), (0, 0, 0));
        assert_eq!((report.chunks.corrupt, report.chunks.missing), (1, 1));
        assert!(around.objects().await == before);
        let report = run(&around.store, options.recording(Recording::On)).await;
        assert_eq!((report.quarantined, report.damaged.len()), (0, 1));
        assert_eq!(state(&around.store, &one).await, Some(VerifyResult::Failed));
        assert!(around.memory.head(&Key::Chunk(digest(1))).await.is_ok(), "it stays where it is");
        // This process does not rely on it.
        back_up(&around.store, "vm/2", &[1, 2, 3]).await;
        assert!(run(&around.store, VerifyOptions::default()).await.is_clean());
    });
}

/// Proves H187.
#[test]
fn a_verification_reports_its_progress() {
    #[derive(Debug, Default)]
    struct Recorder(Mutex<Vec<String>>);
    impl Observer<VerifyEvent> for Recorder {
        fn on_event(&self, event: &VerifyEvent) {
            self.0.lock().unwrap().push(match event {
                VerifyEvent::ChunkChecked { finding, .. } => format!("{finding:?}"),
                VerifyEvent::SnapshotFinished { state, .. } => format!("finished {state:?}"),
                VerifyEvent::SnapshotStarted { snapshot } => format!("started {snapshot}"),
                _ => "something new".to_owned(),
            });
        }
    }
    block_on(async {
        let around = Around::new().await;
        let name = back_up(&around.store, "vm/1", &[1, 1, 2]).await.name().clone();
        around.remove(Key::Chunk(digest(2))).await;
        let events = Arc::new(Recorder::default());
        run(&around.store, VerifyOptions::default().observer(Arc::<Recorder>::clone(&events)).concurrency(1))
            .await;
        let events = events.0.lock().unwrap().clone();
        let wanted = ["Good(Digest)", "Missing", "Good(Digest)", "finished Some(Failed)"];
        assert_eq!(events[0], format!("started {name}"));
        assert_eq!(events[1..], wanted);
    });
}
