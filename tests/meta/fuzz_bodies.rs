//! Runs what the fuzz targets do, on their seeds, on seeds that were changed a little, and on noise (D22). `LARDER_FUZZ_CASES` says how often
//! each. An input that fails is made short, and written to `target/fuzz`.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestError, TestRunner};
use rustix::time::{ClockId, clock_gettime};

use crate::bodies::{self, Target};

/// Seconds of a processor that one input may take, without optimisation.
const MAX_SECONDS: i64 = 5;
/// Targets that take milliseconds for an input.
const SLOW: [&str; 5] = ["chunker", "encrypted_blob", "key_file", "presence", "tree"];

/// Runs a target within its limits.
fn run(target: Target, input: &[u8]) {
    let begun = clock_gettime(ClockId::ThreadCPUTime).tv_sec;
    bodies::run(target, input);
    let seconds = clock_gettime(ClockId::ThreadCPUTime).tv_sec - begun;
    assert!(seconds <= MAX_SECONDS, "{}: {seconds} s for {} bytes", target.name, input.len());
}

/// The seeds of a target, in the order of their names.
fn seeds(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds").join(target);
    let mut paths: Vec<PathBuf> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn seed(target: &str) -> Vec<u8> {
    let path = format!("tests/fuzz/seeds/{target}/valid");
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Writes an input that fails.
fn keep(target: Target, input: &[u8]) -> String {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/fuzz");
    fs::create_dir_all(&directory).unwrap();
    let path = directory.join(format!("{}-{:08x}", target.name, crc32fast::hash(input)));
    fs::write(&path, input).unwrap();
    path.display().to_string()
}

/// A change: where, what of, and with which bytes.
#[derive(Clone, Debug)]
struct Change {
    at: Index,
    bytes: Vec<u8>,
    kind: u8,
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let change = (any::<Index>(), vec(any::<u8>(), 1..9), 0..5_u8);
    vec(change.prop_map(|(at, bytes, kind)| Change { at, bytes, kind }), 0..6)
}

fn changed(seed: &[u8], changes: &[Change]) -> Vec<u8> {
    let mut input = seed.to_vec();
    for Change { at, bytes, kind } in changes {
        let at = at.index(input.len() + 1);
        let end = input.len().min(at + bytes.len());
        match kind {
            0 => drop(input.splice(at..end, bytes.iter().copied())),
            1 => drop(input.splice(at..at, bytes.iter().copied())),
            2 => drop(input.drain(at..end)),
            3 => input.truncate(at),
            _ => {
                let part = input[at..input.len().min(at + 40 * bytes.len())].to_vec();
                input.extend_from_slice(&part);
            }
        }
    }
    input
}

fn runner(target: Target) -> TestRunner {
    let cases = std::env::var("LARDER_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(300);
    let cases = if SLOW.contains(&target.name) { cases / 25 + 1 } else { cases };
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

#[test]
fn mutated_valid_input_causes_no_panic() {
    let mut failures = Vec::new();
    for target in bodies::TARGETS.iter().copied() {
        let seeds = seeds(target.name);
        let changed_seed = |which: &Index, changes: &[Change]| {
            let seed: &Vec<u8> = which.get(&seeds);
            changed(seed, changes)
        };
        let ran = runner(target).run(&(any::<Index>(), changes()), |(which, changes)| {
            run(target, &changed_seed(&which, &changes));
            Ok(())
        });
        if let Err(TestError::Fail(why, (which, changes))) = ran {
            failures.push(format!(
                "{}: {why}: {}",
                target.name,
                keep(target, &changed_seed(&which, &changes))
            ));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn random_input_causes_no_panic() {
    let mut failures = Vec::new();
    for target in bodies::TARGETS.iter().copied() {
        let ran = runner(target).run(&vec(any::<u8>(), 0..300), |input| {
            run(target, &input);
            Ok(())
        });
        if let Err(TestError::Fail(why, input)) = ran {
            failures.push(format!("{}: {why}: {}", target.name, keep(target, &input)));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn inputs_that_failed_once_pass() {
    for target in bodies::TARGETS.iter().copied() {
        let seeds = seeds(target.name);
        assert!(!seeds.is_empty(), "{} has no seed", target.name);
        for seed in &seeds {
            run(target, seed);
        }
        run(target, b"");
    }
}

#[test]
fn the_seeds_are_valid() {
    use larder::format;
    use larder::internal::{blob, dynamic_index, fixed_index, wire};
    assert!(blob::Blob::parse(seed("blob").into()).is_ok_and(|blob| blob.check_crc().is_ok()));
    let sealed = blob::Blob::parse(seed("encrypted_blob").into()).unwrap();
    let key = larder::crypt::EncryptionKey::from_bytes(&std::array::from_fn(|at| at.to_le_bytes()[0]));
    let mut plain = Vec::new();
    blob::BlobDecoder::new().decrypt(&sealed, &key, &mut plain, blob::PlaintextSize::Exactly(256)).unwrap();
    assert_eq!(plain, [b'a'; 256]);
    assert!(dynamic_index::DynamicIndexReader::parse(seed("dynamic_index")).is_ok());
    assert!(fixed_index::FixedIndexReader::parse(seed("fixed_index")).is_ok());
    assert!(larder::internal::manifest::parse(&seed("manifest")).is_ok());
    assert_eq!(larder::internal::pxar::root_children(&seed("goodbye")).unwrap().len(), 3);
    let mut archive = larder::pxar::Decoder::new();
    archive.feed(seed("pxar").into());
    while archive.next_part().unwrap() != larder::pxar::ArchivePart::End {}
    let (pack, segment) = (seed("pack"), seed("segment"));
    assert_eq!(larder::internal::packs::directory(pack.len() as u64, &pack).unwrap().len(), 3);
    assert_eq!(larder::internal::packs::records(&segment.into()).unwrap().len(), 67);
    assert!(larder::pxar::CatalogReader::parse(seed("catalog")).is_ok());
    assert!(larder::crypt::KeyFile::parse(&seed("key_file")).is_ok());
    assert!(format::layout::Key::from_str(std::str::from_utf8(&seed("paths")).unwrap()).is_ok());
    assert_eq!(wire::s3_xml::parse_listing(&seed("listing")).unwrap().objects.len(), 2);
    assert_eq!(wire::s3_xml::parse_uploads(&seed("s3_documents")).unwrap().uploads.len(), 1);
    assert!(wire::http_head::parse_response(&seed("response")).unwrap().is_some());
    assert!(wire::uri::Endpoint::from_str("https://s3.example.com:8443/base/%C3%BC").is_ok());
}
