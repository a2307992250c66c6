//! Division of streams into chunks.
//!
//! [`FixedChunker`] cuts at multiples of one size, [`RollingChunker`] by content. The positions are not part of
//! the format: any cuts within the limits make a valid archive. They only decide what the next backup deduplicates.

mod fixed;
mod rolling;

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

pub use fixed::FixedChunker;
pub use rolling::RollingChunker;

/// Finds the ends of chunks in a stream that arrives in pieces.
///
/// # Contract
/// The end of a chunk depends on the bytes since the start of the stream, and never on their division into calls.
pub trait Chunker: fmt::Debug + Send {
    /// Scans the next bytes of the current chunk, which follow those of the previous calls.
    ///
    /// `Some(n)`, with n from 1 to `data.len()`: the chunk ends after the first n of them. The next call starts with the
    /// byte after it, in the next chunk. `None`: all of them belong to the current chunk. The end of the
    /// stream always ends the last chunk.
    fn scan(&mut self, data: &[u8]) -> Option<usize>;

    /// Maximum bytes of a chunk; at most 16 MiB in a store of PBS.
    fn max_bytes(&self) -> usize;

    /// Typical chunk size in bytes; most chunks are smaller than twice this. Used to size buffers.
    fn typical_bytes(&self) -> usize;
}

/// Returns `true` if all bytes are zero. Stops soon after the first that is not.
pub(crate) fn is_zero(data: &[u8]) -> bool {
    let blocks = data.chunks_exact(128);
    let rest = blocks.remainder();
    // Without an exit inside a block, the compiler turns it into a few wide instructions.
    blocks.into_iter().all(|block| block.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

/// # Errors
/// `InvalidInput` unless the size is a power of two within the limits.
fn check_size(size: usize, min: usize, max: usize) -> Result<()> {
    let why = if !(min..=max).contains(&size) {
        format!("the size is not within {min} and {max} bytes")
    } else if !size.is_power_of_two() {
        "the size is not a power of two".to_owned()
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::InvalidInput, "cut chunks of").on(format!("{size} bytes")).because(why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_non_zero_byte_is_found_at_any_position() {
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
