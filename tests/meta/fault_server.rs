//! The fault server does what it says: every operation, every fault, every quirk, seen through a plain socket.

#![expect(clippy::disallowed_methods, reason = "faults take real time")]

use larder_testing::fault_server::{
    Action, Etags, FaultServer, Flip, Framing, Lag, Options, Quirk, Quota, Rule,
};
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// Long enough for anything that happens at all.
const LONG: Duration = Duration::from_secs(20);
/// Long enough to see that nothing happens.
const SHORT: Duration = Duration::from_millis(60);
const HASH_OF_ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const MD5_OF_ABC: &str = "kAFQmDzST7DWlj99KOF/cg==";

/// A request in a table: method, target below the bucket, headers, body.
type Request<'a> = (&'a str, &'a str, &'a [&'a str], &'a [u8]);

struct Client(TcpStream);

#[derive(Debug)]
struct Answer {
    status: u16,
    /// As sent, with the status line.
    head: String,
    body: Vec<u8>,
}

impl Client {
    fn new(server: &FaultServer) -> Self {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(LONG)).unwrap();
        Self(stream)
    }

    fn send(&mut self, (method, target, headers, body): Request<'_>) {
        let mut head = format!("{method} /bucket{target} HTTP/1.1\r\nHost: localhost\r\n");
        for header in headers {
            write!(head, "{header}\r\n").unwrap();
        }
        if matches!(method, "PUT" | "POST") {
            write!(head, "Content-Length: {}\r\n", body.len()).unwrap();
        }
        self.0.write_all(&[head.as_bytes(), b"\r\n", body].concat()).unwrap();
    }

    /// Reads one head.
    fn head(&mut self) -> String {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        String::from_utf8(head).unwrap()
    }

    /// Reads an answer that is framed by its length.
    fn answer(&mut self, method: &str) -> Answer {
        let head = self.head();
        let status = head[9..12].parse().unwrap();
        let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; if method == "HEAD" { 0 } else { length }];
        self.0.read_exact(&mut body).unwrap();
        Answer { status, head, body }
    }

    fn ask(&mut self, request: Request<'_>) -> Answer {
        self.send(request);
        self.answer(request.0)
    }

    /// Reads until the end, however it comes.
    fn rest(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        if let Err(error) = self.0.read_to_end(&mut rest) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the connection stays open");
        }
        rest
    }

    /// Nothing comes, and the connection is not closed.
    fn is_quiet(&mut self) -> bool {
        self.0.set_read_timeout(Some(SHORT)).unwrap();
        let quiet = self.0.peek(&mut [0]).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        self.0.set_read_timeout(Some(LONG)).unwrap();
        quiet
    }
}

impl Answer {
    fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The texts of all elements of that name.
    fn all(&self, name: &str) -> Vec<&str> {
        let (start, end) = (format!("<{name}>"), format!("</{name}>"));
        let texts = self.text().split(start.as_str()).skip(1);
        texts.map(|text| text.split(end.as_str()).next().unwrap()).collect()
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let pairs = head.lines().filter_map(|line| line.split_once(": "));
    pairs.filter(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value).next()
}

fn ask(server: &FaultServer, request: Request<'_>) -> Answer {
    Client::new(server).ask(request)
}

/// A request on a server with one object `a` of 1000 bytes and one rule, and all that comes back.
fn all_of(action: Action, request: Request<'_>) -> (FaultServer, Vec<u8>) {
    let server = FaultServer::start(Options::default());
    server.put("a", [b'x'; 1000]);
    server.add(Rule::any().then(action));
    let mut client = Client::new(&server);
    client.send(request);
    // Nothing more will be asked: a server that keeps the connection closes it now.
    client.0.shutdown(std::net::Shutdown::Write).unwrap();
    let rest = client.rest();
    (server, rest)
}

const GET_A: Request<'_> = ("GET", "/a", &[], b"");
const PUT_A: Request<'_> = ("PUT", "/a", &[], b"abc");

#[test]
fn every_operation_answers_as_the_reference_says() {
    let server = FaultServer::start(Options::default());
    let mut client = Client::new(&server);
    let hash = format!("x-amz-content-sha256: {HASH_OF_ABC}");
    let md5 = format!("Content-MD5: {MD5_OF_ABC}");
    let table: &[(Request<'_>, u16, &str)] = &[
        (("HEAD", "", &[], b""), 200, "x-amz-bucket-region: us-east-1\r\n"),
        (("PUT", "/a%20b/%C3%A4", &[&hash, &md5, "Content-Type: text/x"], b"abc"), 200, "ETag: \""),
        (("PUT", "/x", &[&hash], b"abd"), 400, "<Code>XAmzContentSHA256Mismatch</Code>"),
        (
            ("PUT", "/x", &["x-amz-content-sha256: UNSIGNED-PAYLOAD", &md5], b"abd"),
            400,
            "<Code>BadDigest</Code>",
        ),
        (("PUT", "/x", &["Content-MD5: short"], b"abd"), 400, "<Code>InvalidDigest</Code>"),
        (("GET", "/a%20b/%C3%A4", &[], b""), 200, "\r\nContent-Type: text/x\r\n"),
        (("HEAD", "/a%20b/%C3%A4", &[], b""), 200, "\r\nContent-Length: 3\r\n"),
        (("GET", "/x", &[], b""), 404, "<Code>NoSuchKey</Code>"),
        (("GET", "/a%20b/%C3%A4", &["Range: bytes=1-1"], b""), 206, "Content-Range: bytes 1-1/3\r\n"),
        (("GET", "/a%20b/%C3%A4", &["Range: bytes=1-"], b""), 206, "Content-Range: bytes 1-2/3\r\n"),
        (("GET", "/a%20b/%C3%A4", &["Range: bytes=-2"], b""), 206, "Content-Range: bytes 1-2/3\r\n"),
        (("GET", "/a%20b/%C3%A4", &["Range: bytes=0-99"], b""), 206, "Content-Range: bytes 0-2/3\r\n"),
        (("GET", "/a%20b/%C3%A4", &["Range: bytes=3-"], b""), 416, "Content-Range: bytes */3\r\n"),
        (("GET", "/a%20b/%C3%A4", &["Range: lines=3-"], b""), 200, "abc"),
        (("GET", "/a%20b/%C3%A4", &["If-Match: \"no\""], b""), 412, "<Code>PreconditionFailed</Code>"),
        (("GET", "/a%20b/%C3%A4", &["If-None-Match: *"], b""), 304, "ETag: \""),
        (("PUT", "/a%20b/%C3%A4", &["If-None-Match: *"], b""), 412, "<Code>PreconditionFailed</Code>"),
        (("PUT", "/new", &["If-None-Match: *"], b""), 200, ""),
        (("PUT", "/new", &["If-Match: \"no\""], b""), 412, "<Code>PreconditionFailed</Code>"),
        (("PUT", "/none", &["If-Match: \"no\""], b""), 404, "<Code>NoSuchKey</Code>"),
        (("PUT", "/c", &["x-amz-copy-source: bucket/a%20b/%C3%A4"], b""), 200, "<CopyObjectResult"),
        (("PUT", "/c", &["x-amz-copy-source: /bucket/x"], b""), 404, "<Code>NoSuchKey</Code>"),
        (("PUT", "/c", &["x-amz-copy-source: /bucket/c"], b""), 400, "<Code>InvalidRequest</Code>"),
        (("GET", "/c", &[], b""), 200, "\r\nContent-Type: text/x\r\n"),
        (("DELETE", "/c", &["If-Match: \"no\""], b""), 412, ""),
        (("DELETE", "/c", &[], b""), 204, ""),
        (("DELETE", "/c", &[], b""), 204, ""),
        (("GET", "?versioning", &[], b""), 200, "<VersioningConfiguration"),
        (("GET", "?object-lock", &[], b""), 404, "<Code>ObjectLockConfigurationNotFoundError</Code>"),
        (("GET", "?lifecycle=", &[], b""), 404, "<Code>NoSuchLifecycleConfiguration</Code>"),
        (("GET", "?location", &[], b""), 200, "<LocationConstraint"),
        (("GET", "?acl", &[], b""), 501, "<Code>NotImplemented</Code>"),
        (("DELETE", "", &[], b""), 409, "<Code>BucketNotEmpty</Code>"),
        (("PUT", "", &[], b""), 409, "<Code>BucketAlreadyOwnedByYou</Code>"),
        (("GET", "2/a", &[], b""), 404, "<Code>NoSuchBucket</Code>"),
        (("GET", "/../..//%2B+", &[], b""), 404, "<Code>NoSuchKey</Code>"),
    ];
    for (request, status, part) in table {
        let answer = client.ask(*request);
        let whole = answer.head.clone() + answer.text();
        assert_eq!(answer.status, *status, "{request:?}: {whole}");
        assert!(whole.contains(part), "{request:?}: {whole}");
    }
    let keys: Vec<_> = server.objects().into_keys().collect();
    assert_eq!(keys, ["a b/ä", "new"]);
    assert_eq!(server.connections(), 1, "connections are kept");
    assert_eq!(server.violations(), [] as [String; 0]);
}

#[test]
fn an_empty_bucket_can_be_removed_and_created_again() {
    let server = FaultServer::start(Options::default());
    let mut client = Client::new(&server);
    server.put("a", "a");
    assert_eq!(client.ask(("DELETE", "", &[], b"")).all("Code"), ["BucketNotEmpty"]);
    server.remove("a");
    let answers =
        [("DELETE", "", 204), ("HEAD", "", 404), ("GET", "/a", 404), ("PUT", "", 200), ("HEAD", "", 200)];
    for (method, target, status) in answers {
        assert_eq!(client.ask((method, target, &[], b"")).status, status, "{method} of the bucket");
    }
}

#[test]
fn the_settings_of_a_bucket_are_those_of_the_options() {
    let lifecycle = "<LifecycleConfiguration><Rule/></LifecycleConfiguration>";
    let server = FaultServer::start(Options {
        bucket_exists: false,
        lifecycle: Some(lifecycle.to_owned()),
        object_lock: true,
        region: "elsewhere".to_owned(),
        versioning: Some("Enabled"),
        ..Options::default()
    });
    assert_eq!(ask(&server, ("HEAD", "", &[], b"")).status, 404);
    assert_eq!(ask(&server, ("PUT", "", &[], b"")).status, 200);
    assert_eq!(ask(&server, ("GET", "?versioning", &[], b"")).all("Status"), ["Enabled"]);
    assert_eq!(ask(&server, ("GET", "?object-lock", &[], b"")).all("ObjectLockEnabled"), ["Enabled"]);
    assert_eq!(ask(&server, ("GET", "?lifecycle", &[], b"")).text(), lifecycle);
    assert!(ask(&server, ("GET", "?location", &[], b"")).text().contains(">elsewhere</LocationConstraint>"));
    assert_eq!(ask(&server, ("HEAD", "", &[], b"")).header("x-amz-bucket-region"), Some("elsewhere"));

    let shapes = [
        (Etags::Token, "\"tag:1/"),
        (Etags::Weak, "W/\""),
        (Etags::Md5, "\"900150983cd24fb0d6963f7d28e17f72\""),
    ];
    for (etags, start) in shapes {
        let server = FaultServer::start(Options { etags, ..Options::default() });
        let etag = ask(&server, PUT_A).header("etag").unwrap().to_owned();
        assert!(etag.starts_with(start), "{etag}");
        let condition = format!("If-Match: {etag}");
        assert_eq!(ask(&server, ("PUT", "/a", &[&condition], b"abc")).status, 200, "{etag}");
    }
}

#[test]
fn listings_are_complete_ordered_and_paged() {
    let server = FaultServer::start(Options { page: 3, ..Options::default() });
    for key in ["a", "a/1", "a/2", "a b+c/\u{e4}", "b\u{1}<", "c", "p/q/r", "p/s"] {
        server.put(key, key);
    }
    let mut client = Client::new(&server);
    let mut pages = |query: &str, name: &str| {
        let mut found = Vec::new();
        let mut token = String::new();
        loop {
            let answer = client.ask(("GET", &format!("?list-type=2{query}{token}"), &[], b""));
            assert_eq!(answer.status, 200, "{query}: {}", answer.text());
            found.extend(answer.all(name).into_iter().map(str::to_owned));
            match answer.all("NextContinuationToken")[..] {
                [next] => {
                    token = format!("&continuation-token={}", next.replace(':', "%3A").replace('=', "%3D"));
                }
                _ => return found,
            }
        }
    };
    let keys = "a | a b+c/ä | a/1 | a/2 | b&#x1;&lt; | c | p/q/r | p/s";
    assert_eq!(pages("", "Key").join(" | "), keys);
    assert_eq!(pages("&max-keys=1", "Key").join(" | "), keys);
    let encoded = "a | a+b%2Bc/%C3%A4 | a/1 | a/2 | b%01%3C | c | p/q/r | p/s";
    assert_eq!(pages("&encoding-type=url", "Key").join(" | "), encoded);
    assert_eq!(pages("&start-after=b&max-keys=2", "Key")[1..], ["c", "p/q/r", "p/s"]);
    assert_eq!(pages("&prefix=a%20b", "Key"), ["a b+c/ä"]);
    assert_eq!(pages("&delimiter=%2F&max-keys=1", "Key"), ["a", "b&#x1;&lt;", "c"]);
    // The first "Prefix" of a page is what was asked for.
    let prefixes = pages("&delimiter=%2F&max-keys=7&prefix=p%2F", "Prefix");
    assert_eq!(prefixes, ["p/", "p/q/"]);
    assert_eq!(pages("&max-keys=0", "Key"), [] as [String; 0]);
    assert_eq!(client.ask(("GET", "?list-type=2&continuation-token=bogus", &[], b"")).status, 400);
    assert_eq!(client.ask(("GET", "?list-type=2&max-keys=many", &[], b"")).status, 400);
}

#[test]
fn a_quota_counts_bytes_or_objects_and_accounts_for_replaced_ones() {
    let server = FaultServer::start(Options::default());
    server.put("a", "abc");
    let put = |body: &'static [u8]| ask(&server, ("PUT", "/a", &[], body)).status;
    server.limit(Quota { bytes: Some(6), ..Quota::default() });
    assert_eq!((put(b"abcd"), put(b"xyz")), (403, 200));
    server.limit(Quota { objects: Some(1), ..Quota::default() });
    assert_eq!((put(b""), ask(&server, ("DELETE", "/a", &[], b"")).status, put(b"")), (403, 204, 200));
}

#[test]
fn a_batch_delete_has_a_result_for_each_key() {
    let server = FaultServer::start(Options::default());
    for key in ["a&<", "b", "kept"] {
        server.put(key, key);
    }
    server.add(Rule::on("POST").then(Action::RefuseKeys(|key| key == "b", "AccessDenied")));
    let keys = |keys: &str| format!("<Delete xmlns=\"http://x/\">{keys}</Delete>").into_bytes();
    let body = keys(
        "<Object><Key>a&amp;&#60;</Key></Object><Object><Key>b</Key></Object><Object><Key>c</Key></Object>",
    );
    let answer = ask(&server, ("POST", "?delete", &[], &body));
    assert_eq!(answer.all("Deleted"), ["<Key>a&amp;&lt;</Key>", "<Key>c</Key>"]);
    assert!(answer.all("Error")[0].starts_with("<Key>b</Key><Code>AccessDenied</Code>"));
    assert_eq!(server.objects().into_keys().collect::<Vec<_>>(), ["b", "kept"]);

    server.clear();
    let quiet = keys("<Quiet>true</Quiet><Object><Key>b</Key></Object>");
    assert!(ask(&server, ("POST", "?delete", &[], &quiet)).all("Deleted").is_empty());
    assert_eq!(server.objects().into_keys().collect::<Vec<_>>(), ["kept"]);
    assert_eq!(server.violations(), [] as [String; 0]);

    let many = keys(&"<Object><Key>k</Key></Object>".repeat(1001));
    for body in
        [many, keys(""), keys("<Object/>"), keys("<Object><Key>a&b</Key></Object>"), b"<Delete>".to_vec()]
    {
        assert_eq!(ask(&server, ("POST", "?delete", &[], &body)).all("Code"), ["MalformedXML"]);
    }
    assert_eq!(server.violations().len(), 2, "{:?}", server.violations());
}

#[test]
fn parts_become_an_object_when_they_are_completed() {
    let server = FaultServer::start(Options { min_part_bytes: 3, ..Options::default() });
    let mut client = Client::new(&server);
    let mut begin = |key: &str| {
        let answer = client.ask(("POST", &format!("/{key}?uploads"), &["Content-Type: text/x"], b""));
        answer.all("UploadId")[0].to_owned()
    };
    let (id, aborted) = (begin("k"), begin("l"));
    let part = |number: u32, bytes: &[u8]| {
        let answer = ask(&server, ("PUT", &format!("/k?partNumber={number}&uploadId={id}"), &[], bytes));
        let etag = answer.header("etag").unwrap().replace('"', "&quot;");
        format!("<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>")
    };
    let (small, last, first) = (part(3, b"m"), part(5, b"d"), part(2, b"abc"));
    assert_eq!(server.uploads().len(), 2);
    let listed = ask(&server, ("GET", "?uploads&prefix=l", &[], b""));
    assert_eq!(listed.all("UploadId"), [aborted.as_str()]);
    assert_eq!(ask(&server, ("GET", "?uploads&max-uploads=1", &[], b"")).all("NextKeyMarker"), ["k"]);
    assert_eq!(ask(&server, ("GET", "?uploads&key-marker=k", &[], b"")).all("UploadId"), [aborted.as_str()]);

    let target = format!("/k?uploadId={id}");
    let complete = |parts: &[&str]| {
        let body = format!("<CompleteMultipartUpload>{}</CompleteMultipartUpload>", parts.concat());
        ask(&server, ("POST", &target, &[], body.as_bytes()))
    };
    assert_eq!(complete(&[&first, &first]).all("Code"), ["InvalidPartOrder"]);
    assert_eq!(complete(&[&small, &last]).all("Code"), ["EntityTooSmall"]);
    assert_eq!(complete(&[&first.replace("quot;", "quot;0")]).all("Code"), ["InvalidPart"]);
    assert!(complete(&[&first, &last]).all("ETag")[0].ends_with("-2&quot;"));
    assert_eq!(complete(&[&first, &last]).all("Code"), ["NoSuchUpload"]);
    assert_eq!(ask(&server, ("GET", "/k", &[], b"")).text(), "abcd");
    let target = format!("/l?uploadId={aborted}");
    for status in [204, 404] {
        assert_eq!(ask(&server, ("DELETE", &target, &[], b"")).status, status);
    }
    assert_eq!(server.uploads(), [] as [String; 0]);
}

#[test]
fn a_malformed_request_is_a_violation() {
    let host = "Host: x\r\n";
    let table = [
        format!("GET /bucket/a HTTP/1.0\r\n{host}\r\n"),
        format!("GET  /bucket/a HTTP/1.1\r\n{host}\r\n"),
        format!("get /bucket/a HTTP/1.1\r\n{host}\r\n"),
        format!("GET http://x/bucket/a HTTP/1.1\r\n{host}\r\n"),
        format!("GET /bucket/a%2 HTTP/1.1\r\n{host}\r\n"),
        format!("GET /bucket/\u{e4} HTTP/1.1\r\n{host}\r\n"),
        format!("GET /bucket/a\"b HTTP/1.1\r\n{host}\r\n"),
        format!("GET /bucket/%FF HTTP/1.1\r\n{host}\r\n"),
        "GET /bucket/a HTTP/1.1\r\n\r\n".to_owned(),
        format!("GET /bucket/a HTTP/1.1\r\n{host}{host}\r\n"),
        format!("GET /bucket/a HTTP/1.1\r\n{host}X: a\r\n b\r\n\r\n"),
        format!("GET /bucket/a HTTP/1.1\r\n{host}X : a\r\n\r\n"),
        format!("GET /bucket/a HTTP/1.1\r\n{host}X\r\n\r\n"),
        format!("GET /bucket/a HTTP/1.1\r\n{host}X: a\rb\r\n\r\n"),
        format!("GET /bucket/a HTTP/1.1\n{host}\n"),
        format!("PUT /bucket/a HTTP/1.1\r\n{host}Content-Length: +1\r\n\r\na"),
        format!("PUT /bucket/a HTTP/1.1\r\n{host}Content-Length: 1\r\nContent-Length: 1\r\n\r\na"),
        format!("PUT /bucket/a HTTP/1.1\r\n{host}Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\na"),
        format!("GET /bucket/a HTTP/1.1\r\n{host}\r\nGET /bucket/b HTTP/1.1\r\n{host}\r\n"),
        format!("GET /bucket/a HTTP/1.1\r\n{host}X: {}\r\n\r\n", "x".repeat(70_000)),
    ];
    for request in table {
        let server = FaultServer::start(Options::default());
        let mut client = Client::new(&server);
        // The server may have closed before it was read to its end.
        let _ = client.0.write_all(request.as_bytes());
        let answer = String::from_utf8(client.rest()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400 "), "{request:?}: {answer}");
        assert_eq!(server.violations().len(), 1, "{request:?}");
        assert!(!server.log().iter().any(|logged| logged.executed), "{request:?}");
    }
    let server = FaultServer::start(Options::default());
    let no_length = format!("PUT /bucket/a HTTP/1.1\r\n{host}\r\n");
    let mut client = Client::new(&server);
    client.0.write_all(no_length.as_bytes()).unwrap();
    assert_eq!(client.answer("PUT").status, 411);
    assert_eq!(server.violations(), [] as [String; 0]);
}

#[test]
fn the_log_contains_every_request_as_sent() {
    let server = FaultServer::start(Options::default());
    let mut client = Client::new(&server);
    client.ask(("PUT", "/%61?x-id=1", &["X-Two:  2 ", "x-one: 1"], b"abc"));
    client.ask(("PUT", "/a", &["If-None-Match: *"], b"abcd"));
    ask(&server, GET_A);
    let log = server.log();
    let first = &log[0];
    assert_eq!((first.connection, first.number, first.method.as_str()), (1, 1, "PUT"));
    assert_eq!((first.path.as_str(), first.query.as_str()), ("/bucket/%61", "x-id=1"));
    let headers: Vec<_> = first.headers.iter().map(|(name, value)| format!("{name}={value}")).collect();
    assert_eq!(headers, ["Host=localhost", "X-Two=2", "x-one=1", "Content-Length=3"]);
    assert_eq!(first.header("X-ONE"), Some("1"));
    let rest: Vec<_> =
        log.iter().map(|l| (l.connection, l.number, l.body_len, l.status, l.executed)).collect();
    assert_eq!(rest, [(1, 1, 3, Some(200), true), (1, 2, 4, Some(412), false), (2, 3, 0, Some(200), true)]);
    assert_eq!(server.connections(), 2);
}

#[test]
fn a_rule_applies_only_to_the_requests_that_it_selects() {
    let status = |rule: Rule| {
        let server = FaultServer::start(Options::default());
        server.put("a", "a");
        server.add(rule.then(Action::status(503, "SlowDown")));
        let mut client = Client::new(&server);
        let requests = [GET_A, PUT_A, GET_A, ("GET", "?list-type=2", &[], b""), GET_A];
        requests.map(|request| client.ask(request).status)
    };
    assert_eq!(status(Rule::any()), [503; 5]);
    assert_eq!(status(Rule::on("PUT")), [200, 503, 200, 200, 200]);
    assert_eq!(status(Rule::on("GET").first(2)), [503, 200, 503, 200, 200]);
    assert_eq!(status(Rule::any().nth(5)), [200, 200, 200, 200, 503]);
    assert_eq!(status(Rule::any().path(|path| path == "/bucket")), [200, 200, 200, 503, 200]);
    assert_eq!(status(Rule::list()), [200, 200, 200, 503, 200]);
    assert_eq!(status(Rule::on("GET").query(str::is_empty).nth(3)), [200, 200, 200, 200, 503]);
}

#[test]
fn a_request_can_be_cut_ignored_or_answered_too_early() {
    let big = vec![7; 16 << 20];
    let put: Request<'_> = ("PUT", "/b", &[], &big);
    let start = |action: Action| {
        let server = FaultServer::start(Options::default());
        server.add(Rule::on("PUT").first(1).then(action));
        let mut client = Client::new(&server);
        let head = format!("PUT /bucket/b HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", put.3.len());
        client.0.write_all(head.as_bytes()).unwrap();
        (server, client, head.len() as u64)
    };

    let (server, mut client, _) = start(Action::RespondEarly);
    assert!(client.0.write_all(put.3).is_err(), "the server has closed");
    let answer = String::from_utf8(client.rest()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("SlowDown"), "{answer:?}");
    assert_eq!((server.log()[0].status, server.log()[0].body_complete), (Some(503), false));

    let (server, mut client, head) = start(Action::CutRequestAt(1 << 20));
    assert!(client.0.write_all(put.3).is_err(), "the server has closed");
    assert_eq!(client.rest(), b"");
    let logged = &server.log()[0];
    assert_eq!((logged.status, logged.body_len, logged.executed), (None, (1 << 20) - head, false));

    let (server, mut client, _) = start(Action::CutRequestAt(1));
    assert_eq!(client.rest(), b"");
    assert_eq!(server.log()[0].body_len, 0);

    let (server, mut client, _) = start(Action::StopReading);
    client.0.write_all(b"some").unwrap();
    assert!(client.is_quiet());
    server.kill();
    assert_eq!(client.rest(), b"");

    let (server, mut client, _) = start(Action::Delay(Duration::ZERO));
    client.0.write_all(b"some").unwrap();
    drop(client);
    assert!(
        server.wait(LONG, |log| log.first().is_some_and(|logged| logged.body_len == 4)),
        "a client that goes is seen"
    );
    assert!(!server.log()[0].body_complete);
    assert!(server.objects().is_empty());
    assert_eq!(ask(&server, put).status, 200);
    assert_eq!(server.objects()["b"], big);
    assert_eq!(server.violations(), [] as [String; 0]);
}

#[test]
fn a_request_can_be_executed_without_an_answer_now_or_later() {
    let (server, rest) = all_of(Action::ExecuteThenDrop, PUT_A);
    assert_eq!(rest, b"");
    assert_eq!(server.objects()["a"], b"abc");
    assert_eq!((server.log()[0].status, server.log()[0].executed), (None, true));

    for released in [false, true] {
        let action = if released { Action::ExecuteWhenReleased } else { Action::ExecuteLate(SHORT) };
        let (server, rest) = all_of(action, ("PUT", "/late", &[], b"abc"));
        assert_eq!(rest, b"");
        if released {
            assert!(!server.objects().contains_key("late"));
            server.release();
        }
        assert!(server.wait(LONG, |log| log[0].executed));
        assert_eq!(server.objects()["late"], b"abc");
    }
    let (server, _) = all_of(Action::ExecuteLate(LONG), ("PUT", "/late", &[], b"abc"));
    server.kill();
    assert!(!server.log()[0].executed, "a server that is dead executes nothing");

    let started = Instant::now();
    let (_server, rest) = all_of(Action::Delay(SHORT), GET_A);
    assert!(rest.starts_with(b"HTTP/1.1 200 ") && started.elapsed() >= SHORT);
}

#[test]
fn a_response_can_be_cut_stalled_or_dripped_at_any_byte() {
    let (_server, whole) = all_of(Action::CloseAfterResponse, GET_A);
    assert!(whole.ends_with(&[b'x'; 1000]) && !whole.windows(11).any(|part| part == b"Connection:"));
    for bytes in [0, 1, 20, whole.len() - 1000, whole.len() - 1, whole.len()] {
        let (server, cut) = all_of(Action::CutResponseAt(bytes), GET_A);
        // The date may have changed, and the tags are the same.
        assert_eq!((cut.len(), server.log()[0].executed), (bytes, true));
    }
    let server = FaultServer::start(Options::default());
    server.put("a", [b'x'; 1000]);
    server.add(Rule::any().then(Action::StallResponseAt(100)));
    let mut client = Client::new(&server);
    client.send(GET_A);
    client.0.read_exact(&mut [0; 100]).unwrap();
    assert!(client.is_quiet());

    let started = Instant::now();
    let every = Duration::from_millis(1);
    let (_server, dripped) = all_of(Action::Drip { bytes: 40, every }, GET_A);
    assert_eq!(dripped.len(), whole.len());
    assert!(started.elapsed() >= every * 25);

    // The next request on a connection that closes without a word is lost.
    let server = FaultServer::start(Options::default());
    server.add(Rule::any().then(Action::CloseAfterResponse));
    let mut client = Client::new(&server);
    assert_eq!(client.ask(PUT_A).header("connection"), None);
    assert_eq!(client.rest(), b"");
}

/// The parts of a response to `GET` that arrive under each action.
fn bring(table: Vec<(Action, &[&str], &[&str])>) {
    for (action, parts, absent) in table {
        let context = format!("{action:?}");
        let (server, answer) = all_of(action, GET_A);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(parts.iter().all(|part| answer.contains(part)), "{context}: {answer}");
        assert!(!absent.iter().any(|part| answer.contains(part)), "{context}: {answer}");
        assert_eq!(server.log()[0].executed, answer.to_ascii_lowercase().contains("etag"), "{context}");
    }
}

#[test]
fn a_rule_can_refuse_requests() {
    let slow_down = Action::Status {
        status: 429,
        code: "SlowDown",
        headers: vec![("X-Why", "because".to_owned())],
        body: Some(b"no XML".to_vec()),
    };
    let elsewhere = Action::Redirect {
        status: 307,
        location: "http://127.0.0.1:1/bucket/a".to_owned(),
        region: Some("r".to_owned()),
    };
    let region = Action::Redirect { status: 400, location: String::new(), region: Some("r".to_owned()) };
    let late = Action::OkWithErrorBody { whitespace: 3, delay: SHORT };
    let to = "\r\nLocation: http://127.0.0.1:1/bucket/a\r\n";
    bring(vec![
        (slow_down, &["HTTP/1.1 429 ", "\r\nX-Why: because\r\n", "\r\n\r\nno XML"], &["xxx"]),
        (Action::status(503, "Busy"), &["HTTP/1.1 503 ", "<Error><Code>Busy</Code>"], &["xxx"]),
        (elsewhere, &["HTTP/1.1 307 ", to, "<Endpoint>127.0.0.1:1</Endpoint><Region>r</Region>"], &["xxx"]),
        (region, &["<Code>AuthorizationHeaderMalformed</Code>", "<Region>r</Region>"], &["Location"]),
        (
            late,
            &["HTTP/1.1 200 ", "\r\n\r\n3\r\n   \r\n", "<Code>InternalError</Code>", "\r\n0\r\n\r\n"],
            &["xxx"],
        ),
    ]);
}

#[test]
fn a_rule_can_alter_responses() {
    let hints = "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(3) + "HTTP/1.1 200 OK\r\n";
    bring(vec![
        (Action::AddHeader("X-New", "1".to_owned()), &["\r\nX-New: 1\r\n"], &[]),
        (
            Action::ContentEncoding("gzip"),
            &["\r\nContent-Encoding: gzip\r\n", "Content-Length: 1028\r\n"],
            &[],
        ),
        (Action::DropHeader("Content-Length"), &["xxx"], &["Content-Length"]),
        (Action::DropHeader("date"), &["HTTP/1.1 200 OK\r\n"], &["Date:"]),
        (Action::FlipBit(Flip::Sent), &["xyx"], &[]),
        (Action::Informational(3, 103), &[&hints], &[]),
        (Action::ReplaceHeader("etag", "1".to_owned()), &["\r\netag: 1\r\n"], &["ETag"]),
        (Action::RetryAfter("soon"), &["\r\nRetry-After: soon\r\n"], &[]),
    ]);
    let list: Request<'_> = ("GET", "?list-type=2", &[], b"");
    let (_server, answer) = all_of(Action::DropXmlElement("KeyCount"), list);
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.contains("<MaxKeys>") && !answer.contains("KeyCount"), "{answer}");
}

#[test]
fn a_rule_can_produce_every_wrong_framing() {
    let halves = format!("\r\n\r\n1f4\r\n{0}\r\n1f4\r\n{0}\r\n0\r\n\r\n", "x".repeat(500));
    let whole = "x".repeat(1000);
    let trailed =
        format!("1f4;name=value\r\n{0}\r\n1f4\r\n{0}\r\n0\r\nX-Trailer: value\r\n\r\n", "x".repeat(500));
    let smuggled =
        format!("{whole}HTTP/1.1 200 OK\r\nETag: \"smuggled\"\r\nContent-Length: 8\r\n\r\nsmuggled");
    let (chunked, length) = ("Transfer-Encoding: chunked\r\n", "Content-Length: 1000\r\n");
    let table: &[(Framing, &str, &[&str], &str, &str)] = &[
        (Framing::BareLf, "GET", &["\nContent-Length: 1000\n"], "\r", &whole),
        (Framing::BothLengthAndChunked, "GET", &[chunked, length], "Trailer", &halves),
        (Framing::Chunked, "GET", &[chunked], "Content-Length", &halves),
        (
            Framing::ChunkedWithTrailers,
            "GET",
            &[chunked, "Trailer: x-trailer\r\n"],
            "Content-Length",
            &trailed,
        ),
        (Framing::CloseDelimited, "GET", &[], "Content-Length", &whole),
        (Framing::ExtraBytesAfterBody, "GET", &[length], "chunked", &smuggled),
        (Framing::HeadWithBody, "HEAD", &[length], "chunked", &whole),
        (Framing::ObsFold, "GET", &["X-Folded: one\r\n two\r\n"], "chunked", &whole),
        (Framing::OversizedHead, "GET", &["\r\nX-Filler-1023: fff"], "chunked", &whole),
        (Framing::TwoContentLengths, "GET", &[length, "Content-Length: 1007\r\n"], "chunked", &whole),
    ];
    for (framing, method, parts, absent, end) in table {
        let (_server, answer) = all_of(Action::Framing(*framing), (method, "/a", &[], b""));
        let answer = String::from_utf8(answer).unwrap();
        assert!(parts.iter().all(|part| answer.contains(part)), "{framing:?}: {answer}");
        assert!(!answer.contains(absent) && answer.ends_with(end), "{framing:?}: {answer}");
        assert_eq!(answer.len() > 1 << 20, *framing == Framing::OversizedHead);
    }
}

#[test]
fn a_rule_can_flip_bits_before_and_after_the_checks() {
    let hash = format!("x-amz-content-sha256: {HASH_OF_ABC}");
    let put: Request<'_> = ("PUT", "/a", &[&hash], b"abc");
    let (server, answer) = all_of(Action::FlipBit(Flip::Received), put);
    assert!(answer.starts_with(b"HTTP/1.1 400 "), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(server.objects()["a"].len(), 1000);
    let (server, answer) = all_of(Action::FlipBit(Flip::Stored), put);
    assert!(answer.starts_with(b"HTTP/1.1 200 "));
    assert_eq!(server.objects()["a"], b"acc");
}

#[test]
fn listings_can_lag_and_repeat() {
    let server = FaultServer::start(Options { page: 2, ..Options::default() });
    let list = || ask(&server, ("GET", "?list-type=2", &[], b"")).all("Key").join(" ");
    server.put("old", "1");
    list();
    list();
    server.add(Rule::list().then(Action::ListingLag(Lag::Listings(2))));
    server.put("new", "1");
    server.put("old", "2");
    assert_eq!([list(), list(), list()], ["old", "old", "new old"]);
    server.clear();
    server.add(Rule::list().then(Action::ListingLag(Lag::For(LONG))));
    assert_eq!(list(), "");
    server.clear();

    server.put("z", "1");
    server.add(Rule::list().then(Action::RepeatPage));
    let first = ask(&server, ("GET", "?list-type=2", &[], b""));
    let token = first.all("NextContinuationToken")[0].to_owned();
    let second = ask(&server, ("GET", &format!("?list-type=2&continuation-token={token}"), &[], b""));
    assert_eq!(second.all("NextContinuationToken"), [token]);
    assert_eq!([first.all("Key"), second.all("Key")], [["new", "old"]; 2]);
}

#[test]
fn a_wrong_server_clock_is_visible_and_refuses_requests() {
    let skewed = |seconds: i64, headers: &[&str]| {
        let server = FaultServer::start(Options::default());
        server.put("a", "a");
        server.add(Rule::any().then(Action::SkewClock(seconds)));
        ask(&server, ("GET", "/a", headers, b""))
    };
    let date = |answer: &Answer| answer.header("date").unwrap().to_owned();
    // No clock that runs these tests is wrong by 40 years: 2000-01-01 is in the past, and -60 years before 1970.
    let past = skewed(-60 * 365 * 86400, &[]);
    assert_eq!(past.status, 200);
    assert!(date(&past).contains(" 196"), "{}", date(&past));
    let refused = skewed(0, &["x-amz-date: 20000101T000000Z"]);
    assert_eq!((refused.status, refused.all("Code")), (403, vec!["RequestTimeTooSkewed"]));
    // The time in the refusal is one that the next request can use.
    let server_time = refused.all("ServerTime")[0].replace(['-', ':'], "").replace(".000", "");
    let header = format!("x-amz-date: {server_time}");
    assert_eq!(skewed(0, &[&header]).status, 200);
    assert_eq!(skewed(-800, &[&header]).status, 200);
    assert_eq!(skewed(1000, &[&header]).status, 403);
}

#[test]
fn every_quirk_changes_the_behaviour() {
    let table: &[(Quirk, Request<'_>, u16, &str, &str)] = &[
        (Quirk::ConditionsIgnored, ("PUT", "/a", &["If-None-Match: *"], b"new"), 200, "ETag", ""),
        (Quirk::ConditionsRejected, ("PUT", "/x", &["If-None-Match: *"], b"new"), 501, "NotImplemented", ""),
        (Quirk::ContentMd5Needed, ("POST", "?delete", &[], b"<Delete/>"), 400, "InvalidRequest", ""),
        (
            Quirk::EncodingEchoed,
            ("GET", "?list-type=2&encoding-type=url", &[], b""),
            200,
            "<Key>b/ä</Key>",
            "%",
        ),
        (
            Quirk::EncodingOfSlash,
            ("GET", "?list-type=2&encoding-type=url", &[], b""),
            200,
            "<Key>b%2F%C3%A4</Key>",
            "",
        ),
        (Quirk::KeepAliveNever, GET_A, 200, "\r\nConnection: close\r\n", ""),
        (
            Quirk::ListUnordered,
            ("GET", "?list-type=2&max-keys=1", &[], b""),
            200,
            "<Key>b/ä</Key>",
            "<Key>a<",
        ),
        (Quirk::MultiDeleteRejected, ("POST", "?delete", &[], b"<Delete/>"), 501, "NotImplemented", ""),
        (Quirk::RangeIgnored, ("GET", "/a", &["Range: bytes=1-1"], b""), 200, "old", "Content-Range"),
        (Quirk::StartAfterIgnored, ("GET", "?list-type=2&start-after=a", &[], b""), 200, "<Key>a</Key>", ""),
        (
            Quirk::StartAfterOutside,
            ("GET", "?list-type=2&prefix=b&start-after=a", &[], b""),
            200,
            "ListBucketResult",
            "<Key>b",
        ),
    ];
    for (quirk, request, status, part, absent) in table {
        let server = FaultServer::start(Options::with([*quirk]));
        server.put("a", "old");
        server.put("b/ä", "old");
        let answer = ask(&server, *request);
        let whole = answer.head.clone() + answer.text();
        assert_eq!(answer.status, *status, "{quirk:?}: {whole}");
        assert!(whole.contains(part) && (absent.is_empty() || !whole.contains(absent)), "{quirk:?}: {whole}");
    }
    let server = FaultServer::start(Options::with([Quirk::CompleteEtagEmpty]));
    let id = ask(&server, ("POST", "/k?uploads", &[], b"")).all("UploadId")[0].to_owned();
    let part = ask(&server, ("PUT", &format!("/k?partNumber=1&uploadId={id}"), &[], b"abc"));
    let part =
        format!("<Part><PartNumber>1</PartNumber><ETag>{}</ETag></Part>", part.header("etag").unwrap());
    let body = format!("<CompleteMultipartUpload>{part}</CompleteMultipartUpload>");
    assert_eq!(ask(&server, ("POST", &format!("/k?uploadId={id}"), &[], body.as_bytes())).all("ETag"), [""]);
}

#[test]
fn a_client_that_expects_100_receives_it_unless_the_quirk_is_set() {
    let head = "PUT /bucket/a HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n";
    for (options, quiet) in [(Options::default(), false), (Options::with([Quirk::ContinueNever]), true)] {
        let server = FaultServer::start(options);
        let mut client = Client::new(&server);
        client.0.write_all(head.as_bytes()).unwrap();
        if quiet {
            assert!(client.is_quiet());
        } else {
            assert_eq!(client.head(), "HTTP/1.1 100 Continue\r\n\r\n");
        }
        client.0.write_all(b"abc").unwrap();
        assert_eq!(client.answer("PUT").status, 200);
    }
    let server = FaultServer::start(Options::default());
    server.add(Rule::any().then(Action::RespondEarly).then(Action::status(417, "ExpectationFailed")));
    let mut client = Client::new(&server);
    client.0.write_all(head.as_bytes()).unwrap();
    assert_eq!(client.answer("PUT").status, 417);
}

#[test]
fn a_killed_server_closes_everything_and_revives_on_its_port() {
    let server = FaultServer::start(Options::default());
    server.put("a", "kept");
    server.add(Rule::on("GET").first(2).then(Action::Delay(LONG)));
    let mut idle = Client::new(&server);
    idle.ask(PUT_A);
    let mut waiting = [Client::new(&server), Client::new(&server)];
    for client in &mut waiting {
        client.send(GET_A);
    }
    assert!(server.wait(LONG, |log| log.len() == 3));
    let started = Instant::now();
    server.kill();
    assert!(started.elapsed() < LONG / 4, "nothing is waited for");
    assert_eq!(idle.rest(), b"");
    assert!(waiting.iter_mut().all(|client| client.rest().is_empty()));
    assert!(TcpStream::connect(server.address()).is_err());
    server.kill();

    server.revive();
    server.revive();
    assert_eq!(ask(&server, GET_A).text(), "abc");
    assert_eq!((server.log().len(), server.connections()), (4, 4));
    let address = server.address();
    drop(server);
    assert!(TcpStream::connect(address).is_err());
}
