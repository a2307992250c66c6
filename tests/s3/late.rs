//! Late requests, late listings and partial answers do not harm snapshots, groups and their metadata
//! in a bucket (H12, H13, H17 to H19).

use futures::executor::block_on;
use futures::future::{Either, select};
use larder::backend::MemoryBackend;
use larder::error::ErrorKind;
use larder::format::name::{Namespace, SnapshotName};
use larder::gc;
use larder::gc::GcOptions;
use larder::rt::ThreadRuntime;
use larder::store::{Datastore, Options, Protection, SnapshotState};
use larder::sync::{self, SyncOptions, SyncOutcome};
use larder_testing::fault_server;
use larder_testing::fault_server::{Action, Etags, FaultServer, Lag, Options as ServerOptions, Quirk, Rule};
use larder_testing::s3_store::{
    LEASE, Opening, back_up, brought, check, fresh, group, keys, kind, opened_again, small, user, view,
};
use std::sync::Arc;
use std::time::Duration;

/// The next request with this method for a key with this end gets no answer, and is executed after a while.
fn late(server: &FaultServer, method: &str, end: &'static str) {
    let rule = Rule::on(method).path(move |path| path.ends_with(end)).first(1);
    server.add(rule.then(Action::ExecuteWhenReleased));
}

/// Waits until each request with this method for a key with this end was executed or refused, the late one too.
fn wait_for_requests(server: &FaultServer, method: &str, end: &str) {
    server.release();
    let is_over = |log: &[fault_server::Logged]| {
        let meant = log.iter().filter(|line| line.method == method && line.path.ends_with(end));
        meant.into_iter().all(|line| line.is_over || line.status.is_some())
    };
    assert!(server.wait(Duration::from_secs(5), is_over), "it never came");
}

/// Proves H17.
#[test]
fn a_snapshot_name_with_a_pending_delete_is_not_reused() {
    for etags in [Etags::Hex, Etags::Md5] {
        for file in ["index.json.blob", "app.conf.blob"] {
            let server = FaultServer::start(ServerOptions { etags, ..ServerOptions::default() });
            block_on(async {
                let process = fresh(&server).await;
                small(&process.store, &"vm/2".parse().unwrap()).await;
                let name = small(&process.store, &group()).await;
                late(&server, "DELETE", file);
                process.store.delete_snapshot(&name).await.unwrap();
                assert_eq!(kind(process.store.snapshot(&name).await), ErrorKind::NotFound);
                let again = async {
                    let backup = process.store.backup(&group()).time(name.time().into()).begin().await?;
                    backup.blob("app.conf", "text").await?;
                    backup.finish().await.map(drop)
                };
                assert_eq!(kind(again.await), ErrorKind::Busy, "{file}");
                // Without a wish for a time, another one is found.
                let next = small(&process.store, &group()).await;
                assert!(next.time() > name.time());
                wait_for_requests(&server, "DELETE", file);
                let snapshot = process.store.snapshot(&next).await.unwrap();
                assert_eq!(snapshot.blob("app.conf.blob").await.unwrap(), "text");
                drop(snapshot);
                // When no request lives that long, the name is free.
                process.clock.leap(31 * 60);
                process.store.delete_snapshot(&next).await.unwrap();
                let backup = process.store.backup(&group()).time(name.time().into()).begin().await.unwrap();
                backup.finish().await.unwrap();
                process.close().await;
            });
        }
    }
}

/// Proves H17, H43.
#[test]
fn an_owner_with_a_pending_delete_is_not_relied_on() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let name = small(&process.store, &group()).await;
        late(&server, "DELETE", "owner");
        process.store.delete_snapshot(&name).await.unwrap();
        let begun = process.store.backup(&group()).begin().await;
        assert_eq!(kind(begun), ErrorKind::Busy, "its owner could vanish");
        wait_for_requests(&server, "DELETE", "owner");
        process.clock.leap(31 * 60);
        small(&process.store, &group()).await;
        assert_eq!(process.store.owner(&group()).await.unwrap(), Some("root@pam".parse().unwrap()));
        process.close().await;
    });
}

/// Proves H17, H47.
#[test]
fn acknowledged_protection_survives_late_requests() {
    for etags in [Etags::Hex, Etags::Md5] {
        let server = FaultServer::start(ServerOptions { etags, ..ServerOptions::default() });
        block_on(async {
            let process = fresh(&server).await;
            let name = small(&process.store, &group()).await;
            process.store.set_protection(&name, Protection::On).await.unwrap();
            late(&server, "DELETE", ".protected");
            process.store.set_protection(&name, Protection::Off).await.unwrap();
            let acknowledged = process.store.set_protection(&name, Protection::On).await;
            assert_eq!(kind(acknowledged), ErrorKind::Busy, "it could not be kept");
            wait_for_requests(&server, "DELETE", ".protected");
            process.clock.leap(31 * 60);
            process.store.set_protection(&name, Protection::On).await.unwrap();
            assert!(process.store.snapshot_info(&name).await.unwrap().protected);
            process.close().await;
        });
    }
}

/// Proves H17.
#[test]
fn acknowledged_notes_survive_late_requests() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        small(&process.store, &group()).await;
        process.store.set_group_notes(&group(), "first").await.unwrap();
        late(&server, "DELETE", "notes");
        process.store.set_group_notes(&group(), "").await.unwrap();
        let acknowledged = process.store.set_group_notes(&group(), "second").await;
        wait_for_requests(&server, "DELETE", "notes");
        let found = process.store.group_notes(&group()).await.unwrap();
        assert_eq!(found, acknowledged.is_ok().then(|| "second".to_owned()));
        process.close().await;
    });
}

/// Proves H17.
#[test]
fn a_snapshot_is_not_deleted_while_its_manifest_may_be_stored_again() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        late(&server, "PUT", "index.json.blob");
        let name = small(&process.store, &group()).await;
        let deleted = process.store.delete_snapshot(&name).await.unwrap_err();
        assert_eq!(deleted.kind(), ErrorKind::Busy, "{deleted}");
        process.store.snapshot(&name).await.unwrap();
        // The lease says so to the next process.
        process.close().await;
        let next = opened_again(&server, &Opening::of("store")).await;
        assert_eq!(kind(next.store.delete_snapshot(&name).await), ErrorKind::Busy);
        wait_for_requests(&server, "PUT", "index.json.blob");
        next.store.snapshot(&name).await.unwrap();
        next.clock.leap(31 * 60);
        next.store.delete_snapshot(&name).await.unwrap();
        assert_eq!(view(&next.store).await, [""]);
        // An answered put is over at once, and one that was executed before it was repeated.
        for _ in 0..2 {
            let name = small(&next.store, &group()).await;
            next.store.delete_snapshot(&name).await.unwrap();
            let rule = Rule::on("PUT").path(|path| path.ends_with("index.json.blob")).first(1);
            server.add(rule.then(Action::ExecuteThenDrop));
        }
        next.close().await;
    });
}

/// A process that dies may have been storing a manifest: an absent one may still arrive, and a recent one once more.
///
/// Proves H17.
#[test]
fn after_a_process_died_no_manifest_is_deleted_that_it_may_have_been_storing() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let mut names = Vec::new();
        for _ in 0..3 {
            names.push(small(&process.store, &group()).await);
        }
        let [old, recent, unfinished] = &names[..] else { panic!("{names:?}") };
        drop(process);
        let manifest = |name: &SnapshotName| format!("store/.cnt/{name}/index.json.blob");
        let late = server.objects()[&manifest(unfinished)].clone();
        server.remove(&manifest(unfinished));
        server.age(&manifest(old), Duration::from_hours(2));
        server.age(&manifest(recent), Duration::from_mins(45));
        server.age(LEASE, Duration::from_secs(70));
        let refuses = async |store: &Datastore| {
            for name in [recent, unfinished] {
                // Three quarters of an hour ago, it may have been stored by an attempt before the last one.
                let refused = store.delete_snapshot(name).await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Busy, "{refused}");
                let wait = refused.retry_after().expect("it ends");
                assert!(wait > Duration::from_mins(28) && wait < Duration::from_mins(32), "{wait:?}");
            }
        };
        let next = fresh(&server).await;
        refuses(&next.store).await;
        next.store.delete_snapshot(old).await.unwrap();
        // The lease says so to the next process.
        next.close().await;
        let next = fresh(&server).await;
        refuses(&next.store).await;
        server.put(&manifest(unfinished), late);
        for name in [recent, unfinished] {
            let snapshot = next.store.snapshot(name).await.unwrap();
            assert_eq!(snapshot.blob("app.conf.blob").await.unwrap(), "text");
        }
        next.clock.leap(32 * 60);
        for name in [recent, unfinished] {
            next.store.delete_snapshot(name).await.unwrap();
        }
        assert_eq!(view(&next.store).await, [""]);
        next.close().await;
    });
}

/// Another store, with a snapshot.
async fn elsewhere() -> (Datastore, SnapshotName) {
    let source = MemoryBackend::new(Arc::new(ThreadRuntime::new()));
    let source = Datastore::create(Arc::new(source), Options::default()).await.unwrap();
    let name = small(&source, &group()).await;
    (source, name)
}

/// The files of a snapshot whose manifest may arrive stay, and a sync transfers it again later.
///
/// Proves H17, H37.
#[test]
fn after_a_process_died_a_sync_removes_no_snapshot_that_it_may_have_been_publishing() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let (source, name) = elsewhere().await;
        let process = fresh(&server).await;
        assert!(brought(&source, &process.store).await);
        drop(process);
        let manifest = format!("store/.cnt/{name}/index.json.blob");
        let late = server.objects()[&manifest].clone();
        server.remove(&manifest);
        server.age(LEASE, Duration::from_secs(70));
        let next = fresh(&server).await;
        assert!(!brought(&source, &next.store).await);
        server.put(&manifest, late);
        let snapshot = next.store.snapshot(&name).await.unwrap();
        assert_eq!(snapshot.blob("app.conf.blob").await.unwrap(), "text");
        drop(snapshot);
        server.remove(&manifest);
        next.clock.leap(32 * 60);
        assert!(brought(&source, &next.store).await);
        next.close().await;
    });
}

/// A sync removes what an earlier one left, and stores nothing under a name that one of its deletions may still hit.
///
/// Proves H17.
#[test]
fn a_sync_waits_for_its_deletion_of_a_leftover() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let (source, name) = elsewhere().await;
        let process = fresh(&server).await;
        assert!(brought(&source, &process.store).await);
        server.remove(&format!("store/.cnt/{name}/index.json.blob"));
        late(&server, "DELETE", "index.json.blob");
        assert!(!brought(&source, &process.store).await);
        wait_for_requests(&server, "DELETE", "index.json.blob");
        assert!(!brought(&source, &process.store).await, "it is still in doubt");
        process.clock.leap(31 * 60);
        assert!(brought(&source, &process.store).await);
        process.store.snapshot(&name).await.unwrap();
        process.close().await;
    });
}

/// Proves H17, H161.
#[test]
fn a_lease_that_is_released_lists_a_manifest_whose_put_is_under_way() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let backup = process.store.backup(&group()).begin().await.unwrap();
        backup.blob("app.conf", "text").await.unwrap();
        let name = backup.name().clone();
        let is_manifest = |path: &str| path.ends_with("index.json.blob");
        server.add(Rule::on("PUT").path(is_manifest).then(Action::Delay(Duration::from_secs(2))));
        let is_sent = async {
            let put = |line: &fault_server::Logged| line.method == "PUT" && is_manifest(&line.path);
            while !server.log().iter().any(put) {
                process.clock_sleep(Duration::from_millis(2)).await;
            }
        };
        let (finish, is_sent) = (Box::pin(backup.finish()), Box::pin(is_sent));
        let Either::Right(((), finish)) = select(finish, is_sent).await else { panic!("it was answered") };
        drop(finish);
        process.close().await;
        let lease: serde_json::Value = serde_json::from_slice(&server.objects()[LEASE]).unwrap();
        assert!(lease["returning"][name.to_string()].is_u64(), "{lease}");
        let next = fresh(&server).await;
        assert_eq!(kind(next.store.delete_snapshot(&name).await), ErrorKind::Busy);
        next.close().await;
    });
}

/// Proves H17.
#[test]
fn no_collection_runs_while_a_segment_may_be_stored_again() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = Opening::of("store").packed(true).open(&server).await.unwrap();
        let rule = Rule::on("PUT").path(|path| path.contains("/.larder/index/")).first(1);
        server.add(rule.then(Action::ExecuteWhenReleased));
        back_up(&process.store, &group(), 0).await.unwrap();
        let plan = || gc::plan(&process.store, GcOptions::default());
        assert_eq!(plan().await.unwrap_err().kind(), ErrorKind::Busy);
        process.clock.leap(31 * 60);
        drop(plan().await.unwrap());
        process.close().await;
    });
}

/// Proves H18.
#[test]
fn a_late_put_never_replaces_a_newer_value() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let store = &process.store;
        let name = small(store, &group()).await;
        let sent = |end: &'static str| {
            let log = server.log();
            log.iter().filter(|line| line.method == "PUT" && line.path.ends_with(end)).count()
        };
        late(&server, "PUT", "owner");
        store.set_owner(&group(), &user("old@pbs")).await.unwrap();
        store.set_owner(&group(), &user("new@pbs")).await.unwrap();
        late(&server, "PUT", "notes");
        store.set_group_notes(&group(), "old").await.unwrap();
        store.set_group_notes(&group(), "new").await.unwrap();
        late(&server, "PUT", "index.json.blob");
        store.set_notes(&name, "old").await.unwrap();
        store.set_notes(&name, "new").await.unwrap();
        assert_eq!((sent("owner"), sent("notes"), sent("index.json.blob")), (4, 3, 4), "each old one twice");
        for end in ["owner", "notes", "index.json.blob"] {
            wait_for_requests(&server, "PUT", end);
        }
        assert_eq!(store.owner(&group()).await.unwrap(), Some(user("new@pbs")));
        assert_eq!(store.group_notes(&group()).await.unwrap().as_deref(), Some("new"));
        assert_eq!(store.snapshot(&name).await.unwrap().manifest().notes(), Some("new"));
        process.close().await;
    });
}

/// Proves H18, H44.
#[test]
fn a_group_that_was_not_created_belongs_to_its_next_creator() {
    // Not executed at all, or when another one has made the group.
    for fault in [Action::status(403, "AccessDenied"), Action::ExecuteWhenReleased] {
        let server = FaultServer::start(ServerOptions::default());
        block_on(async {
            let process = fresh(&server).await;
            let rule = Rule::on("PUT").path(|path| path.ends_with("owner"));
            server.add(rule.then(fault));
            let begin = |name| process.store.backup(&group()).owner(user(name)).begin();
            assert!(begin("first@pbs").await.is_err());
            server.clear();
            assert_eq!(view(&process.store).await, [""], "nothing is left of it");
            let backup = begin("second@pbs").await.unwrap();
            wait_for_requests(&server, "PUT", "owner");
            assert_eq!(process.store.owner(&group()).await.unwrap(), Some(user("second@pbs")));
            backup.blob("app.conf", "text").await.unwrap();
            backup.finish().await.unwrap();
            process.close().await;
        });
    }
}

/// Proves H44.
#[test]
fn a_group_created_without_an_answer_exists() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let rule = Rule::on("PUT").path(|path| path.ends_with("owner"));
        server.add(rule.first(3).then(Action::ExecuteThenDrop));
        let backup = process.store.backup(&group()).owner(user("a@pbs")).begin().await.unwrap();
        backup.abort().await.unwrap();
        assert_eq!(keys(&server, ".cnt"), [] as [&str; 0]);
        process.close().await;
    });
}

/// Proves H13.
///
/// Listings lack the last segments for hours. They are found by the lease, whether the other process holds it, released it, or died.
#[test]
fn a_packed_store_is_whole_for_other_processes_although_listings_lag() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let one = Opening::of("store").packed(true).open(&server).await.unwrap();
        // All but those by which a process probes the server.
        let lists_store = |query: &str| {
            [".larder%2Findex", ".larder%2Fpacks", ".cnt", ".chunks"].iter().any(|part| query.contains(part))
        };
        let lag = Action::ListingLag(Lag::For(Duration::from_hours(5)));
        server.add(Rule::list().query(lists_store).then(lag));
        let first = back_up(&one.store, &group(), 0).await.unwrap().name().clone();
        let reader = async || Opening::of("store").packed(true).open(&server).await.unwrap();
        check(&reader().await.store.snapshot(&first).await.unwrap()).await.unwrap();
        one.close().await;
        check(&reader().await.store.snapshot(&first).await.unwrap()).await.unwrap();
        let two = reader().await;
        let second = back_up(&two.store, &group(), 1).await.unwrap().name().clone();
        two.close().await;
        let three = reader().await;
        for name in [&first, &second] {
            check(&three.store.snapshot(name).await.unwrap()).await.unwrap();
        }
        three.close().await;
    });
}

/// Proves H13.
///
/// The process may die right after it published.
#[test]
fn the_lease_lists_the_segments_of_a_snapshot_before_it_is_published() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let one = Opening::of("store").packed(true).open(&server).await.unwrap();
        for round in 0..3 {
            let begun = server.log().len();
            drop(back_up(&one.store, &group(), round).await.unwrap());
            let log = server.log().split_off(begun);
            let puts: Vec<_> =
                log.iter().filter(|line| line.method == "PUT").map(|line| &*line.path).collect();
            let last = |part: &str| puts.iter().rposition(|path| path.contains(part)).unwrap();
            let (segment, lease, manifest) =
                (last("/.larder/index/"), last("/.larder/lease"), last("index.json.blob"));
            assert!(segment < lease && lease < manifest, "{puts:#?}");
        }
        one.close().await;
    });
}

/// Proves H12.
#[test]
fn an_inconsistent_listing_deletes_nothing() {
    let server = FaultServer::start(ServerOptions { page: 2, ..ServerOptions::default() });
    block_on(async {
        let process = fresh(&server).await;
        for _ in 0..3 {
            small(&process.store, &group()).await;
        }
        let before = keys(&server, ".cnt");
        for broken in [Action::DropXmlElement("NextContinuationToken"), Action::RepeatPage] {
            server.add(Rule::list().then(broken));
            assert!(process.store.delete_group(&group()).await.is_err());
            assert!(process.store.delete_namespace(&Namespace::root()).await.is_err());
            assert!(process.store.backup(&group()).begin().await.is_err());
            server.clear();
            assert_eq!(keys(&server, ".cnt"), before);
        }
        assert_eq!(process.store.delete_group(&group()).await.unwrap().deleted.len(), 3);
        process.close().await;
    });
}

/// Proves H13, H47.
#[test]
fn a_protected_snapshot_is_not_deleted_although_listings_lag() {
    for has_local in [false, true] {
        let server = FaultServer::start(ServerOptions::default());
        let directory = larder_testing::scratch();
        block_on(async {
            let opening = Opening::of("store");
            let opening = if has_local { opening.local(directory.path()) } else { opening };
            let process = opening.open(&server).await.unwrap();
            let name = small(&process.store, &group()).await;
            for _ in 0..20 {
                process.store.snapshots(&group()).await.unwrap();
            }
            process.store.set_protection(&name, Protection::On).await.unwrap();
            server.add(Rule::list().then(Action::ListingLag(Lag::Listings(15))));
            if has_local {
                process.store.refresh().await.unwrap();
            }
            assert!(!process.store.snapshot_info(&name).await.unwrap().protected, "as the listing has it");
            assert_eq!(kind(process.store.delete_snapshot(&name).await), ErrorKind::Denied);
            let done = process.store.delete_group(&group()).await.unwrap();
            assert_eq!((done.deleted.len(), done.protected.len()), (0, 1));
            server.clear();
            process.store.snapshot(&name).await.unwrap();
            process.close().await;
        });
    }
}

/// Proves H13. Without conditional puts, nothing else keeps what is stored.
#[test]
fn a_snapshot_that_listings_do_not_show_yet_is_not_replaced() {
    let server = FaultServer::start(ServerOptions::with([Quirk::ConditionsIgnored]));
    block_on(async {
        let process = fresh(&server).await;
        let name = small(&process.store, &group()).await;
        let memory = MemoryBackend::new(Arc::new(ThreadRuntime::new()));
        let other = Datastore::create(Arc::new(memory), Options::default()).await.unwrap();
        let backup = other.backup(&group()).time(name.time().into()).begin().await.unwrap();
        backup.blob("app.conf", "other").await.unwrap();
        backup.finish().await.unwrap();
        server.add(Rule::list().then(Action::ListingLag(Lag::For(Duration::from_hours(5)))));
        let again = process.store.backup(&group()).time(name.time().into()).begin().await;
        assert_eq!(kind(again), ErrorKind::AlreadyExists);
        let mut plan = sync::plan(&other, &process.store, SyncOptions::default()).await.unwrap();
        let report = plan.execute().await.unwrap();
        let outcomes: Vec<_> = report.snapshots().map(|snapshot| &snapshot.outcome).collect();
        assert!(
            matches!(&outcomes[..], [SyncOutcome::Failed(error)] if error.kind() == ErrorKind::Busy),
            "{outcomes:?}"
        );
        server.clear();
        let snapshot = process.store.snapshot(&name).await.unwrap();
        assert_eq!(snapshot.blob("app.conf.blob").await.unwrap(), "text");
        drop(snapshot);
        process.close().await;
    });
}

/// Proves H19.
#[test]
fn a_refused_delete_is_not_reported_as_removed() {
    for has_local in [false, true] {
        let server = FaultServer::start(ServerOptions::default());
        let directory = larder_testing::scratch();
        block_on(async {
            let opening = Opening::of("store");
            let opening = if has_local { opening.local(directory.path()) } else { opening };
            let process = opening.open(&server).await.unwrap();
            let name = back_up(&process.store, &group(), 0).await.unwrap().name().clone();
            if has_local {
                process.store.refresh().await.unwrap();
            }
            server
                .add(Rule::on("POST").then(Action::RefuseKeys(|key| key.ends_with("fidx"), "AccessDenied")));
            assert_eq!(kind(process.store.delete_snapshot(&name).await), ErrorKind::Denied);
            assert_eq!(
                kind(process.store.snapshot(&name).await),
                ErrorKind::NotFound,
                "its manifest went first"
            );
            let left = process.store.snapshots(&group()).await.unwrap();
            assert_eq!((left.len(), left[0].files.len(), left[0].state), (1, 1, SnapshotState::Unfinished));
            assert!(process.store.owner(&group()).await.unwrap().is_some());
            server.clear();
            process.store.delete_snapshot(&name).await.unwrap();
            assert_eq!(keys(&server, ".cnt"), [] as [&str; 0]);
            process.close().await;
        });
    }
}
