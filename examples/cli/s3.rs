//! The bucket and its server: the same options for every example that uses S3.

use std::future::pending;
use std::num::NonZeroU64;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::{Either, select};
use larder::backend::Ownership;
use larder::http::{HttpClient, HttpOptions, Proxy, TlsOptions};
use larder::rt::Runtime;
use larder::s3::{
    Addressing, EnvironmentCredentials, Operation, RequestOutcome as Sent, RequestStats, Risk,
    S3Capabilities, S3Client, S3Options,
};
use serde_json::{Value, json};

use super::{Failure, Outcome, input, parsed, signals, value};

/// Maximum time without an answer at first contact.
const FIRST_CONTACT_SECONDS: u64 = 30;

/// The bucket, and the verification of its server. The usual environment variables fill the gaps.
#[derive(Clone, Default)]
pub(crate) struct S3Arguments {
    /// The risks that are lived with.
    accepted: Vec<Risk>,
    bucket: Option<String>,
    ca: Option<String>,
    endpoint: Option<String>,
    fingerprint: Option<String>,
    /// In seconds.
    first_contact: Option<NonZeroU64>,
    /// Identity of the process that opens the store.
    pub(crate) ownership: Ownership,
    plaintext: bool,
    region: Option<String>,
    virtual_host: bool,
}

pub(crate) const S3_USAGE: &str = "  --endpoint URL       the server; default: AWS_ENDPOINT_URL
  --region REGION      default: AWS_REGION, or us-east-1
  --path-style         the bucket stands in the path; the default
  --virtual-host       the bucket stands in the host name
  --ca FILE            root certificates to trust beside those of the platform
  --fingerprint HEX    the SHA-256 of the one certificate to accept
  --allow-plaintext    speak HTTP without TLS to other hosts too
  --first-contact SECONDS
                       how long to wait for a server that does not answer at all; default: 30
  --accept-lifecycle   live with rules of the bucket that delete or archive objects of the store
  --accept-versions    live with a bucket that keeps old versions
  --accept-object-lock
                       live with a bucket that locks new objects against deletion
Credentials are those in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; a proxy is the one in HTTPS_PROXY.";

impl S3Arguments {
    /// Takes an option, if it is one of these.
    pub(crate) fn take(&mut self, option: &str, parser: &mut lexopt::Parser) -> Outcome<bool> {
        match option {
            "--endpoint" => self.endpoint = Some(value(parser)?),
            "--bucket" => self.bucket = Some(value(parser)?),
            "--region" => self.region = Some(value(parser)?),
            "--path-style" => self.virtual_host = false,
            "--virtual-host" => self.virtual_host = true,
            "--ca" => self.ca = Some(value(parser)?),
            "--fingerprint" => self.fingerprint = Some(value(parser)?),
            "--reuse" => self.ownership = self.ownership.clone().reuse(),
            "--take-over" => self.ownership = self.ownership.clone().take_over(),
            "--host" => self.ownership = self.ownership.clone().host(value(parser)?),
            "--allow-plaintext" => self.plaintext = true,
            "--first-contact" => self.first_contact = Some(parsed(option, parser)?),
            "--accept-lifecycle" => self.accepted.push(Risk::Expiry),
            "--accept-object-lock" => self.accepted.push(Risk::ObjectLock),
            "--accept-versions" => self.accepted.push(Risk::Versions),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Uses the server of another bucket, unless one is given.
    pub(crate) fn same_server(&mut self, other: &Self) {
        if self.endpoint.is_none() {
            self.endpoint.clone_from(&other.endpoint);
            self.ca = self.ca.take().or_else(|| other.ca.clone());
            self.fingerprint = self.fingerprint.take().or_else(|| other.fingerprint.clone());
            self.region = self.region.take().or_else(|| other.region.clone());
            self.first_contact = self.first_contact.or(other.first_contact);
            self.plaintext |= other.plaintext;
            self.virtual_host |= other.virtual_host;
        }
    }

    /// The same for the bucket of a store at `BUCKET/STORE`, and the name of the store.
    pub(crate) fn at(&self, address: &str) -> Outcome<(Self, String)> {
        let (bucket, store) = address.split_once('/').unwrap_or((address, ""));
        if bucket.is_empty() || store.is_empty() {
            return Err(input("--store: an address in S3 is s3://BUCKET/STORE"));
        }
        Ok((Self { bucket: Some(bucket.to_owned()), ..self.clone() }, store.to_owned()))
    }

    /// A client for the bucket. No request is made.
    pub(crate) fn client(&self, runtime: &Arc<dyn Runtime>) -> Outcome<S3Client> {
        let endpoint = self.endpoint()?;
        let bucket = self.bucket.clone().ok_or_else(|| input("--bucket is wanted"))?;
        let mut options = S3Options::new(endpoint, bucket).credentials(Arc::new(EnvironmentCredentials));
        if let Some(region) = self.region.clone().or_else(|| variable("AWS_REGION")) {
            options = options.region(region);
        }
        if self.virtual_host {
            options = options.addressing(Addressing::VirtualHost);
        }
        let mut tls = TlsOptions::default();
        if let Some(path) = &self.ca {
            tls = tls
                .root_certificates(std::fs::read(path).map_err(|error| input(format!("{path}: {error}")))?);
        }
        if let Some(fingerprint) = &self.fingerprint {
            tls = tls.fingerprint(fingerprint.parse()?);
        }
        let mut http = HttpOptions::default().tls(tls);
        if let Some(proxy) = Proxy::from_environment()? {
            http = http.proxy(proxy);
        }
        if self.plaintext {
            http = http.allow_plaintext();
        }
        let http = Arc::new(HttpClient::new(Arc::clone(runtime), http)?);
        Ok(S3Client::new(Arc::clone(runtime), http, options)?)
    }

    /// The risks that are accepted, if they are all that the server has.
    pub(crate) fn accepted(&self, found: &S3Capabilities) -> Outcome<&[Risk]> {
        match found.risks().into_iter().find(|risk| !self.accepted.contains(risk)) {
            Some(risk) => Err(Failure::Work(format!("{risk}; {} accepts that", accepting(risk)))),
            None => Ok(&self.accepted),
        }
    }

    /// Waits for the server as long as was asked for.
    pub(crate) fn first_contact<'a>(
        &self,
        client: &'a S3Client,
        runtime: &'a Arc<dyn Runtime>,
    ) -> Outcome<FirstContact<'a>> {
        let seconds = self.first_contact.map_or(FIRST_CONTACT_SECONDS, NonZeroU64::get);
        Ok(FirstContact { client, endpoint: self.endpoint()?, runtime, seconds })
    }

    fn endpoint(&self) -> Outcome<String> {
        let endpoint = self.endpoint.clone().or_else(|| variable("AWS_ENDPOINT_URL"));
        endpoint.ok_or_else(|| input("--endpoint or AWS_ENDPOINT_URL is wanted"))
    }

    /// Capabilities of the server: from an earlier probe, or a new one.
    pub(crate) async fn capabilities(
        &self,
        client: &S3Client,
        store: &str,
        cache: Option<&Path>,
    ) -> Outcome<S3Capabilities> {
        let kept = cache.map(|directory| directory.join("server.json"));
        // The result for one server is not used for another.
        let place = format!("{} {}\n", self.endpoint()?, client.bucket());
        if let Some(text) = kept.as_ref().and_then(|path| std::fs::read_to_string(path).ok())
            && let Some(found) = text.strip_prefix(&place)
            && let Ok(found) = S3Capabilities::from_json(found)
        {
            return Ok(found);
        }
        let found = client.probe(&format!("{store}/")).await?;
        if let Some(path) = kept {
            std::fs::write(path, place + &found.to_json())?;
        }
        Ok(found)
    }
}

/// The first requests to a server, which may not be there at all. A client is patient, for minutes with each request; that is
/// not for an address with a typing error.
pub(crate) struct FirstContact<'a> {
    client: &'a S3Client,
    endpoint: String,
    runtime: &'a Arc<dyn Runtime>,
    seconds: u64,
}

impl FirstContact<'_> {
    /// Works until a signal comes, or until the server has not answered any request for too long. The work is dropped then.
    pub(crate) async fn within<T>(&self, work: impl Future<Output = Outcome<T>>) -> Outcome<T> {
        let silence = async {
            self.runtime.sleep(Duration::from_secs(self.seconds)).await;
            if self.was_answered() {
                pending::<()>().await;
            }
        };
        match select(pin!(signals::interruptible(work)), pin!(silence)).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => Err(Failure::Work(format!(
                "{} did not answer within {} s; --first-contact SECONDS waits for longer",
                self.endpoint, self.seconds
            ))),
        }
    }

    fn was_answered(&self) -> bool {
        let counts = self.client.stats().counts;
        counts.iter().any(|count| !matches!(count.outcome, Sent::Broken | Sent::NotSent))
    }
}

/// The option that accepts a risk.
pub(crate) fn accepting(risk: Risk) -> &'static str {
    match risk {
        Risk::Expiry => "--accept-lifecycle",
        Risk::ObjectLock => "--accept-object-lock",
        Risk::Versions => "--accept-versions",
        _ => "no option",
    }
}

/// An environment variable that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Requests sent to the server, for programs.
pub(crate) fn requests(stats: &RequestStats) -> Value {
    let sent = || stats.counts.iter().filter(|count| count.outcome != Sent::NotSent);
    let of = |operations: &[Operation]| -> u64 {
        sent().filter(|count| operations.contains(&count.operation)).map(|count| count.attempts).sum()
    };
    let again = |outcome: Sent| matches!(outcome, Sent::Broken | Sent::Throttled);
    json!({
        "puts": of(&[Operation::Put, Operation::Copy, Operation::Multipart]),
        "gets": of(&[Operation::Get, Operation::BucketSettings]),
        "lists": of(&[Operation::List]),
        "deletes": of(&[Operation::Delete, Operation::DeleteMany]),
        "heads": of(&[Operation::Head, Operation::BucketHead]),
        "bytes_in": stats.bytes_in,
        "bytes_out": stats.bytes_out,
        "retries": sent().filter(|count| again(count.outcome)).map(|count| count.attempts).sum::<u64>(),
    })
}
