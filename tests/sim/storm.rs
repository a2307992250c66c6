//! A storm on a bucket, in virtual time: several hosts back up, collect, delete, copy and refresh in one store, one after the other and at
//! the same time, and are killed; now and then a program without a lease has a turn; requests get no answer or arrive late; listings
//! lag; clocks differ. Whatever happens, no finished snapshot lacks a chunk, everything acknowledged exists, and every call ends.
//!
//! `LARDER_SEED=n` replays one storm, `LARDER_SEEDS=n` tries n of them from `LARDER_FIRST_SEED` on, of `LARDER_STORM_ROUNDS=n` rounds each.
//!
//! The rules are those of the manual, by the clock of the server: listings lag for at most a quarter of an hour, a request that was given
//! up arrives within 25 minutes, and the grace time is an hour, which is as long as a collection allows listings to lag.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::channel::oneshot;
use futures::future::{self, Either};
use futures::io::Cursor;
use larder::backend::Ownership;
use larder::error::{ErrorKind, Result};
use larder::format::name::{Namespace, SnapshotName};
use larder::gc::{self, GcOptions};
use larder::internal::sim_bucket::{SimBucket, Weather, Wire};
use larder::local::{LocalOptions, LocalState};
use larder::rt::{Runtime, SimRuntime};
use larder::store::{Datastore, Options, SnapshotState};
use larder_testing::gc_scene::{CHUNK, OnFailure, check, data, group};
use larder_testing::life::{self, Life};

const GRACE: Duration = Duration::from_hours(1);
const GROUPS: [&str; 3] = ["host/keep", "host/a", "vm/7"];
/// Longer than requests of a dead process are waited for, and than every call is repeated.
const LONGEST_CALL: Duration = Duration::from_mins(90);
const WEATHER: Weather = Weather { faults: 30, lag: Duration::from_mins(15), late: Duration::from_mins(25) };

struct Storm {
    acknowledged: Mutex<BTreeSet<SnapshotName>>,
    bucket: Arc<SimBucket>,
    counts: Mutex<BTreeMap<String, u64>>,
    directory: tempfile::TempDir,
    made: AtomicU64,
    seed: u64,
    sim: SimRuntime,
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap())
}

impl Storm {
    fn draw(&self, end: u64) -> u64 {
        self.bucket.draw(end)
    }

    fn count(&self, what: impl Into<String>) {
        *self.counts.lock().unwrap().entry(what.into()).or_default() += 1;
    }

    /// A process on a host, with local state if it has a number.
    fn process(&self, host: Option<u64>) -> (Arc<Life>, Arc<Wire>) {
        let made = self.made.fetch_add(1, Ordering::Relaxed);
        let uuid = match host {
            Some(host) => format!("{:016x}{host:016x}", self.seed),
            None => format!("{:016x}{:016x}", self.seed, 1000 + made),
        };
        let is_ahead = host.is_some_and(|host| host % 2 == 1);
        let skew = Duration::from_mins(7) * u32::try_from(host.unwrap_or(0)).unwrap();
        let life = Life::with_skew(&self.sim, is_ahead, skew);
        (Arc::new(life), Arc::new(Wire { bucket: Arc::clone(&self.bucket), uuid }))
    }

    async fn open(&self, life: &Arc<Life>, wire: Arc<Wire>, host: Option<u64>) -> Result<Datastore> {
        let runtime: Arc<dyn Runtime> = Arc::<Life>::clone(life);
        let (mut options, mut ownership) = (Options::default(), Ownership::default());
        if let Some(host) = host {
            let directory = self.directory.path().join(host.to_string());
            let state = LocalState::open(&runtime, directory, LocalOptions::default().cache_bytes(0)).await?;
            ownership = ownership.instance(state.instance());
            options = options.local_state(state);
        }
        let backend = Arc::new(life::backend(runtime, wire)?.ownership(ownership));
        if self.made.load(Ordering::Relaxed) == 1 {
            return Datastore::create(backend, options).await;
        }
        Datastore::open(backend, options).await
    }

    async fn back_up(&self, store: &Datastore) -> Result<()> {
        let name = GROUPS[usize::try_from(self.draw(3)).unwrap()];
        let base = match store.latest(&group(name)).await? {
            Some(base) if self.draw(3) == 0 => Some(store.snapshot(&base).await?),
            _ => None,
        };
        let made = self.made.fetch_add(1, Ordering::Relaxed);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + made);
        let numbers: Vec<_> = (0..=self.draw(4)).map(|_| self.draw(12)).collect();
        let backup = store.backup(&group(name)).time(time).begin().await?;
        backup.set_notes(serde_json::to_string(&numbers).unwrap());
        let bytes = data(&numbers);
        let image = backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64).chunk_bytes(CHUNK as u64);
        match &base {
            Some(base) => drop(image.base(base).await?),
            None => drop(image.await?),
        }
        let snapshot = backup.finish().await?.snapshot;
        if name == GROUPS[0] {
            self.acknowledged.lock().unwrap().insert(snapshot.name().clone());
        }
        Ok(())
    }

    /// The operations of one process.
    async fn act(&self, store: &Datastore, what: &str) -> Result<()> {
        let some_group = group(GROUPS[1 + usize::try_from(self.draw(2)).unwrap()]);
        match what {
            "backup" => self.back_up(store).await,
            "backups" => {
                self.back_up(store).await?;
                self.back_up(store).await
            }
            "collect" => {
                let options = GcOptions::default().grace(GRACE).max_garbage(100).concurrency(2);
                gc::plan(store, options).await?.confirm().execute().await.map(|report| {
                    self.count(format!("removed {}", report.removed.chunks.min(1)));
                })
            }
            "forget" => match store.snapshots(&some_group).await?.first() {
                Some(oldest) => store.delete_snapshot(&oldest.name).await,
                None => Ok(()),
            },
            "drop" => store.delete_group(&some_group).await.map(drop),
            "copy" => {
                let to: Namespace = format!("n{}", self.draw(3)).parse().unwrap();
                match store.create_namespace(&to).await {
                    Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                    created => created?,
                }
                if self.draw(2) == 0 {
                    store.copy_group(&some_group, &to).await.map(drop)
                } else {
                    store.move_group(&some_group, &to).await.map(drop)
                }
            }
            _ => {
                store.refresh().await?;
                self.back_up(store).await
            }
        }
    }

    /// Starts a process on a host, which is killed after a while if it did not end before.
    async fn run(self: Arc<Self>, host: Option<u64>, what: &'static str, dies_after: Option<Duration>) {
        let begun = self.sim.monotonic();
        let (life, wire) = self.process(host);
        let (sender, receiver) = oneshot::channel();
        let (storm, own) = (Arc::clone(&self), Arc::clone(&life));
        life.spawn(Box::pin(async move {
            let done = async {
                let store = storm.open(&own, wire, host).await?;
                let done = storm.act(&store, what).await;
                if storm.draw(3) > 0 {
                    store.close().await?;
                }
                done
            };
            drop(sender.send(done.await));
        }));
        let time = self.sim.sleep(dies_after.unwrap_or(LONGEST_CALL));
        match future::select(receiver, Box::pin(time)).await {
            Either::Left((Ok(Ok(())), _)) => self.count(format!("{what}: well")),
            Either::Left((Ok(Err(error)), _)) => {
                self.count(format!("{what}: {:?}", error.kind()));
                // A listing that lags shows a base that is gone.
                let may_be_gone = matches!(what, "backup" | "backups" | "refresh");
                let is_odd = match error.kind() {
                    ErrorKind::Corrupt => !may_be_gone,
                    kind => kind == ErrorKind::Internal,
                };
                assert!(!is_odd, "{what} on {host:?}: {error:?}");
            }
            Either::Left((Err(_), _)) => panic!("{what} on {host:?} ended without an answer"),
            Either::Right(_) => {
                assert!(dies_after.is_some(), "{what} on {host:?} goes on since {begun:?}");
                self.count(format!("{what}: killed"));
            }
        }
        life.kill();
    }

    /// Reads everything when nothing goes wrong and nothing is on its way any more.
    async fn check_everything(&self) {
        self.bucket.set_weather(Weather { faults: 0, lag: Duration::ZERO, late: Duration::ZERO });
        self.sim.sleep(Duration::from_mins(40)).await;
        let (life, wire) = self.process(None);
        let store = self.open(&life, wire, None).await.unwrap();
        let mut there = BTreeSet::new();
        for namespace in store.namespaces(&Namespace::root()).await.unwrap() {
            for group in store.groups(&namespace).await.unwrap() {
                for info in store.snapshots(&group).await.unwrap() {
                    if info.state == SnapshotState::Finished {
                        let snapshot = store.snapshot(&info.name).await.unwrap();
                        let whole = check(&snapshot).await;
                        assert!(whole.is_ok(), "{} is lost: {whole:?}", info.name);
                        there.insert(info.name);
                        self.count("whole");
                    }
                }
            }
        }
        let lost: Vec<_> = self.acknowledged.lock().unwrap().difference(&there).cloned().collect();
        assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
        store.close().await.unwrap();
        life.kill();
    }

    /// A program that takes no lease has its turn: it removes snapshots, and the chunks that no other one names. It begins and ends when
    /// nothing is on its way and listings show everything.
    async fn foreign_turn(&self) {
        self.sim.sleep(WEATHER.late + WEATHER.lag).await;
        let groups = [GROUPS[1], GROUPS[2]].map(|name| format!("store/.cnt/{name}/"));
        let gone = self.bucket.forget_and_collect(&groups[usize::try_from(self.draw(2)).unwrap()], GRACE);
        self.count(format!("foreign turn: {}", gone.min(1)));
        self.sim.sleep(WEATHER.lag).await;
    }

    async fn round(self: &Arc<Self>) {
        const DOES: [&str; 14] = [
            "backup", "backup", "backup", "backups", "backups", "collect", "collect", "collect", "collect",
            "forget", "forget", "drop", "copy", "refresh",
        ];
        self.bucket.set_weather(Weather {
            faults: [0, 5, WEATHER.faults][usize::try_from(self.draw(3)).unwrap()],
            ..WEATHER
        });
        let mut hosts = vec![Some(0), Some(1), Some(2), None];
        let mut running = Vec::new();
        for _ in 0..=self.draw(2) {
            let host = hosts.swap_remove(usize::try_from(self.draw(hosts.len() as u64)).unwrap());
            let mut what = DOES[usize::try_from(self.draw(DOES.len() as u64)).unwrap()];
            if host.is_none() && what == "refresh" {
                what = "backup";
            }
            let dies = self.draw(4) == 0;
            let dies_after = dies.then(|| Duration::from_millis(self.draw(4000)));
            running.push(Arc::clone(self).run(host, what, dies_after));
        }
        future::join_all(running).await;
        let pause = match self.draw(6) {
            0 => Duration::ZERO,
            1 | 2 => Duration::from_secs(self.draw(90)),
            3 => Duration::from_mins(self.draw(31)),
            4 => Duration::from_mins(31 + self.draw(10)),
            _ => GRACE + Duration::from_mins(self.draw(10)),
        };
        self.sim.sleep(pause).await;
        if self.draw(8) == 0 {
            self.foreign_turn().await;
        }
    }
}

fn storm(seed: u64, rounds: u64) -> BTreeMap<String, u64> {
    let _on_failure = OnFailure(format!("LARDER_SEED={seed} LARDER_STORM_ROUNDS={rounds}"));
    let sim = SimRuntime::new(seed);
    let storm = Arc::new(Storm {
        acknowledged: Mutex::default(),
        bucket: SimBucket::new(&sim),
        counts: Mutex::default(),
        directory: larder_testing::scratch(),
        made: AtomicU64::new(0),
        seed,
        sim: sim.clone(),
    });
    sim.block_on(async {
        let (life, wire) = storm.process(None);
        storm.open(&life, wire, None).await.unwrap().close().await.unwrap();
        life.kill();
        for round in 0..rounds {
            storm.round().await;
            if round % 8 == 7 {
                storm.check_everything().await;
            }
        }
        storm.check_everything().await;
    });
    storm.counts.lock().unwrap().clone()
}

/// Proves H157.
#[test]
fn no_storm_of_operations_removes_a_needed_chunk_and_every_call_ends() {
    let rounds = number("LARDER_STORM_ROUNDS").unwrap_or(40);
    let (first, seeds) = match number("LARDER_SEED") {
        Some(seed) => (seed, 1),
        None => (number("LARDER_FIRST_SEED").unwrap_or(0), number("LARDER_SEEDS").unwrap_or(6)),
    };
    let mut counts = BTreeMap::<String, u64>::new();
    for seed in first..first + seeds {
        for (what, count) in storm(seed, rounds) {
            *counts.entry(what).or_default() += count;
        }
    }
    eprintln!("{counts:#?}");
    if number("LARDER_SEED").is_none() {
        for what in ["backup: well", "collect: well", "foreign turn: 1", "removed 1", "whole"] {
            assert!(counts.contains_key(what), "no {what}: {counts:#?}");
        }
    }
}
