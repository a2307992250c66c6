//! Packed stores whose requests fail, one at a time: nothing acknowledged is lost, the next backup succeeds, and garbage vanishes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use larder::backend::{Backend, ListEntry, ListQuery, MemoryBackend, PutMode};
use larder::error::{ErrorKind, Result};
use larder::format::layout::{Key, Prefix};
use larder::format::name::Namespace;
use larder::gc::{self, GcEnd, GcOptions};
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::listing::list_all;
use larder::internal::packs::packed;
use larder::internal::record::Method;
use larder::rt::{Runtime as _, SimRuntime};
use larder::store::{Datastore, Options, PackOptions};
use larder_testing::gc_scene::{
    OnFailure, at_each_step, at_once, back_up, check, check_all, chunks, collected, digests, group,
    opened_as_new,
};
use larder_testing::watched::Watched;

/// Time after which nothing is executed late any more.
const LATE: Duration = Duration::from_mins(2);

/// Whether all requests have the fault, or changes only, and whether the store is in a bucket.
const FAULTS: [(Action, bool, bool); 6] = [
    (Action::FailBefore(ErrorKind::Unavailable), true, false),
    (Action::FailBefore(ErrorKind::Unavailable), true, true),
    (Action::FailAfter(ErrorKind::Unavailable), false, false),
    (Action::FailAfter(ErrorKind::Unavailable), false, true),
    (Action::Cut, false, false),
    (Action::Late(Duration::from_secs(40), ErrorKind::Unavailable), false, true),
];

fn rule(action: Action, all: bool) -> Rule {
    if all { Rule::on_any(action) } else { Rule::on(Method::Put, action).or(Method::Copy).or(Method::Delete) }
}

/// Removes everything unreferenced, and rewrites each pack with something unused in it.
fn thorough() -> GcOptions {
    at_once().max_unused(0)
}

async fn collect(store: &Datastore) -> Result<()> {
    match gc::plan(store, thorough()).await?.confirm().execute().await?.end {
        GcEnd::Stopped(error) => Err(error),
        _ => Ok(()),
    }
}

/// Backups, a deletion and collections. Returns the groups whose backups were acknowledged, and were not deleted.
async fn work(store: &Datastore) -> BTreeSet<&'static str> {
    let mut acknowledged = BTreeSet::new();
    let backups: [(&str, &[u64]); 3] =
        [("host/a", &[1, 2, 3, 4]), ("host/b", &[3, 4, 5, 6]), ("host/c", &[6, 7, 8])];
    for (group, numbers) in backups {
        acknowledged.extend(back_up(store, group, numbers).await.is_ok().then_some(group));
    }
    // It may be gone even if that fails.
    acknowledged.remove("host/a");
    let _ = store.delete_group(&group("host/a")).await;
    // Packs of the first backup have something unused now.
    let _ = collect(store).await;
    acknowledged.extend(back_up(store, "host/d", &[2, 3, 8, 9]).await.is_ok().then_some("host/d"));
    let _ = collect(store).await;
    acknowledged
}

/// Makes sure that these groups have snapshots, and that all snapshots are whole.
async fn check_groups(store: &Datastore, groups: &BTreeSet<&str>) {
    check_all(store).await;
    for name in groups {
        let found = store.latest(&group(name)).await.unwrap();
        assert!(found.is_some(), "{name} is lost");
    }
}

/// A store in memory, requests to which may fail.
struct Scene {
    faults: Arc<FaultBackend>,
    is_bucket: bool,
    raw: Arc<dyn Backend>,
    store: Datastore,
}

async fn scene(sim: &SimRuntime, is_bucket: bool) -> Scene {
    let raw: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
    let faults = Arc::new(FaultBackend::new(Arc::clone(&raw)));
    let backend = Watched::of_kind(Arc::<FaultBackend>::clone(&faults), is_bucket) as Arc<dyn Backend>;
    let options = Options::default().packed(PackOptions::default());
    let store = Datastore::create(Arc::clone(&backend), options).await.unwrap();
    let store = opened_as_new(&backend, store).await;
    Scene { faults, is_bucket, raw, store }
}

impl Scene {
    /// As another process finds the store: everything acknowledged is there, the next backup succeeds, and garbage vanishes.
    async fn goes_on(self, acknowledged: &BTreeSet<&str>) {
        let Self { is_bucket, raw, store, .. } = self;
        let backend = Watched::of_kind(Arc::clone(&raw), is_bucket) as Arc<dyn Backend>;
        let store = opened_as_new(&backend, store).await;
        check_groups(&store, acknowledged).await;
        let next = back_up(&store, "host/f", &[1, 5, 9]).await.unwrap();
        check(&next).await.unwrap();
        drop(next);
        for group in store.groups(&Namespace::root()).await.unwrap() {
            if group.to_string() != "host/f" {
                store.delete_group(&group).await.unwrap();
            }
        }
        for _ in 0..2 {
            collected(&store, thorough()).await;
            assert_eq!(check_all(&store).await, 1);
        }
        assert_eq!(chunks(packed(Arc::clone(&raw)).await.as_ref()).await, digests([1, 5, 9]));
        let packs = list_all(raw.as_ref(), &ListQuery::all(Prefix::Packs)).await.unwrap().into_entries();
        assert!(packs.len() <= 3, "{packs:?} for 3 chunks");
    }
}

/// Works while the selected request fails. Returns `true` if there is such a request.
async fn fails(sim: &SimRuntime, rule: Rule, is_bucket: bool) -> bool {
    let scene = scene(sim, is_bucket).await;
    scene.faults.add(rule);
    let acknowledged = work(&scene.store).await;
    assert!(acknowledged.len() >= 2, "after one that failed, another backup succeeds");
    scene.faults.clear();
    let has_failed = scene.faults.fired() > 0;
    // The same handle goes on.
    back_up(&scene.store, "host/e", &[1, 5, 9]).await.unwrap();
    sim.sleep(LATE).await;
    check_groups(&scene.store, &acknowledged).await;
    scene.goes_on(&acknowledged).await;
    has_failed
}

/// Works until the process dies at this step. Returns `true` if it gets that far.
async fn dies_at(sim: &SimRuntime, step: u64, is_bucket: bool) -> bool {
    let scene = scene(sim, is_bucket).await;
    scene.faults.crash_at(scene.faults.steps() + step);
    let acknowledged = work(&scene.store).await;
    let has_died = scene.faults.has_crashed();
    sim.sleep(LATE).await;
    scene.goes_on(&acknowledged).await;
    has_died
}

#[test]
fn whichever_request_fails_nothing_acknowledged_is_lost_and_the_next_backup_succeeds() {
    for (action, all, is_bucket) in FAULTS {
        let mut at = 1;
        loop {
            let _on_failure = OnFailure(format!("{action:?} of request {at}, bucket {is_bucket}"));
            let sim = SimRuntime::new(at);
            if !sim.block_on(fails(&sim, rule(action, all).nth(at), is_bucket)) {
                break;
            }
            at += 1;
        }
        assert!(at > 30, "{at} requests");
    }
}

#[test]
fn after_a_crash_at_any_step_only_whole_snapshots_are_listed_and_garbage_vanishes() {
    at_each_step(30, &dies_at);
}

/// A process restores two snapshots whose chunks are damaged, each in a pack of its own. Another process has stored good copies since. The
/// first reader learns of both of them while the second one still reads the damaged pack.
#[test]
fn a_reader_finds_a_good_copy_of_which_another_reader_learned_meanwhile() {
    let sim = SimRuntime::new(1);
    sim.block_on(async {
        let raw: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(sim.clone())));
        let faults = Arc::new(FaultBackend::new(Arc::clone(&raw)));
        let backend: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faults);
        let options = Options::default().packed(PackOptions::default());
        let store = Datastore::create(backend, options).await.unwrap();
        let names = [("host/a", [1]), ("host/b", [2])];
        for (name, numbers) in names {
            drop(back_up(&store, name, &numbers).await.unwrap());
        }
        let damaged: Vec<_> = packs_of(&raw).await;
        assert_eq!(damaged.len(), 2);
        for pack in &damaged {
            let mut bytes = raw.get(pack, u64::MAX).await.unwrap().bytes.to_vec();
            bytes[200] ^= 1;
            raw.put(pack, bytes.into(), PutMode::Replace).await.unwrap();
        }
        let other = opened_as_new(&raw, store.clone()).await;
        let snapshots = async |store: &Datastore| {
            let mut snapshots = Vec::new();
            for (name, _) in names {
                let latest = store.latest(&group(name)).await.unwrap().unwrap();
                snapshots.push(store.snapshot(&latest).await.unwrap());
            }
            snapshots
        };
        for snapshot in snapshots(&other).await {
            assert_eq!(check(&snapshot).await.unwrap_err().kind(), ErrorKind::Corrupt);
        }
        drop(back_up(&other, "host/c", &[1, 2]).await.unwrap());
        sim.sleep(LATE).await;
        let slow = damaged[1].clone();
        let delay = Action::Delay(Duration::from_secs(10));
        faults.add(Rule::on(Method::GetRange, delay).keys(move |key| *key == slow));
        let snapshots = snapshots(&store).await;
        let restores = snapshots.iter().map(check);
        for restored in futures::future::join_all(restores).await {
            restored.unwrap();
        }
    });
}

async fn packs_of(raw: &Arc<dyn Backend>) -> Vec<Key> {
    let entries = list_all(raw.as_ref(), &ListQuery::all(Prefix::Packs)).await.unwrap().into_entries();
    let keys = entries.into_iter().filter_map(|entry| match entry {
        ListEntry::Object(info) => Some(info.key),
        _ => None,
    });
    keys.collect()
}
