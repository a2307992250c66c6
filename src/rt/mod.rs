//! The interface to the async runtime: only this module spawns, blocks, sleeps, reads clocks and draws randomness.
//!
//! The constructor of a backend takes a [`Runtime`] as `Arc<dyn Runtime>`, and the store uses that one. There
//! is no global default, and nothing is started without a runtime. Implementations:
//!
//! | type | feature | based on |
//! |---|---|---|
//! | [`ThreadRuntime`] | none | its own threads; for `futures::executor` and programs without a runtime |
//! | `TokioRuntime` | `tokio` | the Tokio runtime of the caller |
//! | `SmolRuntime` | `smol` | the global executor of `smol` |
//! | `SimRuntime` | `testing` | one thread, virtual time, and a seed that decides every schedule |

mod clock;
pub(crate) mod detached;
mod eyeballs;
#[cfg(test)]
pub(crate) mod held;
pub(crate) mod limit;
mod rate;
mod retry;
pub(crate) mod semaphore;
#[cfg(feature = "testing")]
pub(crate) mod sim;
#[cfg(feature = "smol")]
mod smol;
mod thread;
#[cfg(feature = "tokio")]
mod tokio;
#[cfg(feature = "tokio")]
mod tokio_io;

use std::any::Any;
use std::fmt;
use std::hash::BuildHasher as _;
use std::io;
use std::num::NonZeroUsize;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::channel::oneshot;
use futures::future::{BoxFuture, FutureExt as _};
use futures::io::{AsyncRead, AsyncWrite};

use crate::error::{Error, ErrorKind, Result};

pub(crate) use rate::Rate;
#[cfg(feature = "testing")]
pub use sim::SimRuntime;
#[cfg(feature = "smol")]
pub use smol::SmolRuntime;
pub use thread::ThreadRuntime;
#[cfg(feature = "tokio")]
pub use tokio::TokioRuntime;
#[cfg(feature = "tokio")]
pub use tokio_io::TokioIo;

/// A job that may block: file access, or processor-bound work that is too long for an async task.
pub type BlockingJob = Box<dyn FnOnce() + Send + 'static>;

/// The answer of a job, whose type the caller knows.
type AnyAnswer = Box<dyn Any + Send>;
/// A job with an answer.
type AnswerJob = Box<dyn FnOnce() -> AnyAnswer + Send>;

/// The services that the library needs from an async runtime.
///
/// # Contract
/// * **Spawned tasks run**: a task given to [`spawn`](Runtime::spawn) is polled to completion without being awaited,
///   as long as the runtime itself lives.
/// * **Blocking jobs run**: a job given to [`spawn_blocking`](Runtime::spawn_blocking) runs exactly once, on a pool whose size
///   is bounded, and never on a thread that polls tasks. Jobs may wait for files, and for other jobs only if those run already.
/// * **Monotonic**: [`monotonic`](Runtime::monotonic) never decreases, and counts the time in which the host was suspended. Leases and
///   deadlines depend on it: with a clock that stands still meanwhile, a host that wakes up believes that its lease is fresh.
///
/// # Cancel safety
/// A dropped future of [`sleep`](Runtime::sleep) or [`connect`](Runtime::connect) leaves no timer or connection behind.
#[async_trait]
pub trait Runtime: fmt::Debug + Send + Sync + 'static {
    /// Runs a task in the background.
    fn spawn(&self, task: BoxFuture<'static, ()>);

    /// Runs a blocking job on the pool.
    fn spawn_blocking(&self, job: BlockingJob);

    /// Completes when `duration` has passed.
    async fn sleep(&self, duration: Duration);

    /// The wall clock. It may jump in either direction.
    fn now(&self) -> SystemTime;

    /// The time since a fixed moment before the first call. It never decreases, and counts suspension of the host, as
    /// `CLOCK_BOOTTIME` of Linux does. [`sleep`](Runtime::sleep) need not notice a suspension. Runtimes of one process that open the same
    /// store must count from the same moment, as those of this crate do: `CLOCK_BOOTTIME` on Linux, elsewhere `CLOCK_MONOTONIC`, which
    /// counts suspension on macOS and may not do so on other systems.
    fn monotonic(&self) -> Duration;

    /// Fills `buffer` with random bytes, suitable for identifiers, nonces and keys: an attacker cannot predict them, except in a simulation.
    fn fill_random(&self, buffer: &mut [u8]);

    /// Number of blocking jobs to run at once: the processors that this program may use.
    fn parallelism(&self) -> NonZeroUsize;

    /// Opens a TCP connection.
    ///
    /// # Errors
    /// Any failure of the name lookup or the connection.
    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>>;
}

/// A connected byte stream in both directions.
pub trait Connection: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + fmt::Debug> Connection for T {}

impl dyn Runtime {
    /// Runs `job` on the pool and returns its result.
    ///
    /// # Errors
    /// `Internal` if the job panicked or the pool has shut down.
    ///
    /// # Cancel safety
    /// The job runs to completion even if the future is dropped.
    pub async fn run_blocking<T, F>(&self, action: &'static str, job: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T> + Send + 'static,
    {
        let answer = self.answer_of(Box::new(move || Box::new(job()))).await;
        match answer.map(AnyAnswer::downcast::<Result<T>>) {
            Some(Ok(answer)) => *answer,
            _ => Err(Error::new(ErrorKind::Internal, action)),
        }
    }

    /// `None` if the job panicked or the pool has shut down. One type of channel serves all jobs, which keeps the crate quick to compile.
    fn answer_of(&self, job: AnswerJob) -> impl Future<Output = Option<AnyAnswer>> + use<> {
        let (sender, receiver) = oneshot::channel();
        self.spawn_blocking(Box::new(move || {
            // A dropped receiver means that the caller no longer wants the answer.
            let _ = sender.send(job());
        }));
        receiver.map(std::result::Result::ok)
    }
}

/// Number of processors that this program may use, as found by the first call: the standard library reads files of the system each time.
fn processors() -> NonZeroUsize {
    static FOUND: OnceLock<NonZeroUsize> = OnceLock::new();
    *FOUND.get_or_init(|| std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
}

/// Number of blocking jobs that run at once. Some wait for a disk, so it exceeds the number of processors.
fn pool_size() -> NonZeroUsize {
    processors().saturating_add(2).max(NonZeroUsize::MIN.saturating_add(3))
}

fn fill_random(buffer: &mut [u8]) {
    if getrandom::fill(buffer).is_err() {
        // The hash keys of the standard library are random too, and it has its own sources for them.
        for part in buffer.chunks_mut(8) {
            let random = std::hash::RandomState::new().hash_one(0_u8).to_le_bytes();
            part.copy_from_slice(&random[..part.len()]);
        }
    }
}

/// Runs a job. The panic hook reports a panic; the caller notices by its dropped sender.
fn run_job(job: BlockingJob) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
}
