//! Options of a client.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::http::Timeouts;
use crate::s3::credentials::{CredentialProvider, EnvironmentCredentials};
use crate::wire::uri::Endpoint;

/// Place of the bucket name in a request.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// In the path. The default: every server accepts it, and neither certificates nor DNS need an entry.
    #[default]
    Path,
    /// Before the host name, unless the host is an IP address, the bucket name has a dot, which no wildcard certificate
    /// covers, or the name is not valid in a host name.
    VirtualHost,
}

/// Server-side encryption of stored objects.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// With keys of the server: `AES256`.
    Aes256,
    /// With a key of the key service, or the default key of the bucket.
    Kms(Option<String>),
}

/// Rate limits. `None` is unlimited; retries count too.
#[doc(alias = "bandwidth")]
#[doc(alias = "throttle")]
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Received body bytes a second.
    pub bytes_in: Option<NonZeroU64>,
    /// Sent body bytes a second.
    pub bytes_out: Option<NonZeroU64>,
    /// Reading requests a second.
    pub reads: Option<NonZeroU64>,
    /// Changing requests a second.
    pub writes: Option<NonZeroU64>,
}

/// Retry policy.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOptions {
    /// Maximum number of attempts; default: 10.
    pub attempts: NonZeroU32,
    /// Maximum backoff between two attempts; default: 20 s. `Retry-After` is obeyed up to three times this long.
    pub max_backoff: Duration,
    /// Deadline of an operation with all its attempts, plus one second for each 64 KiB of its bodies; default: 5 minutes. A store
    /// in a bucket refuses one of 30 minutes or more, the time for which it expects requests of a process that died.
    pub deadline: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        let attempts = NonZeroU32::MIN.saturating_add(9);
        Self { attempts, max_backoff: Duration::from_secs(20), deadline: Duration::from_mins(5) }
    }
}

/// Options of a client: the bucket, its endpoint, and how to use it.
#[derive(Clone)]
#[must_use]
pub struct S3Options {
    pub(super) addressing: Addressing,
    pub(super) bucket: String,
    pub(super) concurrency: NonZeroU32,
    pub(super) credentials: Arc<dyn CredentialProvider>,
    pub(super) encryption: Option<Encryption>,
    pub(super) endpoint: String,
    pub(super) limits: RateLimits,
    pub(super) part_bytes: NonZeroU64,
    pub(super) parts_from: u64,
    pub(super) region: String,
    pub(super) retry: RetryOptions,
    pub(super) storage_class: Option<String>,
    pub(super) timeouts: Timeouts,
}

impl fmt::Debug for S3Options {
    /// Without the provider of credentials, which may be that of a caller, and without a user in the endpoint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Options")
            .field("addressing", &self.addressing)
            .field("bucket", &self.bucket)
            .field("concurrency", &self.concurrency)
            .field("encryption", &self.encryption)
            .field("endpoint", &self.shown_endpoint())
            .field("limits", &self.limits)
            .field("part_bytes", &self.part_bytes)
            .field("parts_from", &self.parts_from)
            .field("region", &self.region)
            .field("retry", &self.retry)
            .field("storage_class", &self.storage_class)
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

impl S3Options {
    /// A bucket at an endpoint, such as `https://s3.eu-central-1.amazonaws.com` or `http://127.0.0.1:9000`. `{{bucket}}` and
    /// `{{region}}` in the endpoint are replaced, as in `https://{{bucket}}.s3.{{region}}.amazonaws.com`.
    pub fn new(endpoint: impl Into<String>, bucket: impl Into<String>) -> Self {
        Self {
            addressing: Addressing::default(),
            bucket: bucket.into(),
            concurrency: NonZeroU32::MIN.saturating_add(63),
            credentials: Arc::new(EnvironmentCredentials),
            encryption: None,
            endpoint: endpoint.into(),
            limits: RateLimits::default(),
            part_bytes: NonZeroU64::MIN.saturating_add((16 << 20) - 1),
            parts_from: 64 << 20,
            region: "us-east-1".to_owned(),
            retry: RetryOptions::default(),
            storage_class: None,
            timeouts: Timeouts::default(),
        }
    }

    /// Place of the bucket name; default: in the path, or at `{{bucket}}` in the endpoint.
    pub fn addressing(mut self, addressing: Addressing) -> Self {
        self.addressing = addressing;
        self
    }

    /// Maximum number of concurrent requests; default: 64. The client lowers it while the server throttles.
    pub fn concurrency(mut self, most: NonZeroU32) -> Self {
        self.concurrency = most;
        self
    }

    /// Source of credentials; default: [`EnvironmentCredentials`].
    pub fn credentials(mut self, provider: Arc<dyn CredentialProvider>) -> Self {
        self.credentials = provider;
        self
    }

    /// Server-side encryption of stored objects; default: that of the bucket.
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.encryption = Some(encryption);
        self
    }

    /// Rate limits; default: none.
    pub fn limits(mut self, limits: RateLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Stores objects of `from` bytes or more in parts of `length` bytes, for which servers require at least 5 MiB; default:
    /// 64 MiB and 16 MiB. Parts are longer if there would be more than 10,000. Objects with a condition are
    /// always stored in one request, because most servers ignore conditions on multipart uploads.
    pub fn parts(mut self, from: u64, length: NonZeroU64) -> Self {
        (self.parts_from, self.part_bytes) = (from, length);
        self
    }

    /// Region for which requests are signed; default: `us-east-1`. If the server names another one, the client uses that.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = region.into();
        self
    }

    /// Retry policy; default: [`RetryOptions::default`].
    pub fn retry(mut self, options: RetryOptions) -> Self {
        self.retry = options;
        self
    }

    /// Storage class of stored objects; default: that of the server.
    pub fn storage_class(mut self, class: impl Into<String>) -> Self {
        self.storage_class = Some(class.into());
        self
    }

    /// Timeouts of an exchange; default: [`Timeouts::default`]. The total timeout holds for requests without
    /// bodies, and grows by one second for each 64 KiB.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// The endpoint without a user and a password.
    fn shown_endpoint(&self) -> &str {
        self.endpoint.rsplit('@').next().unwrap_or_default()
    }

    /// Endpoint of the bucket for requests signed for `region`, and the prefix of paths.
    pub(super) fn server(&self, region: &str) -> Result<(Endpoint, String)> {
        let refused = || Error::new(ErrorKind::InvalidInput, "use the endpoint").on(self.shown_endpoint());
        if self.bucket.is_empty() || self.bucket.contains('/') {
            return Err(Error::new(ErrorKind::InvalidInput, "use the bucket").on(&self.bucket));
        }
        let text = self.endpoint.replace("{{bucket}}", &self.bucket).replace("{{region}}", region);
        let endpoint = Endpoint::parse(&text).map_err(|error| refused().because(error))?;
        let in_host = self.endpoint.contains("{{bucket}}");
        let base = endpoint.base_path.clone();
        // Host names have no capitals; names of some old buckets do.
        let is_label = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let plain_name = self.bucket.bytes().all(is_label) && !endpoint.is_ip();
        if in_host {
            Ok((endpoint, base))
        } else if self.addressing == Addressing::VirtualHost && plain_name {
            Ok((endpoint.with_label(&self.bucket), base))
        } else {
            Ok((endpoint, format!("{base}/{}", crate::wire::uri::encode(&self.bucket))))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::s3::{Credentials, StaticCredentials};

    fn server(options: &S3Options) -> (String, String) {
        let (endpoint, base) = options.server("eu-west-1").unwrap();
        (endpoint.authority(), base)
    }

    #[test]
    fn options_show_no_secret() {
        let credentials = StaticCredentials::new(Credentials::new("id", "secret-key"));
        let options =
            S3Options::new("http://user:secret-word@localhost", "b").credentials(Arc::new(credentials));
        let shown = format!("{options:?}");
        assert!(shown.contains("localhost") && !shown.contains("secret"), "{shown}");
    }

    /// Proves H109.
    #[test]
    fn the_bucket_is_addressed_as_the_options_say() {
        let at = |endpoint: &str, bucket: &str| S3Options::new(endpoint, bucket);
        let virtual_host = |options: S3Options| options.addressing(Addressing::VirtualHost);
        let aws = "https://{{bucket}}.s3.{{region}}.amazonaws.com";
        for (options, host, base) in [
            (at("http://127.0.0.1:9000", "b"), "127.0.0.1:9000", "/b"),
            (at("https://s3.example.com/base/", "My_Bucket.x"), "s3.example.com", "/base/My_Bucket.x"),
            (virtual_host(at("https://s3.example.com", "b")), "b.s3.example.com", ""),
            (virtual_host(at("https://s3.example.com", "a.b")), "s3.example.com", "/a.b"),
            (virtual_host(at("https://s3.example.com", "Old")), "s3.example.com", "/Old"),
            (virtual_host(at("http://[::1]:1", "b")), "[::1]:1", "/b"),
            (at(aws, "b"), "b.s3.eu-west-1.amazonaws.com", ""),
        ] {
            assert_eq!(server(&options), (host.to_owned(), base.to_owned()), "{options:?}");
        }
        assert!(at("https://x", "").server("r").is_err());
        assert!(at("https://x", "a/b").server("r").is_err());
        assert!(at("ftp://x", "b").server("r").is_err());
    }
}
