//! The contents of chunks.

use std::sync::LazyLock;

/// The number of bytes of a chunk.
pub(crate) const BLOCK: usize = 4096;
/// The number of different blocks, the last few of them shorter. The first is of zeros.
pub(crate) const BLOCKS: u8 = 14;
/// The number of short blocks.
pub(crate) const SHORT: u8 = 2;

/// Bytes that do not compress, always the same for a seed.
pub(crate) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x2545_f491_4f6c_dd1d) ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = vec![0; length.next_multiple_of(8)];
    for word in bytes.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A block by its number.
pub(crate) fn block(number: u8) -> &'static [u8] {
    static ALL: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| (0..BLOCKS).map(made).collect());
    &ALL[usize::from(number)]
}

fn made(number: u8) -> Vec<u8> {
    match number {
        0 => vec![0; BLOCK],
        short if short >= BLOCKS - SHORT => noise(u64::from(short) + 1000, 100),
        long => noise(u64::from(long) + 1000, BLOCK),
    }
}

/// The blocks with these numbers.
pub(crate) fn bytes_of(blocks: &[u8]) -> Vec<u8> {
    blocks.iter().map(|number| block(*number)).collect::<Vec<_>>().concat()
}
