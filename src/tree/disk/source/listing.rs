//! Names in a directory, and their metadata.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use bytes::Bytes;
use rustix::fs::{Dir, FileType, readlinkat};
use rustix::io::Errno;

use super::directory::Directory;
use crate::pxar::{EXCLUDE_FILE, FileKind, Metadata};
use crate::tree::disk::metadata::read::{Failures, MetadataReader};
use crate::tree::disk::open;
use crate::tree::disk::status::Status;
use crate::tree::{Attribute, Problem, SourceEntry, SourceListing, TreeFinding, is_virtual_filesystem};

/// A name in a directory.
pub(super) struct Name {
    pub(super) file_type: FileType,
    pub(super) text: CString,
}

/// Why a directory is not entered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Bar {
    /// It is one of those that it lies in.
    Loop,
    /// Another filesystem.
    Mount,
    /// A directory of the store.
    Own,
    Virtual,
}

/// The names in a directory; the ones before an error, which becomes a finding.
///
/// # Errors
/// If there is none before the error.
pub(super) fn names(directory: BorrowedFd<'_>, findings: &mut Vec<TreeFinding>) -> io::Result<Vec<Name>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        match entry {
            Ok(entry) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Ok(entry) => {
                names.push(Name { file_type: entry.file_type(), text: entry.file_name().to_owned() });
            }
            Err(error) if names.is_empty() => return Err(error.into()),
            Err(error) => {
                findings.push(TreeFinding::new("", Problem::UnreadableContents).because(error));
                break;
            }
        }
    }
    Ok(names)
}

/// Adds entries with their metadata to a listing.
///
/// # Errors
/// If this process runs out of descriptors or memory, which is no fault of an entry.
pub(super) fn entries(
    directory: &Directory,
    names: Vec<Name>,
    listing: &mut SourceListing,
) -> io::Result<()> {
    let mut reader = MetadataReader::new(directory.ancestor().id.device);
    let has_record = directory.ancestor().is_root() && !directory.rules().excludes.is_empty();
    listing.entries.reserve(names.len());
    for name in names {
        // It would appear twice.
        if has_record && name.text.to_bytes() == EXCLUDE_FILE {
            listing.findings.push(TreeFinding::new(EXCLUDE_FILE, Problem::Reserved));
            continue;
        }
        let mut look = Look { directory, findings: &mut listing.findings, name: &name.text };
        match look.entry(&mut reader, name.file_type) {
            Ok(Some(entry)) => listing.entries.push(entry),
            Ok(None) => {}
            Err(error) if open::is_shortage(&error) => return Err(error),
            Err(error) => look.missed(error),
        }
    }
    Ok(())
}

/// Why a directory, opened or not, is not entered.
pub(super) fn bar(parent: &Directory, directory: &OwnedFd, status: &Status) -> Option<Bar> {
    let (rules, ancestor) = (parent.rules(), parent.ancestor());
    if rules.own.contains(&status.id) {
        Some(Bar::Own)
    } else if !rules.all_filesystems
        && status.id.device != ancestor.root_device()
        && !rules.devices.contains(&status.id.device)
    {
        Some(Bar::Mount)
    } else if status.id.device != ancestor.id.device && is_virtual(directory) {
        Some(Bar::Virtual)
    } else {
        ancestor.lies_in(status.id).then_some(Bar::Loop)
    }
}

/// Returns `true` if a directory is on a filesystem without stored contents.
#[cfg(target_os = "linux")]
pub(super) fn is_virtual(directory: &OwnedFd) -> bool {
    let found = rustix::fs::fstatfs(directory);
    found.is_ok_and(|found| u32::try_from(found.f_type).is_ok_and(is_virtual_filesystem))
}

#[cfg(not(target_os = "linux"))]
pub(super) fn is_virtual(_: &OwnedFd) -> bool {
    let _ = is_virtual_filesystem;
    false
}

/// One entry that is looked at.
struct Look<'a> {
    directory: &'a Directory,
    findings: &'a mut Vec<TreeFinding>,
    name: &'a CStr,
}

impl Look<'_> {
    /// `None` for an entry that is left out.
    fn entry(&mut self, reader: &mut MetadataReader, file_type: FileType) -> io::Result<Option<SourceEntry>> {
        let mut file_type = file_type;
        // Another object may take the place of the listed one, once or twice.
        for _ in 0..3 {
            if file_type == FileType::Unknown {
                file_type = Status::of_name(self.directory.fd(), self.name)?.file_type();
            }
            if self.directory.excludes(self.name.to_bytes(), file_type.is_dir()) {
                return Ok(None);
            }
            let entry = match file_type {
                FileType::Directory => self.directory(reader),
                FileType::RegularFile => self.file(reader),
                _ => self.special(file_type),
            };
            match entry {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => file_type = FileType::Unknown,
                entry => return entry,
            }
        }
        Err(Errno::NOENT.into())
    }

    fn directory(&mut self, reader: &mut MetadataReader) -> io::Result<Option<SourceEntry>> {
        let fd = match open::directory(self.directory.fd(), self.name) {
            Ok(fd) => fd,
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(replaced()),
            Err(error @ (Errno::NOENT | Errno::STALE)) => return Err(error.into()),
            Err(error) if open::is_shortage(&error.into()) => return Err(error.into()),
            // Opening it for its contents fails too, and tells why.
            Err(error) => {
                let status = Status::of_name(self.directory.fd(), self.name)?;
                if !status.file_type().is_dir() {
                    return Err(replaced());
                }
                if self.directory.rules().own.contains(&status.id) {
                    self.found(Problem::OwnStore, None);
                    return Ok(None);
                }
                let problem = Problem::UnreadableAttribute(Attribute::Extended);
                self.found(problem, Some(error.into()));
                return Ok(Some(self.made(FileKind::Directory, Metadata::new(status.stat))));
            }
        };
        let status = Status::of(&fd)?;
        match bar(self.directory, &fd, &status) {
            Some(Bar::Own) => {
                self.found(Problem::OwnStore, None);
                return Ok(None);
            }
            Some(Bar::Mount) => self.found(Problem::MountPoint, None),
            Some(Bar::Virtual) => self.found(Problem::VirtualFilesystem, None),
            Some(Bar::Loop) | None => {}
        }
        let metadata = self.metadata(reader, &fd, &status);
        let entry = self.made(FileKind::Directory, metadata);
        Ok(Some(SourceEntry { id: Some(status.id), ..entry }))
    }

    fn file(&mut self, reader: &mut MetadataReader) -> io::Result<Option<SourceEntry>> {
        let fd = match open::to_read(self.directory.fd(), self.name) {
            Ok(fd) => fd,
            Err(Errno::LOOP | Errno::NXIO) => return Err(replaced()),
            Err(error) => return Err(error.into()),
        };
        let status = Status::of(&fd)?;
        if !status.file_type().is_file() {
            return Err(replaced());
        }
        let metadata = self.metadata(reader, &fd, &status);
        let entry = self.made(FileKind::File { size: status.size }, metadata);
        let entry = SourceEntry { id: Some(status.id), ..entry };
        if status.links > 1 {
            return Ok(Some(entry.link(status.id)));
        }
        self.directory.early().read(&entry.name, fd, status);
        Ok(Some(entry))
    }

    /// A symbolic link, a device, a pipe or a socket, which is not opened.
    fn special(&mut self, file_type: FileType) -> io::Result<Option<SourceEntry>> {
        let status = Status::of_name(self.directory.fd(), self.name)?;
        if status.file_type() != file_type {
            return Err(replaced());
        }
        let kind = match file_type {
            FileType::Symlink => {
                let target = match readlinkat(self.directory.fd(), self.name, Vec::new()) {
                    Ok(target) => Bytes::from(target.into_bytes()),
                    Err(Errno::INVAL) => return Err(replaced()),
                    Err(error) => return Err(error.into()),
                };
                FileKind::Symlink { target }
            }
            FileType::BlockDevice => FileKind::BlockDevice(status.device),
            FileType::CharacterDevice => FileKind::CharDevice(status.device),
            FileType::Fifo => FileKind::Fifo,
            FileType::Socket => FileKind::Socket,
            _ => {
                self.found(Problem::Unreadable, Some(io::Error::other("its kind is unknown")));
                return Ok(None);
            }
        };
        Ok(Some(self.made(kind, Metadata::new(status.stat))))
    }

    fn metadata(&mut self, reader: &mut MetadataReader, fd: &OwnedFd, status: &Status) -> Metadata {
        let mut failures = Failures::new();
        let metadata = reader.read(fd.as_fd(), status, &mut failures);
        for failure in failures {
            self.found(Problem::UnreadableAttribute(failure.attribute), Some(failure.error));
        }
        metadata
    }

    fn made(&self, kind: FileKind, metadata: Metadata) -> SourceEntry {
        SourceEntry::new(Bytes::copy_from_slice(self.name.to_bytes()), kind, metadata)
    }

    /// Reports an entry that is left out.
    fn missed(&mut self, error: io::Error) {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::StaleNetworkFileHandle => {
                self.found(Problem::Vanished, None);
            }
            _ => self.found(Problem::Unreadable, Some(error)),
        }
    }

    fn found(&mut self, problem: Problem, cause: Option<io::Error>) {
        let finding = TreeFinding::new(self.name.to_bytes(), problem);
        self.findings.push(match cause {
            Some(cause) => finding.because(cause),
            None => finding,
        });
    }
}

/// Another object took the place of the listed one.
fn replaced() -> io::Error {
    io::ErrorKind::Interrupted.into()
}
