//! Runs simulated histories of a store, one for each seed, and shrinks the first one that loses data.
//! Run with: `cargo run --release --example simulate --features testing -- --seeds 1000 --from 0`
//! Replay a failure with: `… -- --replay SEED --steps 3,7,9`

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use larder::rt::{Runtime as _, ThreadRuntime};
use larder::simulation::{Failure, Simulation};
use lexopt::prelude::{Long, ValueExt as _};

struct Arguments {
    from: u64,
    local: Option<PathBuf>,
    replay: Option<u64>,
    seeds: u64,
    steps: Option<Vec<usize>>,
}

fn arguments() -> Result<Arguments, lexopt::Error> {
    let mut arguments = Arguments { from: 0, local: None, replay: None, seeds: 1000, steps: None };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("from") => arguments.from = parser.value()?.parse()?,
            // A directory for local state, which is emptied.
            Long("local") => arguments.local = Some(parser.value()?.into()),
            Long("replay") => arguments.replay = Some(parser.value()?.parse()?),
            Long("seeds") => arguments.seeds = parser.value()?.parse()?,
            Long("steps") => {
                let steps = parser.value()?.string()?;
                arguments.steps = Some(
                    steps
                        .split(',')
                        .map(str::parse)
                        .collect::<Result<_, std::num::ParseIntError>>()
                        .map_err(|error| error.to_string())?,
                );
            }
            _ => return Err(argument.unexpected()),
        }
    }
    Ok(arguments)
}

fn tell(failure: &Failure) {
    println!("{}\n\n{failure}", failure.log.join("\n"));
    let steps: Vec<_> = failure.steps.keys().map(ToString::to_string).collect();
    println!("replay: --replay {} --steps {}", failure.seed, steps.join(","));
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    // Once it has seen a block as large as this come and go, the allocator of glibc keeps the memory of one history for the next.
    drop(std::hint::black_box(Vec::<u8>::with_capacity(31 << 20)));
    let Arguments { from, local, replay, seeds, steps } = arguments()?;
    let mut simulation = Simulation::default();
    if let Some(directory) = local {
        simulation = simulation.local_state(directory);
    }
    if let Some(seed) = replay {
        match simulation.replay(seed, steps.as_deref()) {
            Ok(history) => println!("nothing is lost: {history:#?}"),
            Err(failure) => {
                tell(&failure);
                return Ok(ExitCode::FAILURE);
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let clock = ThreadRuntime::new();
    let begun = clock.monotonic();
    let (mut counts, mut failed, mut calls, mut number, mut done) =
        (BTreeMap::<String, u64>::new(), 0, 0, 0, 0_u32);
    for seed in from..from + seeds {
        done += 1;
        match simulation.run(seed) {
            Ok(history) => {
                calls += history.calls;
                number += history.steps;
                for (what, count) in history.counts {
                    *counts.entry(what).or_default() += count;
                }
            }
            Err(failure) => {
                println!("seed {seed}: {:?}", failure.violations);
                failed += 1;
                if failed == 1 {
                    tell(&simulation.shrink(failure));
                }
                if failed == 40 {
                    break;
                }
            }
        }
    }
    let seconds = clock.monotonic().saturating_sub(begun).as_secs_f64();
    println!("{counts:#?}");
    println!("{done} histories from seed {from}: {failed} failed; {number} steps, {calls} calls of backends");
    println!("{:.0} histories a second, {seconds:.1} s", f64::from(done) / seconds);
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
