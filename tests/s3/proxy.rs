//! Requests through an HTTP proxy: a real one on loopback that knows CONNECT and nothing else (H147).

#![expect(clippy::disallowed_methods, reason = "servers of a test run on threads of their own")]

use bytes::Bytes;
use futures::executor::block_on;
use larder::error::ErrorKind;
use larder::http::{HttpClient, HttpOptions, Proxy, TlsOptions};
use larder::internal::s3::{Condition, Requests as _, opened_connections};
use larder::rt::{Runtime, ThreadRuntime};
use larder::s3::{Addressing, Credentials, RetryOptions, S3Client, S3Options, StaticCredentials};
use larder_testing::s3_server::{ACCESS_KEY, DOMAIN, REGION, S3Server, SECRET_KEY};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// The requests that a proxy got, and its open connections.
#[derive(Default)]
struct Seen {
    /// Lines of all requests to the proxy, with `proxy-authorization` where there was one.
    asked: Vec<String>,
    open: Vec<TcpStream>,
}

struct FakeProxy {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
}

impl FakeProxy {
    /// One that leads every tunnel to `server`, whatever the name of it, if it hears the password.
    fn start(server: SocketAddr, password: Option<&'static str>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (address, seen) = (listener.local_addr().unwrap(), Arc::<Mutex<Seen>>::default());
        let shared = Arc::clone(&seen);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let shared = Arc::clone(&shared);
                thread::spawn(move || tunnel(stream.unwrap(), server, password, &shared));
            }
        });
        Self { address, seen }
    }

    fn asked(&self) -> Vec<String> {
        self.seen.lock().unwrap().asked.clone()
    }

    /// Ends all tunnels, as proxies do with idle ones.
    fn hang_up(&self) {
        for stream in self.seen.lock().unwrap().open.drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn tunnel(mut client: TcpStream, server: SocketAddr, password: Option<&str>, seen: &Mutex<Seen>) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let (mut line, mut authorized) = (String::new(), password.is_none());
    reader.read_line(&mut line).unwrap();
    loop {
        let mut header = String::new();
        reader.read_line(&mut header).unwrap();
        let header = header.trim();
        if header.is_empty() {
            break;
        }
        authorized |= password.is_some_and(|word| header == format!("proxy-authorization: {word}"));
    }
    seen.lock().unwrap().asked.push(line.trim().to_owned());
    if !authorized {
        let _ = client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    let mut there = TcpStream::connect(server).unwrap();
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").unwrap();
    seen.lock().unwrap().open.extend([client.try_clone().unwrap(), there.try_clone().unwrap()]);
    let (mut back_from, mut back_to) = (there.try_clone().unwrap(), client.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut back_from, &mut back_to);
        let _ = back_to.shutdown(Shutdown::Both);
    });
    // Nothing was sent yet that the reader could have taken too much of.
    assert!(reader.buffer().is_empty());
    let _ = std::io::copy(&mut client, &mut there);
    let _ = there.shutdown(Shutdown::Both);
}

/// A server that only the proxy can resolve, and a client that goes through it.
fn set_up(
    proxy: impl FnOnce(SocketAddr) -> Proxy,
    password: Option<&'static str>,
) -> (S3Server, FakeProxy, Arc<HttpClient>, S3Client) {
    let server = S3Server::start_tls();
    server.create_bucket("bucket");
    let fake = FakeProxy::start(server.address(), password);
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let tls = TlsOptions::default().root_certificates(server.identity().ca_pem.as_bytes());
    let http = HttpOptions::default().tls(tls).proxy(proxy(fake.address));
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), http).unwrap());
    let mut retry = RetryOptions::default();
    (retry.max_backoff, retry.attempts) = (Duration::from_millis(20), NonZeroU32::new(3).unwrap());
    let credentials = StaticCredentials::new(Credentials::new(ACCESS_KEY, SECRET_KEY));
    // The name resolves nowhere.
    let options = S3Options::new(format!("https://{DOMAIN}:{}", server.address().port()), "bucket")
        .region(REGION)
        .addressing(Addressing::VirtualHost)
        .retry(retry)
        .credentials(Arc::new(credentials));
    let client = S3Client::new(runtime, Arc::clone(&http) as _, options).unwrap();
    (server, fake, http, client)
}

fn plain(address: SocketAddr) -> Proxy {
    Proxy::new(&format!("http://{address}")).unwrap()
}

/// Proves H147.
#[test]
fn requests_share_one_tunnel_while_it_is_open() {
    let (server, proxy, http, client) = set_up(plain, None);
    let body = Bytes::from(vec![7; 3_000_000]);
    block_on(async {
        client.raw().put("k", body.clone(), &Condition::Always).await.unwrap();
        for _ in 0..5 {
            assert_eq!(client.raw().get("k", 3_000_000).await.unwrap().0, body);
        }
        assert_eq!(opened_connections(&http), 1);
        proxy.hang_up();
        assert_eq!(client.raw().get("k", 3_000_000).await.unwrap().0, body, "through another one");
    });
    let name = format!("CONNECT bucket.{DOMAIN}:{} HTTP/1.1", server.address().port());
    assert_eq!(proxy.asked(), [name.clone(), name], "the proxy sees the name and nothing else");
}

/// Proves H147.
#[test]
fn a_proxy_can_require_a_password() {
    let with_password = |address| Proxy::new(&format!("http://us%40er:pass@{address}")).unwrap();
    let (_server, proxy, _, client) = set_up(with_password, Some("Basic dXNAZXI6cGFzcw=="));
    block_on(client.raw().put("k", Bytes::new(), &Condition::Always)).unwrap();
    assert_eq!(proxy.asked().len(), 1);
    let (server, proxy, _, client) = set_up(plain, Some("Basic dXNAZXI6cGFzcw=="));
    let refused = block_on(client.raw().get("k", 1)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Unavailable, "{refused:?}");
    assert_eq!((proxy.asked().len(), server.requests()), (3, 0));
}

/// Proves H147.
#[test]
fn servers_on_this_host_and_exceptions_bypass_the_proxy() {
    let (_server, proxy, _, client) = set_up(|address| plain(address).direct(DOMAIN), None);
    // Without the proxy its name cannot be resolved.
    assert_eq!(block_on(client.raw().get("k", 1)).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!(proxy.asked().is_empty());
    let server = S3Server::start();
    server.create_bucket("bucket");
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let http = HttpOptions::default().proxy(plain(proxy.address));
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), http).unwrap());
    let credentials = StaticCredentials::new(Credentials::new(ACCESS_KEY, SECRET_KEY));
    let options = S3Options::new(server.url(), "bucket").credentials(Arc::new(credentials));
    let client = S3Client::new(runtime, http, options).unwrap();
    block_on(client.raw().put("k", Bytes::new(), &Condition::Always)).unwrap();
    assert!(proxy.asked().is_empty());
}

/// Proves H147.
#[test]
fn a_silent_proxy_ends_by_its_timeout() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let silent = listener.local_addr().unwrap();
    let held = Arc::new(Mutex::new(Vec::new()));
    let holding = Arc::clone(&held);
    // It ends with the process. A connection that the client gave up while it was made may come or not.
    thread::spawn(move || listener.incoming().for_each(|stream| holding.lock().unwrap().push(stream)));
    let runtime: Arc<dyn Runtime> = Arc::new(ThreadRuntime::new());
    let http = HttpOptions::default().allow_plaintext().proxy(plain(silent));
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), http).unwrap());
    let mut timeouts = larder::http::Timeouts::default();
    timeouts.connect = Duration::from_millis(300);
    let mut retry = RetryOptions::default();
    (retry.max_backoff, retry.attempts) = (Duration::from_millis(20), NonZeroU32::new(3).unwrap());
    let credentials = StaticCredentials::new(Credentials::new(ACCESS_KEY, SECRET_KEY));
    let options = S3Options::new("http://s3.test", "bucket")
        .credentials(Arc::new(credentials))
        .timeouts(timeouts)
        .retry(retry);
    let client = S3Client::new(runtime, http, options).unwrap();
    assert_eq!(block_on(client.raw().get("k", 1)).unwrap_err().kind(), ErrorKind::Unavailable);
    assert!((1..=3).contains(&held.lock().unwrap().len()));
    assert_eq!(client.stats().attempts, 0, "no request was sent");
}
