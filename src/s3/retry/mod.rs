//! What an attempt that failed means, and when the next one is due. This is the only place that decides it.

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

/// The longest pause after the first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The same where the server asked for patience.
const FIRST_THROTTLED_PAUSE: Duration = Duration::from_millis(500);
/// What the retry budget holds at most.
const BUDGET: u32 = 500;
/// What a retry takes out of it; an answer puts one back.
const RETRY_COST: u32 = 5;
/// How far off a clock is that a request without a code may have been refused for.
const SKEW: Duration = Duration::from_mins(5);
/// How much of a text from a server goes into an error.
const MESSAGE_BYTES: usize = 1 << 10;

/// What is to be done about the outcome of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is an answer, if only a "no".
    Answer,
    /// Send it again, when what is wrong has been mended.
    Mend(Mend),
    /// It will not get better.
    Never(ErrorKind),
    /// Send it again at once: the connection was dead.
    Now,
    /// Send it again later.
    Later { throttled: bool, wanted: Option<Duration> },
    /// Send it again once; if it comes out the same, it will not get better.
    Once(ErrorKind),
}

/// What can be mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mend {
    /// The clock is wrong: the server shows this time.
    Clock(Option<SystemTime>),
    /// The credentials have expired, or are no longer known.
    Credentials,
    /// The bucket is in this region, or at this server.
    Place(SentTo),
}

/// What a server said when it refused.
pub(super) fn refusal(response: &Response) -> (Refusal, ErrorBody) {
    let mut body = parse_error(&response.body).unwrap_or_default();
    if let Some(encoding) = response.head.compression().filter(|_| body.code.is_empty()) {
        body.message = format!(
            "the answer is compressed (content-encoding: {encoding}), though only uncompressed ones are accepted: a proxy or \
             gateway in between does that; switch compression off there, or go around it"
        );
    }
    for text in [&mut body.code, &mut body.message] {
        text.truncate(text.floor_char_boundary(MESSAGE_BYTES));
    }
    let request_id = response.head.headers.get("x-amz-request-id").map(str::to_owned);
    let refusal = Refusal {
        code: body.code.clone(),
        message: body.message.clone(),
        request_id: request_id.or_else(|| body.request_id.clone()),
        status: response.head.status,
    };
    (refusal, body)
}

/// What a response means.
pub(super) fn judge_response(response: &Response, operation: Operation, now: SystemTime) -> Verdict {
    let status = response.head.status;
    // Success is told by the body, since the status came before the work was done (H107).
    let in_body = matches!(operation, Operation::Copy | Operation::DeleteMany | Operation::Multipart);
    if in_body && response.is_success() {
        let (refusal, body) = refusal(response);
        if let Some(later @ Verdict::Later { .. }) = judge_code(&refusal.code, response, &body, now) {
            return later;
        }
    }
    if response.is_success() {
        // A proxy that compresses one answer compresses the next one too.
        let is_plain = response.head.compression().is_none();
        return if is_plain { Verdict::Answer } else { Verdict::Once(ErrorKind::Unavailable) };
    }
    let (refusal, body) = refusal(response);
    if let Some(verdict) = judge_code(&refusal.code, response, &body, now) {
        return verdict;
    }
    match status {
        304 | 412 | 416 => Verdict::Answer,
        // An answer to HEAD has no body. Else, whoever says nothing more may be anybody on the way, who knows nothing of what
        // is there (I7).
        404 if proves_absence(operation, &refusal.code) => Verdict::Answer,
        404 => Verdict::Once(ErrorKind::Unavailable),
        301 | 302 | 307 | 308 => Verdict::Mend(place(response, &body)),
        400 | 403 if refusal.code.is_empty() && skew(response, now).is_some() => {
            Verdict::Mend(Mend::Clock(skew(response, now)))
        }
        400 | 403
            if refusal.code.is_empty() && response.head.headers.get("x-amz-bucket-region").is_some() =>
        {
            Verdict::Mend(place(response, &body))
        }
        408 | 429 | 498 | 500 | 502 | 503 | 504 => Verdict::Later {
            throttled: matches!(status, 429 | 498 | 503),
            wanted: retry_after(response, now),
        },
        400 if refusal.code.is_empty() => Verdict::Once(ErrorKind::InvalidInput),
        403 if refusal.code.is_empty() => Verdict::Once(ErrorKind::Denied),
        401 | 403 => Verdict::Never(ErrorKind::Denied),
        405 | 501 => Verdict::Never(ErrorKind::Unsupported),
        507 => Verdict::Never(ErrorKind::Full),
        // 409: two writers of one key, of whom one is asked to come again.
        409 | 505.. => Verdict::Later { throttled: false, wanted: None },
        _ => Verdict::Never(ErrorKind::InvalidInput),
    }
}

/// Returns `true` if 404 with this code tells that what was asked for is not there.
fn proves_absence(operation: Operation, code: &str) -> bool {
    match operation {
        Operation::BucketHead | Operation::BucketSettings | Operation::Head => true,
        _ => matches!(code, "NoSuchKey" | "NoSuchUpload"),
    }
}

/// The time that the server shows, if a request may have been refused for it: an answer to HEAD has no code.
fn skew(response: &Response, now: SystemTime) -> Option<SystemTime> {
    let date = response.head.headers.get("date").and_then(parse_http_date)?;
    let off = date.duration_since(now).unwrap_or_else(|early| early.duration());
    (off > SKEW).then_some(date)
}

/// Whether what a code says passes, and if so, whether it asks for patience.
pub(super) fn passes(code: &str) -> Option<bool> {
    match code {
        "SlowDown"
        | "SlowDownRead"
        | "SlowDownWrite"
        | "Throttling"
        | "ThrottlingException"
        | "TooManyRequests"
        | "RequestLimitExceeded"
        | "ServiceUnavailable"
        | "BandwidthLimitExceeded"
        | "RequestThrottled" => Some(true),
        // The second line: what arrived is not what was sent, it was damaged on the way (H125).
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

/// The code says more than the status, which providers use in different ways (H133).
fn judge_code(code: &str, response: &Response, body: &ErrorBody, now: SystemTime) -> Option<Verdict> {
    if let Some(throttled) = passes(code) {
        return Some(Verdict::Later { throttled, wanted: retry_after(response, now) });
    }
    Some(match code {
        "RequestTimeTooSkewed" => {
            let date = response.head.headers.get("date").and_then(parse_http_date);
            Verdict::Mend(Mend::Clock(date))
        }
        // Keys that were replaced are unknown before their time is over.
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
    let headers = &response.head.headers;
    let location = headers.get("location").map(str::to_owned);
    Mend::Place(SentTo {
        lasting: !matches!(response.head.status, 302 | 307),
        location: location.or_else(|| body.endpoint.clone()),
        region: headers.get("x-amz-bucket-region").map(str::to_owned).or_else(|| body.region.clone()),
    })
}

/// What it means that there is no response.
pub(super) fn judge_failure(error: &TransportError) -> Verdict {
    match (error.kind(), error.progress()) {
        (TransportErrorKind::Invalid, _) => Verdict::Never(ErrorKind::InvalidInput),
        (TransportErrorKind::Tls, Progress::NotSent) => Verdict::Once(ErrorKind::Denied),
        (TransportErrorKind::TooLarge, _) => Verdict::Never(ErrorKind::Corrupt),
        (TransportErrorKind::Closed, Progress::SentOnOldConnection) => Verdict::Now,
        _ => Verdict::Later { throttled: false, wanted: None },
    }
}

/// Seconds, or a time of day (H135).
fn retry_after(response: &Response, now: SystemTime) -> Option<Duration> {
    let text = response.head.headers.get("retry-after")?.trim();
    match text.parse() {
        Ok(seconds) => Some(Duration::from_secs(seconds)),
        Err(_) => parse_http_date(text).map(|at| at.duration_since(now).unwrap_or_default()),
    }
}

/// How long to wait before the next attempt: any time up to a limit that doubles with each failure (full jitter), and after what
/// the server wants. `None` if it wants more patience than there is.
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
        // All who were told the same time do not come at the same time.
        Some(wanted) => Some(wanted.saturating_add(jitter)),
        None => Some(jitter),
    }
}

/// How long to wait where there is no budget for retries: between half of the longest pause and all of it.
pub(super) fn longest(options: &RetryOptions, runtime: &dyn Runtime) -> Duration {
    options.max_backoff.mul_f64(0.5 + fraction(runtime) / 2.0)
}

/// Any number from 0 to 1.
fn fraction(runtime: &dyn Runtime) -> f64 {
    let mut random = [0; 4];
    runtime.fill_random(&mut random);
    f64::from(u32::from_le_bytes(random)) / f64::from(u32::MAX)
}

/// How many retries all operations together may still make at their usual pace: when a server is down, the rest of them wait as
/// long as they may (H134).
#[derive(Debug)]
pub(super) struct Budget(Mutex<u32>);

impl Default for Budget {
    fn default() -> Self {
        Self(Mutex::new(BUDGET))
    }
}

impl Budget {
    /// Takes what a retry costs; `false` if there is not that much.
    pub(super) fn take(&self) -> bool {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        left.checked_sub(RETRY_COST).map(|rest| *left = rest).is_some()
    }

    /// Puts something back after an answer.
    pub(super) fn answered(&self) {
        let mut left = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *left = (*left + 1).min(BUDGET);
    }
}

#[cfg(test)]
mod tests;
