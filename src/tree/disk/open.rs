//! Opening of names in directories.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// Never follows a link, and never waits, as opening a pipe would that took the place of a file.
const READ: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Opens a name in a directory for reading, and leaves its time of access as it is if the system allows that.
pub(super) fn to_read(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    #[cfg(target_os = "linux")]
    match openat(&directory, name, READ | OFlags::NOATIME, Mode::empty()) {
        // Only the owner may leave it.
        Err(Errno::PERM) => {}
        opened => return opened,
    }
    openat(&directory, name, READ, Mode::empty())
}

/// Opens a directory in a directory.
pub(super) fn directory(above: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    openat(above, name, READ | OFlags::DIRECTORY, Mode::empty())
}

/// Returns `true` if this process ran out of something, so that other entries would fail as well.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}
