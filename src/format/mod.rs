//! Stored formats: names, digests and the bytes of every object. No I/O, no clock, no randomness.

pub(crate) mod blob;
pub mod digest;
pub(crate) mod dynamic_index;
pub(crate) mod fixed_index;
pub(crate) mod index;
mod index_parts;
mod json;
pub(crate) mod larder;
pub mod layout;
pub mod manifest;
pub mod name;
pub mod status;
pub mod upid;

pub use digest::Digest;
