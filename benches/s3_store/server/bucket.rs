//! The objects of the one bucket, in memory.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use larder::format::Digest;
use larder::format::layout::Key;
use sha2::Digest as _;

/// How many bytes of the SHA-256 of a body its tag has. One of 16 would look like an MD5.
const TAG_BYTES: usize = 20;

#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) body: Bytes,
    /// Seconds since 1970.
    modified: u64,
    tag: [u8; TAG_BYTES],
}

impl Object {
    /// A body with this SHA-256, stored now.
    pub(super) fn new(body: Bytes, hash: &[u8; 32]) -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { body, modified: now.as_secs(), tag: std::array::from_fn(|at| hash[at]) }
    }

    pub(super) fn modified(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.modified)
    }

    /// In quotes.
    pub(super) fn tag(&self) -> String {
        format!("\"{}\"", hex(&self.tag))
    }
}

pub(super) type Objects = BTreeMap<Box<str>, Object>;

/// Puts so many chunks into a store, which all have the same empty body.
pub(super) fn fill(objects: &mut Objects, store: &str, count: u64) {
    let empty = Object::new(Bytes::new(), &sha2::Sha256::digest(b"").into());
    for number in 0..count {
        let key = format!("{store}/{}", Key::Chunk(filler(number)));
        objects.insert(key.into_boxed_str(), empty.clone());
    }
}

/// Adds an object of zeros, which share the memory of the last one of this size.
pub(super) fn add_zeros(objects: &mut Objects, key: &str, bytes: usize) {
    static LAST: Mutex<Option<Object>> = Mutex::new(None);
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let object = last.take().filter(|object| object.body.len() == bytes).unwrap_or_else(|| {
        let body = Bytes::from(vec![0; bytes]);
        let hash = sha2::Sha256::digest(&body).into();
        Object::new(body, &hash)
    });
    objects.insert(key.to_owned().into_boxed_str(), object.clone());
    *last = Some(object);
}

/// The digest of one of the chunks that a store is filled with.
pub(crate) fn filler(number: u64) -> Digest {
    Digest::of(&number.to_le_bytes())
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn from_hex(text: &str) -> Option<String> {
    let pairs = text.as_bytes().chunks(2).map(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok());
    String::from_utf8(pairs.collect::<Option<_>>()?).ok()
}

/// What a listing asks for.
#[derive(Debug, Default)]
pub(super) struct Asked<'a> {
    pub(super) fold: bool,
    pub(super) most: usize,
    pub(super) prefix: &'a str,
    pub(super) start_after: Option<&'a str>,
    pub(super) token: Option<&'a str>,
}

/// A page of a listing.
#[derive(Debug, Default)]
pub(super) struct Page<'a> {
    pub(super) next: Option<String>,
    pub(super) objects: Vec<(&'a str, &'a Object)>,
    pub(super) prefixes: Vec<String>,
}

/// Where a page begins.
enum From {
    After(String),
    At(String),
}

impl From {
    /// A token names the last entry of the page before: an object, or a prefix with all below it.
    fn new(asked: &Asked<'_>) -> Option<Self> {
        if let Some(token) = asked.token {
            let last = from_hex(token.get(1..)?)?;
            return Some(if token.starts_with('p') { Self::At(past(&last)) } else { Self::After(last) });
        }
        let after = asked.start_after.filter(|after| *after >= asked.prefix);
        Some(after.map_or_else(|| Self::At(asked.prefix.to_owned()), |after| Self::After(after.to_owned())))
    }

    fn bound(&self) -> Bound<&str> {
        match self {
            Self::After(key) => Bound::Excluded(key),
            Self::At(key) => Bound::Included(key),
        }
    }
}

/// The first text after all that begin with a prefix that ends in a slash.
fn past(prefix: &str) -> String {
    format!("{}0", prefix.strip_suffix('/').unwrap_or(prefix))
}

/// A page; none for a token that is none.
pub(super) fn list<'a>(objects: &'a Objects, asked: &Asked<'_>) -> Option<Page<'a>> {
    let (mut from, mut page, mut last) = (From::new(asked)?, Page::default(), None);
    let token =
        |last: Option<(char, String)>| last.map(|(kind, key)| format!("{kind}{}", hex(key.as_bytes())));
    loop {
        let mut folded = None;
        for (key, object) in objects.range::<str, _>((from.bound(), Bound::Unbounded)) {
            let Some(rest) = key.strip_prefix(asked.prefix) else { return Some(page) };
            if page.objects.len() + page.prefixes.len() == asked.most {
                // The last object is at hand; only where a prefix is the last, it was noted.
                let object = page.objects.last().map(|(key, _)| ('o', (*key).to_owned()));
                page.next = token(last.or(object)).filter(|_| asked.most > 0);
                return Some(page);
            }
            if let Some(at) = rest.find('/').filter(|_| asked.fold) {
                folded = Some(key[..=asked.prefix.len() + at].to_owned());
                break;
            }
            last = None;
            page.objects.push((key, object));
        }
        let Some(prefix) = folded else { return Some(page) };
        from = From::At(past(&prefix));
        last = Some(('p', prefix.clone()));
        page.prefixes.push(prefix);
    }
}
