//! The kinds of errors that a client reports.

use std::error::Error as StdError;
use std::fmt;
use std::io;

use object_store::Error as ClientError;

use crate::backend::PutMode;
use crate::error::{Error, ErrorKind};

/// The error of a request. Only `NotFound` of the client means that an object does not exist; an error without a meaning of its own is
/// `Unavailable`, since the request may have been executed.
pub(super) fn failed(error: ClientError, action: &'static str, subject: &(dyn fmt::Display + Sync)) -> Error {
    let kind = match &error {
        ClientError::AlreadyExists { .. } => ErrorKind::AlreadyExists,
        ClientError::NotFound { .. } => ErrorKind::NotFound,
        ClientError::NotImplemented { .. }
        | ClientError::NotSupported { .. }
        | ClientError::InvalidPath { .. } => ErrorKind::Unsupported,
        ClientError::NotModified { .. } | ClientError::Precondition { .. } => ErrorKind::Conflict,
        ClientError::PermissionDenied { .. } | ClientError::Unauthenticated { .. } => ErrorKind::Denied,
        error if is_full(error) => ErrorKind::Full,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, action).on(subject).because(error)
}

/// The error of a put. Kinds that say something about the object are those of the mode.
pub(super) fn failed_put(error: ClientError, mode: &PutMode, subject: &(dyn fmt::Display + Sync)) -> Error {
    let error = failed(error, "store", subject);
    let kind = match (mode, error.kind()) {
        (PutMode::Create, ErrorKind::AlreadyExists | ErrorKind::Conflict) => ErrorKind::AlreadyExists,
        (PutMode::IfMatch(_), ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::NotFound) => {
            ErrorKind::Conflict
        }
        // The bucket does not exist, or the service refuses concurrent changes.
        (_, ErrorKind::AlreadyExists | ErrorKind::Conflict | ErrorKind::NotFound) => ErrorKind::Unavailable,
        (_, kind) => kind,
    };
    if kind == error.kind() { error } else { Error::new(kind, "store").on(subject).because(error) }
}

/// Returns `true` if the system reported a full disk or an exhausted quota.
fn is_full(error: &ClientError) -> bool {
    let mut source: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = source {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        if matches!(kind, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)) {
            return true;
        }
        source = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Version;

    fn source() -> Box<dyn StdError + Send + Sync> {
        "why".into()
    }

    fn path() -> String {
        "a".to_owned()
    }

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> ClientError {
        ClientError::Generic { store: "S", source: source.into() }
    }

    #[test]
    fn only_definite_answers_of_a_client_are_definite() {
        let not_implemented = ClientError::NotImplemented { operation: path(), implementer: path() };
        let full = generic(generic(io::Error::from(io::ErrorKind::StorageFull)));
        for (error, kind) in [
            (ClientError::AlreadyExists { path: path(), source: source() }, ErrorKind::AlreadyExists),
            (ClientError::NotFound { path: path(), source: source() }, ErrorKind::NotFound),
            (ClientError::NotSupported { source: source() }, ErrorKind::Unsupported),
            (not_implemented, ErrorKind::Unsupported),
            (ClientError::Precondition { path: path(), source: source() }, ErrorKind::Conflict),
            (ClientError::NotModified { path: path(), source: source() }, ErrorKind::Conflict),
            (ClientError::PermissionDenied { path: path(), source: source() }, ErrorKind::Denied),
            (ClientError::Unauthenticated { path: path(), source: source() }, ErrorKind::Denied),
            (generic(source()), ErrorKind::Unavailable),
            (generic(io::Error::from(io::ErrorKind::NotFound)), ErrorKind::Unavailable),
            (full, ErrorKind::Full),
        ] {
            let error = failed(error, "read", &"a");
            assert_eq!(error.kind(), kind, "{error:?}");
            assert!(StdError::source(&error).is_some());
        }
    }

    #[test]
    fn a_failed_condition_has_the_kind_of_its_mode() {
        let if_match = PutMode::IfMatch(Version::new("1"));
        let precondition = || ClientError::Precondition { path: path(), source: source() };
        let exists = || ClientError::AlreadyExists { path: path(), source: source() };
        let absent = || ClientError::NotFound { path: path(), source: source() };
        for (mode, error, kind) in [
            (&PutMode::Create, precondition(), ErrorKind::AlreadyExists),
            (&PutMode::Create, exists(), ErrorKind::AlreadyExists),
            (&PutMode::Create, absent(), ErrorKind::Unavailable),
            (&if_match, precondition(), ErrorKind::Conflict),
            (&if_match, exists(), ErrorKind::Conflict),
            (&if_match, absent(), ErrorKind::Conflict),
            (&PutMode::Replace, precondition(), ErrorKind::Unavailable),
            (&PutMode::Replace, exists(), ErrorKind::Unavailable),
            (&PutMode::Replace, absent(), ErrorKind::Unavailable),
            (&PutMode::Replace, generic(source()), ErrorKind::Unavailable),
        ] {
            assert_eq!(failed_put(error, mode, &"a").kind(), kind, "{mode:?}");
        }
    }
}
