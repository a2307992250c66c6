//! Time, CPU time and memory of a process.

use std::ffi::OsString;
use std::fs::File;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

use crate::Outcome;

/// A program with its arguments, environment and directory.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) arguments: Vec<OsString>,
    pub(crate) directory: Option<PathBuf>,
    pub(crate) environment: Vec<(&'static str, OsString)>,
}

/// What a process took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// User and system time of all its threads.
    pub(crate) cpu_seconds: f64,
    pub(crate) mib: f64,
    pub(crate) seconds: f64,
}

/// Runs a process below another one that measures nothing else, after everything on the filesystem of `place` was flushed and memory for `bytes` of
/// files was touched.
pub(crate) fn run(step: &Step, place: &Path, bytes: u64) -> Outcome<Cost> {
    rustix::fs::syncfs(File::open(place)?)?;
    touch_memory(bytes.min(free_bytes() / 2));
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("measure").args(&step.arguments).envs(step.environment.iter().cloned());
    if let Some(directory) = &step.directory {
        command.current_dir(directory);
    }
    let output = command.output()?;
    let text = String::from_utf8(output.stdout)?;
    let numbers: Vec<f64> = text.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    let [seconds, cpu_seconds, mib] = numbers[..] else {
        let why = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{:?} failed: {why}", step.arguments).into());
    };
    Ok(Cost { cpu_seconds, mib, seconds })
}

/// Takes memory and gives it back. A virtual machine gets pages from its host when they are first touched, and may have given back those that an
/// earlier step freed: this takes as long as some steps do, and twice as long in one run as in the next.
fn touch_memory(bytes: u64) {
    let mut memory = vec![0_u8; usize::try_from(bytes).unwrap_or(0)];
    memory.chunks_mut(4096).for_each(|page| page[0] = 1);
    black_box(memory);
}

/// Free memory; 0 if it is not known.
fn free_bytes() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// Runs a program and prints what it took.
pub(crate) fn measure(arguments: &[OsString]) -> Outcome<()> {
    let [program, arguments @ ..] = arguments else { return Err("a program is wanted".into()) };
    let start = Instant::now();
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).output()?;
    let seconds = start.elapsed().as_secs_f64();
    if !output.status.success() {
        return Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr)).into());
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    println!("{seconds} {} {}", cpu as f64 / 1e6, usage.max_rss() as f64 / 1024.0);
    Ok(())
}
