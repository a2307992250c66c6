//! Chunks that are cut by content.
//!
//! # The hash
//! For each byte `b`: `hash = (hash << 1) + GEAR[b]`, where `GEAR` holds a random number of 64 bits for each value of a byte.
//! A byte is shifted out after 64 steps, so the hash covers exactly the last 64 bytes. A chunk ends
//! after a byte where the highest n bits of the hash are zero, which happens every 2ⁿ bytes on average.
//!
//! # Sizes
//! With an average of A (default: 4 MiB) a chunk has at least A/4 and at most 4·A bytes. Nothing is hashed below the minimum,
//! except for the 64 bytes that the first hash needs. Up to 13/16·A a cut takes n = log₂ A + 2 bits, beyond that log₂ A − 2: the
//! first makes small chunks rare, the second large ones, so that sizes gather
//! around the average (the idea of normalised chunking: W. Xia et al., `FastCDC`, USENIX ATC 2016, §3.3).
//!
//! # Speed
//! Each hash depends on the previous one, which leaves most of a processor idle. Since a hash covers only 64 bytes, four
//! parts of the data are hashed in parallel, each warmed up with the 64 bytes before it. A block in which one of the
//! four finds a cut, once a chunk, is scanned again in order to find the first cut.

use crate::chunker::{Chunker, check_size};
use crate::error::Result;

/// Bytes of the window that a hash covers.
const WINDOW_BYTES: usize = 64;

/// Bytes of each of the four parts of a block.
const LANE_BYTES: usize = 2048;

/// Number of mask bits added before, and removed after, the normal size, so that sizes gather there.
const NORMALISATION_BITS: u32 = 2;

/// Minimum and maximum average size in bytes.
const LEAST_AVERAGE: usize = 64 << 10;
const MOST_AVERAGE: usize = 4 << 20;

/// Random numbers: the outputs of splitmix64 from a fixed start. Changing them would change every cut, and old backups would
/// deduplicate nothing.
static GEAR: [u64; 256] = gear();

const fn gear() -> [u64; 256] {
    let mut table = [0; 256];
    let mut state: u64 = 0x6c61_7264_6572_2131;
    let mut at = 0;
    while at < 256 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[at] = mixed ^ (mixed >> 31);
        at += 1;
    }
    table
}

/// Cuts by content. A few chunks after a change, cuts are the same again.
#[derive(Clone, Debug)]
pub struct RollingChunker {
    average: usize,
    /// Hash of the last bytes, once the chunk is long enough.
    hash: u64,
    /// Bytes of the current chunk so far.
    length: usize,
}

impl RollingChunker {
    /// Cuts chunks of `average_bytes` bytes on average: a power of two from 64 KiB to 4 MiB. The smallest chunks have a quarter of it, the
    /// largest four times as much. The default is an average of 4 MiB.
    ///
    /// # Errors
    /// `InvalidInput` for any other average.
    pub fn new(average_bytes: usize) -> Result<Self> {
        check_size(average_bytes, LEAST_AVERAGE, MOST_AVERAGE)?;
        Ok(Self { average: average_bytes, hash: 0, length: 0 })
    }

    const fn min(&self) -> usize {
        self.average / 4
    }

    const fn max(&self) -> usize {
        self.average * 4
    }

    /// Length up to which the longer mask applies.
    const fn centre(&self) -> usize {
        self.average / 16 * 13
    }

    /// Mask of the bits that are zero at a cut.
    const fn mask(&self, hard: bool) -> u64 {
        let bits = self.average.trailing_zeros();
        let bits = if hard { bits + NORMALISATION_BITS } else { bits - NORMALISATION_BITS };
        !(u64::MAX >> bits)
    }

    fn restart(&mut self) {
        self.hash = 0;
        self.length = 0;
    }
}

impl Default for RollingChunker {
    fn default() -> Self {
        Self { average: MOST_AVERAGE, hash: 0, length: 0 }
    }
}

impl Chunker for RollingChunker {
    fn scan(&mut self, data: &[u8]) -> Option<usize> {
        let skipped = (self.min() - WINDOW_BYTES).saturating_sub(self.length).min(data.len());
        // The last byte of the minimum may end the chunk; those before only fill the window.
        let warmed = (self.min() - 1).saturating_sub(self.length).min(data.len());
        self.hash = roll(self.hash, data.get(skipped..warmed).unwrap_or_default());
        self.length += warmed;
        let mut at = warmed;
        for (end, hard) in [(self.centre(), true), (self.max(), false)] {
            let length = end.saturating_sub(self.length).min(data.len() - at);
            let part = &data[at..at + length];
            let mask = self.mask(hard);
            if let Some(found) = find(part, &mut self.hash, mask) {
                self.restart();
                return Some(at + found + 1);
            }
            at += length;
            self.length += length;
        }
        if self.length < self.max() {
            return None;
        }
        self.restart();
        Some(at)
    }

    fn max_bytes(&self) -> usize {
        self.max()
    }
}

fn step(hash: u64, byte: u8) -> u64 {
    (hash << 1).wrapping_add(GEAR[usize::from(byte)])
}

fn roll(hash: u64, data: &[u8]) -> u64 {
    data.iter().fold(hash, |hash, byte| step(hash, *byte))
}

/// Position after the first byte at which the masked bits of the hash are zero. Without one, `hash` becomes that after the last byte.
fn find(data: &[u8], hash: &mut u64, mask: u64) -> Option<usize> {
    let blocks = data.chunks_exact(4 * LANE_BYTES);
    let rest = blocks.remainder();
    for (number, block) in blocks.enumerate() {
        match last_of_block(block, *hash, mask) {
            Some(last) => *hash = last,
            None => return find_in_order(block, hash, mask).map(|at| number * 4 * LANE_BYTES + at),
        }
    }
    find_in_order(rest, hash, mask).map(|at| data.len() - rest.len() + at)
}

fn find_in_order(data: &[u8], hash: &mut u64, mask: u64) -> Option<usize> {
    data.iter().position(|byte| {
        *hash = step(*hash, *byte);
        *hash & mask == 0
    })
}

/// The hash after a block without a cut; `None` if the block contains one.
fn last_of_block(block: &[u8], hash: u64, mask: u64) -> Option<u64> {
    let (first, rest) = block.split_at(LANE_BYTES);
    let (second, rest) = rest.split_at(LANE_BYTES);
    let (third, fourth) = rest.split_at(LANE_BYTES);
    let warm = |lane: &[u8]| roll(0, &lane[LANE_BYTES - WINDOW_BYTES..]);
    let (mut a, mut b, mut c, mut d) = (hash, warm(first), warm(second), warm(third));
    for (((first, second), third), fourth) in first.iter().zip(second).zip(third).zip(fourth) {
        a = step(a, *first);
        b = step(b, *second);
        c = step(c, *third);
        d = step(d, *fourth);
        if (a & mask == 0) || (b & mask == 0) || (c & mask == 0) || (d & mask == 0) {
            return None;
        }
    }
    Some(d)
}

#[cfg(test)]
mod tests;
