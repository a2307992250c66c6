//! A runtime of plain threads, for programs without another one.
//!
//! | threads | purpose |
//! |---|---|
//! | as many as processors and two more, at least four | blocking jobs; each is started when a job finds no idle thread |
//! | one | spawned tasks |
//! | one | timers |
//! | two for each connection | reading and writing |
//! | two for each connection attempt, or more for a name with several addresses | name lookup, connecting |
//!
//! They end when the last handle to the runtime is dropped, which drops running tasks too. The thread of an abandoned
//! connection attempt ends after 30 s.

#![expect(clippy::disallowed_methods, reason = "this is where threads and clocks come from")]

mod connection;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::num::NonZeroUsize;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::Context;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use futures::channel::oneshot;
use futures::future::BoxFuture;
use futures::task::ArcWake;

use crate::rt::eyeballs::connect_first;
use crate::rt::{BlockingJob, Connection, Runtime, clock, fill_random, pool_size, processors, run_job};

/// Time for which an abandoned connection attempt may continue.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// A [`Runtime`] of plain threads.
#[derive(Debug)]
pub struct ThreadRuntime {
    pool: Arc<Pool>,
    tasks: OnceLock<Arc<Tasks>>,
    timers: OnceLock<Arc<Timers>>,
}

impl ThreadRuntime {
    /// A runtime with as many pool threads as processors and two more, at least four.
    #[must_use]
    pub fn new() -> Self {
        Self::with_threads(pool_size())
    }

    /// A runtime with this number of pool threads.
    #[must_use]
    pub fn with_threads(threads: NonZeroUsize) -> Self {
        Self {
            pool: Arc::new(Pool { most: threads.get(), state: Mutex::default(), wake: Condvar::new() }),
            tasks: OnceLock::new(),
            timers: OnceLock::new(),
        }
    }

    fn tasks(&self) -> &Arc<Tasks> {
        self.tasks.get_or_init(|| {
            let tasks: Arc<Tasks> = Arc::default();
            let running = Arc::clone(&tasks);
            start_thread(move || running.run());
            tasks
        })
    }

    fn timers(&self) -> &Arc<Timers> {
        self.timers.get_or_init(|| {
            let timers: Arc<Timers> = Arc::default();
            let running = Arc::clone(&timers);
            start_thread(move || running.run());
            timers
        })
    }
}

impl Default for ThreadRuntime {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for ThreadRuntime {
    fn drop(&mut self) {
        // Signals the threads without joining them: this may be one of them.
        self.pool.stop();
        if let Some(tasks) = self.tasks.get() {
            tasks.stop();
        }
        if let Some(timers) = self.timers.get() {
            timers.stop();
        }
    }
}

#[async_trait]
impl Runtime for ThreadRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        let tasks = self.tasks();
        let task = Arc::new(Task { future: Mutex::new(Some(task)), tasks: Arc::clone(tasks) });
        tasks.push(task);
    }

    fn spawn_blocking(&self, job: BlockingJob) {
        self.pool.push(job);
    }

    async fn sleep(&self, duration: Duration) {
        let (sender, receiver) = oneshot::channel();
        // A time beyond the range of the clock never comes.
        let Some(end) = Instant::now().checked_add(duration) else { return std::future::pending().await };
        let timers = self.timers();
        let _sleeping = Sleeping { id: timers.push(end, sender), timers };
        // The runtime drops the sender when it ends, and the wait ends too.
        let _ = receiver.await;
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
        let addresses = on_thread(move || Ok((host.as_str(), port).to_socket_addrs()?.collect::<Vec<_>>()));
        let connect = |address| on_thread(move || TcpStream::connect_timeout(&address, CONNECT_LIMIT));
        let stream = connect_first(addresses.await?, connect, |time| self.sleep(time)).await?;
        Ok(Box::new(connection::start(stream)?))
    }
}

/// Runs a network job on a thread of its own, so that it delays no other job. Dropping the future does not stop the job.
async fn on_thread<T: Send + 'static>(job: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().spawn(move || {
        // The caller may have gone.
        let _ = sender.send(job());
    })?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the thread that connects has ended")))
}

/// Starts a thread that the runtime cannot do without, as soon as the system allows one.
fn start_thread(run: impl FnOnce() + Clone + Send + 'static) {
    while thread::Builder::new().spawn(run.clone()).is_err() {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Threads that run blocking jobs.
struct Pool {
    most: usize,
    state: Mutex<PoolState>,
    wake: Condvar,
}

#[derive(Default)]
struct PoolState {
    idle: usize,
    queue: VecDeque<BlockingJob>,
    stopped: bool,
    threads: usize,
}

impl Pool {
    fn push(self: &Arc<Self>, job: BlockingJob) {
        let mut state = lock(&self.state);
        state.queue.push_back(job);
        if state.idle >= state.queue.len() {
            drop(state);
            return self.wake.notify_one();
        }
        if state.threads < self.most {
            state.threads += 1;
            drop(state);
            let pool = Arc::clone(self);
            if thread::Builder::new().spawn(move || pool.run()).is_err() {
                self.lacks_thread();
            }
        }
    }

    /// The system refused a thread for the pool: the existing ones do the work. Without any, the jobs are dropped, which
    /// notifies their callers.
    fn lacks_thread(&self) {
        let mut state = lock(&self.state);
        state.threads -= 1;
        let lost = if state.threads == 0 { std::mem::take(&mut state.queue) } else { VecDeque::new() };
        drop(state);
        drop(lost);
    }

    fn run(&self) {
        let mut state = lock(&self.state);
        loop {
            if let Some(job) = state.queue.pop_front() {
                drop(state);
                run_job(job);
                state = lock(&self.state);
            } else if state.stopped {
                return;
            } else {
                state.idle += 1;
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
            }
        }
    }

    fn stop(&self) {
        lock(&self.state).stopped = true;
        self.wake.notify_all();
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads at most)", self.most)
    }
}

/// Ready tasks, and the thread that polls them.
#[derive(Default)]
struct Tasks {
    state: Mutex<TasksState>,
    wake: Condvar,
}

#[derive(Default)]
struct TasksState {
    ready: VecDeque<Arc<Task>>,
    stopped: bool,
}

struct Task {
    future: Mutex<Option<BoxFuture<'static, ()>>>,
    tasks: Arc<Tasks>,
}

impl Tasks {
    fn push(&self, task: Arc<Task>) {
        let mut state = lock(&self.state);
        if !state.stopped {
            state.ready.push_back(task);
            drop(state);
            self.wake.notify_one();
        }
    }

    fn run(&self) {
        loop {
            let mut state = lock(&self.state);
            let task = loop {
                if state.stopped {
                    return;
                }
                match state.ready.pop_front() {
                    Some(task) => break task,
                    None => state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
                }
            };
            drop(state);
            task.poll();
        }
    }

    fn stop(&self) {
        let mut state = lock(&self.state);
        state.stopped = true;
        let dropped = std::mem::take(&mut state.ready);
        drop(state);
        self.wake.notify_all();
        drop(dropped);
    }
}

impl Task {
    fn poll(self: &Arc<Self>) {
        let mut slot = lock(&self.future);
        let Some(mut future) = slot.take() else { return };
        let waker = futures::task::waker(Arc::clone(self));
        let poll = || future.as_mut().poll(&mut Context::from_waker(&waker)).is_pending();
        // A panicked task is over; the panic hook has reported it.
        let pending = std::panic::catch_unwind(std::panic::AssertUnwindSafe(poll)).unwrap_or(false);
        if pending {
            *slot = Some(future);
        }
    }
}

impl ArcWake for Task {
    fn wake_by_ref(task: &Arc<Self>) {
        task.tasks.push(Arc::clone(task));
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tasks({} ready)", lock(&self.state).ready.len())
    }
}

/// Timers in order of expiry, and the thread that waits for them.
#[derive(Debug, Default)]
struct Timers {
    state: Mutex<TimersState>,
    wake: Condvar,
}

#[derive(Debug, Default)]
struct TimersState {
    next: u64,
    /// Expiry, and a number that makes the key unique.
    sleepers: BTreeMap<TimerId, oneshot::Sender<()>>,
    stopped: bool,
}

type TimerId = (Instant, u64);

/// A sleeping future, until it is dropped.
struct Sleeping<'a> {
    id: TimerId,
    timers: &'a Timers,
}

impl Drop for Sleeping<'_> {
    fn drop(&mut self) {
        lock(&self.timers.state).sleepers.remove(&self.id);
    }
}

impl Timers {
    fn push(&self, end: Instant, sleeper: oneshot::Sender<()>) -> TimerId {
        let mut state = lock(&self.state);
        let id = (end, state.next);
        state.next += 1;
        state.sleepers.insert(id, sleeper);
        let is_first = state.sleepers.first_key_value().is_some_and(|(first, _)| *first == id);
        drop(state);
        if is_first {
            self.wake.notify_one();
        }
        id
    }

    fn run(&self) {
        let mut state = lock(&self.state);
        while !state.stopped {
            let now = Instant::now();
            let Some(first) = state.sleepers.first_entry() else {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let end = first.key().0;
            if end > now {
                let waited = self.wake.wait_timeout(state, end - now);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            } else {
                let sleeper = first.remove();
                // Without the lock, because a woken task may run at once. The sleeper may have gone.
                drop(state);
                let _ = sleeper.send(());
                state = lock(&self.state);
            }
        }
        let sleepers = std::mem::take(&mut state.sleepers);
        drop(state);
        drop(sleepers);
    }

    fn stop(&self) {
        lock(&self.state).stopped = true;
        self.wake.notify_all();
    }
}

/// Locks a mutex, poisoned or not: no panic leaves this state half-changed.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures::executor::block_on;
    use futures::future::FutureExt as _;
    use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn a_dropped_sleep_leaves_no_timer() {
        let runtime = ThreadRuntime::new();
        for _ in 0..100 {
            assert!(runtime.sleep(Duration::from_hours(1)).now_or_never().is_none());
        }
        assert!(lock(&runtime.timers().state).sleepers.is_empty());
        block_on(runtime.sleep(Duration::from_millis(1)));
        assert!(lock(&runtime.timers().state).sleepers.is_empty());
    }

    /// A waker that polls the future at once, as an executor that runs tasks on waking may do.
    struct Eager<T> {
        again: Mutex<Option<BoxFuture<'static, T>>>,
        done: std::sync::mpsc::Sender<T>,
    }

    impl<T> Eager<T> {
        fn run(future: BoxFuture<'static, T>) -> T
        where
            T: Send + 'static,
        {
            let (done, end) = std::sync::mpsc::channel();
            let task = Arc::new(Self { again: Mutex::new(Some(future)), done });
            Self::wake_by_ref(&task);
            end.recv_timeout(Duration::from_secs(20)).unwrap()
        }
    }

    impl<T: Send + 'static> ArcWake for Eager<T> {
        fn wake_by_ref(task: &Arc<Self>) {
            let waker = futures::task::waker_ref(task);
            let mut again = lock(&task.again);
            let Some(future) = again.as_mut() else { return };
            if let std::task::Poll::Ready(value) = future.poll_unpin(&mut Context::from_waker(&waker)) {
                *again = None;
                task.done.send(value).unwrap();
            }
        }
    }

    #[test]
    fn a_woken_sleeper_can_continue_immediately() {
        let runtime = Arc::new(ThreadRuntime::new());
        let sleeper = Arc::clone(&runtime);
        Eager::run(Box::pin(async move {
            sleeper.sleep(Duration::from_millis(5)).await;
            sleeper.sleep(Duration::from_millis(5)).await;
        }));
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut connection = block_on(runtime.connect("127.0.0.1", port)).unwrap();
        let echo = runtime.clone();
        echo.spawn_blocking(Box::new(move || {
            let (stream, _) = listener.accept().unwrap();
            std::io::copy(&mut &stream, &mut &stream).unwrap();
        }));
        let returned = Eager::run(Box::pin(async move {
            for round in 0..100_u8 {
                connection.write_all(&vec![round; 100_000]).await.unwrap();
                connection.flush().await.unwrap();
                let mut back = vec![0; 100_000];
                connection.read_exact(&mut back).await.unwrap();
                assert!(back.iter().all(|byte| *byte == round));
            }
            100
        }));
        assert_eq!(returned, 100);
    }

    #[test]
    fn jobs_without_a_thread_are_dropped() {
        let runtime = ThreadRuntime::new();
        let (sender, receiver) = oneshot::channel::<()>();
        {
            let mut state = lock(&runtime.pool.state);
            state.threads = 1;
            state.queue.push_back(Box::new(move || drop(sender)));
        }
        runtime.pool.lacks_thread();
        assert!(receiver.now_or_never().is_some_and(|ended| ended.is_err()));
    }

    /// Proves H145.
    #[test]
    fn a_name_with_two_addresses_is_reached_through_the_answering_one() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        // In most systems the name resolves to ::1 too, where nothing listens.
        assert!(block_on(ThreadRuntime::new().connect("localhost", port)).is_ok());
    }
}
