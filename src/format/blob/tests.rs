use std::io::Write as _;

use proptest::prelude::*;

use super::*;
use crate::format::Digest;

fn encode(plaintext: &[u8]) -> Vec<u8> {
    let mut out = vec![7; 100];
    BlobEncoder::new(DEFAULT_ZSTD_LEVEL).unwrap().encode(plaintext, &mut out).unwrap();
    out
}

fn decode(blob: &[u8], expected: PlaintextSize) -> Result<Vec<u8>, DecodeError> {
    let blob = Blob::parse(Bytes::copy_from_slice(blob))?;
    let mut out = vec![7; 100];
    let mut decoder = BlobDecoder::new();
    let decoded = decoder.decode(&blob, &mut out, expected).map(|()| out);
    assert_eq!(decoder.decode_bytes(&blob, expected), decoded.clone().map(Bytes::from));
    decoded
}

fn zstd_blob(payload: &[u8]) -> Vec<u8> {
    let crc = crc32fast::hash(payload).to_le_bytes();
    [&BlobKind::Zstd.magic()[..], &crc, payload].concat()
}

/// The key of the golden blobs.
fn golden_key() -> EncryptionKey {
    EncryptionKey::from_bytes(&std::array::from_fn(|at| at.to_le_bytes()[0]))
}

/// The nonce of the golden blobs.
const NONCE: [u8; 16] = [16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31];

fn encrypt(plaintext: &[u8], key: &EncryptionKey, nonce: &[u8; 16]) -> (BlobKind, Vec<u8>) {
    let mut out = vec![7; 100];
    let mut encoder = BlobEncoder::new(DEFAULT_ZSTD_LEVEL).unwrap();
    let kind = encoder.encode_encrypted(plaintext, key, nonce, &mut out).unwrap();
    (kind, out)
}

/// Decrypts with what a decoder and a buffer hold from before. A failure leaves nothing in the buffer.
fn decrypt(blob: &[u8], key: &EncryptionKey, expected: PlaintextSize) -> Result<Vec<u8>, DecodeError> {
    let blob = Blob::parse(Bytes::copy_from_slice(blob))?;
    let mut out = vec![7; 100];
    let decrypted = BlobDecoder::new().decrypt(&blob, key, &mut out, expected);
    assert!(decrypted.is_ok() || out.is_empty());
    decrypted.map(|()| out)
}

/// Puts the checksum of an encrypted blob right.
fn fix_crc(blob: &mut [u8]) {
    let crc = crc32fast::hash(&blob[44..]).to_le_bytes();
    blob[8..12].copy_from_slice(&crc);
}

const ANY: PlaintextSize = PlaintextSize::AtMost(1 << 20);

#[test]
fn a_plain_blob_has_the_bytes_of_the_specification() {
    let bytes = b"\x42\xab\x38\x07\xbe\x83\x70\xa1\x0c\x7e\x7f\xd8test";
    assert_eq!(encode(b"test"), bytes);
    let digest = "bed73ca76f347c610e21f708d4ae888f3ab51298aca544795eef2aae5faf2008";
    assert_eq!(Digest::of(bytes).to_string(), digest);
    assert_eq!(decode(bytes, ANY).unwrap(), b"test");
    let mut plain = Vec::new();
    encode_plain(b"test", &mut plain).unwrap();
    assert_eq!(plain, bytes);
}

#[test]
fn the_empty_blob_is_a_header() {
    let bytes = b"\x42\xab\x38\x07\xbe\x83\x70\xa1\0\0\0\0";
    assert_eq!(encode(b""), bytes);
    assert_eq!(decode(bytes, PlaintextSize::Exactly(0)).unwrap(), b"");
}

#[test]
fn a_compressed_blob_has_exactly_these_bytes() {
    // The frame is what the zstd program writes at level 1 for 256 bytes of `a`.
    let bytes = b"\x31\xb9\x58\x42\x6f\xb6\xa3\x7f\x0c\xa0\x14\xb7\
        \x28\xb5\x2f\xfd\x60\x00\x00\x4d\x00\x00\x10\x61\x61\x01\x00\x7b\x0a\x60\x01";
    assert_eq!(encode(&[b'a'; 256]), bytes);
    assert_eq!(decode(bytes, PlaintextSize::Exactly(256)).unwrap(), [b'a'; 256]);
}

#[test]
fn magics_are_digests_of_their_names() {
    for (kind, name) in [
        (BlobKind::Plain, "Proxmox Backup uncompressed blob v1.0"),
        (BlobKind::Zstd, "Proxmox Backup zstd compressed blob v1.0"),
        (BlobKind::Encrypted, "Proxmox Backup encrypted blob v1.0"),
        (BlobKind::EncryptedZstd, "Proxmox Backup zstd compressed encrypted blob v1.0"),
    ] {
        assert_eq!(Digest::of(name.as_bytes()).as_bytes()[..8], kind.magic());
    }
}

#[test]
fn incompressible_data_stays_plain() {
    let random: Vec<u8> = (0..2000_u32).map(|n| Digest::of(&n.to_le_bytes()).as_bytes()[0]).collect();
    for (plaintext, kind) in
        [(&random[..], BlobKind::Plain), (&[0; 24], BlobKind::Plain), (&[0; 100], BlobKind::Zstd)]
    {
        let blob = encode(plaintext);
        assert_eq!(Blob::parse(blob.clone().into()).unwrap().kind(), kind);
        assert!(blob.len() <= plaintext.len() + 12);
        assert_eq!(decode(&blob, ANY).unwrap(), plaintext);
    }
}

/// Proves H175.
#[test]
fn the_expected_length_is_the_limit() {
    let blob = encode(&[0; 1000]);
    for (expected, error) in [
        (PlaintextSize::Exactly(1001), DecodeError::Size { want: 1001, have: 1000 }),
        (PlaintextSize::AtMost(999), DecodeError::TooLong { limit: 999 }),
    ] {
        assert_eq!(decode(&blob, expected), Err(error));
        let mut out = vec![1];
        assert!(
            BlobDecoder::new()
                .decode(&Blob::parse(blob.clone().into()).unwrap(), &mut out, expected)
                .is_err()
        );
        assert!(out.is_empty(), "what is refused is not shown");
    }
    assert!(decode(&blob, PlaintextSize::Exactly(999)).is_err());
    let bomb = encode(&vec![0; 64 << 20]);
    assert!(bomb.len() < 10_000);
    let parsed = Blob::parse(bomb.into()).unwrap();
    let mut out = Vec::new();
    assert!(BlobDecoder::new().decode(&parsed, &mut out, ANY).is_err());
    assert!(out.capacity() < 4 << 20, "{}", out.capacity());
    assert!(BlobDecoder::new().decode(&parsed, &mut out, PlaintextSize::Exactly(1 << 20)).is_err());
    assert!(out.capacity() < 4 << 20, "{}", out.capacity());
}

/// Proves H175.
#[test]
fn a_blob_is_decoded_once() {
    let inner = encode(&[0; 1000]);
    let outer = encode(&inner);
    assert_eq!(decode(&outer, ANY).unwrap(), inner);
}

#[test]
fn any_zstd_stream_is_read() {
    let mut unsized_frame = zstd::Encoder::new(Vec::new(), 3).unwrap();
    unsized_frame.write_all(&vec![5; 70_000]).unwrap();
    let unsized_frame = unsized_frame.finish().unwrap();
    let two_frames = [&unsized_frame[..], &zstd::bulk::compress(&[6; 10], 1).unwrap()].concat();
    let both = [vec![5; 70_000], vec![6; 10]].concat();
    for expected in [ANY, PlaintextSize::Exactly(70_010), PlaintextSize::AtMost(70_010)] {
        assert_eq!(decode(&zstd_blob(&two_frames), expected).unwrap(), both);
    }
    assert!(decode(&zstd_blob(&two_frames), PlaintextSize::AtMost(70_009)).is_err());
}

/// Proves H175.
#[test]
fn a_window_beyond_the_limit_is_refused() {
    let frame = |window_log| {
        let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
        encoder.window_log(window_log).unwrap();
        encoder.write_all(&[7; 1000]).unwrap();
        encoder.flush().unwrap();
        zstd_blob(&encoder.finish().unwrap())
    };
    assert_eq!(decode(&frame(23), PlaintextSize::AtMost(1000)), Ok(vec![7; 1000]));
    assert_eq!(decode(&frame(27), PlaintextSize::AtMost(1000)), Err(DecodeError::Compression));
    assert_eq!(decode(&frame(27), PlaintextSize::AtMost(128 << 20)), Ok(vec![7; 1000]));
}

/// Decodes in parts with a decoder that has failed before.
fn decode_parts(blob: &[u8], key: Option<&EncryptionKey>, limit: usize) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = BlobDecoder::new();
    let half = zstd_blob(&encode(&vec![1; 1 << 20])[12..40]);
    let half = Blob::parse(half.into()).unwrap();
    assert_eq!(decoder.decode_parts(&half, None, 1 << 20, |_| {}), Err(DecodeError::Compression));
    let (blob, mut out) = (Blob::parse(Bytes::copy_from_slice(blob))?, Vec::new());
    let length = decoder.decode_parts(&blob, key, limit, |part| out.extend_from_slice(part))?;
    assert_eq!(length, out.len());
    Ok(out)
}

/// Proves H175.
#[test]
fn parts_are_the_plaintext_up_to_the_limit() {
    let key = golden_key();
    for length in [0, 1, 1000, 128 << 10, 300_000, 700_001] {
        let plaintext: Vec<_> = (0..length).map(|at: usize| (at / 7).to_le_bytes()[0]).collect();
        let blob = zstd_blob(&zstd::bulk::compress(&plaintext, 1).unwrap());
        assert_eq!(decode_parts(&blob, None, length).as_ref(), Ok(&plaintext));
        if length > 1000 {
            let short = decode_parts(&blob, None, length - 1);
            assert_eq!(short, Err(DecodeError::TooLong { limit: length - 1 }));
            let (kind, sealed) = encrypt(&plaintext, &key, &NONCE);
            assert_eq!(kind, BlobKind::EncryptedZstd);
            assert_eq!(decode_parts(&sealed, Some(&key), length).as_ref(), Ok(&plaintext));
            assert_eq!(decode_parts(&sealed, None, length), Err(DecodeError::Encrypted));
            let other = EncryptionKey::from_bytes(&[9; 32]);
            assert_eq!(decode_parts(&sealed, Some(&other), length), Err(DecodeError::Tag));
            assert_eq!(decode_parts(&blob, Some(&key), length), Err(DecodeError::NotEncrypted));
        }
        let mut plain = Vec::new();
        encode_plain(&plaintext, &mut plain).unwrap();
        assert_eq!(decode_parts(&plain, None, length).as_ref(), Ok(&plaintext));
        let mut damaged = blob.clone();
        damaged[8] ^= 1;
        assert!(matches!(decode_parts(&damaged, None, length), Err(DecodeError::Checksum)));
    }
}

#[test]
fn encrypted_parts_that_are_not_compressed_are_the_plaintext() {
    let key = golden_key();
    let plaintext: Vec<_> = (0..300).map(|at: u64| Digest::of(&at.to_le_bytes()).as_bytes()[0]).collect();
    let (kind, sealed) = encrypt(&plaintext, &key, &NONCE);
    assert_eq!(kind, BlobKind::Encrypted);
    assert_eq!(decode_parts(&sealed, Some(&key), 300).as_ref(), Ok(&plaintext));
    assert_eq!(decode_parts(&sealed, Some(&key), 299), Err(DecodeError::TooLong { limit: 299 }));
    assert_eq!(decode_parts(&sealed, None, 300), Err(DecodeError::Encrypted));
}

/// Several frames, and frames that do not say how long they are.
#[test]
fn parts_of_any_zstd_stream_are_read_to_its_end() {
    let mut unsized_frame = zstd::Encoder::new(Vec::new(), 3).unwrap();
    unsized_frame.write_all(&vec![5; 270_000]).unwrap();
    let frames = [unsized_frame.finish().unwrap(), zstd::bulk::compress(&[6; 10], 1).unwrap()].concat();
    let both = [vec![5; 270_000], vec![6; 10]].concat();
    assert_eq!(decode_parts(&zstd_blob(&frames), None, both.len()), Ok(both));
    for end in 1..frames.len() {
        let cut = decode_parts(&zstd_blob(&frames[..end]), None, 300_000);
        // A cut between the frames leaves one of them.
        assert!(cut == Err(DecodeError::Compression) || cut == Ok(vec![5; 270_000]), "{end}");
    }
    let more = decode_parts(&zstd_blob(&[&frames[..], b"x"].concat()), None, 300_000);
    assert_eq!(more, Err(DecodeError::Compression));
}

/// Proves H173.
#[test]
fn an_empty_input_is_not_a_blob() {
    assert_eq!(Blob::parse(Bytes::new()), Err(DecodeError::Truncated { want: 12, have: 0 }));
    let encrypted = [&BlobKind::Encrypted.magic()[..], &[0; 35]].concat();
    assert_eq!(Blob::parse(encrypted.into()), Err(DecodeError::Truncated { want: 44, have: 43 }));
}

#[test]
fn encrypted_blobs_are_copied_and_not_decoded() {
    for kind in [BlobKind::Encrypted, BlobKind::EncryptedZstd] {
        let crc = crc32fast::hash(b"sealed").to_le_bytes();
        let bytes = [&kind.magic()[..], &crc, &[1; 16], &[2; 16], b"sealed"].concat();
        let blob = Blob::parse(bytes.clone().into()).unwrap();
        assert_eq!(blob.kind(), kind);
        assert_eq!(blob.check_crc(), Ok(()));
        assert_eq!(blob.seal(), Some(([1; 16], [2; 16])));
        assert_eq!(blob.payload(), &b"sealed"[..]);
        assert_eq!(decode(&bytes, ANY), Err(DecodeError::Encrypted));
        assert_eq!(blob.into_bytes(), bytes);
    }
}

/// Made with the AES-GCM of OpenSSL.
#[test]
fn encrypted_blobs_have_exactly_these_bytes() {
    let plain = b"\x7b\x67\x85\xbe\x22\x2d\x4c\xf0\x14\x3c\xab\x53\
        \x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\
        \x8f\xfa\x13\xbd\x94\x97\x91\x98\x20\xc5\x75\xdb\xc2\xdd\x76\xa3\
        \xfe\x3f\x49\x14";
    let zstd = b"\xe6\x59\x1b\xbf\x0b\xbf\xd8\x0b\xe2\x50\x25\x08\
        \x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\
        \x74\xdd\x5a\xf3\x63\x0e\x5f\xb3\x97\xf4\x08\x90\x81\xdc\xe3\xef\
        \xa2\xef\x15\x9d\x87\x71\x3b\xe2\x6b\x0b\x8e\x08\xd6\xa1\x11\x7a\xba\xe5\x60";
    let empty = b"\x7b\x67\x85\xbe\x22\x2d\x4c\xf0\0\0\0\0\
        \x10\x11\x12\x13\x14\x15\x16\x17\x18\x19\x1a\x1b\x1c\x1d\x1e\x1f\
        \xf8\xe0\x6f\x7b\x60\xeb\xe4\x6b\x2b\xc4\xb2\x27\x05\xe8\x3f\x2c";
    let golden = [
        (&b"test"[..], BlobKind::Encrypted, &plain[..]),
        (&[b'a'; 256], BlobKind::EncryptedZstd, zstd),
        (b"", BlobKind::Encrypted, empty),
    ];
    for (plaintext, kind, bytes) in golden {
        assert_eq!(encrypt(plaintext, &golden_key(), &NONCE), (kind, bytes.to_vec()));
        let decrypted = decrypt(bytes, &golden_key(), PlaintextSize::Exactly(plaintext.len()));
        assert_eq!(decrypted.as_deref(), Ok(plaintext));
    }
}

#[test]
fn another_key_and_another_kind_are_refused() {
    let (_, blob) = encrypt(b"test", &golden_key(), &NONCE);
    let other = EncryptionKey::from_bytes(&[1; 32]);
    assert_eq!(decrypt(&blob, &other, ANY), Err(DecodeError::Tag));
    assert_eq!(decrypt(&encode(b"test"), &golden_key(), ANY), Err(DecodeError::NotEncrypted));
    let zstd = [&BlobKind::EncryptedZstd.magic()[..], &blob[8..]].concat();
    assert_eq!(decrypt(&zstd, &golden_key(), ANY), Err(DecodeError::Compression));
}

/// Proves H175.
#[test]
fn the_expected_length_is_the_limit_of_what_is_decrypted() {
    let (_, bomb) = encrypt(&vec![0; 64 << 20], &golden_key(), &NONCE);
    assert!(bomb.len() < 10_000);
    let parsed = Blob::parse(bomb.into()).unwrap();
    let mut out = Vec::new();
    let decrypted = BlobDecoder::new().decrypt(&parsed, &golden_key(), &mut out, ANY);
    assert!(decrypted.is_err() && out.is_empty() && out.capacity() < 4 << 20, "{}", out.capacity());
    for size in [3, 5] {
        let (_, blob) = encrypt(b"test", &golden_key(), &NONCE);
        let error = decrypt(&blob, &golden_key(), PlaintextSize::Exactly(size)).unwrap_err();
        assert_eq!(error, DecodeError::Size { want: size, have: 4 });
    }
}

#[test]
fn levels_out_of_range_are_refused() {
    assert_eq!(BlobEncoder::new(23).map(drop), Err(EncodeError::Level));
    assert_eq!(BlobEncoder::new(22).map(drop), Ok(()));
}

proptest! {
    #[test]
    fn decode_undoes_encode(plaintext in prop::collection::vec(any::<u8>(), 0..300), times in 1..40_usize) {
        let plaintext = plaintext.repeat(times);
        prop_assert_eq!(decode(&encode(&plaintext), PlaintextSize::Exactly(plaintext.len())).unwrap(), plaintext);
    }

    #[test]
    fn decrypt_undoes_encrypt(plaintext in prop::collection::vec(any::<u8>(), 0..300), times in 1..40_usize, secret: [u8; 32], nonce: [u8; 16]) {
        let (plaintext, key) = (plaintext.repeat(times), EncryptionKey::from_bytes(&secret));
        let (kind, blob) = encrypt(&plaintext, &key, &nonce);
        let parsed = Blob::parse(blob.clone().into()).unwrap();
        prop_assert_eq!((parsed.kind(), parsed.seal().unwrap().0), (kind, nonce));
        prop_assert!(blob.len() <= plaintext.len() + 44);
        prop_assert_eq!(decode(&blob, ANY), Err(DecodeError::Encrypted));
        prop_assert_eq!(decrypt(&blob, &key, PlaintextSize::Exactly(plaintext.len())), Ok(plaintext));
    }

    /// The checksum finds a change of the payload, and the tag every change below a right checksum.
    #[test]
    fn every_flipped_bit_of_an_encrypted_blob_is_detected(plaintext in prop::collection::vec(0..4_u8, 0..100),
        nonce: [u8; 16], at in any::<prop::sample::Index>(), bit in 0..8) {
        let (_, mut blob) = encrypt(&plaintext, &golden_key(), &nonce);
        let at = at.index(blob.len());
        blob[at] ^= 1_u8 << bit;
        let expected = PlaintextSize::Exactly(plaintext.len());
        prop_assert!(decrypt(&blob, &golden_key(), expected).is_err());
        if at >= 12 {
            fix_crc(&mut blob);
            prop_assert_eq!(decrypt(&blob, &golden_key(), PlaintextSize::AtMost(1000)), Err(DecodeError::Tag));
        }
    }

    #[test]
    fn any_bytes_are_not_decrypted(bytes in prop::collection::vec(any::<u8>(), 36..200), zstd: bool) {
        let kind = if zstd { BlobKind::EncryptedZstd } else { BlobKind::Encrypted };
        let mut blob = [&kind.magic()[..], &bytes].concat();
        fix_crc(&mut blob);
        prop_assert_eq!(decrypt(&blob, &golden_key(), PlaintextSize::AtMost(1000)), Err(DecodeError::Tag));
    }

    #[test]
    fn any_bytes_do_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0..5_usize, fix in any::<bool>()) {
        let kinds = [BlobKind::Plain, BlobKind::Zstd, BlobKind::Encrypted, BlobKind::EncryptedZstd];
        let mut blob = kinds.get(kind).map_or(Vec::new(), |kind| kind.magic().to_vec());
        if fix {
            blob.extend(crc32fast::hash(&bytes).to_le_bytes());
        }
        blob.extend(&bytes);
        let _ = decode(&blob, PlaintextSize::AtMost(1000));
        let _ = decode(&blob, PlaintextSize::Exactly(10));
    }

    #[test]
    fn every_flipped_bit_is_detected(plaintext in prop::collection::vec(0..4_u8, 0..100), at in any::<prop::sample::Index>(), bit in 0..8) {
        let mut blob = encode(&plaintext);
        let at = at.index(blob.len());
        blob[at] ^= 1_u8 << bit;
        prop_assert!(decode(&blob, PlaintextSize::Exactly(plaintext.len())).is_err());
    }
}
