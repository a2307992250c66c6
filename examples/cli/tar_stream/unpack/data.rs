//! The contents of files.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use super::entries::Entry;
use super::source::{ReadError, Source, Stream};

/// The most bytes of a file that is handed to another thread to be written.
pub(crate) const SMALL_FILE_BYTES: u64 = 256 << 10;

/// Bytes read and written at once.
const PIECE_BYTES: usize = 1 << 20;

/// Zeros of this many bytes, at a multiple of it, are not written.
const HOLE_BYTES: usize = 4096;

/// Why a file did not get its contents.
#[derive(Debug)]
pub(crate) enum DataError {
    /// The archive contradicts itself.
    Nonsense(&'static str),
    Read(ReadError),
    Write(io::Error),
}

impl From<io::Error> for DataError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

/// Reads all of a file that is not sparse.
pub(crate) fn read_small<S: Source>(stream: &mut Stream<S>, entry: &Entry) -> Result<Vec<u8>, DataError> {
    stream.seek(entry.data_at).map_err(|error| DataError::Read(ReadError::Failed(error)))?;
    let mut data = vec![0; usize::try_from(entry.data_bytes).unwrap_or(0)];
    let filled = stream.fill(&mut data).map_err(DataError::Read)?;
    if filled == data.len() { Ok(data) } else { Err(cut()) }
}

/// Writes the contents of an entry to a new file. Its holes, and other long runs of zeros, become holes.
pub(crate) fn write_data<S: Source>(
    stream: &mut Stream<S>,
    entry: &Entry,
    file: &File,
) -> Result<(), DataError> {
    let whole = [(0, entry.data_bytes)];
    let (parts, size) = match &entry.sparse {
        None => (whole.as_slice(), entry.data_bytes),
        Some(sparse) => (sparse.parts.as_slice(), sparse.size),
    };
    check(parts, size, entry.data_bytes)?;
    stream.seek(entry.data_at).map_err(|error| DataError::Read(ReadError::Failed(error)))?;
    let mut buffer = vec![0; PIECE_BYTES];
    for (offset, length) in parts {
        let mut done = 0;
        while done < *length {
            let wanted = usize::try_from(length - done).unwrap_or(usize::MAX).min(buffer.len());
            let filled = stream.fill(&mut buffer[..wanted]).map_err(DataError::Read)?;
            if filled < wanted {
                return Err(cut());
            }
            write_with_holes(file, offset + done, &buffer[..wanted])?;
            done += wanted as u64;
        }
    }
    Ok(file.set_len(size)?)
}

/// Writes to a part of a file that reads as zeros, and leaves out what is zeros.
pub(crate) fn write_with_holes(file: &File, offset: u64, data: &[u8]) -> io::Result<()> {
    let first =
        usize::try_from(offset.next_multiple_of(HOLE_BYTES as u64) - offset).unwrap_or(0).min(data.len());
    let mut begin = 0;
    let mut at = first;
    while let Some(block) = data.get(at..at + HOLE_BYTES) {
        if is_zero(block) {
            file.write_all_at(&data[begin..at], offset + begin as u64)?;
            begin = at + HOLE_BYTES;
        }
        at += HOLE_BYTES;
    }
    file.write_all_at(&data[begin..], offset + begin as u64)
}

fn is_zero(block: &[u8]) -> bool {
    block[0] == 0 && block[1..] == block[..block.len() - 1]
}

/// Refuses parts that are not in order, lie outside of the file, or are not all of the data.
fn check(parts: &[(u64, u64)], size: u64, data_bytes: u64) -> Result<(), DataError> {
    let nonsense = || DataError::Nonsense("the parts of the sparse file make no sense");
    let (mut end, mut sum) = (0, 0_u64);
    for (offset, length) in parts {
        if *offset < end {
            return Err(nonsense());
        }
        end = offset.checked_add(*length).ok_or_else(nonsense)?;
        sum += length;
    }
    if end <= size && sum == data_bytes { Ok(()) } else { Err(nonsense()) }
}

fn cut() -> DataError {
    DataError::Nonsense("the archive ends within it")
}
