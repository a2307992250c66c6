//! The meaning of a failed attempt, and the time of the next one. No other module decides either.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use crate::error::ErrorKind;
use crate::http::{Progress, Response, TransportError, TransportErrorKind};
use crate::rt::Runtime;
use crate::s3::Refusal;
use crate::s3::counters::Operation;
use crate::s3::options::RetryOptions;
use crate::s3::place::SentTo;
use crate::wire::date::parse_http_date;
use crate::wire::s3_xml::{ErrorBody, parse_error};

/// Maximum backoff after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The same for a throttled request.
const FIRST_THROTTLED_PAUSE: Duration = Duration::from_millis(500);
/// Capacity of the retry budget.
const BUDGET: u32 = 500;
/// Cost of a retry; an answer refunds one.
const RETRY_COST: u32 = 5;
/// Minimum clock skew for which a refusal without a code may be due to the clock.
const SKEW: Duration = Duration::from_mins(5);
/// Maximum wait that an error names, whatever the server asks for.
const MAX_WAIT: Duration = Duration::from_hours(24);
/// Maximum bytes of a server's text in an error.
const MESSAGE_BYTES: usize = 1 << 10;

/// Verdict on the outcome of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// An answer, even if negative.
    Answer,
    /// Retry after a correction.
    Mend(Mend),
    /// Permanent failure.
    Never(ErrorKind),
    /// Retry at once: the connection was dead.
    Now,
    /// Retry after a backoff.
    Later { throttled: bool, wanted: Option<Duration> },
    /// Retry once; the same outcome again is permanent.
    Once(ErrorKind),
}

/// A possible correction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mend {
    /// The clock is wrong: the server has this time.
    Clock(Option<SystemTime>),
    /// The credentials have expired, or are no longer accepted.
    Credentials,
    /// The bucket is in this region, or at this server.
    Place(SentTo),
}

/// A refusal by the server.
pub(super) fn refusal(response: &Response) -> (Refusal, ErrorBody) {
    let mut body = parse_error(&response.body).unwrap_or_default();
    if let Some(encoding) = response.compression().filter(|_| body.code.is_empty()) {
        body.message = format!(
            "the answer is compressed (content-encoding: {encoding}), though only uncompressed ones are accepted: a proxy or \
             gateway in between does that; switch compression off there, or go around it"
        );
    }
    for text in [&mut body.code, &mut body.message] {
        text.truncate(text.floor_char_boundary(MESSAGE_BYTES));
    }
    let request_id = response.header("x-amz-request-id").map(str::to_owned);
    let refusal = Refusal {
        code: body.code.clone(),
        message: body.message.clone(),
        request_id: request_id.or_else(|| body.request_id.clone()),
        status: response.status,
    };
    (refusal, body)
}

/// The one judgement of an attempt: its verdict, and the refusal that it was read from.
#[derive(Debug)]
pub(super) struct Judgement {
    /// Set if the verdict depends on the body of an error.
    pub(super) refusal: Option<Refusal>,
    pub(super) verdict: Verdict,
}

impl Judgement {
    /// Judges the outcome of an attempt.
    pub(super) fn of(
        outcome: &std::result::Result<Response, TransportError>,
        operation: Operation,
        now: SystemTime,
    ) -> Self {
        match outcome {
            Ok(response) => judge_response(response, operation, now),
            Err(error) => Self { refusal: None, verdict: judge_failure(error) },
        }
    }

    /// Returns `true` if the server says that it had no time for the request, by a code of its own: it did not execute it. A proxy that
    /// answers without a code does not know that.
    pub(super) fn is_throttled(&self) -> bool {
        self.refusal.as_ref().is_some_and(|refusal| is_throttling(&refusal.code))
    }

    /// The refusal by this response, which was judged.
    pub(super) fn into_refusal(self, response: &Response) -> Refusal {
        self.refusal.unwrap_or_else(|| refusal(response).0)
    }
}

/// Judges a response.
fn judge_response(response: &Response, operation: Operation, now: SystemTime) -> Judgement {
    // The body reports success, because the status was sent before the work was done (H107).
    let in_body = matches!(operation, Operation::Copy | Operation::DeleteMany | Operation::Multipart);
    if in_body && response.is_success() {
        let (refusal, body) = refusal(response);
        if let Some(verdict @ Verdict::Later { .. }) = judge_code(&refusal.code, response, &body, now) {
            return Judgement { refusal: Some(refusal), verdict };
        }
    }
    if response.is_success() {
        // A proxy that compresses one answer compresses the next one too.
        let is_plain = response.compression().is_none();
        let verdict = if is_plain { Verdict::Answer } else { Verdict::Once(ErrorKind::Unavailable) };
        return Judgement { refusal: None, verdict };
    }
    let (refusal, body) = refusal(response);
    let by_code = judge_code(&refusal.code, response, &body, now);
    let verdict = by_code.unwrap_or_else(|| judge_status(&refusal.code, response, &body, operation, now));
    Judgement { refusal: Some(refusal), verdict }
}

/// Judges by the status, for a code that decides nothing.
fn judge_status(
    code: &str,
    response: &Response,
    body: &ErrorBody,
    operation: Operation,
    now: SystemTime,
) -> Verdict {
    match response.status {
        304 | 412 | 416 => Verdict::Answer,
        // An answer to HEAD has no body. Any other answer without a code may come from a proxy, which does not know the
        // objects (I7).
        404 if proves_absence(operation, code) => Verdict::Answer,
        404 => Verdict::Once(ErrorKind::Unavailable),
        301 | 302 | 307 | 308 => Verdict::Mend(place(response, body)),
        400 | 403 if code.is_empty() && skew(response, now).is_some() => {
            Verdict::Mend(Mend::Clock(skew(response, now)))
        }
        400 | 403 if code.is_empty() && response.header("x-amz-bucket-region").is_some() => {
            Verdict::Mend(place(response, body))
        }
        408 | 429 | 498 | 500 | 502 | 503 | 504 => Verdict::Later {
            throttled: matches!(response.status, 429 | 498 | 503),
            wanted: retry_after(response, now),
        },
        400 if code.is_empty() => Verdict::Once(ErrorKind::InvalidInput),
        403 if code.is_empty() => Verdict::Once(ErrorKind::Denied),
        401 | 403 => Verdict::Never(ErrorKind::Denied),
        405 | 501 => Verdict::Never(ErrorKind::Unsupported),
        507 => Verdict::Never(ErrorKind::Full),
        // 409: of two concurrent writers of one key, one is asked to retry.
        409 | 505.. => Verdict::Later { throttled: false, wanted: None },
        _ => Verdict::Never(ErrorKind::InvalidInput),
    }
}

/// Returns `true` for a code by which a server refuses a request because there are too many.
fn is_throttling(code: &str) -> bool {
    matches!(
        code,
        "SlowDown"
            | "SlowDownRead"
            | "SlowDownWrite"
            | "Throttling"
            | "ThrottlingException"
            | "TooManyRequests"
            | "RequestLimitExceeded"
            | "RequestThrottled"
    )
}

/// Returns `true` if 404 with this code means that the requested object or bucket is missing.
fn proves_absence(operation: Operation, code: &str) -> bool {
    mutated!("any-404-is-absence" => return true);
    match operation {
        Operation::BucketHead | Operation::BucketSettings | Operation::Head => true,
        _ => matches!(code, "NoSuchKey" | "NoSuchUpload"),
    }
}

/// The time of the server, if the request may have been refused for its time: an answer to HEAD has no code.
pub(super) fn skew(response: &Response, now: SystemTime) -> Option<SystemTime> {
    let date = response.header("date").and_then(parse_http_date)?;
    let off = date.duration_since(now).unwrap_or_else(|early| early.duration());
    (off > SKEW).then_some(date)
}

/// Returns `Some(true)` for a throttling code, `Some(false)` for another temporary failure, and `None` for a permanent one.
pub(super) fn passes(code: &str) -> Option<bool> {
    match code {
        "ServiceUnavailable" | "BandwidthLimitExceeded" => Some(true),
        code if is_throttling(code) => Some(true),
        // The last group: the body was damaged in transit (H125).
        "InternalError"
        | "RequestTimeout"
        | "OperationAborted"
        | "ConditionalRequestConflict"
        | "RequestTimeoutException"
        | "BadDigest"
        | "XAmzContentSHA256Mismatch"
        | "IncompleteBody"
        | "XAmzContentChecksumMismatch" => Some(false),
        _ => None,
    }
}

/// The code says more than the status, which providers use differently (H133).
fn judge_code(code: &str, response: &Response, body: &ErrorBody, now: SystemTime) -> Option<Verdict> {
    if let Some(throttled) = passes(code) {
        return Some(Verdict::Later { throttled, wanted: retry_after(response, now) });
    }
    Some(match code {
        "RequestTimeTooSkewed" => {
            let date = response.header("date").and_then(parse_http_date);
            Verdict::Mend(Mend::Clock(date))
        }
        // Replaced keys are rejected before they expire.
        "ExpiredToken"
        | "ExpiredTokenException"
        | "InvalidAccessKeyId"
        | "InvalidToken"
        | "TokenRefreshRequired" => Verdict::Mend(Mend::Credentials),
        "PermanentRedirect" | "TemporaryRedirect" | "Redirect" | "IllegalLocationConstraintException" => {
            Verdict::Mend(place(response, body))
        }
        "AuthorizationHeaderMalformed" if body.region.is_some() => Verdict::Mend(place(response, body)),
        "QuotaExceeded"
        | "InsufficientStorage"
        | "XMinioStorageFull"
        | "StorageFull"
        | "ServiceQuotaExceeded"
        | "InsufficientCapacity" => Verdict::Never(ErrorKind::Full),
        "BucketAlreadyExists" | "BucketAlreadyOwnedByYou" => Verdict::Never(ErrorKind::AlreadyExists),
        "NotImplemented" | "MethodNotAllowed" => Verdict::Never(ErrorKind::Unsupported),
        "NoSuchBucket" => Verdict::Never(ErrorKind::InvalidInput),
        "AccessDenied"
        | "SignatureDoesNotMatch"
        | "AllAccessDisabled"
        | "AuthorizationHeaderMalformed"
        | "AccountProblem"
        | "InvalidObjectState" => Verdict::Never(ErrorKind::Denied),
        _ => return None,
    })
}

fn place(response: &Response, body: &ErrorBody) -> Mend {
    let location = response.header("location").map(str::to_owned);
    Mend::Place(SentTo {
        lasting: !matches!(response.status, 302 | 307),
        location: location.or_else(|| body.endpoint.clone()),
        region: response.header("x-amz-bucket-region").map(str::to_owned).or_else(|| body.region.clone()),
    })
}

/// Judges a failure without a response.
fn judge_failure(error: &TransportError) -> Verdict {
    match (error.kind, error.progress) {
        (TransportErrorKind::Invalid, _) => Verdict::Never(ErrorKind::InvalidInput),
        (TransportErrorKind::Tls, Progress::NotSent) => Verdict::Once(ErrorKind::Denied),
        (TransportErrorKind::TooLarge, _) => Verdict::Never(ErrorKind::Corrupt),
        (TransportErrorKind::Closed, Progress::SentOnOldConnection) => Verdict::Now,
        _ => Verdict::Later { throttled: false, wanted: None },
    }
}

/// Parses `Retry-After`: seconds, or a date (H135).
fn retry_after(response: &Response, now: SystemTime) -> Option<Duration> {
    let text = response.header("retry-after")?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => parse_http_date(text).map(|at| at.duration_since(now).unwrap_or_default()),
    }
}

/// Backoff before the next attempt: random up to a limit that doubles with each failure (full jitter), and after
/// `Retry-After`. `None` if that exceeds the deadline.
pub(super) fn pause(
    failures: u32,
    throttled: bool,
    wanted: Option<Duration>,
    options: &RetryOptions,
    runtime: &dyn Runtime,
) -> Option<Duration> {
    let first = if throttled { FIRST_THROTTLED_PAUSE } else { FIRST_PAUSE };
    let limit = first.saturating_mul(1 << failures.min(16)).min(options.max_backoff);
    let jitter = limit.mul_f64(fraction(runtime));
    match wanted {
        Some(wanted) if wanted > options.max_backoff.saturating_mul(3) => None,
        // Spreads the clients that were given the same time.
        Some(wanted) => Some(wanted.saturating_add(jitter)),
        None => Some(jitter),
    }
}

/// Time for which the server wants no further request of this client: its wish, or the maximum backoff after a throttled one.
pub(super) fn wait_of(throttled: bool, wanted: Option<Duration>, options: &RetryOptions) -> Option<Duration> {
    let wanted = wanted.map(|wanted| wanted.min(MAX_WAIT));
    wanted.or(throttled.then_some(options.max_backoff))
}

/// Backoff while the retry budget is empty: between half of the maximum and all of it.
pub(super) fn longest(options: &RetryOptions, runtime: &dyn Runtime) -> Duration {
    options.max_backoff.mul_f64(0.5 + fraction(runtime) / 2.0)
}

/// A random number from 0 to 1.
pub(super) fn fraction(runtime: &dyn Runtime) -> f64 {
    let mut random = [0; 4];
    runtime.fill_random(&mut random);
    f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX)
}

/// Retries that all operations together may still make at the usual pace. While a server is down, the rest back off for the
/// maximum time (H134).
#[derive(Debug)]
pub(super) struct Budget(Mutex<u32>);

impl Default for Budget {
    fn default() -> Self {
        Self(Mutex::new(BUDGET))
    }
}

impl Budget {
    /// Takes the cost of a retry; returns `false` if the budget does not have it.
    pub(super) fn take(&self) -> bool {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.checked_sub(RETRY_COST).map(|rest| *left = rest).is_some()
    }

    /// Refunds after an answer.
    pub(super) fn answered(&self) {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *left = (*left + 1).min(BUDGET);
    }
}

#[cfg(test)]
mod tests;
