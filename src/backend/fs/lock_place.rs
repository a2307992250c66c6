//! Lock files, and the check that a locked file is still the one at its path.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::sync::Arc;

use nix::libc;

use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;

/// Number of attempts to lock a file that is replaced while it is being locked.
pub(super) const REPLACED_TRIES: usize = 8;

/// The path and the identity of a file when it was locked.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) identity: (u64, u64),
    pub(super) path: PathBuf,
    pub(super) runtime: Arc<dyn Runtime>,
}

impl Place {
    /// Returns `true` if the file is still at its path, where other processes lock it.
    pub(super) fn is_held(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| identity(&found) == self.identity)
    }

    /// Fails if the file was removed or replaced: another process may hold the lock of the new file.
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

/// Device and inode of a file.
pub(super) fn identity(metadata: &fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Options that open a lock file, and make it if it does not exist.
pub(super) fn lock_file_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW);
    options
}

/// Sets mode and owner of a lock file whose owner is not the right one, since it was made just now.
pub(super) fn give(file: &File, owner: Option<(u32, u32)>, mode: u32) -> io::Result<()> {
    if let Some((uid, gid)) = owner
        && file.metadata()?.uid() != uid
    {
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        std::os::unix::fs::fchown(file, Some(uid), Some(gid))?;
    }
    Ok(())
}
