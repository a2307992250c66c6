//! An S3 server that costs as little as possible, so that what is measured is the client.
//!
//! A thread for each connection; objects in memory, in buffers that are used again; no signature is verified and no body
//! hashed. It knows PUT, GET with one range, HEAD, DELETE and a listing of one page. Bodies may come with a length, in chunks,
//! and as `aws-chunked` with trailers. Every object has the same tag and the same date.

mod link;
mod request;
mod store;
mod tls;

use std::collections::BTreeSet;
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use link::Link;
use request::{Request, read_request};
use rustls::{ServerConnection, StreamOwned};
use store::Store;

/// How much is read or written between two looks at the rate.
const PIECE: usize = 64 << 10;
/// What lies in the sockets of a slow link at most.
const SLOW_SOCKET_BYTES: usize = 256 << 10;

/// How the server is to be.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    /// Where to put the root certificate; without it there is no TLS.
    pub(crate) ca: Option<PathBuf>,
    /// How long an answer takes to come.
    pub(crate) delay: Duration,
    /// Bytes a second in each direction; 0: as fast as it goes.
    pub(crate) rate: u64,
}

/// Serves until standard input ends. Says `ready PORT` on standard output, and afterwards how each kind of client sends.
pub(crate) fn serve(options: &Options) -> io::Result<()> {
    let tls = options.ca.as_deref().map(tls::config).transpose()?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    if options.rate > 0 {
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, SLOW_SOCKET_BYTES)?;
        rustix::net::sockopt::set_socket_send_buffer_size(&listener, SLOW_SOCKET_BYTES)?;
    }
    println!("ready {}", listener.local_addr()?.port());
    let shared = Arc::new(Shared {
        delay: options.delay,
        incoming: Link::new(options.rate),
        kinds: Mutex::default(),
        outgoing: Link::new(options.rate),
        store: Store::default(),
    });
    std::thread::spawn(|| {
        // Whoever started it holds the other end, and is gone when that is.
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        std::process::exit(0);
    });
    loop {
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        std::thread::Builder::new().stack_size(512 << 10).spawn(move || {
            let served = match tls {
                None => Connection::new(stream, &shared).serve(),
                Some(config) => {
                    ServerConnection::new(config).map_err(io::Error::other).and_then(|mut state| {
                        state.set_buffer_limit(Some(4 * PIECE));
                        let stream = StreamOwned::new(state, tls::FewReads::new(stream));
                        Connection::new(stream, &shared).serve()
                    })
                }
            };
            if let Err(error) = served.as_ref().map_err(io::Error::kind)
                && !matches!(error, io::ErrorKind::ConnectionReset | io::ErrorKind::UnexpectedEof)
            {
                eprintln!("server: {served:?}");
            }
        })?;
    }
}

struct Shared {
    delay: Duration,
    incoming: Link,
    /// How clients sent bodies, each way once.
    kinds: Mutex<BTreeSet<String>>,
    outgoing: Link,
    store: Store,
}

struct Connection<'a, S> {
    shared: &'a Shared,
    stream: BufReader<S>,
    told: bool,
}

impl<'a, S: Read + Write> Connection<'a, S> {
    fn new(stream: S, shared: &'a Shared) -> Self {
        Self { shared, stream: BufReader::with_capacity(PIECE, stream), told: false }
    }

    fn serve(mut self) -> io::Result<()> {
        while let Some(request) = read_request(&mut self.stream)? {
            if request.expects_continue {
                self.stream.get_mut().write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
                self.stream.get_mut().flush()?;
            }
            let body = self.body(&request)?;
            if !self.shared.delay.is_zero() {
                std::thread::sleep(self.shared.delay);
            }
            self.answer(&request, body)?;
        }
        Ok(())
    }

    fn body(&mut self, request: &Request) -> io::Result<Vec<u8>> {
        if !request.has_body() {
            return Ok(Vec::new());
        }
        if !self.told && request.method == "PUT" {
            self.told = true;
            let kind = request.kind();
            let mut kinds = self.shared.kinds.lock().unwrap_or_else(PoisonError::into_inner);
            if kinds.insert(kind.clone()) {
                println!("put {kind}");
            }
        }
        let mut body = self.shared.store.buffer(request.length.unwrap_or_default());
        if let Some(length) = request.length {
            body.resize(length, 0);
            for piece in body.chunks_mut(self.shared.incoming.piece(length)) {
                self.stream.read_exact(piece)?;
                self.shared.incoming.pass(piece.len());
            }
        } else {
            request::read_chunks(&mut self.stream, &mut body)?;
            self.shared.incoming.pass(body.len());
        }
        if request.aws_chunked {
            let mut decoded = self.shared.store.buffer(body.len());
            decoded.clear();
            request::read_chunks(&mut &body[..], &mut decoded)?;
            self.shared.store.give_back(std::mem::replace(&mut body, decoded));
        }
        Ok(body)
    }

    fn answer(&mut self, request: &Request, body: Vec<u8>) -> io::Result<()> {
        let store = &self.shared.store;
        let Some((_, key)) =
            request.path.trim_start_matches('/').split_once('/').filter(|(_, key)| !key.is_empty())
        else {
            let listing = store.listing(&request.query);
            return match request.method.as_str() {
                "GET" => self.write("200 OK", "content-type: application/xml\r\n", listing.as_bytes(), true),
                "HEAD" | "PUT" => self.write("200 OK", "", b"", true),
                _ => self.write("501 Not Implemented", "", b"", true),
            };
        };
        match request.method.as_str() {
            "PUT" => {
                store.put(key, body);
                self.write("200 OK", TAG, b"", true)
            }
            "DELETE" => {
                store.delete(key);
                self.write("204 No Content", "", b"", true)
            }
            method @ ("GET" | "HEAD") => {
                let with_body = method == "GET";
                let Some(object) = store.get(key) else {
                    let text = "<Error><Code>NoSuchKey</Code><Message>there is none</Message></Error>";
                    return self.write(
                        "404 Not Found",
                        "x-amz-request-id: 0\r\n",
                        text.as_bytes(),
                        with_body,
                    );
                };
                let whole = object.len();
                match request.range.filter(|_| with_body) {
                    None => self.write("200 OK", TAG, &object, with_body),
                    Some((first, last)) if first < whole => {
                        let last = last.min(whole - 1);
                        let headers = format!("{TAG}content-range: bytes {first}-{last}/{whole}\r\n");
                        self.write("206 Partial Content", &headers, &object[first..=last], true)
                    }
                    Some(_) => self.write("416 Range Not Satisfiable", "", b"", true),
                }
            }
            _ => self.write("501 Not Implemented", "", b"", true),
        }
    }

    /// Writes a whole answer; of one to HEAD, all but the body.
    fn write(&mut self, status: &str, headers: &str, body: &[u8], with_body: bool) -> io::Result<()> {
        let stream = self.stream.get_mut();
        let length = body.len();
        let head =
            format!("HTTP/1.1 {status}\r\nserver: stand-in\r\n{headers}content-length: {length}\r\n\r\n");
        let (mut head, body) = (head.as_bytes(), if with_body { body } else { b"" });
        // Head and body leave together.
        let mut pieces = body.chunks(self.shared.outgoing.piece(body.len()));
        let mut piece = pieces.next().unwrap_or_default();
        self.shared.outgoing.pass(piece.len());
        while !head.is_empty() {
            let written = stream.write_vectored(&[IoSlice::new(head), IoSlice::new(piece)])?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            let of_head = written.min(head.len());
            (head, piece) = (&head[of_head..], &piece[written - of_head..]);
        }
        stream.write_all(piece)?;
        for piece in pieces {
            self.shared.outgoing.pass(piece.len());
            stream.write_all(piece)?;
        }
        stream.flush()
    }
}

/// The headers of every object.
const TAG: &str = "etag: \"00000000000000000000000000000000\"\r\nlast-modified: Mon, 01 Jan 2024 00:00:00 GMT\r\n\
    content-type: application/octet-stream\r\n";
