//! Listings: what is on a page, and where the next one begins.
//!
//! Source: AWS `API_ListObjectsV2`.

use std::collections::BTreeMap;
use std::ops::Bound;

use s3s::dto::{
    CommonPrefix, EncodingType, ListMultipartUploadsOutput, ListObjectsV2Output, MultipartUpload,
    ObjectStorageClass, StorageClass,
};
use s3s::{S3Result, s3_error};

use super::store::{Bucket, Object, hex, size};

type ObjectEntry = s3s::dto::Object;

/// No page has more entries, whatever is asked.
const PAGE_ENTRIES: usize = 1000;

/// Where a page begins.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum After {
    /// Behind this key, be it there or not.
    Key(String),
    /// Behind all keys that begin so.
    Prefix(String),
}

pub(super) struct Query<'a> {
    pub(super) after: After,
    pub(super) delimiter: Option<&'a str>,
    pub(super) most: usize,
    pub(super) prefix: &'a str,
}

#[derive(Default)]
pub(super) struct Page<'a> {
    pub(super) objects: Vec<(&'a str, &'a Object)>,
    /// A common prefix: it stands for the keys that have the delimiter after the prefix.
    pub(super) prefixes: Vec<&'a str>,
    /// Absent at the end.
    pub(super) next: Option<After>,
}

impl After {
    pub(super) fn token(&self) -> String {
        match self {
            Self::Key(key) => format!("k{}", hex(key.as_bytes())),
            Self::Prefix(prefix) => format!("p{}", hex(prefix.as_bytes())),
        }
    }

    /// The key that [`Self::token`] made it from.
    pub(super) fn from_token(token: &str) -> Option<Self> {
        let make = match token.get(..1)? {
            "k" => Self::Key,
            "p" => Self::Prefix,
            _ => return None,
        };
        let digits = token.get(1..)?.as_bytes();
        let bytes = digits.chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
        let after = make(String::from_utf8(bytes.collect::<Option<_>>()?).ok()?);
        (after.token() == token).then_some(after)
    }

    fn text(&self) -> &str {
        match self {
            Self::Key(text) | Self::Prefix(text) => text,
        }
    }

    fn is_before(&self, key: &str) -> bool {
        match self {
            Self::Key(last) => key > last.as_str(),
            Self::Prefix(last) => key > last.as_str() && !key.starts_with(last.as_str()),
        }
    }
}

/// One page, in byte order of keys and prefixes together.
pub(super) fn page<'a>(objects: &'a BTreeMap<String, Object>, query: &Query<'_>) -> Page<'a> {
    let mut page = Page::default();
    let mut last = None;
    let first = query.prefix.max(query.after.text());
    let keys = objects.range::<str, _>((Bound::Included(first), Bound::Unbounded));
    for (key, object) in keys.take_while(|(key, _)| key.starts_with(query.prefix)) {
        let rolled = rolled_up(key, query);
        if !query.after.is_before(key) || rolled.is_some() && rolled == page.prefixes.last().copied() {
            continue;
        }
        if page.objects.len() + page.prefixes.len() == query.most {
            page.next = last;
            break;
        }
        match rolled {
            None => page.objects.push((key, object)),
            Some(rolled) => page.prefixes.push(rolled),
        }
        last =
            Some(rolled.map_or_else(|| After::Key(key.clone()), |rolled| After::Prefix(rolled.to_owned())));
    }
    page
}

/// A key up to and with the first delimiter behind the prefix.
fn rolled_up<'a>(key: &'a str, query: &Query<'_>) -> Option<&'a str> {
    let delimiter = query.delimiter.filter(|delimiter| !delimiter.is_empty())?;
    let found = key[query.prefix.len()..].find(delimiter)?;
    Some(&key[..query.prefix.len() + found + delimiter.len()])
}

/// The number of entries of a page, for the number that was asked for.
pub(super) fn page_entries(asked: Option<i32>) -> S3Result<usize> {
    let asked = usize::try_from(asked.unwrap_or(i32::MAX))
        .map_err(|_| s3_error!(InvalidArgument, "A page cannot have fewer entries than none"))?;
    Ok(asked.min(PAGE_ENTRIES))
}

/// How names are shown in a listing.
pub(super) fn shown(encoding: Option<&EncodingType>) -> S3Result<fn(&str) -> String> {
    match encoding.map(EncodingType::as_str) {
        None => Ok(str::to_owned),
        Some(EncodingType::URL) => Ok(encoded),
        Some(_) => Err(s3_error!(InvalidArgument, "Invalid Encoding Method specified in Request")),
    }
}

pub(super) fn listed(page: &Page<'_>, shown: fn(&str) -> String) -> ListObjectsV2Output {
    let contents = page.objects.iter().map(|(key, object)| ObjectEntry {
        e_tag: Some(object.etag.clone()),
        key: Some(shown(key)),
        last_modified: Some(object.modified.into()),
        size: Some(size(object.bytes.len())),
        storage_class: Some(ObjectStorageClass::from(
            object
                .about
                .storage_class
                .as_ref()
                .map_or(StorageClass::STANDARD, StorageClass::as_str)
                .to_owned(),
        )),
        ..ObjectEntry::default()
    });
    let prefixes = page.prefixes.iter().map(|prefix| CommonPrefix { prefix: Some(shown(prefix)) });
    ListObjectsV2Output {
        common_prefixes: Some(prefixes.collect()),
        contents: Some(contents.collect()),
        is_truncated: Some(page.next.is_some()),
        key_count: i32::try_from(page.objects.len() + page.prefixes.len()).ok(),
        next_continuation_token: page.next.as_ref().map(After::token),
        ..ListObjectsV2Output::default()
    }
}

/// Source: AWS `API_ListMultipartUploads`.
pub(super) fn listed_uploads(
    bucket: &Bucket,
    prefix: &str,
    (key_marker, id_marker): (&str, Option<&str>),
    most: usize,
    shown: fn(&str) -> String,
) -> ListMultipartUploadsOutput {
    let is_after = |key: &str, id: &str| match id_marker {
        None => key > key_marker,
        Some(id_marker) => (key, id) > (key_marker, id_marker),
    };
    let mut found =
        bucket.uploads.iter().filter(|((key, id), _)| key.starts_with(prefix) && is_after(key, id));
    let page: Vec<_> = found.by_ref().take(most).collect();
    let last = page.last().filter(|_| found.next().is_some()).map(|(name, _)| *name);
    let uploads = page.iter().map(|((key, id), upload)| MultipartUpload {
        initiated: Some(upload.initiated.into()),
        key: Some(shown(key)),
        storage_class: Some(StorageClass::from_static(StorageClass::STANDARD)),
        upload_id: Some(id.clone()),
        ..MultipartUpload::default()
    });
    ListMultipartUploadsOutput {
        is_truncated: Some(last.is_some()),
        next_key_marker: last.map(|(key, _)| shown(key)),
        next_upload_id_marker: last.map(|(_, id)| id.clone()),
        uploads: Some(uploads.collect()),
        ..ListMultipartUploadsOutput::default()
    }
}

/// A text as listings have it under `encoding-type=url`: as in a form, where a blank is `+`, except for `/`.
pub(super) fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b' ' => "+".to_owned(),
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'*' | b'-' | b'.' | b'/' | b'_' => {
                char::from(byte).to_string()
            }
            _ => format!("%{byte:02X}"),
        })
        .collect()
}
