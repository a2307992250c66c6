//! Where streams are cut into chunks.
//!
//! [`FixedChunker`] cuts at multiples of one size, [`RollingChunker`] where the contents say so. Where exactly is not part of
//! the format: any cuts within the limits make a valid archive. It decides only what is found again in the next backup.

mod fixed;
mod rolling;

use std::fmt;

use thiserror::Error;

pub use fixed::FixedChunker;
pub use rolling::{RollingChunker, RollingOptions};

/// Finds the ends of chunks in a stream that comes in pieces.
///
/// # Contract
/// Where a chunk ends depends on the bytes of the stream since it began, and never on how they were divided into calls.
pub trait Chunker: fmt::Debug + Send {
    /// Looks at the next bytes of the current chunk, which follow those of the calls before.
    ///
    /// `Some(n)`, with n from 1 to `data.len()`: the chunk ends after the first n of them. The next call begins with the
    /// byte behind its end and is about the next chunk. `None`: all of them belong to the current chunk. The end of the
    /// stream ends the last chunk, wherever that is.
    fn scan(&mut self, data: &[u8]) -> Option<usize>;

    /// The most bytes that a chunk may have; at most 16 MiB where it is stored by PBS.
    fn max_bytes(&self) -> usize;

    /// The size in bytes that most chunks are below twice of: buffers are made for it.
    fn typical_bytes(&self) -> usize;
}

/// Why a chunker cannot be made.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum ChunkerError {
    /// The size is no power of two.
    #[error("the size is not a power of two")]
    NotPowerOfTwo,
    /// The size is too small or too large.
    #[error("the size is not within {least} and {most} bytes")]
    OutOfRange {
        /// The smallest that is allowed, in bytes.
        least: usize,
        /// The largest that is allowed, in bytes.
        most: usize,
    },
}

/// Returns `true` if all bytes are zero. It stops at the first few that are not.
pub fn is_zero(data: &[u8]) -> bool {
    let blocks = data.chunks_exact(128);
    let rest = blocks.remainder();
    // Without an exit inside of a block the compiler makes it a few wide instructions.
    blocks.into_iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

fn check_size(size: usize, least: usize, most: usize) -> Result<(), ChunkerError> {
    if !(least..=most).contains(&size) {
        return Err(ChunkerError::OutOfRange { least, most });
    }
    if size.is_power_of_two() { Ok(()) } else { Err(ChunkerError::NotPowerOfTwo) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_byte_that_is_not_zero_is_found_anywhere() {
        for length in [0, 1, 127, 128, 129, 1000] {
            let mut data = vec![0; length];
            assert!(is_zero(&data));
            for at in 0..length {
                data[at] = 1;
                assert!(!is_zero(&data), "{at} of {length}");
                data[at] = 0;
            }
        }
    }
}
