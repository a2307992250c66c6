//! Chunks that are damaged behind the back of the store, verifications, and what heals them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use futures::io::Cursor;
use larder::backend::{ListEntry, ListQuery, PutMode, Removal};
use larder::error::ErrorKind;
use larder::format::layout::{Key, Prefix};
use larder::format::name::SnapshotName;
use larder::store::{Datastore, Protection, Scope};
use larder::verify::{self, Repair, Sample, VerifyMode, VerifyOptions, VerifyReport};

use super::make::wrong_with;
use super::model::{BLOCK, BLOCKS, Contents, DeleteOutcome, Intent};
use super::world::World;

impl World {
    /// Deletes, cuts or changes a chunk of the first store.
    pub(crate) async fn damage(self: &Arc<Self>) {
        let number = self.below(u64::from(BLOCKS)) as u8;
        let key = Key::Chunk(self.model().digests[usize::from(number)]);
        let raw = &self.place.raw;
        let Ok(object) = raw.get(&key, u64::MAX).await else { return };
        let mut bytes = object.bytes.to_vec();
        self.model().bad.entry(number).or_insert(object.bytes);
        let how = self.below(3);
        self.log(format_args!("damage of block {number}, {key:?}: {how}"));
        self.count("damage");
        match how {
            0 => drop(raw.delete(&[Removal::any(key)]).await.unwrap()),
            1 => {
                bytes.truncate(bytes.len() / 2);
                raw.put(&key, bytes.into(), PutMode::Replace).await.unwrap();
            }
            _ => {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                raw.put(&key, bytes.into(), PutMode::Replace).await.unwrap();
            }
        }
    }

    pub(crate) async fn verify(self: &Arc<Self>) {
        let (number, store) = self.a_store();
        let mut options = VerifyOptions::default();
        options = match self.below(4) {
            0 => options.mode(VerifyMode::Presence),
            1 => {
                options.mode(VerifyMode::Sample(Sample::default().requests(8).rotation(self.below(u64::MAX))))
            }
            _ => options,
        };
        if self.one_in(4) {
            options = options.repair(Repair::Report);
        }
        let scope = match self.below(3) {
            0 => Scope::Group(self.a_group()),
            _ => Scope::Store,
        };
        let before: BTreeSet<u8> = self.model().bad.keys().copied().collect();
        self.log(format_args!("{number}: verify {scope:?} {options:?}"));
        let work = async { verify::plan(&store, &scope, options).await?.execute().await };
        match self.perhaps(work).await {
            Some(Ok(report)) => {
                self.log(format_args!("{number}: verified: {report:?}"));
                self.count(if report.quarantined > 0 { "verify quarantined" } else { "verify" });
                let mut bad: BTreeSet<u8> = self.model().bad.keys().copied().collect();
                bad.extend(before);
                self.expect_damaged(number, &report, &bad);
            }
            Some(Err(error)) => {
                self.log(format_args!("{number}: verify: {error}"));
                self.expect_kind(error.kind());
            }
            None => {}
        }
    }

    /// Nothing is called damaged that is not.
    fn expect_damaged(&self, number: usize, report: &VerifyReport, bad: &BTreeSet<u8>) {
        for damaged in &report.damaged {
            let blocks = self.model().contents(damaged.name.time()).blocks();
            if number == 1 || damaged.manifest.is_some() || blocks.is_disjoint(bad) {
                self.violation(format_args!("{number}: without a reason, it is damaged: {damaged:?}"));
            }
        }
    }

    /// Looks at everything when nothing is under way.
    pub(crate) async fn look(&self, number: usize) {
        let (finished, others) = self.listed(number).await;
        self.log(format_args!("{number}: {} finished, {} unfinished", finished.len(), others.len()));
        self.model().compare(number, &finished);
        self.forget_healed(number).await;
        let store = self.store(number);
        for name in finished.keys() {
            let contents = self.model().contents(name.time());
            let is_hurt =
                number == 0 && contents.blocks().iter().any(|block| self.model().bad.contains_key(block));
            let restored = match store.snapshot(name).await {
                Ok(snapshot) => wrong_with(&snapshot, &contents).await,
                Err(error) => Err(error),
            };
            match restored {
                Ok(None) => {}
                Ok(Some(wrong)) => self.violation(format_args!("{wrong}")),
                Err(error) if is_hurt => self.log(format_args!("{number}: {name} is hurt: {error}")),
                Err(error) => self.violation(format_args!("{number}: {name} cannot be restored: {error}")),
            }
        }
    }

    /// Chunks that are stored as they were before they were damaged are good again.
    async fn forget_healed(&self, number: usize) {
        if number == 1 {
            return;
        }
        let bad = self.model().bad.clone();
        for (number, pristine) in bad {
            let key = Key::Chunk(self.model().digests[usize::from(number)]);
            match self.place.raw.get(&key, u64::MAX).await {
                Ok(object) if object.bytes == pristine => {
                    self.log(format_args!("block {number} is good again"));
                    self.model().bad.remove(&number);
                }
                _ => {}
            }
        }
    }

    /// Verifies everything, backs up what is bad, and verifies again.
    pub(crate) async fn heal(&self) {
        let store = self.store(0);
        let mut own = BTreeMap::new();
        for round in 0..2 {
            let (finished, _) = self.listed(0).await;
            let blocks_of = |name: &SnapshotName| {
                own.get(name).cloned().unwrap_or_else(|| self.model().contents(name.time()).blocks())
            };
            let bad: BTreeSet<u8> = self.model().bad.keys().copied().collect();
            let report = self.verified(&store).await;
            let damaged: BTreeSet<_> = report.damaged.iter().map(|damaged| damaged.name.clone()).collect();
            let hurt = finished.keys().filter(|name| !blocks_of(name).is_disjoint(&bad));
            let hurt: BTreeSet<SnapshotName> = hurt.cloned().collect();
            if damaged != hurt {
                self.violation(format_args!("damaged: {damaged:?}, hurt: {hurt:?}"));
            }
            self.log(format_args!("healing, round {round}: bad blocks {bad:?}, hurt {hurt:?}"));
            if bad.is_empty() {
                if !report.is_clean() {
                    self.violation(format_args!("nothing is bad, and it is not clean: {report:?}"));
                }
                return;
            }
            self.count("healing");
            let known: BTreeSet<u8> =
                finished.keys().flat_map(blocks_of).filter(|block| bad.contains(block)).collect();
            own.insert(self.back_up_blocks(&store, &bad).await, bad);
            self.forget_healed(0).await;
            // Damage of an unreferenced chunk cannot have been detected before.
            let left: Vec<u8> = self.model().bad.keys().copied().filter(|b| known.contains(b)).collect();
            if !left.is_empty() {
                self.violation(format_args!("a backup of the same contents did not heal {left:?}"));
            }
        }
        let report = self.verified(&store).await;
        if !report.is_clean() || !self.model().bad.is_empty() {
            let bad: Vec<_> = self.model().bad.keys().copied().collect();
            self.violation(format_args!("it does not heal: {bad:?} {report:?}"));
        }
    }

    async fn verified(&self, store: &Datastore) -> VerifyReport {
        let report = verify::plan(store, &Scope::Store, VerifyOptions::default()).await;
        let report = report.unwrap().execute().await.unwrap();
        self.log(format_args!("verified: {report:?}"));
        report
    }

    /// Backs up blocks, each as an image, of which the model is not told.
    async fn back_up_blocks(&self, store: &Datastore, blocks: &BTreeSet<u8>) -> SnapshotName {
        let group = Self::own_group();
        let time = self.model().new_time();
        let backup = store.backup(&group).time(SystemTime::from(time)).begin().await.unwrap();
        for block in blocks {
            let data = Contents::bytes(&[*block]);
            let size = data.len() as u64;
            let image = backup.image(format!("{block}.img"), Cursor::new(data), size);
            image.chunk_bytes(BLOCK as u64).await.unwrap();
        }
        let snapshot = backup.finish().await.unwrap().snapshot;
        self.log(format_args!("backed up {blocks:?} as {}", snapshot.name()));
        snapshot.name().clone()
    }

    /// Deletes the group that healed, and what is not finished.
    pub(crate) async fn tidy(&self, number: usize) {
        let store = self.store(number);
        match store.delete_group(&Self::own_group()).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            done => drop(done.unwrap()),
        }
        let (_, unfinished) = self.listed(number).await;
        for name in unfinished {
            self.log(format_args!("{number}: delete what is left of {name}"));
            // A protection mark is all that a move may have left behind.
            for done in
                [store.set_protection(&name, Protection::Off).await, store.delete_snapshot(&name).await]
            {
                match done {
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    done => done.unwrap(),
                }
            }
        }
    }

    /// After a garbage collection, the store has exactly the chunks that the snapshots need.
    pub(crate) async fn expect_no_garbage(&self, number: usize) {
        let (finished, others) = self.listed(number).await;
        assert!(others.is_empty());
        let mut wanted = BTreeSet::new();
        for name in finished.keys() {
            let model = self.model();
            let blocks = model.contents(name.time()).blocks();
            wanted.extend(
                blocks.into_iter().map(|block| Key::Chunk(model.digests[usize::from(block)]).to_string()),
            );
        }
        if number == 1 {
            return;
        }
        let found = self.chunk_paths().await;
        if found != wanted {
            let too_many: Vec<_> = found.difference(&wanted).collect();
            let lost: Vec<_> = wanted.difference(&found).collect();
            self.violation(format_args!("garbage: {too_many:?}, lost: {lost:?}"));
        }
    }

    async fn chunk_paths(&self) -> BTreeSet<String> {
        let (mut paths, mut cursor) = (BTreeSet::new(), None);
        loop {
            let query = ListQuery::all(Prefix::Chunks);
            let page = self.place.raw.list(&query, cursor.as_ref()).await.unwrap();
            paths.extend(page.entries.iter().map(ListEntry::path));
            cursor = page.next;
            if cursor.is_none() {
                return paths;
            }
        }
    }

    /// Deletes everything that is not protected.
    pub(crate) async fn delete_everything(&self, number: usize) {
        let store = self.store(number);
        let names = self.model().possible(number);
        for name in names {
            let token = self.model().begin((number, name.clone()), Intent::Delete);
            let fate = match store.delete_snapshot(&name).await {
                Ok(()) => DeleteOutcome::Gone,
                Err(error) if error.kind() == ErrorKind::Denied => DeleteOutcome::Same,
                Err(error) => {
                    self.violation(format_args!("{name} cannot be deleted: {error}"));
                    DeleteOutcome::Unknown
                }
            };
            self.end(&[token], |_| fate);
        }
    }
}
