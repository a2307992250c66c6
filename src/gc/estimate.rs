//! Estimates of the requests and bytes of an action on packs, and of their price.

use std::time::Duration;

use crate::gc::live::Live;
use crate::gc::options::GcOptions;
use crate::gc::prices::Work;
use crate::gc::progress::{BATCH_BYTES, BATCH_PACKS};
use crate::gc::report::PackAction;
use crate::packs::read::{GAP_BYTES, SPAN_BYTES};
use crate::packs::reclaim::{ListedPack, TAIL_BYTES};

/// The sum over packs with the same treatment.
#[derive(Debug)]
pub(super) struct Estimate<'a> {
    action: PackAction,
    copied_bytes: u64,
    dropped: u64,
    early_byte_seconds: u128,
    options: &'a GcOptions,
    /// Bytes of a full pack.
    target: u64,
}

impl<'a> Estimate<'a> {
    pub(super) fn new(options: &'a GcOptions, target: u64) -> Self {
        Self {
            action: PackAction::default(),
            copied_bytes: 0,
            dropped: 0,
            early_byte_seconds: 0,
            options,
            target,
        }
    }

    /// Adds a pack that is dropped after these chunks were copied.
    pub(super) fn add(&mut self, pack: &ListedPack, live: Live, age: Duration) {
        self.add_deleted(pack, age);
        let needed = live.packed_bytes();
        let unused = pack.bytes.saturating_sub(needed);
        // One request reads chunks that lie side by side, and small gaps between them.
        let gaps = unused.min(live.chunks.saturating_sub(1).saturating_mul(GAP_BYTES));
        let read = if live.chunks > 0 { needed + gaps } else { 0 };
        let action = &mut self.action;
        action.freed_bytes += unused;
        action.gets += read.div_ceil(SPAN_BYTES);
        action.read_bytes += read;
        action.written_bytes += needed;
        self.copied_bytes += live.bytes;
    }

    /// Adds a pack that an earlier collection dropped. Its directory is read once more.
    pub(super) fn add_dropped(&mut self, pack: &ListedPack, age: Duration) {
        self.add_deleted(pack, age);
        self.dropped += 1;
        let action = &mut self.action;
        action.freed_bytes += pack.bytes;
        action.gets += 1;
        action.read_bytes += pack.bytes.min(TAIL_BYTES);
    }

    fn add_deleted(&mut self, pack: &ListedPack, age: Duration) {
        self.action.bytes += pack.bytes;
        self.action.packs += 1;
        if let Some(prices) = &self.options.prices {
            self.early_byte_seconds += prices.early_byte_seconds(pack.bytes, age);
        }
    }

    pub(super) fn finish(self) -> PackAction {
        let Self { mut action, copied_bytes, dropped, early_byte_seconds, options, target } = self;
        let batches = |packs: u64| packs.div_ceil(BATCH_PACKS as u64);
        let of_vanishing = batches(action.packs - dropped).max(copied_bytes.div_ceil(BATCH_BYTES));
        action.deletes = batches(dropped) + of_vanishing;
        // A segment records the new packs of a batch, and another one the drop of the old packs.
        let segments = if copied_bytes > 0 { 2 } else { 1 };
        action.puts = action.written_bytes.div_ceil(target) + of_vanishing * segments;
        action.cost = options.prices.map(|prices| {
            prices.cost(Work {
                early_byte_seconds,
                freed_bytes: action.freed_bytes,
                gets: action.gets,
                puts: action.puts,
                read_bytes: action.read_bytes,
            })
        });
        action
    }
}
