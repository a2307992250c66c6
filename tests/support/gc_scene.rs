//! Stores whose chunks are known by a number each, for tests of garbage collection.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::io::Cursor;
use larder::backend::{Backend, ListEntry, ListQuery, PutMode};
use larder::error::{Error, Result};
use larder::format::Digest;
use larder::format::layout::{Key, Prefix};
use larder::format::name::{GroupName, Namespace};
use larder::gc::{self, GcEnd, GcOptions, GcReport};
use larder::internal::listing::list_all;
#[cfg(feature = "testing")]
use larder::rt::SimRuntime;
use larder::store::{Datastore, Options, SnapshotReader, SnapshotState, WriterTarget};

use crate::noise;

pub const CHUNK: usize = 4 << 10;

/// The plaintext of a chunk, and its digest: tests ask for the same few over and over.
type Known = BTreeMap<u64, (Vec<u8>, Digest)>;

fn known<T>(number: u64, found: impl FnOnce(&(Vec<u8>, Digest)) -> T) -> T {
    static KNOWN: Mutex<Known> = Mutex::new(BTreeMap::new());
    let mut known = KNOWN.lock().unwrap();
    found(known.entry(number).or_insert_with(|| {
        let bytes = noise(number + 1, CHUNK);
        let digest = Digest::of(&bytes);
        (bytes, digest)
    }))
}

/// The plaintext of the chunk with this number.
pub fn chunk(number: u64) -> Vec<u8> {
    known(number, |(bytes, _)| bytes.clone())
}

pub fn digest(number: u64) -> Digest {
    known(number, |(_, digest)| *digest)
}

pub fn digests(numbers: impl IntoIterator<Item = u64>) -> BTreeSet<Digest> {
    numbers.into_iter().map(digest).collect()
}

pub fn data(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().map(|number| chunk(*number)).collect::<Vec<_>>().concat()
}

pub fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

/// A new store that no other has the identity of: a seed would draw the same one over and over, and stores of one identity share
/// what their writers use.
pub async fn created(backend: &Arc<dyn Backend>) -> Datastore {
    opened_as_new(backend, Datastore::create(Arc::clone(backend), Options::default()).await.unwrap()).await
}

/// Opens a store as another process would, that knows nothing of what this one does to the store of that identity.
pub async fn opened_as_new(backend: &Arc<dyn Backend>, drawn: Datastore) -> Datastore {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let identity = backend.get(&Key::Store, 1 << 20).await.unwrap().bytes;
    let uuid = format!("{:032x}", MADE.fetch_add(1, Ordering::Relaxed));
    let identity = String::from_utf8(identity.to_vec()).unwrap().replace(drawn.uuid().unwrap(), &uuid);
    backend.put(&Key::Store, identity.into(), PutMode::Replace).await.unwrap();
    let store = Datastore::open(Arc::clone(backend), Options::default()).await.unwrap();
    assert_eq!(store.uuid(), Some(uuid.as_str()));
    store
}

/// A snapshot with an image of these chunks, which its notes name.
pub async fn back_up(store: &Datastore, name: &str, numbers: &[u64]) -> Result<SnapshotReader> {
    back_up_on(store, name, numbers, None).await
}

pub async fn back_up_on(
    store: &Datastore,
    name: &str,
    numbers: &[u64],
    base: Option<&SnapshotReader>,
) -> Result<SnapshotReader> {
    let backup = store.backup(&group(name)).begin().await?;
    backup.set_notes(serde_json::to_string(numbers).unwrap());
    let data = data(numbers);
    let image = backup.image("d.img", Cursor::new(&data), data.len() as u64).chunk_bytes(CHUNK as u64);
    match base {
        Some(base) => drop(image.base(base).await?),
        None => drop(image.await?),
    }
    backup.finish().await.map(|finished| finished.snapshot)
}

/// Leaves these chunks behind, which nothing uses.
pub async fn leave(store: &Datastore, numbers: &[u64]) {
    back_up(store, "host/old", numbers).await.unwrap();
    store.delete_group(&group("host/old")).await.unwrap();
}

pub async fn restored(snapshot: &SnapshotReader) -> Result<Vec<u8>> {
    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
    snapshot.archive("d.img.fidx").await?.copy_to(&mut target).await?;
    Ok(target.into_inner().into_inner())
}

/// Makes sure that a snapshot matches its notes.
pub async fn check(snapshot: &SnapshotReader) -> Result<()> {
    let numbers: Vec<u64> = serde_json::from_str(snapshot.manifest().notes().unwrap_or_default()).unwrap();
    assert!(restored(snapshot).await? == data(&numbers), "{}", snapshot.name());
    Ok(())
}

/// Makes sure that all finished snapshots are whole; how many there are.
pub async fn check_all(store: &Datastore) -> usize {
    let mut whole = 0;
    for group in store.groups(&Namespace::root()).await.unwrap() {
        for info in store.snapshots(&group).await.unwrap() {
            if info.state == SnapshotState::Finished {
                let snapshot = store.snapshot(&info.name).await.unwrap();
                check(&snapshot).await.unwrap_or_else(|error| panic!("{} is lost: {error:?}", info.name));
                whole += 1;
            }
        }
    }
    whole
}

/// The chunks that there truly are.
pub async fn chunks(backend: &dyn Backend) -> BTreeSet<Digest> {
    let found = list_all(backend, &ListQuery::all(Prefix::Chunks)).await.unwrap();
    let digest = |entry| match entry {
        ListEntry::Object(info) => match info.key {
            Key::Chunk(digest) => Some(digest),
            _ => None,
        },
        _ => None,
    };
    found.into_entries().into_iter().filter_map(digest).collect()
}

/// Options that remove everything unreferenced.
pub fn at_once() -> GcOptions {
    GcOptions::default().grace(Duration::ZERO).consistent_listings().max_garbage(100).concurrency(3)
}

/// Collects, however much goes.
pub async fn collect(store: &Datastore, options: GcOptions) -> Result<GcReport> {
    gc::plan(store, options).await?.confirm().execute().await
}

/// Collects to the end.
pub async fn collected(store: &Datastore, options: GcOptions) -> GcReport {
    let report = collect(store, options).await.unwrap();
    assert!(matches!(report.end, GcEnd::Complete), "{report:?}");
    report
}

/// Why a run did not come to its end.
pub fn reason(report: Result<GcReport>) -> Option<Error> {
    match report {
        Err(error) => Some(error),
        Ok(report) => match report.end {
            GcEnd::Stopped(error) => Some(error),
            _ => None,
        },
    }
}

/// The number of seeds to try: many by hand, few in CI.
pub fn seeds(default: u64) -> u64 {
    std::env::var("LARDER_SEEDS").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Runs a test with stores as in a directory and as in a bucket, with each step at which something may happen, from 1 on, until it returns
/// `false` because it has no such step.
#[cfg(feature = "testing")]
pub fn at_each_step(least: u64, test: &impl AsyncFn(&SimRuntime, u64, bool) -> bool) {
    for is_bucket in [false, true] {
        let mut step = 1;
        loop {
            let _on_failure = OnFailure(format!("bucket {is_bucket}, step {step}"));
            let sim = SimRuntime::new(step);
            if !sim.block_on(test(&sim, step, is_bucket)) {
                break;
            }
            step += 1;
        }
        assert!(step > least, "{step} steps");
    }
}

/// Says which run it was if a test fails.
pub struct OnFailure(pub String);

impl Drop for OnFailure {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with {}", self.0);
        }
    }
}
