//! Puts that read the object back when the answer does not prove the outcome.
//!
//! An answer can be lost after the object was stored, and a repeated conditional put then fails on the object that the first
//! attempt stored. So an error of a put proves nothing about the object; its content does. After a failure the object is read
//! back and compared:
//!
//! | answer of the put | object read back | result | is the put over? |
//! |---|---|---|---|
//! | stored | not read | `Ok` with the version of the put | yes |
//! | error | equal | `Ok` with the version that was read | if the error [is certain](crate::backend::in_doubt::is_certain) |
//! | error | absent | [`FoundInstead::Absent`] | if the error [is certain](crate::backend::in_doubt::is_certain) |
//! | error | other content | [`FoundInstead::Other`] | not known |
//! | error | unreadable | [`FoundInstead::Unknown`] | not known |
//!
//! Equal content counts as success, whichever writer stored it: a lock gives every name that is stored this way to one writer, and a
//! second writer that stores the same bytes under it wants the same state.

use bytes::Bytes;

use crate::backend::in_doubt::is_certain;
use crate::backend::{Backend, PutMode, Version};
use crate::error::{Error, ErrorKind};
use crate::format::layout::Key;

/// Limit in bytes for reading an object back. A longer object has other content; it is reported as unreadable.
const READ_BACK_BYTES: u64 = 16 << 20;

/// The failure of a put after which the object was read back.
#[derive(Debug)]
pub(crate) struct PutError {
    /// The error of the put, not of the read.
    pub(crate) error: Error,
    pub(crate) found: FoundInstead,
    /// The object is absent, and this put does not store it later. Only then may the parts that it refers to be removed.
    pub(crate) is_certain: bool,
}

/// An object that has the bytes of a put.
#[derive(Debug)]
pub(crate) struct Verified {
    /// No request of the put is executed later. Otherwise one may store the object again after it was deleted.
    pub(crate) is_over: bool,
    pub(crate) version: Version,
}

/// The object under the name after a put failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FoundInstead {
    Absent,
    /// An object with other content.
    Other,
    /// Reading it failed.
    Unknown,
}

impl PutError {
    pub(crate) fn into_error(self) -> Error {
        self.error
    }
}

/// Stores an object, and reads it back if that fails.
///
/// # Errors
/// [`PutError`] unless the object now has these bytes.
pub(crate) async fn put_verified(
    backend: &dyn Backend,
    key: &Key,
    bytes: Bytes,
    mode: PutMode,
) -> Result<Verified, PutError> {
    let error = match backend.put(key, bytes.clone(), mode).await {
        Ok(version) => return Ok(Verified { is_over: true, version }),
        Err(error) => error,
    };
    let limit = READ_BACK_BYTES.max(bytes.len() as u64);
    let found = match backend.get(key, limit).await {
        Ok(object) if object.bytes == bytes => {
            return Ok(Verified { is_over: is_certain(&error), version: object.info.version });
        }
        Ok(_) => FoundInstead::Other,
        Err(absent) if absent.kind() == ErrorKind::NotFound => FoundInstead::Absent,
        Err(_) => FoundInstead::Unknown,
    };
    // Absent now is not absent for ever: a request whose answer was lost may still be executed.
    let is_certain =
        found == FoundInstead::Absent && (is_certain(&error) || mutated!("put-without-an-answer-failed"));
    Err(PutError { error, found, is_certain })
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::sync::Arc;

    use futures::executor::block_on;

    use super::*;
    use crate::backend::MemoryBackend;
    use crate::backend::fault::{Action, FaultBackend, Rule};
    use crate::backend::record::Method;
    use crate::rt::{Runtime, SimRuntime};

    const OURS: Bytes = Bytes::from_static(b"ours");
    const OTHER: Bytes = Bytes::from_static(b"other");

    fn backend() -> FaultBackend {
        let runtime: Arc<dyn Runtime> = Arc::new(SimRuntime::new(1));
        FaultBackend::new(Arc::new(MemoryBackend::new(runtime)))
    }

    fn put(backend: &FaultBackend, mode: PutMode) -> Result<Verified, PutError> {
        block_on(put_verified(backend, &Key::GcStatus, OURS, mode))
    }

    fn content(backend: &FaultBackend) -> Option<Bytes> {
        block_on(backend.get(&Key::GcStatus, 100)).ok().map(|object| object.bytes)
    }

    #[test]
    fn an_answered_put_reads_nothing() {
        let backend = backend();
        backend.add(Rule::on(Method::Get, Action::FailBefore(ErrorKind::Internal)));
        let version = put(&backend, PutMode::Create).unwrap().version;
        assert_eq!(backend.fired(), 0);
        assert_eq!(block_on(backend.head(&Key::GcStatus)).unwrap().version, version);
    }

    #[test]
    fn a_lost_answer_is_a_success_if_the_object_is_equal() {
        for kind in [ErrorKind::Unavailable, ErrorKind::AlreadyExists, ErrorKind::Conflict] {
            let backend = backend();
            backend.add(Rule::on(Method::Put, Action::FailAfter(kind)));
            let version = put(&backend, PutMode::Create).unwrap().version;
            assert_eq!(block_on(backend.head(&Key::GcStatus)).unwrap().version, version);
            assert_eq!(content(&backend), Some(OURS));
        }
    }

    #[test]
    fn an_absent_object_is_certain_only_if_the_error_is() {
        for (kind, is_certain) in [(ErrorKind::Full, true), (ErrorKind::Unavailable, false)] {
            let backend = backend();
            backend.add(Rule::on(Method::Put, Action::FailBefore(kind)));
            let failed = put(&backend, PutMode::Create).unwrap_err();
            assert_eq!(failed.found, FoundInstead::Absent);
            assert_eq!((failed.is_certain, failed.error.kind()), (is_certain, kind));
        }
    }

    #[test]
    fn other_content_is_a_failure_and_stays() {
        for kind in [ErrorKind::AlreadyExists, ErrorKind::Unavailable] {
            let backend = backend();
            block_on(backend.put(&Key::GcStatus, OTHER, PutMode::Create)).unwrap();
            backend.add(Rule::on(Method::Put, Action::FailBefore(kind)));
            let failed = put(&backend, PutMode::Create).unwrap_err();
            assert_eq!(failed.found, FoundInstead::Other);
            assert_eq!((failed.is_certain, failed.error.kind()), (false, kind));
            assert_eq!(content(&backend), Some(OTHER));
        }
    }

    #[test]
    fn an_unreadable_object_leaves_the_outcome_open() {
        for put_kind in [ErrorKind::Full, ErrorKind::Unavailable] {
            let backend = backend();
            backend.add(Rule::on(Method::Put, Action::FailBefore(put_kind)));
            backend.add(Rule::on(Method::Get, Action::FailBefore(ErrorKind::Denied)));
            let failed = put(&backend, PutMode::Create).unwrap_err();
            assert_eq!(failed.found, FoundInstead::Unknown);
            // The error of the put is reported, not that of the read.
            assert_eq!((failed.is_certain, failed.error.kind()), (false, put_kind));
        }
    }
}
