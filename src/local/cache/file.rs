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
pub(crate) fn read(file: &File, size: u64) -> io::Result<Option<Bytes>> {
    let length = file.metadata()?.len();
    // Reads no more than was accounted for, even if the file was replaced.
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

/// Disk bytes of an entry with this number of stored bytes.
pub(super) const fn size_on_disk(stored: u64) -> u64 {
    blocks(stored.saturating_add(TRAILER_BYTES as u64))
}

/// Disk bytes of a file of this length. An empty file counts too, so that it can be evicted.
pub(crate) const fn blocks(length: u64) -> u64 {
    let blocks = length.div_ceil(BLOCK);
    if blocks == 0 { BLOCK } else { blocks.saturating_mul(BLOCK) }
}

/// Returns `true` if the name cannot be that of an entry.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::IsADirectory | ErrorKind::NotADirectory | ErrorKind::NotFound)
}

const BLOCK: u64 = 4096;
const MAGIC: &[u8; 8] = b"larder-1";
const TRAILER_BYTES: usize = 16;
