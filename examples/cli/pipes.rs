//! Writing into pipes, on a thread of its own: a pipe keeps a thread waiting for as long as the reader likes, and a command that
//! waits so could not end when a signal asks it to.

#![allow(clippy::disallowed_methods, reason = "the rule against threads is for the library")]

use std::fs::File;
use std::io::{self, Write as _};
use std::pin::Pin;
use std::sync::mpsc;
use std::task::{Context, Poll, ready};
use std::thread;

use futures::channel::oneshot;
use futures::future::FutureExt as _;
use futures::io::AsyncWrite;

/// The most bytes that are written at once.
const BLOCK_BYTES: usize = 256 << 10;

/// Writes to a file, one block behind. Nothing is known to be written before it is flushed.
pub(crate) struct Writer {
    blocks: mpsc::Sender<(Vec<u8>, oneshot::Sender<io::Result<()>>)>,
    /// The result of the block that is being written.
    written: Option<oneshot::Receiver<io::Result<()>>>,
}

impl Writer {
    pub(crate) fn new(mut file: File) -> Self {
        let (blocks, received) = mpsc::channel::<(Vec<u8>, oneshot::Sender<io::Result<()>>)>();
        thread::spawn(move || {
            for (block, done) in received {
                // Nobody waits for it any more if that fails.
                let _ = done.send(file.write_all(&block));
            }
        });
        Self { blocks, written: None }
    }

    fn poll_written(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Some(written) = &mut self.written else { return Poll::Ready(Ok(())) };
        let result = ready!(written.poll_unpin(context));
        self.written = None;
        Poll::Ready(result.unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())))
    }
}

impl AsyncWrite for Writer {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_written(context))?;
        let length = bytes.len().min(BLOCK_BYTES);
        let (done, written) = oneshot::channel();
        let sent = self.blocks.send((bytes[..length].to_vec(), done));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        self.written = Some(written);
        Poll::Ready(Ok(length))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_written(context)
    }

    fn poll_close(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}
