//! The lease as it is stored, and where.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::s3::lease::names::Names;
use crate::s3::{Condition, Head};

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) beat: u64,
    /// `None` for any; so it is in a lease of an earlier version.
    #[serde(default)]
    pub(super) doubtful: Names,
    #[serde(default)]
    pub(super) doubtful_before: Option<u64>,
    pub(super) doubtful_until: Option<u64>,
    pub(super) epoch: u64,
    pub(super) held: bool,
    pub(super) holder: Holder,
    /// `None` for any, too.
    #[serde(default)]
    pub(super) removing: Names,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    pub(super) host: String,
    pub(super) instance: String,
    pub(super) nonce: String,
}

/// Where the two objects are, and how the server wants to be asked.
#[derive(Clone, Debug)]
pub(in crate::backend::s3) struct Place {
    pub(in crate::backend::s3) conditional: bool,
    /// What all keys of data begin with.
    pub(in crate::backend::s3) data: [String; 2],
    pub(in crate::backend::s3) in_use: String,
    pub(in crate::backend::s3) lease: String,
    pub(in crate::backend::s3) quoted_tags: bool,
    /// The state of the garbage collection.
    pub(in crate::backend::s3) status: String,
}

impl Place {
    /// The condition that what is there has this tag, or that nothing is there, as far as the server knows conditions.
    pub(in crate::backend::s3) fn condition(&self, tag: Option<&str>) -> Condition {
        match tag {
            _ if !self.conditional => Condition::Always,
            Some(tag) if self.quoted_tags => Condition::Tag(format!("\"{tag}\"")),
            Some(tag) => Condition::Tag(tag.to_owned()),
            None => Condition::Absent,
        }
    }
}

/// A lease as it was found.
pub(super) struct Found {
    pub(super) head: Head,
    pub(super) record: Record,
    pub(super) tag: String,
}

impl Found {
    /// How long the server has seen no renewal, by its own clock. `None` if it does not say.
    pub(super) fn age(&self) -> Option<Duration> {
        let (answered, renewed) = (self.head.answered?, self.head.last_modified?);
        Some(answered.duration_since(renewed).unwrap_or_default())
    }
}
