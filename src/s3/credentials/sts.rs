//! Requests to the Security Token Service: credentials of a role, in exchange for other credentials or for a token.
//!
//! Source: AWS, "Security Token Service API Reference": `AssumeRole`, `AssumeRoleWithWebIdentity`; AWS, "STS Regional endpoints".

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::http::{Header, HttpTransport, Request, Response, Timeouts};
use crate::rt::Runtime;
use crate::s3::credentials::Credentials;
use crate::s3::credentials::document::{shorten, unanswered};
use crate::s3::credentials::keeper::PARTS;
use crate::s3::credentials::variables::Variables;
use crate::s3::retry::{passes, refusal, skew};
use crate::s3::{Refusal, aws_domain};
use crate::wire::date::AmzDate;
use crate::wire::s3_xml::{XmlError, parse_assumed_role};
use crate::wire::sigv4::{self, Signed, SigningKey};
use crate::wire::uri::{Endpoint, query};

const CONTENT_TYPE: &str = "application/x-www-form-urlencoded; charset=utf-8";

/// The service, and how to reach it.
#[derive(Clone)]
pub(super) struct Sts {
    pub(super) endpoint: Option<String>,
    /// Region that counts if neither the options nor the environment have one.
    pub(super) fallback_region: Option<String>,
    pub(super) region: Option<String>,
    pub(super) transport: Arc<dyn HttpTransport>,
    pub(super) variables: Variables,
}

impl fmt::Debug for Sts {
    /// A faulty endpoint may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sts").field("region", &self.region).finish_non_exhaustive()
    }
}

/// A role to assume.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) arn: String,
    pub(super) duration: Option<Duration>,
    pub(super) external_id: Option<String>,
    pub(super) session_name: Option<String>,
}

/// Signer of a request; `None` for an unsigned request with a token in the parameters.
type Signer<'a> = Option<&'a Credentials>;

/// Endpoint and region of the service.
#[derive(Debug, PartialEq, Eq)]
struct Server {
    endpoint: Endpoint,
    region: String,
}

impl Sts {
    pub(super) fn new(transport: Arc<dyn HttpTransport>) -> Self {
        let variables = Variables::default();
        Self { endpoint: None, fallback_region: None, region: None, transport, variables }
    }

    /// Credentials of the role for the owner of other credentials.
    pub(super) async fn assume(
        &self,
        runtime: &dyn Runtime,
        role: &Role,
        source: &Credentials,
    ) -> Result<Credentials> {
        source.check(PARTS)?;
        let external_id = role.external_id.as_deref().map(|id| ("ExternalId", id));
        let parameters: Vec<_> = [("Action", "AssumeRole")].into_iter().chain(external_id).collect();
        self.credentials(runtime, role, &parameters, Some(source)).await
    }

    /// Credentials of the role for the owner of a token.
    pub(super) async fn assume_by_token(
        &self,
        runtime: &dyn Runtime,
        role: &Role,
        token: &str,
    ) -> Result<Credentials> {
        let parameters = [("Action", "AssumeRoleWithWebIdentity"), ("WebIdentityToken", token)];
        self.credentials(runtime, role, &parameters, None).await
    }

    async fn credentials(
        &self,
        runtime: &dyn Runtime,
        role: &Role,
        parameters: &[(&str, &str)],
        signer: Signer<'_>,
    ) -> Result<Credentials> {
        let now = runtime.now();
        let session_name = role.session_name.clone().unwrap_or_else(|| session_name(now));
        let seconds = role.duration.map(|duration| duration.as_secs().to_string());
        let mut parameters = parameters.to_vec();
        parameters.extend([
            ("Version", "2011-06-15"),
            ("RoleArn", role.arn.as_str()),
            ("RoleSessionName", session_name.as_str()),
        ]);
        parameters.extend(seconds.as_deref().map(|seconds| ("DurationSeconds", seconds)));
        let server = self.server()?;
        let body = Bytes::from(query(&parameters));
        let mut response = self.send(&server, &body, signer, now).await?;
        // A signature is valid for five minutes by the clock of the service.
        if !response.is_success()
            && let Some(time) = skew(&response, now)
        {
            response = self.send(&server, &body, signer, time).await?;
        }
        parse(&response, role)
    }

    async fn send(
        &self,
        server: &Server,
        body: &Bytes,
        signer: Signer<'_>,
        time: SystemTime,
    ) -> Result<Response> {
        let host = server.endpoint.authority();
        let path = format!("{}/", server.endpoint.base_path);
        let mut headers: Vec<(Cow<'static, str>, String)> =
            vec![("content-type".into(), CONTENT_TYPE.to_owned()), ("host".into(), host.clone())];
        if let Some(credentials) = signer {
            let date = AmzDate::new(time);
            headers.push(("x-amz-date".into(), date.long().to_owned()));
            if let Some(token) = &credentials.session_token {
                headers.push(("x-amz-security-token".into(), token.to_string()));
            }
            let signed: Vec<_> = headers.iter().map(|(name, value)| (&**name, value.as_str())).collect();
            let payload_hash = sigv4::hex_sha256(body);
            let (method, payload_hash) = ("POST", payload_hash.as_str());
            let request = Signed { headers: &signed, method, path: &path, payload_hash, query: "" };
            let key = SigningKey::derive(&credentials.secret_access_key, &date, &server.region, "sts");
            let authorization = sigv4::authorization(&key, &credentials.access_key_id, &date, &request);
            headers.push(("authorization".into(), authorization));
        }
        headers.push(("accept-encoding".into(), "identity".to_owned()));
        headers.push(("content-length".into(), body.len().to_string()));
        headers.push(("user-agent".into(), concat!("larder/", env!("CARGO_PKG_VERSION")).to_owned()));
        let timeouts = Timeouts {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(10),
            idle: Duration::from_secs(5),
            overall: Duration::from_secs(20),
        };
        let mut request = Request::new("POST", Arc::new(server.endpoint.clone()), path, timeouts);
        request.body = body.clone();
        request.headers = headers.into_iter().map(|(name, value)| Header { name, value }).collect();
        let sent = self.transport.exchange(&request).await;
        sent.map_err(|error| unanswered(error, "ask the Security Token Service at", &host))
    }

    /// The server by the options, the environment, or the region.
    fn server(&self) -> Result<Server> {
        let region = match &self.region {
            Some(region) => Some(region.clone()),
            None => self.variables.first(&["AWS_REGION", "AWS_DEFAULT_REGION"])?,
        };
        let region = region.or_else(|| self.fallback_region.clone());
        let endpoint = match &self.endpoint {
            Some(endpoint) => Some(endpoint.clone()),
            None => self.variables.first(&["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"])?,
        };
        server(endpoint.as_deref(), region.as_deref())
    }
}

fn server(endpoint: Option<&str>, region: Option<&str>) -> Result<Server> {
    let name = region.unwrap_or("us-east-1").to_owned();
    let refused = |what| Error::new(ErrorKind::InvalidInput, what);
    let text = match (endpoint, region) {
        (Some(endpoint), _) => endpoint.to_owned(),
        (None, None) => "https://sts.amazonaws.com".to_owned(),
        (None, Some(region)) => {
            let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
            if !region.bytes().all(is_label) {
                return Err(refused("use the region").on(region));
            }
            format!("https://sts.{region}.{}", aws_domain(region))
        }
    };
    // The error must not show an address that contains a password.
    let shown = text.rsplit('@').next().unwrap_or_default();
    let endpoint =
        Endpoint::parse(&text).map_err(|error| refused("use the endpoint").on(shown).because(error))?;
    Ok(Server { endpoint, region: name })
}

/// Name of a session for the logs of the account.
fn session_name(now: SystemTime) -> String {
    let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("larder-{}", since.as_millis())
}

fn parse(response: &Response, role: &Role) -> Result<Credentials> {
    let failed = |kind| Error::new(kind, "assume the role").on(&role.arn);
    if response.is_success() {
        let read = parse_assumed_role(&response.body).map_err(|error| match error {
            XmlError::Service(_) => failed(ErrorKind::Denied).because(refused(response)),
            error => failed(ErrorKind::Unavailable).because(error),
        })?;
        let credentials = Credentials::new(read.access_key_id, read.secret_access_key.as_str());
        return Ok(credentials.session_token(read.session_token.as_str()).expires(read.expires));
    }
    let refusal = refused(response);
    let passes = passes(&refusal.code).is_some()
        || refusal.code == "IDPCommunicationError"
        || matches!(refusal.status, 408 | 429 | 500..);
    Err(failed(if passes { ErrorKind::Unavailable } else { ErrorKind::Denied }).because(refusal))
}

/// The refusal of the service. The text for a wrong signature quotes the headers of the request after its first line, so only that line is kept.
fn refused(response: &Response) -> Refusal {
    let mut refusal = refusal(response).0;
    refusal.message = shorten(&refusal.message);
    let request_id = response.header("x-amzn-requestid").map(str::to_owned);
    refusal.request_id = request_id.or(refusal.request_id);
    refusal
}
