//! Points and windows as line protocol, for InfluxDB and for files, in one of two schemas.
//!
//! *platform*: one measurement, `server_metrics`; tags `metric_name`, `client_id` and every tag of the point; fields `value`
//! (always a float, so that the types of metrics cannot conflict) and `unit`, when the point has a tag of that name. What
//! a float cannot say goes beside it: `value_int` for integers beyond 2^53, `value_bool`, `value_text`. Windows are
//! in `server_metrics_windows`.
//! *natural*: measurement = name, every tag, `client_id`; field `value` in the type it came with.
//!
//! No point may be lost or merged with another on the way, so what the protocol cannot say is said differently:
//! - A tag that would collide with one of ours, or is reserved, gets the prefix `tag_`.
//! - A key or value that ends in a backslash would swallow the delimiter behind it: a space is added.
//! - A measurement that begins with `#` would be a comment: a backslash goes first.
//! - InfluxDB 1.x knows no unsigned integers: what fits is sent as a signed one, in the natural schema; what does not is
//!   sent as unsigned, and answered by the server.

use metricstream_shards::log::AGGREGATE_LOG_ID;
use metricstream_shards::point::series_key;
use std::collections::HashMap;

use super::unit::{Point, Value, Window};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schema {
    Platform,
    Natural,
}

pub const MEASUREMENT: &str = "server_metrics";
pub const WINDOWS_MEASUREMENT: &str = "server_metrics_windows";

/// Largest integer up to which every one is a double.
const EXACT_MAX: u64 = 1 << 53;
/// Rendered series that are kept, in bytes, for one log.
const KEPT_BYTES_MAX: usize = 32 << 20;

pub struct Lines {
    schema: Schema,
    /// Unsigned integers have a type of their own
    unsigned: bool,
    /// By log
    known: HashMap<u32, Known>,
    scratch: Vec<u8>,
}

/// Series of one segment, rendered: measurement, tags, and what follows the value.
#[derive(Default)]
struct Known {
    segment_id: u64,
    places: Vec<Option<Place>>,
    kept: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Place {
    at: u32,
    head: u32,
    tail: u32,
    hash: u64,
}

impl Lines {
    pub fn new(schema: Schema, unsigned: bool) -> Lines {
        Lines { schema, unsigned, known: HashMap::new(), scratch: Vec::new() }
    }

    /// Finds the point's series rendered, or renders it. Answers a hash of the series; `None`: its key cannot be read.
    pub fn series(&mut self, log_id: u32, segment_id: u64, point: &Point<'_>) -> Option<Rendered<'_>> {
        let known = self.known.entry(log_id).or_default();
        if known.segment_id != segment_id || known.kept.len() > KEPT_BYTES_MAX {
            known.segment_id = segment_id;
            known.places.clear();
            known.kept.clear();
        }
        let place = |kept: &mut Vec<u8>| {
            let at = kept.len() as u32;
            let unit = head(self.schema, point.key, kept)?;
            let head = kept.len() as u32 - at;
            if let Some(unit) = unit {
                kept.extend_from_slice(b",unit=");
                string(unit, kept);
            }
            Some(Place { at, head, tail: kept.len() as u32 - at - head, hash: hash(point.key) })
        };
        let (kept, place) = match point.series.map(|n| n as usize).filter(|n| *n < 16 << 20) {
            None => {
                self.scratch.clear();
                let place = place(&mut self.scratch)?;
                (&self.scratch, place)
            }
            Some(n) => {
                if n >= known.places.len() {
                    known.places.resize((n + 1).next_power_of_two(), None);
                }
                let place = match known.places[n] {
                    Some(place) => place,
                    None => {
                        let place = place(&mut known.kept)?;
                        known.places[n] = Some(place);
                        place
                    }
                };
                (&known.kept, place)
            }
        };
        let (at, head) = (place.at as usize, place.head as usize);
        Some(Rendered {
            head: &kept[at..at + head],
            tail: &kept[at + head..at + head + place.tail as usize],
            hash: place.hash,
            schema: self.schema,
            unsigned: self.unsigned,
        })
    }

    /// Appends a window and a newline.
    pub fn window(&self, window: &Window<'_>, out: &mut Vec<u8>) {
        let view = &window.view;
        let Some(parsed) = series_key::parse(view.key) else { return };
        let own = match self.schema {
            Schema::Platform => {
                out.extend_from_slice(WINDOWS_MEASUREMENT.as_bytes());
                &["metric_name", "client_id", "window", "rule"][..]
            }
            Schema::Natural => {
                measurement(parsed.name, out);
                &["client_id", "window", "rule"][..]
            }
        };
        if self.schema == Schema::Platform {
            tag("metric_name", parsed.name, out);
        }
        tag("client_id", parsed.client, out);
        tag("window", &format!("{}s", view.window_s), out);
        tag("rule", view.rule.unwrap_or(""), out);
        tags(&parsed.tags, own, out);
        out.extend_from_slice(b" count=");
        integer(view.aggregates.count, 'i', out);
        // The protocol has no infinity: such a field is left out.
        for (name, value) in window.numbers().into_iter().filter(|(_, value)| value.is_finite()) {
            out.push(b',');
            out.extend_from_slice(name.as_bytes());
            out.push(b'=');
            float(value, out);
        }
        out.extend_from_slice(b",series=");
        integer(view.series, 'i', out);
        out.extend_from_slice(b",revision=");
        integer(view.revision, 'i', out);
        time(view.start_ms.saturating_mul(1_000_000), out);
    }
}

/// One series, ready for its points.
pub struct Rendered<'a> {
    head: &'a [u8],
    tail: &'a [u8],
    pub hash: u64,
    schema: Schema,
    unsigned: bool,
}

impl Rendered<'_> {
    /// Appends a point and a newline.
    pub fn point(&self, value: Value<'_>, timestamp_ns: i64, out: &mut Vec<u8>) {
        out.extend_from_slice(self.head);
        match self.schema {
            Schema::Platform => platform_value(value, out),
            Schema::Natural => {
                out.extend_from_slice(b" value=");
                natural_value(value, self.unsigned, out);
            }
        }
        out.extend_from_slice(self.tail);
        time(timestamp_ns, out);
    }
}

fn platform_value(value: Value<'_>, out: &mut Vec<u8>) {
    let number = |value: f64, out: &mut Vec<u8>| {
        out.extend_from_slice(b" value=");
        float(value, out);
    };
    match value {
        Value::Float(value) => number(value, out),
        Value::Int(value) => {
            number(value as f64, out);
            if value.unsigned_abs() > EXACT_MAX {
                out.extend_from_slice(b",value_int=");
                integer(value, 'i', out);
            }
        }
        Value::UInt(value) => {
            number(value as f64, out);
            if i64::try_from(value).is_err() {
                out.extend_from_slice(b",value_text=\"");
                out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
                out.push(b'"');
            } else if value > EXACT_MAX {
                out.extend_from_slice(b",value_int=");
                integer(value, 'i', out);
            }
        }
        Value::Bool(value) => {
            out.extend_from_slice(b" value_bool=");
            out.extend_from_slice(if value { b"true" } else { b"false" });
        }
        Value::Text(text) => {
            out.extend_from_slice(b" value_text=");
            string(text, out);
        }
    }
}

fn natural_value(value: Value<'_>, unsigned: bool, out: &mut Vec<u8>) {
    match value {
        Value::Float(value) => float(value, out),
        Value::Int(value) => integer(value, 'i', out),
        Value::UInt(value) if unsigned || i64::try_from(value).is_err() => integer(value, 'u', out),
        Value::UInt(value) => integer(value, 'i', out),
        Value::Bool(value) => out.extend_from_slice(if value { b"true" } else { b"false" }),
        Value::Text(text) => string(text, out),
    }
}

/// Measurement and tags of a raw point. Answers its unit, if the schema has a field for it.
fn head<'k>(schema: Schema, key: &'k [u8], out: &mut Vec<u8>) -> Option<Option<&'k str>> {
    let parsed = series_key::parse(key)?;
    let own = match schema {
        Schema::Platform => {
            out.extend_from_slice(MEASUREMENT.as_bytes());
            tag("metric_name", parsed.name, out);
            &["metric_name", "client_id"][..]
        }
        Schema::Natural => {
            measurement(parsed.name, out);
            &["client_id"][..]
        }
    };
    tag("client_id", parsed.client, out);
    tags(&parsed.tags, own, out);
    let unit = parsed.tags.iter().find(|(key, _)| *key == "unit").map(|(_, value)| *value);
    Some(unit.filter(|_| schema == Schema::Platform))
}

fn measurement(name: &str, out: &mut Vec<u8>) {
    if name.starts_with('#') {
        out.push(b'\\');
    }
    escaped(name, b", ", out);
}

/// Tag keys that the servers use themselves.
const RESERVED: [&str; 4] = ["time", "_measurement", "_field", "_time"];

fn tags(tags: &[(&str, &str)], own: &[&str], out: &mut Vec<u8>) {
    for (key, value) in tags {
        if own.contains(key) || RESERVED.contains(key) {
            tag(&format!("tag_{key}"), value, out);
        } else {
            tag(key, value, out);
        }
    }
}

fn tag(key: &str, value: &str, out: &mut Vec<u8>) {
    // A tag without a value is no tag to these servers.
    if !value.is_empty() {
        out.push(b',');
        escaped(key, b",= ", out);
        out.push(b'=');
        escaped(value, b",= ", out);
    }
}

fn escaped(text: &str, special: &[u8], out: &mut Vec<u8>) {
    for byte in text.bytes() {
        if special.contains(&byte) {
            out.push(b'\\');
        }
        out.push(byte);
    }
    if text.ends_with('\\') {
        out.extend_from_slice(b"\\ ");
    }
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    for byte in text.bytes() {
        if byte == b'"' || byte == b'\\' {
            out.push(b'\\');
        }
        out.push(byte);
    }
    out.push(b'"');
}

fn integer(value: impl itoa::Integer, suffix: char, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
    out.push(suffix as u8);
}

fn float(value: f64, out: &mut Vec<u8>) {
    out.extend_from_slice(zmij::Buffer::new().format(value).as_bytes());
}

fn time(ns: i64, out: &mut Vec<u8>) {
    out.push(b' ');
    out.extend_from_slice(itoa::Buffer::new().format(ns).as_bytes());
    out.push(b'\n');
}

/// FNV-1a: which lane a series takes is no secret, and it is asked once a series.
pub fn hash(key: &[u8]) -> u64 {
    key.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// Whether a log holds windows.
pub fn is_aggregate(log_id: u32) -> bool {
    log_id == AGGREGATE_LOG_ID
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reducer::encode::{AggregatesEncoder, decode_aggregates};
    use crate::reducer::record::Flags;
    use metricstream_shards::window::summary::{Aggregates, Detail};

    fn key(client: &str, name: &str, tags: &[(&str, &str)]) -> Vec<u8> {
        let mut key = Vec::new();
        let tags: Vec<(&[u8], &[u8])> = tags.iter().map(|(k, v)| (k.as_bytes(), v.as_bytes())).collect();
        series_key::write(&mut key, client.as_bytes(), name.as_bytes(), &tags);
        key
    }
    fn point<'a>(key: &'a [u8], series: Option<u32>, value: Value<'a>) -> Point<'a> {
        Point {
            number: 0,
            epoch: 1,
            is_identified: true,
            key,
            series,
            timestamp_ns: 5,
            value,
            request_id: "",
            traceparent: "",
        }
    }
    fn line(lines: &mut Lines, at: (u32, u64), point: &Point<'_>) -> String {
        let mut out = Vec::new();
        lines.series(at.0, at.1, point).expect("a sound key").point(point.value, point.timestamp_ns, &mut out);
        String::from_utf8(out).expect("UTF-8")
    }
    fn platform(name: &str, tags: &[(&str, &str)], value: Value<'_>) -> String {
        line(&mut Lines::new(Schema::Platform, false), (0, 1), &point(&key("web 1", name, tags), None, value))
    }
    fn natural(name: &str, tags: &[(&str, &str)], value: Value<'_>, unsigned: bool) -> String {
        line(&mut Lines::new(Schema::Natural, unsigned), (0, 1), &point(&key("c", name, tags), None, value))
    }

    #[test]
    fn the_platform_schema_has_one_measurement_and_types_that_cannot_conflict() {
        let start = "server_metrics,metric_name=cpu,client_id=web\\ 1";
        for (value, fields) in [
            (Value::Float(1.5), "value=1.5"),
            (Value::Int(-3), "value=-3.0"),
            (Value::Int(1 << 53), "value=9007199254740992.0"),
            (Value::Int((1 << 53) + 1), "value=9007199254740992.0,value_int=9007199254740993i"),
            (Value::UInt((1 << 53) + 1), "value=9007199254740992.0,value_int=9007199254740993i"),
            (Value::UInt(u64::MAX), "value=1.8446744073709552e+19,value_text=\"18446744073709551615\""),
            (Value::Bool(true), "value_bool=true"),
            (Value::Text("say \"a\\b\"\nand c"), "value_text=\"say \\\"a\\\\b\\\"\nand c\""),
        ] {
            assert_eq!(platform("cpu", &[], value), format!("{start} {fields} 5\n"));
        }
        assert_eq!(
            platform("m", &[("host", "a"), ("unit", "\"B\"")], Value::Float(0.0)),
            "server_metrics,metric_name=m,client_id=web\\ 1,host=a,unit=\"B\" value=0.0,unit=\"\\\"B\\\"\" 5\n"
        );
    }

    #[test]
    fn the_natural_schema_keeps_names_and_types() {
        for (value, unsigned, field) in [
            (Value::Float(1e300), false, "1e+300"),
            (Value::Int(i64::MIN), false, "-9223372036854775808i"),
            (Value::UInt(7), false, "7i"),
            (Value::UInt(7), true, "7u"),
            (Value::UInt(u64::MAX), false, "18446744073709551615u"),
            (Value::Bool(false), false, "false"),
            (Value::Text(""), false, "\"\""),
        ] {
            assert_eq!(natural("cpu", &[], value, unsigned), format!("cpu,client_id=c value={field} 5\n"));
        }
    }

    #[test]
    fn what_the_protocol_reserves_is_escaped_and_what_it_cannot_say_is_said_differently() {
        let value = || Value::Float(1.0);
        for (name, tags, expected) in [
            ("a b,c=d", &[("k=1", "v, x")][..], "a\\ b\\,c=d,client_id=c,k\\=1=v\\,\\ x"),
            ("#c", &[], "\\#c,client_id=c"),
            ("t", &[("client_id", "own"), ("time", "x")], "t,client_id=c,tag_client_id=own,tag_time=x"),
            ("win", &[("disk", "C:\\")], "win,client_id=c,disk=C:\\\\ "),
            ("n\\", &[("k\\", "a\\,b")], "n\\\\ ,client_id=c,k\\\\ =a\\\\,b"),
            ("é", &[("ключ", "値")], "é,client_id=c,ключ=値"),
        ] {
            assert_eq!(natural(name, tags, value(), false), format!("{expected} value=1.0 5\n"));
        }
    }

    #[test]
    fn a_number_that_means_another_series_in_the_next_segment_or_log_is_rendered_anew() {
        let mut lines = Lines::new(Schema::Natural, false);
        let (a, b) = (key("c", "a", &[]), key("c", "b", &[]));
        for (at, key, name) in
            [((0, 1), &a, "a"), ((0, 1), &a, "a"), ((0, 2), &b, "b"), ((1, 2), &a, "a"), ((0, 2), &b, "b")]
        {
            let text = line(&mut lines, at, &point(key, Some(3), Value::Int(1)));
            assert!(text.starts_with(name), "{at:?}: {text}");
        }
    }

    #[test]
    fn windows_have_a_measurement_of_their_own() {
        let mut encoder = AggregatesEncoder::default();
        encoder.begin(Some("by region"), 60, 120_000, 0);
        let aggregates = Aggregates::of(&mut [2.0, 2.0], Detail::Quantiles).expect("not empty");
        let flags = Flags::default();
        encode(&mut encoder, &key("c", "cpu", &[("rule", "own")]), flags, &aggregates);
        let mut out = Vec::new();
        decode_aggregates(encoder.bytes(), &mut |view| {
            Lines::new(Schema::Platform, false).window(&Window { number: 1, epoch: 1, view }, &mut out);
        })
        .expect("just encoded");
        assert_eq!(
            String::from_utf8(out).expect("UTF-8"),
            "server_metrics_windows,metric_name=cpu,client_id=c,window=60s,rule=by\\ region,tag_rule=own \
             count=2i,sum=4.0,min=2.0,max=2.0,avg=2.0,p50=2.0,p95=2.0,p99=2.0,series=4i,revision=2i 120000000000\n"
        );
    }

    fn encode(encoder: &mut AggregatesEncoder, key: &[u8], flags: Flags, aggregates: &Aggregates) {
        encoder.push(key, 2, flags, 4, aggregates, &[]);
    }
}
