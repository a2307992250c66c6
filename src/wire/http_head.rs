//! Heads of HTTP/1.1 messages: writes requests and parses responses.
//!
//! A connection carries one answer after the other. A parser that misplaces the end of one reads the next from its middle
//! (H141). So every ambiguity is an error here and ends the connection: a line that ends in a bare
//! LF, a folded header, a space before a colon, a version other than 1.0 and 1.1, a head without end.
//!
//! Source: RFC 9112 §2 to §5, RFC 9110 §5.

use std::borrow::Cow;

use thiserror::Error;

/// Maximum bytes of a response head.
pub const HEAD_LIMIT: usize = 32 << 10;
/// Maximum number of headers.
const HEADERS_LIMIT: usize = 128;

/// Reason why a head is invalid.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    /// A line ends in LF without CR before it.
    #[error("a line of the head ends without a carriage return")]
    BareLineFeed,
    /// A name or value of a request contains bytes that would end the line or the head.
    #[error("the header {0} cannot be sent")]
    Header(&'static str),
    /// The head violates the grammar.
    #[error("the head is malformed")]
    Malformed,
    /// The head has more than [`HEAD_LIMIT`] bytes or 128 headers.
    #[error("the head is too large")]
    TooLarge,
    /// The HTTP version is not supported.
    #[error("the version of HTTP is neither 1.0 nor 1.1")]
    Version,
}

/// The headers of a response in their original order, with names in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl IntoIterator for Headers {
    type Item = (String, String);
    type IntoIter = std::vec::IntoIter<(String, String)>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl Headers {
    /// The value of the first header with this name, which is in lower case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(have, _)| have == name).map(|(_, value)| value.as_str())
    }

    /// The values of all headers with this name, which is in lower case.
    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(have, _)| have == name).map(|(_, value)| value.as_str())
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    /// Headers from pairs of a name in lower case and a value.
    fn from_iter<I: IntoIterator<Item = (N, V)>>(headers: I) -> Self {
        Self(headers.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// The head of a response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    /// The headers.
    pub headers: Headers,
    /// The minor version: 0 or 1.
    pub minor_version: u8,
    /// The status, from 100 to 999.
    pub status: u16,
}

impl ResponseHead {
    /// The encoding of the body, if a proxy compressed it, or it was stored compressed (H120). `aws-chunked` is only the encoding in which
    /// the body was once sent.
    pub(crate) fn compression(&self) -> Option<&str> {
        self.headers.get("content-encoding").and_then(compression)
    }

    /// Returns `true` if the connection can carry another request after this answer, according to its head (RFC 9112 §9.3).
    pub(crate) fn keeps_connection(&self) -> bool {
        let has = |wanted: &str| {
            let tokens = self.headers.all("connection").flat_map(|value| value.split(','));
            tokens.into_iter().any(|token| token.trim().eq_ignore_ascii_case(wanted))
        };
        if self.minor_version == 0 { has("keep-alive") && !has("close") } else { !has("close") }
    }
}

/// The encoding that a `content-encoding` header means, unless the body is plain.
pub(crate) fn compression(header: &str) -> Option<&str> {
    let encoding = header.trim();
    let is_plain = ["", "identity", "aws-chunked"].iter().any(|plain| encoding.eq_ignore_ascii_case(plain));
    (!is_plain).then_some(encoding)
}

/// Appends the head of a request, with the final empty line, to `out`.
///
/// # Errors
/// `Header` if a name or value contains a line end, `Malformed` for an invalid method or target. Nothing is
/// written then.
pub fn write_request<'a>(
    out: &mut Vec<u8>,
    method: &str,
    target: &str,
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), HeadError> {
    let start = out.len();
    let written = write_lines(out, method, target, headers);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn write_lines<'a>(
    out: &mut Vec<u8>,
    method: &str,
    target: &str,
    headers: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<(), HeadError> {
    let visible = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_token(method) || !visible(target) {
        return Err(HeadError::Malformed);
    }
    for part in [method, " ", target, " HTTP/1.1\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (name, value) in headers {
        if !is_token(name) {
            return Err(HeadError::Header("name"));
        }
        if value.bytes().any(|byte| byte != b'\t' && byte.is_ascii_control()) {
            return Err(HeadError::Header("value"));
        }
        for part in [name, ": ", value, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
    Ok(())
}

/// Parses the head of a response at the start of `input`. Returns it with its length, or `None` if it is incomplete.
///
/// # Errors
/// Any error that further bytes cannot repair.
pub fn parse_response(input: &[u8]) -> Result<Option<(ResponseHead, usize)>, HeadError> {
    let Some(length) = end_of_head(input)? else {
        return if input.len() > HEAD_LIMIT { Err(HeadError::TooLarge) } else { Ok(None) };
    };
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_LIMIT];
    let mut response = httparse::Response::new(&mut headers);
    match response.parse(&input[..length]) {
        Ok(httparse::Status::Complete(parsed)) if parsed == length => {}
        Err(httparse::Error::TooManyHeaders) => return Err(HeadError::TooLarge),
        Err(httparse::Error::Version) => return Err(HeadError::Version),
        _ => return Err(HeadError::Malformed),
    }
    let (Some(status @ 100..), Some(minor_version)) = (response.code, response.version) else {
        return Err(HeadError::Malformed);
    };
    let header = |header: &httparse::Header<'_>| {
        let value: Cow<'_, str> = String::from_utf8_lossy(header.value);
        (header.name.to_ascii_lowercase(), value.into_owned())
    };
    let headers = response.headers.iter().map(header).collect();
    Ok(Some((ResponseHead { headers, minor_version, status }, length)))
}

/// The end of the head, if it is complete. `httparse` accepts a bare LF as line end, and skips empty lines before the head.
fn end_of_head(input: &[u8]) -> Result<Option<usize>, HeadError> {
    if input.first().is_some_and(|first| *first != b'H') {
        return Err(HeadError::Malformed);
    }
    let searched = &input[..input.len().min(HEAD_LIMIT)];
    let mut line = 0;
    for (at, _) in searched.iter().enumerate().filter(|(_, byte)| **byte == b'\n') {
        if at == 0 || searched[at - 1] != b'\r' {
            return Err(HeadError::BareLineFeed);
        }
        if at == line + 1 {
            return Ok(Some(at + 1));
        }
        line = at + 1;
    }
    Ok(None)
}

fn is_token(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Option<(ResponseHead, usize)>, HeadError> {
        parse_response(text.as_bytes())
    }

    fn head(text: &str) -> ResponseHead {
        parse(text).unwrap().unwrap().0
    }

    #[test]
    fn a_request_has_exactly_these_bytes() {
        let mut out = b"before".to_vec();
        let headers = [("host", "example.com"), ("x-amz-date", "20130524T000000Z")];
        write_request(&mut out, "GET", "/a%20b?list-type=2", headers).unwrap();
        let want =
            "GET /a%20b?list-type=2 HTTP/1.1\r\nhost: example.com\r\nx-amz-date: 20130524T000000Z\r\n\r\n";
        assert_eq!(out, [b"before", want.as_bytes()].concat());
    }

    #[test]
    fn no_header_can_be_smuggled_into_a_request() {
        let write = |method: &str, target: &str, name: &str, value: &str| {
            let mut out = Vec::new();
            let written = write_request(&mut out, method, target, [(name, value)]);
            assert!(written.is_ok() || out.is_empty());
            written
        };
        assert_eq!(write("GET", "/", "a", "b\r\nc: d"), Err(HeadError::Header("value")));
        assert_eq!(write("GET", "/", "a", "b\0"), Err(HeadError::Header("value")));
        assert_eq!(write("GET", "/", "a b", "c"), Err(HeadError::Header("name")));
        assert_eq!(write("GET", "/", "", "c"), Err(HeadError::Header("name")));
        assert_eq!(write("GET", "/ HTTP/1.1", "a", "b"), Err(HeadError::Malformed));
        assert_eq!(write("GET", "", "a", "b"), Err(HeadError::Malformed));
        assert_eq!(write("GE T", "/", "a", "b"), Err(HeadError::Malformed));
        assert_eq!(write("GET", "/", "a", "b\tc"), Ok(()));
    }

    #[test]
    fn a_response_is_parsed_when_it_is_whole() {
        let text = "HTTP/1.1 206 Partial Content\r\nContent-Length: 3\r\nX-A: 1\r\nx-a:  2 \r\n\r\nabc";
        for end in 0..text.len() - 3 {
            assert_eq!(parse(&text[..end]), Ok(None), "{end}");
        }
        let (head, length) = parse(text).unwrap().unwrap();
        assert_eq!((head.status, head.minor_version, length), (206, 1, text.len() - 3));
        assert_eq!(head.headers.get("content-length"), Some("3"));
        assert_eq!(head.headers.all("x-a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(head.headers.0.len(), 3);
    }

    /// Proves H141, H148.
    #[test]
    fn ambiguous_heads_are_refused() {
        for (text, error) in [
            ("HTTP/1.1 200 OK\nA: b\r\n\r\n", HeadError::BareLineFeed),
            ("HTTP/1.1 200 OK\r\nA: b\n\r\n", HeadError::BareLineFeed),
            ("HTTP/1.1 200 OK\r\nA: b\r\n\n", HeadError::BareLineFeed),
            ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", HeadError::Malformed),
            ("HTTP/1.1 200 OK\r\nA : b\r\n\r\n", HeadError::Malformed),
            ("HTTP/1.1 200 OK\r\n: b\r\n\r\n", HeadError::Malformed),
            ("HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", HeadError::Malformed),
            ("\r\nHTTP/1.1 200 OK\r\n\r\n", HeadError::Malformed),
            ("HTTP/1.1 099 Low\r\n\r\n", HeadError::Malformed),
            ("HTTP/1.1 20 OK\r\n\r\n", HeadError::Malformed),
            ("HTTP/2.0 200 OK\r\n\r\n", HeadError::Version),
            ("<html>", HeadError::Malformed),
        ] {
            assert_eq!(parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn a_head_without_end_is_refused() {
        let long = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(HEAD_LIMIT));
        assert_eq!(parse(&long), Err(HeadError::TooLarge));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_LIMIT + 1));
        assert_eq!(parse(&many), Err(HeadError::TooLarge));
        let enough = format!("HTTP/1.1 200 OK\r\n{}\r\n", "A: b\r\n".repeat(HEADERS_LIMIT));
        assert!(parse(&enough).unwrap().is_some());
    }

    #[test]
    fn connections_are_kept_by_the_rules_of_the_http_version() {
        let keeps = |text: &str| head(text).keeps_connection();
        assert!(keeps("HTTP/1.1 200 OK\r\n\r\n"));
        assert!(!keeps("HTTP/1.1 200 OK\r\nConnection: Foo, CLOSE\r\n\r\n"));
        assert!(!keeps("HTTP/1.0 200 OK\r\n\r\n"));
        assert!(keeps("HTTP/1.0 200 OK\r\nconnection: Keep-Alive\r\n\r\n"));
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(mut bytes: Vec<u8>, named: bool) {
            if named {
                bytes.splice(..0, *b"HTTP/1.1 200 OK\r\n");
            }
            if let Ok(Some((_, length))) = parse_response(&bytes) {
                prop_assert!(bytes[..length].ends_with(b"\r\n\r\n"));
            }
        }
    }
}
