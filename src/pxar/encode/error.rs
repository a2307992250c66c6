//! Errors of encoders.

/// Failure of an encoder: its caller violated a rule of the format.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeEncodeError {
    /// The contents of a file are shorter than its size.
    #[error("the contents of the file lack {missing} bytes")]
    ContentsMissing {
        /// Bytes that are missing.
        missing: u64,
    },
    /// The contents of a file are longer than its size, or there is no file.
    #[error("the contents of the file are longer than its size")]
    ContentsTooLong,
    /// The archive is in the other form.
    #[error("the archive has the other form")]
    Form,
    /// The type bits of the mode and the kind of the entry differ, or the kind needs another method.
    #[error("the mode has another type than the entry")]
    Kind,
    /// A name, the target of a link, an attribute, or the archive exceeds the limit of the format.
    #[error("{0} is longer than the format permits")]
    Length(&'static str),
    /// The target of a symbolic link is empty or has a NUL byte, or that of a hard link is no path or stands at no earlier position.
    #[error("a link cannot have this target")]
    LinkTarget,
    /// The name is empty, `.` or `..`, or it has `/` or NUL.
    #[error("an entry cannot have this name")]
    Name,
    /// Directories are open at the end, or there is none to leave.
    #[error("directories are entered and left in another order")]
    Nesting,
    /// The name does not sort behind the one before it in the directory.
    #[error("the name does not sort behind the one before it")]
    Order,
    /// The offset of a file in the payload stream does not exceed the one before it.
    #[error("the offset of the contents does not exceed the one before it")]
    PayloadOffset,
    /// The exclude patterns of an archive in split form are not UTF-8.
    #[error("exclude patterns of this form are UTF-8")]
    Prelude,
}
