//! Backups, restores, verifications, prunings and collections of garbage on real threads, each in a loop of its own.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures::channel::oneshot;
use futures::future::{BoxFuture, poll_fn};
use futures::io::Cursor;
use larder::error::ErrorKind;
use larder::format::name::{GroupName, Namespace, SnapshotName};
use larder::gc::{self, GcEnd, GcOptions};
use larder::prune::{self, PruneOptions, PruneOutcome};
use larder::retention::RetentionRules;
use larder::rt::Runtime;
use larder::store::{Datastore, Scope, SnapshotReader, WriterTarget};
use larder::verify::{self, VerifyOptions};

use crate::noise;

/// The number of bytes of a chunk.
const BLOCK: usize = 4096;

/// State shared by the loops.
struct Side {
    /// Acknowledged snapshots with their blocks. A snapshot is removed from here before it is pruned.
    acknowledged: Mutex<BTreeMap<SnapshotName, Vec<u8>>>,
    collector: Datastore,
    counts: [AtomicU64; 5],
    last_time: AtomicU64,
    runtime: Arc<dyn Runtime>,
    stop: AtomicBool,
    store: Datastore,
}

const GROUPS: [&str; 3] = ["host/a", "host/b", "vm/1"];

/// Runs all loops for this time, and makes sure that everything acknowledged and not pruned exists. The collections have a handle of their
/// own.
pub async fn side_by_side(runtime: Arc<dyn Runtime>, store: Datastore, collector: Datastore, time: Duration) {
    let side = Side {
        acknowledged: Mutex::default(),
        collector,
        counts: Default::default(),
        last_time: AtomicU64::new(1_735_689_600),
        runtime: Arc::clone(&runtime),
        stop: AtomicBool::new(false),
        store,
    };
    let side = Arc::new(side);
    let mut loops: Vec<BoxFuture<'static, ()>> = Vec::new();
    for (number, group) in GROUPS.into_iter().enumerate() {
        loops.push(Box::pin(backups(Arc::clone(&side), group.parse().unwrap(), number as u64)));
    }
    loops.push(Box::pin(restores(Arc::clone(&side))));
    loops.push(Box::pin(verifications(Arc::clone(&side))));
    loops.push(Box::pin(prunings(Arc::clone(&side))));
    loops.push(Box::pin(collections(Arc::clone(&side))));
    let mut ends = Vec::new();
    for work in loops {
        let (done, end) = oneshot::channel();
        runtime.spawn(Box::pin(async move {
            work.await;
            let _ = done.send(());
        }));
        ends.push(end);
    }
    let (begun, patience) = (runtime.monotonic(), Duration::from_mins(5));
    let all = || side.counts.iter().all(|count| count.load(Ordering::Relaxed) > 0);
    // A slow machine takes longer until each of them has done something.
    while runtime.monotonic() < begun + time || (!all() && runtime.monotonic() < begun + patience) {
        runtime.sleep(Duration::from_millis(50)).await;
    }
    side.stop.store(true, Ordering::Relaxed);
    for end in ends {
        end.await.expect("a loop panicked");
    }
    collect(&side.collector).await;
    let acknowledged = side.acknowledged.lock().unwrap().clone();
    for (name, blocks) in &acknowledged {
        let snapshot = side.store.snapshot(name).await.unwrap();
        assert!(restored(&snapshot).await.unwrap() == bytes_of(blocks), "{name}");
    }
    let mut report = verify::plan(&side.store, &Scope::Store, VerifyOptions::default()).await.unwrap();
    let report = report.execute().await.unwrap();
    assert!(report.is_clean(), "{report:?}");
    let counts = side.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
    eprintln!("backups, restores, verifications, pruned, collected: {counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
}

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 += 1;
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&noise(self.0, 8));
        u64::from_le_bytes(bytes) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.below(sides) == 0
    }
}

impl Side {
    /// Returns `true` if another round is due. Others have their turn first: in memory, some loops never wait.
    async fn goes_on(&self) -> bool {
        let mut is_first = true;
        poll_fn(|context| {
            if std::mem::take(&mut is_first) {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(!self.stop.load(Ordering::Relaxed))
        })
        .await
    }

    /// Seconds that no snapshot had yet.
    fn next_time(&self) -> u64 {
        self.last_time.fetch_add(1, Ordering::Relaxed)
    }

    fn count(&self, which: usize, count: u64) {
        self.counts[which].fetch_add(count, Ordering::Relaxed);
    }
}

fn bytes_of(blocks: &[u8]) -> Vec<u8> {
    blocks.iter().map(|number| noise(u64::from(*number) + 5000, BLOCK)).collect::<Vec<_>>().concat()
}

async fn backups(side: Arc<Side>, group: GroupName, seed: u64) {
    let mut dice = Dice(seed << 32);
    while side.goes_on().await {
        let blocks: Vec<u8> = (0..6)
            .map(|at| if dice.one_in(3) { u8::try_from(dice.below(250)).unwrap() } else { at })
            .collect();
        let data = bytes_of(&blocks);
        let base = match side.store.latest(&group).await.unwrap() {
            Some(newest) if dice.one_in(2) => side.store.snapshot(&newest).await.ok(),
            _ => None,
        };
        // Times do not wait for one another.
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(side.next_time());
        let backup = match side.store.backup(&group).time(time).begin().await {
            Err(error) if error.kind() == ErrorKind::Busy => continue,
            backup => backup.unwrap(),
        };
        let image = backup.image("d.img", Cursor::new(&data), data.len() as u64).chunk_bytes(BLOCK as u64);
        let done = match &base {
            Some(base) => image.base(base).await,
            None => image.await,
        };
        match done {
            // The base was pruned, or a prune is looking at it.
            Err(error) if base.is_some() && matches!(error.kind(), ErrorKind::Busy | ErrorKind::NotFound) => {
                backup.abort().await.unwrap();
            }
            done => {
                done.unwrap();
                // Known before it is visible: a prune takes it out again.
                let name = backup.name().clone();
                side.acknowledged.lock().unwrap().insert(name, blocks);
                backup.finish().await.unwrap();
                side.count(0, 1);
            }
        }
    }
}

async fn restored(snapshot: &SnapshotReader) -> larder::error::Result<Vec<u8>> {
    let mut target = WriterTarget::new(Cursor::new(Vec::new()));
    snapshot.archive("d.img.fidx").await?.copy_to(&mut target).await?;
    Ok(target.into_inner().into_inner())
}

async fn restores(side: Arc<Side>) {
    let mut dice = Dice(100 << 32);
    while side.goes_on().await {
        let names: Vec<_> = {
            let acknowledged = side.acknowledged.lock().unwrap();
            acknowledged.iter().map(|(name, blocks)| (name.clone(), blocks.clone())).collect()
        };
        let drawn = usize::try_from(dice.below(names.len().max(1) as u64)).unwrap();
        let Some((name, blocks)) = names.get(drawn).cloned() else {
            // No snapshot exists yet.
            side.runtime.sleep(Duration::from_millis(1)).await;
            continue;
        };
        // While it is open, it cannot be deleted.
        match side.store.snapshot(&name).await {
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::NotFound) => {}
            snapshot => {
                assert!(restored(&snapshot.unwrap()).await.unwrap() == bytes_of(&blocks), "{name}");
                side.count(1, 1);
            }
        }
    }
}

async fn verifications(side: Arc<Side>) {
    while side.goes_on().await {
        let mut plan = verify::plan(&side.store, &Scope::Store, VerifyOptions::default()).await.unwrap();
        let report = plan.execute().await.unwrap();
        assert!(report.damaged.is_empty() && report.incomplete.is_none(), "{report:?}");
        side.count(2, 1);
    }
}

async fn prunings(side: Arc<Side>) {
    while side.goes_on().await {
        let options = PruneOptions::default().rules(RetentionRules::default().keep_last(3));
        let mut plan = prune::plan(&side.store, &Scope::Tree(Namespace::root()), options).await.unwrap();
        let report = plan.execute().await.unwrap();
        assert!(report.stopped.is_none());
        for snapshot in report.groups.into_iter().flat_map(|group| group.snapshots) {
            match snapshot.outcome {
                PruneOutcome::Removed => {
                    side.acknowledged.lock().unwrap().remove(&snapshot.name);
                    side.count(3, 1);
                }
                PruneOutcome::Failed(error) => panic!("{}: {error}", snapshot.name),
                _ => {}
            }
        }
    }
}

async fn collections(side: Arc<Side>) {
    while side.goes_on().await {
        side.count(4, collect(&side.collector).await);
    }
}

/// Collects garbage; how many chunks were removed.
async fn collect(store: &Datastore) -> u64 {
    let options = GcOptions::default().grace(Duration::ZERO).consistent_listings();
    let options = options.max_garbage(100).max_unused(0);
    let plan = match gc::plan(store, options).await {
        // Another operation is proving that no writer is active.
        Err(error) if error.kind() == ErrorKind::Busy => return 0,
        plan => plan.unwrap(),
    };
    assert_eq!(plan.summary().missing, 0, "{:?}", plan.summary().damaged);
    let report = plan.confirm().execute().await.unwrap();
    assert!(matches!(report.end, GcEnd::Complete) && report.failed == 0, "{report:?}");
    report.removed.chunks
}
