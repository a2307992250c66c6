//! Dates as HTTP and S3 write them.
//!
//! Sources: RFC 9110 §5.6.7; the algorithms between days and dates are those of Howard Hinnant,
//! "chrono-Compatible Low-Level Date Algorithms".

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// The time by a clock with this offset in seconds.
#[allow(clippy::disallowed_methods, reason = "the real clock of a real server")]
pub(super) fn now(skew: i64) -> SystemTime {
    let off = Duration::from_secs(skew.unsigned_abs());
    if skew < 0 { SystemTime::now() - off } else { SystemTime::now() + off }
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
pub fn http(time: SystemTime) -> String {
    let seconds = seconds(time);
    let (year, month, day) = civil(seconds.div_euclid(86400));
    let weekday = DAYS[usize::try_from(seconds.div_euclid(86400).rem_euclid(7)).unwrap_or(0)];
    let month = MONTHS[usize::try_from(month - 1).unwrap_or(0)];
    format!("{weekday}, {day:02} {month} {year:04} {} GMT", clock(seconds))
}

/// `1994-11-06T08:49:37.000Z`
pub fn iso(time: SystemTime) -> String {
    let seconds = seconds(time);
    let (year, month, day) = civil(seconds.div_euclid(86400));
    format!("{year:04}-{month:02}-{day:02}T{}.000Z", clock(seconds))
}

/// Seconds between a time and a text like `19941106T084937Z`, if it is one.
pub(super) fn distance(amz_date: &str, time: SystemTime) -> Option<u64> {
    let (date, clock) = amz_date.strip_suffix('Z')?.split_once('T')?;
    if date.len() != 8 || clock.len() != 6 || !amz_date.is_ascii() {
        return None;
    }
    let number = |text: &str| text.parse::<i64>().ok();
    let days = days(number(&date[..4])?, number(&date[4..6])?, number(&date[6..])?);
    let of_day = number(&clock[..2])? * 3600 + number(&clock[2..4])? * 60 + number(&clock[4..])?;
    Some((days * 86400 + of_day).abs_diff(seconds(time)))
}

fn seconds(time: SystemTime) -> i64 {
    let whole = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    time.duration_since(UNIX_EPOCH).map_or_else(|error| -whole(error.duration()), whole)
}

fn clock(seconds: i64) -> String {
    let second = seconds.rem_euclid(86400);
    format!("{:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

/// Year, month and day of a day since 1970.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// The day since 1970 of a date.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let month = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}
