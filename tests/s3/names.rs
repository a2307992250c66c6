//! Names of which another process deleted something are not reused while a request of it may still arrive (H17).

use futures::executor::block_on;
use futures::future;
use futures::io::Cursor;
use larder::backend::MemoryBackend;
use larder::error::{ErrorKind, Result};
use larder::format::name::{GroupName, SnapshotName};
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Options, Protection};
use larder_testing::fault_server::{Action, Etags, FaultServer, Options as ServerOptions, Rule};
use larder_testing::s3_store;
use larder_testing::s3_store::{LEASE, Opening, Process, brought, fresh, keys, small, user};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A time that no backup draws by itself.
const THEN: u64 = 1_700_000_000;

fn group(name: &str) -> GroupName {
    name.parse().unwrap()
}

async fn at(store: &Datastore, name: &str, seconds: u64) -> Result<SnapshotName> {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let backup = store.backup(&group(name)).time(time).begin().await?;
    backup.blob("app.conf", "text").await?;
    Ok(backup.finish().await?.snapshot.name().clone())
}

/// The first DELETE of something like this is lost on the way, and the next one is answered.
fn lose(server: &FaultServer, part: &'static str) {
    server.add(
        Rule::on("DELETE").path(move |path| path.ends_with(part)).first(1).then(Action::CutRequestAt(0)),
    );
}

/// Refuses as busy, and says for how long.
fn busy<T>(result: Result<T>) {
    let error = result.map(drop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy, "{error:?}");
    let mut text = format!("{error}");
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    assert!(text.contains("may still be executed for 1"), "{text}");
    let wait = error.retry_after().expect("the text names it");
    assert!(wait > Duration::from_mins(1) && wait <= Duration::from_mins(32), "{wait:?}");
}

fn lease(server: &FaultServer) -> serde_json::Value {
    serde_json::from_slice(&server.objects()[LEASE]).unwrap()
}

/// A process dies, and its lease ends.
fn die(process: Process, server: &FaultServer) {
    drop(process);
    server.age(LEASE, Duration::from_secs(70));
}

/// A store elsewhere that has a snapshot of that time.
async fn elsewhere(name: &str) -> Datastore {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let store = Datastore::create(Arc::new(MemoryBackend::new(runtime)), Options::default()).await.unwrap();
    at(&store, name, THEN).await.unwrap();
    store
}

/// Proves H17.
#[test]
fn a_snapshot_deleted_by_another_process_is_recreated_only_after_its_pending_delete() {
    for file in ["index.json.blob", "app.conf.blob"] {
        let server = FaultServer::start(ServerOptions::default());
        block_on(async {
            let one = fresh(&server).await;
            let deleted = at(&one.store, "host/a", THEN).await.unwrap();
            let kept = at(&one.store, "host/a", THEN + 1).await.unwrap();
            lose(&server, file);
            one.store.delete_snapshot(&deleted).await.unwrap();
            one.close().await;
            assert_eq!(lease(&server)["doubtful"], serde_json::json!([deleted.to_string()]));
            let source = elsewhere("host/a").await;
            for _ in 0..2 {
                let other = fresh(&server).await;
                assert!(!brought(&source, &other.store).await);
                assert_eq!(keys(&server, &deleted.to_string()), [] as [String; 0]);
                // All other operations continue.
                other.store.set_protection(&kept, Protection::On).await.unwrap();
                other.store.set_protection(&kept, Protection::Off).await.unwrap();
                small(&other.store, &group("host/a")).await;
                small(&other.store, &group("host/new")).await;
                at(&other.store, "host/old", THEN).await.unwrap();
                other.store.delete_group(&group("host/old")).await.unwrap();
                other.store.delete_group(&group("host/new")).await.unwrap();
                // The doubt outlives the process that took it over.
                other.close().await;
            }
            let other = fresh(&server).await;
            small(&other.store, &group("host/b")).await;
            assert!(!brought(&source, &other.store).await);
            other.clock.leap(31 * 60);
            assert!(brought(&source, &other.store).await);
            other.store.snapshot(&deleted).await.unwrap();
            other.close().await;
        });
    }
}

/// Proves H17.
#[test]
fn a_backup_avoids_the_time_of_a_snapshot_that_another_process_deleted() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let one = fresh(&server).await;
        at(&one.store, "host/a", THEN).await.unwrap();
        let deleted = small(&one.store, &group("host/a")).await;
        lose(&server, "index.json.blob");
        one.store.delete_snapshot(&deleted).await.unwrap();
        one.close().await;
        let other = fresh(&server).await;
        let seconds = u64::try_from(deleted.time().epoch()).unwrap();
        busy(at(&other.store, "host/a", seconds).await);
        // Of the same second, if this is fast.
        let next = small(&other.store, &group("host/a")).await;
        assert_ne!(next, deleted);
        other.close().await;
    });
}

/// Proves H17.
#[test]
fn a_group_with_a_pending_delete_of_its_owner_is_not_recreated() {
    // A group that is deleted, and one that is given up before it has a snapshot: there the deletion is on a condition, which a new
    // owner of the same contents meets.
    for given_up in [false, true] {
        let server = FaultServer::start(ServerOptions { etags: Etags::Md5, ..ServerOptions::default() });
        block_on(async {
            let one = fresh(&server).await;
            lose(&server, "/owner");
            if given_up {
                one.store.backup(&group("host/a")).begin().await.unwrap().abort().await.unwrap();
            } else {
                small(&one.store, &group("host/a")).await;
                one.store.delete_group(&group("host/a")).await.unwrap();
            }
            busy(one.store.backup(&group("host/a")).begin().await);
            one.close().await;
            let other = fresh(&server).await;
            busy(other.store.backup(&group("host/a")).begin().await);
            busy(other.store.backup(&group("host/a")).owner(user("b@pbs")).begin().await);
            small(&other.store, &group("host/b")).await;
            // An owner that exists again may still be deleted, by whichever process it was created.
            server.put("store/.cnt/host/a/owner", "root@pam\n");
            busy(other.store.backup(&group("host/a")).begin().await);
            busy(other.store.set_owner(&group("host/a"), &user("b@pbs")).await);
            other.clock.leap(31 * 60);
            small(&other.store, &group("host/a")).await;
            other.close().await;
        });
    }
}

/// Proves H17.
#[test]
fn marks_notes_and_namespaces_with_pending_deletes_of_another_process_are_not_set() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let (one, namespace) = (fresh(&server).await, "a".parse().unwrap());
        let name = small(&one.store, &group("host/a")).await;
        one.store.set_protection(&name, Protection::On).await.unwrap();
        one.store.set_group_notes(&group("host/a"), "text").await.unwrap();
        one.store.create_namespace(&namespace).await.unwrap();
        for end in [".protected", "/notes", ".namespace"] {
            lose(&server, end);
        }
        one.store.set_protection(&name, Protection::Off).await.unwrap();
        one.store.set_group_notes(&group("host/a"), "").await.unwrap();
        one.store.delete_namespace(&namespace).await.unwrap();
        one.close().await;
        let other = fresh(&server).await;
        busy(other.store.create_namespace(&namespace).await);
        busy(other.store.set_protection(&name, Protection::On).await);
        busy(other.store.set_group_notes(&group("host/a"), "new").await);
        small(&other.store, &group("host/a")).await;
        other.clock.leap(31 * 60);
        other.store.create_namespace(&namespace).await.unwrap();
        other.store.set_protection(&name, Protection::On).await.unwrap();
        other.store.set_group_notes(&group("host/a"), "new").await.unwrap();
        other.close().await;
    });
}

/// Proves H17.
#[test]
fn a_released_lease_lists_the_pending_deletes_of_two_processes() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let one = fresh(&server).await;
        let deleted = at(&one.store, "host/a", THEN).await.unwrap();
        lose(&server, "index.json.blob");
        one.store.delete_snapshot(&deleted).await.unwrap();
        one.close().await;
        let (other, namespace) = (fresh(&server).await, "a".parse().unwrap());
        other.store.create_namespace(&namespace).await.unwrap();
        lose(&server, ".namespace");
        other.store.delete_namespace(&namespace).await.unwrap();
        other.close().await;
        let marker = larder::format::layout::Key::Namespace(namespace).to_string();
        assert_eq!(lease(&server)["doubtful"], serde_json::json!([deleted.to_string(), marker]));
    });
}

/// Proves H17.
#[test]
fn a_name_that_a_dead_process_was_deleting_is_not_reused_meanwhile() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let one = fresh(&server).await;
        let deleted = at(&one.store, "host/a", THEN).await.unwrap();
        at(&one.store, "host/a", THEN + 1).await.unwrap();
        let manifest = |path: &str| path.ends_with("index.json.blob");
        server.add(Rule::on("DELETE").path(manifest).then(Action::Delay(Duration::from_mins(5))));
        {
            let deleting = Box::pin(one.store.delete_snapshot(&deleted));
            let is_sent = async {
                while !server.log().iter().any(|line| line.method == "DELETE" && manifest(&line.path)) {
                    one.clock_sleep(Duration::from_millis(5)).await;
                }
            };
            assert!(matches!(future::select(deleting, Box::pin(is_sent)).await, future::Either::Right(_)));
        }
        server.clear();
        die(one, &server);
        assert_eq!(lease(&server)["removing"], serde_json::json!([deleted.to_string()]));
        let (other, source) = (fresh(&server).await, elsewhere("host/a").await);
        server.remove(&format!("store/.cnt/{deleted}/index.json.blob"));
        server.remove(&format!("store/.cnt/{deleted}/app.conf.blob"));
        assert!(!brought(&source, &other.store).await);
        small(&other.store, &group("host/a")).await;
        at(&other.store, "host/b", THEN).await.unwrap();
        other.clock.leap(32 * 60);
        assert!(brought(&source, &other.store).await);
        other.close().await;
    });
}

#[test]
fn names_are_free_after_the_crash_of_a_process_that_deleted_nothing() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let one = fresh(&server).await;
        at(&one.store, "host/a", THEN).await.unwrap();
        die(one, &server);
        let other = fresh(&server).await;
        at(&other.store, "host/b", THEN).await.unwrap();
        assert!(brought(&elsewhere("host/c").await, &other.store).await);
        other.close().await;
    });
}

/// Proves H17.
#[test]
fn after_a_crash_during_many_deletions_only_new_snapshot_names_can_be_used() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let one = fresh(&server).await;
        let mut names = Vec::new();
        for second in 0..20 {
            names.push(at(&one.store, "host/a", THEN + second).await.unwrap());
        }
        let since = server.log().len();
        for name in &names[..19] {
            one.store.delete_snapshot(name).await.unwrap();
        }
        let renewals = s3_store::requests(&server, since, "PUT", "lease").len();
        assert!((9..=10).contains(&renewals), "{renewals}");
        die(one, &server);
        assert_eq!(lease(&server)["removing"], serde_json::Value::Null);
        let other = fresh(&server).await;
        assert!(!brought(&elsewhere("host/a").await, &other.store).await);
        small(&other.store, &group("host/a")).await;
        busy(at(&other.store, "host/b", THEN).await);
        other.clock.leap(32 * 60);
        at(&other.store, "host/b", THEN).await.unwrap();
        other.close().await;
    });
}

/// Proves H17.
#[test]
fn a_destroyed_store_leaves_a_record_of_its_pending_deletes() {
    // The identity of the store, which has a name, and chunks, one of which goes alone and two of which go together.
    for (method, part, chunks) in [("DELETE", "store.json", 1), ("DELETE", ".chunks/", 1), ("POST", "", 2)] {
        let server = FaultServer::start(ServerOptions::default());
        block_on(async {
            let one = fresh(&server).await;
            let backup = one.store.backup(&group("host/a")).begin().await.unwrap();
            let bytes: Vec<u8> = (0..chunks).flat_map(|chunk| vec![chunk; 4096]).collect();
            let size = bytes.len() as u64;
            backup.image("d.img", Cursor::new(bytes), size).chunk_bytes(4096).await.unwrap();
            backup.finish().await.unwrap();
            server.add(
                Rule::on(method).path(move |path| path.contains(part)).first(1).then(Action::CutRequestAt(0)),
            );
            Datastore::destroy(Arc::<larder::internal::fault::FaultBackend>::clone(&one.backend))
                .await
                .unwrap();
            drop(one);
            let left: Vec<_> = server.objects().into_keys().collect();
            assert_eq!(left, [LEASE], "{method} {part}");
            busy(Opening::of("store").open(&server).await);
            server.age(LEASE, Duration::from_hours(1));
            let mut record = lease(&server);
            record["doubtful_until"] = 1.into();
            server.put(LEASE, record.to_string());
            fresh(&server).await.close().await;
        });
    }
}
