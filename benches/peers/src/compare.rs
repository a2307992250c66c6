//! All peers in one run: each case is measured several times, in turn, and medians are compared.

use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::children::{Link, Scheme, Server};
use crate::measure::{Measured, Operation, Task};
use crate::peers::{Outcome, Peer};

/// What is measured, and how often.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) in_flight: Vec<usize>,
    pub(crate) links: Vec<Link>,
    pub(crate) operations: Vec<Operation>,
    pub(crate) peers: Vec<Peer>,
    pub(crate) rounds: usize,
    pub(crate) schemes: Vec<Scheme>,
    pub(crate) seconds: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
struct Case {
    in_flight: usize,
    link: Link,
    operation: Operation,
    scheme: Scheme,
}

/// A case with what each peer did in each round.
struct Row {
    case: Case,
    rounds: Vec<(Peer, Vec<Measured>)>,
}

/// Everything that was measured.
pub(crate) struct Report {
    /// What SHA-256 alone costs, in seconds of CPU a GB: no put can cost less.
    hash: f64,
    rows: Vec<Row>,
    /// How the clients sent bodies, as the servers saw it.
    said: Vec<String>,
}

impl Plan {
    pub(crate) fn run(&self, directory: &Path) -> Outcome<Report> {
        let (mut hashes, mut rows, mut said) = (Vec::new(), Vec::new(), Vec::new());
        for &link in &self.links {
            for &scheme in &self.schemes {
                let server = Server::start(scheme, link, directory)?;
                let mut rows_here = self.rows(link, scheme);
                for round in 0..self.rounds {
                    let task = Task::Hash { seconds: self.seconds.min(0.5) };
                    hashes.push(cpu_a_gb(&server.measure(Peer::Larder, task)?));
                    for row in &mut rows_here {
                        self.round(&server, row, round)?;
                    }
                }
                rows.append(&mut rows_here);
                said.extend(server.stop());
            }
        }
        said.sort();
        said.dedup();
        Ok(Report { hash: median(hashes), rows, said })
    }

    fn rows(&self, link: Link, scheme: Scheme) -> Vec<Row> {
        let mut rows = Vec::new();
        for &operation in &self.operations {
            for &in_flight in &self.in_flight {
                // One object after the other, and as many as there are.
                let extreme = in_flight == 1 || Some(&in_flight) == self.in_flight.iter().max();
                if operation != Operation::SmallGet || extreme {
                    let case = Case { in_flight, link, operation, scheme };
                    rows.push(Row {
                        case,
                        rounds: self.peers.iter().map(|peer| (*peer, Vec::new())).collect(),
                    });
                }
            }
        }
        rows
    }

    /// Measures every peer once. Who is first changes from round to round.
    fn round(&self, server: &Server, row: &mut Row, round: usize) -> Outcome<()> {
        let Case { in_flight, link, operation, scheme } = row.case;
        for turn in 0..row.rounds.len() {
            let number = (turn + round) % row.rounds.len();
            let (peer, measured) = &mut row.rounds[number];
            let (name, what) = (peer.name(), operation.name());
            eprintln!("round {}: {} {what} x{in_flight} {name}", round + 1, scheme_and_link(scheme, link));
            let task = Task::Repeat { operation, in_flight, seconds: self.seconds };
            measured.push(server.measure(*peer, task)?);
        }
        Ok(())
    }
}

impl Row {
    /// MB/s, or operations a second where they are small.
    fn speed(&self, measured: &Measured) -> f64 {
        self.amount(measured) / measured.seconds
    }

    /// Seconds of CPU a GB, or microseconds an operation.
    fn cpu(&self, measured: &Measured) -> f64 {
        match self.case.operation {
            Operation::SmallGet => measured.cpu / measured.operations as f64 * 1e6,
            Operation::Put | Operation::Get => cpu_a_gb(measured),
        }
    }

    /// MB, or operations.
    fn amount(&self, measured: &Measured) -> f64 {
        match self.case.operation {
            Operation::SmallGet => measured.operations as f64,
            Operation::Put | Operation::Get => gigabytes(measured) * 1e3,
        }
    }

    fn medians(&self, of: impl Fn(&Measured) -> f64) -> Vec<(Peer, f64)> {
        let median_of = |rounds: &[Measured]| median(rounds.iter().map(&of).collect());
        self.rounds.iter().map(|(peer, rounds)| (*peer, median_of(rounds))).collect()
    }

    /// What larder reaches of the best of the others.
    fn ratio(medians: &[(Peer, f64)], better: impl Fn(f64, f64) -> f64) -> Option<f64> {
        let own = medians.iter().find(|(peer, _)| *peer == Peer::Larder)?.1;
        let others = medians.iter().filter(|(peer, _)| *peer != Peer::Larder);
        others.map(|(_, value)| *value).reduce(better).map(|best| own / best)
    }
}

impl Report {
    /// What larder needs beside the hash of a body, compared to the best of the others.
    fn beside_hash(&self, row: &Row, cpus: &[(Peer, f64)]) -> Option<f64> {
        let beside: Vec<_> = cpus.iter().map(|(peer, cpu)| (*peer, cpu - self.hash)).collect();
        let is_put = row.case.operation == Operation::Put;
        Row::ratio(&beside, f64::min).filter(|ratio| is_put && ratio.is_finite())
    }

    pub(crate) fn print(&self) {
        println!("SHA-256 alone: {:.3} s/GB of CPU\n", self.hash);
        println!("How bodies are sent, as the server sees it:");
        for line in &self.said {
            println!("  {line}");
        }
        let mut heading = None;
        for row in &self.rows {
            let Case { in_flight, link, operation, scheme } = row.case;
            if heading.replace((link, scheme)).is_none_or(|last| last != (link, scheme)) {
                let names: Vec<_> =
                    row.rounds.iter().map(|(peer, _)| format!("{:>13}", peer.name())).collect();
                let names = names.concat();
                println!("\n{}", scheme_and_link(scheme, link));
                println!("{:18}{names}   ratio |{names}   ratio", "");
            }
            let small = operation == Operation::SmallGet;
            let (speed, cpu) = if small { ("1/s", "us each") } else { ("MB/s", "s/GB") };
            let cells = |medians: &[(Peer, f64)], digits: usize| {
                medians.iter().map(|(_, value)| format!("{value:>13.digits$}")).collect::<Vec<_>>().concat()
            };
            let show =
                |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
            let (speeds, cpus) = (row.medians(|one| row.speed(one)), row.medians(|one| row.cpu(one)));
            println!(
                "{:12}{:>4}  {} {:>7} |{} {:>7}{:>7}   {speed}, CPU {cpu}",
                operation.name(),
                format!("x{in_flight}"),
                cells(&speeds, usize::from(!small)),
                show(Row::ratio(&speeds, f64::max)),
                cells(&cpus, if small { 1 } else { 3 }),
                show(Row::ratio(&cpus, f64::min)),
                self.beside_hash(row, &cpus).map_or_else(String::new, |ratio| format!("({ratio:.2})")),
            );
        }
        println!("\nratio: larder to the better of the others; wanted: speed 1.00 or more, CPU 0.80 or less");
        println!(
            "in brackets: the same of the CPU beside what SHA-256 alone costs, which every put has to pay"
        );
    }

    pub(crate) fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            let (speeds, cpus) = (row.medians(|one| row.speed(one)), row.medians(|one| row.cpu(one)));
            let by_name = |medians: &[(Peer, f64)]| -> Value {
                medians.iter().map(|(peer, value)| (peer.name().to_owned(), json!(value))).collect()
            };
            let rounds: Value =
                row.rounds.iter().map(|(peer, rounds)| (peer.name().to_owned(), json!(rounds))).collect();
            json!({
                "case": row.case,
                "speed": by_name(&speeds),
                "speed_ratio": Row::ratio(&speeds, f64::max),
                "cpu": by_name(&cpus),
                "cpu_ratio": Row::ratio(&cpus, f64::min),
                "cpu_ratio_beside_hash": self.beside_hash(row, &cpus),
                "rounds": rounds,
            })
        });
        json!({ "rows": rows.collect::<Vec<_>>(), "bodies": self.said, "hash_seconds_a_gb": self.hash })
    }
}

pub(crate) fn scheme_and_link(scheme: Scheme, link: Link) -> String {
    let scheme = scheme.name();
    if link.rate == 0 {
        return format!("{scheme}, as fast as it goes");
    }
    format!("{scheme}, {} MB/s each way, {} ms to answer", link.rate / 1_000_000, link.delay.as_millis())
}

/// Of objects that are not small.
fn gigabytes(measured: &Measured) -> f64 {
    measured.operations as f64 * Operation::Put.object_bytes() as f64 / 1e9
}

fn cpu_a_gb(measured: &Measured) -> f64 {
    measured.cpu / gigabytes(measured)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values[..] {
        [] => f64::NAN,
        _ if values.len().is_multiple_of(2) => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}
