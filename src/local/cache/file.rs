//! The file of an entry: the stored bytes, and behind them
//!
//! | offset from the end | bytes | field | encoding |
//! |---|---|---|---|
//! | -16 | 8 | magic | `larder-1` |
//! | -8 | 4 | number of stored bytes | little-endian |
//! | -4 | 4 | CRC-32 of the stored bytes | little-endian |
//!
//! The trailer stands at the end so that a file that ends too early is noticed wherever it does (H66, H67).

use std::fs::File;
use std::io::{self, ErrorKind, Read as _};

use bytes::Bytes;

/// The stored bytes in a file that should take `size` bytes of disk; none if it is damaged.
pub(super) fn read(file: &File, size: u64) -> io::Result<Option<Bytes>> {
    let length = file.metadata()?.len();
    // Whatever somebody put there in its place, not more is read than was accounted for.
    if blocks(length) != size {
        return Ok(None);
    }
    let Ok(capacity) = usize::try_from(length) else { return Ok(None) };
    let mut bytes = Vec::with_capacity(capacity);
    file.take(length).read_to_end(&mut bytes)?;
    let Some((stored, end)) = bytes.split_last_chunk::<TRAILER_BYTES>() else { return Ok(None) };
    if trailer(stored).as_ref() != Some(end) {
        return Ok(None);
    }
    let stored = stored.len();
    bytes.truncate(stored);
    Ok(Some(bytes.into()))
}

/// What stands behind so many stored bytes; none if they are too many to say.
pub(super) fn trailer(stored: &[u8]) -> Option<[u8; TRAILER_BYTES]> {
    let length = u32::try_from(stored.len()).ok()?;
    let mut trailer = [0; TRAILER_BYTES];
    trailer[..8].copy_from_slice(MAGIC);
    trailer[8..12].copy_from_slice(&length.to_le_bytes());
    trailer[12..].copy_from_slice(&crc32fast::hash(stored).to_le_bytes());
    Some(trailer)
}

/// The bytes of disk of an entry of so many stored bytes.
pub(super) const fn size_on_disk(stored: u64) -> u64 {
    blocks(stored.saturating_add(TRAILER_BYTES as u64))
}

/// The bytes of disk of a file of so many bytes. An empty one counts too, or it would never be given up.
pub(super) const fn blocks(length: u64) -> u64 {
    let blocks = length.div_ceil(BLOCK);
    if blocks == 0 { BLOCK } else { blocks.saturating_mul(BLOCK) }
}

/// Whether there is nothing of that name that could be an entry.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::IsADirectory | ErrorKind::NotADirectory | ErrorKind::NotFound)
}

const BLOCK: u64 = 4096;
const MAGIC: &[u8; 8] = b"larder-1";
const TRAILER_BYTES: usize = 16;
