//! XML documents of the S3 protocol.
//!
//! Servers leave out different things: unneeded elements are optional, their order does not matter, and unknown
//! elements are skipped (H108). A document is an error until its root is closed.
//!
//! Some calls answer 200 and then report an error in the body (H107). Each function that parses an answer returns
//! [`XmlError::Service`] for such a document.
//!
//! Source: AWS, "Amazon S3 API Reference".

mod listing;
mod sts;
mod tree;

use std::fmt::Write as _;
use std::time::SystemTime;

use thiserror::Error;

use crate::wire::date::parse_iso8601;
use crate::wire::s3_xml::tree::Element;

pub use listing::{ListedObject, Listing, parse_listing};
pub use sts::{TemporaryCredentials, parse_assumed_role};

/// Reason why a document is not the expected one.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum XmlError {
    /// The document has a document type.
    #[error("the document has a type, and such documents are not read")]
    DocumentType,
    /// A name contains characters that XML cannot represent.
    #[error("the name {0:?} cannot be written in XML")]
    Name(String),
    /// The document violates the grammar.
    #[error("the document is malformed")]
    Malformed,
    /// A required element is missing or has the wrong form.
    #[error("the document has no usable {0}")]
    Missing(&'static str),
    /// The document reports an error.
    #[error("the server reports {}: {}", .0.code, .0.message)]
    Service(Box<ErrorBody>),
    /// Elements are nested too deeply.
    #[error("the document is too deep")]
    TooDeep,
    /// The document exceeds its maximum length.
    #[error("the document is too large")]
    TooLarge,
    /// The document ends early.
    #[error("the document is cut")]
    Truncated,
    /// The root element is another one.
    #[error("the document begins with {0:?}")]
    Unexpected(String),
}

/// A server's description of a failure.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ErrorBody {
    /// The bucket of the failed request.
    pub bucket: Option<String>,
    /// The code, such as `NoSuchKey`.
    pub code: String,
    /// Another endpoint to use, if the server names one.
    pub endpoint: Option<String>,
    /// Identifies the machine to the operator of the server.
    pub host_id: Option<String>,
    /// Human-readable message.
    pub message: String,
    /// Another region to use, if the server names one.
    pub region: Option<String>,
    /// Identifies the request to the operator of the server.
    pub request_id: Option<String>,
    /// The object or bucket of the failed request, as the server writes it.
    pub resource: Option<String>,
}

/// Results of a multi-delete for the objects that were not plainly deleted.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteResult {
    /// Deleted keys. Empty under `Quiet`.
    pub deleted: Vec<String>,
    /// Failed keys, with code and message.
    pub errors: Vec<(String, ErrorBody)>,
}

/// The answer to a copy, a part or a completed upload.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// Entity tag of the stored object. Some servers leave it out.
    pub etag: Option<String>,
    /// Time at which it was stored.
    pub last_modified: Option<SystemTime>,
}

/// An unfinished multipart upload.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenUpload {
    /// Start of the upload.
    pub initiated: Option<SystemTime>,
    /// Key of the object.
    pub key: String,
    /// Id of the upload.
    pub upload_id: String,
}

/// A page of a listing of multipart uploads.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OpenUploads {
    /// Key and id after which the next page begins; `None` on the last page.
    pub next: Option<(String, String)>,
    /// The entries of the page.
    pub uploads: Vec<OpenUpload>,
}

/// A lifecycle rule.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LifecycleRule {
    /// Days after which unfinished multipart uploads are aborted.
    pub abort_days: Option<u32>,
    /// `true` unless the rule is certainly disabled (H31).
    pub enabled: bool,
    /// `true` if the rule deletes objects.
    pub expires: bool,
    /// Its name.
    pub id: String,
    /// Prefix of the affected keys; empty for all.
    pub prefix: String,
    /// `true` if the rule moves objects to a colder storage class.
    pub transitions: bool,
}

/// Parses the body of an error response. `None` if it is no document, as in the answer of a proxy.
pub fn parse_error(document: &[u8]) -> Option<ErrorBody> {
    let root = Element::parse(document, SMALL_LIMIT).ok()?;
    error_of(&root)
}

/// Parses the answer to a multi-delete.
///
/// # Errors
/// Any.
pub fn parse_deleted(document: &[u8]) -> Result<DeleteResult, XmlError> {
    let root = root(document, &["DeleteResult", "DeleteObjectsResult"], LARGE_LIMIT)?;
    let key = |element: &Element| element.child("Key").map(|key| key.text().to_owned());
    let deleted = root.children("Deleted").filter_map(key).collect();
    let errors = root.children("Error").map(|error| {
        let body =
            ErrorBody { code: text(error, "Code"), message: text(error, "Message"), ..ErrorBody::default() };
        key(error).map(|key| (key, body)).ok_or(XmlError::Missing("key of an object that was not deleted"))
    });
    Ok(DeleteResult { deleted, errors: errors.collect::<Result<_, _>>()? })
}

/// Parses the answer to a copy of an object or of a part.
///
/// # Errors
/// Any.
pub fn parse_copied(document: &[u8]) -> Result<Stored, XmlError> {
    let root = root(document, &["CopyObjectResult", "CopyPartResult"], SMALL_LIMIT)?;
    Ok(stored(&root))
}

/// Parses the answer to the completion of a multipart upload.
///
/// # Errors
/// Any.
pub fn parse_completed(document: &[u8]) -> Result<Stored, XmlError> {
    let root = root(document, &["CompleteMultipartUploadResult"], SMALL_LIMIT)?;
    Ok(stored(&root))
}

/// Parses the id of a new multipart upload.
///
/// # Errors
/// Any.
pub fn parse_begun(document: &[u8]) -> Result<String, XmlError> {
    let root = root(document, &["InitiateMultipartUploadResult"], SMALL_LIMIT)?;
    root.value("UploadId").map(str::to_owned).ok_or(XmlError::Missing("upload id"))
}

/// Parses a page of a listing of multipart uploads.
///
/// # Errors
/// Any.
pub fn parse_uploads(document: &[u8]) -> Result<OpenUploads, XmlError> {
    let root = root(document, &["ListMultipartUploadsResult"], LARGE_LIMIT)?;
    let uploads = root.children("Upload").map(|upload| {
        let key = upload.child("Key").ok_or(XmlError::Missing("key of an upload"))?.text().to_owned();
        let upload_id = upload.value("UploadId").ok_or(XmlError::Missing("upload id"))?.to_owned();
        let initiated = upload.value("Initiated").and_then(parse_iso8601);
        Ok(OpenUpload { initiated, key, upload_id })
    });
    let uploads = uploads.collect::<Result<_, _>>()?;
    let next = if is_truncated(&root)?.unwrap_or_default() {
        let key =
            root.value("NextKeyMarker").ok_or(XmlError::Missing("key that the next page begins after"))?;
        Some((key.to_owned(), text(&root, "NextUploadIdMarker")))
    } else {
        None
    };
    Ok(OpenUploads { next, uploads })
}

/// Parses the names of all buckets.
///
/// # Errors
/// Any.
pub fn parse_buckets(document: &[u8]) -> Result<Vec<String>, XmlError> {
    let root = root(document, &["ListAllMyBucketsResult", "ListBucketsResult"], LARGE_LIMIT)?;
    let buckets = root.child("Buckets").into_iter().flat_map(|buckets| buckets.children("Bucket"));
    Ok(buckets.filter_map(|bucket| bucket.value("Name").map(str::to_owned)).collect())
}

/// Parses the versioning state: `true` if old versions are kept. `Suspended` is `false`.
///
/// # Errors
/// Any.
pub fn parse_versioning(document: &[u8]) -> Result<bool, XmlError> {
    let root = root(document, &["VersioningConfiguration"], SMALL_LIMIT)?;
    Ok(root.value("Status").is_some_and(|status| status.eq_ignore_ascii_case("enabled")))
}

/// Parses the object lock configuration: `true` if new objects are locked against deletion.
///
/// # Errors
/// Any.
pub fn parse_object_lock(document: &[u8]) -> Result<bool, XmlError> {
    let root = root(document, &["ObjectLockConfiguration"], SMALL_LIMIT)?;
    Ok(root.child("Rule").is_some_and(|rule| rule.child("DefaultRetention").is_some()))
}

/// Parses the lifecycle rules.
///
/// # Errors
/// Any.
pub fn parse_lifecycle(document: &[u8]) -> Result<Vec<LifecycleRule>, XmlError> {
    let root = root(document, &["LifecycleConfiguration"], LARGE_LIMIT)?;
    let rule = |rule: &Element| {
        let filter = rule.child("Filter");
        let within =
            filter.and_then(|filter| filter.child("Prefix").or_else(|| filter.child("And")?.child("Prefix")));
        let abort = rule.child("AbortIncompleteMultipartUpload");
        LifecycleRule {
            abort_days: abort
                .and_then(|abort| abort.value("DaysAfterInitiation"))
                .and_then(|days| days.parse().ok()),
            enabled: !rule.value("Status").is_some_and(|status| status.eq_ignore_ascii_case("disabled")),
            expires: rule.child("Expiration").is_some_and(|expiration| {
                expiration.value("Days").is_some() || expiration.value("Date").is_some()
            }),
            id: text(rule, "ID"),
            prefix: rule.child("Prefix").or(within).map_or("", Element::text).to_owned(),
            transitions: rule.child("Transition").is_some(),
        }
    };
    Ok(root.children("Rule").map(rule).collect())
}

/// Parses the region of a bucket, as the server writes it. `None` if it names none, which at AWS means `us-east-1`; the old
/// name `EU` there means `eu-west-1`.
///
/// # Errors
/// Any.
pub fn parse_location(document: &[u8]) -> Result<Option<String>, XmlError> {
    let root = root(document, &["LocationConstraint"], SMALL_LIMIT)?;
    // The AWS reference nests the element in itself; servers send it alone.
    let region = root.value("LocationConstraint").unwrap_or(root.text().trim_ascii());
    Ok(Some(region.to_owned()).filter(|region| !region.is_empty()))
}

/// Writes the body of a multi-delete.
///
/// # Errors
/// `Name` for a key with characters that XML cannot carry.
pub fn write_delete<'a>(keys: impl IntoIterator<Item = &'a str>) -> Result<String, XmlError> {
    let mut document = format!("<Delete xmlns=\"{NAMESPACE}\"><Quiet>true</Quiet>");
    for key in keys {
        document.push_str("<Object><Key>");
        escape(key, &mut document)?;
        document.push_str("</Key></Object>");
    }
    document.push_str("</Delete>");
    Ok(document)
}

/// Writes the body that completes a multipart upload: ascending numbers, and the entity tags as the server gave them.
///
/// # Errors
/// `Name` for a tag with characters that XML cannot carry.
pub fn write_complete<'a>(parts: impl IntoIterator<Item = (u32, &'a str)>) -> Result<String, XmlError> {
    let mut document = format!("<CompleteMultipartUpload xmlns=\"{NAMESPACE}\">");
    for (number, etag) in parts {
        // Writing to a string cannot fail.
        let _ = write!(document, "<Part><PartNumber>{number}</PartNumber><ETag>");
        escape(etag, &mut document)?;
        document.push_str("</ETag></Part>");
    }
    document.push_str("</CompleteMultipartUpload>");
    Ok(document)
}

/// Writes the body that creates a bucket in a region.
///
/// # Errors
/// `Name` for a region with characters that XML cannot carry.
pub fn write_bucket(region: &str) -> Result<String, XmlError> {
    let mut document = format!("<CreateBucketConfiguration xmlns=\"{NAMESPACE}\"><LocationConstraint>");
    escape(region, &mut document)?;
    document.push_str("</LocationConstraint></CreateBucketConfiguration>");
    Ok(document)
}

/// The root of a document, if it has one of these names.
fn root(document: &[u8], names: &[&str], limit: usize) -> Result<Element, XmlError> {
    let root = Element::parse(document, limit)?;
    if let Some(error) = error_of(&root) {
        return Err(XmlError::Service(Box::new(error)));
    }
    if names.contains(&root.name.as_ref()) {
        Ok(root)
    } else {
        Err(XmlError::Unexpected(root.name.into_owned()))
    }
}

fn error_of(root: &Element) -> Option<ErrorBody> {
    // Services other than S3 wrap the error.
    let root = if root.name == "ErrorResponse" { root.child("Error")? } else { root };
    if root.name != "Error" {
        return None;
    }
    let value = |name| root.value(name).map(str::to_owned);
    Some(ErrorBody {
        bucket: value("Bucket").or_else(|| value("BucketName")),
        code: value("Code")?,
        endpoint: value("Endpoint"),
        host_id: value("HostId"),
        message: value("Message").unwrap_or_default(),
        region: value("Region"),
        request_id: value("RequestId"),
        resource: value("Resource"),
    })
}

fn stored(root: &Element) -> Stored {
    Stored {
        etag: root.value("ETag").map(str::to_owned),
        last_modified: root.value("LastModified").and_then(parse_iso8601),
    }
}

fn text(element: &Element, name: &str) -> String {
    element.value(name).unwrap_or_default().to_owned()
}

/// `true` if more pages follow. `None` if the server does not say; any word except `true` and `false` is an error.
fn is_truncated(root: &Element) -> Result<Option<bool>, XmlError> {
    match root.value("IsTruncated") {
        None => Ok(None),
        Some(value) if value.eq_ignore_ascii_case("true") => Ok(Some(true)),
        Some(value) if value.eq_ignore_ascii_case("false") => Ok(Some(false)),
        Some(_) => Err(XmlError::Missing("word on whether it is the last page")),
    }
}

/// XML 1.0 cannot represent most control characters.
fn escape(text: &str, out: &mut String) -> Result<(), XmlError> {
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            // A parser would normalise these characters if they were not escaped.
            '\t' | '\n' | '\r' => _ = write!(out, "&#{};", u32::from(character)),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => return Err(XmlError::Name(text.to_owned())),
            character => out.push(character),
        }
    }
    Ok(())
}

/// Maximum bytes of a document with one result.
const SMALL_LIMIT: usize = 64 << 10;
/// Maximum bytes of a document with up to 1000 entries: keys of 1024 bytes, each byte encoded, with all attributes.
const LARGE_LIMIT: usize = 8 << 20;
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

#[cfg(test)]
mod tests;
