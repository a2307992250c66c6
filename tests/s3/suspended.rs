//! A process that stood still while a request of it was under way, and whose lease was taken meanwhile: it changes nothing any more (H89, H169).

use std::str::FromStr as _;

use async_trait::async_trait;
use futures::executor::block_on;
use futures::future::BoxFuture;
use larder::backend::{
    Backend, Coordination, Housekeeping, LockGuard, LockMode, LockScope, PutMode, Removal, S3Backend,
};
use larder::error::{ErrorKind, Result};
use larder::format::Digest;
use larder::format::layout::Key;
use larder::http::HttpClient;
use larder::rt::{BlockingJob, Connection, Runtime, ThreadRuntime};
use larder::s3::{Credentials, RetryOptions, S3Client, S3Options, StaticCredentials};
use larder_testing::fault_server::{Action, FaultServer, Options, Rule};
use std::io;
use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

const LEASE: &str = "store/.larder/lease";
/// A lease of another process.
const THEIRS: &str = r#"{"beat":0,"doubtful_until":null,"epoch":99,"held":true,"holder":{"host":"h","instance":"i","nonce":"n"}}"#;
const MANIFEST: &str = "vm/1/2025-07-14T14:20:02Z/index.json.blob";

/// Threads, with clocks that can be put forward and back. Timers do not notice.
#[derive(Debug, Default)]
struct Leaping {
    ahead: AtomicU64,
    inner: ThreadRuntime,
    /// For how many seconds the host is suspended while it connects the next time.
    while_connecting: AtomicU64,
    wall: AtomicI64,
}

impl Leaping {
    fn suspend(&self, seconds: u64) {
        self.ahead.fetch_add(seconds, Ordering::SeqCst);
        self.wall.fetch_add(seconds.cast_signed(), Ordering::SeqCst);
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
        let off = self.wall.load(Ordering::SeqCst);
        let by = Duration::from_secs(off.unsigned_abs());
        if off < 0 { self.inner.now() - by } else { self.inner.now() + by }
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
        let connected = self.inner.connect(host, port).await;
        self.suspend(self.while_connecting.swap(0, Ordering::SeqCst));
        connected
    }
}

/// A process that holds the store.
struct Process {
    backend: S3Backend,
    clock: Arc<Leaping>,
    server: Arc<FaultServer>,
    _held: Box<dyn LockGuard>,
}

/// Events on the host while it waits for the answer to a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meanwhile {
    /// A virtual machine is paused: its clocks stop.
    Paused,
    /// A virtual machine is paused, and its time of day is put right at once.
    PausedAndSet,
    /// A process is stopped, or a host suspended: all clocks go on.
    Suspended,
}

const ALL: [Meanwhile; 3] = [Meanwhile::Paused, Meanwhile::PausedAndSet, Meanwhile::Suspended];

impl Process {
    fn start() -> Self {
        let server = Arc::new(FaultServer::start(Options::default()));
        let clock = Arc::new(Leaping::default());
        let runtime: Arc<dyn Runtime> = Arc::<Leaping>::clone(&clock);
        let http = Arc::new(HttpClient::new(Arc::clone(&runtime), larder_testing::plaintext()).unwrap());
        let credentials = Arc::new(StaticCredentials::new(Credentials::new("id", "secret")));
        let mut retry = RetryOptions::default();
        (retry.max_backoff, retry.attempts) = (Duration::from_millis(10), NonZeroU32::new(5).unwrap());
        let options = S3Options::new(server.url(), "bucket").credentials(credentials).retry(retry);
        let client = S3Client::new(
            Arc::clone(&runtime),
            http,
            options.parts(1 << 20, NonZeroU64::new(5 << 20).unwrap()),
        )
        .unwrap();
        let found = block_on(client.probe("store/")).unwrap();
        let backend = S3Backend::new(runtime, client, "store", found, &[]).unwrap();
        let held = block_on(backend.lock(&LockScope::Store, LockMode::Shared)).unwrap();
        for key in [chunk(1), chunk(2), key(MANIFEST)] {
            block_on(backend.put(&key, "old".into(), PutMode::Replace)).unwrap();
        }
        Self { backend, clock, server, _held: held }
    }

    /// The answer to the next request of this kind is lost, and before the host notices, another process has the lease.
    fn loses_the_lease(&self, method: &'static str, part: &'static str, meanwhile: Meanwhile) {
        let (server, clock) = (Arc::downgrade(&self.server), Arc::clone(&self.clock));
        let rule = Rule::on(method).path(move |path| path.contains(part)).query(move |query| {
            // Of an upload in parts, the request that makes it visible.
            if part.contains("index") && method == "POST" && !query.contains("uploadId") {
                return false;
            }
            let server = server.upgrade().unwrap();
            if server.objects()[LEASE] != THEIRS.as_bytes() {
                server.put(LEASE, THEIRS);
                match meanwhile {
                    Meanwhile::Paused => {}
                    Meanwhile::PausedAndSet => drop(clock.wall.fetch_add(120, Ordering::SeqCst)),
                    Meanwhile::Suspended => clock.suspend(120),
                }
            }
            true
        });
        self.server.add(rule.first(1).then(Action::CutRequestAt(0)));
    }

    /// The answer to the next request of this kind is lost, and that only when the server releases it.
    fn answer_late(&self, method: &'static str, part: &'static str) {
        let late = Rule::on(method).path(move |path| path.contains(part)).first(1);
        self.server.add(late.then(Action::DelayUntilReleased).then(Action::CutResponseAt(0)));
    }

    fn lease(&self) -> serde_json::Value {
        serde_json::from_slice(&self.server.objects()[LEASE]).unwrap()
    }

    /// Waits for a request of this kind.
    async fn came(&self, since: usize, method: &str, part: &str) {
        while self.sent(since, method, part) == 0 {
            self.clock.sleep(Duration::from_millis(5)).await;
        }
    }

    /// The number of requests of this kind since some moment.
    fn sent(&self, since: usize, method: &str, part: &str) -> usize {
        let log = self.server.log();
        log[since..].iter().filter(|line| line.method == method && line.path.contains(part)).count()
    }
}

fn key(path: &str) -> Key {
    Key::from_str(path).unwrap()
}

fn chunk(number: u64) -> Key {
    Key::Chunk(Digest::of(&number.to_le_bytes()))
}

fn kind<T>(result: Result<T>) -> std::result::Result<(), ErrorKind> {
    result.map(drop).map_err(|error| error.kind())
}

/// Something that a backend does with one request to a server: its method, a part of its path, and the call.
type Change = (&'static str, &'static str, fn(&S3Backend) -> BoxFuture<'_, Result<()>>);

async fn delete(backend: &S3Backend, keys: &[Key]) -> Result<()> {
    let removals: Vec<_> = keys.iter().cloned().map(Removal::any).collect();
    for deleted in backend.delete(&removals).await? {
        deleted?;
    }
    Ok(())
}

const DELETE: Change =
    ("DELETE", "index.json", |backend| Box::pin(async { delete(backend, &[key(MANIFEST)]).await }));
const DELETE_MANY: Change =
    ("POST", "", |backend| Box::pin(async { delete(backend, &[chunk(1), chunk(2)]).await }));
const PUBLISH: Change = ("PUT", "index.json", |backend| {
    Box::pin(async {
        backend
            .put(&key("vm/2/2025-07-14T14:20:02Z/index.json.blob"), "new".into(), PutMode::Create)
            .await
            .map(drop)
    })
});
const REPLACE: Change = ("PUT", "index.json", |backend| {
    Box::pin(async { backend.put(&key(MANIFEST), "new".into(), PutMode::Replace).await.map(drop) })
});
const REPLACE_IN_PARTS: Change = ("POST", "index.json", |backend| {
    Box::pin(async { backend.put(&key(MANIFEST), vec![0; 6 << 20].into(), PutMode::Replace).await.map(drop) })
});
const COPY: Change = ("PUT", ".chunks", |backend| {
    Box::pin(async { backend.copy(&chunk(1), &chunk(2), PutMode::Replace).await.map(drop) })
});

/// Proves H89, H169.
#[test]
fn no_change_is_retried_after_the_lease_was_lost() {
    for (method, part, change) in [DELETE, DELETE_MANY, PUBLISH, REPLACE, REPLACE_IN_PARTS, COPY] {
        for meanwhile in ALL {
            let process = Process::start();
            let before = process.server.objects();
            let since = process.server.log().len();
            process.loses_the_lease(method, part, meanwhile);
            let what = format!("{method} {part} {meanwhile:?}");
            assert_eq!(kind(block_on(change(&process.backend))), Err(ErrorKind::Unavailable), "{what}");
            let in_parts = method == "POST" && !part.is_empty();
            assert_eq!(process.sent(since, method, part), if in_parts { 2 } else { 1 }, "{what}");
            let mut after = process.server.objects();
            assert_eq!(after.insert(LEASE.to_owned(), before[LEASE].clone()).unwrap(), THEIRS.as_bytes());
            assert_eq!(after, before, "{what}");
            // It knows that it lost the lease, and changes nothing any more.
            assert_eq!(kind(block_on(change(&process.backend))), Err(ErrorKind::Busy), "{what}");
        }
    }
}

/// Proves H169.
#[test]
fn a_host_that_was_suspended_stores_no_chunk() {
    for meanwhile in [Meanwhile::PausedAndSet, Meanwhile::Suspended] {
        let process = Process::start();
        process.loses_the_lease("PUT", ".chunks", meanwhile);
        let since = process.server.log().len();
        let put = block_on(process.backend.put(&chunk(3), "new".into(), PutMode::Create));
        assert_eq!(kind(put), Err(ErrorKind::Unavailable), "{meanwhile:?}");
        assert_eq!(process.sent(since, "PUT", ".chunks"), 1, "{meanwhile:?}");
    }
}

/// Proves H169.
#[test]
fn a_request_waiting_for_a_connection_is_not_sent_after_a_suspension() {
    // Neither has the lease written before. A name that is deleted has.
    let delete_chunk: Change =
        ("DELETE", ".chunks", |backend| Box::pin(async { delete(backend, &[chunk(1)]).await }));
    for (method, part, change) in [delete_chunk, REPLACE] {
        let process = Process::start();
        // Every connection that is open ends.
        process.server.kill();
        process.server.revive();
        process.server.put(LEASE, THEIRS);
        process.clock.while_connecting.store(120, Ordering::SeqCst);
        let since = process.server.log().len();
        // `Unavailable` if the client sent it over a connection that was closed, which it had not noticed yet.
        let refused = kind(block_on(change(&process.backend))).unwrap_err();
        assert!(matches!(refused, ErrorKind::Busy | ErrorKind::Unavailable), "{method} {part}: {refused:?}");
        assert_eq!(process.sent(since, method, part), 0, "{method} {part}");
    }
}

/// Proves H169.
#[test]
fn a_wrong_clock_is_corrected_only_after_the_lease_was_checked() {
    for via_a_read in [false, true] {
        let process = Process::start();
        let since = process.server.log().len();
        if via_a_read {
            // The time of day stood still for an hour, and a read finds that out first.
            process.server.put(LEASE, THEIRS);
            process.server.add(Rule::on("HEAD").then(Action::SkewClock(3600)));
            block_on(process.backend.head(&chunk(1))).unwrap();
            let put = block_on(process.backend.put(&chunk(3), "new".into(), PutMode::Create));
            assert_eq!(kind(put), Err(ErrorKind::Busy));
            assert_eq!(process.sent(since, "PUT", ".chunks"), 0);
        } else {
            let server = Arc::downgrade(&process.server);
            let rule = Rule::on("PUT").path(|path| path.contains(".chunks")).query(move |_| {
                server.upgrade().unwrap().put(LEASE, THEIRS);
                true
            });
            process.server.add(rule.then(Action::SkewClock(3600)));
            let put = block_on(process.backend.put(&chunk(3), "new".into(), PutMode::Create));
            assert_eq!(kind(put), Err(ErrorKind::Busy));
            assert_eq!(process.sent(since, "PUT", ".chunks"), 1);
        }
        assert!(!process.server.objects().keys().any(|path| path.ends_with(&chunk(3).to_string())));
    }
}

/// Proves H169.
#[test]
fn a_jump_of_the_wall_clock_costs_one_renewal() {
    for seconds in [-7200, 7200] {
        let process = Process::start();
        process.clock.wall.store(seconds, Ordering::SeqCst);
        for number in 0..8 {
            block_on(process.backend.put(&chunk(number), "new".into(), PutMode::Replace)).unwrap();
            block_on(delete(&process.backend, &[chunk(number)])).unwrap();
        }
        assert!(process.backend.lease_term().is_some());
        let lease = process.lease();
        assert!(lease["beat"].as_u64().unwrap() <= 2, "{lease}");
    }
}

/// Proves H169.
#[test]
fn a_request_is_not_retried_after_the_lease_was_released() {
    let process = Process::start();
    let since = process.server.log().len();
    // The first answer is lost only after the store was closed.
    process.answer_late("DELETE", "");
    let closing = async {
        process.came(since, "DELETE", "").await;
        process.backend.close().await.unwrap();
        process.server.put(LEASE, THEIRS);
        process.server.release();
    };
    let deleting = [key(MANIFEST)];
    let (deleted, ()) = block_on(futures::future::join(delete(&process.backend, &deleting), closing));
    assert_eq!(kind(deleted), Err(ErrorKind::Unavailable));
    assert_eq!(process.sent(since, "DELETE", ""), 1);
}

/// Proves H169.
#[test]
fn a_request_of_an_earlier_lease_term_is_not_retried_in_a_later_one() {
    let process = Process::start();
    let since = process.server.log().len();
    process.answer_late("DELETE", "index.json");
    let reopening = async {
        process.came(since, "DELETE", "index.json").await;
        process.backend.close().await.unwrap();
        let held = process.backend.lock(&LockScope::Store, LockMode::Shared).await.unwrap();
        process.server.release();
        held
    };
    let deleting = [key(MANIFEST)];
    let (deleted, held) = block_on(futures::future::join(delete(&process.backend, &deleting), reopening));
    assert_eq!(kind(deleted), Err(ErrorKind::Unavailable));
    assert_eq!(process.sent(since, "DELETE", ""), 1);
    block_on(held.check()).unwrap();
}

/// Proves H89.
#[test]
fn a_request_is_not_retried_after_another_one_detected_the_lost_lease() {
    let process = Process::start();
    let since = process.server.log().len();
    process.answer_late("PUT", ".chunks");
    let losing = async {
        process.came(since, "PUT", ".chunks").await;
        process.server.put(LEASE, THEIRS);
        let lost = process.backend.check_owned().await;
        process.server.release();
        lost
    };
    let new = chunk(3);
    let putting = process.backend.put(&new, "new".into(), PutMode::Create);
    let (put, lost) = block_on(futures::future::join(putting, losing));
    assert_eq!((kind(put), kind(lost)), (Err(ErrorKind::Unavailable), Err(ErrorKind::Busy)));
    assert_eq!(process.sent(since, "PUT", ".chunks"), 1);
}

/// Proves H169.
#[test]
fn a_wall_clock_change_does_not_end_a_request_in_flight() {
    for (method, part, change) in [DELETE, PUBLISH, REPLACE] {
        let process = Process::start();
        let clock = Arc::clone(&process.clock);
        let rule = Rule::on(method).path(move |path| path.contains(part)).query(move |_| {
            clock.wall.store(7200, Ordering::SeqCst);
            true
        });
        process.server.add(rule.first(1).then(Action::CutRequestAt(0)));
        assert_eq!(kind(block_on(change(&process.backend))), Ok(()), "{method} {part}");
    }
}

/// Proves H169.
#[test]
fn an_overdue_lease_is_not_deleted() {
    let process = Process::start();
    let clock = Arc::clone(&process.clock);
    let rule = Rule::on("DELETE").path(|path| path.ends_with("lease")).query(move |_| {
        clock.suspend(120);
        true
    });
    process.server.add(rule.first(1).then(Action::CutRequestAt(0)));
    let since = process.server.log().len();
    let began = process.clock.inner.monotonic();
    assert_eq!(kind(block_on(delete(&process.backend, &[Key::Lease]))), Err(ErrorKind::Unavailable));
    assert_eq!(process.sent(since, "DELETE", ""), 1);
    // It does not wait for a renewal, for which it would have to let go of the lease first.
    assert!(process.clock.inner.monotonic().saturating_sub(began) < Duration::from_mins(1));
}

/// Proves I6.
#[test]
fn a_released_lease_lists_requests_that_may_still_be_executed() {
    async fn put(process: &Process) -> Result<()> {
        process.backend.put(&Key::GcStatus, "x".into(), PutMode::Replace).await.map(drop)
    }
    let listed_requests = |process: &Process| {
        let lease = process.lease();
        assert_eq!(lease["held"], false);
        !lease["doubtful_until"].is_null()
    };
    let is_status = |path: &str| path.ends_with("gc-status");
    // Every request was answered.
    let process = Process::start();
    block_on(put(&process)).unwrap();
    block_on(process.backend.close()).unwrap();
    assert!(!listed_requests(&process));
    // One was never answered.
    let process = Process::start();
    process.server.add(Rule::on("PUT").path(is_status).then(Action::CutRequestAt(0)));
    assert_eq!(kind(block_on(put(&process))), Err(ErrorKind::Unavailable));
    block_on(process.backend.close()).unwrap();
    assert!(listed_requests(&process));
    // One is under way.
    let process = Process::start();
    let since = process.server.log().len();
    process.server.add(Rule::on("PUT").path(is_status).then(Action::Delay(Duration::from_mins(1))));
    let closing = async {
        process.came(since, "PUT", "gc-status").await;
        process.backend.close().await.unwrap();
        listed_requests(&process)
    };
    let ended = block_on(futures::future::select(Box::pin(put(&process)), Box::pin(closing)));
    assert!(matches!(ended, futures::future::Either::Right((true, _))));
}

/// Proves H17.
#[test]
fn a_name_is_in_doubt_after_any_unanswered_delete() {
    let blob = || key(&MANIFEST.replace("index.json", "app.conf"));
    let log = || key(&MANIFEST.replace("index.json", "client.log"));
    for together in [false, true] {
        for is_dropped in [false, true] {
            let process = Process::start();
            let (method, keys) =
                if together { ("POST", vec![key(MANIFEST), blob()]) } else { ("DELETE", vec![log()]) };
            let action =
                if is_dropped { Action::Delay(Duration::from_mins(1)) } else { Action::CutRequestAt(0) };
            process.server.add(Rule::on(method).then(action));
            let since = process.server.log().len();
            let deleting = Box::pin(delete(&process.backend, &keys));
            if is_dropped {
                let came = Box::pin(process.came(since, method, ""));
                drop(block_on(futures::future::select(deleting, came)));
            } else {
                assert_eq!(kind(block_on(deleting)), Err(ErrorKind::Unavailable));
            }
            let what = format!("{method} {is_dropped}");
            assert!(process.backend.in_doubt(&blob()).is_some(), "{what}");
            block_on(process.backend.close()).unwrap();
            let name = MANIFEST.strip_suffix("/index.json.blob").unwrap();
            assert_eq!(process.lease()["doubtful"], serde_json::json!([name]), "{what}");
        }
    }
}

/// Proves H17.
#[test]
fn a_name_is_in_doubt_until_its_last_pending_delete_ends() {
    let process = Process::start();
    let later = |minutes: u64| _ = process.clock.ahead.fetch_add(minutes * 60, Ordering::SeqCst);
    let hold = || block_on(process.backend.lock(&LockScope::Store, LockMode::Shared)).unwrap();
    let in_doubt = || process.backend.in_doubt(&key(MANIFEST)).is_some();
    process.server.add(Rule::on("DELETE").then(Action::CutRequestAt(0)));
    assert_eq!(kind(block_on(delete(&process.backend, &[key(MANIFEST)]))), Err(ErrorKind::Unavailable));
    later(20);
    drop(hold());
    block_on(process.backend.close()).unwrap();
    // The released lease says: for another 30 minutes.
    let held = hold();
    later(15);
    assert!(in_doubt(), "by the lease, 35 minutes after the request");
    assert_eq!(kind(block_on(delete(&process.backend, &[key(MANIFEST)]))), Err(ErrorKind::Unavailable));
    later(20);
    assert!(in_doubt(), "by the second request, 55 minutes after the first one");
    later(20);
    assert!(!in_doubt());
    drop(held);
}

/// Proves H17.
#[test]
fn a_lease_is_not_deleted_while_a_chunk_delete_is_pending() {
    for is_dropped in [false, true] {
        let process = Process::start();
        let late = Rule::on("DELETE").path(|path| path.contains(".chunks"));
        process.server.add(late.then(Action::Delay(Duration::from_mins(1))));
        let since = process.server.log().len();
        let chunks = [chunk(1)];
        let deleting = Box::pin(delete(&process.backend, &chunks));
        let came = Box::pin(process.came(since, "DELETE", ".chunks"));
        let under_way = match block_on(futures::future::select(deleting, came)) {
            futures::future::Either::Right(((), deleting)) => Some(deleting).filter(|_| !is_dropped),
            futures::future::Either::Left((deleted, _)) => panic!("{deleted:?}"),
        };
        block_on(delete(&process.backend, &[Key::Lease])).unwrap();
        let lease = process.lease();
        assert_eq!(lease["held"], false);
        assert_eq!(lease["doubtful"], serde_json::json!([Key::Store.to_string()]), "{is_dropped}");
        drop(under_way);
    }
}

/// Proves H17.
#[test]
fn a_name_is_deleted_only_after_the_lease_lists_it() {
    let process = Process::start();
    process.server.add(Rule::on("PUT").path(|path| path.ends_with("lease")).then(Action::CutRequestAt(0)));
    let since = process.server.log().len();
    assert_eq!(kind(block_on(delete(&process.backend, &[key(MANIFEST)]))), Err(ErrorKind::Unavailable));
    assert_eq!(process.sent(since, "DELETE", ""), 0);
    assert!(process.backend.in_doubt(&key(MANIFEST)).is_none(), "nothing was sent");
}

/// Proves H17.
#[test]
fn a_name_stays_listed_until_its_last_delete_ended() {
    let process = Process::start();
    let blob = key(&MANIFEST.replace("index.json", "app.conf"));
    let late = Rule::on("DELETE").path(|path| path.contains("app.conf"));
    process.server.add(late.then(Action::Delay(Duration::from_mins(1))));
    let since = process.server.log().len();
    let others = async {
        process.came(since, "DELETE", "app.conf").await;
        delete(&process.backend, &[key(MANIFEST)]).await.unwrap();
        // Other names cause the lease to be written again, even if one of them is listed.
        delete(&process.backend, &[key("vm/2/owner")]).await.unwrap();
        delete(&process.backend, &[key("vm/2/owner"), key("vm/3/owner")]).await.unwrap();
    };
    let deleting = [blob];
    let deleting = Box::pin(delete(&process.backend, &deleting));
    let ended = block_on(futures::future::select(deleting, Box::pin(others)));
    let lease = process.lease();
    let listed: Vec<_> =
        lease["removing"].as_array().unwrap().iter().filter_map(|name| name.as_str()).collect();
    assert_eq!(listed, [MANIFEST.strip_suffix("/index.json.blob").unwrap(), "vm/2/owner", "vm/3/owner"]);
    assert!(matches!(ended, futures::future::Either::Right(_)));
}

#[test]
fn a_paused_process_that_kept_its_lease_continues() {
    for (method, part, change) in [DELETE, DELETE_MANY, PUBLISH, REPLACE, REPLACE_IN_PARTS, COPY] {
        let process = Process::start();
        let rule = Rule::on(method).path(move |path| path.contains(part));
        process.server.add(rule.first(1).then(Action::CutRequestAt(0)));
        process.server.age(LEASE, Duration::from_hours(1));
        process.clock.suspend(3600);
        assert_eq!(kind(block_on(change(&process.backend))), Ok(()), "{method} {part}");
    }
}
