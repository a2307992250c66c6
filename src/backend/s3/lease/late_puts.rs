//! Puts that may be executed once more after they ended (H17).
//!
//! One attempt of a put gets no answer, and the next one succeeds, or all attempts fail. An attempt without an answer may still be executed.
//! While the object exists, that changes nothing: the condition of the put fails, or the bytes are the same. After a deletion it stores the
//! object again.
//!
//! | object | effect of its return | therefore, for 30 minutes |
//! |---|---|---|
//! | manifest | a snapshot is listed whose archives are gone | deleting it is `Busy` |
//! | segment of a packed store | its records name packs that a collection deleted | the exclusive lock of the store, which a collection needs, is `Busy` |
//! | any other | none, or an orphan that the next collection or backup removes | |
//!
//! # Other holders
//! The lease lists the manifests, by the names of their snapshots: it is renewed with them before the put returns. A segment marks the lease
//! that is released as one with requests in doubt, under which the next holder does not get the exclusive lock. Neither does one that takes
//! over from a process that died.
//!
//! A put that is under way is listed too when the lease is released: the caller may have given it up.
//!
//! # A holder that died
//! It may have died before it listed its last put, or while the first attempt of one was on its way. So its successor lists *any recent
//! manifest*, until no request of the dead holder can arrive any more. It does not delete a manifest that is absent, since the put may
//! still arrive, nor one that was stored within the last 61 minutes, since another attempt of the same put may still arrive: the put may
//! take half an hour, and so may its last attempt. It finds out with a HEAD. Without conditional puts, an update of the notes of any
//! snapshot may arrive: the successor deletes no manifest. The files of a snapshot without a manifest are removed after a deletion of the
//! manifest, so that this check is made.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::in_doubt::MAX_REQUEST_TIME;
use crate::backend::s3::lease::{LIFETIME, Lease, Moment};
use crate::error::{Error, ErrorKind, Result};
use crate::format::layout::Key;
use crate::s3::Head;

/// Maximum number of names that a lease lists. More are listed as any name.
const MAX_LISTED: usize = 128;
/// Stands for any name.
const ANY: &str = "*";
/// Stands for any manifest that a holder who died may have been storing.
const RECENT: &str = "?";
/// Maximum time between the first and the last attempt of a put.
const MAX_PUT_TIME: Duration = MAX_REQUEST_TIME;

/// The end of the time for which an attempt may be executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct End {
    /// By the monotonic clock.
    monotonic: Duration,
    /// In Unix seconds by the clock of the server, as an earlier lease lists it. It is listed as it is: rounded again by each holder, it would
    /// grow.
    server: Option<u64>,
}

impl End {
    /// An end in Unix seconds of the server, whose clock shows `server_now` at the time `now`; 0 if its answer lacks a time.
    fn inherited(until: u64, server_now: u64, now: Duration) -> Self {
        // No server keeps a request for longer, whatever its clock shows.
        let left = Duration::from_secs(until.saturating_sub(server_now)).min(MAX_REQUEST_TIME + LIFETIME);
        // Without a time of the server, the end is computed again from the monotonic clock.
        let server = (server_now > 0).then_some(server_now + left.as_secs());
        Self { monotonic: now.saturating_add(left), server }
    }

    /// Time until then; `None` if it is over.
    fn left(self, now: Duration) -> Option<Duration> {
        self.monotonic.checked_sub(now).filter(|left| !left.is_zero())
    }
}

/// Objects that an attempt may still store.
#[derive(Debug, Default)]
pub(super) struct LatePuts {
    /// By the name of the snapshot.
    manifests: BTreeMap<String, End>,
    segments: Option<Duration>,
    /// Number of puts of this process under way for each name.
    under_way: BTreeMap<String, usize>,
}

impl LatePuts {
    fn add(&mut self, name: String, until: End, now: Duration) {
        self.manifests.retain(|_, until| until.monotonic > now);
        let latest = self.manifests.entry(name).or_insert(until);
        *latest = until.max(*latest);
    }

    /// As a lease lists them, if its clock shows `server_now` at the time `now`.
    fn listed(&self, now: Duration, server_now: u64) -> BTreeMap<String, u64> {
        let until = |left: Duration| server_now.saturating_add(left.as_secs() + 1);
        let left = self.manifests.iter().filter_map(|(name, end)| Some((name, end, end.left(now)?)));
        let mut listed: BTreeMap<_, _> =
            left.map(|(name, end, left)| (name.clone(), end.server.unwrap_or_else(|| until(left)))).collect();
        listed.extend(self.under_way.keys().map(|name| (name.clone(), until(MAX_REQUEST_TIME))));
        match listed.values().max() {
            Some(until) if listed.len() > MAX_LISTED => BTreeMap::from([(ANY.to_owned(), *until)]),
            _ => listed,
        }
    }

    fn remaining(&self, name: &str, now: Duration) -> Option<Duration> {
        if self.under_way.contains_key(name) {
            return Some(MAX_REQUEST_TIME);
        }
        self.manifests.get(name).max(self.manifests.get(ANY))?.left(now)
    }

    /// Time for which a holder who died may still store a manifest that is absent or recent.
    fn remaining_of_recent(&self, now: Duration) -> Option<Duration> {
        self.manifests.get(RECENT)?.left(now)
    }
}

/// A put of an object that must stay deleted. Until it ends, and for the time of a request after it is dropped, it may store the object.
#[derive(Debug)]
pub(in crate::backend::s3) struct Storing {
    is_over: bool,
    key: Key,
    lease: Arc<Lease>,
}

impl Storing {
    /// Ends the put. If an attempt of it may still be executed, it lists a manifest in the lease; if that fails, the next renewal does.
    pub(in crate::backend::s3) async fn end(mut self, is_over: bool) {
        self.is_over = is_over;
        let (lease, must_list) = (Arc::clone(&self.lease), self.is_late() && self.name().is_some());
        drop(self);
        if must_list {
            drop(lease.renew_if(|_| true).await);
        }
    }

    /// Returns `true` if an attempt may still be executed after it.
    fn is_late(&self) -> bool {
        !self.is_over && !mutated!("late-puts-are-forgotten")
    }

    fn name(&self) -> Option<String> {
        if let Key::Manifest(name) = self.key.exposed() { Some(name.to_string()) } else { None }
    }
}

impl Drop for Storing {
    fn drop(&mut self) {
        let now = self.lease.runtime.monotonic();
        let until = now.saturating_add(MAX_REQUEST_TIME);
        let mut late_puts = self.lease.late_puts();
        match self.name() {
            Some(name) => {
                if let Some(count) = late_puts.under_way.get_mut(&name) {
                    *count -= 1;
                    if *count == 0 {
                        late_puts.under_way.remove(&name);
                    }
                }
                if self.is_late() {
                    late_puts.add(name, End { monotonic: until, server: None }, now);
                }
            }
            None if self.is_late() => late_puts.segments = Some(until),
            None => {}
        }
    }
}

/// Returns `true` if the return of the object does harm.
pub(in crate::backend::s3) fn must_stay_deleted(key: &Key) -> bool {
    matches!(key.exposed(), Key::Manifest(_) | Key::Segment(_))
}

impl Lease {
    /// Begins to store an object. `None` if its return would do no harm.
    pub(in crate::backend::s3) fn storing(self: &Arc<Self>, key: &Key) -> Option<Storing> {
        if !must_stay_deleted(key) {
            return None;
        }
        let storing = Storing { is_over: false, key: key.clone(), lease: Arc::clone(self) };
        if let Some(name) = storing.name()
            && !mutated!("puts-under-way-are-not-listed")
        {
            *self.late_puts().under_way.entry(name).or_default() += 1;
        }
        Some(storing)
    }

    /// Fails while an attempt that is known may store this object again after a deletion.
    ///
    /// # Errors
    /// `Busy`.
    pub(in crate::backend::s3) fn check_stays_deleted(&self, key: &Key) -> Result<()> {
        let Key::Manifest(name) = key.exposed() else { return Ok(()) };
        let left = self.late_puts().remaining(&name.to_string(), self.runtime.monotonic());
        left.map_or(Ok(()), |left| Err(may_return("delete", left).on(key)))
    }

    /// Time for which a holder who died may store a manifest that it was storing then; `None` for other objects.
    pub(in crate::backend::s3) fn may_be_under_way(&self, key: &Key) -> Option<Duration> {
        let is_manifest = matches!(key.exposed(), Key::Manifest(_));
        let left = || self.late_puts().remaining_of_recent(self.runtime.monotonic());
        is_manifest.then(left).flatten()
    }

    /// Fails if a holder who died may have been storing this manifest, which was looked up. Its requests arrive for the time `left`.
    ///
    /// # Errors
    /// `Busy`.
    pub(in crate::backend::s3) fn check_not_recent(
        &self,
        key: &Key,
        found: Option<&Head>,
        left: Duration,
    ) -> Result<()> {
        // Its last attempt cannot arrive any more. The age counts from now, not from a death: several holders may have died.
        let is_old = |age: Duration| age >= MAX_REQUEST_TIME + LIFETIME + MAX_PUT_TIME;
        let has_ended = self.place.conditional && found.and_then(Head::age).is_some_and(is_old);
        if has_ended {
            return Ok(());
        }
        let seconds = left.as_secs() + 1;
        let why = format!(
            "a process died that may have been storing it, and its requests may still be executed for {seconds} s"
        );
        Err(Error::new(ErrorKind::Busy, "delete").on(key).because(why).retry_in(left))
    }

    /// Notes that the previous holder died, and that its requests arrive until this time of the server, in Unix seconds.
    pub(super) fn add_puts_of_dead_holder(&self, until: u64, server_now: u64) {
        mutated!("dead-holder-leaves-no-late-puts" => return);
        let now = self.runtime.monotonic();
        self.late_puts().add(RECENT.to_owned(), End::inherited(until, server_now, now), now);
    }

    /// Fails while an attempt may store a segment.
    ///
    /// # Errors
    /// `Busy`.
    pub(in crate::backend::s3) fn check_no_late_segment(&self) -> Result<()> {
        mutated!("late-segments-block-no-collection" => return Ok(()));
        let now = self.runtime.monotonic();
        let left = self.late_puts().segments.and_then(|until| until.checked_sub(now));
        left.filter(|left| !left.is_zero())
            .map_or(Ok(()), |left| Err(may_return("lock the store alone", left)))
    }

    /// The manifests that a lease lists at this moment.
    pub(super) fn listed_late_puts(&self, at: Moment) -> BTreeMap<String, u64> {
        self.late_puts().listed(at.monotonic, at.server_seconds())
    }

    /// Adds the manifests that the lease of an earlier holder lists, at the time `server_now` of the server in Unix seconds.
    pub(super) fn inherit_late_puts(&self, listed: &BTreeMap<String, u64>, server_now: u64) {
        mutated!("lease-inherits-no-late-puts" => return);
        let now = self.runtime.monotonic();
        let mut late_puts = self.late_puts();
        for (name, until) in listed {
            late_puts.add(name.clone(), End::inherited(*until, server_now, now), now);
        }
    }
}

fn may_return(action: &'static str, left: Duration) -> Error {
    let seconds = left.as_secs() + 1;
    let why = format!("a request to store it got no answer, and may still be executed for {seconds} s");
    Error::new(ErrorKind::Busy, action).because(why).retry_in(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    #[test]
    fn a_lease_lists_late_puts_until_they_end() {
        let mut late = LatePuts::default();
        let end = |minutes| End { monotonic: HOUR + Duration::from_mins(minutes), server: None };
        late.add("host/a/1".to_owned(), end(30), HOUR);
        late.add("host/a/1".to_owned(), end(20), HOUR);
        assert_eq!(late.listed(HOUR, 1000), BTreeMap::from([("host/a/1".to_owned(), 2801)]));
        let later = HOUR + Duration::from_mins(29);
        assert_eq!(late.remaining("host/a/1", later), Some(Duration::from_mins(1)));
        assert_eq!(late.remaining("host/a/2", later), None);
        let end = HOUR + Duration::from_mins(30);
        assert_eq!((late.remaining("host/a/1", end), late.listed(end, 0)), (None, BTreeMap::new()));
    }

    #[test]
    fn many_late_puts_are_listed_as_any() {
        let mut late = LatePuts::default();
        let end = End { monotonic: HOUR * 2, server: None };
        for number in 0..=128 {
            late.add(format!("host/a/{number}"), end, HOUR);
        }
        let listed = late.listed(HOUR, 0);
        assert_eq!(listed, BTreeMap::from([("*".to_owned(), 3601)]));
        let mut next = LatePuts::default();
        next.add("*".to_owned(), end, HOUR);
        assert_eq!(next.remaining("host/b/1", HOUR), Some(HOUR));
    }

    /// Otherwise the time would grow with each process, and never end.
    #[test]
    fn the_end_that_an_earlier_lease_lists_stays_as_it_is() {
        let mut late = LatePuts::default();
        late.add(
            "?".to_owned(),
            End { monotonic: HOUR + Duration::from_millis(1500), server: Some(1002) },
            HOUR,
        );
        assert_eq!(late.listed(HOUR, 1001), BTreeMap::from([("?".to_owned(), 1002)]));
        assert_eq!(late.remaining_of_recent(HOUR), Some(Duration::from_millis(1500)));
    }

    #[test]
    fn a_put_under_way_is_listed() {
        let mut late = LatePuts::default();
        late.under_way.insert("host/a/1".to_owned(), 1);
        assert_eq!(late.listed(HOUR, 1000), BTreeMap::from([("host/a/1".to_owned(), 2801)]));
        assert_eq!(late.remaining("host/a/1", HOUR), Some(MAX_REQUEST_TIME));
    }
}
