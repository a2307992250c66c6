//! What must hold before an attempt of a request that changes something is sent.
//!
//! A request waits for its turn, for credentials, for a connection and between its attempts, and the host may be suspended at any of these
//! points. So each attempt asks anew, after everything that it waits for but the connection, and names the moment after which the
//! transport must not send it any more.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::Result;
use crate::s3::client::S3Client;

/// The right of a process to change something, asked before each attempt.
#[async_trait]
pub(crate) trait Guard: fmt::Debug + Send + Sync {
    /// Returns until when an attempt may be sent now, by the monotonic clock. `None` means that the right has to be
    /// [confirmed](Self::confirm) first. `failed` is when the attempt before ended, if there was one. No request is made.
    ///
    /// # Errors
    /// `Busy` if the right is lost for good.
    fn permit(&self, failed: Option<Duration>) -> Result<Option<Duration>>;

    /// Asks the server for the right, so that [`permit`](Self::permit) has an answer.
    ///
    /// # Errors
    /// `Busy` if the right is lost for good; whatever keeps the server from answering.
    async fn confirm(&self, failed: Option<Duration>) -> Result<()>;
}

impl S3Client {
    /// The same client, which asks this guard before each attempt of a request that changes something.
    #[must_use]
    pub(crate) fn guarded(&self, guard: Arc<dyn Guard>) -> Self {
        Self { guard: Some(guard), shared: Arc::clone(&self.shared) }
    }
}
