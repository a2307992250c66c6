//! Tunnels through an HTTP proxy, by CONNECT and nothing else: what goes through cannot be changed by the proxy.
//!
//! Source: RFC 9110 §9.3.6.

use std::fmt;
use std::io;

use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::error::{Error, ErrorKind, Result};
use crate::http::{Progress, TransportError, TransportErrorKind};
use crate::rt::Connection;
use crate::wire::http_head::{parse_response, write_request};
use crate::wire::uri::{Endpoint, Scheme};

/// An HTTP proxy, which is reached without TLS.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    authorization: Option<String>,
    endpoint: Endpoint,
}

impl Proxy {
    /// The proxy at an address such as `http://proxy.example:3128`.
    ///
    /// # Errors
    /// `InvalidInput` if it is none, or begins with anything but `http://`.
    pub fn new(url: &str) -> Result<Self> {
        // An address with a password is not shown.
        let shown = url.rsplit('@').next().unwrap_or_default().to_owned();
        let refused = || Error::new(ErrorKind::InvalidInput, "use the proxy").on(&shown);
        let endpoint = Endpoint::parse(url).map_err(|error| refused().because(error))?;
        if endpoint.scheme != Scheme::Http {
            return Err(refused().because("only http:// is possible"));
        }
        Ok(Self { authorization: None, endpoint })
    }

    /// Sends this value of `proxy-authorization`, such as `Basic dXNlcjpzZWNyZXQ=`; default: none.
    #[must_use]
    pub fn authorization(mut self, value: impl Into<String>) -> Self {
        self.authorization = Some(value.into());
        self
    }

    pub(super) fn host(&self) -> &str {
        &self.endpoint.host
    }

    pub(super) fn port(&self) -> u16 {
        self.endpoint.port
    }

    /// Has the proxy open a tunnel to `host`.
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
            // Byte by byte: what follows the head belongs to whoever speaks next.
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
            Ok(status) => Err(failed().because(format!("status {status}"))),
            Err(error) => Err(failed().because(error)),
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}
