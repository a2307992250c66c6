//! Backups and restores of a tree of small files, beside `restic` if it is installed.
//! Run with: cargo bench --bench tree
//!
//! The tree has `TREE_FILES` files (default 45,000) and `TREE_MB` megabytes (default 500), half of them compressible. Both programs write to a directory
//! that they flush, read the tree from a warm page cache, and run in turn in the same process or as its child. Each round makes new
//! stores; the best of `TREE_ROUNDS` (default 3) counts. `restic` always encrypts; larder is measured with a key and without.

#![allow(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measuring program: it reads the clock and prints"
)]

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use larder::backend::{Backend, FsBackend, FsOptions, PrefixDirectories};
use larder::crypt::EncryptionKey;
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options, SnapshotReader};
use larder::tree::{DirectorySource, DirectoryTarget};

const FILES_IN_A_DIRECTORY: usize = 150;

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let scratch = tempfile::tempdir().expect("a scratch directory");
    let tree = scratch.path().join("tree");
    let (files, megabytes) = (number("TREE_FILES", 45_000), number("TREE_MB", 500));
    make_tree(&tree, files, megabytes * 1_000_000 / files);
    println!("{files} files, {megabytes} MB");
    let has_restic = Command::new("restic").arg("version").stdout(Stdio::null()).status().is_ok();
    let mut best: [Option<Times>; 3] = [None, None, None];
    for round in 0..number("TREE_ROUNDS", 3) {
        let changed = tree.join(format!("d{round}")).join("f0");
        let key = EncryptionKey::from_bytes(&[7; 32]);
        let mut times = vec![
            larder(&tree, &changed, scratch.path(), None),
            larder(&tree, &changed, scratch.path(), Some(&key)),
        ];
        if has_restic {
            times.push(restic(&tree, &changed, scratch.path()));
        }
        for (best, times) in best.iter_mut().zip(times) {
            *best = Some(best.as_ref().map_or(times, |best| best.best(&times)));
        }
    }
    let [plain, encrypted, restic] = best;
    println!(
        "{:18} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "", "first", "unchanged", "one file", "restore", "flushed"
    );
    for (name, times) in [("larder", &plain), ("larder, encrypted", &encrypted), ("restic", &restic)] {
        if let Some(times) = times {
            times.print(name);
        }
    }
    if let Some(restic) = restic {
        for (name, times) in [("larder : restic", &plain), ("encrypted : restic", &encrypted)] {
            if let Some(times) = times {
                times.print_ratio(name, &restic);
            }
        }
    }
    println!("peak memory of larder: {} MiB", peak_kib() / 1024);
}

/// The times of one program.
#[derive(Clone, Copy)]
struct Times {
    first: Duration,
    /// A restore that ends when the target is durable, which `restic` does not offer.
    flushed: Option<Duration>,
    one_file: Duration,
    restore: Duration,
    unchanged: Duration,
}

impl Times {
    fn best(&self, other: &Self) -> Self {
        Self {
            first: self.first.min(other.first),
            flushed: self.flushed.min(other.flushed),
            one_file: self.one_file.min(other.one_file),
            restore: self.restore.min(other.restore),
            unchanged: self.unchanged.min(other.unchanged),
        }
    }

    fn all(&self) -> [Duration; 4] {
        [self.first, self.unchanged, self.one_file, self.restore]
    }

    fn print(&self, name: &str) {
        let [first, unchanged, one_file, restore] = self.all().map(|time| time.as_secs_f64());
        print!("{name:18} {first:7.2} s {unchanged:7.2} s {one_file:7.2} s {restore:7.2} s");
        if let Some(flushed) = self.flushed {
            print!(" {:7.2} s", flushed.as_secs_f64());
        }
        println!();
    }

    fn print_ratio(&self, name: &str, other: &Self) {
        print!("{name:18}");
        for (ours, theirs) in self.all().iter().zip(other.all()) {
            print!(" {:9.2}", ours.as_secs_f64() / theirs.as_secs_f64());
        }
        println!();
    }
}

fn larder(tree: &Path, changed: &Path, scratch: &Path, key: Option<&EncryptionKey>) -> Times {
    // Kept until the end: filesystems spend time on inodes that were deleted just now.
    let place = tempfile::tempdir_in(scratch).expect("a scratch directory").keep();
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    block_on(async {
        let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
        let store = place.join("store");
        let backend = FsBackend::create(Arc::clone(&runtime), store, options).await.expect("a store");
        let backend: Arc<dyn Backend> = Arc::new(backend);
        let store = Datastore::create(backend, Options::default()).await.expect("a store");
        let (first, snapshot) = timed(back_up(&runtime, &store, tree, None, key)).await;
        let (unchanged, snapshot) = timed(back_up(&runtime, &store, tree, Some(&snapshot), key)).await;
        change(changed);
        let (one_file, snapshot) = timed(back_up(&runtime, &store, tree, Some(&snapshot), key)).await;
        let target = place.join("restored");
        let into =
            async |path: &Path| DirectoryTarget::create(Arc::clone(&runtime), path).await.expect("a target");
        let archive = snapshot.tree("root.pxar").await.expect("a tree");
        let restore_to = async |target: DirectoryTarget| {
            let restored = archive.restore(&target).await.expect("a restore");
            assert!(restored.report.is_complete(), "{}", restored.report);
        };
        let (restore, ()) = timed(restore_to(into(&target).await.without_flush())).await;
        assert!(same(tree, &target), "the restored tree differs");
        let (flushed, ()) = timed(restore_to(into(&place.join("flushed")).await)).await;
        let flushed = Some(flushed);
        Times { first, flushed, one_file, restore, unchanged }
    })
}

async fn back_up(
    runtime: &Arc<dyn Runtime>,
    store: &Datastore,
    tree: &Path,
    base: Option<&SnapshotReader>,
    key: Option<&EncryptionKey>,
) -> SnapshotReader {
    let group = "host/bench".parse().expect("a name");
    let mut backup = store.backup(&group);
    if let Some(key) = key {
        backup = backup.encrypt(key);
    }
    let backup = backup.begin().await.expect("a backup");
    let source = DirectorySource::open(Arc::clone(runtime), tree).await.expect("a source");
    backup.tree("root", &source).base_if_usable(base).await.expect("an archive");
    let mut snapshot = backup.finish().await.expect("a snapshot").snapshot;
    if let Some(key) = key {
        snapshot.unlock(key).expect("the key");
    }
    snapshot
}

fn restic(tree: &Path, changed: &Path, scratch: &Path) -> Times {
    // Kept until the end: filesystems spend time on inodes that were deleted just now.
    let place = tempfile::tempdir_in(scratch).expect("a scratch directory").keep();
    let run = |arguments: &[&str]| {
        let started = Instant::now();
        let status = Command::new("restic")
            .args(["--quiet", "--repo"])
            .arg(place.join("store"))
            .args(arguments)
            .env("RESTIC_PASSWORD", "bench")
            .env("RESTIC_CACHE_DIR", place.join("cache"))
            .stdout(Stdio::null())
            .status()
            .expect("restic runs");
        assert!(status.success(), "{arguments:?}");
        started.elapsed()
    };
    let (tree, target) = (tree.to_str().expect("a path"), place.join("restored"));
    run(&["init"]);
    let first = run(&["backup", tree]);
    let unchanged = run(&["backup", tree]);
    change(changed);
    let one_file = run(&["backup", tree]);
    let restore = run(&["restore", "latest", "--target", target.to_str().expect("a path")]);
    Times { first, flushed: None, one_file, restore, unchanged }
}

async fn timed<F: Future>(future: F) -> (Duration, F::Output) {
    let started = Instant::now();
    let output = future.await;
    (started.elapsed(), output)
}

/// Makes directories of files. The names and contents are the same in each run.
fn make_tree(tree: &Path, files: usize, bytes: usize) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut contents = vec![0; bytes];
    for number in 0..files {
        let directory = tree.join(format!("d{}", number / FILES_IN_A_DIRECTORY));
        if number % FILES_IN_A_DIRECTORY == 0 {
            fs::create_dir_all(&directory).expect("a directory");
        }
        for (position, byte) in contents.iter_mut().enumerate() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            // Four values a byte in the first half: a quarter of the entropy.
            *byte = if position < bytes / 2 {
                b"acgt"[(random >> 60) as usize % 4]
            } else {
                (random >> 56) as u8
            };
        }
        fs::write(directory.join(format!("f{}", number % FILES_IN_A_DIRECTORY)), &contents).expect("a file");
    }
    rustix::fs::sync();
}

/// Changes a file.
fn change(path: &Path) {
    let mut file = File::options().append(true).open(path).expect("a file");
    file.write_all(b"one line more\n").expect("written");
}

/// Returns `true` if `diff` finds no difference.
fn same(one: &Path, other: &Path) -> bool {
    Command::new("diff").arg("-rq").args([one, other]).status().expect("diff runs").success()
}

/// Peak resident memory of this process in KiB.
fn peak_kib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).unwrap_or_default()
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().map_or(default, |value| value.parse().expect("a number"))
}
