//! Credentials and their providers.
//!
//! | file | contents |
//! |---|---|
//! | `keeper` | the cache of a client: refreshes before expiry, one fetch at a time, backoff |
//! | `environment`, `profile`, `web_identity`, `container`, `instance`, `assume_role` | one provider each |
//! | `default` | the chain of the providers that need no parameters |
//! | `sts` | requests to the Security Token Service |
//! | `document` | credentials in JSON, as both kinds of metadata services answer |
//! | `variables` | the environment of the process, or that of a test |
//!
//! A provider fetches once for each call and keeps nothing but the choice of its source. Caching, waiting and repeating are the business
//! of the keeper, so that every provider has them, your own too.
//!
//! # Kinds of errors
//! `NotFound` means that a source is not configured on this host; a chain asks the next source. Every other kind ends the chain: credentials
//! of another identity must not take the place of those that were meant. A client never reports `NotFound`, which would
//! mean that an object is missing: the keeper turns it into `Denied`, as all kinds that make a statement about objects.

mod assume_role;
mod container;
mod default;
pub(crate) mod document;
mod environment;
mod instance;
mod keeper;
pub(crate) mod profile;
mod sts;
mod variables;
mod web_identity;

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use async_trait::async_trait;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;

pub use assume_role::AssumeRoleCredentials;
pub use container::ContainerCredentials;
pub use default::DefaultCredentials;
pub use environment::EnvironmentCredentials;
pub use instance::InstanceCredentials;
pub(super) use keeper::Keeper;
pub use profile::ProfileCredentials;
pub use web_identity::WebIdentityCredentials;

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

    /// Expiry time. The client replaces credentials when a fifth of their lifetime is left, at most 10 minutes before they expire.
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

/// Source of credentials. The client keeps the result until shortly before it expires, or until a server rejects it; calls never overlap.
/// After a failed call the client uses the previous credentials as long as they are valid.
///
/// # Example
/// A provider of your own, here with the secrets of a program that holds them already:
/// ```
/// use async_trait::async_trait;
/// use larder::rt::Runtime;
/// use larder::s3::{CredentialProvider, Credentials};
/// # mod vault { pub async fn read(_: &str) -> larder::Result<(String, String)> { Ok(("AKIA".into(), "secret".into())) } }
///
/// #[derive(Debug)]
/// struct Vault;
///
/// #[async_trait]
/// impl CredentialProvider for Vault {
///     async fn credentials(&self, _: &dyn Runtime) -> larder::Result<Credentials> {
///         let (key_id, secret) = vault::read("backup").await?;
///         Ok(Credentials::new(key_id, secret)) // with `.expires(time)`, the client asks again before that time
///     }
/// }
/// # futures::executor::block_on(Vault.credentials(&larder::ThreadRuntime::new())).unwrap();
/// ```
#[async_trait]
pub trait CredentialProvider: fmt::Debug + Send + Sync + 'static {
    /// Returns the credentials to use from now on.
    ///
    /// # Errors
    /// `NotFound` if this source is not configured; the client reports that as `Denied`. `Unavailable` if credentials cannot be fetched now; the
    /// client repeats the call twice. Any other kind if they were refused. The client refuses credentials that are empty, or begin or end with a
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

/// The error of a source that is not configured on this host.
fn not_configured(why: impl Into<String>) -> Error {
    Error::new(ErrorKind::NotFound, "find credentials").because(why.into())
}

/// The error of a source that the configuration names: it is not allowed to be absent.
fn must_be_configured(error: Error) -> Error {
    if error.kind() == ErrorKind::NotFound {
        return Error::new(ErrorKind::Denied, "find credentials").because(error);
    }
    error
}

#[cfg(test)]
mod tests;
