//! Trees in directories of this host.
//!
//! Every object is opened by its name in the open directory above it and never through a symbolic link, so no path is resolved twice, and a
//! tree that changes meanwhile leads nowhere else.

pub(crate) mod metadata;
mod open;
pub(super) mod source;
mod status;
pub(super) mod target;
