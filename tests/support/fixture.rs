//! The datastore that PBS wrote.

use std::fs::File;
use std::path::{Path, PathBuf};

use larder::crypt::EncryptionKey;
use larder::format::name::{Namespace, SnapshotName};
use serde_json::Value;

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/pbs-4.2.3")
}

/// Unpacks `NAME.tar.zst`; owners are left to who can set them.
pub fn unpack(name: &str, into: &Path) {
    unpack_file(&data().join(format!("{name}.tar.zst")), into);
}

/// Unpacks the datastore with file archives of every kind into `store`.
pub fn unpack_trees(into: &Path) {
    unpack_file(&trees().join("store.tar.zst"), into);
}

/// The contents of these archives.
pub fn expected_trees() -> Value {
    let mut decoder = zstd::Decoder::new(File::open(trees().join("expected.json.zst")).unwrap()).unwrap();
    decoder.window_log_max(27).unwrap();
    serde_json::from_reader(decoder).unwrap()
}

fn trees() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data/pxar-4.2.3")
}

fn unpack_file(path: &Path, into: &Path) {
    let file = File::open(path).unwrap();
    let mut decoder = zstd::Decoder::new(file).unwrap();
    decoder.window_log_max(27).unwrap();
    let mut archive = tar::Archive::new(decoder);
    archive.set_preserve_ownerships(false);
    archive.unpack(into).unwrap();
}

/// The contents of the store.
pub fn expected() -> Value {
    read("expected.json")
}

/// The contents of the bucket.
pub fn expected_of_bucket() -> Value {
    read("s3-expected.json")
}

fn read(name: &str) -> Value {
    serde_json::from_reader(File::open(data().join(name)).unwrap()).unwrap()
}

/// The keys of the store, in the order of their files.
pub fn keys() -> Vec<EncryptionKey> {
    let expected = expected();
    let keys = expected["keys"].as_array().unwrap().iter().map(|key| {
        let hex = key["raw_key_hex"].as_str().unwrap();
        let byte = |at: usize| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).unwrap();
        EncryptionKey::from_bytes(&std::array::from_fn(byte))
    });
    keys.collect()
}

/// The snapshots of what is expected.
pub fn snapshots(expected: &Value) -> &Vec<Value> {
    expected["snapshots"].as_array().unwrap()
}

/// The name of one of them.
pub fn name_of(snapshot: &Value) -> SnapshotName {
    let namespace: Namespace = snapshot["ns"].as_str().unwrap().parse().unwrap();
    let name: SnapshotName = snapshot["snapshot"].as_str().unwrap().parse().unwrap();
    name.group().clone().in_namespace(namespace).snapshot(name.time())
}

/// The files of one of them, with their names.
pub fn files(snapshot: &Value) -> impl Iterator<Item = (&str, &Value)> {
    snapshot["files"].as_array().unwrap().iter().map(|file| (file["filename"].as_str().unwrap(), file))
}
