//! Symbolic links, devices, pipes, sockets and hard links.

use std::ffi::{CStr, OsStr};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;

use rustix::fs::{AtFlags, Gid, Mode, Uid, linkat, symlinkat, unlinkat, utimensat};
use rustix::io::Errno;

use super::directories::{Parent, check_replaceable};
use super::own::{OwnEntries, exists};
use super::{DirectoryTarget, Existing, Outcome, split, temporary};
use crate::pxar::{FileKind, Metadata};
use crate::tree::disk::metadata::write::{MetadataWriter, times};
use crate::tree::disk::status::Status;
use crate::tree::restore::target::TargetError;
use crate::tree::{Attribute, Problem};

impl DirectoryTarget {
    /// Creates a symbolic link, a device, a pipe or a socket.
    pub(super) fn make_special(&self, path: &[u8], kind: &FileKind, metadata: &Metadata) -> Outcome {
        let is_device = matches!(kind, FileKind::BlockDevice(_) | FileKind::CharDevice(_));
        if is_device && !self.powers.privileges {
            let why = io::Error::other("the restore was not asked for devices");
            return Err(TargetError::new(Problem::Device, why));
        }
        let (above, name) = split(path)?;
        let parent = self.state.directories.get(above)?;
        match self.make_free(&parent, &name, |name| make(parent.fd.as_fd(), name, kind))? {
            Ok(()) => {}
            Err(Errno::INVAL) => {
                let why = io::Error::from(Errno::INVAL);
                return Err(TargetError::new(Problem::Unsupported, why));
            }
            Err(error) => return Err(io::Error::from(error).into()),
        }
        let mut writer = MetadataWriter::new(path, metadata, self.powers);
        if let Err(error) = set(&parent, &name, metadata, &mut writer) {
            writer.not_set(Attribute::Mode, error);
        }
        Ok(writer.findings())
    }

    /// Creates a further name of a file of this restore.
    pub(super) fn link(&self, path: &[u8], target: &[u8]) -> Result<(), TargetError> {
        let ((above, name), (target_above, target_name)) = (split(path)?, split(target)?);
        let parent = self.state.directories.get(above)?;
        let target_parent = self.open_any(target_above)?;
        let is_own = |status: &Status| {
            self.state.own().files.contains(&status.id) || mutated!("restore-links-to-foreign-files")
        };
        let refused = || {
            let why = "the file that it names is not one of this restore";
            io::Error::new(io::ErrorKind::NotFound, why)
        };
        if !is_own(&Status::of_name(&target_parent, &target_name)?) {
            return Err(refused().into());
        }
        let make = |name: &CStr| linkat(&target_parent, &*target_name, &parent.fd, name, AtFlags::empty());
        match self.make_free(&parent, &name, make)? {
            Ok(()) => {}
            // These filesystems have no links, or no further ones.
            Err(error @ (Errno::PERM | Errno::OPNOTSUPP | Errno::NOSYS | Errno::MLINK)) => {
                return Err(io::Error::new(io::ErrorKind::Unsupported, error).into());
            }
            Err(error) => return Err(io::Error::from(error).into()),
        }
        // Another object may have taken the place of the file meanwhile.
        if Status::of_name(&parent.fd, &name).is_ok_and(|status| is_own(&status)) {
            return Ok(());
        }
        let _ = unlinkat(&parent.fd, &*name, AtFlags::empty());
        Err(refused().into())
    }

    /// Makes an entry by a call. An existing one of its name is treated as the caller of the restore asked. Returns any other error of the call.
    fn make_free(
        &self,
        parent: &Parent,
        name: &CStr,
        call: impl Fn(&CStr) -> Result<(), Errno>,
    ) -> Result<Result<(), Errno>, TargetError> {
        let mut own = OwnEntries::lock(&self.state.own, self.existing);
        let made = call(name);
        if made == Err(Errno::EXIST) {
            return match (self.existing, own) {
                (Existing::Replace, Some(own)) => {
                    // Publishing takes the lock again.
                    drop(own);
                    self.replace(parent, name, call)
                }
                (Existing::Skip, Some(own)) => Err(own.skipped(&parent.fd, name)),
                _ => Err(exists(Problem::Exists)),
            };
        }
        if let (Ok(()), Some(own)) = (made, &mut own)
            && let Ok(status) = Status::of_name(&parent.fd, name)
        {
            own.others.insert(status.id);
        }
        Ok(made)
    }

    /// Makes an entry by a call under a temporary name, and renames it over the existing one.
    fn replace(
        &self,
        parent: &Parent,
        name: &CStr,
        call: impl Fn(&CStr) -> Result<(), Errno>,
    ) -> Result<Result<(), Errno>, TargetError> {
        check_replaceable(parent, name, &self.state.own())?;
        let ((), temporary) = match temporary::make(&*self.runtime, name, call) {
            Err(error) => return Ok(Err(error)),
            Ok(made) => made,
        };
        let status = Status::of_name(&parent.fd, &temporary);
        let published = temporary::publish(self, parent, (&temporary, name));
        if published.is_err() {
            // If it stays, its name tells what it is.
            let _ = unlinkat(&parent.fd, &*temporary, AtFlags::empty());
        } else if let Ok(status) = status {
            self.state.own().others.insert(status.id);
        }
        published.map(Ok)
    }

    /// Opens a directory that may be left already.
    fn open_any(&self, path: &[u8]) -> io::Result<std::sync::Arc<std::os::fd::OwnedFd>> {
        match self.state.directories.get(path) {
            Ok(parent) => Ok(parent.fd),
            Err(_) => self.state.directories.walk(path).map(std::sync::Arc::new),
        }
    }
}

fn make(directory: BorrowedFd<'_>, name: &CStr, kind: &FileKind) -> Result<(), Errno> {
    match kind {
        FileKind::Symlink { target } => symlinkat(OsStr::from_bytes(target), directory, name),
        #[cfg(not(target_vendor = "apple"))]
        FileKind::BlockDevice(device) | FileKind::CharDevice(device) => {
            use rustix::fs::{FileType, makedev, mknodat};
            let is_block = matches!(kind, FileKind::BlockDevice(_));
            let file_type = if is_block { FileType::BlockDevice } else { FileType::CharacterDevice };
            let number = |number: u64| u32::try_from(number).map_err(|_| Errno::INVAL);
            let number = makedev(number(device.major)?, number(device.minor)?);
            mknodat(directory, name, file_type, Mode::RUSR | Mode::WUSR, number)
        }
        #[cfg(not(target_vendor = "apple"))]
        FileKind::Fifo | FileKind::Socket => {
            use rustix::fs::{FileType, mknodat};
            let file_type = if *kind == FileKind::Fifo { FileType::Fifo } else { FileType::Socket };
            mknodat(directory, name, file_type, Mode::RUSR | Mode::WUSR, 0)
        }
        _ => Err(Errno::INVAL),
    }
}

/// Sets owner, mode and time without opening the object, which would wait at a pipe. A descriptor for its path keeps it the same object.
#[cfg(target_os = "linux")]
fn set(parent: &Parent, name: &CStr, metadata: &Metadata, writer: &mut MetadataWriter<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd as _;

    use rustix::fs::{CWD, OFlags, chmodat, chownat, openat, removexattr};

    use crate::tree::disk::metadata::ACCESS_LIST;
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let object = openat(&parent.fd, name, flags, Mode::empty())?;
    let status = Status::of(&object)?;
    if status.file_type() != file_type(metadata) {
        return Err(io::Error::other("another object took its place"));
    }
    let change = |user: Option<Uid>, group: Option<Gid>| {
        chownat(&object, c"", user, group, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
    };
    let has_owner = writer.owner(&status, change);
    if !status.file_type().is_symlink() {
        let mode = Mode::from_raw_mode(writer.mode(false, has_owner));
        let path = format!("/proc/self/fd/{}", object.as_raw_fd());
        if parent.inherits {
            // The mode would give rights to those in it.
            let _ = removexattr(&path, ACCESS_LIST);
        }
        writer.check(Attribute::Mode, chmodat(CWD, path, mode, AtFlags::empty()));
    }
    let times = times(metadata.stat.mtime);
    let set = match utimensat(&object, c"", &times, AtFlags::EMPTY_PATH) {
        // Before Linux 5.8.
        Err(Errno::INVAL | Errno::BADF) => utimensat(&parent.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW),
        set => set,
    };
    writer.check(Attribute::Times, set);
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn set(parent: &Parent, name: &CStr, metadata: &Metadata, writer: &mut MetadataWriter<'_>) -> io::Result<()> {
    use rustix::fs::{chmodat, chownat};
    let status = Status::of_name(&parent.fd, name)?;
    if status.file_type() != file_type(metadata) {
        return Err(io::Error::other("another object took its place"));
    }
    let change = |user: Option<Uid>, group: Option<Gid>| {
        chownat(&parent.fd, name, user, group, AtFlags::SYMLINK_NOFOLLOW)
    };
    let has_owner = writer.owner(&status, change);
    if !status.file_type().is_symlink() {
        let mode = Mode::from_raw_mode(writer.mode(false, has_owner) as _);
        let set = chmodat(&parent.fd, name, mode, AtFlags::SYMLINK_NOFOLLOW);
        writer.check(Attribute::Mode, set);
    }
    let times = times(metadata.stat.mtime);
    writer.check(Attribute::Times, utimensat(&parent.fd, name, &times, AtFlags::SYMLINK_NOFOLLOW));
    Ok(())
}

fn file_type(metadata: &Metadata) -> rustix::fs::FileType {
    #[allow(
        clippy::useless_conversion,
        clippy::unnecessary_fallible_conversions,
        reason = "a type by system"
    )]
    rustix::fs::FileType::from_raw_mode(metadata.stat.mode.try_into().unwrap_or(0))
}
