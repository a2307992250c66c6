//! Garbage collection, on every runtime and backend; in the bucket of a server that is named (see `tests/support/bucket.rs`), if one is.

use std::time::Duration;

use futures::io::{AsyncReadExt as _, Cursor};
use larder::backend::LockReach;
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::Key;
use larder::format::name::GroupName;
use larder::gc::{self, GcEnd, GcOptions, GcPlan, GcReport, SafetyLimit};
use larder::store::{Datastore, SnapshotReader, WriterTarget};
use larder_testing::places::{Place, everywhere, everywhere_loose};
use larder_testing::{noise, read_to_end};

const CHUNK: usize = 16 << 10;

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

/// Backs an image of noise up.
async fn back_up(store: &Datastore, group: &GroupName, data: &[u8]) -> SnapshotReader {
    let backup = store.backup(group).begin().await.unwrap();
    backup.image("d.img", Cursor::new(data), data.len() as u64).chunk_bytes(CHUNK as u64).await.unwrap();
    backup.finish().await.unwrap().snapshot
}

async fn restore(snapshot: &SnapshotReader) -> Vec<u8> {
    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
    snapshot.archive("d.img.fidx").await.unwrap().copy_to(&mut target).await.unwrap();
    target.into_inner().into_inner()
}

/// Options that remove everything unreferenced, on any backend.
fn at_once(place: &Place) -> GcOptions {
    let options = GcOptions::default().grace(Duration::ZERO).consistent_listings().max_garbage(100);
    if place.capabilities().lock_reach == LockReach::Process { options.only_process() } else { options }
}

/// The number of chunks, and their bytes.
fn on_disk(store: &std::path::Path) -> (u64, u64) {
    let directories = std::fs::read_dir(store.join(".chunks")).unwrap();
    let chunks = directories.flat_map(|directory| std::fs::read_dir(directory.unwrap().path()).unwrap());
    chunks.fold((0, 0), |(count, bytes), chunk| (count + 1, bytes + chunk.unwrap().metadata().unwrap().len()))
}

async fn executed(mut plan: GcPlan) -> GcReport {
    let report = plan.execute().await.unwrap();
    assert!(matches!(report.end, GcEnd::Complete), "{:?}", report.end);
    report
}

/// Proves H155, H186.
#[test]
fn a_collection_removes_exactly_the_unreferenced_chunks() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let (one, other) = (group("host/a"), group("vm/100"));
            let (shared, own) = (noise(1, 20 * CHUNK), noise(2, 5 * CHUNK));
            let mut both = shared.clone();
            both.extend(&own);
            let kept = back_up(&store, &one, &shared).await;
            let gone = back_up(&store, &other, &both).await.name().clone();
            let plan = gc::plan(&store, at_once(&place)).await.unwrap();
            assert_eq!(
                (plan.summary().garbage.chunks, plan.summary().in_use.chunks, plan.summary().indexes),
                (0, 25, 2)
            );
            executed(plan).await;
            store.delete_snapshot(&gone).await.unwrap();
            let plan = gc::plan(&store, at_once(&place)).await.unwrap();
            assert_eq!(
                (plan.summary().garbage.chunks, plan.summary().in_use.chunks, plan.summary().missing),
                (5, 20, 0)
            );
            assert!(plan.summary().garbage.bytes >= own.len() as u64);
            let report = executed(plan).await;
            assert_eq!((report.removed.chunks, report.failed, report.busy), (5, 0, 0));
            assert!(restore(&kept).await == shared);
            if let Some(directory) = place.directory().filter(|_| !place.is_packed()) {
                let plan = gc::plan(&store, at_once(&place)).await.unwrap();
                let in_use = plan.summary().in_use;
                assert_eq!((in_use.chunks, in_use.bytes), on_disk(&directory), "h186");
            }
            let status = store.gc_status().await.unwrap().unwrap();
            assert_eq!((status.removed_chunks, status.disk_chunks, status.index_file_count), (5, 20, 1));
            // A writer that needs a removed chunk stores it again.
            let again = back_up(&store, &other, &both).await;
            assert!(restore(&again).await == both);
            let plan = gc::plan(&store, at_once(&place)).await.unwrap();
            assert_eq!(
                (plan.summary().garbage.chunks, plan.summary().in_use.chunks, plan.summary().missing),
                (0, 25, 0)
            );
        })
    });
}

/// Proves H27.
#[test]
fn a_plan_above_the_safety_limit_needs_confirmation() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let a = group("host/a");
            let first = back_up(&store, &a, &noise(1, 10 * CHUNK)).await.name().clone();
            back_up(&store, &a, &noise(2, 10 * CHUNK)).await;
            store.delete_snapshot(&first).await.unwrap();
            let mut plan = gc::plan(&store, at_once(&place).max_garbage(49)).await.unwrap();
            assert_eq!(plan.safety_limit(), Some(SafetyLimit::Share(49)));
            assert_eq!(plan.execute().await.unwrap_err().kind(), ErrorKind::Unconfirmed);
            drop(plan);
            assert_eq!(gc::plan(&store, at_once(&place).max_garbage(50)).await.unwrap().safety_limit(), None);
            store.delete_group(&a).await.unwrap();
            let plan = gc::plan(&store, at_once(&place).max_garbage(99)).await.unwrap();
            assert_eq!(
                (plan.safety_limit(), plan.summary().garbage.chunks),
                (Some(SafetyLimit::NoSnapshots), 20)
            );
            assert_eq!(executed(plan.confirm()).await.removed.chunks, 20);
        })
    });
}

/// Proves H4, H5, H165.
///
/// In every pause of a backup, through another opening of the store.
#[test]
fn a_collection_in_any_pause_of_a_backup_removes_none_of_its_chunks() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let other = place.opened().await;
            let (a, old) = (group("host/a"), group("host/old"));
            let (shared, unused) = (noise(1, 4 * CHUNK), noise(2, 4 * CHUNK));
            back_up(&store, &a, &shared).await;
            back_up(&store, &old, &unused).await;
            store.delete_group(&old).await.unwrap();
            let backup = store.backup(&a).begin().await.unwrap();
            let image = |name, data: &[u8]| {
                let image = backup.image(name, Cursor::new(data.to_vec()), data.len() as u64);
                image.chunk_bytes(CHUNK as u64)
            };
            let half = unused.len() / 2;
            image("d.img", &unused[..half]).await.unwrap();
            assert_eq!(executed(gc::plan(&other, at_once(&place)).await.unwrap()).await.removed.chunks, 2);
            image("e.img", &shared).await.unwrap();
            image("f.img", &unused).await.unwrap();
            executed(gc::plan(&other, at_once(&place)).await.unwrap()).await;
            let mut plan = gc::plan(&other, at_once(&place)).await.unwrap();
            let snapshot = backup.finish().await.unwrap().snapshot;
            assert_eq!(plan.execute().await.unwrap().removed.chunks, 0);
            drop(plan);
            assert!(restore(&snapshot).await == unused[..half]);
            drop(snapshot);
            let plan = gc::plan(&other, at_once(&place)).await.unwrap();
            assert_eq!(
                (plan.summary().garbage.chunks, plan.summary().in_use.chunks, plan.summary().missing),
                (0, 8, 0)
            );
        })
    });
}

/// Proves H22.
#[test]
fn missing_chunks_are_reported_with_their_snapshots_and_stored_by_the_next_backup() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let (a, b) = (group("host/a"), group("host/b"));
            let (shared, own) = (noise(1, 4 * CHUNK), noise(2, 3 * CHUNK));
            let both = [&shared[..], &own, &own].concat();
            let first = back_up(&store, &a, &shared).await.name().clone();
            let second = back_up(&store, &b, &both).await.name().clone();
            executed(gc::plan(&store, at_once(&place)).await.unwrap()).await;
            let chunk = |data: &[u8], number: usize| {
                let part = &data[number * CHUNK..][..CHUNK];
                Key::Chunk(Digest::of(part)).to_string()
            };
            // One that only the second needs, twice; then one that both do.
            place.remove(&chunk(&own, 1)).await;
            // A handle knows what is in packs.
            let store = place.opened_after(store).await;
            let plan = gc::plan(&store, at_once(&place)).await.unwrap();
            let hurt = |plan: &GcPlan| -> Vec<_> {
                plan.summary().damaged.iter().map(|damaged| (damaged.name.clone(), damaged.missing)).collect()
            };
            assert_eq!((plan.summary().missing, hurt(&plan)), (1, vec![(second.clone(), 2)]));
            drop(plan);
            place.remove(&chunk(&shared, 0)).await;
            let store = place.opened_after(store).await;
            let plan = gc::plan(&store, at_once(&place)).await.unwrap();
            assert_eq!((plan.summary().missing, plan.summary().damaged_count), (2, 2));
            assert_eq!(hurt(&plan), [(first.clone(), 1), (second.clone(), 3)]);
            assert_eq!(executed(plan).await.removed.chunks, 0);
            // A backup of the same data heals them all.
            let again = back_up(&store, &b, &both).await;
            assert!(restore(&again).await == both);
            for (name, data) in [(&first, &shared), (&second, &both)] {
                assert!(restore(&store.snapshot(name).await.unwrap()).await == *data);
            }
            let plan = gc::plan(&store, at_once(&place)).await.unwrap();
            assert_eq!(
                (plan.summary().missing, plan.summary().damaged_count, plan.summary().garbage.chunks),
                (0, 0, 0)
            );
        })
    });
}

/// Proves H25.
///
/// Quarantined copies are removed when they are old, unless a needed chunk has no other copy.
#[test]
fn old_quarantined_copies_are_removed_unless_a_needed_chunk_has_no_other() {
    everywhere_loose(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let (a, old) = (group("host/a"), group("host/old"));
            let (used, unused) = (noise(1, 3 * CHUNK), noise(2, 3 * CHUNK));
            back_up(&store, &a, &used).await;
            back_up(&store, &old, &unused).await;
            store.delete_group(&old).await.unwrap();
            let path = |data: &[u8], number: usize| {
                let part = &data[number * CHUNK..][..CHUNK];
                Key::Chunk(Digest::of(part)).to_string()
            };
            let [good, bad, both] = [0, 1, 2].map(|number| path(&used, number));
            let [waste, wasted_bad, wasted_both] = [0, 1, 2].map(|number| path(&unused, number));
            for gone in [&bad, &wasted_bad] {
                place.remove(gone).await;
            }
            for aside in [&bad, &both, &wasted_bad, &wasted_both] {
                place.write(&format!("{aside}.0.bad"), "bad").await;
                place.write(&format!("{aside}.7.bad"), "worse").await;
            }
            // Two sightings, where that matters, but no grace time.
            let twice = || {
                let options =
                    GcOptions::default().grace(Duration::ZERO).listing_lag(Duration::ZERO).max_garbage(100);
                if place.capabilities().lock_reach == LockReach::Process {
                    options.only_process()
                } else {
                    options
                }
            };
            let young = gc::plan(&store, twice().grace(Duration::from_hours(24))).await.unwrap();
            assert_eq!((young.summary().garbage.chunks, young.summary().quarantined_garbage.chunks), (0, 0));
            assert_eq!(young.summary().quarantined.chunks, 8);
            drop(young);
            let mut removed = (0, 0);
            for _ in 0..2 {
                let report = executed(gc::plan(&store, twice()).await.unwrap()).await;
                removed.0 += report.removed.chunks;
                removed.1 += report.removed_quarantined.chunks;
            }
            assert_eq!(removed, (2, 6));
            let status = store.gc_status().await.unwrap().unwrap();
            assert_eq!((status.disk_chunks, status.still_bad), (2, 2));
            let there = [
                (good, true),
                (format!("{bad}.0.bad"), true),
                (format!("{bad}.7.bad"), true),
                (both.clone(), true),
                (format!("{both}.0.bad"), false),
                (waste, false),
                (wasted_both.clone(), false),
                (format!("{wasted_both}.7.bad"), false),
                (format!("{wasted_bad}.0.bad"), false),
            ];
            for (path, expected) in there {
                assert_eq!(place.read(&path).await.is_some(), expected, "{path}");
            }
        })
    });
}

/// Proves H35.
#[test]
fn a_restore_runs_beside_pruning_and_collections() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let other = place.opened().await;
            let (a, b) = (group("host/a"), group("host/b"));
            let data = noise(1, 20 * CHUNK);
            let name = back_up(&store, &a, &data).await.name().clone();
            back_up(&store, &b, &noise(2, CHUNK)).await;
            let reader = other.snapshot(&name).await.unwrap();
            let mut archive = reader.archive("d.img.fidx").await.unwrap();
            let mut begun = vec![0; 3 * CHUNK];
            archive.read_exact(&mut begun).await.unwrap();
            assert_eq!(store.delete_snapshot(&name).await.unwrap_err().kind(), ErrorKind::Busy);
            assert_eq!(executed(gc::plan(&store, at_once(&place)).await.unwrap()).await.removed.chunks, 0);
            begun.extend(read_to_end(&mut archive).await.unwrap());
            assert!(begun == data);
            drop((archive, reader));
            store.delete_snapshot(&name).await.unwrap();
            assert_eq!(executed(gc::plan(&store, at_once(&place)).await.unwrap()).await.removed.chunks, 20);
        })
    });
}

/// Proves H92.
#[test]
fn a_store_with_an_unknown_feature_is_not_collected() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            back_up(&store, &group("host/a"), &noise(1, CHUNK)).await;
            drop(store);
            let kept = place.read(".larder/store.json").await.unwrap();
            place.add_feature().await;
            let refused = gc::plan(&place.opened().await, at_once(&place)).await.map(drop).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Unsupported);
            assert!(place.read(".gc-status").await.is_none());
            place.write(".larder/store.json", kept).await;
        })
    });
}
