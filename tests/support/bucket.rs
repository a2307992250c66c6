//! Buckets for tests: on a server in this process that verifies every signature, or on the one that is named.
//!
//! `LARDER_S3_ENDPOINT`, `LARDER_S3_BUCKET` (which must exist and may hold other things), `LARDER_S3_REGION`, `LARDER_S3_CA` (a
//! file with root certificates), `LARDER_S3_STYLE=virtual` and the usual `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and
//! `AWS_SESSION_TOKEN` name a server.

use std::collections::BTreeMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use larder::backend::{Backend, Ownership, S3Backend};
use larder::http::{HttpClient, HttpOptions};
use larder::internal::s3::{Condition, ListRequest, Requests as _};
use larder::rt::Runtime;
use larder::s3::{
    Addressing, Credentials, Operation, RequestOutcome, S3Capabilities, S3Client, S3Options,
    StaticCredentials,
};

use crate::s3_server;

/// Number of attempts of an operation that had this outcome.
pub fn attempts(client: &S3Client, operation: Operation, outcome: RequestOutcome) -> u64 {
    let counts = client.stats().counts.into_iter();
    let wanted = counts.filter(|count| (count.operation, count.outcome) == (operation, outcome));
    wanted.map(|count| count.attempts).sum()
}

/// A bucket, and a client for it.
pub struct Bucket {
    pub client: S3Client,
    prefix: String,
    pub runtime: Arc<dyn Runtime>,
    server: Option<s3_server::S3Server>,
}

impl Bucket {
    /// An empty one on a server of its own.
    pub fn in_process(runtime: Arc<dyn Runtime>) -> Self {
        let server = s3_server::S3Server::start();
        server.create_bucket("bucket");
        let credentials = Credentials::new(s3_server::ACCESS_KEY, s3_server::SECRET_KEY);
        let options = S3Options::new(server.url(), "bucket");
        let options = options.credentials(Arc::new(StaticCredentials::new(credentials)));
        let client = client(&runtime, options, crate::plaintext());
        Self { client, prefix: "test".to_owned(), runtime, server: Some(server) }
    }

    /// The one that the environment names.
    pub fn named(runtime: Arc<dyn Runtime>) -> Option<Self> {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let endpoint = variable("LARDER_S3_ENDPOINT")?;
        let bucket = variable("LARDER_S3_BUCKET").expect("LARDER_S3_BUCKET names a bucket");
        let mut options = S3Options::new(endpoint, bucket);
        if let Some(region) = variable("LARDER_S3_REGION") {
            options = options.region(region);
        }
        if variable("LARDER_S3_STYLE").as_deref() == Some("virtual") {
            options = options.addressing(Addressing::VirtualHost);
        }
        #[allow(unused_mut, reason = "without TLS there is nothing to set")]
        let mut http = HttpOptions::default();
        #[cfg(feature = "tls")]
        if let Some(path) = variable("LARDER_S3_CA") {
            let pem = std::fs::read(path).unwrap();
            http = http.tls(larder::http::TlsOptions::default().root_certificates(pem));
        }
        let client = client(&runtime, options, http);
        let mut random = [0; 8];
        runtime.fill_random(&mut random);
        let prefix = format!("larder-test-{:016x}", u64::from_le_bytes(random));
        Some(Self { client, prefix, runtime, server: None })
    }

    /// Returns `true` if the environment names one.
    pub fn is_named() -> bool {
        std::env::var_os("LARDER_S3_ENDPOINT").is_some_and(|endpoint| !endpoint.is_empty())
    }

    /// A name that no other store has.
    pub fn new_name(&self) -> String {
        let mut random = [0; 8];
        self.runtime.fill_random(&mut random);
        format!("{}-{:016x}", self.prefix, u64::from_le_bytes(random))
    }

    /// The capabilities of the server. Those of the servers in this process are the same, so only the first one is asked.
    pub async fn probe(&self) -> S3Capabilities {
        static FOUND: Mutex<Option<S3Capabilities>> = Mutex::new(None);
        let known = FOUND.lock().unwrap().clone();
        match known {
            Some(found) if self.server.is_some() => found,
            _ => {
                let found = self.client.probe(&format!("{}/", self.new_name())).await.unwrap();
                if self.server.is_some() {
                    *FOUND.lock().unwrap() = Some(found.clone());
                }
                found
            }
        }
    }

    /// The place of the store of that name.
    pub fn backend(&self, store: &str, found: &S3Capabilities, ownership: Ownership) -> Arc<dyn Backend> {
        let (runtime, client) = (Arc::clone(&self.runtime), self.client.clone());
        let backend = S3Backend::new(runtime, client, store, found.clone(), &[]).unwrap();
        Arc::new(backend.ownership(ownership))
    }

    /// The keys that begin with the prefix.
    pub async fn keys(&self, prefix: &str) -> Vec<String> {
        let (mut keys, mut token) = (Vec::new(), None);
        loop {
            let page = self.client.raw().list(&ListRequest::new(prefix), token.as_deref()).await.unwrap();
            keys.extend(page.listing.objects.into_iter().map(|object| object.key));
            token = page.next;
            if token.is_none() {
                return keys;
            }
        }
    }

    /// The objects whose keys begin with the prefix.
    pub async fn objects(&self, prefix: &str) -> BTreeMap<String, Bytes> {
        let mut objects = BTreeMap::new();
        for key in self.keys(prefix).await {
            let body = self.client.raw().get(&key, u64::MAX).await.unwrap().0;
            objects.insert(key, body);
        }
        objects
    }

    /// Everything that was made under names from [`Bucket::new_name`] and is still there.
    pub async fn test_keys(&self) -> Vec<String> {
        self.keys(&self.prefix).await
    }

    /// Stores an object.
    pub async fn put(&self, key: &str, body: impl Into<Bytes>) {
        self.client.raw().put(key, body.into(), &Condition::Always).await.unwrap();
    }

    /// Deletes every object whose key begins with the prefix.
    pub async fn clear(&self, prefix: &str) {
        for key in self.keys(prefix).await {
            let _ = self.client.raw().delete(&key, &Condition::Always).await.unwrap();
        }
    }
}

fn client(runtime: &Arc<dyn Runtime>, options: S3Options, http: HttpOptions) -> S3Client {
    let http = Arc::new(HttpClient::new(Arc::clone(runtime), http).unwrap());
    let options = options.parts(6 << 20, NonZeroU64::new(5 << 20).unwrap());
    S3Client::new(Arc::clone(runtime), http, options).unwrap()
}
