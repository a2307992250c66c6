//! Where the bucket is, and where servers may send us.

use std::sync::Arc;

use crate::error::Result;
use crate::s3::options::S3Options;
use crate::wire::uri::{Endpoint, Scheme};

/// Where the bucket is.
#[derive(Clone, Debug)]
pub(in crate::s3) struct Place {
    /// What paths begin with.
    pub(in crate::s3) base: String,
    pub(in crate::s3) endpoint: Arc<Endpoint>,
    pub(in crate::s3) region: String,
}

impl Place {
    /// Where the options say that it is.
    pub(in crate::s3) fn new(options: &S3Options, region: String) -> Result<Self> {
        let (endpoint, base) = options.server(&region)?;
        Ok(Self { base, endpoint: Arc::new(endpoint), region })
    }

    /// Where a server sends us, if that is another place and one to go to (H136).
    pub(in crate::s3) fn moved(
        &self,
        options: &S3Options,
        location: Option<&str>,
        region: Option<String>,
    ) -> Option<Self> {
        let to_region =
            region.filter(|region| *region != self.region).and_then(|region| Self::new(options, region).ok());
        let here = to_region.as_ref().unwrap_or(self);
        let to_server = location.and_then(|location| here.at_server(options, location));
        to_server.or(to_region)
    }

    /// The same bucket on the server in a location, of which path and query are not looked at.
    fn at_server(&self, options: &S3Options, location: &str) -> Option<Self> {
        let authority = location.split_once("://").map_or(location, |(_, rest)| rest);
        let authority = authority.split(['/', '?']).next().unwrap_or_default();
        let scheme = if self.endpoint.scheme == Scheme::Https { "https" } else { "http" };
        let endpoint = Endpoint::parse(&format!("{scheme}://{authority}")).ok()?;
        let is_downgrade = location.starts_with("http://") && scheme == "https";
        if is_downgrade || endpoint == *self.endpoint || !is_related(&endpoint, &self.endpoint) {
            return None;
        }
        // A name that begins with the bucket needs no bucket in the path.
        let in_host = endpoint.host.starts_with(&format!("{}.", options.bucket.to_ascii_lowercase()));
        let base = if in_host { String::new() } else { self.base.clone() };
        Some(Self { base, endpoint: Arc::new(endpoint), region: self.region.clone() })
    }
}

/// Whether both belong to one operator, as far as names show: the last two labels agree, or it is the same address.
fn is_related(one: &Endpoint, other: &Endpoint) -> bool {
    if one.host == other.host {
        return true;
    }
    let tail = |host: &str| host.rsplitn(3, '.').take(2).map(str::to_owned).collect::<Vec<_>>();
    !one.is_ip() && !other.is_ip() && other.host.contains('.') && tail(&one.host) == tail(&other.host)
}
