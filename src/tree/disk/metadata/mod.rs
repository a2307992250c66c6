//! Metadata of open files and directories.

mod acl;
pub(super) mod flags;
pub(super) mod read;
pub(super) mod write;
