//! How close a backup and a restore come to what they must pay for anyway.
//! Run with: cargo bench --bench limits
//!
//! Each stage is measured by itself, on one core, with the crate that is best at it: reading, cutting, SHA-256, zstd, AES-256-GCM,
//! CRC-32, writing. The limit is the larger of the slowest stage that cannot run in parallel and the sum of all stages divided by the
//! number of cores. Printed are the time of the whole pipeline, its speed, and the ratio of the two, measured in turn in the
//! same run, without encryption and with it; and the ratio of the encrypted pipeline to the plain one. `LIMITS_MIB` sets the size of the data (default 512), `LIMITS_ROUNDS` how often (default 3, the best counts);
//! `LIMITS_ONLY` leaves out data and archives that it does not contain, as in `random disk.img`.

#![allow(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measuring program: it reads the clock and prints"
)]

use std::fs::{self, File};
use std::hint::black_box;
use std::io::{Read as _, Seek as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aes_gcm::aead::AeadInOut as _;
use aes_gcm::aead::consts::U16;
use aes_gcm::aes::Aes256;
use aes_gcm::{AesGcm, KeyInit as _};
use futures::executor::block_on;
use futures::io::AllowStdIo;
use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::crypt::EncryptionKey;
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, FileTarget, Options, SnapshotReader};
use sha2::Digest as _;

const CHUNK: usize = 4 << 20;
const KEY: [u8; 32] = [7; 32];

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let mib = number("LIMITS_MIB", 512);
    let rounds = number("LIMITS_ROUNDS", 3);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let directory = tempfile::tempdir().expect("a scratch directory");
    let only =
        std::env::var("LIMITS_ONLY").unwrap_or_else(|_| "compressible random data.bin disk.img".into());
    for kind in ["compressible", "random"].into_iter().filter(|kind| only.contains(kind)) {
        let path = directory.path().join(kind);
        make_data(&path, mib, kind);
        println!("\n{kind} data, {mib} MiB, {cores} cores");
        for archive in ["data.bin", "disk.img"].into_iter().filter(|archive| only.contains(archive)) {
            let best = (0..rounds).map(|_| Round::run(&path, archive, directory.path()));
            let best = best.reduce(|one, other| one.best(&other)).expect("one round at least");
            best.print(archive, mib, cores);
        }
        fs::remove_file(path).expect("the data is there");
    }
}

/// The times of one round.
struct Round {
    encrypted: Times,
    plain: Times,
    stages: Stages,
}

/// The times of the whole pipeline.
struct Times {
    again: Duration,
    new: Duration,
    restored: Duration,
}

struct Stages {
    crc: Duration,
    crc_read: Duration,
    cut: Duration,
    decompress: Duration,
    digest: Duration,
    compress: Duration,
    load: Duration,
    open: Duration,
    read: Duration,
    seal: Duration,
    write: Duration,
    write_whole: Duration,
}

impl Round {
    fn run(source: &Path, archive: &str, scratch: &Path) -> Self {
        let stages = Stages::measure(source, archive, scratch);
        let plain = Times::measure(source, archive, scratch, None);
        let encrypted = Times::measure(source, archive, scratch, Some(&EncryptionKey::from_bytes(&KEY)));
        Self { encrypted, plain, stages }
    }

    fn best(&self, other: &Self) -> Self {
        Self {
            encrypted: self.encrypted.best(&other.encrypted),
            plain: self.plain.best(&other.plain),
            stages: self.stages.best(&other.stages),
        }
    }

    fn print(&self, archive: &str, mib: usize, cores: usize) {
        let speed = |time: &Duration| mib as f64 * 1.048_576 / time.as_secs_f64();
        self.stages.print(archive, speed);
        let line = |what: &str, time: Duration, stages: &[Duration], serial: &[Duration]| {
            let sum: Duration = stages.iter().sum();
            let serial = serial.iter().max().copied().unwrap_or_default();
            let limit = serial.max(sum / u32::try_from(cores).unwrap_or(1));
            let ratio = time.as_secs_f64() / limit.as_secs_f64();
            println!(
                "  {archive:9} {what:19} {:7.3} s {:6.0} MB/s  ratio {ratio:.2}",
                time.as_secs_f64(),
                speed(&time)
            );
        };
        let Stages {
            crc, crc_read, cut, decompress, digest, compress, load, open, read, seal, write, ..
        } = self.stages;
        let write_whole = self.stages.write_whole;
        for (times, seal, open, kind) in
            [(&self.plain, None, None, ""), (&self.encrypted, Some(seal), Some(open), " encrypted")]
        {
            let new: Vec<_> = [read, cut, digest, compress, crc, write].into_iter().chain(seal).collect();
            let whole: Vec<_> =
                [load, crc_read, decompress, digest, write_whole].into_iter().chain(open).collect();
            line(&format!("new{kind}"), times.new, &new, &[read, cut]);
            line(&format!("unchanged{kind}"), times.again, &[read, cut, digest], &[read, cut]);
            line(&format!("restored{kind}"), times.restored, &whole, &[write_whole]);
        }
        let ratio = |encrypted: Duration, plain: Duration| encrypted.as_secs_f64() / plain.as_secs_f64();
        println!(
            "  {archive:9} encrypted to plain: new {:.2}, unchanged {:.2}, restored {:.2}",
            ratio(self.encrypted.new, self.plain.new),
            ratio(self.encrypted.again, self.plain.again),
            ratio(self.encrypted.restored, self.plain.restored),
        );
    }
}

impl Times {
    fn measure(source: &Path, archive: &str, scratch: &Path, key: Option<&EncryptionKey>) -> Self {
        let store = tempfile::tempdir_in(scratch).expect("a scratch directory");
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        block_on(async {
            let options = FsOptions::default()
                .prefix_directories(PrefixDirectories::OnDemand)
                .sync_level(SyncLevel::None);
            let backend = FsBackend::create(Arc::clone(&runtime), store.path().join("store"), options)
                .await
                .expect("a store");
            let backend: Arc<dyn Backend> = Arc::new(backend);
            let opened = Datastore::create(backend, Options::default()).await.expect("a store");
            let (new, first) = timed(back_up(&opened, source, archive, None, key)).await;
            let (again, second) = timed(back_up(&opened, source, archive, Some(&first), key)).await;
            let target = store.path().join("restored");
            let (restored, ()) = timed(async {
                let name = second.manifest().files()[0].name.to_string();
                let reader = second.archive(&name).await.expect("an archive");
                File::create(&target).expect("a file");
                let mut target =
                    Unflushed(FileTarget::open(Arc::clone(&runtime), &target).await.expect("a file"));
                reader.copy_to(&mut target).await.expect("a restore");
            })
            .await;
            assert!(same(source, &target));
            Self { again, new, restored }
        })
    }

    fn best(&self, other: &Self) -> Self {
        Self {
            again: self.again.min(other.again),
            new: self.new.min(other.new),
            restored: self.restored.min(other.restored),
        }
    }
}

impl Stages {
    fn best(&self, other: &Self) -> Self {
        Self {
            crc: self.crc.min(other.crc),
            crc_read: self.crc_read.min(other.crc_read),
            cut: self.cut.min(other.cut),
            decompress: self.decompress.min(other.decompress),
            digest: self.digest.min(other.digest),
            compress: self.compress.min(other.compress),
            load: self.load.min(other.load),
            open: self.open.min(other.open),
            read: self.read.min(other.read),
            seal: self.seal.min(other.seal),
            write: self.write.min(other.write),
            write_whole: self.write_whole.min(other.write_whole),
        }
    }

    fn print(&self, archive: &str, speed: impl Fn(&Duration) -> f64) {
        let numbers = [
            ("read", self.read),
            ("cut", self.cut),
            ("sha256", self.digest),
            ("zstd", self.compress),
            ("seal", self.seal),
            ("crc", self.crc),
            ("write", self.write),
            ("load", self.load),
            ("open", self.open),
            ("unzstd", self.decompress),
            ("write whole", self.write_whole),
        ];
        let numbers: Vec<_> =
            numbers.iter().map(|(name, time)| format!("{name} {:.0}", speed(time))).collect();
        println!("  {archive} stages, MB/s of plaintext: {}", numbers.join(", "));
    }

    fn measure(source: &Path, archive: &str, scratch: &Path) -> Self {
        let data = fs::read(source).expect("the data is there");
        let (read, ()) = time(|| read_through(source));
        let (cut, ()) = time(|| {
            if archive == "data.bin" {
                cut_through(&data);
            }
        });
        let (digest, ()) = time(|| {
            for chunk in data.chunks(CHUNK) {
                black_box(sha2::Sha256::digest(chunk));
            }
        });
        let mut compressor = zstd::bulk::Compressor::new(1).expect("a compressor");
        let mut buffers: Vec<Vec<u8>> = Vec::new();
        let mut out = Vec::with_capacity(CHUNK + CHUNK / 100 + 1024);
        let mut compress = Duration::ZERO;
        for chunk in data.chunks(CHUNK) {
            let (took, length) = time(|| {
                out.clear();
                compressor.compress_to_buffer(chunk, &mut out).expect("room")
            });
            compress += took;
            buffers.push(if length < chunk.len() { out.clone() } else { chunk.to_vec() });
        }
        let (crc, ()) = time(|| {
            for chunk in &buffers {
                black_box(crc32fast::hash(chunk));
            }
        });
        let (seal, open) = seal_and_open(&mut buffers);
        let folder = tempfile::tempdir_in(scratch).expect("a scratch directory");
        let (write, ()) = time(|| {
            for (number, chunk) in buffers.iter().enumerate() {
                fs::write(folder.path().join(number.to_string()), chunk).expect("room on the disk");
            }
        });
        let (load, ()) = time(|| {
            let mut buffer = vec![0; CHUNK + 1024];
            for number in 0..buffers.len() {
                let mut file = File::open(folder.path().join(number.to_string())).expect("it was written");
                while file.read(&mut buffer).expect("readable") > 0 {}
            }
        });
        let mut decompressor = zstd::bulk::Decompressor::new().expect("a decompressor");
        let (decompress, ()) = time(|| {
            for (chunk, plain) in buffers.iter().zip(data.chunks(CHUNK)) {
                if chunk.len() < plain.len() {
                    out.clear();
                    decompressor.decompress_to_buffer(chunk, &mut out).expect("what was compressed");
                }
            }
        });
        let (write_whole, ()) = time(|| {
            let mut file = File::create(folder.path().join("whole")).expect("room on the disk");
            data.chunks(CHUNK).for_each(|chunk| file.write_all(chunk).expect("room on the disk"));
        });
        let crc_read = crc;
        Self { crc, crc_read, cut, decompress, digest, compress, load, open, read, seal, write, write_whole }
    }
}

/// Seals and opens every buffer in place, which leaves all as they are.
fn seal_and_open(buffers: &mut [Vec<u8>]) -> (Duration, Duration) {
    let cipher = AesGcm::<Aes256, U16>::new(&KEY.into());
    let (mut seal, mut open) = (Duration::ZERO, Duration::ZERO);
    for data in buffers {
        let (took, tag) =
            time(|| cipher.encrypt_inout_detached(&[3; 16].into(), &[], data.as_mut_slice().into()));
        seal += took;
        let tag = tag.expect("less than 64 GiB");
        let (took, opened) =
            time(|| cipher.decrypt_inout_detached(&[3; 16].into(), &[], data.as_mut_slice().into(), &tag));
        open += took;
        opened.expect("authentic");
    }
    (seal, open)
}

/// A target whose end is not flushed, so that the disk itself is not what is measured.
struct Unflushed(FileTarget);

#[async_trait::async_trait]
impl larder::store::RestoreTarget for Unflushed {
    async fn begin(&mut self, size: u64) -> std::io::Result<()> {
        self.0.begin(size).await
    }

    async fn write_at(&mut self, offset: u64, data: bytes::Bytes) -> std::io::Result<()> {
        self.0.write_at(offset, data).await
    }

    async fn write_vectored_at(&mut self, offset: u64, parts: Vec<bytes::Bytes>) -> std::io::Result<()> {
        self.0.write_vectored_at(offset, parts).await
    }

    async fn write_zeros(&mut self, offset: u64, length: u64) -> std::io::Result<()> {
        self.0.write_zeros(offset, length).await
    }

    async fn finish(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

async fn back_up(
    store: &Datastore,
    source: &Path,
    archive: &str,
    base: Option<&SnapshotReader>,
    key: Option<&EncryptionKey>,
) -> SnapshotReader {
    let backup = store.backup(&"host/limits".parse().expect("a name"));
    let backup = match key {
        Some(key) => backup.encrypt(key),
        None => backup,
    };
    let backup = backup.begin().await.expect("a backup");
    let file = File::open(source).expect("the data is there");
    let size = file.metadata().expect("its size").len();
    if archive == "data.bin" {
        let stream = backup.stream(archive, AllowStdIo::new(file));
        match base {
            Some(base) => stream.base(base).await,
            None => stream.await,
        }
    } else {
        let image = backup.image(archive, AllowStdIo::new(file), size);
        match base {
            Some(base) => image.base(base).await,
            None => image.await,
        }
    }
    .expect("a written archive");
    backup.finish().await.expect("a finished backup").snapshot
}

fn read_through(path: &Path) {
    let mut file = File::open(path).expect("the data is there");
    let mut buffer = vec![0; 512 << 10];
    while file.read(&mut buffer).expect("readable") > 0 {}
}

/// With our own chunker: it is faster than the `fastcdc` crate (`benches/chunker.rs`), so this limit is the lower one.
fn cut_through(data: &[u8]) {
    use larder::chunker::{Chunker as _, RollingChunker};
    let mut chunker = RollingChunker::default();
    let mut rest = data;
    while let Some(cut) = chunker.scan(rest) {
        rest = &rest[cut..];
    }
    black_box(rest);
}

fn make_data(path: &Path, mib: usize, kind: &str) {
    let mut file = File::create(path).expect("room on the disk");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut block = Vec::with_capacity(1 << 20);
    for _ in 0..mib {
        block.clear();
        while block.len() < 1 << 20 {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if kind == "random" {
                block.extend(state.to_le_bytes());
            } else {
                // Words from a vocabulary of 4096, as in texts and tables: it compresses to about a third.
                block.extend(format!("{:x} ", (state % 4096) * (state >> 60)).bytes());
            }
        }
        block.truncate(1 << 20);
        file.write_all(&block).expect("room on the disk");
    }
    file.rewind().expect("a file");
}

fn same(one: &Path, other: &Path) -> bool {
    fs::read(one).expect("readable") == fs::read(other).expect("readable")
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn time<T>(work: impl FnOnce() -> T) -> (Duration, T) {
    let start = Instant::now();
    let done = work();
    (start.elapsed(), done)
}

async fn timed<F: Future>(work: F) -> (Duration, F::Output) {
    let start = Instant::now();
    let done = work.await;
    (start.elapsed(), done)
}
