//! The S3 server of the tests, seen by a client that shares nothing with it and nothing with ours: requests by hand over TCP,
//! signed from what AWS documents.

use base64_simd::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use jiff::Timestamp;
use larder::rt::{Runtime as _, ThreadRuntime};
use larder_testing::s3_server::{ACCESS_KEY, DOMAIN, REGION, S3Server, SECRET_KEY};
use md5::Md5;
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

/// The time that an answer may take before a test fails instead of hanging.
const PATIENCE: Duration = Duration::from_mins(1);

/// A request, of which each part can be made wrong.
#[derive(Clone)]
struct Request {
    access_key: &'static str,
    body: Vec<u8>,
    headers: BTreeMap<&'static str, String>,
    method: &'static str,
    region: &'static str,
    secret_key: &'static str,
    /// Encoded, its query in order.
    target: String,
}

impl Request {
    fn new(method: &'static str, target: &str) -> Self {
        Self {
            access_key: ACCESS_KEY,
            body: Vec::new(),
            headers: BTreeMap::from([("x-amz-date", date(Duration::ZERO))]),
            method,
            region: REGION,
            secret_key: SECRET_KEY,
            target: target.to_owned(),
        }
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, value.to_owned());
        self
    }

    fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    /// With the header that a deletion of many needs.
    fn content_md5(self) -> Self {
        let digest = STANDARD.encode_to_string(Md5::digest(&self.body));
        self.header("content-md5", &digest)
    }

    fn signed(mut self, server: &S3Server) -> Self {
        let hash = hex(&Sha256::digest(&self.body));
        self.headers.entry("host").or_insert_with(|| server.address().to_string());
        self.headers.insert("x-amz-content-sha256", hash);
        let authorization = self.authorization();
        self.header("authorization", &authorization)
    }

    /// Source: AWS, "Signature Version 4 signing process".
    fn authorization(&self) -> String {
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        let fields = query.split('&').filter(|field| !field.is_empty());
        let fields: Vec<_> = fields
            .map(|field| if field.contains('=') { field.to_owned() } else { format!("{field}=") })
            .collect();
        let names: Vec<_> = self.headers.keys().copied().collect();
        let headers: Vec<_> =
            self.headers.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect();
        let headers = headers.concat();
        let names = names.join(";");
        let canonical = format!(
            "{}\n{path}\n{}\n{headers}\n{names}\n{}",
            self.method,
            fields.join("&"),
            self.headers["x-amz-content-sha256"]
        );
        let date = &self.headers["x-amz-date"];
        let scope = format!("{}/{}/s3/aws4_request", &date[..8], self.region);
        let text = format!("AWS4-HMAC-SHA256\n{date}\n{scope}\n{}", hex(&Sha256::digest(canonical)));
        let mut key = format!("AWS4{}", self.secret_key).into_bytes();
        for part in scope.split('/') {
            key = hmac(&key, part);
        }
        format!(
            "AWS4-HMAC-SHA256 Credential={}/{scope}, SignedHeaders={names}, Signature={}",
            self.access_key,
            hex(&hmac(&key, &text))
        )
    }

    fn to_bytes(&self, server: &S3Server) -> Vec<u8> {
        let mut head = vec![format!("{} {} HTTP/1.1", self.method, self.target)];
        if !self.headers.contains_key("host") {
            head.push(format!("host: {}", server.address()));
        }
        head.extend(self.headers.iter().map(|(name, value)| format!("{name}: {value}")));
        if !self.body.is_empty() || matches!(self.method, "POST" | "PUT") {
            head.push(format!("content-length: {}", self.body.len()));
        }
        [head.join("\r\n").as_bytes(), b"\r\n\r\n", &self.body].concat()
    }
}

#[derive(Debug)]
struct Answer {
    body: Vec<u8>,
    headers: BTreeMap<String, String>,
    status: u16,
}

impl Answer {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The contents of each element of this name.
    fn all(&self, element: &str) -> Vec<String> {
        let open = format!("<{element}>");
        let close = format!("</{element}>");
        let parts = self.text().split(&open).skip(1);
        parts.map(|part| part.split(&close).next().unwrap().to_owned()).collect()
    }

    fn one(&self, element: &str) -> String {
        let all = self.all(element);
        assert_eq!(all.len(), 1, "{element} in {}", self.text());
        all[0].clone()
    }

    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?} {}", self.headers, String::from_utf8_lossy(&self.body));
        self
    }

    #[track_caller]
    fn fails(self, status: u16, code: &str) {
        let answer = self.is(status);
        assert_eq!(answer.one("Code"), code);
    }
}

/// One connection.
struct Client<'a, S = TcpStream> {
    server: &'a S3Server,
    stream: BufReader<S>,
}

impl<'a> Client<'a> {
    fn new(server: &'a S3Server) -> Self {
        let stream = TcpStream::connect(server.address()).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { server, stream: BufReader::new(stream) }
    }
}

impl<S: Read + Write> Client<'_, S> {
    fn send(&mut self, request: Request) -> Answer {
        let request = request.signed(self.server);
        self.send_as_is(&request)
    }

    fn send_as_is(&mut self, request: &Request) -> Answer {
        let bytes = request.to_bytes(self.server);
        self.stream.get_mut().write_all(&bytes).unwrap();
        self.stream.get_mut().flush().unwrap();
        self.read(request.method)
    }

    fn read(&mut self, method: &str) -> Answer {
        let line = self.line();
        let status = line.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        let mut headers = BTreeMap::new();
        loop {
            let line = self.line();
            let Some((name, value)) = line.split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = match headers.get("content-length") {
            _ if method == "HEAD" || matches!(status, 204 | 304) => 0,
            Some(length) => length.parse().unwrap(),
            None => panic!("an answer of unknown length: {headers:?}"),
        };
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body).unwrap();
        Answer { body, headers, status }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn get(&mut self, target: &str) -> Answer {
        self.send(Request::new("GET", target))
    }

    fn put(&mut self, target: &str, body: &[u8]) -> Answer {
        self.send(Request::new("PUT", target).body(body))
    }
}

fn hex(bytes: &[u8]) -> String {
    let digits = bytes.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

fn hmac(key: &[u8], text: &str) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(text.as_bytes());
    mac.finalize().into_bytes().to_vec()
}

/// The time this long ago, in the form of signatures.
fn date(ago: Duration) -> String {
    let time = ThreadRuntime::new().now() - ago;
    Timestamp::try_from(time).unwrap().strftime("%Y%m%dT%H%M%SZ").to_string()
}

fn element(name: &str, content: impl Display) -> String {
    format!("<{name}>{content}</{name}>")
}

fn server_with_bucket() -> S3Server {
    let server = S3Server::start();
    server.create_bucket("bucket");
    server
}

#[test]
fn unsigned_requests_are_refused() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    client.put("/bucket/key", b"content").is(200);
    for method in ["GET", "HEAD", "DELETE"] {
        let answer = client.send_as_is(&Request::new(method, "/bucket/key"));
        assert_eq!(answer.status, 403, "{method}");
    }
    client.send_as_is(&Request::new("PUT", "/bucket/key").body(b"other")).fails(403, "AccessDenied");
    client.send_as_is(&Request::new("GET", "/bucket?list-type=2")).fails(403, "AccessDenied");
    assert_eq!(server.objects("bucket")["key"], "content");
}

#[test]
fn wrong_signatures_are_refused() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    let put = || Request::new("PUT", "/bucket/key").body(b"content");

    let secret_key = "larder/test+secret/key/0123456789abcdefh";
    client.send(Request { secret_key, ..put() }).fails(403, "SignatureDoesNotMatch");
    client.send(Request { access_key: "NOBODY", ..put() }).is(403);
    client.send(Request { region: "eu-west-1", ..put() }).fails(400, "AuthorizationHeaderMalformed");
    let old = put().header("x-amz-date", &date(Duration::from_hours(1)));
    client.send(old).fails(403, "RequestTimeTooSkewed");

    let mut elsewhere = put().signed(&server);
    elsewhere.target = "/bucket/other".to_owned();
    client.send_as_is(&elsewhere).fails(403, "SignatureDoesNotMatch");
    let added = put().signed(&server).header("x-amz-meta-color", "blue");
    client.send_as_is(&added).fails(403, "AccessDenied");
    let changed = put().signed(&server).body(b"contend");
    client.send_as_is(&changed).fails(400, "XAmzContentSHA256Mismatch");

    assert!(server.objects("bucket").is_empty());
    client.send(put()).is(200);
}

#[test]
fn wrong_checksums_are_refused() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    let put = || Request::new("PUT", "/bucket/key").body(b"123456789");
    let wrong = STANDARD.encode_to_string(Md5::digest(b"another"));
    client.send(put().header("content-md5", &wrong)).fails(400, "BadDigest");
    client.send(put().header("x-amz-checksum-crc32c", "AAAAAA==")).fails(400, "BadDigest");
    assert!(server.objects("bucket").is_empty());

    client.send(put().content_md5()).is(200);
    // The check value of CRC-32C (RFC 3720, appendix B.4, lists others) is 0xe3069283.
    let sum = STANDARD.encode_to_string([0xe3, 0x06, 0x92, 0x83]);
    let answer = client.send(put().header("x-amz-checksum-crc32c", &sum)).is(200);
    assert_eq!(answer.headers["x-amz-checksum-crc32c"], sum);
}

#[test]
fn a_connection_serves_many_requests_until_the_server_stops() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    for number in 0..50 {
        client.put("/bucket/key", format!("{number}").as_bytes()).is(200);
        assert_eq!(client.get("/bucket/key").is(200).text(), format!("{number}"));
        client.get("/bucket/none").fails(404, "NoSuchKey");
        client.send(Request::new("HEAD", "/bucket/none")).is(404);
    }
    assert_eq!(server.requests(), 200);

    let address = server.address();
    let mut stream = client.stream;
    drop(server);
    assert_eq!(stream.read(&mut [0]).unwrap_or(0), 0);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn a_body_is_requested_only_after_a_valid_signature() {
    let server = server_with_bucket();
    let put = Request::new("PUT", "/bucket/key").header("expect", "100-continue").body(b"content");
    let head = |request: Request| {
        let bytes = request.signed(&server).to_bytes(&server);
        bytes[..bytes.len() - b"content".len()].to_vec()
    };
    let mut client = Client::new(&server);
    client.stream.get_mut().write_all(&head(put.clone())).unwrap();
    assert_eq!(client.line(), "HTTP/1.1 100 Continue");
    assert_eq!(client.line(), "");
    client.stream.get_mut().write_all(b"content").unwrap();
    client.read("PUT").is(200);

    let wrong = Request { secret_key: "wrong", ..put };
    client.stream.get_mut().write_all(&head(wrong)).unwrap();
    client.read("PUT").fails(403, "SignatureDoesNotMatch");
}

#[test]
fn buckets_are_created_and_removed() {
    let server = S3Server::start();
    let mut client = Client::new(&server);
    client.send(Request::new("HEAD", "/bucket")).is(404);
    client.get("/bucket?list-type=2").fails(404, "NoSuchBucket");
    client.put("/bucket/key", b"content").fails(404, "NoSuchBucket");
    client.put("/bucket", b"").is(200);
    client.put("/bucket", b"").fails(409, "BucketAlreadyOwnedByYou");
    client.put("/zoo", b"").is(200);
    client.put("/B_d", b"").fails(400, "InvalidBucketName");
    let head = client.send(Request::new("HEAD", "/bucket")).is(200);
    assert_eq!(head.headers["x-amz-bucket-region"], REGION);
    assert_eq!(client.get("/").is(200).all("Name"), ["bucket", "zoo"]);

    // As on any bucket that is new.
    let location = client.get("/bucket?location").is(200);
    assert!(location.text().contains("LocationConstraint"), "{}", location.text());
    let versioning = client.get("/bucket?versioning").is(200);
    assert!(versioning.all("Status").is_empty(), "{}", versioning.text());
    client.get("/bucket?lifecycle").fails(404, "NoSuchLifecycleConfiguration");
    client.get("/bucket?object-lock").fails(404, "ObjectLockConfigurationNotFoundError");

    client.put("/bucket/key", b"content").is(200);
    client.send(Request::new("DELETE", "/bucket")).fails(409, "BucketNotEmpty");
    client.send(Request::new("DELETE", "/bucket/key")).is(204);
    client.send(Request::new("DELETE", "/bucket/key")).is(204);
    client.send(Request::new("DELETE", "/bucket")).is(204);
    client.send(Request::new("DELETE", "/bucket")).fails(404, "NoSuchBucket");
}

#[test]
fn objects_are_read_back_as_stored() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let put = Request::new("PUT", "/bucket/a%20b/%2B%C3%BC//..")
        .header("content-type", "text/x-test")
        .header("x-amz-meta-color", "blue")
        .body(&content);
    let etag = client.send(put).is(200).headers["etag"].clone();
    assert_eq!(etag, format!("\"{}\"", hex(&Md5::digest(&content))));
    assert_eq!(server.objects("bucket")["a b/+ü//.."], content);

    let target = "/bucket/a%20b/%2B%C3%BC//..";
    let whole = client.get(target).is(200);
    assert_eq!(whole.body, content);
    assert_eq!(whole.headers["etag"], etag);
    assert_eq!(whole.headers["content-type"], "text/x-test");
    assert_eq!(whole.headers["x-amz-meta-color"], "blue");
    assert!(whole.headers["last-modified"].ends_with("GMT"));
    let head = client.send(Request::new("HEAD", target)).is(200);
    assert_eq!(head.headers["content-length"], content.len().to_string());
    assert_eq!(head.headers["etag"], etag);

    for (range, want) in [
        ("bytes=0-0", 0..1),
        ("bytes=10-19", 10..20),
        ("bytes=1199990-", 1_199_990..1_200_000),
        ("bytes=1199990-9999999", 1_199_990..1_200_000),
        ("bytes=-7", 1_199_993..1_200_000),
    ] {
        let part = client.send(Request::new("GET", target).header("range", range)).is(206);
        assert_eq!(part.headers["content-range"], format!("bytes {}-{}/1200000", want.start, want.end - 1));
        assert_eq!(part.body, content[want], "{range}");
    }
    let behind = Request::new("GET", target).header("range", "bytes=1200000-");
    client.send(behind).fails(416, "InvalidRange");

    let get = |name, value: &str| Request::new("GET", target).header(name, value);
    let unchanged = client.send(get("if-none-match", &etag)).is(304);
    assert_eq!(unchanged.headers["etag"], etag);
    client.send(get("if-none-match", "\"0\"")).is(200);
    client.send(get("if-match", "\"0\"")).fails(412, "PreconditionFailed");
    assert_eq!(client.send(get("if-match", &etag)).is(200).body, content);
}

#[test]
fn writes_obey_their_conditions() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    let put = |name, value: &str| Request::new("PUT", "/bucket/key").header(name, value).body(b"new");
    client.send(put("if-match", "\"0\"")).fails(404, "NoSuchKey");
    let etag = client.send(put("if-none-match", "*")).is(200).headers["etag"].clone();
    client.send(put("if-none-match", "*")).fails(412, "PreconditionFailed");
    client.send(put("if-none-match", &etag)).is(501);
    client.send(put("if-match", "\"0\"")).fails(412, "PreconditionFailed");
    let newer = Request::new("PUT", "/bucket/key").header("if-match", &etag).body(b"newer");
    client.send(newer.clone()).is(200);
    client.send(newer).fails(412, "PreconditionFailed");
    assert_eq!(server.objects("bucket")["key"], "newer");

    let delete = |etag: &str| Request::new("DELETE", "/bucket/key").header("if-match", etag);
    client.send(delete(&etag)).fails(412, "PreconditionFailed");
    let etag = client.send(Request::new("HEAD", "/bucket/key")).headers["etag"].clone();
    client.send(delete(&etag)).is(204);
    assert!(server.objects("bucket").is_empty());
}

/// Sends 16 requests at the same time and returns the one that succeeded, when the others failed with 412.
fn winners(server: &S3Server, request: impl Fn(usize) -> Request + Sync) -> Vec<usize> {
    let start = Arc::new(Barrier::new(16));
    let statuses: Vec<u16> = thread::scope(|scope| {
        let racers: Vec<_> = (0..16)
            .map(|racer| {
                let (start, request) = (Arc::clone(&start), &request);
                scope.spawn(move || {
                    let mut client = Client::new(server);
                    let request = request(racer).signed(server);
                    start.wait();
                    client.send_as_is(&request).status
                })
            })
            .collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    assert!(statuses.iter().all(|status| matches!(status, 200 | 412)), "{statuses:?}");
    (0..16).filter(|racer| statuses[*racer] == 200).collect()
}

#[test]
fn one_of_16_racing_writers_wins() {
    let server = server_with_bucket();
    let content = |racer| vec![u8::try_from(racer).unwrap(); 100_000];
    for round in 0..5 {
        let key = format!("/bucket/{round}");
        let create = |racer| Request::new("PUT", &key).header("if-none-match", "*").body(&content(racer));
        let created = winners(&server, create);
        assert_eq!(created.len(), 1, "{created:?} created");
        assert_eq!(server.objects("bucket")[&key[8..]], content(created[0]));

        let etag = Client::new(&server).send(Request::new("HEAD", &key)).headers["etag"].clone();
        // Each content differs from the stored one, so that the first change ends the race.
        let replace = |racer| Request::new("PUT", &key).header("if-match", &etag).body(&content(racer + 16));
        let replaced = winners(&server, replace);
        assert_eq!(replaced.len(), 1, "{replaced:?} replaced");
        assert_eq!(server.objects("bucket")[&key[8..]], content(replaced[0] + 16));
    }
}

/// All keys and prefixes of a listing, and how many were on each page.
fn list(client: &mut Client<'_>, query: &str) -> (Vec<String>, Vec<String>, Vec<usize>) {
    let (mut keys, mut prefixes, mut pages) = (Vec::new(), Vec::new(), Vec::new());
    let mut token = String::new();
    loop {
        let page = client.get(&format!("/bucket?{token}{query}")).is(200);
        pages.push(page.one("KeyCount").parse().unwrap());
        keys.extend(page.all("Key"));
        for common in page.all("CommonPrefixes") {
            prefixes.push(common.replace("<Prefix>", "").replace("</Prefix>", ""));
        }
        if page.one("IsTruncated") == "false" {
            return (keys, prefixes, pages);
        }
        token = format!("continuation-token={}&", page.one("NextContinuationToken"));
    }
}

#[test]
fn listings_come_in_pages_and_in_byte_order() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    for number in 0..1005 {
        client.put(&format!("/bucket/many/{number:04}"), b"x").is(200);
    }
    for key in ["a-", "a/1", "a/2/3", "a/2/4", "a0", "%C3%BC%20%2B%26", "Z"] {
        client.put(&format!("/bucket/{key}"), b"x").is(200);
    }

    let (keys, _, pages) = list(&mut client, "list-type=2&max-keys=5000");
    assert_eq!(pages, [1000, 12]);
    assert_eq!(keys.len(), 1012);
    assert_eq!(keys[..6], ["Z", "a-", "a/1", "a/2/3", "a/2/4", "a0"]);
    assert_eq!(keys[1011], "ü +&amp;");
    assert!(keys.is_sorted());

    let (keys, _, pages) = list(&mut client, "list-type=2&max-keys=100&prefix=many%2F");
    assert_eq!((keys.len(), pages.len()), (1005, 11));
    let (keys, ..) = list(&mut client, "list-type=2&start-after=many%2F1003z");
    assert_eq!(keys, ["many/1004", "ü +&amp;"]);
    let (keys, ..) = list(&mut client, "encoding-type=url&list-type=2&start-after=n");
    assert_eq!(keys, ["%C3%BC+%2B%26"]);

    for entries in 1..5 {
        let query = format!("delimiter=%2F&list-type=2&max-keys={entries}");
        let (keys, prefixes, _) = list(&mut client, &query);
        assert_eq!((keys.len(), prefixes), (4, vec!["a/".to_owned(), "many/".to_owned()]));
        let query = format!("delimiter=%2F&list-type=2&max-keys={entries}&prefix=a%2F");
        let (keys, prefixes, _) = list(&mut client, &query);
        assert_eq!((keys, prefixes), (vec!["a/1".to_owned()], vec!["a/2/".to_owned()]));
    }
    assert_eq!(list(&mut client, "list-type=2&max-keys=0").2, [0]);
    client.get("/bucket?continuation-token=k6&list-type=2").fails(400, "InvalidArgument");
}

#[test]
fn a_batch_delete_removes_many_objects() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    for key in ["a", "b%26", "c", "d"] {
        client.put(&format!("/bucket/{key}"), b"x").is(200);
    }
    let delete = |keys: &[&str], more: &str| {
        let keys: Vec<_> = keys.iter().map(|key| element("Object", element("Key", key))).collect();
        let body = element("Delete", keys.concat() + more);
        Request::new("POST", "/bucket?delete").body(body.as_bytes())
    };
    client.send(delete(&["a"], "")).fails(400, "InvalidRequest");
    let wrong = delete(&["a"], "").content_md5().header("content-md5", "AAAAAAAAAAAAAAAAAAAAAA==");
    client.send(wrong).fails(400, "BadDigest");
    assert_eq!(server.objects("bucket").len(), 4);

    let answer = client.send(delete(&["a", "b&amp;", "none"], "").content_md5()).is(200);
    assert_eq!(answer.all("Key"), ["a", "b&amp;", "none"]);
    assert_eq!(server.objects("bucket").into_keys().collect::<Vec<_>>(), ["c", "d"]);
    let quiet = client.send(delete(&["c"], "<Quiet>true</Quiet>").content_md5()).is(200);
    assert!(quiet.all("Key").is_empty(), "{}", quiet.text());

    let stale = "<Object><ETag>&quot;0&quot;</ETag><Key>d</Key></Object>";
    let answer = client.send(delete(&[], stale).content_md5()).is(200);
    assert_eq!((answer.one("Key"), answer.one("Code")), ("d".to_owned(), "PreconditionFailed".to_owned()));
    client.send(delete(&["d"; 1001], "").content_md5()).fails(400, "MalformedXML");
    client.send(delete(&["d"; 1000], "").content_md5()).is(200);
    assert!(server.objects("bucket").is_empty());
}

#[test]
fn objects_are_copied() {
    let server = server_with_bucket();
    server.create_bucket("other");
    let mut client = Client::new(&server);
    client.put("/bucket/a%20b", b"content").is(200);
    let copy = |to: &str| Request::new("PUT", to).header("x-amz-copy-source", "bucket/a%20b");
    let answer = client.send(copy("/other/copy")).is(200);
    assert!(answer.one("ETag").contains(&hex(&Md5::digest(b"content"))));
    assert_eq!(server.objects("other")["copy"], "content");
    let again = copy("/other/copy").header("if-none-match", "*");
    client.send(again).fails(412, "PreconditionFailed");
    let stale = copy("/other/copy").header("x-amz-copy-source-if-match", "\"0\"");
    client.send(stale).fails(412, "PreconditionFailed");
    client.send(copy("/bucket/a%20b")).fails(400, "InvalidRequest");
    let none = copy("/other/copy").header("x-amz-copy-source", "bucket/none");
    client.send(none).fails(404, "NoSuchKey");
}

/// Uploads parts under a key, and gives what completes it.
fn uploaded(client: &mut Client<'_>, key: &str, parts: &[&[u8]]) -> Request {
    let id = client.send(Request::new("POST", &format!("{key}?uploads"))).is(200).one("UploadId");
    let mut named = String::new();
    for (part, number) in parts.iter().zip(1..) {
        let target = format!("{key}?partNumber={number}&uploadId={id}");
        let etag = client.put(&target, part).is(200).headers["etag"].clone();
        named.extend(["<Part>", &element("PartNumber", number), &element("ETag", etag), "</Part>"]);
    }
    let body = element("CompleteMultipartUpload", named);
    Request::new("POST", &format!("{key}?uploadId={id}")).body(body.as_bytes())
}

#[test]
fn large_objects_are_uploaded_in_parts() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    let first = vec![7; 5 << 20];
    let complete = uploaded(&mut client, "/bucket/key", &[&first, b"rest"]);
    assert!(server.objects("bucket").is_empty());
    assert_eq!(client.get("/bucket?uploads").is(200).all("Key"), ["key"]);
    let answer = client.send(complete.clone()).is(200);
    let digests = [Md5::digest(&first), Md5::digest(b"rest")].concat();
    assert!(answer.one("ETag").contains(&format!("{}-2", hex(&Md5::digest(digests)))));
    assert_eq!(server.objects("bucket")["key"], [first.as_slice(), b"rest"].concat());
    client.send(complete).fails(404, "NoSuchUpload");

    let again = uploaded(&mut client, "/bucket/key", &[&first, b"other"]);
    let text = String::from_utf8(again.body.clone()).unwrap();
    let with = |from: &str, to: &str| again.clone().body(text.replace(from, to).as_bytes());
    client.send(with("r>2<", "r>3<")).fails(400, "InvalidPart");
    client.send(with("r>2<", "r>1<")).fails(400, "InvalidPartOrder");
    client.send(with(&hex(&Md5::digest(b"other")), "0")).fails(400, "InvalidPart");
    client.send(again.clone().header("if-none-match", "*")).fails(412, "PreconditionFailed");
    client.send(again).is(200);
    let small = uploaded(&mut client, "/bucket/small", &[b"first", b"rest"]);
    client.send(small.clone()).fails(400, "EntityTooSmall");
    let abort = Request { method: "DELETE", ..small.body(b"") };
    client.send(abort.clone()).is(204);
    client.send(abort).fails(404, "NoSuchUpload");
    assert!(client.get("/bucket?uploads").is(200).all("Key").is_empty());
}

#[test]
fn uploads_are_listed_in_pages() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    for key in ["b", "a", "b", "c"] {
        client.send(Request::new("POST", &format!("/bucket/{key}?uploads"))).is(200);
    }
    let first = client.get("/bucket?max-uploads=2&uploads").is(200);
    assert_eq!(first.all("Key"), ["a", "b"]);
    assert_eq!(first.one("IsTruncated"), "true");
    let (key, id) = (first.one("NextKeyMarker"), first.one("NextUploadIdMarker"));
    let second = format!("/bucket?key-marker={key}&max-uploads=2&upload-id-marker={id}&uploads");
    let second = client.get(&second).is(200);
    assert_eq!(second.all("Key"), ["b", "c"]);
    assert_eq!(second.one("IsTruncated"), "false");
    assert_eq!(client.get("/bucket?prefix=b&uploads").is(200).all("Key"), ["b", "b"]);
}

#[test]
fn one_of_16_racing_uploads_wins() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    let completions: Vec<_> = (0..16)
        .map(|_| uploaded(&mut client, "/bucket/key", &[b"only"]))
        .map(|complete| complete.header("if-none-match", "*"))
        .collect();
    assert_eq!(winners(&server, |racer| completions[racer].clone()).len(), 1);
}

#[test]
fn a_bucket_can_be_addressed_by_host_name() {
    let server = server_with_bucket();
    let mut client = Client::new(&server);
    let host = format!("bucket.{DOMAIN}:{}", server.address().port());
    client.send(Request::new("PUT", "/key").header("host", &host).body(b"content")).is(200);
    assert_eq!(server.objects("bucket")["key"], "content");
    let host = format!("localhost:{}", server.address().port());
    client.send(Request::new("GET", "/bucket/key").header("host", &host)).is(200);
}

/// A connection that trusts what is in `roots`.
fn tls(server: &S3Server, name: &str, roots: RootCertStore) -> StreamOwned<ClientConnection, TcpStream> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    let stream = TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    StreamOwned::new(connection, stream)
}

#[test]
fn a_tls_server_presents_its_certificate() {
    let server = S3Server::start_tls();
    server.create_bucket("bucket");
    assert!(server.url().starts_with("https://127.0.0.1:"));
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(server.identity().ca_pem.as_bytes()).unwrap()).unwrap();
    for name in ["127.0.0.1", "localhost", DOMAIN, &format!("bucket.{DOMAIN}")] {
        let stream = tls(&server, name, roots.clone());
        let mut client = Client { server: &server, stream: BufReader::new(stream) };
        client.put("/bucket/key", b"content").is(200);
        assert_eq!(client.get("/bucket/key").is(200).text(), "content");
        let leaf = &client.stream.get_ref().conn.peer_certificates().unwrap()[0];
        assert_eq!(Sha256::digest(leaf)[..], server.identity().fingerprint);
    }

    let failed = tls(&server, "elsewhere.test", roots).write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap_err();
    assert!(failed.to_string().contains("certificate"), "{failed}");
    let failed = tls(&server, "localhost", RootCertStore::empty()).write_all(b"GET").unwrap_err();
    assert!(failed.to_string().contains("certificate"), "{failed}");
}
