//! Every operation of the S3 client against the same troubles: how often it is tried, how it ends, and that it ends.

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::BoxFuture;
use larder::error::{Error, ErrorKind};
use larder::http::{HttpClient, Timeouts};
use larder::internal::s3::{Condition, ListRequest, Requests as _};
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{Credentials, RetryOptions, S3Client, S3Options, StaticCredentials};
use larder_testing::fault_server::{Action, FaultServer, Options, Rule};
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const ALWAYS: Condition = Condition::Always;

type Run = for<'a> fn(&'a S3Client) -> BoxFuture<'a, Result<(), Error>>;

/// Every operation that sends one request without a fault, on existing objects.
const OPERATIONS: [(&str, Run); 16] = [
    ("get", |client| Box::pin(async { client.raw().get("k", 100).await.map(drop) })),
    ("get a range", |client| Box::pin(async { client.raw().get_range("k", 0..2).await.map(drop) })),
    ("head", |client| Box::pin(async { client.raw().head("k").await.map(drop) })),
    ("put", |client| Box::pin(async { client.raw().put("k", small(), &ALWAYS).await.map(drop) })),
    ("create", |client| {
        Box::pin(async { client.raw().put("new", small(), &Condition::Absent).await.map(drop) })
    }),
    ("copy", |client| Box::pin(async { client.raw().copy("k", "copy").await.map(drop) })),
    ("delete", |client| Box::pin(async { client.raw().delete("k", &ALWAYS).await.map(drop) })),
    ("delete many", |client| Box::pin(async { client.raw().delete_many(&["k", "l"]).await.map(drop) })),
    ("list", |client| Box::pin(async { client.raw().list(&ListRequest::new(""), None).await.map(drop) })),
    ("look for the bucket", |client| Box::pin(async { client.raw().has_bucket().await.map(drop) })),
    ("versioning", |client| Box::pin(async { client.raw().keeps_versions().await.map(drop) })),
    ("object lock", |client| Box::pin(async { client.raw().locks_objects().await.map(drop) })),
    ("lifecycle", |client| Box::pin(async { client.raw().lifecycle().await.map(drop) })),
    ("list uploads", |client| Box::pin(async { client.raw().open_uploads("").await.map(drop) })),
    ("abort an upload", |client| Box::pin(async { client.raw().abort_upload("k", "none").await })),
    ("put in parts", |client| {
        Box::pin(async { client.raw().put("large", large(), &ALWAYS).await.map(drop) })
    }),
];

fn small() -> Bytes {
    Bytes::from_static(b"small")
}

fn large() -> Bytes {
    vec![7; 6 << 20].into()
}

/// A server with objects, and a client with little patience.
fn set_up(deadline: Duration) -> (FaultServer, S3Client) {
    let server = FaultServer::start(Options::default());
    for key in ["k", "l"] {
        server.put(key, b"content".to_vec());
    }
    let mut timeouts = Timeouts::default();
    (timeouts.connect, timeouts.first_byte) = (deadline, deadline);
    (timeouts.idle, timeouts.overall) = (deadline, deadline);
    let mut retry = RetryOptions::default();
    retry.deadline = deadline;
    (retry.max_backoff, retry.attempts) = (Duration::from_millis(20), NonZeroU32::new(4).unwrap());
    let credentials = StaticCredentials::new(Credentials::new("id", "secret"));
    let options = S3Options::new(server.url(), "bucket")
        .credentials(Arc::new(credentials))
        .timeouts(timeouts)
        .retry(retry)
        .parts(6 << 20, NonZeroU64::new(5 << 20).unwrap());
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
    (server, S3Client::new(runtime, http, options).unwrap())
}

/// Proves H128.
#[test]
fn every_operation_on_a_silent_server_ends_in_time() {
    let check = |name: &str, run: Run| {
        let clock = ThreadRuntime::new();
        let (server, client) = set_up(Duration::from_millis(400));
        server.add(Rule::any().then(Action::StallResponseAt(0)));
        let start = clock.monotonic();
        let ended = block_on(run(&client)).map_err(|error| error.kind());
        let took = clock.monotonic().saturating_sub(start);
        assert_eq!(ended, Err(ErrorKind::Unavailable), "{name}");
        // An upload that was begun is aborted too, and a large body has a minute and a half more.
        assert!(took < Duration::from_secs(5), "{name}: {took:?}");
    };
    // They wait at the same time.
    thread::scope(|scope| {
        for (name, run) in OPERATIONS {
            scope.spawn(move || check(name, run));
        }
    });
}

/// Proves H132.
#[test]
fn every_operation_is_retried_after_a_transient_error() {
    let later = |status, code| Action::status(status, code);
    for (name, run) in OPERATIONS {
        for (trouble, action) in [
            ("500", later(500, "InternalError")),
            ("503", later(503, "SlowDown")),
            ("429", later(429, "TooManyRequests")),
            ("408", later(408, "")),
            ("502", later(502, "")),
            ("400 RequestTimeout", later(400, "RequestTimeout")),
            ("cut before the head", Action::CutResponseAt(0)),
            ("cut in the head", Action::CutResponseAt(20)),
            ("cut in the request", Action::CutRequestAt(50)),
            ("executed and not answered", Action::ExecuteThenDrop),
        ] {
            let is_head = matches!(name, "head" | "look for the bucket");
            let (server, client) = set_up(Duration::from_secs(20));
            // An answer to HEAD has no code: it is sent again once, in case it passes.
            let times = if is_head && trouble.starts_with("400") { 1 } else { 2 };
            server.add(Rule::any().first(times).then(action));
            let ended = block_on(run(&client)).map_err(|error| error.kind());
            assert_eq!(ended, Ok(()), "{name} after {trouble}");
            let requests = server.log().len();
            assert!(requests >= 2, "{name} after {trouble}: {requests} requests");
        }
    }
}

/// Proves H132.
#[test]
fn no_operation_is_retried_after_a_final_error() {
    for (name, run) in OPERATIONS {
        for (status, code, kind) in [
            (403, "AccessDenied", ErrorKind::Denied),
            (403, "SignatureDoesNotMatch", ErrorKind::Denied),
            (400, "InvalidArgument", ErrorKind::InvalidInput),
            (404, "NoSuchBucket", ErrorKind::InvalidInput),
            (501, "NotImplemented", ErrorKind::Unsupported),
            (507, "QuotaExceeded", ErrorKind::Full),
        ] {
            let (server, client) = set_up(Duration::from_secs(20));
            server.add(Rule::any().then(Action::status(status, code)));
            let ended = block_on(run(&client)).map_err(|error| error.kind());
            let is_head = matches!(name, "head" | "look for the bucket");
            let is_setting = matches!(name, "versioning" | "object lock" | "lifecycle");
            match (is_head, is_setting) {
                // An answer to HEAD has no code.
                (true, _) => assert_eq!(ended.is_ok(), name != "head" && status == 404, "{name}: {code}"),
                // Without the permission to look, the setting is unknown.
                (_, true) if kind != ErrorKind::Full => assert_eq!(ended, Ok(()), "{name}: {code}"),
                _ => assert_eq!(ended, Err(kind), "{name}: {code}"),
            }
            let requests = server.log().len();
            assert!(requests == 1 || is_head && requests <= 4, "{name} after {code}: {requests} requests");
        }
    }
}

/// Proves H129.
#[test]
fn a_slow_but_moving_response_is_read_to_its_end() {
    let (server, client) = set_up(Duration::from_secs(1));
    server.put("slow", vec![7; 100_000]);
    // Two seconds in all, never a second without a byte; its size gives it another second.
    server.add(Rule::on("GET").then(Action::Drip { bytes: 5000, every: Duration::from_millis(100) }));
    let (found, _) = block_on(client.raw().get("slow", 200_000)).unwrap();
    assert_eq!(found.len(), 100_000);
}

/// Proves H123, H124, H184.
#[test]
fn operations_send_the_minimum_of_requests() {
    let (server, client) = set_up(Duration::from_secs(20));
    for number in 0..2500 {
        server.put(&format!("store/{number:06}"), Vec::new());
    }
    let requests = |what: &dyn Fn()| {
        let before = client.stats().attempts;
        what();
        client.stats().attempts - before
    };
    let list = || {
        let (mut token, mut count) = (None, 0);
        loop {
            let page = block_on(client.raw().list(&ListRequest::new("store/"), token.as_deref())).unwrap();
            count += page.listing.objects.len();
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(count, 2500);
    };
    assert_eq!(requests(&list), 3);
    assert_eq!(requests(&|| drop(block_on(client.raw().put("a", small(), &Condition::Absent)).unwrap())), 1);
    assert_eq!(
        requests(&|| drop(block_on(client.raw().put("a", small(), &Condition::Absent)).unwrap_err())),
        1
    );
    assert_eq!(requests(&|| drop(block_on(client.raw().get("a", 100)).unwrap())), 1);
    let keys: Vec<_> = (0..2500).map(|number| format!("store/{number:06}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    assert_eq!(requests(&|| drop(block_on(client.raw().delete_many(&keys)).unwrap())), 3);
}
