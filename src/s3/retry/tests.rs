use std::num::NonZeroU32;

use bytes::Bytes;

use super::*;
use crate::http::Header;
use crate::rt::ThreadRuntime;

fn response(status: u16, headers: &[(&str, &str)], body: &str) -> Response {
    let header =
        |(name, value): &(&str, &str)| Header { name: (*name).to_owned().into(), value: (*value).to_owned() };
    Response::new(status, headers.iter().map(header).collect(), Bytes::copy_from_slice(body.as_bytes()))
}

fn coded(status: u16, code: &str) -> Response {
    response(status, &[], &format!("<Error><Code>{code}</Code><Message>text</Message></Error>"))
}

fn judged(response: &Response) -> Verdict {
    judge_response(response, Operation::Get, SystemTime::UNIX_EPOCH).verdict
}

/// Proves H132.
#[test]
fn each_status_and_code_has_its_verdict() {
    for (status, code, want) in [
        (200, "", Verdict::Answer),
        (204, "", Verdict::Answer),
        (304, "", Verdict::Answer),
        (404, "NoSuchKey", Verdict::Answer),
        (404, "", Verdict::Once(ErrorKind::Unavailable)),
        (404, "NoSuchBucket", Verdict::Never(ErrorKind::InvalidInput)),
        (412, "PreconditionFailed", Verdict::Answer),
        (416, "InvalidRange", Verdict::Answer),
        (409, "ConditionalRequestConflict", later(false)),
        (409, "OperationAborted", later(false)),
        (400, "RequestTimeout", later(false)),
        (400, "ThrottlingException", later(true)),
        (400, "XAmzContentSHA256Mismatch", later(false)),
        (400, "BadDigest", later(false)),
        (400, "InvalidArgument", Verdict::Never(ErrorKind::InvalidInput)),
        (400, "ExpiredToken", Verdict::Mend(Mend::Credentials)),
        (403, "ExpiredToken", Verdict::Mend(Mend::Credentials)),
        (403, "InvalidAccessKeyId", Verdict::Mend(Mend::Credentials)),
        (403, "AccessDenied", Verdict::Never(ErrorKind::Denied)),
        (403, "SignatureDoesNotMatch", Verdict::Never(ErrorKind::Denied)),
        (403, "SlowDown", later(true)),
        (403, "QuotaExceeded", Verdict::Never(ErrorKind::Full)),
        (403, "", Verdict::Once(ErrorKind::Denied)),
        (401, "", Verdict::Never(ErrorKind::Denied)),
        (408, "", later(false)),
        (429, "ServiceUnavailable", later(true)),
        (429, "", later(true)),
        (500, "InternalError", later(false)),
        (501, "NotImplemented", Verdict::Never(ErrorKind::Unsupported)),
        (502, "", later(false)),
        (503, "SlowDown", later(true)),
        (504, "", later(false)),
        (507, "", Verdict::Never(ErrorKind::Full)),
        (520, "", later(false)),
    ] {
        let response = if code.is_empty() { response(status, &[], "") } else { coded(status, code) };
        assert_eq!(judged(&response), want, "{status} {code}");
    }
}

/// Proves H133.
#[test]
fn an_error_without_a_document_is_classified_by_its_status() {
    let page = response(503, &[("x-amz-request-id", "7")], "<html><body>Service Unavailable</body></html>");
    assert_eq!(judged(&page), Verdict::Later { throttled: true, wanted: None });
    let (refusal, _) = refusal(&page);
    assert_eq!((refusal.status, refusal.request_id.as_deref()), (503, Some("7")));
    assert_eq!(refusal.to_string(), "the server answered 503 (request 7)");
}

/// As documented by providers, or as their servers answered; texts are shortened.
const ERRORS: [(u16, &str, Verdict); 22] = [
    // AWS
    (
        503,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message><RequestId>4442587FB7D0A2F9</RequestId><HostId>x</HostId></Error>",
        later(true),
    ),
    (
        400,
        "<Error><Code>RequestTimeout</Code><Message>Your socket connection was not read from.</Message></Error>",
        later(false),
    ),
    (
        409,
        "<Error><Code>ConditionalRequestConflict</Code><Condition>If-None-Match</Condition></Error>",
        later(false),
    ),
    (
        403,
        "<Error><Code>InvalidObjectState</Code><StorageClass>GLACIER</StorageClass></Error>",
        never(ErrorKind::Denied),
    ),
    (400, "<Error><Code>ExpiredToken</Code><Token-0>x</Token-0></Error>", Verdict::Mend(Mend::Credentials)),
    // Cloudflare R2
    (
        429,
        "<Error><Code>TooManyRequests</Code><Message>Reduce your concurrent request rate for the same object.</Message></Error>",
        later(true),
    ),
    (
        500,
        "<Error><Code>InternalError</Code><Message>We encountered an internal error. Please try again.</Message></Error>",
        later(false),
    ),
    // Wasabi
    (403, "<Error><Code>TemporarilyUnavailable</Code></Error>", never(ErrorKind::Denied)),
    (
        503,
        "<Error><Code>ServiceUnavailable</Code><Message>Please reduce your request rate</Message></Error>",
        later(true),
    ),
    // Backblaze B2
    (
        503,
        "<?xml version=\"1.0\" ?><Error>\n <Code>ServiceUnavailable</Code>\n <Message>no tomes available</Message>\n</Error>",
        later(true),
    ),
    (
        403,
        "<Error><Code>AccessDenied</Code><Message>Transaction cap exceeded</Message></Error>",
        never(ErrorKind::Denied),
    ),
    // Google Cloud Storage
    (
        429,
        "<?xml version='1.0' encoding='UTF-8'?><Error><Code>SlowDown</Code><Details>The object exceeded the rate limit for mutations.</Details></Error>",
        later(true),
    ),
    // MinIO
    (
        507,
        "<Error><Code>XMinioStorageFull</Code><Message>Storage backend has reached its minimum free drive threshold.</Message><Resource>/b/k</Resource></Error>",
        never(ErrorKind::Full),
    ),
    (
        503,
        "<Error><Code>SlowDownWrite</Code><Message>Resource requested is unwritable, please reduce your request rate</Message></Error>",
        later(true),
    ),
    // Ceph
    (
        403,
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?><Error><Code>QuotaExceeded</Code><BucketName>b</BucketName><RequestId>tx1</RequestId><HostId>1-default</HostId></Error>",
        never(ErrorKind::Full),
    ),
    (500, "<Error><Code>UnknownError</Code><RequestId>tx2</RequestId></Error>", later(false)),
    // OpenStack Swift
    (
        413,
        "<?xml version='1.0' encoding='UTF-8'?>\n<Error><Code>QuotaExceeded</Code><Message>Upload exceeds quota.</Message></Error>",
        never(ErrorKind::Full),
    ),
    (498, "<html><h1>498</h1><p>Rate limited</p></html>", later(true)),
    // DigitalOcean Spaces
    (503, "<Error><Code>SlowDown</Code><BucketName>b</BucketName></Error>", later(true)),
    // Load balancers
    (502, "<html><head><title>502 Bad Gateway</title></head></html>", later(false)),
    (520, "error code: 520", later(false)),
    (404, "<html>404 page not found</html>", Verdict::Once(ErrorKind::Unavailable)),
];

const fn later(throttled: bool) -> Verdict {
    Verdict::Later { throttled, wanted: None }
}

const fn never(kind: ErrorKind) -> Verdict {
    Verdict::Never(kind)
}

/// Proves H133.
#[test]
fn errors_of_every_provider_are_understood() {
    for (status, body, want) in ERRORS {
        assert_eq!(judged(&response(status, &[], body)), want, "{status} {body}");
    }
}

#[test]
fn correctable_errors_carry_their_correction() {
    let date = response(
        403,
        &[("date", "Thu, 01 Jan 1970 00:00:07 GMT")],
        "<Error><Code>RequestTimeTooSkewed</Code></Error>",
    );
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(7);
    assert_eq!(judged(&date), Verdict::Mend(Mend::Clock(Some(time))));
    let other =
        response(400, &[], "<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-1</Region></Error>");
    let place = SentTo { lasting: true, location: None, region: Some("eu-1".to_owned()) };
    assert_eq!(judged(&other), Verdict::Mend(Mend::Place(place)));
    let moved = response(307, &[("location", "https://b.s3.eu-1.example.com/k")], "");
    let location = Some("https://b.s3.eu-1.example.com/k".to_owned());
    let place = SentTo { lasting: false, location, region: None };
    assert_eq!(judged(&moved), Verdict::Mend(Mend::Place(place)));
    // An answer to HEAD has no code.
    let head = |headers: &[(&str, &str)]| {
        judge_response(&response(403, headers, ""), Operation::Head, SystemTime::UNIX_EPOCH).verdict
    };
    let hour = ("date", "Thu, 01 Jan 1970 01:00:00 GMT");
    let time = SystemTime::UNIX_EPOCH + Duration::from_hours(1);
    assert_eq!(head(&[hour]), Verdict::Mend(Mend::Clock(Some(time))));
    assert_eq!(head(&[("date", "Thu, 01 Jan 1970 00:01:00 GMT")]), Verdict::Once(ErrorKind::Denied));
    let place = SentTo { lasting: true, location: None, region: Some("eu-1".to_owned()) };
    assert_eq!(head(&[("x-amz-bucket-region", "eu-1")]), Verdict::Mend(Mend::Place(place)));
}

/// Proves H135.
#[test]
fn retry_after_is_seconds_or_a_date_and_has_a_limit() {
    let wanted = |text: &str| match judged(&response(503, &[("retry-after", text)], "")) {
        Verdict::Later { wanted, .. } => wanted,
        other => panic!("{other:?}"),
    };
    assert_eq!(wanted("0"), Some(Duration::ZERO));
    assert_eq!(wanted(" 5 "), Some(Duration::from_secs(5)));
    assert_eq!(wanted("Thu, 01 Jan 1970 00:01:00 GMT"), Some(Duration::from_mins(1)));
    assert_eq!(wanted("Wed, 31 Dec 1969 23:59:00 GMT"), Some(Duration::ZERO));
    assert_eq!(wanted("soon"), None);
    assert_eq!(wanted("-1"), None);
    let (options, runtime) = (RetryOptions::default(), ThreadRuntime::new());
    let pause = |wanted| pause(1, true, wanted, &options, &runtime);
    assert!(pause(Some(Duration::from_secs(5))).unwrap() >= Duration::from_secs(5));
    assert_eq!(pause(Some(Duration::from_hours(24))), None);
}

/// Proves H134.
#[test]
fn pauses_grow_and_are_random() {
    let (options, runtime) = (RetryOptions::default(), ThreadRuntime::new());
    for failures in 0..40 {
        let limit = FIRST_PAUSE.saturating_mul(1 << failures.min(16)).min(options.max_backoff);
        let pauses: Vec<_> =
            (0..8).map(|_| pause(failures, false, None, &options, &runtime).unwrap()).collect();
        assert!(pauses.iter().all(|pause| *pause <= limit), "{pauses:?} after {failures}");
        assert!(pauses.windows(2).any(|pair| pair[0] != pair[1]));
    }
    assert_eq!(options.attempts, NonZeroU32::new(10).unwrap());
}

/// Proves H134.
#[test]
fn the_retry_budget_is_used_up_and_refilled() {
    let budget = Budget::default();
    assert_eq!((0..1000).filter(|_| budget.take()).count(), 100);
    (0..9).for_each(|_| budget.answered());
    assert!(budget.take());
    assert!(!budget.take());
}

/// Proves H137.
#[test]
fn a_dead_connection_is_not_a_failure() {
    let error = |kind, progress| TransportError::new(kind, progress, "read the response");
    let later = Verdict::Later { throttled: false, wanted: None };
    for (kind, progress, want) in [
        (TransportErrorKind::Closed, Progress::SentOnOldConnection, Verdict::Now),
        (TransportErrorKind::Closed, Progress::Sent, later.clone()),
        (TransportErrorKind::Timeout, Progress::Sent, later.clone()),
        (TransportErrorKind::Connect, Progress::NotSent, later.clone()),
        (TransportErrorKind::Protocol, Progress::Sent, later),
        (TransportErrorKind::Tls, Progress::NotSent, Verdict::Once(ErrorKind::Denied)),
        (TransportErrorKind::Invalid, Progress::NotSent, Verdict::Never(ErrorKind::InvalidInput)),
        (TransportErrorKind::TooLarge, Progress::Sent, Verdict::Never(ErrorKind::Corrupt)),
    ] {
        assert_eq!(judge_failure(&error(kind, progress)), want, "{kind:?} {progress:?}");
    }
}
