//! How a sample is chosen: the chunks right behind a position in the space of digests, and around.

use futures::stream::{FuturesUnordered, StreamExt as _};

use crate::digest_set::mark_of;
use crate::error::Result;
use crate::verify::collector::Collector;
use crate::verify::context::{Run, Which, Work};
use crate::verify::ledger::{ChunkId, Depth, Turn, Verdict};
use crate::verify::options::Sample;

/// Bytes of a candidate for a sample.
const CANDIDATE_BYTES: usize = 96;

impl Run {
    pub(super) async fn sample(&self, sample: Sample) -> Result<()> {
        let fitting = self.half() / CANDIDATE_BYTES;
        let most = usize::try_from(self.control.requests_left()).unwrap_or(usize::MAX).min(fitting);
        let collector = Collector::new(sample.rotation, most);
        self.pass(Work::Collect(&collector), Which::All).await;
        if self.control.stopped().is_some() {
            // Not all candidates are known.
            self.findings().report.next_rotation = Some(sample.rotation);
            return Ok(());
        }
        // Attributing bad chunks to snapshots costs a second pass.
        let reserved = self.control.used();
        self.control.reserve(reserved);
        let next = self.check_candidates(&collector).await;
        self.control.release(reserved);
        if self.ledger.has_faults() {
            self.pass(Work::Known, Which::All).await;
        }
        self.findings().report.next_rotation = Some(next);
        Ok(())
    }

    /// Checks as many as the budget allows, and returns where the next sample begins.
    async fn check_candidates(&self, collector: &Collector) -> u64 {
        let (candidates, is_cut) = {
            let mut state = collector.state();
            (std::mem::take(&mut state.candidates), state.is_cut)
        };
        let last = candidates.last_key_value().map(|((distance, _), _)| *distance);
        let mut open: Option<u64> = None;
        let mut leave = |id: ChunkId, verdict: Verdict| {
            if matches!(verdict, Verdict::Unchecked) {
                let distance = mark_of(&id.digest).wrapping_sub(collector.start);
                open = Some(open.map_or(distance, |open| open.min(distance)));
            }
        };
        let mut looks = FuturesUnordered::new();
        for id in candidates.into_values() {
            if self.control.stopped().is_some() {
                leave(id, Verdict::Unchecked);
                break;
            }
            let turn = match self.ledger.turn(id, Depth::Contents) {
                Turn::Known(_) => continue,
                turn => turn,
            };
            while looks.len() >= self.in_flight
                && let Some((id, verdict)) = looks.next().await
            {
                leave(id, verdict);
            }
            looks.push(self.look(id, turn, Depth::Contents));
        }
        while let Some((id, verdict)) = looks.next().await {
            leave(id, verdict);
        }
        let distance = match (open, last) {
            (Some(open), _) => open,
            (None, Some(last)) if is_cut => last.wrapping_add(1),
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
    fn the_next_ones_are_collected_around_the_end() {
        let id = |first: u8| {
            let mut bytes = [0; 32];
            bytes[0] = first;
            ChunkId { digest: Digest::from_bytes(bytes), length: 1 }
        };
        let collector = Collector::new(0xc0 << 56, 3);
        for first in [0x10, 0xd0, 0x20, 0xb0, 0xc0, 0x10, 0xf0] {
            collector.add(id(first));
        }
        let state = collector.state();
        let found: Vec<_> = state.candidates.values().map(|id| id.digest.as_bytes()[0]).collect();
        assert_eq!(found, [0xc0, 0xd0, 0xf0]);
        assert!(state.is_cut);
    }
}
