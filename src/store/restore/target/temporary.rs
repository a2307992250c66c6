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

use nix::errno::Errno;

use crate::rename::{self, may_be_lacking};
use crate::rt::Runtime;

/// Bytes of a name at the start of its temporary form.
const KEPT_NAME_BYTES: usize = 100;

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
            let path = destination.with_file_name(temporary_name(name.as_bytes(), random));
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
        rename_new(&self.path, &self.destination)?;
        self.is_over.store(true, Ordering::Release);
        self.sync_directory()
    }

    /// Removes the file, unless it has its final name. A job of the pool may still hold it open, or be about to rename it: the rename
    /// then fails, or was first and leaves nothing to remove.
    pub(super) fn discard(&self) {
        if !self.is_over.swap(true, Ordering::AcqRel) {
            // A file that stays has a telling name, and blocks nothing.
            let _ = fs::remove_file(&self.path);
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        let directory = self.destination.parent().unwrap_or(Path::new("/"));
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        match synced {
            // The directory is write-only, or its filesystem cannot flush directories.
            Err(error) if cannot_flush(&error) || error.kind() == io::ErrorKind::PermissionDenied => {
                #[cfg(target_os = "linux")]
                nix::unistd::syncfs(&self.file)?;
                #[cfg(not(target_os = "linux"))]
                nix::unistd::sync();
                Ok(())
            }
            synced => synced,
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.discard();
    }
}

/// Temporary name of a file. It is cut, because the limit of some filesystems is 143 bytes.
fn temporary_name(name: &[u8], random: [u8; 8]) -> OsString {
    let mut end = name.len().min(KEPT_NAME_BYTES);
    // Some filesystems refuse names that are not UTF-8.
    while end < name.len() && end > 0 && name[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    let mut temporary = name[..end].to_vec();
    temporary.extend_from_slice(format!(".restoring-{:016x}", u64::from_le_bytes(random)).as_bytes());
    OsString::from_vec(temporary)
}

/// Renames a file to a free name.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match rename::in_one_step(from, to) {
        Err(error) if may_be_lacking(&error) => {}
        renamed => return renamed,
    }
    match link_and_remove(from, to) {
        Err(error) if may_be_lacking(&error) => claim_and_replace(from, to),
        linked => linked,
    }
}

fn link_and_remove(from: &Path, to: &Path) -> io::Result<()> {
    rename::link(from, to)?;
    fs::remove_file(from)
}

fn claim_and_replace(from: &Path, to: &Path) -> io::Result<()> {
    drop(File::create_new(to)?);
    let renamed = fs::rename(from, to);
    if renamed.is_err() {
        // The empty file created above.
        let _ = fs::remove_file(to);
    }
    renamed
}

/// Returns `true` for the errors of filesystems that cannot flush a directory. `EIO` is not among them: it is a failed flush.
fn cannot_flush(error: &io::Error) -> bool {
    let number = error.raw_os_error().map(Errno::from_raw);
    error.kind() == io::ErrorKind::Unsupported
        || matches!(number, Some(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP | Errno::EPERM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_rename_method_replaces_a_target() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        for rename in [rename_new, link_and_remove, claim_and_replace] {
            fs::write(&from, "new").unwrap();
            fs::write(&to, "old").unwrap();
            assert_eq!(rename(&from, &to).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
            assert_eq!((fs::read(&from).unwrap(), fs::read(&to).unwrap()), (b"new".into(), b"old".into()));
            fs::remove_file(&to).unwrap();
            rename(&from, &to).unwrap();
            assert!(!from.exists());
            assert_eq!(fs::read(&to).unwrap(), b"new");
            fs::remove_file(&to).unwrap();
            assert!(rename(&from, &to).is_err(), "there is nothing to rename");
            assert!(!to.exists());
        }
    }

    #[test]
    fn a_temporary_name_is_no_longer_than_its_target_and_valid_text() {
        assert_eq!(
            temporary_name(b"disk.img", [1, 0, 0, 0, 0, 0, 0, 0]),
            "disk.img.restoring-0000000000000001"
        );
        for length in 90..120 {
            let long = format!("{}{}", "a".repeat(length), "ü".repeat(60));
            let name = temporary_name(long.as_bytes(), [7; 8]);
            assert!(name.len() <= 143 && name.to_str().is_some(), "{name:?}");
        }
    }
}
