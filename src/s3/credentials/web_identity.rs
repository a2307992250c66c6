//! Credentials of a role, in exchange for the token of an identity provider.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::http::HttpTransport;
use crate::rt::Runtime;
use crate::s3::credentials::sts::{Role, Sts};
use crate::s3::credentials::variables::{Variables, read_token};
use crate::s3::credentials::{CredentialProvider, Credentials, not_configured};

/// Credentials of a role for the owner of a token in a file, by `AssumeRoleWithWebIdentity` of the Security Token Service. Kubernetes provides
/// such tokens for service accounts (IRSA on EKS).
///
/// The file is read again for each call, because its token is replaced before it expires. The service is found as for
/// [`AssumeRoleCredentials`](crate::s3::AssumeRoleCredentials).
#[derive(Clone, Debug)]
#[must_use]
pub struct WebIdentityCredentials {
    /// The file of the token and the role; `None` for those of the environment.
    given: Option<(PathBuf, Role)>,
    sts: Sts,
}

impl WebIdentityCredentials {
    /// The role with this ARN, for the token in a file.
    pub fn new(
        transport: Arc<dyn HttpTransport>,
        token_file: impl Into<PathBuf>,
        role_arn: impl Into<String>,
    ) -> Self {
        let role = Role { arn: role_arn.into(), ..Role::default() };
        Self { given: Some((token_file.into(), role)), sts: Sts::new(transport) }
    }

    /// File, role and session of `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN` and `AWS_ROLE_SESSION_NAME`. Calls fail with `NotFound` if the
    /// first is not set, and with `Denied` if only the second is not.
    pub fn from_environment(transport: Arc<dyn HttpTransport>) -> Self {
        Self { given: None, sts: Sts::new(transport) }
    }

    /// Address of the service; default: by the environment and the region.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.sts.endpoint = Some(url.into());
        self
    }

    /// Region of the service; default: by the environment.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.sts.region = Some(region.into());
        self
    }

    /// The same with another environment.
    pub(super) fn with_variables(mut self, variables: Variables) -> Self {
        self.sts.variables = variables;
        self
    }

    /// The same for a whole role.
    pub(super) fn of_role(sts: Sts, token_file: PathBuf, role: Role) -> Self {
        Self { given: Some((token_file, role)), sts }
    }

    fn file_and_role(&self) -> Result<(PathBuf, Role)> {
        if let Some(given) = &self.given {
            return Ok(given.clone());
        }
        let variables = &self.sts.variables;
        let file = variables.path("AWS_WEB_IDENTITY_TOKEN_FILE");
        let file = file.ok_or_else(|| not_configured("AWS_WEB_IDENTITY_TOKEN_FILE is not set"))?;
        let arn = variables.get("AWS_ROLE_ARN")?.ok_or_else(|| {
            let missing = Error::new(ErrorKind::Denied, "find credentials");
            missing.because("AWS_WEB_IDENTITY_TOKEN_FILE is set, but AWS_ROLE_ARN is not")
        })?;
        let session_name = variables.get("AWS_ROLE_SESSION_NAME")?;
        Ok((file, Role { arn, session_name, ..Role::default() }))
    }
}

#[async_trait]
impl CredentialProvider for WebIdentityCredentials {
    async fn credentials(&self, runtime: &dyn Runtime) -> Result<Credentials> {
        let (file, role) = self.file_and_role()?;
        let token = runtime.run_blocking("read a token", move || read_token(&file)).await?;
        self.sts.assume_by_token(runtime, &role, &token).await
    }
}
