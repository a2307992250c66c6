//! Request signatures, version 4.
//!
//! The signature covers exactly the given headers; those that a proxy may change are not among them (H110). The query
//! and the path are signed as sent.
//!
//! Source: AWS, "Authenticating Requests (AWS Signature Version 4)" for S3: "Using the Authorization Header" and "Using Query
//! Parameters".

use std::fmt;
use std::fmt::Write as _;

use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use crate::wire::date::AmzDate;
use crate::wire::uri::query;

/// The payload hash of an empty body.
pub const EMPTY_SHA256: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
/// The payload hash of a body that is not signed.
pub const UNSIGNED_PAYLOAD: &str = "UNSIGNED-PAYLOAD";

/// A key derived from a secret for one day, region and service. Zeroed on drop.
#[derive(Clone)]
pub struct SigningKey {
    key: Zeroizing<[u8; 32]>,
    scope: String,
}

impl SigningKey {
    /// The key for the day of `date`, for a service such as `s3` in a region.
    pub fn derive(secret_access_key: &str, date: &AmzDate, region: &str, service: &str) -> Self {
        let start = Zeroizing::new(format!("AWS4{secret_access_key}"));
        let key = [date.short(), region, service, "aws4_request"]
            .iter()
            .fold(None::<Zeroizing<[u8; 32]>>, |key, part| {
                let key = key.as_ref().map_or(start.as_bytes(), |key| key.as_slice());
                Some(Zeroizing::new(hmac(key, part.as_bytes())))
            })
            .unwrap_or_default();
        Self { key, scope: format!("{}/{region}/{service}/aws4_request", date.short()) }
    }

    /// Returns `true` if the key is for this day.
    pub fn is_for(&self, date: &AmzDate) -> bool {
        self.scope.starts_with(date.short())
    }

    fn sign(&self, canonical: &str, date: &AmzDate) -> String {
        let text = format!(
            "AWS4-HMAC-SHA256\n{}\n{}\n{}",
            date.long(),
            self.scope,
            hex_sha256(canonical.as_bytes())
        );
        hex(&hmac(self.key.as_slice(), text.as_bytes()))
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// The signed parts of a request.
#[derive(Clone, Copy, Debug)]
pub struct Signed<'a> {
    /// The headers, names in lower case and unique, in any order: at least `host` and all that begin with `x-amz-`.
    pub headers: &'a [(&'a str, &'a str)],
    /// The method, in capitals.
    pub method: &'a str,
    /// The encoded path, with a leading `/`.
    pub path: &'a str,
    /// The SHA-256 of the body in hexadecimal digits, or [`UNSIGNED_PAYLOAD`].
    pub payload_hash: &'a str,
    /// The query, as [`query`](query()) encodes it.
    pub query: &'a str,
}

/// The value of the `authorization` header.
pub fn authorization(key: &SigningKey, access_key_id: &str, date: &AmzDate, request: &Signed<'_>) -> String {
    let (canonical, names) = canonical(request, request.query);
    let (scope, signature) = (&key.scope, key.sign(&canonical, date));
    format!("AWS4-HMAC-SHA256 Credential={access_key_id}/{scope},SignedHeaders={names},Signature={signature}")
}

/// The query of a presigned request, valid until `seconds` after `date`: 1 to 604,800, which is a week. `pairs` are the
/// unencoded names and values of the query without signature; [`Signed::query`] is ignored.
pub fn presigned_query(
    key: &SigningKey,
    access_key_id: &str,
    session_token: Option<&str>,
    date: &AmzDate,
    seconds: u32,
    pairs: &[(&str, &str)],
    request: &Signed<'_>,
) -> String {
    let credential = format!("{access_key_id}/{}", key.scope);
    let (seconds, names) = (seconds.clamp(1, 604_800).to_string(), sorted_headers(request).1);
    let mut pairs = pairs.to_vec();
    pairs.extend([
        ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
        ("X-Amz-Credential", credential.as_str()),
        ("X-Amz-Date", date.long()),
        ("X-Amz-Expires", seconds.as_str()),
        ("X-Amz-SignedHeaders", names.as_str()),
    ]);
    pairs.extend(session_token.map(|token| ("X-Amz-Security-Token", token)));
    let query = query(&pairs);
    let signature = key.sign(&canonical(request, &query).0, date);
    format!("{query}&X-Amz-Signature={signature}")
}

/// The canonical request, and the names of its headers.
fn canonical(request: &Signed<'_>, query: &str) -> (String, String) {
    let (headers, names) = sorted_headers(request);
    let Signed { method, path, payload_hash, .. } = request;
    let mut text = format!("{method}\n{path}\n{query}\n");
    for (name, value) in headers {
        let words: Vec<_> = value.split_ascii_whitespace().collect();
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}:{}", words.join(" "));
    }
    let _ = write!(text, "\n{names}\n{payload_hash}");
    (text, names)
}

fn sorted_headers<'a>(request: &Signed<'a>) -> (Vec<(&'a str, &'a str)>, String) {
    let mut headers = request.headers.to_vec();
    headers.sort_unstable();
    let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    (headers, names)
}

/// SHA-256 in hexadecimal digits.
pub fn hex_sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

fn hmac(key: &[u8], text: &[u8]) -> [u8; 32] {
    // HMAC accepts keys of any length, so this cannot fail.
    Hmac::<Sha256>::new_from_slice(key)
        .map_or([0; 32], |mac| mac.chain_update(text).finalize().into_bytes().into())
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;

    const ID: &str = "AKIAIOSFODNN7EXAMPLE";
    const SECRET: &str = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY";
    const HOST: (&str, &str) = ("host", "examplebucket.s3.amazonaws.com");
    const DATE: (&str, &str) = ("x-amz-date", "20130524T000000Z");

    fn date() -> AmzDate {
        AmzDate::new(SystemTime::UNIX_EPOCH + Duration::from_hours(380_376))
    }

    fn signature(
        method: &str,
        path: &str,
        query: &str,
        headers: &[(&str, &str)],
        payload_hash: &str,
    ) -> String {
        let key = SigningKey::derive(SECRET, &date(), "us-east-1", "s3");
        let request = Signed { headers, method, path, payload_hash, query };
        authorization(&key, ID, &date(), &request)
    }

    fn ends(authorization: &str, signature: &str) {
        assert!(authorization.ends_with(&format!(",Signature={signature}")), "{authorization}");
    }

    #[test]
    fn the_published_signature_examples_match() {
        let empty = ("x-amz-content-sha256", EMPTY_SHA256);
        let range =
            signature("GET", "/test.txt", "", &[HOST, ("range", "bytes=0-9"), empty, DATE], EMPTY_SHA256);
        assert_eq!(
            range,
            "AWS4-HMAC-SHA256 Credential=AKIAIOSFODNN7EXAMPLE/20130524/us-east-1/s3/aws4_request,\
             SignedHeaders=host;range;x-amz-content-sha256;x-amz-date,\
             Signature=f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"
        );
        let hash = "44ce7dd67c959e0d3524ffac1771dfbba87d2b6b4b4e99e42034a8b803f8b072";
        assert_eq!(hex_sha256(b"Welcome to Amazon S3."), hash);
        let headers = [
            ("date", "Fri, 24 May 2013 00:00:00 GMT"),
            HOST,
            DATE,
            ("x-amz-storage-class", "REDUCED_REDUNDANCY"),
            ("x-amz-content-sha256", hash),
        ];
        let put = signature("PUT", "/test%24file.text", "", &headers, hash);
        ends(&put, "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
        let lifecycle = signature("GET", "/", "lifecycle=", &[HOST, empty, DATE], EMPTY_SHA256);
        ends(&lifecycle, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
        let list = signature(
            "GET",
            "/",
            &query(&[("prefix", "J"), ("max-keys", "2")]),
            &[DATE, empty, HOST],
            EMPTY_SHA256,
        );
        ends(&list, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
    }

    #[test]
    fn the_published_presigned_example_matches() {
        let key = SigningKey::derive(SECRET, &date(), "us-east-1", "s3");
        let headers = [HOST];
        let request = Signed {
            headers: &headers,
            method: "GET",
            path: "/test.txt",
            payload_hash: UNSIGNED_PAYLOAD,
            query: "",
        };
        let signed = presigned_query(&key, ID, None, &date(), 86400, &[], &request);
        assert_eq!(
            signed,
            "X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F20130524%2Fus-east-1%2Fs3%2F\
             aws4_request&X-Amz-Date=20130524T000000Z&X-Amz-Expires=86400&X-Amz-SignedHeaders=host&\
             X-Amz-Signature=aeeed9bbccd4d02ee5c0109b86d86835f995330da4c265957d157751f604d404"
        );
    }

    #[test]
    fn a_presigned_query_is_sorted_and_valid_for_at_most_a_week() {
        let key = SigningKey::derive(SECRET, &date(), "us-east-1", "s3");
        let headers = [HOST];
        let request = Signed {
            headers: &headers,
            method: "GET",
            path: "/k",
            payload_hash: UNSIGNED_PAYLOAD,
            query: "",
        };
        for (seconds, lasts) in [(0, "1"), (1, "1"), (604_800, "604800"), (u32::MAX, "604800")] {
            let pairs = [("response-content-type", "a/b"), ("A", "")];
            let signed = presigned_query(&key, ID, Some("to/k+en="), &date(), seconds, &pairs, &request);
            let (unsigned, _) = signed.split_once("&X-Amz-Signature=").unwrap();
            let names: Vec<_> = unsigned.split('&').collect();
            assert!(names.is_sorted(), "{signed}");
            assert!(names.contains(&format!("X-Amz-Expires={lasts}").as_str()), "{signed}");
            assert!(names.contains(&"X-Amz-Security-Token=to%2Fk%2Ben%3D"), "{signed}");
            assert!(names.contains(&"response-content-type=a%2Fb"), "{signed}");
        }
    }

    #[test]
    fn repeated_blanks_in_header_values_count_once() {
        let plain = signature("GET", "/", "", &[HOST, ("x-amz-meta-a", "b c")], EMPTY_SHA256);
        let blanks = signature("GET", "/", "", &[HOST, ("x-amz-meta-a", "  b   c ")], EMPTY_SHA256);
        assert_eq!(plain, blanks);
    }

    #[test]
    fn signing_keys_are_valid_for_a_day_and_hidden_in_debug_output() {
        let key = SigningKey::derive(SECRET, &date(), "us-east-1", "s3");
        assert!(key.is_for(&date()));
        let tomorrow = AmzDate::new(SystemTime::UNIX_EPOCH + Duration::from_hours(380_400));
        assert!(!key.is_for(&tomorrow));
        assert_eq!(format!("{key:?}"), "SigningKey { scope: \"20130524/us-east-1/s3/aws4_request\", .. }");
    }
}
