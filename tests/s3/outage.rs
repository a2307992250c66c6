//! The S3 client in virtual time, on a scripted transport: outages, limits and keys that change, of many
//! minutes in a moment.

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::channel::oneshot;
use futures::future::join_all;
use larder::error::{Error, ErrorKind};
use larder::http::{Header, HttpTransport, Request, Response, TransportError};
use larder::internal::s3::{Condition, Requests as _};
use larder::internal::wire::date::parse_iso8601;
use larder::rt::{Runtime, SimRuntime};
use larder::s3::{
    CredentialProvider, Credentials, RateLimits, RetryOptions, S3Client, S3Options, StaticCredentials,
};

const LATENCY: Duration = Duration::from_millis(100);

/// The answer by time since the start and request: a status, and a code for an error.
type Answers = Box<dyn Fn(Duration, &Request) -> (u16, &'static str) + Send + Sync>;

/// A server without a network.
struct Fake {
    answers: Answers,
    /// When each request came, in seconds since the start, and how it was answered.
    log: Mutex<Vec<(f64, u16)>>,
    runtime: SimRuntime,
}

impl fmt::Debug for Fake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Fake")
    }
}

#[async_trait]
impl HttpTransport for Fake {
    async fn exchange(&self, request: &Request) -> Result<Response, TransportError> {
        let at = self.runtime.monotonic();
        let (status, code) = (self.answers)(at, request);
        self.log.lock().unwrap().push((at.as_secs_f64(), status));
        self.runtime.sleep(LATENCY).await;
        let body =
            if code.is_empty() { String::new() } else { format!("<Error><Code>{code}</Code></Error>") };
        let headers = vec![Header { name: "etag".into(), value: "\"tag\"".to_owned() }];
        Ok(Response::new(status, headers, Bytes::from(body)))
    }
}

fn set_up(
    answers: impl Fn(Duration, &Request) -> (u16, &'static str) + Send + Sync + 'static,
    change: impl FnOnce(S3Options) -> S3Options,
) -> (SimRuntime, Arc<Fake>, S3Client) {
    let runtime = SimRuntime::new(1);
    let fake = Arc::new(Fake { answers: Box::new(answers), log: Mutex::default(), runtime: runtime.clone() });
    let credentials = StaticCredentials::new(Credentials::new("id", "secret"));
    let options = S3Options::new("https://s3.test", "bucket").credentials(Arc::new(credentials));
    let client = S3Client::new(Arc::new(runtime.clone()), Arc::clone(&fake) as _, change(options)).unwrap();
    (runtime, fake, client)
}

impl Fake {
    /// Requests a second that came between two moments.
    fn rate(&self, from: f64, to: f64) -> f64 {
        let log = self.log.lock().unwrap();
        let count = u32::try_from(log.iter().filter(|(at, _)| (from..to).contains(at)).count()).unwrap();
        f64::from(count) / (to - from)
    }
}

/// Runs tasks until all of them have ended, and returns what they did.
fn all<T: Send + 'static>(
    runtime: &SimRuntime,
    tasks: impl IntoIterator<Item = impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let ends: Vec<_> = tasks
        .into_iter()
        .map(|task| {
            let (sender, receiver) = oneshot::channel();
            runtime.spawn(Box::pin(async move { drop(sender.send(task.await)) }));
            receiver
        })
        .collect();
    runtime.block_on(join_all(ends)).into_iter().map(Result::unwrap).collect()
}

/// Proves H134.
#[test]
fn a_thousand_workers_send_few_requests_to_a_server_that_is_down_and_resume() {
    let (down, up) = (Duration::from_secs(5), Duration::from_secs(35));
    let is_down = move |at| (down..up).contains(&at);
    let answers = move |at, _: &Request| if is_down(at) { (503, "ServiceUnavailable") } else { (200, "") };
    let (runtime, fake, client) = set_up(answers, |options| options);
    let workers = (0..1000).map(|_| {
        let (client, runtime) = (client.clone(), runtime.clone());
        async move {
            while runtime.monotonic() < Duration::from_secs(50) {
                // Who is refused comes again, as workers do that have nothing else to do.
                let _ = client.raw().get("k", 1).await;
            }
        }
    });
    all(&runtime, workers);
    let normal = fake.rate(1.0, 5.0);
    let (during, after) = (fake.rate(6.0, 35.0), fake.rate(45.0, 49.0));
    assert!(during < 0.2 * normal, "{during} requests a second while it was down, {normal} before");
    assert!(after > 0.8 * normal, "{after} requests a second ten seconds later, {normal} before");
}

/// Proves H130.
#[test]
fn a_request_that_waited_long_is_signed_when_it_is_sent() {
    let stale = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&stale);
    let start = SimRuntime::new(1).now();
    let answers = move |at: Duration, request: &Request| {
        let date = request.headers.iter().find(|header| header.name == "x-amz-date").unwrap().value.clone();
        // 20250101T001500Z
        let parts = [&date[..4], "-", &date[4..6], "-", &date[6..11], ":", &date[11..13], ":", &date[13..]];
        let signed = parse_iso8601(&parts.concat()).unwrap();
        let sent = start + at;
        if sent.duration_since(signed).is_ok_and(|age| age > Duration::from_secs(1)) {
            seen.fetch_add(1, Ordering::Relaxed);
        }
        (200, "")
    };
    let (runtime, fake, client) = set_up(answers, |options| {
        let mut limits = RateLimits::default();
        limits.writes = NonZeroU64::new(1);
        let mut retry = RetryOptions::default();
        retry.deadline = Duration::from_hours(1);
        options.limits(limits).retry(retry)
    });
    let puts = (0..1300).map(|number| {
        let client = client.clone();
        async move { client.raw().put(&number.to_string(), Bytes::new(), &Condition::Always).await }
    });
    assert!(all(&runtime, puts).into_iter().all(|result| result.is_ok()));
    assert!(runtime.monotonic() > Duration::from_mins(20));
    assert_eq!((fake.log.lock().unwrap().len(), stale.load(Ordering::Relaxed)), (1300, 0));
}

/// Proves H128.
#[test]
fn a_request_that_would_wait_past_its_deadline_fails_in_time() {
    let (runtime, fake, client) = set_up(
        |_, _| (200, ""),
        |options| {
            let mut limits = RateLimits::default();
            limits.reads = NonZeroU64::new(1);
            let mut retry = RetryOptions::default();
            retry.deadline = Duration::from_secs(10);
            options.limits(limits).retry(retry)
        },
    );
    let gets = (0..100).map(|_| {
        let client = client.clone();
        async move { client.raw().get("k", 0).await.map(drop).map_err(|error| error.kind()) }
    });
    let results = all(&runtime, gets);
    let done = results.iter().filter(|result| result.is_ok()).count();
    assert!((9..=13).contains(&done), "{done} had their turn");
    assert!(results.iter().all(|result| matches!(result, Ok(()) | Err(ErrorKind::Unavailable))));
    assert!(runtime.monotonic() < Duration::from_secs(15));
    assert_eq!(fake.log.lock().unwrap().len(), done, "nothing was sent for the others");
}

/// A new key each time, which the server gets too.
#[derive(Debug, Default)]
struct Rotating {
    asked: AtomicU64,
    failing: Mutex<bool>,
    lifetime: Option<Duration>,
}

#[async_trait]
impl CredentialProvider for Rotating {
    async fn credentials(&self, runtime: &dyn Runtime) -> Result<Credentials, Error> {
        runtime.sleep(Duration::from_secs(1)).await;
        if *self.failing.lock().unwrap() {
            return Err(Error::new(ErrorKind::Unavailable, "ask for credentials"));
        }
        let number = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        let credentials = Credentials::new(format!("key-{number}-"), "secret");
        Ok(match self.lifetime {
            Some(lifetime) => credentials.expires(runtime.now() + lifetime),
            None => credentials,
        })
    }
}

fn key_number(request: &Request) -> u64 {
    let header = &request.headers.iter().find(|header| header.name == "authorization").unwrap().value;
    header.split("key-").nth(1).unwrap().split('-').next().unwrap().parse().unwrap()
}

/// Proves H153.
#[test]
fn credentials_that_change_every_hundred_requests_fail_no_request() {
    for (status, code) in [(400, "ExpiredToken"), (403, "ExpiredToken"), (403, "InvalidAccessKeyId")] {
        let accepted = Mutex::new(BTreeMap::<u64, u32>::new());
        let answers = move |_, request: &Request| {
            let (number, mut accepted) = (key_number(request), accepted.lock().unwrap());
            let used = accepted.entry(number).or_default();
            *used += 1;
            if *used <= 100 { (200, "") } else { (status, code) }
        };
        let provider = Arc::new(Rotating::default());
        let (runtime, _, client) = set_up(answers, |options| options.credentials(provider.clone()));
        let gets = (0..20).map(|_| {
            let client = client.clone();
            async move {
                for _ in 0..50 {
                    client.raw().get("k", 1).await.unwrap();
                }
            }
        });
        all(&runtime, gets);
        let asked = provider.asked.load(Ordering::Relaxed);
        assert_eq!(asked, 10, "{code}: once for each hundred, however many noticed it");
    }
}

/// Proves H153.
#[test]
fn credentials_are_renewed_early_and_used_until_they_expire() {
    let provider = Rotating { lifetime: Some(Duration::from_mins(10)), ..Rotating::default() };
    let provider = Arc::new(provider);
    let (runtime, _, client) = set_up(|_, _| (200, ""), |options| options.credentials(provider.clone()));
    let get = async |minutes: u64| {
        let until = Duration::from_secs(60 * minutes).saturating_sub(runtime.monotonic());
        runtime.sleep(until).await;
        client.raw().get("k", 1).await.map(drop).map_err(|error| error.kind())
    };
    runtime.block_on(async {
        assert_eq!(get(0).await, Ok(()));
        assert_eq!(get(7).await, Ok(()));
        assert_eq!(provider.asked.load(Ordering::Relaxed), 1);
        *provider.failing.lock().unwrap() = true;
        assert_eq!(get(9).await, Ok(()), "nobody had others, and these still work");
        assert_eq!(get(11).await, Err(ErrorKind::Unavailable));
        *provider.failing.lock().unwrap() = false;
        assert_eq!(get(12).await, Ok(()));
        assert_eq!(provider.asked.load(Ordering::Relaxed), 2);
    });
}
