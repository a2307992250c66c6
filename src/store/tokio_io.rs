//! Archives from readers and into writers of Tokio, without an adapter (feature `tokio`).

use std::io::{self, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::io::AsyncSeek as _;
use tokio::io::{AsyncRead, AsyncSeek, AsyncWrite, ReadBuf};

use crate::rt::TokioIo;
use crate::store::{ArchiveReader, ImageBuilder, SnapshotWriter, StreamBuilder, WriterTarget};

impl SnapshotWriter {
    /// As [`stream`](Self::stream), for a reader of Tokio.
    pub fn stream_tokio<R>(&self, name: impl Into<String>, reader: R) -> StreamBuilder<'_, TokioIo<R>>
    where
        R: AsyncRead + Send + Unpin,
    {
        self.stream(name, TokioIo::new(reader))
    }

    /// As [`image`](Self::image), for a reader of Tokio. [`ImageBuilder::dirty`] wants one that is `AsyncSeek` too.
    pub fn image_tokio<R>(
        &self,
        name: impl Into<String>,
        reader: R,
        size: impl Into<Option<u64>>,
    ) -> ImageBuilder<'_, TokioIo<R>>
    where
        R: AsyncRead + Send + Unpin,
    {
        self.image(name, TokioIo::new(reader), size)
    }
}

impl<W: AsyncWrite + Send + Unpin> WriterTarget<TokioIo<W>> {
    /// As [`new`](Self::new), for a writer of Tokio.
    pub fn tokio(writer: W) -> Self {
        Self::new(TokioIo::new(writer))
    }
}

impl AsyncRead for ArchiveReader {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(futures::io::AsyncRead::poll_read(self, context, buffer.initialize_unfilled()))?;
        buffer.advance(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncSeek for ArchiveReader {
    fn start_seek(self: Pin<&mut Self>, to: SeekFrom) -> io::Result<()> {
        // Moving an archive never waits.
        let mut context = Context::from_waker(std::task::Waker::noop());
        match self.poll_seek(&mut context, to) {
            Poll::Ready(moved) => moved.map(drop),
            Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    fn poll_complete(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<u64>> {
        self.poll_seek(context, SeekFrom::Current(0))
    }
}
