//! Credentials of a profile in the files that the AWS tools share.
//!
//! Source: AWS, "AWS SDKs and Tools Reference Guide": "Shared config and credentials files", "Assume role credential provider".

pub(crate) mod files;
pub(crate) mod plan;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::http::HttpTransport;
use crate::rt::Runtime;
use crate::s3::credentials::environment::from_variables;
use crate::s3::credentials::profile::files::Profiles;
use crate::s3::credentials::profile::plan::{Base, Plan};
use crate::s3::credentials::sts::Sts;
use crate::s3::credentials::variables::Variables;
use crate::s3::credentials::{
    ContainerCredentials, CredentialProvider, Credentials, InstanceCredentials, WebIdentityCredentials,
    must_be_configured, not_configured,
};

/// Credentials of a profile in the shared files of the AWS tools, read again for each call.
///
/// The profile is `AWS_PROFILE`, else `default`. The files are `AWS_CONFIG_FILE`, else `~/.aws/config`, and `AWS_SHARED_CREDENTIALS_FILE`, else
/// `~/.aws/credentials`; a value in the second takes precedence.
///
/// | the profile has | credentials |
/// |---|---|
/// | `role_arn` and `source_profile` | of the role, assumed with the credentials of that profile, which may have a role in turn |
/// | `role_arn` and `credential_source` | of the role, assumed with those of `Environment`, `EcsContainer` or `Ec2InstanceMetadata` |
/// | `role_arn` and `web_identity_token_file` | of the role, for the token in the file |
/// | `aws_access_key_id`, `aws_secret_access_key` and perhaps `aws_session_token` | these |
/// | `sso_session`, `sso_start_url` or `sso_account_id`; `credential_process`; `mfa_serial` with a role | refused with `Unsupported`, and the name of the setting |
/// | none of these | `NotFound` |
///
/// A role may have `duration_seconds`, `external_id` and `role_session_name`; the profile may have a `region`, which counts
/// if the environment has none. A missing profile is `NotFound` if it is `default`, and `Denied` if it was named.
#[derive(Clone, Debug)]
#[must_use]
pub struct ProfileCredentials {
    files: Option<SharedFiles>,
    profile: Option<String>,
    transport: Arc<dyn HttpTransport>,
    variables: Variables,
}

#[derive(Clone, Debug)]
struct SharedFiles {
    config: PathBuf,
    credentials: PathBuf,
}

impl ProfileCredentials {
    /// The profile and the files of the environment. `transport` sends requests to the Security Token Service.
    pub fn new(transport: Arc<dyn HttpTransport>) -> Self {
        Self { files: None, profile: None, transport, variables: Variables::default() }
    }

    /// Reads these files; default: those of the environment. Either may be missing.
    pub fn files(mut self, config: impl Into<PathBuf>, credentials: impl Into<PathBuf>) -> Self {
        self.files = Some(SharedFiles { config: config.into(), credentials: credentials.into() });
        self
    }

    /// Name of the profile; default: that of the environment.
    pub fn profile(mut self, name: impl Into<String>) -> Self {
        self.profile = Some(name.into());
        self
    }

    /// The same with another environment.
    pub(super) fn with_variables(mut self, variables: Variables) -> Self {
        self.variables = variables;
        self
    }

    fn shared_files(&self) -> Result<SharedFiles> {
        if let Some(files) = &self.files {
            return Ok(files.clone());
        }
        let home = self.variables.path("HOME");
        let path = |variable: &str, name: &str| {
            let named = self.variables.path(variable);
            let path = named.or_else(|| Some(home.as_ref()?.join(".aws").join(name)));
            path.ok_or_else(|| not_configured(format!("neither {variable} nor HOME is set")))
        };
        let config = path("AWS_CONFIG_FILE", "config")?;
        Ok(SharedFiles { config, credentials: path("AWS_SHARED_CREDENTIALS_FILE", "credentials")? })
    }

    /// Reads the files and finds out how to get the credentials.
    async fn plan(&self, runtime: &dyn Runtime) -> Result<Plan> {
        let SharedFiles { config, credentials } = self.shared_files()?;
        let named = match &self.profile {
            Some(profile) => Some(profile.clone()),
            None => self.variables.get("AWS_PROFILE")?,
        };
        let read = move || {
            let profiles = Profiles::read(&config, &credentials)?;
            let name = named.as_deref().unwrap_or("default");
            if !profiles.has(name) {
                let (config, credentials) = (config.display(), credentials.display());
                let why = format!("neither {config} nor {credentials} has a profile {name:?}");
                let missing = |why| Error::new(ErrorKind::Denied, "find credentials").because(why);
                return Err(if named.is_some() { missing(why) } else { not_configured(why) });
            }
            Plan::new(&profiles, name)
        };
        runtime.run_blocking("read the profile", read).await
    }
}

#[async_trait]
impl CredentialProvider for ProfileCredentials {
    async fn credentials(&self, runtime: &dyn Runtime) -> Result<Credentials> {
        let Plan { base, roles, region } = self.plan(runtime).await?;
        let mut sts = Sts::new(Arc::clone(&self.transport));
        sts.variables = self.variables.clone();
        sts.fallback_region = region;
        let variables = || self.variables.clone();
        let transport = || Arc::clone(&self.transport);
        let provided = match base {
            Base::Keys(credentials) => Ok(credentials),
            Base::Environment => from_variables(|name| self.variables.os(name)),
            Base::Container => {
                let provider = ContainerCredentials::new(transport()).with_variables(variables());
                provider.credentials(runtime).await
            }
            Base::Instance => {
                InstanceCredentials::new().with_variables(variables()).credentials(runtime).await
            }
            Base::WebIdentity { role, token_file } => {
                let token_file = self.variables.expand(&token_file);
                WebIdentityCredentials::of_role(sts.clone(), token_file, role).credentials(runtime).await
            }
        };
        let mut credentials = provided.map_err(must_be_configured)?;
        for role in &roles {
            credentials = sts.assume(runtime, role, &credentials).await?;
        }
        Ok(credentials)
    }
}
