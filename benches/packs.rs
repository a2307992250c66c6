//! A packed store in a directory beside a loose one.
//! Run with: `cargo bench --bench packs --features testing -- [--check]`
//!
//! | figure | what is measured |
//! |---|---|
//! | create | creating a store, with all directories that it needs |
//! | files | files and directories after the backup |
//! | backup, restore, verify | an image that does not compress, in chunks of 4 MiB and of 64 KiB; each backup ends with a flush of the filesystem |
//! | gc | opening, plan and execution with `PACKS_CHUNKS` chunks (default 1,000,000) of 212 to 1,012 bytes, five percent of them garbage that is too young |
//! | gc, half pruned | the same after the older half of the snapshots was deleted; nothing is too young, and most packs have only garbage or none |
//! | gc, half pruned, mixed | the same with chunks in another order, so that each pack has as much garbage as the others |
//!
//! The forms are measured in turn, and the best of each counts. `PACKS_MIB` sets the size of the image (default 512), `PACKS_ROUNDS` the number of rounds (default 3).
//! The stores of the first collection are made in `PACKS_DIRECTORY`, if that is set, and stay for the next time.
//! With `--gc` only garbage collection is measured. With `--check` it ends with 1 if a goal is missed.

#![allow(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a measuring program: it reads the clock and prints"
)]

#[path = "gc/store.rs"]
#[allow(dead_code, reason = "the loose store is for both")]
mod store;

mod random;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use futures::io::{Cursor, sink};
use larder::backend::{FsBackend, FsOptions, PrefixDirectories};
use larder::gc::{self, GcEnd, GcOptions, GcSummary};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options, PackOptions, Scope, WriterTarget};
use larder::verify::{self, Recording, VerifyOptions};
use random::random;

type Outcome<T> = Result<T, Box<dyn Error>>;

const FORMS: [(&str, bool); 2] = [("loose", false), ("packed", true)];
/// Names of the figures in seconds, with the most that packed may take of loose.
const RATIOS: [(&str, f64); 3] = [("backup", 1.0), ("restore", 1.05), ("verify", 1.0)];
const CREATE: Duration = Duration::from_millis(10);
const GC_RATIO: f64 = 0.5;

fn main() -> ExitCode {
    let has = |wanted: &str| std::env::args().any(|argument| argument == wanted);
    if has("--test") {
        return ExitCode::SUCCESS;
    }
    match measure(has("--gc")) {
        Ok(is_met) if is_met || !has("--check") => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error}");
            ExitCode::from(2)
        }
    }
}

fn measure(only_gc: bool) -> Outcome<bool> {
    let rounds = number("PACKS_ROUNDS", 3).max(1);
    let transfers = only_gc || transfers(rounds)?;
    let chunks = number("PACKS_CHUNKS", 1_000_000) as u64;
    let is_fast = collection(chunks, rounds)?
        & pruned_collection(chunks, rounds, false)?
        & pruned_collection(chunks, rounds, true)?;
    Ok(is_fast && transfers)
}

/// Whether the goals for the creation of stores and the transfer of data are met.
fn transfers(rounds: usize) -> Outcome<bool> {
    let all = tempfile::tempdir()?;
    let (time, _) = timed(async {
        let backend =
            FsBackend::create(Arc::new(ThreadRuntime::new()), all.path().join("store"), FsOptions::default())
                .await?;
        Ok(Datastore::create(Arc::new(backend), Options::default()).await?)
    })?;
    println!("loose, all directories: create {:.0} ms", time.as_secs_f64() * 1e3);
    drop(all);
    let mib = number("PACKS_MIB", 512);
    let data = random(0, mib << 20);
    let mut is_met = true;
    for (name, chunk) in [("4 MiB", 4 << 20), ("64 KiB", 64 << 10)] {
        let mut best = [[Duration::MAX; 4]; 2];
        let mut files = [0; 2];
        for round in 0..rounds {
            for turn in 0..2 {
                let at = (round + turn) % 2;
                let (times, count) = one(FORMS[at].1, &data, chunk)?;
                files[at] = count;
                for (best, time) in best[at].iter_mut().zip(times) {
                    *best = time.min(*best);
                }
            }
        }
        println!("chunks of {name}, {mib} MiB");
        for ((name, _), (times, files)) in FORMS.iter().zip(best.iter().zip(files)) {
            let [create, backup, restore, verify] = times.map(|time| time.as_secs_f64());
            println!(
                "  {name}: create {:.1} ms, backup {backup:.3} s, restore {restore:.3} s, verify {verify:.3} s, {files} files and directories",
                create * 1e3
            );
        }
        for (at, (name, goal)) in RATIOS.iter().enumerate() {
            let ratio = best[1][at + 1].as_secs_f64() / best[0][at + 1].as_secs_f64();
            println!("  {name}, packed / loose: {ratio:.2} (goal: <= {goal})");
            is_met &= ratio <= *goal;
        }
        is_met &= best[1][0] <= CREATE;
    }
    Ok(is_met)
}

fn number(name: &str, default: usize) -> usize {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn timed<T>(work: impl Future<Output = Outcome<T>>) -> Outcome<(Duration, T)> {
    let start = Instant::now();
    let done = block_on(work)?;
    Ok((start.elapsed(), done))
}

/// Times to create, back up, restore and verify, and the number of files.
fn one(is_packed: bool, data: &[u8], chunk: usize) -> Outcome<([Duration; 4], usize)> {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("store");
    // Those of a loose store would take seconds each time.
    let files = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
    let mut options = Options::default();
    if is_packed {
        options = options.packed(PackOptions::default());
    }
    let (create, store) = timed(async {
        let backend = FsBackend::create(Arc::clone(&runtime), &path, files).await?;
        Ok(Datastore::create(Arc::new(backend), options).await?)
    })?;
    let (backup, snapshot) = timed(async {
        let backup = store.backup(&"vm/1".parse()?).begin().await?;
        backup.image("disk.img", Cursor::new(data), data.len() as u64).chunk_bytes(chunk as u64).await?;
        Ok(backup.finish().await?.snapshot)
    })?;
    let (restore, copied) = timed(async {
        let archive = snapshot.archive("disk.img.fidx").await?;
        Ok(archive.copy_to(&mut WriterTarget::new(sink())).await?)
    })?;
    if copied != data.len() as u64 {
        return Err("not all was restored".into());
    }
    let (verify, ()) = timed(async {
        let options = VerifyOptions::default().recording(Recording::Off);
        let report = verify::plan(&store, &Scope::Store, options).await?.execute().await?;
        if report.is_clean() { Ok(()) } else { Err(format!("{report:?}").into()) }
    })?;
    Ok(([create, backup, restore, verify], entries(&path)?))
}

/// Number of files and directories below a directory.
fn entries(path: &Path) -> Outcome<usize> {
    let mut count = 0;
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        count += 1;
        if entry.file_type()?.is_dir() {
            count += entries(&entry.path())?;
        }
    }
    Ok(count)
}

/// Whether the goal for a collection that finds nothing is met.
fn collection(chunks: u64, rounds: usize) -> Outcome<bool> {
    let scratch = tempfile::tempdir()?;
    let kept = std::env::var_os("PACKS_DIRECTORY").map(PathBuf::from);
    let all = kept.as_deref().unwrap_or(scratch.path());
    let places = FORMS.map(|(name, is_packed)| (all.join(format!("{name}-{chunks}")), is_packed));
    for (path, is_packed) in places.iter().filter(|(path, _)| !path.exists()) {
        store::make_form(path, chunks, *is_packed, false)?;
    }
    let garbage = store::garbage(chunks);
    let mut best = [Duration::MAX; 2];
    for round in 0..rounds {
        for turn in 0..2 {
            let at = (round + turn) % 2;
            let (time, found) = collect(&places[at].0, GcOptions::default())?;
            if (found.in_use.chunks, found.waiting.chunks) != (chunks - garbage, garbage) {
                return Err(format!("found {found:?}").into());
            }
            best[at] = best[at].min(time);
        }
    }
    Ok(is_fast("gc", chunks, best))
}

/// Whether the goal for a collection after a deletion of snapshots is met.
fn pruned_collection(chunks: u64, rounds: usize, is_mixed: bool) -> Outcome<bool> {
    let mut best = [Duration::MAX; 2];
    for round in 0..rounds {
        let mut in_use = [0; 2];
        for turn in 0..2 {
            let at = (round + turn) % 2;
            let scratch = tempfile::tempdir()?;
            let path = scratch.path().join("store");
            store::make_form(&path, chunks, FORMS[at].1, is_mixed)?;
            store::prune_half(&path, FORMS[at].1)?;
            let options = GcOptions::default().grace(Duration::ZERO).max_garbage(100);
            let (time, found) = collect(&path, options)?;
            in_use[at] = found.in_use.chunks;
            best[at] = best[at].min(time);
            if turn == 1 && (in_use[0] != in_use[1] || found.in_use.chunks + found.garbage.chunks != chunks) {
                return Err(format!("found {found:?}, in use {in_use:?}").into());
            }
        }
    }
    Ok(is_fast(if is_mixed { "gc, half pruned, mixed" } else { "gc, half pruned" }, chunks, best))
}

/// Opens a store and collects its garbage.
fn collect(path: &Path, options: GcOptions) -> Outcome<(Duration, GcSummary)> {
    let runtime = Arc::new(ThreadRuntime::new());
    timed(async {
        let backend = FsBackend::open(runtime, path, FsOptions::default()).await?;
        let store = Datastore::open(Arc::new(backend), Options::default()).await?;
        let mut plan = gc::plan(&store, options).await?.confirm();
        let report = plan.execute().await?;
        if !matches!(report.end, GcEnd::Complete) || report.failed > 0 {
            return Err(format!("{report:?}").into());
        }
        Ok(plan.summary().clone())
    })
}

fn is_fast(what: &str, chunks: u64, best: [Duration; 2]) -> bool {
    let [loose, packed] = best.map(|time| time.as_secs_f64());
    let ratio = packed / loose;
    println!(
        "{what}, {chunks} chunks: loose {loose:.3} s, packed {packed:.3} s, {ratio:.2} (goal: <= {GC_RATIO})"
    );
    ratio <= GC_RATIO
}
