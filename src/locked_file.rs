//! Files that are locked as a whole, by `flock`.

use std::fs::File;
use std::ops::Deref;

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

/// A file that is locked until it is dropped.
#[derive(Debug)]
pub(crate) struct LockedFile(File);

impl LockedFile {
    /// Locks a file.
    pub(crate) fn lock(file: File, how: FlockOperation) -> Result<Self, Errno> {
        let file = Self(file);
        file.relock(how)?;
        Ok(file)
    }

    /// Locks a file for its holder alone without waiting. A filesystem without locks is no failure.
    ///
    /// # Errors
    /// `WOULDBLOCK` if it is locked.
    pub(crate) fn lock_if_supported(file: File) -> Result<Self, Errno> {
        let file = Self(file);
        match file.relock(FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => Err(Errno::WOULDBLOCK),
            Ok(()) | Err(_) => Ok(file),
        }
    }

    /// Locks the file in another way.
    pub(crate) fn relock(&self, how: FlockOperation) -> Result<(), Errno> {
        retry_on_intr(|| flock(&self.0, how))
    }
}

impl Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        // Closing the file would do, unless a process that is just being started has the descriptor too. A filesystem on a network may
        // fail to unlock: the file is closed then.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}
