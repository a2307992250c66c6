//! A directory as a tar stream, and back.
//!
//! The stream is POSIX.1-2001 (pax): long names, times to the nanosecond and extended attributes are in pax records.

pub(crate) mod pack;
pub(crate) mod unpack;
