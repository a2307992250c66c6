//! Dates in key files.

use std::time::{Duration, SystemTime};

use crate::calendar;
use crate::calendar::DateTime;
use crate::crypt::errors::KeyError;

/// 9999-12-30T22:00:00Z: its year has four digits in every time zone.
const MAX_SECONDS: u64 = 253_402_207_200;

/// A date of RFC 3339 to the second. Its text stays as it was read.
#[derive(Clone, Debug)]
pub(super) struct KeyTime {
    at: SystemTime,
    text: String,
}

impl KeyTime {
    /// A date in UTC, to the second. A time outside the years 1970 to 9999 becomes the nearest date in them.
    pub(super) fn at(time: SystemTime) -> Self {
        let seconds = time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let seconds = seconds.min(MAX_SECONDS);
        let date = DateTime::from_epoch(i64::try_from(seconds).unwrap_or_default());
        let at = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        Self { at: at.unwrap_or(SystemTime::UNIX_EPOCH), text: format!("{date}+00:00") }
    }

    /// Reads `YYYY-MM-DDTHH:MM:SS` with `Z`, `+HH:MM` or `-HH:MM` behind it.
    pub(super) fn parse(text: &str) -> Result<Self, KeyError> {
        const FORM: &[u8] = b"0000-00-00T00:00:00+00:00";
        const NOT_A_DATE: KeyError = KeyError::Damaged("a date is not one of RFC 3339");
        let (date, offset) = text.split_at_checked(19).ok_or(NOT_A_DATE)?;
        let has_form = |text: &str, form: &[u8]| {
            text.len() == form.len()
                && text.bytes().zip(form).all(|(byte, wanted)| match wanted {
                    b'0' => byte.is_ascii_digit(),
                    b'+' => matches!(byte, b'+' | b'-'),
                    _ => byte == *wanted,
                })
        };
        if !has_form(date, &FORM[..19]) || (offset != "Z" && !has_form(offset, &FORM[19..])) {
            return Err(NOT_A_DATE);
        }
        Ok(Self { at: calendar::parse_rfc3339(text).ok_or(NOT_A_DATE)?, text: text.to_owned() })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    pub(super) fn time(&self) -> SystemTime {
        self.at
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seconds(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn dates_keep_the_offset_that_was_read() {
        for text in ["2026-11-23T12:37:07+00:00", "2026-11-23T14:37:07+02:00", "2026-11-23T12:37:07Z"] {
            let date = KeyTime::parse(text).unwrap();
            assert_eq!((date.as_str(), date.time()), (text, seconds(1_795_437_427)), "{text}");
        }
        assert_eq!(KeyTime::at(seconds(1_795_437_427)).as_str(), "2026-11-23T12:37:07+00:00");
        assert_eq!(KeyTime::at(seconds(u64::from(u32::MAX) << 20)).as_str(), "9999-12-30T22:00:00+00:00");
        assert_eq!(KeyTime::at(SystemTime::UNIX_EPOCH - Duration::from_secs(1)).time(), seconds(0));
    }

    #[test]
    fn other_dates_are_refused() {
        for text in [
            "",
            "2026-11-23",
            "2026-11-23T12:37:07",
            "2026-11-23 12:37:07Z",
            "2026-11-23T12:37:07z",
            "2026-11-23T12:37:07.5Z",
            "2026-11-23T12:37:07+0000",
            "2026-11-23T12:37:07+00:00[UTC]",
            "2026-13-23T12:37:07Z",
            "2026-11-23T12:37:07+99:00",
            "２026-11-23T12:37:07Z",
        ] {
            assert!(KeyTime::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn dates_are_read_as_they_are_written(at in 0..=MAX_SECONDS, any in ".{0,26}") {
            let date = KeyTime::at(seconds(at));
            prop_assert_eq!(KeyTime::parse(date.as_str()).unwrap().time(), seconds(at));
            let _ = KeyTime::parse(&any);
        }
    }
}
