//! Reading of trees on a directory store.
//! Run with: `cargo bench --bench tree_read`
//!
//! Printed are: the time to list a directory of 100,000 entries; the time to open a store, a snapshot and its tree, and to read one file of 1 MB, with
//! caches of the library cold; and the time and the peak memory of a walk through a million entries. `TREE_MIB` sets the size of the
//! archive with the file (default 1024), `TREE_ENTRIES` the number of entries of the walk (default 1,000,000).

#![allow(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a measuring program: it reads the clock and prints"
)]

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{FsBackend, FsOptions, PrefixDirectories, SyncLevel};
use larder::pxar::{
    Encoder, Metadata, PAYLOAD_END, PAYLOAD_START, PayloadOrigin, PayloadReference, Stat, payload_header,
};
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, Options};
use larder::tree::TreeStep;

fn main() {
    if std::env::args().any(|argument| argument == "--test") {
        return;
    }
    let directory = tempfile::tempdir().expect("a scratch directory");
    block_on(async {
        let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
        let options = options.sync_level(SyncLevel::None);
        let runtime = Arc::new(ThreadRuntime::new());
        let backend =
            FsBackend::create(runtime, directory.path().join("store"), options).await.expect("a new store");
        let store = Datastore::create(Arc::new(backend), Options::default()).await.expect("a new store");
        store_tree(&store, "wide", &[100_000], 10).await;
        store_tree(
            &store,
            "large",
            &[16, usize::try_from(number("TREE_MIB", 1024)).unwrap_or(16) / 16],
            1 << 20,
        )
        .await;
        store_tree(
            &store,
            "many",
            &[100, usize::try_from(number("TREE_ENTRIES", 1_000_000)).unwrap_or(0) / 10_000, 100],
            10,
        )
        .await;
    });
    for round in 0..3 {
        block_on(list(directory.path(), round));
        block_on(lookup(directory.path(), round));
    }
    block_on(walk(directory.path()));
}

async fn open(directory: &Path, name: &str) -> larder::store::SnapshotReader {
    let options = FsOptions::default().sync_level(SyncLevel::None);
    let backend = FsBackend::open(Arc::new(ThreadRuntime::new()), directory.join("store"), options).await;
    let store =
        Datastore::open(Arc::new(backend.expect("a store")), Options::default()).await.expect("a store");
    let group = format!("host/{name}").parse().expect("a group");
    let latest = store.latest_snapshot(&group).await;
    latest.expect("a listing").expect("a snapshot")
}

async fn list(directory: &Path, round: usize) {
    let snapshot = open(directory, "wide").await;
    let start = Instant::now();
    let tree = snapshot.tree("root").await.expect("a tree");
    let mut listing = tree.read_dir("").await.expect("a directory");
    let mut size = 0;
    while let Some(entry) = listing.next().await {
        size += entry.expect("an entry").size();
    }
    let took = start.elapsed().as_secs_f64();
    println!("round {round}: {} entries of {size} bytes listed in {took:.3} s", listing.len());
}

async fn lookup(directory: &Path, round: usize) {
    let start = Instant::now();
    let snapshot = open(directory, "large").await;
    let opened = start.elapsed();
    let tree = snapshot.tree("root").await.expect("a tree");
    let file = tree.open("d00007/f00003").await.expect("a file");
    let bytes = file.read_all().await.expect("its contents");
    let took = start.elapsed();
    println!(
        "round {round}: store and snapshot opened in {opened:.1?}, a file of {} bytes read after {took:.1?}",
        bytes.len()
    );
}

async fn walk(directory: &Path) {
    let snapshot = open(directory, "many").await;
    reset_peak();
    let before = peak_mib();
    let start = Instant::now();
    let mut walk = snapshot.tree("root").await.expect("a tree").walk();
    let mut count = 0;
    while let Some(step) = walk.next().await.expect("a step") {
        count += usize::from(matches!(step, TreeStep::Entry(_)));
    }
    let took = start.elapsed().as_secs_f64();
    println!("{count} entries walked in {took:.2} s, peak memory {} MiB, {before} MiB before", peak_mib());
}

/// Peak memory of this process, where the system says it.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|peak| peak.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) >> 10
}

fn reset_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}

/// Stores a tree in split form: directories with `shape` entries on each level, the last of which are files.
async fn store_tree(store: &Datastore, name: &str, shape: &[usize], size: usize) {
    let of_mode = |mode| Metadata::new(Stat { mode, ..Stat::default() });
    let mut encoder = Encoder::split(&of_mode(0o040_755), b"").expect("an archive");
    let mut payload = PAYLOAD_START.to_vec();
    let (directories, files) = shape.split_at(shape.len() - 1);
    let leaves: usize = directories.iter().product();
    let mut state = 1_u64;
    for leaf in 0..leaves {
        // Digits of the number of the leaf, the last level first.
        let mut rest = leaf;
        let digit = |width: &usize| {
            let digit = (rest % width, *width);
            rest /= width;
            digit
        };
        let path: Vec<(usize, usize)> = directories.iter().rev().map(digit).collect();
        // Levels that start with this leaf are entered, and those that end with it are left.
        let starts = path.iter().take_while(|digit| digit.0 == 0).count();
        let entered = (starts + 1).min(path.len());
        for digit in path[..entered].iter().rev() {
            encoder.enter(format!("d{:05}", digit.0).as_bytes(), &of_mode(0o040_755)).expect("a directory");
        }
        for file in 0..files[0] {
            let reference = PayloadReference {
                offset: payload.len() as u64,
                origin: PayloadOrigin::Written,
                size: size as u64,
            };
            payload.extend_from_slice(&payload_header(size as u64).expect("a header"));
            let end = payload.len() + size;
            while payload.len() < end {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                // The lowest bits repeat.
                payload.extend_from_slice(&(state >> 16).to_le_bytes()[..6]);
            }
            payload.truncate(end);
            encoder
                .file_reference(format!("f{file:05}").as_bytes(), &of_mode(0o100_644), reference)
                .expect("a file");
        }
        let ends = path.iter().take_while(|digit| digit.0 + 1 == digit.1).count();
        for _ in 0..(ends + 1).min(path.len()) {
            encoder.leave().expect("a directory");
        }
    }
    payload.extend_from_slice(&PAYLOAD_END);
    let backup =
        store.backup(&format!("host/{name}").parse().expect("a group")).begin().await.expect("a backup");
    let archive = encoder.finish().expect("an archive");
    println!("{name}: {} MiB of entries, {} MiB of contents", archive.len() >> 20, payload.len() >> 20);
    backup.stream("root.mpxar", Cursor::new(archive)).await.expect("an archive");
    backup.stream("root.ppxar", Cursor::new(Bytes::from(payload))).await.expect("an archive");
    backup.finish().await.expect("a snapshot");
}

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}
