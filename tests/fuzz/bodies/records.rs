//! Records that larder keeps in a store.

use larder::internal::{parsers, suspects as lists};
use larder::s3::S3Capabilities;

use super::checksums::{with_last_crc, with_last_sha256};

/// The result of a probe is the same when it is written and read again.
pub(super) fn capabilities(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    if let Ok(read) = S3Capabilities::from_json(text) {
        let written = read.to_json();
        let again = S3Capabilities::from_json(&written).expect("what was written is read");
        assert_eq!(again.to_json(), written);
    }
}

/// A list that is read is written as it was read. Its checksum is put right.
pub(super) fn gc_candidates(input: &[u8]) {
    let list = with_last_crc(input);
    let Some(epoch) = list.get(8..16).and_then(|field| field.try_into().ok()) else {
        assert_eq!(parsers::rewritten_gc_candidates(&list, 0), None);
        return;
    };
    if let Some(written) = parsers::rewritten_gc_candidates(&list, u64::from_le_bytes(epoch)) {
        assert_eq!(written, list);
    }
    assert!(input == list || parsers::rewritten_gc_candidates(input, 0).is_none());
}

/// A lease that is read is the same when it is written and read again.
pub(super) fn lease(input: &[u8]) {
    if let Some(written) = parsers::rewritten_lease(input) {
        assert_eq!(parsers::rewritten_lease(&written), Some(written));
    }
}

/// As [`lease`].
pub(super) fn store_record(input: &[u8]) {
    if let Some(written) = parsers::rewritten_store_record(input) {
        assert_eq!(parsers::rewritten_store_record(&written), Some(written));
    }
}

/// A list that is read is written as it was read. Its checksum is put right.
pub(super) fn suspects(input: &[u8]) {
    let list = with_last_sha256(input);
    if let Ok(digests) = lists::decode(&list) {
        assert_eq!(lists::encode(&digests), list);
    }
    assert!(input == list || lists::decode(input).is_err());
}
