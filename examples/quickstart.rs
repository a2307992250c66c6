//! Backs up this crate's own sources and an image, twice, and restores them.
//! Run with: cargo run --release --example quickstart

#![allow(clippy::disallowed_methods, reason = "the rule against threads is for the library")]
#![allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "small numbers")]

use std::fmt::Display;
use std::io::Write as _;
use std::path::Path;
use std::process::exit;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io, thread};

use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{BackupStats, Datastore, DirtyMap, Options, SnapshotReader, WriterTarget};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

const MIB: u64 = 1 << 20;

fn main() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let directory = tempfile::tempdir()?;
    let path = directory.path().to_owned();
    let interrupted = Arc::new(AtomicBool::new(false));
    let is_interrupted = Arc::clone(&interrupted);
    thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            interrupted.store(true, Ordering::SeqCst);
            let _ = fs::remove_dir_all(&path);
            exit(128 + signal);
        }
    });
    let done = block_on(run(directory.path()));
    // A run that fails because its directory is being removed must not end the process first.
    while is_interrupted.load(Ordering::SeqCst) {
        thread::park();
    }
    done
}

/// Prints a line. A reader that has seen enough is no failure.
fn print(line: impl Display) -> Result<()> {
    match writeln!(io::stdout(), "{line}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

async fn run(directory: &Path) -> Result<()> {
    // A runtime, a backend, a store: no global state, no configuration file.
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
    let backend: Arc<dyn Backend> = Arc::new(FsBackend::create(runtime, directory, options).await?);
    let store = Datastore::create(backend, Options::default()).await?;
    let group = "host/quickstart".parse()?;

    // The first backup: nothing is visible before `finish`.
    let sources = tar_of_sources()?;
    let mut image: Vec<u8> = (0..64 * MIB).map(|at| (at / 777 * at % 251) as u8).collect();
    let backup = store.backup(&group).begin().await?;
    backup.stream("sources.tar", Cursor::new(&sources)).await?;
    backup.image("disk.img", Cursor::new(&image), 64 * MIB).await?;
    backup.blob("app.conf", "colour = blue\n").await?;
    backup.set_notes("the first one");
    report("first backup", &backup.stats())?;
    let first = backup.finish().await?.snapshot;

    // The second backup builds on the first, and reads only the changed parts of the image.
    let dirty: DirtyMap = std::iter::once(20 * MIB..21 * MIB).collect();
    image[20 << 20..21 << 20].fill(b'!');
    let backup = store.backup(&group).begin().await?;
    backup.stream("sources.tar", Cursor::new(&sources)).base(&first).await?;
    backup.image("disk.img", Cursor::new(&image), 64 * MIB).base(&first).dirty(dirty).await?;
    let stats = backup.stats();
    report("after a change", &stats)?;
    assert_eq!((stats.chunks_new, stats.chunks_reused), (1, 15));
    let second = backup.finish().await?.snapshot;

    for snapshot in store.snapshots(&group).await? {
        let names: Vec<_> = snapshot.files.iter().map(|file| file.name.as_str()).collect();
        print(format!("{}: {}", snapshot.name, names.join(", ")))?;
    }

    // Every byte is checked against a digest before a reader sees it.
    assert_eq!(restore(&second, "disk.img.fidx").await?, image);
    assert_eq!(restore(&second, "sources.tar.didx").await?, sources);
    assert_eq!(first.blob("app.conf.blob").await?, "colour = blue\n");
    let logical = 2 * (64 * MIB + sources.len() as u64);
    let stored = size_of(directory)?;
    let factor = logical as f64 / stored as f64;
    print(format!("both restored; {logical} bytes are kept in {stored}: factor {factor:.1}"))?;
    assert!(stored < logical / 2);
    Ok(())
}

async fn restore(snapshot: &SnapshotReader, archive: &str) -> Result<Vec<u8>> {
    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
    snapshot.archive(archive).await?.copy_to(&mut target).await?;
    Ok(target.into_inner().into_inner())
}

fn report(what: &str, stats: &BackupStats) -> Result<()> {
    let BackupStats { bytes_read, bytes_written, chunks_new, chunks_known, chunks_reused, .. } = stats;
    print(format!("{what}: read {bytes_read} bytes, wrote {bytes_written}"))?;
    print(format!("    chunks: {chunks_new} new, {chunks_known} known, {chunks_reused} reused unread"))
}

fn tar_of_sources() -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    tar.append_dir_all("src", Path::new(env!("CARGO_MANIFEST_DIR")).join("../src"))?;
    Ok(tar.into_inner()?)
}

fn size_of(path: &Path) -> Result<u64> {
    if !path.is_dir() {
        return Ok(path.metadata()?.len());
    }
    path.read_dir()?.map(|entry| size_of(&entry?.path())).sum()
}
