//! Hazards of snapshots, groups and their metadata in a bucket (section B of the hazards).

use futures::executor::block_on;
use futures::future;
use futures::io::Cursor;
use larder::error::{ErrorKind, Result};
use larder::format::name::{GroupName, SnapshotName};
use larder::store::{Datastore, DirtyMap, Protection};
use larder_testing::fault_server;
use larder_testing::fault_server::{Action, FaultServer, Options as ServerOptions, Rule};
use larder_testing::s3_store;
use larder_testing::s3_store::{
    CHUNK, Opening, Process, back_up, back_up_on, check, check_all, data, fresh, group, inside, keys, kind,
    opened_again, requests, small, user, view,
};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Proves H45.
#[test]
fn an_empty_owner_gives_access_to_no_user() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        small(&process.store, &group()).await;
        server.put("store/.cnt/vm/1/owner", "");
        assert_eq!(kind(process.store.owner(&group()).await), ErrorKind::Corrupt);
        let begun = process.store.backup(&group()).owner(user("a@pbs")).begin().await;
        assert_eq!(kind(begun), ErrorKind::Corrupt);
        process.close().await;
    });
}

/// Proves H47.
#[test]
fn a_failed_change_of_protection_keeps_the_acknowledged_state() {
    for fault in [Action::status(403, "AccessDenied"), Action::ExecuteThenDrop] {
        for has_local in [false, true] {
            let server = FaultServer::start(ServerOptions::default());
            let directory = larder_testing::scratch();
            block_on(async {
                let opening = Opening::of("store");
                let opening = if has_local { opening.local(directory.path()) } else { opening };
                let process = opening.open(&server).await.unwrap();
                let name = small(&process.store, &group()).await;
                if has_local {
                    process.store.refresh().await.unwrap();
                }
                let protected = || async { process.store.snapshot_info(&name).await.unwrap().protected };
                let other = fresh(&server).await;
                for (method, wish) in [("PUT", Protection::On), ("DELETE", Protection::Off)] {
                    let rule = Rule::on(method).path(|path| path.ends_with(".protected"));
                    server.add(rule.then(fault.clone()));
                    process.store.set_protection(&name, wish).await.unwrap_err();
                    server.clear();
                    let uncached = other.store.snapshot_info(&name).await.unwrap().protected;
                    assert_eq!(protected().await, uncached, "{fault:?}");
                    match process.store.set_protection(&name, wish).await {
                        Ok(()) => assert_eq!(protected().await, wish == Protection::On),
                        Err(error) => assert_eq!(error.kind(), ErrorKind::Busy),
                    }
                }
                process.close().await;
            });
        }
    }
}

/// Proves H38.
#[test]
fn an_unfinished_snapshot_is_invisible_and_removed_after_its_writer_died() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let base = back_up(&process.store, &group(), 0).await.unwrap();
        let left: SnapshotName = "vm/1/2038-01-01T00:00:00Z".parse().unwrap();
        for name in ["a.conf.blob", "disk.img.fidx", "client.log.blob"] {
            server.put(&format!("store/.cnt/{left}/{name}"), "torn");
        }
        assert_eq!(process.store.latest(&group()).await.unwrap().as_ref(), Some(base.name()));
        assert_eq!(kind(process.store.snapshot(&left).await), ErrorKind::NotFound);
        assert_eq!(kind(process.store.set_notes(&left, "x").await), ErrorKind::NotFound);
        assert_eq!(kind(process.store.set_protection(&left, Protection::On).await), ErrorKind::NotFound);
        // While a backup is running, its parts are no leftovers for another one, whatever group it is of.
        let running = process.store.backup(&"vm/2".parse().unwrap()).begin().await.unwrap();
        running.blob("app.conf", "text").await.unwrap();
        assert_eq!(kind(process.store.backup(running.name().group()).begin().await), ErrorKind::Busy);
        let snapshot = back_up_on(&process.store, &group(), 1, Some(&base)).await.unwrap();
        assert_eq!(keys(&server, "2038"), [] as [&str; 0]);
        check(&snapshot).await.unwrap();
        running.finish().await.unwrap();
        drop((base, snapshot));
        process.close().await;
    });
}

/// Proves H37, H39.
#[test]
fn a_manifest_lists_only_files_stored_by_its_own_backup() {
    for harm in ["removed", "replaced"] {
        for (file, at_index) in [("app.conf.blob", false), ("app.conf.blob", true), ("disk.img.fidx", true)] {
            let server = Arc::new(FaultServer::start(ServerOptions::default()));
            block_on(async {
                let process = fresh(&server).await;
                let backup = process.store.backup(&group()).begin().await.unwrap();
                let (bytes, size) = (data(0), data(0).len() as u64);
                backup.image("disk.img", Cursor::new(bytes), size).chunk_bytes(CHUNK).await.unwrap();
                backup.blob("app.conf", "text").await.unwrap();
                let key = format!("store/.cnt/{}/{file}", backup.name());
                let within = inside(&server);
                let hurt = move || match harm {
                    "removed" => within().remove(&key),
                    _ => within().put(&key, "other"),
                };
                if at_index {
                    // After the indexes are stored, and before the manifest is: what is looked at last is this very file.
                    let is_it = move |path: &str| {
                        if path.ends_with(file) {
                            hurt();
                        }
                        false
                    };
                    server.add(Rule::on("HEAD").path(is_it));
                } else {
                    hurt();
                }
                assert_eq!(kind(backup.finish().await), ErrorKind::Conflict, "{file} {harm}");
                server.clear();
                assert_eq!(keys(&server, "index.json.blob"), [] as [&str; 0]);
                let snapshot = back_up(&process.store, &group(), 1).await.unwrap();
                check(&snapshot).await.unwrap();
                drop(snapshot);
                process.close().await;
            });
        }
    }
}

/// Proves H42.
#[test]
fn an_interrupted_deletion_leaves_a_whole_snapshot_or_none() {
    let (mut whole, mut gone) = (0, 0);
    for step in 1.. {
        let server = FaultServer::start(ServerOptions::default());
        let open = || Opening::of("store").instance("1").open(&server);
        let ended = block_on(async {
            let process = open().await.unwrap();
            let name = back_up(&process.store, &group(), 0).await.unwrap().name().clone();
            process.backend.crash_at(process.backend.steps() + step);
            let deleted = process.store.delete_snapshot(&name).await;
            drop(process);
            let next = open().await.unwrap();
            match next.store.snapshot(&name).await {
                Ok(snapshot) => {
                    check(&snapshot).await.unwrap();
                    whole += 1;
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NotFound, "step {step}");
                    gone += 1;
                }
            }
            // The dead process may have been storing the manifest.
            if let Err(error) = next.store.delete_group(&group()).await {
                assert_eq!(error.kind(), ErrorKind::Busy, "step {step}: {error}");
                next.clock.leap(32 * 60);
                next.store.delete_group(&group()).await.unwrap();
            }
            assert_eq!(keys(&server, ".cnt"), [] as [&str; 0], "step {step}");
            next.close().await;
            deleted.is_ok()
        });
        if ended {
            assert!(whole >= 1 && gone >= 3, "{whole} times whole, {gone} times gone");
            return;
        }
    }
}

/// Proves H46.
#[test]
fn concurrent_changes_of_one_manifest_are_all_kept() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let name = back_up(&process.store, &group(), 0).await.unwrap().name().clone();
        let changes = (0..8).map(|number| process.store.set_notes(&name, ["0", "0\n"][number % 2]));
        let (notes, protected) =
            future::join(future::join_all(changes), process.store.set_protection(&name, Protection::On))
                .await;
        assert!(notes.iter().all(Result::is_ok), "{notes:?}");
        protected.unwrap();
        let stored = requests(&server, 0, "PUT", "index.json.blob");
        assert!(stored[1..].iter().all(|put| put.header("if-match").is_some()));
        let snapshot = process.store.snapshot(&name).await.unwrap();
        assert_eq!(snapshot.manifest().notes().map(str::trim), Some("0"));
        assert!(process.store.snapshot_info(&name).await.unwrap().protected);
        assert_eq!(
            (snapshot.manifest().files().len(), s3_store::restored(&snapshot).await.unwrap()),
            (2, data(0))
        );
        drop(snapshot);
        process.close().await;
    });
}

/// Proves H46.
#[test]
fn a_manifest_changed_by_another_process_is_not_overwritten() {
    let server = Arc::new(FaultServer::start(ServerOptions::default()));
    block_on(async {
        let process = fresh(&server).await;
        let name = back_up(&process.store, &group(), 0).await.unwrap().name().clone();
        let key = format!("store/.cnt/{name}/index.json.blob");
        let (within, theirs) = (inside(&server), server.objects()[&key].clone());
        let is_put = move |path: &str| {
            if path.ends_with("index.json.blob") {
                // Of the same contents, and yet not the one that was read.
                within().put(&key, theirs.clone());
            }
            false
        };
        server.add(Rule::on("PUT").path(is_put));
        assert_eq!(kind(process.store.set_notes(&name, "lost").await), ErrorKind::Conflict);
        server.clear();
        check(&process.store.snapshot(&name).await.unwrap()).await.unwrap();
        process.close().await;
    });
}

/// Proves H48, H50.
#[test]
fn an_aborted_operation_leaves_the_bucket_unchanged() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let before = keys(&server, ".cnt");
        for parts in 0..4 {
            for is_dropped in [false, true] {
                let backup = process.store.backup(&group()).begin().await.unwrap();
                for part in 0..parts {
                    backup.blob(&format!("{part}.conf"), "text").await.unwrap();
                }
                if parts == 3 {
                    backup.client_log("log").await.unwrap();
                    let (bytes, size) = (data(0), data(0).len() as u64);
                    backup.image("disk.img", Cursor::new(bytes), size).chunk_bytes(CHUNK).await.unwrap();
                }
                if is_dropped {
                    drop(backup);
                    // It is removed in the background.
                    let empty = || keys(&server, ".cnt").is_empty();
                    for _ in 0..500 {
                        process.clock_sleep(Duration::from_millis(if empty() { 0 } else { 10 })).await;
                    }
                } else {
                    backup.abort().await.unwrap();
                }
                assert_eq!(keys(&server, ".cnt"), before, "{parts} parts");
            }
        }
        assert_eq!(server.violations(), [] as [String; 0], "nobody asks to delete nothing");
        process.close().await;
    });
}

/// Proves H49, H53.
#[test]
fn successive_backups_get_different_names() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let mut names = Vec::new();
        for _ in 0..20 {
            names.push(small(&process.store, &group()).await);
        }
        let listed = process.store.snapshots(&group()).await.unwrap();
        assert_eq!(
            listed.iter().map(|info| &info.name).collect::<Vec<_>>(),
            names.iter().collect::<Vec<_>>()
        );
        // A clock that went back makes no snapshot that is older than the newest.
        process.clock.set_off(-2 * 24 * 3600);
        assert_eq!(kind(process.store.backup(&group()).begin().await), ErrorKind::Conflict);
        process.clock.set_off(-5);
        assert!(small(&process.store, &group()).await > *names.last().unwrap());
        // One that went far ahead is bounded too: names have a fixed width.
        let far = SystemTime::UNIX_EPOCH + Duration::from_hours(24 * 365 * 9_000);
        let begun = process.store.backup(&"vm/3".parse().unwrap()).time(far).begin().await;
        assert_eq!(kind(begun), ErrorKind::InvalidInput);
        process.clock.set_off(0);
        process.close().await;
    });
}

/// Proves H52.
#[test]
fn a_snapshot_is_never_replaced_by_another_of_the_same_name() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let name = back_up(&process.store, &group(), 0).await.unwrap().name().clone();
        let begun = process.store.backup(&group()).time(name.time().into()).begin().await;
        assert!(matches!(kind(begun), ErrorKind::AlreadyExists | ErrorKind::InvalidInput));
        // Of two who get as far as that, one finds the manifest of the other.
        let backup = process.store.backup(&group()).begin().await.unwrap();
        backup.blob("app.conf", "ours").await.unwrap();
        let key = format!("store/.cnt/{}/index.json.blob", backup.name());
        let theirs = server.objects()[&format!("store/.cnt/{name}/index.json.blob")].clone();
        server.put(&key, theirs.clone());
        assert_eq!(kind(backup.finish().await), ErrorKind::AlreadyExists);
        assert_eq!(server.objects()[&key], theirs);
        check(&process.store.snapshot(&name).await.unwrap()).await.unwrap();
        process.close().await;
    });
}

/// Proves H54.
#[test]
fn a_base_deleted_or_changed_during_a_backup_fails_it_or_leaves_it_whole() {
    for stage in 0..3 {
        let server = FaultServer::start(ServerOptions::default());
        block_on(async {
            let process = fresh(&server).await;
            let base = back_up(&process.store, &group(), 0).await.unwrap();
            let (manifest, index) = ("index.json.blob", "disk.img.fidx");
            let object = |name: &str| format!("store/.cnt/{}/{name}", base.name());
            let backup = process.store.backup(&group()).begin().await.unwrap();
            if stage == 0 {
                let mut damaged = server.objects()[&object(index)].clone();
                *damaged.last_mut().unwrap() ^= 1;
                server.put(&object(index), damaged);
            }
            if stage == 1 {
                server.remove(&object(manifest));
            }
            let (bytes, size) = (data(0), data(0).len() as u64);
            let image = backup.image("disk.img", Cursor::new(bytes), size).chunk_bytes(CHUNK);
            let image = image.base(&base).dirty(DirtyMap::new()).await;
            if stage < 2 {
                assert!(matches!(kind(image), ErrorKind::Corrupt | ErrorKind::NotFound), "stage {stage}");
                backup.abort().await.unwrap();
            } else {
                image.unwrap();
                // Nobody of this store takes it away meanwhile.
                assert_eq!(kind(process.store.delete_snapshot(base.name()).await), ErrorKind::Busy);
                server.remove(&object(manifest));
                assert_eq!(kind(backup.finish().await), ErrorKind::Conflict);
            }
            let made = keys(&server, manifest).len();
            assert_eq!(made, usize::from(stage == 0), "only that of the base, if any");
            drop(base);
            process.close().await;
        });
    }
}

/// Stops the next listing of the group in the middle, runs another operation, or begins one that waits for the deletion, and returns the result of
/// the deletion.
async fn meanwhile(
    server: &FaultServer,
    process: &Process,
    change: impl Future<Output = ()>,
    waits: bool,
) -> Result<larder::store::Deletion> {
    // It is answered as it was at first.
    server.add(Rule::list().nth(1).then(Action::DelayUntilReleased));
    let before = server.log().len();
    let changed = async {
        let listed =
            |log: &[fault_server::Logged]| log[before..].iter().any(|line| line.query.contains("list-type"));
        while !listed(&server.log()) {
            process.clock_sleep(Duration::from_millis(1)).await;
        }
        let change = Box::pin(change);
        if waits {
            let moment = Box::pin(process.clock_sleep(Duration::from_millis(50)));
            let future::Either::Right(((), waiting)) = future::select(change, moment).await else {
                panic!("it did not wait for the deletion")
            };
            server.release();
            waiting.await;
        } else {
            change.await;
            server.release();
        }
    };
    let (deleted, ()) = future::join(process.store.delete_group(&group()), changed).await;
    server.clear();
    deleted
}

/// Proves H56.
#[test]
fn a_deletion_obeys_changes_since_its_listing() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let store = &process.store;
        let name = back_up(store, &group(), 0).await.unwrap().name().clone();
        let protected = async { store.set_protection(&name, Protection::On).await.unwrap() };
        let done = meanwhile(&server, &process, protected, false).await.unwrap();
        assert_eq!((done.deleted.len(), &done.protected[..]), (0, &[name.clone()][..]));
        store.set_protection(&name, Protection::Off).await.unwrap();
        let reader = std::cell::RefCell::new(None);
        let opened = async { *reader.borrow_mut() = Some(store.snapshot(&name).await.unwrap()) };
        assert_eq!(kind(meanwhile(&server, &process, opened, false).await), ErrorKind::Busy);
        check(&reader.take().unwrap()).await.unwrap();
        // A backup that begins meanwhile waits until the group is deleted, and creates it again.
        let begun = async { drop(back_up(store, &group(), 1).await.unwrap()) };
        let done = meanwhile(&server, &process, begun, true).await.unwrap();
        assert_eq!(done.deleted, [name]);
        assert_eq!(check_all(store, &group()).await.unwrap(), 1);
        assert!(store.owner(&group()).await.unwrap().is_some());
        process.close().await;
    });
}

/// Every change that there is, one after the other.
async fn change(store: &Datastore, number: usize) -> Result<()> {
    let other: GroupName = "vm/2".parse().unwrap();
    let of_other = async || {
        let found = store.snapshots(&other).await.unwrap().pop();
        found.map_or_else(|| "vm/2/2020-01-01T00:00:00Z".parse().unwrap(), |info| info.name)
    };
    match number {
        0 => store.create_namespace(&"space".parse().unwrap()).await,
        1 => {
            let backup = store.backup(&other).begin().await?;
            match backup.blob("app.conf", "text").await {
                Ok(_) => backup.finish().await.map(drop),
                Err(error) => {
                    backup.abort().await?;
                    Err(error)
                }
            }
        }
        2 => store.set_owner(&other, &user("a@pbs")).await,
        3 => store.set_group_notes(&other, "notes").await,
        4 => store.set_notes(&of_other().await, "1").await,
        5 => store.set_protection(&of_other().await, Protection::On).await,
        6 => store.set_protection(&of_other().await, Protection::Off).await,
        7 => store.set_group_notes(&other, "").await,
        8 => store.delete_snapshot(&of_other().await).await,
        _ => store.delete_namespace(&"space".parse().unwrap()).await.map(drop),
    }
}

/// Proves H40.
#[test]
fn metadata_copies_never_differ_from_the_bucket() {
    for fault in [Action::status(403, "AccessDenied"), Action::ExecuteThenDrop] {
        let server = FaultServer::start(ServerOptions::default());
        let directory = larder_testing::scratch();
        block_on(async {
            let process = Opening::of("store").local(directory.path()).open(&server).await.unwrap();
            let other = fresh(&server).await;
            back_up(&process.store, &group(), 0).await.unwrap();
            process.store.refresh().await.unwrap();
            let mut failed = 0;
            for number in 0..10 {
                for nth in 1..4 {
                    // All attempts at one object, the first one, the second one, …
                    let objects = Arc::new(std::sync::Mutex::new(Vec::<String>::new()));
                    let is_nth = move |path: &str| {
                        let mut objects = objects.lock().unwrap();
                        let is_data = path.contains(".cnt") && !path.contains("list-type");
                        if is_data && !objects.iter().any(|found| found == path) {
                            objects.push(path.to_owned());
                        }
                        objects.get(nth - 1).is_some_and(|found| found == path)
                    };
                    let is_nth = Arc::new(is_nth);
                    for method in ["PUT", "DELETE"] {
                        let is_nth = Arc::clone(&is_nth);
                        server.add(Rule::on(method).path(move |path| is_nth(path)).then(fault.clone()));
                    }
                    let changed = change(&process.store, number).await;
                    server.clear();
                    let what = format!("change {number}, object {nth}, {fault:?}: {changed:?}");
                    assert_eq!(view(&process.store).await, view(&other.store).await, "{what}");
                    if changed.is_ok() {
                        break;
                    }
                    failed += 1;
                    process.store.refresh().await.unwrap();
                }
                // No request is in doubt any more.
                process.clock.leap(31 * 60);
                let _ = change(&process.store, number).await;
                assert_eq!(view(&process.store).await, view(&other.store).await, "change {number}");
            }
            assert!(failed >= 8, "{failed}");
            // A group that lost its last snapshot and could not be removed goes when it is asked for.
            process.store.delete_group(&"vm/2".parse().unwrap()).await.unwrap();
            assert_eq!(keys(&server, ".cnt/vm/2"), [] as [&str; 0], "{fault:?}");
            process.close().await;
        });
    }
}

/// Proves H40, H41.
#[test]
fn a_crash_between_a_put_and_its_local_copy_leaves_the_value_of_the_bucket() {
    let mut crashes = 0;
    for number in 0..10 {
        for step in 1.. {
            let server = FaultServer::start(ServerOptions::default());
            let directory = larder_testing::scratch();
            let ended = block_on(async {
                let open = || Opening::of("store").local(directory.path()).open(&server);
                let process = open().await.unwrap();
                for before in 0..number {
                    change(&process.store, before).await.unwrap();
                }
                process.store.refresh().await.unwrap();
                process.backend.crash_at(process.backend.steps() + step);
                let changed = change(&process.store, number).await;
                crashes += usize::from(changed.is_err());
                drop(process);
                // Background work of the dead process ends by itself.
                let next = opened_again(&server, &Opening::of("store").local(directory.path())).await;
                let other = fresh(&server).await;
                let uncached = view(&other.store).await;
                assert_eq!(view(&next.store).await, uncached, "change {number}, step {step}");
                next.store.refresh().await.unwrap();
                assert_eq!(view(&next.store).await, uncached, "change {number}, step {step}");
                next.close().await;
                changed.is_ok()
            });
            if ended {
                break;
            }
        }
    }
    assert!(crashes >= 15, "{crashes}");
}

/// Proves H115.
///
/// An object is its key and its bytes: listings and copies of many servers lose everything else.
#[test]
fn no_request_stores_object_metadata_or_tags() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        for number in 0..10 {
            change(&process.store, number).await.unwrap();
        }
        process.close().await;
    });
    let log = server.log();
    let stored = log.iter().filter(|request| request.method == "PUT" && request.executed);
    assert!(stored.count() >= 20);
    for (name, value) in log.iter().flat_map(|request| &request.headers) {
        let name = name.to_ascii_lowercase();
        assert!(!name.starts_with("x-amz-meta-") && name != "x-amz-tagging", "{name}: {value}");
    }
}
