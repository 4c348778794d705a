//! InfluxDB line protocol: `measurement[,tag=value...] field=value[,field=value...] [timestamp]`.
//!
//! Each field becomes a point named `measurement_field`, or `measurement` when the field is called `value`. A bad line
//! costs itself and never its neighbours. What real clients do, and this follows:
//!
//! - A comma, space or equals sign is escaped when the byte before it is a backslash; all other backslashes stand for
//!   themselves. Equals signs are no separators in a measurement. In a string, `\"` and `\\` are escapes.
//! - A newline inside a quoted string belongs to the string; a quote opens one only right after a field's `=`.
//! - `\r\n`, blank lines, comments, blanks before a line, several spaces between the parts.
//! - `1i`, `1u`, `t T true True TRUE` and so on; any other number is a float. NaN and infinities are refused.
//! - A tag with an empty value is as good as absent; of equal tag keys the last wins. A field given twice makes two
//!   points.
//!
//! After a fault the rest of the line is skipped with its strings, so that text inside a string cannot become a line of
//! its own; but where the quotes do not balance, the line ends at its first newline. `index` in the refusals is the
//! number of the line in the body, from 1, as an editor counts; a bad line counts the fields up to the fault.

use memchr::{memchr, memchr_iter, memchr2};

use super::fault::Fault;
use super::group::{Group, ParsedKey, Protocol, Value};
use super::number::{self, Decimal};
use super::{Bounds, TimestampUnit, time};
use crate::point::{Batch, Kind, NO_TIMESTAMP, Rejections, SeriesResolver};

/// First byte of raw keys, and what stands between the two parts of them.
const RAW_KEY: u8 = b'L';
const FIELD_MARK: u8 = 0xFF;

/// Decodes bodies of lines; keeps its scratch.
#[derive(Default)]
pub struct LineDecoder {
    group: Group,
    /// A string without its escapes
    text: Vec<u8>,
}

impl LineDecoder {
    pub fn new() -> LineDecoder {
        LineDecoder::default()
    }

    /// Appends the points of `body` to `out` and what is wrong with it to `rejected`. Points without a timestamp get
    /// [`NO_TIMESTAMP`].
    pub fn decode(
        &mut self,
        body: &[u8],
        unit: TimestampUnit,
        bounds: &Bounds,
        series: &mut impl SeriesResolver,
        out: &mut Batch,
        rejected: &mut Rejections,
    ) {
        let lines = Lines { body };
        self.group.clear();
        let mut at = 0;
        while let Some(&first) = body.get(at) {
            match first {
                b'\n' | b' ' | b'\t' | b'\r' => at += 1,
                b'#' => at = end_of_line(body, at),
                _ => match self.line(body, at, unit, bounds) {
                    Ok((end, timestamp_ns)) => {
                        self.group.end(at, timestamp_ns);
                        at = end;
                        if self.group.is_full() {
                            self.group.resolve(&lines, bounds, series, out, rejected);
                        }
                    }
                    Err(stop) => {
                        let points = self.group.seen() + u32::from(!stop.all_fields_seen);
                        self.group.abandon();
                        // refusals keep their order
                        self.group.resolve(&lines, bounds, series, out, rejected);
                        lines.refuse(at, stop.fault, points, rejected);
                        at = skip_line(body, stop.at);
                    }
                },
            }
        }
        self.group.resolve(&lines, bounds, series, out, rejected);
    }

    /// One line from its first byte on; answers where it ends, and its timestamp.
    fn line(&mut self, body: &[u8], start: usize, unit: TimestampUnit, bounds: &Bounds) -> Result<(usize, i64), Stop> {
        let end = end_of_series(body, start)?;
        if end - start > bounds.series_bytes_max as usize {
            let fault = Fault::TooLong { what: "measurement and tags", bytes_max: bounds.series_bytes_max };
            return Err(Stop::new(fault, end));
        }
        let key = self.group.begin();
        key.push(RAW_KEY);
        key.extend_from_slice(&body[start..end]);
        self.group.shared_part_is_written();

        let mut at = skip_spaces(body, end);
        if end_after(body, at).is_some() {
            return Err(Stop::new(Fault::MissingFields, at));
        }
        loop {
            let equals = end_of_field_key(body, at)?;
            let field = &body[at..equals];
            at = self.field(body, field, equals + 1, bounds)?;
            if body.get(at) != Some(&b',') {
                break;
            }
            at += 1;
        }
        at = skip_spaces(body, at);
        if let Some(end) = end_after(body, at) {
            return Ok((end, NO_TIMESTAMP));
        }
        let (decimal, len) = number::scan(&body[at..]).ok_or(Stop::after_fields(Fault::BadTimestamp, at))?;
        let value = decimal.to_i64(&body[at..at + len]);
        let timestamp_ns = value.ok_or(Fault::BadTimestamp).and_then(|value| time::from_integer(value, unit));
        let timestamp_ns = timestamp_ns.map_err(|fault| Stop::after_fields(fault, at))?;
        at += len;
        if body.get(at) != Some(&b' ') && end_after(body, at).is_none() {
            return Err(Stop::after_fields(Fault::BadTimestamp, at));
        }
        at = skip_spaces(body, at);
        let end = end_after(body, at).ok_or(Stop::after_fields(Fault::AfterTimestamp, at))?;
        Ok((end, timestamp_ns))
    }

    /// One value, from its first byte on; answers where it ends.
    #[inline]
    fn field(&mut self, body: &[u8], field: &[u8], at: usize, bounds: &Bounds) -> Result<usize, Stop> {
        let (value, end) = match body.get(at) {
            Some(b'0'..=b'9' | b'-' | b'.') => match number::scan(&body[at..]) {
                Some((decimal, len)) => number_value(body, at, decimal, len)?,
                None => word_value(body, at)?,
            },
            Some(b'"') => {
                let close = closing_quote(body, at + 1).ok_or(Stop::new(Fault::UnbalancedQuotes, at))?;
                let raw = &body[at + 1..close];
                if !ends_value(body, close + 1) {
                    return Err(Stop::new(Fault::AfterString, at));
                }
                self.text.clear();
                unescape(raw, b"\"\\", &mut self.text);
                if self.text.len() > bounds.text_bytes_max as usize {
                    let fault = Fault::TooLong { what: "a string", bytes_max: bounds.text_bytes_max };
                    return Err(Stop::new(fault, close + 1));
                }
                if std::str::from_utf8(&self.text).is_err() {
                    return Err(Stop::new(Fault::NotText { what: "a string" }, close + 1));
                }
                (Value::Text(&self.text), close + 1)
            }
            _ => word_value(body, at)?,
        };
        self.group.point(FIELD_MARK, Some(field), value, bounds);
        Ok(end)
    }
}

/// Why and where the scan of a line ended.
struct Stop {
    fault: Fault,
    at: usize,
    /// Else the field with the fault is to be counted too
    all_fields_seen: bool,
}

impl Stop {
    fn new(fault: Fault, at: usize) -> Stop {
        Stop { fault, at, all_fields_seen: false }
    }
    fn after_fields(fault: Fault, at: usize) -> Stop {
        Stop { fault, at, all_fields_seen: true }
    }
}

/// The first space that is not escaped. Tags are not looked at: a line of a known series never needs them.
#[inline]
fn end_of_series(body: &[u8], start: usize) -> Result<usize, Stop> {
    let mut at = start;
    loop {
        let Some(found) = memchr2(b' ', b'\n', &body[at..]) else {
            return Err(Stop::new(Fault::MissingFields, body.len()));
        };
        at += found;
        if body[at] == b'\n' {
            return Err(Stop::new(Fault::MissingFields, at));
        }
        if at == start || body[at - 1] != b'\\' {
            return Ok(at);
        }
        at += 1;
    }
}

#[inline]
fn end_of_field_key(body: &[u8], start: usize) -> Result<usize, Stop> {
    let mut before = 0;
    for (offset, &byte) in body[start..].iter().enumerate() {
        let at = start + offset;
        match byte {
            b'=' if before != b'\\' && offset == 0 => return Err(Stop::new(Fault::MissingFieldKey, at)),
            b'=' if before != b'\\' => return Ok(at),
            b',' | b' ' if before != b'\\' && offset == 0 => return Err(Stop::new(Fault::MissingFieldKey, at)),
            b',' | b' ' if before != b'\\' => return Err(Stop::new(Fault::MissingFieldValue, at)),
            b'\n' if offset == 0 || &body[start..at] == b"\r" => return Err(Stop::new(Fault::MissingFieldKey, at)),
            b'\n' => return Err(Stop::new(Fault::MissingFieldValue, at)),
            _ => before = byte,
        }
    }
    let fault = if matches!(&body[start..], b"" | b"\r") { Fault::MissingFieldKey } else { Fault::MissingFieldValue };
    Err(Stop::new(fault, body.len()))
}

#[inline]
fn number_value(body: &[u8], at: usize, decimal: Decimal, len: usize) -> Result<(Value<'static>, usize), Stop> {
    let end = at + len;
    let text = &body[at..end];
    let (kind, bits, end) = match body.get(end) {
        Some(b'i') => {
            let value = decimal.to_i64(text).ok_or(Stop::new(Fault::BadInteger, at))?;
            (Kind::Int, value as u64, end + 1)
        }
        Some(b'u') => (Kind::UInt, decimal.to_u64(text).ok_or(Stop::new(Fault::BadUnsigned, at))?, end + 1),
        _ => (Kind::Float, decimal.to_f64(text).to_bits(), end),
    };
    if !ends_value(body, end) {
        return Err(Stop::new(Fault::BadNumber, at));
    }
    if kind == Kind::Float && !f64::from_bits(bits).is_finite() {
        return Err(Stop::new(Fault::NonFinite, at));
    }
    Ok((Value::Plain(kind, bits), end))
}

/// Booleans, and what is no value.
fn word_value(body: &[u8], at: usize) -> Result<(Value<'static>, usize), Stop> {
    let mut end = at;
    while !ends_value(body, end) {
        end += 1;
    }
    let word = &body[at..end];
    let fault = match word {
        b"t" | b"T" | b"true" | b"True" | b"TRUE" => return Ok((Value::Plain(Kind::Bool, 1), end)),
        b"f" | b"F" | b"false" | b"False" | b"FALSE" => return Ok((Value::Plain(Kind::Bool, 0), end)),
        b"" => Fault::MissingFieldValue,
        _ => {
            let unsigned = word.strip_prefix(b"-").or(word.strip_prefix(b"+")).unwrap_or(word);
            let non_finite = [&b"nan"[..], b"inf", b"infinity"].iter().any(|name| unsigned.eq_ignore_ascii_case(name));
            match word[0] {
                _ if non_finite => Fault::NonFinite,
                b'0'..=b'9' | b'-' | b'.' => Fault::BadNumber,
                _ => Fault::BadValue,
            }
        }
    };
    Err(Stop::new(fault, at))
}

#[inline]
fn ends_value(body: &[u8], at: usize) -> bool {
    match body.get(at) {
        None | Some(b',' | b' ' | b'\n') => true,
        Some(b'\r') => matches!(body.get(at + 1), None | Some(b'\n')),
        Some(_) => false,
    }
}

/// Where the next line begins, if this one ends at `at`.
#[inline]
fn end_after(body: &[u8], at: usize) -> Option<usize> {
    match body.get(at) {
        None => Some(at),
        Some(b'\n') => Some(at + 1),
        Some(b'\r') => match body.get(at + 1) {
            None => Some(at + 1),
            Some(b'\n') => Some(at + 2),
            Some(_) => None,
        },
        Some(_) => None,
    }
}

#[inline]
fn skip_spaces(body: &[u8], mut at: usize) -> usize {
    while body.get(at) == Some(&b' ') {
        at += 1;
    }
    at
}

fn end_of_line(body: &[u8], at: usize) -> usize {
    memchr(b'\n', &body[at..]).map_or(body.len(), |found| at + found + 1)
}

/// `at` is the first byte inside the string.
fn closing_quote(body: &[u8], mut at: usize) -> Option<usize> {
    loop {
        at += memchr2(b'"', b'\\', &body[at..])?;
        if body[at] == b'"' {
            return Some(at);
        }
        at += if matches!(body.get(at + 1), Some(b'"' | b'\\')) { 2 } else { 1 };
    }
}

/// Where the line after a bad one begins. Linear: a string that is walked in vain has no quote in it but its last, so
/// no later line walks it again.
fn skip_line(body: &[u8], mut at: usize) -> usize {
    while let Some(found) = memchr2(b'"', b'\n', &body[at..]) {
        at += found;
        if body[at] == b'\n' {
            return at + 1;
        }
        let opens = body[..at].ends_with(b"=") && !body[..at].ends_with(b"\\=");
        if opens {
            match closing_quote(body, at + 1) {
                Some(close) if ends_value(body, close + 1) => at = close,
                _ => return end_of_line(body, at),
            }
        }
        at += 1;
    }
    body.len()
}

/// Takes the backslash from before each of `specials`.
fn unescape(raw: &[u8], specials: &[u8], out: &mut Vec<u8>) {
    let mut rest = raw;
    while let Some(at) = memchr(b'\\', rest) {
        out.extend_from_slice(&rest[..at]);
        match rest.get(at + 1) {
            Some(next) if specials.contains(next) => {
                out.push(*next);
                rest = &rest[at + 2..];
            }
            _ => {
                out.push(b'\\');
                rest = &rest[at + 1..];
            }
        }
    }
    out.extend_from_slice(rest);
}

fn unescape_measurement(raw: &[u8], out: &mut Vec<u8>) {
    unescape(raw, b", ", out);
}

fn unescape_tag(raw: &[u8], out: &mut Vec<u8>) {
    unescape(raw, b",= ", out);
}

/// The first of `byte` without a backslash before it.
fn separator(byte: u8, raw: &[u8]) -> Option<usize> {
    memchr_iter(byte, raw).find(|&at| at == 0 || raw[at - 1] != b'\\')
}

struct Lines<'a> {
    body: &'a [u8],
}

impl Protocol for Lines<'_> {
    fn parse_key(raw: &[u8], bounds: &Bounds, parsed: &mut ParsedKey) -> Result<(), Fault> {
        parsed.clear();
        let mark = memchr(FIELD_MARK, raw).unwrap_or(raw.len());
        let (mut rest, field) = (&raw[1..mark], raw.get(mark + 1..).unwrap_or_default());
        if memchr(FIELD_MARK, field).is_some() {
            // one of them is the body's own, so this is no UTF-8, and the key cannot be told apart
            return Err(Fault::NotText { what: "measurement, tags and field keys" });
        }

        let end = separator(b',', rest).unwrap_or(rest.len());
        unescape_measurement(&rest[..end], parsed.text());
        parsed.end_name(Fault::MissingMeasurement, Some(field), unescape_tag, bounds)?;
        while !rest.is_empty() {
            rest = &rest[separator(b',', rest).unwrap_or(rest.len())..];
            let Some(after_comma) = rest.get(1..) else { break };
            rest = after_comma;
            let tag = &rest[..separator(b',', rest).unwrap_or(rest.len())];
            if tag.is_empty() {
                return Err(Fault::MissingTagKey);
            }
            let equals = separator(b'=', tag).ok_or(Fault::MissingTagValue)?;
            let value = &tag[equals + 1..];
            if separator(b'=', value).is_some() {
                return Err(Fault::TagEquals);
            }
            parsed.tag(&tag[..equals], value, unescape_tag, bounds)?;
        }
        Ok(())
    }

    fn refuse(&self, place: usize, fault: Fault, points: u32, rejected: &mut Rejections) {
        if rejected.first.len() >= Rejections::FIRST_MAX {
            rejected.add(0, fault.reason(), points, String::new);
            return;
        }
        let number = memchr_iter(b'\n', &self.body[..place]).count() + 1;
        rejected.add(u32::try_from(number).unwrap_or(u32::MAX), fault.reason(), points, || {
            format!("unable to parse '{}': {fault}", excerpt(&self.body[place..]))
        });
    }
}

/// The beginning of a line, at most 64 bytes, as text without control characters.
fn excerpt(rest: &[u8]) -> String {
    let line = &rest[..memchr(b'\n', rest).unwrap_or(rest.len()).min(64 + 3)];
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut text = String::new();
    for char in String::from_utf8_lossy(line).chars() {
        let char = if char.is_control() { char::REPLACEMENT_CHARACTER } else { char };
        if text.len() + char.len_utf8() > 64 {
            break;
        }
        text.push(char);
    }
    text
}
