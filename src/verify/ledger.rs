//! Results for chunks in one run: each chunk is checked once, however many snapshots name it (H80, H105).

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use futures::channel::oneshot;

use crate::digest_set::SortedSet;
use crate::error::ErrorKind;
use crate::format::Digest;
use crate::verify::report::{CheckStrength, ChunkFinding};

/// Number of chunks remembered before they are sorted.
const LEAST_RECENT: usize = 8 << 10;
/// Approximate bytes of a chunk that is not good.
const BAD_BYTES: usize = 128;

/// A chunk as an index names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ChunkId {
    pub(super) digest: Digest,
    /// Number of the key that it is checked with, from 1; 0 for none.
    pub(super) key: u8,
    /// Length of its contents.
    pub(super) length: u32,
}

/// Result for a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Encrypted, and good under its key.
    Authentic,
    Corrupt,
    Checksum,
    Digest,
    /// Left to another pass.
    Elsewhere,
    Missing,
    /// Its contents have the digest but another length.
    OtherLength,
    Presence,
    Unchecked,
    Unreachable(ErrorKind),
}

impl Verdict {
    /// The event form of the result.
    pub(super) fn finding(self) -> Option<ChunkFinding> {
        match self {
            Self::Corrupt => Some(ChunkFinding::Corrupt),
            Self::Checksum => Some(ChunkFinding::Good(CheckStrength::Checksum)),
            Self::Authentic | Self::Digest | Self::OtherLength => {
                Some(ChunkFinding::Good(CheckStrength::Digest))
            }
            Self::Elsewhere | Self::Unchecked => None,
            Self::Missing => Some(ChunkFinding::Missing),
            Self::Presence => Some(ChunkFinding::Good(CheckStrength::Presence)),
            Self::Unreachable(kind) => Some(ChunkFinding::Unreachable(kind)),
        }
    }

    /// Its code in the set of good chunks.
    fn mark(self) -> Option<u32> {
        match self {
            Self::Authentic => Some(3 << 30),
            Self::Checksum => Some(1 << 31),
            Self::Digest => Some(0),
            Self::Presence => Some(1 << 30),
            _ => None,
        }
    }
}

/// Required depth of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    Contents,
    Presence,
}

#[derive(Debug)]
pub(super) struct Ledger {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Chunks that are not good. Every snapshot that uses one reports it.
    bad: HashMap<ChunkId, Verdict>,
    bad_most: usize,
    /// Number of defects entered, whether or not they were removed again.
    faults: u64,
    good: CheckedSet,
    /// A defect is not among the bad ones, which were too many.
    has_forgotten: bool,
    is_full: bool,
    /// Missing chunks that a recorded snapshot uses.
    kept: HashSet<ChunkId>,
    /// Chunks being checked, with the tasks that wait for them.
    pending: HashMap<(ChunkId, bool), Vec<oneshot::Sender<Verdict>>>,
}

/// Next step for a chunk.
pub(super) enum Turn<'a> {
    Known(Verdict),
    Mine(Ticket<'a>),
    Wait(oneshot::Receiver<Verdict>),
}

/// The duty to check a chunk. Dropping it without a result makes the result unknown.
pub(super) struct Ticket<'a> {
    id: ChunkId,
    is_deep: bool,
    ledger: &'a Ledger,
}

impl Ledger {
    pub(super) fn new(memory_bytes: usize) -> Self {
        let state = State {
            bad: HashMap::new(),
            bad_most: memory_bytes / 4 / BAD_BYTES,
            faults: 0,
            good: CheckedSet::new(memory_bytes / 4 * 3),
            has_forgotten: false,
            is_full: false,
            kept: HashSet::new(),
            pending: HashMap::new(),
        };
        Self { state: Mutex::new(state) }
    }

    pub(super) fn turn(&self, id: ChunkId, depth: Depth) -> Turn<'_> {
        let is_deep = depth == Depth::Contents;
        let mut state = self.state();
        if let Some(verdict) = state.bad.get(&id) {
            return Turn::Known(*verdict);
        }
        let enough = [Verdict::Digest, Verdict::Checksum, Verdict::Authentic, Verdict::Presence];
        let enough =
            if is_deep && !mutated!("verify-presence-counts-as-read") { &enough[..3] } else { &enough[..] };
        if let Some(known) = enough.iter().find(|verdict| state.good.contains(&id, **verdict)) {
            return Turn::Known(*known);
        }
        if let Some(waiting) = state.pending.get_mut(&(id, is_deep)) {
            let (sender, receiver) = oneshot::channel();
            waiting.push(sender);
            return Turn::Wait(receiver);
        }
        state.pending.insert((id, is_deep), Vec::new());
        Turn::Mine(Ticket { id, is_deep, ledger: self })
    }

    /// The result of a pass that finds the snapshots with bad chunks: unknown if the defect may be one that memory had no room for.
    pub(super) fn known(&self, id: &ChunkId) -> Verdict {
        let state = self.state();
        let forgotten = if state.has_forgotten { Verdict::Unchecked } else { Verdict::Elsewhere };
        state.bad.get(id).copied().unwrap_or(forgotten)
    }

    /// The known defect of a chunk.
    #[cfg(test)]
    pub(super) fn fault(&self, id: &ChunkId) -> Option<Verdict> {
        self.state().bad.get(id).copied()
    }

    /// Number of chunks found corrupt, missing, or different from their index entries. It only grows.
    pub(super) fn faults(&self) -> u64 {
        self.state().faults
    }

    /// Keeps the results for missing chunks of a recorded snapshot.
    pub(super) fn keep(&self, missing: &[ChunkId]) {
        let mut state = self.state();
        let known = missing.iter().filter(|id| state.bad.contains_key(id)).copied().collect::<Vec<_>>();
        state.kept.extend(known);
    }

    /// Forgets what the next execution has to check again: unreachable chunks, and if so many were missing that the store could not be
    /// trusted, missing ones that no recorded snapshot uses. Returns the number of these.
    pub(super) fn resume(&self, trusts_missing: bool) -> u64 {
        let mut state = self.state();
        let State { bad, kept, .. } = &mut *state;
        let mut missing = 0;
        bad.retain(|id, verdict| match verdict {
            Verdict::Missing if !trusts_missing && !kept.contains(id) => {
                missing += 1;
                false
            }
            Verdict::Unreachable(_) => false,
            _ => true,
        });
        missing
    }

    /// Returns `true` if there are more defects than the ledger holds.
    pub(super) fn is_full(&self) -> bool {
        self.state().is_full
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ticket<'_> {
    /// Gives the result to all waiting and later tasks.
    pub(super) fn complete(self, verdict: Verdict) {
        let mut state = self.ledger.state();
        if verdict.mark().is_some() {
            state.is_full |= !state.good.insert(&self.id, verdict);
        } else if verdict.finding().is_some() {
            let is_fault = !matches!(verdict, Verdict::Unreachable(_));
            state.faults += u64::from(is_fault);
            if state.bad.len() < state.bad_most {
                state.bad.insert(self.id, verdict);
            } else {
                state.is_full = true;
                state.has_forgotten |= is_fault && !mutated!("verify-forgets-faults");
            }
        }
        let waiting = state.pending.remove(&(self.id, self.is_deep)).unwrap_or_default();
        drop(state);
        for sender in waiting {
            // A dropped task wants no result.
            let _ = sender.send(verdict);
        }
    }
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.ledger.state().pending.remove(&(self.id, self.is_deep));
    }
}

/// Good chunks, at 16 bytes each: 12 of the digest, and the length with two bits for the check and one for a check with a key. Two chunks whose first 96 bits
/// and lengths are equal are taken for one, which happens by chance with one of 2^43 among 4 million.
#[derive(Debug)]
struct CheckedSet {
    is_full: bool,
    max_bytes: usize,
    recent: HashSet<u128>,
    sorted: SortedSet<u128>,
}

impl CheckedSet {
    fn new(max_bytes: usize) -> Self {
        Self { is_full: false, max_bytes, recent: HashSet::new(), sorted: SortedSet::default() }
    }

    fn contains(&self, id: &ChunkId, verdict: Verdict) -> bool {
        let entry = Self::entry(id, verdict);
        self.recent.contains(&entry) || self.sorted.contains(&entry)
    }

    /// Returns `true` if there was room.
    fn insert(&mut self, id: &ChunkId, verdict: Verdict) -> bool {
        // A recent entry takes up to 40 bytes.
        let takes = |sorted: usize, recent: usize| sorted * 16 + recent * 40;
        if self.is_full {
            return false;
        }
        if takes(self.sorted.len(), self.recent.len() + 1) > self.max_bytes {
            self.merge();
            // Not for few entries at a time, because each merge moves all of them.
            self.is_full = takes(self.sorted.len(), LEAST_RECENT / 16) > self.max_bytes;
            if self.is_full {
                return false;
            }
        }
        self.recent.insert(Self::entry(id, verdict));
        if self.recent.len() >= LEAST_RECENT.max(self.sorted.len() / 16) {
            self.merge();
        }
        true
    }

    fn entry(id: &ChunkId, verdict: Verdict) -> u128 {
        let mut bytes = [0; 16];
        let (digest, length) = bytes.split_at_mut(12);
        digest.copy_from_slice(&id.digest.as_bytes()[..12]);
        let keyed = if id.key == 0 { 0 } else { 1 << 29 };
        length.copy_from_slice(&(id.length | keyed | verdict.mark().unwrap_or_default()).to_le_bytes());
        u128::from_le_bytes(bytes)
    }

    fn merge(&mut self) {
        let mut recent = self.recent.drain().collect();
        self.sorted.merge(&mut recent);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(number: u32) -> ChunkId {
        ChunkId { digest: Digest::of(&number.to_le_bytes()), key: 0, length: number % 100 + 1 }
    }

    #[test]
    fn each_chunk_is_checked_once() {
        let ledger = Ledger::new(1 << 20);
        let Turn::Mine(ticket) = ledger.turn(id(1), Depth::Contents) else { panic!("it is new") };
        let Turn::Wait(mut waiting) = ledger.turn(id(1), Depth::Contents) else { panic!("it is under way") };
        ticket.complete(Verdict::Checksum);
        assert_eq!(waiting.try_recv(), Ok(Some(Verdict::Checksum)));
        for depth in [Depth::Contents, Depth::Presence] {
            assert!(matches!(ledger.turn(id(1), depth), Turn::Known(Verdict::Checksum)));
        }
        let Turn::Mine(ticket) = ledger.turn(id(2), Depth::Presence) else { panic!("it is new") };
        ticket.complete(Verdict::Presence);
        assert!(matches!(ledger.turn(id(2), Depth::Presence), Turn::Known(Verdict::Presence)));
        assert!(matches!(ledger.turn(id(2), Depth::Contents), Turn::Mine(_)), "its contents were not seen");
        assert!(
            matches!(ledger.turn(id(2), Depth::Contents), Turn::Mine(_)),
            "a dropped ticket says nothing"
        );
        let other = ChunkId { length: 7, ..id(1) };
        let Turn::Mine(ticket) = ledger.turn(other, Depth::Contents) else { panic!("of another length") };
        ticket.complete(Verdict::OtherLength);
        assert_eq!(ledger.fault(&other), Some(Verdict::OtherLength));
        assert_eq!(ledger.faults(), 1);
    }

    #[test]
    fn a_resume_forgets_what_no_record_holds() {
        let ledger = Ledger::new(1 << 20);
        let verdicts = [
            Verdict::Corrupt,
            Verdict::Missing,
            Verdict::Missing,
            Verdict::Unreachable(ErrorKind::Unavailable),
        ];
        for (number, verdict) in (0..).zip(verdicts) {
            let Turn::Mine(ticket) = ledger.turn(id(number), Depth::Contents) else { panic!("it is new") };
            ticket.complete(verdict);
        }
        ledger.keep(&[id(1)]);
        assert_eq!(ledger.resume(true), 0);
        assert_eq!(ledger.fault(&id(2)), Some(Verdict::Missing));
        assert_eq!((ledger.resume(false), ledger.faults()), (1, 3));
        let known = (0..4).map(|number| ledger.fault(&id(number)));
        assert_eq!(known.collect::<Vec<_>>(), [Some(Verdict::Corrupt), Some(Verdict::Missing), None, None]);
    }

    /// Proves H103, H105: a defect that is forgotten makes the snapshots that may have it unknown.
    #[test]
    fn a_full_set_stops_growing() {
        let ledger = Ledger::new(1 << 20);
        let mut remembered = 0;
        for number in 0..200_000 {
            let Turn::Mine(ticket) = ledger.turn(id(number), Depth::Contents) else { panic!("it is new") };
            ticket.complete(if number % 4 == 3 { Verdict::Missing } else { Verdict::Digest });
            remembered += u32::from(matches!(ledger.turn(id(number), Depth::Contents), Turn::Known(_)));
        }
        assert!(ledger.is_full());
        assert_eq!(
            (ledger.known(&id(3)), ledger.known(&id(199_999))),
            (Verdict::Missing, Verdict::Unchecked)
        );
        assert_eq!(ledger.faults(), 50_000);
        let state = ledger.state();
        let bytes = state.good.sorted.capacity() * 16 + state.good.recent.capacity() * 20;
        assert!(bytes <= (1 << 20) * 11 / 10, "{bytes} bytes");
        assert!(state.bad.len() <= (1 << 20) / 4 / BAD_BYTES);
        assert!((35_000..60_000).contains(&remembered), "{remembered} are remembered");
        assert_eq!(state.good.sorted.len() + state.good.recent.len() + state.bad.len(), remembered as usize);
    }

    proptest! {
        #[test]
        fn a_set_contains_exactly_its_inserted_digests(numbers in prop::collection::vec(0_u32..2000, 0..2000), every in 1_usize..300) {
            let mut set = CheckedSet::new(1 << 20);
            for (at, number) in numbers.iter().enumerate() {
                if !set.contains(&id(*number), Verdict::Digest) {
                    prop_assert!(set.insert(&id(*number), Verdict::Digest));
                }
                if at % every == 0 {
                    set.merge();
                }
            }
            let numbers = numbers.into_iter().collect::<std::collections::BTreeSet<_>>();
            for number in 0..2000 {
                prop_assert_eq!(set.contains(&id(number), Verdict::Digest), numbers.contains(&number));
                prop_assert!(!set.contains(&id(number), Verdict::Checksum));
            }
            prop_assert!(set.sorted.as_slice().is_sorted());
        }
    }
}
