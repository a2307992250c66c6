//! Ownership of a store in a bucket: the mark of PBS, and the lease between processes of this crate (section E of the hazards).

use async_trait::async_trait;
use futures::executor::block_on;
use futures::future::{self, BoxFuture};
use larder::backend::{
    Backend, Coordination, LockMode, LockReach, LockScope, Ownership, PutMode, Removal, S3Backend,
};
use larder::error::ErrorKind;
use larder::format::layout::Key;
use larder::http::HttpClient;
use larder::rt::{BlockingJob, Connection, Runtime, ThreadRuntime};
use larder::s3::{Credentials, S3Client, S3Options, StaticCredentials};
use larder_testing::fault_server::{Action, FaultServer, Options, Quirk, Rule};
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

const LEASE: &str = "store/.larder/lease";
const MARK: &str = "store/.in-use";

/// Threads, with a monotonic clock that can be put forward. Sleeping tasks are unaffected.
#[derive(Debug)]
struct Leaping {
    ahead: AtomicU64,
    inner: ThreadRuntime,
}

impl Leaping {
    fn leap(&self, by: Duration) {
        self.ahead.fetch_add(by.as_secs(), Ordering::SeqCst);
    }
}

#[async_trait]
impl Runtime for Leaping {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.inner.spawn(task);
    }
    fn spawn_blocking(&self, job: BlockingJob) {
        self.inner.spawn_blocking(job);
    }
    async fn sleep(&self, duration: Duration) {
        self.inner.sleep(duration).await;
    }
    fn now(&self) -> SystemTime {
        self.inner.now()
    }
    fn monotonic(&self) -> Duration {
        self.inner.monotonic() + Duration::from_secs(self.ahead.load(Ordering::SeqCst))
    }
    fn fill_random(&self, buffer: &mut [u8]) {
        self.inner.fill_random(buffer);
    }
    fn parallelism(&self) -> NonZeroUsize {
        self.inner.parallelism()
    }
    async fn connect(&self, host: &str, port: u16) -> io::Result<Box<dyn Connection>> {
        self.inner.connect(host, port).await
    }
}

/// A process that opens the store, with its clock.
fn opened(server: &FaultServer, ownership: Ownership) -> (Arc<Leaping>, S3Backend) {
    let clock = Arc::new(Leaping { ahead: AtomicU64::new(0), inner: ThreadRuntime::new() });
    let runtime: Arc<dyn Runtime> = Arc::<Leaping>::clone(&clock);
    let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
    let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
    let options = S3Options::new(server.url(), "bucket").credentials(credentials);
    let client = S3Client::new(Arc::clone(&runtime), http, options).unwrap();
    let found = block_on(client.probe("store/")).unwrap();
    (clock, S3Backend::new(runtime, client, "store", found, &[]).unwrap().ownership(ownership))
}

fn process(server: &FaultServer) -> S3Backend {
    opened(server, Ownership::default()).1
}

fn lock(backend: &S3Backend, mode: LockMode) -> Result<Box<dyn larder::backend::LockGuard>, ErrorKind> {
    block_on(backend.lock(&LockScope::Store, mode)).map_err(|error| error.kind())
}

fn put(backend: &S3Backend) -> Result<(), ErrorKind> {
    let put = block_on(backend.put(&Key::GcStatus, "x".into(), PutMode::Replace));
    put.map(drop).map_err(|error| error.kind())
}

fn lease(server: &FaultServer) -> serde_json::Value {
    serde_json::from_slice(&server.objects()[LEASE]).unwrap()
}

/// Proves H88.
#[test]
fn one_of_two_concurrent_processes_gets_the_lease() {
    let server = FaultServer::start(Options::default());
    for _ in 0..8 {
        let (one, other) = (process(&server), process(&server));
        let wanted = |backend| Coordination::lock(backend, &LockScope::Store, LockMode::Shared);
        let (first, second) = block_on(future::join(wanted(&one), wanted(&other)));
        let won = [first.is_ok(), second.is_ok()];
        assert_eq!(won.iter().filter(|won| **won).count(), 1, "{won:?}");
        let lost = if won[0] { second } else { first };
        assert_eq!(lost.unwrap_err().kind(), ErrorKind::Busy);
        let winner = if won[0] { &one } else { &other };
        assert_eq!(put(winner), Ok(()));
        block_on(winner.close()).unwrap();
    }
    assert_eq!(server.objects()[MARK], br#"{"hostname":"larder"}"#);
    assert_eq!((lease(&server)["epoch"].as_u64(), lease(&server)["held"].as_bool()), (Some(8), Some(false)));
}

/// Proves H88.
#[test]
fn taking_the_lease_can_be_repeated_after_a_lost_answer() {
    let server = FaultServer::start(Options::default());
    let backend = process(&server);
    server.add(
        Rule::on("PUT")
            .path(|path| path.ends_with("lease"))
            .first(64)
            .then(Action::status(403, "AccessDenied")),
    );
    assert_eq!(lock(&backend, LockMode::Shared).unwrap_err(), ErrorKind::Denied);
    server.clear();
    assert!(lock(&process(&server), LockMode::Shared).is_ok(), "nobody holds it");
}

/// Proves H88.
#[test]
fn without_conditional_puts_the_last_writer_gets_the_lease() {
    let server = FaultServer::start(Options::with([Quirk::ConditionsIgnored]));
    let (one, other) = (process(&server), process(&server));
    assert_eq!(one.capabilities().lock_reach, LockReach::Process, "the weaker lease is told of");
    let wanted = |backend| Coordination::lock(backend, &LockScope::Store, LockMode::Shared);
    let (first, second) = block_on(future::join(wanted(&one), wanted(&other)));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    let third = process(&server);
    assert_eq!(lock(&third, LockMode::Shared).unwrap_err(), ErrorKind::Busy);
}

#[test]
fn readers_need_no_lease() {
    let server = FaultServer::start(Options::default());
    let (writer, reader) = (process(&server), process(&server));
    let _held = lock(&writer, LockMode::Shared).unwrap();
    let snapshot = LockScope::Snapshot("vm/1/2025-07-14T14:20:02Z".parse().unwrap());
    block_on(reader.lock(&snapshot, LockMode::Shared)).unwrap();
    assert_eq!(block_on(reader.lock(&snapshot, LockMode::Exclusive)).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(
        (writer.lease_term().map(|lease_term| lease_term.epoch), reader.lease_term()),
        (Some(1), None)
    );
}

/// Proves H89.
#[test]
fn a_process_that_lost_the_lease_changes_nothing() {
    let server = FaultServer::start(Options::default());
    let (_, old) = opened(&server, Ownership::default());
    let (clock, new) = opened(&server, Ownership::default());
    let guard = lock(&old, LockMode::Shared).unwrap();
    assert_eq!(lock(&new, LockMode::Shared).unwrap_err(), ErrorKind::Busy);
    server.age(LEASE, Duration::from_secs(59));
    assert_eq!(lock(&new, LockMode::Shared).unwrap_err(), ErrorKind::Busy);
    server.age(LEASE, Duration::from_secs(10));
    lock(&new, LockMode::Shared).unwrap();
    assert_eq!(put(&new), Ok(()));
    // Nothing is removed while requests of the old one may still be executed.
    assert_eq!(lock(&new, LockMode::Exclusive).unwrap_err(), ErrorKind::Busy);
    assert_eq!(block_on(guard.check()).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(put(&old), Err(ErrorKind::Busy));
    let removal = [Removal::any(Key::GcStatus)];
    assert_eq!(block_on(old.delete(&removal)).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(lock(&old, LockMode::Shared).unwrap_err(), ErrorKind::Busy, "for good");
    assert!(server.objects().contains_key("store/.gc-status"));
    // The doubt outlives the holder that releases the lease.
    block_on(new.close()).unwrap();
    let third = process(&server);
    lock(&third, LockMode::Shared).unwrap();
    assert_eq!(lock(&third, LockMode::Exclusive).unwrap_err(), ErrorKind::Busy);
    block_on(third.close()).unwrap();
    lock(&new, LockMode::Shared).unwrap();
    clock.leap(Duration::from_mins(31));
    lock(&new, LockMode::Exclusive).unwrap();
}

/// The wait that an error names is long enough, for a lease of another process and for its requests.
#[test]
fn a_refused_lock_says_when_to_try_again() {
    let server = FaultServer::start(Options::default());
    let (_, old) = opened(&server, Ownership::default());
    let (clock, new) = opened(&server, Ownership::default());
    let _guard = lock(&old, LockMode::Shared).unwrap();
    server.age(LEASE, Duration::from_secs(10));
    let refused = |mode| block_on(new.lock(&LockScope::Store, mode)).map(drop).unwrap_err().retry_after();
    let wait = refused(LockMode::Shared).unwrap();
    assert!((50..=53).contains(&wait.as_secs()), "{wait:?}");
    server.age(LEASE, wait);
    lock(&new, LockMode::Shared).unwrap();
    let wait = refused(LockMode::Exclusive).unwrap();
    assert!(wait > Duration::from_mins(29) && wait <= Duration::from_mins(32), "{wait:?}");
    // This clock leaps whole seconds.
    clock.leap(wait + Duration::from_secs(1));
    lock(&new, LockMode::Exclusive).unwrap();
}

/// Proves H89.
#[test]
fn an_overdue_lease_is_renewed_before_any_change() {
    let server = FaultServer::start(Options::default());
    let (clock, backend) = opened(&server, Ownership::default());
    let guard = lock(&backend, LockMode::Shared).unwrap();
    clock.leap(Duration::from_secs(61));
    assert_eq!(backend.lease_term(), None);
    server.add(
        Rule::on("PUT")
            .path(|path| path.ends_with("lease"))
            .first(64)
            .then(Action::status(403, "AccessDenied")),
    );
    assert_eq!(put(&backend), Err(ErrorKind::Denied));
    server.clear();
    assert_eq!(put(&backend), Ok(()));
    assert_eq!((backend.lease_term().unwrap().epoch, lease(&server)["beat"].as_u64()), (1, Some(1)));
    block_on(guard.check()).unwrap();
    clock.leap(Duration::from_secs(61));
    server.age(LEASE, Duration::from_secs(70));
    lock(&process(&server), LockMode::Shared).unwrap();
    assert_eq!(put(&backend), Err(ErrorKind::Busy));
}

/// Proves H89.
#[test]
fn a_renewal_without_an_answer_is_recognised() {
    let server = FaultServer::start(Options::default());
    let (clock, backend) = opened(&server, Ownership::default());
    lock(&backend, LockMode::Shared).unwrap();
    clock.leap(Duration::from_secs(61));
    // Each is executed and not answered, so that the next finds another tag than it knows.
    server.add(Rule::on("PUT").path(|path| path.ends_with("lease")).first(1).then(Action::CutResponseAt(0)));
    assert_eq!(put(&backend), Ok(()));
    assert_eq!(lease(&server)["beat"].as_u64(), Some(1));
}

/// Proves H89. Also one that began a term and was given up.
#[test]
fn a_late_renewal_does_not_lose_the_lease() {
    for epoch in [1, 2] {
        let server = FaultServer::start(Options::default());
        let (clock, backend) = opened(&server, Ownership::default());
        let guard = lock(&backend, LockMode::Shared).unwrap();
        let mut late = lease(&server);
        late["beat"] = 7.into();
        late["epoch"] = epoch.into();
        server.put(LEASE, late.to_string());
        clock.leap(Duration::from_secs(61));
        // It is not certain yet that no other process held the lease, and nothing is changed.
        assert_eq!(put(&backend), Err(ErrorKind::Unavailable));
        assert_eq!(put(&backend), Ok(()));
        block_on(guard.check()).unwrap();
        let term = backend.lease_term().unwrap();
        assert_eq!((term.continues, term.epoch, lease(&server)["beat"].as_u64()), (None, epoch, Some(8)));
    }
}

/// Proves H90.
#[test]
fn an_instance_takes_back_the_lease_of_its_predecessor() {
    let server = FaultServer::start(Options::default());
    let mine = || Ownership::default().instance("0123");
    let (_, died) = opened(&server, mine());
    lock(&died, LockMode::Shared).unwrap();
    assert_eq!(
        lock(&process(&server), LockMode::Shared).unwrap_err(),
        ErrorKind::Busy,
        "of the same host name"
    );
    let (_, next) = opened(&server, mine());
    lock(&next, LockMode::Shared).unwrap();
    assert_eq!(
        next.lease_term().map(|lease_term| (lease_term.epoch, lease_term.continues)),
        Some((2, Some(1)))
    );
    // A copy of the instance that lives on is found out.
    let again = block_on(died.lock(&LockScope::Store, LockMode::Shared)).unwrap();
    assert_eq!(block_on(again.check()).unwrap_err().kind(), ErrorKind::Busy);
    assert_eq!(put(&died), Err(ErrorKind::Busy));
    block_on(next.close()).unwrap();
    let other = process(&server);
    lock(&other, LockMode::Shared).unwrap();
    assert_eq!(other.lease_term().unwrap().continues, None);
    block_on(other.close()).unwrap();
    let (_, last) = opened(&server, mine());
    lock(&last, LockMode::Shared).unwrap();
    assert_eq!(
        last.lease_term().map(|lease_term| (lease_term.epoch, lease_term.continues)),
        Some((4, None)),
        "another was there"
    );
}

/// Proves H88.
#[test]
fn a_store_that_a_pbs_uses_is_refused_until_it_is_taken_over() {
    for mark in [r#"{"hostname":"pbs1"}"#, "{}", "no json"] {
        let server = FaultServer::start(Options::default());
        server.put(MARK, mark);
        assert_eq!(lock(&process(&server), LockMode::Shared).unwrap_err(), ErrorKind::Denied, "{mark}");
        assert!(!server.objects().contains_key(LEASE));
        let (_, taking) = opened(&server, Ownership::default().host("new").take_over());
        lock(&taking, LockMode::Shared).unwrap();
        assert_eq!(server.objects()[MARK], br#"{"hostname":"new"}"#);
    }
}

/// Proves H57.
#[test]
fn a_detach_removes_only_the_owner_mark() {
    let server = FaultServer::start(Options::default());
    let backend = process(&server);
    lock(&backend, LockMode::Shared).unwrap();
    put(&backend).unwrap();
    let before: Vec<_> = server.objects().into_keys().collect();
    block_on(backend.release()).unwrap();
    let after: Vec<_> = server.objects().into_keys().collect();
    let gone: Vec<_> = before.iter().filter(|key| !after.contains(key)).collect();
    assert_eq!(gone, [MARK]);
    assert_eq!(lease(&server)["held"].as_bool(), Some(false));
}

/// Proves I6.
#[test]
fn a_released_lease_keeps_its_requests_in_doubt() {
    let server = FaultServer::start(Options::default());
    let (first, second) = (process(&server), process(&server));
    lock(&first, LockMode::Exclusive).unwrap();
    server.add(
        Rule::on("PUT").path(|path| path.ends_with("gc-status")).then(Action::Delay(Duration::from_mins(1))),
    );
    let given_up = block_on(future::select(
        Box::pin(first.put(&Key::GcStatus, "x".into(), PutMode::Replace)),
        Box::pin(first.runtime().sleep(Duration::from_millis(100))),
    ));
    drop(given_up);
    block_on(first.close()).unwrap();
    lock(&second, LockMode::Shared).unwrap();
    assert_eq!(lock(&second, LockMode::Exclusive).unwrap_err(), ErrorKind::Busy);
}

#[test]
fn a_lock_ends_with_its_lease_term() {
    let server = FaultServer::start(Options::default());
    let (first, second) = (process(&server), process(&server));
    let guard = lock(&first, LockMode::Shared).unwrap();
    block_on(first.close()).unwrap();
    lock(&second, LockMode::Shared).unwrap();
    block_on(second.close()).unwrap();
    assert_eq!(block_on(guard.check()).unwrap_err().kind(), ErrorKind::Busy);
    block_on(lock(&first, LockMode::Shared).unwrap().check()).unwrap();
}

#[test]
fn chunks_of_a_store_without_identity_are_reused_only_on_request() {
    for key in ["store/.cnt/vm/1/owner", "store/.chunks/0000/x"] {
        let server = FaultServer::start(Options::default());
        server.put(key, "x");
        assert_eq!(lock(&process(&server), LockMode::Shared).unwrap_err(), ErrorKind::Denied, "{key}");
        assert_eq!(server.objects().len(), 1);
        lock(&opened(&server, Ownership::default().reuse()).1, LockMode::Shared).unwrap();
    }
}

/// Proves H29.
#[test]
fn a_store_within_a_store_is_refused() {
    let server = FaultServer::start(Options::default());
    let (runtime, backend) = opened(&server, Ownership::default());
    for name in ["a/b", "/a", "a/", "/"] {
        let (client, found) = (backend.client().clone(), backend.server().clone());
        let runtime: Arc<dyn Runtime> = Arc::<Leaping>::clone(&runtime);
        assert_eq!(
            S3Backend::new(runtime, client, name, found, &[]).unwrap_err().kind(),
            ErrorKind::InvalidInput
        );
    }
}
