//! Names with deletions under way or in doubt, so that the next holder of the lease does not reuse them too early (H17).
//!
//! A DELETE without an answer may be executed later, and then deletes a new object under the same key. The process that sent it may have died,
//! so the lease lists the name for the next holder. A *name* is a snapshot, the owner or the notes of a group, a namespace, or the identity of
//! the store. Chunks have a list of their own: the GC candidates.
//!
//! # Orders
//! ```text
//! delete:  names under way → lease renewed with them, unless it lists them → DELETE → answer: no longer under way, or in doubt for 30 min
//! release: own names in doubt or under way, and those of earlier holders → lease released with them and the end of the doubt
//! take:    names that the lease lists as in doubt, and if it was not released, those that it lists as being deleted
//! ```
//! After a crash at any point, the lease lists every name for which a DELETE may be under way. A process that deletes many names lists "any
//! name" instead, which costs one request instead of many. A snapshot whose time is later than the time at which the lease was taken or
//! released, by the clock of the server, is not in doubt then: no earlier holder can have deleted a snapshot with that time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::backend::in_doubt::{MAX_REQUEST_TIME, is_certain, is_over};
use crate::backend::s3::lease::found::Found;
use crate::backend::s3::lease::{Lease, State, unix_seconds};
use crate::backend::{Deleted, Removal};
use crate::error::{Error, ErrorKind, Result};
use crate::format::larder::lease_record::{Names, Record};
use crate::format::layout::Key;
use crate::format::name::SnapshotName;

/// Maximum bytes of names that a lease lists.
const MAX_LISTED_BYTES: usize = 16 << 10;
/// Maximum number of renewals for new names between two regular renewals. One more lists "any name", which covers all later deletions.
const MAX_EXTRA_RENEWALS: u32 = 8;

/// The deletions of this process that are under way or in doubt.
#[derive(Debug, Default)]
pub(super) struct Removals {
    /// Renewals for new names since the last regular renewal.
    extra_renewals: u32,
    /// Names with a request in doubt, and the time of its end, by the monotonic clock.
    in_doubt: BTreeMap<String, Duration>,
    /// The time at which the last deletion of an object without a name ended in doubt, by the monotonic clock.
    nameless_in_doubt: Option<Duration>,
    /// Number of requests under way that delete objects without a name.
    nameless_under_way: usize,
    /// Number of requests under way for each name.
    under_way: BTreeMap<String, usize>,
}

impl Removals {
    /// Returns `true` if a request may still be executed.
    pub(super) fn has_doubts(&self, now: Duration) -> bool {
        let late = |since: &Duration| now.saturating_sub(*since) < MAX_REQUEST_TIME;
        !self.under_way.is_empty() || self.in_doubt.values().any(late)
    }

    /// Returns `true` if a request may still delete an object in the place of a destroyed store. Chunks in doubt were in the list of GC
    /// candidates, which was destroyed too. If there are any, the identity of the store is in doubt from now on, so that no store is
    /// created here meanwhile.
    pub(super) fn outlive_the_store(&mut self, now: Duration) -> bool {
        let late = |since: Duration| now.saturating_sub(since) < MAX_REQUEST_TIME;
        if self.nameless_under_way > 0 || self.nameless_in_doubt.is_some_and(late) {
            self.in_doubt.insert(Key::Store.path(), now);
        }
        self.has_doubts(now)
    }

    /// Marks the deletion of an object as in doubt from now on, because nothing proves that the server does not execute it later: it was
    /// given up, answered without a certain outcome, or its future was dropped. `None` is an object without a name. Each such deletion
    /// passes here while it still counts as under way, so that its name is in every lease that is written meanwhile.
    fn mark_in_doubt(&mut self, name: Option<String>, now: Duration) {
        match name {
            // The latest deletion of the name counts, however many are in doubt.
            Some(name) => _ = self.in_doubt.insert(name, now),
            None => self.nameless_in_doubt = Some(now),
        }
    }

    /// All names with a request that may be executed now or later.
    fn names(&mut self, now: Duration) -> Names {
        self.in_doubt.retain(|_, since| now.saturating_sub(*since) < MAX_REQUEST_TIME);
        listed(self.in_doubt.keys().chain(self.under_way.keys()).cloned().collect())
    }
}

/// The names, or "any name" if they are too long for the lease.
fn listed(names: BTreeSet<String>) -> Names {
    let bytes: usize = names.iter().map(|name| name.len() + 3).sum();
    (bytes <= MAX_LISTED_BYTES).then_some(names)
}

/// The name of a key, if another process may store its object again after a deletion.
fn name_of(key: &Key) -> Option<String> {
    match key.exposed() {
        Key::Archive(name, _) | Key::ClientLog(name) | Key::Manifest(name) | Key::Protected(name) => {
            Some(name.to_string())
        }
        Key::GroupNotes(_) | Key::Namespace(_) | Key::Owner(_) | Key::Store => Some(key.exposed().path()),
        _ => None,
    }
}

fn snapshot_of(key: &Key) -> Option<&SnapshotName> {
    match key.exposed() {
        Key::Archive(name, _) | Key::ClientLog(name) | Key::Manifest(name) | Key::Protected(name) => {
            Some(name)
        }
        _ => None,
    }
}

/// Names with a deletion under way. If the value is dropped before it is finished, all of them are in doubt.
#[derive(Debug)]
pub(in crate::backend::s3) struct Removing {
    /// Objects without a name are among those to delete, besides the lease.
    has_nameless: bool,
    is_over: bool,
    lease: Arc<Lease>,
    names: Vec<Option<String>>,
}

impl Removing {
    /// Ends the deletion with these results. Names without a certain result are in doubt. A certain result says nothing about another
    /// deletion of its name, which stays under way or in doubt.
    pub(in crate::backend::s3) fn finish(mut self, results: &Result<Vec<Result<Deleted>>>) {
        self.is_over = true;
        let now = self.lease.runtime.monotonic();
        let mut removals = self.lease.removals();
        for (at, name) in self.names.iter().enumerate() {
            let is_in_doubt = match results {
                Err(error) => !is_certain(error),
                Ok(results) => results.get(at).is_none_or(|result| !is_over(result)),
            };
            if is_in_doubt {
                removals.mark_in_doubt(name.clone(), now);
            }
        }
    }
}

impl Drop for Removing {
    fn drop(&mut self) {
        let now = self.lease.runtime.monotonic();
        let mut removals = self.lease.removals();
        if self.has_nameless {
            removals.nameless_under_way -= 1;
            if !self.is_over {
                removals.mark_in_doubt(None, now);
            }
        }
        for name in self.names.drain(..).flatten() {
            if let Some(count) = removals.under_way.get_mut(&name) {
                *count -= 1;
                if *count == 0 {
                    removals.under_way.remove(&name);
                }
            }
            if !self.is_over {
                removals.mark_in_doubt(Some(name), now);
            }
        }
    }
}

impl Lease {
    /// Begins a deletion, after the lease lists its names.
    ///
    /// # Errors
    /// As for a renewal. The caller must then delete nothing.
    pub(in crate::backend::s3) async fn removing(self: &Arc<Self>, removals: &[Removal]) -> Result<Removing> {
        let names: Vec<_> = removals.iter().map(|removal| name_of(&removal.key)).collect();
        // Names of packs and segments are used once, so a late request hits nothing new.
        let is_harmless = |key: &Key| matches!(key, Key::Lease | Key::Pack(_) | Key::Segment(_));
        let has_nameless =
            removals.iter().zip(&names).any(|(removal, name)| name.is_none() && !is_harmless(&removal.key));
        {
            let mut removals = self.removals();
            removals.nameless_under_way += usize::from(has_nameless);
            for name in names.iter().flatten() {
                *removals.under_way.entry(name.clone()).or_default() += 1;
            }
        }
        // No request was sent yet: if the renewal fails, no name is in doubt.
        let mut removing = Removing { has_nameless, is_over: true, lease: Arc::clone(self), names };
        self.list_names(&removing.names).await?;
        removing.is_over = false;
        Ok(removing)
    }

    /// Renews the lease unless it lists the names. INVARIANT: no DELETE for a name is sent before the server has a lease that lists it.
    async fn list_names(self: &Arc<Self>, names: &[Option<String>]) -> Result<()> {
        mutated!("lease-lists-no-names" => return Ok(()));
        let lists = |record: &Record| {
            let listed = record.removing.as_ref();
            listed.is_none_or(|listed| names.iter().flatten().all(|name| listed.contains(name)))
        };
        let is_listed = |state: &State| match state {
            State::Held(held) => lists(&held.record),
            // Without a lease the process may delete nothing that has a name.
            State::Free | State::Lost(_) => true,
        };
        if is_listed(&self.state()) {
            return Ok(());
        }
        let _alone = self.changing.lock().await;
        let state = self.state().clone();
        match state {
            State::Held(held) if !lists(&held.record) => {
                self.removals().extra_renewals += 1;
                self.renew(held).await
            }
            _ => Ok(()),
        }
    }

    /// The names that the next renewal lists as being deleted.
    pub(super) fn names_removed(&self) -> Names {
        let now = self.runtime.monotonic();
        let mut removals = self.removals();
        if removals.extra_renewals > MAX_EXTRA_RENEWALS { None } else { removals.names(now) }
    }

    /// Allows extra renewals again, before a regular one.
    pub(super) fn reset_extra_renewals(&self) {
        self.removals().extra_renewals = 0;
    }

    /// Fails with `Busy` for a name with a deletion in doubt.
    pub(in crate::backend::s3) fn check_name(&self, key: &Key) -> Result<()> {
        self.in_doubt(key).map_or(Ok(()), |left| {
            let why = format!(
                "a request to delete the previous object may still be executed for {} s",
                left.as_secs() + 1
            );
            Err(Error::new(ErrorKind::Busy, "store").on(key).because(why).retry_in(left))
        })
    }

    /// Time for which a request of this process, or of an earlier holder, may still delete the object with this key.
    pub(in crate::backend::s3) fn in_doubt(&self, key: &Key) -> Option<Duration> {
        let (name, now) = (name_of(key)?, self.runtime.monotonic());
        let own = self.removals().in_doubt.get(&name).map(|since| *since + MAX_REQUEST_TIME);
        let inherited = match &*self.state() {
            State::Held(held) if is_listed(&held.record, &name, key) => held.in_doubt_until,
            _ => None,
        };
        own.max(inherited)?.checked_sub(now).filter(|left| !left.is_zero())
    }
}

/// Returns `true` if the lease lists the name as in doubt.
fn is_listed(record: &Record, name: &str, key: &Key) -> bool {
    if let Some(names) = &record.in_doubt {
        return names.contains(name);
    }
    let before = record.in_doubt_before.unwrap_or(u64::MAX);
    let time = snapshot_of(key).map(|name| unix_seconds(SystemTime::from(name.time())));
    time.is_none_or(|time| time <= before)
}

/// The names in doubt, and the end of the doubt.
#[derive(Debug)]
pub(super) struct Doubt {
    before: Option<u64>,
    names: Names,
    pub(super) until: Option<u64>,
}

impl Doubt {
    /// The doubt in a lease at the time `now` of the server, in Unix seconds.
    fn of(record: &Record, now: u64) -> Self {
        let until = record.in_doubt_until.filter(|until| *until > now);
        if until.is_none() {
            return Self { before: None, names: Some(BTreeSet::new()), until: None };
        }
        // A lease of an earlier version lacks the time: snapshots up to now are in doubt.
        let now = record.in_doubt.is_none().then_some(now);
        Self { before: record.in_doubt_before.or(now), names: record.in_doubt.clone(), until }
    }

    /// Adds names with requests that may be executed until `until`.
    fn and(self, names: Names, until: u64, now: u64) -> Self {
        let both = self.names.zip(names).map(|(mut all, more)| {
            all.extend(more);
            all
        });
        let names = both.and_then(listed);
        let before = if names.is_none() { self.before.max(Some(now)) } else { None };
        Self { before, names, until: self.until.max(Some(until)) }
    }

    /// The doubt of the next holder. `until` is the time until which requests of a holder that did not release the lease may be executed.
    pub(super) fn taken(found: Option<&Found>, now: u64, until: Option<u64>) -> Self {
        let nothing = Self { before: None, names: Some(BTreeSet::new()), until: None };
        mutated!("lease-inherits-no-doubts" => return nothing);
        let Some(Found { record, .. }) = found else { return nothing };
        let doubt = Self::of(record, now);
        match until {
            None => doubt,
            Some(until) => doubt.and(record.removing.clone(), until, now),
        }
    }

    /// The doubt that a holder leaves when it releases the lease, while its requests for `names` may be executed until `until`.
    pub(super) fn left(record: &Record, names: Names, until: u64, now: u64) -> Self {
        Self::of(record, now).and(names, until, now)
    }

    pub(super) fn write_to(self, record: &mut Record) {
        (record.in_doubt, record.in_doubt_before, record.in_doubt_until) =
            (self.names, self.before, self.until);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::unnecessary_wraps, reason = "the type of names in a lease")]
    fn names(names: &[&str]) -> Names {
        Some(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn too_many_names_become_any_name() {
        let few: BTreeSet<_> = (0..100).map(|number| format!("host/{number}/owner")).collect();
        assert_eq!(listed(few.clone()), Some(few));
        assert_eq!(listed((0..2000).map(|number| format!("host/{number}/owner")).collect()), None);
    }

    #[test]
    fn too_many_names_of_two_holders_become_any_name() {
        let many =
            |of: &str| -> Names { Some((0..400).map(|number| format!("{of}/{number}/owner")).collect()) };
        assert!(listed(many("host-of-one-name").unwrap()).is_some());
        let none = Doubt { before: None, names: names(&[]), until: None };
        let both = none.and(many("host-of-one-name"), 10, 5).and(many("host-of-two-names"), 9, 6);
        assert_eq!((&both.names, both.until, both.before), (&None, Some(10), Some(6)));
    }

    #[test]
    fn a_lease_of_an_earlier_version_leaves_every_existing_name_in_doubt() {
        let old = r#"{"beat":0,"doubtful_until":10,"epoch":9,"held":false,"holder":{"host":"h","instance":"i","nonce":"n"}}"#;
        let mut record: Record = Record::parse(old.as_bytes()).unwrap();
        let owner = Key::Owner("host/a".parse().unwrap());
        let manifest = |time: &str| Key::Manifest(format!("host/a/{time}").parse().unwrap());
        let (early, late) = (manifest("1970-01-01T00:00:05Z"), manifest("1970-01-01T00:00:06Z"));
        let in_doubt = |record: &Record, key: &Key| is_listed(record, &name_of(key).unwrap(), key);
        assert!(
            [&owner, &early, &late].iter().all(|key| in_doubt(&record, key)),
            "it does not say before when"
        );
        Doubt::of(&record, 5).write_to(&mut record);
        assert_eq!([&owner, &early, &late].map(|key| in_doubt(&record, key)), [true, true, false]);
        assert_eq!(Doubt::of(&record, 10).until, None);
        assert_eq!(Doubt::of(&record, 10).names, names(&[]));
    }

    #[test]
    fn names_in_doubt_of_two_holders_are_merged_until_both_end() {
        let none = Doubt { before: None, names: names(&[]), until: None };
        let both = none.and(names(&["a"]), 10, 5).and(names(&["b"]), 8, 6);
        assert_eq!((&both.names, both.until, both.before), (&names(&["a", "b"]), Some(10), None));
        let any = both.and(None, 9, 7);
        assert_eq!((&any.names, any.until, any.before), (&None, Some(10), Some(7)));
        let more = any.and(names(&["c"]), 20, 12);
        assert_eq!((&more.names, more.until, more.before), (&None, Some(20), Some(12)));
    }
}
