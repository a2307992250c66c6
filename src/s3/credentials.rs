//! Credentials and their providers.

use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::lock::Mutex;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;

/// Time before expiry at which credentials are replaced.
const EARLY: Duration = Duration::from_mins(2);
/// Names of the parts of credentials, for errors.
const PARTS: [&str; 3] = ["the access key id", "the secret access key", "the session token"];
const VARIABLES: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"];

/// A key pair, possibly temporary. Secrets are zeroed when the last copy is dropped, and never shown.
#[derive(Clone)]
pub struct Credentials {
    pub(super) access_key_id: String,
    pub(super) expires: Option<SystemTime>,
    pub(super) secret_access_key: Arc<Zeroizing<String>>,
    pub(super) session_token: Option<Arc<Zeroizing<String>>>,
}

impl Credentials {
    /// A key pair without expiry.
    pub fn new(access_key_id: impl Into<String>, secret_access_key: impl Into<String>) -> Self {
        Self {
            access_key_id: access_key_id.into(),
            expires: None,
            secret_access_key: Arc::new(Zeroizing::new(secret_access_key.into())),
            session_token: None,
        }
    }

    /// Session token of a temporary key pair.
    #[must_use]
    pub fn session_token(mut self, token: impl Into<String>) -> Self {
        self.session_token = Some(Arc::new(Zeroizing::new(token.into())));
        self
    }

    /// Expiry time. The client replaces credentials two minutes earlier.
    #[must_use]
    pub fn expires(mut self, at: SystemTime) -> Self {
        self.expires = Some(at);
        self
    }

    /// Refuses credentials that no server can have issued. A secret that was read from a file often ends in a newline.
    fn check(&self, names: [&str; 3]) -> Result<()> {
        let token = self.session_token.as_ref().map(|token| token.as_str());
        let parts = [Some(self.access_key_id.as_str()), Some(&self.secret_access_key), token];
        let parts = names.into_iter().zip(parts).filter_map(|(name, text)| Some((name, text?)));
        for (at, (name, text)) in parts.enumerate() {
            // The secret is only hashed; the other two become headers.
            let is_sent = at != 1;
            let flaw = if text.is_empty() {
                "is empty"
            } else if text.trim() != text {
                "begins or ends with a blank or a newline; remove it"
            } else if is_sent && text.contains(|c: char| !('!'..='~').contains(&c)) {
                "has a blank, a control character or a letter outside ASCII, which no header can hold"
            } else {
                continue;
            };
            return Err(
                Error::new(ErrorKind::InvalidInput, "use the credentials").because(format!("{name} {flaw}"))
            );
        }
        Ok(())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("access_key_id", &self.access_key_id)
            .field("expires", &self.expires)
            .finish_non_exhaustive()
    }
}

/// Source of credentials. The client keeps the result until it expires or a server rejects it; calls never overlap.
#[async_trait]
pub trait CredentialProvider: fmt::Debug + Send + Sync + 'static {
    /// Returns the credentials to use from now on.
    ///
    /// # Errors
    /// `Denied` if there are none; `Unavailable` if they cannot be fetched now. The client refuses credentials that are empty, or begin or end with a
    /// blank or a newline, as `InvalidInput`, whatever their source.
    ///
    /// # Cancel safety
    /// The future may be dropped.
    async fn credentials(&self, runtime: &dyn Runtime) -> Result<Credentials>;
}

/// Fixed credentials.
#[derive(Clone, Debug)]
pub struct StaticCredentials(Credentials);

impl StaticCredentials {
    /// Always returns these credentials.
    pub fn new(credentials: Credentials) -> Self {
        Self(credentials)
    }
}

#[async_trait]
impl CredentialProvider for StaticCredentials {
    async fn credentials(&self, _: &dyn Runtime) -> Result<Credentials> {
        Ok(self.0.clone())
    }
}

/// Credentials from `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_SESSION_TOKEN`. Errors name the faulty variable.
#[derive(Clone, Copy, Debug, Default)]
#[expect(clippy::exhaustive_structs, reason = "it has nothing to be set")]
pub struct EnvironmentCredentials;

#[async_trait]
impl CredentialProvider for EnvironmentCredentials {
    async fn credentials(&self, _: &dyn Runtime) -> Result<Credentials> {
        from_variables(|name| std::env::var_os(name))
    }
}

fn from_variables(variable: impl Fn(&str) -> Option<OsString>) -> Result<Credentials> {
    let set = |name: &str| match variable(name).filter(|value| !value.is_empty()).map(OsString::into_string) {
        None => Ok(None),
        Some(Ok(value)) => Ok(Some(value)),
        Some(Err(_)) => {
            let refused = Error::new(ErrorKind::InvalidInput, "use the credentials");
            Err(refused.because(format!("{name} is not UTF-8")))
        }
    };
    let need = |name: &str| {
        let missing = || Error::new(ErrorKind::Denied, "find credentials");
        set(name)?.ok_or_else(|| missing().because(format!("{name} is not set")))
    };
    let mut credentials = Credentials::new(need(VARIABLES[0])?, need(VARIABLES[1])?);
    if let Some(token) = set(VARIABLES[2])? {
        credentials = credentials.session_token(token);
    }
    credentials.check(VARIABLES)?;
    Ok(credentials)
}

/// Credentials of a profile in a shared credentials file, read again for each request of new ones.
#[derive(Clone, Debug)]
pub struct ProfileCredentials {
    path: PathBuf,
    profile: String,
}

impl ProfileCredentials {
    /// Credentials of `profile` in the file at `path`.
    pub fn new(path: impl Into<PathBuf>, profile: impl Into<String>) -> Self {
        Self { path: path.into(), profile: profile.into() }
    }

    /// Credentials of `AWS_PROFILE`, else `default`, in `AWS_SHARED_CREDENTIALS_FILE`, else `.aws/credentials` in the home
    /// directory. `None` without a home directory.
    pub fn from_environment() -> Option<Self> {
        let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
        let path = match variable("AWS_SHARED_CREDENTIALS_FILE") {
            Some(path) => PathBuf::from(path),
            None => PathBuf::from(variable("HOME")?).join(".aws/credentials"),
        };
        let profile = std::env::var("AWS_PROFILE").unwrap_or_else(|_| "default".to_owned());
        Some(Self { path, profile })
    }
}

#[async_trait]
impl CredentialProvider for ProfileCredentials {
    async fn credentials(&self, runtime: &dyn Runtime) -> Result<Credentials> {
        let Self { path, profile } = self.clone();
        let read = move || {
            let text = std::fs::read_to_string(&path);
            let text = Zeroizing::new(
                text.map_err(|error| Error::io(error, "read the credentials in").on(path.display()))?,
            );
            from_profile(&text, &profile).ok_or_else(|| {
                let missing = Error::new(ErrorKind::Denied, "find credentials in").on(path.display());
                missing.because(format!("the file has no profile {profile:?} with a key pair"))
            })
        };
        runtime.run_blocking("read credentials", read).await
    }
}

fn from_profile(text: &str, profile: &str) -> Option<Credentials> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let heading = |line: &str| line.strip_prefix('[')?.strip_suffix(']').map(|name| name.trim().to_owned());
    let within = lines.skip_while(|line| heading(line).as_deref() != Some(profile)).skip(1);
    let values: Vec<_> = within
        .take_while(|line| heading(line).is_none())
        .filter_map(|line| line.split_once('=').map(|(name, value)| (name.trim(), value.trim())))
        .collect();
    let value = |wanted: &str| values.iter().find(|(name, _)| *name == wanted).map(|(_, value)| *value);
    let credentials = Credentials::new(value("aws_access_key_id")?, value("aws_secret_access_key")?);
    Some(match value("aws_session_token") {
        Some(token) => credentials.session_token(token),
        None => credentials,
    })
}

/// Credentials, cached while they work. One caller at a time fetches new ones while the others wait (H153).
#[derive(Debug)]
pub(super) struct Keeper {
    kept: Mutex<Option<Credentials>>,
    provider: Arc<dyn CredentialProvider>,
}

impl Keeper {
    pub(super) fn new(provider: Arc<dyn CredentialProvider>) -> Self {
        Self { kept: Mutex::new(None), provider }
    }

    /// Credentials that worked so far.
    pub(super) async fn current(&self, runtime: &dyn Runtime) -> Result<Credentials> {
        let mut kept = self.kept.lock().await;
        let lasts = |credentials: &Credentials, time| {
            credentials.expires.is_none_or(|expires| runtime.now() + time < expires)
        };
        if let Some(credentials) = kept.as_ref().filter(|credentials| lasts(credentials, EARLY)) {
            return Ok(credentials.clone());
        }
        let provided = self.provider.credentials(runtime).await;
        match provided.and_then(|provided| provided.check(PARTS).map(|()| provided)) {
            Ok(credentials) => {
                *kept = Some(credentials.clone());
                Ok(credentials)
            }
            // Early, so that a failed fetch can be repeated before they expire.
            Err(error) => {
                let usable = kept.as_ref().filter(|credentials| lasts(credentials, Duration::ZERO));
                usable.cloned().ok_or(error)
            }
        }
    }

    /// A server rejected these as expired. If they are still in use, the next caller fetches others.
    pub(super) async fn expired(&self, credentials: &Credentials) {
        let mut kept = self.kept.lock().await;
        let same = |kept: &Credentials| Arc::ptr_eq(&kept.secret_access_key, &credentials.secret_access_key);
        if kept.as_ref().is_some_and(same) {
            *kept = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_profile_is_found_among_others() {
        let text = "# keys\n[default]\naws_access_key_id = A\naws_secret_access_key=B=C\n\n[ other ]\nregion = x\n\
                    aws_access_key_id=D\naws_secret_access_key=E\naws_session_token = F\n[empty]\n";
        let default = from_profile(text, "default").unwrap();
        assert_eq!((default.access_key_id.as_str(), default.secret_access_key.as_str()), ("A", "B=C"));
        assert!(default.session_token.is_none());
        let other = from_profile(text, "other").unwrap();
        assert_eq!(
            (other.access_key_id.as_str(), other.session_token.as_ref().unwrap().as_str()),
            ("D", "F")
        );
        assert!(from_profile(text, "empty").is_none());
        assert!(from_profile(text, "missing").is_none());
    }

    #[test]
    fn a_trailing_newline_in_a_credential_is_reported_and_not_sent() {
        for (at, wrong) in VARIABLES.iter().enumerate() {
            for value in ["q\n", "q\r\n", " q", "q\t", "q\u{a0}", "q\nq", "qé"] {
                if at == 1 && value.trim() == value {
                    continue;
                }
                let set = |name: &str| Some(OsString::from(if name == *wrong { value } else { "K" }));
                let error = from_variables(set).unwrap_err();
                let why = std::error::Error::source(&error).unwrap().to_string();
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong} {value:?}");
                assert!(why.contains(wrong) && !why.contains('q'), "{why}");
                let set = |at: usize, wanted: usize| if at == wanted { value } else { "K" };
                let given = Credentials::new(set(at, 0), set(at, 1)).session_token(set(at, 2));
                let keeper = Keeper::new(Arc::new(StaticCredentials::new(given)));
                let error = futures::executor::block_on(keeper.current(&crate::rt::ThreadRuntime::new()))
                    .unwrap_err();
                let why = std::error::Error::source(&error).unwrap().to_string();
                assert_eq!(error.kind(), ErrorKind::InvalidInput, "{wrong} {value:?}");
                assert!(why.contains(PARTS[at]), "{why}");
            }
        }
        assert!(from_variables(|_| Some(OsString::from("K"))).is_ok());
        assert_eq!(from_variables(|_| None).unwrap_err().kind(), ErrorKind::Denied);
    }

    /// Proves H153, H182.
    #[test]
    fn secrets_are_not_shown() {
        let credentials = Credentials::new("public", "hidden").session_token("hidden");
        assert!(
            !format!("{credentials:?} {:?}", StaticCredentials::new(credentials.clone())).contains("hidden")
        );
    }
}
