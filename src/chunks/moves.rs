//! Moves in progress, for a collection of this process that marks meanwhile (H8).
//!
//! A marker that visits the destination before a move, and the source after it, sees the index at neither place. So each move or
//! copy records its destinations first. The marker begins to [watch](MovesInProgress::watch) before it lists anything, and
//! [takes](Watch::take) the recorded destinations after everything else, repeatedly until there are no more.
//!
//! Other processes use the [move journal](crate::backend::Coordination::record_moves).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::format::layout::Key;

/// Moves and watches. Memory is used for moves in progress and for destinations not taken yet.
#[derive(Debug, Default)]
pub(crate) struct MovesInProgress {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next: u64,
    under_way: BTreeMap<u64, Vec<Key>>,
    watches: BTreeMap<u64, Vec<Key>>,
}

impl MovesInProgress {
    /// Watches all destinations of moves in progress and of later ones.
    pub(crate) fn watch(self: &Arc<Self>) -> Watch {
        let mut state = self.state();
        let number = state.number();
        let seen = state.under_way.values().flatten().cloned().collect();
        state.watches.insert(number, seen);
        Watch { number, moves_in_progress: Arc::clone(self) }
    }

    /// Records destinations. The move is in progress until the result is dropped.
    pub(crate) fn record_moves(self: &Arc<Self>, keys: &[Key]) -> Relocating {
        let keys = if mutated!("move-outside-of-the-registry") { &[] } else { keys };
        let mut state = self.state();
        for seen in state.watches.values_mut() {
            seen.extend_from_slice(keys);
        }
        let number = state.number();
        state.under_way.insert(number, keys.to_vec());
        Relocating { number, moves_in_progress: Arc::clone(self) }
    }

    /// Returns `true` if there is no move and no watch.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state();
        state.under_way.is_empty() && state.watches.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Each change leaves both maps whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// A move in progress.
#[derive(Debug)]
pub(crate) struct Relocating {
    number: u64,
    moves_in_progress: Arc<MovesInProgress>,
}

impl Drop for Relocating {
    fn drop(&mut self) {
        self.moves_in_progress.state().under_way.remove(&self.number);
    }
}

/// Destinations recorded since the watch began.
#[derive(Debug)]
pub(crate) struct Watch {
    number: u64,
    moves_in_progress: Arc<MovesInProgress>,
}

impl Watch {
    /// Destinations recorded since the watch began or was last read, with those of moves in progress at its begin. The
    /// objects may exist already, or later, or never.
    ///
    /// Look at them in order: an object that is moved again meanwhile is found at its next place.
    pub(crate) fn take(&self) -> Vec<Key> {
        self.moves_in_progress.state().watches.get_mut(&self.number).map(std::mem::take).unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.moves_in_progress.state().watches.remove(&self.number);
    }
}
