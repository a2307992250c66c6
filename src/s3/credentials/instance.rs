//! Credentials of an instance, from its metadata service, version 2.
//!
//! # Requests
//! | request | answer | consequence |
//! |---|---|---|
//! | `PUT /latest/api/token` | 2xx | the token of the following requests |
//! | | no connection, or none in time; 4xx | there is no such service, unless the environment names it: then a failure |
//! | `GET …/security-credentials/` | 404, or empty | the instance has no role |
//! | `GET …/security-credentials/ROLE` | 2xx | credentials |
//! | either `GET` | 401 | the token is no longer valid: once more with another one |
//!
//! Source: AWS, "Use the Instance Metadata Service to access instance metadata"; AWS, "Retrieve security credentials from instance metadata".

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::http::{
    Header, MetadataService, Request, Response, Timeouts, TransportError, TransportErrorKind,
    exchange_metadata,
};
use crate::rt::Runtime;
use crate::s3::credentials::document::{parse_credentials, refused, unanswered};
use crate::s3::credentials::variables::Variables;
use crate::s3::credentials::{CredentialProvider, Credentials, not_configured};
use crate::wire::uri::{Endpoint, encode};

const DISABLED: &str = "AWS_EC2_METADATA_DISABLED";
const ENDPOINT: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT";
const MODE: &str = "AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
const ACTION: &str = "get the credentials of the instance from";
/// Attempts to get a token. Each lasts about a second if packets are lost.
const TOKEN_ATTEMPTS: u32 = 2;

/// Credentials of the role of an EC2 instance, from its metadata service at `169.254.169.254`, with session tokens (`IMDSv2`).
///
/// `AWS_EC2_METADATA_DISABLED=true` switches it off, `AWS_EC2_METADATA_SERVICE_ENDPOINT` names another address, which must be on this
/// host or one of a metadata service, and `AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE=IPv6` selects `fd00:ec2::254`. Requests use no proxy. On a
/// host without the service, a call fails with `NotFound` after at most about two seconds.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct InstanceCredentials {
    variables: Variables,
}

/// The service.
#[derive(Debug)]
struct Service {
    endpoint: Arc<Endpoint>,
    /// `true` if the environment names it.
    is_named: bool,
}

impl InstanceCredentials {
    /// The metadata service of this host.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same with another environment.
    pub(super) fn with_variables(mut self, variables: Variables) -> Self {
        self.variables = variables;
        self
    }

    fn service(&self) -> Result<Service> {
        if self.variables.get(DISABLED)?.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return Err(not_configured(format!("{DISABLED} is set")));
        }
        let mode = self.variables.get(MODE)?;
        let (text, is_named) = match self.variables.get(ENDPOINT)? {
            Some(text) => (text, true),
            None if mode.is_some_and(|mode| mode.eq_ignore_ascii_case("ipv6")) => {
                ("http://[fd00:ec2::254]".to_owned(), false)
            }
            None => ("http://169.254.169.254".to_owned(), false),
        };
        let refused = || Error::new(ErrorKind::InvalidInput, "use").on(ENDPOINT);
        let endpoint = Endpoint::parse(&text).map_err(|error| refused().because(error))?;
        if !MetadataService::Instance.is_at(&endpoint) {
            let why = "it must begin with http:// and be on this host or the address of a metadata service";
            return Err(refused().because(why));
        }
        Ok(Service { endpoint: Arc::new(endpoint), is_named })
    }
}

#[async_trait]
impl CredentialProvider for InstanceCredentials {
    async fn credentials(&self, runtime: &dyn Runtime) -> Result<Credentials> {
        let service = self.service()?;
        let mut token = service.token(runtime).await?;
        let roles = service.get(runtime, &mut token, ROLES).await?;
        let role = str::from_utf8(&roles.body).unwrap_or_default().lines().next().unwrap_or_default().trim();
        if roles.status == 404 || roles.is_success() && role.is_empty() {
            return Err(not_configured("the instance has no role"));
        }
        service.succeeded(&roles)?;
        let path = format!("{ROLES}{}", encode(role));
        let response = service.get(runtime, &mut token, &path).await?;
        service.succeeded(&response)?;
        parse_credentials(&response.body)
    }
}

impl Service {
    async fn token(&self, runtime: &dyn Runtime) -> Result<String> {
        let mut attempts = 0;
        let response = loop {
            attempts += 1;
            let headers = [("content-length", "0"), ("x-aws-ec2-metadata-token-ttl-seconds", "300")];
            match self.send(runtime, "PUT", "/latest/api/token", &headers).await {
                Ok(response) => break response,
                Err(error) if error.kind == TransportErrorKind::Timeout && attempts < TOKEN_ATTEMPTS => {}
                Err(error) => return Err(self.absent(error)),
            }
        };
        let status = response.status;
        if (400..500).contains(&status) && status != 429 && !self.is_named {
            // Other clouds have services at this address, too.
            let why = format!("the metadata service refused a token for IMDSv2 with status {status}");
            return Err(not_configured(why));
        }
        self.succeeded(&response)?;
        let token = str::from_utf8(&response.body).unwrap_or_default().trim();
        if token.is_empty() || token.contains(|c: char| !c.is_ascii_graphic()) {
            let malformed = Error::new(ErrorKind::Unavailable, ACTION).on(self.endpoint.authority());
            return Err(malformed.because("the answer is no token"));
        }
        Ok(token.to_owned())
    }

    /// The error for a service that cannot be reached.
    fn absent(&self, error: TransportError) -> Error {
        let address = self.endpoint.authority();
        if self.is_named {
            return unanswered(error, ACTION, &address);
        }
        not_configured(match error.kind {
            TransportErrorKind::Timeout => format!(
                "no metadata service answers at {address}; in a container on an instance, the hop limit of the service must be at least 2"
            ),
            _ => format!("no metadata service answers at {address}"),
        })
    }

    /// The answer to a request with a token, which is replaced if the service no longer accepts it.
    async fn get(&self, runtime: &dyn Runtime, token: &mut String, path: &str) -> Result<Response> {
        let mut is_new = false;
        loop {
            let headers = [("x-aws-ec2-metadata-token", token.as_str())];
            let response = self.send(runtime, "GET", path, &headers).await;
            let response = response.map_err(|error| unanswered(error, ACTION, &self.endpoint.authority()))?;
            if response.status != 401 || is_new {
                return Ok(response);
            }
            *token = self.token(runtime).await?;
            is_new = true;
        }
    }

    async fn send(
        &self,
        runtime: &dyn Runtime,
        method: &'static str,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Response, TransportError> {
        let second = Duration::from_secs(1);
        let timeouts = Timeouts { connect: second, first_byte: second, idle: second, overall: 4 * second };
        let target = format!("{}{path}", self.endpoint.base_path);
        let mut request = Request::new(method, Arc::clone(&self.endpoint), target, timeouts);
        let authority = self.endpoint.authority();
        let common = [("host", authority.as_str()), ("accept-encoding", "identity")];
        let headers = common.into_iter().chain(headers.iter().copied());
        let header =
            |(name, value): (&'static str, &str)| Header { name: name.into(), value: value.to_owned() };
        request.headers = headers.map(header).collect();
        exchange_metadata(runtime, MetadataService::Instance, &request).await
    }

    fn succeeded(&self, response: &Response) -> Result<()> {
        if response.is_success() {
            return Ok(());
        }
        Err(refused(response, ACTION, &self.endpoint.authority()))
    }
}
