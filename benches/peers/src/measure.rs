//! One measurement, in a process of its own: nothing but the client is in its CPU time and in its memory.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::task::JoinSet;

use crate::peers::{Client, Outcome, Peer};

/// What is done again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Operation {
    Put,
    Get,
    SmallGet,
}

impl Operation {
    pub(crate) const ALL: [Self; 3] = [Self::Put, Self::Get, Self::SmallGet];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Put => "put",
            Self::Get => "get",
            Self::SmallGet => "small-get",
        }
    }

    pub(crate) fn object_bytes(self) -> usize {
        match self {
            Self::Put | Self::Get => 4 << 20,
            Self::SmallGet => 1 << 10,
        }
    }
}

/// What is to be measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    /// Where the root certificate of the server is.
    pub(crate) ca: Option<String>,
    pub(crate) endpoint: String,
    pub(crate) peer: Peer,
    pub(crate) task: Task,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Task {
    /// Operations one after the other in each of so many tasks, for at least so long.
    Repeat { operation: Operation, in_flight: usize, seconds: f64 },
    /// SHA-256 of such bodies as are put, on one thread, with the crate that larder has.
    Hash { seconds: f64 },
    /// So many puts of so many bytes, all at once.
    Upload { count: usize, bytes: usize },
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// Of this process, user and system, in seconds.
    pub(crate) cpu: f64,
    pub(crate) operations: u64,
    /// By how many bytes the process grew at most, the bodies that it sent included.
    pub(crate) peak_bytes: u64,
    pub(crate) seconds: f64,
}

pub(crate) fn run(order: &Order) -> Outcome<Measured> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let ca = order.ca.as_ref().map(std::fs::read).transpose()?;
        let client = Client::new(order.peer, &order.endpoint, ca.as_deref())?;
        match order.task {
            Task::Repeat { operation, in_flight, seconds } => {
                repeat(&client, operation, in_flight, Duration::from_secs_f64(seconds)).await
            }
            Task::Hash { seconds } => Ok(hash(Duration::from_secs_f64(seconds))),
            Task::Upload { count, bytes } => upload(&client, count, bytes).await,
        }
    })
}

async fn repeat(
    client: &Client,
    operation: Operation,
    in_flight: usize,
    time: Duration,
) -> Outcome<Measured> {
    let length = operation.object_bytes();
    let bodies: Vec<_> = (0..in_flight).map(|number| (key(number), body(number, length))).collect();
    // Connections are opened and buffers touched before the clock runs.
    all(&bodies, |key, body| {
        let client = client.clone();
        async move {
            client.put(&key, body.clone()).await?;
            if operation == Operation::Put {
                return Ok(1);
            }
            let found = client.get(&key, length).await?;
            if found == body { Ok(1) } else { Err("another object was read than was stored".into()) }
        }
    })
    .await?;
    let start = Start::now();
    let end = start.time + time;
    let operations = all(&bodies, |key, body| {
        let client = client.clone();
        async move {
            let mut done = 0;
            while done == 0 || Instant::now() < end {
                match operation {
                    Operation::Put => client.put(&key, body.clone()).await?,
                    Operation::Get | Operation::SmallGet => drop(client.get(&key, length).await?),
                }
                done += 1;
            }
            Ok(done)
        }
    })
    .await?;
    Ok(start.measured(operations))
}

fn hash(time: Duration) -> Measured {
    // As many as do not fit into the cache of a core.
    let bodies: Vec<_> = (0..16).map(|number| body(number, Operation::Put.object_bytes())).collect();
    let start = Start::now();
    let mut operations = 0;
    while start.time.elapsed() < time {
        for body in &bodies {
            black_box(Sha256::digest(black_box(body)));
            operations += 1;
        }
    }
    start.measured(operations)
}

async fn upload(client: &Client, count: usize, length: usize) -> Outcome<Measured> {
    client.put("warm", Bytes::from_static(b"up")).await?;
    let before = memory("VmRSS:")?;
    let bodies: Vec<_> = (0..count).map(|number| (key(number), body(number, length))).collect();
    let start = Start::now();
    let operations = all(&bodies, |key, body| {
        let client = client.clone();
        async move { client.put(&key, body).await.map(|()| 1) }
    })
    .await?;
    let peak_bytes = memory("VmHWM:")?.saturating_sub(before);
    Ok(Measured { peak_bytes, ..start.measured(operations) })
}

/// Runs a task for each body, all at once. The sum of what they return.
async fn all<F>(bodies: &[(Arc<str>, Bytes)], mut make: impl FnMut(Arc<str>, Bytes) -> F) -> Outcome<u64>
where
    F: Future<Output = Outcome<u64>> + Send + 'static,
{
    let mut tasks = JoinSet::new();
    for (key, body) in bodies {
        tasks.spawn(make(Arc::clone(key), body.clone()));
    }
    let mut sum = 0;
    while let Some(done) = tasks.join_next().await {
        sum += done??;
    }
    Ok(sum)
}

struct Start {
    cpu: f64,
    time: Instant,
}

impl Start {
    fn now() -> Self {
        Self { cpu: cpu_seconds(), time: Instant::now() }
    }

    fn measured(&self, operations: u64) -> Measured {
        let (cpu, seconds) = (cpu_seconds() - self.cpu, self.time.elapsed().as_secs_f64());
        Measured { cpu, operations, peak_bytes: 0, seconds }
    }
}

/// What all threads of this process have used.
fn cpu_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// A line of `/proc/self/status`, in bytes.
fn memory(field: &str) -> Outcome<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).ok_or("no such line")?;
    let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib << 10)
}

fn key(number: usize) -> Arc<str> {
    format!("objects/{number:04}").into()
}

/// Bytes that look random and are the same in every run.
fn body(number: usize, length: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ (number as u64 + 1).wrapping_mul(0xd134_2543_de82_ef95);
    let mut bytes = Vec::with_capacity(length.next_multiple_of(8));
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}
