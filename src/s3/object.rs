//! Single objects: read, stored, copied, deleted.

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::s3::Refusal;
use crate::s3::checksum::base64_md5;
use crate::s3::client::{Answer, Call, S3Client};
use crate::s3::counters::Operation;
use crate::s3::options::Encryption;
use crate::wire::date::parse_http_date;
use crate::wire::http_body::Framing;
use crate::wire::s3_xml::{XmlError, parse_copied};
use crate::wire::uri::encode_path;

/// How often an object is looked up of which answers contradict each other.
const LOOKS: u32 = 3;

/// What is known of an object without reading it.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// When the server answered, by its own clock. A line of a listing has no such thing.
    pub answered: Option<SystemTime>,
    /// The tag of the contents, to the letter; empty if the server has none. Only equality means something (H106).
    pub etag: String,
    /// When it was stored.
    pub last_modified: Option<SystemTime>,
    /// Its size in bytes.
    pub size: u64,
}

impl Head {
    /// What is known of an object, for what reads it out of a listing.
    pub fn new(etag: String, size: u64, last_modified: Option<SystemTime>) -> Self {
        Self { answered: None, etag, last_modified, size }
    }
}

/// What is known of a deletion that succeeded.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is over: what is stored there from now on stays.
    Final,
    /// Nothing is there, but an earlier request got no answer and may still be executed: it would delete what is stored there from
    /// now on (H17).
    Unsettled,
}

/// What must hold for an object to be stored or deleted.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nothing is there.
    Absent,
    /// Nothing; it is done in any case.
    Always,
    /// What is there has this tag.
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

impl S3Client {
    /// Reads a whole object of at most `limit` bytes.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` if it is larger than `limit`; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// The future may be dropped.
    pub async fn get(&self, key: &str, limit: u64) -> Result<(Bytes, Head)> {
        let mut call = Call::new(Operation::Get, "GET", Some(key));
        call.body_limit = limit;
        let answer = self.call("read", &call).await?;
        if !answer.is_success() {
            return Err(not_there(answer, "read", key));
        }
        if answer.status() != 200 {
            return Err(protocol("read", key, "nobody asked for a part of it"));
        }
        let head = head_of(&answer, None);
        if answer.response.framing == Framing::Close {
            return Err(protocol("read", key, "nothing shows that the object is whole"));
        }
        let head = Head { size: answer.response.body.len() as u64, ..head };
        Ok((answer.response.body, head))
    }

    /// Reads the bytes `range` of an object. The size in [`Head`] is that of the whole object.
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
            // Nobody reads a whole object and cuts a piece out: that would be paid for every time.
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
            return Err(protocol(action, key, "the answer does not say which range it is"));
        };
        if (first, end) != (range.start, range.end) || answer.response.body.len() as u64 != end - first {
            // A server cuts a range off at the end of the object.
            return Err(if range.end > size {
                outside()
            } else {
                protocol(action, key, "it is another range")
            });
        }
        let head = Head { size, ..head_of(&answer, None) };
        Ok((answer.response.body, head))
    }

    /// Asks what is known of an object.
    ///
    /// # Errors
    /// `NotFound`; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// The future may be dropped.
    pub async fn head(&self, key: &str) -> Result<Head> {
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
            // Anybody on the way may have said that. An answer to GET has a body, which tells who it is from (I7).
            match self.get_range(key, 0..1).await {
                Ok((_, head)) => return Ok(head),
                // There is something, if only an empty object.
                Err(error) if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::Unsupported) => {}
                Err(error) => return Err(error),
            }
        }
        Err(protocol(action, key, "it is there, and it is not"))
    }

    /// Stores an object and returns its tag: in one request, of at most 5 GiB, or in parts if it is as large as
    /// [`S3Options::parts`](crate::s3::S3Options::parts) says and there is no condition.
    ///
    /// # Errors
    /// `AlreadyExists` or `Conflict` if the condition does not hold: then nothing was stored. `Unavailable` leaves open whether
    /// it was. `Full`, `Unsupported` where the server refuses conditions, and the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// A dropped future leaves the old object or the new one, possibly the new one later.
    pub async fn put(&self, key: &str, body: Bytes, condition: &Condition) -> Result<String> {
        if *condition == Condition::Always && body.len() as u64 >= self.shared.options.parts_from {
            return self.put_in_parts(key, &body).await;
        }
        let mut call = Call::new(Operation::Put, "PUT", Some(key));
        self.checksum_header(&mut call, &body).await?;
        call.body = body;
        call.header("content-type", "application/octet-stream");
        call.header("cache-control", "no-transform");
        condition.apply(&mut call);
        self.storage_headers(&mut call);
        let doubt = match self.call("store", &call).await {
            Ok(answer) if answer.is_success() => {
                return Ok(answer.header("etag").unwrap_or_default().to_owned());
            }
            // An attempt before this one may have stored it.
            Ok(answer) if answer.status() == 412 && answer.ambiguous => {
                answer.into_error(ErrorKind::Unavailable, "store", key)
            }
            Ok(answer) => return Err(condition_failed(answer, condition, "store", key)),
            // Others who store it at the same time may go on doing so for longer than we wait (H113).
            Err(error) if *condition == Condition::Absent && refused_with(&error, 409) => error,
            Err(error) => return Err(error),
        };
        self.find(key, &call.body, condition, doubt).await
    }

    /// The tag of what is there, if that is what was to be stored on a condition; else what is certain after some doubt.
    async fn find(&self, key: &str, body: &Bytes, condition: &Condition, doubt: Error) -> Result<String> {
        let is_other = match self.get(key, body.len() as u64).await {
            Ok((found, head)) if found == *body => return Ok(head.etag),
            Ok(_) => true,
            Err(found) if found.kind() == ErrorKind::Corrupt => true,
            Err(found) if found.kind() == ErrorKind::NotFound => false,
            Err(unknown) => return Err(Error::new(ErrorKind::Unavailable, "store").on(key).because(unknown)),
        };
        // Where another version was to be replaced, ours may have been there in between.
        let was_there = is_other && *condition == Condition::Absent;
        Err(if was_there {
            Error::new(ErrorKind::AlreadyExists, "store").on(key).because(doubt)
        } else {
            doubt
        })
    }

    /// Stores the bytes of one object under another key too, without moving them through here. At most 5 GiB.
    ///
    /// # Errors
    /// `NotFound` if there is nothing at `from`; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// As for [`put`](S3Client::put).
    pub async fn copy(&self, from: &str, to: &str) -> Result<String> {
        let mut call = Call::new(Operation::Copy, "PUT", Some(to));
        let source = format!("/{}/{}", self.bucket(), from);
        call.header("x-amz-copy-source", encode_path(&source));
        self.storage_headers(&mut call);
        let answer = self.call("copy", &call).await?;
        if !answer.is_success() {
            return Err(not_there(answer, "copy", from));
        }
        // Success is in the body: the status came before the work was done (H107).
        match parse_copied(&answer.response.body) {
            Ok(stored) => Ok(stored.etag.unwrap_or_default()),
            Err(error) => Err(from_document(error, "copy", from)),
        }
    }

    /// Deletes an object; whether it was there is not always known. Deleting what is not there succeeds.
    ///
    /// # Errors
    /// `Conflict` if the condition does not hold; the rest of [`ErrorKind`].
    ///
    /// # Cancel safety
    /// The object may be deleted later.
    pub async fn delete(&self, key: &str, condition: &Condition) -> Result<Deletion> {
        let mut call = Call::new(Operation::Delete, "DELETE", Some(key));
        condition.apply(&mut call);
        let answer = self.call("delete", &call).await?;
        match answer.status() {
            // On a condition too: the same contents have the same tag, whoever stores them anew.
            200..300 | 404 if answer.ambiguous => Ok(Deletion::Unsettled),
            200..300 | 404 => Ok(Deletion::Final),
            412 if answer.ambiguous => match self.head(key).await {
                Err(gone) if gone.kind() == ErrorKind::NotFound => Ok(Deletion::Final),
                _ => Err(answer.into_error(ErrorKind::Unavailable, "delete", key)),
            },
            _ => Err(answer.into_error(condition.failure(), "delete", key)),
        }
    }

    /// The header by which a server that does not compare a body with its signed hash can tell that it was damaged (D12).
    pub(super) async fn checksum_header(&self, call: &mut Call<'_>, body: &Bytes) -> Result<()> {
        if !self.shared.md5.load(Ordering::Relaxed) {
            return Ok(());
        }
        let body = body.clone();
        let hash = move || Ok(base64_md5(&body));
        call.header("content-md5", self.shared.runtime.run_blocking("hash a body", hash).await?);
        Ok(())
    }

    /// Sends every body with an MD5 too, for servers that do not compare it with its signed hash. The backend does so by what
    /// the [probe](S3Client::probe) found.
    pub fn send_md5(&self, wanted: bool) {
        self.shared.md5.store(wanted, Ordering::Relaxed);
    }

    /// The headers of whatever is stored.
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
        // A condition on an object that is not there.
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

/// The error for an answer that is neither success nor a failed condition.
pub(super) fn not_there(answer: Answer, action: &'static str, key: &str) -> Error {
    let kind = if answer.status() == 404 { ErrorKind::NotFound } else { ErrorKind::Conflict };
    answer.into_error(kind, action, key)
}

/// The error for a document that is not what it should be. One that reports an error was a success before it failed, and may
/// have happened.
pub(super) fn from_document(error: XmlError, action: &'static str, subject: &str) -> Error {
    let kind = match &error {
        XmlError::Service(body) if body.code == "NoSuchKey" => ErrorKind::NotFound,
        XmlError::Service(body) if body.code == "AccessDenied" => ErrorKind::Denied,
        XmlError::Name(_) => ErrorKind::InvalidInput,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, action).on(subject).because(error)
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

/// First byte, end and size of the whole, of `bytes 0-9/100`.
fn parse_content_range(text: &str) -> Option<(u64, u64, u64)> {
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
    fn ranges_are_read_strictly() {
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
