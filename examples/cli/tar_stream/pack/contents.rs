//! Contents of files: plain, or with holes in the GNU format for sparse files, version 1.0.
//!
//! A header promises a size before the contents follow. Whatever becomes of the file meanwhile, as many bytes are written; zeros
//! stand for the ones that could not be read, and one finding says from where on.

use std::fmt::Write as _;
use std::fs::{File, Metadata};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use larder::tree::Problem;
use rustix::fs::{SeekFrom, seek};

/// Bytes read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// Extents begin and end at multiples of it, except at the end of the file: GNU tar begins each one with a new block.
const BLOCK_BYTES: u64 = 512;

/// The most extents of one file; holes behind are stored as zeros.
const MAX_EXTENTS: usize = 1 << 20;

/// The plan for the contents of one file.
pub(super) struct Contents<'a> {
    file: &'a File,
    /// The begin of the file, if it was read already.
    begin: Vec<u8>,
    before: Metadata,
    /// A problem from this position on: nothing further is read.
    failed: Option<(Problem, Option<io::Error>)>,
    extents: Option<Vec<Range<u64>>>,
    size: u64,
}

impl<'a> Contents<'a> {
    /// Looks for holes, or reads the begin of the file.
    ///
    /// Fails if not even the begin can be read; then the file can still be left out.
    pub(super) fn plan(file: &'a File, before: Metadata) -> io::Result<Self> {
        let size = before.len();
        let extents = if before.blocks().saturating_mul(512) < size { extents(file, size) } else { None };
        let mut contents = Self { file, begin: Vec::new(), before, failed: None, extents, size };
        if contents.extents.is_none() {
            let mut begin = vec![0; usize::try_from(size).unwrap_or(usize::MAX).min(BUFFER_BYTES)];
            let mut filled = 0;
            while filled < begin.len() {
                match file.read_at(&mut begin[filled..], filled as u64) {
                    Ok(0) => {
                        // Some files, such as those in sysfs, are shorter than they say.
                        contents.size = filled as u64;
                        break;
                    }
                    Ok(read) => filled += read,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) if filled == 0 => return Err(error),
                    Err(error) => {
                        contents.failed = Some((Problem::UnreadableFrom(filled as u64), Some(error)));
                        break;
                    }
                }
            }
            begin.truncate(filled);
            contents.begin = begin;
        }
        Ok(contents)
    }

    /// The size of the file, if it has holes.
    pub(super) fn sparse_size(&self) -> Option<u64> {
        self.extents.as_ref().map(|_| self.size)
    }

    /// Number of bytes written, without the padding at the end.
    pub(super) fn stored_size(&self) -> u64 {
        match &self.extents {
            None => self.size,
            Some(extents) => {
                let data: u64 = extents.iter().map(|extent| extent.end - extent.start).sum();
                map(extents, self.size).len() as u64 + data
            }
        }
    }

    /// Writes the contents and the padding, and gives the problem of the file, if there was one.
    pub(super) fn write(mut self, to: &mut impl Write) -> io::Result<Option<(Problem, Option<io::Error>)>> {
        let stored = self.stored_size();
        match self.extents.take() {
            None => {
                let begin = std::mem::take(&mut self.begin);
                to.write_all(&begin)?;
                self.copy(begin.len() as u64..self.size, to)?;
            }
            Some(extents) => {
                to.write_all(&map(&extents, self.size))?;
                for extent in extents {
                    self.copy(extent, to)?;
                }
            }
        }
        let padding = usize::try_from(stored.next_multiple_of(512) - stored).unwrap_or(0);
        to.write_all(&[0; 512][..padding])?;
        let change = match self.file.metadata() {
            Ok(after) => change(&self.before, &after),
            Err(_) => Some(Problem::Changed),
        };
        Ok(self.failed.take().or(change.map(|problem| (problem, None))))
    }

    fn copy(&mut self, range: Range<u64>, to: &mut impl Write) -> io::Result<()> {
        let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX).min(BUFFER_BYTES);
        let mut buffer = vec![0; length];
        let mut at = range.start;
        while at < range.end {
            let wanted = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(length);
            let part = self.read(&mut buffer[..wanted], at);
            to.write_all(&buffer[..part])?;
            at += part as u64;
        }
        Ok(())
    }

    /// Reads some bytes, or fills the buffer with zeros if there are none to be had.
    fn read(&mut self, buffer: &mut [u8], at: u64) -> usize {
        while self.failed.is_none() {
            match self.file.read_at(buffer, at) {
                Ok(0) => self.failed = Some((Problem::Shrunk(at), None)),
                Ok(read) => return read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => self.failed = Some((Problem::UnreadableFrom(at), Some(error))),
            }
        }
        buffer.fill(0);
        buffer.len()
    }
}

/// How a file is another one than before it was read.
pub(crate) fn change(before: &Metadata, after: &Metadata) -> Option<Problem> {
    let times = |metadata: &Metadata| {
        [metadata.mtime(), metadata.mtime_nsec(), metadata.ctime(), metadata.ctime_nsec()]
    };
    if after.len() > before.len() {
        Some(Problem::Grown)
    } else if after.len() != before.len() || times(after) != times(before) {
        Some(Problem::Changed)
    } else {
        None
    }
}

/// The parts of a file that are no holes; `None` if it has no hole, or the filesystem cannot tell.
fn extents(file: &File, size: u64) -> Option<Vec<Range<u64>>> {
    let mut extents: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            // There is nothing but a hole up to the end.
            Ok(_) | Err(rustix::io::Errno::NXIO) => break,
            Err(_) => return None,
        };
        let mut end = seek(file, SeekFrom::Hole(start)).ok()?.min(size);
        if end <= start || start < at {
            return None;
        }
        if extents.len() == MAX_EXTENTS {
            end = size;
        }
        let start = start / BLOCK_BYTES * BLOCK_BYTES;
        let end = end.next_multiple_of(BLOCK_BYTES).min(size);
        match extents.last_mut() {
            Some(last) if last.end >= start => last.end = end,
            _ => extents.push(start..end),
        }
        at = end;
    }
    let is_whole = matches!(extents.as_slice(), [one] if *one == (0..size));
    (!is_whole).then_some(extents)
}

/// The map in front of the data: the number of extents and each one's place and length, as decimal lines.
fn map(extents: &[Range<u64>], size: u64) -> Vec<u8> {
    // GNU tar marks the end of a file that ends in a hole.
    let end = (extents.last().is_none_or(|last| last.end < size)).then_some(size..size);
    let mut text = format!("{}\n", extents.len() + usize::from(end.is_some()));
    for extent in extents.iter().chain(&end) {
        let _ = write!(text, "{}\n{}\n", extent.start, extent.end - extent.start);
    }
    let mut bytes = text.into_bytes();
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}
