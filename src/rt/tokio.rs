//! The Tokio runtime of the caller.

#![expect(clippy::disallowed_methods, reason = "this is where clocks come from")]

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::error::{Error, ErrorKind, Result};
use crate::rt::eyeballs::connect_first;
use crate::rt::limit::Limit;
use crate::rt::tokio_io::TokioIo;
use crate::rt::{BlockingJob, Connection, Runtime, clock, fill_random, pool_size, processors};

/// A [`Runtime`] on a Tokio runtime, which must have timers and I/O enabled.
///
/// Futures of this library can be awaited anywhere, also outside of that runtime. Runs at most as many blocking jobs at
/// once as processors and two more, at least four.
#[derive(Debug)]
pub struct TokioRuntime {
    handle: Handle,
    limit: Arc<Limit>,
}

impl TokioRuntime {
    /// The runtime of the calling task.
    ///
    /// # Errors
    /// `InvalidInput` outside of a Tokio runtime.
    pub fn current() -> Result<Self> {
        let handle = Handle::try_current();
        handle
            .map(Self::new)
            .map_err(|error| Error::new(ErrorKind::InvalidInput, "find the runtime").because(error))
    }

    /// The runtime of this handle.
    #[must_use]
    pub fn new(handle: Handle) -> Self {
        Self { handle, limit: Limit::new(pool_size().get()) }
    }
}

#[async_trait]
impl Runtime for TokioRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.handle.spawn(task);
    }

    fn spawn_blocking(&self, job: BlockingJob) {
        if let Some(jobs) = self.limit.admit(job) {
            self.handle.spawn_blocking(jobs);
        }
    }

    async fn sleep(&self, duration: Duration) {
        let sleep = {
            let _within = self.handle.enter();
            tokio::time::sleep(duration)
        };
        sleep.await;
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn monotonic(&self) -> Duration {
        clock::monotonic()
    }

    fn fill_random(&self, buffer: &mut [u8]) {
        fill_random(buffer);
    }

    fn parallelism(&self) -> NonZeroUsize {
        processors()
    }

    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>> {
        let host = host.to_owned();
        // On the runtime itself, because a socket can be registered only there.
        let connect = self.handle.spawn(async move {
            let addresses = tokio::net::lookup_host((host, port)).await?;
            connect_first(addresses, TcpStream::connect, tokio::time::sleep).await
        });
        let mut connect = Connecting(connect);
        let stream = (&mut connect.0).await.map_err(io::Error::other)??;
        stream.set_nodelay(true)?;
        Ok(Box::new(TokioIo::new(stream)))
    }
}

/// A connecting task. It ends when its caller has gone.
struct Connecting(JoinHandle<io::Result<TcpStream>>);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.abort();
    }
}
