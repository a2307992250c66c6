//! The bucket in memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::digest;
use super::options::{Etags, Options, Quota};
use super::rule::Lag;

#[derive(Debug)]
pub(super) struct Bucket {
    pub(super) exists: bool,
    pub(super) objects: BTreeMap<String, Object>,
    pub(super) quota: Quota,
    pub(super) uploads: BTreeMap<String, Upload>,
    /// How often it was listed.
    pub(super) listings: u64,
    tokens: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) bytes: Arc<Vec<u8>>,
    /// As it is sent, with its quotes if it has any.
    pub(super) etag: String,
    /// Headers that are stored and come back.
    pub(super) headers: Vec<(String, String)>,
    pub(super) modified: SystemTime,
    born: Instant,
    born_at_listing: u64,
}

#[derive(Debug)]
pub(super) struct Upload {
    pub(super) key: String,
    pub(super) headers: Vec<(String, String)>,
    pub(super) started: SystemTime,
    /// Entity tag and bytes of each part.
    pub(super) parts: BTreeMap<u32, (String, Arc<Vec<u8>>)>,
}

impl Bucket {
    pub(super) fn new(options: &Options) -> Self {
        Self {
            exists: options.bucket_exists,
            objects: BTreeMap::new(),
            quota: Quota::default(),
            uploads: BTreeMap::new(),
            listings: 0,
            tokens: 0,
        }
    }

    /// Returns `true` if the quota leaves no room for `bytes` more. A replaced object is not subtracted, as many
    /// servers do it.
    pub(super) fn is_full(&self, bytes: usize) -> bool {
        let used = || self.objects.values().map(|object| object.bytes.len()).sum::<usize>();
        self.quota.objects.is_some_and(|most| self.objects.len() >= most)
            || self.quota.bytes.is_some_and(|most| used() + bytes > most)
    }

    /// Stores an object and returns its entity tag.
    pub(super) fn put(
        &mut self,
        options: &Options,
        key: &str,
        bytes: Arc<Vec<u8>>,
        headers: Vec<(String, String)>,
    ) -> String {
        let etag = self.etag(options, &bytes, "");
        self.insert(key, bytes, headers, etag.clone());
        etag
    }

    pub(super) fn insert(
        &mut self,
        key: &str,
        bytes: Arc<Vec<u8>>,
        headers: Vec<(String, String)>,
        etag: String,
    ) {
        // A key is new to listings if it was absent, not if only its content is new.
        let (born, born_at_listing) = self
            .objects
            .get(key)
            .map_or_else(|| (Instant::now(), self.listings), |old| (old.born, old.born_at_listing));
        let modified = SystemTime::now();
        let object = Object { bytes, etag, headers, modified, born, born_at_listing };
        self.objects.insert(key.to_owned(), object);
    }

    /// A new entity tag, with a suffix inside its quotes.
    pub(super) fn etag(&mut self, options: &Options, bytes: &[u8], suffix: &str) -> String {
        let hex = self.token();
        match options.etags {
            Etags::Hex => format!("\"{hex}{suffix}\""),
            Etags::Md5 => format!("\"{}{suffix}\"", digest::hex(&digest::md5(bytes))),
            Etags::Token => format!("\"tag:{}/{}=={suffix}\"", self.tokens, &hex[..5]),
            Etags::Unquoted => format!("{hex}{suffix}"),
            Etags::Weak => format!("W/\"{hex}{suffix}\""),
        }
    }

    /// 32 hex digits that look drawn and are the same in every run.
    pub(super) fn token(&mut self) -> String {
        self.tokens += 1;
        let mix = |seed: u64| {
            let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            (mixed ^ mixed >> 31).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        };
        format!("{:016x}{:016x}", mix(self.tokens), mix(self.tokens ^ 0x5555))
    }
}

impl Object {
    /// Listings do not show it yet.
    pub(super) fn is_hidden(&self, lag: Option<Lag>, listings: u64) -> bool {
        match lag {
            None => false,
            Some(Lag::For(time)) => self.born.elapsed() < time,
            Some(Lag::Listings(wanted)) => listings - self.born_at_listing < wanted,
        }
    }
}

/// One of the tags in a condition is this one. Quotes and `W/` do not count.
pub(super) fn names(condition: &str, etag: &str) -> bool {
    let bare = |tag: &str| tag.trim().trim_start_matches("W/").trim_matches('"').to_owned();
    condition.split(',').any(|tag| bare(tag) == bare(etag))
}
