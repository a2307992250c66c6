//! The rights in the guide are enough, each role with its own, and nothing outside of the store is asked for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use larder::backend::{Backend, S3Backend};
use larder::error::ErrorKind;
use larder::gc::{self, GcEnd, GcOptions};
use larder::prune::{self, PruneOptions};
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{S3Capabilities, Support};
use larder::store::{Datastore, Options, Scope};
use larder::verify::{self, Recording, Repair, VerifyOptions};
use larder_testing::fault_server::{Action, FaultServer, Logged, Options as ServerOptions, Rule};
use larder_testing::s3_store;
use larder_testing::s3_store::{back_up, check_all, client, fresh, group};

type Rights = BTreeSet<String>;

/// The rights in a row of the guide.
fn rights(role: &str) -> Rights {
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/manual/rights.md");
    let guide = fs::read_to_string(guide).unwrap();
    let row = guide.lines().find(|line| line.starts_with(&format!("| {role} |"))).unwrap();
    row.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The right that a request needs on `store/*`. None for what no right on the store allows.
fn needed(method: &str, path: &str, query: &str) -> Option<&'static str> {
    let names = |name: &str| query.split('&').any(|part| part.split('=').next() == Some(name));
    let rest = path.strip_prefix("/bucket")?;
    if rest.trim_start_matches('/').is_empty() {
        let within = ["prefix=store%2F", "prefix=store/"].iter().any(|prefix| query.contains(prefix));
        return match method {
            "GET" if names("list-type") && within => Some("s3:ListBucket"),
            "GET" if names("uploads") && within => Some("s3:ListBucketMultipartUploads"),
            // Each key needs it; that they are within the store is seen in the bucket.
            "POST" if names("delete") => Some("s3:DeleteObject"),
            "GET" if names("versioning") => Some("s3:GetBucketVersioning"),
            "GET" if names("object-lock") => Some("s3:GetBucketObjectLockConfiguration"),
            "GET" if names("lifecycle") => Some("s3:GetLifecycleConfiguration"),
            _ => None,
        };
    }
    if !rest.starts_with("/store/") {
        return None;
    }
    match method {
        "GET" | "HEAD" => Some("s3:GetObject"),
        "DELETE" if names("uploadId") => Some("s3:AbortMultipartUpload"),
        "DELETE" => Some("s3:DeleteObject"),
        "PUT" | "POST" => Some("s3:PutObject"),
        _ => None,
    }
}

/// From now on, everything is refused with this that these rights do not allow.
fn allow(server: &FaultServer, allowed: &Rights, status: u16, code: &'static str) {
    server.clear();
    let allowed = allowed.clone();
    let is_refused = move |method: &str, path: &str, query: &str| {
        !needed(method, path, query).is_some_and(|right| allowed.contains(right))
    };
    server.add(Rule::any().request(is_refused).then(Action::status(status, code)));
}

/// The rights that the requests since then needed. All of them are within the store.
fn asked(server: &FaultServer, since: usize) -> Rights {
    let right = |line: &Logged| {
        let right = needed(&line.method, &line.path, &line.query);
        right.unwrap_or_else(|| panic!("outside of the store: {} {}?{}", line.method, line.path, line.query))
    };
    server.log()[since..].iter().map(|line| right(line).to_owned()).collect()
}

/// Opens the store as one who only reads it.
async fn reader(server: &FaultServer) -> Datastore {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let client = client(server, &runtime);
    let backend = S3Backend::new(runtime, client, "store", S3Capabilities::default(), &[]).unwrap();
    Datastore::open(Arc::new(backend) as Arc<dyn Backend>, Options::default()).await.unwrap()
}

async fn verified(store: &Datastore, options: VerifyOptions) {
    let mut plan = verify::plan(store, &Scope::Store, options).await.unwrap();
    assert!(plan.execute().await.unwrap().is_clean());
}

/// Other stores of the bucket, and the names that are not quite that of the store.
fn neighbours(server: &FaultServer) -> Vec<&'static str> {
    let keys = vec!["store.larder/x", "store2/.chunks/x", "store", "other/.cnt/x", ".larder/x"];
    for key in &keys {
        server.put(key, "of somebody else");
    }
    keys
}

/// Proves H181.
#[test]
fn each_role_works_with_only_its_documented_permissions() {
    let server = FaultServer::start(ServerOptions::default());
    let neighbours = neighbours(&server);
    let optional = rights("optional");
    block_on(async {
        let writing = rights("writing");
        allow(&server, &writing, 403, "AccessDenied");
        let writer = fresh(&server).await;
        assert_eq!(back_up(&writer.store, &group(), 1).await.unwrap().name().group(), &group());
        back_up(&writer.store, &group(), 2).await.unwrap();
        writer.close().await;
        let asked_for = asked(&server, 0);
        assert!(asked_for.is_superset(&writing), "{asked_for:?}: all of them are needed");
        assert!(asked_for.is_subset(&writing.union(&optional).cloned().collect()), "{asked_for:?}");

        let (since, reading) = (server.log().len(), rights("reading"));
        allow(&server, &reading, 403, "AccessDenied");
        let before = server.objects();
        let store = reader(&server).await;
        assert_eq!(check_all(&store, &group()).await.unwrap(), 2);
        verified(&store, VerifyOptions::default().repair(Repair::Report).recording(Recording::Off)).await;
        assert_eq!(asked(&server, since), reading, "a reader asks for nothing else");
        assert_eq!(server.objects(), before);

        let (since, maintenance) = (server.log().len(), rights("maintenance"));
        allow(&server, &maintenance, 403, "AccessDenied");
        let process = fresh(&server).await;
        let store = &process.store;
        verified(store, VerifyOptions::default()).await;
        let oldest = store.snapshots(&group()).await.unwrap().remove(0).name;
        let mut plan = prune::plan_deletion(store, &Scope::Snapshots(vec![oldest]), PruneOptions::default())
            .await
            .unwrap();
        assert_eq!(plan.execute().await.unwrap().removed(), 1);
        let options = || GcOptions::default().grace(Duration::ZERO).consistent_listings().max_garbage(100);
        let report = gc::plan(store, options()).await.unwrap().confirm().execute().await.unwrap();
        assert!(matches!(report.end, GcEnd::Complete) && report.status_written, "{report:?}");
        assert_eq!(report.leftovers_refused.unwrap().kind(), ErrorKind::Denied);
        assert!(report.removed.chunks > 0);
        assert_eq!(check_all(store, &group()).await.unwrap(), 1);
        process.close().await;
        let asked_for = asked(&server, since);
        assert!(asked_for.is_subset(&maintenance.union(&optional).cloned().collect()), "{asked_for:?}");
    });
    for key in neighbours {
        assert_eq!(server.objects()[key], b"of somebody else", "{key}");
    }
}

#[test]
fn a_collection_that_may_not_list_uploads_completes_and_reports_it() {
    for (status, code, kind) in [
        (403, "AccessDenied", Some(ErrorKind::Denied)),
        (405, "MethodNotAllowed", Some(ErrorKind::Unsupported)),
        (501, "NotImplemented", Some(ErrorKind::Unsupported)),
        (0, "", None),
    ] {
        let server = FaultServer::start(ServerOptions::default());
        if status != 0 {
            let uploads = |query: &str| query.split('&').any(|part| part.starts_with("uploads"));
            server.add(Rule::on("GET").query(uploads).then(Action::status(status, code)));
        }
        block_on(async {
            let process = fresh(&server).await;
            back_up(&process.store, &group(), 1).await.unwrap();
            process.store.delete_group(&group()).await.unwrap();
            let options = GcOptions::default().grace(Duration::ZERO).consistent_listings().max_garbage(100);
            let report = gc::plan(&process.store, options).await.unwrap().confirm().execute().await.unwrap();
            assert!(matches!(report.end, GcEnd::Complete) && report.status_written, "{report:?}");
            assert_eq!(report.removed.chunks, s3_store::CHUNKS as u64);
            assert_eq!(report.leftovers_refused.map(|error| error.kind()), kind, "{status}");
            process.close().await;
        });
    }
}

#[test]
fn a_probe_stays_within_the_store_and_leaves_no_objects() {
    for (prefix, within) in [("store/", "store/.larder/probe-"), ("", ".larder/probe-")] {
        let server = FaultServer::start(ServerOptions::default());
        neighbours(&server);
        let before = server.objects();
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let found = block_on(client(&server, &runtime).probe(prefix)).unwrap();
        assert_eq!((found.create_only_put, found.multi_delete), (Support::Yes, Support::Yes));
        for line in server.log() {
            let key = line.path.strip_prefix("/bucket").unwrap().trim_start_matches('/');
            assert!(key.is_empty() || key.starts_with(within), "{line:?}");
        }
        assert_eq!(server.objects(), before);
    }
}
