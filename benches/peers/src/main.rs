//! The S3 client of larder beside `object_store` and `aws-sdk-s3`: the same objects, server and checksums, in one run.
//! Run with: `cargo run --release`
//!
//! The server and every single measurement are processes of their own, so that the CPU time of a client is its own.

#![allow(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a measuring program: it reads the clock and prints"
)]

mod children;
mod compare;
mod measure;
mod memory;
mod peers;
mod server;

use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use children::{Link, Scheme};
use compare::Plan;
use lexopt::{Arg, Parser, ValueExt as _};
use measure::Operation;
use peers::{Outcome, Peer};

const USAGE: &str = "\
usage: larder-peers [options]
       larder-peers --memory [options]     how much memory 32 uploads of 16 MiB take
       larder-peers server [--tls FILE] [--delay-ms N] [--rate N]
                                           the server by itself, until its input ends

  --link open|slow   as fast as it goes, or a link of limited speed; default: both
  --rate BYTES       a second, of the slow link, each way; default: 60000000
  --delay-ms N       until the slow server answers; default: 5
  --scheme plain|tls default: both
  --peer NAME        larder, object-store or aws-sdk-s3; default: all
  --operation NAME   put, get or small-get; default: all
  --in-flight N,N    default: 1,4,16,32
  --rounds N         default: 5
  --seconds S        how long one measurement takes at least; default: 1.5
  --json             one JSON object";

fn main() -> ExitCode {
    match run(Parser::from_env()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprint!("{error}");
            let mut source = error.source();
            while let Some(cause) = source {
                eprint!(": {cause}");
                source = cause.source();
            }
            eprintln!();
            ExitCode::FAILURE
        }
    }
}

fn run(mut parser: Parser) -> Outcome<()> {
    let mut arguments = Arguments::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Value(word) if word == "server" => return Ok(server::serve(&server_options(parser)?)?),
            Arg::Value(word) if word == "measure" => {
                let order = serde_json::from_reader(std::io::stdin())?;
                println!("{}", serde_json::to_string(&measure::run(&order)?)?);
                return Ok(());
            }
            Arg::Long("help") | Arg::Short('h') => {
                println!("{USAGE}");
                return Ok(());
            }
            Arg::Long(name) => {
                let name = name.to_owned();
                arguments.take(&name, &mut parser)?;
            }
            other => return Err(other.unexpected().into()),
        }
    }
    let directory = std::env::temp_dir().join(format!("larder-peers-{}", std::process::id()));
    std::fs::create_dir(&directory)?;
    let done = arguments.execute(&directory);
    std::fs::remove_dir_all(&directory)?;
    done
}

struct Arguments {
    as_json: bool,
    memory: bool,
    plan: Plan,
    slow: Link,
    slow_only: Option<bool>,
}

impl Default for Arguments {
    fn default() -> Self {
        let plan = Plan {
            in_flight: vec![1, 4, 16, 32],
            links: Vec::new(),
            operations: Operation::ALL.to_vec(),
            peers: Peer::ALL.to_vec(),
            rounds: 5,
            schemes: Scheme::ALL.to_vec(),
            seconds: 1.5,
        };
        let slow = Link { delay: Duration::from_millis(5), rate: 60_000_000 };
        Self { as_json: false, memory: false, plan, slow, slow_only: None }
    }
}

impl Arguments {
    fn take(&mut self, name: &str, parser: &mut Parser) -> Outcome<()> {
        let plan = &mut self.plan;
        match name {
            "delay-ms" => self.slow.delay = Duration::from_millis(parser.value()?.parse()?),
            "in-flight" => {
                plan.in_flight = list(parser, |word| usize::from_str(word).ok().filter(|count| *count > 0))?;
            }
            "json" => self.as_json = true,
            "link" => {
                let links = list(parser, |word| ["open", "slow"].iter().position(|name| *name == word))?;
                self.slow_only = (links.len() == 1).then(|| links == [1]);
            }
            "memory" => self.memory = true,
            "operation" => {
                plan.operations =
                    list(parser, |word| Operation::ALL.into_iter().find(|one| one.name() == word))?;
            }
            "peer" => plan.peers = list(parser, Peer::named)?,
            "rate" => self.slow.rate = parser.value()?.parse()?,
            "rounds" => plan.rounds = parser.value()?.parse()?,
            "scheme" => {
                plan.schemes = list(parser, |word| Scheme::ALL.into_iter().find(|one| one.name() == word))?;
            }
            "seconds" => plan.seconds = parser.value()?.parse()?,
            _ => return Err(format!("--{name}: there is no such option").into()),
        }
        Ok(())
    }

    fn execute(mut self, directory: &std::path::Path) -> Outcome<()> {
        if self.memory {
            let peaks = memory::run(&self.plan.peers, &self.plan.schemes, self.slow, directory)?;
            if self.as_json {
                println!("{}", memory::to_json(&peaks));
            } else {
                memory::print(&peaks);
            }
            return Ok(());
        }
        let open = Link { delay: Duration::ZERO, rate: 0 };
        self.plan.links = match self.slow_only {
            None => vec![open, self.slow],
            Some(true) => vec![self.slow],
            Some(false) => vec![open],
        };
        let report = self.plan.run(directory)?;
        if self.as_json {
            println!("{}", report.to_json());
        } else {
            report.print();
        }
        Ok(())
    }
}

/// The words of a value, between commas.
fn list<T>(parser: &mut Parser, read: impl Fn(&str) -> Option<T>) -> Outcome<Vec<T>> {
    let value = parser.value()?.string()?;
    let words = value
        .split(',')
        .map(|word| read(word).ok_or_else(|| format!("{word}: there is no such thing").into()));
    words.collect()
}

fn server_options(mut parser: Parser) -> Outcome<server::Options> {
    let mut options = server::Options::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("delay-ms") => options.delay = Duration::from_millis(parser.value()?.parse()?),
            Arg::Long("rate") => options.rate = parser.value()?.parse()?,
            Arg::Long("tls") => options.ca = Some(parser.value()?.into()),
            other => return Err(other.unexpected().into()),
        }
    }
    Ok(options)
}
