//! Operations on the bucket itself.

use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::s3::call::{Answer, Call};
use crate::s3::client::BucketClient;
use crate::s3::counters::Operation;
use crate::s3::object::from_document;
use crate::wire::s3_xml::{
    LifecycleRule, XmlError, parse_error, parse_lifecycle, parse_object_lock, parse_versioning, write_bucket,
};

impl BucketClient {
    /// Returns `true` if the bucket exists and may be used.
    ///
    /// # Errors
    /// `Denied` if another account owns it; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// The future may be dropped.
    pub async fn has_bucket(&self) -> Result<bool> {
        let answer =
            self.call("look for the bucket", &Call::new(Operation::BucketHead, "HEAD", None)).await?;
        match answer.status() {
            200..300 => Ok(true),
            404 => Ok(false),
            _ => Err(answer.into_error(ErrorKind::Denied, "look for the bucket", self.bucket())),
        }
    }

    /// Creates the bucket.
    ///
    /// # Errors
    /// `AlreadyExists`, also if another account owns it; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// A dropped future may create the bucket later.
    pub async fn create_bucket(&self) -> Result<()> {
        let region = self.region();
        let mut call = Call::new(Operation::BucketPut, "PUT", None);
        // S3 uses this region if none is named, and refuses its name.
        if region != "us-east-1" {
            let document = write_bucket(&region);
            call.body =
                Bytes::from(document.map_err(|error| from_document(error, "create the bucket", &region))?);
        }
        let answer = self.call("create the bucket", &call).await?;
        if answer.is_success() {
            return Ok(());
        }
        Err(answer.into_error(ErrorKind::AlreadyExists, "create the bucket", self.bucket()))
    }

    /// Returns `Some(true)` if the bucket keeps old versions; `None` if the server does not say.
    ///
    /// # Errors
    /// Any [`ErrorKind`] of a request.
    pub async fn keeps_versions(&self) -> Result<Option<bool>> {
        self.setting("versioning", parse_versioning).await
    }

    /// Returns `Some(true)` if new objects are locked against deletion; `None` if the server does not say.
    ///
    /// # Errors
    /// Any [`ErrorKind`] of a request.
    pub async fn locks_objects(&self) -> Result<Option<bool>> {
        self.setting("object-lock", parse_object_lock).await
    }

    /// The lifecycle rules of the bucket. `None` if the server does not say; empty if there are none.
    ///
    /// # Errors
    /// Any [`ErrorKind`] of a request.
    pub async fn lifecycle(&self) -> Result<Option<Vec<LifecycleRule>>> {
        self.setting("lifecycle", parse_lifecycle).await
    }

    async fn setting<T: Default>(
        &self,
        name: &'static str,
        parse: fn(&[u8]) -> Result<T, XmlError>,
    ) -> Result<Option<T>> {
        let action = "read a setting of the bucket";
        let query = [(name, "")];
        let call = Call { query: &query, ..Call::new(Operation::BucketSettings, "GET", None) };
        let answer = match self.call(action, &call).await {
            // Not every caller may read settings, and not every server has them.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::Denied | ErrorKind::Unsupported | ErrorKind::InvalidInput
                ) =>
            {
                return Ok(None);
            }
            answer => answer?,
        };
        if answer.is_success() {
            // A document of another kind proves nothing.
            return Ok(parse(&answer.response.body).ok());
        }
        Ok(is_unset(&answer).then(T::default))
    }
}

/// Returns `true` for the error with which some servers report a setting that was never made.
fn is_unset(answer: &Answer) -> bool {
    let code = parse_error(&answer.response.body).map(|body| body.code).unwrap_or_default();
    let unset = [
        "NoSuchLifecycleConfiguration",
        "ObjectLockConfigurationNotFoundError",
        "NoSuchObjectLockConfiguration",
    ];
    unset.contains(&code.as_str())
}
