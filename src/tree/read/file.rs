//! Contents of files.

use std::io::{self, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::io::{AsyncRead, AsyncSeek};

use crate::error::{Error, ErrorKind, Result};
use crate::store::ArchiveReader;
use crate::tree::read::entry::TreeEntry;
use crate::tree::read::streams::Streams;

/// Contents of a file in a tree: a seekable stream with read-ahead, and reads by range.
///
/// A damaged chunk fails reads of the bytes in it and no others, as in an [`ArchiveReader`].
#[derive(Debug)]
pub struct TreeFile {
    position: u64,
    reader: ArchiveReader,
    size: u64,
    /// Position of the first byte in the stream.
    start: u64,
}

impl TreeFile {
    pub(super) async fn open(streams: &Streams, entry: &TreeEntry) -> Result<Self> {
        let (stream, start) = streams.contents(entry).await?;
        let size = entry.size();
        // Both were checked against the end of the stream.
        let reader = stream.another(start, start + size);
        Ok(Self { position: 0, reader, size, start })
    }

    /// Size of the file in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Reads up to `length` bytes at an offset: fewer at the end of the file and at the end of a chunk, none beyond the end.
    ///
    /// # Errors
    /// `Corrupt` for a missing or damaged chunk; any failure of the backend.
    pub async fn read_at(&self, offset: u64, length: usize) -> Result<Bytes> {
        let Some(rest) = self.size.checked_sub(offset).filter(|rest| *rest > 0) else {
            return Ok(Bytes::new());
        };
        let length = length.min(usize::try_from(rest).unwrap_or(usize::MAX));
        self.reader.read_at(self.start + offset, length).await
    }

    /// Reads the whole file into memory.
    ///
    /// # Errors
    /// `InvalidInput` if it exceeds the memory that can be addressed; as for [`read_at`](Self::read_at).
    pub async fn read_all(&self) -> Result<Bytes> {
        let size = usize::try_from(self.size);
        let size =
            size.map_err(|_| Error::new(ErrorKind::InvalidInput, "read file").on(self.reader.name()))?;
        self.reader.read_exact_at(self.start, size).await
    }

    /// Range of the file in the same chunk as this offset; `None` beyond the end. If the chunk is damaged, these bytes are lost.
    pub fn chunk_range(&self, offset: u64) -> Option<std::ops::Range<u64>> {
        let end = self.start + self.size;
        let position = self.start.checked_add(offset).filter(|position| *position < end)?;
        let range = self.reader.chunk_range(position)?;
        Some(range.start.saturating_sub(self.start)..range.end.min(end) - self.start)
    }

    /// Returns `true` if [`next_chunk`](Self::next_chunk) needs no reading.
    pub(in crate::tree) fn is_at_hand(&self) -> bool {
        self.reader.is_at_hand(self.start + self.position)
    }

    /// Reads the next bytes of the stream without a copy: at most those up to the end of a chunk, and at least one; none at the end of the file.
    ///
    /// # Errors
    /// As for [`read_at`](Self::read_at); the stream stays where it is.
    pub async fn next_chunk(&mut self) -> Result<Bytes> {
        let Some(rest) = self.size.checked_sub(self.position).filter(|rest| *rest > 0) else {
            return Ok(Bytes::new());
        };
        let mut bytes = self.reader.read_part_at(self.start + self.position).await?;
        bytes.truncate(usize::try_from(rest).unwrap_or(usize::MAX));
        self.position += bytes.len() as u64;
        Ok(bytes)
    }
}

impl AsyncRead for TreeFile {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let rest = usize::try_from(self.size.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let length = buffer.len().min(rest);
        if length == 0 {
            return Poll::Ready(Ok(0));
        }
        let position = self.start + self.position;
        self.reader.set_position(position);
        let read = futures::ready!(Pin::new(&mut self.reader).poll_read(context, &mut buffer[..length]))?;
        self.position += read as u64;
        Poll::Ready(Ok(read))
    }
}

impl AsyncSeek for TreeFile {
    fn poll_seek(mut self: Pin<&mut Self>, _: &mut Context<'_>, to: SeekFrom) -> Poll<io::Result<u64>> {
        let position = match to {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Poll::Ready(Ok(self.position))
    }
}
