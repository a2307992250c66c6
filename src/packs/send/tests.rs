use std::time::Duration;

use futures::executor::block_on;
use futures::future::{Either, select};

use super::*;
use crate::backend::fault::{Action, FaultBackend, Rule};
use crate::backend::record::Method;
use crate::backend::{Backend, Coordination as _, ListQuery, LockMode, LockScope, MemoryBackend, list_all};
use crate::format::layout::Prefix;
use crate::packs::PackedBackend;
use crate::packs::tests::{blob, chunk, delete, is_reliable, memory, names_of_packs, open, put};
use crate::rt::{Runtime, SimRuntime};

fn with_faults() -> (Arc<FaultBackend>, Arc<dyn Backend>) {
    let faults = Arc::new(FaultBackend::new(memory()));
    let below: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
    (faults, below)
}

/// Stores a chunk in a pack that no segment names.
async fn put_unrecorded(packed: &PackedBackend, faults: &FaultBackend, number: u32) {
    put(packed, number).await;
    let is_segment = |key: &Key| matches!(key, Key::Segment(_));
    faults.add(Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable)).keys(is_segment));
    assert_eq!(packed.barrier_of_holder().await.unwrap_err().kind(), ErrorKind::Unavailable);
    faults.clear();
}

async fn segments(below: &Arc<dyn Backend>) -> usize {
    list_all(below.as_ref(), &ListQuery::all(Prefix::Segments)).await.unwrap().entries().len()
}

/// Adopts all orphans as a collection does.
async fn adopt(packed: &PackedBackend) {
    let begin = packed.packs.begin_listing().await.unwrap();
    assert_eq!(packed.adopt_orphans(&begin, |_| true).await.unwrap(), 1);
}

/// Otherwise the copies would count again once a merged segment has forgotten the drop.
///
/// Proves H202.
#[test]
fn a_pack_that_another_process_dropped_is_not_recorded_any_more() {
    block_on(async {
        let (faults, below) = with_faults();
        let packed = open(&below, "recorded late").await;
        put_unrecorded(&packed, &faults, 1).await;
        let other = open(&below, "recorded late, collector").await;
        adopt(&other).await;
        let names = names_of_packs(&below).await;
        other.drop_packs(&names.into_iter().collect()).await.unwrap();
        let before = segments(&below).await;
        // It learns of the drop when it takes the lock.
        drop(packed.lock_shared().await);
        assert!(!is_reliable(&packed, 1).await);
        packed.barrier_of_holder().await.unwrap();
        assert_eq!((segments(&below).await, packed.packs.state().writer.unrecorded.len()), (before, 0));
        put(&packed, 1).await;
        packed.barrier_of_holder().await.unwrap();
        drop(other.lock_shared().await);
        assert!(is_reliable(&packed, 1).await && is_reliable(&other, 1).await);
    });
}

/// A handle that adopted an orphan too learns of its drop without reading a segment.
///
/// Proves H202.
#[test]
fn a_pack_that_another_handle_dropped_is_not_recorded_any_more() {
    block_on(async {
        let (faults, below) = with_faults();
        let died = open(&below, "adopted twice, dead writer").await;
        put_unrecorded(&died, &faults, 1).await;
        let (packed, other) = (open(&below, "adopted twice").await, open(&below, "adopted twice").await);
        adopt(&packed).await;
        adopt(&other).await;
        let names = names_of_packs(&below).await;
        other.drop_packs(&names.into_iter().collect()).await.unwrap();
        let before = segments(&below).await;
        assert!(!is_reliable(&packed, 1).await);
        packed.barrier_of_holder().await.unwrap();
        assert_eq!(segments(&below).await, before);
    });
}

#[test]
fn a_pack_that_is_forgotten_takes_only_its_own_chunks_along() {
    block_on(async {
        let (faults, below) = with_faults();
        let packed = open(&below, "forgotten").await;
        put_unrecorded(&packed, &faults, 1).await;
        let first = names_of_packs(&below).await;
        put_unrecorded(&packed, &faults, 2).await;
        // Another process took it for an orphan, and deleted it.
        delete(&below, Key::Pack(first[0])).await;
        drop(packed.lock_shared().await);
        assert!(!is_reliable(&packed, 1).await && is_reliable(&packed, 2).await);
        packed.barrier_of_holder().await.unwrap();
        let other = open(&below, "forgotten, elsewhere").await;
        assert_eq!(other.get(&chunk(1), 100).await.unwrap_err().kind(), ErrorKind::NotFound);
        other.get(&chunk(2), 100).await.unwrap();
    });
}

/// Proves H202: an attempt to lock that read the view, and failed to look for the pack, leaves that to the next one; so does a read.
#[test]
fn a_fresh_view_does_not_replace_the_look_for_unrecorded_packs() {
    block_on(async {
        let (faults, below) = with_faults();
        let packed = open(&below, "a").await;
        drop(packed.lock_shared().await);
        let held = packed.lock_shared().await;
        put_unrecorded(&packed, &faults, 1).await;
        drop(held);
        delete(&below, Key::Pack(names_of_packs(&below).await[0])).await;
        let is_pack = |key: &Key| matches!(key, Key::Pack(_));
        faults.add(Rule::on(Method::Head, Action::FailBefore(ErrorKind::Unavailable)).keys(is_pack));
        let failed = packed.lock(&LockScope::Store, LockMode::Shared).await.map(drop).unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Unavailable);
        faults.clear();
        // One that holds the lock meanwhile does not read the view again.
        let _held = packed.lock_shared().await;
        assert!(!is_reliable(&packed, 1).await);
    });
}

/// Proves H202: a deletion of a snapshot has a barrier, and does not take the lock of the store.
#[test]
fn a_barrier_without_the_lock_records_no_pack() {
    block_on(async {
        let (faults, below) = with_faults();
        let packed = open(&below, "a").await;
        let held = packed.lock_shared().await;
        put_unrecorded(&packed, &faults, 1).await;
        drop(held);
        // Another process took it for an orphan, deleted it, and forgot that it did.
        delete(&below, Key::Pack(names_of_packs(&below).await[0])).await;
        packed.barrier().await.unwrap();
        drop(packed.lock_shared().await);
        assert!(!is_reliable(&packed, 1).await);
        assert_eq!(packed.packs.state().view.segments().len(), 0);
    });
}

/// A deletion makes room in a full store although a pack of an ended backup could not be stored.
#[test]
fn a_barrier_without_the_lock_does_not_store_packs_again() {
    block_on(async {
        let (faults, below) = with_faults();
        let packed = open(&below, "a").await;
        let held = packed.lock_shared().await;
        put(&packed, 1).await;
        let is_pack = |key: &Key| matches!(key, Key::Pack(_));
        faults.add(Rule::on(Method::Put, Action::FailBefore(ErrorKind::Full)).keys(is_pack));
        assert_eq!(packed.barrier().await.unwrap_err().kind(), ErrorKind::Full);
        drop(held);
        packed.barrier().await.unwrap();
        faults.clear();
        let _held = packed.lock_shared().await;
        packed.barrier().await.unwrap();
        assert_eq!(open(&below, "b").await.get(&chunk(1), 100).await.unwrap().bytes, blob(1));
    });
}

/// Proves H202: another process that takes the lock may delete the packs that a segment names, if the segment is stored only then.
#[test]
fn the_lock_of_the_store_is_held_until_a_segment_is_stored() {
    let runtime = Arc::new(SimRuntime::new(1));
    let of_task: Arc<dyn Runtime> = Arc::<SimRuntime>::clone(&runtime);
    runtime.block_on(async move {
        let faults = Arc::new(FaultBackend::new(Arc::new(MemoryBackend::new(Arc::clone(&of_task)))));
        let below: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        let packed = open(&below, "a").await;
        let held = packed.lock_shared().await;
        put(&packed, 1).await;
        let is_segment = |key: &Key| matches!(key, Key::Segment(_));
        faults.add(Rule::on(Method::Put, Action::Delay(Duration::from_mins(1))).keys(is_segment));
        // The caller gives up while the request is on its way.
        let pause = of_task.sleep(Duration::from_secs(30));
        assert!(matches!(select(packed.barrier(), pause).await, Either::Right(_)));
        drop(held);
        let oldest =
            || async { below.lock(&LockScope::Store, LockMode::Exclusive).await.unwrap().oldest_shared() };
        assert!(oldest().await.is_some());
        of_task.sleep(Duration::from_mins(1)).await;
        assert_eq!((oldest().await, segments(&below).await), (None, 1));
    });
}

/// Proves H201: the chunks of a dropped pack may have their other copies in packs that the same segments record.
#[test]
fn more_records_than_a_segment_has_go_to_several_and_drops_to_the_last_one() {
    block_on(async {
        let (faults, below) = with_faults();
        let packed = open(&below, "many").await;
        put(&packed, 0).await;
        packed.barrier_of_holder().await.unwrap();
        let dropped = names_of_packs(&below).await;
        for number in 1..6 {
            put_unrecorded(&packed, &faults, number).await;
        }
        // As a collection does that copies a chunk in use.
        let Key::Chunk(digest) = chunk(0) else { unreachable!() };
        let copy = packed.readable_copies(&digest).await.unwrap()[0];
        packed.append(&copy, &blob(0)).await.unwrap();
        {
            let mut state = packed.packs.state();
            state.writer.max_records = 2;
            state.writer.drops.extend(&dropped);
        }
        let is_segment = |key: &Key| matches!(key, Key::Segment(_));
        faults.add(Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable)).keys(is_segment).nth(3));
        packed.barrier_of_holder().await.unwrap_err();
        let other = open(&below, "after a crash").await;
        drop(other.lock_shared().await);
        assert!(is_reliable(&other, 0).await);
        packed.barrier_of_holder().await.unwrap();
        assert_eq!(segments(&below).await, 1 + 3);
        let other = open(&below, "whole").await;
        drop(other.lock_shared().await);
        for number in 0..6 {
            assert!(is_reliable(&other, number).await, "{number}");
        }
    });
}
