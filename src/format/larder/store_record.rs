//! Identity of a store, and the features that a program must understand to change it: `.larder/store.json` (D7, H91, H92).
//!
//! | key | type | meaning |
//! |---|---|---|
//! | `features` | array of strings | features that a program must understand before it changes anything |
//! | `pack_bytes` | integer, in a packed store | bytes at which a pack is stored; the store has the feature `packs-1` |
//! | `state` | string, usually absent | `destroying` while the store is being destroyed |
//! | `uuid` | string | 32 hexadecimal digits, drawn once |
//! | `version` | integer | 1 |

use serde::{Deserialize, Serialize};

/// Maximum bytes of the object.
pub(crate) const LIMIT_BYTES: u64 = 64 << 10;

/// Bytes at which a pack is stored, if the record does not say.
const DEFAULT_PACK_BYTES: u64 = 32 << 20;
const DESTROYING: &str = "destroying";
const VERSION: u64 = 1;

/// Chunks are in packs.
const PACKS: &str = "packs-1";
/// Features that this version understands.
const UNDERSTOOD: [&str; 1] = [PACKS];

/// Contents of the object. Unknown keys are lost when it is replaced, which a version that knows them prevents by a feature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct StoreRecord {
    features: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pack_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    state: Option<String>,
    pub(crate) uuid: String,
    version: u64,
}

impl StoreRecord {
    /// Record of a new store with these random bytes.
    pub(crate) fn new(random: [u8; 16]) -> Self {
        let uuid = format!("{:032x}", u128::from_le_bytes(random));
        Self { features: Vec::new(), pack_bytes: None, state: None, uuid, version: VERSION }
    }

    /// The record of a store whose chunks are in packs, which are stored at this size.
    pub(crate) fn packed(mut self, pack_bytes: u64) -> Self {
        self.features.push(PACKS.to_owned());
        self.pack_bytes = Some(pack_bytes);
        self
    }

    /// Bytes at which a pack is stored; `None` if each chunk is an object of its own.
    pub(crate) fn pack_bytes(&self) -> Option<u64> {
        let is_packed = self.features.iter().any(|feature| feature == PACKS);
        is_packed.then(|| self.pack_bytes.unwrap_or(DEFAULT_PACK_BYTES))
    }

    /// The same record with another identity.
    pub(crate) fn renewed(self, random: [u8; 16]) -> Self {
        Self { uuid: Self::new(random).uuid, ..self }
    }

    /// Parses the stored bytes.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        serde_json::from_slice(bytes)
    }

    /// Stored bytes of the record.
    pub(crate) fn encode(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(self)
    }

    /// Marks the store as partly destroyed.
    pub(crate) fn mark_destroying(&mut self) {
        self.state = Some(DESTROYING.to_owned());
    }

    /// Returns `true` if the store is partly destroyed.
    pub(crate) fn is_being_destroyed(&self) -> bool {
        self.state.as_deref() == Some(DESTROYING)
    }

    /// Reason why this version cannot change the store, if any.
    pub(crate) fn write_blocker(&self) -> Option<String> {
        if self.version != VERSION {
            return Some(format!("the store is of version {}, this is {VERSION}", self.version));
        }
        let unknown = self.features.iter().find(|feature| !UNDERSTOOD.contains(&feature.as_str()))?;
        Some(format!("the store needs the feature {unknown:?}, which this version does not know"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_record_has_pinned_bytes_and_reads_back() {
        let record = StoreRecord::new([1; 16]);
        let bytes = record.encode().unwrap();
        let pinned = br#"{"features":[],"uuid":"01010101010101010101010101010101","version":1}"#;
        assert_eq!(bytes, pinned);
        assert_eq!(StoreRecord::parse(&bytes).unwrap(), record);
    }

    /// Proves H92.
    #[test]
    fn an_unknown_feature_or_version_blocks_writes() {
        let parse = |json: &str| StoreRecord::parse(json.as_bytes()).unwrap();
        assert_eq!(parse(r#"{"features":[],"uuid":"a","version":1}"#).write_blocker(), None);
        assert!(parse(r#"{"features":["packs-2"],"uuid":"a","version":1}"#).write_blocker().is_some());
        assert!(parse(r#"{"features":[],"uuid":"a","version":2}"#).write_blocker().is_some());
    }
}
