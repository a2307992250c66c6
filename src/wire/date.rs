//! Dates in the formats of HTTP and S3.
//!
//! Source: RFC 9110 §5.6.7, RFC 3339; AWS, "Elements of a request signature".

use std::time::{SystemTime, UNIX_EPOCH};

use crate::calendar;
use crate::calendar::DateTime;

/// 9999-12-31T23:59:59Z.
const LAST: i64 = 253_402_300_799;

/// A date in a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmzDate(String);

impl AmzDate {
    /// The second that contains `time`. Times before 1970 or after 9999 become the first second of 1970.
    pub fn new(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let seconds = i64::try_from(since).ok().filter(|seconds| *seconds <= LAST).unwrap_or(0);
        let DateTime { year, month, day, hour, minute, second } = DateTime::from_epoch(seconds);
        Self(format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z"))
    }

    /// As in `20130524T000000Z`.
    pub fn long(&self) -> &str {
        &self.0
    }

    /// As in `20130524`.
    pub fn short(&self) -> &str {
        self.0.get(..8).unwrap_or_default()
    }
}

/// Parses a `date` or `last-modified` header, in any of the three forms.
pub fn parse_http_date(text: &str) -> Option<SystemTime> {
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let (weekday, day, month, year, clock) = match words[..] {
        [weekday, day, month, year, clock, "GMT"] => (weekday.strip_suffix(',')?, day, month, year, clock),
        [weekday, date, clock, "GMT"] => {
            let (day, rest) = date.split_once('-')?;
            let (month, year) = rest.split_once('-')?;
            (weekday.strip_suffix(',')?, day, month, year, clock)
        }
        [weekday, month, day, clock, year] => (weekday, day, month, year, clock),
        _ => return None,
    };
    let year = match (year.len(), number(year)?) {
        (2, year @ 69..) => 1900 + year,
        (2, year) => 2000 + year,
        (_, year) => year,
    };
    let month = MONTHS.iter().position(|name| month.eq_ignore_ascii_case(name))? + 1;
    let fields: Vec<i64> = clock.split(':').map(number).collect::<Option<_>>()?;
    let &[hour, minute, second] = fields.as_slice() else { return None };
    // A leap second has no number of its own.
    let second = if second == 60 { 59 } else { second };
    let at = DateTime { year, month: i64::try_from(month).ok()?, day: number(day)?, hour, minute, second };
    let seconds = at.to_epoch()?;
    let name = WEEKDAYS[usize::try_from(seconds.div_euclid(86_400).rem_euclid(7)).ok()?];
    let named = weekday.eq_ignore_ascii_case(name) || weekday.eq_ignore_ascii_case(&name[..3]);
    if named { calendar::system_time(seconds) } else { None }
}

fn number(digits: &str) -> Option<i64> {
    let is_number = (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if is_number { digits.parse().ok() } else { None }
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
/// From that of 1970-01-01.
const WEEKDAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// Parses a time such as `2009-10-12T17:50:30.000Z`.
pub fn parse_iso8601(text: &str) -> Option<SystemTime> {
    calendar::parse_rfc3339(text.trim())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_signed_time_has_exactly_this_form() {
        let date = AmzDate::new(at(1_369_353_600) + Duration::from_millis(999));
        assert_eq!((date.long(), date.short()), ("20130524T000000Z", "20130524"));
    }

    #[test]
    fn all_three_http_date_forms_are_read() {
        let want = Some(at(784_111_777));
        assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT"), want);
        assert_eq!(parse_http_date("Sunday, 06-Nov-94 08:49:37 GMT"), want);
        assert_eq!(parse_http_date("Sun Nov  6 08:49:37 1994"), want);
        assert_eq!(parse_http_date("Sun, 06 Nov 1994 08:49:37 +0100"), None);
        assert_eq!(parse_http_date("soon"), None);
        // Another weekday, and a day that does not exist.
        assert_eq!(parse_http_date("Mon, 06 Nov 1994 08:49:37 GMT"), None);
        assert_eq!(parse_http_date("Wed, 31 Nov 1994 08:49:37 GMT"), None);
        let before = parse_http_date("Wed, 31 Dec 1969 23:59:00 GMT");
        assert_eq!(before, Some(SystemTime::UNIX_EPOCH - Duration::from_mins(1)));
    }

    #[test]
    fn times_of_listings_are_read() {
        assert_eq!(parse_iso8601("2009-10-12T17:50:30.000Z"), Some(at(1_255_369_830)));
        assert_eq!(parse_iso8601("2009-10-12T17:50:30Z"), Some(at(1_255_369_830)));
        assert_eq!(parse_iso8601("2009-10-12T19:50:30+02:00"), Some(at(1_255_369_830)));
        assert_eq!(parse_iso8601("2009-10-12"), None);
    }

    proptest! {
        #[test]
        fn dates_are_read_in_all_forms(seconds in 0..253_402_300_800_i64) {
            let time = jiff::Timestamp::new(seconds, 0).unwrap();
            let forms = [
                "%a, %d %b %Y %H:%M:%S GMT",
                "%a %b %e %H:%M:%S %Y",
                // Its years have two digits.
                "%A, %d-%b-%y %H:%M:%S GMT",
            ];
            let count = if (1970..2069).contains(&DateTime::from_epoch(seconds).year) { 3 } else { 2 };
            for form in &forms[..count] {
                let text = jiff::fmt::strtime::format(form, time).unwrap();
                prop_assert_eq!(parse_http_date(&text), SystemTime::try_from(time).ok(), "{}", text);
            }
        }

        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = (parse_http_date(&text), parse_iso8601(&text));
        }

        #[test]
        fn every_second_is_written(seconds in 0..253_402_300_800_u64) {
            prop_assert_eq!(AmzDate::new(at(seconds)).long().len(), 16);
        }
    }
}
