//! Listings.
//!
//! Source: the Amazon S3 API reference, `ListObjectsV2`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::bucket::Object;
use super::date;
use super::digest;
use super::operations::Context;
use super::options::Quirk;
use super::reply::Reply;
use super::uri;
use super::xml::tag;

/// `GET ?list-type=2`.
pub(super) fn list(context: &mut Context<'_>) -> Reply {
    let Ok(asked) = Asked::new(context) else { return Reply::error(400, "InvalidArgument") };
    let listings = context.bucket.listings;
    context.bucket.listings += 1;
    let mut items = items(context, &asked, listings);
    if let Some(after) = &asked.after {
        let after = asked.rank(after);
        items = items.split_off(&after);
        items.remove(&after);
    }
    let repeats = context.plan.repeats_page();
    let truncated = (items.len() > asked.most && asked.most > 0) || repeats;
    let page: Vec<_> = items.into_iter().take(asked.most).collect();
    let last = page.last().map_or("", |((_, name), _)| name.as_str());

    let text = |name: &str, text: &str| tag(name, &(asked.encoded)(text));
    let mut content = tag("Name", &context.options.bucket) + &text("Prefix", &asked.prefix);
    if let Some(start) = context.request.query("start-after") {
        content += &text("StartAfter", start);
    }
    if let Some(token) = context.request.query("continuation-token") {
        content += &tag("ContinuationToken", token);
    }
    if !asked.delimiter.is_empty() {
        content += &text("Delimiter", &asked.delimiter);
    }
    if asked.encodes {
        content += &tag("EncodingType", "url");
    }
    content += &(tag("KeyCount", &page.len().to_string()) + &tag("MaxKeys", &asked.most.to_string()));
    content += &tag("IsTruncated", &truncated.to_string());
    if truncated {
        content += &tag("NextContinuationToken", &token(last));
    }
    for ((_, name), item) in &page {
        let name = (asked.encoded)(name);
        let item = match item {
            Some(object) => format!("<Contents>{}</Contents>", contents(&name, object)),
            None => format!("<CommonPrefixes>{}</CommonPrefixes>", tag("Prefix", &name)),
        };
        content.write_str(&item).expect("a string takes everything");
    }
    Reply::document("ListBucketResult", &content)
}

/// The place of an item in a listing, then its name.
type Rank = (u64, String);

/// The parameters of a listing.
struct Asked {
    prefix: String,
    delimiter: String,
    start_after: String,
    /// The item after which this page begins.
    after: Option<String>,
    most: usize,
    encodes: bool,
    encoded: fn(&str) -> String,
    outside_finds_nothing: bool,
    unordered: bool,
}

impl Asked {
    fn new(context: &Context<'_>) -> Result<Self, ()> {
        let query = |name: &str| context.request.query(name);
        let dialect = &context.options.dialect;
        let encodes = match query("encoding-type") {
            None => false,
            Some("url") => true,
            Some(_) => return Err(()),
        };
        let encoded: fn(&str) -> String = if !encodes || dialect.has(Quirk::EncodingEchoed) {
            str::to_owned
        } else if dialect.has(Quirk::EncodingOfSlash) {
            |text| uri::encode(text, true)
        } else {
            |text| uri::encode(text, false)
        };
        let most = query("max-keys").map_or(Ok(context.options.page), |most| most.parse().map_err(drop))?;
        let after = query("continuation-token").filter(|_| !context.plan.repeats_page());
        let start_after = query("start-after").filter(|_| !dialect.has(Quirk::StartAfterIgnored));
        Ok(Self {
            prefix: query("prefix").unwrap_or_default().to_owned(),
            delimiter: query("delimiter").unwrap_or_default().to_owned(),
            start_after: start_after.unwrap_or_default().to_owned(),
            after: after.map(|token| from_token(token).ok_or(())).transpose()?,
            most: most.min(context.options.page),
            encodes,
            encoded,
            outside_finds_nothing: dialect.has(Quirk::StartAfterOutside),
            unordered: dialect.has(Quirk::ListUnordered),
        })
    }

    fn rank(&self, name: &str) -> Rank {
        let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let place = if self.unordered { name.bytes().fold(0xcbf2_9ce4_8422_2325, mix) } else { 0 };
        (place, name.to_owned())
    }
}

/// Objects and common prefixes, which have no object.
fn items<'a>(context: &'a Context<'_>, asked: &Asked, listings: u64) -> BTreeMap<Rank, Option<&'a Object>> {
    let mut items = BTreeMap::new();
    for (key, object) in &context.bucket.objects {
        let Some(rest) = key.strip_prefix(&asked.prefix) else { continue };
        let outside = asked.outside_finds_nothing && !asked.start_after.starts_with(&asked.prefix);
        let passed = !asked.start_after.is_empty() && (outside || *key <= asked.start_after);
        if passed || object.is_hidden(context.plan.lag(), listings) {
            continue;
        }
        let group = rest.find(&asked.delimiter).filter(|_| !asked.delimiter.is_empty());
        match group {
            Some(at) => {
                let end = asked.prefix.len() + at + asked.delimiter.len();
                items.insert(asked.rank(&key[..end]), None);
            }
            None => {
                items.insert(asked.rank(key), Some(object));
            }
        }
    }
    items
}

fn contents(name: &str, object: &Object) -> String {
    let stored = object.headers.iter().find(|(name, _)| name.eq_ignore_ascii_case("x-amz-storage-class"));
    tag("Key", name)
        + &tag("LastModified", &date::iso(object.modified))
        + &tag("ETag", &object.etag)
        + &tag("Size", &object.bytes.len().to_string())
        + &tag("StorageClass", stored.map_or("STANDARD", |(_, class)| class))
}

/// A token that only this server understands.
fn token(last: &str) -> String {
    format!("after:{}=", digest::hex(last.as_bytes()))
}

fn from_token(token: &str) -> Option<String> {
    let digits = token.strip_prefix("after:")?.strip_suffix('=')?;
    let percent = digits.as_bytes().chunks(2).fold(String::new(), |mut text, pair| {
        text.push('%');
        text.extend(pair.iter().copied().map(char::from));
        text
    });
    uri::is_proper(&percent).then(|| uri::decode(&percent))?
}
