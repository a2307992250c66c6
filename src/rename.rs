//! Renaming a file to a name that must be free.
//!
//! No single call does this on every filesystem. `renameat2` does it in one step, and fails with one of several errors where a filesystem
//! (FUSE, SMB) lacks it. A hard link is the second way. Where there is neither, [`to_free_name`] claims the name with an empty file; the
//! backend, whose readers must not see one, uses a lock.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::errno::Errno;

/// Renames a file to a free name, by the first way that the filesystem has. The last one, an empty file that claims the name and is then
/// replaced, leaves that empty file if the host crashes in between.
///
/// # Errors
/// `AlreadyExists` if the name is taken.
pub(crate) fn to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    match in_one_step(from, to) {
        Err(error) if may_be_lacking(&error) => {}
        renamed => return renamed,
    }
    match link_and_remove(from, to) {
        Err(error) if may_be_lacking(&error) => claim_and_replace(from, to),
        linked => linked,
    }
}

fn link_and_remove(from: &Path, to: &Path) -> io::Result<()> {
    link(from, to)?;
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

/// Makes a rename in a directory durable. `file` is on the same filesystem.
pub(crate) fn flush_directory(directory: &Path, file: &File) -> io::Result<()> {
    let synced = File::open(directory).and_then(|directory| directory.sync_all());
    match synced {
        // The directory is write-only, or its filesystem cannot flush directories.
        Err(error) if cannot_flush(&error) || error.kind() == io::ErrorKind::PermissionDenied => {
            #[cfg(target_os = "linux")]
            nix::unistd::syncfs(file)?;
            #[cfg(not(target_os = "linux"))]
            {
                let _ = file;
                nix::unistd::sync();
            }
            Ok(())
        }
        synced => synced,
    }
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
    fn no_rename_method_replaces_a_target() {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("from"), directory.path().join("to"));
        for rename in [to_free_name, link_and_remove, claim_and_replace] {
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
