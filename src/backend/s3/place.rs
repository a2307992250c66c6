//! The keys of a store in a bucket that belong to no object of its layout, and tags as this crate compares them.

use crate::s3::Condition;

/// Where the two objects are, and how the server wants to be asked.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) conditional: bool,
    /// What all keys of data begin with.
    pub(super) data: [String; 2],
    pub(super) in_use: String,
    pub(super) lease: String,
    pub(super) quoted_tags: bool,
}

impl Place {
    /// The condition that what is there has this tag, or that nothing is there, as far as the server knows conditions.
    pub(super) fn condition(&self, tag: Option<&str>) -> Condition {
        match tag {
            _ if !self.conditional => Condition::Always,
            Some(tag) if self.quoted_tags => Condition::Tag(format!("\"{tag}\"")),
            Some(tag) => Condition::Tag(tag.to_owned()),
            None => Condition::Absent,
        }
    }
}

/// Returns `true` for an empty object that stands for a folder.
pub(super) fn is_marker(key: &str, size: u64) -> bool {
    size == 0 && key.ends_with('/')
}

/// Quotes are how a tag is written, not a part of it (H106).
pub(super) fn bare(etag: &str) -> &str {
    etag.trim().trim_start_matches("W/").trim_matches('"')
}
