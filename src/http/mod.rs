//! HTTP/1.1 over the connections of a [`Runtime`](crate::rt::Runtime): one request, one answer, both whole.
//!
//! Bodies are single buffers in both directions: what is sent can be sent again (H142), and what was received is complete or
//! was never seen. There is no pipelining and no HTTP/2: many connections beat one where bulk data meets latency (H148).
//!
//! Nothing is repeated here. A request that failed comes back as a [`TransportError`] which tells how far it came, and only
//! the caller knows whether it may be sent again.
//!
//! # An exchange
//! | state | ends well | ends badly |
//! |---|---|---|
//! | connect, proxy, TLS | connected | nothing was sent |
//! | write head and body, while watching for an answer | all written | an answer is there already: take it, close; a write fails: wait for the answer that explains it, close |
//! | read the head, past any number of 1xx | a final status | closed or out of time: the request may have been executed |
//! | read the body | as long as its framing says | cut, too long or out of time: the request may have been executed |
//!
//! Only an exchange that went well from start to end gives its connection back. A dropped future closes the connection.

mod client;
mod exchange;
mod proxy;
#[cfg(feature = "tls")]
mod tls;
mod watch;

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::wire::http_body::Framing;
use crate::wire::http_head::ResponseHead;
use crate::wire::uri::Endpoint;

pub use client::{HttpClient, HttpOptions, PoolStatus};
pub use proxy::Proxy;
#[cfg(feature = "tls")]
pub use tls::{Fingerprint, TlsOptions};

/// Brings one request to a server and the answer back. [`HttpClient`] is the one of this crate; implement it to use another
/// HTTP stack.
///
/// # Contract
/// * **In time**: no byte of a request is sent from [`Request::not_after`] on.
/// * **Once**: a request is written at most once. Nothing is repeated, and no redirect is followed.
/// * **Whole**: a response is complete. A body that was cut, of which the framing is in doubt, or which is larger than
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
    /// A [`TransportError`] for everything but an answer; whatever its status, an answer is none.
    async fn exchange(&self, request: &Request) -> Result<Response, TransportError>;
}

/// A request with everything that goes over the wire.
#[non_exhaustive]
#[derive(Clone)]
pub struct Request {
    /// The body; empty for none.
    pub body: Bytes,
    /// Maximum bytes of the body of a successful response. Only the first 64 KiB of an error's body are read.
    pub body_limit: u64,
    /// Where the server is.
    pub endpoint: Arc<Endpoint>,
    /// All headers, `host` and `content-length` among them.
    pub headers: Vec<(Cow<'static, str>, String)>,
    /// The method, in capitals.
    pub method: &'static str,
    /// By the monotonic clock of the runtime, the moment from which on no byte of it may be sent any more; `None` for no such moment. It keeps a
    /// host that was suspended from changing what is no longer its own.
    pub not_after: Option<Duration>,
    /// The path and query, encoded.
    pub target: String,
    /// Timeouts of the exchange.
    pub timeouts: Timeouts,
}

impl Request {
    /// A request without headers and body, for which an answer of up to 64 KiB is expected.
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
    /// Values of headers and of the query may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.target.split('?').next().unwrap_or_default();
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
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
#[derive(Clone, Debug)]
pub struct Response {
    /// The body. Of an error, at most its first 64 KiB.
    pub body: Bytes,
    /// How the end of the body was found. If it was the end of the connection, the body may be truncated.
    pub framing: Framing,
    /// Status and headers.
    pub head: ResponseHead,
}

impl Response {
    /// A response, for transports of your own.
    pub fn new(head: ResponseHead, body: Bytes, framing: Framing) -> Self {
        Self { body, framing, head }
    }

    /// Returns `true` if the status is one of success, 2xx.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.head.status)
    }
}

/// Timeouts of the parts of an exchange. None can be infinite (H128).
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// For connecting, with the proxy and TLS; default: 10 s.
    pub connect: Duration,
    /// From the last byte of the request to the first of the response; default: 60 s.
    pub first_byte: Duration,
    /// Between any two bytes, in either direction; default: 30 s.
    pub idle: Duration,
    /// For everything together; default: 10 minutes.
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

/// How far a request came that was not answered.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// No byte of it reached a server: it was not executed.
    NotSent,
    /// It may have been executed, or may still be.
    Sent,
    /// As `Sent`, but over a connection that had carried requests before, and not a byte came back. Most likely the server
    /// had closed it already; another connection is worth a try at once.
    SentOnOldConnection,
}

/// The kind of failure.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportErrorKind {
    /// The connection ended or broke.
    Closed,
    /// There is no connection to the server or the proxy.
    Connect,
    /// The request cannot be sent at all: a header has bytes that no header may have, or TLS is not compiled in.
    Invalid,
    /// The answer does not follow the protocol.
    Protocol,
    /// The proxy refused, or did not answer as one does.
    Proxy,
    /// Something took longer than it may.
    Timeout,
    /// The server is not who it should be, or TLS failed otherwise.
    Tls,
    /// The response is larger than it may be.
    TooLarge,
}

/// Why there is no response.
#[derive(Debug)]
pub struct TransportError {
    kind: TransportErrorKind,
    progress: Progress,
    source: Option<Box<dyn StdError + Send + Sync>>,
    what: &'static str,
}

impl TransportError {
    /// An error that says what was being done, as in "read the response".
    pub fn new(kind: TransportErrorKind, progress: Progress, what: &'static str) -> Self {
        Self { kind, progress, source: None, what }
    }

    /// Adds the error that caused this one.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The kind of failure.
    pub fn kind(&self) -> TransportErrorKind {
        self.kind
    }

    /// How far the request came.
    pub fn progress(&self) -> Progress {
        self.progress
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
