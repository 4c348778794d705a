//! Timestamps in the client's unit to Unix nanoseconds, exactly.

use super::TimestampUnit;
use super::fault::Fault;
use crate::point::NO_TIMESTAMP;

impl TimestampUnit {
    /// Nanoseconds of one; `integer` decides when the unit goes by magnitude.
    #[inline]
    fn ns(self, integer: u64) -> i64 {
        match self {
            TimestampUnit::Hours => 3_600_000_000_000,
            TimestampUnit::Minutes => 60_000_000_000,
            TimestampUnit::S => 1_000_000_000,
            TimestampUnit::Ms => 1_000_000,
            TimestampUnit::Us => 1_000,
            TimestampUnit::Ns => 1,
            TimestampUnit::ByMagnitude => match integer {
                0..100_000_000_000 => 1_000_000_000,
                100_000_000_000..100_000_000_000_000 => 1_000_000,
                100_000_000_000_000..100_000_000_000_000_000 => 1_000,
                _ => 1,
            },
        }
    }
}

/// The one value of an `i64` that is no time is the sign for "none": it is refused.
#[inline]
pub(super) fn from_integer(value: i64, unit: TimestampUnit) -> Result<i64, Fault> {
    let ns = value.checked_mul(unit.ns(value.unsigned_abs())).ok_or(Fault::BadTimestamp)?;
    if ns == NO_TIMESTAMP { Err(Fault::BadTimestamp) } else { Ok(ns) }
}

/// A JSON number as it was written. What is finer than a nanosecond is cut off (towards zero).
///
/// Decimal arithmetic, because a time in seconds needs 19 digits and an `f64` has 16: 1700000000.123456789 would come
/// out 23 ns late.
pub(super) fn from_decimal(text: &[u8], unit: TimestampUnit) -> Result<i64, Fault> {
    if matches!(unit, TimestampUnit::Hours | TimestampUnit::Minutes) {
        // No power of ten: fractions have no exact decimal shift, and nobody sends them.
        let whole = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).ok_or(Fault::BadTimestamp)?;
        return from_integer(whole, unit);
    }
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let (number, exponent) = match text.iter().position(|byte| matches!(byte, b'e' | b'E')) {
        Some(at) => (&text[..at], exponent(&text[at + 1..])),
        None => (text, 0),
    };
    let point = number.iter().position(|&byte| byte == b'.').unwrap_or(number.len());
    let digits = number.iter().filter(|&&byte| byte != b'.').map(|byte| byte.wrapping_sub(b'0'));
    if digits.clone().any(|digit| digit > 9) {
        return Err(Fault::BadTimestamp);
    }
    // how many of the digits stand before the point once the exponent has moved it
    let before = point as i64 + exponent;
    let integer = leading(digits.clone(), before).ok_or(Fault::BadTimestamp)?;
    let scale = unit.ns(u64::try_from(integer).map_err(|_| Fault::BadTimestamp)?);
    let magnitude = leading(digits, before + i64::from(scale.ilog10())).ok_or(Fault::BadTimestamp)?;
    let ns = if negative { -magnitude } else { magnitude };
    i64::try_from(ns).ok().filter(|&ns| ns != NO_TIMESTAMP).ok_or(Fault::BadTimestamp)
}

/// The first `count` digits as a number, zeros appended where there are fewer. `None` when beyond any time.
fn leading(digits: impl Iterator<Item = u8>, count: i64) -> Option<i128> {
    let mut value = 0_i128;
    let mut taken = 0;
    for digit in digits {
        if taken >= count {
            return Some(value);
        }
        value = value * 10 + i128::from(digit);
        taken += 1;
        if value > i128::from(u64::MAX) {
            return None;
        }
    }
    if value == 0 {
        return Some(0);
    }
    let power = u32::try_from((count - taken).max(0)).ok()?;
    10_i128.checked_pow(power)?.checked_mul(value).filter(|&value| value <= i128::from(u64::MAX))
}

/// Saturates where no number of digits that fits in a body could bring the time back into range.
fn exponent(text: &[u8]) -> i64 {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    let magnitude = text.iter().fold(0_i64, |sum, byte| {
        sum.saturating_mul(10).saturating_add(i64::from(byte.wrapping_sub(b'0'))).min(1 << 40)
    });
    if negative { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn fractions_are_exact_to_the_nanosecond() {
        for (text, unit, ns) in [
            ("1700000000.123456789", TimestampUnit::S, Some(1_700_000_000_123_456_789)),
            ("1700000000.123", TimestampUnit::ByMagnitude, Some(1_700_000_000_123_000_000)),
            ("1700000000123.5", TimestampUnit::ByMagnitude, Some(1_700_000_000_123_500_000)),
            ("1.7e9", TimestampUnit::S, Some(1_700_000_000_000_000_000)),
            ("17E+8", TimestampUnit::S, Some(1_700_000_000_000_000_000)),
            ("17000000000e-1", TimestampUnit::S, Some(1_700_000_000_000_000_000)),
            ("0.0000000019", TimestampUnit::S, Some(1)),
            ("-0.0000000019", TimestampUnit::S, Some(-1)),
            ("-1.5", TimestampUnit::S, Some(-1_500_000_000)),
            ("0e99999999999999999999999", TimestampUnit::S, Some(0)),
            ("1e-99999999999999999999999", TimestampUnit::S, Some(0)),
            ("1e99999999999999999999999", TimestampUnit::S, None),
            ("9223372036.854775807", TimestampUnit::S, Some(i64::MAX)),
            ("9223372036.854775808", TimestampUnit::S, None),
            ("-9223372036.854775807", TimestampUnit::S, Some(-i64::MAX)),
            ("-9223372036.854775808", TimestampUnit::S, None),
            ("5.9", TimestampUnit::Ns, Some(5)),
            ("1e19", TimestampUnit::Ns, None),
        ] {
            assert_eq!(from_decimal(text.as_bytes(), unit).ok(), ns, "{text} {unit:?}");
        }
    }

    #[test]
    fn the_unit_goes_by_magnitude_of_either_sign() {
        let unit = TimestampUnit::ByMagnitude;
        for (value, ns) in [
            (99_999_999_999, None), // the year 5138 is beyond 2262
            (9_000_000_000, Some(9_000_000_000_000_000_000)),
            (100_000_000_000, Some(100_000_000_000_000_000)),
            (99_999_999_999_999, None),
            (100_000_000_000_000, Some(100_000_000_000_000_000)),
            (99_999_999_999_999_999, None),
            (100_000_000_000_000_000, Some(100_000_000_000_000_000)),
            (-100_000_000_000, Some(-100_000_000_000_000_000)),
            (0, Some(0)),
            (i64::MIN, None),
        ] {
            assert_eq!(from_integer(value, unit).ok(), ns, "{value}");
        }
    }

    proptest! {
        #[test]
        fn an_integer_means_the_same_with_a_fraction_of_zero(value in any::<i64>(), small in any::<i32>()) {
            use TimestampUnit::*;
            for unit in [S, Ms, Us, Ns, ByMagnitude] {
                for value in [value, i64::from(small)] {
                    let integer = from_integer(value, unit);
                    prop_assert_eq!(from_decimal(value.to_string().as_bytes(), unit), integer);
                    prop_assert_eq!(from_decimal(format!("{value}.000e0").as_bytes(), unit), integer);
                    prop_assert_eq!(from_decimal(format!("{value}000E-3").as_bytes(), unit), integer);
                }
            }
        }
    }
}
