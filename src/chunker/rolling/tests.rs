use std::error::Error as _;

use proptest::prelude::*;

use super::*;
use crate::format::Digest;

const SMALL: usize = LEAST_AVERAGE;

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let words = (0..length.div_ceil(32) as u64)
        .flat_map(|word| *Digest::of(&[seed, word].map(u64::to_le_bytes).concat()).as_bytes());
    words.take(length).collect()
}

fn cuts(average: usize, data: &[u8], pieces: &[usize]) -> Vec<usize> {
    crate::chunker::tests::cuts(RollingChunker::new(average).unwrap(), data, pieces)
}

fn sizes(cuts: &[usize]) -> Vec<usize> {
    [0].iter().chain(cuts).zip(cuts).map(|(start, end)| end - start).collect()
}

/// The definition in the module docs, byte by byte.
fn slow_cuts(data: &[u8]) -> Vec<usize> {
    let (min, centre, max) = (16 << 10, 52 << 10, 256 << 10);
    let (mut cuts, mut start) = (Vec::new(), 0);
    for end in 1..=data.len() {
        let length = end - start;
        let bits = if length <= centre { 18 } else { 14 };
        let hash = data[end.saturating_sub(64)..end].iter().fold(0_u64, |hash, byte| step(hash, *byte));
        if length == max || (length >= min && hash >> (64 - bits) == 0) {
            cuts.push(end);
            start = end;
        }
    }
    cuts
}

#[test]
fn cuts_are_at_the_documented_positions() {
    let data = noise(1, 3 << 20);
    let found = cuts(SMALL, &data, &[1 << 20]);
    assert!(found.len() > 20);
    assert_eq!(found, slow_cuts(&data));
}

#[test]
fn cuts_are_stable_across_versions() {
    let random = cuts(SMALL, &noise(2, 2 << 20), &[1 << 20]);
    let repeated = cuts(SMALL, &noise(3, 100_000).repeat(20), &[1 << 20]);
    let digest = |cuts: &[usize]| Digest::of(format!("{cuts:?}").as_bytes()).to_string()[..16].to_owned();
    assert_eq!((random.len(), digest(&random).as_str()), (33, "a7dc60f0bb5ecb4b"));
    assert_eq!((repeated.len(), digest(&repeated).as_str()), (40, "3c113636de53f742"));
}

#[test]
fn sizes_gather_around_the_average() {
    let data = larder_testing::noise(4, 32 << 20);
    let sizes = sizes(&cuts(SMALL, &data, &[1 << 20]));
    let mean = sizes.iter().sum::<usize>() / sizes.len();
    assert!((52 << 10..76 << 10).contains(&mean), "{mean}");
    assert!(sizes.iter().all(|size| (16 << 10..=256 << 10).contains(size)));
    let typical = sizes.iter().filter(|size| **size < 128 << 10).count();
    assert!(typical * 100 >= sizes.len() * 95, "{typical} of {}", sizes.len());
}

#[test]
fn zeros_are_cut_at_the_maximum() {
    let found = cuts(SMALL, &vec![0; 1 << 20], &[1000, 77]);
    assert_eq!(sizes(&found), [256 << 10; 4]);
}

#[test]
fn cuts_realign_after_an_insertion() {
    let before = larder_testing::noise(5, 8 << 20);
    let mut after = before.clone();
    after.splice(3 << 20..3 << 20, *b"inserted");
    let old = cuts(SMALL, &before, &[1 << 20]);
    let new: Vec<_> = cuts(SMALL, &after, &[1 << 20]);
    let moved = |cut: &usize| if *cut > 3 << 20 { cut + 8 } else { *cut };
    let shared = old.iter().map(moved).filter(|cut| new.contains(cut)).count();
    assert!(shared + 4 >= old.len(), "{shared} of {}", old.len());
}

#[test]
fn averages_out_of_range_are_refused() {
    let why = |size| RollingChunker::new(size).unwrap_err().source().unwrap().to_string();
    for size in [0, 1 << 15, 8 << 20] {
        assert!(why(size).contains("not within"), "{size}");
    }
    assert_eq!(why(100_000), "the size is not a power of two");
    let default = RollingChunker::default();
    assert_eq!((default.min(), default.max_bytes()), (1 << 20, 16 << 20));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn cuts_do_not_depend_on_the_sizes_of_calls(seed in 0..1000_u64, pieces in prop::collection::vec(1..40_000_usize, 1..10)) {
        let data = noise(seed, 700_000);
        prop_assert_eq!(cuts(SMALL, &data, &pieces), cuts(SMALL, &data, &[data.len()]));
    }

    #[test]
    fn cuts_do_not_depend_on_tiny_calls(pieces in prop::collection::vec(1..70_usize, 1..5)) {
        let data = noise(9, 150_000);
        prop_assert_eq!(cuts(SMALL, &data, &pieces), cuts(SMALL, &data, &[data.len()]));
    }
}
