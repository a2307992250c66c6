//! Renaming a file to a name that must be free.
//!
//! No single call does this on every filesystem. `renameat2` does it in one step, and fails with one of several errors where a filesystem
//! (FUSE, SMB) lacks it. A hard link is the second way. A caller that gets neither needs a way of its own, such as a lock.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;

/// Renames a file in one step, unless the name is taken.
///
/// # Errors
/// `AlreadyExists` if the name is taken; an error that [`may_be_lacking`] where the system or the filesystem has no such call.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub(crate) fn in_one_step(from: &Path, to: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    Ok(renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE)?)
}

/// Fails: this system has no such call.
///
/// # Errors
/// `ENOSYS`.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn in_one_step(_: &Path, _: &Path) -> io::Result<()> {
    Err(Errno::ENOSYS.into())
}

/// Gives a file a second name, unless that is taken. The caller removes the first name.
///
/// # Errors
/// `AlreadyExists` if the name is taken; an error that [`may_be_lacking`] where the filesystem has no links.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        // A file server may have made the link and lost the answer, and the kernel then asked again.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_same(from, to) => Ok(()),
        linked => linked,
    }
}

fn is_same(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// Returns `true` if an error may mean that the filesystem does not have the call at all. FUSE and SMB return any of these.
pub(crate) fn may_be_lacking(error: &io::Error) -> bool {
    use Errno::{EINVAL, EIO, ENOSYS, ENOTTY, EOPNOTSUPP, EPERM};
    let number = error.raw_os_error().map(Errno::from_raw);
    matches!(number, Some(EINVAL | EIO | ENOSYS | ENOTTY | EOPNOTSUPP | EPERM))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_rename_method_replaces_a_file() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("from");
        let to = directory.path().join("to");
        for rename in [in_one_step, link] {
            fs::write(&from, "new").unwrap();
            fs::write(&to, "old").unwrap();
            let error = rename(&from, &to).unwrap_err();
            assert!(error.kind() == io::ErrorKind::AlreadyExists || may_be_lacking(&error), "{error}");
            assert_eq!(fs::read(&to).unwrap(), b"old");
        }
    }

    #[test]
    fn a_link_that_already_exists_counts_as_created() {
        let directory = tempfile::tempdir().unwrap();
        let from = directory.path().join("from");
        let to = directory.path().join("to");
        fs::write(&from, "new").unwrap();
        link(&from, &to).unwrap();
        link(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"new");
    }
}
