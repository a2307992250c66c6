use std::collections::BTreeMap;
use std::str::FromStr as _;

use proptest::prelude::*;

use super::builder::{FinishedSegment, SegmentBuilder};
use super::*;
use crate::buffers::Buffers;
use crate::format::larder::pack::builder::PackBuilder;

fn name() -> SegmentName {
    SegmentName { session: SessionId::from_bytes([0xa5; 16]), n: 3 }
}

fn other(n: u32) -> SegmentName {
    SegmentName { n, ..name() }
}

fn pack(session: u8, n: u32, bytes: u32) -> SegmentPack {
    let name = PackName { session: SessionId::from_bytes([session; 16]), n };
    SegmentPack { bytes, class: PackClass::Data, name }
}

fn entry(digest: [u8; 32], offset: u32, len: u32) -> PackEntry {
    PackEntry { digest: Digest::from_bytes(digest), len, offset }
}

/// An exclusion of a copy in pack 1 of session 6.
fn exclusion(digest: [u8; 32], n: u32, reason: ExclusionReason) -> Exclusion {
    Exclusion { entry: entry(digest, 76, 100), pack: pack(6, n, 0).name, reason }
}

fn joined(segment: &FinishedSegment) -> Bytes {
    segment.parts.concat().into()
}

/// A segment of these chunks, each in a pack of its own number.
fn segment(chunks: impl IntoIterator<Item = Digest>) -> Bytes {
    let mut builder = SegmentBuilder::new(name());
    builder.replace(other(1));
    builder.drop_pack(pack(4, 1, 0).name);
    builder.exclude(exclusion([7; 32], 1, ExclusionReason::Bad)).unwrap();
    builder.exclude(exclusion([7; 32], 2, ExclusionReason::Deleted)).unwrap();
    for (number, digest) in (0_u32..).zip(chunks) {
        let pack = builder.add_pack(pack(1, number % 3, 1 << 20)).unwrap();
        builder.push(pack, PackEntry { digest, len: 12, offset: 76 + number }).unwrap();
    }
    joined(&builder.finish().unwrap())
}

fn some_digests(count: u32) -> impl Iterator<Item = Digest> {
    (0..count).map(|number| Digest::of(&number.to_le_bytes()))
}

fn find(segment: &Segment, digest: &Digest) -> Vec<SegmentRecord> {
    let slots = segment.head().slot_table();
    segment.records().find_in(slots.numbers_of(slots.slot_of(digest)), digest).collect()
}

fn head_of(segment: &Bytes) -> SegmentHead {
    match SegmentHead::parse(&name(), segment.len() as u64, segment) {
        Ok(HeadPart::Head(head)) => head,
        other => panic!("{other:?}"),
    }
}

fn head_error(segment: &Bytes) -> Option<DecodeError> {
    SegmentHead::parse(&name(), segment.len() as u64, segment).err()
}

/// Puts all checksums right, with the counts in the header.
fn sealed(segment: &[u8]) -> Bytes {
    let mut segment = segment.to_vec();
    let count = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| segment[at + byte]));
    let layout = Layout {
        packs: count(32),
        replaced: count(36),
        records: count(40),
        dropped: count(44),
        exclusions: count(48),
    };
    let header = crc32fast::hash(&segment[..52]);
    segment[52..56].copy_from_slice(&header.to_le_bytes());
    let mut start = layout.records_offset();
    for slot in 0..layout.slots() {
        let at = layout.slots_offset() + SLOT_BYTES * slot;
        let end = u32::from_le_bytes(std::array::from_fn(|byte| segment[at + byte]));
        let end = layout.records_offset() + RECORD_BYTES * end as usize;
        let checksum = segment.get(start..end).map_or(0, crc32fast::hash);
        segment[at + 4..at + 8].copy_from_slice(&checksum.to_le_bytes());
        start = end;
    }
    let at = layout.head_checksum_offset();
    let checksum = Digest::of(&segment[..at]);
    segment[at..at + 32].copy_from_slice(checksum.as_bytes());
    let at = segment.len() - 32;
    let checksum = Digest::of(&segment[..at]);
    segment[at..].copy_from_slice(checksum.as_bytes());
    segment.into()
}

#[test]
fn the_magic_number_is_the_digest_of_its_text() {
    assert_eq!(Digest::of(b"larder index segment v1.0").as_bytes()[..8], MAGIC);
}

#[test]
fn a_name_has_one_text_and_one_path() {
    let path = ".larder/index/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5-3";
    assert_eq!((name().path().as_str(), SegmentName::from_path(path)), (path, Some(name())));
    for wrong in [
        ".larder/index/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5-03",
        ".larder/index/A5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5-3",
        ".larder/index/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5-3",
        ".larder/index/a5/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5-3",
        ".larder/packs/a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5-3",
        "a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5-3",
    ] {
        assert_eq!(SegmentName::from_path(wrong), None, "{wrong}");
    }
}

/// The checksums were computed with Python.
#[test]
fn a_segment_has_exactly_these_bytes() {
    let mut builder = SegmentBuilder::new(name());
    let late = builder.add_pack(pack(1, 7, 2000)).unwrap();
    let early = SegmentPack { class: PackClass::Metadata, ..pack(1, 0, 1000) };
    let early = builder.add_pack(early).unwrap();
    builder.push(late, entry([0xff; 32], 76, 12)).unwrap();
    builder.push(late, entry([1; 32], 300, 100)).unwrap();
    builder.push(early, entry([1; 32], 76, 100)).unwrap();
    builder.push(early, entry([1; 32], 76, 100)).unwrap();
    builder.replace(other(2));
    builder.replace(other(2));
    builder.replace(name());
    builder.exclude(exclusion([2; 32], 9, ExclusionReason::Deleted)).unwrap();
    builder.exclude(exclusion([1; 32], 9, ExclusionReason::Bad)).unwrap();
    builder.exclude(exclusion([1; 32], 9, ExclusionReason::Bad)).unwrap();
    builder.drop_pack(pack(9, 5, 0).name);

    let mut bytes = vec![0x64, 0xb6, 0x42, 0x94, 0xe9, 0xf4, 0x7b, 0xf3, 1, 0, 0, 0];
    bytes.extend([0xa5; 16]);
    bytes.extend([3, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0]);
    bytes.extend([0xa2, 0x0c, 0x20, 0xcd]);
    bytes.extend([1; 16]);
    bytes.extend([0, 0, 0, 0, 0xe8, 3, 0, 0, 1, 0, 0, 0]);
    bytes.extend([1; 16]);
    bytes.extend([7, 0, 0, 0, 0xd0, 7, 0, 0, 0, 0, 0, 0]);
    bytes.extend([0xa5; 16]);
    bytes.extend([2, 0, 0, 0]);
    bytes.extend([9; 16]);
    bytes.extend([5, 0, 0, 0]);
    bytes.extend([1; 32]);
    bytes.extend([6; 16]);
    bytes.extend([9, 0, 0, 0, 76, 0, 0, 0, 100, 0, 0, 0, 1, 0, 0, 0]);
    bytes.extend([2; 32]);
    bytes.extend([6; 16]);
    bytes.extend([9, 0, 0, 0, 76, 0, 0, 0, 100, 0, 0, 0, 2, 0, 0, 0]);
    bytes.extend([3, 0, 0, 0]);
    bytes.extend([0xce, 0x4f, 0x4e, 0x2a]);
    let head = "b020ddc7f0f4d317595ddcf11608e4313861db8289eae198933f98f75f64a2f9";
    bytes.extend(Digest::from_str(head).unwrap().as_bytes());
    bytes.extend([1; 32]);
    bytes.extend([0, 0, 0, 0, 76, 0, 0, 0, 100, 0, 0, 0]);
    bytes.extend([1; 32]);
    bytes.extend([1, 0, 0, 0, 44, 1, 0, 0, 100, 0, 0, 0]);
    bytes.extend([0xff; 32]);
    bytes.extend([1, 0, 0, 0, 76, 0, 0, 0, 12, 0, 0, 0]);
    let whole = "237f2b3edfb983816ac15c72840ac5c62ce921c5c770436b901c809b63b5eb0a";
    bytes.extend(Digest::from_str(whole).unwrap().as_bytes());
    let finished = builder.finish().unwrap();
    assert_eq!((finished.name, joined(&finished)), (name(), bytes.clone().into()));

    let segment = Segment::parse(&name(), &bytes.into()).unwrap();
    let head = segment.head();
    assert_eq!((head.name(), head.slot_table().records(), head.slots()), (name(), 3, 1));
    assert_eq!(head.packs().map(|pack| pack.name.n).collect::<Vec<_>>(), [0, 7]);
    assert_eq!(head.replaced().collect::<Vec<_>>(), [other(2)]);
    let places = find(&segment, &Digest::from_bytes([1; 32]));
    assert_eq!(places.iter().map(|place| place.pack).collect::<Vec<_>>(), [0, 1]);
    let bad = exclusion([1; 32], 9, ExclusionReason::Bad);
    assert_eq!(head.exclusions().collect::<Vec<_>>(), [bad, exclusion([2; 32], 9, ExclusionReason::Deleted)]);
    assert_eq!(head.dropped().collect::<Vec<_>>(), [pack(9, 5, 0).name]);
    assert_eq!(head.pack(places[1].pack), Some(pack(1, 7, 2000)));
    assert_eq!(find(&segment, &Digest::from_bytes([2; 32])), []);
    assert_eq!((segment.records().len(), segment.records().get(3)), (3, None));
}

#[test]
fn an_empty_segment_is_read_back() {
    let bytes = joined(&SegmentBuilder::new(name()).finish().unwrap());
    assert_eq!(bytes.len(), 56 + 8 + 32 + 32);
    let segment = Segment::parse(&name(), &bytes).unwrap();
    assert_eq!((segment.head().slot_table().records(), segment.records().iter().count()), (0, 0));
    assert_eq!(find(&segment, &Digest::of(b"")), []);
}

#[test]
fn a_builder_takes_directories_and_refuses_what_no_reader_would_accept() {
    let pack_name = pack(2, 9, 0).name;
    let mut packed = PackBuilder::new(pack_name, PackClass::Metadata, Buffers::new(0).take(0));
    for number in 0..100_u32 {
        packed.push(Digest::of(&number.to_le_bytes()), &[0; 12]).unwrap();
    }
    let directory = packed.finish().unwrap().directory;
    let mut builder = SegmentBuilder::new(name());
    let conflict = Err(SegmentWriteError::Conflict);
    let (bytes, class) = (directory.pack_bytes(), PackClass::Metadata);
    let known = builder.add_pack(SegmentPack { bytes, class, name: pack_name }).unwrap();
    directory.entries().iter().for_each(|entry| builder.push(known, *entry).unwrap());
    assert_eq!(builder.add_pack(SegmentPack { bytes: bytes + 1, class, name: pack_name }), conflict);
    for bytes in [0, MIN_PACK_BYTES - 1, MAX_PACK_BYTES + 1] {
        assert_eq!(builder.add_pack(pack(3, 0, bytes)), Err(SegmentWriteError::Misplaced));
    }
    for (offset, len) in [(75, 12), (76, 11), (76, bytes - 76 - 103), (76, u32::MAX), (u32::MAX, 12)] {
        let pushed = builder.push(known, entry([0; 32], offset, len));
        assert_eq!(pushed, Err(SegmentWriteError::Misplaced), "{offset} {len}");
    }
    let misplaced =
        Exclusion { entry: entry([0; 32], 75, 12), ..exclusion([0; 32], 1, ExclusionReason::Bad) };
    assert_eq!(builder.exclude(misplaced), Err(SegmentWriteError::Misplaced));
    builder.push(known, entry([0; 32], 76, bytes - 76 - 104)).unwrap();
    let segment = joined(&builder.finish().unwrap());
    let segment = Segment::parse(&name(), &segment).unwrap();
    for entry in directory.entries() {
        assert_eq!(find(&segment, &entry.digest), [SegmentRecord { entry: *entry, pack: 0 }]);
    }
    let mut builder = SegmentBuilder::new(name());
    let pack = builder.add_pack(pack(1, 0, 1000)).unwrap();
    builder.push(pack, entry([1; 32], 76, 12)).unwrap();
    builder.push(pack, entry([1; 32], 77, 12)).unwrap();
    assert_eq!(builder.finish().map(drop), Err(SegmentWriteError::Conflict));
}

#[test]
fn a_slot_is_made_for_64_records() {
    for (records, bits) in [(0, 0), (64, 0), (65, 1), (128, 1), (129, 2), (1 << 20, 14), (MAX_RECORDS, 18)] {
        let layout = Layout { dropped: 0, exclusions: 0, packs: 0, records, replaced: 0 };
        assert_eq!((layout.slot_bits(), layout.slots()), (bits, 1 << bits), "{records}");
    }
    let first_bits = Digest::from_bytes([0b1010_0000; 32]);
    let layout = |records| Layout { dropped: 0, exclusions: 0, packs: 0, records, replaced: 0 };
    assert_eq!(
        [64, 65, 129, 257].map(|records| layout(records).slot_of_mark(first_bits.mark())),
        [0, 1, 2, 5]
    );
}

#[test]
fn a_head_says_how_many_bytes_it_needs() {
    let segment = segment(some_digests(300));
    let head = head_of(&segment);
    assert_eq!(head.bytes(), 56 + 3 * 28 + 20 + 20 + 2 * 64 + 8 * 8 + 32);
    for len in 0..=segment.len() {
        match SegmentHead::parse(&name(), segment.len() as u64, &segment.slice(..len)) {
            Ok(HeadPart::Needs { prefix_bytes: 56 }) => assert!(len < 56),
            Ok(HeadPart::Needs { prefix_bytes }) => assert!(len < head.bytes() && prefix_bytes == 404),
            Ok(HeadPart::Head(read)) => assert!(len >= head.bytes() && read.bytes() == head.bytes()),
            Err(error) => panic!("{len}: {error}"),
        }
    }
}

#[test]
fn the_size_of_the_object_follows_from_the_counts() {
    let segment = segment(some_digests(3));
    let want = segment.len() as u64;
    for have in [want - 1, want + 1, want + 44, u64::MAX] {
        let read = SegmentHead::parse(&name(), have, &segment).map(drop);
        assert_eq!(read, Err(DecodeError::Truncated { want, have }));
    }
}

#[test]
fn every_changed_byte_and_every_truncation_is_detected() {
    let good = segment(some_digests(80));
    Segment::parse(&name(), &good).unwrap();
    for at in 0..good.len() {
        assert!(Segment::parse(&name(), &good.slice(..at)).is_err(), "{at} bytes");
        for mask in [1, 0x80, 0xff, 0x5a] {
            let mut bad = good.to_vec();
            bad[at] ^= mask;
            assert!(Segment::parse(&name(), &bad.into()).is_err(), "byte {at}");
        }
    }
    let longer = Bytes::from([&good[..], &[0]].concat());
    assert!(Segment::parse(&name(), &longer).is_err());
    assert_eq!(
        Segment::parse(&other(4), &good).map(drop),
        Err(DecodeError::Field { offset: 12, name: "name of the segment" })
    );
}

/// Proves H199.
///
/// By ranges, damage is detected in what is read: the head and the slots, not the last checksum.
#[test]
fn a_read_by_ranges_detects_damage_in_what_it_reads() {
    let good = segment(some_digests(130));
    let head = head_of(&good);
    let slots = head.slots();
    let of_slot = |slot: usize, segment: &Bytes| {
        let range = head.range_of(&(slot..slot + 1));
        let bytes = segment.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap());
        head.records(slot..slot + 1, bytes)
    };
    for at in 0..good.len() {
        let mut bad = good.to_vec();
        bad[at] ^= 0x5a;
        let bad = Bytes::from(bad);
        assert_eq!(head_error(&bad).is_some(), at < head.bytes(), "byte {at}");
        let is_hit = |slot: usize| head.range_of(&(slot..slot + 1)).contains(&(at as u64));
        if at >= head.bytes() {
            let damaged = (0..slots).filter(|slot| of_slot(*slot, &bad).is_err());
            assert_eq!(
                damaged.collect::<Vec<_>>(),
                (0..slots).filter(|slot| is_hit(*slot)).collect::<Vec<_>>()
            );
        }
    }
    let bytes = good.slice(head.bytes()..good.len() - 32);
    assert!(head.records(0..slots, bytes.slice(1..)).is_err());
    assert!(head.records(1..slots, bytes.clone()).is_err());
    assert_eq!(head.records(0..usize::MAX, bytes).unwrap().len(), 130);
    assert!(
        head.range_of(&(9..usize::MAX)).is_empty()
            && head.range_of(&std::ops::Range { start: 3, end: 1 }).is_empty()
    );
}

/// Proves H199.
#[test]
fn malformed_segments_are_refused_whatever_their_checksums() {
    let good = segment((1..=80_u8).map(|number| Digest::from_bytes([number * 3; 32])));
    let layout = Layout { dropped: 1, exclusions: 2, packs: 3, records: 80, replaced: 1 };
    assert_eq!(sealed(&good), good);
    let (packs, replaced, slots, records) =
        (HEADER_BYTES, layout.replaced_offset(), layout.slots_offset(), layout.records_offset());
    let put = |at: usize, bytes: &[u8]| {
        let mut bad = good.to_vec();
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        Segment::parse(&name(), &sealed(&bad)).map(drop)
    };
    let field = |at: usize, name| Err(DecodeError::Field { offset: at as u64, name });
    assert_eq!(put(8, &[2]), field(8, "version"));
    assert_eq!(put(12, &[1]), field(12, "name of the segment"));
    assert_eq!(put(packs + 16, &[9]), field(packs + 28, "order of the packs"));
    assert_eq!(put(packs + 28 + 16, &[0]), field(packs + 28, "order of the packs"));
    assert_eq!(put(packs + 20, &[0, 0, 0, 0x80]), field(packs, "pack"));
    assert_eq!(put(packs + 20, &[7, 0, 0, 0]), field(packs, "pack"));
    assert_eq!(put(packs + 24, &[2]), field(packs, "pack"));
    assert_eq!(put(packs + 26, &[1]), field(packs, "pack"));
    assert_eq!(put(replaced + 16, &[3]), field(replaced, "replaced segments"));
    let excluded = layout.exclusions_offset();
    assert_eq!(put(excluded + 60, &[3]), field(excluded, "exclusion"));
    assert_eq!(put(excluded + 60, &[0]), field(excluded, "exclusion"));
    assert_eq!(put(excluded + 52, &[75]), field(excluded, "exclusion"));
    assert_eq!(put(excluded + 48, &[3]), field(excluded + 64, "order of the exclusions"));
    assert_eq!(put(excluded, &[9]), field(excluded + 64, "order of the exclusions"));
    assert_eq!(put(slots, &[200]), field(slots, "ends of the slots"));
    assert_eq!(put(slots + 8, &[79]), field(slots, "ends of the slots"));
    assert_eq!(put(slots + 8, &[0xff; 4]), field(slots, "ends of the slots"));
    assert_eq!(put(slots, &[41]), field(records + 41 * 44, "slot of a record"));
    assert_eq!(put(slots, &[43]), field(records + 42 * 44, "slot of a record"));
    assert_eq!(put(records, &[0xff]), field(records, "slot of a record"));
    assert_eq!(put(records, &[7]), field(records + 44, "order of the records"));
    let twice = good.slice(records..records + 44);
    assert_eq!(put(records + 44, &twice), field(records + 44, "order of the records"));
    assert_eq!(put(records + 32, &[3]), field(records, "pack of a record"));
    assert_eq!(put(records + 32, &[0xfc, 0xff, 0xff, 0xff]), field(records, "pack of a record"));
    assert_eq!(put(records + 36, &[75]), field(records, "place of a chunk"));
    assert_eq!(put(records + 36, &[0xff; 4]), field(records, "place of a chunk"));
    assert_eq!(put(records + 40, &[11]), field(records, "place of a chunk"));
    assert_eq!(put(records + 40, &[0xff; 4]), field(records, "place of a chunk"));
    let mut twice = SegmentBuilder::new(name());
    twice.replace(other(1));
    twice.replace(other(2));
    let twice = joined(&twice.finish().unwrap());
    let mut bad = twice.to_vec();
    bad[HEADER_BYTES + 16] = 2;
    assert_eq!(Segment::parse(&name(), &sealed(&bad)).map(drop), field(HEADER_BYTES, "replaced segments"));
}

/// Proves H199.
///
/// Counts are compared with the size of the object before anything else is read.
#[test]
fn hostile_counts_cost_no_memory() {
    let good = segment(some_digests(3));
    let with_counts = |packs: u32, replaced: u32, records: u32, dropped: u32, exclusions: u32| {
        let mut bad = good[..HEADER_BYTES].to_vec();
        for (at, count) in [(32, packs), (36, replaced), (40, records), (44, dropped), (48, exclusions)] {
            bad[at..at + 4].copy_from_slice(&count.to_le_bytes());
        }
        let checksum = crc32fast::hash(&bad[..52]);
        bad[52..].copy_from_slice(&checksum.to_le_bytes());
        Bytes::from(bad)
    };
    for (packs, replaced, records, dropped, exclusions, wrong) in [
        (u32::MAX, 0, 0, 0, 0, "number of packs"),
        (MAX_PACKS + 1, 0, 0, 0, 0, "number of packs"),
        (0, MAX_REPLACED + 1, 0, 0, 0, "number of replaced segments"),
        (0, 0, MAX_RECORDS + 1, 0, 0, "number of records"),
        (0, 0, 0, MAX_PACKS + 1, 0, "number of dropped packs"),
        (0, 0, 0, 0, MAX_EXCLUSIONS + 1, "number of exclusions"),
    ] {
        let error = head_error(&with_counts(packs, replaced, records, dropped, exclusions));
        assert!(matches!(error, Some(DecodeError::Field { name, .. }) if name == wrong), "{error:?}");
    }
    let most = with_counts(MAX_PACKS, MAX_REPLACED, MAX_RECORDS, MAX_PACKS, MAX_EXCLUSIONS);
    let bytes = 56 + (28 << 20) + (20 << 16) + (20 << 20) + (64 << 20) + (8 << 18) + 32 + (44 << 24) + 32;
    assert_eq!(bytes, MAX_SEGMENT_BYTES);
    assert_eq!(head_error(&most), Some(DecodeError::Truncated { want: bytes, have: 56 }));
    let needs = SegmentHead::parse(&name(), bytes, &most);
    assert!(matches!(needs, Ok(HeadPart::Needs { prefix_bytes }) if prefix_bytes == bytes - (44 << 24) - 32));
}

/// Chunks with the packs and places that each has.
fn places() -> impl Strategy<Value = BTreeMap<[u8; 32], BTreeMap<u8, u32>>> {
    let digest = (any::<u8>(), 0..4_u8).prop_map(|(first, second)| {
        let mut digest = [0; 32];
        (digest[0], digest[1]) = (first, second << 6);
        digest
    });
    prop::collection::btree_map(digest, prop::collection::btree_map(0..5_u8, 76..10_000_u32, 1..3), 0..100)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn segments_are_read_as_they_are_written(places in places(), absent: [u8; 32], backwards: bool) {
        let mut builder = SegmentBuilder::new(name());
        let mut records: Vec<_> = places.iter().flat_map(|(digest, packs)| packs.iter().map(move |(pack, offset)| (*digest, *pack, *offset))).collect();
        if backwards {
            records.reverse();
        }
        for (digest, number, offset) in &records {
            let pack = builder.add_pack(pack(*number, 0, 1 << 20)).unwrap();
            builder.push(pack, entry(*digest, *offset, 100)).unwrap();
        }
        let bytes = joined(&builder.finish().unwrap());
        let segment = Segment::parse(&name(), &bytes).unwrap();
        records.sort_unstable();
        let number_of = |record: SegmentRecord| segment.head().pack(record.pack).unwrap().name.session.as_bytes()[0];
        let read: Vec<_> = segment.records().iter().map(|record| (*record.entry.digest.as_bytes(), number_of(record), record.entry.offset)).collect();
        prop_assert_eq!(read, records);
        let head = head_of(&bytes);
        for digest in places.keys().chain([&absent]) {
            let digest = Digest::from_bytes(*digest);
            let whole = find(&segment, &digest);
            let expected: Vec<_> = places.get(digest.as_bytes()).into_iter().flatten().map(|(pack, offset)| (*pack, *offset)).collect();
            prop_assert_eq!(whole.iter().map(|record| (number_of(*record), record.entry.offset)).collect::<Vec<_>>(), expected);
            let slot = head.slot_table().slot_of(&digest);
            let range = head.range_of(&(slot..slot + 1));
            let slot_bytes = bytes.slice(usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap());
            let by_range = head.records(slot..slot + 1, slot_bytes).unwrap();
            let by_range: Vec<_> = by_range.find_in(0..by_range.len(), &digest).collect();
            prop_assert_eq!(whole, by_range);
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), counts: [u8; 3]) {
        let _ = Segment::parse(&name(), &bytes.clone().into());
        let mut like = segment(some_digests(70)).to_vec();
        (like[32], like[36], like[40], like[48]) = (counts[0] % 8, counts[1] % 4, counts[2], counts[0] % 3);
        let end = like.len();
        like[HEADER_BYTES..].iter_mut().zip(&bytes).for_each(|(byte, other)| *byte ^= *other & 3);
        like.truncate(end);
        let header = crc32fast::hash(&like[..52]);
        like[52..56].copy_from_slice(&header.to_le_bytes());
        let _ = Segment::parse(&name(), &like.into());
    }
}
