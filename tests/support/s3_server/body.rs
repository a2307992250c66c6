//! Bodies of requests: read whole, and compared with what their headers say of them.

use base64_simd::STANDARD;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use hyper::StatusCode;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::Checksum as _;
use s3s::crypto::{Crc32, Crc32c, Crc64Nvme, Sha1, Sha256};
use s3s::dto::{Checksum, StreamingBlob};
use s3s::{S3Error, S3ErrorCode, S3Result, s3_error};

use super::store::md5;

/// Most that is set aside before a byte of a body has come.
const RESERVED_BYTES: usize = 32 << 20;

/// Takes a body, which `s3s` compares with its `x-amz-content-sha256` on the way.
pub(super) async fn read(body: Option<StreamingBlob>, length: Option<i64>) -> S3Result<Bytes> {
    let length = length.and_then(|length| usize::try_from(length).ok()).unwrap_or_default();
    let mut bytes = BytesMut::with_capacity(length.min(RESERVED_BYTES));
    let Some(mut body) = body else { return Ok(Bytes::new()) };
    while let Some(piece) = body.next().await {
        bytes.extend_from_slice(&piece.map_err(|error| refused(&error.to_string()))?);
    }
    Ok(bytes.freeze())
}

/// `s3s` keeps the type of its error to itself, and would answer 500.
fn refused(error: &str) -> S3Error {
    if error.contains("Sha256Mismatch") {
        let mut error = S3Error::with_message(
            S3ErrorCode::Custom("XAmzContentSHA256Mismatch".into()),
            "The provided 'x-amz-content-sha256' header does not match what was computed.",
        );
        error.set_status_code(StatusCode::BAD_REQUEST);
        return error;
    }
    s3_error!(IncompleteBody, "{error}")
}

/// Compares a body with its `Content-MD5` and its `x-amz-checksum-*`.
pub(super) fn check(bytes: &[u8], content_md5: Option<&str>, sent: &Checksum) -> S3Result {
    if content_md5.is_some_and(|sent| sent != base64(&md5(bytes))) {
        return Err(s3_error!(BadDigest));
    }
    let mut hasher = ChecksumHasher {
        crc32: sent.checksum_crc32.as_ref().map(|_| Crc32::new()),
        crc32c: sent.checksum_crc32c.as_ref().map(|_| Crc32c::new()),
        crc64nvme: sent.checksum_crc64nvme.as_ref().map(|_| Crc64Nvme::new()),
        sha1: sent.checksum_sha1.as_ref().map(|_| Sha1::new()),
        sha256: sent.checksum_sha256.as_ref().map(|_| Sha256::new()),
    };
    hasher.update(bytes);
    if hasher.finalize() == *sent { Ok(()) } else { Err(s3_error!(BadDigest)) }
}

pub(super) fn base64(bytes: &[u8]) -> String {
    STANDARD.encode_to_string(bytes)
}
