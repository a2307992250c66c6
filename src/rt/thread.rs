//! Interim.
use crate::rt::*;
use async_trait::async_trait;
use futures::future::BoxFuture;
use std::io;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant, SystemTime};
#[derive(Debug)]
pub struct ThreadRuntime {
    q: mpsc::Sender<BlockingJob>,
    start: Instant,
}
impl ThreadRuntime {
    pub fn new() -> Self {
        let (q, r) = mpsc::channel::<BlockingJob>();
        let r = Arc::new(Mutex::new(r));
        for _ in 0..4 {
            let r = Arc::clone(&r);
            std::thread::spawn(move || {
                loop {
                    let j = r.lock().unwrap().recv();
                    match j {
                        Ok(j) => {
                            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(j));
                        }
                        Err(_) => break,
                    }
                }
            });
        }
        Self { q, start: Instant::now() }
    }
}
#[async_trait]
impl Runtime for ThreadRuntime {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        std::thread::spawn(move || futures::executor::block_on(task));
    }
    fn spawn_blocking(&self, job: BlockingJob) {
        let _ = self.q.send(job);
    }
    async fn sleep(&self, d: Duration) {
        let (s, r) = oneshot::channel();
        std::thread::spawn(move || {
            std::thread::sleep(d);
            let _ = s.send(());
        });
        let _ = r.await;
    }
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
    fn fill_random(&self, b: &mut [u8]) {
        getrandom::fill(b).unwrap();
    }
    fn parallelism(&self) -> NonZeroUsize {
        std::thread::available_parallelism().unwrap()
    }
    async fn connect(&self, _: &str, _: u16) -> io::Result<Box<dyn Connection>> {
        Err(io::ErrorKind::Unsupported.into())
    }
}
