//! Index segments of a packed store that a listing may not show yet (H13).
//!
//! A process that opens a packed store finds the segments by a listing. Where listings lag, it would lack those that another process stored
//! last, and miss their chunks. The lease is read by name, which does not lag, and lists the segments that were stored on the last day:
//!
//! | event | the list |
//! |---|---|
//! | a segment is stored, or the answer is lost | it is added; the next renewal or the release writes it, and at the latest the check of the lease before a snapshot is published, which renews it then instead of reading it |
//! | a segment is deleted | it is removed |
//! | the lease is taken | the new holder continues the list |
//! | segments are listed | those on the list that the listing lacks are looked up by name |
//!
//! So this costs no request but one read of the lease for each listing of a process that does not hold it. No snapshot is published before
//! the lease lists its segments.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use crate::backend::s3::lease::{Held, Lease, Moment, unix_seconds};
use crate::error::{ErrorKind, Result};
use crate::format::larder::segment::name::SegmentName;
use crate::format::layout::Key;

/// Time for which a listing may lack a segment that was stored.
const LONGEST_LAG: Duration = Duration::from_hours(24);
/// Maximum number of segments that a lease lists, the latest ones.
const MAX_LISTED: usize = 256;

/// The segments stored on the last day, and their ages.
#[derive(Debug, Default)]
pub(super) struct RecentSegments(BTreeMap<SegmentName, Age>);

/// The age of a segment at some time of the monotonic clock.
#[derive(Clone, Copy, Debug)]
struct Age {
    at: Duration,
    was: Duration,
}

impl Age {
    fn now(self, now: Duration) -> Duration {
        now.saturating_sub(self.at).saturating_add(self.was)
    }
}

impl RecentSegments {
    /// Adds a segment of this age.
    fn add(&mut self, name: SegmentName, age: Duration, now: Duration) {
        self.0.retain(|_, age| age.now(now) < LONGEST_LAG);
        if age < LONGEST_LAG {
            self.0.insert(name, Age { at: now, was: age });
        }
    }

    /// The latest ones, as a lease lists them, if its clock shows `server_now` at the time `now`.
    fn listed(&self, now: Duration, server_now: u64) -> BTreeMap<String, u64> {
        let mut all: Vec<_> = self.0.iter().map(|(name, age)| (age.now(now), name)).collect();
        all.sort_unstable();
        let recent = all.into_iter().take_while(|(age, _)| *age < LONGEST_LAG).take(MAX_LISTED);
        recent.map(|(age, name)| (name.to_string(), server_now.saturating_sub(age.as_secs()))).collect()
    }
}

/// The segments that a lease lists, and their ages at this time of the server.
fn parsed(listed: &BTreeMap<String, u64>, server_now: u64) -> impl Iterator<Item = (SegmentName, Duration)> {
    let age = move |stored: &u64| Duration::from_secs(server_now.saturating_sub(*stored));
    listed.iter().filter_map(move |(name, stored)| Some((name.parse().ok()?, age(stored))))
}

impl Lease {
    /// Notes a segment that was stored, or may be.
    pub(in crate::backend::s3) fn note_stored(&self, key: &Key) {
        if let Key::Segment(name) = key {
            self.recent_segments().add(*name, Duration::ZERO, self.runtime.monotonic());
        }
    }

    /// Forgets a segment that was deleted.
    pub(in crate::backend::s3) fn note_deleted(&self, key: &Key) {
        if let Key::Segment(name) = key {
            self.recent_segments().0.remove(name);
        }
    }

    /// Returns `true` if the stored lease lacks a segment that it should list.
    pub(super) fn lacks_segments(&self, held: &Held) -> bool {
        let listed = self.listed_segments(self.moment());
        listed.keys().any(|name| !held.record.segments.contains_key(name))
    }

    /// The segments that a lease lists at this moment.
    pub(super) fn listed_segments(&self, at: Moment) -> BTreeMap<String, u64> {
        mutated!("lease-lists-no-segments" => return BTreeMap::new());
        self.recent_segments().listed(at.monotonic, at.server_seconds())
    }

    /// Adds the segments that the lease of an earlier holder lists, at the time `server_now` of the server in Unix seconds.
    pub(super) fn inherit_segments(&self, listed: &BTreeMap<String, u64>, server_now: u64) {
        mutated!("lease-inherits-no-segments" => return);
        let now = self.runtime.monotonic();
        let mut recent = self.recent_segments();
        for (name, age) in parsed(listed, server_now) {
            recent.add(name, age, now);
        }
    }

    /// The segments that a listing may lack: those of this process if it holds the lease, otherwise those that the lease lists.
    ///
    /// # Errors
    /// Any failure to read the lease, unless it is absent, damaged, or may not be read.
    pub(in crate::backend::s3) async fn segments_to_look_for(&self) -> Result<Vec<SegmentName>> {
        // Not if the lease is overdue: another process may have taken it over.
        if self.lease_term().is_some() {
            return Ok(self.recent_segments().0.keys().copied().collect());
        }
        let found = match self.read().await {
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Denied) => None,
            found => found?,
        };
        let Some(found) = found else { return Ok(Vec::new()) };
        let server_now = unix_seconds(found.head.answered.unwrap_or(SystemTime::UNIX_EPOCH));
        let recent = parsed(&found.record.segments, server_now).filter(|(_, age)| *age < LONGEST_LAG);
        Ok(recent.map(|(name, _)| name).collect())
    }
}

#[cfg(test)]
mod tests {
    use crate::format::larder::pack::name::SessionId;

    use super::*;

    const HOUR: Duration = Duration::from_hours(1);

    fn segment(n: u32) -> SegmentName {
        SegmentName { session: SessionId::from_bytes([1; 16]), n }
    }

    #[test]
    fn a_lease_lists_the_segments_of_a_day() {
        let mut recent = RecentSegments::default();
        recent.add(segment(1), Duration::ZERO, HOUR);
        recent.add(segment(2), HOUR * 23, HOUR);
        recent.add(segment(3), HOUR * 24, HOUR);
        let listed = recent.listed(HOUR, 100_000);
        assert_eq!(
            listed,
            BTreeMap::from([(segment(1).to_string(), 100_000), (segment(2).to_string(), 17_200)])
        );
        assert_eq!(recent.listed(HOUR * 3, 107_200), BTreeMap::from([(segment(1).to_string(), 100_000)]));
        let ages: Vec<_> = parsed(&listed, 103_600).collect();
        assert_eq!(ages, [(segment(1), HOUR), (segment(2), HOUR * 24)]);
    }

    #[test]
    fn a_lease_lists_the_latest_segments() {
        let mut recent = RecentSegments::default();
        for n in 0..300 {
            recent.add(segment(n), Duration::ZERO, HOUR + Duration::from_secs(n.into()));
        }
        let listed = recent.listed(HOUR + Duration::from_mins(5), 100_000);
        assert_eq!(listed.len(), MAX_LISTED);
        assert!(
            listed.contains_key(&segment(299).to_string()) && !listed.contains_key(&segment(0).to_string())
        );
    }
}
