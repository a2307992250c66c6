//! Puts the checksums of an input right: else no other byte of it would be looked at.

use larder::internal::packs;
use sha2::{Digest as _, Sha256};

/// The same index, with the checksum of its entries.
pub(super) fn with_checksum(input: &[u8]) -> Vec<u8> {
    let mut index = input.to_vec();
    if index.len() >= 4096 {
        let checksum = Sha256::digest(&index[4096..]);
        index[32..64].copy_from_slice(&checksum);
    }
    index
}

/// The same encrypted blob, with the checksum of its payload.
pub(super) fn with_crc(input: &[u8]) -> Vec<u8> {
    [&input[..8], &crc32fast::hash(&input[44..]).to_le_bytes(), &input[12..]].concat()
}

/// The same pack, with the checksums of its header, of its first entry and of its trailer.
pub(super) fn with_pack_checksums(input: &[u8]) -> Vec<u8> {
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

/// The same segment, with the checksums of its header, its slots, its head and the whole.
pub(super) fn with_segment_checksums(input: &[u8]) -> Vec<u8> {
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

/// The same bytes, with the CRC-32 of all before their last four.
pub(super) fn with_last_crc(input: &[u8]) -> Vec<u8> {
    let body = &input[..input.len().saturating_sub(4)];
    [body, &crc32fast::hash(body).to_le_bytes()].concat()
}

/// The same bytes, with the SHA-256 of all before their last 32.
pub(super) fn with_last_sha256(input: &[u8]) -> Vec<u8> {
    let body = &input[..input.len().saturating_sub(32)];
    [body, &Sha256::digest(body)].concat()
}
