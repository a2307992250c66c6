//! Chunks that are cut where the clients of PBS cut them.
//!
//! # The hash
//! A cyclic polynomial of 32 bits over a window of 64 bytes: `hash = rotate_left(hash, 1) ^ NUMBERS[entering] ^ NUMBERS[leaving]`. A number
//! that leaves was rotated 64 times, which is none at all. The hash depends on the last 64 bytes only.
//!
//! # Sizes
//! With an average of A (default: 4 MiB) a chunk has at least A/4 and at most 4·A bytes. It ends after the first byte at which it has the
//! minimum, and the lowest bits of the hash, those of the mask 2·A − 1, are one of the three highest values. Every chunk starts with an empty
//! window. Source: PBS datastore format, chunk sizes of the stock clients; checked against the cuts of the real chunker.
//!
//! # Suggested boundaries
//! A writer may announce positions that are good ends of chunks, such as the starts of files. The first one that
//! is at least the minimum and at most the maximum away from the start of the chunk ends it, unless the hash does before.
//!
//! # Speed
//! Without the bytes that leave, the hash is a sum over everything so far: `sum = rotate_left(sum, 1) ^ NUMBERS[entering]`. The hash of a window
//! is the sum after it, xor the sum before it. So one look-up a byte computes the sums, and the comparison of
//! 64 sums with the 64 sums before them needs few wide instructions. Each sum depends on the previous one, which leaves most of a processor idle: four parts of
//! the data are summed in parallel, each warmed up with the 64 bytes before it. A block that contains a cut, one a chunk, is scanned again in
//! order to find the first. Nothing is hashed below the minimum, except for the first window.

mod table;

use std::collections::VecDeque;

use crate::chunker::buzhash::table::NUMBERS;
use crate::chunker::{Chunker, check_size};
use crate::error::Result;

/// Bytes of the window that a hash covers.
const WINDOW_BYTES: usize = 64;

/// Windows in each of the four parts of a block.
const LANE_WINDOWS: usize = 32;

/// Number of parts of a block.
const LANES: usize = 4;

const LANE_BYTES: usize = LANE_WINDOWS * WINDOW_BYTES;

/// Minimum and maximum average size in bytes.
const LEAST_AVERAGE: usize = 64 << 10;
const MOST_AVERAGE: usize = 4 << 20;

/// Cuts by content, exactly where the clients of PBS cut file archives: what larder and they write of the same tree shares chunks.
///
/// For any other data [`RollingChunker`](crate::chunker::RollingChunker) is faster, and its sizes vary less.
#[derive(Clone, Debug)]
pub struct BuzhashChunker {
    average: usize,
    /// Bytes of the current chunk so far.
    length: usize,
    /// Number of bytes scanned, in all chunks.
    position: u64,
    /// Announced positions that lie ahead, in order.
    suggested: VecDeque<u64>,
    window: Window,
}

impl BuzhashChunker {
    /// Cuts chunks of `average_bytes` bytes on average: a power of two from 64 KiB to 4 MiB. The smallest chunks have a quarter of it, the
    /// largest four times as much. The default is an average of 4 MiB.
    ///
    /// # Errors
    /// `InvalidInput` for any other average.
    pub fn new(average_bytes: usize) -> Result<Self> {
        check_size(average_bytes, LEAST_AVERAGE, MOST_AVERAGE)?;
        Ok(Self::with_average(average_bytes))
    }

    pub(super) fn with_average(average: usize) -> Self {
        Self { average, length: 0, position: 0, suggested: VecDeque::new(), window: Window::default() }
    }

    /// Announces a good end for a chunk: `ahead` bytes after the last scanned one. Announcements are in the order of their positions, and
    /// one that comes too late or too early in its chunk is forgotten.
    pub(crate) fn suggest(&mut self, ahead: u64) {
        let position = self.position + ahead;
        if ahead > 0 && self.suggested.back().is_none_or(|last| *last < position) {
            self.suggested.push_back(position);
        }
    }

    /// Ends the current chunk after the last scanned byte.
    pub(crate) fn restart(&mut self) {
        self.length = 0;
        self.window = Window::default();
    }

    const fn min(&self) -> usize {
        self.average / 4
    }

    const fn max(&self) -> usize {
        self.average * 4
    }

    const fn mask(&self) -> u32 {
        // 2 · average − 1, which is at most 8 MiB − 1.
        u32::MAX >> (31 - self.average.trailing_zeros())
    }

    /// The length at which the current chunk ends, whatever its hash.
    fn limit(&mut self) -> usize {
        let start = self.position - self.length as u64;
        let least = (start + self.min() as u64).max(self.position + 1);
        while self.suggested.front().is_some_and(|next| *next < least) {
            self.suggested.pop_front();
        }
        let next = self.suggested.front().map(|next| next - start);
        next.and_then(|next| usize::try_from(next).ok()).unwrap_or(usize::MAX).min(self.max())
    }
}

impl Default for BuzhashChunker {
    fn default() -> Self {
        Self::with_average(MOST_AVERAGE)
    }
}

impl Chunker for BuzhashChunker {
    fn scan(&mut self, data: &[u8]) -> Option<usize> {
        let limit = self.limit();
        let up_to = |length: usize| length.saturating_sub(self.length).min(data.len());
        // The last byte of the minimum may end the chunk; those before only fill the window.
        let (skipped, warmed, end) = (up_to(self.min() - WINDOW_BYTES), up_to(self.min() - 1), up_to(limit));
        self.window.sum_in_order(&data[skipped..warmed]);
        let mask = self.mask();
        let found = self.window.find(&data[warmed..end], mask).map(|found| warmed + found + 1);
        let cut = found.or_else(|| (self.length + end == limit).then_some(end));
        self.length += cut.unwrap_or(data.len());
        self.position += cut.unwrap_or(data.len()) as u64;
        if cut.is_some() {
            self.restart();
        }
        cut
    }

    fn max_bytes(&self) -> usize {
        self.max()
    }
}

/// The last 64 sums.
#[derive(Clone, Debug)]
struct Window {
    /// Position of the oldest sum.
    at: usize,
    sum: u32,
    sums: [u32; WINDOW_BYTES],
}

impl Default for Window {
    fn default() -> Self {
        Self { at: 0, sum: 0, sums: [0; WINDOW_BYTES] }
    }
}

impl Window {
    /// Takes in a byte, and returns the hash of the window that ends with it.
    fn step(&mut self, byte: u8) -> u32 {
        self.sum = step(self.sum, byte);
        let before = std::mem::replace(&mut self.sums[self.at], self.sum);
        self.at = (self.at + 1) % WINDOW_BYTES;
        self.sum ^ before
    }

    fn sum_in_order(&mut self, data: &[u8]) {
        for byte in data {
            self.step(*byte);
        }
    }

    /// Position of the first byte after which there is a cut. Without one, the window becomes that after the last byte.
    fn find(&mut self, data: &[u8], mask: u32) -> Option<usize> {
        let blocks = data.chunks_exact(LANES * LANE_BYTES);
        let rest = blocks.remainder();
        for (number, block) in blocks.enumerate() {
            match self.after_block(block, mask) {
                Some(after) => *self = after,
                None => {
                    return self.find_in_order(block, mask).map(|at| number * LANES * LANE_BYTES + at);
                }
            }
        }
        self.find_in_order(rest, mask).map(|at| data.len() - rest.len() + at)
    }

    fn find_in_order(&mut self, data: &[u8], mask: u32) -> Option<usize> {
        data.iter().position(|byte| is_cut(self.step(*byte), mask))
    }

    /// The window after a block without a cut; `None` if the block contains one.
    fn after_block(&self, block: &[u8], mask: u32) -> Option<Self> {
        let (first, rest) = block.split_at(LANE_BYTES);
        let (second, rest) = rest.split_at(LANE_BYTES);
        let (third, fourth) = rest.split_at(LANE_BYTES);
        let mut own = self.sums;
        own.rotate_left(self.at);
        let (mut first_sums, mut second_sums) = ([[0; WINDOW_BYTES]; LANES], [[0; WINDOW_BYTES]; LANES]);
        // Their roles change with each window, so that no sums are copied.
        let (mut before, mut after) = (&mut first_sums, &mut second_sums);
        before[0] = own;
        let mut sums = [self.sum, 0, 0, 0];
        for (lane, previous) in [first, second, third].into_iter().enumerate() {
            for (at, byte) in previous[LANE_BYTES - WINDOW_BYTES..].iter().enumerate() {
                sums[lane + 1] = step(sums[lane + 1], *byte);
                before[lane + 1][at] = sums[lane + 1];
            }
        }
        let lanes = [first, second, third, fourth].map(|lane| lane.as_chunks::<WINDOW_BYTES>().0);
        for (((a, b), c), d) in lanes[0].iter().zip(lanes[1]).zip(lanes[2]).zip(lanes[3]) {
            sum_windows([a, b, c, d], &mut sums, after);
            if before.iter().zip(&*after).any(|(before, after)| has_cut(before, after, mask)) {
                return None;
            }
            std::mem::swap(&mut before, &mut after);
        }
        Some(Self { at: 0, sum: sums[LANES - 1], sums: before[LANES - 1] })
    }
}

fn step(sum: u32, byte: u8) -> u32 {
    sum.rotate_left(1) ^ NUMBERS[usize::from(byte)]
}

fn is_cut(hash: u32, mask: u32) -> bool {
    hash & mask >= mask - 2
}

/// Computes the sums of four windows side by side.
fn sum_windows(
    windows: [&[u8; WINDOW_BYTES]; LANES],
    sums: &mut [u32; LANES],
    after: &mut [[u32; WINDOW_BYTES]; LANES],
) {
    let [mut a, mut b, mut c, mut d] = *sums;
    for at in 0..WINDOW_BYTES {
        a = step(a, windows[0][at]);
        b = step(b, windows[1][at]);
        c = step(c, windows[2][at]);
        d = step(d, windows[3][at]);
        after[0][at] = a;
        after[1][at] = b;
        after[2][at] = c;
        after[3][at] = d;
    }
    *sums = [a, b, c, d];
}

/// Returns `true` if one of 64 windows ends with a cut. Without an exit inside, the compiler turns it into a few wide instructions.
fn has_cut(before: &[u32; WINDOW_BYTES], after: &[u32; WINDOW_BYTES], mask: u32) -> bool {
    // Signed, because wide instructions without a sign are missing on old processors. The mask has at most 23 bits.
    let least = (mask - 2).cast_signed();
    before
        .iter()
        .zip(after)
        .fold(false, |found, (before, after)| found | (((before ^ after) & mask).cast_signed() >= least))
}

#[cfg(test)]
mod tests;
