//! The global executor of `smol`.

#![expect(clippy::disallowed_methods, reason = "this is where clocks come from")]

use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::BoxFuture;
use smol::net::TcpStream;

use crate::rt::eyeballs::connect_first;
use crate::rt::limit::Limit;
use crate::rt::{BlockingJob, Connection, Runtime, clock, fill_random, pool_size, processors};

/// A [`Runtime`] on the global executor of `smol`.
///
/// Runs at most as many blocking jobs at once as processors and two more, at least four.
#[derive(Debug)]
pub struct SmolRuntime {
    limit: Arc<Limit>,
}

impl SmolRuntime {
    /// Creates the runtime.
    #[must_use]
    pub fn new() -> Self {
        Self { limit: Limit::new(pool_size().get()) }
    }
}

impl Default for SmolRuntime {
    fn default() -> Self {
        Self::new()
    }
}

#[async_trait]
impl Runtime for SmolRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        smol::spawn(task).detach();
    }

    fn spawn_blocking(&self, job: BlockingJob) {
        if let Some(jobs) = self.limit.admit(job) {
            smol::unblock(jobs).detach();
        }
    }

    async fn sleep(&self, duration: Duration) {
        smol::Timer::after(duration).await;
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
        let addresses = smol::net::resolve((host, port)).await?;
        let sleep = |time| async move {
            smol::Timer::after(time).await;
        };
        let stream = connect_first(addresses, TcpStream::connect, sleep).await?;
        stream.set_nodelay(true)?;
        Ok(Box::new(stream))
    }
}
