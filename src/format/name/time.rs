use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::calendar::DateTime;
use crate::error::ParseError;
use crate::format::name::{NameFault, NameKind};
use crate::wording::text_as_json;

/// Time of a snapshot, in whole seconds: the last part of its name.
///
/// Written `YYYY-MM-DDTHH:MM:SSZ`, always in UTC and 20 bytes wide, so that the order of the texts is the order of the
/// times. From 1970-01-01T00:00:01Z to 9999-12-31T23:59:59Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BackupTime {
    // INVARIANT: 1 to LAST.
    epoch: u64,
}

impl BackupTime {
    /// The earliest time.
    pub(crate) const MIN: Self = Self { epoch: 1 };
    /// The latest time, the last whose year has four digits.
    #[cfg(test)]
    pub(crate) const MAX: Self = Self { epoch: LAST };

    /// The time this number of seconds after 1970-01-01T00:00:00Z.
    ///
    /// # Errors
    /// If `epoch` is below 1 or after the year 9999.
    pub(crate) fn from_epoch(epoch: i64) -> Result<Self, ParseError> {
        match u64::try_from(epoch) {
            Ok(epoch @ 1..=LAST) => Ok(Self { epoch }),
            _ => Err(NameKind::BackupTime.fault(NameFault::Range)),
        }
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub const fn epoch(self) -> i64 {
        self.epoch.cast_signed()
    }

    /// Civil date and time at `offset` seconds east of UTC.
    pub(crate) fn civil(self, offset: i32) -> DateTime {
        DateTime::from_epoch(self.epoch() + i64::from(offset))
    }
}

/// 9999-12-31T23:59:59Z.
const LAST: u64 = 253_402_300_799;

impl TryFrom<i64> for BackupTime {
    type Error = ParseError;

    /// The time this number of seconds after 1970-01-01T00:00:00Z: from 1 to the end of the year 9999.
    fn try_from(epoch: i64) -> Result<Self, ParseError> {
        Self::from_epoch(epoch)
    }
}

impl TryFrom<SystemTime> for BackupTime {
    type Error = ParseError;

    /// Truncates to whole seconds.
    fn try_from(time: SystemTime) -> Result<Self, ParseError> {
        let range = || NameKind::BackupTime.fault(NameFault::Range);
        let since = time.duration_since(UNIX_EPOCH).map_err(|_| range())?;
        Self::from_epoch(i64::try_from(since.as_secs()).map_err(|_| range())?)
    }
}

impl From<BackupTime> for SystemTime {
    fn from(time: BackupTime) -> Self {
        UNIX_EPOCH + Duration::from_secs(time.epoch)
    }
}

impl FromStr for BackupTime {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let fault = |fault| NameKind::BackupTime.fault(fault);
        let &[y0, y1, y2, y3, b'-', m0, m1, b'-', d0, d1, b'T', h0, h1, b':', i0, i1, b':', s0, s1, b'Z'] =
            text.as_bytes()
        else {
            return Err(fault(if text.is_empty() { NameFault::Empty } else { NameFault::Form }));
        };
        let two = |tens: u8, ones: u8| match (tens, ones) {
            (b'0'..=b'9', b'0'..=b'9') => Ok(i64::from(tens - b'0') * 10 + i64::from(ones - b'0')),
            _ => Err(fault(NameFault::Character)),
        };
        let at = DateTime {
            year: two(y0, y1)? * 100 + two(y2, y3)?,
            month: two(m0, m1)?,
            day: two(d0, d1)?,
            hour: two(h0, h1)?,
            minute: two(i0, i1)?,
            second: two(s0, s1)?,
        };
        Self::from_epoch(at.to_epoch().ok_or_else(|| fault(NameFault::Range))?)
    }
}

text_as_json!(BackupTime);

impl fmt::Display for BackupTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}Z", self.civil(0))
    }
}

impl fmt::Debug for BackupTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BackupTime({self})")
    }
}
