//! Metadata of open files and directories.

mod acl;
mod flags;
pub(super) mod read;
