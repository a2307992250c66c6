//! Archives of file trees (pxar) and their catalogs, as bytes: no I/O.
//!
//! An archive has an [entry](FileKind) with [`Metadata`] for each file, directory, link, device, pipe and socket of a tree. Names are bytes.

mod catalog;
pub(crate) mod decode;
mod encode;
mod fault;
pub(crate) mod goodbye;
mod hash;
mod item;
mod kind;
mod metadata;
mod path;

pub use catalog::{CatalogDirectory, CatalogEntry, CatalogKind, CatalogReader, CatalogWriter};
pub use decode::{ArchiveEntry, ArchivePart, Decoder, EntryContents};
pub use encode::{
    EXCLUDE_FILE, Encoder, PAYLOAD_END, PAYLOAD_START, PayloadOrigin, PayloadReference, TreeEncodeError,
    exclude_lines, exclude_prelude, payload_header,
};
pub use fault::{TreeDecodeError, TreeFault};
pub(crate) use item::{MAX_DEPTH, MAX_PATH_BYTES};
pub use kind::{Device, FileKind};
pub use metadata::{Acl, AclEntry, DefaultAcl, Metadata, Mtime, Stat, Xattr};
pub(crate) use path::{joined, last_name, names};
