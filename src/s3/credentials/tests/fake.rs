//! Services in virtual time: metadata services behind sockets, and a Security Token Service behind a transport.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::error::Error;
use crate::http::{Header, HttpTransport, Progress, Request, Response, TransportError, TransportErrorKind};
use crate::rt::{Connection, Runtime as _, SimRuntime};
use crate::s3::credentials::CredentialProvider;

/// Keys as a metadata service sends them, valid until 2025-01-01T06:00:00Z, six hours after the simulation begins.
pub(super) const KEYS: &str = r#"{"Code":"Success","Type":"AWS-HMAC","AccessKeyId":"ASIA","SecretAccessKey":"hidden-1",
    "Token":"hidden-2","Expiration":"2025-01-01T06:00:00Z"}"#;

/// A request that a service received.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) headers: BTreeMap<String, String>,
    /// Method and target.
    pub(super) line: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

pub(super) enum Reply {
    Answer(u16, String),
    /// The connection stays open, and nothing arrives.
    Silence,
}

pub(super) type Log = Arc<Mutex<Vec<Seen>>>;

/// Answers requests to a port, at most once for each port. Returns what it receives.
pub(super) fn serve(
    sim: &SimRuntime,
    port: u16,
    answer: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
) -> Log {
    let (log, answer, silent) = (Log::default(), Arc::new(answer), Arc::<Mutex<Vec<_>>>::default());
    let (mut listener, runtime, seen) = (sim.listen(port).unwrap(), sim.clone(), Arc::clone(&log));
    sim.spawn(Box::pin(async move {
        while let Ok(mut connection) = listener.accept().await {
            let (answer, seen, silent) = (Arc::clone(&answer), Arc::clone(&seen), Arc::clone(&silent));
            runtime.spawn(Box::pin(async move {
                let request = read_head(&mut *connection).await;
                seen.lock().unwrap().push(request.clone());
                match answer(&request) {
                    Reply::Answer(status, body) => {
                        let head = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n", body.len());
                        let _ = connection.write_all(format!("{head}{body}").as_bytes()).await;
                    }
                    Reply::Silence => silent.lock().unwrap().push(connection),
                }
            }));
        }
    }));
    log
}

async fn read_head(connection: &mut dyn Connection) -> Seen {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        connection.read_exact(&mut byte).await.unwrap();
        head.extend_from_slice(&byte);
    }
    let head = String::from_utf8(head).unwrap();
    let mut lines = head.trim_end().split("\r\n");
    let line = lines.next().unwrap().strip_suffix(" HTTP/1.1").unwrap().to_owned();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    Seen { headers: headers.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(), line }
}

type Answer = dyn Fn(&Request) -> Option<Response> + Send + Sync;

/// A transport that answers by a function, and records the requests.
pub(super) struct FakeTransport {
    answer: Box<Answer>,
    pub(super) seen: Mutex<Vec<Request>>,
}

impl FakeTransport {
    /// `None` stands for a server that cannot be reached.
    pub(super) fn new(answer: impl Fn(&Request) -> Option<Response> + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self { answer: Box::new(answer), seen: Mutex::default() })
    }

    /// A transport to which nothing may be sent.
    pub(super) fn unused() -> Arc<Self> {
        Self::new(|request| panic!("{request:?}"))
    }
}

#[async_trait]
impl HttpTransport for FakeTransport {
    async fn exchange(&self, request: &Request) -> Result<Response, TransportError> {
        self.seen.lock().unwrap().push(request.clone());
        (self.answer)(request)
            .ok_or_else(|| TransportError::new(TransportErrorKind::Connect, Progress::NotSent, "connect"))
    }
}

impl fmt::Debug for FakeTransport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeTransport")
    }
}

pub(super) fn response(status: u16, headers: &[(&str, &str)], body: impl Into<String>) -> Response {
    let body = body.into();
    let header =
        |(name, value): &(&str, &str)| Header { name: (*name).to_owned().into(), value: (*value).to_owned() };
    Response::new(status, headers.iter().map(header).collect(), body.into())
}

/// The answer of the Security Token Service with keys that begin with `name`, valid until a time of 2025-01-01.
pub(super) fn assumed(action: &str, name: &str, until: &str) -> Response {
    let body = format!(
        "<{action}Response><{action}Result><Credentials><AccessKeyId>{name}</AccessKeyId><SecretAccessKey>hidden-{name}</SecretAccessKey>\
         <SessionToken>hidden-token-{name}</SessionToken><Expiration>2025-01-01T{until}Z</Expiration></Credentials></{action}Result></{action}Response>"
    );
    response(200, &[], body)
}

/// The body of a request, decoded.
pub(super) fn parameters(request: &Request) -> BTreeMap<String, String> {
    let body = str::from_utf8(&request.body).unwrap();
    let decode = |text: &str| crate::wire::uri::decode(text).unwrap();
    let pairs = body.split('&').map(|pair| pair.split_once('=').unwrap());
    pairs.map(|(name, value)| (decode(name), decode(value))).collect()
}

/// The result of a provider: its access key id, or its error.
pub(super) fn ask(sim: &SimRuntime, provider: &dyn CredentialProvider) -> Result<String, Error> {
    let asked = sim.block_on(provider.credentials(sim));
    assert!(!format!("{provider:?} {asked:?}").contains("hidden"));
    if let Err(error) = &asked {
        assert!(!explain(error).contains("hidden"), "{}", explain(error));
    }
    asked.map(|credentials| credentials.access_key_id)
}

/// An error and all its causes.
pub(super) fn explain(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
