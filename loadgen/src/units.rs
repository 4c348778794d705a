//! Times, rates and counts as people write and read them.

/// `5ms`, `0.5 s`, `250 us` as µs. A number without a unit is nothing: 5 of what?
pub fn parse_time_us(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let factor = match unit {
        "us" | "µs" => 1.0,
        "ms" => 1e3,
        "s" => 1e6,
        _ if number.is_empty() => return Err(format!("'{text}' is no number of us, ms or s, as '5 ms' is")),
        "" => return Err(format!("'{text}' lacks a unit: us, ms or s, as in '5 ms'")),
        other => return Err(format!("'{other}' is no unit of time: us, ms or s, as in '5 ms'")),
    };
    let us = positive(number)? * factor;
    // Latency histograms end there.
    if us > 3.6e9 { Err(format!("'{text}' is more than an hour")) } else { Ok(us.round() as u64) }
}

/// `9000`, `9k`, `1.5M`, also with `/s`, as a number.
pub fn parse_rate(text: &str) -> Result<f64, String> {
    let (number, unit) = split(text.trim().trim_end_matches("/s"));
    let factor = match unit {
        "" => 1.0,
        "k" | "K" => 1e3,
        "M" => 1e6,
        _ if number.is_empty() => return Err(format!("'{}' is no number", text.trim())),
        other => return Err(format!("'{other}' is no unit of a rate: nothing, k or M, as in '9k'")),
    };
    Ok(positive(number)? * factor)
}

/// A number, and what follows it.
pub fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    (text[..end].trim(), text[end..].trim())
}

pub fn positive(number: &str) -> Result<f64, String> {
    match number.replace('_', "").parse::<f64>() {
        Ok(value) if value.is_finite() => Ok(value),
        _ if number.is_empty() => Err("a number is missing".into()),
        _ => Err(format!("'{number}' is no number")),
    }
}

/// Three digits that count: `850 us`, `1.25 ms`, `12.5 ms`, `1.20 s`.
pub fn time(us: f64) -> String {
    match us {
        _ if us < 1_000.0 => format!("{us:.0} us"),
        _ if us < 999_500.0 => format!("{} ms", three_digits(us / 1e3)),
        _ => format!("{} s", three_digits(us / 1e6)),
    }
}

fn three_digits(value: f64) -> String {
    match value {
        _ if value < 9.995 => format!("{value:.2}"),
        _ if value < 99.95 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

/// `1,234,567`
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A rate a second: `0.50`, `12.5`, `1,234`.
pub fn rate(value: f64) -> String {
    if value < 99.95 { three_digits(value) } else { count(value.round() as u64) }
}

/// For axes and labels: `950`, `12k`, `1.5M`.
pub fn short(value: f64) -> String {
    let trimmed = |value: f64, suffix: &str| {
        let text = format!("{value:.2}");
        format!("{}{suffix}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match value.abs() {
        size if size >= 1e9 => trimmed(value / 1e9, "G"),
        size if size >= 1e6 => trimmed(value / 1e6, "M"),
        size if size >= 1e3 => trimmed(value / 1e3, "k"),
        _ => trimmed(value, ""),
    }
}

pub fn bytes(value: u64) -> String {
    match value as f64 {
        value if value < 1024.0 => format!("{value:.0} B"),
        value if value < 1_048_576.0 => format!("{:.1} KiB", value / 1024.0),
        value if value < 1_073_741_824.0 => format!("{:.1} MiB", value / 1_048_576.0),
        value => format!("{:.2} GiB", value / 1_073_741_824.0),
    }
}

/// `0.20 %`; `value` is 0 to 1.
pub fn share(value: f64) -> String {
    let percent = value * 100.0;
    if percent > 0.0 && percent < 0.01 { "< 0.01 %".into() } else { format!("{percent:.2} %") }
}

/// `45 s`, `2 min`, `1 h 30 min`
pub fn span(ms: u64) -> String {
    let s = ms as f64 / 1e3;
    let (minutes, rest_s) = ((s / 60.0) as u64, s % 60.0);
    let plain = |value: f64| format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_string();
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{} s", plain(s)),
        (0, _) if rest_s < 0.001 => format!("{minutes} min"),
        (0, _) => format!("{minutes} min {} s", plain(rest_s)),
        (hours, 0) => format!("{hours} h"),
        (hours, left) => format!("{hours} h {left} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_people_write_is_read() {
        for (text, us) in [("5ms", 5_000), ("5 ms", 5_000), ("0.25 s", 250_000), ("1_000us", 1_000), (" 7 µs ", 7)] {
            assert_eq!(parse_time_us(text), Ok(us), "{text}");
        }
        for (text, rate) in [("9000", 9e3), ("9k", 9e3), ("1.5M", 1.5e6), ("20 k/s", 2e4), ("10/s", 10.0)] {
            assert_eq!(parse_rate(text), Ok(rate), "{text}");
        }
        for text in ["5", "ms", "5 m", "5..2 ms", "-5 ms", "2 s s", "99999 s"] {
            assert!(parse_time_us(text).is_err(), "{text}");
        }
        for text in ["", "fast", "9 kk", "1e9", "-1", "."] {
            assert!(parse_rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn figures_read_well() {
        for (us, text) in [
            (0.0, "0 us"),
            (999.0, "999 us"),
            (1_000.0, "1.00 ms"),
            (12_345.0, "12.3 ms"),
            (999_400.0, "999 ms"),
            (999_600.0, "1.00 s"),
            (1_500_000.0, "1.50 s"),
        ] {
            assert_eq!(time(us), text);
        }
        assert_eq!(
            (count(0), count(999), count(1_000), count(1_234_567)),
            ("0".into(), "999".into(), "1,000".into(), "1,234,567".into())
        );
        assert_eq!((rate(0.5), rate(12.34), rate(1_234.4)), ("0.50".into(), "12.3".into(), "1,234".into()));
        assert_eq!((short(950.0), short(12_000.0), short(1_500_000.0)), ("950".into(), "12k".into(), "1.5M".into()));
        assert_eq!(
            (span(45_000), span(500), span(120_000), span(5_400_000)),
            ("45 s".into(), "0.5 s".into(), "2 min".into(), "1 h 30 min".into())
        );
        assert_eq!((share(0.0), share(0.00001), share(0.002)), ("0.00 %".into(), "< 0.01 %".into(), "0.20 %".into()));
        assert_eq!((bytes(12), bytes(2_048), bytes(48 << 20)), ("12 B".into(), "2.0 KiB".into(), "48.0 MiB".into()));
    }
}
