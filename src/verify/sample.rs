//! Choice of a sample: the chunks that follow a position in the space of digests, in a circle.

use std::sync::Arc;

use futures::stream::{FuturesUnordered, StreamExt as _};

use crate::digest_set::mark_of;
use crate::verify::collector::Collector;
use crate::verify::context::{Run, Work};
use crate::verify::control::Stop;
use crate::verify::ledger::{ChunkId, Depth, Turn, Verdict};
use crate::verify::options::Sample;
use crate::verify::passes::Which;
use crate::verify::progress::Progress;

/// Bytes of a candidate for a sample.
const CANDIDATE_BYTES: usize = 96;

impl Run {
    /// Collects candidates, checks them, and finds the snapshots that use bad ones.
    pub(super) async fn sample(&self, progress: &mut Progress, sample: Sample) {
        let collector = progress.sample.collector.get_or_insert_with(|| {
            let fitting = self.half() / CANDIDATE_BYTES;
            let most = usize::try_from(self.control.requests_left()).unwrap_or(usize::MAX).min(fitting);
            Arc::new(Collector::new(sample.rotation, most))
        });
        let collector = Arc::clone(collector);
        let pass = progress.single(self);
        self.pass(pass, Work::Collect(&collector)).await;
        if self.control.stopped().is_some() {
            // Not all candidates are known.
            self.findings().report.next_rotation = Some(sample.rotation);
            return;
        }
        let reserve = *progress.sample.reserve.get_or_insert_with(|| self.control.used());
        if !progress.sample.is_reserved {
            progress.sample.is_reserved = true;
            self.control.reserve(reserve);
        }
        let next = self.check_candidates(&collector).await;
        self.findings().report.next_rotation = Some(next);
        if self.control.stopped().is_some_and(|stop| stop != Stop::Budget) {
            return;
        }
        self.control.release(reserve);
        progress.sample.is_reserved = false;
        self.known(progress, Which::All).await;
    }

    /// Checks as many as the budget allows, and returns the start of the next sample.
    async fn check_candidates(&self, collector: &Collector) -> u64 {
        let mut open: Option<u64> = None;
        let mut leave = |id: ChunkId, verdict: Verdict| {
            if matches!(verdict, Verdict::Unchecked) {
                let distance = mark_of(&id.digest).wrapping_sub(collector.start);
                open = Some(open.map_or(distance, |open| open.min(distance)));
            }
        };
        let mut checks = FuturesUnordered::new();
        let mut last = None;
        while let Some((place, id)) = collector.after(last) {
            last = Some(place);
            if self.control.stopped().is_some() {
                leave(id, Verdict::Unchecked);
                break;
            }
            let turn = match self.ledger.turn(id, Depth::Contents) {
                Turn::Known(_) => continue,
                turn => turn,
            };
            while checks.len() >= self.concurrency
                && let Some((id, verdict)) = checks.next().await
            {
                leave(id, verdict);
            }
            checks.push(self.check(id, turn, Depth::Contents));
        }
        while let Some((id, verdict)) = checks.next().await {
            leave(id, verdict);
        }
        let distance = match (open, last) {
            (Some(open), _) => open,
            (None, Some((last, _))) if collector.is_cut() => last.wrapping_add(1),
            // All of them were checked.
            (None, _) => 0,
        };
        collector.start.wrapping_add(distance)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Digest;

    #[test]
    fn the_next_chunks_are_collected_around_the_end() {
        let id = |first: u8| {
            let mut bytes = [0; 32];
            bytes[0] = first;
            ChunkId { digest: Digest::from_bytes(bytes), key: 0, length: 1 }
        };
        let collector = Collector::new(0xc0 << 56, 3);
        for first in [0x10, 0xd0, 0x20, 0xb0, 0xc0, 0x10, 0xf0] {
            collector.add(id(first));
        }
        let found = std::iter::successors(collector.after(None), |(place, _)| collector.after(Some(*place)));
        let found: Vec<_> = found.map(|(_, id)| id.digest.as_bytes()[0]).collect();
        assert_eq!(found, [0xc0, 0xd0, 0xf0]);
        assert!(collector.is_cut());
    }
}
