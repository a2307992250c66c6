//! A lock file, and the check that it is still the one at its path.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use nix::libc;

use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;

/// How often a lock file that was replaced while it was being locked is tried anew.
pub(super) const REPLACED_TRIES: usize = 8;

/// A lock file and where it was when it was locked.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) identity: (u64, u64),
    pub(super) path: PathBuf,
    pub(super) runtime: Arc<dyn Runtime>,
}

impl Place {
    /// Whether the file is still the one that others would lock.
    pub(super) fn is_held(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }

    /// Fails if somebody else may hold the lock by now: the file was removed or replaced by another.
    pub(super) async fn check(&self) -> Result<()> {
        let place = self.clone();
        let lost = move || match fs::symlink_metadata(&place.path) {
            Ok(found) if identity(&found) == place.identity => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(error, "check the lock").on(place.path.display()))
            }
            _ => Err(Error::new(ErrorKind::Busy, "check the lock")
                .on(place.path.display())
                .because("the lock file was removed while it was locked")),
        };
        self.runtime.run_blocking("check the lock", lost).await
    }
}

pub(super) fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

pub(super) fn lock_file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
    options
}

/// Gives a file that was just made to its owner; one that has another owner than it should was just made.
pub(super) fn give(file: &File, owner: Option<(u32, u32)>, mode: u32) -> io::Result<()> {
    if let Some((uid, gid)) = owner
        && file.metadata()?.uid() != uid
    {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        std::os::unix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    Ok(())
}
