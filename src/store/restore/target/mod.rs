//! Where a restored archive goes.

mod file;
mod temporary;

use std::io;

use async_trait::async_trait;
use bytes::Bytes;
use futures::io::{AsyncWrite, AsyncWriteExt as _};

pub use file::FileTarget;

/// How many zeros are written at once.
const ZEROS_BYTES: usize = 64 << 10;

/// Takes an archive as it is restored: first `begin`, then all of it in order and without gaps, then `finish`.
///
/// A restore that fails or is dropped never calls `finish`: what was written is then incomplete, and a target should not let it
/// pass for the archive. A restore may be tried again with the same target, from `begin` on.
#[async_trait]
pub trait RestoreTarget: Send {
    /// An archive of `size` bytes follows.
    ///
    /// # Errors
    /// Ends the restore.
    async fn begin(&mut self, size: u64) -> io::Result<()>;

    /// Takes bytes at an offset.
    ///
    /// # Errors
    /// Ends the restore.
    async fn write_at(&mut self, offset: u64, data: Bytes) -> io::Result<()>;

    /// Takes `length` zeros at an offset. A target that was empty may leave a hole there.
    ///
    /// # Errors
    /// Ends the restore.
    async fn write_zeros(&mut self, offset: u64, length: u64) -> io::Result<()>;

    /// Everything was written. When this returns, the target holds the whole archive, as durably as it promises.
    ///
    /// # Errors
    /// Fails the restore.
    ///
    /// # Cancel safety
    /// A dropped future may have finished the target or not.
    async fn finish(&mut self) -> io::Result<()>;
}

/// Any writer: a pipe, a socket, standard output. Zeros are written out.
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
