//! The S3 client against a server that goes wrong in every way that servers and networks do.

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::join_all;
use larder::error::{Error, ErrorKind};
use larder::http::{HttpClient, Timeouts};
use larder::internal::s3::{Condition, ListRequest, Requests as _};
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{
    Credentials, Operation, RequestOutcome, RetryOptions, S3Client, S3Options, StaticCredentials,
};
use larder_testing::bucket::attempts;
use larder_testing::fault_server::{Action, Etags, FaultServer, Flip, Framing, Options, Quirk, Rule};
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

const ALWAYS: Condition = Condition::Always;

fn client_with(
    server: &FaultServer,
    change: impl FnOnce(S3Options) -> S3Options,
) -> (S3Client, Arc<HttpClient>) {
    let mut timeouts = Timeouts::default();
    // Long enough for a busy machine: only tests of stalls wait for the end of it, and they have others.
    (timeouts.connect, timeouts.first_byte) = (Duration::from_secs(10), Duration::from_secs(10));
    (timeouts.idle, timeouts.overall) = (Duration::from_secs(10), Duration::from_secs(30));
    let mut retry = RetryOptions::default();
    (retry.max_backoff, retry.attempts) = (Duration::from_millis(20), NonZeroU32::new(4).unwrap());
    let credentials = StaticCredentials::new(Credentials::new("id", "not to be seen"));
    let options = S3Options::new(server.url(), "bucket")
        .credentials(Arc::new(credentials))
        .timeouts(timeouts)
        .retry(retry);
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
    (S3Client::new(runtime, http.clone(), change(options)).unwrap(), http)
}

fn set_up() -> (FaultServer, S3Client) {
    set_up_as(Options::default())
}

fn set_up_as(options: Options) -> (FaultServer, S3Client) {
    let server = FaultServer::start(options);
    let (client, _) = client_with(&server, |options| options);
    (server, client)
}

fn body(length: usize) -> Bytes {
    larder_testing::counting(length).into()
}

fn put(client: &S3Client, key: &str, bytes: &Bytes, condition: &Condition) -> Result<String, ErrorKind> {
    block_on(client.raw().put(key, bytes.clone(), condition)).map_err(|error| error.kind())
}

fn get(client: &S3Client, key: &str) -> Result<Bytes, ErrorKind> {
    block_on(client.raw().get(key, 32 << 20)).map(|(bytes, _)| bytes).map_err(|error| error.kind())
}

/// Everything that an error says.
fn message(error: &Error) -> String {
    let mut text = format!("{error} {error:?}");
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text = format!("{text} {error}");
        source = error.source();
    }
    text
}

/// Proves H142.
#[test]
fn every_retry_sends_the_whole_body() {
    let (server, client) = set_up();
    let bytes = body(100_000);
    for cut in [0, 1, 300, 1000, 20_000, 100_000] {
        server.clear();
        server.add(Rule::on("PUT").first(2).then(Action::CutRequestAt(cut)));
        assert!(put(&client, "k", &bytes, &ALWAYS).is_ok(), "cut at {cut}");
        assert_eq!(server.objects()["k"], bytes, "cut at {cut}");
        server.remove("k");
    }
    assert!(server.violations().is_empty(), "{:?}", server.violations());
}

/// Proves H140.
#[test]
fn a_truncated_response_is_never_taken_for_a_whole_one() {
    let (server, client) = set_up();
    let bytes = body(5000);
    server.put("k", bytes.to_vec());
    for framing in [None, Some(Framing::Chunked), Some(Framing::ChunkedWithTrailers)] {
        for cut in (0..5400).step_by(149).chain([1, 17, 5200]) {
            server.clear();
            let rule = Rule::on("GET").first(1).then(Action::CutResponseAt(cut));
            server.add(match framing {
                Some(framing) => rule.then(Action::Framing(framing)),
                None => rule,
            });
            assert_eq!(get(&client, "k").unwrap(), bytes, "{framing:?} cut at {cut}");
        }
    }
}

/// Proves H140.
#[test]
fn every_framing_is_understood_or_refused() {
    let (server, client) = set_up();
    let bytes = body(3000);
    server.put("k", bytes.to_vec());
    for (framing, is_read) in [
        (Framing::Chunked, true),
        (Framing::ChunkedWithTrailers, true),
        (Framing::ExtraBytesAfterBody, true),
        (Framing::CloseDelimited, false),
        (Framing::BothLengthAndChunked, false),
        (Framing::TwoContentLengths, false),
        (Framing::ObsFold, false),
        (Framing::BareLf, false),
        (Framing::OversizedHead, false),
    ] {
        server.clear();
        server.add(Rule::on("GET").then(Action::Framing(framing)));
        let found = get(&client, "k");
        assert_eq!(
            found,
            if is_read { Ok(bytes.clone()) } else { Err(ErrorKind::Unavailable) },
            "{framing:?}"
        );
        // Whatever it was, the next answer is not read from the middle of this one (H141).
        server.clear();
        assert_eq!(get(&client, "k").unwrap(), bytes, "after {framing:?}");
    }
    server.add(Rule::on("HEAD").then(Action::Framing(Framing::HeadWithBody)));
    for _ in 0..3 {
        assert_eq!(block_on(client.raw().head("k")).unwrap().size, 3000);
    }
}

/// Proves H127.
#[test]
fn a_stalled_connection_ends_by_its_timeouts() {
    // Each waits for its timeouts, and all at the same time.
    thread::scope(|scope| {
        for at in [0, 10, 50_000] {
            scope.spawn(move || a_stalled_response_ends(at));
        }
        scope.spawn(a_dripping_response_ends);
        scope.spawn(a_server_that_stops_reading_ends);
    });
}

fn a_stalled_response_ends(at: usize) {
    let server = FaultServer::start(Options::default());
    let (client, _) = client_with(&server, |options| {
        let mut timeouts = Timeouts::default();
        (timeouts.connect, timeouts.first_byte) = (Duration::from_secs(2), Duration::from_millis(400));
        (timeouts.idle, timeouts.overall) = (Duration::from_millis(300), Duration::from_secs(4));
        options.timeouts(timeouts)
    });
    server.put("k", body(100_000).to_vec());
    let runtime = ThreadRuntime::new();
    server.add(Rule::on("GET").then(Action::StallResponseAt(at)));
    let start = runtime.monotonic();
    assert_eq!(get(&client, "k"), Err(ErrorKind::Unavailable));
    let took = runtime.monotonic().saturating_sub(start);
    // Four attempts, each at its end after 400 ms at most, with pauses of 20 ms; the rest is for a busy machine.
    assert!(took < Duration::from_secs(10), "{took:?}");
}

fn a_dripping_response_ends() {
    let server = FaultServer::start(Options::default());
    server.put("k", body(100_000).to_vec());
    let runtime = ThreadRuntime::new();
    server.add(Rule::on("GET").then(Action::Drip { bytes: 10, every: Duration::from_millis(100) }));
    let (client, _) = client_with(&server, |options| {
        let (mut retry, mut timeouts) = (RetryOptions::default(), Timeouts::default());
        (retry.attempts, retry.max_backoff) = (NonZeroU32::new(2).unwrap(), Duration::from_millis(20));
        (timeouts.idle, timeouts.overall) = (Duration::from_millis(300), Duration::from_millis(500));
        options.retry(retry).timeouts(timeouts)
    });
    let start = runtime.monotonic();
    let dripping = block_on(client.raw().get("k", 100_000)).map(drop).map_err(|error| error.kind());
    assert_eq!(dripping, Err(ErrorKind::Unavailable), "always moving, and never done");
    // Half a second, and one more because of the size, for each of two attempts.
    assert!(runtime.monotonic().saturating_sub(start) < Duration::from_secs(10));
}

fn a_server_that_stops_reading_ends() {
    let server = FaultServer::start(Options::default());
    let (client, _) = client_with(&server, |options| {
        let mut timeouts = Timeouts::default();
        timeouts.idle = Duration::from_secs(1);
        options.timeouts(timeouts)
    });
    server.add(Rule::on("PUT").first(1).then(Action::StopReading));
    assert!(put(&client, "big", &body(24 << 20), &ALWAYS).is_ok());
}

/// Proves H138.
#[test]
fn an_early_response_is_the_final_one() {
    let (server, client) = set_up();
    let refused = || Action::Status { status: 403, code: "AccessDenied", headers: vec![], body: None };
    server.add(Rule::on("PUT").then(Action::RespondEarly).then(refused()));
    assert_eq!(put(&client, "k", &body(16 << 20), &ALWAYS), Err(ErrorKind::Denied));
    server.clear();
    server.add(Rule::on("PUT").first(2).then(Action::RespondEarly));
    assert!(put(&client, "k", &body(1 << 20), &ALWAYS).is_ok());
    assert_eq!(server.objects()["k"], body(1 << 20));
}

/// Proves H139.
#[test]
fn interim_responses_are_skipped() {
    let (server, client) = set_up();
    for (count, status) in [(1, 100), (2, 100), (5, 102), (3, 103)] {
        server.clear();
        server.add(Rule::any().then(Action::Informational(count, status)));
        assert!(put(&client, "k", &body(10), &ALWAYS).is_ok());
        assert_eq!(get(&client, "k").unwrap(), body(10));
    }
    assert!(server.log().iter().all(|request| request.header("expect").is_none()));
}

/// Proves H137.
#[test]
fn a_connection_closed_by_the_server_fails_no_request() {
    let server = FaultServer::start(Options::default());
    let mut retry = RetryOptions::default();
    retry.attempts = NonZeroU32::MIN;
    let (client, _) = client_with(&server, |options| options.retry(retry));
    server.put("k", b"x".to_vec());
    server.add(Rule::any().then(Action::CloseAfterResponse));
    for _ in 0..30 {
        assert_eq!(get(&client, "k").unwrap(), "x");
    }
}

/// Proves H107.
#[test]
fn an_error_in_a_success_response_is_retried_or_reported() {
    let (server, client) = set_up();
    server.put("from", b"x".to_vec());
    let error_in_body = || Action::OkWithErrorBody { whitespace: 100, delay: Duration::from_millis(50) };
    server.add(Rule::on("PUT").then(error_in_body()));
    let failed = block_on(client.raw().copy("from", "to")).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
    assert!(!server.objects().contains_key("to"));
    server.clear();
    server.add(Rule::on("POST").then(error_in_body()));
    let failed = block_on(client.raw().delete_many(&["from"])).unwrap_err();
    assert_eq!(failed.kind(), ErrorKind::Unavailable);
}

/// Proves H114.
#[test]
fn a_repeated_conditional_put_recognises_its_own_success() {
    let (server, client) = set_up();
    server.add(Rule::on("PUT").first(1).then(Action::ExecuteThenDrop));
    let etag = put(&client, "mine", &body(100), &Condition::Absent).unwrap();
    assert_eq!(block_on(client.raw().head("mine")).unwrap().etag, etag);
    assert_eq!(server.log().iter().filter(|request| request.method == "PUT").count(), 2);
    // The same, but another writer stored it.
    server.put("theirs", b"other".to_vec());
    server.clear();
    server.add(Rule::on("PUT").first(1).then(Action::CutRequestAt(400)));
    assert_eq!(put(&client, "theirs", &body(100_000), &Condition::Absent), Err(ErrorKind::AlreadyExists));
    assert_eq!(server.objects()["theirs"], b"other");
}

/// Proves I6.
#[test]
fn a_put_that_may_have_been_executed_is_unavailable_and_never_denied() {
    let (server, client) = set_up();
    server.add(Rule::on("PUT").then(Action::ExecuteThenDrop));
    assert_eq!(put(&client, "k", &body(10), &ALWAYS), Err(ErrorKind::Unavailable));
    assert!(server.objects().contains_key("k"));
    // A certain refusal after an uncertain attempt leaves it uncertain.
    server.clear();
    server.add(Rule::on("PUT").nth(1).then(Action::ExecuteThenDrop));
    server.add(Rule::on("PUT").then(Action::status(403, "AccessDenied")));
    assert_eq!(put(&client, "other", &body(10), &ALWAYS), Err(ErrorKind::Unavailable));
    server.clear();
    server.add(Rule::on("PUT").then(Action::status(403, "AccessDenied")));
    assert_eq!(put(&client, "k", &body(10), &ALWAYS), Err(ErrorKind::Denied));
}

/// Proves H113.
#[test]
fn a_conditional_request_conflict_is_retried() {
    let (server, client) = set_up();
    server.add(Rule::on("PUT").first(3).then(Action::status(409, "ConditionalRequestConflict")));
    assert!(put(&client, "k", &body(10), &Condition::Absent).is_ok());
}

/// Proves H132.
#[test]
fn transient_errors_are_retried_and_final_ones_are_not() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    for (status, code, attempts) in [
        (500, "InternalError", 2),
        (503, "SlowDown", 2),
        (429, "TooManyRequests", 2),
        (400, "RequestTimeout", 2),
        (408, "", 2),
        (502, "", 2),
        (403, "", 2),
        (403, "AccessDenied", 1),
        (400, "InvalidArgument", 1),
        (404, "NoSuchKey", 1),
        (501, "NotImplemented", 1),
    ] {
        server.clear();
        let before = server.log().len();
        server.add(Rule::on("GET").first(1).then(Action::status(status, code)));
        assert_eq!(get(&client, "k").is_ok(), attempts == 2, "{status} {code}");
        assert_eq!(server.log().len() - before, attempts, "{status} {code}");
    }
}

/// Proves H125.
#[test]
fn a_body_damaged_in_transit_is_sent_again() {
    let (server, client) = set_up();
    server.add(Rule::on("PUT").first(2).then(Action::FlipBit(Flip::Received)));
    assert!(put(&client, "k", &body(1000), &ALWAYS).is_ok());
    assert_eq!(server.objects()["k"], body(1000));
    server.clear();
    server.add(Rule::on("PUT").then(Action::FlipBit(Flip::Received)));
    assert_eq!(put(&client, "bad", &body(1000), &ALWAYS), Err(ErrorKind::Unavailable));
    assert!(!server.objects().contains_key("bad"));
}

/// Proves H126.
#[test]
fn a_full_server_is_reported_without_a_retry() {
    let (server, client) = set_up();
    server.put("old", b"x".to_vec());
    server.add(Rule::on("PUT").then(Action::status(403, "QuotaExceeded")));
    assert_eq!(put(&client, "k", &body(10), &ALWAYS), Err(ErrorKind::Full));
    server.add(Rule::on("PUT").then(Action::status(507, "InsufficientStorage")));
    assert_eq!(put(&client, "k", &body(10), &ALWAYS), Err(ErrorKind::Full));
    assert_eq!(server.log().len(), 2);
    let _ = block_on(client.raw().delete("old", &ALWAYS)).unwrap();
}

/// Proves H131.
#[test]
fn a_wrong_clock_is_corrected() {
    for skew in [-3600, 3600, 86_400] {
        let (server, client) = set_up();
        server.add(Rule::any().then(Action::SkewClock(skew)));
        assert!(put(&client, "k", &body(10), &ALWAYS).is_ok(), "by {skew} s");
        assert!((client.raw().clock_offset().0 - skew).abs() <= 2, "{:?}", client.raw().clock_offset());
        let before = server.log().len();
        get(&client, "k").unwrap();
        assert_eq!(server.log().len() - before, 1, "once is enough");
    }
}

/// Proves H135.
#[test]
fn retry_after_is_obeyed_up_to_a_limit() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    server.add(Rule::on("GET").then(Action::status(503, "SlowDown")).then(Action::RetryAfter("86400")));
    assert_eq!(get(&client, "k"), Err(ErrorKind::Unavailable));
    assert_eq!(server.log().len(), 1);
    server.clear();
    server.add(Rule::on("GET").first(1).then(Action::status(503, "SlowDown")).then(Action::RetryAfter("0")));
    assert!(get(&client, "k").is_ok());
}

/// Proves H135.
#[test]
fn the_error_of_a_throttled_request_says_when_to_try_again() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    let wait = |client: &S3Client| block_on(client.raw().get("k", 10)).unwrap_err().retry_after();
    for (text, seconds) in [("3600", 3600), ("18446744073709551615", 86_400)] {
        server.clear();
        server.add(Rule::on("GET").then(Action::status(503, "SlowDown")).then(Action::RetryAfter(text)));
        assert_eq!(wait(&client), Some(Duration::from_secs(seconds)));
    }
    let retry = |options: larder::s3::S3Options| {
        let mut retry = larder::s3::RetryOptions::default();
        (retry.attempts, retry.max_backoff) = (NonZeroU32::MIN, Duration::from_secs(7));
        options.retry(retry)
    };
    let (client, _) = client_with(&server, retry);
    server.clear();
    server.add(Rule::on("GET").then(Action::status(503, "SlowDown")));
    assert_eq!(wait(&client), Some(Duration::from_secs(7)));
    server.clear();
    server.add(Rule::on("GET").then(Action::status(403, "AccessDenied")));
    assert_eq!(wait(&client), None);
}

/// Proves H136.
#[test]
fn redirects_are_followed_only_to_the_same_provider() {
    let (evil, (server, client)) = (FaultServer::start(Options::default()), set_up());
    server.put("k", b"x".to_vec());
    let to = |status, location: String, region: Option<&str>| Action::Redirect {
        status,
        location,
        region: region.map(str::to_owned),
    };
    let foreign = evil.url().replace("127.0.0.1", "localhost");
    server.add(Rule::on("GET").then(to(307, format!("{foreign}/bucket/k"), None)));
    assert_eq!(get(&client, "k"), Err(ErrorKind::Denied));
    assert!(evil.log().is_empty());
    // The same address at another port is the same server to us, and another region is only signed for.
    server.clear();
    for (status, region) in [(307, "us-east-1"), (301, "eu-9")] {
        server.clear();
        let location = format!("{}/bucket/k", server.url());
        server.add(Rule::on("GET").first(1).then(to(status, location, Some("eu-9"))));
        assert!(get(&client, "k").is_ok());
        assert_eq!(client.raw().region(), region, "{status}: for good only where the server says so");
    }
    // Round and round.
    let (server, client) = set_up();
    let other = FaultServer::start(Options::default());
    server.add(Rule::any().then(to(307, format!("{}/x", other.url()), None)));
    other.add(Rule::any().then(to(307, format!("{}/x", server.url()), None)));
    assert_eq!(get(&client, "k"), Err(ErrorKind::Denied));
    assert!(server.log().len() + other.log().len() <= 3);
}

/// Proves H143.
#[test]
fn a_response_with_another_range_is_refused() {
    let (server, client) = set_up_as(Options::with([Quirk::RangeIgnored]));
    server.put("k", body(100).to_vec());
    let range = |client: &S3Client| block_on(client.raw().get_range("k", 10..20)).map(|(bytes, _)| bytes);
    assert_eq!(range(&client).unwrap_err().kind(), ErrorKind::Unsupported);
    let (server, client) = set_up();
    server.put("k", body(100).to_vec());
    server.add(Rule::on("GET").then(Action::ReplaceHeader("Content-Range", "bytes 0-9/100".to_owned())));
    assert_eq!(range(&client).unwrap_err().kind(), ErrorKind::Unavailable);
    server.clear();
    server.add(Rule::on("GET").then(Action::DropHeader("Content-Range")));
    assert_eq!(range(&client).unwrap_err().kind(), ErrorKind::Unavailable);
    server.clear();
    assert_eq!(range(&client).unwrap(), body(100).slice(10..20));
}

/// Proves H122.
#[test]
fn listings_that_never_end_or_are_out_of_order_are_errors() {
    let (server, client) = set_up_as(Options { page: 5, ..Options::default() });
    for number in 0..20 {
        server.put(&format!("k{number:02}"), Vec::new());
    }
    let walk = |client: &S3Client| {
        block_on(async {
            let (mut token, mut keys) = (None, Vec::new());
            loop {
                let page = client.raw().list(&ListRequest::new("k"), token.as_deref()).await?;
                keys.extend(page.listing.objects.into_iter().map(|object| object.key));
                token = page.next;
                if token.is_none() {
                    return Ok::<_, Error>(keys);
                }
            }
        })
    };
    assert_eq!(walk(&client).unwrap().len(), 20);
    server.add(Rule::list().then(Action::RepeatPage));
    let before = server.log().len();
    assert_eq!(walk(&client).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(server.log().len() - before <= 8);
    for element in ["NextContinuationToken", "Size"] {
        server.clear();
        server.add(Rule::list().then(Action::DropXmlElement(element)));
        assert_eq!(walk(&client).unwrap_err().kind(), ErrorKind::Unavailable, "without {element}");
    }
    for element in
        ["Name", "IsTruncated", "KeyCount", "MaxKeys", "Prefix", "ETag", "StorageClass", "LastModified"]
    {
        server.clear();
        server.add(Rule::list().then(Action::DropXmlElement(element)));
        assert_eq!(walk(&client).unwrap().len(), 20, "h108: without {element}");
    }
    // Neither flag nor token: a page of 6 of at most 7 is the last, and after a full one it is looked whether more follows.
    for (page, pages) in [(7, 3), (5, 5)] {
        let (server, client) = set_up_as(Options { page, ..Options::default() });
        (0..20).for_each(|number| server.put(&format!("k{number:02}"), Vec::new()));
        server.add(Rule::list().then(Action::DropXmlElement("IsTruncated")));
        assert_eq!((walk(&client).unwrap().len(), server.log().len()), (20, pages));
        server.add(Rule::list().then(Action::DropXmlElement("NextContinuationToken")));
        assert_eq!(walk(&client).unwrap_err().kind(), ErrorKind::Unavailable, "the first page is full");
    }
    // A folder is one entry, whatever is in it.
    let (server, client) = set_up_as(Options { page: 1, ..Options::default() });
    (0..5).for_each(|number| server.put(&format!("k/{number:02}"), Vec::new()));
    server.add(Rule::list().then(Action::DropXmlElement("IsTruncated")));
    let mut folded = ListRequest::new("k");
    folded.fold = true;
    let found = block_on(client.raw().list(&folded, None)).unwrap();
    assert_eq!((found.listing.common_prefixes, found.next), (vec!["k/".to_owned()], None));
    server.put("l", Vec::new());
    server.put("k0", Vec::new());
    server.add(Rule::list().then(Action::DropXmlElement("NextContinuationToken")));
    assert_eq!(block_on(client.raw().list(&folded, None)).unwrap_err().kind(), ErrorKind::Unavailable);
    let (server, client) = set_up_as(Options::with([Quirk::ListUnordered]));
    (0..20).for_each(|number| server.put(&format!("k{number:02}"), Vec::new()));
    assert_eq!(walk(&client).unwrap_err().kind(), ErrorKind::Unavailable);
}

/// Proves H108.
#[test]
fn optional_headers_may_be_missing() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    for header in ["Date", "Content-Type", "ETag", "Last-Modified", "Server", "x-amz-request-id"] {
        server.clear();
        server.add(Rule::any().then(Action::DropHeader(header)));
        assert!(put(&client, "new", &body(10), &ALWAYS).is_ok(), "without {header}");
        assert!(get(&client, "k").is_ok() && block_on(client.raw().head("k")).is_ok(), "without {header}");
        assert!(block_on(client.raw().delete("new", &ALWAYS)).is_ok(), "without {header}");
    }
}

/// Proves H144.
#[test]
fn a_long_error_text_is_truncated_and_contains_no_secret() {
    let (server, client) = set_up();
    let page = vec![b'x'; 10 << 20];
    let huge = Action::Status { status: 400, code: "", headers: vec![], body: Some(page) };
    server.add(Rule::on("GET").then(huge));
    let error = block_on(client.raw().get("k", 100)).unwrap_err();
    let text = message(&error);
    assert!(text.len() < 4096, "{} bytes", text.len());
    assert!(!text.contains("not to be seen") && !format!("{client:?}").contains("not to be seen"));
    let total = client.stats();
    assert!(total.bytes_in <= total.attempts * (64 << 10), "{total:?}");
}

/// Proves H152.
#[test]
fn every_attempt_is_counted() {
    let (server, client) = set_up();
    server.add(Rule::on("PUT").first(2).then(Action::status(503, "SlowDown")));
    put(&client, "k", &body(100), &ALWAYS).unwrap();
    server.add(Rule::on("GET").first(1).then(Action::CutResponseAt(10)));
    get(&client, "k").unwrap();
    let _ = get(&client, "missing");
    let count = |operation, outcome| attempts(&client, operation, outcome);
    assert_eq!(count(Operation::Put, RequestOutcome::Throttled), 2);
    assert_eq!(count(Operation::Put, RequestOutcome::Answered), 1);
    assert_eq!(count(Operation::Get, RequestOutcome::Broken), 1);
    assert_eq!(count(Operation::Get, RequestOutcome::Answered), 2);
    assert_eq!(client.stats().attempts, server.log().len() as u64);
    assert_eq!(client.stats().bytes_out, 300);
}

/// Proves H134.
#[test]
fn requests_pause_while_a_server_is_down_and_resume() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    server.add(Rule::on("GET").first(60).then(Action::status(503, "SlowDown")));
    let results = block_on(join_all((0..40).map(|_| client.raw().get("k", 1))));
    assert!(client.raw().concurrency() < 64, "{}", client.raw().concurrency());
    assert!(
        results
            .iter()
            .all(|result| result.as_ref().err().is_none_or(|error| error.kind() == ErrorKind::Unavailable))
    );
    block_on(async {
        for _ in 0..10 {
            client.raw().get("k", 1).await.unwrap();
        }
    });
}

#[test]
fn requests_succeed_after_a_server_restart() {
    let (server, client) = set_up();
    put(&client, "k", &body(10), &ALWAYS).unwrap();
    server.kill();
    assert_eq!(get(&client, "k"), Err(ErrorKind::Unavailable));
    server.revive();
    assert_eq!(get(&client, "k").unwrap(), body(10));
}

/// Proves H120.
#[test]
fn a_transformed_body_is_refused() {
    let (server, client) = set_up();
    server.put("k", body(1000).to_vec());
    server.put("large", body(1 << 20).to_vec());
    server.add(Rule::any().then(Action::ContentEncoding("gzip")));
    assert_eq!(get(&client, "k"), Err(ErrorKind::Unavailable));
    let failed = [
        // A body that compression made longer is not taken for an object that is too large.
        block_on(client.raw().get("k", 1000)).map(drop),
        block_on(client.raw().get("large", 1 << 20)).map(drop),
        block_on(client.raw().get_range("k", 0..10)).map(drop),
        block_on(client.raw().get("absent", 1000)).map(drop),
        block_on(client.raw().list(&ListRequest::new("k"), None)).map(drop),
        block_on(client.raw().put("new", body(10), &ALWAYS)).map(drop),
    ];
    for (at, result) in failed.into_iter().enumerate() {
        let error = result.unwrap_err();
        let why = std::error::Error::source(&error).unwrap().to_string();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{at}");
        assert!(why.contains("compressed (content-encoding: gzip)") && why.contains("proxy"), "{at}: {why}");
    }
    assert!(server.log().iter().all(|request| request.header("accept-encoding") == Some("identity")));
}

/// Proves H110.
#[test]
fn requests_without_a_body_have_no_content_length() {
    let (server, client) = set_up();
    server.put("k", b"x".to_vec());
    get(&client, "k").unwrap();
    block_on(client.raw().head("k")).unwrap();
    let _ = block_on(client.raw().delete("k", &ALWAYS)).unwrap();
    assert!(server.log().iter().all(|request| request.header("content-length").is_none()));
}

const PART: usize = 5 << 20;

/// Completes when that is so; asks again and again, as fast as it can.
fn until(is_so: impl Fn() -> bool + Unpin) -> impl Future<Output = ()> + Unpin {
    futures::future::poll_fn(move |context| {
        if is_so() {
            return std::task::Poll::Ready(());
        }
        context.waker().wake_by_ref();
        std::task::Poll::Pending
    })
}

/// A client that stores everything of 6 MiB or more in parts of 5 MiB.
fn in_parts(options: S3Options) -> S3Options {
    options.parts(6 << 20, NonZeroU64::new(PART as u64).unwrap())
}

/// Proves H118.
#[test]
fn a_multipart_upload_with_any_fault_is_whole_or_absent() {
    let server = FaultServer::start(Options::default());
    let (client, _) = client_with(&server, in_parts);
    let bytes = body(2 * PART + 1000);
    let completion = |query: &str| query.starts_with("uploadId=");
    let unsure = || Rule::on("POST").query(completion);
    for (name, rule) in [
        ("nothing", Rule::on("HEAD")),
        (
            "a lost begin",
            Rule::on("POST").query(|query| query == "uploads=").first(1).then(Action::ExecuteThenDrop),
        ),
        ("a lost part", Rule::on("PUT").nth(2).then(Action::ExecuteThenDrop)),
        ("a cut part", Rule::on("PUT").nth(3).then(Action::CutRequestAt(600))),
        ("a damaged part", Rule::on("PUT").nth(1).then(Action::FlipBit(Flip::Received))),
        ("a lost completion", unsure().first(1).then(Action::ExecuteThenDrop)),
        ("completions that are all lost", unsure().then(Action::ExecuteThenDrop)),
        (
            "an error after success",
            unsure().first(1).then(Action::OkWithErrorBody { whitespace: 3, delay: Duration::ZERO }),
        ),
    ] {
        server.clear();
        server.add(rule);
        let stored = put(&client, "k", &bytes, &ALWAYS);
        assert!(stored.is_ok(), "{name}: {stored:?}");
        assert!(server.objects()["k"] == bytes, "{name}");
        assert_eq!(block_on(client.raw().head("k")).unwrap().etag, stored.unwrap(), "{name}");
        server.remove("k");
    }
    assert!(server.violations().is_empty(), "{:?}", server.violations());
}

/// Proves H118.
#[test]
fn failed_uploads_are_aborted_now_or_by_the_cleanup_of_old_uploads() {
    let server = FaultServer::start(Options::default());
    let (client, _) = client_with(&server, in_parts);
    let bytes = body(2 * PART);
    for (name, rule) in [
        ("a part", Rule::on("PUT").nth(2).then(Action::status(403, "AccessDenied"))),
        (
            "the completion",
            Rule::on("POST")
                .query(|query| query.starts_with("uploadId="))
                .then(Action::status(400, "InvalidPart")),
        ),
        (
            "it for ever",
            Rule::on("POST")
                .query(|query| query.starts_with("uploadId="))
                .then(Action::status(503, "SlowDown")),
        ),
    ] {
        server.clear();
        server.add(rule);
        assert!(put(&client, "k", &bytes, &ALWAYS).is_err(), "{name}");
        assert_eq!(server.uploads(), [] as [String; 0], "{name}");
        assert!(server.objects().is_empty(), "{name}");
    }
    // One whose future is dropped is aborted too.
    server.clear();
    server.add(Rule::on("PUT").then(Action::StallResponseAt(0)));
    let seen =
        || server.log().iter().any(|request| request.method == "PUT" && request.path.ends_with("/dropped"));
    let sending = Box::pin(client.raw().put("dropped", bytes.clone(), &ALWAYS));
    let stopped = block_on(futures::future::select(sending, until(seen)));
    assert!(matches!(stopped, futures::future::Either::Right(_)), "the put ended");
    drop(stopped);
    let aborted = server.wait(Duration::from_secs(30), |log| {
        log.iter().any(|request| {
            request.method == "DELETE" && request.path.ends_with("/dropped") && request.executed
        })
    });
    assert!(aborted && server.uploads().is_empty());
    // And if the server does not hear of it, the janitor finds it, and nothing else.
    for key in ["store/k", "store/l", "other"] {
        server.clear();
        server.add(Rule::on("PUT").then(Action::status(403, "AccessDenied")));
        server.add(Rule::on("DELETE").then(Action::status(403, "AccessDenied")));
        assert!(put(&client, key, &bytes, &ALWAYS).is_err());
    }
    server.clear();
    assert_eq!(block_on(client.raw().open_uploads("")).unwrap().len(), 3);
    assert_eq!(
        block_on(client.raw().abort_stale_uploads("store/", Duration::from_hours(24))).unwrap(),
        0,
        "too young"
    );
    assert_eq!(block_on(client.raw().abort_stale_uploads("store/", Duration::ZERO)).unwrap(), 2);
    assert_eq!(server.uploads(), ["other"]);
    block_on(client.raw().abort_upload("nothing", "there")).unwrap();
}

/// Proves H118.
#[test]
fn open_uploads_are_listed_page_by_page() {
    let server = FaultServer::start(Options { page: 2, ..Options::default() });
    let (client, _) = client_with(&server, in_parts);
    server.add(Rule::on("PUT").then(Action::status(403, "AccessDenied")));
    server.add(Rule::on("DELETE").then(Action::status(403, "AccessDenied")));
    for number in 0..5 {
        assert!(put(&client, &format!("k{number}"), &body(2 * PART), &ALWAYS).is_err());
        assert!(put(&client, "same", &body(2 * PART), &ALWAYS).is_err());
    }
    server.clear();
    assert_eq!(block_on(client.raw().open_uploads("")).unwrap().len(), 10);
    assert_eq!(block_on(client.raw().open_uploads("k")).unwrap().len(), 5);
    server.add(Rule::on("GET").then(Action::DropXmlElement("NextKeyMarker")));
    assert_eq!(block_on(client.raw().open_uploads("")).unwrap_err().kind(), ErrorKind::Unavailable);
}

/// Proves H154.
#[test]
fn a_completed_upload_without_an_answer_is_not_sent_again() {
    let (server, client) = set_up_as(Options { etags: Etags::Md5, ..Options::default() });
    let bytes = body(8 << 20);
    server.add(Rule::on("PUT").then(Action::ExecuteThenDrop));
    for number in 0..3 {
        let condition = if number == 0 { Condition::Absent } else { ALWAYS };
        let tag = put(&client, &number.to_string(), &bytes, &condition).unwrap();
        assert_eq!(block_on(client.raw().head(&number.to_string())).unwrap().etag, tag);
        assert!(server.objects()[&number.to_string()] == bytes);
    }
    let puts = server.log().iter().filter(|request| request.method == "PUT").count();
    assert_eq!(puts, 3, "each was sent once");
    // An absent object is sent again, and so is one with other content.
    server.clear();
    server.add(Rule::on("PUT").first(1).then(Action::CutRequestAt(2 << 20)));
    assert!(put(&client, "cut", &bytes, &ALWAYS).is_ok());
    server.clear();
    server.put("other", body(8 << 20).iter().rev().copied().collect::<Vec<_>>());
    server.add(Rule::on("PUT").first(1).then(Action::CutRequestAt(2 << 20)));
    assert!(put(&client, "other", &bytes, &ALWAYS).is_ok());
    assert!(server.objects()["cut"] == bytes && server.objects()["other"] == bytes);
}

/// Proves H125.
#[test]
fn damage_in_transit_is_detected_although_the_server_checks_no_hashes() {
    let (server, client) = set_up();
    client.raw().send_md5(true);
    server.add(Rule::on("PUT").first(1).then(Action::FlipBit(Flip::Received)));
    assert!(put(&client, "k", &body(100_000), &ALWAYS).is_ok());
    assert!(server.log().iter().all(|request| request.header("content-md5").is_some()));
    assert!(server.objects()["k"] == body(100_000));
}
