//! Garbage collection, on every runtime and backend; in the bucket of a server that is named (see `support/bucket.rs`), if one is.

#[path = "support/places.rs"]
mod places;
mod support;

use std::time::Duration;

use futures::io::Cursor;
use larder::backend::LockReach;
use larder::error::ErrorKind;
use larder::format::name::GroupName;
use larder::gc::{self, Brake, GcEnd, GcOptions, GcPlan, GcReport};
use larder::store::{Datastore, SnapshotReader, WriterTarget};

use places::{Place, everywhere};
use support::noise;

const CHUNK: u64 = 64 << 10;

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

/// Backs an image of noise up.
async fn back_up(store: &Datastore, group: &GroupName, data: &[u8]) -> SnapshotReader {
    let backup = store.backup(group).begin().await.unwrap();
    backup.image("d.img", Cursor::new(data), data.len() as u64).chunk_bytes(CHUNK).await.unwrap();
    backup.finish().await.unwrap()
}

async fn restore(snapshot: &SnapshotReader) -> Vec<u8> {
    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
    snapshot.archive("d.img.fidx").await.unwrap().copy_to(&mut target).await.unwrap();
    target.into_inner().into_inner()
}

/// What removes everything that is not used now, wherever the store is.
fn at_once(place: &Place) -> GcOptions {
    let options = GcOptions::default().grace(Duration::ZERO).one_sighting().most_garbage(100);
    if place.capabilities().lock_reach == LockReach::Process { options.only_process() } else { options }
}

async fn executed(mut plan: GcPlan) -> GcReport {
    let report = plan.execute().await.unwrap();
    assert!(matches!(report.end, GcEnd::Complete), "{:?}", report.end);
    report
}

#[test]
fn what_no_snapshot_needs_goes_and_nothing_else() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let (one, other) = (group("host/a"), group("vm/100"));
            let (shared, own) = (noise(1, 20 * CHUNK as usize), noise(2, 5 * CHUNK as usize));
            let mut both = shared.clone();
            both.extend(&own);
            let kept = back_up(&store, &one, &shared).await;
            let gone = back_up(&store, &other, &both).await.name().clone();
            let plan = gc::plan(&store, at_once(&place)).await.unwrap();
            assert_eq!((plan.garbage().chunks, plan.in_use().chunks, plan.indexes().0), (0, 25, 2));
            executed(plan).await;
            store.delete_snapshot(&gone).await.unwrap();
            let plan = gc::plan(&store, at_once(&place)).await.unwrap();
            assert_eq!((plan.garbage().chunks, plan.in_use().chunks, plan.missing()), (5, 20, 0));
            assert!(plan.garbage().bytes >= own.len() as u64);
            let report = executed(plan).await;
            assert_eq!((report.removed.chunks, report.failed, report.busy), (5, 0, 0));
            assert!(restore(&kept).await == shared);
            let status = store.gc_status().await.unwrap().unwrap();
            assert_eq!((status.removed_chunks, status.disk_chunks, status.index_file_count), (5, 20, 1));
            // What was removed is stored again by whoever needs it.
            let again = back_up(&store, &other, &both).await;
            assert!(restore(&again).await == both);
            let plan = gc::plan(&store, at_once(&place)).await.unwrap();
            assert_eq!((plan.garbage().chunks, plan.in_use().chunks, plan.missing()), (0, 25, 0));
        })
    });
}

#[test]
fn h27_what_is_too_much_has_to_be_confirmed() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let a = group("host/a");
            let first = back_up(&store, &a, &noise(1, 10 * CHUNK as usize)).await.name().clone();
            back_up(&store, &a, &noise(2, 10 * CHUNK as usize)).await;
            store.delete_snapshot(&first).await.unwrap();
            let mut plan = gc::plan(&store, at_once(&place).most_garbage(49)).await.unwrap();
            assert_eq!(plan.brake(), Some(Brake::Share(49)));
            assert_eq!(plan.execute().await.unwrap_err().kind(), ErrorKind::Unconfirmed);
            drop(plan);
            assert_eq!(gc::plan(&store, at_once(&place).most_garbage(50)).await.unwrap().brake(), None);
            store.delete_group(&a).await.unwrap();
            let plan = gc::plan(&store, at_once(&place).most_garbage(99)).await.unwrap();
            assert_eq!((plan.brake(), plan.garbage().chunks), (Some(Brake::NoSnapshots), 20));
            assert_eq!(executed(plan.confirm()).await.removed.chunks, 20);
        })
    });
}
