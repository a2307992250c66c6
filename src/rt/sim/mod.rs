//! A runtime in which a seed decides everything: one thread, virtual time, no real waiting.
//!
//! Ready tasks and pending blocking jobs lie in one pool. The seed decides which of them runs next, so
//! each seed gives one reproducible interleaving. When nothing is ready, time jumps to the next timer.
//! Without a timer nothing can ever happen again, and [`SimRuntime::block_on`] panics.

#![expect(clippy::panic, reason = "it is equipment for tests, which a deadlock has to end")]

mod network;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::channel::mpsc;
use futures::future::BoxFuture;
use futures::task::ArcWake;

use crate::rt::sim::network::{SimConnection, pipe};
use crate::rt::{BlockingJob, Connection, Runtime, run_job};

pub use network::SimListener;

/// Start of virtual time: 2025-01-01T00:00:00Z.
const EPOCH_SECONDS: u64 = 1_735_689_600;

/// A simulated [`Runtime`]. Clones share everything.
///
/// Everything runs on the thread that called [`block_on`](SimRuntime::block_on).
#[derive(Clone)]
pub struct SimRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    state: Mutex<State>,
}

struct State {
    /// Offset of the wall clock.
    clock_ahead: Duration,
    clock_behind: Duration,
    elapsed: Duration,
    listeners: HashMap<u16, mpsc::UnboundedSender<SimConnection>>,
    next_timer: u64,
    random: u64,
    ready: Vec<Ready>,
    steps: u64,
    /// Total time of suspension, which timers do not count.
    suspended: Duration,
    timers: BTreeMap<(Duration, u64), Waker>,
    trace: u64,
}

/// A possible next step.
enum Ready {
    Job(BlockingJob),
    /// The future given to `block_on`.
    Main,
    Task(Arc<Task>),
}

struct Task {
    future: Mutex<Option<BoxFuture<'static, ()>>>,
    queued: Mutex<bool>,
    runtime: Arc<Inner>,
}

struct MainWaker {
    queued: Mutex<bool>,
    runtime: Arc<Inner>,
}

impl SimRuntime {
    /// A runtime whose every decision follows from the seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let state = State {
            clock_ahead: Duration::ZERO,
            clock_behind: Duration::ZERO,
            elapsed: Duration::ZERO,
            listeners: HashMap::new(),
            next_timer: 0,
            random: seed,
            ready: Vec::new(),
            steps: 0,
            suspended: Duration::ZERO,
            timers: BTreeMap::new(),
            trace: 0,
        };
        Self { inner: Arc::new(Inner { state: Mutex::new(state) }) }
    }

    /// Runs until the future is complete. Other tasks continue in the next call.
    ///
    /// # Panics
    /// If the future waits for an event that can never happen.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let mut future = pin!(future);
        let main = Arc::new(MainWaker { queued: Mutex::new(false), runtime: Arc::clone(&self.inner) });
        let waker = futures::task::waker(Arc::clone(&main));
        waker.wake_by_ref();
        loop {
            match self.inner.next() {
                Some(Ready::Main) => {
                    *lock(&main.queued) = false;
                    if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                        self.inner.state().ready.retain(|ready| !matches!(ready, Ready::Main));
                        return output;
                    }
                }
                Some(other) => other.run(),
                None if self.inner.advance() => {}
                None => panic!("deadlock: nothing is ready, and no timer is set"),
            }
        }
    }

    /// Runs everything that is ready, without advancing time.
    pub(crate) fn run_until_idle(&self) {
        while let Some(ready) = self.inner.next() {
            ready.run();
        }
    }

    /// Number of scheduling decisions so far.
    pub(crate) fn steps(&self) -> u64 {
        self.inner.state().steps
    }

    /// A hash of the schedule; differs between two schedules with high probability.
    pub(crate) fn trace(&self) -> u64 {
        self.inner.state().trace
    }

    /// Sets the wall clock forward. The monotonic clock is unaffected.
    pub(crate) fn set_clock_forward(&self, by: Duration) {
        self.inner.state().clock_ahead += by;
    }

    /// Sets the wall clock back. The monotonic clock is unaffected.
    pub(crate) fn set_clock_back(&self, by: Duration) {
        self.inner.state().clock_behind += by;
    }

    /// Sets the wall clock right. The monotonic clock is unaffected.
    pub(crate) fn set_clock_right(&self) {
        let mut state = self.inner.state();
        (state.clock_ahead, state.clock_behind) = (Duration::ZERO, Duration::ZERO);
    }

    /// Suspends the host for this time: wall clock and monotonic clock advance, timers do not.
    pub(crate) fn suspend(&self, time: Duration) {
        self.inner.state().suspended += time;
    }

    /// Accepts connections to a port, for any host name. Fails while another listener accepts connections to it.
    pub(crate) fn listen(&self, port: u16) -> io::Result<SimListener> {
        let (sender, receiver) = mpsc::unbounded();
        let mut state = self.inner.state();
        if state.listeners.get(&port).is_some_and(|open| !open.is_closed()) {
            return Err(io::ErrorKind::AddrInUse.into());
        }
        let closed = state.listeners.insert(port, sender);
        // Dropping a sender may wake a task, which needs the state.
        drop(state);
        drop(closed);
        Ok(SimListener::new(receiver))
    }
}

impl fmt::Debug for SimRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.inner.state();
        write!(f, "SimRuntime({:?} elapsed, {} steps)", state.elapsed, state.steps)
    }
}

#[async_trait]
impl Runtime for SimRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let task = Arc::new(Task {
            future: Mutex::new(Some(task)),
            queued: Mutex::new(false),
            runtime: Arc::clone(&self.inner),
        });
        ArcWake::wake(task);
    }

    fn spawn_blocking(&self, job: BlockingJob) {
        self.inner.state().ready.push(Ready::Job(job));
    }

    async fn sleep(&self, duration: Duration) {
        let end = self.inner.state().elapsed.saturating_add(duration);
        Sleep { end, runtime: Arc::clone(&self.inner), timer: None }.await;
    }

    fn now(&self) -> SystemTime {
        let state = self.inner.state();
        let ahead = SystemTime::UNIX_EPOCH
            + Duration::from_secs(EPOCH_SECONDS)
            + state.elapsed
            + state.suspended
            + state.clock_ahead;
        ahead.checked_sub(state.clock_behind).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    fn monotonic(&self) -> Duration {
        let state = self.inner.state();
        state.elapsed + state.suspended
    }

    fn fill_random(&self, buffer: &mut [u8]) {
        let mut state = self.inner.state();
        for part in buffer.chunks_mut(8) {
            part.copy_from_slice(&state.draw().to_le_bytes()[..part.len()]);
        }
    }

    fn parallelism(&self) -> NonZeroUsize {
        NonZeroUsize::MIN.saturating_add(1)
    }

    async fn connect(&self, _: &str, port: u16) -> io::Result<Box<dyn Connection>> {
        let (ours, theirs) = pipe();
        // Releases the lock first, because waking the acceptor takes it.
        let listener = self.inner.state().listeners.get(&port).cloned();
        let listener = listener.ok_or(io::ErrorKind::ConnectionRefused)?;
        listener.unbounded_send(theirs).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(Box::new(ours))
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Removes and returns the step that the seed chooses.
    fn next(&self) -> Option<Ready> {
        let mut state = self.state();
        if state.ready.is_empty() {
            return None;
        }
        let choices = state.ready.len() as u64;
        let choice = state.draw() % choices;
        state.steps += 1;
        let mixed = state.trace ^ (choice << 32 | choices);
        state.trace = mixed.wrapping_mul(0x100_0000_01b3).rotate_left(17);
        Some(state.ready.swap_remove(usize::try_from(choice).unwrap_or(0)))
    }

    /// Advances time to the next timer; returns `false` if there is none.
    fn advance(&self) -> bool {
        let mut state = self.state();
        let Some(((end, _), waker)) = state.timers.pop_first() else { return false };
        state.elapsed = state.elapsed.max(end);
        drop(state);
        waker.wake();
        true
    }
}

impl State {
    /// A step of splitmix64.
    fn draw(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Ready {
    fn run(self) {
        match self {
            Self::Job(job) => run_job(job),
            Self::Main => {}
            Self::Task(task) => task.poll(),
        }
    }
}

impl Task {
    fn poll(self: &Arc<Self>) {
        *lock(&self.queued) = false;
        let Some(mut future) = lock(&self.future).take() else { return };
        let waker = futures::task::waker(Arc::clone(self));
        let poll = || future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
        // A panicked task is over; the panic hook has reported it.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll)).unwrap_or(false) {
            *lock(&self.future) = Some(future);
        }
    }
}

impl ArcWake for Task {
    fn wake_by_ref(task: &Arc<Self>) {
        if !std::mem::replace(&mut *lock(&task.queued), true) {
            task.runtime.state().ready.push(Ready::Task(Arc::clone(task)));
        }
    }
}

impl ArcWake for MainWaker {
    fn wake_by_ref(main: &Arc<Self>) {
        if !std::mem::replace(&mut *lock(&main.queued), true) {
            main.runtime.state().ready.push(Ready::Main);
        }
    }
}

/// Waits for a moment of virtual time.
struct Sleep {
    end: Duration,
    runtime: Arc<Inner>,
    timer: Option<u64>,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let runtime = Arc::clone(&self.runtime);
        let mut state = runtime.state();
        if state.elapsed >= self.end {
            return Poll::Ready(());
        }
        let number = *self.timer.get_or_insert_with(|| {
            state.next_timer += 1;
            state.next_timer
        });
        state.timers.insert((self.end, number), context.waker().clone());
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        if let Some(number) = self.timer {
            self.runtime.state().timers.remove(&(self.end, number));
        }
    }
}

/// Locks a mutex, poisoned or not: no panic leaves this state half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
