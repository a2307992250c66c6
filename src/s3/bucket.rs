//! The bucket as a whole.

use bytes::Bytes;

use crate::error::{ErrorKind, Result};
use crate::s3::client::{Answer, Call, S3Client};
use crate::s3::counters::Operation;
use crate::s3::object::from_document;
use crate::wire::s3_xml::{
    LifecycleRule, XmlError, parse_error, parse_lifecycle, parse_object_lock, parse_versioning, write_bucket,
};

impl S3Client {
    /// Returns `true` if the bucket is there and may be used.
    ///
    /// # Errors
    /// `Denied` if it belongs to somebody else; the rest of [`ErrorKind`].
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

    /// Makes the bucket.
    ///
    /// # Errors
    /// `AlreadyExists`, also if it belongs to somebody else; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// The bucket may be made later.
    pub async fn create_bucket(&self) -> Result<()> {
        let region = self.region();
        let mut call = Call::new(Operation::BucketPut, "PUT", None);
        // That region is meant where none is named, and naming it is an error.
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

    /// Whether the bucket keeps old versions. `None` if the server does not say.
    ///
    /// # Errors
    /// Those of a request.
    pub async fn keeps_versions(&self) -> Result<Option<bool>> {
        self.setting("versioning", parse_versioning).await
    }

    /// Whether new objects are locked against deletion. `None` if the server does not say.
    ///
    /// # Errors
    /// Those of a request.
    pub async fn locks_objects(&self) -> Result<Option<bool>> {
        self.setting("object-lock", parse_object_lock).await
    }

    /// What happens to objects by themselves. `None` if the server does not say; empty: nothing.
    ///
    /// # Errors
    /// Those of a request.
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
            // Not everybody may look, and not every server has it.
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
            // A document of a kind of its own says nothing that could be relied on.
            return Ok(parse(&answer.response.body).ok());
        }
        Ok(is_unset(&answer).then(T::default))
    }
}

/// A setting that nobody made is an error to some servers.
fn is_unset(answer: &Answer) -> bool {
    let code = parse_error(&answer.response.body).map(|body| body.code).unwrap_or_default();
    let unset = [
        "NoSuchLifecycleConfiguration",
        "ObjectLockConfigurationNotFoundError",
        "NoSuchObjectLockConfiguration",
    ];
    unset.contains(&code.as_str())
}
