use proptest::prelude::*;

use super::*;

fn zero_chunk() -> Digest {
    Digest::of(&vec![0; 4 << 20])
}

fn digest(number: u64) -> Digest {
    Digest::of(&number.to_le_bytes())
}

/// An index of an image of that size, its entries in order.
fn index(size: u64, chunk_size: u64) -> FinishedIndex {
    let mut writer = FixedIndexWriter::new(size, chunk_size).unwrap();
    for number in 0..size.div_ceil(chunk_size) {
        let offset = number * chunk_size;
        writer.set(offset, chunk_size.min(size - offset), digest(number)).unwrap();
    }
    writer.finish([1; 16], -2).unwrap()
}

#[test]
fn an_index_of_one_zero_chunk_has_the_bytes_of_the_specification() {
    let mut writer = FixedIndexWriter::new(4 << 20, 4 << 20).unwrap();
    writer.set(0, 4 << 20, zero_chunk()).unwrap();
    let index = writer.finish([0xab; 16], 0x0102_0304).unwrap();
    let checksum = "c7e946d101855255d919ef0c70718633adf77d3dfb3adeeecf5d0cb4e951be58";
    assert_eq!(index.checksum.to_string(), checksum);
    let mut expected = vec![0x2f, 0x7f, 0x41, 0xed, 0x91, 0xfd, 0x0f, 0xcd];
    expected.extend([0xab; 16]);
    expected.extend([4, 3, 2, 1, 0, 0, 0, 0]);
    expected.extend(index.checksum.as_bytes());
    expected.extend([0, 0, 0x40, 0, 0, 0, 0, 0, 0, 0, 0x40, 0, 0, 0, 0, 0]);
    expected.resize(4096, 0);
    expected.extend(zero_chunk().as_bytes());
    assert_eq!(index.bytes, expected);
}

#[test]
fn the_magic_is_the_digest_of_its_name() {
    assert_eq!(Digest::of(b"Proxmox Backup fixed sized chunk index v1.0").as_bytes()[..8], MAGIC);
}

/// Proves H174.
#[test]
fn every_field_is_read_back() {
    let written = index(3 * 4096 + 5, 4096);
    let read = FixedIndexReader::parse(written.bytes.clone()).unwrap();
    assert_eq!((read.size(), read.chunk_size(), read.len()), (3 * 4096 + 5, 4096, 4));
    assert_eq!((read.header().uuid, read.header().created), ([1; 16], -2));
    assert_eq!(read.checksum(), written.checksum);
    assert_eq!(read.header().checksum, written.checksum);
    let last = ChunkEntry::new(3 * 4096..3 * 4096 + 5, digest(3));
    assert_eq!(read.chunk(3), Some(last));
    assert_eq!(read.chunk(4), None);
    assert_eq!(read.chunk(usize::MAX), None);
    assert_eq!(read.iter().last(), Some(last));
    for (offset, number) in [
        (0, Some(0)),
        (4095, Some(0)),
        (4096, Some(1)),
        (3 * 4096 + 4, Some(3)),
        (3 * 4096 + 5, None),
        (u64::MAX, None),
    ] {
        assert_eq!(read.chunk_at(offset), number, "{offset}");
    }
}

/// Proves H171.
#[test]
fn another_length_is_refused() {
    let written = index(3 * 4096, 4096).bytes;
    for length in [0, 7, 4095, 4096, written.len() - 32, written.len() - 1] {
        assert!(FixedIndexReader::parse(written.slice(..length)).is_err(), "{length}");
    }
    let longer = [&written[..], &[0; 32]].concat();
    assert!(FixedIndexReader::parse(longer).is_err());
}

/// Proves H171.
#[test]
fn invalid_fields_are_refused() {
    let written = index(3 * 4096, 4096).bytes;
    for (offset, value) in [
        (SIZE_OFFSET, 0),
        (SIZE_OFFSET, 3 * 4096 + 1),
        (SIZE_OFFSET, 2 * 4096),
        (SIZE_OFFSET, u64::MAX),
        (CHUNK_SIZE_OFFSET, 0),
        (CHUNK_SIZE_OFFSET, 4095),
        (CHUNK_SIZE_OFFSET, 8192),
        (CHUNK_SIZE_OFFSET, 1),
        (0, 0),
    ] {
        let mut broken = written.to_vec();
        broken[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
        assert!(FixedIndexReader::parse(broken).is_err(), "{offset} {value}");
    }
}

/// Proves H171.
#[test]
fn every_changed_byte_of_an_entry_changes_the_checksum() {
    let written = index(2 * 4096, 4096);
    for at in HEADER_BYTES..written.bytes.len() {
        let mut broken = written.bytes.to_vec();
        broken[at] ^= 0x10;
        assert_ne!(FixedIndexReader::parse(broken).unwrap().checksum(), written.checksum);
    }
}

/// Proves H172.
#[test]
fn sizes_around_every_chunk_boundary() {
    for size in 1..=(3 * 4096 + 1) {
        if size % 4096 > 1 && size % 4096 < 4095 {
            continue;
        }
        let known = index(size, 4096);
        let mut unknown = FixedIndexWriter::new(None, 4096).unwrap();
        for number in 0..size.div_ceil(4096) {
            unknown.set(number * 4096, (size - number * 4096).min(4096), digest(number)).unwrap();
        }
        assert_eq!(unknown.finish([1; 16], -2).unwrap(), known, "{size}");
        assert_eq!(FixedIndexReader::parse(known.bytes).unwrap().size(), size);
    }
}

/// Proves H172.
#[test]
fn chunks_out_of_place_are_refused() {
    let misplaced = |offset| Err(IndexWriteError::Misplaced { offset });
    let mut writer = FixedIndexWriter::new(2 * 4096 + 10, 4096).unwrap();
    for (offset, len) in
        [(1, 4096), (0, 4095), (0, 0), (0, 4097), (8192, 11), (8192, 9), (12288, 1), (u64::MAX - 4095, 4096)]
    {
        assert_eq!(writer.set(offset, len, digest(0)), misplaced(offset), "{offset} {len}");
    }
    let mut writer = FixedIndexWriter::new(None, 4096).unwrap();
    writer.set(8192, 4096, digest(0)).unwrap();
    assert_eq!(writer.set(4096, 5, digest(0)), misplaced(4096), "short, and not the last");
    writer.set(12288, 5, digest(0)).unwrap();
    assert_eq!(writer.set(16384, 1, digest(0)), misplaced(16384), "behind the last");
    assert_eq!(writer.finish([0; 16], 0), Err(IndexWriteError::Missing { offset: 0 }));
}

/// Proves H172.
#[test]
fn impossible_images_are_refused() {
    assert_eq!(FixedIndexWriter::new(0, 4096).map(drop), Err(IndexWriteError::Empty));
    assert_eq!(FixedIndexWriter::new(1, 4095).map(drop), Err(IndexWriteError::ChunkSize));
    assert_eq!(FixedIndexWriter::new(u64::MAX, 1).map(drop), Err(IndexWriteError::TooLarge));
    let empty = FixedIndexWriter::new(None, 4096).unwrap();
    assert_eq!(empty.finish([0; 16], 0), Err(IndexWriteError::Empty));
}

#[test]
fn an_index_starts_from_its_base_and_is_changed() {
    let base = FixedIndexReader::parse(index(3 * 4096, 4096).bytes).unwrap();
    let mut writer = FixedIndexWriter::from_base(&base, 3 * 4096).unwrap();
    writer.set(4096, 4096, digest(9)).unwrap();
    let changed = FixedIndexReader::parse(writer.finish([0; 16], 0).unwrap().bytes).unwrap();
    assert_eq!([0, 1, 2].map(|number| changed.digest(number).unwrap()), [digest(0), digest(9), digest(2)]);
    let grown = FixedIndexWriter::from_base(&base, 3 * 4096 + 1);
    assert_eq!(grown.map(drop), Err(IndexWriteError::OtherShape));
    let shrunk = FixedIndexWriter::from_base(&base, 3 * 4096 - 1).unwrap();
    assert_eq!(shrunk.finish([0; 16], 0), Err(IndexWriteError::Missing { offset: 8192 }));
}

proptest! {
    #[test]
    fn the_order_of_entries_does_not_matter(order in Just((0..20_u64).collect::<Vec<_>>()).prop_shuffle(), known in any::<bool>()) {
        let size = 19 * 4096 + 7;
        let mut writer = FixedIndexWriter::new(known.then_some(size), 4096).unwrap();
        for number in order {
            writer.set(number * 4096, (size - number * 4096).min(4096), digest(number)).unwrap();
        }
        prop_assert_eq!(writer.finish([1; 16], -2).unwrap(), index(size, 4096));
    }

    #[test]
    fn any_bytes_do_not_panic(fields in prop::collection::vec(any::<u8>(), 72), tail in prop::collection::vec(any::<u8>(), 0..100), length in 0..5000_usize) {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(fields);
        bytes.resize(length.max(80), 0);
        bytes.extend(tail);
        if let Ok(index) = FixedIndexReader::parse(bytes) {
            prop_assert_eq!(index.iter().count(), index.len());
        }
    }
}

/// Proves H167.
#[test]
fn images_can_end_near_every_power_of_two() {
    for size in [1 << 31, 1 << 32, 1 << 33_u64].into_iter().flat_map(|power| [power - 1, power, power + 1]) {
        let read = FixedIndexReader::parse(index(size, 16 << 20).bytes).unwrap();
        assert_eq!((read.size(), read.chunk_size()), (size, 16 << 20));
        let last = read.chunk(read.len() - 1).unwrap();
        assert_eq!(last.offset + last.len, size);
        assert_eq!(read.chunk_at(size - 1), Some(read.len() - 1));
        assert_eq!(read.chunk_at(size), None);
    }
    let written = index(3 * 4096, 4096).bytes;
    for field in [SIZE_OFFSET, CHUNK_SIZE_OFFSET] {
        for power in [31, 32, 33, 62, 63] {
            for value in [(1_u64 << power) - 1, 1 << power, (1 << power) + 1] {
                let mut broken = written.to_vec();
                broken[field..field + 8].copy_from_slice(&value.to_le_bytes());
                assert!(FixedIndexReader::parse(broken).is_err(), "{field} {value}");
            }
        }
    }
    for size in [(1 << 63) - 1, 1 << 63, u64::MAX] {
        assert_eq!(FixedIndexWriter::new(size, 1).map(drop), Err(IndexWriteError::TooLarge), "{size}");
    }
}
