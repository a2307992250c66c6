//! Large objects, stored in parts by multipart uploads (H118).
//!
//! # States
//! | state | on success | on failure | when dropped |
//! |---|---|---|---|
//! | begun: the server gave an upload id | parts are sent, several at a time | abort | abort in the background |
//! | all parts stored | complete | see below | abort in the background |
//! | completed | the whole object is visible | | |
//!
//! A completion without an answer, or with the answer that the upload does not exist, may have succeeded. The client then looks the object
//! up, and takes it as success if it is the one being stored. Before, nothing is visible, and a late abort changes nothing.
//!
//! An abort may fail, and a process may die before it. The parts that stay are invisible and paid for, until
//! [`BucketClient::abort_stale_uploads`] removes it.
//!
//! Source: AWS, "Amazon S3 API Reference", `CreateMultipartUpload` and what is named there.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::error::{Error, ErrorKind, Result};
use crate::s3::call::Call;
use crate::s3::checksum::tag_of_parts;
use crate::s3::client::BucketClient;
use crate::s3::counters::Operation;
use crate::s3::object::{from_answer, from_document, not_there};
use crate::wire::s3_xml::{
    OpenUpload, XmlError, parse_begun, parse_completed, parse_uploads, write_complete,
};

/// Maximum number of parts of an object.
const MOST_PARTS: u64 = 10_000;
/// Number of parts sent concurrently.
const PARTS_IN_FLIGHT: usize = 4;

impl BucketClient {
    /// Stores an object in parts and returns its entity tag.
    pub(super) async fn put_in_parts(&self, key: &str, body: &Bytes) -> Result<String> {
        let upload = Upload::begin(self, key).await?;
        let stored = upload.run(body).await;
        upload.end(stored.is_ok()).await;
        stored
    }

    /// Lists the unfinished multipart uploads of keys with this prefix.
    ///
    /// # Errors
    /// `Unsupported` if the server cannot list them; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// The future may be dropped.
    pub async fn open_uploads(&self, prefix: &str) -> Result<Vec<OpenUpload>> {
        let action = "list uploads";
        let (mut open, mut pages) = (Vec::new(), BTreeSet::new());
        let mut from: Option<(String, String)> = None;
        loop {
            let mut query = vec![("prefix", prefix), ("uploads", "")];
            if let Some((key, upload_id)) = &from {
                query.extend([("key-marker", key.as_str()), ("upload-id-marker", upload_id.as_str())]);
            }
            let call = Call { query: &query, ..Call::new(Operation::List, "GET", None) };
            let answer = self.call(action, &call).await?;
            if !answer.is_success() {
                return Err(not_there(answer, action, prefix));
            }
            let page = parse_uploads(&answer.response.body).map_err(|error| match error {
                // Servers without this call list objects instead, in another document.
                XmlError::Unexpected(_) => {
                    Error::new(ErrorKind::Unsupported, action).on(prefix).because(error)
                }
                error => from_document(error, action, prefix),
            })?;
            // Not every server filters by the prefix.
            open.extend(page.uploads.into_iter().filter(|upload| upload.key.starts_with(prefix)));
            let Some(next) = page.next else { return Ok(open) };
            if !pages.insert(next.clone()) {
                let error = Error::new(ErrorKind::Unavailable, action).on(prefix);
                return Err(error.because("the server repeats the same page"));
            }
            from = Some(next);
        }
    }

    /// Aborts a multipart upload. Succeeds if it does not exist.
    ///
    /// # Errors
    /// Any [`ErrorKind`] of a request.
    ///
    /// # Cancel safety
    /// A dropped future may abort the upload later.
    pub async fn abort_upload(&self, key: &str, upload_id: &str) -> Result<()> {
        let query = [("uploadId", upload_id)];
        let call = Call { query: &query, ..Call::new(Operation::Multipart, "DELETE", Some(key)) };
        let answer = self.call("abort an upload of", &call).await?;
        match answer.status() {
            200..300 | 404 => Ok(()),
            _ => Err(answer.into_error(ErrorKind::Conflict, "abort an upload of", key)),
        }
    }

    /// Aborts the multipart uploads of keys with this prefix that began at least `age` ago, and returns their number.
    /// Uploads without a known start stay. No upload of this crate takes a day.
    ///
    /// # Errors
    /// As for [`open_uploads`](BucketClient::open_uploads) and [`abort_upload`](BucketClient::abort_upload).
    ///
    /// # Cancel safety
    /// A dropped future may have aborted some of them.
    pub async fn abort_stale_uploads(&self, prefix: &str, age: Duration) -> Result<usize> {
        let now = self.shared.now();
        let is_stale = |begun: SystemTime| now.duration_since(begun).is_ok_and(|passed| passed >= age);
        let open = self.open_uploads(prefix).await?;
        let stale = open.into_iter().filter(|upload| upload.initiated.is_some_and(is_stale));
        let mut aborted = 0;
        for upload in stale {
            self.abort_upload(&upload.key, &upload.upload_id).await?;
            aborted += 1;
        }
        Ok(aborted)
    }
}

/// An upload in progress. Dropping it aborts it.
struct Upload {
    client: BucketClient,
    ended: bool,
    id: String,
    key: String,
}

impl Upload {
    async fn begin(client: &BucketClient, key: &str) -> Result<Self> {
        let query = [("uploads", "")];
        let mut call = Call { query: &query, ..Call::new(Operation::Multipart, "POST", Some(key)) };
        call.header("content-type", "application/octet-stream");
        call.header("cache-control", "no-transform");
        client.storage_headers(&mut call);
        let answer = client.call("store", &call).await?;
        if !answer.is_success() {
            return Err(not_there(answer, "store", key));
        }
        let id = match parse_begun(&answer.response.body) {
            Ok(id) => id,
            Err(error) => return Err(from_answer(&answer, error, "store", key)),
        };
        Ok(Self { client: client.clone(), ended: false, id, key: key.to_owned() })
    }

    async fn run(&self, body: &Bytes) -> Result<String> {
        let length = part_bytes(body.len() as u64, self.client.shared.options.part_bytes.get());
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let parts = (0..body.len().div_ceil(length)).map(|at| {
            let part = body.slice(at * length..body.len().min((at + 1).saturating_mul(length)));
            // A part number is at most 10,000.
            self.part(u32::try_from(at + 1).unwrap_or(u32::MAX), part)
        });
        let parts: Vec<_> = stream::iter(parts).buffered(PARTS_IN_FLIGHT).try_collect().await?;
        self.complete(&parts, body).await
    }

    /// Sends a part and returns its entity tag.
    async fn part(&self, number: u32, body: Bytes) -> Result<String> {
        let number = number.to_string();
        let query = [("partNumber", number.as_str()), ("uploadId", self.id.as_str())];
        let mut call = Call { query: &query, ..Call::new(Operation::Put, "PUT", Some(&self.key)) };
        self.client.checksum_header(&mut call, &body).await?;
        call.body = body;
        let answer = self.client.call("store a part of", &call).await?;
        if !answer.is_success() {
            return Err(not_there(answer, "store a part of", &self.key));
        }
        answer.header("etag").map(str::to_owned).ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, "store a part of")
                .on(&self.key)
                .because("the answer has no entity tag")
        })
    }

    async fn complete(&self, parts: &[String], body: &Bytes) -> Result<String> {
        let action = "store";
        let numbered = (1..).zip(parts.iter().map(String::as_str));
        let document = write_complete(numbered).map_err(|error| from_document(error, action, &self.key))?;
        let query = [("uploadId", self.id.as_str())];
        let mut call = Call { query: &query, ..Call::new(Operation::Multipart, "POST", Some(&self.key)) };
        call.header("content-type", "application/xml");
        call.body = Bytes::from(document);
        let doubt = match self.client.call(action, &call).await {
            Ok(answer) if answer.is_success() => match parse_completed(&answer.response.body) {
                Ok(stored) => match stored.etag.filter(|tag| !tag.trim_matches('"').is_empty()) {
                    Some(tag) => return Ok(tag),
                    None => Error::new(ErrorKind::Unavailable, action).on(&self.key),
                },
                Err(error) => from_answer(&answer, error, action, &self.key),
            },
            Ok(answer) if answer.status() == 404 => {
                answer.into_error(ErrorKind::Unavailable, action, &self.key)
            }
            Ok(answer) => return Err(not_there(answer, action, &self.key)),
            Err(error) if error.kind() == ErrorKind::Unavailable => error,
            Err(error) => return Err(error),
        };
        self.find(parts, body, doubt).await
    }

    /// The entity tag of the stored object, if it is the one being uploaded.
    async fn find(&self, parts: &[String], body: &Bytes, doubt: Error) -> Result<String> {
        let found = match self.client.head(&self.key).await {
            Ok(found) if found.size == body.len() as u64 => found,
            _ => return Err(doubt),
        };
        let expected = tag_of_parts(parts.iter().map(String::as_str));
        if expected.is_some_and(|tag| tag.eq_ignore_ascii_case(found.etag.trim_matches('"'))) {
            return Ok(found.etag);
        }
        match self.client.get(&self.key, found.size).await {
            Ok((there, head)) if there == *body => Ok(head.etag),
            _ => Err(doubt),
        }
    }

    async fn end(mut self, completed: bool) {
        if !completed {
            // A failed abort is repeated by `abort_stale_uploads`.
            let _ = self.client.abort_upload(&self.key, &self.id).await;
        }
        self.ended = true;
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.ended {
            let (client, key, id) = (self.client.clone(), self.key.clone(), self.id.clone());
            let abort = async move {
                let _ = client.abort_upload(&key, &id).await;
            };
            self.client.shared.runtime.spawn(Box::pin(abort));
        }
    }
}

/// Length of the parts of an object of `total` bytes: as `wished`, or whole MiB if that makes too many parts.
fn part_bytes(total: u64, wished: u64) -> u64 {
    wished.max(total.div_ceil(MOST_PARTS).next_multiple_of(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves H118.
    #[test]
    fn an_upload_never_has_too_many_parts() {
        let wished = 16 << 20;
        assert_eq!(part_bytes(100 << 20, wished), wished);
        for total in [wished * MOST_PARTS, wished * MOST_PARTS + 1, 5 << 40] {
            let length = part_bytes(total, wished);
            assert!(total.div_ceil(length) <= MOST_PARTS && length.is_multiple_of(1 << 20), "{total}");
        }
    }
}
