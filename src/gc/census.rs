//! Findings in the chunks.

use std::time::{Duration, SystemTime};

use crate::digest_set::Shard;
use crate::format::layout::PackName;
use crate::gc::live::LivePacks;
use crate::gc::progress::Candidate;
use crate::gc::report::ChunkTally;
use crate::gc::walk::NAMED;

/// Time by which an object must be ahead of the clock of the store to be one of before the clock was set back. Longer than a collection
/// takes: objects that are stored meanwhile are ahead of its beginning.
const AHEAD: Duration = Duration::from_hours(7 * 24);

/// The times by which a run judges.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    /// See [`GcOptions::clock_was_set_back`](crate::gc::GcOptions::clock_was_set_back).
    pub(super) clock_was_set_back: bool,
    /// Chunks used after this time stay; `None` if nothing is too young.
    pub(super) cutoff: Option<SystemTime>,
    /// Time of the store before marking.
    pub(super) now: SystemTime,
}

impl Times {
    /// Returns `true` if an object last used at this time may be removed.
    pub(super) fn is_old(&self, last_used: SystemTime) -> bool {
        self.cutoff.is_none_or(|cutoff| last_used < cutoff || self.is_of_before(last_used))
    }

    /// Returns `true` if an object with this time was stored before the clock of the store was set back.
    pub(super) fn is_of_before(&self, last_used: SystemTime) -> bool {
        self.clock_was_set_back && last_used.duration_since(self.now).is_ok_and(|ahead| ahead > AHEAD)
    }
}

/// Findings in the chunks, or in a shard of them.
#[derive(Debug, Default)]
pub(super) struct Census {
    pub(super) foreign: Vec<String>,
    pub(super) foreign_count: u64,
    pub(super) garbage: ChunkTally,
    pub(super) in_use: ChunkTally,
    /// In a packed store.
    pub(super) live: LivePacks,
    pub(super) quarantined: ChunkTally,
    pub(super) quarantined_garbage: ChunkTally,
    pub(super) shards: Vec<ShardCensus>,
    pub(super) waiting: ChunkTally,
}

/// Unreferenced objects of a shard.
#[derive(Debug)]
pub(super) struct ShardCensus {
    /// Their names, unless there are too many.
    pub(super) candidates: Option<Vec<Candidate>>,
    /// Number of those that may be removed now.
    pub(super) ready: u64,
    pub(super) shard: Shard,
}

impl Census {
    /// Notes a chunk that stays, and its pack.
    pub(super) fn note_live(&mut self, pack: PackName, bytes: u64, is_waiting: bool) {
        let live = self.live.entry(pack).or_default();
        live.bytes += bytes;
        live.chunks += 1;
        live.waiting_bytes += if is_waiting { bytes } else { 0 };
    }

    pub(super) fn join(&mut self, other: Self) {
        self.foreign_count += other.foreign_count;
        let room = NAMED.saturating_sub(self.foreign.len());
        self.foreign.extend(other.foreign.into_iter().take(room));
        self.garbage.join(other.garbage);
        self.in_use.join(other.in_use);
        for (pack, live) in other.live {
            let all = self.live.entry(pack).or_default();
            all.bytes += live.bytes;
            all.chunks += live.chunks;
            all.is_kept |= live.is_kept;
            all.waiting_bytes += live.waiting_bytes;
        }
        self.quarantined.join(other.quarantined);
        self.quarantined_garbage.join(other.quarantined_garbage);
        self.shards.extend(other.shards);
        self.waiting.join(other.waiting);
    }
}
