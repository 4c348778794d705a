//! Line protocol once more, slow and plain, as an opinion to compare with: it cuts a line into parts by a table of
//! escaped bytes and uses nothing but the standard library. Included by path in the fuzz targets.

use super::testing::render_series;
use super::*;

/// What `check_line` compares: rendered points, and refused ones by reason.
pub fn decode(body: &[u8], unit: TimestampUnit, bounds: &Bounds) -> (Vec<String>, [u32; Reason::COUNT]) {
    let mut points = Vec::new();
    let mut rejected = [0; Reason::COUNT];
    let mut full = false;
    let mut rest = body;
    while let Some(first) = rest.first() {
        if b" \t\r\n".contains(first) {
            rest = &rest[1..];
            continue;
        }
        if *first == b'#' {
            rest = after_newline(rest, 0);
            continue;
        }
        let (line, next) = match line_end(rest) {
            Some(end) => (&rest[..end], rest.get(end + 1..).unwrap_or_default()),
            None => (rest, &rest[rest.len()..]),
        };
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        match one_line(line, unit, bounds) {
            Err((reason, count)) => rejected[reason as usize] += count,
            Ok(found) => {
                full |= points.len() + found.fields > bounds.points_max as usize;
                if full {
                    rejected[Reason::TooManyPoints as usize] += found.fields as u32;
                } else {
                    match found.points {
                        Ok(found) => points.extend(found),
                        Err(reason) => rejected[reason as usize] += found.fields as u32,
                    }
                }
            }
        }
        rest = next;
    }
    (points, rejected)
}

fn after_newline(rest: &[u8], at: usize) -> &[u8] {
    let end = rest[at..].iter().position(|&byte| byte == b'\n').map_or(rest.len(), |found| at + found + 1);
    &rest[end..]
}

/// The first newline that is in no string; a string that does not close well is none.
fn line_end(rest: &[u8]) -> Option<usize> {
    let series =
        (0..rest.len()).find(|&at| rest[at] == b'\n' || rest[at] == b' ' && (at == 0 || rest[at - 1] != b'\\'))?;
    let mut at = series;
    while at < rest.len() {
        if rest[at] == b'\n' {
            return Some(at);
        }
        if rest[at] == b'"' && rest[at - 1] == b'=' && rest[at - 2] != b'\\' {
            match string_end(&rest[at..]) {
                Some(len) if ends_value(&rest[at + len..]) => at += len - 1,
                _ => return rest[at..].iter().position(|&byte| byte == b'\n').map(|found| at + found),
            }
        }
        at += 1;
    }
    None
}

/// Length of a string with both its quotes.
fn string_end(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    for (at, &byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'"' => return Some(at + 1),
            b'\\' => escaped = matches!(text.get(at + 1), Some(b'"' | b'\\')),
            _ => {}
        }
    }
    None
}

fn ends_value(rest: &[u8]) -> bool {
    rest.is_empty() || b", \n".contains(&rest[0]) || rest == b"\r" || rest.starts_with(b"\r\n")
}

struct Line {
    fields: usize,
    points: Result<Vec<String>, Reason>,
}

fn one_line(line: &[u8], unit: TimestampUnit, bounds: &Bounds) -> Result<Line, (Reason, u32)> {
    let (series, mut rest) = split(line, b' ').ok_or((Reason::MissingValue, 1))?;
    if series.len() > bounds.series_bytes_max as usize {
        return Err((Reason::TooLong, 1));
    }
    rest = trim(rest);
    if rest.is_empty() {
        return Err((Reason::MissingValue, 1));
    }
    let mut fields: Vec<(&[u8], String)> = Vec::new();
    loop {
        let count = fields.len() as u32 + 1;
        let key_end = (0..rest.len()).find(|&at| b"=, ".contains(&rest[at]) && (at == 0 || rest[at - 1] != b'\\'));
        let key_end = match key_end {
            _ if rest.is_empty() => return Err((Reason::Malformed, count)),
            Some(0) => return Err((Reason::Malformed, count)),
            Some(at) if rest[at] == b'=' => at,
            _ => return Err((Reason::MissingValue, count)),
        };
        let key = &rest[..key_end];
        rest = &rest[key_end + 1..];
        let len = if rest.first() == Some(&b'"') {
            string_end(rest).ok_or((Reason::Malformed, count))?
        } else {
            rest.iter().position(|byte| b", ".contains(byte)).unwrap_or(rest.len())
        };
        if rest.get(len).is_some_and(|byte| !b", ".contains(byte)) {
            return Err((Reason::Malformed, count));
        }
        fields.push((key, value(&rest[..len], bounds).map_err(|reason| (reason, count))?));
        rest = &rest[len..];
        match rest.strip_prefix(b",") {
            Some(after) => rest = after,
            None => break,
        }
    }
    let count = fields.len() as u32;
    rest = trim(rest);
    let time = if rest.is_empty() {
        "none".to_owned()
    } else {
        let digits = |text: &[u8]| {
            let text = text.strip_prefix(b"-").unwrap_or(text);
            !text.is_empty() && text.iter().all(u8::is_ascii_digit)
        };
        let end = rest.iter().position(|&byte| byte == b' ').unwrap_or(rest.len());
        let text = &rest[..end];
        let ns = Some(text).filter(|text| digits(text)).and_then(|text| time(text, unit));
        let ns = ns.ok_or((Reason::InvalidTimestamp, count))?;
        if !trim(&rest[end..]).is_empty() {
            return Err((Reason::Malformed, count));
        }
        ns.to_string()
    };
    let points = fields.iter().map(|(key, value)| {
        let name = name(series, key, bounds)?;
        Ok(format!("{name} {value} @{time}"))
    });
    Ok(Line { fields: fields.len(), points: points.collect() })
}

fn time(text: &[u8], unit: TimestampUnit) -> Option<i64> {
    let value: i128 = std::str::from_utf8(text).ok()?.parse::<i64>().ok()?.into();
    let scale = match unit {
        TimestampUnit::Hours => 3_600_000_000_000,
        TimestampUnit::Minutes => 60_000_000_000,
        TimestampUnit::S => 1_000_000_000,
        TimestampUnit::Ms => 1_000_000,
        TimestampUnit::Us => 1_000,
        TimestampUnit::Ns => 1,
        TimestampUnit::ByMagnitude => match value.abs().to_string().len() {
            0..=11 => 1_000_000_000,
            12..=14 => 1_000_000,
            15..=17 => 1_000,
            _ => 1,
        },
    };
    i64::try_from(value * scale).ok().filter(|&ns| ns != i64::MIN)
}

/// Before and after the first `separator` that is not escaped.
fn split(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = (0..text.len()).find(|&at| text[at] == separator && (at == 0 || text[at - 1] != b'\\'))?;
    Some((&text[..at], &text[at + 1..]))
}

fn trim(mut text: &[u8]) -> &[u8] {
    while let Some(rest) = text.strip_prefix(b" ") {
        text = rest;
    }
    text
}

fn value(text: &[u8], bounds: &Bounds) -> Result<String, Reason> {
    if text.first() == Some(&b'"') {
        let text = unescape(&text[1..text.len() - 1], "\"\\");
        if text.len() > bounds.text_bytes_max as usize {
            return Err(Reason::TooLong);
        }
        let text = String::from_utf8(text).map_err(|_| Reason::InvalidText)?;
        return Ok(format!("text {text:?}"));
    }
    let text = std::str::from_utf8(text).map_err(|_| Reason::InvalidValue)?;
    match text {
        "" => return Err(Reason::MissingValue),
        "t" | "T" | "true" | "True" | "TRUE" => return Ok("bool true".to_owned()),
        "f" | "F" | "false" | "False" | "FALSE" => return Ok("bool false".to_owned()),
        _ => {}
    }
    let lower = text.to_ascii_lowercase();
    if ["nan", "inf", "infinity"].contains(&lower.strip_prefix(['-', '+']).unwrap_or(&lower)) {
        return Err(Reason::NonFinite);
    }
    if text.starts_with('+') {
        return Err(Reason::InvalidValue);
    }
    if let Some(int) = text.strip_suffix('i') {
        return int.parse::<i64>().map(|value| format!("int {value}")).map_err(|_| Reason::InvalidValue);
    }
    if let Some(uint) = text.strip_suffix('u') {
        return uint.parse::<u64>().map(|value| format!("uint {value}")).map_err(|_| Reason::InvalidValue);
    }
    let value: f64 = text.parse().map_err(|_| Reason::InvalidValue)?;
    if value.is_finite() { Ok(format!("float {value:?}")) } else { Err(Reason::NonFinite) }
}

fn unescape(text: &[u8], specials: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match bytes.peek() {
            Some(&next) if byte == b'\\' && specials.as_bytes().contains(&next) => {
                out.push(next);
                bytes.next();
            }
            _ => out.push(byte),
        }
    }
    out
}

fn name(series: &[u8], field: &[u8], bounds: &Bounds) -> Result<String, Reason> {
    let check = |text: &[u8], max: u16| {
        if text.len() > max as usize {
            return Err(Reason::TooLong);
        }
        let text = std::str::from_utf8(text).map_err(|_| Reason::InvalidText)?;
        if text.chars().any(char::is_control) { Err(Reason::InvalidText) } else { Ok(()) }
    };
    if series.contains(&0xFF) || field.contains(&0xFF) {
        return Err(Reason::InvalidText);
    }
    let (measurement, tags) = split(series, b',').map_or((series, None), |(name, tags)| (name, Some(tags)));
    if measurement.is_empty() {
        return Err(Reason::MissingName);
    }
    let mut name = unescape(measurement, ", ");
    if field != b"value" {
        name.push(b'_');
        name.extend(unescape(field, ",= "));
    }
    check(&name, bounds.name_bytes_max)?;
    let mut found = Vec::new();
    let mut rest = tags;
    while let Some(text) = rest {
        let (tag, after) = split(text, b',').map_or((text, None), |(tag, after)| (tag, Some(after)));
        rest = after;
        let (key, value) = match split(tag, b'=') {
            Some((key, value)) => (key, value),
            None => return Err(Reason::InvalidTag),
        };
        if split(value, b'=').is_some() || key.is_empty() {
            return Err(Reason::InvalidTag);
        }
        if found.len() >= usize::from(bounds.tags_max) {
            return Err(Reason::TooManyTags);
        }
        let (key, value) = (unescape(key, ",= "), unescape(value, ",= "));
        check(&key, bounds.tag_bytes_max)?;
        check(&value, bounds.tag_bytes_max)?;
        found.push((key, value));
    }
    let tags: Vec<_> = found.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect();
    Ok(render_series(&name, &tags))
}
