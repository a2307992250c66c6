//! Progress of the execution of a plan.

use std::collections::HashSet;
use std::time::SystemTime;

use crate::chunks::{Swept, Unused};
use crate::error::Error;
use crate::format::Digest;
use crate::format::layout::Key;
use crate::gc::report::{ChunkTally, GcFailure};

/// Maximum number of objects of a request.
pub(super) const REQUEST: usize = 1000;
/// Batch size after a successful batch. The lock is checked before each batch; the requests of a batch run in parallel.
pub(super) const BATCH: usize = 4 * REQUEST;
/// Maximum number of failures named in the report.
const NAMED: usize = 1000;

/// An object that nothing uses.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// Whether it may go now.
    pub(super) ready: bool,
    /// When it was seen unused for the first time.
    pub(super) since: SystemTime,
    pub(super) size: u64,
    pub(super) unused: Unused,
}

/// How far an execution is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) absent: u64,
    /// What was seen to last, in the shard that is listed again.
    pub(super) after: Option<Unused>,
    pub(super) busy: u64,
    /// How many of those that are known by name were seen to.
    pub(super) done: usize,
    pub(super) failed: u64,
    pub(super) failed_names: HashSet<Digest>,
    pub(super) failures: Vec<GcFailure>,
    /// How many batches in a row removed nothing.
    pub(super) fruitless: usize,
    /// Whether the last batch was deleted without a failure.
    pub(super) goes_well: bool,
    /// Chunks that turned out to be in use.
    pub(super) in_use: ChunkTally,
    pub(super) leftovers: u64,
    pub(super) leftovers_refused: Option<Error>,
    pub(super) pinned: u64,
    pub(super) removed: ChunkTally,
    pub(super) removed_quarantined: ChunkTally,
    pub(super) remarks: Vec<Error>,
    /// How many shards are done, of those in which there was too much to keep.
    pub(super) shards: usize,
    /// Whether a new term was begun and all that may go was written down.
    pub(super) begun: bool,
    /// How many candidates came to their turn.
    pub(super) begun_with: usize,
    pub(super) status_written: bool,
    /// Chunks that could not be removed, as far as is known.
    pub(super) stuck: ChunkTally,
}

impl Progress {
    /// How many objects the next batch has.
    pub(super) fn batch(&self) -> usize {
        if self.goes_well { BATCH } else { REQUEST }
    }

    pub(super) fn note(&mut self, candidate: &Candidate, swept: Swept) {
        if candidate.unused.quarantined.is_none() {
            match &swept {
                Swept::Busy | Swept::Pinned | Swept::Used => self.in_use.add(candidate.size),
                Swept::Failed(_) => self.stuck.add(candidate.size),
                Swept::Absent | Swept::Removed => {}
            }
        }
        match swept {
            Swept::Absent => self.absent += 1,
            Swept::Busy => self.busy += 1,
            Swept::Failed(error) => {
                self.failed_names.insert(candidate.unused.digest);
                self.fail(candidate.unused.key(), error);
            }
            Swept::Pinned | Swept::Used => self.pinned += 1,
            Swept::Removed if candidate.unused.quarantined.is_some() => {
                self.removed_quarantined.add(candidate.size);
            }
            Swept::Removed => self.removed.add(candidate.size),
        }
    }

    pub(super) fn fail(&mut self, key: Key, error: Error) {
        self.failed += 1;
        if self.failures.len() < NAMED {
            self.failures.push(GcFailure { error, key });
        }
    }
}
