//! What is answered to a request.
//!
//! Source: AWS, "Amazon S3 API Reference".

use std::fmt::Write as _;
use std::time::SystemTime;

use bytes::Bytes;
use larder::internal::wire::uri::{decode, encode_path};
use sha2::Digest as _;

use super::bucket::{Asked, Object, Objects, hex, list};
use super::request::Request;

/// How many entries a page has, and how many objects one request deletes.
const PAGE: usize = 1000;

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) body: Bytes,
    /// Whole lines.
    pub(super) headers: String,
    pub(super) status: &'static str,
}

impl Answer {
    fn of(status: &'static str) -> Self {
        Self { body: Bytes::new(), headers: String::new(), status }
    }

    fn document(name: &str, content: &str) -> Self {
        let body = format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?><{name}>{content}</{name}>").into();
        Self { body, headers: "content-type: application/xml\r\n".to_owned(), status: OK }
    }

    pub(super) fn error(status: &'static str, code: &str) -> Self {
        let content = format!("<Code>{code}</Code><Message>refused</Message>");
        Self { status, ..Self::document("Error", &content) }
    }
}

/// What is done for a request with this body.
pub(super) fn answer(request: &Request, body: Bytes, objects: &std::sync::Mutex<Objects>) -> Answer {
    let hash: [u8; 32] = sha2::Sha256::digest(&body).into();
    // Nothing that was damaged on the way is stored.
    if request.header("x-amz-content-sha256").is_some_and(|said| said.len() == 64 && said != hex(&hash)) {
        return Answer::error(BAD_REQUEST, "XAmzContentSHA256Mismatch");
    }
    let mut objects = objects.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    match (request.method.as_str(), request.key.as_str()) {
        ("GET", "") => bucket(request, &objects),
        ("POST", "") if request.query("delete").is_some() => delete_many(&body, &mut objects),
        ("HEAD" | "PUT", "") => Answer::of(OK),
        ("GET" | "HEAD", key) => get(request, objects.get(key)),
        ("PUT", key) if request.query("partNumber").is_none() => {
            if let Some(refused) = refused(request, objects.get(key)) {
                return refused;
            }
            if let Some(source) = request.header("x-amz-copy-source") {
                return copy(source, key, &mut objects);
            }
            let object = Object::new(body, &hash);
            let headers = format!("etag: {}\r\n", object.tag());
            objects.insert(key.into(), object);
            Answer { headers, ..Answer::of(OK) }
        }
        ("DELETE", key) => {
            let refused = refused(request, objects.get(key));
            if refused.is_none() {
                objects.remove(key);
            }
            refused.unwrap_or_else(|| Answer::of("204 No Content"))
        }
        _ => Answer::error(NOT_IMPLEMENTED, "NotImplemented"),
    }
}

fn get(request: &Request, object: Option<&Object>) -> Answer {
    let Some(object) = object else { return Answer::error(NOT_FOUND, "NoSuchKey") };
    if request.header("if-match").or(request.header("if-none-match")).is_some() {
        return Answer::error(NOT_IMPLEMENTED, "NotImplemented");
    }
    let (tag, modified) = (object.tag(), http_date(object.modified()));
    let headers = format!("accept-ranges: bytes\r\netag: {tag}\r\nlast-modified: {modified}\r\n");
    let whole = object.body.len();
    match request.header("range") {
        None => Answer { body: object.body.clone(), headers, status: OK },
        Some(range) => match parse_range(range, whole) {
            None => Answer::error("416 Range Not Satisfiable", "InvalidRange"),
            Some((first, last)) => {
                let headers = format!("{headers}content-range: bytes {first}-{last}/{whole}\r\n");
                let body = object.body.slice(first..=last);
                Answer { body, headers, status: "206 Partial Content" }
            }
        },
    }
}

/// The first byte and the last.
fn parse_range(range: &str, length: usize) -> Option<(usize, usize)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let end = length.checked_sub(1)?;
    if first.is_empty() {
        return Some((length.saturating_sub(last.parse().ok().filter(|last| *last > 0)?), end));
    }
    let last = if last.is_empty() { end } else { last.parse::<usize>().ok()?.min(end) };
    let first = first.parse().ok()?;
    (first <= last).then_some((first, last))
}

/// Why the conditions of a change forbid it.
fn refused(request: &Request, object: Option<&Object>) -> Option<Answer> {
    let failed = || Some(Answer::error("412 Precondition Failed", "PreconditionFailed"));
    match (request.header("if-none-match"), request.header("if-match"), object) {
        (Some("*"), None, None) | (None, None, _) => None,
        (None, Some(_), None) if request.method == "PUT" => Some(Answer::error(NOT_FOUND, "NoSuchKey")),
        (Some("*"), None, Some(_)) | (None, Some(_), None) => failed(),
        (None, Some(tag), Some(object)) => {
            if tag == object.tag() {
                None
            } else {
                failed()
            }
        }
        (Some(_), ..) => Some(Answer::error(NOT_IMPLEMENTED, "NotImplemented")),
    }
}

fn copy(source: &str, key: &str, objects: &mut Objects) -> Answer {
    let source = decode(source).unwrap_or_default();
    let from = source.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
    if from == key {
        return Answer::error(BAD_REQUEST, "InvalidRequest");
    }
    let Some(object) = objects.get(from).cloned() else { return Answer::error(NOT_FOUND, "NoSuchKey") };
    let hash = sha2::Sha256::digest(&object.body).into();
    let copied = Object::new(object.body, &hash);
    let modified = iso_date(copied.modified());
    let content = format!("<LastModified>{modified}</LastModified><ETag>{}</ETag>", escape(&copied.tag()));
    objects.insert(key.into(), copied);
    Answer::document("CopyObjectResult", &content)
}

fn delete_many(body: &Bytes, objects: &mut Objects) -> Answer {
    let Ok(text) = str::from_utf8(body) else { return Answer::error(BAD_REQUEST, "MalformedXML") };
    let keys =
        text.split("<Key>").skip(1).map(|rest| rest.split_once("</Key>").map(|(key, _)| unescape(key)));
    let Some(keys) = keys.collect::<Option<Vec<_>>>().filter(|keys| (1..=PAGE).contains(&keys.len())) else {
        return Answer::error(BAD_REQUEST, "MalformedXML");
    };
    let is_quiet = text.contains("<Quiet>true</Quiet>");
    let mut content = String::new();
    for key in keys {
        objects.remove(key.as_str());
        if !is_quiet {
            let _ = write!(content, "<Deleted><Key>{}</Key></Deleted>", escape(&key));
        }
    }
    Answer::document("DeleteResult", &content)
}

/// Listings and settings.
fn bucket(request: &Request, objects: &Objects) -> Answer {
    if request.query("list-type") == Some("2") {
        return listing(request, objects);
    }
    let has = |name| request.query(name).is_some();
    if has("versioning") {
        Answer::document("VersioningConfiguration", "")
    } else if has("object-lock") {
        Answer::error(NOT_FOUND, "ObjectLockConfigurationNotFoundError")
    } else if has("lifecycle") {
        Answer::error(NOT_FOUND, "NoSuchLifecycleConfiguration")
    } else {
        Answer::error(NOT_IMPLEMENTED, "NotImplemented")
    }
}

fn listing(request: &Request, objects: &Objects) -> Answer {
    let fold = match request.query("delimiter") {
        None | Some("") => false,
        Some("/") => true,
        Some(_) => return Answer::error(NOT_IMPLEMENTED, "NotImplemented"),
    };
    let most = request.query("max-keys").map_or(Ok(PAGE), str::parse).unwrap_or(PAGE).min(PAGE);
    let (prefix, token) = (request.query("prefix").unwrap_or_default(), request.query("continuation-token"));
    let asked = Asked { fold, most, prefix, start_after: request.query("start-after"), token };
    let Some(page) = list(objects, &asked) else { return Answer::error(BAD_REQUEST, "InvalidArgument") };
    let encodes = request.query("encoding-type") == Some("url");
    let name = |text: &str| if encodes { encode_path(text) } else { escape(text) };
    let mut content = format!(
        "<Prefix>{}</Prefix><KeyCount>{}</KeyCount><MaxKeys>{most}</MaxKeys><IsTruncated>{}</IsTruncated>",
        name(prefix),
        page.objects.len() + page.prefixes.len(),
        page.next.is_some(),
    );
    if encodes {
        content += "<EncodingType>url</EncodingType>";
    }
    if let Some(next) = &page.next {
        let _ = write!(content, "<NextContinuationToken>{next}</NextContinuationToken>");
    }
    for (key, object) in page.objects {
        let (key, tag, size) = (name(key), escape(&object.tag()), object.body.len());
        let modified = iso_date(object.modified());
        let _ = write!(
            content,
            "<Contents><Key>{key}</Key><LastModified>{modified}</LastModified><ETag>{tag}</ETag><Size>{size}</Size></Contents>"
        );
    }
    for prefix in &page.prefixes {
        let _ = write!(content, "<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", name(prefix));
    }
    Answer::document("ListBucketResult", &content)
}

pub(super) fn http_date(time: SystemTime) -> String {
    formatted(time, "%a, %d %b %Y %H:%M:%S GMT")
}

fn iso_date(time: SystemTime) -> String {
    formatted(time, "%Y-%m-%dT%H:%M:%S.000Z")
}

fn formatted(time: SystemTime, format: &str) -> String {
    let time = jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    time.strftime(format).to_string()
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn unescape(text: &str) -> String {
    let text = text.replace("&lt;", "<").replace("&gt;", ">").replace("&quot;", "\"");
    text.replace("&apos;", "'").replace("&amp;", "&")
}

const OK: &str = "200 OK";
const BAD_REQUEST: &str = "400 Bad Request";
const NOT_FOUND: &str = "404 Not Found";
const NOT_IMPLEMENTED: &str = "501 Not Implemented";
