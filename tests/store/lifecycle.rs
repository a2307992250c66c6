//! How stores, groups and snapshots begin and end, on every backend.

use futures::executor::block_on;
use futures::future::{self, BoxFuture, FutureExt as _};
use futures::io::{AsyncReadExt as _, Cursor};
use larder::backend::{
    Backend, FsBackend, FsOptions, ListEntry, ListQuery, MemoryBackend, Ownership, PrefixDirectories,
    PutMode, S3Backend,
};
use larder::error::ErrorKind;
use larder::format::Digest;
use larder::format::layout::{Key, Prefix};
use larder::format::name::{GroupName, Namespace};
use larder::gc::{self, GcOptions};
use larder::http::HttpClient;
use larder::internal::fault::FaultBackend;
use larder::internal::listing::{ShortPages as _, list_all};
use larder::internal::record::{Method, RecordingBackend};
use larder::local::{LocalOptions, LocalState};
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{Credentials, S3Client, S3Options, StaticCredentials};
use larder::store::{Datastore, Options, Protection, SnapshotReader};
use larder::sync::{self, SyncOptions};
use larder_testing::fault_server;
use larder_testing::fault_server::FaultServer;
use std::collections::BTreeSet;
use std::sync::Arc;

/// A place that processes open, one after the other.
type Place = dyn Fn() -> BoxFuture<'static, Arc<dyn Backend>>;

fn runtime() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

async fn in_bucket(server: &FaultServer, ownership: Ownership) -> S3Backend {
    let runtime = runtime();
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
    let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
    let options = S3Options::new(server.url(), "bucket").credentials(credentials);
    let client = S3Client::new(Arc::clone(&runtime), http, options).unwrap();
    let found = client.probe("store/").await.unwrap();
    S3Backend::new(runtime, client, "store", found, &[]).unwrap().ownership(ownership)
}

/// The same in memory, on a disk and in a bucket.
fn everywhere(body: fn(&Place)) {
    let memory: Arc<dyn Backend> = Arc::new(MemoryBackend::new(runtime()).page_entries(2));
    body(&move || future::ready(Arc::clone(&memory)).boxed());
    let directory = larder_testing::scratch();
    let path = directory.path().join("store");
    let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
    block_on(FsBackend::create(runtime(), &path, options.clone())).unwrap();
    body(&move || {
        let (path, options) = (path.clone(), options.clone());
        let opened = async move { FsBackend::open(runtime(), &path, options).await.unwrap() };
        opened.map(|backend| -> Arc<dyn Backend> { Arc::new(backend) }).boxed()
    });
    let options = fault_server::Options { page: 3, ..fault_server::Options::default() };
    let server = Arc::new(FaultServer::start(options));
    body(&move || {
        let server = Arc::clone(&server);
        let ownership = Ownership::default().instance("1").reuse();
        let opened = async move { in_bucket(&server, ownership).await };
        opened.map(|backend| -> Arc<dyn Backend> { Arc::new(backend) }).boxed()
    });
}

async fn back_up(store: &Datastore, group: &str, data: &str) -> SnapshotReader {
    let group: GroupName = group.parse().unwrap();
    let backup = store.backup(&group).begin().await.unwrap();
    backup.stream("data.bin", Cursor::new(data.as_bytes().to_vec())).await.unwrap();
    backup.blob("app.conf", data.to_owned()).await.unwrap();
    backup.client_log("log").await.unwrap();
    backup.finish().await.unwrap().snapshot
}

async fn read(snapshot: &SnapshotReader) -> String {
    let mut text = String::new();
    snapshot.archive("data.bin.didx").await.unwrap().read_to_string(&mut text).await.unwrap();
    text
}

async fn paths(backend: &dyn Backend) -> Vec<String> {
    let listing = list_all(backend, &ListQuery::all(Prefix::Namespace(Namespace::root()))).await.unwrap();
    listing.into_entries().iter().map(ListEntry::path).collect()
}

/// Why it failed.
fn kind<T>(result: larder::error::Result<T>) -> ErrorKind {
    result.map(drop).unwrap_err().kind()
}

#[test]
fn a_new_directory_is_not_searched_for_chunks_until_something_is_stored_in_it() {
    let directory = larder_testing::scratch();
    let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
    let create = |name| FsBackend::create(runtime(), directory.path().join(name), options.clone());
    // Creates a store, and counts listings.
    let listings = async |backend: FsBackend| {
        let record = Arc::new(RecordingBackend::new(Arc::new(backend)));
        drop(Datastore::create(Arc::<RecordingBackend>::clone(&record), Options::default()).await.unwrap());
        record.count(Method::List)
    };
    block_on(async {
        drop(create("opened").await.unwrap());
        let opened =
            FsBackend::open(runtime(), directory.path().join("opened"), options.clone()).await.unwrap();
        assert_eq!(listings(create("new").await.unwrap()).await + 1, listings(opened).await);
        let used = create("used").await.unwrap();
        let chunk = Key::Chunk(Digest::from([7; 32]));
        used.put(&chunk, "chunk".into(), PutMode::Create).await.unwrap();
        assert_eq!(
            kind(Datastore::create(Arc::new(used), Options::default()).await),
            ErrorKind::AlreadyExists
        );
    });
}

#[test]
fn a_store_is_created_once_and_can_be_attached_again() {
    everywhere(|open| {
        block_on(async {
            let store = Datastore::create(open().await, Options::default()).await.unwrap();
            let uuid = store.uuid().unwrap().to_owned();
            let name = back_up(&store, "vm/1", "data").await.name().clone();
            store.close().await.unwrap();
            assert_eq!(
                kind(Datastore::create(open().await, Options::default()).await),
                ErrorKind::AlreadyExists
            );
            let store = Datastore::attach(open().await, Options::default()).await.unwrap();
            assert_eq!(store.uuid(), Some(uuid.as_str()));
            assert_eq!(read(&store.snapshot(&name).await.unwrap()).await, "data");
            store.detach().await.unwrap();
            let store = Datastore::open(open().await, Options::default()).await.unwrap();
            assert_eq!(read(&store.snapshot(&name).await.unwrap()).await, "data");
            assert_eq!(back_up(&store, "vm/1", "more").await.manifest().files().len(), 2);
            store.close().await.unwrap();
        });
    });
}

#[test]
fn only_create_makes_a_new_store() {
    let server = Arc::new(FaultServer::start(fault_server::Options::default()));
    server.put("store2/.cnt/vm/1/owner", "root@pam\n");
    // Left by a creation that was cut off before it had the store, and put there by a browser for buckets.
    server.put("store/.larder/lease", "{}");
    server.put("store/.cnt/", "");
    server.put("store/.chunks/notes.txt", "x");
    let before = server.objects();
    let bucket = block_on(in_bucket(&server, Ownership::default().instance("1").reuse()));
    let memory: Arc<dyn Backend> = Arc::new(MemoryBackend::new(runtime()));
    for backend in [Arc::new(bucket) as Arc<dyn Backend>, memory] {
        block_on(async {
            for _ in 0..2 {
                let open = Datastore::open(Arc::clone(&backend), Options::default()).await;
                assert_eq!(kind(open), ErrorKind::NotFound);
                let attach = Datastore::attach(Arc::clone(&backend), Options::default()).await;
                assert_eq!(kind(attach), ErrorKind::NotFound);
            }
            assert_eq!(server.objects(), before, "nothing is written");
            server.remove("store/.larder/lease");
            let before = server.objects();
            assert_eq!(kind(Datastore::destroy(Arc::clone(&backend)).await), ErrorKind::NotFound);
            assert_eq!(server.objects(), before, "nothing is written");
            let store = Datastore::create(Arc::clone(&backend), Options::default()).await.unwrap();
            store.close().await.unwrap();
            Datastore::open(Arc::clone(&backend), Options::default()).await.unwrap();
            server.put("store/.larder/lease", "{}");
            server.remove("store/.in-use");
            server.remove("store/.larder/store.json");
            server.remove("store/.larder/reserve-0");
            server.remove("store/.larder/reserve-1");
        });
    }
    let directory = larder_testing::scratch();
    let opened = block_on(FsBackend::open(runtime(), directory.path().join("stor"), FsOptions::default()));
    assert_eq!(kind(opened), ErrorKind::NotFound);
}

#[test]
fn a_pbs_store_is_recognised_by_its_mark_its_metadata_or_its_chunks() {
    let chunk = format!("store/.chunks/bb9f/bb9f{}", "0".repeat(60));
    let proofs: [(&str, &str, u64); 3] = [
        ("store/.in-use", r#"{"hostname":"pbs"}"#, 5),
        ("store/.cnt/vm/1/owner", "root@pam\n", 6),
        (&chunk, "x", 7),
    ];
    for (key, body, wanted) in proofs {
        let server = FaultServer::start(fault_server::Options::default());
        server.put(key, body);
        let backend = Arc::new(block_on(in_bucket(&server, Ownership::default().take_over())));
        let before = (server.objects(), backend.client().stats().attempts);
        let store = block_on(Datastore::open(Arc::<S3Backend>::clone(&backend), Options::default())).unwrap();
        assert_eq!((store.uuid(), server.objects()), (None, before.0), "{key}: reading writes nothing");
        assert_eq!(backend.client().stats().attempts - before.1, wanted, "{key}");
        let store = block_on(Datastore::attach(Arc::<S3Backend>::clone(&backend), Options::default()));
        assert!(store.unwrap().uuid().is_some(), "{key}");
        let before = backend.client().stats().attempts;
        block_on(Datastore::open(Arc::<S3Backend>::clone(&backend), Options::default())).unwrap();
        assert_eq!(backend.client().stats().attempts - before, 2, "{key}: it has an identity");
    }
}

/// Proves D7.
#[test]
fn the_first_change_gives_a_store_its_identity() {
    everywhere(|open| {
        block_on(async {
            let backend = open().await;
            let owner = Key::Owner("vm/1".parse().unwrap());
            backend.put(&owner, "root@pam\n".into(), larder::backend::PutMode::Create).await.unwrap();
            assert_eq!(
                kind(Datastore::create(Arc::clone(&backend), Options::default()).await),
                ErrorKind::AlreadyExists
            );
            let store = Datastore::open(backend, Options::default()).await.unwrap();
            assert_eq!(store.uuid(), None);
            store.groups(&Namespace::root()).await.unwrap();
            assert_eq!(store.uuid(), None, "reading writes nothing");
            back_up(&store, "vm/1", "data").await;
            let uuid = store.uuid().unwrap().to_owned();
            store.close().await.unwrap();
            let again = Datastore::open(open().await, Options::default()).await.unwrap();
            assert_eq!(again.uuid(), Some(uuid.as_str()));
        });
    });
}

/// Proves H43.
#[test]
fn deleting_the_last_snapshot_deletes_the_group() {
    everywhere(|open| {
        block_on(async {
            let backend = open().await;
            let store = Datastore::create(Arc::clone(&backend), Options::default()).await.unwrap();
            let group: GroupName = "vm/1".parse().unwrap();
            let one = back_up(&store, "vm/1", "one").await.name().clone();
            let two = back_up(&store, "vm/1", "two").await.name().clone();
            store.set_group_notes(&group, "notes").await.unwrap();
            let reader = store.snapshot(&one).await.unwrap();
            assert_eq!(kind(store.delete_snapshot(&one).await), ErrorKind::Busy, "h35: it is being read");
            drop(reader);
            store.set_protection(&one, Protection::On).await.unwrap();
            assert_eq!(kind(store.delete_snapshot(&one).await), ErrorKind::Denied);
            store.set_protection(&one, Protection::Off).await.unwrap();
            store.delete_snapshot(&one).await.unwrap();
            assert_eq!(kind(store.delete_snapshot(&one).await), ErrorKind::NotFound);
            assert_eq!(read(&store.snapshot(&two).await.unwrap()).await, "two");
            assert_eq!(store.group_notes(&group).await.unwrap().as_deref(), Some("notes"));
            store.delete_snapshot(&two).await.unwrap();
            assert_eq!(paths(backend.as_ref()).await, Vec::<String>::new());
            assert_eq!(store.groups(&Namespace::root()).await.unwrap(), []);
            store.close().await.unwrap();
        });
    });
}

/// Proves H28.
#[test]
fn a_deletion_removes_only_the_named_objects() {
    everywhere(|open| {
        block_on(async {
            let backend = open().await;
            let store = Datastore::create(Arc::clone(&backend), Options::default()).await.unwrap();
            let namespace = |name: &str| -> Namespace { name.parse().unwrap() };
            for name in ["foo", "foobar", "foo/x"] {
                store.create_namespace(&namespace(name)).await.unwrap();
            }
            let ids = ["1", "10", "100", "1000", "100.", "100-a"];
            let prefixes = ["vm/", "ct/", "ns/foo/vm/", "ns/foobar/vm/", "ns/foo/ns/x/vm/"];
            for prefix in prefixes {
                for id in ids.iter().filter(|id| prefix == "vm/" || id.len() < 3) {
                    back_up(&store, &format!("{prefix}{id}"), id).await;
                }
            }
            for id in ids {
                let before = paths(backend.as_ref()).await;
                let done = store.delete_group(&format!("vm/{id}").parse().unwrap()).await.unwrap();
                assert_eq!((done.deleted.len(), done.protected.len()), (1, 0));
                let mine = format!("vm/{id}/");
                let wanted: Vec<_> = before.into_iter().filter(|path| !path.starts_with(&mine)).collect();
                assert_eq!(paths(backend.as_ref()).await, wanted, "vm/{id}");
            }
            let before = paths(backend.as_ref()).await;
            store.delete_namespace(&namespace("foo")).await.unwrap();
            let wanted: Vec<_> = before.into_iter().filter(|path| !path.starts_with("ns/foo/")).collect();
            assert_eq!(paths(backend.as_ref()).await, wanted);
            assert_eq!(store.child_namespaces(&Namespace::root()).await.unwrap(), [namespace("foobar")]);
            store.close().await.unwrap();
        });
    });
}

/// Proves H55.
#[test]
fn protected_snapshots_survive_a_deletion_with_all_their_files() {
    everywhere(|open| {
        block_on(async {
            let backend = open().await;
            let store = Datastore::create(Arc::clone(&backend), Options::default()).await.unwrap();
            let space: Namespace = "a".parse().unwrap();
            store.create_namespace(&space).await.unwrap();
            for at in 0..3 {
                let mut names = Vec::new();
                for data in ["0", "1", "2"] {
                    names.push(back_up(&store, "ns/a/vm/1", data).await.name().clone());
                }
                store.set_protection(&names[at], Protection::On).await.unwrap();
                let done = store.delete_namespace(&space).await.unwrap();
                assert_eq!((done.deleted.len(), &done.protected[..]), (2, &names[at..=at]));
                assert_eq!(read(&store.snapshot(&names[at]).await.unwrap()).await, at.to_string());
                assert!(store.owner(names[at].group()).await.unwrap().is_some());
                store.set_protection(&names[at], Protection::Off).await.unwrap();
                store.delete_snapshot(&names[at]).await.unwrap();
            }
            store.delete_namespace(&space).await.unwrap();
            assert_eq!(paths(backend.as_ref()).await, Vec::<String>::new());
            store.close().await.unwrap();
        });
    });
}

/// Proves H42.
#[test]
fn an_interrupted_deletion_leaves_a_whole_snapshot_or_none() {
    let place: Arc<dyn Backend> = Arc::new(MemoryBackend::new(runtime()));
    drop(block_on(Datastore::create(Arc::clone(&place), Options::default())).unwrap());
    let mut absent = 0;
    for step in 1.. {
        let faulty = Arc::new(FaultBackend::new(Arc::clone(&place)));
        let ended = block_on(async {
            let store = Datastore::open(Arc::clone(&place), Options::default()).await.unwrap();
            let name = back_up(&store, "vm/1", "data").await.name().clone();
            let dying =
                Datastore::open(Arc::<FaultBackend>::clone(&faulty), Options::default()).await.unwrap();
            faulty.crash_at(faulty.steps() + step);
            let deleted = dying.delete_snapshot(&name).await;
            drop(dying);
            match store.snapshot(&name).await {
                Ok(snapshot) => assert_eq!(read(&snapshot).await, "data", "step {step}"),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::NotFound, "step {step}");
                    absent += 1;
                }
            }
            // The rest is deleted like any other snapshot, or was already gone.
            match store.delete_snapshot(&name).await {
                Ok(()) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::NotFound),
            }
            store.delete_group(name.group()).await.unwrap();
            assert_eq!(paths(place.as_ref()).await, Vec::<String>::new(), "step {step}");
            deleted.is_ok()
        });
        if ended {
            assert!(step > 4 && absent > 2, "{step} steps, {absent}");
            return;
        }
    }
}

/// Proves H57.
#[test]
fn an_interrupted_destroy_resumes_and_leaves_neighbouring_stores_alone() {
    let server = FaultServer::start(fault_server::Options { page: 3, ..fault_server::Options::default() });
    server.put("store2/.cnt/vm/1/owner", "root@pam\n");
    server.put("stor", "x");
    server.put("store/.cnt/foreign", "x");
    let before = server.objects();
    let owner = || Ownership::default().instance("1").reuse();
    let (mut refused, mut gone) = (0, 0);
    for step in 1.. {
        let backend: Arc<dyn Backend> = Arc::new(block_on(in_bucket(&server, owner())));
        let faulty = Arc::new(FaultBackend::new(Arc::clone(&backend)));
        let ended = block_on(async {
            let store = match Datastore::create(Arc::clone(&backend), Options::default()).await {
                Err(error) => panic!("step {step}: {error}"),
                Ok(store) => store,
            };
            store.create_namespace(&"a".parse().unwrap()).await.unwrap();
            back_up(&store, "vm/1", "data").await;
            back_up(&store, "ns/a/vm/1", "data").await;
            drop(store);
            faulty.crash_at(step);
            let destroyed = Datastore::destroy(Arc::<FaultBackend>::clone(&faulty)).await;
            if destroyed.is_err() {
                match Datastore::open(Arc::clone(&backend), Options::default()).await {
                    Err(error) if error.kind() == ErrorKind::NotFound => gone += 1,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Conflict, "step {step}");
                        refused += 1;
                    }
                    Ok(store) => {
                        assert!(store.uuid().is_some(), "step {step}");
                        assert_eq!(store.groups(&Namespace::root()).await.unwrap().len(), 1, "step {step}");
                    }
                }
                let done = Datastore::destroy(Arc::clone(&backend)).await.unwrap();
                assert_eq!(done.foreign, ["foreign"]);
            }
            destroyed.is_ok()
        });
        assert_eq!(server.objects(), before, "step {step}");
        if ended {
            assert!(step > 9 && refused > 5 && gone > 0, "{step} steps, {refused} refused, {gone} gone");
            return;
        }
    }
}

#[test]
fn adopting_a_copied_store_draws_a_new_identity_and_drops_records_of_the_old_one() {
    everywhere(|place| {
        block_on(async {
            let backend = place().await;
            let store = Datastore::create(Arc::clone(&backend), Options::default()).await.unwrap();
            drop(back_up(&store, "host/a", "one").await);
            let old = store.uuid().unwrap().to_owned();
            let scratch = larder_testing::scratch();
            let open_local = || async {
                LocalState::open(&runtime(), scratch.path(), LocalOptions::default()).await.unwrap()
            };
            let with_local = || async { Options::default().local_state(open_local().await) };
            drop(Datastore::open(Arc::clone(&backend), with_local().await).await.unwrap());
            for key in [Key::GcCandidates, Key::Suspects] {
                backend.put(&key, "noted".into(), PutMode::Replace).await.unwrap();
            }
            let writer = store.backup(&"host/b".parse().unwrap()).begin().await.unwrap();
            assert_eq!(store.adopt_as_new().await.unwrap_err().kind(), ErrorKind::Busy, "while one writes");
            writer.abort().await.unwrap();
            let new = store.adopt_as_new().await.unwrap();
            assert_ne!(new, old);
            assert_eq!(backend.head(&Key::GcCandidates).await.unwrap_err().kind(), ErrorKind::NotFound);
            assert!(backend.head(&Key::Suspects).await.is_ok(), "what is distrusted stays so");
            let refused = store.backup(&"host/a".parse().unwrap()).begin().await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Conflict);
            let refused = Datastore::open(Arc::clone(&backend), with_local().await).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Conflict, "the local state is that of the original");
            backend
                .put(
                    &Key::Suspects,
                    larder::internal::suspects::encode(&BTreeSet::default()),
                    PutMode::Replace,
                )
                .await
                .unwrap();
            let store = Datastore::open(Arc::clone(&backend), Options::default()).await.unwrap();
            assert_eq!(store.uuid(), Some(new.as_str()));
            drop(back_up(&store, "host/a", "two").await);
            assert_eq!(store.snapshots(&"host/a".parse().unwrap()).await.unwrap().len(), 2);
            store.close().await.unwrap();
            Datastore::destroy(backend).await.unwrap();
        });
    });
}

#[test]
fn an_adopted_copy_of_a_store_can_be_synced_with_its_original() {
    let scratch = larder_testing::scratch();
    let (original, copy) = (scratch.path().join("original"), scratch.path().join("copy"));
    let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
    let open = |path: std::path::PathBuf| {
        let options = options.clone();
        async move {
            let backend = FsBackend::open(runtime(), path, options).await.unwrap();
            Datastore::open(Arc::new(backend), Options::default()).await.unwrap()
        }
    };
    block_on(async {
        let backend = FsBackend::create(runtime(), &original, options.clone()).await.unwrap();
        let ours = Datastore::create(Arc::new(backend), Options::default()).await.unwrap();
        drop(back_up(&ours, "host/a", "one").await);
        let copied = std::process::Command::new("cp").arg("-a").args([&original, &copy]).status().unwrap();
        assert!(copied.success());
        drop(back_up(&ours, "host/a", "two").await);
        let (theirs, before) = (open(copy.clone()).await, open(copy.clone()).await);
        let refused = sync::plan(&ours, &theirs, SyncOptions::default()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        assert!(std::error::Error::source(&refused).unwrap().to_string().contains("adopt_as_new"));
        theirs.adopt_as_new().await.unwrap();
        // Another opening, of before.
        let refused = before.backup(&"host/a".parse().unwrap()).begin().await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        let refused = gc::plan(&before, GcOptions::default()).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        let theirs = open(copy).await;
        let mut plan = sync::plan(&ours, &theirs, SyncOptions::default()).await.unwrap();
        plan.execute().await.unwrap();
        let group = "host/a".parse().unwrap();
        assert_eq!(theirs.snapshots(&group).await.unwrap(), ours.snapshots(&group).await.unwrap());
        let newest = theirs.latest(&group).await.unwrap().unwrap();
        let blob = theirs.snapshot(&newest).await.unwrap().blob("app.conf.blob").await.unwrap();
        assert_eq!(blob, "two");
    });
}
