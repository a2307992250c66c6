//! Ownership of a store in a bucket: the mark that PBS knows, and the lease that excludes other processes of this crate.
//!
//! # Objects
//! `.in-use` holds `{"hostname":"…"}`, as PBS writes it. It names the host that uses the store, for years; a program that does not read it is
//! not excluded. `.larder/lease` names the process that may change the store now: [`lease_record`](crate::format::larder::lease_record) has
//! its fields.
//!
//! A holder releases the lease by storing it with `held: false`, and does not delete it. So the epoch keeps growing, and the next holder sees
//! by it if another process held the lease in between.
//!
//! # States of a process
//! ```text
//! free ── take: conditional put ──▶ held ── 60 s without a renewal ──▶ overdue ── renewed ──▶ held
//!   ▲                                │                                   │
//!   └─────────── release ────────────┘      the nonce of another holder ─┴──▶ lost, for good (H89)
//! ```
//! The first lock that changes something takes the lease. The process renews it every 20 s until it releases it. Each renewal is a put on
//! the condition that the lease is still the one that this process wrote. Before a snapshot is published, and before each batch of
//! deletions, the process reads the lease once more. While the lease is overdue, the process renews it before any change; after it lost the
//! lease, it changes nothing. A read that shows that the server has seen no renewal for 60 s renews the lease too.
//!
//! # Attempts
//! The client of an [`Attempt`] sends each request that changes something. It asks for the lease before each attempt: after the waits for a
//! rate, a turn and credentials, and again in the transport once there is a connection. So a retry loop of a process that was stopped does
//! not continue.
//!
//! | the process stopped because | clocks that continued | end of its attempts |
//! |---|---|---|
//! | it was stopped, or its container frozen | all | 60 s after the last renewal, by the monotonic clock |
//! | the host was suspended | the monotonic clock, which counts suspension, and the time of day | the same |
//! | the virtual machine was paused, and its time of day corrected | the time of day | 60 s after the last renewal, by the time of day |
//! | the virtual machine was paused | only the clock of the server | before each attempt but the first, the server confirms the lease, unless the request only stores a chunk. An answer whose time is 60 s further ahead than at the last renewal makes the lease overdue. So does a new correction of the signing time, which a server demands when that is off by more than 15 minutes |
//!
//! A lease that is overdue for any of these reasons is renewed before the attempt is sent, on the condition that it is still the one that this
//! process wrote. Setting the time of day costs one renewal. The request carries the end of the lease, after which the transport sends no
//! byte of it.
//!
//! A pause between the last check and the server remains possible. A server accepts a signature for 15 minutes, and a server whose time is 15
//! minutes ahead for 30. So a request of a holder that lost its lease arrives at most 30 minutes after it was signed, and it was signed at most
//! 60 s after the last renewal. The new holder deletes nothing for that long.
//!
//! A request that began under a lease that was released since is not sent again.
//!
//! # Taking over
//! A lease that was not released may be taken over once the server has seen no renewal for 60 s, all by its own clock: that of its answer and
//! that of the object. A process with the same instance may take over at once, since its caller guarantees that one process at a time uses
//! an instance. Requests of the previous holder may still be under way. For the maximum time of a request, the new holder stores
//! chunks and snapshots, and deletes nothing: it does not get the exclusive lock of the store.
//!
//! # Without conditional puts
//! The process stores the lease, and reads it again after two seconds: of several processes that store it at once, the last one wins. This is
//! weaker: a put that is delayed for longer gives the store two holders, until the first of them reads the lease again.

mod attempt;
mod found;
mod late_puts;
mod names;
mod recent_segments;
mod term;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use futures::lock::Mutex as AsyncMutex;

use crate::backend::LeaseTerm;
use crate::backend::in_doubt::MAX_REQUEST_TIME;
use crate::backend::s3::lease::late_puts::LatePuts;
use crate::backend::s3::lease::names::{Doubt, Removals};
use crate::backend::s3::lease::recent_segments::RecentSegments;
use crate::backend::s3::lease::term::next;
use crate::backend::s3::mark::{Mark, Ownership};
use crate::backend::s3::place::Place;
use crate::backend::s3::reserve::Reserve;
use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::lease_record::{Holder, Record};
use crate::rt::Runtime;
use crate::s3::{BucketClient, ClockOffset, Condition, Deletion};
use crate::trace;

pub(super) use attempt::{Attempt, Care};
pub(super) use late_puts::must_stay_deleted;

/// Time without a renewal after which the lease is overdue, and another process may take it over.
const LIFETIME: Duration = Duration::from_mins(1);
/// Interval of renewals.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(20);
/// Pause before the next attempt after a renewal failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Pause before the lease is read again, on a server without conditional puts.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// The lease of one store, held or not.
#[derive(Debug)]
pub(super) struct Lease {
    /// Held while the lease is taken, renewed or released.
    changing: AsyncMutex<()>,
    client: BucketClient,
    /// Number of requests under way that change something.
    attempts: AtomicUsize,
    /// By the monotonic clock: the time at which the last request was given up that may still be executed.
    in_doubt: Mutex<Option<Duration>>,
    late_puts: Mutex<LatePuts>,
    mark: Mark,
    me: Holder,
    place: Place,
    recent_segments: Mutex<RecentSegments>,
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
    /// By the monotonic clock: the time at which the last request was sent whose answer confirmed the lease. Not the time of the answer: the
    /// lease may have been lost while the answer was under way.
    confirmed: Duration,
    /// The previous epoch, if this instance had it too.
    continues: Option<u64>,
    /// By the monotonic clock: the time before which nothing is deleted.
    in_doubt_until: Option<Duration>,
    record: Record,
    /// The time at which the last successful renewal was sent.
    renewed: Moment,
    /// The epoch with which this process took the lease.
    since: u64,
    tag: String,
}

/// A time by all clocks that this process can read.
#[derive(Clone, Copy, Debug)]
struct Moment {
    /// Seconds by which answers of the server were ahead of the time of day.
    ahead: Option<i64>,
    monotonic: Duration,
    /// The correction of the time of day for signatures.
    offset: ClockOffset,
    wall: SystemTime,
}

impl Moment {
    /// The time of the server in Unix seconds, as far as its answers show.
    fn server_seconds(self) -> u64 {
        unix_seconds(self.wall).saturating_add_signed(self.ahead.unwrap_or_default())
    }
}

impl Lease {
    pub(super) fn new(
        runtime: Arc<dyn Runtime>,
        client: BucketClient,
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
            in_doubt: Mutex::default(),
            late_puts: Mutex::default(),
            mark,
            me,
            place,
            recent_segments: Mutex::default(),
            removals: Mutex::default(),
            reserve,
            runtime,
            state: Mutex::new(State::Free),
        })
    }

    /// The lease term, while no other process can have taken the lease.
    pub(super) fn lease_term(&self) -> Option<LeaseTerm> {
        let State::Held(held) = &*self.state() else { return None };
        let now = self.runtime.monotonic();
        let in_doubt = held.in_doubt_until.is_some_and(|until| now < until);
        let (continues, epoch, since) = (held.continues, held.record.epoch, held.since);
        self.valid_until(held).map(|_| LeaseTerm { continues, epoch, since, in_doubt })
    }

    /// The time until which no other process can take the lease, by the monotonic clock; `None` if the lease is overdue.
    fn valid_until(&self, held: &Held) -> Option<Duration> {
        let (now, renewed) = (self.moment(), &held.renewed);
        // A virtual machine that was paused has a wrong time of day until it is corrected. Before the correction, the distance to the
        // answers of the server shows the pause; after it, the time of day does. So does an offset that the server demanded meanwhile.
        let jumped = now.wall >= renewed.wall + LIFETIME
            || now.offset != renewed.offset
            || now.ahead.zip(renewed.ahead).is_some_and(|(now, then)| {
                now.saturating_sub(then) >= i64::try_from(LIFETIME.as_secs()).unwrap_or(i64::MAX)
            });
        let until = renewed.monotonic + LIFETIME;
        (now.monotonic < until && !jumped || mutated!("lease-is-valid-for-ever")).then_some(until)
    }

    fn moment(&self) -> Moment {
        Moment {
            ahead: self.client.ahead(),
            monotonic: self.runtime.monotonic(),
            offset: self.client.clock_offset(),
            wall: self.runtime.now(),
        }
    }

    /// Takes the lease, or renews it if it is overdue.
    ///
    /// # Errors
    /// `Busy` if another process holds the lease, or took it over; `Denied` if the owner mark names another host.
    pub(super) async fn hold(self: &Arc<Self>) -> Result<()> {
        if self.lease_term().is_some() {
            return Ok(());
        }
        self.take_or_renew().await
    }

    fn take_or_renew(self: &Arc<Self>) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let _alone = self.changing.lock().await;
            let state = self.state().clone();
            match state {
                State::Lost(who) => Err(lost(&who)),
                State::Held(held) if self.valid_until(&held).is_some() => Ok(()),
                State::Held(held) => {
                    self.report(held.record.epoch, trace::Lease::Overdue);
                    self.renew(held).await
                }
                State::Free => self.take().await,
            }
        })
    }

    /// Renews the lease if it is overdue. Never takes it.
    async fn renew_if_overdue(self: &Arc<Self>) -> Result<()> {
        let _alone = self.changing.lock().await;
        let state = self.state().clone();
        match state {
            State::Free => Err(released()),
            State::Lost(who) => Err(lost(&who)),
            State::Held(held) if self.valid_until(&held).is_some() => Ok(()),
            State::Held(held) => self.renew(held).await,
        }
    }

    /// Reads the lease, and renews it if the server has seen no renewal for its lifetime: then this host was paused, though possibly no
    /// clock here shows that.
    async fn confirm(self: &Arc<Self>) -> Result<()> {
        let sent = self.runtime.monotonic();
        let is_overdue = match self.read().await? {
            Some(found) if self.is_mine(&found) => found.head.age().is_some_and(|age| age >= LIFETIME),
            found => return Err(self.lose(found.as_ref())),
        };
        let _alone = if is_overdue { Some(self.changing.lock().await) } else { None };
        let held = match &mut *self.state() {
            State::Held(held) if is_overdue => held.clone(),
            State::Held(held) => {
                held.confirmed = held.confirmed.max(sent);
                return Ok(());
            }
            State::Free => return Err(released()),
            State::Lost(who) => return Err(lost(who)),
        };
        self.renew(held).await
    }

    /// Fails after the lease was lost, and renews it if it is overdue. A process that never took the lease passes.
    pub(super) async fn before_change(self: &Arc<Self>) -> Result<()> {
        let overdue = match &*self.state() {
            State::Free => false,
            State::Lost(who) => return Err(lost(who)),
            State::Held(held) => self.valid_until(held).is_none(),
        };
        if overdue { self.hold().await } else { Ok(()) }
    }

    /// Checks that this process still holds the lease that it took with this epoch.
    pub(super) async fn check_continues(self: &Arc<Self>, since: Option<u64>) -> Result<()> {
        // A released lease is not taken again for a lock of the previous opening.
        if !matches!(&*self.state(), State::Free) {
            self.hold().await?;
        }
        if since.is_some() && self.lease_term().map(|lease_term| lease_term.since) == since {
            return Ok(());
        }
        let error = Error::new(ErrorKind::Busy, "change the store");
        Err(error.because("the store was closed and opened again after the lock was taken"))
    }

    /// Reads the lease, and fails if it is not that of this process.
    ///
    /// Renews it instead if it does not list each recent segment yet: a process that publishes a snapshot and dies right after leaves no
    /// segment out.
    pub(super) async fn check(self: &Arc<Self>) -> Result<()> {
        self.hold().await?;
        mutated!("lease-is-not-confirmed" => return Ok(()));
        let is_due = |held: &Held| self.lacks_segments(held) && !mutated!("publish-leaves-segments-unlisted");
        if self.renew_if(is_due).await? { Ok(()) } else { self.confirm().await }
    }

    /// Renews the lease at once if it is held and that is due, also after a wait for another change of it. Returns `true` if it was renewed.
    async fn renew_if(self: &Arc<Self>, is_due: impl Fn(&Held) -> bool) -> Result<bool> {
        let due = || {
            let state = self.state().clone();
            if let State::Held(held) = state { Some(held).filter(&is_due) } else { None }
        };
        if due().is_none() {
            return Ok(false);
        }
        let _alone = self.changing.lock().await;
        match due() {
            Some(held) => self.renew(held).await.map(|()| true),
            None => Ok(false),
        }
    }

    /// Fails while a request of an earlier holder may still be executed.
    pub(super) fn check_nothing_in_doubt(&self) -> Result<()> {
        mutated!("lease-holder-deletes-at-once" => return Ok(()));
        let State::Held(held) = &*self.state() else { return Ok(()) };
        let now = self.runtime.monotonic();
        match held.in_doubt_until.and_then(|until| until.checked_sub(now)) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(left) => {
                let why =
                    format!("requests of the previous holder may still arrive for {} s", left.as_secs());
                let error = Error::new(ErrorKind::Busy, "lock the store alone").on(&self.place.lease);
                Err(error.because(why).retry_in(left))
            }
        }
    }

    /// Begins a new term: renews the lease with the next epoch.
    pub(super) async fn begin_term(self: &Arc<Self>) -> Result<()> {
        self.hold().await?;
        let _alone = self.changing.lock().await;
        let State::Held(held) = self.state().clone() else {
            return Err(
                Error::new(ErrorKind::Busy, "begin a term").because("this process does not hold the lease")
            );
        };
        let epoch = next(held.record.epoch)?;
        let record = Record { epoch, ..held.record.clone() };
        // Records of the old term become invalid, since the new one does not continue it.
        self.renew(Held { continues: None, record, ..held }).await?;
        match self.lease_term() {
            Some(lease_term) if lease_term.epoch == epoch => Ok(()),
            _ => Err(Error::new(ErrorKind::Unavailable, "begin a term")),
        }
    }

    /// Reads the clock of the server: the `Date` of an answer.
    pub(super) async fn clock(self: &Arc<Self>) -> Result<SystemTime> {
        self.hold().await?;
        let answered = match self.client.head(&self.place.lease).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            head => head?.answered,
        };
        answered.ok_or_else(|| {
            let error = Error::new(ErrorKind::Unavailable, "read the clock of the server");
            error.because("its answers have no valid Date header")
        })
    }

    /// Releases the lease, if this process holds it.
    ///
    /// If a request of this process is in doubt, the released lease says until when, and the next holder waits.
    pub(super) async fn release(&self) -> Result<()> {
        let _alone = self.changing.lock().await;
        let State::Held(held) = self.state().clone() else { return Ok(()) };
        let mut record = Record { beat: held.record.beat + 1, held: false, ..held.record };
        // From here on the names are listed exactly, without those of requests that have ended since the last renewal.
        self.reset_extra_renewals();
        let names = self.names_removed();
        record.removing = Some(BTreeSet::new());
        if self.has_doubts() && !mutated!("lease-released-without-its-doubts") {
            let found = self.read().await?;
            let now = found.and_then(|found| found.head.answered).unwrap_or_else(|| self.runtime.now());
            let (now, until) = (unix_seconds(now), unix_seconds(now + MAX_REQUEST_TIME));
            Doubt::left(&record, names, until, now).write_to(&mut record);
        }
        *self.state() = State::Free;
        // From here on no put begins.
        let now = self.moment();
        (record.returning, record.segments) = (self.listed_late_puts(now), self.listed_segments(now));
        self.report(record.epoch, trace::Lease::Released);
        self.write(&record, Some(&held.tag)).await.map(drop)
    }

    /// Reports an event of the lease to the log and the metrics.
    fn report(&self, epoch: u64, event: trace::Lease) {
        if trace::IS_ON {
            let place = format!("{}/{}", self.client.bucket(), self.place.lease);
            trace::lease(&place, epoch, event);
        }
    }

    /// Returns `true` if a request of this process may still be executed.
    fn has_doubts(&self) -> bool {
        let since = self.runtime.monotonic().saturating_sub(MAX_REQUEST_TIME);
        let in_doubt = *self.in_doubt.lock().unwrap_or_else(PoisonError::into_inner);
        let of_names = self.removals().has_doubts(self.runtime.monotonic());
        of_names || self.attempts.load(Ordering::SeqCst) > 0 || in_doubt.is_some_and(|at| at >= since)
    }

    /// Notes that a request of this process got no answer, and may still be executed.
    fn mark_in_doubt(&self) {
        let now = self.runtime.monotonic();
        *self.in_doubt.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    /// Deletes the lease. If a request of this process may still delete something, releases it instead: a process that creates a store here
    /// next must find the names in doubt.
    pub(super) async fn remove(self: &Arc<Self>, condition: &Condition) -> Result<Deletion> {
        self.before_change().await?;
        if self.removals().outlive_the_store(self.runtime.monotonic()) {
            return self.release().await.map(|()| Deletion::Final);
        }
        let _alone = self.changing.lock().await;
        let attempt = self.attempt(Care::Once);
        let deleted = attempt.client().delete(&self.place.lease, condition).await;
        let deletion = attempt.finish_delete(deleted)?;
        *self.state() = State::Free;
        Ok(deletion)
    }

    /// Begins a request that changes something. It is in doubt until it is finished with a certain outcome.
    pub(super) fn attempt(self: &Arc<Self>, care: Care) -> Attempt {
        Attempt::new(self, care)
    }

    /// Removes the owner mark, after it confirmed the lease.
    pub(super) async fn remove_mark(self: &Arc<Self>) -> Result<()> {
        self.check().await?;
        let attempt = self.attempt(Care::Confirmed);
        let removed = self.mark.remove(attempt.client()).await;
        attempt.finish(removed)
    }

    fn late_puts(&self) -> MutexGuard<'_, LatePuts> {
        self.late_puts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recent_segments(&self) -> MutexGuard<'_, RecentSegments> {
        self.recent_segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn removals(&self) -> MutexGuard<'_, Removals> {
        self.removals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of a request whose term is over.
fn released() -> Error {
    let error = Error::new(ErrorKind::Busy, "change the store");
    error.because("the lease under which the request began was released")
}

fn lost(who: &str) -> Error {
    let error = Error::new(ErrorKind::Busy, "change the store");
    error.because(format!("this process lost the store: {who} holds the lease now"))
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}
