//! Where indexes are about to appear: for a mark that goes on in this process while snapshots are moved (H8).
//!
//! A mark that visits the destination before the move, and the source after it, sees the index at neither place. So whoever moves or
//! copies announces the destinations first. A mark that wants to miss none [watches](MovesInProgress::watch) before it lists anything, and
//! [takes](Watch::take) what was announced when it has seen everything else, again and again until there is nothing more.
//!
//! Other processes hear of it through the [backend](crate::backend::Coordination::record_moves).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::format::layout::Key;

/// Who moves, and who watches. Memory is taken up for what is under way, and for what nobody took yet.
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
    /// Sees all destinations of moves that are under way, or will be announced.
    pub(crate) fn watch(self: &Arc<Self>) -> Watch {
        let mut state = self.state();
        let number = state.number();
        let seen = state.under_way.values().flatten().cloned().collect();
        state.watches.insert(number, seen);
        Watch { number, moves_in_progress: Arc::clone(self) }
    }

    /// Announces destinations. The move is under way until what is returned is dropped.
    pub(crate) fn record_moves(self: &Arc<Self>, keys: &[Key]) -> Relocating {
        let mut state = self.state();
        for seen in state.watches.values_mut() {
            seen.extend_from_slice(keys);
        }
        let number = state.number();
        state.under_way.insert(number, keys.to_vec());
        Relocating { number, moves_in_progress: Arc::clone(self) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change leaves both maps whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// A move that is under way.
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

/// What was announced since somebody began to watch.
#[derive(Debug)]
pub(crate) struct Watch {
    number: u64,
    moves_in_progress: Arc<MovesInProgress>,
}

impl Watch {
    /// The destinations that were announced since it began or was asked last, with those that were under way when it began. Something
    /// may be there already, or later, or never.
    ///
    /// They are to be looked at in their order: what was moved on while somebody looks is then found at the next place.
    pub(crate) fn take(&self) -> Vec<Key> {
        self.moves_in_progress.state().watches.get_mut(&self.number).map(std::mem::take).unwrap_or_default()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.moves_in_progress.state().watches.remove(&self.number);
    }
}
