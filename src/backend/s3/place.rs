//! Keys and tags in a bucket, as the lease and the owner mark use them.

use crate::s3::Condition;

/// The keys of the lease and the owner mark, and the form of conditions that the server understands.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) conditional: bool,
    /// The prefixes of all keys with data.
    pub(super) data: [String; 3],
    pub(super) in_use: String,
    pub(super) lease: String,
    pub(super) quoted_tags: bool,
}

impl Place {
    /// The condition that the object has this tag, or does not exist; no condition if the server does not know any.
    pub(super) fn condition(&self, tag: Option<&str>) -> Condition {
        match tag {
            _ if !self.conditional || mutated!("lease-is-written-without-a-condition") => Condition::Always,
            Some(tag) if self.quoted_tags => Condition::Tag(format!("\"{tag}\"")),
            Some(tag) => Condition::Tag(tag.to_owned()),
            None => Condition::Absent,
        }
    }
}

/// Returns `true` for a folder marker.
pub(super) fn is_marker(key: &str, size: u64) -> bool {
    size == 0 && key.ends_with('/')
}

/// The tag without quotes, which are its notation and not a part of it (H106).
pub(super) fn bare(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}
