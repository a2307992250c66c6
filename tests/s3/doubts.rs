//! The client neither claims success nor waits without end when servers and proxies misbehave.

#![expect(clippy::disallowed_methods, reason = "servers of a test run on threads of their own")]

use std::str::FromStr as _;

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::{Either, join_all, select};
use larder::backend::{Backend, Housekeeping, ListQuery, PutMode, Removal, S3Backend};
use larder::error::{Error, ErrorKind};
use larder::format::layout::{Key, Prefix};
use larder::http::{HttpClient, Timeouts};
use larder::internal::listing::list_all;
use larder::internal::s3::{Condition, Deletion, ListRequest, Requests as _};
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{
    CredentialProvider, Credentials, RetryOptions, S3Capabilities, S3Client, S3Options, StaticCredentials,
    Support,
};
use larder_testing::fault_server::{Action, FaultServer, Options, Rule};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

const ALWAYS: Condition = Condition::Always;

fn runtime() -> Arc<dyn Runtime> {
    Arc::new(ThreadRuntime::new())
}

fn client_at(url: &str, change: impl FnOnce(S3Options) -> S3Options) -> S3Client {
    let mut timeouts = Timeouts::default();
    (timeouts.connect, timeouts.first_byte) = (Duration::from_secs(5), Duration::from_secs(5));
    (timeouts.idle, timeouts.overall) = (Duration::from_secs(5), Duration::from_secs(30));
    let mut retry = RetryOptions::default();
    (retry.max_backoff, retry.attempts) = (Duration::from_millis(20), NonZeroU32::new(4).unwrap());
    let credentials = StaticCredentials::new(Credentials::new("id", "secret"));
    let options =
        S3Options::new(url, "bucket").credentials(Arc::new(credentials)).timeouts(timeouts).retry(retry);
    let runtime = runtime();
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
    S3Client::new(runtime, http, change(options)).unwrap()
}

fn set_up() -> (FaultServer, S3Client) {
    let server = FaultServer::start(Options::default());
    let client = client_at(&server.url(), |options| options);
    (server, client)
}

fn kind<T>(result: Result<T, Error>) -> Result<T, ErrorKind> {
    result.map_err(|error| error.kind())
}

fn page(status: u16, text: &str) -> Action {
    Action::Status { status, code: "", headers: vec![], body: Some(text.as_bytes().to_vec()) }
}

/// Proves H136.
#[test]
fn concurrent_redirected_requests_all_succeed() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    // All of them are under way when the first learns of the region.
    server.add(
        Rule::on("GET")
            .first(8)
            .then(Action::Redirect { status: 400, location: String::new(), region: Some("eu-9".to_owned()) })
            .then(Action::Delay(Duration::from_millis(300))),
    );
    let results = block_on(join_all((0..8).map(|_| client.raw().get("k", 1))));
    let results: Vec<_> = results.into_iter().map(|result| kind(result).map(drop)).collect();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// Proves I7.
#[test]
fn an_error_page_of_a_proxy_is_not_proof_of_absence() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    server.add(Rule::any().then(page(404, "<html>no backend</html>")));
    assert_ne!(kind(block_on(client.raw().get("k", 1))).map(drop), Err(ErrorKind::NotFound), "get");
    assert!(block_on(client.raw().delete("k", &ALWAYS)).is_err(), "delete");
}

/// Proves I7.
#[test]
fn a_partial_response_is_not_taken_for_the_whole_object() {
    let (server, client) = set_up();
    server.put("k", b"0123456789".to_vec());
    let mut headers = vec![("Content-Range", "bytes 0-3/10".to_owned())];
    headers.push(("ETag", "\"x\"".to_owned()));
    server.add(Rule::on("GET").then(Action::Status {
        status: 206,
        code: "",
        headers,
        body: Some(b"0123".to_vec()),
    }));
    let found = kind(block_on(client.raw().get("k", 100))).map(|(bytes, _)| bytes);
    assert_ne!(found, Ok(Bytes::from_static(b"0123")));
}

/// Proves H114.
#[test]
fn a_compressed_success_response_is_a_success() {
    let (server, client) = set_up();
    server.add(Rule::on("PUT").first(1).then(Action::ContentEncoding("gzip")));
    let stored = kind(block_on(client.raw().put("k", Bytes::from_static(b"mine"), &Condition::Absent)));
    assert_eq!(server.objects()["k"], b"mine");
    assert_ne!(stored.map(drop), Err(ErrorKind::AlreadyExists), "it was us");
}

/// Proves H114.
#[test]
fn a_repeated_conditional_delete_of_an_absent_object_stays_in_doubt() {
    let (server, client) = set_up();
    let etag = block_on(client.raw().put("k", Bytes::from_static(b"x"), &ALWAYS)).unwrap();
    server.add(Rule::on("DELETE").nth(1).then(Action::ExecuteThenDrop));
    server.add(Rule::on("DELETE").nth(2).then(Action::status(412, "PreconditionFailed")));
    let deleted = kind(block_on(client.raw().delete("k", &Condition::Tag(etag))));
    assert!(!server.objects().contains_key("k"));
    assert_eq!(
        deleted,
        Ok(Deletion::InDoubt),
        "another process may have deleted it, and the first request may be late"
    );
}

/// Proves H114.
#[test]
fn an_absent_object_is_never_reported_as_existing() {
    let (server, client) = set_up();
    server.add(Rule::on("PUT").nth(1).then(Action::CutRequestAt(400)));
    server.add(Rule::on("PUT").nth(2).then(Action::status(412, "PreconditionFailed")));
    let stored = kind(block_on(client.raw().put("k", vec![7; 100_000].into(), &Condition::Absent)));
    assert!(server.objects().is_empty());
    assert_ne!(stored.map(drop), Err(ErrorKind::AlreadyExists), "the look after it found nothing");
}

/// Proves H131.
#[test]
fn a_head_response_corrects_the_clock_too() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    server.add(Rule::any().then(Action::SkewClock(3600)));
    assert_eq!(kind(block_on(client.raw().head("k"))).map(|head| head.size), Ok(1));
}

/// Proves H31.
#[test]
fn a_lifecycle_rule_for_chunks_only_is_found() {
    let lifecycle = "<LifecycleConfiguration><Rule><ID>x</ID><Prefix>store/.chunks/</Prefix><Status>Enabled</Status>\
                     <Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>";
    let server = FaultServer::start(Options { lifecycle: Some(lifecycle.to_owned()), ..Options::default() });
    let client = client_at(&server.url(), |options| options);
    let found = block_on(client.probe("store/")).unwrap();
    assert_eq!(found.expires_objects, Some(true));
}

/// Proves H31.
#[test]
fn an_unknown_lifecycle_is_not_an_empty_one() {
    let (server, client) = set_up();
    server.add(Rule::on("GET").query(|query| query.contains("lifecycle")).then(page(404, "not here")));
    assert_eq!(block_on(client.raw().lifecycle()).unwrap(), None);
}

/// Proves H132.
#[cfg(feature = "tls")]
#[test]
fn a_broken_tls_handshake_is_not_a_wrong_certificate() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://127.0.0.1:{}", listener.local_addr().unwrap().port());
    let accepting = std::thread::spawn(move || {
        // A load balancer whose servers are restarting.
        let mut count = 0;
        for stream in listener.incoming().take(4) {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 16]);
            count += 1;
        }
        count
    });
    let client = client_at(&url, |options| options);
    let found = kind(block_on(client.raw().get("k", 1))).map(drop);
    assert_eq!(found, Err(ErrorKind::Unavailable));
    assert_eq!(accepting.join().unwrap(), 4);
}

/// Proves H152.
#[test]
fn a_request_with_a_dropped_future_is_counted() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    server.add(Rule::on("GET").then(Action::StallResponseAt(0)));
    let runtime = runtime();
    block_on(async {
        let get = Box::pin(client.raw().get("k", 1));
        let is_sent = Box::pin(async {
            while server.log().is_empty() {
                runtime.sleep(Duration::from_millis(5)).await;
            }
        });
        let Either::Right(((), dropped)) = select(get, is_sent).await else { panic!("it stalls") };
        drop(dropped);
    });
    assert_eq!(server.log().len(), 1);
    assert_eq!(client.stats().attempts, 1);
}

fn backend(client: &S3Client, server: S3Capabilities) -> S3Backend {
    S3Backend::new(runtime(), client.clone(), "store", server, &[]).unwrap()
}

/// Proves H28.
#[test]
fn an_object_under_a_longer_path_is_not_the_one_of_that_name() {
    let (server, client) = set_up();
    let digest = "ab".repeat(32);
    server.put(&format!("store/.cnt/.chunks/abab/{digest}"), b"x".to_vec());
    let backend = backend(&client, S3Capabilities::default());
    let listing =
        block_on(list_all(&backend, &ListQuery::all(Prefix::Namespace("".parse().unwrap())))).unwrap();
    for entry in listing.entries() {
        assert!(matches!(entry, larder::backend::ListEntry::Foreign(_)), "{entry:?}");
    }
    assert_eq!(listing.entries().len(), 1);
}

/// Proves I12.
#[test]
fn a_server_whose_copies_failed_the_probe_is_not_asked_to_copy() {
    let (server, client) = set_up();
    let digest = "ab".repeat(32);
    server.put(&format!("store/.chunks/abab/{digest}"), b"x".to_vec());
    server.add(
        Rule::on("PUT").first(1).then(page(200, "<CopyObjectResult><ETag>\"x\"</ETag></CopyObjectResult>")),
    );
    let mut found = S3Capabilities::default();
    found.copy = Support::Ignored;
    let backend = backend(&client, found);
    let (from, to) = (Key::Chunk(digest.parse().unwrap()), Key::Quarantined(digest.parse().unwrap(), 0));
    // The one answer above is given to whichever PUT comes first; a backend that copies by itself would store again or fail.
    let copied = block_on(backend.copy(&from, &to, PutMode::Replace));
    let asked_to_copy = server.log().iter().any(|request| request.header("x-amz-copy-source").is_some());
    assert!(!asked_to_copy, "{copied:?}");
}

#[test]
fn an_empty_page_does_not_make_a_namespace_empty() {
    let server = FaultServer::start(Options { page: 1, ..Options::default() });
    let client = client_at(&server.url(), |options| options);
    server.put("store/.cnt/ns/a/.namespace", Vec::new());
    server.put("store/.cnt/ns/a/vm/100/owner", b"root@pam\n".to_vec());
    let backend = backend(&client, S3Capabilities::default());
    let removal = Removal::any(Key::Namespace("a".parse().unwrap()));
    let results = block_on(backend.delete(&[removal])).unwrap();
    assert_eq!(results[0].as_ref().map_err(Error::kind), Err(ErrorKind::Conflict));
}

/// Proves H116.
#[test]
fn a_delete_error_for_an_unrequested_key_is_not_a_success() {
    let (server, client) = set_up();
    server.put("a b", b"x".to_vec());
    let answer = "<DeleteResult><Error><Key>a%20b</Key><Code>InternalError</Code></Error></DeleteResult>";
    server.add(Rule::on("POST").then(page(200, answer)));
    let results = kind(block_on(client.raw().delete_many(&["a b"])));
    let all_well = results.is_ok_and(|results| results.iter().all(Result::is_ok));
    assert!(!all_well);
}

/// Proves H12.
#[test]
fn a_page_that_contradicts_itself_is_an_error() {
    let (server, client) = set_up();
    let answer = "<ListBucketResult><IsTruncated>false</IsTruncated>\
                  <NextContinuationToken>t</NextContinuationToken></ListBucketResult>";
    server.add(Rule::list().then(page(200, answer)));
    let found = kind(block_on(client.raw().list(&ListRequest::new(""), None))).map(|page| page.next);
    assert_ne!(found, Ok(None));
}

/// Proves H128.
#[test]
fn an_operation_ends_at_its_deadline() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    server.add(Rule::any().then(Action::StallResponseAt(0)));
    let (mut timeouts, mut retry) = (Timeouts::default(), RetryOptions::default());
    (timeouts.first_byte, timeouts.overall) = (Duration::from_secs(6), Duration::from_secs(1));
    (retry.deadline, retry.attempts) = (Duration::from_secs(1), NonZeroU32::MIN);
    drop(client);
    let client = client_at(&server.url(), |options| options.timeouts(timeouts).retry(retry));
    let clock = ThreadRuntime::new();
    let start = clock.monotonic();
    assert!(block_on(client.raw().head("k")).is_err());
    let took = clock.monotonic().saturating_sub(start);
    assert!(
        took < Duration::from_secs(4),
        "{took:?} for a request without bodies and an overall limit of 1 s"
    );
}

#[derive(Debug)]
struct Never;

#[async_trait::async_trait]
impl CredentialProvider for Never {
    async fn credentials(&self, _: &dyn Runtime) -> larder::error::Result<Credentials> {
        std::future::pending().await
    }
}

/// Proves H128.
#[test]
fn waiting_for_credentials_ends_at_the_deadline() {
    let (server, _) = set_up();
    let (mut timeouts, mut retry) = (Timeouts::default(), RetryOptions::default());
    (timeouts.connect, timeouts.overall) = (Duration::from_secs(1), Duration::from_secs(1));
    (retry.deadline, retry.attempts) = (Duration::from_secs(1), NonZeroU32::MIN);
    let client = client_at(&server.url(), |options| {
        options.timeouts(timeouts).retry(retry).credentials(Arc::new(Never))
    });
    let runtime = runtime();
    let ended = block_on(async {
        let get = Box::pin(client.raw().get("k", 1));
        matches!(select(get, runtime.sleep(Duration::from_secs(5))).await, Either::Left(_))
    });
    assert!(ended);
}

/// Proves H153.
#[test]
fn replaced_credentials_are_fetched_again() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    server.add(Rule::any().first(1).then(Action::status(403, "InvalidAccessKeyId")));
    assert!(block_on(client.raw().get("k", 1)).is_ok());
}

/// Proves H128.
#[test]
fn endless_interim_responses_end_the_request() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://127.0.0.1:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let flood = "HTTP/1.1 102 Processing\r\n\r\n".repeat(4000);
            while stream.write_all(flood.as_bytes()).is_ok() {}
        }
    });
    let (mut timeouts, mut retry) = (Timeouts::default(), RetryOptions::default());
    timeouts.overall = Duration::from_secs(1);
    retry.attempts = NonZeroU32::MIN;
    let client = client_at(&url, |options| options.timeouts(timeouts).retry(retry));
    // 16 MiB are expected: what the size adds to the limit is 0 s for a range of one byte.
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = block_on(client.raw().get("k", 1));
        let _ = sender.send(());
    });
    assert!(receiver.recv_timeout(Duration::from_secs(20)).is_ok());
}

/// Proves H144.
#[test]
fn the_password_of_a_proxy_is_not_shown() {
    for url in ["http://user:hunter2@proxy.example:port", "socks5://user:hunter2@proxy.example"] {
        let error = larder::http::Proxy::new(url).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
    let proxy = larder::http::Proxy::new("http://user:hunter2@proxy.example:3128").unwrap();
    assert!(!format!("{proxy:?}").contains("hunter2") && !format!("{proxy:?}").contains("Basic"));
}

/// Proves H144.
#[test]
fn a_request_does_not_show_its_token() {
    let endpoint = Arc::new(larder::internal::wire::uri::Endpoint::from_str("http://localhost").unwrap());
    let mut request = larder::http::Request::new("GET", endpoint, "/".to_owned(), Timeouts::default());
    let (name, value) = ("x-amz-security-token".into(), "hunter2".to_owned());
    request.headers.push(larder::http::Header { name, value });
    assert!(!format!("{request:?}").contains("hunter2"));
}

/// Proves H164, H167.
#[test]
fn an_impossible_length_is_an_error() {
    let server = FaultServer::start(Options::default());
    let mut retry = RetryOptions::default();
    retry.attempts = NonZeroU32::MIN;
    let client = client_at(&server.url(), |options| options.retry(retry));
    server.put("k", b"x".to_vec());
    server.add(
        Rule::on("GET").then(Action::ReplaceHeader("Content-Length", "18000000000000000000".to_owned())),
    );
    // As `copy` on a condition does.
    assert!(block_on(client.raw().get("k", u64::MAX)).is_err());
}

/// Proves H17.
#[test]
fn an_unanswered_delete_is_reported_as_in_doubt() {
    let (server, client) = set_up();
    server.put("k", b"old".to_vec());
    server.add(Rule::on("DELETE").first(1).then(Action::ExecuteLate(Duration::from_secs(1))));
    assert_eq!(block_on(client.raw().delete("k", &ALWAYS)).unwrap(), Deletion::InDoubt);
    server.put("k", b"old".to_vec());
    let late = Action::ExecuteLate(Duration::from_secs(1));
    server.add(Rule::on("POST").first(1).then(late));
    let many = block_on(client.raw().delete_many(&["k"])).unwrap();
    assert_eq!(many[0].as_ref().unwrap(), &Deletion::InDoubt);
    assert_eq!(block_on(client.raw().delete("k", &ALWAYS)).unwrap(), Deletion::Final);
}

/// Proves H132.
#[test]
fn a_retryable_key_of_a_batch_delete_is_retried() {
    let (server, client) = set_up();
    server.put("a", b"x".to_vec());
    server.put("b", b"x".to_vec());
    server.add(Rule::on("POST").first(1).then(Action::RefuseKeys(|key| key == "b", "SlowDown")));
    let results = block_on(client.raw().delete_many(&["a", "b"])).unwrap();
    assert!(results.iter().all(Result::is_ok), "{results:?}");
}

/// Proves H107.
#[test]
fn a_transient_error_in_a_success_response_is_retried() {
    let (server, client) = set_up();
    server.put("from", b"x".to_vec());
    server.add(
        Rule::on("PUT")
            .first(1)
            .then(Action::OkWithErrorBody { whitespace: 10, delay: Duration::from_millis(10) }),
    );
    assert_eq!(kind(block_on(client.raw().copy("from", "to"))).map(drop), Ok(()));
}

/// Proves H113.
#[test]
fn repeated_conflicts_do_not_fail_the_put_of_a_chunk() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    server.add(Rule::on("PUT").then(Action::status(409, "ConditionalRequestConflict")));
    let stored = kind(block_on(client.raw().put("k", Bytes::from_static(b"x"), &Condition::Absent)));
    assert_ne!(stored.map(drop), Err(ErrorKind::Unavailable));
}

/// Proves H112.
#[test]
fn a_transient_error_during_the_probe_is_not_a_missing_capability() {
    let (server, client) = set_up();
    server.add(Rule::on("GET").query(str::is_empty).nth(2).then(Action::CutResponseAt(5)));
    server
        .add(Rule::on("PUT").path(|path| path.ends_with("/a")).nth(2).then(Action::status(503, "SlowDown")));
    server
        .add(Rule::on("PUT").path(|path| path.ends_with("/a")).nth(3).then(Action::status(503, "SlowDown")));
    server
        .add(Rule::on("PUT").path(|path| path.ends_with("/a")).nth(4).then(Action::status(503, "SlowDown")));
    server
        .add(Rule::on("PUT").path(|path| path.ends_with("/a")).nth(5).then(Action::status(503, "SlowDown")));
    let found = block_on(client.probe("store/"));
    assert!(found.is_err(), "create-only: {:?}", found.map(|found| found.create_only_put));
}

/// Proves H114: a refusal says nothing about an earlier attempt without an answer, also in the body of a success.
#[test]
fn a_refusal_in_a_body_after_an_unanswered_attempt_claims_nothing() {
    let (server, client) = set_up();
    for code in ["AccessDenied", "NoSuchKey"] {
        server.put("from", b"x".to_vec());
        server.add(Rule::on("PUT").nth(1).then(Action::ExecuteThenDrop));
        let refused = format!("<Error><Code>{code}</Code><Message>no</Message></Error>");
        server.add(Rule::on("PUT").nth(2).then(page(200, &refused)));
        let copied = kind(block_on(client.raw().copy("from", "to"))).map(drop);
        assert_eq!(copied, Err(ErrorKind::Unavailable), "{code}");
        assert!(server.objects().contains_key("to"));
        server.clear();
    }
    server.put("k", b"x".to_vec());
    server.add(Rule::on("POST").nth(1).then(Action::ExecuteThenDrop));
    server.add(Rule::on("POST").nth(2).then(Action::RefuseKeys(|_| true, "AccessDenied")));
    let results = block_on(client.raw().delete_many(&["k"])).unwrap();
    assert_eq!(results[0].as_ref().map_err(Error::kind), Err(ErrorKind::Unavailable));
    assert!(!server.objects().contains_key("k"));
}
