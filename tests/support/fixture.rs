//! The datastore that PBS wrote.

#![allow(dead_code, reason = "no test uses all of it")]

use std::fs::File;
use std::path::{Path, PathBuf};

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/pbs-4.2.3")
}

/// Unpacks `NAME.tar.zst`; owners are left to who can set them.
pub(crate) fn unpack(name: &str, into: &Path) {
    let file = File::open(data().join(format!("{name}.tar.zst"))).unwrap();
    let mut decoder = zstd::Decoder::new(file).unwrap();
    decoder.window_log_max(27).unwrap();
    let mut archive = tar::Archive::new(decoder);
    archive.set_preserve_ownerships(false);
    archive.unpack(into).unwrap();
}

/// What is in the store.
pub(crate) fn expected() -> serde_json::Value {
    read("expected.json")
}

/// What is in the bucket.
pub(crate) fn expected_of_bucket() -> serde_json::Value {
    read("s3-expected.json")
}

fn read(name: &str) -> serde_json::Value {
    serde_json::from_reader(File::open(data().join(name)).unwrap()).unwrap()
}
