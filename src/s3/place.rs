//! The endpoint of the bucket, and the redirects that servers may request.

use std::sync::Arc;

use crate::error::Result;
use crate::s3::options::S3Options;
use crate::wire::uri::{Endpoint, Scheme, encode};

/// The endpoint of the bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Prefix of paths.
    pub(super) base: String,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) region: String,
}

/// A redirect by the server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct SentTo {
    /// `true` if it holds for other requests too.
    pub(super) lasting: bool,
    pub(super) location: Option<String>,
    pub(super) region: Option<String>,
}

impl Place {
    /// The endpoint according to the options.
    pub(super) fn new(options: &S3Options, region: String) -> Result<Self> {
        let (endpoint, base) = options.server(&region)?;
        Ok(Self { base, endpoint: Arc::new(endpoint), region })
    }

    /// The redirected endpoint, if it differs and may be followed (H136).
    pub(super) fn moved(&self, options: &S3Options, sent_to: SentTo) -> Option<Self> {
        let SentTo { location, region, .. } = sent_to;
        let to_region =
            region.filter(|region| *region != self.region).and_then(|region| Self::new(options, region).ok());
        let here = to_region.as_ref().unwrap_or(self);
        let to_server = location.and_then(|location| here.at_server(options, &location));
        to_server.or(to_region)
    }

    /// The same bucket at the server of a location; its path and query are ignored.
    fn at_server(&self, options: &S3Options, location: &str) -> Option<Self> {
        let authority = location.split_once("://").map_or(location, |(_, rest)| rest);
        let authority = authority.split(['/', '?']).next().unwrap_or_default();
        let scheme = if self.endpoint.scheme == Scheme::Https { "https" } else { "http" };
        let endpoint = Endpoint::parse(&format!("{scheme}://{authority}")).ok()?;
        let is_downgrade = location.starts_with("http://") && scheme == "https";
        if is_downgrade || endpoint == *self.endpoint || !is_related(&endpoint, &self.endpoint) {
            return None;
        }
        // A host name that begins with the bucket needs no bucket in the path; any other does.
        let in_host = endpoint.host.starts_with(&format!("{}.", options.bucket));
        let base = if in_host { String::new() } else { format!("/{}", encode(&options.bucket)) };
        Some(Self { base, endpoint: Arc::new(endpoint), region: self.region.clone() })
    }
}

/// Returns `true` if both hosts belong to one operator as far as names show: the last two labels agree, or three where two may be a suffix
/// under which anyone can register names, as in `co.uk`; or both are the same address.
fn is_related(one: &Endpoint, other: &Endpoint) -> bool {
    if one.host == other.host {
        return true;
    }
    let labels = |host: &str| host.rsplit('.').map(str::to_owned).collect::<Vec<_>>();
    let (one_labels, other_labels) = (labels(&one.host), labels(&other.host));
    let is_suffix = matches!(&other_labels[..], [last, second, ..] if last.len() == 2 && second.len() <= 3);
    let shared = one_labels.iter().zip(&other_labels).take_while(|(one, other)| one == other).count();
    !one.is_ip() && !other.is_ip() && shared >= if is_suffix { 3 } else { 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves H136.
    #[test]
    fn redirects_are_accepted_only_within_a_provider() {
        let related = |one: &str, other: &str| {
            let endpoint = |host: &str| Endpoint::parse(&format!("https://{host}")).unwrap();
            is_related(&endpoint(one), &endpoint(other))
        };
        for (one, other, want) in [
            ("b.s3.eu-1.example.com", "s3.example.com", true),
            ("s3.example.com", "s3.example.com", true),
            ("evil.com", "s3.example.com", false),
            ("evil.co.uk", "s3.example.co.uk", false),
            ("eu.example.co.uk", "s3.example.co.uk", true),
            ("example.com.evil.org", "example.com", false),
            ("127.0.0.1", "s3.example.com", false),
            ("10.0.0.2", "10.1.0.2", false),
            ("localhost", "localhost", true),
            ("other", "server", false),
        ] {
            assert_eq!(related(one, other), want, "{other} sends to {one}");
        }
    }

    /// Proves H136.
    #[test]
    fn the_bucket_is_in_the_path_or_in_the_host_name() {
        let options = S3Options::new("https://s3.example.com", "bucket");
        let home = Place::new(&options, "r".to_owned()).unwrap();
        let at = |location: &str| {
            let sent_to = SentTo { location: Some(location.to_owned()), ..SentTo::default() };
            home.moved(&options, sent_to).map(|place| (place.endpoint.authority(), place.base))
        };
        let to = |host: &str, base: &str| Some((host.to_owned(), base.to_owned()));
        assert_eq!(at("https://bucket.s3.eu.example.com/k?x"), to("bucket.s3.eu.example.com", ""));
        assert_eq!(at("s3.eu.example.com"), to("s3.eu.example.com", "/bucket"));
        assert_eq!(at("http://s3.eu.example.com/k"), None, "not without TLS");
        assert_eq!(at("https://s3.example.com/k"), None, "it is here already");
    }
}
