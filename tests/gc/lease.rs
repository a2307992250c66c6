//! Garbage collection in a bucket between several processes and a server that refuses, and what it costs (H19, H30, H33, H89).

use futures::executor::block_on;
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::Key;
use larder::gc::{self, GcEnd};
use larder::store::Datastore;
use larder_testing::fault_server::{Action, FaultServer, Logged, Options as ServerOptions, Quirk, Rule};
use larder_testing::gc_scene::{
    at_once, back_up, check_all, collect, collected, digests, group, leave, reason,
};
use larder_testing::s3_store::{LEASE, Opening, fresh, inside, keys, requests};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

fn chunks(server: &FaultServer) -> BTreeSet<Digest> {
    let names = keys(server, "/.chunks/").into_iter();
    names.filter_map(|key| key.rsplit_once('/').unwrap().1.parse().ok()).collect()
}

/// The requests since some moment that delete something.
fn deletions(server: &FaultServer, since: usize) -> Vec<Logged> {
    let mut found = requests(server, since, "POST", "");
    found.extend(requests(server, since, "DELETE", ".chunks"));
    found
}

/// Proves H33, H89.
#[test]
fn a_lease_taken_during_a_sweep_ends_the_deletions() {
    let server = Arc::new(FaultServer::start(ServerOptions::default()));
    block_on(async {
        let process = fresh(&server).await;
        let garbage: Vec<_> = (100..1200).collect();
        leave(&process.store, &garbage).await;
        drop(back_up(&process.store, "host/a", &[1]).await.unwrap());
        let mut plan = gc::plan(&process.store, at_once().concurrency(16)).await.unwrap();
        let (seen, within) = (AtomicUsize::new(0), inside(&server));
        // While the first batch is being deleted, another process takes the store.
        server.add(Rule::on("POST").query(move |query| {
            if query.starts_with("delete") && seen.fetch_add(1, Ordering::SeqCst) == 0 {
                let theirs = r#"{"beat":0,"doubtful_until":null,"epoch":99,"held":true,"holder":{"host":"h","instance":"i","nonce":"n"}}"#;
                within().put(LEASE, theirs);
            }
            false
        }));
        let since = server.log().len();
        let report = plan.execute().await.unwrap();
        assert_eq!(deletions(&server, since).len(), 1, "no more after it was lost");
        let GcEnd::Stopped(error) = &report.end else { panic!("{:?}", report.end) };
        assert_eq!(error.kind(), ErrorKind::Busy);
        assert_eq!(1100 - report.removed.chunks + 1, chunks(&server).len() as u64, "H36");
        assert!(!report.status_written);
        let since = server.log().len();
        assert_eq!(plan.execute().await.unwrap_err().kind(), ErrorKind::Busy);
        assert_eq!(reason(collect(&process.store, at_once()).await).unwrap().kind(), ErrorKind::Busy);
        assert_eq!(deletions(&server, since), []);
    });
}

#[test]
fn a_bucket_that_refuses_puts_can_be_emptied() {
    let server = Arc::new(FaultServer::start(ServerOptions::default()));
    block_on(async {
        let process = fresh(&server).await;
        drop(back_up(&process.store, "host/a", &[1, 2]).await.unwrap());
        drop(back_up(&process.store, "host/b", &[3, 4]).await.unwrap());
        leave(&process.store, &[8, 9]).await;
        // It leaves its state.
        collected(&process.store, at_once()).await;
        leave(&process.store, &[10, 11]).await;
        process.close().await;
        let process = fresh(&server).await;
        // Replacing an object is refused too.
        let (quota, within) = (server.objects().len(), inside(&server));
        let is_over = move |_: &str| within().objects().len() >= quota;
        server.add(Rule::on("PUT").path(is_over).then(Action::status(403, "QuotaExceeded")));
        process.store.delete_group(&group("host/b")).await.unwrap();
        assert_eq!(collected(&process.store, at_once()).await.removed.chunks, 4);
        assert_eq!(check_all(&process.store).await, 1);
        process.close().await;
        let process = fresh(&server).await;
        let since = server.objects().len();
        assert!(since < quota, "there is room again");
        server.clear();
        let server_full = inside(&server);
        let is_full = move |_: &str| server_full().objects().len() >= since;
        server.add(Rule::on("PUT").path(is_full).then(Action::status(507, "")));
        assert_eq!(collected(&process.store, at_once()).await.removed.chunks, 0);
        server.clear();
        process.close().await;
    });
}

/// Proves I1.
#[test]
fn leftovers_of_a_dead_owner_stay_until_its_requests_expire_and_block_no_backup() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let dead = fresh(&server).await;
        drop(back_up(&dead.store, "host/a", &[1]).await.unwrap());
        server.put("store/.cnt/host/b/2020-01-01T00:00:00Z/left.conf.blob", "torn");
        server.age(LEASE, Duration::from_secs(70));
        let process = fresh(&server).await;
        process.store.backup(&group("host/b")).begin().await.unwrap().abort().await.unwrap();
        assert_eq!(keys(&server, "left.conf").len(), 1, "its writer may still be storing it");
        process.clock.leap(31 * 60);
        drop(back_up(&process.store, "host/b", &[1]).await.unwrap());
        assert_eq!(keys(&server, "left.conf"), Vec::<String>::new());
        process.close().await;
    });
}

/// Proves H89.
#[test]
fn a_process_that_lost_the_lease_deletes_nothing() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let old = fresh(&server).await;
        leave(&old.store, &[8, 9]).await;
        drop(back_up(&old.store, "host/a", &[1]).await.unwrap());
        let mut plan = gc::plan(&old.store, at_once()).await.unwrap();
        assert_eq!(plan.summary().garbage.chunks, 2);
        // It was away for longer than its lease lives; what it took for garbage is in use again.
        server.age(LEASE, Duration::from_secs(70));
        let new = fresh(&server).await;
        drop(back_up(&new.store, "host/b", &[8, 9]).await.unwrap());
        let since = server.log().len();
        assert_eq!(plan.execute().await.unwrap_err().kind(), ErrorKind::Busy);
        drop(plan);
        assert_eq!(reason(collect(&old.store, at_once()).await).unwrap().kind(), ErrorKind::Busy);
        assert_eq!(deletions(&server, since), []);
        let changed = requests(&server, since, "PUT", "");
        assert!(changed.iter().all(|put| !put.executed), "{changed:?}");
        assert_eq!(check_all(&new.store).await, 2);
        new.close().await;
    });
}

/// Proves H16.
///
/// Records of presence count for one term. A removal begins a new one first, so that an old copy of them vouches for nothing (H16).
#[test]
fn a_collection_begins_a_new_lease_term_before_it_deletes_a_chunk() {
    let server = Arc::new(FaultServer::start(ServerOptions::default()));
    block_on(async {
        let process = fresh(&server).await;
        leave(&process.store, &[8, 9]).await;
        drop(back_up(&process.store, "host/a", &[1]).await.unwrap());
        let epoch = |server: &FaultServer| {
            let lease: serde_json::Value = serde_json::from_slice(&server.objects()[LEASE]).unwrap();
            lease["epoch"].as_u64().unwrap()
        };
        let before = epoch(&server);
        let (seen, within) = (Arc::new(Mutex::new(Vec::new())), inside(&server));
        let (noted, of_chunk) = (Arc::clone(&seen), |path: &str| path.contains(".chunks"));
        let note = Arc::new(move || {
            noted.lock().unwrap().push(epoch(&within()));
            false
        });
        let many = Arc::clone(&note);
        server.add(Rule::on("DELETE").path(move |path| of_chunk(path) && note()));
        server.add(Rule::on("POST").query(move |query| query.starts_with("delete") && many()));
        assert_eq!(collected(&process.store, at_once()).await.removed.chunks, 2);
        let seen = seen.lock().unwrap().clone();
        assert!(!seen.is_empty() && seen.iter().all(|epoch| *epoch > before), "{before}, then {seen:?}");
        process.close().await;
    });
}

/// Proves H89.
#[test]
fn a_backup_notices_a_lost_lease_before_it_publishes() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let old = fresh(&server).await;
        let backup = old.store.backup(&group("host/a")).begin().await.unwrap();
        backup.blob("a.conf", "x").await.unwrap();
        // No clock of the old process shows it.
        let theirs = r#"{"beat":0,"doubtful_until":null,"epoch":99,"held":true,"holder":{"host":"h","instance":"i","nonce":"n"}}"#;
        server.put(LEASE, theirs);
        assert_eq!(backup.finish().await.unwrap_err().kind(), ErrorKind::Busy);
        assert_eq!(keys(&server, "index.json.blob"), [] as [String; 0]);
    });
}

/// Proves H4, H33.
#[test]
fn only_one_of_two_processes_collects_and_none_beside_a_backup() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let (one, other) = (fresh(&server).await, fresh(&server).await);
        leave(&one.store, &[8, 9]).await;
        let busy = async |store: &Datastore| {
            let since = server.log().len();
            assert_eq!(reason(collect(store, at_once()).await).unwrap().kind(), ErrorKind::Busy);
            assert_eq!(deletions(&server, since), []);
        };
        let backup = one.store.backup(&group("host/a")).begin().await.unwrap();
        busy(&other.store).await;
        backup.abort().await.unwrap();
        let plan = gc::plan(&one.store, at_once()).await.unwrap();
        busy(&other.store).await;
        drop(plan);
        one.close().await;
        assert_eq!(collected(&other.store, at_once()).await.removed.chunks, 2);
        other.close().await;
    });
}

/// Proves H19.
#[test]
fn each_key_of_a_batch_delete_has_its_own_outcome() {
    let first_half: fn(&str) -> bool = |key| key.rsplit('/').next().unwrap() < "8";
    let all: fn(&str) -> bool = |_| true;
    // The failing keys, their error, whether the sweep continues, and whether the report has a failure.
    let table = [
        (first_half, "AccessDenied", true, true),
        (first_half, "InternalError", true, true),
        (first_half, "NoSuchKey", true, false),
        (first_half, "ObjectLocked", true, true),
        (all, "AccessDenied", false, true),
        (all, "NoSuchKey", true, false),
    ];
    for (keys, code, goes_on, fails) in table {
        let server = FaultServer::start(ServerOptions::default());
        block_on(async {
            let process = fresh(&server).await;
            let garbage: Vec<_> = (100..160).collect();
            leave(&process.store, &garbage).await;
            drop(back_up(&process.store, "host/a", &[1]).await.unwrap());
            server.add(Rule::on("POST").then(Action::RefuseKeys(keys, code)));
            let since = server.log().len();
            let report = collect(&process.store, at_once().concurrency(1)).await.unwrap();
            let refused = chunks(&server).len() as u64 - 1;
            assert!(refused > 10);
            assert_eq!(report.failed, if fails { refused } else { 0 }, "{code}");
            let removed = if fails { 60 - refused } else { 60 };
            assert_eq!(report.removed.chunks, removed, "{code}");
            assert_eq!(matches!(report.end, GcEnd::Complete), goes_on, "{code}");
            if !goes_on {
                assert_eq!(deletions(&server, since).len(), 1);
            }
            assert!(report.failures.iter().all(|failure| matches!(failure.key, Key::Chunk(_))));
            // The next run tries failed deletions again, and a writer that needs such a chunk stores it again.
            server.clear();
            process.clock.leap(31 * 60);
            drop(back_up(&process.store, "host/b", &garbage[..30]).await.unwrap());
            collected(&process.store, at_once()).await;
            let needed = digests([1].into_iter().chain(100..130));
            assert_eq!((chunks(&server), check_all(&process.store).await), (needed, 2), "{code}");
            process.close().await;
        });
    }
}

/// Proves H19.
#[test]
fn an_incomplete_or_unrelated_delete_answer_counts_no_chunk_as_removed() {
    let body = |text: &str| {
        let text = format!("<DeleteResult>{text}</DeleteResult>");
        Action::Status { status: 200, code: "", headers: vec![], body: Some(text.into_bytes()) }
    };
    let stranger = "<Error><Key>store/other</Key><Code>AccessDenied</Code></Error>";
    let table = [
        (body(""), true),
        (body(&stranger.repeat(2)), false),
        (Action::Status { status: 200, code: "", headers: vec![], body: Some(Vec::new()) }, false),
        (Action::OkWithErrorBody { whitespace: 2, delay: Duration::ZERO }, false),
        (Action::status(403, "AccessDenied"), false),
        (Action::status(500, "InternalError"), false),
    ];
    for (number, (action, succeeds)) in table.into_iter().enumerate() {
        let server = FaultServer::start(ServerOptions::default());
        block_on(async {
            let process = fresh(&server).await;
            leave(&process.store, &[5, 6, 7]).await;
            drop(back_up(&process.store, "host/a", &[1]).await.unwrap());
            server.add(Rule::on("POST").then(action));
            let report = collect(&process.store, at_once().concurrency(1)).await.unwrap();
            assert_eq!(report.removed.chunks, if succeeds { 3 } else { 0 }, "{number}");
            assert_eq!(report.failed, if succeeds { 0 } else { 3 }, "{number}");
            server.clear();
            // Nothing was removed, whatever the answer said, and no chunk is reported as absent.
            process.clock.leap(31 * 60);
            drop(back_up(&process.store, "host/b", &[5]).await.unwrap());
            collected(&process.store, at_once()).await;
            assert_eq!(chunks(&server), digests([1, 5]), "{number}");
            assert_eq!(check_all(&process.store).await, 2);
            process.close().await;
        });
    }
}

/// Proves H19.
#[test]
fn a_server_without_batch_deletes_gets_one_request_for_each_key() {
    let server = FaultServer::start(ServerOptions::with([Quirk::MultiDeleteRejected]));
    block_on(async {
        let process = fresh(&server).await;
        leave(&process.store, &[5, 6, 7]).await;
        drop(back_up(&process.store, "host/a", &[1]).await.unwrap());
        let since = server.log().len();
        assert_eq!(collected(&process.store, at_once().concurrency(1)).await.removed.chunks, 3);
        assert_eq!(requests(&server, since, "DELETE", ".chunks").len(), 3);
        assert_eq!(chunks(&server), digests([1]));
        process.close().await;
    });
}

/// Proves H25, H30.
#[test]
fn foreign_objects_stay_and_orphan_indexes_are_marked() {
    let server = FaultServer::start(ServerOptions { page: 4, ..ServerOptions::default() });
    block_on(async {
        let process = fresh(&server).await;
        leave(&process.store, &[6, 7]).await;
        drop(back_up(&process.store, "host/a", &[1]).await.unwrap());
        drop(back_up(&process.store, "host/gone", &[5]).await.unwrap());
        let index = keys(&server, "host/gone/").into_iter().find(|key| key.ends_with("fidx")).unwrap();
        server.put("store/.cnt/odd/place/d.img.fidx", server.objects()[&index].clone());
        process.store.delete_group(&group("host/gone")).await.unwrap();
        let digest = digests([6]).first().unwrap().to_string();
        let odd = [
            "store/.chunks/".to_owned(),
            "store/.chunks/0000/".to_owned(),
            "store/.chunks/0000/readme.txt".to_owned(),
            format!("store/.chunks/0000/{digest}"),
            format!("store/.chunks/{}/{digest}.10.bad", &digest[..4]),
            format!("store/.chunks/{}/{digest}.using", &digest[..4]),
            format!("store/.chunks/{}/{}", &digest[..4], digest.to_uppercase()),
            format!("store/.chunks/{}/{digest}/x", &digest[..4]),
            "store/.cnt/host/a/".to_owned(),
            "store/.cnt/host/a/x/y/z".to_owned(),
            "store/.cnt/readme.txt".to_owned(),
            "store/readme.txt".to_owned(),
            "store2/.chunks/0000/x".to_owned(),
        ];
        for key in &odd {
            server.put(key, "odd");
        }
        let plan = gc::plan(&process.store, at_once()).await.unwrap();
        let (named, count) = (&plan.summary().foreign, plan.summary().foreign_count);
        assert!(count >= 8 && named.len() as u64 == count, "{named:?}");
        drop(plan);
        assert_eq!(collected(&process.store, at_once()).await.removed.chunks, 2);
        let left = server.objects();
        assert!(odd.iter().all(|key| left.get(key).is_some_and(|bytes| bytes == b"odd")));
        assert!(digests([1, 5]).is_subset(&chunks(&server)), "the stray index needs 5");
        // If it cannot be read, its chunks are unknown.
        leave(&process.store, &[8]).await;
        server.put("store/.cnt/odd/place/d.img.fidx", "no index");
        let error = reason(collect(&process.store, at_once()).await).unwrap();
        assert!(error.to_string().contains("odd/place/d.img.fidx"), "{error}");
        assert!(digests([1, 5, 8]).is_subset(&chunks(&server)));
        server.remove("store/.cnt/odd/place/d.img.fidx");
        assert_eq!(collected(&process.store, at_once()).await.removed.chunks, 2);
        assert_eq!(check_all(&process.store).await, 1);
        process.close().await;
    });
}

/// Requests beside the pages of listings and the deletions: for the clock, the last state, the lease, sightings and the new state.
const CONSTANT: usize = 14;

/// Proves H183.
#[test]
fn a_collection_costs_a_request_for_each_page_and_for_each_thousand_deletions() {
    for (page, garbage) in [(1000, 30), (10, 30), (1000, 1200)] {
        let server = FaultServer::start(ServerOptions { page, ..ServerOptions::default() });
        let directory = larder_testing::scratch();
        block_on(async {
            let process = Opening::of("store").local(directory.path()).open(&server).await.unwrap();
            for number in 0..garbage {
                let digest = Digest::of(&u64::to_le_bytes(number)).to_string();
                server.put(&format!("store/.chunks/{}/{digest}", &digest[..4]), "garbage");
            }
            for number in 0..4_u64 {
                drop(back_up(&process.store, "host/a", &[number, number + 1]).await.unwrap());
            }
            process.store.refresh().await.unwrap();
            let objects = keys(&server, ".chunks").len();
            let metadata = keys(&server, ".cnt").len();
            let since = server.log().len();
            let report = collected(&process.store, at_once().concurrency(1)).await;
            assert_eq!(report.removed.chunks, garbage);
            let log = server.log()[since..].to_vec();
            // The metadata is listed until nothing new is seen.
            let pages = objects.div_ceil(page) + 2 * (metadata.div_ceil(page) + 1) + 1;
            let deletions = usize::try_from(garbage).unwrap().div_ceil(1000);
            assert!(log.len() <= pages + 2 * deletions + CONSTANT, "{} {pages}", log.len());
            assert_eq!(deletions, log.iter().filter(|line| line.method == "POST").count());
            // With copies of what did not change, no index is read.
            let is_index = |line: &&Logged| line.method == "GET" && line.path.ends_with("fidx");
            assert_eq!(log.iter().filter(is_index).count(), 0);
            let since = server.log().len();
            collected(&process.store, at_once().concurrency(1)).await;
            let log = server.log()[since..].to_vec();
            assert!(log.len() <= pages + CONSTANT, "{} {pages}", log.len());
            assert_eq!(log.iter().filter(is_index).count(), 0);
            process.close().await;
            // Without them each is read once.
            let process = fresh(&server).await;
            let since = server.log().len();
            collected(&process.store, at_once().concurrency(1)).await;
            assert_eq!(server.log()[since..].iter().filter(is_index).count(), 4);
            process.close().await;
        });
    }
}
