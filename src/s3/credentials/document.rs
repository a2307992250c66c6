//! Credentials in JSON, as the metadata services of instances and containers answer, and requests to these services.
//!
//! Source: AWS, "Retrieve security credentials from instance metadata"; AWS, "Container credential provider".

use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::{Error, ErrorKind, Result};
use crate::http::{Response, TransportError, TransportErrorKind};
use crate::s3::Refusal;
use crate::s3::credentials::Credentials;
use crate::wire::date::parse_iso8601;

/// An answer. Each provider reads the parts that its service documents.
#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Document {
    access_key_id: Option<String>,
    #[serde(alias = "code")]
    code: Option<String>,
    expiration: Option<String>,
    #[serde(alias = "message")]
    message: Option<String>,
    secret_access_key: Option<String>,
    token: Option<String>,
}

/// Parses an answer with credentials.
///
/// # Errors
/// `Denied` if the service reports a failure; `Unavailable` for an answer that is no credentials.
pub(crate) fn parse_credentials(body: &[u8]) -> Result<Credentials> {
    // The parser's own errors quote the text, which may be a secret.
    let malformed = |what: &str| {
        let malformed = Error::new(ErrorKind::Unavailable, "read credentials from a metadata service");
        malformed.because(format!("the answer {what}"))
    };
    let document: Document = serde_json::from_slice(body).map_err(|_| malformed("is no JSON object"))?;
    let secret = document.secret_access_key.map(Zeroizing::new);
    let token = document.token.map(Zeroizing::new);
    if let Some(code) = document.code.filter(|code| code != "Success") {
        let message = shorten(&document.message.unwrap_or_default());
        let refused = Error::new(ErrorKind::Denied, "get credentials from a metadata service");
        return Err(refused.because(format!("the service reports {}: {message}", shorten(&code))));
    }
    let key_id = document.access_key_id.ok_or_else(|| malformed("has no AccessKeyId"))?;
    let secret = secret.ok_or_else(|| malformed("has no SecretAccessKey"))?;
    let mut credentials = Credentials::new(key_id, secret.as_str());
    if let Some(token) = token {
        credentials = credentials.session_token(token.as_str());
    }
    if let Some(expiration) = document.expiration {
        let expires = parse_iso8601(&expiration).ok_or_else(|| malformed("has a malformed Expiration"))?;
        credentials = credentials.expires(expires);
    }
    Ok(credentials)
}

/// The error for an answer of a metadata service that is no success.
pub(super) fn refused(response: &Response, action: &'static str, subject: &str) -> Error {
    let document: Document = serde_json::from_slice(&response.body).unwrap_or_default();
    let refusal = Refusal {
        code: shorten(&document.code.unwrap_or_default()),
        message: shorten(&document.message.unwrap_or_default()),
        request_id: None,
        status: response.status,
    };
    let kind = match response.status {
        408 | 429 | 500.. => ErrorKind::Unavailable,
        _ => ErrorKind::Denied,
    };
    Error::new(kind, action).on(subject).because(refusal)
}

/// The error for a service that did not answer.
pub(super) fn unanswered(error: TransportError, action: &'static str, subject: &str) -> Error {
    let kind = match error.kind {
        TransportErrorKind::Invalid => ErrorKind::InvalidInput,
        TransportErrorKind::Tls => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, action).on(subject).because(error)
}

/// The first line of a server's text, at most 300 bytes. The lines below it may quote the headers of the request, which hold the session token.
pub(super) fn shorten(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    line[..line.floor_char_boundary(MESSAGE_BYTES)].trim_ascii().to_owned()
}

/// Maximum bytes of a server's text in an error.
const MESSAGE_BYTES: usize = 300;
