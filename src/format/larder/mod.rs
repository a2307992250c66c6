//! Stored formats of larder itself, which PBS does not know.

pub(crate) mod gc_candidates;
#[cfg(feature = "s3")]
pub(crate) mod lease_record;
pub(crate) mod store_record;
pub(crate) mod suspects;
