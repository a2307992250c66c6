//! Position of a run in its passes.

use std::ops::Range;
use std::sync::Arc;

use crate::verify::collector::Collector;
use crate::verify::context::Run;
use crate::verify::listing::{ChunkListing, Listed};
use crate::verify::passes::Which;

/// Position of a run in its passes.
#[derive(Debug)]
pub(super) struct Progress {
    /// Pass over known results.
    pub(super) known: Option<KnownPass>,
    /// The last listed part, by number.
    pub(super) listed: Option<(usize, Listed)>,
    pub(super) listing: ChunkListing,
    pub(super) parts: Vec<Part>,
    pub(super) sample: SampleProgress,
    /// Pass without a listing.
    single: Option<usize>,
}

/// A pass over a part of the listing.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) pass: usize,
    pub(super) shards: Range<usize>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct KnownPass {
    /// Number of bad chunks before the pass.
    pub(super) faults: u64,
    pub(super) pass: usize,
}

impl Progress {
    pub(super) fn new(run: &Run) -> Self {
        Self {
            known: None,
            listed: None,
            listing: ChunkListing::new(run.references, run.half()),
            parts: Vec::new(),
            sample: SampleProgress::default(),
            single: None,
        }
    }

    /// The pass without a listing.
    pub(super) fn single(&mut self, run: &Run) -> usize {
        *self.single.get_or_insert_with(|| run.passes().start(run.targets.len(), Which::All))
    }
}

/// Position of a sample in its steps.
#[derive(Debug, Default)]
pub(super) struct SampleProgress {
    pub(super) collector: Option<Arc<Collector>>,
    pub(super) is_reserved: bool,
    /// Budget for the pass that finds the snapshots of bad chunks: bytes and requests.
    pub(super) reserve: Option<(u64, u64)>,
}
