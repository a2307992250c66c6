use proptest::prelude::*;

use super::*;

fn digest(number: u64) -> Digest {
    Digest::of(&number.to_le_bytes())
}

fn index(lengths: &[u64]) -> FinishedIndex {
    let mut writer = DynamicIndexWriter::new();
    for (number, length) in (0..).zip(lengths) {
        writer.push(*length, digest(number)).unwrap();
    }
    writer.finish([1; 16], -2).unwrap()
}

#[test]
fn an_index_of_one_zero_chunk_has_the_bytes_of_the_specification() {
    let zeros = Digest::of(&vec![0; 4 << 20]);
    let mut writer = DynamicIndexWriter::new();
    writer.push(4 << 20, zeros).unwrap();
    let index = writer.finish([0xab; 16], 0x0102_0304).unwrap();
    let checksum = "951f858f84bc6b1c2b0772b2f992c71d1c61dec30323719ff63d1ac826170676";
    assert_eq!(index.checksum.to_string(), checksum);
    let mut expected = vec![0x1c, 0x91, 0x4e, 0xa5, 0x19, 0xba, 0xb3, 0xcd];
    expected.extend([0xab; 16]);
    expected.extend([4, 3, 2, 1, 0, 0, 0, 0]);
    expected.extend(index.checksum.as_bytes());
    expected.resize(4096, 0);
    expected.extend([0, 0, 0x40, 0, 0, 0, 0, 0]);
    expected.extend(zeros.as_bytes());
    assert_eq!(index.bytes, expected);
}

#[test]
fn the_magic_is_the_digest_of_its_name() {
    assert_eq!(Digest::of(b"Proxmox Backup dynamic sized chunk index v1.0").as_bytes()[..8], MAGIC);
}

/// Proves H174.
#[test]
fn every_field_is_read_back() {
    let written = index(&[10, 1, 20]);
    let read = DynamicIndexReader::parse(written.bytes.clone()).unwrap();
    assert_eq!((read.size(), read.len()), (31, 3));
    assert_eq!((read.header().uuid, read.header().created), ([1; 16], -2));
    assert_eq!((read.checksum(), read.header().checksum), (written.checksum, written.checksum));
    let chunks: Vec<_> = read.iter().map(|chunk| (chunk.offset, chunk.len, chunk.digest)).collect();
    assert_eq!(chunks, [(0, 10, digest(0)), (10, 1, digest(1)), (11, 20, digest(2))]);
    for (offset, number) in [
        (0, Some(0)),
        (9, Some(0)),
        (10, Some(1)),
        (11, Some(2)),
        (30, Some(2)),
        (31, None),
        (u64::MAX, None),
    ] {
        assert_eq!(read.chunk_at(offset), number, "{offset}");
    }
    assert_eq!(read.chunk(3), None);
    assert_eq!(read.chunk(usize::MAX), None);
}

/// Proves H171.
#[test]
fn malformed_indexes_are_refused() {
    let written = index(&[10, 1, 20]).bytes;
    for length in [0, 7, 4095, 4096, 4097, written.len() - 1] {
        assert!(DynamicIndexReader::parse(written.slice(..length)).is_err(), "{length}");
    }
    for end in [0, 9, 10, 31, u64::MAX] {
        let mut broken = written.to_vec();
        broken[4136..4144].copy_from_slice(&u64::to_le_bytes(end));
        let error = DynamicIndexReader::parse(broken).map(drop);
        assert!(matches!(error, Err(DecodeError::Field { name: "end", .. })), "{end}");
    }
    let mut broken = written.to_vec();
    broken[0] ^= 1;
    assert_eq!(DynamicIndexReader::parse(broken).map(drop), Err(DecodeError::Magic));
}

/// Proves H171.
#[test]
fn every_changed_byte_of_an_entry_is_detected() {
    let written = index(&[10, 10]);
    for at in HEADER_BYTES..written.bytes.len() {
        let mut broken = written.bytes.to_vec();
        broken[at] ^= 0x10;
        let read = DynamicIndexReader::parse(broken);
        assert!(read.map(|index| index.checksum()).ok() != Some(written.checksum));
    }
}

#[test]
fn impossible_dynamic_archives_are_refused() {
    let mut writer = DynamicIndexWriter::new();
    assert_eq!(writer.push(0, digest(0)), Err(IndexWriteError::Misplaced { offset: 0 }));
    assert_eq!(writer.clone().finish([0; 16], 0), Err(IndexWriteError::Empty));
    writer.push(u64::MAX, digest(0)).unwrap();
    assert_eq!(writer.push(1, digest(0)), Err(IndexWriteError::TooLarge));
}

/// Proves H167.
#[test]
fn archives_can_end_near_every_power_of_two() {
    for power in [31, 32, 33, 53, 63] {
        for size in [(1_u64 << power) - 1, 1 << power, (1 << power) + 1] {
            let read = DynamicIndexReader::parse(index(&[size - 7, 7]).bytes).unwrap();
            assert_eq!((read.size(), read.len()), (size, 2));
            assert_eq!(read.chunk(1).map(|chunk| (chunk.offset, chunk.len)), Some((size - 7, 7)));
            assert_eq!((read.chunk_at(size - 7), read.chunk_at(size)), (Some(1), None));
        }
    }
}

proptest! {
    #[test]
    fn every_offset_finds_its_chunk(lengths in prop::collection::vec(1..50_u64, 1..60), offset in 0..3000_u64) {
        let read = DynamicIndexReader::parse(index(&lengths).bytes).unwrap();
        let found = read.iter().position(|chunk| (chunk.offset..chunk.offset + chunk.len).contains(&offset));
        prop_assert_eq!(read.chunk_at(offset), found);
    }

    #[test]
    fn any_bytes_do_not_panic(tail in prop::collection::vec(any::<u8>(), 0..200), length in 0..4200_usize) {
        let mut bytes = MAGIC.to_vec();
        bytes.resize(length.max(8), 0);
        bytes.extend(tail);
        if let Ok(index) = DynamicIndexReader::parse(bytes) {
            prop_assert_eq!(index.iter().count(), index.len());
        }
    }
}
