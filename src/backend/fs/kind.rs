//! Kinds of directory entries, and the objects that an entry of an unexpected kind may hide.
//!
//! | entry | in the place of an object | in the place of a snapshot, group, type or namespace |
//! |---|---|---|
//! | regular file | an object | foreign: nothing can be below it |
//! | directory | unreadable | listed |
//! | symbolic link, named pipe, socket, device | unreadable | unreadable |
//!
//! A link is not followed, so its target is not known: other programs may read a snapshot through it. Therefore a link is reported and not
//! ignored. The names of types, `ns`, times and the extensions of indexes are compared without regard to case: a filesystem that ignores
//! case finds `host` in `Host`. A filesystem that lists no kinds needs a lookup for each entry.

use std::fs::{FileType, Metadata};
use std::os::unix::fs::FileTypeExt as _;

use crate::format::layout::{Key, Prefix};
use crate::format::name::BackupTime;

/// The kind of a directory entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Directory,
    File,
    /// A symbolic link, a named pipe, a socket, a device.
    Other,
}

impl Kind {
    pub(super) fn of(found: FileType) -> Self {
        if found.is_dir() {
            Self::Directory
        } else if found.is_file() {
            Self::File
        } else {
            Self::Other
        }
    }
}

/// The kind of an entry that cannot be read as an object or a directory.
pub(super) fn why_unreadable(found: &Metadata) -> &'static str {
    let found = found.file_type();
    if found.is_symlink() {
        "symbolic link; links in a store are not followed"
    } else if found.is_fifo() {
        "named pipe"
    } else if found.is_socket() {
        "socket"
    } else if found.is_block_device() || found.is_char_device() {
        "device"
    } else if found.is_dir() {
        "directory in the place of a file"
    } else {
        "neither a file nor a directory"
    }
}

/// Returns `true` if the path could be that of an object, snapshot, group, type or namespace.
pub(super) fn is_place_of_content(path: &str) -> bool {
    let folded = fold_case(path);
    is_index(path) || Key::parse(&folded).is_some() || Prefix::parse(&(folded + "/")).is_some()
}

/// Returns `true` if the name is that of an index.
pub(super) fn is_index(path: &str) -> bool {
    let path = path.to_ascii_lowercase();
    path.ends_with(".fidx") || path.ends_with(".didx")
}

/// The path, with its fixed parts in the case that they have in a store.
fn fold_case(path: &str) -> String {
    let fold = |part: &str| {
        let (lower, upper) = (part.to_ascii_lowercase(), part.to_ascii_uppercase());
        match lower.as_str() {
            "ct" | "host" | "ns" | "vm" => lower,
            _ if upper.parse::<BackupTime>().is_ok() => upper,
            _ => part.to_owned(),
        }
    };
    path.split('/').map(fold).collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_content_are_recognised_in_any_case() {
        for path in [
            "host",
            "Host",
            "ns",
            "NS/a",
            "ns/a/Vm/100",
            "vm/100/2025-07-14T14:20:02Z",
            "VM/100/2025-07-14t14:20:02z",
            "vm/100/2025-07-14T14:20:02Z/index.json.blob",
            "vm/100/owner",
            "attic/a.FIDX",
            "a.didx",
        ] {
            assert!(is_place_of_content(path), "{path}");
        }
        for path in
            ["readme", "attic/host", "vm/100/other", "vm/100/2025/a", "lost+found", "ns/a/b", ".chunks/0000"]
        {
            assert!(!is_place_of_content(path), "{path}");
        }
    }
}
