//! Bytes of an archive that can be moved about in, and parts of which may be damaged.

use std::io;
use std::ops::Range;

/// Bytes read at once.
const BUFFER_BYTES: usize = 256 << 10;

/// A tar block, and what its fields are aligned to.
pub(crate) const BLOCK_BYTES: usize = 512;

/// Where a tar stream comes from.
pub(crate) trait Source {
    /// Reads some bytes at the position and moves behind them; 0 at the end.
    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, ReadError>;

    /// Moves to a position.
    fn seek(&mut self, position: u64) -> io::Result<()>;
}

/// A read that failed.
#[derive(Debug)]
pub(crate) enum ReadError {
    /// These bytes of the archive are lost; what lies behind them can be read.
    Damaged(Range<u64>, io::Error),
    /// Nothing more can be read.
    Failed(io::Error),
}

/// Lost range of the archive, and the cause.
pub(crate) fn lost(range: &Range<u64>, error: &io::Error) -> String {
    if range.is_empty() {
        return error.to_string();
    }
    format!("bytes {} to {} of the archive: {error}", range.start, range.end)
}

/// A source with a buffer.
pub(crate) struct Stream<S> {
    buffer: Vec<u8>,
    /// Bytes of the buffer after the position.
    ahead: Range<usize>,
    position: u64,
    source: S,
}

impl<S: Source> Stream<S> {
    pub(crate) fn new(source: S) -> Self {
        Self { buffer: vec![0; BUFFER_BYTES], ahead: 0..0, position: 0, source }
    }

    pub(crate) fn position(&self) -> u64 {
        self.position
    }

    pub(crate) fn seek(&mut self, to: u64) -> io::Result<()> {
        let skipped = to.checked_sub(self.position).and_then(|skipped| usize::try_from(skipped).ok());
        match skipped {
            Some(skipped) if skipped <= self.ahead.len() => self.ahead.start += skipped,
            _ => {
                self.ahead = 0..0;
                self.source.seek(to)?;
            }
        }
        self.position = to;
        Ok(())
    }

    /// Reads some bytes; 0 at the end.
    pub(crate) fn read(&mut self, into: &mut [u8]) -> Result<usize, ReadError> {
        if self.ahead.is_empty() {
            if into.len() >= BUFFER_BYTES {
                let read = self.source.read(into)?;
                self.position += read as u64;
                return Ok(read);
            }
            let read = self.source.read(&mut self.buffer)?;
            self.ahead = 0..read;
        }
        let length = into.len().min(self.ahead.len());
        into[..length].copy_from_slice(&self.buffer[self.ahead.start..][..length]);
        self.ahead.start += length;
        self.position += length as u64;
        Ok(length)
    }

    /// Fills what is given, except at the end of the archive. Returns how much it read.
    pub(crate) fn fill(&mut self, into: &mut [u8]) -> Result<usize, ReadError> {
        let mut filled = 0;
        while filled < into.len() {
            match self.read(&mut into[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(filled)
    }
}

/// This number of bytes, with padding.
pub(crate) fn padded(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(BLOCK_BYTES as u64).unwrap_or(u64::MAX)
}
