//! What the fuzz targets do with their input, for libFuzzer and for `tests/meta/fuzz_bodies.rs`: each reads it, and checks what must hold of
//! what was read. `seeds/TARGET` has valid inputs, and those that once failed.

mod checksums;
mod disk;
mod format;
mod keys;
mod names;
mod records;
mod tree;
mod wire;

use std::panic::{catch_unwind, resume_unwind};

/// What is run on inputs.
#[derive(Clone, Copy)]
pub(crate) struct Target {
    pub(crate) body: fn(&[u8]),
    pub(crate) name: &'static str,
}

macro_rules! targets {
    ($($module:ident: $($name:ident)*;)*) => {
        /// All of them.
        pub(crate) const TARGETS: &[Target] = &[$($(Target { body: $module::$name, name: stringify!($name) },)*)*];
    };
}

targets! {
    disk: acl cache_entry journal metadata_copy presence;
    format: blob chunker dynamic_index encrypted_blob fixed_index manifest pack segment;
    keys: key_file master_key paper_key;
    names: base64 dates names paths store_url;
    records: capabilities gc_candidates lease store_record suspects;
    tree: catalog excludes goodbye pxar tree;
    wire: chunked_body credentials listing profiles response s3_documents signature uri;
}

/// Bytes that a target may allocate for an empty input, and for each byte of its input.
const MAX_BYTES: u64 = 8 << 20;
const MAX_BYTES_EACH: u64 = 1000;
/// The same for an empty input of [`tree`](tree::tree), which backs it up: the buffers of a backup.
const MAX_BYTES_OF_BACKUP: u64 = 96 << 20;

/// Runs a target, and makes sure that it takes little memory.
pub(crate) fn run(target: Target, input: &[u8]) {
    let mut ran = Ok(());
    // The measurement must see its end.
    let measured = allocation_counter::measure(|| ran = catch_unwind(|| (target.body)(input)));
    if let Err(panic) = ran {
        resume_unwind(panic);
    }
    let taken = measured.bytes_max;
    let least = if target.name == "tree" { MAX_BYTES_OF_BACKUP } else { MAX_BYTES };
    let limit = least + MAX_BYTES_EACH * input.len() as u64;
    assert!(taken <= limit, "{}: {taken} bytes of memory for {} bytes", target.name, input.len());
}
