//! Garbage collection in a bucket: sightings, local state, late requests, refusals, listings that lie, and what it costs (H10 to H13,
//! H16, H17, H19, H74).

use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::{Coordination, LockMode, LockScope, MemoryBackend};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::name::Namespace;
use larder::gc::{self, GcOptions};
use larder::store::{Datastore, Options};
use larder_testing::fault_server;
use larder_testing::fault_server::{Action, FaultServer, Lag, Options as ServerOptions, Rule};
use larder_testing::gc_scene::{
    CHUNK, at_once, back_up, back_up_on, check, check_all, collect, collected, data, digest, digests, group,
    leave, reason,
};
use larder_testing::s3_store::{Opening, Process, files_below, fresh, keys, opened_again, requests};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const SIGHTINGS: &str = "store/.larder/gc-sightings";
const DAY: i64 = 86_400;

fn chunks(server: &FaultServer) -> BTreeSet<Digest> {
    let names = keys(server, "/.chunks/").into_iter();
    names.filter_map(|key| key.rsplit_once('/').unwrap().1.parse().ok()).collect()
}

/// Options that remove at once what two runs found unreferenced.
fn twice() -> GcOptions {
    GcOptions::default().grace(Duration::ZERO).listing_lag(Duration::ZERO).max_garbage(100)
}

/// Lets this time pass for the server, and for a process.
fn pass(server: &FaultServer, process: &Process, seconds: i64) {
    server.clear();
    server.add(Rule::any().then(Action::SkewClock(seconds)));
    process.clock.set_off(seconds);
}

fn opening(directory: Option<&Path>) -> Opening {
    let opening = Opening::of("store").instance("0123456789abcdef0123456789abcdef");
    match directory {
        Some(directory) => opening.local(directory),
        None => opening,
    }
}

/// Proves H11, H74.
#[test]
fn a_chunk_first_seen_unreferenced_is_kept() {
    for damage in 0..4 {
        let (server, directory) = (FaultServer::start(ServerOptions::default()), larder_testing::scratch());
        block_on(async {
            let process = opening(Some(directory.path())).open(&server).await.unwrap();
            leave(&process.store, &[1, 2]).await;
            drop(back_up(&process.store, "host/a", &[3]).await.unwrap());
            let report = collected(&process.store, twice()).await;
            assert_eq!((report.removed.chunks, report.waiting.chunks), (0, 2));
            process.close().await;
            // All that was known is lost, in one way or another.
            fs::remove_dir_all(directory.path().join("mirror")).unwrap();
            fs::remove_dir_all(directory.path().join("presence")).unwrap();
            let sightings = server.objects()[SIGHTINGS].clone();
            match damage {
                0 => server.remove(SIGHTINGS),
                1 => server.put(SIGHTINGS, &sightings[..sightings.len() - 5]),
                2 => server.put(SIGHTINGS, [&sightings[..20], &[0], &sightings[21..]].concat()),
                _ => server.put(SIGHTINGS, ""),
            }
            let process = opening(Some(directory.path())).open(&server).await.unwrap();
            let report = collected(&process.store, twice()).await;
            assert_eq!((report.removed.chunks, report.waiting.chunks), (0, 2), "damage {damage}");
            assert_eq!(chunks(&server), digests([1, 2, 3]));
            assert_eq!(collected(&process.store, twice()).await.removed.chunks, 2);
            assert_eq!((chunks(&server), check_all(&process.store).await), (digests([3]), 1));
            process.close().await;
        });
    }
}

/// Proves H22.
///
/// Found by one process, stored again by another that only has a base which names it.
#[test]
fn a_chunk_that_a_collection_found_missing_is_not_known_through_a_base() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        drop(back_up(&process.store, "host/a", &[1, 2]).await.unwrap());
        let lost = keys(&server, "/.chunks/").into_iter().find(|key| key.ends_with(&digest(1).to_string()));
        server.remove(&lost.unwrap());
        let mut plan = gc::plan(&process.store, twice()).await.unwrap();
        assert_eq!((plan.summary().missing, plan.summary().damaged_count), (1, 1));
        plan.execute().await.unwrap();
        drop(plan);
        process.close().await;
        let process = opened_again(&server, &opening(None)).await;
        let base = process.store.latest(&group("host/a")).await.unwrap().unwrap();
        let base = process.store.snapshot(&base).await.unwrap();
        let again = back_up_on(&process.store, "host/a", &[1, 2], Some(&base)).await.unwrap();
        check(&again).await.unwrap();
        drop((again, base));
        assert_eq!(check_all(&process.store).await, 2);
        process.close().await;
    });
}

/// Proves H16, H165.
///
/// One opening has records of what there is; another, of the same backend, removes some of it.
#[test]
fn presence_records_of_one_opening_end_with_a_collection_by_another() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = opened_again(&server, &opening(Some(directory.path()))).await;
        leave(&process.store, &[1, 2]).await;
        drop(back_up(&process.store, "host/a", &[3]).await.unwrap());
        let other = Datastore::open(Arc::clone(&process.backend) as _, Options::default()).await.unwrap();
        collected(&other, twice()).await;
        assert_eq!(collected(&other, twice()).await.removed.chunks, 2);
        let again = back_up(&process.store, "host/a", &[1, 2]).await.unwrap();
        check(&again).await.unwrap();
        assert_eq!(check_all(&process.store).await, 2);
        // A chunk that the other finds missing is not known to the first either.
        let lost = keys(&server, "/.chunks/").into_iter().find(|key| key.ends_with(&digest(1).to_string()));
        server.remove(&lost.unwrap());
        assert_eq!(gc::plan(&other, twice()).await.unwrap().summary().missing, 1);
        drop(back_up_on(&process.store, "host/a", &[1, 2], Some(&again)).await.unwrap());
        assert_eq!(check_all(&process.store).await, 3);
        process.close().await;
    });
}

/// Proves H11.
#[test]
fn two_collections_must_be_a_grace_time_apart_by_the_server_clock() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let options = || twice().grace(Duration::from_hours(24));
        leave(&process.store, &[1, 2]).await;
        drop(back_up(&process.store, "host/a", &[3]).await.unwrap());
        // Old chunks, new sightings; one is needed again in between.
        pass(&server, &process, 2 * DAY);
        assert_eq!(collected(&process.store, options()).await.removed.chunks, 0);
        pass(&server, &process, 3 * DAY - 60);
        assert_eq!(collected(&process.store, options()).await.removed.chunks, 0);
        drop(back_up(&process.store, "host/b", &[1]).await.unwrap());
        pass(&server, &process, 3 * DAY + 60);
        let report = collected(&process.store, options()).await;
        assert_eq!((report.removed.chunks, report.waiting.chunks), (1, 0));
        process.store.delete_group(&group("host/b")).await.unwrap();
        let report = collected(&process.store, options()).await;
        assert_eq!((report.removed.chunks, report.waiting.chunks), (0, 1), "it was in use meanwhile");
        pass(&server, &process, 5 * DAY);
        assert_eq!(collected(&process.store, options()).await.removed.chunks, 1);
        assert_eq!(chunks(&server), digests([3]));
        process.close().await;
    });
}

/// Proves H14.
#[test]
fn a_clock_far_from_the_server_clock_stops_a_collection() {
    for seconds in [-2 * 3600, 2 * 3600, 400 * DAY] {
        let server = FaultServer::start(ServerOptions::default());
        block_on(async {
            let process = fresh(&server).await;
            leave(&process.store, &[1]).await;
            drop(back_up(&process.store, "host/a", &[3]).await.unwrap());
            process.clock.set_off(seconds);
            let refused = reason(collect(&process.store, at_once()).await).unwrap();
            assert_eq!(refused.kind(), ErrorKind::Unavailable, "{seconds}");
            assert_eq!(chunks(&server), digests([1, 3]));
            process.clock.set_off(if seconds < 0 { -3000 } else { 3000 });
            assert_eq!(collected(&process.store, at_once()).await.removed.chunks, 1);
            process.close().await;
        });
    }
}

/// Copies a directory with what is in it.
fn copy_all(from: &Path, to: &Path) {
    for file in files_below(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&file, target).unwrap();
    }
}

/// Changes of local state between two processes.
fn spoil(how: usize, directory: &Path, older: &Path) {
    let files = files_below(directory);
    let is_state = |file: &&std::path::PathBuf| file.file_name().is_some_and(|name| name != "lock");
    match how {
        0 => {}
        1 => fs::remove_dir_all(directory).unwrap(),
        2 => {
            fs::remove_dir_all(directory).unwrap();
            copy_all(older, directory);
        }
        3 => files.iter().filter(is_state).step_by(2).for_each(|file| fs::remove_file(file).unwrap()),
        _ => {
            for file in files
                .iter()
                .filter(is_state)
                .filter(|file| !file.ends_with("instance") && !file.ends_with("store"))
            {
                let mut bytes = fs::read(file).unwrap();
                let middle = bytes.len() / 2;
                bytes.iter_mut().skip(middle).take(1).for_each(|byte| *byte ^= 1);
                if how == 5 {
                    bytes.truncate(middle);
                }
                fs::write(file, bytes).unwrap();
            }
        }
    }
}

/// Proves H10, H74.
#[test]
fn lost_old_or_damaged_local_state_loses_no_chunk() {
    for how in 0..6 {
        let server = FaultServer::start(ServerOptions::default());
        let (directory, older) = (larder_testing::scratch(), larder_testing::scratch());
        let directory = directory.path();
        block_on(async {
            let process = opening(Some(directory)).open(&server).await.unwrap();
            drop(back_up(&process.store, "host/a", &[1, 2, 3]).await.unwrap());
            leave(&process.store, &[8, 9]).await;
            process.store.refresh().await.unwrap();
            process.close().await;
            copy_all(directory, older.path());
            let process = opened_again(&server, &opening(Some(directory))).await;
            drop(back_up(&process.store, "host/a", &[2, 3, 4]).await.unwrap());
            drop(back_up(&process.store, "host/b", &[5]).await.unwrap());
            let first = process.store.snapshots(&group("host/a")).await.unwrap().remove(0).name;
            process.store.delete_snapshot(&first).await.unwrap();
            // The old copy knows of 8 and 9, which are gone.
            collected(&process.store, at_once()).await;
            process.close().await;
            spoil(how, directory, older.path());
            let process = opened_again(&server, &opening(Some(directory))).await;
            let report = collected(&process.store, at_once()).await;
            assert_eq!((report.removed.chunks, report.failed), (0, 0), "{how}");
            assert_eq!(chunks(&server), digests([2, 3, 4, 5]), "{how}");
            assert_eq!(check_all(&process.store).await, 2);
            // Nor does anything that was remembered keep a chunk from being stored.
            drop(back_up(&process.store, "host/c", &[1, 8, 9, 2]).await.unwrap());
            assert_eq!(check_all(&process.store).await, 3, "{how}");
            collected(&process.store, at_once()).await;
            assert_eq!(chunks(&server), digests([1, 2, 3, 4, 5, 8, 9]), "{how}");
            process.close().await;
        });
    }
}

/// Proves H12.
#[test]
fn an_inconsistent_listing_removes_nothing() {
    let broken = [
        Action::DropXmlElement("NextContinuationToken"),
        Action::RepeatPage,
        Action::status(403, "AccessDenied"),
        Action::OkWithErrorBody { whitespace: 3, delay: Duration::ZERO },
        Action::Status { status: 200, code: "", headers: vec![], body: Some(Vec::new()) },
    ];
    for (number, action) in broken.into_iter().enumerate() {
        for part in [".cnt", ".chunks"] {
            let server = FaultServer::start(ServerOptions { page: 2, ..ServerOptions::default() });
            block_on(async {
                let process = fresh(&server).await;
                leave(&process.store, &[1, 2, 3]).await;
                drop(back_up(&process.store, "host/a", &[4, 5, 6]).await.unwrap());
                drop(back_up(&process.store, "host/b", &[6, 7, 8]).await.unwrap());
                let before = server.log().len();
                let rule =
                    Rule::list().query(move |query| query.contains("list-type=2") && query.contains(part));
                server.add(rule.then(action.clone()));
                let plan = gc::plan(&process.store, at_once()).await;
                assert!(plan.is_err(), "{number} {part}");
                drop(plan);
                assert_eq!(requests(&server, before, "POST", ""), []);
                assert_eq!(chunks(&server).len(), 8);
                server.clear();
                assert_eq!(collected(&process.store, at_once()).await.removed.chunks, 3);
                assert_eq!(check_all(&process.store).await, 2);
                process.close().await;
            });
        }
    }
}

/// Proves H13.
#[test]
fn chunks_that_listings_do_not_show_yet_are_neither_garbage_nor_missing() {
    for lag in [Lag::Listings(10_000), Lag::For(Duration::from_hours(1))] {
        let server = FaultServer::start(ServerOptions::default());
        block_on(async {
            let process = fresh(&server).await;
            leave(&process.store, &[1, 2, 3]).await;
            collected(&process.store, twice()).await;
            // From here on nothing new is shown: neither the chunk 4, nor the index that needs 1 and 4.
            server.add(Rule::list().then(Action::ListingLag(lag)));
            let snapshot = back_up(&process.store, "host/a", &[1, 4]).await.unwrap();
            drop(snapshot);
            let other = Datastore::open(Arc::clone(&process.backend) as _, Options::default()).await.unwrap();
            let plan = gc::plan(&other, twice()).await.unwrap();
            assert_eq!((plan.summary().missing, plan.summary().indexes), (0, 1), "{lag:?}");
            drop(plan);
            collected(&other, twice()).await;
            server.clear();
            assert_eq!(check_all(&process.store).await, 1);
            assert!(chunks(&server).is_superset(&digests([1, 4])));
            drop(other);
            process.close().await;
        });
    }
}

/// From here on listings hide everything younger than this number of listings.
fn lag_behind(server: &FaultServer, listings: u64) {
    server.add(Rule::list().then(Action::ListingLag(Lag::Listings(listings))));
}

/// Lets all objects become older than the listing lag.
async fn list_often(process: &Process, times: u64) {
    for _ in 0..times {
        process.store.groups(&Namespace::root()).await.unwrap();
    }
}

/// Opens the store as a process that knows nothing of what this one did.
async fn stranger(server: &FaultServer, number: u32, days: i64) -> Process {
    server.clear();
    estrange(server, number);
    let process = opened_again(server, &opening(None)).await;
    pass(server, &process, days * DAY);
    process
}

/// Proves H13.
#[test]
fn a_chunk_that_another_process_just_reused_is_kept_although_listings_lag() {
    for is_moved in [false, true] {
        let server = FaultServer::start(ServerOptions::default());
        let day_long = || GcOptions::default().grace(Duration::from_hours(24)).max_garbage(100);
        block_on(async {
            let process = fresh(&server).await;
            leave(&process.store, &[1, 2]).await;
            drop(back_up(&process.store, "host/a", &[3]).await.unwrap());
            assert_eq!(collected(&process.store, day_long()).await.waiting.chunks, 2);
            list_often(&process, 60).await;
            process.close().await;
            let process = stranger(&server, 1, 2).await;
            drop(back_up(&process.store, "host/b", &[1]).await.unwrap());
            let mut days = 2;
            if is_moved {
                list_often(&process, 60).await;
                days = 4;
                pass(&server, &process, days * DAY);
                let to: Namespace = "n".parse().unwrap();
                process.store.create_namespace(&to).await.unwrap();
                process.store.move_group(&group("host/b"), &to).await.unwrap();
            }
            process.close().await;
            let process = stranger(&server, 2, days).await;
            lag_behind(&server, 50);
            let report = collected(&process.store, day_long()).await;
            assert!(chunks(&server).contains(&digest(1)), "moved: {is_moved}, {report:?}");
            pass(&server, &process, days * DAY);
            assert_eq!(
                (report.removed.chunks > 0, chunks(&server).contains(&digest(2))),
                (!is_moved, is_moved)
            );
            assert_eq!(check_all(&process.store).await, if is_moved { 1 } else { 2 });
            process.close().await;
        });
    }
}

/// Proves H13.
#[test]
fn a_grace_time_shorter_than_the_listing_lag_is_refused() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        let minute = || GcOptions::default().grace(Duration::from_mins(1));
        let refused = gc::plan(&process.store, minute()).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
        for accepted in [minute().consistent_listings(), minute().listing_lag(Duration::from_secs(10))] {
            drop(gc::plan(&process.store, accepted).await.unwrap());
        }
        process.close().await;
    });
}

/// Proves H13.
///
/// A writer that ends between the plan and its execution, and whose process dies at once.
#[test]
fn a_chunk_reused_during_a_collection_is_not_recorded_as_a_candidate() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = fresh(&server).await;
        leave(&process.store, &[1, 2]).await;
        drop(back_up(&process.store, "host/a", &[3]).await.unwrap());
        let mut plan = gc::plan(&process.store, twice()).await.unwrap();
        let before = server.log().len();
        drop(back_up(&process.store, "host/b", &[1]).await.unwrap());
        assert_eq!(requests(&server, before, "PUT", "gc-sightings"), []);
        plan.execute().await.unwrap();
        let listed = server.objects()[SIGHTINGS].clone();
        let names = |number| listed.windows(12).any(|part| part == &digest(number).as_bytes()[..12]);
        assert_eq!((names(1), names(2)), (false, true));
        drop(plan);
        process.close().await;
    });
}

/// Collects by a process that dies at a step of the execution; whether it came so far.
async fn dies_at(step: u64, local: Option<&Path>, keeps: bool) -> bool {
    let server = FaultServer::start(ServerOptions::default());
    let process = opening(local).open(&server).await.unwrap();
    leave(&process.store, &[1, 2, 3, 4]).await;
    drop(back_up(&process.store, "host/a", &[4, 5]).await.unwrap());
    let mut plan = gc::plan(&process.store, at_once().concurrency(1)).await.unwrap();
    process.backend.crash_at(process.backend.steps() + step);
    let _ = plan.execute().await;
    let died = process.backend.has_crashed();
    drop((plan, process));
    if let (Some(local), false) = (local, keeps) {
        fs::remove_dir_all(local).unwrap();
    }
    let process = opened_again(&server, &opening(local)).await;
    // Requests of the dead process may arrive late.
    drop(process.backend.lock(&LockScope::Store, LockMode::Shared).await.unwrap());
    process.clock.leap(40 * 60);
    drop(back_up(&process.store, "host/b", &[1, 2, 5, 6]).await.unwrap());
    assert_eq!(check_all(&process.store).await, 2, "step {step}");
    collected(&process.store, at_once()).await;
    assert_eq!(chunks(&server), digests([1, 2, 4, 5, 6]), "step {step}");
    process.close().await;
    died
}

/// Proves H16.
#[test]
fn presence_records_end_with_a_collection_that_died_after_a_delete() {
    for (has_local, keeps) in [(false, true), (true, true), (true, false)] {
        let mut step = 1;
        loop {
            let directory = larder_testing::scratch();
            let local = directory.path().join("local");
            if !block_on(dies_at(step, has_local.then_some(&local), keeps)) {
                break;
            }
            step += 1;
        }
        assert!(step > 3, "{step}");
    }
}

/// The next request that deletes several gets no answer, and is executed when somebody waits for it.
fn late(server: &FaultServer) {
    let rule = Rule::on("POST").query(|query| query.starts_with("delete")).first(1);
    server.add(rule.then(Action::ExecuteWhenReleased));
}

/// Waits for it.
fn wait_for_requests(server: &FaultServer) {
    server.release();
    let is_over = |log: &[fault_server::Logged]| {
        log.iter().filter(|line| line.method == "POST").all(|line| line.is_over || line.status.is_some())
    };
    assert!(server.wait(Duration::from_secs(20), is_over), "it never came");
}

/// As if by another process: what tasks of this one know of the store is found by its identity.
pub(crate) fn estrange(server: &FaultServer, number: u32) {
    let identity = String::from_utf8(server.objects()["store/.larder/store.json"].clone()).unwrap();
    let at = identity.find("\"uuid\":\"").unwrap() + 8;
    let identity = [&identity[..at], &format!("{number:032x}"), &identity[at + 32..]].concat();
    server.put("store/.larder/store.json", identity);
}

/// Stores two chunks of which a request may still delete one, waits until it has, and finishes.
async fn needs_what_goes(server: &FaultServer, process: &Process) {
    let backup = process.store.backup(&group("host/b")).begin().await.unwrap();
    let bytes = data(&[1, 9]);
    let image = backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64);
    image.chunk_bytes(CHUNK as u64).await.unwrap();
    assert!(chunks(server).contains(&digest(1)), "it came too soon");
    wait_for_requests(server);
    assert!(!chunks(server).contains(&digest(1)));
    process.clock.leap(31 * 60);
    assert_eq!(backup.finish().await.map(drop).unwrap_err().kind(), ErrorKind::Conflict);
    drop(back_up(&process.store, "host/b", &[1, 9]).await.unwrap());
    assert_eq!(check_all(&process.store).await, 2);
}

/// Proves H17.
#[test]
fn a_process_that_takes_over_the_lease_reads_the_pending_deletes() {
    thread::scope(|scope| {
        for ends_well in [true, false] {
            scope.spawn(move || block_on(takes_over(ends_well)));
        }
    });
}

async fn takes_over(ends_well: bool) {
    let server = FaultServer::start(ServerOptions::default());
    let process = opening(None).open(&server).await.unwrap();
    leave(&process.store, &[1, 2]).await;
    drop(back_up(&process.store, "host/a", &[4]).await.unwrap());
    late(&server);
    let report = collected(&process.store, at_once().concurrency(1)).await;
    assert_eq!(report.removed.chunks, 2, "the second request was answered");
    if ends_well {
        // Another run has nothing to say of them any more.
        collected(&process.store, at_once().concurrency(1)).await;
        process.close().await;
    } else {
        drop(process);
    }
    estrange(&server, 7 + u32::from(ends_well));
    let process = opened_again(&server, &opening(None)).await;
    let refused = reason(collect(&process.store, at_once()).await).unwrap();
    assert_eq!(refused.kind(), ErrorKind::Busy, "nothing is removed meanwhile");
    needs_what_goes(&server, &process).await;
    process.close().await;
}

/// Proves H17.
#[test]
fn the_next_opening_in_a_process_keeps_the_pending_deletes() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let mut process = opening(None).open(&server).await.unwrap();
        leave(&process.store, &[1, 2]).await;
        drop(back_up(&process.store, "host/a", &[4]).await.unwrap());
        late(&server);
        collected(&process.store, at_once().concurrency(1)).await;
        let backend = Arc::clone(&process.backend);
        // No opening is left for a moment.
        let elsewhere = elsewhere(&process).await;
        drop(std::mem::replace(&mut process.store, elsewhere));
        process.store = Datastore::open(backend, Options::default()).await.unwrap();
        needs_what_goes(&server, &process).await;
        process.close().await;
    });
}

/// A store in memory.
async fn elsewhere(process: &Process) -> Datastore {
    let runtime = Arc::clone(process.backend.runtime());
    Datastore::create(Arc::new(MemoryBackend::new(runtime)), Options::default()).await.unwrap()
}
