//! Opening of names in directories.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};
use rustix::io::Errno;

/// Never follows a link, and never waits, as opening a pipe would that took the place of a file.
const READ: OFlags = OFlags::NOFOLLOW.union(OFlags::NONBLOCK).union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

/// Opens a name in a directory for reading, and leaves its time of access as it is if the system allows that. Waits until another program gives up
/// its lease on a file.
pub(super) fn to_read(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    #[cfg(target_os = "linux")]
    match openat(&directory, name, READ | OFlags::NOATIME, Mode::empty()) {
        // Only the owner may leave it.
        Err(Errno::PERM) => {}
        Err(Errno::AGAIN) => return leased(directory, name),
        opened => return opened,
    }
    match openat(&directory, name, READ, Mode::empty()) {
        #[cfg(target_os = "linux")]
        Err(Errno::AGAIN) => leased(directory, name),
        opened => opened,
    }
}

/// Opens a file on which another program has a lease, as file servers do.
#[cfg(target_os = "linux")]
fn leased(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd as _;

    use rustix::fs::{CWD, FileType, fstat};
    let path = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let object = openat(directory, name, path, Mode::empty())?;
    // Only the opening of such a file ends in any case.
    if FileType::from_raw_mode(fstat(&object)?.st_mode) != FileType::RegularFile {
        return Err(Errno::AGAIN);
    }
    let path = format!("/proc/self/fd/{}", object.as_raw_fd());
    let read = OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = match openat(CWD, &path, read | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => openat(CWD, &path, read, Mode::empty()),
        opened => opened,
    };
    // The file exists; the system does not show its descriptors.
    opened.map_err(|error| if error == Errno::NOENT { Errno::AGAIN } else { error })
}

/// Opens a directory in a directory.
pub(super) fn directory(above: impl AsFd, name: &CStr) -> Result<OwnedFd, Errno> {
    let follow = if mutated!("restore-follows-links") { OFlags::NOFOLLOW } else { OFlags::empty() };
    openat(above, name, READ.difference(follow) | OFlags::DIRECTORY, Mode::empty())
}

/// Returns `true` if this process ran out of something, so that other entries would fail as well.
pub(super) fn is_shortage(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}
