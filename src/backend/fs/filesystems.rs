//! The filesystems that a store lies on.
//!
//! A directory of the store may be a mount point: `.chunks` on a disk of its own, a namespace on another one. A barrier that flushes whole
//! filesystems has to flush each of them. They are told apart by the device numbers of the directories above every object that is
//! stored, touched, renamed or removed; the root, `.chunks` and `.larder` are looked at when the store is opened. Device numbers of files
//! do not count: on overlayfs they are those of its layers.
//!
//! A filesystem stays open once it was met: the system reports a failure to write back once to each descriptor that was open when it
//! happened, and never to one that is opened later.

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
    /// Has the filesystem flushed from now on that the directory `path` lies on, whose full path is `full`.
    ///
    /// INVARIANT: it is met before anything on it is changed, so that no barrier misses the change.
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

    /// Flushes all of them, also after a failure, and fails with the first one. `flushed` hears of each.
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

/// Flushes the filesystem that a directory lies on.
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
