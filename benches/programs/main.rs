//! larder beside other backup programs, on the same data in the same run.
//! Run with: `cargo bench --bench programs -- [options]`
//!
//! `restic` and `borg` are measured if they are installed. Each step of each program is a process of its own, larder's too, so that its start and
//! its memory count. The steps are: a new store (not compared), a first backup, a second one that reads everything again, a restore into a new directory, and a
//! check of all data. Programs take turns within a round, each round has new stores, and dirty pages are flushed before each step. The sources are in
//! the page cache, and as much memory as they take was touched just before the step. The shortest time, the least CPU time and the largest memory of all rounds count.
//!
//! All programs compress as they do by default: larder and `restic` with zstd, `borg` with lz4. `restic` and `borg` encrypt; larder is measured with a
//! key and without. larder has a store that PBS accepts, with all directories; all stores are flushed, no restored file is.
//!
//! | option | |
//! |---|---|
//! | `--data DIR` | back up this directory, which is only read; may be repeated. Default: two sets that the program makes |
//! | `--set small`, `--set large`, `--set store` | only these: 43,800 files with 568 MB, binaries of 2 GB, or operations of larder on stores |
//! | `--program NAME` | only these: `larder`, `encrypted`, `packed` (not by default), `restic`, `borg` |
//! | `--place DIR` | where data, stores and restored files go; default: the directory for temporary files |
//! | `--rounds N` | default: 3 |
//! | `--check` | end with 1 if a goal is missed |

#![allow(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a measuring program: it reads the clock and prints"
)]

mod data;
mod larder_steps;
mod measured;
mod peers;
mod store;
mod table;

use std::error::Error;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use lexopt::prelude::*;

use crate::data::Set;
use crate::peers::{Program, Step};
use crate::table::Table;

type Outcome<T> = Result<T, Box<dyn Error>>;

#[derive(Debug)]
struct Plan {
    check: bool,
    data: Vec<PathBuf>,
    place: PathBuf,
    programs: Vec<String>,
    rounds: usize,
    sets: Vec<String>,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    let done = match arguments.first().and_then(|first| first.to_str()) {
        Some("larder") => larder_steps::run(&arguments[1..]).map(|()| true),
        Some("measure") => measured::measure(&arguments[1..]).map(|()| true),
        // As a test there is nothing to measure.
        _ if arguments.iter().any(|argument| argument == "--test") => Ok(true),
        _ => parse().and_then(|plan| compare(&plan)),
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
    let mut plan = Plan {
        check: false,
        data: Vec::new(),
        place: std::env::temp_dir(),
        programs: Vec::new(),
        rounds: 3,
        sets: Vec::new(),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            // Cargo says so.
            Long("bench") => {}
            Long("check") => plan.check = true,
            Long("data") => plan.data.push(fs::canonicalize(parser.value()?)?),
            Long("place") => plan.place = parser.value()?.into(),
            Long("program") => plan.programs.push(parser.value()?.string()?),
            Long("rounds") => plan.rounds = parser.value()?.parse::<usize>()?.max(1),
            Long("set") => plan.sets.push(parser.value()?.string()?),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(plan)
}

/// Returns `true` if no goal is missed.
fn compare(plan: &Plan) -> Outcome<bool> {
    let scratch = tempfile::tempdir_in(&plan.place)?;
    let programs = Program::installed(&plan.programs)?;
    for program in &programs {
        println!("{}: {}", program.name(), program.version());
    }
    let wants = |name: &str| plan.sets.iter().any(|set| set == name);
    let mut are_met = true;
    let sets = if plan.data.is_empty() {
        let made = [("small", Set::small as fn(&Path) -> Outcome<Set>), ("large", Set::large)];
        made.into_iter()
            .filter(|(name, _)| plan.sets.is_empty() || wants(name))
            .map(|(_, make)| make)
            .collect()
    } else {
        Vec::new()
    };
    for path in &plan.data {
        are_met &= compare_on(&Set::given(path)?, &programs, plan.rounds, scratch.path())?;
    }
    for make in sets {
        let set = make(scratch.path())?;
        are_met &= compare_on(&set, &programs, plan.rounds, scratch.path())?;
        set.remove()?;
    }
    if wants("store") || (plan.sets.is_empty() && plan.data.is_empty()) {
        are_met &= store::measure(plan.rounds, scratch.path())?;
    }
    Ok(!plan.check || are_met)
}

fn compare_on(set: &Set, programs: &[Program], rounds: usize, scratch: &Path) -> Outcome<bool> {
    set.read_through()?;
    let mut table = Table::new(programs.len());
    for round in 0..rounds {
        for at in 0..programs.len() {
            // Another one is first in each round.
            let number = (at + round) % programs.len();
            let program = programs[number];
            // Kept until the end if there are many files: filesystems spend time on inodes that were deleted just now.
            let place = tempfile::tempdir_in(scratch)?;
            for step in Step::ALL {
                let command = program.command(step, &set.path, place.path())?;
                table.add(number, step, measured::run(&command, place.path(), set.bytes())?);
            }
            if round == 0 {
                set.compare(&program.restored(&set.path, place.path()))?;
            }
            if set.has_many_files() {
                let _ = place.keep();
            }
        }
    }
    println!("\n{set}");
    Ok(table.print(programs, set))
}
