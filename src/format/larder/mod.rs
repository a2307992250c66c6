//! Stored formats of larder itself, which PBS does not know.

mod fields;
pub(crate) mod gc_candidates;
#[cfg(any(feature = "s3", test))]
#[cfg_attr(not(feature = "s3"), allow(dead_code, reason = "its own tests need no feature"))]
pub(crate) mod lease_record;
pub(crate) mod pack;
pub(crate) mod segment;
pub(crate) mod store_record;
pub(crate) mod suspects;
