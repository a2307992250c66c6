//! Runs what the fuzz targets do, on valid input that was changed a little and on noise (D22). `LARDER_FUZZ_CASES` says how often
//! each; default: 2000.

use std::str::FromStr as _;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::{Config, TestRunner};

use crate::bodies;

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

fn runner() -> TestRunner {
    let cases = std::env::var("LARDER_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok());
    TestRunner::new(Config { cases: cases.unwrap_or(2000), failure_persistence: None, ..Config::default() })
}

#[test]
fn mutated_valid_input_causes_no_panic() {
    for (name, body, seed) in bodies::TARGETS {
        body(seed);
        let ran = runner().run(&changes(), |changes| {
            body(&changed(seed, &changes));
            Ok(())
        });
        assert!(ran.is_ok(), "{name}: {}", ran.unwrap_err());
    }
}

#[test]
fn random_input_causes_no_panic() {
    for (name, body, _) in bodies::TARGETS {
        let ran = runner().run(&vec(any::<u8>(), 0..300), |input| {
            body(&input);
            Ok(())
        });
        assert!(ran.is_ok(), "{name}: {}", ran.unwrap_err());
    }
}

#[test]
fn the_seeds_are_valid() {
    use larder::format;
    use larder::internal::{blob, dynamic_index, fixed_index, wire};
    let seed = |name: &str| bodies::TARGETS.into_iter().find(|target| target.0 == name).unwrap().2;
    assert!(blob::Blob::parse(seed("blob").into()).is_ok_and(|blob| blob.check_crc().is_ok()));
    let sealed = blob::Blob::parse(seed("encrypted_blob").into()).unwrap();
    let key = larder::crypt::EncryptionKey::from_bytes(&std::array::from_fn(|at| at.to_le_bytes()[0]));
    let mut plain = Vec::new();
    blob::BlobDecoder::new().decrypt(&sealed, &key, &mut plain, blob::PlaintextSize::Exactly(256)).unwrap();
    assert_eq!(plain, [b'a'; 256]);
    assert!(dynamic_index::DynamicIndexReader::parse(seed("dynamic_index")).is_ok());
    assert!(fixed_index::FixedIndexReader::parse(seed("fixed_index")).is_ok());
    assert!(larder::internal::manifest::parse(seed("manifest")).is_ok());
    assert_eq!(larder::internal::pxar::root_children(seed("goodbye")).unwrap().len(), 3);
    let mut archive = larder::pxar::Decoder::new();
    archive.feed(seed("pxar").into());
    while archive.next_part().unwrap() != larder::pxar::ArchivePart::End {}
    let (pack, segment) = (seed("pack"), seed("segment"));
    assert_eq!(larder::internal::packs::directory(pack.len() as u64, pack).unwrap().len(), 3);
    assert_eq!(larder::internal::packs::records(&segment.into()).unwrap().len(), 67);
    assert!(larder::pxar::CatalogReader::parse(seed("catalog")).is_ok());
    assert!(larder::crypt::KeyFile::parse(seed("key_file")).is_ok());
    assert!(format::layout::Key::from_str(std::str::from_utf8(seed("paths")).unwrap()).is_ok());
    assert_eq!(wire::s3_xml::parse_listing(seed("listing")).unwrap().objects.len(), 2);
    assert_eq!(wire::s3_xml::parse_uploads(seed("s3_documents")).unwrap().uploads.len(), 1);
    assert!(wire::http_head::parse_response(seed("response_head")).unwrap().is_some());
    assert!(wire::uri::Endpoint::from_str("https://s3.example.com:8443/base/%C3%BC").is_ok());
}
