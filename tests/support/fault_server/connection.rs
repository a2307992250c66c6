//! One connection: requests in order, each with what the rules do to it.

use std::io;
use std::net::TcpStream;
use std::time::Duration;

use super::alter;
use super::date;
use super::framing::{self, Outgoing};
use super::operations;
use super::options::Quirk;
use super::plan::Plan;
use super::reply::Reply;
use super::request::{Head, Request};
use super::rule::Flip;
use super::shared::{Shared, lock};
use super::socket::{Broken, Socket};

/// Serves a connection until it ends.
pub(super) fn serve(shared: &Shared, stream: TcpStream, connection: u64) {
    let mut exchange = Exchange { shared, connection, socket: Socket::new(stream), number: 0 };
    while let Ok(Next::Request) = exchange.next() {}
}

/// The state of a connection after a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    Close,
    Request,
}

/// A connection and the request that is served on it.
struct Exchange<'a> {
    shared: &'a Shared,
    connection: u64,
    socket: Socket,
    /// Of the request in the log, or 0 as long as there is none.
    number: u64,
}

impl Exchange<'_> {
    fn next(&mut self) -> io::Result<Next> {
        self.number = 0;
        let bytes = match self.socket.read_head() {
            Ok(Some(bytes)) => bytes,
            Ok(None) | Err(Broken::Gone) => return Ok(Next::Close),
            Err(Broken::Violation(what)) => return self.refuse(&what),
        };
        let head = match Head::parse(&bytes) {
            Ok(head) => head,
            Err(Broken::Violation(what)) => return self.refuse(&what),
            Err(Broken::Gone) => return Ok(Next::Close),
        };
        self.number = self.shared.log(self.connection, &head);
        let plan = self.shared.plan(&head);
        if plan.stops_reading() {
            self.shared.hold();
            return Ok(Next::Close);
        }
        if plan.responds_early() {
            let reply = alter::instead(&plan, &head).unwrap_or_default();
            self.shared.wait(plan.delay())?;
            self.send(&plan, &head.method, reply, true)?;
            return Ok(Next::Close);
        }
        self.expected(&head)?;
        if let Some(bytes) = plan.store_cut() {
            self.store_cut(head, bytes);
            return Ok(Next::Close);
        }
        match self.read_body(&plan, &head) {
            Some(body) if self.socket.has_more() => {
                drop(body);
                self.refuse("something was sent before the answer")
            }
            Some(body) => self.carry_out(&plan, head, body),
            None => Ok(Next::Close),
        }
    }

    /// Answers `Expect: 100-continue`.
    fn expected(&mut self, head: &Head) -> io::Result<()> {
        let expects = head.header("expect").is_some_and(|value| value.eq_ignore_ascii_case("100-continue"));
        if expects && !self.shared.options.dialect.has(Quirk::ContinueNever) {
            self.socket.write(&framing::interim(100))?;
        }
        Ok(())
    }

    /// Keeps what came of an object, as servers do that write it under its name as it comes.
    fn store_cut(&mut self, head: Head, bytes: u64) {
        let body = self.socket.read_body(bytes.min(head.length.unwrap_or(0)));
        let mut bucket = lock(&self.shared.bucket);
        if let Ok(Request { key: Some(key), body, .. }) = Request::new(head, body) {
            bucket.put(&self.shared.options, &key, body, Vec::new());
        }
    }

    /// The whole body, unless the client or a rule ends it early.
    fn read_body(&mut self, plan: &Plan, head: &Head) -> Option<Vec<u8>> {
        let length = head.length.unwrap_or(0);
        let cut = plan.cut_request().map(|bytes| bytes.saturating_sub(head.size));
        let body = self.socket.read_body(cut.map_or(length, |cut| cut.min(length)));
        let read = body.len() as u64;
        self.shared.note(self.number, |logged| {
            logged.body_len = read;
            logged.body_complete = read == length;
        });
        (read == length && cut.is_none()).then_some(body)
    }

    /// Executes, as the rules allow, and answers.
    fn carry_out(&mut self, plan: &Plan, head: Head, body: Vec<u8>) -> io::Result<Next> {
        let body = if plan.flips(Flip::Received) { alter::flipped(&body) } else { body };
        let (method, told) = (head.method.clone(), alter::instead(plan, &head));
        let closes = head.closes() || self.shared.options.dialect.has(Quirk::KeepAliveNever);
        let request = match Request::new(head, body) {
            Ok(request) => request,
            Err(what) => return self.refuse(&what),
        };
        if let Some(late) = plan.executes_late() {
            self.socket.close();
            self.shared.forget(self.connection);
            self.shared.wait(Some(late))?;
        }
        let reply = told.unwrap_or_else(|| self.execute(plan, &request));
        if plan.executes_late().is_some() || plan.executes_then_drops() {
            return Ok(Next::Close);
        }
        self.shared.wait(plan.delay())?;
        self.send(plan, &method, reply, closes)
    }

    fn execute(&self, plan: &Plan, request: &Request) -> Reply {
        let reply = operations::execute(self.shared, plan, request);
        if let Some(what) = &reply.violation {
            self.shared.violation(self.connection, what);
        }
        self.shared.note(self.number, |logged| {
            logged.executed = reply.is_success();
            logged.is_over = true;
        });
        reply
    }

    /// Notes that something improper has come, says so and closes.
    fn refuse(&mut self, what: &str) -> io::Result<Next> {
        self.shared.violation(self.connection, what);
        self.send(&Plan::new(Vec::new()), "", Reply::error(400, "BadRequest"), true)?;
        Ok(Next::Close)
    }

    fn send(&mut self, plan: &Plan, method: &str, mut reply: Reply, closes: bool) -> io::Result<Next> {
        let status = reply.status;
        self.shared.note(self.number, |logged| logged.status = Some(status));
        reply.finish(&format!("{:016X}", self.number));
        let now = date::http(date::now(plan.skew().unwrap_or(0)));
        reply.headers.insert(0, ("Date".to_owned(), now));
        alter::body(plan, &mut reply);
        let outgoing = framing::frame(plan, method, reply, closes);
        let (interims, status) = plan.informational().unwrap_or_default();
        for _ in 0..interims {
            self.socket.write(&framing::interim(status))?;
        }
        self.deliver(plan, &outgoing)
    }

    /// Sends as much as the rules let through, as fast as they let it.
    fn deliver(&mut self, plan: &Plan, outgoing: &Outgoing) -> io::Result<Next> {
        let stall = plan.stall_response();
        let end = plan.cut_response().or(stall);
        let mut left = end.unwrap_or(usize::MAX);
        let (step, every) = plan.drip().unwrap_or((usize::MAX, Duration::ZERO));
        for (pause, bytes) in &outgoing.pieces {
            if left == 0 {
                break;
            }
            if !pause.is_zero() {
                self.shared.pause(*pause)?;
            }
            let bytes = &bytes[..bytes.len().min(left)];
            left -= bytes.len();
            for part in bytes.chunks(step.max(1)) {
                self.socket.write(part)?;
                if !every.is_zero() {
                    self.shared.pause(every)?;
                }
            }
        }
        if stall.is_some() {
            self.socket.wait_for_close();
        }
        Ok(if end.is_some() || outgoing.closes { Next::Close } else { Next::Request })
    }
}
