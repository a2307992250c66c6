//! Objects in parts.
//!
//! Source: the Amazon S3 API reference, `CreateMultipartUpload`, `UploadPart`, `CompleteMultipartUpload`,
//! `AbortMultipartUpload`, `ListMultipartUploads`.

use std::fmt::Write as _;
use std::sync::Arc;

use super::alter;
use super::bucket::{Upload, names};
use super::date;
use super::objects;
use super::operations::Context;
use super::options::Quirk;
use super::reply::Reply;
use super::rule::Flip;
use super::xml::{Element, tag};

/// `POST ?uploads`.
pub(super) fn create(context: &mut Context<'_>, key: &str) -> Reply {
    let id = context.bucket.token();
    let upload = Upload {
        key: key.to_owned(),
        headers: objects::stored_headers(context.request),
        started: date::now(0),
        parts: std::collections::BTreeMap::new(),
    };
    context.bucket.uploads.insert(id.clone(), upload);
    let content = tag("Bucket", &context.options.bucket) + &tag("Key", key) + &tag("UploadId", &id);
    Reply::document("InitiateMultipartUploadResult", &content)
}

/// `PUT ?partNumber=…&uploadId=…`.
pub(super) fn put_part(context: &mut Context<'_>, key: &str) -> Reply {
    let request = context.request;
    let number = request.query("partNumber").and_then(|number| number.parse().ok());
    let Some(number) = number.filter(|number| (1..=10_000).contains(number)) else {
        return Reply::error(400, "InvalidArgument");
    };
    if request.header("x-amz-copy-source").is_some() {
        return Reply::error(501, "NotImplemented");
    }
    let Some(id) = upload_id(context, key) else { return Reply::error(404, "NoSuchUpload") };
    let mut bytes = Arc::clone(&request.body);
    if context.plan.flips(Flip::Stored) {
        bytes = Arc::new(alter::flipped(&bytes));
    }
    let etag = context.bucket.etag(context.options, &bytes, "");
    if let Some(upload) = context.bucket.uploads.get_mut(&id) {
        upload.parts.insert(number, (etag.clone(), bytes));
    }
    Reply::empty(200).header("ETag", &etag)
}

/// `POST ?uploadId=…`.
pub(super) fn complete(context: &mut Context<'_>, key: &str) -> Reply {
    let Some(id) = upload_id(context, key) else { return Reply::error(404, "NoSuchUpload") };
    let document = context.request.text().ok_or_else(|| "not UTF-8".to_owned());
    let document = match document.and_then(Element::parse) {
        Ok(document) if document.name == "CompleteMultipartUpload" => document,
        Ok(document) => {
            return Reply::malformed(&format!("{} is not CompleteMultipartUpload", document.name));
        }
        Err(why) => return Reply::malformed(&why),
    };
    if let Some(refusal) = objects::refused(context, key) {
        return refusal;
    }
    let (bytes, parts) =
        match assemble(&context.bucket.uploads[&id], &document, context.options.min_part_bytes) {
            Ok(whole) => whole,
            Err(code) => return Reply::error(400, code),
        };
    if context.bucket.is_full(bytes.len()) {
        return Reply::error(403, "QuotaExceeded");
    }
    let Some(upload) = context.bucket.uploads.remove(&id) else { return Reply::error(404, "NoSuchUpload") };
    let etag = context.bucket.etag(context.options, &bytes, &format!("-{parts}"));
    context.bucket.insert(key, Arc::new(bytes), upload.headers, etag.clone());
    let shown = if context.options.dialect.has(Quirk::CompleteEtagEmpty) { "" } else { &etag };
    let content = tag("Location", &context.request.head.path)
        + &tag("Bucket", &context.options.bucket)
        + &tag("Key", key)
        + &tag("ETag", shown);
    Reply::document("CompleteMultipartUploadResult", &content)
}

/// `DELETE ?uploadId=…`.
pub(super) fn abort(context: &mut Context<'_>, key: &str) -> Reply {
    let Some(id) = upload_id(context, key) else { return Reply::error(404, "NoSuchUpload") };
    context.bucket.uploads.remove(&id);
    Reply::empty(204)
}

/// `GET ?uploads`.
pub(super) fn list(context: &Context<'_>) -> Reply {
    let query = |name: &str| context.request.query(name).unwrap_or_default();
    let most = query("max-uploads").parse().unwrap_or(context.options.page).min(context.options.page);
    let (prefix, marker) = (query("prefix"), (query("key-marker"), query("upload-id-marker")));
    let mut uploads: Vec<_> = context.bucket.uploads.iter().map(|(id, upload)| (upload, id)).collect();
    uploads.retain(|(upload, id)| {
        let later = if marker.1.is_empty() {
            upload.key.as_str() > marker.0
        } else {
            (upload.key.as_str(), id.as_str()) > marker
        };
        upload.key.starts_with(prefix) && (later || marker.0.is_empty())
    });
    uploads.sort_by_key(|(upload, id)| (&upload.key, *id));
    let truncated = uploads.len() > most;
    uploads.truncate(most);
    let mut content = tag("Bucket", &context.options.bucket) + &tag("KeyMarker", marker.0);
    content += &(tag("UploadIdMarker", marker.1) + &tag("Prefix", prefix));
    if let Some((upload, id)) = uploads.last().filter(|_| truncated) {
        content += &(tag("NextKeyMarker", &upload.key) + &tag("NextUploadIdMarker", id));
    }
    content += &(tag("MaxUploads", &most.to_string()) + &tag("IsTruncated", &truncated.to_string()));
    for (upload, id) in uploads {
        let started = tag("Initiated", &date::iso(upload.started));
        let one = tag("Key", &upload.key) + &tag("UploadId", id) + &started;
        write!(content, "<Upload>{one}</Upload>").expect("a string takes everything");
    }
    Reply::document("ListMultipartUploadsResult", &content)
}

/// The upload that a request names, if it is one of this key.
fn upload_id(context: &Context<'_>, key: &str) -> Option<String> {
    let id = context.request.query("uploadId")?;
    context.bucket.uploads.get(id).filter(|upload| upload.key == key).map(|_| id.to_owned())
}

/// The bytes and the number of the parts that a document names.
fn assemble(upload: &Upload, document: &Element, min_bytes: usize) -> Result<(Vec<u8>, usize), &'static str> {
    let named: Vec<_> = document.children("Part").collect();
    if named.is_empty() {
        return Err("MalformedXML");
    }
    let (mut bytes, mut last) = (Vec::new(), 0);
    for (index, part) in named.iter().enumerate() {
        let number = part.child("PartNumber").and_then(|number| number.trim().parse::<u32>().ok());
        let number = number.ok_or("MalformedXML")?;
        if number <= last {
            return Err("InvalidPartOrder");
        }
        last = number;
        let (etag, content) = upload.parts.get(&number).ok_or("InvalidPart")?;
        if !part.child("ETag").is_some_and(|wanted| names(wanted, etag)) {
            return Err("InvalidPart");
        }
        if content.len() < min_bytes && index + 1 < named.len() {
            return Err("EntityTooSmall");
        }
        bytes.extend_from_slice(content);
    }
    Ok((bytes, named.len()))
}
