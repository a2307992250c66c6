//! The next chunks of a sample.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest_set::mark_of;
use crate::format::Digest;
use crate::verify::ledger::ChunkId;

/// The next chunks after a position.
#[derive(Debug)]
pub(super) struct Collector {
    max: usize,
    pub(super) start: u64,
    state: Mutex<State>,
}

/// A candidate by its distance from the start.
pub(super) type Place = (u64, Digest);

#[derive(Debug, Default)]
struct State {
    candidates: BTreeMap<Place, ChunkId>,
    /// `true` if more chunks follow.
    is_cut: bool,
}

impl Collector {
    pub(super) fn new(start: u64, max: usize) -> Self {
        Self { max: max.max(1), start, state: Mutex::default() }
    }

    /// Adds a chunk if it is near enough. Adding it again changes nothing.
    pub(super) fn add(&self, id: ChunkId) {
        let distance = mark_of(&id.digest).wrapping_sub(self.start);
        let place = (distance, id.digest);
        let mut state = self.state();
        let is_full = state.candidates.len() >= self.max;
        if is_full && state.candidates.last_key_value().is_some_and(|(last, _)| place > *last) {
            state.is_cut = true;
            return;
        }
        // With a key, the check is stronger.
        state.candidates.entry(place).and_modify(|known| known.key = known.key.max(id.key)).or_insert(id);
        if state.candidates.len() > self.max {
            state.candidates.pop_last();
            state.is_cut = true;
        }
    }

    /// The first candidate after this place.
    pub(super) fn after(&self, place: Option<Place>) -> Option<(Place, ChunkId)> {
        let after = place.map_or(Bound::Unbounded, Bound::Excluded);
        self.state().candidates.range((after, Bound::Unbounded)).next().map(|(place, id)| (*place, *id))
    }

    /// Returns `true` if more chunks follow the last candidate.
    pub(super) fn is_cut(&self) -> bool {
        self.state().is_cut
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
