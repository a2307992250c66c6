//! Local state of a store in a bucket: the requests that it saves, and that no operation needs it (section C of the hazards).

use futures::executor::block_on;
use futures::future;
use futures::io::Cursor;
use larder::backend::{Backend, MemoryBackend, Ownership, PutMode, S3Backend};
use larder::error::{ErrorKind, Result};
use larder::format::Digest;
use larder::format::layout::Key;
use larder::format::name::{GroupName, Namespace, SnapshotName};
use larder::http::HttpClient;
use larder::local::{LocalOptions, LocalState};
use larder::prune::{self, PruneOptions};
use larder::retention::RetentionRules;
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{Credentials, RetryOptions, S3Client, S3Options, StaticCredentials};
use larder::store::{Datastore, Options, Scope, SnapshotReader};
use larder::sync::{self, SyncOptions};
use larder::verify::{self, VerifyOptions};
use larder_testing::fault_server::{Action, FaultServer, Options as ServerOptions, Rule};
use larder_testing::read_to_end;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A process that has the store open.
struct Process {
    local: Option<Arc<LocalState>>,
    store: Datastore,
}

async fn in_bucket(
    server: &FaultServer,
    name: &str,
    ownership: Ownership,
) -> (Arc<dyn Runtime>, Arc<dyn Backend>) {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
    let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
    let mut retry = RetryOptions::default();
    retry.max_backoff = Duration::from_millis(500);
    let options = S3Options::new(server.url(), "bucket").credentials(credentials).retry(retry);
    let client = S3Client::new(Arc::clone(&runtime), http, options).unwrap();
    let found = client.probe(&format!("{name}/")).await.unwrap();
    let backend =
        S3Backend::new(Arc::clone(&runtime), client, name, found, &[]).unwrap().ownership(ownership);
    (runtime, Arc::new(backend))
}

/// Opens the store, or makes it, with local state if a directory is given.
async fn opened(server: &FaultServer, directory: Option<&Path>) -> Result<Process> {
    opened_as(server, "store", directory).await
}

async fn opened_as(server: &FaultServer, name: &str, directory: Option<&Path>) -> Result<Process> {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let mut options = Options::default();
    let mut ownership = Ownership::default();
    let mut local = None;
    if let Some(directory) = directory {
        let state = local_state(&runtime, directory).await?;
        ownership = ownership.instance(state.instance());
        options = options.local_state(Arc::clone(&state));
        local = Some(state);
    }
    let (_, backend) = in_bucket(server, name, ownership).await;
    let store = if server.objects().keys().any(|key| key.starts_with(&format!("{name}/"))) {
        Datastore::open(backend, options).await?
    } else {
        Datastore::create(backend, options).await?
    };
    Ok(Process { local, store })
}

/// Opens local state. Background work of an earlier process may hold it for a moment.
async fn local_state(runtime: &Arc<dyn Runtime>, directory: &Path) -> Result<Arc<LocalState>> {
    for _ in 0..20 {
        match LocalState::open(runtime, directory, LocalOptions::default().cache_bytes(1 << 28)).await {
            Err(error) if error.kind() == ErrorKind::Busy => runtime.sleep(Duration::from_millis(1)).await,
            opened => return opened,
        }
    }
    panic!("somebody still uses {}", directory.display());
}

impl Process {
    async fn close(self) {
        self.store.close().await.unwrap();
    }
}

fn group() -> GroupName {
    "vm/1".parse().unwrap()
}

fn data(seed: u8) -> Vec<u8> {
    static KNOWN: Mutex<BTreeMap<u8, Vec<u8>>> = Mutex::new(BTreeMap::new());
    let byte = |at: u32| (at.wrapping_mul(2_654_435_761) >> 24) as u8 ^ seed;
    KNOWN.lock().unwrap().entry(seed).or_insert_with(|| (0..10 << 20).map(byte).collect()).clone()
}

async fn back_up(store: &Datastore, data: &[u8]) -> SnapshotReader {
    let backup = store.backup(&group()).begin().await.unwrap();
    backup.image("disk.img", Cursor::new(data.to_vec()), data.len() as u64).await.unwrap();
    backup.finish().await.unwrap().snapshot
}

async fn restored(snapshot: &SnapshotReader) -> Result<Vec<u8>> {
    let mut archive = snapshot.archive("disk.img.fidx").await?;
    read_to_end(&mut archive)
        .await
        .map_err(|error| error.into_inner().unwrap().downcast_ref::<larder::error::Error>().unwrap().clone())
}

/// The number of requests of a method for objects of the store whose key contains this part.
fn requests(server: &FaultServer, since: usize, method: &str, part: &str) -> usize {
    let log = server.log();
    log[since..].iter().filter(|line| line.method == method && line.path.contains(part)).count()
}

const CHUNKS: usize = 3;

#[test]
fn a_second_backup_sends_no_requests_about_known_chunks() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let first = opened(&server, Some(directory.path())).await.unwrap();
        let before = server.log().len();
        back_up(&first.store, &data(0)).await;
        assert_eq!(requests(&server, before, "PUT", ".chunks"), CHUNKS);
        assert_eq!(requests(&server, before, "HEAD", ".chunks"), 0);
        first.close().await;
        // Another process of the same directory, and no base.
        let second = opened(&server, Some(directory.path())).await.unwrap();
        let before = server.log().len();
        let snapshot = back_up(&second.store, &data(0)).await;
        assert_eq!(server.log()[before..].iter().filter(|line| line.path.contains(".chunks")).count(), 0);
        assert_eq!(restored(&snapshot).await.unwrap(), data(0));
        let counts = second.local.as_ref().unwrap().cache_counts().unwrap();
        assert_eq!((counts.hits, requests(&server, before, "GET", ".chunks")), (CHUNKS as u64, 0));
        second.close().await;
    });
}

#[test]
fn a_backup_sends_the_documented_number_of_requests() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = opened(&server, None).await.unwrap();
        let owner = process.store.backup(&"vm/9".parse().unwrap()).begin().await.unwrap();
        owner.abort().await.unwrap();
        let before = server.log().len();
        back_up(&process.store, &data(0)).await;
        let made = server.log().len() - before;
        assert!(made <= CHUNKS + 2 * 2 + 4, "{made}: {:#?}", &server.log()[before..]);
        process.close().await;
    });
}

/// Proves H22.
#[test]
fn presence_records_are_valid_only_while_no_other_process_held_the_lease() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let first = opened(&server, Some(directory.path())).await.unwrap();
        back_up(&first.store, &data(0)).await;
        first.close().await;
        let other = opened(&server, None).await.unwrap();
        back_up(&other.store, &data(1)).await;
        other.close().await;
        let chunks: Vec<_> = server.objects().into_keys().filter(|key| key.contains(".chunks")).collect();
        for key in &chunks {
            server.remove(key);
        }
        let third = opened(&server, Some(directory.path())).await.unwrap();
        let before = server.log().len();
        let snapshot = back_up(&third.store, &data(0)).await;
        assert_eq!(requests(&server, before, "PUT", ".chunks"), CHUNKS, "each is sent again");
        assert_eq!(restored(&snapshot).await.unwrap(), data(0));
        third.close().await;
    });
}

/// As a program does that takes no lease: it knows the snapshots, forgets the group and collects. A chunk that another snapshot names
/// stays.
fn forgotten_and_collected_by_a_pbs(server: &FaultServer) {
    for key in server.objects().into_keys() {
        if key.contains("/.chunks/") || key.contains("/.cnt/vm/1/") {
            server.remove(&key);
        }
    }
}

fn count_of_chunks(server: &FaultServer) -> usize {
    server.objects().into_keys().filter(|key| key.contains("/.chunks/")).count()
}

#[test]
fn a_backup_stores_chunks_again_that_a_program_without_a_lease_collected() {
    for is_refreshed in [false, true] {
        let server = FaultServer::start(ServerOptions::default());
        let directory = larder_testing::scratch();
        block_on(async {
            let first = opened(&server, Some(directory.path())).await.unwrap();
            drop(back_up(&first.store, &data(0)).await);
            let process = if is_refreshed {
                // It stays open, and answers from copies.
                first.store.refresh().await.unwrap();
                first
            } else {
                first.close().await;
                opened(&server, Some(directory.path())).await.unwrap()
            };
            forgotten_and_collected_by_a_pbs(&server);
            let before = server.log().len();
            let snapshot = back_up(&process.store, &data(0)).await;
            assert_eq!(requests(&server, before, "PUT", ".chunks"), CHUNKS);
            assert_eq!(count_of_chunks(&server), CHUNKS);
            assert!(server.objects().contains_key("store/.cnt/vm/1/owner"), "the group has an owner again");
            fs::remove_dir_all(directory.path().join("chunks")).unwrap();
            assert_eq!(restored(&snapshot).await.unwrap(), data(0));
            drop(snapshot);
            process.close().await;
        });
    }
}

/// An index without a manifest proves no more than that a writer died.
#[test]
fn an_unfinished_snapshot_is_no_witness_of_recorded_chunks() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = opened(&server, Some(directory.path())).await.unwrap();
        drop(back_up(&process.store, &data(0)).await);
        let backup = process.store.backup(&"vm/2".parse().unwrap()).begin().await.unwrap();
        let bytes = data(0);
        backup.image("disk.img", Cursor::new(bytes.clone()), bytes.len() as u64).await.unwrap();
        let left = backup.name().clone();
        drop(backup.finish().await.unwrap());
        server.remove(&format!("store/.cnt/{left}/index.json.blob"));
        forgotten_and_collected_by_a_pbs(&server);
        let snapshot = back_up(&process.store, &data(0)).await;
        assert_eq!(count_of_chunks(&server), CHUNKS);
        drop(snapshot);
        process.close().await;
    });
}

#[test]
fn a_base_removed_by_a_program_without_a_lease_makes_no_chunk_known() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = opened(&server, Some(directory.path())).await.unwrap();
        let old = std::time::UNIX_EPOCH + Duration::from_hours(500_000);
        let backup = process.store.backup(&group()).time(old).begin().await.unwrap();
        let bytes = data(0);
        backup.image("disk.img", Cursor::new(bytes.clone()), bytes.len() as u64).await.unwrap();
        let base = backup.finish().await.unwrap().snapshot;
        process.store.refresh().await.unwrap();
        forgotten_and_collected_by_a_pbs(&server);
        let backup = process.store.backup(&group()).begin().await.unwrap();
        let image = backup.image("disk.img", Cursor::new(bytes.clone()), bytes.len() as u64);
        let refused = image.base(&base).await.map(drop).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::NotFound, "{refused}");
        backup.image("disk.img", Cursor::new(bytes.clone()), bytes.len() as u64).await.unwrap();
        backup.finish().await.unwrap();
        assert_eq!(count_of_chunks(&server), CHUNKS);
        drop(base);
        process.close().await;
    });
}

#[test]
fn a_recorded_chunk_without_a_witness_is_looked_up() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = opened(&server, Some(directory.path())).await.unwrap();
        let backup = process.store.backup(&group()).begin().await.unwrap();
        let bytes = data(0);
        backup.image("disk.img", Cursor::new(bytes.clone()), bytes.len() as u64).await.unwrap();
        backup.abort().await.unwrap();
        let lost = server.objects().into_keys().find(|key| key.contains("/.chunks/")).unwrap();
        server.remove(&lost);
        let before = server.log().len();
        drop(back_up(&process.store, &data(0)).await);
        let made = ["HEAD", "PUT"].map(|method| requests(&server, before, method, ".chunks"));
        assert_eq!((made, count_of_chunks(&server)), ([CHUNKS, 1], CHUNKS));
        // From now on the snapshot names them.
        let before = server.log().len();
        drop(back_up(&process.store, &data(0)).await);
        assert_eq!(server.log()[before..].iter().filter(|line| line.path.contains(".chunks")).count(), 0);
        process.close().await;
    });
}

#[test]
fn a_deletion_uses_the_uncached_backend() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = opened(&server, Some(directory.path())).await.unwrap();
        let mut names = Vec::new();
        for _ in 0..3 {
            names.push(back_up(&process.store, &data(0)).await.name().clone());
        }
        process.store.refresh().await.unwrap();
        // A program without a lease removes the two newest.
        for name in &names[1..] {
            for key in server.objects().into_keys().filter(|key| key.contains(&format!("/.cnt/{name}/"))) {
                server.remove(&key);
            }
        }
        let options = PruneOptions::default().rules(RetentionRules::default().keep_last(1));
        let mut plan = prune::plan(&process.store, &Scope::Group(group()), options).await.unwrap();
        drop(plan.execute().await.unwrap());
        let left: Vec<_> = process.store.snapshots(&group()).await.unwrap();
        assert_eq!(left.into_iter().map(|info| info.name).collect::<Vec<_>>(), [names[0].clone()]);
        // A snapshot that it put there keeps the owner of the group.
        process.store.refresh().await.unwrap();
        let theirs = "store/.cnt/vm/1/2020-01-01T00:00:00Z/index.json.blob";
        let manifest = server.objects()[&format!("store/.cnt/{}/index.json.blob", names[0])].clone();
        server.put(theirs, manifest);
        process.store.delete_snapshot(&names[0]).await.unwrap();
        assert!(server.objects().contains_key("store/.cnt/vm/1/owner"));
        process.close().await;
    });
}

/// A prune that was planned before a program without a lease removed the snapshots that it keeps.
#[test]
fn an_execution_of_a_prune_uses_the_uncached_backend() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = opened(&server, Some(directory.path())).await.unwrap();
        let mut kept = Vec::new();
        for _ in 0..2 {
            kept.push(back_up(&process.store, &data(0)).await.name().clone());
        }
        process.store.refresh().await.unwrap();
        let options = PruneOptions::default().rules(RetentionRules::default().keep_last(1));
        let mut plan = prune::plan(&process.store, &Scope::Group(group()), options).await.unwrap();
        for key in server.objects().into_keys().filter(|key| key.contains(&format!("/.cnt/{}/", kept[1]))) {
            server.remove(&key);
        }
        drop(plan.execute().await.unwrap());
        assert!(server.objects().contains_key(&format!("store/.cnt/{}/index.json.blob", kept[0])));
        process.close().await;
    });
}

/// A sync removes no snapshot from the target that a program without a lease put to the source again, and a verification knows it.
#[test]
fn a_sync_and_a_verification_use_the_uncached_backend() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = opened(&server, Some(directory.path())).await.unwrap();
        let first = back_up(&process.store, &data(0)).await.name().clone();
        back_up(&process.store, &data(0)).await;
        let memory = Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())));
        let target = Datastore::create(memory, Options::default()).await.unwrap();
        let planned = || sync::plan(&process.store, &target, SyncOptions::default().remove_vanished());
        drop(planned().await.unwrap().execute().await.unwrap());
        let of_first = |key: &String| key.contains(&format!("/.cnt/{first}/"));
        let put_again = |objects: &BTreeMap<String, Vec<u8>>| {
            for (key, bytes) in objects.iter().filter(|(key, _)| of_first(key)) {
                server.put(key, bytes.clone());
            }
        };
        for is_planned_before in [false, true] {
            let before = server.objects();
            process.store.delete_snapshot(&first).await.unwrap();
            process.store.refresh().await.unwrap();
            let mut plan = planned().await.unwrap();
            assert_eq!(plan.vanished().snapshots.len(), 1);
            put_again(&before);
            if !is_planned_before {
                plan = planned().await.unwrap();
                assert_eq!(plan.vanished().snapshots.len(), 0);
                process.store.refresh().await.unwrap();
            }
            drop(plan.execute().await.unwrap());
            assert_eq!(target.snapshots(&group()).await.unwrap().len(), 2, "{is_planned_before}");
        }
        let before = server.objects();
        process.store.delete_snapshot(&first).await.unwrap();
        process.store.refresh().await.unwrap();
        put_again(&before);
        let plan = verify::plan(&process.store, &Scope::Store, VerifyOptions::default()).await.unwrap();
        assert_eq!(plan.estimate().snapshots, 2);
        process.close().await;
    });
}

#[test]
fn presence_records_cost_one_listing() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = opened(&server, Some(directory.path())).await.unwrap();
        drop(back_up(&process.store, &data(0)).await);
        let before = server.log().len();
        drop(back_up(&process.store, &data(0)).await);
        let log = &server.log()[before..];
        let listings = log.iter().filter(|line| line.query.contains("list-type=2")).count();
        assert_eq!((log.len(), listings), (7, 2), "{log:#?}");
        process.close().await;
    });
}

/// Proves H22.
#[test]
fn the_next_backup_stores_a_chunk_that_was_found_missing() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = opened(&server, Some(directory.path())).await.unwrap();
        let snapshot = back_up(&process.store, &data(0)).await;
        let lost = server.objects().into_keys().find(|key| key.contains(".chunks")).unwrap();
        server.remove(&lost);
        // The local copy hides it, which is as good.
        assert_eq!(restored(&snapshot).await.unwrap(), data(0));
        fs::remove_dir_all(directory.path().join("chunks")).unwrap();
        assert_eq!(restored(&snapshot).await.unwrap_err().kind(), ErrorKind::Corrupt);
        back_up(&process.store, &data(0)).await;
        assert_eq!(restored(&snapshot).await.unwrap(), data(0));
        assert!(server.objects().contains_key(&lost));
        drop(snapshot);
        process.close().await;
    });
}

/// Proves H24.
#[test]
fn an_existing_object_is_compared_despite_its_presence_record() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let first = opened(&server, None).await.unwrap();
        let snapshot = back_up(&first.store, &data(0)).await;
        let chunks: Vec<_> =
            server.objects().into_iter().filter(|(key, _)| key.contains(".chunks")).collect();
        for (damage, (key, bytes)) in [vec![], b"short".to_vec(), vec![7; 1 << 20]].into_iter().zip(&chunks) {
            assert_ne!(damage.len(), bytes.len());
            server.put(key, damage);
        }
        assert!(restored(&snapshot).await.is_err());
        back_up(&first.store, &data(0)).await;
        assert_eq!(restored(&snapshot).await.unwrap(), data(0));
        for (key, bytes) in chunks {
            assert_eq!(server.objects()[&key], bytes);
        }
        drop(snapshot);
        first.close().await;
    });
}

#[test]
fn a_restore_works_without_local_state() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let writer = opened(&server, Some(directory.path())).await.unwrap();
        back_up(&writer.store, &data(0)).await;
        // While it is being used, too: readers need no lease.
        let reader = opened(&server, None).await.unwrap();
        let before = server.objects();
        let name = reader.store.latest(&group()).await.unwrap().unwrap();
        assert_eq!(restored(&reader.store.snapshot(&name).await.unwrap()).await.unwrap(), data(0));
        assert_eq!(server.objects(), before, "reading writes nothing");
        reader.close().await;
        writer.close().await;
    });
}

/// Many snapshots, by another process.
async fn filled(server: &FaultServer) -> Vec<SnapshotName> {
    let process = opened(server, None).await.unwrap();
    let mut names = Vec::new();
    process.store.create_namespace(&"empty".parse().unwrap()).await.unwrap();
    for number in 0..12_u8 {
        let group: GroupName = format!("vm/{}", number % 4).parse().unwrap();
        let backup = process.store.backup(&group).begin().await.unwrap();
        backup.blob("app.conf", vec![number; 100]).await.unwrap();
        names.push(backup.finish().await.unwrap().snapshot.name().clone());
    }
    process.close().await;
    names
}

async fn looked_at(store: &Datastore) -> Vec<String> {
    let mut found = Vec::new();
    for namespace in store.namespaces(&Namespace::root()).await.unwrap() {
        found.push(namespace.to_string());
        for group in store.groups(&namespace).await.unwrap() {
            found.push(format!("{group} of {:?}", store.owner(&group).await.unwrap()));
            for info in store.snapshots(&group).await.unwrap() {
                let manifest = store.snapshot(&info.name).await.unwrap().manifest().to_json();
                found.push(format!("{info:?} {}", String::from_utf8_lossy(&manifest)));
            }
        }
    }
    found
}

#[test]
fn after_a_refresh_metadata_is_read_without_requests() {
    let server = FaultServer::start(ServerOptions { page: 7, ..ServerOptions::default() });
    let directory = larder_testing::scratch();
    block_on(async {
        filled(&server).await;
        let process = opened(&server, Some(directory.path())).await.unwrap();
        let cold = looked_at(&process.store).await;
        let done = process.store.refresh().await.unwrap();
        assert!(done.is_exclusive && done.objects == 12 * 2 + 4 + 1, "{done:?}");
        let before = server.log().len();
        assert_eq!(looked_at(&process.store).await, cold);
        assert_eq!(server.log().len(), before, "no request");
        // A change by this process is visible at once.
        process.store.create_namespace(&"new".parse().unwrap()).await.unwrap();
        let snapshot = back_up(&process.store, &data(0)).await.name().clone();
        process.store.set_notes(&snapshot, "notes").await.unwrap();
        let warm = looked_at(&process.store).await;
        assert_eq!(looked_at(&opened(&server, None).await.unwrap().store).await, warm);
        process.store.delete_snapshot(&snapshot).await.unwrap();
        let warm = looked_at(&process.store).await;
        assert_eq!(looked_at(&opened(&server, None).await.unwrap().store).await, warm);
        let before = server.log().len();
        let again = process.store.refresh().await.unwrap();
        assert_eq!((again.fetched, again.bytes), (0, 0));
        let lists = server.log()[before..].iter().filter(|line| line.query.contains("list-type")).count();
        assert!(server.log().len() - before <= lists + 1, "listing only");
        process.close().await;
        // The next process has the copies, and believes none of them before it has listed.
        let next = opened(&server, Some(directory.path())).await.unwrap();
        assert_eq!(next.store.refresh().await.unwrap().fetched, 0);
        assert_eq!(looked_at(&next.store).await, warm);
        next.close().await;
    });
}

/// Proves H83.
#[test]
fn a_refresh_with_a_read_error_changes_nothing() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let names = filled(&server).await;
        let process = opened(&server, Some(directory.path())).await.unwrap();
        process.store.refresh().await.unwrap();
        let before = looked_at(&process.store).await;
        // Stored again, it has another tag, and there is no copy of that.
        let key = format!("store/.cnt/{}/index.json.blob", names[5]);
        server.put(&key, server.objects()[&key].clone());
        for (status, code) in [(403, "AccessDenied"), (403, "InvalidObjectState"), (404, "NoSuchKey")] {
            let rule = Rule::on("GET").path(|path| path.ends_with("index.json.blob"));
            server.add(rule.then(Action::status(status, code)));
            assert!(process.store.refresh().await.is_err(), "{code}");
            server.clear();
            let since = server.log().len();
            assert_eq!(looked_at(&process.store).await, before, "{code}");
            assert_eq!(server.log().len(), since, "{code}: the generation before answers");
        }
        assert_eq!(process.store.refresh().await.unwrap().fetched, 1);
        assert_eq!(looked_at(&process.store).await, before);
        process.close().await;
    });
}

/// Proves H81.
#[test]
fn a_snapshot_published_during_a_refresh_is_listed_after_it() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        filled(&server).await;
        let process = opened(&server, Some(directory.path())).await.unwrap();
        process.store.refresh().await.unwrap();
        let gone = process.store.snapshots(&"vm/2".parse().unwrap()).await.unwrap()[0].name.clone();
        // The listing is made at once, and its answer comes late.
        server.add(Rule::list().then(Action::Delay(Duration::from_millis(700))));
        let changed = async {
            process.store.delete_snapshot(&gone).await.unwrap();
            let backup = process.store.backup(&group()).begin().await.unwrap();
            backup.blob("new.conf", "new").await.unwrap();
            let name = backup.finish().await.unwrap().snapshot.name().clone();
            (name, process.store.backup(&"vm/3".parse().unwrap()).begin().await.unwrap())
        };
        let (done, (new, running)) = future::join(process.store.refresh(), changed).await;
        server.clear();
        assert!(done.unwrap().is_exclusive);
        running.blob("late.conf", "late").await.unwrap();
        let late = running.finish().await.unwrap().snapshot.name().clone();
        for name in [new, late] {
            process.store.snapshot(&name).await.unwrap();
            assert_eq!(process.store.latest(name.group()).await.unwrap(), Some(name));
        }
        assert_eq!(process.store.snapshot(&gone).await.unwrap_err().kind(), ErrorKind::NotFound);
        let warm = looked_at(&process.store).await;
        assert_eq!(looked_at(&opened(&server, None).await.unwrap().store).await, warm);
        process.close().await;
    });
}

/// Proves H91.
#[test]
fn local_state_of_another_store_is_refused() {
    let server = FaultServer::start(ServerOptions::default());
    let (one, two) = (larder_testing::scratch(), larder_testing::scratch());
    block_on(async {
        opened_as(&server, "one", Some(one.path())).await.unwrap().close().await;
        opened_as(&server, "two", Some(two.path())).await.unwrap().close().await;
        for (name, directory) in [("one", &two), ("two", &one)] {
            let refused = opened_as(&server, name, Some(directory.path())).await;
            assert_eq!(refused.map(|_| ()).unwrap_err().kind(), ErrorKind::Conflict);
        }
        opened_as(&server, "one", Some(one.path())).await.unwrap().close().await;
    });
}

/// Proves H91.
#[test]
fn the_state_of_another_store_is_refused_by_every_change_of_a_store_without_an_identity() {
    let directory = larder_testing::scratch();
    block_on(async {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let [one, two] =
            [(); 2].map(|()| -> Arc<dyn Backend> { Arc::new(MemoryBackend::new(Arc::clone(&runtime))) });
        let state = local_state(&runtime, directory.path()).await.unwrap();
        let options = || Options::default().local_state(Arc::clone(&state));
        Datastore::create(one, options()).await.unwrap();
        // As PBS leaves a store: with chunks, and without an identity.
        two.put(&Key::Chunk(Digest::of(b"a")), "a".into(), PutMode::Create).await.unwrap();
        let store = Datastore::open(two, options()).await.unwrap();
        for name in ["a", "b"] {
            let refused = store.create_namespace(&name.parse().unwrap()).await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict, "{name}");
        }
    });
}

fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            found.extend(files_below(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found
}

/// Proves H66, H74.
#[test]
fn damaged_or_lost_local_state_fails_no_operation() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = opened(&server, Some(directory.path())).await.unwrap();
        let snapshot = back_up(&process.store, &data(0)).await;
        process.store.refresh().await.unwrap();
        for kept in ["chunks", "mirror"] {
            for file in files_below(&directory.path().join(kept)) {
                let mut bytes = fs::read(&file).unwrap();
                let at = bytes.len() / 2;
                bytes[at] ^= 1;
                fs::write(&file, bytes).unwrap();
            }
        }
        assert_eq!(restored(&snapshot).await.unwrap(), data(0));
        looked_at(&process.store).await;
        for kept in ["chunks", "mirror", "presence"] {
            fs::remove_dir_all(directory.path().join(kept)).unwrap();
        }
        assert_eq!(restored(&snapshot).await.unwrap(), data(0));
        let snapshot = back_up(&process.store, &data(2)).await;
        process.store.refresh().await.unwrap();
        assert_eq!(restored(&snapshot).await.unwrap(), data(2));
        drop(snapshot);
        process.close().await;
        fs::remove_dir_all(directory.path()).unwrap();
        let again = opened(&server, Some(directory.path())).await;
        // The lease was released, so that a new instance finds the store free.
        let again = again.unwrap();
        let name = again.store.latest(&group()).await.unwrap().unwrap();
        assert_eq!(restored(&again.store.snapshot(&name).await.unwrap()).await.unwrap(), data(2));
        back_up(&again.store, &data(2)).await;
        again.close().await;
    });
}

/// Proves H68, H73.
#[test]
fn the_cache_keeps_only_checked_chunks_that_the_cache_policy_selects() {
    let server = FaultServer::start(ServerOptions::default());
    let directory = larder_testing::scratch();
    block_on(async {
        let process = opened(&server, Some(directory.path())).await.unwrap();
        let backup = process.store.backup(&group()).no_cache().begin().await.unwrap();
        let bytes = data(0);
        backup.image("disk.img", Cursor::new(bytes.clone()), bytes.len() as u64).await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        let kept = || files_below(&directory.path().join("chunks")).len();
        assert_eq!(kept(), 0, "no_cache");
        let archive = snapshot.archive("disk.img.fidx").await.unwrap();
        let mut target = larder::store::WriterTarget::new(Cursor::new(Vec::new()));
        archive.copy_to(&mut target).await.unwrap();
        assert_eq!(kept(), 0, "a restore of everything keeps nothing unless it is asked to");
        server.add(Rule::on("GET").path(|path| path.contains(".chunks")).then(Action::CutResponseAt(600)));
        assert!(archive.read_at(0, 10).await.is_err());
        server.clear();
        assert_eq!(kept(), 0);
        let archive = archive.keep_local();
        archive.copy_to(&mut target).await.unwrap();
        assert_eq!(kept(), CHUNKS);
        drop((archive, snapshot));
        process.close().await;
    });
}

/// Proves H70.
#[test]
fn concurrent_readers_of_one_chunk_share_one_request() {
    let server = FaultServer::start(ServerOptions::default());
    block_on(async {
        let process = opened(&server, None).await.unwrap();
        let snapshot = back_up(&process.store, &data(0)).await;
        let mut archives = Vec::new();
        for _ in 0..100 {
            archives.push(snapshot.archive("disk.img.fidx").await.unwrap());
        }
        let before = server.log().len();
        server.add(
            Rule::on("GET")
                .path(|path| path.contains(".chunks"))
                .then(Action::Delay(Duration::from_millis(300))),
        );
        let mut reads: Vec<_> = archives.iter().map(|archive| Box::pin(archive.read_at(0, 100))).collect();
        let leader = reads.remove(0);
        // The one who came first goes away while all wait.
        let others = future::join_all(reads);
        let left = future::select(
            leader,
            Box::pin(async {
                process.store.groups(&Namespace::root()).await.unwrap();
            }),
        );
        let (results, ()) = future::join(others, async { drop(left.await) }).await;
        let start = &data(0)[..100];
        assert!(results.iter().all(|bytes| bytes.as_ref().unwrap()[..] == *start));
        assert_eq!((results.len(), requests(&server, before, "GET", ".chunks")), (99, 1));
        drop((archives, snapshot));
        process.close().await;
    });
}
