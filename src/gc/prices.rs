//! Prices of a provider, and costs of a plan.

use std::fmt;
use std::ops::AddAssign;
use std::str::FromStr;
use std::time::Duration;

use crate::error::ParseError;

/// Millionths of a unit of currency.
const UNIT: u64 = 1_000_000;
/// Digits after the point.
const PLACES: usize = 6;
/// Bytes of a gigabyte.
const GIGABYTE: u128 = 1_000_000_000;
/// Seconds of a month of 30 days.
const MONTH_SECONDS: u128 = 30 * 86_400;

/// An amount of money: a whole number of millionths of a unit, in the currency of the caller.
///
/// As text it is a decimal number with at most six digits after the point, such as `0.023`. No binary fraction is involved, so sums are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Amount(u64);

impl Amount {
    /// This number of millionths: 23,000 are 0.023.
    pub const fn from_millionths(millionths: u64) -> Self {
        Self(millionths)
    }

    /// The number of millionths.
    pub const fn millionths(self) -> u64 {
        self.0
    }
}

impl AddAssign for Amount {
    /// Adds up to the largest amount.
    fn add_assign(&mut self, other: Self) {
        self.0 = self.0.saturating_add(other.0);
    }
}

/// The exact decimal number, with at least two digits after the point.
impl fmt::Display for Amount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fraction = format!("{:06}", self.0 % UNIT);
        let shown = fraction.trim_end_matches('0').len().max(2);
        write!(f, "{}.{}", self.0 / UNIT, &fraction[..shown])
    }
}

impl FromStr for Amount {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let flawed = || ParseError::new("not an amount such as 0.023: digits, and at most six after a point");
        let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let ends_in_point = text.contains('.') && fraction.is_empty();
        if whole.is_empty()
            || ends_in_point
            || fraction.len() > PLACES
            || !is_number(whole)
            || !is_number(fraction)
        {
            return Err(flawed());
        }
        let millionths: u64 = format!("{fraction:0<PLACES$}").parse().map_err(|_| flawed())?;
        let whole = whole.parse::<u64>().ok().and_then(|whole| whole.checked_mul(UNIT));
        whole.and_then(|whole| whole.checked_add(millionths)).map(Self).ok_or_else(flawed)
    }
}

/// The prices of a provider, so that a plan says what its execution costs and what it saves.
///
/// They decide nothing: set [`keep_packs`](crate::gc::GcOptions::keep_packs) to the minimum duration if younger packs shall stay. All
/// prices are in one currency. A price that is not set is
/// 0. Deletions have no price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Prices {
    gets: Amount,
    minimum_days: u32,
    puts: Amount,
    read: Amount,
    stored: Amount,
}

impl Prices {
    /// The price of 1,000 reads.
    pub fn thousand_gets(mut self, price: Amount) -> Self {
        self.gets = price;
        self
    }

    /// The price of 1,000 puts.
    pub fn thousand_puts(mut self, price: Amount) -> Self {
        self.puts = price;
        self
    }

    /// The price of reading a gigabyte of 1,000,000,000 bytes, where this program runs: 0 inside of the provider's network.
    pub fn gigabyte_read(mut self, price: Amount) -> Self {
        self.read = price;
        self
    }

    /// The price of storing a gigabyte of 1,000,000,000 bytes for a month of 30 days.
    pub fn gigabyte_month(mut self, price: Amount) -> Self {
        self.stored = price;
        self
    }

    /// The number of days that an object is billed for, however early it is deleted.
    pub fn minimum_days(mut self, days: u32) -> Self {
        self.minimum_days = days;
        self
    }
}

/// Cost and saving of an action of a plan.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
pub struct PackCost {
    /// The part of `once` for the rest of the minimum duration of deleted packs.
    pub early_deletion: Amount,
    /// The price of the requests, of the bytes read, and of early deletion, rounded up.
    pub once: Amount,
    /// The price of a month of the bytes that become free, rounded down.
    pub saved_monthly: Amount,
}

/// The part of an action that has a price.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Work {
    /// For each deleted pack, its bytes times the seconds that are left of its minimum duration.
    pub(super) early_byte_seconds: u128,
    pub(super) freed_bytes: u64,
    pub(super) gets: u64,
    pub(super) puts: u64,
    pub(super) read_bytes: u64,
}

impl Prices {
    /// Bytes times seconds that are billed after the deletion of an object of this age.
    pub(super) fn early_byte_seconds(&self, bytes: u64, age: Duration) -> u128 {
        let minimum = Duration::from_hours(24).saturating_mul(self.minimum_days);
        u128::from(bytes) * u128::from(minimum.saturating_sub(age).as_secs())
    }

    pub(super) fn cost(&self, work: Work) -> PackCost {
        let part = |count: u64, price: Amount| u128::from(count) * u128::from(price.0);
        let early = work.early_byte_seconds.saturating_mul(self.stored.0.into());
        let early = early.div_ceil(GIGABYTE * MONTH_SECONDS);
        let requests = part(work.gets, self.gets).saturating_add(part(work.puts, self.puts)).div_ceil(1000);
        let once = requests + part(work.read_bytes, self.read).div_ceil(GIGABYTE) + early;
        PackCost {
            early_deletion: amount(early),
            once: amount(once),
            saved_monthly: amount(part(work.freed_bytes, self.stored) / GIGABYTE),
        }
    }
}

fn amount(millionths: u128) -> Amount {
    Amount(u64::try_from(millionths).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_amount_is_an_exact_decimal_number() {
        for (text, millionths, shown) in [
            ("0", 0, "0.00"),
            ("0.023", 23_000, "0.023"),
            ("83.89", 83_890_000, "83.89"),
            ("5", 5_000_000, "5.00"),
            ("0.000001", 1, "0.000001"),
            ("007.5", 7_500_000, "7.50"),
            ("18446744073709.551615", u64::MAX, "18446744073709.551615"),
        ] {
            let amount: Amount = text.parse().unwrap();
            assert_eq!((amount.millionths(), amount.to_string().as_str()), (millionths, shown));
        }
        for text in
            ["", ".", ".5", "1.", "1.0000001", "-1", "+1", "1,5", "1e3", "0x1", " 1", "18446744073709.551616"]
        {
            assert!(text.parse::<Amount>().is_err(), "{text}");
        }
    }

    #[test]
    fn costs_are_rounded_up_and_savings_down() {
        let price = Amount::from_millionths;
        let prices = Prices::default()
            .thousand_puts(price(5_000))
            .thousand_gets(price(400))
            .gigabyte_read(price(90_000))
            .gigabyte_month(price(23_000))
            .minimum_days(30);
        let work = Work { gets: 1, puts: 1, read_bytes: 1, freed_bytes: 1, early_byte_seconds: 1 };
        let cost = prices.cost(work);
        // 5.4 for the requests, and less than one for each of the others.
        assert_eq!((cost.once, cost.early_deletion, cost.saved_monthly), (price(8), price(1), price(0)));
        let early_byte_seconds = prices.early_byte_seconds(2_000_000_000, Duration::from_hours(20 * 24));
        let gb = 1_000_000_000;
        let work = Work { gets: 1_000, puts: 2_000, read_bytes: 3 * gb, freed_bytes: gb, early_byte_seconds };
        let cost = prices.cost(work);
        // A third of a month of two gigabytes.
        assert_eq!(cost.early_deletion, price(15_334));
        assert_eq!(cost.once, price(400 + 10_000 + 270_000 + 15_334));
        assert_eq!(cost.saved_monthly, price(23_000));
        assert_eq!(prices.early_byte_seconds(1, Duration::from_hours(31 * 24)), 0);
    }

    proptest! {
        #[test]
        fn amounts_are_read_as_they_are_written(millionths: u64) {
            let amount = Amount(millionths);
            prop_assert_eq!(amount.to_string().parse(), Ok(amount));
        }

        #[test]
        fn no_text_and_no_price_panics(text: String, numbers: [u64; 6], days: u32, seconds: u64) {
            let _ = text.parse::<Amount>();
            let [puts, gets, read, stored, bytes, count] = numbers;
            let prices = Prices::default()
                .thousand_puts(Amount(puts))
                .thousand_gets(Amount(gets))
                .gigabyte_read(Amount(read))
                .gigabyte_month(Amount(stored))
                .minimum_days(days);
            let early_byte_seconds = prices.early_byte_seconds(bytes, Duration::from_secs(seconds));
            prices.cost(Work { early_byte_seconds, freed_bytes: bytes, gets: count, puts: count, read_bytes: bytes });
        }
    }
}
