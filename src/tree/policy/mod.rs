//! Entries that a backup leaves out.

pub(super) mod excludes;
pub(super) mod filesystem;
pub(super) mod pattern;
