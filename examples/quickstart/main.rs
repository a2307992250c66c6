//! Backs up this crate's own sources and an image, twice, verifies both snapshots and restores them.
//! Run with: cargo run --profile quickstart -p quickstart

#![allow(clippy::disallowed_methods, reason = "the rule against threads and clocks is for the library")]
#![allow(clippy::cast_precision_loss, reason = "small numbers")]

use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{BackupStats, Datastore, DirtyMap, Options, Scope, SnapshotReader, WriterTarget};
use larder::tree::DirectorySource;
use larder::verify::{self, VerifyOptions};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const MIB: u64 = 1 << 20;
const USAGE: &str = "usage: quickstart [--keep DIR]

Makes two backups in a new store, verifies and restores them. The store is in a temporary directory
and removed at the end, or in DIR and kept. DIR must not hold a store yet.";

fn main() -> Result<()> {
    let arguments: Vec<OsString> = env::args_os().skip(1).collect();
    match &arguments[..] {
        [] => run_in_temporary_directory(),
        [help] if help == "--help" => print(USAGE),
        [keep, directory] if keep == "--keep" => {
            let directory = PathBuf::from(directory);
            fs::create_dir_all(&directory)?;
            let first = block_on(run(&directory))?;
            print(how_to_look(&directory, &first))
        }
        _ => {
            writeln!(io::stderr(), "{USAGE}")?;
            exit(2)
        }
    }
}

fn run_in_temporary_directory() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let directory: TempDir = tempfile::tempdir()?;
    let path = directory.path().to_owned();
    let interrupted = Arc::new(AtomicBool::new(false));
    let is_interrupted = Arc::clone(&interrupted);
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            interrupted.store(true, Ordering::SeqCst);
            // The backup still writes: it may create a file in a directory that is being removed, until the root directory is gone.
            for _ in 0..1000 {
                if fs::remove_dir_all(&path).is_ok() || !path.exists() {
                    break;
                }
            }
            exit(128 + signal);
        }
    });
    // Below the directory that is removed: creating a store makes its own directory, and no other.
    let done = block_on(run(&directory.path().join("store")));
    // A run that fails because its directory is being removed must not end the process first.
    while is_interrupted.load(Ordering::SeqCst) {
        thread::park();
    }
    done?;
    print("the store was temporary and is removed; --keep DIR keeps it")
}

/// Prints a line. A reader that has seen enough is no failure.
fn print(line: impl Display) -> Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

/// Returns the name of the first snapshot, which has a tree.
async fn run(directory: &Path) -> Result<String> {
    // A runtime, a backend, a store: no global state, no configuration file.
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
    let backend: Arc<dyn Backend> =
        Arc::new(FsBackend::create(Arc::clone(&runtime), directory, options).await?);
    let store = Datastore::create(backend, Options::default()).await?;
    let group = "host/quickstart".parse()?;
    let sources = tar_of_sources()?;
    let mut image = image();

    // The first backup: nothing is visible before `finish`.
    let start = Instant::now();
    let backup = store.backup(&group).begin().await?;
    backup.tree("src", &DirectorySource::open(Arc::clone(&runtime), sources_directory()).await?).await?;
    backup.stream("sources.tar", Cursor::new(&sources)).await?;
    backup.image("disk.img", Cursor::new(&image), 64 * MIB).await?;
    backup.blob("app.conf", "colour = blue\n").await?;
    backup.set_notes("the first one");
    let stats = backup.stats();
    let first = backup.finish().await?.snapshot;
    report("first backup", &stats, start.elapsed())?;

    // The second backup builds on the first, and reads only the changed parts of the image.
    image[20 << 20..21 << 20].fill(b'!');
    let dirty: DirtyMap = std::iter::once(20 * MIB..21 * MIB).collect();
    let start = Instant::now();
    let backup = store.backup(&group).begin().await?;
    backup.stream("sources.tar", Cursor::new(&sources)).base(&first).await?;
    backup.image("disk.img", Cursor::new(&image), 64 * MIB).base(&first).dirty(dirty).await?;
    let stats = backup.stats();
    let second = backup.finish().await?.snapshot;
    report("second backup, 1 MiB of the image changed", &stats, start.elapsed())?;
    assert_eq!((stats.chunks_new, stats.chunks_reused), (1, 15));

    print("snapshots:")?;
    for snapshot in store.snapshots(&group).await? {
        let names: Vec<_> = snapshot.files.iter().map(|file| file.name.as_str()).collect();
        print(format!("    {}: {}", snapshot.name, names.join(", ")))?;
    }
    verify(&store).await?;

    // Every byte is checked against a digest before a reader sees it.
    let start = Instant::now();
    assert_eq!(restore(&second, "disk.img.fidx").await?, image);
    assert_eq!(restore(&second, "sources.tar.didx").await?, sources);
    assert_eq!(first.blob("app.conf.blob").await?, "colour = blue\n");
    let restored = 64 * MIB + sources.len() as u64;
    let speed = speed(restored, start.elapsed());
    print(format!("restored image and sources: {}, {speed}, equal to what was backed up", size(restored)))?;

    // A tree is looked into: one file needs nothing of the others.
    let file = first.tree("src.pxar").await?.open("lib.rs").await?.read_all().await?;
    assert_eq!(file, fs::read(sources_directory().join("lib.rs"))?);
    print(format!("restored one file of a directory: src/lib.rs, {}", size(file.len() as u64)))?;

    let (logical, stored) = (2 * restored, size_of(directory)?);
    let factor = logical as f64 / stored as f64;
    print(format!("two backups of {} are stored in {}: factor {factor:.1}", size(restored), size(stored)))?;
    assert!(stored < logical / 2);
    encrypt(&store, runtime.as_ref(), &sources).await?;
    Ok(first.name().to_string())
}

/// Makes an encrypted backup: the store sees neither its contents nor their digests. A program keeps the key in a file, see `larder::keys`.
async fn encrypt(store: &Datastore, runtime: &dyn Runtime, sources: &[u8]) -> Result<()> {
    let key = larder::keys::generate(runtime);
    let backup = store.backup(&"host/encrypted".parse()?).encrypt(&key).begin().await?;
    backup.stream("sources.tar", Cursor::new(sources)).await?;
    let name = backup.finish().await?.snapshot.name().clone();

    let mut snapshot = store.snapshot(&name).await?;
    assert!(snapshot.archive("sources.tar").await.is_err(), "the key is needed");
    snapshot.unlock(&key)?;
    assert_eq!(restore(&snapshot, "sources.tar").await?, sources);
    print(format!(
        "encrypted backup of the sources: restored with the key {}, which is not kept",
        key.fingerprint()
    ))
}

/// Reads every chunk of both snapshots and compares it with its digest. The result is recorded in the manifests.
async fn verify(store: &Datastore) -> Result<()> {
    let start = Instant::now();
    let mut plan = verify::plan(store, &Scope::Store, VerifyOptions::default()).await?;
    let report = plan.execute().await?;
    assert!(report.is_clean() && report.sound == 2);
    let (chunks, read) = (report.chunks.digest, size(report.bytes));
    let speed = speed(report.bytes, start.elapsed());
    print(format!(
        "verified {} snapshots: {chunks} chunks have their digests; read {read}, {speed}",
        report.sound
    ))
}

async fn restore(snapshot: &SnapshotReader, archive: &str) -> Result<Vec<u8>> {
    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
    snapshot.archive(archive).await?.copy_to(&mut target).await?;
    Ok(target.into_inner().into_inner())
}

fn report(name: &str, stats: &BackupStats, time: Duration) -> Result<()> {
    let BackupStats { bytes_read, bytes_written, chunks_new, chunks_known, chunks_reused, .. } = *stats;
    let (read, written) = (size(bytes_read), size(bytes_written));
    print(format!("{name}: read {read}, stored {written}, {}", speed(bytes_read, time)))?;
    print(format!("    chunks: {chunks_new} new, {chunks_known} known, {chunks_reused} reused unread"))
}

/// Commands that show the store.
fn how_to_look(directory: &Path, snapshot: &str) -> String {
    let store = directory.display();
    format!(
        "the store is kept in {store}; look at it:
    cargo run --release --example list -- --store {store}
    cargo run --release --example maintain -- --store {store} status
    cargo run --release --example list -- --store {store} --tree {snapshot} src.pxar
    cargo run --release --example restore -- --store {store} {snapshot} src.pxar TARGET/"
    )
}

fn sources_directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src")
}

fn tar_of_sources() -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all("src", sources_directory())?;
    Ok(tar.into_inner()?)
}

/// 64 MiB: a quarter that cannot be compressed, a half that can, and a quarter of zeros.
fn image() -> Vec<u8> {
    let mut image = vec![0; 64 << 20];
    let mut state = 1_u64;
    for (at, word) in image[..48 << 20].as_chunks_mut().0.iter_mut().enumerate() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = state ^ state >> 32;
        *word = if at < 2 << 20 { mixed } else { mixed % 1000 }.to_le_bytes();
    }
    image
}

fn size(bytes: u64) -> String {
    match bytes {
        1_000_000.. => format!("{:.1} MB", bytes as f64 / 1e6),
        1_000.. => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{bytes} bytes"),
    }
}

/// Seconds, and what was done in one of them.
fn speed(bytes: u64, time: Duration) -> String {
    let seconds = time.as_secs_f64();
    format!("{seconds:.2} s, {:.0} MB/s", bytes as f64 / 1e6 / seconds)
}

fn size_of(path: &Path) -> Result<u64> {
    if !path.is_dir() {
        return Ok(path.metadata()?.len());
    }
    path.read_dir()?.map(|entry| size_of(&entry?.path())).sum()
}
