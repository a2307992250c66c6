//! The client as programs see it: it is made, tests its server, and counts requests. A backend sends the requests.

use std::sync::Arc;

use crate::error::Result;
use crate::http::HttpTransport;
use crate::rt::Runtime;
use crate::s3::capabilities::S3Capabilities;
use crate::s3::client::BucketClient;
use crate::s3::counters::RequestStats;
use crate::s3::options::S3Options;

/// A client for one bucket, with which an `S3Backend` is opened. Clones share everything: connections, limits, counters.
#[derive(Clone, Debug)]
pub struct S3Client {
    requests: BucketClient,
}

impl S3Client {
    /// A client that sends through `transport`. No request is made.
    ///
    /// # Errors
    /// `InvalidInput` if endpoint and bucket make no valid address.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        transport: Arc<dyn HttpTransport>,
        options: S3Options,
    ) -> Result<Self> {
        Ok(Self { requests: BucketClient::new(runtime, transport, options)? })
    }

    /// Name of the bucket.
    pub fn bucket(&self) -> &str {
        self.requests.bucket()
    }

    /// Statistics of all requests so far.
    pub fn stats(&self) -> RequestStats {
        self.requests.stats()
    }

    /// Tests the server for a store whose keys all begin with `prefix`: its name and a slash, or nothing for
    /// a store that is the whole bucket. Takes about thirty requests, for objects whose keys begin with `prefix` and `.larder/`.
    /// Settings of the bucket that these credentials may not read stay unknown.
    ///
    /// # Errors
    /// Any failure to store, read or delete a single object: a store cannot be kept there. `Unavailable` if the
    /// server failed in a way that proves nothing.
    ///
    /// # Cancel safety
    /// A dropped future leaves some of the objects.
    pub async fn probe(&self, prefix: &str) -> Result<S3Capabilities> {
        self.requests.probe(prefix).await
    }

    /// The requests behind it.
    pub(crate) fn requests(&self) -> &BucketClient {
        &self.requests
    }
}
