//! How close a full verification comes to what it must pay for anyway.
//! Run with: `cargo bench --bench verify -- [--check]`
//!
//! A store in a directory holds an image in chunks of 4 MiB, half of which compress and half of which do not, and as much that was cut
//! by content. Every chunk is read, decompressed and digested: once in a plain loop on one core, with `std::fs`, `zstd` and `sha2`, and
//! once by a verification. Printed are the speeds, and the ratio of the time of the verification to that of the loop divided by
//! the number of cores, measured in turn in the same run. The target is 1.25; with `--check` it ends with 1 if that is missed.
//! `VERIFY_MIB` sets the size of the data (default 1024), `VERIFY_ROUNDS` how often (default 5, the best counts).

#![allow(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measuring program: it reads the clock and prints"
)]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use futures::io::AllowStdIo;
use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options, Scope};
use larder::verify::{self, Recording, VerifyOptions};
use sha2::Digest as _;

const TARGET: f64 = 1.25;
const CHUNK: usize = 4 << 20;
const HEADER: usize = 12;
const ZSTD: [u8; 8] = [0x31, 0xb9, 0x58, 0x42, 0x6f, 0xb6, 0xa3, 0x7f];

fn main() -> ExitCode {
    let has = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    if has("--test") {
        return ExitCode::SUCCESS;
    }
    let (mib, rounds) = (number("VERIFY_MIB", 1024), number("VERIFY_ROUNDS", 5).max(1));
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let directory = tempfile::tempdir().expect("a scratch directory");
    let store = make_store(&directory.path().join("store"), mib);
    let chunks = chunk_files(&directory.path().join("store/.chunks"));
    let mut best: Option<Round> = None;
    for _ in 0..rounds {
        let primitives = Primitives::measure(&chunks);
        let before = processor_time();
        let (verified, report) = time(|| {
            block_on(async {
                let options = VerifyOptions::default().recording(Recording::Off);
                let mut plan = verify::plan(&store, &Scope::Store, options).await.expect("a plan");
                plan.execute().await.expect("a report")
            })
        });
        assert!(report.is_clean() && report.chunks.digest == chunks.len() as u64, "{report:?}");
        let worked = processor_time().saturating_sub(before);
        let round = Round { primitives, verified, worked };
        best = Some(match best {
            None => round,
            Some(best) => best.better(round),
        });
    }
    let best = best.expect("one round at least");
    let speed = |time: Duration| mib as f64 * 1.048_576 / time.as_secs_f64();
    let Primitives { digest, decode, plaintext, read } = best.primitives;
    println!("{} chunks, {} MiB of contents, {cores} cores", chunks.len(), plaintext >> 20);
    println!("  read {:.0}, decompress {:.0}, sha256 {:.0} MB/s", speed(read), speed(decode), speed(digest));
    let limit = (read + decode + digest).as_secs_f64() / cores as f64;
    let ratio = best.verified.as_secs_f64() / limit;
    println!(
        "  verified in {:.3} s, {:.0} MB/s: {ratio:.2} of the limit, target {TARGET}",
        best.verified.as_secs_f64(),
        speed(best.verified)
    );
    let work = best.worked.as_secs_f64() / (read + decode + digest).as_secs_f64();
    println!("  {work:.2} times the work of the loop, on all processors together");
    if has("--check") && ratio > TARGET { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

struct Round {
    primitives: Primitives,
    verified: Duration,
    /// The time of all processors together.
    worked: Duration,
}

/// What it takes on one core.
struct Primitives {
    decode: Duration,
    digest: Duration,
    plaintext: usize,
    read: Duration,
}

impl Round {
    fn better(self, other: Self) -> Self {
        let (a, b) = (self.primitives, other.primitives);
        let primitives = Primitives {
            decode: a.decode.min(b.decode),
            digest: a.digest.min(b.digest),
            plaintext: a.plaintext,
            read: a.read.min(b.read),
        };
        Self {
            primitives,
            verified: self.verified.min(other.verified),
            worked: self.worked.min(other.worked),
        }
    }
}

impl Primitives {
    fn measure(chunks: &[PathBuf]) -> Self {
        let mut sums =
            Self { decode: Duration::ZERO, digest: Duration::ZERO, plaintext: 0, read: Duration::ZERO };
        let mut stored = vec![0; 2 * CHUNK + 1024];
        let mut plaintext = Vec::with_capacity(17 << 20);
        let mut decompressor = zstd::bulk::Decompressor::new().expect("a decompressor");
        for path in chunks {
            let (took, length) = time(|| {
                let mut file = File::open(path).expect("it was stored");
                let length = usize::try_from(file.metadata().expect("its length").len()).expect("a chunk");
                if stored.len() < length {
                    stored.resize(length, 0);
                }
                file.read_exact(&mut stored[..length]).expect("readable");
                length
            });
            sums.read += took;
            let stored = &stored[..length];
            let (took, ()) = time(|| {
                plaintext.clear();
                if stored[..8] == ZSTD {
                    decompressor
                        .decompress_to_buffer(&stored[HEADER..], &mut plaintext)
                        .expect("what was compressed");
                }
            });
            sums.decode += took;
            let contents = if stored[..8] == ZSTD { &plaintext[..] } else { &stored[HEADER..] };
            sums.plaintext += contents.len();
            let (took, _) = time(|| black_box(sha2::Sha256::digest(contents)));
            sums.digest += took;
        }
        sums
    }
}

fn make_store(path: &Path, mib: usize) -> Datastore {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    block_on(async {
        let options =
            FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None);
        let backend = FsBackend::create(runtime, path, options).await.expect("a store");
        let backend: Arc<dyn Backend> = Arc::new(backend);
        let store = Datastore::create(backend, Options::default()).await.expect("a store");
        let backup = store.backup(&"host/verify".parse().expect("a name")).begin().await.expect("a backup");
        let half = (mib as u64) << 19;
        backup
            .image("disk.img", AllowStdIo::new(std::io::Read::take(Data::new(1), half)), half)
            .await
            .expect("an image");
        let stream = AllowStdIo::new(std::io::Read::take(Data::new(2), half));
        backup.stream("root.tar", stream).await.expect("a stream");
        backup.finish().await.expect("a snapshot");
        store
    })
}

/// Data without an end: 4 MiB that compress to about a third, as texts and tables do, and 4 MiB that do not, in turn.
struct Data {
    at: usize,
    block: Vec<u8>,
    blocks: usize,
    state: u64,
}

impl Data {
    fn new(seed: u64) -> Self {
        Self { at: 0, block: Vec::new(), blocks: 0, state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) }
    }

    fn fill(&mut self) {
        self.block.clear();
        while self.block.len() < CHUNK {
            self.state ^= self.state << 13;
            self.state ^= self.state >> 7;
            self.state ^= self.state << 17;
            if self.blocks.is_multiple_of(2) {
                self.block.extend(format!("{:x} ", (self.state % 4096) * (self.state >> 60)).bytes());
            } else {
                self.block.extend(self.state.to_le_bytes());
            }
        }
        self.block.truncate(CHUNK);
        (self.at, self.blocks) = (0, self.blocks + 1);
    }
}

impl std::io::Read for Data {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.block.len() {
            self.fill();
        }
        let length = buffer.len().min(self.block.len() - self.at);
        buffer[..length].copy_from_slice(&self.block[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

fn chunk_files(chunks: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for prefix in fs::read_dir(chunks).expect("there are chunks") {
        for file in fs::read_dir(prefix.expect("readable").path()).expect("readable") {
            found.push(file.expect("readable").path());
        }
    }
    found
}

/// The time that this process has had of all processors, by the hundredth of a second.
fn processor_time() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    Duration::from_millis(
        10 * fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>(),
    )
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn time<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let done = work();
    (start.elapsed(), done)
}
