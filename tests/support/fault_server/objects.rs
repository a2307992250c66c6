//! Operations on one object.
//!
//! Source: the Amazon S3 API reference, `GetObject`, `HeadObject`, `PutObject`, `CopyObject`, `DeleteObject`;
//! RFC 9110 §13 and §14.

use std::ops::Range;
use std::sync::Arc;

use super::alter;
use super::bucket::{Object, names};
use super::date;
use super::operations::Context;
use super::options::Quirk;
use super::reply::Reply;
use super::request::Request;
use super::rule::Flip;
use super::uri;
use super::xml::tag;

/// `GET` and `HEAD`.
pub(super) fn get(context: &Context<'_>, key: &str) -> Reply {
    let request = context.request;
    let Some(object) = context.bucket.objects.get(key) else {
        return Reply::error(404, "NoSuchKey");
    };
    if request.header("if-match").is_some_and(|tags| !is_met(tags, &object.etag)) {
        return Reply::error(412, "PreconditionFailed");
    }
    if request.header("if-none-match").is_some_and(|tags| is_met(tags, &object.etag)) {
        return Reply::empty(304).header("ETag", &object.etag);
    }
    let length = object.bytes.len();
    let range = request.header("range").filter(|_| !context.options.dialect.has(Quirk::RangeIgnored));
    let reply = match range.and_then(|range| parse_range(range, length)) {
        None => Reply { body: Arc::clone(&object.bytes), ..Reply::empty(200) },
        Some(range) if range.is_empty() => {
            let reply = Reply::error(416, "InvalidRange");
            return reply.header("Content-Range", &format!("bytes */{length}"));
        }
        Some(range) => {
            let shown = format!("bytes {}-{}/{length}", range.start, range.end - 1);
            let reply = Reply { body: Arc::new(object.bytes[range].to_vec()), ..Reply::empty(206) };
            reply.header("Content-Range", &shown)
        }
    };
    described(reply, object)
}

/// `PUT`, of a body or by `x-amz-copy-source`.
pub(super) fn put(context: &mut Context<'_>, key: &str) -> Reply {
    if let Some(refusal) = refused(context, key) {
        return refusal;
    }
    if let Some(source) = context.request.header("x-amz-copy-source") {
        return copy(context, source, key);
    }
    let mut bytes = Arc::clone(&context.request.body);
    if context.plan.flips(Flip::Stored) {
        bytes = Arc::new(alter::flipped(&bytes));
    }
    if context.bucket.is_full(bytes.len()) {
        return Reply::error(403, "QuotaExceeded");
    }
    let etag = context.bucket.put(context.options, key, bytes, stored_headers(context.request));
    Reply::empty(200).header("ETag", &etag)
}

/// `DELETE`.
pub(super) fn delete(context: &mut Context<'_>, key: &str) -> Reply {
    if let Some(refusal) = refused(context, key) {
        return refusal;
    }
    context.bucket.objects.remove(key);
    Reply::empty(204)
}

/// Why the conditions of a write or deletion forbid it.
pub(super) fn refused(context: &Context<'_>, key: &str) -> Option<Reply> {
    let dialect = &context.options.dialect;
    let [none, some] = ["if-none-match", "if-match"].map(|name| context.request.header(name));
    if none.or(some).is_none() || dialect.has(Quirk::ConditionsIgnored) {
        return None;
    }
    // A write has no use for tags that must not match, and S3 knows only the star.
    if dialect.has(Quirk::ConditionsRejected) || none.is_some_and(|tags| tags != "*") {
        return Some(Reply::error(501, "NotImplemented"));
    }
    let object = context.bucket.objects.get(key);
    let failed = Reply::error(412, "PreconditionFailed");
    match (object, some) {
        (Some(_), _) if none.is_some() => Some(failed),
        (Some(object), Some(tags)) => (!is_met(tags, &object.etag)).then_some(failed),
        (None, Some(_)) if context.request.head.method == "PUT" => Some(Reply::error(404, "NoSuchKey")),
        (None, Some(_)) => Some(failed),
        (_, None) => None,
    }
}

/// The headers of a request that come back with the object.
pub(super) fn stored_headers(request: &Request) -> Vec<(String, String)> {
    let is_stored = |name: &str| {
        let names = ["cache-control", "content-disposition", "content-encoding", "content-language"];
        names.contains(&name)
            || ["content-type", "expires", "x-amz-storage-class"].contains(&name)
            || name.starts_with("x-amz-meta-")
            || name.starts_with("x-amz-server-side-encryption")
    };
    let headers = request.head.headers.iter();
    headers.filter(|(name, _)| is_stored(&name.to_ascii_lowercase())).cloned().collect()
}

fn copy(context: &mut Context<'_>, source: &str, key: &str) -> Reply {
    let request = context.request;
    let Some(source) = uri::decode(source) else { return Reply::error(400, "InvalidArgument") };
    let Some((bucket, from)) = source.trim_start_matches('/').split_once('/') else {
        return Reply::error(400, "InvalidArgument");
    };
    if bucket != context.options.bucket {
        return Reply::error(404, "NoSuchBucket");
    }
    let Some(object) = context.bucket.objects.get(from).cloned() else {
        return Reply::error(404, "NoSuchKey");
    };
    let wrong = request.header("x-amz-copy-source-if-match").is_some_and(|tags| !is_met(tags, &object.etag));
    let right =
        request.header("x-amz-copy-source-if-none-match").is_some_and(|tags| is_met(tags, &object.etag));
    if wrong || right {
        return Reply::error(412, "PreconditionFailed");
    }
    let replaces = request.header("x-amz-metadata-directive").is_some_and(|value| value == "REPLACE");
    if from == key && !replaces {
        return Reply::error(400, "InvalidRequest");
    }
    if context.bucket.is_full(object.bytes.len()) {
        return Reply::error(403, "QuotaExceeded");
    }
    let headers = if replaces { stored_headers(request) } else { object.headers };
    let etag = context.bucket.put(context.options, key, object.bytes, headers);
    let modified = tag("LastModified", &date::iso(date::now(0)));
    Reply::document("CopyObjectResult", &(modified + &tag("ETag", &etag)))
}

fn described(reply: Reply, object: &Object) -> Reply {
    let mut reply = reply
        .header("ETag", &object.etag)
        .header("Last-Modified", &date::http(object.modified))
        .header("Accept-Ranges", "bytes");
    if !object.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
        reply = reply.header("Content-Type", "binary/octet-stream");
    }
    reply.headers.extend(object.headers.iter().cloned());
    reply
}

fn is_met(tags: &str, etag: &str) -> bool {
    tags == "*" || names(tags, etag)
}

/// The bytes that a `Range` means, none if it cannot be satisfied, and nothing if it is to be ignored.
fn parse_range(range: &str, length: usize) -> Option<Range<usize>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let number =
        |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<usize>().ok())?;
    if first.is_empty() {
        let suffix = number(last)?.min(length);
        return Some(length - suffix..length);
    }
    let first = number(first)?;
    let last = if last.is_empty() { usize::MAX } else { number(last)? };
    if last < first {
        return None;
    }
    let end = last.saturating_add(1).min(length);
    Some(first.min(end)..end)
}
