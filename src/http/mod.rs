//! HTTP/1.1 over the connections of a [`Runtime`](crate::rt::Runtime): one request, one complete answer.
//!
//! Bodies are single buffers in both directions: a request can be sent again (H142), and a response is complete or
//! an error. The client uses neither pipelining nor HTTP/2: many connections beat one for bulk data over latency (H148).
//!
//! This module retries nothing. A failed request is a [`TransportError`] that says how far the request came, and only
//! the caller knows if it may be sent again.
//!
//! # An exchange
//! | state | on success | on failure |
//! |---|---|---|
//! | connect, proxy, TLS | connected | nothing was sent |
//! | write head and body, while watching for an answer | all written | an early answer: use it and close; a failed write: wait for the answer that explains it, then close |
//! | read the head, past any number of 1xx | a final status | closed or timed out: the request may have been executed |
//! | read the body | as long as its framing says | truncated, too long or timed out: the request may have been executed |
//!
//! Only an exchange that succeeded from start to end returns its connection to the pool. A dropped future closes the connection.

mod client;
mod exchange;
mod local;
mod proxy;
#[cfg(feature = "_tls")]
mod tls;
mod watch;

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::wire::http_head::compression;

pub use crate::wire::uri::{Endpoint, Scheme};
pub use client::{HttpClient, HttpOptions};
pub(crate) use local::{MetadataService, exchange_metadata};
pub use proxy::Proxy;
#[cfg(feature = "_tls")]
pub use tls::{CertificateFingerprint, RootStore, TlsOptions, TlsProvider};

/// Sends one request to a server and returns the answer. [`HttpClient`] is the implementation of this crate; implement the trait to use another
/// HTTP stack.
///
/// # Contract
/// * **In time**: no byte of a request is sent at or after [`Request::not_after`].
/// * **Once**: a request is written at most once. The transport neither retries nor follows redirects.
/// * **Whole**: a response is complete. A body that is truncated, has ambiguous framing, or exceeds
///   [`Request::body_limit`] is an error.
/// * **Bounded**: every exchange ends within [`Timeouts::overall`].
/// * **Honest**: an error says [`Progress::NotSent`] only if no byte of the request can have reached a server.
///
/// # Cancel safety
/// The future may be dropped. The request may then have been executed, or be executed later.
#[async_trait]
pub trait HttpTransport: fmt::Debug + Send + Sync + 'static {
    /// Sends the request and reads the response.
    ///
    /// # Errors
    /// A [`TransportError`] if there is no answer. An answer of any status is no error.
    async fn exchange(&self, request: &Request) -> Result<Response, TransportError>;
}

/// A complete request.
#[non_exhaustive]
#[derive(Clone)]
pub struct Request {
    /// The body; empty for none.
    pub body: Bytes,
    /// Maximum bytes of the body of a successful response. Only the first 64 KiB of an error's body are read.
    pub body_limit: u64,
    /// The server.
    pub endpoint: Arc<Endpoint>,
    /// All headers, including `host` and `content-length`.
    pub headers: Vec<Header>,
    /// The method, in capitals.
    pub method: &'static str,
    /// Time by the monotonic clock of the runtime from which on no byte may be sent any more; `None` for no limit. It keeps a
    /// suspended host from changing a store that another process has taken over.
    pub not_after: Option<Duration>,
    /// The path and query, encoded.
    pub target: String,
    /// Timeouts of the exchange.
    pub timeouts: Timeouts,
}

/// A header of a request or a response.
#[expect(clippy::exhaustive_structs, reason = "there is nothing more to a header")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The name, in lower case.
    pub name: Cow<'static, str>,
    /// The value.
    pub value: String,
}

impl Request {
    /// A request without headers and body, with an answer of up to 64 KiB.
    pub fn new(method: &'static str, endpoint: Arc<Endpoint>, target: String, timeouts: Timeouts) -> Self {
        let (body, headers) = (Bytes::new(), Vec::new());
        Self {
            body,
            body_limit: ERROR_BODY_LIMIT,
            endpoint,
            headers,
            method,
            not_after: None,
            target,
            timeouts,
        }
    }
}

impl fmt::Debug for Request {
    /// Header and query values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.target.split('?').next().unwrap_or_default();
        let names: Vec<_> = self.headers.iter().map(|header| &header.name).collect();
        f.debug_struct("Request")
            .field("method", &self.method)
            .field("endpoint", &self.endpoint.authority())
            .field("path", &path)
            .field("headers", &names)
            .field("body", &self.body.len())
            .field("timeouts", &self.timeouts)
            .finish_non_exhaustive()
    }
}

/// A response.
#[non_exhaustive]
#[derive(Clone)]
pub struct Response {
    /// The body. Of an error, at most the first 64 KiB.
    pub body: Bytes,
    /// The headers, in their original order.
    pub headers: Vec<Header>,
    /// `true` if the end of the connection was the only end of the body, which may then be truncated; default: `false`.
    pub may_be_truncated: bool,
    /// The status, from 100 to 999.
    pub status: u16,
}

impl fmt::Debug for Response {
    /// Header values and the body may be secrets, such as credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|header| &header.name).collect();
        f.debug_struct("Response")
            .field("status", &self.status)
            .field("headers", &names)
            .field("body", &self.body.len())
            .field("may_be_truncated", &self.may_be_truncated)
            .finish()
    }
}

impl Response {
    /// Creates a response, for transports of your own.
    pub fn new(status: u16, headers: Vec<Header>, body: Bytes) -> Self {
        Self { body, headers, may_be_truncated: false, status }
    }

    /// Returns `true` if the status is 2xx.
    pub(crate) fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The value of the first header with this name, which is in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|header| header.name == name).map(|header| header.value.as_str())
    }

    /// The encoding of the body, unless it is plain.
    pub(crate) fn compression(&self) -> Option<&str> {
        self.header("content-encoding").and_then(compression)
    }
}

/// Timeouts of the parts of an exchange. None can be infinite.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Connecting, including proxy and TLS; default: 10 s.
    pub connect: Duration,
    /// From the last byte of the request to the first of the response; default: 60 s.
    pub first_byte: Duration,
    /// Between two bytes, in either direction; default: 30 s.
    pub idle: Duration,
    /// The whole exchange; default: 10 minutes.
    pub overall: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(10),
            first_byte: Duration::from_mins(1),
            idle: Duration::from_secs(30),
            overall: Duration::from_mins(10),
        }
    }
}

/// Progress of a request without an answer.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No byte reached a server: the request was not executed.
    NotSent,
    /// The request may have been executed, or may still be.
    Sent,
    /// As `Sent`, but on a reused connection that returned no byte. Most likely the server
    /// had closed it already, so a retry on another connection is worthwhile at once.
    SentOnOldConnection,
}

/// The kind of failure.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportErrorKind {
    /// The connection ended or broke.
    Closed,
    /// The server or the proxy could not be connected to.
    Connect,
    /// The request cannot be sent: a header contains forbidden bytes, or TLS is not compiled in.
    Invalid,
    /// The answer violates the protocol.
    Protocol,
    /// The proxy refused, or its answer was not that of a proxy.
    Proxy,
    /// A timeout expired.
    Timeout,
    /// TLS failed, for instance because the server is not the expected one.
    Tls,
    /// The response is larger than allowed.
    TooLarge,
}

/// Reason why there is no response.
#[derive(Debug)]
pub struct TransportError {
    /// The kind of failure.
    pub kind: TransportErrorKind,
    /// Progress of the request.
    pub progress: Progress,
    source: Option<Box<dyn StdError + Send + Sync>>,
    what: &'static str,
}

impl TransportError {
    /// An error with the failed action, as in "read the response".
    pub fn new(kind: TransportErrorKind, progress: Progress, what: &'static str) -> Self {
        Self { kind, progress, source: None, what }
    }

    /// Adds the underlying error.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            TransportErrorKind::Closed => "the connection ended",
            TransportErrorKind::Connect => "there is no connection",
            TransportErrorKind::Invalid => "it cannot be sent",
            TransportErrorKind::Protocol => "the answer does not follow the protocol",
            TransportErrorKind::Proxy => "the proxy refused",
            TransportErrorKind::Timeout => "it took too long",
            TransportErrorKind::Tls => "TLS failed",
            TransportErrorKind::TooLarge => "the answer is too large",
        };
        write!(f, "cannot {}: {kind}", self.what)
    }
}

impl StdError for TransportError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn StdError + 'static))
    }
}

/// Maximum bytes read of the body of an error (H144).
const ERROR_BODY_LIMIT: u64 = 64 << 10;
