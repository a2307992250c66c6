//! Storing of chunks: the open packs, and the packs that follow them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{self, Either};

use crate::backend::{PutMode, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::larder::pack::builder::PackBuilder;
use crate::format::larder::pack::name::PackName;
use crate::format::larder::pack::{MAX_PACK_BYTES, MAX_PACK_ENTRIES, PackClass, PackEntry, blob_length};
use crate::format::larder::segment::{ExclusionReason, MAX_RECORDS};
use crate::format::layout::Key;
use crate::packs::place::{Place, PlaceKey};
use crate::packs::view::{Contents, View};
use crate::packs::{Packs, State};
use crate::rt::semaphore::Permit;

/// Bytes that a pack may exceed its target by, so that chunks of a power of two fill it in spite of their headers.
pub(super) const SLACK_BYTES: usize = 64 << 10;

/// Minimum number of stored packs for which a segment is stored before the next barrier.
const LEAST_PACKS: usize = 16;
/// Minimum time after which stored packs get a segment before the next barrier.
const LEAST_TIME: Duration = Duration::from_mins(5);
/// Part of a flow of packs that a segment has at least.
const PARTS: usize = 32;

/// Maximum number of open packs: one of each class.
const OPEN_PACKS: u64 = 2;

/// Packs of this handle on their way.
#[derive(Debug, Default)]
pub(super) struct Writer {
    /// Facts about copies that no segment has.
    pub(super) exclusions: Vec<(Digest, Place, ExclusionReason)>,
    /// Dropped packs that no segment names as such.
    pub(super) drops: BTreeSet<PackName>,
    /// The failure after which chunks are only in memory.
    pub(super) failed: Option<Error>,
    /// Since the last barrier.
    pub(super) flow: Flow,
    /// When the last segment was stored.
    pub(super) last_recorded: Duration,
    /// Maximum number of records of a new segment.
    pub(super) max_records: usize,
    next_pack: u32,
    pub(super) next_segment: u32,
    /// The packs that are being filled.
    pub(super) open: BTreeMap<PackClass, u32>,
    /// Memory of packs that are not stored.
    pub(super) permits: BTreeMap<u32, Vec<Permit>>,
    /// Packs that are stored, and that no segment names, with their chunks.
    pub(super) unrecorded: BTreeMap<u32, Vec<PackEntry>>,
    /// Number of chunks that do not fit into memory beside open packs.
    starved: usize,
    /// Packs whose put failed.
    pub(super) unsent: BTreeSet<u32>,
    waiting: Vec<oneshot::Sender<()>>,
}

/// A flow of packs without a barrier, such as of a first backup.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Flow {
    began: Duration,
    packs: usize,
}

impl Flow {
    /// A flow that begins now.
    pub(super) fn new(now: Duration) -> Self {
        Self { began: now, packs: 0 }
    }

    /// Returns `true` if it is time for a segment with this number of packs, after this time since the last one. A flow that lasts gets segments
    /// that grow with it: so there are few, and an interruption costs a small part of it.
    pub(super) fn is_segment_due(&self, packs: usize, since: Duration, now: Duration) -> bool {
        let lasted = now.saturating_sub(self.began);
        packs >= LEAST_PACKS.max(self.packs / PARTS)
            || (packs > 0 && since >= LEAST_TIME.max(lasted / u32::try_from(PARTS).unwrap_or(u32::MAX)))
    }
}

impl Writer {
    /// A writer that begins now.
    pub(super) fn new(now: Duration) -> Self {
        let max_records = MAX_RECORDS as usize;
        Self { flow: Flow::new(now), last_recorded: now, max_records, ..Self::default() }
    }
}

impl State {
    /// Appends a blob to the open pack of its class. Returns its place, and the packs to store now.
    fn append(
        &mut self,
        packs: &Packs,
        (digest, class): (Digest, PackClass),
        blob: &[u8],
        permit: Permit,
    ) -> Result<(Place, Vec<u32>)> {
        let failed = |kind, error| Error::new(kind, "store").on(Key::Chunk(digest)).because(error);
        // Before any pack is closed or begun.
        blob_length(blob).map_err(|error| failed(ErrorKind::InvalidInput, error))?;
        let mut closed = Vec::new();
        let is_full = |builder: &PackBuilder| {
            builder.size_with(blob.len()) > packs.limit_bytes()
                || builder.entries().len() >= MAX_PACK_ENTRIES as usize
                || builder.contains(&digest)
        };
        if self.open_builder(class).is_some_and(|builder| is_full(builder)) {
            closed.extend(self.close(class));
        }
        let number = match self.writer.open.get(&class) {
            Some(number) => *number,
            None => self.begin_pack(packs, class),
        };
        let builder =
            self.open_builder(class).ok_or_else(|| Error::new(ErrorKind::Internal, "store").on(digest))?;
        // The pack is not full, and lacks the chunk.
        let entry = builder.push(digest, blob).map_err(|error| failed(ErrorKind::Internal, error))?;
        let is_full = builder.size() >= packs.target_bytes as u64;
        if let Some(info) = self.view.pack_mut(number) {
            info.last_used = Some(packs.runtime().now());
        }
        let place = Place::of(number, &entry);
        self.view.add_recent(digest, place);
        self.writer.permits.entry(number).or_default().push(permit);
        if is_full {
            closed.extend(self.close(class));
        }
        if self.writer.starved > 0 {
            closed.extend(self.close_all());
        }
        Ok((place, closed))
    }

    fn open_builder(&mut self, class: PackClass) -> Option<&mut PackBuilder> {
        let number = *self.writer.open.get(&class)?;
        match self.view.pack_mut(number)?.contents.as_deref_mut()? {
            Contents::Open(builder) => Some(builder),
            Contents::Closed(_) => None,
        }
    }

    fn begin_pack(&mut self, packs: &Packs, class: PackClass) -> u32 {
        let name = PackName { session: packs.session, n: self.writer.next_pack };
        self.writer.next_pack += 1;
        self.writer.flow.packs += 1;
        let number = self.view.number_of(name, class, 0);
        if let Some(info) = self.view.pack_mut(number) {
            let buffer = packs.buffers.take(packs.target_bytes + SLACK_BYTES);
            info.contents = Some(Box::new(Contents::Open(PackBuilder::new(name, class, buffer))));
        }
        self.writer.open.insert(class, number);
        number
    }

    /// Closes all open packs. Returns the numbers of those that are to be stored.
    pub(super) fn close_all(&mut self) -> Vec<u32> {
        let open: Vec<_> = self.writer.open.keys().copied().collect();
        open.into_iter().filter_map(|class| self.close(class)).collect()
    }

    /// Closes the open pack of a class. Returns its number if it is to be stored.
    fn close(&mut self, class: PackClass) -> Option<u32> {
        let number = self.writer.open.remove(&class)?;
        let info = self.view.pack_mut(number)?;
        match info.contents.take().map(|contents| *contents) {
            Some(Contents::Open(builder)) => {
                let pack = builder.finish()?;
                info.bytes = pack.bytes.len() as u64;
                info.contents = Some(Box::new(Contents::Closed(pack.bytes)));
                self.writer.unrecorded.insert(number, pack.directory.into_entries());
                Some(number)
            }
            other => {
                info.contents = other.map(Box::new);
                None
            }
        }
    }

    /// Waits until storing a pack ends.
    pub(super) fn next_end(&mut self) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        self.writer.waiting.push(sender);
        receiver
    }

    /// Wakes all tasks that wait for a pack to be stored.
    pub(super) fn notify(&mut self) {
        for waiting in self.writer.waiting.drain(..) {
            // A task that was dropped waits no more.
            let _ = waiting.send(());
        }
    }
}

impl Packs {
    /// Maximum size of a pack.
    fn limit_bytes(&self) -> u64 {
        let slack = SLACK_BYTES.min(self.target_bytes / 32);
        (self.target_bytes as u64 + slack as u64).min(MAX_PACK_BYTES.into())
    }

    /// Stores a chunk in the open pack of its class.
    pub(super) async fn put_chunk(
        self: &Arc<Self>,
        (digest, class): (Digest, PackClass),
        blob: &Bytes,
        mode: &PutMode,
    ) -> Result<Version> {
        let permit = self.room(blob.len()).await?;
        let (version, closed) = {
            let mut state = self.state_of(&digest).await?;
            if let Some(failed) = &state.writer.failed {
                return Err(failed.clone());
            }
            // In the same step as the append: of two writers, one creates.
            let places = state.view.reliable_places(&digest);
            let present = places.first().map(|place| version_of(&state.view, place));
            let refused = |kind| Err(Error::new(kind, "store").on(Key::Chunk(digest)));
            match (mode, &present) {
                (PutMode::Create, Some(_)) if mutated!("pack-chunk-is-created-twice") => {}
                (PutMode::Create, Some(_)) => return refused(ErrorKind::AlreadyExists),
                (PutMode::IfMatch(wanted), present) if present.as_ref() != Some(wanted) => {
                    return refused(ErrorKind::Conflict);
                }
                _ => {}
            }
            let (place, closed) = state.append(self, (digest, class), blob, permit)?;
            // The caller read the old copies, and they are bad.
            for place in places {
                mutated!("pack-bad-copy-still-counts" => continue);
                state.exclude(digest, place, ExclusionReason::Bad);
            }
            (version_of(&state.view, &place), closed)
        };
        self.store_packs(closed);
        Ok(version)
    }

    /// Appends another copy of a chunk, whatever copies there are.
    pub(super) async fn append_copy(
        self: &Arc<Self>,
        (digest, class): (Digest, PackClass),
        blob: &Bytes,
    ) -> Result<()> {
        let permit = self.room(blob.len()).await?;
        let closed = {
            let mut state = self.state();
            if let Some(failed) = &state.writer.failed {
                return Err(failed.clone());
            }
            state.append(self, (digest, class), blob, permit)?.1
        };
        self.store_packs(closed);
        Ok(())
    }

    /// Waits for memory for a chunk. Memory that others wait for is in packs that are being stored, or becomes part of an open pack, which
    /// is stored once it is full. Only a chunk that does not fit beside full open packs needs them closed earlier.
    ///
    /// # Errors
    /// The failure to store a pack: its memory stays in use.
    async fn room(self: &Arc<Self>, bytes: usize) -> Result<Permit> {
        let mut acquired = Box::pin(self.memory.acquire(bytes));
        if let Poll::Ready(permit) = futures::poll!(&mut acquired) {
            return Ok(permit);
        }
        let is_starved = bytes as u64 + OPEN_PACKS * self.limit_bytes() > self.memory_bytes as u64;
        let _starved = is_starved.then(|| Starved::new(self));
        if is_starved {
            let closed = self.state().close_all();
            self.store_packs(closed);
        }
        loop {
            let ended = {
                let mut state = self.state();
                if let Some(failed) = &state.writer.failed {
                    return Err(failed.clone());
                }
                state.next_end()
            };
            if let Either::Left((permit, _)) = future::select(&mut acquired, ended).await {
                return Ok(permit);
            }
        }
    }
}

/// A chunk that waits until no memory is in open packs.
struct Starved<'a>(&'a Packs);

impl<'a> Starved<'a> {
    fn new(packs: &'a Packs) -> Self {
        packs.state().writer.starved += 1;
        Self(packs)
    }
}

impl Drop for Starved<'_> {
    fn drop(&mut self) {
        self.0.state().writer.starved -= 1;
    }
}

impl State {
    /// Excludes a copy, and notes that for the next segment.
    pub(super) fn exclude(&mut self, digest: Digest, place: Place, reason: ExclusionReason) {
        self.view.exclude(digest, place, reason);
        self.writer.exclusions.push((digest, place, reason));
    }

    /// The copies that only memory knows to be bad or deleted.
    pub(super) fn excluded_in_memory(&self) -> HashSet<PlaceKey> {
        mutated!("pack-merge-forgets-quarantined-copies" => return HashSet::new());
        self.writer.exclusions.iter().map(|(_, place, _)| place.key()).collect()
    }
}

/// The version of a chunk: the place of the copy that is read.
pub(super) fn version_of(view: &View, place: &Place) -> Version {
    let pack = view.pack(place.pack).map(|pack| pack.name.to_string()).unwrap_or_default();
    Version::new(format!("{pack}:{}", place.offset))
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use std::collections::BTreeSet;

    use futures::FutureExt as _;

    use super::*;
    use crate::backend::fault::{Action, FaultBackend, Rule};
    use crate::backend::record::Method;
    use crate::backend::{Backend, MemoryBackend};
    use crate::packs::Limits;
    use crate::packs::PackedBackend;
    use crate::packs::tests::names_of_packs;
    use crate::rt::{Runtime as _, SimRuntime};

    const KIB: usize = 1 << 10;
    /// Size of a pack, with slack of 16 KiB.
    const TARGET: usize = 512 * KIB;
    /// A pack that is stored beside two that are filled.
    const MEMORY: usize = 3 * TARGET;
    const LIMITS: Limits =
        Limits { index_bytes: 1 << 20, local: None, memory_bytes: MEMORY, target_bytes: TARGET };
    /// Time for which a pack is being stored.
    const DELAY: Duration = Duration::from_secs(10);

    struct Scene {
        below: Arc<dyn Backend>,
        faults: Arc<FaultBackend>,
        packed: PackedBackend,
    }

    /// Packs are stored slowly.
    async fn scene(sim: &SimRuntime, uuid: &str) -> Scene {
        let faults = Arc::new(FaultBackend::new(Arc::new(MemoryBackend::new(Arc::new(sim.clone())))));
        let below: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        let packed = PackedBackend::open(Arc::clone(&below), uuid, LIMITS).await.unwrap();
        faults.add(Rule::on(Method::Put, Action::Delay(DELAY)).keys(is_pack));
        Scene { below, faults, packed }
    }

    fn is_pack(key: &Key) -> bool {
        matches!(key, Key::Pack(_))
    }

    fn chunk(number: usize) -> Key {
        Key::Chunk(Digest::of(&number.to_le_bytes()))
    }

    async fn put(packed: &PackedBackend, number: usize, kib: usize) -> Result<()> {
        let blob = Bytes::from(vec![number.to_le_bytes()[0]; kib * KIB]);
        packed.put(&chunk(number), blob, PutMode::Create).await.map(drop)
    }

    /// Number of chunks in the open pack, and of puts that wait for its memory.
    fn open_and_starved(packed: &PackedBackend) -> (usize, usize) {
        let mut state = packed.packs.state();
        let chunks = state.open_builder(PackClass::Data).map_or(0, |builder| builder.entries().len());
        (chunks, state.writer.starved)
    }

    /// Bytes of packs in memory.
    fn bytes_in_memory(packed: &PackedBackend) -> usize {
        let state = packed.packs.state();
        let contents = |number| match state.view.pack(number).unwrap().contents.as_deref() {
            Some(Contents::Open(builder)) => usize::try_from(builder.size()).unwrap(),
            Some(Contents::Closed(bytes)) => bytes.len(),
            None => 0,
        };
        state.view.in_memory().into_iter().map(contents).sum()
    }

    #[test]
    fn a_long_flow_of_packs_leaves_few_segments() {
        let second = Duration::from_secs(1);
        let (mut flow, mut now, mut last, mut ready, mut segments) =
            (Flow::new(second), second, second, 0, 0_u32);
        for _ in 0..100_000 {
            (flow.packs, ready, now) = (flow.packs + 1, ready + 1, now + second);
            if flow.is_segment_due(ready, now.saturating_sub(last), now) {
                assert!(ready >= 16 && ready <= flow.packs / 32 + 16);
                (segments, ready, last) = (segments + 1, 0, now);
            }
        }
        assert!((150..250).contains(&segments), "{segments}");
        // A slow one gets them by time.
        let flow = Flow { packs: 3, ..Flow::new(second) };
        assert!(!flow.is_segment_due(0, 1000 * second, 1000 * second));
        assert!(!flow.is_segment_due(1, 299 * second, 1000 * second));
        assert!(flow.is_segment_due(1, 300 * second, 1000 * second));
        assert!(!flow.is_segment_due(1, 300 * second, 20_000 * second));
    }

    #[test]
    fn a_chunk_that_does_not_fit_beside_the_open_pack_closes_it_early() {
        let sim = SimRuntime::new(1);
        sim.block_on(async {
            let Scene { below, packed, .. } = scene(&sim, "closed early").await;
            put(&packed, 1, 450).await.unwrap();
            assert_eq!(open_and_starved(&packed), (1, 0));
            let before = sim.monotonic();
            put(&packed, 2, 1250).await.unwrap();
            assert_eq!(sim.monotonic().checked_sub(before), Some(DELAY));
            assert_eq!(names_of_packs(&below).await.len(), 1);
            // The large chunk fills its pack alone.
            assert_eq!(open_and_starved(&packed), (0, 0));
            packed.barrier_of_holder().await.unwrap();
            assert_eq!((names_of_packs(&below).await.len(), packed.packs.memory.held()), (2, 0));
        });
    }

    #[test]
    fn a_chunk_that_fits_beside_the_open_pack_waits_and_leaves_it_open() {
        let sim = SimRuntime::new(1);
        sim.block_on(async {
            let Scene { packed, .. } = scene(&sim, "left open").await;
            for number in [1, 2, 3] {
                put(&packed, number, 520).await.unwrap();
            }
            put(&packed, 4, 100).await.unwrap();
            let before = sim.monotonic();
            put(&packed, 5, 100).await.unwrap();
            assert!(sim.monotonic() > before, "it waited");
            assert_eq!(open_and_starved(&packed), (2, 0));
        });
    }

    #[test]
    fn a_dropped_put_does_not_close_packs_any_more() {
        let sim = SimRuntime::new(1);
        sim.block_on(async {
            let Scene { packed, .. } = scene(&sim, "dropped").await;
            put(&packed, 1, 450).await.unwrap();
            let mut waits = Box::pin(put(&packed, 2, 1250));
            assert!((&mut waits).now_or_never().is_none());
            assert_eq!(open_and_starved(&packed), (0, 1));
            drop(waits);
            for number in [3, 4, 5] {
                put(&packed, number, 100).await.unwrap();
            }
            assert_eq!(open_and_starved(&packed), (3, 0));
            packed.barrier_of_holder().await.unwrap();
            assert_eq!(packed.packs.memory.held(), 0);
        });
    }

    /// A put that had its memory first, and appends only now, must not leave its chunk in a pack that stays open.
    #[test]
    fn while_a_chunk_waits_for_the_memory_of_the_open_pack_others_close_theirs_at_once() {
        let sim = SimRuntime::new(1);
        sim.block_on(async {
            let Scene { packed, .. } = scene(&sim, "others close").await;
            for number in [1, 2, 3] {
                put(&packed, number, 520).await.unwrap();
            }
            put(&packed, 4, 100).await.unwrap();
            let (small, large) = futures::future::join(put(&packed, 5, 100), put(&packed, 6, 1100)).await;
            small.and(large).unwrap();
            packed.barrier_of_holder().await.unwrap();
            for number in 1..7 {
                let found = packed.get(&chunk(number), u64::MAX).await.unwrap();
                assert_eq!(found.bytes[0], number.to_le_bytes()[0]);
            }
            assert_eq!(packed.packs.memory.held(), 0);
        });
    }

    #[test]
    fn packs_of_both_classes_are_filled_beside_each_other_within_the_memory() {
        let sim = SimRuntime::new(1);
        sim.block_on(async {
            let Scene { below, packed, .. } = scene(&sim, "both classes").await;
            let put = async |number: usize| {
                let class = [PackClass::Data, PackClass::Metadata][number % 2];
                let blob = Bytes::from(vec![number.to_le_bytes()[0]; (number * 37 % 500 + 20) * KIB]);
                let digest = Digest::of(&number.to_le_bytes());
                packed.put_chunk(digest, class, &blob, &PutMode::Create).await.unwrap();
                assert!(bytes_in_memory(&packed) <= MEMORY + 2 * SLACK_BYTES);
                assert!(packed.packs.state().writer.open.len() <= 2);
            };
            let mut puts: Vec<_> = (0..40).map(put).collect();
            while !puts.is_empty() {
                let others = puts.split_off(puts.len().min(5));
                futures::future::join_all(puts).await;
                puts = others;
            }
            let refused = packed.put(&chunk(1), Bytes::from_static(&[0; 20]), PutMode::Create).await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::AlreadyExists);
            packed.barrier_of_holder().await.unwrap();
            assert_eq!((bytes_in_memory(&packed), packed.packs.memory.held()), (0, 0));
            let other = PackedBackend::open(below, "both classes, elsewhere", LIMITS).await.unwrap();
            let state = other.packs.state();
            for number in 0..40_usize {
                let place = state.view.places(&Digest::of(&number.to_le_bytes()))[0];
                let class = state.view.pack(place.pack).unwrap().class;
                assert_eq!(class, [PackClass::Data, PackClass::Metadata][number % 2]);
            }
        });
    }

    /// A writer that tries again and again while storing fails does not fill the memory with packs.
    #[test]
    fn however_often_storing_fails_the_packs_in_memory_stay_within_their_bound() {
        let sim = SimRuntime::new(1);
        sim.block_on(async {
            let Scene { below, faults, packed } = scene(&sim, "storing fails").await;
            faults.clear();
            faults.add(Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable)).keys(is_pack));
            let mut accepted = BTreeSet::new();
            let mut number = 0;
            for round in 0..20 {
                let puts = async {
                    loop {
                        number += 1;
                        let stored = put(&packed, number, 100).await;
                        assert!(bytes_in_memory(&packed) <= MEMORY + 2 * SLACK_BYTES);
                        match stored {
                            Ok(()) => _ = accepted.insert(number),
                            Err(error) => break assert_eq!(error.kind(), ErrorKind::Unavailable),
                        }
                    }
                };
                // The barrier stores the same packs again. Meanwhile puts wait for memory, and then fail with it.
                let (flushed, ()) = futures::future::join(packed.barrier_of_holder(), puts).await;
                assert!(round == 0 || flushed.is_err());
            }
            faults.clear();
            packed.barrier_of_holder().await.unwrap();
            assert_eq!((bytes_in_memory(&packed), packed.packs.memory.held()), (0, 0));
            put(&packed, 1000, 100).await.unwrap();
            let other = PackedBackend::open(below, "storing fails, elsewhere", LIMITS).await.unwrap();
            assert!(accepted.len() > 5);
            for number in accepted {
                other.get(&chunk(number), u64::MAX).await.unwrap();
            }
        });
    }
}
