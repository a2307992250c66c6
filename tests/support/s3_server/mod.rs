//! An S3 server in memory, for tests.
//!
//! The `s3s` crate parses every request and verifies every signature, knowing nothing of this crate's client. The code here
//! keeps the objects and gives the answers that AWS documents.
//!
//! | of a request | what is asked |
//! |---|---|
//! | address | `http://127.0.0.1:PORT/BUCKET/KEY`, or `Host: BUCKET.s3.test:PORT` |
//! | signature | version 4 in a header or in the query, by [`ACCESS_KEY`] and [`SECRET_KEY`] for [`REGION`] |
//! | in a header | `host` and every `x-amz-*` header is among those that are signed |
//! | clock | within 15 minutes of this machine's |
//! | body | as its `x-amz-content-sha256`, `Content-MD5` and `x-amz-checksum-*` say; its length is known in advance |
//!
//! Without versions, rules of any kind, ACLs, tags, encryption by the customer's key, and the first version of listing.

mod body;
mod guard;
mod list;
mod service;
mod store;
mod tls;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::{self, Either};
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use guard::Guard;
use store::Store;

pub use tls::{Flaw, Identity};

pub const ACCESS_KEY: &str = "LARDERTESTACCESSKEY0";
/// Its `/` and `+` test encoders.
pub const SECRET_KEY: &str = "larder/test+secret/key/0123456789abcdefg";
pub const REGION: &str = "us-east-1";
/// Under which buckets are hosts. It resolves nowhere.
pub const DOMAIN: &str = "s3.test";

/// A running server. It stops when it is dropped, and its connections with it.
pub struct S3Server {
    address: SocketAddr,
    guard: Guard,
    identity: Option<Identity>,
    stop: Option<oneshot::Sender<()>>,
    store: Arc<Store>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// Starts one on a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_as(None)
    }

    /// The same over TLS 1.2 and 1.3, with a certificate of its own for 127.0.0.1, `localhost`, [`DOMAIN`] and what is
    /// under it.
    pub fn start_tls() -> Self {
        Self::start_as(Some(Identity::new(None)))
    }

    /// The same with a certificate that no client should accept.
    pub fn start_flawed(flaw: Flaw) -> Self {
        Self::start_as(Some(Identity::new(Some(flaw))))
    }

    fn start_as(identity: Option<Identity>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let store = Arc::new(Store::default());
        let guard = Guard::new(Arc::clone(&store), address.port());
        let (stop, stopped) = oneshot::channel();
        let running = accept(listener, guard.clone(), identity.as_ref().map(Identity::acceptor));
        let thread = thread::Builder::new()
            .name("s3-server".to_owned())
            .spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
                // The tasks of the connections end with the runtime.
                match runtime.block_on(future::select(Box::pin(running), stopped)) {
                    Either::Left((Err(error), _)) => panic!("the S3 server failed: {error}"),
                    Either::Left(_) | Either::Right(_) => {}
                }
            })
            .unwrap();
        Self { address, guard, identity, stop: Some(stop), store, thread: Some(thread) }
    }

    /// `http://127.0.0.1:PORT`, or with `https`.
    pub fn url(&self) -> String {
        let scheme = if self.identity.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The certificates of a server that was started with TLS.
    pub fn identity(&self) -> &Identity {
        self.identity.as_ref().expect("this server has no TLS")
    }

    /// The number of HTTP requests so far, including refused ones.
    pub fn requests(&self) -> u64 {
        self.guard.requests()
    }

    /// Makes a bucket without a request. It may exist.
    pub fn create_bucket(&self, bucket: &str) {
        self.store.ensure_bucket(bucket);
    }

    /// All objects of a bucket, read without a request.
    pub fn objects(&self, bucket: &str) -> BTreeMap<String, Bytes> {
        self.store.contents(bucket)
    }
}

impl fmt::Debug for S3Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Server").field("url", &self.url()).finish_non_exhaustive()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // Fails if the server did, and that was said already.
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn accept(listener: TcpListener, guard: Guard, tls: Option<TlsAcceptor>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        let guard = guard.clone();
        let tls = tls.clone();
        // A client that fails is not the server's failure.
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            match tls {
                None => serve(stream, guard).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        serve(stream, guard).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, guard: Guard) {
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), guard).await;
}
