//! The selection of the operation of a request, and the operations of the bucket itself.

use super::bucket::Bucket;
use super::digest;
use super::listing;
use super::multipart;
use super::objects;
use super::options::Options;
use super::plan::Plan;
use super::removal;
use super::reply::Reply;
use super::request::Request;
use super::shared::{Shared, lock};
use super::xml::tag;

/// Bytes of a key at most.
const MAX_KEY: usize = 1024;

/// The context of an operation.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) bucket: &'a mut Bucket,
    pub(super) options: &'a Options,
    pub(super) plan: &'a Plan,
    pub(super) request: &'a Request,
}

/// Runs a request on the bucket.
pub(super) fn execute(shared: &Shared, plan: &Plan, request: &Request) -> Reply {
    if let Some(refusal) = improper(request) {
        return refusal;
    }
    let mut bucket = lock(&shared.bucket);
    let options = &shared.options;
    let mut context = Context { bucket: &mut bucket, options, plan, request };
    if request.bucket.is_empty() {
        return buckets(&context);
    }
    let method = request.head.method.as_str();
    if request.key.is_none() && method == "PUT" && request.head.query.is_empty() {
        return create(&mut context);
    }
    if request.bucket != options.bucket || !context.bucket.exists {
        return Reply::error(404, "NoSuchBucket");
    }
    match &request.key {
        Some(key) => on_key(&mut context, method, key),
        None => on_bucket(&mut context, method),
    }
}

fn on_key(context: &mut Context<'_>, method: &str, key: &str) -> Reply {
    match (method, subresource(context.request)) {
        _ if key.len() > MAX_KEY => Reply::error(400, "KeyTooLongError"),
        ("GET" | "HEAD", None) => objects::get(context, key),
        ("PUT", None) => objects::put(context, key),
        ("DELETE", None) => objects::delete(context, key),
        ("POST", Some("uploads")) => multipart::create(context, key),
        ("PUT", Some("partNumber" | "uploadId")) => multipart::put_part(context, key),
        ("POST", Some("uploadId")) => multipart::complete(context, key),
        ("DELETE", Some("uploadId")) => multipart::abort(context, key),
        (_, Some(_)) => Reply::error(501, "NotImplemented"),
        _ => Reply::error(405, "MethodNotAllowed"),
    }
}

fn on_bucket(context: &mut Context<'_>, method: &str) -> Reply {
    let options = context.options;
    match (method, subresource(context.request)) {
        ("GET", Some("list-type")) if context.request.query("list-type") == Some("2") => {
            listing::list(context)
        }
        ("POST", Some("delete")) => removal::delete_many(context),
        ("GET", Some("uploads")) => multipart::list(context),
        ("GET", Some("versioning")) => {
            let status = options.versioning.map(|status| tag("Status", status));
            Reply::document("VersioningConfiguration", &status.unwrap_or_default())
        }
        ("GET", Some("object-lock")) if options.object_lock => {
            let retention =
                "<Rule><DefaultRetention><Mode>COMPLIANCE</Mode><Days>1</Days></DefaultRetention></Rule>";
            let enabled = tag("ObjectLockEnabled", "Enabled");
            Reply::document("ObjectLockConfiguration", &format!("{enabled}{retention}"))
        }
        ("GET", Some("object-lock")) => Reply::error(404, "ObjectLockConfigurationNotFoundError"),
        ("GET", Some("lifecycle")) => match &options.lifecycle {
            Some(document) => Reply::xml(document.clone()),
            None => Reply::error(404, "NoSuchLifecycleConfiguration"),
        },
        ("GET", Some("location")) => {
            let region = if options.region == "us-east-1" { "" } else { &options.region };
            Reply::document("LocationConstraint", region)
        }
        ("HEAD", None) => Reply::empty(200).header("x-amz-bucket-region", &options.region),
        ("DELETE", None) => remove(context),
        ("GET", None) | (_, Some(_)) => Reply::error(501, "NotImplemented"),
        _ => Reply::error(405, "MethodNotAllowed"),
    }
}

/// Errors of a request that do not depend on its operation.
fn improper(request: &Request) -> Option<Reply> {
    if request.header("transfer-encoding").is_some() {
        return Some(Reply::error(501, "NotImplemented"));
    }
    let has_body = matches!(request.head.method.as_str(), "PUT" | "POST");
    if has_body && request.head.length.is_none() {
        return Some(Reply::error(411, "MissingContentLength"));
    }
    match request.header("x-amz-content-sha256") {
        None | Some("UNSIGNED-PAYLOAD") => {}
        Some(hash) if hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            if !hash.eq_ignore_ascii_case(&digest::sha256_hex(&request.body)) {
                return Some(Reply::error(400, "XAmzContentSHA256Mismatch"));
            }
        }
        Some(hash) if hash.starts_with("STREAMING-") => return Some(Reply::error(501, "NotImplemented")),
        Some(_) => return Some(Reply::error(400, "InvalidArgument")),
    }
    match request.header("content-md5").map(digest::from_base64) {
        None => None,
        Some(Some(sum)) if sum.len() == 16 => {
            (sum != digest::md5(&request.body)).then(|| Reply::error(400, "BadDigest"))
        }
        Some(_) => Some(Reply::error(400, "InvalidDigest")),
    }
}

/// The query parameter that names an operation. One that means nothing here is taken for such a name, too.
fn subresource(request: &Request) -> Option<&str> {
    let beside = |name: &&str| {
        let listing =
            ["continuation-token", "delimiter", "encoding-type", "fetch-owner", "max-keys", "prefix"];
        let uploads = ["key-marker", "max-uploads", "start-after", "upload-id-marker", "x-id"];
        listing.contains(name) || uploads.contains(name) || name.to_ascii_lowercase().starts_with("x-amz-")
    };
    request.query_names().find(|name| !beside(name))
}

fn buckets(context: &Context<'_>) -> Reply {
    if context.request.head.method != "GET" {
        return Reply::error(405, "MethodNotAllowed");
    }
    let name = tag("Name", &context.options.bucket) + "<CreationDate>2026-01-01T00:00:00.000Z</CreationDate>";
    let bucket = if context.bucket.exists { format!("<Bucket>{name}</Bucket>") } else { String::new() };
    Reply::document("ListAllMyBucketsResult", &format!("<Buckets>{bucket}</Buckets>"))
}

fn create(context: &mut Context<'_>) -> Reply {
    let name = &context.request.bucket;
    if *name != context.options.bucket {
        return Reply::error(409, "BucketAlreadyExists");
    }
    if std::mem::replace(&mut context.bucket.exists, true) {
        return Reply::error(409, "BucketAlreadyOwnedByYou");
    }
    Reply::empty(200).header("Location", &format!("/{name}"))
}

fn remove(context: &mut Context<'_>) -> Reply {
    if !context.bucket.objects.is_empty() {
        return Reply::error(409, "BucketNotEmpty");
    }
    context.bucket.exists = false;
    Reply::empty(204)
}
