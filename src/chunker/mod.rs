//! Division of streams into chunks.
//!
//! [`FixedChunker`] cuts at multiples of one size, [`RollingChunker`] and [`BuzhashChunker`] by content. The positions are not part of
//! the format: any cuts within the limits make a valid archive. They only decide what the next backup deduplicates.
//!
//! | chunker | for |
//! |---|---|
//! | [`BuzhashChunker`] | archives that clients of PBS write too: `pxar`, `mpxar`, `ppxar`, `pcat1`. Equal data gives equal chunks in both |
//! | [`FixedChunker`] | images, whose parts change in place |
//! | [`RollingChunker`] | any other stream: it is faster, and sizes are nearer to the average |

mod buzhash;
mod fixed;
mod rolling;

use std::fmt;

use crate::error::{Error, ErrorKind, Result};

pub use buzhash::BuzhashChunker;
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
}

/// Average chunk size of a catalog in bytes.
const CATALOG_AVERAGE: usize = 512 << 10;

/// The chunker of a stream by the name of its archive, such as `root.pxar` or `root.pxar.didx`: that of the clients of PBS for archives that they write.
pub(crate) fn default_of(archive: &str) -> Box<dyn Chunker> {
    let stem = archive.strip_suffix(".didx").unwrap_or(archive);
    if ["mpxar", "ppxar", "pxar"].iter().any(|end| stem.ends_with(&format!(".{end}"))) {
        return Box::new(BuzhashChunker::default());
    }
    if stem.ends_with(".pcat1") {
        return Box::new(BuzhashChunker::with_average(CATALOG_AVERAGE));
    }
    Box::new(RollingChunker::default())
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

    /// The ends of all chunks, the data handed over in pieces of these lengths again and again.
    pub(super) fn cuts(mut chunker: impl Chunker, data: &[u8], pieces: &[usize]) -> Vec<usize> {
        let (mut cuts, mut at) = (Vec::new(), 0);
        for piece in pieces.iter().cycle() {
            let end = data.len().min(at + piece);
            while at < end {
                match chunker.scan(&data[at..end]) {
                    Some(cut) => {
                        at += cut;
                        cuts.push(at);
                    }
                    None => at = end,
                }
            }
            if at == data.len() {
                break;
            }
        }
        cuts
    }

    #[test]
    fn archives_that_clients_of_pbs_write_get_their_chunker() {
        let kind = |name: &str| {
            let chunker = default_of(name);
            (format!("{chunker:?}").starts_with("Buzhash"), chunker.max_bytes())
        };
        for name in ["root.pxar.didx", "root.pxar", "a.b.mpxar.didx", "root.ppxar"] {
            assert_eq!(kind(name), (true, 16 << 20), "{name}");
        }
        assert_eq!(kind("catalog.pcat1.didx"), (true, 2 << 20));
        for name in ["root.tar.didx", "pxar", "pxar.didx", "root.pxar.tar"] {
            assert_eq!(kind(name), (false, 16 << 20), "{name}");
        }
    }

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
