//! Readers and writers of Tokio with the traits of `futures`.

use std::io::{self, IoSlice, SeekFrom};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::io::{AsyncRead, AsyncSeek, AsyncWrite};
use tokio::io::{AsyncRead as TokioRead, AsyncSeek as TokioSeek, AsyncWrite as TokioWrite, ReadBuf};

/// A reader or writer of Tokio, as one of `futures`. Methods such as `SnapshotWriter::stream_tokio` make it.
#[derive(Debug)]
pub struct TokioIo<T> {
    inner: T,
    is_seeking: bool,
}

impl<T> TokioIo<T> {
    /// Wraps a reader or writer of Tokio.
    pub fn new(inner: T) -> Self {
        Self { inner, is_seeking: false }
    }

    /// The reader or writer.
    pub fn into_inner(self) -> T {
        self.inner
    }
}

impl<T: TokioRead + Unpin> AsyncRead for TokioIo<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(buffer);
        ready!(Pin::new(&mut self.inner).poll_read(context, &mut buffer))?;
        Poll::Ready(Ok(buffer.filled().len()))
    }
}

impl<T: TokioWrite + Unpin> AsyncWrite for TokioIo<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, buffer)
    }

    // TLS writes several records at once.
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(context, parts)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<T: TokioSeek + Unpin> AsyncSeek for TokioIo<T> {
    fn poll_seek(mut self: Pin<&mut Self>, context: &mut Context<'_>, to: SeekFrom) -> Poll<io::Result<u64>> {
        let this = &mut *self;
        if !this.is_seeking {
            // An operation that another task began must end first.
            ready!(Pin::new(&mut this.inner).poll_complete(context))?;
            Pin::new(&mut this.inner).start_seek(to)?;
            this.is_seeking = true;
        }
        let position = ready!(Pin::new(&mut this.inner).poll_complete(context));
        this.is_seeking = false;
        Poll::Ready(position)
    }
}
