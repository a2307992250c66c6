//! The filesystems of a store.
//!
//! A directory of the store may be a mount point: `.chunks` on a disk of its own, a namespace on another one. A barrier that flushes whole
//! filesystems has to flush each of them. They are distinguished by the device numbers of the directories above each object that is stored,
//! touched, renamed or removed; the root, `.chunks` and `.larder` are looked up when the store is opened. Device numbers of files do not
//! count: on overlayfs they are those of its layers.
//!
//! A directory of each known filesystem stays open: the system reports a failure to write back once to each descriptor that was open at
//! the time of the failure, and never to a descriptor that is opened later.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{PoisonError, RwLock};

use crate::backend::fs::version::learn_inodes;

#[derive(Debug, Default)]
pub(super) struct Filesystems {
    met: RwLock<Vec<Filesystem>>,
}

#[derive(Debug)]
struct Filesystem {
    device: u64,
    /// A directory on it, open.
    directory: File,
    /// The path of that directory relative to the store.
    path: String,
}

impl Filesystems {
    /// Adds the filesystem of the directory `path`, whose full path is `full`, to those that a barrier flushes.
    ///
    /// INVARIANT: called before any change on the filesystem, so that no barrier misses the change.
    pub(super) fn meet(&self, device: u64, path: &str, full: &Path) -> io::Result<()> {
        let is_it = |known: &Filesystem| known.device == device;
        if self.met.read().unwrap_or_else(PoisonError::into_inner).iter().any(is_it) {
            return Ok(());
        }
        let directory = File::open(full)?;
        learn_inodes(&directory)?;
        let mut met = self.met.write().unwrap_or_else(PoisonError::into_inner);
        if !met.iter().any(is_it) {
            met.push(Filesystem { device, directory, path: path.to_owned() });
        }
        Ok(())
    }

    /// Flushes all filesystems, also after a failure, and returns the first failure. Calls `flushed` for each that was flushed.
    pub(super) fn flush(&self, flushed: impl Fn(&str)) -> io::Result<()> {
        let met = self.met.read().unwrap_or_else(PoisonError::into_inner);
        let mut outcome = Ok(());
        for filesystem in met.iter() {
            match flush(&filesystem.directory) {
                Ok(()) => flushed(&filesystem.path),
                failed => outcome = outcome.and(failed),
            }
        }
        outcome
    }
}

/// Flushes the filesystem of a directory.
pub(super) fn flush(directory: &File) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use std::os::fd::AsFd as _;
        nix::unistd::syncfs(directory.as_fd())?;
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = directory;
        nix::unistd::sync();
    }
    Ok(())
}
