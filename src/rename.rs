//! Renaming a file to a name that must be free.
//!
//! No single call does this on every filesystem. `renameat2` does it in one step, and fails with one of several errors where a filesystem
//! (FUSE, SMB) lacks it. A hard link is the second way. Where there is neither, [`to_free_name`] claims the name with an empty file; the
//! backend, whose readers must not see one, uses a lock.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::errno::Errno;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, linkat, openat, renameat, statat, unlinkat};
use rustix::path::Arg;

/// Bytes of a name at the start of its temporary form.
const KEPT_NAME_BYTES: usize = 100;

/// Renames a file to a free name, by the first way that the filesystem has. The last one, an empty file that claims the name and is then
/// replaced, leaves that empty file if the host crashes in between.
///
/// # Errors
/// `AlreadyExists` if the name is taken.
pub(crate) fn to_free_name(from: &Path, to: &Path) -> io::Result<()> {
    to_free_name_in(CWD, from, to)
}

/// As [`to_free_name`], for names in a directory.
///
/// # Errors
/// `AlreadyExists` if the name is taken.
pub(crate) fn to_free_name_in<P: Arg + Copy>(directory: BorrowedFd<'_>, from: P, to: P) -> io::Result<()> {
    match in_one_step_in(directory, from, to) {
        Err(error) if may_be_lacking(&error) => {}
        renamed => return renamed,
    }
    match link_and_remove(directory, from, to) {
        Err(error) if may_be_lacking(&error) => claim_and_replace(directory, from, to),
        linked => linked,
    }
}

fn link_and_remove<P: Arg + Copy>(directory: BorrowedFd<'_>, from: P, to: P) -> io::Result<()> {
    link_in(directory, from, to)?;
    Ok(unlinkat(directory, from, AtFlags::empty())?)
}

fn claim_and_replace<P: Arg + Copy>(directory: BorrowedFd<'_>, from: P, to: P) -> io::Result<()> {
    let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(openat(directory, to, create, Mode::RUSR | Mode::WUSR)?);
    let renamed = renameat(directory, from, directory, to);
    if renamed.is_err() {
        // The empty file created above.
        let _ = unlinkat(directory, to, AtFlags::empty());
    }
    Ok(renamed?)
}

/// Renames a file in one step, unless the name is taken.
///
/// # Errors
/// `AlreadyExists` if the name is taken; an error that [`may_be_lacking`] where the system or the filesystem has no such call.
pub(crate) fn in_one_step(from: &Path, to: &Path) -> io::Result<()> {
    in_one_step_in(CWD, from, to)
}

#[cfg(target_os = "linux")]
fn in_one_step_in<P: Arg + Copy>(directory: BorrowedFd<'_>, from: P, to: P) -> io::Result<()> {
    use rustix::fs::{RenameFlags, renameat_with};
    Ok(renameat_with(directory, from, directory, to, RenameFlags::NOREPLACE)?)
}

/// Fails: this system has no such call.
#[cfg(not(target_os = "linux"))]
fn in_one_step_in<P: Arg + Copy>(_: BorrowedFd<'_>, _: P, _: P) -> io::Result<()> {
    Err(Errno::ENOSYS.into())
}

/// Gives a file a second name, unless that is taken. The caller removes the first name.
///
/// # Errors
/// `AlreadyExists` if the name is taken; an error that [`may_be_lacking`] where the filesystem has no links.
pub(crate) fn link(from: &Path, to: &Path) -> io::Result<()> {
    link_in(CWD, from, to)
}

fn link_in<P: Arg + Copy>(directory: BorrowedFd<'_>, from: P, to: P) -> io::Result<()> {
    match linkat(directory, from, directory, to, AtFlags::empty()) {
        // A file server may have made the link and lost the answer, and the kernel then asked again.
        Err(rustix::io::Errno::EXIST) if is_same(directory, from, to) => Ok(()),
        linked => Ok(linked?),
    }
}

fn is_same<P: Arg + Copy>(directory: BorrowedFd<'_>, one: P, other: P) -> bool {
    let identity = |name: P| {
        statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).map(|found| (found.st_dev, found.st_ino))
    };
    matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// Temporary name of a file. It is cut, because the limit of some filesystems is 143 bytes.
pub(crate) fn temporary_name(name: &[u8], random: [u8; 8]) -> Vec<u8> {
    let mut end = name.len().min(KEPT_NAME_BYTES);
    // Some filesystems refuse names that are not UTF-8.
    while end < name.len() && end > 0 && name[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    [&name[..end], format!(".restoring-{:016x}", u64::from_le_bytes(random)).as_bytes()].concat()
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
    use std::fs;

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
        let ways: [fn(&Path, &Path) -> io::Result<()>; 3] = [
            to_free_name,
            |from, to| link_and_remove(CWD, from, to),
            |from, to| claim_and_replace(CWD, from, to),
        ];
        for rename in ways {
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

    #[test]
    fn a_temporary_name_is_no_longer_than_its_target_and_valid_text() {
        assert_eq!(
            temporary_name(b"disk.img", [1, 0, 0, 0, 0, 0, 0, 0]),
            b"disk.img.restoring-0000000000000001"
        );
        for length in 90..120 {
            let long = format!("{}{}", "a".repeat(length), "ü".repeat(60));
            let name = temporary_name(long.as_bytes(), [7; 8]);
            assert!(name.len() <= 143 && std::str::from_utf8(&name).is_ok(), "{name:?}");
        }
    }
}
