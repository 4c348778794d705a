//! Sizes and durations as people write them: `64 MiB`, `1 GB`, `250 ms`, `5 min`.
//!
//! A number without a unit is refused wherever a unit is meant: `idle_timeout = 75` has cost enough operators an
//! outage. What is formatted here parses back to the same value, exactly.

use std::fmt;
use std::time::Duration;

/// A number of bytes. `KiB`, `MiB`, .. are powers of 1024, `kB`, `MB`, .. powers of 1000, as the SI and IEC say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct ByteSize(pub u64);

impl ByteSize {
    pub const fn kib(n: u64) -> ByteSize {
        ByteSize(n << 10)
    }
    pub const fn mib(n: u64) -> ByteSize {
        ByteSize(n << 20)
    }
    pub const fn gib(n: u64) -> ByteSize {
        ByteSize(n << 30)
    }
    pub const fn tib(n: u64) -> ByteSize {
        ByteSize(n << 40)
    }
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Largest first, so that formatting takes the first that divides.
const SIZE_UNITS: [(&str, u64); 10] = [
    ("TiB", 1 << 40),
    ("TB", 1_000_000_000_000),
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("KB", 1_000),
    ("B", 1),
];

const DURATION_UNITS: [(&str, u64); 7] = [
    ("d", 86_400_000_000_000),
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, scale) = largest_exact(&SIZE_UNITS, self.0);
        write!(f, "{} {unit}", self.0 / scale)
    }
}

/// `10 s`, `1 min`: the largest unit that loses nothing.
pub fn format_duration(duration: Duration) -> String {
    let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
    if ns == 0 {
        return "0 s".to_owned();
    }
    let (unit, scale) = largest_exact(&DURATION_UNITS, ns);
    format!("{} {unit}", ns / scale)
}

/// The error is a sentence that shows what to write.
pub fn parse_size(text: &str) -> Result<ByteSize, String> {
    parse(text, &SIZE_UNITS)
        .map(ByteSize)
        .map_err(|why| format!("\"{text}\" is not a size: {why}; write for example \"64 MiB\" or \"1 GB\""))
}

/// The error is a sentence that shows what to write.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    parse(text, &DURATION_UNITS).map(Duration::from_nanos).map_err(|why| {
        format!("\"{text}\" is not a duration: {why}; write for example \"250 ms\", \"10 s\" or \"5 min\"")
    })
}

fn largest_exact(units: &[(&'static str, u64)], n: u64) -> (&'static str, u64) {
    let last = units[units.len() - 1];
    if n == 0 { last } else { *units.iter().find(|(_, scale)| n.is_multiple_of(*scale)).unwrap_or(&last) }
}

/// `digits[.digits] [space] unit`. Decimals are exact or refused: no float is involved.
fn parse(text: &str, units: &[(&'static str, u64)]) -> Result<u64, String> {
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(trimmed.len());
    let (number, unit) = (trimmed[..split].replace('_', ""), trimmed[split..].trim_start());
    if number.is_empty() || number.starts_with('.') || number.ends_with('.') {
        return Err("it must begin with a number that is not negative".to_owned());
    }
    let names = || units.iter().rev().map(|(name, _)| *name).filter(|n| *n != "KB").collect::<Vec<_>>().join(", ");
    if unit.is_empty() {
        return Err(format!("the unit is missing (one of {})", names()));
    }
    let Some((_, scale)) = units.iter().find(|(name, _)| *name == unit) else {
        return Err(format!("\"{unit}\" is no unit (one of {})", names()));
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((&number, ""));
    let too_large = || "it is too large".to_owned();
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let mut total = whole.checked_mul(*scale).ok_or_else(too_large)?;
    if !fraction.is_empty() {
        if fraction.len() > 12 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err("its fraction cannot be read".to_owned());
        }
        let numerator = u128::from(fraction.parse::<u64>().map_err(|_| too_large())?) * u128::from(*scale);
        let denominator = 10u128.pow(fraction.len() as u32);
        if !numerator.is_multiple_of(denominator) {
            return Err("its fraction is finer than the smallest unit".to_owned());
        }
        total = u64::try_from(numerator / denominator).ok().and_then(|n| total.checked_add(n)).ok_or_else(too_large)?;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_and_durations_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("64 MiB", 64 << 20),
            ("64MiB", 64 << 20),
            (" 1 GB ", 1_000_000_000),
            ("1.5 KiB", 1536),
            ("0.5 GB", 500_000_000),
            ("12 B", 12),
            ("1_000 kB", 1_000_000),
            ("0 B", 0),
        ] {
            assert_eq!(parse_size(text), Ok(ByteSize(bytes)), "{text}");
        }
        for (text, ms) in
            [("10 s", 10_000), ("250 ms", 250), ("5 min", 300_000), ("1.5 h", 5_400_000), ("2d", 172_800_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn what_is_unclear_is_refused_with_a_sentence_that_says_what_to_write() {
        for (text, part) in [
            ("10", "the unit is missing"),
            ("", "begin with a number"),
            ("ten s", "begin with a number"),
            ("-5 s", "begin with a number"),
            ("5 m", "\"m\" is no unit"),
            ("5 S", "\"S\" is no unit"),
            ("1.2.3 s", "fraction cannot be read"),
            ("1. s", "begin with a number"),
            ("0.5 ns", "finer than the smallest unit"),
            ("99999999999999999999 s", "too large"),
            ("999999999999 d", "too large"),
            ("5 µ", "is no unit"),
        ] {
            let message = parse_duration(text).expect_err(text);
            assert!(message.contains(part) && message.contains("write for example"), "{text}: {message}");
        }
        assert!(parse_size("64 mb").expect_err("wrong case").contains("\"mb\" is no unit"));
    }

    proptest! {
        #[test]
        fn what_is_formatted_parses_back(n: u64) {
            prop_assert_eq!(parse_size(&ByteSize(n).to_string()), Ok(ByteSize(n)));
            let duration = Duration::from_nanos(n);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,20}") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }
    }
}
