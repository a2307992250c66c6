//! Whose a store in a bucket is: the mark that PBS knows, and the lease that keeps two processes of this crate apart.
//!
//! # Objects
//! `.in-use` holds `{"hostname":"…"}`, as PBS writes it. It says who is at home, for years; nobody is kept out by it who does not
//! look. `.larder/lease` says which process may change the store now:
//!
//! | key | type | meaning |
//! |---|---|---|
//! | `beat` | integer | grows with every renewal, so that no two contents of the lease are the same |
//! | `doubtful_until` | integer or null | Unix seconds by the clock of the server: until then requests of an earlier holder may still be executed |
//! | `epoch` | integer | grows whenever it is taken |
//! | `held` | boolean | false when it was given back |
//! | `holder` | object | `host`, `instance` and `nonce` of who took it last |
//!
//! It is given back by saying so, and not by deleting it: so the epoch goes on growing, and whoever comes next can tell whether
//! anybody else was there meanwhile.
//!
//! # States of a process
//! ```text
//! free ── take: conditional put ──▶ held ── 60 s without a renewal ──▶ overdue ── renewed ──▶ held
//!   ▲                                │                                   │
//!   └────────── give back ───────────┘        another nonce is found ────┴──▶ lost, for good (H89)
//! ```
//! It is taken by the first lock that changes something, and renewed every 20 s until it is given back. Each renewal is a put on the
//! condition that the lease is still the one that this process wrote. Before a snapshot is published, and before each batch of
//! deletions, the lease is read once more. While it is overdue, nothing is changed before it is renewed; when it is lost, nothing
//! is changed any more.
//!
//! # Taking over
//! A lease that was not given back may be taken over when the server has not seen a renewal for 60 s, all by its own clock: that
//! of its answer and that of the object. A leftover of the same instance may be taken over at once, since whoever gives an
//! instance answers for there being one process of it. Requests of the holder before may still be under way, so for the longest
//! time that one takes, new chunks and snapshots are stored, and nothing is removed: the lock of the store is not given alone.
//!
//! # Without conditional puts
//! The lease is then written, and read again after two seconds: of several who do so at once the last one wins. It is weaker: a
//! put that is delayed for longer than that can give the store two holders, until the first of them reads the lease again.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures::lock::Mutex as AsyncMutex;
use serde::{Deserialize, Serialize};

use crate::backend::Tenure;
use crate::backend::s3::bare;
use crate::backend::s3::mark::{LIMIT_BYTES, Mark, Ownership};
use crate::error::{Error, ErrorKind, Result};
use crate::rt::Runtime;
use crate::s3::{Condition, Deletion, Head, S3Client};

/// How long a lease lives without a renewal.
const LIFE: Duration = Duration::from_mins(1);
/// How often it is renewed, and how soon again when that failed.
const RENEWAL: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_secs(5);
/// How long a server without conditional puts is given before the lease is read again.
const SETTLING: Duration = Duration::from_secs(2);
/// After how long a request that was given up is certain not to be executed any more.
const LONGEST_REQUEST: Duration = Duration::from_mins(30);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    beat: u64,
    doubtful_until: Option<u64>,
    epoch: u64,
    held: bool,
    holder: Holder,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Holder {
    host: String,
    instance: String,
    nonce: String,
}

/// Where the two objects are, and how the server wants to be asked.
#[derive(Clone, Debug)]
pub(in crate::backend::s3) struct Place {
    pub(in crate::backend::s3) conditional: bool,
    /// What all keys of data begin with.
    pub(in crate::backend::s3) data: [String; 2],
    pub(in crate::backend::s3) in_use: String,
    pub(in crate::backend::s3) lease: String,
    pub(in crate::backend::s3) quoted_tags: bool,
}

/// The lease of one store, held or not.
#[derive(Debug)]
pub(in crate::backend::s3) struct Lease {
    /// Held by whoever takes, renews or gives back.
    changing: AsyncMutex<()>,
    client: S3Client,
    /// How many requests that change something are under way.
    attempts: AtomicUsize,
    /// By the monotonic clock: when a request was given up last that may still be executed.
    doubted: Mutex<Option<Duration>>,
    mark: Mark,
    me: Holder,
    place: Place,
    runtime: Arc<dyn Runtime>,
    state: Mutex<State>,
}

#[derive(Clone, Debug)]
enum State {
    Free,
    Held(Held),
    Lost(String),
}

#[derive(Clone, Debug)]
struct Held {
    /// The epoch before, if it was of this instance too.
    continues: Option<u64>,
    /// By the clock of this host, until when nothing is removed.
    doubtful_until: Option<Duration>,
    record: Record,
    /// The epoch with which this process took it.
    since: u64,
    tag: String,
    /// By the monotonic clock: until when nobody else may have taken it.
    until: Duration,
}

/// A request that changes something.
#[derive(Debug)]
pub(in crate::backend::s3) struct Attempt {
    /// Whether it certainly has ended.
    is_certain: bool,
    lease: Arc<Lease>,
}

impl Attempt {
    /// It has ended, and how is certain, unless it is said to be `Unavailable`.
    pub(in crate::backend::s3) fn end<T>(mut self, result: Result<T>) -> Result<T> {
        if !matches!(&result, Err(error) if error.kind() == ErrorKind::Unavailable) {
            self.is_certain = true;
        }
        result
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        if !self.is_certain {
            let now = self.lease.runtime.monotonic();
            *self.lease.doubted.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
        }
        self.lease.attempts.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A lease as it was found.
struct Found {
    head: Head,
    record: Record,
    tag: String,
}

impl Lease {
    pub(in crate::backend::s3) fn new(
        runtime: Arc<dyn Runtime>,
        client: S3Client,
        place: Place,
        ownership: Ownership,
    ) -> Arc<Self> {
        let draw = || {
            let mut random = [0; 16];
            runtime.fill_random(&mut random);
            format!("{:032x}", u128::from_le_bytes(random))
        };
        let instance = ownership.instance.clone().unwrap_or_else(draw);
        let me = Holder { host: ownership.host.clone(), instance, nonce: draw() };
        let mark = Mark { client: client.clone(), ownership, place: place.clone() };
        Arc::new(Self {
            attempts: AtomicUsize::new(0),
            changing: AsyncMutex::default(),
            client,
            doubted: Mutex::default(),
            mark,
            me,
            place,
            runtime,
            state: Mutex::new(State::Free),
        })
    }

    /// Its term, while nobody else may have taken the lease.
    pub(in crate::backend::s3) fn tenure(&self) -> Option<Tenure> {
        let State::Held(held) = &*self.state() else { return None };
        let now = self.runtime.monotonic();
        let unsettled = held.doubtful_until.is_some_and(|until| now < until);
        let (continues, epoch, since) = (held.continues, held.record.epoch, held.since);
        (now < held.until).then_some(Tenure { continues, epoch, since, unsettled })
    }

    /// Makes sure that this process holds the lease.
    ///
    /// # Errors
    /// `Busy` if another process holds it, or took it away; `Denied` if the store is marked as that of somebody else.
    pub(in crate::backend::s3) async fn hold(self: &Arc<Self>) -> Result<()> {
        if self.tenure().is_some() {
            return Ok(());
        }
        let _alone = self.changing.lock().await;
        let state = self.state().clone();
        match state {
            State::Lost(who) => Err(lost(&who)),
            State::Held(held) if self.runtime.monotonic() < held.until => Ok(()),
            State::Held(held) => self.renew(held).await,
            State::Free => self.take().await,
        }
    }

    /// Refuses once the lease was lost, and renews it if it is overdue. Whoever never took it is not held up.
    pub(in crate::backend::s3) async fn before_change(self: &Arc<Self>) -> Result<()> {
        let overdue = match &*self.state() {
            State::Free => false,
            State::Lost(who) => return Err(lost(who)),
            State::Held(held) => self.runtime.monotonic() >= held.until,
        };
        if overdue { self.hold().await } else { Ok(()) }
    }

    /// Whether the lease that was taken with this epoch is still held.
    pub(in crate::backend::s3) async fn goes_on(self: &Arc<Self>, since: Option<u64>) -> Result<()> {
        // One that was given back is not taken again for whoever had it.
        if !matches!(&*self.state(), State::Free) {
            self.hold().await?;
        }
        if since.is_some() && self.tenure().map(|tenure| tenure.since) == since {
            return Ok(());
        }
        let error = Error::new(ErrorKind::Busy, "change the store");
        Err(error.because("the store was closed, and opened again, since the lock was taken"))
    }

    /// Reads the lease: whether it is still that of this process.
    pub(in crate::backend::s3) async fn check(self: &Arc<Self>) -> Result<()> {
        self.hold().await?;
        match self.read().await? {
            Some(found) if self.is_mine(&found) => Ok(()),
            found => Err(self.lose(found.as_ref())),
        }
    }

    /// Refuses while a request of an earlier holder may still be executed.
    pub(in crate::backend::s3) fn check_settled(&self) -> Result<()> {
        let State::Held(held) = &*self.state() else { return Ok(()) };
        let now = self.runtime.monotonic();
        match held.doubtful_until.and_then(|until| until.checked_sub(now)) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(left) => {
                let why = format!(
                    "requests of a process that held the store before may arrive for another {} s",
                    left.as_secs()
                );
                Err(Error::new(ErrorKind::Busy, "lock the store alone").on(&self.place.lease).because(why))
            }
        }
    }

    /// Goes on under a new epoch.
    pub(in crate::backend::s3) async fn begin_term(self: &Arc<Self>) -> Result<()> {
        self.hold().await?;
        let _alone = self.changing.lock().await;
        let State::Held(held) = self.state().clone() else {
            return Err(Error::new(ErrorKind::Busy, "begin a term").because("the lease is not held"));
        };
        let epoch = next(held.record.epoch)?;
        let record = Record { epoch, ..held.record.clone() };
        // What was noted under the one before counts for those alone who are told.
        self.renew(Held { continues: None, record, ..held }).await?;
        match self.tenure() {
            Some(tenure) if tenure.epoch == epoch => Ok(()),
            _ => Err(Error::new(ErrorKind::Unavailable, "begin a term")),
        }
    }

    /// The time by the clock of the server, which tells it with the lease.
    pub(in crate::backend::s3) async fn clock(self: &Arc<Self>) -> Result<SystemTime> {
        self.hold().await?;
        let answered = match self.client.head(&self.place.lease).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            head => head?.answered,
        };
        answered.ok_or_else(|| {
            let error = Error::new(ErrorKind::Unavailable, "ask the server for the time");
            error.because("it does not tell with its answers")
        })
    }

    /// Gives the lease back, if it is held.
    ///
    /// If a request was given up that may still be executed, whoever takes the lease next is told to wait for it.
    pub(in crate::backend::s3) async fn give_back(&self) -> Result<()> {
        let _alone = self.changing.lock().await;
        let State::Held(held) = self.state().clone() else { return Ok(()) };
        let mut record = Record { beat: held.record.beat + 1, held: false, ..held.record };
        let since = self.runtime.monotonic().saturating_sub(LONGEST_REQUEST);
        let under_way = self.attempts.load(Ordering::SeqCst) > 0;
        let doubtful = under_way
            || self.doubted.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at >= since);
        if doubtful {
            let found = self.read().await?;
            let now = found.and_then(|found| found.head.answered).unwrap_or_else(|| self.runtime.now());
            record.doubtful_until = Some(unix_seconds(now + LONGEST_REQUEST)).max(record.doubtful_until);
        }
        *self.state() = State::Free;
        self.write(&record, Some(&held.tag)).await.map(drop)
    }

    /// Deletes the lease, which is nobody's then.
    pub(in crate::backend::s3) async fn remove(&self, condition: &Condition) -> Result<Deletion> {
        let _alone = self.changing.lock().await;
        let deletion = self.client.delete(&self.place.lease, condition).await?;
        *self.state() = State::Free;
        Ok(deletion)
    }

    /// Notes that a request of this process may still be executed after it was given up, unless told otherwise in the end.
    pub(in crate::backend::s3) fn attempt(self: &Arc<Self>) -> Attempt {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        Attempt { is_certain: false, lease: Arc::clone(self) }
    }

    /// Removes the mark of the owner. The lease must be held.
    pub(in crate::backend::s3) async fn remove_mark(self: &Arc<Self>) -> Result<()> {
        self.check().await?;
        self.mark.remove().await
    }

    async fn take(self: &Arc<Self>) -> Result<()> {
        let was_ours = self.mark.claim().await?;
        let found = self.read().await?;
        let (mut doubtful_until, mut epoch, mut continues) = (None, 0, None);
        if let Some(Found { head, record, .. }) = &found {
            (doubtful_until, epoch) = (record.doubtful_until, record.epoch);
            if record.held {
                doubtful_until = Some(self.doubt(head, &record.holder)?);
            }
            // A PBS that used the store meanwhile removed our mark, and left the lease alone.
            continues = (was_ours && record.holder.instance == self.me.instance).then_some(epoch);
        }
        let holder = self.me.clone();
        let record = Record { beat: 0, doubtful_until, epoch: next(epoch)?, held: true, holder };
        let sent = self.runtime.monotonic();
        let tag = match self.write(&record, found.as_ref().map(|found| found.tag.as_str())).await {
            Ok(tag) if !tag.is_empty() => tag,
            Ok(_) => self.written(&record).await?.ok_or_else(taken)?,
            Err(error) => self.written(&record).await?.ok_or_else(|| match error.kind() {
                ErrorKind::AlreadyExists | ErrorKind::Conflict => taken(),
                _ => error,
            })?,
        };
        if !self.place.conditional {
            self.runtime.sleep(SETTLING).await;
            self.written(&record).await?.ok_or_else(taken)?;
        }
        let server_now = found.as_ref().and_then(|found| found.head.answered).map(unix_seconds);
        let left = doubtful_until.map(|until| until.saturating_sub(server_now.unwrap_or_default()));
        let doubtful_until =
            left.filter(|left| *left > 0).map(|left| sent.saturating_add(Duration::from_secs(left)));
        let epoch = record.epoch;
        *self.state() =
            State::Held(Held { continues, doubtful_until, record, since: epoch, tag, until: sent + LIFE });
        self.beat(epoch);
        Ok(())
    }

    /// When the requests of a holder that did not give the lease back are certainly over, or why it cannot be taken from it.
    fn doubt(&self, head: &Head, holder: &Holder) -> Result<u64> {
        let busy = |why: String| Err(Error::new(ErrorKind::Busy, "lock the store").because(why));
        let (Some(answered), Some(renewed)) = (head.answered, head.last_modified) else {
            return busy(format!("{} holds it, and the server does not tell since when", holder.host));
        };
        let age = answered.duration_since(renewed).unwrap_or_default();
        // The time of an object is told in whole seconds.
        let life = LIFE + Duration::from_secs(2);
        if age <= life && holder.instance != self.me.instance {
            let left = life.saturating_sub(age).as_secs() + 1;
            return busy(format!(
                "the process {} on {} holds it for another {left} s at least",
                holder.instance, holder.host
            ));
        }
        Ok(unix_seconds(renewed + LIFE + LONGEST_REQUEST))
    }

    async fn renew(self: &Arc<Self>, held: Held) -> Result<()> {
        let record = Record { beat: held.record.beat + 1, ..held.record };
        let sent = self.runtime.monotonic();
        if !self.place.conditional {
            let found = self.read().await?;
            if !found.as_ref().is_some_and(|found| self.is_mine(found)) {
                return Err(self.lose(found.as_ref()));
            }
        }
        let tag = match self.write(&record, Some(&held.tag)).await {
            Ok(tag) if !tag.is_empty() => tag,
            written => match self.read().await? {
                Some(found) if found.record == record => found.tag,
                // Neither this renewal nor anybody else was there: the next one finds the same tag.
                Some(found) if found.tag == held.tag => return written.map(drop),
                // An earlier one, given up for lost, was executed late. It has but to be renewed over that.
                Some(found) if self.is_mine(&found) && found.record.epoch == held.record.epoch => {
                    let found = Held { record: found.record, tag: found.tag, ..held };
                    *self.state() = State::Held(found);
                    let error = Error::new(ErrorKind::Unavailable, "renew the lease");
                    return Err(error.on(&self.place.lease).because("an earlier renewal came late"));
                }
                found => return Err(self.lose(found.as_ref())),
            },
        };
        *self.state() = State::Held(Held { record, tag, until: sent + LIFE, ..held });
        Ok(())
    }

    /// Renews the lease as long as it is held and anybody is there who may want it.
    fn beat(self: &Arc<Self>, since: u64) {
        let (weak, runtime): (Weak<Self>, _) = (Arc::downgrade(self), Arc::clone(&self.runtime));
        self.runtime.spawn(Box::pin(async move {
            let mut pause = RENEWAL;
            loop {
                runtime.sleep(pause).await;
                let Some(lease) = weak.upgrade() else { return };
                let _alone = lease.changing.lock().await;
                let State::Held(held) = lease.state().clone() else { return };
                if held.since != since {
                    return;
                }
                // A failure is told to whoever wants to change something next.
                pause = if lease.renew(held).await.is_ok() { RENEWAL } else { RETRY };
            }
        }));
    }

    /// Writes the lease over the one with this tag, or where none is.
    async fn write(&self, record: &Record, over: Option<&str>) -> Result<String> {
        let json = serde_json::to_vec(record).map_err(|error| self.internal(error))?;
        let condition = match over {
            _ if !self.place.conditional => Condition::Always,
            Some(tag) if self.place.quoted_tags => Condition::Tag(format!("\"{tag}\"")),
            Some(tag) => Condition::Tag(tag.to_owned()),
            None => Condition::Absent,
        };
        let tag = self.client.put(&self.place.lease, Bytes::from(json), &condition).await?;
        Ok(bare(&tag).to_owned())
    }

    /// The tag of the lease if it is this record; `None` if somebody else was faster.
    async fn written(&self, record: &Record) -> Result<Option<String>> {
        let found = self.read().await?;
        Ok(found.filter(|found| found.record == *record).map(|found| found.tag))
    }

    async fn read(&self) -> Result<Option<Found>> {
        let (bytes, head) = match self.client.get(&self.place.lease, LIMIT_BYTES).await {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            found => found?,
        };
        let record = serde_json::from_slice(&bytes);
        let corrupt = |error| Error::new(ErrorKind::Corrupt, "read").on(&self.place.lease).because(error);
        let tag = bare(&head.etag).to_owned();
        Ok(Some(Found { head, record: record.map_err(corrupt)?, tag }))
    }

    fn lose(&self, found: Option<&Found>) -> Error {
        let holder = found.filter(|found| found.record.held).map(|found| &found.record.holder);
        let who = holder.map_or_else(|| "nobody".to_owned(), |holder| holder.host.clone());
        let error = lost(&who);
        *self.state() = State::Lost(who);
        error
    }

    fn is_mine(&self, found: &Found) -> bool {
        found.record.held && found.record.holder == self.me
    }

    fn internal(&self, error: serde_json::Error) -> Error {
        Error::new(ErrorKind::Internal, "write").on(&self.place.lease).because(error)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The epoch after another.
fn next(epoch: u64) -> Result<u64> {
    epoch.checked_add(1).ok_or_else(|| {
        let error = Error::new(ErrorKind::Corrupt, "lock the store");
        error.because("the epoch of the lease cannot grow any more")
    })
}

/// Somebody else was faster.
fn taken() -> Error {
    Error::new(ErrorKind::Busy, "lock the store")
}

fn lost(who: &str) -> Error {
    let error = Error::new(ErrorKind::Busy, "change the store");
    error.because(format!("this process lost the store: its lease is now that of {who}"))
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
