//! Processes in virtual time that can be killed, and their way to a bucket.

use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::{self, AbortHandle, BoxFuture};
use larder::backend::S3Backend;
use larder::error::Result;
use larder::http::HttpTransport;
use larder::rt::{BlockingJob, Connection, Runtime, SimRuntime};
use larder::s3::{Credentials, S3Capabilities, S3Client, S3Options, StaticCredentials, Support};

/// Threads of one process, which can be killed, with a clock of its own.
#[derive(Debug)]
pub struct Life {
    is_over: AtomicBool,
    is_ahead: bool,
    sim: SimRuntime,
    skew: Duration,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Life {
    pub fn new(sim: &SimRuntime) -> Self {
        Self::with_skew(sim, false, Duration::ZERO)
    }

    /// With a wall clock that is ahead by this time, or behind.
    pub fn with_skew(sim: &SimRuntime, is_ahead: bool, skew: Duration) -> Self {
        let is_over = AtomicBool::new(false);
        Self { is_over, is_ahead, sim: sim.clone(), skew, tasks: Mutex::default() }
    }

    pub fn kill(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.tasks.lock().unwrap().drain(..).for_each(|task| task.abort());
    }
}

#[async_trait]
impl Runtime for Life {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let (task, handle) = future::abortable(task);
        if self.is_over.load(Ordering::SeqCst) {
            return;
        }
        self.tasks.lock().unwrap().push(handle);
        self.sim.spawn(Box::pin(async move { task.await.unwrap_or_default() }));
    }
    fn spawn_blocking(&self, job: BlockingJob) {
        self.sim.spawn_blocking(job);
    }
    async fn sleep(&self, duration: Duration) {
        self.sim.sleep(duration).await;
    }
    fn now(&self) -> SystemTime {
        if self.is_ahead { self.sim.now() + self.skew } else { self.sim.now() - self.skew }
    }
    fn monotonic(&self) -> Duration {
        self.sim.monotonic()
    }
    fn fill_random(&self, buffer: &mut [u8]) {
        self.sim.fill_random(buffer);
    }
    fn parallelism(&self) -> NonZeroUsize {
        self.sim.parallelism()
    }
    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>> {
        self.sim.connect(host, port).await
    }
}

/// The backend of a process, by the transport that it has.
pub fn backend(runtime: Arc<dyn Runtime>, wire: Arc<dyn HttpTransport>) -> Result<S3Backend> {
    let credentials = StaticCredentials::new(Credentials::new("id", "secret"));
    let place = S3Options::new("https://s3.test", "bucket").credentials(Arc::new(credentials));
    let client = S3Client::new(Arc::clone(&runtime), wire, place)?;
    S3Backend::new(runtime, client, "store", able(), &[])
}

fn able() -> S3Capabilities {
    let mut able = S3Capabilities::default();
    for support in [
        &mut able.checks_bodies,
        &mut able.conditional_put,
        &mut able.copy,
        &mut able.create_only_put,
        &mut able.listing,
        &mut able.multi_delete,
        &mut able.ranges,
    ] {
        *support = Support::Yes;
    }
    for setting in [&mut able.expires_objects, &mut able.keeps_versions, &mut able.locks_objects] {
        *setting = Some(false);
    }
    able.conditional_delete = Support::Refused;
    able
}
