//! System calls: their names in errors, and the errors of a filesystem that lacks a call, refuses it, or is full.

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

/// Adds the name of the call to an error, and keeps its kind.
pub(super) fn named(call: &'static str) -> impl Fn(io::Error) -> io::Error {
    move |source| {
        // An error without a number names its cause already, such as the error of the store that `publish` wraps.
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

/// Returns `true` if the caller lacks the permission.
pub(super) fn is_refused(error: &io::Error) -> bool {
    matches!(errno(error), Some(Errno::EACCES | Errno::EPERM))
}

/// Free space for new files. A test can declare the disk full.
#[derive(Clone, Debug, Default)]
pub(super) struct FreeSpace {
    #[cfg(feature = "testing")]
    pub(super) is_full: Option<std::sync::Arc<std::sync::atomic::AtomicBool>>,
}

impl FreeSpace {
    /// Fails if a test declared the disk full. Called before a file or directory is made.
    #[cfg_attr(
        not(feature = "testing"),
        expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "tests need it")
    )]
    pub(super) fn check(&self) -> io::Result<()> {
        #[cfg(feature = "testing")]
        if self.is_full.as_ref().is_some_and(|full| full.load(std::sync::atomic::Ordering::SeqCst)) {
            return Err(Errno::ENOSPC.into());
        }
        Ok(())
    }
}

/// Returns `true` if the disk or the quota is full.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
