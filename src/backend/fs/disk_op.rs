//! The changes and calls that a backend makes on a disk, for tests that record them or let them fail.

use bytes::Bytes;

/// A change to the disk. Paths are relative to the store.
#[cfg_attr(
    not(feature = "testing"),
    allow(dead_code, unreachable_pub, reason = "only tests record changes and read them")
)]
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskOp {
    /// A directory was made.
    MakeDirectory {
        /// Its path.
        path: String,
    },
    /// An empty directory was removed.
    RemoveDirectory {
        /// Its path.
        path: String,
    },
    /// A file was removed.
    RemoveFile {
        /// Its path.
        path: String,
    },
    /// A file or directory was renamed.
    Rename {
        /// Its old path.
        from: String,
        /// Its new path.
        to: String,
    },
    /// The entries of a directory were flushed.
    SyncDirectory {
        /// Its path; empty for the store itself.
        path: String,
    },
    /// The bytes of a file were flushed.
    SyncFile {
        /// Its path.
        path: String,
    },
    /// Everything on one filesystem was flushed.
    SyncFilesystem {
        /// The path of a directory on it; empty for the store itself.
        path: String,
    },
    /// A new file was written.
    Write {
        /// Its path.
        path: String,
        /// Its bytes.
        bytes: Bytes,
    },
}

/// A call that is about to be made.
#[cfg_attr(not(feature = "testing"), allow(dead_code, reason = "only tests let calls fail"))]
#[derive(Clone, Copy, Debug)]
pub(super) enum DiskCall<'a> {
    Flush,
    Link,
    Rename { from: &'a str, to: &'a str },
    RenameWithoutReplacing,
    SetAccessTime,
    SetTimes,
}
