//! The next chunks of a sample.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest_set::mark_of;
use crate::format::Digest;
use crate::verify::ledger::ChunkId;

/// The next chunks after a position.
#[derive(Debug)]
pub(super) struct Collector {
    pub(super) most: usize,
    pub(super) start: u64,
    pub(super) state: Mutex<State>,
}

#[derive(Debug, Default)]
pub(super) struct State {
    /// By distance from the start.
    pub(super) candidates: BTreeMap<(u64, Digest), ChunkId>,
    /// `true` if more chunks follow.
    pub(super) is_cut: bool,
}

impl Collector {
    pub(super) fn new(start: u64, most: usize) -> Self {
        Self { most: most.max(1), start, state: Mutex::default() }
    }

    /// Adds a chunk, if it is near enough.
    pub(super) fn add(&self, id: ChunkId) {
        let distance = mark_of(&id.digest).wrapping_sub(self.start);
        let place = (distance, id.digest);
        let mut state = self.state();
        let is_full = state.candidates.len() >= self.most;
        if is_full && state.candidates.last_key_value().is_some_and(|(last, _)| place > *last) {
            state.is_cut = true;
            return;
        }
        state.candidates.entry(place).or_insert(id);
        if state.candidates.len() > self.most {
            state.candidates.pop_last();
            state.is_cut = true;
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
