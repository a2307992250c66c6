//! Tunnels through an HTTP proxy by CONNECT, so that the proxy cannot change the traffic.
//!
//! Source: RFC 9110 §9.3.6.

use std::fmt;
use std::io;
use std::net::IpAddr;

use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::base64;
use crate::error::{Error, ErrorKind, Result};
use crate::http::{Progress, TransportError, TransportErrorKind};
use crate::rt::Connection;
use crate::wire::http_head::{parse_response, write_request};
use crate::wire::uri::{Endpoint, decode};

/// An HTTP proxy, reached without TLS. Servers on this host are connected to directly.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    authorization: Option<String>,
    /// Hosts connected to directly, with all their subdomains; `*` means all.
    direct: Vec<String>,
    endpoint: Endpoint,
}

impl Proxy {
    /// The proxy at an address such as `http://proxy.example:3128` or `http://user:password@proxy.example:3128`, with user
    /// and password percent-encoded.
    ///
    /// # Errors
    /// `InvalidInput` for an invalid address or a scheme other than `http://`. The error does not contain the password.
    pub fn new(url: &str) -> Result<Self> {
        let rest = url.strip_prefix("http://").unwrap_or(url);
        let (user, address) = rest.rsplit_once('@').map_or((None, rest), |(user, rest)| (Some(user), rest));
        let refused = || Error::new(ErrorKind::InvalidInput, "use the proxy").on(address);
        if rest.len() == url.len() && url.contains("://") {
            return Err(refused().because("a proxy address must begin with http://"));
        }
        let endpoint =
            Endpoint::parse(&format!("http://{address}")).map_err(|error| refused().because(error))?;
        let malformed = || refused().because("the user name or password is malformed");
        let authorization = match user {
            None => None,
            Some(user) => {
                let user = decode(user).ok_or_else(malformed)?;
                let user = if user.contains(':') { user } else { format!("{user}:") };
                Some(format!("Basic {}", base64::encode(user.as_bytes())))
            }
        };
        Ok(Self { authorization, direct: Vec::new(), endpoint })
    }

    /// The proxy of the environment, from `HTTPS_PROXY` or `ALL_PROXY`, except for the hosts in `NO_PROXY`; `None` without one. The
    /// names may be in lower case.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn from_environment() -> Result<Option<Self>> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>> {
        let first =
            |names: [&str; 4]| names.into_iter().filter_map(&variable).find(|value| !value.is_empty());
        let Some(url) = first(["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"]) else {
            return Ok(None);
        };
        let direct = first(["no_proxy", "NO_PROXY", "", ""]).unwrap_or_default();
        Ok(Some(direct.split(',').fold(Self::new(&url)?, Self::direct)))
    }

    /// Connects directly to this host and its subdomains: `example.com` includes `s3.example.com`. `*` means all hosts.
    #[must_use]
    pub fn direct(mut self, host: &str) -> Self {
        let host = host.trim().trim_start_matches('.').to_ascii_lowercase();
        if !host.is_empty() {
            self.direct.push(host);
        }
        self
    }

    /// Sets the `proxy-authorization` header, such as `Basic dXNlcjpzZWNyZXQ=`; default: none.
    #[must_use]
    pub fn authorization(mut self, value: impl Into<String>) -> Self {
        self.authorization = Some(value.into());
        self
    }

    /// Returns `true` if connections to the server go through the proxy.
    pub(super) fn is_for(&self, server: &Endpoint) -> bool {
        let is_direct = |host: &String| {
            let below = server.host.strip_suffix(host.as_str()).is_some_and(|label| label.ends_with('.'));
            host == "*" || server.host == *host || below && host.parse::<IpAddr>().is_err()
        };
        !server.is_loopback() && !self.direct.iter().any(is_direct)
    }

    pub(super) fn host(&self) -> &str {
        &self.endpoint.host
    }

    pub(super) fn port(&self) -> u16 {
        self.endpoint.port
    }

    /// Opens a tunnel to `host`.
    pub(super) async fn tunnel(
        &self,
        connection: &mut dyn Connection,
        endpoint: &Endpoint,
    ) -> Result<(), TransportError> {
        let failed = || TransportError::new(TransportErrorKind::Proxy, Progress::NotSent, "open a tunnel");
        let host = if endpoint.host.contains(':') {
            format!("[{}]:{}", endpoint.host, endpoint.port)
        } else {
            format!("{}:{}", endpoint.host, endpoint.port)
        };
        let mut request = Vec::new();
        let headers = [("host", host.as_str())];
        let authorization = self.authorization.iter().map(|value| ("proxy-authorization", value.as_str()));
        write_request(&mut request, "CONNECT", &host, headers.into_iter().chain(authorization))
            .map_err(|error| failed().because(error))?;
        let answered: io::Result<u16> = async {
            connection.write_all(&request).await?;
            connection.flush().await?;
            let mut answer = Vec::new();
            // Byte by byte, because the bytes after the head belong to the next protocol.
            loop {
                if let Some((head, _)) = parse_response(&answer).map_err(io::Error::other)? {
                    return Ok(head.status);
                }
                let mut byte = [0];
                connection.read_exact(&mut byte).await?;
                answer.extend_from_slice(&byte);
            }
        }
        .await;
        match answered {
            Ok(200..=299) => Ok(()),
            Ok(status) => Err(failed().because(format!("the proxy answered with status {status}"))),
            Err(error) => Err(failed().because(error)),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves H147.
    #[test]
    fn environment_variables_configure_a_proxy_and_its_exceptions() {
        let of = |variables: &[(&str, &str)]| {
            Proxy::from_variables(|name| {
                let found = variables.iter().find(|(other, _)| *other == name);
                found.map(|(_, value)| (*value).to_owned())
            })
        };
        assert_eq!(of(&[("HTTP_PROXY", "http://p:1")]).unwrap(), None, "that one is for other things");
        assert!(of(&[("HTTPS_PROXY", "socks5://p:1")]).is_err());
        let proxy = of(&[
            ("all_proxy", "http://other:1"),
            ("HTTPS_PROXY", "http://us%40er:pass@Proxy.example:3128"),
            ("NO_PROXY", "internal.example, .dotted.example,10.0.0.1"),
        ]);
        let proxy = proxy.unwrap().unwrap();
        assert_eq!((proxy.host(), proxy.port()), ("proxy.example", 3128));
        assert_eq!(proxy.authorization.as_deref(), Some("Basic dXNAZXI6cGFzcw=="));
        let through = |host: &str| proxy.is_for(&Endpoint::parse(&format!("https://{host}")).unwrap());
        for host in ["s3.example.com", "xinternal.example", "10.0.0.2", "110.0.0.1"] {
            assert!(through(host), "{host}");
        }
        for host in [
            "internal.example",
            "s3.internal.example",
            "dotted.example",
            "10.0.0.1",
            "127.0.0.1",
            "localhost",
        ] {
            assert!(!through(host), "{host}");
        }
        assert!(!proxy.direct("*").is_for(&Endpoint::parse("https://s3.example.com").unwrap()));
    }
}
