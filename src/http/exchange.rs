//! One request and its answer on a connection. The module docs of `http` have the states.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;

use crate::buffers::{Buffers, lengthen};
use crate::http::watch::Watch;
use crate::http::{
    ERROR_BODY_LIMIT, Header, Progress, Request, Response, Timeouts, TransportError, TransportErrorKind,
};
use crate::rt::Connection;
use crate::wire::http_body::{ChunkedDecoder, Framing, Step};
use crate::wire::http_head::{ResponseHead, parse_response, write_request};

/// Maximum bytes of a body that is written together with its head.
const SMALL_BODY: usize = 16 << 10;
/// Bytes read at once when the length is unknown.
const BLOCK: usize = 16 << 10;
/// Bytes allocated at once for a body of which no more has arrived.
const STEP_BYTES: usize = 64 << 20;

/// `true` if the connection can carry another request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    No,
    Yes,
}

/// Sends the request and reads the response. `old` is `true` if the connection has carried requests before.
pub(super) async fn exchange(
    connection: &mut dyn Connection,
    request: &Request,
    old: bool,
    buffers: &Arc<Buffers>,
    watch: &mut Watch<'_>,
) -> Result<(Response, Reuse), TransportError> {
    let mut exchange = Exchange::new(connection, request, old, buffers, watch)?;
    let head = exchange.head(&request.timeouts).await?;
    exchange.body(request, head).await
}

struct Exchange<'a, 'w> {
    buffers: &'a Arc<Buffers>,
    connection: &'a mut dyn Connection,
    incoming: Vec<u8>,
    not_after: Option<Duration>,
    old: bool,
    /// Bytes still to be written: the head with a small body, then a large body.
    outgoing: [Bytes; 2],
    reuse: Reuse,
    watch: &'a mut Watch<'w>,
    /// Reason why the rest of the request cannot be written.
    write_error: Option<io::Error>,
}

impl<'a, 'w> Exchange<'a, 'w> {
    fn new(
        connection: &'a mut dyn Connection,
        request: &Request,
        old: bool,
        buffers: &'a Arc<Buffers>,
        watch: &'a mut Watch<'w>,
    ) -> Result<Self, TransportError> {
        let mut head = Vec::with_capacity(1 << 10);
        let headers = request.headers.iter().map(|header| (&*header.name, header.value.as_str()));
        write_request(&mut head, request.method, &request.target, headers).map_err(|error| {
            let what = "write the request";
            TransportError::new(TransportErrorKind::Invalid, Progress::NotSent, what).because(error)
        })?;
        let mut body = request.body.clone();
        if body.len() <= SMALL_BODY {
            head.extend_from_slice(&body);
            body.clear();
        }
        watch.enter("send the request", request.timeouts.idle);
        let outgoing = [head.into(), body];
        Ok(Self {
            buffers,
            connection,
            incoming: Vec::new(),
            not_after: request.not_after,
            old,
            outgoing,
            reuse: Reuse::Yes,
            watch,
            write_error: None,
        })
    }

    /// Writes the request and reads the head of the answer concurrently.
    async fn head(&mut self, timeouts: &Timeouts) -> Result<ResponseHead, TransportError> {
        let mut flushed = false;
        loop {
            if let Some((head, length)) =
                parse_response(&self.incoming).map_err(|error| self.protocol(error))?
            {
                self.incoming.drain(..length);
                match head.status {
                    101 => return Err(self.protocol("the server switched protocols")),
                    100..=199 => {
                        self.watch.check(self.progress())?;
                        continue;
                    }
                    _ => {}
                }
                // The answer may arrive before the flush of the last bytes is reported.
                flushed = flushed || self.is_written() && self.flush().await;
                if !flushed {
                    self.reuse = Reuse::No;
                    if head.status < 300 {
                        return Err(self.protocol("the server reported success before the request was sent"));
                    }
                }
                return Ok(head);
            }
            let was_flushed = flushed;
            let read = poll_fn(|cx| {
                if !flushed && self.poll_write(cx).is_ready() {
                    flushed = self.write_error.is_none();
                    let limit = if flushed { timeouts.first_byte } else { timeouts.idle };
                    self.watch.enter("read the response", limit);
                    if flushed && !was_flushed {
                        // The loop then sees the state before the answer.
                        return Poll::Ready(None);
                    }
                }
                self.poll_read(cx, BLOCK / 2).map(Some)
            });
            match read.await {
                None | Some(Ok(1..)) => {}
                Some(Ok(0)) => {
                    let cause = self.write_error.take();
                    let cause = cause.unwrap_or_else(|| io::ErrorKind::UnexpectedEof.into());
                    return Err(self.failed(TransportErrorKind::Closed).because(cause));
                }
                Some(Err(error)) => return Err(error),
            }
        }
    }

    /// Returns `true` if the connection has accepted everything, even if it has not sent it yet.
    fn is_written(&self) -> bool {
        self.write_error.is_none() && self.outgoing.iter().all(Bytes::is_empty)
    }

    /// Flushes the connection; returns `true` on success.
    async fn flush(&mut self) -> bool {
        let progress = self.progress();
        poll_fn(|cx| match Pin::new(&mut *self.connection).poll_flush(cx) {
            Poll::Ready(flushed) => Poll::Ready(flushed.is_ok()),
            Poll::Pending => self.watch.poll(cx, progress).map(|_| false),
        })
        .await
    }

    /// Ready when everything is written, or nothing more can be. After a write error it stays pending, and the answer decides.
    fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.write_error.is_some() {
            return Poll::Pending;
        }
        for part in &mut self.outgoing {
            while !part.is_empty() {
                if self.watch.is_past(self.not_after) {
                    let why = "the request may not be sent any more";
                    self.write_error = Some(io::Error::new(io::ErrorKind::TimedOut, why));
                    return Poll::Ready(());
                }
                let error = match Pin::new(&mut *self.connection).poll_write(cx, part) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(0)) => io::ErrorKind::WriteZero.into(),
                    Poll::Ready(Ok(written)) => {
                        let _ = part.split_to(written.min(part.len()));
                        self.watch.moved();
                        continue;
                    }
                    Poll::Ready(Err(error)) => error,
                };
                self.write_error = Some(error);
                return Poll::Ready(());
            }
        }
        Pin::new(&mut *self.connection).poll_flush(cx).map(|flushed| self.write_error = flushed.err())
    }

    /// Reads at most `limit` bytes and appends them to the input.
    fn poll_read(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<Result<usize, TransportError>> {
        let start = self.incoming.len();
        lengthen(&mut self.incoming, start + limit);
        let read = Pin::new(&mut *self.connection).poll_read(cx, &mut self.incoming[start..]);
        let length = if let Poll::Ready(Ok(length)) = &read { (*length).min(limit) } else { 0 };
        self.incoming.truncate(start + length);
        self.outcome(cx, read)
    }

    /// Result of a poll of the connection, apart from the clock.
    fn outcome(
        &mut self,
        cx: &mut Context<'_>,
        read: Poll<io::Result<usize>>,
    ) -> Poll<Result<usize, TransportError>> {
        match read {
            Poll::Ready(Ok(length)) => {
                self.watch.moved();
                Poll::Ready(Ok(length))
            }
            Poll::Ready(Err(error)) => {
                let cause = self.write_error.take().unwrap_or(error);
                Poll::Ready(Err(self.failed(TransportErrorKind::Closed).because(cause)))
            }
            Poll::Pending => {
                let progress = self.progress();
                self.watch.poll(cx, progress).map(Err)
            }
        }
    }

    async fn body(
        mut self,
        request: &Request,
        head: ResponseHead,
    ) -> Result<(Response, Reuse), TransportError> {
        self.old = false;
        self.watch.enter("read the body of the response", request.timeouts.idle);
        let framing = Framing::of(request.method, &head).map_err(|error| self.protocol(error))?;
        // The body of an error is shown in messages, and a server may make it long. Compressed bodies are refused, so they count as errors.
        let (limit, must_end) = if head.status < 300 && head.compression().is_none() {
            (request.body_limit, true)
        } else {
            (ERROR_BODY_LIMIT, false)
        };
        let body = match framing {
            Framing::Length(length) if length > limit && must_end => {
                return Err(self.failed(TransportErrorKind::TooLarge));
            }
            Framing::Length(length) => {
                if length > limit {
                    self.reuse = Reuse::No;
                }
                self.sized(length.min(limit)).await?
            }
            Framing::Chunked => self.chunked(limit, must_end).await?,
            Framing::Close => self.until_closed(limit, must_end).await?,
        };
        if !self.incoming.is_empty() || !head.keeps_connection() {
            self.reuse = Reuse::No;
        }
        let headers = head.headers.into_iter().map(|(name, value)| Header { name: name.into(), value });
        let mut response = Response::new(head.status, headers.collect(), body);
        response.may_be_truncated = framing == Framing::Close;
        Ok((response, self.reuse))
    }

    /// Reads a body of this length into one buffer. The announced length alone never allocates that much memory (H164).
    async fn sized(&mut self, length: u64) -> Result<Bytes, TransportError> {
        let length = usize::try_from(length).map_err(|_| self.failed(TransportErrorKind::TooLarge))?;
        let mut body = self.buffers.take(length.min(STEP_BYTES));
        let mut filled = self.incoming.len().min(length);
        body.lengthen(filled);
        body[..filled].copy_from_slice(&self.incoming[..filled]);
        self.incoming.drain(..filled);
        while filled < length {
            if filled == body.len() {
                let step = STEP_BYTES.min(length - filled);
                body.try_reserve(step).map_err(|error| {
                    let kind = TransportErrorKind::TooLarge;
                    self.failed(kind).because(error)
                })?;
                body.lengthen(filled + step);
            }
            let end = length.min(body.len());
            let read = poll_fn(|cx| {
                let read = Pin::new(&mut *self.connection).poll_read(cx, &mut body[filled..end]);
                self.outcome(cx, read)
            });
            match read.await? {
                0 => return Err(self.cut()),
                read => filled = end.min(filled + read),
            }
        }
        Ok(body.freeze_to(length))
    }

    async fn chunked(&mut self, limit: u64, must_end: bool) -> Result<Bytes, TransportError> {
        let (mut body, mut decoder, mut taken) = (Vec::new(), ChunkedDecoder::default(), 0);
        loop {
            match decoder.step(&self.incoming[taken..]).map_err(|error| self.protocol(error))? {
                Step::Data(length) => {
                    let room = usize::try_from(limit).unwrap_or(usize::MAX) - body.len();
                    body.extend_from_slice(&self.incoming[taken..][..length.min(room)]);
                    if length > room {
                        if must_end {
                            return Err(self.failed(TransportErrorKind::TooLarge));
                        }
                        self.reuse = Reuse::No;
                        return Ok(body.into());
                    }
                    taken += length;
                }
                Step::Skip(length) => taken += length,
                Step::End => {
                    self.incoming.drain(..taken);
                    return Ok(body.into());
                }
                Step::More => {
                    self.incoming.drain(..taken);
                    taken = 0;
                    if poll_fn(|cx| self.poll_read(cx, BLOCK)).await? == 0 {
                        return Err(self.cut());
                    }
                }
            }
        }
    }

    async fn until_closed(&mut self, limit: u64, must_end: bool) -> Result<Bytes, TransportError> {
        self.reuse = Reuse::No;
        loop {
            if self.incoming.len() as u64 > limit {
                if must_end {
                    return Err(self.failed(TransportErrorKind::TooLarge));
                }
                self.incoming.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
                break;
            }
            if poll_fn(|cx| self.poll_read(cx, BLOCK)).await? == 0 {
                break;
            }
        }
        Ok(std::mem::take(&mut self.incoming).into())
    }

    fn progress(&self) -> Progress {
        if self.old && self.incoming.is_empty() { Progress::SentOnOldConnection } else { Progress::Sent }
    }

    fn failed(&self, kind: TransportErrorKind) -> TransportError {
        TransportError::new(kind, self.progress(), "read the response")
    }

    fn protocol(&self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> TransportError {
        self.failed(TransportErrorKind::Protocol).because(cause)
    }

    fn cut(&self) -> TransportError {
        self.failed(TransportErrorKind::Closed).because(io::Error::from(io::ErrorKind::UnexpectedEof))
    }
}
