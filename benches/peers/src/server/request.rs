//! Heads of requests, and bodies in chunks.

use std::io::{self, BufRead};

/// The largest head and the longest line.
const MOST_HEAD: usize = 64 << 10;

/// What is to be done, and how the body comes.
#[derive(Debug, Default)]
pub(super) struct Request {
    agent: String,
    pub(super) aws_chunked: bool,
    checksums: Vec<String>,
    pub(super) expects_continue: bool,
    /// Of the body; without it the body comes in chunks, or there is none.
    pub(super) length: Option<usize>,
    pub(super) method: String,
    pub(super) path: String,
    payload: String,
    pub(super) query: String,
    /// The first and the last byte.
    pub(super) range: Option<(usize, usize)>,
    in_chunks: bool,
}

impl Request {
    pub(super) fn has_body(&self) -> bool {
        self.in_chunks || self.length.is_some_and(|length| length > 0)
    }

    /// Who sent the body, and with what.
    pub(super) fn kind(&self) -> String {
        let agent = if self.agent.is_empty() { "no agent" } else { &self.agent };
        let payload = match self.payload.as_str() {
            hash if hash.len() == 64 => "hash",
            "" => "none",
            other => other,
        };
        let framing = if self.in_chunks { "chunks" } else { "length" };
        let expects = if self.expects_continue { ", expects 100" } else { "" };
        let encoded = if self.aws_chunked { ", aws-chunked" } else { "" };
        let checksums = self.checksums.join(" ");
        let checksums = if checksums.is_empty() { "no" } else { &checksums };
        format!(
            "{agent}: signed payload {payload}, {checksums} checksum, framed by {framing}{encoded}{expects}"
        )
    }
}

/// The next request, or nothing if the connection ended.
pub(super) fn read_request(stream: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut head = Vec::with_capacity(2 << 10);
    while !head.ends_with(b"\r\n\r\n") {
        let line = stream.read_until(b'\n', &mut head)?;
        if line == 0 && head.is_empty() {
            return Ok(None);
        }
        if line == 0 || head.len() > MOST_HEAD {
            return Err(invalid("a head"));
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut parsed = httparse::Request::new(&mut headers);
    parsed.parse(&head).map_err(io::Error::other)?;
    let target = parsed.path.unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut request = Request {
        method: parsed.method.unwrap_or_default().to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
        ..Request::default()
    };
    for header in &*parsed.headers {
        let value = str::from_utf8(header.value).map_err(io::Error::other)?;
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            request.length = Some(value.parse().map_err(io::Error::other)?);
        } else if is("transfer-encoding") {
            request.in_chunks = true;
        } else if is("content-encoding") {
            request.aws_chunked = value.contains("aws-chunked");
        } else if is("expect") {
            request.expects_continue = true;
        } else if is("range") {
            request.range = Some(parse_range(value).ok_or_else(|| invalid("a range"))?);
        } else if is("user-agent") {
            value.split(' ').next().unwrap_or_default().clone_into(&mut request.agent);
        } else if is("x-amz-content-sha256") {
            value.clone_into(&mut request.payload);
        } else if is("content-md5") || header.name.to_ascii_lowercase().starts_with("x-amz-checksum-") {
            request.checksums.push(header.name.to_ascii_lowercase());
        } else if is("x-amz-trailer") {
            request.checksums.push(value.to_owned());
        }
    }
    Ok(Some(request))
}

/// Appends what comes in chunks, of either kind, up to the end of the trailers.
pub(super) fn read_chunks(stream: &mut impl BufRead, into: &mut Vec<u8>) -> io::Result<()> {
    let mut line = Vec::new();
    let mut next_line = |stream: &mut dyn BufRead| {
        line.clear();
        stream.read_until(b'\n', &mut line)?;
        let text = str::from_utf8(&line).ok().and_then(|line| line.strip_suffix("\r\n"));
        text.map(str::to_owned).ok_or_else(|| invalid("a line"))
    };
    into.clear();
    loop {
        let size = next_line(stream)?;
        let size = size.split(';').next().unwrap_or_default();
        let size = usize::from_str_radix(size, 16).map_err(io::Error::other)?;
        if size == 0 {
            break;
        }
        let start = into.len();
        into.resize(start + size, 0);
        stream.read_exact(&mut into[start..])?;
        if !next_line(stream)?.is_empty() {
            return Err(invalid("a chunk"));
        }
    }
    while !next_line(stream)?.is_empty() {}
    Ok(())
}

fn parse_range(value: &str) -> Option<(usize, usize)> {
    let (first, last) = value.strip_prefix("bytes=")?.split_once('-')?;
    let last = if last.is_empty() { usize::MAX } else { last.parse().ok()? };
    Some((first.parse().ok()?, last)).filter(|(first, last)| first <= last)
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{what} is malformed"))
}
