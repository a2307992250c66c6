//! Passes over the snapshots, and the snapshots that each has yet to conclude.

use std::collections::BTreeSet;

use crate::verify::findings::Visit;

/// Snapshots of a pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    All,
    /// Snapshots that are not read again.
    VerifiedBefore,
}

/// All passes that a run has started.
#[derive(Debug, Default)]
pub(super) struct Passes {
    passes: Vec<Pass>,
}

#[derive(Debug)]
struct Pass {
    /// Snapshots without a conclusion.
    left: BTreeSet<usize>,
    /// Concluded snapshots whose manifest could not be updated, or whose client log could not be read.
    again: BTreeSet<usize>,
    which: Which,
}

impl Passes {
    /// Starts a pass over this number of snapshots, and returns its number.
    pub(super) fn start(&mut self, snapshots: usize, which: Which) -> usize {
        let pass = Pass { left: (0..snapshots).collect(), again: BTreeSet::new(), which };
        self.passes.push(pass);
        self.passes.len() - 1
    }

    pub(super) fn which(&self, pass: usize) -> Which {
        self.passes.get(pass).map_or(Which::All, |pass| pass.which)
    }

    /// The snapshots without a conclusion.
    pub(super) fn left(&self, pass: usize) -> Vec<usize> {
        self.passes.get(pass).map(|pass| pass.left.iter().copied().collect()).unwrap_or_default()
    }

    pub(super) fn is_over(&self, pass: usize) -> bool {
        self.passes.get(pass).is_none_or(|pass| pass.left.is_empty())
    }

    /// The pass has concluded the snapshot.
    pub(super) fn conclude(&mut self, visit: Visit) {
        if let Some(pass) = self.passes.get_mut(visit.pass) {
            pass.left.remove(&visit.snapshot);
        }
    }

    /// The pass has concluded the snapshot, and the next execution checks it again.
    pub(super) fn conclude_for_now(&mut self, visit: Visit) {
        if let Some(pass) = self.passes.get_mut(visit.pass) {
            pass.left.remove(&visit.snapshot);
            pass.again.insert(visit.snapshot);
        }
    }

    /// Ends a pass that another one repeats.
    pub(super) fn abandon(&mut self, pass: usize) {
        if let Some(pass) = self.passes.get_mut(pass) {
            pass.left.clear();
            pass.again.clear();
        }
    }

    /// Prepares the next execution.
    pub(super) fn resume(&mut self) {
        for pass in &mut self.passes {
            pass.left.append(&mut pass.again);
        }
    }

    /// Returns `true` if all passes have concluded the snapshot, at least one. A pass over verified snapshots counts only for one.
    pub(super) fn have_concluded(&self, snapshot: usize, is_verified: bool) -> bool {
        let passes = || self.passes.iter().filter(|pass| is_verified || pass.which == Which::All);
        passes().next().is_some() && passes().all(|pass| !pass.left.contains(&snapshot))
    }
}
