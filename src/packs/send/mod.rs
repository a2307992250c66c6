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
use crate::format::larder::segment::{Exclusion, MAX_EXCLUSIONS, MAX_PACKS, Segment, SegmentWriteError};
use crate::format::layout::Key;
use crate::packs::coordination::may_record_packs;
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
    ///
    /// # Cancel safety
    /// If the lock of the store is held, it is held until the request has ended, also if the future is dropped.
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
        let (held, inner, stored) = (self.held(), Arc::clone(&self.inner), (key.clone(), bytes.clone()));
        let work = async move {
            let _held = held;
            let (key, bytes) = stored;
            inner.put(&key, bytes, inner.capabilities().create_mode()).await
        };
        self.runtime().run_detached("store an index segment", work).await?;
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
        let (packs, drops) = match share {
            Share::All => state.next_to_record(),
            Share::Exclusions => <_>::default(),
        };
        // Exclusions in a pack that is not recorded follow with it.
        let exclusions = state.writer.exclusions.iter();
        let follows = |pack| {
            state.view.is_in_memory(pack)
                || (state.writer.unrecorded.contains_key(&pack) && !packs.contains(&pack))
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
            let held = packs.held();
            let share = if may_record_packs(held.as_ref()) { Share::All } else { Share::Exclusions };
            // A failure keeps the packs unrecorded, and the next barrier tries again.
            let _ = packs.record(share).await;
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

    /// The packs and drops for the next segment. Packs come first: the chunks of a dropped pack may have their other copies in them.
    fn next_to_record(&self) -> (HashSet<u32>, BTreeSet<PackName>) {
        let (mut packs, mut records) = (HashSet::new(), 0);
        for number in self.stored_unrecorded() {
            records += self.writer.unrecorded.get(&number).map_or(0, Vec::len);
            if !packs.is_empty() && (records > self.writer.max_records || packs.len() == MAX_PACKS as usize) {
                return (packs, BTreeSet::new());
            }
            packs.insert(number);
        }
        (packs, self.writer.drops.clone())
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
mod tests;
