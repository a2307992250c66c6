//! Archives of file trees (pxar) and their catalogs, as bytes: no I/O.
//!
//! An archive has an [entry](FileKind) with [`Metadata`] for each file, directory, link, device, pipe and socket of a tree. Names are bytes.

mod encode;
mod goodbye;
mod hash;
mod item;
mod kind;
mod metadata;

pub use encode::{
    EXCLUDE_FILE, Encoder, PAYLOAD_END, PAYLOAD_START, PayloadOrigin, PayloadReference, TreeEncodeError,
    exclude_lines, exclude_prelude, payload_header,
};
pub use kind::{Device, FileKind};
pub use metadata::{Acl, AclEntry, DefaultAcl, Metadata, Mtime, Stat, Xattr};
