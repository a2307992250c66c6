//! What the fuzz targets do with their input, shared with `tests/meta/fuzz_bodies.rs`: read it, and check what must hold of what was
//! read. A seed of each is something valid, for inputs that are almost so.

use std::str::FromStr as _;

use bytes::Bytes;
use larder::crypt::{EncryptionKey, KeyError, KeyFile};
use larder::format::layout::{Key, Prefix};
use larder::internal::blob::{
    Blob, BlobDecoder, BlobEncoder, DEFAULT_ZSTD_LEVEL, DecodeError, PlaintextSize,
};
use larder::internal::dynamic_index::DynamicIndexReader;
use larder::internal::fixed_index::FixedIndexReader;
use larder::internal::index::ChunkEntry;
use larder::internal::manifest;
use larder::internal::packs::{self, Place, Scanned};
use larder::internal::status::{decode_owner, encode_gc_status, encode_owner, parse_gc_status};
use larder::internal::wire::date::{parse_http_date, parse_iso8601};
use larder::internal::wire::http_body::{ChunkedDecoder, Step};
use larder::internal::wire::http_head::parse_response;
use larder::internal::wire::s3_xml;
use larder::internal::wire::uri::{Endpoint, decode, encode, encode_path};
use larder::internal::wire::{framing_of, keeps_connection};
use larder::pxar::{ArchivePart, CatalogKind, CatalogReader, Decoder, FileKind};
use sha2::{Digest as _, Sha256};

/// A target: its name, what it does, and a valid input.
pub(crate) type Target = (&'static str, fn(&[u8]), &'static [u8]);

/// All of them.
pub(crate) const TARGETS: [Target; 17] = [
    ("blob", blob, include_bytes!("seeds/blob")),
    ("catalog", catalog, include_bytes!("seeds/catalog")),
    ("chunked_body", chunked_body, b"4;x=y\r\nwiki\r\n5\r\npedia\r\n0\r\nTrailer: x\r\n\r\n"),
    ("dynamic_index", dynamic_index, include_bytes!("seeds/dynamic_index")),
    ("encrypted_blob", encrypted_blob, SEALED),
    ("fixed_index", fixed_index, include_bytes!("seeds/fixed_index")),
    ("goodbye", goodbye, include_bytes!("seeds/pxar")),
    ("key_file", key_file, include_bytes!("seeds/key_file")),
    ("listing", listing, include_bytes!("seeds/listing")),
    ("manifest", manifest, include_bytes!("seeds/manifest")),
    ("pack", pack, include_bytes!("seeds/pack")),
    ("paths", paths, b"ns/a/ns/b/vm/100/2025-07-14T14:20:02Z/drive-scsi0.img.fidx"),
    ("pxar", pxar, include_bytes!("seeds/pxar")),
    ("response_head", response_head, b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc"),
    ("s3_documents", s3_documents, include_bytes!("seeds/s3_documents")),
    ("segment", segment, include_bytes!("seeds/segment")),
    ("uri", uri, b"https://s3.example.com:8443/base/%C3%BC path"),
];

/// 256 times `a`, compressed and then encrypted with [`sealing_key`], made with another implementation of the cipher.
const SEALED: &[u8] = include_bytes!("seeds/encrypted_blob");

/// The most that a blob may grow to.
const LIMIT: usize = 1 << 20;

/// A blob is refused, or decodes to what its limit allows, by both ways. Its checksum is put right, else no other byte of it
/// would be looked at.
pub(crate) fn blob(input: &[u8]) {
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
    assert_eq!(blob.into_bytes(), input);
}

/// A body in chunks is the same whether it comes at once or byte by byte.
pub(crate) fn chunked_body(input: &[u8]) {
    let whole = read_chunks(input, input.len().max(1));
    assert_eq!(whole, read_chunks(input, 1));
}

/// What the body is, if it is whole, and how much of the input it took.
fn read_chunks(input: &[u8], step: usize) -> Option<(Vec<u8>, usize)> {
    let (mut decoder, mut body) = (ChunkedDecoder::default(), Vec::new());
    let (mut taken, mut seen) = (0, step.min(input.len()));
    loop {
        match decoder.step(&input[taken..seen]).ok()? {
            Step::Data(length) => {
                assert!(length > 0);
                body.extend_from_slice(&input[taken..taken + length]);
                taken += length;
            }
            Step::Skip(length) => taken += length,
            Step::End => return Some((body, taken)),
            Step::More if seen == input.len() => return None,
            Step::More => seen = input.len().min(seen + step),
        }
        assert!(taken <= seen);
    }
}

/// A blob that decrypts has nonce, tag and payload of the seed: no others were sealed with this key. The kind alone is not
/// authenticated. In turn, the input is sealed, opens again, and does not once a bit of it is changed.
pub(crate) fn encrypted_blob(input: &[u8]) {
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

/// The same encrypted blob, with the checksum of its payload.
fn with_crc(input: &[u8]) -> Vec<u8> {
    [&input[..8], &crc32fast::hash(&input[44..]).to_le_bytes(), &input[12..]].concat()
}

fn check_sealed(input: &[u8]) {
    let Ok(blob) = Blob::parse(Bytes::copy_from_slice(input)) else { return };
    let mut out = vec![7; 100];
    match BlobDecoder::new().decrypt(&blob, &sealing_key(), &mut out, PlaintextSize::AtMost(LIMIT)) {
        Ok(()) => assert!(input[12..] == SEALED[12..] && out.len() <= LIMIT),
        Err(_) => assert!(out.is_empty()),
    }
}

/// An index that is read has its chunks one behind the other, and finds each by its first and its last byte. Its checksum is
/// put right, as that of a [`blob`].
pub(crate) fn dynamic_index(input: &[u8]) {
    if let Ok(index) = DynamicIndexReader::parse(with_checksum(input)) {
        check_chunks(index.iter(), index.len(), |offset| index.chunk_at(offset));
        assert!(index.digest(index.len()).is_none() && index.chunk(index.len()).is_none());
    }
}

/// As [`dynamic_index`].
pub(crate) fn fixed_index(input: &[u8]) {
    if let Ok(index) = FixedIndexReader::parse(with_checksum(input)) {
        check_chunks(index.iter(), index.len(), |offset| index.chunk_at(offset));
        assert!(index.digest(index.len()).is_none() && index.chunk(index.len()).is_none());
    }
}

/// The same index, with the checksum of its entries.
fn with_checksum(input: &[u8]) -> Vec<u8> {
    let mut index = input.to_vec();
    if index.len() >= 4096 {
        let checksum = Sha256::digest(&index[4096..]);
        index[32..64].copy_from_slice(&checksum);
    }
    index
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

/// A key file that is read is the same when it is written and read again. Without a passphrase only an unprotected one gives its key.
pub(crate) fn key_file(input: &[u8]) {
    let Ok(file) = KeyFile::parse(input) else { return };
    let written = file.to_json();
    let again = KeyFile::parse(written.as_bytes()).expect("what was written is read");
    assert_eq!(*again.to_json(), *written);
    match file.unlock(None) {
        Ok(key) => {
            assert!(file.kdf().is_none() && file.fingerprint().is_none_or(|it| it == key.fingerprint()));
        }
        Err(KeyError::NoPassphrase) => assert!(file.kdf().is_some()),
        Err(error) => assert_eq!(error, KeyError::OtherFingerprint),
    }
}

/// A page that is read has no key without a name.
pub(crate) fn listing(input: &[u8]) {
    if let Ok(page) = s3_xml::parse_listing(input) {
        assert!(page.objects.iter().all(|object| !object.key.is_empty()));
    }
}

/// A manifest that is read is the same when it is written and read again.
pub(crate) fn manifest(input: &[u8]) {
    if let Ok(manifest) = manifest::parse(input) {
        let again = manifest::parse(&manifest.to_json()).expect("what was written is read");
        assert_eq!(manifest::canonical_json(&again), manifest::canonical_json(&manifest));
        assert_eq!(again.files(), manifest.files());
    }
}

/// Paths that are names of something are written as they were read, and never lead out of the store.
pub(crate) fn paths(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(key) = Key::from_str(text) {
        assert_eq!(key.to_string(), text);
        assert!(!text.starts_with('/') && text.split('/').all(|part| !matches!(part, "" | "." | "..")));
    }
    if let Ok(prefix) = Prefix::from_str(text) {
        assert_eq!(prefix.to_string(), text);
    }
    if let Ok(owner) = decode_owner(input) {
        assert_eq!(decode_owner(&encode_owner(&owner)).as_ref(), Ok(&owner));
    }
    if let Some(status) = parse_gc_status(input) {
        assert!(parse_gc_status(&encode_gc_status(&status)).is_some());
    }
    if let Some(path) = packs::rewritten_path(text) {
        assert_eq!(path, text);
    }
    let _ = (parse_http_date(text), parse_iso8601(text));
}

/// A head that is read ends in an empty line, and is the same whatever follows.
pub(crate) fn response_head(input: &[u8]) {
    let Ok(Some((head, length))) = parse_response(input) else { return };
    assert!(input[..length].ends_with(b"\r\n\r\n"));
    assert!((100..=999).contains(&head.status));
    assert_eq!(parse_response(&input[..length]).ok().flatten().map(|(head, _)| head), Some(head.clone()));
    let both =
        head.headers.get("content-length").is_some() && head.headers.get("transfer-encoding").is_some();
    assert!(!both || framing_of("GET", &head).is_err());
    let _ = keeps_connection(&head);
}

/// Documents of the protocol are read or refused.
pub(crate) fn s3_documents(input: &[u8]) {
    let _ = s3_xml::parse_error(input);
    let _ = s3_xml::parse_deleted(input);
    let _ = s3_xml::parse_copied(input);
    let _ = s3_xml::parse_completed(input);
    let _ = s3_xml::parse_begun(input);
    let _ = s3_xml::parse_uploads(input);
    let _ = s3_xml::parse_buckets(input);
    let _ = s3_xml::parse_versioning(input);
    let _ = s3_xml::parse_object_lock(input);
    let _ = s3_xml::parse_lifecycle(input);
    let _ = s3_xml::parse_location(input);
}

/// What is encoded is decoded again, and an address that is read is written as an address.
pub(crate) fn uri(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    assert_eq!(decode(&encode(text)).as_deref(), Some(text));
    assert_eq!(decode(&encode_path(text)).as_deref(), Some(text));
    if let Ok(endpoint) = Endpoint::from_str(text) {
        let scheme = if text.to_ascii_lowercase().starts_with("http://") { "http" } else { "https" };
        let written = endpoint.to_string();
        assert!(written.starts_with(&format!("{scheme}://")));
        assert_eq!(Endpoint::from_str(&written), Ok(endpoint));
    }
}

/// A catalog is refused, or each of its directories is read once.
pub(crate) fn catalog(input: &[u8]) {
    let Ok(catalog) = CatalogReader::parse(input.to_vec()) else { return };
    let (mut open, mut blocks) = (vec![catalog.root()], 0);
    while let Some(directory) = open.pop() {
        blocks += 1;
        assert!(blocks <= input.len());
        for entry in catalog.entries(directory).unwrap_or_default() {
            if let CatalogKind::Directory(directory) = entry.kind {
                open.push(directory);
            }
        }
    }
}

/// The table of a directory is refused, or its children lie in the directory.
pub(crate) fn goodbye(input: &[u8]) {
    let Ok(children) = larder::internal::pxar::root_children(input) else { return };
    assert!(children.is_sorted_by(|one, next| one < next));
    assert!(children.iter().all(|child| *child > 0 && *child < input.len() as u64));
}

/// An archive is refused, or its parts are those of a tree; in pieces it is the same.
pub(crate) fn pxar(input: &[u8]) {
    let whole = parts(input, input.len().max(1));
    // Bytes behind the end show only if they are fed.
    let of_tree = |parts: &[ArchivePart]| parts.iter().take_while(|part| **part != ArchivePart::End).count();
    let in_pieces = parts(input, 3);
    assert_eq!(whole[..of_tree(&whole)], in_pieces[..of_tree(&in_pieces)]);
    let mut depth = 0;
    for part in whole {
        match part {
            ArchivePart::Entry(entry) if entry.kind == FileKind::Directory => depth += 1,
            ArchivePart::DirectoryEnd => depth -= 1,
            ArchivePart::End => assert_eq!(depth, 0),
            _ => assert!(depth > 0),
        }
    }
}

/// The parts of an archive that is fed in pieces, past the contents.
fn parts(input: &[u8], piece: usize) -> Vec<ArchivePart> {
    let (mut decoder, mut parts) = (Decoder::new(), Vec::new());
    loop {
        match decoder.next_part() {
            Ok(ArchivePart::NeedsBytes) => {
                let start = usize::try_from(decoder.position()).unwrap_or(usize::MAX);
                let Some(rest) = input.get(start..).filter(|rest| !rest.is_empty()) else { return parts };
                decoder.feed(Bytes::copy_from_slice(&rest[..piece.min(rest.len())]));
            }
            Ok(part) => {
                decoder.skip_contents();
                let is_end = part == ArchivePart::End;
                parts.push(part);
                if is_end {
                    return parts;
                }
            }
            Err(_) => return parts,
        }
    }
}

/// A pack is refused, or its entries lie one behind the other, by both ways to read it. Its checksums are put right, as that of a [`blob`].
pub(crate) fn pack(input: &[u8]) {
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

/// The same pack, with the checksums of its header, of its first entry and of its trailer.
fn with_pack_checksums(input: &[u8]) -> Vec<u8> {
    let mut pack = input.to_vec();
    if pack.len() < 76 + 64 {
        return pack;
    }
    let crc = crc32fast::hash(&pack[..28]).to_le_bytes();
    pack[28..32].copy_from_slice(&crc);
    let crc = crc32fast::hash(&[&packs::SESSION, &32_u32.to_le_bytes()[..], &pack[32..72]].concat());
    pack[72..76].copy_from_slice(&crc.to_le_bytes());
    let trailer = pack.len() - 64;
    let mut header = [&pack[..10], &pack[trailer + 10..trailer + 12], &packs::SESSION].concat();
    header.extend(crc32fast::hash(&header).to_le_bytes());
    let at = |from: usize| u32::from_le_bytes(std::array::from_fn(|byte| pack[trailer + from + byte]));
    let directory = trailer.saturating_sub(40 * at(12).min(1 << 17) as usize);
    let sum = Sha256::digest([&header, &pack[directory..trailer + 32]].concat());
    pack[trailer + 32..].copy_from_slice(&sum);
    pack
}

/// An index segment is refused, or has its records in order, and the same ones slot by slot. Its checksums are put right, as that of a
/// [`blob`].
pub(crate) fn segment(input: &[u8]) {
    for input in [input.to_vec(), with_segment_checksums(input)] {
        let input = Bytes::from(input);
        let by_slots = packs::records_by_slots(&input);
        let Ok(records) = packs::records(&input) else { continue };
        assert!(records.is_sorted_by(|one, next| (one.digest, one.pack) <= (next.digest, next.pack)));
        assert!(records.iter().all(|Place { offset, end, .. }| *offset >= 76 && offset < end));
        assert_eq!(by_slots, Ok(records));
    }
}

/// The same segment, with the checksums of its header, its slots, its head and the whole.
fn with_segment_checksums(input: &[u8]) -> Vec<u8> {
    let mut segment = input.to_vec();
    let at = |segment: &[u8], from: usize| {
        segment.get(from..from + 4).map_or(0, |field| u32::from_le_bytes(field.try_into().unwrap()) as usize)
    };
    let [packs, replaced, records, dropped] = [32, 36, 40, 44].map(|from| at(input, from).min(1 << 20));
    let slots = records.div_ceil(64).max(1).next_power_of_two();
    let slots_at = 52 + 28 * packs + 20 * (replaced + dropped);
    let records_at = slots_at + 8 * slots + 32;
    let Some(end) = segment.len().checked_sub(32).filter(|end| *end >= records_at) else { return segment };
    let crc = crc32fast::hash(&segment[..48]).to_le_bytes();
    segment[48..52].copy_from_slice(&crc);
    let mut start = records_at;
    for slot in 0..slots {
        let entry = slots_at + 8 * slot;
        let behind = (records_at + 44 * at(&segment, entry)).clamp(start, end);
        let crc = crc32fast::hash(&segment[start..behind]).to_le_bytes();
        segment[entry + 4..entry + 8].copy_from_slice(&crc);
        start = behind;
    }
    for from in [records_at - 32, end] {
        let sum = Sha256::digest(&segment[..from]);
        segment[from..from + 32].copy_from_slice(&sum);
    }
    segment
}
