use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::chunker::tests::cuts;

const SMALL: usize = LEAST_AVERAGE;

fn small() -> BuzhashChunker {
    BuzhashChunker::new(SMALL).unwrap()
}

/// The definition, byte by byte.
fn slow_cuts(data: &[u8], suggested: &[usize]) -> Vec<usize> {
    let (min, max, mask) = (SMALL / 4, SMALL * 4, u32::try_from(2 * SMALL).unwrap() - 1);
    let (mut cuts, mut start) = (Vec::new(), 0);
    for end in 1..=data.len() {
        let length = end - start;
        let hash = || data[end - 64..end].iter().fold(0_u32, |hash, byte| step(hash, *byte));
        if length >= min && (length == max || suggested.contains(&end) || hash() & mask >= mask - 2) {
            cuts.push(end);
            start = end;
        }
    }
    cuts
}

/// The average and the cuts of one input.
type Lists = Vec<(usize, Vec<usize>)>;

/// The genuine inputs whose cuts are known, with the list of cuts for each average.
fn genuine() -> Vec<(Vec<u8>, Lists)> {
    let place = Path::new("tests/data/pbs-4.2.3");
    let expected: serde_json::Value =
        serde_json::from_reader(File::open(place.join("chunker-expected.json")).unwrap()).unwrap();
    let decoder = zstd::Decoder::new(File::open(place.join("inputs.tar.zst")).unwrap()).unwrap();
    let mut archive = tar::Archive::new(decoder);
    let mut found = Vec::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().file_name().unwrap().to_str().unwrap().to_owned();
        let Some(lists) = expected[&name].as_object() else { continue };
        let mut data = Vec::new();
        entry.read_to_end(&mut data).unwrap();
        let lists = lists.iter().map(|(kib, list)| {
            let list =
                list.as_array().unwrap().iter().map(|end| usize::try_from(end.as_u64().unwrap()).unwrap());
            (kib.parse::<usize>().unwrap() << 10, list.collect())
        });
        found.push((data, lists.collect()));
    }
    assert_eq!(found.len(), expected.as_object().unwrap().len());
    found
}

#[test]
fn cuts_are_those_of_the_real_chunker() {
    let mut lists = 0;
    for (data, expected) in genuine() {
        for (average, expected) in expected {
            let mut found = cuts(BuzhashChunker::new(average).unwrap(), &data, &[1 << 20]);
            if found.last() != Some(&data.len()) {
                found.push(data.len());
            }
            assert_eq!(found, expected);
            lists += 1;
        }
    }
    assert_eq!(lists, 58);
}

#[test]
fn cuts_are_at_the_documented_positions() {
    let data = larder_testing::noise(1, 2 << 20);
    let found = cuts(small(), &data, &[1 << 20]);
    assert!(found.len() > 10);
    assert_eq!(found, slow_cuts(&data, &[]));
}

#[test]
fn zeros_are_cut_at_the_maximum() {
    assert_eq!(cuts(small(), &vec![0; 1 << 20], &[100_000]), [256 << 10, 512 << 10, 768 << 10, 1 << 20]);
}

#[test]
fn a_suggested_boundary_ends_a_chunk_that_is_long_enough() {
    let data = larder_testing::noise(2, 1 << 20);
    let suggested = [100, 16_384, 16_385, 40_000, 70_000, 500_000, 516_383, 600_000, 900_000];
    let mut chunker = small();
    for position in suggested {
        chunker.suggest(position as u64);
    }
    let found = cuts(chunker, &data, &[50_000]);
    assert_eq!(found, slow_cuts(&data, &suggested));
    assert!(suggested.iter().filter(|position| found.contains(position)).count() > 2, "{found:?}");
}

#[test]
fn a_boundary_that_is_suggested_too_late_is_forgotten() {
    let data = larder_testing::noise(2, 1 << 20);
    let mut chunker = small();
    assert_eq!(chunker.scan(&data[..16_500]), None);
    chunker.suggest(0);
    chunker.suggest(500);
    assert_eq!(chunker.scan(&data[16_500..]), Some(500));
}

#[test]
fn a_restart_begins_a_chunk() {
    let data = larder_testing::noise(3, 300_000);
    let mut chunker = small();
    assert_eq!(chunker.scan(&data[..10_000]), None);
    chunker.restart();
    let expected = slow_cuts(&data[10_000..], &[]);
    assert_eq!(cuts(chunker, &data[10_000..], &[data.len()]), expected);
}

#[test]
fn averages_out_of_range_are_refused() {
    for size in [0, 1 << 15, 8 << 20, 100_000] {
        assert!(BuzhashChunker::new(size).is_err(), "{size}");
    }
    let default = BuzhashChunker::default();
    assert_eq!((default.min(), default.max_bytes()), (1 << 20, 16 << 20));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn cuts_do_not_depend_on_the_sizes_of_calls(seed in 0..1000_u64, pieces in prop::collection::vec(1..40_000_usize, 1..10)) {
        let data = larder_testing::noise(seed, 500_000);
        prop_assert_eq!(cuts(small(), &data, &pieces), cuts(small(), &data, &[data.len()]));
    }

    #[test]
    fn cuts_do_not_depend_on_tiny_calls(pieces in prop::collection::vec(1..70_usize, 1..5)) {
        let data = larder_testing::noise(9, 150_000);
        prop_assert_eq!(cuts(small(), &data, &pieces), cuts(small(), &data, &[data.len()]));
    }
}
