//! Copying and moving groups and namespaces within a store.

use std::collections::BTreeMap;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{Backend, FsBackend, LockReach, MemoryBackend, PutMode};
use larder::error::ErrorKind;
use larder::error::ErrorKind::{Denied, InvalidInput, NotFound};
use larder::format::layout::{Key, Prefix};
use larder::format::name::{AuthId, BackupTime, Namespace, SnapshotName};
use larder::internal::fault::{Action, FaultBackend, Rule};
use larder::internal::listing::ShortPages as _;
use larder::internal::record::{Method, RecordingBackend};
use larder::prune::{self, PruneOptions};
use larder::retention::{Decision, RetentionRules};
use larder::rt::{Runtime, SimRuntime};
use larder::store::{
    Datastore, Options, Protection, Relocated, Relocation, Scope, SnapshotReader, SnapshotState,
};
use larder_testing::days::{DAY, at, group, memory, names, on_demand, paths, runtime, space};
use larder_testing::places::everywhere;
use larder_testing::read_to_end;
use larder_testing::watched::Watched;

async fn back_up(store: &Datastore, group: &str, seconds: u64) -> SnapshotReader {
    let backup = store.backup(&group.parse().unwrap()).time(at(seconds)).begin().await.unwrap();
    let data = seconds.to_string().into_bytes();
    backup.stream("data.bin", Cursor::new(data)).await.unwrap();
    backup.image("disk.img", Cursor::new(vec![7; 5000]), 5000).await.unwrap();
    backup.blob("app.conf", "x").await.unwrap();
    backup.client_log("log").await.unwrap();
    backup.set_notes("of the snapshot");
    backup.finish().await.unwrap().snapshot
}

async fn days(store: &Datastore, group: &str, from: u64, to: u64) -> Vec<SnapshotName> {
    let mut names = Vec::new();
    for day in from..to {
        names.push(back_up(store, group, day * DAY).await.name().clone());
    }
    names
}

/// Everything that is in a snapshot, with all of it checked.
async fn contents(store: &Datastore, name: &SnapshotName) -> Result<String, ErrorKind> {
    let snapshot = store.snapshot(name).await.map_err(|error| error.kind())?;
    let read = async |archive| read_to_end(&mut snapshot.archive(archive).await.unwrap()).await.unwrap();
    let text = String::from_utf8(read("data.bin.didx").await).unwrap();
    assert!(read("disk.img.fidx").await == [7; 5000]);
    assert_eq!(snapshot.blob("app.conf.blob").await.unwrap(), "x");
    assert_eq!(snapshot.client_log().await.unwrap().unwrap(), "log");
    assert_eq!(snapshot.manifest().notes(), Some("of the snapshot"));
    Ok(text)
}

fn there(name: &SnapshotName, namespace: &str) -> SnapshotName {
    name.group().clone().in_namespace(space(namespace)).snapshot(name.time())
}

async fn opened(backend: &Arc<dyn Backend>) -> Datastore {
    Datastore::open(Arc::clone(backend), Options::default()).await.unwrap()
}

async fn new_store(backend: &Arc<dyn Backend>, namespaces: &[&str]) -> Datastore {
    let store = Datastore::create(Arc::clone(backend), Options::default()).await.unwrap();
    for name in namespaces {
        store.create_namespace(&space(name)).await.unwrap();
    }
    store
}

async fn directory(runtime: Arc<dyn Runtime>, path: &Path) -> Arc<dyn Backend> {
    Arc::new(FsBackend::create(runtime, path, on_demand()).await.unwrap())
}

/// One letter for each snapshot.
fn letters(done: &Relocation) -> String {
    let letter = |outcome: &Relocated| match outcome {
        Relocated::AlreadyThere => 'A',
        Relocated::Busy(_) => 'B',
        Relocated::Copied => 'C',
        Relocated::Failed(_) => 'F',
        Relocated::Gone => 'G',
        Relocated::Moved => 'M',
        Relocated::NotReached => 'N',
        Relocated::Unfinished => 'U',
        other => panic!("{other:?}"),
    };
    done.groups.iter().flat_map(|group| &group.snapshots).map(|snapshot| letter(&snapshot.outcome)).collect()
}

fn kind<T>(result: larder::error::Result<T>) -> ErrorKind {
    result.map(drop).unwrap_err().kind()
}

#[test]
fn a_group_is_copied_and_moved_with_its_owner_notes_and_protection() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            store.create_namespace(&space("a")).await.unwrap();
            store.create_namespace(&space("b")).await.unwrap();
            let vm = group("vm/1");
            let owner: AuthId = "me@pam".parse().unwrap();
            let snapshots = days(&store, "vm/1", 0, 3).await;
            store.set_owner(&vm, &owner).await.unwrap();
            store.set_group_notes(&vm, "of the group").await.unwrap();
            store.set_protection(&snapshots[1], Protection::On).await.unwrap();
            let done = store.copy_group(&vm, &space("a")).await.unwrap();
            assert_eq!((letters(&done).as_str(), done.is_complete()), ("CCC", true));
            assert!(!done.groups[0].source_gone);
            let done = store.move_group(&vm, &space("b")).await.unwrap();
            assert_eq!((letters(&done).as_str(), done.is_complete()), ("MMM", true));
            assert!(done.groups[0].source_gone);
            assert_eq!(store.groups(&Namespace::root()).await.unwrap(), []);
            assert_eq!(place.read("vm/1/owner").await, None);
            for namespace in ["a", "b"] {
                let moved = vm.clone().in_namespace(space(namespace));
                assert_eq!(store.owner(&moved).await.unwrap(), Some(owner.clone()));
                assert_eq!(store.group_notes(&moved).await.unwrap().as_deref(), Some("of the group"));
                let found = store.snapshots(&moved).await.unwrap();
                assert_eq!(found.iter().map(|info| info.protected).collect::<Vec<_>>(), [false, true, false]);
                for (day, info) in (0..).zip(&found) {
                    assert_eq!(info.state, SnapshotState::Finished);
                    assert_eq!(contents(&store, &info.name).await.unwrap(), (day * DAY).to_string());
                }
            }
            // New snapshots are copied, existing ones are not.
            let backup = store.backup(&group("ns/b/vm/1")).owner(owner.clone()).time(at(9 * DAY));
            backup.begin().await.unwrap().finish().await.unwrap();
            let done = store.copy_group(&group("ns/b/vm/1"), &space("a")).await.unwrap();
            assert_eq!(letters(&done), "AAAC");
            let done = store.copy_group(&group("ns/b/vm/1"), &space("a")).await.unwrap();
            assert_eq!((letters(&done).as_str(), done.is_complete()), ("AAAA", true));
        })
    });
}

#[test]
fn a_namespace_is_copied_and_moved_with_its_children() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            for name in ["a", "a/x", "a/x/y", "ab", "c"] {
                store.create_namespace(&space(name)).await.unwrap();
            }
            for name in ["ns/a/vm/1", "ns/a/ns/x/ct/1", "ns/ab/vm/1"] {
                back_up(&store, name, 0).await;
            }
            let done = store.copy_namespace(&space("a"), &space("b")).await.unwrap();
            assert_eq!((letters(&done).as_str(), done.is_complete()), ("CC", true));
            let done = store.move_namespace(&space("a"), &space("c/d")).await.unwrap();
            assert_eq!((letters(&done).as_str(), done.is_complete()), ("MM", true));
            assert_eq!(done.kept_namespaces, []);
            let all: Vec<_> = store.namespaces(&Namespace::root()).await.unwrap();
            let wanted = ["", "ab", "b", "b/x", "b/x/y", "c", "c/d", "c/d/x", "c/d/x/y"].map(space);
            assert_eq!(all, wanted);
            for name in ["ns/b/vm/1", "ns/b/ns/x/ct/1", "ns/c/ns/d/vm/1", "ns/c/ns/d/ns/x/ct/1", "ns/ab/vm/1"]
            {
                let found = names(&store, &group(name)).await;
                assert_eq!(found.len(), 1, "{name}");
                assert_eq!(contents(&store, &found[0]).await.unwrap(), "0");
            }
        })
    });
}

#[test]
fn copying_or_moving_a_group_to_an_invalid_place_changes_nothing() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            for name in ["a", "b"] {
                store.create_namespace(&space(name)).await.unwrap();
            }
            back_up(&store, "vm/1", DAY).await;
            back_up(&store, "ns/a/vm/1", DAY / 2).await;
            back_up(&store, "ns/a/vm/1", 2 * DAY).await;
            back_up(&store, "ns/b/vm/1", 0).await;
            let theirs: AuthId = "you@pam".parse().unwrap();
            store.set_owner(&group("ns/b/vm/1"), &theirs).await.unwrap();
            for (from, to, wanted) in [
                ("vm/1", "", InvalidInput),
                ("vm/1", "z", NotFound),
                ("vm/2", "a", NotFound),
                ("vm/1", "a", InvalidInput),
                ("vm/1", "b", Denied),
            ] {
                let from = group(from);
                assert_eq!(kind(store.move_group(&from, &space(to)).await), wanted, "{from} to {to}");
                assert_eq!(kind(store.copy_group(&from, &space(to)).await), wanted, "{from} to {to}");
            }
            assert_eq!(store.namespaces(&Namespace::root()).await.unwrap(), ["", "a", "b"].map(space));
            for (name, count) in [("vm/1", 1), ("ns/a/vm/1", 2), ("ns/b/vm/1", 1)] {
                assert_eq!(names(&store, &group(name)).await.len(), count, "{name}");
            }
            assert_eq!(store.owner(&group("ns/b/vm/1")).await.unwrap(), Some(theirs));
        })
    });
}

#[test]
fn copying_or_moving_a_namespace_to_an_invalid_place_changes_nothing() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            for name in ["a", "b", "c", "c/d", "c/d/e", "c/d/e/f", "c/d/e/f/g", "c/d/e/f/g/h"] {
                store.create_namespace(&space(name)).await.unwrap();
            }
            let before = store.namespaces(&Namespace::root()).await.unwrap();
            for (from, to, wanted) in [
                ("", "z", InvalidInput),
                ("a", "a/z", InvalidInput),
                ("a", "a", InvalidInput),
                ("c/d", "c", InvalidInput),
                ("a", "z/z", NotFound),
                ("z", "y", NotFound),
            ] {
                let (from, to) = (space(from), space(to));
                assert_eq!(kind(store.move_namespace(&from, &to).await), wanted, "{from} to {to}");
                assert_eq!(kind(store.copy_namespace(&from, &to).await), wanted, "{from} to {to}");
            }
            assert_eq!(store.namespaces(&Namespace::root()).await.unwrap(), before);
            // Seven levels are just enough, eight are not.
            assert!(store.move_namespace(&space("c"), &space("b/c")).await.unwrap().is_complete());
            store.create_namespace(&space("a/x")).await.unwrap();
            let refused = store.move_namespace(&space("b/c"), &space("a/x/c")).await;
            assert_eq!(kind(refused), InvalidInput);
            assert!(!store.has_namespace(&space("a/x/c")).await.unwrap());
            assert!(store.has_namespace(&space("b/c/d/e/f/g/h")).await.unwrap());
        })
    });
}

#[test]
fn group_notes_are_copied_unless_the_target_has_its_own() {
    block_on(async {
        for (ours, theirs, wanted) in [
            ("", "", None),
            ("ours", "", Some("ours")),
            ("", "theirs", Some("theirs")),
            ("ours", "theirs", Some("theirs")),
        ] {
            let store = new_store(&memory(2), &["a"]).await;
            back_up(&store, "ns/a/vm/1", 0).await;
            back_up(&store, "vm/1", DAY).await;
            store.set_group_notes(&group("vm/1"), ours).await.unwrap();
            store.set_group_notes(&group("ns/a/vm/1"), theirs).await.unwrap();
            let done = store.move_group(&group("vm/1"), &space("a")).await.unwrap();
            assert!(done.is_complete() && done.groups[0].source_gone);
            assert_eq!(store.group_notes(&group("ns/a/vm/1")).await.unwrap().as_deref(), wanted);
            assert_eq!(names(&store, &group("ns/a/vm/1")).await.len(), 2);
        }
    });
}

/// A move or copy that is to be cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    Copy,
    Move,
    MoveNamespace,
}

impl Task {
    async fn run(self, store: &Datastore) -> larder::error::Result<Relocation> {
        match self {
            Self::Copy => store.copy_group(&group("ns/a/vm/1"), &space("b")).await,
            Self::Move => store.move_group(&group("ns/a/vm/1"), &space("b")).await,
            Self::MoveNamespace => store.move_namespace(&space("a"), &space("b")).await,
        }
    }
}

/// Three snapshots of a group, the second of which is protected.
async fn prepared(place: &Arc<dyn Backend>) -> Vec<SnapshotName> {
    let store = new_store(place, &["a", "b"]).await;
    let snapshots = days(&store, "ns/a/vm/1", 0, 3).await;
    store.set_group_notes(&group("ns/a/vm/1"), "notes").await.unwrap();
    store.set_protection(&snapshots[1], Protection::On).await.unwrap();
    snapshots
}

/// Each snapshot is whole somewhere, the same at both places if it is at both, and protected wherever it is if it was.
async fn check_whole(store: &Datastore, snapshots: &[SnapshotName], note: &str) {
    for (day, name) in (0..).zip(snapshots) {
        let mut found = 0;
        for place in [name.clone(), there(name, "b")] {
            match contents(store, &place).await {
                Ok(text) => {
                    assert_eq!(text, (day * DAY).to_string(), "{note}");
                    let info = store.snapshot_info(&place).await.unwrap();
                    assert_eq!(info.protected, day == 1, "h47: {place}, {note}");
                    found += 1;
                }
                Err(kind) => assert_eq!(kind, ErrorKind::NotFound, "{note}"),
            }
        }
        assert!(found > 0, "{name} is nowhere, {note}");
    }
}

/// The same call resumes and completes the operation.
async fn check_resumed(
    store: &Datastore,
    place: &dyn Backend,
    task: Task,
    snapshots: &[SnapshotName],
    note: &str,
) {
    let left = store.groups(&space("a")).await.unwrap();
    let done = match task {
        Task::MoveNamespace if !store.has_namespace(&space("a")).await.unwrap() => None,
        Task::Move if left.is_empty() => None,
        _ => Some(task.run(store).await.unwrap()),
    };
    assert!(done.as_ref().is_none_or(Relocation::is_complete), "{note}: {done:?}");
    check_whole(store, snapshots, note).await;
    let files = ["app.conf.blob", "client.log.blob", "data.bin.didx", "disk.img.fidx", "index.json.blob"];
    let mut wanted = Vec::new();
    for namespace in ["a", "b"] {
        let is_marked = namespace == "b" || task != Task::MoveNamespace;
        wanted.extend(is_marked.then(|| format!("ns/{namespace}/.namespace")));
        if namespace == "a" && task != Task::Copy {
            continue;
        }
        for (number, name) in snapshots.iter().enumerate() {
            let name = there(name, namespace);
            wanted.extend((number == 1).then(|| format!("{name}/.protected")));
            wanted.extend(files.iter().map(|file| format!("{name}/{file}")));
        }
        wanted.extend(["notes", "owner"].map(|file| format!("ns/{namespace}/vm/1/{file}")));
    }
    assert_eq!(paths(place).await, wanted, "{note}");
}

/// Proves H58.
#[test]
fn a_copy_or_move_interrupted_at_any_step_leaves_whole_snapshots_and_resumes() {
    let scratch = larder_testing::scratch();
    for (task, on_disk) in
        [(Task::Copy, false), (Task::Move, false), (Task::Move, true), (Task::MoveNamespace, false)]
    {
        for step in 1.. {
            let note = format!("{task:?}, {on_disk}, step {step}");
            let ended = block_on(async {
                let place = if on_disk {
                    directory(runtime(), &scratch.path().join(step.to_string())).await
                } else {
                    memory(3)
                };
                let snapshots = prepared(&place).await;
                let faulty = Arc::new(FaultBackend::new(Arc::clone(&place)));
                let dying: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faulty);
                let dying = opened(&dying).await;
                faulty.crash_at(step);
                // That it failed is in the result, or is an error if nothing was moved.
                _ = task.run(&dying).await;
                drop(dying);
                let store = opened(&place).await;
                check_whole(&store, &snapshots, &note).await;
                // A prune meanwhile removes no snapshot that has its only whole copy in the destination, and no protected one.
                let rules = PruneOptions::default().rules(RetentionRules::default().keep_last(3));
                let mut plan = prune::plan(&store, &Scope::Tree(Namespace::root()), rules).await.unwrap();
                let planned = plan.groups().iter().flat_map(|group| &group.snapshots);
                let mut removed = planned.filter(|planned| planned.decision == Decision::Remove);
                assert!(removed.all(|planned| planned.state == SnapshotState::Unfinished), "{note}");
                if step % 2 == 0 {
                    plan.execute().await.unwrap();
                    check_whole(&store, &snapshots, &note).await;
                }
                check_resumed(&store, place.as_ref(), task, &snapshots, &note).await;
                !faulty.has_crashed()
            });
            if ended {
                assert!(step > 15, "{note}");
                break;
            }
        }
    }
}

/// Proves H58.
#[test]
fn a_failed_call_in_a_copy_or_move_leaves_whole_snapshots() {
    let mut fired = 0;
    for method in
        [Method::Copy, Method::Put, Method::Delete, Method::Barrier, Method::RecordMoves, Method::Head]
    {
        for action in [
            Action::FailBefore(ErrorKind::Denied),
            Action::FailBefore(ErrorKind::Unavailable),
            Action::FailAfter(ErrorKind::Unavailable),
            Action::Cut,
        ] {
            for nth in 1.. {
                let note = format!("{method:?} {nth}, {action:?}");
                let went_wrong = block_on(async {
                    let place = memory(3);
                    let snapshots = prepared(&place).await;
                    let faulty = Arc::new(FaultBackend::new(Arc::clone(&place)));
                    let backend: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faulty);
                    let store = opened(&backend).await;
                    faulty.add(Rule::on(method, action).nth(nth));
                    let done = Task::Move.run(&store).await;
                    let went_wrong = faulty.fired() > 0;
                    faulty.clear();
                    check_whole(&store, &snapshots, &note).await;
                    if !went_wrong {
                        assert!(done.unwrap().is_complete());
                    }
                    // In a process that knows of no request that may still be executed.
                    let store = opened(&place).await;
                    check_resumed(&store, place.as_ref(), Task::Move, &snapshots, &note).await;
                    went_wrong
                });
                fired += u64::from(went_wrong);
                if !went_wrong {
                    break;
                }
            }
        }
    }
    assert!(fired > 100, "{fired}");
}

/// Proves H161.
#[test]
fn a_dropped_move_can_be_resumed() {
    for drop_after in 0..160 {
        let sim = SimRuntime::new(drop_after + (1 << 20));
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        sim.block_on(async {
            let place: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::clone(&runtime)).page_entries(2));
            let snapshots = prepared(&place).await;
            let faulty = Arc::new(FaultBackend::new(Arc::clone(&place)));
            let backend: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faulty);
            let store = opened(&backend).await;
            faulty.add(Rule::on_any(Action::Delay(Duration::from_millis(10))));
            {
                let mut moving = pin!(Task::Move.run(&store));
                let mut end = pin!(runtime.sleep(Duration::from_millis(10 * drop_after + 5)));
                futures::future::select(&mut moving, &mut end).await;
            }
            faulty.clear();
            let note = format!("dropped after {drop_after}");
            check_whole(&store, &snapshots, &note).await;
            // Not in the same process, in which deletions that were given up are in doubt.
            let store = opened(&place).await;
            check_resumed(&store, place.as_ref(), Task::Move, &snapshots, &note).await;
        });
    }
}

/// Proves I6.
#[test]
fn the_files_of_a_pending_manifest_are_kept() {
    let sim = SimRuntime::new(5);
    sim.block_on(async {
        let place: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(sim.clone())).page_entries(3));
        let snapshots = prepared(&place).await;
        let faulty = Arc::new(FaultBackend::new(Arc::clone(&place)));
        let backend: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faulty);
        let store = opened(&backend).await;
        let late = Action::Late(Duration::from_secs(1), ErrorKind::Unavailable);
        faulty.add(Rule::on(Method::Put, late).keys(|key| matches!(key, Key::Manifest(_))).nth(1));
        assert_eq!(letters(&Task::Move.run(&store).await.unwrap()), "FNN");
        // Its put is still in doubt.
        assert_eq!(letters(&Task::Move.run(&store).await.unwrap()), "BNN");
        sim.sleep(Duration::from_millis(1500)).await;
        check_whole(&store, &snapshots, "late").await;
        check_resumed(&store, place.as_ref(), Task::Move, &snapshots, "late").await;
    });
}

/// Proves H17. The snapshot is at both places, and may still vanish at one of them.
#[test]
fn a_copy_or_move_does_not_rely_on_a_destination_with_a_pending_deletion() {
    let sim = SimRuntime::new(6);
    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
    sim.block_on(async {
        let faulty = Arc::new(FaultBackend::new(Arc::new(MemoryBackend::new(runtime))));
        let backend: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faulty);
        let store = new_store(&backend, &["a"]).await;
        let snapshots = days(&store, "vm/1", 0, 1).await;
        let (vm, root) = (group("vm/1"), Namespace::root());
        let moved = vm.clone().in_namespace(space("a"));
        let late = Action::Late(Duration::from_mins(20), ErrorKind::Unavailable);
        faulty.add(Rule::on(Method::Delete, late).keys(|key| matches!(key, Key::Manifest(_))).nth(1));
        assert_eq!(letters(&store.move_group(&vm, &space("a")).await.unwrap()), "F");
        assert_eq!(letters(&store.copy_group(&moved, &root).await.unwrap()), "B");
        assert_eq!(letters(&store.move_group(&moved, &root).await.unwrap()), "B");
        sim.sleep(Duration::from_mins(25)).await;
        assert_eq!(kind(store.snapshot(&snapshots[0]).await), NotFound);
        assert_eq!(contents(&store, &there(&snapshots[0], "a")).await.unwrap(), "0");
        sim.sleep(Duration::from_mins(10)).await;
        assert_eq!(letters(&store.move_group(&moved, &root).await.unwrap()), "M");
        assert_eq!(contents(&store, &snapshots[0]).await.unwrap(), "0");
    });
}

/// Proves I6.
#[test]
fn a_manifest_whose_put_was_dropped_counts_as_pending() {
    let sim = SimRuntime::new(4);
    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
    sim.block_on(async {
        let place: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::clone(&runtime)));
        let snapshots = prepared(&place).await;
        let faulty = Arc::new(FaultBackend::new(Arc::clone(&place)));
        let backend: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faulty);
        let store = opened(&backend).await;
        let slow = Action::Delay(Duration::from_hours(1));
        faulty.add(Rule::on(Method::Put, slow).keys(|key| matches!(key, Key::Manifest(_))).nth(1));
        {
            let mut moving = pin!(Task::Move.run(&store));
            let mut end = pin!(runtime.sleep(Duration::from_mins(1)));
            futures::future::select(&mut moving, &mut end).await;
        }
        assert_eq!(faulty.fired(), 1, "the put is in flight");
        faulty.clear();
        assert_eq!(letters(&Task::Move.run(&store).await.unwrap()), "BNN");
        runtime.sleep(Duration::from_mins(31)).await;
        check_resumed(&store, place.as_ref(), Task::Move, &snapshots, "dropped").await;
    });
}

/// Proves H44.
#[test]
fn a_move_that_fails_before_its_first_copy_leaves_no_owner_at_the_destination() {
    block_on(async {
        for method in [Method::Put, Method::Copy] {
            let place = memory(3);
            prepared(&place).await;
            let faulty = Arc::new(FaultBackend::new(Arc::clone(&place)));
            let backend: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faulty);
            let store = opened(&backend).await;
            faulty.add(Rule::on(method, Action::FailBefore(ErrorKind::Denied)));
            _ = Task::Move.run(&store).await;
            assert!(faulty.fired() > 0);
            faulty.clear();
            assert_eq!(store.groups(&space("b")).await.unwrap(), [], "{method:?}");
            let somebody = "you@pam".parse().unwrap();
            let backup = store.backup(&group("ns/b/vm/1")).owner(somebody).begin().await.unwrap();
            backup.finish().await.unwrap();
        }
    });
}

/// Proves H52.
#[test]
fn a_different_snapshot_at_the_destination_is_not_replaced() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            store.create_namespace(&space("a")).await.unwrap();
            let ours = back_up(&store, "vm/1", 0).await.name().clone();
            days(&store, "vm/1", 1, 2).await;
            let backup = store.backup(&group("ns/a/vm/1")).time(at(0)).begin().await.unwrap();
            backup.blob("app.conf", "other").await.unwrap();
            let theirs = backup.finish().await.unwrap().snapshot.name().clone();
            for done in [
                store.copy_group(&group("vm/1"), &space("a")).await.unwrap(),
                store.move_group(&group("vm/1"), &space("a")).await.unwrap(),
            ] {
                assert_eq!((letters(&done).as_str(), done.is_complete()), ("FN", false));
            }
            assert_eq!(contents(&store, &ours).await.unwrap(), "0");
            assert_eq!(store.snapshot(&theirs).await.unwrap().blob("app.conf.blob").await.unwrap(), "other");
            // A different unfinished snapshot is in the way too.
            store.delete_snapshot(&theirs).await.unwrap();
            place.write(&format!("{theirs}/app.conf.blob"), "half").await;
            let done = store.move_group(&group("vm/1"), &space("a")).await.unwrap();
            assert_eq!(letters(&done), "FN");
            assert_eq!(contents(&store, &ours).await.unwrap(), "0");
            assert_eq!(place.read(&format!("{theirs}/app.conf.blob")).await.unwrap(), "half");
            place.remove(&format!("{theirs}/app.conf.blob")).await;
            let done = store.move_group(&group("vm/1"), &space("a")).await.unwrap();
            assert_eq!((letters(&done).as_str(), done.is_complete()), ("MM", true));
        })
    });
}

/// Proves H54.
#[test]
fn a_group_is_not_moved_while_a_reader_or_writer_uses_it() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            store.create_namespace(&space("a")).await.unwrap();
            let vm = group("vm/1");
            let snapshots = days(&store, "vm/1", 0, 3).await;
            let reader = store.snapshot(&snapshots[1]).await.unwrap();
            let done = store.copy_group(&vm, &space("a")).await.unwrap();
            assert_eq!(letters(&done), "CCC", "who reads does not mind");
            prune::plan_deletion(&store, &Scope::Group(group("ns/a/vm/1")), PruneOptions::default())
                .await
                .unwrap()
                .execute()
                .await
                .unwrap();
            let done = store.move_group(&vm, &space("a")).await.unwrap();
            assert_eq!((letters(&done).as_str(), done.is_complete()), ("MBN", false));
            assert_eq!(contents(&store, &snapshots[1]).await.unwrap(), DAY.to_string());
            drop(reader);
            // A base, and the group in which a backup is running.
            let base = store.snapshot(&snapshots[2]).await.unwrap();
            let backup = store.backup(&vm).time(at(9 * DAY)).begin().await.unwrap();
            let data = Cursor::new((2 * DAY).to_string().into_bytes());
            backup.stream("data.bin", data).base(&base).await.unwrap();
            backup.blob("app.conf", "x").await.unwrap();
            assert_eq!(kind(store.move_group(&vm, &space("a")).await), ErrorKind::Busy);
            let done = store.copy_group(&vm, &space("a")).await.unwrap();
            assert_eq!(letters(&done), "CCU", "a backup that is running is not there yet");
            drop(base);
            let last = backup.finish().await.unwrap().snapshot.name().clone();
            let done = store.move_group(&vm, &space("a")).await.unwrap();
            assert_eq!((letters(&done).as_str(), done.is_complete()), ("MMM", true));
            assert_eq!(store.snapshot(&there(&last, "a")).await.unwrap().manifest().files().len(), 2);
        })
    });
}

#[test]
fn a_move_waits_for_a_lock_that_is_held_briefly() {
    let sim = SimRuntime::new(2 << 20);
    let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
    sim.block_on(async {
        let place: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::clone(&runtime)));
        let snapshots = prepared(&place).await;
        let store = opened(&place).await;
        let reader = store.snapshot(&snapshots[1]).await.unwrap();
        let give_back = async {
            runtime.sleep(Duration::from_millis(300)).await;
            drop(reader);
        };
        let (done, ()) = futures::join!(Task::Move.run(&store), give_back);
        assert!(done.unwrap().is_complete());
    });
}

/// Proves H46.
#[test]
fn changes_of_notes_during_a_move_are_moved_or_refused() {
    for delay in 0..120 {
        let sim = SimRuntime::new(delay + (3 << 20));
        let runtime: Arc<dyn Runtime> = Arc::new(sim.clone());
        sim.block_on(async {
            let place: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::clone(&runtime)));
            let snapshots = prepared(&place).await;
            let faulty = Arc::new(FaultBackend::new(Arc::clone(&place)));
            let backend: Arc<dyn Backend> = Arc::<FaultBackend>::clone(&faulty);
            let store = opened(&backend).await;
            faulty.add(Rule::on_any(Action::Delay(Duration::from_millis(10))));
            let change = async {
                runtime.sleep(Duration::from_millis(10 * delay + 5)).await;
                store.set_notes(&snapshots[0], "new notes").await
            };
            let (done, changed) = futures::join!(Task::Move.run(&store), change);
            assert!(done.unwrap().is_complete());
            let moved = store.snapshot(&there(&snapshots[0], "b")).await.unwrap();
            assert_eq!(moved.manifest().notes() == Some("new notes"), changed.is_ok(), "{delay}");
            assert!(store.snapshot(&snapshots[0]).await.is_err(), "the manifest is not put back");
        });
    }
}

#[test]
fn leftovers_of_a_dead_writer_do_not_keep_the_source_group() {
    everywhere(|place| {
        Box::pin(async move {
            let store = place.store().await;
            store.create_namespace(&space("a")).await.unwrap();
            let first = back_up(&store, "vm/1", 0).await.name().clone();
            let lost = first.group().snapshot(BackupTime::try_from(at(DAY)).unwrap());
            place.write(&format!("{lost}/a.blob"), "half").await;
            let done = store.copy_group(first.group(), &space("a")).await.unwrap();
            assert_eq!(letters(&done), "CU");
            let done = store.move_group(first.group(), &space("a")).await.unwrap();
            // Where locks do not reach all processes, its writer may be alive.
            let is_dead = place.capabilities().lock_reach != LockReach::Process;
            assert_eq!(
                (letters(&done).as_str(), done.is_complete()),
                (if is_dead { "MG" } else { "MU" }, true)
            );
            assert_eq!(done.groups[0].source_gone, is_dead);
            assert_eq!(names(&store, &group("ns/a/vm/1")).await, [there(&first, "a")]);
        })
    });
}

/// Proves H47.
#[test]
fn protection_of_an_unfinished_snapshot_can_be_removed() {
    block_on(async {
        let place = memory(3);
        let store = new_store(&place, &[]).await;
        let lost: SnapshotName = "vm/1/2025-07-14T14:20:02Z".parse().unwrap();
        assert_eq!(kind(store.set_protection(&lost, Protection::Off).await), ErrorKind::NotFound);
        place.put(&Key::Protected(lost.clone()), Bytes::new(), PutMode::Create).await.unwrap();
        assert_eq!(kind(store.set_protection(&lost, Protection::On).await), ErrorKind::NotFound);
        store.set_protection(&lost, Protection::Off).await.unwrap();
        assert_eq!(paths(place.as_ref()).await, Vec::<String>::new());
    });
}

/// Proves H58.
#[test]
fn a_move_stores_the_manifest_last_and_deletes_it_first() {
    block_on(async {
        let record = Arc::new(RecordingBackend::new(memory(100)));
        let place: Arc<dyn Backend> = Arc::<RecordingBackend>::clone(&record);
        let snapshots = prepared(&place).await;
        record.reset();
        let store = opened(&place).await;
        assert!(Task::Move.run(&store).await.unwrap().is_complete());
        let calls = record.calls();
        for name in &snapshots {
            let target = Key::Manifest(there(name, "b"));
            let is_of = |key: &Key, name: &SnapshotName| Prefix::Snapshot(name.clone()).contains(key);
            let position = |wanted: &dyn Fn(&larder::internal::record::Call) -> bool| {
                calls.iter().position(wanted).unwrap()
            };
            let published = position(&|call| call.method == Method::Put && call.keys.contains(&target));
            let pending_moves = position(&|call| {
                call.method == Method::RecordMoves
                    && call.keys.iter().any(|key| is_of(key, &there(name, "b")))
            });
            let removed = position(&|call| {
                call.method == Method::Delete && call.keys.contains(&Key::Manifest(name.clone()))
            });
            let first = position(&|call| {
                matches!(call.method, Method::Copy | Method::Put)
                    && call.keys.iter().any(|key| is_of(key, &there(name, "b")))
            });
            let last = calls.iter().rposition(|call| {
                matches!(call.method, Method::Copy | Method::Put)
                    && call.keys.iter().any(|key| is_of(key, &there(name, "b")))
            });
            let first_removed = position(&|call| {
                call.method == Method::Delete && call.keys.iter().any(|key| is_of(key, name))
            });
            assert!(pending_moves < first && first < published && published < removed, "{name}");
            assert_eq!(last, Some(published));
            assert_eq!(first_removed, removed);
            let barriers = |from: usize, to: usize| {
                calls[from..to].iter().filter(|call| call.method == Method::Barrier).count()
            };
            assert!(barriers(first, published) > 0 && barriers(published, removed) > 0);
        }
    });
}

/// A store as it should be: the snapshots of each group, and whether each is protected.
type Model = BTreeMap<String, BTreeMap<u64, bool>>;

async fn check_model(store: &Datastore, model: &Model, spaces: &[&str], note: &str) {
    let mut found = Model::new();
    for namespace in store.namespaces(&Namespace::root()).await.unwrap() {
        assert!(spaces.contains(&namespace.to_string().as_str()), "{note}: {namespace}");
        for group in store.groups(&namespace).await.unwrap() {
            let mut of_group = BTreeMap::new();
            for info in store.snapshots(&group).await.unwrap() {
                assert_eq!(info.state, SnapshotState::Finished, "{note}");
                let seconds = SystemTime::from(info.name.time()).duration_since(at(0)).unwrap().as_secs();
                assert_eq!(contents(store, &info.name).await.unwrap(), seconds.to_string(), "{note}");
                of_group.insert(seconds, info.protected);
            }
            assert!(store.owner(&group).await.unwrap().is_some(), "{note}: {group}");
            found.insert(group.to_string(), of_group);
        }
    }
    assert_eq!(found, *model, "{note}");
}

/// Numbers that look drawn, from a seed.
struct Draw(u64);

impl Draw {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % count as u64).unwrap()
    }
}

const SPACES: [&str; 4] = ["", "a", "b", "a/c"];
const PREFIXES: [&str; 4] = ["", "ns/a/", "ns/b/", "ns/a/ns/c/"];

/// One change, drawn, of the store and of the model.
async fn change(store: &Datastore, model: &mut Model, draw: &mut Draw, step: u64) {
    let (from, to) = (draw.below(4), draw.below(4));
    let id = ["vm/1", "vm/10"][draw.below(2)];
    let name = format!("{}{id}", PREFIXES[from]);
    match draw.below(7) {
        0 | 1 => {
            back_up(store, &name, step * DAY).await;
            model.entry(name).or_default().insert(step * DAY, false);
        }
        2 => {
            let Some(of_group) = model.get_mut(&name) else { return };
            let number = draw.below(of_group.len());
            let (seconds, protected) = of_group.iter_mut().nth(number).unwrap();
            *protected = !*protected;
            let snapshot = group(&name).snapshot(BackupTime::try_from(at(*seconds)).unwrap());
            let wanted = if *protected { Protection::On } else { Protection::Off };
            store.set_protection(&snapshot, wanted).await.unwrap();
        }
        3 => {
            let Some(of_group) = model.get_mut(&name) else { return };
            let scope = Scope::Group(group(&name));
            prune::plan_deletion(store, &scope, PruneOptions::default())
                .await
                .unwrap()
                .execute()
                .await
                .unwrap();
            of_group.retain(|_, protected| *protected);
        }
        4 => {
            let options = PruneOptions::default().rules(RetentionRules::default().keep_last(2));
            let scope = Scope::Tree(Namespace::root());
            prune::plan(store, &scope, options).await.unwrap().execute().await.unwrap();
            for of_group in model.values_mut() {
                let unprotected = of_group.iter().rev().filter(|(_, protected)| !**protected);
                let kept: Vec<_> = unprotected.take(2).map(|(seconds, _)| *seconds).collect();
                of_group.retain(|seconds, protected| *protected || kept.contains(seconds));
            }
        }
        operation => {
            let target = format!("{}{id}", PREFIXES[to]);
            relocate(store, model, &name, (&target, SPACES[to]), operation == 6).await;
        }
    }
    model.retain(|_, of_group| !of_group.is_empty());
}

async fn relocate(store: &Datastore, model: &mut Model, name: &str, to: (&str, &str), is_copy: bool) {
    let (source, there) = (model.get(name).cloned(), model.get(to.0).cloned().unwrap_or_default());
    let (from, target) = (group(name), space(to.1));
    let done =
        if is_copy { store.copy_group(&from, &target).await } else { store.move_group(&from, &target).await };
    let source = source.unwrap_or_default();
    let new = source.keys().find(|seconds| !there.contains_key(seconds));
    let is_in_order = match (new, there.keys().next_back()) {
        (Some(oldest), Some(newest)) => oldest > newest,
        _ => true,
    };
    if name == to.0 || source.is_empty() || !is_in_order {
        assert!(done.is_err(), "{name} to {to:?}");
        return;
    }
    assert!(done.unwrap().is_complete(), "{name} to {to:?}");
    let merged = model.entry(to.0.to_owned()).or_default();
    for (seconds, protected) in source {
        let is_new = !merged.contains_key(&seconds);
        *merged.entry(seconds).or_default() |= protected && (is_new || !is_copy);
    }
    if !is_copy {
        model.remove(name);
    }
}

/// Proves H43.
#[test]
fn random_copies_moves_and_deletions_match_a_model() {
    let scratch = larder_testing::scratch();
    for seed in 0..24 {
        println!("seed {seed}");
        block_on(async {
            let place = if seed % 4 == 0 {
                directory(runtime(), &scratch.path().join(seed.to_string())).await
            } else {
                memory(usize::try_from(seed).unwrap() % 3 + 1)
            };
            let store = new_store(&place, &SPACES[1..]).await;
            let (mut draw, mut model) = (Draw(seed), Model::new());
            for step in 0..40 {
                change(&store, &mut model, &mut draw, step).await;
                check_model(&store, &model, &SPACES, &format!("seed {seed}, step {step}")).await;
            }
            check_model(&opened(&place).await, &model, &SPACES, "opened again").await;
        });
    }
}

/// Proves H13.
#[test]
fn a_move_that_cannot_read_the_manifest_loses_no_file_that_listings_do_not_show() {
    block_on(async {
        let faulty = Arc::new(FaultBackend::new(memory(1000)));
        let watched = Watched::bucket(Arc::<FaultBackend>::clone(&faulty));
        let backend = Arc::clone(&watched) as Arc<dyn Backend>;
        let store = new_store(&backend, &["a"]).await;
        let name = back_up(&store, "vm/1", DAY).await.name().clone();
        let index = Key::Archive(name.clone(), "data.bin.didx".parse().unwrap());
        let bytes = backend.get(&index, u64::MAX).await.unwrap().bytes;
        watched.hide_what_is_new();
        backend.put(&index, bytes, PutMode::Replace).await.unwrap();

        let lost = Rule::on(Method::Get, Action::FailBefore(ErrorKind::Unavailable));
        faulty.add(lost.keys(|key| matches!(key, Key::Manifest(_))).first(1));
        let moved = store.move_group(&group("vm/1"), &space("a")).await.unwrap();
        assert_eq!((letters(&moved).as_str(), faulty.fired()), ("F", 1));
        let moved = store.move_group(&group("vm/1"), &space("a")).await.unwrap();
        assert_eq!(letters(&moved), "M");
        watched.show_all();
        assert_eq!(contents(&store, &there(&name, "a")).await, Ok(DAY.to_string()));
    });
}
