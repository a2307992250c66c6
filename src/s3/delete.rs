//! Many objects in one request.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::s3::Refusal;
use crate::s3::checksum::base64_md5;
use crate::s3::client::{Call, S3Client};
use crate::s3::counters::Operation;
use crate::s3::object::{from_document, not_there};
use crate::wire::s3_xml::{DeleteResult, parse_deleted, write_delete};

/// How many objects a request may name.
const MOST_KEYS: usize = 1000;

impl S3Client {
    /// Deletes objects, any number of them, in requests of up to 1000, with a result for each in the order given. Deleting what
    /// is not there succeeds.
    ///
    /// # Errors
    /// Outside: a request failed, and any number of objects may be gone; `Unsupported` if the server does not know the operation.
    ///
    /// # Cancel safety
    /// Any of the objects may be deleted later.
    pub async fn delete_many(&self, keys: &[&str]) -> Result<Vec<Result<()>>> {
        let mut results = Vec::with_capacity(keys.len());
        for keys in keys.chunks(MOST_KEYS) {
            let errors = self.delete_batch(keys).await?;
            let mut errors: BTreeMap<_, _> = errors.errors.into_iter().collect();
            results.extend(keys.iter().map(|key| match errors.remove(*key) {
                None => Ok(()),
                Some(body) if body.code == "NoSuchKey" => Ok(()),
                Some(body) => {
                    let kind = match body.code.as_str() {
                        "AccessDenied" => ErrorKind::Denied,
                        _ => ErrorKind::Unavailable,
                    };
                    let refusal =
                        Refusal { code: body.code, message: body.message, status: 200, request_id: None };
                    Err(Error::new(kind, "delete").on(key).because(refusal))
                }
            }));
        }
        Ok(results)
    }

    async fn delete_batch(&self, keys: &[&str]) -> Result<DeleteResult> {
        let action = "delete objects";
        let subject = keys.first().copied().unwrap_or_default();
        let document =
            write_delete(keys.iter().copied()).map_err(|error| from_document(error, action, subject))?;
        let mut call = Call::new(Operation::DeleteMany, "POST", None);
        call.query = &[("delete", "")];
        call.header("content-type", "application/xml");
        // The one operation for which all servers want it (D12).
        call.header("content-md5", base64_md5(document.as_bytes()));
        call.body = Bytes::from(document);
        let answer = self.call(action, &call).await?;
        if !answer.is_success() {
            return Err(not_there(answer, action, subject));
        }
        parse_deleted(&answer.response.body).map_err(|error| from_document(error, action, subject))
    }
}
