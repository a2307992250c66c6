//! Reports, plans and events in JSON and in words. Programs parse the JSON, so each form here is a promise.

use std::fmt::{Display, Write as _};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use futures::io::Cursor;
use larder::backend::MemoryBackend;
use larder::error::{Error, ErrorKind};
use larder::format::name::Namespace;
use larder::gc::{self, GcOptions};
use larder::prune::{self, PruneOptions};
use larder::retention::RetentionRules;
use larder::rt::SimRuntime;
use larder::store::{ArchiveEvent, Datastore, Options, Scope, SnapshotReader};
use larder::sync::{self, SyncOptions};
use larder::verify::{self, VerifyOptions};
use larder_testing::noise;
use serde::Serialize;

// Each test has a seed of its own: stores that draw the same identity share their chunk state within a process.

/// 2027-01-15T08:00:00Z.
const THEN: u64 = 1_800_000_000;

fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

async fn fresh(sim: &SimRuntime) -> Datastore {
    let backend = MemoryBackend::new(Arc::new(sim.clone()));
    Datastore::create(Arc::new(backend), Options::default()).await.unwrap()
}

/// A snapshot on a day, of two chunks, one of which all days share, and a file.
async fn back_up(
    store: &Datastore,
    day: u64,
    seen: Option<&Arc<Mutex<Vec<ArchiveEvent>>>>,
) -> SnapshotReader {
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(THEN + day * 86_400);
    let mut builder = store.backup(&"vm/100".parse().unwrap()).time(time);
    if let Some(seen) = seen {
        let seen = Arc::clone(seen);
        let note = move |event: &ArchiveEvent| seen.lock().unwrap().push(event.clone());
        builder = builder.observer(Arc::new(note));
    }
    let backup = builder.begin().await.unwrap();
    let bytes = [noise(0, 65_536), noise(day, 65_536)].concat();
    let image = backup.image("d.img", Cursor::new(&bytes), bytes.len() as u64).chunk_bytes(65_536);
    let summary = image.await.unwrap();
    backup.blob("a.conf", "cores: 4").await.unwrap();
    if day == 1 {
        let checksum = summary.checksum.to_string();
        let wanted = format!(
            r#"{{"base":"none","checksum":"{checksum}","chunks":2,"name":"d.img.fidx","size":131072}}"#
        );
        assert_eq!(json(&summary), wanted);
        assert_eq!(summary.to_string(), "d.img.fidx: 128.0 KiB in 2 chunks");
        let wanted = "{\"bytes_read\":131080,\"bytes_written\":131116,\"chunks_known\":0,\"chunks_new\":2,\"chunks_reused\":0}";
        assert_eq!(json(&backup.stats()), wanted);
        assert_eq!(backup.stats().to_string(), "read 128.0 KiB, stored 128.0 KiB: 2 new chunks");
    }
    backup.finish().await.unwrap().snapshot
}

/// Each value in JSON and in words, as lines of a text that a file holds.
#[derive(Default)]
struct Golden(String);

impl Golden {
    fn add(&mut self, value: &(impl Serialize + Display)) {
        writeln!(self.0, "{}\n{value}\n", json(value)).unwrap();
    }

    fn check(self, file: &str, wanted: &str) {
        // To renew a file after a deliberate change of the form.
        if std::env::var_os("LARDER_WRITE_GOLDEN").is_some() {
            std::fs::write(format!("tests/observe/{file}"), &self.0).unwrap();
        }
        assert_eq!(self.0, wanted);
    }
}

#[test]
fn a_backup_and_its_events() {
    let sim = SimRuntime::new(1);
    sim.clone().block_on(async {
        let (store, seen, mut golden) = (fresh(&sim).await, Arc::default(), Golden::default());
        let snapshot = back_up(&store, 1, Some(&seen)).await;
        let again = back_up(&store, 2, Some(&seen)).await;
        seen.lock().unwrap().iter().for_each(|event| golden.add(event));
        golden.add(&store.snapshot_info(snapshot.name()).await.unwrap());
        golden.add(&again.manifest().files()[0]);
        golden.check("backup.txt", include_str!("backup.txt"));
    });
}

#[test]
fn maintenance_from_plan_to_report() {
    let sim = SimRuntime::new(12);
    sim.clone().block_on(async {
        let (store, copy, mut golden) = (fresh(&sim).await, fresh(&sim).await, Golden::default());
        for day in 1..=3 {
            back_up(&store, day, None).await;
        }
        let mut plan = sync::plan(&store, &copy, SyncOptions::default()).await.unwrap();
        golden.add(&plan);
        golden.add(&plan.execute().await.unwrap());
        let options = PruneOptions::default().rules(RetentionRules::default().keep_last(2));
        let mut plan = prune::plan(&store, &Scope::Tree(Namespace::root()), options).await.unwrap();
        golden.add(&plan);
        golden.add(&plan.execute().await.unwrap());
        let options = GcOptions::default().grace(Duration::ZERO).max_garbage(10);
        let plan = gc::plan(&store, options).await.unwrap();
        golden.add(&plan);
        golden.add(&plan.confirm().execute().await.unwrap());
        let mut plan = verify::plan(&store, &Scope::Store, VerifyOptions::default()).await.unwrap();
        golden.add(&plan);
        golden.add(&plan.execute().await.unwrap());
        golden.check("maintenance.txt", include_str!("maintenance.txt"));
    });
}

#[test]
fn an_error_with_its_causes() {
    let cause = Error::new(ErrorKind::Unavailable, "send a request").because("connection refused");
    let error = Error::new(ErrorKind::Unavailable, "load chunk").on("00ff").because(cause);
    assert_eq!(
        json(&error),
        r#"{"kind":"unavailable","action":"load chunk","subject":"00ff","message":"cannot load chunk 00ff: the store is not available: cannot send a request: the store is not available: connection refused","retry_after":null}"#
    );
    assert_eq!(json(&ErrorKind::AlreadyExists), r#""already_exists""#);
}

/// The capabilities of a server have one form, which is stored and read again.
#[cfg(feature = "s3")]
#[test]
fn the_capabilities_of_a_server_are_those_that_are_stored() {
    let unknown = larder::s3::S3Capabilities::default();
    let stored: serde_json::Value = serde_json::from_str(&unknown.to_json()).unwrap();
    assert_eq!(serde_json::to_value(&unknown).unwrap(), stored);
    assert_eq!(unknown.to_string().lines().count(), 8);
}
