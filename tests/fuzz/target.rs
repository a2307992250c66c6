//! Runs one target of [`bodies`] under libFuzzer; `LARDER_FUZZ_TARGET` names it. `run.sh` builds and runs it.

#![no_main]

mod bodies;

use std::sync::LazyLock;

use bodies::Target;

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("LARDER_FUZZ_TARGET").expect("LARDER_FUZZ_TARGET names a target");
    bodies::TARGETS.iter().copied().find(|target| target.name == name).expect("a target of that name")
});

libfuzzer_sys::fuzz_target!(|input: &[u8]| bodies::run(*TARGET, input));
