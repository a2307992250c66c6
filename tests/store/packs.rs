//! Damage of packs and index segments: verification names exactly the hurt snapshots, everything else restores, the next backup heals, and
//! collections lose nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use futures::executor::block_on;
use larder::backend::{Backend, ListEntry, ListQuery, MemoryBackend, PutMode, Removal};
use larder::error::ErrorKind;
use larder::format::layout::{Key, Prefix};
use larder::format::name::SnapshotName;
use larder::internal::listing::list_all;
use larder::internal::packs::packed;
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, Options, PackOptions, Scope};
use larder::verify::{self, VerifyMode, VerifyOptions, VerifyReport};
use larder_testing::gc_scene::{
    OnFailure, at_once, back_up, check, check_all, chunks, collect, collected, digest, digests, opened_as_new,
};
use larder_testing::watched::Watched;

/// The chunks of each backup. Each adds a pack and a segment with those that are new.
const BACKUPS: [(&str, &[u64]); 3] =
    [("host/a", &[1, 2, 3, 4]), ("host/b", &[3, 4, 5, 6]), ("host/c", &[6, 7, 8])];
const ALL: [u64; 8] = [1, 2, 3, 4, 5, 6, 7, 8];
/// Length of the header of a pack, and of an entry.
const PACK_HEADER: usize = 32;
const ENTRY_HEADER: usize = 44;
const TRAILER: usize = 64;

type Raw = Arc<dyn Backend>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Damage {
    /// Its contents become those of the next one.
    BecomeNext,
    Delete,
    Duplicate,
    FlipBlob,
    FlipDirectory,
    FlipEntryHeader,
    FlipTrailer,
    Swap,
    Truncate,
}

const DAMAGE: [Damage; 9] = [
    Damage::BecomeNext,
    Damage::Delete,
    Damage::Duplicate,
    Damage::FlipBlob,
    Damage::FlipDirectory,
    Damage::FlipEntryHeader,
    Damage::FlipTrailer,
    Damage::Swap,
    Damage::Truncate,
];

struct Scene {
    is_bucket: bool,
    names: Vec<SnapshotName>,
    packs: Vec<Key>,
    raw: Raw,
    segments: Vec<Key>,
    store: Datastore,
}

/// The keys in the order in which they were stored: one writer counts them.
async fn keys(raw: &Raw, prefix: Prefix) -> Vec<Key> {
    let entries = list_all(raw.as_ref(), &ListQuery::all(prefix)).await.unwrap().into_entries();
    let mut keys: Vec<_> = entries
        .into_iter()
        .map(|entry| match entry {
            ListEntry::Object(info) => info.key,
            other => panic!("{other:?}"),
        })
        .collect();
    keys.sort_by_key(|key| match key {
        Key::Pack(name) => name.to_string(),
        other => other.to_string(),
    });
    keys
}

async fn scene(is_bucket: bool) -> Scene {
    let raw: Raw = Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())));
    let options = Options::default().packed(PackOptions::default());
    let backend = Watched::of_kind(Arc::clone(&raw), is_bucket) as Raw;
    let store = Datastore::create(Arc::clone(&backend), options).await.unwrap();
    let store = opened_as_new(&backend, store).await;
    let mut names = Vec::new();
    for (group, numbers) in BACKUPS {
        names.push(back_up(&store, group, numbers).await.unwrap().name().clone());
    }
    let (packs, segments) = (keys(&raw, Prefix::Packs).await, keys(&raw, Prefix::Segments).await);
    assert_eq!((packs.len(), segments.len()), (3, 3));
    Scene { is_bucket, names, packs, raw, segments, store }
}

async fn get(raw: &Raw, key: &Key) -> Vec<u8> {
    raw.get(key, u64::MAX).await.unwrap().bytes.to_vec()
}

async fn put(raw: &Raw, key: &Key, bytes: Vec<u8>) {
    raw.put(key, bytes.into(), PutMode::Replace).await.unwrap();
}

async fn delete(raw: &Raw, key: &Key) {
    raw.delete(&[Removal::any(key.clone())]).await.unwrap().remove(0).unwrap();
}

/// A key that no object has.
fn other_name(key: &Key) -> Key {
    let path = key.to_string();
    let (stem, _) = path.rsplit_once('-').unwrap();
    match key {
        Key::Pack(_) => Key::Pack(format!("{}-77", &stem[stem.len() - 32..]).parse().unwrap()),
        _ => format!("{stem}-77").parse().unwrap(),
    }
}

async fn damage(raw: &Raw, key: &Key, next: &Key, how: Damage) {
    let mut bytes = get(raw, key).await;
    let length = bytes.len();
    let flip = |bytes: &mut Vec<u8>, at: usize| bytes[at] ^= 1;
    match how {
        Damage::BecomeNext => bytes = get(raw, next).await,
        Damage::Delete => return delete(raw, key).await,
        Damage::Duplicate => return put(raw, &other_name(key), bytes).await,
        Damage::FlipBlob => flip(&mut bytes, PACK_HEADER + ENTRY_HEADER + 100),
        Damage::FlipDirectory => flip(&mut bytes, length - TRAILER - 5),
        Damage::FlipEntryHeader => flip(&mut bytes, PACK_HEADER + 5),
        Damage::FlipTrailer => flip(&mut bytes, length - 5),
        Damage::Swap => {
            let other = get(raw, next).await;
            put(raw, next, bytes).await;
            bytes = other;
        }
        Damage::Truncate => bytes.truncate(length / 2),
    }
    put(raw, key, bytes).await;
}

/// The chunks of which no good copy is left, by the bytes of the packs, and those whose bytes are not there.
async fn lost_chunks(
    raw: &Raw,
    places: &BTreeMap<u64, (Key, usize, Bytes)>,
) -> (BTreeSet<u64>, BTreeSet<u64>) {
    let (mut lost, mut missing) = (BTreeSet::new(), BTreeSet::new());
    for (number, (pack, offset, blob)) in places {
        let bytes = match raw.get(pack, u64::MAX).await {
            Ok(object) => object.bytes,
            Err(_) => Bytes::new(),
        };
        let found = bytes.get(*offset..offset + blob.len());
        lost.extend((found != Some(&blob[..])).then_some(*number));
        missing.extend(found.is_none().then_some(*number));
    }
    (lost, missing)
}

/// Where each chunk is.
async fn places(raw: &Raw) -> BTreeMap<u64, (Key, usize, Bytes)> {
    let chunks = packed(Arc::clone(raw)).await;
    let mut places = BTreeMap::new();
    for number in ALL {
        let object = chunks.get(&Key::Chunk(digest(number)), u64::MAX).await.unwrap();
        let (pack, offset) = object.info.version.as_str().split_once(':').unwrap();
        let place = (Key::Pack(pack.parse().unwrap()), offset.parse().unwrap(), object.bytes);
        places.insert(number, place);
    }
    places
}

async fn verified(store: &Datastore, mode: VerifyMode) -> VerifyReport {
    let options = VerifyOptions::default().mode(mode);
    verify::plan(store, &Scope::Store, options).await.unwrap().execute().await.unwrap()
}

fn damaged(report: &VerifyReport) -> BTreeSet<SnapshotName> {
    report.damaged.iter().map(|damaged| damaged.name.clone()).collect()
}

impl Scene {
    /// The snapshots with one of these chunks.
    fn with(&self, chunks: &BTreeSet<u64>) -> BTreeSet<SnapshotName> {
        let snapshots = self.names.iter().zip(BACKUPS);
        let hurt = snapshots.filter(|(_, (_, numbers))| numbers.iter().any(|number| chunks.contains(number)));
        hurt.map(|(name, _)| name.clone()).collect()
    }

    /// Verification finds these chunks lost and those of them missing, and everything else restores.
    async fn expect(&self, lost: &BTreeSet<u64>, missing: &BTreeSet<u64>) {
        let (hurt, absent) = (self.with(lost), self.with(missing));
        assert_eq!(damaged(&verified(&self.store, VerifyMode::Presence).await), absent, "by presence");
        for name in &self.names {
            let snapshot = self.store.snapshot(name).await.unwrap();
            assert_eq!(check(&snapshot).await.is_err(), hurt.contains(name), "{name}");
        }
        assert_eq!(damaged(&verified(&self.store, VerifyMode::Full).await), hurt, "by all bytes");
        for name in &self.names {
            let snapshot = self.store.snapshot(name).await.unwrap();
            assert_eq!(check(&snapshot).await.is_err(), hurt.contains(name), "{name} after the verification");
        }
    }

    /// A backup with the same contents heals everything.
    async fn heal(&self) {
        back_up(&self.store, "host/again", &ALL).await.unwrap();
        assert_eq!(check_all(&self.store).await, 4);
        let report = verified(&self.store, VerifyMode::Full).await;
        assert!(report.is_clean(), "{report:?}");
    }

    /// Collections lose nothing, and the store works.
    async fn collect_twice(&self) {
        for round in 0..2 {
            collected(&self.store, at_once()).await;
            assert_eq!(check_all(&self.store).await, 4, "after collection {round}");
        }
        let objects = packed(Arc::clone(&self.raw)).await;
        assert_eq!(chunks(objects.as_ref()).await, digests(ALL));
        let made = back_up(&self.store, "host/new", &[1, 5, 8, 9]).await.unwrap();
        check(&made).await.unwrap();
        let report = verified(&self.store, VerifyMode::Full).await;
        assert!(report.is_clean(), "{report:?}");
    }

    async fn opened_as_new(self) -> Self {
        let backend = Watched::of_kind(Arc::clone(&self.raw), self.is_bucket) as Raw;
        let store = opened_as_new(&backend, self.store).await;
        Self { store, ..self }
    }
}

/// Each damage of each object, and where the store is.
fn cases() -> impl Iterator<Item = (Damage, usize, bool)> {
    let of_place =
        |is_bucket: bool| DAMAGE.into_iter().flat_map(move |how| (0..3).map(move |at| (how, at, is_bucket)));
    of_place(false).chain(of_place(true))
}

#[test]
fn verification_names_exactly_the_snapshots_that_a_damaged_pack_hurts_and_a_backup_heals_them() {
    for (how, at, is_bucket) in cases() {
        let _on_failure = OnFailure(format!("{how:?} of pack {at}, bucket {is_bucket}"));
        block_on(async {
            let scene = scene(is_bucket).await;
            let places = places(&scene.raw).await;
            damage(&scene.raw, &scene.packs[at], &scene.packs[(at + 1) % 3], how).await;
            let scene = scene.opened_as_new().await;
            let (lost, missing) = lost_chunks(&scene.raw, &places).await;
            assert_eq!(
                lost.is_empty(),
                matches!(
                    how,
                    Damage::Duplicate | Damage::FlipDirectory | Damage::FlipEntryHeader | Damage::FlipTrailer
                )
            );
            scene.expect(&lost, &missing).await;
            scene.heal().await;
            scene.collect_twice().await;
        });
    }
}

#[test]
fn a_store_with_a_damaged_segment_opens_and_heals_and_no_collection_runs_until_the_segment_is_gone() {
    for (how, at, is_bucket) in cases() {
        let _on_failure = OnFailure(format!("{how:?} of segment {at}, bucket {is_bucket}"));
        block_on(async {
            let scene = scene(is_bucket).await;
            let places = places(&scene.raw).await;
            let of_segment = |at: usize| {
                let in_pack = places.iter().filter(|(_, (pack, ..))| *pack == scene.packs[at]);
                in_pack.map(|(number, _)| *number).collect::<BTreeSet<_>>()
            };
            let next = (at + 1) % 3;
            let lost = match how {
                Damage::Duplicate => BTreeSet::new(),
                Damage::Swap => of_segment(at).union(&of_segment(next)).copied().collect(),
                _ => of_segment(at),
            };
            damage(&scene.raw, &scene.segments[at], &scene.segments[next], how).await;
            let mut scene = scene.opened_as_new().await;
            scene.expect(&lost, &lost).await;
            scene.heal().await;
            if how != Damage::Delete {
                let before = keys(&scene.raw, Prefix::Packs).await;
                let refused = collect(&scene.store, at_once()).await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Corrupt, "{refused:?}");
                assert_eq!(keys(&scene.raw, Prefix::Packs).await, before);
                for segment in [&scene.segments[at], &scene.segments[next], &other_name(&scene.segments[at])]
                {
                    let is_damaged = how == Damage::Swap || segment != &scene.segments[next];
                    if is_damaged && scene.raw.head(segment).await.is_ok() {
                        delete(&scene.raw, segment).await;
                    }
                }
                scene = scene.opened_as_new().await;
            }
            scene.collect_twice().await;
        });
    }
}

#[test]
fn without_any_segment_a_collection_finds_the_chunks_of_all_packs_again() {
    for (heals, is_bucket) in [(false, false), (true, false), (false, true)] {
        block_on(async {
            let scene = scene(is_bucket).await;
            for segment in &scene.segments {
                delete(&scene.raw, segment).await;
            }
            let scene = scene.opened_as_new().await;
            let all = ALL.into_iter().collect();
            scene.expect(&all, &all).await;
            if heals {
                scene.heal().await;
            } else {
                collected(&scene.store, at_once()).await;
                back_up(&scene.store, "host/again", &ALL).await.unwrap();
                assert_eq!(keys(&scene.raw, Prefix::Packs).await.len(), 3, "nothing was stored again");
            }
            scene.collect_twice().await;
        });
    }
}

#[test]
fn without_any_segment_a_collection_also_finds_the_chunks_of_torn_packs() {
    for is_bucket in [false, true] {
        block_on(async {
            let scene = scene(is_bucket).await;
            let places = places(&scene.raw).await;
            for segment in &scene.segments {
                delete(&scene.raw, segment).await;
            }
            for (at, how) in
                [Damage::Truncate, Damage::FlipTrailer, Damage::FlipEntryHeader].into_iter().enumerate()
            {
                damage(&scene.raw, &scene.packs[at], &scene.packs[0], how).await;
            }
            let (lost, _) = lost_chunks(&scene.raw, &places).await;
            assert!((1..4).contains(&lost.len()), "{lost:?}");
            let scene = scene.opened_as_new().await;
            collected(&scene.store, at_once()).await;
            scene.expect(&lost, &lost).await;
            scene.heal().await;
            scene.collect_twice().await;
        });
    }
}
