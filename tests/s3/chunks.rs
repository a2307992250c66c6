//! Hazards of chunks and their order in a bucket (section A of the hazards, and the order of B).

use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{Backend as _, Coordination, LockMode, LockScope};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::internal::fault::{Action as Failure, Rule as Failing};
use larder::internal::record::Method;
use larder::store::{Datastore, DirtyMap, SnapshotReader, SnapshotState};
use larder_testing::fault_server;
use larder_testing::fault_server::{Action, FaultServer, Lag, Options as ServerOptions, Quirk, Rule};
use larder_testing::s3_store::{
    CHUNK, CHUNKS, Opening, back_up, back_up_on, check, check_all, data, files_below, fresh, group, inside,
    keys, kind, opened_again, requests, restored, small,
};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Of a backup with an image and a blob into a new group.
const PUTS: u64 = CHUNKS as u64 + 4;

fn is_data(path: &str) -> bool {
    path.contains("/store/.chunks/") || path.contains("/store/.cnt/")
}

/// Proves H1, H37.
#[test]
fn a_manifest_is_put_only_after_every_chunk_and_index_was_acknowledged() {
    let server = Arc::new(FaultServer::start(ServerOptions::default()));
    let seen = Arc::new(Mutex::new(Vec::new()));
    block_on(async {
        let process = fresh(&server).await;
        // Puts are executed late and answered still later: a sent chunk is not a stored one.
        server.add(
            Rule::on("PUT")
                .path(|path| path.contains(".chunks") || path.ends_with("fidx"))
                .then(Action::Delay(Duration::from_millis(150))),
        );
        for name in ["fidx", "index.json.blob"] {
            let (seen, server_of) = (Arc::clone(&seen), inside(&server));
            let note = move |path: &str| {
                let is = path.ends_with(name);
                if is {
                    let log = server_of().log();
                    let ended = log.iter().filter(|line| line.method == "PUT" && line.status == Some(200));
                    let ended: Vec<_> = ended.map(|line| line.path.clone()).collect();
                    seen.lock().unwrap().push((name, ended));
                }
                is
            };
            server.add(Rule::on("PUT").path(note));
        }
        check(&back_up(&process.store, &group(), 0).await.unwrap()).await.unwrap();
        process.close().await;
    });
    let seen = seen.lock().unwrap();
    let [("fidx", before_index), ("index.json.blob", before_manifest)] = &seen[..] else {
        panic!("{seen:?}")
    };
    assert_eq!(before_index.iter().filter(|path| path.contains(".chunks")).count(), CHUNKS);
    assert!(before_manifest.iter().any(|path| path.ends_with("fidx")));
    assert!(before_manifest.iter().any(|path| path.ends_with("app.conf.blob")));
}

/// Proves H37.
#[test]
fn a_backup_with_any_failed_put_leaves_no_snapshot_or_a_whole_one() {
    let late = Action::ExecuteLate(Duration::from_millis(200));
    let faults = [
        // Refused for good, and what may have happened or happens later.
        (Action::status(403, "AccessDenied"), false),
        (Action::ExecuteThenDrop, true),
        (Action::CutRequestAt(500), true),
        (late, true),
    ];
    for (fault, passes) in faults {
        for nth in 1..=PUTS {
            let server = FaultServer::start(ServerOptions::default());
            block_on(async {
                let process = fresh(&server).await;
                server.add(Rule::on("PUT").path(is_data).nth(nth).then(fault.clone()));
                let made = back_up(&process.store, &group(), 0).await;
                assert_eq!(made.is_ok(), passes, "put {nth}, {fault:?}: {made:?}");
                let manifests = keys(&server, "index.json.blob").len();
                assert_eq!(manifests, usize::from(passes), "put {nth}, {fault:?}");
                let chunks = keys(&server, ".chunks").len();
                assert!(chunks == CHUNKS || keys(&server, "fidx").is_empty(), "put {nth}, {fault:?}");
                assert_eq!(check_all(&process.store, &group()).await.unwrap(), manifests);
                let made = back_up(&process.store, &group(), 1).await;
                check(&made.unwrap_or_else(|error| panic!("put {nth}, {fault:?}: {error:?}"))).await.unwrap();
                assert_eq!(check_all(&process.store, &group()).await.unwrap(), manifests + 1);
                process.close().await;
            });
            assert_eq!(server.violations(), [] as [String; 0]);
        }
    }
}

/// Proves H37, H38.
#[test]
fn a_crash_at_any_request_leaves_no_snapshot_or_a_whole_one() {
    let mut died = 0;
    for step in 1.. {
        let server = FaultServer::start(ServerOptions::default());
        let open = || Opening::of("store").instance("1").open(&server);
        let ended = block_on(async {
            let process = open().await.unwrap();
            let first = back_up(&process.store, &group(), 0).await.unwrap();
            process.backend.crash_at(process.backend.steps() + step);
            let made = back_up_on(&process.store, &group(), 1, Some(&first)).await;
            drop((first, process));
            let next = open().await.unwrap();
            let whole = check_all(&next.store, &group()).await.unwrap();
            assert_eq!(whole, 1 + usize::from(made.is_ok()), "step {step}");
            let latest = next.store.latest(&group()).await.unwrap().unwrap();
            check(&next.store.snapshot(&latest).await.unwrap()).await.unwrap();
            for info in next.store.snapshots(&group()).await.unwrap() {
                if info.state == SnapshotState::Unfinished {
                    died += 1;
                    assert_eq!(kind(next.store.snapshot(&info.name).await), ErrorKind::NotFound);
                }
            }
            // Requests of the dead process may still arrive, so its leftovers stay for a while before they are removed.
            back_up(&next.store, &group(), 2).await.unwrap();
            next.clock.leap(40 * 60);
            back_up(&next.store, &group(), 3).await.unwrap();
            let left = next.store.snapshots(&group()).await.unwrap();
            assert!(left.iter().all(|info| info.state == SnapshotState::Finished), "step {step}: {left:?}");
            assert_eq!(check_all(&next.store, &group()).await.unwrap(), whole + 2, "step {step}");
            next.close().await;
            made.is_ok()
        });
        if ended {
            assert!(step > CHUNKS as u64 + 3 && died >= 2, "{step} steps, {died} left something");
            return;
        }
    }
}

/// Proves H3.
#[test]
fn only_the_chunks_module_stores_touches_and_deletes_chunks() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    // Rooms that render or list keys, tell how urgent a request is, hold chunks in packs as a backend, damage them on purpose, or ask every backend for its promises.
    let others = [
        "format/layout.rs",
        "backend/fs/objects.rs",
        "backend/fs/times.rs",
        "backend/s3/mod.rs",
        "backend/conformance/",
        "packs/",
        "simulation/",
    ];
    let mut makers = BTreeSet::new();
    for file in files_below(&root) {
        let path = file.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&file).unwrap();
        let changes = ["PutMode::", "Removal::", "Removal {", ".touch(", ".copy("];
        let makes = text.contains("Key::Chunk") && changes.iter().any(|change| text.contains(change));
        if makes && !others.iter().any(|other| path.starts_with(other)) {
            makers.insert(path);
        }
    }
    let room = "chunks/";
    assert!(makers.contains("chunks/put.rs") && makers.contains("chunks/sweep.rs"));
    assert_eq!(makers.iter().find(|maker| !maker.starts_with(room)), None);
}

/// Writes the same data in each way that there is, into a snapshot for each.
async fn in_every_way(store: &Datastore, seed: u64, base: Option<&SnapshotReader>) -> Vec<SnapshotReader> {
    let (bytes, mut made) = (data(seed), Vec::new());
    let size = bytes.len() as u64;
    for way in 0..4 {
        let backup = store.backup(&group());
        let backup = if way == 1 { backup.no_cache() } else { backup };
        let backup = backup.begin().await.unwrap();
        let image = backup.image("disk.img", Cursor::new(bytes.clone()), size).chunk_bytes(CHUNK);
        match (way, base) {
            (0 | 1, None) => drop(image.await.unwrap()),
            (0 | 1, Some(base)) => drop(image.base(base).await.unwrap()),
            (2, Some(base)) => drop(image.base(base).dirty(DirtyMap::new()).await.unwrap()),
            _ => {
                drop(image);
                let writer = backup.image_writer("disk.img", size).chunk_bytes(CHUNK);
                let writer = if let Some(base) = base { writer.base(base) } else { writer };
                let mut writer = writer.begin().await.unwrap();
                writer.write_at(0, bytes.clone().into()).await.unwrap();
                writer.finish().await.unwrap();
            }
        }
        made.push(backup.finish().await.unwrap().snapshot);
    }
    made
}

/// Proves H2, H3.
#[test]
fn a_chunk_known_from_any_source_is_in_the_store() {
    for has_local in [false, true] {
        let server = FaultServer::start(ServerOptions::default());
        let directory = larder_testing::scratch();
        block_on(async {
            let opening = Opening::of("store");
            let opening = if has_local { opening.local(directory.path()) } else { opening };
            let process = opening.open(&server).await.unwrap();
            // New, then by the answer to a put or by a record, then by the base; each also twice within a backup.
            let before = server.log().len();
            let first = in_every_way(&process.store, 0, None).await;
            let put = requests(&server, before, "PUT", ".chunks");
            assert_eq!(put.iter().filter(|put| put.executed).count(), CHUNKS);
            assert!(put.iter().all(|put| put.header("if-none-match") == Some("*")), "H24");
            let compared = requests(&server, before, "HEAD", ".chunks").len();
            assert_eq!((put.len(), compared), if has_local { (CHUNKS, 0) } else { (4 * CHUNKS, 3 * CHUNKS) });
            let before = server.log().len();
            let second = in_every_way(&process.store, 0, Some(&first[0])).await;
            assert_eq!(requests(&server, before, "PUT", ".chunks"), []);
            for snapshot in first.iter().chain(&second) {
                assert!(restored(snapshot).await.unwrap() == data(0));
            }
            let backup = process.store.backup(&"vm/2".parse().unwrap()).begin().await.unwrap();
            let twice = [data(7), data(7)].concat();
            let size = twice.len() as u64;
            let before = server.log().len();
            backup.image("disk.img", Cursor::new(twice.clone()), size).chunk_bytes(CHUNK).await.unwrap();
            assert_eq!(requests(&server, before, "PUT", ".chunks").len(), CHUNKS);
            assert!(restored(&backup.finish().await.unwrap().snapshot).await.unwrap() == twice);
            drop((first, second));
            process.close().await;
        });
    }
}

/// Proves H5.
#[test]
fn a_backup_is_registered_from_begin_to_end() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let base = back_up(&process.store, &group(), 0).await.unwrap();
        process.close().await;
        let (process, other) = (fresh(&server).await, fresh(&server).await);
        let base = process.store.snapshot(base.name()).await.unwrap();
        // The questions of a garbage collection, in another process and in this one.
        let registered = || async {
            let alone = other.backend.lock(&LockScope::Store, LockMode::Exclusive).await;
            assert_eq!(kind(alone), ErrorKind::Busy);
            let alone = process.backend.lock(&LockScope::Store, LockMode::Exclusive).await.unwrap();
            alone.oldest_shared().is_some()
        };
        let backup = process.store.backup(&group()).begin().await.unwrap();
        assert!(registered().await);
        let bytes = data(1);
        let size = bytes.len() as u64;
        for name in ["one.img", "two.img"] {
            backup.image(name, Cursor::new(bytes.clone()), size).chunk_bytes(CHUNK).await.unwrap();
            assert!(registered().await, "{name}");
        }
        let again = backup.image("disk.img", Cursor::new(bytes), size).chunk_bytes(CHUNK).base(&base);
        again.await.unwrap();
        assert!(registered().await);
        backup.finish().await.unwrap();
        assert!(!registered().await);
        drop(base);
        process.close().await;
        // After it is closed, it blocks no other process.
        other.backend.lock(&LockScope::Store, LockMode::Exclusive).await.unwrap();
    });
}

/// Proves H16.
#[test]
fn a_put_without_an_answer_is_compared_by_the_next_backup() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let open = || Opening::of("store").local(directory.path()).open(&server);
        let process = open().await.unwrap();
        // The group stays when a backup of it fails: a name that a dead process was removing is not reused at once.
        small(&process.store, &group()).await;
        // It is stored, and the process gets an error: no record of it exists.
        let failing = Failing::on(Method::Put, Failure::FailAfter(ErrorKind::Unavailable));
        process.backend.add(failing.keys(|key| matches!(key, Key::Chunk(_))).nth(2));
        assert_eq!(kind(back_up(&process.store, &group(), 0).await), ErrorKind::Unavailable);
        drop(process);
        // The dead process may still be removing the leftovers of the failed backup.
        let next = opened_again(&server, &Opening::of("store").local(directory.path())).await;
        let before = server.log().len();
        check(&back_up(&next.store, &group(), 0).await.unwrap()).await.unwrap();
        let put = requests(&server, 0, "PUT", ".chunks");
        assert_eq!(put.iter().filter(|put| put.executed).count(), CHUNKS, "each is stored once");
        assert!(!requests(&server, before, "HEAD", ".chunks").is_empty(), "what was there is compared");
        next.close().await;
    });
}

/// Proves H17.
#[test]
fn a_late_put_changes_nothing() {
    // With conditions it is refused then; without, it stores the same once more.
    for options in [ServerOptions::default(), ServerOptions::with([Quirk::ConditionsRejected])] {
        let server = FaultServer::start(options);
        block_on(async {
            let process = fresh(&server).await;
            server.add(
                Rule::on("PUT")
                    .path(|path| path.contains(".chunks"))
                    .first(2)
                    .then(Action::ExecuteLate(Duration::from_millis(400))),
            );
            let snapshot = back_up(&process.store, &group(), 0).await.unwrap();
            let sent = |log: &[fault_server::Logged]| {
                let put = log.iter().filter(|line| line.method == "PUT" && line.path.contains(".chunks"));
                put.filter(|line| line.executed).count()
            };
            let stored = keys(&server, ".chunks");
            check(&snapshot).await.unwrap();
            // All but those of which the condition fails.
            let all = if process.backend.capabilities().conditional_put { CHUNKS } else { CHUNKS + 2 };
            assert!(server.wait(Duration::from_secs(5), |log| sent(log) >= all));
            check(&snapshot).await.unwrap();
            assert_eq!(keys(&server, ".chunks"), stored);
            drop(snapshot);
            process.close().await;
        });
    }
}

/// Proves H34.
#[test]
fn a_truncated_object_is_detected_and_stored_again() {
    for nth in 1..=PUTS {
        let server = FaultServer::start(ServerOptions::default());
        block_on(async {
            let process = fresh(&server).await;
            server.add(Rule::on("PUT").path(is_data).nth(nth).then(Action::StoreCutAt(5)));
            let made = back_up(&process.store, &group(), 0).await;
            let is_chunk = (2..2 + CHUNKS as u64).contains(&nth);
            assert!(made.is_ok() || !is_chunk, "put {nth}: a chunk is mended, {made:?}");
            if let Ok(snapshot) = &made {
                check(snapshot).await.unwrap_or_else(|error| panic!("put {nth}: {error:?}"));
            }
            let failed = made.is_err();
            drop(made);
            // Damage without a good copy is detected by every reader.
            for info in process.store.snapshots(&group()).await.unwrap() {
                if failed && info.state == SnapshotState::Finished {
                    assert_eq!(kind(process.store.snapshot(&info.name).await), ErrorKind::Corrupt, "{nth}");
                }
            }
            let other = back_up(&process.store, &"vm/2".parse().unwrap(), 0).await.unwrap();
            check(&other).await.unwrap_or_else(|error| panic!("put {nth}: {error:?}"));
            drop(other);
            process.close().await;
        });
    }
}

/// Proves H34.
#[test]
fn every_read_detects_corrupt_objects() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        for path in ["/.chunks/", "disk.img.fidx", "app.conf.blob", "index.json.blob"] {
            let name = back_up(&process.store, &group(), 0).await.unwrap().name().clone();
            let (key, mut bytes) = server.objects().into_iter().find(|(key, _)| key.contains(path)).unwrap();
            *bytes.last_mut().unwrap() ^= 1;
            server.put(&key, bytes);
            let found = match process.store.snapshot(&name).await {
                Ok(snapshot) => check(&snapshot).await,
                Err(error) => Err(error),
            };
            assert_eq!(kind(found), ErrorKind::Corrupt, "{path}");
            process.store.delete_snapshot(&name).await.unwrap();
            for key in keys(&server, ".chunks") {
                server.remove(&key);
            }
        }
        process.close().await;
    });
}

/// The first chunk of an archive, lost or damaged in its length or within it.
fn harm(server: &FaultServer, how: usize) -> (String, Vec<u8>) {
    let (key, good) = server.objects().into_iter().find(|(key, _)| key.contains(".chunks")).unwrap();
    let mut bad = good.clone();
    match how {
        0 => server.remove(&key),
        1 => server.put(&key, good[..100].to_vec()),
        _ => {
            bad[1000] ^= 1;
            server.put(&key, bad);
        }
    }
    (key, good)
}

/// Proves H22, H23.
#[test]
fn a_suspect_chunk_is_not_known_through_any_record() {
    for how in 0..3 {
        for has_base in [false, true] {
            for has_local in [false, true] {
                let server = FaultServer::start(ServerOptions::default());
                let directory = larder_testing::scratch();
                let what = format!("harm {how}, base {has_base}, local {has_local}");
                block_on(async {
                    let opening = Opening::of("store").cache_bytes(0);
                    let opening = if has_local { opening.local(directory.path()) } else { opening };
                    let process = opening.open(&server).await.unwrap();
                    let snapshot = back_up(&process.store, &group(), 0).await.unwrap();
                    let (key, good) = harm(&server, how);
                    let found = kind(restored(&snapshot).await);
                    assert_eq!(found, ErrorKind::Corrupt, "{what}");
                    let base = has_base.then_some(&snapshot);
                    if has_base {
                        // Nothing is at hand that could mend it.
                        let backup = process.store.backup(&group()).begin().await.unwrap();
                        let image = backup.image("disk.img", Cursor::new(data(0)), data(0).len() as u64);
                        let clean = image.chunk_bytes(CHUNK).base(&snapshot).dirty(DirtyMap::new()).await;
                        assert_eq!(clean.map(drop).unwrap_err().kind(), ErrorKind::Corrupt, "{what}");
                        backup.abort().await.unwrap();
                    }
                    let again = back_up_on(&process.store, &group(), 0, base).await.unwrap();
                    assert!(server.objects().get(&key) == Some(&good), "{what}");
                    check(&again).await.unwrap();
                    check(&snapshot).await.unwrap();
                    drop((snapshot, again));
                    process.close().await;
                });
            }
        }
    }
}

/// Proves H22.
#[test]
fn an_unreachable_chunk_keeps_its_presence_record() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process =
            Opening::of("store").cache_bytes(0).local(directory.path()).open(&server).await.unwrap();
        let snapshot = back_up(&process.store, &group(), 0).await.unwrap();
        let answers =
            [(403, "AccessDenied"), (403, "InvalidObjectState"), (503, "SlowDown"), (404, "NoSuchBucket")];
        for (status, code) in answers {
            let rule = Rule::on("GET").path(|path| path.contains(".chunks"));
            server.add(rule.then(Action::status(status, code)));
            let found = kind(restored(&snapshot).await);
            assert!(!matches!(found, ErrorKind::Corrupt | ErrorKind::NotFound), "{code}: {found:?}");
            server.clear();
        }
        let before = server.log().len();
        back_up(&process.store, &group(), 0).await.unwrap();
        assert_eq!(requests(&server, before, "PUT", ".chunks"), []);
        drop(snapshot);
        process.close().await;
    });
}

/// Proves H13.
#[test]
fn a_snapshot_that_listings_do_not_show_yet_is_not_overwritten() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let snapshot = back_up(&process.store, &group(), 0).await.unwrap();
        let time = snapshot.name().time();
        let before = server.objects();
        server.add(Rule::list().then(Action::ListingLag(Lag::Listings(1000))));
        assert_eq!(process.store.snapshots(&group()).await.unwrap(), []);
        for name in ["app.conf", "other.conf"] {
            let again = async {
                let backup = process.store.backup(&group()).time(time.into()).begin().await?;
                backup.blob(name, "other").await?;
                backup.finish().await.map(drop)
            };
            assert_eq!(kind(again.await), ErrorKind::AlreadyExists, "{name}");
        }
        let after = server.objects();
        assert!(before.iter().all(|(key, bytes)| key.contains(".larder") || after.get(key) == Some(bytes)));
        check(&process.store.snapshot(snapshot.name()).await.unwrap()).await.unwrap();
        drop(snapshot);
        process.close().await;
    });
}

/// Makes listings show all there is but this object.
async fn hide(server: &FaultServer, store: &Datastore, key: &str) {
    const LISTINGS: u64 = 20;
    for _ in 0..LISTINGS {
        store.snapshots(&group()).await.unwrap();
    }
    let bytes = server.objects()[key].clone();
    server.remove(key);
    server.put(key, bytes);
    server.add(Rule::list().then(Action::ListingLag(Lag::Listings(LISTINGS))));
}

/// Proves H13.
#[test]
fn a_snapshot_whose_manifest_is_not_listed_yet_is_not_a_leftover() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let snapshot = back_up(&process.store, &group(), 0).await.unwrap();
        hide(&server, &process.store, &keys(&server, "index.json.blob")[0]).await;
        let listed = process.store.snapshots(&group()).await.unwrap();
        assert_eq!(listed[0].state, SnapshotState::Unfinished, "as the listing has it");
        back_up(&process.store, &group(), 1).await.unwrap();
        server.clear();
        check(&snapshot).await.unwrap();
        // When it is to go, it goes whole.
        hide(&server, &process.store, &keys(&server, "index.json.blob")[0]).await;
        let name = snapshot.name().clone();
        drop(snapshot);
        process.store.delete_snapshot(&name).await.unwrap();
        server.clear();
        assert_eq!(kind(process.store.snapshot(&name).await), ErrorKind::NotFound);
        assert_eq!(check_all(&process.store, &group()).await.unwrap(), 1);
        process.close().await;
    });
}

/// Proves H30.
#[test]
fn foreign_objects_stay_and_do_not_affect_the_store() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    let foreign = [
        "store/.cnt/vm/1/",
        "store/.cnt/vm/1/notes.txt",
        "store/.cnt/vm/1/2020-01-01T00:00:00Z/../x",
        "store/.cnt/readme",
        "store/.chunks/0000/readme",
        "store/.chunks/ffff/",
        "store/other",
        "stor",
    ];
    block_on(async {
        let process = Opening::of("store").local(directory.path()).open(&server).await.unwrap();
        for key in foreign {
            server.put(key, "x");
        }
        let first = back_up(&process.store, &group(), 0).await.unwrap().name().clone();
        back_up(&process.store, &group(), 1).await.unwrap();
        process.store.refresh().await.unwrap();
        assert_eq!(check_all(&process.store, &group()).await.unwrap(), 2);
        process.store.delete_snapshot(&first).await.unwrap();
        process.store.delete_group(&group()).await.unwrap();
        assert_eq!(foreign.iter().filter(|key| server.objects().contains_key(**key)).count(), foreign.len());
        let left = keys(&server, "store/.cnt/vm/1");
        // The owner goes with the last thing in the group only.
        let owner = "store/.cnt/vm/1/owner";
        assert_eq!(left, ["store/.cnt/vm/1/", foreign[2], "store/.cnt/vm/1/notes.txt", owner]);
        process.close().await;
    });
}

/// Proves H32.
#[test]
fn a_versioned_bucket_is_refused_unless_the_caller_accepts_it() {
    for options in [
        ServerOptions { versioning: Some("Enabled"), ..ServerOptions::default() },
        ServerOptions { object_lock: true, ..ServerOptions::default() },
    ] {
        let server = FaultServer::start(options);
        let opened = block_on(Opening::of("store").open(&server));
        assert_eq!(kind(opened), ErrorKind::Unsupported);
        assert!(server.objects().is_empty());
    }
}

/// Proves H35.
#[test]
fn a_snapshot_with_an_open_reader_is_not_deleted() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let name = back_up(&process.store, &group(), 0).await.unwrap().name().clone();
        let snapshot = process.store.snapshot(&name).await.unwrap();
        let archive = snapshot.archive("disk.img.fidx").await.unwrap();
        drop(snapshot);
        assert_eq!(kind(process.store.delete_snapshot(&name).await), ErrorKind::Busy);
        assert_eq!(kind(process.store.delete_group(&group()).await), ErrorKind::Busy);
        assert!(archive.read_at(CHUNK, 10).await.unwrap()[..] == data(0)[65536..65546]);
        drop(archive);
        process.store.delete_snapshot(&name).await.unwrap();
        process.close().await;
    });
}
