//! Execution of a plan in a packed store. [`crate::packs::reclaim`] has the order of the steps.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::SystemTime;

use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};

use crate::error::{Error, ErrorKind, Result};
use crate::format::Digest;
use crate::format::blob::{Blob, BlobDecoder, MAX_CHUNK_BYTES, PlaintextSize};
use crate::format::layout::{Key, PackName};
use crate::gc::options::GcEvent;
use crate::gc::pack_plan::deletes_at_once;
use crate::gc::plan::GcPlan;
use crate::gc::report::ChunkTally;
use crate::packs::PackedBackend;
use crate::packs::reclaim::PackCopy;
use crate::trace;

/// Maximum number of packs that vanish together.
const BATCH_PACKS: usize = 64;
/// Maximum bytes copied together.
const BATCH_BYTES: u64 = 256 << 20;
/// Number of chunks copied at the same time.
const COPIES_IN_FLIGHT: usize = 16;

/// Copies in packs that are about to vanish.
#[derive(Debug, Default)]
struct Retired {
    /// Number of dead ones in each pack, and their bytes.
    dead: BTreeMap<PackName, ChunkTally>,
    /// Those that must have another copy first.
    needed: Vec<PackCopy>,
}

impl GcPlan {
    /// Drops and deletes the packs of the plan.
    pub(super) async fn run_packs(&mut self, packs: &PackedBackend) -> Result<()> {
        while !self.actions.dropped.is_empty() {
            self.options.check_abort()?;
            let count = self.actions.dropped.len().min(BATCH_PACKS);
            let names: Vec<_> = self.actions.dropped.drain(..count).collect();
            self.delete_packs(packs, &names).await?;
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
        let at_once = deletes_at_once(&store, &self.options);
        let times = self.times;
        let is_settled =
            move |stored: Option<SystemTime>| at_once || stored.is_some_and(|at| times.is_old(at));
        match packs.compact(begin, &is_settled).await {
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

    async fn vanish(&mut self, packs: &PackedBackend, names: &BTreeSet<PackName>) -> Result<()> {
        let Retired { dead, needed } = self.retire(packs, names);
        let copies = needed.into_iter().map(|copy| self.copy_out(packs, names, copy));
        let copied: Vec<_> = stream::iter(copies).buffer_unordered(COPIES_IN_FLIGHT).try_collect().await?;
        let damaged: Vec<_> = copied.into_iter().flatten().collect();
        let mut names = names.clone();
        // The only copies are bad and stay where they are. The next backup that contains the chunks stores them again, in any process.
        let suspects: Vec<_> = damaged.iter().map(|(digest, _)| *digest).collect();
        self.store.inner().repairs().suspect_missing(&suspects).await?;
        for (digest, error) in damaged {
            for stays in packs.packs_of(&digest) {
                names.remove(&stays);
            }
            self.store.inner().chunks().mark_suspect(digest).await;
            self.progress.fail(Key::Chunk(digest), error);
        }
        if names.is_empty() {
            return Ok(());
        }
        self.held.guard.check().await?;
        packs.drop_packs(&names).await?;
        let mut removed = ChunkTally::default();
        dead.into_iter().filter(|(name, _)| names.contains(name)).for_each(|(_, dead)| removed.join(dead));
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

    /// Retires what nothing needs of the packs.
    fn retire(&self, packs: &PackedBackend, names: &BTreeSet<PackName>) -> Retired {
        let counting = self.counting();
        let mut retired = Retired::default();
        let mut seen = BTreeSet::new();
        for (name, copies) in packs.copies_in(names) {
            let last_used = self.packs.get(&name).map_or(self.times.now, |pack| pack.last_used);
            let is_needed = |digest: &Digest| counting.is_needed_since(digest, last_used);
            let needed = self.store.inner().chunks().retire(packs, &copies, is_needed);
            let stay: HashSet<_> = needed.iter().map(|copy| copy.digest).collect();
            for copy in copies.iter().filter(|copy| !stay.contains(&copy.digest)) {
                retired.dead.entry(name).or_default().add(copy.bytes());
            }
            // A chunk with two copies in vanishing packs needs one.
            retired.needed.extend(needed.into_iter().filter(|copy| seen.insert(copy.digest)));
        }
        retired
    }

    /// Makes sure that a chunk has a good copy outside of the packs. Returns the error if no copy is good.
    async fn copy_out(
        &self,
        packs: &PackedBackend,
        names: &BTreeSet<PackName>,
        copy: PackCopy,
    ) -> Result<Option<(Digest, Error)>> {
        let digest = copy.digest;
        for other in packs.copies_outside(&digest, names) {
            if self.checked(packs, &other).await?.is_ok() {
                return Ok(None);
            }
        }
        // Also in a pack that another copy of the list is in.
        let copies = packs.copies_within(&digest, names);
        let mut failed = None;
        for copy in copies {
            match self.checked(packs, &copy).await? {
                Ok(blob) => {
                    packs.append(digest, &blob).await?;
                    return Ok(None);
                }
                Err(error) => failed = Some((digest, error)),
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
        let (digest, runtime) = (copy.digest, self.store.inner().runtime());
        let check = move || Ok(check_blob(digest, blob.clone()).map(|()| blob));
        runtime.run_blocking("check chunk", check).await
    }

    async fn delete_packs(&mut self, packs: &PackedBackend, names: &[PackName]) -> Result<()> {
        self.held.guard.check().await?;
        for (name, deleted) in names.iter().zip(packs.delete_packs(names).await?) {
            match deleted {
                Ok(_) => self.progress.packs.add(self.packs.get(name).map_or(0, |pack| pack.bytes)),
                Err(error) => self.progress.fail(Key::Pack(*name), error),
            }
        }
        Ok(())
    }
}

/// Checks a blob as far as that is possible without a key.
fn check_blob(digest: Digest, bytes: Bytes) -> Result<()> {
    let bad = |why: Error| Error::new(ErrorKind::Corrupt, "copy chunk").on(digest).because(why);
    let corrupt = |error| Error::new(ErrorKind::Corrupt, "decode chunk").because(error);
    let blob = Blob::parse(bytes).map_err(corrupt).map_err(bad)?;
    blob.check_crc().map_err(corrupt).map_err(bad)?;
    if blob.kind().is_encrypted() {
        return Ok(());
    }
    let plaintext = BlobDecoder::new().decode_bytes(&blob, PlaintextSize::AtMost(MAX_CHUNK_BYTES));
    if Digest::of(&plaintext.map_err(corrupt).map_err(bad)?) == digest {
        return Ok(());
    }
    let error = Error::new(ErrorKind::Corrupt, "copy chunk").on(digest);
    Err(error.because("its contents have another digest"))
}
