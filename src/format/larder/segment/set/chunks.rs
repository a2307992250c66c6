//! All chunks of a view, in order.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::RangeInclusive;

use crate::format::Digest;
use crate::format::larder::segment::records::SlotRecords;
use crate::format::larder::segment::set::{ChunkPlace, Held, LoadedSlots, SegmentSet, Statement, settle};

/// The chunks of a part of the space of digests, merged from all segments: each chunk once, in the order of digests.
#[derive(Debug)]
pub(crate) struct Chunks<'a> {
    /// Digests of the next record of each source.
    next: BinaryHeap<Reverse<(Digest, usize)>>,
    places: Vec<ChunkPlace>,
    /// For each record of the last chunk, the number of its segment, and `true` if its pack is listed.
    records: Vec<(usize, bool)>,
    set: &'a SegmentSet,
    sources: Vec<Source<'a>>,
    statements: Vec<Statement>,
}

/// Sorted records.
#[derive(Debug)]
struct Source<'a> {
    end: usize,
    held: &'a Held,
    next: usize,
    records: &'a SlotRecords,
    segment: usize,
}

/// A chunk with its places, the best one first; at least one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChunkPlaces<'a> {
    pub(crate) digest: Digest,
    pub(crate) places: &'a [ChunkPlace],
}

impl<'a> Chunks<'a> {
    pub(super) fn new(set: &'a SegmentSet, marks: &RangeInclusive<u64>, loaded: &'a [LoadedSlots]) -> Self {
        let segments = set.segments.iter().enumerate();
        let in_memory =
            segments.filter_map(|(number, (_, held))| Some((number, held, held.records.as_ref()?)));
        let by_ranges = loaded.iter().filter_map(|loaded| {
            let number = set.segments.keys().position(|name| *name == loaded.segment)?;
            Some((number, set.segments.get(&loaded.segment)?, &loaded.records))
        });
        let mut sources = Vec::new();
        for (segment, held, records) in in_memory.chain(by_ranges) {
            let numbers = records.numbers_between(marks);
            sources.push(Source { end: numbers.end, held, next: numbers.start, records, segment });
        }
        let mut chunks = Self {
            next: BinaryHeap::new(),
            places: Vec::new(),
            records: Vec::new(),
            set,
            sources,
            statements: Vec::new(),
        };
        (0..chunks.sources.len()).for_each(|source| chunks.queue(source));
        chunks
    }

    /// The next chunk that has a place in a listed pack.
    pub(crate) fn next(&mut self) -> Option<ChunkPlaces<'_>> {
        loop {
            let digest = self.step()?;
            if !self.places.is_empty() {
                return Some(ChunkPlaces { digest, places: &self.places });
            }
        }
    }

    /// Goes to the next chunk, if it has a place or not.
    pub(super) fn step(&mut self) -> Option<Digest> {
        let Reverse((digest, _)) = *self.next.peek()?;
        self.statements.clear();
        self.records.clear();
        while let Some(Reverse((_, source))) = self.next.peek().copied().filter(|next| next.0.0 == digest) {
            self.next.pop();
            let of = self.sources.get_mut(source)?;
            let record = of.records.get(of.next)?;
            of.next += 1;
            let place = self.set.place(of.held, &record);
            self.records.push((of.segment, place.is_some()));
            self.statements.extend(place);
            self.queue(source);
        }
        settle(&self.statements, &mut self.places);
        Some(digest)
    }

    /// The places of the chunk of the last step.
    pub(super) fn places(&self) -> &[ChunkPlace] {
        &self.places
    }

    /// For each record of the chunk of the last step, the number of its segment, and `true` if its pack is listed.
    pub(super) fn records(&self) -> &[(usize, bool)] {
        &self.records
    }

    fn queue(&mut self, source: usize) {
        let Some(of) = self.sources.get(source) else { return };
        if of.next < of.end
            && let Some(record) = of.records.get(of.next)
        {
            self.next.push(Reverse((record.entry.digest, source)));
        }
    }
}
