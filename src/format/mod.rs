//! Stored formats: names, digests and the bytes of every object. No I/O, no clock, no randomness.

pub mod blob;
pub mod digest;
pub mod dynamic_index;
pub mod fingerprint;
pub mod fixed_index;
pub mod index;
mod index_parts;
mod json;
pub mod larder;
pub mod layout;
pub mod manifest;
pub mod name;
pub mod status;
pub mod upid;

pub use digest::Digest;
