//! Plans of collections in packed stores: what an action needs and costs, and what is not copied twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use larder::format::layout::Key;
use larder::gc::{Amount, Prices};
use larder::internal::record::Method;
use larder::rt::{Runtime as _, SimRuntime};
use larder_testing::gc_scene::{at_once, check_all, collected, digests, leave};

use crate::packs::{Scene, back_up_as, in_both, patient, scene, wasteful};

const DAY: Duration = Duration::from_hours(24);

#[test]
fn small_packs_younger_than_the_grace_time_are_not_merged() {
    in_both(async |scene| {
        for number in 0..9 {
            back_up_as(&scene.store, &format!("host/{number}"), &[number]).await;
        }
        let packs = scene.packs_of(patient()).await;
        assert_eq!((packs.merge.packs, packs.leave.soon_again.packs), (0, 9));
        scene.sim.sleep(2 * DAY).await;
        assert_eq!(
            collected(&scene.store, patient()).await.packs.packs,
            if scene.deletes_at_once() { 9 } else { 0 }
        );
        // What remains is small, and is not merged again while it is young.
        for number in 9..18 {
            back_up_as(&scene.store, &format!("host/{number}"), &[number]).await;
        }
        let packs = scene.packs_of(patient()).await;
        assert_eq!((packs.merge.packs, packs.leave.soon_again.packs), (0, 10));
        scene.sim.sleep(2 * DAY).await;
        assert_eq!(scene.packs_of(patient()).await.merge.packs, 10);
        collected(&scene.store, patient()).await;
        assert_eq!(check_all(&scene.opened_as_new().await).await, 18);
    });
}

#[test]
fn packs_with_garbage_in_its_grace_time_are_copied_once_when_it_may_go() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        // Where garbage needs two sightings.
        let scene = scene(&sim, true).await;
        back_up_as(&scene.store, "host/old", &[0, 1, 2, 3, 4, 5, 6, 7]).await;
        back_up_as(&scene.store, "host/newer", &[0, 1, 2, 3, 4]).await;
        back_up_as(&scene.store, "host/newest", &[0, 1]).await;
        // Small packs, too few to merge.
        for number in 10..13 {
            back_up_as(&scene.store, &format!("host/{number}"), &[number, number + 10]).await;
            back_up_as(&scene.store, &format!("host/{number}-newest"), &[number]).await;
        }
        scene.delete("host/old").await;
        scene.sim.sleep(2 * DAY).await;
        collected(&scene.store, patient()).await;
        scene.sim.sleep(2 * DAY).await;
        assert_eq!(scene.packs_of(patient()).await.repack.packs, 1);
        scene.delete("host/newer").await;
        for number in 10..13 {
            scene.delete(&format!("host/{number}")).await;
        }
        let packs = scene.packs_of(patient()).await;
        assert_eq!((packs.repack.packs, packs.merge.packs, packs.leave.soon_again.packs), (0, 0, 4));
        collected(&scene.store, patient()).await;
        scene.sim.sleep(2 * DAY).await;
        let packs = scene.packs_of(patient()).await;
        assert_eq!((packs.repack.packs, packs.copied_bytes / 4096, packs.leave.soon_again.packs), (4, 5, 0));
        collected(&scene.store, patient()).await;
        assert_eq!(scene.chunks().await, digests([0, 1].into_iter().chain(10..13)));
        assert_eq!(check_all(&scene.opened_as_new().await).await, 4);
    });
}

#[test]
fn a_plan_says_what_each_action_needs_and_costs_and_why_packs_stay() {
    in_both(async |scene| {
        wasteful(&scene).await;
        leave(&scene.store, &[50, 51]).await;
        scene.sim.sleep(10 * DAY).await;
        assert_eq!(scene.packs_of(at_once()).await.repack.cost, None);
        let price = Amount::from_millionths;
        let prices = Prices::default()
            .thousand_gets(price(1_000_000))
            .thousand_puts(price(2_000_000))
            .gigabyte_read(price(3_000_000_000))
            // A millionth for a byte.
            .gigabyte_month(price(1_000_000_000))
            .minimum_days(30);
        let packs = scene.packs_of(at_once().prices(prices)).await;
        let (delete, repack) = (packs.delete, packs.repack);
        assert_eq!((delete.packs, delete.gets, delete.puts, delete.deletes), (1, 0, 1, 1));
        assert_eq!((delete.read_bytes, delete.written_bytes, delete.freed_bytes), (0, 0, delete.bytes));
        let cost = delete.cost.unwrap();
        assert_eq!(cost.early_deletion, price((delete.bytes * 2).div_ceil(3)));
        assert_eq!(cost.once.millionths() - cost.early_deletion.millionths(), 2_000);
        assert_eq!(cost.saved_monthly, price(delete.bytes));
        // Two packs with two and four chunks in use become one.
        assert_eq!((repack.packs, repack.gets, repack.puts, repack.deletes), (2, 2, 3, 1));
        assert_eq!(repack.freed_bytes + repack.written_bytes, repack.bytes);
        assert!((6 * 4096..6 * 4300).contains(&repack.written_bytes), "{repack:?}");
        let cost = repack.cost.unwrap();
        let once = 2_000 + 6_000 + 3 * repack.read_bytes + cost.early_deletion.millionths();
        assert_eq!((cost.once, cost.saved_monthly), (price(once), price(repack.freed_bytes)));
        assert_eq!((packs.leave.in_use.packs, packs.merge.cost.unwrap().once), (2, price(0)));
        let kept = scene.packs_of(at_once().keep_packs(30 * DAY)).await;
        assert_eq!((kept.leave.kept.packs, kept.packs.packs), (5, 5));
        let tolerated = scene.packs_of(at_once().max_unused(100)).await;
        assert_eq!((tolerated.leave.tolerated.packs, tolerated.leave.in_use.packs), (2, 2));
        assert_eq!(scene.packs_of(at_once().max_repack_bytes(10_000)).await.leave.limited.packs, 1);
        let text = scene.plan(at_once().prices(prices)).await.to_string();
        assert!(text.contains("packs to be rewritten: 2 packs, "), "{text}");
        assert!(text.contains("packs that stay: in use: 2 packs, "), "{text}");
    });
}

#[test]
fn the_packs_and_their_waste_are_known_without_a_plan() {
    in_both(async |scene| {
        wasteful(&scene).await;
        let bytes: u64 = scene.packs().await.values().sum();
        let usage = scene.store.pack_usage().unwrap();
        assert_eq!((usage.packs, usage.bytes, usage.segments), (4, bytes, 4));
        let scene = Scene { store: scene.opened_as_new().await, ..scene };
        assert_eq!(scene.store.pack_usage(), Some(usage));
        let unused = scene.packs_of(at_once()).await.unused_bytes;
        collected(&scene.store, at_once().max_unused(100)).await;
        let status = scene.store.gc_status().await.unwrap().unwrap().packs.unwrap();
        assert_eq!((status.packs, status.bytes, status.unused_bytes), (4, bytes, unused));
        collected(&scene.store, at_once()).await;
        let status = scene.store.gc_status().await.unwrap().unwrap().packs.unwrap();
        let usage = scene.store.pack_usage().unwrap();
        assert_eq!((status.packs, status.bytes, status.segments), (usage.packs, usage.bytes, usage.segments));
        // The pack with one unused chunk stays, and one pack is new. Dropped ones do not count.
        assert!((4096..4300).contains(&status.unused_bytes), "{status}");
        assert_eq!(status.packs, 3);
        assert_eq!(scene.packs_of(at_once()).await.unused_bytes, status.unused_bytes);
    });
}

/// Counts of requests for packs and segments below the store: reads, puts, deletes.
fn count_requests(scene: &Scene) -> Arc<[AtomicU64; 3]> {
    let counts: Arc<[AtomicU64; 3]> = Arc::default();
    let counting = Arc::clone(&counts);
    scene.watched.watch(move |step| {
        let is_of_packs = step.keys.iter().any(|key| matches!(key, Key::Pack(_) | Key::Segment(_)));
        let at = match step.method {
            Method::Get | Method::GetRange => 0,
            Method::Put => 1,
            Method::Delete => 2,
            _ => return Box::pin(async {}),
        };
        if !step.is_over && is_of_packs {
            counting[at].fetch_add(1, Ordering::SeqCst);
        }
        Box::pin(async {})
    });
    counts
}

#[test]
fn a_collection_needs_the_requests_that_its_plan_says() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let scene = scene(&sim, false).await;
        wasteful(&scene).await;
        for number in 100..109 {
            back_up_as(&scene.store, &format!("host/{number}"), &[number]).await;
        }
        let mut plan = scene.plan(at_once()).await.confirm();
        let counts = count_requests(&scene);
        let packs = plan.summary().packs.unwrap();
        assert_eq!((packs.repack.packs, packs.merge.packs), (2, 9));
        let before = scene.store.pack_requests().unwrap();
        plan.execute().await.unwrap();
        let after = scene.store.pack_requests().unwrap();
        let done = counts.each_ref().map(|count| count.load(Ordering::SeqCst));
        let planned = [packs.repack, packs.merge].map(|action| [action.gets, action.puts, action.deletes]);
        assert_eq!(planned, [[2, 3, 1], [9, 4, 1]]);
        // They are small, so both go together: two packs and two segments. Merging the segments is one more put and one more delete.
        assert_eq!(done, [11, 5, 2]);
        assert_eq!(after.pack_gets - before.pack_gets, 11);
        let puts = [after.pack_puts - before.pack_puts, after.segment_puts - before.segment_puts];
        let deletes =
            [after.pack_deletes - before.pack_deletes, after.segment_deletes - before.segment_deletes];
        assert_eq!((puts, deletes), ([2, 3], [1, 1]));
    });
}
