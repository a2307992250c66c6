//! Small files of a datastore: the result of the last garbage collection, and the owner of a group.
//!
//! The notes of a group are a third such file: plain UTF-8 text, without an added newline.

use std::fmt;

use thiserror::Error;

use crate::error::ParseError;
use crate::format::json::{Json, Object};
use crate::format::name::AuthId;
use crate::wording::{Count, Size};

/// Result of a garbage collection, as stored in `.gc-status`.
///
/// JSON without white space. The keys are the field names with `-` for `_`, in the order given here.
/// Reading requires all numbers and ignores unknown keys.
/// Source: PBS datastore format §9.7.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GcStatus {
    /// Task id of the collection; [`Upid`](crate::format::upid::Upid) as text.
    pub upid: Option<String>,
    /// Index files read.
    pub index_file_count: u64,
    /// Total size in bytes of the archives of all indexes.
    pub index_data_bytes: u64,
    /// Stored bytes of the referenced chunks.
    pub disk_bytes: u64,
    /// Number of referenced chunks.
    pub disk_chunks: u64,
    /// Stored bytes of the removed chunks.
    pub removed_bytes: u64,
    /// Number of removed chunks.
    pub removed_chunks: u64,
    /// Stored bytes of unreferenced chunks that are too young to remove.
    pub pending_bytes: u64,
    /// Number of unreferenced chunks that are too young to remove.
    pub pending_chunks: u64,
    /// Number of quarantined chunks that were removed.
    pub removed_bad: u64,
    /// Number of quarantined chunks that stay.
    pub still_bad: u64,
    /// The packs of a packed store. PBS does not know this field, and sees no packed store.
    pub packs: Option<GcPackStatus>,
    /// Statistics of the digest cache; PBS writes them since mid-2025.
    #[cfg_attr(feature = "serde", serde(skip))]
    pub(crate) cache_stats: Option<GcCacheStats>,
}

/// The packs of a packed store after a garbage collection, as stored in `.gc-status` below the key `larder-packs`.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct GcPackStatus {
    /// Bytes of the packs.
    pub bytes: u64,
    /// Number of packs.
    pub packs: u64,
    /// Number of segments of the index.
    pub segments: u64,
    /// Bytes of packs that nothing in use takes up.
    pub unused_bytes: u64,
}

/// One line.
impl fmt::Display for GcPackStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (packs, segments) = (Count(self.packs, "pack"), Count(self.segments, "segment"));
        write!(f, "{packs}, {}, {} unused; {segments}", Size(self.bytes), Size(self.unused_bytes))
    }
}

/// Hits and misses of the digest cache of a garbage collection.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct GcCacheStats {
    /// Number of hits.
    pub(crate) hits: u64,
    /// Number of misses.
    pub(crate) misses: u64,
}

/// One line.
impl fmt::Display for GcStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (indexes, removed) = (Count(self.index_file_count, "index"), Count(self.removed_chunks, "chunk"));
        let (in_use, bytes) = (Count(self.disk_chunks, "chunk"), Size(self.disk_bytes));
        write!(f, "{indexes} of {}; in use: {in_use}, {bytes}; ", Size(self.index_data_bytes))?;
        write!(f, "removed: {removed}, {}; ", Size(self.removed_bytes))?;
        write!(f, "pending: {}, {}", Count(self.pending_chunks, "chunk"), Size(self.pending_bytes))
    }
}

/// The bytes are not the result of a garbage collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not the status of a garbage collection")]
pub(crate) struct ParseGcStatusError;

impl GcStatus {
    /// Parses `.gc-status`. PBS treats an unreadable file as a collection that found nothing.
    ///
    /// # Errors
    /// If it is not JSON, a number is missing, or a value has the wrong type.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, ParseGcStatusError> {
        let Ok(Json::Object(object)) = Json::parse(json) else {
            return Err(ParseGcStatusError);
        };
        let upid = match object.get("upid") {
            None | Some(Json::Null) => None,
            Some(upid) => Some(upid.as_str().ok_or(ParseGcStatusError)?.to_owned()),
        };
        let cache_stats = match object.get("cache-stats") {
            None | Some(Json::Null) => None,
            Some(Json::Object(cache)) => {
                Some(GcCacheStats { hits: number(cache, "hits")?, misses: number(cache, "misses")? })
            }
            Some(_) => return Err(ParseGcStatusError),
        };
        let packs = match object.get("larder-packs") {
            None | Some(Json::Null) => None,
            Some(Json::Object(packs)) => Some(GcPackStatus {
                bytes: number(packs, "bytes")?,
                packs: number(packs, "packs")?,
                segments: number(packs, "segments")?,
                unused_bytes: number(packs, "unused-bytes")?,
            }),
            Some(_) => return Err(ParseGcStatusError),
        };
        let mut status = Self { upid, packs, cache_stats, ..Self::default() };
        for (name, slot) in status.numbers() {
            *slot = number(&object, name)?;
        }
        Ok(status)
    }

    /// Encodes `.gc-status`.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let upid = self.upid.as_deref().map_or(Json::Null, Json::from);
        let mut fields = vec![format!("\"upid\":{upid}")];
        fields.extend(self.clone().numbers().map(|(name, number)| format!("\"{name}\":{number}")));
        if let Some(GcCacheStats { hits, misses }) = self.cache_stats {
            fields.push(format!("\"cache-stats\":{{\"hits\":{hits},\"misses\":{misses}}}"));
        }
        if let Some(GcPackStatus { bytes, packs, segments, unused_bytes }) = self.packs {
            fields.push(format!(
                "\"larder-packs\":{{\"bytes\":{bytes},\"packs\":{packs},\"segments\":{segments},\"unused-bytes\":{unused_bytes}}}"
            ));
        }
        format!("{{{}}}", fields.join(",")).into_bytes()
    }

    fn numbers(&mut self) -> [(&'static str, &mut u64); 10] {
        [
            ("index-file-count", &mut self.index_file_count),
            ("index-data-bytes", &mut self.index_data_bytes),
            ("disk-bytes", &mut self.disk_bytes),
            ("disk-chunks", &mut self.disk_chunks),
            ("removed-bytes", &mut self.removed_bytes),
            ("removed-chunks", &mut self.removed_chunks),
            ("pending-bytes", &mut self.pending_bytes),
            ("pending-chunks", &mut self.pending_chunks),
            ("removed-bad", &mut self.removed_bad),
            ("still-bad", &mut self.still_bad),
        ]
    }
}

fn number(object: &Object, name: &str) -> Result<u64, ParseGcStatusError> {
    match object.get(name) {
        Some(Json::Unsigned(number)) => Ok(*number),
        _ => Err(ParseGcStatusError),
    }
}

/// Encodes the file `owner` of a group: the auth id and a newline. Source: PBS datastore format §1.5.
pub(crate) fn encode_owner(owner: &AuthId) -> Vec<u8> {
    format!("{owner}\n").into_bytes()
}

/// Parses the file `owner` of a group: its first line, without trailing white space.
///
/// # Errors
/// If the text is no auth id. An empty file is damaged; it does not give the group to every user (H45).
pub(crate) fn decode_owner(file: &[u8]) -> Result<AuthId, ParseError> {
    let line = file.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let not_text = |_| ParseError::new("not an auth id: it is not text in UTF-8");
    std::str::from_utf8(line).map_err(not_text)?.trim_end().parse()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Written by PBS 4.2.3.
    const BY_PBS: &str = r#"{"upid":"UPID:vm:000073EF:0005751A:00000000:6B043380:garbage_collection:fix\\x2dA:root@pam:","index-file-count":27,"index-data-bytes":80683126,"disk-bytes":1637922,"disk-chunks":83,"removed-bytes":0,"removed-chunks":0,"pending-bytes":0,"pending-chunks":0,"removed-bad":0,"still-bad":0,"cache-stats":{"hits":61,"misses":82}}"#;

    #[test]
    fn a_pbs_status_is_read_and_written_back_byte_for_byte() {
        let status = GcStatus::parse(BY_PBS.as_bytes()).unwrap();
        assert_eq!((status.index_file_count, status.disk_chunks, status.still_bad), (27, 83, 0));
        assert_eq!(status.cache_stats, Some(GcCacheStats { hits: 61, misses: 82 }));
        assert_eq!(String::from_utf8(status.to_json()).unwrap(), BY_PBS);
        let upid = status.upid.unwrap().parse::<crate::format::upid::Upid>().unwrap();
        assert_eq!(upid.start_epoch(), 0x6B04_3380);
    }

    #[test]
    fn a_status_requires_only_its_numbers() {
        let parse = |text: String| GcStatus::parse(text.as_bytes());
        let none =
            parse(BY_PBS.replace(",\"cache-stats\":{\"hits\":61,\"misses\":82}", ",\"new\":[1]")).unwrap();
        assert_eq!(none.cache_stats, None);
        for (from, to) in [
            ("\"still-bad\":0", "\"still_bad\":0"),
            ("\"still-bad\":0", "\"still-bad\":\"0\""),
            ("\"still-bad\":0", "\"still-bad\":-1"),
            ("\"still-bad\":0", "\"still-bad\":0,\"still-bad\":0"),
            ("\"misses\":82", "\"miss\":82"),
            ("\"cache-stats\":", "\"larder-packs\":[1],\"cache-stats\":"),
            ("\"cache-stats\":", "\"larder-packs\":{\"bytes\":1},\"cache-stats\":"),
            ("\"upid\":\"", "\"upid\":1,\"x\":\""),
        ] {
            assert_eq!(parse(BY_PBS.replace(from, to)), Err(ParseGcStatusError), "{to}");
        }
        assert_eq!(GcStatus::parse(b""), Err(ParseGcStatusError));
        assert!(GcStatus::default().to_json().starts_with(b"{\"upid\":null,\"index-file-count\":0,"));
    }

    #[test]
    fn an_owner_is_the_first_line() {
        let owner: AuthId = "user1@pbs!tok1".parse().unwrap();
        assert_eq!(encode_owner(&owner), b"user1@pbs!tok1\n");
        for file in ["user1@pbs!tok1\n", "user1@pbs!tok1", "user1@pbs!tok1 \t\r\nroot@pam\n"] {
            assert_eq!(decode_owner(file.as_bytes()).as_ref(), Ok(&owner), "{file:?}");
        }
    }

    /// Proves H45.
    #[test]
    fn an_empty_owner_is_an_error() {
        for file in ["", "\n", " \n", "\nroot@pam\n"] {
            let empty = "".parse::<AuthId>().unwrap_err();
            assert_eq!(decode_owner(file.as_bytes()), Err(empty), "{file:?}");
        }
        assert!(decode_owner(b" root@pam\n").is_err());
        assert!(decode_owner(b"r\xff@pam\n").is_err());
    }

    proptest! {
        #[test]
        fn statuses_are_read_as_they_are_written(upid: Option<String>, numbers: [u64; 10], cache: Option<(u64, u64)>, packs: Option<[u64; 4]>) {
            let mut status = GcStatus { upid, ..GcStatus::default() };
            for ((_, slot), number) in status.numbers().into_iter().zip(numbers) {
                *slot = number;
            }
            status.packs = packs.map(|[bytes, packs, segments, unused_bytes]| GcPackStatus { bytes, packs, segments, unused_bytes });
            status.cache_stats = cache.map(|(hits, misses)| GcCacheStats { hits, misses });
            prop_assert_eq!(GcStatus::parse(&status.to_json()), Ok(status));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = GcStatus::parse(&bytes);
            let _ = decode_owner(&bytes);
        }
    }
}
