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
//! # A holder that died
//! It may have died before it listed its last put, or while the first attempt of one was on its way. So its successor lists *any recent
//! manifest*, until no request of the dead holder can arrive any more. It does not delete a manifest that is absent, since the put may
//! still arrive, nor one that was stored later than 30 minutes before the dead holder can have signed its last request, since another
//! attempt of the same put may still arrive. It finds out with a HEAD. A put of an older manifest has ended, and with it the time in which it
//! would have been listed. Without conditional puts, an update of the notes of any snapshot may arrive: the successor deletes no manifest.

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

/// Objects that an attempt may still store, and the ends of these times by the monotonic clock.
#[derive(Debug, Default)]
pub(super) struct LatePuts {
    /// By the name of the snapshot.
    manifests: BTreeMap<String, Duration>,
    segments: Option<Duration>,
}

impl LatePuts {
    fn add(&mut self, name: String, until: Duration, now: Duration) {
        self.manifests.retain(|_, until| *until > now);
        let latest = self.manifests.entry(name).or_default();
        *latest = until.max(*latest);
    }

    /// As a lease lists them, if its clock shows `server_now` at the time `now`.
    fn listed(&self, now: Duration, server_now: u64) -> BTreeMap<String, u64> {
        let left = self.manifests.iter().filter_map(|(name, until)| Some((name, until.checked_sub(now)?)));
        let listed = left.filter(|(_, left)| !left.is_zero());
        let listed: BTreeMap<_, _> = listed
            .map(|(name, left)| (name.clone(), server_now.saturating_add(left.as_secs() + 1)))
            .collect();
        match listed.values().max() {
            Some(until) if listed.len() > MAX_LISTED => BTreeMap::from([(ANY.to_owned(), *until)]),
            _ => listed,
        }
    }

    fn remaining(&self, name: &str, now: Duration) -> Option<Duration> {
        let until = self.manifests.get(name).max(self.manifests.get(ANY));
        until?.checked_sub(now).filter(|left| !left.is_zero())
    }

    /// Time for which a holder who died may still store a manifest that is absent or recent.
    fn remaining_of_recent(&self, now: Duration) -> Option<Duration> {
        self.manifests.get(RECENT)?.checked_sub(now).filter(|left| !left.is_zero())
    }
}

/// Returns `true` if the return of the object does harm.
pub(in crate::backend::s3) fn must_stay_deleted(key: &Key) -> bool {
    matches!(key.exposed(), Key::Manifest(_) | Key::Segment(_))
}

impl Lease {
    /// An attempt to store this object got no answer. Lists a manifest in the lease; if that fails, the next renewal does.
    pub(in crate::backend::s3) async fn add_late_put(self: &Arc<Self>, key: &Key) {
        mutated!("late-puts-are-forgotten" => return);
        let now = self.runtime.monotonic();
        let until = now.saturating_add(MAX_REQUEST_TIME);
        match key.exposed() {
            Key::Manifest(name) => self.late_puts().add(name.to_string(), until, now),
            Key::Segment(_) => return self.late_puts().segments = Some(until),
            _ => return,
        }
        drop(self.renew_if(|_| true).await);
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
        let is_old = |age: Duration| age + left >= MAX_REQUEST_TIME + LIFETIME + MAX_PUT_TIME;
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
        let (left, now) = (Duration::from_secs(until.saturating_sub(server_now)), self.runtime.monotonic());
        self.late_puts().add(RECENT.to_owned(), now.saturating_add(left), now);
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
            // No server keeps a request for longer, whatever its clock shows.
            let left = Duration::from_secs(until.saturating_sub(server_now)).min(MAX_REQUEST_TIME);
            late_puts.add(name.clone(), now.saturating_add(left), now);
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
        late.add("host/a/1".to_owned(), HOUR + Duration::from_mins(30), HOUR);
        late.add("host/a/1".to_owned(), HOUR + Duration::from_mins(20), HOUR);
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
        for number in 0..=128 {
            late.add(format!("host/a/{number}"), HOUR * 2, HOUR);
        }
        let listed = late.listed(HOUR, 0);
        assert_eq!(listed, BTreeMap::from([("*".to_owned(), 3601)]));
        let mut next = LatePuts::default();
        next.add("*".to_owned(), HOUR * 2, HOUR);
        assert_eq!(next.remaining("host/b/1", HOUR), Some(HOUR));
    }
}
