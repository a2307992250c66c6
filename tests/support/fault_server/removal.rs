//! Deleting many objects at once.
//!
//! Source: the Amazon S3 API reference, `DeleteObjects`.

use std::fmt::Write as _;

use super::bucket::names;
use super::operations::Context;
use super::options::Quirk;
use super::reply::Reply;
use super::xml::{Element, tag};

/// Keys of one request at most.
const MAX_KEYS: usize = 1000;

/// `POST ?delete`.
pub(super) fn delete_many(context: &mut Context<'_>) -> Reply {
    if context.options.dialect.has(Quirk::MultiDeleteRejected) {
        return Reply::error(501, "NotImplemented");
    }
    if context.options.dialect.has(Quirk::ContentMd5Needed) && context.request.header("content-md5").is_none()
    {
        return Reply::error(400, "InvalidRequest");
    }
    let document = context.request.text().ok_or_else(|| "not UTF-8".to_owned());
    let document = match document.and_then(Element::parse) {
        Ok(document) if document.name == "Delete" => document,
        Ok(document) => return Reply::malformed(&format!("{} is not Delete", document.name)),
        Err(why) => return Reply::malformed(&why),
    };
    let objects: Vec<_> = document.children("Object").collect();
    if objects.is_empty() || objects.len() > MAX_KEYS || objects.iter().any(|o| o.child("Key").is_none()) {
        return Reply::error(400, "MalformedXML");
    }
    let quiet = document.child("Quiet") == Some("true");
    let mut result = String::new();
    for object in objects {
        let key = object.child("Key").unwrap_or_default();
        let key_tag = tag("Key", key);
        match delete(context, key, object.child("ETag")) {
            Ok(()) if quiet => {}
            Ok(()) => write!(result, "<Deleted>{key_tag}</Deleted>").expect("a string takes everything"),
            Err(code) => {
                let why = tag("Code", code) + &tag("Message", "The fault server says so.");
                write!(result, "<Error>{key_tag}{why}</Error>").expect("a string takes everything");
            }
        }
    }
    Reply::document("DeleteResult", &result)
}

fn delete(context: &mut Context<'_>, key: &str, etag: Option<&str>) -> Result<(), &'static str> {
    if let Some(code) = context.plan.refuses_key(key) {
        return Err(code);
    }
    let found = context.bucket.objects.get(key);
    if let (Some(wanted), Some(object)) = (etag, found)
        && !names(wanted, &object.etag)
    {
        return Err("PreconditionFailed");
    }
    context.bucket.objects.remove(key);
    Ok(())
}
