//! Requests that change something. Each of their attempts needs the lease.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_trait::async_trait;

use crate::backend::s3::lease::{Lease, State, lost, must_stay_deleted, released};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::s3::{BucketClient, Deletion, Guard, Stored};

/// The certainty about the lease that an attempt needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::backend::s3) enum Care {
    /// The clocks of this host show that the lease is held. Sufficient for chunks: they are stored under their digest, so a late put stores
    /// the same bytes.
    Clocks,
    /// As `Clocks` for the first attempt. Before each later one the server confirms the lease: the host may have been paused during the
    /// wait for the answer, and the clocks of a virtual machine do not show that.
    Confirmed,
    /// As `Clocks` for the only attempt. The lease itself is being changed, so the server cannot confirm it.
    Once,
}

impl Care {
    /// The certainty for storing an object under this key.
    pub(in crate::backend::s3) fn to_store(key: &Key) -> Self {
        if matches!(key, Key::Chunk(_) | Key::Pack(_)) { Self::Clocks } else { Self::Confirmed }
    }
}

/// A request that changes something.
#[derive(Debug)]
pub(in crate::backend::s3) struct Attempt {
    client: BucketClient,
    /// The request has not ended, or ended without a certain outcome: it may still be executed.
    is_in_doubt: bool,
    lease: Arc<Lease>,
}

impl Attempt {
    pub(super) fn new(lease: &Arc<Lease>, care: Care) -> Self {
        lease.attempts.fetch_add(1, Ordering::SeqCst);
        let since = match &*lease.state() {
            State::Held(held) => Some(held.since),
            State::Free | State::Lost(_) => None,
        };
        let permit = Permit { care, lease: Arc::clone(lease), since };
        Self { client: lease.client.guarded(Arc::new(permit)), is_in_doubt: true, lease: Arc::clone(lease) }
    }

    /// The client for the request. It asks for the lease before each attempt.
    pub(in crate::backend::s3) fn client(&self) -> &BucketClient {
        &self.client
    }

    /// Ends the request. It remains in doubt if it is `Unavailable`.
    pub(in crate::backend::s3) fn finish<T>(self, result: Result<T>) -> Result<T> {
        self.finish_unless(result, |_| false)
    }

    /// Ends a put. It remains in doubt if it is `Unavailable`, or if an earlier attempt may store an object again that must stay deleted.
    pub(in crate::backend::s3) fn finish_put(self, key: &Key, result: Result<Stored>) -> Result<Stored> {
        self.finish_unless(result, |stored| !stored.is_over && must_stay_deleted(key))
    }

    /// Ends a deletion. It remains in doubt if it is `Unavailable`, or if an earlier attempt of it got no answer.
    pub(in crate::backend::s3) fn finish_delete(self, result: Result<Deletion>) -> Result<Deletion> {
        self.finish_unless(result, |deletion| *deletion == Deletion::InDoubt)
    }

    /// Ends a deletion of several objects, which remains in doubt if that of one of them does.
    pub(in crate::backend::s3) fn finish_deletes(
        self,
        results: Result<Vec<Result<Deletion>>>,
    ) -> Result<Vec<Result<Deletion>>> {
        let is_in_doubt = |result: &Result<Deletion>| match result {
            Ok(deletion) => *deletion == Deletion::InDoubt,
            Err(error) => error.kind() == ErrorKind::Unavailable,
        };
        self.finish_unless(results, |results| results.iter().any(is_in_doubt))
    }

    fn finish_unless<T>(mut self, result: Result<T>, is_in_doubt: impl FnOnce(&T) -> bool) -> Result<T> {
        self.is_in_doubt = match &result {
            Ok(value) => is_in_doubt(value),
            Err(error) => error.kind() == ErrorKind::Unavailable,
        };
        result
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if self.is_in_doubt {
            self.lease.mark_in_doubt();
        }
        self.lease.attempts.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The permit of a request, for the terms since the lease was taken before it began.
#[derive(Debug)]
struct Permit {
    care: Care,
    lease: Arc<Lease>,
    /// The epoch with which the lease was taken when the request began; `None` if it was not held.
    since: Option<u64>,
}

#[async_trait]
impl Guard for Permit {
    fn permit(&self, failed: Option<Duration>) -> Result<Option<Duration>> {
        mutated!("lease-is-not-asked-for-an-attempt" => return Ok(Some(Duration::MAX)));
        let (lease, state) = (&self.lease, self.lease.state());
        let held = match &*state {
            // A request that began without a lease continues without one, such as the abort of an upload.
            State::Free if self.since.is_none() => return Ok(Some(Duration::MAX)),
            State::Free => return Err(released()),
            State::Held(held) if self.since.is_some_and(|since| since != held.since) => {
                return Err(released());
            }
            State::Held(held) => held,
            State::Lost(who) => return Err(lost(who)),
        };
        let is_confirmed = self.care != Care::Confirmed || failed.is_none_or(|at| held.confirmed >= at);
        Ok(lease.valid_until(held).filter(|_| is_confirmed))
    }

    async fn confirm(&self, failed: Option<Duration>) -> Result<()> {
        if self.care == Care::Once {
            let error = Error::new(ErrorKind::Unavailable, "change the lease");
            return Err(error.because("the lease is overdue"));
        }
        self.lease.renew_if_overdue().await?;
        match self.permit(failed)? {
            Some(_) => Ok(()),
            None => self.lease.confirm().await,
        }
    }
}
