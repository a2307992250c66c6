//! Execution of a plan in a packed store. [`crate::packs::reclaim`] has the order of the steps.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::digest_set::mark_of;
use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::layout::{Key, PackName};
use crate::format::status::GcPackStatus;
use crate::gc::live::Live;
use crate::gc::options::GcEvent;
use crate::gc::pack_plan::{deletes_at_once, is_settled};
use crate::gc::plan::GcPlan;
use crate::gc::progress::{BATCH_BYTES, BATCH_PACKS};
use crate::gc::report::ChunkTally;
use crate::packs::reclaim::{PackCopy, PackState};
use crate::packs::{PackUsage, PackedBackend};
use crate::trace;

/// Maximum bytes of chunks copied at the same time: those of a request and as many again.
const IN_FLIGHT_BYTES: u64 = 32 << 20;
/// Maximum number of chunks copied at the same time.
const COPIES_IN_FLIGHT: u64 = 1024;

/// Copies in packs that are about to vanish.
#[derive(Debug, Default)]
struct Retired {
    /// Number of dead ones in each pack, and their bytes.
    dead: BTreeMap<PackName, ChunkTally>,
    /// Copies that must exist elsewhere before their packs vanish.
    needed: Vec<(PackName, PackCopy)>,
}

impl GcPlan {
    /// Drops and deletes the packs of the plan.
    pub(super) async fn run_packs(&mut self, packs: &PackedBackend) -> Result<()> {
        while !self.actions.dropped.is_empty() {
            self.options.check_abort()?;
            let count = self.actions.dropped.len().min(BATCH_PACKS);
            let names = self.actions.dropped[..count].iter().copied().collect();
            self.delete_dropped(packs, &names).await?;
            self.actions.dropped.drain(..count);
        }
        while !self.actions.vanish.is_empty() {
            self.options.check_abort()?;
            self.held.guard.check().await?;
            let (mut count, mut bytes) = (0, 0);
            for (_, copied) in self.actions.vanish.iter().take(BATCH_PACKS) {
                if count > 0 && bytes + copied > BATCH_BYTES {
                    break;
                }
                (count, bytes) = (count + 1, bytes + copied);
            }
            let names = self.actions.vanish[..count].iter().map(|(name, _)| *name).collect();
            self.vanish(packs, &names).await?;
            self.actions.vanish.drain(..count);
        }
        Ok(())
    }

    /// Merges segments of the index if it is worth it.
    pub(super) async fn compact(&mut self) -> Result<()> {
        let store = self.store.clone();
        let (Some(packs), Some(begin)) = (store.inner().packs(), &self.begin) else { return Ok(()) };
        self.held.guard.check().await?;
        let (at_once, times) = (deletes_at_once(&store, &self.options), self.times);
        match packs.compact(begin, &move |stored| is_settled(stored, at_once, times)).await {
            // The garbage is gone in any case.
            Err(error) if error.kind() == ErrorKind::Full => self.progress.remarks.push(error),
            compacted => {
                for (name, error) in compacted?.failures {
                    self.progress.fail(Key::Segment(name), error);
                }
            }
        }
        Ok(())
    }

    /// Deletes packs that an earlier collection dropped.
    async fn delete_dropped(&mut self, packs: &PackedBackend, names: &BTreeSet<PackName>) -> Result<()> {
        // A pack stays if it is that of another writer: its chunks are unknown.
        let copies = packs.copies_by_contents(self.sized(names.iter())).await?;
        let names = copies.keys().copied().collect();
        // Their chunks were judged before the drop. Only one that a snapshot or a writer uses now is needed.
        let marks = &self.marked.set;
        let Retired { needed, .. } = self.retire(packs, copies, |digest, _| marks.contains(mark_of(digest)));
        let needed = if mutated!("pack-that-was-dropped-is-not-judged-again") { Vec::new() } else { needed };
        let names = self.copy_all(packs, &names, needed).await?;
        // Copies are durable before the packs are deleted.
        if !mutated!("pack-that-was-dropped-goes-before-its-copies-are-durable") {
            self.store.inner().backend().barrier().await?;
        }
        self.delete_packs(packs, &names.into_iter().collect::<Vec<_>>()).await
    }

    /// Makes sure that these chunks have a copy outside of the packs. Returns the packs that may vanish.
    async fn copy_all(
        &mut self,
        packs: &PackedBackend,
        names: &BTreeSet<PackName>,
        needed: Vec<(PackName, PackCopy)>,
    ) -> Result<BTreeSet<PackName>> {
        // Many small ones, so that one request reads them together.
        let largest = needed.iter().map(|(_, copy)| copy.bytes()).max().unwrap_or(0).max(1);
        let in_flight = usize::try_from((IN_FLIGHT_BYTES / largest).clamp(4, COPIES_IN_FLIGHT)).unwrap_or(4);
        let copies = needed.into_iter().map(|(name, copy)| self.copy_out(packs, names, (name, copy)));
        let copied: Vec<_> = stream::iter(copies).buffer_unordered(in_flight).try_collect().await?;
        let damaged: Vec<_> = copied.into_iter().flatten().collect();
        let mut names = names.clone();
        // The only copies are bad and stay where they are. The next backup that contains the chunks stores them again, in any process.
        let suspects: Vec<_> = damaged.iter().map(|(_, digest, _)| *digest).collect();
        self.store.inner().repairs().suspect_missing(&suspects).await?;
        for (name, digest, error) in damaged {
            names.remove(&name);
            for stays in packs.packs_of(&digest).await? {
                names.remove(&stays);
            }
            self.store.inner().chunks().mark_suspect(digest).await;
            self.progress.fail(Key::Chunk(digest), error);
        }
        Ok(names)
    }

    async fn vanish(&mut self, packs: &PackedBackend, names: &BTreeSet<PackName>) -> Result<()> {
        let (dropped, mut names): (BTreeSet<_>, BTreeSet<_>) =
            names.iter().copied().partition(|name| packs.is_dropped(name));
        // By an execution whose future was dropped meanwhile.
        self.finish_vanishing(packs, dropped).await?;
        // They may be all that is left of a chunk in use, if they were quarantined after the plan was made.
        for (name, digest) in packs.quarantined_in(&names) {
            let is_last = packs.copies_outside(&digest, &names).await?.is_empty();
            if is_last && self.marked.set.contains(mark_of(&digest)) {
                names.remove(&name);
            }
        }
        let mut copies = packs.copies_in(&names).await?;
        // Where no record names the chunks, the pack does.
        let unnamed = self.sized(names.iter().filter(|name| !copies.contains_key(name)));
        copies.extend(packs.copies_by_contents(unnamed).await?);
        names.retain(|name| copies.contains_key(name));
        let counting = self.counting();
        let is_used = |digest: &Digest, last_used| counting.is_needed_since(digest, last_used);
        let Retired { dead, needed } = self.retire(packs, copies, is_used);
        let names = self.copy_all(packs, &names, needed).await?;
        if names.is_empty() {
            return Ok(());
        }
        self.held.guard.check().await?;
        // Before it: the drop may be recorded although this future is dropped.
        self.progress.vanishing.extend(dead);
        let (of_task, guard, vanish) = (packs.clone(), Arc::clone(&self.held.guard), names.clone());
        // A task of its own, which holds the lock: a drop must not be recorded after the lock was released.
        let work = async move {
            let _held = guard;
            of_task.drop_packs(&vanish).await
        };
        self.store.inner().runtime().run_detached("drop packs", work).await?;
        self.finish_vanishing(packs, names).await
    }

    /// Counts what vanished with packs that were dropped, and deletes them.
    async fn finish_vanishing(&mut self, packs: &PackedBackend, names: BTreeSet<PackName>) -> Result<()> {
        if names.is_empty() {
            return Ok(());
        }
        let mut removed = ChunkTally::default();
        for name in &names {
            removed.join(self.progress.vanishing.remove(name).unwrap_or_default());
        }
        self.progress.removed.join(removed);
        let ChunkTally { bytes, chunks } = removed;
        trace::collected(bytes, chunks);
        self.options.control.notify(&GcEvent::Removed { bytes, chunks });
        if deletes_at_once(&self.store, &self.options) {
            let names: Vec<_> = names.into_iter().collect();
            self.delete_packs(packs, &names).await?;
        }
        Ok(())
    }

    /// The packs after the execution; `None` if each chunk is an object of its own.
    pub(super) fn pack_status(&self) -> Option<GcPackStatus> {
        let packs = self.store.inner().packs()?;
        let PackUsage { bytes, packs: number, segments, .. } = packs.usage();
        // New packs have chunks in use alone.
        let stay = self
            .packs
            .values()
            .filter(|pack| pack.state == PackState::Recorded && !packs.is_dropped(&pack.name));
        let unused = stay.map(|pack| {
            let live = self.census.live.get(&pack.name).map_or(0, Live::packed_bytes);
            pack.bytes.saturating_sub(live)
        });
        let mut status = GcPackStatus::default();
        (status.bytes, status.packs, status.segments) = (bytes, number, segments);
        status.unused_bytes = unused.sum();
        Some(status)
    }

    /// The packs with their sizes.
    fn sized<'a>(&self, names: impl Iterator<Item = &'a PackName>) -> Vec<(PackName, u64)> {
        names.map(|name| (*name, self.pack_bytes(name))).collect()
    }

    fn pack_bytes(&self, name: &PackName) -> u64 {
        self.packs.get(name).map_or(0, |pack| pack.bytes)
    }

    /// Retires the copies that nothing needs.
    fn retire(
        &self,
        packs: &PackedBackend,
        copies: BTreeMap<PackName, Vec<PackCopy>>,
        is_used: impl Fn(&Digest, SystemTime) -> bool,
    ) -> Retired {
        let mut retired = Retired::default();
        let mut seen = BTreeSet::new();
        for (name, copies) in copies {
            let last_used = self.packs.get(&name).map_or(self.times.now, |pack| pack.last_used);
            let needed =
                self.store.inner().chunks().retire(packs, &copies, |digest| is_used(digest, last_used));
            let stay: HashSet<_> = needed.iter().map(|copy| copy.digest).collect();
            for copy in copies.iter().filter(|copy| !stay.contains(&copy.digest)) {
                retired.dead.entry(name).or_default().add(copy.bytes());
            }
            // A chunk with two copies in vanishing packs needs one.
            let needed = needed.into_iter().filter(|copy| seen.insert(copy.digest));
            retired.needed.extend(needed.map(|copy| (name, copy)));
        }
        retired
    }

    /// Makes sure that a chunk has a good copy outside of the packs. Returns the error if no copy is good.
    async fn copy_out(
        &self,
        packs: &PackedBackend,
        names: &BTreeSet<PackName>,
        (name, copy): (PackName, PackCopy),
    ) -> Result<Option<(PackName, Digest, Error)>> {
        let digest = copy.digest;
        for other in packs.copies_outside(&digest, names).await? {
            if self.checked(packs, &other).await?.is_ok() {
                return Ok(None);
            }
        }
        // This one, or another one in a pack that vanishes too.
        let others = packs.copies_within(&digest, names).await?;
        let mut failed = None;
        for copy in [copy].into_iter().chain(others) {
            match self.checked(packs, &copy).await? {
                Ok(blob) => {
                    packs.append(&copy, &blob).await?;
                    return Ok(None);
                }
                Err(error) => failed = Some((name, digest, error)),
            }
        }
        Ok(failed)
    }

    /// Reads a copy and checks it as far as that is possible without a key.
    async fn checked(&self, packs: &PackedBackend, copy: &PackCopy) -> Result<Result<Bytes>> {
        let blob = match packs.read_copy(copy).await {
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => {
                return Ok(Err(error));
            }
            blob => blob?,
        };
        mutated!("pack-copies-are-not-checked" => return Ok(Ok(blob)));
        self.store.inner().chunks().check_copy(copy.digest, blob).await
    }

    async fn delete_packs(&mut self, packs: &PackedBackend, names: &[PackName]) -> Result<()> {
        self.held.guard.check().await?;
        for (name, deleted) in names.iter().zip(packs.delete_packs(names).await?) {
            match deleted {
                Ok(_) => self.progress.packs.add(self.pack_bytes(name)),
                Err(error) => self.progress.fail(Key::Pack(*name), error),
            }
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "testing"))]
mod tests {
    use futures::executor::block_on;

    use crate::backend::record::{Call, Method, RecordingBackend};
    use crate::backend::{Backend, ListQuery, MemoryBackend, list_all};
    use crate::format::layout::{Key, Prefix};
    use crate::gc;
    use crate::rt::ThreadRuntime;
    use crate::store::{Datastore, Options, PackOptions};

    use std::sync::Arc;
    use std::time::Duration;

    /// Proves H205. The drop of a pack may be recorded late, when a snapshot needs its chunks again: its put got no answer.
    #[test]
    fn chunks_in_use_of_a_dropped_pack_are_copied_before_it_is_deleted() {
        block_on(async {
            let memory = MemoryBackend::new(Arc::new(ThreadRuntime::new()));
            let record = Arc::new(RecordingBackend::new(Arc::new(memory)));
            let below: Arc<dyn Backend> = Arc::<RecordingBackend>::clone(&record);
            let options = Options::default().packed(PackOptions::default());
            let store = Datastore::create(Arc::clone(&below), options).await.unwrap();
            let backup = store.backup(&"host/a".parse().unwrap()).begin().await.unwrap();
            let data = vec![7; 100_000];
            backup.stream("a.bin", &data[..]).await.unwrap();
            let name = backup.name().clone();
            backup.finish().await.unwrap();
            let packs = store.inner().packs().unwrap();
            let begin = store.inner().backend().begin_listing(&Prefix::Chunks).await.unwrap().unwrap();
            let before: Vec<_> =
                packs.list_states(&begin).await.unwrap().iter().map(|pack| pack.name).collect();
            packs.drop_packs(&before.iter().copied().collect()).await.unwrap();

            let options = gc::GcOptions::default().grace(Duration::ZERO).max_garbage(100);
            let report = gc::plan(&store, options).await.unwrap().confirm().execute().await.unwrap();
            assert_eq!((report.packs.packs, report.failed), (1, 0));
            let calls = record.calls();
            let last = |is_it: &dyn Fn(&Call) -> bool| calls.iter().rposition(is_it).unwrap();
            let of_pack = |call: &Call| call.keys.iter().any(|key| matches!(key, Key::Pack(_)));
            let copied = last(&|call| call.method == Method::Put && of_pack(call));
            let deleted = last(&|call| call.method == Method::Delete && of_pack(call));
            assert!(copied < deleted, "before the copy is stored");
            let listed = list_all(below.as_ref(), &ListQuery::all(Prefix::Packs)).await.unwrap();
            assert_eq!(listed.entries().len(), 1);
            assert!(!listed.entries()[0].path().contains(&before[0].to_string()));
            let again = Datastore::open(below, Options::default()).await.unwrap();
            let snapshot = again.snapshot(&name).await.unwrap();
            let archive = snapshot.archive("a.bin").await.unwrap();
            assert_eq!(archive.read_at(0, 100_000).await.unwrap(), data);
        });
    }
}
