//! Times as people write them on the command line, and as we write them.

use std::str::FromStr;

use crate::config::parse_duration;

/// A moment, or how long before now it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Unix ns
    At(i64),
    AgoNs(i64),
}

impl When {
    pub fn ns(self, now_ns: i64) -> i64 {
        match self {
            When::At(ns) => ns,
            When::AgoNs(ago) => now_ns.saturating_sub(ago),
        }
    }
}

const MEANT: &str = "write a time such as 2026-01-31T12:00:00Z, Unix seconds, ms or ns, now, or -2h";

impl FromStr for When {
    type Err = String;

    /// RFC 3339; a Unix time, its unit by its magnitude, as for points; `now`; `-2h`, `-30 min`, `-90s`.
    fn from_str(text: &str) -> Result<When, String> {
        if text == "now" {
            return Ok(When::AgoNs(0));
        }
        if let Some(ago) = text.strip_prefix('-') {
            // As others write minutes: `-30m`.
            let minutes = ago.strip_suffix('m').filter(|number| number.ends_with(|c: char| c.is_ascii_digit()));
            let ago = minutes.map_or_else(|| ago.to_owned(), |number| format!("{number}min"));
            let ago = parse_duration(&ago).map_err(|_| format!("\"{text}\" is no time: {MEANT}"))?;
            return Ok(When::AgoNs(i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX)));
        }
        if let Ok(number) = text.parse::<i64>() {
            let unit_ns = match number.unsigned_abs() {
                0..100_000_000_000 => 1_000_000_000,
                100_000_000_000..100_000_000_000_000 => 1_000_000,
                100_000_000_000_000..100_000_000_000_000_000 => 1_000,
                _ => 1,
            };
            let ns = number.checked_mul(unit_ns).ok_or_else(|| format!("\"{text}\" is too far away: {MEANT}"))?;
            return Ok(When::At(ns));
        }
        calendar_ns(text).map(When::At).ok_or_else(|| format!("\"{text}\" is no time: {MEANT}"))
    }
}

/// Unix milliseconds of `2026-01-31T12:00:00Z`, `2026-01-31 13:00:00.5+01:00` or plain milliseconds.
pub fn parse_time_ms(text: &str) -> Result<i64, String> {
    if let Ok(ms) = text.parse::<i64>() {
        return Ok(ms);
    }
    calendar_ns(text)
        .map(|ns| ns.div_euclid(1_000_000))
        .ok_or_else(|| "write a time such as 2026-01-31T12:00:00Z, or Unix milliseconds".to_owned())
}

/// Unix ns of an RFC 3339 time; date, time and offset are needed.
fn calendar_ns(text: &str) -> Option<i64> {
    let read: toml::value::Datetime = text.parse().ok()?;
    let (date, time, offset) = (read.date?, read.time?, read.offset?);
    let offset_min = match offset {
        toml::value::Offset::Z => 0,
        toml::value::Offset::Custom { minutes } => i64::from(minutes),
    };
    let minutes = i64::from(time.hour) * 60 + i64::from(time.minute) - offset_min;
    let seconds = days_from_civil(i64::from(date.year), i64::from(date.month), i64::from(date.day)) * 86_400
        + minutes * 60
        + i64::from(time.second.unwrap_or(0));
    seconds.checked_mul(1_000_000_000)?.checked_add(i64::from(time.nanosecond.unwrap_or(0)))
}

/// Days since 1970-01-01 in the proleptic Gregorian calendar (Howard Hinnant, "chrono-Compatible Low-Level Date
/// Algorithms"): years begin in March, so that the leap day is a year's last.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

/// Civil time of a Unix time, in UTC (days-to-date after Howard Hinnant's `civil_from_days`).
pub fn rfc3339(ns: i64) -> String {
    let s = ns.div_euclid(1_000_000_000);
    let (days, second) = (s.div_euclid(86_400), s.rem_euclid(86_400));
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        const S: i64 = 1_000_000_000;
        for (text, at) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2026-01-31T12:00:00Z", 1_769_860_800 * S),
            ("2026-01-31 13:00:00.000000007+01:00", 1_769_860_800 * S + 7),
            ("1769860800", 1_769_860_800 * S),
            ("1769860800000", 1_769_860_800 * S),
            ("1769860800000001", 1_769_860_800 * S + 1_000),
            ("1769860800000000001", 1_769_860_800 * S + 1),
            ("0", 0),
        ] {
            assert_eq!(text.parse(), Ok(When::At(at)), "{text}");
        }
        for (text, ago_s) in
            [("now", 0), ("-2h", 7200), ("-30m", 1800), ("-30min", 1800), ("-1.5 h", 5400), ("-7d", 604_800)]
        {
            assert_eq!(text.parse(), Ok(When::AgoNs(ago_s * S)), "{text}");
        }
        assert_eq!(When::AgoNs(5).ns(100), 95);
    }

    #[test]
    fn what_is_no_time_is_refused_with_a_sentence_that_shows_one() {
        for text in [
            "",
            "yesterday",
            "2026-01-31",
            "2026-01-31T12:00:00",
            "-",
            "-2",
            "-2 parsecs",
            "12:00:00Z",
            "9223372036854775808",
        ] {
            let message = text.parse::<When>().expect_err(text);
            assert!(message.contains("2026-01-31T12:00:00Z"), "{text}: {message}");
        }
    }

    #[test]
    fn milliseconds_of_dumps() {
        assert_eq!(parse_time_ms("2026-01-31T12:00:00.5Z"), Ok(1_769_860_800_500));
        assert_eq!(parse_time_ms("-5"), Ok(-5));
        assert!(parse_time_ms("2026-01-31").is_err());
    }

    #[test]
    fn a_unix_time_becomes_a_date() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_000_000_000_000), "2023-11-14T22:13:20Z");
        assert_eq!(rfc3339(951_782_400_000_000_000), "2000-02-29T00:00:00Z");
    }
}
