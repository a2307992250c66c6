//! Retention: a pure function of the times of a group's snapshots and of rules such as "one a day for a week".
//!
//! The rules are those of PBS, with its results in every case. Source: PBS datastore format §11.3.
//!
//! ```
//! use larder::error::ParseError;
//! use larder::retention::{Decision, RetentionItem, RetentionRules, retain};
//!
//! let items = [
//!     RetentionItem::new("2025-07-14T08:00:00Z".parse()?),
//!     RetentionItem::new("2025-07-14T20:00:00Z".parse()?),
//!     RetentionItem::new("2025-07-15T08:00:00Z".parse()?),
//! ];
//! let decisions = retain(&items, &RetentionRules::default().keep_daily(7), |_| 0);
//! assert_eq!(decisions, [Decision::Remove, Decision::Keep, Decision::Keep]);
//! # Ok::<(), ParseError>(())
//! ```

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt;

use crate::format::name::BackupTime;

/// Decides about the snapshots of one group. The result has the order of `items`, which may be any.
///
/// The rules apply in the order last, hourly, daily, weekly, monthly, yearly. Each goes from the newest
/// snapshot to the oldest and keeps the newest of every period, up to its number of periods. Periods in which an earlier
/// rule kept a snapshot are skipped and do not count. A snapshot that one rule removed as the second of its period
/// is not kept by a later rule.
///
/// * A protected snapshot is kept and uses up no period.
/// * An unfinished snapshot is kept only if it is the newest of all.
/// * Without any rule everything is kept.
///
/// `offset` returns the seconds by which local time is ahead of UTC at a time. It sets where hours, days, weeks (ISO 8601),
/// months and years begin; `|_| 0` is UTC.
pub fn retain(
    items: &[RetentionItem],
    rules: &RetentionRules,
    offset: impl Fn(BackupTime) -> i32,
) -> Vec<Decision> {
    if rules.keep_everything() {
        // Without rules the passes below would remove everything.
        return items.iter().map(|item| item.unless_protected(Decision::Keep)).collect();
    }
    let mut newest_first: Vec<usize> = (0..items.len()).collect();
    newest_first.sort_by_key(|at| items.get(*at).map(|item| Reverse(item.time)));
    let mut list: Vec<Marked> = newest_first
        .iter()
        .filter_map(|at| items.get(*at))
        .map(|item| Marked { item: *item, mark: None })
        .collect();
    mark_unfinished(&mut list);
    for (period, count) in rules.passes() {
        pass(&mut list, count, |time| period.key(time, &offset));
    }
    let mut decisions = vec![Decision::Remove; items.len()];
    for (at, Marked { item, mark }) in newest_first.into_iter().zip(list) {
        if let Some(decision) = decisions.get_mut(at) {
            *decision = item.unless_protected(mark.unwrap_or(Decision::Remove));
        }
    }
    decisions
}

/// Facts about a snapshot.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetentionItem {
    /// Time of the snapshot.
    pub time: BackupTime,
    /// `true` if it has a manifest.
    pub finished: bool,
    /// `true` if it is protected from removal.
    pub protected: bool,
}

impl RetentionItem {
    /// A finished, unprotected snapshot.
    #[must_use]
    pub const fn new(time: BackupTime) -> Self {
        Self { time, finished: true, protected: false }
    }

    fn unless_protected(self, decision: Decision) -> Decision {
        if self.protected { Decision::Protected } else { decision }
    }
}

/// Decision about a snapshot. There are exactly these four, so the enum is exhaustive.
#[expect(clippy::exhaustive_enums, reason = "there are no others, and matching on all of them is meant")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "snake_case"))]
pub enum Decision {
    /// Kept by a rule.
    Keep,
    /// Kept because it is unfinished and the newest: a backup may be writing it.
    KeepPartial,
    /// Kept because it is protected.
    Protected,
    /// To be removed.
    Remove,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Keep => "kept",
            Self::KeepPartial => "kept, it is unfinished and the newest",
            Self::Protected => "kept, it is protected",
            Self::Remove => "to be removed",
        })
    }
}

impl Decision {
    /// Returns `true` if the snapshot stays.
    pub(crate) const fn keeps(self) -> bool {
        !matches!(self, Self::Remove)
    }
}

/// Number of snapshots to keep for each kind of period. 0, the default, turns a rule off; without any rule, everything is kept.
#[must_use]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetentionRules {
    last: u64,
    hourly: u64,
    daily: u64,
    weekly: u64,
    monthly: u64,
    yearly: u64,
}

impl RetentionRules {
    /// Keeps this many newest snapshots.
    pub const fn keep_last(mut self, count: u64) -> Self {
        self.last = count;
        self
    }

    /// Keeps the newest snapshot of each of this many hours.
    pub const fn keep_hourly(mut self, count: u64) -> Self {
        self.hourly = count;
        self
    }

    /// Keeps the newest snapshot of each of this many days.
    pub const fn keep_daily(mut self, count: u64) -> Self {
        self.daily = count;
        self
    }

    /// Keeps the newest snapshot of each of this many weeks, which begin on Monday.
    pub const fn keep_weekly(mut self, count: u64) -> Self {
        self.weekly = count;
        self
    }

    /// Keeps the newest snapshot of each of this many months.
    pub const fn keep_monthly(mut self, count: u64) -> Self {
        self.monthly = count;
        self
    }

    /// Keeps the newest snapshot of each of this many years.
    pub const fn keep_yearly(mut self, count: u64) -> Self {
        self.yearly = count;
        self
    }

    /// Returns `true` if no rule is on, so that everything is kept.
    pub(crate) fn keep_everything(&self) -> bool {
        *self == Self::default()
    }

    fn passes(&self) -> [(Period, u64); 6] {
        [
            (Period::Time, self.last),
            (Period::Hour, self.hourly),
            (Period::Day, self.daily),
            (Period::Week, self.weekly),
            (Period::Month, self.monthly),
            (Period::Year, self.yearly),
        ]
    }
}

#[derive(Clone, Copy)]
enum Period {
    Day,
    Hour,
    Month,
    Time,
    Week,
    Year,
}

impl Period {
    /// Equal for two times exactly if they lie in the same period.
    fn key(self, time: BackupTime, offset: impl Fn(BackupTime) -> i32) -> [i64; 4] {
        let at = time.civil(offset(time));
        match self {
            Self::Day => [at.year, at.month, at.day, 0],
            Self::Hour => [at.year, at.month, at.day, at.hour],
            Self::Month => [at.year, at.month, 0, 0],
            Self::Time => [time.epoch(), 0, 0, 0],
            Self::Week => {
                // The ISO year: 2024-12-30 lies in the first week of 2025.
                let (year, week) = at.iso_week();
                [year, week, 0, 0]
            }
            Self::Year => [at.year, 0, 0, 0],
        }
    }
}

struct Marked {
    item: RetentionItem,
    mark: Option<Decision>,
}

fn mark_unfinished(newest_first: &mut [Marked]) {
    for (at, marked) in newest_first.iter_mut().enumerate().filter(|(_, marked)| !marked.item.finished) {
        marked.mark = Some(if at == 0 { Decision::KeepPartial } else { Decision::Remove });
    }
}

fn pass(newest_first: &mut [Marked], count: u64, key: impl Fn(BackupTime) -> [i64; 4]) {
    let kept = newest_first.iter().filter(|marked| marked.mark == Some(Decision::Keep));
    let covered: BTreeSet<_> = kept.map(|marked| key(marked.item.time)).collect();
    let mut chosen = BTreeSet::new();
    let mut left = count;
    for Marked { item, mark } in newest_first.iter_mut().filter(|marked| marked.mark.is_none()) {
        if item.protected {
            *mark = Some(Decision::Protected);
            continue;
        }
        let key = key(item.time);
        if covered.contains(&key) {
            // Undecided: a later rule may still keep it.
            continue;
        }
        if chosen.contains(&key) {
            *mark = Some(Decision::Remove);
            continue;
        }
        let Some(rest) = left.checked_sub(1) else {
            break;
        };
        left = rest;
        chosen.insert(key);
        *mark = Some(Decision::Keep);
    }
}

#[cfg(test)]
mod tests;
