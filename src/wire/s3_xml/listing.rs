//! Pages of listings.

use std::time::SystemTime;

use crate::wire::date::parse_iso8601;
use crate::wire::s3_xml::{LARGE_LIMIT, XmlError, is_truncated, root};
use crate::wire::uri::decode;

/// A page of a listing.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listing {
    /// Common prefixes, in the order of the page.
    pub common_prefixes: Vec<String>,
    /// Number of entries of the page, according to the server.
    pub key_count: Option<u64>,
    /// Maximum number of entries of a page, if the server says so.
    pub max_keys: Option<u64>,
    /// Token of the next page, if the server gives one: verbatim, because some servers put a key here.
    pub next: Option<String>,
    /// The same in answers to version 1 of the call: a key or a prefix.
    pub next_marker: Option<String>,
    /// Objects, in the order of the page.
    pub objects: Vec<ListedObject>,
    /// `true` if another page follows; `None` if the server does not say.
    pub truncated: Option<bool>,
}

/// An object in a listing.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedObject {
    /// Its entity tag, as the server writes it.
    pub etag: Option<String>,
    /// Its key.
    pub key: String,
    /// Time at which it was stored.
    pub last_modified: Option<SystemTime>,
    /// Its size in bytes.
    pub size: u64,
    /// Its storage class.
    pub storage_class: Option<String>,
}

/// Parses a page that was requested with `encoding-type=url`. Names are decoded if the page says that they are encoded.
///
/// # Errors
/// Any. `Missing` if the page says with an unknown word if it is the last, because a listing that may be truncated proves nothing (H12), and
/// for an encoded name that cannot be decoded.
pub fn parse_listing(document: &[u8]) -> Result<Listing, XmlError> {
    let root = root(document, &["ListBucketResult", "ListBucketResultV2"], LARGE_LIMIT)?;
    let is_encoded = root.value("EncodingType").is_some_and(|kind| kind.eq_ignore_ascii_case("url"));
    let name = |text: &str| {
        if text.is_empty() {
            return Err(XmlError::Missing("key of an object"));
        }
        // Some servers encode a blank as `+`; all that encode write a plus as `%2B`.
        let is_plain = !is_encoded || !text.contains(['%', '+']);
        let decoded = if is_plain { Some(text.to_owned()) } else { decode(&text.replace('+', "%20")) };
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
    let next = root.child("NextContinuationToken").map(|token| token.text().to_owned());
    let next_marker = root.child("NextMarker").filter(|marker| !marker.text().is_empty());
    let number = |name| root.value(name).and_then(|number| number.parse().ok());
    Ok(Listing {
        objects: objects.collect::<Result<_, _>>()?,
        common_prefixes: prefixes.map(|prefix| name(prefix.text())).collect::<Result<_, _>>()?,
        key_count: number("KeyCount"),
        max_keys: number("MaxKeys"),
        next: next.filter(|token| !token.is_empty()),
        next_marker: next_marker.map(|marker| name(marker.text())).transpose()?,
        truncated: is_truncated(&root)?,
    })
}
