//! Requests without an answer: how long they may still be executed, and which outcomes leave no doubt.

use std::time::Duration;

use crate::backend::Deleted;
use crate::error::{Error, ErrorKind, Result};

/// Time after which a request that was given up is certainly not executed any more.
pub(crate) const MAX_REQUEST_TIME: Duration = Duration::from_mins(30);

/// Returns `true` if the error proves that the request is not executed later.
pub(crate) fn is_certain(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Internal | ErrorKind::Unavailable)
}

/// Returns `true` if the result of a deletion proves that it is not executed later, or once more.
pub(crate) fn is_over(result: &Result<Deleted>) -> bool {
    match result {
        Ok(deleted) => *deleted != Deleted::InDoubt,
        Err(error) => is_certain(error),
    }
}
