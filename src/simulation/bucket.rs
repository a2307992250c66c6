//! A bucket in virtual time: answers that are lost, requests that arrive late, and listings that lag.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::calendar::{self, DateTime};
use crate::format::Digest;
use crate::http::{Header, HttpTransport, Progress, Request, Response, TransportError, TransportErrorKind};
use crate::rt::{Runtime, SimRuntime};
use crate::wire::uri;

/// Start of virtual time.
const BEGIN: u64 = 1_735_689_600;
/// The most by which the time of a signature may differ from that of the server.
const MAX_SKEW: Duration = Duration::from_mins(15);

/// How badly the bucket behaves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// The number of failing requests of a thousand.
    pub faults: u64,
    /// Longest time for which listings show the state before a change.
    pub lag: Duration,
    /// How late a request arrives that was given up, at most.
    pub late: Duration,
}

#[derive(Clone)]
struct Object {
    body: Bytes,
    modified: SystemTime,
    tag: String,
}

/// The state of a key that listings show instead of the current one.
struct Ghost {
    object: Option<Object>,
    until: Duration,
}

#[derive(Default)]
struct State {
    ghosts: BTreeMap<String, Ghost>,
    objects: BTreeMap<String, Object>,
}

/// A bucket, and the server that has it.
pub struct SimBucket {
    sim: SimRuntime,
    state: Mutex<State>,
    weather: Mutex<Weather>,
}

/// The way of one process to the bucket. Each process sees an identity of the store of its own, so that nothing that the processes
/// have in memory is shared.
pub struct Wire {
    /// The bucket.
    pub bucket: Arc<SimBucket>,
    /// The identity that the process sees.
    pub uuid: String,
}

type Answer = (u16, Vec<(&'static str, String)>, Bytes);

impl SimBucket {
    /// An empty bucket in fine weather.
    pub fn new(sim: &SimRuntime) -> Arc<Self> {
        Arc::new(Self { sim: sim.clone(), state: Mutex::default(), weather: Mutex::default() })
    }

    /// A bucket with the same objects, in another virtual time.
    #[must_use]
    pub fn copy(&self, sim: &SimRuntime) -> Arc<Self> {
        let copy = Self::new(sim);
        copy.state().objects.clone_from(&self.state().objects);
        copy
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        *self.weather() = weather;
        if weather.lag.is_zero() {
            self.state().ghosts.clear();
        }
    }

    /// All objects.
    pub fn contents(&self) -> BTreeMap<String, Bytes> {
        self.state().objects.iter().map(|(key, object)| (key.clone(), object.body.clone())).collect()
    }

    /// Puts an object into the bucket, or removes it.
    pub fn set(&self, key: &str, body: Option<Bytes>) {
        match body {
            Some(body) => _ = self.put(key, body),
            None => self.change(key, None),
        }
    }

    /// A number below `end`.
    pub fn draw(&self, end: u64) -> u64 {
        let mut bytes = [0; 8];
        self.sim.fill_random(&mut bytes);
        u64::from_le_bytes(bytes) % end.max(1)
    }

    fn up_to(&self, most: Duration) -> Duration {
        Duration::from_millis(self.draw(u64::try_from(most.as_millis()).unwrap() + 1))
    }

    fn weather(&self) -> MutexGuard<'_, Weather> {
        self.weather.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The time by the clock of the server, which nobody sets.
    fn now(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(BEGIN) + self.sim.monotonic()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, key: &str, object: Option<Object>) {
        let lag = self.weather().lag;
        let until = self.sim.monotonic() + self.up_to(lag);
        let mut state = self.state();
        let before = match object {
            Some(object) => state.objects.insert(key.to_owned(), object),
            None => state.objects.remove(key),
        };
        let now = self.sim.monotonic();
        if !lag.is_zero() && state.ghosts.get(key).is_none_or(|ghost| ghost.until < now) {
            state.ghosts.insert(key.to_owned(), Ghost { object: before, until });
        }
    }

    fn put(&self, key: &str, body: Bytes) -> String {
        let tag = format!("\"{}\"", &Digest::of(&body).to_string()[..32]);
        self.change(key, Some(Object { body, modified: self.now(), tag: tag.clone() }));
        tag
    }

    #[expect(clippy::too_many_lines, reason = "an arm for each request")]
    fn execute(&self, request: &Request) -> Answer {
        let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
        let path = uri::decode(path).unwrap();
        let key = path.trim_start_matches('/').split_once('/').map_or("", |(_, key)| key).to_owned();
        let header = |name: &str| {
            let found = request.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name));
            found.map(|header| header.value.as_str())
        };
        let found = self.state().objects.get(&key).cloned();
        let refused = |status, code: &str| (status, Vec::new(), error(code));
        if header("x-amz-date").and_then(signed_at).is_some_and(|signed| self.is_skewed(signed)) {
            return refused(403, "RequestTimeTooSkewed");
        }
        if key.is_empty() {
            return match request.method {
                "POST" => self.delete_many(&request.body),
                _ => self.list(query),
            };
        }
        if let Some(wanted) = header("if-match") {
            match &found {
                None => return refused(404, "NoSuchKey"),
                Some(object) if object.tag != wanted => return refused(412, "PreconditionFailed"),
                Some(_) => {}
            }
        }
        if header("if-none-match") == Some("*") && found.is_some() {
            return refused(412, "PreconditionFailed");
        }
        match (request.method, found) {
            ("PUT", _) => match header("x-amz-copy-source") {
                None => (200, vec![("etag", self.put(&key, request.body.clone()))], Bytes::new()),
                Some(from) => {
                    let from = uri::decode(from).unwrap();
                    let from = from.trim_start_matches('/').split_once('/').unwrap().1.to_owned();
                    let Some(source) = self.state().objects.get(&from).cloned() else {
                        return refused(404, "NoSuchKey");
                    };
                    let tag = self.put(&key, source.body);
                    let done = format!(
                        "<CopyObjectResult><ETag>{tag}</ETag><LastModified>{}</LastModified></CopyObjectResult>",
                        iso(self.now())
                    );
                    (200, Vec::new(), done.into())
                }
            },
            ("DELETE", _) => {
                self.change(&key, None);
                (204, Vec::new(), Bytes::new())
            }
            ("GET" | "HEAD", None) => refused(404, "NoSuchKey"),
            (method, Some(object)) => {
                let mut headers = vec![("etag", object.tag), ("last-modified", http(object.modified))];
                if method == "HEAD" {
                    headers.push(("content-length", object.body.len().to_string()));
                    return (200, headers, Bytes::new());
                }
                let Some(range) = header("range") else { return (200, headers, object.body) };
                let (first, last) = range.trim_start_matches("bytes=").split_once('-').unwrap();
                let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
                if first >= object.body.len() {
                    return refused(416, "InvalidRange");
                }
                let last = last.min(object.body.len() - 1);
                headers.push(("content-range", format!("bytes {first}-{last}/{}", object.body.len())));
                (206, headers, object.body.slice(first..=last))
            }
            _ => refused(405, "MethodNotAllowed"),
        }
    }

    fn is_skewed(&self, signed: SystemTime) -> bool {
        let now = self.now();
        now.duration_since(signed).or_else(|_| signed.duration_since(now)).is_ok_and(|skew| skew > MAX_SKEW)
    }

    /// Removes a group, and unreferenced chunks of this age, as a program without a lease does. Returns the number of removed chunks.
    pub fn forget_and_collect(&self, group: &str, age: Duration) -> usize {
        let keys: Vec<_> = self.state().objects.keys().cloned().collect();
        for key in keys.iter().filter(|key| key.starts_with(group)) {
            self.change(key, None);
        }
        let objects = self.state().objects.clone();
        let mut named = BTreeSet::new();
        for (_, index) in objects.iter().filter(|(key, _)| key.ends_with(".fidx")) {
            let digests = index.body[4096..].as_chunks::<32>().0.iter();
            named.extend(digests.map(|digest| Digest::from(*digest).to_string()));
        }
        let before = self.now() - age;
        let is_garbage = |key: &str, object: &Object| {
            let name = key.strip_prefix("store/.chunks/").and_then(|chunk| chunk.split_once('/'));
            name.is_some_and(|(_, name)| !named.contains(name) && object.modified < before)
        };
        let garbage: Vec<_> = objects.iter().filter(|(key, object)| is_garbage(key, object)).collect();
        for (key, _) in &garbage {
            self.change(key, None);
        }
        garbage.len()
    }

    fn delete_many(&self, body: &[u8]) -> Answer {
        let text = String::from_utf8(body.to_vec()).unwrap();
        let (mut failed, faults) = (String::new(), self.weather().faults);
        for part in text.split("<Key>").skip(1) {
            let key = part.split("</Key>").next().unwrap();
            if self.draw(1000) < faults {
                let _ = write!(failed, "<Error><Key>{key}</Key><Code>InternalError</Code></Error>");
            } else {
                self.change(key, None);
            }
        }
        (200, Vec::new(), format!("<DeleteResult>{failed}</DeleteResult>").into())
    }

    fn list(&self, query: &str) -> Answer {
        let pairs: BTreeMap<String, String> = query
            .split('&')
            .filter_map(|pair| pair.split_once('='))
            .map(|(name, value)| (name.to_owned(), uri::decode(value).unwrap()))
            .collect();
        let text = |name: &str| pairs.get(name).cloned().unwrap_or_default();
        let (prefix, delimiter) = (text("prefix"), text("delimiter"));
        let after = text("start-after").max(text("continuation-token"));
        let now = self.sim.monotonic();
        let mut state = self.state();
        state.ghosts.retain(|_, ghost| ghost.until > now);
        let mut outdated = None;
        if !state.ghosts.is_empty() {
            let mut shown = state.objects.clone();
            for (key, ghost) in &state.ghosts {
                match &ghost.object {
                    Some(object) => _ = shown.insert(key.clone(), object.clone()),
                    None => _ = shown.remove(key),
                }
            }
            outdated = Some(shown);
        }
        let shown = outdated.as_ref().unwrap_or(&state.objects);
        let (mut lines, mut last, mut more, mut count) = (String::new(), String::new(), false, 0);
        for (key, object) in shown.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix)) {
            let folded = key[prefix.len()..].split_once('/').filter(|_| !delimiter.is_empty());
            let name = folded.map_or_else(|| key.clone(), |(child, _)| format!("{prefix}{child}/"));
            if name <= after || name == last || (after.ends_with('/') && key.starts_with(&after)) {
                continue;
            }
            if count == 50 {
                more = true;
                break;
            }
            count += 1;
            last.clone_from(&name);
            let name = uri::encode(&name);
            let line = match folded {
                Some(_) => format!("<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>"),
                None => format!(
                    "<Contents><Key>{name}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size></Contents>",
                    iso(object.modified),
                    object.tag.replace('"', "&quot;"),
                    object.body.len()
                ),
            };
            lines.push_str(&line);
        }
        let token = if more {
            format!("<NextContinuationToken>{last}</NextContinuationToken>")
        } else {
            String::new()
        };
        let page = format!(
            "<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>{more}</IsTruncated>{token}{lines}</ListBucketResult>"
        );
        (200, Vec::new(), page.into())
    }
}

/// Without the contents, which are long.
impl fmt::Debug for SimBucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weather = *self.weather();
        f.debug_struct("SimBucket").field("weather", &weather).finish_non_exhaustive()
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wire({})", self.uuid)
    }
}

#[async_trait]
impl HttpTransport for Wire {
    async fn exchange(&self, request: &Request) -> Result<Response, TransportError> {
        let (bucket, sim) = (&self.bucket, &self.bucket.sim);
        let weather = *bucket.weather();
        sim.sleep(bucket.up_to(Duration::from_millis(40))).await;
        if request.not_after.is_some_and(|end| sim.monotonic() >= end) {
            return Err(TransportError::new(
                TransportErrorKind::Timeout,
                Progress::NotSent,
                "send the request",
            ));
        }
        let lost = || TransportError::new(TransportErrorKind::Closed, Progress::Sent, "read the response");
        let changes = matches!(request.method, "PUT" | "POST" | "DELETE");
        let answer = match bucket.draw(1000) {
            fate if fate >= weather.faults => bucket.execute(request),
            fate => match fate % 5 {
                0 => return Err(lost()),
                1 => {
                    bucket.execute(request);
                    return Err(lost());
                }
                2 if changes => {
                    let (late, after) = (request.clone(), bucket.up_to(weather.late));
                    let (bucket, sim) = (Arc::clone(bucket), sim.clone());
                    self.bucket.sim.spawn(Box::pin(async move {
                        sim.sleep(after).await;
                        bucket.execute(&late);
                    }));
                    return Err(lost());
                }
                3 => {
                    bucket.execute(request);
                    (500, Vec::new(), error("InternalError"))
                }
                _ => (503, Vec::new(), error("SlowDown")),
            },
        };
        sim.sleep(bucket.up_to(Duration::from_millis(40))).await;
        Ok(self.response(answer))
    }
}

impl Wire {
    fn response(&self, (status, headers, body): Answer) -> Response {
        let marker = b"\"uuid\":\"";
        let at = body.windows(marker.len()).position(|part| part == marker);
        let body = match at.map(|at| at + marker.len()) {
            Some(at) if body.len() >= at + 32 => {
                [&body[..at], self.uuid.as_bytes(), &body[at + 32..]].concat().into()
            }
            _ => body,
        };
        let time = ("date", http(self.bucket.now()));
        let headers = headers.into_iter().chain([time]);
        let headers = headers.map(|(name, value)| Header { name: name.into(), value });
        Response::new(status, headers.collect(), body)
    }
}

fn error(code: &str) -> Bytes {
    format!("<Error><Code>{code}</Code></Error>").into()
}

/// `19941106T084937Z`
fn signed_at(text: &str) -> Option<SystemTime> {
    let (date, clock) = text.strip_suffix('Z')?.split_once('T')?;
    let part = |text: &str, from: usize, to: usize| text.get(from..to)?.parse().ok();
    let (year, month, day) = (part(date, 0, 4)?, part(date, 4, 6)?, part(date, 6, 8)?);
    let (hour, minute, second) = (part(clock, 0, 2)?, part(clock, 2, 4)?, part(clock, 4, 6)?);
    calendar::system_time(DateTime { year, month, day, hour, minute, second }.to_epoch()?)
}

fn epoch(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() as i64
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
fn http(time: SystemTime) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = epoch(time);
    let DateTime { year, month, day, hour, minute, second } = DateTime::from_epoch(seconds);
    let at = |number: i64| usize::try_from(number).unwrap();
    let (weekday, month) = (DAYS[at(seconds / 86400 % 7)], MONTHS[at(month - 1)]);
    format!("{weekday}, {day:02} {month} {year:04} {hour:02}:{minute:02}:{second:02} GMT")
}

/// `1994-11-06T08:49:37.000Z`
fn iso(time: SystemTime) -> String {
    let DateTime { year, month, day, hour, minute, second } = DateTime::from_epoch(epoch(time));
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.000Z")
}
