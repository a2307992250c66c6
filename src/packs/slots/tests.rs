use futures::executor::block_on;

use crate::backend::fault::{Action, FaultBackend, Rule};
use crate::backend::record::Method;
use crate::backend::{
    Backend, ListEntry, ListQuery, MemoryBackend, ObjectInfo, PutMode, Removal, Touched, list_all,
};
use crate::error::ErrorKind;
use crate::format::Digest;
use crate::format::larder::pack::PackClass;
use crate::format::layout::{Key, Prefix};
use crate::local::segments::SegmentFiles;
use crate::packs::{Limits, PackedBackend};
use crate::rt::ThreadRuntime;

use std::fs;
use std::sync::Arc;

use bytes::Bytes;

/// Enough for several slots.
const CHUNKS: u32 = 400;

fn chunk(number: u32) -> Key {
    Key::Chunk(Digest::of(&number.to_le_bytes()))
}

fn blob(number: u32) -> Bytes {
    Bytes::from(vec![number.to_le_bytes()[0]; 100])
}

/// A handle of another process that has this memory for records.
async fn open(
    below: &Arc<dyn Backend>,
    process: &str,
    index_bytes: usize,
    local: Option<Arc<SegmentFiles>>,
) -> PackedBackend {
    let limits = Limits { index_bytes, local, memory_bytes: 32 << 20, target_bytes: 8 << 20 };
    PackedBackend::open(Arc::clone(below), process, limits).await.unwrap()
}

/// Stores a chunk for each number, in a segment of its own for each range, without its end.
async fn filled(ranges: &[(u32, u32)]) -> Arc<FaultBackend> {
    let faults = Arc::new(FaultBackend::new(Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())))));
    let below: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
    let packed = open(&below, "writer", 1 << 20, None).await;
    for (first, end) in ranges {
        for number in *first..*end {
            let digest = Digest::of(&number.to_le_bytes());
            packed.packs.append_copy((digest, PackClass::Data), &blob(number)).await.unwrap();
        }
        packed.barrier_of_holder().await.unwrap();
    }
    faults
}

async fn segments(below: &dyn Backend) -> Vec<Key> {
    let listed = list_all(below, &ListQuery::all(Prefix::Segments)).await.unwrap();
    let key = |entry: &ListEntry| match entry {
        ListEntry::Object(ObjectInfo { key, .. }) => Some(key.clone()),
        _ => None,
    };
    listed.entries().iter().filter_map(key).collect()
}

async fn is_present(packed: &PackedBackend, number: u32) -> bool {
    matches!(packed.touch(&[chunk(number)]).await.unwrap()[..], [Touched::Present(_)])
}

async fn listed(packed: &PackedBackend) -> Vec<String> {
    let listed = list_all(packed, &ListQuery::all(Prefix::Chunks)).await.unwrap();
    listed.entries().iter().map(ListEntry::path).collect()
}

/// Proves H206.
#[test]
fn a_view_finds_the_same_chunks_whether_it_has_the_records_or_reads_them_by_range() {
    block_on(async {
        let below: Arc<dyn Backend> = filled(&[(0, CHUNKS), (CHUNKS / 2, CHUNKS + 9)]).await;
        let in_memory = open(&below, "a", 1 << 20, None).await;
        let by_range = open(&below, "b", 0, None).await;
        assert_eq!(by_range.packs.state().view.bytes_in_memory(), 0);
        assert!(in_memory.packs.state().view.bytes_in_memory() > 0);
        for number in 0..CHUNKS + 20 {
            assert_eq!(is_present(&by_range, number).await, is_present(&in_memory, number).await, "{number}");
            let read = by_range.get(&chunk(number), 100).await;
            assert_eq!(read.is_ok(), number < CHUNKS + 9);
            assert!(read.is_err() || read.unwrap().bytes == blob(number));
        }
        let all = listed(&by_range).await;
        assert_eq!((all.len(), &all), (CHUNKS as usize + 9, &listed(&in_memory).await));
        // A chunk that is there is not stored again.
        let again = by_range.put(&chunk(3), blob(3), PutMode::Create).await;
        assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
    });
}

#[test]
fn what_a_handle_stores_leaves_its_memory_when_it_is_full() {
    block_on(async {
        let below: Arc<dyn Backend> = filled(&[]).await;
        let packed = open(&below, "a", 4000, None).await;
        for number in 0..CHUNKS {
            packed.put(&chunk(number), blob(number), PutMode::Create).await.unwrap();
            if number % 50 == 49 {
                packed.barrier_of_holder().await.unwrap();
                assert!(packed.packs.state().view.bytes_in_memory() <= 4000);
            }
        }
        for number in 0..CHUNKS {
            assert!(is_present(&packed, number).await, "{number}");
        }
    });
}

/// Proves H199, H206. A damaged slot is a damaged segment: what only it names counts as missing, and no listing leaves it out silently.
#[test]
fn a_damaged_slot_makes_the_listing_fail_and_its_chunks_missing() {
    block_on(async {
        let below: Arc<dyn Backend> = filled(&[(0, CHUNKS), (0, 1)]).await;
        let packed = open(&below, "a", 0, None).await;
        let mut sized = Vec::new();
        for key in segments(below.as_ref()).await {
            sized.push((below.head(&key).await.unwrap().size, key));
        }
        let (_, key) = sized.into_iter().max_by_key(|(size, _)| *size).unwrap();
        let mut bytes = below.get(&key, u64::MAX).await.unwrap().bytes.to_vec();
        let at = bytes.len() - 32 - 44;
        bytes[at] ^= 1;
        below.put(&key, bytes.into(), PutMode::Replace).await.unwrap();
        let failed = list_all(&packed, &ListQuery::all(Prefix::Chunks)).await.unwrap_err();
        assert_eq!(failed.kind(), ErrorKind::Corrupt);
        assert_eq!(packed.check_segments().unwrap_err().kind(), ErrorKind::Corrupt);
        let missing = packed.get(&chunk(7), 100).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
    });
}

/// Proves H206. Another process merged the segment and deleted it.
#[test]
fn a_look_up_in_a_segment_that_was_replaced_reads_the_merged_one() {
    block_on(async {
        let below: Arc<dyn Backend> = filled(&[(0, CHUNKS)]).await;
        let packed = open(&below, "a", 0, None).await;
        let other = open(&below, "b", 1 << 20, None).await;
        for number in CHUNKS..CHUNKS + 40 {
            other.put(&chunk(number), blob(number), PutMode::Create).await.unwrap();
            other.barrier_of_holder().await.unwrap();
        }
        let begin = other.packs.begin_listing().await.unwrap();
        assert_eq!(other.compact(&begin, &|_| true).await.unwrap().removed, 41);
        assert_eq!(packed.get(&chunk(7), 100).await.unwrap().bytes, blob(7));
        assert!(is_present(&packed, CHUNKS + 7).await);
    });
}

#[test]
fn segments_that_another_one_replaces_are_not_read() {
    block_on(async {
        let faults = filled(&[(0, 5), (5, 9)]).await;
        let below: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        let other = open(&below, "b", 1 << 20, None).await;
        let old = segments(below.as_ref()).await;
        let begin = other.packs.begin_listing().await.unwrap();
        for number in 9..60 {
            other.put(&chunk(number), blob(number), PutMode::Create).await.unwrap();
            other.barrier_of_holder().await.unwrap();
        }
        // They stay, as where listings lag.
        faults.add(Rule::on(Method::Delete, Action::FailBefore(ErrorKind::Unavailable)));
        assert!(other.compact(&begin, &|_| true).await.is_err());
        faults.clear();
        let is_old = move |key: &Key| old.contains(key);
        faults.add(Rule::on(Method::Get, Action::FailBefore(ErrorKind::Unavailable)).keys(is_old));
        let packed = open(&below, "a", 0, None).await;
        packed.packs.refresh().await.unwrap();
        assert!(is_present(&packed, 3).await && is_present(&packed, 59).await);
    });
}

/// Proves H207.
#[test]
fn large_segments_are_copied_once_and_read_from_the_copy_while_it_is_good() {
    block_on(async {
        let scratch = larder_testing::scratch();
        let faults = filled(&[(0, CHUNKS)]).await;
        let below: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        let files = || Some(Arc::new(SegmentFiles::open(scratch.path()).unwrap()));
        drop(open(&below, "a", 0, files()).await);
        let copies: Vec<_> =
            fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(copies.len(), 1);
        let is_segment = |key: &Key| matches!(key, Key::Segment(_));
        let cut = || {
            let cut = Rule::on(Method::Get, Action::FailBefore(ErrorKind::Unavailable));
            cut.or(Method::GetRange).keys(is_segment)
        };
        faults.add(cut());
        let packed = open(&below, "b", 0, files()).await;
        for number in 0..CHUNKS {
            assert!(is_present(&packed, number).await);
        }
        // Damage of the copy: of its head, and of its records.
        for at_end in [false, true] {
            let mut bytes = fs::read(&copies[0]).unwrap();
            let at = if at_end { bytes.len() - 40 } else { 60 };
            bytes[at] ^= 1;
            fs::write(&copies[0], bytes).unwrap();
            faults.clear();
            let packed = open(&below, "c", 0, files()).await;
            for number in 0..CHUNKS {
                assert!(is_present(&packed, number).await);
            }
            assert!(packed.check_segments().is_ok());
            drop(open(&below, "d", 0, files()).await);
            faults.add(cut());
            let packed = open(&below, "e", 0, files()).await;
            assert!(is_present(&packed, 1).await, "it was copied again");
        }
        // A segment that the store does not have any more has no copy.
        faults.clear();
        let key = segments(below.as_ref()).await.remove(0);
        assert!(below.delete(&[Removal::any(key)]).await.unwrap()[0].is_ok());
        drop(open(&below, "f", 0, files()).await);
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
    });
}
