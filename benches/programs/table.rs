//! What came out, as a table.

use crate::data::Set;
use crate::measured::Cost;
use crate::peers::{Program, Step};

/// The most memory that larder may take in a step.
const MOST_MIB: f64 = 100.0;

/// The best of all rounds, by program and step.
#[derive(Debug)]
pub(crate) struct Table {
    costs: Vec<[Option<Cost>; Step::ALL.len()]>,
}

impl Table {
    pub(crate) fn new(programs: usize) -> Self {
        Self { costs: vec![[None; Step::ALL.len()]; programs] }
    }

    pub(crate) fn add(&mut self, program: usize, step: Step, cost: Cost) {
        let best = &mut self.costs[program][step as usize];
        *best = Some(best.map_or(cost, |best| Cost {
            cpu_seconds: best.cpu_seconds.min(cost.cpu_seconds),
            mib: best.mib.max(cost.mib),
            seconds: best.seconds.min(cost.seconds),
        }));
    }

    /// Prints the costs, and ratios to `restic`. Returns `true` if no goal is missed.
    pub(crate) fn print(&self, programs: &[Program], set: &Set) -> bool {
        println!(
            "| seconds · CPU seconds · MiB | first backup | everything re-read | restore | check of all data | new store |"
        );
        println!("|---|---|---|---|---|---|");
        for (program, costs) in programs.iter().zip(&self.costs) {
            print!("| {} |", program.name());
            for step in Step::COMPARED.into_iter().chain([Step::Create]) {
                if let Some(Cost { cpu_seconds, mib, seconds }) = costs[step as usize] {
                    print!(" {seconds:.2} · {cpu_seconds:.2} · {mib:.0} |");
                }
            }
            println!();
        }
        let mut are_met = true;
        let restic = programs.iter().position(|program| *program == Program::Restic);
        for (program, costs) in programs.iter().zip(&self.costs).filter(|(program, _)| program.is_ours()) {
            are_met &= costs.iter().flatten().all(|cost| cost.mib <= MOST_MIB);
            let Some(restic) = restic.map(|number| &self.costs[number]) else { continue };
            print!("| {} ÷ `restic`, seconds (CPU seconds) |", program.name());
            for step in Step::COMPARED {
                if let (Some(ours), Some(theirs)) = (costs[step as usize], restic[step as usize]) {
                    let ratio = ours.seconds / theirs.seconds;
                    print!(" {ratio:.2} ({:.2}) |", ours.cpu_seconds / theirs.cpu_seconds);
                    are_met &= set.goal(step).is_none_or(|goal| ratio <= goal);
                }
            }
            println!(" |");
        }
        if restic.is_some() && set.goal(Step::First).is_some() {
            print!("| goal |");
            Step::COMPARED.into_iter().filter_map(|step| set.goal(step)).for_each(|goal| print!(" {goal} |"));
            println!(" |");
        }
        are_met
    }
}
