//! Missing chunks, and the snapshots that name them.

use std::collections::{BTreeMap, HashSet};

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

/// Maximum number of missing chunks looked up by name.
const LOOKED_FOR: usize = 100_000;

/// Missing chunks, and the snapshots that name them.
#[derive(Debug, Default)]
pub(super) struct Damage {
    pub(super) damaged: Vec<GcDamagedSnapshot>,
    pub(super) damaged_count: u64,
    /// Chunks that are certainly missing, as far as their names are known.
    pub(super) lost: Vec<Digest>,
    pub(super) missing: u64,
}

/// A search for missing chunks.
#[derive(Debug)]
pub(super) struct DamageSearch<'a> {
    pub(super) options: &'a GcOptions,
    pub(super) store: &'a Datastore,
}

impl DamageSearch<'_> {
    /// Finds the chunks without an object among those that have these marks, and the snapshots that name them.
    pub(super) async fn find(&self, missing: &MarkSet) -> Result<Damage> {
        let mut damage = Damage::default();
        if missing.len() == 0 {
            return Ok(damage);
        }
        let mut named: HashSet<Digest> = HashSet::new();
        let mut walk = Walk::new();
        while let Some(indexes) = walk.next(self.store.inner().uncached_backend().as_ref()).await? {
            for info in indexes {
                let found = self.missing_of(&info, missing).await?;
                let room = LOOKED_FOR.saturating_sub(named.len());
                named.extend(found.into_keys().take(room));
            }
        }
        let gone = self.certainly_gone(&named).await?;
        // Some of those that were not looked up may exist although the listing did not show them.
        let are_all = named.len() < LOOKED_FOR;
        let here = (named.len() - gone.len()) as u64;
        damage.missing =
            if are_all { gone.len() as u64 } else { (missing.len() as u64).saturating_sub(here) };
        damage.lost = gone.iter().copied().collect();
        self.store.inner().chunks().mark_missing(&damage.lost).await?;
        if damage.missing == 0 {
            return Ok(damage);
        }
        let mut walk = Walk::new();
        while let Some(indexes) = walk.next(self.store.inner().uncached_backend().as_ref()).await? {
            let mut counts: BTreeMap<SnapshotName, u64> = BTreeMap::new();
            for info in indexes {
                let Key::Archive(snapshot, _) = &info.key else { continue };
                let found = self.missing_of(&info, missing).await?;
                let certain = |digest| gone.contains(digest) || !(are_all || named.contains(digest));
                let count: u64 =
                    found.iter().filter(|(digest, _)| certain(digest)).map(|(_, count)| count).sum();
                if count > 0 {
                    *counts.entry(snapshot.clone()).or_default() += count;
                }
            }
            damage.damaged_count += counts.len() as u64;
            let room = NAMED.saturating_sub(damage.damaged.len());
            let damaged = counts.into_iter().map(|(name, missing)| GcDamagedSnapshot { missing, name });
            damage.damaged.extend(damaged.take(room));
        }
        Ok(damage)
    }

    /// The missing chunks that an index names, and the number of references.
    async fn missing_of(&self, info: &ObjectInfo, missing: &MarkSet) -> Result<BTreeMap<Digest, u64>> {
        self.options.check_abort()?;
        let index = match self.store.inner().snapshot_files().checked_index(info).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeMap::new()),
            checked => checked?.index,
        };
        let missing = missing.clone();
        let find = move || {
            let mut found = BTreeMap::new();
            for digest in index.digests() {
                if missing.contains(mark_of(&digest)) {
                    *found.entry(digest).or_insert(0) += 1;
                }
            }
            Ok(found)
        };
        self.store.inner().runtime().run_blocking("look for missing chunks", find).await
    }

    /// Filters out chunks that a lookup by name finds: a listing may lag (H13).
    async fn certainly_gone(&self, named: &HashSet<Digest>) -> Result<HashSet<Digest>> {
        let named: Vec<_> = named.iter().copied().collect();
        let mut gone = HashSet::new();
        for part in named.chunks(NAMED) {
            let keys: Vec<_> = part.iter().copied().map(Key::Chunk).collect();
            for (digest, found) in
                part.iter().zip(self.store.inner().uncached_backend().head_many(&keys).await?)
            {
                match found {
                    Err(error) if error.kind() == ErrorKind::NotFound => _ = gone.insert(*digest),
                    found => drop(found?),
                }
            }
        }
        Ok(gone)
    }
}
