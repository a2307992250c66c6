//! Paths of entries.

/// The last name of a path; empty for the root.
pub(crate) fn last_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// The names of a path, without those that lead nowhere.
pub(crate) fn names(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."))
}

/// The path of an entry of a directory, whose path is empty for the root.
pub(crate) fn joined(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let separator = if directory.is_empty() { &b""[..] } else { b"/" };
    [directory, separator, name].concat()
}
