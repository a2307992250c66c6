//! The S3 client against a server that others wrote the protocol of, in this process.

use bytes::Bytes;
use futures::executor::block_on;
use futures::future::join_all;
use larder::error::ErrorKind;
use larder::http::HttpClient;
use larder::internal::s3::{Condition, ListRequest, PresignedMethod, Requests as _, opened_connections};
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{
    Addressing, Credentials, Operation, RateLimits, RequestOutcome, S3Client, S3Options, StaticCredentials,
};
use larder_testing::bucket::attempts;
use larder_testing::s3_server::{ACCESS_KEY, S3Server, SECRET_KEY};
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;

struct Setup {
    client: S3Client,
    http: Arc<HttpClient>,
    server: S3Server,
}

fn options(server: &S3Server) -> S3Options {
    let credentials = Credentials::new(ACCESS_KEY, SECRET_KEY);
    S3Options::new(server.url(), "bucket").credentials(Arc::new(StaticCredentials::new(credentials)))
}

fn set_up_with(change: impl FnOnce(S3Options) -> S3Options) -> Setup {
    let server = S3Server::start();
    server.create_bucket("bucket");
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
    let client = S3Client::new(runtime, http.clone(), change(options(&server))).unwrap();
    Setup { client, http, server }
}

fn set_up() -> Setup {
    set_up_with(|options| options)
}

fn random(length: usize) -> Bytes {
    larder_testing::noise(1, length).into()
}

#[test]
fn an_object_is_read_back_as_it_was_stored() {
    let Setup { client, server, .. } = set_up();
    block_on(async {
        for (key, length) in [("empty", 0), ("one", 1), ("dir/16 KiB", 16 << 10), ("4 MiB", 4 << 20)] {
            let body = random(length);
            let etag = client.raw().put(key, body.clone(), &Condition::Always).await.unwrap();
            let (found, head) = client.raw().get(key, length as u64).await.unwrap();
            assert_eq!(found, body, "{key}");
            assert_eq!((head.etag.as_str(), head.size), (etag.as_str(), length as u64));
            let looked = client.raw().head(key).await.unwrap();
            // The answers may come in different seconds.
            assert!(looked.answered >= head.answered);
            assert_eq!(
                (looked.etag, looked.last_modified, looked.size),
                (head.etag, head.last_modified, head.size)
            );
            assert_eq!(server.objects("bucket")[key], body);
        }
        assert_eq!(client.raw().get("4 MiB", 1 << 20).await.unwrap_err().kind(), ErrorKind::Corrupt);
        for missing in
            [client.raw().get("missing", 1).await.map(drop), client.raw().head("missing").await.map(drop)]
        {
            assert_eq!(missing.unwrap_err().kind(), ErrorKind::NotFound);
        }
    });
}

#[test]
fn a_range_read_returns_exactly_the_requested_bytes() {
    let Setup { client, server: _server, .. } = set_up();
    block_on(async {
        let body = random(1000);
        client.raw().put("k", body.clone(), &Condition::Always).await.unwrap();
        for range in [0..1, 0..1000, 999..1000, 17..423] {
            let (found, head) = client.raw().get_range("k", range.clone()).await.unwrap();
            let bounds = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            assert_eq!((found, head.size), (body.slice(bounds), 1000));
        }
        #[expect(clippy::reversed_empty_ranges, reason = "it is to be refused")]
        for range in [0..1001, 1000..1001, 5..5, 7..3] {
            let refused = client.raw().get_range("k", range.clone()).await.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{range:?}");
        }
        assert_eq!(client.raw().get_range("missing", 0..1).await.unwrap_err().kind(), ErrorKind::NotFound);
    });
}

#[test]
fn conditional_requests_obey_their_conditions() {
    let Setup { client, server: _server, .. } = set_up();
    block_on(async {
        let (one, two) = (Bytes::from_static(b"one"), Bytes::from_static(b"two"));
        let etag = client.raw().put("k", one.clone(), &Condition::Absent).await.unwrap();
        let again = client.raw().put("k", two.clone(), &Condition::Absent).await.unwrap_err();
        assert_eq!(again.kind(), ErrorKind::AlreadyExists);
        let other = Condition::Tag("\"00000000000000000000000000000000\"".to_owned());
        assert_eq!(client.raw().put("k", two.clone(), &other).await.unwrap_err().kind(), ErrorKind::Conflict);
        assert_eq!(
            client.raw().put("missing", two.clone(), &other).await.unwrap_err().kind(),
            ErrorKind::Conflict
        );
        assert_eq!(client.raw().get("k", 3).await.unwrap().0, one);
        let next = client.raw().put("k", two.clone(), &Condition::Tag(etag.clone())).await.unwrap();
        assert_ne!(next, etag);
        assert_eq!(
            client.raw().delete("k", &Condition::Tag(etag)).await.unwrap_err().kind(),
            ErrorKind::Conflict
        );
        let _ = client.raw().delete("k", &Condition::Tag(next)).await.unwrap();
        let _ = client.raw().delete("k", &Condition::Always).await.unwrap();
        let racers = (0..16).map(|number| client.raw().put("raced", random(number), &Condition::Absent));
        let racers = join_all(racers).await;
        let winners = racers.iter().filter(|result| result.is_ok()).count();
        assert_eq!(winners, 1, "{racers:?}");
    });
}

/// Proves H111.
#[test]
fn objects_with_any_key_are_stored_listed_and_deleted() {
    let Setup { client, server, .. } = set_up();
    let keys = [
        "a b",
        "a+b",
        "a%20b",
        "a%2Fb",
        "ä/ö/ü",
        "\u{1f4be}",
        "a//b",
        "a/./b",
        "a/../b",
        "tail/",
        "q?x=1&y#z",
        "quote\"'<>&;",
        ":@!$*()=,",
        "~-._",
        "tab\tkey",
    ];
    block_on(async {
        for key in keys {
            client.raw().put(key, Bytes::copy_from_slice(key.as_bytes()), &Condition::Always).await.unwrap();
            assert_eq!(client.raw().get(key, 100).await.unwrap().0, key, "{key:?}");
        }
        let mut stored: Vec<_> = server.objects("bucket").into_keys().collect();
        let listed = client.raw().list(&ListRequest::new(""), None).await.unwrap();
        let listed: Vec<_> = listed.listing.objects.into_iter().map(|object| object.key).collect();
        assert_eq!(listed, stored);
        stored.sort();
        let mut wanted = keys.map(str::to_owned).to_vec();
        wanted.sort();
        assert_eq!(stored, wanted);
        client.raw().copy("a+b", "copy of a+b").await.unwrap();
        assert_eq!(client.raw().get("copy of a+b", 10).await.unwrap().0, "a+b");
        assert_eq!(client.raw().copy("missing", "x").await.unwrap_err().kind(), ErrorKind::NotFound);
        let results = client.raw().delete_many(&keys).await.unwrap();
        assert!(results.iter().all(Result::is_ok), "{results:?}");
        assert_eq!(server.objects("bucket").into_keys().collect::<Vec<_>>(), ["copy of a+b"]);
    });
}

/// Proves H12.
#[test]
fn listings_are_complete_and_in_order() {
    let Setup { client, server: _server, .. } = set_up();
    block_on(async {
        let keys: Vec<_> = (0..25).map(|number| format!("p/{}/{number:02}", number % 3)).collect();
        for key in &keys {
            client.raw().put(key, Bytes::new(), &Condition::Always).await.unwrap();
        }
        client.raw().put("q", Bytes::new(), &Condition::Always).await.unwrap();
        let mut request = ListRequest::new("p/");
        request.max_keys = Some(4);
        let (mut found, mut token, mut pages) = (Vec::new(), None, 0);
        loop {
            let page = client.raw().list(&request, token.as_deref()).await.unwrap();
            found.extend(page.listing.objects.into_iter().map(|object| object.key));
            pages += 1;
            let Some(next) = page.next else { break };
            token = Some(next);
        }
        let mut sorted = keys.clone();
        sorted.sort();
        assert_eq!((found, pages), (sorted.clone(), 7));
        request.max_keys = None;
        request.start_after = Some("p/1/16".to_owned());
        let page = client.raw().list(&request, None).await.unwrap();
        let after: Vec<_> = sorted.into_iter().filter(|key| key.as_str() > "p/1/16").collect();
        assert_eq!(page.listing.objects.into_iter().map(|object| object.key).collect::<Vec<_>>(), after);
        let mut folded = ListRequest::new("p/");
        folded.fold = true;
        let page = client.raw().list(&folded, None).await.unwrap();
        assert_eq!(page.listing.common_prefixes, ["p/0/", "p/1/", "p/2/"]);
        assert!(page.listing.objects.is_empty());
    });
}

/// Proves H116.
#[test]
fn any_number_of_objects_is_deleted() {
    let Setup { client, server, .. } = set_up();
    block_on(async {
        assert!(client.raw().delete_many(&[]).await.unwrap().is_empty());
        assert_eq!(server.requests(), 0);
        for count in [1, 999, 1000, 1001] {
            client.raw().put("k0", Bytes::new(), &Condition::Always).await.unwrap();
            let keys: Vec<_> = (0..count).map(|number| format!("k{number}")).collect();
            let keys: Vec<_> = keys.iter().map(String::as_str).collect();
            let results = client.raw().delete_many(&keys).await.unwrap();
            assert!(results.len() == count && results.iter().all(Result::is_ok));
            assert!(server.objects("bucket").is_empty());
        }
        assert_eq!(attempts(&client, Operation::DeleteMany, RequestOutcome::Answered), 1 + 1 + 1 + 2);
    });
}

#[test]
fn buckets_are_created_and_checked() {
    let server = S3Server::start();
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
    let client = S3Client::new(runtime, http, options(&server)).unwrap();
    block_on(async {
        assert!(!client.raw().has_bucket().await.unwrap());
        assert_eq!(
            client.raw().get("k", 1).await.unwrap_err().kind(),
            ErrorKind::InvalidInput,
            "no bucket is no absence"
        );
        client.raw().create_bucket().await.unwrap();
        assert!(client.raw().has_bucket().await.unwrap());
        assert_eq!(client.raw().create_bucket().await.map_err(|error| error.kind()).unwrap_or(()), ());
        assert_eq!(client.raw().keeps_versions().await.unwrap(), Some(false));
        assert_eq!(client.raw().lifecycle().await.unwrap(), Some(Vec::new()));
    });
}

#[test]
fn wrong_credentials_are_denied_without_a_retry() {
    let Setup { client, server, .. } = set_up_with(|options| {
        let wrong = Credentials::new(ACCESS_KEY, "wrong");
        options.credentials(Arc::new(StaticCredentials::new(wrong)))
    });
    let refused = block_on(client.raw().put("k", Bytes::from_static(b"x"), &Condition::Always)).unwrap_err();
    assert_eq!((refused.kind(), server.requests()), (ErrorKind::Denied, 1));
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(source.contains("SignatureDoesNotMatch"), "{source}");
}

/// Proves H149.
#[test]
fn connections_are_reused() {
    let Setup { client, http, server } = set_up();
    block_on(async {
        client.raw().put("k", random(100_000), &Condition::Always).await.unwrap();
        for _ in 0..50 {
            client.raw().get("k", 100_000).await.unwrap();
        }
        assert_eq!((opened_connections(&http), server.requests()), (1, 51), "{:?}", client.stats());
        join_all((0..8).map(|_| client.raw().get("k", 100_000))).await;
        assert!(opened_connections(&http) <= 8);
    });
}

/// Proves H148, H150, H188.
#[test]
fn concurrent_requests_never_exceed_the_limit() {
    let Setup { client, http, server: _server } =
        set_up_with(|options| options.concurrency(NonZeroU32::new(3).unwrap()));
    block_on(async {
        client.raw().put("k", random(100_000), &Condition::Always).await.unwrap();
        for result in join_all((0..40).map(|_| client.raw().get("k", 100_000))).await {
            result.unwrap();
        }
        assert!(opened_connections(&http) <= 3, "{http:?}");
    });
}

/// Proves H151, H188.
#[test]
fn rate_limits_apply_to_every_request() {
    let limits = {
        let mut limits = RateLimits::default();
        limits.reads = NonZeroU64::new(20);
        limits
    };
    let Setup { client, server: _server, .. } = set_up_with(|options| options.limits(limits));
    block_on(async {
        client.raw().put("k", Bytes::new(), &Condition::Always).await.unwrap();
        let runtime = ThreadRuntime::new();
        let start = runtime.monotonic();
        for result in join_all((0..30).map(|_| client.raw().get("k", 0))).await {
            result.unwrap();
        }
        // 20 at once, and the other 10 at 20 a second.
        assert!(runtime.monotonic() >= start + std::time::Duration::from_millis(490));
    });
}

#[test]
fn the_bucket_can_be_part_of_the_host_name() {
    let server = S3Server::start();
    server.create_bucket("bucket");
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
    // An IP address has no labels in front: the path it is.
    let client = S3Client::new(runtime, http, options(&server).addressing(Addressing::VirtualHost)).unwrap();
    block_on(client.raw().put("k", Bytes::new(), &Condition::Always)).unwrap();
    assert_eq!(server.objects("bucket").len(), 1);
}

#[cfg(feature = "tls")]
mod tls {
    use larder::http::{HttpOptions, TlsOptions};

    use super::*;

    fn client(server: &S3Server, tls: TlsOptions) -> S3Client {
        let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
        let http = HttpClient::new(Arc::clone(&runtime), HttpOptions::default().tls(tls)).unwrap();
        S3Client::new(runtime, Arc::new(http), options(server)).unwrap()
    }

    /// Proves H146.
    #[test]
    fn no_request_is_sent_to_a_server_with_another_certificate() {
        let server = S3Server::start_tls();
        server.create_bucket("bucket");
        let identity = server.identity();
        let hex: Vec<_> = identity.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
        let hex = hex.concat();
        let wrong = hex.replace(['0', '1'], "2").parse().unwrap();
        let trusted = TlsOptions::default().root_certificates(identity.ca_pem.as_bytes());
        let pinned = TlsOptions::default().fingerprint(hex.parse().unwrap());
        block_on(async {
            for tls in [trusted.clone(), pinned] {
                let client = client(&server, tls);
                let body = random(3_000_000);
                client.raw().put("k", body.clone(), &Condition::Always).await.unwrap();
                assert_eq!(client.raw().get("k", 3_000_000).await.unwrap().0, body);
            }
            let before = server.requests();
            for tls in [TlsOptions::default(), trusted.fingerprint(wrong)] {
                let refused = client(&server, tls).raw().get("k", 1).await.unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Denied, "{refused:?}");
            }
            assert_eq!(server.requests(), before);
        });
    }

    /// Proves H146.
    #[test]
    fn each_crypto_provider_verifies_servers() {
        use larder::http::TlsProvider;
        let server = S3Server::start_tls();
        server.create_bucket("bucket");
        let trusted = || TlsOptions::default().root_certificates(server.identity().ca_pem.as_bytes());
        for provider in [TlsProvider::AwsLcRs, TlsProvider::Ring] {
            if provider == TlsProvider::AwsLcRs && !cfg!(feature = "aws-lc-rs") {
                let options = HttpOptions::default().tls(trusted().provider(provider));
                let refused = HttpClient::new(Arc::new(ThreadRuntime::new()), options).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Unsupported);
                continue;
            }
            let trusting = client(&server, trusted().provider(provider));
            let body = random(3_000_000);
            block_on(async {
                trusting.raw().put("k", body.clone(), &Condition::Always).await.unwrap();
                assert_eq!(trusting.raw().get("k", 3_000_000).await.unwrap().0, body, "{provider:?}");
            });
            let before = server.requests();
            let unknown = TlsOptions::default().provider(provider);
            let refused = block_on(client(&server, unknown).raw().has_bucket()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Denied, "{provider:?}: {refused:?}");
            assert_eq!(server.requests(), before, "{provider:?}");
        }
    }

    /// Proves H146.
    #[cfg(feature = "rustls-0_23")]
    #[test]
    fn a_configuration_of_the_caller_verifies_servers() {
        use tokio_rustls::rustls::crypto::ring;
        use tokio_rustls::rustls::pki_types::CertificateDer;
        use tokio_rustls::rustls::pki_types::pem::PemObject as _;
        use tokio_rustls::rustls::{ClientConfig, RootCertStore};
        let server = S3Server::start_tls();
        server.create_bucket("bucket");
        let (mut trusted, others) = (RootCertStore::empty(), RootCertStore::empty());
        let certificate = CertificateDer::from_pem_slice(server.identity().ca_pem.as_bytes()).unwrap();
        trusted.add(certificate).unwrap();
        let options = |roots: RootCertStore| {
            let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
            let builder = builder.with_safe_default_protocol_versions().unwrap();
            let config = builder.with_root_certificates(roots).with_no_client_auth();
            TlsOptions::default().client_config(Arc::new(config))
        };
        assert!(block_on(client(&server, options(trusted)).raw().has_bucket()).unwrap());
        let before = server.requests();
        let refused = block_on(client(&server, options(others)).raw().has_bucket()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Denied, "{refused:?}");
        assert_eq!(server.requests(), before);
    }

    /// Proves H146.
    #[test]
    fn an_invalid_certificate_is_refused_unless_it_is_pinned() {
        use larder_testing::s3_server::Flaw;
        for flaw in [Flaw::Expired, Flaw::NotYetValid, Flaw::OtherNames] {
            let server = S3Server::start_flawed(flaw);
            server.create_bucket("bucket");
            let identity = server.identity();
            let trusted = TlsOptions::default().root_certificates(identity.ca_pem.as_bytes());
            let refused = block_on(client(&server, trusted).raw().has_bucket()).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::Denied, "{flaw:?}: {refused:?}");
            assert_eq!(server.requests(), 0, "{flaw:?}");
            let hex: Vec<_> = identity.fingerprint.iter().map(|byte| format!("{byte:02x}")).collect();
            let pinned = TlsOptions::default().fingerprint(hex.concat().parse().unwrap());
            assert!(block_on(client(&server, pinned).raw().has_bucket()).unwrap(), "{flaw:?}");
        }
    }
}

/// Proves H118.
#[test]
fn large_objects_are_stored_in_parts() {
    let Setup { client, server, .. } =
        set_up_with(|options| options.parts(6 << 20, NonZeroU64::new(5 << 20).unwrap()));
    let bytes = random((10 << 20) + 7);
    block_on(async {
        let etag = client.raw().put("large \u{e4}/+", bytes.clone(), &Condition::Always).await.unwrap();
        assert!(etag.trim_matches('"').ends_with("-3"), "{etag}");
        let (found, head) = client.raw().get("large \u{e4}/+", u64::MAX).await.unwrap();
        assert!(found == bytes);
        assert_eq!(head.etag, etag);
        assert_eq!(attempts(&client, Operation::Multipart, RequestOutcome::Answered), 2);
        assert_eq!(attempts(&client, Operation::Put, RequestOutcome::Answered), 3);
        // A condition is obeyed.
        let again = client.raw().put("large \u{e4}/+", bytes.clone(), &Condition::Absent).await;
        assert_eq!(again.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(client.raw().open_uploads("").await.unwrap().len(), 0);
    });
    assert_eq!(server.objects("bucket").len(), 1);
}

/// Sends a request without any header of the protocol, and returns status and body.
fn plainly(method: &str, address: &str, body: &[u8]) -> (u16, Vec<u8>) {
    use std::io::{Read as _, Write as _};
    let (authority, path) = address.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut stream = std::net::TcpStream::connect(authority).unwrap();
    let head = format!(
        "{method} /{path} HTTP/1.1\r\nHost: {authority}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
    (std::str::from_utf8(&answer[9..12]).unwrap().parse().unwrap(), answer[end + 4..].to_vec())
}

#[test]
fn a_presigned_url_permits_one_method_on_one_object() {
    let Setup { client, server, .. } = set_up();
    let key = "dir/with space+plus%25\u{e4}//x";
    let hour = std::time::Duration::from_hours(1);
    let sign = |method, key: &str| block_on(client.raw().presign(method, key, hour)).unwrap();
    assert_eq!(plainly("PUT", &sign(PresignedMethod::Put, key), b"body").0, 200);
    assert_eq!(server.objects("bucket")[key], "body");
    let get = sign(PresignedMethod::Get, key);
    assert_eq!(plainly("GET", &get, b""), (200, b"body".to_vec()));
    assert_eq!(plainly("HEAD", &sign(PresignedMethod::Head, key), b"").0, 200);
    assert_eq!(plainly("DELETE", &get, b"").0, 403, "for something else");
    assert_eq!(plainly("GET", &get.replace("space", "another"), b"").0, 403, "for another object");
    assert_eq!(plainly("GET", get.split('?').next().unwrap(), b"").0, 403, "without a signature");
    assert!(!get.contains(SECRET_KEY));
    assert_eq!(plainly("DELETE", &sign(PresignedMethod::Delete, key), b"").0, 204);
    for lifetime in [std::time::Duration::ZERO, 8 * 24 * hour] {
        let refused = block_on(client.raw().presign(PresignedMethod::Get, key, lifetime)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
    }
}
