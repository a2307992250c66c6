//! Pruning by rules and deleting by plan.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use futures::executor::block_on;
use futures::io::{AsyncReadExt as _, Cursor};
use larder::Observer;
use larder::backend::{Backend, FsBackend, LockMode, LockReach, LockScope, MemoryBackend, PutMode};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::format::name::{BackupTime, GroupName, Namespace, SnapshotName};
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::listing::ShortPages as _;
use larder::internal::record::Method;
use larder::prune::{
    self, PruneEvent, PruneGroupOutcome, PruneOptions, PruneOutcome, PrunePlan, PruneReport, PruneStop,
};
use larder::retention::{Decision, RetentionItem, RetentionRules, retain};
use larder::rt::{Runtime, SimRuntime};
use larder::store::{Datastore, Options, Protection, Scope, SnapshotReader, SnapshotState};
use larder_testing::days::{DAY, at, group, memory, names, on_demand, paths, runtime, space};
use larder_testing::places::everywhere;

async fn back_up(store: &Datastore, group: &str, seconds: u64) -> SnapshotReader {
    let backup = store.backup(&group.parse().unwrap()).time(at(seconds)).begin().await.unwrap();
    let data = seconds.to_string().into_bytes();
    backup.stream("data.bin", Cursor::new(data)).await.unwrap();
    backup.blob("app.conf", "x").await.unwrap();
    backup.client_log("log").await.unwrap();
    backup.finish().await.unwrap().snapshot
}

/// Makes `count` snapshots, a day apart.
async fn days(store: &Datastore, group: &str, count: u64) -> Vec<SnapshotName> {
    let mut names = Vec::new();
    for day in 0..count {
        names.push(back_up(store, group, day * DAY).await.name().clone());
    }
    names
}

/// Leaves files without a manifest, as a dead writer does.
async fn leave_unfinished(backend: &dyn Backend, name: &SnapshotName) {
    for file in ["a.blob", "b.blob"] {
        let key = Key::Archive(name.clone(), file.parse().unwrap());
        backend.put(&key, "half".into(), PutMode::Create).await.unwrap();
    }
}

async fn read(store: &Datastore, name: &SnapshotName) -> String {
    let mut text = String::new();
    let snapshot = store.snapshot(name).await.unwrap();
    snapshot.archive("data.bin.didx").await.unwrap().read_to_string(&mut text).await.unwrap();
    text
}

async fn new_store(backend: &Arc<dyn Backend>) -> Datastore {
    Datastore::create(Arc::clone(backend), Options::default()).await.unwrap()
}

async fn directory(path: &std::path::Path) -> Arc<dyn Backend> {
    Arc::new(FsBackend::create(runtime(), path, on_demand()).await.unwrap())
}

fn last(count: u64) -> PruneOptions {
    PruneOptions::default().rules(RetentionRules::default().keep_last(count))
}

async fn plan_last(store: &Datastore, group: &GroupName, count: u64) -> PrunePlan {
    prune::plan(store, &Scope::Group(group.clone()), last(count)).await.unwrap()
}

async fn plan_all(store: &Datastore, group: &GroupName) -> PrunePlan {
    prune::plan_deletion(store, &Scope::Group(group.clone()), PruneOptions::default()).await.unwrap()
}

async fn deleted(store: &Datastore, scope: &Scope) -> PruneReport {
    let mut plan = prune::plan_deletion(store, scope, PruneOptions::default()).await.unwrap();
    plan.execute().await.unwrap()
}

/// One letter for each snapshot of a report.
fn letters(report: &PruneReport) -> String {
    let letter = |outcome: &PruneOutcome| match outcome {
        PruneOutcome::Busy(_) => 'B',
        PruneOutcome::Changed => 'C',
        PruneOutcome::Failed(_) => 'F',
        PruneOutcome::Gone => 'G',
        PruneOutcome::Kept => 'K',
        PruneOutcome::NotReached => 'N',
        PruneOutcome::Protected => 'P',
        PruneOutcome::Removed => 'R',
        other => panic!("{other:?}"),
    };
    report
        .groups
        .iter()
        .flat_map(|group| &group.snapshots)
        .map(|snapshot| letter(&snapshot.outcome))
        .collect()
}

fn kind<T>(result: larder::error::Result<T>) -> ErrorKind {
    result.map(drop).unwrap_err().kind()
}

#[test]
fn a_prune_removes_exactly_the_snapshots_that_the_rules_select() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let inner = space("a");
            store.create_namespace(&inner).await.unwrap();
            let mut all = Vec::new();
            for name in ["vm/1", "ns/a/vm/1"] {
                // Two a day.
                for half in 0..8 {
                    all.push(back_up(&store, name, half * DAY / 2).await.name().clone());
                }
            }
            let (ours, theirs) = (&all[..8], &all[8..]);
            store.set_protection(&ours[0], Protection::On).await.unwrap();
            let rules = RetentionRules::default().keep_last(1).keep_daily(2);
            let items: Vec<_> = ours
                .iter()
                .map(|name| {
                    let mut item = RetentionItem::new(name.time());
                    item.protected = *name == ours[0];
                    item
                })
                .collect();
            let wanted = retain(&items, &rules, |_| 0);
            let options = PruneOptions::default().rules(rules);
            let level = Scope::Namespace(Namespace::root());
            let mut plan = prune::plan(&store, &level, options.clone()).await.unwrap();
            assert_eq!(plan.groups().len(), 1);
            let decided: Vec<_> = plan.groups()[0].snapshots.iter().map(|planned| planned.decision).collect();
            assert_eq!(decided, wanted);
            assert_eq!(names(&store, &group("vm/1")).await, ours, "nothing happens before it is carried out");
            let counts = plan.counts();
            assert_eq!((counts.protected, counts.keep + counts.remove), (1, 7));
            let report = plan.execute().await.unwrap();
            assert_eq!((report.removed(), report.left()), (counts.remove, 0));
            let kept = ours.iter().zip(&wanted).filter(|(_, decision)| **decision != Decision::Remove);
            let kept: Vec<_> = kept.map(|(name, _)| name.clone()).collect();
            assert_eq!(names(&store, &group("vm/1")).await, kept);
            assert_eq!(names(&store, &group("ns/a/vm/1")).await, theirs, "it is in another namespace");
            for name in &kept {
                assert_eq!(read(&store, name).await.len(), read(&store, name).await.trim().len());
            }
            let mut plan = prune::plan(&store, &Scope::Tree(Namespace::root()), options).await.unwrap();
            assert_eq!(plan.groups().len(), 2);
            plan.execute().await.unwrap();
            assert_eq!(names(&store, &group("vm/1")).await, kept, "the same rules keep the same");
            assert_eq!(names(&store, &group("ns/a/vm/1")).await.len(), kept.len() - 1);
        })
    });
}

#[test]
fn a_prune_without_rules_keeps_everything() {
    block_on(async {
        let backend = memory(3);
        let store = new_store(&backend).await;
        let snapshots = days(&store, "vm/1", 3).await;
        let lost = group("vm/1").snapshot(BackupTime::try_from(at(1)).unwrap());
        leave_unfinished(backend.as_ref(), &lost).await;
        for options in [PruneOptions::default(), last(0)] {
            let scope = Scope::Tree(Namespace::root());
            let mut plan = prune::plan(&store, &scope, options).await.unwrap();
            assert_eq!(plan.counts().keep, 4);
            assert_eq!(letters(&plan.execute().await.unwrap()), "KKKK");
        }
        assert_eq!(names(&store, &group("vm/1")).await.len(), snapshots.len() + 1);
    });
}

#[test]
fn retention_days_begin_at_the_given_time_offset() {
    block_on(async {
        let store = new_store(&memory(3)).await;
        // 22:13:20 and 23:13:20 UTC are two days where it is an hour and a half later.
        for seconds in [0, 3600] {
            back_up(&store, "vm/1", seconds).await;
        }
        let options = PruneOptions::default().rules(RetentionRules::default().keep_daily(9));
        let scope = Scope::Group(group("vm/1"));
        let utc = prune::plan(&store, &scope, options.clone()).await.unwrap();
        assert_eq!(utc.counts().remove, 1);
        let local = prune::plan(&store, &scope, options.utc_offset(|_| 5400)).await.unwrap();
        assert_eq!(local.counts().remove, 0);
    });
}

#[test]
fn planning_a_deletion_of_an_absent_object_is_an_error() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let snapshot = back_up(&store, "vm/1", 0).await.name().clone();
            let other = group("vm/2").snapshot(snapshot.time());
            let scopes = [
                Scope::Group(group("vm/2")),
                Scope::Namespace(space("a")),
                Scope::Tree(space("a")),
                Scope::Snapshots(vec![snapshot.clone(), other]),
            ];
            for scope in scopes {
                assert_eq!(
                    kind(prune::plan_deletion(&store, &scope, PruneOptions::default()).await),
                    ErrorKind::NotFound,
                    "{scope:?}"
                );
            }
            for scope in [Scope::Group(group("vm/2")), Scope::Namespace(space("a"))] {
                assert_eq!(
                    kind(prune::plan(&store, &scope, last(1)).await),
                    ErrorKind::NotFound,
                    "{scope:?}"
                );
            }
            assert_eq!(names(&store, &group("vm/1")).await, [snapshot]);
        })
    });
}

/// Proves H28.
#[test]
fn a_deletion_plan_contains_and_removes_only_the_named_objects() {
    block_on(async {
        let scratch = larder_testing::scratch();
        for backend in [memory(1), directory(scratch.path()).await] {
            let store = new_store(&backend).await;
            for name in ["foo", "foobar", "foo/x"] {
                store.create_namespace(&space(name)).await.unwrap();
            }
            let ids = ["1", "10", "100", "1000", "100.", "100-a"];
            for prefix in ["vm/", "ct/", "ns/foo/vm/", "ns/foobar/vm/", "ns/foo/ns/x/vm/"] {
                for id in ids {
                    back_up(&store, &format!("{prefix}{id}"), 0).await;
                    back_up(&store, &format!("{prefix}{id}"), DAY).await;
                }
            }
            let backend = backend.as_ref();
            for id in ids {
                let mine = group(&format!("vm/{id}"));
                let first = mine.snapshot(BackupTime::try_from(at(0)).unwrap());
                for (scope, gone) in [
                    (Scope::Snapshots(vec![first.clone()]), format!("{first}/")),
                    (Scope::Group(mine.clone()), format!("{mine}/")),
                ] {
                    let before = paths(backend).await;
                    let report = deleted(&store, &scope).await;
                    assert_eq!(letters(&report), "R");
                    let wanted: Vec<_> = before.into_iter().filter(|path| !path.starts_with(&gone)).collect();
                    assert_eq!(paths(backend).await, wanted, "{scope:?}");
                }
            }
            let before = paths(backend).await;
            let level = Scope::Namespace(space("foo"));
            let report = deleted(&store, &level).await;
            assert!(matches!(report.namespaces[0].outcome, PruneGroupOutcome::Kept), "foo/x is in it");
            let wanted: Vec<_> = before.into_iter().filter(|path| !path.starts_with("ns/foo/vm/")).collect();
            assert_eq!(paths(backend).await, wanted);
            let tree = Scope::Tree(space("foo"));
            let mut plan = prune::plan_deletion(&store, &tree, PruneOptions::default()).await.unwrap();
            let namespaces: Vec<_> = plan.namespaces().iter().map(|one| one.namespace.clone()).collect();
            assert_eq!(namespaces, [space("foo/x"), space("foo")]);
            let report = plan.execute().await.unwrap();
            assert!(
                report.namespaces.iter().all(|space| matches!(space.outcome, PruneGroupOutcome::Removed))
            );
            let wanted: Vec<_> = wanted.into_iter().filter(|path| !path.starts_with("ns/foo/")).collect();
            assert_eq!(paths(backend).await, wanted);
            let root = Scope::Tree(Namespace::root());
            deleted(&store, &root).await;
            assert_eq!(paths(backend).await, Vec::<String>::new());
        }
    });
}

/// Proves H55.
#[test]
fn protected_snapshots_survive_a_deletion_with_all_their_files() {
    block_on(async {
        for page in 1..=3 {
            for at in 0..3 {
                let backend = memory(page);
                let store = new_store(&backend).await;
                store.create_namespace(&space("a")).await.unwrap();
                let snapshots = days(&store, "ns/a/vm/1", 3).await;
                store.set_group_notes(&group("ns/a/vm/1"), "notes").await.unwrap();
                store.set_protection(&snapshots[at], Protection::On).await.unwrap();
                let mut before = paths(backend.as_ref()).await;
                let scope = Scope::Tree(space("a"));
                let report = prune::plan_deletion(&store, &scope, PruneOptions::default())
                    .await
                    .unwrap()
                    .execute()
                    .await
                    .unwrap();
                assert_eq!(letters(&report).find('P'), Some(at));
                assert_eq!(report.removed(), 2);
                assert!(matches!(report.groups[0].outcome, PruneGroupOutcome::Kept));
                assert!(matches!(report.namespaces[0].outcome, PruneGroupOutcome::Kept));
                let gone = |path: &String| {
                    snapshots.iter().any(|name| *name != snapshots[at] && path.starts_with(&name.to_string()))
                };
                before.retain(|path| !gone(path));
                assert_eq!(paths(backend.as_ref()).await, before, "pages of {page}, {at}");
            }
        }
    });
}

/// Proves H56.
///
/// Each change between a plan and its execution, with the outcome of each snapshot in a prune by rules and in a deletion.
#[test]
fn snapshots_that_changed_since_the_plan_are_kept() {
    let changes: [(&str, &str, &str); 9] = [
        ("nothing", "RRK", "RRR"),
        ("protected", "PRK", "PRR"),
        ("read", "BRK", "BRR"),
        ("base", "BRK", "BRR"),
        ("notes", "RRK", "CRR"),
        ("gone", "GRK", "GRR"),
        ("replaced", "RRK", "CRR"),
        ("kept one gone", "RCK", "RRG"),
        ("newer", "RRK", "RRR"),
    ];
    for (change, by_rules, deleted) in changes {
        for is_deletion in [false, true] {
            block_on(async {
                let backend = memory(2);
                let store = new_store(&backend).await;
                let vm = group("vm/1");
                let snapshots = days(&store, "vm/1", 3).await;
                let mut plan =
                    if is_deletion { plan_all(&store, &vm).await } else { plan_last(&store, &vm, 1).await };
                let (mut reader, mut writer) = (None, None);
                match change {
                    "protected" => store.set_protection(&snapshots[0], Protection::On).await.unwrap(),
                    "read" => reader = Some(store.snapshot(&snapshots[0]).await.unwrap()),
                    "base" => {
                        let base = store.snapshot(&snapshots[0]).await.unwrap();
                        let backup = store.backup(&vm).time(at(9 * DAY)).begin().await.unwrap();
                        let data = Cursor::new(b"0".to_vec());
                        backup.stream("data.bin", data).base(&base).await.unwrap();
                        writer = Some(backup);
                    }
                    "notes" => store.set_notes(&snapshots[0], "notes").await.unwrap(),
                    "gone" => store.delete_snapshot(&snapshots[0]).await.unwrap(),
                    "replaced" => {
                        let key = Key::Manifest(snapshots[0].clone());
                        let manifest = backend.get(&key, 1 << 20).await.unwrap();
                        store.delete_snapshot(&snapshots[0]).await.unwrap();
                        backend.put(&key, manifest.bytes, PutMode::Create).await.unwrap();
                    }
                    "kept one gone" => store.delete_snapshot(&snapshots[2]).await.unwrap(),
                    "newer" => _ = back_up(&store, "vm/1", 9 * DAY).await,
                    _ => {}
                }
                let report = plan.execute().await.unwrap();
                let wanted = if is_deletion { deleted } else { by_rules };
                assert_eq!(letters(&report), wanted, "{change}, {is_deletion}");
                assert!(report.stopped.is_none());
                let left = names(&store, &vm).await;
                for (name, letter) in snapshots.iter().zip(wanted.chars()) {
                    let is_gone = matches!(letter, 'G' | 'R') || (change, letter) == ("kept one gone", 'K');
                    assert_eq!(!left.contains(name), is_gone, "{change}, {name}");
                }
                if let Some(writer) = writer {
                    // The base is still there, so that the backup can be finished (H54).
                    let finished = writer.finish().await.unwrap().snapshot;
                    assert_eq!(read(&store, finished.name()).await, "0");
                }
                drop(reader);
            });
        }
    }
}

/// Proves H38.
#[test]
fn an_unfinished_snapshot_is_removed_only_if_its_writer_is_dead() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            let vm = group("vm/1");
            let first = back_up(&store, "vm/1", 0).await.name().clone();
            // A writer that lives.
            let writer = store.backup(&vm).time(at(DAY)).begin().await.unwrap();
            writer.blob("app.conf", "x").await.unwrap();
            let plans = [plan_last(&store, &vm, 1).await, plan_all(&store, &vm).await];
            assert_eq!(plans[0].groups()[0].snapshots[1].decision, Decision::KeepPartial);
            assert_eq!(plans[0].groups()[0].snapshots[1].state, SnapshotState::Unfinished);
            let [mut by_rules, mut deletion] = plans;
            assert_eq!(letters(&by_rules.execute().await.unwrap()), "KK");
            let report = deletion.clone().execute().await.unwrap();
            assert_eq!(letters(&report), "RB");
            assert!(
                matches!(report.groups[0].outcome, PruneGroupOutcome::Kept),
                "{first} was not the only one"
            );
            // It has gone on, and finishes.
            writer.blob("more.conf", "x").await.unwrap();
            let finished = writer.finish().await.unwrap().snapshot.name().clone();
            assert_eq!(letters(&deletion.execute().await.unwrap()), "GC");
            assert_eq!(store.snapshot(&finished).await.unwrap().blob("app.conf.blob").await.unwrap(), "x");
            // Two of writers that died, before the newest one.
            back_up(&store, "vm/1", 9 * DAY).await;
            for day in [3, 4] {
                let name = vm.snapshot(BackupTime::try_from(at(day * DAY)).unwrap());
                place.write(&format!("{name}/a.blob"), "half").await;
            }
            let mut plan = plan_last(&store, &vm, 2).await;
            let grown = vm.snapshot(BackupTime::try_from(at(4 * DAY)).unwrap());
            place.write(&format!("{grown}/b.blob"), "half").await;
            let report = plan.execute().await.unwrap();
            // Where locks do not reach all processes, their writers may be alive.
            let is_dead = place.capabilities().lock_reach != LockReach::Process;
            let expected = if is_dead { ["KRCK", "KRK"] } else { ["KBCK", "KBBK"] };
            assert_eq!(letters(&report), expected[0], "a file was added");
            let again = plan_last(&store, &vm, 2).await.execute().await.unwrap();
            assert_eq!(letters(&again), expected[1]);
        })
    });
}

/// Proves I1.
#[test]
fn an_unfinished_snapshot_is_kept_while_another_process_uses_the_store() {
    block_on(async {
        let backend = memory(2);
        let store = new_store(&backend).await;
        let faulty = Arc::new(FaultBackend::new(Arc::clone(&backend)));
        back_up(&store, "vm/1", DAY).await;
        let lost = group("vm/1").snapshot(BackupTime::try_from(at(0)).unwrap());
        leave_unfinished(backend.as_ref(), &lost).await;
        let other = Datastore::open(Arc::<FaultBackend>::clone(&faulty), Options::default()).await.unwrap();
        let mut plan = plan_last(&other, &group("vm/1"), 1).await;
        // As the lock of the store answers while another process has it.
        faulty.add(Rule::on(Method::Lock, Action::FailBefore(ErrorKind::Busy)).nth(2));
        assert_eq!(letters(&plan.clone().execute().await.unwrap()), "BK");
        faulty.clear();
        // A listing that is behind: there is a manifest after all (H13).
        faulty.add(Rule::on(Method::Head, Action::FailBefore(ErrorKind::Unavailable)).keys(is_manifest));
        assert_eq!(letters(&plan.clone().execute().await.unwrap()), "FK");
        faulty.clear();
        assert_eq!(letters(&plan.execute().await.unwrap()), "RK");
    });
}

fn is_manifest(key: &Key) -> bool {
    matches!(key, Key::Manifest(_))
}

/// Proves H42.
#[test]
fn a_deletion_interrupted_at_any_step_can_be_resumed() {
    let scratch = larder_testing::scratch();
    for on_disk in [false, true] {
        for step in 1.. {
            let ended = block_on(async {
                let place =
                    if on_disk { directory(&scratch.path().join(step.to_string())).await } else { memory(3) };
                let store = new_store(&place).await;
                store.create_namespace(&space("a")).await.unwrap();
                let snapshots = days(&store, "ns/a/vm/1", 2).await;
                store.set_group_notes(&group("ns/a/vm/1"), "notes").await.unwrap();
                let faulty = Arc::new(FaultBackend::new(Arc::clone(&place)));
                let dying =
                    Datastore::open(Arc::<FaultBackend>::clone(&faulty), Options::default()).await.unwrap();
                let scope = Scope::Tree(space("a"));
                let mut plan = prune::plan_deletion(&dying, &scope, PruneOptions::default()).await.unwrap();
                faulty.crash_at(step);
                // That it failed is in the report, or is an error if it was the last step.
                _ = plan.execute().await;
                drop(dying);
                let store = Datastore::open(Arc::clone(&place), Options::default()).await.unwrap();
                for (day, name) in (0..).zip(&snapshots) {
                    match store.snapshot(name).await {
                        Ok(_) => assert_eq!(read(&store, name).await, (day * DAY).to_string(), "step {step}"),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound, "step {step}"),
                    }
                }
                if store.has_namespace(&space("a")).await.unwrap() {
                    let mut plan =
                        prune::plan_deletion(&store, &scope, PruneOptions::default()).await.unwrap();
                    let report = plan.execute().await.unwrap();
                    assert_eq!(report.left(), 0, "step {step}: {report:?}");
                }
                assert_eq!(paths(place.as_ref()).await, Vec::<String>::new(), "step {step}");
                assert!(!store.has_namespace(&space("a")).await.unwrap());
                !faulty.has_crashed()
            });
            if ended {
                assert!(step > 6, "{step} steps");
                break;
            }
        }
    }
}

/// Proves H161.
#[test]
fn a_dropped_execution_can_be_resumed() {
    for drop_after in 0..60 {
        let sim = SimRuntime::new(drop_after + (1 << 20));
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        sim.block_on(async {
            let place: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::clone(&runtime)).page_entries(2));
            let faulty = Arc::new(FaultBackend::new(Arc::clone(&place)));
            let store =
                Datastore::create(Arc::<FaultBackend>::clone(&faulty), Options::default()).await.unwrap();
            let snapshots = days(&store, "vm/1", 2).await;
            let mut plan = plan_all(&store, &group("vm/1")).await;
            faulty.add(Rule::on_any(Action::Delay(Duration::from_millis(10))));
            {
                let mut execution = pin!(plan.execute());
                let mut end = pin!(runtime.sleep(Duration::from_millis(10 * drop_after + 5)));
                futures::future::select(&mut execution, &mut end).await;
            }
            faulty.clear();
            for name in &snapshots {
                if let Err(error) = store.snapshot(name).await {
                    assert_eq!(error.kind(), ErrorKind::NotFound);
                }
            }
            let report = plan.execute().await.unwrap();
            assert_eq!(report.left(), 0, "{report:?}");
            assert_eq!(paths(place.as_ref()).await, Vec::<String>::new());
        });
    }
}

#[test]
fn a_failed_deletion_is_reported_and_the_others_continue() {
    block_on(async {
        let backend = memory(3);
        let store = new_store(&backend).await;
        let snapshots = days(&store, "vm/1", 4).await;
        let faulty = Arc::new(FaultBackend::new(Arc::clone(&backend)));
        let other = Datastore::open(Arc::<FaultBackend>::clone(&faulty), Options::default()).await.unwrap();
        let mut plan = plan_last(&other, &group("vm/1"), 1).await;
        let second = snapshots[1].clone();
        let rule = Rule::on(Method::Delete, Action::FailBefore(ErrorKind::Denied));
        faulty.add(rule.keys(move |key| *key == Key::Manifest(second.clone())));
        let report = plan.clone().execute().await.unwrap();
        assert_eq!(letters(&report), "RFRK");
        assert_eq!((report.removed(), report.left()), (2, 1));
        assert_eq!(read(&store, &snapshots[1]).await, DAY.to_string());
        faulty.clear();
        assert_eq!(letters(&plan.execute().await.unwrap()), "GRGK");
    });
}

/// Proves H89.
#[test]
fn a_prune_stops_when_the_lease_is_lost() {
    block_on(async {
        let backend = memory(3);
        let store = new_store(&backend).await;
        let snapshots = days(&store, "vm/1", 4).await;
        let faulty = Arc::new(FaultBackend::new(Arc::clone(&backend)));
        let other = Datastore::open(Arc::<FaultBackend>::clone(&faulty), Options::default()).await.unwrap();
        let mut plan = plan_all(&other, &group("vm/1")).await;
        // Each snapshot takes one look.
        faulty.add(Rule::on(Method::CheckOwned, Action::FailBefore(ErrorKind::Busy)).nth(2));
        let report = plan.execute().await.unwrap();
        assert_eq!(letters(&report), "RFNN");
        assert!(matches!(report.stopped, Some(PruneStop::Lost(_))));
        assert_eq!(names(&store, &group("vm/1")).await, snapshots[1..]);
    });
}

/// Sets the flag after `after` snapshots.
#[derive(Debug)]
struct Stopper {
    after: u64,
    flag: Arc<AtomicBool>,
    seen: Mutex<Vec<(SnapshotName, u64, u64)>>,
}

impl Observer<PruneEvent> for Stopper {
    fn on_event(&self, event: &PruneEvent) {
        let PruneEvent::SnapshotFinished { done, snapshot, total, .. } = event else { return };
        self.seen.lock().unwrap().push((snapshot.clone(), *done, *total));
        if *done == self.after {
            self.flag.store(true, Ordering::Relaxed);
        }
    }
}

/// Proves H187.
#[test]
fn a_prune_reports_progress_and_can_be_aborted() {
    block_on(async {
        let store = new_store(&memory(3)).await;
        let snapshots = days(&store, "vm/1", 4).await;
        let flag = Arc::new(AtomicBool::new(false));
        let stopper = Arc::new(Stopper { after: 2, flag: Arc::clone(&flag), seen: Mutex::default() });
        let options = PruneOptions::default().abort(flag).observer(Arc::<Stopper>::clone(&stopper));
        let scope = Scope::Group(group("vm/1"));
        let mut plan = prune::plan_deletion(&store, &scope, options).await.unwrap();
        let report = plan.execute().await.unwrap();
        assert_eq!(letters(&report), "RRNN", "the oldest go first");
        assert!(matches!(report.stopped, Some(PruneStop::Aborted)));
        assert_eq!(names(&store, &group("vm/1")).await, snapshots[2..]);
        let wanted: Vec<_> = snapshots.iter().cloned().zip(1..).map(|(name, done)| (name, done, 4)).collect();
        assert_eq!(*stopper.seen.lock().unwrap(), wanted);
    });
}

/// Proves H187.
#[test]
fn an_aborted_execution_continues_to_one_report() {
    block_on(async {
        let store = new_store(&memory(3)).await;
        store.create_namespace(&space("a")).await.unwrap();
        let first = days(&store, "ns/a/vm/1", 4).await;
        let second = days(&store, "ns/a/vm/2", 2).await;
        let flag = Arc::new(AtomicBool::new(false));
        let stopper = Arc::new(Stopper { after: 2, flag: Arc::clone(&flag), seen: Mutex::default() });
        let options =
            PruneOptions::default().abort(Arc::clone(&flag)).observer(Arc::<Stopper>::clone(&stopper));
        let mut plan = prune::plan_deletion(&store, &Scope::Tree(space("a")), options).await.unwrap();
        let report = plan.execute().await.unwrap();
        assert_eq!(letters(&report), "RRNNNN");
        assert_eq!((report.removed(), report.left()), (2, 4));
        assert!(matches!(report.stopped, Some(PruneStop::Aborted)));
        let is_open = |outcome: &PruneGroupOutcome| matches!(outcome, PruneGroupOutcome::NotReached);
        assert!(report.groups.iter().all(|group| is_open(&group.outcome)));
        assert!(report.namespaces.iter().all(|namespace| is_open(&namespace.outcome)));
        // While the flag is set, nothing happens.
        assert_eq!(letters(&plan.execute().await.unwrap()), "RRNNNN");
        stopper.seen.lock().unwrap().clear();
        flag.store(false, Ordering::Relaxed);
        let report = plan.execute().await.unwrap();
        assert_eq!(letters(&report), "RRRRRR", "one report over all executions");
        assert_eq!((report.removed(), report.left()), (6, 0));
        assert!(report.stopped.is_none());
        let is_gone = |outcome: &PruneGroupOutcome| matches!(outcome, PruneGroupOutcome::Removed);
        assert!(report.groups.iter().all(|group| is_gone(&group.outcome)));
        assert!(report.namespaces.iter().all(|namespace| is_gone(&namespace.outcome)));
        let rest = first[2..].iter().chain(&second).cloned();
        let wanted: Vec<_> = rest.zip(3..).map(|(name, done)| (name, done, 6)).collect();
        assert_eq!(*stopper.seen.lock().unwrap(), wanted, "what was removed before is skipped");
        // New ones of the same names are not in the plan.
        store.create_namespace(&space("a")).await.unwrap();
        let again = days(&store, "ns/a/vm/1", 4).await;
        assert_eq!(letters(&plan.execute().await.unwrap()), "RRRRRR");
        assert_eq!(names(&store, &group("ns/a/vm/1")).await, again);
    });
}

#[test]
fn an_execution_that_fails_anywhere_is_repeated_to_its_end() {
    for method in [Method::Barrier, Method::Delete, Method::List, Method::Lock] {
        for number in 1.. {
            let ended = block_on(async {
                let backend = memory(3);
                let store = new_store(&backend).await;
                store.create_namespace(&space("a")).await.unwrap();
                days(&store, "ns/a/vm/1", 3).await;
                let faulty = Arc::new(FaultBackend::new(Arc::clone(&backend)));
                let other =
                    Datastore::open(Arc::<FaultBackend>::clone(&faulty), Options::default()).await.unwrap();
                let scope = Scope::Tree(space("a"));
                let mut plan = prune::plan_deletion(&other, &scope, PruneOptions::default()).await.unwrap();
                faulty.add(Rule::on(method, Action::FailBefore(ErrorKind::Denied)).nth(number));
                let failed = plan.execute().await;
                let removed = failed.as_ref().map_or(0, PruneReport::removed);
                let has_failed = failed.map_or(true, |report| {
                    let groups = report.groups.iter().map(|group| &group.outcome);
                    let mut outcomes = groups.chain(report.namespaces.iter().map(|one| &one.outcome));
                    report.left() > 0
                        || outcomes.any(|outcome| matches!(outcome, PruneGroupOutcome::Failed(_)))
                });
                faulty.clear();
                let report = plan.execute().await.unwrap();
                // A removal whose last flush failed is found done.
                let is_done = letters(&report).chars().all(|letter| "GR".contains(letter));
                assert!(is_done, "{method:?} {number}: {report:?}");
                assert!(removed <= report.removed() && report.stopped.is_none());
                assert!(matches!(report.groups[0].outcome, PruneGroupOutcome::Removed));
                assert!(matches!(report.namespaces[0].outcome, PruneGroupOutcome::Removed));
                assert_eq!(paths(backend.as_ref()).await, Vec::<String>::new());
                !has_failed
            });
            if ended {
                assert!(number > 3, "{method:?}: {number}");
                break;
            }
        }
    }
}

#[test]
fn options_that_make_no_sense_are_refused() {
    block_on(async {
        let store = new_store(&memory(3)).await;
        let snapshots = days(&store, "vm/1", 2).await;
        let invalid = ErrorKind::InvalidInput;
        let none = || PruneOptions::default().concurrency(0);
        assert_eq!(kind(prune::plan(&store, &Scope::Store, none()).await), invalid);
        assert_eq!(kind(prune::plan_deletion(&store, &Scope::Store, none()).await), invalid);
        assert_eq!(kind(prune::plan_deletion(&store, &Scope::Store, last(1)).await), invalid);
        let some = Scope::Snapshots(snapshots.clone());
        assert_eq!(kind(prune::plan(&store, &some, last(1)).await), invalid);
        let mut plan = prune::plan(&store, &Scope::Store, last(1).concurrency(1)).await.unwrap();
        assert_eq!(letters(&plan.execute().await.unwrap()), "RK");
        let all = PruneOptions::default();
        let mut plan = prune::plan_deletion(&store, &Scope::Store, all).await.unwrap();
        assert_eq!(letters(&plan.execute().await.unwrap()), "R");
        assert_eq!(store.groups(&Namespace::root()).await.unwrap(), []);
    });
}

/// Proves H43.
#[test]
fn deleting_a_group_without_snapshots_removes_its_owner_and_notes() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            for left in [&["owner"][..], &["notes"], &["owner", "notes"]] {
                for name in left {
                    place.write(&format!("vm/1/{name}"), "root@pam\n").await;
                }
                assert_eq!(store.groups(&Namespace::root()).await.unwrap(), [group("vm/1")]);
                let report = plan_all(&store, &group("vm/1")).await.execute().await.unwrap();
                assert!(matches!(report.groups[0].outcome, PruneGroupOutcome::Removed));
                assert_eq!(store.groups(&Namespace::root()).await.unwrap(), []);
            }
        })
    });
}

/// A PBS takes every directory in a group for a snapshot, and fails in a group that has no owner.
#[test]
fn the_owner_of_a_group_is_removed_only_with_its_last_directory() {
    type Way = fn(Datastore, std::path::PathBuf) -> futures::future::BoxFuture<'static, bool>;
    let ways: [Way; 5] = [
        |store, _| {
            Box::pin(async move { store.delete_group(&group("vm/1")).await.unwrap().deleted.len() == 1 })
        },
        |store, _| {
            Box::pin(async move {
                let only = names(&store, &group("vm/1")).await.remove(0);
                store.delete_snapshot(&only).await.is_ok()
            })
        },
        |store, _| {
            Box::pin(
                async move { plan_all(&store, &group("vm/1")).await.execute().await.unwrap().removed() == 1 },
            )
        },
        |store, _| {
            Box::pin(async move {
                let moved = store.move_group(&group("vm/1"), &space("a")).await.unwrap();
                moved.is_complete() && !moved.groups[0].source_gone
            })
        },
        // A backup that is given up takes along the owner that it wrote.
        |store, owner| {
            Box::pin(async move {
                store.delete_group(&group("vm/1")).await.unwrap();
                std::fs::remove_file(owner).unwrap();
                let backup = store.backup(&group("vm/1")).begin().await.unwrap();
                backup.abort().await.is_ok()
            })
        },
    ];
    block_on(async {
        for way in ways {
            let scratch = larder_testing::scratch();
            let backend = directory(scratch.path()).await;
            let store = new_store(&backend).await;
            store.create_namespace(&space("a")).await.unwrap();
            let path = |name: &str| scratch.path().join("vm/1").join(name);
            let empty = "2020-01-01T00:00:00Z";
            back_up(&store, "vm/1", DAY).await;
            std::fs::create_dir(path(empty)).unwrap();
            // As the writer of that snapshot has it, who may be alive.
            let scope = LockScope::Snapshot(format!("vm/1/{empty}").parse().unwrap());
            let held = backend.lock(&scope, LockMode::Exclusive).await.unwrap();
            assert!(way(store.clone(), path("owner")).await);
            assert!(path(empty).is_dir() && path("owner").is_file());
            drop(held);
            assert_eq!(store.delete_group(&group("vm/1")).await.unwrap().deleted, []);
            assert!(!path("").exists(), "nobody writes it: both go");
        }
    });
}

/// Proves H50.
#[test]
fn an_empty_or_repeated_prune_succeeds() {
    block_on(async {
        let store = new_store(&memory(1)).await;
        let nothing = Scope::Snapshots(Vec::new());
        let report = prune::plan_deletion(&store, &nothing, PruneOptions::default())
            .await
            .unwrap()
            .execute()
            .await
            .unwrap();
        assert!(report.groups.is_empty() && report.stopped.is_none());
        let root = Scope::Tree(Namespace::root());
        let report = prune::plan(&store, &root, last(1)).await.unwrap().execute().await.unwrap();
        assert!(report.groups.is_empty() && report.stopped.is_none());
        days(&store, "vm/1", 1).await;
        let mut plan = plan_all(&store, &group("vm/1")).await;
        plan.clone().execute().await.unwrap();
        assert_eq!(letters(&plan.execute().await.unwrap()), "G", "a second time does no harm");
    });
}

/// Proves H46.
#[test]
fn a_manifest_change_does_not_recreate_a_deleted_manifest() {
    block_on(async {
        let scratch = larder_testing::scratch();
        for backend in [memory(3), directory(scratch.path()).await] {
            let store = new_store(&backend).await;
            let name = days(&store, "vm/1", 1).await.remove(0);
            let mut plan = plan_all(&store, &group("vm/1")).await;
            let held = backend.lock(&LockScope::Manifest(name.clone()), LockMode::Exclusive).await.unwrap();
            let mut execution = pin!(plan.execute());
            // It waits for the writer of the manifest.
            for _ in 0..50 {
                let polled =
                    futures::future::poll_fn(|context| Poll::Ready(execution.as_mut().poll(context)));
                assert!(polled.await.is_pending());
                backend.runtime().sleep(Duration::from_millis(2)).await;
                assert!(backend.head(&Key::Manifest(name.clone())).await.is_ok());
            }
            drop(held);
            assert_eq!(letters(&execution.await.unwrap()), "R");
        }
    });
}

#[test]
fn a_plan_lists_each_group_once_and_an_execution_checks_each_removed_group_again() {
    block_on(async {
        let backend: Arc<dyn Backend> = Arc::new(MemoryBackend::new(runtime()));
        let record = Arc::new(larder::internal::record::RecordingBackend::new(backend));
        let store =
            Datastore::create(Arc::clone(&record) as Arc<dyn Backend>, Options::default()).await.unwrap();
        for name in ["vm/1", "vm/2", "ct/1"] {
            days(&store, name, 5).await;
        }
        let lists = || record.calls().iter().filter(|call| call.method == Method::List).count();
        let before = lists();
        let mut plan = prune::plan(&store, &Scope::Namespace(Namespace::root()), last(3)).await.unwrap();
        // Three types of groups, three groups.
        assert_eq!(lists() - before, 6);
        let before = lists();
        assert_eq!(plan.execute().await.unwrap().removed(), 6);
        // Each group before, each snapshot under its lock, each group after.
        assert_eq!(lists() - before, 3 + 6 + 3);
    });
}

/// Proves H30.
#[test]
fn a_prune_leaves_foreign_files_alone() {
    block_on(async {
        let scratch = larder_testing::scratch();
        let backend = directory(scratch.path()).await;
        let store = new_store(&backend).await;
        let names = days(&store, "vm/1", 2).await;
        std::fs::write(scratch.path().join(names[0].to_string()).join("foreign.txt"), "x").unwrap();
        std::fs::write(scratch.path().join("vm/1/foreign.txt"), "x").unwrap();
        let report = plan_all(&store, &group("vm/1")).await.execute().await.unwrap();
        assert_eq!(letters(&report), "RR");
        assert_eq!(
            paths(backend.as_ref()).await,
            [format!("{}/foreign.txt", names[0]), "vm/1/foreign.txt".to_owned(), "vm/1/owner".to_owned()]
        );
        assert!(matches!(report.groups[0].outcome, PruneGroupOutcome::Kept));
    });
}
