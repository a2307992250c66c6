//! The transport of this crate, with a pool of connections.

use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use async_trait::async_trait;

use crate::buffers::Buffers;
use crate::error::{Error, ErrorKind, Result};
use crate::http::exchange::{Reuse, exchange};
#[cfg(feature = "_tls")]
use crate::http::tls::{Tls, TlsOptions};
use crate::http::watch::Watch;
use crate::http::{HttpTransport, Progress, Proxy, Request, Response, TransportError, TransportErrorKind};
use crate::rt::{Connection, Runtime};
use crate::wire::uri::{Endpoint, Scheme};

/// Bytes kept ready for the bodies of later answers.
const KEPT_BYTES: usize = 64 << 20;

/// Options of an [`HttpClient`].
#[derive(Clone, Debug)]
#[must_use]
pub struct HttpOptions {
    idle_connections: usize,
    idle_time: Duration,
    max_age: Duration,
    plaintext: bool,
    proxy: Option<Proxy>,
    #[cfg(feature = "_tls")]
    tls: TlsOptions,
}

impl Default for HttpOptions {
    fn default() -> Self {
        Self {
            idle_connections: 64,
            idle_time: Duration::from_secs(15),
            max_age: Duration::from_mins(5),
            plaintext: false,
            proxy: None,
            #[cfg(feature = "_tls")]
            tls: TlsOptions::default(),
        }
    }
}

impl HttpOptions {
    /// Maximum number of idle connections to one server; default: 64.
    pub fn idle_connections(mut self, count: usize) -> Self {
        self.idle_connections = count;
        self
    }

    /// Time for which an idle connection is kept; default: 15 s, which is less than servers wait.
    pub fn idle_time(mut self, time: Duration) -> Self {
        self.idle_time = time;
        self
    }

    /// Maximum age of a connection that is reused; default: 5 minutes. After that the client resolves the name of the server
    /// again, so that a server may move.
    pub fn max_age(mut self, age: Duration) -> Self {
        self.max_age = age;
        self
    }

    /// Allows plain HTTP to servers on other hosts; default: refused.
    pub fn allow_plaintext(mut self) -> Self {
        self.plaintext = true;
        self
    }

    /// Sets a proxy; default: none. Only [`Proxy::from_environment`] reads the environment.
    pub fn proxy(mut self, proxy: Proxy) -> Self {
        self.proxy = Some(proxy);
        self
    }

    /// TLS verification of servers; default: the roots of the platform.
    #[cfg(feature = "_tls")]
    pub fn tls(mut self, options: TlsOptions) -> Self {
        self.tls = options;
        self
    }
}

/// An [`HttpTransport`] with a pool of connections for each server. Creating one is expensive: share it.
pub struct HttpClient {
    /// Buffers for the bodies of answers.
    buffers: Arc<Buffers>,
    max_idle: usize,
    idle_time: Duration,
    max_age: Duration,
    opened: AtomicU64,
    plaintext: bool,
    pools: Mutex<BTreeMap<Server, Vec<Idle>>>,
    proxy: Option<Proxy>,
    reused: AtomicU64,
    runtime: Arc<dyn Runtime>,
    #[cfg(feature = "_tls")]
    tls: Tls,
}

/// Scheme (`true` for TLS), host, port.
type Server = (bool, String, u16);

/// An idle connection.
struct Idle {
    born: Duration,
    connection: Box<dyn Connection>,
    since: Duration,
}

/// Statistics of the connections of an [`HttpClient`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PoolStatus {
    /// Number of idle connections.
    pub(crate) idle: usize,
    /// Number of connections opened, with all handshakes.
    pub(crate) opened: u64,
    /// Number of times a connection was reused.
    pub(crate) reused: u64,
}

impl HttpClient {
    /// Creates a client without connections.
    ///
    /// # Errors
    /// `InvalidInput` if a certificate cannot be read, if there are no root certificates, or if options of TLS contradict each other;
    /// `Unsupported` if an option needs a feature that is not compiled in.
    pub fn new(runtime: Arc<dyn Runtime>, options: HttpOptions) -> Result<Self> {
        Ok(Self {
            buffers: Buffers::new(KEPT_BYTES),
            max_idle: options.idle_connections,
            idle_time: options.idle_time,
            max_age: options.max_age,
            opened: AtomicU64::new(0),
            plaintext: options.plaintext,
            pools: Mutex::default(),
            proxy: options.proxy,
            reused: AtomicU64::new(0),
            runtime,
            #[cfg(feature = "_tls")]
            tls: Tls::new(&options.tls)?,
        })
    }

    /// Statistics of the connections so far.
    pub(crate) fn status(&self) -> PoolStatus {
        PoolStatus {
            idle: self.pools().values().map(Vec::len).sum(),
            opened: self.opened.load(Ordering::Relaxed),
            reused: self.reused.load(Ordering::Relaxed),
        }
    }

    /// Returns an error if requests may not be sent to this endpoint at all.
    ///
    /// # Errors
    /// `InvalidInput` for HTTP without TLS to another host, unless that was [allowed](HttpOptions::allow_plaintext);
    /// `Unsupported` for HTTPS if TLS is not compiled in.
    pub(crate) fn check_endpoint(&self, endpoint: &Endpoint) -> Result<()> {
        let refused = |kind| Error::new(kind, "use the endpoint").on(endpoint.authority());
        match endpoint.scheme {
            Scheme::Http if !self.plaintext && !endpoint.is_loopback() => {
                Err(refused(ErrorKind::InvalidInput)
                    .because("plain HTTP is used for servers on this host only, unless plaintext is allowed"))
            }
            Scheme::Https if !cfg!(feature = "_tls") => Err(refused(ErrorKind::Unsupported)),
            _ => Ok(()),
        }
    }

    /// Returns an idle connection to the server that shows no sign of being closed.
    async fn idle(&self, server: &Server) -> Option<Idle> {
        loop {
            let mut idle = self.pools().get_mut(server)?.pop()?;
            let now = self.runtime.monotonic();
            let old = now.saturating_sub(idle.since) > self.idle_time
                || now.saturating_sub(idle.born) > self.max_age;
            if !old && is_quiet(&mut *idle.connection).await {
                self.reused.fetch_add(1, Ordering::Relaxed);
                return Some(idle);
            }
        }
    }

    fn give_back(&self, server: Server, connection: Box<dyn Connection>, born: Duration) {
        let now = self.runtime.monotonic();
        let mut pools = self.pools();
        // Connections to servers that get no more requests would otherwise stay open.
        pools.retain(|_, pool| {
            pool.retain(|idle| now.saturating_sub(idle.since) <= self.idle_time);
            !pool.is_empty()
        });
        // The oldest are at the front; the most recently used is reused first.
        let pool = pools.entry(server).or_default();
        if pool.len() < self.max_idle {
            pool.push(Idle { born, connection, since: now });
        }
    }

    async fn connect(&self, endpoint: &Endpoint) -> Result<Box<dyn Connection>, TransportError> {
        let failed = |error: io::Error| {
            TransportError::new(TransportErrorKind::Connect, Progress::NotSent, "connect").because(error)
        };
        let connection = match &self.proxy {
            Some(proxy) if proxy.is_for(endpoint) => {
                let mut connection =
                    self.runtime.connect(proxy.host(), proxy.port()).await.map_err(failed)?;
                proxy.tunnel(&mut *connection, endpoint).await?;
                connection
            }
            _ => self.runtime.connect(&endpoint.host, endpoint.port).await.map_err(failed)?,
        };
        self.opened.fetch_add(1, Ordering::Relaxed);
        match endpoint.scheme {
            Scheme::Http => Ok(connection),
            #[cfg(feature = "_tls")]
            Scheme::Https => self.tls.connect(connection, &endpoint.host).await,
            #[cfg(not(feature = "_tls"))]
            Scheme::Https => {
                Err(TransportError::new(TransportErrorKind::Invalid, Progress::NotSent, "connect"))
            }
        }
    }

    fn pools(&self) -> MutexGuard<'_, BTreeMap<Server, Vec<Idle>>> {
        // Each change is one insertion or removal, so a panic elsewhere leaves the pool whole.
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl HttpTransport for HttpClient {
    async fn exchange(&self, request: &Request) -> Result<Response, TransportError> {
        let endpoint = &*request.endpoint;
        self.check_endpoint(endpoint).map_err(|error| {
            TransportError::new(TransportErrorKind::Invalid, Progress::NotSent, "connect").because(error)
        })?;
        let server = (endpoint.scheme == Scheme::Https, endpoint.host.clone(), endpoint.port);
        let mut watch = Watch::new(&*self.runtime, request.timeouts.overall);
        let (mut connection, born, old) = if let Some(idle) = self.idle(&server).await {
            (idle.connection, idle.born, true)
        } else {
            watch.enter("connect", request.timeouts.connect);
            let connection = watch.run(self.connect(endpoint)).await??;
            (connection, self.runtime.monotonic(), false)
        };
        if watch.is_past(request.not_after) {
            let late =
                TransportError::new(TransportErrorKind::Timeout, Progress::NotSent, "send the request");
            return Err(late.because("the time until which the request may be sent has passed"));
        }
        let (response, reuse) = exchange(&mut *connection, request, old, &self.buffers, &mut watch).await?;
        if reuse == Reuse::Yes {
            self.give_back(server, connection, born);
        }
        Ok(response)
    }
}

impl fmt::Debug for HttpClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpClient")
            .field("proxy", &self.proxy)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// Returns `true` if nothing can be read: neither an end nor unexpected bytes.
async fn is_quiet(connection: &mut dyn Connection) -> bool {
    poll_fn(|cx| {
        let mut byte = [0];
        Poll::Ready(Pin::new(&mut *connection).poll_read(cx, &mut byte).is_pending())
    })
    .await
}
