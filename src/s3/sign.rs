//! Signed requests, and presigned URLs.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::http::{Header, Request, Timeouts};
use crate::s3::call::{Call, Shared};
use crate::s3::client::BucketClient;
use crate::s3::credentials::Credentials;
use crate::s3::place::Place;
use crate::wire::date::AmzDate;
use crate::wire::sigv4::{self, Signed, SigningKey, UNSIGNED_PAYLOAD};
use crate::wire::uri::{Scheme, encode_path, query};

/// Maximum validity of a presigned URL: a week.
const MOST_SECONDS: u32 = 604_800;

/// The operation that a presigned URL allows.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresignedMethod {
    /// Delete the object.
    Delete,
    /// Read it, or a range of it.
    Get,
    /// Read its metadata.
    Head,
    /// Store it, with any contents.
    Put,
}

impl BucketClient {
    /// A URL that allows one operation on one object without credentials: for at most a week, and no
    /// longer than the credentials are valid. The URL is a bearer token: treat it as a secret. Makes no request.
    ///
    /// # Errors
    /// `InvalidInput` for less than a second or more than a week; `Denied` if there are no credentials.
    ///
    /// # Cancel safety
    /// The future may be dropped.
    pub async fn presign(&self, method: PresignedMethod, key: &str, lifetime: Duration) -> Result<String> {
        let seconds = u32::try_from(lifetime.as_secs()).unwrap_or(u32::MAX);
        if !(1..=MOST_SECONDS).contains(&seconds) {
            return Err(Error::new(ErrorKind::InvalidInput, "sign an address for")
                .on(key)
                .because("the validity must be between one second and one week"));
        }
        let shared = &*self.shared;
        let deadline = shared.deadline(Duration::ZERO);
        let credentials = shared.before(deadline, shared.keeper.current(&*shared.runtime)).await;
        let late = || Error::new(ErrorKind::Unavailable, "sign an address for").on(key);
        let credentials = credentials.ok_or_else(late)??;
        let Place { base, endpoint, region } = self.shared.place().clone();
        let date = AmzDate::new(self.shared.now());
        let (authority, path) = (endpoint.authority(), format!("{base}/{}", encode_path(key)));
        let method = match method {
            PresignedMethod::Delete => "DELETE",
            PresignedMethod::Get => "GET",
            PresignedMethod::Head => "HEAD",
            PresignedMethod::Put => "PUT",
        };
        let headers = [("host", authority.as_str())];
        let signed =
            Signed { headers: &headers, method, path: &path, payload_hash: UNSIGNED_PAYLOAD, query: "" };
        let signing_key = SigningKey::derive(&credentials.secret_access_key, &date, &region, "s3");
        let (id, token) = (&credentials.access_key_id, credentials.session_token.as_ref());
        let token = token.map(|token| token.as_str());
        let query = sigv4::presigned_query(&signing_key, id, token, &date, seconds, &[], &signed);
        let scheme = if endpoint.scheme == Scheme::Https { "https" } else { "http" };
        Ok(format!("{scheme}://{authority}{path}?{query}"))
    }
}

impl Shared {
    pub(super) fn signed(
        &self,
        call: &Call<'_>,
        hash: &str,
        left: Duration,
        credentials: &Credentials,
        place: &Place,
    ) -> Request {
        let Place { base, endpoint, region } = place;
        let date = AmzDate::new(self.now());
        let path = format!("{base}/{}", encode_path(call.key.unwrap_or_default()));
        let query = query(call.query);
        let mut headers = call.headers.clone();
        let mut add = |name: &'static str, value: String| headers.push((Cow::Borrowed(name), value));
        add("host", endpoint.authority());
        add("x-amz-content-sha256", hash.to_owned());
        add("x-amz-date", date.long().to_owned());
        if let Some(token) = &credentials.session_token {
            add("x-amz-security-token", token.to_string());
        }
        // A proxy may change headers outside these groups (H110).
        let is_signed = |name: &str| {
            name.starts_with("x-amz-") || matches!(name, "host" | "content-type" | "content-md5" | "range")
        };
        let signed = headers.iter().map(|(name, value)| (&**name, value.as_str()));
        let signed: Vec<_> = signed.filter(|(name, _)| is_signed(name)).collect();
        let request =
            Signed { headers: &signed, method: call.method, path: &path, payload_hash: hash, query: &query };
        let key = SigningKey::derive(&credentials.secret_access_key, &date, region, "s3");
        let authorization = sigv4::authorization(&key, &credentials.access_key_id, &date, &request);
        let mut add = |name: &'static str, value: String| headers.push((Cow::Borrowed(name), value));
        add("authorization", authorization);
        add("accept-encoding", "identity".to_owned());
        add("user-agent", concat!("larder/", env!("CARGO_PKG_VERSION")).to_owned());
        if !call.body.is_empty() || matches!(call.method, "POST" | "PUT") {
            add("content-length", call.body.len().to_string());
        }
        let target = if query.is_empty() { path } else { format!("{path}?{query}") };
        let timeouts = self.options.timeouts;
        let overall = timeouts.overall.saturating_add(call.allowance()).min(left);
        let timeouts = Timeouts { overall, ..timeouts };
        let mut request = Request::new(call.method, Arc::clone(endpoint), target, timeouts);
        (request.body, request.body_limit) = (call.body.clone(), call.body_limit);
        request.headers = headers.into_iter().map(|(name, value)| Header { name, value }).collect();
        request
    }
}
