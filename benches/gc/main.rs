//! What garbage collection costs in a directory, beside the same work done as PBS does it.
//! Run with: `cargo bench --bench gc -- [options]`
//!
//! The store has a million small chunks and 100 snapshots of 100,000 entries, of which each changes some from the one before; five percent of the
//! chunks are garbage that is too young to go. Ours is measured in a process of its own, with its memory. The yardstick is coded here: one
//! thread, each index read, each digest touched that was not touched before (`utimensat`), each chunk looked up (`lstat`).
//!
//! In a bucket, the same number of chunks is listed at 30 ms a request: `cargo bench --bench s3_store -- --only gc`.
//!
//! | option | |
//! |---|---|
//! | `--check` | end with 1 if a target is not met |
//! | `--chunks N` | how many chunks; default: 1,000,000 |
//! | `--directory DIR` | where the store is made, and stays for the next time; default: a temporary directory |
//! | `--rounds N` | how often each is measured, in turn; default: 3 |

#![allow(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a measuring program: it reads the clock and prints"
)]

mod store;
mod yardstick;

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::executor::block_on;
use larder::backend::{FsBackend, FsOptions};
use larder::gc::{self, GcEnd, GcOptions, Sizes};
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, Options};
use lexopt::prelude::*;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What ours has to be faster by, with and without the sizes of chunks in use, and what memory it may take.
const FASTER: [f64; 2] = [2.0, 5.0];
const MOST_MIB: f64 = 64.0;

#[derive(Debug)]
struct Plan {
    check: bool,
    chunks: u64,
    directory: Option<PathBuf>,
    rounds: usize,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let done = match arguments.first().map(String::as_str) {
        Some("child") => child(Path::new(&arguments[1]), &arguments[2]).map(|()| true),
        // As a test there is nothing to measure.
        _ if arguments.iter().any(|argument| argument == "--test") => Ok(true),
        _ => parse().and_then(|plan| measure(&plan)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::from(2)
        }
    }
}

fn parse() -> Outcome<Plan> {
    let mut plan = Plan { check: false, chunks: 1_000_000, directory: None, rounds: 3 };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            // Cargo says so.
            Long("bench") => {}
            Long("check") => plan.check = true,
            Long("chunks") => plan.chunks = parser.value()?.parse::<u64>()?.max(10_000),
            Long("directory") => plan.directory = Some(parser.value()?.into()),
            Long("rounds") => plan.rounds = parser.value()?.parse::<usize>()?.max(1),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(plan)
}

/// Whether all targets are met.
fn measure(plan: &Plan) -> Outcome<bool> {
    let scratch = tempfile::tempdir()?;
    let path = plan.directory.as_deref().unwrap_or(scratch.path()).join(format!("store-{}", plan.chunks));
    if !path.exists() {
        eprintln!("making {} chunks", plan.chunks);
        store::make(&path, plan.chunks)?;
    }
    let expected = store::garbage(plan.chunks);
    let (mut theirs, mut ours) = (Vec::new(), [Vec::new(), Vec::new()]);
    let mut mib: f64 = 0.0;
    for _ in 0..plan.rounds {
        let start = Instant::now();
        let counted = yardstick::collect(&path)?;
        theirs.push(start.elapsed());
        for (times, sizes) in ours.iter_mut().zip(["all", "unused"]) {
            let (time, peak, found) = child_run(&path, sizes)?;
            let unused =
                if sizes == "all" { counted } else { yardstick::Counted { in_use_bytes: 0, ..counted } };
            if found != unused || counted.unused != expected {
                return Err(format!("ours found {found:?}, the yardstick {counted:?}").into());
            }
            times.push(time);
            mib = mib.max(peak);
        }
    }
    let theirs = median(&mut theirs);
    println!("one thread, a touch and a look at each chunk: {:.3} s", theirs.as_secs_f64());
    let mut is_met = mib <= MOST_MIB;
    for ((times, what), least) in ours.iter_mut().zip(["all sizes", "sizes of garbage"]).zip(FASTER) {
        let time = median(times);
        let ratio = theirs.as_secs_f64() / time.as_secs_f64();
        println!("ours, {what}: {:.3} s, {ratio:.2} times as fast (target: >= {least})", time.as_secs_f64());
        is_met &= ratio >= least;
    }
    println!("memory of the whole process at its peak: {mib:.1} MiB (target: <= {MOST_MIB})");
    Ok(!plan.check || is_met)
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// Collects in another process: how long it took, the most MiB it had, and what it found.
fn child_run(path: &Path, sizes: &str) -> Outcome<(Duration, f64, yardstick::Counted)> {
    let output = Command::new(std::env::current_exe()?).arg("child").arg(path).arg(sizes).output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [seconds, mib, in_use, in_use_bytes, unused] = numbers[..] else {
        return Err(format!("the process failed: {}", String::from_utf8_lossy(&output.stderr)).into());
    };
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "they were whole numbers")]
    let [in_use, in_use_bytes, unused] = [in_use, in_use_bytes, unused].map(|number| number as u64);
    let counted = yardstick::Counted { in_use, in_use_bytes, unused };
    Ok((Duration::from_secs_f64(seconds), mib, counted))
}

fn child(path: &Path, sizes: &str) -> Outcome<()> {
    let runtime = Arc::new(ThreadRuntime::new());
    let sizes = if sizes == "all" { Sizes::All } else { Sizes::Unused };
    block_on(async {
        let start = Instant::now();
        let backend = FsBackend::open(runtime, path, FsOptions::default()).await?;
        let store = Datastore::open(Arc::new(backend), Options::default()).await?;
        let mut plan = gc::plan(&store, GcOptions::default().sizes(sizes)).await?;
        let report = plan.execute().await?;
        let elapsed = start.elapsed();
        if !matches!(report.end, GcEnd::Complete) || plan.summary().garbage.chunks > 0 {
            return Err("something went wrong".into());
        }
        let (in_use, waiting) = (plan.summary().in_use, plan.summary().waiting);
        println!(
            "{} {} {} {} {}",
            elapsed.as_secs_f64(),
            peak_mib()?,
            in_use.chunks,
            in_use.bytes,
            waiting.chunks
        );
        Ok(())
    })
}

/// The most memory that this process had, in MiB.
fn peak_mib() -> Outcome<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<f64>()? / 1024.0)
}
