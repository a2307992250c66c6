//! Pages of listings.

use std::time::SystemTime;

use crate::wire::date::parse_iso8601;
use crate::wire::s3_xml::{LARGE_LIMIT, XmlError, is_true, root};
use crate::wire::uri::decode;

/// A page of a listing.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Prefixes that stand for everything below them, in the order of the page.
    pub common_prefixes: Vec<String>,
    /// Where the next page begins, if the server says so.
    pub next: Option<String>,
    /// Objects, in the order of the page.
    pub objects: Vec<ListedObject>,
    /// Whether this is not the last page.
    pub truncated: bool,
}

/// An object in a listing.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Its tag, as the server writes it.
    pub etag: Option<String>,
    /// Its key.
    pub key: String,
    /// When it was stored.
    pub last_modified: Option<SystemTime>,
    /// Its size in bytes.
    pub size: u64,
    /// Its storage class.
    pub storage_class: Option<String>,
}

/// Reads a page of a listing for which `encoding-type=url` was asked. Names are decoded if the page says that they are encoded.
///
/// # Errors
/// Any. `Missing` for a page that does not say whether it is the last: a listing that may be cut is none (H12).
pub fn parse_listing(document: &[u8]) -> Result<Listing, XmlError> {
    let root = root(document, &["ListBucketResult", "ListBucketResultV2"], LARGE_LIMIT)?;
    let is_encoded = root.value("EncodingType").is_some_and(|kind| kind.eq_ignore_ascii_case("url"));
    let name = |text: &str| {
        // A blank comes as `+` from some servers, and a plus as `%2B` from all that encode.
        let decoded = if is_encoded { decode(&text.replace('+', "%20")) } else { Some(text.to_owned()) };
        decoded.ok_or(XmlError::Missing("key of an object"))
    };
    let objects = root.children("Contents").map(|object| {
        let key = name(object.child("Key").ok_or(XmlError::Missing("key of an object"))?.text())?;
        let size = object.value("Size").and_then(|size| size.parse().ok());
        Ok(ListedObject {
            etag: object.value("ETag").map(str::to_owned),
            key,
            last_modified: object.value("LastModified").and_then(parse_iso8601),
            size: size.ok_or(XmlError::Missing("size of an object"))?,
            storage_class: object.value("StorageClass").map(str::to_owned),
        })
    });
    let prefixes = root.children("CommonPrefixes").flat_map(|prefixes| prefixes.children("Prefix"));
    if root.value("IsTruncated").is_none() {
        return Err(XmlError::Missing("word on whether it is the last page"));
    }
    Ok(Listing {
        objects: objects.collect::<Result<_, _>>()?,
        common_prefixes: prefixes.map(|prefix| name(prefix.text())).collect::<Result<_, _>>()?,
        next: root.value("NextContinuationToken").map(str::to_owned),
        truncated: is_true(&root, "IsTruncated"),
    })
}
