//! Targets of a restore.

mod file;
mod temporary;

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use futures::io::{AsyncWrite, AsyncWriteExt as _};

pub use file::FileTarget;

/// Number of zeros written at once.
const ZEROS_BYTES: usize = 64 << 10;

/// Receives an archive during a restore: first `begin`, then all bytes in order and without gaps, then `finish`.
///
/// A failed or dropped restore never calls `finish`: the target is then incomplete, and must not pass for the
/// archive. A restore may be repeated with the same target, from `begin` on.
#[async_trait]
pub trait RestoreTarget: Send {
    /// Announces an archive of `size` bytes.
    ///
    /// # Errors
    /// Any error ends the restore.
    async fn begin(&mut self, size: u64) -> io::Result<()>;

    /// Writes bytes at an offset.
    ///
    /// # Errors
    /// Any error ends the restore.
    async fn write_at(&mut self, offset: u64, data: Bytes) -> io::Result<()>;

    /// Writes bytes that lie in several buffers, one after the other, at an offset. Default: a [`write_at`](RestoreTarget::write_at) for each.
    ///
    /// A restore calls this for all data, with the whole chunk. A target around another one should pass it on.
    ///
    /// # Errors
    /// Any error ends the restore.
    async fn write_vectored_at(&mut self, offset: u64, parts: Vec<Bytes>) -> io::Result<()> {
        let mut at = offset;
        for part in parts {
            let length = part.len() as u64;
            self.write_at(at, part).await?;
            at += length;
        }
        Ok(())
    }

    /// Writes `length` zeros at an offset. An empty target may leave a hole.
    ///
    /// # Errors
    /// Any error ends the restore.
    async fn write_zeros(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// Completes the target. When this returns, it holds the whole archive, as durable as it promises.
    ///
    /// # Errors
    /// Any error fails the restore.
    ///
    /// # Cancel safety
    /// A dropped future may have completed the target or not.
    async fn finish(&mut self) -> io::Result<()>;
}

/// A writer as target: a pipe, a socket, standard output. Zeros are written out.
#[derive(Debug)]
pub struct WriterTarget<W> {
    writer: W,
    zeros: Bytes,
}

impl<W: AsyncWrite + Send + Unpin> WriterTarget<W> {
    /// Writes to `writer`, and flushes it at the end.
    pub fn new(writer: W) -> Self {
        Self { writer, zeros: Bytes::from(vec![0; ZEROS_BYTES]) }
    }

    /// The writer.
    pub fn into_inner(self) -> W {
        self.writer
    }
}

#[async_trait]
impl<W: AsyncWrite + Send + Unpin> RestoreTarget for WriterTarget<W> {
    async fn begin(&mut self, _: u64) -> io::Result<()> {
        Ok(())
    }

    async fn write_at(&mut self, _: u64, data: Bytes) -> io::Result<()> {
        self.writer.write_all(&data).await
    }

    async fn write_zeros(&mut self, _: u64, length: u64) -> io::Result<()> {
        let mut rest = length;
        while rest > 0 {
            let part = usize::try_from(rest).unwrap_or(usize::MAX).min(self.zeros.len());
            self.writer.write_all(&self.zeros[..part]).await?;
            rest -= part as u64;
        }
        Ok(())
    }

    async fn finish(&mut self) -> io::Result<()> {
        self.writer.flush().await
    }
}
