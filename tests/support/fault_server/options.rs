//! The options of a server.

use std::collections::BTreeSet;

/// How a server is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// The only bucket. Default: `bucket`.
    pub bucket: String,
    /// Default: yes.
    pub bucket_exists: bool,
    pub dialect: Dialect,
    pub etags: Etags,
    /// The document that `GET ?lifecycle` answers. Default: none is set.
    pub lifecycle: Option<String>,
    /// Bytes that every part but the last must have. Default: 5 MiB.
    pub min_part_bytes: usize,
    /// `true` if the setting says that new objects are locked for a day; nothing is locked. Default: off.
    pub object_lock: bool,
    /// Entries of a listing's page at most. Default: 1000.
    pub page: usize,
    /// Default: `us-east-1`.
    pub region: String,
    /// `Enabled`, `Suspended`, or never configured, which is the default. No versions are kept.
    pub versioning: Option<&'static str>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            bucket: "bucket".to_owned(),
            bucket_exists: true,
            dialect: Dialect::default(),
            etags: Etags::Hex,
            lifecycle: None,
            min_part_bytes: 5 << 20,
            object_lock: false,
            page: 1000,
            region: "us-east-1".to_owned(),
            versioning: None,
        }
    }
}

impl Options {
    /// The defaults with these quirks.
    pub fn with(quirks: impl IntoIterator<Item = Quirk>) -> Self {
        Self { dialect: Dialect::new(quirks), ..Self::default() }
    }
}

/// The capacity of the bucket.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quota {
    /// Bytes of all objects at most. Default: any number.
    pub bytes: Option<usize>,
    /// Objects at most. Default: any number.
    pub objects: Option<usize>,
}

/// The form of entity tags. No two puts ever have the same tag, except with [`Etags::Md5`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Etags {
    /// 32 hex digits in quotes, which are no MD5.
    Hex,
    /// The MD5 of the content, as many expect.
    Md5,
    /// A text in quotes.
    Token,
    /// 32 hex digits without quotes.
    Unquoted,
    /// `W/` before a tag in quotes.
    Weak,
}

/// How far a server is from the S3 of the book.
#[derive(Clone, Debug, Default)]
pub struct Dialect(BTreeSet<Quirk>);

impl Dialect {
    pub fn new(quirks: impl IntoIterator<Item = Quirk>) -> Self {
        Self(quirks.into_iter().collect())
    }

    pub(super) fn has(&self, quirk: Quirk) -> bool {
        self.0.contains(&quirk)
    }
}

/// One way in which servers differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Quirk {
    /// A completed multipart upload answers an empty `ETag`.
    CompleteEtagEmpty,
    /// Writes and deletions ignore `If-None-Match` and `If-Match`.
    ConditionsIgnored,
    /// Writes and deletions with `If-None-Match` or `If-Match` get 501.
    ConditionsRejected,
    /// Multi-delete without `Content-MD5` gets 400.
    ContentMd5Needed,
    /// `Expect: 100-continue` is not answered: the server waits for the body.
    ContinueNever,
    /// Listings say `EncodingType` and encode nothing.
    EncodingEchoed,
    /// Encoded listings encode `/` too.
    EncodingOfSlash,
    /// Every answer says `Connection: close` and does it.
    KeepAliveNever,
    /// Listings are in no order of the keys. Pages are still complete.
    ListUnordered,
    /// Multi-delete gets 501.
    MultiDeleteRejected,
    /// A `GET` with `Range` gets the whole object and 200.
    RangeIgnored,
    /// `start-after` has no effect.
    StartAfterIgnored,
    /// A listing with a prefix finds nothing after a `start-after` without it.
    StartAfterOutside,
}
