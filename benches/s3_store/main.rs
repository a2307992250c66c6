//! What a store in a bucket costs, in time and in requests, against a server that is far away.
//! Run with: `cargo bench --bench s3_store -- [options]`
//!
//! The server is this program again, in a process of its own. It adds 30 ms to each answer and passes 60 MB/s in each direction, over
//! all connections together. Each figure stands with its target, and figures that are compared are measured in the same run, in
//! turn. With several rounds the median of each figure counts.
//!
//! | name | what is measured |
//! |---|---|
//! | `transfer` | a backup of new random data, and a restore without local copies, against plain puts and gets of as many bodies of the same length, 32 at a time; the requests of the backup |
//! | `small` | the same with chunks of 64 KiB, and a reader that fetches and decodes one after the other. With chunks of 4 MiB the link alone keeps a restore below 1.5 times its speed |
//! | `again` | the requests of a second backup of unchanged data, with and without local state and base |
//! | `warm` | a restore of which all chunks are on the local disk, against a store in a directory on the same disk |
//! | `refresh` | the first and the second refresh of 10,000 snapshots, and listing them after it |
//! | `gc` | garbage collection of a store of a million chunks, 5 % of them garbage, without a limit of the link: how long the chunks are listed, and the requests |
//! | `sync` | new chunks from one far bucket to another, against plain gets and puts of the same chunks, 16 at a time; the requests about chunks |
//! | `open` | a new process that opens a store of a million chunks, with and without records of all of them |
//! | `packs` | backup and restore of a loose and of a packed store with chunks of 4 MiB and of 64 KiB: requests for a GiB, and the time beside plain puts and gets of bodies of 32 MiB; a random read |
//! | `packs_gc` | garbage collection of a packed store of 1 TiB in chunks of 4 MiB, 5 % of them garbage: listings and deletions |
//! | `packs_open` | a new process that opens a packed store of 10 million chunks, with and without local state |
//!
//! | option | |
//! |---|---|
//! | `--check` | end with 1 if a target is not met |
//! | `--json` | print JSON |
//! | `--only NAME` | measure only this; may be given several times |
//! | `--rounds N` | how often each is measured; default: 3 (`refresh` and `open`: once) |
//! | `--size MIB` | how much is stored and restored; default: 512 |

#![allow(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a measuring program: it reads the clock and prints"
)]

mod again;
mod data;
mod far;
mod gc;
mod opening;
mod packs;
mod records;
mod refresh;
mod report;
mod server;
mod sync;
mod transfer;
mod warm;

#[path = "../random.rs"]
mod random;

use std::error::Error;
use std::process::ExitCode;

use lexopt::prelude::*;
use report::Report;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// What is to be measured.
#[derive(Debug)]
struct Plan {
    check: bool,
    json: bool,
    only: Vec<String>,
    rounds: usize,
    /// In bytes.
    size: usize,
}

type Scenario = (&'static str, fn(&Plan, &mut Report) -> Outcome<()>);

const SCENARIOS: [Scenario; 11] = [
    ("transfer", transfer::run),
    ("small", transfer::run_small),
    ("again", again::run),
    ("warm", warm::run),
    ("refresh", refresh::run),
    ("sync", sync::run),
    ("open", opening::run),
    ("gc", gc::run),
    ("packs", packs::run),
    ("packs_gc", packs::run_gc),
    ("packs_open", packs::run_open),
];

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let done = match arguments.first().map(String::as_str) {
        Some("server") => server::serve().map(|()| true).map_err(Into::into),
        Some("open") => opening::child(&arguments[1..]).map(|()| true),
        // As a test there is nothing to measure.
        _ if arguments.iter().any(|argument| argument == "--test") => Ok(true),
        _ => Plan::parse().and_then(|plan| measure(&plan)),
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

impl Plan {
    fn parse() -> Outcome<Self> {
        let mut plan = Self { check: false, json: false, only: Vec::new(), rounds: 3, size: 512 << 20 };
        let mut parser = lexopt::Parser::from_env();
        while let Some(argument) = parser.next()? {
            match argument {
                // Cargo says so.
                Long("bench") => {}
                Long("check") => plan.check = true,
                Long("json") => plan.json = true,
                Long("only") => plan.only.push(parser.value()?.string()?),
                Long("rounds") => plan.rounds = parser.value()?.parse::<usize>()?.max(1),
                Long("size") => plan.size = parser.value()?.parse::<usize>()?.max(64) << 20,
                other => return Err(other.unexpected().into()),
            }
        }
        if let Some(name) = plan.only.iter().find(|name| SCENARIOS.iter().all(|(known, _)| known != name)) {
            return Err(format!("there is nothing named {name}").into());
        }
        Ok(plan)
    }
}

/// Whether all is well.
fn measure(plan: &Plan) -> Outcome<bool> {
    let mut report = Report::default();
    for (name, scenario) in SCENARIOS {
        if plan.only.is_empty() || plan.only.iter().any(|only| only == name) {
            eprintln!("{name}");
            scenario(plan, &mut report)?;
        }
    }
    if plan.json {
        println!("{}", report.to_json());
    } else {
        report.print();
    }
    Ok(!plan.check || report.is_met())
}
