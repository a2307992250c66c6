//! Credentials of a container, from the service beside it.
//!
//! Source: AWS, "Container credential provider"; AWS, "EKS Pod Identity".

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::http::{Header, HttpTransport, MetadataService, Request, Timeouts, exchange_metadata};
use crate::rt::Runtime;
use crate::s3::credentials::document::{parse_credentials, refused, unanswered};
use crate::s3::credentials::variables::{Variables, read_token};
use crate::s3::credentials::{CredentialProvider, Credentials, not_configured};
use crate::wire::uri::{Endpoint, Scheme};

const RELATIVE: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const FULL: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
/// Server of relative addresses.
const SERVER: &str = "http://169.254.170.2";

/// Credentials of a container on ECS or of a pod on EKS (Pod Identity), from the service in `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` or
/// `AWS_CONTAINER_CREDENTIALS_FULL_URI`, with the token in `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE` or `AWS_CONTAINER_AUTHORIZATION_TOKEN`.
///
/// Plain HTTP is used for this host and for the services of ECS and EKS only: `169.254.170.2`, `169.254.170.23` and `fd00:ec2::23`. Such requests
/// use no proxy. Any other server needs HTTPS.
#[derive(Clone, Debug)]
#[must_use]
pub struct ContainerCredentials {
    transport: Arc<dyn HttpTransport>,
    variables: Variables,
}

/// An address of the service.
#[derive(Debug, PartialEq, Eq)]
struct Address {
    endpoint: Endpoint,
    /// Path and query, as given.
    target: String,
}

impl ContainerCredentials {
    /// The service of the environment. `transport` sends requests to services with HTTPS.
    pub fn new(transport: Arc<dyn HttpTransport>) -> Self {
        Self { transport, variables: Variables::default() }
    }

    /// The same with another environment.
    pub(super) fn with_variables(mut self, variables: Variables) -> Self {
        self.variables = variables;
        self
    }

    fn address(&self) -> Result<Address> {
        if let Some(path) = self.variables.get(RELATIVE)? {
            if !path.starts_with('/') {
                return Err(invalid(RELATIVE, "it does not begin with a slash"));
            }
            return parse_address(&format!("{SERVER}{path}"), RELATIVE);
        }
        match self.variables.get(FULL)? {
            Some(url) => parse_address(&url, FULL),
            None => Err(not_configured(format!("neither {RELATIVE} nor {FULL} is set"))),
        }
    }

    /// The value of the authorization header.
    async fn token(&self, runtime: &dyn Runtime) -> Result<Option<String>> {
        let token = match self.variables.path(TOKEN_FILE) {
            Some(file) => {
                let token = runtime.run_blocking("read a token", move || read_token(&file)).await?;
                Some(token.to_string())
            }
            None => self.variables.get(TOKEN)?,
        };
        match token {
            // It would end the header.
            Some(token) if token.contains(|c: char| c.is_ascii_control()) => {
                Err(invalid("the authorization token of the container", "it contains control characters"))
            }
            token => Ok(token),
        }
    }
}

#[async_trait]
impl CredentialProvider for ContainerCredentials {
    async fn credentials(&self, runtime: &dyn Runtime) -> Result<Credentials> {
        let Address { endpoint, target } = self.address()?;
        let timeouts = Timeouts {
            connect: Duration::from_secs(2),
            first_byte: Duration::from_secs(10),
            idle: Duration::from_secs(5),
            overall: Duration::from_secs(15),
        };
        let authority = endpoint.authority();
        let is_local = MetadataService::Container.is_at(&endpoint);
        let mut request = Request::new("GET", Arc::new(endpoint), target, timeouts);
        request.headers = vec![
            Header { name: "accept".into(), value: "application/json".to_owned() },
            Header { name: "accept-encoding".into(), value: "identity".to_owned() },
            Header { name: "host".into(), value: authority.clone() },
        ];
        if let Some(value) = self.token(runtime).await? {
            request.headers.push(Header { name: "authorization".into(), value });
        }
        let answered = if is_local {
            exchange_metadata(runtime, MetadataService::Container, &request).await
        } else {
            self.transport.exchange(&request).await
        };
        let action = "get the credentials of the container from";
        let response = answered.map_err(|error| unanswered(error, action, &authority))?;
        if response.is_success() {
            parse_credentials(&response.body)
        } else {
            Err(refused(&response, action, &authority))
        }
    }
}

fn invalid(what: &str, why: &'static str) -> Error {
    Error::new(ErrorKind::InvalidInput, "use").on(what).because(why)
}

/// The address of a service that may be asked. Credentials in plaintext come from this host or its services only.
fn parse_address(url: &str, variable: &str) -> Result<Address> {
    let malformed = || invalid(variable, "it is no address that begins with http:// or https://");
    let (scheme, rest) = url.split_once("://").ok_or_else(malformed)?;
    let (authority, target) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let endpoint = Endpoint::parse(&format!("{scheme}://{authority}")).map_err(|_| malformed())?;
    let slash = if target.starts_with('/') { "" } else { "/" };
    let target = format!("{slash}{target}");
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(invalid(variable, "its path contains characters that have to be encoded"));
    }
    if endpoint.scheme == Scheme::Http && !MetadataService::Container.is_at(&endpoint) {
        return Err(invalid(
            variable,
            "plain HTTP is used for this host and for 169.254.170.2, 169.254.170.23 and fd00:ec2::23 only",
        ));
    }
    Ok(Address { endpoint, target })
}
