//! Hazards of local state, refresh and ownership of a store in a bucket (sections C and E of the hazards).

use futures::executor::block_on;
use futures::future::{self, Either};
use futures::io::Cursor;
use larder::error::ErrorKind;
use larder::format::name::{AuthId, GroupName, Namespace, SnapshotName};
use larder::internal::blob::encode_plain;
use larder::internal::fault::FaultBackend;
use larder::store::{Datastore, Protection};
use larder_testing::fault_server::{Action, FaultServer, Options as ServerOptions, Rule};
use larder_testing::s3_store::{
    CHUNK, CHUNKS, LEASE, Opening, Process, back_up, check, check_all, data, files_below, fresh, group, keys,
    kind, opened_again, requests, view,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// A snapshot without chunks for each of these groups.
async fn fill(store: &Datastore, groups: &[&str]) -> Vec<SnapshotName> {
    let mut names = Vec::new();
    for group in groups {
        let group: GroupName = group.parse().unwrap();
        let owner: AuthId = format!("u{}@pbs", names.len()).parse().unwrap();
        let backup = store.backup(&group).owner(owner).begin().await.unwrap();
        backup.blob("app.conf", "text").await.unwrap();
        names.push(backup.finish().await.unwrap().snapshot.name().clone());
    }
    names
}

/// Proves H61, H62.
#[test]
fn the_cache_budget_holds_across_restarts() {
    // An entry may have an eighth of it.
    const BUDGET: u64 = 8 * (CHUNK + 8192);
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    let used = || {
        let files = files_below(&directory.path().join("chunks"));
        files.iter().map(|file| fs::metadata(file).unwrap().len()).sum::<u64>()
    };
    block_on(async {
        for seed in 0..10 {
            let opening = Opening::of("store").local(directory.path()).cache_bytes(BUDGET);
            let process = opened_again(&server, &opening).await;
            if seed > 0 {
                // The chunk stored last is still cached, and known.
                let latest = process.store.latest(&group()).await.unwrap().unwrap();
                let before = server.log().len();
                check(&process.store.snapshot(&latest).await.unwrap()).await.unwrap();
                let fetched = requests(&server, before, "GET", ".chunks").len();
                assert!(fetched < CHUNKS, "{fetched} of {CHUNKS} at start {seed}");
            }
            back_up(&process.store, &group(), seed).await.unwrap();
            assert!((CHUNK..=BUDGET).contains(&used()), "{} at start {seed}", used());
            process.close().await;
        }
    });
}

/// Proves H63, H64.
#[test]
fn a_failing_local_disk_fails_no_operation() {
    for at_open in [true, false] {
        let server = FaultServer::start(ServerOptions::default());
        let directory = larder_testing::scratch();
        // Nothing can be written below a file.
        let spoil = |parts: &[&str]| {
            for part in parts {
                let path = directory.path().join(part);
                let _ = fs::remove_dir_all(&path);
                fs::write(&path, "in the way").unwrap();
            }
        };
        block_on(async {
            if at_open {
                spoil(&["chunks"]);
            }
            let process = Opening::of("store").local(directory.path()).open(&server).await.unwrap();
            let first = back_up(&process.store, &group(), 0).await.unwrap();
            spoil(&["chunks", "mirror", "presence"]);
            let second = back_up(&process.store, &group(), 1).await.unwrap();
            for snapshot in [&first, &second] {
                check(snapshot).await.unwrap();
            }
            process.store.refresh().await.unwrap();
            let other = fresh(&server).await;
            assert_eq!(view(&process.store).await, view(&other.store).await);
            process.store.set_notes(second.name(), "1").await.unwrap();
            assert_eq!(check_all(&process.store, &group()).await.unwrap(), 2);
            drop((first, second));
            process.close().await;
        });
    }
}

/// Proves H72.
#[test]
fn a_cached_copy_is_not_proof_that_the_store_has_the_chunk() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = Opening::of("store").local(directory.path()).open(&server).await.unwrap();
        back_up(&process.store, &group(), 0).await.unwrap();
        process.close().await;
        // All that is left on the disk are the copies, and in the bucket there are none of the chunks.
        fs::remove_dir_all(directory.path().join("presence")).unwrap();
        let lost = keys(&server, ".chunks");
        for key in &lost {
            server.remove(key);
        }
        let process = Opening::of("store").local(directory.path()).open(&server).await.unwrap();
        let snapshot = back_up(&process.store, &group(), 0).await.unwrap();
        assert_eq!(keys(&server, ".chunks"), lost);
        check(&snapshot).await.unwrap();
        assert_eq!(process.local.as_ref().unwrap().cache_counts().unwrap().hits, CHUNKS as u64);
        drop(snapshot);
        process.close().await;
    });
}

/// A store of which a part is hidden: what is shown when it comes back.
async fn with_news(server: &FaultServer, directory: &Path) -> (Process, BTreeMap<String, Vec<u8>>) {
    let writer = fresh(server).await;
    fill(&writer.store, &["vm/1", "vm/2", "ct/3", "host/a"]).await;
    writer.close().await;
    let is_news = |key: &str| key.contains("vm/2") || key.contains("host/a");
    let news: BTreeMap<_, _> = server.objects().into_iter().filter(|(key, _)| is_news(key)).collect();
    for key in news.keys() {
        server.remove(key);
    }
    let process = Opening::of("store").local(directory).open(server).await.unwrap();
    assert!(process.store.refresh().await.unwrap().is_exclusive);
    (process, news)
}

/// Proves H82, H83.
#[test]
fn a_refresh_takes_effect_completely_or_not_at_all() {
    let server = FaultServer::start(ServerOptions { page: 5, ..ServerOptions::default() });
    let directory = larder_testing::scratch();
    block_on(async {
        let (process, news) = with_news(&server, directory.path()).await;
        let before = view(&process.store).await;
        for (key, bytes) in &news {
            server.put(key, bytes.clone());
        }
        let (mut failed, mut nth) = (0, 0);
        loop {
            nth += 1;
            let since = server.log().len();
            let rule = || Rule::on("GET").path(|path| !path.ends_with("lease")).nth(nth);
            // Answered too late for a caller that does not wait.
            server.add(rule().then(Action::Delay(Duration::from_secs(30))));
            let reached = async {
                let asked = || requests(&server, since, "GET", "").len();
                while u64::try_from(asked()).unwrap() < nth {
                    process.clock_sleep(Duration::from_millis(1)).await;
                }
            };
            let refresh = Box::pin(process.store.refresh());
            let is_done = matches!(future::select(refresh, Box::pin(reached)).await, Either::Left(_));
            server.clear();
            if is_done {
                break;
            }
            assert_eq!(view(&process.store).await, before, "dropped at request {nth}");
            server.add(rule().then(Action::status(403, "AccessDenied")));
            let refreshed = process.store.refresh().await;
            server.clear();
            if refreshed.is_ok() {
                break;
            }
            failed += 1;
            assert_eq!(view(&process.store).await, before, "failed at request {nth}");
        }
        assert!(failed >= 3, "{failed}");
        process.store.refresh().await.unwrap();
        let after = view(&process.store).await;
        assert!(after.len() > before.len());
        assert_eq!(view(&fresh(&server).await.store).await, after);
        process.close().await;
    });
}

/// Proves H84, H183.
#[test]
fn a_refresh_of_many_objects_takes_few_requests() {
    const SNAPSHOTS: usize = 400;
    const PAGE: usize = 100;
    let server = FaultServer::start(ServerOptions { page: PAGE, ..ServerOptions::default() });
    let directory = larder_testing::scratch();
    block_on(async {
        let process = Opening::of("store").local(directory.path()).open(&server).await.unwrap();
        for number in 0..SNAPSHOTS {
            let snapshot = format!("store/.cnt/vm/{}/2020-01-01T00:00:{:02}Z", number / 40, number % 40);
            server.put(&format!("{snapshot}/index.json.blob"), number.to_string());
            server.put(&format!("{snapshot}/disk.img.fidx"), "not read");
        }
        let before = server.log().len();
        assert_eq!(process.store.groups(&Namespace::root()).await.unwrap().len(), SNAPSHOTS / 40);
        assert_eq!(server.log().len() - before, 3, "one listing for each type");
        assert_eq!(process.store.snapshots(&"vm/3".parse().unwrap()).await.unwrap().len(), 40);
        assert_eq!(server.log().len() - before, 4);
        // Wide: at such a distance, one after the other would take four seconds.
        let rule = Rule::on("GET").path(|path| path.ends_with("index.json.blob"));
        server.add(rule.then(Action::Delay(Duration::from_millis(10))));
        let (before, connections) = (server.log().len(), server.connections());
        let refreshed = process.store.refresh().await.unwrap();
        assert_eq!((refreshed.objects, refreshed.fetched), (2 * SNAPSHOTS as u64, SNAPSHOTS as u64));
        let lists = |since: usize| {
            let log = server.log();
            log[since..].iter().filter(|line| line.query.contains("list-type")).count()
        };
        assert!(lists(before) <= 2 * SNAPSHOTS / PAGE + 1);
        assert!(server.log().len() - before <= SNAPSHOTS + lists(before) + 3);
        assert!(server.connections() - connections >= 16, "many at a time");
        let before = server.log().len();
        assert_eq!(process.store.refresh().await.unwrap().fetched, 0);
        assert!(server.log().len() - before <= lists(before) + 3, "the second time it lists and no more");
        let before = server.log().len();
        assert_eq!(process.store.groups(&Namespace::root()).await.unwrap().len(), SNAPSHOTS / 40);
        process.store.snapshots(&"vm/3".parse().unwrap()).await.unwrap();
        assert_eq!(server.log().len(), before);
        process.close().await;
    });
}

/// Proves H85, H87.
#[test]
fn object_keys_never_become_paths_on_the_local_disk() {
    let server = FaultServer::start(ServerOptions::default());
    let outer = larder_testing::scratch();
    let directory = outer.path().join("a/b/state");
    let time = "2020-01-01T00:00:00Z";
    let hostile = [
        "../../../owned/owner",
        "vm/../../../../owned/owner",
        "vm/..",
        "//etc/owned",
        "vm/1\\..\\owned/owner",
        "vm/C:/owner",
        "host/nul\u{1}/owner",
        &format!("host/x/{time}/../../../owned"),
        &format!("host/x/{time}/..%2f..%2fowned.blob"),
        &format!("ns/../ns/x/vm/1/{time}/index.json.blob"),
        "ns/./vm/1/owner",
    ]
    .map(|key| format!("store/.cnt/{key}"));
    block_on(async {
        let process = Opening::of("store").local(&directory).open(&server).await.unwrap();
        // Names that some file systems take for the same.
        let names = fill(&process.store, &["host/A", "host/a", "host/B", "host/b"]).await;
        let seen = view(&process.store).await;
        for key in &hostile {
            server.put(key, "hostile");
        }
        // A manifest that names what is elsewhere.
        let manifest = |name: &SnapshotName| format!("store/.cnt/{name}/index.json.blob");
        let snapshot = process.store.snapshot(&names[3]).await.unwrap();
        let json = String::from_utf8(snapshot.manifest().to_json()).unwrap();
        drop(snapshot);
        let good = server.objects()[&manifest(&names[3])].clone();
        for file in ["../../../../../owned.blob", "/owned.blob", "a/b.blob", "", ".", "..\\owned.blob"] {
            let mut blob = Vec::new();
            let json = json.replace("app.conf.blob", &file.replace('\\', "\\\\"));
            encode_plain(json.as_bytes(), &mut blob).unwrap();
            server.put(&manifest(&names[3]), blob);
            process.store.refresh().await.unwrap();
            assert_eq!(kind(process.store.snapshot(&names[3]).await), ErrorKind::Corrupt, "{file:?}");
        }
        server.put(&manifest(&names[3]), good);
        process.store.refresh().await.unwrap();
        assert_eq!(view(&process.store).await, seen);
        for (number, name) in names.iter().enumerate() {
            let owner = process.store.owner(name.group()).await.unwrap().unwrap();
            assert_eq!(owner.to_string(), format!("u{number}@pbs"));
        }
        process.close().await;
        assert!(hostile.iter().all(|key| server.objects().contains_key(key)));
    });
    for file in files_below(outer.path()) {
        let inside = file.strip_prefix(&directory).expect("outside of the state");
        let name = inside.to_str().unwrap();
        assert!(
            name.bytes().all(|byte| byte.is_ascii_lowercase() || b"0123456789/-.".contains(&byte)),
            "{name}"
        );
    }
}

/// Proves H86.
#[test]
fn stores_in_one_bucket_are_independent() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let one = Opening::of("a").local(directory.path()).open(&server).await.unwrap();
        back_up(&one.store, &group(), 0).await.unwrap();
        let of_one = |server: &FaultServer| {
            let objects = server.objects().into_iter();
            // But for its lease, which is renewed.
            objects.filter(|(key, _)| key.starts_with("a/") && !key.ends_with("lease")).collect::<Vec<_>>()
        };
        let (before, since) = (of_one(&server), server.log().len());
        let rule = Rule::list().query(|query| query.contains("prefix=a%2F") || query.contains("prefix=a/"));
        server.add(rule.then(Action::Delay(Duration::from_secs(20))));
        let other = async {
            let process = Opening::of("ab").open(&server).await.unwrap();
            let snapshot = back_up(&process.store, &group(), 0).await.unwrap();
            assert_eq!(check_all(&process.store, &group()).await.unwrap(), 1);
            assert_eq!(process.store.groups(&Namespace::root()).await.unwrap(), [group()]);
            drop(snapshot);
            process
        };
        // The one is stuck in its refresh; the other does not notice.
        let stuck = Box::pin(one.store.refresh());
        let process = match future::select(stuck, Box::pin(other)).await {
            Either::Left((refreshed, _)) => panic!("it was not stuck: {refreshed:?}"),
            Either::Right((process, _)) => process,
        };
        server.clear();
        for line in &server.log()[since..] {
            let is_of = |name: &str| {
                line.path.starts_with(&format!("/bucket/{name}/"))
                    || ["%2F", "/"].iter().any(|slash| line.query.contains(&format!("prefix={name}{slash}")))
            };
            assert!(is_of("ab") || is_of("a") || line.path.trim_end_matches('/') == "/bucket", "{line:?}");
        }
        assert_eq!(keys(&server, ".chunks").len(), 2 * CHUNKS, "chunks are not shared either");
        process.store.delete_group(&group()).await.unwrap();
        let backend = Arc::clone(&process.backend);
        drop(process);
        Datastore::destroy(backend).await.unwrap();
        assert_eq!(of_one(&server), before);
        assert_eq!(server.objects().keys().filter(|key| !key.starts_with("a/")).count(), 0);
        assert_eq!(check_all(&one.store, &group()).await.unwrap(), 1);
        one.close().await;
    });
}

/// Everything that changes a store, each of which is refused in this way.
async fn is_refused(store: &Datastore, name: &SnapshotName, why: ErrorKind) {
    let (group, space): (_, Namespace) = (name.group(), "space".parse().unwrap());
    let answers = [
        store.backup(group).begin().await.map(drop),
        store.backup(&"vm/77".parse().unwrap()).begin().await.map(drop),
        store.create_namespace(&space).await,
        store.set_notes(name, "x").await,
        store.set_group_notes(group, "x").await,
        store.set_owner(group, &"x@pbs".parse().unwrap()).await,
        store.set_protection(name, Protection::On).await,
        store.delete_snapshot(name).await,
        store.delete_group(group).await.map(drop),
        store.delete_namespace(&Namespace::root()).await.map(drop),
    ];
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(answer.map_err(|error| error.kind()), Err(why), "change {number}");
    }
}

/// Proves H89.
#[test]
fn a_process_that_lost_the_lease_publishes_and_deletes_nothing() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let old = fresh(&server).await;
        let name = back_up(&old.store, &group(), 0).await.unwrap().name().clone();
        let backup = old.store.backup(&group()).begin().await.unwrap();
        let (bytes, size) = (data(1), data(1).len() as u64);
        backup.image("disk.img", Cursor::new(bytes), size).chunk_bytes(CHUNK).await.unwrap();
        backup.blob("app.conf", "1").await.unwrap();
        // It was away for longer than its lease lives, and does not know.
        server.age(LEASE, Duration::from_secs(70));
        let new = fresh(&server).await;
        let other: GroupName = "vm/2".parse().unwrap();
        back_up(&new.store, &other, 2).await.unwrap();
        let (before, since) = (server.objects(), server.log().len());
        assert_eq!(kind(backup.finish().await), ErrorKind::Busy);
        is_refused(&old.store, &name, ErrorKind::Busy).await;
        assert_eq!(requests(&server, since, "DELETE", ""), []);
        assert_eq!(requests(&server, since, "POST", ""), []);
        let added: Vec<_> = server.objects().into_keys().filter(|key| !before.contains_key(key)).collect();
        assert!(added.iter().all(|key| key.ends_with("fidx")), "{added:?}");
        assert!(before.iter().all(|(key, bytes)| server.objects().get(key) == Some(bytes)));
        assert_eq!(check_all(&new.store, &group()).await.unwrap(), 1);
        assert_eq!(check_all(&new.store, &other).await.unwrap(), 1);
        // Every process may read.
        assert_eq!(check_all(&old.store, &group()).await.unwrap(), 1);
        new.close().await;
    });
}

fn copy_all(from: &Path, to: &Path) {
    for file in files_below(from) {
        let copy = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&file, &copy).unwrap();
    }
}

/// Proves H90.
#[test]
fn a_copied_local_state_is_detected() {
    let server = FaultServer::start(ServerOptions::default());
    let (directory, clone) = (larder_testing::scratch(), larder_testing::scratch());
    block_on(async {
        let process = Opening::of("store").local(directory.path()).open(&server).await.unwrap();
        back_up(&process.store, &group(), 0).await.unwrap();
        copy_all(directory.path(), clone.path());
        let backup = process.store.backup(&group()).begin().await.unwrap();
        backup.blob("app.conf", "1").await.unwrap();
        // The same instance, as it seems, which died and comes again.
        let cloned = Opening::of("store").local(clone.path()).open(&server).await.unwrap();
        back_up(&cloned.store, &"vm/2".parse().unwrap(), 2).await.unwrap();
        assert_eq!(kind(backup.finish().await), ErrorKind::Busy);
        assert_eq!(kind(process.store.backup(&group()).begin().await), ErrorKind::Busy);
        assert_eq!(check_all(&cloned.store, &group()).await.unwrap(), 1);
        cloned.close().await;
    });
}

/// Proves H92.
#[test]
fn a_store_with_an_unknown_feature_can_only_be_read() {
    for identity in [r#""features":["packs"],"version":1"#, r#""features":[],"version":2"#] {
        let server = FaultServer::start(ServerOptions::default());
        let directory = larder_testing::scratch();
        block_on(async {
            let process = fresh(&server).await;
            let name = back_up(&process.store, &group(), 0).await.unwrap().name().clone();
            let uuid = process.store.uuid().unwrap().to_owned();
            process.close().await;
            server.put("store/.larder/store.json", format!(r#"{{{identity},"uuid":"{uuid}"}}"#));
            let before = server.objects();
            let process = Opening::of("store").local(directory.path()).open(&server).await.unwrap();
            assert_eq!(check_all(&process.store, &group()).await.unwrap(), 1);
            is_refused(&process.store, &name, ErrorKind::Unsupported).await;
            assert_eq!(server.objects(), before, "not even a lease is taken");
            let destroyed = Datastore::destroy(Arc::<FaultBackend>::clone(&process.backend)).await;
            assert_eq!(kind(destroyed), ErrorKind::Unsupported);
            let left = |key: &String| server.objects().contains_key(key);
            assert!(before.keys().all(left));
            process.close().await;
        });
    }
}

/// Proves H93.
#[test]
fn a_dead_process_blocks_no_successor() {
    for stage in 0..4 {
        let server = FaultServer::start(ServerOptions::default());
        let directory = larder_testing::scratch();
        block_on(async {
            let process = Opening::of("store").local(directory.path()).open(&server).await.unwrap();
            let name = back_up(&process.store, &group(), 0).await.unwrap().name().clone();
            let reader = process.store.snapshot(&name).await.unwrap();
            let backup = process.store.backup(&group()).begin().await.unwrap();
            if stage > 0 {
                backup.blob("app.conf", "1").await.unwrap();
            }
            if stage > 1 {
                process.store.refresh().await.unwrap();
            }
            process.backend.crash_at(0);
            if stage > 2 {
                assert_eq!(kind(backup.finish().await), ErrorKind::Unavailable);
            } else {
                drop(backup);
            }
            drop((reader, process));
            // Another instance has to wait until the lease is over, and no longer.
            let other = fresh(&server).await;
            assert_eq!(kind(other.store.backup(&group()).begin().await), ErrorKind::Busy, "stage {stage}");
            // The same one may go on at once.
            let next = opened_again(&server, &Opening::of("store").local(directory.path())).await;
            next.store.set_protection(&name, Protection::On).await.unwrap();
            next.store.set_protection(&name, Protection::Off).await.unwrap();
            back_up(&next.store, &group(), 1).await.unwrap();
            drop(next);
            server.age(LEASE, Duration::from_secs(70));
            back_up(&other.store, &group(), 2).await.unwrap();
            assert_eq!(check_all(&other.store, &group()).await.unwrap(), 3);
            // The dead process cannot have been storing an old manifest.
            server.age(&format!("store/.cnt/{name}/index.json.blob"), Duration::from_hours(2));
            other.store.delete_snapshot(&name).await.unwrap();
            other.close().await;
        });
    }
}
