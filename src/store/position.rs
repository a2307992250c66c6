//! Positions in something of a known size.

use std::io::{self, SeekFrom};

/// The position after a seek. It may lie beyond the end.
pub(super) fn after_seek(to: SeekFrom, position: u64, size: u64) -> io::Result<u64> {
    let position = match to {
        SeekFrom::Start(offset) => Some(offset),
        SeekFrom::End(offset) => size.checked_add_signed(offset),
        SeekFrom::Current(offset) => position.checked_add_signed(offset),
    };
    position.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
