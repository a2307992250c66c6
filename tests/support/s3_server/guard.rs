//! Checks before the operations: counting, and the headers that a signature must cover.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::future::BoxFuture;
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, HOST, HeaderName, HeaderValue};
use hyper::{HeaderMap, Method, Request};
use s3s::access::{S3Access, S3AccessContext};
use s3s::auth::SimpleAuth;
use s3s::host::MultiDomain;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, HttpError, HttpResponse, S3Error, S3Result, s3_error};

use super::body::base64;
use super::service::Service;
use super::store::{Store, md5};
use super::{ACCESS_KEY, DOMAIN, REGION, SECRET_KEY};

/// The largest body of a deletion of many: 1000 keys of 1024 bytes, each of which XML may need six for.
const DELETE_BODY_BYTES: usize = 8 << 20;

/// Takes every request first.
#[derive(Clone)]
pub(super) struct Guard {
    requests: Arc<AtomicU64>,
    service: S3Service,
}

impl Guard {
    pub(super) fn new(store: Arc<Store>, port: u16) -> Self {
        let domains = [format!("localhost:{port}"), format!("{DOMAIN}:{port}")];
        let mut builder = S3ServiceBuilder::new(Service::new(store));
        builder.set_access(CoveredBySignature);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        builder.set_host(MultiDomain::new(domains).unwrap());
        Self { requests: Arc::default(), service: builder.build() }
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    async fn answer(self, request: Request<Incoming>) -> Result<HttpResponse, HttpError> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let mut request = request.map(Body::from);
        let answer = match check_digests_of_many(&mut request).await {
            Ok(()) => self.service.call(request).await,
            Err(error) => error.to_http_response().map_err(|error| HttpError::new(Box::new(error))),
        };
        answer.map(|mut answer| {
            answer.headers_mut().insert("x-amz-request-id", HeaderValue::from(number));
            answer
        })
    }
}

impl hyper::service::Service<Request<Incoming>> for Guard {
    type Response = HttpResponse;
    type Error = HttpError;
    type Future = BoxFuture<'static, Result<HttpResponse, HttpError>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        Box::pin(self.clone().answer(request))
    }
}

/// A deletion of many must have a `Content-MD5` or a checksum. `s3s` parses its XML without looking at them.
///
/// Source: AWS `API_DeleteObjects`.
async fn check_digests_of_many(request: &mut Request<Body>) -> S3Result {
    let is_delete = request
        .uri()
        .query()
        .is_some_and(|query| query.split('&').any(|field| matches!(field, "delete" | "delete=")));
    if request.method() != Method::POST || !is_delete {
        return Ok(());
    }
    let body = request
        .body_mut()
        .store_all_limited(DELETE_BODY_BYTES)
        .await
        .map_err(|_| s3_error!(MaxMessageLengthExceeded))?;
    check_digests(request.headers(), &body)
}

fn check_digests(headers: &HeaderMap, body: &Bytes) -> S3Result {
    let Some(sent) = headers.get("content-md5") else {
        if headers.keys().any(|name| name.as_str().starts_with("x-amz-checksum-")) {
            return Ok(());
        }
        return Err(s3_error!(InvalidRequest, "Missing required header for this request: Content-MD5"));
    };
    if sent.as_bytes() == base64(&md5(body)).as_bytes() { Ok(()) } else { Err(s3_error!(BadDigest)) }
}

/// Refuses requests that `s3s` accepts: without credentials, for another region, or with unsigned headers.
struct CoveredBySignature;

#[async_trait]
impl S3Access for CoveredBySignature {
    async fn check(&self, context: &mut S3AccessContext<'_>) -> S3Result<()> {
        if context.credentials().is_none() {
            return Err(s3_error!(AccessDenied, "Access Denied"));
        }
        match context.headers().get(AUTHORIZATION) {
            // Signed in the query.
            None => Ok(()),
            Some(value) => check_authorization(value, context.headers()),
        }
    }
}

fn check_authorization(value: &HeaderValue, headers: &HeaderMap) -> S3Result {
    let value = value.to_str().map_err(S3Error::internal_error)?;
    let field = |name| value.split([' ', ',']).find_map(|field| field.strip_prefix(name));
    // KEY/DATE/REGION/s3/aws4_request, and a key may have slashes.
    let region = field("Credential=").and_then(|scope: &str| scope.rsplit('/').nth(2)).unwrap_or_default();
    if region != REGION {
        return Err(s3_error!(
            AuthorizationHeaderMalformed,
            "The authorization header is malformed; the region '{region}' is wrong; expecting '{REGION}'"
        ));
    }
    let signed: Vec<&str> = field("SignedHeaders=").unwrap_or_default().split(';').collect();
    for name in headers.keys().map(HeaderName::as_str) {
        if (name == HOST.as_str() || name.starts_with("x-amz-")) && !signed.contains(&name) {
            return Err(s3_error!(
                AccessDenied,
                "There were headers present in the request which were not signed: {name}"
            ));
        }
    }
    Ok(())
}
