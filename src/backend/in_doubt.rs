//! When a request without an answer is certain not to be executed any more.

use std::time::Duration;

use crate::backend::Deleted;
use crate::error::{Error, ErrorKind, Result};

/// After how long a request that was given up is certain not to be executed any more.
pub(crate) const LONGEST_REQUEST: Duration = Duration::from_mins(30);

/// Whether a request that failed like this is not executed later.
pub(crate) fn is_certain(error: &Error) -> bool {
    !matches!(error.kind(), ErrorKind::Internal | ErrorKind::Unavailable)
}

/// Whether a deletion that was answered like this is not executed later, or once more.
pub(crate) fn is_over(result: &Result<Deleted>) -> bool {
    match result {
        Ok(deleted) => *deleted != Deleted::Unsettled,
        Err(error) => is_certain(error),
    }
}
