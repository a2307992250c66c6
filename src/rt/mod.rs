//! The seam to the async runtime: the one place that spawns, blocks, sleeps, reads a clock or draws randomness.
//!
//! A [`Runtime`] is given once, as `Arc<dyn Runtime>`, to the constructor of a backend; the store takes it from there. There
//! is no global default and nothing is started behind the caller's back. Implementations here:
//!
//! | type | feature | what it stands on |
//! |---|---|---|
//! | [`ThreadRuntime`] | none | threads of its own; for `futures::executor` and programs without a runtime |
//! | `TokioRuntime` | `tokio` | the Tokio runtime that the caller runs |
//! | `SmolRuntime` | `smol` | the global executor of `smol` |
//! | `SimRuntime` | `testing` | one thread, virtual time, one seed that decides every schedule |

mod clock;
mod eyeballs;
#[cfg(any(feature = "smol", feature = "tokio"))]
mod limit;
mod rate;
pub(crate) mod semaphore;
#[cfg(feature = "testing")]
mod sim;
#[cfg(feature = "smol")]
mod smol;
mod thread;
#[cfg(feature = "tokio")]
mod tokio;

use std::fmt;
use std::hash::BuildHasher as _;
use std::io;
use std::num::NonZeroUsize;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use futures::io::{AsyncRead, AsyncWrite};

use crate::error::{Error, ErrorKind, Result};

pub(crate) use rate::Rate;
#[cfg(feature = "testing")]
pub use sim::{SimListener, SimRuntime};
#[cfg(feature = "smol")]
pub use smol::SmolRuntime;
pub use thread::ThreadRuntime;
#[cfg(feature = "tokio")]
pub use tokio::TokioRuntime;

/// A job that may block: file access, or work for the processor that is too long for an async task.
pub type BlockingJob = Box<dyn FnOnce() + Send + 'static>;

/// The services that the library needs from an async runtime.
///
/// # Contract
/// * **Spawned tasks run**: a task given to [`spawn`](Runtime::spawn) is polled until it is complete, whether or not anybody
///   waits for it, as long as the runtime itself lives.
/// * **Blocking jobs run**: a job given to [`spawn_blocking`](Runtime::spawn_blocking) runs exactly once, on a pool whose size
///   is bounded, and never on a thread that polls tasks. Jobs may wait for files, never for other jobs.
/// * **Monotonic**: [`monotonic`](Runtime::monotonic) never decreases, and counts the time in which the host was suspended. Leases and
///   deadlines are kept by it: with a clock that stands still meanwhile, a host that wakes up takes its lease for a fresh one.
///
/// # Cancel safety
/// A dropped future of [`sleep`](Runtime::sleep) or [`connect`](Runtime::connect) leaves nothing behind.
#[async_trait]
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// Runs a task in the background.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Runs a blocking job on the pool.
    fn spawn_blocking(&self, job: BlockingJob);

    /// Completes when `duration` has passed.
    async fn sleep(&self, duration: Duration);

    /// The time of day. It may jump in either direction.
    fn now(&self) -> SystemTime;

    /// The time since some fixed moment before the first call. It never decreases, and goes on while the host is suspended, as
    /// `CLOCK_BOOTTIME` of Linux does. [`sleep`](Runtime::sleep) need not notice a suspension. Runtimes of one process that open the same
    /// store count from the same moment, as those of this crate do: `CLOCK_BOOTTIME` on Linux, elsewhere `CLOCK_MONOTONIC`, which
    /// counts a suspension on macOS and need not do so on other systems.
    fn monotonic(&self) -> Duration;

    /// Fills `buffer` with random bytes that are fit for identifiers and nonces.
    fn fill_random(&self, buffer: &mut [u8]);

    /// Number of blocking jobs to run at once: the processors that this program may use.
    fn parallelism(&self) -> NonZeroUsize;

    /// Opens a TCP connection.
    ///
    /// # Errors
    /// Whatever the name lookup or the connection answers.
    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>>;
}

/// A connected stream of bytes in both directions.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> Connection for T {}

impl dyn Runtime {
    /// Runs `job` on the pool and returns what it returned.
    ///
    /// # Errors
    /// `Internal` if the job panicked or the pool went away.
    ///
    /// # Cancel safety
    /// The job runs to its end even if the future is dropped.
    pub async fn run_blocking<T, F>(&self, action: &'static str, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        let (sender, receiver) = oneshot::channel();
        self.spawn_blocking(Box::new(move || {
            // A dropped receiver means that the caller no longer wants the answer.
            let _ = sender.send(job());
        }));
        receiver.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Internal, action)))
    }
}

/// Number of processors that this program may use.
fn processors() -> NonZeroUsize {
    std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

/// Number of blocking jobs that run at once. Some wait for a disk, so it exceeds the number of processors.
fn pool_size() -> NonZeroUsize {
    processors().saturating_add(2).max(NonZeroUsize::MIN.saturating_add(3))
}

fn fill_random(buffer: &mut [u8]) {
    if getrandom::fill(buffer).is_err() {
        // The keys that the standard library draws are random too, and it has its own ways to get them.
        for part in buffer.chunks_mut(8) {
            let random = std::hash::RandomState::new().hash_one(0_u8).to_le_bytes();
            part.copy_from_slice(&random[..part.len()]);
        }
    }
}

/// Runs a job. One that panics has been heard of by the panic hook; whoever waits for it notices that it is gone.
fn run_job(job: BlockingJob) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
}
