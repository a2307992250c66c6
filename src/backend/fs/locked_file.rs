//! Files that are locked as a whole, by `flock`.

use std::fs::File;
use std::ops::Deref;

use rustix::fs::{FlockOperation, flock};
use rustix::io::{Errno, retry_on_intr};

/// A file that is locked until it is dropped.
#[derive(Debug)]
pub(super) struct LockedFile(File);

impl LockedFile {
    /// Locks a file.
    pub(super) fn lock(file: File, how: FlockOperation) -> Result<Self, Errno> {
        retry_on_intr(|| flock(&file, how))?;
        Ok(Self(file))
    }

    /// Locks the file in another way.
    pub(super) fn relock(&self, how: FlockOperation) -> Result<(), Errno> {
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
