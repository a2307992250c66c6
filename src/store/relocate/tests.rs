//! Moves beside a mark that goes on in the same process, or in another one (H8).

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::io::Cursor;

use super::*;
use crate::backend::fault::{Action, FaultBackend, Rule};
use crate::backend::record::Method;
use crate::backend::{Backend, FsBackend, FsOptions, MemoryBackend, PrefixDirectories, SyncLevel};
use crate::chunks::moves::Watch;
use crate::format::layout::Key;
use crate::rt::{Runtime, SimRuntime};
use crate::store::{Datastore, Options};

/// How long each call of the mover takes.
const STEP: Duration = Duration::from_millis(10);

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

fn space(name: &str) -> Namespace {
    name.parse().unwrap()
}

/// A marker, which needs no time but where it is told to wait: what it has seen.
struct Marker<'a> {
    place: &'a dyn Backend,
    seen: BTreeSet<Vec<u8>>,
}

impl Marker<'_> {
    /// Reads the index of the group, if there is one, as a mark does that visits its snapshots.
    async fn visit(&mut self, store: &Datastore, name: &str) {
        for snapshot in store.snapshots(&group(name)).await.unwrap() {
            for file in snapshot.files {
                self.read(&Key::Archive(snapshot.name.clone(), file.name)).await;
            }
        }
    }

    async fn read(&mut self, key: &Key) {
        match self.place.get(key, 1 << 20).await {
            Ok(found) => _ = self.seen.insert(found.bytes.to_vec()),
            Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
        }
    }
}

impl Marker<'_> {
    async fn drain(&mut self, hearing: Hearing, watch: &Watch) {
        match hearing {
            Hearing::Nobody => {}
            Hearing::Registry => loop {
                let keys = watch.take();
                if keys.is_empty() {
                    return;
                }
                self.read_slowly(&keys).await;
            },
            Hearing::Backend => {
                let pending_moves = self.place.pending_moves().await.unwrap().unwrap();
                self.read_slowly(pending_moves.keys()).await;
                pending_moves.clear().await.unwrap();
            }
        }
    }

    /// With time in between that is long enough for a move to the next place.
    async fn read_slowly(&mut self, keys: &[Key]) {
        for key in keys {
            self.read(key).await;
            self.place.runtime().sleep(STEP * 3).await;
        }
    }
}

/// Whom the marker hears of moves from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hearing {
    Backend,
    Nobody,
    Registry,
}

/// A mark that begins, visits the destinations and the source, and drains, each at its time after the move was begun.
#[derive(Clone, Copy, Debug)]
struct Script {
    begin: u32,
    destinations: u32,
    drain: u32,
    hops: usize,
    source: u32,
}

/// Whether the mark saw the index that is moved along `hops` namespaces.
async fn marks_what_moves(place: Arc<dyn Backend>, hearing: Hearing, script: Script) -> bool {
    let runtime = Arc::clone(place.runtime());
    let direct = Datastore::create(Arc::clone(&place), Options::default()).await.unwrap();
    for name in ["a", "b"] {
        direct.create_namespace(&space(name)).await.unwrap();
    }
    let backup = direct.backup(&group("vm/1")).begin().await.unwrap();
    backup.stream("data.bin", Cursor::new(b"data".to_vec())).await.unwrap();
    backup.finish().await.unwrap();
    let slow = Arc::new(FaultBackend::new(Arc::clone(&place)));
    let store = Datastore::open(Arc::clone(&slow) as Arc<dyn Backend>, Options::default()).await.unwrap();
    let all = Rule::on(Method::Copy, Action::Delay(STEP));
    slow.add(all.or(Method::Put).or(Method::Delete).or(Method::RecordMoves).or(Method::Barrier));
    let start = runtime.monotonic();
    let wait = async |at: u32| {
        let left = (start + STEP * at + STEP / 2).saturating_sub(runtime.monotonic());
        runtime.sleep(left).await;
    };
    let moving = async {
        for (from, to) in [("vm/1", "a"), ("ns/a/vm/1", "b")].into_iter().take(script.hops) {
            let done = store.move_group(&group(from), &space(to)).await.unwrap();
            assert!(done.is_complete(), "{script:?}: {done:?}");
        }
    };
    let marking = async {
        let mut marker = Marker { place: place.as_ref(), seen: BTreeSet::new() };
        wait(script.begin).await;
        let watch = store.inner().chunks().moves_in_progress().watch();
        wait(script.destinations).await;
        for name in ["ns/b/vm/1", "ns/a/vm/1"] {
            marker.visit(&direct, name).await;
        }
        wait(script.source).await;
        marker.visit(&direct, "vm/1").await;
        wait(script.drain).await;
        marker.drain(hearing, &watch).await;
        !marker.seen.is_empty()
    };
    let ((), marked) = futures::join!(moving, marking);
    marked
}

/// All orders of a mark beside a move; how many were tried, and in how many the mark missed the index.
fn orders<F: Future<Output = Arc<dyn Backend>>>(
    hearing: Hearing,
    (hops, stride): (usize, usize),
    place: impl Fn(Arc<dyn Runtime>, u64) -> F,
) -> (u64, u64) {
    let (mut tried, mut missed) = (0, 0);
    let last = 12 * u32::try_from(hops).unwrap();
    for begin in (0..last).step_by(stride) {
        for destinations in begin..last {
            for source in (destinations..last + 2).step_by(stride) {
                for drain in [source, source + 1, source + 4] {
                    // No two tests draw the same identity: stores of one identity share locks, and these run at the same time.
                    let of_test = (hearing as u64) << 40 | (hops as u64) << 32;
                    let sim = SimRuntime::new(tried + (1 << 20) + of_test);
                    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
                    let script = Script { begin, destinations, drain, hops, source };
                    let marked = sim.block_on(async {
                        marks_what_moves(place(runtime, tried).await, hearing, script).await
                    });
                    assert!(marked || hearing == Hearing::Nobody, "{script:?}");
                    tried += 1;
                    missed += u64::from(!marked);
                }
            }
        }
    }
    (tried, missed)
}

async fn memory(runtime: Arc<dyn Runtime>, _: u64) -> Arc<dyn Backend> {
    Arc::new(MemoryBackend::new(runtime))
}

async fn directory(scratch: PathBuf, runtime: Arc<dyn Runtime>, number: u64) -> Arc<dyn Backend> {
    let options =
        FsOptions::default().prefix_directories(PrefixDirectories::OnDemand).sync_level(SyncLevel::None);
    std::fs::create_dir_all(&scratch).unwrap();
    let path = scratch.join(number.to_string());
    Arc::new(FsBackend::create(runtime, path, options).await.unwrap())
}

/// Proves H8.
#[test]
fn without_the_registry_a_mark_misses_a_moving_index() {
    let (tried, missed) = orders(Hearing::Nobody, (1, 2), memory);
    assert!(tried > 200 && missed > 10, "{missed} of {tried}");
}

/// Proves H8.
#[test]
fn a_mark_in_this_process_finds_every_moving_index() {
    for hops in [(1, 2), (2, 3)] {
        let (tried, missed) = orders(Hearing::Registry, hops, memory);
        assert!(tried > 200 && missed == 0, "{missed} of {tried}");
    }
}

/// Proves H8.
#[test]
fn a_mark_in_another_process_finds_every_moving_index() {
    let scratch = larder_testing::scratch();
    for hops in [(1, 4), (2, 7)] {
        let place = |runtime, number| directory(scratch.path().join(hops.0.to_string()), runtime, number);
        let (tried, missed) = orders(Hearing::Backend, hops, place);
        assert!(tried > 100 && missed == 0, "{missed} of {tried}");
    }
}

/// Proves H8.
#[test]
fn a_recorded_move_that_was_not_made_has_no_effect() {
    let sim = SimRuntime::new(2 << 20);
    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
    sim.block_on(async {
        let place = memory(runtime, 0).await;
        let store = Datastore::create(Arc::clone(&place), Options::default()).await.unwrap();
        store.create_namespace(&space("a")).await.unwrap();
        let backup = store.backup(&group("vm/1")).begin().await.unwrap();
        backup.stream("data.bin", Cursor::new(b"data".to_vec())).await.unwrap();
        backup.finish().await.unwrap();
        let faulty = Arc::new(FaultBackend::new(Arc::clone(&place)));
        let dying =
            Datastore::open(Arc::clone(&faulty) as Arc<dyn Backend>, Options::default()).await.unwrap();
        faulty.add(Rule::on(Method::Copy, Action::FailBefore(ErrorKind::Unavailable)));
        let watch = dying.inner().chunks().moves_in_progress().watch();
        assert!(!dying.move_group(&group("vm/1"), &space("a")).await.unwrap().is_complete());
        let mut marker = Marker { place: place.as_ref(), seen: BTreeSet::new() };
        let pending_moves = watch.take();
        assert_eq!(pending_moves.len(), 1);
        for key in pending_moves {
            marker.read(&key).await;
        }
        assert!(marker.seen.is_empty());
        marker.visit(&store, "vm/1").await;
        assert_eq!(marker.seen.len(), 1);
        assert_eq!(watch.take(), []);
        assert_eq!(dying.inner().chunks().moves_in_progress().watch().take(), [], "it is over");
    });
}
