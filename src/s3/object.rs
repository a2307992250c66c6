//! Operations on single objects: read, store, copy, delete.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::future::BoxFuture;

use crate::error::{Error, ErrorKind, Result};
use crate::s3::Refusal;
use crate::s3::call::{Answer, Call};
use crate::s3::checksum::base64_md5;
use crate::s3::client::BucketClient;
use crate::s3::counters::Operation;
use crate::s3::options::Encryption;
use crate::wire::date::parse_http_date;
use crate::wire::s3_xml::{XmlError, parse_copied};
use crate::wire::uri::encode_path;

/// Maximum number of lookups of an object with contradictory answers.
const LOOKS: u32 = 3;

/// Metadata of an object.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// Date of the answer, by the clock of the server. `None` in a listing.
    pub answered: Option<SystemTime>,
    /// Entity tag, verbatim; empty if the server has none. Only equality is meaningful.
    pub etag: String,
    /// Time at which it was stored.
    pub last_modified: Option<SystemTime>,
    /// Size in bytes.
    pub size: u64,
}

impl Head {
    /// Metadata as a listing gives it.
    pub fn new(etag: String, size: u64, last_modified: Option<SystemTime>) -> Self {
        Self { answered: None, etag, last_modified, size }
    }

    /// Time since the object was stored, by the clock of the server; `None` if the answer lacks a time.
    pub(crate) fn age(&self) -> Option<Duration> {
        let (answered, stored) = (self.answered?, self.last_modified?);
        Some(answered.duration_since(stored).unwrap_or_default())
    }
}

/// Outcome of a successful deletion.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// The deletion is over: objects stored under the key from now on stay.
    Final,
    /// The object is gone, but an earlier request got no answer and may still be executed. It would delete an object stored under the
    /// key from now on.
    InDoubt,
}

/// An object that was stored.
#[derive(Debug)]
pub(crate) struct Stored {
    /// Entity tag, verbatim; empty if the server sent none.
    pub(crate) etag: String,
    /// No earlier attempt may still be executed. Otherwise one may store the object again, even after it was deleted.
    pub(crate) is_over: bool,
}

/// Condition for storing or deleting an object.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The key is free.
    Absent,
    /// No condition.
    Always,
    /// The object has this entity tag.
    Tag(String),
}

impl Condition {
    fn apply(&self, call: &mut Call<'_>) {
        match self {
            Self::Always => {}
            Self::Absent => call.header("if-none-match", "*"),
            Self::Tag(tag) => call.header("if-match", tag),
        }
    }

    fn failure(&self) -> ErrorKind {
        match self {
            Self::Absent => ErrorKind::AlreadyExists,
            Self::Always | Self::Tag(_) => ErrorKind::Conflict,
        }
    }
}

impl BucketClient {
    /// Reads a whole object of at most `limit` bytes.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if it is larger than `limit`; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// The future may be dropped.
    pub async fn get(&self, key: &str, limit: u64) -> Result<(Bytes, Head)> {
        self.boxed_get(key, limit).await
    }

    // Each of the boxed bodies here is compiled once, and not in each module that calls it.
    fn boxed_get<'a>(&'a self, key: &'a str, limit: u64) -> BoxFuture<'a, Result<(Bytes, Head)>> {
        Box::pin(async move {
            let mut call = Call::new(Operation::Get, "GET", Some(key));
            call.body_limit = limit;
            let answer = self.call("read", &call).await?;
            if !answer.is_success() {
                return Err(not_there(answer, "read", key));
            }
            if answer.status() != 200 {
                return Err(protocol("read", key, "the server answered with a range that was not requested"));
            }
            let head = head_of(&answer, None);
            if answer.response.may_be_truncated {
                return Err(protocol("read", key, "the answer does not show that the object is complete"));
            }
            let head = Head { size: answer.response.body.len() as u64, ..head };
            Ok((answer.response.body, head))
        })
    }

    /// Reads the bytes `range` of an object. [`Head`] has the size of the whole object.
    ///
    /// # Errors
    /// `NotFound`; `InvalidInput` if the range is empty or reaches beyond the end; `Unsupported` if the server ignores ranges; the
    /// rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// The future may be dropped.
    pub async fn get_range(&self, key: &str, range: Range<u64>) -> Result<(Bytes, Head)> {
        let action = "read a range of";
        let outside = || Error::new(ErrorKind::InvalidInput, action).on(key);
        let Some(last) = range.end.checked_sub(1).filter(|last| *last >= range.start) else {
            return Err(outside());
        };
        let mut call = Call::new(Operation::Get, "GET", Some(key));
        call.header("range", format!("bytes={}-{last}", range.start));
        call.body_limit = range.end - range.start;
        let answer = self.call(action, &call).await.map_err(|error| match error.kind() {
            ErrorKind::Corrupt => Error::new(ErrorKind::Unsupported, action).on(key).because(error),
            _ => error,
        })?;
        match answer.status() {
            206 => {}
            // Cutting the range out of a whole object would cost the whole object each time.
            200 => {
                return Err(Error::new(ErrorKind::Unsupported, action)
                    .on(key)
                    .because("the server ignores ranges"));
            }
            416 => return Err(answer.into_error(ErrorKind::InvalidInput, action, key)),
            _ => return Err(not_there(answer, action, key)),
        }
        let served = answer.header("content-range").and_then(parse_content_range);
        let Some((first, end, size)) = served else {
            return Err(protocol(action, key, "the answer does not name its range"));
        };
        if (first, end) != (range.start, range.end) || answer.response.body.len() as u64 != end - first {
            // A server shortens a range at the end of the object.
            return Err(if range.end > size {
                outside()
            } else {
                protocol(action, key, "the answer has another range than requested")
            });
        }
        let head = Head { size, ..head_of(&answer, None) };
        Ok((answer.response.body, head))
    }

    /// Reads the metadata of an object.
    ///
    /// # Errors
    /// `NotFound`; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// The future may be dropped.
    pub async fn head(&self, key: &str) -> Result<Head> {
        self.boxed_head(key).await
    }

    fn boxed_head<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Head>> {
        Box::pin(async move {
            let action = "look up";
            for _ in 0..LOOKS {
                let answer = self.call(action, &Call::new(Operation::Head, "HEAD", Some(key))).await?;
                if answer.is_success() {
                    let size = answer.header("content-length").and_then(|length| length.parse().ok());
                    let size = size.ok_or_else(|| protocol(action, key, "the answer has no length"))?;
                    return Ok(head_of(&answer, Some(size)));
                }
                let by_the_server = answer.header("x-amz-request-id").is_some();
                if answer.status() != 404 || by_the_server {
                    return Err(not_there(answer, action, key));
                }
                // A proxy may have answered 404. An answer to GET has a body, which identifies its sender (I7).
                match self.get_range(key, 0..1).await {
                    Ok((_, head)) => return Ok(head),
                    // The object exists, even if it is empty.
                    Err(error)
                        if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {}
                    Err(error) => return Err(error),
                }
            }
            Err(protocol(
                action,
                key,
                "the server gives contradictory answers about whether the object exists",
            ))
        })
    }

    /// Stores an object and returns its entity tag: in one request of at most 5 GiB, or in parts if it is at least as large as
    /// [`S3Options::parts`](crate::s3::S3Options::parts) says and has no condition.
    ///
    /// # Errors
    /// `AlreadyExists` or `Conflict` if the condition fails: nothing was stored. `Unavailable` if it is unknown whether the object
    /// was stored. `Full`; `Unsupported` if the server refuses conditions; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// A dropped future leaves the old object or the new one; the new one may appear later.
    pub async fn put(&self, key: &str, body: Bytes, condition: &Condition) -> Result<String> {
        Ok(self.put_object(key, body, condition).await?.etag)
    }

    /// As [`put`](BucketClient::put), with what is known about earlier attempts.
    pub(crate) fn put_object<'a>(
        &'a self,
        key: &'a str,
        body: Bytes,
        condition: &'a Condition,
    ) -> BoxFuture<'a, Result<Stored>> {
        Box::pin(async move {
            if *condition == Condition::Always && body.len() as u64 >= self.shared.options.parts_from {
                // Completing an upload twice stores the object once.
                let etag = self.put_in_parts(key, &body).await?;
                return Ok(Stored { etag, is_over: true });
            }
            let mut call = Call::new(Operation::Put, "PUT", Some(key));
            self.checksum_header(&mut call, &body).await?;
            call.body = body;
            call.header("content-type", "application/octet-stream");
            call.header("cache-control", "no-transform");
            condition.apply(&mut call);
            self.storage_headers(&mut call);
            let mut unanswered = u32::MAX;
            let doubt = match self.call("store", &call).await {
                Ok(answer) if answer.is_success() => {
                    let etag = answer.header("etag").unwrap_or_default().to_owned();
                    return Ok(Stored { etag, is_over: !answer.is_ambiguous() });
                }
                // An earlier attempt may have stored it.
                Ok(answer) if answer.status() == 412 && answer.is_ambiguous() => {
                    unanswered = answer.unanswered;
                    answer.into_error(ErrorKind::Unavailable, "store", key)
                }
                Ok(answer) => return Err(condition_failed(answer, condition, "store", key)),
                // Concurrent writers of the key may continue for longer than the deadline (H113).
                Err(error) if *condition == Condition::Absent && refused_with(&error, 409) => error,
                Err(error) => return Err(error),
            };
            let etag = self.find(key, &call.body, condition, doubt).await?;
            // The key was free, so the only attempt without an answer is the one that stored it.
            Ok(Stored { etag, is_over: unanswered == 1 && *condition == Condition::Absent })
        })
    }

    /// The entity tag of the stored object if it is the one that was to be stored on a condition; otherwise the error that is certain after a lost answer.
    async fn find(&self, key: &str, body: &Bytes, condition: &Condition, doubt: Error) -> Result<String> {
        let is_other = match self.get(key, body.len() as u64).await {
            Ok((found, head)) if found == *body => return Ok(head.etag),
            Ok(_) => true,
            Err(found) if found.kind() == ErrorKind::Corrupt => true,
            Err(found) if found.kind() == ErrorKind::NotFound => false,
            Err(unknown) => return Err(Error::new(ErrorKind::Unavailable, "store").on(key).because(unknown)),
        };
        // If another version was to be replaced, this object may have been stored in between.
        let was_there = is_other && *condition == Condition::Absent;
        Err(if was_there {
            Error::new(ErrorKind::AlreadyExists, "store").on(key).because(doubt)
        } else {
            doubt
        })
    }

    /// Copies an object to another key on the server, up to 5 GiB.
    ///
    /// # Errors
    /// `NotFound` if there is no object at `from`; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// As for [`put`](BucketClient::put).
    pub async fn copy(&self, from: &str, to: &str) -> Result<String> {
        let mut call = Call::new(Operation::Copy, "PUT", Some(to));
        let source = format!("/{}/{}", self.bucket(), from);
        call.header("x-amz-copy-source", encode_path(&source));
        self.storage_headers(&mut call);
        let answer = self.call("copy", &call).await?;
        if !answer.is_success() {
            return Err(not_there(answer, "copy", from));
        }
        // The body reports success: the status was sent before the copy was made (H107).
        match parse_copied(&answer.response.body) {
            Ok(stored) => Ok(stored.etag.unwrap_or_default()),
            Err(error) => Err(from_answer(&answer, error, "copy", from)),
        }
    }

    /// Deletes an object. Deleting a missing object succeeds, and the answer may not say which case it was.
    ///
    /// # Errors
    /// `Conflict` if the condition fails; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// A dropped future may delete the object later.
    pub async fn delete(&self, key: &str, condition: &Condition) -> Result<Deletion> {
        self.boxed_delete(key, condition).await
    }

    fn boxed_delete<'a>(&'a self, key: &'a str, condition: &'a Condition) -> BoxFuture<'a, Result<Deletion>> {
        Box::pin(async move {
            let mut call = Call::new(Operation::Delete, "DELETE", Some(key));
            condition.apply(&mut call);
            let answer = self.call("delete", &call).await?;
            match answer.status() {
                // With a condition too: equal contents have equal tags, even when they are stored again.
                200..300 | 404 if answer.is_ambiguous() => Ok(Deletion::InDoubt),
                200..300 | 404 => Ok(Deletion::Final),
                412 if answer.is_ambiguous() => match self.head(key).await {
                    // The first attempt may be the one that is executed late, and something else deleted the object.
                    Err(gone) if gone.kind() == ErrorKind::NotFound => Ok(Deletion::InDoubt),
                    _ => Err(answer.into_error(ErrorKind::Unavailable, "delete", key)),
                },
                _ => Err(answer.into_error(condition.failure(), "delete", key)),
            }
        })
    }

    /// The header that lets a server detect a damaged body if it does not check the signed hash (D12).
    pub(super) async fn checksum_header(&self, call: &mut Call<'_>, body: &Bytes) -> Result<()> {
        if !self.shared.md5.load(Ordering::Relaxed) {
            return Ok(());
        }
        let body = body.clone();
        let hash = move || Ok(base64_md5(&body));
        call.header("content-md5", self.shared.runtime.run_blocking("hash a body", hash).await?);
        Ok(())
    }

    /// Adds an MD5 to every body, for servers that do not check bodies against their signed hash. The backend calls this according
    /// to the [probe](BucketClient::probe).
    pub fn send_md5(&self, wanted: bool) {
        self.shared.md5.store(wanted, Ordering::Relaxed);
    }

    /// Headers of every stored object.
    pub(super) fn storage_headers(&self, call: &mut Call<'_>) {
        let options = &self.shared.options;
        if let Some(class) = &options.storage_class {
            call.header("x-amz-storage-class", class);
        }
        match &options.encryption {
            None => {}
            Some(Encryption::Aes256) => call.header("x-amz-server-side-encryption", "AES256"),
            Some(Encryption::Kms(key)) => {
                call.header("x-amz-server-side-encryption", "aws:kms");
                if let Some(key) = key {
                    call.header("x-amz-server-side-encryption-aws-kms-key-id", key);
                }
            }
        }
    }
}

fn condition_failed(answer: Answer, condition: &Condition, action: &'static str, key: &str) -> Error {
    let kind = match answer.status() {
        412 => condition.failure(),
        // The condition on a missing object failed.
        404 if matches!(condition, Condition::Tag(_)) => ErrorKind::Conflict,
        _ => ErrorKind::InvalidInput,
    };
    answer.into_error(kind, action, key)
}

/// Returns `true` if the server refused with this status.
fn refused_with(error: &Error, status: u16) -> bool {
    let cause = std::error::Error::source(error);
    cause.and_then(|cause| cause.downcast_ref::<Refusal>()).is_some_and(|refusal| refusal.status == status)
}

/// The error for an answer that is neither a success nor a failed condition.
pub(super) fn not_there(answer: Answer, action: &'static str, key: &str) -> Error {
    let kind = if answer.status() == 404 { ErrorKind::NotFound } else { ErrorKind::Conflict };
    answer.into_error(kind, action, key)
}

/// The error for a malformed document. A document that reports an error after a success status may belong to a request that
/// was executed.
pub(super) fn from_document(error: XmlError, action: &'static str, subject: &str) -> Error {
    let kind = match &error {
        XmlError::Service(body) if body.code == "NoSuchKey" => ErrorKind::NotFound,
        XmlError::Service(body) if body.code == "AccessDenied" => ErrorKind::Denied,
        XmlError::Name(_) => ErrorKind::InvalidInput,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, action).on(subject).because(error)
}

/// As [`from_document`], for the document of a successful answer. If an earlier attempt may have been executed, the error claims nothing else (I6).
pub(super) fn from_answer(answer: &Answer, error: XmlError, action: &'static str, subject: &str) -> Error {
    if answer.is_ambiguous() {
        return Error::new(ErrorKind::Unavailable, action).on(subject).because(error);
    }
    from_document(error, action, subject)
}

fn protocol(action: &'static str, key: &str, why: &'static str) -> Error {
    Error::new(ErrorKind::Unavailable, action).on(key).because(why)
}

fn head_of(answer: &Answer, size: Option<u64>) -> Head {
    Head {
        answered: answer.header("date").and_then(parse_http_date),
        etag: answer.header("etag").unwrap_or_default().to_owned(),
        last_modified: answer.header("last-modified").and_then(parse_http_date),
        size: size.unwrap_or_default(),
    }
}

/// First byte, end and total size from `bytes 0-9/100`.
pub(crate) fn parse_content_range(text: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last, size): (u64, u64, u64) = (first.parse().ok()?, last.parse().ok()?, size.parse().ok()?);
    let end = last.checked_add(1)?;
    (first < end && end <= size).then_some((first, end, size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves H143.
    #[test]
    fn content_ranges_are_parsed_strictly() {
        assert_eq!(parse_content_range("bytes 0-9/100"), Some((0, 10, 100)));
        for text in [
            "bytes 0-9/*",
            "0-9/100",
            "bytes 9-0/100",
            "bytes 0-100/100",
            "bytes */100",
            "bytes 0-18446744073709551615/1",
        ] {
            assert_eq!(parse_content_range(text), None, "{text}");
        }
    }
}
