use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::AtomicBool;

use filetime::FileTime;
use tempfile::TempDir;

use super::*;

fn digest(number: u32) -> Digest {
    Digest::of(&number.to_le_bytes())
}

/// So many bytes, different for each number.
fn stored(number: u32, length: usize) -> Vec<u8> {
    let mut word = u64::from(number) + 1;
    (0..length)
        .map(|_| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word.to_le_bytes()[3]
        })
        .collect()
}

fn scratch(budget: u64) -> (TempDir, ChunkCache) {
    let scratch = larder_testing::scratch();
    let cache = ChunkCache::open(&scratch.path().join("cache"), budget).unwrap();
    (scratch, cache)
}

/// The files of the entries and their bytes of disk, by our count.
fn on_disk(cache: &ChunkCache) -> (u64, u64) {
    let (mut entries, mut bytes) = (0, 0);
    for directory in fs::read_dir(&cache.directory).unwrap() {
        let path = directory.unwrap().path();
        assert!(path.is_dir(), "{} is left", path.display());
        for file in fs::read_dir(path).unwrap() {
            entries += 1;
            bytes += blocks(file.unwrap().metadata().unwrap().len());
        }
    }
    (entries, bytes)
}

fn assert_accounted(cache: &ChunkCache) {
    let counts = cache.counts();
    assert_eq!((counts.entries, counts.bytes), on_disk(cache));
    assert!(counts.bytes <= cache.budget, "{counts:?}");
    assert_eq!(cache.state().reserved, 0);
}

#[test]
fn an_inserted_chunk_is_returned_until_it_is_removed() {
    let (_scratch, cache) = scratch(1 << 20);
    for (number, length) in [(0, 0), (1, 1), (2, 4080), (3, 4081), (4, 100_000)] {
        assert_eq!(cache.get(&digest(number)), None);
        cache.insert(&digest(number), &stored(number, length));
        assert!(cache.contains(&digest(number)));
        assert_eq!(cache.get(&digest(number)).unwrap(), stored(number, length));
    }
    let counts = cache.counts();
    assert_eq!((counts.hits, counts.misses, counts.inserted, counts.entries), (5, 5, 5, 5));
    assert_eq!(counts.bytes, 4096 * (1 + 1 + 1 + 2 + 25));
    assert_accounted(&cache);
    (0..5).for_each(|number| cache.remove(&digest(number)));
    cache.remove(&digest(4));
    assert!(!cache.contains(&digest(4)));
    assert_eq!((cache.counts().entries, cache.counts().bytes, cache.counts().damaged), (0, 0, 0));
    assert_accounted(&cache);
}

#[test]
fn an_entry_is_the_stored_bytes_and_a_trailer() {
    let (_scratch, cache) = scratch(1 << 20);
    cache.insert(&digest(1), b"stored");
    let path = cache.path(&digest(1));
    assert_eq!(fs::read(&path).unwrap(), b"storedlarder-1\x06\0\0\0\x0b\xf9CV");
    assert_eq!(path.file_name().unwrap().to_str().unwrap(), digest(1).to_string());
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
}

#[test]
fn an_entry_takes_at_most_an_eighth_and_any_chunk_fits_into_64_mib() {
    let (_scratch, cache) = scratch(8 * 8192);
    cache.insert(&digest(1), &[0; 8192 - 15]);
    cache.insert(&digest(2), &[0; 8192 - 16]);
    assert!(!cache.contains(&digest(1)) && cache.contains(&digest(2)));
    let (_scratch, cache) = scratch(64 << 20);
    for number in 0..5 {
        cache.insert(&digest(number), &vec![0; 17 << 20]);
        assert!(cache.contains(&digest(number)));
    }
    assert_eq!(cache.counts().entries, 3);
    let (_scratch, cache) = scratch(0);
    cache.insert(&digest(1), b"");
    assert_eq!(cache.counts(), CacheCounts::default());
}

/// Proves H59.
#[test]
fn readers_are_unaffected_by_eviction() {
    let (_scratch, cache) = scratch(64 << 20);
    let (name, bytes) = (digest(1), stored(1, 200_000));
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    assert!(cache.get(&name).is_none_or(|found| found == bytes));
                }
            });
        }
        for _ in 0..1000 {
            cache.insert(&name, &bytes);
            cache.evict(&name).unwrap();
        }
        done.store(true, Ordering::Relaxed);
    });
    let counts = cache.counts();
    assert_eq!((counts.damaged, counts.errors, counts.inserted, counts.evicted), (0, 0, 1000, 1000));

    cache.insert(&name, &bytes);
    let mut open = File::open(cache.path(&name)).unwrap();
    cache.evict(&name).unwrap();
    let mut read = Vec::new();
    open.read_to_end(&mut read).unwrap();
    assert_eq!(read[..bytes.len()], bytes);
}

/// Proves H60.
#[test]
fn with_room_for_one_entry_every_read_is_correct_or_a_miss() {
    let (_scratch, mut cache) = scratch(4096);
    cache.entry_most = 4096;
    let cache = &cache;
    std::thread::scope(|scope| {
        for thread in 0..6_u32 {
            scope.spawn(move || {
                for step in 0..1500_u32 {
                    let number = (step * 7 + thread) % 3;
                    match (step + thread) % 4 {
                        0 | 1 => cache.insert(&digest(number), &stored(number, 1000)),
                        2 if step % 16 == 0 => cache.remove(&digest(number)),
                        _ => assert!(
                            cache.get(&digest(number)).is_none_or(|found| found == stored(number, 1000))
                        ),
                    }
                }
            });
        }
    });
    let counts = cache.counts();
    assert_eq!((counts.damaged, counts.errors), (0, 0));
    assert!(counts.inserted > 10 && counts.evicted > 10, "{counts:?}");
    assert_accounted(cache);
}

/// Proves H60.
#[test]
fn random_operations_on_one_entry_match_a_model() {
    let (_scratch, mut cache) = scratch(4096);
    cache.entry_most = 4096;
    let mut model = None;
    for (step, choice) in stored(7, 3000).into_iter().enumerate() {
        let number = u32::from(choice % 3);
        match choice / 3 % 4 {
            0 => {
                cache.insert(&digest(number), &stored(number, 100));
                model = Some(number);
            }
            1 => {
                cache.remove(&digest(number));
                model = model.filter(|held| *held != number);
            }
            2 => {
                let found = cache.get(&digest(number));
                let want = (model == Some(number)).then(|| stored(number, 100));
                assert_eq!(found.map(|found| found.to_vec()), want, "step {step}");
            }
            _ => assert_eq!(cache.contains(&digest(number)), model == Some(number), "step {step}"),
        }
    }
    assert_accounted(&cache);
}

/// Proves H61.
#[test]
fn a_reopened_cache_has_the_same_entries() {
    let (_scratch, mut cache) = scratch(1 << 20);
    for round in 0..10 {
        (0..200).for_each(|number| cache.insert(&digest(round * 50 + number), &stored(number, 8000)));
        let held: Vec<_> = (0..1000).filter(|number| cache.contains(&digest(*number))).collect();
        assert_eq!(held.len(), 128);
        let before = cache.counts();
        cache = ChunkCache::open(&cache.directory, 1 << 20).unwrap();
        let after = cache.counts();
        assert_eq!((after.bytes, after.entries), (before.bytes, before.entries));
        assert!(held.iter().all(|number| cache.get(&digest(*number)).is_some()));
        assert_accounted(&cache);
    }
}

/// Proves H61.
#[test]
fn entries_are_ordered_by_their_last_hit() {
    let (_scratch, cache) = scratch(1 << 20);
    for number in 0..128 {
        cache.insert(&digest(number), &stored(number, 8000));
        let time = FileTime::from_unix_time(1_000_000 + i64::from(number), 0);
        filetime::set_file_mtime(cache.path(&digest(number)), time).unwrap();
    }
    assert!((0..20).all(|number| cache.get(&digest(number)).is_some()));
    let cache = ChunkCache::open(&cache.directory, 1 << 20).unwrap();
    (1000..1108).for_each(|number| cache.insert(&digest(number), &[0; 8000]));
    assert!((0..20).all(|number| cache.contains(&digest(number))));
    assert!((20..128).all(|number| !cache.contains(&digest(number))));
}

/// Proves H61.
#[test]
fn a_smaller_budget_applies_on_opening_and_foreign_files_stay() {
    let (_scratch, cache) = scratch(1 << 20);
    (0..100).for_each(|number| cache.insert(&digest(number), &stored(number, 8000)));
    cache.insert(&digest(100), &stored(100, 80_000));
    let root = &cache.directory;
    fs::write(root.join("tmp-17"), b"torn").unwrap();
    let ours = cache.path(&digest(0));
    let foreign = [root.join("tmp-x"), root.join("notes"), ours.parent().unwrap().join("notes")];
    for path in &foreign {
        fs::write(path, b"not ours").unwrap();
    }
    let cache = ChunkCache::open(root, 512 << 10).unwrap();
    assert!(cache.counts().bytes <= 512 << 10);
    assert!(!cache.contains(&digest(100)), "more than an eighth");
    assert!(!root.join("tmp-17").exists());
    assert!(foreign.iter().all(|path| path.exists()));
    assert!(cache.contains(&digest(99)));
}

/// Proves H62.
#[test]
fn mixed_sizes_fill_the_budget_and_no_more() {
    const BUDGET: u64 = 64 << 20;
    let (_scratch, mut cache) = scratch(BUDGET);
    let mut sizes = stored(3, 3000).into_iter();
    let mut number = 0;
    for _ in 0..3 {
        for _ in 0..500 {
            let size = 1024 << (sizes.next().unwrap() % 11);
            cache.insert(&digest(number), &vec![1; size - 100 + usize::from(sizes.next().unwrap())]);
            assert!(cache.counts().bytes <= BUDGET);
            number += 1;
        }
        let before = cache.counts();
        assert!(before.bytes >= BUDGET / 100 * 95, "{before:?}");
        assert_accounted(&cache);
        cache = ChunkCache::open(&cache.directory, BUDGET).unwrap();
        assert_eq!((cache.counts().bytes, cache.counts().entries), (before.bytes, before.entries));
    }
}

/// Proves H62.
#[test]
fn an_entry_being_written_counts_against_the_budget() {
    let (_scratch, cache) = scratch(1 << 20);
    let cache = &cache;
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for number in 0..100 {
                    cache.insert(&digest(thread * 1000 + number), &stored(number, 60_000));
                    assert!(cache.state().used() <= cache.budget);
                }
            });
        }
    });
    assert_accounted(cache);
}

/// Proves H63.
#[test]
fn a_failing_disk_causes_misses_and_a_pause() {
    let (scratch, cache) = scratch(1 << 20);
    cache.insert(&digest(1), b"one");
    let directory = cache.subdirectory(&digest(1));
    fs::remove_dir_all(&directory).unwrap();
    fs::write(&directory, b"in the way").unwrap();
    assert_eq!(cache.get(&digest(1)), None);
    assert_eq!((cache.counts().entries, cache.counts().errors), (0, 0));

    cache.insert(&digest(1), b"one");
    assert_eq!((cache.counts().errors, cache.contains(&digest(1))), (1, false));
    assert!(fs::read_dir(&cache.directory).unwrap().all(|entry| entry.unwrap().path() == directory));
    fs::remove_file(&directory).unwrap();
    for _ in 0..256 {
        cache.insert(&digest(1), b"one");
    }
    assert_eq!((cache.counts().errors, cache.contains(&digest(1))), (1, false));
    cache.insert(&digest(1), b"one");
    assert_eq!(cache.get(&digest(1)).unwrap(), "one");
    assert_accounted(&cache);

    let file = scratch.path().join("file");
    fs::write(&file, b"").unwrap();
    assert!(ChunkCache::open(&file, 1 << 20).is_err());
    assert!(ChunkCache::open(&file.join("cache"), 1 << 20).is_err());
}

/// Proves H63.
#[test]
fn pauses_double_while_errors_continue() {
    let (_scratch, cache) = scratch(1 << 20);
    fs::remove_dir_all(&cache.directory).unwrap();
    fs::write(&cache.directory, b"in the way").unwrap();
    for pause in [256, 512, 1024, 2048] {
        let errors = cache.counts().errors;
        (0..=pause).for_each(|_| cache.insert(&digest(1), b"one"));
        assert_eq!(cache.counts().errors, errors + 1);
    }
    cache.remove(&digest(1));
    cache.remove_damaged(&digest(1));
    cache.yield_bytes(1000);
    assert_eq!((cache.get(&digest(1)), cache.counts().entries), (None, 0));
    let mut state = State::new(0);
    for _ in 0..20 {
        state.pause = 0;
        state.pause();
    }
    assert_eq!(state.pause, 65_536);
}

/// Proves H63.
#[test]
fn a_full_disk_frees_an_eighth_of_the_cache() {
    let (_scratch, cache) = scratch(1 << 20);
    (0..128).for_each(|number| cache.insert(&digest(number), &stored(number, 8000)));
    assert!(cache.reserve(8192));
    cache.write_failed(&cache.directory.join("tmp-0"), 8192, &ErrorKind::StorageFull.into());
    assert_eq!(cache.counts().entries, 127 - 16);
    assert_eq!(cache.counts().errors, 1);
    assert_accounted(&cache);
}

/// Proves H64.
#[test]
fn the_requested_bytes_are_freed() {
    let (_scratch, cache) = scratch(1 << 20);
    (0..20).for_each(|number| cache.insert(&digest(number), &stored(number, 8000)));
    cache.get(&digest(0));
    fs::remove_file(cache.path(&digest(1))).unwrap();
    cache.yield_bytes(8193);
    assert_eq!((cache.counts().entries, cache.counts().errors), (17, 0));
    assert!(cache.contains(&digest(0)) && !cache.contains(&digest(3)) && cache.contains(&digest(4)));
    cache.insert(&digest(1), b"one");
    assert!(!cache.contains(&digest(1)), "in a pause");
    cache.yield_bytes(u64::MAX);
    assert_eq!(cache.counts().entries, 0);
    assert_accounted(&cache);
}

/// Proves H66.
#[test]
fn a_damaged_entry_is_a_miss_and_is_removed() {
    type Damage = fn(&Path);
    let damages: [Damage; 6] = [
        |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[500] ^= 1;
            fs::write(path, bytes).unwrap();
        },
        |path| {
            let mut bytes = fs::read(path).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            fs::write(path, bytes).unwrap();
        },
        |path| File::options().write(true).open(path).unwrap().set_len(900).unwrap(),
        |path| File::options().write(true).open(path).unwrap().set_len(1 << 40).unwrap(),
        |path| fs::write(path, b"").unwrap(),
        |path| fs::write(path, [0; 1016]).unwrap(),
    ];
    let (_scratch, mut cache) = scratch(1 << 20);
    for (damage, reopened) in damages.into_iter().flat_map(|damage| [(damage, false), (damage, true)]) {
        (0..20).for_each(|number| cache.insert(&digest(number), &stored(number, 1000)));
        (0..20).for_each(|number| damage(&cache.path(&digest(number))));
        if reopened {
            cache = ChunkCache::open(&cache.directory, 1 << 20).unwrap();
        }
        let before = cache.counts();
        for number in 0..20 {
            assert_eq!(cache.get(&digest(number)), None);
            assert!(!cache.contains(&digest(number)) && !cache.path(&digest(number)).exists());
        }
        let after = cache.counts();
        assert_eq!(after.damaged - before.damaged, before.entries);
        assert_eq!((after.misses - before.misses, after.hits, after.entries), (20, before.hits, 0));
        assert_accounted(&cache);
    }
    cache.insert(&digest(1), b"of another");
    cache.remove_damaged(&digest(1));
    cache.remove_damaged(&digest(1));
    assert!(!cache.contains(&digest(1)));
}

/// Proves H66.
#[test]
fn a_directory_in_place_of_an_entry_is_a_miss() {
    let (_scratch, cache) = scratch(1 << 20);
    cache.insert(&digest(1), b"one");
    fs::remove_file(cache.path(&digest(1))).unwrap();
    fs::create_dir(cache.path(&digest(1))).unwrap();
    assert_eq!(cache.get(&digest(1)), None);
    assert_eq!(cache.get(&digest(1)), None);
    assert_eq!((cache.counts().entries, cache.counts().bytes, cache.counts().damaged), (0, 0, 1));
}

/// Proves H67.
#[test]
fn a_file_truncated_at_any_offset_is_detected() {
    let (_scratch, cache) = scratch(1 << 20);
    for length in 0..50 + 16 {
        cache.insert(&digest(1), &stored(1, 50));
        let path = cache.path(&digest(1));
        File::options().write(true).open(&path).unwrap().set_len(length).unwrap();
        assert_eq!(cache.get(&digest(1)), None);
        assert!(!path.exists());
        assert_eq!(cache.counts().damaged, length + 1);
    }
    assert_accounted(&cache);
}

/// Proves H73.
#[test]
fn entries_in_use_survive_a_scan_of_ten_times_the_budget() {
    let (_scratch, cache) = scratch(4 << 20);
    for number in 0..300 {
        cache.insert(&digest(number), &stored(number, 8000));
        assert!(cache.get(&digest(number)).is_some());
    }
    for number in 1000..1000 + 5120 {
        cache.insert(&digest(number), &[7; 8000]);
    }
    let hits = (0..300).filter(|number| cache.get(&digest(*number)).is_some()).count();
    assert_eq!(hits, 300);
    assert_accounted(&cache);
}

/// Proves H74.
#[test]
fn the_cache_directory_can_be_removed_at_any_time() {
    let (_scratch, cache) = scratch(1 << 20);
    for round in 0..3 {
        (0..100).for_each(|number| cache.insert(&digest(number), &stored(number, 8000)));
        assert_eq!(cache.counts().entries, 100, "round {round}");
        fs::remove_dir_all(&cache.directory).unwrap();
        // Room is made among entries that are not there any more.
        (200..250).for_each(|number| cache.insert(&digest(number), &stored(number, 8000)));
        assert!((0..100).all(|number| cache.get(&digest(number)).is_none()));
        assert!((200..250).all(|number| cache.get(&digest(number)).is_some()));
        assert_accounted(&cache);
        assert_eq!((cache.counts().errors, cache.counts().damaged), (0, 0));
        (200..250).for_each(|number| cache.remove(&digest(number)));
    }
}

/// Proves H74.
#[test]
fn the_cache_directory_can_be_removed_while_threads_use_it() {
    let (_scratch, cache) = scratch(256 << 10);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..4_u32 {
            let (cache, done) = (&cache, &done);
            scope.spawn(move || {
                for step in (thread..).take_while(|_| !done.load(Ordering::Relaxed)) {
                    let number = step % 50;
                    cache.insert(&digest(number), &stored(number, 3000));
                    let found = cache.get(&digest((step * 3) % 50));
                    assert!(found.is_none_or(|found| found == stored((step * 3) % 50, 3000)));
                }
            });
        }
        for _ in 0..200 {
            // Fails where somebody makes a file in what it is about to remove.
            let _ = fs::remove_dir_all(&cache.directory);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(cache.counts().damaged, 0);
    (0..50).for_each(|number| drop(cache.get(&digest(number))));
    fs::create_dir_all(&cache.directory).unwrap();
    assert_accounted(&cache);
}
