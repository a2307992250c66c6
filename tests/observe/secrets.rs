//! No secret is in a log: a bucket with known secrets, at the level of TRACE, with failures.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures::executor::block_on;
use futures::io::Cursor;
use larder::backend::S3Backend;
use larder::crypt::EncryptionKey;
use larder::http::HttpClient;
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{Credentials, RequestOutcome, RetryOptions, S3Client, S3Options, StaticCredentials};
use larder::store::{Datastore, Options, WriterTarget};
use larder_testing::fault_server::{Action, FaultServer, Options as ServerOptions, Rule};
use larder_testing::noise;
use tracing::Level;

use crate::collect::{Collector, Metrics};
use crate::nightly::manual_names;

const KEY: &str = "AKIAVISIBLEONLYINHEADERS";
const SECRET: &str = "wJalrSECRETofTHEtest";
const ENCRYPTION_KEY: [u8; 32] = *b"ThirtyTwoBytesOfTheSecretOfATest";
const TOKEN: &str = "FwoGTOKENofTHEtest";

/// A text that contains no part of a secret.
fn checked(text: String) -> String {
    let hex = ENCRYPTION_KEY.map(|byte| format!("{byte:02x}")).concat();
    let list = format!("{ENCRYPTION_KEY:?}");
    let encryption_key = str::from_utf8(&ENCRYPTION_KEY).unwrap();
    for secret in [KEY, SECRET, TOKEN, &hex[..16], &list[1..20], encryption_key] {
        assert!(!text.contains(secret), "{secret} is logged");
    }
    text
}

/// Threads of the runtime log too, so subscriber and recorder are those of the process. No other test of this file sends requests.
#[test]
fn no_secret_is_logged_and_requests_are_counted() {
    let (collector, metrics) = (Collector::new(Level::TRACE), Metrics::default());
    tracing::subscriber::set_global_default(collector.clone()).unwrap();
    metrics::set_global_recorder(metrics.clone()).unwrap();
    let server = FaultServer::start(ServerOptions::default());
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
    let credentials = StaticCredentials::new(Credentials::new(KEY, SECRET).session_token(TOKEN));
    let mut retry = RetryOptions::default();
    (retry.max_backoff, retry.attempts) = (Duration::from_millis(5), NonZeroU32::new(3).unwrap());
    let options = S3Options::new(server.url(), "bucket").credentials(Arc::new(credentials)).retry(retry);
    let client = S3Client::new(Arc::clone(&runtime), http, options).unwrap();
    block_on(async {
        let found = client.probe("store/").await.unwrap();
        let backend = S3Backend::new(Arc::clone(&runtime), client.clone(), "store", found, &[]).unwrap();
        let store = Datastore::create(Arc::new(backend), Options::default()).await.unwrap();
        assert!((metrics.gauge("larder_lease_held{place=bucket/store/.larder/lease}") - 1.0).abs() < 0.1);
        server.add(Rule::on("PUT").first(2).then(Action::status(503, "SlowDown")));
        let key = EncryptionKey::from_bytes(&ENCRYPTION_KEY);
        let backup = store.backup(&"vm/1".parse().unwrap()).encrypt(&key).begin().await.unwrap();
        let bytes = noise(1, 1 << 17);
        backup.image("d.img", Cursor::new(&bytes), 1 << 17).chunk_bytes(1 << 16).await.unwrap();
        let snapshot = backup.finish().await.unwrap().snapshot;
        let archive = snapshot.archive("d.img").await.unwrap();
        archive.copy_to(&mut WriterTarget::new(Cursor::new(Vec::new()))).await.unwrap();
        let mut locked = store.snapshot(snapshot.name()).await.unwrap();
        locked.archive("d.img").await.unwrap_err();
        locked.unlock(&EncryptionKey::from_bytes(&[1; 32])).unwrap_err();
        drop(locked);
        server.add(Rule::on("GET").then(Action::status(403, "SignatureDoesNotMatch")));
        store.group_notes(&"vm/1".parse().unwrap()).await.unwrap_err();
        server.clear();
        drop((archive, snapshot));
        store.close().await.unwrap();
    });
    let text = checked(collector.text());
    let signature = |header: &str| header.rsplit("Signature=").next().unwrap().to_owned();
    let log = server.log();
    let signatures: Vec<_> =
        log.iter().filter_map(|request| request.header("authorization")).map(signature).collect();
    assert!(signatures.len() > 20 && signatures.iter().all(|one| one.len() == 64));
    assert!(signatures.iter().all(|one| !text.contains(one)), "a signature is logged");
    assert!(!text.contains("AWS4-HMAC-SHA256") && !text.to_lowercase().contains("x-amz-security-token"));
    let warnings = collector.events().into_iter().filter(|event| event.level == Level::WARN);
    let retry = warnings.into_iter().find(|event| event.name.starts_with("a request is repeated")).unwrap();
    assert_eq!(retry.name, "a request is repeated: 503 SlowDown");
    assert!(
        collector
            .spans("s3_request")
            .iter()
            .any(|span| span.get("key").is_some_and(|key| key.ends_with(".fidx")))
    );
    let counts = client.stats().counts;
    let attempts: u64 = counts.iter().map(|count| count.attempts).sum();
    assert_eq!(metrics.sum("larder_s3_requests"), attempts);
    assert_eq!(metrics.samples("larder_s3_request_seconds"), attempts);
    assert_eq!(metrics.sum("larder_s3_bytes_out"), counts.iter().map(|count| count.bytes_out).sum::<u64>());
    let throttled = counts.iter().filter(|count| count.outcome == RequestOutcome::Throttled);
    assert_eq!(metrics.sum("larder_s3_retries"), throttled.map(|count| count.attempts).sum::<u64>());
    assert!(metrics.gauge("larder_lease_held{place=bucket/store/.larder/lease}").abs() < 0.1);
    manual_names(&metrics);
}
