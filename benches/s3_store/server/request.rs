//! Requests as they come in.

use std::collections::HashMap;
use std::io::{self, BufRead};

use larder::internal::wire::uri::decode;

/// The largest head.
const MOST_HEAD: usize = 64 << 10;

#[derive(Debug, Default)]
pub(super) struct Request {
    /// By names in lower case.
    headers: HashMap<String, String>,
    /// Behind the bucket; empty for the bucket itself.
    pub(super) key: String,
    pub(super) method: String,
    query: HashMap<String, String>,
}

impl Request {
    /// The next head, or nothing if the connection ended.
    pub(super) fn read(stream: &mut impl BufRead) -> io::Result<Option<Self>> {
        let mut head = Vec::with_capacity(1 << 10);
        while !head.ends_with(b"\r\n\r\n") {
            let line = stream.read_until(b'\n', &mut head)?;
            if line == 0 && head.is_empty() {
                return Ok(None);
            }
            if line == 0 || head.len() > MOST_HEAD {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        let mut headers = [httparse::EMPTY_HEADER; 64];
        let mut parsed = httparse::Request::new(&mut headers);
        parsed.parse(&head).map_err(io::Error::other)?;
        let target = parsed.path.unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let decoded = |text: &str| decode(text).ok_or(io::ErrorKind::InvalidData);
        let path = decoded(path)?;
        let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key);
        let mut request = Self {
            key: key.to_owned(),
            method: parsed.method.unwrap_or_default().to_owned(),
            ..Self::default()
        };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            request.query.insert(decoded(name)?, decoded(value)?);
        }
        for header in &*parsed.headers {
            let value = String::from_utf8_lossy(header.value).into_owned();
            request.headers.insert(header.name.to_ascii_lowercase(), value);
        }
        Ok(Some(request))
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(super) fn query(&self, name: &str) -> Option<&str> {
        self.query.get(name).map(String::as_str)
    }

    /// The length of the body; none if it comes in a way that is not known here.
    pub(super) fn body_length(&self) -> Option<usize> {
        if self.headers.contains_key("transfer-encoding") {
            return None;
        }
        self.header("content-length").map_or(Some(0), |length| length.parse().ok())
    }

    /// What it is counted as.
    pub(super) fn class(&self) -> String {
        let key = self.key.as_str();
        let what = if key.is_empty() {
            if self.query.contains_key("list-type") {
                let is_of = |part| self.query("prefix").is_some_and(|prefix| prefix.contains(part));
                let what = [(".chunks/", " chunk"), ("/packs/", " pack")];
                let what = what.iter().find(|(part, _)| is_of(part)).map_or("", |(_, what)| what);
                return format!("LIST{what}");
            }
            "bucket"
        } else if key.contains(".chunks/") {
            "chunk"
        } else if key.contains("/packs/") {
            "pack"
        } else if key.contains("/.larder/index/") {
            "segment"
        } else if key.ends_with("/index.json.blob") {
            "manifest"
        } else if key.ends_with(".fidx") || key.ends_with(".didx") {
            "index"
        } else if key.ends_with("/lease") {
            "lease"
        } else {
            "other"
        };
        format!("{} {what}", self.method)
    }
}
