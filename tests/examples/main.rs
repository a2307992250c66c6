//! The example programs, run as a user runs them.

mod built;
#[path = "../../examples/cli/mod.rs"]
mod cli;
#[cfg(feature = "tls")]
mod keys;
#[cfg(feature = "tls")]
mod programs;
mod restore;
mod tree_backup;
mod tree_restore;
mod trees;
