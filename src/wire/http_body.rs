//! The end of the body of a response.
//!
//! Exactly one of three things defines it (H140, H141): a length, chunks of which the last is empty, or
//! the end of the connection. The last looks like a broken connection, so the reader of such a body must know its
//! length from elsewhere.
//!
//! Source: RFC 9112 §6 and §7.

use thiserror::Error;

use crate::wire::http_head::ResponseHead;

/// Maximum length of a chunk header line in bytes.
const SIZE_LINE_LIMIT: usize = 256;
/// Maximum total length of the trailers in bytes.
const TRAILERS_LIMIT: usize = 8 << 10;

/// Reason why the end of a body is unknown.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BodyError {
    /// A chunk does not begin with its size in hexadecimal digits, or does not end where that says.
    #[error("a chunk of the body is malformed")]
    Chunk,
    /// The head announces both a length and chunks, several lengths, or an unrequested encoding.
    #[error("the head leaves open where the body ends")]
    Framing,
    /// The line before a chunk or the trailers exceed their limits.
    #[error("a line of the body is too long")]
    TooLong,
}

/// How the end of a body is found.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Chunks, of which the last is empty.
    Chunked,
    /// The end of the connection.
    Close,
    /// This number of bytes; also for responses that have no body by definition.
    Length(u64),
}

impl Framing {
    /// Framing of the answer to a request with this method.
    ///
    /// # Errors
    /// `Framing`.
    pub(crate) fn of(method: &str, head: &ResponseHead) -> Result<Self, BodyError> {
        let mut lengths = head.headers.all("content-length");
        let (length, second) = (lengths.next(), lengths.next());
        let mut encodings = head.headers.all("transfer-encoding");
        let (encoding, other) = (encodings.next(), encodings.next());
        if second.is_some() || other.is_some() || (length.is_some() && encoding.is_some()) {
            return Err(BodyError::Framing);
        }
        let length = length.map(|text| parse_length(text).ok_or(BodyError::Framing)).transpose()?;
        if encoding.is_some_and(|text| head.minor_version == 0 || !text.eq_ignore_ascii_case("chunked")) {
            return Err(BodyError::Framing);
        }
        if method == "HEAD" || matches!(head.status, 100..=199 | 204 | 304) {
            return Ok(Self::Length(0));
        }
        Ok(match (length, encoding) {
            (Some(length), _) => Self::Length(length),
            (None, Some(_)) => Self::Chunked,
            (None, None) => Self::Close,
        })
    }
}

/// Digits only: other parsers read a sign, a list or a blank differently.
fn parse_length(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

/// Next part of a chunked body.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// This many bytes of the input, at least one, belong to the body.
    Data(usize),
    /// The body ended before this input.
    End,
    /// More input is needed.
    More,
    /// This many bytes of the input do not belong to the body and can be discarded.
    Skip(usize),
}

/// Decodes a chunked body without buffering it.
#[derive(Clone, Debug)]
pub struct ChunkedDecoder {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Within a chunk, with this many bytes left.
    Data(u64),
    /// Between the data of a chunk and the end of its line.
    DataEnd,
    Ended,
    /// Before the size of a chunk.
    Size,
    /// After the last chunk, with this many bytes of trailers so far.
    Trailers(usize),
}

impl Default for ChunkedDecoder {
    fn default() -> Self {
        Self { state: State::Size }
    }
}

impl ChunkedDecoder {
    /// Classifies the start of the input that follows the consumed part. Call it again with the
    /// rest.
    ///
    /// # Errors
    /// `Chunk` and `TooLong`; the connection cannot be used again.
    pub fn step(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        match self.state {
            State::Ended => Ok(Step::End),
            State::Data(left) => {
                let length = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                if length == 0 {
                    return Ok(Step::More);
                }
                let left = left - length as u64;
                self.state = if left == 0 { State::DataEnd } else { State::Data(left) };
                Ok(Step::Data(length))
            }
            State::DataEnd => match input {
                [b'\r', b'\n', ..] => {
                    self.state = State::Size;
                    Ok(Step::Skip(2))
                }
                [] | [b'\r'] => Ok(Step::More),
                _ => Err(BodyError::Chunk),
            },
            State::Size => self.size(input),
            State::Trailers(seen) => self.trailer(input, seen),
        }
    }

    fn size(&mut self, input: &[u8]) -> Result<Step, BodyError> {
        let Some(line) = line(input, SIZE_LINE_LIMIT)? else { return Ok(Step::More) };
        let size = line.split(|byte| *byte == b';').next().unwrap_or(line).trim_ascii_end();
        if size.is_empty() || size.len() > 16 || !size.iter().all(u8::is_ascii_hexdigit) {
            return Err(BodyError::Chunk);
        }
        let size = str::from_utf8(size).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        self.state = match size.ok_or(BodyError::Chunk)? {
            0 => State::Trailers(0),
            size => State::Data(size),
        };
        Ok(Step::Skip(line.len() + 2))
    }

    fn trailer(&mut self, input: &[u8], seen: usize) -> Result<Step, BodyError> {
        let Some(line) = line(input, TRAILERS_LIMIT - seen)? else { return Ok(Step::More) };
        self.state = if line.is_empty() { State::Ended } else { State::Trailers(seen + line.len()) };
        Ok(Step::Skip(line.len() + 2))
    }
}

/// The first line of the input, without its end, if it is complete.
fn line(input: &[u8], limit: usize) -> Result<Option<&[u8]>, BodyError> {
    match input.iter().position(|byte| *byte == b'\n') {
        Some(end) if end > limit + 1 => Err(BodyError::TooLong),
        Some(end) => match input[..end].split_last() {
            Some((b'\r', line)) if !line.contains(&b'\r') => Ok(Some(line)),
            _ => Err(BodyError::Chunk),
        },
        None if input.len() > limit + 1 => Err(BodyError::TooLong),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::http_head::parse_response;

    fn framing(method: &str, text: &str) -> Result<Framing, BodyError> {
        let (head, _) = parse_response(format!("{text}\r\n\r\n").as_bytes()).unwrap().unwrap();
        Framing::of(method, &head)
    }

    /// Feeds `input` in the given pieces; returns the body, and the bytes after its end.
    fn decode(input: &[u8], piece: usize) -> Result<(Vec<u8>, Option<Vec<u8>>), BodyError> {
        let (mut decoder, mut body, mut held) = (ChunkedDecoder::default(), Vec::new(), Vec::new());
        let mut pieces = input.chunks(piece.max(1));
        loop {
            let taken = match decoder.step(&held)? {
                Step::Data(length) => {
                    body.extend_from_slice(&held[..length]);
                    length
                }
                Step::Skip(length) => length,
                Step::End => {
                    held.extend(pieces.flatten());
                    return Ok((body, Some(held)));
                }
                Step::More => {
                    let Some(piece) = pieces.next() else { return Ok((body, None)) };
                    held.extend_from_slice(piece);
                    0
                }
            };
            held.drain(..taken);
        }
    }

    /// Proves H140.
    #[test]
    fn the_head_determines_the_framing() {
        for (method, text, want) in [
            ("GET", "HTTP/1.1 200 OK\r\ncontent-length: 5", Framing::Length(5)),
            ("GET", "HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked", Framing::Chunked),
            ("GET", "HTTP/1.1 200 OK", Framing::Close),
            ("HEAD", "HTTP/1.1 200 OK\r\ncontent-length: 5", Framing::Length(0)),
            ("GET", "HTTP/1.1 304 Not Modified\r\ncontent-length: 5", Framing::Length(0)),
            ("DELETE", "HTTP/1.1 204 No Content", Framing::Length(0)),
            ("PUT", "HTTP/1.1 100 Continue", Framing::Length(0)),
        ] {
            assert_eq!(framing(method, text), Ok(want), "{method} {text}");
        }
    }

    /// Proves H141.
    #[test]
    fn a_contradictory_head_is_refused() {
        for text in [
            "content-length: 5\r\ncontent-length: 5",
            "content-length: 5\r\ncontent-length: 6",
            "content-length: 5, 5",
            "content-length: +5",
            "content-length: 0x5",
            "content-length:",
            "content-length: 18446744073709551616",
            "content-length: 5\r\ntransfer-encoding: chunked",
            "transfer-encoding: gzip, chunked",
            "transfer-encoding: identity",
            "transfer-encoding: chunked\r\ntransfer-encoding: chunked",
        ] {
            let head = format!("HTTP/1.1 200 OK\r\n{text}");
            assert_eq!(framing("GET", &head), Err(BodyError::Framing), "{text}");
            assert_eq!(framing("HEAD", &head), Err(BodyError::Framing), "{text}");
        }
        let old = "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked";
        assert_eq!(framing("GET", old), Err(BodyError::Framing));
    }

    #[test]
    fn chunked_bodies_are_decoded_in_any_split() {
        let input = b"4\r\nWiki\r\n6;name=\"x\"\r\npedia \r\nE \r\nin \r\n\r\nchunks.\r\n0\r\nX-Sum: 1\r\nY: 2\r\n\r\nHTTP";
        for piece in 1..input.len() {
            let (body, rest) = decode(input, piece).unwrap();
            assert_eq!(body, b"Wikipedia in \r\n\r\nchunks.");
            assert_eq!(rest.as_deref(), Some(b"HTTP".as_slice()));
        }
        let end = input.len() - 4;
        for cut in 0..end {
            assert!(decode(&input[..cut], 7).unwrap().1.is_none(), "cut at {cut}");
        }
    }

    /// Proves H141.
    #[test]
    fn malformed_chunks_are_refused() {
        for (input, error) in [
            ("x\r\n", BodyError::Chunk),
            ("\r\n", BodyError::Chunk),
            ("-1\r\n", BodyError::Chunk),
            ("0x1\r\na\r\n", BodyError::Chunk),
            (" 1\r\na\r\n", BodyError::Chunk),
            ("1\na\r\n0\r\n\r\n", BodyError::Chunk),
            ("1\r\nab\r\n", BodyError::Chunk),
            ("1\r\na\n", BodyError::Chunk),
            ("0\r\na: b\n\r\n", BodyError::Chunk),
            ("10000000000000000\r\n", BodyError::Chunk),
        ] {
            assert_eq!(decode(input.as_bytes(), 3), Err(error), "{input:?}");
        }
        let long = format!("1;{}\r\n", "x".repeat(SIZE_LINE_LIMIT));
        assert_eq!(decode(long.as_bytes(), 1), Err(BodyError::TooLong));
        let trailers = format!("0\r\n{}\r\n", "a: b\r\n".repeat(TRAILERS_LIMIT));
        assert_eq!(decode(trailers.as_bytes(), 100), Err(BodyError::TooLong));
    }

    proptest! {
        #[test]
        fn chunked_bodies_are_read_back(chunks: Vec<Vec<u8>>, piece in 1_usize..64) {
            let mut input = Vec::new();
            for chunk in chunks.iter().filter(|chunk| !chunk.is_empty()) {
                input.extend(format!("{:x}\r\n", chunk.len()).into_bytes());
                input.extend_from_slice(chunk);
                input.extend(b"\r\n");
            }
            input.extend(b"0\r\n\r\n");
            prop_assert_eq!(decode(&input, piece), Ok((chunks.concat(), Some(Vec::new()))));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes: Vec<u8>, piece in 1_usize..9) {
            let _ = decode(&bytes, piece);
        }
    }
}
