//! The lease of a store in a bucket: `.larder/lease`, a JSON object.
//!
//! | key | type | meaning |
//! |---|---|---|
//! | `beat` | integer | grows with every renewal, so that no two contents of the lease are equal |
//! | `doubtful` | array of strings or null | names that requests of an earlier holder may still delete until `doubtful_until`; null for any name |
//! | `doubtful_before` | integer or null | if `doubtful` is null: Unix seconds by the clock of the server; snapshots with a later time are not in doubt |
//! | `doubtful_until` | integer or null | Unix seconds by the clock of the server: until then, requests of an earlier holder may still be executed |
//! | `epoch` | integer | grows whenever the lease is taken, and before chunks are deleted |
//! | `held` | boolean | `false` after the holder released it |
//! | `holder` | object | `host`, `instance` and `nonce` of the last holder, all strings |
//! | `removing` | array of strings or null | names that the holder may be deleting; null for any name |
//! | `returning` | object of integers | snapshots whose manifest a request may still store, with the end in Unix seconds by the clock of the server; `*` for any snapshot, `?` for those that a holder who died was storing |
//! | `segments` | object of integers | index segments that were stored on the last day, with the time in Unix seconds by the clock of the server |
//!
//! `doubtful`, `doubtful_before` and `removing` are missing in a lease of an earlier version, and then null. `returning` and `segments` are
//! missing if they are empty. Unknown keys are ignored. A
//! *name* is a snapshot, or the path of the owner or the notes of a group, of a namespace marker, or of the identity of the store.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

/// Maximum size of the object in bytes.
pub(crate) const LIMIT_BYTES: u64 = 64 << 10;

/// A set of names, or `None` for any name.
pub(crate) type Names = Option<BTreeSet<String>>;

/// The contents of the lease.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) beat: u64,
    #[serde(default, rename = "doubtful")]
    pub(crate) in_doubt: Names,
    #[serde(default, rename = "doubtful_before")]
    pub(crate) in_doubt_before: Option<u64>,
    #[serde(rename = "doubtful_until")]
    pub(crate) in_doubt_until: Option<u64>,
    pub(crate) epoch: u64,
    pub(crate) held: bool,
    pub(crate) holder: Holder,
    #[serde(default)]
    pub(crate) removing: Names,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) returning: BTreeMap<String, u64>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) segments: BTreeMap<String, u64>,
}

/// The process that took the lease last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Holder {
    /// Host name for people.
    pub(crate) host: String,
    /// The instance of the local state, or a random number.
    pub(crate) instance: String,
    /// A random number of the process.
    pub(crate) nonce: String,
}

impl Record {
    /// # Errors
    /// The error of a text that is not the JSON of a lease.
    pub(crate) fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }

    /// # Errors
    /// None for the types of its fields.
    pub(crate) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        serde_json::to_vec(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: &str = concat!(
        r#"{"beat":3,"doubtful":["host/a/owner"],"doubtful_before":null,"doubtful_until":1752502802,"epoch":7,"held":true,"#,
        r#""holder":{"host":"h","instance":"i","nonce":"n"},"removing":null}"#
    );

    fn record() -> Record {
        Record {
            beat: 3,
            in_doubt: Some(["host/a/owner".to_owned()].into()),
            in_doubt_before: None,
            in_doubt_until: Some(1_752_502_802),
            epoch: 7,
            held: true,
            holder: Holder { host: "h".to_owned(), instance: "i".to_owned(), nonce: "n".to_owned() },
            removing: None,
            returning: BTreeMap::new(),
            segments: BTreeMap::new(),
        }
    }

    #[test]
    fn the_stored_form_of_a_lease_is_fixed() {
        assert_eq!(record().encode().unwrap(), STORED.as_bytes());
        assert_eq!(Record::parse(STORED.as_bytes()).unwrap(), record());
        let late = Record { returning: BTreeMap::from([("host/a/1".to_owned(), 5)]), ..record() };
        let stored = STORED.replace(r#""removing":null"#, r#""removing":null,"returning":{"host/a/1":5}"#);
        assert_eq!(late.encode().unwrap(), stored.as_bytes());
        assert_eq!(Record::parse(stored.as_bytes()).unwrap(), late);
    }

    #[test]
    fn a_lease_of_an_earlier_version_names_nothing() {
        let old = r#"{"beat":0,"doubtful_until":null,"epoch":9,"held":false,"holder":{"host":"h","instance":"i","nonce":"n"},"more":1}"#;
        let record = Record::parse(old.as_bytes()).unwrap();
        assert_eq!((record.in_doubt, record.in_doubt_before, record.removing), (None, None, None));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = Record::parse(&bytes);
        }
    }
}
