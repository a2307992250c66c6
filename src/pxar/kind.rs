//! Kinds of entries.

use bytes::Bytes;

use crate::pxar::item;

/// Kind of an entry, with the data of the kind.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileKind {
    /// A block device.
    BlockDevice(Device),
    /// A character device.
    CharDevice(Device),
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
    /// A regular file.
    File {
        /// Bytes of its contents.
        size: u64,
    },
    /// A further name of a regular file that stands earlier in the archive. It has the metadata of that file.
    HardLink {
        /// Path of that file from the root of the archive, without a slash in front.
        target: Bytes,
    },
    /// A socket.
    Socket,
    /// A symbolic link.
    Symlink {
        /// Its target, which may be any path.
        target: Bytes,
    },
}

impl FileKind {
    /// The type bits of a mode of this kind.
    pub(super) fn type_bits(&self) -> u32 {
        match self {
            Self::BlockDevice(_) => item::BLOCK_DEVICE,
            Self::CharDevice(_) => item::CHAR_DEVICE,
            Self::Directory => item::DIRECTORY,
            Self::Fifo => item::FIFO,
            Self::File { .. } | Self::HardLink { .. } => item::REGULAR,
            Self::Socket => item::SOCKET,
            Self::Symlink { .. } => item::SYMBOLIC_LINK,
        }
    }
}

/// Number of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::exhaustive_structs, reason = "these are the fields of the format")]
pub struct Device {
    /// Major number.
    pub major: u64,
    /// Minor number.
    pub minor: u64,
}
