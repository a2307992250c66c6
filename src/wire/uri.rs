//! The target of a request, and the address of its server.
//!
//! Text is encoded only here and only once, from plain text, so the signed bytes are the sent bytes
//! (H111).
//!
//! Source: RFC 3986 §2; AWS, "Create a canonical request".

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use thiserror::Error;

use crate::error::ParseError;

pub use crate::wire::percent::{decode, encode, encode_path};

/// Reason why a text is not the address of a server.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum UriError {
    /// The host is missing, or contains invalid characters.
    #[error("the host is malformed")]
    Host,
    /// The port is not a number from 1 to 65535.
    #[error("the port is malformed")]
    Port,
    /// It does not begin with `http://` or `https://`.
    #[error("it does not begin with http:// or https://")]
    Scheme,
    /// The address has a user, a query or a fragment.
    #[error("it has parts that the address of a server does not have")]
    Unwanted,
}

/// Scheme of an address.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain text.
    Http,
    /// TLS.
    Https,
}

/// The address of a server.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// Encoded prefix of every path; empty, or with a leading and without a trailing `/`.
    pub base_path: String,
    /// A name in lower case, or an IP address; an IPv6 address without brackets.
    pub host: String,
    /// The port; 80 or 443 by default.
    pub port: u16,
    /// The scheme.
    pub scheme: Scheme,
}

impl Endpoint {
    /// Parses an address such as `https://s3.eu-west-1.example.com`, or `http://[::1]:9000/base`.
    ///
    /// # Errors
    /// For an address that cannot be used in a request.
    pub(crate) fn parse(text: &str) -> Result<Self, UriError> {
        let (scheme, rest) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (Scheme::Https, rest),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (Scheme::Http, rest),
            _ => return Err(UriError::Scheme),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if rest.contains(['?', '#', '@']) {
            return Err(UriError::Unwanted);
        }
        let (host, port) = split_port(authority)?;
        let default = if scheme == Scheme::Http { 80 } else { 443 };
        let port = port.map_or(Ok(default), |port| match port.parse() {
            // `parse` accepts a sign.
            Ok(number @ 1..) if !port.starts_with('+') => Ok(number),
            _ => Err(UriError::Port),
        })?;
        let base_path = encode_path(&decode(path.trim_end_matches('/')).ok_or(UriError::Unwanted)?);
        Ok(Self { base_path, host, port, scheme })
    }

    /// The value of the `host` header, with the port only if it is not the default.
    pub(crate) fn authority(&self) -> String {
        let host = if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() };
        match (self.scheme, self.port) {
            (Scheme::Http, 80) | (Scheme::Https, 443) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }

    /// The same server with one more label in front, as in `bucket.s3.example.com`.
    #[must_use]
    pub(crate) fn with_label(&self, label: &str) -> Self {
        Self { host: format!("{}.{}", label.to_ascii_lowercase(), self.host), ..self.clone() }
    }

    /// Returns `true` if the host is an IP address.
    pub(crate) fn is_ip(&self) -> bool {
        self.host.parse::<IpAddr>().is_ok()
    }

    /// Returns `true` if the address can only be on this host.
    pub(crate) fn is_loopback(&self) -> bool {
        let by_name = self.host == "localhost" || self.host.ends_with(".localhost");
        by_name || self.host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

impl FromStr for Endpoint {
    type Err = ParseError;

    /// As for the endpoint of a server: `https://s3.eu-west-1.example.com`, or `http://[::1]:9000/base`.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::parse(text).map_err(|error| ParseError::new(format!("not the address of a server: {error}")))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.scheme == Scheme::Http { "http" } else { "https" };
        write!(f, "{scheme}://{}{}", self.authority(), self.base_path)
    }
}

fn split_port(authority: &str) -> Result<(String, Option<&str>), UriError> {
    if let Some(rest) = authority.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or(UriError::Host)?;
        if !matches!(host.parse(), Ok(IpAddr::V6(_))) {
            return Err(UriError::Host);
        }
        let port = match rest {
            "" => None,
            rest => Some(rest.strip_prefix(':').ok_or(UriError::Port)?),
        };
        return Ok((host.to_ascii_lowercase(), port));
    }
    let (host, port) = match authority.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (authority, None),
    };
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if host.is_empty() || !host.bytes().all(allowed) {
        return Err(UriError::Host);
    }
    Ok((host.to_ascii_lowercase(), port))
}

/// Encodes and sorts a query, for signing and sending. A name without value is
/// still followed by `=`.
pub fn query(pairs: &[(&str, &str)]) -> String {
    let mut encoded: Vec<_> = pairs.iter().map(|(name, value)| (encode(name), encode(value))).collect();
    encoded.sort_unstable();
    let mut query = String::new();
    for (name, value) in encoded {
        if !query.is_empty() {
            query.push('&');
        }
        query.extend([name.as_str(), "=", value.as_str()]);
    }
    query
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Proves H111.
    #[test]
    fn each_byte_is_encoded_once_by_the_rules_of_its_component() {
        assert_eq!(encode_path("a/b c+d%e~f"), "a/b%20c%2Bd%25e~f");
        assert_eq!(encode("a/b=c&d:@"), "a%2Fb%3Dc%26d%3A%40");
        assert_eq!(encode_path("/ü/\u{1f4be}"), "/%C3%BC/%F0%9F%92%BE");
        assert_eq!(encode_path("//./../"), "//./../");
        assert_eq!(
            query(&[("prefix", "a/b"), ("list-type", "2"), ("delete", "")]),
            "delete=&list-type=2&prefix=a%2Fb"
        );
        // Sorted in the encoded form: `A-` before `a`, and `a%2F` before `a-`.
        assert_eq!(query(&[("a-", "1"), ("a/", "2"), ("B", "3")]), "B=3&a%2F=2&a-=1");
    }

    #[test]
    fn addresses_are_read() {
        for (text, scheme, host, port, path, authority) in [
            ("https://s3.example.com", Scheme::Https, "s3.example.com", 443, "", "s3.example.com"),
            ("https://S3.Example.com", Scheme::Https, "s3.example.com", 443, "", "s3.example.com"),
            ("HTTP://localhost:9000/", Scheme::Http, "localhost", 9000, "", "localhost:9000"),
            ("http://[::1]:80/a/b c/", Scheme::Http, "::1", 80, "/a/b%20c", "[::1]"),
            ("https://[fe80::A]:444", Scheme::Https, "fe80::a", 444, "", "[fe80::a]:444"),
            ("https://127.0.0.1:443/x%20y", Scheme::Https, "127.0.0.1", 443, "/x%20y", "127.0.0.1"),
        ] {
            let endpoint = Endpoint::parse(text).unwrap();
            let (host, base_path) = (host.to_owned(), path.to_owned());
            assert_eq!(endpoint, Endpoint { base_path, host, port, scheme }, "{text}");
            assert_eq!(endpoint.authority(), authority, "{text}");
        }
        assert_eq!(
            Endpoint::parse("http://s3.com:81").unwrap().with_label("B.c").authority(),
            "b.c.s3.com:81"
        );
    }

    /// Proves H109.
    #[test]
    fn only_addresses_that_no_request_can_contain_are_refused() {
        for (text, error) in [
            ("", UriError::Scheme),
            ("s3.example.com", UriError::Scheme),
            ("https://", UriError::Host),
            ("https://a b", UriError::Host),
            ("https://[1.2.3.4]", UriError::Host),
            ("https://[::1", UriError::Host),
            ("https://a:", UriError::Port),
            ("https://a:0", UriError::Port),
            ("https://a:65536", UriError::Port),
            ("https://a:+80", UriError::Port),
            ("https://[::1]:+80", UriError::Port),
            ("https://[::1]443", UriError::Port),
            ("s3://bucket", UriError::Scheme),
            ("https://user@host", UriError::Unwanted),
            ("https://host/?a", UriError::Unwanted),
            ("https://host/#a", UriError::Unwanted),
            ("https://host/%zz", UriError::Unwanted),
        ] {
            assert_eq!(Endpoint::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn addresses_of_this_host_are_recognised() {
        for (text, is) in [
            ("http://localhost", true),
            ("http://bucket.localhost:1", true),
            ("http://127.1.2.3", true),
            ("http://[::1]", true),
            ("http://localhost.example.com", false),
            ("http://10.0.0.1", false),
        ] {
            assert_eq!(Endpoint::parse(text).unwrap().is_loopback(), is, "{text}");
        }
    }

    proptest! {
        #[test]
        fn encoded_text_is_decoded(text: String) {
            prop_assert_eq!(decode(&encode(&text)), Some(text.clone()));
            prop_assert_eq!(decode(&encode_path(&text)), Some(text));
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = Endpoint::parse(&text);
            let _ = decode(&text);
        }
    }
}
