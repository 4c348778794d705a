//! Decimal numbers, fast when they are short.
//!
//! A number of up to 19 digits is gathered in a `u64`, eight digits a step. When that is at most 2^53 and the power
//! of ten at most 22, both are exact as `f64`, so one correctly rounded multiplication or division gives the bits that
//! `str::parse` gives (Clinger, "How to read floating point numbers accurately", 1990). All others go to `str::parse`.

/// A number taken apart: `-1 if negative * mantissa * 10^exponent`, if `exact`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decimal {
    pub mantissa: u64,
    pub exponent: i32,
    pub negative: bool,
    /// All digits are in `mantissa`, and `exponent` did not saturate
    pub exact: bool,
    /// No point and no exponent was written
    pub integer: bool,
}

/// Reads `-? digits? (. digits?)? ([eE] [+-]? digits)?` with at least one digit before the exponent, as far as it goes.
#[inline]
pub(super) fn scan(bytes: &[u8]) -> Option<(Decimal, usize)> {
    let negative = bytes.first() == Some(&b'-');
    let start = usize::from(negative);
    let mut mantissa = 0;
    let mut at = digits(bytes, start, &mut mantissa);
    let mut count = at - start;
    let mut exponent = 0_i32;
    let mut integer = true;
    if bytes.get(at) == Some(&b'.') {
        let end = digits(bytes, at + 1, &mut mantissa);
        let fraction = end - at - 1;
        count += fraction;
        exponent = -i32::try_from(fraction).unwrap_or(i32::MAX);
        integer = false;
        at = end;
    }
    if count == 0 {
        return None;
    }
    let mut exact = count <= 19; // 10^19 < 2^64
    if let Some(b'e' | b'E') = bytes.get(at) {
        let sign = bytes.get(at + 1).copied();
        let first = at + 1 + usize::from(matches!(sign, Some(b'+' | b'-')));
        let mut written = 0;
        let end = digits(bytes, first, &mut written);
        if end > first {
            exact &= end - first <= 8;
            let written = if end - first <= 8 { written as i32 } else { 0 };
            exponent = exponent.saturating_add(if sign == Some(b'-') { -written } else { written });
            integer = false;
            at = end;
        }
    }
    Some((Decimal { mantissa, exponent, negative, exact, integer }, at))
}

impl Decimal {
    /// The nearest `f64`; `text` is what was scanned. Overflow gives an infinity.
    #[inline]
    pub(super) fn to_f64(self, text: &[u8]) -> f64 {
        if self.exact && self.mantissa <= 1 << 53 && (-22..=22).contains(&self.exponent) {
            let magnitude = self.mantissa as f64;
            let power = POWERS_OF_TEN[self.exponent.unsigned_abs() as usize];
            let magnitude = if self.exponent < 0 { magnitude / power } else { magnitude * power };
            return if self.negative { -magnitude } else { magnitude };
        }
        general(text)
    }

    /// Only for integers.
    #[inline]
    pub(super) fn to_i64(self, text: &[u8]) -> Option<i64> {
        if !self.integer {
            None
        } else if self.exact && self.mantissa <= i64::MAX as u64 {
            Some(if self.negative { -(self.mantissa as i64) } else { self.mantissa as i64 })
        } else {
            std::str::from_utf8(text).ok()?.parse().ok() // i64::MIN, and more than 19 digits
        }
    }

    /// Only for integers. "-0" is none.
    #[inline]
    pub(super) fn to_u64(self, text: &[u8]) -> Option<u64> {
        if !self.integer || self.negative {
            None
        } else if self.exact {
            Some(self.mantissa)
        } else {
            std::str::from_utf8(text).ok()?.parse().ok()
        }
    }
}

#[cold]
fn general(text: &[u8]) -> f64 {
    std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()).unwrap_or(f64::NAN)
}

const POWERS_OF_TEN: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20,
    1e21, 1e22,
];

/// Appends the digits from `at` to `value` (modulo 2^64) and answers where they end.
#[inline]
fn digits(bytes: &[u8], mut at: usize, value: &mut u64) -> usize {
    while let Some(eight) = bytes.get(at..).and_then(|rest| rest.first_chunk::<8>()) {
        let word = u64::from_le_bytes(*eight);
        if !are_digits(word) {
            break;
        }
        *value = value.wrapping_mul(100_000_000).wrapping_add(eight_digits(word));
        at += 8;
    }
    while let Some(digit) = bytes.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|&digit| digit < 10) {
        *value = value.wrapping_mul(10).wrapping_add(u64::from(digit));
        at += 1;
    }
    at
}

fn are_digits(word: u64) -> bool {
    const HIGH: u64 = 0xF0F0_F0F0_F0F0_F0F0;
    (word & HIGH) | ((word.wrapping_add(0x0606_0606_0606_0606) & HIGH) >> 4) == 0x3333_3333_3333_3333
}

/// Lemire's: pairs, then fours, then eight, in three multiplications.
fn eight_digits(word: u64) -> u64 {
    let word = (word & 0x0F0F_0F0F_0F0F_0F0F).wrapping_mul(2561) >> 8;
    let word = (word & 0x00FF_00FF_00FF_00FF).wrapping_mul(6_553_601) >> 16;
    (word & 0x0000_FFFF_0000_FFFF).wrapping_mul(42_949_672_960_001) >> 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn same_as_std(text: &str) {
        let std: f64 = text.parse().expect("a number");
        let (decimal, len) = scan(text.as_bytes()).expect(text);
        assert_eq!(len, text.len(), "{text}");
        assert_eq!(decimal.to_f64(text.as_bytes()).to_bits(), std.to_bits(), "{text}");
        if decimal.integer {
            assert_eq!(decimal.to_i64(text.as_bytes()), text.parse().ok(), "{text}");
            if !decimal.negative {
                assert_eq!(decimal.to_u64(text.as_bytes()), text.parse().ok(), "{text}");
            }
        }
    }

    #[test]
    fn numbers_at_the_edges_have_the_bits_of_std() {
        for text in [
            "0",
            "-0",
            "-0.0",
            "5.",
            ".5",
            "1e22",
            "1e23",
            "9007199254740992",
            "9007199254740993",
            "9007199254740992e22",
            "9007199254740993e-22",
            "123456789012345678",
            "1234567890123456789",
            "12345678901234567890",
            "18446744073709551615",
            "18446744073709551616",
            "-9223372036854775808",
            "-9223372036854775809",
            "9223372036854775807",
            "9223372036854775808",
            "00000000000000000000000000000007",
            "0.1",
            "1e-9",
            "1e300",
            "1.7976931348623157e308",
            "1.7976931348623159e308",
            "1e400",
            "4.9e-324",
            "2e-324",
            "1e99999999999999999999",
            "1e-99999999999999999999",
            "0e99999999999",
            "0.000000000000000000000000000001",
            "12345678.12345678",
            "123456781234567812345678",
            "1E+5",
            "1e+05",
        ] {
            same_as_std(text);
        }
    }

    #[test]
    fn what_is_no_number_is_none_or_ends_early() {
        for (text, len) in
            [("", None), ("-", None), (".", None), ("-.", None), ("e5", None), ("+1", None), ("/1", None)]
        {
            assert_eq!(scan(text.as_bytes()).map(|found| found.1), len, "{text}");
        }
        for (text, len) in [("1e", 1), ("1e+", 1), ("1.2.3", 3), ("12:", 2), ("12345678/", 8), ("1234567:9", 7)] {
            assert_eq!(scan(text.as_bytes()).map(|found| found.1), Some(len), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_number_has_the_bits_of_std(text in "-?[0-9]{1,24}(\\.[0-9]{0,24})?([eE][+-]?[0-9]{1,3})?") {
            same_as_std(&text);
        }

        #[test]
        fn short_decimals_have_the_bits_of_std(mantissa in 0_u64..1 << 54, point in 0_usize..18, exponent in -40_i32..40) {
            let mut text = mantissa.to_string();
            if point < text.len() {
                text.insert(point, '.');
            }
            same_as_std(&format!("{text}e{exponent}"));
            same_as_std(&text);
        }

        #[test]
        fn printed_doubles_come_back(bits in any::<u64>()) {
            let value = f64::from_bits(bits);
            if value.is_finite() {
                same_as_std(&format!("{value:e}"));
                same_as_std(&format!("{value}"));
            }
        }
    }
}
