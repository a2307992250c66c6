//! Paths of entries.

/// The path of an entry of a directory, whose path is empty for the root.
pub(crate) fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let separator = if directory.is_empty() { &b""[..] } else { b"/" };
    [directory, separator, name].concat()
}
