//! Archives of file trees (pxar) and their catalogs, as bytes: no I/O.
//!
//! An archive has an [entry](FileKind) with [`Metadata`] for each file, directory, link, device, pipe and socket of a tree. Names are bytes.

mod kind;
mod metadata;

pub use kind::{Device, FileKind};
pub use metadata::{Acl, AclEntry, DefaultAcl, Metadata, Mtime, Stat, Xattr};
