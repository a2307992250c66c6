//! Rules: which request, how often, and what goes wrong with it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::request::Head;

type Predicate = Arc<dyn Fn(&str) -> bool + Send + Sync>;
/// Of method, path and query.
type RequestPredicate = Arc<dyn Fn(&str, &str, &str) -> bool + Send + Sync>;

/// Actions for some requests. Matches all requests unless restricted.
#[derive(Clone)]
pub struct Rule {
    method: Option<String>,
    path: Option<Predicate>,
    query: Option<Predicate>,
    request: Option<RequestPredicate>,
    times: Times,
    seen: u64,
    actions: Vec<Action>,
}

impl Rule {
    /// For every request.
    pub fn any() -> Self {
        Self {
            method: None,
            path: None,
            query: None,
            request: None,
            times: Times::Always,
            seen: 0,
            actions: Vec::new(),
        }
    }

    /// For requests with this method.
    pub fn on(method: &str) -> Self {
        Self { method: Some(method.to_owned()), ..Self::any() }
    }

    /// For listings.
    pub fn list() -> Self {
        Self::on("GET").query(|query| query.contains("list-type=2"))
    }

    /// Only if the path, as sent, is like this.
    pub fn path(mut self, is: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.path = Some(Arc::new(is));
        self
    }

    /// Only if the query, as sent and without the question mark, is like this.
    pub fn query(mut self, is: impl Fn(&str) -> bool + Send + Sync + 'static) -> Self {
        self.query = Some(Arc::new(is));
        self
    }

    /// Only if method, path and query, as sent, are like this together.
    pub fn request(mut self, is: impl Fn(&str, &str, &str) -> bool + Send + Sync + 'static) -> Self {
        self.request = Some(Arc::new(is));
        self
    }

    /// Only the first `n` matches.
    pub fn first(mut self, n: u64) -> Self {
        self.times = Times::First(n);
        self
    }

    /// Only the match with this number, from 1.
    pub fn nth(mut self, n: u64) -> Self {
        self.times = Times::Nth(n);
        self
    }

    /// An action. Several actions can be combined.
    pub fn then(mut self, action: Action) -> Self {
        self.actions.push(action);
        self
    }

    /// The actions, if the rule is for this request. Counts it.
    pub(super) fn applies(&mut self, head: &Head) -> Vec<Action> {
        let is = |wanted: &Option<Predicate>, text: &str| wanted.as_ref().is_none_or(|wanted| wanted(text));
        let method = self.method.as_ref().is_none_or(|method| *method == head.method);
        let request = self.request.as_ref().is_none_or(|is| is(&head.method, &head.path, &head.query));
        if !(method && request && is(&self.path, &head.path) && is(&self.query, &head.query)) {
            return Vec::new();
        }
        self.seen += 1;
        let due = match self.times {
            Times::Always => true,
            Times::First(n) => self.seen <= n,
            Times::Nth(n) => self.seen == n,
        };
        if due { self.actions.clone() } else { Vec::new() }
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Rule({:?}, {:?}, seen {}: {:?})", self.method, self.times, self.seen, self.actions)
    }
}

#[derive(Clone, Copy, Debug)]
enum Times {
    Always,
    First(u64),
    Nth(u64),
}

/// A fault. Bytes of a response count from the start of its head.
#[derive(Clone, Debug)]
pub enum Action {
    /// One header more in the answer.
    AddHeader(&'static str, String),
    /// Closes after the answer without having said so.
    CloseAfterResponse,
    /// The body is encoded and says so. It is a gzip file that stores, whatever the name.
    ContentEncoding(&'static str),
    /// Closes after this number of bytes of the request, at least its head. Nothing is executed.
    CutRequestAt(u64),
    /// Closes after this number of bytes of the response.
    CutResponseAt(usize),
    /// Executes, and answers after this time.
    Delay(Duration),
    /// Executes, and answers after [`FaultServer::release`](super::FaultServer::release).
    DelayUntilReleased,
    /// Sends `bytes` at a time, and waits after each.
    Drip { bytes: usize, every: Duration },
    /// The answer lacks this header. Without its length an answer ends with the connection.
    DropHeader(&'static str),
    /// The answer's body lacks all elements of this name.
    DropXmlElement(&'static str),
    /// Closes at once, and executes after this time.
    ExecuteLate(Duration),
    /// Closes at once, and executes after [`FaultServer::release`](super::FaultServer::release).
    ExecuteWhenReleased,
    /// Executes, and closes without an answer.
    ExecuteThenDrop,
    /// One bit is wrong.
    FlipBit(Flip),
    /// The answer is framed like this.
    Framing(Framing),
    /// Sends this number of interim answers with this status before the answer.
    Informational(usize, u16),
    /// New keys are missing from listings.
    ListingLag(Lag),
    /// 200, then `whitespace` blanks, then after `delay` an error document: that of a [`Action::Status`] beside it, or
    /// `InternalError`. Nothing is executed.
    OkWithErrorBody { whitespace: usize, delay: Duration },
    /// Redirects the client with 301 or 307, or names the region with 400. Nothing is executed.
    Redirect { status: u16, location: String, region: Option<String> },
    /// Multi-delete does not delete these keys and answers this code for each.
    RefuseKeys(fn(&str) -> bool, &'static str),
    /// Every page of a listing is the first, and says that there is more.
    RepeatPage,
    /// The answer has this header once, with this value.
    ReplaceHeader(&'static str, String),
    /// Answers without reading the body, 503 or what [`Action::Status`] says, and closes. Nothing is executed.
    RespondEarly,
    /// A `Retry-After` with this text.
    RetryAfter(&'static str),
    /// The server's clock has this offset in seconds, and requests more than 15 minutes off its time are refused.
    SkewClock(i64),
    /// Sends this number of bytes of the response, then nothing until the client closes.
    StallResponseAt(usize),
    /// Answers this. Without a body an error document with the code is sent. Nothing is executed.
    Status { status: u16, code: &'static str, headers: Vec<(&'static str, String)>, body: Option<Vec<u8>> },
    /// Never reads the body and never answers. Bytes in buffers of the kernel are lost.
    StopReading,
    /// Closes after this number of bytes of the body, and keeps those as the object, whatever the conditions.
    StoreCutAt(u64),
}

impl Action {
    /// An answer with this status and an error document with this code.
    pub fn status(status: u16, code: &'static str) -> Self {
        Self::Status { status, code, headers: Vec::new(), body: None }
    }
}

/// Where a bit is flipped: the lowest of the byte in the middle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flip {
    /// In the request's body, before anything is checked.
    Received,
    /// In the body of the answer.
    Sent,
    /// In what is stored, after everything was checked.
    Stored,
}

/// How an answer is framed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Header lines end with LF only.
    BareLf,
    /// `Content-Length` and `Transfer-Encoding: chunked`.
    BothLengthAndChunked,
    /// In two chunks.
    Chunked,
    /// In two chunks, the first with an extension, and with a trailer.
    ChunkedWithTrailers,
    /// No length: the body ends with the connection.
    CloseDelimited,
    /// A whole further answer comes right after the body.
    ExtraBytesAfterBody,
    /// The answer to a `HEAD` has a body.
    HeadWithBody,
    /// A header continues in the next line.
    ObsFold,
    /// 1 MiB of headers.
    OversizedHead,
    /// Two lengths that differ; the first is right.
    TwoContentLengths,
}

/// The time for which a new key is missing from listings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lag {
    /// For this time.
    For(Duration),
    /// From this number of listings.
    Listings(u64),
}
