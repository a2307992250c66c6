//! Index segments in the making.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};

use crate::format::Digest;
use crate::format::larder::pack::name::PackName;
use crate::format::larder::pack::{MAX_PACK_BYTES, PackEntry};
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::{
    Exclusion, Layout, MAGIC, MAX_EXCLUSIONS, MAX_PACKS, MAX_RECORDS, MAX_REPLACED, RawRecord, SegmentPack,
    SegmentRecord, SegmentWriteError, VERSION,
};

/// A segment that grows, in any order: 44 bytes a record.
#[derive(Debug)]
pub(crate) struct SegmentBuilder {
    dropped: BTreeSet<PackName>,
    exclusions: Vec<Exclusion>,
    name: SegmentName,
    numbers: HashMap<PackName, u32>,
    packs: Vec<SegmentPack>,
    records: Vec<RawRecord>,
    replaced: BTreeSet<SegmentName>,
}

/// A complete segment.
#[derive(Clone, Debug)]
pub(crate) struct FinishedSegment {
    /// Its name.
    pub(crate) name: SegmentName,
    /// Its bytes, in order.
    pub(crate) parts: Vec<Bytes>,
}

/// A pack that a [`SegmentBuilder`] knows. It has no meaning for another builder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackNumber(u32);

impl SegmentBuilder {
    /// A segment without records.
    pub(crate) fn new(name: SegmentName) -> Self {
        Self {
            dropped: BTreeSet::new(),
            exclusions: Vec::new(),
            name,
            numbers: HashMap::new(),
            packs: Vec::new(),
            records: Vec::new(),
            replaced: BTreeSet::new(),
        }
    }

    /// Names a segment that this one replaces: this one has all its records that are still of use.
    pub(crate) fn replace(&mut self, name: SegmentName) {
        if name != self.name {
            self.replaced.insert(name);
        }
    }

    /// Names a pack that the collector dropped: no copy in it counts.
    pub(crate) fn drop_pack(&mut self, name: PackName) {
        self.dropped.insert(name);
    }

    /// Says that a copy does not count. The same may be said twice.
    ///
    /// # Errors
    /// `Misplaced` if the copy cannot lie in a pack.
    pub(crate) fn exclude(&mut self, exclusion: Exclusion) -> Result<(), SegmentWriteError> {
        if !exclusion.entry.fits(MAX_PACK_BYTES) {
            return Err(SegmentWriteError::Misplaced);
        }
        self.exclusions.push(exclusion);
        Ok(())
    }

    /// Adds a pack, unless it was added before.
    ///
    /// # Errors
    /// `Conflict` if it has another size or class now; `Misplaced` if no pack has this size; `TooLarge`.
    pub(crate) fn add_pack(&mut self, pack: SegmentPack) -> Result<PackNumber, SegmentWriteError> {
        if let Some(number) = self.numbers.get(&pack.name) {
            let is_same = self.packs.get(*number as usize) == Some(&pack);
            return if is_same { Ok(PackNumber(*number)) } else { Err(SegmentWriteError::Conflict) };
        }
        let number = u32::try_from(self.packs.len()).ok().filter(|number| *number < MAX_PACKS);
        let number = number.ok_or(SegmentWriteError::TooLarge)?;
        if !pack.is_valid() {
            return Err(SegmentWriteError::Misplaced);
        }
        self.numbers.insert(pack.name, number);
        self.packs.push(pack);
        Ok(PackNumber(number))
    }

    /// Adds a chunk in a pack. The same record may come twice.
    ///
    /// # Errors
    /// `Misplaced`, `TooLarge`.
    pub(crate) fn push(&mut self, pack: PackNumber, entry: PackEntry) -> Result<(), SegmentWriteError> {
        if self.records.len() >= MAX_RECORDS as usize {
            return Err(SegmentWriteError::TooLarge);
        }
        let place = self.packs.get(pack.0 as usize).filter(|pack| entry.fits(pack.bytes));
        place.ok_or(SegmentWriteError::Misplaced)?;
        self.records.push(SegmentRecord { entry, pack: pack.0 }.encode());
        Ok(())
    }

    /// Ends the segment. Records are not copied.
    ///
    /// # Errors
    /// `Conflict` if a chunk has two places in one pack; `TooLarge` for too many exclusions or replaced segments.
    pub(crate) fn finish(mut self) -> Result<FinishedSegment, SegmentWriteError> {
        self.sort_packs();
        self.records.sort_unstable_by(compare);
        self.records.dedup();
        self.exclusions.sort_unstable_by_key(Exclusion::order);
        self.exclusions.dedup_by_key(|exclusion| exclusion.order());
        if self.records.windows(2).any(|pair| compare(&pair[0], &pair[1]).is_eq()) {
            return Err(SegmentWriteError::Conflict);
        }
        let head = self.head()?;
        let records = self.records.into_flattened();
        let checksum = Sha256::new().chain_update(&head).chain_update(&records).finalize();
        let parts = vec![head.into(), records.into(), Bytes::copy_from_slice(&checksum)];
        Ok(FinishedSegment { name: self.name, parts })
    }

    /// Sorts the packs by name, and changes their numbers in the records.
    fn sort_packs(&mut self) {
        if self.packs.is_sorted_by_key(|pack| pack.name) {
            return;
        }
        self.packs.sort_unstable_by_key(|pack| pack.name);
        let mut numbers = vec![0; self.packs.len()];
        for (number, pack) in (0_u32..).zip(&self.packs) {
            let before = self.numbers.get(&pack.name).map_or(0, |before| *before as usize);
            if let Some(slot) = numbers.get_mut(before) {
                *slot = number;
            }
        }
        for record in &mut self.records {
            let number = numbers.get(pack_of(record) as usize).copied().unwrap_or(0);
            record[32..36].copy_from_slice(&number.to_le_bytes());
        }
    }

    fn head(&self) -> Result<Vec<u8>, SegmentWriteError> {
        let count = |len: usize, most: u32| u32::try_from(len).ok().filter(|count| *count <= most);
        let layout = Layout {
            packs: count(self.packs.len(), MAX_PACKS).ok_or(SegmentWriteError::TooLarge)?,
            records: count(self.records.len(), MAX_RECORDS).ok_or(SegmentWriteError::TooLarge)?,
            dropped: count(self.dropped.len(), MAX_PACKS).ok_or(SegmentWriteError::TooLarge)?,
            exclusions: count(self.exclusions.len(), MAX_EXCLUSIONS).ok_or(SegmentWriteError::TooLarge)?,
            replaced: count(self.replaced.len(), MAX_REPLACED).ok_or(SegmentWriteError::TooLarge)?,
        };
        let mut head = Vec::with_capacity(layout.records_offset());
        head.extend(MAGIC);
        head.extend(VERSION.to_le_bytes());
        encode_name(&self.name, &mut head);
        head.extend(layout.packs.to_le_bytes());
        head.extend(layout.replaced.to_le_bytes());
        head.extend(layout.records.to_le_bytes());
        head.extend(layout.dropped.to_le_bytes());
        head.extend(layout.exclusions.to_le_bytes());
        let checksum = crc32fast::hash(&head);
        head.extend(checksum.to_le_bytes());
        self.packs.iter().for_each(|pack| pack.encode(&mut head));
        self.replaced.iter().for_each(|name| encode_name(name, &mut head));
        for PackName { session, n } in &self.dropped {
            encode_name(&SegmentName { session: *session, n: *n }, &mut head);
        }
        self.exclusions.iter().for_each(|exclusion| exclusion.encode(&mut head));
        let (mut rest, mut end) = (&self.records[..], 0);
        for slot in 0..layout.slots() {
            let records =
                rest.partition_point(|record| layout.slot_of_mark(digest_of(record).mark()) <= slot);
            let (records, behind) = rest.split_at_checked(records).unwrap_or((rest, &[]));
            end += u32::try_from(records.len()).unwrap_or(u32::MAX);
            head.extend(end.to_le_bytes());
            head.extend(crc32fast::hash(records.as_flattened()).to_le_bytes());
            rest = behind;
        }
        let checksum = Digest::of(&head);
        head.extend(checksum.as_bytes());
        Ok(head)
    }
}

fn encode_name(name: &SegmentName, to: &mut Vec<u8>) {
    to.extend(name.session.as_bytes());
    to.extend(name.n.to_le_bytes());
}

/// The order of records: by digest, then by pack.
fn compare(one: &RawRecord, other: &RawRecord) -> Ordering {
    one[..32].cmp(&other[..32]).then_with(|| pack_of(one).cmp(&pack_of(other)))
}

fn digest_of(record: &RawRecord) -> Digest {
    Digest::from_bytes(std::array::from_fn(|at| record[at]))
}

/// The pack of a record.
fn pack_of(record: &RawRecord) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|at| record[32 + at]))
}
