//! The backend on clients of the crate `object_store` that reach a server: the conformance suite.
//!
//! An S3 server in this process is always used, and another one if the variables in `tests/servers/README.md` name it.

use larder::backend::conformance::Suite;
use larder::backend::{Backend, ListingOrder, MemoryBackend, ObjectStoreBackend};
use larder::rt::{Runtime, ThreadRuntime, TokioRuntime};
use larder::{Error, ErrorKind};
use larder_testing::s3_server;
use object_store::aws::{AmazonS3Builder, S3ConditionalPut};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload, RetryConfig};
use std::sync::Arc;

/// Cases that fail on Swift of `OpenStack`: of puts that race for one object, it confirms some without storing them, and without an entity tag, which is
/// an error for the client.
const NOT_ON_SWIFT: [&str; 1] = ["atomic"];

/// The HTTP client of `object_store` needs a provider of cryptography, also without TLS.
fn client() -> AmazonS3Builder {
    // It is installed already if another test came first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    AmazonS3Builder::new().with_allow_http(true)
}

fn on_tokio(body: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(body);
}

/// Opens an empty place and puts it through the suite, except these cases. Returns `true` if it has conditional puts.
async fn conforms(client: Arc<dyn ObjectStore>, order: ListingOrder, except: &[&str]) -> Result<bool, Error> {
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime::current().unwrap());
    let backend = ObjectStoreBackend::open(runtime, Arc::clone(&client), order).await?;
    let backend: Arc<dyn Backend> = Arc::new(backend);
    let mut cases: Vec<&str> = Vec::new();
    if !except.is_empty() {
        let memory: Arc<dyn Backend> = Arc::new(MemoryBackend::new(Arc::new(ThreadRuntime::new())));
        cases = Suite::default().run(&memory).await;
        cases.extend(["paging", "foreign_is_reported"]);
        cases.retain(|case| !except.contains(case));
    }
    let suite = if cases.is_empty() { Suite::default() } else { Suite::default().only(&cases) };
    let suite = suite.paging(1001).foreign(|path| {
        let place = if path.starts_with(".chunks/") { "" } else { ".cnt/" };
        let (client, at) = (Arc::clone(&client), Path::parse(format!("{place}{path}")).unwrap());
        async move { drop(client.put(&at, PutPayload::from_static(b"foreign")).await.unwrap()) }
    });
    suite.run(&backend).await;
    Ok(backend.capabilities().conditional_put)
}

#[test]
fn a_bucket_in_process_conforms() {
    let server = s3_server::S3Server::start();
    server.create_bucket("bucket");
    let client = client()
        .with_endpoint(server.url())
        .with_bucket_name("bucket")
        .with_region(s3_server::REGION)
        .with_access_key_id(s3_server::ACCESS_KEY)
        .with_secret_access_key(s3_server::SECRET_KEY)
        .build()
        .unwrap();
    on_tokio(async move {
        let client = Arc::new(PrefixStore::new(client, "some/where"));
        assert!(conforms(client, ListingOrder::ByPath, &[]).await.unwrap());
    });
}

/// A server that implements no conditional puts, such as Swift of `OpenStack`, answers 501 to them, and the client repeats the request until it gives up.
#[test]
fn a_bucket_on_the_named_server_conforms() {
    let Some(client) = named() else { return };
    on_tokio(async move {
        let mut random = [0; 8];
        TokioRuntime::current().unwrap().fill_random(&mut random);
        let prefix = Path::from(format!("larder-test-{:016x}", u64::from_le_bytes(random)));
        let place = |client: AmazonS3Builder| -> Arc<dyn ObjectStore> {
            Arc::new(PrefixStore::new(client.build().unwrap(), prefix.clone()))
        };
        let retries = RetryConfig { max_retries: 2, ..RetryConfig::default() };
        let once_more = client.clone().with_retry(retries);
        let mut conformed = conforms(place(once_more), ListingOrder::ByPath, &[]).await;
        if let Err(error) = &conformed
            && error.kind() == ErrorKind::Unavailable
        {
            println!("again without conditional puts: {error:#}");
            let client = client.clone().with_conditional_put(S3ConditionalPut::Disabled);
            conformed = conforms(place(client), ListingOrder::ByPath, &NOT_ON_SWIFT).await;
        }
        println!("conditional puts: {}", conformed.unwrap());
        // The foreign objects.
        let client = place(client);
        let left = client.list(None);
        let left = futures::TryStreamExt::try_collect::<Vec<_>>(left).await.unwrap();
        for meta in left {
            client.delete(&meta.location).await.unwrap();
        }
    });
}

/// The bucket that the environment names, unless it needs TLS, which this package does without.
fn named() -> Option<AmazonS3Builder> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let endpoint = variable("LARDER_S3_ENDPOINT").filter(|endpoint| endpoint.starts_with("http://"))?;
    let bucket = variable("LARDER_S3_BUCKET").expect("LARDER_S3_BUCKET names a bucket");
    let region = variable("LARDER_S3_REGION").unwrap_or_else(|| "us-east-1".to_owned());
    let (id, secret) = (variable("AWS_ACCESS_KEY_ID")?, variable("AWS_SECRET_ACCESS_KEY")?);
    let client = client().with_endpoint(endpoint).with_access_key_id(id).with_secret_access_key(secret);
    let is_virtual = variable("LARDER_S3_STYLE").as_deref() == Some("virtual");
    let client = client.with_virtual_hosted_style_request(is_virtual);
    Some(client.with_bucket_name(bucket).with_region(region))
}
