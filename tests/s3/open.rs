//! Stores that are opened by their addresses.

use std::io;
use std::net::TcpListener;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::executor::block_on;
use futures::future::BoxFuture;
use larder::error::ErrorKind;
use larder::http::HttpOptions;
use larder::local::LocalOptions;
use larder::rt::{BlockingJob, Connection, Runtime, ThreadRuntime};
use larder::s3::{Credentials, StaticCredentials};
use larder::{Datastore, FsOptions, OpenOptions, PrefixDirectories, StoreUrl};
use larder_testing::fault_server::{Action, FaultServer, Options, Rule};
use larder_testing::scratch;

/// Enough for every request of an opening that is no probe.
const FEW: usize = 8;

fn options() -> OpenOptions {
    let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
    OpenOptions::default()
        .credentials(credentials)
        .http(HttpOptions::default())
        .directory(FsOptions::default().prefix_directories(PrefixDirectories::OnDemand))
}

fn url(server: &FaultServer, store: &str) -> StoreUrl {
    format!("s3://bucket/{store}?endpoint={}", server.url()).parse().unwrap()
}

async fn back_up(store: &Datastore) {
    let backup = store.backup(&"host/a".parse().unwrap()).begin().await.unwrap();
    backup.blob("app.conf", "text").await.unwrap();
    backup.finish().await.unwrap();
}

async fn number_of_groups(store: &Datastore) -> usize {
    store.groups(&"".parse().unwrap()).await.unwrap().len()
}

#[test]
fn a_store_in_a_bucket_is_created_opened_and_destroyed_by_its_address() {
    let server = FaultServer::start(Options::default());
    let url = url(&server, "store");
    block_on(async {
        let missing = options().open(&url).await.unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        let store = options().create(&url).await.unwrap();
        back_up(&store).await;
        store.close().await.unwrap();
        assert_eq!(options().create(&url).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        let store = options().attach(&url).await.unwrap();
        assert_eq!(number_of_groups(&store).await, 1);
        assert_eq!(options().attach(&url).await.unwrap_err().kind(), ErrorKind::Busy, "by another process");
        store.close().await.unwrap();
        assert!(options().destroy(&url).await.unwrap().deleted > 0);
        assert_eq!(options().open(&url).await.unwrap_err().kind(), ErrorKind::NotFound);
    });
    assert_eq!(server.violations(), [] as [String; 0]);
}

#[test]
fn a_store_in_a_directory_is_opened_by_its_address() {
    let scratch = scratch();
    let path = scratch.path().join("store");
    block_on(async {
        let url: StoreUrl = path.to_str().unwrap().parse().unwrap();
        assert_eq!(options().open(&url).await.unwrap_err().kind(), ErrorKind::NotFound);
        back_up(&options().create(&url).await.unwrap()).await;
        assert_eq!(options().create(&url).await.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(number_of_groups(&larder::open(&url.to_string()).await.unwrap()).await, 1);
        assert_eq!(number_of_groups(&options().open(&StoreUrl::directory(path)).await.unwrap()).await, 1);
    });
}

#[test]
fn local_state_keeps_the_result_of_the_probe() {
    let server = FaultServer::start(Options::default());
    let scratch = scratch();
    let with_state = || options().local_state(scratch.path().join("state"), LocalOptions::default());
    let requests = |work: BoxFuture<'_, ()>| {
        let before = server.log().len();
        block_on(work);
        server.log().len() - before
    };
    let url = url(&server, "store");
    let open = || {
        requests(Box::pin(async {
            // Background work of the process before holds the local state for a moment.
            let store = loop {
                match with_state().open(&url).await {
                    Err(error) if error.kind() == ErrorKind::Busy => {}
                    opened => break opened.unwrap(),
                }
            };
            assert_eq!(number_of_groups(&store).await, 1);
            store.close().await.unwrap();
        }))
    };
    let first = requests(Box::pin(async {
        let store = with_state().create(&url).await.unwrap();
        back_up(&store).await;
        store.close().await.unwrap();
    }));
    assert!(first > 30, "{first} requests with a probe");
    let second = open();
    assert!(second <= FEW, "{second} requests without one");
    // A damaged record is no record.
    std::fs::write(scratch.path().join("state/probe"), "{").unwrap();
    assert!(open() > 30);
    assert!(open() <= FEW);
    // Neither is the record of another server.
    let probed = std::fs::read_to_string(scratch.path().join("state/probe")).unwrap();
    std::fs::write(scratch.path().join("state/probe"), probed.replace("http://", "https://")).unwrap();
    assert!(open() > 30);
}

#[test]
fn a_store_is_read_without_a_probe_and_without_a_write() {
    let server = FaultServer::start(Options::default());
    let url = url(&server, "store");
    block_on(async {
        let store = options().create(&url).await.unwrap();
        back_up(&store).await;
        store.close().await.unwrap();
        let before = server.log().len();
        let store = options().no_probe().open(&url).await.unwrap();
        assert_eq!(number_of_groups(&store).await, 1);
        store.close().await.unwrap();
        let log = server.log();
        let sent = &log[before..];
        assert!(sent.len() <= FEW, "{sent:?}");
        assert!(sent.iter().all(|request| request.method == "GET"), "{sent:?}");
    });
}

#[test]
fn an_opening_can_move_to_another_thread() {
    let url: StoreUrl = "s3://bucket/store".parse().unwrap();
    let options = options();
    let of = |future: BoxFuture<'_, _>| drop::<BoxFuture<'_, larder::Result<Datastore>>>(future);
    of(Box::pin(options.open(&url)));
    of(Box::pin(options.create(&url)));
    of(Box::pin(options.attach(&url)));
    of(Box::pin(larder::open("store")));
}

/// The lease is given back although the store was not opened.
#[test]
fn a_failed_opening_keeps_no_other_process_out() {
    let server = FaultServer::start(Options::default());
    let url = url(&server, "store");
    block_on(async {
        server.add(
            Rule::on("PUT")
                .path(|path| path.contains("store.json"))
                .then(Action::status(403, "AccessDenied")),
        );
        let refused = options().create(&url).await.unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied);
        server.clear();
        options().create(&url).await.unwrap();
    });
}

/// A runtime in which a second of sleep takes a millisecond.
#[derive(Debug, Default)]
struct Hurried(ThreadRuntime);

#[async_trait]
impl Runtime for Hurried {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.0.spawn(task);
    }
    fn spawn_blocking(&self, job: BlockingJob) {
        self.0.spawn_blocking(job);
    }
    async fn sleep(&self, duration: Duration) {
        self.0.sleep(duration / 1000).await;
    }
    fn now(&self) -> SystemTime {
        self.0.now()
    }
    fn monotonic(&self) -> Duration {
        self.0.monotonic()
    }
    fn fill_random(&self, buffer: &mut [u8]) {
        self.0.fill_random(buffer);
    }
    fn parallelism(&self) -> NonZeroUsize {
        self.0.parallelism()
    }
    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>> {
        self.0.connect(host, port).await
    }
}

#[test]
fn a_server_that_never_answers_is_given_up_early() {
    // Accepts connections, and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("s3://bucket/store?endpoint=http://{}", listener.local_addr().unwrap());
    let clock = ThreadRuntime::new();
    let began = clock.monotonic();
    let error =
        block_on(options().runtime(Arc::new(Hurried::default())).open(&url.parse().unwrap())).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("http://127.0.0.1"), "{error}");
    assert!(clock.monotonic().saturating_sub(began) < Duration::from_secs(20), "30 s are 30 ms here");
}
