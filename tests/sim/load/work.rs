//! What a process under load does.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::future::Future;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::channel::oneshot;
use futures::future::BoxFuture;
use futures::io::Cursor;
use larder::error::{Error, ErrorKind, Result};
use larder::format::name::{GroupName, Namespace, SnapshotName};
use larder::gc::{self, GcEnd, GcOptions};
use larder::prune::{self, PruneOptions, PruneOutcome};
use larder::retention::RetentionRules;
use larder::rt::Runtime;
use larder::store::{Datastore, Scope, WriterTarget};
use larder::verify::{self, VerifyOptions};
use larder_testing::noise;

const BACKUPS: u64 = 32;
const RESTORES: u64 = 8;
/// Counted in every run.
const EACH: [&str; 4] = ["backups", "restores", "verifications", "collections"];
/// Backups pause while a verification, a pruning or a collection takes longer: each processes everything that 32 loops wrote meanwhile.
const MAINTENANCE: Duration = Duration::from_secs(20);

/// Bytes of a chunk, and chunks of a backup.
const BLOCK: usize = 64 << 10;
const BLOCKS: usize = 16;
/// Number of different contents that backups share.
const SHARED: u64 = 128;

/// What a loop does, and since when.
type Doing = BTreeMap<String, (&'static str, Duration)>;

/// State shared by the loops.
pub(super) struct Load {
    /// Acknowledged snapshots with their blocks.
    acknowledged: Mutex<BTreeMap<SnapshotName, Vec<u64>>>,
    collector: Datastore,
    counts: Mutex<BTreeMap<&'static str, u64>>,
    doing: Mutex<Doing>,
    /// Snapshots of which a request without an answer may have stored or removed the last part.
    in_doubt: Mutex<BTreeSet<SnapshotName>>,
    /// Failures for a while are expected.
    is_bucket: bool,
    last_time: AtomicU64,
    runtime: Arc<dyn Runtime>,
    shared: Vec<Vec<u8>>,
    stop: AtomicBool,
    store: Datastore,
    times: Mutex<Vec<Duration>>,
}

/// Numbers that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }
}

impl Load {
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        store: Datastore,
        collector: Datastore,
        is_bucket: bool,
    ) -> Self {
        Self {
            acknowledged: Mutex::default(),
            collector,
            counts: Mutex::default(),
            doing: Mutex::default(),
            in_doubt: Mutex::default(),
            is_bucket,
            last_time: AtomicU64::new(1_735_689_600),
            runtime,
            shared: (0..SHARED).map(|number| noise(number + 1, BLOCK)).collect(),
            stop: AtomicBool::new(false),
            store,
            times: Mutex::default(),
        }
    }

    /// What the loops do.
    pub(super) fn doing(&self) -> Doing {
        self.doing.lock().unwrap().clone()
    }

    /// The longest time for which a loop has done the same.
    pub(super) fn stuck_for(&self) -> Duration {
        let now = self.runtime.monotonic();
        let doing = self.doing.lock().unwrap();
        doing.values().map(|(_, since)| now.saturating_sub(*since)).max().unwrap_or_default()
    }

    /// Waits until no maintenance takes long.
    async fn pace(&self, who: &str) {
        self.now(who, "wait for maintenance");
        let is_slow = || {
            let now = self.runtime.monotonic();
            let doing = self.doing.lock().unwrap();
            ["verification", "pruning", "collection"]
                .iter()
                .any(|who| doing.get(*who).is_some_and(|(_, since)| now.saturating_sub(*since) > MAINTENANCE))
        };
        while self.goes_on() && is_slow() {
            self.runtime.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Runs all loops for this time.
    pub(super) async fn run(self: &Arc<Self>, time: Duration) {
        let mut loops: Vec<(String, BoxFuture<'static, ()>)> = vec![
            ("verification".to_owned(), Box::pin(verifications(Arc::clone(self)))),
            ("pruning".to_owned(), Box::pin(prunings(Arc::clone(self)))),
            ("collection".to_owned(), Box::pin(collections(Arc::clone(self)))),
        ];
        for number in 0..BACKUPS {
            let name = format!("backup {number}");
            loops.push((name.clone(), Box::pin(backups(Arc::clone(self), name, number))));
        }
        for number in 0..RESTORES {
            let name = format!("restore {number}");
            loops.push((name.clone(), Box::pin(restores(Arc::clone(self), name, number))));
        }
        let mut ends = Vec::new();
        for (name, work) in loops {
            let (done, end) = oneshot::channel();
            let load = Arc::clone(self);
            self.runtime.spawn(Box::pin(async move {
                work.await;
                load.doing.lock().unwrap().remove(&name);
                let _ = done.send(());
            }));
            ends.push(end);
        }
        self.runtime.sleep(time).await;
        // A slow machine takes longer until each of them has done something.
        let patience = self.runtime.monotonic() + Duration::from_mins(5);
        while !self.has_all() && self.runtime.monotonic() < patience {
            self.runtime.sleep(Duration::from_millis(50)).await;
        }
        self.stop.store(true, Ordering::Relaxed);
        for end in ends {
            end.await.expect("a loop panicked");
        }
    }

    /// Makes sure that everything acknowledged and not pruned is whole, that nothing else is listed, and that no garbage stays.
    pub(super) async fn check(&self) {
        self.now("end", "collect");
        let mut rounds = 0;
        // The first one sees the garbage.
        while self.collect("end").await != Some(0) || rounds == 0 {
            rounds += 1;
            assert!(rounds < 10, "there is always garbage");
        }
        self.now("end", "restore");
        let acknowledged = self.acknowledged.lock().unwrap().clone();
        for (name, blocks) in &acknowledged {
            let restored = self.patiently(|| self.restored(name)).await;
            assert!(restored == self.bytes_of(blocks), "{name}");
            self.now("end", "restore");
        }
        self.now("end", "list");
        let in_doubt = self.in_doubt.lock().unwrap().clone();
        for group in self.patiently(async || self.store.groups(&Namespace::root()).await).await {
            for snapshot in self.patiently(|| self.store.snapshots(&group)).await {
                let name = &snapshot.name;
                assert!(acknowledged.contains_key(name) || in_doubt.contains(name), "{name}");
            }
        }
        self.now("end", "verify");
        let report = self
            .patiently(async || {
                verify::plan(&self.store, &Scope::Store, VerifyOptions::default()).await?.execute().await
            })
            .await;
        assert!(report.is_clean(), "{report:?}");
        self.doing.lock().unwrap().clear();
        let counts = self.counts.lock().unwrap();
        // In a short run, each prune may find its snapshots in use.
        let is_short = counts.get("backups").is_none_or(|backups| *backups < 300);
        for what in EACH.into_iter().chain(["pruned"]) {
            assert!(is_short && what == "pruned" || counts.contains_key(what), "no {what}: {counts:?}");
        }
    }

    fn has_all(&self) -> bool {
        let counts = self.counts.lock().unwrap();
        EACH.iter().all(|what| counts.contains_key(what))
    }

    /// One line of totals.
    pub(super) fn report(&self) -> String {
        let mut line = String::new();
        for (what, count) in &*self.counts.lock().unwrap() {
            let _ = write!(line, "{count} {what}, ");
        }
        let mut times = self.times.lock().unwrap().clone();
        times.sort_unstable();
        let at =
            |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or_default().as_millis();
        let _ = write!(line, "a backup took {} ms (median), {} ms (99 of 100)", at(50), at(99));
        line
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }

    fn now(&self, who: &str, what: &'static str) {
        self.doing.lock().unwrap().insert(who.to_owned(), (what, self.runtime.monotonic()));
    }

    fn count(&self, what: &'static str, count: u64) {
        *self.counts.lock().unwrap().entry(what).or_default() += count;
    }

    /// Counts a failure of a bucket that may pass, and panics for others.
    fn failed(&self, error: &Error) {
        // Busy: a request without an answer may still be executed.
        let may_pass = matches!(error.kind(), ErrorKind::Busy | ErrorKind::Unavailable);
        assert!(self.is_bucket && may_pass, "{error:?}");
        self.count("failures for a while", 1);
    }

    /// Repeats what fails for a while.
    async fn patiently<T, F: Future<Output = Result<T>>>(&self, attempt: impl Fn() -> F) -> T {
        for _ in 0..5 {
            match attempt().await {
                Err(error) => self.failed(&error),
                Ok(done) => return done,
            }
        }
        panic!("it fails again and again");
    }

    /// The bytes of blocks. The lower half of a number says which shared content a block has, the upper half makes it a block of its own.
    fn bytes_of(&self, blocks: &[u64]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(blocks.len() * BLOCK);
        for block in blocks {
            let start = bytes.len();
            bytes.extend_from_slice(&self.shared[usize::try_from(block & 0xffff_ffff).unwrap()]);
            if block >> 32 > 0 {
                bytes[start..start + 8].copy_from_slice(&block.to_le_bytes());
            }
        }
        bytes
    }

    async fn restored(&self, name: &SnapshotName) -> Result<Vec<u8>> {
        let snapshot = self.store.snapshot(name).await?;
        let mut target = WriterTarget::new(Cursor::new(Vec::with_capacity(BLOCKS * BLOCK)));
        snapshot.archive("d.img.fidx").await?.copy_to(&mut target).await?;
        Ok(target.into_inner().into_inner())
    }

    /// Collects garbage. Returns the number of removed chunks and packs; `None` if the round did not end.
    async fn collect(&self, who: &str) -> Option<u64> {
        self.now(who, "plan a collection");
        let options = GcOptions::default().grace(Duration::ZERO).consistent_listings();
        let plan = match gc::plan(&self.collector, options.max_garbage(100).max_unused(10)).await {
            // Another operation is proving that no writer is active.
            Err(error) if error.kind() == ErrorKind::Busy => return None,
            Err(error) => {
                self.failed(&error);
                return None;
            }
            Ok(plan) => plan,
        };
        assert_eq!(plan.summary().missing, 0, "{:?}", plan.summary().damaged);
        self.now(who, "collect");
        match plan.confirm().execute().await {
            Err(error) => {
                self.failed(&error);
                None
            }
            Ok(report) => {
                let is_whole = matches!(report.end, GcEnd::Complete) && report.failed == 0;
                assert!(is_whole || self.is_bucket, "{report:?}");
                self.count("collections", 1);
                self.count("collected chunks", report.removed.chunks);
                Some(report.removed.chunks)
            }
        }
    }
}

async fn backups(load: Arc<Load>, who: String, number: u64) {
    let group: GroupName = format!("host/{number}").parse().unwrap();
    let mut dice = Dice(number);
    let mut blocks: Vec<u64> = (0..BLOCKS).map(|_| dice.below(SHARED)).collect();
    while load.goes_on() {
        for block in &mut blocks {
            match dice.below(8) {
                0 => *block = dice.below(SHARED),
                1 => *block = dice.below(SHARED) | (dice.below(1 << 31) + 1) << 32,
                _ => {}
            }
        }
        load.pace(&who).await;
        let begun = load.runtime.monotonic();
        if let Err(error) = backup(&load, &who, &group, &blocks, &mut dice).await {
            load.failed(&error);
            continue;
        }
        load.times.lock().unwrap().push(load.runtime.monotonic().saturating_sub(begun));
    }
}

async fn backup(load: &Load, who: &str, group: &GroupName, blocks: &[u64], dice: &mut Dice) -> Result<()> {
    let data = load.bytes_of(blocks);
    load.now(who, "look for a base");
    let base = match load.store.latest(group).await? {
        Some(newest) if dice.below(2) == 0 => load.store.snapshot(&newest).await.ok(),
        _ => None,
    };
    let time = Duration::from_secs(load.last_time.fetch_add(1, Ordering::Relaxed));
    load.now(who, "begin");
    let backup = load.store.backup(group).time(SystemTime::UNIX_EPOCH + time).begin().await?;
    load.now(who, "write");
    let image = backup.image("d.img", Cursor::new(&data), data.len() as u64).chunk_bytes(BLOCK as u64);
    let done = match &base {
        Some(base) => image.base(base).await,
        None => image.await,
    };
    if done.is_err() || dice.below(16) == 0 {
        load.now(who, "abort");
        let aborted = backup.abort().await;
        load.count("aborted backups", 1);
        return match done {
            // The base was pruned, or a prune looks at it.
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::NotFound) => aborted,
            done => done.map(drop).and(aborted),
        };
    }
    // Known before it is visible: a prune takes it out again.
    let name = backup.name().clone();
    load.acknowledged.lock().unwrap().insert(name.clone(), blocks.to_vec());
    load.now(who, "finish");
    let finished = backup.finish().await;
    if finished.is_err() {
        load.in_doubt.lock().unwrap().insert(name.clone());
        load.acknowledged.lock().unwrap().remove(&name);
    }
    finished?;
    load.count("backups", 1);
    load.count("MiB written", (data.len() >> 20) as u64);
    Ok(())
}

async fn restores(load: Arc<Load>, who: String, number: u64) {
    let mut dice = Dice(1000 + number);
    while load.goes_on() {
        let drawn = {
            let acknowledged = load.acknowledged.lock().unwrap();
            let at = usize::try_from(dice.below(acknowledged.len().max(1) as u64)).unwrap();
            acknowledged.iter().nth(at).map(|(name, blocks)| (name.clone(), blocks.clone()))
        };
        let Some((name, blocks)) = drawn else {
            // No snapshot exists yet.
            load.runtime.sleep(Duration::from_millis(5)).await;
            continue;
        };
        load.now(&who, "restore");
        match load.restored(&name).await {
            // It is not visible yet, or was pruned.
            Err(error) if matches!(error.kind(), ErrorKind::Busy | ErrorKind::NotFound) => {}
            Err(error) => load.failed(&error),
            Ok(restored) => {
                assert!(restored == load.bytes_of(&blocks), "{name}");
                load.count("restores", 1);
            }
        }
    }
}

async fn verifications(load: Arc<Load>) {
    while load.goes_on() {
        load.now("verification", "verify");
        let verify = async || {
            verify::plan(&load.store, &Scope::Store, VerifyOptions::default()).await?.execute().await
        };
        match verify().await {
            Err(error) => load.failed(&error),
            Ok(report) => {
                assert!(report.damaged.is_empty(), "{report:?}");
                assert!(report.incomplete.is_none() || load.is_bucket, "{report:?}");
                load.count("verifications", 1);
            }
        }
        load.runtime.sleep(Duration::from_millis(100)).await;
    }
}

async fn prunings(load: Arc<Load>) {
    for round in 0.. {
        if !load.goes_on() {
            break;
        }
        load.now("pruning", "prune");
        let prune = async || {
            let options = PruneOptions::default().rules(RetentionRules::default().keep_last(1 + round % 3));
            prune::plan(&load.store, &Scope::Tree(Namespace::root()), options).await?.execute().await
        };
        match prune().await {
            Err(error) => load.failed(&error),
            Ok(report) => {
                for snapshot in report.groups.into_iter().flat_map(|group| group.snapshots) {
                    match snapshot.outcome {
                        PruneOutcome::Removed => {
                            load.acknowledged.lock().unwrap().remove(&snapshot.name);
                            load.count("pruned", 1);
                        }
                        PruneOutcome::Failed(error) => {
                            load.failed(&error);
                            load.acknowledged.lock().unwrap().remove(&snapshot.name);
                            load.in_doubt.lock().unwrap().insert(snapshot.name);
                        }
                        _ => {}
                    }
                }
            }
        }
        load.runtime.sleep(Duration::from_millis(50)).await;
    }
}

async fn collections(load: Arc<Load>) {
    while load.goes_on() {
        load.collect("collection").await;
        load.runtime.sleep(Duration::from_millis(50)).await;
    }
}
