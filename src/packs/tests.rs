use std::time::Duration;

use bytes::Bytes;
use futures::executor::block_on;

use super::*;
use crate::backend::fault::{Action, FaultBackend, Rule};
use crate::backend::record::Method;
use crate::backend::{
    ListEntry, ListQuery, LockMode, LockScope, MemoryBackend, ObjectInfo, PutMode, Removal, Touched, list_all,
};
use crate::error::ErrorKind;
use crate::format::Digest;
use crate::format::layout::{Key, PackName, Prefix};
use crate::packs::reclaim::PackState;
use crate::rt::{SimRuntime, ThreadRuntime};

const TARGET: usize = 8 << 20;

pub(super) fn memory() -> Arc<dyn Backend> {
    Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())))
}

pub(super) fn chunk(number: u32) -> Key {
    Key::Chunk(Digest::of(&number.to_le_bytes()))
}

pub(super) fn blob(number: u32) -> Bytes {
    Bytes::from(vec![number.to_le_bytes()[0]; 100])
}

pub(super) async fn open(below: &Arc<dyn Backend>, process: &str) -> PackedBackend {
    let limits = Limits { index_bytes: 1 << 20, local: None, memory_bytes: 4 * TARGET, target_bytes: TARGET };
    PackedBackend::open(Arc::clone(below), process, limits).await.unwrap()
}

pub(super) async fn put(packed: &PackedBackend, number: u32) {
    packed.put(&chunk(number), blob(number), PutMode::Create).await.unwrap();
}

#[test]
fn a_chunk_is_read_back_before_and_after_it_is_stored() {
    block_on(async {
        let below = memory();
        let packed = open(&below, "a").await;
        put(&packed, 1).await;
        assert_eq!(packed.get(&chunk(1), 100).await.unwrap().bytes, blob(1));
        assert!(list_all(below.as_ref(), &ListQuery::all(Prefix::Packs)).await.unwrap().entries().is_empty());
        packed.barrier_of_holder().await.unwrap();
        for handle in [packed, open(&below, "b").await] {
            assert_eq!(handle.get(&chunk(1), 100).await.unwrap().bytes, blob(1));
            assert_eq!(handle.get(&chunk(1), 99).await.unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(handle.get(&chunk(2), 100).await.unwrap_err().kind(), ErrorKind::NotFound);
        }
    });
}

#[test]
fn chunks_that_could_not_be_stored_fail_each_barrier_until_one_stores_them() {
    block_on(async {
        let faults = Arc::new(FaultBackend::new(memory()));
        let below: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        let packed = open(&below, "a").await;
        put(&packed, 1).await;
        let is_pack = |key: &Key| matches!(key, Key::Pack(_));
        faults.add(Rule::on(Method::Put, Action::FailBefore(ErrorKind::Full)).keys(is_pack));
        assert_eq!(packed.barrier_of_holder().await.unwrap_err().kind(), ErrorKind::Full);
        let put_again = packed.put(&chunk(2), blob(2), PutMode::Create).await;
        assert_eq!(put_again.unwrap_err().kind(), ErrorKind::Full);
        assert_eq!(packed.barrier_of_holder().await.unwrap_err().kind(), ErrorKind::Full);
        faults.clear();
        // The next writer locks the store first.
        drop(packed.lock_shared().await);
        put(&packed, 2).await;
        packed.barrier_of_holder().await.unwrap();
        let other = open(&below, "b").await;
        for number in [1, 2] {
            assert_eq!(other.get(&chunk(number), 100).await.unwrap().bytes, blob(number));
        }
    });
}

impl PackedBackend {
    pub(super) async fn lock_shared(&self) -> Box<dyn crate::backend::LockGuard> {
        let backend: &dyn Backend = self;
        backend.lock(&LockScope::Store, LockMode::Shared).await.unwrap()
    }
}

/// Others may add packs beside a shared lock, so an exclusive one of the same process reads the view again.
#[test]
fn an_exclusive_lock_beside_a_shared_one_sees_the_chunks_of_other_processes() {
    block_on(async {
        let below = memory();
        let (packed, other) = (open(&below, "a").await, open(&below, "b").await);
        let _shared = packed.lock_shared().await;
        put(&other, 1).await;
        other.barrier_of_holder().await.unwrap();
        let backend: &dyn Backend = &packed;
        let _alone = backend.lock(&LockScope::Store, LockMode::Exclusive).await.unwrap();
        assert!(matches!(backend.touch(&[chunk(1)]).await.unwrap()[..], [Touched::Present(_)]));
    });
}

/// A page that shows nothing, since its chunks were deleted, does not end the listing.
#[test]
fn a_listing_goes_on_behind_deleted_chunks() {
    block_on(async {
        let below = memory();
        let packed = open(&below, "a").await;
        let mut digests: Vec<_> = (0..10_002_u32).map(|number| Digest::of(&number.to_le_bytes())).collect();
        for digest in &digests {
            packed.put(&Key::Chunk(*digest), Bytes::from_static(&[0; 12]), PutMode::Create).await.unwrap();
        }
        packed.barrier_of_holder().await.unwrap();
        digests.sort_unstable();
        let removals: Vec<_> =
            digests[..10_001].iter().map(|digest| Removal::any(Key::Chunk(*digest))).collect();
        assert!(packed.delete(&removals).await.unwrap().iter().all(Result::is_ok));
        packed.barrier_of_holder().await.unwrap();
        for handle in [packed, open(&below, "b").await] {
            let listed = list_all(&handle, &ListQuery::all(Prefix::Chunks)).await.unwrap();
            let paths: Vec<_> = listed.entries().iter().map(ListEntry::path).collect();
            assert_eq!(paths, [Key::Chunk(digests[10_001]).path()]);
        }
    });
}

/// A segment that is stored while the view is read again is not forgotten.
#[test]
fn a_view_that_is_read_while_a_segment_is_stored_keeps_it() {
    block_on(async {
        let below = memory();
        let packed = open(&below, "a").await;
        for number in 0..50 {
            put(&packed, number).await;
            let (stored, read) =
                futures::future::join(packed.barrier_of_holder(), packed.packs.refresh()).await;
            stored.and(read).unwrap();
            let found = packed.touch(&[chunk(number)]).await.unwrap();
            assert!(matches!(found[..], [Touched::Present(_)]), "{number}");
        }
    });
}

/// Proves H205. The put of a drop that got no answer may be executed after another process began to rely on the pack again.
#[test]
fn a_chunk_in_a_dropped_pack_is_read_as_long_as_the_pack_exists() {
    block_on(async {
        let below = memory();
        let packed = open(&below, "a").await;
        put(&packed, 1).await;
        packed.barrier_of_holder().await.unwrap();
        let names = names_of_packs(&below).await;
        packed.drop_packs(&names.into_iter().collect()).await.unwrap();
        for handle in [packed, open(&below, "b").await] {
            assert_eq!(handle.get(&chunk(1), 100).await.unwrap().bytes, blob(1));
            assert!(matches!(handle.touch(&[chunk(1)]).await.unwrap()[..], [Touched::Absent]));
        }
    });
}

pub(super) async fn names_of_packs(below: &Arc<dyn Backend>) -> Vec<PackName> {
    let listed = list_all(below.as_ref(), &ListQuery::all(Prefix::Packs)).await.unwrap();
    let name = |entry: &ListEntry| match entry {
        ListEntry::Object(ObjectInfo { key: Key::Pack(name), .. }) => Some(*name),
        _ => None,
    };
    listed.entries().iter().filter_map(name).collect()
}

pub(super) async fn is_reliable(packed: &PackedBackend, number: u32) -> bool {
    matches!(packed.touch(&[chunk(number)]).await.unwrap()[..], [Touched::Present(_)])
}

pub(super) async fn delete(below: &Arc<dyn Backend>, key: Key) {
    assert!(below.delete(&[Removal::any(key)]).await.unwrap().iter().all(Result::is_ok));
}

/// Proves H202.
#[test]
fn a_merged_segment_keeps_the_drop_of_a_pack_that_still_exists() {
    block_on(async {
        let below = memory();
        let packed = open(&below, "a").await;
        put(&packed, 0).await;
        packed.barrier_of_holder().await.unwrap();
        packed.drop_packs(&names_of_packs(&below).await.into_iter().collect()).await.unwrap();
        for number in 1..40 {
            put(&packed, number).await;
            packed.barrier_of_holder().await.unwrap();
        }
        let begin = packed.packs.begin_listing().await.unwrap();
        assert_eq!(packed.compact(&begin, &|_| true).await.unwrap().merged, 1);
        let other = open(&below, "b").await;
        drop(other.lock_shared().await);
        assert!(is_reliable(&other, 1).await && !is_reliable(&other, 0).await);
        // Without its drop it would be an orphan, and be adopted.
        let begin = other.packs.begin_listing().await.unwrap();
        let states = other.list_states(&begin).await.unwrap();
        let dropped = states.iter().filter(|pack| matches!(pack.state, PackState::Dropped(_))).count();
        assert_eq!(dropped, 1, "{states:?}");
    });
}

/// Proves H204: a crash after the merge loses the quarantine, and must not lose the copy.
#[test]
fn a_merged_segment_keeps_copies_whose_quarantine_is_not_stored() {
    block_on(async {
        let below = memory();
        let packed = open(&below, "a").await;
        for number in 0..40 {
            put(&packed, number).await;
            packed.barrier_of_holder().await.unwrap();
        }
        let Key::Chunk(digest) = chunk(1) else { unreachable!() };
        let quarantined = Key::Quarantined(digest, 0);
        let housekeeping = packed.housekeeping().unwrap();
        housekeeping.copy(&chunk(1), &quarantined, PutMode::Create).await.unwrap();
        let begin = packed.packs.begin_listing().await.unwrap();
        assert_eq!(packed.compact(&begin, &|_| true).await.unwrap().merged, 1);
        open(&below, "after a crash").await.get(&chunk(1), 100).await.unwrap();
        packed.barrier_of_holder().await.unwrap();
        let other = open(&below, "b").await;
        assert_eq!(other.get(&chunk(1), 100).await.unwrap_err().kind(), ErrorKind::NotFound);
        other.get(&quarantined, 100).await.unwrap();
    });
}

/// Proves H205.
///
/// The lock of the store may be released by then, and another process rely on the pack.
#[test]
fn a_drop_that_failed_is_not_recorded_by_a_later_barrier() {
    block_on(async {
        let faults = Arc::new(FaultBackend::new(memory()));
        let below: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        let packed = open(&below, "a").await;
        put(&packed, 1).await;
        packed.barrier_of_holder().await.unwrap();
        let names = names_of_packs(&below).await.into_iter().collect();
        let is_segment = |key: &Key| matches!(key, Key::Segment(_));
        faults.add(Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable)).keys(is_segment));
        assert_eq!(packed.drop_packs(&names).await.unwrap_err().kind(), ErrorKind::Unavailable);
        faults.clear();
        put(&packed, 2).await;
        packed.barrier_of_holder().await.unwrap();
        let other = open(&below, "b").await;
        drop(other.lock_shared().await);
        assert!(is_reliable(&other, 1).await && is_reliable(&other, 2).await);
    });
}

/// Proves H202.
#[test]
fn a_pack_that_was_deleted_before_it_was_recorded_is_forgotten_under_the_lock() {
    block_on(async {
        let faults = Arc::new(FaultBackend::new(memory()));
        let below: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        let packed = open(&below, "a").await;
        put(&packed, 1).await;
        let is_segment = |key: &Key| matches!(key, Key::Segment(_));
        faults.add(Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable)).keys(is_segment));
        assert_eq!(packed.barrier_of_holder().await.unwrap_err().kind(), ErrorKind::Unavailable);
        faults.clear();
        // Another process took it for an orphan, and deleted it.
        delete(&below, Key::Pack(names_of_packs(&below).await[0])).await;
        drop(packed.lock_shared().await);
        assert!(!is_reliable(&packed, 1).await);
        put(&packed, 1).await;
        packed.barrier_of_holder().await.unwrap();
        assert_eq!(open(&below, "b").await.get(&chunk(1), 100).await.unwrap().bytes, blob(1));
    });
}

/// Proves H203: also if the segment with the drop is damaged, or does not exist any more.
#[test]
fn a_writer_relies_on_no_pack_that_was_deleted_although_a_segment_names_it() {
    for is_damaged in [true, false] {
        block_on(async {
            let below = memory();
            let packed = open(&below, "a").await;
            put(&packed, 1).await;
            packed.barrier_of_holder().await.unwrap();
            let packs = names_of_packs(&below).await;
            packed.drop_packs(&packs.iter().copied().collect()).await.unwrap();
            delete(&below, Key::Pack(packs[0])).await;
            let mut segments: Vec<_> = packed.packs.state().view.segments().keys().copied().collect();
            segments.sort_unstable();
            let drop_key = Key::Segment(segments[1]);
            if is_damaged {
                let mut bytes = below.get(&drop_key, u64::MAX).await.unwrap().bytes.to_vec();
                bytes[20] ^= 1;
                below.put(&drop_key, bytes.into(), PutMode::Replace).await.unwrap();
            } else {
                delete(&below, drop_key).await;
            }
            let other = open(&below, "b").await;
            drop(other.lock_shared().await);
            assert!(!is_reliable(&other, 1).await, "damaged: {is_damaged}");
        });
    }
}

/// Proves H203. A pack whose segment was lost while a handle knew it is an orphan, and none without chunks.
#[test]
fn a_pack_is_an_orphan_once_the_segment_with_its_chunks_is_lost() {
    block_on(async {
        let below = memory();
        let packed = open(&below, "a").await;
        put(&packed, 1).await;
        packed.barrier_of_holder().await.unwrap();
        let segment = *packed.packs.state().view.segments().keys().next().unwrap();
        delete(&below, Key::Segment(segment)).await;
        packed.packs.refresh().await.unwrap();
        let begin = packed.packs.begin_listing().await.unwrap();
        let states: Vec<_> =
            packed.list_states(&begin).await.unwrap().iter().map(|pack| pack.state).collect();
        assert_eq!(states, [reclaim::PackState::Orphan]);
        assert_eq!(packed.adopt_orphans(&begin, |_| true).await.unwrap(), 1);
        packed.barrier_of_holder().await.unwrap();
        assert_eq!(open(&below, "b").await.get(&chunk(1), 100).await.unwrap().bytes, blob(1));
    });
}

/// A handle gives up chunks that do not fit into a full store once no writer holds the lock, so that deletions and collections work.
#[test]
fn a_full_store_is_writable_again_once_its_writers_gave_up() {
    block_on(async {
        let faults = Arc::new(FaultBackend::new(memory()));
        let below: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        let packed = open(&below, "a").await;
        let writer = packed.lock_shared().await;
        put(&packed, 1).await;
        let is_pack = |key: &Key| matches!(key, Key::Pack(_));
        faults.add(Rule::on(Method::Put, Action::FailBefore(ErrorKind::Full)).keys(is_pack));
        assert_eq!(packed.barrier_of_holder().await.unwrap_err().kind(), ErrorKind::Full);
        // Another one may rely on it.
        drop(packed.lock_shared().await);
        assert_eq!(packed.barrier_of_holder().await.unwrap_err().kind(), ErrorKind::Full);
        drop(writer);
        drop(packed.lock_shared().await);
        packed.barrier_of_holder().await.unwrap();
        assert!(!is_reliable(&packed, 1).await);
    });
}

/// Another handle that collects garbage meanwhile.
fn on_first(
    faults: &FaultBackend,
    method: Method,
    is: impl Fn(&Key) -> bool + Send + Sync + 'static,
    then: impl Fn() + Send + Sync + 'static,
) {
    let is_first = std::sync::atomic::AtomicBool::new(true);
    let keys = move |key: &Key| {
        if is(key) && is_first.swap(false, std::sync::atomic::Ordering::SeqCst) {
            std::thread::scope(|threads| threads.spawn(&then).join()).unwrap();
        }
        false
    };
    faults.add(Rule::on(method, Action::FailBefore(ErrorKind::Internal)).keys(keys));
}

#[test]
fn a_view_that_is_read_while_segments_are_merged_has_their_chunks() {
    for is_known in [false, true] {
        block_on(async {
            let below = memory();
            let collector = open(&below, "a").await;
            let faults = Arc::new(FaultBackend::new(Arc::clone(&below)));
            let wrapped: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
            let mut reader = open(&wrapped, "b").await;
            for number in 0..40 {
                put(&collector, number).await;
                collector.barrier_of_holder().await.unwrap();
            }
            if is_known {
                reader = open(&wrapped, "b").await;
                put(&collector, 40).await;
                collector.barrier_of_holder().await.unwrap();
            }
            let merge = move || {
                block_on(async {
                    let begin = collector.packs.begin_listing().await.unwrap();
                    assert_eq!(collector.compact(&begin, &|_| true).await.unwrap().merged, 1);
                });
            };
            on_first(&faults, Method::Get, |key| matches!(key, Key::Segment(_)), merge);
            reader.packs.refresh().await.unwrap();
            for number in 0..40 + u32::from(is_known) {
                let copy = lookup::Copy::of(&chunk(number)).unwrap();
                assert!(reader.packs.known_copy(copy).await.unwrap().is_some(), "{number}");
            }
        });
    }
}

#[test]
fn a_chunk_that_moves_twice_while_it_is_read_is_found() {
    block_on(async {
        let below = memory();
        let faults = Arc::new(FaultBackend::new(Arc::clone(&below)));
        let wrapped: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        let [first, second, third] =
            [open(&below, "a").await, open(&below, "b").await, open(&below, "c").await];
        put(&first, 1).await;
        first.barrier_of_holder().await.unwrap();
        let reader = open(&wrapped, "d").await;
        // A handle that does not know the copy stores another one, and the first one goes.
        let first_pack = names_of_packs(&below).await[0];
        let moves = |other: PackedBackend| {
            let below = Arc::clone(&below);
            move || {
                block_on(async {
                    let old = names_of_packs(&below).await;
                    put(&other, 1).await;
                    other.barrier_of_holder().await.unwrap();
                    for name in old {
                        delete(&below, Key::Pack(name)).await;
                    }
                });
            }
        };
        let is_pack = |key: &Key| matches!(key, Key::Pack(_));
        on_first(&faults, Method::GetRange, is_pack, moves(second));
        on_first(
            &faults,
            Method::GetRange,
            move |key| matches!(key, Key::Pack(name) if *name != first_pack),
            moves(third),
        );
        assert_eq!(reader.get(&chunk(1), 100).await.unwrap().bytes, blob(1));
    });
}

#[test]
fn a_chunk_that_moves_is_found_although_another_task_read_the_view_meanwhile() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let below: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
        let faults = Arc::new(FaultBackend::new(Arc::clone(&below)));
        let wrapped: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        let [first, second] = [open(&below, "a").await, open(&below, "b").await];
        put(&first, 1).await;
        first.barrier_of_holder().await.unwrap();
        let old = names_of_packs(&below).await;
        let reader = open(&wrapped, "c").await;
        // As with a lease: other processes change nothing.
        let backend: &dyn Backend = &reader;
        let _alone = backend.lock(&LockScope::Store, LockMode::Exclusive).await.unwrap();
        faults.add(Rule::on(Method::GetRange, Action::Delay(Duration::from_secs(10))).first(1));
        let moves = async {
            sim.sleep(Duration::from_secs(5)).await;
            put(&second, 1).await;
            second.barrier_of_holder().await.unwrap();
            delete(&below, Key::Pack(old[0])).await;
            reader.packs.refresh().await.unwrap();
        };
        let (read, ()) = futures::future::join(reader.get(&chunk(1), 100), moves).await;
        assert_eq!(read.unwrap().bytes, blob(1));
    });
}
