//! The one error type of the crate.
//!
//! An [`Error`] has the attempted action, its object and, as its [`ErrorKind`], the possible reaction of the caller. The
//! wording is for people and not part of the interface; programs match on [`Error::kind`].

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Class of an [`Error`], by what the caller can do about it.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The object exists already. Nothing was written.
    AlreadyExists,
    /// Another operation holds a required lock. Nothing was changed; retry when it has ended.
    Busy,
    /// The object no longer has the expected version. Nothing was written; read it again and decide again.
    Conflict,
    /// Stored bytes failed a check. Retrying reads the same bytes again.
    Corrupt,
    /// The system or the store refused permission.
    Denied,
    /// The disk, the quota or the bucket is full. Retrying fails until space is freed.
    Full,
    /// A bug in this crate or in code that it called: a job panicked or disappeared. The operation did not complete.
    Internal,
    /// An argument violates a documented rule. Nothing was changed.
    InvalidInput,
    /// The object does not exist. Reported only if its absence is certain.
    NotFound,
    /// A reader, writer or target of the caller failed; [`source`](StdError::source) is its error.
    Stream,
    /// The store could not be reached, or throttled the request. Retry later.
    Unavailable,
    /// The operation would remove more than the safety limit allows, and was not confirmed. Nothing was changed.
    Unconfirmed,
    /// The store, the backend or this version of the crate does not support the operation. Nothing was changed.
    Unsupported,
}

impl ErrorKind {
    fn phrase(self) -> &'static str {
        match self {
            Self::AlreadyExists => "it exists already",
            Self::Busy => "it is locked by another operation",
            Self::Conflict => "it was changed meanwhile",
            Self::Corrupt => "stored data failed a check",
            Self::Denied => "permission denied",
            Self::Full => "no space left",
            Self::Internal => "internal error",
            Self::InvalidInput => "invalid input",
            Self::NotFound => "not found",
            Self::Stream => "the caller's stream failed",
            Self::Unavailable => "the store is not available",
            Self::Unconfirmed => "it has to be confirmed",
            Self::Unsupported => "not supported",
        }
    }
}

/// A failed operation: the attempted action, its object, the cause and the [kind](ErrorKind).
///
/// `Display` prints this level only; [`source`](StdError::source) holds the rest of the chain.
/// Cloning is cheap: operations that waited for the same result share one error.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    action: &'static str,
    subject: Option<String>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` in `action`, a few words such as `"load chunk"`.
    ///
    /// For implementors of traits of this crate.
    #[must_use]
    pub fn new(kind: ErrorKind, action: &'static str) -> Self {
        Self(Box::new(Inner { kind, action, subject: None, source: None }))
    }

    /// An error from the operating system, with the kind that follows from it.
    #[must_use]
    pub fn io(error: std::io::Error, action: &'static str) -> Self {
        use std::io::ErrorKind as Io;
        let kind = match error.kind() {
            Io::AlreadyExists => ErrorKind::AlreadyExists,
            Io::InvalidInput | Io::InvalidFilename => ErrorKind::InvalidInput,
            Io::NotFound => ErrorKind::NotFound,
            Io::PermissionDenied | Io::ReadOnlyFilesystem => ErrorKind::Denied,
            Io::StorageFull | Io::QuotaExceeded | Io::FileTooLarge => ErrorKind::Full,
            Io::Unsupported => ErrorKind::Unsupported,
            _ => ErrorKind::Unavailable,
        };
        Self::new(kind, action).because(error)
    }

    /// Names the object of the operation.
    #[must_use]
    pub fn on(mut self, subject: impl fmt::Display) -> Self {
        self.0.subject = Some(subject.to_string());
        self
    }

    /// Adds the underlying error.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.0.source = Some(Arc::from(source.into()));
        self
    }

    /// Class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The attempted action, in a few words.
    pub fn action(&self) -> &'static str {
        self.0.action
    }

    /// The object of the operation, in its usual notation.
    pub fn subject(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, action, subject, .. } = &*self.0;
        match subject {
            Some(subject) => write!(f, "cannot {action} {subject}: {}", kind.phrase()),
            None => write!(f, "cannot {action}: {}", kind.phrase()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, action, subject, source } = &*self.0;
        f.debug_struct("Error")
            .field("kind", kind)
            .field("action", action)
            .field("subject", subject)
            .field("source", source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_prints_its_own_level_and_source_holds_the_rest() {
        let error = Error::io(std::io::Error::from(std::io::ErrorKind::StorageFull), "write").on("host/a");
        assert_eq!(error.to_string(), "cannot write host/a: no space left");
        assert_eq!(error.kind(), ErrorKind::Full);
        assert!(error.source().is_some());
    }

    #[test]
    fn an_error_is_one_word_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
