use std::collections::HashMap;

use super::*;

fn digest(number: u64) -> Digest {
    Digest::of(&number.to_le_bytes())
}

fn opened(directory: &Path, merge_at: usize) -> PresenceStore {
    PresenceStore::open_merging_at(directory, Some("a"), "a", merge_at).unwrap()
}

fn bytes_in(directory: &Path) -> u64 {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn random_presence_records_match_a_map() {
    let directory = larder_testing::scratch();
    let mut model = HashMap::new();
    let mut store = opened(directory.path(), 37);
    let mut random: u64 = 1;
    for step in 0..4000 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (number, length) = (random >> 33 & 0xff, u32::try_from(random >> 50).unwrap());
        if (random >> 20).is_multiple_of(16) {
            store.forget(digest(number)).unwrap();
            model.remove(&number);
        } else {
            store.set(digest(number), length).unwrap();
            model.insert(number, length);
        }
        if step % 1000 == 0 {
            drop(store);
            store = opened(directory.path(), 37);
        }
        assert_eq!(store.get(&digest(number)), model.get(&number).copied());
    }
    for number in 0..0x100 {
        assert_eq!(store.get(&digest(number)), model.get(&number).copied(), "{number}");
    }
    assert!(store.state().segments.len() <= 8, "{}", store.state().segments.len());
}

/// Proves H65.
#[test]
fn a_chunk_takes_at_most_64_bytes_at_rest_and_160_at_any_time() {
    let directory = larder_testing::scratch();
    let store = opened(directory.path(), 2 << 10);
    let (count, mut most) = (25_000, 0);
    for number in 0..count {
        store.set(digest(number), 1 << 20).unwrap();
        if number > 12_500 && number % 2048 == 2047 {
            most = most.max(bytes_in(directory.path()) / number);
        }
    }
    let at_rest = bytes_in(directory.path()) / count;
    assert!(at_rest < 64 && most < 80, "{at_rest} bytes at rest, {most} after a merge");
    drop(store);
    let again = opened(directory.path(), MERGE_AT);
    let sampled =
        (0..count).step_by(97).filter(|number| again.get(&digest(*number)) == Some(1 << 20)).count();
    assert_eq!(sampled, (0..count).step_by(97).count());
    assert_eq!(again.get(&digest(count)), None);
}

#[test]
fn a_torn_end_of_the_log_is_truncated() {
    let directory = larder_testing::scratch();
    let store = opened(directory.path(), 100);
    for number in 0..5 {
        store.set(digest(number), 1).unwrap();
    }
    drop(store);
    let log = directory.path().join(LOG);
    let whole = fs::read(&log).unwrap();
    for length in 0..=whole.len() {
        for zeros in [0, 1, 40, 95] {
            fs::write(&log, [&whole[..length], &vec![0; zeros][..]].concat()).unwrap();
            let store = opened(directory.path(), 100);
            // A record that is torn and then continued by zeros is damage: everything is dropped.
            let torn = length % RECORD_BYTES != 0 && length % RECORD_BYTES + zeros >= RECORD_BYTES;
            let left = if torn { 0 } else { length / RECORD_BYTES };
            let found = (0..5).filter(|number| store.get(&digest(*number)).is_some()).count();
            assert_eq!(found, left, "{length} and {zeros}");
            store.set(digest(9), 9).unwrap();
            drop(store);
            assert_eq!(opened(directory.path(), 100).get(&digest(9)), Some(9));
        }
    }
}

#[test]
fn no_damage_restores_a_removed_record() {
    let directory = larder_testing::scratch();
    let store = opened(directory.path(), 8);
    for number in 0..64 {
        store.set(digest(number), 7).unwrap();
    }
    for number in 0..12 {
        store.forget(digest(number)).unwrap();
    }
    drop(store);
    let saved: Vec<_> = fs::read_dir(directory.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    assert!(saved.len() > 3, "a log, several segments");
    for (path, bytes) in &saved {
        for at in (0..bytes.len()).step_by(5) {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1 << (at % 8);
            for (path, bytes) in &saved {
                fs::write(path, bytes).unwrap();
            }
            fs::write(path, damaged).unwrap();
            let store = opened(directory.path(), 8);
            for number in 0..64 {
                let found = store.get(&digest(number));
                let allowed = found.is_none() || (number >= 12 && found == Some(7));
                assert!(allowed, "{}: byte {at}: {number}: {found:?}", path.display());
            }
            // Merging does not either.
            for number in 100..108 {
                store.set(digest(number), 7).unwrap();
            }
            assert!((0..12).all(|number| store.get(&digest(number)).is_none()), "{}: {at}", path.display());
        }
    }
}

/// As damage that no checksum shows: a merge would take the second record for an older one than that which forgets the chunk.
#[test]
fn a_chunk_with_two_records_in_a_segment_stays_forgotten() {
    let directory = larder_testing::scratch();
    let store = opened(directory.path(), 2);
    for number in 0..2 {
        store.set(digest(number), 7).unwrap();
    }
    drop(store);
    let segment = directory.path().join("segment-0");
    fs::remove_file(&segment).unwrap();
    let twice = [(digest(0), Presence::Present(7)); 2];
    write_segment(&segment, twice.into_iter(), Vec::new(), true).unwrap();
    let store = opened(directory.path(), 2);
    store.forget(digest(0)).unwrap();
    store.set(digest(5), 7).unwrap();
    assert_eq!(store.state().recent.len(), 0, "a merge");
    assert_eq!(store.get(&digest(0)), None);
}

#[test]
fn records_are_valid_only_under_their_own_stamp() {
    let directory = larder_testing::scratch();
    let open = |valid, stamp| PresenceStore::open_merging_at(directory.path(), valid, stamp, 4).unwrap();
    for number in 0..6 {
        open(None, "a").set(digest(number), 1).unwrap();
    }
    let after = open(Some("a"), "b");
    assert_eq!(
        after.get(&digest(0)).and(after.get(&digest(5))),
        Some(1),
        "the term before was of the same owner"
    );
    drop(after);
    for (valid, stamp) in [(Some("a"), "c"), (None, "d")] {
        let other = open(valid, stamp);
        assert!((0..6).all(|number| other.get(&digest(number)).is_none()), "{stamp}");
        for number in 0..6 {
            other.set(digest(number), 1).unwrap();
        }
    }
    fs::write(directory.path().join("segment-77"), "left behind").unwrap();
    drop(open(Some("d"), "e"));
    assert!(!directory.path().join("segment-77").exists());
}
