//! The backend in a bucket: the probe, the conformance suite, and the same against any server that is named, as `tests/support/bucket.rs`
//! says. Without one, only servers in this process are tested.

use bytes::Bytes;
use futures::executor::block_on;
use larder::backend::conformance::Suite;
use larder::backend::{Backend, S3Backend};
use larder::error::ErrorKind;
use larder::http::{HttpClient, HttpOptions};
use larder::internal::s3::{Condition, ListRequest, Requests as _};
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{
    Credentials, Operation, RequestOutcome, RetryOptions, Risk, S3Capabilities, S3Client, S3Options,
    StaticCredentials, Support,
};
use larder_testing::bucket::{Bucket, attempts};
use larder_testing::fault_server;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

fn client(options: S3Options, http: HttpOptions) -> (Arc<dyn Runtime>, S3Client) {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), http).unwrap());
    let options = options.parts(6 << 20, NonZeroU64::new(5 << 20).unwrap());
    let client = S3Client::new(Arc::clone(&runtime), http, options).unwrap();
    (runtime, client)
}

fn faulty(server: &fault_server::FaultServer) -> (Arc<dyn Runtime>, S3Client) {
    let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
    client(S3Options::new(server.url(), "bucket").credentials(credentials), larder_testing::plaintext())
}

/// Entries of a page of a listing, in servers that differ from others only in their dialect.
const PAGE: usize = 100;

/// Probes, and puts a backend for an empty store through the suite. Listings have pages of this length.
async fn conforms(runtime: Arc<dyn Runtime>, client: S3Client, store: &str, page: usize) -> S3Capabilities {
    let server = client.probe(&format!("{store}/")).await.unwrap();
    let backend = S3Backend::new(runtime, client.clone(), store, server.clone(), &[]).unwrap();
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let suite = Suite::default().paging(u32::try_from(page).unwrap() + 1).foreign(|path| {
        let (client, place) = (client.clone(), if path.starts_with(".chunks/") { "" } else { ".cnt/" });
        let key = format!("{store}/{place}{path}");
        async move {
            client.raw().put(&key, "foreign".into(), &Condition::Always).await.unwrap();
        }
    });
    suite.run(&backend).await;
    stores_in_parts(&client, &format!("{store}/large \u{e4}+")).await;
    server
}

/// An object in three parts, and an upload that is begun and aborted.
async fn stores_in_parts(client: &S3Client, key: &str) {
    let body = Bytes::from(larder_testing::counting((10 << 20) + 7));
    let tag = client.raw().put(key, body.clone(), &Condition::Always).await.unwrap();
    let (found, head) = client.raw().get(key, u64::MAX).await.unwrap();
    assert!(found == body);
    assert_eq!((head.etag, head.size), (tag, body.len() as u64));
    assert_eq!(attempts(client, Operation::Multipart, RequestOutcome::Answered), 2);
    assert_eq!(client.raw().open_uploads(key).await.unwrap(), []);
    let _ = client.raw().delete(key, &Condition::Always).await.unwrap();
}

#[test]
fn a_bucket_on_a_server_with_all_capabilities_conforms() {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let bucket = Bucket::in_process(Arc::clone(&runtime));
    let found = block_on(conforms(runtime, bucket.client.clone(), "store", 1000));
    let objects = [found.ranges, found.listing, found.copy, found.create_only_put, found.conditional_put];
    let others = [found.multi_delete, found.conditional_delete, found.checks_bodies];
    assert!(objects.iter().chain(&others).all(|support| *support == Support::Yes), "{found:?}");
    assert_eq!((found.quoted_tags, found.expires_objects), (true, Some(false)));
}

/// Makes sure that these dialects are found out, and what conditions on puts and deletions of many are worth there.
fn found_out(dialects: &[(Option<fault_server::Quirk>, Support, Support)]) {
    use larder_testing::fault_server::{FaultServer, Options};
    for &(quirk, create_only, many) in dialects {
        let server = FaultServer::start(Options { page: PAGE, ..Options::with(quirk) });
        let (runtime, client) = faulty(&server);
        let found = block_on(conforms(runtime, client, "store", PAGE));
        assert_eq!((found.create_only_put, found.multi_delete), (create_only, many), "{quirk:?}");
    }
}

/// Proves H112.
#[test]
fn servers_without_conditional_requests_conform_within_their_capabilities() {
    use larder_testing::fault_server::Quirk;
    let yes = Support::Yes;
    found_out(&[
        (Some(Quirk::ConditionsIgnored), Support::Ignored, yes),
        (Some(Quirk::ConditionsRejected), Support::Refused, yes),
        (Some(Quirk::MultiDeleteRejected), yes, Support::Refused),
    ]);
}

/// Proves H112.
#[test]
fn the_probe_recognises_each_server_dialect_and_the_bucket_conforms() {
    use larder_testing::fault_server::Quirk;
    let yes = Support::Yes;
    let dialects = [
        None,
        Some(Quirk::KeepAliveNever),
        Some(Quirk::EncodingOfSlash),
        Some(Quirk::ContentMd5Needed),
        Some(Quirk::StartAfterOutside),
    ];
    found_out(&dialects.map(|quirk| (quirk, yes, yes)));
}

/// Proves H106.
#[test]
fn a_bucket_conforms_with_any_form_of_etag() {
    use larder_testing::fault_server::{Etags, FaultServer, Options};
    for etags in [Etags::Md5, Etags::Token, Etags::Unquoted, Etags::Weak] {
        let server = FaultServer::start(Options { etags, page: PAGE, ..Options::default() });
        let (runtime, client) = faulty(&server);
        let found = block_on(conforms(runtime, client, "store", PAGE));
        assert_eq!(found.create_only_put, Support::Yes, "{etags:?}");
    }
}

/// Proves H112.
#[test]
fn a_server_with_inconsistent_reads_or_listings_is_refused() {
    use larder_testing::fault_server::{FaultServer, Options, Quirk};
    for quirk in [Quirk::StartAfterIgnored, Quirk::ListUnordered] {
        let server = FaultServer::start(Options::with([quirk]));
        let (runtime, client) = faulty(&server);
        match block_on(client.probe("store/")) {
            // A few keys may be in order by chance; of many it is noticed whenever they are listed.
            Ok(found) if found.listing == Support::Yes && quirk == Quirk::ListUnordered => {
                for number in 0..20 {
                    server.put(&number.to_string(), Vec::new());
                }
                let refused = block_on(client.raw().list(&ListRequest::new(""), None)).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Unavailable);
            }
            Ok(found) => {
                let refused = S3Backend::new(runtime, client, "store", found, &[]).unwrap_err();
                assert_eq!(refused.kind(), ErrorKind::Unsupported, "{quirk:?}");
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{quirk:?}"),
        }
    }
    let server = FaultServer::start(Options::with([Quirk::RangeIgnored]));
    let found = block_on(faulty(&server).1.probe("store/")).unwrap();
    assert_eq!((found.ranges, found.listing), (Support::Refused, Support::Yes));
    let server = FaultServer::start(Options { object_lock: true, ..Options::default() });
    let (runtime, client) = faulty(&server);
    let found = block_on(client.probe("store/")).unwrap();
    assert_eq!(found.risks(), [Risk::ObjectLock]);
    let open = |accepted: &[Risk]| {
        S3Backend::new(Arc::clone(&runtime), client.clone(), "store", found.clone(), accepted).map(drop)
    };
    assert_eq!(open(&[]).unwrap_err().kind(), ErrorKind::Unsupported);
    assert!(open(&[Risk::ObjectLock]).is_ok());
}

/// A request that takes longer than stores expect could remove or replace what another process relies on.
#[test]
fn a_client_whose_requests_may_take_half_an_hour_is_refused() {
    use larder_testing::fault_server::{FaultServer, Options};
    let server = FaultServer::start(Options::default());
    let found = block_on(faulty(&server).1.probe("store/")).unwrap();
    for (deadline, is_refused) in
        [(Duration::from_mins(30), true), (Duration::MAX, true), (Duration::from_mins(29), false)]
    {
        let mut retry = RetryOptions::default();
        retry.deadline = deadline;
        let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
        let options = S3Options::new(server.url(), "bucket").credentials(credentials).retry(retry);
        let (runtime, client) = client(options, larder_testing::plaintext());
        let opened = S3Backend::new(runtime, client, "store", found.clone(), &[]);
        assert_eq!(
            opened.map(drop).map_err(|error| error.kind()),
            if is_refused { Err(ErrorKind::InvalidInput) } else { Ok(()) }
        );
    }
}

/// Proves H31.
#[test]
fn the_probe_finds_lifecycle_rules_that_delete_objects_of_the_store() {
    use larder_testing::fault_server::{FaultServer, Options};
    let rule = |prefix: &str| {
        Some(format!(
            "<LifecycleConfiguration><Rule><ID>x</ID><Prefix>{prefix}</Prefix><Status>Enabled</Status>\
             <Expiration><Days>1</Days></Expiration></Rule></LifecycleConfiguration>"
        ))
    };
    for (lifecycle, expires) in
        [(None, false), (rule(""), true), (rule("store/"), true), (rule("other/"), false)]
    {
        let options = Options { lifecycle, versioning: Some("Enabled"), ..Options::default() };
        let server = FaultServer::start(options);
        let (_, client) = faulty(&server);
        let found = block_on(client.probe("store/")).unwrap();
        assert_eq!((found.expires_objects, found.keeps_versions), (Some(expires), Some(true)));
        assert!(server.objects().is_empty(), "the probe leaves nothing");
    }
}

#[test]
fn a_bucket_on_the_server_given_by_environment_variables_conforms() {
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let Some(bucket) = Bucket::named(Arc::clone(&runtime)) else { return };
    let store = bucket.new_name();
    let found = block_on(async {
        let found = conforms(runtime, bucket.client.clone(), &store, 1000).await;
        bucket.clear(&format!("{store}/")).await;
        found
    });
    println!("{found:#?}\n{:#?}", bucket.client.stats());
}
