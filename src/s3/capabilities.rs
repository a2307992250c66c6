//! Capabilities of a server.

use std::fmt;

use serde_json::{Map, Value};

use crate::error::{Error, ErrorKind, Result};
use crate::wording::{Parts, word_as_json};

/// Support of one feature by a server.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// The server confirmed the operation without doing it.
    Ignored,
    /// The server refuses it.
    Refused,
    /// Not tested.
    Unknown,
    /// The server supports it.
    Yes,
}

impl Support {
    fn word(self) -> &'static str {
        match self {
            Self::Ignored => "ignored",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Yes => "yes",
        }
    }
}

word_as_json!(Support, word);

impl fmt::Display for Support {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ignored => "ignored silently",
            Self::Refused => "refused",
            Self::Unknown => "unknown",
            Self::Yes => "yes",
        })
    }
}

/// A setting of a bucket that endangers a store.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Risk {
    /// Lifecycle rules delete objects of the store, or move them to storage without direct access.
    Expiry,
    /// New objects are locked: nothing can be deleted for a while, and garbage collection fails.
    ObjectLock,
    /// Old versions are kept: deleted and replaced objects stay, and are paid for.
    Versions,
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expiry => "rules of the bucket delete or archive objects of the store",
            Self::ObjectLock => "the bucket locks new objects against deletion",
            Self::Versions => "the bucket keeps old versions, and deleting frees nothing",
        })
    }
}

/// Capabilities of a server, and the settings of the bucket that can do harm.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct S3Capabilities {
    /// Checking a body against its signed hash. Without it, bodies carry an MD5 too.
    pub checks_bodies: Support,
    /// Seconds by which its clock is ahead of the local one; negative if it is behind.
    #[cfg_attr(feature = "serde", serde(rename = "clock_offset"))]
    pub clock_offset_seconds: i64,
    /// Deleting only a given version.
    pub conditional_delete: Support,
    /// Replacing only a given version.
    pub conditional_put: Support,
    /// Copying on the server.
    pub copy: Support,
    /// Storing only if the key is free.
    pub create_only_put: Support,
    /// `true` if lifecycle rules delete objects of the store or move them to a colder storage class.
    pub expires_objects: Option<bool>,
    /// `true` if old versions are kept, and paid for.
    pub keeps_versions: Option<bool>,
    /// Listing in pages, starting after any key.
    pub listing: Support,
    /// `true` if new objects are locked against deletion.
    pub locks_objects: Option<bool>,
    /// Bulk deletion.
    pub multi_delete: Support,
    /// `true` if the entity tags in conditions need quotes.
    pub quoted_tags: bool,
    /// Reading a byte range.
    pub ranges: Support,
}

/// A line for each feature, by the name of its field, then one for each risk.
impl fmt::Display for S3Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Parts::default();
        for (name, support) in self.supports() {
            lines.add(format_args!("{name}: {support}"));
        }
        self.risks().into_iter().for_each(|risk| lines.add(risk));
        f.write_str(&lines.lines())
    }
}

impl Default for S3Capabilities {
    /// An untested server, of which only storing, reading, listing and deleting single objects is expected.
    fn default() -> Self {
        Self::unknown()
    }
}

impl S3Capabilities {
    /// An untested server, as by default.
    pub(crate) fn unknown() -> Self {
        Self {
            checks_bodies: Support::Unknown,
            clock_offset_seconds: 0,
            conditional_delete: Support::Unknown,
            conditional_put: Support::Unknown,
            copy: Support::Unknown,
            create_only_put: Support::Unknown,
            expires_objects: None,
            keeps_versions: None,
            listing: Support::Unknown,
            locks_objects: None,
            multi_delete: Support::Unknown,
            quoted_tags: true,
            ranges: Support::Unknown,
        }
    }

    /// JSON for [`from_json`](Self::from_json). Store it: capabilities change rarely.
    pub fn to_json(&self) -> String {
        let known = |setting: Option<bool>| setting.map_or(Value::Null, Value::Bool);
        let mut object = Map::new();
        for (name, support) in self.supports() {
            object.insert(name.to_owned(), support.word().into());
        }
        object.insert("clock_offset".to_owned(), self.clock_offset_seconds.into());
        object.insert("expires_objects".to_owned(), known(self.expires_objects));
        object.insert("keeps_versions".to_owned(), known(self.keeps_versions));
        object.insert("locks_objects".to_owned(), known(self.locks_objects));
        object.insert("quoted_tags".to_owned(), self.quoted_tags.into());
        Value::Object(object).to_string()
    }

    /// Parses the output of [`to_json`](Self::to_json). Missing fields are untested, unknown fields are ignored.
    ///
    /// # Errors
    /// `InvalidInput` for anything else.
    pub fn from_json(text: &str) -> Result<Self> {
        let refused = || Error::new(ErrorKind::InvalidInput, "read the capabilities of a server");
        let object: Map<String, Value> =
            serde_json::from_str(text).map_err(|error| refused().because(error))?;
        let support = |name: &str| {
            let word = object.get(name).and_then(Value::as_str);
            let all = [Support::Ignored, Support::Refused, Support::Yes];
            all.into_iter().find(|support| word == Some(support.word())).unwrap_or(Support::Unknown)
        };
        let known = |name: &str| object.get(name).and_then(Value::as_bool);
        let clock_offset = object.get("clock_offset").and_then(Value::as_i64).unwrap_or_default();
        Ok(Self {
            checks_bodies: support("checks_bodies"),
            clock_offset_seconds: clock_offset,
            conditional_delete: support("conditional_delete"),
            conditional_put: support("conditional_put"),
            copy: support("copy"),
            create_only_put: support("create_only_put"),
            expires_objects: known("expires_objects"),
            keeps_versions: known("keeps_versions"),
            listing: support("listing"),
            locks_objects: known("locks_objects"),
            multi_delete: support("multi_delete"),
            quoted_tags: known("quoted_tags").unwrap_or(true),
            ranges: support("ranges"),
        })
    }

    fn supports(&self) -> [(&'static str, Support); 8] {
        [
            ("checks_bodies", self.checks_bodies),
            ("conditional_delete", self.conditional_delete),
            ("conditional_put", self.conditional_put),
            ("copy", self.copy),
            ("create_only_put", self.create_only_put),
            ("listing", self.listing),
            ("multi_delete", self.multi_delete),
            ("ranges", self.ranges),
        ]
    }

    /// Settings of the bucket that endanger a store.
    pub fn risks(&self) -> Vec<Risk> {
        let found = [
            (Risk::Expiry, self.expires_objects),
            (Risk::ObjectLock, self.locks_objects),
            (Risk::Versions, self.keeps_versions),
        ];
        found.into_iter().filter(|(_, there)| *there == Some(true)).map(|(risk, _)| risk).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_can_be_stored_and_read_back() {
        let unknown = S3Capabilities::unknown();
        assert_eq!(S3Capabilities::from_json("{}").unwrap(), unknown);
        let mut found = unknown;
        (found.checks_bodies, found.copy, found.ranges) = (Support::Yes, Support::Ignored, Support::Refused);
        (found.clock_offset_seconds, found.quoted_tags) = (-7, false);
        (found.expires_objects, found.keeps_versions) = (Some(true), Some(false));
        assert_eq!(S3Capabilities::from_json(&found.to_json()).unwrap(), found);
        assert!(S3Capabilities::from_json("[]").is_err());
    }
}
