//! Verification of one chunk.

use crate::chunks::{Examined, Inspected, QuarantineOutcome, Reinstatement};
use crate::error::ErrorKind;
use crate::format::blob::MIN_BLOB_BYTES;
use crate::verify::context::{Run, Work};
use crate::verify::ledger::{ChunkId, Depth, Turn, Verdict};
use crate::verify::options::Repair;
use crate::verify::report::VerifyEvent;

/// Next step for an entry of an index.
pub(super) enum Step<'a> {
    Done(Verdict),
    Later(Turn<'a>, Depth),
}

impl Run {
    /// The known result for a chunk, without waiting.
    pub(super) fn step(&self, id: ChunkId, work: Work<'_>) -> Step<'_> {
        let depth = match work {
            Work::Collect(collector) => {
                collector.add(id);
                return Step::Done(Verdict::Elsewhere);
            }
            Work::Known => return Step::Done(self.ledger.known(&id)),
            Work::Full(_) => Depth::Contents,
            Work::Presence(listed) => {
                let Some(shown) = listed.shows(&id.digest) else { return Step::Done(Verdict::Elsewhere) };
                if shown {
                    return match self.ledger.turn(id, Depth::Presence) {
                        Turn::Known(verdict) => Step::Done(verdict),
                        turn @ Turn::Wait(_) => Step::Later(turn, Depth::Presence),
                        Turn::Mine(ticket) => {
                            self.count(id, Verdict::Presence);
                            ticket.complete(Verdict::Presence);
                            Step::Done(Verdict::Presence)
                        }
                    };
                }
                Depth::Presence
            }
        };
        match self.ledger.turn(id, depth) {
            Turn::Known(verdict) => Step::Done(verdict),
            turn => Step::Later(turn, depth),
        }
    }

    /// Checks a chunk, or waits for the pass that does.
    pub(super) async fn check(&self, id: ChunkId, turn: Turn<'_>, depth: Depth) -> (ChunkId, Verdict) {
        let ticket = match turn {
            Turn::Known(verdict) => return (id, verdict),
            Turn::Wait(waiting) => return (id, waiting.await.unwrap_or(Verdict::Unchecked)),
            Turn::Mine(ticket) => ticket,
        };
        let _slot = self.slots.acquire(1).await;
        let verdict = match depth {
            Depth::Contents => self.read(id).await,
            Depth::Presence => self.confirm(id).await,
        };
        self.count(id, verdict);
        ticket.complete(verdict);
        (id, verdict)
    }

    /// Reads a chunk. It is reported corrupt only if a second fetch is corrupt too (H98).
    pub(super) async fn read(&self, id: ChunkId) -> Verdict {
        let permit = self.store.inner().read_permit(u64::from(id.length)).await;
        let Some(mut found) = self.inspect(id).await else { return Verdict::Unchecked };
        let (mut left, mut was_corrupt) = (self.options.refetches, false);
        while matches!(found, Inspected::Corrupt) && left > 0 {
            (left, was_corrupt) = (left - 1, true);
            let Some(again) = self.inspect(id).await else { return Verdict::Unchecked };
            found = again;
        }
        drop(permit);
        match found {
            Inspected::Corrupt => self.corrupt(id).await,
            Inspected::Good(examined) => {
                self.findings().report.unsteady += u64::from(was_corrupt);
                verdict(examined)
            }
            Inspected::Missing => self.missing(id).await,
            Inspected::Unreachable(error) => Verdict::Unreachable(error.kind()),
        }
    }

    async fn inspect(&self, id: ChunkId) -> Option<Inspected> {
        if !self.control.admit() {
            return None;
        }
        let (found, bytes) =
            self.store.inner().chunks().inspect(id.digest, u64::from(id.length), self.key_of(id.key)).await;
        self.control.count_bytes(bytes);
        Some(found)
    }

    /// Looks up a chunk that was not listed: a listing may lag (H13).
    async fn confirm(&self, id: ChunkId) -> Verdict {
        mutated!("verify-believes-the-listing" => return self.missing(id).await);
        if !self.control.admit() {
            return Verdict::Unchecked;
        }
        match self.store.inner().chunks().find(id.digest).await {
            Ok(info) if info.size < MIN_BLOB_BYTES as u64 => {
                self.store.inner().chunks().mark_suspect(id.digest).await;
                Verdict::Corrupt
            }
            Ok(_) => Verdict::Presence,
            Err(error) if error.kind() == ErrorKind::NotFound => self.missing(id).await,
            Err(error) => Verdict::Unreachable(error.kind()),
        }
    }

    async fn corrupt(&self, id: ChunkId) -> Verdict {
        if self.options.repair == Repair::Report {
            self.store.inner().chunks().mark_suspect(id.digest).await;
            return Verdict::Corrupt;
        }
        // The quarantine completes even if this future is dropped; the next execution then finds the chunk missing.
        let was_started = !self.repairs().insert(id);
        let outcome = self
            .store
            .inner()
            .repairs()
            .quarantine(id.digest, u64::from(id.length), self.key_of(id.key))
            .await;
        self.repairs().remove(&id);
        match outcome {
            QuarantineOutcome::Absent if was_started => {
                self.findings().report.quarantined += 1;
                Verdict::Corrupt
            }
            QuarantineOutcome::Absent => Verdict::Missing,
            QuarantineOutcome::Done => {
                self.findings().report.quarantined += 1;
                Verdict::Corrupt
            }
            QuarantineOutcome::Failed(error) => {
                self.findings().unrepaired(id.digest, error);
                Verdict::Corrupt
            }
            QuarantineOutcome::Healed(examined) => {
                self.findings().report.unsteady += 1;
                verdict(examined)
            }
        }
    }

    async fn missing(&self, id: ChunkId) -> Verdict {
        self.store.inner().chunks().mark_suspect(id.digest).await;
        if self.options.repair == Repair::Report {
            return Verdict::Missing;
        }
        match self
            .store
            .inner()
            .repairs()
            .reinstate(id.digest, u64::from(id.length), self.key_of(id.key))
            .await
        {
            Ok(Reinstatement::None) if self.repairs().remove(&id) => {
                self.findings().report.quarantined += 1;
                Verdict::Corrupt
            }
            Ok(Reinstatement::None) => Verdict::Missing,
            Ok(Reinstatement::Done(examined)) => {
                self.findings().report.reinstated += 1;
                verdict(examined)
            }
            Ok(Reinstatement::Stored) => match self.inspect(id).await {
                None => Verdict::Unchecked,
                Some(Inspected::Corrupt) => Verdict::Corrupt,
                Some(Inspected::Good(examined)) => verdict(examined),
                Some(Inspected::Missing) => Verdict::Missing,
                Some(Inspected::Unreachable(error)) => Verdict::Unreachable(error.kind()),
            },
            Err(error) => {
                self.findings().unrepaired(id.digest, error);
                Verdict::Missing
            }
        }
    }

    /// Counts a chunk, and emits its event.
    pub(super) fn count(&self, id: ChunkId, verdict: Verdict) {
        self.control.count_verdict(id.digest, verdict);
        {
            let counts = &mut self.findings().report.chunks;
            match verdict {
                Verdict::Corrupt => counts.corrupt += 1,
                Verdict::Checksum => counts.checksum += 1,
                Verdict::Authentic | Verdict::Digest | Verdict::OtherLength => counts.digest += 1,
                Verdict::Elsewhere | Verdict::Unchecked => {}
                Verdict::Missing => counts.missing += 1,
                Verdict::Presence => counts.presence += 1,
                Verdict::Unreachable(_) => counts.unreachable += 1,
            }
        }
        if let Some(finding) = verdict.finding() {
            self.notify(&VerifyEvent::ChunkChecked { digest: id.digest, finding });
        }
    }
}

fn verdict(examined: Examined) -> Verdict {
    match examined {
        Examined::Authentic => Verdict::Authentic,
        Examined::Checksum => Verdict::Checksum,
        Examined::Digest => Verdict::Digest,
        Examined::OtherLength => Verdict::OtherLength,
    }
}
