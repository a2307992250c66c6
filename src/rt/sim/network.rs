//! Simulated connections: two pipes of bounded length.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use futures::channel::mpsc;
use futures::io::{AsyncRead, AsyncWrite};
use futures::stream::StreamExt as _;

use crate::rt::Connection;
use crate::rt::sim::lock;

/// Capacity of a pipe in bytes.
const PIPE_BYTES: usize = 64 << 10;

/// Accepts connections to a port.
#[derive(Debug)]
pub struct SimListener {
    incoming: mpsc::UnboundedReceiver<SimConnection>,
}

impl SimListener {
    pub(super) fn new(incoming: mpsc::UnboundedReceiver<SimConnection>) -> Self {
        Self { incoming }
    }

    /// Waits for the next connection.
    ///
    /// # Errors
    /// `ConnectionAborted` if another listener took over the port.
    pub async fn accept(&mut self) -> io::Result<Box<dyn Connection>> {
        let connection = self.incoming.next().await.ok_or(io::ErrorKind::ConnectionAborted)?;
        Ok(Box::new(connection))
    }
}

/// One end of a connection.
#[derive(Debug)]
pub(super) struct SimConnection {
    from: Arc<Mutex<Pipe>>,
    to: Arc<Mutex<Pipe>>,
}

#[derive(Debug, Default)]
struct Pipe {
    bytes: VecDeque<u8>,
    /// The writing end is dropped or closed, or the reading end is dropped.
    closed: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// Creates both ends of a connection.
pub(super) fn pipe() -> (SimConnection, SimConnection) {
    let (there, back) = (Arc::<Mutex<Pipe>>::default(), Arc::<Mutex<Pipe>>::default());
    let ours = SimConnection { from: Arc::clone(&back), to: Arc::clone(&there) };
    (ours, SimConnection { from: there, to: back })
}

impl Pipe {
    fn close(&mut self) {
        self.closed = true;
        for waker in [self.reader.take(), self.writer.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

impl AsyncRead for SimConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut pipe = lock(&self.from);
        let length = io::Read::read(&mut pipe.bytes, buffer)?;
        if length > 0 || pipe.closed || buffer.is_empty() {
            if let Some(writer) = pipe.writer.take() {
                writer.wake();
            }
            return Poll::Ready(Ok(length));
        }
        pipe.reader = Some(context.waker().clone());
        Poll::Pending
    }
}

impl AsyncWrite for SimConnection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut pipe = lock(&self.to);
        if pipe.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = bytes.len().min(PIPE_BYTES - pipe.bytes.len());
        if length == 0 && !bytes.is_empty() {
            pipe.writer = Some(context.waker().clone());
            return Poll::Pending;
        }
        pipe.bytes.extend(&bytes[..length]);
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        lock(&self.to).close();
        Poll::Ready(Ok(()))
    }
}

impl Drop for SimConnection {
    fn drop(&mut self) {
        lock(&self.to).close();
        lock(&self.from).close();
    }
}
