//! Chunks of equal size.

use crate::chunker::{Chunker, check_size};
use crate::error::Result;

/// Minimum and maximum chunk size in bytes.
const LEAST_BYTES: usize = 4 << 10;
const MOST_BYTES: usize = 16 << 20;

/// Cuts at multiples of the chunk size.
#[derive(Clone, Debug)]
pub struct FixedChunker {
    chunk_bytes: usize,
    /// Bytes of the current chunk so far.
    length: usize,
}

impl FixedChunker {
    /// Cuts chunks of `chunk_bytes` bytes: a power of two from 4 KiB to 16 MiB.
    ///
    /// # Errors
    /// `InvalidInput` for any other size.
    pub fn new(chunk_bytes: usize) -> Result<Self> {
        check_size(chunk_bytes, LEAST_BYTES, MOST_BYTES)?;
        Ok(Self { chunk_bytes, length: 0 })
    }
}

impl Chunker for FixedChunker {
    fn scan(&mut self, data: &[u8]) -> Option<usize> {
        let rest = self.chunk_bytes - self.length;
        if data.len() < rest {
            self.length += data.len();
            return None;
        }
        self.length = 0;
        Some(rest)
    }

    fn max_bytes(&self) -> usize {
        self.chunk_bytes
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use super::*;

    #[test]
    fn a_fixed_chunker_cuts_at_multiples_of_its_size() {
        let mut chunker = FixedChunker::new(4096).unwrap();
        assert_eq!(chunker.scan(&[1; 4095]), None);
        assert_eq!(chunker.scan(&[]), None);
        assert_eq!(chunker.scan(&[1; 10]), Some(1));
        assert_eq!(chunker.scan(&[1; 5000]), Some(4096));
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        let why = |size| FixedChunker::new(size).unwrap_err().source().unwrap().to_string();
        assert_eq!(why(5000), "the size is not a power of two");
        for size in [0, 2048, 32 << 20] {
            assert!(why(size).contains("not within"), "{size}");
        }
    }
}
