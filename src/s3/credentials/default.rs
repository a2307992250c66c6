//! The chain of the providers that need no parameters.

use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::http::HttpTransport;
use crate::rt::Runtime;
use crate::s3::credentials::environment::FromVariables;
use crate::s3::credentials::variables::Variables;
use crate::s3::credentials::{
    ContainerCredentials, CredentialProvider, Credentials, InstanceCredentials, ProfileCredentials,
    WebIdentityCredentials, not_configured,
};
use crate::wording::Causes;

/// Credentials of the first source that is configured on this host, in the order of the AWS SDKs.
///
/// | | source | provider |
/// |---|---|---|
/// | 1 | environment | [`EnvironmentCredentials`](crate::s3::EnvironmentCredentials) |
/// | 2 | web identity | [`WebIdentityCredentials::from_environment`] |
/// | 3 | profile | [`ProfileCredentials`] |
/// | 4 | container | [`ContainerCredentials`] |
/// | 5 | instance | [`InstanceCredentials`] |
///
/// A source that is not configured is passed over. A source that is configured and fails ends the search with its error: the credentials of
/// another identity do not replace it. The source that answered first answers all later calls; clones share it. If no source is configured, the error is
/// `NotFound`, which a client reports as `Denied`; its text lists the reason of each source.
///
/// The guide `manual::credentials` lists the variables and files that each source reads.
#[derive(Clone, Debug)]
pub struct DefaultCredentials(Arc<Chain>);

struct Chain {
    /// Position of the source that answered.
    answered: OnceLock<usize>,
    sources: Vec<Source>,
}

#[derive(Debug)]
struct Source {
    name: &'static str,
    provider: Box<dyn CredentialProvider>,
}

/// The reasons of sources that are not configured.
#[derive(Debug, Default)]
struct Reasons(Vec<(&'static str, String)>);

/// A failure, with the sources that were asked before it.
#[derive(Debug)]
struct Failed {
    before: Reasons,
    error: Error,
}

impl DefaultCredentials {
    /// The chain. `transport` sends requests to the Security Token Service; metadata services are asked without it. Nothing is read or sent
    /// before the first call.
    #[must_use]
    pub fn new(transport: Arc<dyn HttpTransport>) -> Self {
        Self::of(transport, &Variables::default())
    }

    pub(super) fn of(transport: Arc<dyn HttpTransport>, variables: &Variables) -> Self {
        let source = |name, provider| Source { name, provider };
        let web_identity = WebIdentityCredentials::from_environment(Arc::clone(&transport));
        let profile = ProfileCredentials::new(Arc::clone(&transport));
        let container = ContainerCredentials::new(transport);
        let variables = || variables.clone();
        let sources = vec![
            source("environment", Box::new(FromVariables(variables())) as Box<dyn CredentialProvider>),
            source("web identity", Box::new(web_identity.with_variables(variables()))),
            source("profile", Box::new(profile.with_variables(variables()))),
            source("container", Box::new(container.with_variables(variables()))),
            source("instance", Box::new(InstanceCredentials::new().with_variables(variables()))),
        ];
        Self(Arc::new(Chain { answered: OnceLock::new(), sources }))
    }
}

#[async_trait]
impl CredentialProvider for DefaultCredentials {
    async fn credentials(&self, runtime: &dyn Runtime) -> Result<Credentials> {
        let Chain { answered, sources } = &*self.0;
        let mut before = Reasons::default();
        for (at, Source { name, provider }) in sources.iter().enumerate() {
            if answered.get().is_some_and(|answered| *answered != at) {
                continue;
            }
            let provided = provider.credentials(runtime).await;
            match provided {
                Ok(credentials) => {
                    // Of two concurrent first calls, one decides; both found the same source first.
                    let _ = answered.set(at);
                    return Ok(credentials);
                }
                Err(error) if error.kind() == ErrorKind::NotFound && answered.get().is_none() => {
                    before.0.push((name, reason(&error)));
                }
                Err(error) => {
                    // A source that answered before is configured; it may answer again.
                    let is_absent = error.kind() == ErrorKind::NotFound;
                    let kind = if is_absent { ErrorKind::Unavailable } else { error.kind() };
                    let failed = Error::new(kind, "get credentials from the source").on(name);
                    return Err(failed.because(Failed { before, error }));
                }
            }
        }
        Err(not_configured(format!("no source of credentials is configured: {before}")))
    }
}

/// The causes of an error in one line.
fn reason(error: &Error) -> String {
    error.source().map_or_else(|| error.to_string(), |cause| Causes(cause).to_string())
}

impl fmt::Display for Reasons {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (name, reason)) in self.0.iter().enumerate() {
            let before = if number == 0 { "" } else { "; " };
            write!(f, "{before}{name}: {reason}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is configured, and failed")?;
        if self.before.0.is_empty() { Ok(()) } else { write!(f, "; before it: {}", self.before) }
    }
}

impl StdError for Failed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.error)
    }
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let answered = self.answered.get().and_then(|at| self.sources.get(*at)).map(|source| source.name);
        f.debug_struct("Chain").field("answered", &answered).finish_non_exhaustive()
    }
}
