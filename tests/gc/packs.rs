//! Collections of garbage in packed stores: which packs vanish, which stay, and what damage leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::{Either, select};
use larder::backend::{Backend, ListEntry, ListQuery, MemoryBackend, PutMode};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::{Key, Prefix};
use larder::gc::{self, GcEnd, GcOptions, GcPlan, PackPlan};
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::listing::{ShortPages as _, list_all};
use larder::internal::packs::packed;
use larder::internal::record::Method;
use larder::internal::sim::Simulation as _;
use larder::rt::{Runtime as _, SimRuntime};
use larder::store::{Datastore, Options, PackOptions};
use larder_testing::gc_scene::{
    OnFailure, at_once, back_up, check, check_all, chunks, collected, digest, digests, group, leave,
};
use larder_testing::watched::Watched;

const DAY: Duration = Duration::from_hours(24);
pub(crate) const KINDS: [bool; 2] = [false, true];
/// Bytes of a full pack: eight chunks.
const TARGET: u64 = 34_000;

/// A packed store in memory, opened twice, as a directory is or as a bucket is.
#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) faults: Arc<FaultBackend>,
    pub(crate) memory: Arc<MemoryBackend>,
    pub(crate) other: Datastore,
    pub(crate) sim: SimRuntime,
    pub(crate) store: Datastore,
    pub(crate) watched: Arc<Watched>,
}

/// A new identity and the size of packs, past the rules of the store.
async fn rewrite_identity(backend: &dyn Backend) {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let text = backend.get(&Key::Store, 1 << 20).await.unwrap().bytes;
    let mut json: serde_json::Value = serde_json::from_slice(&text).unwrap();
    json["uuid"] =
        format!("{:032x}", (1_u128 << 64) + u128::from(MADE.fetch_add(1, Ordering::Relaxed))).into();
    json["pack_bytes"] = TARGET.into();
    backend.put(&Key::Store, json.to_string().into(), PutMode::Replace).await.unwrap();
}

pub(crate) async fn scene(sim: &SimRuntime, is_bucket: bool) -> Scene {
    let memory = Arc::new(MemoryBackend::new(Arc::new(sim.clone())).page_entries(3));
    let faults = Arc::new(FaultBackend::new(Arc::<MemoryBackend>::clone(&memory)));
    let watched = Watched::of_kind(Arc::<FaultBackend>::clone(&faults), is_bucket);
    let backend: Arc<dyn Backend> = Arc::<Watched>::clone(&watched);
    let options = Options::default().packed(PackOptions::default());
    drop(Datastore::create(Arc::clone(&backend), options).await.unwrap());
    rewrite_identity(backend.as_ref()).await;
    let store = Datastore::open(Arc::clone(&backend), Options::default()).await.unwrap();
    let other = Datastore::open(backend, Options::default()).await.unwrap();
    Scene { faults, memory, other, sim: sim.clone(), store, watched }
}

/// Runs a test in both kinds of stores.
pub(crate) fn in_both(test: impl AsyncFn(Scene)) {
    for is_bucket in KINDS {
        let _on_failure = OnFailure(format!("bucket {is_bucket}"));
        let sim = SimRuntime::new(1);
        sim.block_on(async { test(scene(&sim, is_bucket).await).await });
    }
}

impl Scene {
    /// The packs that there truly are, and their bytes.
    pub(crate) async fn packs(&self) -> BTreeMap<Key, u64> {
        let listed = list_all(self.memory.as_ref(), &ListQuery::all(Prefix::Packs)).await.unwrap();
        let pack = |entry| match entry {
            ListEntry::Object(info) => Some((info.key, info.size)),
            _ => None,
        };
        listed.into_entries().into_iter().filter_map(pack).collect()
    }

    /// The chunks that another process finds.
    pub(crate) async fn chunks(&self) -> BTreeSet<Digest> {
        chunks(packed(Arc::<MemoryBackend>::clone(&self.memory)).await.as_ref()).await
    }

    pub(crate) fn deletes_at_once(&self) -> bool {
        self.watched.capabilities().consistent_listing
    }

    pub(crate) async fn plan(&self, options: GcOptions) -> GcPlan {
        gc::plan(&self.store, options).await.unwrap()
    }

    pub(crate) async fn packs_of(&self, options: GcOptions) -> PackPlan {
        self.plan(options).await.summary().packs.unwrap()
    }

    /// As another process opens it, which knows nothing of this one.
    pub(crate) async fn opened_as_new(&self) -> Datastore {
        rewrite_identity(self.memory.as_ref()).await;
        let backend: Arc<dyn Backend> = Arc::<Watched>::clone(&self.watched);
        Datastore::open(backend, Options::default()).await.unwrap()
    }

    pub(crate) async fn delete(&self, name: &str) {
        self.store.delete_group(&group(name)).await.unwrap();
    }

    /// Flips a bit in the middle of the blob of a chunk.
    pub(crate) async fn damage(&self, number: u64) {
        let view = packed(Arc::<MemoryBackend>::clone(&self.memory)).await;
        let info = view.head(&Key::Chunk(digest(number))).await.unwrap();
        let (pack, offset) = info.version.as_str().split_once(':').unwrap();
        let (pack, offset) = (Key::Pack(pack.parse().unwrap()), offset.parse::<usize>().unwrap());
        let mut whole = self.memory.get(&pack, u64::MAX).await.unwrap().bytes.to_vec();
        whole[offset + 2000] ^= 1;
        self.memory.put(&pack, whole.into(), PutMode::Replace).await.unwrap();
    }
}

/// Makes a snapshot; its name is forgotten.
pub(crate) async fn back_up_as(store: &Datastore, name: &str, numbers: &[u64]) {
    drop(back_up(store, name, numbers).await.unwrap());
}

/// As by default, whatever the share.
pub(crate) fn patient() -> GcOptions {
    GcOptions::default().max_garbage(100).concurrency(3)
}

#[test]
fn a_pack_without_a_live_chunk_is_deleted_and_no_other() {
    in_both(async |scene| {
        back_up_as(&scene.store, "host/a", &[1, 2]).await;
        let live = scene.packs().await;
        leave(&scene.store, &[3, 4]).await;
        leave(&scene.store, &[2, 5]).await;
        let plan = scene.plan(at_once()).await;
        let packs = plan.summary().packs.unwrap();
        assert_eq!(
            (packs.packs.packs, packs.delete.packs, packs.repack.packs, packs.merge.packs),
            (3, 2, 0, 0)
        );
        drop(plan);
        let report = collected(&scene.store, at_once()).await;
        assert_eq!((report.removed.chunks, report.packs.packs), (3, 2));
        assert_eq!(scene.packs().await, live);
        assert_eq!(scene.chunks().await, digests([1, 2]));
        assert_eq!(check_all(&scene.opened_as_new().await).await, 1);
    });
}

/// Three packs with two, four and seven of eight chunks in use, and one with all.
pub(crate) async fn wasteful(scene: &Scene) {
    for (at, used) in [(0, 2), (10, 4), (20, 7), (30, 8)] {
        let all: Vec<_> = (at..at + 8).collect();
        back_up_as(&scene.store, "host/old", &all).await;
        back_up_as(&scene.store, &format!("host/{at}"), &all[..used]).await;
    }
    scene.delete("host/old").await;
    assert_eq!(scene.packs().await.len(), 4);
}

#[test]
fn packs_with_unused_bytes_are_rewritten_the_worst_first_within_the_limits() {
    in_both(async |scene| {
        wasteful(&scene).await;
        let keep = digests((0..2).chain(10..14).chain(20..27).chain(30..38));
        // 11 of 32 chunks are unused.
        assert_eq!(scene.packs_of(at_once().max_unused(40)).await.repack.packs, 0);
        // Without the worst pack 5 of 26, without the next one 1 of 22.
        assert_eq!(scene.packs_of(at_once().max_unused(30)).await.repack.packs, 1);
        assert_eq!(scene.packs_of(at_once().max_unused(15)).await.repack.packs, 2);
        let all = scene.packs_of(at_once()).await;
        assert_eq!((all.repack.packs, all.copied_bytes / 4096), (2, 6));
        let limited = scene.packs_of(at_once().max_repack_bytes(10_000)).await;
        assert_eq!((limited.repack.packs, limited.copied_bytes / 4096), (1, 2));
        assert_eq!(scene.packs_of(at_once().max_repack_bytes(0)).await.repack.packs, 0);
        let report = collected(&scene.store, at_once().max_repack_bytes(10_000)).await;
        assert_eq!((report.removed.chunks, report.packs.packs), (6, 1));
        assert_eq!(collected(&scene.store, at_once()).await.removed.chunks, 4);
        assert_eq!(scene.packs().await.len(), 4);
        let left = scene.chunks().await;
        assert!(keep.is_subset(&left) && left.len() == keep.len() + 1);
        let report = collected(&scene.store, at_once()).await;
        assert_eq!((report.removed.chunks, report.packs.packs), (0, 0));
        assert_eq!(check_all(&scene.opened_as_new().await).await, 4);
    });
}

#[test]
fn what_a_pack_has_beside_the_blobs_of_chunks_in_use_is_not_unused() {
    in_both(async |scene| {
        let backup = scene.store.backup(&group("host/small")).begin().await.unwrap();
        for number in 0..5_u64 {
            let contents = Digest::of(&number.to_le_bytes());
            backup.stream(format!("{number}.bin"), &contents.as_bytes()[..]).await.unwrap();
        }
        drop(backup.finish().await.unwrap());
        let packs = scene.packs_of(at_once()).await;
        assert_eq!((packs.packs.packs, packs.unused_bytes, packs.repack.packs), (1, 0, 0));
        leave(&scene.store, &[1]).await;
        assert!(scene.packs_of(at_once()).await.unused_bytes > 4096);
    });
}

#[test]
fn small_packs_are_merged_once_they_fill_a_pack() {
    in_both(async |scene| {
        for number in 0..7 {
            back_up_as(&scene.store, &format!("host/{number}"), &[number]).await;
        }
        assert_eq!(scene.packs_of(at_once()).await.merge.packs, 0);
        for number in 7..9 {
            back_up_as(&scene.store, &format!("host/{number}"), &[number]).await;
        }
        let packs = scene.packs_of(at_once()).await;
        assert_eq!((packs.merge.packs, packs.merge.gets, packs.merge.puts), (9, 9, 4));
        let report = collected(&scene.store, at_once()).await;
        assert_eq!((report.removed.chunks, report.packs.packs), (0, 9));
        // A pack may be a little longer than its target.
        assert!(scene.packs().await.len() <= 2);
        assert_eq!(scene.chunks().await, digests(0..9));
        assert_eq!(collected(&scene.store, at_once()).await.packs.packs, 0);
        assert_eq!(check_all(&scene.opened_as_new().await).await, 9);
    });
}

#[test]
fn packs_that_are_to_be_kept_stay_until_they_are_old_enough() {
    in_both(async |scene| {
        leave(&scene.store, &[1, 2]).await;
        scene.sim.sleep(10 * DAY).await;
        back_up_as(&scene.store, "host/a", &[3]).await;
        let packs = scene.packs_of(at_once().keep_packs(30 * DAY)).await;
        assert_eq!((packs.delete.packs, packs.leave.kept.packs), (0, 2));
        assert_eq!(collected(&scene.store, at_once().keep_packs(30 * DAY)).await.packs.packs, 0);
        scene.sim.sleep(21 * DAY).await;
        let report = collected(&scene.store, at_once().keep_packs(30 * DAY)).await;
        assert_eq!((report.packs.packs, report.removed.chunks), (1, 2));
        assert_eq!(scene.chunks().await, digests([3]));
    });
}

/// Proves H14: a pack of before the clock was set back is as old as it will ever be.
#[test]
fn packs_that_are_dated_ahead_are_not_kept_if_the_clock_was_set_back() {
    in_both(async |scene| {
        leave(&scene.store, &[1, 2]).await;
        back_up_as(&scene.store, "host/a", &[3]).await;
        scene.sim.set_clock_back(365 * DAY);
        scene.sim.sleep(2 * DAY).await;
        let keep = || at_once().keep_packs(30 * DAY);
        assert_eq!(scene.packs_of(keep()).await.leave.kept.packs, 2);
        let report = collected(&scene.store, keep().clock_was_set_back()).await;
        assert_eq!((report.packs.packs, report.removed.chunks), (1, 2));
        assert_eq!(scene.chunks().await, digests([3]));
    });
}

/// Proves H204: its chunks are those of its entries, or it would be planned and left by each collection.
#[test]
fn a_dropped_pack_with_a_damaged_directory_is_deleted() {
    in_both(async |scene| {
        back_up_as(&scene.store, "host/a", &[1]).await;
        leave(&scene.store, &[2, 3]).await;
        let before = scene.packs().await;
        let is_pack = |key: &Key| matches!(key, Key::Pack(_));
        scene.faults.add(Rule::on(Method::Delete, Action::FailBefore(ErrorKind::Unavailable)).keys(is_pack));
        let report = scene.plan(at_once()).await.confirm().execute().await.unwrap();
        assert!(matches!(report.end, GcEnd::Stopped(_)) && report.removed.chunks == 2);
        scene.faults.clear();
        assert_eq!(scene.packs().await, before);
        for pack in before.into_keys() {
            let mut bytes = scene.memory.get(&pack, 1 << 20).await.unwrap().bytes.to_vec();
            let end = bytes.len();
            bytes[end - 20..].iter_mut().for_each(|byte| *byte ^= 0xff);
            scene.memory.put(&pack, bytes.into(), PutMode::Replace).await.unwrap();
        }
        let report = collected(&scene.opened_as_new().await, at_once()).await;
        assert_eq!((report.packs.packs, report.failed), (1, 0));
        assert_eq!(scene.packs().await.len(), 1);
        assert_eq!(scene.chunks().await, digests([1]));
    });
}

/// Proves H161: an execution whose future was dropped counts nothing twice, and forgets nothing.
#[test]
fn a_dropped_execution_counts_each_vanished_chunk_once() {
    for (method, seconds) in [(Method::Delete, 30), (Method::Put, 30), (Method::Put, 90)] {
        in_both(async |scene| {
            back_up_as(&scene.store, "host/a", &[1]).await;
            leave(&scene.store, &[2, 3]).await;
            let is_slow = |key: &Key| matches!(key, Key::Pack(_) | Key::Segment(_));
            let slow = Action::Delay(Duration::from_mins(1));
            scene.faults.add(Rule::on(method, slow).keys(is_slow));
            let mut plan = scene.plan(at_once()).await.confirm();
            let pause = scene.sim.sleep(Duration::from_secs(seconds));
            assert!(matches!(select(Box::pin(plan.execute()), pause).await, Either::Right(_)));
            // The detached drop ends meanwhile.
            scene.sim.sleep(Duration::from_mins(2)).await;
            let report = plan.execute().await.unwrap();
            assert_eq!((report.removed.chunks, report.packs.packs), (2, 1), "{method:?}");
        });
    }
}

#[test]
fn packs_of_a_running_backup_stay() {
    in_both(async |scene| {
        let backup = scene.other.backup(&group("host/a")).begin().await.unwrap();
        let numbers: Vec<_> = (0..20).collect();
        backup.set_notes(serde_json::to_string(&numbers).unwrap());
        let data = larder_testing::gc_scene::data(&numbers);
        let image = backup.image("d.img", futures::io::Cursor::new(&data), data.len() as u64);
        image.chunk_bytes(larder_testing::gc_scene::CHUNK as u64).await.unwrap();
        // Until the full packs are stored.
        scene.sim.sleep(Duration::from_secs(1)).await;
        let packs = scene.packs().await;
        assert_eq!(packs.len(), 2);
        let report = collected(&scene.store, at_once()).await;
        assert_eq!((report.packs.packs, report.removed.chunks), (0, 0));
        let left = scene.packs().await;
        assert!(packs.keys().all(|pack| left.contains_key(pack)));
        let made = backup.finish().await.unwrap().snapshot;
        check(&made).await.unwrap();
        drop(made);
        assert_eq!(check_all(&scene.opened_as_new().await).await, 1);
    });
}

/// Leaves packs that no segment names.
async fn orphans(scene: &Scene, numbers: &[u64]) -> Vec<Key> {
    let before = scene.packs().await;
    scene.faults.add(
        Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable))
            .keys(|key| matches!(key, Key::Segment(_))),
    );
    let writer = scene.opened_as_new().await;
    assert!(back_up(&writer, "host/died", numbers).await.is_err());
    drop(writer);
    scene.faults.clear();
    scene.packs().await.into_keys().filter(|pack| !before.contains_key(pack)).collect()
}

#[test]
fn packs_that_no_segment_names_are_adopted_when_they_are_old_and_judged_by_their_chunks() {
    in_both(async |scene| {
        let orphans = orphans(&scene, &[1, 2, 3]).await;
        assert_eq!(orphans.len(), 1);
        let store = scene.opened_as_new().await;
        // Young ones stay.
        let packs = gc::plan(&store, patient()).await.unwrap().summary().packs.unwrap();
        assert_eq!((packs.leave.unsettled.packs, packs.delete.packs), (1, 0));
        assert_eq!(collected(&store, patient()).await.packs.packs, 0);
        // A backup stores its chunks again, and the orphan is one with chunks in use.
        back_up_as(&store, "host/a", &[1]).await;
        let own = scene.packs().await;
        scene.sim.sleep(2 * DAY).await;
        assert_eq!(own.len(), 2);
        let mut report = collected(&store, patient()).await;
        for _ in 0..3 {
            scene.sim.sleep(2 * DAY).await;
            report = collected(&store, patient()).await;
        }
        assert_eq!(report.packs.packs, 0);
        assert_eq!(scene.packs().await.len(), 1);
        assert_eq!(scene.chunks().await, digests([1]));
        assert_eq!(check_all(&scene.opened_as_new().await).await, 1);
    });
}

#[test]
fn a_plan_that_is_not_executed_changes_nothing_for_writers() {
    in_both(async |scene| {
        back_up_as(&scene.store, "host/a", &[1]).await;
        leave(&scene.store, &[2, 3]).await;
        // Its copies are retired, and then the segment with the drop is refused.
        scene.faults.add(
            Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable))
                .keys(|key| matches!(key, Key::Segment(_))),
        );
        let mut plan = scene.plan(at_once()).await.confirm();
        assert!(matches!(plan.execute().await.unwrap().end, GcEnd::Stopped(_)));
        drop(plan);
        scene.faults.clear();
        // Nobody relies on a copy whose pack may be dropped after all.
        drop(scene.plan(at_once()).await);
        let before = scene.packs().await.len();
        back_up_as(&scene.other, "host/b", &[2, 3]).await;
        assert_eq!(scene.packs().await.len(), before + 1);
        collected(&scene.store, at_once()).await;
        assert_eq!(scene.chunks().await, digests([1, 2, 3]));
        assert_eq!(check_all(&scene.opened_as_new().await).await, 2);
    });
}

#[test]
fn copies_that_a_failed_collection_retired_are_used_again_after_the_next_plan() {
    in_both(async |scene| {
        wasteful(&scene).await;
        // The chunks in use cannot be copied, so nothing is dropped.
        scene.faults.add(
            Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable))
                .keys(|key| matches!(key, Key::Pack(_))),
        );
        let mut plan = scene.plan(at_once()).await.confirm();
        assert!(matches!(plan.execute().await.unwrap().end, GcEnd::Stopped(_)));
        drop(plan);
        scene.faults.clear();
        drop(scene.plan(at_once()).await);
        let before = scene.packs().await;
        let (names, unused): (Vec<_>, Vec<_>) = (before.keys().cloned().collect(), vec![2, 3, 15, 16]);
        for store in [&scene.store, &scene.other] {
            back_up_as(store, "host/again", &unused).await;
        }
        let after = scene.packs().await;
        // At most the copies that could not be stored then were stored since.
        assert!(names.iter().all(|pack| after.contains_key(pack)));
        collected(&scene.store, at_once()).await;
        assert!(digests(unused).is_subset(&scene.chunks().await));
        assert_eq!(check_all(&scene.opened_as_new().await).await, 6);
    });
}

/// Proves H204.
#[test]
fn a_pack_with_the_only_copy_of_a_damaged_chunk_stays_and_the_next_backup_heals_it() {
    in_both(async |scene| {
        wasteful(&scene).await;
        scene.damage(11).await;
        let report = collected(&scene.store, at_once()).await;
        assert_eq!((report.failed, report.packs.packs, report.removed.chunks), (1, 1, 6));
        assert_eq!(report.failures[0].key, Key::Chunk(digest(11)));
        assert_eq!(scene.packs().await.len(), 4);
        let hurt = scene.store.snapshots(&group("host/10")).await.unwrap()[0].name.clone();
        assert_eq!(
            check(&scene.store.snapshot(&hurt).await.unwrap()).await.unwrap_err().kind(),
            ErrorKind::Corrupt
        );
        let store = scene.opened_as_new().await;
        back_up_as(&store, "host/b", &[10, 11]).await;
        assert_eq!(check_all(&store).await, 5);
        collected(&store, at_once()).await;
        assert_eq!(check_all(&scene.opened_as_new().await).await, 5);
        assert!(!scene.chunks().await.contains(&digest(17)));
    });
}

/// Aborts before the n-th request of a method.
fn abort_at(scene: &Scene, flag: &Arc<AtomicBool>, method: Method, n: usize) {
    let (flag, seen) = (Arc::clone(flag), AtomicUsize::new(0));
    scene.watched.watch(move |step| {
        if !step.is_over && step.method == method && seen.fetch_add(1, Ordering::SeqCst) + 1 == n {
            flag.store(true, Ordering::SeqCst);
        }
        Box::pin(async {})
    });
}

#[test]
fn an_aborted_plan_continues() {
    in_both(async |scene| {
        for number in 0..150 {
            leave(&scene.store, &[number]).await;
        }
        back_up_as(&scene.store, "host/a", &[1000]).await;
        let flag = Arc::new(AtomicBool::new(false));
        let mut plan = scene.plan(at_once().abort(Arc::clone(&flag))).await.confirm();
        abort_at(&scene, &flag, Method::Delete, 1);
        let report = plan.execute().await.unwrap();
        assert!(matches!(report.end, GcEnd::Aborted), "{report:?}");
        assert_eq!((report.packs.packs, report.removed.chunks), (64, 64));
        scene.watched.unwatch();
        flag.store(false, Ordering::SeqCst);
        let report = plan.execute().await.unwrap();
        assert!(matches!(report.end, GcEnd::Complete), "{report:?}");
        assert_eq!((report.packs.packs, report.removed.chunks), (150, 150));
        drop(plan);
        assert_eq!(scene.packs().await.len(), 1);
        assert_eq!(check_all(&scene.opened_as_new().await).await, 1);
    });
}

#[test]
fn the_safety_limit_holds_for_chunks_in_packs() {
    in_both(async |scene| {
        back_up_as(&scene.store, "host/a", &[1, 2]).await;
        leave(&scene.store, &[3, 4]).await;
        let mut plan = scene.plan(at_once().max_garbage(40)).await;
        assert_eq!(plan.execute().await.unwrap_err().kind(), ErrorKind::Unconfirmed);
        drop(plan);
        assert_eq!(scene.chunks().await, digests([1, 2, 3, 4]));
        assert_eq!(scene.plan(at_once().max_garbage(50)).await.execute().await.unwrap().packs.packs, 1);
    });
}

/// Proves H201.
#[test]
fn where_listings_lag_a_dropped_pack_is_deleted_by_a_later_collection_after_the_grace_time() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let scene = scene(&sim, true).await;
        back_up_as(&scene.store, "host/a", &[1]).await;
        leave(&scene.store, &[2, 3]).await;
        let name = scene.store.snapshots(&group("host/a")).await.unwrap()[0].name.clone();
        let opened = scene.store.snapshot(&name).await.unwrap();
        // The first one knows nothing of it.
        let scene = Scene { store: scene.opened_as_new().await, ..scene };
        scene.sim.sleep(2 * DAY).await;
        // The first sighting.
        assert_eq!(collected(&scene.store, patient()).await.removed.chunks, 0);
        scene.sim.sleep(2 * DAY).await;
        let report = collected(&scene.store, patient()).await;
        assert_eq!((report.removed.chunks, report.packs.packs), (2, 0));
        assert_eq!(scene.packs().await.len(), 2);
        assert_eq!(scene.chunks().await, digests([1]));
        let packs = scene.packs_of(patient()).await;
        assert_eq!((packs.leave.unsettled.packs, packs.delete.packs), (1, 0));
        assert_eq!(collected(&scene.store, patient()).await.packs.packs, 0);
        scene.sim.sleep(2 * DAY).await;
        assert_eq!(scene.packs_of(patient()).await.delete.packs, 1);
        assert_eq!(collected(&scene.store, patient()).await.packs.packs, 1);
        assert_eq!(scene.packs().await.len(), 1);
        check(&opened).await.unwrap();
    });
}
