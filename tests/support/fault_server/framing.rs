//! Answers as bytes, rightly framed or not.
//!
//! Source: RFC 9112 §6 and §7.

use std::sync::Arc;
use std::time::Duration;

use super::alter;
use super::plan::Plan;
use super::reply::Reply;
use super::rule::Framing;

/// Bytes, and the time to wait before they are sent.
type Piece = (Duration, Arc<Vec<u8>>);

/// The bytes to send.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) pieces: Vec<Piece>,
    /// The connection ends with it.
    pub(super) closes: bool,
}

/// Frames an answer. `closes` is whether the connection is to be closed and the client told so.
pub(super) fn frame(plan: &Plan, method: &str, mut reply: Reply, closes: bool) -> Outgoing {
    let framing = plan.framing();
    let bodiless = matches!(reply.status, 100..=199 | 204 | 304);
    let chunked = reply.lead.is_some()
        || matches!(
            framing,
            Some(Framing::Chunked | Framing::ChunkedWithTrailers | Framing::BothLengthAndChunked)
        );
    let length = reply.body.len();
    let mut headers = std::mem::take(&mut reply.headers);
    let mut add = |name: &str, value: &str| headers.push((name.to_owned(), value.to_owned()));
    if closes {
        add("Connection", "close");
    }
    if !bodiless {
        if chunked {
            add("Transfer-Encoding", "chunked");
        }
        if framing == Some(Framing::BothLengthAndChunked)
            || !chunked && framing != Some(Framing::CloseDelimited)
        {
            add("Content-Length", &length.to_string());
        }
        if framing == Some(Framing::TwoContentLengths) {
            add("Content-Length", &(length + 7).to_string());
        }
        if framing == Some(Framing::ChunkedWithTrailers) {
            add("Trailer", "x-trailer");
        }
    }
    alter::headers(plan, &mut headers);
    let names = |name: &str| headers.iter().any(|(found, _)| found.eq_ignore_ascii_case(name));
    let endless = !bodiless && method != "HEAD" && !names("content-length") && !names("transfer-encoding");
    let mut pieces = vec![(Duration::ZERO, Arc::new(head(reply.status, &headers, framing)))];
    if !bodiless && (method != "HEAD" || framing == Some(Framing::HeadWithBody)) {
        pieces.extend(body(&reply, chunked, framing));
    }
    if framing == Some(Framing::ExtraBytesAfterBody) {
        let extra = b"HTTP/1.1 200 OK\r\nETag: \"smuggled\"\r\nContent-Length: 8\r\n\r\nsmuggled";
        pieces.push((Duration::ZERO, Arc::new(extra.to_vec())));
    }
    let pieces = join(pieces, framing == Some(Framing::ExtraBytesAfterBody));
    Outgoing { pieces, closes: closes || endless || plan.closes_after_response() }
}

/// Makes one of pieces that are small, or of all, so that they arrive together.
fn join(pieces: Vec<Piece>, all: bool) -> Vec<Piece> {
    let mut joined: Vec<Piece> = Vec::new();
    for (pause, bytes) in pieces {
        match joined.last_mut() {
            Some((_, last)) if pause.is_zero() && (all || last.len() + bytes.len() < 64 << 10) => {
                Arc::make_mut(last).extend_from_slice(&bytes);
            }
            _ => joined.push((pause, bytes)),
        }
    }
    joined
}

/// An interim answer.
pub(super) fn interim(status: u16) -> Vec<u8> {
    let headers: &[(String, String)] = &[];
    head(status, headers, None)
}

fn head(status: u16, headers: &[(String, String)], framing: Option<Framing>) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {status} {}\r\n", reason(status));
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    if framing == Some(Framing::ObsFold) {
        head.push_str("X-Folded: one\r\n two\r\n");
    }
    if framing == Some(Framing::OversizedHead) {
        for line in 0..1024 {
            head.extend([&format!("X-Filler-{line}: "), "f".repeat(1024).as_str(), "\r\n"]);
        }
    }
    head.push_str("\r\n");
    if framing == Some(Framing::BareLf) {
        head = head.replace("\r\n", "\n");
    }
    head.into_bytes()
}

fn body(reply: &Reply, chunked: bool, framing: Option<Framing>) -> Vec<Piece> {
    if !chunked {
        return vec![(Duration::ZERO, Arc::clone(&reply.body))];
    }
    let mut pieces = Vec::new();
    let mut pause = Duration::ZERO;
    if let Some((blanks, time)) = reply.lead {
        pieces.push((Duration::ZERO, Arc::new(chunk(&vec![b' '; blanks], ""))));
        pause = time;
    }
    let (first, second) = reply.body.split_at(reply.body.len() / 2);
    let trailers = framing == Some(Framing::ChunkedWithTrailers);
    let mut rest = chunk(first, if trailers { ";name=value" } else { "" });
    rest.extend(chunk(second, ""));
    rest.extend_from_slice(if trailers { b"0\r\nX-Trailer: value\r\n\r\n" } else { b"0\r\n\r\n" });
    pieces.push((pause, Arc::new(rest)));
    pieces
}

fn chunk(bytes: &[u8], extension: &str) -> Vec<u8> {
    // An empty chunk would be the end.
    if bytes.is_empty() {
        return Vec::new();
    }
    let mut chunk = format!("{:x}{extension}\r\n", bytes.len()).into_bytes();
    chunk.extend_from_slice(bytes);
    chunk.extend_from_slice(b"\r\n");
    chunk
}

fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        102 => "Processing",
        103 => "Early Hints",
        200 => "OK",
        204 => "No Content",
        206 => "Partial Content",
        301 => "Moved Permanently",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        400 => "Bad Request",
        403 => "Forbidden",
        404 => "Not Found",
        409 => "Conflict",
        411 => "Length Required",
        412 => "Precondition Failed",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        503 => "Service Unavailable",
        // The phrase may be empty, and some servers' is.
        _ => "",
    }
}
