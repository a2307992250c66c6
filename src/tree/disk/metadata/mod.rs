//! Metadata of open files and directories.

pub(crate) mod acl;
pub(super) mod flags;
pub(super) mod read;
pub(super) mod write;

/// Extended attribute with the access list of an object.
pub(super) const ACCESS_LIST: &str = "system.posix_acl_access";
/// Extended attribute with the default list of a directory.
pub(super) const DEFAULT_LIST: &str = "system.posix_acl_default";
/// Extended attribute with the capabilities of a program.
const CAPABILITIES: &str = "security.capability";
