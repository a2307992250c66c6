//! Whose a store in a bucket is: the mark that PBS knows, and the lease that keeps two processes of this crate apart.
//!
//! # Objects
//! `.in-use` holds `{"hostname":"…"}`, as PBS writes it. It names the host that uses the store, for years; a program that does not read it is
//! not excluded. `.larder/lease` names the process that may change the store now: [`lease_record`](crate::format::larder::lease_record) has
//! its fields.
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
//! is changed any more. A look that finds that the server has seen no renewal for 60 s renews it.
//!
//! # Attempts
//! A request that changes something is sent through the client of an [`Attempt`], which asks before each attempt: after the waits for
//! a rate, a turn and credentials, and again by the transport when there is a connection. So a retry loop that stood still does not go on.
//!
//! | the process stood still because | what went on | what ends its attempts |
//! |---|---|---|
//! | it was stopped, or its container frozen | all clocks | 60 s since the last renewal, by the monotonic clock |
//! | the host was suspended | the monotonic clock, which counts that, and the time of day | the same |
//! | the virtual machine was paused, and its time of day put right | the time of day | 60 s since the last renewal, by the time of day |
//! | the virtual machine was paused | the clock of the server alone | before each attempt but the first the server confirms the lease, unless the request only stores a chunk; an answer whose time is 60 s further ahead than at the last renewal makes the lease overdue; so does a correction of the time that requests are signed with, which a server demands when it is off by more than 15 minutes |
//!
//! A lease that is overdue by any of these is renewed, on the condition that it is still the one that this process wrote, before the attempt
//! is sent. A time of day that is set costs one renewal. The request carries the end of the lease, after which the transport sends no
//! byte of it.
//!
//! Between the last look and the server a pause remains possible. A server accepts a signature for 15 minutes, and one whose time is 15
//! minutes ahead for 30. So a request of a holder that lost its lease arrives at most 30 minutes after it was signed, which was at most 60 s
//! after the last renewal. The new holder removes nothing for that long.
//!
//! A request that began under a lease that was given back since is not sent again.
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

mod attempt;
mod found;
mod names;
mod term;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::lock::Mutex as AsyncMutex;

use crate::backend::LeaseTerm;
use crate::backend::in_doubt::LONGEST_REQUEST;
use crate::backend::s3::lease::names::{Doubt, Removals};
use crate::backend::s3::lease::term::next;
use crate::backend::s3::mark::{Mark, Ownership};
use crate::backend::s3::place::Place;
use crate::backend::s3::reserve::Reserve;
use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::lease_record::{Holder, Record};
use crate::rt::Runtime;
use crate::s3::{ClockOffset, Condition, Deletion, S3Client};

pub(super) use attempt::{Attempt, Care};

/// How long a lease lives without a renewal.
const LIFE: Duration = Duration::from_mins(1);
/// How often it is renewed, and how soon again when that failed.
const RENEWAL: Duration = Duration::from_secs(20);
const RETRY: Duration = Duration::from_secs(5);
/// How long a server without conditional puts is given before the lease is read again.
const SETTLING: Duration = Duration::from_secs(2);

/// The lease of one store, held or not.
#[derive(Debug)]
pub(super) struct Lease {
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
    removals: Mutex<Removals>,
    reserve: Arc<Reserve>,
    runtime: Arc<dyn Runtime>,
    state: Mutex<State>,
}

#[expect(clippy::large_enum_variant, reason = "there is one for each store")]
#[derive(Clone, Debug)]
enum State {
    Free,
    Held(Held),
    Lost(String),
}

#[derive(Clone, Debug)]
struct Held {
    /// By the monotonic clock: when the request was sent by which the server last said that the lease is that of this process.
    confirmed: Duration,
    /// The epoch before, if it was of this instance too.
    continues: Option<u64>,
    /// By the clock of this host, until when nothing is removed.
    doubtful_until: Option<Duration>,
    record: Record,
    /// When the last renewal was sent.
    renewed: Moment,
    /// The epoch with which this process took it.
    since: u64,
    tag: String,
}

/// A moment by all clocks that there are.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// By how many seconds answers of the server were ahead of the time of day.
    ahead: Option<i64>,
    monotonic: Duration,
    /// The correction of the time of day with which requests were signed.
    offset: ClockOffset,
    wall: SystemTime,
}

impl Lease {
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        client: S3Client,
        place: Place,
        ownership: Ownership,
        reserve: Arc<Reserve>,
    ) -> Arc<Self> {
        let draw = || {
            let mut random = [0; 16];
            runtime.fill_random(&mut random);
            format!("{:032x}", u128::from_le_bytes(random))
        };
        let instance = ownership.instance.clone().unwrap_or_else(draw);
        let me = Holder { host: ownership.host.clone(), instance, nonce: draw() };
        let (marked, room) = (place.clone(), Arc::clone(&reserve));
        let mark = Mark { client: client.clone(), ownership, place: marked, reserve: room };
        Arc::new(Self {
            attempts: AtomicUsize::new(0),
            changing: AsyncMutex::default(),
            client,
            doubted: Mutex::default(),
            mark,
            me,
            place,
            removals: Mutex::default(),
            reserve,
            runtime,
            state: Mutex::new(State::Free),
        })
    }

    /// Its term, while nobody else may have taken the lease.
    pub(super) fn lease_term(&self) -> Option<LeaseTerm> {
        let State::Held(held) = &*self.state() else { return None };
        let now = self.runtime.monotonic();
        let in_doubt = held.doubtful_until.is_some_and(|until| now < until);
        let (continues, epoch, since) = (held.continues, held.record.epoch, held.since);
        self.until(held).map(|_| LeaseTerm { continues, epoch, since, in_doubt })
    }

    /// Until when nobody else may have taken the lease, by the monotonic clock; `None` if it is overdue.
    fn until(&self, held: &Held) -> Option<Duration> {
        let (now, renewed) = (self.moment(), &held.renewed);
        // A virtual machine that was paused has a wrong time of day until it is put right: either of these shows it.
        let jumped = now.wall >= renewed.wall + LIFE
            || now.offset != renewed.offset
            || now.ahead.zip(renewed.ahead).is_some_and(|(now, then)| {
                now.saturating_sub(then) >= i64::try_from(LIFE.as_secs()).unwrap_or(i64::MAX)
            });
        let until = renewed.monotonic + LIFE;
        (now.monotonic < until && !jumped).then_some(until)
    }

    fn moment(&self) -> Moment {
        Moment {
            ahead: self.client.ahead(),
            monotonic: self.runtime.monotonic(),
            offset: self.client.clock_offset(),
            wall: self.runtime.now(),
        }
    }

    /// Makes sure that this process holds the lease.
    ///
    /// # Errors
    /// `Busy` if another process holds it, or took it away; `Denied` if the store is marked as that of somebody else.
    pub(super) async fn hold(self: &Arc<Self>) -> Result<()> {
        if self.lease_term().is_some() {
            return Ok(());
        }
        let _alone = self.changing.lock().await;
        let state = self.state().clone();
        match state {
            State::Lost(who) => Err(lost(&who)),
            State::Held(held) if self.until(&held).is_some() => Ok(()),
            State::Held(held) => self.renew(held).await,
            State::Free => self.take().await,
        }
    }

    /// Renews the lease if it is overdue. One that is not held is not taken.
    async fn keep(self: &Arc<Self>) -> Result<()> {
        let _alone = self.changing.lock().await;
        let state = self.state().clone();
        match state {
            State::Free => Err(given_back()),
            State::Lost(who) => Err(lost(&who)),
            State::Held(held) if self.until(&held).is_some() => Ok(()),
            State::Held(held) => self.renew(held).await,
        }
    }

    /// Reads the lease, and renews it if the server has not seen that for as long as it lives: then this host was paused, though no
    /// clock here may show it.
    async fn look(self: &Arc<Self>) -> Result<()> {
        let sent = self.runtime.monotonic();
        let is_overdue = match self.read().await? {
            Some(found) if self.is_mine(&found) => found.age().is_some_and(|age| age >= LIFE),
            found => return Err(self.lose(found.as_ref())),
        };
        let _alone = if is_overdue { Some(self.changing.lock().await) } else { None };
        let held = match &mut *self.state() {
            State::Held(held) if is_overdue => held.clone(),
            State::Held(held) => {
                held.confirmed = held.confirmed.max(sent);
                return Ok(());
            }
            State::Free => return Err(given_back()),
            State::Lost(who) => return Err(lost(who)),
        };
        self.renew(held).await
    }

    /// Refuses once the lease was lost, and renews it if it is overdue. Whoever never took it is not held up.
    pub(super) async fn before_change(self: &Arc<Self>) -> Result<()> {
        let overdue = match &*self.state() {
            State::Free => false,
            State::Lost(who) => return Err(lost(who)),
            State::Held(held) => self.until(held).is_none(),
        };
        if overdue { self.hold().await } else { Ok(()) }
    }

    /// Whether the lease that was taken with this epoch is still held.
    pub(super) async fn goes_on(self: &Arc<Self>, since: Option<u64>) -> Result<()> {
        // One that was given back is not taken again for whoever had it.
        if !matches!(&*self.state(), State::Free) {
            self.hold().await?;
        }
        if since.is_some() && self.lease_term().map(|lease_term| lease_term.since) == since {
            return Ok(());
        }
        let error = Error::new(ErrorKind::Busy, "change the store");
        Err(error.because("the store was closed, and opened again, since the lock was taken"))
    }

    /// Reads the lease: whether it is still that of this process.
    pub(super) async fn check(self: &Arc<Self>) -> Result<()> {
        self.hold().await?;
        self.look().await
    }

    /// Refuses while a request of an earlier holder may still be executed.
    pub(super) fn check_settled(&self) -> Result<()> {
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
    pub(super) async fn begin_term(self: &Arc<Self>) -> Result<()> {
        self.hold().await?;
        let _alone = self.changing.lock().await;
        let State::Held(held) = self.state().clone() else {
            return Err(Error::new(ErrorKind::Busy, "begin a term").because("the lease is not held"));
        };
        let epoch = next(held.record.epoch)?;
        let record = Record { epoch, ..held.record.clone() };
        // What was noted under the one before counts for those alone who are told.
        self.renew(Held { continues: None, record, ..held }).await?;
        match self.lease_term() {
            Some(lease_term) if lease_term.epoch == epoch => Ok(()),
            _ => Err(Error::new(ErrorKind::Unavailable, "begin a term")),
        }
    }

    /// The time by the clock of the server, which tells it with the lease.
    pub(super) async fn clock(self: &Arc<Self>) -> Result<SystemTime> {
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
    pub(super) async fn give_back(&self) -> Result<()> {
        let _alone = self.changing.lock().await;
        let State::Held(held) = self.state().clone() else { return Ok(()) };
        let mut record = Record { beat: held.record.beat + 1, held: false, ..held.record };
        // The names of requests that are certain by now are gone from these.
        self.end_announcements();
        let names = self.names_removed();
        record.removing = Some(BTreeSet::new());
        if self.has_doubts() {
            let found = self.read().await?;
            let now = found.and_then(|found| found.head.answered).unwrap_or_else(|| self.runtime.now());
            let (now, until) = (unix_seconds(now), unix_seconds(now + LONGEST_REQUEST));
            Doubt::left(&record, names, until, now).write_to(&mut record);
        }
        *self.state() = State::Free;
        self.write(&record, Some(&held.tag)).await.map(drop)
    }

    /// Whether a request of this process may still be executed.
    fn has_doubts(&self) -> bool {
        let since = self.runtime.monotonic().saturating_sub(LONGEST_REQUEST);
        let doubted = *self.doubted.lock().unwrap_or_else(PoisonError::into_inner);
        let of_names = self.removals().has_doubts(self.runtime.monotonic());
        of_names || self.attempts.load(Ordering::SeqCst) > 0 || doubted.is_some_and(|at| at >= since)
    }

    /// A request of this process got no answer, and may still be executed.
    fn mark_in_doubt(&self) {
        let now = self.runtime.monotonic();
        *self.doubted.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Deletes the lease, which is nobody's then. If a request of this process may still remove
    /// something, it is given back instead.
    pub(super) async fn remove(self: &Arc<Self>, condition: &Condition) -> Result<Deletion> {
        self.before_change().await?;
        if self.removals().outlive_the_store(self.runtime.monotonic()) {
            // Whoever makes a store here next has to know.
            return self.give_back().await.map(|()| Deletion::Final);
        }
        let _alone = self.changing.lock().await;
        let attempt = self.attempt(Care::Once);
        let deleted = attempt.client().delete(&self.place.lease, condition).await;
        let deletion = attempt.finish_delete(deleted)?;
        *self.state() = State::Free;
        Ok(deletion)
    }

    /// Begins a request that changes something, and that may still be executed after it was given up unless its end says otherwise.
    pub(super) fn attempt(self: &Arc<Self>, care: Care) -> Attempt {
        Attempt::new(self, care)
    }

    /// Removes the mark of the owner. The lease must be held.
    pub(super) async fn remove_mark(self: &Arc<Self>) -> Result<()> {
        self.check().await?;
        let attempt = self.attempt(Care::Confirmed);
        let removed = self.mark.remove(attempt.client()).await;
        attempt.finish(removed)
    }

    fn removals(&self) -> MutexGuard<'_, Removals> {
        self.removals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The term in which a request began is over.
fn given_back() -> Error {
    let error = Error::new(ErrorKind::Busy, "change the store");
    error.because("the lease under which the request began was given back")
}

fn lost(who: &str) -> Error {
    let error = Error::new(ErrorKind::Busy, "change the store");
    error.because(format!("this process lost the store: its lease is now that of {who}"))
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
