//! AES-256-GCM with nonces of 16 bytes, made in several ways and measured in one run.

#![allow(
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::inline_always,
    reason = "sizes of some MiB; a clock is what a bench is about; the backend of AES calls its closures inline"
)]

mod check;
mod others;
mod parts;
mod rust;

use std::hint::black_box;
use std::time::{Duration, Instant};

use rustix::time::ClockId;

/// GCM in place, without associated data.
pub(crate) trait Gcm {
    fn seal(&self, nonce: &[u8; 16], data: &mut [u8]) -> [u8; 16];

    /// Authenticates, and decrypts if authentic.
    fn open(&self, nonce: &[u8; 16], tag: &[u8; 16], data: &mut [u8]) -> bool;
}

/// One way to make the cipher, or a part of it.
pub(crate) struct Way {
    pub(crate) name: &'static str,
    pub(crate) gcm: Box<dyn Gcm>,
    pub(crate) is_whole: bool,
}

impl Way {
    pub(crate) fn new(name: &'static str, gcm: impl Gcm + 'static) -> Self {
        Self { name, gcm: Box::new(gcm), is_whole: true }
    }

    /// Half of the cipher, or the whole with another nonce.
    pub(crate) fn part(name: &'static str, gcm: impl Gcm + 'static) -> Self {
        Self { name, gcm: Box::new(gcm), is_whole: false }
    }
}

pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("randomness");
    bytes
}

pub(crate) fn ways(key: &[u8; 32]) -> Vec<Way> {
    rust::ways(key).into_iter().chain(others::ways(key)).collect()
}

/// CPU time of this thread, so that other processes do not count.
fn now() -> Duration {
    let now = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// GB/s of seal and open, each the best of many.
fn measure(gcm: &dyn Gcm, bytes: usize) -> (f64, f64) {
    let mut data = vec![0; bytes];
    getrandom::fill(&mut data).expect("randomness");
    let (mut seal, mut open) = (Duration::MAX, Duration::MAX);
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        let start = now();
        let tag = black_box(gcm.seal(&[3; 16], black_box(&mut data)));
        let sealed = now();
        assert!(gcm.open(&[3; 16], &tag, black_box(&mut data)), "not authentic");
        let opened = now();
        seal = seal.min(sealed.saturating_sub(start));
        open = open.min(opened.saturating_sub(sealed));
    }
    let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    (rate(seal), rate(open))
}

fn main() {
    check::run();
    let only = std::env::args().nth(1).unwrap_or_default();
    println!("| GB/s of one thread, seal / open | 64 KiB | 1 MiB | 4 MiB |\n|---|---|---|---|");
    for way in ways(&random()).iter().filter(|way| way.name.contains(&only)) {
        print!("| {} |", way.name);
        for bytes in [64 << 10, 1 << 20, 4 << 20] {
            let (seal, open) = measure(&*way.gcm, bytes);
            print!(" {seal:.1} / {open:.1} |");
        }
        println!();
    }
}
