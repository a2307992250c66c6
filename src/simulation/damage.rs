//! Chunks that are damaged behind the back of the store, verifications, and what heals them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use futures::io::Cursor;

use crate::backend::{ListEntry, ListQuery};
use crate::error::ErrorKind;
use crate::format::layout::{Key, Prefix};
use crate::format::name::SnapshotName;
use crate::simulation::blocks::{BLOCK, BLOCKS, bytes_of};
use crate::simulation::check::wrong_with;
use crate::simulation::keys::{Chunk, KEYS, Mode, key, with_all_keys};
use crate::simulation::model::{DeleteOutcome, Intent};
use crate::simulation::world::World;
use crate::store::{Datastore, Protection, Scope};
use crate::verify::{self, Repair, Sample, VerifyMode, VerifyOptions, VerifyReport};

impl World {
    /// Deletes, cuts or changes a chunk of the first store.
    pub(crate) async fn damage(&self) {
        let block = self.below(u64::from(BLOCKS)) as u8;
        let keys = self.pick(&[[None, Some(0), Some(1)], [Some(0), Some(1), None], [Some(1), Some(0), None]]);
        let raw = self.host.chunks().await;
        let (mut chunk, mut found) = (Chunk { block, key: None }, None);
        for key in keys.unwrap() {
            chunk.key = key;
            found = raw.get(&Self::key_of(chunk), u64::MAX).await.ok();
            if found.is_some() {
                break;
            }
        }
        let Some(object) = found else { return };
        let key = Self::key_of(chunk);
        let mut bytes = object.bytes.to_vec();
        if bytes.is_empty() {
            return;
        }
        self.model().bad.insert(chunk);
        if chunk.key.is_some() && self.one_in(2) {
            return self.damage_silently(chunk, bytes).await;
        }
        let how = self.below(3);
        self.log(format_args!("damage of {chunk:?}, {key:?}: {how}"));
        self.count("damage");
        match how {
            0 => self.host.spoil(&key, None).await,
            1 => {
                bytes.truncate(bytes.len() / 2);
                self.host.spoil(&key, Some(bytes)).await;
            }
            _ => {
                let last = bytes.len() - 1;
                bytes[last] ^= 1;
                self.host.spoil(&key, Some(bytes)).await;
            }
        }
    }

    /// Changes an encrypted chunk so that its checksum still matches: the nonce, the tag, or all of it for another chunk with the same key.
    async fn damage_silently(&self, chunk: Chunk, mut bytes: Vec<u8>) {
        let how = self.below(3);
        let other = Chunk { block: self.below(u64::from(BLOCKS)) as u8, ..chunk };
        match how {
            0 | 1 if bytes.len() < 44 => {}
            0 => bytes[20] ^= 1,
            1 => bytes[36] ^= 1,
            _ if other.block == chunk.block => {}
            _ => {
                if let Ok(object) = self.host.chunks().await.get(&Self::key_of(other), u64::MAX).await {
                    bytes = object.bytes.to_vec();
                }
            }
        }
        self.log(format_args!("silent damage of {chunk:?}, {:?}: {how}, {other:?}", Self::key_of(chunk)));
        self.count("silent damage");
        self.model().silent.insert(chunk);
        let key = Self::key_of(chunk);
        self.host.spoil(&key, Some(bytes)).await;
    }

    fn key_of(chunk: Chunk) -> Key {
        Key::Chunk(chunk.digest())
    }

    pub(crate) async fn verify(&self) {
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
        let keys = self.below(3) as u8;
        let is_full = keys == KEYS;
        options = (0..keys).fold(options, |options, number| options.key(&key(number)));
        let scope = match self.below(3) {
            0 => Scope::Group(self.a_group()),
            _ => Scope::Store,
        };
        let before = {
            let model = self.model();
            (model.bad.clone(), model.is_index_hurt)
        };
        self.log(format_args!("{number}: verify {scope:?} {options:?}"));
        let work = async { verify::plan(&store, &scope, options).await?.execute().await };
        match self.perhaps(work).await {
            Some(Ok(report)) => {
                self.log(format_args!("{number}: verified: {report:?}"));
                self.count(if report.quarantined > 0 { "verify quarantined" } else { "verify" });
                let (mut bad, was_hurt) = before;
                self.forget_masked().await;
                bad.extend(self.model().bad.iter());
                if number == 1 {
                    bad.clone_from(&self.model().silent);
                }
                if is_full && report.chunks.checksum > 0 {
                    self.violation(format_args!("{number}: with all keys, only checksums: {report:?}"));
                }
                if number == 1 || !was_hurt && !self.model().is_index_hurt {
                    self.expect_damaged(number, &report, &bad);
                }
            }
            Some(Err(error)) => {
                self.log(format_args!("{number}: verify: {error}"));
                self.expect_kind(error.kind());
            }
            None => {}
        }
    }

    /// Nothing is called damaged that is not.
    fn expect_damaged(&self, number: usize, report: &VerifyReport, bad: &BTreeSet<Chunk>) {
        for damaged in &report.damaged {
            let chunks = self.model().chunks(damaged.name.time());
            if damaged.manifest.is_some() || chunks.is_disjoint(bad) {
                self.violation(format_args!("{number}: without a reason, it is damaged: {damaged:?}"));
            }
        }
    }

    /// Looks at everything when nothing is under way.
    pub(crate) async fn look(&self, number: usize, restores: bool) {
        let (finished, others) = self.listed(number).await;
        self.log(format_args!("{number}: {} finished, {} unfinished", finished.len(), others.len()));
        self.model().compare(number, &finished);
        self.forget_healed(number).await;
        self.forget_masked().await;
        let store = self.store(number);
        for name in finished.keys().filter(|_| restores) {
            let (contents, mode, is_hurt) = {
                let model = self.model();
                (model.contents(name.time()), model.mode(name.time()), model.is_hurt(number, name.time()))
            };
            let restored = match self.open(&store, name, mode).await {
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
        let raw = self.host.chunks().await;
        if !bad.is_empty() {
            // A backup that was aborted may have stored a good one, and flushes nothing. A crash would bring the bad one back.
            self.host.raw().barrier().await.unwrap();
        }
        for chunk in bad {
            match raw.get(&Self::key_of(chunk), u64::MAX).await {
                Ok(object) if chunk.is_whole(&object.bytes) => {
                    self.log(format_args!("{chunk:?} is good again"));
                    self.forget_bad(chunk).await;
                }
                _ => {}
            }
        }
    }

    /// A good copy of a chunk was found.
    async fn forget_bad(&self, chunk: Chunk) {
        let copies = self.host.copies(&chunk.digest()).await;
        let mut model = self.model();
        model.bad.remove(&chunk);
        if model.silent.contains(&chunk) && copies.iter().any(|copy| !chunk.is_whole(copy)) {
            model.masked.insert(chunk);
        }
    }

    /// A collection may have left only the bad copy of a chunk that had a good one too.
    pub(crate) async fn forget_masked(&self) {
        let masked = self.model().masked.clone();
        for chunk in masked {
            let copies = self.host.copies(&chunk.digest()).await;
            if !copies.is_empty() && !copies.iter().any(|copy| chunk.is_whole(copy)) {
                let mut model = self.model();
                model.masked.remove(&chunk);
                model.bad.insert(chunk);
            }
        }
    }

    /// Verifies everything, backs up what is bad, and verifies again.
    pub(crate) async fn heal(&self) {
        if self.model().is_index_hurt {
            self.heal_index().await;
        }
        let store = self.store(0);
        let mut own = BTreeMap::new();
        for round in 0..2 {
            self.forget_masked().await;
            let (finished, _) = self.listed(0).await;
            let chunks_of = |name: &SnapshotName| {
                own.get(name).cloned().unwrap_or_else(|| self.model().chunks(name.time()))
            };
            let report = self.verified(&store).await;
            let damaged: BTreeSet<_> = report.damaged.iter().map(|damaged| damaged.name.clone()).collect();
            if self.host.is_packed {
                // A chunk may have another copy, which is good: what is sound has no bad chunk. A restore proves it later.
                let sound = finished.keys().filter(|name| !damaged.contains(*name));
                let good: BTreeSet<_> = sound.flat_map(chunks_of).collect();
                let good: Vec<_> = self.model().bad.intersection(&good).copied().collect();
                for chunk in good {
                    self.forget_bad(chunk).await;
                }
            }
            let bad = self.model().bad.clone();
            let hurt = finished.keys().filter(|name| !chunks_of(name).is_disjoint(&bad));
            let hurt: BTreeSet<SnapshotName> = hurt.cloned().collect();
            if damaged != hurt {
                self.violation(format_args!("damaged: {damaged:?}, hurt: {hurt:?}"));
            }
            self.log(format_args!("healing, round {round}: bad {bad:?}, hurt {hurt:?}"));
            if bad.is_empty() {
                if !report.is_clean() {
                    self.violation(format_args!("nothing is bad, and it is not clean: {report:?}"));
                }
                return;
            }
            self.count("healing");
            let known: BTreeSet<Chunk> =
                finished.keys().flat_map(chunks_of).filter(|chunk| bad.contains(chunk)).collect();
            for key in std::iter::once(None).chain((0..KEYS).map(Some)) {
                let with_key: BTreeSet<_> = bad.iter().copied().filter(|chunk| chunk.key == key).collect();
                if !with_key.is_empty() {
                    own.insert(self.back_up_chunks(&store, key, &with_key).await, with_key);
                }
            }
            self.settle().await;
            self.forget_healed(0).await;
            // Damage of an unreferenced chunk cannot have been detected before.
            let left: Vec<Chunk> = self.model().bad.iter().copied().filter(|c| known.contains(c)).collect();
            if !left.is_empty() {
                self.violation(format_args!("a backup of the same contents did not heal {left:?}"));
            }
        }
        let report = self.verified(&store).await;
        if !report.is_clean() || !self.model().bad.is_empty() {
            let bad = self.model().bad.clone();
            self.violation(format_args!("it does not heal: {bad:?} {report:?}"));
        }
    }

    async fn verified(&self, store: &Datastore) -> VerifyReport {
        let report = verify::plan(store, &Scope::Store, with_all_keys(VerifyOptions::default())).await;
        let report = report.unwrap().execute().await.unwrap();
        self.log(format_args!("verified: {report:?}"));
        report
    }

    /// Backs up chunks, each as an image, of which the model does not know.
    pub(crate) async fn back_up_chunks(
        &self,
        store: &Datastore,
        key: Option<u8>,
        chunks: &BTreeSet<Chunk>,
    ) -> SnapshotName {
        let group = Self::own_group();
        let time = self.model().new_time();
        let backup = store.backup(&group).time(SystemTime::from(time));
        let backup = key.map_or(Mode::Plain, Mode::Encrypt).of(backup).begin().await.unwrap();
        for Chunk { block, .. } in chunks {
            let data = bytes_of(&[*block]);
            let size = data.len() as u64;
            let image = backup.image(format!("{block}.img"), Cursor::new(data), size);
            image.chunk_bytes(BLOCK as u64).await.unwrap();
        }
        let snapshot = backup.finish().await.unwrap().snapshot;
        self.log(format_args!("backed up {chunks:?} as {}", snapshot.name()));
        snapshot.name().clone()
    }

    /// Deletes the group that healed, and what is not finished.
    pub(crate) async fn tidy(&self, number: usize) {
        let store = self.store(number);
        match store.delete_group(&Self::own_group()).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            done => drop(done.unwrap()),
        }
        self.settle().await;
        let (_, unfinished) = self.listed(number).await;
        for name in unfinished {
            self.log(format_args!("{number}: delete what is left of {name}"));
            // A protection mark is all that a move may have left behind.
            let unprotected = store.set_protection(&name, Protection::Off).await;
            // A deletion believes a mark that a listing still shows.
            self.settle().await;
            for done in [unprotected, store.delete_snapshot(&name).await] {
                match done {
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    done => done.unwrap(),
                }
            }
        }
        self.settle().await;
    }

    /// After two garbage collections, the store has exactly the chunks that the snapshots need.
    pub(crate) async fn expect_no_garbage(&self, number: usize) {
        if number == 1 {
            return;
        }
        let (mut lost, mut too_many) = self.lost_and_too_many(number).await;
        if lost.is_empty() && !too_many.is_empty() && self.host.is_packed {
            // A chunk with several copies is judged by the time of one of them, and then by that of another.
            self.count("garbage of several copies");
            self.collect_everything(number).await;
            (lost, too_many) = self.lost_and_too_many(number).await;
        }
        if lost.is_empty() && !too_many.is_empty() && self.host.is_packed && self.has_stopped() {
            // A process uses no pack whose drop got no answer, and deletes none of which it does not know that it was dropped.
            self.count("garbage of a process");
            self.begin_process().await;
            self.collect_everything(number).await;
            (lost, too_many) = self.lost_and_too_many(number).await;
        }
        if !lost.is_empty() || !too_many.is_empty() {
            self.violation(format_args!("garbage: {too_many:?}, lost: {lost:?}"));
        }
    }

    /// The chunks that are missing, and those that nothing needs.
    async fn lost_and_too_many(&self, number: usize) -> (Vec<String>, Vec<String>) {
        let (finished, others) = self.listed(number).await;
        assert!(others.is_empty());
        let mut wanted = BTreeSet::new();
        for name in finished.keys() {
            let model = self.model();
            let chunks = model.chunks(name.time());
            wanted.extend(chunks.into_iter().map(|chunk| Key::Chunk(chunk.digest()).to_string()));
        }
        let store = self.store(number);
        for name in finished.keys() {
            let (tree, mode) = {
                let model = self.model();
                (model.contents(name.time()).tree, model.mode(name.time()))
            };
            let snapshot = self.open(&store, name, mode).await.unwrap();
            for archive in tree.iter().flat_map(|tree| tree.archives()) {
                let archive = snapshot.archive(archive).await.unwrap();
                wanted.extend(archive.index().iter().map(|chunk| Key::Chunk(chunk.digest).to_string()));
            }
        }
        let found = self.chunk_paths().await;
        let lost = wanted.difference(&found).cloned().collect();
        let mut too_many: Vec<_> = found.difference(&wanted).cloned().collect();
        if self.host.is_packed {
            // A pack with little unused stays as it is. The collector may read a chunk with several copies from any of them.
            let used = self.host.packs_with(wanted.iter().filter(|path| found.contains(*path))).await;
            let all = self.packs_of(&too_many).await;
            self.log(format_args!("not wanted: {:?}", too_many.iter().zip(&all).collect::<Vec<_>>()));
            too_many = too_many
                .into_iter()
                .zip(all)
                .filter(|(_, pack)| !used.contains(pack))
                .map(|(path, _)| path)
                .collect();
            if self.host.place.is_shared() {
                // Two processes store a chunk twice: this view and the collector may read it from different packs.
                too_many.clear();
            }
        }
        (lost, too_many)
    }

    /// The packs of these chunks.
    async fn packs_of(&self, paths: impl IntoIterator<Item = impl AsRef<str>>) -> Vec<String> {
        let chunks = self.host.chunks().await;
        let mut packs = Vec::new();
        for path in paths {
            let info = chunks.head(&path.as_ref().parse().unwrap()).await.unwrap();
            packs.push(info.version.as_str().split_once(':').unwrap().0.to_owned());
        }
        packs
    }

    async fn chunk_paths(&self) -> BTreeSet<String> {
        let (mut paths, mut cursor) = (BTreeSet::new(), None);
        let raw = self.host.chunks().await;
        loop {
            let query = ListQuery::all(Prefix::Chunks);
            let page = raw.list(&query, cursor.as_ref()).await.unwrap();
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
        self.settle().await;
    }
}
