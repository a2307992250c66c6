//! Dates in the formats of HTTP and S3.
//!
//! Source: RFC 9110 §5.6.7, RFC 3339; AWS, "Elements of a request signature".

use std::time::SystemTime;

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, fmt::strtime};

/// A date in a signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AmzDate(String);

impl AmzDate {
    /// The second that contains `time`. Times outside the calendar become its first second.
    pub fn new(time: SystemTime) -> Self {
        let timestamp = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
        Self(strtime::format("%Y%m%dT%H%M%SZ", timestamp).unwrap_or_else(|_| "19700101T000000Z".to_owned()))
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
    let text = text.trim();
    let forms = ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %d %H:%M:%S %Y"];
    let parsed = forms.iter().find_map(|form| DateTime::strptime(form, text).ok())?;
    TimeZone::UTC.to_timestamp(parsed).ok()?.try_into().ok()
}

/// Parses a time such as `2009-10-12T17:50:30.000Z`.
pub fn parse_iso8601(text: &str) -> Option<SystemTime> {
    text.trim().parse::<Timestamp>().ok()?.try_into().ok()
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
        fn any_text_is_read_or_refused(text: String) {
            let _ = (parse_http_date(&text), parse_iso8601(&text));
        }

        #[test]
        fn every_second_is_written(seconds in 0..253_402_300_800_u64) {
            prop_assert_eq!(AmzDate::new(at(seconds)).long().len(), 16);
        }
    }
}
