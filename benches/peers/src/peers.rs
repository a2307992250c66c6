//! The clients that are compared, behind one face: put a buffer, get a whole object as one buffer.
//!
//! All of them hash every body with SHA-256 and sign the hash, over plain HTTP and over TLS; none sends or checks any other
//! checksum. They run on the same Tokio runtime and have their other options as they come.

use std::error::Error as StdError;
use std::num::NonZeroU32;
use std::sync::Arc;

use aws_credential_types::Credentials as AwsCredentials;
use aws_sdk_s3::config::{BehaviorVersion, Region, RequestChecksumCalculation, ResponseChecksumValidation};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_http_client::Builder;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use bytes::Bytes;
use larder::http::{HttpClient, HttpOptions, TlsOptions};
use larder::rt::{Runtime, TokioRuntime};
use larder::internal::s3::{Condition, Requests as _};
use larder::s3::{Credentials, S3Client, S3Options, StaticCredentials};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{Certificate, ClientOptions, ObjectStoreExt as _, PutPayload};
use serde::{Deserialize, Serialize};

pub(crate) type Outcome<T> = Result<T, Box<dyn StdError + Send + Sync>>;

const BUCKET: &str = "bench";
const REGION: &str = "us-east-1";
const ID: &str = "AKIDEXAMPLE";
const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

/// Who is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Peer {
    Larder,
    ObjectStore,
    AwsSdkS3,
}

impl Peer {
    pub(crate) const ALL: [Self; 3] = [Self::Larder, Self::ObjectStore, Self::AwsSdkS3];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Larder => "larder",
            Self::ObjectStore => "object-store",
            Self::AwsSdkS3 => "aws-sdk-s3",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|peer| peer.name() == name)
    }
}

/// A client for the bucket.
#[derive(Clone)]
pub(crate) enum Client {
    Larder(S3Client),
    ObjectStore(Arc<AmazonS3>),
    AwsSdkS3(aws_sdk_s3::Client),
}

impl Client {
    /// The client of a peer, for the server at `endpoint`, which is recognised by a root certificate. Call it on a runtime.
    pub(crate) fn new(peer: Peer, endpoint: &str, ca: Option<&[u8]>) -> Outcome<Self> {
        match peer {
            Peer::Larder => larder_client(endpoint, ca).map(Self::Larder),
            Peer::ObjectStore => {
                object_store_client(endpoint, ca).map(|client| Self::ObjectStore(Arc::new(client)))
            }
            Peer::AwsSdkS3 => aws_client(endpoint, ca).map(Self::AwsSdkS3),
        }
    }

    pub(crate) async fn put(&self, key: &str, body: Bytes) -> Outcome<()> {
        match self {
            Self::Larder(client) => drop(client.raw().put(key, body, &Condition::Always).await?),
            Self::ObjectStore(client) => drop(client.raw().put(&Path::from(key), PutPayload::from(body)).await?),
            Self::AwsSdkS3(client) => {
                let body = ByteStream::from(body);
                client.put_object().bucket(BUCKET).key(key).body(body).send().await?;
            }
        }
        Ok(())
    }

    pub(crate) async fn get(&self, key: &str, length: usize) -> Outcome<Bytes> {
        let body = match self {
            Self::Larder(client) => client.raw().get(key, length as u64).await?.0,
            Self::ObjectStore(client) => client.raw().get(&Path::from(key)).await?.bytes().await?,
            Self::AwsSdkS3(client) => {
                let found = client.get_object().bucket(BUCKET).key(key).send().await?;
                found.body.collect().await?.into_bytes()
            }
        };
        if body.len() == length { Ok(body) } else { Err("the object has another length".into()) }
    }
}

fn larder_client(endpoint: &str, ca: Option<&[u8]>) -> Outcome<S3Client> {
    let runtime: Arc<dyn Runtime> = Arc::new(TokioRuntime::current()?);
    let tls = ca.map_or_else(TlsOptions::default, |ca| TlsOptions::default().root_certificates(ca));
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), HttpOptions::default().tls(tls))?);
    let credentials = StaticCredentials::new(Credentials::new(ID, SECRET));
    let options = S3Options::new(endpoint, BUCKET)
        .concurrency(NonZeroU32::MIN.saturating_add(63))
        .credentials(Arc::new(credentials))
        .region(REGION);
    Ok(S3Client::new(runtime, http, options)?)
}

fn object_store_client(endpoint: &str, ca: Option<&[u8]>) -> Outcome<AmazonS3> {
    let mut options = ClientOptions::new().with_allow_http(true);
    if let Some(ca) = ca {
        options = options.with_root_certificate(Certificate::from_pem(ca)?);
    }
    let builder = AmazonS3Builder::new()
        .with_access_key_id(ID)
        .with_bucket_name(BUCKET)
        .with_client_options(options)
        .with_endpoint(endpoint)
        .with_region(REGION)
        .with_secret_access_key(SECRET)
        .with_unsigned_payload(false)
        .with_virtual_hosted_style_request(false);
    Ok(builder.build()?)
}

fn aws_client(endpoint: &str, ca: Option<&[u8]>) -> Outcome<aws_sdk_s3::Client> {
    // The provider that the SDK takes by itself.
    let mut http = Builder::new().tls_provider(Provider::Rustls(CryptoMode::AwsLc));
    if let Some(ca) = ca {
        let trusted = TrustStore::empty().with_pem_certificate(ca);
        http = http.tls_context(TlsContext::builder().with_trust_store(trusted).build()?);
    }
    let config = aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .credentials_provider(AwsCredentials::new(ID, SECRET, None, None, "bench"))
        .endpoint_url(endpoint)
        .force_path_style(true)
        .http_client(http.build_https())
        .region(Region::new(REGION))
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build();
    Ok(aws_sdk_s3::Client::from_conf(config))
}
