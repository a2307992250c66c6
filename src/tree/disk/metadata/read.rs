//! Reading of metadata by descriptor.

use std::ffi::CStr;
use std::io;
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use rustix::fs::{fgetxattr, flistxattr};
use rustix::io::Errno;

use super::{ACCESS_LIST, CAPABILITIES, DEFAULT_LIST, acl};
use crate::pxar::{Metadata, Xattr};
use crate::tree::Attribute;
use crate::tree::disk::status::Status;

/// First size of the buffers; the system takes as much memory as it is offered, for every call.
const SMALL_BYTES: usize = 512;

/// Largest list of names and largest value of an attribute on Linux.
const LARGE_BYTES: usize = 64 << 10;

/// Reads metadata of objects, and remembers what their filesystem lacks.
pub(in crate::tree::disk) struct MetadataReader {
    /// Filesystem to which the memory applies.
    device: u64,
    has_xattrs: bool,
    lacks_flags: Lacks,
    names: Vec<u8>,
    value: Vec<u8>,
}

/// Kinds of objects without flags on a filesystem.
#[derive(Clone, Copy, Default)]
struct Lacks {
    directories: bool,
    files: bool,
}

/// Attributes that could not be read.
pub(in crate::tree::disk) type Failures = Vec<Failure>;

/// An attribute that could not be read.
pub(in crate::tree::disk) struct Failure {
    pub(in crate::tree::disk) attribute: Attribute,
    pub(in crate::tree::disk) error: io::Error,
}

impl MetadataReader {
    /// A reader for the objects in a directory.
    pub(in crate::tree::disk) fn new(device: u64) -> Self {
        let (names, value) = (vec![0; SMALL_BYTES], vec![0; SMALL_BYTES]);
        Self { device, has_xattrs: true, lacks_flags: Lacks::default(), names, value }
    }

    /// Reads all metadata of an open file or directory.
    pub(in crate::tree::disk) fn read(
        &mut self,
        file: BorrowedFd<'_>,
        status: &Status,
        failures: &mut Failures,
    ) -> Metadata {
        let mut metadata = Metadata::new(status.stat);
        let is_known = status.id.device == self.device;
        match self.flags(file, status, is_known) {
            Ok(flags) => metadata.stat.flags = flags,
            Err(error) => failures.push(Failure { attribute: Attribute::Flags, error }),
        }
        if is_known && !self.has_xattrs {
            return metadata;
        }
        match self.list(file) {
            Ok(0) => {}
            Ok(length) => {
                if let Err(error) = self.extended(file, length, &mut metadata) {
                    failures.push(Failure { attribute: Attribute::Extended, error });
                }
            }
            Err(Errno::OPNOTSUPP) => self.has_xattrs &= !is_known,
            Err(error) => failures.push(Failure { attribute: Attribute::Extended, error: error.into() }),
        }
        metadata
    }

    #[cfg(target_os = "linux")]
    fn flags(&mut self, file: BorrowedFd<'_>, status: &Status, is_known: bool) -> io::Result<u64> {
        let is_directory = status.file_type().is_dir();
        let lacks =
            if is_directory { &mut self.lacks_flags.directories } else { &mut self.lacks_flags.files };
        if is_known && *lacks {
            return Ok(0);
        }
        match rustix::fs::ioctl_getflags(file) {
            Ok(flags) => Ok(super::flags::to_format(flags.bits())),
            Err(Errno::NOTTY | Errno::NOSYS | Errno::BADF | Errno::OPNOTSUPP | Errno::INVAL) => {
                *lacks |= is_known;
                Ok(0)
            }
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    #[allow(clippy::unused_self, clippy::unnecessary_wraps, reason = "as on Linux")]
    fn flags(&mut self, _: BorrowedFd<'_>, _: &Status, _: bool) -> io::Result<u64> {
        self.lacks_flags = Lacks { directories: true, files: true };
        Ok(0)
    }

    /// Lists the names of attributes, and returns the length of the list.
    fn list(&mut self, file: BorrowedFd<'_>) -> Result<usize, Errno> {
        match flistxattr(file, self.names.as_mut_slice()) {
            Err(Errno::RANGE) if self.names.len() < LARGE_BYTES => {
                self.names.resize(LARGE_BYTES, 0);
                flistxattr(file, self.names.as_mut_slice())
            }
            listed => listed,
        }
    }

    /// Reads the listed attributes. Fails with the first error, after the others are read.
    fn extended(&mut self, file: BorrowedFd<'_>, length: usize, metadata: &mut Metadata) -> io::Result<()> {
        let names = std::mem::take(&mut self.names);
        let mut failed = Ok(());
        for name in names.get(..length).unwrap_or_default().split_inclusive(|byte| *byte == 0) {
            let Ok(name) = CStr::from_bytes_with_nul(name) else { continue };
            let Some(place) = Place::of(name.to_bytes()) else { continue };
            let added = match self.value(file, name) {
                Ok(length) => place.add(name, self.value.get(..length).unwrap_or_default(), metadata),
                // It was removed after it was listed.
                Err(Errno::NODATA) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = added {
                let text = format!("{}: {error}", name.to_string_lossy());
                failed = failed.and(Err(io::Error::new(error.kind(), text)));
            }
        }
        self.names = names;
        failed
    }

    fn value(&mut self, file: BorrowedFd<'_>, name: &CStr) -> Result<usize, Errno> {
        match fgetxattr(file, name, self.value.as_mut_slice()) {
            Err(Errno::RANGE) if self.value.len() < LARGE_BYTES => {
                self.value.resize(LARGE_BYTES, 0);
                fgetxattr(file, name, self.value.as_mut_slice())
            }
            read => read,
        }
    }
}

/// The part of the metadata that an extended attribute of the system belongs to.
#[derive(Clone, Copy)]
enum Place {
    AccessList,
    Capabilities,
    DefaultList,
    Extended,
}

impl Place {
    /// `None` for an attribute that archives do not store.
    fn of(name: &[u8]) -> Option<Self> {
        match std::str::from_utf8(name) {
            Ok(CAPABILITIES) => Some(Self::Capabilities),
            Ok(ACCESS_LIST) => Some(Self::AccessList),
            Ok(DEFAULT_LIST) => Some(Self::DefaultList),
            _ => is_stored(name).then_some(Self::Extended),
        }
    }

    fn add(self, name: &CStr, value: &[u8], metadata: &mut Metadata) -> io::Result<()> {
        match self {
            Self::AccessList => acl::add_access(value, &mut metadata.acl)?,
            Self::Capabilities => metadata.capabilities = Some(Bytes::copy_from_slice(value)),
            Self::DefaultList => acl::add_default(value, &mut metadata.acl)?,
            Self::Extended => metadata.xattrs.push(Xattr {
                name: Bytes::copy_from_slice(name.to_bytes()),
                value: Bytes::copy_from_slice(value),
            }),
        }
        Ok(())
    }
}

/// Returns `true` for an extended attribute that archives store and restores set.
pub(in crate::tree::disk) fn is_stored(name: &[u8]) -> bool {
    name.len() < 256
        && (name.starts_with(b"user.") || name.starts_with(b"trusted.") || name == b"security.NTACL")
}
