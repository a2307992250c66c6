//! Requests, read strictly.
//!
//! Source: RFC 9112 §2 to §6, RFC 9110 §5.6.2, RFC 3986 §3.3 and §3.4. A deviation that these let a server tolerate is refused.

use std::sync::Arc;

use super::socket::Broken;
use super::uri;

/// A request's head.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) method: String,
    /// As sent.
    pub(super) path: String,
    /// As sent, without the question mark.
    pub(super) query: String,
    pub(super) headers: Vec<(String, String)>,
    /// Bytes of the head.
    pub(super) size: u64,
    /// `Content-Length`, if there is one.
    pub(super) length: Option<u64>,
}

impl Head {
    /// Reads a head that ends with its empty line.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Broken> {
        let violation = |what: &str| Broken::Violation(what.to_owned());
        if !bytes.iter().all(|byte| matches!(byte, b' '..=b'~' | b'\t' | b'\r' | b'\n')) {
            return Err(violation("the head has a byte that is no ASCII text"));
        }
        let text = String::from_utf8_lossy(bytes);
        let mut lines = text.strip_suffix("\r\n\r\n").unwrap_or_default().split("\r\n");
        let first = lines.next().unwrap_or_default();
        let [method, target, version] = first.split(' ').collect::<Vec<_>>()[..] else {
            return Err(violation("the request line has not three parts"));
        };
        if version != "HTTP/1.1" {
            return Err(violation("the version is not HTTP/1.1"));
        }
        if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase()) {
            return Err(violation("the method is no word in capitals"));
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if !path.starts_with('/') || !uri::is_proper(target) {
            return Err(violation("the target is no path and query in proper encoding"));
        }
        let headers = lines.map(header).collect::<Result<Vec<_>, _>>()?;
        let mut head = Self {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            headers,
            size: bytes.len() as u64,
            length: None,
        };
        head.length = head.framing()?;
        Ok(head)
    }

    /// The first header of that name, whatever its case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The client closes after this request.
    pub(super) fn closes(&self) -> bool {
        self.all("connection").any(|value| value.eq_ignore_ascii_case("close"))
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        let found = self.headers.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    fn framing(&self) -> Result<Option<u64>, Broken> {
        if self.all("host").count() != 1 {
            return Err(Broken::Violation("there is not one Host".to_owned()));
        }
        let lengths: Vec<_> = self.all("content-length").collect();
        let chunked = self.all("transfer-encoding").next().is_some();
        match lengths[..] {
            [] => Ok(None),
            [_] if chunked => Err(Broken::Violation("the body has a length and an encoding".to_owned())),
            [length] if length.bytes().all(|byte| byte.is_ascii_digit()) => {
                length.parse().map(Some).map_err(|_| Broken::Violation(format!("Content-Length {length:?}")))
            }
            _ => Err(Broken::Violation(format!("Content-Length {lengths:?}"))),
        }
    }
}

/// A whole request with its parts decoded.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) head: Head,
    /// Empty for the server itself.
    pub(super) bucket: String,
    pub(super) key: Option<String>,
    query: Vec<(String, String)>,
    pub(super) body: Arc<Vec<u8>>,
}

impl Request {
    /// Decodes path and query, or says what cannot be decoded.
    pub(super) fn new(head: Head, body: Vec<u8>) -> Result<Self, String> {
        let (bucket, key) = match head.path[1..].split_once('/') {
            None | Some((_, "")) => (head.path[1..].trim_end_matches('/'), None),
            Some((bucket, key)) => (bucket, Some(key)),
        };
        let decode = |text: &str| uri::decode(text).ok_or_else(|| format!("{text:?} is not UTF-8"));
        let bucket = decode(bucket)?;
        let key = key.map(decode).transpose()?;
        let mut query = Vec::new();
        for pair in head.query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            // A plus is a blank, as in forms: a client that means a plus must encode it.
            query.push((decode(&name.replace('+', "%20"))?, decode(&value.replace('+', "%20"))?));
        }
        Ok(Self { head, bucket, key, query, body: Arc::new(body) })
    }

    /// The first parameter of that name. Without a value it is empty.
    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn query_names(&self) -> impl Iterator<Item = &str> {
        self.query.iter().map(|(name, _)| name.as_str())
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head.header(name)
    }

    /// The text of the body, if it is one.
    pub(super) fn text(&self) -> Option<&str> {
        std::str::from_utf8(&self.body).ok()
    }
}

fn header(line: &str) -> Result<(String, String), Broken> {
    let violation = || Broken::Violation(format!("the header line {line:?}"));
    let (name, value) = line.split_once(':').ok_or_else(violation)?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(is_token) || value.contains(['\r', '\n']) {
        return Err(violation());
    }
    Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}
