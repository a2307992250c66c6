//! A store in a bucket, by its address.

use std::fmt;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use futures::future::{Either, select};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::{Backend, Ownership, S3Backend};
use crate::error::{Error, ErrorKind, Result};
use crate::http::{HttpClient, HttpOptions, HttpTransport, Proxy};
use crate::local::LocalState;
use crate::open::url::BucketPlace;
use crate::rt::Runtime;
use crate::s3::{
    Addressing, CredentialProvider, DefaultCredentials, RequestOutcome, Risk, S3Capabilities, S3Client,
    S3Options, aws_domain,
};

/// Maximum time without any answer. A client is patient, for minutes with each request; that is not for a mistyped address.
const FIRST_ANSWER: Duration = Duration::from_secs(30);
/// Maximum age of a probe. A server gains and loses features by an upgrade, and a bucket by its settings.
const PROBE_AGE: Duration = Duration::from_hours(7 * 24);

/// Changes the options of a client.
#[derive(Clone)]
pub(super) struct Change(pub(super) Arc<dyn Fn(S3Options) -> S3Options + Send + Sync>);

impl fmt::Debug for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Change")
    }
}

/// Options for buckets.
#[derive(Clone, Debug)]
pub(super) struct BucketOptions {
    pub(super) accepted: Vec<Risk>,
    pub(super) change: Change,
    pub(super) credentials: Option<Arc<dyn CredentialProvider>>,
    pub(super) http: Option<HttpOptions>,
    pub(super) is_probed: bool,
    pub(super) ownership: Ownership,
}

impl Default for BucketOptions {
    fn default() -> Self {
        Self {
            accepted: Vec::new(),
            change: Change(Arc::new(|options| options)),
            credentials: None,
            http: None,
            is_probed: true,
            ownership: Ownership::default(),
        }
    }
}

impl BucketOptions {
    /// Makes a backend for the store, works with it, and releases its lease if the work fails.
    pub(super) async fn with<T, F>(
        &self,
        place: &BucketPlace,
        runtime: &Arc<dyn Runtime>,
        local: Option<&Arc<LocalState>>,
        work: impl FnOnce(Arc<dyn Backend>) -> F,
    ) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let server = Server::find(place, |name| std::env::var(name).ok());
        let client = self.client(&server, place, runtime)?;
        let prefix = if place.store.is_empty() { String::new() } else { format!("{}/", place.store) };
        let work = async {
            let found = if self.is_probed {
                let record = ProbeRecord::place(&server.endpoint, &place.bucket, &prefix);
                probe(&client, &prefix, record, runtime, local).await?
            } else {
                S3Capabilities::unknown()
            };
            let backend =
                S3Backend::new(Arc::clone(runtime), client.clone(), &place.store, found, &self.accepted)?;
            let mut ownership = self.ownership.clone();
            if let Some(local) = local.filter(|_| !ownership.has_instance()) {
                ownership = ownership.instance(local.instance());
            }
            let backend: Arc<dyn Backend> = Arc::new(backend.ownership(ownership));
            let done = work(Arc::clone(&backend)).await;
            if done.is_err() {
                // The error of the work says more. A lease that stays expires.
                let _ = backend.close().await;
            }
            done
        };
        let silence = async {
            runtime.sleep(FIRST_ANSWER).await;
            if was_answered(&client) {
                pending::<()>().await;
            }
        };
        match select(pin!(work), pin!(silence)).await {
            Either::Left((done, _)) => done,
            Either::Right(_) => {
                let why = format!("the server did not answer within {} s", FIRST_ANSWER.as_secs());
                Err(Error::new(ErrorKind::Unavailable, "reach").on(&server.endpoint).because(why))
            }
        }
    }

    fn client(&self, server: &Server, place: &BucketPlace, runtime: &Arc<dyn Runtime>) -> Result<S3Client> {
        let http = match &self.http {
            Some(http) => http.clone(),
            None => match Proxy::from_environment()? {
                Some(proxy) => HttpOptions::default().proxy(proxy),
                None => HttpOptions::default(),
            },
        };
        let http = Arc::new(HttpClient::new(Arc::clone(runtime), http)?);
        let mut options = S3Options::new(&server.endpoint, &place.bucket).region(&server.region);
        if server.in_host {
            options = options.addressing(Addressing::VirtualHost);
        }
        options = options.credentials(match &self.credentials {
            Some(provider) => Arc::clone(provider),
            None => Arc::new(DefaultCredentials::new(Arc::clone(&http) as Arc<dyn HttpTransport>)),
        });
        S3Client::new(Arc::clone(runtime), http, (self.change.0)(options))
    }
}

/// Returns `true` once any request got an answer.
fn was_answered(client: &S3Client) -> bool {
    let silent = |outcome| matches!(outcome, RequestOutcome::Broken | RequestOutcome::NotSent);
    client.stats().counts.iter().any(|count| !silent(count.outcome))
}

/// The server of a bucket, by the address of the store and the environment.
#[derive(Debug, PartialEq, Eq)]
struct Server {
    endpoint: String,
    in_host: bool,
    region: String,
}

impl Server {
    fn find(place: &BucketPlace, variable: impl Fn(&str) -> Option<String>) -> Self {
        let first =
            |names: [&str; 2]| names.into_iter().filter_map(&variable).find(|value| !value.is_empty());
        let region = place.region.clone().or_else(|| first(["AWS_REGION", "AWS_DEFAULT_REGION"]));
        let region = region.unwrap_or_else(|| "us-east-1".to_owned());
        let endpoint = place.endpoint.clone().or_else(|| first(["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]));
        let in_host = place.in_host.unwrap_or(endpoint.is_none());
        let endpoint = endpoint.unwrap_or_else(|| {
            // The client replaces the region if the server names another one.
            format!("https://s3.{{{{region}}}}.{}", aws_domain(&region))
        });
        Self { endpoint, in_host, region }
    }
}

/// Capabilities of the server: from local state, or by a probe, whose result is kept there.
async fn probe(
    client: &S3Client,
    prefix: &str,
    place: String,
    runtime: &Arc<dyn Runtime>,
    local: Option<&Arc<LocalState>>,
) -> Result<S3Capabilities> {
    let kept = match local.cloned() {
        None => None,
        Some(local) => runtime.run_blocking("read local state", move || Ok(local.kept_probe())).await?,
    };
    if let Some(found) = kept.and_then(|kept| ProbeRecord::read(&kept)?.valid(&place, runtime.now())) {
        return Ok(found);
    }
    let found = client.probe(prefix).await?;
    if let (Some(local), Some(text)) = (local.cloned(), ProbeRecord::write(place, runtime.now(), &found)) {
        // Without the record, the next opening probes again.
        let keep = move || Ok(local.keep_probe(&text).is_ok());
        let _ = runtime.run_blocking("write local state", keep).await;
    }
    Ok(found)
}

/// The result of a probe in local state.
#[derive(Debug, Serialize, Deserialize)]
struct ProbeRecord {
    capabilities: Value,
    place: String,
    /// Seconds since 1970.
    probed: u64,
}

impl ProbeRecord {
    /// A text that two stores share only if one probe holds for both.
    fn place(endpoint: &str, bucket: &str, prefix: &str) -> String {
        format!("{endpoint} {bucket} {prefix}")
    }

    fn read(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    fn write(place: String, now: SystemTime, found: &S3Capabilities) -> Option<String> {
        let capabilities = serde_json::from_str(&found.to_json()).ok()?;
        serde_json::to_string(&Self { capabilities, place, probed: seconds(now) }).ok()
    }

    /// The capabilities, if they are of this place and not too old. A time in the future comes from a wrong clock.
    fn valid(self, place: &str, now: SystemTime) -> Option<S3Capabilities> {
        let age = seconds(now).checked_sub(self.probed)?;
        let is_valid = self.place == place && age < PROBE_AGE.as_secs();
        is_valid.then(|| S3Capabilities::from_json(&self.capabilities.to_string()).ok()).flatten()
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_comes_before_the_environment() {
        let empty = |_: &str| None;
        let set = |name: &str| Some(name.to_owned());
        let place =
            |query: &str| match format!("s3://b/s?{query}").parse::<crate::open::StoreUrl>().unwrap().place {
                crate::open::url::Place::Bucket(place) => place,
                crate::open::url::Place::Directory(_) => unreachable!("it begins with s3://"),
            };
        let server = |endpoint: &str, region: &str, in_host| Server {
            endpoint: endpoint.to_owned(),
            in_host,
            region: region.to_owned(),
        };
        let aws = "https://s3.{{region}}.amazonaws.com";
        assert_eq!(Server::find(&place(""), empty), server(aws, "us-east-1", true));
        assert_eq!(Server::find(&place("region=cn-x"), empty), server(&format!("{aws}.cn"), "cn-x", true));
        assert_eq!(Server::find(&place("addressing=path"), empty), server(aws, "us-east-1", false));
        assert_eq!(Server::find(&place(""), set), server("AWS_ENDPOINT_URL_S3", "AWS_REGION", false));
        let named = place("endpoint=http://x&region=r");
        assert_eq!(Server::find(&named, set), server("http://x", "r", false));
        let named = place("endpoint=http://x&addressing=virtual-host");
        assert_eq!(Server::find(&named, empty), server("http://x", "us-east-1", true));
    }

    #[test]
    fn a_probe_holds_for_its_place_and_a_week() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_hours(500_000);
        let found = S3Capabilities::unknown();
        let text = ProbeRecord::write("place".to_owned(), now, &found).unwrap();
        let valid = |place: &str, at| ProbeRecord::read(&text).unwrap().valid(place, at);
        assert_eq!(valid("place", now), Some(found.clone()));
        assert_eq!(valid("place", now + PROBE_AGE - Duration::from_secs(1)), Some(found));
        assert_eq!(valid("place", now + PROBE_AGE), None);
        assert_eq!(valid("place", now - Duration::from_secs(1)), None, "the clock was wrong");
        assert_eq!(valid("elsewhere", now), None);
        assert!(ProbeRecord::read("").is_none());
    }
}
