//! The one error type of the crate.
//!
//! An [`Error`] has the attempted action, its object and, as its [`ErrorKind`], the possible reaction of the caller. The
//! wording is for people and not part of the interface; programs match on [`Error::kind`].

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::wording::{Causes, fields_as_json, word_as_json};

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Class of an [`Error`], by what the caller can do about it. `Display` prints [`as_str`](ErrorKind::as_str).
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
    /// The data is encrypted, and no key or passphrase was given.
    KeyRequired,
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
    /// The key is not the one that encrypted or signed the data, or the passphrase is not that of the key. Nothing was decrypted.
    WrongKey,
}

impl ErrorKind {
    /// The kind as one stable word for logs, metrics and JSON: its name in snake case, such as `"already_exists"`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::AlreadyExists => "already_exists",
            Self::Busy => "busy",
            Self::Conflict => "conflict",
            Self::Corrupt => "corrupt",
            Self::Denied => "denied",
            Self::Full => "full",
            Self::Internal => "internal",
            Self::InvalidInput => "invalid_input",
            Self::KeyRequired => "key_required",
            Self::NotFound => "not_found",
            Self::Stream => "stream",
            Self::Unavailable => "unavailable",
            Self::Unconfirmed => "unconfirmed",
            Self::Unsupported => "unsupported",
            Self::WrongKey => "wrong_key",
        }
    }

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
            Self::KeyRequired => "it is encrypted, and no key or passphrase was given",
            Self::NotFound => "not found",
            Self::Stream => "the caller's stream failed",
            Self::Unavailable => "the store is not available",
            Self::Unconfirmed => "it has to be confirmed",
            Self::Unsupported => "not supported",
            Self::WrongKey => "the key or the passphrase is another one",
        }
    }
}

word_as_json!(ErrorKind, as_str);

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// A failed operation: the attempted action, its object, the cause and the [kind](ErrorKind).
///
/// `Display` prints this level only; [`source`](StdError::source) holds the rest of the chain. The alternate form, `{error:#}`, prints the
/// error with all its causes in one line, for a program that shows it to a person.
/// Cloning is cheap: operations that waited for the same result share one error.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    action: &'static str,
    subject: Option<String>,
    retry_after: Option<Duration>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` in `action`, a few words such as `"load chunk"`.
    ///
    /// For implementors of traits of this crate.
    #[must_use]
    pub fn new(kind: ErrorKind, action: &'static str) -> Self {
        Self(Box::new(Inner { kind, action, subject: None, retry_after: None, source: None }))
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

    /// Adds the time before which the operation fails again.
    #[must_use]
    pub(crate) fn retry_in(mut self, wait: Duration) -> Self {
        self.0.retry_after = Some(wait);
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

    /// Time before which another attempt is useless, from the moment the error was made; `None` if it is not known.
    ///
    /// It is known while another process holds the lease of a bucket store, while a request without an answer may still
    /// delete or store the object, and when an S3 server throttles: then it is the server's `Retry-After`, at most a day, or
    /// the maximum backoff of the client. It is no promise that the next attempt succeeds. A lock that a process holds has no
    /// such time. The wait of an error in the chain of [sources](StdError::source) counts for the errors around it.
    pub fn retry_after(&self) -> Option<Duration> {
        let mut next: Option<&(dyn StdError + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(wait) = error.downcast_ref::<Self>().and_then(|error| error.0.retry_after) {
                return Some(wait);
            }
            next = error.source();
        }
        None
    }

    /// The object of the operation, in its usual notation.
    pub fn subject(&self) -> Option<&str> {
        self.0.subject.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            return Causes(self).fmt(f);
        }
        let Inner { kind, action, subject, .. } = &*self.0;
        match subject {
            Some(subject) => write!(f, "cannot {action} {subject}: {}", kind.phrase()),
            None => write!(f, "cannot {action}: {}", kind.phrase()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, action, subject, retry_after, source } = &*self.0;
        f.debug_struct("Error")
            .field("kind", kind)
            .field("action", action)
            .field("subject", subject)
            .field("retry_after", retry_after)
            .field("source", source)
            .finish()
    }
}

fields_as_json!(Error, error => {
    kind: error.kind(),
    action: error.action(),
    subject: error.subject(),
    message: Causes(error).to_string(),
    retry_after: error.retry_after().map(|wait| wait.as_secs_f64()),
});

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn StdError + 'static))
    }
}

/// The reason why a text or a number is not a valid name, digest, id or pattern.
///
/// `Display` gives the expected form and the flaw, such as `not a backup time such as 2025-07-14T14:20:02Z: it is not made
/// of the right parts`. The wording is for people
/// and not part of the interface. `?` turns it into an [`Error`] of the kind [`InvalidInput`](ErrorKind::InvalidInput) in a function
/// that returns [`Result`]; in a `Box<dyn std::error::Error>` it stays a `ParseError`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError(Cow<'static, str>);

impl ParseError {
    pub(crate) fn new(reason: impl Into<Cow<'static, str>>) -> Self {
        Self(reason.into())
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl StdError for ParseError {}

impl From<ParseError> for Error {
    /// An error of the kind [`ErrorKind::InvalidInput`].
    fn from(error: ParseError) -> Self {
        Self::new(ErrorKind::InvalidInput, "parse the text").because(error)
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
    fn the_alternate_display_prints_all_causes() {
        let inner = Error::new(ErrorKind::Unavailable, "read").because("no answer");
        let outer = Error::new(ErrorKind::Unavailable, "begin").on("vm/1").because(inner);
        let all = "cannot begin vm/1: the store is not available: cannot read: the store is not available: no answer";
        assert_eq!(format!("{outer:#}"), all);
        assert_eq!(outer.to_string(), "cannot begin vm/1: the store is not available");
    }

    #[test]
    fn the_wait_of_an_inner_error_is_found_and_the_outer_one_comes_first() {
        let (short, long) = (Duration::from_secs(1), Duration::from_mins(1));
        let inner = Error::new(ErrorKind::Busy, "lock").retry_in(long);
        let between = std::io::Error::other(Error::new(ErrorKind::Busy, "open").because(inner));
        let outer = Error::new(ErrorKind::Unavailable, "begin").because(between);
        assert_eq!(outer.retry_after(), Some(long));
        assert_eq!(outer.clone().retry_in(short).retry_after(), Some(short));
        assert_eq!(Error::new(ErrorKind::Busy, "lock").because("it is").retry_after(), None);
    }

    #[test]
    fn a_kind_is_its_name_in_snake_case() {
        for kind in [
            ErrorKind::AlreadyExists,
            ErrorKind::Busy,
            ErrorKind::Conflict,
            ErrorKind::Corrupt,
            ErrorKind::Denied,
            ErrorKind::Full,
            ErrorKind::Internal,
            ErrorKind::InvalidInput,
            ErrorKind::KeyRequired,
            ErrorKind::NotFound,
            ErrorKind::Stream,
            ErrorKind::Unavailable,
            ErrorKind::Unconfirmed,
            ErrorKind::Unsupported,
            ErrorKind::WrongKey,
        ] {
            let mut snake = String::new();
            for c in format!("{kind:?}").chars() {
                if c.is_uppercase() && !snake.is_empty() {
                    snake.push('_');
                }
                snake.push(c.to_ascii_lowercase());
            }
            assert_eq!(kind.as_str(), snake);
        }
        assert_eq!(format!("{:>6}", ErrorKind::Busy), "  busy");
    }

    #[test]
    fn an_error_is_one_word_wide() {
        assert_eq!(size_of::<Error>(), size_of::<usize>());
    }
}
