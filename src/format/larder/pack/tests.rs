use std::str::FromStr as _;

use bytes::Bytes;
use proptest::prelude::*;

use super::builder::{FinishedPack, PackBuilder};
use super::directory::{PackDirectory, PackTail};
use super::name::PackName;
use super::scanner::{PackPart, PackScanner};
use super::*;
use crate::buffers::{Buffer, Buffers};

fn buffer() -> Buffer {
    Buffers::new(0).take(0)
}

fn name() -> PackName {
    PackName { session: SessionId::from_bytes([0xa5; 16]), n: 7 }
}

fn blob(number: u8, len: usize) -> Bytes {
    (0..len).map(|at| number.wrapping_mul(31).wrapping_add(at.to_le_bytes()[0])).collect()
}

/// A pack of blobs with these lengths.
fn pack(lens: &[usize]) -> FinishedPack {
    let mut builder = PackBuilder::new(name(), PackClass::Metadata, buffer());
    for (number, len) in (0..).zip(lens) {
        builder.push(Digest::of(&[number]), &blob(number, *len)).unwrap();
    }
    builder.finish().unwrap()
}

fn joined(pack: &FinishedPack) -> Vec<u8> {
    pack.bytes.to_vec()
}

fn directory_of(pack: &[u8]) -> Result<PackDirectory, DecodeError> {
    match PackDirectory::parse(&name(), pack.len() as u64, pack)? {
        PackTail::Directory(directory) => Ok(directory),
        PackTail::Needs { .. } => panic!("it is the whole pack"),
    }
}

/// All parts of a pack that is fed in pieces of this length.
fn scan(pack: &[u8], piece: usize) -> Result<Vec<PackPart>, DecodeError> {
    let (mut scanner, mut parts, mut pieces) = (PackScanner::new(name()), Vec::new(), pack.chunks(piece));
    loop {
        match scanner.next_part()? {
            PackPart::NeedsBytes => match pieces.next() {
                Some(piece) => scanner.feed(Bytes::copy_from_slice(piece)),
                None => scanner.end(),
            },
            part => {
                let is_end = matches!(part, PackPart::End { .. });
                parts.push(part);
                if is_end {
                    assert_eq!(scanner.next_part(), Ok(PackPart::NeedsBytes));
                    return Ok(parts);
                }
            }
        }
    }
}

/// The entries among these parts, and start and end of each damage.
fn entries_and_damage(parts: &[PackPart]) -> (Vec<PackEntry>, Vec<[u64; 2]>) {
    let (mut entries, mut damage) = (Vec::new(), Vec::new());
    for part in parts {
        match part {
            PackPart::Entry { entry, .. } => entries.push(*entry),
            PackPart::Damage { range } => damage.push([range.start, range.end]),
            _ => {}
        }
    }
    (entries, damage)
}

#[test]
fn the_magic_numbers_are_the_digests_of_their_texts() {
    assert_eq!(Digest::of(b"larder pack v1.0").as_bytes()[..8], MAGIC);
    assert_eq!(Digest::of(b"larder pack entry v1.0").as_bytes()[..4], ENTRY_MAGIC);
    assert_eq!(Digest::of(b"larder pack trailer v1.0").as_bytes()[..8], TRAILER_MAGIC);
}

#[test]
fn a_name_has_one_text_and_one_path() {
    let text = "a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5-7";
    assert_eq!((name().to_string().as_str(), text.parse()), (text, Ok(name())));
    let path = format!(".larder/packs/{:02x}/{text}", Digest::of(text.as_bytes()).as_bytes()[0]);
    assert_eq!((name().path(), PackName::from_path(&path)), (path.clone(), Some(name())));
    let session = &text[..32];
    for wrong in [
        format!("{session}-07"),
        format!("{session}-+7"),
        format!("{session}-00"),
        format!("{session}--7"),
        format!("{session}-4294967296"),
        format!("{session}-"),
        format!("{session}-7 "),
        format!("{session}-7-7"),
        session.to_owned(),
        format!("{}-7", session.to_uppercase()),
        format!("{}-7", &session[1..]),
        format!("{session}a-7"),
        format!("{session}5a-7"),
        String::new(),
    ] {
        assert!(wrong.parse::<PackName>().is_err(), "{wrong}");
    }
    let shard = path.split('/').nth(2).unwrap();
    for wrong in [
        path.replace(shard, "zz"),
        path.replace(&format!("/{shard}/"), "/"),
        path.replace("packs", "index"),
        format!("/{path}"),
        format!("{path}/"),
        text.to_owned(),
    ] {
        assert_eq!(PackName::from_path(&wrong), None, "{wrong}");
    }
    for n in [0, 10, u32::MAX] {
        let name = PackName { n, ..name() };
        assert_eq!((name.to_string().parse(), PackName::from_path(&name.path())), (Ok(name), Some(name)));
    }
}

/// The checksums were computed with Python.
#[test]
fn a_pack_has_exactly_these_bytes() {
    let mut builder = PackBuilder::new(name(), PackClass::Metadata, buffer());
    builder.push(Digest::from_bytes([1; 32]), b"first blob..").unwrap();
    builder.push(Digest::from_bytes([2; 32]), b"second blob...").unwrap();
    let size = builder.size();
    let pack = joined(&builder.finish().unwrap());
    let expected = golden();
    assert_eq!((pack.len(), size), (expected.len(), expected.len() as u64));
    assert_eq!(pack, expected);
}

fn golden() -> Vec<u8> {
    let mut bytes = vec![0x12, 0xce, 0x43, 0x08, 0x7c, 0x5f, 0x83, 0x42, 1, 0, 1, 0];
    bytes.extend([0xa5; 16]);
    bytes.extend(HEADER_CRC);
    bytes.extend([0xaa, 0x0d, 0x92, 0xe6, 12, 0, 0, 0]);
    bytes.extend([1; 32]);
    bytes.extend(FIRST_CRC);
    bytes.extend(b"first blob..");
    bytes.extend([0xaa, 0x0d, 0x92, 0xe6, 14, 0, 0, 0]);
    bytes.extend([2; 32]);
    bytes.extend(SECOND_CRC);
    bytes.extend(b"second blob...");
    bytes.extend([1; 32]);
    bytes.extend([76, 0, 0, 0, 12, 0, 0, 0]);
    bytes.extend([2; 32]);
    bytes.extend([132, 0, 0, 0, 14, 0, 0, 0]);
    bytes.extend([0x93, 0x9e, 0x00, 0x18, 0xa4, 0x6b, 0x00, 0xae, 1, 0, 1, 0, 2, 0, 0, 0]);
    bytes.extend([146, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(Digest::from_str(TRAILER_SHA).unwrap().as_bytes());
    bytes
}

const HEADER_CRC: [u8; 4] = [0x51, 0xa5, 0xd5, 0x15];
const FIRST_CRC: [u8; 4] = [0x39, 0x25, 0x10, 0x8a];
const SECOND_CRC: [u8; 4] = [0xca, 0xbd, 0x1c, 0x7c];
const TRAILER_SHA: &str = "4d4603b7d0b52eca206a2aac061da70aed65f32c2b1e645e8dbe1c079e8a94ff";

#[test]
fn blobs_are_read_back_while_the_pack_grows_and_without_a_copy_later() {
    let blob = blob(1, 100);
    let mut builder = PackBuilder::new(name(), PackClass::Data, buffer());
    assert_eq!(builder.size(), 96);
    assert_eq!(builder.size_with(100), 96 + 100 + 84);
    let entry = builder.push(Digest::of(&blob), &blob).unwrap();
    assert_eq!((entry.offset, entry.len, builder.entries()), (76, 100, &[entry][..]));
    assert_eq!((builder.get(76..176), builder.get(76..177)), (Some(&blob[..]), None));
    assert!(builder.contains(&entry.digest) && !builder.contains(&Digest::of(b"other")));
    let pack = builder.finish().unwrap();
    let whole = Bytes::from(joined(&pack));
    assert_eq!((pack.directory.name(), pack.directory.class()), (name(), PackClass::Data));
    assert_eq!(whole.len(), pack.directory.pack_bytes() as usize);
    let mut scanner = PackScanner::new(name());
    scanner.feed(whole.clone());
    let Ok(PackPart::Entry { blob, .. }) = scanner.next_part() else { panic!("it has an entry") };
    assert_eq!(blob.as_ptr(), whole[76..].as_ptr());
    assert_eq!(scanner.class(), Some(PackClass::Data));
}

#[test]
fn a_builder_refuses_what_no_reader_would_accept() {
    let mut builder = PackBuilder::new(name(), PackClass::Data, buffer());
    let zeros = Bytes::from(vec![0; MAX_ENCODED_CHUNK_BYTES + 1]);
    let digest = |number: u32| Digest::of(&number.to_le_bytes());
    for len in [0, 11, MAX_ENCODED_CHUNK_BYTES + 1] {
        let pushed = builder.push(digest(0), &zeros[..len]);
        assert_eq!(pushed, Err(PackWriteError::Length { len }));
    }
    for number in 0..7 {
        builder.push(digest(number), &zeros[1..]).unwrap();
    }
    assert_eq!(builder.push(digest(6), &zeros[..12]), Err(PackWriteError::Duplicate));
    assert_eq!(builder.push(digest(7), &zeros[1..]), Err(PackWriteError::Full));
    let left = u64::from(MAX_PACK_BYTES) - builder.size_with(0);
    builder.push(digest(7), &zeros[..usize::try_from(left).unwrap()]).unwrap();
    assert_eq!(builder.size(), u64::from(MAX_PACK_BYTES));
    assert_eq!(builder.push(digest(8), &zeros[..12]), Err(PackWriteError::Full));
    let pack = builder.finish().unwrap();
    let tail = pack.directory.encode();
    let parsed = PackDirectory::parse(&name(), MAX_PACK_BYTES.into(), &tail);
    assert_eq!(parsed, Ok(PackTail::Directory(pack.directory)));
    assert!(PackBuilder::new(name(), PackClass::Data, buffer()).finish().is_none());
}

#[test]
fn the_longest_directory_is_read_back() {
    let mut builder = PackBuilder::new(name(), PackClass::Data, buffer());
    let blob = Bytes::from_static(&[0; 12]);
    for number in 0..MAX_PACK_ENTRIES {
        let mut digest = [0; 32];
        digest[..4].copy_from_slice(&number.to_le_bytes());
        builder.push(Digest::from_bytes(digest), &blob).unwrap();
    }
    assert_eq!(builder.push(Digest::from_bytes([1; 32]), &blob), Err(PackWriteError::Full));
    let pack = builder.finish().unwrap();
    let parts = scan(&joined(&pack), 1 << 20).unwrap();
    assert_eq!(parts.len(), MAX_PACK_ENTRIES as usize + 1);
    assert_eq!(parts.last(), Some(&PackPart::End { directory: Ok(pack.directory) }));
}

#[test]
fn a_suffix_says_how_much_of_the_end_is_needed() {
    let pack = pack(&[20, 30, 40]);
    let whole = joined(&pack);
    let parse =
        |suffix: usize| PackDirectory::parse(&name(), whole.len() as u64, &whole[whole.len() - suffix..]);
    for suffix in 0..=whole.len() {
        match suffix {
            0..64 => assert_eq!(parse(suffix), Err(DecodeError::Truncated { want: 64, have: suffix as u64 })),
            64..184 => assert_eq!(parse(suffix), Ok(PackTail::Needs { suffix_bytes: 184 })),
            _ => assert_eq!(parse(suffix), Ok(PackTail::Directory(pack.directory.clone()))),
        }
    }
    let longer = [&[0], &whole[..]].concat();
    assert!(PackDirectory::parse(&name(), whole.len() as u64, &longer).is_err());
}

/// The two ways to read a pack: from its end, and from its start. A changed blob is for its own checksum to find.
#[test]
fn every_changed_byte_outside_of_blobs_is_detected() {
    let pack = pack(&[20, 12, 300]);
    let (whole, directory) = (joined(&pack), &pack.directory);
    let entries = directory.entries();
    for (at, mask) in (0..whole.len()).flat_map(|at| [1, 0x80, 0xff, 0x5a].map(|mask| (at, mask))) {
        let mut changed = whole.clone();
        changed[at] ^= mask;
        let read = directory_of(&changed);
        let parts = scan(&changed, 64);
        let offset = u32::try_from(at).unwrap();
        if offset >= directory.offset() {
            assert!(read.is_err(), "byte {at}");
            let parts = parts.unwrap();
            let (read, damage) = entries_and_damage(&parts);
            assert_eq!((&read[..], damage), (entries, vec![]), "byte {at}");
            assert!(matches!(parts.last(), Some(PackPart::End { directory: Err(_) })));
            continue;
        }
        assert_eq!(read.as_ref(), Ok(directory), "byte {at}");
        let parts = parts.unwrap();
        assert_eq!(parts.last(), Some(&PackPart::End { directory: Ok(directory.clone()) }));
        let (read, damage) = entries_and_damage(&parts);
        if offset < HEADER_BYTES {
            assert!(PackHeader::parse(&changed).is_err());
            assert_eq!((&read[..], damage), (entries, vec![[0, 32]]), "byte {at}");
        } else if let Some(hurt) =
            entries.iter().position(|entry| (entry.offset - 44..entry.offset).contains(&offset))
        {
            let lost = [u64::from(entries[hurt].offset - 44), entries[hurt].end().into()];
            let others = entries.iter().filter(|entry| **entry != entries[hurt]).copied().collect();
            assert_eq!((read, damage), (others, vec![lost]), "byte {at}");
        } else {
            assert_eq!((&read[..], damage), (entries, vec![]), "byte {at}");
        }
    }
}

#[test]
fn every_truncation_is_detected_and_whole_entries_are_read() {
    let pack = pack(&[20, 12, 300]);
    let whole = joined(&pack);
    for len in 0..whole.len() {
        assert!(directory_of(&whole[..len]).is_err(), "{len} bytes");
        let parts = scan(&whole[..len], 100).unwrap();
        let before: Vec<_> =
            pack.directory.entries().iter().filter(|entry| entry.end() as usize <= len).copied().collect();
        assert_eq!(entries_and_damage(&parts), (before, vec![]), "{len} bytes");
        assert!(matches!(parts.last(), Some(PackPart::End { directory: Err(_) })));
    }
}

#[test]
fn a_pack_under_the_name_of_another_is_refused() {
    let whole = joined(&pack(&[20]));
    let size = whole.len() as u64;
    let session = SessionId::from_bytes([0xa6; 16]);
    assert_eq!(
        PackDirectory::parse(&PackName { session, ..name() }, size, &whole),
        Err(DecodeError::Checksum)
    );
    let error = PackDirectory::parse(&PackName { n: 8, ..name() }, size, &whole);
    assert_eq!(error, Err(DecodeError::Field { offset: size - 40, name: "number of the pack" }));
    let mut scanner = PackScanner::new(PackName { session, ..name() });
    scanner.feed(whole.into());
    let error = DecodeError::Field { offset: 12, name: "session of the pack" };
    assert_eq!((scanner.next_part(), scanner.next_part()), (Err(error), Err(error)));
}

/// Proves H198.
///
/// A store may be backed up into another one, or into itself.
#[test]
fn entries_inside_of_a_blob_are_never_found() {
    let inner = joined(&pack(&[40]));
    let mut foreign = PackBuilder::new(
        PackName { session: SessionId::from_bytes([1; 16]), n: 0 },
        PackClass::Data,
        buffer(),
    );
    foreign.push(Digest::of(b"foreign"), &blob(3, 20)).unwrap();
    let foreign = joined(&foreign.finish().unwrap());
    let mut outer = PackBuilder::new(name(), PackClass::Data, buffer());
    for blob in [[&[0; 12], &inner[..]].concat(), foreign, vec![7; 12]] {
        outer.push(Digest::of(&blob), &blob).unwrap();
    }
    let outer = outer.finish().unwrap();
    let entries = outer.directory.entries();
    let mut whole = joined(&outer);
    whole[40] ^= 1;
    whole[entries[1].offset as usize - 10] ^= 1;
    let parts = scan(&whole, 50).unwrap();
    assert_eq!(entries_and_damage(&parts), (vec![entries[2]], vec![[32, entries[1].end().into()]]));
    assert_eq!(parts.last(), Some(&PackPart::End { directory: Ok(outer.directory) }));
}

#[test]
fn malformed_directories_are_refused_whatever_their_checksum() {
    let entries = pack(&[20, 30]).directory.entries().to_vec();
    let check = |change: fn(&mut [PackEntry]), wrong: &str| {
        let mut entries = entries.clone();
        change(&mut entries);
        let directory = PackDirectory::new(name(), PackClass::Data, entries).unwrap();
        let whole = [vec![0; directory.offset() as usize], directory.encode().to_vec()].concat();
        let error = directory_of(&whole);
        assert!(matches!(error, Err(DecodeError::Field { name, .. }) if name == wrong), "{wrong}: {error:?}");
    };
    check(|entries| entries[0].offset = 77, "offset of a blob");
    check(|entries| entries[1].offset += 1, "offset of a blob");
    check(|entries| entries[1].offset -= 1, "offset of a blob");
    check(|entries| entries.swap(0, 1), "offset of a blob");
    check(|entries| entries[0].len = 11, "length of a blob");
    check(|entries| entries[0].len = u32::MAX, "length of a blob");
    check(|entries| entries[0].len = 1 << 25, "length of a blob");
    check(|entries| entries[1].digest = entries[0].digest, "digest twice");
}

/// A pack with other bytes somewhere, and the right checksum in its trailer.
fn resealed(pack: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let (mut pack, directory) = (pack.to_vec(), directory_of(pack).unwrap().offset() as usize);
    pack[at..at + bytes.len()].copy_from_slice(bytes);
    let end = pack.len() - 32;
    let checksum = Digest::of(&[&pack[..32], &pack[directory..end]].concat());
    pack[end..].copy_from_slice(checksum.as_bytes());
    pack
}

#[test]
fn a_directory_agrees_with_the_entries_before_it() {
    let pack = pack(&[20, 30]);
    let (whole, offset) = (joined(&pack), pack.directory.offset() as usize);
    assert_eq!(resealed(&whole, 0, &[]), whole);
    let shorter = resealed(&whole, offset + 40 + 36, &[29]);
    let error = DecodeError::Field { offset: offset as u64, name: "end of the last blob" };
    assert_eq!(directory_of(&shorter), Err(error));
    let another = resealed(&whole, offset, &[1; 32]);
    assert_ne!(directory_of(&another).unwrap().entries(), pack.directory.entries());
    let end = |pack: &[u8]| match scan(pack, 50).unwrap().pop() {
        Some(PackPart::End { directory }) => directory,
        part => panic!("{part:?}"),
    };
    assert_eq!(end(&another), Err(DecodeError::Field { offset: offset as u64, name: "entries" }));
    let mut overlapping = whole.clone();
    let trailer = whole.len() - 64;
    overlapping[trailer + 12] = 3;
    overlapping[trailer + 16..trailer + 20]
        .copy_from_slice(&u32::try_from(offset - 40).unwrap().to_le_bytes());
    let error = DecodeError::Field { offset: whole.len() as u64, name: "offset of the directory" };
    assert_eq!(end(&overlapping), Err(error));
}

#[test]
fn impossible_entries_are_refused_whatever_their_checksum() {
    let header = |offset: u32, len: u32| {
        let entry = PackEntry { digest: Digest::of(b"a"), len, offset: offset + 44 };
        (PackEntry::parse(&name().session, offset, &entry.header(&name().session)), entry)
    };
    let longest = u32::try_from(MAX_ENCODED_CHUNK_BYTES).unwrap();
    for (offset, len) in [(32, 12), (32, longest), (MAX_PACK_BYTES - 64 - 40 - 12 - 44, 12)] {
        let (read, entry) = header(offset, len);
        assert_eq!(read, Some(entry));
    }
    for (offset, len) in [
        (31, 12),
        (32, 0),
        (32, 11),
        (32, longest + 1),
        (32, u32::MAX),
        (MAX_PACK_BYTES - 64 - 40 - 12 - 43, 12),
    ] {
        assert_eq!(header(offset, len).0, None, "{offset} {len}");
    }
}

#[test]
fn hostile_trailers_cost_no_memory() {
    let whole = joined(&pack(&[20]));
    let trailer = whole.len() - 64;
    for (at, bytes, place, wrong) in [
        (8, &[2, 0][..], 8, "version"),
        (10, &[2, 0], 10, "class"),
        (12, &[0; 4], 12, "number of entries"),
        (12, &[0xff; 4], 12, "number of entries"),
        (12, &[2, 0, 0, 0], 16, "offset of the directory"),
        (12, &[0, 0, 2, 0], 16, "offset of the directory"),
        (16, &[0xff; 8], 16, "offset of the directory"),
        (24, &[7, 0, 0, 0, 1, 0, 0, 0], 24, "number of the pack"),
    ] {
        let mut hostile = whole.clone();
        hostile[trailer + at..trailer + at + bytes.len()].copy_from_slice(bytes);
        let error = DecodeError::Field { offset: trailer as u64 + place, name: wrong };
        assert_eq!(directory_of(&hostile), Err(error));
    }
    for size in [0, 191, u64::from(MAX_PACK_BYTES) + 1, u64::MAX] {
        assert!(PackDirectory::parse(&name(), size, &whole).is_err(), "{size}");
    }
}

proptest! {
    #[test]
    fn packs_are_read_as_they_are_written(lens in prop::collection::vec(12..200_usize, 1..20), piece in 1..500_usize) {
        let pack = pack(&lens);
        let whole = joined(&pack);
        prop_assert_eq!(directory_of(&whole), Ok(pack.directory.clone()));
        let parts = scan(&whole, piece).unwrap();
        let mut expected: Vec<_> = (0..)
            .zip(pack.directory.entries())
            .map(|(number, entry)| PackPart::Entry { blob: blob(number, entry.len as usize), entry: *entry })
            .collect();
        expected.push(PackPart::End { directory: Ok(pack.directory) });
        prop_assert_eq!(parts, expected);
    }

    #[test]
    fn any_damage_leaves_the_entries_that_it_does_not_hit(
        lens in prop::collection::vec(12..100_usize, 1..9), from in any::<prop::sample::Index>(), len in 1..300_usize, piece in 1..300_usize, with: u8,
    ) {
        let pack = pack(&lens);
        let mut whole = joined(&pack);
        let from = from.index(whole.len());
        let hit = from..whole.len().min(from + len);
        whole[hit.clone()].fill(with);
        let parts = scan(&whole, piece).unwrap();
        let (read, damage) = entries_and_damage(&parts);
        let is_hit = |entry: &PackEntry| ((entry.offset - 44) as usize) < hit.end && hit.start < entry.end() as usize;
        let entries = pack.directory.entries();
        prop_assert!(entries.iter().all(|entry| is_hit(entry) || read.contains(entry)));
        prop_assert!(read.iter().all(|entry| entries.contains(entry)));
        let passed = |at: u64| damage.iter().any(|[from, to]| (*from..*to).contains(&at)) || read.iter().any(|entry| {
            (u64::from(entry.offset - 44)..entry.end().into()).contains(&at)
        });
        if let Some(PackPart::End { directory: Ok(directory) }) = parts.last() {
            prop_assert_eq!(directory, &pack.directory);
            prop_assert!((32..directory.offset().into()).all(passed));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), piece in 1..100_usize) {
        let _ = (PackHeader::parse(&bytes), scan(&bytes, piece), PackDirectory::parse(&name(), bytes.len() as u64, &bytes));
    }
}

#[test]
fn the_name_of_an_archive_decides_the_class_of_its_chunks() {
    for (name, class) in [
        ("root.mpxar.didx", PackClass::Metadata),
        ("catalog.pcat1.didx", PackClass::Metadata),
        ("root.ppxar.didx", PackClass::Data),
        ("root.pxar.didx", PackClass::Data),
        ("mpxar.didx", PackClass::Data),
        ("a.mpxar.img.fidx", PackClass::Data),
        ("disk.mpxar.fidx", PackClass::Data),
        ("root.mpxar.blob", PackClass::Data),
    ] {
        assert_eq!(PackClass::of_archive(&name.parse().unwrap()), class, "{name}");
    }
}
