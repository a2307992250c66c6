//! A connection served by two threads, with one block of bytes between each of them and the tasks.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::thread;

use futures::io::{AsyncRead, AsyncWrite};

use crate::rt::thread::lock;

/// Bytes of a block.
const BLOCK_BYTES: usize = 64 << 10;

/// The task's end of a connection. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct ThreadConnection {
    incoming: Arc<Side>,
    outgoing: Arc<Side>,
    stream: TcpStream,
}

/// One direction.
#[derive(Debug, Default)]
struct Side {
    changed: Condvar,
    state: Mutex<SideState>,
}

#[derive(Debug, Default)]
struct SideState {
    block: Vec<u8>,
    /// No more bytes will be added to the block.
    ended: bool,
    error: Option<io::ErrorKind>,
    /// Bytes of the block already consumed.
    taken: usize,
    waker: Option<Waker>,
    /// The writer thread holds a block that is not written yet.
    writing: bool,
}

/// Starts the threads of a connection.
pub(super) fn start(stream: TcpStream) -> io::Result<ThreadConnection> {
    stream.set_nodelay(true)?;
    let (reader, writer) = (stream.try_clone()?, stream.try_clone()?);
    // Without a second thread, dropping this stops the first.
    let connection = ThreadConnection { incoming: Arc::default(), outgoing: Arc::default(), stream };
    let side = Arc::clone(&connection.incoming);
    thread::Builder::new().spawn(move || read(reader, &side))?;
    let side = Arc::clone(&connection.outgoing);
    thread::Builder::new().spawn(move || write(writer, &side))?;
    Ok(connection)
}

fn read(mut stream: TcpStream, side: &Side) {
    let mut buffer = vec![0; BLOCK_BYTES];
    loop {
        let read = stream.read(&mut buffer);
        let mut state = lock(&side.state);
        match read {
            Ok(0) => state.ended = true,
            Ok(length) => state.block.extend_from_slice(&buffer[..length]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => state.error = Some(error.kind()),
        }
        wake(state);
        let mut state = lock(&side.state);
        while !state.block.is_empty() && !state.ended {
            state = side.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.ended || state.error.is_some() {
            return;
        }
    }
}

fn write(mut stream: TcpStream, side: &Side) {
    loop {
        let mut state = lock(&side.state);
        while state.block.is_empty() && !state.ended {
            state = side.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let block = std::mem::take(&mut state.block);
        state.writing = !block.is_empty();
        drop(state);
        if block.is_empty() {
            // End of input: the other side may still send.
            let _ = stream.shutdown(Shutdown::Write);
            return;
        }
        let written = stream.write_all(&block);
        let mut state = lock(&side.state);
        state.writing = false;
        state.error = written.err().map(|error| error.kind());
        let failed = state.error.is_some();
        wake(state);
        if failed {
            return;
        }
    }
}

/// Wakes the task of this side without holding the lock: a waker may run the task at once, which reads the state.
fn wake(mut state: MutexGuard<'_, SideState>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

impl AsyncRead for ThreadConnection {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.incoming.state);
        let length = buffer.len().min(state.block.len() - state.taken);
        if length > 0 {
            buffer[..length].copy_from_slice(&state.block[state.taken..state.taken + length]);
            state.taken += length;
            if state.taken == state.block.len() {
                state.block.clear();
                state.taken = 0;
                self.incoming.changed.notify_one();
            }
            return Poll::Ready(Ok(length));
        }
        match state.error {
            Some(kind) => Poll::Ready(Err(kind.into())),
            None if state.ended || buffer.is_empty() => Poll::Ready(Ok(0)),
            None => {
                state.waker = Some(context.waker().clone());
                Poll::Pending
            }
        }
    }
}

impl AsyncWrite for ThreadConnection {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut state = lock(&self.outgoing.state);
        if let Some(kind) = state.error {
            return Poll::Ready(Err(kind.into()));
        }
        if state.ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let length = bytes.len().min(BLOCK_BYTES - state.block.len().min(BLOCK_BYTES));
        if length == 0 && !bytes.is_empty() {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        state.block.extend_from_slice(&bytes[..length]);
        self.outgoing.changed.notify_one();
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = lock(&self.outgoing.state);
        if let Some(kind) = state.error {
            return Poll::Ready(Err(kind.into()));
        }
        if state.block.is_empty() && !state.writing {
            return Poll::Ready(Ok(()));
        }
        state.waker = Some(context.waker().clone());
        Poll::Pending
    }

    fn poll_close(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.as_mut().poll_flush(context))?;
        lock(&self.outgoing.state).ended = true;
        self.outgoing.changed.notify_one();
        Poll::Ready(Ok(()))
    }
}

impl Drop for ThreadConnection {
    fn drop(&mut self) {
        for side in [&self.incoming, &self.outgoing] {
            lock(&side.state).ended = true;
            side.changed.notify_one();
        }
        // Ends the blocking calls of the threads; it fails only if there is nothing to end.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}
