//! How much of packs and segments is in use.

use crate::format::Digest;
use crate::format::larder::segment::SegmentPack;
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::set::SegmentSet;
use crate::format::larder::segment::set::chunks::Chunks;

/// Sums over the chunks of a view, one part of the space of digests after the other. It belongs to the view as it was when it began.
#[derive(Clone, Debug)]
pub(crate) struct Usage {
    packs: Vec<Sums>,
    segments: Vec<u32>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    copied_bytes: u32,
    live_bytes: u32,
}

/// How much of a listed pack is in use. Bytes of a chunk are those of its blob, of the header before it and of its entry in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PackUse {
    /// Bytes of live chunks that have a better place in another pack.
    pub(crate) copied_bytes: u32,
    /// Bytes of live chunks that have their best place here.
    pub(crate) live_bytes: u32,
    pub(crate) pack: SegmentPack,
}

/// How many records of a segment are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentUse {
    /// Number of records of chunks that are not live, or of packs that are not listed.
    pub(crate) dead_records: u32,
    pub(crate) name: SegmentName,
    pub(crate) records: u32,
}

impl Usage {
    /// Sums of nothing.
    pub(super) fn new(set: &SegmentSet) -> Self {
        Self { packs: vec![Sums::default(); set.packs.len()], segments: vec![0; set.segments.len()] }
    }

    /// Adds these chunks. Each chunk of the view is added once.
    pub(crate) fn add(&mut self, mut chunks: Chunks<'_>, mut is_live: impl FnMut(&Digest) -> bool) {
        while let Some(digest) = chunks.step() {
            let is_live = is_live(&digest);
            for (segment, is_listed) in chunks.records() {
                if let Some(dead) = self.segments.get_mut(*segment).filter(|_| !is_live || !is_listed) {
                    *dead = dead.saturating_add(1);
                }
            }
            if !is_live {
                continue;
            }
            for (number, place) in chunks.places().iter().enumerate() {
                if let Some(sums) = self.packs.get_mut(place.number as usize) {
                    let sum = if number == 0 { &mut sums.live_bytes } else { &mut sums.copied_bytes };
                    *sum = sum.saturating_add(place.entry.stored_bytes());
                }
            }
        }
    }

    /// The listed packs, by name.
    pub(crate) fn packs(&self, set: &SegmentSet) -> impl Iterator<Item = PackUse> {
        let packs = set.packs.iter().zip(&self.packs).filter(|(pack, _)| pack.is_listed);
        packs.map(|(pack, sums)| {
            let Sums { copied_bytes, live_bytes } = *sums;
            PackUse { copied_bytes, live_bytes, pack: pack.pack }
        })
    }

    /// The segments that are not superseded, by name.
    pub(crate) fn segments(&self, set: &SegmentSet) -> impl Iterator<Item = SegmentUse> {
        set.segments.iter().zip(&self.segments).map(|((name, held), dead_records)| {
            let records = u32::try_from(held.slots.records()).unwrap_or(u32::MAX);
            SegmentUse { dead_records: *dead_records, name: *name, records }
        })
    }
}
