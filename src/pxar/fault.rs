//! Errors of decoders.

use std::fmt;

use bytes::Bytes;

use crate::error::{Error, ErrorKind};

/// A violation of the format, with its place.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeDecodeError {
    /// The violation.
    pub fault: TreeFault,
    /// Position in the archive or the catalog.
    pub offset: u64,
    /// Path of the entry, as far as it is known.
    pub path: Bytes,
}

impl TreeDecodeError {
    pub(crate) fn new(fault: TreeFault, offset: u64) -> Self {
        Self { fault, offset, path: Bytes::new() }
    }

    /// Adds the path of the entry.
    pub(crate) fn of(mut self, path: &[u8]) -> Self {
        self.path = Bytes::copy_from_slice(path);
        self
    }
}

impl fmt::Display for TreeDecodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path.escape_ascii())?;
        }
        write!(f, "{} at position {}", self.fault, self.offset)
    }
}

impl std::error::Error for TreeDecodeError {}

impl From<TreeDecodeError> for Error {
    fn from(error: TreeDecodeError) -> Self {
        Error::new(ErrorKind::Corrupt, "read tree").because(error)
    }
}

/// The kind of a [`TreeDecodeError`].
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum TreeFault {
    /// A size or a position leads out of the bounds of what has it.
    #[error("a size or position out of bounds")]
    Bounds,
    /// An item has another length than its type, or content that its type forbids.
    #[error("a malformed item")]
    Content,
    /// Directories are nested more deeply than the limit.
    #[error("too many nested directories")]
    Depth,
    /// An entry has an attribute twice that it may have once.
    #[error("an attribute that occurs twice")]
    DuplicateAttribute,
    /// A directory has two entries of one name.
    #[error("a name that occurs twice")]
    DuplicateName,
    /// An item of an unknown type, or one that is not allowed at this place.
    #[error("an unexpected item")]
    Item,
    /// The mode says another kind than the items.
    #[error("a mode that contradicts the items")]
    Kind,
    /// A hard link leads to nothing that it may lead to.
    #[error("an invalid hard link")]
    Link,
    /// The first bytes are those of another format.
    #[error("another format")]
    Magic,
    /// The name is empty, `.` or `..`, too long, or it has `/` or NUL.
    #[error("an invalid name")]
    Name,
    /// A number is not encoded as the format requires.
    #[error("an invalid number")]
    Number,
    /// No contents of this file are at this position of the payload stream.
    #[error("a reference to other contents")]
    Payload,
    /// The lookup table of a directory contradicts itself or its entries.
    #[error("an invalid lookup table")]
    Table,
    /// Bytes follow the end.
    #[error("bytes behind the end")]
    Trailing,
    /// The bytes end early.
    #[error("an early end")]
    Truncated,
    /// The version is unknown.
    #[error("an unknown version")]
    Version,
}
