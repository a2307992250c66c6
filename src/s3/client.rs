//! The one loop through which every request goes: wait, sign, send, judge, retry.

use std::error::Error as StdError;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;

use crate::error::{Error, ErrorKind, Result};
use crate::http::{HttpTransport, Progress, Response, TransportError};
use crate::rt::{Rate, Runtime};
use crate::s3::Refusal;
use crate::s3::attempt::{Attempt, Sending};
use crate::s3::call::{Answer, Call, Shared};
use crate::s3::checksum;
use crate::s3::counters::{Counters, Operation, RequestStats};
use crate::s3::credentials::{Credentials, Keeper};
use crate::s3::guard::Guard;
use crate::s3::limits::Concurrency;
use crate::s3::options::S3Options;
use crate::s3::place::{Place, SentTo};
use crate::s3::retry::{Budget, Mend, Verdict, longest, pause, wait_of};
use crate::trace;
use crate::trace::RetryWarnings;
use crate::wire::sigv4::EMPTY_SHA256;
use crate::wire::uri::Scheme;

/// Minimum bytes of an object that is looked up before it is sent again.
const LOOK_BYTES: usize = 256 << 10;
/// Maximum number of redirects of a call.
const MOST_MOVES: u32 = 2;
/// Maximum clock skew of a trusted server.
const MOST_OFFSET: Duration = Duration::from_hours(48);
/// Stands for an unknown clock skew.
pub(super) const NEVER: i64 = i64::MIN;

/// A client for one bucket. Clones share everything: connections, limits, counters.
#[derive(Clone, Debug)]
pub struct BucketClient {
    /// End of an earlier request that each call of this client repeats or follows.
    pub(super) failed: Option<Duration>,
    /// Asked before each attempt of a changing request.
    pub(super) guard: Option<Arc<dyn Guard>>,
    pub(super) shared: Arc<Shared>,
}

/// Seconds by which the clock of the server is ahead; learned when a request was refused for its time.
#[expect(clippy::exhaustive_structs, reason = "a number with a name")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffset(pub i64);

/// State of a call after some attempts.
#[derive(Default)]
struct Course {
    attempts: u32,
    /// Outcome of the last attempt, in a word of this crate or a code of the server.
    cause: String,
    /// Corrections that are tried only once, and were.
    done: Vec<Remedy>,
    /// End of the last attempt, also of an earlier request, by the monotonic clock.
    failed: Option<Duration>,
    moves: u32,
    /// Endpoint to which the server redirected this call.
    place: Option<Place>,
    reconnects: u32,
    /// Number of attempts that changed something and may have been executed.
    unanswered: u32,
    /// Time for which the server wants no further request, as far as the last attempt shows.
    wait: Option<Duration>,
}

/// Corrections that are tried only once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Remedy {
    Clock,
    Credentials,
    Repetition,
}

impl Course {
    /// The final error. If an attempt may have been executed, the error claims nothing else, whatever came last (I6).
    fn fail(&self, kind: ErrorKind, action: &'static str, subject: &str) -> Error {
        let kind = if self.unanswered > 0 { ErrorKind::Unavailable } else { kind };
        let error = Error::new(kind, action).on(subject);
        match self.wait {
            Some(wait) => error.retry_in(wait),
            None => error,
        }
    }

    /// Returns `true` if this was not tried before.
    fn is_new(&mut self, remedy: Remedy) -> bool {
        let is_new = !self.done.contains(&remedy);
        self.done.push(remedy);
        is_new
    }
}

/// Credentials and endpoint for which a request was signed.
struct SignedFor<'a> {
    credentials: &'a Credentials,
    place: &'a Place,
}

/// The consequence of a verdict.
enum Next {
    Again,
    Fail(ErrorKind),
}

impl BucketClient {
    /// A client that sends through `transport`. No request is made.
    ///
    /// # Errors
    /// `InvalidInput` if endpoint and bucket make no valid address.
    pub fn new(
        runtime: Arc<dyn Runtime>,
        transport: Arc<dyn HttpTransport>,
        options: S3Options,
    ) -> Result<Self> {
        let place = Place::new(&options, options.region.clone())?;
        let limits = options.limits;
        let shared = Shared {
            budget: Budget::default(),
            bytes_in: limits.bytes_in.map(Rate::new),
            bytes_out: limits.bytes_out.map(Rate::new),
            concurrency: Concurrency::new(options.concurrency),
            counters: Counters::new(),
            keeper: Keeper::new(Arc::clone(&options.credentials)),
            md5: AtomicBool::new(false),
            ahead: AtomicI64::new(NEVER),
            offset: AtomicI64::new(0),
            place: Mutex::new(place),
            reads: limits.reads.map(Rate::new),
            runtime,
            transport,
            warnings: RetryWarnings::default(),
            writes: limits.writes.map(Rate::new),
            options,
        };
        Ok(Self { failed: None, guard: None, shared: Arc::new(shared) })
    }

    /// A client on the same connections that asks this guard before each attempt of a changing request.
    #[must_use]
    pub(crate) fn guarded(&self, guard: Arc<dyn Guard>) -> Self {
        Self { failed: None, guard: Some(guard), shared: Arc::clone(&self.shared) }
    }

    /// A client whose changing requests follow one that failed now: the guard confirms its right first, as before another attempt of the same request.
    #[must_use]
    pub(crate) fn after_failure(&self) -> Self {
        Self { failed: Some(self.shared.runtime.monotonic()), ..self.clone() }
    }

    /// Name of the bucket.
    pub fn bucket(&self) -> &str {
        &self.shared.options.bucket
    }

    /// Deadline of a request with all its attempts, without the allowance for its bodies.
    pub(crate) fn request_deadline(&self) -> Duration {
        self.shared.options.retry.deadline
    }

    /// Statistics of all requests so far.
    pub fn stats(&self) -> RequestStats {
        self.shared.counters.stats()
    }

    /// Time by which the clock of the server is ahead.
    pub fn clock_offset(&self) -> ClockOffset {
        ClockOffset(self.shared.offset.load(Ordering::Relaxed))
    }

    /// Seconds by which the last answer was ahead of the local wall clock. `None` if no answer had a date.
    pub(crate) fn ahead(&self) -> Option<i64> {
        Some(self.shared.ahead.load(Ordering::Relaxed)).filter(|ahead| *ahead != NEVER)
    }

    /// Region for which requests are signed: that of the options, or the one that the server named.
    pub fn region(&self) -> String {
        self.shared.place().region.clone()
    }

    /// Current limit of concurrent requests.
    pub fn concurrency(&self) -> u32 {
        self.shared.concurrency.limit()
    }

    /// Sends a request until the server answers. The box keeps the loop out of the code of every caller.
    pub(super) fn call<'a>(
        &'a self,
        action: &'static str,
        call: &'a Call<'a>,
    ) -> BoxFuture<'a, Result<Answer>> {
        let guard = self.guard.as_deref().filter(|_| call.operation.writes());
        let request = self.shared.call(action, call, (guard, self.failed));
        Box::pin(trace::call(call.operation.word(), self.bucket(), call.key, request))
    }
}

impl Shared {
    async fn call(
        &self,
        action: &'static str,
        call: &Call<'_>,
        (guard, failed): (Option<&dyn Guard>, Option<Duration>),
    ) -> Result<Answer> {
        let allowance = call.allowance();
        let deadline = self.deadline(allowance);
        let subject = call.key.unwrap_or(&self.options.bucket);
        let late =
            || Error::new(ErrorKind::Unavailable, action).on(subject).because("there was no time left");
        let hash = self.before(deadline, self.hash(&call.body)).await.ok_or_else(late)??;
        let mut course = Course { failed, ..Course::default() };
        loop {
            trace::begin_attempt(course.attempts + 1);
            let place = course.place.clone();
            let sending = Sending { deadline, failed: course.failed, guard, hash: &hash, place };
            let sent = self.attempt(call, sending).await;
            let Attempt { credentials, judgement, outcome, place } =
                sent.map_err(|error| course.fail(error.kind(), action, subject).because(error))?;
            let verdict = judgement.verdict.clone();
            let (error, may_have_happened): (Box<dyn StdError + Send + Sync>, _) = match outcome {
                Ok(response) if verdict == Verdict::Answer => {
                    self.budget.answered();
                    let refusal = judgement.refusal;
                    return Ok(Answer { refusal, response, unanswered: course.unanswered });
                }
                Ok(response) => {
                    let refused = matches!(verdict, Verdict::Never(_)) && !response.is_success();
                    let refused =
                        refused || (300..500).contains(&response.status) || judgement.is_throttled();
                    (Box::new(judgement.into_refusal(&response)), !refused)
                }
                Err(error) => {
                    let sent = error.progress != Progress::NotSent;
                    if !sent {
                        self.leave(&place);
                    }
                    (Box::new(error), sent)
                }
            };
            course.cause = cause(error.as_ref());
            course.attempts += 1;
            course.failed = Some(self.runtime.monotonic());
            course.unanswered += u32::from(call.operation.writes() && may_have_happened);
            if may_have_happened && let Some(response) = self.found_stored(call, deadline).await {
                self.budget.answered();
                return Ok(Answer { refusal: None, response, unanswered: course.unanswered });
            }
            let signed = SignedFor { credentials: &credentials, place: &place };
            if let Next::Fail(kind) = self.next(call.operation, verdict, &mut course, &signed, deadline).await
            {
                return Err(course.fail(kind, action, subject).because(error));
            }
        }
    }

    /// Deadline of a call with this additional time for its size.
    pub(super) fn deadline(&self, allowance: Duration) -> Duration {
        let deadline = self.options.retry.deadline.saturating_add(allowance);
        self.runtime.monotonic().saturating_add(deadline)
    }

    /// Returns the lost answer if a large object turns out to be stored, because sending it again would double its
    /// cost (H154). Servers whose entity tags are not the MD5 of the contents receive it again.
    async fn found_stored(&self, call: &Call<'_>, deadline: Duration) -> Option<Response> {
        if call.operation != Operation::Put || call.body.len() < LOOK_BYTES || !call.query.is_empty() {
            return None;
        }
        let look = Call::new(Operation::Head, "HEAD", call.key);
        let sending = Sending { deadline, failed: None, guard: None, hash: EMPTY_SHA256, place: None };
        let found = self.attempt(&look, sending).await.ok()?;
        let found = found.outcome.ok().filter(|found| found.status == 200)?;
        let length: usize = found.header("content-length")?.parse().ok()?;
        let tag = found.header("etag")?.trim().trim_matches('"').to_ascii_lowercase();
        if length != call.body.len() || tag.len() != 32 {
            return None;
        }
        let body = call.body.clone();
        let md5 =
            self.runtime.run_blocking("hash a body", move || Ok(checksum::hex_md5(&body))).await.ok()?;
        (md5 == tag).then_some(found)
    }

    /// Corrects what it can and waits for the backoff.
    async fn next(
        &self,
        operation: Operation,
        verdict: Verdict,
        course: &mut Course,
        signed: &SignedFor<'_>,
        deadline: Duration,
    ) -> Next {
        course.wait = None;
        let again = |again| if again { Next::Again } else { Next::Fail(ErrorKind::Denied) };
        let (throttled, wanted) = match verdict {
            Verdict::Never(kind) => return Next::Fail(kind),
            Verdict::Mend(Mend::Clock(time)) => {
                let offset = time.and_then(|time| self.offset_to(time));
                if let Some(offset) = offset {
                    self.offset.store(offset, Ordering::Relaxed);
                }
                return again(offset.is_some() && course.is_new(Remedy::Clock));
            }
            Verdict::Mend(Mend::Credentials) => {
                self.keeper.expired(signed.credentials);
                return again(course.is_new(Remedy::Credentials));
            }
            Verdict::Mend(Mend::Place(sent_to)) => {
                course.moves += 1;
                let moved = course.moves <= MOST_MOVES && self.move_on(signed.place, sent_to, course);
                return again(moved);
            }
            // The pool may hold many dead connections, but not infinitely many.
            Verdict::Now if course.reconnects < 3 => {
                course.reconnects += 1;
                course.attempts -= 1;
                return Next::Again;
            }
            Verdict::Once(kind) if !course.is_new(Remedy::Repetition) => return Next::Fail(kind),
            Verdict::Later { throttled, wanted } => (throttled, wanted),
            Verdict::Once(_) | Verdict::Now | Verdict::Answer => (false, None),
        };
        let options = &self.options.retry;
        course.wait = wait_of(throttled, wanted, options);
        if course.attempts >= options.attempts.get() {
            return Next::Fail(ErrorKind::Unavailable);
        }
        let failures = course.attempts - 1;
        let Some(pause) = pause(failures, throttled, wanted, options, &*self.runtime) else {
            return Next::Fail(ErrorKind::Unavailable);
        };
        let pause = if self.budget.take() { pause } else { longest(options, &*self.runtime).max(pause) };
        if self.runtime.monotonic() + pause >= deadline {
            return Next::Fail(ErrorKind::Unavailable);
        }
        let (now, attempts) = (self.runtime.monotonic(), course.attempts);
        trace::retry(&self.warnings, now, operation.word(), attempts, pause, &course.cause);
        self.runtime.sleep(pause).await;
        Next::Again
    }

    /// The time by the clock of the server.
    pub(super) fn now(&self) -> SystemTime {
        let offset = self.offset.load(Ordering::Relaxed);
        let (now, length) = (self.runtime.now(), Duration::from_secs(offset.unsigned_abs()));
        if offset < 0 { now - length } else { now + length }
    }

    /// Clock skew of the server, if the answer is credible: it comes from the right server and is not off by days (H131).
    fn offset_to(&self, time: SystemTime) -> Option<i64> {
        let endpoint = Arc::clone(&self.place().endpoint);
        if endpoint.scheme == Scheme::Http && !endpoint.is_loopback() {
            return None;
        }
        let (ahead, sign) = match time.duration_since(self.runtime.now()) {
            Ok(ahead) => (ahead, 1),
            Err(behind) => (behind.duration(), -1),
        };
        let seconds = i64::try_from(ahead.as_secs()).ok()?;
        (ahead <= MOST_OFFSET).then_some(sign * seconds)
    }

    /// Follows a redirect, permanent or for this call, or one that another call followed meanwhile. Returns `true` if the endpoint changed.
    fn move_on(&self, from: &Place, sent_to: SentTo, course: &mut Course) -> bool {
        let mut place = self.place();
        if course.place.is_none() && *place != *from {
            return true;
        }
        let lasting = sent_to.lasting;
        let Some(moved) = from.moved(&self.options, sent_to) else { return false };
        if lasting {
            (*place, course.place) = (moved, None);
        } else {
            course.place = Some(moved);
        }
        true
    }

    /// Returns to the endpoint of the options if the redirected one cannot be reached.
    fn leave(&self, place: &Place) {
        let mut current = self.place();
        if *current == *place
            && let Ok(home) = Place::new(&self.options, current.region.clone())
        {
            *current = home;
        }
    }

    pub(super) fn place(&self) -> MutexGuard<'_, Place> {
        // Each change is one assignment, so a panic elsewhere leaves the value whole.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The failure of an attempt in few words, without the message of the server.
fn cause(error: &(dyn StdError + 'static)) -> String {
    if !trace::IS_ON {
        return String::new();
    }
    match (error.downcast_ref::<Refusal>(), error.downcast_ref::<TransportError>()) {
        (Some(refusal), _) => format!("{} {}", refusal.status, refusal.code),
        (_, Some(error)) => format!("{:?}", error.kind),
        _ => String::new(),
    }
}
