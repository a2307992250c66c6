//! Records of an index segment.

use std::ops::Range;

use bytes::Bytes;

use crate::format::Digest;
use crate::format::larder::segment::{RECORD_BYTES, RawRecord, SegmentRecord};

/// Records of one or more slots that were found valid, in order: 44 bytes each.
#[derive(Clone, Debug)]
pub(crate) struct SlotRecords {
    bytes: Bytes,
}

impl SlotRecords {
    /// `bytes` are whole records in order.
    pub(super) fn new(bytes: Bytes) -> Self {
        Self { bytes }
    }

    /// Number of records.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len() / RECORD_BYTES
    }

    /// A record by its number among these.
    pub(crate) fn get(&self, number: usize) -> Option<SegmentRecord> {
        self.raw().get(number).and_then(SegmentRecord::parse)
    }

    /// Number of the first record of this digest or a later one.
    pub(crate) fn position(&self, digest: &Digest) -> usize {
        self.raw().partition_point(|record| record[..32] < digest.as_bytes()[..])
    }

    /// All records.
    pub(crate) fn iter(&self) -> impl Iterator<Item = SegmentRecord> {
        self.raw().iter().filter_map(SegmentRecord::parse)
    }

    /// The records of a chunk among those with these numbers.
    pub(crate) fn find_in(
        &self,
        numbers: Range<usize>,
        digest: &Digest,
    ) -> impl Iterator<Item = SegmentRecord> {
        let records = self.raw().get(numbers).unwrap_or_default();
        let first = records.partition_point(|record| record[..32] < digest.as_bytes()[..]);
        let behind = records.get(first..).unwrap_or_default().iter();
        behind.take_while(|record| record[..32] == digest.as_bytes()[..]).filter_map(SegmentRecord::parse)
    }

    fn raw(&self) -> &[RawRecord] {
        self.bytes.as_chunks().0
    }
}
