//! Random histories of a store, side by side and simulated, against a model in plain memory.
//!
//! `LARDER_SEED=n` replays one history, `LARDER_SEEDS=n` tries so many, `LARDER_TELL=1` tells as it goes.

#[path = "support/history/mod.rs"]
mod history;
mod support;

use std::collections::BTreeMap;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

#[test]
fn whatever_happens_the_store_has_what_it_acknowledged() {
    if let Some(seed) = number("LARDER_SEED") {
        let life = history::live(seed);
        eprintln!("{life:#?}");
        return;
    }
    let mut counts = BTreeMap::<String, u64>::new();
    let first = number("LARDER_FIRST_SEED").unwrap_or(0);
    for seed in first..first + number("LARDER_SEEDS").unwrap_or(60) {
        for (what, count) in history::live(seed).counts {
            *counts.entry(what).or_default() += count;
        }
    }
    eprintln!("{counts:#?}");
}
