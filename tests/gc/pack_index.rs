//! Collections of garbage keep the index of a packed store small, and every view right.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::FutureExt as _;
use larder::backend::{Backend, ListEntry, ListQuery, MemoryBackend, PutMode, Removal};
use larder::error::ErrorKind;
use larder::format::layout::{Key, Prefix};
use larder::gc;
use larder::internal::fault::{Action, Rule};
use larder::internal::listing::list_all;
use larder::internal::record::Method;
use larder::rt::{Runtime as _, SimRuntime};
use larder::store::Scope;
use larder_testing::gc_scene::{at_each_step, at_once, back_up, check, check_all, collected, digests, leave};
use larder_testing::watched::Watched;

use crate::packs::{Scene, back_up_as, in_both, patient, scene};

const DAY: Duration = Duration::from_hours(24);

/// The segments that there truly are.
async fn segments(scene: &Scene) -> BTreeSet<Key> {
    let listed = list_all(scene.memory.as_ref(), &ListQuery::all(Prefix::Segments)).await.unwrap();
    let segment = |entry| match entry {
        ListEntry::Object(info) => Some(info.key),
        _ => None,
    };
    listed.into_entries().into_iter().filter_map(segment).collect()
}

/// Leaves one snapshot and many segments, of which most name a dead pack.
async fn fragmented(scene: &Scene) {
    back_up_as(&scene.store, "host/a", &[1, 2]).await;
    for number in 10..44 {
        leave(&scene.store, &[number]).await;
    }
    assert!(segments(scene).await.len() > 32);
}

/// Proves H202.
#[test]
fn many_segments_are_merged_and_every_handle_and_process_sees_the_same() {
    in_both(async |scene| {
        fragmented(&scene).await;
        let report = collected(&scene.store, at_once()).await;
        assert_eq!((report.packs.packs, report.removed.chunks), (34, 34));
        assert_eq!(segments(&scene).await.len(), 1);
        assert_eq!(scene.chunks().await, digests([1, 2]));
        for (snapshots, store) in [(1, &scene.store), (2, &scene.other)] {
            assert_eq!(check_all(store).await, snapshots);
            // Nobody relies on what is gone.
            let made = back_up(store, "host/b", &[2, 10, 30]).await.unwrap();
            check(&made).await.unwrap();
        }
        let store = scene.opened_as_new().await;
        assert_eq!(check_all(&store).await, 3);
        assert_eq!(collected(&store, at_once()).await.removed.chunks, 0);
        assert_eq!(check_all(&scene.opened_as_new().await).await, 3);
    });
}

#[test]
fn a_segment_with_a_quarter_of_dead_records_is_written_again() {
    in_both(async |scene| {
        back_up_as(&scene.store, "host/a", &[1, 2, 3]).await;
        leave(&scene.store, &[4, 5]).await;
        let before = segments(&scene).await;
        assert_eq!(before.len(), 2);
        collected(&scene.store, at_once()).await;
        // The drop, and what is left of the second one.
        assert_eq!(segments(&scene).await.len(), 3);
        assert_eq!(before.intersection(&segments(&scene).await).count(), 1);
        let now = segments(&scene).await;
        collected(&scene.store, at_once()).await;
        assert_eq!(segments(&scene).await, now);
        assert_eq!(check_all(&scene.opened_as_new().await).await, 1);
    });
}

/// Proves H202.
#[test]
fn where_listings_lag_segments_are_merged_and_deleted_after_the_grace_time() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let scene = scene(&sim, true).await;
        fragmented(&scene).await;
        let before = segments(&scene).await;
        collected(&scene.store, patient().max_repack_bytes(0)).await;
        assert_eq!(segments(&scene).await, before);
        sim.sleep(2 * DAY).await;
        // The packs are dropped. Those that name them cannot go before the packs.
        assert_eq!(collected(&scene.store, patient().max_repack_bytes(0)).await.removed.chunks, 34);
        let merged = segments(&scene).await;
        assert!(merged.is_superset(&before));
        // Whoever reads the merged one alone, or the others, finds the same.
        assert_eq!(scene.chunks().await, digests([1, 2]));
        assert_eq!(check_all(&scene.other).await, 1);
        for _ in 0..3 {
            sim.sleep(2 * DAY).await;
            collected(&scene.store, patient().max_repack_bytes(0)).await;
            assert_eq!(scene.chunks().await, digests([1, 2]));
        }
        assert_eq!(scene.packs().await.len(), 1);
        let left = segments(&scene).await;
        assert!(left.len() < 5 && left.is_disjoint(&before), "{left:?}");
        assert_eq!(check_all(&scene.opened_as_new().await).await, 1);
    });
}

/// Dies at a step of a collection that merges segments.
async fn dies_at(sim: &SimRuntime, step: u64, is_bucket: bool) -> bool {
    let scene = scene(sim, is_bucket).await;
    fragmented(&scene).await;
    let mut plan = gc::plan(&scene.store, at_once()).await.unwrap().confirm();
    scene.faults.crash_at(scene.faults.steps() + step);
    let _ = plan.execute().await;
    let died = scene.faults.has_crashed();
    drop(plan);
    let memory: Arc<dyn Backend> = Arc::<MemoryBackend>::clone(&scene.memory);
    let scene = Scene { watched: Watched::of_kind(memory, is_bucket), ..scene };
    let found = scene.chunks().await;
    assert!(digests([1, 2]).is_subset(&found));
    let store = scene.opened_as_new().await;
    assert_eq!(check_all(&store).await, 1);
    let made = back_up(&store, "host/b", &[1, 11, 40]).await.unwrap();
    check(&made).await.unwrap();
    drop(made);
    collected(&store, at_once()).await;
    assert_eq!(scene.chunks().await, digests([1, 2, 11, 40]));
    assert!(segments(&scene).await.len() <= 33);
    assert_eq!(check_all(&scene.opened_as_new().await).await, 2);
    died
}

/// Proves H202.
#[test]
fn after_a_crash_at_any_step_of_a_merge_every_view_is_the_same() {
    at_each_step(5, &dies_at);
}

/// A handle that adopted an orphan in a plan does not record it after another one dropped it, and the drop was forgotten.
///
/// Proves H202.
#[test]
fn an_orphan_that_two_handles_adopted_is_not_recorded_after_it_was_dropped() {
    for is_other_process in [false, true] {
        in_both(async |scene| {
            let refused = Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable));
            scene.faults.add(refused.keys(|key| matches!(key, Key::Segment(_))));
            assert!(back_up(&scene.store, "host/died", &[1, 2]).await.is_err());
            scene.faults.clear();
            let identity = scene.memory.get(&Key::Store, 1 << 20).await.unwrap().bytes;
            let collector = scene.opened_as_new().await;
            if !is_other_process {
                scene.memory.put(&Key::Store, identity.clone(), PutMode::Replace).await.unwrap();
            }
            let collector = if is_other_process { collector } else { scene.store.clone() };
            drop(gc::plan(&scene.other, at_once()).await);
            for number in 10..50 {
                leave(&collector, &[number]).await;
            }
            for _ in 0..3 {
                collected(&collector, at_once()).await;
            }
            assert_eq!(scene.packs().await.len(), 0);
            assert!(segments(&scene).await.len() < 5);
            scene.memory.put(&Key::Store, identity, PutMode::Replace).await.unwrap();
            let made = back_up(&scene.other, "host/a", &[1, 2, 3]).await.unwrap();
            check(&made).await.unwrap();
            drop(made);
            let store = scene.opened_as_new().await;
            let made = back_up(&store, "host/b", &[2, 3]).await.unwrap();
            check(&made).await.unwrap();
            drop(made);
            assert_eq!(check_all(&scene.opened_as_new().await).await, 2);
        });
    }
}

#[test]
fn a_merged_segment_keeps_what_is_bad() {
    in_both(async |scene| {
        back_up_as(&scene.store, "host/a", &[1, 2]).await;
        scene.damage(1).await;
        // The backup finds it bad, and stores it again.
        let options = larder::verify::VerifyOptions::default();
        let plan = larder::verify::plan(&scene.store, &Scope::Store, options).await;
        assert_eq!(plan.unwrap().execute().await.unwrap().damaged.len(), 1);
        back_up_as(&scene.store, "host/b", &[1]).await;
        for number in 10..50 {
            leave(&scene.store, &[number]).await;
        }
        collected(&scene.store, at_once().max_unused(100)).await;
        assert_eq!(segments(&scene).await.len(), 1);
        let store = scene.opened_as_new().await;
        assert_eq!(check_all(&store).await, 2);
    });
}

/// Counts listings of segments, so that nobody lists for each chunk.
#[test]
fn a_handle_learns_of_a_collection_with_one_listing() {
    in_both(async |scene| {
        fragmented(&scene).await;
        let backup = scene.other.backup(&"host/b".parse().unwrap()).begin().await.unwrap();
        backup.set_notes("[1,2,10,11,12,13,14,15]");
        collected(&scene.store, at_once()).await;
        let listings = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&listings);
        scene.watched.watch(move |step| {
            counted.fetch_add(usize::from(step.is_over && step.method == Method::List), Ordering::SeqCst);
            Box::pin(async {})
        });
        let data = larder_testing::gc_scene::data(&[1, 2, 10, 11, 12, 13, 14, 15]);
        let image = backup.image("d.img", futures::io::Cursor::new(&data), data.len() as u64);
        image.chunk_bytes(larder_testing::gc_scene::CHUNK as u64).await.unwrap();
        scene.watched.unwatch();
        check(&backup.finish().await.unwrap().snapshot).await.unwrap();
        assert!(listings.load(Ordering::SeqCst) <= 2, "{listings:?}");
    });
}

/// Flips a bit, cuts the end off, or removes an object.
async fn hurt(scene: &Scene, key: &Key, how: &str) {
    let mut bytes = scene.memory.get(key, u64::MAX).await.unwrap().bytes.to_vec();
    let length = bytes.len();
    match how {
        "flip" => bytes[length - 20] ^= 1,
        "cut" => bytes.truncate(length - 70),
        _ => {
            scene.memory.delete(&[Removal::any(key.clone())]).await.unwrap().remove(0).unwrap();
            return;
        }
    }
    scene.memory.put(key, bytes.into(), PutMode::Replace).await.unwrap();
}

/// Proves H203.
#[test]
fn a_lost_index_is_rebuilt_from_the_packs() {
    in_both(async |scene| {
        for (number, name) in ["host/a", "host/b", "host/c"].into_iter().enumerate() {
            let first = 10 * number as u64;
            back_up_as(&scene.store, name, &[first, first + 1, first + 2]).await;
        }
        let packs: Vec<_> = scene.packs().await.into_keys().collect();
        // The directory of one pack is damaged, and the one of another is gone.
        hurt(&scene, &packs[0], "flip").await;
        hurt(&scene, &packs[1], "cut").await;
        for segment in segments(&scene).await {
            hurt(&scene, &segment, "remove").await;
        }
        let store = scene.opened_as_new().await;
        assert_eq!(scene.chunks().await.len(), 0);
        let mut plan = store.plan_index_rebuild().await.unwrap();
        let summary = plan.summary().clone();
        assert_eq!((summary.packs, summary.unnamed, summary.missing), (3, 3, 0));
        assert!(summary.to_string().starts_with("3 packs of 3 not in the index"), "{summary}");
        assert_eq!(segments(&scene).await.len(), 0);
        let report = plan.execute().await.unwrap();
        assert_eq!((report.chunks, report.packs, report.scanned), (9, 3, 2), "{report}");
        assert!(report.unreadable.is_empty());
        drop(plan);
        assert_eq!(check_all(&store).await, 3);
        let store = scene.opened_as_new().await;
        assert_eq!(check_all(&store).await, 3);
        assert_eq!(store.plan_index_rebuild().await.unwrap().summary().unnamed, 0);
        assert_eq!(collected(&store, at_once()).await.removed.chunks, 0);
        assert_eq!(check_all(&scene.opened_as_new().await).await, 3);
    });
}

/// Proves H203: an execution whose future was dropped leaves no pack out.
#[test]
fn a_dropped_rebuild_is_continued() {
    in_both(async |scene| {
        for (number, name) in ["host/a", "host/b", "host/c"].into_iter().enumerate() {
            back_up_as(&scene.store, name, &[number as u64]).await;
        }
        for segment in segments(&scene).await {
            hurt(&scene, &segment, "remove").await;
        }
        let store = scene.opened_as_new().await;
        let mut plan = store.plan_index_rebuild().await.unwrap();
        for method in [Method::Get, Method::GetRange] {
            let slow = Rule::on(method, Action::Delay(Duration::from_secs(1)));
            scene.faults.add(slow.keys(|key| matches!(key, Key::Pack(_))));
        }
        assert!(plan.execute().now_or_never().is_none(), "it waits for a pack");
        scene.faults.clear();
        plan.execute().await.unwrap();
        drop(plan);
        assert_eq!(store.plan_index_rebuild().await.unwrap().summary().unnamed, 0);
        assert_eq!(check_all(&scene.opened_as_new().await).await, 3);
    });
}

/// Proves H203. Also by the process that read them before.
#[test]
fn segments_that_were_damaged_after_they_were_read_are_replaced() {
    in_both(async |scene| {
        for (number, name) in ["host/a", "host/b", "host/c"].into_iter().enumerate() {
            back_up_as(&scene.store, name, &[number as u64]).await;
        }
        let before: Vec<_> = segments(&scene).await.into_iter().collect();
        for (segment, how) in before.iter().zip(["flip", "cut", "remove"]) {
            hurt(&scene, segment, how).await;
        }
        let mut plan = scene.store.plan_index_rebuild().await.unwrap();
        let summary = plan.summary().clone();
        assert_eq!((summary.damaged.len(), summary.unnamed), (2, 3), "{summary}");
        assert_eq!(plan.execute().await.unwrap().packs, 3);
        drop(plan);
        assert!(segments(&scene).await.is_disjoint(&before.into_iter().collect()));
        assert_eq!(check_all(&scene.store).await, 3);
        assert_eq!(check_all(&scene.opened_as_new().await).await, 3);
    });
}

/// Proves H203.
#[test]
fn damaged_segments_are_replaced_and_no_deleted_pack_counts_again() {
    in_both(async |scene| {
        back_up_as(&scene.store, "host/a", &[1, 2]).await;
        leave(&scene.store, &[3, 4]).await;
        let before = segments(&scene).await;
        // Half a plan: the drop is recorded and the pack deleted, and the index is as long as before.
        scene.faults.add(
            Rule::on(Method::Put, Action::FailBefore(ErrorKind::Full))
                .keys(|key| matches!(key, Key::Segment(_)))
                .nth(2),
        );
        collected(&scene.store, at_once()).await;
        scene.faults.clear();
        assert_eq!(scene.packs().await.len(), 1);
        let drops: Vec<_> = segments(&scene).await.difference(&before).cloned().collect();
        assert_eq!(drops.len(), 1);
        hurt(&scene, &drops[0], "flip").await;
        let store = scene.opened_as_new().await;
        assert_eq!(gc::plan(&store, at_once()).await.unwrap_err().kind(), ErrorKind::Corrupt);
        // The pack of these chunks is gone, and nobody knows that it was dropped.
        let made = back_up(&store, "host/b", &[2, 3]).await.unwrap();
        check(&made).await.unwrap();
        drop(made);
        let mut plan = store.plan_index_rebuild().await.unwrap();
        let summary = plan.summary().clone();
        assert_eq!((summary.damaged.len(), summary.missing, summary.unnamed), (1, 1, 0), "{summary}");
        plan.execute().await.unwrap();
        drop(plan);
        assert!(!segments(&scene).await.contains(&drops[0]));
        let store = scene.opened_as_new().await;
        let made = back_up(&store, "host/c", &[3, 4]).await.unwrap();
        check(&made).await.unwrap();
        drop(made);
        collected(&store, at_once()).await;
        assert_eq!(scene.chunks().await, digests([1, 2, 3, 4]));
        assert_eq!(check_all(&scene.opened_as_new().await).await, 3);
    });
}

/// Proves H203.
#[test]
fn after_a_crash_at_any_step_of_a_rebuild_another_one_continues() {
    at_each_step(2, &async |sim, step, is_bucket| {
        let scene = scene(sim, is_bucket).await;
        for (number, name) in ["host/a", "host/b"].into_iter().enumerate() {
            back_up_as(&scene.store, name, &[number as u64]).await;
        }
        let all = segments(&scene).await;
        hurt(&scene, all.first().unwrap(), "flip").await;
        hurt(&scene, all.last().unwrap(), "remove").await;
        let store = scene.opened_as_new().await;
        let mut plan = store.plan_index_rebuild().await.unwrap();
        scene.faults.crash_at(scene.faults.steps() + step);
        let _ = plan.execute().await;
        let died = scene.faults.has_crashed();
        drop((plan, store));
        let memory: Arc<dyn Backend> = Arc::<MemoryBackend>::clone(&scene.memory);
        let scene = Scene { watched: Watched::of_kind(memory, is_bucket), ..scene };
        let store = scene.opened_as_new().await;
        store.plan_index_rebuild().await.unwrap().execute().await.unwrap();
        assert_eq!(check_all(&store).await, 2);
        let store = scene.opened_as_new().await;
        assert_eq!(collected(&store, at_once()).await.removed.chunks, 0);
        assert_eq!(check_all(&store).await, 2);
        died
    });
}

#[test]
fn a_store_without_packs_has_no_index_to_rebuild() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
        let store = larder_testing::gc_scene::created(&backend).await;
        assert_eq!(store.plan_index_rebuild().await.unwrap_err().kind(), ErrorKind::Unsupported);
    });
}
