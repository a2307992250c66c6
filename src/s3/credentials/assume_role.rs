//! Credentials of a role, in exchange for other credentials.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::http::HttpTransport;
use crate::rt::Runtime;
use crate::s3::credentials::sts::{Role, Sts};
use crate::s3::credentials::{CredentialProvider, Credentials, must_be_configured};

/// Credentials of a role that another identity may assume, by `AssumeRole` of the Security Token Service.
///
/// The request goes to the endpoint of the region in `AWS_REGION` or `AWS_DEFAULT_REGION`, else to `https://sts.amazonaws.com`;
/// `AWS_ENDPOINT_URL_STS` and `AWS_ENDPOINT_URL` name another server. Each call asks the source for its credentials first.
#[derive(Clone, Debug)]
#[must_use]
pub struct AssumeRoleCredentials {
    role: Role,
    source: Arc<dyn CredentialProvider>,
    pub(super) sts: Sts,
}

impl AssumeRoleCredentials {
    /// The role with this ARN, assumed with the credentials of `source`.
    pub fn new(
        transport: Arc<dyn HttpTransport>,
        source: Arc<dyn CredentialProvider>,
        role_arn: impl Into<String>,
    ) -> Self {
        let role = Role { arn: role_arn.into(), ..Role::default() };
        Self { role, source, sts: Sts::new(transport) }
    }

    /// Lifetime of the credentials, in whole seconds; default: that of the service, an hour. The service accepts 15 minutes to 12 hours, and no
    /// more than the role allows.
    pub fn duration(mut self, duration: Duration) -> Self {
        self.role.duration = Some(duration);
        self
    }

    /// Address of the service; default: by the environment and the region.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.sts.endpoint = Some(url.into());
        self
    }

    /// External id that the trust policy of the role demands; default: none.
    pub fn external_id(mut self, id: impl Into<String>) -> Self {
        self.role.external_id = Some(id.into());
        self
    }

    /// Region of the service; default: by the environment.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.sts.region = Some(region.into());
        self
    }

    /// Name of the session in the logs of the account; default: `larder-` and the time in milliseconds.
    pub fn session_name(mut self, name: impl Into<String>) -> Self {
        self.role.session_name = Some(name.into());
        self
    }
}

#[async_trait]
impl CredentialProvider for AssumeRoleCredentials {
    async fn credentials(&self, runtime: &dyn Runtime) -> Result<Credentials> {
        let source = self.source.credentials(runtime).await.map_err(|error| {
            let error = must_be_configured(error);
            let kind = if error.kind() == ErrorKind::Unavailable { error.kind() } else { ErrorKind::Denied };
            Error::new(kind, "get credentials to assume the role").on(&self.role.arn).because(error)
        })?;
        self.sts.assume(runtime, &self.role, &source).await
    }
}
