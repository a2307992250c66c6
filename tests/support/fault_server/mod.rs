//! An S3 server for tests that stalls, lies and dies on request.
//!
//! Real HTTP/1.1 over loopback, one thread for each connection, one bucket in memory, path style. It reads requests
//! strictly and keeps a log of all of them; what it does wrong is said by [`Rule`]s and [`Quirk`]s. It does not check
//! signatures.
//!
//! ```ignore
//! let server = FaultServer::start(Options::default());
//! server.add(Rule::on("PUT").first(2).then(Action::status(503, "SlowDown")));
//! // … point a client at server.url() and at the bucket "bucket" …
//! assert_eq!(server.log().len(), 3);
//! assert_eq!(server.violations(), [] as [String; 0]);
//! ```
//!
//! A request is served in this order: read its head, find the rules, read its body, run it on the bucket, pause, note
//! the status in the log, answer. So a client that has an answer finds it in the log.
//!
//! Sources: RFC 9110, RFC 9112, the Amazon S3 API reference.

#![expect(clippy::disallowed_methods, reason = "a server of its own, with real threads and a real clock")]

mod alter;
mod bucket;
mod connection;
pub mod date;
mod digest;
mod framing;
mod listing;
mod multipart;
mod objects;
mod operations;
mod options;
mod plan;
mod removal;
mod reply;
mod request;
mod rule;
mod shared;
mod socket;
mod uri;
mod xml;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

pub use options::{Dialect, Etags, Options, Quirk, Quota};
pub use rule::{Action, Flip, Framing, Lag, Rule};
pub use shared::Logged;

use shared::{Shared, lock};

/// A running server. Dropping it ends all of its threads.
#[derive(Debug)]
pub struct FaultServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Mutex<Option<JoinHandle<()>>>,
}

impl FaultServer {
    /// Starts a server on a free port of 127.0.0.1.
    pub fn start(options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("the port");
        let shared = Arc::new(Shared::new(options));
        let acceptor = Mutex::new(Some(accept(listener, &shared)));
        Self { address, shared, acceptor }
    }

    /// `http://127.0.0.1:port`, without the bucket.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Adds a rule. Of several rules that match a request the actions add up; where two disagree the older wins.
    pub fn add(&self, rule: Rule) {
        lock(&self.shared.rules).push(rule);
    }

    /// Drops all rules. Actions that have begun continue; those that begin later wait for the next [`release`](Self::release).
    pub fn clear(&self) {
        lock(&self.shared.rules).clear();
        self.shared.hold_again();
    }

    /// Every request whose head was read, in that order.
    pub fn log(&self) -> Vec<Logged> {
        lock(&self.shared.record).log.clone()
    }

    /// Waits until the log is as wished, and says whether it came to that in time.
    pub fn wait(&self, most: Duration, wished: impl Fn(&[Logged]) -> bool) -> bool {
        let record = lock(&self.shared.record);
        let waited = self.shared.recorded.wait_timeout_while(record, most, |record| !wished(&record.log));
        !waited.unwrap_or_else(std::sync::PoisonError::into_inner).1.timed_out()
    }

    /// Malformed HTTP or XML that clients sent.
    pub fn violations(&self) -> Vec<String> {
        lock(&self.shared.record).violations.clone()
    }

    /// The number of connections opened since the start.
    pub fn connections(&self) -> u64 {
        lock(&self.shared.life).opened
    }

    /// The objects that the bucket really holds.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        let bucket = lock(&self.shared.bucket);
        bucket.objects.iter().map(|(key, object)| (key.clone(), object.bytes.to_vec())).collect()
    }

    /// The keys of the multipart uploads that are neither completed nor aborted.
    pub fn uploads(&self) -> Vec<String> {
        lock(&self.shared.bucket).uploads.values().map(|upload| upload.key.clone()).collect()
    }

    /// Puts an object past all rules.
    pub fn put(&self, key: &str, bytes: impl Into<Vec<u8>>) {
        lock(&self.shared.bucket).put(&self.shared.options, key, Arc::new(bytes.into()), Vec::new());
    }

    /// Refuses to store more than this from now on, with 403 and `QuotaExceeded`. Objects stored past all rules are not limited by it.
    pub fn limit(&self, quota: Quota) {
        lock(&self.shared.bucket).quota = quota;
    }

    /// Makes an object older than it is, past all rules.
    pub fn age(&self, key: &str, by: Duration) {
        let mut bucket = lock(&self.shared.bucket);
        bucket.objects.get_mut(key).expect("an object to age").modified -= by;
    }

    /// Removes an object past all rules.
    pub fn remove(&self, key: &str) {
        lock(&self.shared.bucket).objects.remove(key);
    }

    /// Lets the requests go on that [`Action::DelayUntilReleased`] and [`Action::ExecuteWhenReleased`] hold, also later ones, until
    /// [`clear`](Self::clear).
    pub fn release(&self) {
        self.shared.release();
    }

    /// Dies: closes the listener and every connection. Late requests are not executed. The bucket, the rules and
    /// the log stay.
    pub fn kill(&self) {
        let mut acceptor = lock(&self.acceptor);
        self.shared.stop();
        if let Some(acceptor) = acceptor.take() {
            // It is woken by a connection that it then does not take.
            while !acceptor.is_finished() {
                let _ = TcpStream::connect_timeout(&self.address, Duration::from_millis(100));
                thread::yield_now();
            }
            let _ = acceptor.join();
        }
        for worker in self.shared.workers() {
            let _ = worker.join();
        }
    }

    /// Lives again, on the same port.
    pub fn revive(&self) {
        let mut acceptor = lock(&self.acceptor);
        if acceptor.is_none() {
            let listener = TcpListener::bind(self.address).expect("the port is still free");
            self.shared.start();
            *acceptor = Some(accept(listener, &self.shared));
        }
    }
}

impl Drop for FaultServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn accept(listener: TcpListener, shared: &Arc<Shared>) -> JoinHandle<()> {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        while shared.is_running() {
            // A failure belongs to a connection that is gone already.
            let Ok((stream, _)) = listener.accept() else { continue };
            let Some(connection) = shared.register(&stream) else { continue };
            let serving = Arc::clone(&shared);
            let worker = thread::spawn(move || {
                connection::serve(&serving, stream, connection);
                // The copy that `stop` would use is closed last, and with it the connection.
                serving.forget(connection);
            });
            shared.add_worker(worker);
        }
    })
}
