//! A bucket behind the S3 client, and processes that can be stopped and killed.

use std::fmt;
use std::io;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::future::{AbortHandle, BoxFuture, abortable};

use crate::backend::{Backend, S3Backend};
use crate::error::Result;
use crate::http::{HttpTransport, Progress, Request, Response, TransportError, TransportErrorKind};
use crate::rt::{BlockingJob, Connection, Runtime, SimRuntime};
use crate::s3::{Credentials, S3Capabilities, S3Client, S3Options, StaticCredentials, Support};
use crate::simulation::bucket::{SimBucket, Weather, Wire};
use crate::simulation::dice::Dice;
use crate::simulation::place::Place;

/// The most by which a request is late that got no answer. A signature is valid for 15 minutes, also on a server whose clock is as wrong.
const MAX_LATE: Duration = Duration::from_mins(25);

/// A place behind the S3 client and the lease.
pub(crate) struct Server {
    bucket: Arc<SimBucket>,
    dice: Mutex<Dice>,
    lives: Mutex<Vec<Arc<Life>>>,
    offers: S3Capabilities,
    seed: u64,
    sim: SimRuntime,
    weather: Weather,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let S3Capabilities { copy, multi_delete, .. } = self.offers;
        write!(f, "Server: {:?}, copies: {copy}, deletions of many: {multi_delete}", self.weather)
    }
}

impl Server {
    pub(crate) fn new(sim: &SimRuntime, seed: u64) -> Self {
        let mut dice = Dice::new(seed ^ 0x5e12_fe12);
        let faults = [0, 5, 30][dice.below(3) as usize];
        let lag = Duration::from_secs(if dice.one_in(3) { dice.below(900) } else { 0 });
        let mut offers = S3Capabilities::default();
        for support in [
            &mut offers.checks_bodies,
            &mut offers.conditional_put,
            &mut offers.create_only_put,
            &mut offers.listing,
            &mut offers.ranges,
        ] {
            *support = Support::Yes;
        }
        for support in [&mut offers.copy, &mut offers.multi_delete] {
            *support = if dice.one_in(4) { Support::Refused } else { Support::Yes };
        }
        for setting in [&mut offers.expires_objects, &mut offers.keeps_versions, &mut offers.locks_objects] {
            *setting = Some(false);
        }
        offers.conditional_delete = Support::Refused;
        Self {
            bucket: SimBucket::new(sim),
            dice: Mutex::new(dice),
            lives: Mutex::default(),
            offers,
            seed,
            sim: sim.clone(),
            weather: Weather { faults, lag, late: MAX_LATE },
        }
    }
}

#[async_trait]
impl Place for Server {
    async fn open(&self, instance: u64) -> Result<Arc<dyn Backend>> {
        let life = Arc::new(Life {
            is_over: AtomicBool::new(false),
            sim: self.sim.clone(),
            stopped_until: Mutex::default(),
            tasks: Mutex::default(),
        });
        self.lives.lock().unwrap().push(Arc::clone(&life));
        let uuid = format!("{:016x}{instance:016x}", self.seed);
        let wire = Wire { bucket: Arc::clone(&self.bucket), uuid };
        let transport = Arc::new(OfLife { life: Arc::clone(&life), wire });
        let runtime: Arc<dyn Runtime> = life;
        let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
        let options = S3Options::new("https://s3.test", "bucket").credentials(credentials);
        let client = S3Client::new(Arc::clone(&runtime), transport, options)?;
        Ok(Arc::new(S3Backend::new(runtime, client, "store", self.offers.clone(), &[])?))
    }

    fn crash(&self, _: u64) {
        for life in self.lives.lock().unwrap().drain(..) {
            life.kill();
        }
    }

    fn hand_over(&self) -> bool {
        let mut dice = self.dice.lock().unwrap();
        if dice.one_in(2) {
            // Others may have the lease when it continues.
            let time = Duration::from_secs(dice.below(400));
            for life in &*self.lives.lock().unwrap() {
                life.stop(time);
            }
        }
        true
    }

    fn max_lag(&self) -> Duration {
        self.weather.lag
    }

    fn max_late(&self) -> Duration {
        MAX_LATE
    }

    fn own_faults(&self, on: bool) -> bool {
        let faults = if on { self.weather.faults } else { 0 };
        self.bucket.set_weather(Weather { faults, ..self.weather });
        true
    }
}

/// The threads of one process.
#[derive(Debug)]
struct Life {
    is_over: AtomicBool,
    sim: SimRuntime,
    stopped_until: Mutex<Duration>,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl Life {
    fn kill(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.tasks.lock().unwrap().drain(..).for_each(|task| task.abort());
    }

    /// Stops all threads for a while, as a debugger does. Clocks go on.
    fn stop(&self, time: Duration) {
        *self.stopped_until.lock().unwrap() = self.sim.monotonic() + time;
    }

    /// Waits until the threads run.
    async fn resume(&self) {
        loop {
            let until = *self.stopped_until.lock().unwrap();
            match until.checked_sub(self.sim.monotonic()) {
                None | Some(Duration::ZERO) => return,
                Some(left) => self.sim.sleep(left).await,
            }
        }
    }
}

#[async_trait]
impl Runtime for Life {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        if self.is_over.load(Ordering::SeqCst) {
            return;
        }
        let (task, handle) = abortable(task);
        let mut tasks = self.tasks.lock().unwrap();
        tasks.retain(|task| !task.is_aborted());
        tasks.push(handle);
        self.sim.spawn(Box::pin(async move { task.await.unwrap_or_default() }));
    }

    fn spawn_blocking(&self, job: BlockingJob) {
        self.sim.spawn_blocking(job);
    }

    async fn sleep(&self, duration: Duration) {
        self.sim.sleep(duration).await;
        self.resume().await;
    }

    fn now(&self) -> SystemTime {
        self.sim.now()
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

/// The way of a process to its bucket.
#[derive(Debug)]
struct OfLife {
    life: Arc<Life>,
    wire: Wire,
}

#[async_trait]
impl HttpTransport for OfLife {
    async fn exchange(&self, request: &Request) -> std::result::Result<Response, TransportError> {
        self.life.resume().await;
        if self.life.is_over.load(Ordering::SeqCst) {
            let (kind, progress) = (TransportErrorKind::Closed, Progress::NotSent);
            return Err(TransportError::new(kind, progress, "send the request"));
        }
        let answer = self.wire.exchange(request).await;
        self.life.resume().await;
        answer
    }
}
