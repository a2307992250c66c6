//! Stored formats of larder itself, which PBS does not know.

pub(crate) mod gc_candidates;
pub mod suspects;
