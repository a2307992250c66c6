//! A runtime whose blocking jobs wait for the test.

use std::collections::VecDeque;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::BoxFuture;

use crate::rt::{BlockingJob, Connection, Runtime};

/// Keeps jobs until the test runs or drops them.
#[derive(Default)]
pub(crate) struct HeldRuntime(Mutex<VecDeque<BlockingJob>>);

impl HeldRuntime {
    /// Takes the oldest job.
    pub(crate) fn job(&self) -> Option<BlockingJob> {
        self.0.lock().unwrap().pop_front()
    }
}

impl fmt::Debug for HeldRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HeldRuntime")
    }
}

#[async_trait]
impl Runtime for HeldRuntime {
    fn spawn(&self, _: BoxFuture<'static, ()>) {
        unreachable!("nothing is spawned")
    }

    fn spawn_blocking(&self, job: BlockingJob) {
        self.0.lock().unwrap().push_back(job);
    }

    async fn sleep(&self, _: Duration) {}

    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH
    }

    fn monotonic(&self) -> Duration {
        Duration::ZERO
    }

    fn fill_random(&self, _: &mut [u8]) {}

    fn parallelism(&self) -> NonZeroUsize {
        NonZeroUsize::MIN
    }

    async fn connect(&self, _: &str, _: u16) -> std::io::Result<Box<dyn Connection>> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}
