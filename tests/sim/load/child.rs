//! The process under load: its limits, and what it must leave behind.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use larder::backend::{Backend, FsBackend, FsOptions, Ownership, PrefixDirectories, S3Backend};
use larder::http::HttpClient;
use larder::rt::{Runtime, TokioRuntime};
use larder::s3::{Credentials, S3Client, S3Options, StaticCredentials};
use larder::store::{Datastore, Options, PackOptions};
use rustix::process::{Resource, Rlimit, setrlimit};

use super::VARIABLE;
use super::work::Load;

const MAX_DESCRIPTORS: usize = 256;
const MAX_KIB: u64 = 512 << 10;
/// A loop that does the same for so long is stuck.
const STUCK: Duration = Duration::from_secs(150);

/// The largest number of open descriptors that was seen.
static PEAK: AtomicUsize = AtomicUsize::new(0);

fn descriptors() -> usize {
    // The listing has one itself.
    let open = fs::read_dir("/proc/self/fd").map_or(MAX_DESCRIPTORS, |open| open.count() - 1);
    PEAK.fetch_max(open, Ordering::Relaxed);
    open
}

/// The most memory that the process ever had, in KiB.
fn peak_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Counts descriptors, and ends the process if a loop is stuck.
fn watch(load: &Arc<Load>) {
    let load = Arc::downgrade(load);
    let watch = move || {
        while let Some(load) = load.upgrade() {
            descriptors();
            if load.stuck_for() > STUCK {
                eprintln!("stuck: {:#?}", load.doing());
                std::process::exit(1);
            }
            drop(load);
            thread::park_timeout(Duration::from_millis(20));
        }
    };
    thread::Builder::new().spawn(watch).unwrap();
}

async fn backend(runtime: &Arc<dyn Runtime>, place: &str) -> Arc<dyn Backend> {
    if !place.starts_with("http://") {
        let options = FsOptions::default().prefix_directories(PrefixDirectories::OnDemand);
        let backend = FsBackend::create(Arc::clone(runtime), Path::new(place), options).await;
        return Arc::new(backend.unwrap());
    }
    let http = Arc::new(HttpClient::new(Arc::clone(runtime), larder_testing::plaintext()).unwrap());
    let credentials = StaticCredentials::new(Credentials::new("id", "secret"));
    let options = S3Options::new(place, "bucket").credentials(Arc::new(credentials));
    let client = S3Client::new(Arc::clone(runtime), http, options).unwrap();
    let found = client.probe("probe/").await.unwrap();
    let backend = S3Backend::new(Arc::clone(runtime), client, "store", found, &[]).unwrap();
    Arc::new(backend.ownership(Ownership::default()))
}

#[test]
fn a_child_does_what_its_parent_says() {
    let Ok(order) = std::env::var(VARIABLE) else { return };
    let [place, layout, seconds] = order.split(' ').collect::<Vec<_>>()[..] else { panic!("{order}") };
    let (is_bucket, seconds) = (place.starts_with("http://"), seconds.parse().unwrap());
    let limit = Some(MAX_DESCRIPTORS as u64);
    setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: limit }).unwrap();
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime::new(tokio.handle().clone()));
    let before = descriptors();
    let report = tokio.block_on(async {
        let backend = backend(&runtime, place).await;
        let options = Options::default();
        let options = if layout == "packed" { options.packed(PackOptions::default()) } else { options };
        let store = Datastore::create(Arc::clone(&backend), options).await.unwrap();
        let collector = Datastore::open(Arc::clone(&backend), Options::default()).await.unwrap();
        let load = Arc::new(Load::new(Arc::clone(&runtime), store, collector, is_bucket));
        watch(&load);
        load.run(Duration::from_secs_f64(seconds)).await;
        load.check().await;
        let report = load.report();
        drop(load);
        // What is no part of the store stays. Nothing may. In a bucket, requests without an answer keep it for half an hour.
        if !is_bucket {
            let destroyed = Datastore::destroy(Arc::clone(&backend)).await.unwrap();
            assert_eq!(destroyed.foreign, [] as [String; 0]);
        }
        backend.close().await.unwrap();
        report
    });
    let mut pauses = 0;
    while descriptors() > before {
        assert!(pauses < 500, "{} descriptors more than before", descriptors() - before);
        thread::park_timeout(Duration::from_millis(10));
        pauses += 1;
    }
    let (peak, kib) = (PEAK.load(Ordering::Relaxed), peak_kib());
    assert!(kib <= MAX_KIB, "{kib} KiB");
    println!("\nload: {report}; at most {peak} descriptors, {} MiB", kib >> 10);
}
