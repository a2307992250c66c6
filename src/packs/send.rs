//! Storing of packs and segments. [`crate::packs`] has the order.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};

use crate::backend::PutMode;
use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::pack::name::PackName;
use crate::format::larder::segment::builder::{FinishedSegment, SegmentBuilder};
use crate::format::larder::segment::name::SegmentName;
use crate::format::larder::segment::{Exclusion, MAX_EXCLUSIONS, Segment, SegmentWriteError};
use crate::format::layout::Key;
use crate::packs::put::Flow;
use crate::packs::view::Contents;
use crate::packs::{Packs, State};

impl Packs {
    /// Starts to store closed packs, each as a task of its own.
    pub(super) fn store_packs(self: &Arc<Self>, numbers: impl IntoIterator<Item = u32>) {
        for number in numbers {
            // Before the task: a runtime may drop it unpolled.
            let sending = Sending { is_over: false, number, packs: Arc::clone(self) };
            self.runtime().spawn(Box::pin(sending.store_pack()));
        }
    }

    /// Returns `true` if chunks are only in memory because storing them failed.
    pub(super) fn has_failed(&self) -> bool {
        self.state().writer.failed.is_some()
    }

    /// Stores everything that is in memory, and records it.
    ///
    /// # Errors
    /// Any failure to store it. It stays in memory then.
    pub(super) async fn flush(self: &Arc<Self>) -> Result<()> {
        let _alone = self.flushing.lock().await;
        let (wanted, again) = {
            let mut state = self.state();
            let closed = state.close_all();
            let mut again: Vec<_> = std::mem::take(&mut state.writer.unsent).into_iter().collect();
            again.extend(closed);
            state.writer.failed = None;
            (state.view.in_memory(), again)
        };
        self.store_packs(again);
        self.wait_for_sends(|state| {
            if let Some(error) = state.writer.failed.clone()
                && wanted.iter().any(|number| state.writer.unsent.contains(number))
            {
                return Some(Err(error));
            }
            let is_over = !wanted.iter().any(|number| state.view.is_in_memory(*number));
            is_over.then_some(Ok(()))
        })
        .await?;
        self.record(Share::All).await?;
        self.state().writer.flow = Flow::new(self.runtime().monotonic());
        Ok(())
    }

    /// Waits for the packs that are being stored, however that ends.
    pub(super) async fn settle(&self) {
        let wanted = self.state().view.in_memory();
        self.wait_for_sends(|state| {
            let is_sent = |number: &u32| {
                state.view.is_in_memory(*number)
                    && !state.writer.unsent.contains(number)
                    && !state.writer.open.values().any(|open| open == number)
            };
            (!wanted.iter().any(is_sent)).then_some(())
        })
        .await;
    }

    /// Waits until this returns a result. It is asked again whenever storing a pack ends.
    async fn wait_for_sends<T>(&self, mut result: impl FnMut(&State) -> Option<T>) -> T {
        loop {
            let waiting = {
                let mut state = self.state();
                if let Some(result) = result(&state) {
                    return result;
                }
                state.next_end()
            };
            // The sender is kept until it is used.
            let _ = waiting.await;
        }
    }

    /// The facts that this handle may record: packs and drops only under the lock of the store. Without it, another process may have deleted the packs
    /// meanwhile, and nothing that was acknowledged depends on them. The next holder looks for them first.
    fn share(&self) -> Share {
        if self.is_held() { Share::All } else { Share::Exclusions }
    }

    /// Stores segments with all of this that no segment has, if there is anything.
    pub(super) async fn record(self: &Arc<Self>, share: Share) -> Result<()> {
        let _alone = self.recording.lock().await;
        while let Some(draft) = self.draft(share)? {
            self.record_draft(draft).await?;
        }
        Ok(())
    }

    async fn record_draft(&self, draft: Draft) -> Result<()> {
        // Packs are durable before a segment names them.
        if !mutated!("pack-is-named-before-it-is-durable") {
            self.inner.barrier().await?;
        }
        let Draft { builder, drops, exclusions, packs } = draft;
        let segment = self.put_segment(builder).await?.map_err(unencodable)?;
        // Unknown if the clock cannot be read: dropped packs stay longer then.
        let stored = if drops.is_empty() { None } else { self.inner.clock().await.ok() };
        let mut state = self.state();
        self.add_segment(&mut state, &segment, stored);
        state.view.settle(&packs);
        state.writer.unrecorded.retain(|number, _| !packs.contains(number));
        state.writer.exclusions.drain(..exclusions);
        for dropped in drops {
            state.writer.drops.remove(&dropped);
        }
        state.writer.last_recorded = self.runtime().monotonic();
        drop(state);
        self.note_recorded();
        Ok(())
    }

    /// Encodes and stores a segment. Returns an error of its own if it cannot be encoded; nothing was stored then.
    pub(super) async fn put_segment(
        &self,
        builder: SegmentBuilder,
    ) -> Result<Result<Segment, SegmentWriteError>> {
        let encode = move || Ok(builder.finish().map(|finished| (finished.name, joined(&finished))));
        let (name, bytes) = match self.runtime().run_blocking("encode an index segment", encode).await? {
            Err(error) => return Ok(Err(error)),
            Ok(encoded) => encoded,
        };
        let key = Key::Segment(name);
        if !self.inner.capabilities().consistent_listing {
            // Also if the put fails: it may be stored.
            self.handles.note_segment(name, self.runtime().monotonic());
        }
        self.inner.put(&key, bytes.clone(), self.inner.capabilities().create_mode()).await?;
        let parsed = Segment::parse(&name, &bytes);
        let parsed =
            parsed.map_err(|error| Error::new(ErrorKind::Internal, "store").on(&key).because(error))?;
        Ok(Ok(parsed))
    }

    /// Adds a segment that was stored.
    pub(super) fn add_segment(&self, state: &mut State, segment: &Segment, stored: Option<SystemTime>) {
        state.view.add_segment(segment.head(), Some(segment.records().clone()), stored);
        state.view.shrink(self.index);
    }

    fn draft(&self, share: Share) -> Result<Option<Draft>> {
        let mut state = self.state();
        state.forget_dropped();
        let mut packs: HashSet<u32> = state.stored_unrecorded().into_iter().collect();
        let mut drops = state.writer.drops.clone();
        if share == Share::Exclusions {
            packs.clear();
            drops.clear();
        }
        // Exclusions in a pack that is not recorded follow with it.
        let exclusions = state.writer.exclusions.iter();
        let follows = |pack| {
            state.view.is_in_memory(pack)
                || (share == Share::Exclusions && state.writer.unrecorded.contains_key(&pack))
        };
        let exclusions =
            exclusions.take_while(|(_, place, _)| !follows(place.pack)).take(MAX_EXCLUSIONS as usize).count();
        if packs.is_empty() && exclusions == 0 && drops.is_empty() {
            return Ok(None);
        }
        let name = SegmentName { session: self.session, n: state.writer.next_segment };
        state.writer.next_segment += 1;
        let mut builder = SegmentBuilder::new(name);
        for number in &packs {
            let unknown = || Error::new(ErrorKind::Internal, "encode an index segment");
            let pack = state.view.segment_pack(*number).ok_or_else(unknown)?;
            let number_in_segment = builder.add_pack(pack).map_err(unencodable)?;
            for entry in state.writer.unrecorded.get(number).into_iter().flatten() {
                builder.push(number_in_segment, *entry).map_err(unencodable)?;
            }
        }
        for (digest, place, reason) in state.writer.exclusions.iter().take(exclusions) {
            let Some(pack) = state.view.pack(place.pack).map(|pack| pack.name) else { continue };
            let exclusion = Exclusion { entry: place.entry(*digest), pack, reason: *reason };
            builder.exclude(exclusion).map_err(unencodable)?;
        }
        for name in &drops {
            builder.drop_pack(*name);
        }
        Ok(Some(Draft { builder, drops, exclusions, packs }))
    }
}

/// Content of new segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    All,
    /// Exclusions of copies in packs that segments name.
    Exclusions,
}

/// A pack that is being stored. A barrier that waits for it learns of its end, whatever ends it.
struct Sending {
    is_over: bool,
    number: u32,
    packs: Arc<Packs>,
}

impl Sending {
    async fn store_pack(mut self) {
        let (packs, number) = (Arc::clone(&self.packs), self.number);
        let Some((name, bytes)) = packs.state().closed_pack(number) else {
            self.is_over = true;
            return;
        };
        // The same bytes under the same name, however often: a late request does no harm.
        let stored = packs.inner.put(&Key::Pack(name), bytes, PutMode::Replace).await;
        self.is_over = true;
        let is_due = {
            let now = packs.runtime().monotonic();
            let mut state = packs.state();
            match stored {
                Ok(_) => {
                    state.writer.permits.remove(&number);
                    if let Some(info) = state.view.pack_mut(number) {
                        info.contents = None;
                        info.last_used = Some(packs.runtime().now());
                    }
                }
                // The bytes stay in memory, and so their memory in use. Puts that wait for it fail.
                Err(error) => {
                    state.writer.unsent.insert(number);
                    state.writer.failed = Some(error);
                }
            }
            state.notify();
            let ready = state.stored_unrecorded().len();
            let since = now.saturating_sub(state.writer.last_recorded);
            state.writer.flow.is_segment_due(ready, since, now)
        };
        if is_due {
            // A failure keeps the packs unrecorded, and the next barrier tries again.
            let _ = packs.record(packs.share()).await;
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut state = self.packs.state();
        state.writer.unsent.insert(self.number);
        state.writer.failed = Some(Error::new(ErrorKind::Internal, "store a pack"));
        state.notify();
    }
}

/// A segment that is about to be stored.
struct Draft {
    builder: SegmentBuilder,
    drops: BTreeSet<PackName>,
    /// Number of exclusions in it, the oldest ones.
    exclusions: usize,
    packs: HashSet<u32>,
}

impl State {
    /// Forgets packs that are not recorded and that a collection adopted and dropped meanwhile.
    fn forget_dropped(&mut self) {
        let unrecorded: Vec<_> = self.writer.unrecorded.keys().copied().collect();
        for number in unrecorded {
            if self.view.is_dropped_anywhere(number) {
                self.forget(number);
            }
        }
    }

    /// Forgets a pack that is not recorded, and its copies.
    pub(super) fn forget(&mut self, number: u32) {
        self.writer.unrecorded.remove(&number);
        self.view.settle(&HashSet::from([number]));
        if let Some(pack) = self.view.pack_mut(number) {
            (pack.is_adopted, pack.is_listed) = (false, false);
        }
    }

    /// Forgets all packs that are in memory only.
    pub(super) fn give_up(&mut self) {
        self.writer.open.clear();
        for number in self.view.in_memory() {
            if let Some(pack) = self.view.pack_mut(number) {
                pack.contents = None;
            }
            self.writer.permits.remove(&number);
            self.writer.unsent.remove(&number);
            self.forget(number);
        }
        self.writer.failed = None;
    }

    /// Name and bytes of a pack that is closed and not stored.
    fn closed_pack(&self, number: u32) -> Option<(PackName, Bytes)> {
        let info = self.view.pack(number)?;
        match info.contents.as_deref() {
            Some(Contents::Closed(bytes)) => Some((info.name, bytes.clone())),
            _ => None,
        }
    }

    /// Packs that are stored and that no segment names.
    pub(super) fn stored_unrecorded(&self) -> Vec<u32> {
        let unrecorded = self.writer.unrecorded.keys().copied();
        unrecorded.filter(|number| !self.view.is_in_memory(*number)).collect()
    }
}

fn joined(finished: &FinishedSegment) -> Bytes {
    let mut bytes = BytesMut::with_capacity(finished.parts.iter().map(Bytes::len).sum());
    for part in &finished.parts {
        bytes.extend_from_slice(part);
    }
    bytes.freeze()
}

pub(super) fn unencodable(error: SegmentWriteError) -> Error {
    Error::new(ErrorKind::Internal, "encode an index segment").because(error)
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use futures::executor::block_on;

    use super::*;
    use crate::backend::fault::{Action, FaultBackend, Rule};
    use crate::backend::record::Method;
    use crate::backend::{Backend, Coordination as _, ListQuery, LockMode, LockScope, list_all};
    use crate::format::layout::Prefix;
    use crate::packs::PackedBackend;
    use crate::packs::tests::{blob, chunk, delete, is_reliable, memory, names_of_packs, open, put};

    fn with_faults() -> (Arc<FaultBackend>, Arc<dyn Backend>) {
        let faults = Arc::new(FaultBackend::new(memory()));
        let below: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        (faults, below)
    }

    /// Stores a chunk in a pack that no segment names.
    async fn put_unrecorded(packed: &PackedBackend, faults: &FaultBackend, number: u32) {
        put(packed, number).await;
        let is_segment = |key: &Key| matches!(key, Key::Segment(_));
        faults.add(Rule::on(Method::Put, Action::FailBefore(ErrorKind::Unavailable)).keys(is_segment));
        assert_eq!(packed.barrier_of_holder().await.unwrap_err().kind(), ErrorKind::Unavailable);
        faults.clear();
    }

    async fn segments(below: &Arc<dyn Backend>) -> usize {
        list_all(below.as_ref(), &ListQuery::all(Prefix::Segments)).await.unwrap().entries().len()
    }

    /// Adopts all orphans as a collection does.
    async fn adopt(packed: &PackedBackend) {
        let begin = packed.packs.begin_listing().await.unwrap();
        assert_eq!(packed.adopt_orphans(&begin, |_| true).await.unwrap(), 1);
    }

    /// Otherwise the copies would count again once a merged segment has forgotten the drop.
    ///
    /// Proves H202.
    #[test]
    fn a_pack_that_another_process_dropped_is_not_recorded_any_more() {
        block_on(async {
            let (faults, below) = with_faults();
            let packed = open(&below, "recorded late").await;
            put_unrecorded(&packed, &faults, 1).await;
            let other = open(&below, "recorded late, collector").await;
            adopt(&other).await;
            let names = names_of_packs(&below).await;
            other.drop_packs(&names.into_iter().collect()).await.unwrap();
            let before = segments(&below).await;
            // It learns of the drop when it takes the lock.
            drop(packed.lock_shared().await);
            assert!(!is_reliable(&packed, 1).await);
            packed.barrier_of_holder().await.unwrap();
            assert_eq!((segments(&below).await, packed.packs.state().writer.unrecorded.len()), (before, 0));
            put(&packed, 1).await;
            packed.barrier_of_holder().await.unwrap();
            drop(other.lock_shared().await);
            assert!(is_reliable(&packed, 1).await && is_reliable(&other, 1).await);
        });
    }

    /// A handle that adopted an orphan too learns of its drop without reading a segment.
    ///
    /// Proves H202.
    #[test]
    fn a_pack_that_another_handle_dropped_is_not_recorded_any_more() {
        block_on(async {
            let (faults, below) = with_faults();
            let died = open(&below, "adopted twice, dead writer").await;
            put_unrecorded(&died, &faults, 1).await;
            let (packed, other) = (open(&below, "adopted twice").await, open(&below, "adopted twice").await);
            adopt(&packed).await;
            adopt(&other).await;
            let names = names_of_packs(&below).await;
            other.drop_packs(&names.into_iter().collect()).await.unwrap();
            let before = segments(&below).await;
            assert!(!is_reliable(&packed, 1).await);
            packed.barrier_of_holder().await.unwrap();
            assert_eq!(segments(&below).await, before);
        });
    }

    #[test]
    fn a_pack_that_is_forgotten_takes_only_its_own_chunks_along() {
        block_on(async {
            let (faults, below) = with_faults();
            let packed = open(&below, "forgotten").await;
            put_unrecorded(&packed, &faults, 1).await;
            let first = names_of_packs(&below).await;
            put_unrecorded(&packed, &faults, 2).await;
            // Another process took it for an orphan, and deleted it.
            delete(&below, Key::Pack(first[0])).await;
            drop(packed.lock_shared().await);
            assert!(!is_reliable(&packed, 1).await && is_reliable(&packed, 2).await);
            packed.barrier_of_holder().await.unwrap();
            let other = open(&below, "forgotten, elsewhere").await;
            assert_eq!(other.get(&chunk(1), 100).await.unwrap_err().kind(), ErrorKind::NotFound);
            other.get(&chunk(2), 100).await.unwrap();
        });
    }

    /// Proves H202: an attempt to lock that read the view, and failed to look for the pack, leaves that to the next one; so does a read.
    #[test]
    fn a_fresh_view_does_not_replace_the_look_for_unrecorded_packs() {
        block_on(async {
            let (faults, below) = with_faults();
            let packed = open(&below, "a").await;
            drop(packed.lock_shared().await);
            let held = packed.lock_shared().await;
            put_unrecorded(&packed, &faults, 1).await;
            drop(held);
            delete(&below, Key::Pack(names_of_packs(&below).await[0])).await;
            let is_pack = |key: &Key| matches!(key, Key::Pack(_));
            faults.add(Rule::on(Method::Head, Action::FailBefore(ErrorKind::Unavailable)).keys(is_pack));
            let failed = packed.lock(&LockScope::Store, LockMode::Shared).await.map(drop).unwrap_err();
            assert_eq!(failed.kind(), ErrorKind::Unavailable);
            faults.clear();
            // One that holds the lock meanwhile does not read the view again.
            let _held = packed.lock_shared().await;
            assert!(!is_reliable(&packed, 1).await);
        });
    }

    /// Proves H202: a deletion of a snapshot has a barrier, and does not take the lock of the store.
    #[test]
    fn a_barrier_without_the_lock_records_no_pack() {
        block_on(async {
            let (faults, below) = with_faults();
            let packed = open(&below, "a").await;
            let held = packed.lock_shared().await;
            put_unrecorded(&packed, &faults, 1).await;
            drop(held);
            // Another process took it for an orphan, deleted it, and forgot that it did.
            delete(&below, Key::Pack(names_of_packs(&below).await[0])).await;
            packed.barrier().await.unwrap();
            drop(packed.lock_shared().await);
            assert!(!is_reliable(&packed, 1).await);
            assert_eq!(packed.packs.state().view.segments().len(), 0);
        });
    }

    /// A deletion makes room in a full store although a pack of an ended backup could not be stored.
    #[test]
    fn a_barrier_without_the_lock_does_not_store_packs_again() {
        block_on(async {
            let (faults, below) = with_faults();
            let packed = open(&below, "a").await;
            let held = packed.lock_shared().await;
            put(&packed, 1).await;
            let is_pack = |key: &Key| matches!(key, Key::Pack(_));
            faults.add(Rule::on(Method::Put, Action::FailBefore(ErrorKind::Full)).keys(is_pack));
            assert_eq!(packed.barrier().await.unwrap_err().kind(), ErrorKind::Full);
            drop(held);
            packed.barrier().await.unwrap();
            faults.clear();
            let _held = packed.lock_shared().await;
            packed.barrier().await.unwrap();
            assert_eq!(open(&below, "b").await.get(&chunk(1), 100).await.unwrap().bytes, blob(1));
        });
    }
}
