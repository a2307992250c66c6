//! Names of system calls in errors, and which errors say that a filesystem lacks a call.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use nix::errno::Errno;

/// A system call that failed: "rename without replacing: Operation not supported".
#[derive(Debug)]
struct CallError {
    call: &'static str,
    source: io::Error,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.call, self.source)
    }
}

impl StdError for CallError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.source)
    }
}

/// Adds what was attempted to an error, whose kind stays.
pub(super) fn named(call: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |source| {
        // An error that names something already, or that asks whether the object is there, is passed on.
        if source.raw_os_error().is_none() {
            return source;
        }
        io::Error::new(source.kind(), CallError { call, source })
    }
}

/// The number of an error, named or not.
pub(super) fn errno(error: &io::Error) -> Option<Errno> {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<CallError>());
    inner.map_or(error, |inner| &inner.source).raw_os_error().map(Errno::from_raw)
}

/// Returns `true` if an error may say that the filesystem does not have a call at all. FUSE and SMB answer with any of these.
pub(super) fn may_be_lacking(error: &io::Error) -> bool {
    use Errno::{EINVAL, EIO, ENOSYS, ENOTTY, EOPNOTSUPP, EPERM};
    matches!(errno(error), Some(EINVAL | EIO | ENOSYS | ENOTTY | EOPNOTSUPP | EPERM))
}

/// Returns `true` if the system refused for want of rights.
pub(super) fn is_refused(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::EACCES | Errno::EPERM))
}
