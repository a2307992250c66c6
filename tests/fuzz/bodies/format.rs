//! Formats of stored bytes.

use bytes::Bytes;
use larder::chunker::{BuzhashChunker, Chunker, FixedChunker, RollingChunker};
use larder::crypt::EncryptionKey;
use larder::internal::blob::{
    Blob, BlobDecoder, BlobEncoder, DEFAULT_ZSTD_LEVEL, DecodeError, PlaintextSize,
};
use larder::internal::dynamic_index::{DynamicIndexReader, DynamicIndexWriter};
use larder::internal::fixed_index::{FixedIndexReader, FixedIndexWriter};
use larder::internal::index::ChunkEntry;
use larder::internal::manifest as manifests;
use larder::internal::packs::{self, Place, Scanned};
use larder::internal::parsers::decoded_in_parts;
use sha2::{Digest as _, Sha256};

use super::checksums::{with_checksum, with_crc, with_pack_checksums, with_segment_checksums};

/// 256 times `a`, compressed and then encrypted with [`sealing_key`], made with another implementation of the cipher.
const SEALED: &[u8] = include_bytes!("../seeds/encrypted_blob/valid");

/// The most that a blob may grow to.
const LIMIT: usize = 1 << 20;

/// A blob is refused, or decodes to what its limit allows, by all ways. Its checksum is put right, else no other byte of it
/// would be looked at.
pub(super) fn blob(input: &[u8]) {
    check_blob(input);
    if input.len() > 12 {
        let crc = crc32fast::hash(&input[12..]).to_le_bytes();
        check_blob(&[&input[..8], &crc, &input[12..]].concat());
    }
}

fn check_blob(input: &[u8]) {
    let Ok(blob) = Blob::parse(Bytes::copy_from_slice(input)) else { return };
    let (mut decoder, mut out) = (BlobDecoder::new(), Vec::new());
    let decoded = decoder.decode(&blob, &mut out, PlaintextSize::AtMost(LIMIT));
    assert!(out.len() <= LIMIT);
    let shared = decoder.decode_bytes(&blob, PlaintextSize::AtMost(LIMIT));
    assert_eq!(decoded.is_ok(), shared.is_ok());
    if let Ok(shared) = shared {
        assert_eq!(shared, out);
    }
    if let Some(parts) = decoded_in_parts(&blob, LIMIT) {
        assert!(decoded.is_ok() && parts == out);
    }
    assert_eq!(blob.into_bytes(), input);
}

/// A blob that decrypts has nonce, tag and payload of the seed: no others were sealed with this key. The kind alone is not
/// authenticated. In turn, the input is sealed, opens again, and does not once a bit of it is changed.
pub(super) fn encrypted_blob(input: &[u8]) {
    check_sealed(input);
    if input.len() > 44 {
        check_sealed(&with_crc(input));
    }
    let (mut sealed, mut out) = (Vec::new(), Vec::new());
    let hash = Sha256::digest(input);
    let nonce = hash[..16].try_into().expect("a digest has 32 bytes");
    let mut encoder = BlobEncoder::new(DEFAULT_ZSTD_LEVEL).expect("a level that exists");
    encoder.encode_encrypted(input, &sealing_key(), &nonce, &mut sealed).expect("it is short enough");
    let mut open = |sealed: Vec<u8>| {
        let blob = Blob::parse(sealed.into()).expect("the magic number is as it was");
        let size = PlaintextSize::Exactly(input.len());
        BlobDecoder::new().decrypt(&blob, &sealing_key(), &mut out, size).map(|()| out.clone())
    };
    assert_eq!(open(sealed.clone()).as_deref(), Ok(input));
    let at = 12 + (usize::from(hash[16]) << 8 | usize::from(hash[17])) % (sealed.len() - 12);
    sealed[at] ^= 1 << (hash[18] % 8);
    assert_eq!(open(with_crc(&sealed)), Err(DecodeError::Tag));
    assert!(out.is_empty());
}

fn sealing_key() -> EncryptionKey {
    EncryptionKey::from_bytes(&std::array::from_fn(|at| at.to_le_bytes()[0]))
}

fn check_sealed(input: &[u8]) {
    let Ok(blob) = Blob::parse(Bytes::copy_from_slice(input)) else { return };
    let mut out = vec![7; 100];
    match BlobDecoder::new().decrypt(&blob, &sealing_key(), &mut out, PlaintextSize::AtMost(LIMIT)) {
        Ok(()) => assert!(input[12..] == SEALED[12..] && out.len() <= LIMIT),
        Err(_) => assert!(out.is_empty()),
    }
}

/// The ends of chunks depend on the bytes, and not on the pieces in which they come.
pub(super) fn chunker(input: &[u8]) {
    let Some((first, data)) = input.split_first() else { return };
    let made = || -> Box<dyn Chunker> {
        match first % 3 {
            0 => Box::new(BuzhashChunker::new(64 << 10).expect("a size that exists")),
            1 => Box::new(RollingChunker::new(64 << 10).expect("a size that exists")),
            _ => Box::new(FixedChunker::new(4 << 10).expect("a size that exists")),
        }
    };
    // Long enough for some chunks.
    let data = data.repeat((300_000 / data.len().max(1)).min(300));
    let whole = cuts(made().as_mut(), &data, data.len().max(1));
    assert_eq!(whole, cuts(made().as_mut(), &data, usize::from(*first) + 4099));
    let (mut start, most) = (0, made().max_bytes());
    for end in whole {
        assert!(end > start && end - start <= most);
        start = end;
    }
    assert!(data.len() - start <= most);
}

fn cuts(chunker: &mut dyn Chunker, data: &[u8], piece: usize) -> Vec<usize> {
    let (mut cuts, mut at) = (Vec::new(), 0);
    for piece in data.chunks(piece) {
        let end = at + piece.len();
        while at < end {
            match chunker.scan(&data[at..end]) {
                Some(cut) => {
                    at += cut;
                    cuts.push(at);
                }
                None => at = end,
            }
        }
    }
    cuts
}

/// An index that is read has its chunks one behind the other, finds each by its first and its last byte, and is the same when it is written
/// again. Its checksum is put right, as that of a [`blob`].
pub(super) fn dynamic_index(input: &[u8]) {
    let Ok(index) = DynamicIndexReader::parse(with_checksum(input)) else { return };
    check_chunks(index.iter(), index.len(), |offset| index.chunk_at(offset));
    assert!(index.digest(index.len()).is_none() && index.chunk(index.len()).is_none());
    let mut writer = DynamicIndexWriter::new();
    for chunk in index.iter() {
        // A writer takes no chunk that no store could hold.
        let Ok(()) = writer.push(chunk.len, chunk.digest) else { return };
    }
    let written = writer.finish([0; 16], 0).expect("it has chunks");
    let again = DynamicIndexReader::parse(written.bytes).expect("what was written is read");
    assert!(again.iter().eq(index.iter()));
}

/// As [`dynamic_index`].
pub(super) fn fixed_index(input: &[u8]) {
    let Ok(index) = FixedIndexReader::parse(with_checksum(input)) else { return };
    check_chunks(index.iter(), index.len(), |offset| index.chunk_at(offset));
    assert!(index.digest(index.len()).is_none() && index.chunk(index.len()).is_none());
    let size = index.iter().map(|chunk| chunk.len).sum::<u64>();
    let Some(first) = index.chunk(0) else { return };
    let Ok(mut writer) = FixedIndexWriter::new(size, first.len) else { return };
    for chunk in index.iter() {
        let Ok(()) = writer.set(chunk.offset, chunk.len, chunk.digest) else { return };
    }
    let written = writer.finish([0; 16], 0).expect("it has all chunks");
    let again = FixedIndexReader::parse(written.bytes).expect("what was written is read");
    assert!(again.iter().eq(index.iter()));
}

fn check_chunks(chunks: impl Iterator<Item = ChunkEntry>, count: usize, at: impl Fn(u64) -> Option<usize>) {
    let (mut end, mut number) = (0, 0);
    for chunk in chunks {
        assert_eq!(chunk.offset, end);
        assert!(chunk.len > 0);
        end += chunk.len;
        assert_eq!((at(chunk.offset), at(end - 1)), (Some(number), Some(number)));
        number += 1;
    }
    assert_eq!((number, at(end)), (count, None));
}

/// A manifest that is read is the same when it is written and read again.
pub(super) fn manifest(input: &[u8]) {
    if let Ok(manifest) = manifests::parse(input) {
        let again = manifests::parse(&manifest.to_json()).expect("what was written is read");
        assert_eq!(manifests::canonical_json(&again), manifests::canonical_json(&manifest));
        assert_eq!(again.files(), manifest.files());
    }
}

/// A pack is refused, or its entries lie one behind the other, by both ways to read it. Its checksums are put right, as that of a [`blob`].
pub(super) fn pack(input: &[u8]) {
    check_pack(input);
    check_pack(&with_pack_checksums(input));
}

fn check_pack(input: &[u8]) {
    let size = input.len() as u64;
    let directory = packs::directory(size, input);
    for suffix in [64, 200] {
        let suffix = &input[input.len().saturating_sub(suffix)..];
        let by_suffix = packs::directory(size, suffix);
        assert!(by_suffix == directory || matches!(by_suffix, Err(DecodeError::Truncated { .. })));
    }
    let scanned = packs::scan(input, input.len().max(1));
    assert_eq!(scanned, packs::scan(input, 7));
    let Ok(Scanned { damage, directory: listed, entries }) = scanned else { return };
    let mut passed: Vec<_> = damage.iter().map(|range| (range.start, range.end)).collect();
    for (place, blob) in &entries {
        assert_eq!(&input[place.offset as usize..place.end as usize], blob);
        passed.push((u64::from(place.offset - 44), place.end.into()));
    }
    passed.sort_unstable();
    assert!(passed.windows(2).all(|pair| pair[0].1 == pair[1].0), "{passed:?}");
    if let Ok(listed) = listed {
        assert!(entries.iter().all(|(place, _)| listed.contains(place)));
        assert_eq!(directory, Ok(listed));
    }
}

/// An index segment is refused, or has its records in order, and the same ones slot by slot. Its checksums are put right, as that of a
/// [`blob`].
pub(super) fn segment(input: &[u8]) {
    for input in [input.to_vec(), with_segment_checksums(input)] {
        let input = Bytes::from(input);
        let by_slots = packs::records_by_slots(&input);
        let Ok(records) = packs::records(&input) else { continue };
        assert!(records.is_sorted_by(|one, next| (one.digest, one.pack) <= (next.digest, next.pack)));
        assert!(records.iter().all(|Place { offset, end, .. }| *offset >= 76 && offset < end));
        assert_eq!(by_slots, Ok(records));
    }
}
