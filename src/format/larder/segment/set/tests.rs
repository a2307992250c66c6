use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::usage::{PackUse, SegmentUse};
use super::*;
use crate::format::larder::pack::PackClass;
use crate::format::larder::pack::name::SessionId;
use crate::format::larder::segment::RecordKind;
use crate::format::larder::segment::builder::SegmentBuilder;
use crate::format::larder::segment::head::HeadPart;

/// Number of chunks in random segments.
const CHUNKS: u8 = 60;
/// All digests.
const ALL: RangeInclusive<u64> = 0..=u64::MAX;

fn segment_name(n: u32) -> SegmentName {
    SegmentName { session: SessionId::from_bytes([0xa5; 16]), n }
}

fn pack(number: u8) -> SegmentPack {
    let name = PackName { session: SessionId::from_bytes([number / 3; 16]), n: number.into() };
    let class = if number == 0 { PackClass::Metadata } else { PackClass::Data };
    SegmentPack { bytes: 1 << (20 + number % 4), class, name }
}

fn listed(number: u8) -> ListedPack {
    ListedPack { bytes: pack(number).bytes.into(), name: pack(number).name }
}

fn digest(number: u8) -> Digest {
    Digest::of(&[number])
}

fn entry(chunk: u8) -> PackEntry {
    PackEntry { digest: digest(chunk), len: 100 + u32::from(chunk), offset: 76 + 1000 * u32::from(chunk) }
}

/// Chunks in packs, by their numbers.
type Places = BTreeSet<(u8, u8)>;

fn segment(n: u32, replaces: &[u32], places: impl IntoIterator<Item = (u8, u8)>) -> Bytes {
    let mut builder = SegmentBuilder::new(segment_name(n));
    for replaced in replaces {
        builder.replace(segment_name(*replaced));
    }
    for (chunk, number) in places {
        let pack = builder.add_pack(pack(number)).unwrap();
        builder.push(pack, entry(chunk), RecordKind::Copy).unwrap();
    }
    builder.finish().unwrap().parts.concat().into()
}

fn whole(n: u32, segment: &Bytes) -> SegmentSource {
    SegmentSource::Whole(Segment::parse(&segment_name(n), segment).unwrap())
}

fn by_head(n: u32, segment: &Bytes) -> SegmentSource {
    match SegmentHead::parse(&segment_name(n), segment.len() as u64, segment) {
        Ok(HeadPart::Head(head)) => SegmentSource::Head(head),
        other => panic!("{other:?}"),
    }
}

/// A view of these segments, by their numbers.
fn set(segments: &[(u32, Bytes)]) -> SegmentSet {
    let mut set = SegmentSet::default();
    set.add(segments.iter().map(|(n, segment)| whole(*n, segment)).collect());
    set.list((0..10).map(listed));
    set
}

fn packs_of(places: &[ChunkPlace]) -> Vec<SegmentPack> {
    places.iter().map(|place| place.pack).collect()
}

fn names(set: &SegmentSet) -> Vec<u32> {
    set.segments().map(|(name, _)| name.n).collect()
}

#[test]
fn a_chunk_has_its_places_in_listed_packs_the_largest_one_first() {
    let first = segment(0, &[], [(1, 2), (1, 0), (1, 4), (1, 7), (2, 5)]);
    let second = segment(1, &[], [(1, 2), (1, 3)]);
    let mut set = set(&[(0, first), (1, second)]);
    assert_eq!(packs_of(&set.find(&digest(1), &[])), [pack(3), pack(7), pack(2), pack(0), pack(4)]);
    assert_eq!(set.find(&digest(1), &[])[0].entry, entry(1));
    assert_eq!(set.find(&digest(3), &[]), []);
    set.remove_listed(&pack(7).name);
    set.add_listed(ListedPack { bytes: 5, ..listed(2) });
    assert_eq!(packs_of(&set.find(&digest(1), &[])), [pack(3), pack(0), pack(4)]);
    assert_eq!(set.missing_packs().collect::<Vec<_>>(), [pack(2), pack(7)]);
    set.add_listed(listed(2));
    assert_eq!(packs_of(&set.find(&digest(1), &[])), [pack(3), pack(2), pack(0), pack(4)]);
    let mark = digest(1).mark();
    assert_eq!(
        [mark - 1, mark, mark + 1].map(|mark| set.chunks(&(mark..=mark), &[]).next().is_some()),
        [false, true, false]
    );
    set.list([]);
    assert_eq!((set.find(&digest(1), &[]), set.chunks(&ALL, &[]).next().is_none()), (vec![], true));
}

#[test]
fn a_copy_that_any_segment_calls_bad_deleted_or_dropped_does_not_count() {
    let copies = segment(0, &[], [(1, 1), (1, 2), (1, 3), (1, 4), (2, 2)]);
    let mut builder = SegmentBuilder::new(segment_name(1));
    for (number, kind) in [(2, RecordKind::Bad), (3, RecordKind::Deleted)] {
        let pack = builder.add_pack(pack(number)).unwrap();
        builder.push(pack, entry(1), kind).unwrap();
    }
    builder.drop_pack(pack(4).name);
    builder.drop_pack(pack(5).name);
    let facts = Bytes::from(builder.finish().unwrap().parts.concat());
    for segments in [[(0, &copies), (1, &facts)], [(1, &facts), (0, &copies)]] {
        for source in [whole, by_head] {
            let mut set = SegmentSet::default();
            set.list((0..10).map(listed));
            for (n, segment) in segments {
                set.add(vec![source(n, segment)]);
            }
            let loaded = load(&set, &ALL, &[copies.clone(), facts.clone()]);
            assert_eq!(packs_of(&set.find(&digest(1), &loaded)), [pack(1)]);
            assert_eq!(packs_of(&set.find(&digest(2), &loaded)), [pack(2)]);
            let (mut chunks, mut found) = (set.chunks(&ALL, &loaded), 0);
            while let Some(chunk) = chunks.next() {
                found += chunk.places.len();
            }
            assert_eq!((found, set.unnamed_packs().count()), (2, 5));
        }
    }
}

#[test]
fn superseded_segments_are_not_asked() {
    let segments: Vec<_> = [
        (0, segment(0, &[], [(1, 1), (2, 1)])),
        (1, segment(1, &[0, 9], [(1, 1)])),
        (2, segment(2, &[1], [(1, 2)])),
        (3, segment(3, &[], [(3, 3)])),
    ]
    .into();
    let set = set(&segments);
    assert_eq!((names(&set), set.superseded()), (vec![2, 3], vec![segment_name(0), segment_name(1)]));
    assert_eq!((set.find(&digest(2), &[]), packs_of(&set.find(&digest(1), &[]))), (vec![], vec![pack(2)]));
    assert_eq!(set.unnamed_packs().count(), 8);
    // In any order, one by one.
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]] {
        let mut set = SegmentSet::default();
        set.list((0..10).map(listed));
        for at in order {
            let (n, segment) = &segments[at];
            set.add(vec![whole(*n, segment)]);
            assert!(set.contains(&segment_name(*n)));
        }
        assert_eq!((names(&set), set.superseded().len()), (vec![2, 3], 2));
        assert_eq!(packs_of(&set.find(&digest(1), &[])), [pack(2)]);
        assert_eq!(set.unnamed_packs().count(), 8);
        set.remove(&segment_name(3));
        set.remove(&segment_name(0));
        assert_eq!((names(&set), set.superseded()), (vec![2], vec![segment_name(1)]));
        assert_eq!((set.find(&digest(3), &[]), set.unnamed_packs().count()), (vec![], 9));
    }
}

#[test]
fn segments_that_replace_each_other_are_both_asked() {
    let (first, second) = (segment(0, &[1], [(1, 1)]), segment(1, &[0], [(2, 2)]));
    for order in [[0, 1], [1, 0]] {
        let mut set = SegmentSet::default();
        set.list((0..10).map(listed));
        for n in order {
            set.add(vec![whole(n, if n == 0 { &first } else { &second })]);
        }
        assert_eq!((names(&set), set.superseded()), (vec![0, 1], vec![]));
        assert_eq!([1, 2].map(|chunk| set.find(&digest(chunk), &[]).len()), [1, 1]);
    }
}

/// Proves H199.
#[test]
fn a_pack_of_another_size_than_listed_is_not_used() {
    let good = segment(0, &[], [(1, 1)]);
    let mut builder = SegmentBuilder::new(segment_name(1));
    let other = builder.add_pack(SegmentPack { bytes: 1 << 19, ..pack(1) }).unwrap();
    builder.push(other, entry(2), RecordKind::Copy).unwrap();
    let bad = Bytes::from(builder.finish().unwrap().parts.concat());
    for segments in [[(0, &good), (1, &bad)], [(1, &bad), (0, &good)]] {
        for source in [whole, by_head] {
            let mut set = SegmentSet::default();
            set.list([listed(1)]);
            set.add(segments.iter().map(|(n, segment)| source(*n, segment)).collect());
            let loaded = load(&set, &ALL, &[good.clone(), bad.clone()]);
            assert_eq!(packs_of(&set.find(&digest(1), &loaded)), [pack(1)]);
            assert_eq!(set.find(&digest(2), &loaded), []);
        }
    }
}

#[test]
fn damage_in_what_was_read_is_detected_and_a_removed_segment_is_noticed() {
    let bytes = segment(0, &[], (0..100).map(|chunk| (chunk, 1)));
    let mut set = SegmentSet::default();
    set.add(vec![by_head(0, &bytes)]);
    set.list([listed(1)]);
    let reads = set.reads_of(&digest(5));
    let [read] = &reads[..] else { panic!("it has one slot") };
    let range = usize::try_from(read.range.start).unwrap()..usize::try_from(read.range.end).unwrap();
    let mut bad = bytes[range.clone()].to_vec();
    bad[40] ^= 1;
    assert_eq!(set.load(read, bad.into()).map(drop), Err(DecodeError::Checksum));
    assert!(set.load(read, bytes.slice(range.start..range.end - 1)).is_err());
    let loaded = set.load(read, bytes.slice(range.clone())).unwrap().unwrap();
    assert_eq!(set.find(&digest(5), &[loaded]).len(), 1);
    assert_eq!(set.reads_in(&ALL).len(), 1);
    set.remove(&segment_name(0));
    assert!(set.load(read, bytes.slice(range)).unwrap().is_none());
    assert_eq!((set.reads_of(&digest(5)), set.packs.len()), (vec![], 0));
}

/// Reads what the view wants of segments with these numbers.
fn load(set: &SegmentSet, marks: &RangeInclusive<u64>, segments: &[Bytes]) -> Vec<LoadedSlots> {
    let load = |read: &SlotRead| {
        let range = usize::try_from(read.range.start).unwrap()..usize::try_from(read.range.end).unwrap();
        set.load(read, segments[read.segment.n as usize].slice(range)).unwrap().unwrap()
    };
    set.reads_in(marks).iter().map(load).collect()
}

fn some_segments() -> impl Strategy<Value = Vec<(Places, BTreeSet<u32>, bool)>> {
    let places = prop::collection::btree_set((0..CHUNKS, 0..10_u8), 0..150);
    let segment = (places, prop::collection::btree_set(0..8_u32, 0..2), any::<bool>());
    prop::collection::vec(segment, 1..6)
}

/// The places of each chunk, best first, by the segments that nothing replaces.
fn model(
    segments: &[(Places, BTreeSet<u32>, bool)],
    listed: &BTreeSet<u8>,
) -> BTreeMap<Digest, Vec<SegmentPack>> {
    let mut chunks: BTreeMap<Digest, Vec<SegmentPack>> = BTreeMap::new();
    for (n, (places, ..)) in (0_u32..).zip(segments) {
        let is_replaced = segments.iter().any(|(_, replaced, _)| replaced.contains(&n));
        for (chunk, number) in places.iter().filter(|(_, number)| !is_replaced && listed.contains(number)) {
            chunks.entry(digest(*chunk)).or_default().push(pack(*number));
        }
    }
    for places in chunks.values_mut() {
        places.sort_by_key(|pack| (Reverse(pack.bytes), pack.name));
        places.dedup();
    }
    chunks
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(50))]

    /// Replacing is towards lower numbers here, so there is no circle.
    #[test]
    fn a_view_agrees_with_its_model(
        mut segments in some_segments(), listed_packs in prop::collection::btree_set(0..10_u8, 0..10), shards in 1..5_u64, live: u8, one_by_one: bool,
    ) {
        for (n, (_, replaced, _)) in (0..).zip(&mut segments) {
            replaced.retain(|replaced| *replaced < n);
        }
        let bytes: Vec<_> = (0..).zip(&segments).map(|(n, (places, replaced, _))| {
            segment(n, &replaced.iter().copied().collect::<Vec<_>>(), places.iter().copied())
        }).collect();
        let sources: Vec<_> = (0..).zip(&segments).map(|(n, (_, _, is_whole))| {
            if *is_whole { whole(n, &bytes[n as usize]) } else { by_head(n, &bytes[n as usize]) }
        }).collect();
        let mut set = SegmentSet::default();
        set.list(listed_packs.iter().copied().map(listed));
        if one_by_one {
            for source in sources {
                set.add(vec![source]);
            }
        } else {
            set.add(sources);
        }
        let model = model(&segments, &listed_packs);

        for number in 0..=CHUNKS {
            let marks = digest(number).mark()..=digest(number).mark();
            let found = set.find(&digest(number), &load(&set, &marks, &bytes));
            prop_assert_eq!(Some(packs_of(&found)).filter(|packs| !packs.is_empty()), model.get(&digest(number)).cloned());
        }
        let is_live = |digest: &Digest| digest.as_bytes()[31] < live;
        let (mut all, mut usage, width) = (Vec::new(), set.usage(), u64::MAX / shards);
        for shard in 0..shards {
            let marks = shard * width + u64::from(shard > 0)..=if shard + 1 == shards { u64::MAX } else { (shard + 1) * width };
            let loaded = load(&set, &marks, &bytes);
            let mut chunks = set.chunks(&marks, &loaded);
            while let Some(chunk) = chunks.next() {
                all.push((chunk.digest, packs_of(chunk.places)));
            }
            usage.add(set.chunks(&marks, &loaded), is_live);
        }
        prop_assert_eq!(&all, &model.clone().into_iter().collect::<Vec<_>>());

        let stored = |digest: &Digest| (0..CHUNKS).find(|number| self::digest(*number) == *digest).map_or(0, |chunk| entry(chunk).stored_bytes());
        for PackUse { copied_bytes, live_bytes, pack } in usage.packs(&set) {
            let live = model.iter().filter(|(digest, _)| is_live(digest));
            let sums = live.fold((0, 0), |(best, copied), (digest, places)| match places.iter().position(|place| *place == pack) {
                Some(0) => (best + stored(digest), copied),
                Some(_) => (best, copied + stored(digest)),
                None => (best, copied),
            });
            prop_assert_eq!((live_bytes, copied_bytes), sums);
        }
        for SegmentUse { dead_records, name, records } in usage.segments(&set) {
            let places = &segments[name.n as usize].0;
            let dead = places.iter().filter(|(chunk, pack)| !is_live(&digest(*chunk)) || !listed_packs.contains(pack));
            prop_assert_eq!((dead_records as usize, records as usize), (dead.count(), places.len()));
        }
        let named: BTreeSet<_> = all.iter().flat_map(|(_, packs)| packs).map(|pack| pack.name).collect();
        let unnamed: BTreeSet<_> = set.unnamed_packs().map(|pack| pack.name).collect();
        prop_assert!(named.is_disjoint(&unnamed));
        prop_assert_eq!(named.len() + unnamed.len(), listed_packs.len());
    }
}
