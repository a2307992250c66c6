//! Dates and times of day of the Gregorian calendar, for stored names, key files, signatures and retention.
//!
//! Source: ISO 8601 for the calendar and its weeks, RFC 3339 for the text. Days are counted in eras of 400 years, which all have the
//! same length, from years that begin in March: a leap day is then the last day of its year.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY_SECONDS: i64 = 86_400;
const ERA_DAYS: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH_DAYS: i64 = 719_468;

/// A date and a time of day, in whole seconds. Written as in `2009-10-12T17:50:30`, the time zone is left to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct DateTime {
    pub year: i64,
    /// 1 to 12.
    pub month: i64,
    /// 1 to 31.
    pub day: i64,
    pub hour: i64,
    pub minute: i64,
    pub second: i64,
}

impl DateTime {
    /// The time this number of seconds after 1970-01-01T00:00:00.
    pub(crate) fn from_epoch(seconds: i64) -> Self {
        let (days, second) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
        let (era, day) = ((days + EPOCH_DAYS).div_euclid(ERA_DAYS), (days + EPOCH_DAYS).rem_euclid(ERA_DAYS));
        // Days of a year without leap days, which come every 1461 days, but not every 36,524.
        let year = (day - day / 1460 + day / 36_524 - day / (ERA_DAYS - 1)) / 365;
        let of_year = day - (365 * year + year / 4 - year / 100);
        // From March on, five months have 153 days.
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            year: era * 400 + year + i64::from(month <= 2),
            month,
            day,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
        }
    }

    /// Seconds after 1970-01-01T00:00:00. `None` if the calendar or the clock has no such time.
    pub(crate) fn to_epoch(self) -> Option<i64> {
        let days = days(self.year, self.month, self.day);
        let seconds = days * DAY_SECONDS + self.hour * 3600 + self.minute * 60 + self.second;
        (Self::from_epoch(seconds) == self).then_some(seconds)
    }

    /// The ISO year and the week in it: 2024-12-30 lies in the first week of 2025.
    pub(crate) fn iso_week(self) -> (i64, i64) {
        // A week belongs to the year of its Thursday, the weekday of 1970-01-01.
        let day = days(self.year, self.month, self.day);
        let thursday = day + 3 - (day + 3).rem_euclid(7);
        let year = Self::from_epoch(thursday * DAY_SECONDS).year;
        (year, (thursday - days(year, 1, 1)) / 7 + 1)
    }
}

impl fmt::Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { year, month, day, hour, minute, second } = *self;
        let Some(century) = (0..10_000).contains(&year).then_some(year / 100) else {
            return write!(f, "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
        };
        // Each path of a snapshot has a time: a listing formats thousands.
        let mut text = *b"0000-00-00T00:00:00";
        let digit = |number: i64| b'0' + u8::try_from(number.rem_euclid(10)).unwrap_or(0);
        let fields = [century, year % 100, month, day, hour, minute, second];
        for (at, field) in [0, 2, 5, 8, 11, 14, 17].into_iter().zip(fields) {
            (text[at], text[at + 1]) = (digit(field / 10), digit(field));
        }
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// The number of days from 1970-01-01 to a date.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let of_era = year.rem_euclid(400);
    let month = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * month + 2) / 5 + day - 1;
    year.div_euclid(400) * ERA_DAYS + of_era * 365 + of_era / 4 - of_era / 100 + of_year - EPOCH_DAYS
}

/// Parses a time such as `2009-10-12T17:50:30.000Z` or `2009-10-12T19:50:30+02:00`, between the years 0 and 9999.
pub(crate) fn parse_rfc3339(text: &str) -> Option<SystemTime> {
    let (main, rest) = text.split_at_checked(19)?;
    let field = |from: usize, to: usize| number(main.get(from..to)?);
    let separators = [4, 7, 10, 13, 16].map(|at| main.as_bytes()[at].to_ascii_uppercase());
    let (time, leap) = match field(17, 19)? {
        // A leap second has no number of its own.
        60 => (59, true),
        second => (second, false),
    };
    let at = DateTime {
        year: field(0, 4)?,
        month: field(5, 7)?,
        day: field(8, 10)?,
        hour: field(11, 13)?,
        minute: field(14, 16)?,
        second: time,
    };
    let (nanos, rest) = fraction(rest)?;
    let nanos = if leap { 0 } else { nanos };
    let time = system_time(at.to_epoch()?.checked_sub(offset(rest)?)?)?;
    if separators == *b"--T::" { time.checked_add(Duration::from_nanos(nanos)) } else { None }
}

/// The time this number of seconds after 1970-01-01T00:00:00Z.
pub(crate) fn system_time(seconds: i64) -> Option<SystemTime> {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { UNIX_EPOCH.checked_sub(distance) } else { UNIX_EPOCH.checked_add(distance) }
}

fn number(digits: &str) -> Option<i64> {
    if digits.bytes().all(|byte| byte.is_ascii_digit()) { digits.parse().ok() } else { None }
}

/// Nanoseconds of a fraction such as `.000`, which may be missing, and the text after it.
fn fraction(text: &str) -> Option<(u64, &str)> {
    let Some(text) = text.strip_prefix('.') else { return Some((0, text)) };
    let end = text.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let nanos = format!("{:0<9}", digits.get(..9).unwrap_or(digits)).parse().ok()?;
    (!digits.is_empty()).then_some((nanos, rest))
}

/// Seconds east of UTC: `Z`, or `+02:00`.
fn offset(text: &str) -> Option<i64> {
    if text.eq_ignore_ascii_case("z") {
        return Some(0);
    }
    let (hours, minutes) = text.get(1..)?.split_once(':')?;
    let (hours, minutes) = match (hours.len(), minutes.len()) {
        (2, 2) => (number(hours)?, number(minutes)?),
        _ => return None,
    };
    let seconds = (hours < 24 && minutes < 60).then_some(hours * 3600 + minutes * 60)?;
    match text.as_bytes().first()? {
        b'+' => Some(seconds),
        b'-' => Some(-seconds),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use jiff::civil;
    use proptest::prelude::*;

    use super::*;

    /// 0000-01-01 and 9999-12-31T23:59:59.
    const YEARS: std::ops::Range<i64> = -62_167_219_200..253_402_300_800;

    fn expected(seconds: i64) -> civil::DateTime {
        civil::date(1970, 1, 1).at(0, 0, 0, 0) + jiff::SignedDuration::from_secs(seconds)
    }

    fn check(seconds: i64) {
        let (at, expected) = (DateTime::from_epoch(seconds), expected(seconds));
        let fields = [at.year, at.month, at.day, at.hour, at.minute, at.second];
        let date = [i64::from(expected.year()), expected.month().into(), expected.day().into()];
        let time = [expected.hour(), expected.minute(), expected.second()].map(i64::from);
        assert_eq!(fields, [date, time].concat()[..]);
        assert_eq!(at.to_epoch(), Some(seconds));
        let week = expected.date().iso_week_date();
        assert_eq!(at.iso_week(), (week.year().into(), week.week().into()), "{at:?}");
    }

    #[test]
    fn every_day_of_the_calendar_has_its_date_and_week() {
        // All days of an era and of the next years, and the ends of the calendar.
        (-719_500..=-573_000).chain(-800..=33_000).for_each(|day| check(day * DAY_SECONDS));
        [YEARS.start, YEARS.end - 1].into_iter().for_each(check);
    }

    #[test]
    fn a_time_that_does_not_exist_has_no_number() {
        let at = |year, month, day| DateTime { year, month, day, hour: 0, minute: 0, second: 0 };
        assert!(at(2024, 2, 29).to_epoch().is_some() && at(2000, 2, 29).to_epoch().is_some());
        for (year, month, day) in
            [(2023, 2, 29), (1900, 2, 29), (2024, 4, 31), (2024, 13, 1), (2024, 0, 1), (2024, 1, 0)]
        {
            assert_eq!(at(year, month, day).to_epoch(), None, "{year}-{month}-{day}");
        }
        for (hour, minute, second) in [(24, 0, 0), (0, 60, 0), (0, 0, 60)] {
            assert_eq!(DateTime { hour, minute, second, ..at(2024, 1, 1) }.to_epoch(), None);
        }
    }

    proptest! {
        #[test]
        fn every_second_of_the_calendar_has_its_date_and_time(seconds in YEARS) {
            check(seconds);
        }
    }

    proptest! {
        #[test]
        fn times_are_read_as_they_are_written(seconds in YEARS, nanos in 0..1_000_000_000_i32, minutes in -1439..1440_i64) {
            let time = jiff::Timestamp::new(seconds, 0).unwrap() + jiff::SignedDuration::new(0, nanos);
            prop_assert_eq!(parse_rfc3339(&time.to_string()), SystemTime::try_from(time).ok());
            let there = DateTime::from_epoch(seconds + minutes * 60);
            let DateTime { year, month, day, hour, minute, second } = there;
            let text = format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}");
            prop_assert_eq!(there.to_string(), text);
            prop_assume!((0..10_000).contains(&there.year));
            let sign = if minutes < 0 { '-' } else { '+' };
            let (hours, part) = (minutes.abs() / 60, minutes.abs() % 60);
            let text = format!("{there}{sign}{hours:02}:{part:02}");
            prop_assert_eq!(parse_rfc3339(&text), SystemTime::try_from(jiff::Timestamp::new(seconds, 0).unwrap()).ok());
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*|[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}[-+.Z0-9:]{0,8}|[\\PC]{15,25}") {
            let _ = parse_rfc3339(&text);
        }
    }
}
