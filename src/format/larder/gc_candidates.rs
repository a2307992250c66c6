//! GC candidates: unreferenced chunks, and the time at which each was first seen so (D13): `.larder/gc-sightings`.
//!
//! | offset | bytes | field | encoding |
//! |---|---|---|---|
//! | 0 | 8 | magic | `LRDSIGHT` |
//! | 8 | 8 | epoch | of the term in which it was written, little-endian |
//! | 16 + 16·i | 12 | digest | its first twelve bytes; in order, none twice |
//! | 28 + 16·i | 4 | since | seconds since 1970 at which it was first seen unreferenced, by the clock of the store, little-endian, unsigned |
//! | end | 4 | checksum | CRC-32 (ISO-HDLC) of everything before, little-endian |
//!
//! The collector writes the list before it deletes anything, and lists every chunk that it may delete. So the list is also the record of
//! intent: it tells the next holder of the store which chunks late requests may still delete (H16, H17). A writer that publishes a snapshot
//! resets the candidates among its chunks. A list that is missing, damaged or of another length counts as empty: every chunk is then seen
//! unreferenced for the first time (H11, I1).

use std::collections::HashSet;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::format::Digest;

/// Maximum bytes of the object: four million candidates.
pub(crate) const LIMIT_BYTES: u64 = 64 << 20;
/// Maximum number of candidates. Further ones become new candidates in a later run.
pub(crate) const MOST: usize = (64 << 20) / RECORD_BYTES - 2;

const MAGIC: [u8; 8] = *b"LRDSIGHT";
const HEADER_BYTES: usize = 16;
const RECORD_BYTES: usize = 16;

type Record = [u8; RECORD_BYTES];

/// The first bytes of a digest, by which a chunk is known here.
pub(crate) type Prefix = [u8; 12];

/// Candidates of one or more runs, in the order of digests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GcCandidates {
    records: Vec<Record>,
}

impl GcCandidates {
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let Some((body, crc)) = bytes.split_last_chunk::<4>() else { return Self::default() };
        if u32::from_le_bytes(*crc) != crc32fast::hash(body) || !body.starts_with(&MAGIC) {
            return Self::default();
        }
        let (records, rest) = body.get(HEADER_BYTES..).unwrap_or_default().as_chunks::<RECORD_BYTES>();
        let in_order = records.windows(2).all(|pair| pair[0][..12] < pair[1][..12]);
        if !rest.is_empty() || !in_order {
            return Self::default();
        }
        Self { records: records.to_vec() }
    }

    pub(crate) fn encode(&self, epoch: u64) -> Bytes {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.records.len() * RECORD_BYTES + 4);
        bytes.extend(MAGIC);
        bytes.extend(epoch.to_le_bytes());
        bytes.extend(self.records.as_flattened());
        let crc = crc32fast::hash(&bytes);
        bytes.extend(crc.to_le_bytes());
        bytes.into()
    }

    /// Time at which a chunk was first seen unreferenced.
    pub(crate) fn since(&self, digest: &Digest) -> Option<SystemTime> {
        let wanted = &digest.as_bytes()[..12];
        let at = self.records.binary_search_by(|record| record[..12].cmp(wanted)).ok()?;
        let seconds = self.records.get(at)?.last_chunk::<4>().copied().map(u32::from_le_bytes)?;
        Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.into()))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// Resets the candidates with these first bytes: they count as seen unreferenced from this time on.
    pub(crate) fn reset(&mut self, prefixes: &HashSet<Prefix>, since: SystemTime) {
        for record in self.records.iter_mut().filter(|record| prefixes.contains(&prefix_of(record))) {
            reset(record, since);
        }
    }

    /// Resets all candidates.
    pub(crate) fn reset_all(&mut self, since: SystemTime) {
        self.records.iter_mut().for_each(|record| reset(record, since));
    }

    /// Candidates with these times, the earliest for each chunk.
    pub(crate) fn of(mut seen: Vec<(Digest, SystemTime)>) -> Self {
        seen.sort_unstable();
        seen.dedup_by_key(|(digest, _)| *digest);
        let mut records: Vec<_> = seen.iter().map(|(digest, since)| record(digest, *since)).collect();
        // Two that begin alike: neither may count as seen before.
        let twice = |records: &[Record], at: usize| {
            at + 1 < records.len() && records[at][..12] == records[at + 1][..12]
        };
        let ambiguous: Vec<[u8; 12]> = (0..records.len())
            .filter(|at| twice(&records, *at))
            .map(|at| std::array::from_fn(|byte| records[at][byte]))
            .collect();
        records.retain(|record| !ambiguous.iter().any(|prefix| record[..12] == prefix[..]));
        records.truncate(MOST);
        Self { records }
    }
}

/// The first twelve bytes of all digests in it.
pub(crate) fn prefixes(bytes: &[u8]) -> Vec<Prefix> {
    GcCandidates::parse(bytes).records.iter().map(prefix_of).collect()
}

/// The first twelve bytes of a digest.
pub(crate) fn prefix(digest: &Digest) -> Prefix {
    std::array::from_fn(|at| digest.as_bytes()[at])
}

fn prefix_of(record: &Record) -> Prefix {
    std::array::from_fn(|at| record[at])
}

fn record(digest: &Digest, since: SystemTime) -> Record {
    let mut record = [0; RECORD_BYTES];
    record[..12].copy_from_slice(&prefix(digest));
    record[12..].copy_from_slice(&seconds_of(since).to_le_bytes());
    record
}

fn reset(record: &mut Record, since: SystemTime) {
    let before = record.last_chunk().copied().map_or(0, u32::from_le_bytes);
    record[12..].copy_from_slice(&seconds_of(since).max(before).to_le_bytes());
}

/// Rounded up: a candidate never counts as older than it is.
fn seconds_of(since: SystemTime) -> u32 {
    let seconds = since.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    u32::try_from(seconds.saturating_add(1)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_candidate_list_has_exactly_these_bytes() {
        let candidates = GcCandidates::of(vec![(Digest::from_bytes([7; 32]), at(0x0102_0303))]);
        let mut bytes = b"LRDSIGHT\x05\0\0\0\0\0\0\0".to_vec();
        bytes.extend([7; 12]);
        bytes.extend([4, 3, 2, 1]);
        bytes.extend([0xd4, 0xd6, 0x89, 0x5a]);
        assert_eq!(candidates.encode(5)[..32], bytes[..32]);
        assert_eq!(GcCandidates::parse(&candidates.encode(5)), candidates);
    }

    /// Proves H11.
    #[test]
    fn damaged_candidates_count_as_never_seen() {
        let seen = vec![(Digest::of(b"a"), at(1)), (Digest::of(b"b"), at(2))];
        let whole = GcCandidates::of(seen).encode(1);
        for at in 0..whole.len() {
            let mut damaged = whole.to_vec();
            damaged[at] ^= 1;
            assert_eq!(GcCandidates::parse(&damaged), GcCandidates::default(), "byte {at}");
            assert_eq!(GcCandidates::parse(&whole[..at]), GcCandidates::default(), "cut at {at}");
        }
    }

    proptest! {
        #[test]
        fn candidates_are_read_as_they_are_written(seen in prop::collection::btree_map(any::<[u8; 32]>(), 0_u64..1 << 31, 0..50)) {
            let seen: Vec<_> = seen.into_iter().map(|(digest, since)| (Digest::from_bytes(digest), at(since))).collect();
            let parsed = GcCandidates::parse(&GcCandidates::of(seen.clone()).encode(9));
            for (digest, since) in seen {
                prop_assert_eq!(parsed.since(&digest), Some(since + Duration::from_secs(1)));
            }
            prop_assert_eq!(parsed.since(&Digest::of(b"never")), None);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = GcCandidates::parse(&bytes);
        }
    }
}
