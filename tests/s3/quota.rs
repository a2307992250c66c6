//! Stores in a bucket whose quota is used up, before any collection has left something that could be deleted.

use std::sync::Arc;

use futures::executor::block_on;
use larder::backend::{Backend, S3Backend};
use larder::error::ErrorKind;
use larder::format::name::Namespace;
use larder::gc::GcOptions;
use larder::prune::{self, PruneOptions};
use larder::retention::RetentionRules;
use larder::rt::{Runtime, ThreadRuntime};
use larder::store::{Datastore, Scope};
use larder_testing::fault_server::{FaultServer, Options as ServerOptions, Quota};

use larder_testing::gc_scene::{at_once, back_up, check_all, collect, collected, group, leave, reason};
use larder_testing::s3_store::{Process, client, fresh, keys, requests};

const PART: usize = 256 << 10;

/// The sizes of the objects of the reserve.
fn reserve(server: &FaultServer) -> Vec<usize> {
    let objects = server.objects();
    let parts = ["store/.larder/reserve-0", "store/.larder/reserve-1"];
    parts.iter().filter_map(|key| objects.get(*key)).map(Vec::len).collect()
}

/// Lets the bucket hold what it holds now and no more, by its objects or by their bytes.
fn fill(server: &FaultServer, by_objects: bool) -> Quota {
    let objects = server.objects();
    let quota = if by_objects {
        Quota { objects: Some(objects.len()), ..Quota::default() }
    } else {
        Quota { bytes: Some(objects.values().map(Vec::len).sum()), ..Quota::default() }
    };
    server.limit(quota);
    quota
}

/// A process that knows what the server can do: probing it takes some puts.
async fn opened(server: &FaultServer, quota: Quota) -> Process {
    server.limit(Quota::default());
    let process = fresh(server).await;
    server.limit(quota);
    process
}

/// A process tries a backup, in vain.
async fn try_backup(server: &FaultServer, quota: Quota) {
    let process = opened(server, quota).await;
    // One chunk: of several, those under way are given up without an answer, and collections wait for those.
    assert_eq!(back_up(&process.store, "host/c", &[1000]).await.unwrap_err().kind(), ErrorKind::Full);
    process.close().await;
}

#[derive(Clone, Copy, Debug)]
enum First {
    Collect,
    CollectLater,
    Forget,
    Prune,
}

async fn first(server: &FaultServer, quota: Quota, what: First) {
    let process = opened(server, quota).await;
    match what {
        First::Collect => assert_eq!(collected(&process.store, at_once()).await.removed.chunks, 2),
        // All are seen for the first time, so this frees nothing.
        First::CollectLater => {
            assert_eq!(collected(&process.store, GcOptions::default()).await.removed.chunks, 0);
        }
        First::Forget => drop(process.store.delete_group(&group("host/b")).await.unwrap()),
        First::Prune => {
            let rules = RetentionRules::default().keep_last(1);
            let (scope, options) = (Scope::Group(group("host/b")), PruneOptions::default().rules(rules));
            let mut plan = prune::plan(&process.store, &scope, options).await.unwrap();
            assert_eq!(plan.execute().await.unwrap().removed(), 1);
        }
    }
    process.close().await;
}

#[test]
fn a_full_bucket_can_be_emptied_by_its_first_collection() {
    for by_objects in [false, true] {
        for what in [First::Collect, First::CollectLater, First::Forget, First::Prune] {
            let server = FaultServer::start(ServerOptions::default());
            block_on(async {
                let process = fresh(&server).await;
                for (name, numbers) in [("host/a", [1, 2]), ("host/b", [3, 4]), ("host/b", [3, 5])] {
                    drop(back_up(&process.store, name, &numbers).await.unwrap());
                }
                leave(&process.store, &[8, 9]).await;
                process.close().await;
                assert_eq!(keys(&server, ".gc-status"), [] as [String; 0]);
                let quota = fill(&server, by_objects);
                // Backups do not use up what deletions need.
                for _ in 0..3 {
                    try_backup(&server, quota).await;
                }
                first(&server, quota, what).await;
                // The freed room is used up at once.
                let quota = fill(&server, by_objects);
                try_backup(&server, quota).await;
                let process = opened(&server, quota).await;
                process.store.delete_group(&group("host/b")).await.unwrap();
                process.close().await;
                let process = opened(&server, quota).await;
                collected(&process.store, at_once()).await;
                assert_eq!(keys(&server, "/.chunks/").len(), 2, "{by_objects} {what:?}");
                assert_eq!(check_all(&process.store).await, 1, "{by_objects} {what:?}");
                process.store.delete_group(&group("host/a")).await.unwrap();
                let mut plan = larder::gc::plan(&process.store, at_once()).await.unwrap().confirm();
                plan.execute().await.unwrap();
                drop(plan);
                assert_eq!(keys(&server, "/.chunks/"), [] as [String; 0], "{by_objects} {what:?}");
                assert_eq!(process.store.groups(&Namespace::root()).await.unwrap(), []);
                let left = reserve(&server);
                assert!(left.len() == 2 && left.iter().all(|bytes| *bytes >= PART / 4), "{left:?}");
                process.close().await;
                // There is room again.
                server.limit(Quota::default());
                let process = fresh(&server).await;
                collected(&process.store, at_once()).await;
                assert_eq!(reserve(&server), [PART, PART]);
                drop(back_up(&process.store, "host/d", &[1]).await.unwrap());
                process.close().await;
                assert_eq!(server.violations(), [] as [String; 0]);
            });
        }
    }
}

#[test]
fn a_backup_waits_until_the_reserve_is_stored_again() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        drop(back_up(&process.store, "host/a", &[1, 2]).await.unwrap());
        process.close().await;
        let quota = fill(&server, false);
        let process = opened(&server, quota).await;
        // It would fit into the room of the reserve.
        assert_eq!(back_up(&process.store, "host/b", &[3]).await.unwrap_err().kind(), ErrorKind::Full);
        assert_eq!(keys(&server, "/.chunks/").len(), 2);
        server.limit(Quota::default());
        drop(back_up(&process.store, "host/b", &[3]).await.unwrap());
        assert_eq!(reserve(&server), [PART, PART]);
        process.close().await;
    });
}

#[test]
fn a_collection_stores_a_missing_reserve_and_checks_for_it_once() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        drop(back_up(&process.store, "host/a", &[1]).await.unwrap());
        assert_eq!(reserve(&server), [PART, PART]);
        let of_reserve = |since, method| requests(&server, since, method, "reserve-").len();
        let since = server.log().len();
        collected(&process.store, at_once()).await;
        assert_eq!(
            (of_reserve(since, "HEAD"), of_reserve(since, "PUT")),
            (0, 0),
            "it was stored by this process"
        );
        process.close().await;
        // A store of an earlier version, or a late deletion.
        for (gone, puts) in [(&["0", "1"][..], 2), (&[], 0), (&["0"], 2)] {
            for number in gone {
                server.remove(&format!("store/.larder/reserve-{number}"));
            }
            let process = fresh(&server).await;
            for asked in [1, 0] {
                let since = server.log().len();
                let report = collected(&process.store, at_once()).await;
                assert!(report.remarks.is_empty());
                let puts = if asked == 1 { puts } else { 0 };
                assert_eq!((of_reserve(since, "HEAD"), of_reserve(since, "PUT")), (asked, puts), "{gone:?}");
            }
            assert_eq!(reserve(&server), [PART, PART]);
            process.close().await;
        }
    });
}

#[test]
fn a_candidate_list_that_does_not_fit_is_shortened() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let garbage: Vec<_> = (100..700).collect();
        leave(&process.store, &garbage).await;
        drop(back_up(&process.store, "host/a", &[1]).await.unwrap());
        process.close().await;
        // Stored while there was little room.
        server.put("store/.larder/reserve-0", vec![7; 3000]);
        server.put("store/.larder/reserve-1", vec![7; 3000]);
        let quota = fill(&server, false);
        let process = opened(&server, quota).await;
        let report = collect(&process.store, GcOptions::default()).await.unwrap();
        assert!(report.remarks.iter().any(|error| error.kind() == ErrorKind::Full), "{report:?}");
        let listed = server.objects()["store/.larder/gc-sightings"].len() / 16;
        assert!((1..400).contains(&listed), "{listed} of 600");
        process.close().await;
        // All that may go has to be on it.
        let process = opened(&server, quota).await;
        assert_eq!(reason(collect(&process.store, at_once()).await).unwrap().kind(), ErrorKind::Full);
        assert_eq!(keys(&server, "/.chunks/").len(), 601);
        process.close().await;
    });
}

#[test]
fn a_store_in_a_full_bucket_can_be_destroyed() {
    for by_objects in [false, true] {
        let server = FaultServer::start(ServerOptions::default());
        block_on(async {
            let process = fresh(&server).await;
            drop(back_up(&process.store, "host/a", &[1, 2]).await.unwrap());
            process.close().await;
            let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
            let client = client(&server, &runtime);
            let found = client.probe("store/").await.unwrap();
            fill(&server, by_objects);
            let backend = S3Backend::new(runtime, client, "store", found, &[]).unwrap();
            let backend: Arc<dyn Backend> = Arc::new(backend);
            Datastore::destroy(Arc::clone(&backend)).await.unwrap();
            backend.close().await.unwrap();
            assert_eq!(keys(&server, ""), [] as [String; 0]);
        });
    }
}
