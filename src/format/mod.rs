//! What is stored: names, digests and the bytes of every object. No input or output, no clock, no randomness.

pub mod digest;
pub mod layout;
pub mod name;

pub use digest::Digest;
