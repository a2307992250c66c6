//! Credentials in variables of the environment.

use std::ffi::OsString;

use async_trait::async_trait;

use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;
use crate::s3::credentials::variables::Variables;
use crate::s3::credentials::{CredentialProvider, Credentials, not_configured};

pub(super) const VARIABLES: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// Credentials from `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`. Errors name the faulty variable: `NotFound` if neither
/// of the first two is set, `Denied` if only one is, `InvalidInput` for a value that is no key.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has nothing to be set")]
pub struct EnvironmentCredentials;

#[async_trait]
impl CredentialProvider for EnvironmentCredentials {
    async fn credentials(&self, _: &dyn Runtime) -> Result<Credentials> {
        from_variables(|name| std::env::var_os(name))
    }
}

/// The same in an environment that a test may choose.
#[derive(Debug)]
pub(super) struct FromVariables(pub(super) Variables);

#[async_trait]
impl CredentialProvider for FromVariables {
    async fn credentials(&self, _: &dyn Runtime) -> Result<Credentials> {
        from_variables(|name| self.0.os(name))
    }
}

pub(super) fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Credentials> {
    let set = |name: &str| match variable(name).filter(|value| !value.is_empty()).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => {
            let refused = Error::new(ErrorKind::InvalidInput, "use the credentials");
            Err(refused.because(format!("{name} is not UTF-8")))
        }
    };
    let unset = |name: &str| format!("{name} is not set");
    let missing = |name: &str| Error::new(ErrorKind::Denied, "find credentials").because(unset(name));
    let (key_id, secret) = match (set(VARIABLES[0])?, set(VARIABLES[1])?) {
        (Some(key_id), Some(secret)) => (key_id, secret),
        (Some(_), None) => return Err(missing(VARIABLES[1])),
        (None, Some(_)) => return Err(missing(VARIABLES[0])),
        (None, None) => return Err(not_configured(unset(VARIABLES[0]))),
    };
    let mut credentials = Credentials::new(key_id, secret);
    if let Some(token) = set(VARIABLES[2])? {
        credentials = credentials.session_token(token);
    }
    credentials.check(VARIABLES)?;
    Ok(credentials)
}
