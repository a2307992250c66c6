//! A file that gets its name only when it is complete.
//!
//! | state | under the name | beside it | a crash or a failure leaves |
//! |---|---|---|---|
//! | created | nothing | `NAME.restoring-<16 digits>`, growing | after a crash that file, after a failure nothing |
//! | flushed | nothing | the whole file | the same |
//! | renamed | the whole file | nothing | the file, or after a power cut what `flushed` leaves |
//! | directory flushed | the whole file | nothing | the file |
//!
//! The rename never replaces anything. If the system cannot promise that in one step, a hard link does; without
//! hard links, an empty file claims the name first and is then replaced.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::rename;
use crate::rt::Runtime;

/// A new file under a temporary name, removed when this is dropped.
#[derive(Debug)]
pub(super) struct Temporary {
    pub(super) file: File,
    destination: PathBuf,
    /// `true` once the file has its final name or is removed.
    is_over: AtomicBool,
    path: PathBuf,
}

impl Temporary {
    /// Creates the file.
    ///
    /// # Errors
    /// `AlreadyExists` if the destination exists.
    pub(super) fn create(destination: &Path, runtime: &dyn Runtime) -> io::Result<Self> {
        // The working directory may have changed by then.
        let destination = std::path::absolute(destination)?;
        let is_directory = destination.as_os_str().as_bytes().ends_with(b"/");
        let name = destination.file_name().filter(|_| !is_directory);
        let name = name.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "it names a directory"))?;
        match fs::symlink_metadata(&destination) {
            Ok(_) => return Err(io::ErrorKind::AlreadyExists.into()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        loop {
            let mut random = [0; 8];
            runtime.fill_random(&mut random);
            let path = destination
                .with_file_name(OsString::from_vec(rename::temporary_name(name.as_bytes(), random)));
            match File::create_new(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                created => {
                    return Ok(Self { file: created?, destination, is_over: false.into(), path });
                }
            }
        }
    }

    /// Flushes the file and gives it its name, durably.
    ///
    /// # Errors
    /// `AlreadyExists` if the name was taken meanwhile; that object stays.
    pub(super) fn publish(&self) -> io::Result<()> {
        self.file.sync_all()?;
        rename::to_free_name(&self.path, &self.destination)?;
        self.is_over.store(true, Ordering::Release);
        rename::flush_directory(self.destination.parent().unwrap_or(Path::new("/")), &self.file)
    }

    /// Returns `true` if the file has its final name, or is removed.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Removes the file, unless it has its final name. A job of the pool may still hold it open, or be about to rename it: the rename
    /// then fails, or was first and leaves nothing to remove.
    pub(super) fn discard(&self) {
        if !self.is_over.swap(true, Ordering::AcqRel) {
            // A file that stays has a telling name, and blocks nothing.
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.discard();
    }
}
