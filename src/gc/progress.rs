//! Progress of the execution of a plan.

use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use crate::chunks::{Swept, Unused};
use crate::error::Error;
use crate::format::Digest;
use crate::format::layout::{Key, PackName};
use crate::gc::report::{ChunkTally, GcFailure, PackTally};

/// Maximum number of objects of a request.
pub(super) const REQUEST: usize = 1000;
/// Batch size after a successful batch. The lock is checked before each batch; the requests of a batch run in parallel.
pub(super) const BATCH: usize = 4 * REQUEST;
/// Maximum number of packs that vanish together.
pub(super) const BATCH_PACKS: usize = 64;
/// Maximum bytes that are copied before packs vanish together.
pub(super) const BATCH_BYTES: u64 = 256 << 20;
/// Maximum number of failures named in the report.
const NAMED: usize = 1000;

/// An unreferenced object.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    /// `true` if it may be removed now.
    pub(super) ready: bool,
    /// Time at which it was first seen unreferenced.
    pub(super) since: SystemTime,
    pub(super) size: u64,
    pub(super) unused: Unused,
}

/// Progress of an execution.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) absent: u64,
    /// The object processed last in the shard that is listed again.
    pub(super) after: Option<Unused>,
    pub(super) busy: u64,
    /// Number of processed objects that are known by name.
    pub(super) done: usize,
    pub(super) failed: u64,
    pub(super) failed_names: HashSet<Digest>,
    pub(super) failures: Vec<GcFailure>,
    /// Number of consecutive batches that removed nothing.
    pub(super) fruitless: usize,
    /// `true` if the last batch was deleted without a failure.
    pub(super) goes_well: bool,
    /// Chunks found in use.
    pub(super) in_use: ChunkTally,
    pub(super) leftovers: u64,
    pub(super) leftovers_refused: Option<Error>,
    pub(super) packs: PackTally,
    pub(super) pinned: u64,
    pub(super) removed: ChunkTally,
    pub(super) removed_quarantined: ChunkTally,
    pub(super) remarks: Vec<Error>,
    /// Number of finished shards among those with too many names.
    pub(super) shards: usize,
    /// `true` once the new lease term has begun and the candidates are stored.
    pub(super) begun: bool,
    /// Number of processed candidates.
    pub(super) begun_with: usize,
    pub(super) status_written: bool,
    /// Chunks that could not be removed, as far as known.
    pub(super) stuck: ChunkTally,
    /// Unused chunks in packs that are being dropped.
    pub(super) vanishing: BTreeMap<PackName, ChunkTally>,
}

impl Progress {
    /// Number of objects of the next batch.
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
