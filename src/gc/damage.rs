//! Missing chunks, and the snapshots that name them.

use std::collections::{BTreeMap, BTreeSet};
use std::iter;
use std::sync::Arc;

use crate::backend::ObjectInfo;
use crate::digest_set::{MarkSet, mark_of};
use crate::error::{ErrorKind, Result};
use crate::format::Digest;
use crate::format::layout::Key;
use crate::format::name::SnapshotName;
use crate::gc::options::GcOptions;
use crate::gc::report::GcDamagedSnapshot;
use crate::gc::walk::{NAMED, Walk};
use crate::store::Datastore;

/// Missing chunks, and the snapshots that name them.
#[derive(Debug, Default)]
pub(super) struct Damage {
    pub(super) damaged: Vec<GcDamagedSnapshot>,
    pub(super) damaged_count: u64,
    /// Chunks that are certainly missing.
    pub(super) lost: Vec<Digest>,
}

/// Memory that the name of a missing chunk takes in a round, with its share of a tree.
const BYTES_NAMED: usize = 64;

/// A search for missing chunks.
#[derive(Debug)]
pub(super) struct DamageSearch<'a> {
    pub(super) options: &'a GcOptions,
    pub(super) store: &'a Datastore,
}

impl DamageSearch<'_> {
    /// Finds the chunks without an object among those that have these marks, and the snapshots that name them.
    ///
    /// Proceeds by rounds in the order of digests, each of as many chunks as fit in memory, and reads all indexes twice in a round.
    pub(super) async fn find(&self, missing: &MarkSet) -> Result<Damage> {
        let mut damage = Damage::default();
        let mut counts: BTreeMap<SnapshotName, u64> = BTreeMap::new();
        let mut after = None;
        let most = (self.options.memory_bytes / BYTES_NAMED).max(1);
        while missing.len() > 0 {
            let named = self.named_after(after, most, missing).await?;
            after = named.last().copied();
            let is_last = named.len() < most;
            let gone: Arc<[_]> = self.certainly_gone(&named).await?.into();
            self.store.inner().chunks().mark_missing(&gone).await?;
            if !gone.is_empty() {
                self.count(&gone, &mut counts).await?;
            }
            damage.lost.extend_from_slice(&gone);
            if is_last {
                break;
            }
        }
        damage.damaged_count = counts.len() as u64;
        let damaged = counts.into_iter().map(|(name, missing)| GcDamagedSnapshot { missing, name });
        damage.damaged.extend(damaged.take(NAMED));
        Ok(damage)
    }

    /// The first chunks after this one that an index names and that have one of these marks.
    async fn named_after(
        &self,
        after: Option<Digest>,
        most: usize,
        missing: &MarkSet,
    ) -> Result<BTreeSet<Digest>> {
        let mut named = BTreeSet::new();
        let mut walk = Walk::new();
        while let Some(indexes) = walk.next(self.store.inner().uncached_backend().as_ref()).await? {
            for info in indexes {
                let missing = missing.clone();
                let add = move |digests: &mut dyn Iterator<Item = Digest>| {
                    for digest in digests {
                        if Some(digest) > after && missing.contains(mark_of(&digest)) {
                            named.insert(digest);
                            if named.len() > most {
                                named.pop_last();
                            }
                        }
                    }
                    named
                };
                named = self.search(&info, add).await?;
            }
        }
        Ok(named)
    }

    /// Adds the references of each snapshot to these chunks, which ascend.
    async fn count(&self, gone: &Arc<[Digest]>, counts: &mut BTreeMap<SnapshotName, u64>) -> Result<()> {
        let mut walk = Walk::new();
        while let Some(indexes) = walk.next(self.store.inner().uncached_backend().as_ref()).await? {
            for info in indexes {
                let Key::Archive(snapshot, _) = &info.key else { continue };
                let gone = Arc::clone(gone);
                let count = move |digests: &mut dyn Iterator<Item = Digest>| {
                    digests.filter(|digest| gone.binary_search(digest).is_ok()).count() as u64
                };
                let count = self.search(&info, count).await?;
                if count > 0 {
                    *counts.entry(snapshot.clone()).or_default() += count;
                }
            }
        }
        Ok(())
    }

    /// Passes the digests of an index to a function that may block; none if the index was deleted since it was listed.
    async fn search<T: Send + 'static>(
        &self,
        info: &ObjectInfo,
        search: impl FnOnce(&mut dyn Iterator<Item = Digest>) -> T + Send + 'static,
    ) -> Result<T> {
        self.options.check_abort()?;
        let checked = match self.store.inner().snapshot_files().checked_index(info).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(search(&mut iter::empty())),
            checked => checked?,
        };
        let search = move || Ok(search(&mut checked.index.digests()));
        self.store.inner().runtime().run_blocking("look for missing chunks", search).await
    }

    /// Those that a look-up by name does not find either, in the same order: a listing may lag (H13).
    async fn certainly_gone(&self, named: &BTreeSet<Digest>) -> Result<Vec<Digest>> {
        let named: Vec<_> = named.iter().copied().collect();
        let mut gone = Vec::new();
        for part in named.chunks(NAMED) {
            let keys: Vec<_> = part.iter().copied().map(Key::Chunk).collect();
            for (digest, found) in
                part.iter().zip(self.store.inner().uncached_backend().head_many(&keys).await?)
            {
                match found {
                    Err(error) if error.kind() == ErrorKind::NotFound => gone.push(*digest),
                    found => drop(found?),
                }
            }
        }
        Ok(gone)
    }
}
