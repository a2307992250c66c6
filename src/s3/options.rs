//! How a client is set up.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::http::Timeouts;
use crate::s3::credentials::{CredentialProvider, EnvironmentCredentials};
use crate::wire::uri::Endpoint;

/// Where the name of the bucket stands in a request.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Addressing {
    /// In the path. The default: every server understands it, and certificates and name servers need nothing for it.
    #[default]
    Path,
    /// In front of the host name, unless the host is an IP address or the bucket has a dot in its name, which no wildcard
    /// certificate covers (H146), or something else that names of hosts have not.
    VirtualHost,
}

/// How the server encrypts what it stores.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Encryption {
    /// With keys of its own: `AES256`.
    Aes256,
    /// With a key of its key service, or the default one of the bucket.
    Kms(Option<String>),
}

/// How often and how much at most. Without a value there is no limit; retries count too.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimits {
    /// Bytes of bodies a second that come in.
    pub bytes_in: Option<NonZeroU64>,
    /// Bytes of bodies a second that go out.
    pub bytes_out: Option<NonZeroU64>,
    /// Requests a second that change nothing.
    pub reads: Option<NonZeroU64>,
    /// Requests a second that change something.
    pub writes: Option<NonZeroU64>,
}

/// How patiently a failed request is repeated.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryOptions {
    /// How many times a request is sent at most; default: 10.
    pub attempts: NonZeroU32,
    /// The longest pause between two attempts; default: 20 s. `Retry-After` is obeyed up to three times as long.
    pub max_backoff: Duration,
    /// How long an operation may take with all its attempts, besides a second for each 64 KiB of its bodies; default: 5 minutes.
    pub deadline: Duration,
}

impl Default for RetryOptions {
    fn default() -> Self {
        let attempts = NonZeroU32::MIN.saturating_add(9);
        Self { attempts, max_backoff: Duration::from_secs(20), deadline: Duration::from_mins(5) }
    }
}

/// Which bucket, where, and how it is used.
#[derive(Clone, Debug)]
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

impl S3Options {
    /// A bucket on a server, such as `https://s3.eu-central-1.amazonaws.com` or `http://127.0.0.1:9000`. `{{bucket}}` and
    /// `{{region}}` in the address are replaced, as in `https://{{bucket}}.s3.{{region}}.amazonaws.com`.
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

    /// Where the name of the bucket stands; default: in the path, or where `{{bucket}}` is in the address.
    pub fn addressing(mut self, addressing: Addressing) -> Self {
        self.addressing = addressing;
        self
    }

    /// How many requests are under way at once, at most; default: 64. It is lowered while the server asks for patience.
    pub fn concurrency(mut self, most: NonZeroU32) -> Self {
        self.concurrency = most;
        self
    }

    /// Who the requests are from; default: [`EnvironmentCredentials`].
    pub fn credentials(mut self, provider: Arc<dyn CredentialProvider>) -> Self {
        self.credentials = provider;
        self
    }

    /// How the server encrypts what is stored; default: as the bucket has it.
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.encryption = Some(encryption);
        self
    }

    /// How much a second at most; default: no limits.
    pub fn limits(mut self, limits: RateLimits) -> Self {
        self.limits = limits;
        self
    }

    /// Stores objects of `from` bytes or more in parts of `length` bytes each, which servers want to be at least 5 MiB; default:
    /// 64 MiB and 16 MiB. Parts are longer where there would be more than 10,000. Objects that are stored on a condition are
    /// always stored in one piece, since most servers do not look at conditions otherwise.
    pub fn parts(mut self, from: u64, length: NonZeroU64) -> Self {
        (self.parts_from, self.part_bytes) = (from, length);
        self
    }

    /// The region that requests are signed for; default: `us-east-1`. If the server names another one, that is used.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.region = region.into();
        self
    }

    /// How patiently a failed request is repeated; default: [`RetryOptions::default`].
    pub fn retry(mut self, options: RetryOptions) -> Self {
        self.retry = options;
        self
    }

    /// The storage class of what is stored; default: that of the server.
    pub fn storage_class(mut self, class: impl Into<String>) -> Self {
        self.storage_class = Some(class.into());
        self
    }

    /// How long the parts of an exchange may take; default: [`Timeouts::default`]. The overall limit is for requests without
    /// bodies: there is a second more for each 64 KiB.
    pub fn timeouts(mut self, timeouts: Timeouts) -> Self {
        self.timeouts = timeouts;
        self
    }

    /// The server to speak to for the bucket when requests are signed for `region`, and what paths begin with.
    pub(super) fn server(&self, region: &str) -> Result<(Endpoint, String)> {
        // An address with a password is not shown.
        let shown = self.endpoint.rsplit('@').next().unwrap_or_default();
        let refused = || Error::new(ErrorKind::InvalidInput, "use the endpoint").on(shown);
        if self.bucket.is_empty() || self.bucket.contains('/') {
            return Err(Error::new(ErrorKind::InvalidInput, "use the bucket").on(&self.bucket));
        }
        let text = self.endpoint.replace("{{bucket}}", &self.bucket).replace("{{region}}", region);
        let endpoint = Endpoint::parse(&text).map_err(|error| refused().because(error))?;
        let in_host = self.endpoint.contains("{{bucket}}");
        let base = endpoint.base_path.clone();
        // Names of hosts have no capitals, those of some old buckets do.
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

    fn server(options: &S3Options) -> (String, String) {
        let (endpoint, base) = options.server("eu-west-1").unwrap();
        (endpoint.authority(), base)
    }

    /// Proves H109.
    #[test]
    fn the_bucket_is_where_the_options_have_it() {
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
